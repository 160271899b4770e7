"""Colab's list is read as pip freeze wrote it, and the check says when it can't be made."""

import pytest

from course_tools import colab, resolver


def test_list_is_read():
    pins = colab.pins(colab.FREEZE.read_text(encoding="utf-8"))
    assert pins["torch"] == "2.11.0" and pins["scikit-learn"] == "1.6.1" and len(pins) > 500
    text = "# note\nA_b.c==1.0+x\n    # via y\nd @ file:///e\nf==2 ; sys_platform == 'linux' \\\n    --hash=0\n"
    assert colab.pins(text) == {"a-b-c": "1.0+x", "f": "2"}


def test_added_packages_are_told_and_kept_ones_counted(monkeypatch, capsys):
    monkeypatch.setattr(colab, "resolve", lambda *_: {"torch": "2.11.0", "lm-eval": "0.4.13", "nvidia-cublas": "1"})
    assert colab.main([]) == 0
    out = capsys.readouterr().out
    assert "1 of the packages needed are there already, 1 are added:\n  lm-eval==0.4.13\n" in out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (resolver.ResolverError("uv could not be installed"), "uv could not be installed"),
        (RuntimeError("torch can't be both"), "without changing one:\ntorch can't be both"),
    ],
)
def test_check_that_fails_or_cannot_be_made_is_a_failure(error, said, monkeypatch, capsys):
    def resolve(*_):
        raise error

    monkeypatch.setattr(colab, "resolve", resolve)
    assert colab.main([]) == 1
    assert f"{said}\n" in capsys.readouterr().out
