"""Make a small model from the embedded Llama as leading labs do, with every control, for lesson 11.

    python -m experiments.make_a_small_model [--steps 1000] [--work build/small_model]

The whole recipe: the teacher learns a little of the text first (teacher correction), all axes are scored in one pass,
versions under a budget are ranked as cut and after light distillation with several seeds, and the winner learns from
the corrected teacher. Beside it, with the same tokens in the same order, learn a random cut of the winner's sizes, the
same sizes from random weights, the best version that only gave up blocks, and the winner of the teacher as it was.

Resumable at any point: each part's result is a file in the work folder. Evaluation text is read by the last part alone.
At the end it writes curves, figures and comparisons, all or nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from course_utils.architectures import cast_weights
from course_utils.checkpoints import load_pruned, save_pruned
from course_utils.compress import AXES, Budget, Candidate, Importance, candidates, importance, rank, shrink
from course_utils.distillation import Recipe, distill
from course_utils.files import write_json
from course_utils.language_modelling import perplexity
from course_utils.models import load_model
from course_utils.reports import model_size
from course_utils.session import fast_dtype
from course_utils.texts import TokenBlocks, token_blocks
from course_utils.uncertainty import ratio_interval
from experiments.recover_for_an_hour import LENGTH, ROWS, SEED, batches, clean, some_rows, training_rows

OUT = Path("course_utils/data/small_model.json")
DOMAINS = {"speeches": 102_400, "wiki": 25_600, "stories": 5_120}  # tokens of each split to take rows from
SCORED, CHOSEN, JUDGED = 8, 6, 20  # rows of each domain: to score by, to choose by, to judge by
LR, CORRECTION_LR = 2e-4, 5e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.84, help="parameters that stay, as a share")
    parser.add_argument("--steps", type=int, default=1000, help=f"of recovery, of {ROWS} x {LENGTH} tokens each")
    parser.add_argument("--correction", type=int, default=150, help="steps of teacher correction")
    parser.add_argument("--light", type=int, default=40, help="steps of light distillation in the ranking")
    parser.add_argument("--seeds", type=int, default=3, help="of the ranking")
    parser.add_argument("--finalists", type=int, default=6, help="versions that are lightly distilled")
    parser.add_argument("--multiple-of", type=int, default=32, help="of the MLPs' widths")
    parser.add_argument("--work", type=Path, default=Path("build/small_model"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    whole, tokenizer = load_model("llama", dtype=fast_dtype(torch.device("cpu")))
    rows, watched = training_rows(tokenizer, args.steps)
    scoring, choosing = calibration_rows(tokenizer)
    teacher = corrected(whole, tokenizer, rows, args)
    scores = {name: scored(model, scoring, args.work / f"scores_{name}.safetensors") for name, model in
              (("corrected", teacher), ("uncorrected", whole))}  # fmt: skip
    found, zero_shot, ranked = searched(teacher, scores["corrected"], choosing, rows, args)
    winner, depth_only = found

    cut = {
        "winner": (teacher, lambda: shrink(teacher, winner, scores["corrected"])),
        "random cut": (teacher, lambda: shrink(teacher, winner, scores["corrected"].random(AXES, SEED))),
        "from scratch": (teacher, lambda: from_scratch(teacher, winner, scores["corrected"])),
        "depth only": (teacher, lambda: shrink(teacher, depth_only, scores["corrected"])),
        "uncorrected": (whole, lambda: shrink(whole, winner, scores["uncorrected"])),
    }
    learned = {name: recovered(name, of, make, tokenizer, rows, watched, args) for name, (of, make) in cut.items()}

    judges = judging_rows(tokenizer, rows)
    judged = {"whole": {"after": nats(whole, judges)}, "corrected teacher": {"after": nats(teacher, judges)}}
    for name, (_, make) in cut.items():
        judged[name] = part(args.work / f"judged_{name}.json", lambda make=make, name=name: {
            "before": nats(make(), judges), "after": nats(load_pruned(args.work / name / "student")[0], judges),
        })  # fmt: skip
    result = {
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        "settings": {name: value for name, value in vars(args).items() if name not in ("work", "out")}
        | {"lr": LR, "correction_lr": CORRECTION_LR, "rows": ROWS, "length": LENGTH},
        "parameters": {"whole": model_size(whole).parameters, "winner": winner.parameters},
        "sizes": {"winner": winner.sizes, "depth only": depth_only.sizes},
        "zero_shot": json.loads(zero_shot.to_json(orient="records")),
        "ranked": json.loads(ranked.to_json(orient="records")),
        "learned": learned,
        "judged": judged,
        "recovered": {name: recovered_share(judged, name) for name in cut},
        "compared": {
            name: compared(judged["winner"]["after"], judged[name]["after"]) for name in cut if name != "winner"
        },
    }
    write_json(args.out, result, indent=1)
    print(pd.DataFrame(result["recovered"]).T.to_string(float_format="{:.2f}".format))
    print(f"written to {args.out}")


def part(path: Path, make: Callable[[], Any]) -> Any:
    """What a part of the experiment found, made once."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def calibration_rows(tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenBlocks], list[TokenBlocks]]:
    """Rows of the calibration split to score by, and others to choose by."""
    both = []
    for domain in DOMAINS:
        pool = token_blocks(tokenizer, "calibration", domain=domain, tokens=(SCORED + CHOSEN) * LENGTH, length=LENGTH)
        both.append(pool.sample(SCORED + CHOSEN, SEED))
    return [blocks[:SCORED] for blocks in both], [blocks[SCORED:] for blocks in both]


