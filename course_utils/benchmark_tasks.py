"""lm-eval's stock tasks on local documents: which documents, which prompts, which scores.

The prompts, the choices and the scoring are lm-eval's own; this module only chooses where the documents come from
(the asset "benchmarks", or the Hugging Face hub in the hub profile), which of them are asked, and makes the model
answer quickly. Importing it imports lm-eval, which takes seconds: import it where it is used.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import lm_eval.evaluator
import lm_eval.tasks
import pandas as pd
import torch
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import assets, checks, session
from course_utils.architectures import describe, evaluating

MAX_LENGTH = 1024  # tokens of one question with one answer; longer questions are cut from the left, as lm-eval does
_CONTEXT_TOKENS = 1024  # of one batch


@dataclass(frozen=True)
class StockTask:
    """One of lm-eval's tasks, and where its documents lie."""

    folder: str  # below lm_eval/tasks
    data: str  # below the asset "benchmarks"
    metrics: tuple[str, ...]  # those of the stock metrics that the literature reports
    majority: bool = True  # False where right answers have no number, or always the same


TASKS = {
    "lambada_openai": StockTask("lambada", "oe_eval_tasks/lambada/bpb_0shot", ("acc", "perplexity"), majority=False),
    "hellaswag": StockTask("hellaswag", "hf_datasets/hellaswag/none", ("acc_norm",)),
    "arc_easy": StockTask("arc", "hf_datasets/ai2_arc/ARC-Easy", ("acc_norm",)),
    "arc_challenge": StockTask("arc", "hf_datasets/ai2_arc/ARC-Challenge", ("acc_norm",)),
    "piqa": StockTask("piqa", "hf_datasets/piqa/plain_text", ("acc",)),
    "winogrande": StockTask("winogrande", "hf_datasets/winogrande/winogrande_xl", ("acc",)),
    "boolq": StockTask("super_glue/boolq", "hf_datasets/boolq/none", ("acc",)),
    "openbookqa": StockTask("openbookqa", "hf_datasets/openbookqa/main", ("acc_norm",)),
    "sciq": StockTask("sciq", "hf_datasets/sciq/none", ("acc",), majority=False),
    "copa": StockTask("super_glue/copa", "hf_datasets/super_glue/copa", ("acc",)),
}


def build_tasks(names: Sequence[str], limit: int | None) -> dict[str, Task]:
    """Load stock tasks, each with a fixed random sample of ``limit`` of its documents (all of them for None).

    The sample depends on the task's name only, and a smaller one is part of a larger one.

    Raises:
        ValueError: an unknown task.
    """
    for name in names:
        checks.one_of("tasks", name, TASKS)
    return {name: _build_task(name, limit) for name in names}


def _build_task(name: str, limit: int | None) -> Task:
    folder = Path(lm_eval.tasks.__file__).parent / TASKS[name].folder
    with _quiet():
        manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    if session.current_profile() == "hub":
        stock = manager.task_index[name].cfg
        split = stock.get("test_split") or stock["validation_split"]
        documents = datasets.load_dataset(stock["dataset_path"], stock.get("dataset_name"), split=split)
    else:
        documents = _local_documents(name)
    order = list(range(len(documents)))
    random.Random(name).shuffle(order)
    chosen = documents.select(sorted(order[:limit]))
    replaced = {
        "task": name,
        "custom_dataset": lambda **_: {"chosen": chosen},
        "training_split": None,
        "validation_split": None,
        "test_split": "chosen",
    }
    with _quiet():  # a group is lm-eval's way of overriding parts of a stock task
        return manager.load({"group": "course", "task": [replaced]})["tasks"][name]


