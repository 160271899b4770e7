"""The bytes that tensors hold: each storage counted once, from when it comes until its last tensor is gone."""

from __future__ import annotations

import functools
import threading
import weakref
from dataclasses import dataclass

from torch import Tensor, UntypedStorage, strided


@dataclass
class Stored:
    """A storage that is alive: its bytes, and a note of whoever counts it."""

    size: int
    reference: weakref.ref
    note: object = None


class Ledger:
    """What tensors hold.

    Attributes:
        alive: bytes now; below 0 where more of what was there before has gone than new has come.
        peak: the most so far, or since ``forget_peak``.
        stored: each storage that is alive, by its address.
    """

    def __init__(self) -> None:
        self.alive = self.peak = 0
        self.stored: dict[int, Stored] = {}
        self.lock = threading.RLock()  # a storage may go in any thread, also while this one counts

    def come(self, tensor: Tensor) -> Stored | None:
        """Count a tensor's storage, and return it; None where it is known."""
        storage = tensor.untyped_storage()
        with self.lock:
            if self._known(storage):
                return None
            new = self._know(storage)
            self.alive += new.size
            self.peak = max(self.peak, self.alive)
            return new

    def was_there(self, tensor: Tensor) -> Stored | None:
        """Know a tensor's storage from before the count: its bytes count only when they go. None where it is known."""
        storage = tensor.untyped_storage()
        with self.lock:
            return None if self._known(storage) else self._know(storage)

    def resized(self, storage: UntypedStorage) -> None:
        """Count a storage anew that has grown or shrunk in place, as FSDP's do."""
        with self.lock:
            known = self._known(storage)
            if known is not None:
                self.alive += self._know(storage).size - known.size  # the old reference no longer calls `_go`
                self.peak = max(self.peak, self.alive)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's storage is known."""
        return tensor.layout is strided and self._known(tensor.untyped_storage()) is not None

    def forget_peak(self) -> None:
        """The peak begins anew, with what is alive."""
        self.peak = self.alive

    def _known(self, storage: UntypedStorage) -> Stored | None:
        known = self.stored.get(storage._cdata)
        return known if known is not None and known.reference() is storage else None

    def _know(self, storage: UntypedStorage) -> Stored:
        key, size = storage._cdata, storage.nbytes()
        self.stored[key] = Stored(size, weakref.ref(storage, functools.partial(self._go, key, size)))
        return self.stored[key]

    def _go(self, key: int, size: int, reference: weakref.ref) -> None:
        with self.lock:
            if key in self.stored and self.stored[key].reference is reference:  # else the address has a new storage
                del self.stored[key]
            self.alive -= size
