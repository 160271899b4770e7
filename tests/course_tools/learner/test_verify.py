"""Runs beside the saved one: what is compared, what is allowed, and that a departure is found where it is."""

import copy
from pathlib import Path

import nbformat
import pytest

from course_tools.learner import machines, verify
from course_tools.lessons import notebooks
from course_tools.lessons.printed import Number

ROOT = Path(__file__).resolve().parents[3]
SAVED = sorted((ROOT / "notebooks").glob("*.ipynb"))
STARTED = nbformat.v4.new_output("stream", text="lesson       03\nprofile      embedded\nfast dtype   bfloat16\n")


def printed(text):
    return nbformat.v4.new_output("stream", text=text)


def lesson(*cells):
    """A notebook as somebody ran it, of (source, outputs)."""
    made = [nbformat.v4.new_markdown_cell("## The idea")]
    for number, (source, outputs) in enumerate([("start()", [STARTED]), *cells], 1):
        made.append(nbformat.v4.new_code_cell(source, outputs=copy.deepcopy(outputs), execution_count=number))
    return nbformat.v4.new_notebook(cells=made)


def test_file_shows_the_saved_notebooks():
    fresh = verify.to_text(verify.with_saved({}, SAVED))
    assert fresh == verify.EXPECTED.read_text(encoding="utf-8"), "python course.py build writes it anew"


@pytest.mark.parametrize("path", SAVED, ids=[path.stem[:2] for path in SAVED])
def test_a_saved_run_is_as_expected_and_a_changed_one_is_not(path):
    """The comparison can fail: 20 % more is noticed in any cell that has a number which differs little elsewhere."""
    run, expected = nbformat.read(path, as_version=4), verify.read_expected()[path.stem]
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    same = verify.compare(run, expected)
    assert (same.departures, same.missing, same.idle) == ([], 0, 0)
    wanted = verify.wanted(expected, verify.SAVED)
    of_other_counts = [cell for cell in expected if prints_another_count_elsewhere(cell)]
    left_out, shown = (sum(len(cell["numbers"]) for cell in cells) for cells in (of_other_counts, expected))
    assert same.numbers == shown - left_out > max(100, 0.97 * shown), "most of what it prints is compared"
    for cell, what in zip(expected, wanted, strict=True):
        large = [
            position
            for position, (number, off) in enumerate(zip(what.numbers, what.slack or (), strict=False))
            if abs(number.value) >= max(10 * number.unit, 2e-3, 10 * off)
        ]
        if large:
            more = {**cell, "numbers": larger(cell["numbers"], large[0])}
            runs = cell.get("elsewhere", {}).get(verify.SAVED, [])
            more["elsewhere"] = {verify.SAVED: [larger(one, large[0]) for one in runs]}
            (departure,) = verify.compare(run, [more if other is cell else other for other in expected]).departures
            assert departure.line == cell["line"]


def prints_another_count_elsewhere(cell):
    """Whether no other machine of the saved runs' format printed as many numbers, so that they can't be paired."""
    runs = cell.get("elsewhere", {}).get(verify.SAVED, [])
    return bool(runs) and all(len(run) != len(cell["numbers"]) for run in runs)


def larger(numbers, position):
    """One of them by 20 %."""
    return [*numbers[:position], f"{Number(numbers[position]).value * 1.2:.12f}", *numbers[position + 1 :]]


EXPECTED = verify.expected_of(
    lesson(
        ("a = 1\nprint(a)", [printed("damage 2.0\n")]), ("b", [printed("3.0")]), ("silent", []), ("b", [printed("4")])
    )
)


def compare(*cells):
    return verify.compare(lesson(*cells), EXPECTED)


def test_cells_are_found_by_their_code():
    assert [(cell["line"], cell["numbers"], cell["heading"]) for cell in EXPECTED] == [
        ("a = 1", ["2.0"], "The idea"),
        ("b", ["3.0"], "The idea"),
        ("b", ["4"], "The idea"),
    ]
    a, b, again = ("a = 1\nprint(a)", [printed("damage 2.04\n")]), ("b", [printed("3.1")]), ("b", [printed("4")])
    result = compare(("mine", [printed("7")]), a, b, again)
    assert (result.cells, result.numbers, result.departures) == (3, 3, [])
    assert (
        result.sentence() == "3 of 3 cells run; 3 numbers compared (bfloat16), half of them to within 5.0%; as expected"
    )
    result = compare(("a = 2\nprint(a)", [printed("damage 9\n")]), b, again)
    assert (result.missing, result.departures) == (1, []), "an edited cell is the learner's own business"
    assert compare(b, again, a).departures == []


