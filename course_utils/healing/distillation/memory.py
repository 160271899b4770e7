"""Does a distillation fit? Its bytes, counted beforehand from shapes alone.

    whole, narrow = outline(teacher.config), outline(narrow_config)
    plan = memory_plan(whole, narrow, Recipe(steps=400, lr=2e-4, recompute=True), rows=4, length=512)
    sum(plan.values())

The models have shapes but no content (PyTorch's meta device), so nothing is needed to plan for any size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from course_utils.healing.distillation.recipe import Recipe
from course_utils.healing.distillation.weights import weights_that_learn, with_adapters
from course_utils.models.architectures import Architecture, UnsupportedArchitecture, describe
from course_utils.support import checks
from course_utils.support.checks import check_types


def outline(config: PretrainedConfig, **changes: int) -> PreTrainedModel:
    """The model of a configuration, without content: it has shapes, and takes no memory.

    It is in float32, as a student that learns is, whatever type the configuration names.

    Args:
        config: of any model of the Llama family; it isn't changed.
        **changes: fields with another value, such as ``intermediate_size``.
    """
    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _put_aside(model: PreTrainedModel, *, rows: int, length: int) -> int:
    """Bytes that a forward pass without the head keeps for the backward pass; the weights are not counted."""
    ours, storages = {weight.untyped_storage()._cdata for weight in model.parameters()}, {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ours:
            storages[storage._cdata] = storage  # several views of one storage count once
        return tensor

    # The mask is given in its final form: to make it, transformers would have to look at content.
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device=model.device)
    ids = torch.zeros(rows, length, dtype=torch.long, device=model.device)
    positions = torch.arange(length, device=model.device).expand(rows, -1)  # OPT would count them in the mask
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.base_model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


@check_types
def memory_plan(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    recipe: Recipe,
    *,
    rows: int,
    length: int,
    teacher_states: bool = False,
    processes: int = 1,
) -> dict[str, float]:
    """Bytes that a distillation holds in a process at its worst moment, part by part; an upper bound.

    Args:
        teacher: of ``outline``, in the dtype that it is held in: ``outline(config).to(torch.bfloat16)`` counts half.
        student: of ``outline``, of the Llama family.
        recipe: its weights that learn, recomputed activations, precision and batches per step count.
        rows: of a batch.
        length: of a row.
        teacher_states: whether the teacher's states are kept (``remember_teacher``), so that its head alone is there.
        processes: that both models are sharded among (FSDP2), 1 where the process holds them whole.

    Returns:
        name of the part -> bytes: teacher, student, gradients, AdamW, head, chunk, activations; in bfloat16 also what
        autocast's copies of float32 weights add, and with several processes what comes together of what is sharded.

    Raises:
        ValueError: a size isn't a whole number, or ``rows``, ``length`` or ``processes`` is below 1.
        UnsupportedArchitecture: the student is a mixture of experts.
    """
    for name, number in {"rows": rows, "length": length, "processes": processes}.items():
        checks.whole_number(name, number, least=1)
    student = copy.deepcopy(student)  # shapes alone
    parts = describe(student)
    if parts.is_mixture:
        raise UnsupportedArchitecture(
            f"{type(student).__name__} is a mixture of experts: what it keeps for its backward pass depends on where "
            "its tokens are sent, which shapes don't tell. Measure a step."
        )
    asked = (describe(teacher).head if teacher_states else teacher).parameters()
    if recipe.lora_rank:
        with_adapters(recipe, student)
    head = next(parts.head.parameters())
    student.requires_grad_(False)
    for weight in weights_that_learn(recipe, student):
        weight.requires_grad_(True)
    numbers = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    activations: float = _put_aside(student, rows=rows, length=length)
    if recipe.recompute:  # a block's input each, and the inside of one
        activations = activations / parts.num_blocks + parts.num_blocks * rows * length * parts.hidden_size * 4
    plan = {
        "teacher": _bytes(asked),
        "student": 4 * student.num_parameters(),
        "gradients": 4 * numbers,
        "AdamW": 8 * numbers,  # two averages
        "head": 8 * head.numel() if head.requires_grad else 0,
        "chunk": 7 * 4 * min(rows * (length - 1), parts.chunk_size) * parts.vocab_size,
        "activations": activations,
    }
    if recipe.precision is torch.bfloat16:
        copied = 2 * _copied(parts, recipe)
        # A gradient comes when its weight's copy has gone, but for those of the batches before.
        plan["copies"] = copied if recipe.accumulate > 1 else max(0, copied - plan["gradients"])
    if processes > 1:
        blocks = [] if teacher_states else [_bytes(block.parameters()) for block in describe(teacher).blocks]
        plan["teacher"] -= (1 - 1 / processes) * sum(blocks)  # what stands outside stays whole
        for name in ("student", "gradients", "AdamW"):
            plan[name] /= processes
        inside = {id(weight) for weight in parts.blocks.parameters()}
        outside = [weight for weight in student.parameters() if id(weight) not in inside]
        gradients = _bytes(weight for weight in outside if weight.requires_grad)
        # A block with its gradient, and that once more on its way to the others; or the gradients of all else.
        comes = max(gradients, *blocks, *(3 * _bytes(block.parameters()) for block in parts.blocks))
        plan["together"] = _bytes(outside) + comes
    return plan


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _copied(student: Architecture, recipe: Recipe) -> int:
    """How many weights keep a copy in 16 bits after the forward pass: those that learn, without recompute all."""
    parts = [part for mlp in student.mlps for part in mlp.projections]
    parts += [part for attention in student.attentions for part in attention.projections]
    weights = [part.module.weight for part in parts]
    kept = sum(weight.numel() for weight in weights if weight.requires_grad or not recipe.recompute)
    return kept + next(student.head.parameters()).numel()
