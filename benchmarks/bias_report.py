"""The bias report beside optipfair's: forward passes and seconds for each contrastive pair.

optipfair looks at two prompts at a time: ``visualize_bias`` draws its figures and returns its metrics, and runs the
model anew for each figure; its metrics alone need a pass for each prompt. Ours reads many pairs in one batch, controls
included, and adds intervals, tests and a verdict. Embedded SmolLM2-135M in float32; needs the extra "benchmarks".
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from statistics import median

import matplotlib as mpl
from transformers import PreTrainedModel

from benchmarks.common import Finding, Question, markdown_table, ratio, take_turns, with_range
from course_utils import bias
from course_utils.benchmarking import MIN_ROUNDS
from course_utils.bias import contrastive
from course_utils.bias.reporting import CONTROLS
from course_utils.models import load_model

AXIS, BAR = "gender", 1.0
DRAWN, METRICS, OURS = (
    "optipfair: visualize_bias, one pair",
    "optipfair: metrics alone, one pair",
    "bias.report, all pairs",
)


@contextlib.contextmanager
def counting(model: PreTrainedModel) -> Iterator[list[int]]:
    """Counts passes through the backbone."""
    passes: list[int] = []
    hook = model.base_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        hook.remove()


def measure(data: dict) -> None:
    from optipfair.bias import calculate_bias_metrics, get_activation_pairs, visualize_bias

    mpl.use("Agg")
    logging.getLogger("optipfair").setLevel(logging.WARNING)  # it tells of every hook
    model, tokenizer = load_model("llama", device="cpu")
    pairs = contrastive.pairs(AXIS, split="evaluation")
    equal = next(p for p in pairs if len(tokenizer(p.text_a).input_ids) == len(tokenizer(p.text_b).input_ids))
    texts = equal.text_a, equal.text_b  # optipfair compares texts of equal length only

    def drawn() -> None:
        visualize_bias(model, tokenizer, [texts], show_progress=False)
        mpl.pyplot.close("all")

    def metrics() -> None:
        calculate_bias_metrics(*get_activation_pairs(model, tokenizer, *texts))

    calls: dict[str, Callable[[], object]] = {
        DRAWN: drawn,
        METRICS: metrics,
        OURS: lambda: bias.report(model, tokenizer, [AXIS]),
    }
    count = len(pairs) + sum(len(contrastive.controls(kind, split="evaluation")) for kind in CONTROLS)
    data["pairs"] = {DRAWN: 1, METRICS: 1, OURS: count}
    with contextlib.redirect_stdout(io.StringIO()):
        data["passes"] = {}
        for name, call in calls.items():
            with counting(model) as passes:
                call()
            data["passes"][name] = len(passes)
        data["laps"] = take_turns(calls, rounds=MIN_ROUNDS)


def per_pair(data: dict, name: str) -> list[float]:
    return [lap / data["pairs"][name] for lap in data["laps"][name]]


def report(data: dict) -> str:
    rows = [
        [
            name,
            str(data["pairs"][name]),
            str(data["passes"][name]),
            f"{data['passes'][name] / data['pairs'][name]:.2g}",
            f"{median(data['laps'][name]):.2f}",
            f"{1000 * median(per_pair(data, name)):,.0f}",
            "1" if name == OURS else with_range(ratio(per_pair(data, name), per_pair(data, OURS)), 1),
        ]
        for name in data["laps"]
    ]
    header = ["way", "pairs", "passes", "passes a pair", "seconds", "ms a pair", "time a pair, × ours (95 %)"]
    return f"""Model: the embedded SmolLM2-135M in float32; axis "{AXIS}", with the controls {", ".join(CONTROLS)}.

{markdown_table(header, rows)}

Median of {MIN_ROUNDS} rounds in which the three took turns. A pass may hold many texts: ours are batches of pairs,
and endings of one template share a row, so passes say how often the model is run, and seconds what that costs. The
second line leaves optipfair's drawing out. Ours includes the statistics of all pairs together.
"""


def findings(data: dict) -> list[Finding]:
    drawn, metrics = (ratio(per_pair(data, name), per_pair(data, OURS)) for name in (DRAWN, METRICS))
    passes = f"{data['passes'][DRAWN]} and {data['passes'][OURS] / data['pairs'][OURS]:.2g}"
    return [
        Finding("forward passes a pair, optipfair's visualize_bias and ours", passes),
        Finding("optipfair's visualize_bias: time a pair, × ours", with_range(drawn, 1), f"≥ {BAR}", drawn[0] >= BAR),
        Finding(
            "optipfair's metrics alone: time a pair, × ours", with_range(metrics, 1), f"≥ {BAR}", metrics[0] >= BAR
        ),
    ]


QUESTION = Question(
    "bias_report",
    "What does a bias report cost beside optipfair's?",
    10,
    measure,
    report,
    findings,
    packages=("optipfair",),
)

if __name__ == "__main__":
    QUESTION.ask()
