"""Something right to call each public function with, and values that must be refused, for ``test_fuzz``.

``MADE`` goes by an argument's name, ``OWN`` by function first, where one name stands for several things. What can be
changed is made anew for each call.
"""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tiny import tiny_batches, tiny_model, word_tokenizer
from tiny_pairs import make_pairs
from tiny_tokenizers import byte_level
from transformers import AutoTokenizer, LlamaConfig

import course_utils
from course_utils.bias import pronouns
from course_utils.bias.scores import measure_pairs
from course_utils.compress import Budget, Candidate, importance
from course_utils.healing.distillation import Recipe
from course_utils.lessons.prompt_harm import Record
from course_utils.measuring import language_modelling
from course_utils.measuring.abilities import AbilityRows, Baseline, answers_of
from course_utils.models.loading import variant
from course_utils.pruning import adaptive, channels, experts, heads, width
from course_utils.pruning.checkpoints import save_pruned
from course_utils.pruning.vocabulary import choose_tokens
from course_utils.text.passages import Passage
from course_utils.text.rows import TokenBlocks

WHOLE, MIXTURE = tiny_model(), tiny_model("mixtral")
TEXTS = ["w1 w2", "w3 w4 w5", "w6 w7 w8 w9"]
HARM = np.arange(12.0).reshape(6, 2)


def folder() -> str:
    return tempfile.mkdtemp(dir=Path.cwd())  # a test's own


def own_text():
    """A file of one's own text, of as many documents as it takes."""
    path = Path(folder(), "own.jsonl")
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in (*TEXTS, "w10")), encoding="utf-8")
    return [str(path)]


@functools.cache
def tokenizer():
    made = word_tokenizer()
    made.pad_token, made.eos_token = "w2", "w1"
    return made


@functools.cache
def byte_tokenizer():
    return AutoTokenizer.from_pretrained(Path(course_utils.__file__).parent / "data" / "gpt2", local_files_only=True)


def pair_tokenizer():
    """BPE with bytes, as large as the tiny models' vocabulary."""
    return byte_level(size=97, alphabet=False)


def a_model():
    """Shares its weights with the others, and may be cut."""
    return variant(WHOLE)


def a_mixture():
    return variant(MIXTURE)


def wide_model():
    """For the tokenizer of bytes."""
    return tiny_model(layers=1, vocab_size=len(byte_tokenizer()), max_position_embeddings=512)


def ability():
    ids = torch.arange(3, 15).view(2, 6)
    return AbilityRows("sums", ids, torch.ones_like(ids), torch.where(ids % 6 == 3, -1, ids - 3))


def said():
    return answers_of(WHOLE, ability())


def baseline():
    return Baseline.of(wide_model(), byte_tokenizer(), ["sums"], perplexity())


def blocks():
    return TokenBlocks(torch.arange(12).view(2, 6), torch.tensor([5, 5]), "wiki", "evaluation")


def few_pairs():
    return make_pairs(templates=2, swaps=2)


@functools.cache
def some_pairs():
    return few_pairs() + make_pairs("neutral", "neutral", templates=2, swaps=2, seed=1)


@functools.cache
def pair_scores():
    return measure_pairs(WHOLE, tokenizer(), some_pairs())


@functools.cache
def perplexity(seed: int = 0):
    return language_modelling.perplexity(tiny_model(seed=seed), tiny_batches())


def per_byte():
    """Rows whose bytes are known."""
    batches = [batch | {"bytes": torch.full((len(batch["input_ids"]),), 9)} for batch in tiny_batches()]
    return language_modelling.perplexity(tiny_model(), batches)


@functools.cache
def saved_folder() -> str:
    made = folder()
    save_pruned(WHOLE, tokenizer(), made)
    return made


@functools.cache
def all_scores():
    return importance(WHOLE, tiny_batches())


def neuron_scores():
    return width.neuron_importance(WHOLE, "l1")


def asked():
    return pronouns.prompts(pronouns.occupations().iloc[::5], "selection").assign(odds=1.0)


def record():
    harm = np.random.default_rng(0).uniform(size=(4, 4)) * (np.arange(4) > 0)
    rows = {"kinds": "passage", "documents": "a", "digests": "b"}
    return Record(
        settings={}, choosing=2, numbers=(0, 1, 2, 3), tokens=np.array([7, 1, 19, 4]), harm=harm,
        answer_tokens=np.array([32, 5, 32, 9]), complexity=np.array([0.1, 0.5, 0.9, 0.3]),
        **{name: np.array([value] * 4) for name, value in rows.items()},
    )  # fmt: skip


def always(value):
    """A maker of one value that nothing changes."""
    return lambda: value


