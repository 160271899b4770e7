"""Lesson 06's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import pytest
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_06
from course_utils.lessons.prompt_harm import Record
from course_utils.models.architectures import cache_keyword
from course_utils.models.loading import tiny_llama, variant
from course_utils.pruning.attention import bypass_attention


def every_coin(harm, bill, choice):
    """Another way: each pair of numbers, and each weight."""
    rows, weights = np.arange(len(choice)), np.linspace(0, 1, 20_001)
    saved, own = bill[rows, choice].sum(), harm[rows, choice].mean()
    coins = [
        np.stack([weights * bill[:, i].sum(), weights * harm[:, i].mean()])
        + np.stack([(1 - weights) * bill[:, j].sum(), (1 - weights) * harm[:, j].mean()])
        for i in range(bill.shape[1])
        for j in range(bill.shape[1])
    ]
    saves, costs = np.concatenate(coins, axis=1)
    return own / costs[saves >= saved - 1e-9].min()


test_score = cases_of(lesson_06.check_score)
test_at_equal_cost = cases_of(
    lesson_06.check_at_equal_cost,
    mistakes=[(lambda harm, bill, choice: np.ones(2), "Return one number")],
    answers=[every_coin],
)

CACHE = cache_keyword(tiny_llama())


def adaptive(model, order, decide, *, fresh=None, kept=True, copy=variant, take=lambda order, n: order[:n], guard=True):
    """The answer, and what goes wrong with it."""
    model, now = copy(model), {}

    def begins(cache, ids):
        return cache is None or cache.get_seq_length() == 0

    def before(backbone, inputs, named):
        cache, ids = named.get(CACHE), named["input_ids"]
        if (fresh or begins)(cache, ids):
            now["number"] = decide(ids)
        elif kept:
            now["number"] = cache.left_out
        bypass_attention(model, take(order, now["number"]))

    def after(backbone, inputs, output):
        cache = output.get(CACHE) if guard else output[CACHE]
        if not guard or cache is not None:
            cache.left_out = now["number"]

    model.model.register_forward_pre_hook(before, with_kwargs=True)
    model.model.register_forward_hook(after)
    return model


def adapted(**options):
    return lambda model, order, decide: adaptive(model, order, decide, **options)


def after_two_tokens(cache, ids):
    return cache is None or cache.get_seq_length() == 0 or ids.shape[1] > 2


def several_tokens(cache, ids):
    return ids.shape[1] > 1


test_adaptive = cases_of(
    lesson_06.check_adaptive,
    tiny_llama(blocks=6),
    mistakes=[
        (adapted(fresh=lambda cache, ids: True), "decides again at a later pass, where it sees one token"),
        (adapted(fresh=after_two_tokens), "decides again at a later pass, where it sees 3 tokens"),
        (adapted(fresh=several_tokens), "A prompt of one token, with a cache: Your code stopped with"),
        (adapted(kept=False), "keep it with the cache"),
        (adapted(copy=lambda model: model), "The given model has changed"),
        (adapted(take=lambda order, n: order[::-1][:n]), "no static bypass of `order`'s first ones"),
        (adapted(take=lambda order, n: order[: n - 1]), "yours leaves out 2"),
        (adapted(guard=False), "without a cache: Your code stopped with"),
        (lambda model, order, decide: variant(model), "never calls decide"),
        (lambda model, order, decide: adaptive(model, [3, 1, 4], decide), "the real one, without attentions [5, 4]"),
    ],
    answers=[adaptive],
)


def by_price(curve, numbers, units, layers, *, finish=lambda rule, units: rule):
    def at(price, units):
        return numbers[(curve - price * units[:, None] * numbers).argmin(1)]

    prices = np.geomspace(1e-6, 1e3, 5000) / units.mean()
    price = next(price for price in prices if (units * at(price, units)).sum() >= layers * units.sum())
    return finish(lambda units: at(price, units), units)


test_by_price = cases_of(
    lesson_06.check_by_price,
    mistakes=[
        (lambda *given: by_price(*given, finish=lambda rule, units: rule(units)), "Return a function that takes units"),
        (lambda *given: by_price(*given, finish=lambda rule, units: lambda _: rule(units)), "your rule returns the"),
        (lambda *given: lambda units: 0.5 + 0 * units, "The rule chooses among [0, 1, 3, 5, 8]"),
        (lambda *given: lambda units: 3 + 0 * units, "Take the lowest price"),
        (lambda *given: lambda units: units[:, 7], "Your code stopped with IndexError"),
    ],
    answers=[by_price],
)


RECORD, OTHERS = (Record.load(seed=seed) for seed in (0, 1))


def an_exam(**options):
    return lesson_06.ServerExam(RECORD, OTHERS, 30, **options)


COUNT = len(an_exam().tokens)


def by_units(units):
    """The rule with a price, told how many units a prompt of so many tokens has."""
    curve, numbers = RECORD.split()[0].harm.mean(0), np.array(RECORD.numbers)

    def left_out(exam):
        return by_price(curve, numbers, units(exam, exam.log["tokens"].to_numpy()), 3.0)(units(exam, exam.tokens))

    return left_out


def by_the_log(exam, tokens):
    hill = np.polyfit(np.log(exam.log["tokens"]), np.log(exam.log["answer"]), 3)
    return np.exp(np.polyval(hill, np.log(tokens)))


def by_thirds(exam, left_out=(8, 3, 0)):
    """The plausible score's numbers, by length."""
    return np.array(left_out)[np.searchsorted(np.quantile(exam.tokens, [1 / 3, 2 / 3]), exam.tokens, side="right")]


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda exam: ..., "not solved yet"),
        (lambda exam: 3, f"Give one number for each of the {COUNT} prompts"),
        (lambda exam: np.full(COUNT, 2), "choose among them"),
        (lambda exam: np.zeros(COUNT), "At least 8% must be saved"),
        (by_units(lambda exam, tokens: tokens + 55.0), "At least 8% must be saved"),  # the rule for the cache
        (lambda exam: np.full(COUNT, 3), "Who writes how much?"),
        (lambda exam: np.random.default_rng(0).choice([0, 3, 8], COUNT), "Who writes how much?"),
        (by_thirds, "At least 8% must be saved"),
        (lambda exam: by_thirds(exam, (0, 3, 8)), "Who writes how much?"),
        (lambda exam: np.where(exam.tokens > 70, 5, 0), "Who writes how much?"),
        (by_units(by_the_log), "correct"),
        (lambda exam: by_units(by_the_log)(exam).tolist(), "correct"),
    ],
)
def test_left_out(attempt, said, capsys):
    exam = an_exam()
    assert lesson_06.check_left_out(attempt(exam), exam) is (said == "correct")
    assert said in capsys.readouterr().out


def test_the_exam_judges_a_few_times_only(capsys):
    exam = an_exam(tries=2)
    right = by_units(by_the_log)(exam)
    verdicts = [lesson_06.check_left_out(left_out, exam) for left_out in (np.zeros(COUNT), np.full(COUNT, 8), right)]
    assert verdicts == [False] * 3
    assert "The exam is over" in capsys.readouterr().out.splitlines()[-1]


def test_the_exam_has_other_prompts_than_the_lesson():
    used = {*RECORD.digests}
    assert sum(digest not in used for digest in OTHERS.split()[1].digests) == COUNT
    assert len(lesson_06.ServerExam(RECORD, None, 30).tokens) == len(RECORD.split()[1].tokens)
