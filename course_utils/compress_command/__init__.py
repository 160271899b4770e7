"""``python -m course_utils compress MODEL --budget 113M``: lesson 11's recipe for any supported model, resumable.

First it says what it is going to do and what that takes; with --dry-run it stops there. Whatever can be wrong with the
arguments, the model or the text is found before its weights are read.
"""

from course_utils.compress_command.run import compress

__all__ = ["compress"]
