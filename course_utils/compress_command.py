"""``python -m course_utils compress MODEL --budget 113M``: lesson 11's recipe for any supported model, resumable.

First it says what it is going to do and what that takes; with --dry-run it stops there. Whatever can be wrong with the
arguments, the model or the text is found before its weights are read.

Under ``accelerate launch`` the processes share the teacher's correction and the recovery; the first one scores,
searches, saves and judges for all, in a folder that all of them see. The model is that of a single process up to
rounding, and either may go on where the other stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading, parse_flag_from_env
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.abilities import ABILITIES, ability_rows, damage_profile
from course_utils.architectures import cast_weights, describe
from course_utils.benchmarking import stopwatch
from course_utils.checkpoints import save_pruned
from course_utils.compress import AXES, Budget, Candidate, Importance, candidates, importance, outline_of, rank, shrink
from course_utils.distillation import Recipe, distill
from course_utils.distillation.memory import memory_plan, outline
from course_utils.distillation.processes import alone
from course_utils.distillation.teacher_cache import TeacherCache, cache_teacher, refuse_full_disk
from course_utils.evaluation import perplexity_ratio
from course_utils.extras import brought
from course_utils.model_card import licence_of, write_model_card
from course_utils.models import identity, load_model, load_without_weights, variant
from course_utils.own_text import OwnText, RowsOnDisk, read_own_text
from course_utils.reports import model_size, with_interval
from course_utils.rivals import Version, in_fewer_bits, table, timed
from course_utils.texts import DOMAINS, LARGE_DOMAINS, TokenBlocks, token_blocks

_SEARCHING = timedelta(days=7)  # how long processes wait for the one that scores and searches, at most
_RATES = {"all": 2e-4, "mlps": 2e-4, "lora": 2e-3}  # a correction of low rank begins at 0 and may take larger steps
_RANK = 16  # of that correction
_CORRECTION = 0.25  # the teacher's learning rate in its correction, as a share of the student's
_CALIBRATION, _SCORED, _JUDGED = 48, 32, 24  # rows; the others of the first are to choose by
_LEARNING = {"all": "all weights", "mlps": "the MLPs' weights", "lora": f"a correction of rank {_RANK} (LoRA)"}
_TIMED, _PATIENCE = 5, 20.0  # forward passes, and seconds after which two of them will do


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
    checks.one_of("--domain", args.domain, (*DOMAINS, *LARGE_DOMAINS))
    if args.judge and not args.text:
        raise ValueError("'--judge' goes with '--text'; built-in text (--domain) is judged by held-out speeches.")
    own = read_own_text(args.text, judge=args.judge or [], seed=args.seed) if args.text else None
    if args.lr is None:
        args.lr = _RATES[args.recover]
    _refuse_what_cannot_learn(args)
    disable_fsdp_ram_efficient_loading()  # or a sharded launch may load the teacher's weights in one process alone
    # Without a card the processes find each other only if they say so.
    launch = PartialState(cpu=not torch.cuda.is_available(), timeout=_SEARCHING)
    if args.accumulate % launch.num_processes:
        raise ValueError(
            f"'--accumulate' ({args.accumulate}) must be a multiple of the number of processes "
            f"({launch.num_processes}): each takes as many of a step's batches."
        )
    if not launch.is_main_process:
        say = _say_nothing
    if args.teacher == "disk" and launch.num_processes > 1:
        raise ValueError("'--teacher disk' is for one process; leave it out, or launch one.")
    dtype = getattr(torch, args.dtype)
    config, tokenizer = load_without_weights(args.model)
    budget, found = _versions(config, args)
    text = _Text.built_in(tokenizer, args) if own is None else _Text.own(own, tokenizer, args, say)
    for name in ABILITIES:
        ability_rows(name, tokenizer)  # what the card needs in the end is fetched before a weight is read
    device = launch.device if launch.num_processes > 1 else None
    model, tokenizer = load_model(args.model, dtype=dtype, device=device)
    base = _hub_id(model)
    whole = Candidate.of(model)
    say(f"{args.model}: {whole.parameters:,} parameters, {whole.name}")
    cost = "version costs" if len(found) == 1 else "versions cost"
    say(f"{len(found)} {cost} at most {budget.amount:,.0f} {budget.unit}:")
    for candidate in found:
        say(f"  {candidate.name:<26}{candidate.parameters:>15,} parameters")
    say(
        f"Steps: {args.correction} of teacher correction, {min(args.finalists, len(found))} x {args.light} of light "
        f"distillation, {args.steps} of recovery, of {args.rows} x {args.length} tokens; correction and recovery take "
        f"{args.accumulate} such batches a step, shared by {launch.num_processes} process(es)."
    )
    if own is not None:
        for line in _told(own, args):
            say(line)
    say(
        f"Learning: {_LEARNING[args.recover]}, with the model in {args.dtype}, the teacher "
        f"{'on disk in the recovery' if args.teacher == 'disk' else 'in memory'}, activations "
        f"{'computed twice' if args.recompute else 'kept'}, a rate of {args.lr:g}."
    )
    needed = _estimate(model, found, args, processes=launch.num_processes)
    say(str(needed))
    report: dict[str, Any] = {
        "model": base or "a local model",
        "parameters": whole.parameters,
        "budget": {"amount": budget.amount, "unit": budget.unit},
        "versions": [candidate.sizes | {"parameters": candidate.parameters} for candidate in found],
        "estimate": asdict(needed),
        "learning": {name: getattr(args, name) for name in ("recover", "dtype", "teacher", "recompute", "lr")},
        "text": {"learned": args.domain, "judged": text.judged_by} if own is None else _as_json(own),
    }
    if args.dry_run:
        return report if launch.is_main_process else {}

    versions: dict[str, Version] = {}
    why_not: dict[str, str] = {}
    if launch.is_main_process:
        in_bits, why_not["the whole model in 8 and 4 bits"] = in_fewer_bits(model, tokenizer, text.held_out)
        versions = {"whole": Version.of(model, text.held_out)} | in_bits
    model = _corrected(model, text, args)
    # Another model, a corrected teacher, or other text has a folder of its own.
    folder = args.out / identity(model)
    with launch.main_process_first(), alone():  # the others find in the folder what the first one has done
        of_text = "" if own is None else f"-{own.digest}"
        scores = folder / f"scores-{args.length}-{args.seed}{of_text}.safetensors"
        if not scores.exists():
            importance(model, text.scored()).save(scores)
        kept = Importance.load(scores)
        winner, ranking = _search(model, found, kept, text, folder / "search", args)
    say(ranking)

    student = shrink(model, winner, kept)
    if launch.is_main_process:
        versions["random cut"] = Version.of(shrink(model, winner, _at_random(kept, args.seed)), text.held_out)
        versions["cut"] = Version.of(student, text.held_out)
        sizes = {"length": args.length, "folder": args.out}
        versions, why_not["tokens a second in llama.cpp"] = timed(versions, model, student, tokenizer, **sizes)
    if args.steps:
        recipe = _recipe(args.steps, args, accumulate=args.accumulate)
        batches, name = text.learned(args.steps * args.accumulate), _name(args.steps, text, args)
        teacher: PreTrainedModel | TeacherCache = model
        if args.teacher == "disk":
            teacher = cache_teacher(model, batches, folder / f"teacher-{name}")
            del model  # with it goes what the student doesn't share
        distill(teacher, student, batches, recipe, checkpoint_dir=folder / f"{winner.name}-{name}")
        cast_weights(student, dtype)
    if launch.is_main_process:
        if args.steps:
            recovered = Version.of(student, text.held_out)
            versions["recovered"] = replace(recovered, speeds=versions["cut"].speeds)
        target = save_pruned(student, tokenizer, args.out / "model")
        measured = table(versions, judged_by=text.judged_by)
        damage = _damage(student, text, args)
        _write_card(target, base, winner, versions, measured, damage, text, args)
        made = model_size(student)
        say(f"{winner.name}: {made.parameters:,} parameters, and what else could be shipped:")
        say(measured.to_string())
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
    launch.wait_for_everyone()
    return report if launch.is_main_process else {}


def _refuse_what_cannot_learn(args: argparse.Namespace) -> None:
    """Raise where a way to learn needs what isn't there."""
    if args.recover == "lora":
        with brought("lora"):
            import peft  # noqa: F401
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError("'--recover lora' is for launches without --use_fsdp, which cuts up what it corrects.")


