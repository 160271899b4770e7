"""What leaving attentions out does to one prompt's answer, measured for many prompts.

    record = Record.shipped_for(model) or measure_record(model, tokenizer, config, (1, 2), choosing=60, judging=60)

``cases`` makes prompts of four kinds. ``measure`` lets the model answer each of them, then asks, for each number of
attentions left out, how far the bypassed model's predictions lie from the whole model's along that answer: the harm.

===========  =======================================================================================================
``prompts``  ``cases``
``harms``    ``measure``
``record``   ``Record``: all of it for many prompts, which ``measure_record`` measures
===========  =======================================================================================================
"""

from course_utils.lessons.prompt_harm.harms import ANSWER_TOKENS, Measured, measure
from course_utils.lessons.prompt_harm.prompts import KINDS, WORDS, Case, cases
from course_utils.lessons.prompt_harm.record import RECORD, Record, measure_record, save_records

__all__ = [
    "ANSWER_TOKENS",
    "KINDS",
    "RECORD",
    "WORDS",
    "Case",
    "Measured",
    "Record",
    "cases",
    "measure",
    "measure_record",
    "save_records",
]
