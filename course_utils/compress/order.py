"""What was asked of ``compress``: made once from the arguments, and changed by nobody."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from course_utils.healing.distillation import Recipe

RATES = {"all": 2e-4, "mlps": 2e-4, "lora": 2e-3}  # a low-rank correction begins at 0 and may take larger steps
RANK = 16  # of that correction
LEARNING = {"all": "all weights", "mlps": "the MLPs' weights", "lora": f"a correction of rank {RANK} (LoRA)"}


@dataclass(frozen=True, kw_only=True)
class Order:
    """The arguments of the command, by name; ``command_line`` says what each is for, and takes its default from here.

    Attributes:
        budget: an amount, and "%", "parameters" or "bytes".
        vocabulary: how many tokens stay, or up to 1 which share of them; None keeps all.
        lr: the peak learning rate; None takes that of ``recover``.
    """

    model: str
    budget: tuple[float, str]
    dry_run: bool = False
    as_json: bool = False
    out: Path = Path("compressed")
    export: str | None = None
    vocabulary: float | None = None
    multiple_of: int = 32
    tensor_parallel: int = 1
    text: tuple[str, ...] = ()
    domain: str = "speeches"
    judge: tuple[str, ...] = ()
    length: int = 256
    rows: int = 4
    seed: int = 0
    correction: int = 0
    finalists: int = 4
    light: int = 40
    steps: int = 400
    accumulate: int = 1
    lr: float | None = None
    dtype: str = "float32"
    recover: str = "all"
    recompute: bool = False

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return RATES[self.recover] if self.lr is None else self.lr

    @property
    def learns(self) -> bool:
        """Whether what is saved has learned from the text, itself or as what it was cut from."""
        return bool(self.correction or self.steps)

    def recipe(self, steps: int, **changes: Any) -> Recipe:
        """How the corrected teacher, a finalist or the winner learns in so many steps.

        Args:
            steps: how many.
            changes: settings of ``Recipe`` that differ for this learner.
        """
        import torch  # which --help needn't wait for

        from course_utils.healing.distillation import Recipe

        settings: dict[str, Any] = {
            "lr": self.rate,
            "accumulate": self.accumulate,
            "seed": self.seed,
            "precision": getattr(torch, self.dtype),
            "recompute": self.recompute,
            "mlps_only": self.recover == "mlps",
            "lora_rank": RANK if self.recover == "lora" else 0,
        }
        return Recipe(steps=steps, **settings | changes)

    def learning_key(self, text: str) -> str:
        """16 hexadecimal digits that stand for all settings that decide what is learned from a text.

        A folder has them in its name, so that another order never finds what this one has learned. The teacher and the
        version that learns have their names in the path; ``recompute`` takes time and changes no number.

        Args:
            text: stands for the text, as ``Text.key``.
        """
        settings = [self.rate, self.accumulate, self.rows, self.length, self.seed, self.recover, self.dtype]
        return hashlib.sha256(json.dumps([text, *settings]).encode()).hexdigest()[:16]

    def settings(self) -> dict[str, object]:
        """What made a model, as JSON can hold it, without the places on the maker's machine."""
        places = ("model", "out", "text", "judge", "dry_run", "as_json", "export")
        return {name: value for name, value in vars(self).items() if name not in places} | {"lr": self.rate}
