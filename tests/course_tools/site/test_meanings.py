"""Terms in running text: linked once on a page, and nowhere but in prose."""

import re

import pytest

from course_tools.site.meanings import entry_of, with_meanings

MEANINGS = {
    "KV cache": 'Keys, *and* "values" of `x` ([more](y.md)).',
    "cache": "What is kept.",
    "chance": "Luck.",
    "p": "P.",
}


def terms_in(text, seen=None):
    found = with_meanings(text, MEANINGS, set() if seen is None else seen, "../glossary.html")
    assert re.sub(r'<a class="term"[^>]*>(.*?)</a>', r"\1", found, flags=re.DOTALL) == text, "nothing else changes"
    return re.findall(r'<a class="term"[^>]*>(.*?)</a>', found, re.DOTALL)


def test_first_mention_leads_to_its_entry_with_its_meaning():
    found = with_meanings("A KV cache and a KV cache.", MEANINGS, set(), "../glossary.html")
    assert found == (
        'A <a class="term" href="../glossary.html#term-KV-cache" title="Keys, and &quot;values&quot; of x (more).">'
        "KV cache</a> and a KV cache."
    )


def test_a_page_links_a_term_once_over_all_its_texts():
    seen = set()
    assert terms_in("By chance.", seen) == ["chance"] and terms_in("Chance again, and caches.", seen) == ["caches"]
    assert seen == {"chance", "cache"}


def test_capitals_plurals_and_broken_lines_are_mentions_and_parts_of_words_are_none():
    assert terms_in("Chances of a KV\ncache.") == ["Chances", "KV\ncache"]
    assert terms_in("mischance, chance-like, cached, P, **Chance.**") == ["Chance"]


@pytest.mark.parametrize(
    "other",
    [
        "`chance`", "# Of chance", "| chance | 1 |", "$chance$", "$$\nchance\n$$", "[chance](x.md)", "![chance](x.png)",
        "<summary>chance</summary>", '<b title="chance">', "https://x.org/chance", "```python\nchance\n```",
        "````{raw} html\n<p>\n```\nchance\n````",
    ],
)  # fmt: skip
def test_what_is_no_prose_stays(other):
    assert terms_in(f"One\n\n{other}\n\nBy chance.") == ["chance"]
    assert terms_in(other) == []


def test_without_terms_nothing_happens():
    assert with_meanings("chance", {}, set(), "x") == "chance"


def test_place_of_an_entry_is_as_sphinx_names_it():
    assert [entry_of(name) for name in ("A/A", "llama.cpp", "Q4_0", "block of 32")] == [
        "term-A-A", "term-llama.cpp", "term-Q4_0", "term-block-of-32",
    ]  # fmt: skip
