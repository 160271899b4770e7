"""The commands behind course.py, on a small course of their own in a temporary folder."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from programs import press_ctrl_c, wait_for
from sample_lesson import COMPLETE, DEEPER, LESSON, write_lesson

from course_tools import cli, environment, processes, requirements
from course_tools.learner import personal
from course_tools.lessons import authoring, notebooks, runner
from course_tools.workshop import pack
from course_utils.compress import program
from course_utils.models import embedded_llama
from course_utils.support import session
from course_utils.text import assets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course with lesson 01, whose commands need no assets."""
    for name, folder in {"LESSONS": "lessons", "NOTEBOOKS": "notebooks", "BUILD": "build"}.items():
        monkeypatch.setattr(cli, name, tmp_path / folder)
    monkeypatch.setattr(cli, "README", tmp_path / "README.md")
    monkeypatch.setattr(cli, "TEACHING", tmp_path / "teaching.md")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks.Course, "read", lambda root: notebooks.Course("someone/somewhere", "main"))
    monkeypatch.setattr(cli, "fetch_assets", lambda lessons: None)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    write_lesson(tmp_path / "lessons")
    return tmp_path


def add_lesson(course, number, *changes):
    text = LESSON.replace('start("01"', f'start("{number}"')
    for old, new in changes:
        text = text.replace(old, new)
    return write_lesson(course / "lessons", text, f"{number}_other")


def saved_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_run_goes_on_after_a_failure_and_names_the_cell(course, capsys):
    add_lesson(course, "02", ("6 * 7", "6 / 0"))
    add_lesson(course, "03")
    assert cli.main(["run"]) == 1
    out = capsys.readouterr().out
    assert "02_other: failed at code cell 3 (import sys): ZeroDivisionError: division by zero" in out
    rows = [line.split() for line in out.splitlines() if "smoke" in line]
    assert [(row[1], row[-2]) for row in rows] == [("01_small", "ok"), ("02_other", "failed"), ("03_other", "ok")]
    index = (course / "build" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}.html"' in index for name in ("01_small", "02_other", "03_other"))
    assert "ZeroDivisionError" in (course / "build" / "02_other.html").read_text(encoding="utf-8")
    assert "01_small ok" in out.partition("\nRead what is finished: ")[0].splitlines()[-1], "as soon as there is a page"


def test_run_some_lessons_as_a_reader_would(course, capsys):
    add_lesson(course, "02", ("6 * 7", "6 / 0"))
    assert cli.main(["run", "1"]) == 0
    texts = [output.get("text") for output in saved_outputs(course / "build" / "01_small.ipynb")]
    assert "Exercise 1: not solved yet. Return twice the number.\n" in texts
    assert not (course / "notebooks").exists()


def test_run_with_unknown_lesson_or_broken_source(course, capsys):
    assert cli.main(["run", "09"]) == 1
    assert "no lesson 09; there is: 01" in capsys.readouterr().err
    add_lesson(course, "02", ("concepts: [doubling]", "concepts: soon"))
    assert cli.main(["run", "02"]) == 1
    assert "02_other.py: `concepts` in the header can't be 'soon'" in capsys.readouterr().err


def test_build_says_which_rules_a_lesson_breaks(course, capsys):
    write_lesson(course / "lessons", COMPLETE.replace("# **Answer.** ", "# "))
    assert cli.main(["build"]) == 0
    assert "01_small: the first cell is `## The question`" in capsys.readouterr().err


def test_build_writes_both_forms_once(course, capsys):
    (course / "README.md").write_text(f"# Course\n\n{notebooks.TABLE_BEGIN}\n{notebooks.TABLE_END}\n", encoding="utf-8")
    assert cli.main(["build"]) == 0
    assert capsys.readouterr().out.count("written ") == 3, "two notebooks, and the table"
    assert "[A small lesson](notebooks/01_small.ipynb)" in (course / "README.md").read_text(encoding="utf-8")
    assert cli.main(["build"]) == 0
    assert capsys.readouterr().out.count("unchanged ") == 3
    assert cli.main(["build", "01"]) == 0
    assert capsys.readouterr().out.count("unchanged ") == 2


