"""Lesson 04's checks refuse the stub, name the likely mistake, and accept the answers."""

from itertools import pairwise

import torch
from exercise_cases import cases_of
from torch import nn

from course_utils.lessons.exercises import lesson_04


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


def constants(model, rows, *, remove=True):
    """Another way: from the states that transformers hands out, whose last entry comes after the norm."""
    states = []
    hooks = [block.register_forward_pre_hook(lambda _, given: states.append(given[0])) for block in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, given: states.append(given[0])))
    model.model(rows)
    for hook in hooks if remove else []:
        hook.remove()
    return [(after - before)[:, 1:].mean((0, 1)) for before, after in pairwise(states)]


test_constants = cases_of(
    lesson_04.check_constants,
    mistakes=[
        (lambda *given: constants(*given, remove=False), "5 hooks were left on the model"),
        (lambda *given: torch.stack(constants(*given)) * 1.1, "For a tiny Llama: it is"),
        (lambda *given: 3.0, "Return a tensor [blocks, channels]"),
    ],
    answers=[constants],
)


def turn_down(model, first, factor):
    """Another way: hooks on what reads a norm."""

    def hook(_module, inputs):
        return (inputs[0] * factor,)

    readers = [model.lm_head]
    for block in model.model.layers[first:]:
        readers += [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]
        readers += [block.mlp.gate_proj, block.mlp.up_proj]
    return [reader.register_forward_pre_hook(hook) for reader in readers]


def written_down(model, first, factor):
    model.model.norm.weight.data *= factor
    return lesson_04.check_turn_down.answer(model, first, factor)[:-1]


test_turn_down = cases_of(
    lesson_04.check_turn_down,
    mistakes=[
        (lambda *given: turn_down(*given)[0], "Return a list of handles"),
        (lambda *given: turn_down(*given)[1:], "Is a handle missing in your list"),
        (lambda *given: turn_down(*given) and turn_down(*given), "Is a handle missing in your list"),
        (written_down, "or did you change a weight?"),
    ],
    answers=[turn_down],
)


def judge(blocks, number=0):
    """Made-up losses: blocks 5 and 7 write the same 300, and 6 does so on one text."""
    losses = {}
    for text in ("speeches", "wiki"):
        writers = {5, 7, 6} if text == "wiki" else {5, 7}
        missing = 5 if len(writers & {*blocks}) > 1 else 0
        losses[text] = 4 + 0.2 * len(blocks) + missing * abs(1 - number / 300)
    return losses


test_stand_ins = cases_of(
    lambda given, *rest: (
        lesson_04.check_stand_ins(*given, *rest) if given is not ... else lesson_04.check_stand_ins(..., ..., *rest)
    ),
    judge,
    [3, 4],
    torch.tensor([0, 0, 0, 100, 100, 150, 130, 150, 0.0]),
    mistakes=[
        ((5, 300), "yours is of type int"),
        (([3, 4, 5], 300), "yours has 3"),
        (((3.5, 5), 300), "yours are [3.5, 5]"),
        (((5, 5), 300), "block 5 twice"),
        (((4, 3), 300), "The lesson names these two"),
        (((5, 9), 300), "numbers from 0 to 8; yours are [5, 9]"),
        (((5, 4), 250), "On speeches the two cost 0.40 nats, and 0.40 one by one"),
        (((5, 6), 280), "On speeches the two cost 0.40 nats"),
        (((5, 7), 200), "Your number isn't what these two write"),
        (((6, 8), 130), "On speeches the two cost 0.40 nats"),
        (((5, 7), [1, 2]), "Give one number"),
    ],
    answers=[((5, 7), 300), (torch.tensor([7, 5]), torch.tensor(290.0))],
)
