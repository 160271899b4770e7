"""What stays is cut, read and computed as before, any text is still written, and bad input changes nothing."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import unchanged
from tiny import FAMILIES, MIXTURES, adaptive, tiny_model, word_tokenizer
from tiny_tokenizers import KINDS, TEXT, byte_level, state_of
from tokenizers import Tokenizer, models, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from course_utils.models.architectures import describe
from course_utils.models.loading import identity, variant
from course_utils.models.reports import model_size
from course_utils.pruning import choose_tokens, prune_vocabulary, save_pruned, token_counts
from course_utils.release import engine
from course_utils.release.export import export_gguf

HALF = TEXT[: len(TEXT) // 2]
KEEP = 384
everywhere = pytest.mark.parametrize("kind", KINDS)
kinds = st.sampled_from([*KINDS])


def chosen(tokenizer, keep=KEEP, text=HALF):
    return choose_tokens(tokenizer, token_counts(tokenizer, [text]), keep=keep)


def cut(tokenizer, tokens, model=None):
    """The new tokenizer alone."""
    model = tiny_model(layers=1, vocab_size=len(tokenizer)) if model is None else model
    return prune_vocabulary(model, tokenizer, tokens)[1]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def names_of(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(ids_of(tokenizer, text))


# --- tokenizers -----------------------------------------------------------------------------------


@everywhere
def test_counts_are_those_of_the_text_alone(kind):
    tokenizer, documents = KINDS[kind](), [HALF, "x", ""]
    counts = token_counts(tokenizer, iter(documents))
    expected = torch.zeros(len(tokenizer), dtype=torch.int64)
    for token in itertools.chain(*(ids_of(tokenizer, text) for text in documents)):
        expected[token] += 1
    assert counts.dtype == torch.int64 and torch.equal(counts, expected)
    assert counts[tokenizer.bos_token_id] == 0 and tokenizer("x").input_ids[0] == tokenizer.bos_token_id


@settings(max_examples=40, deadline=None)
@given(kind=kinds, seed=st.integers(0, 1000), keep=st.integers(330, 512))
def test_a_choice_is_closed_under_merges(kind, seed, keep):
    """Each kept token that BPE can write is still written as one, and each merge makes and needs tokens that stay."""
    tokenizer = KINDS[kind]()
    counts = torch.randint(20, (len(tokenizer),), generator=torch.Generator().manual_seed(seed)) ** 3
    tokens = choose_tokens(tokenizer, counts, keep=keep)
    assert len(tokens) == keep and tokens == sorted(set(tokens))
    smaller = cut(tokenizer, tokens)
    assert smaller.get_vocab() == {tokenizer.convert_ids_to_tokens(t): n for n, t in enumerate(tokens)}
    bpe, whole = state_of(smaller)["model"], state_of(tokenizer)["model"]
    assert all({left, right, left + right} <= bpe["vocab"].keys() for left, right in bpe["merges"])
    assert bpe["merges"] == [merge for merge in whole["merges"] if merge in bpe["merges"]]
    models_of = [each.backend_tokenizer.model for each in (tokenizer, smaller)]
    for name in bpe["vocab"]:
        before, after = ([token.value for token in model.tokenize(name)] for model in models_of)
        assert before != [name] or after == [name]


def test_equal_counts_keep_the_first_by_number():
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.chat_template = None
    assert choose_tokens(tokenizer, torch.zeros(512), keep=KEEP) == [*range(KEEP - 2), 510, 511]  # two are added ones


def test_the_most_frequent_stay_with_their_parts():
    """By hand: "abc" and "abd" are asked for thrice and need "ab", "xy" five times, and "uv" never."""
    merges = [("u", "v"), ("a", "b"), ("ab", "c"), ("ab", "d"), ("x", "y")]
    names = [*sorted(ByteLevel.alphabet()), *map("".join, merges)]
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    counts = token_counts(tokenizer, ["abc abd xy"] * 3 + ["xy"] * 2)
    order = []
    for keep in range(257, 262):
        tokens = {names[token] for token in choose_tokens(tokenizer, counts, keep=keep)[256:]}
        order += tokens - {*order}
        assert tokens == {*order}
    assert order == ["xy", "ab", "abc", "abd", "uv"]


@everywhere
def test_what_any_text_may_need_stays(kind):
    tokenizer = KINDS[kind]()
    counts = torch.zeros(len(tokenizer))
    with pytest.raises(ValueError, match="'keep' must be a whole number from") as refused:
        choose_tokens(tokenizer, counts, keep=1)
    fewest = int(str(refused.value).split("from ")[1].split()[0])
    tokens = {*choose_tokens(tokenizer, counts, keep=fewest)}
    chat = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    for messages in (chat, chat[1:]):
        assert {*ids_of(tokenizer, tokenizer.apply_chat_template(messages, tokenize=False))} <= tokens
    assert {*tokenizer.added_tokens_decoder} <= tokens
    numbers = state_of(tokenizer)["model"]["vocab"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "sentencepiece" else ByteLevel.alphabet()
    assert len(letters) == 256 and {numbers[letter] for letter in letters} <= tokens


words = st.lists(st.sampled_from(sorted({*HALF.split()})), min_size=1, max_size=20).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(kind=kinds, text=words)
def test_a_text_whose_tokens_all_stay_is_cut_alike(kind, text):
    tokenizer = KINDS[kind]()
    tokens = choose_tokens(tokenizer, token_counts(tokenizer, [text]), keep=KEEP)
    ids = ids_of(tokenizer, text)
    assert {*ids} <= {*tokens}
    assert ids_of(cut(tokenizer, tokens), text) == [tokens.index(token) for token in ids]


anything = st.one_of(st.text(), st.text(alphabet="aäß▁ \n\t<>é́ﬁ日🙂👩‍👩‍👧0x1A"), words)


@settings(max_examples=150, deadline=None)
@given(kind=kinds, text=anything, seed=st.integers(0, 5))
def test_any_text_is_written_and_read_without_loss(kind, text, seed):
    tokenizer = KINDS[kind]()
    counts = torch.rand(len(tokenizer), generator=torch.Generator().manual_seed(seed))
    smaller = cut(tokenizer, choose_tokens(tokenizer, counts, keep=320))
    read, before = smaller.decode(ids_of(smaller, text)), tokenizer.decode(ids_of(tokenizer, text))
    assert read == before and (kind == "sentencepiece" or read == text)


def test_a_tokenizer_that_lacks_bytes_loses_what_it_lost_before():
    """SmolLM2's has no token for bytes that its text didn't hold."""
    tokenizer = byte_level(size=97, alphabet=False)
    smaller = cut(tokenizer, choose_tokens(tokenizer, torch.zeros(97), keep=64))
    for text in ("the mean ẞ of it", "QZ"):
        assert smaller.decode(ids_of(smaller, text)) == tokenizer.decode(ids_of(tokenizer, text))


@everywhere
def test_special_tokens_template_and_what_stands_around_a_text_follow(kind, tmp_path):
    tokenizer = KINDS[kind]()
    tokenizer.padding_side = "left"
    before = tokenizer.backend_tokenizer.to_str()
    smaller = cut(tokenizer, chosen(tokenizer))
    assert tokenizer.backend_tokenizer.to_str() == before and smaller.padding_side == "left"
    smaller.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Bytes."}]
    for made in (smaller, AutoTokenizer.from_pretrained(tmp_path)):
        assert type(made) is type(tokenizer) and len(made) == KEEP
        assert made.special_tokens_map == tokenizer.special_tokens_map
        special = [each.convert_ids_to_tokens(each.all_special_ids) for each in (made, tokenizer)]
        assert special[0] == special[1]
        assert made.get_added_vocab().keys() == tokenizer.get_added_vocab().keys()
        assert made.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)
        assert made.convert_ids_to_tokens(made("a</s>").input_ids)[0] == "<s>" and made("a</s>").input_ids[-1] == 1
        assert made(["a", "a a a a a"], padding=True).input_ids[0].count(made.pad_token_id) > 2
        assert state_of(made)["model"] == state_of(smaller)["model"]


@pytest.mark.parametrize(
    ("made_by", "kind"),
    [(GPT2Tokenizer, "gpt-2"), (Qwen2Tokenizer, "gpt-2"), (LlamaTokenizer, "sentencepiece")],
)
def test_transformers_own_classes_reload(made_by, kind, tmp_path):
    """They build everything but vocabulary and merges anew."""
    bpe = state_of(KINDS[kind]())["model"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": bpe["unk_token"] or "</s>"}
    tokenizer = made_by(vocab=bpe["vocab"], merges=[tuple(merge) for merge in bpe["merges"]], **names)
    smaller = cut(tokenizer, chosen(tokenizer))
    smaller.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(reloaded) is type(smaller) is made_by
    for text in (HALF, "wörld 🙂 <s> a", "  007\n\n"):
        assert reloaded(text).input_ids == smaller(text).input_ids
        assert smaller.decode(smaller(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)


def test_numbers_that_a_post_processor_keeps_follow():
    tokenizer = copy.deepcopy(byte_level())
    middle = "<|im_start|>"
    number = tokenizer.convert_tokens_to_ids(middle)
    steps = [processors.ByteLevel(), processors.RobertaProcessing((middle, number), ("<s>", 0))]
    for processor in (steps[1], processors.Sequence(steps)):
        tokenizer.backend_tokenizer.post_processor = processor
        smaller = cut(tokenizer, chosen(tokenizer))
        assert smaller.convert_ids_to_tokens(smaller("a").input_ids) == ["<s>", "a", middle]
        assert smaller.convert_tokens_to_ids(middle) != number


# --- models ---------------------------------------------------------------------------------------

CASES = [(family, tied) for family in (*FAMILIES, *MIXTURES) for tied in (True, False)]


def with_text(family, tied=True, **settings):
    """A tiny model of the tokenizer's size, its tokens to keep, and ids of theirs before and after."""
    tokenizer = byte_level()
    model = tiny_model(family, vocab_size=len(tokenizer), tie_word_embeddings=tied, **settings)
    tokens = chosen(tokenizer, text=TEXT[:300])
    ids = torch.tensor(ids_of(tokenizer, TEXT[:300])[:48]).view(2, 24)
    return model, tokenizer, tokens, ids, torch.tensor([[tokens.index(t) for t in row] for row in ids.tolist()])


