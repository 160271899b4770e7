"""Checks of lesson 11, a model like the labs make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from course_utils.exercises import Attempt, assigned, chosen, exercise, require, rule_out

SIZES = ("blocks", "hidden", "groups", "neurons")
ARMS = ("random cut", "from scratch", "depth only", "uncorrected", "no teacher", "optipfair", "none of them")


@exercise(
    1,
    task="Return one score for each KV group: the root mean square, over the tokens, of its outputs' length.",
    proved="A group is scored by all of its heads together, because they go together.",
)
def check_group_scores(attempt: Attempt) -> None:
    """Check a function (outputs [tokens, query heads, head size], groups) -> [groups]."""
    for tokens, heads, size, groups in ((5, 6, 4, 3), (7, 8, 2, 2), (3, 4, 3, 4)):
        outputs = torch.randn(tokens, heads, size, generator=torch.Generator().manual_seed(heads))
        outputs = outputs * torch.linspace(0.2, 2, heads)[:, None]
        given = torch.as_tensor(attempt(outputs, groups)).float()
        a_head = outputs.square().sum(-1)  # [tokens, heads]
        together = outputs.unflatten(1, (groups, -1))  # [tokens, groups, heads of each, size]
        square = together.square().sum((2, 3))  # [tokens, groups]
        right = square.mean(0).sqrt()
        require(
            given.shape != (heads,) or heads == groups,
            f"You scored each of {heads} query heads; {groups} groups were asked for. A group is one key/value head "
            "with all query heads that read it.",
        )
        require(given.shape == (groups,), f"Return {groups} numbers, one a group; yours has shape {list(given.shape)}.")
        apart = outputs.unflatten(1, (-1, groups)).square().sum((1, 3))  # every groups-th head
        rule_out(
            (
                (apart.mean(0).sqrt(), "Heads of one group lie beside each other: the first ones read the same key."),
                (square.mean(0), "That is the mean square. Take the root at the end."),
                (square.sum(0).sqrt(), "You added over the tokens. Divide by their number: take the mean."),
                (together.mean((0, 2, 3)), "Signs cancel in a mean. Square first."),
                (square.sqrt().mean(0), "That is the mean length. Mean of the squares first, root last."),
                (a_head.mean(0).sqrt().unflatten(0, (groups, -1)).sum(1),
                 "You added the heads' lengths. Lengths at right angles add up as squares."),
                (together.abs().sum((2, 3)).mean(0), "That is the L1 norm; a length is the root of a sum of squares."),
            ),
            given, right, same=_close,
        )  # fmt: skip
        require(_close(given, right), f"They are {_shown(right)}; yours {_shown(given)}.")


@exercise(
    2,
    task="Return the factor that gives the kept channels, on average, their old size behind the norm.",
    proved="The norm divides by the length of what is left; one number a norm puts that right.",
)
def check_norm_factor(attempt: Attempt) -> None:
    """Check a function (states [tokens, hidden], kept: indices) -> what the norm's weights are multiplied with."""
    for tokens, hidden, kept in ((6, 8, [0, 1, 2, 5, 7]), (4, 6, [1, 3]), (5, 10, list(range(9)))):
        states = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(hidden))
        states = states * torch.linspace(0.3, 3, hidden) * torch.linspace(1, 20, tokens)[:, None]
        kept_ids = torch.tensor(kept)
        given = float(attempt(states.clone(), kept_ids))
        squares = states.square()
        share = float((squares[:, kept_ids].sum(1) / squares.sum(1)).mean())
        at_once = float(squares[:, kept_ids].sum() / squares.sum())
        grown = hidden / len(kept)
        right = (share * grown) ** 0.5
        rule_out(
            (
                (1 / right, "Upside down. The norm divides by a *shorter* length now, or by a longer one: see which."),
                (share**0.5, "The norm divides by a *mean* square: the number of channels changed as well."),
                (grown**0.5, "That is right if the kept channels hold all of the energy. They hold a share of it."),
                (share * grown, "Lengths, not energies: take the root."),
                ((share / grown) ** 0.5, "Hidden / kept, not kept / hidden."),
                ((at_once * grown) ** 0.5,
                 "You added the energies of all tokens first, so one token with enormous states decides. Take each "
                 "token's share, then the mean."),
            ),
            given, right, same=_near,
        )  # fmt: skip
        require(_near(given, right), f"{len(kept)} of {hidden} channels: it is {right:.4f}, yours {given:.4f}.")


@exercise(
    3,
    task="Return the number of parameters of a Llama with these sizes and a tied head.",
    proved="Each size has its own price, and the vocabulary is paid once, whatever you cut.",
)
def check_parameters(attempt: Attempt) -> None:
    """Check a function (blocks, hidden, groups, neurons, queries, head_size, vocabulary) -> parameters."""
    for sizes in ((2, 8, 3, 20, 3, 4, 50), (30, 576, 3, 1536, 3, 64, 49_152), (16, 2048, 8, 8192, 4, 64, 128_256)):
        given = attempt(*sizes)
        require(float(given) == int(given), f"A number of parameters is whole; yours is {given!r}.")
        right, named = _parameters(*sizes), _wrong_counts(*sizes)
        where = f"blocks {sizes[0]}, hidden {sizes[1]}, groups {sizes[2]}, neurons {sizes[3]}: "
        rule_out(((wrong, mistake) for mistake, wrong in named.items()), int(given), right, where=where)
        require(int(given) == right, f"{where}they are {right:,}; yours {int(given):,}.")


@exercise(
    4,
    task='Say for each claim which arm tests it; "none of them" if none does.',
    proved="A control answers one question: it differs from the winner in one thing, and in nothing else.",
)
def check_controls(attempt: Mapping[str, str]) -> None:
    """Check letter of a claim -> the arm that it has to be compared with."""
    assigned(attempt, _CONTROLS, ARMS)


