"""The rules: a lesson that keeps them all, one for each way to break one, and what is allowed."""

import re

import nbformat
import pytest
from sample_lesson import COMPLETE, DEEPER, write_lesson

from course_tools.lessons.authoring import read_lesson
from course_tools.lessons.rules import broken_rules

TEXT = "\n# %% [markdown]\n# "
CODE = "\n# %%\n"
MIDDLE = "\n# %% [markdown]\n# ## Doubling\n"  # a place before the first exercise
EXERCISE_4 = COMPLETE[COMPLETE.index(f"{TEXT}### Exercise 4") : COMPLETE.index(f"{TEXT}## Quiz")]


def broken(folder, text, *outputs, name="01_small"):
    saved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[*outputs])])
    return broken_rules(read_lesson(write_lesson(folder, text, name)), saved)


def put(before, new):
    assert COMPLETE.count(before) == 1, before
    return COMPLETE.replace(before, new + before)


def swap(old, new):
    assert COMPLETE.count(old) == 1, old
    return COMPLETE.replace(old, new)


def test_lessons_that_keep_the_rules_break_none(tmp_path):
    """A deeper notebook needs no exercises, and no lesson's words are counted."""
    assert broken(tmp_path, put(MIDDLE, TEXT + "word " * 9000 + "\n")) == []
    cells = (CODE + "print(1)\n") * 4
    busy = put(MIDDLE, cells).replace(f"{TEXT}### Exercise 2", f"{TEXT}## Then\n{cells}{TEXT}### Exercise 2")
    assert broken(tmp_path, busy) == [], "an exercise parts eight cells"
    assert broken(tmp_path, DEEPER, name="01a_down") == []


BROKEN = {
    "concepts": (swap("[doubling]", f"[{', '.join(f'idea {n}' for n in range(11))}]"), "11 new concepts; 10 is the"),
    "no question": (swap("## The question", "## A question"), "the first cell is `## The question`"),
    "no answer": (swap("**Answer.** ", ""), "a paragraph that begins with `\\*\\*Answer"),
    "lines of code": (put(MIDDLE, (CODE + "print(1)\n" * 39) * 9), "lines of code; 350 is the most"),
    "7 cells with nothing to do": (put(MIDDLE, (CODE + "print(1)\n") * 6), "6 code cells with nothing to predict"),
    "3 exercises": (swap(EXERCISE_4, ""), "3 exercises; 4 or 5 are asked for"),
    "claims to judge": (COMPLETE.replace("check_double", "check_claims"), "4 exercises judge claims; 2 is the most"),
    "text above an exercise's heading": (
        swap("# ### Exercise 2", "# Well done.\n#\n# ### Exercise 2"),
        "exercise 2: its heading isn't the first line",
    ),
    "exercise without an end": (
        put(f"{TEXT}### Exercise 2", CODE + "print(1)\n"),
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
        swap("#     ...  # 1", "#     return 3 * number - number"),
        "exercise 2: a cell above it shows a line of its solution",
    ),
    "numbers in a paragraph": (put(MIDDLE, TEXT + "1, 2, 3, 4 and 5 %.\n"), "5 numbers in one paragraph"),
    "numbers in prose": (put(MIDDLE, TEXT + "1, 2, 3, 4.\n#\n# " * 21 + "\n"), "8[45] numbers in prose"),
    "long line": (put(MIDDLE, f"{CODE}print('{'x' * 77}')\n"), "a line of code has 86 characters; 84 is the most"),
} | {
    f"typed colour: {code}": (put(MIDDLE, f"{CODE}{code}\n"), f"the colour '{colour}' is typed")
    for code, colour in {
        "plot(1, color='red')": "red",
        "plot(1, 'C3')": "C3",
        "plot(1, fc='#0072b2')": "#0072b2",
        "plot(1, colors=['0.4', 'none'])": "0.4",
        "plot(1, c='k' if 1 else 2)": "k",
        "plot(1, **{'color': 'black'})": "black",
        "look['edgecolor'] = 'red'": "red",
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_named(name, tmp_path):
    text, message = BROKEN[name]
    said = broken(tmp_path, text)
    assert any(re.search(message, line) for line in said), said


@pytest.mark.parametrize(
    "cell",
    [
        TEXT + "In 2016, `0.1`, `0.2` of [3](https://a.org/4) in lessons 05 and 06 of Llama-3.2-1B: $7 + 8$.\n",
        TEXT + "### 1, 2, 3, 4, 5\n#\n# | 1 | 2 | 3 |\n# |---|---|---|\n# | 4 | 5 | 6 |\n",
        TEXT + "- 1 and 2\n# - 3 and 4\n# - 5\n",
        CODE + "plot(1, color=mark('L1')['color'], facecolor='none', label='C')\n",
        CODE + "with torch.no_grad():\n    return_value = 1\n",
    ],
    ids=["names and years", "headings and tables", "bullets", "palette", "trivial lines"],
)  # fmt: skip
def test_what_is_allowed(cell, tmp_path):
    assert broken(tmp_path, put(MIDDLE, cell)) == []


def test_lines_that_tell_nothing_may_stand_above(tmp_path):
    """A call without arguments, a block's head, the name of what is returned: they are in any code."""
    lines = "    with torch.no_grad():\n        watcher.remove()\n    return number_of_all"
    text = COMPLETE.replace("    return number + number\n", f"{lines}\n")
    place = text.index(MIDDLE)
    assert broken(tmp_path, f"{text[:place]}{CODE}if True:\n{lines}\n{text[place:]}") == []


@pytest.mark.parametrize(
    ("rows", "columns", "count", "message"),
    [
        (8, 6, 5, []),
        (9, 6, 1, ["a table of 9 × 6; 8 rows and 6 columns are the most: a, a, a, a, a, a …"]),
        (8, 7, 1, ["a table of 8 × 7; 8 rows and 6 columns are the most: a, a, a, a, a, a, a …"]),
        (1, 1, 6, ["6 tables; 5 is the most."]),
    ],
)
def test_figures_and_tables_of_the_saved_run_are_few_and_small(rows, columns, count, message, tmp_path):
    body = "".join(f"<tr><th>{row}</th>{'<td>1</td>' * columns}</tr>" for row in range(rows))
    page = f"<table><thead><tr><th></th>{'<th>a</th>' * columns}</tr></thead><tbody>{body}</tbody></table>"
    tables = [nbformat.v4.new_output("display_data", {"text/html": page})] * count
    assert broken(tmp_path, COMPLETE, *tables) == message
    figures = [nbformat.v4.new_output("display_data", {"image/png": ""})] * 6
    assert broken(tmp_path, COMPLETE, *figures) == ["6 figures; 5 is the most."]
