"""What a teacher thinks of a text, in main memory: it reads once, and any number of students learn from it.

For instance::

    known = remember_teacher(teacher, train + held_out)
    for student, alpha in arms:
        distill(known, student, train, validation=held_out, steps=400, lr=2e-4, alpha=alpha)

It keeps the hidden states before the head: 1.1 KiB per token for 576 numbers in 16 bits, where the logits would take
96 KiB. The head turns them into the very same logits again, bit for bit, where the batches are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.healing.distillation.checkpoint import name_of
from course_utils.healing.distillation.recipe import Recipe
from course_utils.models.architectures import Architecture, describe
from course_utils.models.loading import variant
from course_utils.pruning.activations import evaluating
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.batches import Batch, read_batches, rows_of


class TeacherStates:
    """What ``remember_teacher`` keeps. Rows of text are found by their content, in whatever batch they are.

    Attributes:
        vocab_size: of the teacher.
        teacher: what identifies it.
        precision: in which it read; a recipe must have the same.
    """

    def __init__(self, teacher: Architecture, states: Mapping[str, Tensor], precision: torch.dtype) -> None:
        self.vocab_size, self.precision = teacher.vocab_size, precision
        self.teacher = f"{name_of(teacher.model)}, its states kept, read in {precision}"
        self._states = states
        bare = describe(variant(teacher.model))
        del bare.blocks[:]  # so the teacher itself may go
        self._head = replace(bare)  # a fresh view: the other one remembers the blocks' parts

    def check(self, recipe: Recipe, batches: Iterable[Batch]) -> None:
        """Raise ValueError where the teacher read in another precision than the recipe's, or never read a row."""
        if recipe.precision is not self.precision:
            raise ValueError(
                f"'precision' must be {self.precision}, in which the teacher's states were read; got "
                f"{recipe.precision}. Give remember_teacher the recipe's."
            )
        rows = [row for batch in batches for row in rows_of(batch)]
        if unknown := sum(row not in self._states for row in rows):
            raise ValueError(
                f"{unknown} of {len(rows)} rows of text are not in the teacher's states. Give remember_teacher all "
                "rows that the student is to see, those for validation included."
            )

    def states(self, batch: Batch) -> Tensor:
        """The teacher's hidden states at the batch's predicted tokens, after the final norm: [tokens, hidden]."""
        return torch.cat([self._states[row] for row in rows_of(batch)]).to(batch.input_ids.device)

    def logits(self, states: Tensor) -> Tensor:
        """The teacher's head on its hidden states: [..., hidden] -> [..., vocabulary]."""
        return self._head.logits(states)


@check_types
def remember_teacher(
    teacher: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], *, precision: torch.dtype = torch.float32
) -> TeacherStates:
    """Let the teacher read all text once, and keep its hidden states in main memory.

    The teacher may be deleted or moved afterwards: what is kept shares its embedding and head only.

    Args:
        teacher: in any dtype; it runs in eval mode.
        batches: ``{"input_ids", "attention_mask"}`` mappings: all that the students are going to see.
        precision: that of the recipe (``Recipe.precision``); ``distill`` refuses states that were read in another one.

    Raises:
        ValueError: no batches, or another precision than a recipe can have.
    """
    checks.one_of("precision", precision, (torch.float32, torch.bfloat16))
    architecture, states = describe(teacher), dict[str, Tensor]()
    reads_16_bits = torch.autocast(teacher.device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16)
    with evaluating(teacher), torch.no_grad(), reads_16_bits:
        read = list(read_batches(batches, vocab_size=architecture.vocab_size, device=teacher.device))
        for batch in tqdm(read, desc="the teacher reads", unit="batch", delay=2):
            known = architecture.hidden_states(batch)[:, :-1]  # [rows, length - 1, hidden]
            for row, of_row, predicted in zip(rows_of(batch), known, batch.predicted, strict=True):
                states.setdefault(row, of_row[predicted].cpu())
    return TeacherStates(architecture, states, precision)
