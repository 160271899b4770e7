"""Checks of lesson 07, knowledge-distillation recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.divergence import kl_divergence
from course_utils.exercises import exercise, not_shown, require
from course_utils.uncertainty import ratio_interval


@exercise(
    1,
    task="Return one number: the mean over the predicted tokens of (1 - alpha) T² KL + alpha cross-entropy.",
    proved="Shifted, masked, and its gradient reaches the student at every counted token and nowhere else.",
)
def check_distillation_loss(attempt: Callable[..., Any]) -> None:
    """``attempt(student_logits, teacher_logits, input_ids, attention_mask, temperature, alpha)`` is a step's loss."""
    student, teacher, ids, mask = _texts()
    real = mask.bool()
    counted = real[:, 1:] & real[:, :-1]
    for temperature, alpha in ((1.0, 0.0), (2.0, 0.0), (1.0, 1.0), (2.0, 0.3)):
        own = student.clone().requires_grad_()
        answer = attempt(own, teacher.clone(), ids.clone(), mask.clone(), temperature, alpha)
        which = f"With temperature={temperature:g}, alpha={alpha:g}: "
        require(isinstance(answer, Tensor), "Return a tensor, so that backward() can be called on it.")
        require(answer.dim() == 0, f"Return one number for the step; yours has the shape {tuple(answer.shape)}.")
        require(torch.isfinite(answer), f"{which}yours is {answer:.4g}. Stay with log-probabilities: log_softmax.")
        learned = student.clone().requires_grad_()
        right = _mix(learned, teacher, ids, counted, temperature, alpha)
        if not _near(answer, right):
            for wrong, mistake in _wrong_losses(student, teacher, ids, mask, temperature, alpha):
                require(_near(wrong, right) or not _near(answer, wrong), which + mistake)
            require(False, f"{which}for the check's random logits it is {right:.4f}; yours is {answer:.4f}.")
        require(
            answer.requires_grad,
            f"{which}the value is right, but it has no gradient: a detach(), .item() or no_grad() is in the way.",
        )
        (gradient,), (expected,) = (torch.autograd.grad(*pair) for pair in ((answer, own), (right, learned)))
        require(
            torch.allclose(gradient, expected, atol=1e-5),
            f"{which}the value is right, but the student's gradient isn't: a part of the loss is detached.",
        )


@exercise(
    5,
    task="Return True if the loss's teacher part moves the student toward the teacher, otherwise False.",
    proved="It finds the dead ones, also beside a living cross-entropy, and those that push the wrong way. Keep it.",
)
def check_teaches(attempt: Callable[..., Any]) -> None:
    """``attempt(loss)`` says whether ``loss(student_logits, teacher_logits, targets)`` teaches."""
    for loss, mistake in _LIVING.items():
        require(_verdict(attempt, loss), f"It refuses a loss that teaches: {mistake}")
    for loss, mistake in _DEAD.items():
        require(not _verdict(attempt, loss), f"It lets a loss pass that doesn't teach: {mistake}")


@exercise(
    2,
    task="Return one number for each batch; together they are the mean over all counted positions of the step.",
    proved="However a step is cut into batches, the loss and its gradient stay the same.",
)
def check_step_losses(attempt: Callable[..., Any]) -> None:
    """``attempt(parts)`` gives each batch's loss; parts: (losses [rows, length], which of them count) of each batch."""
    losses, counted = _step()
    mean = losses[counted].mean()
    for sizes in ((6,), (1, 1, 1, 1, 1, 1), (2, 4), (3, 2, 1)):
        own = losses.clone().requires_grad_()
        parts = list(zip(own.split(sizes), counted.split(sizes), strict=True))
        answer = attempt(parts)
        cut = f"Cut into {len(sizes)} batch{'es' if len(sizes) > 1 else ''}: "
        require(
            isinstance(answer, list | tuple) and len(answer) == len(sizes),
            f"{cut}return a list with one number for each batch.",
        )
        require(
            all(isinstance(value, Tensor) and value.dim() == 0 for value in answer),
            f"{cut}each one must be a tensor with a single number, so that backward() can be called on it.",
        )
        total = torch.stack(list(answer)).sum()
        require(
            torch.isfinite(total),
            f"{cut}their sum is {total:.4g}. A batch without a counted position has no mean of its own; its sum is 0.",
        )
        if not _near(total, mean):
            for wrong, mistake in _wrong_steps(parts):
                require(_near(wrong, mean) or not _near(total, wrong), cut + mistake)
            require(False, f"{cut}their sum should be {mean:.4f}; yours is {total:.4f}.")
        require(
            total.requires_grad,
            f"{cut}the value is right, but backward() reaches nothing: don't detach, and no .item().",
        )
        (gradient,) = torch.autograd.grad(total, own)
        require(
            torch.allclose(gradient, counted / counted.sum(), atol=1e-6),
            f"{cut}the value is right, but its gradient isn't: every counted position weighs one part of the total.",
        )


