"""How well a model predicts: the log-likelihoods of tokens, the perplexity of a text, and what it writes itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models.architectures import Architecture, cache_keyword, describe
from course_utils.models.reports import shown
from course_utils.pruning.activations import evaluating
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.uncertainty import ratio_interval
from course_utils.text.batches import Batch, padded, read_batches
from course_utils.text.rows import TokenBlocks


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text. All means weigh every predicted token equally.

    Attributes:
        perplexity: ``exp(nll)``.
        bits_per_byte: bits needed for each UTF-8 byte of the predicted text; comparable between models with different
            tokenizers. nan if the byte counts aren't known (``TokenBlocks`` and ``passages.batches_of`` carry them).
        nll: mean negative log-likelihood, nats per token.
        tokens: predicted tokens.
        ci_low: lower end of the 95 % interval of ``perplexity``. Rows are the sample (``uncertainty.ratio_interval``),
            because the tokens of a row resemble each other. So do rows that were cut from one document; then the
            interval is somewhat too narrow.
        ci_high: its upper end.
        row_nll: float64 [rows], nats: the sum for each row, for paired comparisons.
        row_tokens: int64 [rows], predicted tokens.
        row_bytes: int64 [rows], their bytes; None if they aren't known.
        dtype: what the model computed in.
        fingerprint: of the rows' token ids.
    """

    perplexity: float
    bits_per_byte: float
    nll: float
    tokens: int
    ci_low: float
    ci_high: float
    row_nll: np.ndarray = field(repr=False, compare=False)
    row_tokens: np.ndarray = field(repr=False, compare=False)
    row_bytes: np.ndarray | None = field(repr=False, compare=False)
    dtype: str
    fingerprint: str = field(repr=False)

    def __str__(self) -> str:
        bits = "" if math.isnan(self.bits_per_byte) else f", {self.bits_per_byte:.3f} bits/byte"
        interval = f"95 % interval {shown(self.ci_low)} to {shown(self.ci_high)}"
        return f"perplexity {shown(self.perplexity)} ({interval}){bits}, {self.tokens:,} tokens"


def perplexity(
    model: PreTrainedModel, token_ids: Tensor | TokenBlocks | Iterable[Mapping[str, Tensor]], *, batch_size: int = 4
) -> Perplexity:
    """Measure how well a model predicts text.

    The first token of a row isn't predicted, and padded positions count neither as targets nor as context. The head is
    applied to chunks of hidden states, so the memory for logits stays at about 32 MiB. Softmax and sums are computed in
    float32 or better. The model's training mode is restored.

    Args:
        model: any model that ``describe`` knows.
        token_ids: int64 [rows, length] without padding, ``TokenBlocks``, or batches: an iterable of mappings with
            "input_ids" and "attention_mask" (dicts, ``BatchEncoding``, a ``DataLoader``), padded on either side; where
            they have "labels", what is -100 there is read and doesn't count.
        batch_size: rows that run at once; batches run as they are.

    Raises:
        ValueError: no rows, a row with fewer than two tokens, ids that are no integers or not in the vocabulary.
        UnsupportedArchitecture: from ``describe``.

    A model whose logits are all 0 has to guess among all 50 tokens:

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2))
    >>> _ = model.lm_head.weight.data.zero_()
    >>> print(perplexity(model, torch.arange(20).view(2, 10)))
    perplexity 50.0 (95 % interval 50.0 to 50.0), 18 tokens
    """
    checks.whole_number("batch_size", batch_size, least=1)
    architecture = describe(model)
    batches = _as_batches(token_ids, batch_size)
    nll: list[np.ndarray] = []  # of each batch: [rows]
    tokens: list[np.ndarray] = []
    digest = blake2b(digest_size=16)
    bar = tqdm(batches, desc="Perplexity", unit="batch", delay=2, leave=False)
    with evaluating(model):
        for batch in read_batches(bar, vocab_size=architecture.vocab_size, device=model.device):
            lengths = batch.real.sum(1)
            if lengths.min() < 2:
                row = sum(len(of_batch) for of_batch in tokens) + int(lengths.argmin())
                raise ValueError(
                    f"Every row needs at least two tokens, one to read and one to predict; row {row} has "
                    f"{int(lengths.min())}. Drop it."
                )
            row_nll, row_tokens = _row_losses(architecture, batch)
            nll.append(row_nll)
            tokens.append(row_tokens)
            for ids, real, learned in zip(batch.input_ids, batch.real, batch.learned, strict=True):
                digest.update(ids[real].cpu().numpy().tobytes() + b"|")
                if not learned[real].all():
                    digest.update(learned[real].cpu().numpy().tobytes())
    row_nll, row_tokens = np.concatenate(nll), np.concatenate(tokens)
    return summary(row_nll, row_tokens, bytes_of(token_ids), dtype_name(model), digest.hexdigest())


@check_types
def summary(
    row_nll: np.ndarray, row_tokens: np.ndarray, row_bytes: np.ndarray | None, dtype: str, fingerprint: str
) -> Perplexity:
    """The ``Perplexity`` of rows whose losses (float64 [rows], nats) and predicted tokens and bytes are known."""
    mean, _, low, high = ratio_interval(row_nll, row_tokens)
    return Perplexity(
        perplexity=float(exp(mean)),
        bits_per_byte=math.nan if row_bytes is None else float(row_nll.sum() / math.log(2) / row_bytes.sum()),
        nll=mean,
        tokens=int(row_tokens.sum()),
        ci_low=float(exp(low)),
        ci_high=float(exp(high)),
        row_nll=row_nll,
        row_tokens=row_tokens,
        row_bytes=row_bytes,
        dtype=dtype,
        fingerprint=fingerprint,
    )


