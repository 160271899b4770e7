"""Long runs, in miniature: every part runs, a second run does nothing again, and a broken-off one goes on."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from dataclasses import replace
from itertools import accumulate, chain
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masked import IDS, logits_with, mask_of, with_neurons, without_blocks
from own_command import SMALL, VERSIONS, untimed, write_own
from tiny import tiny_batches, tiny_model

from course_utils import models, records
from course_utils.architectures import describe
from course_utils.benchmarking import speed_frame
from course_utils.bias.pronouns import recorded_trace
from course_utils.checkpoints import load_pruned
from course_utils.choosing import strongest
from course_utils.compress_command import run
from course_utils.distillation import training
from course_utils.evaluation import perplexity
from course_utils.experts import expert_importance, prune_experts
from course_utils.kinds import KINDS
from course_utils.models import variant
from course_utils.texts import TokenBlocks
from course_utils.width import neuron_importance, neuron_means, prune_neurons
from experiments import (
    compress_end_to_end,
    cut_experts,
    damage_profile,
    distil_the_bias_back,
    five_kinds,
    heal,
    keep_the_mean,
    leave_out,
    make_a_small_model,
    plant_and_cut,
    plant_twenty_biases,
    random_cuts,
    reading,
    seeds,
    serve_in_vllm,
    sets,
    small_training,
    time_cuts,
    trace_the_pronoun,
    train_small_moe,
    vllm_worker,
)

pytestmark = pytest.mark.slow


def cut_as_optipfair_does(model, *, neuron_selection_method, pruning_percentage, dataloader, show_progress):
    """In the library's place, which is no dependency of the tests: the same call, cut by our peak-to-peak."""
    assert neuron_selection_method == "MAW" and not show_progress
    prune_neurons(model, neuron_importance(model, "peak_to_peak"), ratio=pruning_percentage / 100)
    return model


