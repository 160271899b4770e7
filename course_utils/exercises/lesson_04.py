"""Checks of lesson 04, depth pruning."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.evaluation import Perplexity
from course_utils.exercises import Attempt, chosen, exercise, require, rule_out
from course_utils.exercises.better import require_better
from course_utils.language_modelling import logits_one_by_one
from course_utils.reports import shown

_GONE = (1, 3)  # of five blocks; with neither end, so that every mistake below has its own symptom
_CLAIMS = {  # each sentence of exercise 3, and why it follows from the colleague's numbers or doesn't
    "A": "all five random factors in the table are larger than 1.30, so it follows.",
    "B": "five random sets can't show that at the 5 % level. Being best of six happens by luck in one case of six.",
    "C": "the paired interval, 1.25 to 1.36, lies wholly above 1, so it follows for text of this kind.",
    "D": "a few sets of the thousands that there are were tried. Better than five of them is not best.",
    "E": "one kind of text was measured, by perplexity. Another task is another measurement.",
}


@exercise(
    1,
    task="Return one number: the mean over the real tokens of 1 - cosine(before, after).",
    proved="Each real token counts once, padding never, and the length of the states doesn't matter.",
)
def check_block_influence(attempt: Attempt) -> None:
    """Check a function (before, after, mask) -> block influence."""
    before, after, mask = _states()
    real = mask.bool()
    cosines = cosine_similarity(before, after, dim=-1)
    expected = (1 - cosines)[real].mean()
    given = torch.as_tensor(attempt(before.clone(), after.clone(), mask.clone()), dtype=torch.float32)
    require(given.dim() == 0, f"Return one number for the block; yours has the shape {tuple(given.shape)}.")
    mistakes = (
        (
            cosines[real].mean(),
            "That is the cosine itself. Influence is one minus it: 0 for a block that turns nothing.",
        ),
        ((1 - cosines).mean(), "Padded positions count in your mean. Select the real tokens with mask.bool() first."),
        (
            ((1 - cosines) * mask).mean(),
            "You set the padded positions to zero but still divide by their number. Divide by the real tokens only.",
        ),
        (
            torch.stack([(1 - row)[keep].mean() for row, keep in zip(cosines, real, strict=True)]).mean(),
            "You average each row first, so a token of a short row weighs more. Average over all real tokens at once.",
        ),
        (
            1 - cosine_similarity(before[real].flatten(), after[real].flatten(), dim=0),
            "That is one cosine over all tokens together, in which long vectors dominate. Take one a token: dim=-1.",
        ),
        (
            (before - after)[real].norm(dim=-1).mean(),
            "That is the length of the difference. Influence looks at the angle: use cosine_similarity.",
        ),
    )
    rule_out(mistakes, given, expected, same=_close)
    require(
        _close(given, expected),
        f"For the check's random states the influence is {expected:.4f}; yours is {given:.4f}. One cosine a token "
        "over the last dimension, one minus it, mean over the tokens whose mask is 1.",
    )
    poisoned = before.masked_fill(~real[..., None], torch.nan)
    require(
        _close(torch.as_tensor(attempt(poisoned, after.clone(), mask.clone()), dtype=torch.float32), expected),
        "A padded position that holds NaN spoils your mean: 0 × NaN is NaN. Select the real tokens, don't multiply.",
    )


@exercise(
    2,
    task="Write take_out_blocks: the given function without its two bugs. Return the model.",
    proved="Right blocks, right numbers: with the cache, without it, and after a reload.",
)
@torch.no_grad()
def check_take_out(attempt: Attempt) -> None:
    """Check a function (model, block numbers) -> the model without these blocks."""
    original = _tiny_llama()
    blocks = list(original.model.layers)
    expected = [i for i in range(len(blocks)) if i not in _GONE]
    for gone in (list(_GONE), list(reversed(_GONE))):
        model = attempt(copy.deepcopy(original), gone)  # the learner may write into its weights
        require(isinstance(model, LlamaForCausalLM), f"Return the model; yours returned a {type(model).__name__}.")
        kept = [_find(block, blocks) for block in model.model.layers]
        require(
            len(kept) == len(expected),
            f"{len(kept)} blocks are left of {len(blocks)} when {gone} go; there should be {len(expected)}.",
        )
        require(
            kept == expected,
            f"Asked to remove {gone} of {len(blocks)}, you kept blocks {kept} instead of {expected}. Deleting one "
            "block moves all behind it up, so the next number is another block. Go by the old numbers, all at once.",
        )
        numbers = [block.self_attn.layer_idx for block in model.model.layers]
        require(
            model.config.num_hidden_layers == len(kept),
            f"config.num_hidden_layers is {model.config.num_hidden_layers}, but {len(kept)} blocks are left. A reload "
            "would make up the missing ones, with random weights.",
        )
        require(
            numbers != expected,
            f"The blocks that stay still have their old layer_idx, {numbers}. Without a cache nobody reads it; with "
            f"one, {_with_cache(model)}. Number them anew: 0, 1, 2, …",
        )
        require(
            numbers == list(range(len(kept))),
            f"layer_idx is {numbers}; it must be 0, 1, 2, … in the order of the blocks.",
        )
        ids = _ids()
        torch.testing.assert_close(
            logits_one_by_one(model, ids), model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4
        )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            model.save_pretrained(folder)
            reloaded = LlamaForCausalLM.from_pretrained(folder).eval()
        require(
            torch.equal(reloaded(ids).logits, model(ids).logits),
            "After save_pretrained and from_pretrained the model gives other logits.",
        )


@exercise(
    3,
    task="Return the set of letters of the sentences that the numbers do not show.",
    proved="Better than five sets is a fact; better than chance, best of all, or better elsewhere are other questions.",
)
def check_claims(attempt: Attempt) -> None:
    """Check the letters of the claims that don't follow."""
    chosen(attempt, {"B", "D", "E"}, _CLAIMS)


