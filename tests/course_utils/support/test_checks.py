"""Bad arguments are refused with one wording, and good ones come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from course_utils.support import checks

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [True, False, np.True_, torch.tensor(True), 2.0, "2", None, 0, 6, np.float64(3)])
def test_whole_numbers_refused(value):
    with pytest.raises(ValueError, match=r"^'n' must be a whole number from 1 to 5, the rows; got "):
        checks.whole_number("n", value, least=1, most=5, meaning="the rows")


def test_whole_numbers_accepted():
    assert checks.whole_number("n", np.int64(5), least=1, most=5) == 5
    assert checks.whole_number("n", 0) == 0
    with pytest.raises(ValueError, match="'n' must be a whole number of at least 1; got 0"):
        checks.whole_number("n", 0, least=1)


@pytest.mark.parametrize("values", [[True], [np.True_], [1, 6], [2.0], 3, None, "12"])
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
    [
        ([3], "from 0 to 2; got \\[3\\]"),
        ([1, 1], "repeat"),
        ([True], "integers"),
        ([np.True_], "integers"),
        ([0.0], "integers"),
        (2, "integers"),
    ],
)
def test_block_numbers_refused(given, message):
    with pytest.raises(ValueError, match=message):
        checks.block_numbers(given, 3)


def test_block_numbers_come_sorted_and_are_called_what_they_are():
    assert checks.block_numbers(torch.tensor([2, 0]), 3) == [0, 2]
    with pytest.raises(ValueError, match="'order' must not repeat"):
        checks.block_numbers([1, 1], 3, name="'order'")


def test_strings():
    assert checks.strings("prompts", iter(["a", "b"])) == ["a", "b"]
    for bad in ("text", [], None, 3, ["a", 1], b"x"):
        with pytest.raises(ValueError, match="'prompts' must be a non-empty list of strings; got"):
            checks.strings("prompts", bad)


def test_paths():
    assert checks.path("folder", "a/b") == checks.path("folder", Path("a/b")) == Path("a/b")
    for bad in (None, 3, b"a", ["a"]):
        with pytest.raises(ValueError, match="'folder' must be a path, as a string or a Path; got"):
            checks.path("folder", bad)


def test_an_array_is_none_of_the_allowed():
    assert checks.one_of("unit", "bytes", ("bytes", "ms")) == "bytes"
    for bad in (np.array(["bytes", "ms"]), torch.ones(2), ["bytes"], None):
        with pytest.raises(ValueError, match="'unit' must be one of bytes, ms; got"):
            checks.one_of("unit", bad, ("bytes", "ms"))
