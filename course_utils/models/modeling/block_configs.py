"""The configuration of a Llama whose blocks differ, in the words of vLLM's ``nemotron_nas``.

That is the architecture of NVIDIA's Llama-Nemotron models, which were pruned block by block. Transformers has no
configuration for it, and vLLM asks each block's for attributes; JSON gives dictionaries.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class Attributes(dict):
    """A dictionary whose keys are its attributes as well, down to the innermost one."""

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return Attributes(value) if isinstance(value, dict) else value


class BlockConfigs(PreTrainedConfig):
    """``block_configs`` says for each block whether it has an attention, and how wide its MLP is."""

    model_type = "nemotron-nas"

    def __init__(self, **settings: Any) -> None:
        blocks = settings.pop("block_configs", [])
        super().__init__(**settings)
        self.block_configs = [Attributes(block) for block in blocks]
