"""What the site needs of Sphinx that nobody ships.

Mathematics as MathML, which browsers read without any script; and an API reference that doesn't read torch, with lists
of names that fit a phone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from astroid.exceptions import AstroidImportError
from astroid.manager import AstroidManager
from autoapi.directives import AutoapiSummary
from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

if TYPE_CHECKING:
    from astroid.nodes import Module
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer; `html_math_renderer = "mathml"` in conf.py chooses it."""
    _read_our_own_modules_only()
    _list_names_alone()
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, _leave), block_renderers=(_block, _leave))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    # Focusable, because a formula wider than the screen scrolls.
    translator.body.append(f'<div class="math" tabindex="0">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode


def _leave(translator: HTML5Translator, node: nodes.Element) -> None:
    """Nothing: the node was skipped."""


def _read_our_own_modules_only() -> None:
    """Keep sphinx-autoapi from following decorators into other packages: that reads most of torch, minutes long."""
    read = AstroidManager.ast_from_module_name
    known = {"course_utils", *sys.stdlib_module_names}

    def read_known(manager: AstroidManager, name: str, *rest: object, **options: object) -> Module:
        if name.partition(".")[0] not in known:
            raise AstroidImportError(f"{name} is not the course's.", modname=name)
        return read(manager, name, *rest, **options)

    AstroidManager.ast_from_module_name = read_known


def _list_names_alone() -> None:
    """Keep signatures out of sphinx-autoapi's lists of names: they can't wrap, and each stands at its own place."""
    items = AutoapiSummary.get_items

    def without_signatures(directive: AutoapiSummary, names: list[str]) -> list[tuple[str, str, str, str]]:
        return [(name, "", summary, full) for name, _, summary, full in items(directive, names)]

    AutoapiSummary.get_items = without_signatures
