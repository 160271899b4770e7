"""Knowledge distillation: a pruned model learns back what it lost, from the model that it was cut from.

    student = prune(copy.deepcopy(teacher))
    history = distill(teacher, student, blocks.batches(4), steps=400, lr=2e-4, checkpoint_dir="build/recovery")
    history.plot()

Recipe after Muralidharan et al. 2024 (Compact Language Models via Pruning and Knowledge Distillation, arXiv
2407.14679): forward KL of the logits, the teacher frozen, AdamW with a linear warm-up and a cosine.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.architectures import Architecture, describe, evaluating
from course_utils.batches import Batch, read_batches
from course_utils.distillation import state as checkpoint
from course_utils.distillation.losses import LOSSES, batch_loss
from course_utils.distillation.processes import take_part, to_train, whole
from course_utils.distillation.state import CheckpointMismatch as CheckpointMismatch  # part of this module's interface
from course_utils.distillation.teacher_cache import TeacherCache

CHECKPOINT = "distillation.safetensors"
_BETAS, _FLOOR = (0.9, 0.95), 0.1  # AdamW's; the share of the peak learning rate that is left at the end


@dataclass
class History:
    """What happened, step by step.

    Attributes:
        steps: one dict a step: step (from 1), loss (mean over the step's predicted tokens, before the update), lr,
            gradient_norm (before clipping), tokens (predicted so far), seconds (so far, over all sessions).
        validation: one dict a measurement: step, loss (the same loss on held-out batches).
        stopped_early: whether ``patience`` ended the run.
    """

    steps: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    stopped_early: bool = False

    def frame(self) -> pd.DataFrame:
        """``steps`` as a frame, with the column "validation" where it was measured."""
        measured = {row["step"]: row["loss"] for row in self.validation}
        frame = pd.DataFrame(self.steps, columns=["step", "loss", "lr", "gradient_norm", "tokens", "seconds"])
        return frame.assign(validation=frame["step"].map(measured).astype(float))

    def plot(self, ax=None):
        """Loss against tokens: each step, and the held-out batches. Returns matplotlib's Axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(layout="constrained")[1] if ax is None else ax
        frame = self.frame()
        ax.plot(frame["tokens"], frame["loss"], alpha=0.5, label="training batches")
        held_out = frame.dropna(subset="validation")
        if len(held_out):
            ax.plot(held_out["tokens"], held_out["validation"], marker="o", label="held-out text")
        ax.set_xlabel("tokens learned from")
        ax.locator_params(axis="x", nbins=5)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_ylabel("loss, nats a token")
        ax.legend()
        return ax


def distill(
    teacher: PreTrainedModel | TeacherCache,
    student: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    steps: int,
    lr: float,
    loss: str = "forward_kl",
    temperature: float = 1.0,
    alpha: float = 0.0,
    beta: float = 0.5,
    accumulate: int = 1,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    precision: torch.dtype = torch.float32,
    recompute: bool = False,
    train_embedding: bool = True,
    validation: Iterable[Mapping[str, Tensor]] | None = None,
    validate_every: int = 50,
    patience: int | None = None,
    seed: int = 0,
    checkpoint_dir: str | os.PathLike | None = None,
    save_every: int = 50,
) -> History:
    """Train ``student`` in place to predict what ``teacher`` predicts.

    A step's loss is the mean over all its predicted tokens, so it doesn't depend on how they are split into batches.
    The batches are seen in a new random order in each pass, a function of ``seed`` and the step alone. With a
    ``checkpoint_dir``, the run is saved every ``save_every`` steps and on Ctrl-C, atomically, and a later call with the
    same settings goes on where it stopped, to the very same losses.

    Under ``accelerate launch`` each step's batches are shared among the processes; with ``--multi_gpu`` each holds all,
    with ``--use_fsdp --fsdp_version 2`` the student being trained is cut up among them (then Ctrl-C doesn't save, and
    each process keeps the student from before in main memory).

    Args:
        teacher: frozen, in eval mode; any dtype. Or its answers to all rows of text, from ``cache_teacher``: forward KL
            at temperature 1 only, with the cache's bias, and no teacher in memory.
        student: same vocabulary, any shape. Its weights become float32 and stay so.
        batches: ``{"input_ids", "attention_mask"}`` mappings; padding never counts. Packed blocks waste nothing.
        steps: optimiser steps. lr: peak learning rate, 1e-4 to 2e-4 after heavy width pruning.
        loss, temperature, alpha, beta: see ``token_loss``; alpha is the cross-entropy's share, beta belongs to "jsd".
        accumulate: batches a step.
        warmup: share of the steps in which the rate rises; then it falls as a cosine to a tenth.
        clip: the largest gradient norm.
        precision: what matrices are multiplied in (autocast); weights, sums and losses stay in float32.
        recompute: save memory by computing the student's activations twice (activation checkpointing).
        train_embedding: False leaves the input embedding as it is, and the head with it where the two are one matrix
            (a head of its own is still trained). It then needs no gradient and no averages of AdamW: 16 bytes a number.
        validation: held-out batches, measured every ``validate_every`` steps and at the end.
        patience: stop after so many measurements without a better one.

    Raises:
        ValueError: a setting out of range, no batches, different vocabularies, the same model twice, text that isn't in
            the cache.
        CheckpointMismatch: what lies in ``checkpoint_dir`` belongs to another run; the message names the difference.
    """
    run = _Run(**{name: value for name, value in locals().items() if name in _Run.__dataclass_fields__})
    pupil, master = _prepared(run, teacher, student)
    models = [student, teacher] if isinstance(teacher, PreTrainedModel) else [student]
    accelerator = take_part(accumulate, models)
    read = {"device": student.device, "vocab_size": pupil.vocab_size}
    train = list(read_batches(batches, **read))
    held_out = [] if validation is None else list(read_batches(validation, **read))
    if isinstance(master, TeacherCache):
        master.check(train + held_out)
    saved = None if checkpoint_dir is None else Path(checkpoint_dir) / CHECKPOINT
    identity = run.settings() | _identity(pupil, master, train, held_out)

    history = History()
    student.float()
    with (
        to_train(accelerator, student) as trained,
        _learning(trained, *models[1:], train_embedding=train_embedding, recompute=recompute),
    ):
        trainee, optimizer = accelerator.prepare(
            _Trainee(describe(trained), lambda pupil, batch: _loss(run, pupil, master, batch)),
            torch.optim.AdamW(_groups(trained, weight_decay), lr=lr, betas=_BETAS, fused=True),
        )
        if saved is not None and saved.exists():
            history = History(**checkpoint.restore(saved, identity, trained, optimizer))

        def save() -> None:
            if saved is not None:
                main = accelerator.is_main_process
                checkpoint.save(saved, identity, vars(history), trained, optimizer, write=main)

        session, before = time.monotonic(), history.steps[-1]["seconds"] if history.steps else 0.0
        try:
            with _bar(steps, history, accelerator) as bar:
                while len(history.steps) < steps and not history.stopped_early:
                    row = _step(run, accelerator, trainee, optimizer, train, len(history.steps))
                    row["tokens"] += history.steps[-1]["tokens"] if history.steps else 0
                    row["seconds"] = before + time.monotonic() - session
                    history.steps.append(row)
                    done = row["step"]
                    if held_out and (done % validate_every == 0 or done == steps):
                        found = _validate(run, accelerator, trainee, held_out)
                        history.validation.append({"step": done, "loss": found})
                        history.stopped_early = _is_stuck(history, patience)
                    if done % save_every == 0 or done == steps or history.stopped_early:
                        save()
                    bar.update()
                    bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens'] / row['seconds']:,.0f} tokens/s")
        except KeyboardInterrupt:
            if not accelerator.is_fsdp2:  # there, a save takes all processes, and they stopped at different places
                save()
            raise
    accelerator.wait_for_everyone()
    return history


@dataclass(frozen=True)
class _Run:
    """The settings that decide what is computed, checked."""

    steps: int
    lr: float
    loss: str
    temperature: float
    alpha: float
    beta: float
    accumulate: int
    warmup: float
    weight_decay: float
    clip: float
    precision: torch.dtype
    train_embedding: bool
    validate_every: int
    patience: int | None
    save_every: int
    seed: int

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"'loss' must be one of {', '.join(LOSSES)}; got {self.loss!r}.")
        for name in ("steps", "accumulate", "validate_every", "save_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"'{name}' must be a whole number of at least 1; got {value!r}.")
        for name in ("lr", "temperature", "clip"):
            if not (0 < getattr(self, name) < math.inf):
                raise ValueError(f"'{name}' must be a number above 0; got {getattr(self, name)!r}.")
        for name in ("alpha", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"'{name}' is a share, from 0 to 1; got {getattr(self, name)!r}.")
        if not 0 < self.beta < 1:
            raise ValueError(f"'beta' must lie between 0 and 1; got {self.beta!r}. For the ends take the two KLs.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"'weight_decay' must be at least 0; got {self.weight_decay!r}.")
        if not isinstance(self.train_embedding, bool):
            raise ValueError(f"'train_embedding' must be True or False; got {self.train_embedding!r}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"'patience' must be at least 1, or None; got {self.patience!r}.")
        if self.precision not in (torch.float32, torch.bfloat16):
            raise ValueError(f"'precision' must be torch.float32 or torch.bfloat16; got {self.precision}.")

    def settings(self) -> dict[str, object]:
        """As JSON can hold them; how often to save changes nothing."""
        return {k: str(v) if k == "precision" else v for k, v in vars(self).items() if k != "save_every"}

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        angle = math.pi * (step - rise) / max(1, self.steps - rise)
        return self.lr * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(angle)) / 2)


class _Trainee(nn.Module):
    """The student with its loss, so that a wrapper (data-parallel, sharded) sees one forward."""

    def __init__(self, pupil: Architecture, loss: Callable[[Architecture, Batch], Tensor]):
        super().__init__()
        self.student = pupil.model
        self._pupil, self._loss = pupil, loss
        self._no_split_modules = [type(pupil.blocks[0]).__name__]  # what accelerate cuts up on its own: a block

    def tie_weights(self) -> None:
        """Accelerate asks for it after it has loaded weights anew."""
        self.student.tie_weights()

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self._pupil, batch)


