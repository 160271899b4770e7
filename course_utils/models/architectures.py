"""The parts of a Hugging Face causal language model, found and seen alike in every family.

``describe(model)`` gives every method the same view of a model: blocks, MLPs and attentions as
[out, in] matrices, whatever the family calls them and however it stores them (``nn.Linear``,
GPT-2's transposed ``Conv1D``, Phi-3's gate and up projections fused into one matrix). Of a mixture of
experts it shows blocks, routers and experts, and refuses to show MLPs, attentions and norms.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from course_utils.models.families import FAMILIES, FINAL_NORM, MIXTURES, Family
from course_utils.models.parts import Attention, Mixture, Mlp, Projection
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.batches import Batch

_LOGITS = 2**23  # numbers in one chunk of logits: 32 MiB in float32, of which a handful exist at once
_QUANTISED = (
    "Quantised weights can't be scored or cut: load the model in 16 bits, with dtype=torch.bfloat16 and without a "
    "quantization_config. Where the checkpoint itself is quantised, load it dequantised "
    "(FineGrainedFP8Config(dequantize=True)), or call model.dequantize() first."
)


class UnsupportedArchitecture(ValueError):
    """``describe`` doesn't know the model: its family is unknown, or a part that its family should have is missing.

    So says every function that takes a model, before it changes anything.
    """


@dataclass(frozen=True)
class Architecture:
    """A view of a model's parts. Nothing is copied: cut in place, the parts stay the same and the view stays true.

    Where other parts come in, which is when blocks or attentions are removed, describe the model again.
    """

    model: PreTrainedModel
    name: str  # the configuration's model_type, e.g. "llama"
    family: Family

    @property
    def kind(self) -> str:
        """What the MLPs are: "dense" (one matrix in) or "glu" (gate and up)."""
        return "glu" if self.family.fused or len(self.family.mlp_inputs) == 2 else "dense"

    @property
    def blocks(self) -> nn.ModuleList:
        """The model's own list of blocks."""
        return cast(nn.ModuleList, self.model.get_submodule(self.family.blocks))

    @property
    def backbone(self) -> nn.Module:
        """The module that holds the blocks and runs them."""
        return self.model.get_submodule(self.family.blocks.rpartition(".")[0])

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @property
    def is_mixture(self) -> bool:
        """Whether blocks hold a mixture of experts in the place of an MLP; dense ones may stand among them."""
        return bool(self.family.experts)

    @property
    def mixture_blocks(self) -> list[int]:
        """Numbers of the blocks that hold a mixture of experts."""
        owner, _, name = self.family.experts.rpartition(".")
        blocks = enumerate(self.blocks) if self.is_mixture else ()
        return [number for number, block in blocks if hasattr(_part(self.model, block, owner), name)]

    @cached_property
    def mixtures(self) -> list[Mixture]:
        """The mixture of experts of each block that holds one."""
        owner, _, _ = self.family.experts.rpartition(".")
        return [
            Mixture(
                owner=block.get_submodule(owner),
                router=_part(self.model, block, self.family.router),
                experts=block.get_submodule(self.family.experts),
            )
            for block in (self.blocks[number] for number in self.mixture_blocks)
        ]

    @cached_property
    def mlps(self) -> list[Mlp]:
        """Each block's MLP."""
        _refuse_mixture(self)
        family = self.family
        owner, _, _ = family.mlp_output.rpartition(".")
        return [
            Mlp(
                inputs=tuple(_projection(self.model, block, path) for path in family.mlp_inputs),
                output=_projection(self.model, block, family.mlp_output),
                fused=family.fused,
                owner=block.get_submodule(owner),
                norm=_part(self.model, block, family.mlp_norm) if family.norms_first(self.model.config) else None,
                contribution=_part(self.model, block, family.mlp_contribution),
            )
            for block in self.blocks
        ]

    @cached_property
    def attentions(self) -> list[Attention]:
        """Each block's attention."""
        _refuse_mixture(self)
        family = self.family
        return [
            Attention(
                module=_part(self.model, block, family.attention),
                inputs=self._attention_parts(block, family.attention_inputs),
                outputs=self._attention_parts(block, (family.attention_output,)),
                norms=tuple(_part(self.model, block, path) for path in self.attention_norms),
                contribution=_part(self.model, block, family.contribution),
            )
            for block in self.blocks
        ]

    def _attention_parts(self, block: nn.Module, names: tuple[str, ...]) -> tuple[Projection, ...]:
        if getattr(_part(self.model, block, self.family.attention), "removed", False):
            return ()
        return tuple(_projection(self.model, block, f"{self.family.attention}.{name}") for name in names)

    @property
    def attention_norms(self) -> tuple[str, ...]:
        """Paths from a block of the norms that serve its attention alone."""
        return self.family.norms_of_attention(self.model.config)

    @property
    def intermediate_sizes(self) -> tuple[int, ...]:
        """Neurons in each block's MLP."""
        return tuple(mlp.width for mlp in self.mlps)

    @property
    def hidden_size(self) -> int:
        """Numbers per token in the residual stream."""
        return self.mixtures[0].router.weight.shape[1] if self.is_mixture else self.mlps[0].columns.shape[0]

    @property
    def groups(self) -> int:
        """Key/value heads of each attention; 0 when all attentions were removed."""
        return max(attention.groups for attention in self.attentions)

    @property
    def queries_a_group(self) -> int:
        """Query heads that share a key/value head; 0 when all attentions were removed."""
        return max(attention.group_width for attention in self.attentions) // max(1, self.head_size)

    @property
    def norms(self) -> list[nn.Module]:
        """Every norm over the hidden channels: block by block, then the final one. Norms of heads aren't among them."""
        _refuse_mixture(self)
        family = self.family
        of_blocks = [_part(self.model, block, path) for block in self.blocks for path in family.norms]
        # Where an attention was removed, its norms are mere placeholders.
        return [n for n in [*of_blocks, _part(self.model, self.backbone, FINAL_NORM)] if hasattr(n, "weight")]

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of tokens."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def vocab_size(self) -> int:
        """Tokens that the embedding knows."""
        return self.embedding.weight.shape[0]

    @property
    def cache_keyword(self) -> str:
        """What the model's forward calls its key/value cache."""
        return cache_keyword(self.model)

    @property
    def head(self) -> nn.Linear:
        """The language-model head: [..., hidden] -> [..., vocabulary]."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    @property
    def chunk_size(self) -> int:
        """Tokens whose logits may exist at once: those of a whole batch would be its largest tensors."""
        return max(1, _LOGITS // self.vocab_size)

    def chunks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Tensors [tokens, ...] side by side, ``chunk_size`` tokens at a time."""
        return zip(*(tensor.split(self.chunk_size) for tensor in tensors), strict=True)

    @property
    def adaptive(self) -> bool:
        """Whether each prompt decides how many attentions it leaves out (``config.adaptive_attention``)."""
        return getattr(self.model.config, "adaptive_attention", None) is not None

    def accepts(self, *, groups: int | None = None, hidden_size: int | None = None) -> bool:
        """Whether transformers takes this model's configuration with another number of KV groups or hidden channels.

        Llama's wants ``hidden_size % num_attention_heads == 0``, others are free; so it is asked.
        """
        values = self.model.config.to_dict() | {"hidden_size": hidden_size or self.hidden_size}
        if groups := groups or self.groups:
            heads = {"num_attention_heads": groups * self.queries_a_group, "num_key_value_heads": groups}
            values |= heads | {"head_dim": self.head_size}
        values.pop("per_layer_config", None)
        try:
            type(self.model.config).from_dict(values)
        except (ValueError, StrictDataclassError):
            return False
        return True

    @property
    def head_size(self) -> int:
        """Numbers in one head's query, key or value; 0 when all attentions were removed."""
        return max(attention.head_size for attention in self.attentions)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Run everything but the head: [rows, length, hidden], after the final norm."""
        return self.model.base_model(**batch.inputs(), use_cache=False).last_hidden_state

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Apply the head (Granite's scale, Gemma's soft cap) to hidden states: [..., hidden] -> [..., vocabulary]."""
        logits, config = self.head(hidden_states), self.model.config
        logits = logits / config.logits_scaling if hasattr(config, "logits_scaling") else logits
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def sync_config(self) -> None:
        """Write the model's true shape into its configuration.

        Equal blocks become plain fields (``intermediate_size``, ``n_inner``…). Blocks that differ use
        transformers' own schema, ``per_layer_config = {"7": {"intermediate_size": 1024, "skip": ["attention"]}}``.
        Stock models fail on reading a field that differs between blocks; where an attention is skipped, always
        or prompt by prompt, every block therefore states its width (the shared field is 0), so that they
        fail there too. A mixture states how many experts each of its blocks has, how many of them a token is sent to,
        and which blocks are dense.
        """
        config = self.model.config
        if self.head.weight is self.embedding.weight:
            config.tie_word_embeddings = True  # otherwise the one matrix is saved once, and a head made up on loading
        if self.is_mixture:
            setattr(config, self.family.experts_field, self.mixtures[0].count)
            config.num_experts_per_tok = self.mixtures[0].top_k
            dense = sorted(set(range(self.num_blocks)) - set(self.mixture_blocks))
            by_number = {"first_k_dense_replace": len(dense), "mlp_only_layers": dense, "decoder_sparse_step": 1}
            for field in by_number.keys() & vars(config).keys():
                setattr(config, field, by_number[field])
            return
        field, sizes = self.family.width_field, self.intermediate_sizes
        skipped = [attention.skipped for attention in self.attentions]
        shared = 0 if any(skipped) or self.adaptive else max(sizes)
        config.per_layer_config = None
        setattr(config, field, shared)
        if shared == 0 or len(set(sizes)) > 1:
            config.per_layer_config = {
                i: {field: size} | ({"skip": ["attention"]} if skip else {})
                for i, (size, skip) in enumerate(zip(sizes, skipped, strict=True))
                if size != shared
            }


