"""The part of a rehearsal that runs inside the lesson's kernel, begun by a cell before the lesson's first one.

It sets up the pretended card, makes samples smaller, and writes down what each cell needed, a line of JSON a cell.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from course_tools.rehearsal.card import T4, Card, Ledger
from course_tools.rehearsal.pretend_gpu import PretendGPU

ROWS, DOCUMENTS, CASES, STEPS, SEEDS = 8, 8, 24, 3, 3  # what is left of larger samples
# Each reduction as the report lists it.
REDUCED = (
    f"rows of text: {ROWS} of each domain and split",
    f"benchmark documents: {DOCUMENTS} a task, from the embedded asset, not from the hub",
    f"prompts of four kinds, to measure harm: {CASES}",
    f"steps of training: {STEPS}, unless the model is tiny",
    f"random seeds: {SEEDS}",
    "large products of matrices: one summand of 32",
    "equalities: not asserted, because such products break them",
)
TINY = 10_000_000  # parameters of a student that costs nothing to train
_SAMPLING = 0.05  # seconds between two looks at the process's memory
_SPARE = 2_000_000_000  # bytes of this machine's memory that are left alone


@dataclass(frozen=True)
class Plan:
    """What the kernel is told: where to write, and how much of the lesson's samples to take.

    Attributes:
        record: the file that gets a line of JSON a cell.
        share: parameters of the model, as a share of Llama-3.2-1B's: the card is as much smaller.
        reduced: smaller samples, of large products' summands, too.
    """

    record: str
    share: float
    reduced: bool


def begin(plan: Plan, shell: Any) -> Rehearsal:
    """Begin in this process; `shell` is IPython's, whose cells are the lesson's."""
    rehearsal = Rehearsal(plan, shell)
    rehearsal.card.install()
    run_one_round(rehearsal.card.ledger)
    if plan.reduced:
        reduce_samples(shell)
        leave_out_equalities(shell)
    read_documents_here()
    leave_out_the_engine()
    shell.events.register("pre_run_cell", rehearsal.before)
    shell.events.register("post_run_cell", rehearsal.after)
    return rehearsal


class Rehearsal:
    """Watches the cells of one lesson."""

    def __init__(self, plan: Plan, shell: Any) -> None:
        self.plan = plan
        card = Card(**asdict(T4) | {"memory": int(T4.memory * plan.share)})
        self.card = PretendGPU(card, sampled=plan.reduced, names=lambda: shell.user_ns, spare=_SPARE)
        self.host = HostMemory(self.card.ledger)
        self.number, self._began = 0, 0.0

    def before(self, info: Any) -> None:
        """A cell begins."""
        self.number += 1
        self._began = time.perf_counter()
        self.card.ledger.restart()
        self.host.restart()
        self._write({"cell": self.number, "begun": True})

    def after(self, result: Any) -> None:
        """A cell ended."""
        if not self.number:  # our own
            return
        count, host = self.card.ledger.restart(), self.host.restart()
        seconds = time.perf_counter() - self._began + count.repeated
        self._write(
            {"cell": self.number, "seconds": seconds, "left": self.card.ledger.alive}
            | {f"gpu_{name}": value for name, value in asdict(count).items()}
            | {"host_peak": host[0], "host_holders": host[1]}
        )

    def _write(self, line: Mapping[str, object]) -> None:
        with Path(self.plan.record).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


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


def reduce_samples(shell: Any) -> None:
    """Make samples smaller: the one place where a rehearsal takes less than the lesson asks for.

    Batches keep their size, and as many models are alive at once. Each entry of `REDUCED` is one of these.
    """
    import course_utils.texts as texts

    _fewer_rows(texts)
    import course_utils.benchmark_tasks as benchmark_tasks

    build = benchmark_tasks.build_tasks
    benchmark_tasks.build_tasks = lambda names, limit: build(names, limit and min(limit, DOCUMENTS))
    import course_utils.prompt_harm as prompt_harm

    prompt_harm.cases = _capped(prompt_harm.cases, count=lambda given: CASES)
    few = {name: (lambda given: CASES) for name in ("choosing", "judging")}
    prompt_harm.measure_record = _capped(prompt_harm.measure_record, **few)
    from course_utils.prompt_harm import record

    record.harm_at_random = _capped(record.harm_at_random, seeds=lambda given: SEEDS)
    _fewer_steps()
    from course_utils.bias import planting

    planting.plant_preference = _capped(planting.plant_preference, steps=lambda given: STEPS)
    import course_utils.bias as bias

    bias.plant_preference = planting.plant_preference
    shell.input_transformers_cleanup.append(_fewer_seeds)


def run_one_round(ledger: Ledger) -> None:
    """Contestants that take turns do the same in each: one round runs, without a warm-up, and all are counted."""
    from course_utils import benchmarking

    take_turns = benchmarking.take_turns

    @functools.wraps(take_turns)
    def one_round(laps: Mapping, *, rounds: int, warmups: int) -> dict:
        least, benchmarking.MIN_ROUNDS = benchmarking.MIN_ROUNDS, 1
        try:
            with ledger.standing_for(rounds + warmups):
                one = take_turns(laps, rounds=1, warmups=0)
        finally:
            benchmarking.MIN_ROUNDS = least
        return {name: rows * rounds for name, rows in one.items()}

    benchmarking.take_turns = one_round


def leave_out_equalities(shell: Any) -> None:
    """Cells go on where numbers should be equal: sampled products are those of another model each time."""
    torch.testing.assert_close = np.testing.assert_allclose = lambda *args, **kwargs: None
    shell.ast_transformers.append(_WithoutAssertions())


class _WithoutAssertions(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)


def read_documents_here() -> None:
    """Benchmark documents come from the embedded asset: the loopback hub serves models only."""
    import course_utils.benchmark_tasks as benchmark_tasks

    class Embedded:
        current_profile = staticmethod(lambda: "embedded")

    benchmark_tasks.session = Embedded


def leave_out_the_engine() -> None:
    """Colab gets what the install cell installs: the course without its optional extra."""
    from course_utils import engine

    engine.problem = lambda: "The engine (llama.cpp, an optional extra) isn't installed here."


def _capped(function: Callable, **limits: Callable[[Mapping], int]) -> Callable:
    """`function`, with keyword arguments held down to a limit, which may depend on the others."""
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}

    @functools.wraps(function)
    def capped(*args: Any, **given: Any) -> Any:
        for name, limit in limits.items():
            given[name] = min(given.get(name, defaults[name]), limit(given))
        return function(*args, **given)

    return capped


def _fewer_rows(texts: Any) -> None:
    """Blocks of at most `ROWS` rows that know how many were asked for: no slice is empty for want of rows."""
    token_blocks, sample, some = texts.token_blocks, texts.TokenBlocks.sample, texts.TokenBlocks.__getitem__

    def asked_for(blocks: Any, rows: int) -> Any:
        object.__setattr__(blocks, "asked", rows)
        return blocks

    @functools.wraps(token_blocks)
    def few(*args: Any, tokens: int = 8192, length: int = 256, **given: Any) -> Any:
        blocks = token_blocks(*args, tokens=min(tokens, ROWS * length), length=length, **given)
        return asked_for(blocks, tokens // length)

    def sliced(self: Any, rows: Any) -> Any:
        if not isinstance(rows, slice):
            return some(self, rows)
        asked = range(getattr(self, "asked", len(self)))[rows]
        return asked_for(some(self, [row % len(self) for row in asked[: min(ROWS, len(self))]]), len(asked))

    def drawn(self: Any, rows: int, seed: int) -> Any:
        asked = getattr(self, "asked", rows) if rows == len(self) else rows  # all that is there: maybe more were wanted
        return asked_for(sample(self, min(rows, len(self)), seed), asked)

    texts.token_blocks = few
    texts.TokenBlocks.sample = drawn
    texts.TokenBlocks.__getitem__ = sliced


def _fewer_steps() -> None:
    """Recipes take at most `STEPS`, except in training a `TINY` model."""
    from course_utils import distillation
    from course_utils.distillation import recipe

    check, train, most = recipe.Recipe.__post_init__, distillation.distill, [STEPS]

    def fewer(self: Any) -> None:
        check(self)
        object.__setattr__(self, "steps", min([self.steps, *most]))

    @functools.wraps(train)
    def distill(teacher: Any, student: Any, *args: Any, **given: Any) -> Any:
        if student.num_parameters() >= TINY:
            return train(teacher, student, *args, **given)
        most.clear()
        try:
            return train(teacher, student, *args, **given)
        finally:
            most.append(STEPS)

    recipe.Recipe.__post_init__ = fewer
    distillation.distill = distill


def _fewer_seeds(lines: list[str]) -> list[str]:
    """`SEEDS = range(19)` becomes `SEEDS = range(3)`, also where it stands beside other names."""
    pattern = re.compile(r"^((?:[A-Z_]+, )*[A-Z_]*SEEDS(?:, [A-Z_]+)* = .*?range\()(\d+)(\))")
    return [pattern.sub(lambda m: f"{m[1]}{min(int(m[2]), SEEDS)}{m[3]}", line) for line in lines]
