"""Checks of lesson 07, knowledge-distillation recovery, and of its deeper notebook 07a."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.lessons.exercises import (
    Attempt,
    alike,
    exercise,
    expect,
    number,
    require,
    take_a_try,
    true_or_false,
)
from course_utils.measuring.language_modelling import perplexity
from course_utils.support.uncertainty import kl_divergence, ratio_interval
from course_utils.text.rows import further_rows


def _refit(
    kept,
    target,
    old,
    ridge,
    *,
    pull=lambda gram, ridge: ridge * gram.diagonal(),
    toward=lambda pulled, old: pulled @ old.T,
    added=False,
):
    """The answer to exercise 1, solved in float64, [hidden, width], with switches for mistakes.

    ``pull`` gives the ridge's diagonal, ``toward`` what it adds on the right-hand side.
    """
    gram, cross, old = (kept.T @ kept).double(), (kept.T @ target).double(), old.double()
    pulled = pull(gram, ridge).diag()
    found = torch.linalg.solve(gram + pulled, cross + toward(pulled, old)).T
    return (old + found if added else found).float()


def _alike_for_all(gram: Tensor, ridge: float) -> Tensor:
    return ridge * torch.ones_like(gram.diagonal())


def _none(gram: Tensor, _ridge: float) -> Tensor:
    return torch.zeros_like(gram.diagonal())


def _to_zero(pulled: Tensor, old: Tensor) -> Tensor:
    return 0 * pulled @ old.T


_PLAIN = "the ridge is the same number for all neurons ({}). It grows with each one's own loudness, Σ x²."


@exercise(
    1,
    task="Return the weights, [hidden, width], that bring the kept neurons nearest to the target.",
    proved="The text decides where it speaks, and the old weights where it doesn't; in a real block, too.",
    answer=_refit,
    mistakes=[
        (lambda *given: _refit(*given).T,
         "those are the columns as rows: transpose; down's weight is [hidden, width]."),
        (partial(_refit, pull=_none), "the ridge does nothing in yours. It adds a diagonal to the neurons' products."),
        (partial(_refit, toward=_to_zero),
         "your ridge pulls the weights to 0. It holds them to `old`, which belongs on the right-hand side, too."),
        (partial(_refit, toward=_to_zero, added=True),
         "you add the solution to the old weights. Solve for the whole W, or for what is missing."),
        (partial(_refit, toward=lambda pulled, old: old.T),
         "on the right-hand side `old` must be weighed as on the left."),
        (partial(_refit, pull=_alike_for_all), _PLAIN.format("held to `old`")),
        (partial(_refit, pull=_alike_for_all, toward=_to_zero), _PLAIN.format("pulled to 0")),
        (lambda kept, target, *rest: _refit(kept - kept.mean(0), target - target.mean(0), *rest),
         "you take means off. There is no bias here to hold them: W must explain the values as they are."),
        (lambda kept, target, old, ridge: _refit(kept, target, old, ridge * len(kept)),
         "products are means and the ridge has sums. Take both from the same: the tokens' sum."),
    ],
)  # fmt: skip
def check_refit(attempt: Attempt, kept: Tensor, target: Tensor, old: Tensor) -> None:
    """Check a function (kept, target, old, ridge) -> weights [hidden, width].

    It is tried with made-up tensors, where mistakes can be named, and with those of a real block.
    """
    generator = torch.Generator().manual_seed(1)
    cases = [(_block(*sizes, generator), 2e-3) for sizes in ((60, 5, 7), (40, 6, 6), (200, 8, 5))]
    cases.append(((kept.double(), target.double(), old.double()), 1e-4))
    for (given, rtol), ridge in zip(cases, (0.3, 1.0, 0.01, 0.3), strict=True):
        where = f"For {len(given[0]):,} tokens, {given[0].shape[1]} neurons and ridge {ridge:g}: "
        same = partial(alike, rtol=rtol, atol=min(rtol, 1e-3))
        hint = "down's weight is [hidden, width]. Solve for all of its rows at once."
        attempt.compare(*given, ridge, read=_a_tensor, same=same, where=where, hint=hint)


def _a_tensor(answer: Any) -> Tensor:
    expect(answer, Tensor, "Return a tensor")
    return answer


def _block(tokens: int, width: int, hidden: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Made-up values of neurons, a target and old weights."""
    loudness = torch.linspace(0.2, 3, width)
    kept = (torch.randn(tokens, width, generator=generator) + 0.5) * loudness  # a mean, and neurons of all sizes
    old = torch.randn(hidden, width, generator=generator)
    target = kept @ torch.randn(width, hidden, generator=generator) + 1
    target += torch.randn(tokens, hidden, generator=generator)
    return kept, target, old


