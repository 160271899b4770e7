"""Each argument of `compress` is read, or refused by its name before anything is loaded."""

import argparse
import os
import sys

import pytest

from course_utils.compress import command_line
from course_utils.text.domains import DOMAINS, LARGE_DOMAINS


@pytest.fixture
def parse(tmp_path):
    parser = argparse.ArgumentParser(prog="it")
    command_line.add_compress_arguments(parser, out=tmp_path / "out")
    return lambda *options: parser.parse_args(["llama", "--budget=80%", *options])


@pytest.fixture
def refusal(parse, capsys):
    def of(*options):
        with pytest.raises(SystemExit, match="2"):
            parse(*options)
        return capsys.readouterr().err

    return of


@pytest.mark.parametrize(
    ("typed", "amount", "unit"),
    [
        ("80%", 80, "%"), ("80 %", 80, "%"), ("100", 100, "%"), ("99.5", 99.5, "%"), ("113m", 113e6, "parameters"),
        ("1.2B", 1.2e9, "parameters"), ("500k", 5e5, "parameters"), ("113000000", 113e6, "parameters"),
        ("300 MB", 3e8, "bytes"), ("2gb", 2e9, "bytes"),
    ],
)  # fmt: skip
def test_budgets_as_they_are_typed(typed, amount, unit, parse):
    assert parse("--budget", typed).budget == (pytest.approx(amount), unit)


@pytest.mark.parametrize(
    ("typed", "number"),
    [("32k", 32_000), ("1.5K", 1500), ("32768", 32_768), ("66 %", 0.66), (".66", 0.66), ("100%", 1)],
)
def test_vocabularies_as_they_are_typed(typed, number, parse):
    assert parse("--vocabulary", typed).vocabulary == pytest.approx(number)


@pytest.mark.parametrize(
    ("option", "values", "allowed"),
    [
        ("--budget", ["0%", "0", "-5", "2grams", "", "80%%", "nan", "M"], "a share of the parameters (80%)"),
        ("--vocabulary", ["0", "-5", "32m", "1.5", "120%", "half", ""], "a number of tokens (32k, 32768) or a share"),
        ("--steps", ["-3", "1.5", "many", "", "1e2"], "a whole number of at least 0"),
        ("--seed", ["-1", "0.5", "9999999999"], "a whole number from 0 to 2147483647"),
        *((name, ["0", "-1"], "a whole number of at least 1") for name in ("--finalists", "--rows", "--accumulate")),
        ("--length", ["1", "0"], "a whole number of at least 2"),
        ("--lr", ["0", "-1", "nan", "inf", "fast"], "a number above 0"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(option, values, allowed, refusal):
    for value in values:
        error = refusal(f"{option}={value}", "--dry-run")
        assert f"argument {option}: must be {allowed}" in error and f"got {value!r}" in error


def test_a_folder_that_cannot_be_one_is_named(refusal, tmp_path, monkeypatch):
    (tmp_path / "model").touch()
    for place in (tmp_path, tmp_path / "model", tmp_path / "model" / "in it"):
        assert f"argument --out: {tmp_path / 'model'} is a file" in refusal("--out", str(place))
    (tmp_path / "model").unlink()
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert f"argument --out: {tmp_path} can't be written" in refusal("--out", str(tmp_path / "a" / "b"))


def test_text_that_is_not_there_is_named_and_it_or_built_in_text_is_taken(parse, refusal, tmp_path):
    (tmp_path / "a.txt").touch()
    here = str(tmp_path / "a.txt")
    args = parse("--text", here, "--text", f"{here}:3", "--judge", here)
    assert args.text == [here, f"{here}:3"] and args.judge == [here]
    assert "argument --text: there is no file or folder nowhere" in refusal("--text", "nowhere")
    assert "argument --judge: there is no file or folder nowhere" in refusal("--text", here, "--judge", "nowhere")
    assert "argument --text: the weight of" in refusal("--text", f"{here}:0")
    assert "argument --domain: not allowed with argument --text" in refusal("--text", here, "--domain", "wiki")


def test_help_names_every_text_and_needs_no_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    for arguments in (["compress", "--help"], ["compress", "llama", "--budget", "80%", "--steps", "-3"]):
        with pytest.raises(SystemExit):
            command_line.main(arguments)
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in (*DOMAINS, *LARGE_DOMAINS))
    assert "compress Qwen/Qwen3-0.6B --budget 80% --dry-run" in shown
