"""Cut the experts of the course's small mixtures in many ways, and heal some of them, for lesson 12.

    python -m experiments.cut_experts FOLDER [FOLDER ...] [--work build/cut_experts]

A folder is what ``train_small_moe`` wrote, one for each seed. A quarter or half of the experts go, by frequency, by
REAP, by its sum, and nineteen times at random; scored on one kind of text or on all, 1,920 tokens each time, in nine
disjoint draws (one in bfloat16) of what the model learned from. All are judged on documents that it never saw, 3,048
predictions of each kind, in float32 and bfloat16. Half-cut models (REAP's, frequency's, one random one) are healed on
all five kinds, 77 thousand tokens, towards the whole model's predictions (forward KL): their routers alone, or all
weights; rates are chosen on rows that neither heal nor judge. The rows are written, too: the lesson draws from them.

For each model about 450 cuts, each scored and judged in 1.8 CPU seconds, and 24 healings of 25 seconds: twenty-five
minutes of one core. A killed run goes on where it was.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring import perplexity
from course_utils.models import describe, identity, load_model, variant
from course_utils.pruning import expert_importance, prune_experts
from course_utils.pruning.experts import TEXT_CRITERIA
from course_utils.text import KINDS, overlaps
from course_utils.text.kinds import FILE, LENGTH, ROWS, kind_blocks, write_kind_rows
from course_utils.text.rows import TokenBlocks
from experiments.record import DTYPES, Arm, Kept, command, in_dtype, write_record
from experiments.small_training import schedule
from experiments.train_gpt2 import pack
from experiments.train_small_moe import texts_of

DRAWS, ALL = 9, "all"  # of the calibration rows; the calibration on every kind
RATIOS, CUTS = (0.25, 0.5), 19  # shares of the experts that go; random sets
DOCUMENTS = 600  # of a kind and split, at most, that rows are drawn from
HEALED = ("reap", "frequency", "random")
RATES = {"router": (1e-3, 3e-3, 1e-2), "all weights": (3e-4, 1e-3, 3e-3)}

Rows = dict[str, dict[str, TokenBlocks]]  # split -> kind -> rows


def rows_of(tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Rows from all over each kind: learned documents calibrate, and of the held-out ones each second is for later.

    Raises:
        ValueError: a kind has too little text.
    """
    names = tokenizer.convert_ids_to_tokens([*range(len(tokenizer))])
    sizes = torch.tensor([0 if name == tokenizer.eos_token else len(name) for name in names])  # a character is a byte
    found: Rows = {split: {} for split in ROWS}
    for kind in KINDS:
        learned, held_out = texts_of(kind, "distillation"), texts_of(kind, "evaluation")
        of_split = {"calibration": learned, "evaluation": held_out[::2], "further": held_out[1::2]}
        for split, count in ROWS.items():
            texts = of_split[split]
            rows = pack(tokenizer, texts[:: len(texts) // DOCUMENTS + 1]).view(-1, LENGTH)
            if len(rows) < count:
                raise ValueError(f"{kind}: {len(rows)} rows of {LENGTH} tokens for {split}; {count} are needed.")
            rows = rows[torch.linspace(0, len(rows) - 1, count).long()]
            found[split][kind] = kind_blocks(rows, sizes[rows[:, 1:]].sum(dim=1), kind, split)
    return found


def calibration(rows: Rows, kind: str, draw: int) -> list[dict[str, Tensor]]:
    """One draw's rows of a kind; of every kind a fifth as many, so that all calibrations have the same tokens."""
    drawn = {name: own[draw::DRAWS] for name, own in rows["calibration"].items()}
    if kind != ALL:
        return drawn[kind].batches(len(drawn[kind]))
    return [batch for own in drawn.values() for batch in own[: len(own) // len(KINDS)].batches(len(own))]


def cut(model: PreTrainedModel, scores: list[Tensor], ratio: float) -> PreTrainedModel:
    """Without the share of each block's experts that scores least."""
    smaller = variant(model)
    prune_experts(smaller, scores, keep=round(describe(model).mixtures[0].count * (1 - ratio)))
    return smaller


def healed(
    whole: PreTrainedModel, smaller: PreTrainedModel, texts: list[Tensor], way: str, lr: float
) -> PreTrainedModel:
    """A copy of a cut model that has learned the whole one's predictions, over rows [rows, length] for each step.

    ``way`` is one of ``RATES`` and says what learns; ``lr`` is the peak learning rate.
    """
    student = copy.deepcopy(smaller).train()
    routers = [mixture.router.weight for mixture in describe(student).mixtures]
    learning = routers if way == "router" else [*student.parameters()]
    student.requires_grad_(False)
    for weight in learning:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0)
    for step, ids in enumerate(texts):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, len(texts))
        with torch.no_grad():
            told = whole(ids).logits.float().log_softmax(-1).flatten(0, 1)
        said = student(ids).logits.float().log_softmax(-1).flatten(0, 1)
        optimizer.zero_grad(set_to_none=True)
        F.kl_div(said, told, log_target=True, reduction="batchmean").backward()
        optimizer.step()
    return student.eval()


class Subject:
    """A trained mixture in float32, and what is done to it; the seed of its training names it in the record."""

    def __init__(self, model: PreTrainedModel, seed: int, rows: Rows, work: Path) -> None:
        self.model, self.seed, self._rows, self._work = model, seed, rows, work
        last = range(DRAWS - 1, len(next(iter(rows["calibration"].values()))), DRAWS)  # the last draw chooses rates
        self._watched = [batch for own in rows["calibration"].values() for batch in own[last].batches(len(last))]
        heal = {
            kind: own.input_ids[[n for n in range(len(own)) if n not in last]]
            for kind, own in rows["calibration"].items()
        }
        self._texts = [torch.stack(step) for step in zip(*heal.values(), strict=True)]  # a row of each kind
        self._in = lru_cache(maxsize=1)(self._cast)
        self._scores = lru_cache(maxsize=1)(self._scored)
        self._trained = lru_cache(maxsize=1)(self._healed)

    def _cast(self, dtype: torch.dtype) -> PreTrainedModel:
        return in_dtype(self.model, dtype)

    def _scored(self, criterion: str, kind: str, number: int, dtype: torch.dtype) -> list[Tensor]:
        """``number``: the draw, or for "random" the seed."""
        if criterion == "random":
            return expert_importance(self.model, "random", seed=number)
        return expert_importance(self._in(dtype), criterion, batches=calibration(self._rows, kind, number))

    def _cut(self, criterion: str, kind: str, number: int, ratio: float, dtype: torch.dtype) -> PreTrainedModel:
        return cut(self._in(dtype), self._scores(criterion, kind, number, dtype), ratio)

    def _healed(self, criterion: str, way: str, lr: float) -> PreTrainedModel:
        smaller = self._cut(criterion, ALL, 0, 0.5, torch.float32)
        return healed(self.model, smaller, self._texts, way, lr)

    def rates(self) -> dict[str, dict[str, float]]:
        """For each healing, what each rate leaves on the watched rows, nats per token; measured once."""

        def left(criterion: str, way: str, lr: float) -> float:
            return perplexity(self._trained(criterion, way, lr), self._watched).nll

        found = Kept(self._work / f"rates-{self.seed}.json")
        for criterion in HEALED:
            for way, rates in RATES.items():
                one = partial(left, criterion, way)
                found.once(f"{criterion}, {way}", lambda one=one, rates=rates: {str(lr): one(lr) for lr in rates})
        return found

    def arms(self) -> Iterator[Arm]:
        """All that is judged: the whole model first, in each dtype."""
        best = {healing: float(min(left, key=left.__getitem__)) for healing, left in self.rates().items()}
        for name, dtype in DTYPES.items():
            arm = partial(self._arm, name)
            yield arm(partial(self._in, dtype))
            for criterion in TEXT_CRITERIA:
                for kind in (*KINDS, ALL):
                    for number in range(DRAWS if dtype is torch.float32 else 1):
                        for ratio in RATIOS:
                            make = partial(self._cut, criterion, kind, number, ratio, dtype)
                            yield arm(make, criterion=criterion, kind=kind, calibration=number, ratio=ratio, edit="cut")
            for seed in range(CUTS):
                for ratio in RATIOS:
                    make = partial(self._cut, "random", "", seed, ratio, dtype)
                    yield arm(make, criterion="random", seed=seed, ratio=ratio, edit="cut")
        for criterion in HEALED:
            kind = "" if criterion == "random" else ALL
            for way in RATES:
                for name, dtype in DTYPES.items():  # healed once, judged in both
                    make = partial(self._healed_in, dtype, criterion, way, best[f"{criterion}, {way}"])
                    yield self._arm(name, make, criterion=criterion, kind=kind, ratio=0.5, edit=way)

    def _healed_in(self, dtype: torch.dtype, criterion: str, way: str, lr: float) -> PreTrainedModel:
        return in_dtype(self._trained(criterion, way, lr), dtype)

    def _arm(self, dtype: str, make: partial, **key: object) -> Arm:
        whole = {"criterion": "", "kind": "", "calibration": 0, "ratio": 0.0, "seed": 0, "edit": ""}
        names = {"model": self.seed, **whole, **key, "draw": 0, "dtype": dtype}
        return Arm(names, make, self._rows["evaluation"])


def main() -> None:
    parser = command(__doc__, "records/cut_experts")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--rows", type=Path, default=FILE)
    args = parser.parse_args()

    cards = [json.loads((folder / "training.json").read_text(encoding="utf-8")) for folder in args.folders]
    models, tokenizers = zip(*(load_model(str(folder), device="cpu") for folder in args.folders), strict=True)
    tokenizer = tokenizers[0]  # all of them learned from the same texts
    seeds = [card["seed"] for card in cards]
    found = Kept(args.work / "models.json")
    for seed, model in zip(seeds, models, strict=True):
        if found.once(str(seed), lambda model=model: identity(model)) != identity(model):
            parser.error(f"{args.work} belongs to another model of seed {seed}; choose another --work.")

    rows = rows_of(tokenizer)
    subjects = [Subject(model, seed, rows, args.work) for seed, model in zip(seeds, models, strict=True)]
    arms = [arm for subject in subjects for arm in subject.arms()]
    learned = [text for own in rows["calibration"].values() for text in tokenizer.batch_decode(own.input_ids)]
    judging = {kind: tokenizer.batch_decode(own.input_ids) for kind, own in rows["evaluation"].items()}
    drawn = ROWS["calibration"] // DRAWS
    settings = {
        "models": dict(zip(seeds, cards, strict=True)),
        "tokens": {"calibrated": drawn * LENGTH, "healed": (ROWS["calibration"] - drawn) * len(KINDS) * LENGTH},
        "rates": {subject.seed: subject.rates() for subject in subjects},
        "overlaps": {kind: sum(overlaps(texts, learned)) for kind, texts in judging.items()},
    }
    write_record(arms, args.out, work=args.work, settings=settings, total=len(arms))
    write_kind_rows(args.rows, rows)


if __name__ == "__main__":
    main()
