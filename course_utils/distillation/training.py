"""The training loop of a distillation.

student = prune(copy.deepcopy(teacher))
history = distill(teacher, student, blocks.batches(4), steps=400, lr=2e-4, checkpoint_dir="build/recovery")
history.plot()
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils.architectures import Architecture, describe
from course_utils.argument_types import check_types
from course_utils.batches import Batch, read_batches
from course_utils.distillation.hidden import HiddenLoss, block_pairs
from course_utils.distillation.history import History
from course_utils.distillation.losses import batch_loss
from course_utils.distillation.processes import Alone, take_part, to_train, whole
from course_utils.distillation.recipe import Recipe, with_settings
from course_utils.distillation.state import Checkpoint, name_of, run_of
from course_utils.distillation.teacher_cache import TeacherCache
from course_utils.distillation.teacher_states import TeacherStates
from course_utils.hooks import evaluating

_BETAS = (0.9, 0.95)  # AdamW's


@check_types
def distill(
    teacher: PreTrainedModel | TeacherStates | TeacherCache,
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
    with ``--use_fsdp --fsdp_version 2`` the student being trained is cut up among them (then Ctrl-C doesn't save, and
    each process keeps the student from before in main memory).

    Args:
        teacher: in any dtype; it is not trained. Or what it thinks of all text, kept by ``remember_teacher``, for
            whatever loss. Or its likeliest answers from ``teacher_cache``; then the loss is "forward_kl" at temperature
            1. With either of these no teacher needs to be in memory.
        student: with a vocabulary of the same size. It is cast to float32 while it learns and stays so.
        batches: ``{"input_ids", "attention_mask"}`` mappings, ragged or not, held in memory.
        recipe: the settings; None makes one from ``settings``.
        validation: held-out batches, measured every ``validate_every`` steps and at the end.
        checkpoint_dir: where to keep the run; None keeps nothing.
        **settings: what ``Recipe`` describes, by name; these win over ``recipe``'s. Without one, ``steps`` and ``lr``
            must be given. The others: ``loss``, ``temperature``, ``alpha``, ``beta``, ``hidden`` and ``hidden_pairs``
            (what is learned); ``accumulate``, ``warmup``, ``weight_decay`` and ``clip`` (how); ``precision``,
            ``recompute``, ``train_embedding`` and ``mlps_only`` (at what cost); ``validate_every``, ``patience``,
            ``seed`` and ``save_every``.

    Returns:
        What happened, step by step, over all sessions of the run.

    Raises:
        TypeError: an unknown setting, or ``steps`` or ``lr`` missing.
        ValueError: a setting out of range, no batches, different vocabularies, the same model twice, text that the
            teacher wasn't asked about when its states or answers were kept, states read in another precision,
            ``hidden`` without the teacher itself.
        CheckpointMismatch: what lies in ``checkpoint_dir`` belongs to another run; the message names the difference.
        FloatingPointError: the loss is no longer a number.
    """
    recipe = with_settings(recipe, settings)
    vocab_size = _shared_vocabulary(recipe, teacher, student)
    models = [student, teacher] if isinstance(teacher, PreTrainedModel) else [student]
    accelerator = take_part(recipe.accumulate, *models)
    reading: dict[str, Any] = {"vocab_size": vocab_size, "device": student.device}
    train = list(read_batches(batches, **reading))
    held_out = [] if validation is None else list(read_batches(validation, **reading))
    if isinstance(teacher, TeacherStates | TeacherCache):  # it was asked before, about all text
        teacher.check(train + held_out)
    run: dict[str, Any] = {}
    if checkpoint_dir is not None:
        named = name_of(teacher) if isinstance(teacher, PreTrainedModel) else teacher.teacher
        run = run_of(recipe, named, student, train, held_out)

    student.float()
    for weight in weights_that_learn(
        recipe, student
    ):  # storage of its own: a variant shares its weights with another model
        weight.data = weight.data.clone()
    with to_train(accelerator, student) as trained, _learning(recipe, trained, *models[1:]):
        trainer = _Trainer(
            recipe, accelerator, trained, _loss_of(recipe, teacher), _hidden_of(recipe, teacher, trained)
        )
        checkpoint = Checkpoint(
            checkpoint_dir,
            run,
            trained,
            trainer.optimizer,
            beside=trainer.hidden,
            write=accelerator.is_main_process,
        )
        history = History(**checkpoint.restore())
        try:
            _train(trainer, train, held_out, history, checkpoint)
        except KeyboardInterrupt:
            # Not in the middle of an update, where the last save stands. Not where the student is cut up: there a save
            # takes all processes, and they stopped at different places.
            if trainer.taken == len(history.steps) and not accelerator.is_fsdp2:
                checkpoint.save(vars(history))
            raise
    accelerator.wait_for_everyone()
    return history


