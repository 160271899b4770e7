"""A learner's own folder: copies of the lessons that no build, no update and no `git pull` ever writes over."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_tools.lessons.authoring import DEEPER
from course_tools.lessons.cells import tags_of
from course_utils.support.files import replacing, write_json

DEFAULT, VARIABLE = "my_course", "COURSE_FOLDER"
RECORD = ".course.json"  # which version of each lesson was copied last
_NUMBER = re.compile(r"^\d\d[a-z]?(?=_)")  # in the name of a lesson: it may get another one


@dataclass(frozen=True)
class Arrival:
    """A notebook that was just put into the folder; `earlier` is the learner's older copy, if there is one."""

    path: Path
    earlier: Path | None

    def __str__(self) -> str:
        if self.earlier is None:
            return f"new      {self.path.name}"
        return f"changed  {self.path.name}, beside your {self.earlier.name}, which stays as it is"


def folder_of(root: Path, chosen: str | None) -> Path:
    """The learner's folder: what was chosen, or `COURSE_FOLDER`, or `my_course` in the clone (which git ignores)."""
    named = chosen or os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else root / DEFAULT


def prepare(notebooks: Path, folder: Path) -> list[Arrival]:
    """Copy lessons that are new, or whose code has changed, into a learner's folder; write over nothing.

    A changed lesson arrives beside the older copy, as `03_slug.v2.ipynb`. One whose text alone changed doesn't: the
    learner's copy stays good. Deeper notebooks come in a folder of their own, as they have it in the course.

    Args:
        notebooks: the course's own, in the exercise form.
        folder: the learner's; made if need be.

    Raises:
        ValueError: the folder is the course's own, or it can't be written.
    """
    if folder.resolve().is_relative_to(notebooks.resolve()):
        raise ValueError(
            f"{folder} holds the course's own notebooks, which every update writes anew. Choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = _read(folder / RECORD)
        arrived = []
        for source in [*sorted(notebooks.glob("*.ipynb")), *sorted(notebooks.glob(f"{DEEPER}/*.ipynb"))]:
            version = _code_version(nbformat.read(source, as_version=4))
            place = folder / source.parent.relative_to(notebooks)
            mine = copies(place, source.stem)
            # Copies without a record came from elsewhere: leave it at them.
            if not mine or record.get(_slug(source.stem), version) != version:
                place.mkdir(exist_ok=True)
                arrived.append(Arrival(_copy(source, place), mine[-1] if mine else None))
            record[_slug(source.stem)] = version
        write_json(folder / RECORD, record)
    except OSError as error:
        raise ValueError(
            f"Your folder {folder} can't be written ({error.strerror}). Choose another one with --folder, or set "
            f"{VARIABLE}."
        ) from error
    return arrived


def copies(folder: Path, lesson: str) -> list[Path]:
    """A lesson's notebooks in the folder, oldest version first; "Copy of 03_slug.ipynb", which Colab saves, is one.

    So is 05_slug.ipynb, from when the lesson had another number; it is older than all that have today's.
    """
    name = re.compile(rf"\d\d[a-z]?{re.escape(_slug(lesson))}")
    found = [path for path in folder.glob("*.ipynb") if name.search(path.stem)]
    return sorted(found, key=lambda path: (lesson in path.stem, len(path.stem), path.stem))


def read_notebook(path: Path) -> NotebookNode:
    """One of the learner's notebooks.

    Raises:
        ValueError: it can't be read as one.
    """
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, OSError, nbformat.ValidationError) as error:
        raise ValueError(
            f"{path.name} can't be read as a notebook ({type(error).__name__}). Mend it, or move it out of the folder."
        ) from error


def _code_version(notebook: NotebookNode) -> str:
    """Changes when the lesson's code does; the install cell, which names where the course is, doesn't count."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "install" not in tags_of(cell)]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def _copy(source: Path, folder: Path) -> Path:
    later = (f"{source.stem}.v{number}.ipynb" for number in itertools.count(2))
    target = next(folder / name for name in itertools.chain([source.name], later) if not (folder / name).exists())
    with replacing(target) as fresh:
        shutil.copyfile(source, fresh)
    return target


def _read(record: Path) -> dict[str, str]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {_slug(lesson): version for lesson, version in known.items()} if isinstance(known, dict) else {}


def _slug(lesson: str) -> str:
    """A lesson's name without its number, "_slug" of "03_slug"; one that has none stays as it is."""
    return _NUMBER.sub("", lesson)
