"""The run of ``compress``: check, score, search, recover, judge, save; what is done already is taken up.

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
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.compress import folder, telling
from course_utils.compress.asked import (
    refuse_odd_text,
    refuse_places,
    refuse_processes,
    refuse_what_cannot_be_exported,
    refuse_what_cannot_learn,
    versions_asked,
)
from course_utils.compress.estimate import estimate
from course_utils.compress.learning import recipe_for
from course_utils.compress.order import Order
from course_utils.compress.ranking import rank
from course_utils.compress.scores import AXES, Importance, importance
from course_utils.compress.search import Budget, Candidate, shrink
from course_utils.compress.text import Text, begun_on
from course_utils.healing.distillation import distill
from course_utils.healing.distillation.processes import alone
from course_utils.measuring.abilities import ABILITIES, Baseline, damage_profile
from course_utils.models.architectures import cast_weights
from course_utils.models.loading import identity, load_model, load_without_weights, variant
from course_utils.models.reports import model_size
from course_utils.pruning.checkpoints import save_pruned
from course_utils.release.rivals import Version, in_fewer_bits, table, timed
from course_utils.support.files import write_json
from course_utils.text.own_text import OwnText, read_own_text

_SEARCHING = timedelta(days=7)  # how long processes wait for the one that scores and searches, at most
_CORRECTION = 0.25  # the teacher's learning rate in its correction, as a share of the student's
Say = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """An order that can be carried out, as far as that is known before weights are read.

    Attributes:
        order: with no light distillation where there is nothing to choose.
        budget: what a version may cost.
        candidates: the versions that fit.
        text: for every role.
        own: the user's text; None for the course's.
        keep: writes down what a run that goes on has to find as it was.
    """

    order: Order
    budget: Budget
    candidates: list[Candidate]
    text: Text
    own: OwnText | None
    keep: Callable[[], object]


@dataclass(frozen=True)
class Found:
    """What the search found.

    Attributes:
        winner: the best version.
        scores: of the model's parts.
        folder: of the model that was searched.
    """

    winner: Candidate
    scores: Importance
    folder: Path


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
    """All of it; what was found, as JSON can hold it, in the first process."""
    refuse_places(order)
    refuse_odd_text(order)
    refuse_what_cannot_learn(order)
    disable_fsdp_ram_efficient_loading()  # or a sharded launch may load the teacher's weights in one process alone
    # Without a card the processes find each other only if they say so.
    launch = PartialState(cpu=not torch.cuda.is_available(), timeout=_SEARCHING)
    refuse_processes(order, launch.num_processes)
    if not launch.is_main_process:
        say = _say_nothing
    plan = _plan(order, say)
    order = plan.order
    device = launch.device if launch.num_processes > 1 else None
    model, tokenizer = load_model(order.model, dtype=getattr(torch, order.dtype), device=device)
    report = _tell(plan, model, launch, say)
    if order.dry_run:
        return report if launch.is_main_process else {}

    records = folder.records_in(order.out)
    with _goes_on(records), folder.held(order.out) if launch.is_main_process else contextlib.nullcontext():
        versions: dict[str, Version] = {}
        why_not: dict[str, str] = {}
        if launch.is_main_process:
            plan.keep()
            versions, why_not, baseline = _judge_whole(model, tokenizer, plan.text, records)
        base = _hub_id(model)
        model = _corrected(model, plan, records)  # after a correction the first one's weights leave memory
        found = _search(model, plan, records, launch, say)
        if launch.is_main_process:  # before there is a student: two models at a time
            chance = shrink(model, found.winner, _at_random(found.scores, order.seed))
            versions["random cut"] = Version.of(chance, plan.text.held_out, folder=records / "rivals")
            del chance
        student = shrink(model, found.winner, found.scores)
        if launch.is_main_process:
            versions["cut"] = Version.of(student, plan.text.held_out, folder=records / "rivals")
            versions, why_not["tokens a second in llama.cpp"] = timed(
                versions, model, student, tokenizer, length=order.length, folder=records / "rivals"
            )
        _recover(model, student, plan, found)
        if launch.is_main_process:
            if order.steps:
                recovered = Version.of(student, plan.text.held_out, folder=records / "rivals")
                versions["recovered"] = replace(recovered, speeds=versions["cut"].speeds)
            *_, shipped = versions.values()
            damage = damage_profile(student, baseline, shipped.score)
            report |= _save(student, tokenizer, plan, found.winner, versions, damage, why_not, base, say)
        launch.wait_for_everyone()
    return report if launch.is_main_process else {}


@contextlib.contextmanager
def _goes_on(records: Path) -> Iterator[None]:
    """Tell who stops a run with Ctrl-C that nothing of it is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nThe same command goes on from what is done, in {records}.", file=sys.stderr)
        raise


