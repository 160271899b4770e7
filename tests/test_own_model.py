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
    told = [f"{value:.2f}" for value in (distance.loc["cut"].iloc[0], plain.mean(), theirs.mean(), own.mean())]
    assert "{} nats a token away, after plain text {}, after other people's answers {}, after its own {}".format(
        *told
    ) in PROSE
    spread = distance.loc[[*ARMS]].T
    assert (spread.max() - spread.min()).max() < 0.02 and "by less than .02" in PROSE


def test_counts_do_not_order_them_and_are_told(students):
    counts = students.followed
    orders = {tuple(counts.loc[[*ARMS], seed].rank()) for seed in counts}
    assert len(orders) > 1, "one order in all seeds would be a finding"
    learned = counts.loc[[*ARMS]].to_numpy()
    whole, cut = (int(counts.loc[name].iloc[0]) for name in ("whole", "cut"))
    assert f"{whole} of the sixty, the cut one {cut}, the students {learned.min():.0f} to {learned.max():.0f}" in PROSE
