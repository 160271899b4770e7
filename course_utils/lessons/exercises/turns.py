"""How far a stream of states turns: the mean over the real tokens of 1 - cosine, and what goes wrong with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from course_utils.lessons.exercises.checking import Mistakes


def turned(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens whose mask is 1 of 1 - cosine of the states [rows, length, hidden]."""
    return (1 - cosine_similarity(before, after, dim=-1))[mask.bool()].mean()


def mistaken_turns(
    quantity: str, states: Callable[..., tuple[Tensor, Tensor, Tensor]] = lambda *given: given
) -> Mistakes:
    """Wrong versions of ``turned``, each with its sentence.

    Args:
        quantity: what it is called, as the first word of a sentence.
        states: what the learner's function is given -> states before, states after, mask.
    """

    def wrong(version: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda *given: version(*states(*given))

    def each(before: Tensor, after: Tensor) -> Tensor:
        return 1 - cosine_similarity(before, after, dim=-1)

    def by_rows(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
        rows = zip(each(before, after), mask.bool(), strict=True)
        return torch.stack([row[real].mean() for row, real in rows]).mean()

    def at_once(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
        real = mask.bool()
        return 1 - cosine_similarity(before[real].flatten(), after[real].flatten(), dim=0)

    return [
        (wrong(lambda before, after, mask: 1 - turned(before, after, mask)),
         f"That is the cosine itself. {quantity} is one minus it: 0 where nothing turns."),
        (wrong(lambda before, after, mask: each(before, after).mean()),
         "Padded positions count in your mean. Select the real tokens with mask.bool() first."),
        (wrong(lambda before, after, mask: (each(before, after) * mask).mean()),
         "You set the padded positions to zero but still divide by their number. Divide by the real tokens only."),
        (wrong(by_rows),
         "You average each row first, so a token of a short row weighs more. Average over all real tokens at once."),
        (wrong(at_once),
         "That is one cosine over all tokens together, in which long vectors dominate. Take one per token: dim=-1."),
        (wrong(lambda before, after, mask: (1 - cosine_similarity(before, after)).mean()),
         "cosine_similarity takes dim=1 unless it is told otherwise, here the tokens of a row. Take dim=-1."),
    ]  # fmt: skip