@pytest.fixture
def in_miniature(monkeypatch, tmp_path):
    """Runs the experiment on random models and made-up sentences; returns its record."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    for module in (make_a_small_model, reading):
        monkeypatch.setattr(module, "LENGTH", 16)
    for tokens in ("DOMAINS", "CALIBRATION"):
        monkeypatch.setattr(make_a_small_model, tokens, dict.fromkeys(make_a_small_model.DOMAINS, 128))
    monkeypatch.setattr(make_a_small_model, "SERVED", {"prompt_tokens": 4, "new_tokens": 2, "rounds": 6})
    monkeypatch.setitem(sys.modules, "optipfair", SimpleNamespace(prune_model=cut_as_optipfair_does))
    sizes = {"SCORED": 2, "CHOSEN": 1, "JUDGED": 4, "SHARE": 0.95, "MULTIPLE_OF": 8}
    sizes |= {
        "CORRECTION": 2,
        "LIGHT": 2,
        "STEPS": 3,
        "SOLVED": 2,
        "RANDOM": 2,
        "FINALISTS": 2,
        "QUESTIONS": ("Why?",),
        "LAP": 1,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(make_a_small_model, name, value)
    # Made-up sentences are all alike.
    monkeypatch.setattr(make_a_small_model, "clean", lambda blocks, *_: torch.ones(len(blocks), dtype=torch.bool))
    out = tmp_path / "record.json"

    def run():
        monkeypatch.setattr(sys, "argv", ["x", "--work", str(tmp_path / "work"), "--out", str(out)])
        make_a_small_model.main()
        return json.loads(out.read_text(encoding="utf-8"))

    return run


def test_make_a_small_model(in_miniature, monkeypatch, tmp_path):
    taught = []
    distil = make_a_small_model.distill

    def distill_until_the_third(*args, **kwargs):
        if "checkpoint_dir" not in kwargs:  # a lap that only tells a price
            return distil(*args, **kwargs)
        taught.append((kwargs["checkpoint_dir"].name, kwargs["alpha"], kwargs["steps"]))
        if len(taught) == 4:
            raise KeyboardInterrupt
        return distil(*args, **kwargs)

    monkeypatch.setattr(make_a_small_model, "distill", distill_until_the_third)
    with pytest.raises(KeyboardInterrupt):
        in_miniature()
    record = in_miniature()
    arms = [name for name, *_ in taught[1:]]
    assert arms[2] == arms[3] and len(arms) == len(record["learned"]) + 1, "the interrupted one again, and no other"
    assert {*record["learned"]} >= {"winner", "random cut", "another draw", "depth only", "optipfair", "from scratch"}
    by_text_alone = {"whole, trained", "no teacher", "no teacher, equal minutes"}
    assert {name for name, alpha, _ in taught[1:] if alpha} == by_text_alone
    assert len({arm["tokens"] for name, arm in record["learned"].items() if "minutes" not in name}) == 1
    seconds = {name: arm["seconds"] for name, arm in record["learned"].items() if "seconds" in arm}
    assert {*seconds} - {"solved first"} == {"winner", "no teacher", "no teacher, equal minutes", "whole, trained"}
    prices = json.loads((tmp_path / "work" / "prices.json").read_text(encoding="utf-8"))
    (as_long,) = {steps for name, _, steps in taught if name == "no teacher, equal minutes"}
    assert as_long == min(9, round(3 * prices["with a teacher"] / prices["without"]))
    assert record["parameters"]["winner"] <= 0.95 * record["parameters"]["whole"]
    assert {row["seed"] for row in record["ranked"]} == {0, 1} and len(record["ranked"]) == 4
    assert {*record["axes"]} == {"neurons", "groups", "channels", "blocks"}
    assert all(len(axis["random"]) == 2 for axis in record["axes"].values())
    for role, names in {
        "released": ("winner", "solved first"),
        "rival": ("whole, corrected", "whole, trained"),
    }.items():
        assert record[role] == min((name for name in names if name in record["chosen"]), key=record["chosen"].get)
    rows = [len(numbers) for numbers in record["documents"].values()]
    assert record["texts"] == ["speeches", "wiki", "stories"] and rows == [4, 4, 4]
    assert {*record["nats"]} >= {"whole", "whole, corrected", "winner, as cut", *record["learned"]}
    for sums in chain(record["nats"].values(), (file["nats"] for file in record["stored"].values())):
        assert [len(each) for each in sums] == rows
    student, _ = models.load_model(str(tmp_path / "work" / "students" / "winner"))
    assert student.num_parameters() == record["parameters"]["winner"]
    stored = record["stored"]
    for name in ("whole", "winner", "random cut"):
        sizes = [stored[f"{name}, {kind}"]["bytes"] for kind in ("F16", "Q8_0", "Q4_0")]
        assert sizes == sorted(sizes, reverse=True)
    assert stored["winner, F16"]["bytes"] < stored["whole, F16"]["bytes"]
    for role, name in {"released": "winner", "rival": "whole"}.items():
        for ours, theirs in zip(record["nats"][record[role]], stored[f"{name}, F16"]["nats"], strict=True):
            assert theirs == pytest.approx(ours, rel=0.01)
    timed = {row["model"] for row in record["speed"]}
    assert timed == {key for key in stored if key.startswith(("whole, ", "winner, ")) and "grid" not in key}
    assert all([*said] == ["Why?"] for said in record["answers"].values())
    assert in_miniature() == record and len(taught) == len(arms) + 1


def test_rows_know_the_document_that_they_begin_in():
    ids = torch.tensor([[5, 6, 7], [0, 8, 0], [9, 0, 4], [3, 3, 3]])  # 0 ends a document
    pool = TokenBlocks(ids, torch.ones(4, dtype=torch.int64), "wiki", "evaluation")
    numbers = make_a_small_model.documents_of(pool, SimpleNamespace(eos_token_id=0))
    assert numbers.tolist() == [0, 0, 2, 3]


def test_off_the_grid_the_model_computes_the_same():
    model = tiny_model("llama").float()
    moved = make_a_small_model.off_the_grid(model)
    torch.testing.assert_close(logits_with(moved, []), logits_with(model, []), rtol=1e-3, atol=1e-4)
    for old, new in zip(describe(model).blocks.parameters(), describe(moved).blocks.parameters(), strict=True):
        assert not torch.isclose(old, new, rtol=1e-3).all(), "every matrix and every norm has other numbers"


@pytest.mark.parametrize("script", [distil_the_bias_back, plant_twenty_biases])
def test_records_of_many_seeds_are_kept_in_the_package(script, monkeypatch):
    asked = {}
    monkeypatch.setattr(script, "run_seeds", lambda *_, **options: asked.update(options) or [])
    script.main()
    assert asked["out"].startswith("course_utils/data/") and asked["work"].startswith("build/")


def test_a_seed_is_done_again_with_other_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setattr("sys.argv", ["script"])
    places, done = {"work": str(tmp_path / "work"), "out": str(tmp_path / "out.json")}, []

    def one_seed(seed, *_):
        done.append(seed)
        return [{"seed": seed, "calls": len(done)}]

    for steps in (3, 3, 4):
        rows = seeds.run_seeds("for a test", one_seed, {"steps": steps}, seeds=2, **places)
    assert done == [1, 2, 1, 2] and [row["calls"] for row in rows] == [3, 4]


def test_optipfair_cuts_to_the_winners_parameters(tmp_path):
    """As many parameters to one neuron a block, and the teacher stays as it is."""
    teacher = tiny_model()
    winner = SimpleNamespace(parameters=int(0.9 * teacher.num_parameters()))
    before = models.identity(teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "optipfair", SimpleNamespace(prune_model=cut_as_optipfair_does))
        cut = make_a_small_model.cut_by_optipfair(teacher, winner, [])
    a_neuron = 3 * teacher.config.hidden_size * teacher.config.num_hidden_layers
    assert abs(cut.num_parameters() - winner.parameters) < a_neuron and models.identity(teacher) == before


def in_three_blocks(monkeypatch):
    """The smoke profile's random models with three of their eight blocks."""
    configured = models._random_configuration

    def shallow(role):
        config, tokenizer = configured(role)
        setattr(config, "n_layer" if role == "gpt2" else "num_hidden_layers", 3)
        return config, tokenizer

    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setattr(models, "_random_configuration", shallow)


def test_keep_the_mean(monkeypatch, tmp_path):
    in_three_blocks(monkeypatch)
    work, out = tmp_path / "work.jsonl", tmp_path / "small.json"
    monkeypatch.setattr(sys, "argv", ["x", "--work", str(work), "--out", str(out)])
    rows = keep_the_mean.judging_rows
    monkeypatch.setattr(
        keep_the_mean, "judging_rows", lambda *_, draw: {text: some[:2] for text, some in rows(*_, draw=draw).items()}
    )
    monkeypatch.setattr(keep_the_mean, "CUTS", 2)
    monkeypatch.setattr(keep_the_mean, "DRAWS", 2)
    keep_the_mean.main()
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    frame = records.read_record("small")
    place = ["criterion", "seed", "edit", "ratio", "draw", "dtype", "text"]
    assert not frame.duplicated(place).any() and len(frame) == 2 * 2 * 2 * (1 + 4 * 7)
    assert set(frame[frame.draw == 1].query("criterion == 'random'").seed) == {2, 3}
    written = out.read_text()
    monkeypatch.setattr(keep_the_mean, "changed", lambda *_: pytest.fail("measured again"))
    keep_the_mean.main()
    assert out.read_text() == written