def _train(
    trainer: _Trainer, train: Sequence[Batch], held_out: Sequence[Batch], history: History, checkpoint: Checkpoint
) -> None:
    """Take the steps that are left, measuring and saving on the way."""
    recipe = trainer.recipe
    began = time.monotonic() - history.seconds

    def measure_if_due() -> None:
        if held_out and recipe.is_due(len(history.steps), recipe.validate_every) and not history.is_measured:
            history.add_validation(trainer.validate(held_out), patience=recipe.patience)

    measure_if_due()  # Ctrl-C may have come in the middle of it
    with _progress(recipe, history, silent=not trainer.accelerator.is_main_process) as show:
        while len(history.steps) < recipe.steps and not history.stopped_early:
            step = len(history.steps)
            row = trainer.step(step, _batches_of(recipe, step, train))
            history.add_step(row, seconds=time.monotonic() - began)
            measure_if_due()
            if history.stopped_early or recipe.is_due(len(history.steps), recipe.save_every):
                checkpoint.save(vars(history))
            show(history)


class _Trainer:
    """A student and its optimiser, in one process or as one of many: a step, and a measurement."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator | Alone,
        student: PreTrainedModel,
        loss: Callable[[Architecture, Batch], Tensor],
        hidden: HiddenLoss | None,
    ) -> None:
        self.recipe, self.accelerator, self.hidden = recipe, accelerator, hidden
        self.taken = 0  # steps, the one that is under way included
        with_loss = _StudentWithLoss(describe(student), loss, hidden)
        self._student, self.optimizer = accelerator.prepare(
            with_loss,
            torch.optim.AdamW(_groups(with_loss, recipe.weight_decay), lr=recipe.lr, betas=_BETAS, fused=True),
        )

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
        """Learn from these batches, of which this process takes its share. Steps are counted from 0."""
        recipe, accelerator = self.recipe, self.accelerator
        tokens = _tokens(batches)  # of all processes
        own = batches[accelerator.process_index :: accelerator.num_processes]
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout: a resumed run draws what an unbroken one draws
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=batches[0].input_ids.device)
        for number, batch in enumerate(own):
            last = number == len(own) - 1
            with accelerator.autocast() if last else accelerator.no_sync(self._student), self._autocast(batch):
                loss = self._student(batch) / tokens
            # Data-parallel training averages gradients over the processes; here they are to be added.
            accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self._student.parameters(), recipe.clip)
        self.taken = step + 1
        self.optimizer.step()
        mean = float(accelerator.reduce(total, "sum"))
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"The loss of step {step + 1} is {mean}: lower 'lr', or check the models' weights."
            )
        return {
            "step": step + 1,
            "loss": mean,
            "lr": recipe.rate(step),
            "gradient_norm": float(whole(norm)),
            "tokens": tokens,
        }

    @torch.no_grad()
    def validate(self, held_out: Sequence[Batch]) -> float:
        """The loss on these batches, mean over the predicted tokens."""
        accelerator = self.accelerator
        total = torch.zeros((), device=held_out[0].input_ids.device)
        with evaluating(self._student):
            for start in range(0, len(held_out), accelerator.num_processes):
                own = start + accelerator.process_index
                batch = held_out[min(own, len(held_out) - 1)]  # one too many, so that all processes do the same
                with self._autocast(batch):
                    loss = self._student(batch)
                total += loss if own < len(held_out) else 0
        if accelerator.is_fsdp2:
            self._student.reshard()  # what lies outside the blocks stays whole after a forward pass, until a backward
        return float(accelerator.reduce(total, "sum")) / _tokens(held_out)

    def _autocast(self, batch: Batch) -> torch.autocast:
        device, enabled = batch.input_ids.device.type, self.recipe.precision is torch.bfloat16
        return torch.autocast(device, dtype=torch.bfloat16, enabled=enabled)


class _StudentWithLoss(nn.Module):
    """So that a wrapper (data-parallel, sharded) sees one forward."""

    def __init__(
        self,
        architecture: Architecture,
        loss: Callable[[Architecture, Batch], Tensor],
        hidden: HiddenLoss | None,
    ) -> None:
        super().__init__()
        self.student, self.hidden = architecture.model, hidden
        self._architecture, self._loss = architecture, loss
        self._no_split_modules = [type(architecture.blocks[0]).__name__]  # what accelerate cuts up on its own: a block

    def tie_weights(self) -> None:
        """Accelerate asks for it after it has loaded weights anew."""
        self.student.tie_weights()

    def forward(self, batch: Batch) -> Tensor:
        if self.hidden is None:
            return self._loss(self._architecture, batch)
        return self.hidden(self._loss, self._architecture, batch)


def _loss_of(
    recipe: Recipe, teacher: PreTrainedModel | TeacherStates | TeacherCache
) -> Callable[[Architecture, Batch], Tensor]:
    """The sum over a batch's predicted tokens, of a student."""
    if isinstance(teacher, TeacherCache):
        return lambda student, batch: teacher.batch_loss(student, batch, alpha=recipe.alpha)
    options = {name: getattr(recipe, name) for name in ("loss", "temperature", "alpha", "beta")}
    if isinstance(teacher, TeacherStates):
        return lambda student, batch: teacher.batch_loss(student, batch, **options)
    architecture = describe(teacher)
    return lambda student, batch: batch_loss(student, architecture, batch, **options)


