"""Narrow the vocabulary of the course's Llama, and split what that costs each text in two, for lesson 13.

    python -m experiments.half_vocabulary [--work build/half_vocabulary]

Tokens stay by frequency in English prose, by number (the first ones), or at random; beside them stands a neuron cut of
as many parameters. A text whose tokens went is spelled in other tokens. The whole model's loss on that spelling, minus
its loss on its own, is the price of the spelling; the narrowed model's loss lies below that by the gift of fewer
rivals, because its logits are the whole model's at the tokens that stay. The random sets are judged on the first draw
of three texts. Float32; some minutes on one core. Killed, it goes on where it was.

A row is a passage: "sums" are nats over all of it, and so are "spelled", the whole model's on the narrowed spelling.
Price is spelled minus the whole model's sums, gift is spelled minus sums. "distances", of code alone, are for each
passage [counts, whole model's nats, spelled, narrowed] at a distance behind a place that is spelled otherwise: 0 is the
place itself, the last one is everything further behind.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring.abilities import TEXTS as OTHERS
from course_utils.measuring.abilities import paragraphs
from course_utils.models import load_model, variant
from course_utils.pruning import choose_tokens, neuron_importance, prune_neurons, prune_vocabulary, token_counts
from course_utils.text import documents, token_blocks
from experiments.record import LLAMA, Kept, command, write_entries

KEPT, HALF, RANDOM = (32_768, 24_576, 16_384), 24_576, 8
COUNTED = ("speeches", "wiki", "stories", "passages", "scenes")
TEXTS = ("speeches", "wiki", "stories", "passages", "code", "French", "German")
JUDGED_AT_RANDOM = ("speeches", "wiki", "code")
DOCUMENTS, CHARACTERS, ROWS, DRAWS = 400, 400, 8, 1  # counted of each kind; of a passage; passages of a draw; draws
DISTANCES = 6
Spelling = tuple[list[int], Tensor, Tensor]  # token ids, whole model's states before each, its nats of each
Narrowed = tuple[Tensor, PreTrainedTokenizerBase]  # the tokens that stay, ascending, and their tokenizer


def draws_of(text: str) -> list[list[str]]:
    """Passages that nothing chose or learned, at most three of a document."""
    found = [
        own[start : start + CHARACTERS]
        for own in (paragraphs(text) if text in OTHERS else documents(text, "evaluation"))
        for start in range(0, min(len(own) - CHARACTERS // 2, 3 * CHARACTERS), CHARACTERS)
    ]
    random.Random(0).shuffle(found)
    return [found[draw * ROWS :][:ROWS] for draw in range(DRAWS)]


def encoded(passage: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Its tokens, without any around it."""
    return tokenizer(passage, add_special_tokens=False, verbose=False)["input_ids"]


@torch.no_grad()
def read(model: PreTrainedModel, ids: list[int], end: int) -> Spelling:
    """A passage behind the end token, in one spelling."""
    states = model.model(torch.tensor([[end, *ids]]), use_cache=False).last_hidden_state[0, :-1]
    logits = model.lm_head(states)
    return ids, states, -logits.log_softmax(dim=1).gather(1, torch.tensor(ids)[:, None])[:, 0].double()


@torch.no_grad()
def narrowed(model: PreTrainedModel, spelling: Spelling, tokens: Tensor) -> Tensor:
    """Nats of each token where these tokens alone are rivals, [tokens]: what the cut model's are."""
    ids, states, _ = spelling
    places = torch.searchsorted(tokens, torch.tensor(ids))
    chances = (states @ model.lm_head.weight[tokens].T).log_softmax(dim=1)
    return -chances.gather(1, places[:, None])[:, 0].double()


def by_distance(own: Spelling, new: Spelling, left: Tensor, names: dict[int, str]) -> list[list[float]]:
    """Counts, whole model's nats, spelled and narrowed ones, [4][distances]; what comes before a split isn't there."""
    ends = [[0, *accumulate(len(names[token]) for token in ids)] for ids, *_ in (own, new)]  # a character is a byte
    found, distance = torch.zeros(4, DISTANCES, dtype=torch.float64), None
    for begin, end in pairwise(sorted({*ends[0]} & {*ends[1]})):
        a, b = (slice(bisect_left(those, begin), bisect_left(those, end)) for those in ends)
        if own[0][a] != new[0][b]:
            distance = 0
        elif distance is not None:
            distance = min(distance + 1, DISTANCES - 1)
        if distance is not None:
            found[:, distance] += torch.stack([torch.tensor(1.0), own[2][a].sum(), new[2][b].sum(), left[b].sum()])
    return [[round(value, 3) for value in line] for line in found.tolist()]


