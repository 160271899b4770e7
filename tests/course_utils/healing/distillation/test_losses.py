"""Losses by their definitions, and in chunks exactly as without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils.healing.distillation.losses import batch_loss, token_loss
from course_utils.models import architectures
from course_utils.models.architectures import describe
from course_utils.pruning.attention import bypass_attention
from course_utils.text.batches import read_batch


def logits(seed, dtype=torch.float32):
    return torch.randn(7, 11, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


TARGETS = torch.arange(7)
STUDENT, TEACHER = logits(1), logits(2)


def test_the_divergence_and_the_cross_entropy_by_their_definitions():
    p, q = (torch.softmax(x, -1) for x in (TEACHER, STUDENT))
    kl, ce = (p * (p / q).log()).sum(-1), F.cross_entropy(STUDENT, TARGETS, reduction="none")
    torch.testing.assert_close(token_loss(STUDENT, TEACHER, TARGETS), kl)
    torch.testing.assert_close(token_loss(STUDENT, TEACHER, TARGETS, alpha=0.3), 0.7 * kl + 0.3 * ce)
    for teacher in (TEACHER, None):
        torch.testing.assert_close(token_loss(STUDENT, teacher, TARGETS, alpha=1.0), ce)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_logits_are_compared_in_float32(dtype):
    given = token_loss(logits(1, dtype), logits(2, dtype), TARGETS)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, token_loss(logits(1, dtype).float(), logits(2, dtype).float(), TARGETS))


def test_the_teacher_term_moves_the_student_toward_the_teacher():
    """A dead teacher term (no gradient) has been published; this is the test that finds it."""
    student = STUDENT.clone().requires_grad_()

    def distance():
        return (student.softmax(-1) - TEACHER.softmax(-1)).abs().sum().item()

    before = distance()
    for _ in range(600):
        (gradient,) = torch.autograd.grad(token_loss(student, TEACHER, TARGETS).sum(), student)
        assert gradient.abs().max() > 0
        student.data -= gradient
    assert distance() < 0.5 * before
    teacher = TEACHER.clone().requires_grad_()
    assert not token_loss(STUDENT, teacher, TARGETS).requires_grad


def plain(student, teacher, batch, **options):
    """The same sum from complete logits."""
    predicted = batch.predicted
    with torch.no_grad():
        known = teacher(**batch.inputs()).logits[:, :-1][predicted]
    return token_loss(
        student(**batch.inputs()).logits[:, :-1][predicted], known, batch.input_ids[:, 1:][predicted], **options
    ).sum()


def test_cross_entropy_alone_needs_no_teacher():
    """Not one forward of it; ``test_chunked_equals_plain`` has the losses and gradients."""
    teacher, student = tiny_model(), tiny_model(seed=1)
    batch = read_batch(tiny_batches()[0], vocab_size=97, device="cpu")
    runs = []
    for module in (teacher.base_model, teacher.get_output_embeddings()):
        module.register_forward_hook(lambda *_: runs.append(1))
    batch_loss(describe(student), describe(teacher), batch, alpha=1.0).backward()
    assert not runs
    batch_loss(describe(student), describe(teacher), batch, alpha=0.9)
    assert runs


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_equals_plain(family, padding, monkeypatch):
    monkeypatch.setattr(architectures, "_LOGITS", 97 * 5)  # five tokens a chunk
    teacher, student = tiny_model(family), tiny_model(family, seed=1)
    batch = read_batch(tiny_batches(padding=padding, size=6)[0], vocab_size=97, device="cpu")
    for options in ({}, {"alpha": 0.3}, {"alpha": 1.0}):
        sums, gradients = [], []
        for value in (
            plain(student, teacher, batch, **options),
            batch_loss(describe(student), describe(teacher), batch, **options),
        ):
            student.zero_grad()
            (value / 60).backward()
            sums.append(value.detach())
            gradients.append([weight.grad.clone() for weight in student.parameters() if weight.grad is not None])
        torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-5)
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(batch_loss(describe(student), describe(teacher), batch, **options), sums[0])


def test_no_tensor_holds_all_logits(monkeypatch):
    from course_utils.measuring.benchmarking import peak_memory

    vocabulary, rows, length = 4001, 6, 60
    teacher, student = tiny_model(vocab_size=vocabulary), tiny_model(vocab_size=vocabulary, seed=1)
    bypass_attention(student, [1])
    batch = read_batch({"input_ids": torch.randint(97, (rows, length))}, vocab_size=vocabulary, device="cpu")
    monkeypatch.setattr(architectures, "_LOGITS", vocabulary * 20)

    def peak(loss):
        student.zero_grad()
        return peak_memory(lambda: loss().backward())

    chunked = peak(lambda: batch_loss(describe(student), describe(teacher), batch))
    whole = peak(lambda: plain(student, teacher, batch))
    all_logits = rows * length * vocabulary * 4
    assert chunked < all_logits < whole


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_head_gets_no_gradient_and_no_memory(tied, monkeypatch):
    from course_utils.measuring.benchmarking import peak_memory

    vocabulary = 40_001
    teacher, student = (tiny_model(vocab_size=vocabulary, tie_word_embeddings=tied, seed=seed) for seed in (0, 1))
    teacher.requires_grad_(False)
    batch = read_batch(tiny_batches()[0], vocab_size=vocabulary, device="cpu")
    monkeypatch.setattr(architectures, "_LOGITS", vocabulary)  # a token a chunk: little beside the head

    def peak():
        student.zero_grad(set_to_none=True)
        return peak_memory(lambda: batch_loss(describe(student), describe(teacher), batch).backward())

    trained = peak()
    expected = {name: weight.grad for name, weight in student.named_parameters()}
    head = student.get_output_embeddings().weight.requires_grad_(False)
    frozen = peak()
    assert trained - frozen > 2 * head.numel() * head.element_size()  # the sum, and a chunk's part of it
    for name, weight in student.named_parameters():
        if weight is head:
            assert weight.grad is None
        elif not name.endswith("embed_tokens.weight"):
            torch.testing.assert_close(weight.grad, expected[name])
