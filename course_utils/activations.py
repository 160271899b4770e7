"""Activations: watch chosen places of a model while it runs, and align the tokens that two texts of a pair share.

``capture`` needs one forward pass a batch and keeps running statistics, not the activations, unless it is asked to.
``principal_components`` shows whether groups of states differ, beside what shuffling leaves of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.architectures import Architecture, check_blocks, describe, evaluating
from course_utils.batches import Batch, read_batches
from course_utils.influence import entering, leaving

if TYPE_CHECKING:
    from course_utils.contrastive import Pair

SITES = ("attention_out", "mlp_out", "gate", "up", "down_input", "attention_norm", "mlp_norm", "residual")

_COLUMN_SHUFFLES = 20  # they hardly differ, and each costs a decomposition
Receiver = Callable[[str, int, Tensor], object]


def sites_of(architecture: Architecture) -> tuple[str, ...]:
    """The sites that this model has, in the order of ``SITES``.

    Only a GLU has "gate"; a model that normalises behind the sum (OPT-350M) has no "attention_norm" and no "mlp_norm".
    """
    missing = set() if architecture.kind == "glu" else {"gate"}
    if not architecture.attention_norms:
        missing |= {"attention_norm", "mlp_norm"}
    return tuple(site for site in SITES if site not in missing)


@contextmanager
def watching(
    architecture: Architecture, sites: Sequence[str], blocks: Sequence[int] | None, receive: Receiver
) -> Iterator[None]:
    """While the context is open, each forward pass hands over the states at these places: a hook each, no copies.

    ====================  ==================================================================================
    "attention_out"       what the attention adds to the residual stream: zeros where it is bypassed
    "mlp_out"             what the MLP adds to the residual stream
    "gate"                output of the gate projection, before the activation function (GLU only)
    "up"                  output of the up projection; in a dense MLP of its first matrix, before the activation
    "down_input"          input of the down projection: one value a neuron
    "attention_norm"      input of the attention, normalised; left out where the attention is bypassed
    "mlp_norm"            input of the MLP, normalised
    "residual"            output of the block; the last one too is taken before the final norm
    ====================  ==================================================================================

    The model is in evaluation mode meanwhile. At the end, also after an error, each module is back in its own mode and
    the hooks are gone.

    Args:
        blocks: block numbers; None for all.
        receive: called with (site, block, states [rows, length, width]), padding included. They are the model's own
            numbers: copy them before you change them. What it returns is ignored.

    Raises:
        ValueError: no site, an unknown or repeated one, or one that this model doesn't have; bad block numbers.
    """
    sites, blocks = _check_sites(architecture, sites), _check_blocks(architecture, blocks)
    shapes: dict[int, torch.Size] = {}

    def enter(block: int, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        shapes[block] = entering(args, kwargs).shape[:2]

    def leave(site: str, block: int, half: int | None, _module: nn.Module, args: tuple, output: object) -> None:
        states = args[0] if site == "down_input" else leaving(output)
        if half is not None:
            states = states.chunk(2, dim=-1)[half]
        receive(site, block, states.reshape(*shapes[block], -1))  # OPT's MLP works on flat tokens

    hooks = [architecture.blocks[i].register_forward_pre_hook(partial(enter, i), with_kwargs=True) for i in blocks]
    for site, block in _places(architecture, sites, blocks):
        half = ("gate", "up").index(site) if site in ("gate", "up") and architecture.mlps[block].fused else None
        hooks.append(_module(architecture, site, block).register_forward_hook(partial(leave, site, block, half)))
    with evaluating(architecture.model, *hooks):
        yield


def _module(architecture: Architecture, site: str, block: int) -> nn.Module:
    """The module that a site's states leave or, for "down_input", enter."""
    mlp, attention = architecture.mlps[block], architecture.attentions[block]
    match site:
        case "attention_out":
            return attention.contribution
        case "mlp_out":
            return mlp.contribution
        case "gate":
            return mlp.inputs[0].module
        case "up":
            return mlp.inputs[-1].module
        case "down_input":
            return mlp.down
        case "attention_norm":
            return attention.norms[0]
        case "mlp_norm":
            return mlp.norm
    return architecture.blocks[block]


