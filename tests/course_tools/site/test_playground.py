"""The page "Prune it in your browser": what is put into it, and its numbers beside Python's, in a real browser."""

import base64
import copy
import functools
import hashlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import looking
import pytest
import torch
from bs4 import BeautifulSoup
from safetensors.torch import load
from screens import PHONE

from course_tools.lessons.authoring import read_lesson
from course_tools.site import playground
from course_utils.measuring.evaluation import perplexity
from course_utils.models.loading import load_model, variant
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, neuron_means, prune_neurons, strongest
from course_utils.support.records import read_record
from course_utils.text import assets
from course_utils.text.rows import judging_rows, token_blocks

ROOT = Path(__file__).resolve().parents[3]
FILES = ROOT / "docs" / "play"
MODEL = ROOT / "course_utils/data/gpt2"
LESSON = ROOT / "lessons/01_distilgpt2_l1_width_pruning.py"
EMPTY = dict.fromkeys(("worker", "config", "tokenizer", "measured", "model"), "")
PROMPT = "The people of the United States"
ODD = (
    "", "Hello  world", "It's what WE'LL say:\n\n 12,345.67", "naïve 😀👩\u200d🚀 ①²³ 日本語\t",
    "a\u00a0b\u0085c\u2003 d\ufeff", "before<|endoftext|>after", "   ", "don't 'tis 'sup",
)  # fmt: skip


def test_code_and_data_go_into_the_page_and_its_policy_allows_no_other(tmp_path):
    sources = {
        "page.html": '<meta http-equiv="Content-Security-Policy" content="">\n<link rel="stylesheet" href="a.css">\n'
        '<script type="application/json" id="config"></script><script src="b.js"></script>',
        "a.css": "p { color: red }\n",
        "b.js": "if (1 < 2) go();\n",
    }
    for name, text in sources.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    value = ["</script><script>alert(1)</script>"]
    page = BeautifulSoup(playground.page(tmp_path, {"config": json.dumps(value)}), "html.parser")
    config, script = page("script")
    assert page.style.string.strip() == sources["a.css"].strip() and script.string.strip() == sources["b.js"].strip()
    assert config["type"] == "application/json" and script.attrs == {} and json.loads(config.string) == value
    policy = page.meta["content"]
    for text in (page.style.string, script.string):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "http" not in policy


def test_page_asks_for_nothing_from_elsewhere():
    text = playground.page(FILES, EMPTY)
    page = BeautifulSoup(text, "html.parser")
    assert len(page("script")) > len(EMPTY), "code is there"
    for tag in page(True):
        loads = [tag[name] for name in ("src", "srcset", "data", "poster") if tag.has_attr(name)]
        loads += [tag["href"]] if tag.name == "link" else []
        assert all(address.startswith("data:") for address in loads), tag.attrs
        assert not any(name.startswith("on") or name == "style" for name in tag.attrs), "the policy would refuse it"
    sources = "".join(file.read_text(encoding="utf-8") for file in FILES.iterdir())
    assert set(re.findall(r"https?://[^\s\"')]+", sources)) == {"http://www.w3.org/2000/svg"}, "a name, nothing to load"


# What the builder measures, beside lesson 01's own code


@functools.cache
def lesson():
    """Lesson 01's model, rows and means, made by the lesson's own code."""
    if not all(map(assets.is_cached, playground.ASSETS)):
        pytest.skip("the texts aren't in the cache; `python3 course.py run 01` fetches them")
    cells = [cell.source for cell in read_lesson(LESSON).cells]
    base, tokenizer = load_model(MODEL, device="cpu")
    names = {"base": base, "tokenizer": tokenizer, "torch": torch, "blocks": base.transformer.h}
    names |= {"judging_rows": judging_rows, "token_blocks": token_blocks, "session": SimpleNamespace(seed=0)}
    names |= {"neuron_importance": neuron_importance, "neuron_means": neuron_means}
    parts = (
        ("texts = judging_rows", "texts = {name"),
        ("pool = token_blocks(", "whole = {"),
        ("reads = {", "activation"),
    )
    for begin, end in parts:
        (source,) = (cell for cell in cells if begin in cell)
        exec(source[source.index(begin) : source.index(end)], names)
    return SimpleNamespace(**names)


