"""What happened, step by step; ``test_training`` stops runs, goes on, and tries the checkpoints of other runs."""

from __future__ import annotations

from course_utils.healing.distillation import History


def test_history_adds_up_and_is_a_frame_and_a_figure():
    history = History()
    assert (history.tokens, history.seconds) == (0, 0.0)
    for seconds in (1.0, 2.5):
        history.add_step(loss=3.0 - seconds, lr=1e-3, gradient_norm=1.0, tokens=11, seconds=seconds)
        assert not history.is_measured
    assert history.steps[1] == {
        "step": 2, "loss": 0.5, "lr": 1e-3, "gradient_norm": 1.0, "tokens": 22, "seconds": 2.5
    }  # fmt: skip
    history.validation.append({"step": 2, "loss": 0.7})
    assert history.is_measured and (history.tokens, history.seconds) == (22, 2.5)
    assert history.frame()["validation"].tolist()[1] == 0.7
    assert [line.get_xydata()[-1].tolist() for line in history.plot().lines] == [[22, 0.5], [22, 0.7]]
