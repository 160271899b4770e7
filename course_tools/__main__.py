"""`python -m course_tools COMMAND`, which course.py hands over to: asked to stop, it stops quietly at any moment."""

import signal
import sys

# `kill` and a closed terminal let every block clean up, as Ctrl-C does: no kernel or test is left behind.
for _name in ("SIGTERM", "SIGHUP"):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(_number, lambda number, _frame: sys.exit(128 + number))

try:
    from course_tools.cli import main  # seconds on a slow disk
except KeyboardInterrupt:
    print("\nStopped.", file=sys.stderr)
    sys.exit(130)
sys.exit(main())
