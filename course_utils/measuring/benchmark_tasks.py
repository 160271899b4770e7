"""lm-eval's stock tasks on local documents.

The prompts, the choices and the scoring are lm-eval's own. This module chooses where the documents come from (the asset
"benchmarks", or the Hugging Face hub in the hub profile) and which of them are asked. Importing it takes seconds,
because it imports lm-eval: import it where it is used.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models.architectures import describe
from course_utils.pruning.activations import evaluating
from course_utils.support import checks, session
from course_utils.support.extras import brought
from course_utils.text import assets

with brought("tasks"):
    import datasets
    import lm_eval.evaluator
    import lm_eval.tasks
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

MAX_LENGTH = 1024  # tokens of one question with one answer; longer questions are cut from the left, as lm-eval does
_BATCH_SIZE = 4  # answers; all their logits are held at once


@dataclass(frozen=True)
class _StockTask:
    """One of lm-eval's tasks, and where its documents lie."""

    folder: str  # below lm_eval/tasks
    data: str  # below the asset "benchmarks"
    metrics: tuple[str, ...]  # those of the stock metrics that the literature reports
    majority: bool = True  # False where right answers have no number, or always the same


TASKS = {
    "lambada_openai": _StockTask("lambada", "oe_eval_tasks/lambada/bpb_0shot", ("acc", "perplexity"), majority=False),
    "hellaswag": _StockTask("hellaswag", "hf_datasets/hellaswag/none", ("acc_norm",)),
    "arc_easy": _StockTask("arc", "hf_datasets/ai2_arc/ARC-Easy", ("acc_norm",)),
    "arc_challenge": _StockTask("arc", "hf_datasets/ai2_arc/ARC-Challenge", ("acc_norm",)),
    "piqa": _StockTask("piqa", "hf_datasets/piqa/plain_text", ("acc",)),
    "winogrande": _StockTask("winogrande", "hf_datasets/winogrande/winogrande_xl", ("acc",)),
    "boolq": _StockTask("super_glue/boolq", "hf_datasets/boolq/none", ("acc",)),
    "openbookqa": _StockTask("openbookqa", "hf_datasets/openbookqa/main", ("acc_norm",)),
    "sciq": _StockTask("sciq", "hf_datasets/sciq/none", ("acc",), majority=False),
    "copa": _StockTask("super_glue/copa", "hf_datasets/super_glue/copa", ("acc",)),
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
        One row for each task, metric and document: ``task``, ``metric``, ``document`` (a hash of the document),
        ``value`` (1 or 0 for an accuracy; the log-likelihood in nats for "perplexity"), ``choices`` (how many there
        are), ``gold`` (the number of the right one) and ``margin`` (the log-likelihood of the right choice less that of
        the likeliest wrong one, in nats). Where the answer is free, these three are 0, -1 and nan.
    """
    with evaluating(model), _pad_token_kept(tokenizer), _quiet():
        lm = CheckedLM(model, tokenizer)
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


class CheckedLM(HFLM):
    """lm-eval's Hugging Face model, which first checks what it is asked, and whose softmax is computed in float32.

    An adaptive model decides once for each question, before it reads an answer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        positions = getattr(model.config, "max_position_embeddings", None) or MAX_LENGTH
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            max_length=min(positions, MAX_LENGTH),
            batch_size=_BATCH_SIZE,
            softmax_dtype="float32",
        )
        self._architecture = describe(model)
        self.answers = self.cut = 0  # how many were asked; how many of them with a question cut off

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: object
    ) -> list[tuple[float, bool]]:
        """Score (texts, question tokens, answer tokens): the answer's log-likelihood, and whether it is the greedy one.

        Raises:
            ValueError: the tokenizer gives ids that the model doesn't have.
        """
        highest, known = max(max(question + answer) for _, question, answer in requests), self._architecture.vocab_size
        if highest >= known:
            raise ValueError(
                f"The tokenizer gave token id {highest}, but the model knows ids below {known}. Use the tokenizer that "
                "belongs to this model."
            )
        self.answers = len(requests)
        # the last token is predicted, never read
        self.cut = sum(len(question) + len(answer) > self.max_length + 1 for _, question, answer in requests)
        if self._architecture.adaptive:
            return [self._decide_and_answer(question, answer) for _, question, answer in requests]
        return super()._loglikelihood_tokens(requests, **options)

    @torch.no_grad()
    def _decide_and_answer(self, question: list[int], answer: list[int]) -> tuple[float, bool]:
        """Read the question alone, which decides, and then the answer through the cache."""
        question = question[-(self.max_length + 1 - len(answer)) :]
        output = self.model(torch.tensor([question], device=self.device), use_cache=True)
        logits = output.logits[0, -1:]
        if len(answer) > 1:
            keyword = self._architecture.cache_keyword
            read = torch.tensor([answer[:-1]], device=self.device)
            after = self.model(read, **{keyword: output[keyword]}, use_cache=True)
            logits = torch.cat([logits, after.logits[0]])  # [answer, vocabulary]
        targets = torch.tensor(answer, device=self.device)
        log_p = logits.float().log_softmax(-1)
        return float(log_p.gather(-1, targets[:, None]).sum()), bool((log_p.argmax(-1) == targets).all())


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
    """Hold back lm-eval's remarks about using it as intended."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