def describe(model: PreTrainedModel) -> Architecture:
    """Find a model's blocks, MLPs and attentions.

    Raises:
        UnsupportedArchitecture: the family is unknown, a part is not where its family keeps it or not a plain
            linear layer (quantised, or with an adapter), blocks share their weights, or a mixture's blocks differ in
            their number of experts.
        TypeError: it is no model at all.
    """
    checks.module("model", model)
    if hasattr(model, "merge_and_unload"):
        raise UnsupportedArchitecture(
            f"{type(model).__name__} keeps adapters (LoRA) beside the model's weights. Merge them first: "
            "model = model.merge_and_unload()."
        )
    name = getattr(getattr(model, "config", None), "model_type", None)
    families = FAMILIES | MIXTURES
    if name not in families or not isinstance(model, PreTrainedModel):
        raise UnsupportedArchitecture(
            f"{type(model).__name__} (model_type {name!r}) is not a known family. Looked for a Hugging Face causal "
            f"language model whose configuration's model_type is one of: {', '.join(families)}."
        )
    architecture = Architecture(model, name, families[name])
    if model.get_output_embeddings() is None:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} has no language-model head. Load it with AutoModelForCausalLM."
        )
    _plain(model, architecture.head, "the language-model head")
    _part(model, model, architecture.family.blocks)
    if architecture.is_mixture:
        _refuse_odd_mixture(architecture)
    else:
        _ = architecture.mlps, architecture.attentions  # to see the parts is to look for each of them
    _refuse_shared_blocks(architecture)
    return architecture


