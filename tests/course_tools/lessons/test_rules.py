"""The second edition's rules: a lesson that keeps them all, and one for each way to break one."""

import re

import nbformat
import pytest
from sample_lesson import COMPLETE, DEEPER, write_lesson

from course_tools.lessons.authoring import read_lesson
from course_tools.lessons.rules import broken_rules

NOTHING = nbformat.v4.new_notebook()
TEXT = "\n# %% [markdown]\n# "
CODE = "\n# %%\n"
MIDDLE = "\n# %% [markdown]\n# ## Doubling\n"  # a place after the figure and before the first exercise


def broken(tmp_path, text, saved=NOTHING):
    return broken_rules(read_lesson(write_lesson(tmp_path, text)), saved)


def put(before, new):
    assert COMPLETE.count(before) == 1, before
    return COMPLETE.replace(before, new + before)


def swap(old, new):
    assert COMPLETE.count(old) == 1, old
    return COMPLETE.replace(old, new)


def repeated(cell, number):
    """The cell many times in the middle, each with something to predict behind it."""
    guess = (
        f"{TEXT}**Predict before you run.** So?\n#\n# <details><summary>What we saw (saved run, embedded profile)"
        "</summary>\n#\n# So.\n#\n# </details>\n"
    )
    return put(MIDDLE, (cell + guess) * number)


def test_lesson_that_keeps_the_rules_breaks_none(tmp_path):
    assert broken(tmp_path, COMPLETE) == []


