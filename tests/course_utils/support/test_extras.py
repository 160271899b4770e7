"""The error about a missing package names the extra that brings it, and that extra does bring it."""

import ast
from pathlib import Path

import pytest
from packages import imported_as
from packaging.requirements import Requirement

from course_tools import requirements
from course_utils.support import extras

LIBRARY = Path(extras.__file__).parents[1]


def imports_by_extra():
    """(extra, package) for each import inside a ``with brought(extra)`` of the library."""
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.With(items=[ast.withitem(ast.Call(ast.Name("brought"), [ast.Constant(extra)]))], body=body):
                    for line in body:
                        names = [line.module] if isinstance(line, ast.ImportFrom) else [one.name for one in line.names]
                        yield from ((extra, name.partition(".")[0]) for name in names)


def test_each_extra_brings_what_is_imported_in_its_name():
    found = set(imports_by_extra())
    assert {extra for extra, _ in found} == {"engine", "gguf", "lora", "parquet", "plots", "tasks"}
    base = {*map(imported_as, requirements.needed())}
    for extra, package in found:
        assert package in {imported_as(line) for line in requirements.needed(extra)} - base, (extra, package)


def test_lessons_have_all_that_the_library_can_lack():
    lessons = {Requirement(line).name for line in requirements.needed("lessons")}
    for extra in ("gguf", "lora", "parquet", "plots", "tasks"):
        assert {Requirement(line).name for line in requirements.needed(extra)} <= lessons


def test_what_is_missing_is_named_with_the_command():
    told = pytest.raises(extras.ExtraMissing, match=r"This needs no_such: pip install 'pruning-llms\[lora\]'")
    with told, extras.brought("lora"):
        import no_such.part  # noqa: F401
    with pytest.raises(ZeroDivisionError), extras.brought("lora"):
        1 / 0  # noqa: B018
