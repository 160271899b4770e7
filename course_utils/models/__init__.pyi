from .architectures import UnsupportedArchitecture, cast_weights, describe
from .loading import ModelNotAvailable, identity, load_model, tiny_llama, variant
from .reports import model_size, shown_p, with_interval

__all__ = [
    "ModelNotAvailable",
    "UnsupportedArchitecture",
    "cast_weights",
    "describe",
    "identity",
    "load_model",
    "model_size",
    "shown_p",
    "tiny_llama",
    "variant",
    "with_interval",
]
