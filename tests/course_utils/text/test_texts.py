"""Disjoint splits, exact rows, exact byte counts, padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import word_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from course_utils.models.loading import load_model
from course_utils.text import texts

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


@pytest.mark.parametrize("domain", texts.DOMAINS + texts.LARGE_DOMAINS)
def test_splits_share_no_document_and_stay_the_same(domain):
    splits = {split: texts.documents(domain, split) for split in texts.SPLITS}
    assert all(splits.values())
    for one, other in itertools.combinations(splits.values(), 2):
        assert not set(one) & set(other)
    assert texts.documents(domain, "evaluation") == splits["evaluation"]


def test_of_twenty_groups_two_evaluate_one_calibrates_and_the_rest_train():
    """The embedded GPT-2 was trained by this rule: changing it would leak its training text into the evaluation."""
    names = [texts._split_of(index) for index in range(40)]
    assert [i for i, name in enumerate(names) if name == "evaluation"] == [0, 10, 20, 30]
    assert [i for i, name in enumerate(names) if name == "calibration"] == [5, 25]
    assert names.count("distillation") == 34


def test_rows_are_picked_by_slice_number_or_mask():
    blocks = texts.TokenBlocks(torch.arange(6).view(3, 2), torch.tensor([4, 5, 6]), "wiki", "evaluation")
    mask = torch.tensor([True, False, True])
    for rows in (slice(0, 3, 2), [0, 2], range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2]), mask):
        picked = blocks[rows]
        assert picked.input_ids.tolist() == [[0, 1], [4, 5]] and picked.num_bytes.tolist() == [4, 6]
    assert len(blocks[[]]) == 0
    for odd in (1, "0", [True, False, True], np.array([True, False, True]), [np.True_], [0.0], None, torch.ones(3)):
        with pytest.raises(TypeError, match="Rows"):
            blocks[odd]
    with pytest.raises(ValueError, match="'num_bytes' must hold one number for each of 3 rows; got 2"):
        texts.TokenBlocks(blocks.input_ids, blocks.num_bytes[:2], "wiki", "evaluation")


@every_tokenizer
def test_rows_are_the_shuffled_documents_joined_by_the_end_token(tokenizer):
    blocks = texts.token_blocks(tokenizer, "evaluation", domain="wiki", tokens=20_050, length=100, seed=3)
    assert blocks.input_ids.shape == (200, 100) and blocks.input_ids.dtype == torch.int64
    assert (len(blocks), blocks.num_tokens, blocks.domain, blocks.split) == (200, 20_000, "wiki", "evaluation")
    flat = blocks.input_ids.flatten().tolist()
    assert tokenizer.bos_token_id not in flat
    decoded = [text.strip() for text in tokenizer.decode(flat).split(END)]
    documents = texts.documents("wiki", "evaluation")
    assert len(decoded) > 3 and set(decoded[:-1]) <= set(documents)
    assert decoded[:-1] != documents[: len(decoded) - 1], "not shuffled"


def test_the_seed_decides_the_rows_and_more_tokens_only_add_rows():
    tokenizer = TOKENIZERS["byte level"]
    few = texts.token_blocks(tokenizer, "calibration", tokens=1000, length=50)
    many = texts.token_blocks(tokenizer, "calibration", tokens=2000, length=50)
    other = texts.token_blocks(tokenizer, "calibration", tokens=1000, length=50, seed=1)
    assert torch.equal(few.input_ids, many.input_ids[:20]) and torch.equal(few.num_bytes, many.num_bytes[:20])
    assert not torch.equal(few.input_ids, other.input_ids)


@every_tokenizer
def test_a_rows_bytes_are_those_that_its_predicted_tokens_decode_to(tokenizer):
    blocks = texts.token_blocks(tokenizer, "evaluation", domain="stories", tokens=6400, length=64)
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
    ids, sizes = texts._encode_with_bytes(tokenizer, text)
    assert len(ids) == len(sizes) and sum(sizes) == len(text.encode())
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@every_tokenizer
def test_a_character_spread_over_several_tokens_is_counted_byte_by_byte(tokenizer):
    ids, sizes = texts._encode_with_bytes(tokenizer, "🦊")
    assert len(ids) > 2 and max(sizes) < 4 and sum(sizes) == 4


def test_a_token_added_to_a_byte_level_vocabulary_counts_as_its_text():
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["naïve"])
    ids, sizes = texts._encode_with_bytes(tokenizer, "a naïve b")
    assert sizes[ids.index(tokenizer.convert_tokens_to_ids("naïve"))] == 6 and sum(sizes) == 10


def test_a_slow_tokenizer_is_refused():
    class Slow(PreTrainedTokenizerBase):
        is_fast = False

    with pytest.raises(ValueError, match="Slow is a slow tokenizer"):
        texts._encode_with_bytes(Slow(), "text")


def test_blocks_come_in_batches_without_padding():
    blocks = texts.token_blocks(TOKENIZERS["byte level"], "evaluation", tokens=700, length=100)
    batches = blocks.batches(batch_size=3)
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), blocks.input_ids)
    assert all(batch["attention_mask"].all() for batch in batches)
    for wrong in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"'batch_size' must be a whole number of at least 1; got {wrong}"):
            blocks.batches(batch_size=wrong)


def test_too_little_text_names_how_much_there_is():
    with pytest.raises(
        ValueError, match=r"The calibration split of stories has [\d,]+ tokens .* ask for at most [\d,]+"
    ):
        texts.token_blocks(TOKENIZERS["byte level"], "calibration", domain="stories", tokens=10**6)


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        texts.token_blocks(tokenizer, "evaluation")


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_batches_mask_the_padding_and_nothing_else(side):
    tokenizer = TOKENIZERS["sentencepiece"]
    prompts = ["hello", "h", "hello hello hello", END + "h"]
    batches = texts.padded_batches(tokenizer, prompts, batch_size=2, max_length=8, padding_side=side)
    rows = [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert rows == [tokenizer(p, add_special_tokens=False)["input_ids"][:8] for p in prompts]
    edge = 0 if side == "left" else -1
    assert batches[0]["attention_mask"][1, edge] == 0 and batches[0]["attention_mask"][0].all()
    assert tokenizer.padding_side == "right", "the tokenizer was changed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["a", "b", ""], "batch_size": 2}, "Text 2 has no tokens"),
    ],
)
def test_padded_batches_refuse_what_makes_no_batch(arguments, message):
    with pytest.raises(ValueError, match=message):
        texts.padded_batches(TOKENIZERS["byte level"], **arguments)


def test_padded_batches_need_a_padding_token():
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        texts.padded_batches(tokenizer, ["a"])


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("domain", "counts"), [("speeches", (13, 25, 211)), ("wiki", (16, 31, 263)), ("stories", (16, 32, 269))]
)
def test_the_real_texts_are_clean_and_split_as_documented(domain, counts, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    splits = [texts.documents(domain, split) for split in texts.SPLITS]
    assert tuple(map(len, splits)) == counts
    for text in itertools.chain(*splits):
        assert text == text.strip() and "\n\n" not in text and "<doc" not in text and "<|endoftext|>" not in text


@pytest.mark.embedded
@pytest.mark.parametrize("role", ["gpt2", "llama"])
def test_byte_counts_of_the_real_texts_add_up_exactly(role, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    tokenizer = load_model(role)[1]
    for domain in texts.DOMAINS:
        for text in texts.documents(domain, "calibration")[:4]:
            assert sum(texts._encode_with_bytes(tokenizer, text)[1]) == len(text.encode())


THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
HAN, THAI, HINDI = "".join(map(chr, range(0x4E00, 0x4E1A))), "".join(map(chr, range(0x0E01, 0x0E2F))) * 2, "हिन्दी "


@pytest.mark.parametrize(
    ("judging", "learned", "is_known"),
    [
        (f"Zero, {THIRTEEN.upper()}!", f"... {THIRTEEN} fourteen", True),
        (THIRTEEN.removeprefix("one"), f"zero {THIRTEEN}", False),
        ("Press  the\nbutton.", "press the button.", True),  # short, and equal but for case and blanks
        ("Press the button.", "Press the button twice.", False),
        ("Cafe\u0301", "CAFÉ", True),
        (f"甲{HAN}。", f"乙{HAN[:9]}，{HAN[9:]}", True),  # 26 characters, whatever stands between them
        (HAN[1:], f"甲{HAN}", False),
        (f"x{THAI[:65]}", f"y{THAI[:65]}", True),
        (f"x{THAI[:64]}", f"y{THAI[:64]}", False),
        (HINDI * 12, f"{HINDI * 12}एक", False),  # twelve words, though each has three vowel signs
        (HINDI * 13, f"{HINDI * 13}एक", True),
        ("", THIRTEEN, False),
    ],
)
def test_a_text_that_was_learned_is_found_at_any_length_and_in_any_script(judging, learned, is_known):
    assert texts.overlaps([judging, "something else"], iter(["no", learned])) == [is_known, False]
    assert texts.first_overlaps([judging], ["no", learned]) == [1 if is_known else None]
    assert texts.overlaps([judging], []) == [False]


@pytest.mark.embedded
@pytest.mark.parametrize("domain", texts.LARGE_DOMAINS)
def test_the_large_domains_are_clean(domain, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "embedded")
    found = texts.documents(domain, "distillation")
    assert len(found) > 5000 and all(text == text.strip() for text in found)
    assert not any(mark in text for text in found for mark in ("[header]", "[step]", "Question:", "\n\n"))


def test_draws_and_further_rows_share_no_row(monkeypatch):
    # numbered rows, because made-up sentences are all alike
    def numbered(_tokenizer, split, *, domain, tokens, length):
        assert split == "evaluation"
        ids = torch.arange(tokens).view(-1, length)
        return texts.TokenBlocks(ids, torch.ones(len(ids), dtype=torch.long), domain, split)

    monkeypatch.setattr(texts, "token_blocks", numbered)
    parts = [
        *(texts.judging_rows(word_tokenizer(), draw=draw) for draw in range(3)),
        texts.further_rows(word_tokenizer()),
    ]
    for domain in ("speeches", "wiki"):
        assert [part[domain].input_ids.shape for part in parts] == [(48, 64)] * 4
        assert len(torch.cat([part[domain].input_ids for part in parts]).unique()) == 4 * 48 * 64
        firsts = parts[0][domain].input_ids[:, 0]
        assert not torch.equal(firsts, firsts.sort().values)  # from all over the split
    assert torch.equal(parts[0]["wiki"].input_ids, texts.judging_rows(word_tokenizer())["wiki"].input_ids)