def _plan(order: Order, say: Say) -> Plan:
    """Everything that can be refused before weights are read."""
    own = read_own_text(order.text, judge=order.judge, seed=order.seed) if order.text else None
    config, tokenizer = load_without_weights(order.model)
    budget, candidates = versions_asked(config, order)
    refuse_what_cannot_be_exported(config, tokenizer, candidates[0], order)
    if min(order.finalists, len(candidates)) == 1:
        order = replace(order, light=0)  # there is nothing to choose
    if own is None:
        return Plan(order, budget, candidates, Text.built_in(tokenizer, order), None, lambda: None)
    own, keep = begun_on(own, tokenizer, order.out)
    return Plan(order, budget, candidates, Text.own(own, tokenizer, order, say), own, keep)


def _tell(plan: Plan, model: PreTrainedModel, launch: PartialState, say: Say) -> dict[str, Any]:
    """Say what is going to happen and what it takes; the same as JSON can hold it."""
    order, whole = plan.order, Candidate.of(model)
    for line in [
        *telling.found_under(plan.budget, whole, plan.candidates, order),
        *telling.planned(len(plan.candidates), order, launch.num_processes),
        *(telling.text_told(plan.own, plan.text, order) if plan.own else []),
    ]:
        say(line)
    sharded = launch.distributed_type == DistributedType.FSDP
    needed = estimate(model, plan.candidates, order, processes=launch.num_processes, sharded=sharded)
    say(str(needed))
    built_in = {"learned": order.domain, "judged": plan.text.judged_by}
    return {
        "model": _hub_id(model) or "a local model",
        "parameters": whole.parameters,
        "budget": {"amount": plan.budget.amount, "unit": plan.budget.unit},
        "versions": [candidate.sizes | {"parameters": candidate.parameters} for candidate in plan.candidates],
        "estimate": needed.as_json(),
        "learning": {"recover": order.recover, "dtype": order.dtype, "recompute": order.recompute, "lr": order.rate},
        "text": telling.text_as_json(plan.own, plan.text) if plan.own else built_in,
    }


def _judge_whole(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Text, records: Path
) -> tuple[dict[str, Version], dict[str, str], Baseline]:
    """The whole model as it is and in fewer bits, why not where that can't be measured, and what it can do."""
    measured = {"folder": records / "rivals"}
    in_bits, why_not = in_fewer_bits(model, tokenizer, text.held_out, **measured)
    versions = {"whole": Version.of(model, text.held_out, **measured)} | in_bits
    baseline = Baseline.of(model, tokenizer, ABILITIES, versions["whole"].score)
    return versions, {"the whole model in 8 and 4 bits": why_not}, baseline


def _corrected(model: PreTrainedModel, plan: Plan, records: Path) -> PreTrainedModel:
    """The teacher after a few steps on the text that students are to learn from (Minitron in practice, 2408.11796)."""
    order, steps = plan.order, plan.order.correction
    if steps == 0:
        return model
    teacher, batches = variant(model), plan.text.for_all(steps * order.accumulate)
    recipe = recipe_for(steps, order, lr=order.rate * _CORRECTION, alpha=1.0)
    place = records / identity(model) / f"correction-{steps}-{order.learning_key(plan.text.key)}"
    distill(model, teacher, batches, recipe, checkpoint_dir=place)
    cast_weights(teacher, getattr(torch, order.dtype))
    return teacher


