"""Two texts are aligned only where they share their tokens, what is left out is counted, and batches know the rest."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
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


def texts(tokenizer, alignment, positions, side: int) -> list[str]:
    ids = (alignment.ids_a, alignment.ids_b)[side]
    return [tokenizer.decode([ids[i[side]]]) for i in positions]


both_offsets = pytest.mark.parametrize("trim_offsets", [False, True])


@both_offsets
def test_alignment_by_hand(trim_offsets):
    tokenizer = byte_tokenizer(trim_offsets)
    found = align(tokenizer, pair("The ", "female", "left-handed", " neighbour knocked on the door."))
    after = [" neighbour", " knocked", " on", " the", " door", "."]
    assert texts(tokenizer, found, found.after, 0) == texts(tokenizer, found, found.after, 1) == after
    assert found.before == []  # "The" is the first token
    assert found.swapped[0] == range(1, 2) and len(found.swapped[1]) > 1
    assert tokenizer.decode(found.ids_b[found.swapped[1].start : found.swapped[1].stop]) == " left-handed"
    assert found.excluded == 0  # the space in front of the span is no shared text
    assert found.ids_a == tokenizer("The female neighbour knocked on the door.")["input_ids"]

    found = align(tokenizer, pair("Everyone thought the", " tall", " happy", " doctor was kind"))
    assert found.before == [(1, 1), (2, 2)]
    assert texts(tokenizer, found, found.before, 0) == [" thought", " the"]


@both_offsets
def test_a_token_across_the_border_is_excluded_and_counted(trim_offsets):
    tokenizer = byte_tokenizer(trim_offsets)
    assert tokenizer.tokenize("the overworked") != tokenizer.tokenize("the over worked")
    found = align(tokenizer, pair("Everyone, the over", "worked", "!", " nurse was"))
    assert [tokenizer.decode(found.ids_a[i]) for i in found.swapped[0]] == [" overworked"]
    assert texts(tokenizer, found, found.before, 0) == texts(tokenizer, found, found.before, 1) == [",", " the"]
    assert texts(tokenizer, found, found.after, 0) == [" nurse", " was"]
    # In a, " over" is a part of " overworked"; in b it is shared text that has no partner.
    alone = found.swapped[1].start - found.before[-1][1] - 1
    assert found.swapped[0].start == 3 and alone > 0
    assert found.excluded == 1 + alone


@both_offsets
def test_the_space_of_a_token_belongs_to_it_whatever_its_offsets_say(trim_offsets):
    tokenizer = byte_tokenizer(trim_offsets)
    found = align(tokenizer, pair("Everyone the ", "tall ", "happy ", "neighbour was"))
    assert tokenizer.decode(found.ids_a[found.swapped[0].stop - 1]) == " neighbour"
    assert texts(tokenizer, found, found.after, 0) == [" was"]
    assert found.excluded == 2  # " neighbour" holds the span's last space: on either side


@both_offsets
def test_text_that_is_cut_differently_is_excluded_and_counted(trim_offsets):
    """ " neighbour" is one token in a, with the span's space; in b the same letters are several tokens."""
    tokenizer = byte_tokenizer(trim_offsets)
    found = align(tokenizer, pair("thought the", " ", "x", "neighbour was glad"))
    pieces = tokenizer.tokenize("neighbour")
    assert len(pieces) > 1 and len(found.ids_b) - len(found.ids_a) == len(pieces)
    assert texts(tokenizer, found, found.after, 0) == texts(tokenizer, found, found.after, 1) == [" was", " glad"]
    assert found.excluded == 1 + len(pieces)


def test_offsets_are_needed():
    class Slow(PreTrainedTokenizerBase):
        is_fast = False

    with pytest.raises(ValueError, match=r"offsets.*Slow gives none"):
        align(Slow(), pair("The ", "a", "b", " c"))
    with pytest.raises(ValueError, match="no tokens"):
        align(byte_tokenizer(False), pair("", "", "", ""))


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
def test_aligned_tokens_are_the_same_text_outside_the_span(trim_offsets, parts, joints, glue):
    tokenizer = byte_tokenizer(trim_offsets)
    before, a, b, after = (glue.join(part) for part in parts)
    given_pair = pair(before + joints[0], a, b, joints[1] + after)
    if not given_pair.text_a or not given_pair.text_b:
        return
    found = align(tokenizer, given_pair)
    ids = found.ids_a, found.ids_b
    bytes_of = [[_bytes(tokenizer, i) for i in side] for side in ids]
    assert [b"".join(side).decode() for side in bytes_of] == [given_pair.text_a, given_pair.text_b]
    for i, j in (*found.before, *found.after):
        assert i > 0 and j > 0 and ids[0][i] == ids[1][j]
    for i, j in found.before:
        assert bytes_of[0][: i + 1] == bytes_of[1][: j + 1]
        assert given_pair.before.encode().startswith(b"".join(bytes_of[0][: i + 1]))  # nothing of the span
    for i, j in found.after:
        assert bytes_of[0][i:] == bytes_of[1][j:]
        assert given_pair.after.encode().endswith(b"".join(bytes_of[0][i:]))
    for number, side in enumerate(found.swapped):
        aligned = {p[number] for p in (*found.before, *found.after)}
        assert not aligned & set(side)
        inside = b"".join(bytes_of[number][i] for i in side)
        assert (given_pair.a, given_pair.b)[number].strip().encode() in inside
    lost = sum(len(side) for side in ids) - 2 * len((*found.before, *found.after))
    assert 0 <= found.excluded <= lost
    if given_pair.a == given_pair.b:
        assert found.excluded == 2 * _straddling(bytes_of[0], found.swapped[0], given_pair)


def _bytes(tokenizer, token: int) -> bytes:
    table = {char: byte for byte, char in _byte_characters().items()}
    return bytes(table[char] for char in tokenizer.convert_ids_to_tokens(token))


@cache
def _byte_characters() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _straddling(pieces: list[bytes], span: range, given_pair: Pair) -> int:
    """Tokens but the first that hold a part of the span and of the text around it, spaces left out."""
    start, stop, count, at = len(given_pair.before.encode()), len(given_pair.text_a.encode()), 0, 0
    stop -= len(given_pair.after.encode())
    text = given_pair.text_a.encode()
    for i, piece in enumerate(pieces):
        low, high = at, at + len(piece)
        at = high
        if i and i in span:
            count += bool((text[low : min(high, start)] + text[max(low, stop) : high]).decode(errors="replace").strip())
    return count


def test_whole_words_are_aligned_as_well():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    found = align(tokenizer, pair("w1 w2 ", "w3", "w4 w5", " w6 w7"))
    assert (found.before, found.after) == ([(1, 1)], [(3, 4), (4, 5)])
    assert found.swapped == (range(2, 3), range(2, 4)) and found.excluded == 0


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


def test_batches_refuse_bad_input():
    pairs = [pair("w3 ", "w4", "w5", " w60")]
    with pytest.raises(ValueError, match="at least one"):
        batches_of([])
    with pytest.raises(ValueError, match="'batch_size'"):
        batches_of(pairs, batch_size=0)
    with pytest.raises(ValueError, match="vocabulary"):
        batches_of(pairs, model=tiny_model(vocab_size=50, pad_token_id=0))