def test_an_edit_cuts_neurons_keeps_their_mean_or_takes_the_mean_alone():
    model = tiny_model("gpt2")
    scores, means = neuron_importance(model, "random"), neuron_means(model, tiny_batches())
    kept = [strongest(score, 0.3) for score in scores]
    masks = [mask_of(len(score), numbers) for score, numbers in zip(scores, kept, strict=True)]
    without_mean = logits_with(
        model,
        [
            mlp.down.register_forward_pre_hook(lambda _m, x, push=mean * (1 - mask): (x[0] - push,))
            for mlp, mean, mask in zip(describe(model).mlps, means, masks, strict=True)
        ],
    )
    expected = {
        keep_the_mean.CUT: with_neurons(model, kept),
        keep_the_mean.KEPT: with_neurons(model, kept, means),
        keep_the_mean.REMOVED: without_mean,
    }
    for edit, logits in expected.items():
        with torch.no_grad():
            found = keep_the_mean.changed(model, scores, means, (edit, 0.3))(IDS).logits
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)


def in_small(experiment, monkeypatch, tmp_path, **constants):
    """Runs an experiment that cuts a Llama on a random one, twice; returns its record."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    for name, value in constants.items():
        monkeypatch.setattr(experiment, name, value)
    rows = experiment.judging_rows
    monkeypatch.setattr(
        experiment, "judging_rows", lambda tokenizer: {text: some[:2] for text, some in rows(tokenizer).items()}
    )
    work, out = tmp_path / "work.jsonl", tmp_path / "small.json"
    monkeypatch.setattr(sys, "argv", ["x", "--work", str(work), "--out", str(out)])
    experiment.main()
    written = out.read_text()
    with monkeypatch.context() as context:
        context.setattr(sets, "_measured", lambda *_: pytest.fail("measured again"))
        experiment.main()
    assert out.read_text() == written
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    return records.read_record("small")


def test_random_cuts(monkeypatch, tmp_path, capsys):
    in_three_blocks(monkeypatch)
    frame = in_small(random_cuts, monkeypatch, tmp_path, CUTS=3, PROTECTED=(1, 2))
    assert not frame.duplicated(["criterion", "seed", "edit", "draw", "dtype", "text"]).any()
    assert len(frame) == 2 * 2 * (1 + (5 + 3) + (5 + 3) + 10 + (2 * 2 + 2))
    shared = frame.query("edit in ('shared', 'stream put back', 'two put back')")
    assert set(shared["whole neurons"]) == {1} and frame.query("edit == 'separate'")["whole neurons"].max() < 0.9
    assert "is the worst" in capsys.readouterr().out


def test_rows_that_are_cut_equal_rows_that_are_masked():
    model = tiny_model("llama")
    kept = [strongest(score, 0.3) for score in neuron_importance(model, "random")]
    pruned = variant(model)
    prune_neurons(pruned, neuron_importance(model, "random"), ratio=0.3)
    with torch.no_grad():
        found = random_cuts.cut(model, kept, kept)(IDS).logits
        assert torch.equal(found, pruned(IDS).logits)
    torch.testing.assert_close(found, with_neurons(model, kept), atol=1e-5, rtol=1e-4)


def test_neurons_are_put_back_and_taken_out():
    kept = [torch.tensor([0, 2]), torch.tensor([1])]
    fuller = random_cuts.with_neurons(kept, [(0, 1), (1, 5)])
    assert [rows.tolist() for rows in fuller] == [[0, 1, 2], [1, 5]]
    back = random_cuts.without_neurons(fuller, [(0, 1), (1, 5)])
    assert [rows.tolist() for rows in back] == [[0, 2], [1]]


def test_first_tokens_states_are_those_of_the_whole_model():
    model = tiny_model("llama")
    kept = [strongest(score, 0.5) for score in neuron_importance(model, "random")]
    patched = random_cuts.stream_put_back(model, random_cuts.cut(model, kept, kept))
    with torch.no_grad():
        whole, cut, found = (
            m.model(input_ids=IDS, output_hidden_states=True).hidden_states[-2]
            for m in (model, random_cuts.cut(model, kept, kept), patched)
        )
    torch.testing.assert_close(found[:, 0], whole[:, 0])
    assert not torch.allclose(found[:, 1:], whole[:, 1:], atol=1e-3)
    assert not torch.allclose(found[:, 1:], cut[:, 1:], atol=1e-3)  # they attend to it


def test_leave_out(monkeypatch, tmp_path):
    small = {"CUTS": 2, "DRAWS": 2, "ENDS": 0, "BLOCKS": 2, "RUN": 2, "ATTENTIONS": (1, 2)}
    in_three_blocks(monkeypatch)
    frame = in_small(leave_out, monkeypatch, tmp_path, **small)
    blocks = frame.query("criterion == 'alone' and part == 'MLP' and text == 'wiki' and dtype == 'float32'")
    assert [*blocks.layers] == [[number] for number in range(len(blocks))]
    influence = frame.query("criterion == 'influence' and text == 'wiki' and dtype == 'float32'")
    assert sorted(chain(*influence.calibrations)) == [0, 0, 1, 1]  # two and `RUN` blocks, on each draw
    runs = frame.query("criterion == 'run' and text == 'wiki' and dtype == 'float32'")
    assert sorted(chain(*runs.calibrations)) == [0, 1]


def test_what_is_left_out_adds_nothing():
    model = tiny_model("llama")
    silent = {
        "block": without_blocks(model, [1]),
        "attention": logits_with(
            model, [model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda _m, _x, out: out * 0)]
        ),
        "MLP": logits_with(
            model, [model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, _x, out: out * 0)]
        ),
    }
    for part, logits in silent.items():
        with torch.no_grad():
            torch.testing.assert_close(leave_out.without(model, part, [1])(IDS).logits, logits, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        slipped = leave_out.adding_the_input(model, [1])(IDS).logits
    own = model.model.layers[1].self_attn.register_forward_hook(
        lambda _m, _args, kwargs, _out: (kwargs["hidden_states"], None), with_kwargs=True
    )
    torch.testing.assert_close(slipped, logits_with(model, [own]))


@pytest.mark.parametrize("part", leave_out.PARTS)
def test_blocks_below_are_not_run_again_and_the_loss_is_the_same(part):
    model = tiny_model("llama")
    rows = TokenBlocks(IDS.repeat(2, 1), torch.ones(4, dtype=torch.int64), "speeches", "calibration")
    found = leave_out.left_out(model, part, [(0,), (1,), (0, 1)], rows)
    whole = [perplexity(leave_out.without(model, part, layers), rows).nll for layers in ((0,), (1,), (0, 1))]
    assert found == pytest.approx(whole, rel=1e-6)


def test_random_sets_differ_and_end():
    assert len({*leave_out.random_sets(range(2, 28), 3)}) == leave_out.CUTS
    assert sorted(leave_out.random_sets([4, 7], 1)) == [(4,), (7,)]  # there are no more
    assert {*chain(*leave_out.random_sets(range(2, 28), 3))} <= {*range(2, 28)}


@pytest.fixture
def small_abilities(monkeypatch):
    """Two short rows of each ability, few rows that set the price, and benchmarks of three questions."""
    rows, further = damage_profile.ability_rows, damage_profile.further_rows

    def few(*given, **named):
        every = rows(*given, **named)
        return replace(
            every,
            input_ids=every.input_ids[:2, :160],
            attention_mask=every.attention_mask[:2, :160],
            answers=every.answers[:2, :160],
        )

    def asked(*_, **__):
        frame = pd.DataFrame()
        frame.attrs["answers"] = SimpleNamespace(table=pd.DataFrame({"metric": "acc", "value": [1.0, 0.0, 1.0]}))
        return frame

    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setattr(damage_profile, "ability_rows", few)
    monkeypatch.setattr(damage_profile, "further_rows", lambda t: {name: some[:2] for name, some in further(t).items()})
    monkeypatch.setattr(damage_profile, "evaluate", asked)


def test_damage_profile(monkeypatch, tmp_path, small_abilities):
    small = {"CUTS": 4, "FEW": 1, "DRAWS": 1, "OTHERS": (1,), "SEEDS": (0,), "STEPS": 4, "LENGTH": 16, "ROWS": 2}
    small["ABILITIES"] = ("copying", "German")
    frame = in_small(damage_profile, monkeypatch, tmp_path, **small)
    names = [*damage_profile.Cut.__dataclass_fields__, "draw", "dtype", "text"]
    assert not frame.duplicated(names).any()
    made = [*damage_profile.cuts()]
    assert len(made) == 11 + 1 + 3 + 4 and {*made[:11]} == {*damage_profile.FIGURE}
    again = sum(cut.price == 3 for cut in damage_profile.FIGURE)
    assert frame.groupby("dtype").apply(lambda own: own.text.eq("wiki").sum()).to_dict() == {
        "bfloat16": 1 + len(made) + 8, "float32": 1 + again,
    }  # fmt: skip
    whole = frame.query("criterion == '' and dtype == 'bfloat16'").set_index("text")
    assert {*whole.index} == {"speeches", "wiki", "arc_easy", "piqa"} | {
        f"{name}{what}" for name in damage_profile.ABILITIES for what in ("", ", right")
    }
    assert (whole.damage == 0).all() and whole.nats["piqa"] == pytest.approx(2 / 3)
    found = json.loads((tmp_path / "work.jsonl" / "found.json").read_text(encoding="utf-8"))
    assert sum("draw" in name for name in found) == 9 + 3  # at the price of three blocks, and of one


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 1.5))
def test_the_nearest_loss_is_found_by_halving(steps, target):
    losses = [0.0, *accumulate(steps)]
    count, loss = damage_profile.same_loss(losses.__getitem__, target, len(steps))
    assert loss == losses[count] and abs(loss - target) == min(abs(one - target) for one in losses)


def test_draws_follow_each_other_and_begin_again():
    draws = [damage_profile.drawn(20, 6, draw).tolist() for draw in range(5)]
    assert {*chain(*draws[:3])} < {*range(20)} == {*chain(*draws)} and all(len({*draw}) == 6 for draw in draws)
    assert len({*chain(*draws[:3])}) == 18 and draws[3][2:] == draws[0][:4]


def test_a_workshop_cuts_what_it_says(monkeypatch, tmp_path, small_abilities):
    for name, value in {"STEPS": 4, "LENGTH": 16, "ROWS": 2}.items():
        monkeypatch.setattr(damage_profile, name, value)
    workshop, cut = damage_profile.Workshop(tmp_path), damage_profile.Cut
    whole, width = workshop.base, workshop.base.config.intermediate_size
    rounded = workshop.make(whole, cut("four bits")).model.layers[0].mlp.gate_proj.weight
    for before, after in zip(whole.model.layers[0].mlp.gate_proj.weight, rounded, strict=True):
        assert all(len(part.unique()) <= 16 for part in after.split(32)) and not torch.equal(before, after)
    assert torch.equal(workshop.make(whole, cut("four bits")).lm_head.weight, whole.lm_head.weight)

    strongest = workshop.scores(replace(damage_profile.SPEECHES, price=0))
    for scores, by in zip(workshop.scores(replace(damage_profile.RANDOM, price=0)), strongest, strict=True):
        assert {*by.topk(4).indices.tolist()} <= {*scores.topk(8).indices.tolist()}
    other, _ = models.load_model("llama", dtype=torch.float32)
    narrow, same = (workshop.make(base, damage_profile.RANDOM) for base in (whole, other))
    rows = (model.model.layers[1].mlp.down_proj.weight for model in (narrow, same))
    assert torch.equal(*(row.to(torch.bfloat16) for row in rows)), "the same neurons in both dtypes"
    assert len(narrow.model.layers[1].mlp.up_proj.weight) < width

    silent = workshop.make(whole, cut("alone", "attention", seed=1))
    with torch.no_grad():
        expected = leave_out.without(whole, "attention", [1])(IDS).logits
        assert torch.equal(silent(IDS).logits, expected)
    before = models.identity(whole)
    healed = workshop.make(whole, replace(damage_profile.RANDOM, healed="speeches"))
    assert models.identity(whole) == before != models.identity(healed) != models.identity(narrow)


def test_trace_the_pronoun(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    out = tmp_path / "trace.json"
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(out)])
    prompts = trace_the_pronoun.pronouns.prompts
    monkeypatch.setattr(trace_the_pronoun.pronouns, "prompts", lambda *given: prompts(*given).query("index % 4 < 2"))
    trace_the_pronoun.main()
    found, shipped = json.loads(out.read_text()), recorded_trace()
    assert found.keys() == shipped.keys() and len(found["heads"]) == len(shipped["heads"]) == 3
    for words in ("occupations", "woman/man"):
        part, blocks = found[words], len(found[words]["word, opposite"])
        assert part.keys() == shipped[words].keys() and blocks == 8
        assert part["last, opposite"][-1] == pytest.approx(1) and part["word, opposite"][-1] == pytest.approx(0)
        assert len(part["heads, opposite"]) == 4 and len(part["random, opposite"]) == 19
    assert shipped["occupations"]["pairs"] == 40 and len(shipped["occupations"]["word, opposite"]) == 30


def test_heal(monkeypatch, tmp_path):
    small = {"STEPS": (1, 3, 4), "LONG": 6, "IN_ITS_TIME": 2, "POOL": 10, "LENGTH": 16, "ROWS": 2, "SOLVED": 1}
    small["PASSAGES"] = 3
    in_three_blocks(monkeypatch)
    frame = in_small(heal, monkeypatch, tmp_path, **small)
    place = ["criterion", "edit", "steps", "seed", "dtype", "text"]
    assert not frame.duplicated(place).any()
    runs = [*heal.runs()]
    asked = sum(run.lambada for run in runs)
    assert len(frame) == 2 * 2 * (1 + len(runs)) + 1 + asked and asked == 5
    assert set(frame.edit) == {"", "cut", "solved", "KL", "solved + KL", "cross-entropy", "LoRA"}
    lambada = frame[frame.text == "LAMBADA"]
    assert set(lambada.dtype) == {"bfloat16"} and lambada.nats.between(0, 1).all() and {*map(len, lambada.rows)} == {3}
    assert len(list((tmp_path / "work.jsonl").glob("*-*-*/"))) == 1  # of what has been trained, the last alone is kept


def test_the_last_run_goes_on_where_it_was_or_begins_anew(monkeypatch, tmp_path):
    """Killed in the middle; on a machine that rounds otherwise the beginning doesn't fit, and is made again."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    few = {"STEPS": (1, 2, 3), "LONG": 4, "IN_ITS_TIME": 2}
    for name, value in {**few, "POOL": 8, "LENGTH": 16, "ROWS": 2, "SOLVED": 1}.items():
        monkeypatch.setattr(heal, name, value)
    run = heal.Run("activation", True, "KL", 3, 0, 1e-3)
    expected = heal.Clinic(tmp_path / "a").trained(run)
    again = heal.Clinic(tmp_path / "a").trained(run)
    assert all(map(torch.equal, expected.parameters(), again.parameters()))
    monkeypatch.setattr(heal, "RIDGE", 0.31)
    other = heal.Clinic(tmp_path / "a").trained(run)
    assert not all(map(torch.equal, expected.parameters(), other.parameters()))


