"""What pyproject.toml says of the package: its name, its versions, and what it needs with which extras."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

_FILE = Path(__file__).resolve().parents[1] / "pyproject.toml"


def project() -> dict[str, Any]:
    """The table `[project]`."""
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))["project"]


def needed(*extras: str) -> list[str]:
    """The requirements of the package with these extras, each once; what an extra takes from another is written out."""
    package = project()
    lines = [*package["dependencies"]]
    for extra in extras:
        for line in package["optional-dependencies"][extra]:
            requirement = Requirement(line)
            lines += needed(*sorted(requirement.extras)) if requirement.name == package["name"] else [line]
    return list(dict.fromkeys(lines))