def _mean_elsewhere(ids: Tensor, written: Tensor, *, own: bool = False, counted: bool = False) -> Tensor:
    """The answer to exercise 2, with switches for mistakes: the place's own part stays in, or is counted."""
    same = (ids[:, None] == ids).to(written)
    if not own:
        same.fill_diagonal_(0)
    return same @ written / (same.sum(1) + counted).clamp(min=1)[:, None]


@exercise(
    2,
    task="Return for each place the mean of what was written at the other places of its token, [tokens, hidden].",
    proved="No place tells itself. What these means tell, the token tells.",
    answer=_mean_elsewhere,
    mistakes=[
        (partial(_mean_elsewhere, own=True),
         "each place's own part is in its mean. Then a token that comes twice tells half of itself: take it off."),
        (partial(_mean_elsewhere, counted=True),
         "you take the place's own part off, but divide by all places of its token. One fewer is left."),
        (lambda ids, written: _mean_elsewhere(torch.zeros_like(ids), written),
         "that is the mean of all other places, whatever token stands there."),
        (lambda ids, written: _mean_elsewhere(ids, written) * (ids.bincount()[ids] - 1)[:, None],
         "that is the sum. Divide it by the number of other places."),
    ],
)  # fmt: skip
def check_mean_elsewhere(attempt: Attempt) -> None:
    """Check a function (ids, written) -> means [tokens, hidden]; places whose token comes once may say anything."""
    generator = torch.Generator().manual_seed(7)
    for tokens, names in ((30, 4), (80, 30)):
        ids = 5 * torch.randint(names, (tokens,), generator=generator)  # not every token comes
        written = torch.randn(tokens, 3, generator=generator) + ids[:, None] / 9
        again = ids.bincount()[ids] > 1
        where = f"Of {tokens} places with {names} different tokens, where a token comes again: "
        attempt.compare(ids, written, read=partial(_of_places, again, written.shape), where=where)


def _of_places(again: Tensor, shape: torch.Size, answer: Any) -> Tensor:
    expect(answer, Tensor, "Return a tensor")
    require(answer.shape == shape, f"Return [tokens, hidden] = {[*shape]}; yours is {[*answer.shape]}.")
    return answer[again]


def _control(table: Tensor, ids: Tensor) -> Tensor:
    """The answer to exercise 3: the rows that were read, dealt out at random, so that none stands at its own token."""
    names = ids.unique()
    names = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).to(names.device)]
    found = table.clone()
    found[names] = table[names.roll(1)]
    return found


