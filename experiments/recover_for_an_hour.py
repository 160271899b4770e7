"""Distil the pruned Llama for about an hour on two cores, for lesson 07's "what an hour buys".

    python -m experiments.recover_for_an_hour [--steps 600] [--loss forward_kl] [--work build/hour]

With `--loss cross_entropy` the same student learns from the same tokens without a teacher: the control that tells
distillation from training.

Teacher: the embedded Llama in bfloat16. Student: 40 % of the MLP neurons pruned by "activation" (scored on the
calibration split). Text: 600,000 tokens of five domains' distillation splits, half of them scenes, because the goal
is LAMBADA, which is narrative. Resumable: killed, it goes on from its last checkpoint. At the end it writes the curve
and what was measured before and after, all or nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
from pathlib import Path

import pandas as pd
import psutil
import torch
from transformers import PreTrainedModel

from course_utils.architectures import cast_weights
from course_utils.benchmark_tasks import build_tasks
from course_utils.checkpoints import save_pruned
from course_utils.distillation import distill
from course_utils.evaluation import Perplexity, evaluate, paired, perplexity
from course_utils.files import write_text
from course_utils.models import load_model
from course_utils.texts import overlaps, token_blocks
from course_utils.width import neuron_importance, prune_neurons
from experiments.reading import LENGTH, MIX, ROWS, SEED, batches, clean, some_rows, training_rows

RATIO, LR = 0.4, 2e-4
LOSSES = {"forward_kl": 0.0, "cross_entropy": 1.0}  # each with its share of cross-entropy
RECORDS = Path("course_utils/data")
JUDGES = {"speeches": 102_400, "wiki": 25_600, "stories": 5_120}  # tokens of the evaluation split to choose from
HELD_OUT_ROWS, PASSAGES = 20, 1000  # rows of each judge, LAMBADA's passages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--loss", choices=LOSSES, default="forward_kl")
    parser.add_argument("--work", type=Path, default=Path("build/hour"), help="where checkpoints go, one folder a loss")
    args = parser.parse_args()
    work, out = args.work / args.loss, RECORDS / f"recovery_hour_{args.loss}.json"

    teacher, tokenizer = load_model("llama", dtype=torch.bfloat16)
    calibration = some_rows(token_blocks(tokenizer, "calibration", tokens=40_960, length=LENGTH), 32)
    student = copy.deepcopy(teacher)
    importance = neuron_importance(student, "activation", batches=calibration.batches(ROWS))
    report = prune_neurons(student, importance, ratio=RATIO)
    train, watched = training_rows(tokenizer, args.steps)
    learned = tokenizer.batch_decode(train)
    judges = {}
    for domain, tokens in JUDGES.items():
        pool = token_blocks(tokenizer, "evaluation", domain=domain, tokens=tokens, length=LENGTH)
        judges[domain] = clean(some_rows(pool, HELD_OUT_ROWS), tokenizer, learned)
    passages = [doc["text"] for doc in build_tasks(["lambada_openai"], PASSAGES)["lambada_openai"].test_docs()]
    shared = sum(overlaps(passages, learned))

    def measures_of(model: PreTrainedModel) -> tuple[dict[str, Perplexity], pd.DataFrame]:
        texts = {domain: perplexity(model, blocks) for domain, blocks in judges.items()}
        return texts, evaluate(model, tokenizer, "lambada_openai", limit=PASSAGES)

    whole, before = measures_of(teacher), measures_of(student)
    history = distill(
        teacher, student, batches(train), steps=args.steps, lr=LR, precision=torch.bfloat16,
        alpha=LOSSES[args.loss], validation=batches(watched), validate_every=50, seed=SEED, checkpoint_dir=work,
        save_every=25,
    )  # fmt: skip
    cast_weights(student, torch.bfloat16)  # as the teacher's
    after = measures_of(student)
    save_pruned(student, tokenizer, work / "student")

    models = {"teacher": whole, "pruned": before, "recovered": after}
    lambada = pd.concat({name: frame.assign(model=name) for name, (_, frame) in models.items()})
    result = {
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        "settings": {
            "ratio": RATIO, "criterion": "activation", "loss": args.loss, "lr": LR, "steps": args.steps,
            "rows": ROWS, "length": LENGTH, "mix": MIX,
            "parameters": [report.before.parameters, report.after.parameters],
        },
        "overlaps": {"LAMBADA": shared, **{d: HELD_OUT_ROWS - len(blocks) for d, blocks in judges.items()}},
        "curve": history.frame().drop(columns="validation").iloc[9::10].round(4).to_dict("list"),
        "validation": history.validation,
        "seconds": history.seconds,
        "tokens": history.tokens,
        "perplexity": [
            {"model": name, "text": domain, "value": s.perplexity, "ci_low": s.ci_low, "ci_high": s.ci_high,
             "nats": s.row_nll.tolist(), "tokens": s.row_tokens.tolist()}
            for name, (texts, _) in models.items() for domain, s in texts.items()
        ],
        "lambada": json.loads(lambada.to_json(orient="records")),
        "paired": {
            f"{a} to {b}": json.loads(paired(models[a][1], models[b][1]).to_json(orient="records"))
            for a, b in (("pruned", "recovered"), ("recovered", "teacher"))
        },
    }  # fmt: skip
    write_text(out, json.dumps(result, indent=1, allow_nan=False, default=float) + "\n")
    print(lambada[["model", "metric", "value", "ci_low", "ci_high"]].to_string(index=False))
    print(f"{result['tokens']:,} tokens in {result['seconds'] / 60:.0f} min; written to {out}")


if __name__ == "__main__":
    main()