def judging_rows(tokenizer: PreTrainedTokenizerBase, learned: torch.Tensor) -> dict[str, TokenBlocks]:
    """Rows of the evaluation split that share no thirteen words in a row with what was learned."""
    texts = tokenizer.batch_decode(learned)
    pools = {name: token_blocks(tokenizer, "evaluation", domain=name, tokens=tokens, length=LENGTH)
             for name, tokens in DOMAINS.items()}  # fmt: skip
    return {name: clean(some_rows(pool, JUDGED), tokenizer, texts) for name, pool in pools.items()}


def corrected(
    whole: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: torch.Tensor, args: argparse.Namespace
) -> PreTrainedModel:
    """The teacher, after a little training on the text that students are to learn from."""
    folder = args.work / "teacher"
    if not (folder / "config.json").exists():
        teacher = copy.deepcopy(whole)
        distill(
            whole, teacher, batches(rows[: args.correction * ROWS]), steps=args.correction, lr=CORRECTION_LR, alpha=1.0,
            precision=whole.dtype, seed=SEED, checkpoint_dir=args.work / "correction",
        )  # fmt: skip
        cast_weights(teacher, whole.dtype)
        save_pruned(teacher, tokenizer, folder)
    return load_pruned(folder)[0]


def scored(model: PreTrainedModel, scoring: list[TokenBlocks], path: Path) -> Importance:
    if not path.exists():
        importance(model, [batch for blocks in scoring for batch in blocks.batches()]).save(path)
    return Importance.load(path)


