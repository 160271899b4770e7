"""What lies on a pretended graphics card: how many bytes, and what holds them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

import psutil
import torch
from torch import Tensor, nn

from course_utils.support import ledger

GIBIBYTE = 2**30
T4 = int(14.7 * GIBIBYTE)  # bytes of memory
SPARE = 2_000_000_000  # bytes of this machine's memory that are left alone
Holders = list[tuple[str, int]]  # what holds how many bytes, largest first
_NOTED, _LARGE_TENSOR = 2**16, 2**26  # bytes from which on the line is noted, and this machine's memory is looked at


def shown(size: float) -> str:
    """Bytes as "1.25 GiB"."""
    return f"{size / GIBIBYTE:.2f} GiB" if size >= GIBIBYTE / 10 else f"{size / 2**20:.1f} MiB"


class Ledger(ledger.Ledger):
    """What lies on the card: each storage once, until the last tensor on it is gone.

    Args:
        names: returns the variables to look for models in.
    """

    def __init__(self, names: Callable[[], dict] = dict) -> None:
        super().__init__()
        self.names = names
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
        if new is not None and new.size >= _LARGE_TENSOR and _free() < SPARE:
            held = ", ".join(f"{what}: {shown(amount)}" for what, amount in self.holders()[:4])
            message = f"This machine's memory is full. The card would hold {shown(self.alive)} by now ({held})."
            raise torch.cuda.OutOfMemoryError(message)

    def _tell(self, held: int, passing: Iterable[tuple[str, int]] = ()) -> None:
        """So many bytes are held now; what holds them is worked out where that is clearly more than the last time."""
        if held > self._peak:
            self._peak = held
            if held > 1.02 * self._told + 2**20:
                self._told, self._holders = held, _largest([*self.holders(), *passing])

    def holders(self) -> Holders:
        """What is alive on the card now: models by the names of their variables, all else by the line it is from."""
        left = dict(self.stored)
        found = {}
        for name, storages in self._models():
            found[f"model {name}"] = sum(left.pop(key).size for key in storages if key in left)
        lines: dict[str, list[tuple[int, str]]] = {}
        for stored in left.values():
            line, what = stored.note if isinstance(stored.note, tuple) else ("small tensors", "")
            lines.setdefault(line, []).append((stored.size, what))
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
        variables = [*self.names().items()]
        for frame in _frames():
            if "/course_utils/" in _file(frame):
                variables += [(f"{frame.f_code.co_name}.{name}", value) for name, value in frame.f_locals.items()]
        for name, value in variables:
            if not name.strip("_0123456789"):  # IPython's own names for what a cell returned
                continue
            many = isinstance(value, dict | list | tuple)
            parts = value.items() if isinstance(value, dict) else enumerate(value) if many else [(None, value)]
            for key, model in list(parts):
                # A model that is just being copied has no weights yet.
                if isinstance(model, nn.Module) and "_parameters" in vars(model):
                    storages = [weight.untyped_storage() for weight in (*model.parameters(), *model.buffers())]
                    yield f"{name}[{key!r}]" if many else name, {each._cdata: each.nbytes() for each in storages}


def _largest(holders: Iterable[tuple[str, int]]) -> Holders:
    return sorted((pair for pair in holders if pair[1]), key=lambda holder: -holder[1])[:12]


def _free() -> int:
    return psutil.virtual_memory().available + psutil.swap_memory().free


def _line() -> str:
    """The line that makes a tensor: of the lesson's cell, and the innermost of course_utils."""
    inside = ""
    for frame in _frames():
        file = _file(frame)
        if "ipykernel_" in file or "<ipython-input" in file:
            return f"line {frame.f_lineno} of the cell{inside}"
        if "/course_utils/" in file and not inside:
            inside = f" in {frame.f_code.co_name} ({file.rpartition('/')[2]}:{frame.f_lineno})"
    return inside.strip() or "elsewhere"


def _frames() -> Iterator[FrameType]:
    """The functions that are running, from the innermost on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.replace("\\", "/")
