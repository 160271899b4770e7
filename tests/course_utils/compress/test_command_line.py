"""Each argument of `compress` is read, or refused by its name before anything is loaded."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from course_utils.compress import command_line
from course_utils.text.texts import DOMAINS, LARGE_DOMAINS


@pytest.fixture
def parser(tmp_path):
    parser = argparse.ArgumentParser(prog="it")
    command_line.add_compress_arguments(parser, out=tmp_path / "out")
    return parser


@pytest.mark.parametrize(
    ("typed", "amount", "unit"),
    [
        ("80%", 80, "%"), ("80 %", 80, "%"), ("80", 80, "%"), ("99.5", 99.5, "%"), ("113m", 113e6, "parameters"),
        ("113M", 113e6, "parameters"), ("1.2B", 1.2e9, "parameters"), ("500k", 5e5, "parameters"),
        ("113000000", 113e6, "parameters"), ("300 MB", 3e8, "bytes"), ("2gb", 2e9, "bytes"),
    ],
)  # fmt: skip
def test_budgets_as_they_are_typed(typed, amount, unit):
    assert command_line._read_budget(typed) == (pytest.approx(amount), unit)


@pytest.mark.parametrize(
    ("option", "values", "allowed"),
    [
        ("--budget", ["0%", "0", "-5", "2grams", "", "80%%", "nan", "M"], "a share of the parameters (80%)"),
        ("--steps", ["-3", "1.5", "many", ""], "a whole number of at least 0"),
        ("--light", ["-1", "x"], "a whole number of at least 0"),
        ("--correction", ["-1", "1e2"], "a whole number of at least 0"),
        ("--seed", ["-1", "0.5", "9999999999"], "a whole number from 0 to 2147483647"),
        ("--finalists", ["0", "-1"], "a whole number of at least 1"),
        ("--rows", ["0", "-1"], "a whole number of at least 1"),
        ("--accumulate", ["0", "-1"], "a whole number of at least 1"),
        ("--multiple-of", ["0", "-1"], "a whole number of at least 1"),
        ("--tensor-parallel", ["0", "-1", "two"], "a whole number of at least 1"),
        ("--length", ["1", "0"], "a whole number of at least 2"),
        ("--lr", ["0", "-1", "nan", "inf", "fast"], "a number above 0"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(option, values, allowed, parser, capsys):
    for value in values:
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["llama", "--budget=80%", f"{option}={value}", "--dry-run"])
        error = capsys.readouterr().err
        assert f"argument {option}: must be {allowed}" in error and f"got {value!r}" in error


def test_a_folder_that_cannot_be_one_is_named(parser, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "in it"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["llama", "--budget", "80%", "--out", str(place)])
        assert f"argument --out: {tmp_path / 'file'} is a file" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["llama", "--budget", "80%", "--out", str(tmp_path / "a" / "b")])
    assert f"argument --out: {tmp_path} can't be written" in capsys.readouterr().err


def test_a_folder_in_which_the_model_finds_a_file_is_named(parser, tmp_path, capsys):
    (tmp_path / "model").touch()
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["llama", "--budget", "80%", "--out", str(tmp_path), "--dry-run"])
    assert f"argument --out: {tmp_path / 'model'} is a file, and can't be a folder" in capsys.readouterr().err


def test_text_that_is_not_there_is_named_and_it_or_built_in_text_is_taken(parser, tmp_path, capsys):
    (tmp_path / "a.txt").touch()
    here = str(tmp_path / "a.txt")
    args = parser.parse_args(["llama", "--budget", "80%", "--text", here, "--text", f"{here}:3", "--judge", here])
    assert args.text == [here, f"{here}:3"] and args.judge == [here]
    refused = {
        "argument --text: there is no file or folder nowhere": ["--text", "nowhere"],
        "argument --judge: there is no file or folder nowhere": ["--text", here, "--judge", "nowhere"],
        "argument --text: the weight of": ["--text", f"{here}:0"],
        "argument --domain: not allowed with argument --text": ["--text", here, "--domain", "wiki"],
    }
    for message, options in refused.items():
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["llama", "--budget", "80%", *options, "--dry-run"])
        assert message in capsys.readouterr().err


def test_usual_values(parser, tmp_path):
    args = parser.parse_args(["llama", "--budget", "80"])
    assert args.out == tmp_path / "out" and isinstance(args.out, Path)
    assert (args.steps, args.lr, args.seed, args.light, args.as_json, args.dry_run) == (400, None, 0, 40, False, False)
    assert (args.dtype, args.recover, args.recompute) == ("float32", "all", False)


def test_help_names_every_text_and_has_examples(parser):
    shown = " ".join(parser.format_help().split())
    assert all(name in shown for name in (*DOMAINS, *LARGE_DOMAINS))
    assert "it Qwen/Qwen3-0.6B --budget 80% --dry-run" in shown


def test_help_and_refusals_need_no_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "course_utils.compress", None)
    for arguments in (["--help"], ["compress", "llama", "--budget", "80%", "--steps", "-3"]):
        with pytest.raises(SystemExit):
            command_line.main(arguments)
    assert "compress" in capsys.readouterr().out
