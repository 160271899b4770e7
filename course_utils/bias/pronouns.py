"""Occupations and pronouns: does a model expect "she" or "he" after "The nurse said that"?

Labour statistics say beforehand who works as what, and this bias can be shown without harm. The prompts end where a
pronoun may come, so one forward pass gives the log-odds of "she" against "he", and the last token's states are what
they are computed from. Half of the words and half of the templates are for choosing (neurons, directions, heads), the
other halves for measuring what was chosen.

Functions of a model take any that ``describe`` knows, with its tokenizer. Give the model in float32, because in 16 bits
the logits are rounded to about 0.1. ``answers`` may ask for other words, such as (" is", " are"). The functions raise
ValueError where there are no texts, where a text has no source, or where an answer has several tokens.

Vig et al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation Analysis", arXiv 2004.12265.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.contrastive import SPLITS
from course_utils.models.architectures import Architecture, describe
from course_utils.pruning.activations import evaluating, watching
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.batches import Batch, padded, read_batch

PRONOUNS = (" she", " he")
Head = tuple[int, int]  # (block, query head)
Place = tuple[Tensor, Tensor]  # (rows, positions)
_Receiver = Callable[[int, Tensor], Tensor]  # block, states -> what the model goes on with
_BATCH_SIZE = 32  # texts that run at once
_SETS = 19  # the least with which beating all of them has p = .05
_FOLDER = Path(__file__).resolve().parents[1] / "data"


@functools.cache
def _data() -> dict:
    return json.loads((_FOLDER / "occupations.json").read_text(encoding="utf-8"))


def occupations() -> pd.DataFrame:
    """Forty occupations: ``word``, ``women`` (their share in the US labour force, 0 to 1), ``group`` and ``split``.

    Sorted by ``women``. The group is "mostly women" or "mostly men"; neighbours in the order go to different splits.

    >>> occupations()["word"].iloc[[0, -1]].to_list()
    ['carpenter', 'secretary']
    """
    shares = _data()["women"]
    table = pd.DataFrame({"word": list(shares), "women": np.array(list(shares.values())) / 100})
    table["group"] = np.where(table["women"] > 0.5, "mostly women", "mostly men")
    table["split"] = [SPLITS[number % 4 in (1, 2)] for number in range(len(table))]
    return table


def people() -> pd.DataFrame:
    """Twenty words whose pronoun is no stereotype: ``word``, ``group`` ("she" or "he"), ``pair`` and ``split``.

    >>> people()["word"].to_list()[:2]
    ['woman', 'man']
    """
    rows = [
        {"word": word, "group": group, "pair": pair, "split": SPLITS[pair % 2]}
        for pair, words in enumerate(_data()["people"])
        for word, group in zip(words, ("she", "he"), strict=True)
    ]
    return pd.DataFrame(rows)


@check_types
def prompts(words: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """Every word in every template: a row for each, with the columns of ``words`` and ``template`` and ``text``.

    Args:
        words: of ``occupations`` or ``people``, or any with the columns ``word`` and ``split``.
        split: only the words *and* the templates of this split; None for all words in all templates.

    Raises:
        ValueError: an unknown split.
    """
    checks.one_of("split", split, (*SPLITS, None))
    templates = [text for name, texts in _data()["templates"].items() if split in (None, name) for text in texts]
    chosen = words if split is None else words[words["split"] == split]
    made = chosen.merge(pd.DataFrame({"template": templates}), how="cross")
    return made.assign(text=[sentence.format(word) for sentence, word in zip(made.template, made.word, strict=True)])


@check_types
def opposites(table: pd.DataFrame) -> pd.DataFrame:
    """In each template the words of the two groups side by side, and a word of the same group as a control.

    Occupations: the one with most women beside the one with fewest, the second beside the second, and so on. People:
    woman beside man, girl beside boy, and so on.

    Args:
        table: of ``prompts(occupations())`` or ``prompts(people())``.

    Returns:
        ``template``; ``word`` and ``text`` of the first group ("mostly women", "she"); ``other`` and ``source`` of the
        second; and ``same``, the text of the next word of the first group: a neutral swap.
    """
    by = "women" if "women" in table else "pair"
    first, second = sorted(table["group"].unique(), reverse=True)
    parts = []
    for template, part in table.sort_values([by, "word"], kind="stable").groupby("template", sort=False):
        one, other = part[part["group"] == first], part[part["group"] == second]
        one = one.iloc[::-1] if by == "women" else one
        texts = one["text"].to_numpy()
        columns = {"word": one["word"], "text": texts, "other": other["word"], "source": other["text"]}
        columns["same"] = np.roll(texts, -1)
        size = min(len(one), len(other))
        parts.append(pd.DataFrame({name: np.asarray(column)[:size] for name, column in columns.items()}))
        parts[-1].insert(0, "template", template)
    return pd.concat(parts, ignore_index=True)


@check_types
def random_heads(chosen: Collection[Head], heads: int, blocks: int, *, seed: int = 0) -> list[list[Head]]:
    """Nineteen controls for chosen heads: as many others, at random, from blocks at least as deep as the chosen ones.

    ``heads`` is how many each of the model's ``blocks`` has.

    Raises:
        ValueError: nothing was chosen, or a number is out of range.
    """
    checks.whole_number("heads", heads, least=1)
    checks.whole_number("blocks", blocks, least=1)
    checks.whole_number("seed", seed)
    lowest = min(block for block, _ in checks.not_empty("chosen", chosen))
    others = [(i, k) for i in range(lowest, blocks) for k in range(heads) if (i, k) not in set(chosen)]
    generator = np.random.default_rng(seed)
    picked = [generator.choice(len(others), min(len(chosen), len(others)), replace=False) for _ in range(_SETS)]
    return [[others[number] for number in sorted(numbers)] for numbers in picked]


@check_types
@torch.no_grad()
def log_odds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    answers: tuple[str, str] = PRONOUNS,
) -> np.ndarray:
    """Log P(she) - log P(he) for the next token after each text, in nats: [texts] float64; above 0 is "she"."""
    architecture, odds = describe(model), []
    with evaluating(model):
        for batch, last in _batches(architecture, tokenizer, texts):
            odds.append(_odds(architecture, tokenizer, architecture.hidden_states(batch)[last], answers).double().cpu())
    return torch.cat(odds).numpy()


@check_types
@torch.no_grad()
def odds_and_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    sites: Sequence[str] = ("residual",),
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """``log_odds``, and from the same passes the states of each text's last token at some of ``activations.SITES``.

    Returns:
        [texts] float64, nats; and site -> float32 [texts, blocks, width] on the CPU.
    """
    architecture, odds = describe(model), []
    sites = checks.strings("sites", sites)
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    for batch, last in _batches(architecture, tokenizer, texts):
        seen: dict[tuple[str, int], Tensor] = {}

        def keep(site: str, block: int, states: Tensor, seen: dict = seen, last: Place = last) -> None:
            seen[site, block] = states[last].float().cpu()

        with watching(architecture, sites, None, keep):
            states = architecture.hidden_states(batch)[last]
        odds.append(_odds(architecture, tokenizer, states, PRONOUNS).double().cpu())
        for site, parts in found.items():
            parts.append(torch.stack([seen[site, block] for block in range(architecture.num_blocks)], dim=1))
    return torch.cat(odds).numpy(), {site: torch.cat(parts) for site, parts in found.items()}


@check_types
@torch.no_grad()
def patched_log_odds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sources: Sequence[str],
    head_sets: Sequence[Collection[Head]],
    *,
    answers: tuple[str, str] = PRONOUNS,
) -> np.ndarray:
    """The log-odds after each text when a set of heads says at its last token what it says at the source's.

    Args:
        model: with a live attention in all the blocks.
        tokenizer: the model's.
        texts: [n].
        sources: [n], one for each text.
        head_sets: the heads of one set are patched together, and an empty set changes nothing.
        answers: see the module.

    Returns:
        [sets, n] float64, nats.
    """
    patches = [
        {block: [head for where, head in heads if where == block] for block, _ in heads}
        for heads in checks.not_empty("head_sets", head_sets)
    ]
    wanted = {block for patch in patches for block in patch}
    architecture, odds = describe(model), []
    for (batch, last), (source, last_of_source) in _both(architecture, tokenizer, texts, sources):
        said: dict[int, Tensor] = {}
        with evaluating(model, *_hook_heads(architecture, wanted, _recorder(said, last_of_source))):
            architecture.hidden_states(source)
        patched = []
        for patch in patches:
            put = functools.partial(_put, patch=patch, last=last, said=said)
            with evaluating(model, *_hook_heads(architecture, patch, put)):
                states = architecture.hidden_states(batch)[last]
            patched.append(_odds(architecture, tokenizer, states, answers).double().cpu())
        odds.append(torch.stack(patched))
    return torch.cat(odds, dim=1).numpy()


@check_types
def head_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sources: Sequence[str],
    *,
    answers: tuple[str, str] = PRONOUNS,
) -> Tensor:
    """What patching each head alone would change, estimated from one gradient: float32 [n, blocks, heads], nats.

    Attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348): (what the head says at the source's last
    token - what it says here) times the gradient of the log-odds. Exact only as far as the model is linear in between,
    so check the heads that matter with ``patched_log_odds``. A bypassed attention counts 0.
    """
    architecture, effects = describe(model), []
    live = [block for block, attention in enumerate(architecture.attentions) if not attention.skipped]
    frozen = {weight: weight.requires_grad for weight in model.parameters()}
    model.requires_grad_(False)
    try:
        for (batch, last), (source, last_of_source) in _both(architecture, tokenizer, texts, sources):
            there: dict[int, Tensor] = {}
            here: dict[int, Tensor] = {}
            with torch.no_grad(), evaluating(model, *_hook_heads(architecture, live, _recorder(there))):
                architecture.hidden_states(source)
            start = model.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out.requires_grad_())
            with torch.enable_grad(), evaluating(model, start, *_hook_heads(architecture, live, _recorder(here))):
                odds = _odds(architecture, tokenizer, architecture.hidden_states(batch)[last], answers)
                gradients = torch.autograd.grad(odds.sum(), [here[block] for block in live])
            effect = torch.zeros(len(odds), architecture.num_blocks, model.config.num_attention_heads)
            for block, gradient in zip(live, gradients, strict=True):
                change = there[block][last_of_source] - here[block].detach()[last]  # [texts, heads, size]
                effect[:, block] = (change * gradient[last]).sum(-1).float().cpu()
            effects.append(effect)
    finally:
        for weight, state in frozen.items():
            weight.requires_grad_(state)
    return torch.cat(effects)


@check_types
def swapped_place(tokenizer: PreTrainedTokenizerBase, text: str, source: str) -> int:
    """The last token in which two texts differ, counted from their ends: -1 if it is their last one.

    Raises:
        ValueError: the texts are the same to the tokenizer.

    >>> swapped_place(tokenizer, "The nurse said that", "The construction worker said that")  # doctest: +SKIP
    -3
    """
    named = {"text": text, "source": source}
    one, other = (
        tokenizer(checks.text(name, each), add_special_tokens=False)["input_ids"] for name, each in named.items()
    )
    if one == other:
        raise ValueError(f"'text' and 'source' must differ; both are {text!r}.")
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return -1 - sum(1 for _ in alike)


def _batches(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Iterator[tuple[Batch, Place]]:
    """Batches padded on the right, and (rows, positions) of their last tokens."""
    texts = checks.strings("texts", texts)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for first in range(0, len(ids), _BATCH_SIZE):
        rows = ids[first : first + _BATCH_SIZE]
        batch = read_batch(padded(rows), vocab_size=architecture.vocab_size, device=architecture.model.device)
        yield batch, (torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows]))


def _both(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], sources: Sequence[str]
) -> Iterator[tuple[tuple[Batch, Place], ...]]:
    """Batches of texts beside those of their sources."""
    texts, sources = checks.strings("texts", texts), checks.strings("sources", sources)
    if len(texts) != len(sources):
        raise ValueError(f"Each text needs a source; got {len(texts)} texts and {len(sources)} sources.")
    return zip(*(_batches(architecture, tokenizer, side) for side in (texts, sources)), strict=True)


def _put(
    block: int, states: Tensor, *, patch: Mapping[int, list[int]], last: Place, said: Mapping[int, Tensor]
) -> Tensor:
    """The states of a block's heads, of which the patched ones say at each last token what they say in the source."""
    mixed, heads = states[last], patch[block]  # a copy, [texts, heads, size]
    mixed[:, heads] = said[block][:, heads]
    states = states.clone()
    states[last] = mixed
    return states


