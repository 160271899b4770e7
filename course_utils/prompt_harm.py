"""What leaving attentions out does to one prompt's answer, and what the prompt shows before anything is left out.

``cases`` makes prompts of four kinds. ``measure`` lets the model answer each of them, then asks, for each number of
attentions left out, how far the bypassed model's predictions lie from the whole model's along that answer: the harm.
Beside it, what a policy may look at when it decides: the states that enter the first block whose attention may be left
out (all blocks below it always run), and what the model would say if it stopped there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.architectures import Architecture, describe, evaluating
from course_utils.attention import bypass_attention
from course_utils.batches import Batch, read_batch
from course_utils.benchmarking import time_interleaved
from course_utils.files import write_text
from course_utils.models import variant
from course_utils.texts import DOMAINS, documents

KINDS = {"passage": 0.4, "question": 0.25, "arithmetic": 0.2, "retrieval": 0.15}  # each with its share of the prompts
WORDS = {"passage": (1, 760), "retrieval": (40, 640)}  # the shortest and the longest text
ANSWER_TOKENS = 32
RECORD = Path(__file__).parent / "data" / "harm_per_prompt.json"
RANDOM_PROMPTS, _SHORT = 24, 90  # prompts, and their longest, for sets of random attentions
DIRECTIONS = 16  # principal components of the states that a probe may read
_TOKENS_A_BATCH, _ROWS_A_BATCH = 4096, 48
_SENTENCE_END = re.compile(r"[.!?]\s+|\n")
_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "grey", "brown", "orange", "purple")
_THINGS = ("door", "safe", "locker", "bicycle", "suitcase", "gate", "cabinet", "garage", "mailbox", "office")


@dataclass(frozen=True)
class Case:
    """One prompt.

    Attributes:
        kind: one of ``KINDS``.
        text: what the model reads, the chat template's words included.
        document: where it comes from; prompts of one document resemble each other.
    """

    kind: str
    text: str
    document: str

    @property
    def digest(self) -> str:
        """Eight characters that tell it from others."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]


def cases(tokenizer: PreTrainedTokenizerBase, split: str, *, count: int, seed: int = 0) -> list[Case]:
    """Prompts of four kinds, from one word to about a thousand tokens, shuffled.

    "passage": the beginning of a text, to be continued. "question": a science question (ARC-Easy). "arithmetic": a sum
    of two to twenty numbers. "retrieval": a passage that hides a number, and a question for it. All but passages stand
    in the tokenizer's chat template, where it has one.

    Args:
        tokenizer: the model's.
        split: "calibration" or "evaluation"; they share no document, question or sum.
        count: how many prompts, in the shares of ``KINDS``.
        seed: of everything that is drawn.

    Raises:
        ValueError: another split, or too few prompts for one of each kind.
        AssetError: the texts are not in the cache and can't be fetched.
    """
    checks.one_of("split", split, ("calibration", "evaluation"))
    checks.whole_number("count", count, least=10, meaning="at least one prompt of each kind")
    draw = random.Random(f"{split} {seed}")
    found: list[Case] = []
    for kind, share in KINDS.items():
        found += _MAKERS[kind](tokenizer, split, round(share * count), draw)
    draw.shuffle(found)
    return found