def test_build_execute_saves_outputs_that_later_builds_keep_and_lists_numbers_that_none_shows(course, capsys):
    write_lesson(course / "lessons", LESSON.replace("How is a lesson built?", "**Saved run.** 42 and 43."))
    assert cli.main(["build", "--execute"]) == 0
    said = capsys.readouterr().err
    assert "01_small: quoted, but not in the saved outputs: 43" in said and "outputs: 42" not in said
    path = course / "notebooks" / "01_small.ipynb"
    saved = path.read_bytes()
    assert "seen\n" in [output.get("text") for output in saved_outputs(path)]
    assert all(output.get("name") != "stderr" for output in saved_outputs(path))
    assert cli.main(["build"]) == 0
    assert path.read_bytes() == saved

    write_lesson(course / "lessons", LESSON.replace("6 * 7", "6 / 0"))
    assert cli.main(["build", "01", "--execute"]) == 1
    assert "01_small: failed at code cell 3" in capsys.readouterr().err
    assert saved_outputs(path) == [], "outputs of other code are not kept"


def test_deeper_notebook_is_built_with_all_and_run_by_name(course, capsys):
    assert cli.main(["run", "deeper"]) == 0 and "no deeper notebooks yet" in capsys.readouterr().out
    write_lesson(course / "lessons" / "deeper", DEEPER.replace('show("', 'print("'), "01a_down")
    (course / "README.md").write_text(f"{notebooks.TABLE_BEGIN}\n{notebooks.TABLE_END}\n", encoding="utf-8")
    assert cli.main(["build"]) == 0
    path = course / "notebooks" / "deeper" / "01a_down.ipynb"
    title = nbformat.read(path, as_version=4).cells[0].source
    assert "blob/main/notebooks/deeper/01a_down.ipynb" in title and "blob/main/lessons/deeper/01a_down.py" in title
    assert "solutions" not in title and not (path.parent / "solutions").exists(), "it has no exercise"
    said = (course / "README.md").read_text(encoding="utf-8")
    assert said.count("01a") == 2 and "[01a · Further down](notebooks/deeper/01a_down.ipynb) (4 minutes)" in said
    capsys.readouterr()
    assert cli.main(["run", "deeper"]) == 0
    assert "01a_down" in capsys.readouterr().out
    assert "deep down\n" in "".join(output.text for output in saved_outputs(course / "build" / "01a_down.ipynb"))


def test_check_fails_only_on_fail(monkeypatch, capsys):
    found = [environment.Finding("OK", "Python", "3.13"), environment.Finding("WARN", "cores", "1", "be patient")]
    monkeypatch.setattr(environment, "findings", lambda: iter(found))
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["WARN", "cores", "1", "->", "be", "patient"]
    found.append(environment.Finding("FAIL", "memory", "0.1 GB", "add some"))
    assert cli.main(["check"]) == 1


