"""Odd numbers, words and lists for every public function: it works, or says which argument is wrong and why.

The functions and what to try for an argument come from their signatures; ``fuzz_arguments`` has something to call them
with. After a refusal the models are as they were, to the last bit.
"""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fuzz_arguments import MADE, OWN, REFUSED, REFUSED_FIELDS, SHORT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import course_utils
from course_utils.compress import Budget
from course_utils.healing.distillation import Recipe
from course_utils.models import loading as models
from course_utils.release import engine
from course_utils.support import roles, session
from course_utils.text import assets
from course_utils.text.texts import TokenBlocks

# Not tried, and why; a whole module or one function.
LEFT_OUT = {
    "lessons.exercises": "they get whatever a learner wrote, and their own tests try that",
    "models.modeling": "run-time code inside of models, called by transformers",
    "lessons.diagrams": "drawings with hardly an argument; their own tests draw them",
    "text.assets": "downloads",
    "models.hub": "downloads",
    "support.files": "writing, beneath what is tried",
    "support.roles": "the environment's variables",
    "support.session": "the machine",
    "support.checks": "the refusals themselves",
    "support.tensor_checks": "the refusals themselves",
    "support.argument_types": "the refusals themselves",
    "release.engine": "needs llama.cpp",
    "compress.command_line": "reads what was typed, and refuses it in argparse's words; its own tests try that",
    "compress.estimate": "takes what command_line has read",
    "compress.folder": "takes what command_line has read",
    "compress.run": "takes what command_line has read",
    "compress.telling": "takes what command_line has read",
    "compress.plan": "takes what command_line has read",
    "release.rivals": "takes what the command has checked; export, perplexity and measure_speed are tried",
    "compress.program": "runs commands",
    "support.extras": "stands around the library's own imports, with a name of its own",
    "pruning.influence": "parts of hooks",
    "text.kinds.kind_blocks": "between an experiment and the file; kind_rows is tried",
    "text.kinds.write_kind_rows": "writes what an experiment drew; kind_rows is tried",
    "pruning.hooks": "parts of hooks",
    "support.plotting.parts": "what figures share, beneath what is tried",
    "healing.distillation.state": "names and files of the library's own batches",
    "healing.distillation.adapters.with_adapters": "between the trainer and peft; distill and memory_plan are tried",
    "healing.distillation.processes": "what several processes do together, between the trainer and accelerate",
    "text.own_rows": "rows of the library's own documents; read_own_text is tried",
    "text.text_files.is_learned": "a message of the library's own documents",
    "text.batches.digest": "bytes of the library's own",
    "text.batches.text_of": "batches that were read",
    "measuring.language_modelling.greedy_answers": "rows of the library's own token ids; continuations is tried",
    "text.batches.padded": "rows of the library's own token ids",
    "measuring.benchmark_tasks.ask": "asks tasks of lm-eval that build_tasks made; evaluate is tried",
    "measuring.benchmark_tasks.build_tasks": "downloads; evaluate is tried",
    "lessons.prompt_harm.record.measure_record": "prompts and measure, which are tried, and takes a minute",
}
# Who needs one of these is a part of the machinery: only the library makes them.
OWN_KINDS = {"Architecture", "Reading", "Family", "Axis", "tuple", "Batch"}

EMBEDDED = ("measuring.evaluation.evaluate", "lessons.prompt_harm.prompts.cases")  # they read benchmarks' documents
SLOW = {  # examples an argument
    "bias.reporting.report": 3, "measuring.evaluation.evaluate": 3, "support.plotting.tensors.heatmap": 3,
}  # fmt: skip

# What an argument of some kind is tried with. Large numbers are left out where they would only take long.
NUMBERS = st.one_of(st.integers(-3, 4), st.floats(-2, 3), st.sampled_from([math.nan, math.inf, -math.inf, -1e9]))
ODD = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=3), st.sampled_from([[], {}, b"x", (1, 2), object()])
)
LISTS = st.one_of(ODD, st.lists(st.one_of(NUMBERS, st.booleans(), st.text(max_size=2)), max_size=4))
TRIED = {"int": ODD, "float": ODD, "bool": ODD, "str": ODD, "Sequence[int]": LISTS, "Sequence[str]": LISTS}

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
    """Each (dotted name, function) of the library that takes arguments."""
    for module in pkgutil.walk_packages(course_utils.__path__, "course_utils."):
        place = module.name.removeprefix("course_utils.")
        for name, found in vars(importlib.import_module(module.name)).items():
            own = inspect.isfunction(found) and found.__module__ == module.name and not name.startswith("_")
            if own and inspect.signature(found).parameters:
                yield f"{place}.{name}", found