@pytest.mark.parametrize(("family", "tied"), CASES)
@torch.no_grad()
def test_hidden_states_and_kept_logits_are_the_whole_models(family, tied, tmp_path):
    model, tokenizer, tokens, ids, new = with_text(family, tied)
    whole, before = variant(model), model_size(model)
    seen = identity(whole)
    report, smaller = prune_vocabulary(model, tokenizer, tokens)
    assert identity(whole) == seen
    last = [m.base_model(input_ids=i).last_hidden_state for m, i in ((whole, ids), (model, new))]
    assert torch.equal(*last)
    torch.testing.assert_close(model(new).logits, whole(ids).logits[..., tokens], atol=2e-6, rtol=1e-5)
    # The same rows of the head, in a matrix of the same shape: the same sums in the same order.
    head, rows = describe(whole).head, torch.tensor(tokens)
    bias = None if head.bias is None else head.bias[rows]
    head.weight, head.bias = torch.nn.Parameter(head.weight[rows]), bias if bias is None else torch.nn.Parameter(bias)
    assert torch.equal(model(new).logits, describe(whole).logits(last[0]))
    assert (describe(model).head.weight is describe(model).embedding.weight) == tied
    assert report.before == before and (report.before.vocabulary, report.after.vocabulary) == (len(tokenizer), KEEP)
    gone = len(tokenizer) - KEEP
    per_token = (1 if tied else 2) * describe(model).embedding.embedding_dim + (bias is not None)
    assert report.before.parameters - report.after.parameters == gone * per_token
    assert "vocabulary" in str(report)

    folder = save_pruned(model, smaller, tmp_path / "model")
    loaded, reloaded = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for weight in loaded.parameters():
        weight.data = weight.data.clone()  # experts can lie at an odd address in a file
    assert torch.equal(loaded(new).logits, model(new).logits)
    assert ids_of(reloaded, HALF) == ids_of(smaller, HALF) and loaded.config.vocab_size == KEEP


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_in_16_bits_too(dtype):
    model, tokenizer, tokens, ids, new = with_text("llama", dtype=dtype)
    expected = model(ids).logits[..., tokens].float()
    prune_vocabulary(model, tokenizer, tokens)
    torch.testing.assert_close(model(new).logits.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text", "phimoe"])
def test_it_writes_learns_and_notes_its_size(family):
    model, tokenizer, tokens, ids, new = with_text(family)
    whole = variant(model)
    prune_vocabulary(model, tokenizer, tokens)
    assert all(part.vocab_size == KEEP for part in model.modules() if hasattr(part, "vocab_size"))
    assert describe(model).embedding.num_embeddings == describe(model).head.out_features == KEEP
    greedy = {"do_sample": False, "max_new_tokens": 4, "attention_mask": torch.ones_like(ids)}
    gone = [token for token in range(len(tokenizer)) if token not in tokens]
    written = whole.generate(ids, suppress_tokens=gone, **greedy)
    assert [[tokens.index(t) for t in row] for row in written.tolist()] == model.generate(new, **greedy).tolist()
    model(input_ids=new, labels=new).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@torch.no_grad()
def test_all_tokens_change_nothing_and_rows_without_a_token_go(family):
    tokenizer = byte_level()
    model = tiny_model(family, vocab_size=len(tokenizer))
    weights, config = [p.data_ptr() for p in model.parameters()], model.config.to_dict()
    report, same = prune_vocabulary(model, tokenizer, range(len(tokenizer)))
    assert report.before == report.after and model.config.to_dict() == config
    assert [p.data_ptr() for p in model.parameters()] == weights
    assert state_of(same) == state_of(tokenizer)
    padded = tiny_model(family, vocab_size=576, eos_token_id=[1, 570], pad_token_id=575)
    expected = padded(torch.tensor([[5, 6]])).logits[..., : len(tokenizer)]
    prune_vocabulary(padded, tokenizer, range(len(tokenizer)))
    assert (padded.config.vocab_size, padded.config.eos_token_id, padded.config.pad_token_id) == (512, [1], None)
    torch.testing.assert_close(padded(torch.tensor([[5, 6]])).logits, expected, atol=2e-6, rtol=1e-5)


def test_ids_in_the_models_settings_follow(tmp_path):
    tokenizer = byte_level()
    start, tool = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<tool>"))
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=[1, tool], pad_token_id=start)
    model.generation_config.eos_token_id = [tool, 1]
    model.generation_config.pad_token_id = start
    smaller = cut(tokenizer, chosen(tokenizer), model)
    start, tool = (smaller.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<tool>"))
    assert (start, tool) == (KEEP - 2, KEEP - 1)
    model.save_pretrained(tmp_path)  # as transformers saves it
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(torch.tensor([[5, start]])).logits, model(torch.tensor([[5, start]])).logits)
    for made in (model, loaded):
        assert (made.config.eos_token_id, made.config.bos_token_id, made.config.pad_token_id) == ([1, tool], 0, start)
        assert (made.generation_config.eos_token_id, made.generation_config.pad_token_id) == ([tool, 1], start)
        assert made.get_input_embeddings().padding_idx == made.model.padding_idx == start


