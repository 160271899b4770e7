"""A graphics card on paper: what it is taken for, and what lies on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType

import psutil
import torch
from torch import Tensor, nn

from course_utils.support import ledger

GIBIBYTE = 2**30
Holders = list[tuple[str, int]]  # what holds how many bytes, largest first
_NOTED, _LARGE_TENSOR = 2**16, 2**26  # bytes from which on a line is noted; one looks whether this machine has them


@dataclass(frozen=True)
class Card:
    """What a card is taken for.

    Attributes:
        name: as ``torch.cuda.get_device_name`` says it.
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


class Ledger(ledger.Ledger):
    """What lies on a card: each storage once, until the last tensor on it is gone.

    Args:
        card: which.
        names: returns the variables to look for models in.
        spare: bytes of this machine's memory that must stay free; OutOfMemoryError where a tensor would take them.
    """

    def __init__(self, card: Card, *, names: Callable[[], dict] = dict, spare: int = 0) -> None:
        super().__init__()
        self.card, self.names, self.spare = card, names, spare
        self._peak, self._told = 0, 0  # since `restart`: the most bytes at once, and the peak that `_holders` describes
        self._holders: Holders = []

    def restart(self) -> tuple[int, Holders]:
        """The most bytes at once since the last call, and what held them; what is alive begins the next count."""
        with self.lock:
            found = self._peak, self._holders
            self._peak, self._told, self._holders = self.alive, 0, []
            return found

    def pass_by(self, size: int) -> None:
        """Count bytes that an operation would hold on the card while it runs."""
        with self.lock:
            self.peak = max(self.peak, self.alive + size)
            self._tell(self.alive + size, [(f"attention's scores, {_line()}", size)])

    def store(self, tensor: Tensor) -> None:
        """A tensor comes to lie on the card.

        Raises:
            torch.cuda.OutOfMemoryError: this machine has no room for it.
        """
        with self.lock:
            new = self.come(tensor)
            if new is not None and new.size >= _NOTED:
                new.note = _line(), f"{list(tensor.shape)} {tensor.dtype}".replace("torch.", "")
            self._tell(self.alive)
        if new is not None and new.size >= _LARGE_TENSOR and psutil.virtual_memory().available < self.spare:
            held = ", ".join(f"{what}: {shown(amount)}" for what, amount in self.holders()[:4])
            raise torch.cuda.OutOfMemoryError(
                f"This machine's memory is full. The {self.card.name} would hold {shown(self.alive)} by now ({held})."
            )

    def _tell(self, held: int, passing: Iterable[tuple[str, int]] = ()) -> None:
        """So many bytes are held now; whose is worked out where that is clearly more than the last time."""
        if held > self._peak:
            self._peak = held
            if held > 1.02 * self._told + 2**20:
                self._told, self._holders = held, _largest([*self.holders(), *passing])

    def holders(self) -> Holders:
        """What is alive on the card now: models by the names of their variables, all else by the line it is from."""
        left = {key: (stored.size, stored.note) for key, stored in self.stored.items()}
        found = {}
        for name, storages in self._models():
            size = sum(left.pop(key)[0] for key in storages if key in left)
            found[f"model {name}"] = size
        lines: dict[str, list[tuple[int, str]]] = {}
        for size, note in left.values():
            line, what = note if isinstance(note, tuple) else ("small tensors", "")
            lines.setdefault(line, []).append((size, what))
        for line, parts in lines.items():
            many = f"{len(parts)} tensors, the largest " if len(parts) > 1 else ""
            found[f"{line} ({many}{max(parts)[1]})"] = sum(size for size, _ in parts)
        return _largest(found.items())

    def host_holders(self) -> Holders:
        """The models in main memory now."""
        with self.lock:
            sizes = {name: sum(of[key] for key in of.keys() - self.stored.keys()) for name, of in self._models()}
        return _largest((f"model {name}", size) for name, size in sizes.items())

    def _models(self) -> Iterator[tuple[str, dict[int, int]]]:
        """The models among variables, in lists and dicts of them, and in running functions: bytes by storage."""
        frame: FrameType | None = sys._getframe(1)
        spaces = [self.names()]
        while frame is not None:
            if "/course_utils/" in frame.f_code.co_filename.replace("\\", "/"):
                spaces.append({f"{frame.f_code.co_name}.{name}": v for name, v in frame.f_locals.items()})
            frame = frame.f_back
        for name, value in [pair for space in spaces for pair in list(space.items()) if pair[0].strip("_0123456789")]:
            many = isinstance(value, dict | list | tuple)
            parts = value.items() if isinstance(value, dict) else enumerate(value) if many else [(None, value)]
            for key, model in list(parts):
                # One that is just being copied has no weights yet.
                if isinstance(model, nn.Module) and "_parameters" in vars(model):
                    storages = [weight.untyped_storage() for weight in (*model.parameters(), *model.buffers())]
                    yield f"{name}[{key!r}]" if many else name, {each._cdata: each.nbytes() for each in storages}


def _largest(holders: Iterable[tuple[str, int]]) -> Holders:
    return sorted((pair for pair in holders if pair[1]), key=lambda holder: -holder[1])[:12]


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
