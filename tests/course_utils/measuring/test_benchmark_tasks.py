"""Stock tasks: where they come from, and what is refused; ``test_evaluation`` has them answered."""

from __future__ import annotations

from pathlib import Path

import lm_eval.tasks
import pytest

from course_utils.measuring import benchmark_tasks
from course_utils.measuring.benchmark_tasks import TASKS, build_tasks


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_one_of_lm_evals_with_the_metrics_that_we_report(name):
    folder = Path(lm_eval.tasks.__file__).parent / TASKS[name].folder
    stock = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False).task_index[name].cfg
    assert set(TASKS[name].metrics) <= {entry["metric"] for entry in stock["metric_list"]}


def test_unknown_tasks_are_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(benchmark_tasks, "_build_task", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="'walking'"):
        build_tasks(["copa", "walking"], None)
