"""One list of dependencies, told the same everywhere; a complete wheel; and workflows that run what there is."""

import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packages import imported_as
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import course
from course_tools import cli, colab, command_line, requirements

ROOT = Path(__file__).resolve().parents[1]
PROJECT = requirements.project()
COLAB = colab.pins(colab.FREEZE.read_text(encoding="utf-8"))


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_other_lists_of_dependencies_agree_with_pyproject():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and line[0] != "#"] == [*requirements.needed("course"), "-e ."]
    python, pip, packages = read_yaml("environment.yml")["dependencies"]
    assert (python, pip) == ("python" + PROJECT["requires-python"], "pip")
    assert packages == {"pip": ["-r requirements.txt"]}
    assert read_yaml("CITATION.cff")["version"] == PROJECT["version"]


@pytest.mark.parametrize("text", requirements.needed("lessons"))
def test_a_dependency_is_a_range_that_contains_what_colab_has(text):
    requirement = Requirement(text)
    assert all(part.operator in (">=", "<") for part in requirement.specifier)
    version = COLAB.get(canonicalize_name(requirement.name))
    assert version is None or requirement.specifier.contains(version)


def test_everything_imported_is_declared():
    """The library imports its dependencies, and on demand its extras'; what makes the course also course and dev.

    Long runs compare themselves with the libraries of the extra "benchmarks".
    """
    brought = {"huggingface_hub", "tokenizers", "google"}  # by transformers; and by Colab, where google.colab is
    needed = {imported_as(text) for text in requirements.needed("lessons", "engine")} | brought | {"course_utils"}
    extras = {imported_as(text) for text in requirements.needed("browser", "dev")}
    extras |= {"course_tools", "experiments", "jupyter_client", "zmq"}  # ipykernel and nbclient bring the last two
    rivals = {imported_as(text) for text in PROJECT["optional-dependencies"]["benchmarks"]}
    for folder, allowed in (
        ("course_utils", needed),
        ("course_tools", needed | extras),
        ("experiments", needed | extras | rivals),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            unknown = imports(path) - allowed - sys.stdlib_module_names
            assert not unknown, f"{folder}/{path.name} imports {unknown}"


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
    assert "course_utils/py.typed" in packed and licences == {"LICENSE", "LICENSE-prose"}


def test_installed_packages_agree():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


JOBS = {
    name: job for path in (ROOT / ".github/workflows").glob("*.yml") for name, job in read_yaml(path)["jobs"].items()
}
HOOKS = [hook["entry"] for hook in read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]]


def test_workflows_try_every_lesson_and_every_python():
    lessons = [path.name[:2] for path in sorted((ROOT / "lessons").glob("*.py"))]
    assert JOBS["rehearse"]["strategy"]["matrix"]["lesson"] == lessons
    pythons = JOBS["fast"]["strategy"]["matrix"]["python"]
    assert pythons[0] == PROJECT["requires-python"].removeprefix(">=") and colab.PYTHON in pythons


@pytest.mark.parametrize(
    "command", [*HOOKS, *(step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step)]
)
def test_workflows_and_hooks_run_commands_and_tests_that_are_there(command):
    words = command.split()
    if words[:2] in (["python", "course.py"], ["python3", "course.py"]):
        args = command_line.parser(cli.COMMANDS, build=ROOT).parse_known_args(words[2:])[0]
        assert words[2] in course.COMMANDS and callable(args.command)
    elif words[:2] == ["python", "-m"]:
        assert words[2] == "pip" or importlib.util.find_spec(words[2])
    assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
