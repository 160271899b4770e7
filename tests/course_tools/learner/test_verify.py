"""Runs beside the saved one: what is compared, what is counted, and that nothing is judged."""

import copy
from pathlib import Path

import nbformat
import pytest

from course_tools.learner import verify

ROOT = Path(__file__).resolve().parents[3]
V4 = nbformat.v4


def printed(text):
    return V4.new_output("stream", text=text)


MODELS = "gpt2         course-gpt2\nllama        SmolLM2-135M-Instruct\n"


def lesson(*cells, started=f"profile      embedded\n{MODELS}", tags=()):
    """A notebook as somebody ran it, of (source, outputs)."""
    made = [V4.new_markdown_cell("## The idea")]
    for number, (source, outputs) in enumerate([("start()", [printed(f"lesson       03\n{started}")]), *cells], 1):
        made.append(V4.new_code_cell(source, outputs=copy.deepcopy(outputs), execution_count=number))
    made[-1].metadata["tags"] = [*tags]
    return V4.new_notebook(cells=made)


SAVED = lesson(
    ("a = 1\nprint(a)", [printed("damage 2.0\n")]), ("b", [printed("3.0")]), ("silent", []), ("b", [printed("4")])
)
A, B, AGAIN = SAVED.cells[2:4] + SAVED.cells[5:]


def test_cells_are_found_by_their_code_and_numbers_counted():
    found = verify.compare(lesson(("mine", [printed("7")]), *pairs(A, B, AGAIN)), SAVED)
    assert (found.cells, found.changed, found.idle, found.numbers, found.near) == (3, 0, 0, 3, 3)
    assert str(found) == "3 of 3 cells run; 3 of 3 numbers are within 5% of the saved run's"
    off = verify.compare(lesson(("a = 1\nprint(a)", [printed("damage 2.2\n")]), *pairs(B, AGAIN)), SAVED)
    assert (off.near, off.numbers) == (2, 3) and "2 of 3 numbers are" in str(off) and not off.stopped + off.uneven
    edited = verify.compare(lesson(("a = 2\nprint(a)", [printed("damage 9\n")]), *pairs(B, AGAIN)), SAVED)
    assert str(edited) == "2 of 3 cells run; 1 changed; 2 of 2 numbers are within 5% of the saved run's"
    assert verify.compare(lesson(*pairs(B, AGAIN, A)), SAVED).near == 3, "in any order"


def pairs(*cells):
    return [(cell.source, cell.outputs) for cell in cells]


@pytest.mark.parametrize(
    ("text", "near"), [("2.1", True), ("1.9", True), ("2.2", False), ("1.8", False), ("2.100", True), ("2.101", False)]
)
def test_near_is_five_percent_or_one_in_the_last_digit(text, near):
    saved = lesson(("a", [printed("2.000")]))
    assert verify.compare(lesson(("a", [printed(text)])), saved).near == near
    assert verify.compare(lesson(("a", [printed("0.02")])), lesson(("a", [printed("0.01")]))).near == 1


def test_cells_that_stopped_or_print_another_count_are_named():
    (told,) = verify.compare(lesson(*pairs(A, AGAIN), ("b", [printed("5.0 6.0")])), SAVED).uneven
    assert told == "under “The idea”, cell `b`: it prints 2 numbers, and 1 in the saved run"
    error = V4.new_output("error", ename="RuntimeError", evalue="no memory\nmore", traceback=[])
    found = verify.compare(lesson(("a = 1\nprint(a)", [error]), *pairs(B, AGAIN)), SAVED)
    assert found.stopped == ["under “The idea”, cell `a = 1`: it stopped with RuntimeError: no memory"]
    assert "1 stopped" in str(found)


def test_a_cell_that_is_meant_to_fail_may():
    error = V4.new_output("error", ename="RuntimeError", evalue="", traceback=[])
    run = lesson(("a", [error]), tags=["raises-exception"])
    assert not verify.compare(run, run).stopped


@pytest.mark.parametrize(
    ("started", "another"),
    [
        ("profile      hub\n", "profile hub"),
        ("profile      embedded\ngpt2         distilgpt2\nllama        SmolLM2-135M-Instruct\n", "distilgpt2"),
        ("profile      embedded\ngpt2         course-gpt2\nllama        a folder\n", "a folder"),
        ("no table", "a run without its start cell"),
    ],
)
def test_other_models_have_other_numbers(started, another):
    run = lesson(("a = 1\nprint(a)", [printed("damage 9.0 9.0\n")]), *pairs(B, AGAIN), started=started)
    found = verify.compare(run, SAVED)
    assert (found.another, found.numbers, found.uneven) == (another, 0, [])
    assert f"{another} is not what the text is about, so numbers aren't compared" in str(found)
    error = V4.new_output("error", ename="OutOfMemoryError", evalue="CUDA", traceback=[])
    run.cells[2].outputs = [error]
    assert len(verify.compare(run, SAVED).stopped) == 1, "but errors count everywhere"


@pytest.mark.parametrize("tag", ["timed", "exercise", "install"])
def test_what_belongs_to_the_machine_or_the_learner_is_left_out(tag):
    run = lesson(("a", [printed("3.0")]), ("b", [printed("2.0")]), tags=[tag])
    assert verify.compare(run, run).cells == 1


def test_a_saved_run_is_like_itself():
    path = min((ROOT / "notebooks").glob("*.ipynb"))
    run = nbformat.read(path, as_version=4)
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    found = verify.compare(run, nbformat.read(path, as_version=4))
    assert (found.near, found.another, found.changed, found.idle) == (found.numbers, "", 0, 0) and found.numbers > 50
    for cell in run.cells:
        cell.pop("execution_count", None)
    assert str(verify.compare(run, nbformat.read(path, as_version=4))) == "not run yet"
