"""The part of a rehearsal that runs inside the lesson's kernel, begun by a cell before the lesson's first one.

It sets up the pretended card, and writes down what each cell held, a line of JSON a cell.
"""

from __future__ import annotations

import ast
import json
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch

from course_tools.rehearsal.card import T4, Ledger
from course_tools.rehearsal.pretend_gpu import PretendGPU

_SAMPLING = 0.05  # seconds between two looks at the process's memory
_SPARE = 2_000_000_000  # bytes of this machine's memory that are left alone


def begin(record: str, share: float, shell: Any) -> Rehearsal:
    """Begin in this process.

    Args:
        record: the file that gets a line of JSON a cell.
        share: parameters of the model, as a share of Llama-3.2-1B's: the card is as much smaller.
        shell: IPython's, whose cells are the lesson's.
    """
    rehearsal = Rehearsal(Path(record), share, shell)
    rehearsal.card.install()
    leave_out_equalities(shell)
    read_documents_here()
    leave_out_the_engine()
    shell.events.register("pre_run_cell", rehearsal.before)
    shell.events.register("post_run_cell", rehearsal.after)
    return rehearsal


class Rehearsal:
    """Watches the cells of one lesson; arguments as in `begin`."""

    def __init__(self, record: Path, share: float, shell: Any) -> None:
        self._record = record
        card = replace(T4, memory=int(T4.memory * share))
        self.card = PretendGPU(card, names=lambda: shell.user_ns, spare=_SPARE)
        self.host = HostMemory(self.card.ledger)
        self.number = 0

    def before(self, info: Any) -> None:
        """A cell begins."""
        self.number += 1
        self.card.ledger.restart()
        self.host.restart()

    def after(self, result: Any) -> None:
        """A cell ended."""
        if not self.number:  # our own
            return
        found = {f"gpu_{name}": value for name, value in asdict(self.card.ledger.restart()).items()}
        found["host_peak"], found["host_holders"] = self.host.restart()
        with self._record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"number": self.number, **found}) + "\n")


class HostMemory:
    """The process's resident memory without what the pretended card holds: its peak, sampled by a thread.

    A tensor that is being freed leaves the card's count a moment before its memory is given back: a peak counts only
    where two samples in a row show it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._process = ledger, psutil.Process()
        self._lock = threading.Lock()
        self._peak, self._holders, self._told, self._last = 0, [], 0, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def restart(self) -> tuple[int, list[tuple[str, int]]]:
        """(Peak, what held it) so far; begin anew."""
        self._sample()
        with self._lock:
            found = self._peak, self._holders
            self._peak, self._holders, self._told = 0, [], 0
        return found

    def _watch(self) -> None:
        while True:
            time.sleep(_SAMPLING)
            self._sample()

    def _sample(self) -> None:
        now = self._process.memory_info().rss - self._ledger.alive
        with self._lock:
            sure, self._last = min(now, self._last), now
            if sure <= self._peak:
                return
            self._peak = sure
            if sure > 1.05 * self._told:
                self._told = sure
                self._holders = self._ledger.host_holders()


def leave_out_equalities(shell: Any) -> None:
    """Cells go on where numbers should be equal: large products of matrices are sampled, see `pretend_gpu`."""
    torch.testing.assert_close = np.testing.assert_allclose = lambda *args, **kwargs: None
    shell.ast_transformers.append(_WithoutAssertions())


class _WithoutAssertions(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)


def read_documents_here() -> None:
    """Benchmark documents come from the embedded asset: the loopback hub serves models only."""
    from course_utils import benchmark_tasks, session

    benchmark_tasks.session = SimpleNamespace(at_most=session.at_most, current_profile=lambda: "embedded")


def leave_out_the_engine() -> None:
    """Colab gets what the install cell installs: the course without the extra "engine"."""
    from course_utils import engine

    engine.problem = lambda: "The engine (llama.cpp, an optional extra) isn't installed here."
