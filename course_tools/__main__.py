"""`python -m course_tools COMMAND`, which course.py hands over to."""

import sys

from course_utils.compress import program


def main() -> int:
    """Run the command."""
    from course_tools import cli  # seconds on a slow disk

    return cli.main()


if __name__ == "__main__":
    sys.exit(program.run(main))
