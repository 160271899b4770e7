"""A graphics card that isn't there: tensors that say "cuda", live in main memory, and are counted to the byte.

`PretendGPU(T4)` makes torch believe in one card. Whatever a program puts there is a `CardTensor`: it reports the device
"cuda:0" and holds an ordinary tensor, on which every operation is really computed, by the processor. So a program takes
the very branches that it takes on the card, and mixing devices fails as it does there.

Counted: each storage that a `CardTensor` holds, once, from the operation that made it until the last tensor on it is
gone. Not counted: what an operation needs for itself while it runs, and the driver's own memory. Attention chooses as a
T4 does: memory-efficient, or written out where query heads share keys (grouped-query attention without a mask).

The operations' FLOPs and bytes are added up, too, with the seconds that they imply on the card: for each operation the
longer of computing and of moving its inputs and outputs, see `Card`.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

GIBIBYTE = 2**30
_aten = torch.ops.aten
_META_GUARD, _CORE_GUARD = 14, 18  # their places among torch's device guards
_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)
# What torch's core takes the card for: a kind of device without a driver, streams, autograd threads or special cases.
# Python code sees "cuda:0".
_CORE = torch.device("ipu", 0)
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
_NOTED = 2**16  # bytes from which on a tensor's line is noted
_LARGE_TENSOR = 2**26  # bytes before which one looks whether this machine has them
_MATH, _EFFICIENT = 0, 2  # numbers of torch's attention kernels
_MANY_SCORES = 2**23  # of attention, from which on writing them out takes the processor too long
_BYTES_A_SCORE = 13  # when they are: scores, softmax and its repaired copy in float32, and a mask
# May read the other device: copies, and indices that may stay in main memory.
_CROSS_DEVICES = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "set_", "lift_fresh"}


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


@dataclass
class Count:
    """What happened on the card since the count began.

    Attributes:
        peak: the most bytes alive at once.
        holders: (what, bytes) about that time, largest first.
        flops, moved, seconds: of all operations: FLOPs, bytes read and written, and what they take on the card.
        busy: seconds that this machine took to compute and to count them.
    """

    peak: int = 0
    holders: list[tuple[str, int]] = field(default_factory=list)
    flops: float = 0.0
    moved: float = 0.0
    seconds: float = 0.0
    busy: float = 0.0


class CardTensor(Tensor):
    """A tensor that says it is on the card; `inner` holds its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[CardTensor], inner: Tensor) -> CardTensor:
        """Around an ordinary tensor."""
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=_CORE, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        card = PretendGPU.current
        if card is None:
            raise RuntimeError("The pretended card is gone; its tensors can't be used any more.")
        return card.compute(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return repr(self.detach().cpu()).removesuffix(")") + ", device='cuda:0')"

    def __format__(self, spec: str) -> str:
        return format(self.cpu(), spec)

    def tolist(self) -> Any:
        """As Python numbers."""
        return self.detach().cpu().tolist()

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        """Copied to main memory."""
        return self.to("cpu")

    def data_ptr(self) -> int:
        """Where the numbers really are."""
        return self.inner.data_ptr()

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """Refused, as a GPU refuses it."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def untyped_storage(self) -> torch.UntypedStorage:
        """The storage that is counted."""
        return self.inner.untyped_storage()

    @property
    def device(self) -> torch.device:
        """What Python code is told."""
        return _CUDA

    @property
    def is_cuda(self) -> bool:
        """What Python code is told."""
        return True

    @property
    def data(self) -> Tensor:
        """The same numbers, without a history."""
        return self.detach()

    @data.setter
    def data(self, value: CardTensor) -> None:
        Tensor.data.__set__(self, value)
        self.inner = value.inner

    def __deepcopy__(self, memo: dict) -> CardTensor:
        if id(self) in memo:
            return memo[id(self)]
        with torch.no_grad():
            copied = self.detach().clone()
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        if self.grad is not None:
            copied.grad = self.grad.detach().clone()
        memo[id(self)] = copied
        return copied


class PretendGPU(TorchDispatchMode):
    """The card, while the block runs, or from `install` on.

    Args:
        card: which.
        exact_rows: products of matrices with more rows than this add up only a sample of their summands, one of 32: for
            models of random weights, whose numbers mean nothing, but whose tensors are counted. None: all exact.
        names: returns the variables to look for models in, for `Count.holders`.
        spare: bytes of this machine's memory that must stay free; OutOfMemoryError where a tensor would take them.
    """

    current: PretendGPU | None = None

    def __init__(
        self,
        card: Card = T4,
        *,
        exact_rows: int | None = None,
        names: Callable[[], dict] = dict,
        spare: int = 0,
    ) -> None:
        super().__init__()
        self.card, self.exact_rows, self.names, self.spare = card, exact_rows, names, spare
        self.alive = 0
        self.highest = 0
        self.training = False  # whether the present operation's inputs are to get gradients
        self.count = Count()
        self._stored: dict[int, tuple[int, tuple[str, list[int], torch.dtype] | None, weakref.ref]] = {}
        self._told = 0  # the peak that `holders` describes
        self._patches = list(_patches(self))
        self._names = _Names()
        self._lock = threading.RLock()

    def install(self) -> None:
        """Begin, for the rest of the process, in this thread."""
        self.__enter__()

    def __enter__(self) -> PretendGPU:
        if PretendGPU.current is not None:
            raise RuntimeError("There is one pretended card already.")
        self._lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # Else backward looks for the card's own thread.
        self._threads = torch.autograd.set_multithreading_enabled(False)
        self._overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        guards = _guards()
        guards[_CORE_GUARD] = guards[_META_GUARD]
        for patch in self._patches:
            patch.start()
        PretendGPU.current = self
        self._names.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._names.__exit__(*error)
        PretendGPU.current = None
        for patch in reversed(self._patches):
            patch.stop()
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwriting)
        torch._C._set_only_lift_cpu_tensors(self._lifting)
        _guards()[_CORE_GUARD] = None
        self._threads.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.compute(func, args, kwargs or {})

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

    def compute(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """One operation: on the tensors inside, its results on the card if they belong there."""
        start = time.perf_counter()
        device = kwargs.get("device")
        flat = [*_tensors(args), *_tensors(list(kwargs.values()))]
        inputs = [value for value in flat if isinstance(value, Tensor)]
        ours = any(isinstance(value, CardTensor) for value in inputs)
        if not ours and (device is None or not _is_card(device)):
            return func(*args, **kwargs)
        to_card = ours if device is None else _is_card(device)
        if device is not None:
            kwargs = kwargs | {"device": _CPU if to_card else device}
        _check_devices(func, flat, to_card)
        self.training = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
        result = self._on_processor(func, *_inside(args), **_inside(kwargs))
        if torch.Tag.inplace_view in func.tags:
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        outside = self._outside(func, result, args, kwargs, inputs, to_card)
        self.count.busy += time.perf_counter() - start
        return outside

    def _on_processor(self, func: Callable, *args: Any, **kwargs: Any) -> Any:
        replaced = _REPLACED.get(func)
        return func(*args, **kwargs) if replaced is None else replaced(self, *args, **kwargs)

    def _outside(
        self, func: Callable, result: Any, args: tuple, kwargs: dict, inputs: list[Tensor], to_card: bool
    ) -> Any:
        written = _written(func)
        many = isinstance(result, tuple | list)
        results = list(result) if many else [result]
        made = []
        for number, value in enumerate(results):
            source = written[number] if number < len(written) else None
            if source is not None:
                position, name = source
                made.append(args[position] if position < len(args) else kwargs[name])
            else:
                made.append(self._wrap(value) if to_card else value)
        self._add_work(func, args, kwargs, inputs, result)
        return type(result)(made) if many else made[0]

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)([self._wrap(part) for part in value])
        if not isinstance(value, Tensor) or isinstance(value, CardTensor):
            return value
        self._store(value)
        return CardTensor(value)

    def _store(self, value: Tensor) -> None:
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
            held = ", ".join(f"{what}: {amount / GIBIBYTE:.2f} GiB" for what, amount in self.holders()[:4])
            raise torch.cuda.OutOfMemoryError(
                f"This machine's memory is full. The {self.card.name} would hold {self.alive / GIBIBYTE:.2f} GiB by "
                f"now ({held})."
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
            keys = {w.untyped_storage()._cdata for w in _weights(model) if isinstance(w, CardTensor)} & left.keys()
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
            here = [w for w in _weights(model) if not isinstance(w, CardTensor) and w.is_cpu]
            storages = {w.untyped_storage()._cdata: w.untyped_storage().nbytes() for w in here}
            size = sum(amount for key, amount in storages.items() if key not in counted)
            counted |= storages.keys()
            if size:
                found.append((f"model {name}", size))
        return sorted(found, key=_by_size)[:6]

    def _add_work(self, func: Callable, args: tuple, kwargs: dict, inputs: list[Tensor], result: Any) -> None:
        if func.is_view:
            return
        outputs = [value for value in _tensors(result) if isinstance(value, Tensor)]
        size = sum(value.numel() * value.element_size() for value in (*inputs, *outputs))
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula is not None else 0
        dtype = outputs[0].dtype if outputs else torch.float32
        self.count.flops += flops
        self.count.moved += size
        self.count.seconds += self.card.seconds(flops, size, dtype)


def _by_size(holder: tuple[str, int]) -> int:
    return -holder[1]


def _guards() -> Any:
    """Torch's table of device guards, which switch between cards.

    Without a driver a place is empty, and indexing, copying and a few more operations end there. The
    guard that does nothing, written for the device "meta", serves as well.
    """
    library = Path(torch.__file__).parent / "lib" / {"darwin": "libc10.dylib"}.get(sys.platform, "libc10.so")
    return (ctypes.c_void_p * (_CORE_GUARD + 1)).in_dll(ctypes.CDLL(str(library)), _GUARDS)


def _inside(value: Any) -> Any:
    """Ordinary tensors in the place of the card's, in what an operation is called with (torch's pytree is slow)."""
    kind = type(value)
    if kind is CardTensor:
        return value.inner
    if kind is tuple or kind is list:
        return kind([_inside(part) for part in value])
    if kind is dict:
        return {name: _inside(part) for name, part in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Any]:
    """All values in what an operation is called with or gives back."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    else:
        yield value


