"""The training loop of a distillation.

student = prune(copy.deepcopy(teacher))
history = distill(teacher, student, blocks.batches(4), steps=400, lr=2e-4, checkpoint_dir="build/recovery")
history.plot()
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.healing.distillation.adapters import ADAPTER, adapters
from course_utils.healing.distillation.history import History
from course_utils.healing.distillation.losses import batch_loss
from course_utils.healing.distillation.processes import Alone, take_part
from course_utils.healing.distillation.recipe import Recipe, with_settings
from course_utils.healing.distillation.state import Checkpoint, name_of, run_of
from course_utils.healing.distillation.teacher_states import TeacherStates
from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_strangers
from course_utils.pruning.hooks import evaluating
from course_utils.support.argument_types import check_types
from course_utils.text.batches import Batch, Batches

_BETAS = (0.9, 0.95)  # AdamW's


@check_types
def distill(
    teacher: PreTrainedModel | TeacherStates,
    student: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    recipe: Recipe | None = None,
    *,
    validation: Iterable[Mapping[str, Tensor]] | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    **settings: Any,
) -> History:
    """Train ``student`` in place to predict what ``teacher`` predicts.

    A step's loss is the mean over all its predicted tokens, so it doesn't depend on how they are split into batches.
    The batches are seen in a new random order in each pass, a function of ``seed`` and the step alone. With a
    ``checkpoint_dir``, the run is saved every ``save_every`` steps and on Ctrl-C, atomically, and a later call with the
    same models, text and settings goes on where it stopped, to the very same losses. It takes the student as it was
    before training, or as Ctrl-C left it.

    Under ``accelerate launch`` each step's batches are shared among the processes; with ``--multi_gpu`` each holds all,
    with ``--use_fsdp --fsdp_version 2`` both models are cut up among them while the student learns (then Ctrl-C doesn't
    save, and each process keeps them as they were in main memory).

    Args:
        teacher: in any dtype; it is not trained. Or what it thinks of all text, kept by
            ``remember_teacher``: then no teacher needs to be in memory.
        student: with a vocabulary of the same size. It is cast to float32 while it learns and stays so.
        batches: ``{"input_ids", "attention_mask"}`` mappings, ragged or not, with ``labels`` where not all is learned
            (``batches.read_batch``). A sequence is read batch by batch, so it may lie on disk; anything else is kept in
            main memory.
        recipe: the settings; None makes one from ``settings``.
        validation: held-out batches, measured every ``validate_every`` steps and at the end.
        checkpoint_dir: where to keep the run; None keeps nothing.
        **settings: what ``Recipe`` describes, by name; these win over ``recipe``'s. Without one, ``steps`` and ``lr``
            must be given.

    Returns:
        What happened, step by step, over all sessions of the run.

    Raises:
        TypeError: an unknown setting, or ``steps`` or ``lr`` missing.
        ValueError: a setting out of range, no batches, different vocabularies, the same model twice, text that the
            teacher wasn't asked about when its states or answers were kept, states read in another precision.
        CheckpointMismatch: what lies in ``checkpoint_dir`` belongs to another run; the message names the difference.
        FloatingPointError: the loss is no longer a number; the student is as the last step left it.
    """
    recipe = with_settings(recipe, settings)
    _refuse_other_words(teacher, student)
    processes = take_part(recipe.accumulate, student, teacher)
    reading: dict[str, Any] = {"vocab_size": describe(student).vocab_size, "device": student.device}
    train = Batches(batches, **reading)
    held_out = [] if validation is None else Batches(validation, **reading)
    if not isinstance(teacher, PreTrainedModel):  # it was asked before, about all text
        teacher.check(recipe, itertools.chain(train, held_out))
    run: dict[str, Any] = {}
    if checkpoint_dir is not None:
        named = name_of(teacher) if isinstance(teacher, PreTrainedModel) else teacher.teacher
        run = run_of(recipe, named, student, train, held_out)

    if recipe.lora_rank and processes.is_sharded:
        raise ValueError("'lora_rank' must be 0 where the student is cut up among processes (--use_fsdp).")
    architecture = describe(student)  # by itself: adapters would hide its parts
    _own_weights(recipe, student)
    with (
        processes.trained(student) as model,
        processes.asked(teacher) as asked,
        adapters(recipe, model),
        _learning(recipe, model, asked),
    ):
        optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr, betas=_BETAS, fused=True)
        parts = replace(architecture, model=model)
        loss_of, optimizer = processes.prepare(parts, _loss_of(recipe, asked), optimizer)
        checkpoint = Checkpoint(checkpoint_dir, run, model, optimizer, write=processes.is_first)
        history = History(**checkpoint.restore())
        _train(recipe, model, loss_of, optimizer, train, held_out, history, checkpoint, processes)
    return history


def _train(
    recipe: Recipe,
    model: PreTrainedModel,
    loss_of: Callable[[Batch], Tensor],
    optimizer: Optimizer,
    train: Sequence[Batch],
    held_out: Sequence[Batch],
    history: History,
    checkpoint: Checkpoint,
    processes: Alone,
) -> None:
    """Take the steps that are left: load, forward and backward, clip, step, log."""
    began, updates = time.monotonic() - history.seconds, len(history.steps)
    device, show = train[0].input_ids.device, processes.is_first
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision is torch.bfloat16)

    def validate_if_due() -> None:
        if held_out and recipe.is_due(len(history.steps), recipe.validate_every) and not history.is_measured:
            with torch.no_grad(), evaluating(model), autocast:
                total = processes.measure(loss_of, held_out)
            history.validation.append({"step": len(history.steps), "loss": total / _tokens(held_out)})

    try:
        validate_if_due()  # Ctrl-C may have come in the middle of it
        with tqdm(total=recipe.steps, initial=updates, desc="distilling", unit="step", disable=not show) as bar:
            for step in range(updates, recipe.steps):
                # Load. Text depends on the step's number alone, and dropout on the batch's number in it as well: a
                # resumed run has what an unbroken one has, and several processes what one has.
                torch.manual_seed(_seed(recipe, step))
                batches = _batches_of(recipe, step, train)
                tokens = _tokens(batches)

                optimizer.zero_grad(set_to_none=True)
                total = torch.zeros((), device=device)
                for number, batch in processes.share([*enumerate(batches)]):
                    torch.manual_seed(_seed(recipe, step, number))
                    with autocast:
                        loss = loss_of(batch) / tokens
                    processes.backward(loss)
                    total += loss.detach()
                mean = processes.add_up(total)
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"The loss of step {step + 1} is {mean}: lower 'lr', or check the models' weights."
                    )

                norm, lr = processes.clip(model, recipe.clip), recipe.rate(step)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                updates += 1
                optimizer.step()

                seconds = time.monotonic() - began
                history.add_step(loss=mean, lr=lr, gradient_norm=norm, tokens=tokens, seconds=seconds)
                validate_if_due()
                if recipe.is_due(step + 1, recipe.save_every):
                    checkpoint.save(vars(history))
                bar.update()
                bar.set_postfix_str(f"loss {mean:.3f}, {history.tokens / seconds:,.0f} tokens/s")
    except KeyboardInterrupt:
        # Not in the middle of an update, where the last save stands. Not where the student is cut up: there a save
        # takes all processes, and they stopped at different places.
        if updates == len(history.steps) and not processes.is_sharded:
            checkpoint.save(vars(history))
        raise


def _loss_of(recipe: Recipe, teacher: PreTrainedModel | TeacherStates) -> Callable[[Architecture, Batch], Tensor]:
    """The sum over a batch's predicted tokens, of a student."""
    if isinstance(teacher, TeacherStates):
        return partial(teacher.batch_loss, alpha=recipe.alpha)
    architecture = describe(teacher)
    return lambda student, batch: batch_loss(student, architecture, batch, alpha=recipe.alpha)


