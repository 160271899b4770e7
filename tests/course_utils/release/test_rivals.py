"""What else could be shipped: losses of the files' weights, bytes of the files, and speeds under their names."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model, word_tokenizer

from course_utils import release
from course_utils.measuring.evaluation import bits_ratio, perplexity
from course_utils.models.loading import load_model, variant
from course_utils.models.reports import model_size, with_interval
from course_utils.pruning.vocabulary import choose_tokens, prune_vocabulary
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.release import engine, export, rivals
from course_utils.release.rivals import Version, in_fewer_bits, table, timed
from course_utils.support.uncertainty import ratio_interval
from course_utils.text.rows import TokenBlocks

BITS = ["whole, Q8_0", "whole, Q4_0"]
IDS = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(0))
TEXT = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]
needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.problem())


@pytest.fixture(scope="module")
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PROFILE", "smoke")
        whole, tokenizer = load_model("llama")
    cut = variant(whole)
    prune_neurons(cut, neuron_importance(cut, "random"), ratio=0.5)
    return whole, cut, tokenizer


@pytest.fixture(scope="module")
def versions(models, tmp_path_factory):
    whole, cut, tokenizer = models
    named, kept = {"whole": whole, "random cut": cut, "cut": cut}, {"folder": tmp_path_factory.mktemp("kept")}
    found = {name: Version.of(model, TEXT, **kept) for name, model in named.items()}
    return found | in_fewer_bits(whole, tokenizer, TEXT, **kept)[0]


def test_fewer_bits_are_the_files(models, tmp_path):
    whole, _, tokenizer = models
    found, reason = in_fewer_bits(whole, tokenizer, TEXT, folder=tmp_path / "kept")
    assert [*found] == BITS and reason == ""
    for name, version in found.items():
        kind = {"quantization": name.removeprefix("whole, ")}
        assert version.bytes == export.export_gguf(whole, tokenizer, tmp_path / "m.gguf", **kind).stat().st_size
        assert repr(version.score) == repr(perplexity(export.as_stored(whole, tokenizer, **kind), TEXT))  # NaN is there
    plain = Version.of(whole, TEXT, folder=tmp_path / "kept")
    assert plain.bytes == model_size(whole).bytes and repr(plain.score) == repr(perplexity(whole, TEXT))


def test_the_interval_takes_documents_as_its_units(models, tmp_path):
    whole, *_ = models
    of_document = [TEXT[0] | {"document": torch.tensor([7, 2, 7, 2])}]
    plain, score = (Version.of(whole, text, folder=tmp_path).score for text in (TEXT, of_document))
    assert score.perplexity == pytest.approx(plain.perplexity) and len(score.row_nll) == 2
    assert score.row_nll.tolist() == pytest.approx([plain.row_nll[1::2].sum(), plain.row_nll[::2].sum()])
    mean, _, low, high = ratio_interval(score.row_nll, score.row_tokens)
    assert np.log([score.ci_low, score.ci_high]) == pytest.approx([low, high]) and mean == pytest.approx(plain.nll)


@pytest.mark.parametrize("text", [TEXT, TokenBlocks(IDS, torch.arange(1, 5), "wiki", "evaluation")])
def test_losses_are_measured_once_for_these_weights_and_this_text(text, models, tmp_path, monkeypatch):
    whole, cut, tokenizer = models
    judged = []
    monkeypatch.setattr(rivals, "perplexity", lambda *args: judged.append(args) or perplexity(*args))

    def measure(model=whole, text=text):
        found = {"whole": Version.of(model, text, folder=tmp_path)}
        return found | in_fewer_bits(model, tokenizer, text, folder=tmp_path)[0]

    first, again = measure(), measure()
    assert repr(again) == repr(first) and len(judged) == 3
    for name, version in first.items():
        for field in ("row_nll", "row_tokens", "row_bytes"):
            kept, measured = getattr(again[name].score, field), getattr(version.score, field)
            assert (kept is None) == (measured is None)
            assert kept is None or (np.array_equal(kept, measured) and kept.dtype == measured.dtype)
    of_cut = measure(cut)
    assert len(judged) == 6 and of_cut["whole"].score != first["whole"].score
    masked = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS).index_fill(1, torch.tensor([11]), 0)}]
    assert measure(text=masked)["whole"].score.tokens < first["whole"].score.tokens and len(judged) == 9


def test_a_broken_rival_is_kept_too(models, tmp_path):
    broken = variant(models[0])
    broken.lm_head.weight = torch.nn.Parameter(broken.lm_head.weight * torch.inf)
    nats = [Version.of(broken, TEXT, folder=tmp_path).score.row_nll for _ in range(2)]
    assert not np.isfinite(nats[0]).any() and np.array_equal(*nats, equal_nan=True)


def test_a_model_that_no_file_holds_is_no_error(tmp_path):
    found, reason = in_fewer_bits(tiny_model("gpt_neox"), word_tokenizer(), TEXT, folder=tmp_path)
    assert found == {} and reason.startswith("GGUF export knows llama")


def test_a_missing_package_is_named_with_its_extra(models, tmp_path, monkeypatch):
    whole, _, tokenizer = models
    monkeypatch.delattr(release, "export")
    monkeypatch.delitem(sys.modules, "course_utils.release.export")
    monkeypatch.setitem(sys.modules, "gguf", None)
    found, reason = in_fewer_bits(whole, tokenizer, TEXT, folder=tmp_path)
    assert found == {} and reason == "This needs gguf: pip install 'pruning-llms[gguf]'"


def measured(**speeds):
    """As ``measure_speed`` tells it; reading a prompt is another matter."""
    rows = [(name, phase, speed) for name, speed in speeds.items() for phase in ("prefill", "decode")]
    frame = pd.DataFrame(rows, columns=["model", "phase", "tokens_per_second"])
    frame.loc[frame.phase == "prefill", "tokens_per_second"] = -1.0
    return frame


def test_speeds_go_to_their_names(models, versions, tmp_path, monkeypatch):
    """And what has the cut's sizes has its speed."""
    asked, in_bytes = [], []

    def in_torch(found, **sizes):
        asked.append((found, sizes))
        return measured(whole=10.0, cut=12.0)

    def in_llama_cpp(files, **sizes):
        asked.append((files, sizes))
        assert all(path.is_file() and path.is_relative_to(tmp_path) for path in files.values())
        in_bytes.append([files[name].stat().st_size for name in ("whole", "cut", *BITS)])
        return measured(**{"whole": 20.0, "cut": 24.0, "whole, Q8_0": 40.0, "whole, Q4_0": 60.0})

    monkeypatch.setattr(rivals, "measure_speed", in_torch)
    monkeypatch.setattr(engine, "measure_speed", in_llama_cpp)
    monkeypatch.setattr(engine, "problem", lambda: "")
    found, reason = timed(versions, *models, length=16, folder=tmp_path)
    assert reason == "" and {name: dict(version.speeds) for name, version in found.items()} == {
        "whole": {"PyTorch": 10.0, "llama.cpp": 20.0},
        "random cut": {"PyTorch": 12.0, "llama.cpp": 24.0},
        "cut": {"PyTorch": 12.0, "llama.cpp": 24.0},
        "whole, Q8_0": {"llama.cpp": 40.0},
        "whole, Q4_0": {"llama.cpp": 60.0},
    }
    assert all(found[name].score is versions[name].score for name in versions)
    assert in_bytes[0] == sorted({*in_bytes[0]}, reverse=True) and len(in_bytes[0]) == 4
    (in_memory, sizes), (files, same) = asked
    assert in_memory == dict(zip(("whole", "cut"), models[:2], strict=True)) and {*files} == {"whole", "cut", *BITS}
    assert sizes == same | {"phases": ["decode"]} and sizes["prompt_tokens"] == sizes["new_tokens"] == 8
    assert {path.suffix for path in tmp_path.rglob("*")} == {".json"}

    whole, _, tokenizer = models
    assert timed(versions, *models, length=16, folder=tmp_path) == (found, "") and len(asked) == 2, "timed already"
    timed(versions, *models, length=8, folder=tmp_path)
    assert len(asked) == 4, "other lengths"
    timed(versions, whole, whole, tokenizer, length=16, folder=tmp_path)
    assert len(asked) == 6, "other models"
    monkeypatch.setattr(rivals, "machine", lambda _: {"machine": "a faster one"})
    timed(versions, *models, length=16, folder=tmp_path)
    assert len(asked) == 8, "another machine"


