"""Lesson 06's checks refuse the stub, name the likely mistake, and accept the answers."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from exercise_cases import cases_of

from course_utils.architectures import cache_keyword
from course_utils.attention import bypass_attention
from course_utils.exercises import lesson_06
from course_utils.models import tiny_llama, variant
from course_utils.policies import by_price, cache_saved, length_rule, outcome, static_harm
from course_utils.prompt_harm import Record


def score(embeddings, log_length, variance, *, log=True, spread=None, cut=True, cut_mean=False, total=False):
    length = torch.tensor(float(len(embeddings)))
    spread = (spread or (lambda e: e.var(0, unbiased=False).mean()))(embeddings)
    pair = [(length.log() if log else length, log_length), (spread, variance)]
    scaled = torch.stack([(value - low) / (high - low) for value, (low, high) in pair])
    scaled = scaled.clamp(0, 1) if cut else scaled
    found = scaled.sum() if total else scaled.mean()
    return found.clamp(0, 1) if cut_mean else found


def scored(**options):
    return lambda embeddings, **ranges: score(embeddings, **ranges, **options)


test_score = cases_of(
    lesson_06.check_score,
    stubs=[lambda *_, **__: None],
    mistakes=[
        (scored(spread=lambda e: e.var(0).mean()), "divides by one less than the number of tokens"),
        (scored(spread=lambda e: e.var(1, unbiased=False).mean()), "over the components of each token"),
        (scored(spread=lambda e: e.var(1).mean()), "over the components of each token"),
        (scored(spread=lambda e: e.var(unbiased=False)), "all numbers together"),
        (scored(spread=lambda e: e.var()), "all numbers together"),
        (scored(spread=lambda e: e.var(0, unbiased=False).mean().sqrt()), "standard deviation"),
        (scored(log=False), "*logarithm*"),
        (scored(cut=False), "you don't cut off"),
        (scored(cut=False, cut_mean=True), "you cut off the mean"),
        (scored(total=True), "the sum"),
        (lambda e, **r: 0.9 * score(e, **r), "the score is"),
        (lambda e, **r: torch.stack([score(e, **r)] * 2), "one number for the prompt"),
    ],
    answers=[score, lambda e, **r: float(score(e, **r)), lambda e, **r: np.float64(score(e, **r))],
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


def never(model, order, decide):
    return variant(model)


def an_order_of_its_own(model, order, decide):
    """Right in the check's tiny model, whose order it knows."""
    return adaptive(model, [3, 1, 4], decide)


REAL = tiny_llama(blocks=6)
test_adaptive = cases_of(
    partial(lesson_06.check_adaptive, real=REAL),
    stubs=[lambda *_: None],
    mistakes=[
        (adapted(fresh=lambda cache, ids: True), "decides again at a later pass, where it sees one token"),
        (
            adapted(fresh=lambda cache, ids: ids.shape[1] > 1),
            "A prompt of 1 tokens, with a cache: your hook stopped with",
        ),
        (adapted(kept=False), "keep it with the cache"),
        (adapted(copy=lambda model: model), "The given model has changed"),
        (adapted(take=lambda order, n: order[::-1][:n]), "no static bypass of `order`'s first ones"),
        (adapted(take=lambda order, n: order[: n - 1]), "yours leaves out 2"),
        (adapted(guard=False), "without a cache: your hook stopped with"),
        (never, "never calls decide"),
        (an_order_of_its_own, "but the real one, without attentions [5, 4]"),
        (lambda model, order, decide: (model,), "yours returned a tuple"),
    ],
    answers=[adaptive],
)


def test_a_later_pass_of_several_tokens_is_no_beginning(capsys):
    def mostly(cache, ids):
        return cache is None or cache.get_seq_length() == 0 or ids.shape[1] > 2

    assert not lesson_06.check_adaptive(adapted(fresh=mostly), REAL)
    assert "decides again at a later pass, where it sees 3 tokens" in capsys.readouterr().out


def share(tokens, left_out, blocks):
    return sum(t * n for t, n in zip(tokens, left_out, strict=True)) / blocks / sum(tokens)


test_share = cases_of(
    lesson_06.check_saved_share,
    stubs=[lambda *_: None],
    mistakes=[
        (lambda t, n, b: sum(n) / len(n) / b, "mean over prompts"),
        (lambda t, n, b: share(t, n, b) * b, "mean token"),
        (lambda t, n, b: 1 - share(t, n, b), "what stays"),
        (lambda t, n, b: share(t, n, b) * sum(t), "Divide by all the tokens"),
        (lambda t, n, b: 100 * share(t, n, b), "in percent"),
        (lambda t, n, b: share(t, n, 30), "of 16, "),
        (lambda t, n, b: 0.5, "is saved; yours is"),
    ],
    answers=[share, lambda t, n, b: np.dot(t, n) / (b * np.sum(t))],
)