@functools.cache
def _written(func: Callable) -> tuple[tuple[int, str] | None, ...]:
    """For each result, the argument (its position and name) that it is, if the operation writes into one."""
    arguments = list(enumerate(func._schema.arguments))
    found = []
    for returned in func._schema.returns:
        alias = returned.alias_info
        same = [
            (position, argument.name)
            for position, argument in arguments
            if alias is not None
            and alias.is_write
            and argument.alias_info is not None
            and argument.alias_info.before_set == alias.before_set
        ]
        found.append(same[0] if same else None)
    return tuple(found)


def _check_devices(func: Callable, values: list, to_card: bool) -> None:
    """Refuse what the card refuses: operations across devices, and the processor's random numbers on the card."""
    name = func.overloadpacket.__name__
    if to_card and any(isinstance(v, torch.Generator) and v.device.type == "cpu" for v in values):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if name in _CROSS_DEVICES:
        return
    here = [v for v in values if isinstance(v, Tensor) and not isinstance(v, CardTensor) and v.dim() and v.is_cpu]
    if here and any(isinstance(v, CardTensor) for v in values):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(in {name})"
        )


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
            if isinstance(value, nn.Module):
                yield name, value
            elif isinstance(value, dict):
                yield from ((f"{name}[{k!r}]", v) for k, v in list(value.items()) if isinstance(v, nn.Module))
            elif isinstance(value, list | tuple):
                yield from ((f"{name}[{k}]", v) for k, v in enumerate(value) if isinstance(v, nn.Module))