@needs_engine
def test_llama_cpp_takes_the_files(models, versions, tmp_path):
    found, reason = timed(versions, *models, length=8, folder=tmp_path)
    assert reason == "" and all(version.speeds["llama.cpp"] > 0 for version in found.values())
    assert {name for name, version in found.items() if "PyTorch" in version.speeds} == {"whole", "cut", "random cut"}


TOLD = {"engine": "install it with", "disk": "0.0 are free", "architecture": "GGUF export knows", "formats": ""}


@pytest.mark.parametrize("missing", TOLD)
def test_without_llama_cpp_pytorch_is_timed_and_the_reason_told(missing, models, versions, tmp_path, monkeypatch):
    whole, cut, tokenizer = models
    monkeypatch.setattr(rivals, "measure_speed", lambda *_args, **_sizes: measured(whole=1.0, cut=2.0))
    monkeypatch.setattr(engine, "problem", lambda: "install it with: pip" if missing == "engine" else "")
    if missing == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    if missing == "architecture":
        cut = tiny_model("gpt_neox")
    if missing == "formats":
        versions = {name: version for name, version in versions.items() if name not in BITS}
    found, reason = timed(versions, whole, cut, tokenizer, length=16, folder=tmp_path)
    assert TOLD[missing] in reason and bool(reason) == bool(TOLD[missing])
    assert found["whole"].speeds == {"PyTorch": 1.0} and found["random cut"].speeds == {"PyTorch": 2.0}
    assert {path.suffix for path in tmp_path.rglob("*")} == {".json"}
    if missing == "engine":  # it is installed, and the run goes on
        there = {"whole": 3.0, "cut": 4.0, **dict.fromkeys(BITS, 5.0)}
        monkeypatch.setattr(engine, "problem", lambda: "")
        monkeypatch.setattr(engine, "measure_speed", lambda *_args, **_sizes: measured(**there))
        found, reason = timed(versions, whole, cut, tokenizer, length=16, folder=tmp_path)
        assert reason == "" and found["whole"].speeds == {"PyTorch": 1.0, "llama.cpp": 3.0}