@pytest.mark.parametrize(
    ("lessons", "opened"),
    [((), []), (([],), []), ((["speeches"], ["smollm2", "speeches"]), ["smollm2", "speeches", "converted"])],
)
def test_only_what_the_lessons_open_is_fetched(lessons, opened, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(assets, "fetch", fetched.append)
    monkeypatch.setattr(embedded_llama, "embedded_llama", lambda: fetched.append("converted"))
    texts = [LESSON.replace("assets: []", f"assets: [{', '.join(names)}]") for names in lessons]
    cli.fetch_assets([authoring.read_lesson(write_lesson(tmp_path, text)) for text in texts])
    assert fetched == opened


@pytest.fixture
def pytests(course, monkeypatch):
    """Calls of pytest: what each is given; the fixture's `statuses` are what they return."""
    calls = SimpleNamespace(given=[], statuses=[0, 0, 0], fetched=False)

    def call(command, *, folder, environment):
        assert command[:3] == ["-P", "-m", "pytest"] and folder == course
        calls.given.append((" ".join(command[3:]), environment))
        return calls.statuses[len(calls.given) - 1]

    def machine(cores=2, gib=99):
        monkeypatch.setattr(session, "cores", lambda: cores)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(gib * 2**30)))

    calls.machine = machine
    machine()
    monkeypatch.setattr(processes, "call", call)
    monkeypatch.setattr(cli, "fetch_assets", lambda lessons: setattr(calls, "fetched", True))
    for name in ("OMP_NUM_THREADS", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    (course / "tests" / "deep").mkdir(parents=True)
    marks = {"test_few.py": ["none"], "deep/test_models.py": ["embedded"], "test_lessons.py": ["timed", "embedded"]}
    for name, of_file in marks.items():
        (course / "tests" / name).write_text("".join(f"@pytest.mark.{mark}\n" for mark in of_file))
    return calls


FAST = "-m not embedded --durations=10"
APART = f"{FAST} -n 3 --dist loadfile --no-loadscope-reorder"
TOGETHER = "-m embedded and not timed --durations=10 -n 2 --dist load --maxschedchunk 1"
FILES = "tests/deep/test_models.py tests/test_lessons.py"


@pytest.mark.parametrize(
    ("words", "cores", "gib", "given"),
    [
        ("", 2, 12, [APART, f"{TOGETHER} {FILES}", "-m embedded and timed tests/test_lessons.py"]),
        ("", 2, 11.9, [APART, f"-m embedded --durations=10 {FILES}"]),
        ("", 1, 99, [FAST, f"-m embedded --durations=10 {FILES}"]),
        (
            "tests/test_few.py -x",
            2,
            99,
            [f"{APART} tests/test_few.py -x", "-m embedded --durations=10 tests/test_few.py -x"],
        ),
        ("--fast -k width", 1, 99, [f"{FAST} -k width"]),
        ("-m embedded", 2, 99, ["-m embedded"]),
    ],
    ids=["two lessons at a time", "little memory", "one core", "one file", "fast", "a marker of one's own"],
)
def test_what_pytest_is_given(words, cores, gib, given, pytests, capsys):
    """No file is read for nothing: pytest takes seconds to read them all."""
    pytests.machine(cores, gib)
    assert cli.main(["test", *words.split()]) == 0
    assert [options for options, _ in pytests.given] == given
    assert pytests.fetched == ("--fast" not in words)
    told = (
        f"{cores} cores and {runner.gigabytes(gib * 2**30)} of free memory (two lessons at a time need 2 and 12.9 GB)"
    )
    assert (told in capsys.readouterr().out) == (words == "")


@pytest.mark.parametrize(("cores", "threads"), [(2, "1"), (3, "1"), (16, "8")])
def test_tests_share_the_cores_and_lessons_about_time_have_them_alone(cores, threads, pytests):
    pytests.machine(cores)
    assert cli.main(["test"]) == 0
    fast, shared, alone = (variables for _, variables in pytests.given)
    assert fast["OMP_NUM_THREADS"] == "1" and shared["OMP_NUM_THREADS"] == threads
    assert "GLIBC_TUNABLES" in shared and not {"GLIBC_TUNABLES", "OMP_NUM_THREADS"} & alone.keys()


@pytest.mark.parametrize(
    ("fast", "slow", "status"),
    [(0, 1, 1), (1, 0, 1), (5, 0, 0), (0, 5, 0), (5, 5, 5), (5, 1, 1), (-9, 0, 9), (2, 0, 2)],
)
@pytest.mark.parametrize("third", [False, True])
def test_all_runs_count(fast, slow, status, third, pytests, capsys):
    pytests.statuses = [fast, 5, slow] if third else [fast, slow, 5]
    assert cli.main(["test"]) == status
    stopped = "after a crash or a wrong call, there is no other run"
    assert len(pytests.given) == (1 if fast in (-9, 2) else 3), stopped
    told = capsys.readouterr().out
    assert ("The fast tests failed" in told) == (fast == 1)
    assert ("No test was selected" in told) == (status == 5), "and `-m slow` may be what is looked for"


def test_lab_waits_patiently_and_passes_arguments_on(course, monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "call", lambda command, **options: calls.append((command, options)) or 0)
    assert cli.main(["build"]) == 0
    assert cli.main(["lab", "--no-browser"]) == 0
    ((command, options),) = calls
    assert command[:3] == ["-P", "-m", "jupyterlab"] and command[-1] == "--no-browser"
    assert f"--ServerApp.root_dir={course / 'my_course'}" in command
    assert "--LabApp.default_url=/lab/tree/01_small.ipynb" in command
    assert program.SLEEPING_THREADS.keys() <= options["environment"].keys()


@pytest.fixture
def at_home(course, monkeypatch):
    """A learner's folder, given by the variable, with the course's one lesson in it."""
    folder = course / "Zoë's folder"
    monkeypatch.setenv(personal.VARIABLE, str(folder))
    monkeypatch.setattr(processes, "call", lambda command, **options: 0)
    monkeypatch.setattr(requirements, "project", lambda: {"version": "9.8.7"})
    assert cli.main(["build"]) == 0 == cli.main(["lab"])
    return folder


def solve(path):
    """The exercise's cell as Jupyter saves it after a right answer."""
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", []))
    cell.execution_count = 3
    cell.outputs = [nbformat.v4.new_output("stream", text="Exercise 1: correct. Doubled.\n")]
    nbformat.write(notebook, path)


def test_lab_opens_the_next_lesson(course, at_home, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(processes, "call", lambda command, **options: calls.append(command) or 0)
    add_lesson(course, "02")
    solve(at_home / "01_small.ipynb")
    assert cli.main(["build"]) == 0 == cli.main(["lab"])
    assert "--LabApp.default_url=/lab/tree/02_other.ipynb" in calls[-1]
    assert "Next: lesson 02, A small lesson" in capsys.readouterr().out
    solve(at_home / "02_other.ipynb")
    assert cli.main(["lab"]) == 0
    assert "default_url" not in " ".join(calls[-1]), "nothing is left: its own first page"
    (at_home / "02_other.ipynb").write_text("{", encoding="utf-8")
    assert cli.main(["lab"]) == 0
    assert "default_url" not in " ".join(calls[-1]) and "02_other.ipynb can't be read" in capsys.readouterr().out


def test_progress_reads_and_certifies(at_home, capsys):
    solve(at_home / "01_small.ipynb")
    assert cli.main(["progress", "--name", "Zoë"]) == 0
    out = capsys.readouterr().out
    assert "1 of 1" in out and "`python3 course.py quiz 01`" in out
    page = (at_home / "certificate.html").read_text(encoding="utf-8")
    assert "Zoë" in page and "version 9.8.7" in page
    assert cli.main(["progress", "--folder", str(at_home / "nowhere")]) == 1
    assert "`python3 course.py lab` makes it" in capsys.readouterr().out


def test_verify_with_nothing_there_has_not_passed(course, at_home, capsys):
    add_lesson(course, "02")
    (course / "empty").mkdir()
    capsys.readouterr()
    for place, told in (("nowhere", "There is no folder"), ("empty", "There is no notebook of a lesson in")):
        assert cli.main(["verify", "02", str(course / place)]) == 1
        assert capsys.readouterr().err.startswith(f"{told} {course / place}. `python3 course.py lab` copies ")
    assert cli.main(["verify"]) == cli.main(["verify", "01"]) == 1, "01 is there and was never run"
    assert f"02  no notebook of it in {at_home}\n" in capsys.readouterr().out
    assert cli.main(["verify", "01", "02"]) == cli.main(["verify", "here", "there"]) == 1, "both were asked for"


def test_pack_goes_through_its_steps(course, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(
        pack, "lock", lambda root, platform, python, **options: done.append((platform.name, python)) or ["a==1"]
    )
    monkeypatch.setattr(pack, "download", lambda pinned, platform, python, folder, **options: done.append(folder))
    monkeypatch.setattr(pack, "copy_course", lambda root, folder: folder.mkdir(parents=True))
    monkeypatch.setattr(pack, "copy_cache", lambda names, folder: done.append([*names]))
    monkeypatch.setattr(pack, "write_manifest", lambda folder, locks, python, say: done.append(locks))
    assert cli.main(["pack", str(course / "all"), "--python", "3.12"]) == 0
    assert done[::2][:3] == [("linux", "3.12"), ("macos", "3.12"), ("windows", "3.12")]
    done.clear()
    assert cli.main(["pack", str(course / "p"), "--platform", "windows"]) == 0
    assert done[1:] == [course / "p" / "wheels", ["reveal"], {"windows": ["a==1"]}]
    assert "python3 start.py check" in capsys.readouterr().out


def test_slides_are_written(course, monkeypatch, capsys):
    checks = course / "course_utils" / "lessons" / "exercises"
    checks.mkdir(parents=True)
    for name in ("lesson_01", "cuts"):
        (checks / f"{name}.py").write_text("def check_double(attempt):\n    pass\n")
    for part in ("dist/reveal.js", "plugin/notes/notes.js", "LICENSE"):
        (course / "reveal" / part).parent.mkdir(parents=True, exist_ok=True)
        (course / "reveal" / part).touch()
    monkeypatch.setattr(assets, "fetch", lambda name: course / name)
    assert cli.main(["build"]) == 0 == cli.main(["slides"])
    assert "A small lesson" in (course / "build" / "slides" / "01_small.html").read_text(encoding="utf-8")
    assert str(course / "build" / "slides" / "index.html") in capsys.readouterr().out


def test_quiz_in_the_terminal(at_home, monkeypatch, capsys):
    lines = iter(["b", "a"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    with pytest.raises(StopIteration):
        cli.main(["quiz", "1"])
    lines = iter(["B", "B", "B"])
    assert cli.main(["quiz", "1"]) == 0
    assert "3 of 3 right" in capsys.readouterr().out
    assert cli.main(["progress"]) == 0
    assert "2 of 3" in capsys.readouterr().out, "the first answers count, the wrong one of the stopped run too"

    def nothing(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", nothing)
    assert cli.main(["quiz", "1"]) == 1


@pytest.mark.parametrize("command", [["quiz", "01"], ["build"]])
def test_a_place_that_cannot_be_written_is_told_in_a_sentence(command, at_home, monkeypatch, capsys):
    """Before the first question is asked."""

    def refused(path, *args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    write_lesson(at_home.parent / "lessons", LESSON.replace("6 * 7", "6 * 8"))
    monkeypatch.setattr(Path, "write_bytes", refused)
    assert cli.main(command) == 1
    place = at_home if command[0] == "quiz" else at_home.parent / "notebooks"
    told = f"{place} can't be written (Read-only file system). Name a folder of yours, or copy the course"
    err = capsys.readouterr().err
    assert err.startswith(told) and err.count("\n") == 1


def start(folder, *arguments):
    """The real program in a process group of its own, as a terminal starts it, on the course in `folder`."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "course_tools", *arguments],
        cwd=folder / "lessons",  # any folder will do
        env=os.environ | {"PYTHONPATH": path, "COURSE_PROFILE": "smoke"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def clone(tmp_path, listening):
    """A clone with the machinery and two small lessons; the second one tells its kernel's number and hangs."""
    shutil.copytree(ROOT / "course_tools", tmp_path / "course_tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    write_lesson(tmp_path / "lessons")
    hang = "import os, pathlib, time\n\npathlib.Path('new').write_text(str(os.getpid()))\nos.rename('new', 'pid')\n"
    add_lesson(tmp_path, "02", ("6 * 7", f"{hang}time.sleep(600)"))
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="there is no Ctrl-C to send to a process on Windows")
def test_ctrl_c_in_a_cell_ends_the_kernel_and_keeps_what_is_finished(clone):
    process = start(clone, "run")
    pid = clone / "build" / "work" / "02_other" / "pid"
    wait_for(pid, process)
    out, err = press_ctrl_c(process, whole_group=True)
    assert process.returncode == 130
    assert err.strip() == "Stopped."
    assert not psutil.pid_exists(int(pid.read_text())), "the kernel is an orphan"
    index = (clone / "build" / "index.html").read_text(encoding="utf-8")
    assert "01_small.html" in index and "02_other.html" not in index
    assert (clone / "build" / "01_small.html").exists() and "01_small ok" in out


@pytest.mark.skipif(os.name == "nt", reason="there is no Ctrl-C to send to a process on Windows")
def test_ctrl_c_while_the_program_still_loads(clone):
    (clone / "course_tools" / "cli.py").write_text(
        "import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(600)\n", encoding="utf-8"
    )
    process = start(clone, "check")
    wait_for(clone / "lessons" / "loading", process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "\nStopped.\n")
    assert process.returncode == 130


@pytest.mark.skipif(os.name == "nt", reason="Windows tells a writer otherwise that nobody reads")
def test_a_reader_who_leaves_is_no_error(clone):
    reading, writing = os.pipe()
    os.close(reading)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(clone), str(ROOT)])}
    command = [sys.executable, "-P", "-m", "course_tools", "build"]
    done = subprocess.run(command, cwd=clone, env=variables, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without telling it")
def test_an_order_to_end_ends_the_kernel_too(clone):
    process = start(clone, "run", "02")
    pid = clone / "build" / "work" / "02_other" / "pid"
    wait_for(pid, process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    assert not psutil.pid_exists(int(pid.read_text()))
