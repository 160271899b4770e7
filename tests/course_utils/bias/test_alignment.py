"""Two texts are aligned only where they share their tokens, what is left out is counted, and batches know the rest."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_model, token_ids, word_tokenizer
from tiny import words as text_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from course_utils.bias.alignment import _align as align
from course_utils.bias.alignment import pair_batches
from course_utils.bias.contrastive import Pair
from course_utils.models.architectures import describe

SENTENCES = [
    "The female neighbour knocked on the door.", "Everyone thought this person was kind and honest.",
    "The over-worked doctor was overworked, and the underpaid nurse was not.", "tall short left-handed happy glad",
]  # fmt: skip


@cache
def byte_tokenizer(trim_offsets: bool) -> PreTrainedTokenizerFast:
    """A small byte-level BPE like GPT-2's; its offsets leave out the leading spaces or hold them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES * 5, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pair(before: str, a: str, b: str, after: str) -> Pair:
    return Pair(before, a, b, after, axis="made up", kind="neutral", group_a=a, group_b=b, template="t")


PIECES = len(byte_tokenizer(False).tokenize("neighbour"))  # without its space no single token
WHOLE_WORDS = (" neighbour", " knocked", " on", " the", " door", ".")


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(
    ("texts", "after", "excluded"),
    [
        # the space in front of the span is no shared text
        (("The ", "female", "left-handed", " neighbour knocked on the door."), WHOLE_WORDS, 0),
        (("Everyone thought the", " tall", " happy", " doctor was kind"), (" doctor", " was", " kind"), 0),
        # a row's first token is neither compared nor counted
        (("", "", "The", " door was"), (" was",), 1),
        # " neighbour" holds the span's last space: on either side
        (("Everyone the ", "tall ", "happy ", "neighbour was"), (" was",), 2),
        # one token in a, with the span's space; the same letters are several tokens in b
        (("thought the", " ", "x", "neighbour was glad"), (" was", " glad"), 1 + PIECES),
    ],
)
def test_alignment_by_hand(trim_offsets, texts, after, excluded):
    tokenizer = byte_tokenizer(trim_offsets)
    found = align(tokenizer, pair(*texts))
    for side, ids in enumerate((found.ids_a, found.ids_b)):
        assert tuple(tokenizer.decode([ids[places[side]]]) for places in found.after) == after
    assert found.excluded == excluded
    assert found.ids_a == tokenizer(texts[0] + texts[1] + texts[3])["input_ids"]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_shared_text_that_becomes_a_part_of_the_spans_token_is_excluded(trim_offsets):
    """In a, " over" is a part of " overworked"; in b it is shared text that has no partner."""
    tokenizer = byte_tokenizer(trim_offsets)
    alone = len(tokenizer.tokenize(" over"))
    assert align(tokenizer, pair("Everyone, the over", "worked", "!", " nurse was")).excluded == 1 + alone


def test_whole_words_are_aligned_as_well():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    found = align(tokenizer, pair("w1 w2 ", "w3", "w4 w5", " w6 w7"))
    assert found.after == [(3, 4), (4, 5)] and found.excluded == 0


words = st.lists(
    st.one_of(
        st.sampled_from(
            ["The", "female", "over", "worked", "neighbour", "left-handed", "12345", "kind", ".", "🙂", "Ünder"]
        ),
        st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=4),
    ),
    max_size=6,
)


