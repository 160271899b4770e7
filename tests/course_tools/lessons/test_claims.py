"""Each lesson's claims hold on every recorded machine and draw, and each of them can fail; how runs are recorded."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from sample_lesson import LESSON, write_lesson

from course_tools import cli
from course_tools.learner import verify
from course_tools.lessons import authoring, claims
from course_tools.lessons.cells import tags_of
from course_tools.lessons.printed import numbers_of, texts_of
from course_utils.lessons.verdicts import CLAIMS, SHOWN, TURNED, outcome

ROOT = Path(__file__).resolve().parents[3]
SAVED = {path.stem[:2]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
RUNS = [(number, run) for number in SAVED for run in claims.RUNS]
LESSON_01 = SAVED["01"].name
SENTENCE = "The constant alone does over half of L1's damage."

each_lesson = pytest.mark.parametrize("number", SAVED)


def saved(number):
    return nbformat.read(SAVED[number], as_version=4)


def sentences(number):
    return [claim.sentence for claim in claims.claims_of(saved(number))]


@pytest.mark.parametrize(("number", "run"), RUNS, ids=[" ".join(each) for each in RUNS])
def test_claims_hold_on_every_machine_and_draw(number, run):
    """What doesn't is no claim: take it out, or say in the lesson that it is open."""
    recorded = claims.recorded(number)[run]
    assert [*recorded] == sentences(number), f"record it again: python -m {claims.__name__} {number}"
    assert {text: outcome(margins) for text, margins in recorded.items()} == dict.fromkeys(recorded, SHOWN)


@each_lesson
def test_the_saved_run_shows_each_claim_and_says_so_where_it_prints_one(number):
    run = saved(number)
    found = {claim.sentence: claim.outcome for claim in claims.claims_of(run)}
    assert found == dict.fromkeys(found, SHOWN) and len(found) == len(sentences(number)) >= 3
    cells = [cell for cell in run.cells if "timed" not in tags_of(cell)]
    texts = "\n".join(text for cell in cells for text in texts_of(cell.get("outputs", [])))
    printed = [told.split(". ", 1) for told in re.findall("^here: (.+)$", texts, re.MULTILINE)]
    assert printed and all(found[sentence] == shown for shown, sentence in printed)


@each_lesson
def test_each_claim_can_fail(number):
    """Its margins come from variables of the lesson; any of them alone, turned round, keeps it from being shown."""
    (path,) = authoring.find_lessons(ROOT / "lessons", [number])
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("here", "claim")]
    assert all(any(isinstance(part, ast.Name) for part in ast.walk(call.args[1])) for call in calls)
    for claim in claims.claims_of(saved(number)):
        for place, margin in enumerate(claim.margins):
            assert outcome([*claim.margins[:place], -margin, *claim.margins[place + 1 :]]) != SHOWN


@pytest.fixture
def run():
    """The saved run of lesson 01 as somebody ran it."""
    notebook = saved("01")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    return notebook


def turned(notebook):
    """The run, one of whose claims turned out the other way round."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for claim in output.get("data", {}).get(CLAIMS, []):
                if claim["sentence"] == SENTENCE:
                    claim["margins"] = [-1]
    return notebook


def verified(notebook, folder):
    nbformat.write(notebook, folder / LESSON_01)
    return cli.main(["verify", "01", str(folder)])


def test_verify_prints_what_a_run_shows_what_differs_and_what_stopped(run, tmp_path, capsys):
    assert verified(run, tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("      shown: ") == len(sentences("01")) and out.endswith(f"{verify.WHAT_IT_MEANS}\n")
    assert re.match(r"01  (\d+) of \1 cells run; (\d+) of \2 numbers are within 5% of the saved run's\n", out)
    assert verified(turned(run), tmp_path) == 1
    assert f"\n      {TURNED}: {SENTENCE}\n" in capsys.readouterr().out
    compared = [cell for cell in run.cells if "start(" not in cell.source and not tags_of(cell)]
    cell = next(cell for cell in compared if numbers_of(cell.get("outputs", [])))
    cell.outputs += [nbformat.v4.new_output("stream", text="7 more\n")]
    verified(run, tmp_path)
    assert re.search(r"\n      under .*: it prints \d+ numbers, and \d+ in the saved run\n", capsys.readouterr().out)
    cell.outputs = [nbformat.v4.new_output("error", ename="MemoryError", evalue="1", traceback=[])]
    assert verified(run, tmp_path) == 1
    assert "it stopped with MemoryError: 1\n" in capsys.readouterr().out
    (tmp_path / LESSON_01).write_text("{", encoding="utf-8")
    assert cli.main(["verify", "01", str(tmp_path)]) == 1
    assert f"{LESSON_01} can't be read as a notebook" in capsys.readouterr().err


def test_verify_names_the_claims_of_cells_that_were_not_run(run, tmp_path, capsys):
    for cell in run.cells[-20:]:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    assert verified(run, tmp_path) == 0
    out = capsys.readouterr().out
    assert "not run: With its constant kept, L1 beats each random cut." in out
    assert out.count("  shown: ") + out.count("  not run: ") == len(sentences("01"))


def test_verify_holds_nothing_against_another_model(run, tmp_path, capsys):
    text = json.dumps(turned(run)).replace("profile      embedded", "profile      hub")
    assert verified(nbformat.from_dict(json.loads(text)), tmp_path) == 0
    out = capsys.readouterr().out
    assert "profile hub is not what the text is about" in out and f"{TURNED}: {SENTENCE}" in out


TELLS = """
# %%
import os

from course_utils.lessons.verdicts import claim, here

variable = os.environ.get("ATEN_CPU_CAPABILITY")
here("It runs with AVX2.", [1 if variable == "avx2" else -1])
claim("It has a seed.", [session.seed, float("nan")])

# %% tags=["timed"]
here("It is fast.", [1])
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course of one lesson that claims what it runs on."""
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "_RECORDED", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.course]\nrepository = "a/b"\nref = "main"\n', encoding="utf-8")
    before, own, after = LESSON.partition("def start")[0], *LESSON.partition("\n# %%\nimport sys")[1:]
    start = 'from course_utils.support.session import start\n\nsession = start("01")\n'
    write_lesson(tmp_path / "lessons", f"{before}{start}{TELLS}{own}{after}")
    return tmp_path


def test_a_run_is_recorded_beside_the_others(root, capsys):
    assert claims.main(["1", "third draw", "laptop"]) == 0
    assert "laptop: recorded\n  shown: It runs with AVX2.\n  not shown: It has a seed.\n" in capsys.readouterr().out
    found = claims.recorded("01")
    assert [*found] == ["laptop", "third draw"], "in the order of RUNS"
    assert found["laptop"]["It runs with AVX2."] == [1] and found["third draw"]["It runs with AVX2."] == [-1]
    assert found["laptop"]["It has a seed."][0] == 0 and found["third draw"]["It has a seed."][0] == 2
    assert "It is fast." not in found["laptop"]


def test_a_run_that_stops_is_not_recorded(root, capsys):
    path = root / "lessons/01_small.py"
    path.write_text(path.read_text(encoding="utf-8").replace("6 * 7", "6 / 0"), encoding="utf-8")
    assert claims.main(["01"]) == 1 and not claims.recorded("01")
    assert "laptop: stopped at code cell 6 (import sys): ZeroDivisionError" in capsys.readouterr().err
