"""The run of ``compress``: plan, correct, search, judge, recover, save; what is done already is taken up.

Under ``accelerate launch`` the processes share all that learns: the corrected teacher, finalists and the winner. The
first one scores, judges versions as cut, saves, and makes rows of text for all, in a folder that all of them see. The
model is that of a single process up to rounding, and either may go on where the other stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
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

from course_utils.compress import folder, telling
from course_utils.compress.estimate import estimate
from course_utils.compress.order import Order
from course_utils.compress.plan import Plan, Text, plan_for
from course_utils.compress.ranking import rank
from course_utils.compress.scores import AXES, Importance, importance
from course_utils.compress.search import Candidate, shrink
from course_utils.healing.distillation import Recipe, distill
from course_utils.healing.distillation.processes import alone
from course_utils.measuring.abilities import ABILITIES, Baseline, damage_profile
from course_utils.models.architectures import cast_weights
from course_utils.models.loading import identity, load_model, variant
from course_utils.models.reports import model_size
from course_utils.pruning.checkpoints import save_pruned
from course_utils.release.rivals import Version, in_fewer_bits, table, timed
from course_utils.support.files import write_json

_SEARCHING = timedelta(days=7)  # how long processes wait for the one that scores and searches, at most
_CORRECTION = 0.25  # the teacher's learning rate in its correction, as a share of the student's
Say = Callable[[str], object]


def compress(order: Order, say: Say = print) -> int:
    """Search, recover, save and judge; return an exit status.

    Args:
        order: what was asked.
        say: shows a line.

    Raises:
        ValueError: a budget that nothing fits, an unsupported or unavailable model, too little text, a folder that
            can't be written to without a loss, or batches that the processes can't share equally.
    """
    if not order.as_json:
        _compress(order, say)
        return 0
    with redirect_stdout(sys.stderr):
        report = _compress(order, say)
    if report:
        print(json.dumps(report, indent=2))
    return 0


def _compress(order: Order, say: Say) -> dict[str, Any]:
    """Run all stages; the first process returns what was found, as JSON can hold it."""
    disable_fsdp_ram_efficient_loading()  # or a sharded launch may load the teacher's weights in one process alone
    # Without a card the processes find each other only if they say so.
    launch = PartialState(cpu=not torch.cuda.is_available(), timeout=_SEARCHING)
    first, several = launch.is_main_process, launch.num_processes
    if not first:
        say = _say_nothing
    plan = plan_for(order, several, say)
    order, text = plan.order, plan.text
    dtype, device = getattr(torch, order.dtype), launch.device if several > 1 else None
    whole, of_whole = model, tokenizer = load_model(order.model, dtype=dtype, device=device)
    base = _hub_id(model)
    report = _announce(plan, model, base, launch, say)
    if order.dry_run:
        return report if first else {}

    records, key = folder.records_in(order.out), order.learning_key(text.key)
    rivals = records / "rivals"
    with _goes_on(records), folder.held(order.out) if first else contextlib.nullcontext():
        if plan.vocabulary:  # what is cut, and what teaches
            model, tokenizer = plan.vocabulary.cut(whole), plan.vocabulary.tokenizer
        if first:
            text.keep_date()
            versions, why_not = _judge_whole(whole, of_whole, plan, rivals)
            baseline = Baseline.of(model, tokenizer, ABILITIES, versions[plan.start].score)
        if order.correction:  # a few steps on the text that students are to learn from (Minitron, 2408.11796)
            recipe = order.recipe(order.correction, lr=order.rate * _CORRECTION, alpha=1.0)
            place = records / identity(model) / f"correction-{order.correction}-{key}"
            model = _learned(model, variant(model), text, recipe, place)
            whole = whole if plan.vocabulary else model  # or the first one's weights leave memory
        place = records / identity(model)  # another model, or a corrected teacher, has a folder of its own
        winner, scores = _search(model, plan, place, launch, say)
        if first and winner != Candidate.of(model):  # before there is a student: two models at a time
            versions["random cut"] = _judge_random_cut(model, winner, scores, order.seed, text, rivals)
        student = shrink(model, winner, scores)
        if first:
            versions["cut"] = Version.of(student, text.held_out, folder=rivals)
            versions, why_not["tokens a second in llama.cpp"] = timed(
                versions, whole, student, of_whole, length=order.length, folder=rivals, of_cut=tokenizer
            )
        if order.steps:
            place /= f"{winner.name}-{order.steps}-{key}"
            student = _learned(model, student, text, order.recipe(order.steps), place)
        if first:
            if order.steps:
                recovered = Version.of(student, text.held_out, folder=rivals)
                versions["recovered"] = replace(recovered, speeds=versions["cut"].speeds)
            *_, shipped = versions.values()
            damage = damage_profile(student, baseline, shipped.score)
            kinds = plan.vocabulary and plan.vocabulary.by_kind(whole, student, judged_by=text.judged_by, folder=rivals)
            made = telling.Made(base, winner, versions, why_not, damage, kinds)
            report |= _save(student, tokenizer, made, plan, say)
        launch.wait_for_everyone()
    return report if first else {}


def _announce(plan: Plan, model: PreTrainedModel, base: str, launch: PartialState, say: Say) -> dict[str, Any]:
    """Say what the run will do and what that takes; returns the same as JSON can hold it."""
    whole, processes = Candidate.of(model), launch.num_processes
    for line in telling.planned(plan, whole, processes):
        say(line)
    sharded = launch.distributed_type == DistributedType.FSDP
    start = plan.vocabulary.outline if plan.vocabulary else None
    needed = estimate(model, plan.candidates, plan.order, start=start, processes=processes, sharded=sharded)
    say(str(needed))
    return telling.planned_as_json(plan, whole, base, needed)


@contextlib.contextmanager
def _goes_on(records: Path) -> Iterator[None]:
    """Tell a user who stops a run with Ctrl-C that nothing of it is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nThe same command goes on from what is done, in {records}.", file=sys.stderr)
        raise


