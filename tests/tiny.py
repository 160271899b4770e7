"""Tiny random models of every supported family, and their words: no download, milliseconds a forward."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from course_utils.models.architectures import cast_weights
from course_utils.pruning.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive

COMMON = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
SETTINGS: dict[str, dict] = {
    "gpt2": {
        "vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": None},
    "qwen2": COMMON | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": COMMON | {"head_dim": 8},
    "gemma2": COMMON | {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": COMMON | {"head_dim": 8, "sliding_window": 8},
    "smollm3": COMMON,
    "phi3": COMMON,
    "opt": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": COMMON,
}  # fmt: skip
FAMILIES = tuple(SETTINGS)
LLAMA3 = {  # positions
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_EIGHT = COMMON | {"num_local_experts": 8, "num_experts_per_tok": 2}
_QWEN = COMMON | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
_DEEPSEEK = COMMON | {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "routed_scaling_factor": 1.5,
}  # fmt: skip
MIXTURES: dict[str, dict] = {  # of eight experts per block, of which a token meets two
    "mixtral": _EIGHT | {"sliding_window": None},
    "qwen2_moe": _QWEN | {"shared_expert_intermediate_size": 40},
    "qwen3_moe": _QWEN | {"norm_topk_prob": True},
    "olmoe": COMMON | {"num_experts": 8, "num_experts_per_tok": 2},
    "gpt_oss": _EIGHT
    | {
        "head_dim": 8,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "granitemoe": _EIGHT | {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "phimoe": _EIGHT | {"lm_head_bias": True},
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK | {"n_group": 1, "topk_group": 1},
    "glm4_moe": _DEEPSEEK | {"num_key_value_heads": 2, "head_dim": 8, "n_group": 1, "topk_group": 1},
}


def tiny_model(
    family: str = "llama",
    *,
    layers: int = 3,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    seed: int = 0,
    **overrides,
) -> PreTrainedModel:
    """A random model in eval mode, with biases and norms that are not all zeros and ones."""
    torch.manual_seed(seed)
    settings = (
        (SETTINGS | MIXTURES)[family] | {"n_layer" if family == "gpt2" else "num_hidden_layers": layers} | overrides
    )
    if family == "smollm3":
        settings["no_rope_layers"] = [i % 2 for i in range(layers)]
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attn_implementation)
    with torch.no_grad():
        corrections = [buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
        for tensor in [*model.parameters(), *corrections]:
            tensor.add_(0.1 * torch.randn_like(tensor))
    cast_weights(model, dtype)  # rounded, not drawn in dtype: other versions of torch draw other numbers there
    config.dtype = model.config.dtype = dtype
    return model.eval()


def tiny_adaptive(model: PreTrainedModel, *, order=(0, 1, 2), left_out=(3, 0), threshold=99.0) -> AdaptiveConfig:
    """Settings by which prompts of less than ``threshold`` tokens leave out the first number of attentions."""
    identity = ModelIdentity.of(model)
    return AdaptiveConfig(identity, order, left_out, (threshold,), policy="length", parameters={})


def adaptive(model: PreTrainedModel, **settings) -> PreTrainedModel:
    """The model with settings of ``tiny_adaptive``."""
    return make_adaptive(model, tiny_adaptive(model, **settings))


def tiny_batches(
    *, rows: int = 6, length: int = 12, size: int = 2, padding: str | None = None, seed: int = 0
) -> list[dict]:
    """``rows`` random texts of different lengths (equal without padding), ``size`` a batch."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding is not None:
        for row in range(rows):
            text, blank = ids[row, : length - row].clone(), torch.full((row,), 2)
            ids[row] = torch.cat([text, blank] if padding == "right" else [blank, text])
            mask[row] = torch.cat([torch.ones(length - row), torch.zeros(row)][:: 1 if padding == "right" else -1])
    return [{"input_ids": ids[i : i + size], "attention_mask": mask[i : i + size]} for i in range(0, rows, size)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token, "w0" to "w96", split at spaces: the tiny models' vocabulary."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words(ids) -> str:
    """The text of these tokens."""
    return " ".join(f"w{i}" for i in ids)


def token_ids(text: str) -> torch.Tensor:
    """[1, words]; other words than the tiny models' are unknown to them, like w0."""
    return torch.tensor([[int(word[1:]) if word.startswith("w") else 0 for word in text.split()]])


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, text: str, start: int) -> float:
    """Of a text's tokens from ``start``, without batches or padding."""
    ids = token_ids(text)
    log_p = model(ids).logits[0].double().log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])
    return float(log_p[start - 1 :].sum())