SAME = {
    "amount": 1e6, "answer_tokens": 5.0, "axis": "gender", "base_model": "a/b", "choice": np.zeros(6, dtype=int),
    "chosen": [(0, 1)], "count": 1, "criterion": "l1", "curve": [0.0, 0.1], "documents": ["a", "a", "b", "b", "c", "c"],
    "domain": "speeches", "dtype": torch.float32, "groups": 1, "guess": HARM,
    "harm": HARM, "head_sets": [[(0, 1)]], "heads": 4, "high": 1.0, "indices": [1], "input_ids": torch.ones(2, 3).long(),
    "judging": ["w1 w2 w3"], "keep": 6, "layers": [1], "learned": ["w1 w2 w3"], "length": 8, "licence": "mit",
    "limits": ["It is small."], "low": 0.0, "lr": 1e-3, "margins": [0.1, 0.2], "matrix": pd.DataFrame([[1.0, 2.0]]),
    "measured": pd.DataFrame({"a": [1.0]}, index=["b"]), "name": "x", "neurons": [(0, 1)], "num_bytes": torch.tensor([5, 5]),
    "price": 0.1, "prompts": TEXTS, "protected": 0.5, "ratio": 0.25, "rows": 2, "saved": HARM, "seed": 0,
    "sentence": "It holds.", "sets": [[1], [1, 0]], "size": 16, "sizes": np.ones(5), "sources": TEXTS,
    "split": "calibration", "steps": 1, "summary": "A model.", "swaps": 1, "target": 1.0, "tasks": "boolq",
    "templates": 1, "text": "w1 w2", "texts": TEXTS, "token_ids": torch.arange(3, 15).reshape(2, 6), "tokens": 8,
    "totals": np.arange(5.0), "value": 0.5, "value_label": "v", "x_label": "x", "y_label": "y",
}  # fmt: skip
MADE = {name: always(value) for name, value in SAME.items()} | {
    "a": lambda: np.arange(8.0),
    "b": lambda: np.arange(8.0)[::-1],
    "batches": tiny_batches,
    "bias": lambda: width.neuron_importance(WHOLE, "l2"),
    "blocks": lambda: 3,
    "call": lambda: int,
    "calls": lambda: {"one": int, "two": int},
    "candidate": lambda: Candidate(2, 32, 2, 48),
    "candidates": lambda: [Candidate(2, 32, 2, 48)],
    "config": lambda: adaptive.calibrate(WHOLE, tokenizer(), TEXTS),
    "folder": folder,
    "importance": neuron_scores,
    "model": a_model,
    "models": lambda: {"one": a_model()},
    "pairs": some_pairs,
    "recipe": lambda: Recipe(steps=1, lr=1e-3),
    "record": record,
    "reference": perplexity,
    "result_a": perplexity,
    "result_b": lambda: perplexity(1),
    "score": perplexity,
    "scores": pair_scores,
    "student": lambda: tiny_model(seed=1),
    "table": asked,
    "teacher": a_model,
    "tokenizer": tokenizer,
    "words": lambda: pronouns.occupations().iloc[::5],
}
BYTES = {"tokenizer": byte_tokenizer}
PAIRS = {"tokenizer": pair_tokenizer}
OWN = {
    "ability_rows": {"name": always("sums"), **BYTES},
    "answers_of": {"rows": ability},
    "as_stored": {"model": wide_model, "quantization": always("Q8_0"), **BYTES},
    "batches_of": {"found": lambda: [Passage(0, "w1 w2")]},
    "best": {"scores": always(torch.arange(8.0))},
    "by_halves": {"suspects": always([3, 5, 8]), "harm": lambda: lambda back: float(5 not in back)},
    "by_level": {"left_out": always((2, 0))},
    "bits_ratio": {"score": per_byte, "reference": per_byte},
    "candidates": {
        "budget": lambda: Budget(22e3), "blocks": always([2, 3]), "hidden": always([32]), "groups": always([2]),
        "multiple_of": always(8), "tolerance": always(0.3),
    },
    "cases": {"count": always(10), **BYTES},
    "choose_tokens": {"counts": always(torch.arange(97)), "keep": always(64), **PAIRS},
    "damage_profile": {"model": wide_model, "baseline": baseline},
    "distill": {"recipe": lambda: Recipe(steps=1, lr=1e-3)},
    "expert_importance": {"model": a_mixture, "criterion": always("random")},
    "export_gguf": {"model": wide_model, "path": lambda: f"{folder()}/x.gguf", **BYTES},
    "floor_of": {"answers": said},
    "further_rows": BYTES,
    "judging_rows": BYTES,
    "leave_one_out": {"score": lambda: lambda: 1.0},
    "licence_of": {"model": always("SmolLM2-135M-Instruct")},
    "load_model": {"name": always("gpt2")},
    "load_pruned": {"folder": saved_folder},
    "mark": {"name": always("L1")},
    "nats_lost": {"before": said, "after": said},
    "outline": {"config": lambda: LlamaConfig(num_hidden_layers=1, hidden_size=32)},
    "paragraphs": {"name": always("code")},
    "permutation_p": {
        "statistic": lambda: lambda labels: float(labels[:2].sum()), "units": always([0, 0, 1, 1]),
        "labels": always([1, 1, 0, 0]),
    },
    "plan_gguf": {"model": wide_model, **BYTES},
    "prompts": {"split": always("selection")},
    "prune_channels": {"importance": lambda: channels.channel_importance(WHOLE, tiny_batches())},
    "prune_experts": {"model": a_mixture, "importance": lambda: experts.expert_importance(MIXTURE, "random")},
    "prune_kv_groups": {"importance": lambda: heads.head_importance(WHOLE, tiny_batches())},
    "prune_vocabulary": {"tokens": lambda: choose_tokens(pair_tokenizer(), torch.arange(97), keep=64), **PAIRS},
    "rank": {"importance": all_scores, "text": tiny_batches},
    "read_own_text": {"text": own_text},
    "read_record": {"name": always("keep_the_mean")},
    "show": {"alt": always("A line that rises from left to right.")},
    "shrink": {"importance": all_scores},
    "strongest": {"scores": always(torch.arange(8.0))},
    "swapped_place": {"source": always("w1 w3")},
    "token_blocks": BYTES,
    "token_counts": PAIRS,
    "write_model_card": {"folder": saved_folder, "recipe": always({"cut": "a half"})},
}  # fmt: skip
# Given although there is a default, which would take long.
SHORT = {
    "bins": 3, "lengths": [4, 8], "new_tokens": 2, "prompt_tokens": 4, "resamples": 20, "rounds": 6,
    "shuffles": 9, "tokens": 64, "length": 8, "count": 2, "max_length": 16,
}  # fmt: skip