@pytest.mark.skipif(not engine.available(), reason=engine.problem())
@pytest.mark.parametrize("kind", ["gpt-2", "smollm"])
@torch.no_grad()
def test_llama_cpp_computes_and_cuts_text_alike(kind, tmp_path):
    tokenizer = KINDS[kind]()
    model = tiny_model(vocab_size=len(tokenizer))
    smaller = cut(tokenizer, chosen(tokenizer), model)
    text = HALF[:300] + " wörld 🙂 007"
    ids = torch.tensor(ids_of(smaller, text))[:60]
    with engine.load(export_gguf(model, smaller, tmp_path / "m.gguf", quantization="F32")) as file:
        assert file.vocab_size == KEEP
        torch.testing.assert_close(file.logits(ids), model(ids[None]).logits[0], atol=1e-5, rtol=1e-4)
        assert file.tokenize(text) == ids_of(smaller, text)


# --- bad input ------------------------------------------------------------------------------------


def other(model):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="a")


OTHERS = {
    "got Unigram": lambda: other(models.Unigram([("a", 0.0)], 0)),
    "got WordPiece": lambda: other(models.WordPiece({"a": 0}, unk_token="a")),
    "got WordLevel": word_tokenizer,
    "got BPE without bytes": lambda: other(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])),
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_tokenizers_are_refused_by_name(message):
    tokenizer, model = OTHERS[message](), tiny_model()
    for use in (
        lambda: token_counts(tokenizer, ["a"]),
        lambda: choose_tokens(tokenizer, torch.zeros(97), keep=97),
        lambda: prune_vocabulary(model, tokenizer, range(97)),
    ):
        with unchanged(model), pytest.raises(ValueError, match=message):
            use()


