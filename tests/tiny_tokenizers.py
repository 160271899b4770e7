"""Small BPE tokenizers of both kinds, trained in milliseconds on a page of this course."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8")
SPECIAL = ("<s>", "</s>", "<pad>")  # 0, 1 and 2, as the tiny models have it
TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITTINGS = {
    "gpt-2": [WORDS],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), WORDS],
    "llama-bpe": [pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s+"), "isolated"), BYTES],
}


def _fast(backend, *, added=(), **settings):
    """With a beginning before each text, a chat template, and added tokens behind the others."""
    backend.add_tokens([AddedToken(name, normalized=False) for name in added])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **names, **settings)


@functools.cache
def byte_level(splitting="smollm", *, size=512, alphabet=True):
    """Without ``alphabet`` it knows the bytes of its page alone."""
    backend = Tokenizer(models.BPE(ignore_merges=splitting == "llama-bpe"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(SPLITTINGS[splitting])
    backend.decoder = decoders.ByteLevel()
    added = ["<|im_start|>", "<tool>"] if alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(added), special_tokens=[AddedToken(name, normalized=False) for name in SPECIAL],
        initial_alphabet=WORDS.alphabet() if alphabet else [], show_progress=False,
    )  # fmt: skip
    text = TEXT if alphabet else "".join(c for c in TEXT[:6000] if c in "abcdefghijklmnopqrstuvwxyz\n ")
    backend.train_from_iterator(text.splitlines(keepends=True), trainer)
    return _fast(backend, added=added)


@functools.cache
def sentence_pieces(*, size=640):
    """As Llama 2's: characters, bytes for what has no token, and every way in which a token can be merged."""
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size - 260, show_progress=False)
    backend.train_from_iterator((f"▁{line}" for line in TEXT.replace(" ", "▁").splitlines()), trainer)
    pieces = sorted(backend.get_vocab().items(), key=lambda item: (len(item[0]) == 1, item[1]))  # letters come last
    names = [
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *(name for name, _ in pieces),
    ]
    numbers = {name: number for number, name in enumerate(names)}
    merges = []
    for name, _ in pieces:
        ways = [(name[:place], name[place:]) for place in range(1, len(name))]
        ways = [way for way in ways if way[0] in numbers and way[1] in numbers]
        merges += sorted(ways, key=lambda way: (numbers[way[0]], numbers[way[1]]))
    backend = Tokenizer(models.BPE(numbers, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(after)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in (*SPECIAL, "<unk>")])
    return _fast(backend, unk_token="<unk>")


KINDS = {**{name: functools.partial(byte_level, name) for name in SPLITTINGS}, "sentencepiece": sentence_pieces}


def state_of(tokenizer):
    """Its JSON."""
    return json.loads(tokenizer.backend_tokenizer.to_str())
