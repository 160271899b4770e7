"""The benchmarks: how a question is asked, kept and told, and that what is told is what was measured."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks import __main__ as command
from benchmarks import common, scaling
from benchmarks.common import Finding, Question


@pytest.mark.parametrize("name", command.QUESTIONS)
def test_a_page_tells_what_was_measured(name):
    question = command.QUESTIONS[name]
    assert question.path(".md").read_text(encoding="utf-8") == question.text(question.answer())
    assert question.path(".png").exists() == (question.figure is not None)


def test_the_summary_is_fresh():
    page = (common.FOLDER / "README.md").read_text(encoding="utf-8")
    assert page == command.with_summary(page), "python -m benchmarks writes it anew"
    findings = [each for question in command.QUESTIONS.values() for each in question.findings(question.answer())]
    assert len(findings) == 13 == page.count("| met |") + page.count("| **not met** |")


def test_a_run_that_was_cut_off_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "FOLDER", tmp_path)
    done = []

    def measure(data):
        for part in "ab":
            if part not in data:
                if done == ["a"]:
                    done.append("cut")
                    raise KeyboardInterrupt
                data[part] = len(done)
                done.append(part)

    question = Question(
        "toy", "How big?", 1, measure, lambda data: f"It is {data['a'] + data['b']}.",
        lambda _: [Finding("time", "1.29", "≥ 1.3", met=False)],
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        question.ask()
    assert {path.name for path in tmp_path.iterdir()} == {"toy.partial.json"} and question.answer() is None
    question.ask()
    assert done == ["a", "cut", "b"] and {path.name for path in tmp_path.iterdir()} == {"toy.json", "toy.md"}
    data, page = question.answer(), question.path(".md").read_text(encoding="utf-8")
    assert (data["a"], data["b"]) == (0, 2) and set(data["run"]["versions"]) == {"torch", "transformers"}
    assert page == question.text(data) and page.startswith("# How big?\n") and "It is 2." in page
    assert "| time | 1.29 | ≥ 1.3 | **not met** |" in page and str(Path.home()) not in page


def test_what_is_answered_is_asked_again_only_on_demand(monkeypatch, tmp_path):
    for name in ("scaling.json", "README.md"):
        (tmp_path / name).write_bytes((common.FOLDER / name).read_bytes())
    for module in (common, command):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    asked, status = [], 0
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda words, check: asked.append(words[-1]) or subprocess.CompletedProcess(words, status),
    )
    assert command.main([]) == 0 and asked == ["benchmarks.peers", "benchmarks.depth"]
    assert (tmp_path / "scaling.md").exists() and "open: `python -m benchmarks peers`" in command.summary()
    assert command.main(["scaling", "--again"]) == 0 and asked[2:] == ["benchmarks.scaling"]
    status = 1
    assert command.main(["peers"]) == 1
    with pytest.raises(SystemExit):
        command.main(["widht"])


@pytest.mark.parametrize(("power", "met"), [(0.5, True), (1.0, True), (1.5, False)])
def test_a_cost_that_grows_faster_than_it_should_is_found(monkeypatch, power, met):
    sizes = [10, 100, 1000]
    rounds = [[size**power * (1 + 0.01 * k) for k in range(6)] for size in sizes]
    curve = {"name": "x", "unit": "seconds", "sizes": sizes, "rounds": rounds, "counted": sizes}
    assert scaling.measured_slope(curve) == pytest.approx((power, power, power))
    monkeypatch.setattr(scaling, "curves", lambda _: [curve])
    (finding,) = scaling.findings({})
    assert finding.met is met and finding.value == f"{power:.2f}"
    assert common.ratio([2.0, 4, 6, 8, 10, 12], [1.0, 2, 3, 4, 5, 6]) == (2, 2, 2)


@pytest.mark.slow
def test_growth_is_measured_on_random_models(monkeypatch):
    for name, value in {"HIDDEN": (256, 512), "BLOCKS": 1, "VOCABULARY": 64, "LENGTH": 8}.items():
        monkeypatch.setattr(scaling, name, value)
    data = {}
    scaling.measure(data)
    data = json.loads(json.dumps(data))
    assert "| seconds |" in scaling.report(data) and isinstance(scaling.figure(data), Figure)
    assert all(math.isfinite(float(finding.value)) for finding in scaling.findings(data))
    memory = scaling.curves(data)[-1]  # a cut replaces one block after the other, so memory follows a block's bytes
    expected = scaling.slope(memory["sizes"], memory["counted"])
    assert scaling.measured_slope(memory)[0] == pytest.approx(expected, abs=0.15)
