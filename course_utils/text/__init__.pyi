from .assets import fetch
from .kinds import KINDS, kind_rows
from .own_text import read_own_text
from .texts import documents, further_rows, judging_rows, overlaps, padded_batches, token_blocks

__all__ = [
    "KINDS",
    "documents",
    "fetch",
    "further_rows",
    "judging_rows",
    "kind_rows",
    "overlaps",
    "padded_batches",
    "read_own_text",
    "token_blocks",
]
