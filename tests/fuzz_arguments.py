"""Something to call each public function of the library with, for ``test_fuzz``: tiny models, texts and tables.

``MADE`` goes by an argument's name; ``OWN`` by function, where one name stands for several things.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from own_command import CHAT_TEMPLATE
from tiny import tiny_batches, tiny_model, word_tokenizer
from tiny_pairs import make_pairs
from transformers import AutoTokenizer, LlamaConfig

import course_utils
from course_utils.bias import pronouns
from course_utils.bias.contrastive import write_pairs
from course_utils.bias.scores import measure_pairs
from course_utils.bias.stereotypes import Question
from course_utils.compress import Budget, Candidate, importance
from course_utils.healing.distillation import Recipe
from course_utils.lessons.prompt_harm import Record
from course_utils.measuring import costs, language_modelling
from course_utils.measuring.abilities import AbilityRows, Baseline, answers_of
from course_utils.measuring.evaluation import Answers
from course_utils.models import loading as models
from course_utils.pruning import adaptive, channels, experts, heads, width
from course_utils.pruning.checkpoints import save_pruned
from course_utils.text.own_text import read_own_text
from course_utils.text.texts import TokenBlocks

WHOLE, MIXTURE = tiny_model(), tiny_model("mixtral")
TEXTS = ["w1 w2", "w3 w4 w5", "w6 w7 w8 w9"]
LOGITS = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
HARM = np.arange(12.0).reshape(6, 2)


def folder() -> str:
    return tempfile.mkdtemp(dir=Path.cwd())  # a test's own


def own_text() -> list[str]:
    """A file of one's own text, of as many documents as it takes."""
    path = Path(folder(), "own.jsonl")
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in (*TEXTS, "w10")), encoding="utf-8")
    return [str(path)]


def own_chats():
    """Chats of one's own, read."""
    path, turns = Path(folder(), "chats.jsonl"), [("user", "why?"), ("assistant", "so")]
    row = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
    path.write_text(f"{row}\n" * 12, encoding="utf-8")
    return read_own_text([str(path)])


@functools.cache
def chatting_tokenizer():
    found = copy.deepcopy(byte_tokenizer())
    found.chat_template = CHAT_TEMPLATE
    return found


def a_model():
    """Shares its weights with the others, and may be cut."""
    return models.variant(WHOLE)


@functools.cache
def tokenizer():
    made = word_tokenizer()
    made.pad_token, made.eos_token = "w2", "w1"
    return made


@functools.cache
def byte_tokenizer():
    return AutoTokenizer.from_pretrained(Path(course_utils.__file__).parent / "data" / "gpt2", local_files_only=True)


def a_mixture():
    return models.variant(MIXTURE)


def wide_model():
    """For the tokenizer of bytes."""
    return tiny_model(layers=1, vocab_size=len(byte_tokenizer()), max_position_embeddings=512)


def ability():
    ids = torch.arange(3, 15).view(2, 6)
    return AbilityRows("sums", ids, torch.ones_like(ids), torch.where(ids % 6 == 3, -1, ids - 3))


def said():
    return answers_of(WHOLE, ability())


def blocks():
    return TokenBlocks(torch.arange(12).view(2, 6), torch.tensor([5, 5]), "wiki", "evaluation")


@functools.cache
def some_pairs():
    return make_pairs(templates=2, swaps=2) + make_pairs("neutral", "neutral", templates=2, swaps=2, seed=1)


@functools.cache
def pair_scores():
    return measure_pairs(WHOLE, tokenizer(), some_pairs())


@functools.cache
def perplexity(seed: int = 0):
    return language_modelling.perplexity(tiny_model(seed=seed), tiny_batches())


@functools.cache
def settings():
    return adaptive.calibrate(WHOLE, tokenizer(), TEXTS)


@functools.cache
def saved_folder() -> str:
    made = folder()
    save_pruned(WHOLE, tokenizer(), made)
    return made


@functools.cache
def pairs_file() -> str:
    return str(write_pairs(make_pairs(), f"{folder()}/pairs.jsonl"))


@functools.cache
def all_scores():
    return importance(WHOLE, tiny_batches())


def work(tokens: int = 4):
    return costs.work(WHOLE, "decode", prompt_tokens=tokens)


