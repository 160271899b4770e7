"""The exercise machinery: every state a learner can be in gives one line, and nothing is raised."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from course_utils.lessons.exercises.checking import alike, exercise, number, require, told, true_or_false, untouched
from course_utils.models.loading import tiny_llama

WEIGHT = torch.tensor([[1.0, -2.0], [-3.0, 0.0]])


@exercise(1, task="Return the L1 norm of each column.", proved="One norm a neuron.")
def check_norms(attempt):
    norms = attempt(WEIGHT)
    require(norms.shape == (2,), "One number for each column.")
    require(norms.tolist() == [4.0, 2.0], "Take magnitudes before you sum.")


@exercise(2, task="Fill in both sizes.", proved="Both axes are right.")
def check_sizes(sizes):
    require(sizes == {"rows": 2, "columns": 3}, "Rows come first.")


def not_implemented(weight):
    raise NotImplementedError


def test_right_answer(capsys):
    assert check_norms(lambda weight: weight.abs().sum(0)) is True
    assert capsys.readouterr().out == "Exercise 1: correct. One norm a neuron.\n"


def test_a_lesson_goes_on_with_the_learners_function_once_it_is_right():
    ours, theirs = (lambda weight: 4.0), (lambda weight: weight.sum())

    @exercise(3, task="Return the sum.", proved="It is the sum.", answer=ours)
    def check_sum(attempt):
        require(attempt(WEIGHT) == -4, "It isn't.")

    assert check_sum.accepted is ours
    for attempt, right in ((theirs, theirs), (lambda weight: ..., ours), (theirs, theirs), (lambda weight: 0, ours)):
        check_sum(attempt)
        assert check_sum.accepted is right


@pytest.mark.parametrize("stub", [lambda weight: None, lambda weight: ..., not_implemented, None, ...])
def test_stub_is_not_solved_yet(stub, capsys):
    assert check_norms(stub) is False
    assert capsys.readouterr().out == "Exercise 1: not solved yet. Return the L1 norm of each column.\n"


def test_forgotten_return_is_told(capsys):
    def attempt(weight):
        weight.abs().sum(0)  # and that is all

    assert check_norms(attempt) is False
    out = capsys.readouterr().out
    assert out.startswith("Exercise 1: not solved yet. Your function returns nothing: end it with `return …`. Return ")


def test_function_that_was_called_already_is_told(capsys):
    assert check_norms(WEIGHT.abs().sum(0)) is False
    out = capsys.readouterr().out
    assert "not yet. Hand over the function itself, its name without brackets: the check calls it. " in out
    assert "Yours is a Tensor" in out


def test_half_filled_answer_is_not_solved_yet(capsys):
    assert check_sizes({"rows": 2, "columns": ...}) is False
    assert "Exercise 2: not solved yet. Fill in both sizes." in capsys.readouterr().out


def test_wrong_answer_names_the_mistake(capsys):
    assert check_norms(lambda weight: weight.sum(0)) is False
    assert capsys.readouterr().out == "Exercise 1: not yet. Take magnitudes before you sum.\n"
    assert check_sizes({"rows": 3, "columns": 2}) is False
    assert capsys.readouterr().out == "Exercise 2: not yet. Rows come first.\n"


def test_error_in_the_learners_code_is_told_with_its_line(capsys):
    def attempt(weight):
        return weight.abs().summ(0)

    assert check_norms(attempt) is False
    out = capsys.readouterr().out
    assert out.startswith("Exercise 1: not yet. Your code stopped with AttributeError: 'Tensor' object has no ")
    assert 'in the line "return weight.abs().summ(0)".' in out
    assert len(out.splitlines()) == 1


def test_answer_of_another_type_is_told_not_raised(capsys):
    assert check_norms(lambda weight: [4.0, 2.0]) is False
    assert "another type or shape than expected: AttributeError: 'list' object" in capsys.readouterr().out


def test_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    check_norms(lambda weight: torch.rand(2))
    assert torch.equal(torch.random.get_rng_state(), state)


@exercise(
    4,
    task="Add two numbers.",
    proved="A sum.",
    answer=lambda a, b: a + b,
    mistakes=[
        (lambda a, b: a / 0, "Never said: it stops with an error."),
        (lambda a, b: b + a, "Never said: it is right as well."),
        (lambda a, b: a * b, "You multiplied."),
        (lambda a, b: a - b, "You subtracted."),
    ],
)
def check_sum(attempt):
    attempt.compare(3, 3, read=number, same=partial(alike, atol=0.1), where="3 and 3: ", hint="Add.")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (9, "not yet. 3 and 3: You multiplied."),
        (0.05, "not yet. 3 and 3: You subtracted."),
        (5, "not yet. 3 and 3: it is 6; yours is 5. Add."),
        ("six", "not yet. Return one number; yours is of type str."),
        (6, "correct. A sum."),
        (torch.tensor([6]), "correct. A sum."),
    ],
)
def test_the_mistake_that_leads_to_an_answer_is_named(given, said, capsys):
    check_sum(lambda a, b: given)
    assert capsys.readouterr().out == f"Exercise 4: {said}\n"


def test_what_is_given_is_copied(capsys):
    @exercise(1, task="Double.", proved="Twice.", answer=lambda tensor, numbers: tensor * 2)
    def check(attempt):
        attempt.compare(torch.ones(2), [1])

    assert check(lambda tensor, numbers: numbers.clear() or tensor.mul_(2)), capsys.readouterr().out


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.00001, True),
        (1, 1.01, False),
        (math.nan, math.nan, True),
        (torch.ones(2), np.ones(2), True),
        (torch.ones(2), torch.ones(2, 1), False),
        ([1, torch.ones(2)], (1, torch.ones(2)), True),
        ([1], [1, 2], False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"b": 1}, False),
    ],
)
def test_alike_up_to_rounding(one, other, same):
    assert alike(one, other) is same


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.123456, "0.12346"), (12345, "12,345"), (torch.tensor([1.0, 2.5]), "[1, 2.5]"), ({"a": 1.0}, "a 1")],
)
def test_numbers_are_told_shortly(value, said):
    assert told(value) == said
    assert told(torch.arange(20)) == "a tensor [20] that begins with [0, 1, 2]"


@exercise(6, task="Look.", proved="Looked.")
def check_looks(attempt):
    model = tiny_llama()
    with untouched(model):
        attempt(model)
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda model: [model.lm_head.register_forward_hook(print)], "1 hooks were left on the model"),
        (lambda model: [model.lm_head.weight.data.zero_()], "You changed the model that you were given"),
        (lambda model: [model.lm_head], "correct"),
    ],
)
def test_a_model_must_stay_as_it_was(does, said, capsys):
    check_looks(does)
    assert said in capsys.readouterr().out


@exercise(5, task="Say whether.", proved="True.")
def check_whether(answer):
    require(true_or_false(answer) is True, "It is true.")


@pytest.mark.parametrize("answer", [True, np.True_, np.bool_(1), torch.tensor(True)])
def test_true_and_false_come_in_several_types(answer, capsys):
    assert check_whether(answer)


@pytest.mark.parametrize("answer", [1, "yes", 0.0, torch.tensor(1), [True]])
def test_what_is_neither_true_nor_false_is_told(answer, capsys):
    assert not check_whether(answer)
    assert f"Return True or False; yours is of type {type(answer).__name__}." in capsys.readouterr().out
