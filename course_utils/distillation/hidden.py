"""A loss on states inside the models: the student's are pulled toward its teacher's, through a projection that learns.

One linear map for all chosen blocks takes the student's normalised states to the teacher's width, as in Minitron
(Muralidharan et al. 2024, arXiv 2407.14679, section 2.4); the error is squared, as in TinyBERT (Jiao et al. 2019,
arXiv 1909.10351, section 3). After training the map is thrown away: the student is a model like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils import checks
from course_utils.architectures import Architecture
from course_utils.argument_types import check_types
from course_utils.batches import Batch
from course_utils.hooks import leaving

Pairs = tuple[tuple[int, int], ...]


class HiddenLoss(nn.Module):
    """The distance of two models' states behind some of their blocks, and the projection between them.

    A token's state is divided by its root mean square, so the distance has no unit: at 0 states are equal, and 1 is
    what a projection to zero gets, whatever the model.

    Args:
        teacher: gets no gradients.
        student: gets them. May have fewer channels, or blocks, than the teacher.
        weight: what the distance is multiplied with.
        pairs: a student's block and a teacher's each; None takes those of ``block_pairs``.

    Raises:
        ValueError: a block that isn't there, or one twice.
    """

    def __init__(
        self, teacher: Architecture, student: Architecture, *, weight: float, pairs: Pairs | None = None
    ) -> None:
        super().__init__()
        self._teacher, self._weight = teacher, weight
        self._pairs = block_pairs(student.num_blocks, teacher.num_blocks, pairs)
        self.projection = nn.Parameter(first_projection(teacher, student))  # [teacher's hidden, student's hidden]

    def forward(self, loss: Callable[[Architecture, Batch], Tensor], student: Architecture, batch: Batch) -> Tensor:
        """Another loss and this one, sums over the batch's predicted tokens; each model runs once.

        Args:
            loss: runs the student, and the teacher where that has a say in it.
            student: the one that was given, or what it has become for several processes.
            batch: on the models' device.
        """
        of_student, of_teacher = zip(*self._pairs, strict=True)
        with _watching(student, of_student) as own, _watching(self._teacher, of_teacher) as known:
            total = loss(student, batch)
            if not known:
                with torch.no_grad():
                    self._teacher.hidden_states(batch)
        for one, other in self._pairs:
            states, target = (_normed(found[:, :-1][batch.predicted]) for found in (own[one], known[other]))
            error = F.linear(states, self.projection).float() - target  # [tokens, teacher's hidden]
            total = total + self._weight / len(self._pairs) * error.square().mean(-1).sum()
        return total


@check_types
def block_pairs(student: int, teacher: int, pairs: Pairs | None = None) -> Pairs:
    """Whose states are compared: the student's block and the teacher's, counted from 0.

    By default it is one late pair: an eighth of the blocks, at least one, lie between it and the last, which the
    predictions pull at already; the teacher's is at the same share of the depth.

    Args:
        student: how many blocks it has.
        teacher: how many it has.
        pairs: what was asked for; None is the default.

    Raises:
        ValueError: a block that isn't there, or one twice.

    >>> block_pairs(30, 30), block_pairs(24, 30), block_pairs(24, 30, ((5, 7), (20, 26)))
    (((26, 26),), ((20, 25),), ((5, 7), (20, 26)))
    """
    for name, count in {"student": student, "teacher": teacher}.items():
        checks.whole_number(name, count, least=1)
    if pairs is None:
        block = max(0, student - 1 - max(1, student // 8))
        return ((block, max(0, round((block + 1) / student * teacher) - 1)),)
    for name, blocks, count in zip(("student", "teacher"), zip(*pairs, strict=True), (student, teacher), strict=True):
        checks.block_numbers(blocks, count, name=f"The {name}'s blocks in 'hidden_pairs'")
    return pairs


@torch.no_grad()
def first_projection(teacher: Architecture, student: Architecture) -> Tensor:
    """Where the projection begins: the map that best turns the student's embedding into the teacher's (least squares).

    It is the identity where both have the same embedding, and where channels were cut it puts those that are left in
    their old places.

    Args:
        teacher: of the same vocabulary.
        student: on the same device.

    Returns:
        [teacher's hidden, student's hidden] float32.
    """
    every = max(1, student.vocab_size // (8 * student.hidden_size))  # tokens enough, in little memory
    own, known = (model.model.get_input_embeddings().weight[::every].double() for model in (student, teacher))
    gram = own.T @ own  # [student's hidden, student's hidden]
    gram.diagonal().add_(1e-9 * gram.diagonal().mean())  # a channel may be all zeros
    return torch.linalg.solve(gram, own.T @ known).T.float().contiguous()


def _normed(states: Tensor) -> Tensor:
    """Each token's state over its root mean square, in float32: as a norm has it that learns nothing."""
    return F.rms_norm(states.float(), states.shape[-1:])


@contextmanager
def _watching(model: Architecture, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What leaves these blocks, [rows, length, hidden] each, in the forward pass that is run meanwhile."""
    states: dict[int, Tensor] = {}

    def keep(block: int, output: Tensor | tuple) -> None:
        states[block] = leaving(output)

    hooks = [
        model.blocks[block].register_forward_hook(lambda _module, _args, output, block=block: keep(block, output))
        for block in blocks
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
