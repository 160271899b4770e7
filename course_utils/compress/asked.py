"""What was asked of ``compress``, held against text, processes and the model's shapes before its weights are read."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from course_utils.compress.folder import refuse_sources_in_the_way, refuse_what_others_made
from course_utils.compress.order import Order
from course_utils.compress.search import Budget, Candidate, candidates, outline_of
from course_utils.healing.distillation.memory import outline
from course_utils.support import checks
from course_utils.support.extras import brought
from course_utils.support.roles import ROLES, chosen_model
from course_utils.text.text_files import Source
from course_utils.text.texts import DOMAINS, LARGE_DOMAINS


def refuse_places(order: Order) -> None:
    """Raise where the run would write to what it reads, or over what it hasn't made."""
    model = (order.model in ROLES and chosen_model(order.model)) or order.model
    sources = {"the model": Path(model)} if os.path.isdir(model) else {}
    for option, places in {"--text": order.text, "--judge": order.judge}.items():
        sources |= {f"{option} {place}": Source.of(place).path for place in places}
    refuse_sources_in_the_way(order.out, sources)
    refuse_what_others_made(order.out)


def refuse_odd_text(order: Order) -> None:
    """Raise where the options about text don't go together."""
    checks.one_of("--domain", order.domain, (*DOMAINS, *LARGE_DOMAINS))
    if order.judge and not order.text:
        raise ValueError("'--judge' goes with '--text'; built-in text (--domain) is judged by held-out speeches.")


def refuse_what_cannot_learn(order: Order) -> None:
    """Raise where a way to learn needs what isn't there."""
    if order.recover == "lora":
        with brought("lora"):
            import peft  # noqa: F401
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError("'--recover lora' is for launches without --use_fsdp, which cuts up what it corrects.")


def refuse_processes(order: Order, processes: int) -> None:
    """Raise where so many processes can't share what is learned."""
    if order.accumulate % processes:
        raise ValueError(
            f"'--accumulate' ({order.accumulate}) must be a multiple of the number of processes "
            f"({processes}): each takes as many of a step's batches."
        )


def versions_asked(config: PretrainedConfig, order: Order) -> tuple[Budget, list[Candidate]]:
    """What may be spent and the versions that fit, from the model's shapes; what asks too much of them is refused."""
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"{order.model} is quantized, and packed weights can't be scored or cut. Take the checkpoint in 16 bits "
            "that it was made from, and quantize what comes out."
        )
    shapes = outline(config).to(getattr(torch, order.dtype))
    whole, longest = Candidate.of(shapes), getattr(config, "max_position_embeddings", None)
    checks.whole_number("--length", order.length, least=2, most=longest, meaning="the model's longest row")
    checks.whole_number("--multiple-of", order.multiple_of, least=1, most=whole.neurons, meaning="the MLPs' width")
    checks.whole_number(
        "--tensor-parallel", order.tensor_parallel, least=1, most=whole.groups, meaning="the model's KV groups"
    )
    amount, unit = order.budget
    budget = Budget(amount / 100 * whole.parameters) if unit == "%" else Budget(amount, unit)
    return budget, candidates(shapes, budget, multiple_of=order.multiple_of, tensor_parallel=order.tensor_parallel)


def refuse_what_cannot_be_exported(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, version: Candidate, order: Order
) -> None:
    """Raise where what is made couldn't be written for ``order.export``; of versions of one model all can, or none."""
    if order.export:
        from course_utils.release.export import CannotExport, plan_gguf  # an extra's package

        try:
            plan_gguf(outline_of(outline(config), version), tokenizer)
        except CannotExport as refusal:
            raise ValueError(f"'--export {order.export}' can't be done; without it this runs. {refusal}") from refusal