@exercise(
    4,
    task="Return a list of different runs of neighbouring blocks, drawn at random, that spare the ends.",
    proved="Your control is like the choice in everything, but for the criterion.",
)
def check_control_runs(attempt: Attempt) -> None:
    """Check a function (total, count, spared, sets, seed) -> random runs of blocks."""
    total, count, spared, sets = 30, 3, 2, 19
    runs = _runs(attempt(total, count, spared, sets, 0))
    require(
        all(len(run) == count for run in runs),
        f"Each set must have {count} blocks, as many as the choice removes; yours have {sorted({*map(len, runs)})}.",
    )
    require(
        all(run == list(range(run[0], run[0] + count)) for run in runs),
        f"{next((run for run in runs if run != list(range(run[0], run[0] + count))), [])} is no run of neighbours. The "
        "choice that you control for is one; a scattered control would differ in two things at once.",
    )
    inside = range(spared, total - spared)
    require(
        all(block in inside for run in runs for block in run),
        f"A run touches the {spared} blocks at an end. Then the control fails because of the ends, and every rule that "
        "stays away from them looks clever.",
    )
    require(
        len({tuple(run) for run in runs}) == len(runs),
        "The same run comes twice. It gives the same perplexity again, so it isn't another control: draw without "
        "replacement.",
    )
    require(len(runs) == sets, f"Asked for {sets} sets, you returned {len(runs)}.")
    require(
        runs != sorted(runs) or _runs(attempt(total, count, spared, sets, 1)) != runs,
        "Your runs are the first ones in order, whatever the seed. Draw them at random.",
    )
    require(_runs(attempt(total, count, spared, sets, 0)) == runs, "The same seed must give the same sets.")
    require(
        sorted({run[0] for seed in range(8) for run in _runs(attempt(total, count, spared, sets, seed))})
        == list(inside[: len(inside) - count + 1]),
        "Some runs can never be drawn. A run may begin at any block from the first that isn't spared up to the last "
        "from which the run still ends in time.",
    )
    few = _runs(attempt(12, 4, 2, 19, 0))
    require(
        sorted(few) == [list(range(first, first + 4)) for first in range(2, 7)],
        f"With 12 blocks there are only 5 runs of 4 that spare two blocks at each end. Return all of them; yours "
        f"returned {len(few)}.",
    )


@exercise(
    5,
    task="Return the number of parameters that are left, from the configuration.",
    proved="Your formula agrees with real models: shared key/value heads or not, tied head or not.",
)
def check_parameters_left(attempt: Attempt) -> None:
    """Check a function (configuration, blocks removed) -> parameters that are left."""
    sizes = {"vocab_size": 101, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 6}
    for tied in (True, False):
        for heads in (6, 2):
            config = LlamaConfig(
                **sizes, num_hidden_layers=7, num_key_value_heads=heads, tie_word_embeddings=tied, pad_token_id=None
            )
            for removed in (0, 3):
                given, expected = attempt(config, removed), _count(config, removed)
                case = (
                    f"{removed} of 7 blocks removed, {heads} of 6 heads have their own keys and values, head "
                    f"{'tied' if tied else 'not tied'}"
                )
                mistakes = _wrong_counts(config, removed, expected)
                rule_out(((wrong, f"{mistake} ({case}.)") for wrong, mistake in mistakes.items()), given, expected)
                require(given == expected, f"{case}: {expected:,} parameters are left; yours says {given:,}.")


