"""Experiments in miniature: each runs, is killed and goes on, and writes what the shipped record has."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from course_utils.measuring.benchmarking import speed_frame
from course_utils.models import loading as models
from course_utils.pruning.vocabulary import prune_vocabulary
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.text.kinds import KINDS
from experiments import make_a_small_model, record, small_training

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Small:
    """How an experiment is made small.

    Attributes:
        shipped: its record below course_utils/data/.
        constants: in place of the module's own.
        works: the function that does a part, in the module or in ``record``; "" where nothing is kept on the way.
        arguments: of the command line.
    """

    shipped: str
    constants: dict = field(default_factory=dict)
    works: str = "_measured"
    arguments: tuple = ()


TEXTS = {"speeches": 128, "wiki": 128, "stories": 128}
# fmt: off
EXPERIMENTS = {
    "keep_the_mean": Small("records/keep_the_mean", {"CUTS": 2, "DRAWS": 2}),
    "random_cuts": Small("records/random_cuts", {"CUTS": 3, "PROTECTED": (1, 2)}),
    "leave_out": Small("records/leave_out", {
        "CUTS": 2, "DRAWS": 2, "ENDS": 0, "BLOCKS": 2, "RUN": 2, "ATTENTIONS": (1, 2)}),
    "attention_reach": Small("records/attention_reach", {
        "ROWS": 2, "JUDGED": 8, "LONG": 24, "BETWEEN": (8,), "WINDOW": 4, "EIGHT": 1,
        "BYPASSED": (2,), "OTHERS": (2,), "NEAR_MISS": (3,), "SIX": 1, "BLIND": 2}),
    "heal": Small("records/heal", {
        "STEPS": (1, 3, 4), "LONG": 6, "IN_ITS_TIME": 2, "POOL": 10, "LENGTH": 16, "ROWS": 2, "SOLVED": 1,
        "PASSAGES": 3, "BEFORE": (0, 8)}),
    "half_vocabulary": Small("records/half_vocabulary", {
        "KEPT": (3000, 2048), "HALF": 2048, "RANDOM": 1, "TEXTS": ("speeches", "code"), "JUDGED_AT_RANDOM": ("code",),
        "DOCUMENTS": 2, "CHARACTERS": 80, "ROWS": 2, "DRAWS": 1}, "measured"),
    "damage_profile": Small("records/damage_profile", {
        "CUTS": 4, "FEW": 1, "DRAWS": 1, "OTHERS": (1,), "SEEDS": (0,), "STEPS": 4, "LENGTH": 16, "ROWS": 2,
        "ABILITIES": ("copying", "German")}),
    "cut_experts": Small("records/cut_experts", {
        "LENGTH": 16, "ROWS": {"calibration": 10, "evaluation": 2, "further": 2}, "DRAWS": 2, "CUTS": 2,
        "RATES": {"router": (1e-2,), "all weights": (1e-3, 3e-3)}}),
    "harm_per_prompt": Small("harm_per_prompt", {
        "RUNS": {("bfloat16", 0): 12}, "CHOOSING": 10, "CALIBRATING": 4, "CHUNK": 5, "NUMBERS": (1, 3)}, "measure"),
    "make_a_small_model": Small("small_model", {
        "LENGTH": 16, "DOMAINS": TEXTS, "CALIBRATION": TEXTS, "SCORED": 2, "CHOSEN": 1, "JUDGED": 4, "SHARE": 0.95,
        "MULTIPLE_OF": 8, "CORRECTION": 2, "LIGHT": 2, "STEPS": 3, "SOLVED": 2, "RANDOM": 2, "FINALISTS": 2, "LAP": 1,
        "SERVED": {"prompt_tokens": 4, "new_tokens": 2, "rounds": 6}, "QUESTIONS": ("Why?",)}, "distill"),
    "time_cuts": Small("token_times", {
        "ROUNDS": 6, "SERVED": {"prompt_tokens": 2, "new_tokens": 1, "rounds": 6}, "MULTIPLE": 1, "_NUMBERS": 8}, ""),
    "train_gpt2": Small("gpt2/training", {"LENGTH": 32, "BATCH": 2}, "", ("--steps", "3")),
    "train_small_moe": Small("moe/training", {
        "EXPERTS": 4, "HIDDEN": 32, "BLOCKS": 2, "HELD_OUT": 3, "SHUFFLES": 5}, "", ("--steps", "3")),
}
# fmt: on


def speeds(files, **_sizes):
    return speed_frame(
        {name: [{"decode": 0.25}] * 6 for name in files}, {"decode": 1}, {name: {"decode": 1.0} for name in files}
    )


def cut_as_optipfair_does(model, *, pruning_percentage, **_):
    """In the place of the library, which is no dependency of the tests."""
    prune_neurons(model, neuron_importance(model, "peak_to_peak"), ratio=pruning_percentage / 100)
    return model


def answers(*_, **__):
    """In the place of ``evaluate``: three questions, two of them answered right."""
    frame = pd.DataFrame()
    frame.attrs["answers"] = SimpleNamespace(table=pd.DataFrame({"metric": "acc", "value": [1.0, 0.0, 1.0]}))
    return frame


def two_short_rows(rows):
    def few(*given, **named):
        every = rows(*given, **named)
        names = ("input_ids", "attention_mask", "answers")
        return replace(every, **{name: getattr(every, name)[:2, :160] for name in names})

    return few


def mixtures(folder):
    """Two folders as ``train_small_moe`` writes them."""
    model, tokenizer = models.load_model("moe", device="cpu")
    for seed in (0, 1):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
        small_training.ship(copy.deepcopy(model), tokenizer, {"seed": seed}, folder / f"moe-{seed}")
    return [str(folder / f"moe-{seed}") for seed in (0, 1)]


def made_small(name, monkeypatch, folder):
    """The experiment's module on random models and few rows, and its command line's arguments."""
    script, small = importlib.import_module(f"experiments.{name}"), EXPERIMENTS[name]
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    words = dict(zip(KINDS, ["law peace", "river town", "ball cake", "def f(x):", "x = 2 + 3"], strict=True))
    first = {"distillation": 10, "evaluation": 200}  # the documents' numbers

    def texts_of(kind, split):
        return [f"{words[kind]} {n} " * 400 for n in range(first[split], first[split] + 12)]

    def small_configuration(role, configured=models._random_configuration):
        config, tokenizer = configured(role)
        setattr(config, "n_layer" if role == "gpt2" else "num_hidden_layers", 3)
        return config, tokenizer

    def few(rows, count=2):
        return lambda *given, **named: {text: some[:count] for text, some in rows(*given, **named).items()}

    changed = dict(small.constants)
    if name in ("keep_the_mean", "random_cuts", "leave_out", "attention_reach", "heal"):
        monkeypatch.setattr(models, "_random_configuration", small_configuration)
    if hasattr(script, "judging_rows") and name != "make_a_small_model":
        changed["judging_rows"] = few(script.judging_rows)
    arguments = [*small.arguments, "--work", str(folder / "work"), "--out", str(folder / "out.json")]
    if name == "damage_profile":
        changed |= {"further_rows": few(script.further_rows), "ability_rows": two_short_rows(script.ability_rows)}
        changed["evaluate"] = answers
    elif name == "cut_experts":
        changed["texts_of"] = texts_of
        arguments += [*mixtures(folder), "--rows", str(folder / "rows.safetensors")]
    elif name == "make_a_small_model":
        changed["clean"] = lambda blocks, *_: torch.ones(len(blocks), dtype=torch.bool)  # made-up text is all alike
        monkeypatch.setitem(sys.modules, "optipfair", SimpleNamespace(prune_model=cut_as_optipfair_does))
    elif name == "time_cuts":
        changed["export_gguf"] = lambda _model, _tokenizer, path: path
        monkeypatch.setattr(script.engine, "measure_speed", speeds)
    elif name == "train_gpt2":
        changed["documents"] = lambda _kind, split: texts_of("speeches", split)
    elif name == "train_small_moe":
        changed["texts_of"] = texts_of
    for constant, value in changed.items():
        monkeypatch.setattr(script, constant, value)
    return script, arguments


def fields(found):
    """{part of a record: the names that its rows have, none where it is no list of rows}."""
    parts = found if isinstance(found, dict) else {"rows": found}
    return {
        name: set().union(*part) if isinstance(part, list) and part and isinstance(part[0], dict) else set()
        for name, part in parts.items()
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_in_miniature(name, monkeypatch, tmp_path):
    small, (script, arguments), calls = EXPERIMENTS[name], made_small(name, monkeypatch, tmp_path), []
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    place = script if hasattr(script, small.works) else record
    if small.works:
        work = getattr(place, small.works)

        def killed_at_the_second(*given, **named):
            calls.append(given)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return work(*given, **named)

        monkeypatch.setattr(place, small.works, killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            script.main()
        assert not (tmp_path / "out.json").exists(), "all or nothing"
    script.main()
    file = tmp_path / "out.json"
    written = (file / "training.json" if file.is_dir() else file).read_text(encoding="utf-8")
    shipped = json.loads((record.DATA / f"{small.shipped}.json").read_text(encoding="utf-8"))
    made, known = fields(json.loads(written)), fields(shipped)
    assert made.keys() == known.keys()
    assert all(made[part] >= names for part, names in known.items()), "a table of speeds has columns more by now"
    if small.works:
        count = len(calls)
        script.main()
        assert len(calls) == count and file.read_text(encoding="utf-8") == written, "done is done"
    if file.is_dir():
        assert json.loads(written)["sha256"] == hashlib.sha256((file / "model.safetensors").read_bytes()).hexdigest()


def test_off_the_grid_a_model_computes_the_same(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    model, ids = models.load_model("llama")[0], torch.arange(20)[None]
    moved = make_a_small_model.off_the_grid(model)
    with torch.no_grad():
        torch.testing.assert_close(moved(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)
    for old, new in zip(model.model.layers.parameters(), moved.model.layers.parameters(), strict=True):
        assert not torch.isclose(old, new, rtol=1e-3).all(), "every matrix and every norm has other numbers"


def test_price_and_gift_are_what_narrowing_costs(monkeypatch, tmp_path):
    script, _ = made_small("half_vocabulary", monkeypatch, tmp_path)
    experiment = script.Experiment()
    whole = script.measured(experiment, {}, "code", 0, None)
    stay, tokenizer = experiment.choose(torch.zeros(4096), 300)
    entry = script.measured(experiment, {}, "code", 0, (stay, tokenizer))
    model = models.variant(experiment.model)
    prune_vocabulary(model, experiment.tokenizer, stay.tolist())
    for row, passage in enumerate(experiment.passages["code"][0]):
        ids = script.encoded(passage, tokenizer)
        nats = script.read(model, ids, tokenizer.eos_token_id)[2]
        assert entry["tokens"][row] == len(ids) > whole["tokens"][row], "it is spelled in more tokens"
        assert entry["sums"][row] == pytest.approx(float(nats.sum()), rel=1e-5), "it is the cut model's loss"
        assert entry["spelled"][row] > entry["sums"][row], "fewer rivals give something back"
        counts, own, spelled, _ = entry["distances"][row]
        assert sum(own) <= whole["sums"][row] + 0.01 and counts[0] > 0
        price = entry["spelled"][row] - whole["sums"][row]
        assert sum(spelled) - sum(own) == pytest.approx(price, abs=0.02), "what comes before a split costs nothing"


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

        try:
            small_training.take_steps(model, optimizers, loss_of, steps=9, checkpoint=tmp_path / name, save_every=4)
        except KeyboardInterrupt:
            return trained(name)
        return model.state_dict()

    unbroken, resumed = trained("one"), trained("two", killed_at=6)
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())
