"""What a model makes of contrastive pairs: how its predictions and its activations differ between the two sides.

One forward pass a batch gives everything. Only tokens that both sides share and that come after the swapped span are
compared: the tokens before it have seen no difference yet, and the span's own tokens differ because they are other
words. What these numbers mean, with controls and intervals, is in ``statistics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.bias.alignment import PairBatch, Side, pair_batches
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
        frame: one row a pair: axis, kind, template, swap, group_a, group_b, valence, split, ``tokens`` compared,
            tokens ``excluded`` (shared text that could not be aligned, both sides together) and ``log_likelihood``:
            that of the compared tokens after a minus after b, the sum in nats. Without tokens to compare, nan.
        relative: [pairs, sites, blocks] float32, mean over the compared tokens of the difference's Euclidean norm over
            the mean norm of the two states: 0 for equal states, 2 for opposite ones, whatever the scale of the block.
        cosine: [pairs, sites, blocks] float32, mean over the compared tokens of 1 - cosine of the two states.
        sites: what the second dimension of ``relative`` and ``cosine`` stands for.
        blocks: block numbers, what their third dimension stands for.
        fingerprint: of all pairs' token ids.
    """

    frame: pd.DataFrame
    relative: np.ndarray = field(repr=False)
    cosine: np.ndarray = field(repr=False)
    sites: tuple[str, ...]
    blocks: tuple[int, ...]
    fingerprint: str = field(repr=False)

    def excluded(self) -> pd.DataFrame:
        """What could not be compared, for each pair of groups: one row each, with the share of the shared tokens."""
        rows = self.frame.assign(pairs=1, pairs_without_tokens=self.frame["tokens"] == 0)
        columns = ["pairs", "pairs_without_tokens", "tokens", "excluded"]
        table = rows.groupby(["axis", "kind", "group_a", "group_b"], sort=False)[columns].sum().reset_index()
        # a compared token stands in both sides
        return table.assign(excluded_share=table["excluded"] / (2 * table["tokens"] + table["excluded"]).clip(lower=1))


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

    Log-likelihoods and differences are computed in float32 whatever the model's dtype, at the compared positions only
    and in chunks. The two sides of a pair run in one batch, so that rounding is the same for both: a pair of equal
    texts differs by exactly 0.

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
    if not pairs:
        raise ValueError("There are no pairs to measure. Make some with contrastive.pairs('gender').")
    blocks = range(architecture.num_blocks)
    sites = (sites,) if isinstance(sites, str) else tuple(checks.strings("sites", sites, least=0))
    differences = _Differences(len(pairs), sites, blocks)
    log_likelihood = np.full(len(pairs), np.nan)
    tokens, excluded = (np.zeros(len(pairs), dtype=np.int64) for _ in range(2))
    digests = [b""] * len(pairs)
    batches = pair_batches(architecture, tokenizer, pairs, batch_size=batch_size)
    bar = tqdm(total=len(pairs), desc="Measuring pairs", unit="pair", delay=2, leave=False)
    with bar, _watching(architecture, sites, blocks, differences):
        for batch in batches:
            differences.running = batch
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
        relative=differences.relative,
        cosine=differences.cosine,
        sites=sites,
        blocks=tuple(blocks),
        fingerprint=blake2b(b"".join(digests), digest_size=16).hexdigest(),
    )


class _Differences:
    """Receives the states of one batch after the other and keeps what differs between the sides."""

    running: PairBatch

    def __init__(self, pairs: int, sites: Sequence[str], blocks: Sequence[int]) -> None:
        self._site = {site: number for number, site in enumerate(sites)}
        self._block = {block: number for number, block in enumerate(blocks)}
        self.relative, self.cosine = (
            np.full((pairs, len(sites), len(blocks)), np.nan, dtype=np.float32) for _ in range(2)
        )

    def __call__(self, site: str, block: int, states: Tensor) -> None:
        running = self.running
        a, b = (states[side.at].float() for side in running.sides)  # [tokens, width]
        place = running.indices, self._site[site], self._block[block]
        norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)  # [tokens, 1]
        tiny = torch.finfo(torch.float32).tiny  # a bypassed attention adds nothing: two zeros are equal
        relative = 2 * (a - b).norm(dim=-1, keepdim=True) / (norm_a + norm_b).clamp(min=tiny)
        # |a/|a| - b/|b||² = 2 (1 - cosine), which is exactly 0 for equal states and keeps its digits for close ones
        cosine = (a / norm_a.clamp(min=tiny) - b / norm_b.clamp(min=tiny)).square().sum(-1) / 2  # [tokens]
        for means, values in ((self.relative, relative[:, 0]), (self.cosine, cosine)):
            means[place] = (running.sums(values) / running.counts).numpy()  # nan for a pair without tokens


def _watching(
    architecture: Architecture, sites: Sequence[str], blocks: Sequence[int], receive: _Differences
) -> AbstractContextManager:
    return watching(architecture, sites, blocks, receive) if sites else evaluating(architecture.model)


def _log_likelihood_differences(architecture: Architecture, batch: PairBatch, states: Tensor) -> np.ndarray:
    """Log-likelihood of each pair's compared tokens after a minus after b, [pairs] float64; nan without tokens."""

    def each(side: Side) -> Tensor:
        # the same shapes for both sides: then equal states give equal logits, bit for bit
        return token_log_likelihoods(architecture, states[side.predicting], side.targets)

    of_a, of_b = map(each, batch.sides)  # [tokens]
    return torch.where(batch.counts > 0, batch.sums(of_a - of_b), torch.nan).numpy()
