"""Seconds are told for every length and number of attentions, and timing leaves the model alone."""

import numpy as np
from tiny_harm import long_enough

from course_utils.models import variant
from course_utils.prompt_harm import seconds
from course_utils.prompt_harm.seconds import seconds_by_length


def test_seconds_are_taken_in_turns_and_the_model_stays(monkeypatch):
    monkeypatch.setattr(seconds, "_LENGTHS", (4, 8))
    model = long_enough()
    found = seconds_by_length(variant(model), [2, 1, 3], numbers=(0, 3))
    assert found["lengths"] == [4, 8]
    assert np.array(found["prefill"]).shape == np.array(found["decode"]).shape == (2, 2)
    assert (np.array(found["decode"]) > 0).all()