@exercise(
    3,
    task="Return a table of the same shape, in which only that has gone which you claim to be the reason.",
    proved="Its rows are the same ones, at as many tokens. Only the words have changed.",
    answer=_control,
)
def check_control(attempt: Attempt, table: Tensor, ids: Tensor) -> None:
    """Check a function (table [vocabulary, hidden], ids [tokens]) -> control [vocabulary, hidden].

    It is tried with a made-up table and with the lesson's.
    """
    generator = torch.Generator().manual_seed(8)
    small = torch.zeros(40, 3)
    some = torch.randperm(40, generator=generator)[:12]
    small[some] = torch.randn(12, 3, generator=generator)
    for rows, read in ((small, some.repeat(3)), (table, ids)):
        before = rows.clone()
        answer = attempt(rows, read)
        expect(answer, Tensor, "Return a table, a tensor")
        require(answer.shape == rows.shape, f"The table must be {[*rows.shape]}; yours is {[*answer.shape]}.")
        require(torch.equal(rows, before), "You changed the table that you were given. Work on a copy: table.clone().")
        names = read.unique()
        found, right = answer[names], rows[names]
        strangers = torch.ones(len(rows), dtype=torch.bool)
        strangers[names.cpu()] = False
        require(not torch.equal(found, right), "That is the table as it was.")
        alike_all = (found == found[0]).all()
        require(not alike_all, "One row for all: that also takes away that the rows differ. We look at this one, too.")
        nowhere = "Tokens that were never read have rows in yours, so that rows are lost which the student would read. "
        require(not answer[strangers.to(answer.device)].any(), nowhere + "Deal them among the tokens in ids.")
        same = sorted(found.tolist()) == sorted(right.tolist())
        require(same, "The rows aren't the ones that were there, each one once: new ones differ in more than the word.")
        stay = int((found == right).all(1).sum())
        require(not stay, f"{stay} of {len(names)} tokens have kept their own row. No token should.")


_LENGTH, _READ, _USES = 256, 24, 2  # tokens per row, rows per text that judge, times that a token may be used
_LESS = {
    "speeches": 0.075,
    "wiki": 0.125,
}  # nats per token below the opponent: halfway from text cut anew to the answer


