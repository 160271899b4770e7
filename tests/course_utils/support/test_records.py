"""Records: what was measured comes back, paired with the uncut model's rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model

from course_utils.measuring.evaluation import perplexity
from course_utils.models.loading import variant
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.support import records
from course_utils.text.rows import TokenBlocks
from experiments.record import Arm, write_record


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Writes a record of a tiny model, whole and cut, on two texts; returns the models and texts."""
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    model = tiny_model("gpt2")
    cut = variant(model)
    prune_neurons(cut, neuron_importance(model, "random"), ratio=0.5)
    texts = {
        name: TokenBlocks(torch.randint(97, (5, 9)), torch.ones(5, dtype=torch.long), name, "evaluation")
        for name in ("wiki", "speeches")
    }
    place = {"draw": 0, "dtype": "float32"}
    arms = [
        Arm({"criterion": "", "ratio": 0, **place}, lambda: model, texts),
        Arm({"criterion": "random", "ratio": 0.5, **place}, lambda: cut, texts),
    ]

    def write(arms=arms):
        write_record(arms, tmp_path / "made_up.json", work=tmp_path / "work", settings={"why": 1}, total=2)

    return model, cut, texts, arms, write


def test_a_record_gives_what_was_measured_row_by_row(measured):
    model, cut, texts, _, write = measured
    write()
    frame = records.read_record("made_up")
    assert set(frame) == {"criterion", "ratio", "draw", "dtype", "text", "rows", "damage", "nats"}
    for name, rows in texts.items():
        before, after = perplexity(model, rows), perplexity(cut, rows)
        (entry,) = frame[(frame.criterion == "random") & (frame.text == name)].itertuples()
        np.testing.assert_allclose(entry.rows, (after.row_nll - before.row_nll) / 8, atol=0.002)
        assert entry.damage == pytest.approx(after.nll - before.nll, abs=0.002)
        assert entry.nats == pytest.approx(after.nll, abs=0.002)
        assert entry.damage != 0
        assert entry.nats == pytest.approx(after.nll, abs=0.002)
    assert not frame[frame.criterion == ""].damage.any()
    assert frame[frame.criterion == "random"].attrs["settings"] == {"why": 1}


def test_a_run_that_was_killed_goes_on(measured, tmp_path):
    *_, arms, write = measured
    made = []

    def killed():
        raise KeyboardInterrupt

    def counted(arm):
        return Arm(arm.key, lambda: made.append(arm.key["criterion"]) or arm.make(), arm.texts)

    with pytest.raises(KeyboardInterrupt):
        write([counted(arms[0]), Arm(arms[1].key, killed, arms[1].texts)])
    with (tmp_path / "work" / "done.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # written when the power went
    write([counted(arm) for arm in arms])
    assert made == ["", "random"]
    resumed = (tmp_path / "made_up.json").read_text()
    (tmp_path / "work" / "done.jsonl").unlink()
    write()
    assert (tmp_path / "made_up.json").read_text() == resumed


def test_each_model_has_an_uncut_one_of_its_own(measured):
    _, cut, texts, arms, write = measured
    write(
        [Arm({"model": 0, **arm.key}, arm.make, texts) for arm in arms]
        + [
            Arm({"model": 1, **arm.key, "criterion": name}, lambda: cut, texts)
            for arm, name in zip(arms, ("", "again"), strict=True)
        ]
    )
    frame = records.read_record("made_up")
    assert not frame[frame.model == 1].damage.any() and frame[frame.criterion == "random"].damage.all()


def test_an_unknown_record_names_those_there_are(measured):
    *_, write = measured
    write()
    with pytest.raises(ValueError, match="'name' must be one of made_up; got 'nothing'"):
        records.read_record("nothing")


def test_a_tasks_documents_stand_for_rows(measured, tmp_path):
    _, _, texts, arms, write = measured
    right = {"": [1, 0, 1], "random": [0, 0, 1]}
    write([Arm(arm.key, arm.make, texts, {"quiz": lambda _, arm=arm: right[arm.key["criterion"]]}) for arm in arms])
    frame = records.read_record("made_up")
    assert "predictions" not in frame
    (whole, cut) = frame[frame.text == "quiz"].itertuples()
    assert whole.nats == pytest.approx(2 / 3) and cut.rows.tolist() == [-1, 0, 0]
    assert frame[(frame.text == "wiki") & (frame.criterion == "random")].nats.item() > 1  # by its own 8 predictions
