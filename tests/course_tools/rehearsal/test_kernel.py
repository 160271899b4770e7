"""What a rehearsal makes smaller, and what it writes down for each cell."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pretend
import torch

from course_tools.rehearsal import kernel
from course_tools.rehearsal.card import T4, Ledger
from course_tools.rehearsal.kernel import HostMemory, Plan, begin
from course_utils import benchmarking, engine

ROOT = Path(__file__).resolve().parents[3]
SMALLER = """
from types import SimpleNamespace
from course_tools.rehearsal.kernel import reduce_samples

shell = SimpleNamespace(input_transformers_cleanup=[])
reduce_samples(shell)
from course_utils.bias import plant_preference
from course_utils.distillation import Recipe
from course_utils.models import load_model
from course_utils.texts import token_blocks

_, tokenizer = load_model("llama")
blocks = token_blocks(tokenizer, "evaluation", tokens=4096, length=128)
print(len(blocks), len(blocks.sample(20, seed=0)), len(token_blocks(tokenizer, "evaluation", tokens=512, length=128)))
asked = blocks.sample(24, seed=0)  # of 32, and 8 are there
print(len(asked[:20]), len(asked[20:]), len(asked[4:][2:4]), len(asked[24:]))
at_most = blocks.sample(min(24, len(blocks)), seed=0)
print(len(at_most[:20]), len(at_most[20:]))
print(Recipe(steps=400, lr=1e-4).steps, Recipe(steps=2, lr=1e-4).steps)
lines = ["RATIOS, SEEDS = (0.1, 0.2), range(19)\\n", "x = range(19)\\n", "SEEDS = range(2)"]
print(shell.input_transformers_cleanup[0](lines))
"""


def test_samples_are_smaller():
    environment = os.environ | {"COURSE_PROFILE": "smoke", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SMALLER], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "8 8 4",
        "8 4 2 0",
        "8 8",
        "3 2",
        "['RATIOS, SEEDS = (0.1, 0.2), range(3)\\n', 'x = range(19)\\n', 'SEEDS = range(2)']",
    ], done.stderr


def test_a_round_stands_for_all(monkeypatch):
    monkeypatch.setattr(benchmarking, "take_turns", benchmarking.take_turns)
    ledger, turns = Ledger(T4), []
    kernel.run_one_round(ledger)
    laps = {name: lambda: ledger.add_work(1.0, 1, torch.float32) or turns.append(1) for name in "ab"}
    table = benchmarking.time_interleaved(laps, rounds=9)
    assert len(turns) == 2 and ledger.count.flops == 2 * (9 + 1), "and the warm-up"
    assert list(table.name) == ["a", "b"] and table.ci_low.notna().all()


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


TINY = """
import torch
from types import SimpleNamespace
from course_tools.rehearsal import kernel

kernel._fewer_steps()
from course_utils.distillation import Recipe, distill
from course_utils.models import tiny_llama, variant

teacher = tiny_llama(blocks=2)
ids = torch.randint(0, teacher.config.vocab_size, (2, 8))
text = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
for size in (kernel.TINY, 1):
    kernel.TINY = size
    print(len(distill(teacher, variant(teacher), text, steps=9, lr=1e-3).steps), Recipe(steps=9, lr=1e-3).steps)
"""


def test_a_tiny_model_takes_all_its_steps():
    done = subprocess.run([sys.executable, "-c", TINY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["9 3", "3 3"], done.stderr


def test_documents_are_the_embedded_ones(monkeypatch):
    from course_utils import benchmark_tasks

    monkeypatch.setattr(benchmark_tasks, "session", benchmark_tasks.session)
    asked = []
    monkeypatch.setattr(benchmark_tasks, "build_tasks", lambda names, limit: asked.append(limit))
    kernel.read_documents_here()
    assert benchmark_tasks.session.current_profile() == "embedded"


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
    monkeypatch.setattr(benchmarking, "take_turns", benchmarking.take_turns)
    monkeypatch.setattr(engine, "problem", engine.problem)
    events = {}
    shell = SimpleNamespace(user_ns={}, events=SimpleNamespace(register=events.__setitem__))
    record = tmp_path / "cells.jsonl"
    rehearsal = begin(Plan(str(record), share=0.5, reduced=False), shell)
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
    begun, ended = map(json.loads, record.read_text().splitlines())
    assert begun == {"cell": 1, "begun": True}
    assert (ended["cell"], ended["gpu_peak"], ended["left"]) == (1, 2 * 4 * 2**20, 4 * 2**20)
    assert ended["gpu_moved"] == 4 * 4 * 2**20 and ended["host_peak"] > 10**8
    assert rehearsal.card.ledger.card.memory == int(14.7 * 2**30) // 2
