"""A tiny teacher and student, their text, and Ctrl-C in the middle of it."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_batches, tiny_model

from course_utils.healing.distillation import training
from course_utils.models.architectures import describe
from course_utils.pruning.width import neuron_importance, prune_neurons

BATCHES = tiny_batches(rows=16, size=2)
HELD_OUT = tiny_batches(rows=4, size=2, seed=9)


def pair(family="llama", **settings):
    """A teacher, and a narrower student that knows nothing yet."""
    teacher, student = tiny_model(family, **settings), tiny_model(family, seed=1, **settings)
    prune_neurons(student, neuron_importance(student, "random"), ratio=0.5)
    return teacher, student


def losses(history):
    return [row["loss"] for row in history.steps]


SETTINGS = {"steps": 9, "lr": 1e-3, "validation": HELD_OUT, "validate_every": 4, "save_every": 2}


def interrupt(call, *, after):
    """Run ``call``, which distils, and press Ctrl-C after so many steps."""
    batches_of, calls = training._batches_of, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return batches_of(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_batches_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()


def with_another_weight(model):
    """The same shape and the same embedding; one number of one matrix differs."""
    with torch.no_grad():
        describe(model).mlps[-1].output.module.weight.view(-1)[0] += 1
    return model