def _odds(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase, states: Tensor, answers: tuple[str, str]
) -> Tensor:
    """Log P(first) - log P(second) from states [texts, hidden] behind the final norm: the softmax' sum cancels."""
    first, second = answers
    numbers = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in (first, second)]
    if any(len(number) != 1 for number in numbers):
        raise ValueError(f"{first!r} and {second!r} must be one token each; this tokenizer gives {numbers}.")
    logits = architecture.logits(states).float()  # [texts, vocabulary]
    return logits[:, numbers[0][0]] - logits[:, numbers[1][0]]


def _hook_heads(architecture: Architecture, blocks: Collection[int], receive: _Receiver) -> list[RemovableHandle]:
    """Hooks that hand over what each block's heads say, [rows, length, heads, size], and go on with what they get."""
    heads = architecture.model.config.num_attention_heads

    def enter(module: nn.Module, args: tuple, *, block: int) -> tuple:
        states = args[0]
        changed = receive(block, states.reshape(*states.shape[:2], heads, -1))
        return (changed.reshape(states.shape), *args[1:])

    outputs = {block: architecture.attentions[block].outputs[0].module for block in blocks}
    return [
        module.register_forward_pre_hook(functools.partial(enter, block=block)) for block, module in outputs.items()
    ]


def _recorder(into: dict[int, Tensor], place: Place | None = None) -> _Receiver:
    """Keeps the states of each block, all or those at a place, and lets the model go on with them."""

    def keep(block: int, states: Tensor) -> Tensor:
        into[block] = states if place is None else states[place]
        return states

    return keep