def test_departures():
    a, b, again = ("a = 1\nprint(a)", [printed("damage 2.0\n")]), ("b", [printed("5.0")]), ("b", [printed("4")])
    (left,) = compare(a, b, again).departures
    assert str(left) == "under “The idea”, cell `b`: 1 of 1 numbers, most of all …: 5.0 instead of 3.0"
    (left,) = compare(a, ("b", [printed("5.0 6.0")]), again).departures
    assert left.what == "it prints 2 numbers where 1 are expected"
    error = nbformat.v4.new_output("error", ename="RuntimeError", evalue="no memory\nmore", traceback=[])
    (left,) = compare(a, ("b", [error]), again).departures
    assert left.what == "it stopped with RuntimeError: no memory"


def test_cells_that_were_not_run():
    run = lesson(("a = 1\nprint(a)", [printed("damage 9.0\n")]), ("b", []), ("b", []))
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
    assert verify.compare(run, EXPECTED).sentence() == "not run yet"


@pytest.mark.parametrize("profile", ["hub", "smoke"])
def test_other_profiles_have_other_models(profile):
    run = lesson(("a = 1\nprint(a)", [printed("damage 9.0\n")]), ("b", []), ("b", []))
    run.cells[1].outputs[0].text = f"lesson       03\nprofile      {profile}\n"
    result = verify.compare(run, EXPECTED)
    assert result.departures == [] and f"profile {profile}, so numbers aren't compared" in result.sentence()
    error = nbformat.v4.new_output("error", ename="OutOfMemoryError", evalue="CUDA", traceback=[])
    run.cells[2].outputs = [error]
    assert len(verify.compare(run, EXPECTED).departures) == 1, "but errors count everywhere"


def cell(*elsewhere, numbers, form="bfloat16"):
    """A cell of a lesson, and what it printed on other machines."""
    return {"id": "a", "heading": "", "line": "a", "numbers": numbers, "elsewhere": {form: [*elsewhere]}}


def slack(*cells, form="bfloat16"):
    return [one.slack for one in verify.wanted(cells, form)]


def test_a_number_may_differ_twice_as_much_as_it_did_elsewhere():
    numbers = ["2.0", "10.0", "0.00", "1,000"]
    (allowed,) = slack(cell(["2.0", "10.4", "0.02", "1,010"], ["1.9", "10.1", "-0.03", "1,000"], numbers=numbers))
    usual = 2 * (0.1 / 2 + 0.4 / 10) / 2  # twice the upper quartile of .05, .04 and .01
    assert allowed == pytest.approx([max(0.2, usual * 2), max(0.8, usual * 10), 0.06, max(20, usual * 1000)])


def test_what_was_equal_elsewhere_may_differ_as_much_as_what_was_not_usually_did():
    same, other = cell(["2.0"], numbers=["2.0"]), cell(["10.2"], numbers=["10.0"])
    assert slack(same, other) == [[pytest.approx(0.04)], [pytest.approx(0.4)]]
    assert slack(same) == [[0.0]], "computed by hand, and the same everywhere"
    assert slack(same, cell(["5.0"], numbers=["10.0"]))[0] == [pytest.approx(0.1)], "no more than one never measured"


def test_a_cell_that_was_not_measured_and_one_that_cannot_be_compared():
    assert slack(cell(numbers=["2.0", "0.00"])) == [[pytest.approx(0.1), 0.0]]
    assert slack(cell(["2.0"], numbers=["2.0", "3.0"])) == [None], "it prints as many numbers as it likes"
    assert slack(cell(["2.0"], numbers=[])) == [[]]


def test_each_number_format_has_its_own_numbers():
    """A model in float32 takes twice the memory; that is no departure, and says nothing about what may differ."""
    expected = [cell(["538"], ["540"], numbers=["269"], form="float32")]
    assert [number.text for number in verify.wanted(expected, "float32")[0].numbers] == ["538"]
    assert slack(*expected, form="float32") == [[4.0]] and slack(*expected, form="bfloat16") == [[pytest.approx(13.45)]]
    assert [number.text for number in verify.wanted(expected, "float16")[0].numbers] == ["269"], "never measured"
    one = [cell(["538"], numbers=["269"], form="float32")]
    assert slack(*one, form="float32") == [[pytest.approx(26.9)]], "one run says what, not how far"


def test_measured_allowances_are_used_and_told():
    expected = [{**EXPECTED[0], "elsewhere": {"float32": [["2.4"], ["2.5"]]}}, *EXPECTED[1:]]
    b, again = ("b", [printed("3.0")]), ("b", [printed("4")])
    for value, form, leaves in (
        ("2.6", "float32", False),
        ("2.2", "float32", False),
        ("2.8", "float32", True),
        ("2.0", "float32", True),
        ("2.0", "bfloat16", False),
        ("2.4", "bfloat16", True),
    ):
        run = lesson(("a = 1\nprint(a)", [printed(f"damage {value}\n")]), b, again)
        run.cells[1].outputs[0].text = f"profile      embedded\nfast dtype   {form}\n"
        found = verify.compare(run, expected)
        assert bool(found.departures) == leaves, (value, form)
        allowed = (
            "(float32), half of them to within 5.0%" if form == "float32" else "(bfloat16), half of them to within 5.0%"
        )
        assert allowed in found.sentence()


