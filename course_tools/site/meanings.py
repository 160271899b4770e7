"""Terms of the glossary in running text: the first mention on a page leads to its entry and shows it on hovering."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

# What is no running text: code, formulas, links, pictures, HTML, headings, rows of tables.
_OTHER = (
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*$|`[^`]*`|\$\$.*?\$\$|\$[^$]+\$|!?\[[^\]]*\]\([^)]*\)|https?://\S+|"
    r"<summary>.*?</summary>|<[^>]*>|^#+ [^\n]*$|^\|[^\n]*$"
)


def with_meanings(text: str, meanings: Mapping[str, str], seen: set[str], page: str) -> str:
    """A Markdown text, its terms linked where they are mentioned first.

    Args:
        text: one of a page's texts.
        meanings: what each term means, in Markdown.
        seen: terms that are linked already; those linked here are added.
        page: address of the glossary.
    """
    if not meanings:
        return text
    names = "|".join(map(_pattern, sorted(meanings, key=len, reverse=True)))
    known = {name.lower(): name for name in meanings}

    def link(found: re.Match) -> str:
        name = known.get(" ".join((found["term"] or "").lower().split()))
        if name is None or name in seen:
            return found[0]
        seen.add(name)
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`]", r"\1", meanings[name])
        title = html.escape(" ".join(plain.split()))
        return f'<a class="term" href="{page}#{entry_of(name)}" title="{title}">{found["term"]}{found["plural"]}</a>'

    pattern = rf"{_OTHER}|(?<![\w-])(?P<term>{names})(?P<plural>s?)(?![\w-])"
    return re.sub(pattern, link, text, flags=re.MULTILINE | re.DOTALL)


def entry_of(name: str) -> str:
    """A term's place in the glossary, as Sphinx names it."""
    return re.sub(r"[^a-zA-Z0-9._]+", "-", f"term-{name}").rstrip("-")


def _pattern(name: str) -> str:
    """The term as a sentence may have it: with a capital at its beginning, and broken over lines."""
    first = f"[{name[0].upper()}{name[0].lower()}]" if name[0].isalpha() and len(name) > 2 else re.escape(name[0])
    return first + r"\s+".join(map(re.escape, name[1:].split(" ")))