def kind_of(parameter):
    return str(parameter.annotation).removesuffix(" | None")


def arguments_of(function):
    """The parameters that can be given by name."""
    every = inspect.signature(function).parameters.values()
    return [one for one in every if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]


def is_tried(name, function):
    left_out = any(name == left or name.startswith(f"{left}.") for left in LEFT_OUT)
    inner = any(kind_of(one) in OWN_KINDS and one.default is one.empty for one in arguments_of(function))
    only_rest = not arguments_of(function)
    return not (left_out or inner or only_rest)


FUNCTIONS = {name: function for name, function in public() if is_tried(name, function)}
OTHER_CASES = [  # models, tokenizers, tensors, tables, lists of them
    (name, one.name)
    for name, function in FUNCTIONS.items()
    for one in arguments_of(function)
    if kind_of(one) not in TRIED
]
MISSING = [
    f"{name}({one.name})"
    for name, function in FUNCTIONS.items()
    for one in arguments_of(function)
    if one.default is one.empty and one.name not in MADE | OWN.get(name, {})
]
CASES = [
    (name, one.name) for name, function in FUNCTIONS.items() for one in arguments_of(function) if kind_of(one) in TRIED
]


def arguments(name, parameter=None):
    """A call that works, but for one argument; small sizes where the defaults would take long."""
    made = {}
    for one in arguments_of(FUNCTIONS[name]):
        if one.name != parameter:
            if one.default is one.empty or one.name in OWN.get(name, {}):
                made[one.name] = OWN.get(name, {}).get(one.name, MADE.get(one.name))()
            elif SHORT.get(one.name) is not None:
                made[one.name] = SHORT[one.name]
    return made


def call(name, made):
    if name == "support.plotting.base.show":
        plt.plot([1, 2])
    result = FUNCTIONS[name](**made)
    if inspect.isgenerator(result):
        list(result)


def names(error, parameter, value):
    """Whether a message speaks of an argument: by its name, as words, in the singular, or by what it is or holds."""
    said = str(error).lower().replace("_", " ")
    words = {parameter.lower().rstrip("s").replace("_", " "), parameter.lower(), HOLDS.get(parameter, parameter)}
    quoted = isinstance(value, str) and value != "" and repr(value) in str(error)
    return quoted or any(re.search(rf"(?<!\w){re.escape(word)}", said) for word in words)


def identities(made):
    return {name: models.identity(value) for name, value in made.items() if isinstance(value, torch.nn.Module)}


