"""Lesson 07's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exercise_cases import cases_of

from course_utils.distillation.losses import token_loss
from course_utils.exercises import lesson_07


def loss(
    student, teacher, ids, mask, temperature, alpha, *, kl=None, squared=2, flat=False, mean=torch.mean, after=None
):
    """The right answer, or with one option changed a wrong one."""
    real = mask.bool()
    counted = real[:, 1:] & real[:, :-1] if after is None else after(real)
    own, known = student[:, :-1][counted], teacher[:, :-1][counted]
    log_q, log_p = (logits.div(temperature).log_softmax(-1) for logits in (own, known))
    each = (log_p.exp() * (log_p - log_q)).sum(-1) if kl is None else kl(log_p, log_q)
    words = F.cross_entropy(own / temperature if flat else own, ids[:, 1:][counted], reduction="none")
    return mean((1 - alpha) * temperature**squared * each + alpha * words)


def with_package(student, teacher, ids, mask, temperature, alpha):
    counted = mask[:, 1:].bool() & mask[:, :-1].bool()
    options = {"temperature": temperature, "alpha": alpha}
    return token_loss(student[:, :-1][counted], teacher[:, :-1][counted], ids[:, 1:][counted], **options).mean()


def scaled(factor):
    """The right value times what the batch says."""
    return lambda *texts: loss(*texts) * factor(*texts[:4])


def predicted(mask):
    return (mask[:, 1:] * mask[:, :-1]).sum()


def unshifted(student, teacher, ids, mask, temperature, alpha):
    moved = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)  # the ids that are then taken at [1:] are those at [:-1]
    return loss(student, teacher, moved, mask, temperature, alpha)


def same_place(student, teacher, ids, mask, temperature, alpha):
    dropped = (torch.cat([logits[:, 1:], logits[:, :1]], dim=1) for logits in (student, teacher))
    return loss(*dropped, ids, mask, temperature, alpha)


def wrong_way(student, teacher, ids, mask, temperature, alpha):
    dropped = (torch.cat([logits[:, 1:], logits[:, :1]], dim=1) for logits in (student, teacher))
    moved = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
    return loss(*dropped, moved, mask, temperature, alpha)


def every_position(student, teacher, ids, mask, temperature, alpha):
    return token_loss(*(t[mask.bool()] for t in (student, teacher, ids)), temperature=temperature, alpha=alpha).mean()


def squared_words(student, teacher, ids, mask, temperature, alpha):
    kl, both = (loss(student, teacher, ids, mask, temperature, share) for share in (0.0, 1.0))
    return (1 - alpha) * kl + alpha * temperature**2 * both


def other_way(student, teacher, ids, mask, temperature, alpha):
    return loss(student, teacher, ids, mask, temperature, 1 - alpha)


def row_means(student, teacher, ids, mask, temperature, alpha):
    rows = zip(student, teacher, ids, mask, strict=True)
    return torch.stack([loss(*(tensor[None] for tensor in row), temperature, alpha) for row in rows]).mean()


def no_temperature(student, teacher, ids, mask, temperature, alpha):
    return loss(student, teacher, ids, mask, 1.0, alpha)


def both_in_full(student, teacher, ids, mask, temperature, alpha):
    return (
        sum(loss(student, teacher, ids, mask, temperature, share) for share in (0.0, 1.0))
        if alpha
        else loss(student, teacher, ids, mask, temperature, alpha)
    )


def dead(student, teacher, ids, mask, temperature, alpha):
    return loss(student.detach(), teacher, ids, mask, temperature, alpha)


def half_dead(student, teacher, ids, mask, temperature, alpha):
    words = alpha * loss(student, teacher, ids, mask, temperature, 1.0)
    kl = loss(student, teacher, ids, mask, temperature, 0.0)
    return words + (1 - alpha) * (kl.detach() if alpha else kl)


def distance(logits, teacher):
    log_q, log_p = logits.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()


def material(seed=0):
    """As the lesson's solution has it: other numbers, and only these, with another seed."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 64, 11, generator=generator)
    return student, teacher, torch.randint(11, (64,), generator=generator)


