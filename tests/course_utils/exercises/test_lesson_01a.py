"""Lesson 01a's check refuses the stub, names the likely mistake, and accepts the answer."""

import torch
from exercise_cases import cases_of

from course_utils.exercises import lesson_01a


def shuffled(scores, seed, *, generator=None):
    generator = generator or torch.Generator().manual_seed(seed)
    return [some[torch.randperm(len(some), generator=generator)] for some in scores]


def shuffle_in_place(scores, seed):
    for some, new in zip(scores, shuffled(scores, seed), strict=True):
        some.copy_(new)
    return [some.clone() for some in scores]


def across_blocks(scores, seed):
    joined = torch.cat(scores)
    order = torch.randperm(len(joined), generator=torch.Generator().manual_seed(seed))
    return list(joined[order].split([len(some) for some in scores]))


test_shuffled = cases_of(
    lesson_01a.check_shuffled,
    stubs=[lambda scores, seed: ..., lambda scores, seed: [...]],
    mistakes=[
        (lambda scores, seed: [torch.rand_like(some) for some in scores], "no longer has its own scores"),
        (across_blocks, "no longer has its own scores"),
        (lambda scores, seed: scores, "nothing is random"),
        (shuffle_in_place, "changed the given scores"),
        (
            lambda scores, seed: [shuffled([some], seed)[0] for some in scores],
            "Every block gets the same order",
        ),
        (lambda scores, seed: shuffled(scores, seed, generator=torch.default_generator), "must be reproducible"),
        (lambda scores, seed: shuffled(scores, 7), "Use `seed`"),
        (lambda scores, seed: torch.cat(scores), "one tensor for each block"),
    ],
    answers=[shuffled],
)
