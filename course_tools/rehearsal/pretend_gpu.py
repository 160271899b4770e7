"""A graphics card that isn't there: tensors that say "cuda", live in main memory, and are counted to the byte.

`PretendGPU(T4)` makes torch believe in one card. Whatever a program puts there is a `CardTensor`: it reports the device
"cuda:0" and holds an ordinary tensor, on which every operation is really computed, by the processor. So a program takes
the very branches that it takes on the card, and mixing devices fails as it does there. Large products of matrices add
up a sample of their summands, one of 32: it is for models of random weights, whose numbers mean nothing but whose
tensors count. (With all summands one of Llama-3.2-1B's size takes fifteen times as long to read a text.)

Counted: each storage that a `CardTensor` holds, once, from the operation that made it until the last tensor on it is
gone. Not counted: what an operation needs for itself while it runs, and the driver's own memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_tools.rehearsal.card import T4, Card, Ledger
from course_tools.rehearsal.cuda import CORE, CUDA, believe, is_card
from course_tools.rehearsal.operations import REPLACED, scaled_dot_product_attention

_CPU = torch.device("cpu")
# May read the other device: copies, and indices that may stay in main memory.
_CROSS_DEVICES = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "set_", "lift_fresh"}


class CardTensor(Tensor):
    """A tensor that says it is on the card; `inner` holds its numbers."""

    __module__ = "torch"  # whoever asks where its type is from shall take it for an ordinary tensor
    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[CardTensor], inner: Tensor) -> CardTensor:
        """Around an ordinary tensor."""
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CORE, requires_grad=False,
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
        return CUDA

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
        names: returns the variables to look for models in, for `Count.holders`.
        spare: bytes of this machine's memory that must stay free; OutOfMemoryError where a tensor would take them.

    Attributes:
        ledger: what lies on it.
    """

    current: PretendGPU | None = None

    def __init__(self, card: Card = T4, *, names: Callable[[], dict] = dict, spare: int = 0) -> None:
        super().__init__()
        self.ledger = Ledger(card, names=names, spare=spare)

    def install(self) -> None:
        """Begin, for the rest of the process, in this thread."""
        self.__enter__()

    def __enter__(self) -> PretendGPU:
        if PretendGPU.current is not None:
            raise RuntimeError("There is one pretended card already.")
        self._believed = believe(self.ledger)
        attention = functools.partial(_attention, nn.functional.scaled_dot_product_attention)
        self._believed.enter_context(mock.patch.object(nn.functional, "scaled_dot_product_attention", attention))
        PretendGPU.current = self
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        PretendGPU.current = None
        self._believed.close()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """One operation: on the tensors inside, its results on the card if they belong there."""
        device = kwargs.get("device")
        flat = [*_tensors(args), *_tensors(list(kwargs.values()))]
        ours = any(isinstance(value, CardTensor) for value in flat)
        if not ours and (device is None or not is_card(device)):
            return func(*args, **kwargs)
        to_card = ours if device is None else is_card(device)
        if device is not None:
            kwargs = kwargs | {"device": _CPU if to_card else device}
        _check_devices(func, flat, to_card)
        if func in REPLACED:
            result = REPLACED[func](self.ledger, *_inside(args), **_inside(kwargs))
        else:
            result = func(*_inside(args), **_inside(kwargs))
        if torch.Tag.inplace_view in func.tags:
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        return self._outside(func, result, args, kwargs, to_card)

    def _outside(self, func: Callable, result: Any, args: tuple, kwargs: dict, to_card: bool) -> Any:
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
        return type(result)(made) if many else made[0]

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)([self._wrap(part) for part in value])
        if not isinstance(value, Tensor) or isinstance(value, CardTensor):
            return value
        self.ledger.store(value)
        return CardTensor(value)


def _attention(elsewhere: Callable, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """On the card as a T4 chooses it; elsewhere torch's own."""
    if isinstance(query, CardTensor) and query.dim() == 4:
        return scaled_dot_product_attention(query, *args, **kwargs)
    return elsewhere(query, *args, **kwargs)


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
