"""How good a model is: scores on benchmark tasks, and the difference between two models.

Pruning changes a model in place, so measure before and after and compare the two stored results with ``paired``:

    before = perplexity(model, blocks)
    prune_neurons(model, ...)
    paired(before, perplexity(model, blocks))

``perplexity`` and ``Perplexity`` are imported from here too; ``language_modelling`` holds how it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring.language_modelling import Perplexity, dtype_name, exp, perplexity
from course_utils.models.architectures import describe
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.uncertainty import bootstrap_interval, mcnemar_p, ratio_interval, sign_flip_p

__all__ = ["Answers", "Perplexity", "bits_ratio", "evaluate", "paired", "perplexity", "perplexity_ratio"]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered to each document: kept in ``evaluate(...).attrs["answers"]`` for ``paired``.

    Attributes:
        table: the columns task, metric, document, value, choices, gold, margin of ``benchmark_tasks.ask``.
        dtype: what the model computed in.
    """

    table: pd.DataFrame
    dtype: str

    def __deepcopy__(self, _: dict) -> Answers:
        return self  # pandas copies attrs with every frame; nothing here changes


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
) -> pd.DataFrame:
    """Score a model on benchmark tasks: lm-eval's stock tasks, zero-shot, with its prompts and its scoring.

    Embedded, the documents come from the asset "benchmarks" (nothing is asked of the network once that is cached); in
    the hub profile from the Hugging Face hub. The tasks: lambada_openai, hellaswag, arc_easy, arc_challenge, piqa,
    winogrande, boolq, openbookqa, sciq, copa. ARC, OpenBookQA and SciQ are their validation sets embedded and their
    test sets on the hub; the others are the same sets in both.

    Args:
        model: any model that ``describe`` knows.
        tokenizer: the model's.
        tasks: one name, or several.
        limit: documents of each task, a fixed random sample that is the same for every model; None for all.

    Returns:
        One row per task, two for LAMBADA (accuracy and perplexity of the last word):

        - ``task``, ``metric``: "acc" is the share of documents where the right answer is the likeliest one; "acc_norm"
          (HellaSwag, ARC, PIQA, OpenBookQA) divides each answer's log-likelihood by its length first; for LAMBADA,
          "acc" is the share of last words that greedy decoding finds.
        - ``value``, ``stderr``, ``ci_low``, ``ci_high``: a share from 0 to 1, or a perplexity, with its 95 % interval:
          Wilson's for accuracies; for a perplexity, the exponential of the interval of the mean log-likelihood, and
          the standard error by the delta method.
        - ``chance``: what guessing gets, the mean of 1/choices. 0 where the answer is free, nan for a perplexity.
        - ``majority``: what a model that can't read gets by always giving the most frequent number of a right answer.
          nan where right answers have no number, or always the same (SciQ).
        - ``documents``: how many were asked.

        ``.attrs["answers"]`` keeps the result of every document for ``paired``.

    Raises:
        ValueError: no tasks, an unknown task, a limit that is no positive integer, a tokenizer that doesn't fit.
        AssetError: the documents can't be fetched.
    """
    describe(model)  # before lm-eval is imported and the documents are read
    names = list(dict.fromkeys(checks.strings("tasks", [tasks] if isinstance(tasks, str) else tasks)))
    if limit is not None:  # every document
        checks.whole_number("limit", limit, least=1)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"'tokenizer' must be the model's tokenizer: load_model returns both. Got {tokenizer!r}.")
    from course_utils.measuring import benchmark_tasks  # here, because lm-eval takes seconds to import

    answers = benchmark_tasks.ask(model, tokenizer, benchmark_tasks.build_tasks(names, limit))
    rows = []
    for name in names:
        task = benchmark_tasks.TASKS[name]
        for metric in task.metrics:
            documents = answers[(answers["task"] == name) & (answers["metric"] == metric)]
            rows.append({"task": name, "metric": metric, **_summary(metric, documents, task.majority)})
    frame = pd.DataFrame(rows)
    frame.attrs["answers"] = Answers(answers, dtype_name(model))
    return frame