def gradient(loss, student, teacher, targets):
    logits = student.clone().requires_grad_()
    value = loss(logits, teacher, targets)
    return torch.autograd.grad(value, logits)[0] if value.requires_grad else torch.zeros_like(logits)


def teaches(loss, seed=0):
    student, teacher, targets = material(seed)
    pull = gradient(loss, student, teacher, targets) - gradient(loss, student, student, targets)
    if pull.norm() < 1e-6:
        return False
    return bool(distance(student - 0.01 * pull / pull.norm(), teacher) < distance(student, teacher))


def asks_requires_grad(loss):
    student, teacher, targets = material()
    return loss(student.requires_grad_(), teacher, targets).requires_grad


def asks_any_gradient(loss):
    return bool(gradient(loss, *material()).norm() > 0)


def asks_value(loss):
    student, teacher, targets = material()
    with torch.no_grad():
        return bool(loss((student + teacher) / 2, teacher, targets) < loss(student, teacher, targets))


def asks_teachers_gradient(loss):
    student, teacher, targets = material()
    differs = gradient(loss, student, teacher, targets) - gradient(loss, student, teacher.roll(1, 0), targets)
    return bool(differs.norm() > 1e-6)


def asks_step(loss, nearness=0.0):
    student, teacher, _ = material()
    student = student + nearness * (teacher - student)
    step = gradient(loss, student, teacher, teacher.argmin(-1))
    return bool(distance(student - 0.01 * step / step.norm().clamp(min=1e-9), teacher) < distance(student, teacher))


def asks_for_q_minus_p(loss):
    student, teacher, targets = material()
    expected = (student.softmax(-1) - teacher.softmax(-1)) / len(student)
    return torch.allclose(gradient(loss, student, teacher, targets), expected, atol=1e-6)


def long_steps(loss):
    student, teacher, targets = material()
    pull = gradient(loss, student, teacher, targets) - gradient(loss, student, student, targets)
    return bool(distance(student - 20 * pull, teacher) < distance(student, teacher))


def stops_at_the_dead(loss):
    student, teacher, targets = material()
    logits = student.clone().requires_grad_()
    pulls = [torch.autograd.grad(loss(logits, says, targets), logits)[0] for says in (teacher, student)]
    return bool((pulls[0] - pulls[1]).norm() > 1e-6)


def steps(parts):
    total = sum(counted.sum() for _, counted in parts)
    return [losses[counted].sum() / total for losses, counted in parts]


def safe_mean(losses, counted):
    return losses[counted].sum() / counted.sum().clamp(min=1)


