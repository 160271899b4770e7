"""What can go wrong in a cut of a model's MLPs is named; lesson 01 tests its own mistakes."""

import copy

import pytest
from torch import nn

from course_utils.lessons.exercises import exercise, lesson_01
from course_utils.lessons.exercises.cuts import GPT2, check_cut
from course_utils.pruning.width import neuron_importance, prune_neurons

ANSWER = lesson_01._prune_width


def judge(attempt, capsys):
    @exercise(1, task="Cut.", proved="Cut.", answer=ANSWER)
    def check(attempt):
        check_cut(GPT2, attempt, GPT2.tiny_model(20, 20), 0.3)

    check(attempt)
    return capsys.readouterr().out


def put(name, new):
    """A cut after which one tensor of each MLP is another: ``new(old tensor, neurons that stay)``."""

    def attempt(family, answer, model, *rest):
        layer, kind = name.split(".")
        whole = [dict(mlp.named_parameters()) for mlp in family.mlps(model)]
        answer(model, *rest)
        for mlp, old in zip(family.mlps(model), whole, strict=True):
            first = next(iter(family.tensors))
            rows, kept = old[first].movedim(family.tensors[first][0], 0), family.by_neuron(mlp)[first]
            keep = (kept[:, None] == rows[None]).all(-1).nonzero()[:, 1]
            setattr(mlp.get_submodule(layer), kind, nn.Parameter(new(old[name], keep).detach()))
        return model

    return attempt


def sized(name, size):
    def attempt(family, answer, model, *rest):
        answer(model, *rest)
        setattr(family.mlps(model)[0].get_submodule(name), size, 20)
        return model

    return attempt


def width_forgotten(family, answer, model, *rest):
    setattr(answer(model, *rest).config, family.width, 20)
    return model


def written_into(family, answer, model, *rest):
    family.mlps(model)[0].get_parameter([*family.tensors][2]).data.zero_()
    return answer(model, *rest)


def norm_changed(family, answer, model, *rest):
    norm = model.get_submodule("transformer.ln_f")
    norm.weight = nn.Parameter(norm.weight + 1)
    return answer(model, *rest)


def another_activation(family, answer, model, *rest):
    model.config.activation_function = "relu"
    return answer(model, *rest)


def two_blocks_only(family, answer, model, *rest):
    last, stack = family.mlps(model)[2], model.get_submodule(family.blocks)
    whole = copy.deepcopy(last)
    answer(model, *rest)
    stack[2].mlp = whole
    return model


def others(family, answer, model, *rest):
    prune_neurons(model, neuron_importance(model, "random", seed=1), ratio=rest[-1])
    return model


ANY = [
    (lambda family, answer, model, *rest: [answer(model, *rest)], "Return the model; yours is of type list"),
    (lambda family, answer, model, *rest: answer(copy.deepcopy(model), *rest), "You return another model"),
    (lambda family, answer, model, *rest: model, "still has all of its 20 neurons"),
    (two_blocks_only, "Block 2: it still has all of its 20 neurons"),
    (width_forgotten, "is 20, but the MLPs have 14"),
    (written_into, "You wrote into "),
    (norm_changed, "has other numbers now"),
    (another_activation, "the model gives other logits"),
    (others, "other neurons should stay"),
]
OF_GPT2 = [
    (put("c_proj.weight", lambda old, keep: old[:, keep]), "c_proj.weight should be [14, 20] and is [20, 14]"),
    (put("c_fc.weight", lambda old, keep: old[keep]), "c_fc.weight should be [20, 14] and is [14, 20]"),
    (put("c_fc.bias", lambda old, keep: old), "c_fc.bias should be [14] and is [20]"),
    (put("c_proj.bias", lambda old, keep: old[keep]), "c_proj.bias should be [20] and is [14]"),
    (put("c_proj.weight", lambda old, keep: old[keep.flip(0)]), "Use one list of neurons, in one order"),
    (put("c_fc.bias", lambda old, keep: 0 * old[keep]), "c_fc.bias holds numbers that weren't there before"),
    (sized("c_fc", "nf"), "c_fc.nf is 20, but 14"),
    (sized("c_proj", "nx"), "c_proj.nx is 20, but 14"),
]


@pytest.mark.parametrize(("attempt", "said"), ANY + OF_GPT2)
def test_mistake_is_named(attempt, said, capsys):
    told = judge(lambda *given: attempt(GPT2, ANSWER, *given), capsys)
    assert said in told and "not yet" in told, told


def test_answer_is_right(capsys):
    assert "correct" in judge(ANSWER, capsys)
