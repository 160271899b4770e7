"""Checks of lesson 09, pruning with fairness in mind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from course_utils.bias.contrastive import Pair, pairs
from course_utils.exercises import Attempt, chosen, exercise, require, rule_out, true_or_false

Given = tuple[list[Tensor], list[Tensor], float, float]  # importance, causal, the baseline's preference, the bound


@exercise(
    1,
    task='Choose the three comparisons to ask for, for instance {"a", "b", "c"}.',
    proved="Chance, a twin without the knowledge, and sentences that chose nothing: each rules out one other story.",
)
def check_three_controls(attempt: set[str]) -> None:
    """Check a set of three letters: the controls that a claim needs most."""
    require(
        not isinstance(attempt, set | list | tuple) or len(set(attempt)) == 3,
        f"Three, not {len(set(attempt)) if isinstance(attempt, set | list | tuple) else 'that'}: the budget is short.",
    )
    chosen(
        attempt,
        {"a", "c", "e"},
        {
            "a": "without random removals of the same size nobody knows what any removal does to the number.",
            "b": "a larger cut changes the budget and the ability together; it answers another question.",
            "c": "the twin shares everything but the knowledge of the groups, so it isolates that knowledge.",
            "d": "the same sentences with another seed choose and judge on the same words again.",
            "e": "new templates are the only ones that had no part in choosing the neurons.",
            "f": "a longer training would change the model and leave open what the removal did.",
        },
    )


@exercise(
    2,
    task="Return the numbers of the neurons to cut: the most biased ones among those that are not protected.",
    proved="The important neurons are safe, whatever they score, and the most biased of the others go.",
)
def check_neurons_to_cut(attempt: Attempt) -> None:
    """Check a function (importance, bias, share protected, count) -> neurons to cut."""
    for seed, protected, count in ((0, 0.5, 3), (1, 0.0, 4), (2, 0.35, 5), (3, 0.9, 1)):
        importance, bias = _scores(seed)
        given = attempt(importance.clone(), bias.clone(), protected, count)
        cut = torch.as_tensor(given).flatten().tolist()
        which = f"With {protected:.0%} protected and {count} to cut: "
        require(
            all(isinstance(number, int) for number in cut), f"{which}return the neurons' numbers, not their scores."
        )
        require(len(set(cut)) == len(cut) == count, f"{which}return {count} different neurons; yours are {cut}.")
        safe = math.ceil(protected * len(importance))
        order = importance.argsort(descending=True)
        right = _highest(bias, count, among=order[safe:])
        mistakes = (
            (_highest(bias, count), "nobody is protected. Set the most important neurons aside first."),
            (_highest(-importance, count), "those are the least important ones. Among the unprotected, bias decides."),
            (_highest(-bias, count, among=order[safe:]), "those are the least biased ones. Cut the most biased first."),
            (
                _highest(bias, count, among=order[: max(count, len(order) - safe)]),
                "you cut among the most important neurons. Those are the ones to protect.",
            ),
            (
                _highest(bias, count, among=order[math.floor(protected * len(importance)) :]),
                "one neuron too few is protected. Round the number up: math.ceil.",
            ),
            (
                _highest(bias.abs(), count, among=order[safe:]),
                "you took the magnitude of the bias score. A negative score keeps the bias down: leave such a neuron.",
            ),
        )
        rule_out(mistakes, set(cut), right, where=which)
        require(set(cut) == right, f"{which}the neurons {sorted(right)} should go; yours are {sorted(cut)}.")


@exercise(
    3,
    task="Return True if something that chose the neurons also judges them, otherwise False.",
    proved="It sees shared templates, their paraphrases, and old texts under new names. Ask it before you believe.",
)
def check_is_circular(attempt: Attempt) -> None:
    """Check a function (pairs that choose, pairs that judge) -> whether that is circular."""
    for selection, evaluation, circular, mistake in _plans():
        answer = true_or_false(attempt(list(selection), list(evaluation)))
        require(answer == circular, f"{'Not seen' if circular else 'False alarm'}: {mistake}")


@exercise(
    4,
    task="Return two numbers: the difference in differences and its standard error over the templates.",
    proved="Before and after, and with and without the neutral swaps: both are paired, template by template.",
)
def check_difference_in_differences(attempt: Attempt) -> None:
    """Check a function (base, pruned, neutral base, neutral pruned) -> estimate, standard error."""
    for seed in (0, 1):
        tables = _tables(seed)
        given = attempt(*(table.clone() for table in tables))
        estimate, error = (float(value) for value in given)
        base, pruned, neutral_base, neutral_pruned = tables
        change, of_neutral = pruned - base, neutral_pruned - neutral_base
        by_template = change.mean(1) - of_neutral.mean(1)
        right, right_error = float(by_template.mean()), _standard_error(by_template)
        of_the_estimate = (
            (-right, "turned round. It is pruned minus base, and demographic minus neutral."),
            (float(change.mean()), "the neutral swaps are missing. Subtract what pruning did to them."),
            (float(pruned.mean() - neutral_pruned.mean()), "the base model is missing. Compare the *changes*."),
            (float(pruned.abs().mean() - base.abs().mean()), "no magnitudes here: they hide the direction."),
        )
        rule_out(of_the_estimate, estimate, right, same=_close, where="The estimate: ")
        require(
            _close(estimate, right), f"The estimate is {right:+.4f} for the check's numbers; yours {estimate:+.4f}."
        )
        changes = [change, of_neutral]
        of_the_error = (
            (
                math.hypot(*(_standard_error(table.mean(1)) for table in changes)),
                "you treat both groups as independent. They share their templates: subtract first, template by "
                "template, then take the spread.",
            ),
            (
                math.hypot(*(_standard_error(table.flatten()) for table in changes)),
                "you count every template x swap as a unit. Items of one template resemble each other: average over "
                "the swaps first.",
            ),
            (
                math.hypot(*(_standard_error(table.mean(1)) for table in tables)),
                "you treat all four tables as independent. Both models met the same items: subtract first.",
            ),
            (
                float(by_template.std()),
                "that is the spread of the templates. The error of their mean is it / √templates.",
            ),
            (
                float(by_template.std(unbiased=False)) / math.sqrt(len(by_template)),
                "almost: the spread of a sample divides by templates - 1.",
            ),
        )
        rule_out(of_the_error, error, right_error, same=_close, where="The error: ")
        require(
            _close(error, right_error), f"The error is {right_error:.4f} for the check's numbers; yours {error:.4f}."
        )


@exercise(
    5,
    task='Choose the claims that the tables support, for instance {"a", "b"}.',
    proved="What an arm does is a claim about its controls: ability, twins, chance, and sentences that chose nothing.",
)
def check_supported_claims(attempt: set[str]) -> None:
    """Check a set of letters: which claims about a table of arms hold."""
    chosen(
        attempt,
        {"c", "d"},
        {
            "a": "the model that this arm leaves can't read. A preference of 0 is what noise has, too.",
            "b": "a large p is no proof of no change. It says that this many sentences show none.",
            "c": "the arm was picked because it looked best on these sentences; others have to confirm it.",
            "d": "if the twin, which knows nothing of the groups, gets as far, the knowledge was not what did it.",
            "e": "this measures one preference, in some templates, between two endings; fairness is more than that.",
        },
    )


@exercise(
    6,
    task="Return one tensor [neurons] a block: what is lowest in it goes first.",
    proved="Less of the planted preference is left than with the baseline, and the model is able, both on split B.",
)
def check_my_order(attempt: Attempt, judge: Callable[[list[Tensor]], tuple[float, float]], given: Given) -> None:
    """Check a function (importance, causal) -> order, by the model that is left when its lowest neurons are cut.

    Args:
        attempt: the learner's function.
        judge: order -> (what is left of the preference on split B in nats, the upper end of the perplexity's ratio).
        given: importance, causal scores, the baseline's preference in nats, and the bound on the perplexity's ratio.
    """
    importance, causal, baseline, bound = given
    order = attempt([scores.clone() for scores in importance], [scores.clone() for scores in causal])
    require(
        isinstance(order, list | tuple) and [tuple(o.shape) for o in order] == [tuple(i.shape) for i in importance],
        f"Return a list of {len(importance)} tensors, one score for each neuron of a block.",
    )
    require(all(bool(o.isfinite().all()) for o in order), "A score is NaN or infinite; every neuron needs a number.")
    left, price = judge(list(order))
    found = f"{abs(left):.2f} nats are left (baseline {abs(baseline):.2f}), perplexity at most × {price:.2f}"
    require(price < bound, f"{found}: above {bound:.2f} the model is no longer able. Protect what is important.")
    require(
        abs(left) < abs(baseline),
        f"{found}. Mind the sign: what is *lowest* goes first, and the causal score is high for what carries the bias.",
    )
    print(found)


def _scores(seed: int, neurons: int = 14) -> tuple[Tensor, Tensor]:
    """Importance and bias of a block's neurons: the important ones tend to be the biased ones, some scores below 0."""
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(neurons, generator=generator)
    return importance, 2 * importance - 1 + torch.randn(neurons, generator=generator)


def _highest(scores: Tensor, count: int, *, among: Tensor | None = None) -> set[int]:
    """The numbers of the highest scores, of all neurons or of some."""
    among = torch.arange(len(scores)) if among is None else among
    return set(among[scores[among].argsort(descending=True)[:count]].tolist())


def _plans() -> list[tuple[list[Pair], list[Pair], bool, str]]:
    """(pairs that choose, pairs that judge, whether that is circular, what the mistake would be)."""
    made = {split: pairs("gender", split=split) for split in ("selection", "evaluation")}
    (one, other), held_out = (made["selection"][i] for i in (0, 40)), made["evaluation"]
    renamed = replace(one, template="another name", split="evaluation")
    second_wording = replace(
        held_out[0], before=f"Yesterday, {held_out[0].before.lower()}", template=f"{one.template}:2", split="evaluation"
    )
    alike = replace(held_out[0], template=f"{one.template}s", split="evaluation")
    across = next(p for p in pairs("age", split="selection") if p.template == one.template)
    return [
        ([one], [one], True, "the very same pair chooses and judges."),
        (made["selection"], held_out, False, "these templates have nothing in common. The same swap may come again."),
        ([one], [p for p in made["selection"] if p.template == one.template and p.swap != one.swap], True,
         "another swap, but the same template: what is special about its wording is in both."),
        ([one], [p for p in made["selection"] if p.template == one.template and p.valence != one.valence], True,
         "another ending, but the same template."),
        ([one], [replace(across, split="evaluation")], True,
         "the label 'split' says evaluation, and the axis is another one, but the template chose. Look at the "
         "templates, not at what the labels promise."),
        ([one, other], [*held_out, second_wording], True,
         f"'{one.template}:2' is a second wording of '{one.template}'. Compare what stands before the colon."),
        ([second_wording], [one], True,
         "the paraphrase may stand on either side: strip the ending from both lists."),
        ([one], [alike], False, f"'{alike.template}' is not '{one.template}'. Compare whole names, not beginnings."),
        ([alike], [one], False, f"'{one.template}' is not '{alike.template}'. Compare whole names, not beginnings."),
        ([one], [renamed], True, "the text is the same, only the template has got a new name. Compare texts, too."),
        ([one], [replace(renamed, a=one.b, b=one.a)], True,
         "the same two texts, with a and b exchanged and under a new name."),
    ]  # fmt: skip


def _tables(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """base, pruned [12 templates, 10 swaps], and the neutral ones [12, 8]; every template has its own change."""
    generator = torch.Generator().manual_seed(seed)
    template = torch.randn(12, 1, generator=generator)
    base, neutral_base = (torch.randn(12, swaps, generator=generator) for swaps in (10, 8))
    own = 0.3 * torch.randn(12, 1, generator=generator) - 0.4
    pruned, neutral_pruned = (
        table + template + extra + 0.2 * torch.randn(table.shape, generator=generator)
        for table, extra in ((base, own), (neutral_base, 0.0))
    )
    return tuple(table.double() for table in (base, pruned, neutral_base, neutral_pruned))


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def _close(given: float, expected: float) -> bool:
    return abs(given - expected) <= 1e-6 * max(1.0, abs(expected))
