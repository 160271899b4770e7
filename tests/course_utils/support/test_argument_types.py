"""An argument of another type than its hint says is refused by its name, before anything happens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from course_utils.support.argument_types import check_types


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
) -> str:
    """Its own words."""
    return "done"


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
def test_wrong_type_is_named(given, says):
    with pytest.raises(TypeError) as refused:
        everything(**given)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"scores": (torch.ones(1),)},
        {"scores": torch.ones(2, 3)},
        {"table": pd.DataFrame()},
        {"by_name": {"a": torch.ones(1)}},
        {"folder": Path()},
        {"head": [1, 2]},
        {"sets": [[1], ()]},
        {"values": iter([1.0])},
        {"values": pd.Series([1.0])},
        {"target": np.float64(1)},
        {"count": "left to the function"},
        {"names": 3},
        {"other": "not looked at"},
    ],
)
def test_right_type_and_what_is_left_to_the_function(given):
    assert everything(**given) == "done"


def test_generator_is_not_used_up():
    @check_types
    def total(values: Iterable[float]) -> float:
        return sum(values)

    assert total(one for one in (1.0, 2.0)) == 3.0


def test_function_keeps_its_signature_and_its_words():
    assert "scores" in inspect.signature(everything).parameters
    assert everything.__doc__ == "Its own words."
    assert functools.partial(everything, table=pd.DataFrame())() == "done"


def test_missing_and_unknown_arguments_are_pythons_own_affair():
    @check_types
    def one(values: Tensor) -> Tensor:
        return values

    with pytest.raises(TypeError, match="values"):
        one()
    with pytest.raises(TypeError, match="wrong"):
        one(torch.ones(1), wrong=1)
