"""A graphics card that isn't there: ordinary tensors in main memory that say "cuda" and are counted to the byte.

``PretendGPU(T4)`` makes torch believe in one card, in this thread. A tensor is on it when its storage is in the card's
ledger: a function mode answers ``tensor.device``, moves copies between the two sides and refuses to mix them; a
dispatch mode enters what operations make. So a program takes the branches that it takes on a GPU, and the processor
computes. Large products of matrices add up one summand in 32, because a model of random weights has tensors that
count and numbers that mean nothing. (With all summands one of Llama-3.2-1B's size takes fifteen times as long.)

Counted: each storage once, from the operation that made it until its last tensor is gone. Not counted: what an
operation needs for itself while it runs, and the driver's own memory.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from course_tools.rehearsal.card import T4, Ledger

_aten = torch.ops.aten
_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)
# What a tensor on the card says of itself.
_SAYS: dict[Any, Any] = {
    Tensor.device.__get__: _CUDA,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: True,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: False,  # type: ignore[attr-defined]
}
# Speak of devices or kinds of tensors, and compute nothing there.
_ABOUT = {torch.device, torch._C._nn._parse_to, torch._has_compatible_shallow_copy_type}
# May read the other side: copies, and indices that may stay in main memory.
_BETWEEN = {
    Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put_, Tensor.index_put, Tensor.set_,
    Tensor.data.__set__,  # type: ignore[attr-defined]
}  # fmt: skip
_MANY_SCORES = 2**20  # of attention, from which on writing them out takes the processor too long
_BYTES_PER_SCORE = 13  # when they are: scores, softmax and its repaired copy in float32, and a mask
_LARGE = 256  # sides of a matrix from which on a product is worth a shortcut
_SAMPLED = 32  # one summand in so many is added up


class PretendGPU(TorchDispatchMode):
    """The card, while the block runs.

    Args:
        memory: its bytes; more is counted, not refused, so that one learns how much it would take.
        names: returns the variables to look for models in, for `Ledger.holders`.

    Attributes:
        ledger: what lies on it.
    """

    def __init__(self, memory: int = T4, *, names: Callable[[], dict] = dict) -> None:
        super().__init__()
        self.ledger, self._memory = Ledger(names), memory
        self._there: bool | None = None  # where the function that runs makes tensors; None: where its arguments are

    def __enter__(self) -> PretendGPU:
        self._stack, functions = contextlib.ExitStack(), _Functions(self)
        engine = functools.partial(functions.run_backward, torch.autograd._engine_run_backward)
        # What is computed again is compared with the first time, but not its device: inside of torch that is another.
        checks = {"default": lambda tensor: (tensor.shape, tensor.dtype)}
        for patch in (
            mock.patch.multiple(torch.cuda, **_answers(self.ledger, self._memory)),
            mock.patch.object(torch.accelerator, "synchronize", return_value=None),
            mock.patch.object(torch.accelerator, "current_stream", return_value=_Stream()),
            mock.patch.object(torch.autograd, "_engine_run_backward", engine),
            mock.patch.dict(checkpoint._allowed_determinism_checks_to_fns, checks),
            functions,
        ):
            self._stack.enter_context(patch)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunction():
            given = [*_tensors((*args, *(kwargs or {}).values()))]
            there = any(map(self.ledger.holds, given)) if self._there is None else self._there
            replaced = _REPLACED.get(func) if there else None
            result = replaced(self.ledger, *args, **(kwargs or {})) if replaced else func(*args, **(kwargs or {}))
            if there:
                self.keep(result, given)
            return result

    def keep(self, result: Any, given: Iterable[Tensor]) -> None:
        """Results come to lie on the card, unless they are views of what was given in main memory."""
        here = {tensor.untyped_storage()._cdata for tensor in given if not self.ledger.holds(tensor)}
        for tensor in _tensors([result]):
            if tensor.layout is torch.strided and tensor.untyped_storage()._cdata not in here:
                self.ledger.store(tensor)

    @contextlib.contextmanager
    def making(self, there: bool | None) -> Iterator[None]:
        """What is made meanwhile lies there."""
        before, self._there = self._there, there
        try:
            yield
        finally:
            self._there = before


class _Functions(TorchFunctionMode):
    """Answers where a tensor is, and lets functions make tensors there."""

    def __init__(self, card: PretendGPU) -> None:
        super().__init__()
        self._card, self._holds = card, card.ledger.holds

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _SAYS and self._holds(args[0]):
            return _SAYS[func]
        if func in _ABOUT or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        if func in (Tensor.cuda, Tensor.cpu):
            func, args, kwargs = Tensor.to, (args[0], _CUDA if func is Tensor.cuda else _CPU), {}
        if func is nn.functional.scaled_dot_product_attention and self._holds(args[0]) and args[0].dim() == 4:
            func = _attention
        given = [*_tensors((*args, *kwargs.values()))]
        ours = [self._holds(tensor) for tensor in given]
        device = self._device(func, args, kwargs)
        there = any(ours) if device is None else device.type == "cuda"
        if there and any(isinstance(v, torch.Generator) for v in (*args, *kwargs.values())):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func in (Tensor.numpy, Tensor.__array__) and there and not kwargs.get("force"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is Tensor.to and device is not None and ours[0] != there:
            kwargs = kwargs | {"copy": True}
        elif (
            device is None
            and there
            and func not in _BETWEEN
            and any(tensor.dim() for tensor, held in zip(given, ours, strict=True) if not held)
        ):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"(in {func.__name__})"
            )
        if device is not None and there:
            args = tuple(_CPU if _is_card(value) else value for value in args)
            kwargs = {name: _CPU if _is_card(value) else value for name, value in kwargs.items()}
        with self._card.making(there):
            result = func(*args, **kwargs)
        if there:
            if func in (torch.as_tensor, torch.asarray):
                result = result.clone()
            self._card.keep(result, given)
        return result

    def run_backward(self, run: Callable, *args: Any, **kwargs: Any) -> Any:
        """Backward runs Python code as well, hooks and what is computed again, which must see the card."""
        with self, self._card.making(None):
            return run(*args, **kwargs)

    def _device(self, func: Any, args: tuple, kwargs: dict) -> torch.device | None:
        """The device that a call names, if it does."""
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            return _CUDA if self._holds(args[1]) else _CPU
        named = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.device) or _is_card(v)]
        plain = kwargs.get("device") or (args[1] if func is Tensor.to and len(args) > 1 else None)
        if not named and isinstance(plain, str):
            named = [plain]
        return torch.device(named[0]) if named else None


def _is_card(device: Any) -> bool:
    """Whether a device, or the name of one, is the card."""
    if isinstance(device, str):
        return device == "cuda" or device.startswith("cuda:")
    return isinstance(device, torch.device) and device.type == "cuda"


def _tensors(values: Iterable) -> Iterator[Tensor]:
    """The tensors in what a function is called with or gives back."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


