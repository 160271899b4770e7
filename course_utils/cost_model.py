"""A fitted cost model: how long a pass takes from what it has to do, and why a cut isn't as fast as expected.

An estimate from bytes or operations knows one resource. A machine has several, and each takes its time: a fixed cost
for every pass and every layer (launching kernels, the framework's own code), bytes, operations. Each cost is fitted as
a number of seconds that can't be negative, on measured shapes; it is worth something if it predicts shapes that it has
not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from scipy.optimize import nnls

from course_utils.argument_types import check_types
from course_utils.costs import Work

PARTS = tuple(field.name for field in fields(Work))


@dataclass(frozen=True)
class CostModel:
    """Seconds for each unit of work, see ``costs.Work``; ``seconds["mlps"]`` is what an MLP sublayer costs as such."""

    seconds: Mapping[str, float]

    def parts(self, work: Work) -> dict[str, float]:
        """Predicted seconds, part by part."""
        return {part: self.seconds[part] * amount for part, amount in zip(PARTS, astuple(work), strict=True)}

    def predict(self, work: Work) -> float:
        """Predicted seconds."""
        return sum(self.parts(work).values())

    def speedup(self, before: Work, after: Work) -> float:
        """How many times as fast ``after`` should be as ``before``."""
        return self.predict(before) / self.predict(after)


@check_types
def fit_cost_model(works: Sequence[Work], seconds: Sequence[float]) -> CostModel:
    """Non-negative least squares of the *relative* errors, so that a short pass weighs as much as a long one.

    Parts that always go together in these works (passes that are all equal in number, say) can't be told apart: their
    sum is right, their shares are not. Take works of one phase, since kernels for one token and for many differ.

    Args:
        works: of shapes that differ in depth, width and attentions; more of them than there are parts at work.
        seconds: measured, one a work.

    Raises:
        ValueError: numbers that don't match, seconds that aren't positive and finite, or fewer works than parts that
            vary or occur.

    >>> work = Work(passes=1, attentions=2, mlps=2, weight_bytes=10, cache_bytes=0, operations=5.0)
    >>> works = [Work(1, a, m, b, 0, 0.0) for a, m, b in ((2, 2, 10), (1, 2, 9), (0, 1, 3), (3, 1, 8), (2, 5, 20))]
    >>> model = fit_cost_model(works, [2 + w.attentions + 3 * w.mlps for w in works])
    >>> round(model.predict(work), 6)
    10.0
    """
    measured = np.asarray(seconds, dtype=float)
    if len(works) != len(measured):
        raise ValueError(f"{len(works)} works and {len(measured)} seconds: give one time for each.")
    if not (np.isfinite(measured).all() and (measured > 0).all()):
        raise ValueError("'seconds' must be positive and finite; a measurement of 0 or nan is none.")
    amounts = np.array([astuple(work) for work in works], dtype=float).reshape(len(works), len(PARTS))
    present = int(np.any(amounts > 0, axis=0).sum())
    if len(works) < max(present, 2):
        raise ValueError(f"{len(works)} works are too few for {present} parts of their cost: measure more shapes.")
    scale = amounts.max(axis=0)
    scale[scale == 0] = 1
    relative = amounts / scale / measured[:, None]
    costs, _ = nnls(relative, np.ones(len(works)))
    return CostModel(dict(zip(PARTS, (costs / scale).tolist(), strict=True)))
