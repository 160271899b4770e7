"""Vocabulary pruning: count which tokens a text uses, choose which ones stay, and cut the others out.

Yang et al. 2022, "TextPruner", arXiv 2203.15996, for BPE tokenizers. A token can only be written where the two that it
is merged from are in the vocabulary too, so the tokens that stay must be *closed under merges*. As the bytes stay as
well, every text can still be written. A text that used a token which went takes more tokens now, so compare two
vocabularies per byte, never per token.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models.architectures import Architecture, describe
from course_utils.models.parts import Projection, note_sizes
from course_utils.models.refusals import refuse_adaptive, refuse_offloaded_weights
from course_utils.models.reports import PruningReport, model_size
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.text.byte_pairs import BytePairs

# Settings that name tokens in ways that nothing here follows.
_NOT_FOLLOWED = ("bad_words_ids", "force_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens")


@check_types
def token_counts(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> Tensor:
    """How often a text uses each token; tokens that the tokenizer puts around a text don't count.

    Args:
        tokenizer: a fast tokenizer, BPE with bytes; see ``choose_tokens``.
        documents: the text; each is encoded by itself.

    Returns:
        int64 [vocabulary], from token 0 up to the tokenizer's last.

    Raises:
        ValueError: another kind of tokenizer, or ``documents`` is no list of strings.
    """
    vocabulary = BytePairs.of(tokenizer)
    counts = torch.zeros(vocabulary.size, dtype=torch.int64)
    texts = checks.strings("documents", documents)
    for document in tqdm(texts, desc="counting tokens", unit="document", leave=False, delay=2):
        ids = torch.tensor(vocabulary.encode(document), dtype=torch.int64)
        counts.index_add_(0, ids, torch.ones_like(ids))
    return counts


@check_types
def choose_tokens(tokenizer: PreTrainedTokenizerBase, counts: Tensor, *, keep: int) -> list[int]:
    """The most frequent tokens, with every token that they are merged from.

    Some stay whatever the counts say: the bytes, special and added tokens, those that the tokenizer puts around a text,
    and what the chat template writes around messages. The others go by their counts. A token is worth as much as the
    most frequent one that is merged from it, so nothing stays without its parts. Equal counts keep the token whose
    number, or that of its last part, is lower: counts of zeros choose the first ``keep`` by number, in the order in
    which BPE learned them.

    Args:
        tokenizer: a fast tokenizer: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM, Mistral's newer ones), or
            SentencePiece's BPE with bytes for what has no token (Llama 2).
        counts: how often each token is used, [vocabulary], as from ``token_counts``; or a sum of several, weighted.
        keep: how many stay, exactly. Take a multiple of 64, which suits the hardware.

    Returns:
        Token ids in ascending order, for ``prune_vocabulary``.

    Raises:
        ValueError: another kind of tokenizer, counts that don't fit or aren't finite and at least 0, or ``keep`` out of
            range; the message says how many must stay.
    """
    vocabulary = BytePairs.of(tokenizer)
    if tuple(counts.shape) != (vocabulary.size,) or not (counts.isfinite() & (counts >= 0)).all():
        raise ValueError(
            f"'counts' must hold a finite number of at least 0 for each token, [{vocabulary.size}]; got "
            f"{reprlib.repr(counts)} {list(counts.shape)}. Count with token_counts and this very tokenizer."
        )
    names = vocabulary.names
    needed = vocabulary.needed
    meaning = "the tokens that must stay and all there are"
    checks.whole_number("keep", keep, least=len(needed), most=len(names), meaning=meaning)
    worth, latest = counts.tolist(), list(range(vocabulary.size))
    by_length = sorted(vocabulary.merged_from, key=lambda token: len(names[token]))  # parts before what they make
    for token in by_length:
        latest[token] = max(token, *(latest[part] for part in vocabulary.merged_from[token]))
    for token in reversed(by_length):
        for part in vocabulary.merged_from[token]:
            worth[part] = max(worth[part], worth[token])
    # A token's parts come before it by each of these: so the first ones are closed, however many they are.
    order = sorted(names, key=lambda token: (token not in needed, -worth[token], latest[token], len(names[token])))
    return sorted(order[:keep])


@check_types
@torch.no_grad()
def prune_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]
) -> tuple[PruningReport, PreTrainedTokenizerBase]:
    """Keep these tokens alone: in the model, in place, and in a new tokenizer.

    Tokens get the numbers 0, 1, 2 … in the order that they had. The embedding, the head and its bias lose their rows,
    and merges that make or need a token that goes are left out. Special and added tokens, the chat template, what the
    tokenizer puts around a text, and the ids in ``config`` and ``generation_config`` follow, so both save and reload
    with plain transformers. Rows of the embedding without a token (padding) go as well; ids there that name no token
    become None.

    A text whose tokens all stay is cut into the same tokens, under their new numbers. The model's hidden states for it
    are the same bit for bit, and each kept logit is the sum of the same products. A matrix of another shape may be
    added up in another order, so a logit can differ by a rounding; with SmolLM2-135M and 32,768 tokens none does (on a
    CPU). Probabilities rise, because fewer tokens share them. What else is written takes more and shorter tokens, down
    to bytes, and is decoded as the whole tokenizer's would be.

    Args:
        model: any causal language model that ``describe`` knows, mixtures among them.
        tokenizer: the model's; see ``choose_tokens``. It isn't changed.
        tokens: ids that stay, closed under merges, as from ``choose_tokens``; in any order. All of them change nothing
            but padding.

    Returns:
        The report, and the tokenizer that belongs to the model now.

    Raises:
        ValueError: another kind of tokenizer, or one that knows more tokens than the model; tokens out of range,
            repeated, without some that must stay, or not closed under merges; ids in the model's settings that name a
            token which goes; an adaptive or offloaded model. After an error the model is unchanged.
        UnsupportedArchitecture: ``describe`` doesn't know the model.
    """
    architecture, vocabulary = describe(model), BytePairs.of(tokenizer)
    refuse_adaptive(architecture, "cut the vocabulary")
    refuse_offloaded_weights(architecture, "cut the vocabulary")
    if vocabulary.size > architecture.vocab_size:
        raise ValueError(
            f"The tokenizer knows {vocabulary.size} tokens, and the model's embedding has {architecture.vocab_size} "
            "rows. Give the tokenizer that belongs to this model."
        )
    new = {token: number for number, token in enumerate(_checked(tokens, vocabulary))}
    settings = [(each, _ids_in(each, new, vocabulary)) for each in (model.config, model.generation_config) if each]
    smaller = vocabulary.renumbered(new)

    before = model_size(model)
    if len(new) < architecture.vocab_size:
        _keep_rows(architecture, new)
        for config, ids in settings:
            for field, value in ids.items():
                setattr(config, field, value)
    action = f"prune_vocabulary, {len(new)} of {before.vocabulary}"
    return PruningReport(action, before, model_size(model)), smaller


def _checked(tokens: Sequence[int], vocabulary: BytePairs) -> list[int]:
    """The tokens in ascending order, or what is wrong with them."""
    try:
        numbers = [checks.index(token) for token in tokens]
    except TypeError:
        raise ValueError(f"'tokens' must hold token ids, whole numbers; got {reprlib.repr(tokens)}.") from None
    if strange := {*numbers} - vocabulary.names.keys():
        raise ValueError(
            f"'tokens' must hold ids of this tokenizer's tokens, from 0 to {vocabulary.size - 1}; got "
            f"{vocabulary.shown(strange)}."
        )
    if repeated := [token for token, times in Counter(numbers).items() if times > 1]:
        raise ValueError(f"'tokens' must not repeat; got {vocabulary.shown(repeated)} more than once.")
    kept = {*numbers}
    if missing := vocabulary.fixed - kept:
        raise ValueError(
            "'tokens' must hold every byte, special and added token, so that any text can be written; missing: "
            f"{vocabulary.shown(missing)}. Take them from choose_tokens."
        )
    for token in numbers:
        if missing := {*vocabulary.merged_from.get(token, ())} - kept:
            raise ValueError(
                f"'tokens' must be closed under merges: {vocabulary.shown([token])} is merged from "
                f"{vocabulary.shown(missing)}, which is missing. Take them from choose_tokens."
            )
    return sorted(numbers)


def _ids_in(settings: Any, new: dict[int, int], vocabulary: BytePairs) -> dict[str, Any]:
    """What the token ids in a configuration, or in generation settings, become: {field: number, list or None}."""
    found = {}
    for field, value in vars(settings).items():
        if field in _NOT_FOLLOWED and value:
            raise ValueError(
                f"'{field}' of the model's generation_config names tokens by number, and can't follow: set it to None, "
                "cut, and write it again with the new tokenizer's numbers."
            )
        if field.endswith("_token_id") and value is not None:
            ids = value if isinstance(value, list | tuple) else [value]
            if gone := {*ids} & vocabulary.names.keys() - new.keys():
                raise ValueError(
                    f"'tokens' must hold {vocabulary.shown(gone)}, which the model's settings name as '{field}'. Add "
                    "it, or change that setting."
                )
            followed = [new[token] for token in ids if token in new]
            found[field] = followed if isinstance(value, list | tuple) and followed else next(iter(followed), None)
    return found


def _keep_rows(architecture: Architecture, new: dict[int, int]) -> None:
    """Keep these tokens' rows in embedding and head; the old weights are left as they are, as others may share them."""
    embedding, head = architecture.embedding, architecture.head
    old, tied = embedding.weight, head.weight is embedding.weight
    rows = torch.tensor([*new])
    Projection(head).keep(rows, axis="out")
    kept = head.weight if tied else nn.Parameter(old.index_select(0, rows.to(old.device)), old.requires_grad)
    embedding.weight = cast(nn.Parameter, kept)
    for module in (embedding, architecture.backbone):
        if getattr(module, "padding_idx", None) is not None:
            cast(Any, module).padding_idx = new.get(cast(int, module.padding_idx))
    note_sizes(embedding, num_embeddings=len(new))
    for part in (*architecture.model.modules(), architecture.model.config):
        note_sizes(cast(nn.Module, part), vocab_size=len(new))
