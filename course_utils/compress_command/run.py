"""The run of ``compress``: check, score, search, recover, judge, save; what is done already is taken up.

Under ``accelerate launch`` the processes share all that learns: the corrected teacher, finalists and the winner. The
first one scores, judges versions as cut, and saves for all, in a folder that all of them see, and makes rows of text
and answers there. The model is that of a single process up to rounding, and either may go on where the other stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.abilities import ABILITIES, Baseline, damage_profile
from course_utils.architectures import cast_weights
from course_utils.checkpoints import save_pruned
from course_utils.compress import AXES, Candidate, Importance, importance, rank, shrink
from course_utils.compress_command.asked import (
    refuse_answers_that_nobody_learns,
    refuse_odd_text,
    refuse_processes,
    refuse_what_cannot_be_exported,
    refuse_what_cannot_learn,
    versions_asked,
)
from course_utils.compress_command.estimate import estimate
from course_utils.compress_command.learning import RATES, folder_name, recipe_for
from course_utils.compress_command.telling import found_under, planned, text_as_json, text_told, write_card
from course_utils.compress_command.text import Text
from course_utils.distillation import distill
from course_utils.distillation.processes import alone
from course_utils.distillation.teacher_cache import TeacherCache, cache_teacher
from course_utils.models import identity, load_model, load_without_weights, variant
from course_utils.own_text import read_own_text
from course_utils.reports import model_size
from course_utils.rivals import Version, in_fewer_bits, table, timed
from course_utils.self_data import Prompt, find_prompts, write_answers

_SEARCHING = timedelta(days=7)  # how long processes wait for the one that scores and searches, at most
_CORRECTION = 0.25  # the teacher's learning rate in its correction, as a share of the student's


def compress(args: argparse.Namespace, say: Callable[[str], object] = print) -> int:
    """Search, recover, save and judge; return an exit status.

    Args:
        args: of ``command_line.add_compress_arguments``.
        say: shows a line.

    Raises:
        ValueError: a budget that nothing fits, an unsupported or unavailable model, too little text, or batches that
            the processes can't share equally.
    """
    if not args.json:
        _compress(args, say)
        return 0
    with redirect_stdout(sys.stderr):
        report = _compress(args, say)
    if report:
        print(json.dumps(report, indent=2))
    return 0


def _compress(args: argparse.Namespace, say: Callable[[str], object]) -> dict[str, Any]:
    """All of it; what was found, as JSON can hold it, in the first process."""
    refuse_odd_text(args)
    own = read_own_text(args.text, judge=args.judge or [], seed=args.seed) if args.text else None
    if args.lr is None:
        args.lr = RATES[args.recover]
    refuse_what_cannot_learn(args)
    disable_fsdp_ram_efficient_loading()  # or a sharded launch may load the teacher's weights in one process alone
    # Without a card the processes find each other only if they say so.
    launch = PartialState(cpu=not torch.cuda.is_available(), timeout=_SEARCHING)
    refuse_processes(args, launch.num_processes)
    if not launch.is_main_process:
        say = _say_nothing
    dtype = getattr(torch, args.dtype)
    config, tokenizer = load_without_weights(args.model)
    budget, candidates = versions_asked(config, args)
    refuse_what_cannot_be_exported(config, tokenizer, candidates[0], args)
    if min(args.finalists, len(candidates)) == 1:
        args.light = 0  # there is nothing to choose
    refuse_answers_that_nobody_learns(args)
    text = Text.built_in(tokenizer, args) if own is None else Text.own(own, tokenizer, args, say)
    prompts = find_prompts(own, tokenizer, args.self_data, longest=args.length // 2) if own and args.self_data else []
    device = launch.device if launch.num_processes > 1 else None
    model, tokenizer = load_model(args.model, dtype=dtype, device=device)
    base = _hub_id(model)
    full_sizes = Candidate.of(model)
    for line in [
        *found_under(budget, full_sizes, candidates, args),
        *planned(len(candidates), args, launch.num_processes),
        *(text_told(own, args) if own else []),
    ]:
        say(line)
    sharded = launch.distributed_type == DistributedType.FSDP
    needed = estimate(model, candidates, args, processes=launch.num_processes, sharded=sharded)
    say(str(needed))
    report: dict[str, Any] = {
        "model": base or "a local model",
        "parameters": full_sizes.parameters,
        "budget": {"amount": budget.amount, "unit": budget.unit},
        "versions": [candidate.sizes | {"parameters": candidate.parameters} for candidate in candidates],
        "estimate": needed.as_json(),
        "learning": {name: getattr(args, name) for name in ("recover", "dtype", "teacher", "recompute", "lr")},
        "text": {"learned": args.domain, "judged": text.judged_by} if own is None else text_as_json(own, args),
    }
    if args.dry_run:
        return report if launch.is_main_process else {}

    measured = {"folder": args.out / "rivals"}
    versions: dict[str, Version] = {}
    why_not: dict[str, str] = {}
    if launch.is_main_process:
        in_bits, why_not["the whole model in 8 and 4 bits"] = in_fewer_bits(model, tokenizer, text.held_out, **measured)
        versions = {"whole": Version.of(model, text.held_out, **measured)} | in_bits
        baseline = Baseline.of(model, tokenizer, ABILITIES, versions["whole"].score)
    model = _corrected(model, text, args)
    # Another model, a corrected teacher, or other text has a folder of its own.
    folder = args.out / identity(model)
    with launch.main_process_first(), alone():  # the others find in the folder what the first one has done
        if own and prompts:
            answered = own.answered(_answers(model, tokenizer, prompts, args))
            text = text.of_answers(answered, tokenizer, args, say)
            learned = answered.contents[0].documents
            report["text"]["answers"] |= {"learned": learned}
            say(f"{learned:,} of {len(prompts):,} answers came to their end, and are learned.")
        of_text = "" if own is None else f"-{own.digest}"
        stored = folder / f"scores-{args.length}-{args.seed}{of_text}.safetensors"
        if not stored.exists():
            importance(model, text.scored()).save(stored)
        scores = Importance.load(stored)
        ranking = rank(model, candidates, scores, text.choosing, folder=folder / "search")
    winner, told = _best(ranking, model, scores, text, folder / "search", args)
    say(told)

    if launch.is_main_process:  # before there is a student: two models at a time
        at_random = _at_random(scores, args.seed)
        versions["random cut"] = Version.of(shrink(model, winner, at_random), text.held_out, **measured)
    student = shrink(model, winner, scores)
    if launch.is_main_process:
        versions["cut"] = Version.of(student, text.held_out, **measured)
        versions, why_not["tokens a second in llama.cpp"] = timed(
            versions, model, student, tokenizer, length=args.length, **measured
        )
    if args.steps:
        recipe = recipe_for(args.steps, args, accumulate=args.accumulate)
        batches, name = text.for_all(args.steps * args.accumulate), folder_name(args.steps, text.key, args)
        teacher: PreTrainedModel | TeacherCache = model
        if args.teacher == "disk":
            teacher = cache_teacher(model, batches, folder / f"teacher-{name}")
            del model  # with it goes what the student doesn't share
        distill(teacher, student, batches, recipe, checkpoint_dir=folder / f"{winner.name}-{name}")
        cast_weights(student, dtype)
    if launch.is_main_process:
        if args.steps:
            recovered = Version.of(student, text.held_out, **measured)
            versions["recovered"] = replace(recovered, speeds=versions["cut"].speeds)
        target = save_pruned(student, tokenizer, args.out / "model")
        shown = table(versions, judged_by=text.judged_by)
        *_, shipped = versions.values()
        damage = damage_profile(student, baseline, shipped.score)
        write_card(target, base, winner, versions, shown, damage, text, args)
        made = model_size(student)
        say(f"{winner.name}: {made.parameters:,} parameters, and what else could be shipped:")
        say(shown.to_string())
        not_measured = {what: reason for what, reason in why_not.items() if reason}
        for what, reason in not_measured.items():
            say(f"Not measured, {what}: {reason}")
        say(f"Saved with its card; AutoModelForCausalLM.from_pretrained({str(target)!r}) loads it.")
        report |= {
            "made": winner.sizes | {"parameters": made.parameters, "bytes": made.bytes},
            "held_out": {name: version.as_json() for name, version in versions.items()},
            "not_measured": not_measured,
            "saved": str(target),
        }
        if args.export:
            from course_utils.export import export_gguf  # an extra's package

            report["exported"] = str(export_gguf(student, tokenizer, args.out / "model.gguf"))
            say(f"Written for llama.cpp, in 16 bits: {report['exported']}.")
    launch.wait_for_everyone()
    return report if launch.is_main_process else {}


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], args: argparse.Namespace
) -> Path:
    """Where the whole model's answers are: half of a row holds a prompt, the other half an answer."""
    return write_answers(
        model,
        tokenizer,
        prompts,
        args.out / "answers",
        new_tokens=args.length // 2,
        batch_size=args.rows,
        temperature=args.temperature,
        seed=args.seed,
    )


