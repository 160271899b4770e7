"""One list of dependencies, told the same everywhere; a complete wheel; and what surrounds a release."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packages import imported_as
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import course
from course_tools import cli, colab, command_line, matrix, requirements

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COURSE = PYPROJECT["project"], PYPROJECT["tool"]["course"]
EXTRAS = PROJECT["optional-dependencies"]
COLAB = colab.pins(colab.FREEZE.read_text(encoding="utf-8"))


def test_requirements_txt_agrees_with_pyproject():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == [*requirements.needed("course"), "-e ."]


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert (python, pip) == ("python" + PROJECT["requires-python"], "pip")
    assert packages == {"pip": ["-r requirements.txt"]}


def test_no_dependency_is_pinned():
    for text in requirements.needed("lessons"):
        assert all(part.operator in (">=", "<") for part in Requirement(text).specifier), text


@pytest.mark.parametrize("text", requirements.needed("lessons"))
def test_range_contains_what_colab_has(text):
    requirement = Requirement(text)
    version = COLAB.get(canonicalize_name(requirement.name))
    assert version is None or requirement.specifier.contains(version)


def test_everything_imported_is_declared():
    """The library imports its dependencies, and on demand its extras'; what makes the course also course and dev.

    Long runs compare themselves with the libraries of the extra "benchmarks".
    """
    brought = {"huggingface_hub", "tokenizers", "google"}  # by transformers; and by Colab, where google.colab is
    needed = {imported_as(text) for text in requirements.needed("lessons", "engine")} | brought | {"course_utils"}
    extras = {imported_as(text) for text in requirements.needed("browser", "dev")}
    extras |= {"course_tools", "experiments"}
    extras |= {"jupyter_client", "zmq"}  # ipykernel and nbclient bring them
    for folder, allowed in (
        ("course_utils", needed),
        ("course_tools", needed | extras),
        ("experiments", needed | extras | {imported_as(text) for text in EXTRAS["benchmarks"]}),
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
    assert "course_utils/py.typed" in packed
    assert licences == {"LICENSE", "LICENSE-prose"}


@pytest.mark.slow
def test_sdist_installs_without_the_repository(tmp_path):
    """sdist -> wheel -> pip, then used from elsewhere: nothing of the clone is in the way or needed."""
    pytest.importorskip("hatchling", reason="part of the extra dev")
    folder = tmp_path / "a folder of Zoë ラ"
    folder.mkdir()

    def run(command, place):
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONUTF8": "1"}
        done = subprocess.run(
            [sys.executable, *command], cwd=place, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[-2]

    def build(what, place):
        return ["-c", f"import sys; from hatchling.build import {what}; print({what}(sys.argv[1]))", str(place)]

    with tarfile.open(folder / run(build("build_sdist", folder), ROOT)) as sdist:
        sdist.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    wheel = folder / run(build("build_wheel", folder), source)
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run([*pip, "--target", str(folder / "site"), str(wheel), "-v"], folder)
    shutil.rmtree(source)
    program = (
        f"import sys; sys.path.insert(0, {str(folder / 'site')!r}); import course_utils; "
        "from course_utils.bias import contrastive; from course_utils.models.loading import load_model; "
        "print(course_utils.__file__, len(contrastive.axes()), load_model('gpt2')[0].num_parameters())"
    )
    file, axes, parameters = run(["-P", "-c", program], folder).rsplit(" ", 2)
    assert Path(file).is_relative_to(folder / "site") and int(axes) > 3 and int(parameters) > 1e6


def test_installed_packages_agree():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_repository_setting_has_the_right_form():
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", COURSE["repository"]) and COURSE["ref"]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


WORKFLOWS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")}
STEPS = [(name, step) for name, flow in WORKFLOWS.items() for job in flow["jobs"].values() for step in job["steps"]]


def test_workflows_may_only_read_and_end():
    assert set(WORKFLOWS) == {"lint", "tests", "lessons", "colab", "rehearsal", "site", "vllm"}
    for name, flow in WORKFLOWS.items():
        assert flow["permissions"] == {"contents": "read"}, name
        assert all(job["timeout-minutes"] <= 120 for job in flow["jobs"].values()), name
        more = {job: settings["permissions"] for job, settings in flow["jobs"].items() if "permissions" in settings}
        assert more == ({"publish": {"pages": "write", "id-token": "write"}} if name == "site" else {}), name


def test_workflows_run_on_supported_pythons():
    versions = {
        name: job["strategy"]["matrix"]["python"]
        for name, flow in WORKFLOWS.items()
        for job in flow["jobs"].values()
        if "python" in job.get("strategy", {}).get("matrix", {})
    }
    assert versions["tests"] == list(matrix.PYTHONS) and set(versions["lessons"]) <= set(matrix.PYTHONS)
    for name, step in STEPS:
        if "python-version" in step.get("with", {}):
            assert step["with"]["python-version"] in ("${{ matrix.python }}", colab.PYTHON), name


def test_every_lesson_is_rehearsed():
    (job,) = WORKFLOWS["rehearsal"]["jobs"].values()
    assert job["strategy"]["matrix"]["lesson"] == [path.name[:2] for path in sorted((ROOT / "lessons").glob("*.py"))]


def test_each_action_has_one_major_version_in_all_workflows():
    used = sorted({step["uses"] for _, step in STEPS if "uses" in step})
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
    names = [action.partition("@")[0] for action in used]
    assert len(set(names)) == len(names), used


def test_workflows_install_pytorch_without_cuda():
    """A local version such as 2.13.0+cpu comes before the same without it, so pip takes it from the second index."""
    assert Version("2.13.0") < Version("2.13.0+cpu")
    for name, flow in WORKFLOWS.items():
        assert flow["env"] == {"PIP_EXTRA_INDEX_URL": "https://download.pytorch.org/whl/cpu"}, name


def test_only_a_pull_request_is_cancelled_half_way():
    """A run on main publishes the site, or tells which commit broke it."""
    asked = {
        name: flow["concurrency"]["cancel-in-progress"] for name, flow in WORKFLOWS.items() if "concurrency" in flow
    }
    assert asked.keys() == {"lint", "tests", "site"}
    assert set(asked.values()) == {"${{ github.event_name == 'pull_request' }}"}


def test_dependabot_leaves_the_versions_that_the_benchmarks_are_about():
    actions, libraries = yaml.safe_load(text_of(".github/dependabot.yml"))["updates"]
    assert (actions["package-ecosystem"], libraries["package-ecosystem"]) == ("github-actions", "pip")
    ignored = {entry["dependency-name"] for entry in libraries["ignore"]}
    assert ignored == {Requirement(text).name for text in EXTRAS["benchmarks"]}


@pytest.mark.parametrize("command", [step["run"] for _, step in STEPS if "run" in step])
def test_workflows_run_what_a_person_would(command):
    check_command(command.split())


def test_hooks_exist():
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    for hook in local["hooks"]:
        check_command(hook["entry"].split())


def check_command(words):
    """Fail unless the command, its subcommand and the files that it names are there."""
    if words[:2] in (["python", "course.py"], ["python3", "course.py"]):
        args = command_line.parser(cli.COMMANDS, build=ROOT).parse_known_args(words[2:])[0]
        assert words[2] in course.COMMANDS and callable(args.command)
    elif words[:2] == ["python", "-m"]:
        assert words[2] == "pip" or importlib.util.find_spec(words[2])
    else:
        assert words[0] in ("curl", "sudo")
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).exists(), word


def test_unknown_commands_are_noticed():
    for command in (
        "python3 course.py walk",
        "python -m course_tools.walk",
        "make",
        "python3 course.py test tests/walk.py",
    ):
        with pytest.raises((AssertionError, SystemExit)):
            check_command(command.split())


FORMS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}


def test_forms_of_issues_are_as_github_reads_them():
    links = FORMS["config"]["contact_links"]
    assert all(link.keys() == {"name", "url", "about"} for link in links)
    for name in FORMS.keys() - {"config"}:
        assert {"name", "description", "body"} <= FORMS[name].keys(), name
        fields = [part["id"] for part in FORMS[name]["body"]]
        assert len(set(fields)) == len(fields), name
        for part in FORMS[name]["body"]:
            assert part["type"] in ("input", "textarea") and part["attributes"]["label"], name


def test_addresses_for_contributors_are_this_repositorys_and_its_sites():
    owner, name = COURSE["repository"].split("/")
    site, repository = f"https://{owner}.github.io/{name}/", f"https://github.com/{owner}/{name}/"
    texts = [path.read_text("utf-8") for path in (ROOT / ".github").rglob("*") if path.suffix in (".md", ".yml")]
    addresses = [found for text in texts for found in re.findall(r"https://[\w.-]*github\.(?:io|com)/[^\s)]+", text)]
    ours = [address for address in addresses if not address.startswith("https://docs.github.com/")]
    assert {f"{repository}security/advisories/new"} == {found for found in ours if not found.startswith(site)}
    pages = [ROOT / found.removeprefix(site).replace(".html", ".md") for found in ours if found.startswith(site)]
    assert pages and all(page.exists() for page in pages)


def test_citation_says_what_the_project_says():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert {key: citation[key] for key in ("cff-version", "type", "title", "version", "license", "abstract")} == {
        "cff-version": "1.2.0",
        "type": "software",
        "title": "Pruning LLMs",
        "version": PROJECT["version"],
        "license": PROJECT["license"],
        "abstract": PROJECT["description"],
    }
    assert citation["message"] and citation["keywords"] == PROJECT["keywords"]
    assert citation["authors"] == [{"name": "The Pruning LLMs authors"}]
    assert citation["repository-code"] == f"https://github.com/{COURSE['repository']}"


def test_changelog_keeps_its_form():
    sections = re.findall(r"^## (.*)$", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    kinds = re.findall(r"^### (.*)$", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", section) for section in sections[1:])
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