EXERCISE_4 = COMPLETE[
    COMPLETE.index("\n# %% [markdown]\n# ### Exercise 4") : COMPLETE.index("\n# %% [markdown]\n# ## Quiz")
]
BROKEN = {
    "minutes": (swap("Exercise 1 · ●○○ · 5 minutes", "Exercise 1 · ●○○ · 70 minutes"), "minutes; 75 is the most"),
    "words": (repeated(TEXT + "word " * 450 + "\n", 5), "words; 2400 is the most"),
    "folded words": (
        repeated(f"{TEXT}<details><summary>Why</summary>\n#\n# {'word ' * 900}\n#\n# </details>\n", 5),
        "words; 2400 is the most",
    ),
    "code cells": (repeated(CODE + "print(1)\n", 21), "code cells; 22 is the most"),
    "lines of code": (repeated(CODE + "print(1)\n" * 39, 9), "lines of code; 350 is the most"),
    "figures": (repeated(CODE + "show('A line that goes up and up.')\n", 5), "6 figures; 5 is the most"),
    "tables": (repeated(CODE + "table\n", 6), "6 tables; 5 is the most"),
    "concepts": (
        swap("[doubling]", f"[{', '.join(f'idea {number}' for number in range(11))}]"),
        "11 new concepts; 10 is the most",
    ),
    "no question": (swap("## The question", "## A question"), "the first cell is `## The question`"),
    "no answer": (swap("**Answer.** ", ""), "a paragraph that begins with `\\*\\*Answer"),
    "long answer": (swap("**Answer.** ", "**Answer.** " + "so " * 40), "the answer has 51 words; 40 is the most"),
    "numbers in the answer": (
        swap("**Answer.** ", "**Answer.** From 1 to 2, and 3: "),
        "the answer has 3 numbers; 2 is the most",
    ),
    "no figure": (swap('show("', 'print("'), "no figure stands between the answer and the next"),
    "late figure": (put("\n# %%\ndraw()", "\n# %% [markdown]\n# ## Before\n"), "no figure stands between the answer"),
    "500 words with nothing to do": (put(MIDDLE, TEXT + "word " * 501 + "\n"), "5.. words and . code cells"),
    "7 cells with nothing to do": (put(MIDDLE, (CODE + "print(1)\n") * 6), "words and [789] code cells"),
    "3 exercises": (swap(EXERCISE_4, ""), "3 exercises; 4 or 5 are asked for"),
    "claims to judge": (COMPLETE.replace("check_double", "check_claims"), "4 exercises judge claims; 2 is the most"),
    "late first exercise": (repeated(CODE + "print(1)\n", 6), "the first exercise comes after 1. minutes"),
    "text above an exercise's heading": (
        swap("# ### Exercise 2", "# Well done.\n#\n# ### Exercise 2"),
        "exercise 2: its heading isn't the first line",
    ),
    "exercise without an end": (
        put("\n# %% [markdown]\n# ### Exercise 2", CODE + "print(1)\n"),
        "exercise 1: the cell after it doesn't begin with a heading",
    ),
    "solution in a cell above": (
        put(MIDDLE, CODE + "def twice(number):\n    return number + number  # so\n"),
        "exercise 1: a cell above it shows a line of its solution: return number \\+ number",
    ),
    "solution in the text above": (
        put(MIDDLE, TEXT + "So:\n#\n# ```python\n# return number + number\n# ```\n"),
        "exercise 1: a cell above it shows a line of its solution",
    ),
    "solution in a stub above": (
        swap("#     ...  # 1", "#     return number + 3 * number - number - number - number"),
        "exercise 2: a cell above it shows a line of its solution",
    ),
    "numbers in a paragraph": (put(MIDDLE, TEXT + "1, 2, 3, 4 and 5 %.\n"), "5 numbers in one paragraph"),
    "numbers in prose": (put(MIDDLE, TEXT + "1, 2, 3, 4.\n#\n# " * 21 + "\n"), "8[45] numbers in prose"),
    "long line": (put(MIDDLE, f"{CODE}print('{'x' * 77}')\n"), "a line of code has 86 characters; 84 is the most"),
    "typed colour": (put(MIDDLE, CODE + "plot(1, color='red')\n"), "the colour 'red' is typed"),
    "colour of a theme": (put(MIDDLE, CODE + "plot(1, 'C3')\n"), "the colour 'C3' is typed"),
    "colour in digits": (put(MIDDLE, CODE + "plot(1, fc='#0072b2')\n"), "the colour '#0072b2' is typed"),
    "colours in a list": (put(MIDDLE, CODE + "plot(1, colors=['0.4', 'none'])\n"), "the colour '0.4' is typed"),
    "colour that depends": (put(MIDDLE, CODE + "plot(1, c='k' if 1 else 2)\n"), "the colour 'k' is typed"),
    "colour in a look": (put(MIDDLE, CODE + "plot(1, **{'color': 'black'})\n"), "the colour 'black' is typed"),
    "colour set in a look": (put(MIDDLE, CODE + "look = {}\nlook['edgecolor'] = 'red'\n"), "the colour 'red' is typed"),
    "colours in a dictionary": (put(MIDDLE, CODE + "plot(1, palette={'a': 'blue'})\n"), "the colour 'blue' is typed"),
    "function in a drawing cell": (
        swap("draw()", "def draw():\n    print(1)\n\n\ndraw()"),
        "a cell that draws defines a function",
    ),
    "result of a drawing cell": (
        put(MIDDLE, CODE + "found = 1\nshow('A line that goes up and up.')\n" + CODE + "print(found)\n"),
        "a cell that draws makes found, which a later cell uses",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_named(name, tmp_path):
    text, message = BROKEN[name]
    said = broken(tmp_path, text)
    assert any(re.search(message, line) for line in said), said


def test_lessons_from_06_on_may_take_90_minutes(tmp_path):
    text = swap("Exercise 1 · ●○○ · 5 minutes", "Exercise 1 · ●○○ · 60 minutes")
    for number, refused in {"05": True, "06": False}.items():
        path = write_lesson(tmp_path, text.replace('start("01"', f'start("{number}"'), f"{number}_small")
        assert bool(broken_rules(read_lesson(path), NOTHING)) is refused


def test_deeper_notebook_is_short_and_needs_no_exercises(tmp_path):
    assert broken_rules(read_lesson(write_lesson(tmp_path, DEEPER, "01a_down")), NOTHING) == []
    long = DEEPER + "\n# %% [markdown]\n# " + "word " * 9000 + "\n"
    said = broken_rules(read_lesson(write_lesson(tmp_path, long, "01a_down")), NOTHING)
    assert said[0] == "64 minutes; 60 is the most."


def test_lines_that_tell_nothing_may_stand_above(tmp_path):
    """A call without arguments, a block's head, the name of what is returned: they are in any code."""
    lines = "    with torch.no_grad():\n        watcher.remove()\n    return number_of_all"
    text = COMPLETE.replace("    return number + number\n", f"{lines}\n")
    place = text.index(MIDDLE)
    assert broken(tmp_path, f"{text[:place]}{CODE}if True:\n{lines}\n{text[place:]}") == []


def test_folded_answer_needs_no_figure_above_the_next_heading(tmp_path):
    folded = swap("# **Answer.**", "# <details><summary>Answer</summary>\n#\n# **Answer.**")
    folded = folded.replace("twice three is six.\n", "twice three is six.\n#\n# </details>\n")
    assert broken(tmp_path, folded.replace('show("', 'print("')) == []


@pytest.mark.parametrize(
    "cell",
    [
        TEXT + "In 2016, `0.1`, `0.2` of [3](https://a.org/4) in lessons 05 and 06 of Llama-3.2-1B: $7 + 8$.\n",
        TEXT + "### 1, 2, 3, 4, 5\n#\n# | 1 | 2 | 3 |\n# |---|---|---|\n# | 4 | 5 | 6 |\n",
        TEXT + "- 1 and 2\n# - 3 and 4\n# - 5\n",
        CODE + "plot(1, color=mark('L1')['color'], facecolor='none', label='C')\n",
        CODE + "found = 1\nshow('A line that goes up and up.')\n" + CODE + "found = 2\nprint(found)\n",
        CODE + "with torch.no_grad():\n    return_value = 1\n",
    ],
    ids=["names and years", "headings and tables", "bullets", "palette", "made anew", "trivial lines"],
)  # fmt: skip
def test_what_is_allowed(cell, tmp_path):
    assert broken(tmp_path, put(MIDDLE, cell)) == []


@pytest.mark.parametrize(("rows", "columns", "refused"), [(8, 6, False), (9, 6, True), (8, 7, True)])
def test_large_tables_of_the_saved_run_are_refused(rows, columns, refused, tmp_path):
    body = "".join(f"<tr><th>{row}</th>{'<td>1</td>' * columns}</tr>" for row in range(rows))
    page = f"<table><thead><tr><th></th>{'<th>a</th>' * columns}</tr></thead><tbody>{body}</tbody></table>"
    output = nbformat.v4.new_output("display_data", {"text/html": page})
    saved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("table", outputs=[output])])
    assert broken(tmp_path, COMPLETE, saved) == (
        [f"a table of {rows} × {columns}; 8 rows and 6 columns are the most: {', '.join('a' * columns)} …"]
        if refused
        else []
    )
