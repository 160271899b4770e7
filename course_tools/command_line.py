"""The command line: which arguments each of the course's commands takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from course_tools.learner import personal
from course_utils.compress.command_line import add_compress_arguments
from course_utils.support import session


def parser(commands: Sequence[Callable], *, build: Path) -> argparse.ArgumentParser:
    """What reads the command line; ``args.command`` is the function to call.

    Args:
        commands: functions that are called like the commands; the first line of a docstring is the command's help.
        build: the folder of what is made, in which some commands write by default.
    """
    functions = {function.__name__: function for function in commands}
    whole = argparse.ArgumentParser(prog="course.py", description="Pruning LLMs: run, test and build the course.")
    added = whole.add_subparsers(required=True, metavar="command")

    def command(name: str, epilog: str = "") -> argparse.ArgumentParser:
        summary = (functions[name].__doc__ or "").partition("\n")[0]
        its_own = added.add_parser(name, help=summary, description=summary, epilog=epilog)
        its_own.set_defaults(command=functions[name])
        return its_own

    running = command("run")
    running.add_argument("--profile", choices=session.PROFILES, help="not COURSE_PROFILE or the automatic choice")
    testing = command("test", epilog="Further arguments go to pytest, for instance a file, -k or -x.")
    testing.add_argument("--fast", action="store_true", help="leave out what needs the embedded models")
    opening = command("lab", epilog="Further arguments go to JupyterLab, for instance --no-browser.")
    reporting = command("progress")
    reporting.add_argument("--name", help="also write a certificate, a page to print, made out to this name")
    verifying_runs = command(
        "verify", epilog="For instance: verify 03, or verify build after `run`, or verify /stick/anna."
    )
    verifying_runs.add_argument(
        "what", nargs="*", metavar="NN|folder", help="lessons, and where; all, in your own folder"
    )
    asking = command("quiz")
    asking.add_argument("lesson", metavar="NN", help="the lesson's number")
    for at_home in (opening, reporting, asking):
        at_home.add_argument(
            "--folder", help=f"yours; otherwise {personal.VARIABLE}, or {personal.DEFAULT} in the clone"
        )
    command("check")
    building = command("build")
    building.add_argument("--execute", action="store_true", help="run them on the embedded models and save the outputs")
    command("site")
    rehearsing = command("rehearse")
    rehearsing.add_argument("--shape", choices=("llama", "qwen", "quarter"), default="llama", help="of the model")
    add_compress_arguments(command("compress"), out=build / "compress")
    showing = command("slides")
    packing = command("pack")
    packing.add_argument("to", metavar="folder", help="the pack: a new folder, or one to go on with")
    packing.add_argument(
        "--platform",
        nargs="+",
        choices=("linux", "macos", "windows"),
        default=["linux", "macos", "windows"],
        help="for which laptops",
    )
    packing.add_argument(
        "--python", default=".".join(map(str, sys.version_info[:2])), help="their version, for instance 3.12"
    )
    packing.add_argument("--wheels", metavar="folder", help="wheels that you have, for instance a CPU build of PyTorch")
    packing.add_argument("--cuda", action="store_true", help="on Linux, PyTorch with CUDA (2.7 GB instead of 0.2)")
    for taking_numbers in (running, building, rehearsing, showing):
        taking_numbers.add_argument(
            "lessons", nargs="*", metavar="NN", help="lesson numbers, or 03a or deeper; by default all lessons"
        )
    return whole
