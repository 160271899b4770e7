"""Lesson 03's checks refuse the stub, name the likely mistake, and accept the answers."""

from functools import partial

import torch
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_03
from course_utils.models.loading import tiny_llama
from course_utils.pruning.width import by_halves, neuron_importance


def silence(model, blocks):
    """Another way: the values are put together anew."""

    def hook(_module, _inputs, values):
        return torch.cat([torch.zeros_like(values[:, :1]), values[:, 1:]], dim=1)

    return [model.model.layers[block].self_attn.v_proj.register_forward_hook(hook) for block in blocks]


def silence_in_place(model, blocks):
    def hook(_module, _inputs, values):
        values[:, 0] = 0

    return [model.model.layers[block].self_attn.v_proj.register_forward_hook(hook) for block in blocks]


test_silence = cases_of(
    lesson_03.check_silence,
    mistakes=[
        (silence_in_place, "You write into the given values"),
        (lambda model, blocks: silence(model, blocks)[:1], "Return a list with one handle per block; yours has 1"),
        (lambda model, blocks: silence(model, blocks) and silence(model, blocks), "3 hooks were left on the model"),
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
    """The answer to exercise 3, with switches for mistakes."""
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


def forever(suspects, harm):
    while True:
        harm(suspects)


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


UNPLANTED = [(block, number + 1) for block in range(3) for number in range(40)]
SECRET = lesson_03.SecretCut([(block, number) for block in range(3) for number in range(40)], UNPLANTED)
NEEDED = {(0, 3): 0.3, (0, 7): 0.3, (2, 11): 0.2}


def judge(gone, *, needed=NEEDED, texts=("speeches", "wiki")):
    """A made-up loss: half a nat, and more for each needed neuron that is gone, unless nothing was planted."""
    planted = 0 if gone == set(UNPLANTED) else sum(cost for neuron, cost in needed.items() if neuron in gone)
    return dict.fromkeys(texts, 0.5 + planted)


test_culprits = cases_of(
    lesson_03.check_culprits,
    SECRET,
    judge,
    stubs=[[...]],
    mistakes=[
        (5, "Give a list of pairs (block, neuron); yours is of type int"),
        ([3, 7], "Each culprit is a pair (block, neuron); one of yours is 3"),
        ([(0, 3, 1)], "one of yours is (0, 3, 1)"),
        ([(0, 99)], "(0, 99) was never removed"),
        ([], "You put nothing back"),
        (SECRET[:], "You put 120 neurons back; 4 are the most"),
        (SECRET[20:24], "search, don't draw"),
        ([(0, 3)], "They heal 38% of what was planted; 80% are asked for"),
    ],
    answers=[
        set(NEEDED),
        [[0, 3], [0, 7], [2, 11], [2, 11]],
    ],
)


def test_culprits_are_told_beside_the_two_cuts(capsys):
    lesson_03.check_culprits(list(NEEDED), SECRET, judge)
    assert "  wiki: the secret cut 1.30, yours back 0.50, nothing planted 0.50" in capsys.readouterr().out


def test_where_nothing_was_needed_nothing_can_be_found(capsys):
    assert not lesson_03.check_culprits([(0, 3)], SECRET, lambda gone: judge(gone, needed={}))
    assert "what was planted does no harm" in capsys.readouterr().out


def test_secret_cut_takes_a_tenth_of_each_block_and_holds_the_strongest_of_the_first():
    secret = lesson_03.secret_cut([torch.arange(40.0), torch.arange(40.0)])
    assert secret == sorted(set(secret)) and len(secret) == len(secret.unplanted) == 8
    assert {(0, 37), (0, 38), (0, 39)} <= set(secret)
    assert [neuron for neuron in secret if neuron[0]] == [neuron for neuron in secret.unplanted if neuron[0]]
