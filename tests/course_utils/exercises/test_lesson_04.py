"""Lesson 04's checks refuse the stub, name the likely mistake, and accept the answers."""

import math
from contextlib import contextmanager

import numpy as np
import torch
from exercise_cases import cases_of
from tiny import tiny_model
from torch import nn
from torch.nn.functional import cosine_similarity

from course_utils.depth import remove_blocks
from course_utils.evaluation import Perplexity, perplexity
from course_utils.exercises import lesson_04
from course_utils.models import variant


def influence(before, after, mask):
    real = mask.bool()
    return (1 - cosine_similarity(before[real], after[real], dim=-1)).mean()


def tokens(before, after):
    return 1 - cosine_similarity(before, after, dim=-1)


def by_rows(before, after, mask):
    rows = [row[keep].mean() for row, keep in zip(tokens(before, after), mask.bool(), strict=True)]
    return torch.stack(rows).mean()


def all_together(before, after, mask):
    real = mask.bool()
    return 1 - cosine_similarity(before[real].flatten(), after[real].flatten(), dim=0)


def multiplied(before, after, mask):
    return (tokens(before, after) * mask).sum() / mask.sum()


def take_out(model, gone, *, renumber=True, tell=True):
    kept = [block for number, block in enumerate(model.model.layers) if number not in gone]
    model.model.layers = nn.ModuleList(kept)
    if renumber:
        for number, block in enumerate(kept):
            block.self_attn.layer_idx = number
    if tell:
        model.config.num_hidden_layers = len(kept)
    return model


def take_out_with_bugs(model, gone):
    for number in gone:
        del model.model.layers[number]
    model.config.num_hidden_layers = len(model.model.layers)
    return model


def delete_from_the_end(model, gone):
    for number in sorted(gone, reverse=True):
        del model.model.layers[number]
    for number, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = number
    model.config.num_hidden_layers = len(model.model.layers)
    return model


def numbered_backwards(model, gone):
    take_out(model, gone)
    for number, block in enumerate(reversed(model.model.layers)):
        block.self_attn.layer_idx = number
    return model


def take_out_one_too_few(model, gone):
    return take_out(model, gone[1:])


def forget_to_return(model, gone):
    return len(take_out(model, gone).model.layers)


test_block_influence = cases_of(
    lesson_04.check_block_influence,
    stubs=[lambda before, after, mask: ...],
    mistakes=[
        (lambda b, a, m: 1 - influence(b, a, m), "That is the cosine itself"),
        (lambda b, a, m: tokens(b, a).mean(), "Padded positions count"),
        (lambda b, a, m: (tokens(b, a) * m).mean(), "still divide by their number"),
        (by_rows, "a token of a short row weighs more"),
        (all_together, "one cosine over all tokens together"),
        (lambda b, a, m: (b - a)[m.bool()].norm(dim=-1).mean(), "the length of the difference"),
        (lambda b, a, m: tokens(b, a), "Return one number"),
        (lambda b, a, m: 0.5, "yours is 0.5"),
        (multiplied, "0 × NaN is NaN"),
    ],
    answers=[influence, lambda b, a, m: influence(b, a, m).item()],
)


test_take_out = cases_of(
    lesson_04.check_take_out,
    stubs=[lambda model, gone: ...],
    mistakes=[
        (take_out_with_bugs, "Deleting one block moves all behind it up"),
        (lambda model, gone: take_out(model, gone, renumber=False), "stops with an IndexError"),
        (lambda model, gone: take_out(model, gone, tell=False), "config.num_hidden_layers is 5"),
        (numbered_backwards, "in the order of the blocks"),
        (take_out_one_too_few, "4 blocks are left"),
        (forget_to_return, "Return the model"),
    ],
    answers=[take_out, delete_from_the_end],
)


@contextmanager
def skipping(model, blocks):
    hooks = [model.model.layers[n].register_forward_hook(lambda block, inputs, output: inputs[0]) for n in blocks]
    yield
    for hook in hooks:
        hook.remove()


def harms(model, rows, *, gone=lambda number, total: [number], told=lambda without, whole: without - whole):
    """The answer to exercise 3; ``gone`` is left out for a block, and ``told`` of the two losses."""
    whole, found, total = perplexity(model, rows).nll, [], len(model.model.layers)
    for number in range(total):
        with skipping(model, gone(number, total)):
            found.append(told(perplexity(model, rows).nll, whole))
    return found


def telling(told):
    return lambda model, rows: harms(model, rows, told=told)


def hooks_stay(model, rows):
    whole, found = perplexity(model, rows).nll, []
    for block in model.model.layers:
        block.register_forward_hook(lambda block, inputs, output: inputs[0])
        found.append(perplexity(model, rows).nll - whole)
    return found


