"""Records survive a file, belong to one model, and let only prompts that choose set anything."""

import numpy as np
from tiny_harm import SETS, long_enough, texts

from course_utils.prompt_harm import record
from course_utils.prompt_harm.harms import ANSWER_TOKENS, measure
from course_utils.prompt_harm.prompts import Case
from course_utils.prompt_harm.record import _DIRECTIONS, RECORD, Record, _principal_states, harm_at_random


def a_record(tokenizer):
    model = long_enough()
    chosen = [Case("passage", text, f"book {i}") for i, text in enumerate(texts())]
    found = measure(model, tokenizer, texts(), SETS, decide_at=1)
    seconds = {"lengths": [4, 16], "numbers": [0, 3], "prefill": [[2.0, 1.0], [4.0, 3.0]], "decode": [[1.0, 0.5]] * 2}
    return Record.of(chosen, found, choosing=3, numbers=(1, 2, 3), seconds=seconds, settings={"model": "tiny"})


def test_record_comes_back(tmp_path, tokenizer):
    record = a_record(tokenizer)
    record.save(tmp_path / "record.json")
    again = Record.load(tmp_path / "record.json")
    assert again.numbers == (0, 1, 2, 3)
    assert (again.harm[:, 0] == 0).all()
    for name in ("harm", "halves", "agree", "states", "entropies"):
        np.testing.assert_allclose(getattr(again, name), getattr(record, name), atol=6e-5)
    for name in ("kinds", "documents", "digests", "tokens"):
        assert getattr(again, name).tolist() == getattr(record, name).tolist()
    judging = again.part(slice(3, None))
    assert (len(judging.harm), judging.choosing, judging.documents.tolist()) == (1, 0, ["book 3"])


def test_only_its_own_model_gets_a_record(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(record, "RECORD", tmp_path / "record.json")
    model = long_enough()
    model.config.name_or_path = "tiny"
    assert Record.shipped_for(model) is None
    a_record(tokenizer).save(tmp_path / "record.json")
    assert Record.shipped_for(model).settings == {"model": "tiny"}
    model.config.name_or_path = "other"
    assert Record.shipped_for(model) is None


def test_only_prompts_that_choose_set_the_directions():
    states = np.random.default_rng(0).normal(size=(60, 2, 8))
    changed = states.copy()
    changed[40:] *= 9
    found, other = (_principal_states(values, choosing=40) for values in (states, changed))
    assert found.shape == (60, _DIRECTIONS)
    np.testing.assert_allclose(found[:40], other[:40])
    np.testing.assert_allclose(found[:40].std(0), 1)


def test_random_sets_are_measured_on_short_prompts(tokenizer):
    cases = [Case("passage", text, "book") for text in [*texts(), "w5 " * 91]]
    found = harm_at_random(long_enough(), tokenizer, cases[::-1], left_out=2, prompts=3)
    assert found["prompts"] == [1, 2, 3]
    assert np.array(found["harm"]).shape == (3, 19)
    assert [len(set(blocks)) for blocks in found["sets"]] == 19 * [2]


def test_a_limit_of_samples_leaves_fewer_prompts_and_random_sets(tokenizer, monkeypatch):
    """The prompts that choose are still told from those that judge."""
    monkeypatch.setenv("COURSE_SAMPLES", "3")
    prompts = [Case("passage", text, "book") for text in ("w5 w6 w7", "w9", "w8 w4", "w7 w7", "w6")]
    made = {"calibration": prompts[:2], "evaluation": prompts[2:]}
    monkeypatch.setattr(record, "cases", lambda tokenizer, split, count: made[split])
    monkeypatch.setattr(record, "seconds_by_length", lambda *_, **__: {})
    found = record.measure_record(long_enough(), tokenizer, [2, 1, 3], (1, 2), choosing=60, judging=60)
    assert found.choosing == 2 and found.digests.tolist() == [case.digest for case in prompts]
    assert len(found.random_orders["sets"]) == 3


def test_the_shipped_record_says_what_it_needs_to():
    record = Record.load()
    judging = record.part(slice(record.choosing, None))
    assert RECORD.stat().st_size < 2**20
    assert len(judging.kinds) >= 1000
    assert not {*record.documents[: record.choosing]} & {*judging.documents} & {"arc_easy"}
    assert np.isfinite(record.harm).all()
    assert (record.harm[:, 1:] >= 0).all()
    assert judging.tokens.min() <= 3
    assert judging.tokens.max() >= 1500
    assert record.answer_tokens.max() == record.settings["answer_tokens"] == ANSWER_TOKENS
    assert record.seconds["lengths"][-1] >= record.tokens.max()
    assert np.shape(record.random_orders["harm"])[1] >= 19
