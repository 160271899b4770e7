"""What a model can do besides prose, and what a cut took of it: nats of each answer, floors, flips.

Questions of one kind follow each other in a row, each with its answer; the first two of a row are shown and not
counted. An answer is right when each of its tokens is the likeliest after those before it, which are the right ones. In
code and in the languages each token that is predicted is an answer.

Lists, sums and patterns are made by a seeded generator, facts are capitals from a table of the course's own; code and
languages are the asset "abilities" (code: MIT; languages: web text and Wikipedia, CC BY-SA; fetched, not shipped).
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring.evaluation import Perplexity, perplexity_ratio
from course_utils.models.architectures import describe
from course_utils.pruning.activations import evaluating
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.uncertainty import mcnemar_p, ratio_interval
from course_utils.text import assets
from course_utils.text.batches import padded, read_batches

Group = list[tuple[str, str]]  # questions with their answers that stay together

_SHOWN, _MOST_ASKED = 2, 24  # groups of a row that are shown only, and rows of questions
_TEXT_ROW, _PARAGRAPH = 64, 200  # tokens of a row of text, characters of a paragraph at least
_WORDS = (
    "apple bird book bread bridge castle chair clock cloud coat corn desk dog door egg fish flag flower fox "
    "garden gate glass gold grass hat hill horse house iron island key king lake lamp leaf lion map milk moon "
    "mouse paper pen queen rain ring river road rock rose salt sand ship shoe snow star stone sugar sun table "
    "tower tree wall water wheel window wine wolf wood"
).split()
_LISTED, _LISTS = 8, 240  # words of a list, and lists
_BATCH = 8  # rows that run at once
_NATS = ("nats_lost", "ci_low", "ci_high")


def _copying() -> list[list[Group]]:
    draw, lists = random.Random(0), []
    for _ in range(_LISTS):
        first, *others = draw.sample(_WORDS, _LISTED)
        told = f"\nWords: {', '.join([first, *others])}.\nAgain:"
        lists.append([(told, f" {first}"), *((",", f" {word}") for word in others)])
    return [lists]


def _sums() -> list[list[Group]]:
    return [[[(f"\n{a} + {b} =", f" {a + b}")] for a in range(1, 41) for b in range(1, 25)]]


def _patterns() -> list[list[Group]]:
    patterns = [range(first, first + 5 * step, step) for first in range(50) for step in range(1, 10)]
    return [[[(f"\n{', '.join(map(str, seen))},", f" {last}")] for *seen, last in patterns]]


def _facts() -> list[list[Group]]:
    """Each capital's country and each country's capital, in rows of their own: one would give the other away."""
    capitals = json.loads((files("course_utils") / "data" / "capitals.json").read_text(encoding="utf-8"))
    asked = [[(f"\nThe capital of {country} is", f" {city}")] for country, city in capitals.items()]
    return [asked, [[(f"\n{city} is the capital of", f" {country}")] for country, city in capitals.items()]]


def _code() -> list[str]:
    """Functions and classes of a package under the MIT licence."""
    modules = (file.read() for _, file in assets.open_files("abilities", "generator/*.py"))
    return re.split(r"\n(?=class |def |    def )", "\n".join(modules))


def _language(words: str) -> list[str]:
    """The paragraphs in which every eighth word at least is among these, which no other language shares with it all."""
    common = set(words.split())
    source = "".join(file.read() for _, file in assets.open_files("abilities", "*/multilingual.utf8"))
    paragraphs = (re.sub(r"\s+", " ", line) for line in source.split("\n"))
    return [text for text in paragraphs if sum(word in common for word in text.lower().split()) * 8 > text.count(" ")]


_QUESTIONS: dict[str, tuple[Callable[[], list[list[Group]]], int]] = {  # and how many groups make a row
    "copying": (_copying, 6),
    "sums": (_sums, 24),
    "patterns": (_patterns, 12),
    "facts": (_facts, 16),
}
_TEXTS: dict[str, Callable[[], list[str]]] = {
    "code": _code,
    "French": lambda: _language("le les et des est dans que pour du au qui sur pas il"),
    "German": lambda: _language("der und das ist nicht den von zu mit sich auf ein eine dem"),
    "Spanish": lambda: _language("el los y en las por su es que con se fue como del"),
}
TEXTS = tuple(_TEXTS)
ABILITIES = (*_QUESTIONS, *TEXTS)


@dataclass(frozen=True)
class AbilityRows:
    """Rows that ask for one ability, padded on the right.

    Attributes:
        name: one of ``ABILITIES``.
        input_ids: int64 [rows, longest].
        attention_mask: int64 [rows, longest], 0 where a row is padded.
        answers: int64 [rows, longest], the number of the answer that a token belongs to, counted through all rows;
            -1 for what isn't asked for.
    """

    name: str
    input_ids: Tensor
    attention_mask: Tensor
    answers: Tensor

    def batches(self, batch_size: int = _BATCH) -> list[dict[str, Tensor]]:
        """The rows as ``{"input_ids", "attention_mask"}`` dicts, to read or to choose neurons by."""
        checks.whole_number("batch_size", batch_size, least=1)
        parts = zip(self.input_ids.split(batch_size), self.attention_mask.split(batch_size), strict=True)
        return [{"input_ids": ids, "attention_mask": mask} for ids, mask in parts]


@check_types
def ability_rows(
    name: str, tokenizer: PreTrainedTokenizerBase, *, split: str = "evaluation", most: int = 48
) -> AbilityRows:
    """Questions of one kind with their answers, or text of one kind; the same ones for every tokenizer.

    Args:
        name: "copying" (a list of words, again), "sums", "patterns" (rows of numbers with equal steps), "facts"
            (capitals), "code" (Python), "French", "German" or "Spanish".
        tokenizer: any fast one; no special tokens are added.
        split: "evaluation" to judge by, "calibration" to choose by: a third of the questions, countries or paragraphs.
        most: rows at most; of questions there are 24 at most.

    Raises:
        ValueError: an unknown name or split, or a tokenizer that can't tell where its tokens stand.
        AssetError: code or languages are not in the cache and can't be fetched.
    """
    checks.one_of("name", name, ABILITIES)
    checks.one_of("split", split, ("evaluation", "calibration"))
    checks.whole_number("most", most, least=1)
    if not tokenizer.is_fast:
        raise ValueError(f"'tokenizer' must be a fast one, which tells where tokens stand; got {type(tokenizer)}.")
    rows, answers, seen = [], [], 0
    for ids, own in (_asked if name in _QUESTIONS else _read)(name, tokenizer, split, most):
        rows.append(ids)
        answers.append([number if number < 0 else number + seen for number in own])
        seen = max(answers[-1]) + 1
    batch, numbers = padded(rows), padded([[number + 1 for number in own] for own in answers])["input_ids"] - 1
    return AbilityRows(name, batch["input_ids"], batch["attention_mask"], numbers)


@check_types
def paragraphs(name: str, *, split: str = "evaluation") -> list[str]:
    """The text of one kind, "code", "French", "German" or "Spanish", before it is cut into rows.

    Args:
        name: of the kind.
        split: as ``ability_rows`` has it.

    Raises:
        ValueError: another name or split.
        AssetError: the text is not in the cache and can't be fetched.
    """
    checks.one_of("name", name, TEXTS)
    checks.one_of("split", split, ("evaluation", "calibration"))
    return _share([text for text in _TEXTS[name]() if len(text) >= _PARAGRAPH], split, name)


def _share(items: Sequence, split: str, seed: str) -> list:
    """A third of them to choose by, the others to judge by, in a shuffled order that the name decides."""
    mixed = random.Random(seed).sample(range(len(items)), len(items))
    return [items[place] for number, place in enumerate(mixed) if (number % 3 == 0) == (split == "calibration")]


def _asked(name: str, tokenizer: PreTrainedTokenizerBase, split: str, most: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of each row, and the number in the row of the answer that each belongs to."""
    made, size = _QUESTIONS[name]
    forms = [_share(form, split, name) for form in made()]
    rows = [form[start : start + size] for form in forms for start in range(0, len(form) - size + 1, size)]
    return [_row(tokenizer, groups) for groups in rows[: min(most, _MOST_ASKED)]]


