"""Nothing that only tests use: each public function has a caller, each optional parameter somebody who passes it.

Callers are lessons, tools, experiments, benchmarks, the code in README and docs (which a reader copies, as a lesson's),
and library code that these reach.
"""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("lessons/**/*.py", "course_tools/**/*.py", "experiments/*.py", "benchmarks/*.py", "README.md", "docs/*.md")

# What stays without a caller, or in its own module, or unpassed; each with its reason.
_OUTER = "its name and signature are fixed: checks outside this repository rely on it"
_CHANNELS = "who cuts channels alone can rescale each norm by its own energies, as `compress.shrink` does"
_TOLD = "docstrings send readers to it"
UNCALLED = {
    "channels.channel_energies": _CHANNELS,
    "channels.channel_importance": _OUTER,
    "channels.prune_channels": _OUTER,
    "heads.head_importance": _OUTER,
    "heads.prune_kv_groups": _OUTER,
}
AT_HOME = {
    "activations.sites_of": _TOLD,
    "bias.contrastive.axes": _TOLD,
    "bias.contrastive.load_axis": _TOLD,
    "bias.reporting.analyse": _TOLD,
}
_DRAWS = "how many draws and from which seed is the reader's choice, as in scipy.stats"
UNPASSED = {
    "channels.prune_channels(energies)": _CHANNELS,
    "channels.prune_channels(rescale_norms)": _OUTER,
    "checkpoints.load_pruned(device)": "where a reader loads it",
    "checkpoints.load_pruned(dtype)": "in which numbers a reader loads it",
    "distillation.teacher_cache.cache_teacher(k)": "more tokens, less bias",
    "bias.pronouns.traced_log_odds(answers)": "a reader's question (lesson 08) goes to all four that read odds",
    "session.start(profile)": _OUTER,
    "texts.padded_batches(padding_side)": "to generate in batches, prompts stand at the right",
    "width.prune_neurons(multiple_of)": _OUTER,
    "uncertainty.bootstrap_interval(resamples)": _DRAWS,
    "uncertainty.bootstrap_interval(seed)": _DRAWS,
    "uncertainty.rank_correlation(resamples)": _DRAWS,
    "uncertainty.rank_correlation(seed)": _DRAWS,
    "uncertainty.sign_flip_p(resamples)": _DRAWS,
    "uncertainty.sign_flip_p(seed)": _DRAWS,
}


@dataclass(frozen=True)
class Parameter:
    """An optional parameter: of what, under which name it is called, and where it stands among positional ones."""

    owner: str
    callee: str
    name: str
    position: int | None

    def __str__(self):
        return f"{self.owner}({self.name})"


