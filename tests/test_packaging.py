"""One list of dependencies, told the same everywhere, that fits Colab; and a wheel that is complete."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from course_tools import colab

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL"}
COLAB = colab.pins(colab.FREEZE.read_text(encoding="utf-8"))


def test_requirements_txt_agrees_with_pyproject():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == [*PROJECT["dependencies"], *EXTRAS["course"], "-e ."]


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert (python, pip) == ("python" + PROJECT["requires-python"], "pip")
    assert packages == {"pip": ["-r requirements.txt"]}


def test_no_dependency_is_pinned():
    for text in PROJECT["dependencies"]:
        assert all(part.operator in (">=", "<") for part in Requirement(text).specifier), text


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_range_contains_what_colab_has(text):
    requirement = Requirement(text)
    version = COLAB.get(colab.normalise(requirement.name))
    assert version is None or requirement.specifier.contains(version)


def test_everything_imported_is_declared():
    """The library imports only its dependencies; what makes the course may import the extras course and dev too."""
    brought = {"huggingface_hub", "tokenizers", "google"}  # by transformers; and by Colab, where google.colab is
    needed = {imported_as(text) for text in PROJECT["dependencies"]} | brought | {"course_utils"}
    extras = {imported_as(text) for text in [*EXTRAS["course"], *EXTRAS["dev"]]} | {"course_tools", "experiments"}
    for folder, allowed in (
        ("course_utils", needed),
        ("course_tools", needed | extras),
        ("experiments", needed | extras),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            unknown = imports(path) - allowed - sys.stdlib_module_names
            assert not unknown, f"{folder}/{path.name} imports {unknown}"


def imported_as(text):
    name = Requirement(text).name
    return IMPORTED_AS.get(name, name.replace("-", "_"))


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_wheel_holds_the_library_and_nothing_else(tmp_path):
    pytest.importorskip("hatchling", reason="part of the extra dev")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = {Path(name).name for name in wheel.namelist() if "/licenses/" in name}
    tree = {path for path in (ROOT / "course_utils").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packed == {path.relative_to(ROOT).as_posix() for path in tree}
    assert "course_utils/py.typed" in packed
    assert licences == {"LICENSE", "LICENSE-prose"}


def test_repository_setting_has_the_right_form():
    course = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", course["repository"]) and course["ref"]
