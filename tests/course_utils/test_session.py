"""Profiles, seeds and the table of `start`."""

from __future__ import annotations

import os
import platform
import random
import time
from pathlib import Path

import numpy
import psutil
import pytest
import torch
from huggingface_hub import constants

from course_tools.rehearsal.hub_server import serve_hub
from course_utils import session


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


def test_another_model_in_a_role_is_named_in_the_table(monkeypatch, tmp_path, capsys):
    assert session.chosen_model("llama") is None
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    monkeypatch.setenv("COURSE_LLAMA", str(tmp_path / "my-model"))
    monkeypatch.setenv("COURSE_GPT2", "openai-community/gpt2")
    session.start("03", profile="smoke")
    table = capsys.readouterr().out
    assert "gpt2         openai-community/gpt2\n" in table and "llama        my-model\n" in table
    assert str(tmp_path) not in table
    assert session.chosen_model("llama") == str(tmp_path / "my-model")


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "two words", "empty", "https://example.org/model"])
def test_a_choice_that_cannot_be_a_model_is_refused_before_anything_starts(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("COURSE_LLAMA", name)
    with pytest.raises(ValueError, match=f"COURSE_LLAMA is '{name}', which is neither a folder with a model"):
        session.start("03", profile="smoke")
    assert not os.environ["COURSE_PROFILE"], "nothing was changed"


def test_unknown_profiles_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(ValueError, match="profile is 'fast'; choose one of smoke, embedded, hub"):
        session.start("01", profile="fast")
    assert not os.environ["COURSE_PROFILE"], "nothing was changed"
    monkeypatch.setenv("COURSE_PROFILE", "Hub")
    with pytest.raises(ValueError, match="COURSE_PROFILE is 'Hub'; choose one of smoke, embedded, hub"):
        session.current_profile()


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


def test_an_address_where_nothing_listens_is_no_hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port
    assert session._hub_answers() is False


def test_offline_mode_needs_no_question(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
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


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators give memory back by themselves, or never"
)
def test_samples_are_limited_by_one_variable(monkeypatch):
    monkeypatch.delenv("COURSE_SAMPLES", raising=False)
    assert session.at_most(400) == 400
    monkeypatch.setenv("COURSE_SAMPLES", "3")
    assert (session.at_most(400), session.at_most(2), session.at_most(400, least=8), session.at_most(5, least=8)) == (
        3,
        2,
        8,
        5,
    )
    for wrong in ("0", "-3", "few", "1.5", "²"):
        monkeypatch.setenv("COURSE_SAMPLES", wrong)
        with pytest.raises(ValueError, match=f"COURSE_SAMPLES is '{wrong}'; set it to a whole number of at least 1"):
            session.at_most(400)


def test_tidying_gives_freed_memory_back():
    def resident():
        return psutil.Process().memory_info().rss

    pieces = [torch.ones(16_000) for _ in range(2_000)]  # of 64 kB, so in the heap; every other one stays
    kept = pieces[::2]
    del pieces
    before = resident()
    session.tidy()
    assert before - resident() > 40_000_000  # of the 64 MB that lie between what stays
    assert all(piece.all() for piece in kept)