def _places(architecture: Architecture, sites: Sequence[str], blocks: Sequence[int]) -> list[tuple[str, int]]:
    """(site, block) of everything to watch: a bypassed attention's norm doesn't run."""
    skipped = {i for i in blocks if architecture.attentions[i].skipped}
    return [(site, i) for site in sites for i in blocks if site != "attention_norm" or i not in skipped]


def _check_sites(architecture: Architecture, sites: Sequence[str]) -> list[str]:
    available = sites_of(architecture)
    sites = [sites] if isinstance(sites, str) else list(sites)
    wrong = [site for site in sites if site not in available]
    if wrong or not sites or len(set(sites)) != len(sites):
        raise ValueError(
            f"'sites' must hold different sites of this {architecture.kind} model ({architecture.name}): "
            f"{', '.join(available)}; got {sites}."
        )
    return sites


def _check_blocks(architecture: Architecture, blocks: Sequence[int] | None) -> list[int]:
    everything = range(architecture.num_blocks)
    blocks = check_blocks(everything if blocks is None else blocks, architecture.num_blocks)
    if not blocks:
        raise ValueError("'blocks' is empty: give block numbers, or None for all.")
    return blocks


@dataclass(frozen=True)
class Statistics:
    """Running statistics of one site of one block over the counted tokens.

    Attributes:
        mean, rms: float32 [width] on the CPU, each component's mean and root mean square over the tokens.
        norm_mean, norm_sd, norm_max: of the tokens' Euclidean norms.
    """

    mean: Tensor
    rms: Tensor
    norm_mean: float
    norm_sd: float
    norm_max: float


@dataclass(frozen=True)
class Activations:
    """What ``capture`` saw. Keys are (site, block).

    Attributes:
        statistics: one entry a place.
        tokens: how many tokens were counted: all real ones but the first of each row.
        first_tokens: how many were left out because they begin a row. Padding is in neither number.
        values: the states themselves, [tokens, width] on the CPU in the model's dtype; None without ``keep``.
        positions: int64 [tokens, 2], where each row of ``values`` comes from: the row's number, counted through all
            batches, and the position among its real tokens, so that padding doesn't shift it. None without ``keep``.
    """

    statistics: dict[tuple[str, int], Statistics]
    tokens: int
    first_tokens: int
    values: dict[tuple[str, int], Tensor] | None
    positions: Tensor | None

    def frame(self) -> pd.DataFrame:
        """Norms and root mean squares in a table: site, block, rms, norm_mean, norm_sd, norm_max."""
        return pd.DataFrame(
            {
                "site": site,
                "block": block,
                "rms": float(s.rms.square().mean().sqrt()),
                "norm_mean": s.norm_mean,
                "norm_sd": s.norm_sd,
                "norm_max": s.norm_max,
            }
            for (site, block), s in self.statistics.items()
        )


@torch.no_grad()
def capture(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    sites: Sequence[str],
    blocks: Sequence[int] | None = None,
    keep: bool = False,
    budget: int = 2**30,
) -> Activations:
    """Statistics of the activations at these places, in one forward pass a batch, without the head.

    Padding and the first token of each row never count: the norm of a first token is many times the others', so that
    it would be all that a mean or a principal component shows. Neither the split into batches nor the side of the
    padding matters.

    Args:
        batches: ``{"input_ids", "attention_mask"}`` mappings, for instance from ``pair_batches``.
        sites, blocks: see ``watching``.
        keep: keep the values too. Without it, memory doesn't grow with the text.
        budget: the most bytes that kept values may take.

    Raises:
        ValueError: bad sites or blocks (see ``watching``); empty or malformed batches; rows of one token only; values
            beyond the budget, before anything runs; NaN or infinite activations.
    """
    architecture = describe(model)
    sites, blocks = _check_sites(architecture, sites), _check_blocks(architecture, blocks)
    checked: Iterable[Batch] = read_batches(batches, vocab_size=architecture.vocab_size, device=model.device)
    if keep:
        checked = list(checked)
        _check_budget(architecture, checked, sites, blocks, budget)
    meters: dict[tuple[str, int], _Meter] = {place: _Meter(keep) for place in _places(architecture, sites, blocks)}
    positions, rows, first, tokens, counted = [], 0, 0, 0, torch.empty(0)

    def receive(site: str, block: int, states: Tensor) -> None:
        meters[site, block].add(states[counted])  # selected, not multiplied: padded positions may hold NaN

    with watching(architecture, sites, blocks, receive):
        for batch in checked:
            counted = _counted(batch)
            if keep:
                row = counted.nonzero()[:, 0] + rows
                positions.append(torch.stack([row, batch.position_ids[counted]], dim=1).cpu())
            rows += len(counted)
            first += int(batch.real.any(dim=1).sum())
            tokens += int(counted.sum())
            architecture.hidden_states(batch)
    if not tokens:
        raise ValueError("Every row has one token only, and the first token of a row never counts: give longer texts.")
    return Activations(
        statistics={place: meter.statistics(place) for place, meter in meters.items()},
        tokens=tokens,
        first_tokens=first,
        values={place: torch.cat(meter.kept) for place, meter in meters.items()} if keep else None,
        positions=torch.cat(positions) if keep else None,
    )