class Library:
    """A package, read as text: what its modules define, and which definition names which."""

    def __init__(self, root, package):
        self.package = package
        paths = sorted((root / package).rglob("*.py"))
        self.paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
        self.paths = {name.removesuffix(".__init__"): path for name, path in self.paths.items()}
        self.trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.paths.items()}
        self.imported = {name: self._imported(name) for name in self.trees}
        self.definitions = {
            (module, name): node for module, tree in self.trees.items() for node in tree.body for name in _defined(node)
        }

    def _imported(self, module):
        """{name in the module: (module, name) or (module, None)}, relative imports made whole."""
        is_package = self.paths[module].stem == "__init__"
        return _imported(self.trees[module], module.split(".")[: None if is_package else -1])

    def origin(self, module, name):
        """Where a name that is imported from a module is defined, or None."""
        while (module, name) not in self.definitions:
            if name is None or name not in self.imported.get(module, {}):
                return None
            module, name = self.imported[module][name]
        return module, name

    def named(self, tree, imported, module=None):
        """The definitions that some code names: imported ones, those of a module it imports, or of its own."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and module is None:
                places = [(node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Name):
                places = [(module, node.id), imported.get(node.id, (None, None))]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
                source, name = imported[node.value.id]
                places = [(f"{source}.{name}" if name else source, node.attr)]
            else:
                continue
            yield from filter(None, (self.origin(*place) for place in places))

    def reached(self, outside):
        """Every definition that code outside, or what a module does when it is imported, needs in the end."""
        todo = [found for tree in outside for found in self.named(tree, _imported(tree))]
        for module, tree in self.trees.items():
            for node in tree.body:
                if not (isinstance(node, ast.ImportFrom) or _defined(node)) or module.endswith("__main__"):
                    todo += self.named(node, self.imported[module], module)
        done = set()
        while todo:
            place = todo.pop()
            if place not in done:
                done.add(place)
                todo += self.named(self.definitions[place], self.imported[place[0]], place[0])
        return done

    def functions(self):
        """The public functions and classes: {(module, name): node}."""
        kinds = (ast.FunctionDef, ast.ClassDef)
        return {
            place: node
            for place, node in self.definitions.items()
            if isinstance(node, kinds) and not place[1].startswith("_")
        }

    def uncalled(self, outside):
        """Public functions and classes that nothing outside reaches."""
        reached = self.reached(outside)
        return {self._short(place) for place in self.functions() if place not in reached}

    def at_home(self, outside):
        """Public functions that no other module and nothing outside names: they are private."""
        abroad = {found for tree in outside for found in self.named(tree, _imported(tree))}
        for module, tree in self.trees.items():
            abroad |= {found for found in self.named(tree, self.imported[module], module) if found[0] != module}
        functions = {place for place, node in self.functions().items() if isinstance(node, ast.FunctionDef)}
        return {self._short(place) for place in functions & self.reached(outside) - abroad}

    def unpassed(self, outside):
        """Optional parameters of public functions and methods that no call passes."""
        calls = defaultdict(list)
        for tree in [*outside, *self.trees.values()]:
            imported = _imported(tree)
            for callee, positional, keywords in _calls(tree):
                _, own_name = self.origin(*imported.get(callee, (None, None))) or (None, callee)
                calls[own_name].append((positional, keywords))
        return {
            str(parameter)
            for place, node in self.functions().items()
            for parameter in _optional(self._short(place), node)
            if not any(_passes(parameter, *call) for call in calls[parameter.callee])
        }

    def _short(self, place):
        return ".".join(place).removeprefix(f"{self.package}.")


def _defined(node):
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _imported(tree, package=()):
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            names |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: (alias.name, None) for alias in node.names if alias.asname}
    return names


def _calls(tree):
    """(function's name, positional arguments, names of the others) of each call; None stands for ``**``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            callee, args = node.func, node.args
            if _name(callee) == "partial" and args:
                callee, args = args[0], args[1:]
            positional = 1000 if any(isinstance(arg, ast.Starred) for arg in args) else len(args)
            yield _name(callee), positional, {keyword.arg for keyword in node.keywords}


def _name(node):
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _optional(owner, node):
    """The optional parameters of a function, of a class's public methods, and of a dataclass's fields."""
    if isinstance(node, ast.FunctionDef):
        yield from _defaults(owner, node.name, node, bound=0)
        return
    is_dataclass = any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or not part.name.startswith("_")):
            callee = node.name if part.name == "__init__" else part.name
            static = any(_name(decorator) == "staticmethod" for decorator in part.decorator_list)
            yield from _defaults(f"{owner}.{part.name}", callee, part, bound=not static)
        elif isinstance(part, ast.AnnAssign) and part.value is not None and is_dataclass:
            yield Parameter(owner, node.name, part.target.id, 0)


def _defaults(owner, callee, function, bound):
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    for position, argument in enumerate(positional):
        if position >= len(positional) - len(arguments.defaults):
            yield Parameter(owner, callee, argument.arg, position - bound)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield Parameter(owner, callee, argument.arg, None)


def _passes(parameter, positional, keywords):
    by_place = parameter.position is not None and positional > parameter.position
    return by_place or bool({parameter.name, None} & keywords)


def outside(root, patterns=OUTSIDE):
    """The code around the library, parsed; of pages their Python blocks."""
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        yield ast.parse(re.sub(r"^\s*[%!].*", "", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def library():
    return Library(ROOT, "course_utils")


@pytest.fixture(scope="module")
def around():
    return list(outside(ROOT))


def test_each_public_function_has_a_caller(library, around):
    assert library.uncalled(around) == UNCALLED.keys()


def test_what_only_its_own_module_uses_is_private(library, around):
    assert library.at_home(around) == AT_HOME.keys()


def test_each_optional_parameter_is_passed(library, around):
    assert library.unpassed(around) == UNPASSED.keys()


HOUSE = {
    "house/__init__.py": "",
    "house/door.py": "from .room import used as known, Chair",
    "house/room.py": '''
from dataclasses import dataclass
from functools import partial

def used(a, b=1, *, c=2, d=3): return helper(a)
def helper(a, e=4): return a
def unused(): return unused()
def _private(): ...

@dataclass
class Chair:
    legs: int = 4
    colour: str = "red"

    def sit(self, longer=False, softly=True): ...
''',
    "tool.py": "from house.door import known\nfrom house import door\n"
    "known(1, c=3)\ndoor.Chair(3).sit(True)\nfrom functools import partial\npartial(used, d=2)",
}  # fmt: skip


def test_what_nobody_uses_is_noticed(tmp_path):
    for name, text in HOUSE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    house, tools = Library(tmp_path, "house"), list(outside(tmp_path, ["tool.py"]))
    assert house.uncalled(tools) == {"room.unused"}
    assert house.at_home(tools) == {"room.helper"}
    assert house.unpassed(tools) == {"room.used(b)", "room.helper(e)", "room.Chair.sit(softly)"}
