"""Bias: contrastive pairs beside their controls, measured, tested and put in words.

print(report(model, tokenizer, axes=["gender"]))
"""

from course_utils.bias.reporting import BiasReport, Change, analyse, difference_in_differences, report

__all__ = ["BiasReport", "Change", "analyse", "difference_in_differences", "report"]
