"""Checks that tell a learner, in one line, where an exercise stands.

For instance::

    @exercise(
        1,
        task="Return one L1 norm for each neuron.",
        proved="Each neuron's weights are summed by magnitude.",
        answer=lambda weight: weight.abs().sum(0),
        mistakes=[
            (lambda weight: weight.abs().sum(1), "Sum over the rows: GPT-2's weight is [inputs, neurons]."),
            (lambda weight: weight.sum(0), "Take magnitudes before you sum; signs cancel."),
        ],
    )
    def check_l1_scores(attempt):
        weight = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
        scores = attempt(weight)
        right = attempt.rule_out(scores, weight, same=torch.equal)
        require(torch.equal(scores, right), f"The norms are {right.tolist()}; yours are {scores.tolist()}.")

Called with the learner's function (or value, or several of them), the check prints "not solved yet", "not yet" with
the likely mistake, or "correct", and returns whether it was. It never raises: an unsolved exercise must not stop
"Run all". It leaves torch's random state as it found it, so that the rest of the notebook gives the same numbers
whether or not an exercise is solved.

A mistake is written once, as a wrong function with its sentence: where an answer isn't right, the check runs the wrong
functions and names the one that leads to the same answer. What no value can tell (a hook that is left, a model that was
changed) is a ``require``.
"""

from __future__ import annotations

import functools
import inspect
import operator
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Mistakes = Sequence[tuple[Callable[..., Any], str]]  # wrong functions, each with a sentence for the learner


class _Unsolved(Exception):
    """The stub is still there, or something is missing that the message names."""


class _Mistake(Exception):
    """The attempt is wrong; the message says how."""


class Attempt:
    """A learner's function inside a check: called, it gives what the function returns, or stops with what is wrong.

    Attributes:
        answer: a right function, as the exercise declares it.
        mistakes: wrong ones, each with its sentence.
    """

    def __init__(self, function: Callable[..., Any], answer: Any, mistakes: Mistakes) -> None:
        functools.update_wrapper(self, function)
        self._function, self.answer, self.mistakes = function, answer, mistakes

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What the learner's function returns."""
        try:
            result = self._function(*arguments, **options)
        except NotImplementedError:
            raise _Unsolved from None
        except Exception as error:
            line = _line_in(self._function, error)
            raise _Mistake(f"Your code stopped with {named_error(error)}{line}.") from error
        if result is None and not _is_stub(self._function):
            raise _Unsolved("Your function returns nothing: end it with `return …`. ")
        return _solved(result)

    def rule_out(
        self, found: Any, *given: Any, same: Callable[[Any, Any], Any] = operator.eq, where: str = "", **options: Any
    ) -> Any:
        """Stop with the declared mistake that leads to what the learner's function gave; else return the right answer.

        Args:
            found: what the learner's function gave.
            *given: what it was given; nothing of it may be changed by a wrong function.
            same: whether two answers are the same. A mistake that leads to the right answer is passed over.
            where: put before the sentence.
            **options: what it was given by name.
        """
        right = self.answer(*given, **options)
        self.name_mistake(found, right, lambda wrong: wrong(*given, **options), same=same, where=where)
        return right

    def name_mistake(
        self,
        found: Any,
        right: Any,
        leads_to: Callable[[Callable[..., Any]], Any],
        *,
        same: Callable[[Any, Any], Any] = operator.eq,
        where: str = "",
    ) -> None:
        """Stop with the declared mistake that leads to ``found``, unless that is right.

        Args:
            found: what the learner's function gave, or something read from it.
            right: what the right one gives.
            leads_to: wrong function -> what it gives.
            same: whether two of these are the same. A mistake that leads to the right answer is passed over.
            where: put before the sentence.
        """
        if same(found, right):
            return
        for wrong, mistake in self.mistakes:
            try:
                value = leads_to(wrong)
                ruled_out = same(found, value) and not same(value, right)
            except Exception:  # with these sizes the mistake stops with an error
                continue
            require(not ruled_out, where + mistake)


