"""Lesson 04's checks refuse the stub, name the likely mistake, and accept the answers."""

import random

import numpy as np
import torch
from exercise_cases import cases_of
from torch import nn
from torch.nn.functional import cosine_similarity

from course_utils.exercises import lesson_04
from course_utils.language_modelling import Perplexity


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


def parameters_left(config, removed, *, gqa=True, tied=None, norms=2, final=1, matrices=3):
    hidden = config.hidden_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads if gqa else hidden
    block = 2 * hidden * (hidden + keys) + matrices * hidden * config.intermediate_size + norms * hidden
    tied = config.tie_word_embeddings if tied is None else tied
    embeddings = config.vocab_size * hidden * (1 if tied else 2)
    return embeddings + (config.num_hidden_layers - removed) * block + final * hidden


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


test_parameters_left = cases_of(
    lesson_04.check_parameters_left,
    stubs=[lambda config, removed: ...],
    mistakes=[
        (lambda c, n: parameters_left(c, 0), "also the removed ones"),
        (lambda c, n: parameters_left(c, n, gqa=False), "num_key_value_heads"),
        (lambda c, n: parameters_left(c, n, tied=False), "count once"),
        (lambda c, n: parameters_left(c, n, tied=True), "weights of its own"),
        (lambda c, n: parameters_left(c, n, final=0), "The final norm"),
        (lambda c, n: parameters_left(c, n, norms=0), "two norms of hidden_size"),
        (lambda c, n: parameters_left(c, n, norms=0, final=0), "The norms are missing"),
        (lambda c, n: parameters_left(c, n, norms=1), "one before the MLP"),
        (lambda c, n: parameters_left(c, n, matrices=2), "three matrices"),
        (lambda c, n: 12, "yours says 12"),
    ],
    answers=[parameters_left],
)


test_claims = cases_of(
    lesson_04.check_claims,
    stubs=[..., None],
    mistakes=[
        ({"B", "D"}, "Another task is another measurement"),
        ({"D", "E"}, "Being best of six happens by luck in one case of six"),
        (["B", "E"], "Better than five of them is not best"),
        ({"A", "B", "D", "E"}, "Look at A again"),
        ({"B", "C", "D", "E"}, "Look at C again"),
        ({"F"}, "There is no F"),
        (3, "Choose letters"),
    ],
    answers=[{"B", "D", "E"}, ["E", "D", "B"]],
)


def control_runs(total, count, spared, sets, seed, *, draw=random.Random.sample):
    firsts = range(spared, total - spared - count + 1)
    return [list(range(f, f + count)) for f in draw(random.Random(seed), firsts, min(sets, len(firsts)))]


def scattered(total, count, spared, sets, seed):
    draw = random.Random(seed)
    return [sorted(draw.sample(range(spared, total - spared), count)) for _ in range(sets)]


def with_replacement(total, count, spared, sets, seed):
    return control_runs(total, count, spared, sets, seed, draw=lambda r, firsts, k: r.choices(firsts, k=k))


def in_order(total, count, spared, sets, seed):
    return control_runs(total, count, spared, sets, seed, draw=lambda r, firsts, k: list(firsts)[:k])


def as_many_as_asked(total, count, spared, sets, seed):
    return control_runs(total, count, spared, sets, seed, draw=lambda r, firsts, k: r.sample(firsts, min(k, 4)))


def never_the_last(total, count, spared, sets, seed):
    return control_runs(total, count, spared, sets, seed, draw=lambda r, firsts, k: r.sample(firsts[:-1], k))


test_control_runs = cases_of(
    lesson_04.check_control_runs,
    stubs=[lambda total, count, spared, sets, seed: ...],
    mistakes=[
        (scattered, "is no run of neighbours"),
        (lambda total, count, spared, sets, seed: control_runs(total, count, 0, sets, seed), "touches the 2 blocks"),
        (lambda total, count, spared, sets, seed: control_runs(total, 2, spared, sets, seed), "must have 3 blocks"),
        (with_replacement, "The same run comes twice"),
        (in_order, "the first ones in order"),
        (as_many_as_asked, "you returned 4"),
        (never_the_last, "can never be drawn"),
        (lambda *asked: control_runs(*asked[:4], random.random()), "The same seed"),
        (lambda *asked: (control_runs(*asked) * 4)[: asked[3]], "With 12 blocks"),
        (lambda *asked: 3, "one list of block numbers"),
    ],
    answers=[control_runs, lambda *asked: tuple(map(tuple, control_runs(*asked)))],
)


def held_out(blocks):
    """A text on which every block costs as much as its number says, with some noise."""
    nll = 100 + sum(blocks) + 0.1 * np.arange(6) * len({*blocks} & {3})
    return Perplexity(
        perplexity=float(np.exp(nll.sum() / 300)), bits_per_byte=1.0, nll=1.0, tokens=300, ci_low=1.0, ci_high=2.0,
        row_nll=nll + np.zeros(6), row_tokens=np.full(6, 50), row_bytes=None, dtype="float32", fingerprint="text",
    )  # fmt: skip


def noisy(blocks):
    score = held_out(blocks)
    score.row_nll[:3] += 40 * (sum(blocks) == 6)
    return score


def test_the_choice_is_scored_beside_the_baseline(capsys):
    assert lesson_04.check_your_choice([1, 2], [4, 5], held_out)
    assert "held-out perplexity: yours 7.85, the baseline's 8.85, ratio 0.89" in capsys.readouterr().out


test_your_choice = cases_of(
    lambda blocks: lesson_04.check_your_choice(blocks, [4, 5], held_out),
    stubs=[..., [..., 2], None],
    mistakes=[
        ([5, 4], "the baseline's own set"),
        ([1], "yours removes 1"),
        ([1, 1], "names one twice"),
        ([8, 9], "your set is worse than the baseline's"),
    ],
    answers=[[1, 2], torch.tensor([0, 3]), (2, 1)],
)
test_your_choice_may_be_luck = cases_of(
    lambda blocks: lesson_04.check_your_choice(blocks, [4, 30], noisy),
    stubs=[...],
    mistakes=[([1, 5], "that may be luck")],
    answers=[[1, 2]],
)