@settings(max_examples=100)
@given(
    trim_offsets=st.booleans(),
    parts=st.tuples(words, words, words, words),
    joints=st.lists(st.sampled_from(["", " ", "  "]), min_size=2, max_size=2),
    glue=st.sampled_from([" ", ""]),
)
def test_aligned_tokens_are_the_same_text_behind_the_span(trim_offsets, parts, joints, glue):
    tokenizer = byte_tokenizer(trim_offsets)
    before, a, b, after = (glue.join(part) for part in parts)
    given_pair = pair(before + joints[0], a, b, joints[1] + after)
    assume(given_pair.text_a and given_pair.text_b)
    found = align(tokenizer, given_pair)
    pieces = [[_bytes(tokenizer, i) for i in ids] for ids in (found.ids_a, found.ids_b)]
    assert [b"".join(side).decode() for side in pieces] == [given_pair.text_a, given_pair.text_b]
    for i, j in found.after:
        assert i > 0 and j > 0 and pieces[0][i:] == pieces[1][j:]
        assert given_pair.after.encode().endswith(b"".join(pieces[0][i:]))  # nothing of the span
    assert 0 <= found.excluded <= sum(map(len, pieces)) - 2 * len(found.after)
    if a and a == b:  # a span of nothing has no tokens
        assert found.excluded == 2 * _straddling(pieces[0], given_pair)


def _bytes(tokenizer, token: int) -> bytes:
    table = {char: byte for byte, char in _byte_characters().items()}
    return bytes(table[char] for char in tokenizer.convert_ids_to_tokens(token))


@cache
def _byte_characters() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _straddling(pieces: list[bytes], given_pair: Pair) -> int:
    """Tokens but the first that hold a part of the span and of the text around it, spaces left out."""
    text, at, count = given_pair.text_a.encode(), 0, 0
    start, stop = len(given_pair.before.encode()), len(text) - len(given_pair.after.encode())
    for number, piece in enumerate(pieces):
        low, at = at, at + len(piece)
        outside = (text[low : min(at, start)] + text[max(low, stop) : at]).decode(errors="replace")
        count += bool(number and low < stop and at > start and outside.strip())
    return count


def batches_of(pairs, *, model=None, batch_size=16):
    return pair_batches(describe(model or tiny_model()), word_tokenizer(), pairs, batch_size=batch_size)


numbers = st.lists(st.integers(3, 6), min_size=1, max_size=5)


@settings(max_examples=60)
@given(parts=st.lists(st.tuples(numbers, numbers, numbers, st.just([]) | numbers), min_size=1, max_size=5),
       size=st.integers(1, 6))  # fmt: skip
def test_batches_hold_each_text_and_know_its_shared_tokens(parts, size):
    pairs = [pair(f"{text_of(before)} ", text_of(a), text_of(b), f" {text_of(after)}" if after else "")
             for before, a, b, after in parts]  # fmt: skip
    seen = []
    for batch in batches_of(pairs, batch_size=size):
        assert len(batch.indices) <= size
        seen += batch.indices
        for number, (index, alignment) in enumerate(zip(batch.indices, batch.alignments, strict=True)):
            assert alignment == align(word_tokenizer(), pairs[index])
            tokens = batch.pair == number
            assert batch.counts[number] == batch.sums(torch.ones(len(tokens)))[number] == len(alignment.after)
            for k, (side, text) in enumerate(zip(batch.sides, (pairs[index].text_a, pairs[index].text_b), strict=True)):
                row = 2 * number + k
                assert batch.rows.input_ids[row][batch.rows.real[row]].tolist() == token_ids(text)[0].tolist()
                places = torch.tensor([places[k] for places in alignment.after], dtype=torch.long)
                for found, at in ((side.at, places), (side.predicting, places - 1)):
                    assert (found[0][tokens] == row).all() and torch.equal(found[1][tokens], at)
                assert torch.equal(side.targets[tokens], batch.rows.input_ids[row, places])
    assert sorted(seen) == list(range(len(pairs)))


def test_a_slow_tokenizer_a_text_without_tokens_and_an_unknown_token_are_refused():
    class Slow(PreTrainedTokenizerBase):
        is_fast = False

    with pytest.raises(ValueError, match=r"offsets.*Slow gives none"):
        align(Slow(), pair("The ", "a", "b", " c"))
    with pytest.raises(ValueError, match="no tokens"):
        align(byte_tokenizer(False), pair("", "", "", ""))
    with pytest.raises(ValueError, match="vocabulary"):
        batches_of([pair("w3 ", "w4", "w5", " w60")], model=tiny_model(vocab_size=50, pad_token_id=0))