def test_another_tokenizer_is_compared_by_bytes(models, tmp_path):
    """By documents, beside the whole model; and a version of other sizes has no speed of the cut's."""
    whole, *_ = models
    sizes, of = torch.tensor([9, 5, 7, 8]), torch.tensor([0, 1, 0, 2])
    fine, coarse = ([{"input_ids": ids, "bytes": sizes, "document": of}] for ids in (IDS, IDS[:, :7]))
    found = {name: Version.of(whole, text, folder=tmp_path) for name, text in {"whole": fine, "fewer": coarse}.items()}
    assert found["fewer"].tokens_per_byte == 24 / 29 and found["whole"].tokens_per_byte == 44 / 29
    assert found["fewer"].score.row_bytes.tolist() == [16, 5, 8]
    shown = table(found | {"fewer": replace(found["fewer"], speeds={"PyTorch": 24.0})}, judged_by="chats")
    assert shown.loc["fewer", "tokens per byte"] == "0.828" and shown.loc["fewer", "bytes a second, PyTorch"] == "29.0"
    assert shown.loc["fewer", "bits per byte on chats"] == f"{found['fewer'].score.bits_per_byte:.3f}"
    times = with_interval(*bits_ratio(found["fewer"].score, found["whole"].score))
    assert list(shown["times the whole model's (95 %)"]) == ["1.00 (1.00 to 1.00)", times]
    assert found["fewer"].as_json()["bits_per_byte"] == found["fewer"].score.bits_per_byte


def test_each_model_is_timed_with_its_own_tokenizer(models, versions, tmp_path, monkeypatch):
    whole, cut, tokenizer = models
    fewer, (of_fewer,) = variant(cut), (choose_tokens(tokenizer, torch.zeros(len(tokenizer)), keep=512),)
    _, small = prune_vocabulary(fewer, tokenizer, of_fewer)
    monkeypatch.setattr(rivals, "measure_speed", lambda *_args, **_sizes: measured(whole=1.0, cut=2.0))
    there = {"whole": 3.0, "cut": 4.0, **dict.fromkeys(BITS, 5.0)}
    monkeypatch.setattr(engine, "problem", lambda: "")
    monkeypatch.setattr(engine, "measure_speed", lambda *_args, **_sizes: measured(**there))
    named = versions | {"cut": Version(model_size(fewer).bytes, versions["cut"].score)}
    found, reason = timed(named, whole, fewer, tokenizer, length=16, folder=tmp_path, of_cut=small)
    assert reason == "" and found["cut"].speeds == {"PyTorch": 2.0, "llama.cpp": 4.0}
    assert found["random cut"].speeds == {}, "of other sizes"


def test_table_and_json_say_the_same(versions):
    shown = table(versions, judged_by="chats")
    assert list(shown.index) == list(versions) and list(shown.columns) == ["MB", "perplexity on chats (95 %)"]
    timed_too = versions | {"cut": Version(1_500_000, versions["cut"].score, {"PyTorch": 12.345})}
    shown = table(timed_too, judged_by="chats")
    assert list(shown["tokens a second, PyTorch"]) == ["–", "–", "12.3", "–", "–"] and shown.loc["cut", "MB"] == "1.5"
    said = timed_too["cut"].as_json()
    assert said["bytes"] == 1_500_000 and said["tokens_per_second"] == {"PyTorch": 12.345}
    assert said["perplexity"] == versions["cut"].score.perplexity
