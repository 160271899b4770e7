"""Healing a cut model without a gradient: the weights out of its neurons are solved for, over a little text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.models.architectures import Architecture, describe
from course_utils.models.parts import Mlp
from course_utils.models.refusals import (
    refuse_adaptive,
    refuse_missing_weights,
    refuse_offloaded_weights,
    refuse_strangers,
)
from course_utils.pruning.activations import entering, evaluating, leaving, standing_still
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.batches import Batch, read_batches

_Call = tuple[tuple, dict]  # arguments of a block beside the hidden states


@check_types
@torch.no_grad()
def refit(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    ridge: float = 0.3,
    blocks: Sequence[int] | None = None,
) -> None:
    """Solve for the weights out of every MLP's neurons, in place, so that the stream gets back what a cut took.

    All or nothing: after an error or Ctrl-C the student is as it was.

    Block after block, from below: the neurons that are left read what the healed blocks below give, and are to bring
    the residual stream to where the teacher has it behind this block. Over a text's tokens that is least squares, with
    a ridge that holds each neuron's weights to what they were, the more the louder the neuron is::

        W = argmin  Σ over tokens ‖target - W x‖²  +  ridge · Σ over neurons j  (Σ over tokens x_j²) ‖W_j - old W_j‖²

    with the neurons' values x [width], and the target [hidden]: the teacher's stream less the student's own without
    this MLP. Every real token counts, the first ones too, because all others read what stands there. A bias is the
    weights of a neuron that always says 1. Reconstruction layer by layer: Frantar and Alistarh 2023 (SparseGPT, arXiv
    2301.00774) for single weights, Ling et al. 2024 (SlimGPT, arXiv 2412.18110) for whole columns.

    Args:
        student: cut in its MLPs, its attentions or its blocks; with as many channels as the teacher.
        teacher: the model that it was cut from; it is not changed.
        batches: ``{"input_ids", "attention_mask"}`` mappings; some thousand tokens, a multiple of the width. Both
            models' streams at all of them are held in memory.
        ridge: above 0; how much the old weights count, as a share of the text's own pull.
        blocks: the teacher's blocks that stayed, ascending; by default all. The MLP in front of removed blocks makes
            up for them, too: its target is the teacher's stream in front of the next block that stayed.

    Raises:
        ValueError: a ridge out of range, blocks that aren't the student's, malformed batches, models of other shapes or
            devices, the same model twice, an adaptive student, weights elsewhere, or a family with a norm between the
            neurons and the stream.
        UnsupportedArchitecture: ``describe`` doesn't know a model.
    """
    own, whole = describe(student), describe(teacher)
    checks.positive("ridge", ridge)
    last = whole.num_blocks - 1
    stayed = checks.whole_numbers("blocks", range(last + 1) if blocks is None else blocks, most=last)
    if list(stayed) != sorted(set(stayed)):
        raise ValueError(f"'blocks' must be ascending, each once, as they stand in the student; got {list(stayed)}.")
    _refuse(own, whole, len(stayed))
    ends = [*stayed[1:], whole.num_blocks]  # where the teacher's stream must be behind each of the student's blocks
    texts = list(read_batches(batches, vocab_size=own.vocab_size, device=student.device))
    before = [(mlp.down, mlp.down.weight, mlp.down.bias) for mlp in own.mlps]
    try:
        with evaluating(student), evaluating(teacher):
            mine, theirs = (_Stream(architecture, texts) for architecture in (own, whole))
            for number, mlp in enumerate(tqdm(own.mlps, desc="solving", unit="block", delay=2)):
                theirs.move_to(ends[number])
                values, rest = mine.at_neurons(number, mlp)
                goals = [goal.float() - without for goal, without in zip(theirs.states, rest, strict=True)]
                _solve(mlp, texts, values, goals, ridge)
                mine.states = [(w + mlp.down(x).float()).to(x.dtype) for x, w in zip(values, rest, strict=True)]
    except BaseException:  # Ctrl-C, too
        for module, weight, bias in before:
            module.weight, module.bias = weight, bias
        raise


def _solve(mlp: Mlp, texts: Iterable[Batch], values: Iterable[Tensor], goals: Iterable[Tensor], ridge: float) -> None:
    """Put new weights into one MLP, from its neurons' values and what it should write, batch by batch."""
    old, bias = mlp.columns, mlp.output.bias
    if bias is not None:
        old = torch.cat([old, bias[:, None]], dim=1)
    gram = old.new_zeros(old.shape[1], old.shape[1], dtype=torch.float64)
    cross = old.new_zeros(old.shape[1], old.shape[0], dtype=torch.float64)
    for text, x, goal in zip(texts, values, goals, strict=True):
        activations, target = x[text.real].float(), goal[text.real]
        if bias is not None:
            activations = nn.functional.pad(activations, (0, 1), value=1.0)
        gram += (activations.T @ activations).double()
        cross += (activations.T @ target).double()
    solution = _solved(gram, cross, old, ridge)
    mlp.output.replace(solution[:, : mlp.width], None if bias is None else solution[:, -1])


