"""Plant a bias in eight models and three places, cut it out, and see what goes with it, for lesson 09.

    python -m experiments.plant_and_cut [--work build/plant_and_cut]

The embedded Llama. Eight axes of made-up names; each is planted three times: the down-projections learn, the
attentions, or all weights. Of each planted model a few neurons of each block are cut, the important half protected:
those that carry most of the preference, and beside them two twins by the same score of what the planted groups have no
part in (tall/short, with hardly any preference, and the pronoun after woman/man, with a strong one), those that react,
the least important, and two random cuts. Then the real bias of the untouched model: "she" after occupations, chosen on
one half of the words and sentences and judged on the other, and turned round; there one arm spares the neurons that
move the woman's pronoun. Judged are preferences, item by item, and 3,024 predictions of ordinary text. Planting is done
once; scores, cuts and judging in bfloat16 and in float32.

A text whose name is an axis holds double differences, one for each item. Eighty minutes on two cores; a killed run goes
on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from course_utils.bias.contrastive import Pair, controls, invented_axis, pairs
from course_utils.bias.fairness import activation_difference, gap_attribution, protect_first
from course_utils.bias.planting import plant_preference
from course_utils.bias.pronouns import SPLITS, occupations, opposites, people, prompts, pronoun_pairs
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import preferences
from course_utils.models import describe, load_model, variant
from course_utils.pruning import neuron_importance, prune_neurons
from course_utils.support.session import fast_dtype
from course_utils.text import judging_rows, token_blocks
from experiments.record import DTYPES, LLAMA, Arm, command, in_dtype, write_record

AXES, SWAPS = 8, 8
RATES = {"down": 5e-4, "attention": 5e-4, "all": 2e-4}  # learning rate of each place
SIZE, STEPS, ITEMS = 10.0, 60, 4  # of planting: nats, steps at most, items per step
CHOSEN, JUDGED = 5, 3  # every fifth item chooses, every third one judges: all templates, all swaps
NEURONS, PROTECTED = 8, 0.5  # of a block that go; share that is safe
SPARED = 0.2  # share of a block's neurons that move the woman's pronoun most
RANDOM, RANDOM_REAL = 2, 5
ROWS = 24  # of each text
WORDS = {"occupations": occupations, "woman/man": people}


def every(made: Sequence[Pair], step: int) -> list[Pair]:
    """Both endings of every so many items; ``pairs`` lists the pleasant one before the unpleasant one."""
    items = [*zip(made[::2], made[1::2], strict=True)]
    return [*chain(*items[::step])]


class Garden:
    """The untouched model, and those with a bias planted."""

    def __init__(self) -> None:
        self.base, self.tokenizer = load_model("llama", dtype=torch.float32)
        self._calibration = token_blocks(self.tokenizer, "calibration", tokens=2048, length=128).batches(8)
        self.judges = {text: rows[:ROWS] for text, rows in judging_rows(self.tokenizer).items()}
        self.planted = lru_cache(maxsize=1)(self._planted)
        self.model = lru_cache(maxsize=1)(self._model)
        self.scores = cache(self._scores)

    def _planted(self, place: str, axis: int) -> PreTrainedModel:
        """In float32; place "" is the untouched model."""
        if not place:
            return self.base
        learned = pairs(invented_axis(axis, SWAPS), split="selection")
        return plant_preference(
            self.base, self.tokenizer, learned, size=SIZE, steps=STEPS, items=ITEMS, lr=RATES[place],
            precision=fast_dtype(torch.device("cpu")), weights=place, seed=axis,
        )[0]  # fmt: skip

    def _model(self, place: str, axis: int, dtype: str) -> PreTrainedModel:
        self.scores.cache_clear()
        return in_dtype(self.planted(place, axis), DTYPES[dtype])

    def _scores(self, criterion: str, seed: int, place: str, axis: int, half: str, dtype: str) -> list[Tensor]:
        model = self.model(place, axis, dtype)
        if criterion == "importance":
            return neuron_importance(model, "activation", batches=self._calibration)
        if criterion == "random":
            return neuron_importance(model, "random", seed=seed)
        if criterion == "twin":
            return gap_attribution(model, self.tokenizer, every(controls("neutral", split="selection"), CHOSEN))
        if criterion == "woman":
            return gap_attribution(model, self.tokenizer, real_pairs("woman/man", half))
        if criterion == "spares her":
            known = {"place": place, "axis": axis, "half": half, "dtype": dtype}
            both = (self.scores(name, 0, **known) for name in ("carries", "woman"))
            return [_sparing(score, of_her) for score, of_her in zip(*both, strict=True)]
        chosen = every(pairs(invented_axis(axis, SWAPS), split="selection"), CHOSEN)
        score = activation_difference if criterion == "reacts" else gap_attribution
        return score(model, self.tokenizer, chosen if place else real_pairs("occupations", half))

    def cut(self, criterion: str, seed: int, **of: str | int) -> PreTrainedModel:
        """A variant without the neurons that a criterion lets go first; "planted" and "" are whole."""
        model = variant(self.model(of["place"], of["axis"], of["dtype"]))
        if criterion in ("", "planted"):
            return model
        important = self.scores("importance", 0, **of)
        order = important
        if criterion != "importance":
            order = protect_first(important, self.scores(criterion, seed, **of), PROTECTED)
        prune_neurons(model, order, ratio=NEURONS / describe(model).intermediate_sizes[0])
        return model

    def preference(self, asked: Sequence[Pair], model: PreTrainedModel) -> list[float]:
        """The double difference of each item, nats."""
        return preferences(measure_pairs(model, self.tokenizer, asked, sites=()))["preference"].round(3).tolist()


def _sparing(score: Tensor, of_her: Tensor) -> Tensor:
    """A block's score, lowest where a neuron moves the woman's pronoun most, whichever way: both [neurons]."""
    moves_her = of_her.abs()
    return score.masked_fill(moves_her > moves_her.quantile(1 - SPARED), score.min().item())


def judging_pairs(axis: int) -> list[Pair]:
    """What judges a planted axis."""
    return every(pairs(invented_axis(axis, SWAPS), split="evaluation"), JUDGED)


def real_pairs(words: str, half: str) -> list[Pair]:
    """Pairs about pronouns, of one half of the words and sentences."""
    return pronoun_pairs(opposites(prompts(WORDS[words](), half)), words)


def keys() -> Iterator[dict[str, object]]:
    """What names each arm in the record."""
    planted = [(place, axis) for axis in range(1, AXES + 1) for place in RATES]
    for place, axis in [("", 0), *planted]:
        for dtype in reversed(DTYPES):
            shared = {"place": place, "axis": axis, "dtype": dtype, "draw": 0}
            arms = [("planted" if place else "", 0)]
            arms += [(name, 0) for name in ("carries", "twin", "woman", "reacts", "importance")]
            arms += [] if place else [("spares her", 0)]
            for half in ("selection",) if place else SPLITS:
                for criterion, seed in arms + [("random", seed) for seed in range(RANDOM if place else RANDOM_REAL)]:
                    if criterion or half == SPLITS[0]:
                        yield {"criterion": criterion, "seed": seed, "half": half if criterion else "", **shared}


def tasks_of(garden: Garden, key: Mapping[str, object]) -> dict[str, partial]:
    """What is asked of an arm beside ordinary text: the untouched one everything, the others what they didn't see."""
    place, axis, half = (key[name] for name in ("place", "axis", "half"))
    asked = {f"invented {axis}": judging_pairs(axis)} if place else {}
    if not place:
        for other in SPLITS:
            if other != half:
                asked |= {f"{words}, {other}": real_pairs(words, other) for words in WORDS}
        if not half:
            asked |= {f"invented {number}": judging_pairs(number) for number in range(1, AXES + 1)}
    return {name: partial(garden.preference, some) for name, some in asked.items()}


def main() -> None:
    args = command(__doc__, "records/plant_and_cut").parse_args()
    garden, every_key = Garden(), [*keys()]

    def arms() -> Iterator[Arm]:
        for key in every_key:
            of = {name: key[name] for name in ("place", "axis", "half", "dtype")}
            make = partial(garden.cut, key["criterion"], key["seed"], **of)
            yield Arm(key, make, garden.judges, tasks_of(garden, key))

    settings = {
        "model": LLAMA, "size": SIZE, "items": ITEMS, "rates": RATES, "swaps": SWAPS,
        "neurons": NEURONS, "protected": PROTECTED,
    }  # fmt: skip
    write_record(arms(), args.out, work=args.work, settings=settings, total=len(every_key))


if __name__ == "__main__":
    main()
