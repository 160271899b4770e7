"""What leaving attentions out does to one prompt's answer, and what the prompt shows before anything is left out.

    record = Record.shipped_for(model) or measure_record(model, tokenizer, order, (1, 2), choosing=60, judging=60)

``cases`` makes prompts of four kinds. ``measure`` lets the model answer each of them, then asks, for each number of
attentions left out, how far the bypassed model's predictions lie from the whole model's along that answer: the harm.
Beside it, what a policy may look at when it decides: the states that enter the first block whose attention may be left
out (all blocks below it always run), and what the model would say if it stopped there.

===========  =======================================================================================================
``prompts``  ``cases``
``harms``    ``measure``
``seconds``  ``seconds_by_length``: how long such prompts and answers take
``record``   ``Record``: all of it for many prompts, which ``measure_record`` measures; sets of random attentions
===========  =======================================================================================================
"""

from course_utils.prompt_harm.harms import ANSWER_TOKENS, Measured, measure
from course_utils.prompt_harm.prompts import KINDS, WORDS, Case, cases
from course_utils.prompt_harm.record import (
    RANDOM_PROMPTS,
    RECORD,
    Record,
    harm_at_random,
    measure_record,
)
from course_utils.prompt_harm.seconds import seconds_by_length

__all__ = [
    "ANSWER_TOKENS",
    "KINDS",
    "RANDOM_PROMPTS",
    "RECORD",
    "WORDS",
    "Case",
    "Measured",
    "Record",
    "cases",
    "harm_at_random",
    "measure",
    "measure_record",
    "seconds_by_length",
]