def test_parameters_are_equal_whatever_was_measured():
    expected = [{**EXPECTED[0], "numbers": ["200"], "elsewhere": {"bfloat16": [["220"]]}}]
    run = lesson(("a = 1\nprint(a)", [printed("parameters 201\n")]))
    assert verify.compare(run, expected).departures


@pytest.mark.parametrize(
    "text",
    [
        "width 1280: 0.94 of the estimate",
        "4 bits × fewer blocks would be × 1.81 as a product",
        "J for 1,000 tokens: 3",
        "    depth against it: no difference shown, perplexity × 1.01 (0.91 to 1.11)",  # a width picked by its time
        "    shown to be at least as fast, width 1152: no difference shown, perplexity × 0.90 (0.78 to 1.03)",
        "6 of 12 intervals lie above their estimates as a whole",
        "here, 5.2 % · cost only: -0.009, dealt -0.009, p = 0.356",  # a plan made with the seconds of this machine
    ],
)
def test_what_is_computed_from_times_belongs_to_the_machine(text):
    assert verify.expected_of(lesson(("a", [printed(text)])))[0]["numbers"] == []


def test_a_cell_that_rests_on_times_belongs_to_the_machine():
    run = lesson(("a", [printed("gap 2.0")]), ("b", [printed("3.0")]))
    run.cells[2].metadata["tags"] = ["timed"]
    assert [cell["line"] for cell in verify.expected_of(run)] == ["b"]


def test_teachers_guide_says_how_far_the_machines_are_apart():
    """Who measures others tells teachers."""
    page = " ".join((ROOT / "docs" / "teaching.md").read_text(encoding="utf-8").split())
    saved = verify.read_expected()
    others = verify.read_others()
    laptop, workstation, server = (others[name]["lessons"] for name in ("laptop", "workstation", "server"))
    for machine in others.values():
        assert machine["lessons"].keys() == saved.keys(), "every lesson was run as each"
    compared, apart = pairs_apart(laptop, workstation)
    assert f"of {compared:,} numbers {sum(apart.values())} differ between the first two" in page
    outside, compared = outside_of_the_others(saved, others)
    assert f"{sum(outside.values())} of {compared:,} numbers are further off than `verify` allows" in page
    assert f"{outside['08']} of them in lesson 08" in page
    compared, apart = pairs_apart(saved, server)
    told = f"{sum(apart.values()):,} of {compared:,} differ from the saved run's, {apart['09']} of them in lesson 09"
    assert told in page


def outside_of_the_others(saved, others):
    """How many numbers of each machine are further off than the others allow, by lesson, and how many were compared."""
    outside, compared = {}, 0
    for lesson in saved:
        one = {name: {**machine, "lessons": {lesson: machine["lessons"][lesson]}} for name, machine in others.items()}
        found = machines.judged({lesson: saved[lesson]}, one).values()
        outside[lesson[:2]] = sum(number for number, _ in found)
        compared += sum(number for _, number in found)
    return outside, compared


def pairs_apart(lessons, others):
    """How many numbers both machines printed, and how many of them differ, by lesson."""
    compared, apart = 0, {}
    for lesson, cells in lessons.items():
        runs = zip(cells, others[lesson], strict=True)
        both = [
            (one["numbers"], other["numbers"]) for one, other in runs if len(one["numbers"]) == len(other["numbers"])
        ]
        pairs = [pair for one, other in both for pair in zip(one, other, strict=True)]
        compared, apart[lesson[:2]] = compared + len(pairs), sum(one != other for one, other in pairs)
    return compared, apart


def test_other_machines_are_kept_beside_the_saved_run(tmp_path):
    cells = ("a = 1\nprint(a)", [printed("damage 2.0\n")]), ("b", [printed("3.0")])
    nbformat.write(lesson(*cells), tmp_path / "01_x.ipynb")
    others = {
        "laptop": {"format": "float32", "lessons": {"01_x": [{"id": EXPECTED[0]["id"], "numbers": ["2.1"]}]}},
        "server": {"format": "bfloat16", "lessons": {"02_y": []}},
    }
    (fresh,) = verify.with_saved({}, [tmp_path / "01_x.ipynb"], others=others).values()
    assert fresh[0]["elsewhere"] == {"float32": [["2.1"]]} and "elsewhere" not in fresh[1]
    assert verify.with_others("01_x", fresh, {}) == verify.expected_of(lesson(*cells)), "what is gone goes"


@pytest.mark.parametrize("path", SAVED, ids=[path.stem[:2] for path in SAVED])
def test_saved_runs_have_the_format_that_they_are_said_to_have(path):
    text = str([cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells])
    assert f"fast dtype   {verify.SAVED}" in text


def test_ids_are_the_builders():
    cell = nbformat.v4.new_code_cell("1 + 1")
    notebooks._number([cell])
    assert cell.id == notebooks.content_id(cell)
