"""What a run shows is found by headings and words, and survives being written down."""

import json

import nbformat
import pandas as pd
import pytest

from course_tools.lessons.verdicts.tables import Tables

V4 = nbformat.v4


def cell(*outputs):
    return V4.new_code_cell(
        "x",
        outputs=[
            V4.new_output("stream", text=shown)
            if isinstance(shown, str)
            else V4.new_output("execute_result", data={"text/plain": "", "text/html": shown.to_html()})
            for shown in outputs
        ],
    )


HARM = pd.DataFrame({"harm": [1.5, 2.0]}, index=["L1", "random"])
RUN = V4.new_notebook(
    cells=[
        V4.new_markdown_cell("## One\n\n### First"),
        cell("whole: 3.5, 2\nmasked: 1e-06\n"),
        cell(HARM),
        cell("Damage of block 3\nhere: shown. L1 harms.\n", HARM * 2),
        V4.new_markdown_cell("No heading here."),
        V4.new_markdown_cell("## Two"),
        cell("whole: 7\n"),
        cell(HARM * 3),
    ]
)


def tables():
    return Tables.of(RUN)


@pytest.mark.parametrize("shown", [tables(), Tables.from_data(json.loads(json.dumps(tables().to_data())))])
def test_by_heading_and_caption(shown):
    assert shown.table("First").column("harm") == {"L1": 1.5, "random": 2}
    assert shown.table("First", "Damage").column("harm") == {"L1": 3, "random": 4}
    assert shown.table("Two").row("L1") == {"harm": 4.5}
    assert shown.line("First", "whole") == [3.5, 2] and shown.line("Two", "whole") == [7]
    assert shown.line("First", "masked") == [1e-6]


def test_what_is_not_there():
    for missing in (lambda: tables().table("Two", "Damage"), lambda: tables().line("Two", "masked")):
        with pytest.raises(LookupError, match="Two"):
            missing()


def test_parts_make_the_whole():
    shown = tables()
    assert Tables.together(shown.parts()) == shown and len([*shown.parts()]) == 3 + 5