def _prepared(
    run: _Run, teacher: PreTrainedModel | TeacherCache, student: PreTrainedModel
) -> tuple[Architecture, Architecture | TeacherCache]:
    if teacher is student:
        raise ValueError("Teacher and student are the same object; prune a copy: copy.deepcopy(teacher).")
    cached = isinstance(teacher, TeacherCache)
    pupil, master = describe(student), teacher if cached else describe(teacher)
    if pupil.vocab_size != master.vocab_size:
        raise ValueError(
            f"The student has {pupil.vocab_size} tokens, the teacher {master.vocab_size}. Their predictions can be "
            "compared only over the same vocabulary."
        )
    if cached and run.loss != "forward_kl":
        raise ValueError(f"With a teacher cache, 'loss' must be 'forward_kl'; got {run.loss!r}.")
    if cached and run.temperature != 1:
        raise ValueError(
            f"With a teacher cache, 'temperature' must be 1, at which it was made; got {run.temperature!r}."
        )
    if not cached and teacher.device != student.device:
        raise ValueError(f"The teacher is on {teacher.device}, the student on {student.device}; put both on one.")
    return pupil, master


def _loss(run: _Run, pupil: Architecture, master: Architecture | TeacherCache, batch: Batch) -> Tensor:
    if isinstance(master, TeacherCache):
        return master.batch_loss(pupil, batch, alpha=run.alpha)
    options = {name: getattr(run, name) for name in ("loss", "temperature", "alpha", "beta")}
    return batch_loss(pupil, master, batch, **options)


