"""The calculator: its models and its results beside the library's functions and lesson 10's own solutions."""

from pathlib import Path

import pytest
import torch
from part_of_site import open_alone
from screens import PHONE
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("sphinx", reason="part of the extra site")

import looking

from course_tools.lessons.authoring import read_lesson, take_apart
from course_tools.lessons.cells import tags_of
from course_tools.site import calculator, pages
from course_utils.measuring.costs import bytes_held, kv_bytes_per_token, work
from course_utils.models.reports import model_size

LESSON = Path(__file__).resolve().parents[3] / "lessons/10_what_pruning_really_buys.py"


def model_of(name):
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**calculator.SHAPES[name])).to(torch.bfloat16)


@pytest.mark.parametrize("name", calculator.SHAPES)
def test_models_are_counted(name):
    fields, model = calculator.presets()[name], model_of(name)
    assert fields["parameters"] * 1e6 == pytest.approx(sum(weight.numel() for weight in model.parameters()))
    a_token = 2 * 2 * fields["layers"] * fields["kvHeads"] * fields["headSize"]
    assert a_token == kv_bytes_per_token(model)
    read = 2e6 * (fields["parameters"] - fields["lookedUp"])
    assert read == pytest.approx(work(model, "decode", prompt_tokens=1).weight_bytes)
    assert read == pytest.approx(model_size(model).flops, rel=1e-3), "two operations a weight, but for the norms"


# In a browser


def fill(page, **fields):
    for name, value in fields.items():
        page.locator(f"[name={name}]").fill(str(value))


def result(page, name):
    return float(page.locator(f"#result-{name}").get_attribute("value"))


@pytest.fixture
def form(page, tmp_path):
    open_alone(page, tmp_path, pages.calculator_page(), "calculator.js")
    return page


@pytest.mark.browser
@pytest.mark.parametrize("name", calculator.SHAPES)
def test_results_are_the_librarys(form, name):
    model, texts, context = model_of(name), 3, 700
    form.get_by_role("combobox", name="Model").select_option(name)
    fill(form, context=context, requests=texts, bandwidth=50, peak=10**9)
    asked = work(model, "decode", prompt_tokens=context, batch_size=texts)
    milliseconds = 1000 * (asked.weight_bytes + asked.cache_bytes) / 50e9
    expected = {
        "held": bytes_held(model, tokens=context, batch_size=texts) / 1e6,
        "cacheOfToken": kv_bytes_per_token(model) / 1e3,
        "milliseconds": milliseconds,
        "tokensPerSecond": 1000 * texts / milliseconds,
    }
    assert {key: result(form, key) for key in expected} == pytest.approx(expected)
    fill(form, peak=1)
    assert result(form, "milliseconds") == pytest.approx(1000 * texts * model_size(model).flops / 1e9, rel=1e-3)


@pytest.mark.browser
@pytest.mark.parametrize("tokens", [1, 64])
def test_results_are_those_of_the_lessons_solutions(form, tokens):
    solved = {}
    for cell in read_lesson(LESSON).cells:
        code = take_apart(cell.source).solution if "exercise" in tags_of(cell) else ""
        if code.startswith(("def seconds", "def requests")):
            exec(code, solved)
    fill(form, parameters=300, layers=24, removed=5, kvHeads=4, headSize=80, context=0, requests=tokens)
    fill(form, memory=2, bandwidth=20, peak=400, price=0.5)
    seconds = solved["seconds"](300e6, tokens, 24, 0.5e-3, 20e9, 400e9)
    assert result(form, "milliseconds") == pytest.approx(1000 * seconds)
    fill(form, context=2048)
    fitting = solved["requests"](2 * 10**9, 600 * 10**6, 2048, 24, 5, 12, 4, 80)
    assert result(form, "fitting") == fitting and form.locator("[name=model]").input_value() == ""


@pytest.mark.browser
def test_wrong_fields_give_no_number_and_everyone_can_read_it(form):
    assert looking.faults(form) == [] and form.troubles.console == []
    fill(form, bandwidth="")
    assert form.locator("#result-milliseconds").inner_text() == "–"
    fill(form, bandwidth=-1)
    assert form.locator("#result-milliseconds").inner_text() == "–"
    form.set_viewport_size(PHONE)
    assert looking.sideways(form) == []