def _solved(gram: Tensor, cross: Tensor, old: Tensor, ridge: float) -> Tensor:
    """The weights of ``refit`` [hidden, width], from sums over tokens.

    Args:
        gram: products of the neurons' values with each other, [width, width].
        cross: products of the neurons' values with the target, [width, hidden].
        old: weights [hidden, width] that the ridge holds to.
        ridge: see ``refit``.
    """
    # The clamp: a neuron that never speaks keeps its weights.
    pull = ridge * gram.diagonal().clamp(min=1e-30)
    return torch.linalg.solve(gram + pull.diag(), cross + pull[:, None] * old.T.to(gram.dtype)).T


def _refuse(own: Architecture, whole: Architecture, stayed: int) -> None:
    refuse_adaptive(own, "solve for weights")
    for architecture in (own, whole):
        refuse_missing_weights(architecture, "solve for weights")
        refuse_offloaded_weights(architecture, "solve for weights")
    refuse_strangers(own.model, whole.model)
    given = (own.num_blocks, own.hidden_size, own.vocab_size)
    wanted = (stayed, whole.hidden_size, whole.vocab_size)
    if given != wanted:
        raise ValueError(
            "The student must have the blocks that stayed and the teacher's hidden channels and vocabulary, so that "
            f"the one's stream can be brought to the other's; it has {given}, wanted are {wanted}. Say with 'blocks' "
            "which ones stayed; where channels were removed, train it instead: distill."
        )
    mlp = own.mlps[0]
    if mlp.contribution not in (mlp.down, mlp.owner) or not own.family.norms_first(own.model.config):
        raise ValueError(
            f"In a {own.name} model of this kind a norm stands between the neurons and the residual stream, so its "
            "weights can't be solved for as a linear problem. Train it instead: distill."
        )


class _Stream:
    """A model's residual stream at every token of a text, taken through one block after the other.

    Attributes:
        states: [rows, length, hidden] of each batch, where the stream stands: in front of block 0 to begin with.
    """

    def __init__(self, architecture: Architecture, texts: Iterable[Batch]) -> None:
        self._blocks, self._passed = list(architecture.blocks), 0
        self.states: list[Tensor] = []
        self._calls: list[list[_Call]] = []  # of each batch and block
        for text in texts:
            states, calls = _at_the_start(architecture, text)
            self.states.append(states)
            self._calls.append(calls)

    def move_to(self, end: int) -> None:
        """Take the stream through the blocks in front of this one."""
        for number in range(self._passed, end):
            self.states = [self._behind(number, batch) for batch in range(len(self.states))]
        self._passed = end

    def at_neurons(self, number: int, mlp: Mlp) -> tuple[list[Tensor], list[Tensor]]:
        """Each batch's values of a block's neurons [rows, length, width], and the stream behind it without them.

        The latter, [rows, length, hidden], is in float32.
        """
        values: list[Tensor] = []
        hook = mlp.down.register_forward_pre_hook(lambda _module, args: values.append(args[0]))
        try:
            behind = [self._behind(number, batch) for batch in range(len(self.states))]
        finally:
            hook.remove()
        # OPT's MLP works on flat tokens.
        values = [x.reshape(*states.shape[:2], -1) for x, states in zip(values, behind, strict=True)]
        rest = [states.float() - mlp.down(x).float() for x, states in zip(values, behind, strict=True)]
        return values, rest

    def _behind(self, number: int, batch: int) -> Tensor:
        args, kwargs = self._calls[batch][number]
        return leaving(self._blocks[number](self.states[batch], *args, **kwargs))


def _at_the_start(architecture: Architecture, text: Batch) -> tuple[Tensor, list[_Call]]:
    """The stream in front of block 0, and with what else each block is called; block 0 alone runs."""
    entered: list[Tensor] = []
    calls: list[_Call] = []
    returned: list[Any] = []

    def keep(_block: nn.Module, args: tuple, kwargs: dict) -> None:
        entered.append(entering(args, kwargs))
        calls.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

    first, *others = architecture.blocks
    hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in (first, *others)]
    hooks.append(first.register_forward_hook(lambda _block, _args, output: returned.append(output)))
    try:
        with standing_still(others, lambda: returned[0]):
            architecture.hidden_states(text)
    finally:
        for hook in hooks:
            hook.remove()
    return entered[0], calls
