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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.healing.distillation.checkpoint import Checkpoint, History, name_of, run_of
from course_utils.healing.distillation.losses import batch_loss
from course_utils.healing.distillation.processes import Processes, take_part
from course_utils.healing.distillation.recipe import Recipe
from course_utils.healing.distillation.teacher_states import TeacherStates
from course_utils.healing.distillation.weights import learning, own_weights
from course_utils.models.architectures import Architecture, describe
from course_utils.models.refusals import refuse_strangers
from course_utils.pruning.activations import evaluating
from course_utils.support.checks import check_types
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

    Under ``accelerate launch`` each step's batches are shared among the processes. With ``--multi_gpu`` each process
    holds both models. With ``--use_fsdp --fsdp_version 2`` both are sharded among them while the student learns; then
    Ctrl-C doesn't save, and each process keeps the models as they were in main memory.

    Args:
        teacher: in any dtype; it is not trained. Or its states, kept by ``remember_teacher``: then no teacher needs to
            be in memory.
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
            teacher wasn't asked about when its states were kept, states read in another precision.
        CheckpointMismatch: what lies in ``checkpoint_dir`` belongs to another run; the message names the difference.
        FloatingPointError: the loss is no longer a number; the student is as the last step left it.
    """
    recipe = Recipe(**settings) if recipe is None else replace(recipe, **settings)
    architecture = describe(student)  # by itself: adapters would hide its parts
    if isinstance(teacher, PreTrainedModel):
        refuse_strangers(student, teacher)
    known = (describe(teacher) if isinstance(teacher, PreTrainedModel) else teacher).vocab_size
    if architecture.vocab_size != known:
        raise ValueError(
            f"The student has {architecture.vocab_size} tokens, the teacher {known}. Their predictions can be compared "
            "only over the same vocabulary."
        )
    processes = take_part(recipe.accumulate, student, teacher)
    if recipe.lora_rank and processes.is_sharded:
        raise ValueError("'lora_rank' must be 0 where the student is sharded among processes (--use_fsdp).")
    reading: dict[str, Any] = {"vocab_size": architecture.vocab_size, "device": student.device}
    train = Batches(batches, **reading)
    held_out = [] if validation is None else Batches(validation, **reading)
    if isinstance(teacher, TeacherStates):
        teacher.check(recipe, itertools.chain(train, held_out))
    run: dict[str, Any] = {}
    if checkpoint_dir is not None:
        named = teacher.teacher if isinstance(teacher, TeacherStates) else name_of(teacher)
        run = run_of(recipe, named, student, train, held_out)

    own_weights(recipe, student)
    with (
        processes.trained(student) as model,
        processes.asked(teacher) as asked,
        learning(recipe, model, asked),
    ):
        theirs = asked if isinstance(asked, TeacherStates) else describe(asked)

        def loss(student: Architecture, batch: Batch) -> Tensor:
            return batch_loss(student, theirs, batch, alpha=recipe.alpha)

        adamw = AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr, betas=_BETAS, fused=True)
        loss_of, optimizer = processes.prepare(replace(architecture, model=model), loss, adamw)
        checkpoint = Checkpoint(checkpoint_dir, run, model, optimizer, write=processes.index == 0)
        return _train(recipe, model, loss_of, optimizer, train, held_out, checkpoint, processes)


def _train(
    recipe: Recipe,
    model: PreTrainedModel,
    loss_of: Callable[[Batch], Tensor],
    optimizer: Optimizer,
    train: Sequence[Batch],
    held_out: Sequence[Batch],
    checkpoint: Checkpoint,
    processes: Processes,
) -> History:
    """Take the steps that are left: load, forward and backward, clip, step, log."""
    history = checkpoint.restore()
    began, updates = time.monotonic() - history.seconds, len(history.steps)
    device = train[0].input_ids.device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision is torch.bfloat16)

    def validate_if_due() -> None:
        if held_out and recipe.is_due(len(history.steps), recipe.validate_every) and not history.is_measured:
            with torch.no_grad(), evaluating(model), autocast:
                total = processes.measure(loss_of, held_out)
            history.validation.append({"step": len(history.steps), "loss": total / _tokens(held_out)})

    try:
        validate_if_due()  # Ctrl-C may have come in the middle of it
        bar = tqdm(total=recipe.steps, initial=updates, desc="distilling", unit="step", disable=processes.index > 0)
        with bar:
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
                    checkpoint.save(history)
                bar.update()
                bar.set_postfix_str(f"loss {mean:.3f}, {history.tokens / seconds:,.0f} tokens/s")
    except KeyboardInterrupt:
        # Not in the middle of an update, where the last save stands. Not where the student is sharded: there a save
        # takes all processes, and they stopped at different places.
        if updates == len(history.steps) and not processes.is_sharded:
            checkpoint.save(history)
        raise
    return history


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
        chosen.append(train[int(order[number])])
    return chosen


def _seed(recipe: Recipe, step: int, number: int = 0) -> int:
    """The seed of a batch, its own one up to 15 million steps; the CPU reads no more than 32 bits of it."""
    return recipe.seed * 1_000_003 + step + number * 15_485_863


def _tokens(batches: Sequence[Batch]) -> int:
    """How many tokens are predicted."""
    return sum(int(batch.predicted.sum()) for batch in batches)
