"""What vLLM asks a configuration for, and that it comes back from JSON, a copy and another process as it was."""

import copy
import json
import pickle

import pytest

from course_utils.models.modeling.block_configs import Attributes, BlockConfigs

BLOCKS = [
    {"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": False, "intermediate_size": 7}},
    {"attention": {"no_op": True}, "ffn": {"no_op": False, "intermediate_size": 9}},
]


def test_keys_are_attributes_down_to_the_innermost():
    block = Attributes(BLOCKS[0])
    assert block.attention.n_heads_in_group == 2 and block.ffn.intermediate_size == block["ffn"]["intermediate_size"]
    assert not hasattr(block.ffn, "ffn_mult")  # vLLM asks so which of two ways a width is told
    with pytest.raises(AttributeError, match="moe"):
        block.moe  # noqa: B018
    for again in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), Attributes(json.loads(json.dumps(block)))):
        assert again == BLOCKS[0] and again.ffn.intermediate_size == 7


def test_a_configuration_comes_back_as_it_was(tmp_path):
    config = BlockConfigs(block_configs=BLOCKS, hidden_size=32, num_attention_heads=4)
    config.save_pretrained(tmp_path)
    for again in (BlockConfigs.from_pretrained(tmp_path), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert (again.hidden_size, again.num_attention_heads, again.model_type) == (32, 4, "nemotron-nas")
        assert [block.attention.no_op for block in again.block_configs] == [False, True]
        assert again.to_dict()["block_configs"] == BLOCKS
    assert BlockConfigs().block_configs == []  # transformers makes one of each class without arguments