# Values of a right kind that must be refused wherever the argument is taken; below, those of one function.
NO_COUNT, NO_SHARE = [0, -1, True, 1.5], [-0.1, 1.1, math.nan, True]
REFUSED = {
    "accumulate": NO_COUNT, "alpha": NO_SHARE, "amount": [0], "batch_size": [0, True, 1.5], "batches": [[]],
    "clip": [0], "lora_rank": [-1, True], "lr": [0, -1.0, math.nan], "max_length": [0],
    "mlps_only": ["yes"], "multiple_of": [0, True], "new_tokens": NO_COUNT, "padding_side": ["top"],
    "prompt_tokens": NO_COUNT, "protected": NO_SHARE,
    "ratio": [1.0, -0.1, True], "recompute": [None], "rounds": [5], "save_every": NO_COUNT,
    "shuffles": [0], "steps": [0, True], "train_embedding": [1], "unit": ["grams"], "validate_every": NO_COUNT,
    "warmup": NO_SHARE, "weight_decay": [-0.1],
}  # fmt: skip
REFUSED_BY = {
    "Recipe": {"seed": [-1], "precision": [torch.float16]},
    "TokenBlocks": {"input_ids": [torch.ones(2, 3)], "num_bytes": [torch.ones(2), torch.ones(3).long()]},
    "peak_memory": {"device": ["meta"]},
    "bypass_attention": {"layers": [[3], [-1], [1, 1], "all"], "remove": ["no"]},
    "bytes_held": {"tokens": [-1]},
    "candidates": {
        "blocks": [[], [4]], "hidden": [[64]], "groups": [[0]], "multiple_of": [49], "least_width": [2],
        "tolerance": [-1],
    },
    "cases": {"split": ["test"], "count": [9]},
    "choose_tokens": {"counts": [torch.zeros(96), -torch.ones(97)], "keep": [30, 98]},
    "continuations": {"models": [{}], "prompts": [[]]},
    "documents": {"domain": ["news"], "split": ["test"]},
    "heatmap": {"matrix": [pd.DataFrame()]},
    "judging_rows": {"draw": [3]},
    "log_odds": {"texts": [[]], "answers": [(" w1",)]},
    "measure_speed": {"phases": [[], ["training"]], "models": [{}]},
    "neuron_importance": {"criterion": ["magnitude"], "seed": [None, True, -1, 0.5]},
    "padded_batches": {"texts": [[], "hello"]},
    "permutation_p": {"labels": [[1], [1, 0, 0, 0]]},
    "prompts": {"split": ["test"]},
    "prune_vocabulary": {"tokens": [[], range(1, 97), [*range(97), 0], "all"]},
    "rank": {"candidates": [[]], "text": [[], ["words"]]},
    "rank_correlation": {"a": [np.ones(2), np.ones((3, 3)), np.full(8, math.nan)]},
    "remove_blocks": {"means": [torch.ones(3, 31), torch.ones(32), torch.full((3, 32), math.nan)]},
    "select_attention_layers": {"count": [-1, 4, 1.0, True], "iterative": [1]},
    "time_interleaved": {"calls": [{}]},
    "token_blocks": {"split": ["test"], "tokens": [7, 1e3], "length": [1]},
}  # fmt: skip
