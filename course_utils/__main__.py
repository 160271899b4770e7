"""``python -m course_utils compress MODEL --budget 80%``: what the package does without a clone of the course."""

import sys

from course_utils.compress import command_line, program

if __name__ == "__main__":
    sys.exit(program.run(lambda: command_line.main(sys.argv[1:])))
