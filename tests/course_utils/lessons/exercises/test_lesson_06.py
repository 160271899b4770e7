"""Lesson 06's checks refuse the stub, name the likely mistake, and accept the answers."""

from functools import partial

import numpy as np
from exercise_cases import cases_of

from course_utils.lessons.exercises import lesson_06
from course_utils.lessons.policies import length_rule
from course_utils.lessons.prompt_harm import Record
from course_utils.models.architectures import cache_keyword
from course_utils.models.loading import tiny_llama, variant
from course_utils.pruning.attention import bypass_attention

test_score = cases_of(lesson_06.check_score)
test_share = cases_of(lesson_06.check_saved_share)

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


def every_number(curve, numbers, price, answer):
    return numbers, (np.diff(curve) / np.diff(numbers) / price - answer).tolist()


def ruled(change):
    return lambda *given: change(*length_rule(*given))


test_length_rule = cases_of(
    lesson_06.check_length_rule,
    mistakes=[
        (every_number, "you keep every number"),
        (ruled(lambda levels, begins: (levels, [1.0])), "yours is [[0, 1, 3, 5, 8], [1]]"),
        (ruled(lambda levels, begins: (levels[1:], begins)), "the levels are"),
        (ruled(lambda levels, begins: (levels, [begin + 30 for begin in begins])), "it is [["),
    ],
    answers=[length_rule, ruled(lambda levels, begins: (np.array(levels), np.ceil(begins)))],
)


def a_record():
    generator, names = np.random.default_rng(0), np.array([str(number) for number in range(90)])
    return Record(
        settings={},
        choosing=40,
        kinds=names,
        documents=names,
        digests=names,
        numbers=(0, 1, 3, 5, 8),
        tokens=np.exp(generator.uniform(0, 7, 90)).astype(int) + 1,
        harm=np.array([0.0, 0.04, 0.14, 0.19, 0.38]) * generator.uniform(0.7, 1.3, (90, 1)),
        answer_tokens=generator.integers(40, 64, 90),
        complexity=np.zeros(90),
        published=np.array([], dtype=int),
    )


RECORD = a_record()
advantage = partial(lesson_06.check_enough.answer, RECORD, 30)
USUAL = lesson_06._usual(RECORD)
THIRD = next(answer for answer in range(100, 9000, 100) if advantage(answer) < advantage(USUAL) / 3)
test_enough = cases_of(
    lambda attempt: lesson_06.check_enough(*((...,) * 2 if attempt is ... else attempt), RECORD, 30),
    stubs=[(lambda *_: None, ...), (advantage, ...)],
    mistakes=[
        *(((partial(wrong, RECORD, 30), THIRD), said) for wrong, said in lesson_06.check_enough.mistakes),
        ((lambda answer: 2 * advantage(answer), THIRD), "Every answer has that many tokens"),
        ((advantage, THIRD + 100), "An earlier hundred is below it already"),
        ((advantage, THIRD - 100), "It must fall below that"),
        ((advantage, 55), "a multiple of 100"),
    ],
    answers=[(advantage, THIRD), (lambda answer: np.float64(advantage(answer)), np.int64(THIRD))],
)