@pytest.fixture(autouse=True)
def _small_world(monkeypatch, tmp_path):
    """Made-up texts, files where they don't stay, and no figure left open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    yield
    plt.close("all")


def test_every_public_function_is_tried_or_has_a_reason():
    assert not MISSING, "add to MADE or OWN in fuzz_arguments.py, or with a reason to LEFT_OUT: " + ", ".join(MISSING)
    known = [name for name, _ in public()]
    assert [left for left in LEFT_OUT if not any(f"{name}.".startswith(f"{left}.") for name in known)] == []
    assert [name for name in OWN if name not in FUNCTIONS] == []


# Public classes, and fields that they can be made of.
CLASSES = {
    Recipe: {"steps": 1, "lr": 1e-3},
    Budget: {"amount": 1e6},
    TokenBlocks: {
        "input_ids": torch.arange(6).view(3, 2), "num_bytes": torch.tensor([4, 5, 6]), "domain": "wiki",
        "split": "evaluation",
    },
}  # fmt: skip
FIELDS = [(kind, field.name) for kind in CLASSES for field in dataclasses.fields(kind)]
BLOCKS = TokenBlocks(**CLASSES[TokenBlocks])
# Modules that LEFT_OUT leaves out, where a wrong kind can be told before the cache, the machine or llama.cpp is asked.
AT_THE_DOOR = {
    "text.assets.fetch(asset)": assets.fetch,
    "text.assets.is_cached(asset)": assets.is_cached,
    "text.assets.place(asset)": assets.place,
    "support.session.start(lesson)": session.start,
    "support.session.start(profile)": lambda value: session.start("01", profile=value),
    "support.roles.chosen_model(role)": roles.chosen_model,
    "support.roles.names_in(profile)": roles.names_in,
    "support.session.fast_dtype(device)": session.fast_dtype,
    "support.session.safe_dtype(dtype)": session.safe_dtype,
    "release.engine.load(path)": engine.load,
    "release.engine.load(context)": lambda value: engine.load("no.gguf", context=value),
    "release.engine.perplexity(token_ids)": lambda value: engine.perplexity(None, value),
    "release.engine.measure_speed(files)": engine.measure_speed,
    "release.engine.measure_speed(prompt_tokens)": lambda value: engine.measure_speed(
        {"a": "no.gguf"}, prompt_tokens=value
    ),
    "TokenBlocks.sample(rows)": lambda value: BLOCKS.sample(value, 0),
    "TokenBlocks.sample(seed)": lambda value: BLOCKS.sample(1, value),
    "TokenBlocks.batches(batch_size)": BLOCKS.batches,
    "TokenBlocks[rows]": BLOCKS.__getitem__,
}
# None of them is right anywhere at the door; None is, for what has a default.
WRONG_KINDS = (True, 1.5, math.nan, b"x", ["a"], [None], object(), np.ones(3), torch.ones(2, 3))


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind.__name__}-{field}" for kind, field in FIELDS])
def test_odd_field_of_a_class_works_or_is_named(kind, field):
    @settings(max_examples=30, phases=[Phase.generate], derandomize=True, database=None)
    @given(st.one_of(LISTS, st.sampled_from([np.ones(3), torch.ones(2, 3), torch.arange(3), torch.arange(4.0)])))
    def tried(value):
        try:
            kind(**{**CLASSES[kind], field: value})
        except (ValueError, TypeError) as error:
            refused = error
        else:
            return
        assert names(refused, field, value), f"{value!r} is refused without naming {field!r}: {refused!r}"

    tried()


@pytest.mark.parametrize("door", AT_THE_DOOR)
def test_wrong_kind_is_refused_at_the_door(door):
    parameter = re.findall(r"\w+", door)[-1]
    for value in WRONG_KINDS:
        with pytest.raises((ValueError, TypeError)) as refused:
            AT_THE_DOOR[door](value)
        assert names(refused.value, parameter, value), f"{value!r} is refused without naming it: {refused.value!r}"


def named_cases(cases):
    """The cases as pytest's parameters; those that read real documents are marked."""
    marks = {True: [pytest.mark.embedded], False: []}
    return [pytest.param(*case, id="-".join(case), marks=marks[case[0] in EMBEDDED]) for case in cases]


@pytest.mark.parametrize("name", named_cases([(name,) for name in FUNCTIONS]))
def test_the_arguments_to_start_from_work(name):
    call(name, arguments(name))


@pytest.mark.parametrize(("name", "parameter"), named_cases(CASES))
def test_odd_argument_works_or_is_named(name, parameter):
    kind = kind_of(inspect.signature(FUNCTIONS[name]).parameters[parameter])

    @settings(
        max_examples=SLOW.get(name, 8), phases=[Phase.generate], derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(TRIED[kind])
    def tried(value):
        works_or_is_named(name, parameter, value)

    with np.errstate(all="ignore"):
        tried()


@pytest.mark.parametrize(("name", "parameter"), named_cases(OTHER_CASES))
def test_argument_of_another_type_works_or_is_named(name, parameter):
    with np.errstate(all="ignore"):
        for value in (None, 3, "x", [], {}, object()):
            works_or_is_named(name, parameter, value)


@pytest.mark.parametrize(
    ("name", "parameter"), named_cases([(name, parameter) for name, values in REFUSED.items() for parameter in values])
)
def test_value_that_must_be_refused_is_refused_and_named(name, parameter):
    for value in REFUSED[name][parameter]:
        assert not works_or_is_named(name, parameter, value), f"{value!r} was taken"


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in CLASSES for field in REFUSED_FIELDS.get(kind, ())]
)
def test_field_that_must_be_refused_is_refused_and_named(kind, field):
    for value in REFUSED_FIELDS[kind][field]:
        with pytest.raises((ValueError, TypeError)) as refused:
            kind(**{**CLASSES[kind], field: value})
        assert names(refused.value, field, value), f"{value!r} is refused without naming it: {refused.value!r}"


def works_or_is_named(name, parameter, value):
    """Whether a value is taken; one that isn't is named, and the models are as they were."""
    made = arguments(name, parameter)
    before = identities(made)
    try:
        call(name, {**made, parameter: value})
    except (ValueError, TypeError) as error:
        refused = error
    else:
        return True
    assert names(refused, parameter, value), f"{value!r} is refused without naming {parameter!r}: {refused!r}"
    assert identities(made) == before
    return False
