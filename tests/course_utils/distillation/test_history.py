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


def test_tokens_add_up_and_measurements_belong_to_the_last_step():
    history = History()
    for seconds in (1.0, 2.5):
        history.add_step({"step": len(history.steps) + 1, "tokens": 11}, seconds=seconds)
        assert not history.is_measured
    history.add_validation(3.0, patience=None)
    assert history.is_measured and history.validation == [{"step": 2, "loss": 3.0}]
    assert (history.tokens, history.seconds) == (22, 2.5)


def test_it_stops_after_so_many_measurements_without_a_better_one():
    history, stopped = History(), []
    for loss in (3.0, 2.0, 2.0, 2.5):
        history.add_validation(loss, patience=2)
        stopped.append(history.stopped_early)
    assert stopped == [False, False, False, True]
    history.add_validation(2.5, patience=None)
    assert not history.stopped_early
