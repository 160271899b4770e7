"""Training of the course's own small models: Muon for matrices, steps that a killed run takes up again, shipping."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models import cast_weights
from course_utils.support.files import replacing, write_json

WARM_UP = 40
_MOMENTUM, _DECAY = 0.95, 0.1
_TERMS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, as in torch.optim.Muon


class StackedMuon(torch.optim.Optimizer):
    """``torch.optim.Muon`` for stacks of matrices [..., out, in] too: each matrix is orthogonalised by itself."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                mean = state.setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - _MOMENTUM)
                update = _orthogonal(weight.grad.lerp(mean, _MOMENTUM))
                weight.mul_(1 - group["lr"] * _DECAY)
                rows, columns = weight.shape[-2:]
                weight.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def _orthogonal(gradient: Tensor) -> Tensor:
    a, b, c = _TERMS
    wide = gradient.shape[-2] <= gradient.shape[-1]
    x = (gradient if wide else gradient.mT).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(gradient.dtype)


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: a linear rise, then half a cosine down to 0.05."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


def take_steps(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    checkpoint: Path,
    save_every: int = 200,
) -> float:
    """Take the steps that are left, and return the seconds that all took.

    Each optimizer comes with its peak learning rate. ``loss_of`` a step must depend on the step's number alone, so that
    a killed run ends as an unbroken one: it goes on from the file ``checkpoint``.
    """
    peaks, step, seconds = [optimizer.defaults["lr"] for optimizer in optimizers], 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
        print(f"resumed at step {step}", flush=True)
    began, mean = time.monotonic() - seconds, None
    while step < steps:
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step, steps)
            optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            left = (time.monotonic() - began) * (steps / step - 1) / 60
            print(f"step {step}/{steps}  loss {mean:.3f}  {left:.0f} min left", flush=True)
        if step % save_every == 0 or step == steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "seconds": time.monotonic() - began,
            }
            with replacing(checkpoint) as fresh:
                torch.save(state, fresh)
    return time.monotonic() - began


def ship(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Mapping[str, object], folder: Path
) -> None:
    """Write a folder that ``load_model`` takes: float16 weights, tokenizer, and ``training.json`` with their sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    cast_weights(model, torch.float16)
    model.config.dtype = torch.float16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(folder / "training.json", {**record, "sha256": digest})
