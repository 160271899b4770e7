"""The house: which layer may import which, one map of it, and a test module for every module.

After a change of modules, `python tests/test_house.py` writes the map in docs/house.md anew.
"""

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packages import imported_as
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_tools import requirements

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "docs" / "house.md"
BEGIN, END = "<!-- written by python tests/test_house.py -->\n", "<!-- end -->\n"

# From the ground up: a module imports only from its own layer and from those above it in this table.
# A package has one place; a room that is only planned may already have its own.
LIBRARY = {
    "opening": (
        "checks tensor_checks argument_types extras files roles session verdicts ledger assets hub embedded_llama "
        "models texts kinds text_files"
    ),
    "anatomy": (
        "hooks modeling batches own_text families parts architectures surgery refusals passes upper_blocks "
        "influence reports activations"
    ),
    "cutting": "choosing width experts heads channels depth attention adaptive healing",
    "measuring": (
        "divergence uncertainty language_modelling evaluation abilities records benchmark_tasks costs "
        "benchmarking plotting diagrams"
    ),
    "releasing": "checkpoints export vllm_folder engine model_card rivals",
    "wings": "distillation bias compress prompt_harm policies",
    "exercises": "exercises",
    "commands": "program command_line compress_command __main__",
}
TOOLS = {
    "ground": "processes requirements resolver",
    "source": "lessons",
    "rooms": "learner rehearsal site workshop",
    "commands": "environment colab matrix command_line terminal cli __main__",
}
LAYERS = {"course_utils": LIBRARY, "course_tools": TOOLS}
# Modules that hold no behaviour of their own need no test module of their own.
ENTRANCES = {
    "course_utils", "course_utils.modeling", "course_utils.plotting", "course_utils.prompt_harm",
    "course_utils.distillation", "course_utils.bias", "course_utils.compress", "course_utils.compress_command",
    "course_utils.exercises",
    "course_tools", "course_tools.lessons", "course_tools.learner",
    "course_tools.rehearsal", "course_tools.site", "course_tools.workshop",
}  # fmt: skip


