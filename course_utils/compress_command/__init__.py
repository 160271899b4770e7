"""``python -m course_utils compress MODEL --budget 113M``: the labs' recipe for any supported model, resumable.

First it says what it is going to do and what that takes; with --dry-run it stops there. Whatever can be wrong with the
arguments, the model or the text is found before its weights are read. ``order.Order`` is what was asked, and
``run.compress`` carries it out.
"""
