"""Checks of lesson 13, half the vocabulary: closed sets of tokens, the gift of fewer rivals, bytes, and a purpose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.lessons.exercises import Attempt, exercise, expect, number, require, take_a_try
from course_utils.lessons.exercises.moved import to_lesson
from course_utils.measuring.language_modelling import perplexity
from course_utils.models.loading import variant
from course_utils.pruning.vocabulary import choose_tokens, prune_vocabulary
from course_utils.text.byte_pairs import BytePairs
from course_utils.text.passages import Passage, batches_of

__getattr__ = to_lesson("12")  # what a notebook from before imports from here
_ENGLISH, _CODE = 0.95, 0.4  # of what the first tokens by number cost, at most
_MERGES = {
    4: (0, 1), 5: (2, 3), 6: (4, 5), 7: (6, 4), 8: (1, 2), 9: (8, 8), 10: (9, 7),
}  # fmt: skip
_BACK, _HEALED = 16, 2 / 3  # tokens, at most; of the harm, what may stay
_BIT = math.log(2)  # nats
_Merges = Mapping[int, tuple[int, int]]


def _closed(tokens, merged_from, *, steps=None, own=True):
    """The answer to exercise 1; ``steps`` and ``own`` are mistakes."""
    found, todo = set(tokens), list(tokens)
    while todo and steps != 0:
        todo = [part for token in todo for part in merged_from.get(token, ()) if part not in found]
        found |= set(todo)
        steps = None if steps is None else steps - 1
    return found if own else found - set(tokens)


def _as_set(answer: object) -> set[int]:
    expect(answer, (set, frozenset, list, tuple), "Return a set of token numbers")
    return {int(token) for token in answer}  # type: ignore[attr-defined]


@exercise(
    1,
    task="Return the set of these tokens and of all that they are merged from.",
    proved="Every token that stays can still be written, because its parts stay, and their parts.",
    answer=_closed,
    mistakes=[
        (partial(_closed, steps=0), "those are the tokens that you were given. Add what they are merged from."),
        (partial(_closed, steps=1), "you add the parts, but not the parts of the parts. Go on until nothing is new."),
        (partial(_closed, own=False), "you return the parts alone. The tokens themselves stay as well."),
    ],
)  # fmt: skip
def check_close(attempt: Attempt, merged_from: _Merges | None = None) -> None:
    """Check a function (tokens, merged_from) -> set; on a small vocabulary, then on the lesson's own."""
    for tokens in ({10}, {7}, {9, 5}, {0, 3}, {10, 6}):
        shown = ", ".join(map(str, sorted(tokens)))
        attempt.compare(tokens, _MERGES, read=_as_set, same=set.__eq__, where=f"For tokens {shown}: ")
    if merged_from:
        some = sorted(merged_from)[-200:]
        attempt.compare(some, merged_from, read=_as_set, same=set.__eq__, where="For 200 real tokens: ")


def _gift(logits, kept, *, size=lambda whole, part: whole - part):
    """The answer to exercise 2; ``size`` says how the two sums become a number."""
    return size(logits.float().logsumexp(-1), logits.float()[..., kept].logsumexp(-1))


@exercise(
    2,
    task="Return the gift at each position: minus the logarithm of the probability of all kept tokens together.",
    proved="It is at least 0 everywhere, so on text whose tokens all stay the loss can only fall.",
    answer=_gift,
    mistakes=[
        (partial(_gift, size=lambda whole, part: part - whole), "the sign is turned: minus the logarithm."),
        (partial(_gift, size=lambda whole, part: (part - whole).exp()),
         "that is the kept probability itself. Take minus its logarithm."),
        (partial(_gift, size=lambda whole, part: 1 - (part - whole).exp()),
         "that is the probability that went. Take minus the logarithm of what stayed."),
        (partial(_gift, size=lambda whole, part: (whole - part) / math.log(2)), "those are bits; nats are asked for."),
        (lambda logits, kept: torch.full(logits.shape[:-1], math.log(logits.shape[-1] / len(kept))),
         "you count tokens as if all were equally likely. Add up their probabilities."),
    ],
)  # fmt: skip
def check_gift(attempt: Attempt) -> None:
    """Check a function (logits [..., vocabulary], kept) -> nats [...]."""
    made = torch.Generator().manual_seed(0)
    kept = torch.tensor([0, 2, 3, 7])
    for shape, scale in (((10,), 1), ((3, 10), 4), ((2, 3, 10), 1)):
        attempt.compare(torch.randn(shape, generator=made) * scale, kept, where="For random logits: ")
    unlikely = torch.zeros(10)
    unlikely[5] = 200.0
    attempt.compare(unlikely, kept, where="Where the kept tokens are very unlikely: ", hint="Stay with logsumexp.")


def _bits(nats, parts, *, size=lambda part: len(part.encode()), unit=_BIT, total=True):
    """The answer to exercise 3, with switches for mistakes."""
    sizes = [size(part) for part in parts]
    each = torch.as_tensor(nats, dtype=torch.float64)
    if total:
        return float(each.sum() / sum(sizes) / unit)
    return float((each / torch.tensor(sizes)).mean() / unit)