def modules(root, package):
    """{dotted name: path} of a package's modules; the package itself is among them."""
    paths = sorted((root / package).rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(name, path, known):
    """Each (module, name in it or None) that a module imports, wherever the line stands; relative ones made whole."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                name.split(".")[: len(name.split(".")) - node.level + (path.stem == "__init__")] if node.level else []
            )
            source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield (whole, None) if whole in known else (source, alias.name)


def graph(root, package):
    """{module: the modules of the package that it imports}."""
    known = modules(root, package)
    return {
        name: {source for source, _ in imports(name, path, known) if source in known} for name, path in known.items()
    }


def room(name):
    """The part of a module's name that the table of layers knows."""
    return name.split(".")[1]


def layer_of(name, layers):
    found = [layer for layer, rooms in layers.items() if room(name) in rooms.split()]
    return found[0] if len(found) == 1 else None


def broken_walls(edges, layers):
    """What is wrong with the imports {module: modules}, a line each."""
    order = list(layers)
    rooms = [name for name in edges if "." in name]
    wrong = [
        f"{name} must stand in exactly one layer: add '{room(name)}' to LAYERS in tests/test_house.py"
        for name in rooms
        if layer_of(name, layers) is None
    ]
    for name in rooms:
        for source in sorted(edges[name]):
            if "." not in source:
                wrong.append(f"{name} imports the package's root")
                continue
            here, there = layer_of(name, layers), layer_of(source, layers)
            if here and there and order.index(there) > order.index(here):
                wrong.append(f"{name} ({here}) imports {source} ({there}), which lies above it")
    return wrong + [f"a circle: {' -> '.join(circle)}" for circle in circles(edges)]


def circles(edges):
    """One circle of imports for each module that closes one, as the names on the way."""
    found, done = [], set()

    def walk(name, way):
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for source in sorted(edges[name]):
                walk(source, [*way, name])
            done.add(name)

    for name in edges:
        walk(name, [])
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_nothing_imports_upward_or_in_a_circle(package):
    wrong = broken_walls(graph(ROOT, package), LAYERS[package])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", LAYERS)
def test_no_room_stands_in_two_layers(package):
    rooms = " ".join(LAYERS[package].values()).split()
    assert len(rooms) == len(set(rooms))


MADE_UP = {
    "__init__.py": "",
    "low.py": "def f():\n    from house.high import g\n    return g",
    "high.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.wing import door",
    "new.py": "import torch",
    "wing/__init__.py": "from .part import x",
    "wing/part.py": "from ..wing import other",
    "wing/other.py": "import house.low",
}


def test_the_wall_can_fail(tmp_path):
    for name, text in MADE_UP.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    edges = graph(tmp_path, "house")
    assert edges == {
        "house": set(),
        "house.high": {"house.wing"},
        "house.low": {"house.high"},
        "house.new": set(),
        "house.wing": {"house.wing.part"},
        "house.wing.other": {"house.low"},
        "house.wing.part": {"house.wing.other"},
    }
    assert broken_walls(edges, {"ground": "low", "methods": "high", "wings": "wing"}) == [
        "house.new must stand in exactly one layer: add 'new' to LAYERS in tests/test_house.py",
        "house.high (methods) imports house.wing (wings), which lies above it",
        "house.low (ground) imports house.high (methods), which lies above it",
        "a circle: house.high -> house.wing -> house.wing.part -> house.wing.other -> house.low -> house.high",
    ]


def test_private_names_stay_in_their_module():
    taken = [
        f"{name} takes {part} from {source}"
        for package in ("course_utils", "course_tools", "experiments")
        for name, path in modules(ROOT, package).items()
        for source, part in imports(name, path, modules(ROOT, "course_utils"))
        if source.startswith(("course_utils", "course_tools")) and part and part.startswith("_")
    ]
    assert not taken, "\n".join(taken)


def test_perplexity_has_one_door():
    takers = {
        name
        for package in ("course_utils", "course_tools", "experiments", "benchmarks", "lessons")
        for name, path in modules(ROOT, package).items()
        for source, part in imports(name, path, modules(ROOT, "course_utils"))
        if source == "course_utils.language_modelling" and part in ("perplexity", "Perplexity")
    }
    assert takers == {"course_utils.evaluation"}


def test_what_modules_take_from_each_other_is_assigned_by_itself():
    """The site's index of the library, whose build takes a minute, doesn't find a name that is assigned in a tuple."""
    together = {
        (name, target.id)
        for name, path in modules(ROOT, "course_utils").items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
        for target in node.targets[0].elts
    }
    taken = {
        (source, part)
        for name, path in modules(ROOT, "course_utils").items()
        for source, part in imports(name, path, modules(ROOT, "course_utils"))
    }
    assert len(together) > 20 and not together & taken


def test_library_knows_nothing_of_what_is_around_it():
    around = {"course_tools", "experiments", "benchmarks", "tests", "lessons", "course"}
    taken = {
        f"{name} imports {source}"
        for name, path in modules(ROOT, "course_utils").items()
        for source, _ in imports(name, path, {})
        if source.partition(".")[0] in around
    }
    assert not taken


def brought(names):
    """The distributions that installing these brings along, themselves included."""
    found, todo = set(), list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


IMPORT_WITHOUT = """
import importlib, sys

class Without:  # libraries probe for others: those must look absent, not broken
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

blocked, names = (argument.split() for argument in sys.argv[1:])
sys.meta_path[:] = map(Without, sys.meta_path)
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if "pip install 'pruning-llms[" not in str(error):
            raise
        print(name)
"""


def imported_without(blocked, names):
    command = [sys.executable, "-c", IMPORT_WITHOUT, " ".join(blocked), " ".join(names)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_module_imports_with_the_base_dependencies_alone():
    """Those that serve what an extra brings say so, and which."""
    base = brought(Requirement(text).name for text in requirements.needed())
    extras = {Requirement(text).name for text in requirements.needed("dev", "browser", "benchmarks")}
    names = [imported_as(name) for name in extras if canonicalize_name(name) not in base]
    assert {"jupytext", "pytest", "matplotlib", "lm_eval", "sklearn"} <= {*names}
    done = imported_without(names, modules(ROOT, "course_utils"))
    assert done.returncode == 0, done.stderr
    assert {name.split(".")[1] for name in done.stdout.split()} == {
        "benchmark_tasks", "diagrams", "engine", "export", "plotting",
    }  # fmt: skip


def test_blocked_packages_are_missed():
    done = imported_without(["torch"], ["course_utils.influence"])
    assert done.returncode == 1 and "No module named 'torch'" in done.stderr


def mirrored(name):
    """Where the tests of a module stand: a package's __init__ is tested in test_FOLDER.py inside its folder."""
    path = modules(ROOT, name.partition(".")[0])[name].relative_to(ROOT)
    stem = path.parent.name if path.stem == "__init__" else path.stem
    return ROOT / "tests" / path.with_name(f"test_{stem}.py")


TESTED = [
    name
    for package in LAYERS
    for name in modules(ROOT, package)
    if not name.endswith(".__main__")  # a few lines that only a process of its own can run: tests/test_course.py
]


@pytest.mark.parametrize("name", sorted(set(TESTED) - ENTRANCES))
def test_module_has_a_test_module(name):
    assert mirrored(name).exists(), f"write {mirrored(name).relative_to(ROOT)}"


def test_entrances_only_import():
    for name in ENTRANCES:
        path = modules(ROOT, name.partition(".")[0])[name]
        kinds = {type(node) for node in ast.parse(path.read_text(encoding="utf-8")).body}
        assert kinds <= {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign}, name


def test_test_modules_mirror_a_module():
    expected = {mirrored(name) for name in TESTED}
    present = {path for package in LAYERS for path in (ROOT / "tests" / package).rglob("*.py")}
    strangers = {path.relative_to(ROOT).as_posix() for path in present - expected if path.name != "conftest.py"}
    assert not strangers, f"no module of that name: {strangers}"


def first_line(path):
    """The first line of a module's docstring."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]


def drawing(package):
    """The layers and their rooms, for Mermaid; an arrow for imports that no way over another layer already shows."""
    edges, layers = graph(ROOT, package), LAYERS[package]
    below = {layer: set() for layer in layers}
    for name in edges:
        for source in edges[name]:
            here, there = layer_of(name, layers), layer_of(source, layers)
            below[here] |= {there} - {here}
    lines = ["flowchart TB", f"    accTitle: Layers of {package}"]
    lines.append(f"    accDescr: From the top down: {', '.join(reversed(layers))}. Each imports only from lower ones.")
    for layer, rooms in reversed(layers.items()):
        present = [place for place in rooms.split() if f"{package}.{place}" in edges]
        lines.append(f'    {layer}["<b>{layer}</b><br>{" · ".join(present)}"]')
        over = set().union(*(below[other] for other in below[layer]))
        lines += [f"    {layer} --> {other}" for other in layers if other in below[layer] - over]
    return "\n".join(["```mermaid", *lines, "```"])


def table(rows, head):
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def house_map():
    """What docs/house.md shows between its markers."""
    parts = []
    for package, layers in LAYERS.items():
        names = modules(ROOT, package)
        rows = [
            (layer, f"`{name.partition('.')[2]}`", first_line(names[name]))
            for layer, rooms in layers.items()
            for place in rooms.split()
            for name in names
            if "." in name and room(name) == place
        ]
        parts += [section(package), drawing(package), table(rows, ("layer", "module", "holds"))]
    names = modules(ROOT, "experiments")
    held = [(f"`{name.partition('.')[2]}`", first_line(path)) for name, path in names.items() if "." in name]
    parts += [section("experiments"), table(held, ("module", "holds"))]
    return "\n\n".join(parts) + "\n"


def section(package):
    return f"### `{package}`\n\n{first_line(ROOT / package / '__init__.py')}"


def with_map(text):
    """The page with its map written anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + house_map() + END + rest.partition(END)[2]


def test_map_shows_the_house():
    text = MAP.read_text(encoding="utf-8")
    assert text == with_map(text), "python tests/test_house.py writes it anew"


PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
]
PAGES.remove(ROOT / "docs" / "index.md")  # names pages that the site writes; the site's own build checks its links
FOLDERS = "benchmarks|course_tools|course_utils|docs|experiments|lessons|notebooks|tests"


def missing(text):
    """The files and tests that a page names in backticks, or links to, and that aren't there."""
    named = re.findall(rf"`((?:{FOLDERS})/[^`\s*]+)`", text) + re.findall(r"\]\(((?!https?:|#)[^)]+)\)", text)
    for name in named:
        place, _, test = name.replace("NN_slug", "01_*").replace("NN", "01").partition("::")
        file, _, heading = place.partition("#")
        found = [path for folder in (ROOT, ROOT / "docs") for path in folder.glob(file)]
        text = found[0].read_text(encoding="utf-8") if found and found[0].suffix in (".md", ".py") else ""
        headings = [*map(slug, re.findall(r"^#+ (.+)", text, re.MULTILINE)), ""]
        if not found or (test and f"def {test}(" not in text) or heading not in headings:
            yield name


def slug(heading):
    """The address of a heading within its page, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_pages_name_what_is_there(page):
    assert not [*missing(page.read_text(encoding="utf-8"))]


def test_each_workflow_is_explained():
    rows = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert f"| `{workflow.name}` |" in rows, f"CONTRIBUTING says what {workflow.name} proves, and how to repeat it"


def test_what_is_not_there_is_noticed():
    there = "`tests/tiny.py`, `tests/test_house.py::missing`, [how](authoring.md#the-source), `lessons/NN_slug.py`"
    assert not [*missing(there)]
    gone = "`tests/test_houses.py`, `tests/test_house.py::test_gone`, [how](docs/author.md), [why](authoring.md#why)"
    assert [*missing(gone)] == [
        "tests/test_houses.py", "tests/test_house.py::test_gone", "docs/author.md", "authoring.md#why",
    ]  # fmt: skip


if __name__ == "__main__":
    MAP.write_text(with_map(MAP.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