class RowsExam:
    """Rows of two texts that nothing in lesson 07 has asked; it judges a few times only.

    Args:
        built: makes a student that was solved over the rows that it is given.
        tokenizer: the student's.
        speeches: int64 [rows, length], the only text that may be used.
        opponent: the student that was solved over this text as it is.
        tries: how often it judges.
    """

    def __init__(
        self,
        built: Callable[[Tensor], PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        speeches: Tensor,
        opponent: PreTrainedModel,
        *,
        tries: int = 2,
    ) -> None:
        self._built, self._tokenizer, self.speeches, self._opponent = built, tokenizer, speeches, opponent
        self.left = tries

    def less(self, rows: Tensor) -> dict[str, np.ndarray]:
        """Nats per token that a student loses less than its opponent, for each row of each text."""
        student, less = self._built(rows), {}
        for text, unused in further_rows(self._tokenizer).items():
            scores = [perplexity(model, unused[:_READ], batch_size=8) for model in (self._opponent, student)]
            opponents, own = (score.row_nll / score.row_tokens for score in scores)
            less[text] = opponents - own
        return less


def _text_and_heap(speeches: Tensor) -> Tensor:
    """The answer to exercise 4."""
    order = torch.randperm(speeches.numel(), generator=torch.Generator().manual_seed(0))
    return torch.cat([speeches, speeches.flatten()[order].view_as(speeches)])


@exercise(
    4,
    task="Return the rows that the solve shall read, int64 [rows, 256], made of the tokens of the speeches.",
    proved="You healed both texts better without one word more: beside its sentences, the old words in a new order.",
    answer=_text_and_heap,
)
def check_rows_for(attempt: Attempt, exam: RowsExam) -> None:
    """Check a function (speeches) -> rows: does a student solved over them lose less than its opponent?"""
    rows = attempt(exam.speeches.clone())
    expect(rows, Tensor, f"Return a tensor of token ids, [rows, {_LENGTH}]")
    require(
        rows.ndim == 2 and rows.shape[1] == _LENGTH and not rows.is_floating_point(),
        f"Return integers [rows, {_LENGTH}]; yours are {rows.dtype} {[*rows.shape]}.",
    )
    there = Counter(exam.speeches.flatten().tolist())
    for token, times in Counter(rows.flatten().tolist()).items():
        told = f"Token {token} comes {times} times in your rows, and {there[token]} times in the speeches."
        require(times <= _USES * there[token], f"{told} Each of them may be used twice.")
    take_a_try(exam)
    short = {}
    for text, less in exam.less(rows).items():
        mean, _, low, high = ratio_interval(less, np.ones(len(less)))
        print(f"  exam: {mean:+.3f} nats per token better on {text} ({low:+.3f} to {high:+.3f}, paired by rows)")
        if mean < _LESS[text]:
            short[text] = _LESS[text]
    print(f"  tries left: {exam.left}")
    asked = " and ".join(f"{bound:g} on {text}" for text, bound in short.items())
    told = (
        "Block 0 needs the words. What do the other blocks see in your rows that they haven't seen, and what no more?"
    )
    require(not short, f"That isn't enough: asked are {asked}. {told}")


def _kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of logits [..., vocabulary]: [...] nats."""
    log_q, log_p = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    return kl_divergence(log_p, log_q)


def _counted(mask: Tensor) -> Tensor:
    """Where a real token predicts a real one."""
    return mask.bool()[:, :-1] & mask.bool()[:, 1:]


def _kl_sum(
    student,
    teacher,
    mask,
    *,
    counts=_counted,
    shift=slice(None, -1),
    each=lambda student, teacher: _kl(student.float(), teacher.float()),
    share=1,
):
    """The answer to exercise 1 of notebook 07a, with switches for mistakes; ``each`` gives nats by position."""
    counted = counts(mask)
    return each(student, teacher)[:, shift][counted].sum() / share, int(counted.sum())


@exercise(
    1,
    task="Return the sum over the counted positions, and how many they are.",
    proved="Shifted and masked; sums over batches, divided once, are the step's mean however it is cut.",
    answer=_kl_sum,
    mistakes=[
        (partial(_kl_sum, counts=lambda mask: torch.ones_like(mask).bool(), shift=slice(None)),
         "every position counts in yours, padding and each row's last one, too."),
        (partial(_kl_sum, counts=lambda mask: torch.ones_like(mask[:, 1:]).bool()),
         "padding counts in yours. Select positions where a real token predicts a real one."),
        (partial(_kl_sum, counts=Tensor.bool, shift=slice(None)),
         "each row's last token counts in yours, though nothing follows it."),
        (partial(_kl_sum, shift=slice(1, None)), "you shift the wrong way: the logits at i belong to token i + 1."),
        (partial(_kl_sum, counts=lambda mask: mask[:, :-1].bool()),
         "the last real token of a row that is padded on the right predicts padding."),
        (partial(_kl_sum, counts=lambda mask: mask[:, 1:].bool()),
         "behind padding on the left, the first real token is predicted from padding."),
        (lambda student, teacher, mask: _kl_sum(student, teacher, mask, share=_counted(mask).sum()),
         "that is the mean. Return the sum and the number apart: a step divides once."),
        (lambda student, *rest: _kl_sum(student, *rest, share=student.shape[-1]),
         "you average over the vocabulary. Over the words, a KL is a sum."),
        (partial(_kl_sum, each=lambda student, teacher: _kl(teacher.float(), student.float())),
         "that is KL(student ‖ teacher). The teacher comes first."),
        (partial(
             _kl_sum,
             each=lambda student, teacher: -(teacher.float().softmax(-1) * student.float().log_softmax(-1)).sum(-1),
         ),
         "that is the cross-entropy with the teacher's words. The KL is less, by the teacher's entropy."),
        (partial(_kl_sum, each=_kl), "the softmax is taken in 16 bits. Turn the logits to float32 first."),
    ],
)  # fmt: skip
def check_kl_sum(attempt: Attempt) -> None:
    """Check a function (student_logits, teacher_logits, mask) -> (sum of nats, number of positions)."""
    student, teacher, mask = _texts()
    for dtype in (torch.float32, torch.bfloat16):
        given = student.to(dtype), teacher.to(dtype), mask
        attempt.compare(*given, read=_sum_and_number, where="" if dtype is torch.float32 else "In bfloat16: ")
        gradients: list[Tensor] = []
        for function in (attempt, attempt.answer):
            logits = given[0].clone().requires_grad_()
            total, _ = function(logits, *given[1:])
            expect(total, Tensor, "The sum must be a tensor, so that backward() can be called on it")
            require(total.requires_grad, "The value is right, but it has no gradient: something is detached.")
            gradients += torch.autograd.grad(total, logits)
        require(alike(*gradients), "The value is right, but its gradient isn't: a part of the student is detached.")


def _sum_and_number(answer: Any) -> tuple[float, float]:
    expect(answer, tuple | list, "Return two values, the sum and the number", size=2)
    return number(answer[0], "The sum is one number"), number(answer[1], "How many count is one number")


def _texts() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and a mask: a full row, one padded right, one left. Padding is loud."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = 2 * torch.randn(2, 3, 9, 13, generator=generator)  # [rows, length, vocabulary] each
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = mask[2, :3] = 0
    padding = ~mask.bool()
    student[padding] *= 3
    teacher[padding] *= -3
    return student, teacher, mask


@exercise(
    2,
    task="Return True if the loss's teacher part moves the student toward the teacher, otherwise False.",
    proved="It finds the dead ones, also beside a living cross-entropy, and those that push the wrong way. Keep it.",
)
def check_teaches(attempt: Attempt) -> None:
    """``attempt(loss)`` says whether ``loss(student_logits, teacher_logits, targets)`` teaches."""
    for loss, mistake in _LIVING.items():
        require(true_or_false(attempt(loss)), f"It refuses a loss that teaches: {mistake}")
    for loss, mistake in _DEAD.items():
        require(not true_or_false(attempt(loss)), f"It lets a loss pass that doesn't teach: {mistake}")


_LIVING: dict[Callable, str] = {
    lambda student, teacher, targets: _kl(student, teacher).mean(): "the forward KL, alone.",
    lambda student, teacher, targets: _kl(student, teacher).sum(): "the forward KL as a sum over the tokens. Its "
    "gradient is large: take a step of a fixed small length.",
    lambda student, teacher, targets: _kl(teacher, student).mean(): "the reverse KL. It comes nearer, too; ask for "
    "nearer, not for one gradient.",
    lambda student, teacher, targets: 4 * _kl(student, teacher, 2.0).mean(): "the KL at temperature 2, times 4. Ask "
    "whether the student comes nearer, not for one gradient.",
    lambda student, teacher, targets: 0.5 * _kl(student, teacher).mean() + 0.5 * F.cross_entropy(student, targets): (
        "half KL, half cross-entropy. The words pull elsewhere; take their pull out before you judge."
    ),
    lambda student, teacher, targets: 0.1 * _kl(student, teacher).mean() + 0.9 * F.cross_entropy(student, targets): (
        "one tenth KL, nine tenths cross-entropy. Take the pull of the words out before you judge."
    ),
}
_DEAD: dict[Callable, str] = {
    lambda student, teacher, targets: _kl(student.detach(), teacher).mean(): "the KL alone, detached from the student. "
    "Its value falls when the student comes nearer, but it has no gradient.",
    lambda student, teacher, targets: F.cross_entropy(student, targets): "the cross-entropy alone, which knows no "
    "teacher. It has a gradient, and a step along it may even come nearer, but that isn't the teacher's doing. Would "
    "another teacher change anything?",
    lambda student, teacher, targets: (_kl(student.detach(), teacher).mean() + F.cross_entropy(student, targets)) / 2: (
        "the student's part of the KL is detached, beside a living cross-entropy, which has a gradient of its own. Ask "
        "for the teacher's."
    ),
    lambda student, teacher, targets: F.cross_entropy(student, targets) + _kl(student, teacher).mean().item(): (
        "the KL became a plain number with .item(). The value is right, the gradient is not there."
    ),
    lambda student, teacher, targets: -_kl(student, teacher).clamp(max=50).mean(): "the KL with a minus. Its gradient "
    "depends on the teacher and pushes the student away: look at its direction.",
    lambda student, teacher, targets: F.cross_entropy(student, targets) - 0.5 * _kl(student, teacher).mean(): (
        "cross-entropy minus half a KL. The teacher's part pushes the student away: look at its direction."
    ),
}


class _Trial:
    """A small body and head, and a loss that watches what is asked of it."""

    def __init__(self, tokens: int, size: int) -> None:
        generator = torch.Generator().manual_seed(tokens)
        self.size, self.learned, self.readings = size, 0, 0
        self.asked: list[tuple[int, int]] = []
        self.body, self.head = (torch.randn(6, width, generator=generator).requires_grad_() for width in (6, 11))
        inputs = torch.randn(tokens, 6, generator=generator)
        self.targets = torch.randint(11, (tokens,), generator=generator)
        self.states = (inputs @ self.body).tanh()  # [tokens, hidden]
        self.states.register_hook(self._read)

    def loss_of(self, part: Tensor, start: int) -> Tensor:
        """The sum of the losses of the tokens from ``start`` on, whose states are ``part``."""
        stop = start + len(part)
        right = part.shape == self.states[start:stop].shape and torch.equal(part, self.states[start:stop])
        require(right, f"The states that you give with start {start} aren't those from {start} on.")
        require(len(part) <= self.size, f"A chunk has {len(part)} tokens; at most {self.size} are allowed.")
        told = "Detach the states first; hand their gradient on at the end, once."
        require(not self.readings, f"The body's backward pass has run, and another chunk begins. {told}")
        told = "at the end all logits live at once. Call backward() before the next chunk begins."
        require(self.learned == len(self.asked), f"A chunk begins before the gradient of the last is taken: {told}")
        self.asked.append((start, stop))
        logits = part @ self.head
        logits.register_hook(self._learn)
        return F.cross_entropy(logits, self.targets[start:stop], reduction="sum")

    def _learn(self, _gradient: Tensor) -> None:
        self.learned += 1

    def _read(self, _gradient: Tensor) -> None:
        self.readings += 1


def _of_all(leaf: Tensor, _part: Tensor) -> int:
    return len(leaf)


def _in_chunks(states, loss_of, size, *, detach=True, over=_of_all, inside=True, hand_on=True, stop=None, step=None):
    """The answer to exercise 3 of 07a, with switches for mistakes."""
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


@exercise(
    3,
    task="Take loss and gradient a chunk at a time, leave the gradients with the weights, and return the mean loss.",
    proved="The gradients are those of all logits at once, and never more than a chunk of them was there.",
    answer=_in_chunks,
)
def check_chunks(attempt: Attempt) -> None:
    """Check a function (states, loss_of, size) -> mean loss, which leaves gradients behind."""
    for tokens, size in ((12, 4), (10, 4), (5, 8)):
        trial, whole = _Trial(tokens, size), _Trial(tokens, tokens)
        loss = whole.loss_of(whole.states, 0) / tokens
        loss.backward()
        answer = attempt(trial.states, trial.loss_of, size)
        where = f"{tokens} tokens in chunks of {size}: "
        covered = [token for start, stop in sorted(trial.asked) for token in range(start, stop)]
        left_out = sorted({*range(tokens)} - {*covered})
        require(not left_out, f"{where}token {(left_out or [0])[0]} and {len(left_out)} in all were never asked for.")
        require(covered == [*range(tokens)], f"{where}some token was asked for twice.")
        require(trial.learned == len(trial.asked), f"{where}the last chunk's gradient was never taken.")
        require(trial.head.grad is not None, f"{where}the head has no gradient.")
        told = "hand what has come to the detached states on: states.backward(…)."
        require(trial.body.grad is not None, f"{where}the head has its gradient, the body has none. At the end, {told}")
        pairs = ((trial.body.grad, whole.body.grad), (trial.head.grad, whole.head.grad))
        require(
            all(alike(found, right, atol=1e-4) for found, right in pairs),
            f"{where}the gradients aren't those of the mean. Divide each chunk's loss by the number of all {tokens} "
            "tokens, not by the chunk's or by the number of chunks.",
        )
        mean = number(answer, "Return the mean loss")
        require(alike(mean, loss, atol=1e-4), f"{where}the mean loss is {loss:.4f}; yours {mean:.4f}.")


_RANK, _ALPHA = 2, 6
_SCALES = {  # what a mistaken correction is multiplied with, where 3 is right
    0: "the correction isn't added, or B was copied when it was 0.",
    1: "alpha / rank is missing.",
    2: "you multiply with the rank; it is alpha / rank.",
    6: "you multiply with alpha; it is alpha / rank.",
    1 / 3: "it is alpha / rank, not rank / alpha.",
}


@exercise(
    4,
    task="Complete the class: A and B learn, the layer doesn't; forward adds the correction, merged gives the weight.",
    proved="It begins as the layer itself, learns few numbers, and ends as one plain matrix.",
)
def check_lora(attempt: Attempt) -> None:
    """Check a class (linear, rank, alpha), an ``nn.Module`` with a method ``merged``."""
    generator = torch.Generator().manual_seed(5)
    linear = nn.Linear(7, 4)
    layer = copy.deepcopy(linear)
    module = attempt(linear, _RANK, _ALPHA)
    expect(module, nn.Module, "Lora(...) must be an nn.Module")
    if not list(module.parameters()):  # the stub
        raise NotImplementedError
    own = " and ".join(name for name, weight in linear.named_parameters() if weight.requires_grad)
    require(not own, f"The layer's own {own} still learns: linear.requires_grad_(False).")
    learn = [weight for weight in module.parameters() if weight.requires_grad]
    require(learn, "Nothing learns. A and B must be nn.Parameter, so that the module knows them.")
    matrices = {tuple(weight.shape): weight for weight in learn}
    require(
        len(learn) == 2 and matrices.keys() == {(_RANK, 7), (4, _RANK)},
        f"What learns has the shapes {[*matrices]}; A is [rank, in] = [2, 7], and B [out, rank] = [4, 2].",
    )
    down, up = matrices[_RANK, 7], matrices[4, _RANK]
    require(down.any(), "A is 0 as well as B. Then both gradients are 0, and nothing ever learns: A is random.")
    require(not up.any(), "B isn't 0 at first: the student is another one before it has learned anything.")
    x = torch.randn(3, 5, 7, generator=generator)
    close = partial(alike, atol=1e-5)
    require(close(_said(module(x)), layer(x)), "With B = 0 it must say what the layer says, bias included.")
    with torch.no_grad():
        for matrix in (down, up):
            matrix.copy_(torch.randn(matrix.shape, generator=generator))
        said, merged = _said(module(x)), _said(module.merged())
        expect(merged, Tensor, "merged() must return the weight, a tensor [out, in]")
        correction = _ALPHA / _RANK * up @ down
        require(not close(merged, correction), "merged(): that is the correction alone. Add the layer's weight.")
        for factor, mistake in _SCALES.items():
            wrong = layer.weight + factor * up @ down
            require(not close(said, x @ wrong.T + layer.bias), f"With other A and B: {mistake}")
            require(not close(merged, wrong), f"merged(): {mistake}")
        whole = layer.weight + correction
        right = close(said, x @ whole.T + layer.bias)
        require(right, "With other A and B it doesn't say W x + alpha / rank · B A x, and the layer's bias.")
        require(close(merged, whole), "merged() isn't the weight whose layer does the same.")
    require(torch.equal(linear.weight, layer.weight), "The layer's own weight has changed. Leave it as it is.")


def _said(value: Any) -> Any:
    if value is None:
        raise NotImplementedError
    return value
