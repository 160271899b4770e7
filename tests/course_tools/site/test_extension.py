"""Mathematics without a script, and an API reference that stays in our own modules."""

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx", reason="part of the extra site")

from astroid.exceptions import AstroidImportError
from astroid.manager import AstroidManager
from autoapi.directives import AutoapiSummary
from docutils import nodes

from course_tools.site import extension


def rendered(render, node):
    translator = SimpleNamespace(body=[])
    with pytest.raises(nodes.SkipNode):
        render(translator, node)
    return "".join(translator.body)


def test_a_formula_becomes_mathml():
    inline = rendered(extension._inline, nodes.math("", r"\frac{1}{k+1}"))
    assert inline.startswith("<math") and "<mfrac>" in inline and "script" not in inline
    block = rendered(extension._block, nodes.math_block("", r"x_i^2 < \alpha"))
    assert '<div class="math" tabindex="0">' in block and 'display="block"' in block and "&lt;" in block


def test_other_packages_are_not_read(monkeypatch):
    monkeypatch.setattr(AstroidManager, "ast_from_module_name", AstroidManager.ast_from_module_name)
    extension._read_our_own_modules_only()
    with pytest.raises(AstroidImportError):
        AstroidManager().ast_from_module_name("torch")
    assert AstroidManager().ast_from_module_name("json").name == "json"
    assert "json" in sys.stdlib_module_names


def test_lists_of_names_have_no_signatures(monkeypatch):
    items = [("f", "(x, y)", "What it does.", "m.f")]
    monkeypatch.setattr(AutoapiSummary, "get_items", lambda directive, names: items)
    extension._list_names_alone()
    assert AutoapiSummary.get_items(None, ["m.f"]) == [("f", "", "What it does.", "m.f")]
