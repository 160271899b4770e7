"""Lesson 07's checks refuse the stub, name the likely mistake, and accept the answers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from exercise_cases import cases_of
from torch import nn

from course_utils.lessons.exercises import lesson_07
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


def in_a_loop(ids, written):
    """The same, place by place; a token that comes once gets what isn't a number."""
    others = [[other for other in range(len(ids)) if ids[other] == token and other != place]
              for place, token in enumerate(ids)]  # fmt: skip
    return torch.stack([written[places].mean(0) for places in others])


test_mean_elsewhere = cases_of(
    lesson_07.check_mean_elsewhere,
    mistakes=[
        (lambda ids, written: written.tolist(), "Return a tensor"),
        (lambda ids, written: written[:, 0], "Return [tokens, hidden] = [30, 3]"),
        (lambda ids, written: written, "where a token comes again: it is a tensor"),
    ],
    answers=[in_a_loop],
)

TABLE = torch.zeros(30, 2)
READ = torch.arange(0, 30, 3).repeat(2)  # each third token, twice
TABLE[READ] = torch.arange(1.0, 61)[:20].view(10, 2).repeat(2, 1)


def moved(table, ids, by=1):
    names, found = ids.unique(), table.clone()
    found[names] = table[names.roll(by)]
    return found


def in_place(table, ids):
    table.copy_(moved(table, ids))
    return table


def one_stays(table, ids):
    return moved(table, ids[ids != ids[0]])


test_control = cases_of(
    lesson_07.check_control,
    TABLE,
    READ,
    mistakes=[
        (lambda table, ids: table.tolist(), "Return a table"),
        (lambda table, ids: table[1:], "The table must be [40, 3]"),
        (in_place, "Work on a copy"),
        (lambda table, ids: table.clone(), "as it was"),
        (lambda table, ids: table[ids].mean(0).expand_as(table), "One row for all"),
        (lambda table, ids: table.roll(1, 0), "never read have rows"),
        (lambda table, ids: 2 * moved(table, ids), "The rows aren't the ones"),
        (lambda table, ids: moved(table, ids).roll(1, 1), "The rows aren't the ones"),
        (one_stays, "1 of 12 tokens have kept their own row"),
    ],
    answers=[moved, lambda *given: moved(*given, by=3)],
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
    """Articles gain by words in another order, and speeches lose where the sentences are missing."""

    speeches = torch.arange(8 * 256).view(8, 256)

    def __init__(self, left=2):
        self.left = left

    def less(self, rows):
        order = rows.flatten().tolist()
        sentences = sum(b - a == 1 for a, b in pairwise(order)) > 2000
        loose = sum(b - a != 1 for a, b in pairwise(order)) > 2000
        noise = np.linspace(-0.01, 0.01, 10)
        return {"speeches": noise + (0.12 * loose if sentences else -0.1), "wiki": noise + 0.24 * loose}


def heap(speeches):
    order = torch.randperm(speeches.numel(), generator=torch.Generator().manual_seed(1))
    return speeches.flatten()[order].view_as(speeches)


def text_and_heap(speeches):
    return torch.cat([speeches, heap(speeches)])


@pytest.mark.parametrize(
    ("rows_for", "said"),
    [
        (lambda speeches: ..., "not solved yet"),
        (lambda speeches: heap(speeches).tolist(), "Return a tensor"),
        (lambda speeches: heap(speeches).float(), "Return integers [rows, 256]"),
        (lambda speeches: heap(speeches).view(-1, 128), "yours are torch.int64 [16, 128]"),
        (lambda speeches: speeches.repeat(3, 1), "Each of them may be used twice"),
        (lambda speeches: speeches + 1, "and 0 times in the speeches"),
        (lambda speeches: speeches.repeat(2, 1), "asked are 0.075 on speeches and 0.125 on wiki"),
        (heap, "asked are 0.075 on speeches."),
        (text_and_heap, "correct"),
    ],
)
def test_rows_for(rows_for, said, capsys):
    assert lesson_07.check_rows_for(rows_for, MadeUpExam()) is (said == "correct")
    assert said in capsys.readouterr().out


def test_the_exam_judges_a_few_times_only(capsys):
    exam = MadeUpExam(left=1)
    assert [lesson_07.check_rows_for(rows_for, exam) for rows_for in (heap, text_and_heap)] == [False] * 2
    assert "The exam is over" in capsys.readouterr().out.splitlines()[-1]


def test_the_exam_compares_with_its_opponent_on_both_texts(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    model, tokenizer = load_model("llama", device="cpu")
    asked, speeches = [], MadeUpExam.speeches
    exam = lesson_07.RowsExam(lambda rows: asked.append(rows) or model, tokenizer, speeches, model)
    less = exam.less(speeches)
    assert {*less} == {"speeches", "wiki"}
    assert not np.concatenate([*less.values()]).any()  # it is its own opponent
    assert [rows is speeches for rows in asked] == [True]


in_chunks = lesson_07.check_chunks.answer


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
)