def _hub_id(model: PreTrainedModel) -> str:
    """What the world knows the model as; "" for one that lies on this machine only, whose path is nobody's business."""
    name = model.config.name_or_path or ""
    return "" if os.path.isdir(name) else name


def _say_nothing(_line: str) -> None:
    """What all processes but the first one say."""


def _corrected(model: PreTrainedModel, text: Text, args: argparse.Namespace) -> PreTrainedModel:
    """The teacher after a few steps on the text that students are to learn from (Minitron in practice, 2408.11796)."""
    if args.correction == 0:
        return model
    teacher = variant(model)
    batches = text.for_all(args.correction * args.accumulate)
    recipe = recipe_for(args.correction, args, lr=args.lr * _CORRECTION, accumulate=args.accumulate, alpha=1.0)
    folder = args.out / identity(model) / f"correction-{folder_name(args.correction, text.key, args)}"
    distill(model, teacher, batches, recipe, checkpoint_dir=folder)
    cast_weights(teacher, getattr(torch, args.dtype))
    return teacher


def _best(
    ranking: pd.DataFrame,
    model: PreTrainedModel,
    scores: Importance,
    text: Text,
    folder: Path,
    args: argparse.Namespace,
) -> tuple[Candidate, str]:
    """The version that is best after light distillation, and the ranking as a table; every record is kept."""
    shown = ["blocks", "hidden", "groups", "neurons", "parameters", "nll"]
    if args.light:
        finalists = _candidates_in(ranking.head(args.finalists))
        light = recipe_for(args.light, args, accumulate=args.accumulate)
        train = text.for_all(args.light * args.accumulate)
        ranking = rank(model, finalists, scores, text.choosing, folder=folder, train=train, recipe=light)
        shown.append("distilled_nll")
    (winner,) = _candidates_in(ranking.head(1))
    return winner, ranking[shown].to_string(index=False)


def _at_random(kept: Importance, seed: int) -> Importance:
    """Scores that say nothing, on every axis that the model has."""
    return kept.random([axis for axis in AXES if getattr(kept, axis) is not None], seed)


def _candidates_in(frame: pd.DataFrame) -> list[Candidate]:
    """The versions in the rows of a ranking."""
    names = ["blocks", "hidden", "groups", "neurons", "parameters", "cost"]
    return [Candidate(*row) for row in frame[names].itertuples(index=False)]
