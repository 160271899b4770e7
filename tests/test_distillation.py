"""Distillation learns from the teacher, doesn't depend on how it is split, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, tiny_batches, tiny_model

from course_utils import distillation
from course_utils.attention import bypass_attention
from course_utils.depth import remove_blocks
from course_utils.distillation import CHECKPOINT, CheckpointMismatch, History, distill
from course_utils.distillation_losses import LOSSES
from course_utils.width import neuron_importance, prune_neurons

BATCHES = tiny_batches(rows=16, size=2)
HELD_OUT = tiny_batches(rows=4, size=2, seed=9)


def pair(family="llama", **settings):
    """A teacher, and a narrower student that knows nothing yet."""
    teacher, student = tiny_model(family, **settings), tiny_model(family, seed=1, **settings)
    prune_neurons(student, neuron_importance(student, "random"), ratio=0.5)
    return teacher, student


def losses(history):
    return [row["loss"] for row in history.steps]


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


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches(loss):
    teacher, student = pair()
    history = distill(teacher, student, BATCHES, steps=40, lr=3e-3, loss=loss)
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


def test_recomputed_activations_change_nothing():
    results = []
    for recompute in (False, True):
        teacher, student = pair()
        results.append(losses(distill(teacher, student, BATCHES, steps=4, lr=1e-3, recompute=recompute)))
    torch.testing.assert_close(*map(torch.tensor, results), rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_float32_weights():
    teacher, student = pair(dtype=torch.bfloat16)
    history = distill(teacher, student, BATCHES, steps=20, lr=3e-3, precision=torch.bfloat16)
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert losses(history)[-1] < losses(history)[0]


SETTINGS = {"steps": 9, "lr": 1e-3, "validation": HELD_OUT, "validate_every": 4, "save_every": 2}


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 has dropout
def test_an_interrupted_run_goes_on_exactly(family, tmp_path, monkeypatch):
    teacher, student = pair(family)
    expected = distill(teacher, student, BATCHES, **SETTINGS)

    step, calls = distillation._step, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args)

    teacher, other = pair(family)
    monkeypatch.setattr(distillation, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, other, BATCHES, **SETTINGS, checkpoint_dir=tmp_path)
    monkeypatch.undo()
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


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_distillation import BATCHES, pair
from course_utils.distillation import distill
teacher, student = pair()
distill(teacher, student, BATCHES, steps=100_000, lr=1e-3, save_every=1, checkpoint_dir={folder!r})
"""


def test_killed_while_saving_loses_nothing_that_was_saved(tmp_path):
    script = KILLED.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
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
        ({"loss": "jsd"}, "loss: 'forward_kl' then, 'jsd' now"),
        ({"batches": HELD_OUT}, "data: "),
        ({"student": "other shape"}, "student: "),
        ({"teacher": "other weights"}, "teacher: "),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    teacher, student = pair()
    settings = {"steps": 2, "lr": 1e-3, "checkpoint_dir": tmp_path}
    distill(teacher, student, BATCHES, **settings)
    if change.pop("student", None):
        prune_neurons(student, neuron_importance(student, "l1"), ratio=0.5)
    if change.pop("teacher", None):
        teacher = tiny_model(seed=5)
    batches = change.pop("batches", BATCHES)
    with pytest.raises(CheckpointMismatch, match=message):
        distill(teacher, student, batches, **settings | change)
    (tmp_path / CHECKPOINT).write_bytes(b"broken")
    with pytest.raises(CheckpointMismatch, match="can't be read"):
        distill(teacher, student, batches, **settings | change)


def test_patience():
    teacher, student = pair()
    history = distill(
        teacher, student, BATCHES, steps=40, lr=1.0, validation=HELD_OUT, validate_every=1, patience=3, warmup=0.0
    )
    assert history.stopped_early
    assert len(history.steps) < 40


PROCESSES = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from accelerate import PartialState
from test_distillation import HELD_OUT, BATCHES, losses, pair
from course_utils.distillation import distill
teacher, student = pair()
history = distill(teacher, student, BATCHES, steps=5, lr=1e-3, accumulate=4, validation=HELD_OUT, validate_every=5)
if PartialState().is_main_process:
    processes, weights = PartialState().num_processes, list(student.parameters())
    torch.save((processes, losses(history), history.validation, weights), {path!r})
"""


def test_two_processes_equal_one(tmp_path):
    script, path = tmp_path / "run.py", tmp_path / "result.pt"
    script.write_text(PROCESSES.format(tests=os.path.dirname(__file__), path=str(path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([*launch, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    processes, given, validation, weights = torch.load(path, weights_only=False)
    assert processes == 2
    teacher, student = pair()
    history = distill(teacher, student, BATCHES, steps=5, lr=1e-3, accumulate=4, validation=HELD_OUT, validate_every=5)
    torch.testing.assert_close(torch.tensor(given), torch.tensor(losses(history)), rtol=1e-5, atol=1e-6)
    assert validation[0]["loss"] == pytest.approx(history.validation[0]["loss"], rel=1e-4)
    for a, b in zip(weights, student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "'steps' must be a whole number"),
        ({"lr": 0}, "'lr' must be a number above 0"),
        ({"lr": float("nan")}, "'lr'"),
        ({"loss": "mse"}, "forward_kl, reverse_kl, jsd; got 'mse'"),
        ({"temperature": -1}, "'temperature'"),
        ({"alpha": 1.5}, "'alpha' is a share"),
        ({"warmup": -0.1}, "'warmup'"),
        ({"accumulate": 0}, "'accumulate'"),
        ({"patience": 0}, "'patience'"),
        ({"precision": torch.float16}, "torch.bfloat16; got torch.float16"),
        ({"batches": []}, "empty"),
    ],
)
def test_bad_settings_change_nothing(settings, message):
    teacher, student = pair(dtype=torch.bfloat16)
    batches = settings.pop("batches", BATCHES)
    with pytest.raises(ValueError, match=message):
        distill(teacher, student, batches, **{"steps": 1, "lr": 1e-3} | settings)
    assert student.dtype == torch.bfloat16


def test_models_that_do_not_fit():
    teacher, student = pair()
    with pytest.raises(ValueError, match="same object"):
        distill(teacher, teacher, BATCHES, steps=1, lr=1e-3)
    with pytest.raises(ValueError, match="97 tokens, the teacher 101"):
        distill(tiny_model(vocab_size=101), student, BATCHES, steps=1, lr=1e-3)
    with torch.no_grad():
        student.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss of step 1 is nan"):
        distill(teacher, student, BATCHES, steps=1, lr=1e-3)


def test_history_as_frame_and_figure():
    history = History(
        [{"step": i, "loss": 2 / i, "lr": 1, "gradient_norm": 1, "tokens": i, "seconds": i} for i in (1, 2)]
    )
    history.validation.append({"step": 2, "loss": 0.5})
    assert history.frame()["validation"].tolist()[1] == 0.5
    ax = history.plot()
    assert [line.get_xydata()[-1].tolist() for line in ax.lines] == [[2, 1.0], [2, 0.5]]
    assert json.loads(json.dumps(vars(history)))
