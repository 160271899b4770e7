"""Odd numbers, words, lists and objects for every public function: it works, or says which argument is wrong and why.

Public is what a package's door names, and what a lesson imports. ``fuzz_arguments`` has something to call each with.
After a refusal the models are as they were, to the last bit.
"""

import ast
import importlib
import inspect
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fuzz_arguments import MADE, OWN, REFUSED, REFUSED_BY, SHORT, blocks
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from course_utils.compress import Budget
from course_utils.healing.distillation import Recipe
from course_utils.models.loading import identity
from course_utils.release import engine
from course_utils.support import session
from course_utils.text import assets
from course_utils.text.rows import TokenBlocks

ROOT = Path(__file__).resolve().parents[1]
# Not tried, and why.
LEFT_OUT = {
    "disguised": "a lesson's own Llama; its own test tries it",
    "exercise": "gets whatever a learner wrote, and its own tests try that",
    "fetch": "downloads; what it refuses at once is tried below",
    "log_ticks": "axes of matplotlib",
    "patient_of": "a lesson's own Llama and what its blocks write; its own test tries it",
    "measure_record": "prompts and measure, which are tried, and takes a minute",
    "require": "stops what is left out above",
    "safe_dtype": "the machine; what it refuses at once is tried below",
    "start": "the machine; what it refuses at once is tried below",
    "watching": "a hook's own arguments",
}
EMBEDDED = ("evaluate", "cases")  # they read benchmarks' documents

# What an argument is tried with. Large numbers are left out where they would only take long.
NUMBERS = st.one_of(st.integers(-3, 4), st.floats(-2, 3), st.sampled_from([math.nan, math.inf, -math.inf, -1e9]))
OBJECTS = st.sampled_from([None, True, 3, "x", b"x", {}, [], object()])
LISTS = st.lists(st.one_of(NUMBERS, st.booleans(), st.text(max_size=2)), max_size=4)
PLAIN = ("int", "float", "bool", "str", "Sequence[int]", "Sequence[str]")  # of the others, objects alone are tried

# What a refusal may speak of in place of an argument: what it holds.
HOLDS = {
    "layers": "block numbers", "indices": "block numbers", "left_out": "block numbers", "x": "columns", "y": "columns",
    "group": "columns", "hidden": "version costs", "blocks": "version costs", "tolerance": "version costs",
    "max_length": "alike", "name": "hub", "vocab_size": "vocabulary", "kind": "pairs to compare with",
    "calls": "contestant", "models": "contestant", "laps": "contestant", "recipe": "'steps' and 'lr'",
    "validation": "'batches'", "token_ids": "batch", "longest": "prompts of at most", "neurons": "block",
    "p_values": "p-values", "axes": "axis",
}  # fmt: skip


def public():
    """Each public function of the library by its name, and each class whose fields a user gives."""
    found = {kind.__name__: kind for kind in (Budget, Recipe, TokenBlocks)}
    for door in sorted((ROOT / "course_utils").glob("*/__init__.pyi")):
        package = importlib.import_module(f"course_utils.{door.parent.name}")
        found |= {
            name: getattr(package, name) for name in package.__all__ if inspect.isfunction(getattr(package, name))
        }
    for path in (ROOT / "lessons").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("course_utils."):
                module = importlib.import_module(node.module)
                given = {alias.name: getattr(module, alias.name, None) for alias in node.names}
                found |= {name: each for name, each in given.items() if inspect.isfunction(each)}
    return {name: each for name, each in found.items() if arguments_of(each) and not name.startswith("check_")}


def arguments_of(function):
    """The parameters that can be given by name."""
    every = inspect.signature(function).parameters.values()
    return [one for one in every if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]


PUBLIC = public()
TRIED = {name: function for name, function in PUBLIC.items() if name not in LEFT_OUT}
MUST_REFUSE = [
    (name, one.name, [*REFUSED.get(one.name, ()), *REFUSED_BY.get(name, {}).get(one.name, ())])
    for name, function in TRIED.items()
    for one in arguments_of(function)
    if one.name in {**REFUSED, **REFUSED_BY.get(name, {})}
]
# What is refused before the cache, the machine or llama.cpp is asked; none of these values is right anywhere.
WRONG_KINDS = (True, 1.5, math.nan, b"x", ["a"], [None], object(), np.ones(3), torch.ones(2, 3))
AT_ONCE = {
    "asset": assets.fetch,
    "lesson": session.start,
    "profile": lambda value: session.start("01", profile=value),
    "dtype": session.safe_dtype,
    "path": engine.load,
    "context": lambda value: engine.load("no.gguf", context=value),
    "token_ids": lambda value: engine.perplexity(None, value),
    "files": engine.measure_speed,
    "prompt_tokens": lambda value: engine.measure_speed({"a": "no.gguf"}, prompt_tokens=value),
    "rows": lambda value: blocks().sample(value, 0),
    "seed": lambda value: blocks().sample(1, value),
    "batch_size": lambda value: blocks().batches(value),
}


