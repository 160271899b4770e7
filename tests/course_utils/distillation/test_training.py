"""Distillation learns from the teacher, doesn't depend on how it is split, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny_batches, tiny_model
from tiny_distillation import BATCHES, HELD_OUT, SETTINGS, interrupt, losses, pair

from course_utils import architectures
from course_utils.attention import bypass_attention
from course_utils.depth import remove_blocks
from course_utils.distillation import CheckpointMismatch, History, distill, processes, training
from course_utils.distillation.losses import LOSSES
from course_utils.distillation.training import CHECKPOINT
from course_utils.width import neuron_importance, prune_neurons


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


def test_older_checkpoints_trained_the_embedding(tmp_path):
    """Their settings don't mention it."""
    teacher, student = pair()
    expected = losses(distill(teacher, student, BATCHES, **SETTINGS, checkpoint_dir=tmp_path))
    path = tmp_path / CHECKPOINT
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    del state["identity"]["train_embedding"]
    save_file(load_file(path), path, metadata={"state": json.dumps(state)})
    assert losses(distill(teacher, pair()[1], BATCHES, **SETTINGS, checkpoint_dir=tmp_path)) == expected


def test_a_frozen_embedding_needs_less_memory(monkeypatch):
    from course_utils.benchmarking import peak_memory

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


TESTS = str(Path(__file__).resolve().parents[2])
KILLED = """
import sys
sys.path.insert(0, {tests!r})
from tiny_distillation import BATCHES, pair
from course_utils.distillation import distill
teacher, student = pair()
distill(teacher, student, BATCHES, steps=100_000, lr=1e-3, save_every=1, checkpoint_dir={folder!r})
"""


def test_killed_while_saving_loses_nothing_that_was_saved(tmp_path):
    script = KILLED.format(tests=TESTS, folder=str(tmp_path))
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
        ({"beta": 0.2}, "beta: 0.5 then, 0.2 now"),
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
import sys
sys.path[:0] = [{tests!r}, {here!r}]
import torch
from accelerate import PartialState
import test_training
given = getattr(test_training, {scenario!r})({folder!r})
if PartialState().is_main_process:
    torch.save((PartialState().num_processes, given), {path!r})
"""


def in_two_processes(scenario, folder):
    """What a function of this module, called with ``folder`` in two processes, returns in the first."""
    script, path = folder / "run.py", folder / "result.pt"
    names = {"tests": TESTS, "here": os.path.dirname(__file__), "scenario": scenario.__name__, "folder": str(folder)}
    script.write_text(PROCESSES.format(path=str(path), **names))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([*launch, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    processes, given = torch.load(path, weights_only=False)
    assert processes == 2
    return given


SHARED = {"steps": 5, "lr": 1e-3, "accumulate": 4, "validation": tiny_batches(rows=6, seed=9), "validate_every": 5}


def outcome(teacher, student, **settings):
    history = distill(teacher, student, BATCHES, **SHARED | settings)
    return {
        "losses": torch.tensor(losses(history)),
        "norms": torch.tensor([row["gradient_norm"] for row in history.steps]),
        "validation": torch.tensor([row["loss"] for row in history.validation]),
        "weights": [weight.detach().clone() for weight in student.parameters()],
    }


def check_equal(given, expected):
    for name in ("losses", "norms", "validation"):
        torch.testing.assert_close(given[name], expected[name], rtol=1e-4, atol=1e-5)
    for a, b in zip(given["weights"], expected["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def data_parallel(_folder):
    return outcome(*pair())


def test_two_processes_equal_one(tmp_path):
    """With three batches of held-out text, which two processes can't share equally."""
    check_equal(in_two_processes(data_parallel, tmp_path), outcome(*pair()))


def uneven(**settings):
    teacher, student = pair(**settings)
    prune_neurons(student, neuron_importance(student, "l1"), ratio=0.5, layers=[1])
    bypass_attention(student, [2])
    return teacher, student