def test_time_cuts(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    out, asked = tmp_path / "times.json", []
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(out)])
    served = {"prompt_tokens": 2, "new_tokens": 1, "rounds": 6}
    for name, value in {"ROUNDS": 6, "SERVED": served, "MULTIPLE": 1, "_NUMBERS": 8}.items():
        monkeypatch.setattr(time_cuts, name, value)
    monkeypatch.setattr(time_cuts, "export_gguf", lambda _model, _tokenizer, path: path)

    def in_engine(files, **sizes):
        asked.append((files, sizes))
        return speed_frame(
            {name: [{"decode": 0.25}] * 6 for name in files}, {"decode": 1}, {name: {"decode": 1.0} for name in files}
        )

    monkeypatch.setattr(time_cuts.engine, "measure_speed", in_engine)
    time_cuts.main()
    found, shipped = pd.read_json(out), pd.read_json(time_cuts.OUT)
    assert list(found) == list(shipped) and len(found) == len(shipped) == 8
    for record in (found, shipped):
        assert record.part.tolist() == 2 * ["whole", "whole", "blocks", "neurons"]
        assert (record.low <= record.milliseconds).all() and (record.milliseconds <= record.high).all()
        _, _, short, narrow = record.floor[:4]
        assert 0.97 * short <= narrow <= short, "the same bytes, or a few less"
    assert (found.milliseconds[4:] == 250).all()
    ((files, sizes),) = asked
    assert sizes == served and len({*files.values()}) == 3 and files["whole"] == files["whole, again"]


