"""Where a run of ``compress`` writes: what lies in ``--out`` belongs together, and what it reads lies elsewhere.

out/model         the smaller model with its card; ``compress.json`` in it says which order made it
out/model.gguf    the same for llama.cpp, where it was asked for
out/records       scores, rows of text, what was learned and measured: a stopped run goes on from here
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from course_utils.pruning.checkpoints import replacing_checkpoint

MADE = "compress.json"  # in the model's folder


def model_in(out: Path) -> Path:
    """The folder of the smaller model."""
    return out / "model"


def gguf_in(out: Path) -> Path:
    """The same model as one file."""
    return out / "model.gguf"


def records_in(out: Path) -> Path:
    """The folder of all that a run needs to go on."""
    return out / "records"


def refuse_sources_in_the_way(out: Path, sources: dict[str, Path]) -> None:
    """Raise ValueError where a run would write over what it reads, or into it; links are followed.

    Args:
        out: the folder that the run writes to.
        sources: what is read, by the argument that names it.
    """
    written = [model_in(out), gguf_in(out), records_in(out)]
    for argument, source in sources.items():
        over = next((place for place in written if _lies_in(source, place)), None)
        if over is not None:
            raise ValueError(
                f"This run would write to {over} and so over {source} ({argument}), which it reads. Nothing was "
                f"changed. Name another folder with --out, such as --out {out.name or 'compressed'}-2."
            )
        if source.is_dir() and any(_lies_in(place, source) for place in written):
            raise ValueError(
                f"This run would write into {source} ({argument}), which it reads. Nothing was changed. Name a folder "
                "outside of it with --out."
            )


def refuse_what_others_made(out: Path) -> None:
    """Raise ValueError where the run would replace a model or a file that ``compress`` hasn't written."""
    for place in (model_in(out), gguf_in(out)):
        if place.exists() and not (model_in(out) / MADE).is_file():
            raise ValueError(
                f"{place} is there already, and compress didn't write it, so it won't replace it. Move it away, or "
                "name another folder with --out."
            )


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the folder while a run writes to it.

    Raises:
        ValueError: another run does so right now.
    """
    records_in(out).mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(records_in(out) / "lock").acquire(timeout=0)
    except Timeout as taken:
        raise ValueError(
            f"Another run of compress writes to {out} right now. Wait until it has ended, or name another folder with "
            "--out."
        ) from taken
    with lock:
        yield


@contextmanager
def replacing_model(out: Path) -> Iterator[Path]:
    """Hand out an empty folder. Where the block ends well, that takes the model's place; an older file goes first.

    So at no moment, not even after a crash, does a file lie beside a model that it wasn't made of.
    """
    with replacing_checkpoint(model_in(out)) as fresh:
        yield fresh
        gguf_in(out).unlink(missing_ok=True)


def _lies_in(place: Path, folder: Path) -> bool:
    """Whether a place is a folder or lies in it, also by way of links or of a file system that ignores case."""
    place, folder = place.resolve(), folder.resolve()
    parents: Sequence[Path] = (place, *place.parents)
    return folder in parents or (folder.exists() and any(each.exists() and each.samefile(folder) for each in parents))