def _search(teacher: PreTrainedModel, plan: Plan, records: Path, launch: PartialState, say: Say) -> Found:
    """Score the model's parts, and find the best version as cut, or after light distillation; every record is kept."""
    order, text = plan.order, plan.text
    place = records / identity(teacher)  # another model, or a corrected teacher, has a folder of its own
    with launch.main_process_first(), alone():  # the others find in the folder what the first one has done
        stored = place / f"scores-{order.length}-{order.seed}-{text.key}.safetensors"
        if not stored.exists():
            importance(teacher, text.scored).save(stored)
        scores = Importance.load(stored)
        ranking = rank(teacher, plan.candidates, scores, text.choosing, folder=place / "search")
    shown = ["blocks", "hidden", "groups", "neurons", "parameters", "nll"]
    if order.light:
        finalists, light = _candidates_in(ranking.head(order.finalists)), recipe_for(order.light, order)
        train = text.for_all(order.light * order.accumulate)
        ranking = rank(teacher, finalists, scores, text.choosing, folder=place / "search", train=train, recipe=light)
        shown.append("distilled_nll")
    say(ranking[shown].to_string(index=False))
    (winner,) = _candidates_in(ranking.head(1))
    return Found(winner, scores, place)


def _recover(teacher: PreTrainedModel, student: PreTrainedModel, plan: Plan, found: Found) -> None:
    """Let the student learn from the teacher, in place."""
    order = plan.order
    if order.steps == 0:
        return
    batches = plan.text.for_all(order.steps * order.accumulate)
    place = found.folder / f"{found.winner.name}-{order.steps}-{order.learning_key(plan.text.key)}"
    distill(teacher, student, batches, recipe_for(order.steps, order), checkpoint_dir=place)
    cast_weights(student, getattr(torch, order.dtype))


def _save(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    winner: Candidate,
    versions: dict[str, Version],
    damage: pd.DataFrame,
    why_not: dict[str, str],
    base: str,
    say: Say,
) -> dict[str, Any]:
    """Write the model with its card, and as one file where that was asked; say what could be shipped instead."""
    order, made, shown = plan.order, model_size(student), table(versions, judged_by=plan.text.judged_by)
    with folder.replacing_model(order.out) as fresh:
        save_pruned(student, tokenizer, fresh)
        telling.write_card(fresh, base, winner, versions, shown, damage, plan.text, order)
        write_json(fresh / folder.MADE, {"made of": base or "a local model", "sizes": winner.sizes} | order.settings())
    say(f"{winner.name}: {made.parameters:,} parameters, and what else could be shipped:")
    say(shown.to_string())
    not_measured = {what: reason for what, reason in why_not.items() if reason}
    for what, reason in not_measured.items():
        say(f"Not measured, {what}: {reason}")
    target = folder.model_in(order.out)
    say(f"Saved with its card; AutoModelForCausalLM.from_pretrained({str(target)!r}) loads it.")
    report = {
        "made": winner.sizes | {"parameters": made.parameters, "bytes": made.bytes},
        "held_out": {name: version.as_json() for name, version in versions.items()},
        "not_measured": not_measured,
        "saved": str(target),
    }
    if order.export:
        from course_utils.release.export import export_gguf  # an extra's package

        report["exported"] = str(export_gguf(student, tokenizer, folder.gguf_in(order.out)))
        say(f"Written for llama.cpp, in 16 bits: {report['exported']}.")
    return report


def _hub_id(model: PreTrainedModel) -> str:
    """What the world knows the model as; "" for one that lies on this machine only, whose path is nobody's business."""
    name = model.config.name_or_path or ""
    return "" if os.path.isdir(name) else name


def _say_nothing(_line: str) -> None:
    """What all processes but the first one say."""


def _at_random(kept: Importance, seed: int) -> Importance:
    """Scores that say nothing, on every axis that the model has."""
    return kept.random([axis for axis in AXES if getattr(kept, axis) is not None], seed)


def _candidates_in(frame: pd.DataFrame) -> list[Candidate]:
    """The versions in the rows of a ranking."""
    names = ["blocks", "hidden", "groups", "neurons", "parameters", "cost"]
    return [Candidate(*row) for row in frame[names].itertuples(index=False)]
