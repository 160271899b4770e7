"""What happened, as a frame, as a figure, and as the reason to stop."""

from __future__ import annotations

import json

from course_utils.distillation import History


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


def test_stuck_after_so_many_measurements_without_a_better_one():
    history = History(validation=[{"step": step, "loss": loss} for step, loss in enumerate((3.0, 2.0, 2.0, 2.5))])
    assert history.is_stuck(2) and not history.is_stuck(3)