def test_serve_in_vllm(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    out, blocks = tmp_path / "served.json", []
    monkeypatch.setattr(sys, "argv", ["x", "--python", "other/bin/python", "--out", str(out)])

    def run(command, *, env, check):
        python, worker, folder, written = command
        assert python.is_absolute() and worker.is_file() and check
        assert "PYTHONPATH" not in env and env["VLLM_CPU_KVCACHE_SPACE"] == "1"
        blocks.append(json.loads((folder / "config.json").read_text())["num_hidden_layers"])
        rows = [{"cache_tokens": 10, "waiting": n, "tokens_per_second": 2.0 * n} for n in (1, 4)]
        written.write_text(json.dumps(rows))

    monkeypatch.setattr(serve_in_vllm.subprocess, "run", run)
    serve_in_vllm.main()
    record = pd.read_json(out)
    assert blocks == [8, 8, 6, 8] and record.groupby("model", sort=False).layers.first().tolist() == blocks
    assert record.model.unique()[[0, -1]].tolist() == ["whole", serve_in_vllm.AGAIN]


class Server:
    """In vLLM's place: it writes what it is asked for."""

    def __init__(self, folder, **settings):
        cache = SimpleNamespace(num_gpu_blocks=7, block_size=16)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))

    def get_tokenizer(self):
        return SimpleNamespace(vocab_size=50)

    def generate(self, asked, settings, *, use_tqdm):
        prompts = [prompt["prompt_token_ids"] for prompt in asked]
        assert {*map(len, prompts)} == {vllm_worker.PROMPT} and len({*map(tuple, prompts)}) == len(prompts)
        answer = SimpleNamespace(token_ids=[0] * settings["max_tokens"])
        return [SimpleNamespace(outputs=[answer]) for _ in prompts]


