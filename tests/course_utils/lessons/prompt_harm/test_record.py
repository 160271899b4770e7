"""Records survive a file, belong to one model and dtype, and a small one is measured where none is shipped."""

import numpy as np
import pytest
import torch
from tiny_harm import SETS, long_enough, texts

from course_utils.lessons.prompt_harm import record
from course_utils.lessons.prompt_harm.harms import ANSWER_TOKENS, measure
from course_utils.lessons.prompt_harm.prompts import Case
from course_utils.lessons.prompt_harm.record import RECORD, Record, measure_record, save_records
from course_utils.pruning.adaptive import AdaptiveConfig, ModelIdentity, complexity


def by_length(model):
    """Settings whose score is the prompt's tokens."""
    return AdaptiveConfig(ModelIdentity.of(model), (2, 1, 3), (0, 2), (5.0,), "length", {})


def a_record(tokenizer, **settings):
    model = long_enough()
    chosen = [Case("passage", text, f"book {i}") for i, text in enumerate(texts())]
    settings = {"model": "tiny", "dtype": "bfloat16", "seed": 0} | settings
    found = measure(model, tokenizer, texts(), SETS)
    tokens = complexity(model, (tokenizer(text, return_tensors="pt") for text in texts()), by_length(model)).tolist()
    return Record.of(chosen, found, choosing=3, numbers=(1, 2, 3), settings=settings, complexity=tokens)


@pytest.fixture
def shipped(tmp_path, monkeypatch, tokenizer):
    """Three records in the place of those that come with the course."""
    kinds = ({}, {"dtype": "float32"}, {"seed": 1})
    monkeypatch.setattr(record, "RECORD", tmp_path / "record.json")
    made = [a_record(tokenizer, **settings) for settings in kinds]
    save_records(made, tmp_path / "record.json")
    return made


def test_records_come_back(shipped):
    for one in shipped:
        again = Record.load(dtype=one.settings["dtype"], seed=one.settings["seed"])
        assert again.settings == one.settings and again.numbers == (0, 1, 2, 3)
        assert (again.harm[:, 0] == 0).all()
        for name in ("harm", "complexity"):
            np.testing.assert_allclose(getattr(again, name), getattr(one, name), atol=6e-5)
        for name in ("kinds", "documents", "digests", "tokens", "answer_tokens"):
            assert getattr(again, name).tolist() == getattr(one, name).tolist()
        assert again.complexity.tolist() == again.tokens.tolist()
    with pytest.raises(ValueError, match="'float32' with seed 1; there are: dtype 'bfloat16' with seed 0, dtype"):
        Record.load(dtype="float32", seed=1)


def test_prompts_that_choose_and_those_that_judge(shipped):
    choose, judge = shipped[0].split()
    assert choose.documents.tolist() == ["book 0", "book 1", "book 2"] and judge.documents.tolist() == ["book 3"]
    assert (judge.choosing, choose.choosing) == (0, 0)


def test_only_its_own_model_gets_a_record_and_that_of_its_dtype_if_there_is_one(shipped):
    model = long_enough()
    model.config.name_or_path = "other"
    assert Record.shipped_for(model) is None
    model.config.name_or_path = "tiny"
    for dtype, seed, found in (
        (torch.float32, 0, 1),
        (torch.bfloat16, 0, 0),
        (torch.float32, 1, 2),
        (torch.float16, 0, 0),
    ):
        assert Record.shipped_for(model.to(dtype), seed=seed).settings == shipped[found].settings
    assert Record.shipped_for(model, seed=2) is None


def test_a_small_record_of_another_model(tokenizer, monkeypatch):
    """The prompts that choose are told from those that judge, also where a limit of samples leaves fewer."""
    prompts = [Case("passage", text, "book") for text in ("w5 w6 w7", "w9", "w8 w4", "w7 w7", "w6")]
    made = {"calibration": prompts[:2], "evaluation": prompts[2:]}
    monkeypatch.setattr(record, "cases", lambda tokenizer, split, count, seed: made[split])
    model = long_enough()
    config = by_length(model)
    found = measure_record(model, tokenizer, config, (1, 2), choosing=60, judging=60)
    assert found.choosing == 2 and found.digests.tolist() == [case.digest for case in prompts]
    assert found.settings["order"] == [2, 1, 3] and found.numbers == (0, 1, 2)
    expected = measure(model, tokenizer, [case.text for case in prompts], [[2], [2, 1]])
    np.testing.assert_array_equal(found.harm[:, 1:], expected.harm)
    batches = [tokenizer(case.text, return_tensors="pt") for case in prompts]
    assert found.complexity.tolist() == complexity(model, batches, config).tolist() == [3, 1, 2, 2, 1]


@pytest.mark.parametrize(("dtype", "seed"), [("bfloat16", 0), ("float32", 0), ("bfloat16", 1), ("bfloat16", 2)])
def test_the_shipped_records_say_what_they_need_to(dtype, seed):
    found = Record.load(dtype=dtype, seed=seed)
    choose, judge = found.split()
    assert RECORD.stat().st_size < 2**20
    assert len(choose.kinds) == 150 and len(judge.kinds) == (1000 if (dtype, seed) == ("bfloat16", 0) else 250)
    both = [{*part.digests[part.tokens > 20]} for part in (choose, judge)]  # two may begin with the same few words
    assert not both[0] & both[1]
    asked = [{*part.documents[part.kinds == "question"]} for part in (choose, judge)]
    assert all(asked) and not asked[0] & asked[1]
    assert np.isfinite(found.harm).all()
    assert (found.harm[:, 1:] >= 0).all()
    assert judge.tokens.min() <= 3
    assert judge.tokens.max() >= 1000
    assert found.answer_tokens.max() == ANSWER_TOKENS
    assert len(found.complexity) == len(found.kinds)
    assert found.settings["model"] == "SmolLM2-135M-Instruct" and len(found.settings["order"]) == 8