def laps():
    return {name: [{"decode": 0.1 + 0.01 * lap} for lap in range(6)] for name in ("one", "two")}


def answered():
    """A frame as ``evaluate`` gives it."""
    table = pd.DataFrame(
        {"task": "boolq", "metric": "acc", "document": range(6), "value": [0.0, 1.0] * 3, "choices": 2, "gold": 0}
    ).assign(margin=[-1.0, 1.0] * 3)
    frame = pd.DataFrame([{"task": "boolq", "metric": "acc", "value": 0.5, "documents": 6}])
    frame.attrs["answers"] = Answers(table, "float32")
    return frame


def asked():
    return pronouns.prompts(pronouns.occupations().iloc[::5], "selection").assign(odds=1.0)


def record():
    tokens = np.array([7, 1, 19, 4])
    harm = np.random.default_rng(0).uniform(size=(4, 4)) * (np.arange(4) > 0)
    rows = {"kinds": "passage", "documents": "a", "digests": "b"}
    return Record(
        settings={}, choosing=2, numbers=(0, 1, 2, 3), tokens=tokens, answer_tokens=np.array([32, 5, 32, 9]), harm=harm,
        complexity=np.array([0.1, 0.5, 0.9, 0.3]), published=np.array([2, 1, 0, 0]),
        **{name: np.array([value] * 4) for name, value in rows.items()},
    )  # fmt: skip


def question():
    return Question("w3 w4", "w5", ("w6", "w7", "w8"), 0, "ambig", "neg", 1, 0, "Age", "Age-1")


