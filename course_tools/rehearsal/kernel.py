"""The part of a rehearsal that runs inside the lesson's kernel; a cell before the lesson's first one begins it.

It sets up the pretended card, and writes down what each cell held, one line of JSON per cell.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch

from course_tools.rehearsal.card import T4, Holders, Ledger
from course_tools.rehearsal.pretend_gpu import PretendGPU
from course_utils.lessons.prompt_harm.prompts import cases
from course_utils.measuring import benchmark_tasks
from course_utils.measuring.abilities import ability_rows
from course_utils.measuring.benchmarking import take_turns
from course_utils.release import engine

_SAMPLING = 0.05  # seconds between two looks at the process's memory
# These functions repeat the same work with another sample. A few samples hold as much memory as many, so a rehearsal
# lowers the named argument to this number.
SAMPLES: dict[Callable[..., Any], tuple[str, int]] = {
    cases: ("count", 24),  # among so many prompts are some of nearly the least and the greatest length
    benchmark_tasks.build_tasks: ("limit", 8),  # documents that make a batch of full size
    ability_rows: ("most", 3),
    take_turns: ("rounds", 6),  # fewer give no interval
}


def begin(record: str, share: float, shell: Any) -> contextlib.ExitStack:
    """Begin in this process; what is returned ends it.

    Args:
        record: the file that gets a line of JSON per cell.
        share: parameters of the model, as a share of Llama-3.2-1B's: the card is as much smaller.
        shell: IPython's, whose cells are the lesson's.
    """
    card = PretendGPU(int(T4 * share), names=lambda: shell.user_ns)
    host, numbers = HostMemory(card.ledger), itertools.count()

    def before(info: object) -> None:
        card.ledger.restart()
        host.restart()

    def after(result: object) -> None:
        (gpu_peak, gpu_holders), (host_peak, host_holders) = card.ledger.restart(), host.restart()
        number = next(numbers)
        if number:  # not of our own cell
            found = {"number": number, "gpu_peak": gpu_peak, "gpu_holders": gpu_holders}
            with Path(record).open("a", encoding="utf-8") as file:
                file.write(json.dumps(found | {"host_peak": host_peak, "host_holders": host_holders}) + "\n")

    stack = contextlib.ExitStack()

    def replace_by(module: Any, name: str, value: object) -> None:
        stack.enter_context(mock.patch.object(module, name, value))

    # Equalities don't hold where large products of matrices are sampled, see `pretend_gpu`.
    replace_by(torch.testing, "assert_close", lambda *args, **kwargs: None)
    replace_by(np.testing, "assert_allclose", lambda *args, **kwargs: None)
    shell.ast_transformers.append(_WithoutAssertions())
    # Benchmark documents are the embedded ones, and Colab has no llama.cpp.
    replace_by(benchmark_tasks, "session", SimpleNamespace(current_profile=lambda: "embedded"))
    replace_by(engine, "problem", lambda: "The engine (llama.cpp, an optional extra) isn't installed here.")
    for function, (parameter, most) in SAMPLES.items():
        few = with_at_most(function, parameter, most)
        for module in [module for name, module in sys.modules.items() if name.startswith("course_utils.")]:
            if vars(module).get(function.__name__) is function:
                replace_by(module, function.__name__, few)
    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)
    stack.enter_context(card)
    return stack


def with_at_most(function: Callable[..., Any], parameter: str, most: int) -> Callable[..., Any]:
    """The function, with one argument lowered to ``most``; None stays, which asks for all there are."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def few(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        asked = bound.arguments[parameter]
        bound.arguments[parameter] = None if asked is None else min(asked, most)
        return function(*bound.args, **bound.kwargs)

    return few


class HostMemory:
    """The process's resident memory without what the pretended card holds: its peak, sampled by a thread.

    A tensor that is being freed leaves the card's count a moment before its memory is given back: a peak counts only
    where two samples in a row show it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._process, self._lock = ledger, psutil.Process(), threading.Lock()
        self._peak, self._told, self._last = 0, 0, 0
        self._holders: Holders = []
        threading.Thread(target=self._watch, daemon=True).start()

    def restart(self) -> tuple[int, Holders]:
        """The peak so far in bytes, and the models that held it; begin anew."""
        self.sample()
        with self._lock:
            found = self._peak, self._holders
            self._peak, self._told, self._holders = 0, 0, []
        return found

    def _watch(self) -> None:
        while True:
            time.sleep(_SAMPLING)
            self.sample()

    def sample(self) -> None:
        """Look once."""
        now = self._process.memory_info().rss - self._ledger.alive
        with self._lock:
            sure, self._last = min(now, self._last), now
            self._peak = max(self._peak, sure)
            if sure > 1.05 * self._told:
                self._told, self._holders = sure, self._ledger.host_holders()


class _WithoutAssertions(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)