class _Meter:
    """Sums over the tokens of one place, in float64: they don't depend on the split into batches."""

    def __init__(self, keep: bool):
        self.kept: list[Tensor] = []
        self._keep = keep
        self._tokens, self._sum, self._squares = 0, 0.0, 0.0  # tensors [width] from the first batch on
        self._norms, self._largest = 0.0, torch.zeros(())

    def add(self, states: Tensor) -> None:
        """Add [tokens, width]."""
        if not len(states):
            return
        norms = torch.linalg.vector_norm(states, dim=1, dtype=torch.float64)
        self._tokens += len(states)
        self._sum = self._sum + states.sum(dim=0, dtype=torch.float64)
        self._squares = self._squares + torch.linalg.vector_norm(states, dim=0, dtype=torch.float64).square()
        self._norms = self._norms + norms.sum()
        self._largest = torch.maximum(self._largest.to(norms), norms.max())
        if self._keep:
            self.kept.append(states.cpu())

    def statistics(self, place: tuple[str, int]) -> Statistics:
        if not torch.isfinite(self._squares).all():
            raise ValueError(f"NaN or infinite activations at {place}: check the model's weights and dtype.")
        norm = self._norms / self._tokens
        return Statistics(
            mean=(self._sum / self._tokens).float().cpu(),
            rms=(self._squares / self._tokens).sqrt().float().cpu(),
            norm_mean=float(norm),
            norm_sd=float((self._squares.sum() / self._tokens - norm.square()).clamp(min=0).sqrt()),
            norm_max=float(self._largest),
        )


def _counted(batch: Batch) -> Tensor:
    """Bool [rows, length]: real tokens but the first of each row, wherever the padding is."""
    return batch.real & (batch.position_ids > 0)


def _check_budget(
    architecture: Architecture, batches: list[Batch], sites: Sequence[str], blocks: Sequence[int], budget: int
) -> None:
    tokens = sum(int(_counted(batch).sum()) for batch in batches)
    wide = ("gate", "up", "down_input")
    numbers = sum(
        architecture.mlps[block].width if site in wide else architecture.hidden_size
        for site, block in _places(architecture, sites, blocks)
    )
    needed = tokens * numbers * architecture.model.dtype.itemsize
    if needed > budget:
        raise ValueError(
            f"Keeping {tokens:,} tokens x {numbers:,} numbers ({len(sites)} sites, {len(blocks)} blocks) takes "
            f"{needed:,} bytes, more than 'budget', {budget:,}. Keep fewer sites or blocks, give less text or a larger "
            "budget, or use the statistics alone (keep=False)."
        )


@dataclass(frozen=True)
class Alignment:
    """Where the two texts of a pair share their tokens. Positions count from 0 in ``ids_a`` and ``ids_b``.

    Attributes:
        ids_a, ids_b: the token ids of the two texts, without special tokens.
        before: (position in a, position in b) of the shared tokens in front of the swapped span. A row's first token
            is never among them: its state is an outlier.
        after: the same behind the span.
        swapped: for a and for b, the positions of the tokens that hold a part of the span.
        excluded: how many tokens of the two texts hold shared text and still are aligned with nothing: they hold a
            part of the span too, or the tokenizer cut the shared text differently. First tokens don't count, and
            neither does shared text that is only space, such as the space that a token carries in front of its word.
    """

    ids_a: list[int]
    ids_b: list[int]
    before: list[tuple[int, int]]
    after: list[tuple[int, int]]
    swapped: tuple[range, range]
    excluded: int