@exercise(
    3,
    task="Give the letters of the claims that the hour's output does not show, as a set.",
    proved="What was compared, on the same model and text, is shown. What was not run, or lies ahead, is not.",
)
def check_not_shown(attempt: Any) -> None:
    """``attempt`` is a set of letters."""
    letters = set(attempt) if isinstance(attempt, set | frozenset | list | tuple | str) else set()
    require(letters and letters <= set(_CLAIMS), "Give letters from A to F as a set.")
    not_shown(letters, _CLAIMS)


@exercise(
    4,
    task="Return the arm that must be run beside this one before the claim can be made.",
    proved="One thing differs, the one that the claim is about.",
)
def check_control(attempt: Callable[..., Any]) -> None:
    """``attempt(arm, claim)`` is another arm, a dict."""
    for arm in _EXPERIMENTS:
        for claim, (setting, wanted, mistake) in _WANTED.items():
            copied, about = dict(arm), f"For the claim '{claim}': "
            other = attempt(copied, claim)
            require(isinstance(other, dict), f"{about}return a dict with the settings of the other arm.")
            require(copied == arm, f"{about}you changed the arm itself. Make a new dict: arm | {{...}}.")
            require(other.keys() == arm.keys(), f"{about}give every setting of the arm, and no others.")
            differ = [name for name in arm if other[name] != arm[name]]
            require(differ, f"{about}that is the arm itself; a control differs in what the claim is about.")
            require(
                "steps" not in differ,
                f"{about}with other steps the two learn from different amounts of text, and nobody knows what did it.",
            )
            require(differ == [setting], f"{about}yours differs in {', '.join(differ)}. {mistake}")
            require(wanted(other[setting], arm[setting]), f"{about}{setting} = {other[setting]!r}. {mistake}")


@exercise(
    6,
    task="Give settings of the recipe as a dict.",
    proved="Nearer to the teacher on text that nobody trained on, by more than the rows explain. Which step did it?",
)
def check_better_recipe(attempt: Any, held_out_kl: Callable[..., Any]) -> None:
    """``attempt`` is a dict of settings; ``held_out_kl(settings)`` gives the KL to the teacher of each row [rows]."""
    require(isinstance(attempt, dict), "Give the settings as a dict, such as {'lr': 1e-4}.")
    require(attempt, "An empty dict is the baseline itself. Change a setting.")
    fixed = [name for name in ("steps", "accumulate", "mlps_only", "train_embedding") if name in attempt]
    require(
        not fixed, f"{' and '.join(fixed)} can't be chosen: more text, or more weights that learn, is no better recipe."
    )
    plain: dict[str, Any] = {}
    baseline, yours = (np.asarray(held_out_kl(settings), dtype=float) for settings in (plain, attempt))
    require(np.isfinite(yours).all(), "With yours the student is broken: the learning rate is far too high.")
    difference, _, low, high = ratio_interval(yours - baseline, np.ones(len(yours)))
    print(
        f"KL to the teacher, held out: {yours.mean():.3f} with yours, {baseline.mean():.3f} with the plain recipe; "
        f"difference {difference:+.3f} ({low:+.3f} to {high:+.3f}, paired by rows)"
    )
    require(difference < 0, "The student ends farther from its teacher than with the plain recipe.")
    require(
        high < 0, "Nearer, but the interval holds 0: on these rows no difference is shown. Change something bolder."
    )


