"""Where a pronoun is, block by block, and what three heads carry of it, for lesson 08.

    python -m experiments.trace_the_pronoun

For all pairs of the evaluation half, occupations and woman/man: the share of the log-odds' gap that moves when one
token's state is that of the opposite word, at the word and at the last token, behind each block; and when heads say
what they say there: those chosen on the other half, one by one and together, and nineteen random sets as deep. Beside
it the same with a word of the same group as the source. Float32. Five minutes on one core.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias import pronouns
from course_utils.bias.pronouns import Head
from course_utils.models import describe, load_model
from course_utils.support.files import write_text
from experiments.record import command

HEADS = 3
WORDS = {"occupations": pronouns.occupations, "woman/man": pronouns.people}


def chosen_heads(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Head]:
    """The heads whose patch is estimated to move most of the gap, on the selection half of the occupations."""
    pairs = pronouns.opposites(pronouns.prompts(pronouns.occupations(), "selection"))
    texts, sources = list(pairs["text"]), list(pairs["source"])
    effects = pronouns.head_effects(model, tokenizer, texts, sources).mean(0)  # [blocks, heads]
    gap = pronouns.log_odds(model, tokenizer, sources).mean() - pronouns.log_odds(model, tokenizer, texts).mean()
    order = (effects / gap).flatten().argsort(descending=True)[:HEADS].tolist()
    return [divmod(number, effects.shape[1]) for number in order]


def shares(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: pd.DataFrame, heads: list[Head]
) -> dict[str, object]:
    """What each patch moves, as a share of the gap between the texts and their sources."""
    blocks, count = describe(model).num_blocks, model.config.num_attention_heads
    texts, found = list(pairs["text"]), {}
    here, there = (pronouns.log_odds(model, tokenizer, list(pairs[side])).mean() for side in ("text", "source"))
    found["gap"] = here - there

    def share(patched: np.ndarray) -> list[float]:
        return np.round((patched.mean(1) - here) / (there - here), 4).tolist()

    for name, side in (("opposite", "source"), ("same group", "same")):
        sources = list(pairs[side])
        places = [pronouns.swapped_place(tokenizer, *pair) for pair in zip(texts, sources, strict=True)]
        for at, which in (("word", places), ("last", [-1] * len(texts))):
            trace = pronouns.traced_log_odds(model, tokenizer, texts, sources, which, range(blocks))
            found[f"{at}, {name}"] = share(trace)
        sets = [*([head] for head in heads), heads]
        found[f"heads, {name}"] = share(pronouns.patched_log_odds(model, tokenizer, texts, sources, sets))
        if name == "opposite":
            sets = pronouns.random_heads(heads, count, blocks)
            found["random, opposite"] = share(pronouns.patched_log_odds(model, tokenizer, texts, sources, sets))
    return found


def main() -> None:
    args = command(__doc__, "pronoun_trace").parse_args()
    model, tokenizer = load_model("llama", dtype=torch.float32)
    heads = chosen_heads(model, tokenizer)
    record: dict[str, object] = {"heads": heads}
    for name, words in WORDS.items():
        pairs = pronouns.opposites(pronouns.prompts(words(), "evaluation"))
        record[name] = {"pairs": len(pairs)} | shares(model, tokenizer, pairs, heads)
    write_text(args.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