def _summary(metric: str, documents: pd.DataFrame, has_majority: bool) -> dict[str, float]:
    values, count = documents["value"].to_numpy(), len(documents)
    summary = {"chance": math.nan, "majority": math.nan, "documents": count}
    if metric == "perplexity":
        nll, error, low, high = ratio_interval(-values, np.ones(count))
        value, error, low, high = (float(number) for number in (exp(nll), exp(nll) * error, exp(low), exp(high)))
    else:
        value, error, _, _ = ratio_interval(values, np.ones(count))
        low, high = binomtest(int(values.sum()), count).proportion_ci(method="wilson")
        summary["chance"] = float((documents["choices"] > 0).div(documents["choices"].clip(lower=1)).mean())
        if has_majority:
            summary["majority"] = float(documents["gold"].value_counts(normalize=True).iloc[0])
    return {"value": value, "stderr": error, "ci_low": float(low), "ci_high": float(high)} | summary


@check_types
def paired(result_a: Perplexity | pd.DataFrame, result_b: Perplexity | pd.DataFrame) -> pd.DataFrame:
    """Compare two models by their results on the same rows or documents.

    Much of the uncertainty of a score comes from which documents were drawn. Both models met the same ones, so that
    part cancels in the difference, and a difference can be certain although the intervals of the two scores overlap.

    Args:
        result_a: a ``Perplexity``, or a frame from ``evaluate`` (or a part of it).
        result_b: the other model's, of the same kind.

    Returns:
        One row per metric: ``task``, ``metric``, ``a``, ``b``, ``difference`` (b - a), ``ci_low``, ``ci_high`` (95 %,
        bootstrap over rows or documents), ``p`` (two-sided: McNemar's exact test for accuracies, ``sign_flip_p`` of the
        log-likelihood differences for the rest), ``wins`` and ``losses`` (rows or documents where b is better or worse)
        and ``pairs`` (how many were compared).

    Raises:
        ValueError: the results are of different kinds, rows, documents or dtypes.
    """
    scores_a, scores_b = _scores(result_a), _scores(result_b)
    names = [[(score.task, score.metric) for score in scores] for scores in (scores_a, scores_b)]
    if names[0] != names[1]:
        raise ValueError(f"The two results hold different scores: {names[0]} and {names[1]}.")
    return pd.DataFrame([_difference(a, b) for a, b in zip(scores_a, scores_b, strict=True)])


@check_types
def perplexity_ratio(score: Perplexity, reference: Perplexity) -> tuple[float, float, float]:
    """How many times as high a perplexity is as another one on the same rows of text.

    Ratios compare perplexities that differ by factors of thousands, where the differences of ``paired`` say little.

    Returns:
        ``score.perplexity / reference.perplexity``, and the ends of its 95 % interval: the exponential of
        ``ratio_interval`` of the rows' differences, so what makes a row hard for both models cancels. The ends are nan
        for a single row.

    Raises:
        ValueError: the results are of different rows or dtypes.
    """
    a, b = (_scores(result)[0] for result in (score, reference))
    _check_pair(a, b)
    mean, _, low, high = ratio_interval(a.totals - b.totals, b.sizes)
    return float(exp(mean)), float(exp(low)), float(exp(high))


@check_types
def bits_ratio(score: Perplexity, reference: Perplexity) -> tuple[float, float, float]:
    """How many times as many bits as another model one needs for a byte of the same passages.

    Their tokenizers may differ, so tokens can't be paired, but passages can (``text.passages``).

    Returns:
        ``score.bits_per_byte / reference.bits_per_byte``, and the ends of its 95 % interval (``ratio_interval``, with
        rows or documents as the units); the ends are nan for a single one.

    Raises:
        ValueError: the results are of rows with different bytes, or with unknown ones.
    """
    if (
        score.row_bytes is None
        or reference.row_bytes is None
        or not np.array_equal(score.row_bytes, reference.row_bytes)
    ):
        raise ValueError(
            "'score' and 'reference' must be of rows with the same known bytes: measure both models on the same "
            "TokenBlocks, or on the same passages with text.passages.batches_of."
        )
    mean, _, low, high = ratio_interval(score.row_nll, reference.row_nll)
    return mean, low, high


