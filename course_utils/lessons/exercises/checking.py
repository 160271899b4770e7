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
        attempt.compare(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))

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
import math
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from course_utils.models.loading import identity

_FEW = 12  # numbers that a message shows at most
Mistakes = Sequence[tuple[Callable[..., Any], str]]  # wrong functions, each with a sentence for the learner


class _Unsolved(Exception):
    """The stub is still there, or something is missing that the message names."""


class _Mistake(Exception):
    """The attempt is wrong; the message says how."""


def require(condition: Any, mistake: str) -> None:
    """Inside a check: stop with the likely ``mistake``, a sentence for the learner, unless ``condition`` holds."""
    if not condition:
        raise _Mistake(mistake)


class _Exam(Protocol):
    left: int  # tries


def take_a_try(exam: _Exam) -> None:
    """Inside a check: count one try of an exam, or stop where none is left."""
    require(exam.left > 0, "The exam is over: it judges a few times only. Start the kernel again for another one.")
    exam.left -= 1


def run(function: Callable[..., Any], *arguments: Any, where: str = "", hint: str = "", **options: Any) -> Any:
    """Inside a check: what something of the learner's gives; where it stops with an error, the message names that."""
    try:
        return function(*arguments, **options)
    except (NotImplementedError, _Unsolved, _Mistake):
        raise
    except Exception as error:
        line = _line_in(function, error)
        raise _Mistake(f"{where}Your code stopped with {_named(error)}{line}. {hint}".strip()) from error


def alike(one: Any, other: Any, *, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
    """Whether two numbers, tensors or arrays, or lists or dictionaries of such, are equal up to rounding."""
    near = functools.partial(alike, rtol=rtol, atol=atol)
    if isinstance(other, Mapping):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in other)
    if isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(near, one, other))
    first, second = (torch.as_tensor(value, dtype=torch.float64).detach().cpu() for value in (one, other))
    return first.shape == second.shape and torch.allclose(first, second, rtol=rtol, atol=atol, equal_nan=True)