def rounded(nats: Sequence[Tensor]) -> list[float]:
    """The sum of each passage."""
    return [round(float(own.sum()), 4) for own in nats]


class Experiment:
    """The whole model, and how it reads each passage in its own spelling."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_model("llama", dtype=torch.float32)
        self.names = {number: name for name, number in self.tokenizer.get_vocab().items()}
        self.read = partial(read, end=self.tokenizer.eos_token_id)
        self.passages = {text: draws_of(text) for text in TEXTS}
        self.whole = cache(lambda passage: self.read(self.model, encoded(passage, self.tokenizer)))

    def choose(self, counts: Tensor, keep: int) -> Narrowed:
        """The tokens that stay by these counts."""
        tokens = choose_tokens(self.tokenizer, counts, keep=keep)
        return torch.tensor(tokens), prune_vocabulary(variant(self.model), self.tokenizer, tokens)[1]

    def arms(self) -> Iterator[tuple[dict, Narrowed | PreTrainedModel | None]]:
        """Each with the key of its entries, the whole model first."""
        yield {"criterion": "", "keep": len(self.names), "seed": 0}, None
        prose = [text for kind in COUNTED for text in documents(kind, "distillation")[:DOCUMENTS]]
        counts = token_counts(self.tokenizer, prose)
        for keep in KEPT:
            for criterion, by in (("frequency", counts), ("first", 0 * counts)):
                yield {"criterion": criterion, "keep": keep, "seed": 0}, self.choose(by, keep)
        calibration = token_blocks(self.tokenizer, "calibration", tokens=8192, length=64).batches(16)
        model, gone = variant(self.model), (len(self.names) - HALF) * self.model.config.hidden_size
        ratio = gone / sum(p.numel() for layer in model.model.layers for p in layer.mlp.parameters())
        prune_neurons(model, neuron_importance(model, "activation", batches=calibration), ratio=ratio)
        yield {"criterion": "neurons", "keep": HALF, "seed": 0}, model
        for seed in range(RANDOM):
            by = torch.rand(len(counts), generator=torch.Generator().manual_seed(seed))
            yield {"criterion": "random", "keep": HALF, "seed": seed}, self.choose(by, HALF)


def measured(
    experiment: Experiment, key: dict, text: str, draw: int, made: Narrowed | PreTrainedModel | None
) -> dict[str, object]:
    """An entry of the record: of the whole model, of one that lost neurons, or of the tokens that stay."""
    passages = experiment.passages[text][draw]
    own = [experiment.whole(passage) for passage in passages]
    entry = {**key, "draw": draw, "dtype": "float32", "text": text, "predictions": 1}
    entry["bytes"] = [len(passage.encode()) for passage in passages]
    if not isinstance(made, tuple):
        nats = [nats if made is None else experiment.read(made, ids)[2] for ids, _, nats in own]
        return {**entry, "tokens": [len(each) for each in nats], "sums": rounded(nats)}
    stay, tokenizer = made
    spellings = [stay[encoded(passage, tokenizer)].tolist() for passage in passages]
    pairs = zip(own, spellings, strict=True)
    new = [old if old[0] == ids else experiment.read(experiment.model, ids) for old, ids in pairs]
    left = [narrowed(experiment.model, spelling, stay) for spelling in new]
    entry |= {"tokens": [*map(len, spellings)], "sums": rounded(left), "spelled": rounded([n for *_, n in new])}
    entry["gone"] = [int((~torch.isin(torch.tensor(ids), stay)).sum()) for ids, *_ in own]  # of the text's own tokens
    if text == "code":
        entry["distances"] = [by_distance(*each, experiment.names) for each in zip(own, new, left, strict=True)]
    return entry


def main() -> None:
    args = command(__doc__, "records/half_vocabulary").parse_args()
    experiment, done = Experiment(), Kept(args.work / "done.json")
    for key, made in tqdm(experiment.arms(), total=2 + 2 * len(KEPT) + RANDOM):
        few = key["criterion"] == "random"
        for draw in range(1 if few else DRAWS):
            for text in JUDGED_AT_RANDOM if few else TEXTS:
                done.once(f"{key} {text} {draw}", partial(measured, experiment, key, text, draw, made))
    settings = {"model": LLAMA, "counted": COUNTED, "row": f"a passage of at most {CHARACTERS} characters"}
    write_entries([*done.values()], args.out, settings=settings, predictions=1)


if __name__ == "__main__":
    main()
