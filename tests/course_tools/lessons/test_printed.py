"""What a run printed: numbers in lines and tables, with what stands beside them, and the tables themselves."""

import nbformat
import pandas as pd
import pytest

from course_tools.lessons.printed import Number, numbers_of, tables_of


def printed(text):
    return nbformat.v4.new_output("stream", text=text)


def table(frame):
    return nbformat.v4.new_output("execute_result", data={"text/plain": str(frame), "text/html": frame.to_html()})


def found(*outputs):
    return [number.text for number in numbers_of(outputs)]


def test_numbers_of_lines_and_tables():
    line = "perplexity 34.0 (26.5 to 43.6), −0.5, 1e-05, 1,016 tokens of SmolLM2-135M, x2\n"
    assert found(printed(line)) == ["34.0", "26.5", "43.6", "−0.5", "1e-05", "1,016"]
    frame = pd.DataFrame({"harm": ["1.5 (1.2 to 1.8)", "2"]}, index=pd.Index(["l1", "random"], name="criterion"))
    assert found(table(frame)) == ["1.5", "1.2", "1.8", "2"]
    nested = pd.DataFrame({"value": [1, 2]}, index=pd.MultiIndex.from_tuples([("arc", "whole"), ("arc", "cut")]))
    assert found(table(nested)) == ["1", "2"], "also under a name that spans rows"


def test_a_line_that_a_slow_kernel_sent_in_pieces_is_one_line():
    progress = nbformat.v4.new_output("stream", name="stderr", text="9 of 10\n")
    assert found(printed("share 1"), progress, printed("4.2%\n")) == ["14.2"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [(".31 and −2e-05", [".31", "−2e-05"]), ("Python 3.11.7, Q4_1, 32x, 3.2x", []), ("31% of 1,024.", ["31", "1,024"])],
)
def test_what_is_a_number(text, numbers):
    assert found(printed(text)) == numbers


def test_pictures_and_what_models_write_are_left_out():
    picture = nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "15 bars"})
    assert not found(picture)
    assert not found(printed("  unpruned … was born in 1732 and\n"))
    prompts = pd.Index(["The capital of France is"], name="prompt")
    assert not found(table(pd.DataFrame([["Paris. It has 17000001"]], index=["unpruned"], columns=prompts)))
    texts = pd.DataFrame({"tokens": [128]}, index=pd.Index(["a long one"], name="prompt"))
    assert found(table(texts)) == ["128"], "of the prompt itself"


def test_a_report_has_its_caption():
    page = "<table><caption>cut</caption><tr><th></th><th>before</th></tr><tr><th>blocks</th><td>6</td></tr></table>"
    (read,) = tables_of([nbformat.v4.new_output("execute_result", data={"text/plain": "", "text/html": page})])
    assert read.caption == "cut" and str(read).split() == ["cut", "before", "blocks", "6"]


def test_nearness():
    def near(got, expected):
        return Number(got).is_near(Number(expected), 0.05)

    assert near("104.9", "100.0") and not near("106.0", "100.0")
    assert near("0.02", "0.01") and not near("0.03", "0.01"), "one unit of the last digit is rounding"
    assert near("18", "19") and not near("17", "19")
    assert near("-1.00", "−1.00") and not near("1.00", "-1.00")