def test_vllm_worker(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Server, SamplingParams=dict))
    monkeypatch.setattr(sys, "argv", ["x", "folder", str(tmp_path / "out.json")])
    vllm_worker.main()
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["waiting"] for row in rows] == [*vllm_worker.WAITING]
    assert {row["cache_tokens"] for row in rows} == {112} and all(row["tokens_per_second"] > 0 for row in rows)


def test_plant_and_cut(monkeypatch, tmp_path):
    small = {"AXES": 1, "RATES": {"down": 1e-3, "attention": 1e-3}, "STEPS": 2, "CHOSEN": 48, "JUDGED": 48, "RANDOM": 1}
    whole = plant_and_cut.real_pairs
    small |= {"RANDOM_REAL": 1, "NEURONS": 2, "real_pairs": lambda words, half: whole(words, half)[:4]}
    in_three_blocks(monkeypatch)
    frame = in_small(plant_and_cut, monkeypatch, tmp_path, **small)
    place = ["criterion", "seed", "half", "place", "axis", "dtype", "text"]
    assert not frame.duplicated(place).any()
    untouched, real, planted = 2 + 4 + 1, 2 * 7 * (2 + 2), 2 * 7 * (2 + 1)
    assert len(frame) == 2 * (untouched + real + planted)
    arms = {"planted", "carries", "twin", "woman", "reacts", "importance", "random"}
    assert set(frame[frame.place == "down"].criterion) == arms
    preference = frame[frame.text == "invented 1"].set_index(["criterion", "place", "dtype"])
    assert {*map(len, preference.rows)} == {2}
    moved = preference.loc[("carries", "down", "float32")].nats - preference.loc[("planted", "down", "float32")].nats
    assert moved != 0


def test_fourth_student_joins_a_record(monkeypatch, tmp_path):
    """What is recorded stays where the pruned model comes out alike, and is made anew where it doesn't."""
    monkeypatch.setattr(distil_the_bias_back, "OUT", tmp_path / "record.json")
    both = {"planted": -9.0, "pruned": -4.0}
    rows = [{"seed": 1, "stage": stage, "text": "", "preference": value} for stage, value in both.items()]
    assert distil_the_bias_back.recorded(rows) == {}
    known = [*rows, {"seed": 1, "stage": "teacher planted", "text": "speeches", "preference": -4.5}]
    (tmp_path / "record.json").write_text(json.dumps({"rows": known}))
    assert {*distil_the_bias_back.recorded(rows)} == {("planted", ""), ("pruned", ""), ("teacher planted", "speeches")}
    rounded, other = ([rows[0], rows[1] | {"preference": value}] for value in (-4.05, -4.5))
    assert distil_the_bias_back.recorded(rounded)
    assert distil_the_bias_back.recorded(other) == {}


