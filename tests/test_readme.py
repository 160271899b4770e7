"""README and the library's page say what is there: lessons, hours, downloads, commands, how others measured."""

import re
from pathlib import Path

import pytest

import course
from course_tools.lessons import authoring
from course_tools.lessons.notebooks import Course
from course_utils.text import assets

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
HEAD = " ".join(PAGE[: PAGE.index("![The same model")].split())
DOCS = ROOT / "docs"
COMPRESS, OTHERS = ((DOCS / page).read_text(encoding="utf-8") for page in ("compress.md", "beside_others.md"))
LESSONS = [authoring.read_lesson(path) for path in authoring.find_lessons(ROOT / "lessons")]


def rows(text, heading=None):
    """The cells of a table's rows, its head left out; of the text below a heading, up to the next one."""
    if heading:
        text = re.split(r"^##+ ", text.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_every_lesson_has_its_idea_and_what_one_has_at_its_end():
    numbers = [number for row in rows(PAGE, "What pruning is") for number in row[-1].split(", ")]
    assert numbers == [lesson.number for lesson in LESSONS]
    told = {row[0]: row[2] for row in rows(PAGE, "The lessons")}
    assert [*told] == numbers and all(told.values())


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/teaching.md"])
def test_how_to_get_the_course_stands_before_its_first_command(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    before = text[: re.search(r"python3? course\.py", text).start()]
    assert f"git clone https://github.com/{Course.read(ROOT).repository}" in before
    assert "ZIP" in before, "not everybody has git"


def test_what_it_costs_is_what_the_lessons_say_and_open():
    assert f"about {sum(lesson.minutes for lesson in LESSONS) / 60:.0f} hours of learning" in HEAD
    assert f"{course.NEEDED} GB of disk" in HEAD and f"{course.WITH_CUDA} GB of disk" in HEAD
    for told, lessons in (("{:.0f} MB for lesson 01", LESSONS[:1]), ("{:.0f} MB for all", LESSONS)):
        size = sum(assets.ASSETS[name].download_bytes for name in authoring.assets_of(lessons))
        assert told.format(size / 1e6) in HEAD


def test_commands_are_there():
    named = set(re.findall(r"python3? course\.py (\w+)", PAGE + COMPRESS))
    assert {"run", "test", "lab", "progress", "quiz", "verify", "check", "slides", "site", "compress"} <= named
    assert named <= set(course.COMMANDS)


def test_what_is_said_of_other_libraries_was_measured():
    """Each library's row of the benchmark stands below ours for the same criterion: (times, peak extra MiB)."""
    found, pairs = {}, []
    for row in rows((ROOT / "benchmarks" / "peers.md").read_text(encoding="utf-8")):
        times, peak = re.match(r"[\d.]+", row[2]), re.match(r"\d+", row[3])
        if ":" in row[0] and times and peak:
            found[row[0]] = values = float(times[0]), int(peak[0])
            if row[0].startswith("course_utils"):
                ours = values
            else:
                pairs.append((ours, values))
    assert len(pairs) >= 5 and all(one[0] < other[0] and one[1] < other[1] for one, other in pairs)
    told = {row[0]: row[1:] for row in rows(OTHERS, "Libraries")}
    assert told["peak memory and seconds of a width cut"] == [
        "like with like: least", "more than ours", "more than ours, and than optipfair's with L2"
    ]  # fmt: skip
    theirs, others = found["torch-pruning: L2, group mean"], found["optipfair: L2"]
    assert theirs[0] > others[0] and theirs[1] > others[1]
