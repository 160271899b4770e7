"""The record: what was measured of many prompts, for policies to be chosen and judged by."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks, session
from course_utils.architectures import describe
from course_utils.argument_types import check_types
from course_utils.files import write_text
from course_utils.prompt_harm.harms import ANSWER_TOKENS, Measured, measure
from course_utils.prompt_harm.prompts import Case, cases
from course_utils.prompt_harm.seconds import seconds_by_length

RECORD = Path(__file__).parents[1] / "data" / "harm_per_prompt.json"
RANDOM_PROMPTS = 24  # for sets of random attentions
_SHORT = 90  # tokens of the longest of them
_RANDOM_SETS = 19
_DIRECTIONS = 16  # principal components of the states that a probe may read


@dataclass(frozen=True)
class Record:
    """Everything that policies are chosen and judged by: the first ``choosing`` prompts choose, the others judge.

    Attributes:
        settings: of the measurement: model, dtype, order of the attentions, …
        choosing: how many prompts come from the calibration split.
        kinds: [prompts], of ``KINDS``.
        documents: [prompts], where each comes from.
        digests: [prompts], of the texts.
        numbers: how many attentions were left out, 0 first.
        tokens: [prompts], of the prompt.
        answer_tokens: [prompts].
        harm: [prompts, numbers], as in ``Measured``; 0 in the first column.
        halves: [prompts, numbers, 2].
        agree: [prompts, numbers].
        states: [prompts, at most 16], principal components of the states at the decision, fitted on those that
            choose.
        entropies: [prompts, 2].
        seconds: ``lengths``, ``numbers``, and ``prefill`` and ``decode`` [lengths, numbers].
        random_orders: harm [prompts, sets] of sets of random attentions on a few of the prompts; may be empty.
    """

    settings: dict[str, Any]
    choosing: int
    kinds: np.ndarray
    documents: np.ndarray
    digests: np.ndarray
    numbers: tuple[int, ...]
    tokens: np.ndarray
    answer_tokens: np.ndarray
    harm: np.ndarray
    halves: np.ndarray
    agree: np.ndarray
    states: np.ndarray
    entropies: np.ndarray
    seconds: dict[str, list]
    random_orders: dict[str, Any]

    @classmethod
    def of(
        cls,
        chosen: Sequence[Case],
        found: Measured,
        *,
        choosing: int,
        numbers: Sequence[int],
        seconds: dict[str, list],
        settings: dict[str, Any],
        random_orders: dict[str, Any] | None = None,
    ) -> Record:
        """Put together what was measured.

        Args:
            chosen: the prompts, those that choose first.
            found: their measurement, one set a number.
            choosing: how many choose.
            numbers: attentions left out in each set of ``found``, rising, without 0.
            seconds: from ``seconds_by_length``.
            settings: of the measurement.
            random_orders: see the class.
        """

        def with_zero(values: np.ndarray, zero: float) -> np.ndarray:
            return np.concatenate([np.full_like(values[:, :1], zero), values], axis=1)

        return cls(
            settings=settings,
            choosing=choosing,
            kinds=np.array([case.kind for case in chosen]),
            documents=np.array([case.document for case in chosen]),
            digests=np.array([case.digest for case in chosen]),
            numbers=(0, *numbers),
            tokens=found.tokens,
            answer_tokens=found.answer_tokens,
            harm=with_zero(found.harm, 0.0),
            halves=with_zero(found.halves, 0.0),
            agree=with_zero(found.agree, 1.0),
            states=_principal_states(found.states, choosing=choosing),
            entropies=found.entropies,
            seconds=seconds,
            random_orders=random_orders or {},
        )

    @classmethod
    def shipped_for(cls, model: PreTrainedModel) -> Record | None:
        """The record that comes with the course, if it is of this model; otherwise None."""
        record = cls.load() if RECORD.exists() else None
        return record if record and record.settings["model"] == model.config.name_or_path else None

    def part(self, rows: slice) -> Record:
        """Some of the prompts, as a record of which none chooses."""
        per_prompt = ("kinds", "documents", "digests", "tokens", "answer_tokens", "harm", "halves", "agree", "states")
        return replace(self, choosing=0, **{name: getattr(self, name)[rows] for name in (*per_prompt, "entropies")})

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON, all or nothing; harms to four decimals."""

        def plain(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            if value.dtype.kind != "f":
                return value.tolist()
            rounded = np.round(value.astype(np.float64), 4)
            return np.where(np.isnan(rounded), None, rounded).tolist()

        write_text(path, json.dumps({name: plain(value) for name, value in asdict(self).items()}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike | None = None) -> Record:
        """Read what ``save`` wrote; without a path, the record that comes with the course."""
        stored = json.loads(Path(path or RECORD).read_text(encoding="utf-8"))
        for name in ("kinds", "documents", "digests", "tokens", "answer_tokens"):
            stored[name] = np.array(stored[name])
        for name in ("harm", "halves", "agree", "states", "entropies"):
            stored[name] = np.array(stored[name], dtype=np.float64)  # None becomes nan
        return cls(**stored | {"numbers": tuple(stored["numbers"])})


def measure_record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    order: Sequence[int],
    numbers: Sequence[int],
    *,
    choosing: int,
    judging: int,
) -> Record:
    """A small record of a model that none is shipped for.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        tokenizer: the model's.
        order: the attentions, the first to be left out first.
        numbers: how many of them to leave out, rising, without 0; at least two.
        choosing: how many prompts choose, of the calibration split.
        judging: how many judge, of the evaluation split.

    Returns:
        Those that choose first; ``random_orders`` leaves out as many attentions as the last but one of ``numbers``.

    Raises:
        ValueError: bad block numbers in ``order``, an adaptive model, or too few prompts for one of each kind.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
        AssetError: the texts are not in the cache and can't be fetched.
    """
    first = cases(tokenizer, "calibration", count=choosing)
    chosen, choosing = first + cases(tokenizer, "evaluation", count=judging), len(first)
    sets = [list(order[:number]) for number in numbers]
    found = measure(model, tokenizer, [case.text for case in chosen], sets, decide_at=min(order))
    return Record.of(
        chosen,
        found,
        choosing=choosing,
        numbers=numbers,
        seconds=seconds_by_length(model, order, numbers=(0, numbers[-1])),
        settings={"model": model.config.name_or_path, "order": list(order), "answer_tokens": ANSWER_TOKENS},
        random_orders=harm_at_random(model, tokenizer, chosen[choosing:], left_out=numbers[-2], prompts=RANDOM_PROMPTS),
    )


@check_types
def harm_at_random(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judging: Sequence[Case],
    *,
    left_out: int,
    prompts: int,
) -> dict[str, Any]:
    """Harm of 19 sets of random attentions, on the first short prompts: to be better than all of them has p = 1/20.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        tokenizer: the model's.
        judging: prompts to take from.
        left_out: attentions in a set.
        prompts: how many prompts, at most.

    Returns:
        ``left_out``, ``prompts`` (their places in ``judging``), ``sets`` and ``harm`` [prompts, sets].

    Raises:
        ValueError: ``left_out`` or ``prompts`` below 1, no prompts or one without tokens, an adaptive model.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    for name, number in {"left_out": left_out, "prompts": prompts}.items():
        checks.whole_number(name, number, least=1)
    checks.not_empty("judging", judging)
    lengths = [len(tokenizer(case.text, add_special_tokens=False).input_ids) for case in judging]
    short = [i for i, length in enumerate(lengths) if length <= _SHORT][:prompts]
    blocks = describe(model).num_blocks
    sets = [
        torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))[:left_out].tolist()
        for seed in range(1, session.at_most(_RANDOM_SETS) + 1)
    ]
    found = measure(model, tokenizer, [judging[i].text for i in short], sets, decide_at=0)
    return {"left_out": left_out, "prompts": short, "sets": sets, "harm": found.harm.round(4).tolist()}


def _principal_states(states: np.ndarray, *, choosing: int) -> np.ndarray:
    """Principal components of states [prompts, 2, hidden], with directions and scales from those that choose.

    Args:
        states: as in ``Measured``.
        choosing: how many of the prompts choose; they come first.

    Returns:
        float64 [prompts, at most 16]; each column has a spread of 1 over the prompts that choose.

    Raises:
        ValueError: ``choosing`` is below 2, or more than there are prompts.
    """
    checks.whole_number("choosing", choosing, least=2, most=len(states), meaning="the prompts")
    flat = states.reshape(len(states), -1).astype(np.float64)
    mean, spread = flat[:choosing].mean(0), flat[:choosing].std(0) + 1e-9
    flat = (flat - mean) / spread
    components = PCA(min(_DIRECTIONS, choosing - 1), svd_solver="full").fit(flat[:choosing])
    found = components.transform(flat)
    return found / (found[:choosing].std(0) + 1e-9)
