from .plotting import heatmap, log_ticks, mark, show, style
from .records import read_record
from .session import safe_dtype, start
from .uncertainty import permutation_p, rank_correlation, ratio_interval

__all__ = [
    "heatmap",
    "log_ticks",
    "mark",
    "permutation_p",
    "rank_correlation",
    "ratio_interval",
    "read_record",
    "safe_dtype",
    "show",
    "start",
    "style",
]