MADE = {
    "a": lambda: np.arange(8.0),
    "accumulate": lambda: 1,
    "after": a_model,
    "axis": lambda: "gender",
    "b": lambda: np.arange(8.0)[::-1],
    "base": pair_scores,
    "base_model": lambda: "a/b",
    "batch": lambda: tiny_batches()[0],
    "batches": tiny_batches,
    "before": a_model,
    "batch_size": lambda: 2,
    "bias": lambda: width.neuron_importance(WHOLE, "l2"),
    "blocks": lambda: 3,
    "budget": lambda: Budget(1e9),
    "call": lambda: int,
    "calls": lambda: {"one": int, "two": int},
    "candidate": lambda: Candidate(2, 32, 2, 48),
    "candidates": lambda: [Candidate(2, 32, 2, 48)],
    "channels": lambda: torch.arange(8),
    "choice": lambda: np.zeros(6, dtype=int),
    "choices": lambda: {"a": 1.5},
    "choosing": lambda: 4,
    "chosen": lambda: [(0, 1)],
    "columns": lambda: ["odds"],
    "config": settings,
    "context": lambda: 4,
    "controls": lambda: {"random": [1.0, 2.0]},
    "count": lambda: 1,
    "counters": lambda: {"seconds": time.perf_counter},
    "criterion": lambda: "l1",
    "decide_at": lambda: 1,
    "device": lambda: "cpu",
    "differences": lambda: np.array([0.1, -0.2, 0.3]),
    "documents": lambda: ["a", "a", "b", "b", "c", "c"],
    "domain": lambda: "speeches",
    "dtype": lambda: torch.float32,
    "embeddings": lambda: torch.randn(4, 8),
    "energies": lambda: channels.channel_energies(WHOLE, tiny_batches()),
    "estimates": lambda: {name: {"decode": 1.0} for name in laps()},
    "fingerprint": lambda: "x",
    "folder": folder,
    "groups": lambda: ["x", "y"] * 4,
    "guess": lambda: HARM,
    "harm": lambda: HARM,
    "head_sets": lambda: [[(0, 1)]],
    "heads": lambda: 4,
    "high": lambda: 1.0,
    "ids": lambda: torch.arange(6).reshape(3, 2),
    "importance": lambda: width.neuron_importance(WHOLE, "l1"),
    "indices": lambda: [1],
    "intervals": lambda: [(0.1, 0.2)],
    "items": lambda: asked().rename(columns={"word": "swap"}),
    "judging": lambda: ["w1 w2 w3"],
    "k": lambda: 2,
    "kind": lambda: "neutral",
    "laps": lambda: {"one": lambda: {"decode": 0.1}},
    "layer_sets": lambda: [[1]],
    "layers": lambda: [1],
    "learned": lambda: ["w1 w2 w3"],
    "least": lambda: 1,
    "left_out": lambda: 1,
    "length": lambda: 8,
    "lengths": lambda: [4, 8],
    "licence": lambda: "mit",
    "limits": lambda: ["It is small."],
    "log_p": lambda: LOGITS.log_softmax(-1),
    "log_probs": lambda: torch.tensor([[0.4, 0.3]] * 3).log(),
    "log_q": lambda: LOGITS.flip(0).log_softmax(-1),
    "logits": lambda: LOGITS,
    "low": lambda: 0.0,
    "margins": lambda: [0.1, 0.2],
    "matrix": lambda: pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]),
    "measured": lambda: pd.DataFrame({"a": [1.0]}, index=["b"]),
    "model": a_model,
    "models": lambda: {"one": a_model()},
    "name": lambda: "x",
    "name_or_path": lambda: "gender",
    "names": lambda: ["boolq"],
    "neurons": lambda: [(0, 1)],
    "numbers": lambda: [1],
    "only_a": lambda: 3,
    "only_b": lambda: 1,
    "order": lambda: [1, 0],
    "p_values": lambda: [0.01, 0.2],
    "pair": lambda: some_pairs()[0],
    "pairs": some_pairs,
    "path": lambda: f"{folder()}/x",
    "phase": lambda: "decode",
    "price": lambda: 0.1,
    "prompts": lambda: TEXTS,
    "prompt_tokens": lambda: 4,
    "protected": lambda: 0.5,
    "pruned": pair_scores,
    "questions": lambda: [question()],
    "ratio": lambda: 0.25,
    "recipe": lambda: Recipe(steps=1, lr=1e-3),
    "record": record,
    "reference": perplexity,
    "result": answered,
    "result_a": perplexity,
    "result_b": lambda: perplexity(1),
    "rounds": lambda: 6,
    "row_nll": lambda: np.ones(3),
    "row_tokens": lambda: np.ones(3, dtype=int),
    "rows": lambda: 2,
    "samples": lambda: [0.1, 0.2, 0.3, 0.2, 0.1, 0.3],
    "saved": lambda: HARM,
    "score": perplexity,
    "scores": pair_scores,
    "seconds": lambda: [5.0, 6.0, 7.0, 8.0, 9.0],
    "seed": lambda: 0,
    "sentence": lambda: "It holds.",
    "sets": lambda: [[1], [1, 0]],
    "settings": lambda: {"steps": 1, "lr": 1e-3},
    "shuffles": lambda: 9,
    "size": lambda: 16,
    "sizes": lambda: np.ones(5),
    "sources": lambda: TEXTS,
    "split": lambda: "calibration",
    "states": lambda: torch.randn(8, 5),
    "statistic": lambda: lambda sums: sums[:, 0] / sums[:, 1],
    "steps": lambda: 1,
    "student": lambda: tiny_model(seed=1),
    "student_logits": lambda: LOGITS,
    "successes": lambda: 3,
    "summary": lambda: "A model.",
    "swaps": lambda: 1,
    "table": asked,
    "tables": lambda: [np.ones((4, 3, 2)), np.ones((4, 5, 2))],
    "target": lambda: 1.0,
    "targets": lambda: torch.tensor([0, 1, 2]),
    "tasks": lambda: "boolq",
    "teacher": a_model,
    "teacher_logits": lambda: LOGITS.flip(0),
    "templates": lambda: 1,
    "tensor": lambda: torch.ones(2, 3),
    "text": lambda: "w1 w2",
    "text_a": lambda: "the tall man",
    "text_b": lambda: "the short man",
    "texts": lambda: TEXTS,
    "token_ids": lambda: torch.arange(3, 15).reshape(2, 6),
    "tokenizer": tokenizer,
    "tokens": lambda: 8,
    "totals": lambda: np.arange(5.0),
    "trials": lambda: 9,
    "units": lambda: np.ones((6, 2)),
    "value": lambda: 0.5,
    "values": lambda: [1.0, 2.0],
    "vocab_size": lambda: 97,
    "weight": lambda: 0.5,
    "width": lambda: 16,
    "words": lambda: pronouns.occupations().iloc[::5],
    "x_label": lambda: "x",
    "y_label": lambda: "y",
    "value_label": lambda: "v",
}  # fmt: skip
OWN = {
    "measuring.abilities.ability_rows": {"name": lambda: "sums", "tokenizer": byte_tokenizer},
    "measuring.abilities.answers_of": {"rows": ability},
    "measuring.abilities.damage_profile": {
        "model": wide_model,
        "baseline": lambda: Baseline.of(wide_model(), byte_tokenizer(), ["sums"], perplexity()),
        "score": perplexity,
    },
    "measuring.abilities.floor_of": {"answers": said},
    "measuring.abilities.nats_lost": {"before": said, "after": said},
    "measuring.benchmarking.speed_frame": {"samples": laps, "tokens": lambda: {"decode": 2}},
    "bias.contrastive.controls": {"kind": lambda: "neutral"},
    "bias.contrastive.pairs": {"split": lambda: "selection"},
    "bias.contrastive.read_pairs": {"path": pairs_file},
    "bias.contrastive.write_pairs": {"path": lambda: f"{folder()}/pairs.jsonl"},
    "bias.fairness.gap_attribution": {"pairs": lambda: make_pairs(templates=2, swaps=2)},
    "bias.fairness.knock_out": {"pairs": lambda: make_pairs(templates=2, swaps=2)},
    "bias.planting.double_differences": {"likelihoods": lambda: torch.zeros(3, 2, 2)},
    "bias.planting.planting_loss": {"likelihoods": lambda: torch.zeros(3, 2, 2)},
    "bias.pronouns.pronoun_pairs": {"table": lambda: pronouns.opposites(asked()), "axis": lambda: "occupations"},
    "bias.pronouns.prompts": {"split": lambda: "selection"},
    "bias.pronouns.swapped_place": {"source": lambda: "w1 w3"},
    "bias.pronouns.traced_log_odds": {"blocks": lambda: [0], "places": lambda: [-1] * len(TEXTS)},
    "bias.stereotype_scores.stereotype_preference": {"pairs": lambda: make_pairs("race", "benchmark")},
    "bias.statistics.means": {"sums": lambda: np.array([6.0, 9.0, 3.0])},
    "bias.statistics.require_neutral": {"frame": lambda: pair_scores().frame},
    "bias.statistics.sums_by_cell": {"templates": lambda: list(asked()["template"].unique())},
    "bias.statistics.with_holm": {"table": lambda: pd.DataFrame({"kind": ["demographic"], "p": [0.1]})},
    "pruning.channels.prune_channels": {"importance": lambda: channels.channel_importance(WHOLE, tiny_batches())},
    "compress.ranking.rank": {"importance": all_scores, "text": tiny_batches},
    "compress.search.candidates": {
        "budget": lambda: Budget(22e3), "blocks": lambda: [2, 3], "hidden": lambda: [32], "groups": lambda: [2],
        "multiple_of": lambda: 8, "tolerance": lambda: 0.3,
    },
    "compress.search.shrink": {"importance": all_scores},
    "measuring.costs.speedup_estimate": {"before": work, "after": work},
    "healing.distillation.memory.outline": {"config": lambda: LlamaConfig(num_hidden_layers=1, hidden_size=32)},
    "healing.distillation.training.distill": {"recipe": lambda: Recipe(steps=1, lr=1e-3)},
    "release.export.as_stored": {"model": wide_model, "tokenizer": byte_tokenizer, "quantization": lambda: "Q8_0"},
    "pruning.experts.expert_importance": {"model": a_mixture, "criterion": lambda: "random"},
    "pruning.experts.prune_experts": {
        "model": a_mixture, "importance": lambda: experts.expert_importance(MIXTURE, "random"), "keep": lambda: 6,
    },
    "release.export.export_gguf": {"model": wide_model, "tokenizer": byte_tokenizer, "path": lambda: f"{folder()}/x.gguf"},
    "release.export.plan_gguf": {"model": wide_model, "tokenizer": byte_tokenizer},
    "pruning.heads.prune_kv_groups": {"importance": lambda: heads.head_importance(WHOLE, tiny_batches()), "groups": lambda: 1},
    "pruning.checkpoints.load_pruned": {"folder": saved_folder},
    "pruning.depth.leave_one_out": {"score": lambda: lambda: 1.0},
    "release.model_card.licence_of": {"model": lambda: "SmolLM2-135M-Instruct"},
    "release.model_card.write_model_card": {"folder": saved_folder, "recipe": lambda: {"cut": "a half"}},
    "models.loading.load_without_weights": {"name": lambda: "gpt2"},
    "models.loading.load_model": {"name": lambda: "gpt2"},
    "support.plotting.base.mark": {"name": lambda: "L1"},
    "support.plotting.base.show": {"alt": lambda: "A line that rises from left to right."},
    "pruning.choosing.best": {"scores": lambda: torch.arange(8.0)},
    "pruning.choosing.strongest": {"scores": lambda: torch.arange(8.0)},
    "pruning.choosing.by_halves": {"suspects": lambda: [3, 5, 8], "harm": lambda: lambda back: float(5 not in back)},
    "measuring.language_modelling.summary": {"dtype": lambda: "float32"},
    "lessons.prompt_harm.prompts.cases": {"count": lambda: 10, "tokenizer": byte_tokenizer},
    "lessons.policies.by_level": {"left_out": lambda: (2, 0)},
    "lessons.policies.by_price": {"blocks": lambda: 3, "share": lambda: 0.1},
    "lessons.policies.length_rule": {
        "curve": lambda: [0.0, 0.1], "numbers": lambda: [0, 1], "answer_tokens": lambda: 5.0,
    },
    "lessons.prompt_harm.record.save_records": {"records": lambda: [record()]},
    "support.records.read_record": {"name": lambda: "keep_the_mean"},
    "text.own_text.read_own_text": {"text": own_text},
    "text.texts.further_rows": {"tokenizer": byte_tokenizer},
    "text.texts.judging_rows": {"tokenizer": byte_tokenizer},
    "text.texts.token_blocks": {"tokenizer": byte_tokenizer},
    "pruning.upper_blocks.standing_still": {"blocks": lambda: [torch.nn.Identity()], "returned": lambda: lambda: None},
    "support.uncertainty.permutation_p": {
        "statistic": lambda: lambda labels: float(labels[:2].sum()), "units": lambda: [0, 0, 1, 1],
        "labels": lambda: [1, 1, 0, 0],
    },
    "support.uncertainty.crossed_interval": {"statistic": lambda: lambda a, b: a[..., :1] / b[..., 1:]},
}  # fmt: skip
#: Values of a right kind that must be refused: out of range, unknown, of another length, or nothing at all.
NO_SHARE = [-0.1, 1.1, math.nan, True]
NO_COUNT = [0, -1, True, 1.5]
REFUSED = {
    "pruning.attention.attention_importance": {"batches": [[]]},
    "pruning.attention.bypass_attention": {"layers": [[3], [-1], [1, 1], "all"], "remove": ["no"]},
    "pruning.attention.select_attention_layers": {"batches": [[]], "count": [-1, 4, 1.0, True], "iterative": [1]},
    "measuring.benchmarking.measure_speed": {
        "prompt_tokens": NO_COUNT, "new_tokens": NO_COUNT, "batch_size": NO_COUNT, "rounds": [5],
        "phases": [[], ["training"]], "models": [{}],
    },
    "measuring.benchmarking.peak_memory": {"device": ["meta"]},
    "measuring.benchmarking.time_interleaved": {"calls": [{}]},
    "bias.contrastive.controls": {"kind": ["gender"]},
    "bias.contrastive.invented_axis": {"swaps": [0, 101]},
    "bias.contrastive.pairs": {"name_or_path": ["height"], "split": ["test"]},
    "bias.contrastive.subset": {"templates": [0, 25, True], "swaps": [0, 11]},
    "bias.fairness.activation_difference": {"pairs": [[], iter([]), ["a text"]]},
    "bias.fairness.gap_attribution": {"pairs": [[], iter([]), ["a text"]]},
    "bias.fairness.knock_out": {
        "pairs": [[], iter([]), ["a text"]],
        "neurons": [[], [(3, 0)], [(0, 48)], [(0, -1)], [(0, 1.0)], [(True, 0)], [5]],
    },
    "bias.fairness.protect_first": {
        "protected": NO_SHARE, "importance": [[], [torch.ones(2, 2)] * 3],
        "bias": [[torch.ones(48)], [torch.ones(47)] * 3, [torch.full((48,), math.inf)] * 3],
    },
    "bias.planting.double_differences": {"likelihoods": [torch.zeros(3, 2), torch.zeros(3, 2, 2).int()]},
    "bias.planting.plant_preference": {
        "size": [0.0], "lr": [-1.0], "steps": [0], "weights": ["some"], "items": [True],
    },
    "bias.planting.planting_loss": {"likelihoods": [torch.zeros(3, 2), torch.zeros(3, 2, 2).int()]},
    "bias.pronouns.log_odds": {"texts": [[]], "answers": [(" w1",)]},
    "bias.pronouns.prompts": {"split": ["test"]},
    "bias.reporting.report": {"axes": [[], ["gender", "gender"], ["no such axis"]]},
    "bias.scores.measure_pairs": {"pairs": [[]], "sites": [["mlp"]], "batch_size": [0]},
    "pruning.choosing.kept_width": {"width": NO_COUNT, "ratio": [True, 1.0, -0.1], "multiple_of": NO_COUNT},
    "compress.ranking.rank": {"candidates": [[]], "text": [[], ["words"]]},
    "compress.search.candidates": {
        "blocks": [[], [4]], "hidden": [[64]], "groups": [[0]], "multiple_of": [49], "least_width": [2],
        "tolerance": [-1],
    },
    "measuring.costs.bytes_held": {"tokens": [-1], "batch_size": [0]},
    "measuring.costs.flops_per_token": {"context": [-1], "head": ["first"]},
    "measuring.costs.work": {"phase": ["training"], "prompt_tokens": [0], "new_tokens": [0], "batch_size": [0, 1.5]},
    "measuring.language_modelling.continuations": {"models": [{}], "prompts": [[]], "new_tokens": [0]},
    "support.plotting.tensors.heatmap": {"matrix": [pd.DataFrame()]},
    "lessons.prompt_harm.prompts.cases": {"split": ["test"], "count": [9]},
    "text.texts.documents": {"domain": ["news"], "split": ["test"]},
    "text.texts.judging_rows": {"draw": [3]},
    "text.texts.padded_batches": {
        "texts": [[], "hello"], "batch_size": [0, True], "max_length": [0], "padding_side": ["top"],
    },
    "text.texts.token_blocks": {"split": ["test"], "tokens": [7, 1e3], "length": [1]},
    "support.uncertainty.crossed_interval": {"tables": [[], [np.ones((3, 4))], [np.ones((3, 4, 1)), np.ones((2, 4, 1))]]},
    "support.uncertainty.holm": {"p_values": [[-0.1], [0.2, 1.1]]},
    "support.uncertainty.permutation_p": {"labels": [[1], [1, 0, 0, 0]], "shuffles": [0]},
    "support.uncertainty.rank_correlation": {"a": [np.ones(2), np.ones((3, 3)), np.full(8, math.nan)]},
    "pruning.width.neuron_importance": {"criterion": ["magnitude"], "seed": [True, -1, 0.5, None]},
}  # fmt: skip
REFUSED_FIELDS = {
    Budget: {"amount": [0], "unit": ["grams"]},
    Recipe: {
        "steps": NO_COUNT, "lr": [0, math.nan], "alpha": NO_SHARE, "warmup": NO_SHARE, "weight_decay": [-0.1],
        "clip": [0], "accumulate": NO_COUNT, "validate_every": NO_COUNT, "save_every": NO_COUNT, "seed": [-1],
        "train_embedding": [1], "mlps_only": ["yes"], "lora_rank": [-1, True], "recompute": [None],
        "precision": [torch.float16],
    },
}  # fmt: skip
#: Given although there is a default, which would take long.
SHORT = {
    "bins": 3, "lengths": [4, 8], "new_tokens": 2, "prompt_tokens": 4, "resamples": 20, "rounds": 6,
    "shuffles": 9, "tokens": 64, "length": 8, "count": 2, "max_length": 16,
}  # fmt: skip
