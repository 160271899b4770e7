"""Every command can be called, by its own name and with its own arguments."""

import argparse

import pytest

import course
from course_tools import cli, command_line


@pytest.fixture
def parser(tmp_path):
    return command_line.parser(cli.COMMANDS, build=tmp_path)


def test_every_command_has_its_arguments(parser):
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    functions = {name: found.get_default("command") for name, found in commands.choices.items()}
    assert functions == {function.__name__: function for function in cli.COMMANDS}
    assert functions.keys() == set(course.COMMANDS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "3", "10"], {"lessons": ["3", "10"], "profile": None}),
        (["rehearse", "--shape", "qwen"], {"shape": "qwen", "lessons": []}),
        (["compress", "llama", "--budget", "80%", "--lr", "1e-3"], {"lr": 1e-3, "steps": 400, "domain": "speeches"}),
        (["pack", "stick", "--platform", "linux", "macos"], {"platform": ["linux", "macos"], "cuda": False}),
    ],
)
def test_arguments_arrive(parser, words, expected):
    args = vars(parser.parse_args(words))
    assert args["command"].__name__ == words[0] and expected.items() <= args.items()
