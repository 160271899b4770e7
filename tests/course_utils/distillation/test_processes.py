"""Two processes learn what one learns, whole or cut up among them, and launches that don't fit are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from tiny import tiny_batches
from tiny_distillation import BATCHES, HELD_OUT, interrupt, losses, pair

from course_utils.attention import bypass_attention
from course_utils.distillation import distill, processes, training
from course_utils.width import neuron_importance, prune_neurons

HERE = Path(__file__).resolve().parent
PATHS = [str(HERE), str(HERE.parents[1]), str(HERE.parents[2])]  # this module, the makers, this clone's package
PROCESSES = """
import sys
sys.path[:0] = {paths!r}
import torch
from accelerate import PartialState
import test_processes
given = getattr(test_processes, {scenario!r})({folder!r})
if PartialState().is_main_process:
    torch.save((PartialState().num_processes, given), {path!r})
"""


def in_two_processes(scenario, folder):
    """What a function of this module, called with ``folder`` in two processes, returns in the first."""
    script, path = folder / "run.py", folder / "result.pt"
    script.write_text(PROCESSES.format(paths=PATHS, scenario=scenario.__name__, folder=str(folder), path=str(path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*launch, str(script)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
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
    "mlps": (pair, {}, {"mlps_only": True}),
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
    before, step = [weight.clone() for weight in student.parameters()], training._Trainer.step
    training._Trainer.step = stop
    with pytest.raises(RuntimeError):
        outcome(teacher, student)
    training._Trainer.step = step
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
