"""The benchmarks: how a question is asked, kept and told, and that what is told is what was measured."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tiny import tiny_model

from benchmarks import __main__ as command
from benchmarks import common, scaling
from benchmarks.common import Finding, Partial, Question

FOLDER = Path(command.__file__).parent
HELPERS = {"__init__", "__main__", "common", "scaling"}


def test_each_module_is_a_question_or_a_helper():
    assert {path.stem for path in FOLDER.glob("*.py")} == HELPERS | set(command.QUESTIONS)
    for name in command.QUESTIONS:
        assert command.question(name).name == name


@pytest.mark.parametrize("name", command.QUESTIONS)
def test_a_page_tells_what_was_measured(name):
    asked = command.question(name)
    data = asked.answer()
    if data is None:
        assert not (FOLDER / f"{name}.md").exists()
        return
    assert (FOLDER / f"{name}.md").read_text(encoding="utf-8") == asked.text(data)
    assert (FOLDER / f"{name}.png").exists() == (asked.figure is not None)
    assert asked.findings(data)


def test_the_summary_is_fresh():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert page == command.with_summary(page), "python -m benchmarks writes it anew"
    assert page.count("|") > 5 * len(command.QUESTIONS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "FOLDER", tmp_path)
    return tmp_path


def toy(measure) -> Question:
    return Question(
        "toy", "How big?", 1, measure, lambda data: f"It is {data['a'] + data['b']}.", lambda data: [Finding("a", "1")]
    )


def test_a_run_that_was_cut_off_goes_on(folder):
    done = []

    def measure(data):
        for part in "ab":
            if part not in data:
                if done == ["a"]:
                    done.append("cut")
                    raise KeyboardInterrupt
                data[part] = len(done)
                done.append(part)

    question = toy(measure)
    assert question.answer() is None
    with pytest.raises(KeyboardInterrupt):
        question.ask()
    assert {path.name for path in folder.iterdir()} == {"toy.partial.json"} and question.answer() is None
    question.ask()
    assert done == ["a", "cut", "b"]
    assert {path.name for path in folder.iterdir()} == {"toy.json", "toy.md"}
    data = question.answer()
    assert (data["a"], data["b"]) == (0, 2) and set(data["run"]["versions"]) == {"torch", "transformers"}
    page = (folder / "toy.md").read_text(encoding="utf-8")
    assert page == question.text(data) and page.startswith("# How big?\n") and "It is 2." in page
    assert f"on {data['run']['date']}" in page and data["run"]["machine"] in page


def test_a_page_ends_with_its_bars():
    found = [
        Finding("time", "1.29", "≥ 1.3", met=False),
        Finding("memory", "3", "≤ 4", met=True),
        Finding("passes", "2"),
    ]
    page = common.bars(found)
    assert "| time | 1.29 | ≥ 1.3 | **not met** |" in page and "| memory | 3 | ≤ 4 | met |" in page
    assert "passes" not in page and common.bars(found[2:]) == ""


def test_machine_names_no_host_user_or_folder(monkeypatch):
    monkeypatch.setenv("USER", "somebody")
    assert not any(word in common.machine() for word in ("somebody", str(Path.home()), "/"))


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["width", "tokens"], ["tokens"]),
        (["width", "tokens", "--again"], ["width", "tokens"]),
        ([], [name for name in command.QUESTIONS if name != "width"]),
    ],
)
def test_what_is_answered_is_asked_again_only_on_demand(arguments, asked, folder, monkeypatch, capsys):
    (folder / "width.json").write_text((FOLDER / "width.json").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "width.md").write_text("page", encoding="utf-8")
    runs = []

    def run(words, check):
        runs.append(words[-1].removeprefix("benchmarks."))
        (folder / f"{runs[-1]}.md").write_text("page", encoding="utf-8")
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert command.main(arguments) == 0
    assert runs == asked
    assert ("answered already" in capsys.readouterr().out) == ("--again" not in arguments)
    told_anew = (folder / "width.md").read_text(encoding="utf-8") != "page"  # in the words of today
    assert told_anew == ("width" not in asked)


def test_a_question_that_fails_is_told_and_the_others_are_asked(folder, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda words, check: subprocess.CompletedProcess(words, 1))
    assert command.main(["width", "tokens"]) == 1
    assert capsys.readouterr().out.count("FAILED") == 2
    with pytest.raises(SystemExit):
        command.main(["widht"])


def test_calls_take_turns():
    order = []
    laps = common.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"  # the first round warms up
    assert {name: len(of_call) for name, of_call in laps.items()} == {"a": 3, "b": 3}


def test_ratios_and_slopes():
    assert common.ratio([2.0, 4, 6, 8, 10, 12], [1.0, 2, 3, 4, 5, 6]) == (2, 2, 2)
    sizes = [10, 20, 40]
    assert common.slope(sizes, [3 * size**2 for size in sizes]) == pytest.approx(2)
    rounds = [[(1 + 0.1 * k) * size for k in range(6)] for size in sizes]
    assert common.slope_interval(sizes, rounds) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("power", "met"), [(0.5, True), (1.0, True), (1.5, False)])
def test_a_cost_that_grows_faster_than_it_should_is_found(power, met):
    sizes = [10, 100, 1000]
    costs = [[size**power * (1 + 0.01 * k) for k in range(6)] for size in sizes]
    curve = scaling.curve("x", "seconds", sizes, costs, sizes)
    (finding,) = scaling.slope_findings([curve], "size")
    assert finding.met is met and finding.value == f"{power:.2f}"
    assert f"{power:.2f}" in scaling.slope_table([curve], "size")
    assert isinstance(scaling.draw([curve, curve | {"unit": "MiB"}], "size"), Figure)


@pytest.mark.slow
def test_growth_is_measured_on_random_models(monkeypatch):
    from benchmarks import model_size, tokens

    monkeypatch.setattr(model_size, "HIDDEN", (256, 512))
    monkeypatch.setattr(model_size, "BLOCKS", 1)
    monkeypatch.setattr(model_size, "VOCABULARY", 64)
    monkeypatch.setattr(model_size, "LENGTH", 8)
    monkeypatch.setattr(tokens, "TOKENS", (32, 64))
    monkeypatch.setattr(tokens, "LENGTH", 8)
    monkeypatch.setattr(tokens, "load_model", lambda *_args, **_kwargs: (tiny_model(), None))
    for question in (model_size.QUESTION, tokens.QUESTION):
        data = {}
        question.measure(data)
        data = json.loads(json.dumps(data))
        assert "| seconds |" in question.report(data) and isinstance(question.figure(data), Figure)
        assert all(math.isfinite(float(finding.value)) for finding in question.findings(data))
        if (
            question is model_size.QUESTION
        ):  # a cut replaces one block after the other, so memory follows a block's bytes
            memory = model_size.curves(data)[-1]
            assert scaling.measured_slope(memory)[0] == pytest.approx(
                common.slope(memory["sizes"], memory["counted"]), abs=0.15
            )


@pytest.mark.slow
def test_a_variant_is_measured_beside_a_deep_copy(monkeypatch):
    from benchmarks import variant

    monkeypatch.setattr(variant, "load_model", lambda *_args, **_kwargs: (tiny_model(), None))
    data = {}
    variant.measure(data)
    assert data["same_logits"] and data["original_untouched"]
    assert data["peak_bytes"][variant.DEEP] == pytest.approx(data["model_bytes"], rel=0.01)  # and buffers
    assert data["model_bytes"] > 100 * data["peak_bytes"][variant.OURS]
    assert variant.findings(data)[1].met


def test_parts_are_kept_as_they_come(tmp_path):
    part = Partial(tmp_path / "x.json")
    part["a"] = [1]
    assert Partial(tmp_path / "x.json") == {"a": [1]}
