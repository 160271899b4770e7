"""What a block is made of, seen and cut alike in every family: matrices [out, in], MLPs, attentions, mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from course_utils.support import checks


class Projection:
    """A linear layer seen as a matrix [out, in], whatever its class stores."""

    def __init__(self, module: nn.Linear | Conv1D) -> None:
        self.module = module
        self.transposed = isinstance(module, Conv1D)  # GPT-2's Conv1D stores [in, out]

    @property
    def weight(self) -> Tensor:
        """A view of the weights, [out, in]: writing to it writes to the model."""
        weight = self.module.weight.detach()
        return weight.t() if self.transposed else weight

    @property
    def bias(self) -> Tensor | None:
        """A view of the bias, [out], or None."""
        return None if self.module.bias is None else self.module.bias.detach()

    @torch.no_grad()
    def keep(self, index: Tensor, *, axis: Literal["out", "in"]) -> None:
        """Keep only a part of the matrix, in place. The module gets new parameters; the old ones are left as they are.

        Args:
            index: int64 [kept], rows or columns of ``weight``, in the order that they get.
            axis: "out" (rows, with their biases) or "in" (columns).

        Raises:
            ValueError: another ``axis``.
        """
        checks.one_of("axis", axis, ("out", "in"))
        dim = (axis == "in") != self.transposed
        module, weight = self.module, self.module.weight
        index = index.to(weight.device)
        module.weight = nn.Parameter(weight.index_select(int(dim), index), requires_grad=weight.requires_grad)
        if axis == "out" and module.bias is not None:
            module.bias = nn.Parameter(module.bias.index_select(0, index), requires_grad=module.bias.requires_grad)
        out_features, in_features = self.weight.shape
        note_sizes(module, nf=out_features, nx=in_features, out_features=out_features, in_features=in_features)

    @torch.no_grad()
    def replace(self, matrix: Tensor, bias: Tensor | None) -> None:
        """Put another matrix [out, in] and bias [out] in the place of these; the old ones are left as they are."""
        for name, value in (("weight", matrix.t() if self.transposed else matrix), ("bias", bias)):
            old = getattr(self.module, name)
            if value is not None:
                new = nn.Parameter(value.to(old.device, old.dtype).contiguous(), requires_grad=old.requires_grad)
                setattr(self.module, name, new)

    def give_bias(self) -> None:
        """Give the layer a bias of zeros, unless it has one."""
        if self.module.bias is None:
            weight = self.module.weight
            zeros = weight.new_zeros(self.weight.shape[0])
            self.module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)

    @torch.no_grad()
    def shift(self, constant: Tensor) -> None:
        """Add a constant, [out], to what the layer gives: its bias gets a new parameter, the old one is left as it is.

        Raises:
            AttributeError: there is no bias.
        """
        bias = self.module.bias
        self.module.bias = nn.Parameter((bias + constant).to(bias.dtype), requires_grad=bias.requires_grad)


@dataclass(frozen=True)
class Mlp:
    """One block's MLP: ``down(act(fc(x)))`` (dense) or ``down(act(gate(x)) * up(x))`` (GLU)."""

    inputs: tuple[Projection, ...]  # (fc,) or (gate, up) or (gate-and-up fused,)
    output: Projection
    fused: bool
    owner: nn.Module  # the module that holds the projections
    norm: nn.Module | None  # what normalises its input; None where the norms stand behind the sum (OPT-350M)
    contribution: nn.Module  # its output is what the MLP adds to the residual stream

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All its matrices, those that lead in first."""
        return (*self.inputs, self.output)

    @property
    def width(self) -> int:
        """Neurons: the size of the hidden layer, ``intermediate_size``."""
        return self.output.weight.shape[1]

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Views of the weights that lead into each neuron: (fc,) or (gate, up), each [width, hidden]."""
        return self.inputs[0].weight.chunk(2) if self.fused else tuple(p.weight for p in self.inputs)

    @property
    def columns(self) -> Tensor:
        """A view of the weights that lead out of each neuron, [hidden, width]."""
        return self.output.weight

    @property
    def down(self) -> nn.Module:
        """The down-projection; its input holds one value per neuron."""
        return self.output.module

    def keep(self, neurons: Tensor) -> None:
        """Keep only these neurons, int64 [kept] in the order that they get, in every matrix and bias, in place."""
        rows = torch.cat([neurons, neurons + self.width]) if self.fused else neurons
        for projection in self.inputs:
            projection.keep(rows, axis="out")
        self.output.keep(neurons, axis="in")
        note_sizes(self.owner, intermediate_size=self.width)


