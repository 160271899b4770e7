"""The page of further papers: each link is what its text says, and a lesson that is named cites the paper."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "where_next.md").read_text(encoding="utf-8")
PAPER = re.compile(
    r"\[arXiv (?P<number>\d{4}\.\d{5})\]\(https://arxiv\.org/abs/(?P<link>[\d.]+)\)(?:\s+\((?P<in>[^)]*)\))?"
)
# Looked up on arXiv, since no lesson cites them.
BEYOND = (
    "2207.07061 2210.04337 2306.00978 2306.08543 2306.13649 2310.06694 2310.07707 2404.16710 "
    "2411.19146 2503.16870 2508.14444 2510.13999 2510.14444 2511.16664 2512.22671 2601.08584 2602.23795 "
    "2603.18492 2603.24652 2604.04356 2605.07271 2605.08137 2605.14075 2606.01850 2606.14150 2606.24970"
).split()


def cited():
    """{arXiv number: the lessons that have it among their references}."""
    found = {}
    for path in sorted((ROOT / "lessons").glob("*.py")):
        references = path.read_text(encoding="utf-8").rpartition("# ## References")[2]
        for number in set(re.findall(r"\b\d{4}\.\d{5}\b", references)):
            found.setdefault(number, []).append(path.name[:2])
    return found


def test_papers_are_cited_where_the_page_says():
    papers, known = [*PAPER.finditer(PAGE)], cited()
    assert len(papers) == PAGE.count("arxiv.org") > 20
    for paper in papers:
        number, lessons = paper["number"], re.findall(r"\d\d", paper["in"] or "")
        assert number == paper["link"]
        assert set(lessons) <= set(known.get(number, [])), f"{number} is cited in lessons {known.get(number)}"
        assert lessons or number in BEYOND, (
            f"{number}: name the lesson that cites it, or look it up and add it to BEYOND"
        )


def test_numbers_occur_once():
    numbers = [paper["number"] for paper in PAPER.finditer(PAGE)]
    assert len(numbers) == len(set(numbers)) and set(BEYOND) <= set(numbers)
