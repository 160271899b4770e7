"""Answers that a model writes itself to prompts of one's own, for its pruned copy to learn from.

    own = read_own_text(["chats.jsonl"])
    prompts = find_prompts(own, tokenizer, 1000, longest=256)
    answers = write_answers(model, tokenizer, prompts, "answers", new_tokens=256)
    batches = own.answered(answers).learned(tokenizer, rows=1600, length=512, folder="rows")

Self-data distillation, after Thangarasa et al. 2024, arXiv 2410.09982. The file is JSON lines with ``messages``, as
``text_files`` reads them: what isn't to be learned has the weight 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from course_utils import checks
from course_utils.argument_types import check_types
from course_utils.batches import padded
from course_utils.hooks import evaluating
from course_utils.models import identity
from course_utils.own_text import LeftOut, OwnText, refuse_no_template
from course_utils.text_files import Document, Skipped

_COLD = 1e-4


@dataclass(frozen=True)
class Prompt:
    """A chat up to a user's last turn.

    Attributes:
        messages: ``{"role", "content"}``, in order.
        ids: the same as tokens, in the model's own form, with what begins an answer.
    """

    messages: tuple[Mapping[str, Any], ...]
    ids: tuple[int, ...]


@check_types
def find_prompts(own: OwnText, tokenizer: PreTrainedTokenizerBase, count: int, *, longest: int) -> list[Prompt]:
    """The prompts of so many chats that are to be learned, from all over the text; sources share by their weights.

    Args:
        own: with chats in it; what chooses or judges gives no prompt.
        tokenizer: one with a chat template.
        count: how many, at least 1.
        longest: tokens of a prompt at most; longer ones are passed over.

    Raises:
        ValueError: a number below 1, no chat template, or fewer prompts than that; the message says why.
    """
    checks.whole_number("count", count, least=1)
    checks.whole_number("longest", longest, least=1)
    prompts: list[Prompt] = []
    for path, share, chats in own.chats(count):
        left_out, wanted = LeftOut(), len(prompts) + share
        for document in chats:
            if len(prompts) == wanted:
                break
            prompt = _prompt(document, tokenizer, longest)
            if isinstance(prompt, Skipped):
                left_out.add(prompt)
            else:
                prompts.append(prompt)
        if len(prompts) < wanted:
            passed_over = f" ({left_out})" if left_out.count else ""
            raise ValueError(
                f"{path} is asked for {share:,} prompts of at most {longest:,} tokens, and "
                f"{len(prompts) - wanted + share:,} of its chats that are learned have one{passed_over}. Ask for fewer "
                "answers, or let prompts be longer."
            )
    if not prompts:
        raise ValueError("There is no chat to learn, so there is no prompt: give chats, with 'messages'.")
    return prompts


@check_types
def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    folder: str | os.PathLike[str],
    *,
    new_tokens: int,
    batch_size: int = 4,
    temperature: float = 0.0,
    seed: int = 0,
) -> Path:
    """Let a model answer prompts, a batch at a time, and keep each batch as it comes.

    Whoever is stopped goes on after the last whole batch, and has the same file in the end. In float32 the likeliest
    tokens are those of one prompt at a time; in 16 bits two tokens may be rounded to one number.

    Args:
        model: any that ``generate`` runs; its own settings for sampling don't count, its end tokens do.
        tokenizer: the model's.
        prompts: of ``find_prompts``, for this tokenizer.
        folder: for the file, whose name hangs on the model, the prompts and the settings.
        new_tokens: of an answer at most. What isn't at its end by then is kept with the weight 0: it isn't learned.
        batch_size: prompts at a time.
        temperature: 0 takes the likeliest token each time (so does less than 0.0001, which logits can't be divided by);
            above tokens are drawn, at 1 as the model says.
        seed: of what is drawn.

    Returns:
        The file: a line a prompt, in order; messages of the assistant before the answer have the weight 0.

    Raises:
        ValueError: no prompts, or a number out of range.
    """
    checks.not_empty("prompts", prompts)
    checks.whole_number("new_tokens", new_tokens, least=1)
    checks.whole_number("batch_size", batch_size, least=1)
    checks.at_least_zero("temperature", temperature)
    checks.whole_number("seed", seed)
    ends = {tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)} - {None}
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature >= _COLD else {}
    settings = GenerationConfig(
        max_new_tokens=new_tokens, eos_token_id=sorted(ends) or None, pad_token_id=0, **{"do_sample": False} | drawn
    )
    path = Path(folder) / f"answers-{_key(model, prompts, settings, batch_size, seed)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:  # not to append: who does the same meanwhile writes the same to the same places
        done = _keep_whole_batches(file, batch_size, len(prompts))
        bar = tqdm(total=len(prompts), initial=done, desc="Writing answers", unit="answer", delay=2, file=sys.stderr)
        with bar, evaluating(model), _by_these_alone(model, settings):
            for start in range(done, len(prompts), batch_size):
                asked = prompts[start : start + batch_size]
                answers = _generate(model, asked, seed=seed + start if drawn else None)
                written = (_line(*pair, tokenizer, ends) for pair in zip(asked, answers, strict=True))
                file.write("".join(written).encode())
                file.flush()
                os.fsync(file.fileno())
                bar.update(len(asked))
    return path


def _prompt(document: Document, tokenizer: PreTrainedTokenizerBase, longest: int) -> Prompt | Skipped:
    """The last turn of a chat's user and what stands before it."""
    refuse_no_template(tokenizer, document)
    turns = [number for number, message in enumerate(document.messages, start=1) if message["role"] == "user"]
    if not turns:
        return Skipped(document.place, "no message has the role 'user'")
    messages = document.messages[: turns[-1]]
    try:
        text = tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program, and the model's own
        return Skipped(document.place, f"the chat template refuses it ({error})")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) > longest:
        return Skipped(document.place, f"its prompt has {len(ids):,} tokens")
    return Prompt(messages, tuple(ids))