class PairBatch(TypedDict):
    """A batch, also for ``capture``: rows 2k and 2k + 1 are the texts a and b of the batch's pair k."""

    input_ids: Tensor  # int64 [2 x pairs, length], padded on the right
    attention_mask: Tensor  # int64, 1 where a token is real
    alignments: list[Alignment]  # one a pair
    indices: list[int]  # each pair's place in the caller's list


def align(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> Alignment:
    """Find the tokens that the two texts of a pair share, by their character offsets.

    From the left up to the swapped span, and from the right back to it, tokens are aligned as long as they are the
    same token on the same text. A token that holds a part of the span is never aligned.

    Raises:
        ValueError: a tokenizer that gives no offsets (a slow one), or a text without tokens.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"Alignment needs the character offsets of tokens, and {type(tokenizer).__name__} gives none. Load the "
            "fast tokenizer of this model (AutoTokenizer does so by default)."
        )
    a, b = _Side(tokenizer, pair.text_a, pair), _Side(tokenizer, pair.text_b, pair)
    front = _equal(a.in_front, b.in_front)
    # Behind the span, both positions and offsets count from the right.
    back = _equal(a.behind, b.behind)
    ends = len(a.ids), len(b.ids)
    before = [(i, i) for i in range(1, front)]
    after = [(ends[0] - i, ends[1] - i) for i in range(back, 0, -1) if i < min(ends)]
    return Alignment(
        ids_a=a.ids,
        ids_b=b.ids,
        before=before,
        after=after,
        swapped=(a.swapped, b.swapped),
        excluded=sum(sum(side.shared[1:]) for side in (a, b))
        - sum(side.shared[pair[number]] for number, side in enumerate((a, b)) for pair in (*before, *after)),
    )


class _Side:
    """One text of a pair, cut into tokens: what lies in front of the span, in it and behind it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, pair: Pair):
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        self.ids: list[int] = encoding["input_ids"]
        if not self.ids:
            raise ValueError(f"The text {text!r} has no tokens.")
        start, end = len(pair.before), len(text) - len(pair.after)
        tokens, last = [], 0
        for token, (low, high) in zip(self.ids, encoding["offset_mapping"], strict=True):
            # Some tokenizers leave the space that a token begins with out of its offsets; it's a part of it.
            tokens.append((token, min(low, last), high))
            last = high
        self.in_front = list(takewhile(lambda token: token[2] <= start, tokens))
        rest = tokens[len(self.in_front) :]
        self.behind = [
            (token, low - len(text), high - len(text))
            for token, low, high in takewhile(lambda token: token[1] >= end, reversed(rest))
        ]
        self.swapped = range(len(self.in_front), len(tokens) - len(self.behind))
        self.shared = [
            bool((text[low : min(high, start)] + text[max(low, end) : high]).strip()) for _, low, high in tokens
        ]


