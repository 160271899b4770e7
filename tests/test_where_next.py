"""The page of further papers: each link is what its text says, once, and a lesson that is named cites the paper."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "where_next.md").read_text(encoding="utf-8")
PAPER = re.compile(
    r"\[arXiv (?P<number>\d{4}\.\d{5})\]\(https://arxiv\.org/abs/(?P<link>[\d.]+)\)(?:\s+\((?P<lessons>[^)]*)\))?"
)


def test_papers_are_cited_where_the_page_says():
    papers = [*PAPER.finditer(PAGE)]
    assert len({paper["number"] for paper in papers}) == len(papers) == PAGE.count("arxiv.org") > 20
    for paper in papers:
        assert paper["number"] == paper["link"]
        for lesson in re.findall(r"\d\d", paper["lessons"] or ""):
            (path,) = (ROOT / "lessons").glob(f"{lesson}_*.py")
            assert paper["number"] in path.read_text(encoding="utf-8").rpartition("# ## References")[2], path.name