@exercise(
    6,
    task="Give the blocks to remove, chosen on calibration text.",
    proved="Your set is better than the baseline's on text that chose nothing.",
)
def check_your_choice(
    blocks: Sequence[int], baseline: Sequence[int], held_out: Callable[[Sequence[int]], Perplexity]
) -> None:
    """Check block numbers against a baseline's, by a function block numbers -> perplexity of held-out text."""
    mine = [int(block) for block in blocks]
    require(
        len(mine) == len(baseline),
        f"The baseline removes {len(baseline)} blocks; yours removes {len(mine)}. Only equal numbers can be compared.",
    )
    require(len({*mine}) == len(mine), f"A block can be removed once; {mine} names one twice.")
    require({*mine} != {*baseline}, "That is the baseline's own set, so it can't beat it.")
    score, reference = held_out(sorted(mine)), held_out(sorted(baseline))
    yours, other = shown(score.perplexity), shown(reference.perplexity)
    require_better(
        score,
        reference,
        told=f"held-out perplexity: yours {yours}, the baseline's {other}, ratio",
        worse="On held-out text your set is worse than the baseline's.",
        luck="Your set is ahead, but the paired interval reaches 1: that may be luck.",
    )


def _runs(answer: Any) -> list[list[int]]:
    """Sets of block numbers as sorted lists, in the order in which they came."""
    require(
        isinstance(answer, list | tuple) and all(isinstance(run, list | tuple | range) and len(run) for run in answer),
        "Return a list with one list of block numbers for each set.",
    )
    return [sorted(int(block) for block in run) for run in answer]


def _close(given: Tensor, expected: Tensor) -> Tensor:
    return torch.isclose(given, expected, atol=1e-5)


def _states() -> tuple[Tensor, Tensor, Tensor]:
    """Before and after [rows, length, hidden] and a mask [rows, length] with rows of different lengths."""
    generator = torch.Generator().manual_seed(4)
    before = torch.randn(3, 6, 8, generator=generator)
    before *= torch.tensor([1.0, 3.0, 9.0])[:, None, None]  # lengths differ, as in a real stream
    after = before + 2 * torch.randn(3, 6, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    return before, after, mask


def _tiny_llama() -> LlamaForCausalLM:
    """Five random blocks, on the CPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=5,
        num_attention_heads=2,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    return model


def _ids() -> Tensor:
    return torch.randint(61, (1, 6), generator=torch.Generator().manual_seed(1))


def _find(block: torch.nn.Module, blocks: list[torch.nn.Module]) -> int | None:
    """The number of the block with the same weights, None if there is none."""
    same = (torch.equal(block.mlp.up_proj.weight, other.mlp.up_proj.weight) for other in blocks)
    return next((number for number, equal in enumerate(same) if equal), None)


def _with_cache(model: LlamaForCausalLM) -> str:
    try:
        logits_one_by_one(model, _ids())
    except Exception as error:  # which one depends on the transformers version; the learner should see its name
        return f"this model stops with an {type(error).__name__}"
    return "each block uses the wrong place"


def _count(config: LlamaConfig, removed: int) -> int:
    smaller = copy.deepcopy(config)
    smaller.num_hidden_layers = config.num_hidden_layers - removed
    with torch.device("meta"):
        return LlamaForCausalLM(smaller).num_parameters()


def _wrong_counts(config: LlamaConfig, removed: int, right: int) -> dict[int, str]:
    """Count -> the mistake that leads to it."""
    hidden, blocks = config.hidden_size, config.num_hidden_layers - removed
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    embedding = config.vocab_size * hidden
    return {
        _count(config, 0): "You count all blocks, also the removed ones.",
        right + blocks * 2 * hidden * (hidden - keys): "Keys and values have num_key_value_heads heads, not "
        "num_attention_heads: k_proj and v_proj are smaller.",
        right + embedding: "This head shares its weights with the embedding, so they count once.",
        right - embedding: "This head has weights of its own, beside the embedding's.",
        right - hidden: "The final norm, behind the last block, is missing.",
        right - blocks * 2 * hidden: "Each block has two norms of hidden_size weights.",
        right - blocks * 2 * hidden - hidden: "The norms are missing: two a block, and one at the end.",
        right - blocks * hidden: "Each block has two norms, one before the attention and one before the MLP.",
        right - blocks * hidden * config.intermediate_size: "A Llama's MLP has three matrices: gate, up and down.",
    }
