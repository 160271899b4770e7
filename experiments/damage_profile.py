"""Cut the course's Llama in several ways until each costs the same on text, and see what else each took, for lesson 11.

    python -m experiments.damage_profile [--work build/damage_profile]

The price is that of three neighbouring blocks, the cheapest three on calibration rows: about 0.2 nats per token, on
rows of both texts that nothing else uses. As many neurons as cost that much, by halving: by activation, with five draws
each of speeches, of wiki, of a mix (code, sums, patterns, facts) and of the mix with three languages; and nineteen
random sets, which spare each block's four strongest. As many attentions. Beside them, as they fall: three blocks by
leave-one-out, each attention alone (on text and copying), and the whole model in four bits. At the prices of one block
and of eight: neighbouring blocks, activation, mix, three random sets. Then blocks, activation and mix learn for sixteen
steps, from speeches, with two seeds.

Bfloat16; the first ones at the price of three blocks in float32 as well, the same neurons. All are judged on the
lessons' rows of speeches and wiki and on each ability's rows, the first ones on 300 questions of ARC-Easy and PIQA. The
record holds each row's nats by each predicted token and its share of right answers.

Somewhat over three hours on one core. An arm reads 6,000 tokens of text and 30,000 of abilities, and halving takes 8
passes of 6,100 tokens: two and a half minutes together, and two more where it learns. The eleven arms that the lesson
can't do without come first. Killed, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_utils.healing import distill
from course_utils.measuring import ABILITIES, ability_rows, answers_of, evaluate, perplexity
from course_utils.models import cast_weights, load_model, variant
from course_utils.pruning import best, neuron_importance
from course_utils.text import further_rows, judging_rows, token_blocks
from experiments.leave_out import ENDS, left_out, lowest, without
from experiments.random_cuts import cut
from experiments.record import LLAMA, Arm, Kept, command, write_record

BLOCKS, OTHERS = 3, (1, 8)  # whose price the cuts have, in blocks
CUTS, FEW, DRAWS, SPARED = 19, 3, 5, 4  # random cuts, and at other prices; draws; neurons that random cuts spare
STEP = 4  # neurons of each block, the finest that halving looks at
MIX = {"code": 8, "sums": 2, "patterns": 2, "facts": 3}  # rows of each, four to five hundred tokens
LANGUAGES = {"French": 8, "German": 8, "Spanish": 8}
DRAWN = 24  # rows of text that a draw reads, 1,536 tokens
READ = {"mix": MIX, "mix with languages": MIX | LANGUAGES}
TEXTS = ("speeches", "wiki")
STEPS, LENGTH, ROWS, RATE = 16, 256, 4, 8e-4  # of healing: tokens of a row, rows of a step
SEEDS = (0, 1)  # of it
BENCHMARKS, QUESTIONS = ("arc_easy", "piqa"), 300


@dataclass(frozen=True)
class Cut:
    """How a model was made."""

    criterion: str = ""  # "" for the whole model
    part: str = ""  # of what something is gone
    read: str = ""  # the text that chose it
    seed: int = 0  # of the draw, or of what is random
    price: int = 0  # that of so many blocks; 0 where the cut costs what it costs
    healed: str = ""  # what it learned from afterwards
    learning: int = 0  # the seed of that

    @property
    def name(self) -> str:
        """Under which the number of parts is kept that it takes."""
        return f"{self.criterion} {self.part} {self.read}".strip() + f", draw {self.seed}, price {self.price}"


RUN = Cut("run", "blocks", "speeches", price=BLOCKS)
SPEECHES = Cut("activation", "neurons", "speeches", price=BLOCKS)
RANDOM = Cut("random", "neurons", price=BLOCKS)
MIXED = replace(SPEECHES, read="mix")
FIGURE = (  # what the lesson can't do without
    RUN,
    SPEECHES,
    MIXED,
    Cut("leave-one-out", "attentions", "speeches", price=BLOCKS),
    Cut("leave-one-out", "blocks", "speeches"),
    replace(SPEECHES, read="wiki"),
    replace(SPEECHES, read="mix with languages"),
    *(replace(RANDOM, seed=seed) for seed in range(3)),
    Cut("four bits"),
)
AGAIN = [made for made in FIGURE if made.price == BLOCKS]  # in float32 as well


def cuts() -> Iterator[Cut]:
    """All that are made, and measured in bfloat16; what the lesson needs most comes first."""
    yield from FIGURE
    yield from (replace(RANDOM, seed=seed) for seed in range(3, CUTS))
    for seed in range(1, DRAWS):
        yield from (replace(SPEECHES, read=read, seed=seed) for read in (*TEXTS, *READ))
    for learning in SEEDS:
        for made in (RUN, SPEECHES, MIXED):
            yield replace(made, healed="speeches", learning=learning)
    for price in OTHERS:
        yield from (replace(made, price=price) for made in (RUN, SPEECHES, MIXED))
        yield from (replace(RANDOM, seed=seed, price=price) for seed in range(FEW))


def drawn(total: int, count: int, draw: int) -> Tensor:
    """So many of all rows; the draws follow each other through one shuffled order, and begin again at its end."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return order[(torch.arange(count) + draw * count) % total]


