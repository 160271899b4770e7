"""Exact rows, exact byte counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import word_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from course_utils.models.loading import load_model
from course_utils.text import rows
from course_utils.text.domains import DOMAINS, documents

SAMPLE = ["Hello world, hello again.", "The naïve café: 漢字 and 😀😀 emoji.\n\n\tTabs  and   spaces "] * 5
END = "<|end|>"


def byte_level_tokenizer() -> PreTrainedTokenizerBase:
    """Few merges, so that most characters outside ASCII are split over several tokens (like GPT-2)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return TokenizersBackend(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def sentencepiece_tokenizer() -> PreTrainedTokenizerBase:
    """Metaspace and byte fallback, a dummy space in front and a BOS token by default (like Llama 2)."""
    words = ["<unk>", "<s>", END, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helo", "▁h", "el", "▁hel", "é"]
    merges = [("▁", "h"), ("e", "l"), ("▁h", "el")]
    model = models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return TokenizersBackend(
        tokenizer_object=tokenizer, eos_token=END, bos_token="<s>", unk_token="<unk>", pad_token=END
    )


TOKENIZERS = {"byte level": byte_level_tokenizer(), "sentencepiece": sentencepiece_tokenizer()}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")


def test_rows_are_picked_by_slice_number_or_mask():
    blocks = rows.TokenBlocks(torch.arange(6).view(3, 2), torch.tensor([4, 5, 6]), "wiki", "evaluation")
    mask = torch.tensor([True, False, True])
    for chosen in (slice(0, 3, 2), [0, 2], range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2]), mask):
        picked = blocks[chosen]
        assert picked.input_ids.tolist() == [[0, 1], [4, 5]] and picked.num_bytes.tolist() == [4, 6]
    assert len(blocks[[]]) == 0
    with pytest.raises(TypeError, match=r"take blocks\[1:2\] for one"):
        blocks[1]
    with pytest.raises(ValueError, match="'num_bytes' must hold one number for each of 3 rows; got 2"):
        rows.TokenBlocks(blocks.input_ids, blocks.num_bytes[:2], "wiki", "evaluation")


@every_tokenizer
def test_rows_are_the_shuffled_documents_joined_by_the_end_token(tokenizer):
    blocks = rows.token_blocks(tokenizer, "evaluation", domain="wiki", tokens=20_050, length=100, seed=3)
    assert blocks.input_ids.shape == (200, 100) and blocks.input_ids.dtype == torch.int64
    assert (len(blocks), blocks.num_tokens, blocks.domain, blocks.split) == (200, 20_000, "wiki", "evaluation")
    flat = blocks.input_ids.flatten().tolist()
    assert tokenizer.bos_token_id not in flat
    decoded = [text.strip() for text in tokenizer.decode(flat).split(END)]
    texts = documents("wiki", "evaluation")
    assert len(decoded) > 3 and set(decoded[:-1]) <= set(texts)
    assert decoded[:-1] != texts[: len(decoded) - 1], "not shuffled"


def test_the_seed_decides_the_rows_and_more_tokens_only_add_rows():
    tokenizer = TOKENIZERS["byte level"]
    few = rows.token_blocks(tokenizer, "calibration", tokens=1000, length=50)
    many = rows.token_blocks(tokenizer, "calibration", tokens=2000, length=50)
    other = rows.token_blocks(tokenizer, "calibration", tokens=1000, length=50, seed=1)
    assert torch.equal(few.input_ids, many.input_ids[:20]) and torch.equal(few.num_bytes, many.num_bytes[:20])
    assert not torch.equal(few.input_ids, other.input_ids)


@every_tokenizer
def test_a_rows_bytes_are_those_that_its_predicted_tokens_decode_to(tokenizer):
    blocks = rows.token_blocks(tokenizer, "evaluation", domain="stories", tokens=6400, length=64)
    for row, size in zip(blocks.input_ids, blocks.num_bytes, strict=True):
        whole, first = (len(tokenizer.decode(ids).replace(END, "").encode()) for ids in (row, row[:1]))
        # Metaspace decoding strips one space at the start of what it is given.
        assert size.item() in (whole - first, whole - first + 1, whole - first - 1)
    if tokenizer is TOKENIZERS["byte level"]:
        expected = [len(tokenizer.decode(row[1:]).replace(END, "").encode()) for row in blocks.input_ids]
        assert blocks.num_bytes.tolist() == expected


