"""A graphics card on paper: what it is taken for, what lies on it, and what its operations would take there."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

import psutil
import torch
from torch import Tensor, nn

GIBIBYTE = 2**30
_NOTED = 2**16  # bytes from which on a tensor's line is noted
_LARGE_TENSOR = 2**26  # bytes before which one looks whether this machine has them


@dataclass(frozen=True)
class Card:
    """What a card is taken for; the seconds that it would need are an estimate from these.

    Attributes:
        name: as `torch.cuda.get_device_name` says it.
        capability: of its architecture.
        memory: bytes in all; more is counted, not refused, so that one learns how much it would take.
        half, single: FLOP/s in float16 and in float32, as the maker states them.
        efficiency: the share of these that products of matrices reach.
        bandwidth: bytes/s of its memory.
        launch: seconds that the smallest operation takes.
    """

    name: str = "Tesla T4"
    capability: tuple[int, int] = (7, 5)
    memory: int = int(14.7 * GIBIBYTE)
    half: float = 65e12
    single: float = 8.1e12
    efficiency: float = 0.4
    bandwidth: float = 300e9
    launch: float = 10e-6

    def seconds(self, flops: float, size: float, dtype: torch.dtype) -> float:
        """The longer of computing and of moving so many bytes; at least a launch."""
        rate = self.half if dtype == torch.float16 else self.single
        return max(flops / (rate * self.efficiency), size / self.bandwidth, self.launch)


T4 = Card()


def shown(size: float) -> str:
    """Bytes as "1.25 GiB"."""
    return f"{size / GIBIBYTE:.2f} GiB" if size >= GIBIBYTE / 10 else f"{size / 2**20:.1f} MiB"


@dataclass
class Count:
    """What happened on the card since the count began.

    Attributes:
        peak: the most bytes alive at once.
        holders: (what, bytes) about that time, largest first.
        flops, moved, seconds: of all operations: FLOPs, bytes read and written, and what they take on the card.
        busy: seconds that this machine took to compute and to count them.
        repeated: seconds that this machine would have taken for what is counted without having run.
    """

    peak: int = 0
    holders: list[tuple[str, int]] = field(default_factory=list)
    flops: float = 0.0
    moved: float = 0.0
    seconds: float = 0.0
    busy: float = 0.0
    repeated: float = 0.0


class Ledger:
    """What lies on a card, and what its operations took: each storage once, until the last tensor on it is gone.

    Args:
        card: which.
        names: returns the variables to look for models in, for `Count.holders`.
        spare: bytes of this machine's memory that must stay free; OutOfMemoryError where a tensor would take them.

    Attributes:
        alive: bytes on the card now.
        highest: the most so far; what `torch.cuda.max_memory_allocated` tells.
        count: since the last `restart`.
    """

    def __init__(self, card: Card, *, names: Callable[[], dict] = dict, spare: int = 0) -> None:
        self.card, self.names, self.spare = card, names, spare
        self.alive = 0
        self.highest = 0
        self.count = Count()
        self._stored: dict[int, tuple[int, tuple[str, list[int], torch.dtype] | None, weakref.ref]] = {}
        self._told = 0  # the peak that `holders` describes
        self._times = 1  # how often each operation counts
        self._lock = threading.RLock()

    def restart(self) -> Count:
        """The count so far; a new one begins, with what is alive as its first peak."""
        with self._lock:
            before, self.count, self._told = self.count, Count(peak=self.alive), 0
            return before

    def pass_by(self, size: int) -> None:
        """Count bytes that an operation would hold on the card while it runs."""
        with self._lock:
            self.count.peak = max(self.count.peak, self.alive + size)
            self.highest = max(self.highest, self.alive + size)
            if self.alive + size > 1.02 * self._told + 2**20:
                self._told = self.alive + size
                self.count.holders = sorted([*self.holders(), (f"attention's scores, {_line()}", size)], key=_by_size)

    def forget_highest(self) -> None:
        """What `torch.cuda.max_memory_allocated` tells begins anew."""
        self.highest = self.alive

    def store(self, value: Tensor) -> None:
        """A tensor comes to lie on the card.

        Raises:
            torch.cuda.OutOfMemoryError: this machine has no room for it.
        """
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            known = self._stored.get(key)
            if known is not None and known[2]() is storage:
                return
            label = (_line(), list(value.shape), value.dtype) if size >= _NOTED else None
            self._stored[key] = (size, label, weakref.ref(storage, functools.partial(self._free, key, size)))
            self.alive += size
            self.highest = max(self.highest, self.alive)
            if self.alive > self.count.peak:
                self.count.peak = self.alive
                if self.alive > 1.02 * self._told + 2**20:
                    self._told = self.alive
                    self.count.holders = self.holders()
        if size >= _LARGE_TENSOR and psutil.virtual_memory().available < self.spare:
            held = ", ".join(f"{what}: {shown(amount)}" for what, amount in self.holders()[:4])
            raise torch.cuda.OutOfMemoryError(
                f"This machine's memory is full. The {self.card.name} would hold {shown(self.alive)} by now ({held})."
            )

    def _free(self, key: int, size: int, reference: weakref.ref) -> None:
        with self._lock:
            if key in self._stored and self._stored[key][2] is reference:
                del self._stored[key]
            self.alive -= size

    def holders(self) -> list[tuple[str, int]]:
        """What is alive now, largest first: models by the names of their variables, all else by the line it is from."""
        left = {key: (size, label) for key, (size, label, _) in self._stored.items()}
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

    @contextlib.contextmanager
    def standing_for(self, times: int) -> Iterator[None]:
        """What runs inside stands for so many equal runs, and all of them are counted."""
        self._times, began = times, time.perf_counter()
        try:
            yield
        finally:
            self._times = 1
            self.count.repeated += (times - 1) * (time.perf_counter() - began)

    def add_work(self, flops: float, size: int, dtype: torch.dtype) -> None:
        """An operation of so many FLOPs read and wrote so many bytes."""
        self.count.flops += self._times * flops
        self.count.moved += self._times * size
        self.count.seconds += self._times * self.card.seconds(flops, size, dtype)

    def add_busy(self, seconds: float) -> None:
        """This machine took so long for an operation."""
        self.count.busy += self._times * seconds


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
