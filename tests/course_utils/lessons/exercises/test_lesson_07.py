"""Lesson 07's checks refuse the stub, name the likely mistake, and accept the answers."""

import numpy as np
import pytest
import torch
from exercise_cases import cases_of
from torch import nn

from course_utils.lessons.exercises import lesson_07
from course_utils.measuring import evaluate
from course_utils.models import load_model

refit = lesson_07.check_refit.answer


def stacked(kept, target, old, ridge):
    """The same by a least-squares solver, with the ridge as more rows."""
    pull = (ridge * kept.square().sum(0)).sqrt().diag()
    return torch.linalg.lstsq(torch.cat([kept, pull]), torch.cat([target, pull @ old.T])).solution.T


def small_ones_only(kept, target, old, ridge):
    """Right for the check's made-up tensors; a real block is wider."""
    return refit(kept, target, old, ridge) if kept.shape[1] < 10 else old


test_refit = cases_of(
    lesson_07.check_refit,
    *torch.randn(3, 24, 24),
    mistakes=[
        (small_ones_only, "For 24 tokens, 24 neurons and ridge 0.3: it is a tensor [24, 24] that begins with"),
        (lambda *given: refit(*given)[:, :-1], "Solve for all of its rows at once"),
        (lambda *given: refit(*given).tolist(), "Return a tensor"),
    ],
    answers=[stacked, lambda *given: refit(*(g.double() for g in given[:3]), given[3])],
)

kl_sum = lesson_07.check_kl_sum.answer


def then(change):
    return lambda *given: change(*kl_sum(*given))


test_kl_sum = cases_of(
    lesson_07.check_kl_sum,
    stubs=[lambda *_: (None, None)],
    mistakes=[
        (then(lambda total, count: total), "Return two values"),
        (then(lambda total, count: (total, count + 1)), "it is ["),
        (then(lambda total, count: (total.detach(), count)), "no gradient"),
        (then(lambda total, count: (total.item(), count)), "must be a tensor"),
        (then(lambda total, count: (1.01 * total, count)), "it is ["),
        (then(lambda total, count: (2 * total - total.detach(), count)), "its gradient isn't"),
    ],
    answers=[then(lambda total, count: (total, torch.tensor(count)))],
)


def lora(*, freeze="all", a=torch.randn, b=torch.zeros, scale=lambda rank, alpha: alpha / rank, known=True, **methods):
    """The answer, or with an option changed a likely mistake."""

    class Lora(nn.Module):
        def __init__(self, linear, rank, alpha):
            super().__init__()
            self.linear, self.scale = linear, scale(rank, alpha)
            if freeze == "all":
                linear.requires_grad_(False)
            elif freeze == "weight":
                linear.weight.requires_grad_(False)
            keep = nn.Parameter if known else nn.Identity().forward
            self.A, self.B = keep(a(rank, linear.in_features)), keep(b(linear.out_features, rank))

        def forward(self, x):
            return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)

        def merged(self):
            return self.linear.weight + self.scale * self.B @ self.A

    for name, method in methods.items():
        setattr(Lora, name, method)
    return Lora


