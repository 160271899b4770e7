"""What torch is told so that it believes in a card: the answers of `torch.cuda`, guards of devices, and a name."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from course_tools.rehearsal.card import Ledger

CUDA = torch.device("cuda", 0)  # what Python code sees
# What torch's core takes the card for: a kind of device without a driver, streams, autograd threads or special cases.
CORE = torch.device("ipu", 0)
_META_GUARD, _CORE_GUARD = 14, 18  # their places among torch's device guards
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"


def is_card(device: Any) -> bool:
    """Whether a device, or the name of one, is the card."""
    if isinstance(device, str):
        return device == "cuda" or device.startswith("cuda:")
    return isinstance(device, torch.device) and device.type in ("cuda", CORE.type)


def believe(ledger: Ledger) -> contextlib.ExitStack:
    """Make torch believe in the card, in this thread, until what this returns is closed."""
    stack = contextlib.ExitStack()
    stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
    torch._C._set_only_lift_cpu_tensors(True)
    # Else backward looks for the card's own thread.
    stack.enter_context(torch.autograd.set_multithreading_enabled(False))
    overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
    stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwriting)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    guards = _guards()
    guards[_CORE_GUARD] = guards[_META_GUARD]
    stack.callback(guards.__setitem__, _CORE_GUARD, None)
    for patch in _patches(ledger):
        stack.enter_context(patch)
    stack.enter_context(_Names())
    return stack


def _guards() -> Any:
    """Torch's table of device guards, which switch between cards.

    Without a driver a place is empty, and indexing, copying and a few more operations end there. The
    guard that does nothing, written for the device "meta", serves as well.
    """
    library = Path(torch.__file__).parent / "lib" / {"darwin": "libc10.dylib"}.get(sys.platform, "libc10.so")
    return (ctypes.c_void_p * (_CORE_GUARD + 1)).in_dll(ctypes.CDLL(str(library)), _GUARDS)


def _patches(ledger: Ledger) -> Iterator[Any]:
    """torch.cuda as the card answers it."""
    properties = SimpleNamespace(
        name=ledger.card.name,
        major=ledger.card.capability[0],
        minor=ledger.card.capability[1],
        total_memory=ledger.card.memory,
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
        "is_current_stream_capturing": lambda: False,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: ledger.card.name,
        "get_device_capability": lambda device=None: ledger.card.capability,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or ledger.card.capability >= (8, 0),
        "mem_get_info": lambda device=None: (max(0, ledger.card.memory - ledger.alive), ledger.card.memory),
        "memory_allocated": lambda device=None: ledger.alive,
        "memory_reserved": lambda device=None: ledger.alive,
        "max_memory_allocated": lambda device=None: ledger.peak,
        "max_memory_reserved": lambda device=None: ledger.peak,
        "reset_peak_memory_stats": lambda device=None: ledger.forget_peak(),
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
    # A torch that is built for CUDA would ask the driver for its stream.
    yield mock.patch.object(torch.accelerator, "current_accelerator", return_value=None)
    yield mock.patch.object(torch.accelerator, "synchronize", return_value=None)
    # A tensor around another one can't be made in inference mode from views of earlier ones; its bytes are the same.
    yield mock.patch.object(torch, "inference_mode", torch.no_grad)
    yield mock.patch.object(nn.Module, "_apply", _tied(nn.Module._apply))
    yield mock.patch.object(torch, CORE.type, torch.cuda, create=True)
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
            return args[0].to(CORE)
        kwargs = {name: CORE if is_card(value) else value for name, value in (kwargs or {}).items()}
        return func(*(CORE if is_card(value) else value for value in args), **kwargs)


def _autocast_of_core(begin: Callable) -> Callable:
    @functools.wraps(begin)
    def __init__(
        self: Any, device_type: str, dtype: Any = None, enabled: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        if device_type in ("cuda", CORE.type):
            if enabled:
                raise NotImplementedError("The pretended card has no autocast: it would have to count other tensors.")
            device_type, dtype = "cpu", None
        begin(self, device_type, dtype, enabled, *args, **kwargs)

    return __init__


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