def _groups(student: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Matrices decay, vectors (norms, biases) don't."""
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    return [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]


def _of_step(run: _Run, train: Sequence[Batch], step: int) -> list[Batch]:
    """The batches of a step: each pass over the data is a new order."""
    chosen = []
    for place in range(step * run.accumulate, (step + 1) * run.accumulate):
        epoch, number = divmod(place, len(train))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed * 1_000_003 + epoch))
        chosen.append(train[order[number]])
    return chosen


def _step(
    run: _Run, accelerator: Accelerator, trainee: nn.Module, optimizer, train: Sequence[Batch], step: int
) -> dict:
    batches = _of_step(run, train, step)
    tokens = sum(int(batch.predicted.sum()) for batch in batches)  # of all processes
    own = batches[accelerator.process_index :: accelerator.num_processes]
    torch.manual_seed(run.seed * 1_000_003 + step)  # dropout: a resumed run draws what an unbroken one draws
    for group in optimizer.param_groups:
        group["lr"] = run.rate(step)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batches[0].input_ids.device)
    for number, batch in enumerate(own):
        last = number == len(own) - 1
        with accelerator.autocast() if last else accelerator.no_sync(trainee), _in(run.precision, batch):
            value = trainee(batch) / tokens
        # Data-parallel training averages gradients over the processes; here they are to be added.
        accelerator.backward(value * accelerator.num_processes)
        total += value.detach()
    norm = accelerator.clip_grad_norm_(trainee.parameters(), run.clip)
    optimizer.step()
    loss = float(accelerator.reduce(total, "sum"))
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss of step {step + 1} is {loss}: lower 'lr', or check the models' weights.")
    return {"step": step + 1, "loss": loss, "lr": run.rate(step), "gradient_norm": float(whole(norm)), "tokens": tokens}


