"""Bad arguments are refused with one wording, before anything happens, and good ones come back."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from course_utils.support import checks
from course_utils.support.checks import check_types

NAN, INF = float("nan"), float("inf")
ARRAYS = [np.array(["a", "b"]), torch.ones(2), ["a"], None]  # what can't be compared or hashed is none of the allowed


@pytest.mark.parametrize(
    ("check", "message", "bad", "good"),
    [
        (
            partial(checks.whole_number, least=1, most=5, meaning="the rows"),
            "'it' must be a whole number from 1 to 5, the rows; got ",
            [True, False, np.True_, torch.tensor(True), 2.0, "2", None, 0, 6, np.float64(3)],
            [np.int64(5), 1],
        ),
        (checks.whole_number, "'it' must be a whole number of at least 0; got ", [-1], [0]),
        (
            partial(checks.whole_numbers, least=1, most=5, meaning="the rows"),
            "'it' must hold whole numbers from 1 to 5, the rows; got ",
            [[True], [np.True_], [1, 6], [2.0], 3, None, "12"],
            [(1, 5), ()],
        ),
        (checks.positive, "'it' must be a number above 0; got ", [0, -1, NAN, INF, True, "1", None], [1e-9, 3]),
        (checks.at_least_zero, "'it' must be a number of at least 0; got ", [-1e-9, NAN, INF, True, "1"], [0, 0.5]),
        (checks.share, "'it' is a share, from 0 to 1; got ", [-0.1, 1.1, NAN, True, "1", None], [0, 0.5, 1]),
        (
            lambda _, value: checks.ratio(value),
            r"in \[0, 1\); got .*For 20 % give 0.2",
            [1, 1.5, -0.1, NAN, True, False, "0.2", None],
            [0, 0.99],
        ),
        (checks.flag, "'it' must be True or False; got ", [0, 1, None, "yes"], [True, False]),
        (lambda *given: checks.one_of(*given, ("a", "b")), "'it' must be one of a, b; got ", ["c", *ARRAYS], ["a"]),
        (
            lambda _, values: checks.block_numbers(values, 3, name="The blocks"),
            r"The blocks must (lie from 0 to 2; got \[3\]|not repeat|be a list of integers)",
            [[3], [1, 1], [True], [np.True_], [0.0], 2],
            [[0, 2]],
        ),
        (
            checks.strings,
            "'it' must be a non-empty list of strings; got ",
            ["text", [], None, 3, ["a", 1], b"x"],
            [["a", "b"]],
        ),
        (checks.path, "'it' must be a path, as a string or a Path; got ", [None, 3, b"a", ["a"]], [Path("a/b")]),
        (
            lambda _, value: checks.device(value),
            "'device' must be a device that this",
            ["gpu", "", None, object(), "cuda:99"],
            [],
        ),
        (
            partial(checks.int64, shape="[rows]"),
            r"'it' must be an int64 tensor \[rows\]; got ",
            [[1], torch.ones(3), torch.ones(2, 2).long(), torch.tensor(1), None],
            [torch.tensor([7])],
        ),
    ],
)
def test_bad_values_are_refused_and_good_ones_come_back(check, message, bad, good):
    for value in bad:
        with pytest.raises(ValueError, match=message):
            check("it", value)
    for value in good:
        assert check("it", value) == value


def test_values_come_back_as_the_kind_that_is_promised():
    assert type(checks.whole_number("n", np.int64(5))) is int
    assert checks.whole_numbers("n", iter([np.int64(5), 0])) == (5, 0)
    assert checks.strings("prompts", iter(["a", "b"])) == ["a", "b"]
    assert checks.block_numbers(torch.tensor([2, 0]), 3) == [0, 2]
    assert checks.path("folder", "a/b") == Path("a/b")
    assert checks.device("cpu") == checks.device(torch.device("cpu")) == torch.device("cpu")
    layer = torch.nn.Linear(1, 1)
    assert checks.module("model", layer) is layer
    with pytest.raises(TypeError, match="'model' must be a model, as load_model returns it first; got None"):
        checks.module("model", None)


def test_scores_that_are_not_finite():
    checks.finite([torch.zeros(2)], "The scores")
    with pytest.raises(ValueError, match=r"The scores hold NaN or infinite values in blocks \[1\]"):
        checks.finite([torch.zeros(2), torch.tensor([1.0, NAN])], "The scores")


def test_commands_that_need_no_model_wait_for_no_torch():
    told = "import sys, course_tools.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@check_types
def everything(
    scores: Sequence[Tensor] = (),
    *,
    table: pd.DataFrame | None = None,
    by_name: Mapping[str, Tensor] | None = None,
    folder: str | Path | None = None,
    head: tuple[int, int] = (0, 0),
    sets: Sequence[Sequence[int]] = (),
    values: Iterable[float] = (),
    target: float | np.ndarray = 0.0,
    call: Callable[[], object] = list,
    count: int = 1,
    names: Sequence[str] = (),
    **others: Tensor,
) -> float:
    """Its own words."""
    return sum(values)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scores": "ab"}, "'scores' must be of type Sequence[Tensor]; got 'ab'."),
        ({"scores": [torch.ones(1), 2]}, "'scores' must be of type"),
        ({"scores": None}, "got None"),
        ({"table": "results.csv"}, "'table' must be of type pd.DataFrame | None; got 'results.csv'."),
        ({"by_name": {"a": 1}}, "'by_name'"),
        ({"folder": 3}, "'folder' must be of type str | Path | None; got 3."),
        ({"head": (1,)}, "'head'"),
        ({"head": 1}, "'head'"),
        ({"sets": [1]}, "'sets'"),
        ({"values": 1.0}, "'values'"),
        ({"target": "x"}, "'target'"),
        ({"call": 3}, "'call'"),
    ],
)
def test_another_type_than_the_hint_says_is_named(given, says):
    with pytest.raises(TypeError) as refused:
        everything(**given)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"scores": (torch.ones(1),)},
        {"scores": torch.ones(2, 3)},
        {"table": pd.DataFrame(), "folder": Path(), "head": [1, 2], "sets": [[1], ()]},
        {"by_name": {"a": torch.ones(1)}},
        {"values": pd.Series([0.0]), "target": np.float64(1)},
        {"count": "left to the function", "names": 3, "other": "not looked at"},
    ],
)
def test_what_fits_and_what_is_left_to_the_function_passes(given):
    assert everything(**given) == 0


def test_a_checked_function_stays_what_it_was():
    assert everything(values=(one for one in (1.0, 2.0))) == 3, "a generator is not used up"
    assert "scores" in inspect.signature(everything).parameters and everything.__doc__ == "Its own words."
