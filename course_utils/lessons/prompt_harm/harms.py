"""The harm: how far the predictions of a bypassed model lie from the whole model's, along the whole model's answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring.language_modelling import greedy_answers
from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_adaptive
from course_utils.pruning.activations import Entering, evaluating, run_keeping, starting_at
from course_utils.pruning.attention import bypass_attention
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.uncertainty import kl_divergence
from course_utils.text.batches import Batch, padded, read_batch

ANSWER_TOKENS = 64
_TOKENS_A_BATCH, _ROWS_A_BATCH = 4096, 48


@dataclass(frozen=True)
class Measured:
    """What ``measure`` found, one row per prompt, in their order.

    Attributes:
        tokens: int64 [prompts], of the prompt.
        answer_tokens: int64 [prompts], of the answer; at most ``ANSWER_TOKENS``.
        harm: float64 [prompts, sets], KL(whole || bypassed) in nats per token, mean over the answer.
    """

    tokens: np.ndarray
    answer_tokens: np.ndarray
    harm: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Parts of one measurement, one behind the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@check_types
def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sets: Sequence[Sequence[int]],
) -> Measured:
    """Harm of each prompt and set of attentions, on the greedy answer that the whole model gives.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        tokenizer: the model's.
        texts: the prompts.
        sets: block numbers of the attentions to leave out, beside those that already are; one set after the other.

    Raises:
        ValueError: bad block numbers, a prompt without tokens, an adaptive model.
    """
    architecture = describe(model)
    refuse_adaptive(architecture, "measure the harm of a bypass")
    sets = [checks.block_numbers(layers, architecture.num_blocks) for layers in checks.not_empty("sets", sets)]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in checks.strings("texts", texts)]
    if not all(prompts):
        raise ValueError("A prompt of 'texts' has no tokens; leave empty ones out.")
    tokens = np.array([len(prompt) for prompt in prompts])
    found = Measured(tokens, np.zeros_like(tokens), np.zeros((len(prompts), len(sets))))
    for rows in tqdm(_batches_by_length(tokens.tolist()), desc="measuring harm", unit="batch", leave=False, delay=2):
        alike = [prompts[row] for row in rows]
        answers = greedy_answers(model, alike, new_tokens=ANSWER_TOKENS, ends=tokenizer.eos_token_id)
        found.answer_tokens[rows] = [len(answer) for answer in answers]
        found.harm[rows] = _harms(architecture, alike, answers, sets)
    return found


def _batches_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the rows that fit together: alike in length, so that little is padded; the longest first."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch = batches[-1] if batches else []
        widest = lengths[batch[0]] if batch else math.inf
        if len(batch) < _ROWS_A_BATCH and (len(batch) + 1) * (widest + ANSWER_TOKENS) <= _TOKENS_A_BATCH:
            batch.append(row)
        else:
            batches.append([row])
    return batches


@torch.no_grad()
def _harms(
    architecture: Architecture,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    sets: Sequence[Sequence[int]],
) -> np.ndarray:
    """Float64 [prompts, sets]."""
    rows = padded([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], side="left")
    batch = read_batch(rows, vocab_size=architecture.vocab_size, device=architecture.model.device)
    sizes, length = [len(answer) for answer in answers], batch.input_ids.shape[1]
    asked = torch.zeros_like(batch.real)  # bool [rows, length]: the positions that predict the answer's tokens
    for row, size in enumerate(sizes):
        asked[row, length - size - 1 : length - 1] = True
    with evaluating(architecture.model):
        whole, kept = run_keeping(architecture, batch, {min(layers) for layers in sets if layers})
        bypassed = [_bypassed_states(architecture, batch, layers, kept, whole)[asked] for layers in sets]
        harms = []
        for whole_part, *parts in architecture.chunks(whole[asked], *bypassed):
            log_p = architecture.logits(whole_part).float().log_softmax(-1)  # [tokens of the chunk, vocabulary]
            log_qs = (architecture.logits(part).float().log_softmax(-1) for part in parts)  # one set's at a time
            harms.append(torch.stack([kl_divergence(log_p, log_q).clamp(min=0) for log_q in log_qs]).cpu())
    by_row = torch.cat(harms, dim=1).double().split(sizes, dim=1)  # one [sets, answer tokens] a row
    return torch.stack([row.mean(1) for row in by_row]).numpy()


def _bypassed_states(
    architecture: Architecture,
    batch: Batch,
    layers: Sequence[int],
    kept: Entering,
    whole: Tensor,
) -> Tensor:
    """States after the final norm with more attentions left out; blocks below the first of them don't run again."""
    if not layers:
        return whole
    skipped = [number for number, attention in enumerate(architecture.attentions) if attention.skipped]
    bypass_attention(architecture.model, sorted({*skipped, *layers}))
    try:
        with starting_at(architecture, min(layers), kept):
            return architecture.hidden_states(batch)
    finally:
        bypass_attention(architecture.model, skipped)
