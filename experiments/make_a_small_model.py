"""Make a small model from the embedded Llama as leading labs do, with every control, for lesson 11.

    python -m experiments.make_a_small_model [--steps 180] [--work build/small_model]

The whole recipe: the teacher learns a little of the text first (teacher correction), all axes are scored in one pass,
versions under a budget are ranked as cut and after light distillation with several seeds, and the winner learns from
the corrected teacher. Beside it, with the same tokens in the same order, learn a random cut of the winner's sizes, the
same sizes from random weights, the best version that only gave up blocks, the winner of the teacher as it was, and
what optipfair cuts to as many parameters (it comes with the extra "benchmarks"), and the winner without a teacher.

Resumable at any point: each part's result is a file in the work folder. Start the command a second time beside itself
and the two share the work; with one thread each they train more tokens a second than one with two. Evaluation text is
read by the last parts alone. At the end it writes curves, figures and comparisons, all or nothing.
"""

from __future__ import annotations

import argparse
import copy
import functools
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
from filelock import FileLock, Timeout
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from course_utils import engine
from course_utils.architectures import cast_weights
from course_utils.benchmarking import measure_speed
from course_utils.bias import pronouns
from course_utils.checkpoints import load_pruned, save_pruned
from course_utils.compress import AXES, Budget, Candidate, Importance, candidates, importance, rank, shrink
from course_utils.distillation import Recipe, distill
from course_utils.distillation.teacher_states import TeacherStates, remember_teacher
from course_utils.evaluation import Answers, evaluate, paired, perplexity
from course_utils.export import export_gguf
from course_utils.files import write_json
from course_utils.models import load_model
from course_utils.reports import model_size
from course_utils.session import fast_dtype
from course_utils.texts import TokenBlocks, token_blocks
from course_utils.uncertainty import ratio_interval
from experiments.reading import LENGTH, ROWS, SEED, batches, clean, some_rows, training_rows

