"""The table of families: every entry is tried, under the name that its configuration has."""

import pytest
from tiny import FAMILIES, tiny_model

from course_utils.models import families


def test_every_known_family_is_tested():
    assert set(FAMILIES) == set(families.FAMILIES)


def test_names_are_those_of_configurations():
    assert [tiny_model(name).config.model_type for name in families.FAMILIES] == [*families.FAMILIES]


@pytest.mark.parametrize(("settings", "first"), [({}, True), ({"do_layer_norm_before": False}, False)])
def test_only_opt_can_normalise_behind_the_sum(settings, first):
    config = tiny_model("opt", **settings).config
    family = families.FAMILIES["opt"]
    assert family.norms_first(config) is first
    assert family.norms_of_attention(config) == (("self_attn_layer_norm",) if first else ())
    assert families.FAMILIES["llama"].norms_first(tiny_model("llama").config)