@check_types
def cache_keyword(model: PreTrainedModel) -> str:
    """What the forward of any transformers model calls its key/value cache; renamed on the way to transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@check_types
def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of every weight, in place, and of nothing else.

    ``model.to(dtype)`` rounds the rotary frequencies too, which loading keeps in float32: such a model doesn't compute
    what its own checkpoint does.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def _part(model: nn.Module, parent: nn.Module, path: str) -> nn.Module:
    try:
        return parent.get_submodule(path)
    except AttributeError:
        raise UnsupportedArchitecture(
            f"{type(model).__name__}: looked for '{path}' in {type(parent).__name__} and did not find it."
        ) from None


def _projection(model: nn.Module, block: nn.Module, path: str) -> Projection:
    return Projection(_plain(model, _part(model, block, path), f"'{path}' in {type(block).__name__}"))


def _plain(model: nn.Module, module: nn.Module, place: str) -> nn.Linear | Conv1D:
    """Return a layer that computes what its weights alone say; refuse one with an adapter, with scales, or packed."""
    computes_so = type(module).forward in (nn.Linear.forward, Conv1D.forward)
    if isinstance(module, nn.Linear | Conv1D) and computes_so and _is_plain(module.weight):
        return module
    looked = f"{type(model).__name__}: looked for a plain linear layer at {place}; found {type(module).__name__}"
    if hasattr(module, "base_layer"):
        raise UnsupportedArchitecture(
            f"{looked}, an adapter (LoRA) beside the layer's weights. Merge it into them first: "
            "model = peft_model.merge_and_unload()."
        )
    weight = getattr(module, "weight", None)
    kind = "" if weight is None else f" with {type(weight).__name__} of {weight.dtype}"
    raise UnsupportedArchitecture(f"{looked}{kind}. {_QUANTISED}")


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is made of numbers of at least 16 bits; torchao's only claim to be."""
    maker = type(weight).__module__.partition(".")[0]
    return maker == "torch" and weight.is_floating_point() and weight.element_size() > 1


