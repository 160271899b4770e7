"""The time: seconds to read a prompt and to answer, by its length and by how many attentions are left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from course_utils import checks
from course_utils.architectures import describe
from course_utils.attention import bypass_attention
from course_utils.benchmarking import time_interleaved
from course_utils.models import variant

_LENGTHS = (16, 64, 256, 1024, 2000)  # tokens of the prompt
_ROUNDS = 7  # the median counts
_STEPS = 4  # tokens decoded in a round


@torch.no_grad()
def seconds_by_length(
    model: PreTrainedModel,
    order: Sequence[int],
    *,
    numbers: Sequence[int],
) -> dict[str, list]:
    """Seconds to read prompts of 16 to 2,000 tokens, and for each token of their answers, at batch 1.

    Args:
        model: any causal language model that ``describe`` knows; it is as before afterwards.
        order: the attentions, the first to be left out first.
        numbers: how many of them to leave out; all of a length are timed in turns.

    Returns:
        ``lengths``, ``numbers``, ``prefill`` and ``decode`` [lengths, numbers].

    Raises:
        ValueError: no ``numbers``, one that isn't whole or is too large.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture = describe(model)
    order = checks.whole_numbers("order", order, most=architecture.num_blocks - 1, meaning="the last block")
    numbers = checks.whole_numbers("numbers", numbers, most=len(order), meaning="as many as 'order' has")
    checks.not_empty("numbers", numbers)
    models = {}
    for number in numbers:
        models[str(number)] = variant(model)
        bypass_attention(models[str(number)], order[:number])

    def prefill(bypassed: PreTrainedModel, ids: Tensor) -> Any:
        return bypassed(ids, use_cache=True, logits_to_keep=1)

    def decode(bypassed: PreTrainedModel, ids: Tensor, cache: Any) -> None:
        for _ in range(_STEPS):
            bypassed(ids[:, :1], use_cache=True, **{architecture.cache_keyword: cache})
        cache.crop(-_STEPS)  # the next round meets the same length

    found: dict[str, list] = {"prefill": [], "decode": []}
    for length in _LENGTHS:
        ids = torch.randint(architecture.vocab_size, (1, length), generator=torch.Generator().manual_seed(length))
        ids = ids.to(model.device)
        caches = {name: prefill(bypassed, ids)[architecture.cache_keyword] for name, bypassed in models.items()}
        calls = {
            "prefill": {name: partial(prefill, bypassed, ids) for name, bypassed in models.items()},
            "decode": {name: partial(decode, bypassed, ids, caches[name]) for name, bypassed in models.items()},
        }
        for phase, timed in calls.items():
            rows = time_interleaved(timed, rounds=_ROUNDS).set_index("name")
            each = 1 if phase == "prefill" else _STEPS
            first = float(rows.seconds.iloc[0]) / each
            # Rounds differ when the machine does other work too; ratios within a round don't.
            found[phase].append([first * float(rows.ratio[str(number)]) for number in numbers])
    return {"lengths": list(_LENGTHS), "numbers": list(numbers), **found}