@functools.cache
def scores(criterion, seed=0):
    batches = lesson().calibration.batches(8) if criterion == "activation" else None
    return neuron_importance(lesson().base, criterion, batches=batches, seed=seed)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The built page."""
    lesson()
    path = tmp_path_factory.mktemp("play") / playground.NAME
    playground.build(ROOT, path)
    return path


@pytest.mark.embedded
def test_built_page_holds_the_model_and_what_lesson_01_measures_with(path):
    assert path.stat().st_size < 20e6
    html = path.read_text(encoding="utf-8")
    assert '<meta property="og:title" content="Prune it in your browser · Pruning LLMs">' in html
    assert re.search(r'"og:image" content="https://[^"]+/_images/criteria\.png"', html) and "twitter:card" in html
    data = {script["id"]: script.string for script in BeautifulSoup(html, "html.parser")("script", id=True)}
    assert base64.b64decode(data["model"]) == (MODEL / "model.safetensors").read_bytes()
    assert json.loads(data["config"]) == json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    measured = load(base64.b64decode(data["measured"]))
    for domain, rows in lesson().texts.items():
        assert torch.equal(measured[f"rows.{domain}"].long(), rows.input_ids)
    orders = {("l1", 0): measured["order.l1"], ("activation", 0): measured["order.activation"]}
    orders |= {("random", seed): order for seed, order in enumerate(measured["order.random"])}
    assert len(orders) == 2 + 19
    for (criterion, seed), order in orders.items():
        for ratio in (0.01, 0.2, 0.4, 0.9):
            for block, of_block in zip(order, scores(criterion, seed), strict=True):
                kept = strongest(of_block, ratio)
                assert torch.equal(block[len(block) - len(kept) :].sort().values.long(), kept)
    torch.testing.assert_close(measured["means"], torch.stack(lesson().means), rtol=1e-4, atol=1e-6)


# In a browser


@pytest.fixture
def play(page, path):
    """The page, opened from its file."""
    page.goto(path.as_uri())
    page.wait_for_selector("#loading", state="hidden")
    return page


def settle(page, *, random=False):
    """Wait until the last choice is measured on both texts and writes, and with `random` beside its random cuts."""
    looking.drawn(page)  # until then the page says what it knew of the cut before
    for part in ("speeches", "wiki", "whole-writes", "cut-writes"):
        page.wait_for_selector(f"#{part}[aria-busy=false]")
    if random:
        page.wait_for_selector("#progress:empty", state="attached", timeout=600_000)  # 19 × 96 rows on a busy machine


def nats(page, kind="cut"):
    """Of both texts, as the page shows them."""
    titles = [page.locator(f"#{text} dd.{kind}").get_attribute("title") for text in ("speeches", "wiki")]
    return [float(title.removesuffix(" nats a token")) for title in titles]


def choose(page, criterion, percent, *, mean=False, seed=0):
    page.locator("#reset").click()
    if criterion == "random":
        page.locator("#seed").select_option(str(seed))
    else:
        page.locator(f"[name=criterion][value={criterion}]").check()
    page.locator("#percent").fill(str(percent))
    page.locator("#mean").set_checked(mean)


def python_nats(model):
    return [perplexity(model, rows, batch_size=8).nll for rows in lesson().texts.values()]


def pruned(criterion, ratio, *, mean=False, seed=0):
    model = variant(lesson().base)
    prune_neurons(model, scores(criterion, seed), ratio=ratio, means=lesson().means if mean else None)
    return model


def continuation(model, prompt=PROMPT):
    ids = lesson().tokenizer(prompt, return_tensors="pt")
    whole = model.generate(**ids, max_new_tokens=40, do_sample=False)
    return lesson().tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def agree(page, model):
    """The page's numbers and its text are those of this model."""
    settle(page)
    assert nats(page) == pytest.approx(python_nats(model), abs=1e-3)
    text = page.locator("#cut-writes").text_content().removesuffix(" (here it ends the text)")
    assert text == PROMPT + continuation(model)


@pytest.mark.browser
def test_whole_model_and_guessing(play):
    play.locator("#reset").click()
    agree(play, lesson().base)
    assert nats(play, "whole") == nats(play)
    assert nats(play, "guessing") == pytest.approx([math.log(lesson().base.config.vocab_size)] * 2, abs=1e-4)
    assert "whole model" in play.locator("#verdict").text_content()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("criterion", "percent", "mean", "seed"),
    [
        ("l1", 20, False, 0), ("l1", 20, True, 0), ("activation", 20, False, 0), ("activation", 40, True, 0),
        ("random", 20, False, 0), ("random", 20, True, 18), ("random", 33, False, 18),
    ],
)  # fmt: skip
def test_numbers_and_text_are_those_of_really_pruned_models(play, criterion, percent, mean, seed):
    choose(play, criterion, percent, mean=mean, seed=seed)
    agree(play, pruned(criterion, percent / 100, mean=mean, seed=seed))


