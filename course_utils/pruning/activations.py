"""Activations: watch chosen places of a model while it runs.

The norm of a row's first token is many times the others', so that it would be all that a mean or a principal component
shows: leave first tokens out of statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from course_utils.models.architectures import Architecture
from course_utils.pruning.hooks import entering, evaluating, leaving
from course_utils.support import checks

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
        architecture: of the model, from ``describe``.
        sites: one of ``SITES``, or several different ones that the model has (``sites_of``).
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
            states = states.chunk(2, dim=-1)[half]  # gate and up in one matrix
        receive(site, block, states.reshape(*shapes[block], -1))  # OPT's MLP works on flat tokens

    places = _places(architecture, sites, blocks)  # refused for a mixture, before there are hooks
    hooks = [architecture.blocks[i].register_forward_pre_hook(partial(enter, i), with_kwargs=True) for i in blocks]
    for site, block in places:
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