def _judge_whole(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, rivals: Path
) -> tuple[dict[str, Version], dict[str, str]]:
    """Judge the whole model, in fewer bits and with fewer tokens as well; also returns what couldn't be measured."""
    in_bits, why_not = in_fewer_bits(model, tokenizer, plan.of_whole, folder=rivals)
    versions = {"whole": Version.of(model, plan.of_whole, folder=rivals)} | in_bits
    if plan.vocabulary:
        versions |= plan.vocabulary.versions(model, folder=rivals)
    return versions, {"the whole model in 8 and 4 bits": why_not}


def _learned(
    teacher: PreTrainedModel, student: PreTrainedModel, text: Text, recipe: Recipe, place: Path
) -> PreTrainedModel:
    """The student, which has learned in place; its weights have the teacher's dtype again."""
    batches, dtype = text.for_all(recipe.steps * recipe.accumulate), recipe.precision
    distill(teacher, student, batches, recipe, checkpoint_dir=place)
    cast_weights(student, dtype)
    return student


def _search(
    teacher: PreTrainedModel, plan: Plan, place: Path, launch: PartialState, say: Say
) -> tuple[Candidate, Importance]:
    """Find the best version, as cut or after light distillation, and the scores; every record is kept."""
    order, text, search = plan.order, plan.text, place / "search"
    with launch.main_process_first(), alone():  # the others find in the folder what the first one has done
        stored = place / f"scores-and-means-{order.length}-{order.seed}-{text.key}.safetensors"
        if not stored.exists():
            importance(teacher, text.scored).save(stored)
        scores = Importance.load(stored)
        ranking = rank(teacher, plan.candidates, scores, text.choosing, folder=search)
    shown = ["blocks", "hidden", "groups", "neurons", "means", "parameters", "nll"]
    if order.light:
        # A version keeps the means of its blocks or not, whichever is better as cut: one of a shape learns.
        different = ranking.drop_duplicates(["blocks", "hidden", "groups"])
        finalists, light = _candidates_in(different.head(order.finalists)), order.recipe(order.light)
        train = text.for_all(light.steps * light.accumulate)
        ranking = rank(teacher, finalists, scores, text.choosing, folder=search, train=train, recipe=light)
        shown.append("distilled_nll")
    say(ranking[shown].to_string(index=False))
    (winner,) = _candidates_in(ranking.head(1))
    return winner, scores


def _candidates_in(ranking: pd.DataFrame) -> list[Candidate]:
    """The versions in the rows of a ranking."""
    names = ["blocks", "hidden", "groups", "neurons", "parameters", "cost", "means"]
    return [Candidate(*row) for row in ranking[names].itertuples(index=False)]


def _judge_random_cut(
    teacher: PreTrainedModel, winner: Candidate, scores: Importance, seed: int, text: Text, rivals: Path
) -> Version:
    """Cut the winner's sizes by scores that say nothing, and judge the result."""
    there = [axis for axis in AXES if getattr(scores, axis) is not None]
    return Version.of(shrink(teacher, winner, scores.random(there, seed)), text.held_out, folder=rivals)


def _save(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    made: telling.Made,
    plan: Plan,
    say: Say,
) -> dict[str, Any]:
    """Write the model with its card, and as one file where that was asked; say what could be shipped instead."""
    order, size, shown = plan.order, model_size(student), table(made.versions, judged_by=plan.text.judged_by)
    tokens = {"vocabulary": size.vocabulary} if plan.vocabulary else {}
    with folder.replacing_model(order.out) as fresh:
        save_pruned(student, tokenizer, fresh)
        telling.write_card(fresh, made, shown, plan)
        sizes = {"made of": made.base or "a local model", "sizes": made.winner.as_json() | tokens}
        write_json(fresh / folder.MADE, sizes | order.settings())
    if order.learns:
        say(telling.UNREAD)
    say(f"{made.winner.name}: {size.parameters:,} parameters, and what else could be shipped:")
    say(shown.to_string())
    if made.kinds is not None:
        say(telling.ABOUT_KINDS)
        say(telling.of_kinds(made.kinds).to_string())
    not_measured = {what: reason for what, reason in made.why_not.items() if reason}
    for what, reason in not_measured.items():
        say(f"Not measured, {what}: {reason}")
    target = str(folder.model_in(order.out))
    say(f"Saved with its card; AutoModelForCausalLM.from_pretrained({target!r}) loads it.")
    report = {
        "made": made.winner.as_json() | tokens | {"parameters": size.parameters, "bytes": size.bytes},
        "held_out": {name: version.as_json() for name, version in made.versions.items()},
        "not_measured": not_measured,
        "saved": target,
    } | ({} if made.kinds is None else {"kinds_of_text": made.kinds.to_dict(orient="index")})
    if order.export:
        from course_utils.release.export import export_gguf  # an extra's package

        report["exported"] = str(export_gguf(student, tokenizer, folder.gguf_in(order.out)))
        say(f"Written for llama.cpp, in 16 bits: {report['exported']}.")
    return report


def _hub_id(model: PreTrainedModel) -> str:
    """The model's hub id; "" for one that lies on this machine only, because its path is nobody's business."""
    name = model.config.name_or_path or ""
    return "" if os.path.isdir(name) else name


def _say_nothing(_line: str) -> None:
    """Only the first process says something."""
