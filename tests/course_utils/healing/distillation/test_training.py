"""Distillation learns from the teacher, doesn't depend on how it is split, and goes on where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from programs import wait_for
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer, words
from tiny_distillation import BATCHES, HELD_OUT, SETTINGS, interrupt, losses, pair, with_another_weight

from course_utils.healing.distillation import CheckpointMismatch, History, Recipe, distill
from course_utils.healing.distillation.processes import Alone
from course_utils.healing.distillation.state import CHECKPOINT
from course_utils.healing.distillation.teacher_states import remember_teacher
from course_utils.models import architectures
from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.adaptive import calibrate, make_adaptive
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons


def remembered(teacher, text, _folder):
    return remember_teacher(teacher, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_comes_nearer_to_its_teacher(family):
    teacher, student = pair(family)
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    history = distill(teacher, student, BATCHES, steps=40, lr=3e-3, validation=HELD_OUT, validate_every=20)
    assert [row["step"] for row in history.validation] == [20, 40]
    assert losses(history)[-1] < 0.7 * losses(history)[0]
    assert history.steps[-1]["tokens"] == 40 * 2 * 11
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.named_parameters())
    assert all(weight.requires_grad and weight.grad is None for weight in teacher.parameters())
    assert not student.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_shares_its_weights_learns_alone(dtype):
    teacher = tiny_model(dtype=dtype)
    student = variant(teacher)
    remove_blocks(student, [1])
    before = [weight.clone() for weight in teacher.parameters()]
    distill(teacher, student, BATCHES, steps=3, lr=3e-3)
    assert all(map(torch.equal, teacher.parameters(), before))


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_decay_and_vectors_never_do(family):
    """A head of zeros lets no gradient through: what lies before it moves by the decay alone."""
    teacher, student = pair(family, tie_word_embeddings=False)
    head = student.get_output_embeddings().weight
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.5)  # norms and biases of 0 wouldn't show it
        head.zero_()
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    distill(teacher, student, BATCHES, steps=1, lr=1e-3, weight_decay=1.0)
    for name, weight in student.named_parameters():
        if weight is not head:
            expected = before[name] * (1 - 1e-3) if weight.dim() == 2 else before[name]
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0, msg=name)


def test_every_step_and_every_batch_of_it_drops_something_else():
    teacher, student = pair("gpt2")
    masks = []
    student.transformer.drop.register_forward_hook(lambda _module, _args, states: masks.append(states == 0))
    distill(teacher, student, BATCHES[:1], steps=3, lr=1e-3, accumulate=2)
    assert len(masks) == len({mask.numpy().tobytes() for mask in masks}) == 6


def test_what_a_batch_drops_does_not_depend_on_who_computes_the_others(monkeypatch):
    """As if two processes shared the batches of each step."""
    masks = {}
    for own in (slice(None), slice(0, None, 2), slice(1, None, 2)):
        teacher, student = pair("gpt2")
        dropped = masks[str(own)] = []
        student.transformer.drop.register_forward_hook(
            lambda _module, _args, states, dropped=dropped: dropped.append((states == 0).tolist())
        )
        monkeypatch.setattr(Alone, "share", lambda _self, batches, own=own: iter(batches[own]))
        distill(teacher, student, BATCHES, steps=2, lr=1e-3, accumulate=4)
    whole, first, second = masks.values()
    assert whole == [mask for both in zip(first, second, strict=True) for mask in both]


def test_the_loss_teaches():
    teacher, student = pair()
    history = distill(teacher, student, BATCHES, steps=40, lr=3e-3)
    assert losses(history)[-1] < 0.7 * losses(history)[0]


@pytest.mark.parametrize("shape", ["uneven", "fewer blocks", "bypassed", "removed"])
def test_every_pruned_shape_can_learn(shape):
    teacher, student = tiny_model(layers=4), tiny_model(layers=4, seed=1)
    if shape == "uneven":
        prune_neurons(student, neuron_importance(student, "l1"), ratio=0.5, layers=[1, 2])
    elif shape == "fewer blocks":
        remove_blocks(student, [1])
    else:
        bypass_attention(student, [1, 2], remove=shape == "removed")
    history = distill(teacher, student, BATCHES, steps=20, lr=3e-3)
    assert losses(history)[-1] < losses(history)[0]


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


def answers_alone(batches):
    """The second half of each row is to be learned."""
    return [batch | {"labels": batch["input_ids"].where(torch.arange(12) >= 6, -100)} for batch in batches]


@pytest.mark.parametrize("known", [lambda teacher, _text, _folder: teacher, remembered], ids=["", "kept"])
def test_only_what_is_to_be_learned_counts(known, tmp_path):
    """A student that answers as its teacher has no loss, whatever it thinks of the question."""
    teacher, student = tiny_model(), tiny_model()
    text = answers_alone(BATCHES)
    history = distill(known(teacher, text, tmp_path), student, text, steps=2, lr=1e-6)
    assert max(losses(history)) < 1e-3 and history.steps[0]["tokens"] == 2 * 6
    _, other = pair()
    result = distill(known(teacher, text, tmp_path), other, text[:1], steps=1, lr=1e-6)
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

    results, stored = [], Stored()
    for text in (BATCHES, stored):
        teacher, student = pair()
        results.append(losses(distill(teacher, student, text, steps=len(BATCHES), lr=1e-3)))
    assert results[0] == results[1] and stored.most <= 3 < len(BATCHES)


def test_recomputed_activations_change_nothing():
    results = []
    for recompute in (False, True):
        teacher, student = pair()
        results.append(losses(distill(teacher, student, BATCHES, steps=4, lr=1e-3, recompute=recompute)))
    torch.testing.assert_close(*map(torch.tensor, results), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_leaves_no_warnings_and_no_hooks(family):
    teacher, student = pair(family)
    distill(teacher, student, BATCHES, steps=1, lr=1e-3, recompute=True)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
    assert not student.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_embedding_can_be_left_as_it_is(family, tied, recompute, tmp_path):
    teacher, student = pair(family, tie_word_embeddings=tied)
    embedding, head = student.get_input_embeddings().weight, student.get_output_embeddings().weight
    assert (embedding is head) == tied
    before, head_before = embedding.clone(), head.clone()
    settings = {"steps": 20, "lr": 3e-3, "train_embedding": False, "recompute": recompute, "checkpoint_dir": tmp_path}
    history = distill(teacher, student, BATCHES, **settings)
    assert losses(history)[-1] < losses(history)[0]
    assert torch.equal(embedding, before)
    assert torch.equal(head, head_before) == tied
    assert all(weight.requires_grad and weight.grad is None for weight in student.parameters())
    name = {id(weight): name for name, weight in student.named_parameters()}[id(embedding)]
    saved = load_file(tmp_path / CHECKPOINT)
    assert {key for key in saved if key.endswith(name)} == {f"weight.{name}"}  # nothing of AdamW's


def parts_of_mlps(model):
    return {
        id(w) for mlp in describe(model).mlps for part in (*mlp.inputs, mlp.output) for w in part.module.parameters()
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mlps_alone_can_learn(family, recompute, tmp_path):
    teacher, student = pair(family)
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    mlps = parts_of_mlps(student)
    settings = {"steps": 20, "lr": 3e-3, "mlps_only": True, "recompute": recompute, "checkpoint_dir": tmp_path}
    history = distill(teacher, student, BATCHES, **settings)
    assert losses(history)[-1] < losses(history)[0]
    learned = {name for name, weight in student.named_parameters() if id(weight) in mlps}
    for name, weight in student.named_parameters():
        assert torch.equal(weight, before[name]) == (name not in learned), name
        assert weight.requires_grad and weight.grad is None
    saved = load_file(tmp_path / CHECKPOINT).keys()
    assert {key.removeprefix("exp_avg.") for key in saved if key.startswith("exp_avg.")} == learned


def test_what_does_not_learn_stays_shared():
    """A variant of a float32 teacher needs memory for its MLPs only, and goes on exactly after Ctrl-C."""
    teacher = tiny_model()
    importance = neuron_importance(teacher, "l1")
    before = [weight.clone() for weight in teacher.parameters()]

    def student():
        pruned = variant(teacher)
        prune_neurons(pruned, importance, ratio=0.5)
        return pruned

    settings = SETTINGS | {"mlps_only": True}
    first = student()
    expected = losses(distill(teacher, first, BATCHES, **settings))
    attention = [model.model.layers[0].self_attn.q_proj.weight.data_ptr() for model in (teacher, first)]
    assert attention[0] == attention[1]
    assert all(map(torch.equal, teacher.parameters(), before))
    with tempfile.TemporaryDirectory() as folder:
        interrupt(lambda: distill(teacher, student(), BATCHES, **settings, checkpoint_dir=folder), after=5)
        again = student()
        assert losses(distill(teacher, again, BATCHES, **settings, checkpoint_dir=folder)) == expected
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert all(map(torch.equal, teacher.parameters(), before))


def test_requires_grad_is_as_before_afterwards():
    teacher, student = pair()
    student.get_output_embeddings().requires_grad_(False)
    wanted = [weight.requires_grad for weight in student.parameters()]
    distill(teacher, student, BATCHES, steps=1, lr=1e-3)
    assert [weight.requires_grad for weight in student.parameters()] == wanted


def test_a_frozen_embedding_goes_on_exactly(tmp_path):
    settings = SETTINGS | {"train_embedding": False}
    teacher, student = pair()
    expected = distill(teacher, student, BATCHES, **settings)
    interrupt(lambda: distill(teacher, pair()[1], BATCHES, **settings, checkpoint_dir=tmp_path), after=5)
    _, fresh = pair()
    assert losses(distill(teacher, fresh, BATCHES, **settings, checkpoint_dir=tmp_path)) == losses(expected)
    assert all(map(torch.equal, student.parameters(), fresh.parameters()))
    with pytest.raises(CheckpointMismatch, match="train_embedding: False then, True now"):
        distill(teacher, pair()[1], BATCHES, **SETTINGS, checkpoint_dir=tmp_path)


def test_a_frozen_embedding_needs_less_memory(monkeypatch):
    from course_utils.measuring.benchmarking import peak_memory

    monkeypatch.setattr(architectures, "_LOGITS", 40_001)  # a token a chunk: little beside the embedding

    def peak(train_embedding):
        teacher, student = pair(vocab_size=40_001, tie_word_embeddings=True)
        settings = {"steps": 2, "lr": 1e-3, "train_embedding": train_embedding}
        return peak_memory(lambda: distill(teacher, student, BATCHES[:1], **settings))

    embedding = 40_001 * 32 * 4
    assert peak(True) - peak(False) > 4 * embedding  # gradient, AdamW's two, the head's sum


def test_bfloat16_keeps_float32_weights():
    teacher, student = pair(dtype=torch.bfloat16)
    history = distill(teacher, student, BATCHES, steps=20, lr=3e-3, precision=torch.bfloat16)
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert losses(history)[-1] < losses(history)[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 has dropout
def test_an_interrupted_run_goes_on_exactly(family, tmp_path):
    teacher, student = pair(family)
    expected = distill(teacher, student, BATCHES, **SETTINGS)
    interrupt(lambda: distill(teacher, pair(family)[1], BATCHES, **SETTINGS, checkpoint_dir=tmp_path), after=5)
    _, fresh = pair(family)
    history = distill(teacher, fresh, BATCHES, **SETTINGS, checkpoint_dir=tmp_path)
    assert losses(history) == losses(expected)
    assert history.validation == expected.validation
    for a, b in zip(student.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    _, again = pair(family)  # a finished run only loads
    assert losses(distill(teacher, again, BATCHES, **SETTINGS, checkpoint_dir=tmp_path)) == losses(expected)
    assert all(map(torch.equal, student.parameters(), again.parameters()))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def bypassed(model, **options):
    bypass_attention(model, [1], **options)
    return model


def removed(model):
    return bypassed(model, remove=True)


def adaptive(model):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w2"
    return make_adaptive(model, calibrate(model, tokenizer, [words(range(3, 3 + n)) for n in range(3, 15)]))


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *((family, bypassed) for family in FAMILIES),
        *((family, shape) for family in ("gpt2", "llama", "gemma3_text") for shape in (removed, adaptive)),
    ],
)
def test_a_student_that_leaves_attention_out_goes_on_exactly(family, shape, tmp_path):
    """What never got a gradient has no averages, what got its first one late has younger ones."""
    text = tiny_batches(rows=10, size=1, padding="left")
    settings = SETTINGS | {"seed": 6}  # the shortest row comes first, for which the adaptive one leaves attention out

    def student():
        return shape(pair(family, layers=4)[1])

    teacher, unbroken = pair(family, layers=4)[0], student()
    expected = distill(teacher, unbroken, text, **settings)
    averages = []
    for after in (1, 6):
        interrupt(lambda: distill(teacher, student(), text, **settings, checkpoint_dir=tmp_path), after=after)
        averages.append(sum(key.startswith("exp_avg.") for key in load_file(tmp_path / CHECKPOINT)))
    assert (averages[0] < len(list(unbroken.parameters()))) == (shape is not removed)
    for _ in ("resumed", "finished"):
        other = student()
        history = distill(teacher, other, text, **settings, checkpoint_dir=tmp_path)
        assert losses(history) == losses(expected) and history.validation == expected.validation
        assert all(map(torch.equal, unbroken.parameters(), other.parameters()))


def test_the_interrupted_student_with_something_cut_out_is_another(tmp_path):
    teacher, student = pair()
    interrupt(lambda: distill(teacher, student, BATCHES, **SETTINGS, checkpoint_dir=tmp_path), after=5)
    with pytest.raises(CheckpointMismatch, match="student before training: "):
        distill(teacher, bypassed(student), BATCHES, **SETTINGS, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(("place", "method", "call"), [(Alone, "measure", 2), (History, "add_step", 4)])
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
    teacher, student = pair()
    with pytest.raises(CheckpointMismatch, match="steps: 100000 then, 9 now"):
        distill(teacher, student, BATCHES, steps=9, lr=1e-3, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-3}, "lr: 0.001 then, 0.002 now"),
        ({"alpha": 0.2}, "alpha: 0.0 then, 0.2 now"),
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


def test_a_run_in_16_bits_goes_on_with_the_student_as_it_was_given(tmp_path):
    expected = distill(*pair(dtype=torch.bfloat16), BATCHES, **SETTINGS)
    interrupt(lambda: distill(*pair(dtype=torch.bfloat16), BATCHES, **SETTINGS, checkpoint_dir=tmp_path), after=5)
    history = distill(*pair(dtype=torch.bfloat16), BATCHES, **SETTINGS, checkpoint_dir=tmp_path)
    assert losses(history) == losses(expected)
    with pytest.raises(CheckpointMismatch, match="teacher: .*student before training: "):
        distill(*pair(), BATCHES, **SETTINGS, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_interrupted_student_itself_goes_on(dtype, tmp_path):
    """In a notebook: Ctrl-C, and the same cell again."""
    expected = losses(distill(*pair(dtype=dtype), BATCHES, **SETTINGS))
    teacher, student = pair(dtype=dtype)
    interrupt(lambda: distill(teacher, student, BATCHES, **SETTINGS, checkpoint_dir=tmp_path), after=5)
    saved = (tmp_path / CHECKPOINT).read_bytes()
    assert losses(distill(teacher, student, BATCHES, **SETTINGS, checkpoint_dir=tmp_path)) == expected
    (tmp_path / CHECKPOINT).write_bytes(saved)
    with pytest.raises(CheckpointMismatch, match="student before training: "):  # it has learned more since
        distill(teacher, student, BATCHES, **SETTINGS, checkpoint_dir=tmp_path)


def test_what_changes_nothing_may_change(tmp_path):
    expected = losses(distill(*pair(), BATCHES, **SETTINGS))
    interrupt(lambda: distill(*pair(), BATCHES, **SETTINGS, checkpoint_dir=tmp_path), after=5)
    given = distill(*pair(), BATCHES, **SETTINGS | {"save_every": 7, "recompute": True}, checkpoint_dir=tmp_path)
    torch.testing.assert_close(torch.tensor(losses(given)), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_checkpoint_names_every_setting(tmp_path):
    recipe = Recipe(steps=1, lr=1e-3, precision=torch.bfloat16)
    distill(*pair(), BATCHES, recipe, checkpoint_dir=tmp_path)
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        saved = json.loads(file.metadata()["state"])["run"]
    assert {name: saved[name] for name in recipe.as_json()} == recipe.as_json()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"lr": 0}, ValueError, "'lr' must be a number above 0"),
        ({"learning_rate": 1e-3}, TypeError, "There is no setting 'learning_rate'; there are steps, lr, alpha"),
        ({"batches": []}, ValueError, "empty"),
    ],
)
def test_bad_settings_change_nothing(given, error, message):
    teacher, student = pair(dtype=torch.bfloat16)
    batches = given.pop("batches", BATCHES)
    with pytest.raises(error, match=message):
        distill(teacher, student, batches, **{"steps": 1, "lr": 1e-3} | given)
    assert student.dtype == torch.bfloat16


def test_a_recipe_is_its_settings_and_settings_win():
    results = [
        losses(distill(*pair(), BATCHES, steps=3, lr=1e-3, alpha=0.5)),
        losses(distill(*pair(), BATCHES, Recipe(steps=3, lr=1e-3, alpha=0.5))),
        losses(distill(*pair(), BATCHES, Recipe(steps=30, lr=1e-3), steps=3, alpha=0.5)),
    ]
    assert results[0] == results[1] == results[2]


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
