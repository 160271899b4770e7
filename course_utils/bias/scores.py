"""What a model makes of contrastive pairs: how its predictions and its activations differ between the two sides.

One forward pass per batch gives everything. Only tokens that both sides share and that come after the swapped span are
compared: the tokens before it have seen no difference yet, and the span's own tokens differ because they are other
words. What these numbers mean, with controls and intervals, is in ``statistics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.alignment import PairBatch, pair_batches
from course_utils.bias.contrastive import Pair
from course_utils.measuring.language_modelling import token_log_likelihoods
from course_utils.models.architectures import Architecture, describe
from course_utils.pruning.activations import evaluating, watching
from course_utils.support import checks
from course_utils.support.checks import check_types

_DESCRIBED = ("axis", "kind", "template", "swap", "group_a", "group_b", "valence", "split")


@dataclass(frozen=True)
class PairScores:
    """How the two sides of each pair differ, over the shared tokens after the swapped span.

    Attributes:
        frame: one row per pair: axis, kind, template, swap, group_a, group_b, valence, split, ``tokens`` compared,
            tokens ``excluded`` (shared text that could not be aligned, both sides together) and ``log_likelihood``:
            that of the compared tokens after a minus after b, the sum in nats. Without tokens to compare, nan.
        relative: [pairs, sites, blocks] float32, mean over the compared tokens of the difference's Euclidean norm over
            the mean norm of the two states: 0 for equal states, 2 for opposite ones, whatever the scale of the block.
        sites: what the second dimension of ``relative`` stands for.
        blocks: block numbers, what its third dimension stands for.
        fingerprint: of all pairs' token ids.
    """

    frame: pd.DataFrame
    relative: np.ndarray = field(repr=False)
    sites: tuple[str, ...]
    blocks: tuple[int, ...]
    fingerprint: str = field(repr=False)


@check_types
@torch.no_grad()
def measure_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    sites: Sequence[str] = ("attention_out", "mlp_out"),
    batch_size: int = 16,
) -> PairScores:
    """Run each pair once and compare its sides. The model is not changed.

    Log-likelihoods and differences are computed in float32 whatever the model's dtype. The two sides of a pair run in
    one batch, so that rounding is the same for both: a pair of equal texts differs by exactly 0.

    Args:
        model: any that ``describe`` knows.
        tokenizer: the model's, a fast one.
        pairs: at least one, such as ``contrastive.pairs("gender")``; of any axes and kinds.
        sites: of ``activations.SITES``; () to compare predictions only.
        batch_size: pairs that run at once; it doesn't change the scores beyond rounding.

    Raises:
        ValueError: no pairs, a bad site or batch size, or a tokenizer without offsets.
        UnsupportedArchitecture: from ``describe``.
    """
    architecture, pairs = describe(model), list(pairs)
    sites = (sites,) if isinstance(sites, str) else tuple(checks.strings("sites", sites, least=0))
    batches = pair_batches(architecture, tokenizer, pairs, batch_size=batch_size)
    relative = np.full((len(pairs), len(sites), architecture.num_blocks), np.nan, dtype=np.float32)
    log_likelihood = np.full(len(pairs), np.nan)
    tokens, excluded = (np.zeros(len(pairs), dtype=np.int64) for _ in range(2))
    digests = [b""] * len(pairs)

    def compare(site: str, block: int, states: Tensor) -> None:
        relative[batch.indices, sites.index(site), block] = _relative_differences(batch, states)

    bar = tqdm(total=len(pairs), desc="Measuring pairs", unit="pair", delay=2, leave=False)
    with bar, watching(architecture, sites, None, compare) if sites else evaluating(model):
        for batch in batches:
            states = architecture.hidden_states(batch.rows)  # [rows, length, hidden]
            tokens[batch.indices] = batch.counts.numpy()
            log_likelihood[batch.indices] = _log_likelihood_differences(architecture, batch, states)
            for index, alignment in zip(batch.indices, batch.alignments, strict=True):
                excluded[index] = alignment.excluded
                digests[index] = np.array([*alignment.ids_a, -1, *alignment.ids_b, -1], dtype=np.int64).tobytes()
            bar.update(len(batch.indices))
    frame = pd.DataFrame([{name: getattr(pair, name) for name in _DESCRIBED} for pair in pairs])
    return PairScores(
        frame=frame.assign(tokens=tokens, excluded=excluded, log_likelihood=log_likelihood),
        relative=relative,
        sites=sites,
        blocks=tuple(range(architecture.num_blocks)),
        fingerprint=blake2b(b"".join(digests), digest_size=16).hexdigest(),
    )


def _relative_differences(batch: PairBatch, states: Tensor) -> np.ndarray:
    """Of states [rows, length, width] at one place: [pairs] float64; nan for a pair without tokens."""
    a, b = (states[side.at].float() for side in batch.sides)  # [tokens, width]
    size = (a.norm(dim=-1) + b.norm(dim=-1)).clamp(min=torch.finfo(torch.float32).tiny)  # two zeros are equal
    difference = 2 * (a - b).norm(dim=-1) / size  # [tokens]
    return (batch.sums(difference) / batch.counts).numpy()


def _log_likelihood_differences(architecture: Architecture, batch: PairBatch, states: Tensor) -> np.ndarray:
    """Log-likelihood of each pair's compared tokens after a minus after b, [pairs] float64; nan without tokens."""
    # the same shapes for both sides: then equal states give equal logits, bit for bit
    of_a, of_b = (
        token_log_likelihoods(architecture, states[side.predicting], side.targets) for side in batch.sides
    )  # [tokens]
    return torch.where(batch.counts > 0, batch.sums(of_a - of_b), torch.nan).numpy()