def _recipe(steps: int, args: argparse.Namespace, **changes: Any) -> Recipe:
    """How anything learns: the corrected teacher, finalists and the winner."""
    usual = {"lr": args.lr, "seed": args.seed, "precision": getattr(torch, args.dtype)}
    return Recipe(steps=steps, **_what_learns(args), **usual | changes)


def _what_learns(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that memory hangs on."""
    rank = _RANK if args.recover == "lora" else 0
    return {"mlps_only": args.recover == "mlps", "lora_rank": rank, "recompute": args.recompute}


def _versions(config: PretrainedConfig, args: argparse.Namespace) -> tuple[Budget, list[Candidate]]:
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


def _hub_id(model: PreTrainedModel) -> str:
    """What the world knows the model as; "" for one that lies on this machine only, whose path is nobody's business."""
    name = model.config.name_or_path or ""
    return "" if os.path.isdir(name) else name


def _name(steps: int, text: _Text, args: argparse.Namespace) -> str:
    """Of a folder for so many steps: the number and a digest of all that decides what is learned in them.

    So another wish has a place of its own, and isn't refused in the end for what lies there.
    """
    asked = [args.lr, args.accumulate, args.rows, args.length, text.key, args.seed, args.recover, args.teacher]
    return f"{steps}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"


def _told(own: OwnText, args: argparse.Namespace) -> list[str]:
    """What was found in text of one's own, and who may see which of it."""
    counted = (
        f"{source.path} ({found.documents:,} documents, {found.chats:,} of them chats, weight {source.weight:g})"
        for source, found in zip(own.sources, own.contents, strict=True)
    )
    lines = [f"Text: {', '.join(counted)}."]
    if own.left_out.count:
        lines.append(f"Lines and files: {own.left_out}.")
    judges = f"{len(own.judging):,} documents " + ("of --judge" if args.judge else "held out before anything else")
    chooses = f"{len(own.choosing):,} more held out to choose by, all of them with seed {args.seed}"
    lines.append(f"Judged by {judges}; {chooses}.")
    if own.shared:
        lines.append(f"{own.shared:,} held-out documents share thirteen words in a row with others; nobody uses them.")
    learned = args.rows * args.accumulate * args.steps
    for place, turns in own.turns(rows=max(1, learned), length=args.length).items():
        if turns >= 2:
            lines.append(f"{place} is short: for {args.steps} steps it is read {turns:,.0f} times at least.")
    return lines


def _as_json(own: OwnText) -> dict[str, Any]:
    """The same for programs."""
    return {
        "learned": [
            {"source": source.path.name, "weight": source.weight} | asdict(found)
            for source, found in zip(own.sources, own.contents, strict=True)
        ],
        "left_out": asdict(own.left_out),
        "documents_to_choose_by": len(own.choosing),
        "documents_to_judge_by": len(own.judging),
        "shared_and_unused": own.shared,
    }


_Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Text:
    """To score by, to choose by, to learn, and to judge by in the end.

    Attributes:
        scored: makes the batches to score by.
        choosing: as ``rank`` takes it.
        learned: makes so many batches.
        held_out: judges.
        key: stands for what is learned, in a folder's name.
        learned_from: in words.
        judged_by: in words.
    """

    scored: Callable[[], _Batches]
    choosing: TokenBlocks | _Batches
    learned: Callable[[int], _Batches]
    held_out: TokenBlocks | _Batches
    key: str
    learned_from: str
    judged_by: str

    @classmethod
    def built_in(cls, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> _Text:
        """The course's, all of it before any of it is used; the seed decides which, except of what judges."""

        def rows(split: str, count: int, domain: str = "speeches", seed: int = args.seed) -> TokenBlocks:
            size = {"tokens": count * args.length, "length": args.length}
            return token_blocks(tokenizer, split, domain=domain, seed=seed, **size)

        learned = args.rows * max(args.accumulate * max(args.steps, args.correction), args.light)
        try:
            calibration = rows("calibration", _CALIBRATION).sample(_CALIBRATION, args.seed)
            batches = rows("distillation", learned, args.domain).batches(args.rows) if learned else []
            held_out = rows("evaluation", _JUDGED, seed=0)
        except ValueError as error:
            raise ValueError(
                f"{error} Rows are as long as --length says; --steps, --correction or --light, times --accumulate and "
                "--rows, are learned."
            ) from error
        return cls(
            scored=lambda: calibration[:_SCORED].batches(args.rows),
            choosing=calibration[_SCORED:],
            learned=lambda count: batches[:count],  # which are the first doesn't hang on how many there are
            held_out=held_out,
            key=args.domain,
            learned_from=args.domain,
            judged_by="held-out speeches",
        )

    @classmethod
    def own(
        cls, own: OwnText, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace, say: Callable[[str], object]
    ) -> _Text:
        """The user's; what judges and chooses is read now, what is scored and learned when its turn comes."""
        size = {"length": args.length, "batch_size": args.rows}
        own.check(tokenizer, length=args.length)

        def learned(rows: int) -> RowsOnDisk:
            made = own.learned(tokenizer, rows=rows, folder=args.out / "text", **size)
            if made.left_out.count:
                say(f"Of what gives {rows:,} rows: {made.left_out}.")
            return made

        return cls(
            scored=lambda: learned(_SCORED),
            choosing=own.to_choose(tokenizer, rows=_CALIBRATION - _SCORED, **size),
            learned=lambda count: learned(count * args.rows),
            held_out=own.to_judge(tokenizer, rows=_JUDGED, **size),
            key=own.digest,
            learned_from="the maker's own text",
            judged_by="held-out text of the maker's own",
        )


def _damage(student: PreTrainedModel, text: _Text, args: argparse.Namespace) -> pd.DataFrame:
    """What it lost besides: beside the model as it was loaded, which the correction may have taken out of memory."""
    whole, tokenizer = load_model(args.model, dtype=student.dtype, device=student.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the card says what is left out
        return damage_profile(student, whole, tokenizer, ABILITIES, text.held_out)


def _write_card(
    folder: Path,
    base: str,
    winner: Candidate,
    versions: dict[str, Version],
    measured: pd.DataFrame,
    damage: pd.DataFrame,
    text: _Text,
    args: argparse.Namespace,
) -> None:
    """The card beside the model: what was done, what was measured, and what was not."""
    learned = {
        "corrected teacher": args.correction * args.accumulate * args.rows * args.length,
        "recovery": args.steps * args.accumulate * args.rows * args.length,
    }
    most = "at most " if args.text else ""  # of one's own text rows are padded, and of chats answers are learned
    *_, made = versions.values()
    write_model_card(
        folder,
        name=f"{Path(base).name}-{winner.name}" if base else f"A local model, {winner.name}",
        base_model=base or None,
        licence=licence_of(base) if base else "unknown",
        summary=f"{base or 'A local model'}, cut to {winner.parameters:,} parameters"
        + (" and distilled from the whole model." if args.steps else "; nothing was learned after the cut."),
        recipe=winner.sizes
        | {"cut by": "activation scores, one calibration pass", "seed": args.seed, "dtype": args.dtype}
        | ({"learned": _LEARNING[args.recover]} if any(learned.values()) else {})
        | {f"tokens of {text.learned_from}, {what}": f"{most}{tokens:,}" for what, tokens in learned.items() if tokens},
        measured=measured,
        limits=_limits(text.judged_by, *perplexity_ratio(made.score, versions["whole"].score)),
        sources=["Muralidharan et al. 2024 (Minitron), arXiv 2407.14679", "The course Pruning LLMs, lesson 11"],
        damage=damage,
    )


def _limits(judged_by: str, ratio: float, low: float, high: float) -> list[str]:
    """What the model is bad at: the judging text only where its perplexity is shown to be above the whole model's."""
    worse = f"On {judged_by} its perplexity is × {with_interval(ratio, low, high)} the whole model's."
    unknown = "Nothing else was measured after the cut than what stands above: no other task, no bias."
    return [worse, unknown] if low > 1 else [unknown]


def _say_nothing(_line: str) -> None:
    """What all processes but the first one say."""


def _corrected(model: PreTrainedModel, text: _Text, args: argparse.Namespace) -> PreTrainedModel:
    """The teacher after a few steps on the text that students are to learn from (Minitron in practice, 2408.11796)."""
    if args.correction == 0:
        return model
    teacher = variant(model)
    batches = text.learned(args.correction * args.accumulate)
    recipe = _recipe(args.correction, args, lr=args.lr * _CORRECTION, accumulate=args.accumulate, alpha=1.0)
    folder = args.out / identity(model) / f"correction-{_name(args.correction, text, args)}"
    distill(model, teacher, batches, recipe, checkpoint_dir=folder)
    cast_weights(teacher, getattr(torch, args.dtype))
    return teacher


def _search(
    model: PreTrainedModel,
    found: list[Candidate],
    kept: Importance,
    text: _Text,
    folder: Path,
    args: argparse.Namespace,
) -> tuple[Candidate, str]:
    """The version that is best after light distillation, and the ranking as a table; every record is kept."""
    ranking = rank(model, found, kept, text.choosing, folder=folder)
    shown = ["blocks", "hidden", "groups", "neurons", "parameters", "nll"]
    if args.light:
        best = _candidates_in(ranking.head(args.finalists))
        light, train = _recipe(args.light, args), text.learned(args.light)
        ranking = rank(model, best, kept, text.choosing, folder=folder, train=train, recipe=light)
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


@dataclass(frozen=True)
class _Needed:
    """What the recipe takes: bytes in each process while the largest model learns, and the fewest and most seconds."""

    bytes: float
    seconds: tuple[float, float]
    passes: tuple[float, ...]

    def __str__(self) -> str:
        low, high = (f"{seconds / 60:,.0f}" for seconds in self.seconds)
        spread = f"{min(self.passes):.3g} to {max(self.passes):.3g} s"
        return (
            f"About {self.bytes / 1e9:.1f} GB of memory and "
            f"{low if low == high else f'{low} to {high}'} minutes on this machine, by {len(self.passes)} forward "
            f"passes of {spread}. Both are estimates; what else runs here can double the time."
        )


def _estimate(
    model: PreTrainedModel, found: list[Candidate], args: argparse.Namespace, *, processes: int = 1
) -> _Needed:
    """Memory is counted from shapes; time is that of forward passes on this machine, times what there is to do."""
    largest = max(found, key=lambda candidate: candidate.parameters)
    learning = model if args.correction else outline_of(model, largest)
    whole, recipe = outline(model.config).to(model.dtype), _recipe(1, args, accumulate=args.accumulate // processes)
    plan = memory_plan(whole, outline(learning.config), recipe, rows=args.rows, length=args.length)
    if args.teacher == "disk" and not (args.correction or args.light):
        plan["teacher"] = 0  # only to cut does it have to be there
    share = largest.parameters / model_size(model).parameters
    # In a step the teacher reads, and the student reads and learns, which is three readings of its own size.
    each = 1 + 3 * share
    searching = len(found) * 16 / args.rows + min(args.finalists, len(found)) * args.light * each
    learning_steps = args.correction * 3 + args.steps * each
    learns = args.correction or args.light or args.steps
    size = sum(plan.values()) if learns else plan["teacher"] + plan["student"]
    passes = _timed(model, args)
    work = 1.3 * (searching + learning_steps * args.accumulate / processes)  # 1.3: and the head
    return _Needed(size, (work * min(passes), work * max(passes)), passes)


def _timed(model: PreTrainedModel, args: argparse.Namespace) -> tuple[float, ...]:
    """Seconds of forward passes, the first of which, that warms up, doesn't count."""
    ids = torch.ones(args.rows, args.length, dtype=torch.long, device=model.device)
    took: list[float] = []
    while len(took) <= _TIMED and (len(took) < 3 or sum(took) < _PATIENCE):
        with torch.no_grad(), stopwatch() as seconds:
            model.base_model(ids, use_cache=False)
        took.append(seconds())
    return tuple(took[1:])
