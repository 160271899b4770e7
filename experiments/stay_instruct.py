"""Does a cut instruct model follow instructions again, and what has it to read for that?

    python -m experiments.stay_instruct [--seeds 3] [--work build/stay_instruct/seeds] [--out FILE]

The embedded Llama, an instruct model, loses a fifth of its neurons. Three students learn from the whole model, in
equally many steps of equally many tokens: from plain text (speeches and Wikipedia passages), from chats with other
people's answers (problems of GSM8K and their solutions), and from chats with the whole model's own answers to the same
problems. All are asked the sixty prompts of ``instructions``, none of which is a problem of mathematics. Counted are
the answers that do as they were told, and how far the student is from the whole model along the whole model's own
answers, in nats a token.

A seed is an order of the text. The file is course_utils/data/stay_instruct.json unless given. Killed, it goes on where
it was: answers are kept batch by batch, and students as ``distill`` keeps them. About an hour on two cores.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.architectures import cast_weights
from course_utils.batches import NOT_LEARNED, padded
from course_utils.distillation import distill
from course_utils.divergence import kl_divergence
from course_utils.files import write_text
from course_utils.hooks import evaluating
from course_utils.models import variant
from course_utils.own_text import OwnText, RowsOnDisk, read_own_text
from course_utils.self_data import Prompt, find_prompts, write_answers
from course_utils.texts import documents, token_blocks
from course_utils.width import neuron_importance, prune_neurons
from experiments.five_kinds import write_chats
from experiments.instructions import INSTRUCTIONS
from experiments.seeds import run_seeds

RATIO, ANSWERS, NEW_TOKENS = 0.2, 600, 160  # of the neurons; answers that the whole model writes, and their length
STEPS, TOKENS, LENGTH, LR = 64, 768, 192, 2e-4  # of distillation: tokens learned a step, about; a row
ASKED, SHOWN = 20, 96  # prompts at a time; tokens of an answer at most
WORK = Path("build/stay_instruct")


def readings(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, OwnText]:
    """What each student learns from; the files lie in ``WORK``, the whole model's answers for all seeds."""
    write_chats(WORK / "chats.jsonl")
    plain = [
        json.dumps({"text": text}) for kind in ("speeches", "passages") for text in documents(kind, "distillation")
    ]
    write_text(WORK / "plain.jsonl", "\n".join(plain) + "\n")
    prompts = find_prompts(read_own_text([str(WORK / "chats.jsonl")]), tokenizer, ANSWERS, longest=LENGTH)
    own = write_answers(base, tokenizer, prompts, WORK / "answers", new_tokens=NEW_TOKENS, batch_size=16)
    theirs = read_own_text([str(WORK / "chats.jsonl")], seed=seed)
    return {
        "plain text": read_own_text([str(WORK / "plain.jsonl")], seed=seed),
        "their answers": theirs,
        "own answers": theirs.answered(own),
    }


def read(own: OwnText, tokenizer: PreTrainedTokenizerBase) -> RowsOnDisk:
    """A batch a step, of as many rows as have ``TOKENS`` to learn: of a chat only the answer is learned."""
    sizes = {"length": LENGTH, "folder": WORK / "rows"}
    (some,) = own.learned(tokenizer, rows=64, batch_size=64, **sizes)
    rows = round(64 * TOKENS / (some["labels"] != NOT_LEARNED).sum().item())
    return own.learned(tokenizer, rows=STEPS * rows, batch_size=rows, **sizes)


def asked(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The sixty, as the model reads them."""
    prompts = []
    for instruction in INSTRUCTIONS:
        messages = [{"role": "user", "content": instruction.prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        prompts.append(Prompt(tuple(messages), tuple(ids)))
    return prompts


def answers_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[str]:
    """What a model answers, greedily."""
    path = write_answers(model, tokenizer, prompts, WORK / "asked", new_tokens=SHOWN, batch_size=ASKED)
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [line["messages"][-1]["content"] for line in lines]


@torch.no_grad()
def distances(
    base: PreTrainedModel, model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """KL(whole || model), the mean over each answer's tokens, in nats; a row is a prompt's ids and an answer's."""
    found: list[float] = []
    with evaluating(base), evaluating(model):
        for start in range(0, len(rows), ASKED):
            some = rows[start : start + ASKED]
            batch = padded([[*prompt, *answer] for prompt, answer in some])
            whole, other = (m(**batch).logits.float().log_softmax(-1) for m in (base, model))
            apart = kl_divergence(whole, other)  # [rows, length]
            for row, (prompt, answer) in zip(apart, some, strict=True):
                found.append(row[len(prompt) - 1 : len(prompt) + len(answer) - 1].mean().item())
    return found


def one_seed(seed: int, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> list[dict]:
    """A row a model: the whole one, the cut one, and the three students."""
    prompts = asked(tokenizer)
    said = answers_of(base, tokenizer, prompts)
    told = [tokenizer(answer, add_special_tokens=False).input_ids for answer in said]
    rows = [(prompt.ids, ids) for prompt, ids in zip(prompts, told, strict=True)]

    def row(name: str, model: PreTrainedModel) -> dict:
        answers = answers_of(model, tokenizer, prompts)
        follows = [one.follows(answer) for one, answer in zip(INSTRUCTIONS, answers, strict=True)]
        apart = [round(nats, 4) for nats in distances(base, model, rows)]
        return {"seed": seed, "model": name, "follows": follows, "nats": apart}

    cut = variant(base)
    calibration = token_blocks(tokenizer, "calibration", tokens=8192, length=128)
    prune_neurons(cut, neuron_importance(base, "activation", batches=calibration.batches(8)), ratio=RATIO)
    found = [row("whole", base), row("cut", cut)]
    for name, own in readings(base, tokenizer, seed).items():
        student = copy.deepcopy(cut)
        batches = read(own, tokenizer)
        checkpoints = WORK / "runs" / f"{seed} {name}"
        distill(base, student, batches, steps=STEPS, lr=LR, precision=dtype, seed=seed, checkpoint_dir=checkpoints)
        cast_weights(student, dtype)
        found.append(row(name, student))
    return found


def main() -> None:
    """Run the seeds and print each model's count."""
    settings = {
        "ratio": RATIO, "answers": ANSWERS, "new_tokens": NEW_TOKENS, "steps": STEPS, "tokens": TOKENS,
        "length": LENGTH, "lr": LR,
        "kinds": [instruction.kind for instruction in INSTRUCTIONS],
    }  # fmt: skip
    rows = run_seeds(
        __doc__.splitlines()[0],
        one_seed,
        settings,
        seeds=3,
        work=str(WORK / "seeds"),
        out="course_utils/data/stay_instruct.json",
    )
    for row in rows:
        print(f"{row['seed']} {row['model']:<14} {sum(row['follows'])} of {len(row['follows'])}", end=", ")
        print(f"{sum(row['nats']) / len(row['nats']):.3f} nats")


if __name__ == "__main__":
    main()