def _row(tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    text, ends = "", []  # of the characters of each answer that counts
    for number, group in enumerate(groups):
        for question, answer in group:
            text += question
            if number >= _SHOWN:
                ends.append((len(text), len(text) + len(answer)))
            text += answer
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    stops = (stop for _, stop in encoding["offset_mapping"])  # a start may leave a blank out
    own = [next((n for n, (start, end) in enumerate(ends) if start < stop <= end), -1) for stop in stops]
    return encoding["input_ids"], own


def _read(name: str, tokenizer: PreTrainedTokenizerBase, split: str, most: int) -> list[tuple[list[int], list[int]]]:
    """As ``_asked``: each token but the first of a row is an answer."""
    size = _TEXT_ROW
    ids = tokenizer(
        "\n".join(paragraphs(name, split=split))[: 16 * size * most], add_special_tokens=False, verbose=False
    )["input_ids"]
    rows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    return [(row, [-1, *range(size - 1)]) for row in rows[:most]]


@check_types
@torch.no_grad()
def answers_of(model: PreTrainedModel, rows: AbilityRows) -> pd.DataFrame:
    """What a model says to each question: one row per answer.

    Args:
        model: any model that ``describe`` knows.
        rows: of ``ability_rows`` with the model's tokenizer.

    Returns:
        ``row`` it stands in, ``tokens`` of the right answer, their ``nats`` (summed), ``answer`` and ``given``, the
        ids of the right tokens and of the likeliest ones (tuples), and whether they are the same, ``right``.

    Raises:
        ValueError: rows with ids that the model doesn't know, or longer than it reads.
        UnsupportedArchitecture: from ``describe``.
    """
    architecture = describe(model)
    if (length := rows.input_ids.shape[1]) > (most := _positions(model)):
        raise ValueError(f"'rows' have {length} tokens, and this model reads {most} at once.")
    places = rows.answers[:, 1:] >= 0  # what is predicted there is asked for
    nats: list[Tensor] = []
    likeliest: list[Tensor] = []
    with evaluating(model):
        batches = read_batches(rows.batches(_BATCH), vocab_size=architecture.vocab_size, device=model.device)
        for batch, here in zip(batches, places.to(model.device).split(_BATCH), strict=True):
            states = architecture.hidden_states(batch)[:, :-1][here]  # [tokens, hidden]
            for chunk, wanted in architecture.chunks(states, batch.input_ids[:, 1:][here]):
                logits = architecture.logits(chunk).float()  # [chunk, vocabulary]
                nats.append(cross_entropy(logits, wanted, reduction="none").double().cpu())
                likeliest.append(logits.argmax(-1).cpu())
    columns = {
        "number": rows.answers[:, 1:][places],
        "row": places.nonzero()[:, 0],
        "token": rows.input_ids[:, 1:][places],
        "likeliest": torch.cat(likeliest),
        "nats": torch.cat(nats),
    }
    tokens = pd.DataFrame({name: column.numpy() for name, column in columns.items()}).groupby("number")
    frame = pd.DataFrame({"row": tokens["row"].first(), "tokens": tokens.size(), "nats": tokens["nats"].sum()})
    frame["answer"], frame["given"] = tokens["token"].agg(tuple), tokens["likeliest"].agg(tuple)
    frame["right"] = frame["answer"] == frame["given"]
    return frame.reset_index(drop=True)


def _positions(model: PreTrainedModel) -> float:
    """How many tokens a model reads at once."""
    return getattr(model.config, "max_position_embeddings", None) or math.inf


@check_types
def floor_of(answers: pd.DataFrame) -> float:
    """The share right that takes no ability: the larger of the commonest answer's share and that of exchanged answers.

    Exchanged: the answer given to each question is compared with the right answer of another one, half of them further.

    >>> said = pd.DataFrame({"answer": [(4,), (7,), (4,), (9,)], "given": [(4,), (4,), (4,), (4,)]})
    >>> floor_of(said)  # always 4: half of them are, and so are half of the exchanged ones
    0.5
    """
    commonest = answers["answer"].value_counts(normalize=True).iloc[0]
    exchanged = np.roll(np.arange(len(answers)), -(len(answers) // 2))
    return float(max(commonest, (answers["given"].to_numpy() == answers["answer"].to_numpy()[exchanged]).mean()))


@check_types
def nats_lost(before: pd.DataFrame, after: pd.DataFrame) -> tuple[float, float, float]:
    """What one model loses more than another for each predicted token of the same answers, in nats.

    ``before`` is of ``answers_of`` the whole model or another cut, ``after`` of the model in question.

    Returns:
        The difference and the ends of its 95 % interval, paired over rows (``ratio_interval``); nan for one row alone.

    Raises:
        ValueError: these aren't the same questions.
    """
    if list(before["answer"]) != list(after["answer"]):
        raise ValueError("'before' and 'after' must answer the same questions: take the same rows for both models.")
    mean, _, low, high = _over_rows(before, after["nats"] - before["nats"], before["tokens"])
    return mean, low, high


def _over_rows(answers: pd.DataFrame, totals: pd.Series, sizes: pd.Series) -> tuple[float, float, float, float]:
    """``ratio_interval`` with the rows that answers stand in as its units."""
    sums = pd.DataFrame({"row": answers["row"], "totals": totals, "sizes": sizes}).groupby("row").sum()
    return ratio_interval(*sums.to_numpy(dtype=float).T)


@dataclass(frozen=True)
class Baseline:
    """What a whole model can do, to compare its cuts with; the model itself isn't kept.

    Attributes:
        score: the model's on text that neither chose nor taught anything.
        rows: of each ability that it has.
        answers: its answers to them, of ``answers_of``.
        left_out: why abilities were left out, by name.
    """

    score: Perplexity
    rows: dict[str, AbilityRows]
    answers: dict[str, pd.DataFrame]
    left_out: dict[str, str]

    @classmethod
    @check_types
    def of(
        cls,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        abilities: Sequence[str],
        score: Perplexity,
    ) -> Baseline:
        """Ask a whole model for some of ``ABILITIES``.

        An ability that it hasn't got can't be lost. Where its share of right answers isn't above the floor, with its
        95 % interval over rows, its rows are too long for the model, or its text isn't here and can't be fetched, the
        ability is left out.

        Raises:
            ValueError: an unknown ability or none, a tokenizer that doesn't fit.
        """
        names = list(dict.fromkeys(checks.strings("abilities", abilities)))
        for name in names:
            checks.one_of("abilities", name, ABILITIES)
        asked, answers, left_out = {}, {}, {}
        for name in names:
            try:
                rows = ability_rows(name, tokenizer)
            except assets.AssetError:
                left_out[name] = "its text isn't here and can't be fetched"
                continue
            if (length := rows.input_ids.shape[1]) > (most := _positions(base)):
                left_out[name] = f"its rows have {length} tokens, and the model reads {most} at once"
                continue
            said = answers_of(base, rows)
            floor, (share, _, low, _) = floor_of(said), _over_rows(said, said["right"], said["right"] | True)
            if low > floor:
                asked[name], answers[name] = rows, said
            else:
                left_out[name] = f"the whole model gets {share:.0%} right, and its floor is {floor:.0%}"
        return cls(score, asked, answers, left_out)


@check_types
def damage_profile(model: PreTrainedModel, baseline: Baseline, score: Perplexity) -> pd.DataFrame:
    """What a cut took of each ability, beside what it took of text.

    Args:
        model: the cut one, with weights of the whole one's dtype.
        baseline: the whole one's answers.
        score: the cut one's ``perplexity`` on the baseline's text.

    Returns:
        A row for the text, "text", and one for each ability:

        - ``nats_lost``, ``ci_low``, ``ci_high``: see ``nats_lost``; the text's is the same over its rows.
        - ``right_before``, ``right_after``: the shares that the whole and the cut model get right; nan for the text.
        - ``floor``: see ``floor_of``; the whole model's.
        - ``lost``, ``won``, ``p``: answers that only the whole or only the cut model gets right, and McNemar's exact
          p-value that one is as likely as the other. Where neighbouring answers resemble each other, as in code and
          languages, p is too small.
        - ``left_out``: why an ability was left out, its numbers nan; "" where it wasn't.

    Raises:
        ValueError: a score on other text or of another dtype, a model that doesn't know the rows' tokens.
    """
    of_text = np.log(perplexity_ratio(score, baseline.score))
    table: dict[str, dict[str, float | str]] = {"text": {"left_out": "", **dict(zip(_NATS, of_text, strict=True))}}
    for name, before in baseline.answers.items():
        after = answers_of(model, baseline.rows[name])
        lost, won = (int((a["right"] & ~b["right"]).sum()) for a, b in ((before, after), (after, before)))
        table[name] = {
            **dict(zip(_NATS, nats_lost(before, after), strict=True)),
            "right_before": float(before["right"].mean()),
            "right_after": float(after["right"].mean()),
            "floor": floor_of(before),
            "lost": lost,
            "won": won,
            "p": mcnemar_p(lost, won),
            "left_out": "",
        }
    for name, why in baseline.left_out.items():
        table[name] = {"left_out": why}
    columns = [*_NATS, "right_before", "right_after", "floor", "lost", "won", "p", "left_out"]
    return pd.DataFrame.from_dict(table, orient="index").reindex(columns=columns).rename_axis("ability")