def _weights(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _choose_attention(
    card: PretendGPU, query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **kwargs: Any
) -> int:
    """Shared keys have it written out; without training a large one is only counted so, see `_attend`."""
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    shared = query.shape[-3] != key.shape[-3]
    return _MATH if shared and (card.training or scores <= _MANY_SCORES) else _EFFICIENT


def _attend(
    card: PretendGPU,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    sharing = query.shape[-3] // key.shape[-3]
    if sharing > 1:
        scores = query.numel() // query.shape[-1] * key.shape[-2]
        card.pass_by(_BYTES_A_SCORE * scores + 4 * (2 * query.numel() + 2 * sharing * key.numel()))
        key, value = (tensor.repeat_interleave(sharing, -3) for tensor in (key, value))
    out, sums = _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale
    )
    nothing = torch.zeros((), dtype=torch.int64)
    return out, sums, nothing, nothing.clone()


def _attend_backward(
    card: PretendGPU,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    sums: Tensor,
    _seed: Tensor,
    _offset: Tensor,
    dropout_p: float,
    _wanted: list[bool],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, sums, dropout_p, is_causal, attn_mask=bias, scale=scale
    )
    return (*grads, None)


def _sampled(card: PretendGPU, a: Tensor, b: Tensor) -> Tensor:
    """A @ b; with many rows some of the summands stand for all. The processor has no fast float16."""
    summands = a.shape[-1]
    if card.exact_rows is not None and a.shape[-2] > card.exact_rows and min(summands, b.shape[-1]) >= _LARGE:
        taken = summands // _SAMPLED
        a, b = a[..., :taken] * (summands / taken) ** 0.5, b[..., :taken, :]
    if a.dtype == torch.float16 and min(a.shape[-1], b.shape[-1]) >= _LARGE:
        return (a.float() @ b.float()).to(torch.float16)
    return a @ b


_LARGE = 256  # sides of a matrix from which on a product is worth a shortcut
_SAMPLED = 32  # one summand of so many is added up


def _mm(card: PretendGPU, a: Tensor, b: Tensor) -> Tensor:
    return _sampled(card, a, b)


def _addmm(card: PretendGPU, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if min(*a.shape, *b.shape) < _LARGE and a.dtype != torch.float16:
        return torch.addmm(added, a, b, beta=beta, alpha=alpha)
    return beta * added + alpha * _sampled(card, a, b)


_REPLACED: dict[Callable, Callable] = {
    _aten._fused_sdp_choice.default: _choose_attention,
    _aten._scaled_dot_product_efficient_attention.default: _attend,
    _aten._scaled_dot_product_efficient_attention_backward.default: _attend_backward,
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
}


def _patches(card: PretendGPU) -> Iterator[Any]:
    """torch.cuda as the card answers it."""
    properties = SimpleNamespace(
        name=card.card.name,
        major=card.card.capability[0],
        minor=card.card.capability[1],
        total_memory=card.card.memory,
        multi_processor_count=40,
    )
    answers: dict[str, Callable] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: card.card.name,
        "get_device_capability": lambda device=None: card.card.capability,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or card.card.capability >= (8, 0),
        "mem_get_info": lambda device=None: (max(0, card.card.memory - card.alive), card.card.memory),
        "memory_allocated": lambda device=None: card.alive,
        "memory_reserved": lambda device=None: card.alive,
        "max_memory_allocated": lambda device=None: card.highest,
        "max_memory_reserved": lambda device=None: card.highest,
        "reset_peak_memory_stats": lambda device=None: card.forget_highest(),
        "synchronize": lambda device=None: None,
        "Event": _Event,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda state, device=None: None,
        "set_rng_state_all": lambda states: None,
    }
    for name, answer in answers.items():
        yield mock.patch.object(torch.cuda, name, answer)
    yield mock.patch.object(nn.Module, "_apply", _tied(nn.Module._apply))
    yield mock.patch.object(torch, _CORE.type, torch.cuda, create=True)
    autocast = torch.amp.autocast_mode.autocast
    yield mock.patch.object(autocast, "__init__", _autocast_of_core(autocast.__init__))


class _Event:
    """A mark in the card's work, which is finished as soon as it is asked for."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._at = 0.0

    def record(self, stream: object = None) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return 1000 * (end._at - self._at)


class _Names(TorchFunctionMode):
    """Gives torch's core its own name of the card, wherever Python code says "cuda"."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is Tensor.cuda:
            return args[0].to(_CORE)
        kwargs = {name: _CORE if _is_card(value) else value for name, value in (kwargs or {}).items()}
        return func(*(_CORE if _is_card(value) else value for value in args), **kwargs)


def _autocast_of_core(begin: Callable) -> Callable:
    @functools.wraps(begin)
    def __init__(
        self: Any, device_type: str, dtype: Any = None, enabled: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        if device_type in ("cuda", _CORE.type):
            if enabled:
                raise NotImplementedError("The pretended card has no autocast: it would have to count other tensors.")
            device_type, dtype = "cpu", None
        begin(self, device_type, dtype, enabled, *args, **kwargs)

    return __init__


def _is_card(device: Any) -> bool:
    if isinstance(device, str):
        return device == "cuda" or device.startswith("cuda:")
    return isinstance(device, torch.device) and device.type in ("cuda", _CORE.type)


def _tied(apply: Callable) -> Callable:
    """Modules that share a parameter share it on the card, too (torch exchanges the contents, we the parameter)."""

    def _apply(module: nn.Module, fn: Callable, recurse: bool = True) -> nn.Module:
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for part in module.modules() if recurse else [module]:
            for name, weight in part._parameters.items():
                if weight is not None:
                    owners.setdefault(id(weight), []).append((part, name))
        kept: dict[int, Tensor] = {}  # alive as long as their numbers are in use

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in kept:
                kept[id(tensor)] = tensor
                kept[-id(tensor)] = fn(tensor)
            return kept[-id(tensor)]

        apply(module, once, recurse)
        for (first, name), *others in owners.values():
            for part, other in others:
                part._parameters[other] = first._parameters[name]
        return module

    return _apply