SHARDED = {
    "tied": (pair, {"tie_word_embeddings": True}, {}),
    "untied": (pair, {}, {"recompute": True}),
    "uneven": (uneven, {"tie_word_embeddings": True}, {"train_embedding": False}),
    "gpt2": (pair, {"family": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, {}),
}


def sharded(folder):
    """As ``accelerate launch --use_fsdp --fsdp_version 2`` has it, which wants a GPU: here its state is set by hand."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState

    def sharding(**options):
        accelerator = Accelerator(**options)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=load_once
        )
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    processes.Accelerator = sharding
    results = {}
    for name, (models, shape, settings) in SHARDED.items():
        load_once = name == "tied"
        results[name] = outcome(*models(**shape), **settings)
    settings = {"checkpoint_dir": folder, "save_every": 2}
    interrupt(lambda: outcome(*pair(), **settings), after=3)
    results["resumed"] = outcome(*pair(), **settings)
    teacher, student = pair()
    before, fit = [weight.clone() for weight in student.parameters()], training._step
    training._step = stop
    with pytest.raises(RuntimeError):
        outcome(teacher, student)
    training._step = fit
    results["failed"] = [torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)]
    return results


def stop(*_):
    raise RuntimeError


def test_sharded_processes_equal_one(tmp_path):
    given = in_two_processes(sharded, tmp_path)
    for name, (models, shape, settings) in SHARDED.items():
        check_equal(given[name], outcome(*models(**shape), **settings))
    check_equal(given["resumed"], outcome(*pair()))
    assert all(given["failed"])
    # The checkpoint is everybody's: one process goes on with it.
    alone = outcome(*pair(), checkpoint_dir=tmp_path)
    check_equal(alone, given["resumed"])
    assert torch.equal(alone["losses"], given["resumed"]["losses"])


@pytest.mark.parametrize(
    ("launched", "message"),
    [
        ({"distributed_type": DistributedType.DEEPSPEED}, "DeepSpeed and the first version of FSDP"),
        ({"distributed_type": DistributedType.FSDP}, "--fsdp_version 2"),
        ({"num_processes": 2, "device": torch.device("cuda", 1)}, "models are on cpu, .* gave this process cuda:1"),
        ({"num_processes": 2}, r"'accumulate' \(3\) must be a multiple of the number of processes \(2\)"),
    ],
)
def test_launches_that_do_not_fit(launched, message, monkeypatch):
    usual = {
        "distributed_type": DistributedType.NO,
        "is_fsdp2": False,
        "num_processes": 1,
        "device": torch.device("cpu"),
    }
    monkeypatch.setattr(processes, "Accelerator", lambda **_: SimpleNamespace(**usual | launched))
    with pytest.raises(ValueError, match=message):
        distill(*pair(), BATCHES, steps=1, lr=1e-3, accumulate=3)


def test_a_device_that_accelerate_chose_earlier_does_not_matter(monkeypatch):
    """Accelerate keeps one device a process: as if a run on a GPU had come first."""
    teacher, student = pair()
    expected = losses(distill(teacher, student, BATCHES, steps=2, lr=1e-3))
    monkeypatch.setattr(PartialState(), "device", torch.device("cuda", 0))
    with pytest.raises(ValueError, match="already been initialized"):
        Accelerator(cpu=True)
    teacher, student = pair()
    assert losses(distill(teacher, student, BATCHES, steps=2, lr=1e-3, validation=HELD_OUT)) == expected
    assert student.device.type == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "'steps' must be a whole number"),
        ({"lr": 0}, "'lr' must be a number above 0"),
        ({"lr": float("nan")}, "'lr'"),
        ({"loss": "mse"}, "forward_kl, reverse_kl, jsd; got 'mse'"),
        ({"temperature": -1}, "'temperature'"),
        ({"alpha": 1.5}, "'alpha' is a share"),
        ({"beta": 1.0}, "'beta' must lie between 0 and 1; got 1.0. For the ends take the two KLs"),
        ({"warmup": -0.1}, "'warmup'"),
        ({"accumulate": 0}, "'accumulate'"),
        ({"patience": 0}, "'patience'"),
        ({"train_embedding": 1}, "'train_embedding' must be True or False"),
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
