"""The text of a run of ``compress``: to score by, to choose by, to learn, and to judge by in the end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_utils.own_text import OwnText, RowsOnDisk
from course_utils.texts import TokenBlocks, token_blocks

# Rows that each part of a run reads.
SCORED = 32
CHOSEN = 16
JUDGED = 24
_Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Text:
    """To score by, to choose by, to learn, and to judge by in the end.

    Attributes:
        scored: makes the batches to score by.
        choosing: as ``rank`` takes it.
        learned: makes so many batches.
        held_out: judges.
        key: stands for what is learned, in a folder's name.
        learned_from: in words.
        judged_by: in words.
    """

    scored: Callable[[], _Batches]
    choosing: TokenBlocks | _Batches
    learned: Callable[[int], _Batches]
    held_out: TokenBlocks | _Batches
    key: str
    learned_from: str
    judged_by: str

    @classmethod
    def built_in(cls, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> Text:
        """The course's, all of it before any of it is used; the seed decides which, except of what judges."""

        def rows(split: str, count: int, domain: str = "speeches", seed: int = args.seed) -> TokenBlocks:
            size = {"tokens": count * args.length, "length": args.length}
            return token_blocks(tokenizer, split, domain=domain, seed=seed, **size)

        learned = args.rows * args.accumulate * max(args.steps, args.correction, args.light)
        try:
            calibration = rows("calibration", SCORED + CHOSEN).sample(SCORED + CHOSEN, args.seed)
            batches = rows("distillation", learned, args.domain).batches(args.rows) if learned else []
            held_out = rows("evaluation", JUDGED, seed=0)
        except ValueError as error:
            raise ValueError(
                f"{error} Rows are as long as --length says; --steps, --correction or --light, times --accumulate and "
                "--rows, are learned."
            ) from error
        return cls(
            scored=lambda: calibration[:SCORED].batches(args.rows),
            choosing=calibration[SCORED:],
            learned=lambda count: batches[:count],  # which are the first doesn't hang on how many there are
            held_out=held_out,
            key=args.domain,
            learned_from=args.domain,
            judged_by="held-out speeches",
        )

    @classmethod
    def own(
        cls, own: OwnText, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace, say: Callable[[str], object]
    ) -> Text:
        """The user's; what judges and chooses is read now, what is scored and learned when its turn comes."""
        size = {"length": args.length, "batch_size": args.rows}
        own.check(tokenizer, length=args.length)
        return cls(
            scored=lambda: _learned(own, SCORED, tokenizer, args, say),
            choosing=own.to_choose(tokenizer, rows=CHOSEN, **size),
            learned=lambda count: _learned(own, count * args.rows, tokenizer, args, say),
            held_out=own.to_judge(tokenizer, rows=JUDGED, **size),
            key=own.digest,
            learned_from="the maker's own text",
            judged_by="held-out text of the maker's own",
        )

    def for_all(self, count: int) -> _Batches:
        """So many batches to learn, in each process: the first one makes the files that the others then find."""
        with PartialState().main_process_first():
            return self.learned(count)

    def of_answers(
        self, own: OwnText, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace, say: Callable[[str], object]
    ) -> Text:
        """The same, but that the whole model's answers are learned, and nothing else."""
        drawn = f"at a temperature of {args.temperature:g}" if args.temperature else "the likeliest tokens"
        return replace(
            self,
            learned=lambda count: _learned(own, count * args.rows, tokenizer, args, say),
            key=own.digest,
            learned_from=f"{own.contents[0].documents:,} answers that the whole model wrote ({drawn})",
        )


def _learned(
    own: OwnText, rows: int, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace, say: Callable[[str], object]
) -> RowsOnDisk:
    made = own.learned(tokenizer, rows=rows, length=args.length, folder=args.out / "text", batch_size=args.rows)
    if made.left_out.count:
        say(f"Of what gives {rows:,} rows: {made.left_out}.")
    return made
