from .activations import watching
from .adaptive import AdaptiveConfig, calibrate, complexity, make_adaptive
from .attention import attention_importance, bypass_attention, select_attention_layers
from .channels import channel_importance, prune_channels
from .checkpoints import load_pruned, save_pruned
from .depth import block_importance, block_means, leave_one_out, remove_blocks
from .experts import expert_importance, prune_experts
from .heads import head_importance, prune_kv_groups
from .vocabulary import choose_tokens, prune_vocabulary, token_counts
from .width import best, by_halves, neuron_importance, neuron_means, prune_neurons, strongest

__all__ = [
    "AdaptiveConfig",
    "attention_importance",
    "best",
    "block_importance",
    "block_means",
    "by_halves",
    "bypass_attention",
    "calibrate",
    "channel_importance",
    "choose_tokens",
    "complexity",
    "expert_importance",
    "head_importance",
    "leave_one_out",
    "load_pruned",
    "make_adaptive",
    "neuron_importance",
    "neuron_means",
    "prune_channels",
    "prune_experts",
    "prune_kv_groups",
    "prune_neurons",
    "prune_vocabulary",
    "remove_blocks",
    "save_pruned",
    "select_attention_layers",
    "strongest",
    "token_counts",
    "watching",
]