def rule(curve, numbers, price, answer, *, slope_from=None, every=False, sign=-1, per_layer=True, times=False):
    harm, levels, thresholds = dict(zip(numbers, curve, strict=True)), [0], []
    while levels[-1] != max(numbers):
        last = levels[-1]
        base = last if slope_from is None else slope_from
        slopes = {k: (harm[k] - harm[base]) / ((k - base) if per_layer else 1) for k in numbers if k > last}
        best = min(k for k in slopes) if every else min(slopes, key=lambda k: slopes[k] if per_layer else slopes[k] / k)
        levels.append(best)
        begin = slopes[best] * price if times else slopes[best] / price
        thresholds.append(begin + sign * answer)
    return levels, thresholds


def ruled(**options):
    return lambda *given: rule(*given, **options)


test_length_rule = cases_of(
    lesson_06.check_length_rule,
    stubs=[lambda *_: None],
    mistakes=[
        (ruled(sign=0), "you forgot the answer"),
        (ruled(sign=-2), "taken off twice"),
        (ruled(times=True), "slope / price"),
        (ruled(every=True), "you keep every number"),
        (lambda c, n, p, a: (list(length_rule(c, n, p, a)[0])[1:], length_rule(c, n, p, a)[1]), "the first level is 0"),
        (lambda c, n, p, a: (length_rule(c, n, p, a)[0], [1.0]), "want"),
        (lambda c, n, p, a: ([0, 8], [100.0]), "the levels are"),
        (lambda c, n, p, a: [0], "Return two lists"),
        (
            lambda c, n, p, a: (length_rule(c, n, p, a)[0], [t + 30 for t in length_rule(c, n, p, a)[1]]),
            "decides otherwise",
        ),
        (
            lambda c, n, p, a: (
                length_rule(c, n, p, a)[0],
                [c[n.index(k)] / k / p - a for k in length_rule(c, n, p, a)[0][1:]],
            ),
            "each slope from 0",
        ),
        (
            lambda c, n, p, a: (
                length_rule(c, n, p, a)[0],
                (np.diff([c[n.index(k)] for k in length_rule(c, n, p, a)[0]]) / p - a).tolist(),
            ),
            "for each layer",
        ),
    ],
    answers=[rule, length_rule, lambda *given: tuple(np.array(part) for part in length_rule(*given))],
)


def a_record():
    generator = np.random.default_rng(0)
    tokens = np.exp(generator.uniform(0, 7, 90)).astype(int) + 1
    harm = np.array([0.0, 0.04, 0.14, 0.19, 0.38]) * generator.uniform(0.7, 1.3, (90, 1))
    names = np.array([str(number) for number in range(90)])
    return Record(
        settings={},
        choosing=40,
        kinds=names,
        documents=names,
        digests=names,
        numbers=(0, 1, 3, 5, 8),
        tokens=tokens,
        answer_tokens=generator.integers(40, 64, 90),
        harm=harm,
        complexity=np.zeros(90),
        published=np.array([], dtype=int),
    )


RECORD = a_record()
USUAL = RECORD.split()[0].answer_tokens.mean()


def advantage(answer, *, rule_of=None, ask=None, sign=1, ratio=False, a_tenth=0.1):
    other = replace(RECORD, answer_tokens=np.full(90, answer))
    _, judge = other.split()
    saved = cache_saved(judge, 30)
    gone, harm = outcome(judge.harm, saved, by_price(rule_of or other, 30, a_tenth)[0])
    alike = float(static_harm(judge.harm, saved, ask or gone))
    return harm / alike if ratio else sign * (alike - harm)


THIRD = next(answer for answer in range(100, 9000, 100) if advantage(answer) < advantage(USUAL) / 3)


def check_enough(attempt):
    return lesson_06.check_enough(*attempt, RECORD, 30)


test_enough = cases_of(
    check_enough,
    stubs=[(lambda *_: None, ...), (advantage, ...)],
    mistakes=[
        ((lambda answer: advantage(answer, sign=-1), THIRD), "the sign is turned round"),
        ((lambda answer: advantage(answer, ask=0.1), THIRD), "doesn't save just a tenth"),
        ((lambda answer: advantage(answer, ratio=True), THIRD), "that is a ratio"),
        ((lambda answer: advantage(USUAL), THIRD), "it is what it was"),
        ((lambda answer: advantage(answer, a_tenth=0.15), THIRD), "nats; yours is"),
        ((str, THIRD), "must return one number"),
        ((advantage, THIRD + 100), "An earlier hundred is below it already"),
        ((advantage, THIRD - 100), "It must fall below that"),
        ((advantage, 55), "a multiple of 100"),
        ((advantage, "300"), "a multiple of 100"),
    ],
    answers=[(advantage, THIRD), (lambda answer: np.float64(advantage(answer)), np.int64(THIRD))],
)
