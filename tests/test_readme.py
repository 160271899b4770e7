"""README and the library's page say what is there: lessons, commands, the site, and what was measured of others."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import course
from course_tools.lessons import authoring
from course_utils.text import assets

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
LESSONS = [authoring.read_lesson(path) for path in authoring.find_lessons(ROOT / "lessons")]
COURSE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]


HEAD = PAGE[: PAGE.index("![The same model")]
LIBRARY = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def section(heading, page=PAGE):
    """What stands below a heading, up to the next one."""
    return re.split(r"^##+ ", page.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]


def rows(text):
    """The cells of a table's rows, its head left out."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_every_lesson_has_its_idea():
    numbers = [number for row in rows(section("What pruning is")) for number in row[-1].split(", ")]
    assert numbers == [lesson.number for lesson in LESSONS]
    assert "LAMBADA" in section("What pruning is")


def test_every_lesson_says_what_one_has_at_its_end():
    told = {row[0]: row[2] for row in rows(section("The lessons"))}
    assert set(told) == {lesson.number for lesson in LESSONS}
    assert all(len(text.split()) > 8 for text in told.values())


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/teaching.md"])
def test_how_to_get_the_course_stands_before_its_first_command(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    before = text[: re.search(r"python3? course\.py", text).start()]
    assert f"git clone https://github.com/{COURSE['repository']}" in before
    assert "ZIP" in before, "not everybody has git"


def test_first_lines_say_for_whom_it_is_and_what_it_costs():
    """Three ways in, the commands as they are typed, and hours that are the lessons' own."""
    assert len(HEAD.splitlines()) <= 17 and len(re.findall(r"^\| \*\*", HEAD, re.MULTILINE)) == 3
    assert "`python3 course.py lab`" in HEAD and "`py course.py lab`" in HEAD
    hours = sum(lesson.minutes for lesson in LESSONS) / 60
    assert f"about {hours:.0f} hours of learning" in " ".join(HEAD.split())
    disk = f"{course.NEEDED} GB of disk", f"{course.WITH_CUDA} GB of disk"
    assert all(words in HEAD for words in (*disk, "of memory", "of packages", "minutes and the download"))


def test_download_of_models_is_what_the_lessons_open():
    for told, lessons in (("{:.0f} MB for lesson 01", LESSONS[:1]), ("{:.0f} MB for all", LESSONS)):
        size = sum(assets.ASSETS[name].download_bytes for name in authoring.assets_of(lessons))
        assert told.format(size / 1e6) in HEAD


def test_words_are_few():
    """Besides tables, code and addresses."""
    prose = re.sub(r"^\|.*$|^```.*?^```|\]\([^)]*\)|^!\[.*$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) <= 1300


def test_commands_stand_before_the_lessons():
    begin = PAGE[: PAGE.index("## The lessons")]
    assert all(f"python3 course.py {name} " in begin for name in ("lab", "run", "test"))


def test_badges_are_of_workflows_that_are_there_and_the_site_is_named():
    owner, name = COURSE["repository"].split("/")
    badges = re.findall(r"github\.com/([\w-]+/[\w-]+)/actions/workflows/([\w.]+)/badge\.svg", PAGE)
    assert {workflow for _, workflow in badges} == {"tests.yml", "lessons.yml"}
    assert all(repository == COURSE["repository"] for repository, _ in badges)
    assert all((ROOT / ".github/workflows" / workflow).exists() for _, workflow in badges)
    assert f"https://{owner}.github.io/{name}/" in PAGE[: PAGE.index("## The lessons")]


def test_commands_are_there():
    named = set(re.findall(r"python3? course\.py (\w+)", PAGE + LIBRARY))
    assert named <= set(course.COMMANDS)
    assert {"run", "test", "lab", "progress", "quiz", "verify", "check", "slides", "site", "compress"} <= named


def test_commands_are_typed_as_in_the_readme():
    """macOS and Debian have no `python`; GitHub's machines have."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = [
        ROOT / name
        for name in listed.splitlines()
        if name.endswith((".py", ".md", ".yml")) and not name.startswith(".github/workflows")
    ]
    assert [page.name for page in pages if re.search(r"python (course|start)\.py", page.read_text("utf-8"))] == []


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
    told = {row[0]: row[1:] for row in rows(section("Beside other libraries", LIBRARY))}
    assert told["peak memory and seconds of a width cut"] == [
        "like with like: least", "more than ours", "more than ours, and than optipfair's with L2"
    ]  # fmt: skip
    for name, (one, least), (times, peak) in pairs:
        assert times > one and peak > least, name
    theirs, others = found["torch-pruning: L2, group mean"], found["optipfair: L2"]
    assert theirs[0] > others[0] and theirs[1] > others[1]


def test_table_has_sources():
    table = section("Beside other libraries", LIBRARY)
    assert "](beside_others.md" in table
    sources = (ROOT / "docs" / "beside_others.md").read_text(encoding="utf-8").partition("## Sources")[2]
    versions = re.findall(r"\| (optipfair|Torch-Pruning) ([\d.]+)", table)
    assert len(versions) == 2
    for name, version in versions:
        assert f"{name} {version}".lower() in sources.lower()