def _refuse_mixture(architecture: Architecture) -> None:
    """Refuse to show what a mixture of experts holds besides them: nothing here would cut it exactly."""
    if architecture.is_mixture:
        raise UnsupportedArchitecture(
            f"{type(architecture.model).__name__} is a mixture of experts: its neurons, heads, channels and attentions "
            "can't be looked at or cut one by one. Cut whole experts, with pruning.prune_experts; what else works on a "
            "mixture is in docs/mixtures.md."
        )


def _refuse_odd_mixture(architecture: Architecture) -> None:
    """Refuse a mixture that has no experts, that is quantised or adapted, or whose blocks differ."""
    model, family, config = architecture.model, architecture.family, architecture.model.config
    if not architecture.mixtures:
        raise UnsupportedArchitecture(
            f"{type(model).__name__}: looked for '{family.experts}' in {architecture.num_blocks} blocks; found none."
        )
    for mixture in architecture.mixtures:
        for module, name, weight in mixture.stacked:
            if not (_is_plain(weight) and type(module).__module__.startswith("transformers.models.")):
                raise UnsupportedArchitecture(
                    f"{type(model).__name__}: looked for plain numbers in '{name}' of router and experts; found "
                    f"{type(module).__name__} with {type(weight).__name__} of {weight.dtype}. {_QUANTISED}"
                )
    routers = {id(mixture.router) for mixture in architecture.mixtures}
    for name, module in architecture.blocks.named_modules():
        if (isinstance(module, nn.Linear) or hasattr(module, "base_layer")) and id(module) not in routers:
            _plain(model, module, f"'{name}' of the blocks")
    counts = sorted({len(weight) for mixture in architecture.mixtures for _, _, weight in mixture.stacked})
    if config.is_heterogeneous or counts != [getattr(config, family.experts_field)]:
        stated = "a value for each block" if config.is_heterogeneous else getattr(config, family.experts_field)
        raise UnsupportedArchitecture(
            f"{type(model).__name__}: its blocks hold {', '.join(map(str, counts))} experts, and its configuration "
            f"({family.experts_field}) says {stated}. Transformers builds all blocks of a mixture with one number of "
            "experts, so an uneven one can't be saved: keep as many in each, as pruning.prune_experts does."
        )


def _refuse_shared_blocks(architecture: Architecture) -> None:
    first: dict[int, int] = {}
    for number, block in enumerate(architecture.blocks):
        for weight in block.parameters():
            owner = first.setdefault(id(weight), number)
            if owner != number:
                raise UnsupportedArchitecture(
                    f"{type(architecture.model).__name__}: blocks {owner} and {number} share weights, so neither can "
                    "be scored or cut by itself. Give each its own first (copy.deepcopy), and its own layer_idx."
                )