@torch.no_grad()
def _validate(run: _Run, accelerator: Accelerator, trainee: nn.Module, held_out: Sequence[Batch]) -> float:
    total = torch.zeros((), device=held_out[0].input_ids.device)
    tokens = sum(int(batch.predicted.sum()) for batch in held_out)
    with evaluating(trainee):
        for start in range(0, len(held_out), accelerator.num_processes):
            own = start + accelerator.process_index
            batch = held_out[min(own, len(held_out) - 1)]  # one too many, so that all processes do the same
            with _in(run.precision, batch):
                value = trainee(batch)
            total += value if own < len(held_out) else 0
    if accelerator.is_fsdp2:
        trainee.reshard()  # what lies outside the blocks stays whole after a forward pass, until a backward pass
    return float(accelerator.reduce(total, "sum")) / tokens


def _in(precision: torch.dtype, batch: Batch):
    device = batch.input_ids.device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision is torch.bfloat16)


def _is_stuck(history: History, patience: int | None) -> bool:
    losses = [row["loss"] for row in history.validation]
    return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience


def _bar(steps: int, history: History, accelerator: Accelerator) -> tqdm:
    done, silent = len(history.steps), not accelerator.is_main_process
    return tqdm(total=steps, initial=done, desc="distilling", unit="step", disable=silent)


@contextmanager
def _learning(student: PreTrainedModel, *teacher: PreTrainedModel, train_embedding: bool, recompute: bool):
    """The student learns, the teacher doesn't; afterwards both are in eval mode, and weights train as before."""
    wanted = {weight: weight.requires_grad for model in (student, *teacher) for weight in model.parameters()}
    for model in teacher:
        model.eval().requires_grad_(False)
    student.train().requires_grad_(True)
    student.get_input_embeddings().requires_grad_(train_embedding)
    try:
        if recompute:
            _checkpointing(student, "enable", {"use_reentrant": False})
            student.disable_input_require_grads()  # only reentrant checkpointing needs it
        yield
    finally:
        student.eval()
        if recompute:
            _checkpointing(student, "disable")
        for weight, grad in wanted.items():
            weight.requires_grad_(grad)
        for weight in student.parameters():
            weight.grad = None


def _checkpointing(student: PreTrainedModel, action: str, *args: dict) -> None:
    # Renamed on the way to transformers 5.24, where the old name warns.
    name = next(n for kind in ("activation", "gradient") if hasattr(student, n := f"{kind}_checkpointing_{action}"))
    getattr(student, name)(*args)


def _identity(
    pupil: Architecture, master: Architecture | TeacherCache, train: Sequence[Batch], held_out: Sequence[Batch]
) -> dict:
    """What makes a run another run: the student's shape, the teacher's weights, the data."""
    return {
        "student": checkpoint.shapes(pupil.model),
        "teacher": master.teacher if isinstance(master, TeacherCache) else _summary(master),
        "data": checkpoint.text(train),
        "validation": checkpoint.text(held_out),
    }


def _summary(master: Architecture) -> str:
    embedding = master.model.get_input_embeddings().weight.detach()
    return f"{master.name}, embedding norm {torch.linalg.vector_norm(embedding, dtype=torch.float32):.5g}"
