"""A graphics card on paper: what it is taken for, and what lies on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

import psutil
import torch
from torch import Tensor, nn

from course_utils import ledger

GIBIBYTE = 2**30
_NOTED = 2**16  # bytes from which on a tensor's line is noted
_LARGE_TENSOR = 2**26  # bytes before which one looks whether this machine has them


@dataclass(frozen=True)
class Card:
    """What a card is taken for.

    Attributes:
        name: as `torch.cuda.get_device_name` says it.
        capability: of its architecture.
        memory: bytes in all; more is counted, not refused, so that one learns how much it would take.
    """

    name: str = "Tesla T4"
    capability: tuple[int, int] = (7, 5)
    memory: int = int(14.7 * GIBIBYTE)


T4 = Card()


def shown(size: float) -> str:
    """Bytes as "1.25 GiB"."""
    return f"{size / GIBIBYTE:.2f} GiB" if size >= GIBIBYTE / 10 else f"{size / 2**20:.1f} MiB"


@dataclass
class Count:
    """What the card held since the count began.

    Attributes:
        peak: the most bytes alive at once.
        holders: (what, bytes) about that time, largest first.
    """

    peak: int = 0
    holders: list[tuple[str, int]] = field(default_factory=list)


class Ledger(ledger.Ledger):
    """What lies on a card: each storage once, until the last tensor on it is gone.

    Args:
        card: which.
        names: returns the variables to look for models in, for `Count.holders`.
        spare: bytes of this machine's memory that must stay free; OutOfMemoryError where a tensor would take them.

    Attributes:
        peak: the most so far; what `torch.cuda.max_memory_allocated` tells.
        count: since the last `restart`.
    """

    def __init__(self, card: Card, *, names: Callable[[], dict] = dict, spare: int = 0) -> None:
        super().__init__()
        self.card, self.names, self.spare = card, names, spare
        self.count = Count()
        self._told = 0  # the peak that `holders` describes

    def restart(self) -> Count:
        """The count so far; a new one begins, with what is alive as its first peak."""
        with self.lock:
            before, self.count, self._told = self.count, Count(peak=self.alive), 0
            return before

    def pass_by(self, size: int) -> None:
        """Count bytes that an operation would hold on the card while it runs."""
        with self.lock:
            self.peak = max(self.peak, self.alive + size)
            self._tell(self.alive + size, lambda: [(f"attention's scores, {_line()}", size)])

    def store(self, value: Tensor) -> None:
        """A tensor comes to lie on the card.

        Raises:
            torch.cuda.OutOfMemoryError: this machine has no room for it.
        """
        with self.lock:
            new = self.come(value)
            if new is not None and new.size >= _NOTED:
                new.note = _line(), list(value.shape), value.dtype
            self._tell(self.alive)
        if new is not None and new.size >= _LARGE_TENSOR and psutil.virtual_memory().available < self.spare:
            held = ", ".join(f"{what}: {shown(amount)}" for what, amount in self.holders()[:4])
            raise torch.cuda.OutOfMemoryError(
                f"This machine's memory is full. The {self.card.name} would hold {shown(self.alive)} by now ({held})."
            )

    def _tell(self, held: int, passing: Callable[[], list[tuple[str, int]]] = list) -> None:
        """So many bytes are held now, a moment's among them; whose, where that is clearly more than was told."""
        if held > self.count.peak:
            self.count.peak = held
            if held > 1.02 * self._told + 2**20:
                self._told = held
                self.count.holders = sorted([*self.holders(), *passing()], key=_by_size)

    def holders(self) -> list[tuple[str, int]]:
        """What is alive now, largest first: models by the names of their variables, all else by the line it is from."""
        left = {key: (stored.size, stored.note) for key, stored in self.stored.items()}
        found: dict[str, int] = {}
        for name, model in _models(self.names()):
            keys = {w.untyped_storage()._cdata for w in _weights(model) if w.is_cuda} & left.keys()
            size = sum(left.pop(key)[0] for key in keys)
            if size:
                found[f"model {name}"] = size
        by_line: dict[str, list[tuple[int, str]]] = {}
        for size, label in left.values():
            line, what = (label[0], f"{label[1]} {label[2]}".replace("torch.", "")) if label else ("small tensors", "")
            by_line.setdefault(line, []).append((size, what))
        for line, parts in by_line.items():
            many = f"{len(parts)} tensors, the largest " if len(parts) > 1 else ""
            what = max(parts)[1]
            found[f"{line} ({many}{what})" if what else line] = sum(size for size, _ in parts)
        return sorted(found.items(), key=_by_size)[:12]

    def host_holders(self) -> list[tuple[str, int]]:
        """Models in main memory, by the names of their variables, largest first."""
        counted: set[int] = set()
        found = []
        for name, model in _models(self.names()):
            here = [w for w in _weights(model) if w.is_cpu]
            storages = {w.untyped_storage()._cdata: w.untyped_storage().nbytes() for w in here}
            size = sum(amount for key, amount in storages.items() if key not in counted)
            counted |= storages.keys()
            if size:
                found.append((f"model {name}", size))
        return sorted(found, key=_by_size)[:6]


def _by_size(holder: tuple[str, int]) -> int:
    return -holder[1]


def _line() -> str:
    """The line that makes a tensor: of the lesson's cell, and the innermost of course_utils."""
    frame: FrameType | None = sys._getframe(1)
    inside = ""
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if "ipykernel_" in file or "<ipython-input" in file:
            return f"line {frame.f_lineno} of the cell{inside}"
        if "/course_utils/" in file and not inside:
            inside = f" in {frame.f_code.co_name} ({file.rpartition('/')[2]}:{frame.f_lineno})"
        frame = frame.f_back
    return inside.strip() or "elsewhere"


def _models(names: dict) -> Iterator[tuple[str, nn.Module]]:
    """The models among variables, also those in lists and dicts, and those in the functions that are running."""
    frame: FrameType | None = sys._getframe(1)
    spaces = [names]
    while frame is not None:
        if "/course_utils/" in frame.f_code.co_filename.replace("\\", "/"):
            spaces.append({f"{frame.f_code.co_name}.{name}": v for name, v in frame.f_locals.items()})
        frame = frame.f_back
    for space in spaces:
        for name, value in list(space.items()):
            if name.lstrip("_").isdigit() or name in ("_", "__", "___"):  # IPython's last results
                continue
            if _is_model(value):
                yield name, value
            elif isinstance(value, dict):
                yield from ((f"{name}[{k!r}]", v) for k, v in list(value.items()) if _is_model(v))
            elif isinstance(value, list | tuple):
                yield from ((f"{name}[{k}]", v) for k, v in enumerate(value) if _is_model(v))


def _is_model(value: object) -> bool:
    """Whether it is a module, and not one that is just being copied, which has no weights yet."""
    return isinstance(value, nn.Module) and "_parameters" in vars(value)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
