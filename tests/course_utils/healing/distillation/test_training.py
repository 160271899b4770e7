"""Distillation learns from the teacher, doesn't depend on how it is split, and goes on where it stopped."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from programs import wait_for
from safetensors.torch import load_file
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer, words
from tiny_distillation import BATCHES, HELD_OUT, SETTINGS, interrupt, losses, pair, with_another_weight

from course_utils.healing.distillation import CheckpointMismatch, History, Recipe, distill
from course_utils.healing.distillation.checkpoint import CHECKPOINT
from course_utils.healing.distillation.processes import Processes
from course_utils.healing.distillation.teacher_states import remember_teacher
from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.adaptive import calibrate, make_adaptive
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons


def apart(teacher, student, batches):
    """KL(teacher || student) per predicted token, by its definition."""
    with torch.no_grad():
        log_p, log_q = (
            torch.cat([model(**batch).logits[:, :-1] for batch in batches]).log_softmax(-1)
            for model in (teacher, student)
        )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_comes_nearer_to_its_teacher(family):
    teacher, student = pair(family)
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    history = distill(teacher, student, BATCHES, steps=24, lr=3e-3, validation=HELD_OUT, validate_every=12)
    assert [row["step"] for row in history.validation] == [12, 24]
    assert history.validation[-1]["loss"] == pytest.approx(apart(teacher, student, HELD_OUT), rel=1e-3)
    assert losses(history)[-1] < 0.8 * losses(history)[0]
    assert history.steps[-1]["tokens"] == 24 * 2 * 11
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.named_parameters())
    assert all(weight.requires_grad and weight.grad is None for weight in teacher.parameters())
    assert not student.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_shares_its_weights_learns_alone_in_float32(dtype):
    teacher = tiny_model(dtype=dtype)
    student = variant(teacher)
    remove_blocks(student, [1])
    before = [weight.clone() for weight in teacher.parameters()]
    history = distill(teacher, student, BATCHES, steps=20, lr=3e-3, precision=dtype)
    assert all(map(torch.equal, teacher.parameters(), before))
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert losses(history)[-1] < losses(history)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_decay_and_vectors_never_do(family):
    """A head of zeros lets no gradient through: what lies before it moves by the rate and the decay alone."""
    teacher, student = pair(family, tie_word_embeddings=False)
    head = student.get_output_embeddings().weight
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.5)  # norms and biases of 0 wouldn't show it
        head.zero_()
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    history = distill(teacher, student, BATCHES, steps=1, lr=1e-2, warmup=0.0, weight_decay=1.0)
    assert history.steps[0]["lr"] == 1e-2
    for name, weight in student.named_parameters():
        if weight is not head:
            expected = before[name] * (1 - 1e-2) if weight.dim() == 2 else before[name]
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0, msg=name)


def test_the_rate_of_each_step_is_the_recipes():
    """AdamW moves a weight by the rate of each step, as long as its gradient stays what it is."""
    teacher, student = pair()
    before = student.lm_head.weight.detach().clone()
    history = distill(teacher, student, BATCHES[:1], steps=2, lr=1e-2, warmup=1.0)
    assert [row["lr"] for row in history.steps] == [0.5e-2, 1e-2]
    assert (student.lm_head.weight - before).abs().max().item() == pytest.approx(1.5e-2, rel=1e-2)


def test_each_batch_drops_something_else_whoever_computes_the_others(monkeypatch):
    """As if two processes shared the batches of each step."""
    masks = {}
    for own in (slice(None), slice(0, None, 2), slice(1, None, 2)):
        teacher, student = pair("gpt2")
        dropped = masks[str(own)] = []
        student.transformer.drop.register_forward_hook(
            lambda _module, _args, states, dropped=dropped: dropped.append((states == 0).tolist())
        )
        monkeypatch.setattr(Processes, "share", lambda _self, batches, own=own: iter(batches[own]))
        distill(teacher, student, BATCHES[:1], steps=3, lr=1e-3, accumulate=4)
    whole, first, second = masks.values()
    assert len(whole) == len({str(mask) for mask in whole}) == 12
    assert whole == [mask for both in zip(first, second, strict=True) for mask in both]


def test_the_split_into_batches_does_not_matter():
    """Ragged rows: a mean of means would weigh them differently."""
    rows = tiny_batches(rows=6, size=1, padding="right")
    whole = tiny_batches(rows=6, size=6, padding="right")
    results = []
    for batches, accumulate in ((rows, 6), (whole, 1)):
        teacher, student = pair()
        results.append((distill(teacher, student, batches, steps=5, lr=1e-3, accumulate=accumulate), student))
    torch.testing.assert_close(*(torch.tensor(losses(history)) for history, _ in results), rtol=1e-4, atol=1e-5)
    for a, b in zip(*(student.parameters() for _, student in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("known", [lambda teacher, _text: teacher, remember_teacher], ids=["asked", "kept"])
def test_only_what_is_to_be_learned_counts(known):
    """The second half of each row: a student that answers as its teacher has no loss."""
    text = [batch | {"labels": batch["input_ids"].where(torch.arange(12) >= 6, -100)} for batch in BATCHES]
    teacher, student = tiny_model(), tiny_model()
    history = distill(known(teacher, text), student, text, steps=2, lr=1e-6)
    assert max(losses(history)) < 1e-3 and history.steps[0]["tokens"] == 2 * 6
    _, other = pair()
    result = distill(known(teacher, text), other, text[:1], steps=1, lr=1e-6)
    with torch.no_grad():
        p, q = (model(text[0]["input_ids"]).logits[:, 5:-1].log_softmax(-1) for model in (teacher, pair()[1]))
    assert losses(result)[0] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_text_is_read_step_by_step_and_nothing_of_it_is_kept():
    class Stored(Sequence):
        alive, most = 0, 0

        def __len__(self):
            return len(BATCHES)

        def __getitem__(self, place):
            ids = BATCHES[place]["input_ids"].clone()
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(ids, self.gone)
            return {"input_ids": ids}

        def gone(self):
            self.alive -= 1

    stored = Stored()
    results = [losses(distill(*pair(), text, steps=len(BATCHES), lr=1e-3)) for text in (BATCHES, stored)]
    assert results[0] == results[1] and stored.most <= 3 < len(BATCHES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_change_nothing_and_leave_no_hooks(family):
    results = []
    for recompute in (False, True):
        teacher, student = pair(family)
        results.append(losses(distill(teacher, student, BATCHES, steps=3, lr=1e-3, recompute=recompute)))
    torch.testing.assert_close(*map(torch.tensor, results), rtol=1e-5, atol=1e-6)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
    assert not student.get_input_embeddings()._forward_hooks


def weights_of_mlps(model):
    parts = [part for mlp in describe(model).mlps for part in mlp.projections]
    return {id(weight) for part in parts for weight in part.module.parameters()}


@pytest.mark.parametrize(
    ("setting", "tied", "recompute"),
    [
        ({"train_embedding": False}, True, False),
        ({"train_embedding": False}, False, True),
        ({"mlps_only": True}, True, True),
        ({"mlps_only": True}, False, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_learn_stays_as_it_is(family, setting, tied, recompute, tmp_path):
    """It has no averages of AdamW either. A head that is tied to the embedding stays with it."""
    teacher, student = pair(family, tie_word_embeddings=tied)
    embedding = student.get_input_embeddings().weight
    assert (embedding is student.get_output_embeddings().weight) == tied
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    learning = (
        weights_of_mlps(student) if "mlps_only" in setting else {*map(id, student.parameters())} - {id(embedding)}
    )
    settings = {"steps": 5, "lr": 3e-3, "recompute": recompute, "checkpoint_dir": tmp_path} | setting
    history = distill(teacher, student, BATCHES[:1], **settings)
    assert losses(history)[-1] < losses(history)[0]
    learned = {name for name, weight in student.named_parameters() if id(weight) in learning}
    for name, weight in student.named_parameters():
        assert torch.equal(weight, before[name]) == (name not in learned), name
        assert weight.requires_grad and weight.grad is None
    saved = load_file(tmp_path / CHECKPOINT).keys()
    assert {key.removeprefix("exp_avg.") for key in saved if key.startswith("exp_avg.")} == learned


def test_what_does_not_learn_stays_shared(tmp_path):
    """A variant of a float32 teacher needs memory for its MLPs only, and goes on exactly after Ctrl-C."""
    teacher = tiny_model()
    importance = neuron_importance(teacher, "l1")
    before = [weight.clone() for weight in teacher.parameters()]

    def student():
        pruned = variant(teacher)
        prune_neurons(pruned, importance, ratio=0.5)
        pruned.get_output_embeddings().requires_grad_(False)
        return pruned

    settings = SETTINGS | {"mlps_only": True}
    first, again = student(), student()
    expected = losses(distill(teacher, first, BATCHES, **settings))
    attention = [model.model.layers[0].self_attn.q_proj.weight.data_ptr() for model in (teacher, first)]
    assert attention[0] == attention[1]
    assert [name for name, weight in first.named_parameters() if not weight.requires_grad] == ["lm_head.weight"]
    interrupt(lambda: distill(teacher, student(), BATCHES, **settings, checkpoint_dir=tmp_path), after=5)
    assert losses(distill(teacher, again, BATCHES, **settings, checkpoint_dir=tmp_path)) == expected
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert all(map(torch.equal, teacher.parameters(), before))


# A run that stopped goes on


def bypassed(model, **options):
    bypass_attention(model, [1], **options)
    return model


def removed(model):
    return bypassed(model, remove=True)


def adaptive(model):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w2"
    return make_adaptive(model, calibrate(model, tokenizer, [words(range(3, 3 + n)) for n in range(3, 15)]))


def uneven(model):
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.5, layers=[1, 2])
    remove_blocks(model, [3])
    return model


@pytest.mark.parametrize(
    ("family", "shape", "given", "setting"),
    [
        *((family, bypassed, {}, {}) for family in FAMILIES),
        *((family, shape, {}, {}) for family in ("gpt2", "llama", "gemma3_text") for shape in (removed, adaptive)),
        ("gpt2", uneven, {}, {}),
        ("llama", uneven, {"dtype": torch.bfloat16}, {}),
        ("llama", uneven, {}, {"train_embedding": False}),
        ("llama", uneven, {}, {"lora_rank": 4, "lr": 1e-2}),
    ],
)
def test_an_interrupted_run_goes_on_exactly(family, shape, given, setting, tmp_path):
    """Twice. A weight that never got a gradient has no averages, one that got its first one late has younger ones."""
    text = tiny_batches(rows=10, size=1, padding="left")
    settings = (
        SETTINGS | {"seed": 6} | setting
    )  # the shortest row is first: there the adaptive one leaves attention out

    def models():
        teacher, student = pair(family, layers=4, **given)
        return teacher, shape(student)

    teacher, unbroken = models()
    expected = distill(teacher, unbroken, text, **settings)
    averages = []
    for after in (1, 6):
        interrupt(lambda: distill(*models(), text, **settings, checkpoint_dir=tmp_path), after=after)
        averages.append(sum(key.startswith("exp_avg.") for key in load_file(tmp_path / CHECKPOINT)))
    if shape in (bypassed, adaptive):
        assert averages[0] < len(list(unbroken.parameters()))
    for _ in ("resumed", "finished"):
        teacher, other = models()
        history = distill(teacher, other, text, **settings, checkpoint_dir=tmp_path)
        assert losses(history) == losses(expected) and history.validation == expected.validation
        assert all(map(torch.equal, unbroken.parameters(), other.parameters()))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize("setting", [{}, {"lora_rank": 4, "lr": 1e-2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_interrupted_student_itself_goes_on(dtype, setting, tmp_path):
    """In a notebook: Ctrl-C, and the same cell again. Adapters are gone meanwhile."""
    settings = SETTINGS | setting
    expected = losses(distill(*pair(dtype=dtype), BATCHES, **settings))
    teacher, student = pair(dtype=dtype)
    torch.manual_seed(123)  # whatever was drawn before: a run has a seed of its own
    before = [weight.detach().float().clone() for weight in student.parameters()]
    interrupt(lambda: distill(teacher, student, BATCHES, **settings, checkpoint_dir=tmp_path), after=5)
    assert all(map(torch.equal, student.parameters(), before)) == ("lora_rank" in setting)
    saved = (tmp_path / CHECKPOINT).read_bytes()
    cut = bypassed(copy.deepcopy(student))
    assert losses(distill(teacher, student, BATCHES, **settings, checkpoint_dir=tmp_path)) == expected
    (tmp_path / CHECKPOINT).write_bytes(saved)
    for other in (student, cut):  # it has learned more since, or lost something
        with pytest.raises(CheckpointMismatch, match="student before training: "):
            distill(teacher, other, BATCHES, **settings, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(("place", "method", "call"), [(Processes, "measure", 2), (History, "add_step", 4)])
def test_ctrl_c_at_a_bad_moment(place, method, call, tmp_path, monkeypatch):
    """In a measurement, and where the weights have moved but the history doesn't know it yet."""
    expected = distill(*pair(), BATCHES, **SETTINGS)
    original, calls = getattr(place, method), []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(*pair(), BATCHES, **SETTINGS, checkpoint_dir=tmp_path)
    history = distill(*pair(), BATCHES, **SETTINGS, checkpoint_dir=tmp_path)
    assert losses(history) == losses(expected)
    assert history.validation == expected.validation


