"""Figures to move through: their numbers beside the records', and what a reader sees and hears in a real browser."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from part_of_site import open_alone
from screens import PHONE, WIDE

pytest.importorskip("sphinx", reason="part of the extra site")

import looking

from course_tools.site import explorable, pages
from course_utils.lessons.prompt_harm import Record
from course_utils.models.reports import with_interval
from course_utils.support.plotting import mark

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "course_utils/data"
WHITE, NIGHT = "#ffffff", "#14181e"  # the theme's pages, light and dark
COMMON = {"draw": 0, "dtype": "float32", "text": "wiki"}


def stored(name):
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def damages(name, **wanted):
    """Nats per token of each row of a recorded cut, minus those of the uncut model, from the file itself."""
    record = stored(f"records/{name}.json")

    def sums(**known):
        return next(
            np.array(entry["sums"]) / entry.get("predictions", record["predictions"])
            for entry in record["entries"]
            if all(entry[key] == value for key, value in (COMMON | known).items())
        )

    return sums(**wanted) - sums(criterion="", **{key: wanted[key] for key in COMMON.keys() & wanted.keys()})


def point(lesson, *chosen):
    return next(one for one in explorable.figure(lesson).points if one.chosen == chosen)


@pytest.mark.parametrize("lesson", explorable.LESSONS)
def test_each_choice_is_one_entry_and_the_axes_hold_all_of_them(lesson):
    figure, data = explorable.figure(lesson), json.loads(explorable.page_data(lesson))
    assert len({one.chosen for one in figure.points}) == len(figure.points) > 4
    values = [control["values"] for control in data["controls"]]
    for one, told in zip(figure.points, data["points"], strict=True):
        assert tuple(values[i][number] for i, number in enumerate(told["chosen"])) == one.chosen
        assert one.low <= one.y <= one.high
        for axis, numbers in (("x", [one.x]), ("y", [one.low, one.high])):
            low, high = data[axis]["span"]
            assert low <= min(numbers) <= max(numbers) <= high
    for axis in (data["x"], data["y"]):
        assert 3 <= len(axis["ticks"]) <= 9 or (axis["label"] == "" and len(axis["ticks"]) in (4, 8))


def test_cuts_of_neurons_are_those_of_the_record():
    one = point("03", "wiki", "float32", "L1", "first token's state put back", "0")
    rows = damages("random_cuts", criterion="L1", edit="stream put back")
    half = 2.0117 * rows.std(ddof=1) / math.sqrt(len(rows))  # Student's t, 47 degrees of freedom
    expected = [math.exp(rows.mean() + side * half) for side in (0, -1, 1)]
    assert [one.y, one.low, one.high] == pytest.approx(expected, rel=1e-3)
    assert f"× {with_interval(*expected)} of the whole model's" in one.says
    blind = [damages("random_cuts", criterion="random", edit="shared", seed=seed) for seed in range(19)]
    middle = sorted(blind, key=np.mean)[9]
    assert f"× {with_interval(math.exp((rows - middle).mean()), 0, 0).split()[0]} (" in one.says


def test_sets_of_blocks_are_those_of_the_record():
    one = point("04", "wiki", "float32", "six neighbours", "blocks 10 to 15")
    assert one.y == pytest.approx(damages("leave_out", criterion="run", layers=[*range(10, 16)]).mean())
    alone = [damages("leave_out", criterion="alone", part="block", layers=[block]).mean() for block in range(10, 16)]
    assert one.x == pytest.approx(sum(alone))
    assert with_interval(one.y, one.low, one.high) in one.says and f"× {math.exp(one.y):.1f}" in one.says


def test_rules_for_prompts_are_those_of_the_record():
    record = Record.load()
    judged = slice(record.choosing, None)
    one = point("06", "one for all", "3 of 30 attentions")
    assert one.x == pytest.approx(10) and one.y == pytest.approx(record.harm[judged, record.numbers.index(3)].mean())
    shares = [share for share, _ in explorable.figure("06").lines[0].places]
    assert shares == pytest.approx([100 * number / 30 for number in record.numbers])
    for share in (2, 25):
        one = point("06", "price", f"{share:.1f} % asked for")
        assert one.x == pytest.approx(share, abs=1) and f"{one.x:.1f} % of the cache" in one.says
        gap, low, high = map(float, re.search(r"is (\S+) \((\S+) to (\S+)\) beside", one.says).groups())
        assert [one.low - one.y, one.high - one.y] == pytest.approx([low - gap, high - gap], abs=2e-3) and high < 0


def test_times_are_those_of_the_record():
    for row in stored("token_times.json"):
        one = point("10", row["program"], row["name"])
        assert [one.y, one.low, one.high, one.foot] == [row[key] for key in ("milliseconds", "low", "high", "floor")]
        assert f"{row['milliseconds']:.1f} ms per token ({row['low']:.1f} to {row['high']:.1f})" in one.says


def test_abilities_are_those_of_the_record():
    one = point("12", "three blocks", "neurons, by a mix", "German", "2")
    made = {"criterion": "activation", "part": "neurons", "read": "mix", "seed": 2, "price": 3, "healed": ""}
    rows = damages("damage_profile", text="German", dtype="bfloat16", **made)
    assert one.y == pytest.approx(rows.mean()) and with_interval(one.y, one.low, one.high) in one.says
    made["dtype"] = "bfloat16"
    text = np.mean([damages("damage_profile", text=text, **made).mean() for text in ("speeches", "wiki")])
    assert f"beside {text:.2f} on text" in one.says
    (band,) = [line for line in explorable.figure("12").lines if line.chosen == ("three blocks",)]
    assert {round(level, 1) for _, level in band.places} == {0.2}


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lit(colour):
    """As course.css mixes it on a dark page."""
    return "#" + "".join(f"{round((int(colour[i : i + 2], 16) + 255) / 2):02x}" for i in (1, 3, 5))


@pytest.mark.parametrize("lesson", explorable.LESSONS)
def test_marks_are_the_courses_and_stand_out_by_day_and_by_night(lesson):
    looks = json.loads(explorable.page_data(lesson))["looks"]
    for name, look in looks.items():
        assert contrast(look["colour"], WHITE) >= 3 and contrast(lit(look["colour"]), NIGHT) >= 3, name
    arms = {one.name for one in explorable.figure(lesson).points}
    assert all(looks[name]["outline"] for name in arms)
    colours = {name: mark(explorable.figure(lesson).likes.get(name, name))["color"] for name in arms}
    assert all(looks[name]["colour"] == colour for name, colour in colours.items() if colour.startswith("#"))


def test_outline_of_a_marker_is_as_matplotlib_draws_it():
    assert explorable._look("L1")["outline"] == "M-0.5 -0.5L0.5 -0.5L0.5 0.5L-0.5 0.5Z"
    assert explorable._look("guessing")["outline"] == ""


# In a browser

PICTURE = (
    '<div class="cell"><div class="cell_output"><img alt="A figure of dots." width="40" height="40" '
    'src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></div></div>'
)
TICKS = "[...document.querySelectorAll('.grid + text')].map(text => [text.textContent, text.getAttribute('y') - 4])"
WALK = """chosen => {
    const inputs = [...document.querySelectorAll('.explorable select, .explorable input')];
    const set = (input, value) => { input.value = value; input.dispatchEvent(new Event('input')); };
    inputs.forEach((input, i) => {
        if (input.tagName === 'SELECT') {
            set(input, [...input.options].findIndex((option) => option.text === chosen[i]));
        } else {
            for (let n = 0; n <= Number(input.max); n++) {
                set(input, n);
                if (input.getAttribute('aria-valuetext') === chosen[i]) break;
            }
        }
    });
    return document.querySelector('.says').textContent;
}"""


def show(page, folder, lesson):
    open_alone(page, folder, PICTURE + pages.explorable_page(lesson), "explore.js")


@pytest.mark.browser
@pytest.mark.parametrize("lesson", explorable.LESSONS)
def test_reader_reaches_each_entry_and_reads_its_sentence(lesson, page, tmp_path):
    show(page, tmp_path, lesson)
    points = explorable.figure(lesson).points
    for one in [*points[:: max(1, len(points) // 40)], points[-1]]:
        assert page.evaluate(WALK, list(one.chosen)) == one.says
    assert page.locator(".key li").all_inner_texts()[-1] == explorable.figure(lesson).interval
    assert page.troubles.console == [] and looking.faults(page) == []
    looking.resize(page, PHONE)
    assert looking.sideways(page) == []


@pytest.mark.browser
def test_mark_stands_where_its_number_is(page, tmp_path):
    show(page, tmp_path, "03")
    one = point("03", "wiki", "float32", "L1", "10 % cut", "0")
    page.evaluate(WALK, list(one.chosen))
    ticks = page.evaluate(
        "[...document.querySelectorAll('.grid + text')].map(t => [t.textContent, t.getAttribute('y') - 4])"
    )
    (low, low_at), *_, (high, high_at) = [(math.log(float(text.replace(",", ""))), at) for text, at in ticks]
    at = float(page.locator(".explorable .ring").get_attribute("cy"))
    assert low + (at - low_at) / (high_at - low_at) * (high - low) == pytest.approx(math.log(one.y), abs=1e-3)


@pytest.mark.browser
def test_by_keyboard_with_names_and_the_picture_in_print(page, tmp_path):
    page.set_viewport_size(WIDE)
    show(page, tmp_path, "04")
    slider = page.get_by_role("slider", name="Which six")
    slider.focus()
    before = page.get_by_role("status").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("status").inner_text() != before
    assert slider.get_attribute("aria-valuetext") in page.get_by_role("status").inner_text().lower()
    page.get_by_role("combobox", name="Six blocks").select_option("influence")
    assert not slider.is_visible(), "there is one"
    assert page.get_by_role("img", name="A figure of dots.").count() == 1, "the drawing; the picture is out of sight"
    page.emulate_media(media="print")
    assert page.locator("img").is_visible() and not page.locator(".explorable").is_visible()