@exercise(
    3,
    task="Return the bits per byte of all parts together.",
    proved="Bytes belong to the text and not to a tokenizer, so two vocabularies can be compared.",
    answer=_bits,
    mistakes=[
        (partial(_bits, unit=1), "those are nats. A bit is ln 2 nats, so divide by it."),
        (partial(_bits, size=len), "you count characters. An é takes two bytes: len(part.encode())."),
        (partial(_bits, total=False), "you average over parts, and they differ in length. Divide the sums."),
        (partial(_bits, size=lambda part: 1), "those are bits per part. Divide by all bytes."),
        (partial(_bits, unit=1 / math.log(2)), "you multiply by ln 2. A nat is more than a bit: divide."),
    ],
)  # fmt: skip
def check_bits(attempt: Attempt) -> None:
    """Check a function (nats of each part, parts) -> bits per byte."""
    for nats, parts in (([8.0, 2.0], ["été", "a longer part"]), ([3.0], ["return x"]), ([1.0, 9.0], ["ß", "ab"])):
        attempt.compare(nats, parts, read=number, where=f"For the parts {', '.join(map(repr, parts))}: ")


def _put_back(text):
    """The answer to exercise 4: a line break and an indentation. Its last space belongs to the next word."""
    return text in {"\n" + " " * (4 * depth - 1) for depth in range(1, 7)}


@exercise(
    4,
    task="Return True for tokens that code needs and prose doesn't; with their parts at most 16.",
    proved="That was a cause: a few tokens are back, and much of the harm to code is gone.",
    answer=_put_back,
)
def check_put_back(attempt: Attempt, texts: Sequence[str], english: Tensor, exam: VocabularyExam) -> None:
    """Check a function (text of a token) -> bool, by cutting the model again with these tokens put back."""
    back = torch.tensor([_true_or_false(attempt(text), text) for text in texts])
    worth = english + back * english.sum()
    returned = set(exam.chosen(worth)) - set(exam.chosen(english))
    require(returned, "No token that you name was gone. Look at the pieces that the lower half of the figure hasn't.")
    lengths = " Or is it the right kind in other lengths? The last space of an indentation belongs to the next word."
    blank = not "".join(text for text, named in zip(texts, back, strict=True) if named).strip()
    require(
        len(returned) <= _BACK,
        f"With their parts {len(returned):,} tokens come back, and {_BACK} is the most. Which does every line need?",
    )
    before, after = exam.cost(english)["code"], exam.cost(worth)["code"]
    print(f"  {len(returned)} tokens back: code costs {after:+.0%} per byte; without them {before:+.0%}")
    require(
        after <= _HEALED * before,
        "Most of the harm is still there. What is one piece in the upper half of the figure, and many in the lower?"
        + lengths * blank,
    )


def _true_or_false(answer: object, text: str) -> bool:
    expect(answer, bool, f"For {text!r}: return True or False")
    return bool(answer)


class VocabularyExam:
    """What a vocabulary of ``keep`` tokens costs on some texts: exercise 4 may always ask, 5 has few tries."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        parts: Mapping[str, Sequence[str]],
        keep: int,
        *,
        tries: int = 2,
    ) -> None:
        self._model, self._tokenizer, self._parts = model, tokenizer, parts
        self._keep, self.left = keep, tries

    @cached_property
    def whole(self) -> dict[str, float]:
        """Bits per byte of the whole model."""
        return self._bits(self._model, self._tokenizer)

    @cached_property
    def first(self) -> dict[str, float]:
        """What the first tokens by number cost."""
        return self.cost(torch.zeros(BytePairs.of(self._tokenizer).size))

    def cost(self, worth: Tensor) -> dict[str, float]:
        """How much more a byte costs with the tokens that these numbers choose, as a share of the whole model's."""
        small = variant(self._model)
        cut = self._bits(small, prune_vocabulary(small, self._tokenizer, self.chosen(worth))[1])
        return {text: bits / self.whole[text] - 1 for text, bits in cut.items()}

    def chosen(self, worth: Tensor) -> list[int]:
        """The tokens that these numbers choose."""
        return choose_tokens(self._tokenizer, worth, keep=self._keep)

    def _bits(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        found = {}
        for text, parts in self._parts.items():
            rows = batches_of([Passage(n, part) for n, part in enumerate(parts)], tokenizer, batch_size=8)
            found[text] = perplexity(model, rows).bits_per_byte
        return found


def _worth(english: Tensor, code: Tensor) -> Tensor:
    """The answer to exercise 5."""
    return english / english.sum() + code / code.sum()


@exercise(
    5,
    task="Return a number of at least 0 for each token, [vocabulary]; the largest stay.",
    proved="A small sample of code is enough, as long as the large one of English doesn't outvote it.",
    answer=_worth,
)
def check_worth(attempt: Attempt, english: Tensor, code: Tensor, exam: VocabularyExam) -> None:
    """Check a function (counts of English, counts of code) -> worth of each token, by an exam of few tries."""
    worth = attempt(english.clone(), code.clone())
    expect(worth, Tensor, "Return a tensor")
    require(worth.shape == english.shape, f"Return one number for each of {len(english):,} tokens.")
    require(bool((worth.isfinite() & (worth >= 0)).all()), "Return finite numbers of at least 0.")
    take_a_try(exam)
    own, first = exam.cost(worth.double()), exam.first
    for text in own:
        print(f"  exam: {text} costs {own[text]:+.1%} per byte, the first ones by number {first[text]:+.1%}")
    print(f"  tries left: {exam.left}")
    for text, most in zip(own, (_ENGLISH, _CODE), strict=True):
        require(
            own[text] <= most * first[text],
            f"{text} may cost at most {most:.0%} of what it costs with the first tokens by number. Which of the two "
            "counts decides most of your numbers?",
        )