TESTS = Path(__file__).resolve().parents[3]
PATHS = [str(TESTS), str(TESTS.parent)]  # the makers, this clone's package
KILLED = """
import sys
sys.path[:0] = {paths!r}
from tiny_distillation import BATCHES, pair
from course_utils.healing.distillation import distill
teacher, student = pair()
distill(teacher, student, BATCHES, steps=100_000, lr=1e-3, save_every=1, checkpoint_dir={folder!r})
"""


def test_killed_while_saving_loses_nothing_that_was_saved(tmp_path):
    script = KILLED.format(paths=PATHS, folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_for(tmp_path / CHECKPOINT, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_file(tmp_path / CHECKPOINT)  # whole
    with pytest.raises(CheckpointMismatch, match="steps: 100000 then, 9 now"):
        distill(*pair(), BATCHES, steps=9, lr=1e-3, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-3}, "lr: 0.001 then, 0.002 now"),
        ({"train_embedding": False}, "train_embedding: True then, False now"),
        ({"batches": tiny_batches(rows=16, size=2, seed=9)}, "text: '8 batches, 176 tokens to predict, .* now"),
        ({"batches": tiny_batches(rows=16, size=4)}, "text: '8 batches, 176 .* then, '4 batches, 176 .* now"),
        ({"validation": HELD_OUT}, "validation text: 'none' then, '2 batches, 44 tokens to predict, .* now"),
        ({"student": with_another_weight}, "student before training: 'llama of .* then, 'llama of .* now"),
        ({"student": bypassed}, "student before training: "),
        ({"teacher": with_another_weight}, "teacher: 'llama of .* parameters, .* then, 'llama of .* now"),
        ({"teacher": bypassed}, "teacher: "),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    """Of all that makes a run, one thing differs each time."""
    settings = {"steps": 2, "lr": 1e-3, "checkpoint_dir": tmp_path}
    distill(*pair(), BATCHES, **settings)
    saved = (tmp_path / CHECKPOINT).read_bytes()
    change = dict(change)
    teacher, student = (
        change.pop(name, lambda m: m)(m) for name, m in zip(("teacher", "student"), pair(), strict=True)
    )
    batches = change.pop("batches", BATCHES)
    with pytest.raises(CheckpointMismatch, match=f"another run. {message}") as refused:
        distill(teacher, student, batches, **settings | change)
    assert str(refused.value).count(" then, ") == 1
    assert (tmp_path / CHECKPOINT).read_bytes() == saved
    (tmp_path / CHECKPOINT).write_bytes(b"broken")
    with pytest.raises(CheckpointMismatch, match="can't be read"):
        distill(teacher, student, batches, **settings | change)


def test_settings_that_change_nothing_may_change(tmp_path):
    expected = losses(distill(*pair(), BATCHES, **SETTINGS))
    interrupt(lambda: distill(*pair(), BATCHES, **SETTINGS, checkpoint_dir=tmp_path), after=5)
    given = distill(*pair(), BATCHES, **SETTINGS | {"save_every": 7, "recompute": True}, checkpoint_dir=tmp_path)
    torch.testing.assert_close(torch.tensor(losses(given)), torch.tensor(expected), rtol=1e-5, atol=1e-6)


# Settings, and what is refused


def test_a_recipe_is_its_settings_and_settings_win():
    recipe = Recipe(steps=30, lr=1e-3)
    results = [
        losses(distill(*pair(), BATCHES, steps=3, lr=1e-3, alpha=0.5)),
        losses(distill(*pair(), BATCHES, Recipe(steps=3, lr=1e-3, alpha=0.5))),
        losses(distill(*pair(), BATCHES, recipe, steps=3, alpha=0.5)),
    ]
    assert results[0] == results[1] == results[2] and recipe == Recipe(steps=30, lr=1e-3)


def test_models_that_do_not_fit():
    teacher, student = pair()
    with pytest.raises(ValueError, match="same object"):
        distill(teacher, teacher, BATCHES, steps=1, lr=1e-3)
    with pytest.raises(ValueError, match="97 tokens, the teacher 101"):
        distill(tiny_model(vocab_size=101), student, BATCHES, steps=1, lr=1e-3)
    with torch.no_grad():
        student.get_input_embeddings().weight.fill_(float("nan"))
    norm = student.model.norm.weight.clone()
    with pytest.raises(FloatingPointError, match="loss of step 1 is nan"):
        distill(teacher, student, BATCHES, steps=1, lr=1e-3)
    assert torch.equal(student.model.norm.weight, norm)  # nan hasn't spread
