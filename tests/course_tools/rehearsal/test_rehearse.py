"""Rehearsals: lessons held to a card's memory, and a table that says so."""

import json

import nbformat
import pytest
from pretend import GPT2, LLAMA, SMALL

from course_tools import cli
from course_tools.rehearsal import rehearse as rehearsing
from course_tools.rehearsal import shapes
from course_tools.rehearsal.rehearse import Rehearsed
from course_tools.rehearsal.shapes import GPT2_FOLDER, Shape, parameters

FOUR_BYTES = 4 * parameters(LLAMA)
START = "from course_utils.support.session import start\nsession = start('01')"
LOAD = "from course_utils.models.loading import load_model, variant\nbase, tokenizer = load_model('llama')"
READ = (
    "from course_utils.measuring.evaluation import perplexity\n"
    "from course_utils.text import token_blocks\n"
    "import torch\n"
    "print(perplexity(base, torch.arange(96).view(3, 32)))"
)
MODEST = [
    START,
    LOAD,
    READ,
    "others = [variant(base) for _ in range(5)]",
    "if session.device.type != 'cuda':\n    raise ValueError(session.device)",  # an assert would be left out
    "from course_utils.measuring import ability_rows\n"
    "if len(ability_rows('sums', tokenizer).input_ids) != 3:\n    raise ValueError('many rows')",
]
GREEDY = [START, LOAD, READ, "import copy\n# copies\ncopies = [copy.deepcopy(base) for _ in range(5)]"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder where the small models lie: made by the first rehearsal, used by the others."""
    return tmp_path_factory.mktemp("rehearsal")


def rehearse(cells, folder, *, shape=SMALL):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    tokenizers = {"llama": GPT2_FOLDER, "gpt2": GPT2_FOLDER}
    return rehearsing.rehearse(notebook, name="01_small", shape=shape, folder=folder, tokenizers=tokenizers)


@pytest.fixture
def small_budgets(monkeypatch):
    """Three models in float32 on the card, whatever share of Llama-3.2-1B the small model is."""
    monkeypatch.setattr(rehearsing, "GPU_BUDGET", 3 * FOUR_BYTES / SMALL.share)


@pytest.fixture(scope="module")
def greedy(models):
    return rehearse(GREEDY, models)


@pytest.mark.slow
def test_five_copies_are_refused_and_named(greedy, small_budgets):
    assert not greedy.failure
    cell = greedy.highest("gpu")
    assert cell["number"] == 4 and cell["gpu_peak"] == pytest.approx(6 * FOUR_BYTES, rel=0.02)
    (refusal,) = [sentence for sentence in greedy.refusals() if "on the GPU" in sentence]
    assert refusal.startswith("01_small holds ")
    assert "code cell 4 (import copy)" in refusal
    assert "model base: " in refusal and "line 3 of the cell" in refusal, refusal


@pytest.mark.slow
def test_a_modest_lesson_passes(models, small_budgets):
    found = rehearse(MODEST, models)
    assert not found.failure and list(found.refusals()) == []
    assert found.cells[3]["gpu_peak"] == pytest.approx(FOUR_BYTES, rel=0.02), "variants share every weight"
    assert 2e8 < found.highest("host")["host_peak"] < 4e9


@pytest.mark.slow
def test_another_shape_is_another_model_and_a_failure_is_refused_by_its_cell(models, greedy):
    """In the same folder as the greedy lesson's."""
    blocks = LLAMA["num_hidden_layers"] + 1
    other = Shape(LLAMA | {"num_hidden_layers": blocks}, GPT2, stand_in=True)
    unlike = f"if base.config.num_hidden_layers != {blocks}:\n    raise ValueError(base.config)"
    found = rehearse([START, LOAD, unlike, "print(1 / 0)"], models, shape=other)
    assert next(found.refusals()) == (
        "01_small failed at code cell 4 (print(1 / 0)): ZeroDivisionError: division by zero"
    )


def lesson(gpu_peak, name="03_small", host_peak=0):
    held = {"gpu_holders": [("model base", 4 * 2**30)], "host_holders": [("model a", 2**30)]}
    cell = {"number": 3, "first_line": "copies = []", "gpu_peak": gpu_peak, "host_peak": host_peak} | held
    return Rehearsed(name, 1.0, [cell], 60.0)


def test_budgets():
    assert list(lesson(5 * 2**30).refusals()) == []
    (sentence,) = lesson(0, host_peak=10 * 2**30).refusals()
    assert sentence == (
        "03_small holds 10.00 GiB in host memory in code cell 3 (copies = []), 8.38 GiB are allowed. "
        "What held it: model a: 1.00 GiB."
    )


def test_the_command_prints_a_table_and_what_was_refused(tmp_path, monkeypatch, capsys):
    from sample_lesson import write_lesson

    for name, folder in {"LESSONS": "lessons", "BUILD": "build"}.items():
        monkeypatch.setattr(cli, name, tmp_path / folder)
    monkeypatch.setattr(cli, "fetch_assets", lambda lessons, more: None)
    monkeypatch.setattr(shapes, "tokenizers", lambda: {"llama": GPT2_FOLDER, "gpt2": GPT2_FOLDER})
    write_lesson(tmp_path / "lessons")
    peaks, seen = [5, 6, 5, 13], []

    def rehearsed(notebook, *, name, **settings):
        seen.append("\n".join(cell.source for cell in notebook.cells))
        return lesson(peaks.pop(0) * 2**30, name.replace("01", "03"))

    monkeypatch.setattr(rehearsing, "rehearse", rehearsed)
    assert cli.main(["rehearse", "1"]) == 0
    out = capsys.readouterr().out
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│ 03")]
    assert rows == [["03", "5.00", "0.00", "1", "ok"], ["03 solved", "6.00", "0.00", "1", "ok"]]
    assert "your code" in seen[0] and "your code" not in seen[1], "unsolved, then solved"
    assert "12.5 GiB on the GPU, 9 GB on the host" in out and "Fewer than in the lesson" in out
    assert json.loads((tmp_path / "build" / "rehearsal" / "01_small.json").read_text())["refused"] == []
    assert cli.main(["rehearse", "1", "--shape", "qwen"]) == 1
    assert "03_small_solved holds 13.00 GiB on the GPU in code cell 3 (copies = [])" in capsys.readouterr().out
