"""What happened, as a frame and as a figure."""

from __future__ import annotations

import json

from course_utils.healing.distillation import History


def test_history_as_frame_and_figure():
    history = History(
        [{"step": i, "loss": 2 / i, "lr": 1, "gradient_norm": 1, "tokens": i, "seconds": i} for i in (1, 2)]
    )
    history.validation.append({"step": 2, "loss": 0.5})
    assert history.frame()["validation"].tolist()[1] == 0.5
    ax = history.plot()
    assert [line.get_xydata()[-1].tolist() for line in ax.lines] == [[2, 1.0], [2, 0.5]]
    assert json.loads(json.dumps(vars(history)))
    assert (history.tokens, history.seconds) == (2, 2)
    assert (History().tokens, History().seconds) == (0, 0.0)


def test_tokens_add_up_and_measurements_belong_to_the_last_step():
    history = History()
    for seconds in (1.0, 2.5):
        history.add_step(loss=3.0, lr=1e-3, gradient_norm=1.0, tokens=11, seconds=seconds)
        assert not history.is_measured
    assert history.steps[1] == {
        "step": 2, "loss": 3.0, "lr": 1e-3, "gradient_norm": 1.0, "tokens": 22, "seconds": 2.5
    }  # fmt: skip
    history.validation.append({"step": 2, "loss": 3.0})
    assert history.is_measured
    assert (history.tokens, history.seconds) == (22, 2.5)
