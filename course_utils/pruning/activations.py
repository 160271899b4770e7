"""Looking into a model while it runs: read text once, watch chosen places, run it again from some block upwards.

The norm of a row's first token is many times the others', so that it would be all that a mean or a principal component
shows: leave first tokens out of statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from course_utils.models.architectures import Architecture
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.batches import Batch, read_batches

Entering = dict[int, Tensor | tuple | None]
"""What enters some blocks, by number: what the block below returned. None at block 0, below which there is nothing."""
SITES = ("attention_out", "mlp_out", "gate", "up", "down_input", "attention_norm", "mlp_norm", "residual")


def entering(args: tuple, kwargs: dict) -> Tensor:
    """The hidden states [rows, length, hidden] that a module was called with."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def leaving(output: Tensor | tuple) -> Tensor:
    """The hidden states that a module returned, alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def evaluating(model: nn.Module, *hooks: RemovableHandle) -> Iterator[None]:
    """Evaluation mode for a while; then each module is back in its own mode and the hooks are gone."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()


class Reading:
    """A model that reads: what a hook may ask while a batch passes through.

    Attributes:
        architecture: of the model.
        real: bool [rows, length] of the batch that is being read: True where a token is text.
        tokens: real tokens so far, the batch included.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture, self.tokens = architecture, 0
        self.real = torch.empty(0)
        self._padded = False

    def begin(self, real: Tensor) -> None:
        """The next batch, as a mask of its real tokens."""
        self.real, self._padded = real, not bool(real.all())
        self.tokens += int(real.sum())

    @property
    def later(self) -> Tensor:
        """Bool [rows, length]: the real tokens but the first one of each row, wherever its padding is."""
        return self.real & (self.real.cumsum(dim=1) > 1)

    def select(self, states: Tensor) -> Tensor:
        """States [rows, length, width], or flat already, at the real tokens alone: [tokens, width]."""
        states = states.flatten(0, -2)
        return states[self.real.flatten()] if self._padded else states


#: Puts its hooks on a model that is about to read; returns them, and what gives the scores when all was read.
Watcher = Callable[[Reading], tuple[list[RemovableHandle], Callable[[], Any]]]


@torch.no_grad()
def read_once(architecture: Architecture, batches: Iterable[Mapping[str, Tensor]], *watchers: Watcher) -> list[Any]:
    """Let a model read all batches once, without its head, and return what each watcher found, in their order.

    Raises:
        ValueError: empty or malformed batches. The hooks are gone then, too.
    """
    reading = Reading(architecture)
    watched = [watch(reading) for watch in watchers]
    with evaluating(architecture.model, *(hook for hooks, _ in watched for hook in hooks)):
        for batch in read_batches(batches, vocab_size=architecture.vocab_size, device=architecture.model.device):
            reading.begin(batch.real)
            architecture.hidden_states(batch)
    return [finish() for _, finish in watched]


def check_criterion(
    criterion: str, batches: Iterable[Mapping[str, Tensor]] | None, *, known: Collection[str], reading: Collection[str]
) -> None:
    """Refuse a criterion that isn't ``known``, one of ``reading`` without text to read, and any other one with text.

    Raises:
        ValueError: one of these.
    """
    checks.one_of("criterion", criterion, known)
    if criterion in reading and batches is None:
        raise ValueError(f"Criterion {criterion!r} needs 'batches' to measure on; got none.")
    if criterion not in reading and batches is not None:
        raise ValueError(f"'batches' goes with the criteria that read text ({', '.join(reading)}); got {criterion!r}.")


class CosineDistance:
    """Running mean of ``1 - cos(before, after)`` over the real tokens of many batches."""

    def __init__(self) -> None:
        self._sum, self._tokens = 0.0, 0

    def add(self, before: Tensor, after: Tensor, real: Tensor) -> None:
        """Count one batch in.

        Args:
            before: states [rows, length, hidden] of any dtype.
            after: the same states, changed.
            real: bool [rows, length], True where a token counts.
        """
        # Selected, not multiplied: padded positions may hold NaN.
        before, after = before[real].float(), after[real].float()  # [tokens, hidden]
        self._sum += float((1 - F.cosine_similarity(before, after, dim=-1)).double().sum())
        self._tokens += len(before)

    def mean(self) -> float:
        """From 0 (nothing turned) to 2 (everything turned round), over the tokens so far."""
        return self._sum / self._tokens


class MeanChange:
    """Running mean of ``after - before`` over the tokens that count, of many batches."""

    def __init__(self) -> None:
        self._sum, self.tokens = torch.zeros(()), 0

    def add(self, before: Tensor, after: Tensor, counted: Tensor) -> None:
        """Count one batch in; arguments as of ``CosineDistance.add``."""
        change = after[counted].float() - before[counted].float()  # [tokens, hidden]
        self._sum = self._sum.to(change.device) + change.sum(dim=0, dtype=torch.float64)
        self.tokens += len(change)

    def mean(self) -> Tensor:
        """The mean over the tokens so far, [hidden] float32."""
        return (self._sum / self.tokens).float()


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
    architecture: Architecture,
    sites: str | Sequence[str],
    blocks: Sequence[int] | None,
    receive: Callable[[str, int, Tensor], object],
) -> Iterator[None]:
    """While the context is open, each forward pass hands over the states at these places: a hook each, no copies.

    ====================  ==================================================================================
    "attention_out"       what the attention adds to the residual stream: zeros where it is bypassed
    "mlp_out"             what the MLP adds to the residual stream
    "gate"                output of the gate projection, before the activation function (GLU only)
    "up"                  output of the up projection; in a dense MLP of its first matrix, before the activation
    "down_input"          input of the down projection: one value per neuron
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
    sites = _check_sites(architecture, sites)
    every = range(architecture.num_blocks)
    blocks = checks.not_empty("blocks", checks.block_numbers(every if blocks is None else blocks, len(every)))
    shapes: dict[int, torch.Size] = {}

    def enter(block: int, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        shapes[block] = entering(args, kwargs).shape[:2]

    def leave(site: str, block: int, half: int | None, _module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        states = args[0] if site == "down_input" else leaving(output)
        if half is not None:
            states = states.chunk(2, dim=-1)[half]  # gate and up in one matrix
        receive(site, block, states.reshape(*shapes[block], -1))  # OPT's MLP works on flat tokens

    skipped = {i for i in blocks if architecture.attentions[i].skipped}  # refused for a mixture, before there are hooks
    hooks = [architecture.blocks[i].register_forward_pre_hook(partial(enter, i), with_kwargs=True) for i in blocks]
    for site in sites:
        for block in blocks:
            if site == "attention_norm" and block in skipped:
                continue  # it doesn't run
            half = ("gate", "up").index(site) if site in ("gate", "up") and architecture.mlps[block].fused else None
            hooks.append(_module(architecture, site, block).register_forward_hook(partial(leave, site, block, half)))
    with evaluating(architecture.model, *hooks):
        yield


def _check_sites(architecture: Architecture, sites: str | Sequence[str]) -> list[str]:
    available = sites_of(architecture)
    sites = [sites] if isinstance(sites, str) else list(sites)
    if not sites or not set(sites) <= set(available) or len(set(sites)) != len(sites):
        raise ValueError(
            f"'sites' must hold different sites of this {architecture.kind} model ({architecture.name}): "
            f"{', '.join(available)}; got {sites}."
        )
    return sites


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
            return cast(nn.Module, mlp.norm)  # None in a model that doesn't have this site
    return architecture.blocks[block]


def run_keeping(architecture: Architecture, batch: Batch, blocks: Iterable[int]) -> tuple[Tensor, Entering]:
    """Run everything but the head, and keep what enters some blocks, so that the model can run again from there.

    Below a change nothing changes, so keep, at the first run, what enters the lowest block that will be changed::

        states, kept = run_keeping(architecture, batch, [5])
        bypass_attention(model, [5])
        with starting_at(architecture, 5, kept):
            changed = architecture.hidden_states(batch)

    Returns:
        States after the final norm [rows, length, hidden], and what enters each of ``blocks`` and block 0, which is
        always among them.
    """
    kept: Entering = {0: None}

    def keep(number: int, _block: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        kept[number] = output

    hooks = [architecture.blocks[i - 1].register_forward_hook(partial(keep, i)) for i in blocks if i]
    with evaluating(architecture.model, *hooks):
        return architecture.hidden_states(batch), kept


@contextmanager
def starting_at(architecture: Architecture, first: int, kept: Entering) -> Iterator[None]:
    """While the context is open, the blocks below ``first`` don't run: they return what was kept.

    ``kept`` is from ``run_keeping`` on the batch that is about to be read, and holds ``first``.
    """
    with standing_still(list(architecture.blocks)[:first], lambda: kept[first]):
        yield


@contextmanager
@check_types
def standing_still(blocks: Sequence[nn.Module], returned: Callable[[], Tensor | tuple | None]) -> Iterator[None]:
    """While the context is open, these blocks of a model don't run; each returns what ``returned()`` gives."""
    own = [vars(block).get("forward") for block in blocks]  # None, unless somebody put it there, such as accelerate
    for block in blocks:
        block.forward = lambda *_args, **_kwargs: returned()
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
