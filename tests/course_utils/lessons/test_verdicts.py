"""What a run says of a sentence."""

import math
from types import SimpleNamespace

import pytest
import torch

from course_utils.lessons.verdicts import CLAIMS, claim, here, outcome


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([1e-9], "shown"),
        ([-0.1, -7], "the other way round"),
        ([0.1, -7], "not shown"),
        ([0.1, 0.0], "not shown"),
        ([0.1, math.nan], "not shown"),
        ([-0.1, math.nan], "not shown"),
        (torch.tensor([-2.0, -1]), "the other way round"),
    ],
)
def test_all_margins_must_speak_alike(margins, expected):
    assert outcome(margins) == expected


def test_margins_are_a_list_of_numbers():
    with pytest.raises(ValueError, match="'margins' must be a list of at least one number; got "):
        outcome([])


def test_here_says_it_in_a_line_and_claim_says_nothing(capsys):
    here("The early blocks can't go.", [-1, 2])
    assert capsys.readouterr().out == "here: not shown. The early blocks can't go.\n"
    claim("The early blocks can't go.", [-1, 2])
    assert capsys.readouterr().out == ""


def test_a_cell_leaves_its_claims_behind_when_it_ends(monkeypatch):
    shown, at_the_end = [], set()
    events = SimpleNamespace(register=lambda event, function: at_the_end.add((event, function)))
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(events=events))
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    here("So.", [1, 2.000004])
    claim("No.", [-3])
    ((event, leave),) = at_the_end
    assert event == "post_run_cell" and not shown
    leave(None)
    leave(None)  # the next cell claims nothing
    found = [{"sentence": "So.", "margins": [1, 2]}, {"sentence": "No.", "margins": [-3]}]
    assert shown == [{CLAIMS: found, "text/plain": ""}]