def searched(
    teacher: PreTrainedModel,
    scores: Importance,
    choosing: list[TokenBlocks],
    rows: torch.Tensor,
    args: argparse.Namespace,
) -> tuple[tuple[Candidate, Candidate], pd.DataFrame, pd.DataFrame]:
    """The winner and the best version that only gave up blocks; the ranking as cut, and after light distillation."""
    whole = Candidate.of(teacher)
    budget, folder = Budget(args.share * whole.parameters), args.work / "search"
    several = candidates(teacher, budget, multiple_of=args.multiple_of, tolerance=0.03)
    depth_only = fewer_blocks(teacher, budget)
    zero_shot = rank(teacher, [*several, *({depth_only} - set(several))], scores, choosing, folder=folder)
    by_name = {candidate.name: candidate for candidate in [*several, depth_only]}
    zero_shot["name"] = [Candidate(*sizes).name for sizes in zero_shot[[*whole.sizes]].itertuples(index=False)]
    finalists = [by_name[name] for name in zero_shot["name"][: args.finalists]]
    frames = []
    for seed in range(args.seeds):  # each seed learns other rows, in another order
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: args.light * ROWS]
        recipe = Recipe(steps=args.light, lr=LR, seed=seed, precision=teacher.dtype)
        frame = rank(teacher, finalists, scores, choosing, folder=folder, train=batches(rows[order]), recipe=recipe)
        frames.append(frame.assign(seed=seed))
    ranked = pd.concat(frames, ignore_index=True)
    ranked["name"] = [Candidate(*sizes).name for sizes in ranked[[*whole.sizes]].itertuples(index=False)]
    winner = by_name[ranked.groupby("name")["distilled_nll"].mean().idxmin()]
    return (winner, depth_only), zero_shot, ranked


def fewer_blocks(teacher: PreTrainedModel, budget: Budget) -> Candidate:
    """The deepest version that fits the budget with nothing cut but blocks."""
    whole = Candidate.of(teacher)
    (only,) = candidates(
        teacher, budget, blocks=range(1, whole.blocks + 1), hidden=[whole.hidden], groups=[whole.groups],
        multiple_of=whole.neurons, least_width=1.0, tolerance=1.0,
    )[:1]  # fmt: skip
    return only


def from_scratch(teacher: PreTrainedModel, winner: Candidate, scores: Importance) -> PreTrainedModel:
    """The winner's sizes with random weights."""
    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_config(shrink(teacher, winner, scores).config, dtype=teacher.dtype).eval()


def recovered(
    name: str,
    teacher: PreTrainedModel,
    make: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: torch.Tensor,
    watched: torch.Tensor,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Let one student learn, keep it, and return its curve."""
    folder = args.work / name

    def learn() -> dict[str, Any]:
        student = make()
        dtype = student.dtype
        history = distill(
            teacher, student, batches(rows), steps=args.steps, lr=LR, precision=dtype, validation=batches(watched),
            validate_every=max(1, args.steps // 20), seed=SEED, checkpoint_dir=folder / "run", save_every=50,
        )  # fmt: skip
        cast_weights(student, dtype)
        save_pruned(student, tokenizer, folder / "student")
        every = max(1, args.steps // 100)
        curve = history.frame().drop(columns="validation").iloc[every - 1 :: every].round(4).to_dict("list")
        return {"curve": curve, "validation": history.validation, "seconds": history.seconds, "tokens": history.tokens}

    print(f"{name}:", flush=True)
    return part(folder / "learned.json", learn)


def nats(model: PreTrainedModel, judges: dict[str, TokenBlocks]) -> dict[str, dict[str, list]]:
    """Of each row of each domain."""
    found = {domain: perplexity(model, blocks) for domain, blocks in judges.items()}
    return {name: {"nats": f.row_nll.tolist(), "tokens": f.row_tokens.tolist()} for name, f in found.items()}


def recovered_share(judged: dict[str, Any], name: str) -> dict[str, float]:
    """Of the nats a token that the cut cost against the whole model, by domain."""

    def mean(of: dict[str, list]) -> float:
        return sum(of["nats"]) / sum(of["tokens"])

    shares = {}
    for domain, whole in judged["whole"]["after"].items():
        before, after = (mean(judged[name][when][domain]) for when in ("before", "after"))
        shares[domain] = (before - after) / (before - mean(whole))
    return shares


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How many nats a token less the winner needs, row by row: difference, standard error, interval, by domain."""
    found = {}
    for domain, own in ours.items():
        differences = np.array(theirs[domain]["nats"]) - np.array(own["nats"])
        names = ("difference", "standard_error", "ci_low", "ci_high")
        found[domain] = dict(zip(names, map(float, ratio_interval(differences, np.array(own["tokens"]))), strict=True))
    return found


if __name__ == "__main__":
    main()
