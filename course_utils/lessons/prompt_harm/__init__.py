"""What leaving attentions out does to one prompt's answer, measured for many prompts.

    record = Record.shipped_for(model) or measure_record(model, tokenizer, config, (1, 2), choosing=60, judging=60)

``cases`` makes prompts of four kinds. ``measure`` lets the model answer each of them, then asks, for each number of
attentions left out, how far the bypassed model's predictions lie from the whole model's along that answer: the harm.
"""

from course_utils.lessons.prompt_harm.harms import Measured, measure
from course_utils.lessons.prompt_harm.prompts import Case, cases
from course_utils.lessons.prompt_harm.record import Record, measure_record, save_records

__all__ = ["Case", "Measured", "Record", "cases", "measure", "measure_record", "save_records"]
