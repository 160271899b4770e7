"""Two processes learn what one learns, whole or sharded, and launches that don't fit are refused."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading, patch_environment
from programs import in_two_processes, shard_by_hand
from tiny import tiny_batches, tiny_model
from tiny_distillation import BATCHES, HELD_OUT, interrupt, losses, pair
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig

from course_utils.healing.distillation import Recipe, distill, processes, training
from course_utils.healing.distillation.memory import memory_plan, outline
from course_utils.measuring import benchmarking
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.width import neuron_importance, prune_neurons

WITH_DROPOUT = ("gpt2", "opt")
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


def by_itself(**settings):
    with processes.alone():
        return outcome(*pair(), **settings)


def data_parallel(folder):
    """Shared by all; by the first one alone; and with what transformers loads."""
    results = {"plain": outcome(*pair())} | {family: outcome(*pair(family)) for family in WITH_DROPOUT}
    launch, path = PartialState(), os.path.join(folder, "teacher")
    if launch.is_main_process:
        results["alone"] = by_itself(accumulate=3)
        pair()[0].save_pretrained(path)
    launch.wait_for_everyone()
    disable_fsdp_ram_efficient_loading()
    with patch_environment(ACCELERATE_USE_FSDP="true"):  # as a sharded launch sets it
        teacher = AutoModelForCausalLM.from_pretrained(path)
    results["loaded"] = outcome(teacher, pair()[1])
    with pytest.raises(ValueError, match="The teacher isn't the same in all processes"):
        outcome(tiny_model(seed=launch.process_index), pair()[1])
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two processes")


@pytest.fixture(scope="module")
def outcomes(folder):
    return in_two_processes(whole_and_sharded, folder)


@pytest.mark.slow
def test_two_processes_equal_one(outcomes):
    """With three batches of held-out text, which two processes can't share equally."""
    given = outcomes["whole"]
    check_equal(given["plain"], outcome(*pair()))
    check_equal(given["loaded"], outcome(*pair()))
    for family in WITH_DROPOUT:
        check_equal(given[family], outcome(*pair(family)))
    expected = outcome(*pair(), accumulate=3)
    for name in ("losses", "norms", "validation"):
        assert torch.equal(given["alone"][name], expected[name])
    assert all(map(torch.equal, given["alone"]["weights"], expected["weights"]))


def test_alone_is_as_before_afterwards(monkeypatch):
    asked = []
    monkeypatch.setattr(processes, "Accelerator", lambda **options: asked.append(options) or Accelerator(**options))
    with pytest.raises(KeyboardInterrupt), processes.alone():
        processes.take_part(1, pair()[1], None)
        raise KeyboardInterrupt
    assert not asked
    processes.take_part(1, pair()[1], None)
    assert asked


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
    "gpt2": (pair, {"family": "gpt2"}, {"recompute": True}),
}


def sharded(folder):
    results = {}
    for name, (models, shape, settings) in SHARDED.items():
        shard_by_hand(load_once=name == "tied")
        results[name] = outcome(*models(**shape), **settings)
    settings = {"checkpoint_dir": os.path.join(folder, "resumed"), "save_every": 2}
    interrupt(lambda: outcome(*uneven(), **settings), after=3)
    results["resumed"] = outcome(*uneven(), **settings)
    teacher, student = pair()
    before = [weight.clone() for weight in student.parameters()]
    interrupt(lambda: outcome(teacher.train(), student.train()), after=0)
    results["modes"] = [teacher.training, student.training]
    results["failed"] = [torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)]
    results["memory"] = planned_and_held()
    return results


PLANNED = [
    {"learns": {}, "tied": True, "precision": torch.bfloat16},
    {"learns": {"recompute": True}, "tied": False, "precision": torch.float32},
    {"learns": {"mlps_only": True}, "tied": False, "precision": torch.bfloat16},
]


def planned_and_held():
    """Bytes of ``PLANNED``, by the plan and counted in this process while it trains."""
    training_loop, learning, both = training._train, training.learning, {}

    def learned(recipe, student, teacher):
        both["teacher"] = teacher
        return learning(recipe, student, teacher)

    def counted(recipe, model, *rest):
        watching = benchmarking._Watching()
        for part in (model, both["teacher"]):
            for tensor in (*part.parameters(), *part.buffers()):
                watching.ledger.come(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
        watching.ledger.was_there = watching.ledger.come  # all else is new
        with watching:
            history = training_loop(recipe, model, *rest)
        both["held"] = watching.ledger.peak
        return history

    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "learning", learned)
        patch.setattr(training, "_train", counted)
        for case in PLANNED:
            config = LlamaConfig(
                vocab_size=1024, hidden_size=192, intermediate_size=512, num_hidden_layers=12, num_attention_heads=6,
                num_key_value_heads=2, tie_word_embeddings=case["tied"],
            )  # fmt: skip
            torch.manual_seed(0)
            teacher, student = (AutoModelForCausalLM.from_config(config) for _ in range(2))
            settings = {"steps": 2, "lr": 1e-4, "precision": case["precision"], **case["learns"]}
            each = Recipe(accumulate=2, **settings)  # of the four batches of a step
            plan = memory_plan(outline(config), outline(config), each, rows=1, length=32, processes=2)
            text = [{"input_ids": torch.arange(32)[None] + start} for start in range(4)]
            distill(teacher, student, text, accumulate=4, **settings)
            results.append((sum(plan.values()), both["held"]))
    return results


def whole_and_sharded(folder):
    """One launch for both: to import everything takes longer than to learn."""
    return {"whole": data_parallel(folder), "sharded": sharded(folder)}


@pytest.mark.slow
def test_sharded_processes_equal_one(outcomes, folder):
    given = outcomes["sharded"]
    for name, (models, shape, settings) in SHARDED.items():
        check_equal(given[name], outcome(*models(**shape), **settings))
    assert all(given["failed"]) and given["modes"] == [False, False]
    check_equal(given["resumed"], outcome(*uneven()))
    for case, (planned, held) in zip(PLANNED, given["memory"], strict=True):
        assert 0.9 * planned < held <= planned, (case, planned, held)
    # The checkpoint is everybody's: one process goes on with it.
    alone = outcome(*uneven(), checkpoint_dir=folder / "resumed")
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
