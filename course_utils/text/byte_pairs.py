"""BPE tokenizers (byte pair encoding): what each token is merged from, which ones any text needs, and fewer of them.

Such a tokenizer begins with single bytes or characters and merges two neighbours into one token, again and again, by a
list of merges: the first one on the list that fits goes first.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}  # in SentencePiece, for a character that has no token
_SPACE = "▁"  # in SentencePiece


@dataclass(frozen=True)
class BytePairs:
    """A BPE tokenizer's tokens, by number. Nothing here changes it."""

    tokenizer: Any
    state: dict[str, Any]  # the tokenizer's JSON

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> BytePairs:
        """Read a tokenizer.

        Raises:
            ValueError: without some of its tokens it couldn't write every text: it isn't BPE, or has no bytes.
        """
        kind = f"{type(tokenizer).__name__}, a slow tokenizer"
        if getattr(tokenizer, "is_fast", False):
            state = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
            model, kind = state["model"], state["model"].get("type", "an unknown kind")
            if kind == "BPE":
                affixes = model["continuing_subword_prefix"] or model["end_of_word_suffix"]
                if not affixes and (_in_letters(state) or (model["byte_fallback"] and model["vocab"].keys() >= _BYTES)):
                    return cls(tokenizer, state)
                kind = "BPE without bytes"
        raise ValueError(
            "The tokenizer must be BPE with bytes, of the tokenizers library: byte-level (GPT-2, Llama 3, Qwen), or "
            f"SentencePiece's with byte_fallback (Llama 2); got {kind}. With others, a text whose token went couldn't "
            "be written any more."
        )

    @cached_property
    def names(self) -> dict[int, str]:
        """Each token's name by its number, added tokens as well."""
        return {number: name for name, number in self.tokenizer.get_vocab().items()}

    @property
    def size(self) -> int:
        """Rows that an embedding needs for them."""
        return max(self.names) + 1

    @cached_property
    def merged_from(self) -> dict[int, tuple[int, int]]:
        """The two tokens that are merged last when BPE writes a token; nothing for one that no merge makes.

        SentencePiece's lists hold several merges for one token: which of them is used is found by merging.
        """
        numbers = self.state["model"]["vocab"]
        ranks = {merge: rank for rank, merge in enumerate(map(_pair, self.state["model"]["merges"]))}
        found = {}
        for name, number in numbers.items():
            parts, last = list(name), ("", "")
            while len(parts) > 1:
                fits = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
                place = fits.index(min(fits))
                last = (parts[place], parts[place + 1])
                if last not in ranks:
                    break
                parts[place : place + 2] = ["".join(last)]
            if parts == [name] and last in ranks:
                found[number] = (numbers[last[0]], numbers[last[1]])
        return found

    def closed(self, tokens: Iterable[int]) -> set[int]:
        """These tokens, and every one that they are merged from."""
        found, todo = set[int](), [*tokens]
        while todo:
            token = todo.pop()
            if token not in found:
                found.add(token)
                todo += self.merged_from.get(token, ())
        return found

    @cached_property
    def fixed(self) -> set[int]:
        """What any text may need, whatever it says: bytes, special and added tokens, and what stands around a text."""
        numbers = self.state["model"]["vocab"]
        letters = {*pre_tokenizers.ByteLevel.alphabet()} if _in_letters(self.state) else _BYTES
        # A decoder looks for spaces before it puts bytes together: in bytes, a space's sign would stay what it is.
        found = {numbers[name] for name in {*letters, _SPACE, self.state["model"]["unk_token"]} & numbers.keys()}
        found |= {holder[place] for holder, place in _other_numbers(self.state)}
        return self.closed(found | ({*self.tokenizer.all_special_ids} & self.names.keys()))

    @cached_property
    def in_chats(self) -> set[int]:
        """What the chat template writes around messages, with and without a system's; nothing without a template."""
        found = set[int]()
        chat = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
        for messages in (chat, chat[1:]) if self.tokenizer.chat_template else ():
            with contextlib.suppress(Exception):  # a template is a program, and some refuse a system's message
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                found |= {*self.encode(text)}
        return found

    @cached_property
    def needed(self) -> set[int]:
        """What has to stay for any text and any chat, with every token that it is merged from."""
        return self.closed(self.fixed | self.in_chats)

    def encode(self, text: str) -> list[int]:
        """A text's tokens, without those that the tokenizer puts around it."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def renumbered(self, new: Mapping[int, int]) -> PreTrainedTokenizerBase:
        """A tokenizer of these tokens alone, under new numbers: {old: new}. The merges keep their order.

        Raises:
            ValueError: the tokenizers library would number the added tokens otherwise.
        """
        state = copy.deepcopy(self.state)
        model = state["model"]
        model["vocab"] = {name: new[number] for name, number in model["vocab"].items() if number in new}
        stay = model["vocab"].keys()
        model["merges"] = [merge for merge in map(_pair, model["merges"]) if {*merge, "".join(merge)} <= stay]
        for holder, place in _other_numbers(state):
            holder[place] = new[holder[place]]
        smaller = copy.deepcopy(self.tokenizer)
        smaller._tokenizer = Tokenizer.from_str(json.dumps(state))  # nothing public sets it
        if smaller.get_vocab() != {self.names[token]: number for token, number in new.items()}:
            raise ValueError(
                "The tokenizer can't be renumbered: some of its added tokens stand before tokens that are merged, and "
                "the tokenizers library would put them behind."
            )
        return smaller

    def shown(self, tokens: Iterable[int]) -> str:
        """A few tokens for a message, by number and name."""
        every = sorted(tokens)
        few = ", ".join(f"{token} ({self.names.get(token, 'no token')!r})" for token in every[:5])
        return few + (f" and {len(every) - 5} more" if len(every) > 5 else "")


def _in_letters(state: dict[str, Any]) -> bool:
    """Whether a tokenizer (its JSON) writes each byte as a letter before it merges."""
    return "'ByteLevel'" in str(state["pre_tokenizer"])


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge  # older files have one string
    return left, right


def _other_numbers(state: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where a tokenizer's JSON holds tokens' numbers beside its vocabulary: what holds each, and its place in there."""
    yield from ((token, "id") for token in state["added_tokens"])
    if state["padding"]:
        yield state["padding"], "pad_id"
    around = state["post_processor"] or {}
    for step in around.get("processors", [around]):
        yield from ((step[name], 1) for name in ("sep", "cls") if name in step)  # as BERT and RoBERTa have it
        for special in step.get("special_tokens", {}).values():
            yield from ((special["ids"], place) for place in range(len(special["ids"])))