def _chat(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """A question as the model was taught to read it."""
    if tokenizer.chat_template is None:
        return f"Question: {question}\nAnswer:"
    message = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def _excerpts(split: str, count: int, words: tuple[int, int], draw: random.Random) -> Iterator[tuple[str, str]]:
    """(text, document) pairs: the domains in turn, lengths drawn evenly on a logarithmic scale, from a sentence on."""
    pools = {domain: documents(domain, split) for domain in DOMAINS}
    made = 0
    while made < count:
        domain = DOMAINS[made % len(DOMAINS)]
        number = draw.randrange(len(pools[domain]))
        text = pools[domain][number]
        length = round(math.exp(draw.uniform(*map(math.log, words))))
        starts = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
        excerpt = text[draw.choice(starts) :].split(maxsplit=length)
        if len(excerpt) > length:  # otherwise the document ends before
            made += 1
            yield " ".join(excerpt[:length]), f"{domain} {number}"


def _passages(_: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    return [Case("passage", text, name) for text, name in _excerpts(split, count, WORDS["passage"], draw)]


def _questions(tokenizer: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    from course_utils.benchmark_tasks import build_tasks  # lm-eval takes seconds to import

    asked = [document["question"] for document in build_tasks(["arc_easy"], None)["arc_easy"].test_docs()]
    numbers = [i for i in range(len(asked)) if (i % 5 == 0) == (split == "calibration")]
    chosen = draw.sample(numbers, count)
    return [Case("question", _chat(tokenizer, asked[i]), f"arc_easy {i}") for i in chosen]


def _sums(tokenizer: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    """Even first numbers calibrate, odd ones judge."""
    result = []
    for i in range(count):
        terms = [2 * draw.randrange(5, 50) + (split == "evaluation")]
        terms += [draw.randrange(10, 100) for _ in range(round(math.exp(draw.uniform(0, math.log(19)))))]
        text = f"What is {terms[0]}" + "".join(f" {draw.choice('+-')} {term}" for term in terms[1:]) + "?"
        result.append(Case("arithmetic", _chat(tokenizer, text), f"{split} sum {i}"))
    return result


def _retrievals(tokenizer: PreTrainedTokenizerBase, split: str, count: int, draw: random.Random) -> list[Case]:
    result = []
    for text, name in _excerpts(split, count, WORDS["retrieval"], draw):
        thing = f"{draw.choice(_COLOURS)} {draw.choice(_THINGS)}"
        sentences = re.split(r"(?<=[.!?])\s+", text)
        sentences.insert(
            draw.randrange(len(sentences) + 1), f"The code of the {thing} is {draw.randrange(1000, 9999)}."
        )
        question = f"{' '.join(sentences)}\n\nWhat is the code of the {thing}?"
        result.append(Case("retrieval", _chat(tokenizer, question), name))
    return result


_MAKERS = {"passage": _passages, "question": _questions, "arithmetic": _sums, "retrieval": _retrievals}


@dataclass(frozen=True)
class Measured:
    """What ``measure`` found, one row a prompt.

    Attributes:
        tokens: int64 [prompts], of the prompt.
        answer_tokens: int64 [prompts], of the answer; at most ``ANSWER_TOKENS``.
        harm: float64 [prompts, sets], KL(whole || bypassed), nats a token, mean over the answer.
        halves: float64 [prompts, sets, 2], the same over every other token of the answer; nan where there is none.
        agree: float64 [prompts, sets], the share of the answer's tokens that the bypassed model holds most likely.
        states: float32 [prompts, 2, hidden], entering the block where a policy may decide: of the prompt's last token,
            and their mean.
        entropies: float64 [prompts, 2], nats, of the prediction behind the prompt: read out there, and at the end.
    """

    tokens: np.ndarray
    answer_tokens: np.ndarray
    harm: np.ndarray
    halves: np.ndarray
    agree: np.ndarray
    states: np.ndarray
    entropies: np.ndarray

    def rows(self, chosen: Sequence[int] | np.ndarray) -> Measured:
        """Some prompts, in this order."""
        return Measured(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Parts of one measurement, one behind the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def batches_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Rows that fit together: alike in length, so that little is padded; the longest first."""
    lengths = checks.whole_numbers("lengths", lengths)
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch = batches[-1] if batches else []
        widest = lengths[batch[0]] if batch else math.inf
        if len(batch) < _ROWS_A_BATCH and (len(batch) + 1) * (widest + ANSWER_TOKENS) <= _TOKENS_A_BATCH:
            batch.append(row)
        else:
            batches.append([row])
    return batches


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sets: Sequence[Sequence[int]],
    *,
    decide_at: int,
) -> Measured:
    """Harm of each prompt and set of attentions, on the greedy answer that the whole model gives.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        tokenizer: the model's.
        texts: the prompts.
        sets: block numbers of the attentions to leave out, one set after the other.
        decide_at: the block at whose entrance a policy may look, from 0.

    Raises:
        ValueError: bad block numbers, a prompt without tokens, an adaptive model.
    """
    architecture = describe(model)
    architecture.refuse_adaptive("measure the harm of a bypass")
    sets = [checks.block_numbers(layers, architecture.num_blocks) for layers in sets]
    decide_at = checks.whole_number("decide_at", decide_at, most=architecture.num_blocks - 1, meaning="the last block")
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in checks.strings("texts", texts)]
    if not all(prompts):
        raise ValueError("A prompt of 'texts' has no tokens; leave empty ones out.")
    places = batches_by_length([len(prompt) for prompt in prompts])
    parts = []
    for rows in tqdm(places, desc="measuring harm", unit="batch", leave=False, delay=2):
        some = [prompts[i] for i in rows]
        parts.append(_measure_batch(architecture, some, greedy_answers(model, tokenizer, some), sets, decide_at))
    back = np.argsort([i for rows in places for i in rows])  # into the order of the texts
    return Measured.joined(parts).rows(back)


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The model's own answers, token ids, the end token included where one comes.

    Args:
        model: any causal language model.
        tokenizer: its own, with an end token.
        prompts: token ids.
    """
    ids, mask = _left_padded(prompts)
    with evaluating(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    answers = []
    for row in output[:, ids.shape[1] :].tolist():
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        answers.append(row[:end])
    return answers


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, [rows, longest]."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def _measure_batch(
    architecture: Architecture,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    sets: Sequence[Sequence[int]],
    decide_at: int,
) -> Measured:
    model = architecture.model
    ids, mask = _left_padded([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    batch = read_batch(
        {"input_ids": ids, "attention_mask": mask}, vocab_size=architecture.vocab_size, device=model.device
    )
    sizes, length = [len(answer) for answer in answers], ids.shape[1]
    asked = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)  # positions that predict the answer's tokens
    for row, size in enumerate(sizes):
        asked[row, length - size - 1 : length - 1] = True
    said = torch.tensor([token for answer in answers for token in answer], device=model.device)
    with evaluating(model):
        whole, kept = _run_keeping(architecture, batch, {decide_at, *(min(layers) for layers in sets if layers)})
        states, early = _at_the_decision(architecture, batch, kept[decide_at], sizes)
        log_p = _logits(architecture, whole[asked]).log_softmax(-1)  # [answer tokens, vocabulary]
        p, harms, agrees = log_p.exp(), [], []
        own = (p * log_p).sum(-1)
        del log_p
        for layers in sets:
            logits = _logits(architecture, _bypassed_states(architecture, batch, layers, kept, whole)[asked])
            # KL(p || q) = sum p log p - sum p logit_q + log sum exp logit_q
            kl = own - torch.linalg.vecdot(p, logits) + logits.logsumexp(-1)
            harms.append(kl.clamp(min=0).cpu())
            agrees.append((logits.argmax(-1) == said).float().cpu())
    first_tokens = np.cumsum([0, *sizes[:-1]])
    by_row = torch.stack(harms).double().split(sizes, dim=1)  # one [sets, answer tokens] a row
    return Measured(
        tokens=np.array([len(prompt) for prompt in prompts]),
        answer_tokens=np.array(sizes),
        harm=torch.stack([row.mean(1) for row in by_row]).numpy(),
        halves=torch.stack([torch.stack([row[:, i::2].mean(1) for i in (0, 1)], dim=1) for row in by_row]).numpy(),
        agree=torch.stack([row.mean(1) for row in torch.stack(agrees).double().split(sizes, dim=1)]).numpy(),
        states=states.numpy(),
        entropies=torch.stack([early, -own.cpu()[first_tokens]], dim=1).double().numpy(),
    )


def _bypassed_states(
    architecture: Architecture,
    batch: Batch,
    layers: Sequence[int],
    kept: Mapping[int, Tensor | tuple | None],
    whole: Tensor,
) -> Tensor:
    """States after the final norm with some attentions left out; blocks below the first of them don't run again."""
    if not layers:
        return whole
    bypass_attention(architecture.model, layers)
    try:
        with _starting_at(architecture, min(layers), kept):
            return architecture.hidden_states(batch)
    finally:
        bypass_attention(architecture.model, [])


def _logits(architecture: Architecture, states: Tensor) -> Tensor:
    return torch.cat([architecture.logits(part).float() for (part,) in architecture.chunks(states)])


def _run_keeping(
    architecture: Architecture, batch: Batch, firsts: Iterable[int]
) -> tuple[Tensor, dict[int, Tensor | tuple | None]]:
    """States after the final norm, and what enters the blocks ``firsts``, as the block below returned it."""
    kept: dict[int, Tensor | tuple | None] = {0: None}  # nothing is below block 0

    def keep(number: int, _module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        kept[number] = output

    hooks = [architecture.blocks[first - 1].register_forward_hook(partial(keep, first)) for first in firsts if first]
    with evaluating(architecture.model, *hooks):
        return architecture.hidden_states(batch), kept


@contextmanager
def _starting_at(architecture: Architecture, first: int, kept: Mapping[int, Tensor | tuple | None]) -> Iterator[None]:
    """The blocks below ``first`` don't run: they return what was kept."""
    below = architecture.blocks[:first]
    for block in below:
        block.forward = lambda *_args, _kept=kept[first], **_kwargs: _kept
    try:
        yield
    finally:
        for block in below:
            del block.forward  # the class's own comes back


def _at_the_decision(
    architecture: Architecture, batch: Batch, entering: Tensor | tuple | None, sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """States of the prompts [rows, 2, hidden] (last token, mean), and the early readout's entropy [rows]."""
    if entering is None:  # block 0 may lose its attention: only the embeddings are there
        states = architecture.model.get_input_embeddings()(batch.input_ids)
        normed = states
    else:
        states = entering[0] if isinstance(entering, tuple) else entering  # [rows, length, hidden]
        kept = {architecture.num_blocks: entering}
        with _starting_at(architecture, architecture.num_blocks, kept):
            normed = architecture.hidden_states(batch)  # after the final norm: what the head would read
    found, last = [], []
    for row, size in enumerate(sizes):
        prompt = batch.real[row].clone()
        prompt[len(prompt) - size :] = False
        own = states[row, prompt].float()
        found.append(torch.stack([own[-1], own.mean(0)]).cpu())
        last.append(normed[row, prompt][-1])
    log_p = _logits(architecture, torch.stack(last)).log_softmax(-1)
    return torch.stack(found), -(log_p.exp() * log_p).sum(-1).cpu()


@dataclass(frozen=True)
class Record:
    """Everything that policies are chosen and judged by: the first ``choosing`` prompts choose, the others judge.

    Attributes:
        settings: of the measurement: model, dtype, order of the attentions, …
        choosing: how many prompts come from the calibration split.
        kinds: [prompts], of ``KINDS``.
        documents: [prompts], where each comes from.
        digests: [prompts], of the texts.
        numbers: how many attentions were left out, 0 first.
        tokens: [prompts], of the prompt.
        answer_tokens: [prompts].
        harm: [prompts, numbers], as in ``Measured``; 0 in the first column.
        halves: [prompts, numbers, 2].
        agree: [prompts, numbers].
        states: [prompts, ``DIRECTIONS``], principal components of the states at the decision, fitted on those that
            choose.
        entropies: [prompts, 2].
        seconds: ``lengths``, ``numbers``, and ``prefill`` and ``decode`` [lengths, numbers].
        random_orders: harm [prompts, sets] of sets of random attentions on a few of the prompts; may be empty.
    """

    settings: dict[str, Any]
    choosing: int
    kinds: np.ndarray
    documents: np.ndarray
    digests: np.ndarray
    numbers: tuple[int, ...]
    tokens: np.ndarray
    answer_tokens: np.ndarray
    harm: np.ndarray
    halves: np.ndarray
    agree: np.ndarray
    states: np.ndarray
    entropies: np.ndarray
    seconds: dict[str, list]
    random_orders: dict[str, Any]

    @classmethod
    def of(
        cls,
        chosen: Sequence[Case],
        found: Measured,
        *,
        choosing: int,
        numbers: Sequence[int],
        seconds: dict[str, list],
        settings: dict[str, Any],
        random_orders: dict[str, Any] | None = None,
    ) -> Record:
        """Put together what was measured.

        Args:
            chosen: the prompts, those that choose first.
            found: their measurement, one set a number.
            choosing: how many choose.
            numbers: attentions left out in each set of ``found``, rising, without 0.
            seconds: from ``seconds_by_length``.
            settings: of the measurement.
            random_orders: see the class.
        """

        def with_zero(values: np.ndarray, zero: float) -> np.ndarray:
            return np.concatenate([np.full_like(values[:, :1], zero), values], axis=1)

        return cls(
            settings=settings,
            choosing=choosing,
            kinds=np.array([case.kind for case in chosen]),
            documents=np.array([case.document for case in chosen]),
            digests=np.array([case.digest for case in chosen]),
            numbers=(0, *numbers),
            tokens=found.tokens,
            answer_tokens=found.answer_tokens,
            harm=with_zero(found.harm, 0.0),
            halves=with_zero(found.halves, 0.0),
            agree=with_zero(found.agree, 1.0),
            states=principal_states(found.states, choosing=choosing),
            entropies=found.entropies,
            seconds=seconds,
            random_orders=random_orders or {},
        )

    @classmethod
    def shipped_for(cls, model: PreTrainedModel) -> Record | None:
        """The record that comes with the course, if it is of this model; otherwise None."""
        record = cls.load() if RECORD.exists() else None
        return record if record and record.settings["model"] == model.config.name_or_path else None

    def part(self, rows: slice) -> Record:
        """Some of the prompts, as a record of which none chooses."""
        per_prompt = ("kinds", "documents", "digests", "tokens", "answer_tokens", "harm", "halves", "agree", "states")
        return replace(self, choosing=0, **{name: getattr(self, name)[rows] for name in (*per_prompt, "entropies")})

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON, all or nothing; harms to four decimals."""

        def plain(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            if value.dtype.kind != "f":
                return value.tolist()
            rounded = np.round(value.astype(np.float64), 4)
            return np.where(np.isnan(rounded), None, rounded).tolist()

        write_text(path, json.dumps({name: plain(value) for name, value in asdict(self).items()}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike | None = None) -> Record:
        """Read what ``save`` wrote; without a path, the record that comes with the course."""
        stored = json.loads(Path(path or RECORD).read_text(encoding="utf-8"))
        for name in ("kinds", "documents", "digests", "tokens", "answer_tokens"):
            stored[name] = np.array(stored[name])
        for name in ("harm", "halves", "agree", "states", "entropies"):
            stored[name] = np.array(stored[name], dtype=np.float64)  # None becomes nan
        return cls(**stored | {"numbers": tuple(stored["numbers"])})


def measure_record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    order: Sequence[int],
    numbers: Sequence[int],
    *,
    choosing: int,
    judging: int,
) -> Record:
    """A small record of a model that none is shipped for.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        tokenizer: the model's.
        order: the attentions, the first to be left out first.
        numbers: how many of them to leave out, rising, without 0.
        choosing: how many prompts choose, of the calibration split.
        judging: how many judge, of the evaluation split.
    """
    chosen = cases(tokenizer, "calibration", count=choosing) + cases(tokenizer, "evaluation", count=judging)
    sets = [list(order[:number]) for number in numbers]
    found = measure(model, tokenizer, [case.text for case in chosen], sets, decide_at=min(order))
    return Record.of(
        chosen,
        found,
        choosing=choosing,
        numbers=numbers,
        seconds=seconds_by_length(model, order, numbers=(0, numbers[-1])),
        settings={"model": model.config.name_or_path, "order": list(order), "answer_tokens": ANSWER_TOKENS},
        random_orders=harm_at_random(model, tokenizer, chosen[choosing:], left_out=numbers[-2], prompts=RANDOM_PROMPTS),
    )


def harm_at_random(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judging: Sequence[Case],
    *,
    left_out: int,
    prompts: int,
    seeds: int = 19,
) -> dict[str, Any]:
    """Harm of sets of random attentions, on the first short prompts.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        tokenizer: the model's.
        judging: prompts to take from.
        left_out: attentions in a set.
        prompts: how many prompts, at most.
        seeds: how many sets. With 19, being better than all of them has p = 1/20.

    Returns:
        ``left_out``, ``prompts`` (their places in ``judging``), ``sets`` and ``harm`` [prompts, sets].
    """
    for name, number in {"left_out": left_out, "prompts": prompts, "seeds": seeds}.items():
        checks.whole_number(name, number, least=1)
    lengths = [len(tokenizer(case.text, add_special_tokens=False).input_ids) for case in judging]
    short = [i for i, length in enumerate(lengths) if length <= _SHORT][:prompts]
    blocks = describe(model).num_blocks
    sets = [
        torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))[:left_out].tolist()
        for seed in range(1, seeds + 1)
    ]
    found = measure(model, tokenizer, [judging[i].text for i in short], sets, decide_at=0)
    return {"left_out": left_out, "prompts": short, "sets": sets, "harm": found.harm.round(4).tolist()}


def principal_states(states: np.ndarray, *, choosing: int) -> np.ndarray:
    """[prompts, 2, hidden] -> [prompts, at most ``DIRECTIONS``], directions and scales from the first ``choosing``."""
    checks.whole_number("choosing", choosing, least=2, most=len(states), meaning="the prompts")
    flat = states.reshape(len(states), -1).astype(np.float64)
    mean, spread = flat[:choosing].mean(0), flat[:choosing].std(0) + 1e-9
    flat = (flat - mean) / spread
    components = PCA(min(DIRECTIONS, choosing - 1), svd_solver="full").fit(flat[:choosing])
    found = components.transform(flat)
    return found / (found[:choosing].std(0) + 1e-9)


@torch.no_grad()
def seconds_by_length(
    model: PreTrainedModel,
    order: Sequence[int],
    *,
    numbers: Sequence[int],
    lengths: Sequence[int] = (16, 64, 256, 1024),
    rounds: int = 7,
    steps: int = 4,
) -> dict[str, list]:
    """Seconds to read a prompt, and for each token of its answer, at batch 1.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        order: the attentions, the first to be left out first.
        numbers: how many of them to leave out; all of a length are timed in turns.
        lengths: tokens of the prompt.
        rounds: how often; the median counts.
        steps: tokens decoded in a round.

    Returns:
        ``lengths``, ``numbers``, ``prefill`` and ``decode`` [lengths, numbers].
    """
    architecture = describe(model)
    order = checks.whole_numbers("order", order, most=architecture.num_blocks - 1, meaning="the last block")
    numbers = checks.whole_numbers("numbers", numbers, most=len(order), meaning="as many as 'order' has")
    lengths = checks.whole_numbers("lengths", lengths, least=1)
    checks.whole_number("steps", steps, least=1)
    models = {}
    for number in numbers:
        models[str(number)] = variant(model)
        bypass_attention(models[str(number)], order[:number])

    def prefill(one: PreTrainedModel, ids: Tensor) -> Any:
        return one(ids, use_cache=True, logits_to_keep=1)

    def decode(one: PreTrainedModel, ids: Tensor, cache: Any) -> None:
        for _ in range(steps):
            one(ids[:, :1], use_cache=True, **{architecture.cache_keyword: cache})
        cache.crop(-steps)  # the next round meets the same length

    found: dict[str, list] = {"prefill": [], "decode": []}
    for length in lengths:
        ids = torch.randint(architecture.vocab_size, (1, length), generator=torch.Generator().manual_seed(length))
        ids = ids.to(model.device)
        caches = {name: prefill(one, ids)[architecture.cache_keyword] for name, one in models.items()}
        calls = {
            "prefill": {name: partial(prefill, one, ids) for name, one in models.items()},
            "decode": {name: partial(decode, one, ids, caches[name]) for name, one in models.items()},
        }
        for phase, timed in calls.items():
            rows = time_interleaved(timed, rounds=rounds).set_index("name")
            each = 1 if phase == "prefill" else steps
            first = float(rows.seconds.iloc[0]) / each
            # Rounds differ when the machine does other work too; ratios within a round don't.
            found[phase].append([first * float(rows.ratio[str(number)]) for number in numbers])
    return {"lengths": list(lengths), "numbers": list(numbers), **found}
