"""The table of families: every entry is tried, under the name that its configuration has."""

from tiny import FAMILIES, tiny_model

from course_utils import families


def test_every_known_family_is_tested():
    assert set(FAMILIES) == set(families.FAMILIES)


def test_names_are_those_of_configurations():
    assert [tiny_model(name).config.model_type for name in families.FAMILIES] == [*families.FAMILIES]
