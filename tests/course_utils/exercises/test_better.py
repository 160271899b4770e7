"""A choice beats a baseline where the interval of the ratio says so; the learner reads the ratio in any case."""

import numpy as np
import pytest

from course_utils.evaluation import Perplexity
from course_utils.exercises import exercise
from course_utils.exercises.better import require_better

NOISE = 0.4 * np.array([1, -1] * 8)


def scored(nll, noise=0.0):
    row_nll = 11.0 * (nll + noise * np.ones(16))
    return Perplexity(
        perplexity=float(np.exp(nll)), bits_per_byte=1.0, nll=nll, tokens=16 * 11, ci_low=0.0, ci_high=9.0,
        row_nll=row_nll, row_tokens=np.full(16, 11), row_bytes=None, dtype="float32", fingerprint="",
    )  # fmt: skip


@exercise(1, task="Choose.", proved="Better.")
def check_choice(mine):
    require_better(mine, scored(2.0), told="Ratio:", worse="It cost more.", luck="That may be luck.")


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (scored(1.5), "Ratio: 0.61 (0.61 to 0.61)\nExercise 1: correct. Better.\n"),
        (scored(2.5), "Ratio: 1.65 (1.65 to 1.65)\nExercise 1: not yet. It cost more.\n"),
        (scored(2.0), "Ratio: 1.00 (1.00 to 1.00)\nExercise 1: not yet. It cost more.\n"),
    ],
)
def test_the_ratio_is_told_and_judged(mine, said, capsys):
    assert check_choice(mine) == ("correct" in said)
    assert capsys.readouterr().out == said


def test_a_ratio_whose_interval_reaches_one_may_be_luck(capsys):
    assert not check_choice(scored(1.95, NOISE))
    assert capsys.readouterr().out.endswith("Exercise 1: not yet. That may be luck.\n")
