"""Requirements and what one imports of them."""

from packaging.requirements import Requirement

_IMPORTED_AS = {
    "scikit-learn": "sklearn", "ipython": "IPython", "pillow": "PIL", "beautifulsoup4": "bs4",
    "markdown-it-py": "markdown_it", "sphinx-autoapi": "autoapi",
}  # fmt: skip


def imported_as(requirement):
    """The package that a line of pyproject.toml brings, as it is imported."""
    name = Requirement(requirement).name
    return _IMPORTED_AS.get(name, name.replace("-", "_"))
