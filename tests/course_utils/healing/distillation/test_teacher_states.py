"""A teacher that was asked once teaches like the teacher itself, bit for bit, and need not stay."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model
from tiny_distillation import BATCHES, HELD_OUT, SETTINGS, interrupt, losses, pair, with_another_weight

from course_utils.healing.distillation import CheckpointMismatch, distill
from course_utils.healing.distillation.teacher_states import remember_teacher
from course_utils.models import architectures

EVERYTHING = BATCHES + HELD_OUT


@pytest.mark.parametrize(("precision", "alpha"), [(torch.float32, 0.0), (torch.float32, 0.4), (torch.bfloat16, 0.0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_with_kept_states_is_the_run_without_them_bit_for_bit(family, precision, alpha, monkeypatch):
    """Weights in the dtype that is computed in, as lessons have them. The teacher reads once, and is as it was."""
    monkeypatch.setattr(architectures, "_LOGITS", 97 * 5)  # five tokens a chunk
    settings = SETTINGS | {"precision": precision, "alpha": alpha}
    teacher, student = pair(family, dtype=precision)
    expected = distill(teacher, student, BATCHES, **settings)
    _, other = pair(family, dtype=precision)
    asked = []
    teacher.train().base_model.register_forward_hook(lambda *_: asked.append(1))
    known = remember_teacher(teacher, EVERYTHING, precision=precision)
    history = distill(known, other, BATCHES, **settings)
    assert losses(history) == losses(expected)
    assert history.validation == expected.validation
    assert all(map(torch.equal, student.parameters(), other.parameters()))
    assert len(asked) == len(EVERYTHING)
    assert teacher.training and all(weight.requires_grad for weight in teacher.parameters())


def test_rows_are_found_in_whatever_batch_they_are():
    """In other batches matrices are multiplied in another shape, so equal means within rounding."""
    teacher, student = pair()
    known = remember_teacher(teacher, tiny_batches(rows=6, size=2, padding="left"))
    text = tiny_batches(rows=6, size=6, padding="right")
    expected = losses(distill(teacher, student, text, steps=3, lr=1e-3))
    for size, accumulate in ((1, 6), (6, 1)):
        batches = tiny_batches(rows=6, size=size, padding="right")
        given = losses(distill(known, pair()[1], batches, steps=3, lr=1e-3, accumulate=accumulate))
        torch.testing.assert_close(torch.tensor(given), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_the_teacher_may_go_and_its_blocks_with_it():
    teacher, student = pair()
    block = weakref.ref(teacher.model.layers[0].mlp.gate_proj.weight)
    of_blocks = {weight.data_ptr() for weight in teacher.model.layers.parameters()}  # a variant shares them
    known = remember_teacher(teacher, EVERYTHING)
    embedding = teacher.get_input_embeddings().weight.data_ptr()
    del teacher
    gc.collect()
    assert block() is None
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    assert not [found for found in tensors if found.data_ptr() in of_blocks]
    assert known._head.model.get_input_embeddings().weight.data_ptr() == embedding  # shared, not copied
    assert losses(distill(known, student, BATCHES, steps=20, lr=3e-3))[-1] > 0


def test_an_interrupted_run_goes_on_exactly_and_with_the_same_states_alone(tmp_path):
    teacher, student = pair()
    known = remember_teacher(teacher, EVERYTHING)
    expected = distill(known, student, BATCHES, **SETTINGS)
    interrupt(lambda: distill(known, pair()[1], BATCHES, **SETTINGS, checkpoint_dir=tmp_path), after=5)
    history = distill(remember_teacher(teacher, EVERYTHING), pair()[1], BATCHES, **SETTINGS, checkpoint_dir=tmp_path)
    assert losses(history) == losses(expected)
    another = remember_teacher(with_another_weight(teacher), EVERYTHING)
    with pytest.raises(CheckpointMismatch, match="teacher: "):
        distill(another, pair()[1], BATCHES, **SETTINGS, checkpoint_dir=tmp_path)
    in_16_bits = remember_teacher(teacher, EVERYTHING, precision=torch.bfloat16)
    with pytest.raises(CheckpointMismatch, match=r"read in torch.float32' then, .* read in torch.bfloat16' now"):
        distill(in_16_bits, pair()[1], BATCHES, **SETTINGS, precision=torch.bfloat16, checkpoint_dir=tmp_path)


def test_bad_input():
    teacher, student = pair()
    with pytest.raises(ValueError, match="'precision'"):
        remember_teacher(teacher, BATCHES, precision=torch.float16)
    known = remember_teacher(teacher, BATCHES)
    with pytest.raises(ValueError, match="4 of 20 rows of text are not in the teacher's states. Give remember_teacher"):
        distill(known, student, BATCHES, steps=1, lr=1e-3, validation=HELD_OUT)
    with pytest.raises(ValueError, match="101 tokens, the teacher 97"):
        distill(known, tiny_model(vocab_size=101), BATCHES, steps=1, lr=1e-3)
    for read, given in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        known = remember_teacher(teacher, BATCHES, precision=read)
        with pytest.raises(ValueError, match=f"'precision' must be {read}, in which the teacher's states were read; "):
            distill(known, student, BATCHES, steps=1, lr=1e-3, precision=given)
