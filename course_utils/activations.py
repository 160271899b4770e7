"""Activations: watch chosen places of a model while it runs.

``watching`` hands over the states as they come. ``capture`` needs one forward pass a batch and keeps running
statistics, not the states, unless it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_utils import checks
from course_utils.architectures import Architecture, describe, evaluating
from course_utils.batches import Batch, read_batches
from course_utils.influence import entering, leaving

SITES = ("attention_out", "mlp_out", "gate", "up", "down_input", "attention_norm", "mlp_norm", "residual")
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
    blocks = checks.block_numbers(everything if blocks is None else blocks, architecture.num_blocks)
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
        batches: ``{"input_ids", "attention_mask"}`` mappings, for instance from ``alignment.pair_batches``.
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