def _local_documents(name: str) -> datasets.Dataset:
    """The documents of the asset "benchmarks", in memory and with the columns that the stock task reads."""
    folder = assets.fetch("benchmarks") / TASKS[name].data
    if name == "lambada_openai":
        with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
            requests = [json.loads(line)["request"] for line in file if line.strip()]
        return datasets.Dataset.from_list([{"text": r["context"] + r["continuation"]} for r in requests])
    documents = datasets.load_from_disk(str(folder / "validation"), keep_in_memory=True)
    if name == "boolq":  # the stock task reads SuperGLUE's copy, where the answer is called label
        documents = documents.add_column("label", [int(answer) for answer in documents["answer"]])
    return documents


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: dict[str, Task]) -> pd.DataFrame:
    """Have a model answer every document of some tasks.

    Returns:
        One row a task, metric and document: ``task``, ``metric``, ``document`` (a hash of the document), ``value`` (1
        or 0 for an accuracy; the log-likelihood in nats for "perplexity"), ``choices`` (how many there are; 0 where
        the answer is free), ``gold`` (the number of the right one; -1 where the answer is free) and ``margin`` (the
        log-likelihood of the right choice less that of the likeliest wrong one, in nats; nan where the answer is free).
    """
    with evaluating(model), _pad_token_kept(tokenizer):
        bar = tqdm(desc="Answering", unit="answer", delay=2, leave=False)  # before _quiet, which silences lm-eval's own
        with bar, _quiet():
            lm = SharedContextLM(model, tokenizer, bar)
            results = lm_eval.evaluator.evaluate(lm, {"tasks": tasks}, bootstrap_iters=0)
    if lm.cut:
        warnings.warn(
            f"{lm.cut} of {lm.answers} answers did not fit into the model's {lm.max_length} tokens with their "
            "question: its beginning was cut off, as lm-eval does.",
            stacklevel=3,
        )
    rows = []
    for name, task in tasks.items():
        for sample in results["samples"][name]:
            choices, gold = _choices(task, sample["doc"])
            scored = [float(likelihood) for likelihood, _ in sample["filtered_resps"]]
            wrong = [likelihood for number, likelihood in enumerate(scored) if number != gold]
            margin = scored[gold] - max(wrong) if choices else math.nan
            rows += [
                (name, metric, sample["doc_hash"], float(sample[metric]), choices, gold, margin)
                for metric in sample["metrics"]
            ]
    return pd.DataFrame(rows, columns=["task", "metric", "document", "value", "choices", "gold", "margin"])


