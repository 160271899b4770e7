"""Numbers that a run printed: found in lines and tables, with what stands beside them, and none that is a time."""

import re

import nbformat
import pandas as pd
import pytest

from course_tools.lessons.printed import Number, numbers_of, picked


def printed(text):
    return nbformat.v4.new_output("stream", text=text)


def table(frame):
    return nbformat.v4.new_output("execute_result", data={"text/plain": str(frame), "text/html": frame.to_html()})


def found(*outputs):
    return [(number.text, number.label) for number in numbers_of(outputs)]


def test_numbers_of_lines_and_tables():
    assert found(printed("perplexity 34.0 (26.5 to 43.6), −0.5, 1e-05, 1,016 tokens of SmolLM2-135M, x2\n")) == [
        (text, "perplexity … (… to …), …, …, … tokens of SmolLM2-135M, x2")
        for text in ("34.0", "26.5", "43.6", "−0.5", "1e-05", "1,016")
    ]
    frame = pd.DataFrame({"harm": ["1.5 (1.2 to 1.8)", "2"]}, index=pd.Index(["l1", "random"], name="criterion"))
    assert found(table(frame)) == [
        ("1.5", "l1 · harm"),
        ("1.2", "l1 · harm"),
        ("1.8", "l1 · harm"),
        ("2", "random · harm"),
    ]
    nested = pd.DataFrame({"value": [1, 2]}, index=pd.MultiIndex.from_tuples([("arc", "whole"), ("arc", "cut")]))
    assert found(table(nested)) == [("1", "arc, whole · value"), ("2", "arc, cut · value")], "a name that spans rows"


def test_what_belongs_to_the_machine_is_left_out():
    assert not found(printed("took 3.2 seconds\ndecode 14 tokens/s\n12,192 predicted tokens in 80 s\n"))
    timed = pd.DataFrame({"time, × dense": [0.5], "ci_low": [0.4], "ci_high": [0.6], "MB": [4.7]}, index=["cut"])
    assert found(table(timed)) == [("4.7", "cut · MB")]
    counted = pd.DataFrame({"damage": [0.5], "ci_low": [0.4]}, index=["cut"])
    assert len(found(table(counted))) == 2, "an interval of something else stays"
    rows = pd.DataFrame({"unpruned": ["1.0", "34.0"]}, index=["prefill, × unpruned", "perplexity"])
    assert found(table(rows)) == [("34.0", "perplexity · unpruned")]
    spanned = pd.MultiIndex.from_product([["prefill", "harm"], ["whole", "cut"]])
    assert found(table(pd.DataFrame({"value": [1, 2, 3, 4]}, index=spanned))) == [
        ("3", "harm, whole · value"),
        ("4", "harm, cut · value"),
    ]
    picture = nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "15 bars"})
    assert not found(picture)
    assert not found(printed("  unpruned … was born in 1732 and\n"))
    prompts = pd.Index(["The capital of France is"], name="prompt")
    assert not found(table(pd.DataFrame([["Paris. It has 17000001"]], index=["unpruned"], columns=prompts)))
    texts = pd.DataFrame({"tokens": [128]}, index=pd.Index(["a long one"], name="prompt"))
    assert found(table(texts)) == [("128", "a long one · tokens")], "of the prompt itself"


def test_numbers_are_picked_by_what_stands_beside_them():
    cells = [nbformat.v4.new_code_cell(outputs=[printed(f"ratio {a} ({b})\n")]) for a, b in ("12", "34")]
    run = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("ratio 9 (9)"), *cells])
    assert picked(run, {"a": ("ratio … (…)", 0), "d": ("ratio … (…)", 3)}) == {"a": "1", "d": "4"}
    for missing in (("ratio … (…)", 4), ("harm …", 0)):
        with pytest.raises(KeyError, match=f"^'{re.escape(missing[0])}'$"):
            picked(run, {"a": ("ratio … (…)", 0), "missing": missing})


def test_tolerance():
    def agrees(got, expected, label="damage"):
        return Number(got, label).agrees(Number(expected), 0.05)

    assert agrees("104.9", "100.0") and not agrees("106.0", "100.0")
    assert agrees("0.02", "0.01") and not agrees("0.03", "0.01"), "one unit of the last digit is rounding"
    assert agrees("18", "19") and not agrees("17", "19")
    assert agrees("4e-06", "9e-08") and not agrees("2e-02", "9e-08"), "noise may be any size, as long as it is noise"
    assert agrees("-1.00", "−1.00") and not agrees("1.00", "-1.00")
    assert agrees("76,250,268", "76,250,268", "GPT-2 · parameters") and not agrees(
        "76,250,269", "76,250,268", "parameters"
    )
