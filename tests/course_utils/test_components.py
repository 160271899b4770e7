"""Principal components are those of the states, and groups are told apart from what chance gives."""

from __future__ import annotations

import pytest
import torch

from course_utils.components import principal_components


def separated(shift: float) -> tuple[torch.Tensor, list[str], list[int]]:
    """40 pairs in two groups that lie apart by ``shift``; pairs differ much more than that."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(40, 2, generator=generator).repeat_interleave(2, dim=0) * 10
    states = torch.cat([places, torch.zeros(80, 30)], dim=1) + 0.1 * torch.randn(80, 32, generator=generator)
    states[1::2, 0] += shift
    return states, ["a", "b"] * 40, [i // 2 for i in range(80)]


def test_principal_components_and_their_nulls():
    states, groups, pairs_ = separated(1.0)
    result = principal_components(states, groups, within=pairs_, shuffles=199)
    centred = states.double() - states.double().mean(dim=0)
    singular = torch.linalg.svdvals(centred).square()
    torch.testing.assert_close(result.explained, (singular / singular.sum())[:10])
    torch.testing.assert_close(result.points.norm(dim=0), singular.sqrt()[:10])
    assert result.explained[:2].sum() > 0.9 > 0.2 > result.explained_shuffled[:, 2].max()
    assert result.explained_shuffled.shape == (20, 10) and result.between_shuffled.shape == (199,)
    again = principal_components(states, groups, within=pairs_, shuffles=199)
    assert torch.equal(again.between_shuffled, result.between_shuffled)


def test_labels_are_shuffled_within_pairs():
    states, groups, pairs_ = separated(1.0)
    assert principal_components(states, groups, within=pairs_).p == 0.001  # clear to anyone who compares the pairs
    assert principal_components(states, groups).p > 0.3  # drowned by the differences between pairs
    states, groups, pairs_ = separated(0.0)
    assert principal_components(states, groups, within=pairs_).p > 0.05


def test_between_is_a_share():
    states = torch.tensor([[0.0, 0, 0], [0, 1, 0], [4, 0, 0], [4, 1, 0.1]])
    result = principal_components(states, ["a", "a", "b", "b"], components=2)
    assert result.between == pytest.approx(16 / 17, abs=0.01)  # variances 4 and 1/4 along the axes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": 1}, "from 2 to 32, the width, and fewer than the items; got 1"),
        ({"components": 33}, "from 2 to 32"),
        ({"components": True}, "got True"),
        ({"shuffles": 0}, "at least 1"),
        ({"states": torch.zeros(80)}, r"\[80\]"),
        ({"groups": ["a"] * 79}, "80 items"),
        ({"within": [0] * 79}, "79"),
        ({"within": list(range(80))}, "same label"),
        ({"groups": ["a"] * 80}, "same label"),
        ({"states": torch.full((80, 32), float("nan"))}, "NaN"),
        ({"states": torch.ones(80, 32)}, "all the same"),
    ],
)
def test_bad_components_are_refused(change, message):
    states, groups, _ = separated(0.0)
    with pytest.raises(ValueError, match=message):
        principal_components(**({"states": states, "groups": groups} | change))
