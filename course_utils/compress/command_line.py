"""The command line of the package, ``python -m course_utils``: its one command, and what that takes.

A function that knows its limits reads each argument, and refuses a wrong one by its name before anything begins.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from course_utils.compress import program
from course_utils.compress.order import Order
from course_utils.text.files import Source

DTYPES = ("float32", "bfloat16")
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "mb": 1e6, "gb": 1e9}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(%|k|m|b|mb|gb|)")
_TOKENS = re.compile(r"(\d+|\d*\.\d+)\s*(%|k|)")
_LARGEST_SHARE = 100  # a number without a unit is a share of the parameters up to here, and a number of them above
_LARGEST_SEED = 2**31 - 1  # torch takes larger ones, but not the steps' own, which are made of it
_SUMMARY = "Make a smaller version of a model: search under a budget, distil, save; --dry-run says what that takes."
_EXAMPLES = """\
for instance:
  {program} Qwen/Qwen3-0.6B --budget 80% --dry-run
  {program} ./my_model --budget 450MB --steps 0 --out smaller
  {program} ./my_model --budget 90% --vocabulary 32k --text docs/
  {program} ./my_model --budget 80% --text docs/ --text chats.jsonl:3 --judge held_out.jsonl

on eight GPUs; with --use_fsdp --fsdp_version 2 instead of --multi_gpu they share the student, too:
  accelerate launch --multi_gpu --num_processes 8 -m course_utils compress MODEL --budget 80% --accumulate 8 --steps 200

whether a smaller sibling, 8 or 4 bits or pruning is best, and what a token costs:
  https://pruning-llms.github.io/course/docs/before_you_prune.html
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command on what was typed after the program's name; return its exit status."""
    whole = argparse.ArgumentParser(prog="python -m course_utils", description="Prune a language model of your own.")
    commands = whole.add_subparsers(required=True, metavar="command")
    add_compress_arguments(commands.add_parser("compress", help=_SUMMARY, description=_SUMMARY), out=Order.out)
    order = order_of(whole.parse_args(arguments))

    def compress() -> int:
        from course_utils.compress.run import compress  # torch, which --help needn't wait for

        return compress(order)

    return program.answer(compress, place=order.out, remedy="Name a folder of yours with --out.")


def order_of(args: argparse.Namespace) -> Order:
    """The order that the arguments of ``add_compress_arguments`` make; ``args`` may hold others as well."""
    given = {name: value for name, value in vars(args).items() if name in Order.__dataclass_fields__}
    return Order(**given | {name: tuple(given[name] or ()) for name in ("text", "judge")})


