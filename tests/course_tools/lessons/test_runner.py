"""The runner: executes in a kernel of its own, measures, names the failing cell."""

import os
import signal
import threading
import time

import nbformat
import pytest

from course_tools.lessons import runner
from course_utils.compress import program

DIED = "the kernel died; most often it ran out of memory. Close other programs and run this lesson again."


def notebook(*cells):
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Title"), *(nbformat.v4.new_code_cell(cell) for cell in cells)],
        metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    )


def test_executes_measures_and_reports_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "0")
    seen = []
    book = notebook(
        "import os, pathlib, time\nkeep = bytearray(300_000_000)\ntime.sleep(0.5)",
        'print(os.environ["COURSE_PROFILE"], os.environ["HF_HUB_OFFLINE"], os.environ["TQDM_DISABLE"])',
        "print(pathlib.Path.cwd().name)",
    )
    result = runner.execute(
        book, name="01_x", profile="smoke", folder=tmp_path / "work", on_cell=lambda *step: seen.append(step)
    )
    assert result.failure is None
    assert [cell.outputs[0].text for cell in book.cells[2:]] == ["smoke 1 1\n", "work\n"]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert result.peak_bytes > 300_000_000 and result.seconds > 0.5


@pytest.mark.parametrize(
    ("bad", "first_line", "error"),
    [
        ("# the sum\ntotal = 1 / 0", "total = 1 / 0", "ZeroDivisionError: division by zero"),
        ("import os\nos._exit(1)", "import os", DIED),
    ],
)
def test_failure_names_the_cell(bad, first_line, error, tmp_path):
    book = notebook("1 + 1", bad, "2 + 2")
    failure = runner.execute(book, name="01_x", profile="smoke", folder=tmp_path).failure
    assert (failure.cell, failure.error) == (2, error)
    assert "\n" not in str(failure)
    assert failure.first_line == first_line
    assert book.cells[1].outputs and not book.cells[3].outputs


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_kernel_that_is_killed_is_told_in_a_paragraph(tmp_path, capfd):
    def kill_when_known():
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    tell = "import os, time\nopen('new', 'w').write(str(os.getpid()))\nos.rename('new', 'pid')\ntime.sleep(600)"
    killer = threading.Thread(target=kill_when_known, daemon=True)
    killer.start()
    result = runner.execute(notebook("1 + 1", tell), name="01_x", profile="smoke", folder=tmp_path)
    assert (result.failure.cell, result.failure.error) == (2, DIED)
    assert capfd.readouterr() == ("", ""), "nothing but the paragraph"


def test_kernel_that_cannot_start_is_told_in_a_paragraph(tmp_path, monkeypatch, capfd):
    (tmp_path / "ipykernel_launcher.py").write_text("raise ImportError('libzmq is broken')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    book = notebook("1 + 1")
    failure = runner.execute(book, name="01_x", profile="smoke", folder=tmp_path / "work").failure
    assert str(failure).startswith("its start: the kernel did not start (") and "libzmq is broken" in failure.error
    assert "python3 course.py check" in failure.error and "\n" not in failure.error
    assert capfd.readouterr() == ("", ""), "nothing but the paragraph"
    monkeypatch.delenv("PYTHONPATH")
    assert runner.execute(book, name="01_x", profile="smoke", folder=tmp_path / "next").failure is None


def test_cell_meant_to_fail_does_not_stop_the_lesson(tmp_path):
    book = notebook("1 / 0", "print('on')")
    book.cells[1].metadata["tags"] = ["raises-exception"]
    assert runner.execute(book, name="01_x", profile="smoke", folder=tmp_path).failure is None
    assert book.cells[2].outputs[0].text == "on\n"


def test_a_kernel_finds_the_model_that_the_reader_chose_and_is_online_only_for_the_hub(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)  # a kernel runs elsewhere
    monkeypatch.setenv("COURSE_LLAMA", "mine")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    environment = runner.kernel_environment("embedded")
    assert environment["COURSE_LLAMA"] == str(tmp_path / "mine") and environment["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in runner.kernel_environment("hub")
    monkeypatch.setenv("COURSE_LLAMA", "Qwen/Qwen3-0.6B")
    assert "HF_HUB_OFFLINE" not in runner.kernel_environment("embedded"), "it may have to be fetched"


def test_kernels_wait_patiently_unless_the_reader_chose(monkeypatch):
    for name in (*program.SLEEPING_THREADS, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert program.SLEEPING_THREADS.items() <= runner.kernel_environment("smoke").items()
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert runner.kernel_environment("smoke")["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "GOMP_SPINCOUNT" not in runner.kernel_environment("smoke")
