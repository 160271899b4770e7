"""A plan from shapes is an upper bound of what a distillation holds, and not a loose one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from course_utils.healing.distillation import Recipe, distill
from course_utils.healing.distillation.memory import memory_plan, outline
from course_utils.healing.distillation.teacher_states import remember_teacher
from course_utils.measuring.benchmarking import peak_memory
from course_utils.models import architectures
from course_utils.models.architectures import describe
from course_utils.pruning.width import kept_width, neuron_importance, prune_neurons

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
WIDTH, MLPS = kept_width(512, 0.5), Recipe(steps=1, lr=1.0, mlps_only=True)
TEXT = [{"input_ids": torch.randint(8192, (4, 128), generator=torch.Generator().manual_seed(i))} for i in range(2)]


def models(**shape):
    """A configuration, its model, and one with half of the neurons."""
    config = LlamaConfig(**SHAPE, **shape)
    teacher = AutoModelForCausalLM.from_config(config)
    student = copy.deepcopy(teacher)
    prune_neurons(student, neuron_importance(student, "random"), ratio=0.5)
    return config, teacher, student


@pytest.mark.parametrize(("recompute", "tied"), [(False, True), (True, False)])
@pytest.mark.parametrize("learns", [{}, {"train_embedding": False}, {"mlps_only": True}, {"lora_rank": 8}], ids=str)
def test_an_upper_bound_that_is_not_loose(learns, recompute, tied):
    config, teacher, student = models(tie_word_embeddings=tied)
    recipe = Recipe(steps=2, lr=1e-4, recompute=recompute, **learns)
    plan = memory_plan(outline(config), outline(config, intermediate_size=WIDTH), recipe, rows=4, length=128)
    corrections = plan["gradients"] if "lora_rank" in learns else 0
    assert plan["student"] == 4 * student.num_parameters() + corrections
    assert plan["teacher"] == 4 * teacher.num_parameters()
    planned = sum(plan.values()) - 4 * teacher.num_parameters() - 4 * student.num_parameters()  # there already
    measured = peak_memory(lambda: distill(teacher, student, TEXT, recipe))
    assert 0.6 * planned < measured <= planned


@pytest.mark.parametrize(
    ("accumulate", "least", "precision"), [(1, 0.8, torch.float32), (2, 0.9, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize(
    "learns",
    [{}, {"recompute": True}, {"mlps_only": True, "recompute": True}, {"lora_rank": 8}],
    ids=str,
)
def test_with_few_tokens_the_whole_plan_is_near(learns, accumulate, least, precision):
    """Weights, and in 16 bits autocast's copies of them, are most of it then.

    With one batch per step gradients come when what the forward pass kept has gone: the plan, which adds both, is up to
    a fifth too high there.
    """
    config, teacher, student = models(tie_word_embeddings=False)
    recipe = Recipe(steps=2, lr=1e-4, precision=precision, accumulate=accumulate, **learns)
    whole, narrow = outline(config), outline(config, intermediate_size=WIDTH)
    planned = sum(memory_plan(whole, narrow, recipe, rows=1, length=32).values())
    few = [{"input_ids": batch["input_ids"][:1, :32]} for batch in TEXT]
    there = 4 * (teacher.num_parameters() + student.num_parameters())
    held = there + peak_memory(lambda: distill(teacher, student, few, recipe))
    assert least * planned < held <= planned


@pytest.mark.parametrize("tokens", [5, 500])
def test_the_planned_chunk_is_the_loops_largest(tokens, monkeypatch):
    """Smaller than a batch, and larger: whatever size the loop is given, the plan follows."""
    config = LlamaConfig(**SHAPE | {"num_hidden_layers": 1}, tie_word_embeddings=True)
    monkeypatch.setattr(architectures, "_LOGITS", tokens * SHAPE["vocab_size"] + 3)
    teacher, student = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    seen = []
    student.lm_head.register_forward_hook(lambda _module, _args, logits: seen.append(logits.numel()))
    text = [{"input_ids": torch.randint(SHAPE["vocab_size"], (2, 64))}]
    distill(teacher, student, text, steps=1, lr=1e-4, mlps_only=True)
    assert memory_plan(outline(config), outline(config), MLPS, rows=2, length=64)["chunk"] == 7 * 4 * max(seen)


def test_an_outline_has_any_shape_of_the_family_and_no_content():
    config = Qwen2Config(**SHAPE | {"num_hidden_layers": 28}, tie_word_embeddings=True)
    whole, narrow = outline(config), outline(config, intermediate_size=WIDTH)
    assert {weight.device.type for weight in whole.parameters()} == {"meta"}
    assert config.intermediate_size == 512  # left alone
    assert describe(narrow).intermediate_sizes == (WIDTH,) * 28
    plan = memory_plan(whole, narrow, Recipe(steps=1, lr=1.0, recompute=True), rows=1, length=64)
    assert all(size > 0 for size in plan.values())


def test_a_teacher_counts_in_its_own_dtype_and_its_states_with_its_head_alone():
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    narrow, options = outline(config, intermediate_size=WIDTH), {"recipe": MLPS, "rows": 4, "length": 128}
    known = remember_teacher(AutoModelForCausalLM.from_config(config), TEXT)
    for states, weights in ((False, outline(config).num_parameters()), (True, known._head.head.weight.numel())):
        full, half = (
            memory_plan(outline(config).to(dtype), narrow, **options, teacher_states=states)
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert full["teacher"] == 4 * weights and half == full | {"teacher": 2 * weights}


def test_a_configuration_that_names_16_bits_plans_the_same():
    """A published model's configuration says bfloat16; its student learns in float32 all the same."""
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    plans = []
    for dtype in (None, torch.float32, torch.bfloat16):
        config.dtype = dtype
        plans.append(memory_plan(outline(config), outline(config, intermediate_size=WIDTH), MLPS, rows=4, length=128))
    assert plans[0] == plans[1] == plans[2] and config.dtype is torch.bfloat16