@every_tokenizer
@given(text=st.text())
@settings(max_examples=200)
def test_byte_counts_of_a_text_add_up_exactly(tokenizer, text):
    ids, sizes = rows._encode_with_bytes(tokenizer, text)
    assert len(ids) == len(sizes) and sum(sizes) == len(text.encode())
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@every_tokenizer
def test_a_character_spread_over_several_tokens_is_counted_byte_by_byte(tokenizer):
    ids, sizes = rows._encode_with_bytes(tokenizer, "🦊")
    assert len(ids) > 2 and max(sizes) < 4 and sum(sizes) == 4


def test_a_token_added_to_a_byte_level_vocabulary_counts_as_its_text():
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["naïve"])
    ids, sizes = rows._encode_with_bytes(tokenizer, "a naïve b")
    assert sizes[ids.index(tokenizer.convert_tokens_to_ids("naïve"))] == 6 and sum(sizes) == 10


def test_blocks_come_in_batches_without_padding():
    blocks = rows.token_blocks(TOKENIZERS["byte level"], "evaluation", tokens=700, length=100)
    batches = blocks.batches(batch_size=3)
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), blocks.input_ids)
    assert all(batch["attention_mask"].all() for batch in batches)
    shuffled = blocks.sample(7, seed=1)
    assert not torch.equal(shuffled.input_ids, blocks.input_ids)
    assert sorted(shuffled.input_ids.tolist()) == sorted(blocks.input_ids.tolist())
    assert torch.equal(blocks.sample(3, seed=1).input_ids, shuffled.input_ids[:3])
    assert not torch.equal(blocks.sample(7, seed=2).input_ids, shuffled.input_ids)


def test_too_little_text_names_how_much_there_is_and_documents_need_an_end_token():
    tokenizer = byte_level_tokenizer()
    with pytest.raises(ValueError, match=r"The calibration split of stories has [\d,]+ tokens .* for at most [\d,]+"):
        rows.token_blocks(tokenizer, "calibration", domain="stories", tokens=10**6)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        rows.token_blocks(tokenizer, "evaluation")


@pytest.mark.embedded
@pytest.mark.parametrize("role", ["gpt2", "llama"])
def test_byte_counts_of_the_real_texts_add_up_exactly(role, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    tokenizer = load_model(role)[1]
    for domain in DOMAINS:
        for text in documents(domain, "calibration")[:4]:
            assert sum(rows._encode_with_bytes(tokenizer, text)[1]) == len(text.encode())


def test_draws_and_further_rows_share_no_row(monkeypatch):
    # numbered rows, because made-up sentences are all alike
    def numbered(_tokenizer, split, *, domain, tokens, length):
        assert split == "evaluation"
        ids = torch.arange(tokens).view(-1, length)
        return rows.TokenBlocks(ids, torch.ones(len(ids), dtype=torch.long), domain, split)

    monkeypatch.setattr(rows, "token_blocks", numbered)
    parts = [
        *(rows.judging_rows(word_tokenizer(), draw=draw) for draw in range(3)),
        rows.further_rows(word_tokenizer()),
    ]
    for domain in ("speeches", "wiki"):
        assert [part[domain].input_ids.shape for part in parts] == [(48, 64)] * 4
        assert len(torch.cat([part[domain].input_ids for part in parts]).unique()) == 4 * 48 * 64
        firsts = parts[0][domain].input_ids[:, 0]
        assert not torch.equal(firsts, firsts.sort().values)  # from all over the split
    assert torch.equal(parts[0]["wiki"].input_ids, rows.judging_rows(word_tokenizer())["wiki"].input_ids)
