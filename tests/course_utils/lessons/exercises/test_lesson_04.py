"""Lesson 04's checks refuse the stub, name the likely mistake, and accept the answers."""

import math
from itertools import pairwise

import torch
from exercise_cases import cases_of
from torch import nn

from course_utils.lessons.exercises import lesson_04
from course_utils.models.loading import tiny_llama
from course_utils.text.rows import TokenBlocks


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


def test_a_disguised_llama_predicts_the_same():
    for tied in (True, False):
        model = tiny_llama(blocks=3)
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 0.0  # beside a tiny model's tiny states it would count
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = model(ids).logits
            torch.testing.assert_close(lesson_04.disguised(model)(ids).logits, before, rtol=1e-4, atol=1e-5)
            assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def healthy_llama():
    """Blocks 2 and 4 write a giant number into channel 5 of every token."""
    model = tiny_llama(blocks=6)
    for number in (2, 4):
        bias = torch.zeros(32)
        bias[5] = 30
        model.model.layers[number].mlp.down_proj.bias = nn.Parameter(bias)
    return model


HEALTHY = healthy_llama()
PATIENT = lesson_04.patient_of(HEALTHY, torch.tensor([0.0, 1, 90, 80, -100, 0]), known=(2, 3))
OWN = HEALTHY.generate(torch.arange(1, 13)[:, None], max_new_tokens=9, do_sample=False)  # what it would say itself
EXAM = {
    text: TokenBlocks(rows, torch.ones(6, dtype=torch.int64), text, "evaluation")
    for text, rows in zip(("speeches", "wiki"), OWN.split(6), strict=True)
}


def test_the_patient_lacks_two_of_the_three_that_write_most():
    kept = [HEALTHY.model.layers[number].mlp.up_proj.weight for number in (0, 1, 3, 5)]
    assert all(
        torch.equal(block.mlp.up_proj.weight, weight) for block, weight in zip(PATIENT.model.layers, kept, strict=True)
    )


test_treatment = cases_of(
    lesson_04.check_treatment,
    PATIENT,
    HEALTHY,
    EXAM,
    mistakes=[
        (5, "yours is of type int"),
        ((1, 5), "You give 2"),
        ((1.5, 5, 60), "The block is a whole number"),
        ((4, 5, 60), "from 0 to 3; yours is 4"),
        ((1, 99, 60), "yours is 99"),
        ((1, 5, math.inf), "must be finite"),
        ((1, 4, 60), "Where do the two models part?"),
        ((1, 5, -60), "doesn't help"),
        ((1, 5, 1.5), "over a third of the harm is left"),
    ],
    answers=[(1, 5, 60), torch.tensor([2, 5, 55.0])],
)