@exercise(
    5,
    task="Return the letters of the sentences that may stand in the card.",
    proved="A card says what was measured, where, and against what; everything else is advertisement.",
)
def check_card(attempt: Iterable[str]) -> None:
    """Check the letters of the sentences that the record supports."""
    chosen(attempt, _CARD_RIGHT, _CARD)


@exercise(
    6,
    task="Return four sizes within the budget whose cut beats the one that only gave up blocks, on text of its own.",
    proved="These sizes beat depth alone before anything has learned; whether they still do afterwards is what "
    "ranking twice is for.",
)
def check_entry(entry: Mapping[str, int], *, judge: Callable[[dict[str, int]], tuple[int, float]], budget: float,
                baseline: dict[str, int]) -> None:  # fmt: skip
    """Check sizes by name.

    Args:
        entry: of ``SIZES``.
        judge: sizes -> parameters, and the nats a token of the cut on held-out text; raises ValueError where
            transformers refuses them.
        budget: the most parameters.
        baseline: the sizes to beat.
    """
    sizes = dict(entry)
    require(
        sizes.keys() == set(SIZES), f"Give {', '.join(SIZES)}; yours has {', '.join(map(str, sizes)) or 'nothing'}."
    )
    whole = [name for name in SIZES if int(sizes[name]) != sizes[name]]
    require(not whole, f"Sizes are whole numbers; look at {', '.join(whole)}.")
    sizes = {name: int(sizes[name]) for name in SIZES}
    require(sizes != baseline, "That is the version to beat.")
    try:
        cost, nats = judge(sizes)
    except ValueError as refused:
        require(False, str(refused))
    require(
        cost <= budget, f"{cost:,} parameters are more than the budget of {budget:,.0f}. Make one of the four smaller."
    )
    _, rival = judge(baseline)
    require(
        nats < rival,
        f"{nats:.3f} nats a token; blocks alone need {rival:.3f}. Look at the table of versions: which sizes are cheap "
        "to lose?",
    )


def _parameters(
    blocks: int, hidden: int, groups: int, neurons: int, queries: int, head_size: int, vocabulary: int
) -> int:
    """Of a Llama whose head is tied to the embedding; ``queries`` query heads read each key/value head."""
    attention = 2 * hidden * groups * queries * head_size + 2 * hidden * groups * head_size  # q and o; k and v
    return vocabulary * hidden + blocks * (attention + 3 * hidden * neurons + 2 * hidden) + hidden


def _wrong_counts(blocks: int, hidden: int, groups: int, neurons: int, queries: int, head_size: int,
                  vocabulary: int) -> dict[str, int]:  # fmt: skip
    right = _parameters(blocks, hidden, groups, neurons, queries, head_size, vocabulary)
    heads = hidden * groups * queries * head_size
    return {
        "the head is tied: its matrix is the embedding's, and counts once.": right + vocabulary * hidden,
        "the vocabulary's matrix is missing. It is the largest of all, and no cut of blocks makes it smaller.":
            right - vocabulary * hidden,
        "keys and values have as many heads as there are groups, not as there are queries.":
            right + 2 * blocks * (heads - heads // queries),
        "a GLU has three matrices: gate, up and down.": right - blocks * hidden * neurons,
        "the output projection of the attention is missing.": right - blocks * heads,
        "the norms are missing: two in each block and one at the end.": right - (2 * blocks + 1) * hidden,
        "the last norm is missing.": right - hidden,
        "`queries` is how many query heads read *each* key/value head: there are groups x queries of them.":
            right - 2 * blocks * hidden * head_size * (groups * queries - queries),
    }  # fmt: skip


def _close(given: Tensor, right: Tensor) -> bool:
    return bool(torch.allclose(given, right, rtol=1e-4))


def _near(given: float, right: float) -> bool:
    return abs(given - right) <= 1e-4 * abs(right)


def _shown(scores: Tensor) -> str:
    return ", ".join(f"{score:.3f}" for score in scores.tolist())


_CONTROLS = {  # of exercise 4: the arm, and why
    "A": ("random cut", "same sizes, same tokens, same teacher; only *what* was kept differs."),
    "B": ("from scratch", "same sizes, same tokens, same teacher; only the weights that it starts from differ."),
    "C": ("depth only", "about the same number of parameters, taken from blocks alone instead of several sizes."),
    "D": ("uncorrected", "sizes, tokens and order are the same; the teacher never learned from this text."),
    "E": ("no teacher", "the same cut and the same text, learned by cross-entropy alone; only the teacher is gone."),
    "F": ("none of them", "all arms start from the same model. That needs another one, cut by the same recipe."),
    "G": (
        "optipfair",
        "as many parameters by that library's scores and its one axis; tokens and teacher are the same.",
    ),
}
_CARD_RIGHT = {"A", "C", "E", "F"}
_CARD = {  # of exercise 5: every sentence, and why it may stand there or not
    "A": "on all three domains the difference is many standard errors.",
    "B": 'on HellaSwag it is right less often, and elsewhere an interval that holds 0 isn\'t "as well".',
    "C": "rows with thirteen words in a row from the training text were taken out before anything was judged.",
    "D": "look at the two intervals of the gap, and ask whether less knowledge would look the same.",
    "E": "format, machine and interval are in the record: the whole interval lies above 1.",
    "F": "the random cut is worse on all three domains, by more than two standard errors.",
    "G": "one model was cut. Whether the recipe carries over is another experiment.",
    "H": "on stories the arm without a teacher ended ahead. A sentence without its domain is too large.",
}
