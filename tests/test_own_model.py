"""What docs/library.md says of pruning one's own model is what the records of two experiments hold."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROSE = " ".join((ROOT / "docs" / "library.md").read_text(encoding="utf-8").split())
DATA = ROOT / "course_utils" / "data"
END_TO_END = json.loads((DATA / "compressed.json").read_text(encoding="utf-8"))
ARMS = ("plain text", "their answers", "own answers")


@pytest.fixture(scope="module")
def students():
    """A row a model, a column a seed: how many instructions are followed, and the mean distance in nats."""
    rows = pd.DataFrame(json.loads((DATA / "stay_instruct.json").read_text(encoding="utf-8"))["rows"])
    rows["followed"] = [sum(follows) for follows in rows.follows]
    rows["distance"] = [sum(nats) / len(nats) for nats in rows.nats]
    return rows.pivot_table(index="model", columns="seed", values=["followed", "distance"])


def test_distances_order_the_students_in_each_seed_and_are_told(students):
    distance = students.distance
    plain, theirs, own = (distance.loc[arm] for arm in ARMS)
    assert (plain < theirs).all() and (theirs < own).all() and (own < distance.loc["cut"]).all()
    cut, *learned = (f"{distance.loc[name].mean():.2f}" for name in ("cut", *ARMS))
    after = "after plain text {}, after other people's answers {}, after its own {}".format(*learned)
    assert f"the cut model is {cut} nats a token away, {after}" in PROSE
    spread = distance.loc[[*ARMS]].T
    assert (spread.max() - spread.min()).max() < 0.02 and "by less than 0.02" in PROSE


def test_counts_do_not_order_them_and_are_told(students):
    counts = students.followed
    orders = {tuple(counts.loc[[*ARMS], seed].rank()) for seed in counts}
    assert len(orders) == len(counts.columns) and "in another order each time" in PROSE
    learned = counts.loc[[*ARMS]].astype(int).to_numpy()
    whole, cut = (int(counts.loc[name].iloc[0]) for name in ("whole", "cut"))
    students = f"the students {learned.min()} to {learned.max()}"
    assert f"the whole model follows {whole} of the sixty, the cut one {cut}, {students}" in PROSE


def test_the_run_from_end_to_end_is_told():
    """What was foretold beside what it took, and the last table."""
    run = END_TO_END["real"]
    low, high = (f"{seconds / 60:.0f}" for seconds in run["estimate"]["seconds"])
    assert f"foretold were {low} to {high} minutes, and it took {run['minutes']:.0f}" in PROSE
    for name, version in run["held_out"].items():
        score = f"{version['perplexity']:.2f} ({version['ci_low']:.2f} to {version['ci_high']:.2f})"
        assert f"| {name} | {version['bytes'] / 1e6:.0f} | {score} |" in PROSE


def test_memory_of_a_larger_one_is_near_the_plan():
    run = END_TO_END["rehearsed"]
    counted, foretold = run["counted"], run["estimate"]["bytes"]
    assert abs(counted / foretold - 1) < 0.1
    assert f"foretold were {foretold / 1e9:.2f} GB, and it held {counted / 1e9:.2f}" in PROSE
