"""The README's figure comes out of the saved outputs of the one cell that draws it."""

import base64

import nbformat
import pytest

from course_tools.lessons import readme_figure


def notebook(folder, outputs):
    shown = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    code = nbformat.v4.new_code_cell(f"plot('{readme_figure.CELL} …')", outputs=shown)
    cells = [nbformat.v4.new_markdown_cell(readme_figure.CELL), nbformat.v4.new_code_cell("1 + 1"), code]
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "03_made_up.ipynb")


def test_figure_is_the_cells_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_figure, "ROOT", tmp_path)
    notebook(tmp_path, [{"text/plain": "<Figure>"}, {"image/png": base64.b64encode(b"a picture").decode()}])
    assert readme_figure.saved_figure() == b"a picture"
    notebook(tmp_path, [])
    with pytest.raises(ValueError, match="expected 1"):
        readme_figure.saved_figure()


def test_readme_shows_the_figure():
    shown = readme_figure.FIGURE.relative_to(readme_figure.ROOT).as_posix()
    assert readme_figure.FIGURE.exists()
    assert f"]({shown})" in (readme_figure.ROOT / "README.md").read_text(encoding="utf-8")
