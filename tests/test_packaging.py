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
IMPORTED_AS = {"scikit-learn": "sklearn", "lm-eval": "lm_eval", "pillow": "PIL"}


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


def test_colab_list_is_read():
    assert COLAB["torch"] == "2.11.0" and COLAB["scikit-learn"] == "1.6.1" and len(COLAB) > 500
    assert colab.pins("# note\nA_b.c==1.0+x\nd @ file:///e\n") == {"a-b-c": "1.0+x"}


def test_colab_check_without_uv_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert colab.main([]) == 0
    assert capsys.readouterr().out.startswith("skipped: uv is not on the PATH")


def test_everything_imported_is_declared():
    """The package imports only its dependencies; the modules behind course.py may use the extras too."""
    names = [Requirement(text).name for text in [*PROJECT["dependencies"], *EXTRAS["course"], *EXTRAS["dev"]]]
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names} | {"course_utils", "huggingface_hub"}
    needed = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in map(name_of, PROJECT["dependencies"])}
    needed |= {"course_utils", "huggingface_hub", "tokenizers", "google"}  # transformers brings the first two
    for path in sorted((ROOT / "course_utils").rglob("*.py")):
        allowed = declared if path.stem in ("cli", "builder", "runner", "environment") else needed
        unknown = imports(path) - allowed - sys.stdlib_module_names
        assert not unknown, f"{path.name} imports {unknown}"


def name_of(text):
    return Requirement(text).name


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_wheel_is_complete(tmp_path):
    pytest.importorskip("hatchling", reason="part of the extra dev")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("course_utils/")}
        licences = {Path(name).name for name in wheel.namelist() if "/licenses/" in name}
    tree = {path for path in (ROOT / "course_utils").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packed == {path.relative_to(ROOT).as_posix() for path in tree}
    assert licences == {"LICENSE", "LICENSE-prose"}


def test_repository_setting_has_the_right_form():
    course = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", course["repository"]) and course["ref"]
