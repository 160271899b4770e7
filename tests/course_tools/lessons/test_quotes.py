"""Quoted numbers are found in the outputs, wrong ones are not."""

import nbformat
import pytest

from course_tools.lessons import quotes
from course_tools.lessons.authoring import WHAT_WE_SAW

V4 = nbformat.v4


def lesson(prose, *, text="", table="", alt=""):
    outputs = []
    if text:
        outputs.append(V4.new_output("stream", name="stdout", text=text))
    if table:
        outputs.append(V4.new_output("execute_result", {"text/html": table, "text/plain": "…"}))
    if alt:
        outputs.append(V4.new_output("display_data", {"image/png": "", "text/plain": alt}))
    return V4.new_notebook(cells=[V4.new_code_cell("x", outputs=outputs), V4.new_markdown_cell(prose)])


@pytest.mark.parametrize(
    ("quoted", "printed"),
    [
        ("the perplexity is 17.4", "17.361"),
        ("lower by 0.31 nats", "-0.3123"),
        ("31 % of it", "0.3081"),
        ("31 %", "31.2%"),
        ("a share of .31", "31.2%"),
        ("134.5 million parameters", "134,515,008 parameters"),
        ("134,515,008 parameters", "134515008"),
        ("a perplexity of 4e9", "4.12e+09"),
        ("SmolLM2-135M of lesson 03 at `ratio=0.7`, Q4_1, see [here](https://x.org/9)", ""),
        ("two of three", ""),
    ],
)
def test_number_that_is_shown(quoted, printed):
    assert quotes.unsupported(lesson(f"{quotes.SAVED_RUN} {quoted}", text=printed)) == []


@pytest.mark.parametrize(
    ("quoted", "printed"),
    [("17.4", "17.5"), ("17.40", "17.36"), ("31 %", "0.35"), ("134.5 million", "134,415,008"), ("21", "Llama-21B")],
)
def test_number_that_is_not_shown(quoted, printed):
    (problem,) = quotes.unsupported(lesson(f"{quotes.SAVED_RUN} It is {quoted} here.", text=printed))
    assert quoted in problem and "It is" in problem


def test_only_answers_and_saved_run_paragraphs_are_held():
    answer = f"**Predict before you run.** 5?\n\n{WHAT_WE_SAW}\n\nIt was 6.\n\n</details>"
    assert len(quotes.unsupported(lesson(answer, text="7"))) == 1
    assert quotes.unsupported(lesson(answer, text="6")) == []
    paragraphs = f"Published: 17.9.\n\n{quotes.SAVED_RUN} Ours is 8,\nand 9.\n\nElsewhere 10."
    assert [problem.split()[0] for problem in quotes.unsupported(lesson(paragraphs, text="1"))] == ["8", "9"]


def test_tables_count_and_descriptions_of_pictures_do_not():
    prose = f"{quotes.SAVED_RUN} It is 42."
    assert quotes.unsupported(lesson(prose, table="<table><tr><td>42</td></tr></table>")) == []
    assert quotes.unsupported(lesson(prose, alt="A line at 42.")) != []


@pytest.mark.parametrize(("between", "stale"), [(quotes.NEAR - 1, False), (quotes.NEAR, True)])
def test_a_number_far_away_is_stale(between, stale):
    printed = [V4.new_output("stream", name="stdout", text=text) for text in ["42", *["7"] * between]]
    cells = [V4.new_code_cell("x", outputs=[output]) for output in printed]
    quoting = V4.new_markdown_cell(f"{quotes.SAVED_RUN} It is 42.")
    assert bool(quotes.unsupported(V4.new_notebook(cells=[*cells, quoting]))) == stale
