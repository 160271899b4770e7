"""What a rehearsal changes in the lesson's kernel, and what it writes down for each cell."""

import ast
import inspect
import json
import sys
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pretend
import pytest
import torch

from course_tools.rehearsal import kernel
from course_tools.rehearsal.kernel import HostMemory, begin
from course_utils.measuring import benchmark_tasks
from course_utils.release import engine


def test_host_memory_is_what_the_card_does_not_hold(monkeypatch):
    resident = SimpleNamespace(rss=5_000)
    monkeypatch.setattr(kernel.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: resident))
    monkeypatch.setattr(kernel, "_SAMPLING", 3600)
    memory = HostMemory(SimpleNamespace(alive=2_000, host_holders=lambda: [("model a", 7)]))
    for resident.rss in (5_000, 5_000, 50_000):
        memory.sample()
    resident.rss = 6_000
    assert memory.restart() == (4_000, [("model a", 7)]), "one sample alone is a tensor being freed"


@pretend.POSSIBLE
def test_each_cell_is_written_down_on_a_machine_like_colabs(tmp_path, monkeypatch):
    embedded = datasets.Dataset.from_list([{"text": f"Number {number} is a number"} for number in range(20)])
    monkeypatch.setattr(benchmark_tasks, "_local_documents", lambda name: embedded)
    monkeypatch.setenv("COURSE_PROFILE", "hub")  # in which `datasets` would ask the hub
    events = {}
    shell = SimpleNamespace(user_ns={}, ast_transformers=[], events=SimpleNamespace(register=events.__setitem__))
    record = tmp_path / "cells.jsonl"
    with begin(str(record), 0.5, shell):
        events["post_run_cell"](None)  # of the rehearsal's own cell
        events["pre_run_cell"](None)
        held = torch.zeros(2**20, device="cuda")
        more = held + held
        del more
        time.sleep(0.2)
        events["post_run_cell"](None)
        assert torch.cuda.mem_get_info()[1] == int(14.7 * 2**30) // 2
        torch.testing.assert_close(torch.zeros(1), torch.ones(1))
        np.testing.assert_allclose(0, 1)
        assert not engine.available()
        (task,) = benchmark_tasks.build_tasks(["lambada_openai"], 12).values()
        assert len(list(task.test_docs())) == 8, "as many as make a batch of full size"
        (task,) = benchmark_tasks.build_tasks(["lambada_openai"], None).values()
        assert len(list(task.test_docs())) == 20, "all of them, where all are asked for"
    (written,) = map(json.loads, record.read_text().splitlines())
    assert (written["number"], written["gpu_peak"]) == (1, 2 * 4 * 2**20)
    assert written["host_peak"] > 10**8
    tree, names = ast.parse("for x in (1, 2):\n    assert x == 1\n    last = x"), {}
    exec(compile(shell.ast_transformers[0].visit(tree), "cell", "exec"), names)
    assert names["last"] == 2, "equalities are left out"
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.zeros(1), torch.ones(1))


@pytest.mark.parametrize("function", kernel.SAMPLES)
def test_a_function_whose_samples_are_lowered_takes_that_argument(function):
    parameter, most = kernel.SAMPLES[function]
    default = inspect.signature(function).parameters[parameter].default
    assert default is inspect.Parameter.empty or default > most
    assert getattr(sys.modules[function.__module__], function.__name__) is function
