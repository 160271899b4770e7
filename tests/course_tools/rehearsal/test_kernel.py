"""What a rehearsal changes in the lesson's kernel, and what it writes down for each cell."""

import ast
import json
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pretend
import torch

from course_tools.rehearsal import kernel
from course_tools.rehearsal.kernel import HostMemory, begin
from course_utils import engine


def test_equalities_are_left_out(monkeypatch):
    monkeypatch.setattr(torch.testing, "assert_close", torch.testing.assert_close)
    monkeypatch.setattr(np.testing, "assert_allclose", np.testing.assert_allclose)
    shell = SimpleNamespace(ast_transformers=[])
    kernel.leave_out_equalities(shell)
    torch.testing.assert_close(torch.zeros(1), torch.ones(1))
    np.testing.assert_allclose(0, 1)
    tree = ast.parse("for x in (1, 2):\n    assert x == 1\n    last = x")
    names = {}
    exec(compile(shell.ast_transformers[0].visit(tree), "cell", "exec"), names)
    assert names["last"] == 2


def test_documents_are_the_embedded_ones_and_few(monkeypatch):
    """In the hub profile, where `datasets` would ask the hub."""
    from course_utils import benchmark_tasks

    embedded = datasets.Dataset.from_list([{"text": f"Number {number} is a number"} for number in range(20)])
    monkeypatch.setenv("COURSE_PROFILE", "hub")
    monkeypatch.setenv("COURSE_SAMPLES", "3")
    monkeypatch.setattr(benchmark_tasks, "session", benchmark_tasks.session)
    monkeypatch.setattr(benchmark_tasks, "_local_documents", lambda name: embedded)
    kernel.read_documents_here()
    (task,) = benchmark_tasks.build_tasks(["lambada_openai"], 12).values()
    assert len(list(task.test_docs())) == 8, "as many as make a batch of full size"


def test_the_engine_is_not_there_as_on_colab(monkeypatch):
    monkeypatch.setattr(engine, "problem", engine.problem)
    kernel.leave_out_the_engine()
    assert not engine.available()
    assert "isn't installed" in engine.problem()


def test_host_memory_is_what_the_card_does_not_hold(monkeypatch):
    resident = SimpleNamespace(rss=5_000)
    monkeypatch.setattr(kernel.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: resident))
    monkeypatch.setattr(kernel, "_SAMPLING", 3600)
    memory = HostMemory(SimpleNamespace(alive=2_000, host_holders=lambda: [("model a", 7)]))
    memory._sample()
    memory._sample()
    resident.rss = 50_000
    memory._sample()
    resident.rss = 6_000
    memory._sample()
    assert memory.restart() == (4_000, [("model a", 7)]), "one sample alone is a tensor being freed"


@pretend.POSSIBLE
def test_each_cell_is_written_down(tmp_path, monkeypatch):
    from course_utils import benchmark_tasks

    monkeypatch.setattr(benchmark_tasks, "session", benchmark_tasks.session)  # as it was, for the tests that follow
    monkeypatch.setattr(engine, "problem", engine.problem)
    monkeypatch.setattr(torch.testing, "assert_close", torch.testing.assert_close)
    monkeypatch.setattr(np.testing, "assert_allclose", np.testing.assert_allclose)
    events = {}
    shell = SimpleNamespace(user_ns={}, ast_transformers=[], events=SimpleNamespace(register=events.__setitem__))
    record = tmp_path / "cells.jsonl"
    rehearsal = begin(str(record), 0.5, shell)
    try:
        events["post_run_cell"](None)  # of the rehearsal's own cell
        events["pre_run_cell"](None)
        held = torch.zeros(2**20, device="cuda")
        more = held + held
        del more
        time.sleep(0.2)
        events["post_run_cell"](None)
    finally:
        rehearsal.card.__exit__(None, None, None)
    (written,) = map(json.loads, record.read_text().splitlines())
    assert (written["number"], written["gpu_peak"]) == (1, 2 * 4 * 2**20)
    assert written["host_peak"] > 10**8
    assert rehearsal.card.ledger.card.memory == int(14.7 * 2**30) // 2