OUT = Path("course_utils/data/small_model.json")
DOMAINS = {"speeches": 102_400, "wiki": 25_600, "stories": 5_120}  # tokens of the evaluation split to take rows from
CALIBRATION = {"speeches": 65_536, "wiki": 11_520, "stories": 3_072}  # and of the calibration split
SCORED, CHOSEN, JUDGED = 6, 6, 40  # rows of each domain (stories has no more): to score by, to choose by, to judge by
TASKS = ("lambada_openai", "hellaswag", "arc_easy", "piqa", "boolq")
LR, CORRECTION_LR = 2e-4, 5e-5
SERVED = {"prompt_tokens": 128, "new_tokens": 32, "rounds": 11}
QUESTION = "Why is the sky blue?"
ALPHA = {"no teacher": 1.0}  # of the loss, the share of cross-entropy; 0 for the arms that aren't named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.8, help="parameters that stay, as a share")
    parser.add_argument("--steps", type=int, default=180, help=f"of recovery, of {ROWS} x {LENGTH} tokens each")
    parser.add_argument("--correction", type=int, default=40, help="steps of teacher correction")
    parser.add_argument("--light", type=int, default=20, help="steps of light distillation in the ranking")
    parser.add_argument("--seeds", type=int, default=2, help="of the ranking")
    parser.add_argument("--finalists", type=int, default=5, help="versions that are lightly distilled")
    parser.add_argument("--multiple-of", type=int, default=32, help="of the MLPs' widths")
    parser.add_argument("--documents", type=int, default=100, help="of each benchmark task")
    parser.add_argument("--work", type=Path, default=Path("build/small_model"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not engine.available():
        parser.error(f"The last part serves the models: {engine.problem()}")
    settings = {name: value for name, value in vars(args).items() if name not in ("work", "out")}
    settings |= {"lr": LR, "correction_lr": CORRECTION_LR, "rows": ROWS, "length": LENGTH}
    then = share_out(args.work, {"settings": lambda: settings})["settings"]
    differ = [f"{name}: {then.get(name)} then, {now} now" for name, now in settings.items() if then.get(name) != now]
    if differ:
        parser.error(f"'{args.work}' holds a run with other settings ({'; '.join(differ)}). Give another --work.")

    whole, tokenizer = load_model("llama", dtype=fast_dtype(torch.device("cpu")))
    rows, watched = training_rows(tokenizer, args.steps)
    scoring, choosing = calibration_rows(tokenizer)
    share_out(args.work, {"correction": lambda: correct(whole, tokenizer, rows, args)})
    teacher, _ = load_pruned(args.work / "teacher")
    of = {"corrected": teacher, "uncorrected": whole}
    share_out(args.work / "scores", {name: lambda m=m, n=name: score(m, scoring, args, n) for name, m in of.items()})
    scores = {name: Importance.load(args.work / "scores" / f"{name}.safetensors") for name in of}
    winner, depth_only, zero_shot, ranked = searched(teacher, scores["corrected"], choosing, rows, args)

    cut = {
        "winner": (teacher, lambda: shrink(teacher, winner, scores["corrected"])),
        "random cut": (teacher, lambda: shrink(teacher, winner, scores["corrected"].random(AXES, SEED))),
        "depth only": (teacher, lambda: shrink(teacher, depth_only, scores["corrected"])),
        "from scratch": (teacher, lambda: from_scratch(teacher, winner, scores["corrected"])),
        "uncorrected": (whole, lambda: shrink(whole, winner, scores["uncorrected"])),
        "optipfair": (teacher, lambda: cut_by_optipfair(teacher, winner, scoring)),
    }
    cut["no teacher"] = cut["winner"]
    text = batches(rows) + batches(watched)
    remember = functools.cache(lambda of: remember_teacher(of, text, precision=of.dtype))  # one teacher, many students
    learned = share_out(args.work / "learned", {
        name: lambda name=name, of=of, make=make: recover(name, remember(of), make, tokenizer, rows, watched, args)
        for name, (of, make) in cut.items()
    })  # fmt: skip

    judges = judging_rows(tokenizer, rows)

    def student(name: str) -> PreTrainedModel:
        return load_pruned(args.work / "students" / name)[0]

    models = {"whole": lambda: whole, "corrected teacher": lambda: teacher}
    models |= {f"{name}, before": make for name, (_, make) in cut.items()}
    models |= {name: lambda name=name: student(name) for name in cut}
    nats = share_out(args.work / "nats", {name: lambda make=make: nats_of(make(), judges)
                                          for name, make in models.items()})  # fmt: skip
    released = ["whole", "winner, before", "winner"]
    answers = share_out(args.work / "answers", {name: lambda name=name: answers_of(models[name](), tokenizer, args)
                                                for name in released})  # fmt: skip
    bias = share_out(args.work / "bias", {name: lambda name=name: pronoun_gap(models[name](), tokenizer)
                                          for name in released})  # fmt: skip
    served = share_out(
        args.work, {"served": lambda: serve({n: models[n]() for n in ("whole", "winner")}, tokenizer, judges, args)}
    )
    frames = {name: frame_of(found) for name, found in answers.items()}
    rivals = [name for name in cut if name != "winner"]
    result = {
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        "settings": settings,
        "parameters": {"whole": model_size(whole).parameters}
        | {name: of.parameters for name, of in (("winner", winner), ("depth only", depth_only))}
        | {"optipfair": model_size(student("optipfair")).parameters},
        "sizes": {"whole": Candidate.of(whole).sizes, "winner": winner.sizes, "depth only": depth_only.sizes},
        "zero_shot": zero_shot,
        "ranked": ranked,
        "learned": learned,
        "rows": {domain: len(blocks) for domain, blocks in judges.items()},
        "nats": {name: {d: mean(of) for d, of in found.items()} for name, found in nats.items()},
        "recovered": {name: recovered_share(nats, name) for name in cut},
        "compared": {name: compared(nats["winner"], nats[name]) for name in [*rivals, "whole"]},
        "tasks": {name: found["summary"] for name, found in answers.items()},
        "paired": {name: records(paired(frames[name], frames["winner"]))
                   for name in frames if name != "winner"},
        "bias": bias,
        "served": served["served"],
    }  # fmt: skip
    write_json(args.out, result, indent=1)
    print(pd.DataFrame(result["recovered"]).T.to_string(float_format="{:.2f}".format))
    print(f"written to {args.out}")


def share_out(folder: Path, tasks: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Each task's result, kept as a file; what another process is at is left to it, unless that process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for wait in (0, -1):  # what is free, then what others took
        for name, make in tasks.items():
            path = folder / f"{name}.json"
            if name in found:
                continue
            try:
                with FileLock(path.with_suffix(".lock"), timeout=wait):
                    if not path.exists():
                        print(f"{folder.name}: {name}", flush=True)
                        write_json(path, make())
            except Timeout:
                continue
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return {name: found[name] for name in tasks}


def calibration_rows(tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenBlocks], list[TokenBlocks]]:
    """Rows of the calibration split to score by, and others to choose by."""
    both = []
    for domain, tokens in CALIBRATION.items():
        pool = token_blocks(tokenizer, "calibration", domain=domain, tokens=tokens, length=LENGTH)
        both.append(some_rows(pool, SCORED + CHOSEN))
    return [blocks[:SCORED] for blocks in both], [blocks[SCORED:] for blocks in both]


def judging_rows(tokenizer: PreTrainedTokenizerBase, learned: torch.Tensor) -> dict[str, TokenBlocks]:
    """Rows of the evaluation split that share no thirteen words in a row with what was learned."""
    texts = tokenizer.batch_decode(learned)
    pools = {name: token_blocks(tokenizer, "evaluation", domain=name, tokens=tokens, length=LENGTH)
             for name, tokens in DOMAINS.items()}  # fmt: skip
    return {name: clean(some_rows(pool, JUDGED), tokenizer, texts) for name, pool in pools.items()}


def correct(
    whole: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: torch.Tensor, args: argparse.Namespace
) -> float:
    """Train a copy of the teacher a little on the text that students are to learn from; keep it, return the seconds."""
    teacher = copy.deepcopy(whole)
    history = distill(
        whole, teacher, batches(rows[: args.correction * ROWS]), steps=args.correction, lr=CORRECTION_LR, alpha=1.0,
        precision=whole.dtype, seed=SEED, checkpoint_dir=args.work / "correction_run",
    )  # fmt: skip
    cast_weights(teacher, whole.dtype)
    save_pruned(teacher, tokenizer, args.work / "teacher")
    return history.seconds


def score(model: PreTrainedModel, scoring: list[TokenBlocks], args: argparse.Namespace, name: str) -> str:
    """Score all axes, keep the scores, and return their digest."""
    found = importance(model, [batch for blocks in scoring for batch in blocks.batches()])
    found.save(args.work / "scores" / f"{name}.safetensors")
    return found.digest


def searched(
    teacher: PreTrainedModel,
    scores: Importance,
    choosing: list[TokenBlocks],
    rows: torch.Tensor,
    args: argparse.Namespace,
) -> tuple[Candidate, Candidate, list[dict], list[dict]]:
    """The winner, the best version that only gave up blocks; the ranking as cut, and after light distillation."""
    budget, folder = Budget(args.share * Candidate.of(teacher).parameters), args.work / "search"
    several = candidates(teacher, budget, multiple_of=args.multiple_of, tolerance=0.03)
    depth_only = fewer_blocks(teacher, budget)
    by_name = {candidate.name: candidate for candidate in [*several, depth_only]}

    def as_cut() -> list[dict]:
        return named(rank(teacher, [*by_name.values()], scores, choosing, folder=folder))

    def distilled(seed: int) -> list[dict]:  # each seed learns other rows, in another order
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: args.light * ROWS]
        recipe = Recipe(steps=args.light, lr=LR, seed=seed, precision=teacher.dtype)
        frame = rank(teacher, finalists, scores, choosing, folder=folder, train=batches(rows[order]), recipe=recipe)
        return named(frame.assign(seed=seed))

    zero_shot = share_out(folder, {"as cut": as_cut})["as cut"]
    finalists = [by_name[row["name"]] for row in zero_shot[: args.finalists]]
    ranked = share_out(folder, {f"seed {n}": lambda n=n: distilled(n) for n in range(args.seeds)})
    rows_of_all = [row for found in ranked.values() for row in found]
    winner = by_name[pd.DataFrame(rows_of_all).groupby("name")["distilled_nll"].mean().idxmin()]
    return winner, depth_only, zero_shot, rows_of_all


def named(frame: pd.DataFrame) -> list[dict]:
    """The rows of a ranking, with the candidates' names."""
    sizes = frame[["blocks", "hidden", "groups", "neurons"]].itertuples(index=False)
    return records(frame.assign(name=[Candidate(*four).name for four in sizes]))


def records(frame: pd.DataFrame) -> list[dict]:
    return json.loads(frame.to_json(orient="records"))


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


def cut_by_optipfair(teacher: PreTrainedModel, winner: Candidate, scoring: list[TokenBlocks]) -> PreTrainedModel:
    """What optipfair makes of the teacher with the winner's parameters, by the same scoring rows."""
    import optipfair

    whole = Candidate.of(teacher)
    width = whole.neurons - (whole.parameters - winner.parameters) // (3 * whole.hidden * whole.blocks)
    return optipfair.prune_model(
        copy.deepcopy(teacher), neuron_selection_method="MAW", pruning_percentage=100 * (1 - width / whole.neurons),
        dataloader=[batch for blocks in scoring for batch in blocks.batches()], show_progress=False,
    )  # fmt: skip


def recover(
    name: str,
    teacher: TeacherStates,
    make: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: torch.Tensor,
    watched: torch.Tensor,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Let one student learn, keep it, and return its curve."""
    student = make()
    dtype = student.dtype
    history = distill(
        teacher, student, batches(rows), steps=args.steps, lr=LR, precision=dtype, validation=batches(watched),
        validate_every=max(1, args.steps // 10), seed=SEED, checkpoint_dir=args.work / "runs" / name, save_every=20,
        alpha=ALPHA.get(name, 0.0),
    )  # fmt: skip
    cast_weights(student, dtype)
    save_pruned(student, tokenizer, args.work / "students" / name)
    every = max(1, args.steps // 100)
    curve = history.frame().drop(columns="validation").iloc[every - 1 :: every].round(4).to_dict("list")
    return {"curve": curve, "validation": history.validation, "seconds": history.seconds, "tokens": history.tokens}


def nats_of(model: PreTrainedModel, judges: dict[str, TokenBlocks]) -> dict[str, dict[str, list]]:
    """Of each row of each domain."""
    found = {domain: perplexity(model, blocks) for domain, blocks in judges.items()}
    return {name: {"nats": f.row_nll.tolist(), "tokens": f.row_tokens.tolist()} for name, f in found.items()}


def answers_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> dict[str, Any]:
    """What a model answers to benchmark tasks: the summary, and each document's result for pairing."""
    found = evaluate(model, tokenizer, TASKS, limit=args.documents)
    answers = found.attrs["answers"]
    return {"summary": records(found), "answers": records(answers.table), "dtype": answers.dtype}


def serve(
    models: dict[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    judges: dict[str, TokenBlocks],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Models in PyTorch and in llama.cpp's formats: speeds side by side, bytes, nats of the judging rows, an answer."""
    exact = {name: copy.deepcopy(model).float() for name, model in models.items()}
    asked = QUESTION
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": QUESTION}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "PyTorch": {"speed": records(measure_speed(exact, **SERVED))},
    }
    for kind in ("F16", "Q8_0", "Q4_0"):
        files = {name: export_gguf(model, tokenizer, args.work / f"{name}-{kind}.gguf", quantization=kind)
                 for name, model in exact.items()}  # fmt: skip
        here = {"bytes": {name: file.stat().st_size for name, file in files.items()}, "nats": {}, "answer": {}}
        for name, file in files.items():
            with engine.load(file) as opened:
                here["nats"][name] = {domain: engine.perplexity(opened, rows).nll for domain, rows in judges.items()}
                answer = opened.generate(opened.tokenize(asked), new_tokens=48)
                here["answer"][name] = opened.detokenize(answer)
        found[kind] = here | {"speed": records(engine.measure_speed(files, **SERVED))}
    return found


def frame_of(found: dict[str, Any]) -> pd.DataFrame:
    """A frame as from ``evaluate``, for ``paired``."""
    frame = pd.DataFrame(found["summary"])
    frame.attrs["answers"] = Answers(pd.DataFrame(found["answers"]), found["dtype"])
    return frame


def pronoun_gap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Lesson 08's bias: how much likelier "she" is after the occupations where women work, in nats."""
    table = pronouns.prompts(pronouns.occupations())
    exact = copy.deepcopy(model).float()  # bfloat16 rounds log-odds to about 0.1
    table["odds"] = pronouns.log_odds(exact, tokenizer, list(table["text"]))
    return dict(zip(("gap", "ci_low", "ci_high"), map(float, pronouns.group_gap(table)), strict=True))


def mean(of: dict[str, list]) -> float:
    return sum(of["nats"]) / sum(of["tokens"])


def recovered_share(nats: dict[str, Any], name: str) -> dict[str, float]:
    """Of the nats a token that the cut cost against the whole model, by domain."""
    shares = {}
    for domain, whole in nats["whole"].items():
        before, after = mean(nats[f"{name}, before"][domain]), mean(nats[name][domain])
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
