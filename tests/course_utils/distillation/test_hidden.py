"""The loss on hidden states is what it says by hand, learns, goes on where it stopped, and leaves all else alone."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, tiny_batches, tiny_model
from tiny_distillation import BATCHES, HELD_OUT, SETTINGS, interrupt, losses, pair

from course_utils.architectures import describe
from course_utils.batches import read_batches
from course_utils.channels import prune_channels
from course_utils.depth import remove_blocks
from course_utils.distillation import CheckpointMismatch, distill
from course_utils.distillation.hidden import HiddenLoss, block_pairs, first_projection
from course_utils.distillation.losses import batch_loss
from course_utils.distillation.state import CHECKPOINT
from course_utils.distillation.teacher_cache import cache_teacher
from course_utils.distillation.teacher_states import remember_teacher
from course_utils.width import neuron_importance, prune_neurons


def smaller(**settings):
    """A teacher, and a student with fewer channels and blocks; both know nothing."""
    return tiny_model(**settings), tiny_model(seed=1, layers=2, hidden_size=16, **settings)


def states(model, ids, block):
    """What leaves a block, [tokens, hidden], of one text without padding, each token over its root mean square."""
    found = model(ids[None], output_hidden_states=True).hidden_states[block + 1][0]
    return found / found.square().mean(-1, keepdim=True).sqrt()


def texts(batches):
    """Each row without its padding."""
    rows = [zip(batch["input_ids"], batch["attention_mask"], strict=True) for batch in batches]
    return [ids[mask == 1] for of_batch in rows for ids, mask in of_batch]


def by_hand(teacher, student, projection, batches, pairs):
    """The distance: a sum over the tokens that predict, a mean over channels and pairs."""
    total = 0.0
    for ids in texts(batches):
        for one, other in pairs:
            with torch.no_grad():
                target = states(teacher, ids, other)[:-1]
            error = states(student, ids, one)[:-1] @ projection.T - target
            total = total + error.square().mean(-1).sum() / len(pairs)
    return total


def read(batches):
    return list(read_batches(batches, vocab_size=97, device="cpu"))


def gradients(loss, student, projection):
    return torch.autograd.grad(loss, [projection, *student.parameters()])


@pytest.mark.parametrize(("padding", "alpha"), [("left", 0.0), ("right", 1.0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradient_by_hand(family, padding, alpha):
    """On ragged text: padding doesn't count, nor does a row's last token, which predicts nothing."""
    teacher, student = pair(family, layers=4)
    pairs = ((0, 1), (2, 2))
    given = tiny_batches(rows=4, size=4, padding=padding)
    (batch,) = read(given)
    module = HiddenLoss(describe(teacher), describe(student), weight=2.0, pairs=pairs)

    def loss(student, batch):
        return batch_loss(student, describe(teacher), batch, alpha=alpha)

    total = module(loss, describe(student), batch)
    assert not any(block._forward_hooks for model in (teacher, student) for block in describe(model).blocks)
    distance = by_hand(teacher, student, module.projection, given, pairs)
    expected = loss(describe(student), batch) + 2 * distance
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(*(gradients(x, student, module.projection) for x in (total, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_step_counts_it_for_each_predicted_token():
    """The loss of the first step, before the update, of batches that share a step."""
    teacher, student = smaller()
    before, batches = copy.deepcopy(student), tiny_batches(rows=4, size=2, padding="left")
    settings = {"steps": 1, "lr": 1e-3, "accumulate": 2}
    plain = distill(teacher, copy.deepcopy(student), batches, **settings)
    history = distill(teacher, student, batches, **settings, hidden=0.5, hidden_pairs=[(0, 0)])
    projection = first_projection(describe(teacher), describe(before))
    distance = float(by_hand(teacher, before, projection, batches, [(0, 0)]).detach()) / history.tokens
    assert losses(history)[0] == pytest.approx(losses(plain)[0] + 0.5 * distance, rel=1e-4)


def unexplained(teacher, student, block):
    """What the best linear map from the student's states leaves of the teacher's, as a share, on other text than it."""
    learned, held_out = (
        [torch.cat([states(model, ids, block) for ids in texts(given)]).detach() for model in (student, teacher)]
        for given in (BATCHES, HELD_OUT)
    )
    best = torch.linalg.lstsq(*learned).solution
    return float((held_out[0] @ best - held_out[1]).square().mean())


def test_the_student_comes_nearer_than_without_it():
    """Measured without the projection that was learned; the control learns the same text from predictions alone."""
    teacher = tiny_model()
    cut = copy.deepcopy(teacher)
    prune_neurons(cut, neuron_importance(cut, "random"), ratio=0.5)
    left = {"before": unexplained(teacher, cut, 1)}
    for hidden in (0.0, 5.0):
        student = copy.deepcopy(cut)
        history = distill(teacher, student, BATCHES, steps=60, lr=3e-3, hidden=hidden)
        assert losses(history)[-1] < losses(history)[0]
        left[hidden] = unexplained(teacher, student, 1)
    assert left[5.0] < 0.85 * left[0.0] and left[5.0] < left["before"], left


@pytest.mark.parametrize(
    "settings", [{"recompute": True}, {"precision": torch.bfloat16}, {"mlps_only": True}, {"train_embedding": False}]
)
def test_it_goes_with_every_other_setting(settings):
    histories = []
    for more in ({}, settings):
        teacher, student = smaller()
        histories.append(losses(distill(teacher, student, BATCHES, steps=8, lr=3e-3, hidden=1.0, **more)))
    assert histories[1][0] == pytest.approx(histories[0][0], rel=0.05)  # before any update
    assert histories[1][-1] < histories[1][0]
    if "recompute" in settings:
        torch.testing.assert_close(*map(torch.tensor, histories), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [smaller, lambda: pair("gpt2")])  # GPT-2 has dropout
def test_an_interrupted_run_goes_on_exactly(make, tmp_path):
    """The projection and its averages are kept with the run, and nothing of them stays with the student."""
    teacher, student = make()
    names = set(student.state_dict())
    settings = SETTINGS | {"hidden": 0.5, "hidden_pairs": [(1, 2)]}
    expected = distill(teacher, student, BATCHES, **settings)
    broken = make()[1]
    interrupt(lambda: distill(teacher, broken, BATCHES, **settings, checkpoint_dir=tmp_path), after=5)
    beside = {key for key in load_file(tmp_path / CHECKPOINT) if "projection" in key}
    assert {key.partition(".")[0] for key in beside} == {"weight", "exp_avg", "exp_avg_sq", "step"}
    saved = (tmp_path / CHECKPOINT).read_bytes()
    for fresh in (make()[1], broken):  # as it was given, and as Ctrl-C left it
        (tmp_path / CHECKPOINT).write_bytes(saved)
        history = distill(teacher, fresh, BATCHES, **settings, checkpoint_dir=tmp_path)
        assert losses(history) == losses(expected) and history.validation == expected.validation
        assert all(map(torch.equal, student.parameters(), fresh.parameters()))
        assert set(fresh.state_dict()) == names


def test_without_it_a_run_is_the_same_run(tmp_path):
    """Weight 0 is no weight: the same file, bit for bit, so that runs from before it go on."""
    files = []
    for number, settings in enumerate([{}, {"hidden": 0.0, "hidden_pairs": None}]):
        distill(*pair(), BATCHES, steps=2, lr=1e-3, checkpoint_dir=tmp_path / str(number), **settings)
        files.append(load_file(tmp_path / str(number) / CHECKPOINT))
    assert files[0].keys() == files[1].keys() and not any("projection" in key for key in files[0])
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    distill(*pair(), BATCHES, steps=2, lr=1e-3, checkpoint_dir=tmp_path / "0", hidden=0.0)  # goes on


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({}, {"hidden": 0.5}, "hidden: 0.0 then, 0.5 now"),
        ({"hidden": 0.5}, {}, "hidden: 0.5 then, 0.0 now"),
        (
            {"hidden": 0.5},
            {"hidden": 0.5, "hidden_pairs": [(1, 1)]},
            r"hidden_pairs: None then, \[\[1, 1\]\] now",
        ),
    ],
)
def test_a_checkpoint_of_another_weight_or_other_blocks_is_refused(then, now, message, tmp_path):
    settings = {"steps": 1, "lr": 1e-3, "checkpoint_dir": tmp_path}
    distill(*pair(), BATCHES, **settings, **then)
    with pytest.raises(CheckpointMismatch, match=f"another run. {message}") as refused:
        distill(*pair(), BATCHES, **settings, **now)
    assert str(refused.value).count(" then, ") == 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(3, 1)], "The student's blocks in 'hidden_pairs' must lie from 0 to 2; got .3."),
        ([(1, 4)], "The teacher's blocks in 'hidden_pairs' must lie from 0 to 2; got .4."),
        ([(1, 1), (1, 2)], "The student's blocks in 'hidden_pairs' must not repeat"),
    ],
)
def test_blocks_that_are_not_there_are_refused_before_anything_is_touched(pairs, message):
    teacher, student = pair(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=message):
        distill(teacher, student, BATCHES, steps=1, lr=1e-3, hidden=1.0, hidden_pairs=pairs)
    assert student.dtype == torch.bfloat16


def test_a_teacher_of_which_only_predictions_were_kept_is_refused(tmp_path):
    teacher, student = pair(dtype=torch.bfloat16)
    for known in (remember_teacher(teacher, BATCHES), cache_teacher(teacher, BATCHES, tmp_path, k=4)):
        with pytest.raises(ValueError, match=r"'hidden' \(1.0\) compares states .* Give the teacher itself"):
            distill(known, student, BATCHES, steps=1, lr=1e-3, hidden=1.0)
    assert student.dtype == torch.bfloat16


def test_which_blocks_are_compared():
    assert [block_pairs(count, count) for count in (1, 2, 3, 16)] == [((0, 0),), ((0, 0),), ((1, 1),), ((13, 13),)]
    assert block_pairs(2, 12) == ((0, 5),)
    teacher = tiny_model(layers=4)
    student = copy.deepcopy(teacher)
    remove_blocks(student, [1])
    history = distill(teacher, student, BATCHES, steps=20, lr=3e-3, hidden=1.0)
    assert losses(history)[-1] < losses(history)[0]


def test_the_projection_begins_where_the_embeddings_agree():
    """The identity for the same embedding; after a cut of channels, those that are left in their old places."""
    teacher = tiny_model()
    torch.testing.assert_close(
        first_projection(describe(teacher), describe(copy.deepcopy(teacher))), torch.eye(32), rtol=0, atol=1e-5
    )
    student = copy.deepcopy(teacher)
    prune_channels(student, torch.arange(32.0), size=24, rescale_norms=False)
    projection = first_projection(describe(teacher), describe(student))
    assert projection.shape == (32, 24) and projection.dtype == torch.float32
    torch.testing.assert_close(projection[8:], torch.eye(24), rtol=0, atol=1e-5)
