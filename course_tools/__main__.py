"""`python -m course_tools COMMAND`, which course.py hands over to: asked to stop, it stops quietly at any moment."""

import os
import signal
import sys

# `kill` and a closed terminal let every block clean up, as Ctrl-C does: no kernel or test is left behind.
for _name in ("SIGTERM", "SIGHUP"):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(_number, lambda number, _frame: sys.exit(128 + number))

try:
    from course_tools.cli import main  # seconds on a slow disk

    status = main()
    sys.stdout.flush()
except KeyboardInterrupt:
    print("\nStopped.", file=sys.stderr)
    status = 130
except BrokenPipeError:  # whoever read our lines has gone, as in `course.py check | head -3`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
    status = 1
sys.exit(status)