def same_loss(loss: Callable[[int], float], target: float, most: int) -> tuple[int, float]:
    """How many of ``most`` parts must go for a loss of ``target``, by halving, and the loss of that cut.

    ``loss`` of a cut rises with its parts; of the two numbers around the target the nearer one counts.
    """
    low, high, seen = 0, most, {0: 0.0, most: loss(most)}
    while high - low > 1:
        middle = (low + high) // 2
        seen[middle] = loss(middle)
        low, high = (middle, high) if seen[middle] < target else (low, middle)
    return min(((count, seen[count]) for count in (low, high)), key=lambda found: abs(found[1] - target))


def in_four_bits(base: PreTrainedModel) -> PreTrainedModel:
    """A variant with its blocks' matrices rounded to Q4_0; embedding and head keep their bits."""
    model, kind = variant(base), gguf.GGMLQuantizationType.Q4_0
    for linear in (part for part in model.model.layers.modules() if isinstance(part, nn.Linear)):
        weight = linear.weight.detach()
        rounded = gguf.quants.dequantize(gguf.quants.quantize(weight.float().numpy(), kind), kind)
        linear.weight = nn.Parameter(torch.from_numpy(rounded).to(weight.dtype))
    return model


class Workshop:
    """The whole model, the rows that choose, and every cut; ``work`` keeps what was found out on the way."""

    def __init__(self, work: Path) -> None:
        self.found = Kept(work / "found.json")
        self.base, self.tokenizer = load_model("llama", dtype=torch.bfloat16)
        self.pools = {
            text: token_blocks(self.tokenizer, "calibration", domain=text, tokens=8192, length=64) for text in TEXTS
        }
        self.first = self.pools["speeches"].sample(16, seed=0)  # where sets are chosen that no draw varies
        self.pricing = further_rows(self.tokenizer)
        self.scores = lru_cache(maxsize=8)(self._scores)
        self.healed = lru_cache(maxsize=1)(self._healed)

    def loss(self, model: PreTrainedModel) -> float:
        """Nats per token that a model loses on rows that only set prices, the mean of both texts."""

        def nats(judged: PreTrainedModel) -> float:
            return sum(perplexity(judged, rows, batch_size=16).nll for rows in self.pricing.values()) / len(TEXTS)

        return nats(model) - self.found.once("whole", lambda: nats(self.base))

    def alone(self, part: str) -> list[float]:
        """Nats without each block's part."""
        singles = [(layer,) for layer in range(self.base.config.num_hidden_layers)]
        return self.found.once(f"{part}s alone", lambda: left_out(self.base, part, singles, self.first))

    def run(self, count: int) -> list[int]:
        """The neighbouring blocks that are cheapest to leave out."""
        starts = range(ENDS, self.base.config.num_hidden_layers - ENDS - count + 1)
        runs = [tuple(range(start, start + count)) for start in starts]

        def cheapest() -> list[int]:
            nats = left_out(self.base, "block", runs, self.first)
            return [*runs[nats.index(min(nats))]]

        return self.found.once(f"run of {count}", cheapest)

    def price(self, blocks: int) -> float:
        """What the cheapest run of so many blocks costs."""
        return self.found.once(f"price of {blocks}", lambda: self.loss(without(self.base, "block", self.run(blocks))))

    def _read(self, read: str, seed: int) -> list[dict[str, Tensor]]:
        """What a score reads: rows of a text, or so many of each ability; each draw other ones, while they last."""
        if read in TEXTS:
            pool = self.pools[read]
            return pool[drawn(len(pool), DRAWN, seed)].batches(DRAWN)
        batches = []
        for name, count in READ[read].items():
            (batch,) = ability_rows(name, self.tokenizer, split="calibration").batches(1000)
            chosen = drawn(len(batch["input_ids"]), count, seed)
            batches.append({key: values[chosen] for key, values in batch.items()})
        return batches

    def _scores(self, made: Cut) -> list[Tensor]:
        """Of each block's neurons; the lowest go."""
        if made.criterion == "activation":
            return neuron_importance(self.base, "activation", batches=self._read(made.read, made.seed))
        strongest = self.scores(replace(SPEECHES, price=0))
        random = neuron_importance(self.base, "random", seed=made.seed)
        return [own.index_fill(0, best(by, SPARED), torch.inf) for own, by in zip(random, strongest, strict=True)]

    def _without(self, base: PreTrainedModel, made: Cut, count: int) -> PreTrainedModel:
        """Without so many neurons of each block, or so many attentions."""
        if made.part == "attentions":
            return without(base, "attention", lowest(self.alone("attention"), count))
        width = base.config.intermediate_size
        kept = [best(scores, width - count * STEP) for scores in self.scores(replace(made, price=0))]
        return cut(base, kept, kept)

    def make(self, base: PreTrainedModel, made: Cut) -> PreTrainedModel:
        """The cut, of weights in the base's dtype."""
        if not made.criterion:
            return base
        if made.healed:
            return self.healed(made)
        if made.criterion == "four bits":
            return in_four_bits(base)
        if made.part == "blocks":
            run = made.criterion == "run"
            return without(base, "block", self.run(made.price) if run else lowest(self.alone("block"), BLOCKS))
        if made.part == "attention":
            return without(base, "attention", [made.seed])

        def found() -> tuple[int, float]:
            width = base.config.intermediate_size // STEP // 2
            most = len(self.alone("attention")) - 1 if made.part == "attentions" else width
            return same_loss(lambda n: self.loss(self._without(self.base, made, n)), self.price(made.price), most)

        count, _ = self.found.once(made.name, found)
        return self._without(base, made, count)

    def _healed(self, made: Cut) -> PreTrainedModel:
        student = variant(self.make(self.base, replace(made, healed="", learning=0)))
        student.float()
        pool = token_blocks(self.tokenizer, "distillation", tokens=4 * STEPS * ROWS * LENGTH, length=LENGTH)
        rows = pool.sample(STEPS * ROWS, seed=made.learning).batches(ROWS)
        settings: dict[str, Any] = {"steps": STEPS, "lr": RATE, "seed": made.learning, "mlps_only": True}
        distill(self.base, student, rows, precision=torch.bfloat16, **settings)
        cast_weights(student, torch.bfloat16)
        return student