class Check:
    """A check of an exercise: called with a learner's attempts, it prints a verdict and returns whether it is right.

    Attributes:
        answer: a right function, where the exercise declares one.
        mistakes: wrong ones, each with its sentence.
    """

    def __init__(
        self,
        check: Callable[..., None],
        number: int,
        task: str,
        proved: str,
        answer: Callable[..., Any] | None,
        mistakes: Mistakes,
    ) -> None:
        functools.update_wrapper(self, check)
        self._check, self._number, self._task, self._proved = check, number, task, proved
        self.answer, self.mistakes = answer, mistakes

    def __call__(self, *attempts: Any, **rest: Any) -> bool:
        """Print where the exercise stands; ``rest`` are named arguments of the check."""
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            correct, verdict = self._judge(attempts, rest)
        print(f"Exercise {self._number}: {verdict}")
        return correct

    def _judge(self, attempts: tuple, rest: dict[str, Any]) -> tuple[bool, str]:
        try:
            self._check(*(self._prepared(attempt) for attempt in attempts), **rest)
        except (_Unsolved, NotImplementedError) as missing:
            return False, f"not solved yet. {missing}{self._task}"
        except _Mistake as mistake:
            return False, f"not yet. {mistake}"
        except Exception as error:  # the check met something it didn't expect, such as a list where a tensor belongs
            called = next((attempt for attempt in attempts if not callable(attempt)), None)
            if called is not None and "object is not callable" in str(error):
                return False, (
                    "not yet. Hand over the function itself, its name without brackets: the check calls it. Yours is a "
                    f"{type(called).__name__}, perhaps what your function returns."
                )
            return False, f"not yet. Your answer has another type or shape than expected: {named_error(error)}."
        return True, f"correct. {self._proved}"

    def _prepared(self, attempt: Any) -> Any:
        if not (inspect.isroutine(attempt) or isinstance(attempt, functools.partial)):
            return _solved(attempt)  # a value; a class, a model or a tokenizer is one too, although it can be called
        ready = Attempt(attempt, self.answer, self.mistakes)
        if self.answer is not None:
            return ready

        @functools.wraps(attempt)
        def call(*arguments: Any, **options: Any) -> Any:
            return ready(*arguments, **options)

        return call  # where a value is asked for, a function should look like one


def exercise(
    number: int,
    *,
    task: str,
    proved: str,
    answer: Callable[..., Any] | None = None,
    mistakes: Mistakes = (),
) -> Callable[[Callable[..., None]], Check]:
    """Turn a function that calls ``require`` into a check.

    The decorated check gets each attempt ready to use: a value as it is, a function as an ``Attempt``. None or ...
    (from the function, as the value, or inside a list, tuple or dict) and NotImplementedError mean that it is not
    solved yet, so an exercise always asks for something returned.

    Args:
        number: of the exercise in its lesson.
        task: what to write, one sentence; printed while the stub is still there.
        proved: what a right answer has shown, one sentence.
        answer: a right function, for ``Attempt.rule_out``.
        mistakes: wrong functions, each with a sentence for the learner.
    """
    return lambda check: Check(check, number, task, proved, answer, mistakes)


def require(condition: Any, mistake: str) -> None:
    """Inside a check: stop with the likely ``mistake``, a sentence for the learner, unless ``condition`` holds."""
    if not condition:
        raise _Mistake(mistake)


def true_or_false(answer: Any) -> bool:
    """Inside a check: the answer, which must be True or False (torch's and numpy's are fine)."""
    require(
        isinstance(answer, bool) or str(getattr(answer, "dtype", "")).endswith("bool"),
        f"Return True or False; yours returned a {type(answer).__name__}.",
    )
    return bool(answer)


def assigned(answer: Mapping[Any, Any], right: Mapping[str, tuple[str, str]], names: Collection[str]) -> None:
    """Inside a check: stop unless the learner gave each letter its name, with the reason for the first wrong one.

    Args:
        answer: letter -> name; their case and blanks around them don't matter.
        right: letter -> the right name, and a sentence on why.
        names: to choose among.
    """
    said = {str(letter).strip().upper(): str(name).strip().lower() for letter, name in dict(answer).items()}
    missing = sorted(right.keys() - said.keys())
    require(not missing, f"Nothing is said about {', '.join(missing)}.")
    unknown = sorted(set(said.values()) - set(names))
    require(not unknown, f"There is no {unknown[0] if unknown else ''!r}; choose among {', '.join(names)}.")
    for letter, (name, reason) in right.items():
        require(said[letter] == name, f"Look at {letter} again: {reason}")


@contextmanager
def hooks_watched(model: nn.Module) -> Iterator[list[str]]:
    """Inside a check: takes off the hooks that are left on the model at the end, and names each in the list."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    before = {(module, kind): {*getattr(module, kind)} for module in model.modules() for kind in kinds}
    left: list[str] = []
    try:
        yield left
    finally:
        for (module, kind), known in before.items():
            hooks = getattr(module, kind)
            for number in [number for number in hooks if number not in known]:
                del hooks[number]
                left.append(kind)


def hooks_left(left: Collection[str]) -> str:
    """The sentence for a learner who left hooks on the model."""
    return (
        f"{len(left)} hooks were left on the model, and each later pass would go through them: call remove() on every "
        "handle. (They are gone now.)"
    )


def _is_stub(attempt: Callable[..., Any]) -> bool:
    """Whether the three dots are still in a function; also where its source isn't known."""
    try:
        return "..." in inspect.getsource(attempt)
    except (OSError, TypeError):
        return True


def _solved(result: Any) -> Any:
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else ()
    if any(part is None or part is ... for part in (result, *parts)):
        raise _Unsolved
    return result


def named_error(error: Exception) -> str:
    """Type and first line of the message, without a full stop at the end."""
    message = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _line_in(attempt: Callable[..., Any], error: Exception) -> str:
    """The last line of the learner's own cell or file that the error passed through."""
    code = getattr(attempt, "__code__", None)
    lines = [
        frame.line
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename and frame.line
    ]
    return f' in the line "{lines[-1]}"' if lines else ""
