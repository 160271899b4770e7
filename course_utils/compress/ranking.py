"""Which of many candidates is the best, as it was cut and after a little distillation.

The order may change, because the candidate that a cut hurts most needn't be the one that learns back least. Each
candidate's records are JSON files, so a search that was stopped goes on, and what was found can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.compress.scores import Importance
from course_utils.compress.search import Candidate, shrink
from course_utils.healing.distillation import Recipe, distill
from course_utils.healing.distillation.processes import first_says
from course_utils.healing.distillation.teacher_states import TeacherStates, remember_teacher
from course_utils.measuring.evaluation import perplexity
from course_utils.models.architectures import cast_weights, describe
from course_utils.models.loading import identity
from course_utils.support.checks import check_types
from course_utils.support.files import measured_once
from course_utils.text.batches import Batch, read_batches, rows_of, text_of
from course_utils.text.rows import TokenBlocks

Text = TokenBlocks | Iterable[Mapping[str, Tensor] | TokenBlocks]


@check_types
def rank(
    model: PreTrainedModel,
    candidates: Sequence[Candidate],
    importance: Importance,
    text: Text,
    *,
    folder: str | os.PathLike[str],
    train: Text | None = None,
    recipe: Recipe | None = None,
) -> pd.DataFrame:
    """Judge candidates by the nats per token that they need for held-out text, before and after light distillation.

    Nothing here may see what the final model is evaluated on: token blocks of the evaluation split are refused (bare
    mappings don't say where they come from). Every candidate learns from the same teacher, the same text in the same
    order, by the same recipe. Where several processes call this, each candidate learns in all of them (``distill``),
    and what the first process measured counts.

    Args:
        model: the whole model: it is cut, and it is the teacher. It is not changed.
        candidates: as from ``candidates``.
        importance: of this very model, or its random control.
        text: to choose by: token blocks, or a list of such blocks or of ``{"input_ids", "attention_mask"}`` mappings.
        folder: keeps a JSON file for each candidate as cut, and one for it as distilled. What is there for the same
            model, scores, text and recipe isn't done again.
        train: what candidates learn from, likewise; no row of ``text`` may be in it.
        recipe: how; with ``train`` and not without. Minitron takes 1.8 billion tokens for it, a lesson some ten
            thousand.

    Returns:
        A row for each candidate, the best first: its sizes, parameters, cost, whether means stay, ``nll`` as cut,
        ``rank`` by it, and with ``train`` ``distilled_nll``, ``distilled_rank``, ``distilled_tokens``; ``record`` is
        the file's name.

    Raises:
        ValueError: no candidates, the same one twice, text of the evaluation split or in both roles, ``train`` without
            ``recipe``, or anything that ``shrink`` refuses.
    """
    if not candidates or len(set(candidates)) < len(candidates):
        raise ValueError(f"'candidates' must hold different ones, at least one; got {[c.name for c in candidates]}.")
    if (train is None) != (recipe is None):
        raise ValueError("'train' and 'recipe' go together: what candidates learn from, and how.")
    judged, learned = _batches("text", text), [] if train is None else _batches("train", train)
    judged_rows, learned_rows = _read(model, judged), _read(model, learned)
    shared = _rows(judged_rows) & _rows(learned_rows)
    if shared:
        raise ValueError(
            f"{len(shared)} rows of 'text' are in 'train' too. A model can't be judged by text that it has learned."
        )
    as_cut = {"model": identity(model), "importance": importance.digest, "text": text_of(judged_rows)}
    as_distilled = as_cut | {"train": text_of(learned_rows), "recipe": recipe and recipe.as_json()}

    def judge(small: PreTrainedModel) -> dict[str, Any]:
        """With each row's nats, so that candidates can be compared row by row."""
        score = perplexity(small, judged)
        rows = {"row_nats": score.row_nll.tolist(), "row_tokens": score.row_tokens.tolist()}
        return {"judged": {"nll": score.nll} | rows}

    def cut(candidate: Candidate) -> dict[str, Any]:
        return {"sizes": candidate.sizes} | judge(shrink(model, candidate, importance))

    @cache
    def teacher(precision: torch.dtype) -> TeacherStates:  # it reads once, for all candidates that no record has yet
        return remember_teacher(model, learned, precision=precision)

    def distil(candidate: Candidate, recipe: Recipe) -> dict[str, Any]:
        student = shrink(model, candidate, importance)
        dtype = student.dtype
        history = distill(teacher(recipe.precision), student, learned, recipe)
        cast_weights(student, dtype)  # judged as it was before
        distilling = {
            "losses": [step["loss"] for step in history.steps],
            "tokens": history.tokens,
            "seconds": round(history.seconds, 1),
        }
        return {"sizes": candidate.sizes, "distilling": distilling} | judge(student)

    rows = []
    for candidate in tqdm(candidates, desc="ranking", unit="candidate", leave=False, delay=2):
        record, path = measured_once(folder, candidate.name, as_cut, partial(cut, candidate))
        row = asdict(candidate) | {"nll": record["judged"]["nll"]}
        if recipe is not None:
            learn = partial(distil, candidate, recipe)
            record, path = measured_once(folder, f"{candidate.name}-distilled", as_distilled, learn, agree=first_says)
            row |= {"distilled_nll": record["judged"]["nll"], "distilled_tokens": record["distilling"]["tokens"]}
        rows.append(row | {"record": path.name})
    frame, by = pd.DataFrame(rows), ["nll"] if recipe is None else ["nll", "distilled_nll"]
    for name in by:
        place = frame[name].rank(method="min").astype(int)
        frame.insert(frame.columns.get_loc(name) + 1, name.replace("nll", "rank"), place)
    return frame.sort_values(by[-1], kind="stable", ignore_index=True)


def _batches(name: str, text: Text) -> list[Mapping[str, Tensor]]:
    """Blocks and mappings as mappings; blocks of the evaluation split are refused."""
    batches: list[Mapping[str, Tensor]] = []
    for part in [text] if isinstance(text, TokenBlocks | Mapping) else text:
        if not isinstance(part, TokenBlocks):
            batches.append(part)
        elif part.split == "evaluation":
            raise ValueError(
                f"'{name}' is of the evaluation split, which a search must not see: what is chosen by a text looks "
                "better on it than it is. Take the calibration or the distillation split."
            )
        else:
            batches += part.batches()
    if not batches:
        raise ValueError(f"'{name}' is empty: give at least one batch of text.")
    return batches


def _read(model: PreTrainedModel, batches: list[Mapping[str, Tensor]]) -> list[Batch]:
    vocab_size = describe(model).vocab_size
    return list(read_batches(batches, vocab_size=vocab_size, device=model.device)) if batches else []


def _rows(batches: list[Batch]) -> set[str]:
    return {row for batch in batches for row in rows_of(batch)}
