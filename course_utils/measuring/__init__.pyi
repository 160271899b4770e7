from .abilities import ABILITIES, Baseline, ability_rows, answers_of, damage_profile, floor_of, nats_lost
from .benchmarking import measure_speed, peak_memory, time_interleaved
from .costs import bytes_held, kv_bytes_per_token
from .evaluation import Perplexity, bits_ratio, evaluate, paired, perplexity, perplexity_ratio
from .language_modelling import continuations, logits_one_by_one

__all__ = [
    "ABILITIES",
    "Baseline",
    "Perplexity",
    "ability_rows",
    "answers_of",
    "bits_ratio",
    "bytes_held",
    "continuations",
    "damage_profile",
    "evaluate",
    "floor_of",
    "kv_bytes_per_token",
    "logits_one_by_one",
    "measure_speed",
    "nats_lost",
    "paired",
    "peak_memory",
    "perplexity",
    "perplexity_ratio",
    "time_interleaved",
]
