"""The record: what was measured of many prompts, for policies to be chosen and judged by."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.lessons.prompt_harm.harms import Measured, measure
from course_utils.lessons.prompt_harm.prompts import Case, cases
from course_utils.pruning.adaptive import AdaptiveConfig, complexity
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.files import write_text

RECORD = Path(__file__).parents[2] / "data" / "harm_per_prompt.json"
_PER_PROMPT = ("kinds", "documents", "digests", "tokens", "answer_tokens", "harm", "complexity")


@dataclass(frozen=True)
class Record:
    """Everything that policies are chosen and judged by: the first ``choosing`` prompts choose, the others judge.

    Attributes:
        settings: of the measurement: "model", "dtype", "seed" (of the prompts), "order" (of the attentions).
        choosing: how many prompts come from the calibration split.
        kinds: [prompts], of ``KINDS``.
        documents: [prompts], where each comes from.
        digests: [prompts], of the texts.
        numbers: how many attentions were left out, 0 first.
        tokens: [prompts], of the prompt.
        answer_tokens: [prompts].
        harm: [prompts, numbers], as in ``Measured``; 0 in the first column.
        complexity: [prompts], the score of ``calibrate``'s policy.
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
    complexity: np.ndarray

    @classmethod
    def of(
        cls,
        chosen: Sequence[Case],
        found: Measured,
        *,
        choosing: int,
        numbers: Sequence[int],
        settings: dict[str, Any],
        complexity: Sequence[float],
    ) -> Record:
        """Put together what was measured of ``chosen`` prompts, those that choose first; ``numbers`` are without 0."""
        return cls(
            settings=settings,
            choosing=choosing,
            kinds=np.array([case.kind for case in chosen]),
            documents=np.array([case.document for case in chosen]),
            digests=np.array([case.digest for case in chosen]),
            numbers=(0, *numbers),
            tokens=found.tokens,
            answer_tokens=found.answer_tokens,
            harm=np.concatenate([np.zeros((len(chosen), 1)), found.harm], axis=1),
            complexity=np.array(complexity),
        )

    @classmethod
    def load(cls, *, dtype: str = "bfloat16", seed: int = 0) -> Record:
        """The record that comes with the course for a dtype of the weights and a seed of the prompts.

        Raises:
            ValueError: there is no such record.
        """
        records = {(one["settings"]["dtype"], one["settings"]["seed"]): one for one in _stored()}
        if (dtype, seed) not in records:
            there = ", ".join(f"dtype {name!r} with seed {number}" for name, number in records)
            raise ValueError(f"There is no record of dtype {dtype!r} with seed {seed!r}; there are: {there}.")
        stored = records[dtype, seed]
        arrays = {name: np.array(stored[name]) for name in _PER_PROMPT}
        return cls(**stored | arrays | {"numbers": tuple(stored["numbers"])})

    @classmethod
    def shipped_for(cls, model: PreTrainedModel, *, seed: int = 0) -> Record | None:
        """The record of this model that comes with the course, in the model's dtype if there is one; otherwise None."""
        settings, dtype = [one["settings"] for one in _stored()], str(model.dtype).removeprefix("torch.")
        dtypes = [s["dtype"] for s in settings if (s["model"], s["seed"]) == (model.config.name_or_path, seed)]
        return cls.load(dtype=dtype if dtype in dtypes else dtypes[0], seed=seed) if dtypes else None

    def split(self) -> tuple[Record, Record]:
        """The prompts that choose, and those that judge, each as a record of which none chooses."""
        return self._part(slice(self.choosing)), self._part(slice(self.choosing, None))

    def _part(self, rows: slice) -> Record:
        return replace(self, choosing=0, **{name: getattr(self, name)[rows] for name in _PER_PROMPT})


def _stored() -> list[dict[str, Any]]:
    return json.loads(RECORD.read_text(encoding="utf-8"))["records"]


@check_types
def save_records(records: Sequence[Record], path: str | os.PathLike) -> None:
    """Write records as one file of JSON, all or nothing; harms to four decimals."""

    def plain(value: Any) -> Any:
        return np.round(value, 4).tolist() if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    lines = []
    for record in checks.not_empty("records", records):
        fields = {name: plain(value) for name, value in asdict(record).items()}
        lines.append(json.dumps(fields, separators=(",", ":"), default=np.ndarray.tolist))
    write_text(path, '{"records": [\n' + ",\n".join(lines) + "\n]}\n")


def measure_record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: AdaptiveConfig,
    numbers: Sequence[int],
    *,
    choosing: int,
    judging: int,
    seed: int = 0,
) -> Record:
    """A small record of a model that none is shipped for.

    Args:
        model: see ``measure``.
        tokenizer: the model's.
        config: from ``calibrate``; the first attentions of its order are left out, and its policy scores the prompts.
        numbers: how many of them to leave out, rising, without 0.
        choosing: how many prompts choose, of the calibration split; they come first.
        judging: how many judge, of the evaluation split.
        seed: of the prompts.
    """
    numbers = checks.whole_numbers("numbers", numbers, most=len(config.order), meaning="the attentions in 'order'")
    first = cases(tokenizer, "calibration", count=choosing, seed=seed)
    chosen, choosing = first + cases(tokenizer, "evaluation", count=judging, seed=seed), len(first)
    found = measure(model, tokenizer, [case.text for case in chosen], [config.order[:number] for number in numbers])
    batches = (tokenizer(case.text, add_special_tokens=False, return_tensors="pt") for case in chosen)
    return Record.of(
        chosen,
        found,
        choosing=choosing,
        numbers=numbers,
        complexity=complexity(model, batches, config).tolist(),
        settings={
            "model": model.config.name_or_path,
            "dtype": str(model.dtype).removeprefix("torch."),
            "seed": seed,
            "order": list(config.order),
        },
    )