def _equal(a: Sequence, b: Sequence) -> int:
    """How many elements are equal from the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def pair_batches(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, batch_size: int = 16) -> list[PairBatch]:
    """The texts of pairs as batches, with their alignments; no special tokens are added.

    Pairs of similar length share a batch, so that little is padded: ``indices`` tells which pairs a batch holds.

    Args:
        batch_size: pairs a batch; a batch has twice as many rows.

    Raises:
        ValueError: no pairs, ``batch_size`` below 1, or a pair that ``align`` refuses.
    """
    pairs = list(pairs)
    if not pairs or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"Give at least one pair and a whole 'batch_size' of at least 1; got {len(pairs)} pairs and {batch_size!r}."
        )
    alignments = [align(tokenizer, pair) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: max(len(alignments[i].ids_a), len(alignments[i].ids_b)))
    return [_pair_batch(alignments, order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


def _pair_batch(alignments: list[Alignment], indices: list[int]) -> PairBatch:
    rows = [torch.tensor(ids) for i in indices for ids in (alignments[i].ids_a, alignments[i].ids_b)]
    return {
        "input_ids": pad_sequence(
            rows, batch_first=True
        ),  # the mask says what is padding; which id it is doesn't matter
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "alignments": [alignments[i] for i in indices],
        "indices": indices,
    }


@dataclass(frozen=True)
class Components:
    """Principal components of states that belong to groups, with what chance alone gives.

    Attributes:
        points: float64 [items, components], the states along the components.
        groups: each item's group.
        explained: float64 [components], shares of the states' variance.
        explained_shuffled: float64 [20 shuffles, components], the same after each column was shuffled by itself: what
            components explain when no two numbers have to do with each other (parallel analysis, Horn 1965).
        between: share of the first two components' variance that lies between the groups' means, from 0 to 1.
        between_shuffled: float64 [shuffles], the same with the groups' labels shuffled.
    """

    points: Tensor
    groups: tuple[str, ...]
    explained: Tensor
    explained_shuffled: Tensor
    between: float
    between_shuffled: Tensor

    @property
    def p(self) -> float:
        """How often shuffled labels separate at least as well; at least 1 / (shuffles + 1)."""
        return (1 + int((self.between_shuffled >= self.between).sum())) / (1 + len(self.between_shuffled))


def principal_components(
    states: Tensor,
    groups: Sequence[str],
    *,
    components: int = 10,
    within: Sequence[object] | None = None,
    shuffles: int = 999,
    seed: int = 0,
) -> Components:
    """Principal components of many states, and both nulls: shuffled columns for the variance, labels for the groups.

    Args:
        states: [items, width], for instance last-token states or differences within pairs; leave first tokens out.
        groups: a label for each item, at least two different ones.
        components: how many, at least 2 and fewer than items.
        within: for each item the set in which labels may be swapped, such as its pair or template: states of one
            template are alike whatever their group is, so free shuffling would compare with the wrong chance.
        shuffles: of the labels.

    Raises:
        ValueError: sizes that don't fit, values that are not finite or all the same, or labels that no shuffle can
            change.
    """
    if states.dim() != 2 or not 2 <= components < min(len(states), states.shape[1] + 1) or shuffles < 1:
        raise ValueError(
            "'states' must be [items, width] with more items than 'components', which must be from 2 to width, and "
            f"'shuffles' at least 1; got {list(states.shape)}, {components} and {shuffles}."
        )
    labels, values = np.asarray(groups), states.detach().double().cpu().numpy()
    sets = np.zeros(len(states), dtype=int) if within is None else pd.factorize(pd.Series(list(within)))[0]
    if labels.shape != (len(states),) or sets.shape != labels.shape:
        raise ValueError(
            f"'groups' and 'within' must hold one entry for each of {len(states)} items; got {len(labels)} and "
            f"{len(sets)}."
        )
    if not np.isfinite(values).all() or np.ptp(values, axis=0).max() == 0:
        raise ValueError("'states' hold NaN or infinite values, or are all the same.")
    if all(len(set(labels[sets == one])) == 1 for one in set(sets)):
        raise ValueError("The groups have the same label everywhere inside 'within': shuffling can't change anything.")
    generator = np.random.default_rng(seed)
    analysis = PCA(components, svd_solver="full").fit(values)
    points = analysis.transform(values)
    null = [
        PCA(components, svd_solver="full").fit(generator.permuted(values, axis=0)).explained_variance_ratio_
        for _ in range(_COLUMN_SHUFFLES)
    ]
    between_null = [_between(points[:, :2], _shuffled(labels, sets, generator)) for _ in range(shuffles)]
    return Components(
        points=torch.from_numpy(points),
        groups=tuple(map(str, labels)),
        explained=torch.from_numpy(analysis.explained_variance_ratio_),
        explained_shuffled=torch.from_numpy(np.stack(null)),
        between=_between(points[:, :2], labels),
        between_shuffled=torch.tensor(between_null, dtype=torch.float64),
    )


def _between(points: np.ndarray, labels: np.ndarray) -> float:
    """Share of the variance of centred points that lies between the groups' means."""
    parts = [points[labels == name] for name in np.unique(labels)]
    return float(sum(len(part) * np.square(part.mean(axis=0)).sum() for part in parts) / np.square(points).sum())


def _shuffled(labels: np.ndarray, sets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The labels in another order, each inside its set."""
    shuffled = labels.copy()
    for one in np.unique(sets):
        shuffled[sets == one] = generator.permutation(labels[sets == one])
    return shuffled