@dataclass(frozen=True)
class _Score:
    """A score that is a function of ``totals.sum() / sizes.sum()``, over units that a comparison can pair."""

    task: str
    metric: str
    totals: np.ndarray  # [units] nats, or 1 for a right answer
    sizes: np.ndarray  # [units] tokens, bytes or 1
    units: object  # which rows or documents these are
    dtype: str

    @property
    def is_accuracy(self) -> bool:
        return self.metric.startswith("acc")

    def value(self, ratio: np.ndarray) -> np.ndarray:
        if self.metric == "perplexity":
            return exp(ratio)
        return ratio / math.log(2) if self.metric == "bits_per_byte" else ratio


def _scores(result: Perplexity | pd.DataFrame) -> list[_Score]:
    if isinstance(result, Perplexity):
        sizes = {"perplexity": result.row_tokens, "bits_per_byte": result.row_bytes}
        return [
            _Score("text", metric, result.row_nll, size, result.fingerprint, result.dtype)
            for metric, size in sizes.items()
            if size is not None
        ]
    answers = result.attrs.get("answers") if isinstance(result, pd.DataFrame) else None
    if not isinstance(answers, Answers):
        raise ValueError(
            "paired compares two results of perplexity() or two frames of evaluate() with their "
            f".attrs['answers']; got {type(result).__name__}."
        )
    scores = []
    for task, metric in zip(result["task"], result["metric"], strict=True):
        documents = answers.table[(answers.table["task"] == task) & (answers.table["metric"] == metric)]
        totals = documents["value"].to_numpy() * (-1 if metric == "perplexity" else 1)
        scores.append(_Score(task, metric, totals, np.ones(len(totals)), list(documents["document"]), answers.dtype))
    return scores


def _check_pair(a: _Score, b: _Score) -> None:
    if a.dtype != b.dtype:
        raise ValueError(
            f"One result was computed in {a.dtype}, the other in {b.dtype}: rounding would be compared along with "
            "the models. Measure both in one dtype."
        )
    if a.units != b.units:
        raise ValueError(
            f"The two results of {a.task!r} are of different rows or documents ({len(a.totals)} and "
            f"{len(b.totals)} of them). Measure both models on the same text, or with the same limit and profile."
        )


def _difference(a: _Score, b: _Score) -> dict[str, object]:
    _check_pair(a, b)

    def difference(sums: np.ndarray) -> np.ndarray:  # [..., 3] of a's totals, b's totals, sizes
        with np.errstate(invalid="ignore"):  # inf - inf
            return b.value(sums[..., 1] / sums[..., 2]) - a.value(sums[..., 0] / sums[..., 2])

    units = np.stack([a.totals, b.totals, a.sizes], axis=1).astype(np.float64)  # [units, 3]
    value_a, value_b = (float(score.value(score.totals.sum() / score.sizes.sum())) for score in (a, b))
    more, less = int((b.totals > a.totals).sum()), int((b.totals < a.totals).sum())
    wins, losses = (more, less) if a.is_accuracy else (less, more)
    low, high = bootstrap_interval(units, difference)
    p = mcnemar_p(losses, wins) if a.is_accuracy else sign_flip_p(b.totals - a.totals)
    return {
        "task": a.task, "metric": a.metric, "a": value_a, "b": value_b, "difference": value_b - value_a, "ci_low": low,
        "ci_high": high, "p": p, "wins": wins, "losses": losses, "pairs": len(units),
    }  # fmt: skip
