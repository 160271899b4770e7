"""Lesson 14's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import pytest
from exercise_cases import cases_of
from tiny import tiny_batches, tiny_model

from course_utils.compress import Candidate
from course_utils.lessons.exercises import lesson_14
from course_utils.lessons.exercises.lesson_14 import _parameters, check_trial
from course_utils.measuring.evaluation import perplexity
from course_utils.models.loading import tiny_llama
from course_utils.support.uncertainty import ratio_interval

test_norm_factor = cases_of(lesson_14.check_norm_factor)
test_parameters = cases_of(lesson_14.check_parameters)


def test_parameters_are_those_of_a_model():
    model = tiny_model("llama")
    sizes, config = Candidate.of(model), model.config
    queries = config.num_attention_heads // config.num_key_value_heads
    model.config.tie_word_embeddings = True
    model.tie_weights()
    counted = _parameters(*sizes.sizes.values(), queries, config.head_dim, config.vocab_size)
    assert counted == model.num_parameters()


def without_end(cost, full, budget, step):
    low, high = 0, full // step
    while low < high:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle * step) <= budget else (low, middle - 1)
    return low * step


def one_by_one(cost, full, budget, step):
    widths = [*range(step, full, step), full]
    return max([width for width in widths if cost(width) <= budget], default=0)


widest = lesson_14.check_widest.answer
test_widest = cases_of(
    lesson_14.check_widest,
    mistakes=[
        (lambda *given: widest(*given) + 1, "It is a multiple of 32"),
        (lambda cost, full, budget, step: widest(cost, full, budget, step) or step, "one step too far"),
        (lambda cost, full, budget, step: 2 * step, "it is"),
        (one_by_one, "Halve what is left"),
        (without_end, "the search never ends"),
    ],
)

CONTROLS = dict(zip("ABCDEF", lesson_14.ARMS, strict=False))
CONTROLS |= {"C": "none of them", "G": "two differences", "H": "none of them"}

test_controls = cases_of(
    lesson_14.check_controls,
    stubs=[dict.fromkeys("ABCDEFGH", ...)],
    mistakes=[
        ({"A": "random cut"}, "Nothing is said about B"),
        (CONTROLS | {"A": "cross-entropy"}, "There is no 'cross-entropy'"),
        (CONTROLS | {"A": "from scratch"}, "Look at A"),
        (CONTROLS | {"G": "none of them"}, "Which of the two was it?"),
    ],
    answers=[{letter.lower(): arm.upper() for letter, arm in CONTROLS.items()}],
)


FRESH, USED = (perplexity(tiny_llama(), tiny_batches(rows=12, size=6, seed=seed)) for seed in (1, 2))
WORDS = {1: "better", 0: "no difference shown", -1: "worse"}


def trial(gain, *, noise=0.1, turned=0, draws=3, parameters=900, rows=FRESH, **reported):
    """Runs of two versions, mine better by `gain` nats a row with each draw but `turned` ones, and the report."""
    draw = np.random.default_rng(0)
    runs = {"mine": [], "best": []}
    for number in range(draws):
        gains = gain * (-1 if number < turned else 1) + noise * draw.normal(size=len(rows.row_nll))
        for arm, nats in (("best", rows.row_nll + 0.01 * number), ("mine", rows.row_nll + 0.01 * number - gains)):
            runs[arm].append(type(rows)(**vars(rows) | {"row_nll": nats}))
    gaps = np.array([b.row_nll - m.row_nll for b, m in zip(runs["best"], runs["mine"], strict=True)])
    _, _, low, high = ratio_interval(gaps.mean(0), rows.row_tokens)
    sides = {*np.sign(gaps.sum(1))}
    said = WORDS[int(sides.pop()) if len(sides) == 1 and low * high > 0 else 0]
    return Candidate(2, 32, 2, 48, parameters=parameters), runs, {"said": said, "low": low, "high": high} | reported


def with_runs(change):
    """A trial in which one thing was done to the runs."""
    mine, runs, report = trial(1.0)
    change(runs)
    return mine, runs, report


def same_model(runs):
    runs["mine"] = runs["best"]


def one_model(runs):
    runs["best"] = runs["best"][:1] * 3


def one_on_used_rows(runs):
    runs["best"][2] = USED


def one_on_few_rows(runs):
    runs["best"][2] = perplexity(tiny_llama(), tiny_batches(rows=3, seed=1))


MINE, RUNS, REPORT = trial(1.0)


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (trial(1.0), "correct"),
        (trial(-1.0), "correct"),
        (trial(0.0), "correct"),
        (trial(1.0, turned=1), "correct"),
        (trial(0.0, said="better"), "that is 'no difference shown'"),
        (trial(1.0, turned=1, noise=0.01, said="better"), "2 of 3 draws"),
        (trial(1.0, said="great"), "is one of better"),
        (trial(1.0, low=-9.0), "low: the runs give"),
        (trial(1.0, low=-REPORT["high"], high=-REPORT["low"]), "turned round"),
        ((MINE, RUNS, {"said": "better"}), "said, low and high"),
        (trial(1.0, draws=1), "3 for each"),
        (trial(1.0, parameters=1001), "the budget is 1,000"),
        (trial(1.0, rows=USED), "Those rows chose"),
        (with_runs(same_model), "Both arms are the same model"),
        (with_runs(one_model), '"best" is the same model more than once'),
        (with_runs(one_on_used_rows), "Those rows chose"),
        (with_runs(one_on_few_rows), "on all of `fresh_rows`"),
        ((..., ..., ...), "not solved yet"),
    ],
)
def test_trial(made, verdict, capsys):
    mine, *attempt = made
    solved = check_trial(*attempt, mine=mine, budget=1000, fresh=FRESH, used=USED)
    out = capsys.readouterr().out
    assert verdict in out, out
    assert solved is (verdict == "correct")
