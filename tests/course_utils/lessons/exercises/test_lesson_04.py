"""Lesson 04's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import torch
from exercise_cases import cases_of
from tiny import tiny_model
from torch import nn
from torch.nn.functional import cosine_similarity

from course_utils.lessons.exercises import lesson_04
from course_utils.measuring.evaluation import Perplexity, perplexity
from course_utils.pruning.depth import remove_blocks


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


def multiplied(before, after, mask):
    return ((1 - cosine_similarity(before, after, dim=-1)) * mask).sum() / mask.sum()


test_block_influence = cases_of(
    lesson_04.check_block_influence,
    mistakes=[
        (lambda before, after, mask: 1 - cosine_similarity(before, after, dim=-1), "Return one number"),
        (lambda before, after, mask: 0.5, "yours is 0.5. Take one cosine per token"),
        (multiplied, "0 × NaN is NaN"),
    ],
    answers=[lambda *given: lesson_04.check_block_influence.answer(*given).item()],
)


test_take_out = cases_of(
    lesson_04.check_take_out,
    mistakes=[
        (take_out_with_bugs, "Deleting one block moves all behind it up"),
        (lambda model, gone: take_out(model, gone, renumber=False), "stops with an IndexError"),
        (lambda model, gone: take_out(model, gone, tell=False), "config.num_hidden_layers is 5"),
        (numbered_backwards, "in the order of the blocks"),
        (lambda model, gone: take_out(model, gone[1:]), "4 blocks are left"),
        (lambda model, gone: gone, "Return the model"),
    ],
    answers=[take_out, delete_from_the_end],
)


def harms(model, rows):
    """With hooks, as the lesson's `skipping` does."""
    whole, found = perplexity(model, rows).nll, []
    for block in model.model.layers:
        hook = block.register_forward_hook(lambda block, inputs, output: inputs[0])
        found.append(perplexity(model, rows).nll - whole)
        hook.remove()
    return found


def hooks_stay(model, rows):
    model.model.layers[0].register_forward_hook(lambda block, inputs, output: inputs[0])
    return harms(model, rows)


def remove_for_good(model, rows):
    found = harms(model, rows)
    remove_blocks(model, [0])
    return found


test_leave_one_out = cases_of(
    lesson_04.check_leave_one_out,
    tiny_model(layers=7),
    torch.randint(97, (2, 9)),
    mistakes=[
        (hooks_stay, "A hook is still on block 0"),
        (remove_for_good, "The model has lost blocks"),
        (lambda *given: dict(enumerate(harms(*given))), "yours is of type dict"),
        (lambda *given: torch.tensor([harms(*given)]), "yours has the shape (1, 5)"),
        (lambda *given: harms(*given)[1:], "has 5 blocks, so 5 harms; yours are 4"),
        (lambda *given: 5 * [0.1], "For the tiny model the harms are"),
        (lambda *given: harms(*given)[:5], "The real model has 7 blocks; yours are 5"),
        (lambda *given: [h * (len(given[1]) == 6) for h in harms(*given)], "On the real model, blocks 1, 3, 5 cost"),
    ],
    answers=[harms, lambda *given: np.array(harms(*given))],
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


def judge(*blocks):
    return scored(blocks)


test_pair = cases_of(
    lesson_04.check_pair,
    judge,
    range(2, 10),
    stubs=[(..., ...)],
    mistakes=[
        (5, "yours is of type int"),
        ([3, 4, 5], "yours has 3"),
        ((3.5, 5), "yours are [3.5, 5]"),
        ((True, 5), "yours are [True, 5]"),
        ((5, 5), "block 5 twice"),
        ((5, 10), "numbers from 2 to 9"),
        ((5, 4), "cost more than the dearer one alone"),
        ((5, 6), "Less on wiki only"),
        ((7, 5), "that may be luck"),
    ],
    answers=[(3, 5), {3, 5}, torch.tensor([5, 3])],
)


def test_a_pair_is_told_beside_the_dearer_one(capsys):
    lesson_04.check_pair((3, 5), judge, range(2, 10))
    told = "  speeches: without both, perplexity × 0.41 (0.41 to 0.41) of that without block 5 alone"
    assert told in capsys.readouterr().out