def bytes_of(token_ids: object) -> np.ndarray | None:
    """The bytes that are predicted in each row of a text, int64 [rows], where the text carries them."""
    if isinstance(token_ids, TokenBlocks):
        return token_ids.num_bytes.cpu().numpy()
    if isinstance(token_ids, list) and all("bytes" in batch for batch in token_ids):
        return torch.cat([batch["bytes"] for batch in token_ids]).numpy()
    return None


def token_log_likelihoods(architecture: Architecture, states: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, computed in float32 and in chunks: [tokens] float64 on the CPU.

    Args:
        architecture: of the model, from ``describe``.
        states: [tokens, hidden] after the final norm, each at the position before its target.
        targets: int64 [tokens].
    """
    parts = [
        -cross_entropy(architecture.logits(chunk).float(), answers, reduction="none")  # logits [chunk, vocabulary]
        for chunk, answers in architecture.chunks(states, targets)
    ]
    return torch.cat(parts).cpu().double()


@check_types
@torch.no_grad()
def continuations(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int = 24,
) -> pd.DataFrame:
    """What each model writes after each prompt: a row per prompt, a column per model, the new text alone.

    At every place the likeliest token comes, whatever the model's own settings for ``generate`` say. Each prompt is
    continued by itself, so padding can't change a word. There are at most ``new_tokens``, and fewer where a model ends
    its text.

    Raises:
        ValueError: no model, no prompt, or ``new_tokens`` below 1.
    """
    checks.whole_number("new_tokens", new_tokens, least=1)
    checks.not_empty("models", models)
    prompts = checks.strings("prompts", prompts)
    written = pd.DataFrame(index=pd.Index(prompts, name="prompt"), columns=list(models), dtype=object)
    for name, model in models.items():
        for prompt in prompts:
            ends = model.generation_config.eos_token_id
            (new,) = greedy_answers(model, [tokenizer(prompt)["input_ids"]], new_tokens=new_tokens, ends=ends)
            written.loc[prompt, name] = " ".join(str(tokenizer.decode(new, skip_special_tokens=True)).split())
    return written


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    ends: int | Sequence[int] | None,
) -> list[list[int]]:
    """The token ids that a model writes after each prompt when it takes the likeliest token at every place.

    The model's own settings for ``generate`` (a repetition penalty, beams, a least length) don't count: transformers
    would put them in wherever a call says nothing of them. They and the training mode are restored.

    Args:
        model: any that ``generate`` runs.
        prompts: token ids; all of them run at once.
        new_tokens: at most so many.
        ends: the token, or tokens, that end an answer and are a part of it; None ends none.
    """
    batch = {name: column.to(model.device) for name, column in padded(prompts, side="left").items()}
    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    try:
        with evaluating(model):
            ids = cast(GenerationMixin, model).generate(**batch)
    finally:
        model.generation_config = own
    known = {ends} if isinstance(ends, int) else {*(ends or ())}
    answers = []
    for row in ids[:, batch["input_ids"].shape[1] :].tolist():
        stop = next((place for place, token in enumerate(row, start=1) if token in known), len(row))
        answers.append(row[:stop])
    return answers


@check_types
@torch.no_grad()
def logits_one_by_one(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """Logits [rows, length, vocabulary] of a model that reads [rows, length] token by token, through its cache.

    They must equal those of reading all at once; ``generate`` counts positions itself, so it can hide that they don't.
    """
    keyword, steps = cache_keyword(model), []  # a broken model, which `describe` may not know, must be judged too
    cache: dict[str, Any] = {}
    for tokens in token_ids.split(1, dim=1):  # [rows, 1]
        output = model(tokens, use_cache=True, **cache)
        cache = {keyword: output[keyword]}
        steps.append(output.logits)
    return torch.cat(steps, dim=1)


def _as_batches(token_ids: object, batch_size: int) -> Iterable[Mapping[str, Tensor]]:
    if isinstance(token_ids, TokenBlocks):
        token_ids = token_ids.input_ids
    if isinstance(token_ids, Tensor):
        return [{"input_ids": rows} for rows in token_ids.split(batch_size)] if len(token_ids) else []
    if isinstance(token_ids, Mapping):
        return [token_ids]
    if isinstance(token_ids, str) or not isinstance(token_ids, Iterable):
        raise ValueError(
            f"'token_ids' must be an integer tensor [rows, length], TokenBlocks or batches; got "
            f"{type(token_ids).__name__}. Make token ids with text.token_blocks or a tokenizer."
        )
    return token_ids


@torch.no_grad()
def _row_losses(architecture: Architecture, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood in nats and number of predicted tokens of each row, [rows] each."""
    predicted = batch.predicted  # [rows, length - 1]
    states = architecture.hidden_states(batch)[:, :-1][predicted]  # [predicted tokens, hidden]
    losses = -token_log_likelihoods(architecture, states, batch.input_ids[:, 1:][predicted])
    tokens = predicted.sum(1).cpu()  # [rows]
    return np.array([float(row.sum()) for row in losses.split(tokens.tolist())]), tokens.numpy()


@check_types
def exp(value: float | np.ndarray) -> np.ndarray:
    """The exponential in float64, inf where it overflows: a broken model's perplexity may.

    >>> float(exp(0)), float(exp(1000))
    (1.0, inf)
    """
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(value, dtype=np.float64))


@check_types
def dtype_name(model: PreTrainedModel) -> str:
    """What a model computes in, for instance "float32"."""
    return str(model.dtype).removeprefix("torch.")
