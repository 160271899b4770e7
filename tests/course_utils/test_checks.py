"""Bad arguments are refused with one wording, and good ones come back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from course_utils import checks

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [True, False, 2.0, "2", None, 0, 6, np.float64(3)])
def test_whole_numbers_refused(value):
    with pytest.raises(ValueError, match=r"^'n' must be a whole number from 1 to 5, the rows; got "):
        checks.whole_number("n", value, least=1, most=5, meaning="the rows")


def test_whole_numbers_accepted():
    assert checks.whole_number("n", np.int64(5), least=1, most=5) == 5
    assert checks.whole_number("n", 0) == 0
    with pytest.raises(ValueError, match="'n' must be a whole number of at least 1; got 0"):
        checks.whole_number("n", 0, least=1)


@pytest.mark.parametrize("values", [[True], [1, 6], [2.0], 3, None, "12"])
def test_lists_of_whole_numbers_refused(values):
    with pytest.raises(ValueError, match=r"^'n' must hold whole numbers from 1 to 5, the rows; got "):
        checks.whole_numbers("n", values, least=1, most=5, meaning="the rows")


def test_lists_of_whole_numbers_accepted():
    assert checks.whole_numbers("n", iter([np.int64(5), 0])) == (5, 0)
    assert checks.whole_numbers("n", ()) == ()


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (checks.positive, [0, -1, NAN, INF, True, "1", None], [1e-9, 3]),
        (checks.at_least_zero, [-1e-9, NAN, INF, True, "1", None], [0, 0.5]),
        (checks.share, [-0.1, 1.1, NAN, True, "1", None], [0, 0.5, 1]),
        (checks.flag, [0, 1, None, "yes"], [True, False]),
    ],
)
def test_named_checks(check, bad, good):
    for value in bad:
        with pytest.raises(ValueError, match=r"'setting' .*; got "):
            check("setting", value)
    for value in good:
        assert check("setting", value) is value


@pytest.mark.parametrize("value", [1, 1.5, -0.1, NAN, True, False, "0.2", None])
def test_ratios_refused(value):
    with pytest.raises(ValueError, match=r"in \[0, 1\); got .*For 20 % give 0.2"):
        checks.ratio(value)


def test_one_of():
    assert checks.one_of("loss", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="'loss' must be one of a, b; got 'c'"):
        checks.one_of("loss", "c", ("a", "b"))


@pytest.mark.parametrize(
    ("given", "message"),
    [([3], "from 0 to 2; got \\[3\\]"), ([1, 1], "repeat"), ([True], "integers"), ([0.0], "integers"), (2, "integers")],
)
def test_block_numbers_refused(given, message):
    with pytest.raises(ValueError, match=message):
        checks.block_numbers(given, 3)


def test_block_numbers_come_sorted_and_are_called_what_they_are():
    assert checks.block_numbers(torch.tensor([2, 0]), 3) == [0, 2]
    with pytest.raises(ValueError, match="'order' must not repeat"):
        checks.block_numbers([1, 1], 3, name="'order'")


def test_scores_that_are_not_finite():
    checks.finite([torch.zeros(2)], "The scores")
    with pytest.raises(ValueError, match=r"The scores hold NaN or infinite values in blocks \[1\]"):
        checks.finite([torch.zeros(2), torch.tensor([1.0, NAN])], "The scores")


def test_strings():
    assert checks.strings("prompts", iter(["a", "b"])) == ["a", "b"]
    for bad in ("text", [], None, 3, ["a", 1], b"x"):
        with pytest.raises(ValueError, match="'prompts' must be a non-empty list of strings; got"):
            checks.strings("prompts", bad)


@pytest.mark.parametrize("value", ["gpu", "", None, object(), "cuda:99"])
def test_devices_refused(value):
    with pytest.raises(ValueError, match="'device' must be a device that this machine has"):
        checks.device(value)


def test_devices_accepted():
    assert checks.device("cpu") == checks.device(torch.device("cpu")) == torch.device("cpu")


@checks.named
def share_of(table: pd.DataFrame, *, column: str, rows: Sequence[int] = (), weights: Tensor | None = None) -> float:
    if column == "no":
        raise ValueError("There is no such thing.")
    part = table[column].iloc[list(rows)] if rows else table[column]
    return float((part.to_numpy() * (1 if weights is None else weights.numpy())).sum())


TABLE = pd.DataFrame({"a": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table": None}, TypeError, r"^'table' must be of the kind pd\.DataFrame; got None\.$"),
        ({"rows": 3}, TypeError, r"^'rows' must be of the kind Sequence\[int\]; got 3\.$"),
        ({"rows": ["x"]}, TypeError, "^'rows' must be of the kind"),
        ({"column": "b"}, ValueError, "^'table' has no 'b'; it has a"),
        ({"weights": torch.ones(3)}, ValueError, r"^Can't work with 'weights' of shape \[3\]"),
        ({"weights": "x"}, TypeError, "^'weights' must be of the kind Tensor"),
        ({"column": "no"}, ValueError, r"^There is no such thing\.$"),  # said on purpose
    ],
)
def test_bare_errors_name_their_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        share_of(**{"table": TABLE, "column": "a"} | arguments)


def test_what_works_is_left_as_it_is():
    assert share_of(TABLE, column="a") == 3 and share_of(TABLE, column="a", rows=np.array([1])[:1].tolist()) == 2
    assert share_of.__name__ == "share_of"
    with pytest.raises(TypeError, match="column"):  # Python's own words
        share_of(TABLE)


def test_errors_of_a_class_of_their_own_are_left_as_they_are():
    class Absent(Exception):
        pass

    @checks.named
    def read(path: str) -> None:
        raise Absent

    with pytest.raises(Absent):
        read(None)
