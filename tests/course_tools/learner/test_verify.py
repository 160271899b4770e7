"""Runs beside the saved one: what is compared, what is allowed, and that a departure is found where it is."""

from pathlib import Path

import nbformat
import pytest

from course_tools.learner import verify
from course_tools.lessons import notebooks
from course_tools.lessons.printed import Number

ROOT = Path(__file__).resolve().parents[3]
SAVED = sorted((ROOT / "notebooks").glob("*.ipynb"))
STARTED = nbformat.v4.new_output("stream", text="lesson       03\nprofile      embedded\n")


def printed(text):
    return nbformat.v4.new_output("stream", text=text)


def lesson(*cells):
    """A notebook as somebody ran it, of (source, outputs)."""
    made = [nbformat.v4.new_markdown_cell("## The idea")]
    for number, (source, outputs) in enumerate([("start()", [STARTED]), *cells], 1):
        made.append(nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=number))
    return nbformat.v4.new_notebook(cells=made)


def test_file_shows_the_saved_notebooks():
    fresh = verify.to_text(verify.with_saved({}, SAVED))
    assert fresh == verify.EXPECTED.read_text(encoding="utf-8"), "python course.py build writes it anew"


@pytest.mark.parametrize("path", SAVED, ids=[path.stem[:2] for path in SAVED])
def test_a_saved_run_is_as_expected_and_a_changed_one_is_not(path):
    """The comparison can fail: 20 % more in any cell with numbers is noticed there."""
    run, expected = nbformat.read(path, as_version=4), verify.read_expected()[path.stem]
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    same = verify.compare(run, expected)
    assert (same.departures, same.missing, same.idle) == ([], 0, 0)
    assert same.numbers == sum(len(cell["numbers"]) for cell in expected) > 100, "most of what it prints is compared"
    for cell in expected:
        numbers = [Number(text) for text in cell["numbers"]]
        large = [
            position for position, number in enumerate(numbers) if abs(number.value) >= max(10 * number.unit, 2e-3)
        ]
        if large:
            number = numbers[large[0]]
            changed = [*cell["numbers"]]
            changed[large[0]] = f"{number.value * 1.2:.12f}"
            others = [{**other, "numbers": changed} if other is cell else other for other in expected]
            (departure,) = verify.compare(run, others).departures
            assert departure.line == cell["line"]


EXPECTED = verify.expected_of(
    lesson(
        ("a = 1\nprint(a)", [printed("damage 2.0\n")]), ("b", [printed("3.0")]), ("silent", []), ("b", [printed("4")])
    )
)


def compare(*cells):
    return verify.compare(lesson(*cells), EXPECTED)


def test_cells_are_found_by_their_code():
    assert [(cell["line"], cell["numbers"], cell["heading"]) for cell in EXPECTED] == [
        ("a = 1", ["2.0"], "The idea"),
        ("b", ["3.0"], "The idea"),
        ("b", ["4"], "The idea"),
    ]
    a, b, again = ("a = 1\nprint(a)", [printed("damage 2.04\n")]), ("b", [printed("3.1")]), ("b", [printed("4")])
    result = compare(("mine", [printed("7")]), a, b, again)
    assert (result.cells, result.numbers, result.departures) == (3, 3, [])
    assert result.sentence() == "3 of 3 cells run; 3 numbers compared, 5% allowed; as expected"
    result = compare(("a = 2\nprint(a)", [printed("damage 9\n")]), b, again)
    assert (result.missing, result.departures) == (1, []), "an edited cell is the learner's own business"
    assert compare(b, again, a).departures == []


def test_departures():
    a, b, again = ("a = 1\nprint(a)", [printed("damage 2.0\n")]), ("b", [printed("5.0")]), ("b", [printed("4")])
    (left,) = compare(a, b, again).departures
    assert str(left) == "under “The idea”, cell `b`: 1 of 1 numbers, most of all …: 5.0 instead of 3.0"
    (left,) = compare(a, ("b", [printed("5.0 6.0")]), again).departures
    assert left.what == "it prints 2 numbers where 1 are expected"
    error = nbformat.v4.new_output("error", ename="RuntimeError", evalue="no memory\nmore", traceback=[])
    (left,) = compare(a, ("b", [error]), again).departures
    assert left.what == "it stopped with RuntimeError: no memory"


def test_cells_that_were_not_run():
    run = lesson(("a = 1\nprint(a)", [printed("damage 9.0\n")]), ("b", []), ("b", []))
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
    assert verify.compare(run, EXPECTED).sentence() == "not run yet"


@pytest.mark.parametrize("profile", ["hub", "smoke"])
def test_other_profiles_have_other_models(profile):
    run = lesson(("a = 1\nprint(a)", [printed("damage 9.0\n")]), ("b", []), ("b", []))
    run.cells[1].outputs[0].text = f"lesson       03\nprofile      {profile}\n"
    result = verify.compare(run, EXPECTED)
    assert result.departures == [] and f"profile {profile}, so numbers aren't compared" in result.sentence()
    error = nbformat.v4.new_output("error", ename="OutOfMemoryError", evalue="CUDA", traceback=[])
    run.cells[2].outputs = [error]
    assert len(verify.compare(run, EXPECTED).departures) == 1, "but errors count everywhere"


def test_ids_are_the_builders():
    cell = nbformat.v4.new_code_cell("1 + 1")
    notebooks._number([cell])
    assert cell.id == notebooks.content_id(cell)
