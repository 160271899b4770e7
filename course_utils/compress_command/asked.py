"""What was asked of ``compress``, held against text, processes and the model's shapes before its weights are read."""

from __future__ import annotations

import argparse

import torch
from accelerate.utils import parse_flag_from_env
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.architectures import describe
from course_utils.compress import Budget, Candidate, candidates, outline_of
from course_utils.distillation.memory import outline
from course_utils.distillation.teacher_cache import refuse_full_disk
from course_utils.extras import brought
from course_utils.texts import DOMAINS, LARGE_DOMAINS


def refuse_odd_text(args: argparse.Namespace) -> None:
    """Raise where the options about text don't go together, or one of them would be no use."""
    checks.one_of("--domain", args.domain, (*DOMAINS, *LARGE_DOMAINS))
    if args.judge and not args.text:
        raise ValueError("'--judge' goes with '--text'; built-in text (--domain) is judged by held-out speeches.")
    if args.temperature and not args.self_data:
        raise ValueError("'--temperature' goes with '--self-data'.")
    if args.self_data and not args.text:
        raise ValueError("'--self-data' goes with '--text': it is the chats in it whose prompts are answered.")
    if args.self_data and args.correction:
        raise ValueError("'--self-data' goes without '--correction': by its own answers a model isn't corrected.")


def refuse_what_cannot_learn(args: argparse.Namespace) -> None:
    """Raise where a way to learn needs what isn't there."""
    if args.recover == "lora":
        with brought("lora"):
            import peft  # noqa: F401
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError("'--recover lora' is for launches without --use_fsdp, which cuts up what it corrects.")


def refuse_processes(args: argparse.Namespace, processes: int) -> None:
    """Raise where so many processes can't share what is learned."""
    if args.accumulate % processes:
        raise ValueError(
            f"'--accumulate' ({args.accumulate}) must be a multiple of the number of processes "
            f"({processes}): each takes as many of a step's batches."
        )
    if args.teacher == "disk" and processes > 1:
        raise ValueError("'--teacher disk' is for one process; leave it out, or launch one.")


def refuse_answers_that_nobody_learns(args: argparse.Namespace) -> None:
    """Raise where the whole model would answer for nothing, with ``args.light`` as it is for the versions found."""
    if args.self_data and not (args.steps or args.light):
        raise ValueError(
            "'--self-data' is for what learns, and nothing does: '--steps' is 0, and there is no '--light'."
        )


def versions_asked(config: PretrainedConfig, args: argparse.Namespace) -> tuple[Budget, list[Candidate]]:
    """What may be spent and the versions that fit, from the model's shapes; what asks too much of them is refused."""
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"{args.model} is quantized, and packed weights can't be scored or cut. Take the checkpoint in 16 bits "
            "that it was made from, and quantize what comes out."
        )
    shapes = outline(config).to(getattr(torch, args.dtype))
    whole, longest = Candidate.of(shapes), getattr(config, "max_position_embeddings", None)
    checks.whole_number("--length", args.length, least=2, most=longest, meaning="the model's longest row")
    checks.whole_number("--multiple-of", args.multiple_of, least=1, most=whole.neurons, meaning="the MLPs' width")
    checks.whole_number(
        "--tensor-parallel", args.tensor_parallel, least=1, most=whole.groups, meaning="the model's KV groups"
    )
    tokens = args.steps * args.accumulate * args.rows * (args.length - 1)
    if args.teacher == "disk" and not any(args.out.glob("*/teacher-*")):
        refuse_full_disk(args.out, tokens, vocab_size=describe(shapes).vocab_size)
    amount, unit = args.budget
    budget = Budget(amount / 100 * whole.parameters) if unit == "%" else Budget(amount, unit)
    return budget, candidates(shapes, budget, multiple_of=args.multiple_of, tensor_parallel=args.tensor_parallel)


def refuse_what_cannot_be_exported(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, version: Candidate, args: argparse.Namespace
) -> None:
    """Raise where what is made couldn't be written for ``args.export``; of versions of one model all can, or none."""
    if args.export:
        from course_utils.export import CannotExport, plan_gguf  # an extra's package

        try:
            plan_gguf(outline_of(outline(config), version), tokenizer)
        except CannotExport as refusal:
            raise ValueError(f"'--export {args.export}' can't be done; without it this runs. {refusal}") from refusal