def remove_for_good(model, rows):
    whole, found = perplexity(model, rows).nll, []
    for _ in range(len(model.model.layers) - 1):
        remove_blocks(model, [0])
        found.append(perplexity(model, rows).nll - whole)
    return found


def first_block_as_whole(model, rows):
    found = harms(model, rows)
    return [harm - found[0] for harm in found]


def by_surgery(model, rows):
    """Another way: a variant for each block, and a tensor."""
    whole, losses = perplexity(model, rows).nll, []
    for number in range(len(model.model.layers)):
        shorter = variant(model)
        remove_blocks(shorter, [number])
        losses.append(perplexity(shorter, rows).nll)
    return torch.tensor(losses) - whole


def only_the_tiny_one(model, rows):
    return harms(model, rows) if len(model.model.layers) == 5 else [0.0] * len(model.model.layers)


def five_always(model, rows):
    return harms(model, rows)[:5]


def check_leave_one_out(attempt):
    real = tiny_model(layers=7)
    return lesson_04.check_leave_one_out(attempt, real, torch.randint(97, (2, 9)))


test_leave_one_out = cases_of(
    check_leave_one_out,
    stubs=[lambda model, rows: ...],
    mistakes=[
        (hooks_stay, "A hook is still on block 0"),
        (remove_for_good, "The model has lost blocks"),
        (lambda model, rows: dict(enumerate(harms(model, rows))), "yours returned a dict"),
        (lambda model, rows: torch.tensor([harms(model, rows)]), "yours has the shape (1, 5)"),
        (lambda model, rows: harms(model, rows)[1:], "has 5 blocks, so 5 harms; yours are 4"),
        (telling(lambda without, whole: without), "Take the whole model's loss away"),
        (telling(lambda without, whole: whole - without), "The sign is wrong"),
        (telling(lambda without, whole: math.exp(without) - math.exp(whole)), "not perplexities"),
        (telling(lambda without, whole: math.exp(without - whole)), "the ratio of perplexities"),
        (telling(lambda without, whole: math.exp(without)), "the perplexity without each block"),
        (lambda m, r: harms(m, r, gone=lambda number, total: range(number + 1)), "one after the other"),
        (
            lambda m, r: harms(m, r, gone=lambda number, total: {*range(total)} - {number}),
            "You skip all blocks but one",
        ),
        (first_block_as_whole, "beside the model without block 0"),
        (lambda model, rows: 5 * [0.1], "For the tiny model the harms are"),
        (five_always, "The real model has 7 blocks; yours are 5"),
        (only_the_tiny_one, "On the real model, blocks 1, 3, 5 cost"),
    ],
    answers=[harms, by_surgery, lambda model, rows: np.array(harms(model, rows))],
)


def scored(blocks):
    """Made-up perplexities: block 5 undoes what block 3 writes, and 6 does so on one text; 7 wins by luck alone."""
    costs = {"speeches": {5: 2.0}, "wiki": {5: 2.0}}
    rows = np.arange(8) - 3.5
    scores = {}
    for text, cost in costs.items():
        nats = 3 + sum(cost.get(block, 0.1) for block in blocks) + 0.05 * rows
        if {3, 5} <= {*blocks} or (text == "wiki" and {5, 6} <= {*blocks}):
            nats = nats - 1
        if {5, 7} <= {*blocks}:
            nats = nats - 0.2 + rows
        scores[text] = Perplexity(
            perplexity=float(np.exp(nats.mean())), bits_per_byte=1.0, nll=float(nats.mean()), tokens=80, ci_low=1.0,
            ci_high=2.0, row_nll=10 * nats, row_tokens=np.full(8, 10), row_bytes=None, dtype="float32",
            fingerprint=text,
        )  # fmt: skip
    return scores


def check_pair(pair):
    return lesson_04.check_pair(pair, lambda *blocks: scored(blocks), range(2, 10))


test_pair = cases_of(
    check_pair,
    stubs=[..., None, (..., ...)],
    mistakes=[
        (5, "yours is a int"),
        ("35", "yours is a str"),
        ({3: 5}, "yours is a dict"),
        ([3, 4, 5], "yours has 3"),
        ((3.5, 5), "yours are [3.5, 5]"),
        ((True, 5), "yours are [True, 5]"),
        ((5, 5), "block 5 twice"),
        ((1, 5), "numbers from 2 to 9"),
        ((5, 10), "numbers from 2 to 9"),
        ((5, 4), "cost more than the dearer one alone"),
        ((5, 6), "Less on wiki only"),
        ((7, 5), "that may be luck"),
    ],
    answers=[(3, 5), [5, 3], {3, 5}, torch.tensor([5, 3]), np.array([3, 5])],
)


def test_a_pair_is_told_beside_the_dearer_one(capsys):
    check_pair((3, 5))
    told = "  speeches: without both, perplexity × 0.41 (0.41 to 0.41) of that without block 5 alone"
    assert told in capsys.readouterr().out
