"""A teacher on disk teaches like the teacher: exactly where all is stored, with a known bias where it isn't."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer, words
from tiny_distillation import BATCHES, HELD_OUT, SETTINGS, interrupt, losses, pair, with_another_weight

from course_utils import architectures
from course_utils.adaptive import calibrate, make_adaptive
from course_utils.architectures import describe
from course_utils.attention import bypass_attention
from course_utils.batches import read_batch
from course_utils.distillation import CheckpointMismatch, distill, teacher_cache
from course_utils.distillation.losses import batch_loss, token_loss, top_k_loss
from course_utils.distillation.teacher_cache import (
    CacheMismatch,
    TeacherCache,
    _bytes_per_token,
    _top_k,
    cache_teacher,
)

EVERYTHING = BATCHES + HELD_OUT


def logits(seed, scale, *, tokens=20, vocabulary=11):
    return scale * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.arange(20) % 11


def readable(ids, log_probs):
    return ids.long(), log_probs.float().log_softmax(-1)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 30), k=st.integers(1, 11))
@settings(max_examples=60)
def test_buckets_never_differ_more_than_what_is_in_them(seed, scale, k):
    """The data-processing inequality: the bias of a cache has a sign."""
    student, teacher = logits(seed, scale), logits(seed + 1, scale)
    exact = token_loss(student, teacher, TARGETS)
    ids, log_probs = _top_k(teacher, k)
    given = top_k_loss(student, *readable(ids, log_probs), TARGETS)
    # Half precision moves a log-probability by 1/2048 of itself at most; what that costs is bounded by the same share
    # of the cross-entropy.
    slack = 1e-5 + (student.log_softmax(-1).abs().amax(-1) + teacher.log_softmax(-1).abs().amax(-1)) / 1000
    assert (given >= -1e-5).all()
    assert (given <= exact + slack).all()
    if k == 11:
        assert (given >= exact - slack).all()


def test_by_definition():
    student, teacher = logits(1, 3), logits(2, 3)
    p, q = teacher.softmax(-1), student.softmax(-1)
    ids, log_probs = _top_k(teacher, 3)
    assert torch.equal(ids.long(), p.topk(3).indices)
    p, q = (torch.cat([x.gather(1, ids.long()), 1 - x.gather(1, ids.long()).sum(1, keepdim=True)], 1) for x in (p, q))
    torch.testing.assert_close(log_probs.float().exp(), p, rtol=5e-3, atol=1e-6)
    expected = (p * (p / q).log()).sum(-1)
    given = top_k_loss(student, ids.long(), p.log(), TARGETS)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    ce = torch.nn.functional.cross_entropy(student, TARGETS, reduction="none")
    torch.testing.assert_close(top_k_loss(student, ids.long(), p.log(), TARGETS, alpha=1.0), ce)
    mixed = top_k_loss(student, ids.long(), p.log(), TARGETS, alpha=0.3)
    torch.testing.assert_close(mixed, 0.7 * given + 0.3 * ce)


@pytest.mark.parametrize("k", [3, 11])
def test_a_certain_teacher_and_a_certain_student_have_finite_gradients(k):
    """Nothing is left for the other tokens: 1 - sum would be 0 or below, and its logarithm nothing."""
    teacher, student = torch.zeros(20, 11), torch.zeros(20, 11, requires_grad=True)
    teacher[:, 4], student.data[:, 4] = 1e5, 90.0
    loss = top_k_loss(student, *readable(*_top_k(teacher, k)), TARGETS)
    loss.sum().backward()
    assert loss.isfinite().all() and student.grad.isfinite().all()
    torch.testing.assert_close(loss.detach(), torch.zeros(20))


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_tokens_stored_equal_the_teacher(family, padding, tmp_path, monkeypatch):
    monkeypatch.setattr(architectures, "_LOGITS", 97 * 5)  # five tokens a chunk
    teacher, student = tiny_model(family), tiny_model(family, seed=1)
    batches = tiny_batches(padding=padding)
    cache = cache_teacher(teacher, batches, tmp_path, k=97)
    batch = read_batch(batches[1], vocab_size=97, device="cpu")
    for alpha in (0.0, 0.4, 1.0):
        results = []
        for value in (
            batch_loss(describe(student), describe(teacher), batch, alpha=alpha),
            cache.batch_loss(describe(student), batch, alpha=alpha),
        ):
            student.zero_grad()
            value.backward()
            results.append([value.detach(), *(w.grad.clone() for w in student.parameters() if w.grad is not None)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=5e-3, atol=5e-3 * float(a.abs().max()) + 1e-6)


@pytest.mark.parametrize("k", [8, 97])
def test_students_learn_from_the_cache(k, tmp_path):
    teacher, student = pair()
    cache = cache_teacher(teacher, EVERYTHING, tmp_path, k=k)
    history = distill(cache, student, BATCHES, steps=40, lr=3e-3, validation=HELD_OUT, validate_every=40)
    assert losses(history)[-1] < 0.7 * losses(history)[0]
    if k == 97:
        _, other = pair()
        exact = distill(teacher, other, BATCHES, steps=40, lr=3e-3, validation=HELD_OUT, validate_every=40)
        torch.testing.assert_close(*(torch.tensor(losses(h)) for h in (history, exact)), rtol=1e-2, atol=1e-3)
        assert history.validation[0]["loss"] == pytest.approx(exact.validation[0]["loss"], rel=1e-2)


def test_the_cache_teaches_in_16_bits(tmp_path):
    teacher, student = pair()
    cache = cache_teacher(teacher, BATCHES, tmp_path, k=8)
    history = distill(cache, student, BATCHES, steps=40, lr=3e-3, alpha=0.1, precision=torch.bfloat16)
    exact = distill(cache, pair()[1], BATCHES, steps=40, lr=3e-3, alpha=0.1)
    torch.testing.assert_close(*(torch.tensor(losses(run)) for run in (history, exact)), rtol=0.05, atol=0.01)


def test_rows_are_found_in_whatever_batch_they_are(tmp_path):
    """Other batch sizes, another order, another padding."""
    teacher, student = pair()
    cache = cache_teacher(teacher, tiny_batches(rows=6, size=2, padding="left"), tmp_path, k=97)
    results = [
        distill(cache, pair()[1], tiny_batches(rows=6, size=size, padding="right"), steps=3, lr=1e-3, accumulate=n)
        for size, n in ((1, 6), (6, 1))
    ]
    exact = distill(teacher, student, tiny_batches(rows=6, size=6, padding="right"), steps=3, lr=1e-3)
    for history in results:
        torch.testing.assert_close(torch.tensor(losses(history)), torch.tensor(losses(exact)), rtol=1e-2, atol=1e-3)


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    """Nine steps of eight batches: the second pass over the data, too."""
    teacher, student = pair()
    cache, folder = cache_teacher(teacher, EVERYTHING, tmp_path / "cache", k=8), tmp_path / "run"
    expected = distill(cache, student, BATCHES, **SETTINGS)
    interrupt(lambda: distill(cache, pair()[1], BATCHES, **SETTINGS, checkpoint_dir=folder), after=5)
    _, fresh = pair()
    again = TeacherCache.open(tmp_path / "cache")
    history = distill(again, fresh, BATCHES, **SETTINGS, checkpoint_dir=folder)
    assert losses(history) == losses(expected)
    assert history.validation == expected.validation
    assert all(map(torch.equal, student.parameters(), fresh.parameters()))
    with pytest.raises(CheckpointMismatch, match="teacher: '.* parameters, .*, top 8 stored' then, 'llama of .* now"):
        distill(teacher, pair()[1], BATCHES, **SETTINGS, checkpoint_dir=folder)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(teacher_cache, "_SHARD_BYTES", 100)  # one batch a shard


@pytest.mark.usefixtures("small_shards")
def test_a_killed_run_goes_on_at_the_next_missing_shard(tmp_path):
    teacher = tiny_model()
    asked = []
    teacher.base_model.register_forward_hook(lambda *_: asked.append(1))
    whole = cache_teacher(teacher, BATCHES, tmp_path / "whole", k=8)
    assert len(asked) == len(BATCHES)

    def stop(*_):
        if len(asked) == len(BATCHES) + 5:
            raise KeyboardInterrupt

    handle = teacher.base_model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(teacher, BATCHES, tmp_path / "cut", k=8)
    handle.remove()
    half = tmp_path / "cut" / ".00004.safetensors.1-2.tmp"
    half.write_bytes(b"half a shard")  # as a kill leaves it
    with pytest.raises(ValueError, match="4 of 8 shards"):
        TeacherCache.open(tmp_path / "cut")
    asked.clear()
    cut = cache_teacher(teacher, BATCHES, tmp_path / "cut", k=8)
    assert len(asked) == 4
    assert cut.nbytes == whole.nbytes
    half.unlink()
    assert {f.name: f.read_bytes() for f in cut.folder.iterdir()} == {
        f.name: f.read_bytes() for f in whole.folder.iterdir()
    }
    asked.clear()
    cache_teacher(teacher, BATCHES, tmp_path / "cut", k=8)  # a finished one is only opened
    assert not asked


def bypassed(model, layers=(1,)):
    bypass_attention(model, list(layers))
    return model


def adaptive(model):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w2"
    return make_adaptive(model, calibrate(model, tokenizer, [words(range(3, 3 + n)) for n in range(3, 15)]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wanted: wanted | {"k": 9}, "k: 8 there, 9 wanted"),
        (lambda wanted: wanted | {"batches": HELD_OUT}, "data: "),
        (lambda wanted: wanted | {"teacher": with_another_weight(tiny_model())}, "teacher: llama of .*"),
        (lambda wanted: wanted | {"teacher": tiny_model(dtype=torch.bfloat16)}, "teacher: "),
        (lambda wanted: wanted | {"teacher": bypassed(tiny_model())}, "teacher: "),
        (lambda wanted: wanted | {"teacher": adaptive(tiny_model())}, "teacher: "),
    ],
)
def test_a_cache_of_something_else_is_refused(change, message, tmp_path):
    """One thing differs each time."""
    wanted = {"teacher": tiny_model(), "batches": BATCHES, "folder": tmp_path, "k": 8}
    cache_teacher(**wanted)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(CacheMismatch, match=message) as refused:
        cache_teacher(**change(wanted))
    assert str(refused.value).count(" there, ") == 1 or message == "data: "
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_restored_teacher_is_the_teacher_again(tmp_path):
    teacher = tiny_model()
    cache_teacher(teacher, BATCHES, tmp_path, k=8)
    cache_teacher(bypassed(bypassed(teacher), layers=()), BATCHES, tmp_path, k=8)
    cache_teacher(make_adaptive(adaptive(teacher), None), BATCHES, tmp_path, k=8)


def test_size(tmp_path, monkeypatch):
    assert _bytes_per_token(49_152, 64) == 64 * 4 + 2
    assert _bytes_per_token(128_256, 64) == 64 * 6 + 2
    assert _bytes_per_token(97, 97) == 97 * 4  # nothing is left for a bucket
    teacher = tiny_model()
    cache = cache_teacher(teacher, BATCHES, tmp_path / "there", k=8)
    tokens = 16 * 11
    assert cache.tokens == tokens
    assert tokens * _bytes_per_token(97, 8) < cache.nbytes < tokens * _bytes_per_token(97, 8) + 2000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        ValueError, match=r"needs 0\.0 GB \(5,984 bytes: 176 tokens of 34 bytes\).*1,000 bytes are free"
    ):
        cache_teacher(teacher, BATCHES, tmp_path / "full", k=8)
    assert not (tmp_path / "full").exists()
    cache_teacher(teacher, BATCHES, tmp_path / "there", k=8)  # needs no more


def test_large_vocabularies_need_wider_ids(tmp_path):
    teacher, student = tiny_model(vocab_size=70_000), tiny_model(vocab_size=70_000, seed=1)
    batch = read_batch(tiny_batches()[0], vocab_size=70_000, device="cpu")
    with torch.no_grad():
        teacher.get_output_embeddings().weight[69_000:] *= 3  # the likeliest tokens are the last
    cache = cache_teacher(teacher, tiny_batches(), tmp_path, k=50)
    ids, _ = cache.answers(batch)
    known = teacher(**batch.inputs()).logits[:, :-1].flatten(0, 1)
    assert torch.equal(ids, known.topk(50).indices) and ids.max() > 65_536
    assert cache.batch_loss(describe(student), batch) > 0


def test_bad_input_changes_nothing(tmp_path):
    teacher, student = pair(dtype=torch.bfloat16)
    for k in (0, 98, 2.0, True):
        with pytest.raises(ValueError, match="'k' must be a whole number from 1 to 97"):
            cache_teacher(teacher, BATCHES, tmp_path / "new", k=k)
    with pytest.raises(ValueError, match="empty"):
        cache_teacher(teacher, [], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="no teacher cache"):
        TeacherCache.open(tmp_path)
    (tmp_path / "else.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a teacher cache"):
        cache_teacher(teacher, BATCHES, tmp_path, k=8)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="can't be read"):
        cache_teacher(teacher, BATCHES, tmp_path / "broken", k=8)
    cache = cache_teacher(teacher, BATCHES, tmp_path / "cache", k=8)
    with pytest.raises(ValueError, match="4 of 20 rows"):
        distill(cache, student, BATCHES, validation=HELD_OUT, steps=1, lr=1e-3)
    with pytest.raises(ValueError, match="101 tokens, the teacher 97"):
        distill(cache, tiny_model(vocab_size=101), BATCHES, steps=1, lr=1e-3)
    assert student.dtype == torch.bfloat16


def test_no_tensor_holds_all_logits(tmp_path, monkeypatch):
    from course_utils.benchmarking import peak_memory

    vocabulary, rows, length = 4001, 6, 60
    teacher, student = tiny_model(vocab_size=vocabulary), tiny_model(vocab_size=vocabulary, seed=1)
    batches = [{"input_ids": torch.randint(97, (rows, length))}]
    batch = read_batch(batches[0], vocab_size=vocabulary, device="cpu")
    monkeypatch.setattr(architectures, "_LOGITS", vocabulary * 20)
    all_logits = rows * length * vocabulary * 4
    assert peak_memory(lambda: cache_teacher(teacher, batches, tmp_path, k=16)) < all_logits
    cache = TeacherCache.open(tmp_path)
    assert peak_memory(lambda: cache.batch_loss(describe(student), batch).backward()) < all_logits
