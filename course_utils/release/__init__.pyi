from .export import as_stored, export_gguf, plan_gguf
from .model_card import licence_of, write_model_card
from .vllm_folder import export_vllm

__all__ = [
    "as_stored",
    "export_gguf",
    "export_vllm",
    "licence_of",
    "plan_gguf",
    "write_model_card",
]
