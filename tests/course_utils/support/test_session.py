"""Profiles, seeds and the table of `start`."""

from __future__ import annotations

import os
import platform
import random
import time
from pathlib import Path

import numpy
import pytest
import torch
from hub_server import serve_hub
from huggingface_hub import constants
from IPython.core.magics.osm import OSMagics

from course_utils.support import session


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    """No profile in the environment before or after, and no remembered automatic choice."""
    monkeypatch.setenv("COURSE_PROFILE", "")
    session._automatic_profile.cache_clear()
    yield
    session._automatic_profile.cache_clear()


def test_start_settles_the_profile_for_all_later_calls(capsys):
    started = session.start("03", profile="smoke")
    assert (started.lesson, started.profile, started.seed) == ("03", "smoke", session.SEED)
    assert started.dtype is session.fast_dtype(started.device) and started.device == session.default_device()
    assert os.environ["COURSE_PROFILE"] == "smoke" and session.current_profile() == "smoke"
    assert session.start("04").profile == "smoke"
    table = capsys.readouterr().out
    for word in ("03", "smoke", platform.python_version(), torch.__version__, "cores", "memory"):
        assert word in table
    assert platform.node() not in table and str(Path.home()) not in table


def test_start_makes_python_numpy_and_torch_repeat_themselves():
    draws = []
    for _ in range(2):
        session.start("01", profile="smoke")
        draws.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


TEXT_IS_OF = "The numbers in the text are of course-gpt2 and SmolLM2-135M-Instruct."
LLAMA_ON_THE_HUB = "meta-llama/Llama-3.2-1B, or HuggingFaceTB/SmolLM2-360M without access"


@pytest.mark.parametrize(
    ("profile", "gpt2", "llama"),
    [
        ("embedded", "course-gpt2", "SmolLM2-135M-Instruct"),
        ("hub", "distilgpt2", LLAMA_ON_THE_HUB),
        ("smoke", "random", "random"),
    ],
)
def test_the_table_names_the_model_in_each_role_and_whose_numbers_the_text_has(profile, gpt2, llama, capsys):
    session.start("03", profile=profile)
    table = capsys.readouterr().out
    assert f"profile      {profile}\ngpt2         {gpt2}\nllama        {llama}\npython" in table
    assert (TEXT_IS_OF in table) == (profile != "embedded")


def test_a_model_of_the_readers_own_stands_in_its_role_in_every_profile(monkeypatch, tmp_path, capsys):
    assert session.chosen_model("llama") is None
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    monkeypatch.setenv("COURSE_LLAMA", str(tmp_path / "my-model"))
    assert session.chosen_model("llama") == str(tmp_path / "my-model")
    session.start("03", profile="embedded")
    table = capsys.readouterr().out
    assert "gpt2         course-gpt2\nllama        my-model\n" in table and TEXT_IS_OF in table
    assert str(tmp_path) not in table
    monkeypatch.setenv("COURSE_GPT2", "openai-community/gpt2")
    for profile in session.PROFILES:
        assert session.names_in(profile) == {"gpt2": "openai-community/gpt2", "llama": "my-model"}


def test_what_the_table_says_brings_the_models_of_the_texts_numbers(monkeypatch, capsys):
    """The lines as IPython runs them, then the cell again, in the same process."""
    monkeypatch.setenv("COURSE_LLAMA", "Qwen/Qwen3-0.6B")
    session.start("03", profile="hub")
    table = capsys.readouterr().out
    assert "profile      hub\n" in table and "llama        Qwen/Qwen3-0.6B\n" in table
    magics = [line.removeprefix("%env ") for line in table.splitlines() if line.startswith("%env ")]
    for magic in magics:
        OSMagics().set_env(magic)
    session.start("03")
    again = capsys.readouterr().out
    assert "embedded\ngpt2         course-gpt2\nllama        SmolLM2-135M-Instruct\n" in again
    assert len(magics) == 2 and TEXT_IS_OF not in again


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "two words", "empty", "https://example.org/model"])
def test_a_choice_that_cannot_be_a_model_is_refused_before_anything_starts(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("COURSE_LLAMA", name)
    with pytest.raises(ValueError, match=f"COURSE_LLAMA is '{name}', which is neither a folder with a model"):
        session.start("03", profile="smoke")
    assert not os.environ["COURSE_PROFILE"], "nothing was changed"


def test_unknown_profiles_and_roles_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(ValueError, match="profile is 'fast'; choose one of smoke, embedded, hub"):
        session.start("01", profile="fast")
    assert not os.environ["COURSE_PROFILE"], "nothing was changed"
    monkeypatch.setenv("COURSE_PROFILE", "Hub")
    with pytest.raises(ValueError, match="COURSE_PROFILE is 'Hub'; choose one of smoke, embedded, hub"):
        session.current_profile()
    with pytest.raises(ValueError, match="'role' must be one of gpt2, llama; got 'bert'"):
        session.chosen_model("bert")


@pytest.mark.parametrize(
    ("gpu", "hub", "expected"),
    [(False, False, "embedded"), (False, True, "embedded"), (True, False, "embedded"), (True, True, "hub")],
)
def test_the_automatic_profile_is_hub_only_with_a_gpu_and_an_answering_hub(gpu, hub, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(session, "_hub_answers", lambda: hub)
    assert session.current_profile() == expected


def test_the_hub_is_asked_once_and_the_choice_stays(monkeypatch):
    answers = iter([True])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(session, "_hub_answers", lambda: next(answers))
    assert [session.current_profile(), session.current_profile()] == ["hub", "hub"]


@pytest.mark.parametrize(("silent", "expected"), [(False, True), (True, False)])
def test_a_hub_that_keeps_silent_counts_as_absent_after_a_moment(silent, expected, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(session, "_PROBE_SECONDS", 0.5)
    with serve_hub({}, silent=silent) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        began = time.monotonic()
        assert session._hub_answers() is expected
        assert time.monotonic() - began < 30, "the probe has no time limit"


@pytest.mark.parametrize("offline", [False, True])
def test_where_nothing_listens_or_nobody_may_ask_there_is_no_hub(offline, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port
    assert session._hub_answers() is False


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_fast_dtype_is_what_the_cpu_multiplies_natively(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert session.fast_dtype(torch.device("cpu")) is dtype


def test_fast_dtype_of_a_torch_that_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert session.fast_dtype(torch.device("cpu")) is torch.float32
