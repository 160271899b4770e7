"""How a lesson's minutes divide over its sections, from its source: the header and the exercises' headings."""

from __future__ import annotations

import re

from course_tools.lessons.authoring import Lesson, tags_of

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_EXERCISE = re.compile(r"^### Exercise \d+ · [●○]{3} · (\d+) minutes$", re.MULTILINE)
_OF_A_CODE_CELL = 60  # words of text that take about as long as running a cell and looking at what it shows


def minutes_of(lesson: Lesson) -> dict[str, int]:
    """Minutes for each section of a lesson, by its heading; they add up to the header's.

    An exercise takes what its heading says. The rest divides by how much there is to read and to run.
    """
    weights, exercises, heading = {"": 0}, {"": 0}, ""
    for cell in lesson.cells:
        if {"install", "notes"} & set(tags_of(cell)):
            continue
        if cell.cell_type == "code":
            weights[heading] += _OF_A_CODE_CELL * ("exercise" not in tags_of(cell))
            continue
        for part in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE):
            heading = (_SECTION.match(part) or [None, heading])[1]
            weights[heading] = weights.get(heading, 0) + len(part.split()) * (not _EXERCISE.search(part))
            exercises[heading] = exercises.get(heading, 0) + sum(map(int, _EXERCISE.findall(part)))
    rest = lesson.minutes - sum(exercises.values())
    total, spent, minutes, so_far = sum(weights.values()) or 1, 0, {}, 0
    for heading, weight in weights.items():
        so_far += weight
        here = round(rest * so_far / total) - spent  # rounding must not lose or win a minute
        spent += here
        minutes[heading] = here + exercises[heading]
    before = minutes.pop("")  # what stands above the first heading counts with it
    if not minutes:
        return {"": before}
    first, *_ = minutes
    minutes[first] += before
    return minutes
