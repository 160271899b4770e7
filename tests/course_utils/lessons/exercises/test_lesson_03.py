"""Lesson 03's checks refuse the stub, name the likely mistake, and accept the answers."""

from functools import partial

import pytest
import torch
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_03
from course_utils.models.loading import tiny_llama
from course_utils.pruning.width import by_halves, neuron_importance


def silence(model, blocks, token):
    """Another way: the values are multiplied by a row of ones with a zero."""

    def hook(_module, _inputs, values):
        return values * (torch.arange(values.shape[1]) != token)[:, None]

    return [model.model.layers[block].self_attn.v_proj.register_forward_hook(hook) for block in blocks]


def silence_in_place(model, blocks, token):
    def hook(_module, _inputs, values):
        values[:, token] = 0

    return [model.model.layers[block].self_attn.v_proj.register_forward_hook(hook) for block in blocks]


test_silence = cases_of(
    lesson_03.check_silence,
    mistakes=[
        (silence_in_place, "You write into the given values"),
        (lambda *given: silence(*given)[:1], "Return a list with one handle per block; yours has 1"),
        (lambda *given: silence(*given) and silence(*given), "3 hooks were left on the model"),
    ],
    answers=[silence],
)


def contribution(model, batches, *, by=lambda states: states.float(), remove=True):
    """Another way: a sum a batch, in float32, under hooks that may stay."""
    layers = model.model.layers
    totals, count = [0] * len(layers), 0
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given, block=block: note(block, given[0]))
        for block, layer in enumerate(layers)
    ]

    def note(block, states):
        totals[block] = totals[block] + by(states)[mask].square().sum(0)

    for batch in batches:
        mask = batch["attention_mask"].bool()
        count += mask.sum()
        model.model(**batch)
    for handle in handles if remove else []:
        handle.remove()
    norms = [layer.mlp.down_proj.weight.float().norm(dim=0) for layer in layers]
    return [(total / count).sqrt() * norm for total, norm in zip(totals, norms, strict=True)]


def spoilt(model, batches):
    scores = contribution(model, batches)
    model.model.layers[0].mlp.down_proj.weight.data.mul_(2)
    return scores


test_contribution = cases_of(
    lesson_03.check_contribution,
    mistakes=[
        (lambda *given: [2 * scores for scores in contribution(*given)], "Block 0: neuron 0 scores"),
        (lambda *given: contribution(*given, by=lambda states: states), "Make the states float32"),
        (lambda *given: contribution(*given, remove=False), "3 hooks are left behind"),
        (spoilt, "The model has other weights now"),
        (lambda *given: contribution(*given)[0], "Return a list with one tensor for each of the 3"),
        (lambda *given: [scores[:16] for scores in contribution(*given)], "One score for each of 32 neurons"),
    ],
    answers=[contribution, lambda model, batches: neuron_importance(model, "activation", batches=batches)],
)


def test_contribution_is_tried_on_the_lessons_own_model(capsys):
    batches = [{"input_ids": torch.arange(1, 33).view(4, 8), "attention_mask": torch.ones(4, 8, dtype=torch.long)}]
    check = partial(lesson_03.check_contribution, base=tiny_llama(), batches=batches)
    assert check(contribution)
    assert "5 blocks of 64 scores, equal to the library's" in capsys.readouterr().out

    def for_three_blocks(model, batches):
        return [s * (1 + (len(model.model.layers) == 5)) for s in contribution(model, batches)]

    assert not check(for_three_blocks)
    assert "on this lesson's model it is off by 100%" in capsys.readouterr().out


def halve(suspects, harm, *, follow=min, rest=lambda suspects, middle: suspects[middle:]):
    """The answer to exercise 2, with switches for mistakes."""
    while len(suspects) > 1:
        middle = len(suspects) // 2
        suspects = follow(suspects[:middle], rest(suspects, middle), key=harm)
    return suspects[0]


def one_by_one(suspects, harm):
    return min(suspects, key=lambda neuron: harm([neuron]))


def left_if_it_heals(suspects, harm):
    """Asks after the left half alone, and for any healing at all; the second planted pair heals more on the right."""
    while len(suspects) > 1:
        middle = len(suspects) // 2
        suspects = suspects[:middle] if harm(suspects[:middle]) < 5 else suspects[middle:]
    return suspects[0]


def forever(suspects, ask):
    while True:
        ask(suspects)