@dataclass(frozen=True)
class Attention:
    """One block's attention sublayer; where it was removed, it has no matrices and all its sizes are 0."""

    module: Any  # of the family's own class, or what stands in its place
    inputs: tuple[Projection, ...]
    outputs: tuple[Projection, ...]
    norms: tuple[nn.Module, ...]  # what serves this attention alone
    contribution: nn.Module  # its output is what the sublayer adds to the residual stream

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All its matrices, those that lead in first."""
        return (*self.inputs, *self.outputs)

    @property
    def skipped(self) -> bool:
        """Whether the attention is bypassed or removed."""
        return getattr(self.module, "bypassed", False)

    @property
    def removed(self) -> bool:
        """Whether it is gone with its weights."""
        return getattr(self.module, "removed", False)

    @property
    def query_width(self) -> int:
        """Query heads times head size; 0 when skipped."""
        return 0 if self.skipped else self.outputs[0].weight.shape[1]

    @property
    def key_value_width(self) -> int:
        """Numbers that one token adds to the cache: keys and values of all key/value heads; 0 when skipped."""
        return 0 if self.skipped else sum(p.weight.shape[0] for p in self.inputs) - self.query_width

    @property
    def head_size(self) -> int:
        """Numbers in one head's query, key or value."""
        return next((getattr(self.module, n) for n in ("head_dim", "head_size") if hasattr(self.module, n)), 0)

    @property
    def groups(self) -> int:
        """Key/value heads, each with its query heads; a bypassed attention still has them."""
        if not self.inputs:
            return 0
        return (sum(p.weight.shape[0] for p in self.inputs) - self.outputs[0].weight.shape[1]) // (2 * self.head_size)

    @property
    def group_width(self) -> int:
        """Query heads of one group times head size."""
        return self.outputs[0].weight.shape[1] // self.groups if self.groups else 0

    def keep(self, groups: Tensor) -> None:
        """Keep only these key/value heads, int64 [kept] in the order that they get, and their query heads, in place."""
        size, width, total = self.head_size, self.group_width, self.groups
        queries, keys = _spans(groups, width), _spans(groups, size)
        if len(self.inputs) == 1:  # one matrix: all queries, then all keys, then all values
            start = total * width
            self.inputs[0].keep(torch.cat([queries, start + keys, start + total * size + keys]), axis="out")
        else:
            for projection, rows in zip(self.inputs, (queries, keys, keys), strict=True):
                projection.keep(rows, axis="out")
        self.outputs[0].keep(queries, axis="in")
        note_sizes(self.module, num_key_value_heads=len(groups))


@dataclass(frozen=True)
class Mixture:
    """One block's mixture of experts: a router sends each token to a few of many MLPs, with a weight each.

    The modules are of the family's own classes, whose fields the properties here know.
    """

    owner: nn.Module  # holds both, and shared experts where there are some
    router: Any  # states [tokens, hidden] -> logits [tokens, experts], weights and numbers [tokens, top k]
    experts: nn.Module  # states, numbers, weights -> the weighted sum of what these experts give [tokens, hidden]

    @property
    def count(self) -> int:
        """Experts that the router chooses from."""
        return self.router.weight.shape[0]

    @property
    def top_k(self) -> int:
        """Experts that each token is sent to."""
        return self.router.top_k

    @property
    def groups(self) -> int:
        """Groups of neighbours, of which a token's experts come from a few (DeepSeek's ``n_group``); 1 without."""
        grouped = getattr(self.router, "topk_method", None) != "greedy"
        return (getattr(self.router, "num_group", None) or 1) if grouped else 1

    @property
    def stacked(self) -> list[tuple[nn.Module, str, Tensor]]:
        """Router's and experts' weights and buffers, each with its module and name there; all are [experts, ...]."""
        return [
            (module, name, tensor)
            for module in (self.router, self.experts)
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        ]

    @property
    def expert_weights(self) -> list[Tensor]:
        """Views of one expert's weights: matrices, and biases where there are some."""
        return [weight.detach()[0] for weight in self.experts.parameters()]

    def keep(self, experts: Tensor) -> None:
        """Keep only these experts, int64 [kept] in the order that they get, with their part of the router, in place.

        Shared experts stay. Where fewer are left than a token was sent to, it is sent to all of them.
        """
        top_k = min(self.top_k, len(experts))
        for module, name, tensor in self.stacked:
            kept = tensor.detach().index_select(0, experts.to(tensor.device))
            if isinstance(tensor, nn.Parameter):
                kept = nn.Parameter(kept, requires_grad=tensor.requires_grad)
            setattr(module, name, kept)
        for module in (self.owner, self.router, self.experts):
            note_sizes(module, num_experts=len(experts), out_features=len(experts), top_k=top_k)


def note_sizes(module: nn.Module, **sizes: int) -> None:
    """Write sizes where a module notes them beside its matrices; each class notes its own few of them."""
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(module, name, size)


def _spans(numbers: Tensor, width: int) -> Tensor:
    """Row numbers of whole heads: number n stands for the rows from n * width on."""
    return (numbers[:, None] * width + torch.arange(width, device=numbers.device)).flatten()