test_distillation_loss = cases_of(
    lesson_07.check_distillation_loss,
    stubs=[lambda *_: ...],
    mistakes=[
        (lambda *t: loss(*t, mean=lambda each: each), "one number for the step"),
        (lambda *t: loss(*t).item(), "Return a tensor"),
        (lambda *t: loss(*t, after=lambda real: torch.ones_like(real[:, 1:])), "padding counts in yours"),
        (lambda *t: loss(*t, after=lambda real: real[:, 1:]), "only whether the next token is real"),
        (lambda *t: loss(*t, after=lambda real: real[:, :-1]), "only whether the token is real"),
        (scaled(lambda s, t, i, m: predicted(m) / m[:, 1:].numel()), "divide by all positions"),
        (scaled(lambda s, t, i, m: predicted(m) / len(m)), "divide by the rows"),
        (scaled(lambda s, t, i, m: predicted(m)), "that is the sum"),
        (scaled(lambda s, t, i, m: 1 / s.shape[-1]), "average over the vocabulary"),
        (row_means, "mean of the rows' means"),
        (lambda *t: loss(*t, kl=lambda p, q: (q.exp() * (q - p)).sum(-1)), "The teacher comes first"),
        (lambda *t: loss(*t, kl=lambda p, q: (p.exp() * (q - p)).sum(-1)), "wrong sign"),
        (lambda *t: loss(*t, kl=lambda p, q: -(p.exp() * q).sum(-1)), "the teacher's entropy"),
        (lambda *t: loss(*t, squared=0), "T² is missing"),
        (lambda *t: loss(*t, squared=1), "T², not T"),
        (lambda *t: no_temperature(*t) * (1 if t[5] else t[4] ** 2), "flattens nothing"),
        (no_temperature, "temperature is ignored"),
        (lambda *t: loss(*t, flat=True), "temperature 1, no flattening"),
        (squared_words, "not to the cross-entropy"),
        (other_way, "alpha is the share of the cross-entropy"),
        (unshifted, "compared with the token itself"),
        (same_place, "compared with the token itself"),
        (lambda *t: (loss if t[5] == 0 else wrong_way)(*t), "you shift the wrong way"),
        (every_position, "every real position counts"),
        (lambda *t: loss(*t[:5], 0.0) + t[5] * loss(*t[:5], 1.0), "the KL counts in full"),
        (both_in_full, "the KL counts in full"),
        (lambda *t: loss(*t) + 1, "for the check's random logits"),
        (dead, "has no gradient"),
        (half_dead, "a part of the loss is detached"),
        (lambda *t: loss(*t) / 0, "log_softmax"),
    ],
    answers=[loss, with_package],
)


test_teaches = cases_of(
    lesson_07.check_teaches,
    stubs=[lambda loss: ...],
    mistakes=[
        (lambda loss: 1, "Return True or False"),
        (lambda loss: True, "detached from the student"),
        (lambda loss: False, "refuses a loss that teaches: the forward KL, alone"),
        (asks_requires_grad, "knows no teacher"),
        (asks_any_gradient, "knows no teacher"),
        (asks_value, "Its value falls when the student comes nearer"),
        (asks_teachers_gradient, "pushes the student away"),
        (asks_step, "isn't the teacher's doing"),
        (lambda loss: asks_step(loss, nearness=0.8), "take their pull out"),
        (asks_for_q_minus_p, "fixed small length"),
        (long_steps, "fixed small length"),
        (stops_at_the_dead, "does not require grad"),
    ],
    answers=[teaches, lambda loss: torch.tensor(teaches(loss))],
)


test_step_losses = cases_of(
    lesson_07.check_step_losses,
    stubs=[lambda parts: None, lambda parts: [...]],
    mistakes=[
        (lambda parts: steps(parts)[0], "a list with one number for each batch"),
        (lambda parts: steps(parts)[:1], "a list with one number for each batch"),
        (lambda parts: [losses for losses, _ in parts], "a single number"),
        (lambda parts: [value.item() for value in steps(parts)], "must be a tensor"),
        (lambda parts: [losses[on].mean() / len(parts) for losses, on in parts], "has no mean of its own"),
        (lambda parts: [safe_mean(*part) / len(parts) for part in parts], "still the mean of the batches' means"),
        (
            lambda parts: [safe_mean(*part) / sum(bool(on.any()) for _, on in parts) for part in parts],
            "over the batches that have any",
        ),
        (lambda parts: [safe_mean(*part) for part in parts], "add up to too much"),
        (lambda parts: [losses[on].sum() for losses, on in parts], "those are sums"),
        (lambda parts: [losses[on].sum() / 48 for losses, on in parts], "divide by all positions"),
        (lambda parts: [losses[on].sum() / 6 for losses, on in parts], "divide by the rows"),
        (lambda parts: [value / len(parts) for value in steps(parts)], "once more by the number of batches"),
        (lambda parts: [losses.sum() / 23 for losses, _ in parts], "in your sum"),
        (lambda parts: [losses.sum() / 48 for losses, _ in parts], "in your mean"),
        (lambda parts: [value.detach() for value in steps(parts)], "backward() reaches nothing"),
        (lambda parts: [value + 1 for value in steps(parts)], "their sum should be"),
    ],
    answers=[steps, lambda parts: tuple(steps(parts))],
)