def add_compress_arguments(parser: argparse.ArgumentParser, *, out: Path) -> None:
    """Give a parser the arguments of the command "compress".

    Args:
        parser: of that command.
        out: the folder that it writes to where --out isn't given.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES.format(program=parser.prog)

    def option(group: argparse._ActionsContainer, name: str, kind: Callable[[str], object], says: str) -> None:
        default = getattr(Order, name.lstrip("-").replace("-", "_"))
        group.add_argument(name, type=kind, default=default, help=f"{says}; default: %(default)s")

    parser.add_argument("model", help='a hub id, a folder, or one of the course\'s own, "llama" and "gpt2"')
    parser.add_argument(
        "--budget", type=_read_budget, required=True, help="80%% (or 80) or 113M parameters, or 450MB of weights"
    )
    parser.add_argument("--dry-run", action="store_true", help="say sizes, memory and time, and stop")
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="print what was found as JSON; all else to standard error"
    )
    parser.add_argument(
        "--out", type=_folder, default=str(out), help="folder for the model, and for records from which a stopped run "
        "goes on; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--export", choices=("gguf",), help="write the model for other engines as well: gguf is one file for llama.cpp "
        "and what is built on it, in 16 bits",
    )  # fmt: skip
    parser.add_argument(
        "--vocabulary", type=_read_vocabulary, help="tokens that stay, 32k (32,000) or 32768, or a share of them, 66%% "
        "or .66: the most frequent ones of the text to learn, with all that they are merged from; what is judged is "
        "told per byte then; default: all",
    )  # fmt: skip
    option(parser, "--multiple-of", _whole(1), "what MLP widths are a multiple of; 128 or 256 suit tensor cores")
    option(parser, "--tensor-parallel", _whole(1), "cards that will serve it, each with as many KV groups and neurons")

    text = parser.add_argument_group("text")
    either = text.add_mutually_exclusive_group()
    either.add_argument(
        "--text", type=_text, action="append", metavar="PLACE[:WEIGHT]", help="text of yours, to score, choose and "
        "learn by, and to judge by without --judge: a folder, or a file of .txt, .md, .jsonl or .parquet (with 'text' "
        "or 'messages'); again for more, with weights for rows, as in --text docs/ --text chats.jsonl:3",
    )  # fmt: skip
    option(either, "--domain", str, "built-in text to learn: speeches, wiki, stories, passages or scenes")
    text.add_argument(
        "--judge", type=_text, action="append", metavar="PLACE", help="text of yours to judge by, which --text must "
        "not hold as well; without it a tenth of the documents is held out",
    )  # fmt: skip
    option(text, "--length", _whole(2), "tokens per row")
    option(text, "--rows", _whole(1), "rows per batch")
    option(text, "--seed", _whole(0, _LARGEST_SEED), "decides which text scores and is learned, and in which order")

    learning = parser.add_argument_group("learning")
    option(learning, "--correction", _whole(0), "steps of teacher correction first, at a quarter of --lr")
    option(learning, "--finalists", _whole(1), "versions that learn a little before one is chosen; 1: the best as cut")
    option(learning, "--light", _whole(0), "steps that each finalist learns; 0: the best as cut is chosen")
    option(learning, "--steps", _whole(0), "steps of recovery; 0: none, it is saved as cut")
    option(learning, "--accumulate", _whole(1), "batches per step, shared by processes")
    learning.add_argument(
        "--lr", type=_rate, help="the peak learning rate; default: 2e-4, and ten times as much with --recover lora"
    )

    memory = parser.add_argument_group("memory")

    def choice(name: str, allowed: tuple[str, ...], says: str) -> None:
        memory.add_argument(name, choices=allowed, default=allowed[0], help=f"{says}; default: %(default)s")

    choice("--dtype", DTYPES, "of the whole model and of the saved one; what learns has float32 weights meanwhile")
    choice("--recover", ("all", "mlps", "lora"), "what learns: all weights, the MLPs', or a low-rank correction")
    memory.add_argument("--recompute", action="store_true", help="compute activations twice instead of keeping them")


def _read_budget(text: str) -> tuple[float, str]:
    """A budget as it is typed: the amount, and "%", "parameters" or "bytes".

    Raises:
        argparse.ArgumentTypeError: it isn't one.

    >>> _read_budget("80%"), _read_budget("80"), _read_budget("113m"), _read_budget("1.2GB")
    ((80.0, '%'), (80.0, '%'), (113000000.0, 'parameters'), (1200000000.0, 'bytes'))
    """
    found = _FORM.fullmatch(text.strip().lower())
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(
            f"must be a share of the parameters (80%), parameters (113M, 1.2B) or bytes (450MB, 2GB); got {text!r}"
        )
    number, unit = float(found[1]), found[2]
    if unit == "%" or (not unit and number <= _LARGEST_SHARE):
        return number, "%"
    return number * _UNITS.get(unit, 1), "bytes" if unit in ("mb", "gb") else "parameters"


def _read_vocabulary(text: str) -> float:
    """How many tokens stay, as it is typed; up to 1 it is a share.

    Raises:
        argparse.ArgumentTypeError: it isn't one.

    >>> _read_vocabulary("32k"), _read_vocabulary("32768"), _read_vocabulary("66%"), _read_vocabulary(".66")
    (32000.0, 32768.0, 0.66, 0.66)
    """
    found = _TOKENS.fullmatch(text.strip().lower())
    number = float(found[1]) * {"%": 0.01, "k": 1e3, "": 1}[found[2]] if found else 0.0
    if not number or (number > 1 and (number % 1 or (found and found[2] == "%"))):
        raise argparse.ArgumentTypeError(
            f"must be a number of tokens (32k, 32768) or a share of them (66%, .66); got {text!r}"
        )
    return number


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A function that reads a whole number within limits."""
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"\s*\d{1,18}\s*", text) else -1
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {limits}; got {text!r}")
        return number

    return read


def _rate(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, such as 2e-4; got {text!r}")
    return number


def _text(text: str) -> str:
    """A file or a folder that text can be read from, perhaps with a weight."""
    try:
        Source.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _folder(text: str) -> Path:
    """A folder that is there and may be written, or that can be made, and so the model's in it."""
    folder = Path(text)
    there = next(place for place in (folder / "model", folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file, and can't be a folder; name another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{there} can't be written; name a folder of yours")
    return folder
