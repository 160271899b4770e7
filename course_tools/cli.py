"""The course's commands, run through `python3 course.py` from a clone.

Each returns an exit status, see `course_utils.compress.program`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import nbformat
import psutil
from nbformat import NotebookNode
from rich.console import Console
from rich.progress import track

from course_tools import command_line, environment, processes, requirements, terminal
from course_tools.learner import personal, terminal_quiz
from course_tools.learner import progress as reading
from course_tools.learner import verify as verifying
from course_tools.lessons import authoring, claims, notebooks, quotes, rules, runner, webpages
from course_tools.workshop import agendas
from course_utils.compress import program
from course_utils.compress.command_line import order_of
from course_utils.lessons.verdicts import SHOWN
from course_utils.support import session
from course_utils.support.files import write_json, write_text
from course_utils.text import assets

ROOT = environment.ROOT
LESSONS, NOTEBOOKS, BUILD, README = ROOT / "lessons", ROOT / "notebooks", ROOT / "build", ROOT / "README.md"
TEACHING = ROOT / "docs" / "teaching.md"
_MEMORY_FOR_TWO = 12 * 2**30  # bytes; a lesson holds 2 to 4 GB, and its test and the reader's programs need some
_NOTHING_COLLECTED = 5  # pytest's exit status where the arguments select no test
_SLOWEST = "--durations=10"  # what takes the time is printed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    Args:
        arguments: the command's name and what follows it; default: the program's own.
    """
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # older Jupyters look for a debugger, and it warns
    parser = command_line.parser(COMMANDS, build=BUILD)
    args, rest = parser.parse_known_args(arguments)
    args.rest = rest
    if rest and args.command not in (test, lab):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return program.answer(
        lambda: args.command(args, Console(highlight=False)),
        place=ROOT,
        remedy="Name a folder of yours, or copy the course to one.",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Execute lessons as a reader's "Run all" would, write notebooks and pages to build/, print a table."""
    lessons = [authoring.read_lesson(path) for path in authoring.find_lessons(LESSONS, args.lessons)]
    if not lessons:
        print(f"There are no {'deeper notebooks' if args.lessons else 'lessons'} yet.")
        return 0
    everything = [authoring.read_lesson(path) for path in authoring.find_lessons(LESSONS)] if args.lessons else lessons
    profile = args.profile or session.current_profile()
    if profile == "embedded":
        fetch_assets(lessons)
    course = notebooks.Course.read(ROOT)
    results: list[runner.Result] = []
    with terminal.Reporter(console, len(lessons), folder=BUILD / "work") as reporter:
        for lesson in lessons:
            notebook = notebooks.build_notebook(lesson, course, "exercises")
            result = reporter.execute(notebook, lesson.name, profile)
            webpages.write_page(notebook, lesson, BUILD, everything)
            index = webpages.write_index([result], BUILD, everything)
            if not results and len(lessons) > 1:
                reporter.say(f"Read what is finished: {index}")
            results.append(result)
    console.print(terminal.results_table(results))
    for result in results:
        if result.failure:
            print(f"{result.name}: failed at {result.failure}")
    print(f"Read them: {index}")
    return int(any(result.failure for result in results))


def rehearse(args: argparse.Namespace, console: Console) -> int:
    """Run lessons as Colab's free T4 would, at full size but without a GPU, and refuse those that need more memory."""
    from course_tools.rehearsal import rehearse as rehearsing  # torch, which the other commands needn't wait for
    from course_tools.rehearsal import shapes

    lessons = [authoring.read_lesson(path) for path in authoring.find_lessons(LESSONS, args.lessons)]
    fetch_assets(lessons, more=rehearsing.ASSETS)
    shape = shapes.SHAPES[args.shape]
    tokenizers = shapes.tokenizers()
    course, done = notebooks.Course.read(ROOT), []
    for number, lesson in enumerate(lessons, 1):
        console.print(f"[{number}/{len(lessons)}] {lesson.name} …", markup=False)
        folder = BUILD / "rehearsal"
        for form, name in {"exercises": lesson.name, "solutions": f"{lesson.name}_solved"}.items():
            notebook = notebooks.build_notebook(lesson, course, form)
            rehearsed = rehearsing.rehearse(notebook, name=name, shape=shape, folder=folder, tokenizers=tokenizers)
            done.append(rehearsed)
            webpages.write_page(notebook, lesson, folder / form)
            write_json(folder / f"{name}.json", asdict(rehearsed) | {"refused": list(rehearsed.refusals())})
    console.print(terminal.rehearsal_table(done))
    print(rehearsing.explanation(shape))
    refused = [sentence for rehearsed in done for sentence in rehearsed.refusals()]
    print(*refused, sep="\n")
    return int(bool(refused))


def compress(args: argparse.Namespace, console: Console) -> int:
    """Make a smaller version of a model: search under a budget, distil, save; --dry-run says sizes, memory and time."""
    from course_utils.compress.run import compress  # torch, which the other commands needn't wait for

    return compress(order_of(args), lambda line: console.print(line, markup=False, soft_wrap=True))


def test(args: argparse.Namespace, console: Console) -> int:
    """Run the tests: the fast ones, then those on the embedded models, and every lesson."""
    if not args.fast:
        fetch_assets([authoring.read_lesson(path) for path in authoring.find_lessons(LESSONS)])
    if "-m" in args.rest:  # the reader's own choice
        return _pytest("Tests", args.rest)
    # Processes with one thread each are faster than one with two, but not where a test takes the time. The third works
    # while one of two waits: for a hub that keeps silent, for a program to end.
    # Files in the order of tests/conftest.py, the slowest first, so that no process is left alone with one of them.
    apart = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"] if session.cores() > 1 else []
    statuses = [_pytest("Fast tests", ["-m", "not embedded", _SLOWEST, *apart, *args.rest], OMP_NUM_THREADS="1")]
    if not args.fast:
        for title, options, variables in _slow_rounds(args.rest):
            if statuses[-1] in (0, 1, _NOTHING_COLLECTED):  # otherwise something is wrong with all of them
                statuses.append(_pytest(title, options, **variables))
        if statuses[0] == 1:
            print("The fast tests failed; see above.")
    if {*statuses} == {_NOTHING_COLLECTED}:
        print("No test was selected. What takes minutes runs where asked for, for instance with `-m slow`.")
    return max({*statuses} - {_NOTHING_COLLECTED}, default=_NOTHING_COLLECTED)


def _slow_rounds(rest: Sequence[str]) -> list[tuple[str, list[str], dict[str, str]]]:
    """Calls of pytest for what needs the real models, two lessons at a time if each has a core and its memory.

    Each is a title, options and variables.
    """
    title = "Tests on the embedded models, and the lessons"
    cores, free = session.cores(), psutil.virtual_memory().available
    together = cores > 1 and free >= _MEMORY_FOR_TWO
    if not rest:
        way = "two at a time, and alone where they are about time" if together else "one after another"
        needed = f"two lessons at a time need 2 and {runner.gigabytes(_MEMORY_FOR_TWO)}"
        print(f"{cores} cores and {runner.gigabytes(free)} of free memory ({needed}), so lessons run {way}.")
    if rest or not together:
        return [(title, ["-m", "embedded", _SLOWEST, *(rest or _files_with("embedded"))], {})]
    shared = ["-m", "embedded and not timed", _SLOWEST, "-n", "2", "--dist", "load", "--maxschedchunk", "1"]
    variables = {"OMP_NUM_THREADS": str(cores // 2), **processes.KEPT_MEMORY}
    return [
        (f"{title}, two at a time", [*shared, *_files_with("embedded")], variables),
        ("Lessons about time, alone", ["-m", "embedded and timed", *_files_with("timed")], {}),
    ]


def _files_with(mark: str) -> list[str]:
    """The files whose tests may have a mark: to read all others takes pytest a quarter of a minute."""
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if f"mark.{mark}" in path.read_text(encoding="utf-8")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def _pytest(title: str, options: Sequence[str], **variables: str) -> int:
    print(f"{title}: pytest {' '.join(options)}", flush=True)
    variables = program.with_sleeping_threads(variables | os.environ)
    return abs(processes.call(["-P", "-m", "pytest", *options], folder=ROOT, environment=variables))


def lab(args: argparse.Namespace, console: Console) -> int:
    """Open JupyterLab on your next lesson, in a folder of your own that nothing writes over."""
    from course_tools.learner import lab as opening  # jupyter_client, which the other commands needn't wait for

    folder = personal.folder_of(ROOT, args.folder)
    arrived = personal.prepare(NOTEBOOKS, folder)
    if arrived:
        print("Lessons that are new in your folder:", *arrived, sep="\n  ")
    print(f"Your folder is {folder}. It is yours: no update writes over anything in it.")
    options = [*opening.options(folder, _next_notebook(folder)), *args.rest]
    print("JupyterLab opens in your browser; stop it here with Ctrl-C.", flush=True)
    variables = opening.environment(program.with_sleeping_threads(os.environ))
    return abs(processes.call(["-P", "-m", "jupyterlab", *options], folder=Path.cwd(), environment=variables))


def _next_notebook(folder: Path) -> Path | None:
    """The learner's copy of the next lesson; None where nothing is left to do, or a copy can't be read."""
    try:
        lesson = reading.next_lesson(_standings(folder))
    except ValueError as error:  # no reason not to open JupyterLab
        print(error)
        return None
    if lesson is None:
        return None
    print(f"Next: lesson {lesson.number}, {lesson.title}")
    copies = personal.copies(folder, lesson.name)
    return copies[-1] if copies else None


def _standings(folder: Path) -> list[reading.Standing]:
    return [reading.standing(authoring.read_lesson(path), folder) for path in authoring.find_lessons(LESSONS)]


def progress(args: argparse.Namespace, console: Console) -> int:
    """Say how far you are, read from the notebooks in your own folder, and what is next; with --name, a certificate."""
    folder = personal.folder_of(ROOT, args.folder)
    if not folder.is_dir():
        print(f"There is no folder {folder} yet: `python3 course.py lab` makes it.")
        return 1
    standings = _standings(folder)
    console.print(terminal.standings_table(standings))
    print(reading.next_step(standings))
    if args.name is not None:
        version, today = requirements.project()["version"], datetime.date.today()
        page = reading.certificate(standings, name=args.name, version=version, day=today)
        write_text(folder / "certificate.html", page)
        print(f"To print: {folder / 'certificate.html'}")
    return 0


def quiz(args: argparse.Namespace, console: Console) -> int:
    """Ask the questions of a lesson, with the reasons for and against each answer."""
    (path,) = authoring.find_lessons(LESSONS, [args.lesson])
    lesson = authoring.read_lesson(path)
    folder = personal.folder_of(ROOT, args.folder)
    try:
        right = terminal_quiz.ask(lesson, folder, read=input, say=print)
    except EOFError:  # Ctrl-D
        print("\nStopped; the answers so far are kept.")
        return 1
    print(f"\n{right} of {len(lesson.quiz)} right. Your first answers are kept in {folder / terminal_quiz.RECORD}.")
    return 0


def verify(args: argparse.Namespace, console: Console) -> int:
    """Say whether a run shows what its lesson says, what stopped, and how alike its numbers and the saved ones are."""
    folders = [name for name in args.what if not name.isdecimal()]
    if len(folders) > 1:
        raise ValueError(f"One folder at a time; got {', '.join(folders)}.")
    folder = personal.folder_of(ROOT, folders[0] if folders else None)
    asked = [name for name in args.what if name.isdecimal()]
    runs = {path: personal.copies(folder, path.stem) for path in authoring.find_lessons(LESSONS, asked)}
    if not any(runs.values()):
        missing = f"no notebook of a lesson in {folder}" if folder.is_dir() else f"no folder {folder}"
        raise ValueError(
            f"There is {missing}. `python3 course.py lab` copies the lessons into your own folder; `verify build` "
            "looks at what `run` wrote, and `verify FOLDER` into another folder."
        )
    failed = compared = ran = False
    for path, mine in runs.items():
        number = path.stem[:2]
        if not mine:
            print(f"{number}  no notebook of it in {folder}")
            failed |= bool(asked)
            continue
        run = personal.read_notebook(mine[-1])
        saved = nbformat.read(NOTEBOOKS / f"{path.stem}.ipynb", as_version=4)
        comparison, found = verifying.compare(run, saved), claims.claims_of(run)
        told = {claim.sentence for claim in found}
        idle = [f"not run: {claim.sentence}" for claim in claims.claims_of(saved) if claim.sentence not in told]
        said = [*comparison.stopped, *comparison.uneven, *found, *(idle if comparison.ran else [])]
        print(f"{number}  {comparison}", *said, sep="\n      ", flush=True)
        turned = any(claim.outcome != SHOWN for claim in found)
        failed |= bool(comparison.stopped) or (turned and not comparison.another) or bool(asked and not comparison.ran)
        ran |= bool(comparison.ran)
        compared |= bool(comparison.numbers)
    if compared:
        print(verifying.WHAT_IT_MEANS)
    return int(failed or not ran)


def slides(args: argparse.Namespace, console: Console) -> int:
    """Write the lessons as slides with speaker notes, which need no network, to build/slides/."""
    from course_tools.workshop import slides as making  # nbconvert, which the other commands needn't wait for

    reveal, pages = assets.fetch("reveal"), {}
    for path in track(authoring.find_lessons(LESSONS, args.lessons), "Slides", console=console, transient=True):
        lesson = authoring.read_lesson(path)
        saved = nbformat.read(notebooks.notebook_paths(lesson, NOTEBOOKS)["exercises"], as_version=4)
        title, checks = lesson.heading, making.checks_of(lesson, ROOT)
        pages[lesson.name] = (title, making.deck(making.slides_of(lesson, saved, checks), title=title))
    print(f"Show them: {making.write_decks(pages, reveal, BUILD / 'slides')}")
    return 0


def pack(args: argparse.Namespace, console: Console) -> int:
    """Put clone, wheels and models into one folder that installs and runs the course without a network."""
    from course_tools.workshop import pack as packing

    folder, locks = Path(args.to).expanduser().absolute(), {}
    wheels = Path(args.wheels).expanduser().absolute() if args.wheels else None
    for name in args.platform:
        platform = packing.PLATFORMS[name]
        print(f"{name}, Python {args.python}: resolving, then downloading …", flush=True)
        locks[name] = packing.lock(ROOT, platform, args.python, wheels=wheels, cuda=args.cuda)
        packing.download(locks[name], platform, args.python, folder / "wheels", wheels=wheels)
    lessons = [authoring.read_lesson(path) for path in authoring.find_lessons(LESSONS)]
    packing.copy_course(ROOT, folder / "course")
    packing.copy_cache([*authoring.assets_of(lessons), "reveal"], folder / "cache")
    packing.write_manifest(folder, locks=locks, python=args.python, say=print)
    print(f"On the laptop, in the copied folder: python3 {packing.START} check (on Windows with py for python3)")
    return 0


def check(args: argparse.Namespace, console: Console) -> int:
    """Say whether this machine is ready: one line per topic, OK, WARN or FAIL, and the remedy."""
    failed = False
    for finding in environment.findings():
        print(finding, flush=True)
        failed |= finding.level == environment.FAIL
    return int(failed)


def build(args: argparse.Namespace, console: Console) -> int:
    """Write notebooks/ and the README's lesson table from lessons/; with --execute, save fresh outputs too."""
    course = notebooks.Course.read(ROOT)
    chosen = authoring.find_lessons(LESSONS, args.lessons)
    if not args.lessons:
        chosen += authoring.find_lessons(LESSONS, [authoring.DEEPER])
    lessons = [authoring.read_lesson(path) for path in chosen]
    failures = []
    if args.execute:
        fetch_assets(lessons)
        with terminal.Reporter(console, len(lessons), folder=BUILD / "work") as reporter:
            for lesson in lessons:  # each saved when it has run: a later one may be interrupted
                notebook = notebooks.both_forms(lesson, course)
                result = reporter.execute(notebook, lesson.name, "embedded")
                if result.failure:
                    failures.append(result)
                else:
                    _write_notebooks(lesson, course, executed=notebook)
    for lesson in lessons:
        _write_notebooks(lesson, course)
        saved = nbformat.read(notebooks.notebook_paths(lesson, NOTEBOOKS)["exercises"], as_version=4)
        for problem in quotes.unsupported(saved):
            print(f"{lesson.name}: quoted, but not in the saved outputs: {problem}", file=sys.stderr)
        for problem in rules.broken_rules(lesson, saved):
            print(f"{lesson.name}: {problem}", file=sys.stderr)
    if README.exists() and not args.lessons:  # the table is of all lessons
        _write(README, notebooks.fill_table(README.read_text(encoding="utf-8"), lessons, course))
    if TEACHING.exists() and not args.lessons:
        by_number = {lesson.number: lesson for lesson in lessons}
        _write(TEACHING, agendas.fill(TEACHING.read_text(encoding="utf-8"), by_number))
    for result in failures:
        print(f"{result.name}: failed at {result.failure}; its outputs were not saved", file=sys.stderr)
    return int(bool(failures))


def site(args: argparse.Namespace, console: Console) -> int:
    """Write the course's web site to build/site, from the saved notebooks and docs/; a warning is an error."""
    try:
        from course_tools.site import pages, playground
    except ModuleNotFoundError as error:
        raise ValueError(f'{error}. Install what builds the site: python -m pip install -e ".[site]"') from error

    begin = time.monotonic()
    fetch_assets([], more=playground.ASSETS)
    status = pages.build(ROOT, BUILD / "site")
    if not status:
        playground.build(ROOT, BUILD / "site" / playground.NAME)
        print(f"Written in {time.monotonic() - begin:.0f} s. Read it: {BUILD / 'site' / 'index.html'}")
    return status


def fetch_assets(lessons: Sequence[authoring.Lesson], *, more: Sequence[str] = ()) -> None:
    """Fetch what these lessons open off the hub and convert the Llama, saying so only if something is missing.

    Args:
        lessons: those that are about to run.
        more: assets that are needed besides.

    Raises:
        assets.AssetError: it can't be fetched.
    """
    needed = list(dict.fromkeys([*authoring.assets_of(lessons), *more]))
    if not all(map(assets.is_cached, needed)):
        print(f"Filling the cache ({assets.cache_dir()}), once:", flush=True)
    for name in needed:
        assets.fetch(name)
    if "smollm2" in needed:
        from course_utils.models.embedded_llama import embedded_llama

        embedded_llama()


def _write_notebooks(lesson: authoring.Lesson, course: notebooks.Course, executed: NotebookNode | None = None) -> None:
    for path, text in notebooks.render(lesson, course, NOTEBOOKS, executed=executed).items():
        _write(path, text)


def _write(path: Path, text: str) -> None:
    state = "written" if write_text(path, text) else "unchanged"
    print(f"{state:<10}{path.relative_to(ROOT).as_posix()}")


COMMANDS = (run, test, lab, progress, verify, quiz, check, build, site, rehearse, compress, slides, pack)

if __name__ == "__main__":
    sys.exit(main())
