"""Principal components: whether groups of states differ, beside what shuffling leaves of it.

Any states have directions that explain most, and any labels lie apart somewhere. So both numbers come with a null:
shuffled columns for the variance that is explained, shuffled labels for the distance of the groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from course_utils import checks
from course_utils.argument_types import check_types

_COLUMN_SHUFFLES = 20  # they hardly differ, and each costs a decomposition


@dataclass(frozen=True)
class Components:
    """Principal components of states that belong to groups, with what chance alone gives.

    Attributes:
        points: float64 [items, components], the states along the components.
        groups: each item's group.
        explained: float64 [components], shares of the states' variance.
        explained_shuffled: float64 [20 shuffles, components], the same after each column was shuffled by itself: what
            components explain when no two numbers have to do with each other (parallel analysis, Horn 1965).
        between: share of the first two components' variance that lies between the groups' means, from 0 to 1.
        between_shuffled: float64 [shuffles], the same with the groups' labels shuffled.
    """

    points: Tensor
    groups: tuple[str, ...]
    explained: Tensor
    explained_shuffled: Tensor
    between: float
    between_shuffled: Tensor

    @property
    def p(self) -> float:
        """How often shuffled labels separate at least as well; at least 1 / (shuffles + 1)."""
        return (1 + int((self.between_shuffled >= self.between).sum())) / (1 + len(self.between_shuffled))


@check_types
def principal_components(
    states: Tensor,
    groups: Sequence[str],
    *,
    components: int = 10,
    within: Sequence[object] | None = None,
    shuffles: int = 999,
    seed: int = 0,
) -> Components:
    """Principal components of many states, and both nulls: shuffled columns for the variance, labels for the groups.

    Args:
        states: [items, width], for instance last-token states or differences within pairs; leave first tokens out.
        groups: a label for each item, at least two different ones.
        components: how many, at least 2 and fewer than items.
        within: for each item the set in which labels may be swapped, such as its pair or template: states of one
            template are alike whatever their group is, so free shuffling would compare with the wrong chance.
        shuffles: of the labels.
        seed: of all shuffles.

    Raises:
        ValueError: sizes that don't fit, values that are not finite or all the same, or labels that no shuffle can
            change.
    """
    if states.dim() != 2:
        raise ValueError(f"'states' must be [items, width]; got {list(states.shape)}.")
    most = min(len(states) - 1, states.shape[1])
    checks.whole_number("components", components, least=2, most=most, meaning="the width, and fewer than the items")
    checks.whole_number("shuffles", shuffles, least=1)
    checks.whole_number("seed", seed)
    labels, values = np.asarray(groups), states.detach().double().cpu().numpy()
    sets = np.zeros(len(states), dtype=int) if within is None else pd.factorize(pd.Series(list(within)))[0]
    if labels.shape != (len(states),) or sets.shape != labels.shape:
        raise ValueError(
            f"'groups' and 'within' must hold one entry for each of {len(states)} items; got {np.size(labels)} and "
            f"{len(sets)}."
        )
    if not np.isfinite(values).all() or np.ptp(values, axis=0).max() == 0:
        raise ValueError("'states' hold NaN or infinite values, or are all the same.")
    if all(len(set(labels[sets == group])) == 1 for group in set(sets)):
        raise ValueError("The groups have the same label everywhere inside 'within': shuffling can't change anything.")
    generator = np.random.default_rng(seed)
    analysis = PCA(components, svd_solver="full").fit(values)
    points = analysis.transform(values)  # [items, components]
    null = [
        PCA(components, svd_solver="full").fit(generator.permuted(values, axis=0)).explained_variance_ratio_
        for _ in range(_COLUMN_SHUFFLES)
    ]
    between_null = [_between(points[:, :2], _shuffled(labels, sets, generator)) for _ in range(shuffles)]
    return Components(
        points=torch.from_numpy(points),
        groups=tuple(map(str, labels)),
        explained=torch.from_numpy(analysis.explained_variance_ratio_),
        explained_shuffled=torch.from_numpy(np.stack(null)),
        between=_between(points[:, :2], labels),
        between_shuffled=torch.tensor(between_null, dtype=torch.float64),
    )


def _between(points: np.ndarray, labels: np.ndarray) -> float:
    """Share of the variance of centred points [items, 2] that lies between the groups' means."""
    parts = [points[labels == name] for name in np.unique(labels)]
    return float(sum(len(part) * np.square(part.mean(axis=0)).sum() for part in parts) / np.square(points).sum())


def _shuffled(labels: np.ndarray, sets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The labels in another order, each inside its set."""
    shuffled = labels.copy()
    for members in (sets == group for group in np.unique(sets)):
        shuffled[members] = generator.permutation(labels[members])
    return shuffled
