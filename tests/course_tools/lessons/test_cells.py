"""The cells of a lesson: tags, and what of their words is folded."""

import nbformat
import pytest

from course_tools.lessons.cells import EXERCISE, shown_and_folded, shown_outputs, tags_of, words_of
from course_utils.lessons.verdicts import CLAIMS


def text_cell(text, *tags):
    return nbformat.v4.new_markdown_cell(text, metadata={"tags": list(tags)} if tags else {})


def test_a_cell_without_tags_has_none():
    assert tags_of(text_cell("x")) == [] and tags_of(text_cell("x", "quiz")) == ["quiz"]


def test_a_page_shows_neither_claims_nor_standard_error():
    said, noise = (nbformat.v4.new_output("stream", name=name, text="x") for name in ("stdout", "stderr"))
    claims = nbformat.v4.new_output("display_data", data={CLAIMS: [], "text/plain": ""})
    assert shown_outputs(nbformat.v4.new_code_cell("x", outputs=[said, noise, claims])) == [said]


def test_a_fold_hides_what_is_in_it_but_its_summary():
    shown, folded = shown_and_folded(text_cell("Try.\n\n<details><summary>Hint</summary>\n\nAdd.\n\n</details>\n\nOn."))
    assert words_of(shown) == ["Try.", "Hint", "On."] and words_of(folded) == ["Add."]


def test_a_quiz_hides_its_reasons():
    shown, folded = shown_and_folded(text_cell("Why?\n\n- [ ] So.\n  > Not\n  > so.\n- [x] Or so.\n  > Yes.", "quiz"))
    assert words_of(shown) == ["Why?", "So.", "Or", "so."], "the mark of the right one is no word"
    assert words_of(folded) == ["Not", "so.", "Yes."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("One, two – three.", 3),
        ("before\n\n```python\nx = 1\n```\n\nafter", 2),
        ("[two words](https://example.org/a_b) of `code`", 4),
        ("| a | b |\n|---|---|\n| 1 | 2 |", 4),
        ("<br>", 0),
    ],
)
def test_words_are_what_one_reads(text, words):
    assert len(words_of(text)) == words, words_of(text)


def test_an_exercise_says_its_number_and_minutes():
    heading = EXERCISE.search("### Exercise 3 · ●●○ · 10 minutes\nDo it.")
    assert heading.groupdict() == {"number": "3", "difficulty": "●●○", "minutes": "10"}
    assert not EXERCISE.search("### Exercise 3 · 10 minutes")
