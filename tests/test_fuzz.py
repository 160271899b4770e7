"""Odd arguments for every public function that can be called here: it works, or says which argument is wrong and why.

The functions and what to try for an argument come from their signatures; `MADE` has something to call them with. After
a refusal the model is as it was, to the last bit.
"""

import importlib
import inspect
import math
import pkgutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_batches, tiny_model, word_tokenizer

import course_utils
from course_utils import language_modelling, models, width

# What learners don't call: checks of exercises, pictures, run-time code in models, files and downloads, and parts of a
# machinery that get what another part has checked, among them what puts the library's own numbers into words. `compare`
# needs one of two arguments and is perplexity, evaluate and paired, which are tried;
# `encode_with_bytes` needs a tokenizer of bytes or pieces, which the tiny models don't have.
LEFT_OUT = (
    "exercises modeling plotting diagrams assets files session checks prompt_harm bias distillation.state "
    "distillation.processes distillation.losses distillation.hidden benchmark_tasks influence policies reports.shown "
    "reports.with_interval uncertainty.verdict evaluation.compare texts.encode_with_bytes"
).split()
SPEED = {"rounds": 6, "warmups": 0, "new_tokens": 2, "prompt_tokens": 4}


def padded_tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w2"
    return tokenizer


MADE = {
    "after": tiny_model,
    "a": lambda: np.arange(8.0),
    "b": lambda: np.arange(8.0)[::-1],
    "batches": tiny_batches,
    "before": tiny_model,
    "blocks": lambda: 3,
    "calls": lambda: {"one": int, "two": int},
    "choice": lambda: np.zeros(6, dtype=int),
    "components": lambda: 2,
    "context": lambda: 4,
    "count": lambda: 1,
    "criterion": lambda: "l1",
    "differences": lambda: np.array([0.1, -0.2, 0.3]),
    "documents": lambda: ["a", "a", "b", "b", "c", "c"],
    "groups": lambda: ["x", "y"] * 4,
    "guess": lambda: np.arange(12.0).reshape(6, 2),
    "halves": lambda: np.arange(12.0).reshape(6, 2),
    "harm": lambda: np.arange(12.0).reshape(6, 2),
    "high": lambda: 1.0,
    "importance": lambda: width.neuron_importance(tiny_model(), "l1"),
    "indices": lambda: [1],
    "intervals": lambda: [(0.1, 0.2)],
    "judging": lambda: ["w1 w2 w3"],
    "k": lambda: 2,
    "layer_sets": lambda: [[1]],
    "layers": lambda: [1],
    "learned": lambda: ["w1 w2 w3"],
    "length": lambda: 8,
    "log_p": lambda: torch.log_softmax(torch.randn(2, 5), -1),
    "log_q": lambda: torch.log_softmax(torch.randn(2, 5), -1),
    "logits": lambda: torch.randn(3, 7),
    "low": lambda: 0.0,
    "model": tiny_model,
    "model_a": tiny_model,
    "model_b": lambda: tiny_model(seed=1),
    "models": lambda: {"one": tiny_model()},
    "only_a": lambda: 3,
    "only_b": lambda: 1,
    "p_values": lambda: [0.01, 0.2],
    "price": lambda: 0.1,
    "prompts": lambda: ["w1 w2", "w3 w4 w5", "w6 w7 w8 w9"],
    "ratio": lambda: 0.25,
    "result_a": lambda: language_modelling.perplexity(tiny_model(), tiny_batches()),
    "result_b": lambda: language_modelling.perplexity(tiny_model(seed=1), tiny_batches()),
    "rows": lambda: 2,
    "samples": lambda: [0.1, 0.2, 0.3, 0.2, 0.1],
    "saved": lambda: np.arange(12.0).reshape(6, 2),
    "score": lambda: language_modelling.perplexity(tiny_model(), tiny_batches()),
    "reference": lambda: language_modelling.perplexity(tiny_model(), tiny_batches()),
    "scores": lambda: torch.arange(8.0),
    "seed": lambda: 0,
    "shuffles": lambda: 9,
    "sizes": lambda: np.ones(5),
    "states": lambda: torch.randn(8, 5),
    "statistic": lambda: lambda sums: sums[:, 0] / sums[:, 1],
    "strata": lambda: np.zeros(6, dtype=int),
    "student": tiny_model,
    "successes": lambda: 3,
    "target": lambda: 1.0,
    "teacher": tiny_model,
    "text": lambda: "w1 w2",
    "texts": lambda: ["w1 w2", "w3 w4 w5"],
    "token_ids": lambda: torch.arange(3, 15).reshape(2, 6),
    "tokenizer": padded_tokenizer,
    "totals": lambda: np.arange(5.0),
    "trials": lambda: 9,
    "units": lambda: np.ones((6, 2)),
    "value": lambda: 0.5,
    "values": lambda: [1.0, 2.0],
    "vocab_size": lambda: 97,
    "width": lambda: 16,
    **{name: (lambda number=number: number) for name, number in SPEED.items()},
}  # fmt: skip
# What an argument of some kind is tried with. Large numbers are left out where they would only take long.
NUMBERS = st.one_of(st.integers(-3, 4), st.floats(-2, 3), st.sampled_from([math.nan, math.inf, -math.inf, -1e9]))
ODD = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=3), st.sampled_from([[], {}, b"x", (1, 2), object()])
)
LISTS = st.one_of(ODD, st.lists(st.one_of(NUMBERS, st.booleans(), st.text(max_size=2)), max_size=4))
TRIED = {"int": ODD, "float": ODD, "bool": ODD, "str": ODD, "Sequence[int]": LISTS, "Sequence[str]": LISTS}


