from .assets import fetch
from .batches import padded_batches
from .contamination import overlaps
from .domains import documents
from .kinds import KINDS, kind_rows
from .own_text import read_own_text
from .rows import TokenBlocks, further_rows, judging_rows, token_blocks

__all__ = [
    "KINDS",
    "TokenBlocks",
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
