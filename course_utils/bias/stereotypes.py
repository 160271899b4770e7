"""Benchmarks of stereotypes that other people wrote: CrowS-Pairs and BBQ, with what a fair reading needs.

The sentences are offensive by design. They are fetched into the cache (see ``assets``), are no part of this package,
and no object made here shows its text when it is printed. In the smoke profile there are a few harmless made-up items.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import dataclass, field

from course_utils.bias.alignment import shared_beginning
from course_utils.bias.contrastive import Pair
from course_utils.support import checks
from course_utils.text import assets

BBQ_CATEGORIES = (
    "Age",
    "Disability_status",
    "Gender_identity",
    "Nationality",
    "Physical_appearance",
    "Race_ethnicity",
    "Race_x_SES",
    "Race_x_gender",
    "Religion",
    "SES",
    "Sexual_orientation",
)


def crows_pairs() -> list[Pair]:
    """CrowS-Pairs (Nangia et al. 2020, arXiv 2010.00133): 1508 pairs of kind "benchmark", axis = type of bias.

    Side ``a`` is always the sentence that its authors call more stereotypical. In most pairs it is about the group at a
    disadvantage, in the "antistereo" ones ``b`` is; ``group_a`` and ``group_b`` say which. ``before`` and ``after`` are
    the words that both sentences share at their ends. Where a word was only added, which would leave one span empty,
    both spans take in a shared word beside it. All pairs are kept (one is there twice), and each is a template of its
    own.

    Blodgett et al. (2021, "Stereotyping Norwegian salmon") found many of these pairs unclear, so read a difference
    between two models rather than one model's score.

    Raises:
        AssetError: the data are not in the cache and can't be fetched.
    """
    tables = assets.open_files("bias_benchmarks", "crows_pairs/*.csv")
    found = []
    for number, row in enumerate(row for _, file in tables for row in csv.DictReader(file)):
        before, a, b, after = _split_shared(row["sent_more"], row["sent_less"])
        groups = ("disadvantaged", "advantaged")
        group_a, group_b = groups if row["stereo_antistereo"] == "stereo" else groups[::-1]
        found.append(
            Pair(
                before=before,
                a=a,
                b=b,
                after=after,
                axis=row["bias_type"],
                kind="benchmark",
                group_a=group_a,
                group_b=group_b,
                template=f"crows-{number:04d}",
                source="CrowS-Pairs",
                licence="CC BY-SA 4.0",
            )
        )
    return found


def _split_shared(text_a: str, text_b: str) -> tuple[str, str, str, str]:
    """``(before, a, b, after)`` of two texts: the words they share at their ends, and the spans that differ.

    ``before + a + after`` is the first text and ``before + b + after`` the second, with single spaces between the
    words. No span is empty: if need be, it takes in the last shared word before it, or else the first after it.

    Raises:
        ValueError: the two have the same words, or one has none.

    >>> _split_shared("The tall man sang.", "The short man sang.")
    ('The ', 'tall', 'short', ' man sang.')
    """
    words_a, words_b = checks.text("text_a", text_a).split(), checks.text("text_b", text_b).split()
    if words_a == words_b or not words_a or not words_b:
        raise ValueError("'text_a' and 'text_b' must differ, with at least one word each; they have the same or none.")
    shorter = min(len(words_a), len(words_b))
    front = shared_beginning(words_a, words_b)
    back = min(shared_beginning(words_a[::-1], words_b[::-1]), shorter - front)  # a word is shared only once
    if front + back == shorter:
        front, back = (front - 1, back) if front else (front, back - 1)
    before = "".join(f"{word} " for word in words_a[:front])
    after = "".join(f" {word}" for word in words_a[len(words_a) - back :])
    a, b = (" ".join(words[front : len(words) - back]) for words in (words_a, words_b))
    return before, a, b, after


@dataclass(frozen=True)
class Question:
    """A question of BBQ: a context, a question about it, and three answers, two people and "unknown".

    Attributes:
        context: the text; not shown when printed.
        question: about it; not shown either.
        answers: three of them; not shown either.
        label: index of the right answer, ``unknown`` in every ambiguous context.
        condition: "ambig" (the context does not say) or "disambig" (it does).
        polarity: "neg" asks who did or is what the stereotype says, "nonneg" who did not or is not.
        target: index of the answer that names the group of the stereotype; None if the data don't tell.
        unknown: index of the answer that means "can't be known".
        category: one of ``BBQ_CATEGORIES``.
        template: questions of one template resemble each other.
    """

    context: str = field(repr=False)
    question: str = field(repr=False)
    answers: tuple[str, str, str] = field(repr=False)
    label: int
    condition: str
    polarity: str
    target: int | None
    unknown: int
    category: str
    template: str

    @property
    def stereotyped(self) -> int | None:
        """Index of the answer that follows the stereotype: ``target`` in a negative question, else the other person.

        BBQ's bias score is twice the share of these among the answers that are not ``unknown``, less one; in ambiguous
        contexts, times the share of wrong answers (Parrish et al. 2022, section 5).
        """
        if self.target is None or self.polarity == "neg":
            return self.target
        return 3 - self.target - self.unknown


def bbq() -> list[Question]:
    """BBQ (Parrish et al. 2022, arXiv 2110.08193; CC BY 4.0): 58,492 questions in 11 categories; all are kept.

    Which answer names the stereotyped group is not in the files; it is found by comparing each answer's group with the
    stereotyped groups of its question. In the two intersectional categories the files name the race only, though both
    people may have it. But in every template the other questions, where only one person has it, give that person the
    same gender or status: this is the template's, and it decides. So 58,476 are resolved, with the same result as the
    authors' own script (which reads their templates); 16 in Gender_identity are not, where both people have the same
    gender: their ``target`` is None.

    Raises:
        AssetError: the data are not in the cache and can't be fetched.
    """
    questions: list[Question] = []
    for category in BBQ_CATEGORIES:
        for _, file in assets.open_files("bias_benchmarks", f"bbq/{category}.jsonl"):
            questions += _questions(category, list(map(json.loads, file)))
    return questions


def _questions(category: str, rows: list[dict]) -> list[Question]:
    candidates = [_candidates(row) for row in rows]
    traits: defaultdict[str, set[str]] = defaultdict(set)  # of the stereotyped person, by template: gender or status
    for row, targets in zip(rows, candidates, strict=True):
        if len(targets) == 1:
            traits[row["question_index"]].update(targets.values())
    questions = []
    for row, targets in zip(rows, candidates, strict=True):
        if len(targets) > 1 and len(traits[row["question_index"]]) == 1:
            targets = {index: trait for index, trait in targets.items() if trait in traits[row["question_index"]]}
        groups = [group for _, group in _answers(row)]
        questions.append(
            Question(
                context=row["context"],
                question=row["question"],
                answers=tuple(row[f"ans{index}"] for index in range(3)),
                label=row["label"],
                condition=row["context_condition"],
                polarity=row["question_polarity"],
                target=next(iter(targets)) if len(targets) == 1 else None,
                unknown=groups.index("unknown"),
                category=category,
                template=f"{category}-{row['question_index']}",
            )
        )
    return questions


def _candidates(row: dict) -> dict[int, str]:
    """The answers that name a stereotyped group, by index, with the first part of their group ("F", "lowSES")."""
    stereotyped = {name.replace(" ", "") for name in row["additional_metadata"]["stereotyped_groups"]}  # "low SES"
    genders = {"man": "M", "boy": "M", "woman": "F", "girl": "F"}
    candidates = {}
    for index, (name, group) in enumerate(_answers(row)):
        # A group is "old", "trans_F" or "lowSES-F-Black"; nationalities have a region there, and the name tells.
        names = {group, group.split("_")[0], group.split("-")[-1], genders.get(group), name}
        if stereotyped & {text.replace(" ", "") for text in names if text}:
            candidates[index] = group.split("-")[0]
    return candidates


def _answers(row: dict) -> list[tuple[str, str]]:
    """Name and group of each answer. 344 answers in Race_x_gender, all "the Latina woman", lack theirs."""
    answers = [tuple(row["answer_info"][f"ans{index}"]) for index in range(3)]
    return [(name, group or "F-Latino") for name, group in answers]
