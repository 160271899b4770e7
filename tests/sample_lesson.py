"""A small lesson for the tests of the builder, the runner and the command line."""

from pathlib import Path

LESSON = """\
# ---
# jupyter:
#   course:
#     title: A small lesson
#     prerequisites: nothing
#     assets: []
#     concepts: [doubling]
# ---

# %% [markdown]
# ## The question
#
# How is a lesson built?

# %% tags=["install"]

# %%
from course_utils.support.session import start

session = start("01", profile="smoke")

# %%
import sys

print("seen")
print("progress 50%", file=sys.stderr)
6 * 7

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
# Double a number.
#
# <details><summary>Hint</summary>
#
# Use `*`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises import exercise, require


@exercise(1, task="Return twice the number.", proved="Doubled.")
def check_double(attempt):
    require(attempt(3) == 6, "Twice 3 is 6.")


# BEGIN SOLUTION
def double(x):
    return 2 * x


# END SOLUTION
# BEGIN STUB
# def double(x):
#     ...  # your code
# END STUB
check_double(double)
""" + "".join(
    f"""
# %% [markdown] tags=["quiz"]
# What is {number} times 2?
#
# - [ ] {number}
#   > That is once.
# - [x] {2 * number}
#   > Doubled.
# - [ ] {3 * number},
#   or so
#   > That is three times,
#   > not twice.
"""
    for number in (1, 2, 3)
)


# A deeper notebook: one question, no exercise, no quiz.
DEEPER = """\
# ---
# jupyter:
#   course:
#     title: Further down
#     prerequisites: lesson 01
#     assets: []
#     concepts: [halving]
# ---

# %% [markdown]
# ## The question
#
# Is half of twice a number the number?
#
# **Answer.** Yes.

# %% tags=["install"]

# %%
from course_utils.support.session import start

session = start("01a", profile="smoke")
print("deep down")
show("A line that leads back to where it began.")
"""


def write_lesson(folder: Path, text: str = LESSON, name: str = "01_small") -> Path:
    """Write a lesson source below `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


_EXERCISE = """
# %% [markdown]
# ### Exercise {number} · ●○○ · 5 minutes
# Double a number in another way.
#
# <details><summary>Hint</summary>
#
# Think of sums.
#
# </details>

# %% tags=["exercise"]
# BEGIN SOLUTION
def double{number}(number):
    return {solution}


# END SOLUTION
# BEGIN STUB
# def double{number}(number):
#     ...  # {number}
# END STUB
check_double(double{number})
"""
# A lesson that keeps all rules.
COMPLETE = (
    """\
# ---
# jupyter:
#   course:
#     title: A small lesson
#     prerequisites: nothing
#     assets: []
#     concepts: [doubling]
# ---

# %% [markdown]
# ## The question
#
# How large is twice a number?
#
# **Answer.** As large as the number and itself: twice three is six.

# %% tags=["install"]

# %%
from course_utils.lessons.exercises import exercise, require
from course_utils.support.session import start

session = start("01", profile="smoke")


@exercise(1, task="Return twice the number.", proved="Doubled.")
def check_double(attempt):
    require(attempt(3) == 6, "Twice 3 is 6.")



# %%
draw()
show("A line that rises from nothing, twice as fast as the number.")

# %% [markdown]
# The line rises twice as fast as the number.

# %% [markdown]
# ## Doubling
#
# Now it is your turn in this lesson.
"""
    + "".join(
        _EXERCISE.format(number=number, solution=solution)
        for number, solution in {
            1: "number + number",
            2: "number + 3 * number - number - number - number",
            3: "number - number + number + number",
            4: "sum([number, number])",
        }.items()
    )
    + """
# %% [markdown]
# ## Quiz
"""
    + "".join(LESSON.partition("\n# %% [markdown] tags")[1:]).rpartition("\n# %% [markdown]")[0]
    + """
# %% [markdown]
# ## Take-aways
#
# - Twice is once more.
#
# ## References
#
# - Nobody, 2016, arXiv 1608.08710, pages 1, 2, 3, 4, 5 and 6
"""
)
