"""Small lessons for the tests of the builder, the runner and the command line.

They have a start and a check of their own, which say what the library's say: a kernel that imports torch takes seconds.
"""

from pathlib import Path

LESSON = """\
# ---
# jupyter:
#   course:
#     title: A small lesson
#     prerequisites: nothing
#     minutes: 10
#     assets: []
#     concepts: [doubling]
# ---

# %% [markdown]
# ## The question
#
# How is a lesson built?

# %% tags=["install"]

# %%
def start(lesson, profile):
    print(f"lesson       {lesson}\\nprofile      {profile}")


start("01", profile="smoke")

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
def check_double(attempt):
    said = {None: "not solved yet. Return twice the number.", 6: "correct. Doubled."}
    print("Exercise 1:", said.get(attempt(3), "not yet. Twice 3 is 6."))
    return attempt(3) == 6


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
#     minutes: 4
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
def start(lesson, profile):
    print(f"profile      {profile}")


start("01a", profile="smoke")
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
_SOLUTIONS = ["number + number", "3 * number - number", "number - number + number + number", "sum([number, number])"]
_HEADER, _, _REST = LESSON.partition("# %% [markdown]")
_QUIZ = _REST.partition("\n# %% [markdown] tags")[2]
# A lesson that keeps all rules.
COMPLETE = (
    f"""\
{_HEADER}# %% [markdown]
# ## The question
#
# How large is twice a number?
#
# **Answer.** As large as the number and itself: twice three is six.

# %% tags=["install"]

# %%
start("01")

# %% [markdown]
# ## Doubling
#
# Now it is your turn in this lesson.
"""
    + "".join(_EXERCISE.format(number=number, solution=solution) for number, solution in enumerate(_SOLUTIONS, 1))
    + f"""
# %% [markdown]
# ## Quiz

# %% [markdown] tags{_QUIZ}
# %% [markdown]
# ## References
#
# - Nobody, 2016, arXiv 1608.08710, pages 1, 2, 3, 4, 5 and 6
"""
)
