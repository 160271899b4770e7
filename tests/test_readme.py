"""The README says what is there: every lesson and command, the site, and the figures of the libraries beside ours."""

import re
import tomllib
from pathlib import Path

import pytest

import course
from course_tools.lessons import authoring

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
LESSONS = [authoring.read_lesson(path) for path in authoring.find_lessons(ROOT / "lessons")]
COURSE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]


def section(heading):
    """What stands below a heading, up to the next one."""
    return re.split(r"^##+ ", PAGE.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]


def rows(text):
    """The cells of a table's rows, its head left out."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_every_lesson_has_its_idea():
    numbers = [number for row in rows(section("What pruning is")) for number in row[-1].split(", ")]
    assert numbers == [lesson.number for lesson in LESSONS]


def test_every_lesson_says_what_one_has_at_its_end():
    told = {row[0]: row[2] for row in rows(section("The lessons"))}
    assert set(told) == {lesson.number for lesson in LESSONS}
    assert all(len(text.split()) > 8 for text in told.values())


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/teaching.md"])
def test_how_to_get_the_course_stands_before_its_first_command(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    before = text[: text.index("python course.py")]
    assert f"git clone https://github.com/{COURSE['repository']}" in before
    assert "ZIP" in before, "not everybody has git"


def test_both_commands_stand_before_anything_else_is_asked_for():
    begin = PAGE[: PAGE.index("## The lessons")]
    assert "python course.py run " in begin and "python course.py test " in begin


def test_badges_are_of_workflows_that_are_there_and_the_site_is_named():
    owner, name = COURSE["repository"].split("/")
    badges = re.findall(r"github\.com/([\w-]+/[\w-]+)/actions/workflows/([\w.]+)/badge\.svg", PAGE)
    assert {workflow for _, workflow in badges} == {"tests.yml", "lessons.yml", "site.yml"}
    assert all(repository == COURSE["repository"] for repository, _ in badges)
    assert all((ROOT / ".github/workflows" / workflow).exists() for _, workflow in badges)
    assert f"https://{owner}.github.io/{name}/" in PAGE[: PAGE.index("## The lessons")]


def test_commands_are_there():
    named = set(re.findall(r"python course\.py (\w+)", PAGE))
    assert named <= set(course.COMMANDS)
    assert {"run", "test", "lab", "progress", "quiz", "verify", "check", "slides", "site", "compress"} <= named


def peers():
    """{library and criterion: (× ours, peak extra MiB)} of the benchmark's page."""
    page = (ROOT / "benchmarks" / "peers.md").read_text(encoding="utf-8")
    found = {}
    for row in rows(page):
        times, peak = re.match(r"[\d.]+", row[2]), re.match(r"\d+", row[3])
        if ":" in row[0] and times and peak:
            found[row[0]] = (float(times[0]), int(peak[0]))
    return found


def test_what_is_said_of_other_libraries_was_measured():
    ours, pairs, found = (0.0, 0), [], peers()
    for name, values in found.items():
        if name.startswith("course_utils"):
            ours = values
        else:
            pairs.append((name, ours, values))
    assert len(pairs) >= 5
    told = {row[0]: row[1:] for row in rows(section("Beside other libraries"))}
    assert told["peak memory and seconds of a width cut"] == [
        "like with like: least", "more than ours", "more than ours, and than optipfair's with L2"
    ]  # fmt: skip
    for name, (one, least), (times, peak) in pairs:
        assert times > one and peak > least, name
    theirs, others = found["torch-pruning: L2, group mean"], found["optipfair: L2"]
    assert theirs[0] > others[0] and theirs[1] > others[1]


@pytest.mark.parametrize("table", ["Beside other courses", "Beside other libraries"])
def test_tables_have_sources(table):
    assert "](docs/beside_others.md" in section(table)
    sources = (ROOT / "docs" / "beside_others.md").read_text(encoding="utf-8").partition("## Sources")[2]
    for name, version in re.findall(r"\| (optipfair|Torch-Pruning) ([\d.]+)", section(table)):
        assert f"{name} {version}".lower() in sources.lower()
