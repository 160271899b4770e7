"""What the checks of width surgery share: one list of neurons, sizes that are told, a model that opens again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from course_utils.lessons.exercises.checking import Attempt, expect, require
from course_utils.models.loading import variant


@dataclass(frozen=True)
class Family:
    """Models with the same MLPs.

    Attributes:
        kind: class of the models.
        blocks: where a model has its blocks.
        tensors: of an MLP: name -> the axis that counts neurons, "none" where there is none, and why.
        sizes: where the layers of an MLP note how many neurons there are.
        width: where the configuration does.
        tiny: hidden size, width -> configuration of three blocks.
    """

    kind: type[PreTrainedModel]
    blocks: str
    tensors: Mapping[str, tuple[int | str, str]]
    sizes: Sequence[str]
    width: str
    tiny: Callable[[int, int | None], Any]

    def mlps(self, model: nn.Module) -> list[Any]:
        """The MLPs of a model, in order."""
        return [block.get_submodule("mlp") for block in model.get_submodule(self.blocks).children()]

    def by_neuron(self, mlp: nn.Module) -> dict[str, Tensor]:
        """The tensors that neurons are in, one row per neuron."""
        axes = {name: axis for name, (axis, _) in self.tensors.items() if isinstance(axis, int)}
        found = {name: mlp.get_parameter(name).movedim(axis, 0) for name, axis in axes.items()}
        return {name: rows.reshape(len(rows), -1) for name, rows in found.items()}

    @torch.no_grad()
    def tiny_model(self, hidden: int, width: int | None) -> PreTrainedModel:
        """Three random blocks on the CPU; biases are random, too."""
        torch.manual_seed(0)
        model = self.kind(self.tiny(hidden, width)).eval()
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
        return model


_ENDS: dict[str, Any] = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 1}
GPT2 = Family(
    GPT2LMHeadModel,
    "transformer.h",
    {
        "c_fc.weight": (1, "a Conv1D stores [in, out], and c_fc leads into the neurons"),
        "c_fc.bias": (0, "it has one number for each output of c_fc"),
        "c_proj.weight": (0, "a Conv1D stores [in, out], and c_proj leads out of the neurons"),
        "c_proj.bias": ("none", "it has one number for each output of c_proj, and those aren't neurons"),
    },
    ("c_fc.nf", "c_proj.nx"),
    "n_inner",
    lambda hidden, width: GPT2Config(n_embd=hidden, n_inner=width, n_layer=3, n_head=2, n_positions=16, **_ENDS),
)


@torch.no_grad()
def check_cut(
    family: Family, attempt: Attempt, base: PreTrainedModel, *given: Any, may_change: Sequence[str] = ()
) -> Any:
    """Stop unless an attempt cuts a variant of ``base`` as the declared answer does; return what it cut.

    Args:
        family: of the model.
        attempt: gives a model of the same kind, with fewer neurons in every MLP, from a model and what is given.
        base: a whole model, which must stay as it is.
        *given: what the attempt gets behind the model.
        may_change: endings of names of parameters that may get other numbers, besides those of neurons.
    """
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = variant(base)
    pruned = attempt(model, *given)
    expect(pruned, family.kind, "Return the model")
    require(pruned is model, "You return another model. Cut the one that is given, in place, and return it.")
    for name, weight in base.state_dict().items():
        require(
            torch.equal(weight, before[name]),
            f"You wrote into {name}, which the model shares with another one (`variant`): that one has changed, too. "
            "Give the layer a new nn.Parameter instead; no +=, no assignment to a part of the old one.",
        )
    right = attempt.answer(variant(base), *given)
    for read in (PreTrainedModel.state_dict, partial(_neurons, family, base)):
        attempt.name_mistake(read(pruned), read(right), partial(_read, read, base, given), same=_same)
    width = len(family.by_neuron(family.mlps(right)[0])[next(iter(family.tensors))])
    for block, (mlp, whole, best) in enumerate(
        zip(family.mlps(pruned), family.mlps(base), family.mlps(right), strict=True)
    ):
        _check_mlp(family, f"Block {block}: ", mlp, whole, best, width)
    noted = getattr(pruned.config, family.width)
    require(
        noted == width,
        f"config.{family.width} is {noted}, but the MLPs have {width} neurons. In memory nobody notices; after saving, "
        "from_pretrained builds MLPs of the old width and refuses the weights.",
    )
    cut = tuple(f".mlp.{name}" for name, (axis, _) in family.tensors.items() if axis != "none")
    for name, weight in pruned.state_dict().items():
        require(
            name.endswith((*cut, *may_change)) or torch.equal(weight, before[name]),
            f"{name} has other numbers now. Nothing but neurons should go.",
        )
    ids = torch.randint(_ENDS["vocab_size"], (2, 8), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pruned.save_pretrained(folder)
        reloaded = family.kind.from_pretrained(folder).eval()
    require(
        torch.equal(reloaded(ids).logits, pruned(ids).logits),
        "After save_pretrained and from_pretrained the model gives other logits.",
    )
    return pruned


def _check_mlp(family: Family, where: str, mlp: nn.Module, whole: nn.Module, best: nn.Module, width: int) -> None:
    """Stop unless an MLP has just the neurons of the best one."""
    first = next(iter(family.tensors))
    require(
        mlp.get_parameter(first).shape != whole.get_parameter(first).shape,
        f"{where}it still has all of its {len(family.by_neuron(whole)[first])} neurons.",
    )
    for name, (_, reason) in family.tensors.items():
        found, wanted = list(mlp.get_parameter(name).shape), list(best.get_parameter(name).shape)
        require(found == wanted, f"{where}{name} should be {wanted} and is {found}: {reason}.")
    for size in family.sizes:
        layer, _, field = size.partition(".")
        noted = getattr(mlp.get_submodule(layer), field)
        require(
            noted == width,
            f"{where}{size} is {noted}, but {width} neurons are left. A layer notes its sizes beside its weight, and "
            "whoever reads them is told the old ones: tell it.",
        )
    tensors = family.by_neuron(whole)
    numbers = {name: numbers_in(rows, tensors[name]) for name, rows in family.by_neuron(mlp).items()}
    for name, places in numbers.items():
        require(
            -1 not in places,
            f"{where}{name} holds numbers that weren't there before. Those of the neurons that stay must not change.",
        )
    for place, neurons in enumerate(zip(*numbers.values(), strict=True)):
        told = ", ".join(f"{neuron} in {name}" for neuron, name in zip(neurons, numbers, strict=True))
        require(
            len({*neurons}) == 1,
            f"{where}place {place} is neuron {told}. Use one list of neurons, in one order, for all three.",
        )
    wrong = sorted({*numbers[first]} - {*numbers_in(family.by_neuron(best)[first], tensors[first])})
    require(not wrong, f"{where}other neurons should stay: {', '.join(map(str, wrong))} should be gone.")


def _read(read: Callable[[Any], Any], base: PreTrainedModel, given: tuple, cut: Callable[..., Any]) -> Any:
    """What is read from the model that a function cuts."""
    return read(cut(variant(base), *given))


def _neurons(family: Family, base: nn.Module, model: nn.Module) -> list[list[int]]:
    """For each block the numbers of its neurons in the whole model, sorted, by their first tensor."""
    first = next(iter(family.tensors))
    pairs = zip(family.mlps(model), family.mlps(base), strict=True)
    return [sorted(numbers_in(*(family.by_neuron(mlp)[first] for mlp in pair))) for pair in pairs]


def numbers_in(rows: Tensor, whole: Tensor) -> list[int]:
    """For each row its number among those of the whole model, -1 if it isn't there."""
    numbers = {tuple(row): number for number, row in enumerate(whole.tolist())}
    return [numbers.get(tuple(row), -1) for row in rows.tolist()]


def _same(one: Any, other: Any) -> bool:
    """Whether two lists of neurons, or the numbers of two models, are the same."""
    if isinstance(one, list):
        return one == other
    return all(
        weight.shape == other[name].shape and torch.allclose(weight, other[name], atol=1e-5)
        for name, weight in one.items()
    )