GIBIBYTE = 2**30
LLAMA_8B = LlamaConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def eight_billion():
    """Llama-3.1-8B in 16 bits, and the student with narrower MLPs that four fifths of the parameters leave."""
    whole, narrow = outline(LLAMA_8B).to(torch.bfloat16), outline(LLAMA_8B, intermediate_size=10_240)
    assert whole.num_parameters() == 8_030_261_248  # as published
    assert 0.79 < narrow.num_parameters() / whole.num_parameters() <= 0.8
    return whole, narrow


def test_corrections_of_eight_billion_fit_one_card_of_80_gb(eight_billion):
    """As ``compress --dtype bfloat16 --recover lora`` has them, with its rows: 75 GiB is what such a card leaves."""
    recipe = Recipe(steps=1, lr=1.0, precision=torch.bfloat16, lora_rank=16)
    plan = memory_plan(*eight_billion, recipe, rows=4, length=256)
    assert plan["teacher"] == 2 * 8_030_261_248
    assert 58 < sum(plan.values()) / GIBIBYTE <= 65


def test_all_weights_of_eight_billion_fit_eight_cards_and_not_one(eight_billion):
    recipe = Recipe(steps=1, lr=1.0, precision=torch.bfloat16)
    one, eight = (memory_plan(*eight_billion, recipe, rows=4, length=256, processes=processes) for processes in (1, 8))
    assert sum(one.values()) > 120 * GIBIBYTE
    together = sum(eight.values()) / GIBIBYTE
    searching = together + (one["teacher"] - eight["teacher"]) / GIBIBYTE
    kept = (one["teacher"] + one["student"]) / GIBIBYTE
    told = Path(__file__).parents[4].joinpath("docs/compress.md").read_text(encoding="utf-8")
    assert searching <= 75 and f"as they were in main memory, {kept:.0f} GiB" in told
    assert f"takes {together:.0f} GiB on each of eight cards, and {searching:.0f} while finalists learn" in told
    outside = 2 * 2 * 128_256 * 4096 + 2 * 4096  # embedding, head and a norm, in 16 bits
    assert eight["teacher"] == outside + (one["teacher"] - outside) / 8
    assert all(eight[part] == one[part] / 8 for part in ("student", "gradients", "AdamW"))