class Stub(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()

    def forward(self, x): ...

    def merged(self): ...


test_lora = cases_of(
    lesson_07.check_lora,
    stubs=[Stub, lora(merged=lambda self: None)],
    mistakes=[
        (lora(freeze="nothing"), "own weight and bias still learns"),
        (lora(freeze="weight"), "own bias still learns"),
        (lora(known=False), "Nothing learns"),
        (lora(a=lambda rank, size: torch.randn(size, rank)), "What learns has the shapes"),
        (lora(a=torch.zeros), "A is 0 as well as B"),
        (lora(b=torch.randn), "B isn't 0 at first"),
        (lora(forward=lambda self, x: x @ self.linear.weight.T), "bias included"),
        (lora(scale=lambda rank, alpha: 1), "alpha / rank is missing"),
        (lora(scale=lambda rank, alpha: alpha), "you multiply with alpha"),
        (lora(scale=lambda rank, alpha: rank / alpha), "not rank / alpha"),
        (lora(scale=lambda rank, alpha: 5), "doesn't say W x"),
        (lora(forward=lambda self, x: self.linear(x)), "the correction isn't added"),
        (lora(merged=lambda self: self.scale * self.B @ self.A), "correction alone"),
        (lora(merged=lambda self: self.linear.weight + self.B @ self.A), "merged(): alpha / rank is missing"),
        (lora(merged=lambda self: self.linear.weight), "merged(): the correction isn't added"),
        (lora(merged=lambda self: 2 * self.linear.weight), "isn't the weight whose layer"),
    ],
    answers=[lora(), lora(a=torch.ones)],
)


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


def long_steps(loss):
    student, teacher, targets = material()
    pull = gradient(loss, student, teacher, targets) - gradient(loss, student, student, targets)
    return bool(distance(student - 20 * pull, teacher) < distance(student, teacher))


test_teaches = cases_of(
    lesson_07.check_teaches,
    mistakes=[
        (lambda loss: True, "detached from the student"),
        (lambda loss: False, "refuses a loss that teaches: the forward KL, alone"),
        (asks_any_gradient, "knows no teacher"),
        (asks_value, "Its value falls when the student comes nearer"),
        (asks_teachers_gradient, "pushes the student away"),
        (asks_step, "isn't the teacher's doing"),
        (lambda loss: asks_step(loss, nearness=0.8), "take their pull out"),
        (long_steps, "fixed small length"),
    ],
    answers=[teaches, lambda loss: torch.tensor(teaches(loss))],
)


@pytest.mark.parametrize("seed", range(5))
def test_the_right_test_does_not_depend_on_luck(seed):
    assert all(teaches(loss, seed) for loss in lesson_07._LIVING)
    assert not any(teaches(loss, seed) for loss in lesson_07._DEAD)


class MadeUpExam:
    """Stories help last words where they score and where they solve; without speeches other text pays."""

    def __init__(self, left=3):
        self.left = left

    def lost(self, plan):
        stories = [rows.get("stories", 0) / sum(rows.values()) for rows in plan]
        speeches = min(rows.get("speeches", 0) / sum(rows.values()) for rows in plan)
        return np.linspace(5, 7, 20) - 4 * min(stories), 0.5 + (0.3 if speeches < 0.2 else 0)


GOOD = ({"speeches": 8, "stories": 8}, {"speeches": 6, "stories": 6})


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (..., "not solved yet"),
        (({"speeches": 16},), "Give two dictionaries"),
        (({"speeches": 16}, 12), "Give two dictionaries"),
        (({"novels": 16}, {"speeches": 12}), "The kinds are"),
        (({"wiki": 16}, {"wiki": 0}), "at least one row"),
        (({"wiki": 16}, {"wiki": 13}), "At most 12 rows solve; yours are 13"),
        (({"wiki": 16.5}, {"wiki": 12}), "Say how many rows"),
        (({"wiki": 16}, {"wiki": 12}), "isn't shown"),
        (({"speeches": 12, "stories": 4}, {"speeches": 9, "stories": 3}), "by less than"),
        (({"stories": 16}, {"stories": 12}), "speeches and wiki pay"),
        (GOOD, "correct"),
    ],
)
def test_plan(plan, said, capsys):
    assert lesson_07.check_plan(plan, MadeUpExam()) is (said == "correct")
    assert said in capsys.readouterr().out


def test_the_exam_judges_a_few_times_only(capsys):
    exam = MadeUpExam(left=1)
    assert [lesson_07.check_plan(plan, exam) for plan in (({"wiki": 16}, {"wiki": 12}), GOOD)] == [False] * 2
    assert "The exam is over" in capsys.readouterr().out.splitlines()[-1]


def test_the_exam_asks_other_passages_and_builds_each_plan_once(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    monkeypatch.setattr(lesson_07, "_ASKED", 5)
    model, tokenizer = load_model("llama", device="cpu")
    asked = []
    exam = lesson_07.PurposeExam(
        lambda plan: asked.append(plan) or model,
        tokenizer,
        practised=evaluate(model, tokenizer, "lambada_openai", limit=2),
    )
    words, _ = exam.lost(GOOD)
    assert len(words) == 3
    assert exam.lost(GOOD)[0] is words and asked == [GOOD]


def of_all(leaf, part):
    return len(leaf)


def in_chunks(states, loss_of, size, *, detach=True, over=of_all, inside=True, hand_on=True, stop=None, step=None):
    leaf = states.detach().requires_grad_() if detach else states
    total, losses = 0.0, []
    for start in range(0, stop or len(leaf), step or size):
        part = leaf[start : start + size]
        loss = loss_of(part, start) / over(leaf, part)
        total += loss.item()
        losses.append(loss)
        if inside:
            loss.backward()
    if not inside:
        sum(losses).backward()
    if detach and hand_on:
        states.backward(leaf.grad)
    return total


def chunked(**options):
    return lambda *given: in_chunks(*given, **options)


def all_at_once(states, loss_of, _size):
    loss = loss_of(states, 0) / len(states)
    loss.backward()
    return loss


def without_the_rest(states, loss_of, size):
    return in_chunks(states, loss_of, size, stop=len(states) // size * size or len(states))


def twice(states, loss_of, size):
    in_chunks(states, loss_of, size)
    return in_chunks(states, loss_of, size)


test_chunks = cases_of(
    lesson_07.check_chunks,
    mistakes=[
        (all_at_once, "at most 4 are allowed"),
        (chunked(inside=False), "before the gradient of the last is taken"),
        (chunked(detach=False), "Detach the states first"),
        (chunked(hand_on=False), "the body has none"),
        (chunked(over=lambda leaf, part: len(part)), "the gradients aren't those of the mean"),
        (without_the_rest, "token 8 and 2 in all were never asked for"),
        (twice, "The body's backward pass has run"),
        (chunked(step=3), "asked for twice"),
        (lambda *given: 2 * in_chunks(*given), "the mean loss is"),
    ],
    answers=[in_chunks],
)
