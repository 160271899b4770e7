"""Bias: contrastive pairs beside their controls, measured, tested and put in words.

    print(report(model, tokenizer, axes=["gender"]))

Behind this door, in the order in which the modules build on each other:

=======================  ===========================================================================================
``contrastive``          the texts: pairs that differ in one span, axes, controls; your own axis from a JSON file
``alignment``            which tokens the two texts of a pair share, and padded batches of pairs
``scores``               ``measure_pairs``: how predictions and activations differ between the two sides
``statistics``           tables from these scores, beside the controls, with intervals and tests
``reporting``            the verdicts: ``report``, ``analyse``, ``difference_in_differences``
``pronouns``             occupations: does a model expect "she" or "he", and which heads carry it
=======================  ===========================================================================================
"""

from course_utils.bias.reporting import BiasReport, Change, analyse, difference_in_differences, report

__all__ = ["BiasReport", "Change", "analyse", "difference_in_differences", "report"]