def told(value: Any) -> str:
    """Numbers as messages show them; of a large tensor the shape and the first few."""
    if isinstance(value, Tensor) and value.numel() > _FEW:
        return f"a tensor {[*value.shape]} that begins with {told(value.flatten()[:3])}"
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(told, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{name} {told(one)}" for name, one in value.items())
    return f"{value:,.5g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


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
        result = run(self._function, *arguments, **options)
        if result is None and not _is_stub(self._function):
            raise _Unsolved("Your function returns nothing: end it with `return …`. ")
        return _solved(result)

    def knowing(self, *given: Any) -> Attempt:
        """The same, where the declared functions get these first: the learner's has them from the notebook."""
        mistakes = [(functools.partial(wrong, *given), mistake) for wrong, mistake in self.mistakes]
        return Attempt(self._function, functools.partial(self.answer, *given), mistakes)

    def compare(
        self,
        *given: Any,
        read: Callable[[Any], Any] = lambda answer: answer,
        same: Callable[[Any, Any], Any] = alike,
        where: str = "",
        hint: str = "",
        **options: Any,
    ) -> Any:
        """Stop unless the learner's function gives what the right one gives; return that, as it was read.

        Args:
            *given: what the function is called with; it gets copies of tensors, lists and dictionaries.
            read: turns what it returned into what is compared, or stops.
            same: whether two answers are the same.
            where: put before the sentence.
            hint: put behind the general message, which comes where no declared mistake fits.
            **options: what the function is called with by name.
        """
        found = read(self(*map(_copied, given), **options))
        right = read(self.answer(*given, **options))
        self.name_mistake(found, right, lambda wrong: read(wrong(*given, **options)), same=same, where=where)
        require(same(found, right), f"{where}it is {told(right)}; yours is {told(found)}. {hint}".strip())
        return found

    def name_mistake(
        self,
        found: Any,
        right: Any,
        leads_to: Callable[[Callable[..., Any]], Any],
        *,
        same: Callable[[Any, Any], Any] = alike,
        where: str = "",
    ) -> None:
        """Stop with the declared mistake that leads to ``found``, unless that is right.

        ``leads_to`` says what a wrong function gives. A mistake that leads to the right answer is passed over, and so
        is one that stops with an error.
        """
        if same(found, right):
            return
        for wrong, mistake in self.mistakes:
            try:
                value = leads_to(wrong)
                ruled_out = same(found, value) and not same(value, right)
            except Exception:
                continue
            require(not ruled_out, where + mistake)


def exercise(
    number: int,
    *,
    task: str,
    proved: str,
    answer: Callable[..., Any] | None = None,
    mistakes: Mistakes = (),
) -> Callable[[Callable[..., None]], Callable[..., bool]]:
    """Turn a function that calls ``require`` into a check, which has ``answer`` and ``mistakes`` as attributes.

    The decorated check gets each attempt ready to use: a value as it is, a function as an ``Attempt``. None or ...
    (from the function, as the value, or inside a list, tuple or dict) and NotImplementedError mean that it is not
    solved yet, so an exercise always asks for something returned.

    Later cells of the lesson may use what the learner wrote: ``check_….accepted`` is the last attempt if that was
    correct, and ``answer`` otherwise, because a notebook has to run unsolved, too.

    Args:
        number: of the exercise in its lesson.
        task: what to write, one sentence; printed while the stub is still there.
        proved: what a right answer has shown, one sentence.
        answer: a right function, for ``Attempt.compare``.
        mistakes: wrong functions, each with a sentence for the learner.
    """

    def prepared(attempt: Any) -> Any:
        if inspect.isroutine(attempt) or isinstance(attempt, functools.partial):
            return Attempt(attempt, answer, mistakes)
        return _solved(attempt)  # a value; a class, a model or a tokenizer is one too, although it can be called

    def judge(check: Callable[..., None], attempts: tuple, rest: dict[str, Any]) -> tuple[bool, str]:
        try:
            check(*map(prepared, attempts), **rest)
        except (_Unsolved, NotImplementedError) as missing:
            return False, f"not solved yet. {missing}{task}"
        except _Mistake as mistake:
            return False, f"not yet. {mistake}"
        except Exception as error:  # the check met something it didn't expect, such as a list where a tensor belongs
            called = next((attempt for attempt in attempts if not callable(attempt)), None)
            if called is not None and "object is not callable" in str(error):
                return False, (
                    "not yet. Hand over the function itself, its name without brackets: the check calls it. Yours is a "
                    f"{type(called).__name__}, perhaps what your function returns."
                )
            return False, f"not yet. Your answer has another type or shape than expected: {_named(error)}."
        return True, f"correct. {proved}"

    def decorate(check: Callable[..., None]) -> Callable[..., bool]:
        @functools.wraps(check)
        def judged(*attempts: Any, **rest: Any) -> bool:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                correct, verdict = judge(check, attempts, rest)
            vars(judged)["accepted"] = attempts[0] if correct else answer
            print(f"Exercise {number}: {verdict}")
            return correct

        vars(judged).update(answer=answer, mistakes=mistakes, accepted=answer)
        return judged

    return decorate


def expect(answer: Any, kind: Any, what: str, size: int | None = None) -> None:
    """Inside a check: stop unless an answer is of a type, or one of several, and has a ``size``, where that is given.

    ``what`` says what to do, such as "Return the model".
    """
    answer = getattr(answer, "__wrapped__", answer)  # the learner's own function, where a value was asked for
    require(isinstance(answer, kind), f"{what}; yours is of type {type(answer).__name__}.")
    if size is not None:
        require(len(answer) == size, f"{what}; yours has {len(answer)}.")


def number(answer: Any, what: str = "Return one number") -> float:
    """Inside a check: the answer as a float, or stop; a tensor or array of one number is fine."""
    shape = getattr(answer, "shape", ())
    require(math.prod(shape) == 1, f"{what}; yours has the shape {[*shape]}.")
    answer = answer.item() if hasattr(answer, "item") else answer
    expect(answer, Real, what)
    return float(answer)


def whole_number(answer: Any, what: str = "Return a whole number") -> int:
    """Inside a check: the answer as an int, or stop; 3.0 is fine."""
    value = number(answer, what)
    require(value.is_integer(), f"{what}; yours is {told(value)}.")
    return int(value)


def true_or_false(answer: Any) -> bool:
    """Inside a check: the answer, which must be True or False (torch's and numpy's are fine)."""
    require(
        isinstance(answer, bool) or str(getattr(answer, "dtype", "")).endswith("bool"),
        f"Return True or False; yours is of type {type(answer).__name__}.",
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
def untouched(model: PreTrainedModel, *, weights: bool = True) -> Iterator[None]:
    """Inside a check: stop where hooks are left on a model, which are taken off, or where it has other ``weights``.

    To read weights takes a second or two for a gigabyte.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    before = {(module, kind): {*getattr(module, kind)} for module in model.modules() for kind in kinds}
    was, left = identity(model) if weights else "", 0
    try:
        yield
    finally:
        for (module, kind), known in before.items():
            hooks = getattr(module, kind)
            for key in {*hooks} - known:
                del hooks[key]
                left += 1
    require(
        not left,
        f"{left} hooks were left on the model, and each later pass would go through them: call remove() on every "
        "handle. (They are gone now.)",
    )
    same = not weights or identity(model) == was
    require(same, "You changed the model that you were given. Bring it back, or work on variant(model).")


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return value.clone() if isinstance(value, Tensor) else [*map(_copied, value)] if isinstance(value, list) else value


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


def _named(error: Exception) -> str:
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