def _hidden_of(recipe: Recipe, teacher: Any, student: PreTrainedModel) -> HiddenLoss | None:
    """The loss on states inside the models, where the recipe has one; then the teacher is a model."""
    if recipe.hidden == 0:
        return None
    return HiddenLoss(describe(teacher), describe(student), weight=recipe.hidden, pairs=recipe.hidden_pairs)


def _shared_vocabulary(
    recipe: Recipe, teacher: PreTrainedModel | TeacherStates | TeacherCache, student: PreTrainedModel
) -> int:
    """The size of it, where the two models fit each other and the recipe; otherwise ValueError."""
    if teacher is student:
        raise ValueError("Teacher and student are the same object; prune a copy: copy.deepcopy(teacher).")
    own = describe(student).vocab_size
    known = describe(teacher).vocab_size if isinstance(teacher, PreTrainedModel) else teacher.vocab_size
    if own != known:
        raise ValueError(
            f"The student has {own} tokens, the teacher {known}. Their predictions can be compared only over the same "
            "vocabulary."
        )
    if recipe.hidden > 0:
        if not isinstance(teacher, PreTrainedModel):
            raise ValueError(
                f"'hidden' ({recipe.hidden}) compares states inside the models, but of this teacher only what it "
                "predicts was kept. Give the teacher itself, or set 'hidden' to 0."
            )
        block_pairs(describe(student).num_blocks, describe(teacher).num_blocks, recipe.hidden_pairs)
    if isinstance(teacher, TeacherCache):
        if recipe.loss != "forward_kl":
            raise ValueError(f"With a teacher cache, 'loss' must be 'forward_kl'; got {recipe.loss!r}.")
        if recipe.temperature != 1:
            raise ValueError(
                f"With a teacher cache, 'temperature' must be 1, at which it was made; got {recipe.temperature!r}."
            )
    elif isinstance(teacher, TeacherStates):
        if recipe.precision is not teacher.precision:
            raise ValueError(
                f"'precision' must be {teacher.precision}, in which the teacher's states were read; got "
                f"{recipe.precision}. Give remember_teacher the recipe's."
            )
    elif teacher.device != student.device:
        raise ValueError(f"The teacher is on {teacher.device}, the student on {student.device}; put both on one.")
    return own


@check_types
def weights_that_learn(recipe: Recipe, student: PreTrainedModel) -> list[nn.Parameter]:
    """The weights that a recipe trains: all, all but the embedding, or the MLPs' alone."""
    embedding, weights = student.get_input_embeddings().weight, list(student.parameters())
    if recipe.mlps_only:
        projections = [part for mlp in describe(student).mlps for part in (*mlp.inputs, mlp.output)]
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


def _tokens(batches: Sequence[Batch]) -> int:
    """How many are predicted."""
    return sum(int(batch.predicted.sum()) for batch in batches)


@contextmanager
def _progress(recipe: Recipe, history: History, *, silent: bool) -> Iterator[Callable[[History], None]]:
    """A bar that goes on where the history is; hands out what moves it by a step."""
    done = len(history.steps)
    with tqdm(total=recipe.steps, initial=done, desc="distilling", unit="step", disable=silent) as bar:

        def show(history: History) -> None:
            bar.update()
            speed = history.tokens / history.seconds
            bar.set_postfix_str(f"loss {history.steps[-1]['loss']:.3f}, {speed:,.0f} tokens/s")

        yield show


@contextmanager
def _learning(recipe: Recipe, student: PreTrainedModel, *teacher: PreTrainedModel) -> Iterator[None]:
    """The student learns, the teacher doesn't; afterwards both are in eval mode, and weights train as before."""
    wanted = {weight: weight.requires_grad for model in (student, *teacher) for weight in model.parameters()}
    for model in teacher:
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
