"""Which model stands in a role, before anything is loaded."""

from __future__ import annotations

import pytest

from course_utils.support import roles, session


def test_a_choice_stands_in_its_role_in_every_profile(monkeypatch, tmp_path):
    assert roles.chosen_model("llama") is None
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    monkeypatch.setenv("COURSE_LLAMA", str(tmp_path / "my-model"))
    monkeypatch.setenv("COURSE_GPT2", "openai-community/gpt2")
    assert roles.chosen_model("llama") == str(tmp_path / "my-model")
    for profile in session.PROFILES:
        assert roles.names_in(profile) == {"gpt2": "openai-community/gpt2", "llama": "my-model"}


def test_each_profile_has_a_model_in_each_role():
    names = [roles.names_in(profile) for profile in session.PROFILES]
    assert all(named.keys() == roles.ROLES.keys() for named in names)
    assert [named["llama"] for named in names] == [
        "random", "SmolLM2-135M-Instruct", "meta-llama/Llama-3.2-1B, or HuggingFaceTB/SmolLM2-360M without access",
    ]  # fmt: skip


def test_unknown_roles_and_profiles_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'role' must be one of gpt2, llama; got 'bert'"):
        roles.chosen_model("bert")
    with pytest.raises(ValueError, match="'profile' must be one of smoke, embedded, hub; got 'fast'"):
        roles.names_in("fast")
