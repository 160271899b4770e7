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
    disadvantage, in the "antistereo" ones ``b`` is; ``group_a`` and ``group_b`` say which. All pairs are kept (one is
    there twice), and each is a template of its own. Blodgett et al. (2021, "Stereotyping Norwegian salmon") found many
    of them unclear, so read a difference between two models rather than one model's score.

    Raises:
        AssetError: the data are not in the cache and can't be fetched.
    """
    tables = assets.open_files("bias_benchmarks", "crows_pairs/*.csv")
    found = []
    for number, row in enumerate(row for _, file in tables for row in csv.DictReader(file)):
        before, a, b, after = _split_shared(row["sent_more"], row["sent_less"])
        groups = ("disadvantaged", "advantaged")
        group_a, group_b = groups if row["stereo_antistereo"] == "stereo" else groups[::-1]
        found.append(Pair(
            before=before, a=a, b=b, after=after, axis=row["bias_type"], kind="benchmark", group_a=group_a,
            group_b=group_b, template=f"crows-{number:04d}", source="CrowS-Pairs", licence="CC BY-SA 4.0",
        ))  # fmt: skip
    return found


def _split_shared(text_a: str, text_b: str) -> tuple[str, str, str, str]:
    """``(before, a, b, after)`` of two texts: the words they share at their ends, and the spans that differ.

    Words are set apart by single spaces. No span is empty: where a word was only added, both spans take in the last
    shared word before it, or else the first after it.

    >>> _split_shared("The tall man sang.", "The short man sang.")
    ('The ', 'tall', 'short', ' man sang.')
    """
    words_a, words_b = text_a.split(), text_b.split()
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
        context: the text, which isn't shown when the question is printed; nor are the next two.
        question: about it.
        answers: three of them.
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
        """Index of the answer that follows the stereotype: ``target`` in a negative question, else the other person."""
        if self.target is None or self.polarity == "neg":
            return self.target
        return 3 - self.target - self.unknown


def bbq() -> list[Question]:
    """BBQ (Parrish et al. 2022, arXiv 2110.08193; CC BY 4.0): 58,492 questions in 11 categories; all are kept.

    The files don't say which answer names the stereotyped group. It is found by comparing each answer's group with the
    stereotyped groups of its question. In the two intersectional categories the files name the race only, though both
    people may have it. But in every template the other questions, where only one person has it, give that person the
    same gender or status, and this decides. So 58,476 are resolved, with the same result as the authors' own script
    (which reads their templates); in 16 of Gender_identity both people have the same gender, and ``target`` is None.

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
        questions.append(Question(
            context=row["context"], question=row["question"], answers=(row["ans0"], row["ans1"], row["ans2"]),
            label=row["label"], condition=row["context_condition"], polarity=row["question_polarity"],
            target=next(iter(targets)) if len(targets) == 1 else None, unknown=groups.index("unknown"),
            category=category, template=f"{category}-{row['question_index']}",
        ))  # fmt: skip
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
