"""Rehearsals: lessons held to a card's memory, and a table that says so."""

import json

import nbformat
import pytest
from pretend import GPT2, LLAMA, SMALL

from course_tools import cli
from course_tools.rehearsal import rehearse as rehearsing
from course_tools.rehearsal import shapes
from course_tools.rehearsal.rehearse import Cell, Rehearsed
from course_tools.rehearsal.shapes import GPT2_FOLDER, Shape, parameters

FOUR_BYTES = 4 * parameters(LLAMA)
START = "from course_utils.session import start\nsession = start('01')"
LOAD = "from course_utils.models import load_model, variant\nbase, tokenizer = load_model('llama')"
READ = (
    "from course_utils.evaluation import perplexity\n"
    "from course_utils.texts import token_blocks\n"
    "import torch\n"
    "print(perplexity(base, torch.arange(96).view(3, 32)))"
)
MODEST = [
    START,
    LOAD,
    READ,
    "others = [variant(base) for _ in range(5)]",
    "if session.device.type != 'cuda':\n    raise ValueError(session.device)",  # an assert would be left out
    "from course_utils.session import at_most\nif at_most(60) != 3:\n    raise ValueError(at_most(60))",
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
    assert greedy.gpu.number == 4 and greedy.gpu.gpu_peak == pytest.approx(6 * FOUR_BYTES, rel=0.02)
    (refusal,) = [sentence for sentence in greedy.refusals() if "on the GPU" in sentence]
    assert refusal.startswith("01_small holds ")
    assert "code cell 4 (import copy)" in refusal
    assert "model base: " in refusal and "line 3 of the cell" in refusal, refusal


@pytest.mark.slow
def test_a_modest_lesson_passes(models, small_budgets):
    found = rehearse(MODEST, models)
    assert not found.failure and list(found.refusals()) == []
    assert found.cells[3].gpu_peak == pytest.approx(FOUR_BYTES, rel=0.02), "variants share every weight"
    assert 2e8 < found.host.host_peak < 4e9


@pytest.mark.slow
def test_another_shape_is_another_model_and_a_failure_is_refused_by_its_cell(models, greedy):
    """Under the same hub id, in the same folder as the greedy lesson's: no cache may give out the first one."""
    blocks = LLAMA["num_hidden_layers"] + 1
    other = Shape(LLAMA | {"num_hidden_layers": blocks}, GPT2, stand_in=True)
    unlike = f"if base.config.num_hidden_layers != {blocks}:\n    raise ValueError(base.config)"
    found = rehearse([START, LOAD, unlike, "print(1 / 0)"], models, shape=other)
    assert next(found.refusals()) == (
        "01_small failed at code cell 4 (print(1 / 0)): ZeroDivisionError: division by zero"
    )


def lesson(gpu_peak):
    cell = Cell(number=3, first_line="copies = []", gpu_peak=gpu_peak, gpu_holders=(("model base", 4 * 2**30),))
    return Rehearsed("03_small", 1.0, (cell,), 60.0)


def test_budgets():
    assert list(lesson(5 * 2**30).refusals()) == []
    host = Rehearsed("03_small", 1.0, (Cell(1, "x", host_peak=10 * 2**30, host_holders=(("model a", 2**30),)),), 1.0)
    (sentence,) = host.refusals()
    assert sentence == (
        "03_small holds 10.00 GiB in host memory in code cell 1 (x), 8.38 GiB are allowed. "
        "What held it: model a: 1.00 GiB."
    )


def test_the_command_prints_a_table_and_what_was_refused(tmp_path, monkeypatch, capsys):
    from sample_lesson import write_lesson

    for name, folder in {"LESSONS": "lessons", "BUILD": "build"}.items():
        monkeypatch.setattr(cli, name, tmp_path / folder)
    monkeypatch.setattr(cli, "fetch_assets", lambda lessons, more: None)
    monkeypatch.setattr(shapes, "tokenizers", lambda: {"llama": GPT2_FOLDER, "gpt2": GPT2_FOLDER})
    write_lesson(tmp_path / "lessons")
    answers = [lesson(5 * 2**30), lesson(13 * 2**30)]
    monkeypatch.setattr(rehearsing, "rehearse", lambda notebook, **settings: answers.pop(0))
    assert cli.main(["rehearse", "1"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("│ 03"))
    assert [part.strip() for part in row.split("│")[1:-1]] == ["03", "5.00", "0.00", "1", "ok"]
    assert "12.5 GiB on the GPU, 9 GB on the host" in out and "COURSE_SAMPLES=3" in out
    assert json.loads((tmp_path / "build" / "rehearsal" / "01_small.json").read_text())["refused"] == []
    assert cli.main(["rehearse", "1", "--shape", "qwen"]) == 1
    assert "03_small holds 13.00 GiB on the GPU in code cell 3 (copies = [])" in capsys.readouterr().out