@pytest.mark.parametrize("seed", range(20))
def test_the_right_test_does_not_depend_on_luck(seed):
    assert all(teaches(loss, seed) for loss in lesson_07._LIVING)
    assert not any(teaches(loss, seed) for loss in lesson_07._DEAD)


test_not_shown = cases_of(
    lesson_07.check_not_shown,
    stubs=[..., None],
    mistakes=[
        (3, "letters from A to F"),
        ({"G"}, "letters from A to F"),
        (set("ABDE"), "A is shown"),
        (set("DE"), "B is not shown: no student learned"),
        (set("BCDE"), "C is shown"),
        (set("BE"), "D is not shown: the curve ends"),
        (set("BD"), "E is not shown: another model"),
        (set("BDEF"), "F is shown"),
    ],
    answers=[set("BDE"), ["E", "D", "B"], "BDE"],
)


CHANGES = {
    "the teacher helps": {"alpha": 1.0},
    "the choice of neurons helps": {"criterion": "random"},
    "it is more than the luck of one run": {"seed": 3},
}


def changed(**instead):
    return lambda arm, claim: arm | (CHANGES[claim] | instead)


def half_a_teacher(arm, claim):
    return arm | ({"alpha": 0.9} if "teacher" in claim else CHANGES[claim])


def another_criterion(arm, claim):
    return arm | ({"criterion": "l1"} if "neurons" in claim else CHANGES[claim])


def in_place(arm, claim):
    arm.update(CHANGES[claim])
    return arm


test_control = cases_of(
    lesson_07.check_control,
    stubs=[lambda arm, claim: ...],
    mistakes=[
        (lambda arm, claim: "alpha", "return a dict"),
        (in_place, "you changed the arm itself"),
        (lambda arm, claim: CHANGES[claim], "every setting of the arm"),
        (lambda arm, claim: dict(arm), "that is the arm itself"),
        (lambda arm, claim: arm | {"steps": 0}, "different amounts of text"),
        (changed(lr=1e-3), "yours differs in alpha, lr"),
        (lambda arm, claim: arm | {"seed": 5}, "Take the teacher away"),
        (half_a_teacher, "Take the teacher away altogether"),
        (another_criterion, "another criterion is a choice, too"),
        (lambda arm, claim: arm | (CHANGES[claim] if "luck" not in claim else {"seed": "x"}), "another whole number"),
    ],
    answers=[
        lambda arm, claim: arm | CHANGES[claim],
        lambda arm, claim: {**arm, **CHANGES[claim]},
    ],
)


def held_out_kl(settings):
    """A student whose best learning rate is 1e-3; rows differ, and so does what a row gains."""
    rows = np.linspace(0.6, 1.2, 8)
    distance = np.log10(settings.get("lr", 2e-4) / 1e-3) ** 2
    gain = 0.02 * np.sin(np.arange(8) + 50 * distance)
    return rows + 0.2 * distance + gain if settings.get("lr", 0) < 1 else rows * np.inf


test_better_recipe = cases_of(
    lambda settings: lesson_07.check_better_recipe(settings, held_out_kl),
    stubs=[...],
    mistakes=[
        ([("lr", 1e-3)], "as a dict"),
        ({}, "the baseline itself"),
        ({"steps": 60}, "steps can't be chosen"),
        ({"lr": 1e-3, "accumulate": 4}, "accumulate can't be chosen"),
        ({"lr": 1e-3, "mlps_only": False}, "more weights that learn"),
        ({"lr": 10.0}, "far too high"),
        ({"lr": 5e-5}, "farther from its teacher"),
        ({"lr": 2.05e-4}, "no difference is shown"),
        ({"lr": "much"}, "stopped with TypeError"),
    ],
    answers=[{"lr": 1e-3}, {"lr": 8e-4, "warmup": 0.3}],
)
