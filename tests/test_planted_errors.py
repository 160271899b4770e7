"""Errors that change a result and raise nothing, planted one at a time: a test of the module itself finds each.

    python tests/test_planted_errors.py              plants them all, says which survive
    python tests/test_planted_errors.py width heads  those of these modules

About twenty that matter most, one or two for each thing that the library does; a list of all would be as long as the
library. As a test this file only asks that each can still be planted.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Error:
    """What is written in the place of what, in which module of ``course_utils``."""

    module: str
    right: str
    wrong: str

    @property
    def path(self):
        return Path("course_utils", *self.module.split(".")).with_suffix(".py")

    @property
    def tests(self):
        """The module's own, and those of what it is part of."""
        own = Path("tests") / self.path.with_name(f"test_{self.path.name}")
        return [own, *map(Path, BESIDE.get(self.module, ()))]

    def __str__(self):
        return f"{self.module}: {' '.join(self.right.split())} -> {' '.join(self.wrong.split()) or 'nothing'}"


_ALL_CUTS = "tests/test_surgery.py"
BESIDE = {
    "pruning.width": [_ALL_CUTS],
    "pruning.heads": [_ALL_CUTS],
    "pruning.channels": [_ALL_CUTS],
    "release.export": ["tests/course_utils/release/test_engine.py"],
    "text.own_rows": ["tests/course_utils/text/test_own_text.py"],
}
ERRORS = [
    Error("pruning.width", ".indices[:count].sort().values", ".indices[:count]"),
    Error("pruning.width", "[r.float() for r in mlp.rows]", "mlp.rows"),
    Error("pruning.width", "strongest(importance[layer], ratio", "strongest(importance[-1 - layer], ratio"),
    Error("pruning.experts", "added / asked.clamp(min=1)", "added / tokens"),
    Error("pruning.vocabulary", "rows = torch.tensor([*new])", "rows = torch.arange(len(new))"),
    Error("pruning.vocabulary", "worth[part] = max(worth[part], worth[token])", "worth[part] += worth[token]"),
    Error(
        "pruning.heads",
        "[best(scores, groups) for scores in importance]",
        "[best(importance[0], groups)] * len(importance)",
    ),
    Error("pruning.channels", "kept / total * energies.shape[1] / len(channels)", "kept / total"),
    Error("pruning.channels", "((norm_weight.float() + offset) * factor - offset)", "(norm_weight.float() * factor)"),
    Error("pruning.depth", "                note_sizes(module, layer_idx=number)\n", "                pass\n"),
    Error("pruning.depth", "after, reading.later)", "after, reading.real)"),
    Error("pruning.depth", "architecture.mlps[place].output", "architecture.mlps[place - 1].output"),
    Error(
        "pruning.attention",
        "        for layer in chosen:\n            _restore(architecture, layer)\n",
        "        pass\n",
    ),
    Error("pruning.checkpoints", "    architecture.sync_config()\n", ""),
    Error("measuring.abilities", "architecture.logits(chunk).float()", "architecture.logits(chunk)"),
    Error(
        "compress.search",
        "best(importance.groups[block], candidate.groups) for block in blocks",
        "best(importance.groups[block], candidate.groups) for block in range(len(blocks))",
    ),
    Error("compress.ranking", "        cast_weights(student, dtype)  # judged as it was before\n", ""),
    Error("healing.distillation.losses", "model.hidden_states(batch)[:, :-1]", "model.hidden_states(batch)[:, 1:]"),
    Error(
        "healing.distillation.training", "loss = loss_of(batch) / tokens", "loss = loss_of(batch) / _tokens([batch])"
    ),
    Error("healing.distillation.training", "_seed(recipe, step, number))", "_seed(recipe, step))"),
    Error("healing.solving", "theirs.move_to(ends[number])", "pass"),
    Error("healing.solving", "states.float() - mlp.down(x).float()", "states.float()"),
    Error("text.own_text", "document.learned for document in judging", "document.text for document in judging"),
    Error("text.batches", "& self.learned[:, 1:]", "& self.learned[:, :-1]"),
    Error("release.export", "tensor.weight.copy_(tensor.decoded())", "tensor.decoded()"),
    Error("release.vllm_folder", "torch.zeros_like(weight)", "weight"),
]


def planted(text, error):
    """The module's text with the error in it."""
    if text.count(error.right) != 1:
        raise ValueError(f"{error.module} must say {error.right!r} once, it does {text.count(error.right)} times.")
    return text.replace(error.right, error.wrong)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_error_can_be_planted(error):
    path = ROOT / error.path
    assert planted(path.read_text(encoding="utf-8"), error)
    assert all((ROOT / tests).exists() for tests in error.tests)


def killer(error):
    """The first test that fails with the error planted, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("course_utils", "course_tools", "docs", "experiments", "tests", "pyproject.toml"):
            copy = shutil.copy if (ROOT / part).is_file() else shutil.copytree
            copy(ROOT / part, Path(folder, part))
        path = Path(folder, error.path)
        path.write_text(planted(path.read_text(encoding="utf-8"), error), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "slow or not embedded", *map(str, error.tests)]
        environment = os.environ | {"PYTHONPATH": folder, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if not failed and done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return failed[0].partition("::")[2].partition(" - ")[0] if failed else ""


def main(names):
    modules = {error.module for error in ERRORS}
    if unknown := {*names} - modules:
        sys.exit(f"No error is planted in {', '.join(sorted(unknown))}; choose from {', '.join(sorted(modules))}.")
    survivors = 0
    for error in ERRORS:
        if not names or error.module in names:
            begin = time.monotonic()
            name = killer(error)
            survivors += not name
            print(f"{name or 'SURVIVES':60.60} {time.monotonic() - begin:4.0f} s  {error}", flush=True)
    print(f"{survivors} survive")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