@pytest.mark.browser
def test_neurons_and_blocks_taken_out_by_hand(play):
    """Some of block 1 by mouse, all of block 2's MLP, the whole of block 4; then one comes back by L1's cut."""
    play.locator("#reset").click()
    gone = [(1, 0), (1, 517), (1, 1023), (1, 32)]
    canvas = play.locator("#blocks canvas").nth(1)
    for _, neuron in gone:
        side = canvas.bounding_box()["width"] / 32
        position = {"x": (neuron % 32 + 0.5) * side, "y": (neuron // 32 + 0.5) * side}
        canvas.click(position=position)
        looking.drawn(play)
    assert play.locator("#blocks .count").nth(1).text_content() == "4 gone"
    play.get_by_role("button", name="no MLP in block 2").click()
    play.get_by_role("button", name="no block 4").click()
    model = copy.deepcopy(lesson().base)
    with torch.no_grad():
        for block, neuron in gone:
            model.transformer.h[block].mlp.c_proj.weight[neuron] = 0
        model.transformer.h[2].mlp.c_proj.weight.zero_()
    remove_blocks(model, [4])
    agree(play, model)
    play.get_by_role("button", name="no MLP in block 2").click()
    play.get_by_role("button", name="no block 4").click()
    play.locator("#undo").click()
    looking.drawn(play)
    assert play.locator("#blocks .count").all_text_contents() == ["0 gone"] * 6
    assert play.locator("#verdict").text_content().startswith("This is the whole model")


@pytest.mark.browser
def test_verdict_is_counted_from_the_random_cuts(play):
    """L1 at 20 % on speeches: what lesson 01 tells, without the mean and with it; its record has the random cuts."""
    record = read_record("keep_the_mean").query(
        "draw == 0 and dtype == 'float32' and ratio == 0.2 and text == 'speeches'"
    )
    whole = perplexity(lesson().base, lesson().texts["speeches"], batch_size=16).nll
    for mean in (False, True):
        choose(play, "l1", 20, mean=mean)
        settle(play, random=True)
        damages = record[record.edit == ("mean kept" if mean else "cut")].set_index("criterion").damage + whole
        own, random = damages["L1"], list(damages["random"])
        beaten = sum(other > own for other in random)
        assert beaten == (19 if mean else 0), "as the lesson's saved run has it"
        word = "Better" if mean else "Worse"
        assert play.locator("#verdict strong").text_content() == f"{word} than all 19 random cuts."
        assert play.locator("#announcement").text_content() == play.locator("#verdict").text_content()
        assert play.locator("#speeches svg .random").count() == 19
        name = play.locator("#speeches svg").get_attribute("aria-label")
        shown = [float(text) for text in re.search(r"19 random cuts: (.*)\.$", name)[1].split(", ")]
        assert shown == pytest.approx([math.exp(other) for other in random], rel=0.01)


@pytest.mark.browser
def test_what_the_first_rows_say_is_shown_and_marked(play):
    """Of both texts, long before one of them is read to its end."""
    play.evaluate(
        "() => { const shown = document.querySelector('#results'); globalThis.seen = [];"
        "  new MutationObserver(() => seen.push(shown.innerText)).observe(shown, { childList: true, subtree: true }); }"
    )
    choose(play, "l1", 37)
    settle(play)
    seen = play.evaluate("seen")
    early = [text for text in seen if re.search(r"So far: perplexity .*\sFrom 1?\d of 48 rows of speeches\.", text)]
    assert any(text.count("≈") in (2, 4) for text in early), "this cut on both texts, and maybe the whole model"
    assert "So far:" not in seen[-1] and "≈" not in seen[-1]


@pytest.mark.browser
def test_a_slider_moved_quickly_ends_in_the_last_setting(page, path):
    """Also before the whole model's own result is there."""
    page.goto(path.as_uri())
    page.locator("#percent").focus()
    for _ in range(25):
        page.keyboard.press("ArrowRight")
    page.locator("#mean").check()
    for _ in range(5):
        page.locator("#percent").press("ArrowLeft")
    agree(page, pruned("l1", 0.4, mean=True))


@pytest.mark.browser
def test_tokenizer_and_prompts(play):
    for text in ODD:
        assert play.evaluate("text => tokenizer.encode(text)", text) == lesson().tokenizer(text)["input_ids"], text
        ids = lesson().tokenizer("x" + text)["input_ids"]
        assert play.evaluate("ids => tokenizer.decode(ids)", ids) == lesson().tokenizer.decode(ids)
    choose(play, "activation", 20, mean=True)
    for prompt in ("I recommend to the Congress", "A naïve 😀  plan"):
        play.locator("#prompt").fill(prompt)
        settle(play)
        expected = prompt + continuation(pruned("activation", 0.2, mean=True), prompt)
        assert play.locator("#cut-writes").text_content() == expected
    play.locator("#prompt").fill("")
    settle(play)


@pytest.mark.browser
def test_without_webassembly_it_is_slower_and_right(browser, path):
    """The threads' own code is told so, because a page's setting doesn't reach them."""
    page = browser.new_page()
    page.add_init_script(
        "const Whole = Blob; Blob = function (parts, kind) {"
        "  return new Whole(['delete globalThis.WebAssembly;', ...parts, ';fallback = typeof WebAssembly'], kind); };"
    )
    page.goto(path.as_uri())
    agree(page, pruned("l1", 0.2))
    assert page.workers[0].evaluate("[typeof WebAssembly, model.kernels.tile === model.kernels.row]") == [
        "undefined",
        True,
    ]
    page.close()


@pytest.mark.browser
def test_keyboard_alone(play):
    """Every control; a neuron by the enlarged map."""
    play.locator("[name=criterion]:checked").focus()
    play.keyboard.press("ArrowRight")
    assert play.locator("[value=activation]").is_checked()
    play.locator("#percent").focus()
    play.keyboard.press("Home")
    settle(play)
    assert play.locator("#verdict").text_content().startswith("This is the whole model")
    play.get_by_role("button", name="Enlarge block 3").focus()
    play.keyboard.press("Enter")
    for key in ("ArrowDown", "ArrowRight", "Space"):  # neuron 33
        play.keyboard.press(key)
    cell = play.get_by_role("gridcell", name="Neuron 33, gone")
    assert cell.evaluate("cell => cell === document.activeElement")
    assert play.locator("#large-note").text_content() == "Neuron 33 is gone."
    assert min(cell.bounding_box()["width"], cell.bounding_box()["height"]) >= 24
    play.keyboard.press("Escape")
    play.wait_for_selector("#large", state="hidden")
    model = copy.deepcopy(lesson().base)
    with torch.no_grad():
        model.transformer.h[3].mlp.c_proj.weight[33] = 0
    agree(play, model)
    play.get_by_role("button", name="Cut 20 % by L1").focus()
    play.keyboard.press("Enter")
    settle(play)
    assert play.locator("[value=l1]").is_checked() and play.locator("#percent").input_value() == "20"


@pytest.mark.browser
def test_on_a_phone_a_tap_enlarges_the_map(browser, path):
    tab = browser.new_page()
    touch = tab.context.new_cdp_session(tab)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    tab.set_viewport_size(PHONE)
    tab.goto(path.as_uri())
    tab.wait_for_selector("#loading", state="hidden")
    canvas = tab.locator("#blocks canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    point = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": point})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.wait_for_selector("#large", state="visible")
    assert tab.get_by_role("gridcell").first.bounding_box()["width"] >= 24
    assert looking.faults(tab) == [] and looking.sideways(tab) == []
    tab.get_by_role("button", name="Close").click()
    assert tab.locator("#blocks .count").first.text_content() == "204 gone", "looking changed nothing"
    tab.close()


@pytest.mark.browser
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_page_is_readable_and_quiet(play, mode):
    stored = "JSON.stringify([localStorage, sessionStorage, document.cookie])"
    play.emulate_media(color_scheme=mode)
    settle(play)
    assert looking.faults(play) == [] and looking.sideways(play) == []
    looking.resize(play, PHONE)
    assert looking.faults(play) == [] and looking.sideways(play) == []
    assert play.troubles.console == play.troubles.requests == []
    assert play.evaluate(stored) == '[{},{},""]'
