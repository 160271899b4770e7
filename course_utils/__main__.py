"""``python -m course_utils compress MODEL --budget 80%``: what the package does without a clone of the course."""

import os
import sys

from course_utils.compress import command_line, program

if __name__ == "__main__":
    os.environ |= program.with_sleeping_threads(os.environ)  # before torch, which reads it once
    sys.exit(program.run(lambda: command_line.main(sys.argv[1:])))
