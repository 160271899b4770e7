"""Names of modules from before version 0.2, for one release: ``course_utils.width`` leads to ``pruning.width``."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_IN = {
    "support": "checks extras files ledger plotting records session uncertainty",
    "text": "assets batches kinds own_text",
    "models": "architectures embedded_llama families hub modeling parts refusals reports",
    "pruning": "activations adaptive attention channels checkpoints depth experts heads width",
    "measuring": "abilities benchmark_tasks benchmarking costs evaluation language_modelling",
    "healing": "distillation",
    "release": "engine export model_card rivals vllm_folder",
    "compress": "command_line program",
    "lessons": "diagrams exercises policies prompt_harm verdicts",
}
_RENAMED = {
    "argument_types": "support.checks",
    "distillation.adapters": "healing.distillation.weights",
    "distillation.history": "healing.distillation.checkpoint",
    "distillation.state": "healing.distillation.checkpoint",
    "divergence": "support.uncertainty",
    "roles": "support.session",
    "tensor_checks": "support.checks",
    "text_files": "text.files",
    "texts": "text",  # its functions are in several modules
    "choosing": "pruning.width",
    "passes": "pruning.activations",
    "surgery": "pruning.channels",
    "upper_blocks": "pruning.activations",
}
MOVED = {room: f"{package}.{room}" for package, rooms in _IN.items() for room in rooms.split()} | _RENAMED


class _Finder(MetaPathFinder):
    """Finds a module under its old name, and what lies in it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, old = fullname.partition(".")
        first, _, inner = old.partition(".")
        if root != "course_utils" or first not in MOVED:
            return None
        now = MOVED.get(old, MOVED[first] + (f".{inner}" if inner else ""))
        return ModuleSpec(fullname, _Now(f"course_utils.{now}"))


class _Now(Loader):
    """Gives the module that stands at a new place; there is no second copy of it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(
            f"{spec.name} is {self._name} since version 0.2, and its old name goes with version 0.3. Most names can be "
            f"imported from {'.'.join(self._name.split('.')[:2])}.",
            FutureWarning,
            stacklevel=2,
        )
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # what importing it under another name has exchanged


def redirect_old_names() -> None:
    """Let imports of old names work, with a warning that tells the new one."""
    sys.meta_path.insert(0, _Finder())
