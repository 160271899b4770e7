"""A small model from a larger one, as leading labs make it: all axes scored at once, sizes searched under a budget.

    scores = importance(teacher, calibration.batches(4))
    found = candidates(teacher, Budget(113e6))
    table = rank(teacher, found, scores, selection, folder="build/search", train=blocks, recipe=light)
    student = shrink(teacher, found[0], scores)

Recovery is ``healing.distill``. Muralidharan et al. 2024 (Minitron), arXiv 2407.14679. The command
``python -m course_utils compress MODEL --budget 80%`` does all of it: ``order.Order`` is what was asked, and
``run.compress`` carries it out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