# --- small models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_stacked_muon_is_muon_for_each_matrix(shape):
    generator = torch.Generator().manual_seed(0)
    begun, gradients = (torch.randn(n, 3, *shape, generator=generator) for n in (1, 4))
    stack = torch.nn.Parameter(begun[0].clone())
    singles = [torch.nn.Parameter(matrix.clone()) for matrix in begun[0]]
    ours = small_training.StackedMuon([stack], lr=0.02)
    theirs = torch.optim.Muon(singles, lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        stack.grad = gradient.clone()
        for single, own in zip(singles, gradient, strict=True):
            single.grad = own.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(stack.data, torch.stack([*singles]).data, atol=4e-3, rtol=0)
    assert (stack.data - begun[0]).abs().mean() > 0.01


def test_a_killed_training_ends_as_an_unbroken_one(tmp_path):
    def trained(name, *, killed_at=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizers = [small_training.StackedMuon([model.weight], lr=0.02), torch.optim.AdamW([model.bias], lr=0.1)]

        def loss_of(step):
            if step == killed_at:
                raise KeyboardInterrupt
            return model(torch.randn(5, 4, generator=torch.Generator().manual_seed(step))).square().mean()

        place = {"steps": 9, "checkpoint": tmp_path / name, "save_every": 4}
        try:
            small_training.take_steps(model, optimizers, loss_of, **place)
        except KeyboardInterrupt:
            return trained(name)
        return model.state_dict()

    unbroken, resumed = trained("one"), trained("two", killed_at=6)
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


@pytest.mark.parametrize("kind", ["code", "maths"])
def test_kinds_of_text_keep_a_tenth_apart(kind, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    learned, held_out = (five_kinds.texts_of(kind, split) for split in ("distillation", "evaluation"))
    assert (len(learned), len(held_out)) == (360, 40) and not set(learned) & set(held_out)


def test_share_of_an_experts_first_kind_by_hand():
    counts = torch.tensor([[[4, 0]], [[2, 2]], [[0, 4]]]).double()  # three rows, one layer, two experts
    share = train_small_moe.first_kind_share(counts, torch.tensor([0, 0, 1]))
    assert share.tolist() == [(6 + 4) / 12]  # expert 0: six of the first kind; expert 1: two, and four of the second


def test_balance_is_one_a_layer_where_all_is_even(monkeypatch):
    monkeypatch.setattr(train_small_moe, "EXPERTS", 4)
    even = torch.eye(4).repeat(3, 1) * 50 + torch.eye(4).roll(1, dims=1).repeat(3, 1) * 50
    uneven = torch.tensor([[50.0, 50.0, 0.0, 0.0]]).expand(12, 4)
    assert float(train_small_moe.balance((even, even))) == pytest.approx(2)
    assert float(train_small_moe.balance((uneven,))) == pytest.approx(2)


def test_train_small_moe(monkeypatch, tmp_path):
    words = ["law", "river", "ball", "def f(x):", "x = 2"]
    texts = {kind: [f"{word} {n} " * 400 for n in range(30)] for kind, word in zip(KINDS, words, strict=True)}
    monkeypatch.setattr(train_small_moe, "texts_of", lambda kind, _split: texts[kind])
    for name, value in {"EXPERTS": 4, "HIDDEN": 32, "BLOCKS": 2, "HELD_OUT": 3, "SHUFFLES": 5}.items():
        monkeypatch.setattr(train_small_moe, name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_small_moe", "--steps", "3", "--out", "out"])
    train_small_moe.main()
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["loss"].keys() == record["unigram_loss"].keys() == {*KINDS}
    assert all(0.2 <= share <= 1 for key in ("first_kind_share", "largest_of_shuffles") for share in record[key])
    model, tokenizer = load_pruned(tmp_path / "out")
    assert model.dtype == torch.float16 and [m.count for m in describe(model).mixtures] == [4, 4]
    assert tokenizer.decode(tokenizer("x = 2").input_ids) == "x = 2"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{record['parameters']:,} parameters" in card and all(f"| {kind} |" in card for kind in KINDS)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(weights).hexdigest()


def test_compress_end_to_end(monkeypatch, tmp_path, capsys):
    """A folder of speeches and chats is read, and what lies on the pretended card is counted, beside the plan."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setenv("COURSE_SAMPLES", "2")
    monkeypatch.setattr(run, "timed", untimed)
    write_own(tmp_path)
    fewer = {"num_hidden_layers": 2, "vocab_size": 49_152, "hidden_size": 64, "intermediate_size": 256, "head_dim": 2}
    small = {
        "MODEL": str(tmp_path / "mine"),
        "BUDGET": ("--budget", "95%"),
        "REAL": tuple(SMALL),
        "REHEARSED": (*SMALL, "--recover", "lora", "--recompute"),
        "ROUNDS": 2,
        "SHAPE": replace(compress_end_to_end.SHAPE, llama=compress_end_to_end.SHAPE.llama | fewer),
    }
    for name, value in small.items():
        monkeypatch.setattr(compress_end_to_end, name, value)
    for module, texts in ((compress_end_to_end, "documents"), (five_kinds, "problems")):
        some = getattr(module, texts)
        monkeypatch.setattr(module, texts, lambda *kind, some=some: some(*kind)[:60])
    out = tmp_path / "compressed.json"
    monkeypatch.setattr("sys.argv", ["compress_end_to_end", "--work", str(tmp_path / "work"), "--out", str(out)])
    compress_end_to_end.main()
    runs = json.loads(out.read_text(encoding="utf-8"))
    (learned,) = runs["real"]["text"]["learned"]
    assert 0 < learned["chats"] < learned["documents"] and not runs["real"]["text"]["left_out"]["count"]
    assert [*runs["real"]["held_out"]] == [*VERSIONS] and str(tmp_path) not in json.dumps(runs)
    told = runs["rehearsed"]
    assert 8 * told["parameters"] < told["counted"] < 1.1 * told["estimate"]["bytes"]
    assert f"held {told['counted'] / 1e9:.2f} GB" in capsys.readouterr().out

    monkeypatch.setattr(training, "_batches_of", None)
    compress_end_to_end.main()
    assert json.loads(out.read_text(encoding="utf-8")) == runs, "done is done"
    (tmp_path / "work" / "real.json").unlink()
    compress_end_to_end.main()
    again = json.loads(out.read_text(encoding="utf-8"))["real"]
    assert again["minutes"] is None and again["held_out"] == runs["real"]["held_out"], "it goes on where it was"


# --- cut experts ------------------------------------------------------------------------------------


@pytest.fixture
def mixtures(monkeypatch, tmp_path):
    """Two small trained mixtures, as ``train_small_moe`` writes them, and words of five kinds."""
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    words = dict(zip(KINDS, ["law peace", "river town", "ball cake", "def f(x):", "x = 2 + 3"], strict=True))
    first = {"distillation": 10, "evaluation": 200}  # the documents' numbers: learned below 100, held out from 200
    monkeypatch.setattr(
        cut_experts,
        "texts_of",
        lambda kind, split: [f"{words[kind]} {n} " * 200 for n in range(first[split], first[split] + 12)],
    )
    small = {"LENGTH": 16, "ROWS": {"calibration": 10, "evaluation": 2, "further": 2}, "DRAWS": 2, "CUTS": 2}
    small["RATES"] = {"router": (1e-2,), "all weights": (1e-3, 3e-3)}
    for name, value in small.items():
        monkeypatch.setattr(cut_experts, name, value)
    model, tokenizer = models.load_model("moe", device="cpu")
    folders = [tmp_path / f"moe-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
        small_training.ship(copy.deepcopy(model), tokenizer, {"seed": seed}, folder)
    return folders


def cut_all(folders, tmp_path, monkeypatch):
    out = tmp_path / "cut_experts.json"
    places = ["--work", str(tmp_path / "work"), "--out", str(out), "--rows", str(tmp_path / "rows.safetensors")]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, folders), *places])
    cut_experts.main()
    return out.read_text()


def test_cut_experts(mixtures, monkeypatch, tmp_path):
    measured, calls = sets._measured, []

    def killed_at_the_tenth(arm):
        calls.append(arm.key)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return measured(arm)

    monkeypatch.setattr(sets, "_measured", killed_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        cut_all(mixtures, tmp_path, monkeypatch)
    assert not (tmp_path / "cut_experts.json").exists() and not (tmp_path / "rows.safetensors").exists()
    heal, healings = cut_experts.healed, []
    with monkeypatch.context() as context:
        context.setattr(cut_experts, "healed", lambda *given: healings.append(given[3:]) or heal(*given))
        written = cut_all(mixtures, tmp_path, monkeypatch)
    with monkeypatch.context() as context:
        for place in ((sets, "_measured"), (cut_experts, "healed")):
            context.setattr(*place, lambda *_: pytest.fail("done again"))
        assert cut_all(mixtures, tmp_path, monkeypatch) == written

    monkeypatch.setattr(records, "FOLDER", tmp_path)
    frame = records.read_record("cut_experts")
    place = ["model", "criterion", "kind", "calibration", "ratio", "seed", "edit", "dtype", "text"]
    assert not frame.duplicated(place).any() and len(calls) == 10 + len(frame) / 5 - 9
    # Of each model: whole, random and healed ones; three criteria on five kinds and all, in two draws (bfloat16: one).
    assert len(frame) == 5 * 2 * (2 * (1 + 2 * 2 + 6) + 3 * 6 * 2 * (2 + 1))
    whole = frame.query("criterion == ''")
    assert (whole.damage == 0).all() and whole.groupby(["text", "dtype"]).nats.nunique().eq(2).all(), "two models"
    assert frame.query("edit == 'cut' and dtype == 'float32'").damage.ne(0).mean() > 0.9
    settings = json.loads(written)["settings"]
    assert settings["tokens"] == {"calibrated": 80, "healed": 400} and settings["models"]["1"]["seed"] == 1
    rates = [left for seed in ("0", "1") for left in settings["rates"][seed].items()]
    assert [name for name, _ in rates[:6]] == [f"{c}, {way}" for c in cut_experts.HEALED for way in cut_experts.RATES]
    assert healings == [(name.split(", ")[1], float(min(left, key=left.get))) for name, left in rates], (
        "at the best rate"
    )


def test_what_the_record_says_is_what_the_library_cuts(mixtures, monkeypatch, tmp_path):
    """One arm made by hand: its calibration rows, its half, its judge."""
    cut_all(mixtures[:1], tmp_path, monkeypatch)
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    arm = "criterion == 'reap' and kind == 'code' and calibration == 1 and ratio == 0.5"
    frame = records.read_record("cut_experts").query(f"{arm} and dtype == 'float32'").set_index("text")
    model, tokenizer = models.load_model(str(mixtures[0]), device="cpu")
    rows = cut_experts.rows_of(tokenizer)
    own = rows["calibration"]["code"].input_ids[[1, 3, 5, 7, 9]]
    scores = expert_importance(model, "reap", batches=[{"input_ids": own, "attention_mask": torch.ones_like(own)}])
    smaller = variant(model)
    prune_experts(smaller, scores, keep=8)
    for kind, judging in rows["evaluation"].items():
        expected = perplexity(smaller, judging).nll - perplexity(model, judging).nll
        assert frame.damage[kind] == pytest.approx(expected, abs=2e-3)


def test_calibrations_are_disjoint_and_of_one_size(mixtures):
    _, tokenizer = models.load_model(str(mixtures[0]), device="cpu")
    rows = cut_experts.rows_of(tokenizer)
    for kind in (*KINDS, cut_experts.ALL):
        drawn = [cut_experts.calibration(rows, kind, draw) for draw in range(2)]
        assert {sum(len(batch["input_ids"]) for batch in batches) for batches in drawn} == {5}
    numbers = {split: set() for split in rows}
    for split, kinds in rows.items():
        for own in kinds.values():
            text = " | ".join(tokenizer.batch_decode(own.input_ids))
            numbers[split] |= {*map(int, re.findall(r"(?<=[\w:] )\d{2,3}(?= \w)", text))}
    assert numbers["calibration"] and max(numbers["calibration"]) < 100, "what the model learned calibrates"
    assert all(number >= 200 and number % 2 == 0 for number in numbers["evaluation"]) and numbers["evaluation"]
    assert all(number >= 200 and number % 2 == 1 for number in numbers["further"]) and numbers["further"]
    end = rows["evaluation"]["code"]
    text = tokenizer.batch_decode(end.input_ids[:, 1:])
    ends = [piece.replace(tokenizer.eos_token, "") for piece in text]
    assert end.num_bytes.tolist() == [len(piece.encode()) for piece in ends]


def test_healing_moves_what_it_is_asked_to_and_comes_nearer(mixtures):
    model, tokenizer = models.load_model(str(mixtures[0]), device="cpu")
    rows = cut_experts.rows_of(tokenizer)
    smaller = cut_experts.cut(model, expert_importance(model, "random"), 0.5)
    before = models.identity(model), models.identity(smaller)
    texts = [rows["calibration"]["code"].input_ids[:4]] * 30

    def distance(student):
        with torch.no_grad():
            told, said = (m(texts[0]).logits.log_softmax(-1) for m in (model, student))
        return float((told.exp() * (told - said)).sum(-1).mean())

    for way in cut_experts.RATES:
        student = cut_experts.healed(model, smaller, texts, way, 3e-3)
        pairs = zip(student.named_parameters(), smaller.parameters(), strict=True)
        moved = {name for (name, new), old in pairs if not torch.equal(new, old)}
        routers = {name for name in moved if name.endswith("mlp.gate.weight")}
        assert len(routers) == 4 and (moved == routers) is (way == "router")
        assert distance(student) < distance(smaller) and not student.training
    assert (models.identity(model), models.identity(smaller)) == before


def test_other_models_and_broken_folders_are_refused_before_anything_is_done(mixtures, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cut_experts, "rows_of", lambda _: pytest.fail("began"))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "models.json").write_text('{"1": "0123456789abcdef"}')
    for folders, message in (
        ([tmp_path], "holds no training.json"),
        ([mixtures[0], mixtures[0]], "seed 0, as another folder was"),
        (mixtures, "belongs to another model of seed 1"),
    ):
        with pytest.raises(SystemExit):
            cut_all(folders, tmp_path, monkeypatch)
        assert message in capsys.readouterr().err
    assert (tmp_path / "work" / "models.json").read_text() == '{"1": "0123456789abcdef"}'