def _near(value: Tensor, expected: Tensor) -> bool:
    return torch.allclose(value.detach().float(), expected.detach().float(), rtol=1e-4, atol=1e-6)


def _texts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of student and teacher, ids and mask: a full row, one padded right, one left. Padding is loud."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = 2 * torch.randn(2, 3, 9, 13, generator=generator)  # [rows, length, vocabulary] each
    ids = torch.randint(1, 13, (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = mask[2, :3] = 0
    padding = ~mask.bool()
    ids[padding] = 0
    student[padding] *= 3
    teacher[padding] *= -3
    return student, teacher, ids, mask


def _kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of logits [..., vocabulary]: [...] nats."""
    log_q, log_p = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    return kl_divergence(log_p, log_q)


def _mix(
    student: Tensor,
    teacher: Tensor,
    ids: Tensor,
    counted: Tensor,
    temperature: float,
    alpha: float,
    *,
    kl: Callable[[Tensor, Tensor, float], Tensor] = _kl,
    factor: float | None = None,
    flat: bool = False,
    targets: Tensor | None = None,
) -> Tensor:
    """The loss of exercise 1, or with an option changed a likely mistake."""
    own, known = student[:, :-1][counted], teacher[:, :-1][counted]  # [counted tokens, vocabulary]
    targets = ids[:, 1:] if targets is None else targets
    words = F.cross_entropy(own / temperature if flat else own, targets[counted])
    factor = temperature**2 if factor is None else factor
    return (1 - alpha) * factor * kl(own, known, temperature).mean() + alpha * words


def _wrong_losses(
    student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, temperature: float, alpha: float
) -> Iterator[tuple[Tensor, str]]:
    """(value, likely mistake), the first that fits is told."""
    real = mask.bool()
    counted = real[:, 1:] & real[:, :-1]
    texts, settings = (student, teacher, ids), (temperature, alpha)

    def mix(chosen: Tensor = counted, tensors: tuple[Tensor, Tensor, Tensor] = texts, **options: Any) -> Tensor:
        return _mix(*tensors, chosen, *settings, **options)

    everywhere = torch.ones_like(counted)
    right, number = mix(), counted.sum()
    yield (
        mix(everywhere),
        "padding counts in yours. Select the positions where a real token is predicted from a real one.",
    )
    yield (
        mix(real[:, 1:]),
        "your mask asks only whether the next token is real. Behind padding on the left, the first real token is "
        "predicted from padding.",
    )
    yield (
        mix(real[:, :-1]),
        "your mask asks only whether the token is real. The last one of a row that is padded on the right predicts "
        "padding.",
    )
    yield (
        right * number / counted.numel(),
        "you divide by all positions. Padding is out of the sum, so it must be out of the number, too.",
    )
    yield right * number / len(ids), "you divide by the rows. Divide by the predicted tokens."
    yield right * number, "that is the sum. Take the mean over the predicted tokens."
    yield right / student.shape[-1], "you average over the vocabulary as well. Over the words, a KL is a sum."
    rows = [mix(counted[i : i + 1], tuple(tensor[i : i + 1] for tensor in texts)) for i in range(len(ids))]
    yield torch.stack(rows).mean(), "that is a mean of the rows' means: tokens of short rows weigh more."
    yield mix(kl=lambda a, b, t: _kl(b, a, t)), "that is KL(student ‖ teacher). The teacher comes first."
    yield mix(kl=lambda a, b, t: -_kl(a, b, t)), "the KL has the wrong sign: it can't be negative."
    yield (
        mix(kl=lambda a, b, t: -((b / t).softmax(-1) * (a / t).log_softmax(-1)).sum(-1)),
        "that is the cross-entropy with the teacher's distribution. The KL is less, by the teacher's entropy.",
    )
    yield mix(factor=1.0), "the factor T² is missing from the KL."
    yield mix(factor=temperature), "the factor is T², not T."
    yield mix(factor=temperature**2, kl=lambda a, b, _: _kl(a, b)), "the temperature flattens nothing in yours."
    yield mix(factor=1.0, kl=lambda a, b, _: _kl(a, b)), "the temperature is ignored."
    yield mix(flat=True), "the cross-entropy is about real words: temperature 1, no flattening."
    scaled = temperature**2 * alpha * F.cross_entropy(student[:, :-1][counted], ids[:, 1:][counted])
    yield mix() + scaled - scaled / temperature**2, "T² belongs to the KL only, not to the cross-entropy."
    yield _mix(*texts, counted, temperature, 1 - alpha), "alpha is the share of the cross-entropy, not of the KL."
    together = "a token's logits are compared with the token itself. They belong to the next one, input_ids[:, 1:]."
    behind = tuple(
        torch.cat([logits[:, 1:], logits[:, :1]], dim=1) for logits in (student, teacher)
    )  # at [:-1] those of [1:]
    yield mix(targets=ids[:, :-1]), together
    yield mix(tensors=(*behind, ids)), together
    yield mix(tensors=(*behind, ids), targets=ids[:, :-1]), "you shift the wrong way: drop the logits' last position."
    longer = tuple(torch.cat([tensor, tensor[:, :1]], dim=1) for tensor in texts)
    yield (
        mix(real, longer, targets=ids),
        "every real position counts in yours. The logits belong to the next token, and the last of a row has none.",
    )
    plain = _mix(*texts, counted, temperature, 0.0), _mix(*texts, counted, temperature, 1.0)
    for share in (1.0, alpha):
        yield plain[0] + share * plain[1], "the KL counts in full. Its share is 1 - alpha, the cross-entropy's alpha."


def _forward_kl(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return _kl(student, teacher).mean()


def _reverse_kl(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return _kl(teacher, student).mean()


def _jensen_shannon(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    middle = ((log_q.exp() + log_p.exp()) / 2).log()
    return (_kl(middle, teacher) + _kl(middle, student)).mean() / 2


def _flattened(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return 4 * _kl(student, teacher, 2.0).mean()


def _half_and_half(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return (_kl(student, teacher).mean() + F.cross_entropy(student, targets)) / 2


def _a_tenth(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return 0.1 * _kl(student, teacher).mean() + 0.9 * F.cross_entropy(student, targets)


def _summed(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return _kl(student, teacher).sum()


def _detached(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return _kl(student.detach(), teacher).mean()


def _half_detached(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return (_kl(student.detach(), teacher).mean() + F.cross_entropy(student, targets)) / 2


def _half_without_grad(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        kl = _kl(student, teacher).mean()
    return 0.4 * kl + 0.6 * F.cross_entropy(student, targets)


def _words_only(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(student, targets)


def _away(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return -_kl(student, teacher).clamp(max=50).mean()


def _half_away(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(student, targets) - 0.5 * _kl(student, teacher).mean()


def _rounded(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """The teacher's part is a number: it was taken out of the graph."""
    return F.cross_entropy(student, targets) + _kl(student, teacher).mean().item()


_LIVING: dict[Callable, str] = {
    _forward_kl: "the forward KL, alone.",
    _summed: "the forward KL as a sum over the tokens. Its gradient is large: take a step of a fixed small length.",
    _reverse_kl: "the reverse KL. It comes nearer, too; ask for nearer, not for one gradient.",
    _jensen_shannon: "the Jensen-Shannon divergence. It comes nearer, too; ask for nearer, not for one gradient.",
    _flattened: "the KL at temperature 2, times 4. Ask whether the student comes nearer, not for one gradient.",
    _half_and_half: "half KL, half cross-entropy. The words pull elsewhere; take their pull out before you judge.",
    _a_tenth: "one tenth KL, nine tenths cross-entropy. Take the pull of the words out before you judge.",
}
_DEAD: dict[Callable, str] = {
    _detached: "the KL alone, detached from the student. Its value falls when the student comes nearer, but it has no "
    "gradient.",
    _words_only: "the cross-entropy alone, which knows no teacher. It has a gradient, and a step along it may even "
    "come nearer, but that isn't the teacher's doing. Would another teacher change anything?",
    _half_detached: "the student's part of the KL is detached, beside a living cross-entropy, which has a gradient of "
    "its own. Ask for the teacher's.",
    _half_without_grad: "the KL is computed under no_grad, beside a living cross-entropy. Ask for the gradient that "
    "the teacher causes.",
    _rounded: "the KL became a plain number with .item(). The value is right, the gradient is not there.",
    _away: "the KL with a minus. Its gradient depends on the teacher and pushes the student away: look at its "
    "direction.",
    _half_away: "cross-entropy minus half a KL. The teacher's part pushes the student away: look at its direction.",
}


def _verdict(attempt: Callable, loss: Callable) -> bool:
    verdict = attempt(loss)
    require(
        isinstance(verdict, bool) or getattr(verdict, "dtype", None) == torch.bool,
        f"Return True or False; yours returned a {type(verdict).__name__}.",
    )
    return bool(verdict)


def _step() -> tuple[Tensor, Tensor]:
    """Losses of six rows [6, 8], and which of them count: very different numbers, none in the fourth."""
    losses = torch.rand(6, 8, generator=torch.Generator().manual_seed(7)) + torch.arange(1, 7)[:, None]
    return losses, torch.arange(8) < torch.tensor([8, 2, 5, 0, 1, 7])[:, None]


def _wrong_steps(parts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, str]]:
    """(sum of the numbers, likely mistake)."""
    number = sum(counted.sum() for _, counted in parts)
    sums = [losses[counted].sum() for losses, counted in parts]
    means = [total / counted.sum().clamp(min=1) for total, (_, counted) in zip(sums, parts, strict=True)]
    yield sum(means) / len(parts), "that is still the mean of the batches' means."
    filled = sum(bool(counted.any()) for _, counted in parts)
    yield sum(means) / filled, "that is still a mean of means, over the batches that have any counted position."
    yield sum(means), "their means add up to too much. Divide each batch's sum by the step's counted positions."
    yield sum(sums), "those are sums. Divide each by the number of counted positions in the whole step."
    yield (
        sum(sums) / sum(counted.numel() for _, counted in parts),
        "you divide by all positions. Only the counted ones belong into the number.",
    )
    yield sum(sums) / sum(len(counted) for _, counted in parts), "you divide by the rows. Divide by counted positions."
    yield sum(sums) / number / len(parts), "the sum is divided once more by the number of batches."
    yield (
        sum(losses.sum() for losses, _ in parts) / number,
        "positions that don't count are in your sum. Select them: losses[counted].",
    )
    yield (
        sum(losses.sum() for losses, _ in parts) / sum(counted.numel() for _, counted in parts),
        "positions that don't count are in your mean. Select them: losses[counted].",
    )


# Exercise 3: claim -> whether the hour's output shows it, and why.
_CLAIMS: dict[str, tuple[bool, str]] = {
    "A": (True, "both were measured on the same passages, and the interval of the difference lies above 0."),
    "B": (False, "no student learned from the same tokens with the reverse KL, so nothing is compared."),
    "C": (True, "both recoveries were measured, and their intervals lie apart."),
    "D": (False, "the curve ends after an hour. It is still falling, but ever more slowly; where to, nobody has seen."),
    "E": (False, "another model, cut by another criterion, trained on other text: three things differ."),
    "F": (True, "that is what the paired p-value says."),
}

# Exercise 4: arms, and for each claim the setting that has to differ, what it may become, and a hint.
_EXPERIMENTS = (
    {"criterion": "activation", "alpha": 0.0, "steps": 600, "lr": 2e-4, "text": "speeches", "seed": 0},
    {"criterion": "peak_to_peak", "alpha": 0.5, "steps": 40, "lr": 1e-4, "text": "wiki", "seed": 7},
)
_WANTED: dict[str, tuple[str, Callable[[Any, Any], bool], str]] = {
    "the teacher helps": (
        "alpha",
        lambda value, _: value == 1,
        "Take the teacher away altogether, alpha = 1, and leave the rest: the same student, text and steps.",
    ),
    "the choice of neurons helps": (
        "criterion",
        lambda value, _: value == "random",
        "Set the choice against no choice, criterion = 'random'; another criterion is a choice, too.",
    ),
    "it is more than the luck of one run": (
        "seed",
        lambda value, _: isinstance(value, int) and not isinstance(value, bool),
        "Run the very same arm with another whole number as its seed.",
    ),
}
