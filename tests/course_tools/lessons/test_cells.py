"""The cells of a lesson: what a page shows of them, and what is folded."""

import nbformat

from course_tools.lessons.cells import EXERCISE, shown_outputs, without_folds
from course_utils.lessons.verdicts import CLAIMS


def test_a_page_shows_neither_claims_nor_standard_error():
    said, noise = (nbformat.v4.new_output("stream", name=name, text="x") for name in ("stdout", "stderr"))
    claims = nbformat.v4.new_output("display_data", data={CLAIMS: [], "text/plain": ""})
    assert shown_outputs(nbformat.v4.new_code_cell("x", outputs=[said, noise, claims])) == [said]


def test_what_is_folded_is_not_seen():
    text = "Try.\n\n<details><summary>Hint</summary>\n\nAdd.\n\n</details>\n\nOn.\n<details>\nMore.\n</details>"
    assert without_folds(text).split() == ["Try.", "On."]


def test_an_exercise_says_its_number_and_minutes():
    heading = EXERCISE.search("### Exercise 3 · ●●○ · 10 minutes\nDo it.")
    assert heading.groupdict() == {"number": "3", "difficulty": "●●○", "minutes": "10"}
    assert not EXERCISE.search("### Exercise 3 · 10 minutes")