def public():
    """Each (dotted name, function) of the library that is tried."""
    for module in pkgutil.walk_packages(course_utils.__path__, "course_utils."):
        place = module.name.removeprefix("course_utils.")
        for name, found in vars(importlib.import_module(module.name)).items():
            dotted = f"{place}.{name}"
            left_out = any(dotted.startswith(f"{left}.") or dotted == left for left in LEFT_OUT)
            if (
                inspect.isfunction(found)
                and not name.startswith("_")
                and found.__module__ == module.name
                and not left_out
            ):
                yield dotted, found


def cases():
    """Each (dotted name, function, parameter) whose value is tried."""
    for name, function in public():
        parameters = inspect.signature(function).parameters.values()
        needed = [
            one.name
            for one in parameters
            if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        if all(one in MADE for one in needed):
            for one in parameters:
                if str(one.annotation).removesuffix(" | None") in TRIED:
                    yield pytest.param(function, one.name, id=f"{name}-{one.name}")


CASES = list(cases())


def arguments(function, parameter):
    """A call that works, but for one argument; small sizes where the defaults would take long."""
    made = {}
    for one in inspect.signature(function).parameters.values():
        named = one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and one.name != parameter
        if named and (one.default is one.empty or one.name in (*SPEED, "shuffles", "components")):
            made[one.name] = MADE[one.name]()
    return made


def names(error, parameter):
    """Whether a message speaks of an argument: by its name, as words, in the singular; or by what it holds."""
    said = str(error).lower().replace("_", " ")
    other = "block numbers" if parameter in ("layers", "indices", "left_out") else parameter.lower()
    return parameter.lower().rstrip("s").replace("_", " ") in said or other in said


def identities(made):
    return {name: models.identity(value) for name, value in made.items() if isinstance(value, torch.nn.Module)}


@pytest.mark.parametrize(("function", "parameter"), CASES)
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_argument_works_or_is_named(function, parameter, data):
    kind = str(inspect.signature(function).parameters[parameter].annotation).removesuffix(" | None")
    value, made = data.draw(TRIED[kind]), arguments(function, parameter)
    before = identities(made)
    try:
        result = function(**made, **{parameter: value})
        if inspect.isgenerator(result):
            list(result)
    except (ValueError, TypeError) as error:
        refused = error
    else:
        return
    assert names(refused, parameter), f"{value!r} is refused without naming {parameter!r}: {refused!r}"
    assert identities(made) == before


def test_enough_is_tried():
    assert len({case.values[0] for case in CASES}) > 30 and len(CASES) > 75
    tried = {case.id.split("-")[0] for case in CASES}
    needed = (
        "width.prune_neurons width.neuron_importance depth.remove_blocks attention.bypass_attention "
        "attention.select_attention_layers adaptive.calibrate language_modelling.perplexity"
    )
    assert set(needed.split()) <= tried