def _choices(task: Task, document: dict) -> tuple[int, int]:
    """The number of choices of a document and the number of the right one; (0, -1) for a free answer."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0, -1
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    return len(choices), choices.index(gold) if isinstance(gold, str) else gold


class SharedContextLM(HFLM):
    """lm-eval's Hugging Face model, with one change: answers to the same question share its computation.

    The question runs once and its keys and values are kept; each answer then costs its own tokens only. The
    log-likelihoods are those of lm-eval's own class, up to rounding. The head is applied only where it is needed, and
    its softmax is taken in float32 whatever the model's dtype.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bar: tqdm) -> None:
        positions = getattr(model.config, "max_position_embeddings", None) or MAX_LENGTH
        super().__init__(pretrained=model, tokenizer=tokenizer, max_length=min(positions, MAX_LENGTH))
        self._architecture = describe(model)
        self.bar = bar
        self.answers = self.cut = 0  # how many were asked; how many of them with a question cut off

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_options: object
    ) -> list[tuple[float, bool]]:
        """Score (texts, question tokens, answer tokens): the answer's log-likelihood, and whether it is the greedy one.

        Raises:
            ValueError: the tokenizer gives ids that the model doesn't have, or an answer exceeds the model's length.
        """
        highest, known = max(max(question + answer) for _, question, answer in requests), self._architecture.vocab_size
        if highest >= known:
            raise ValueError(
                f"The tokenizer gave token id {highest}, but the model knows ids below {known}. Use the tokenizer that "
                "belongs to this model."
            )
        self.answers = self.bar.total = len(requests)
        questions: dict[tuple[int, ...], list[int]] = {}
        for number, (_, question, answer) in enumerate(requests):
            room = self.max_length + 1 - len(answer)  # the last token is predicted, never read
            if room < 1:
                raise ValueError(f"An answer of {len(answer)} tokens exceeds the model's {self.max_length}.")
            self.cut += len(question) > room
            questions.setdefault(tuple(question[-room:]), []).append(number)
        results: dict[int, tuple[float, bool]] = {}
        for batch in self._batches(questions, requests):
            numbers = [number for question in batch for number in questions[question]]
            owners = [row for row, question in enumerate(batch) for _ in questions[question]]
            scores = self._score(batch, owners, [requests[number][2] for number in numbers])
            results.update(zip(numbers, scores, strict=True))
            self.bar.update(len(numbers))
        return [results[number] for number in range(len(requests))]

    def _batches(
        self, questions: dict[tuple[int, ...], list[int]], requests: Sequence[tuple]
    ) -> Iterator[list[tuple[int, ...]]]:
        """Group questions of similar length so that neither their tokens nor the answers' logits exceed the limits."""
        answer_tokens = 2 * self._architecture.chunk_size  # without gradients, less than a handful exists at once
        batch: list[tuple[int, ...]] = []
        answers = longest = 0
        for question in sorted(questions, key=len, reverse=True):
            lengths = [len(requests[number][2]) for number in questions[question]]
            answers, longest = answers + len(lengths), max(longest, *lengths)
            if batch and ((len(batch) + 1) * len(batch[0]) > _CONTEXT_TOKENS or answers * longest > answer_tokens):
                yield batch
                batch, answers, longest = [], len(lengths), max(lengths)
            batch.append(question)
        if batch:
            yield batch

    @torch.no_grad()
    def _score(
        self, questions: list[tuple[int, ...]], owners: list[int], answers: list[list[int]]
    ) -> list[tuple[float, bool]]:
        """Score answers; ``owners`` holds the number of each one's question."""
        # Questions are padded on the left, so that the last position of every row predicts the first answer token.
        ids = self._pad([torch.tensor(question) for question in questions], side="left")  # [questions, length]
        mask = self._pad([torch.ones(len(question), dtype=torch.long) for question in questions], side="left")
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        logits = [[row] for row in output.logits[owners]]  # of each answer: [1, vocabulary], later also the rest
        longer = [number for number, answer in enumerate(answers) if len(answer) > 1]
        if longer:
            rows = torch.tensor([owners[number] for number in longer], device=self.device)
            # all but an answer's last token, which nothing follows: [longer answers, length]
            read = self._pad([torch.tensor(answers[number][:-1]) for number in longer], side="right")
            read_mask = self._pad([torch.ones(len(answers[n]) - 1, dtype=torch.long) for n in longer], side="right")
            keyword = self._architecture.cache_keyword
            cache = output[keyword]
            cache.batch_select_indices(rows)
            positions = mask[rows].sum(1, keepdim=True) + torch.arange(read.shape[1], device=self.device)
            output = self.model(
                input_ids=read,
                attention_mask=torch.cat([mask[rows], read_mask], dim=1),
                position_ids=positions * read_mask,
                **{keyword: cache},
                use_cache=True,
            )
            for number, row in zip(longer, output.logits, strict=True):
                logits[number].append(row[: len(answers[number]) - 1])
        return [self._result(torch.cat(parts), answer) for parts, answer in zip(logits, answers, strict=True)]

    def _result(self, logits: Tensor, answer: list[int]) -> tuple[float, bool]:
        """Logits [tokens, vocabulary] -> the answer's log-likelihood in nats, and whether it is the greedy one."""
        tokens = torch.tensor(answer, device=logits.device)
        chosen = logits.float().log_softmax(-1).gather(1, tokens[:, None])
        return float(chosen.sum()), bool((logits.argmax(-1) == tokens).all())

    def _pad(self, rows: list[Tensor], *, side: str) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_side=side).to(self.device)


@contextlib.contextmanager
def _pad_token_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Undo what lm-eval does to a tokenizer without a padding token."""
    pad_token = tokenizer.pad_token
    try:
        yield
    finally:
        tokenizer.pad_token = pad_token


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back lm-eval's warnings about using it as intended, and its progress bars."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