def _refuse_other_words(teacher: PreTrainedModel | TeacherStates, student: PreTrainedModel) -> None:
    """Raise ValueError where predictions can't be compared: one model twice, other devices, other vocabularies."""
    if isinstance(teacher, PreTrainedModel):
        refuse_strangers(student, teacher)
    own = describe(student).vocab_size
    known = describe(teacher).vocab_size if isinstance(teacher, PreTrainedModel) else teacher.vocab_size
    if own != known:
        raise ValueError(
            f"The student has {own} tokens, the teacher {known}. Their predictions can be compared only over the same "
            "vocabulary."
        )


@check_types
def weights_that_learn(recipe: Recipe, student: PreTrainedModel) -> list[nn.Parameter]:
    """The weights that a recipe trains: all, all but the embedding, the MLPs' alone, or those of ``adapters``."""
    embedding, weights = student.get_input_embeddings().weight, list(student.parameters())
    if recipe.lora_rank:
        return [weight for name, weight in student.named_parameters() if ADAPTER in name]
    if recipe.mlps_only:
        projections = [part for mlp in describe(student).mlps for part in mlp.projections]
        weights = [weight for part in projections for weight in part.module.parameters()]
    return [weight for weight in weights if recipe.train_embedding or weight is not embedding]


def _groups(student: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay, vectors (norms, biases) don't."""
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    return [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]


def _batches_of(recipe: Recipe, step: int, train: Sequence[Batch]) -> list[Batch]:
    """The batches of a step: each pass over the data is a new order."""
    chosen = []
    for place in range(step * recipe.accumulate, (step + 1) * recipe.accumulate):
        epoch, number = divmod(place, len(train))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch))
        chosen.append(train[order[number]])
    return chosen


