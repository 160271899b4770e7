"""Where each model family keeps its parts: one table, and the place to enter another family."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

FINAL_NORM = "norm"  # from the backbone, in each family whose channels can be cut


@dataclass(frozen=True)
class Family:
    """Where one family keeps its parts. Paths are dotted: from the model, or from a block."""

    blocks: str = "model.layers"
    mlp_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    fused: bool = False  # the one matrix of mlp_inputs holds gate, then up
    mlp_output: str = "mlp.down_proj"
    width_field: str = "intermediate_size"  # the configuration's name for the MLP's width
    mlp_norm: str = "post_attention_layernorm"  # what normalises the MLP's input
    mlp_contribution: str = "mlp"  # the module whose output is added to the residual stream
    mlp_bias_field: str = ""  # the configuration's switch that gives every matrix of the MLPs a bias
    attention: str = "self_attn"
    attention_inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    attention_output: str = "o_proj"
    attention_norms: tuple[str, ...] = ("input_layernorm",)  # what serves the attention alone
    contribution: str = "self_attn"  # the module whose output is added to the residual stream
    own_head_size: bool = True  # the configuration may hold a head_dim that isn't hidden size / query heads
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")  # all RMSNorms over the hidden channels
    norm_offset: float = 0.0  # Gemma's norms multiply by 1 + weight
    experts: str = ""  # the module of a mixture's experts, in the blocks that hold some
    router: str = ""  # what sends each token to a few of them
    experts_field: str = ""  # the configuration's name for their number
    fewest_experts: int = 1  # that the router can choose from, in each of its groups

    def norms_first(self, config: PreTrainedConfig) -> bool:
        """Whether a model's norms stand before its attentions and MLPs; OPT-350m's stand behind the sums."""
        return getattr(config, "do_layer_norm_before", True)

    def adds_mlp_as_it_is(self, config: PreTrainedConfig) -> bool:
        """Whether no norm stands between a model's MLPs and the residual stream, or behind their sum."""
        return self.norms_first(config) and self.mlp_contribution not in self.norms

    def norms_of_attention(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Paths from a block of the norms that serve a model's attention alone; one behind the sum does not."""
        return self.attention_norms if self.norms_first(config) else ()


_LLAMA = Family()
_WITH_MLP_BIAS = replace(_LLAMA, mlp_bias_field="mlp_bias")
_GEMMA = Family(
    mlp_norm="pre_feedforward_layernorm",
    mlp_contribution="post_feedforward_layernorm",
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    contribution="post_attention_layernorm",
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    norm_offset=1.0,
)
FAMILIES: dict[str, Family] = {  # by the configuration's model_type
    "gpt2": Family(
        blocks="transformer.h",
        mlp_inputs=("mlp.c_fc",),
        mlp_output="mlp.c_proj",
        width_field="n_inner",
        mlp_norm="ln_2",
        attention="attn",
        attention_inputs=("c_attn",),
        attention_output="c_proj",
        attention_norms=("ln_1",),
        contribution="attn",
        own_head_size=False,
    ),
    "llama": _WITH_MLP_BIAS,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "smollm3": _WITH_MLP_BIAS,
    "phi3": Family(mlp_inputs=("mlp.gate_up_proj",), fused=True, attention_inputs=("qkv_proj",)),
    "opt": Family(
        blocks="model.decoder.layers",
        mlp_inputs=("fc1",),
        mlp_output="fc2",
        width_field="ffn_dim",
        mlp_norm="final_layer_norm",
        mlp_contribution="fc2",
        attention_output="out_proj",
        attention_norms=("self_attn_layer_norm",),
        own_head_size=False,
    ),
    "gpt_neox": Family(
        blocks="gpt_neox.layers",
        mlp_inputs=("mlp.dense_h_to_4h",),
        mlp_output="mlp.dense_4h_to_h",
        attention="attention",
        attention_inputs=("query_key_value",),
        attention_output="dense",
        contribution="attention",
        own_head_size=False,
    ),
}
_MIXTRAL = Family(experts="mlp.experts", router="mlp.gate", experts_field="num_local_experts", fewest_experts=1)
_QWEN_MOE = replace(_MIXTRAL, experts_field="num_experts")
_DEEPSEEK_V3 = replace(_MIXTRAL, experts_field="n_routed_experts", fewest_experts=2)  # compares groups by two of each
MIXTURES: dict[str, Family] = {  # of experts, by the configuration's model_type
    "mixtral": _MIXTRAL,
    "qwen2_moe": _QWEN_MOE,
    "qwen3_moe": _QWEN_MOE,
    "olmoe": _QWEN_MOE,
    "gpt_oss": replace(_MIXTRAL, router="mlp.router"),
    "granitemoe": replace(_MIXTRAL, experts="block_sparse_moe.experts", router="block_sparse_moe.router"),
    "phimoe": replace(_MIXTRAL, router="mlp.router", fewest_experts=2),  # its sparse mixer sends each token to two
    "deepseek_v2": replace(_MIXTRAL, experts_field="n_routed_experts"),
    "deepseek_v3": _DEEPSEEK_V3,
    "glm4_moe": _DEEPSEEK_V3,
}