def without(*gone):
    return [token for token in range(512) if token not in gone]


def test_tokens_that_can_not_stay_alone_are_refused_and_change_nothing():
    tokenizer = byte_level()
    bpe = state_of(tokenizer)["model"]
    made = bpe["vocab"]["Ġthe"]
    part = next(
        bpe["vocab"][name] for merge in bpe["merges"] if "".join(merge) == "Ġthe" for name in merge if len(name) > 1
    )
    model = tiny_model(vocab_size=512)
    for tokens, message in (
        (without(part), rf"closed under merges: {made} \('Ġthe'\) is merged from {part} "),
        (without(1), r"missing: 1 \('</s>'\)"),
        (without(*range(3, 259)), r"missing: 3 \('!'\), .* and 251 more"),
        ([], "missing"),
        ([*range(512), 7, 7], r"must not repeat; got 7 "),
        ([*range(513)], r"from 0 to 511; got 512 \('no token'\)"),
        ([-1, 0], "from 0 to 511"),
        ("all", "whole numbers; got 'all'"),
        ([0.5], "whole numbers"),
        (None, "whole numbers"),
    ):
        with unchanged(model), pytest.raises(ValueError, match=message):
            prune_vocabulary(model, tokenizer, tokens)


def test_models_and_settings_that_can_not_follow_are_refused_and_unchanged():
    tokenizer = byte_level()
    tokens = chosen(tokenizer)
    gone = next(token for token in range(512) if token not in tokens)
    stops = tiny_model(vocab_size=512)
    stops.generation_config.eos_token_id = [1, gone]
    bad_words = tiny_model(vocab_size=512)
    bad_words.generation_config.bad_words_ids = [[5]]
    for model, message in (
        (tiny_model(vocab_size=500), "knows 512 tokens, and the model's embedding has 500"),
        (stops, rf"must hold {gone} .* name as 'eos_token_id'"),
        (bad_words, "'bad_words_ids' of the model's"),
        (adaptive(tiny_model(vocab_size=512)), "Can't cut the vocabulary of an adaptive model"),
    ):
        with unchanged(model), pytest.raises(ValueError, match=message):
            prune_vocabulary(model, tokenizer, tokens)


@pytest.mark.parametrize("counts", [torch.zeros(511), torch.zeros(1, 512), torch.zeros(512) - 1, torch.ones(512) / 0])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match=r"'counts' must hold a finite number .* \[512\]"):
        choose_tokens(byte_level(), counts, keep=KEEP)