def _seed(recipe: Recipe, step: int, number: int = 0) -> int:
    """Of a batch: its own one, up to 15 million steps; the CPU reads no more than 32 bits of it."""
    return recipe.seed * 1_000_003 + step + number * 15_485_863


def _tokens(batches: Sequence[Batch]) -> int:
    """How many are predicted."""
    return sum(int(batch.predicted.sum()) for batch in batches)


def _own_weights(recipe: Recipe, student: PreTrainedModel) -> None:
    """Float32, and storage of its own for what learns: a variant shares its weights with another model."""
    student.float()
    for weight in weights_that_learn(recipe, student):
        weight.data = weight.data.clone()


@contextmanager
def _learning(recipe: Recipe, student: PreTrainedModel, teacher: PreTrainedModel | TeacherStates) -> Iterator[None]:
    """The student learns, the teacher doesn't; afterwards both are in eval mode, and weights train as before."""
    models = [model for model in (student, teacher) if isinstance(model, PreTrainedModel)]
    wanted = {weight: weight.requires_grad for model in models for weight in model.parameters()}
    for model in models[1:]:
        model.eval().requires_grad_(False)
    student.train().requires_grad_(False)
    for weight in weights_that_learn(recipe, student):
        weight.requires_grad_(True)
    try:
        if recipe.recompute:
            _checkpointing(student, "enable", {"use_reentrant": False})
            student.disable_input_require_grads()  # only reentrant checkpointing needs it
        yield
    finally:
        student.eval()
        if recipe.recompute:
            _checkpointing(student, "disable")
        for weight, grad in wanted.items():
            weight.requires_grad_(grad)
        for weight in student.parameters():
            weight.grad = None


def _checkpointing(student: PreTrainedModel, action: str, *args: dict) -> None:
    # Renamed on the way to transformers 5.24, where the old name warns.
    name = next(n for kind in ("activation", "gradient") if hasattr(student, n := f"{kind}_checkpointing_{action}"))
    getattr(student, name)(*args)