test_halve = cases_of(
    lesson_03.check_halve,
    mistakes=[
        (lambda suspects, harm: halve(suspects, harm, follow=max), "go on with the half that leaves less"),
        (
            lambda suspects, harm: halve(suspects, harm, rest=lambda s, m: s[len(s) - m :]),
            "Does a suspect get lost when their number is odd?",
        ),
        (one_by_one, "two a step are 12. Each call runs a model"),
        (lambda suspects, harm: [halve(suspects, harm)], "return the suspect itself"),
        (lambda suspects, harm: halve(suspects, harm)[1], "isn't among the suspects"),
        (left_if_it_heals, "two heal, and you follow the one that heals less"),
        (forever, "do the suspects become fewer"),
    ],
    answers=[halve, by_halves],
)


def test_halve_searches_the_lessons_own_cut(capsys):
    suspects = [(block, number) for block in range(4) for number in range(30)]

    def harm(back):
        return 1.0 - ((3, 7) in back)

    assert lesson_03.check_halve(halve, suspects, harm)
    assert "finds block 3, neuron 7, in 14 calls" in capsys.readouterr().out
    assert not lesson_03.check_halve(lambda s, h: (9, 9) if len(s) == 120 else halve(s, h), suspects, harm)
    assert "here you return (9, 9), which isn't among the suspects" in capsys.readouterr().out


def enough(suspects, ruined, gone=()):
    """Another way: of the first half only what is needed beside the second, found from the right."""
    if len(suspects) == 1:
        return {*suspects}
    middle = len(suspects) // 2
    left, right = suspects[:middle], suspects[middle:]
    for half in (right, left):
        if ruined({*gone, *half}):
            return enough(half, ruined, gone)
    some = enough(right, ruined, {*gone, *left})
    return some | enough(left, ruined, {*gone, *some})


def one_that_heals(suspects, ruined):
    """The search of exercise 2, asked the other way round."""
    return [by_halves(suspects, lambda half: not ruined(half))]


def one_left_out(suspects, ruined):
    """Right, and slow: whoever isn't needed is dropped, one by one."""
    left = [*suspects]
    for suspect in suspects:
        others = [other for other in left if other != suspect]
        if others and ruined(others):
            left = others
    return left


test_enough = cases_of(
    lesson_03.check_enough,
    mistakes=[
        (one_that_heals, "that alone ruins nothing. If neither half is enough, the culprits sit in both"),
        (lambda suspects, ruined: suspects, "That is enough, but also without 0"),
        (lambda suspects, ruined: 60 * list(enough(suspects, ruined)), "You return a suspect more than once"),
        (lambda suspects, ruined: lesson_03._enough(suspects, ruined, keep_all=True), "you return 3, 50, one of each"),
        (one_left_out, "in 64 calls of ruined; 28 are plenty"),
        (lambda suspects, ruined: suspects[0], "Return a list of suspects"),
        (lambda suspects, ruined: [number for _, number in suspects], "0 is none"),
        (forever, "do the suspects become fewer"),
    ],
    answers=[enough],
)

DISASTER = [(block, number) for block in range(3) for number in range(40)]
GUILTY = {(1, 7), (2, 3), (2, 30)}


def damage(gone, *, guilty=GUILTY):
    """A made-up model: half of the damage needs all of the guilty, the rest is shared by the others."""
    return {"speeches": 2.0 * (guilty <= {*gone}) + len({*gone}) / 60, "wiki": 2.0}


def test_enough_searches_the_lessons_own_disaster(capsys):
    given = (DISASTER, lambda gone: damage(gone)["speeches"] > 2.0, damage)
    assert lesson_03.check_enough(enough, *given)
    said = capsys.readouterr().out
    assert "block 1, neuron 7" in said and "speeches: these 3 do 2.05, the whole disaster 4.00" in said
    assert lesson_03.check_enough.accepted is enough


def in_the_lesson(give):
    """A right search of planted groups that gives something else for the lesson's own disaster."""
    return lambda suspects, ruined: give if suspects == DISASTER else enough(suspects, ruined)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([(5, 5)], "(5, 5) isn't a neuron of the disaster"),
        (DISASTER[:9], "here you return 9 neurons, 8 are the most"),
        ([(1, 7), (2, 3)], "There they do 1% of the disaster's damage; 25% are asked for"),
    ],
)
def test_what_is_found_is_judged_on_other_rows(found, said, capsys):
    assert not lesson_03.check_enough(in_the_lesson(found), DISASTER, lambda gone: True, damage)
    assert said in capsys.readouterr().out
    assert lesson_03.check_enough.accepted is lesson_03.check_enough.answer


def test_where_no_cut_is_a_disaster_nothing_can_be_found(capsys):
    assert not lesson_03.check_enough(enough, DISASTER, lambda gone: False, damage)
    assert "the worst cut is no disaster" in capsys.readouterr().out
