"""What happened in a distillation, step by step, and its picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from course_utils.support.extras import brought

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class History:
    """What happened, step by step.

    Attributes:
        steps: one dict a step: step (from 1), loss (mean over the step's predicted tokens, before the update), lr,
            gradient_norm (before clipping), tokens (predicted so far), seconds (so far, over all sessions).
        validation: one dict a measurement: step, loss (the same loss on held-out batches).
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Predicted tokens so far."""
        return self.steps[-1]["tokens"] if self.steps else 0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sessions."""
        return self.steps[-1]["seconds"] if self.steps else 0.0

    def add_step(self, *, loss: float, lr: float, gradient_norm: float, tokens: int, seconds: float) -> None:
        """Add a step, as ``steps`` describes it, with the tokens of this step alone."""
        step, tokens = len(self.steps) + 1, self.tokens + tokens
        row = {"step": step, "loss": loss, "lr": lr, "gradient_norm": gradient_norm, "tokens": tokens}
        self.steps.append(row | {"seconds": seconds})

    @property
    def is_measured(self) -> bool:
        """Whether the last step was followed by a measurement on held-out text."""
        return bool(self.validation) and self.validation[-1]["step"] == len(self.steps)

    def frame(self) -> pd.DataFrame:
        """``steps`` as a frame, with the column "validation" where it was measured."""
        measured = {row["step"]: row["loss"] for row in self.validation}
        frame = pd.DataFrame(self.steps, columns=["step", "loss", "lr", "gradient_norm", "tokens", "seconds"])
        return frame.assign(validation=frame["step"].map(measured).astype(float))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Loss against tokens: each step, and the held-out batches.

        Args:
            ax: what to draw into; None makes a new figure.
        """
        with brought("plots"):
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