def arguments(name):
    """A call that works; small sizes where the defaults would take long."""
    own = OWN.get(name, {})
    made = {}
    for one in arguments_of(TRIED[name]):
        if one.name in own or one.default is one.empty:
            made[one.name] = own.get(one.name, MADE.get(one.name))()
        elif one.name in SHORT and one.default is not None:
            made[one.name] = SHORT[one.name]
    return made


def call(name, made):
    if name == "show":
        plt.plot([1, 2])
    result = TRIED[name](**made)
    if inspect.isgenerator(result):
        list(result)


def names(error, parameter, value):
    """Whether a message speaks of an argument: by its name, as words, in the singular, or by what it is or holds."""
    said = str(error).lower().replace("_", " ")
    words = {parameter.lower().rstrip("s").replace("_", " "), parameter.lower(), HOLDS.get(parameter, parameter)}
    quoted = isinstance(value, str) and value != "" and repr(value) in str(error)
    return quoted or any(re.search(rf"(?<!\w){re.escape(word)}", said) for word in words)


def is_taken(name, parameter, value):
    """Whether a value is taken; one that isn't is named, and the models are as they were."""
    made = arguments(name)
    models = {key: each for key, each in made.items() if isinstance(each, torch.nn.Module) and key != parameter}
    before = {key: identity(model) for key, model in models.items()}
    try:
        call(name, {**made, parameter: value})
    except (ValueError, TypeError) as error:
        refused = error
    else:
        return True
    assert names(refused, parameter, value), f"{value!r} is refused without naming {parameter!r}: {refused!r}"
    assert {key: identity(model) for key, model in models.items()} == before
    return False


@pytest.fixture(autouse=True)
def _small_world(monkeypatch, tmp_path):
    """Made-up texts, files where they don't stay, and no figure left open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    yield
    plt.close("all")


def cases(found):
    """Pytest's parameters, each named by what is tried; those that read real documents are marked."""
    marks = {True: [pytest.mark.embedded], False: []}
    return [pytest.param(*case, id="-".join(case[:2]), marks=marks[case[0] in EMBEDDED]) for case in found]


def test_every_public_function_is_tried_or_has_a_reason():
    needed = {
        f"{name}({one.name})" for name, each in TRIED.items() for one in arguments_of(each) if one.default is one.empty
    }
    known = {f"{name}({one})" for name in TRIED for one in MADE | OWN.get(name, {})}
    assert not needed - known, "add to MADE or OWN in fuzz_arguments.py, or with a reason to LEFT_OUT"
    assert {*LEFT_OUT, *OWN, *REFUSED_BY} <= {*PUBLIC}


@pytest.mark.parametrize("name", cases([(name,) for name in TRIED]))
def test_odd_arguments_work_or_are_named(name):
    call(name, arguments(name))
    with np.errstate(all="ignore"):
        for one in arguments_of(TRIED[name]):
            plain = str(one.annotation).removesuffix(" | None") in PLAIN
            try_values(name, one.name, st.one_of(NUMBERS, st.text(max_size=3), LISTS, OBJECTS) if plain else OBJECTS)


def try_values(name, parameter, values):
    @settings(
        max_examples=8, phases=[Phase.generate], derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(values)
    def tried(value):
        is_taken(name, parameter, value)
        plt.close("all")  # dozens of open figures take longer and longer

    tried()


@pytest.mark.parametrize(("name", "parameter", "values"), cases(MUST_REFUSE))
def test_value_that_must_be_refused_is_refused_and_named(name, parameter, values):
    assert [value for value in values if is_taken(name, parameter, value)] == []


@pytest.mark.parametrize("parameter", AT_ONCE)
def test_wrong_kind_is_refused_at_once(parameter):
    for value in WRONG_KINDS:
        with pytest.raises((ValueError, TypeError)) as refused:
            AT_ONCE[parameter](value)
        assert names(refused.value, parameter, value), f"{value!r} is refused without naming it: {refused.value!r}"