class _Stream:
    """The card's queue of work: nothing in it is recorded to be run again."""

    def is_capturing(self) -> bool:
        return False


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


def _answers(ledger: Ledger, memory: int) -> dict[str, Any]:
    """torch.cuda as the card answers it."""
    about = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=memory, multi_processor_count=40)
    silent = "_lazy_init set_device synchronize empty_cache manual_seed manual_seed_all set_rng_state set_rng_state_all"
    return dict.fromkeys(silent.split(), lambda *args, **kwargs: None) | {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "get_device_name": lambda device=None: about.name,
        "get_device_capability": lambda device=None: (about.major, about.minor),
        "get_device_properties": lambda device=None: about,
        "is_bf16_supported": lambda including_emulation=True: including_emulation,
        "mem_get_info": lambda device=None: (max(0, memory - ledger.alive), memory),
        "memory_allocated": lambda device=None: ledger.alive,
        "memory_reserved": lambda device=None: ledger.alive,
        "max_memory_allocated": lambda device=None: ledger.peak,
        "max_memory_reserved": lambda device=None: ledger.peak,
        "reset_peak_memory_stats": lambda device=None: ledger.forget_peak(),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "Event": _Event,
    }


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's, by the kernel that it would choose on a T4: memory-efficient, or written out where keys are shared.

    Without training, a large one with shared keys is only counted as if it were written out.
    """
    scores = _scores(query, key)
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if query.shape[-3] != key.shape[-3] and (training or scores <= _MANY_SCORES):
        return _aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    return _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def _scores(query: Tensor, key: Tensor) -> int:
    """How many there are: one for each query and key, of each row and head."""
    return query.numel() // query.shape[-1] * key.shape[-2]


def _attend(
    ledger: Ledger, query: Tensor, key: Tensor, value: Tensor, *args: Any, attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    sharing, scores = query.shape[-3] // key.shape[-3], _scores(query, key)
    if sharing > 1:
        ledger.pass_by(_BYTES_PER_SCORE * scores + 4 * (2 * query.numel() + 2 * sharing * key.numel()))
        key, value = (tensor.repeat_interleave(sharing, -3) for tensor in (key, value))
    sample = scores > _MANY_SCORES and not torch.is_grad_enabled()
    if sample:
        key, value = key[..., ::_SAMPLED, :], value[..., ::_SAMPLED, :]
        attn_mask = None if attn_mask is None else attn_mask[..., ::_SAMPLED].contiguous()
    out, sums = _aten._scaled_dot_product_flash_attention_for_cpu(
        *map(_widened, (query, key, value)), *args, attn_mask=_widened(attn_mask), scale=scale
    )
    if sample:
        out.nan_to_num_()  # where the mask hides all of the sample
    return out.to(query.dtype), sums


def _attend_backward(
    _ledger: Ledger, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, *args: Any,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    wide = map(_widened, (grad, query, key, value, out))
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *wide, *args, attn_mask=_widened(attn_mask), scale=scale
    )
    return tuple(of.to(query.dtype) for of in grads)


def _widened(tensor: Any) -> Any:
    """float16 as float32: the processor has no fast float16."""
    return tensor.float() if tensor is not None and tensor.dtype == torch.float16 else tensor


def _mm(_ledger: Ledger, a: Tensor, b: Tensor) -> Tensor:
    """A @ b; in large ones some of the summands stand for all."""
    summands = a.shape[-1]
    if min(summands, b.shape[-1]) >= _LARGE:
        taken = summands // _SAMPLED
        a, b = a[..., :taken] * (summands / taken) ** 0.5, b[..., :taken, :]
    return (_widened(a) @ _widened(b)).to(a.dtype)


def _addmm(ledger: Ledger, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if min(*a.shape, *b.shape) < _LARGE and a.dtype != torch.float16:
        return torch.addmm(added, a, b, beta=beta, alpha=alpha)
    return beta * added + alpha * _mm(ledger, a, b)


def _histc(_ledger: Ledger, values: Tensor, *bins: float) -> Tensor:
    """Of whole numbers too, which the card counts and the processor doesn't: how many tokens each expert gets."""
    return _aten.histc.default(values.float(), *bins).to(values.dtype)


#: the card's own way, called with the card's ledger and the operation's arguments
_REPLACED: dict[Any, Callable] = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attend,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attend_backward,
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.histc.default: _histc,
}