def _listed(ends: int | Sequence[int] | None) -> Sequence[int | None]:
    return ends if isinstance(ends, Sequence) else [ends]


def _key(
    model: PreTrainedModel, prompts: Sequence[Prompt], settings: GenerationConfig, batch_size: int, seed: int
) -> str:
    """Of all that decides which answers come."""
    asked = [[[*prompt.messages], prompt.ids] for prompt in prompts]
    names = ("max_new_tokens", "eos_token_id", "do_sample", "temperature")
    how = [getattr(settings, name) for name in names] + [batch_size, seed if settings.do_sample else None]
    return hashlib.sha256(json.dumps([identity(model), asked, how]).encode()).hexdigest()[:16]


def _keep_whole_batches(file: IO[bytes], batch_size: int, count: int) -> int:
    """How many answers are there; of a batch that was cut off nothing stays."""
    lines = file.read().split(b"\n")[:-1]
    done = count if len(lines) == count else len(lines) // batch_size * batch_size
    file.seek(sum(len(line) + 1 for line in lines[:done]))
    file.truncate()
    return done


@contextmanager
def _by_these_alone(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """For a while a model generates by these settings; its own, which fill in what isn't said, are put aside."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def _generate(model: PreTrainedModel, prompts: Sequence[Prompt], *, seed: int | None) -> list[list[int]]:
    """What comes after each prompt; behind an end token there is padding."""
    batch = padded([prompt.ids for prompt in prompts], side="left")
    batch = {name: column.to(model.device) for name, column in batch.items()}
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        ids = model.generate(**batch, generation_config=model.generation_config)
    return ids[:, batch["input_ids"].shape[1] :].tolist()


def _line(prompt: Prompt, ids: list[int], tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> str:
    """A prompt and its answer as a line of JSON."""
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    read_only = {"assistant": {"weight": 0}}
    before = [{**message, **read_only.get(message["role"], {})} for message in prompt.messages]
    said = tokenizer.decode(ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    answer: dict[str, Any] = {"role": "assistant", "content": said}
    if stop is None:
        answer["weight"] = 0
    return json.dumps({"messages": [*before, answer]}, ensure_ascii=False) + "\n"