class Judges:
    """What every model is measured on.

    Args:
        workshop: whose tokenizer it is.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._tokenizer = workshop.tokenizer
        self.texts = judging_rows(workshop.tokenizer)
        self._rows = {name: ability_rows(name, workshop.tokenizer) for name in ABILITIES}
        # Nats and right answers of an ability are asked for one after the other.
        self._answers = lru_cache(maxsize=1)(lambda model, name: answers_of(model, self._rows[name]))

    def nats(self, name: str, model: PreTrainedModel) -> list[float]:
        """Of each row of an ability, by each predicted token."""
        sums = self._answers(model, name).groupby("row")[["nats", "tokens"]].sum()
        return (sums["nats"] / sums["tokens"]).round(4).tolist()

    def right(self, name: str, model: PreTrainedModel) -> list[float]:
        """Of each row of an ability, the share of right answers."""
        return self._answers(model, name).groupby("row")["right"].mean().round(4).tolist()

    def tasks(self, names: Sequence[str]) -> dict[str, Callable[[PreTrainedModel], list]]:
        """Both of some abilities."""
        measures = {"": self.nats, ", right": self.right}
        return {f"{name}{what}": partial(measure, name) for name in names for what, measure in measures.items()}

    def benchmarks(self) -> dict[str, Callable[[PreTrainedModel], list]]:
        """Right answers to tasks."""

        def right(task: str, model: PreTrainedModel) -> list[int]:
            table = evaluate(model, self._tokenizer, task, limit=QUESTIONS).attrs["answers"].table
            return table.loc[table.metric == table.metric.iloc[0], "value"].astype(int).tolist()

        return {task: partial(right, task) for task in BENCHMARKS}


def arms(workshop: Workshop, judges: Judges) -> Iterator[Arm]:
    """All of them: bfloat16 in the order of ``cuts``, then the first ones of one price in float32."""

    def arm(base: PreTrainedModel, made: Cut, tasks: Mapping[str, Callable]) -> Arm:
        dtype = str(base.dtype).removeprefix("torch.")
        key = {**asdict(made), "draw": 0, "dtype": dtype}
        return Arm(key, partial(workshop.make, base, made), judges.texts, tasks)

    base, first = workshop.base, judges.tasks(ABILITIES) | judges.benchmarks()
    yield arm(base, Cut(), first)
    for made in cuts():
        yield arm(base, made, first if made in FIGURE else judges.tasks(ABILITIES))
    for layer in range(base.config.num_hidden_layers):
        yield arm(base, Cut("alone", "attention", seed=layer), judges.tasks(["copying"]))
    base, _ = load_model("llama", dtype=torch.float32)
    yield arm(base, Cut(), judges.tasks(ABILITIES))
    for made in AGAIN:
        yield arm(base, made, judges.tasks(ABILITIES))


def main() -> None:
    args = command(__doc__, "records/damage_profile").parse_args()
    workshop = Workshop(args.work)
    settings = {"model": LLAMA, "step": STEP, "found": workshop.found}
    total = 2 + len([*cuts()]) + len(AGAIN) + workshop.base.config.num_hidden_layers
    write_record(arms(workshop, Judges(workshop)), args.out, work=args.work, settings=settings, total=total)


if __name__ == "__main__":
    main()
