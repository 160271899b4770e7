"""Activations are taken where they should be, counted once, and compared only where two texts share their tokens."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from course_utils.activations import (
    SITES,
    align,
    capture,
    pair_batches,
    principal_components,
    sites_of,
    watching,
)
from course_utils.architectures import describe
from course_utils.attention import bypass_attention
from course_utils.batches import read_batch
from course_utils.contrastive import Pair
from course_utils.width import neuron_importance, prune_neurons

DENSE = ("gpt2", "opt", "gpt_neox")
WIDE = ("gate", "up", "down_input")


def run(model, batch, sites=None, blocks=None) -> dict[tuple[str, int], torch.Tensor]:
    """Every state of one forward pass."""
    architecture, seen = describe(model), {}

    def receive(site, block, states):
        assert (site, block) not in seen
        seen[site, block] = states.detach()

    with torch.no_grad(), watching(architecture, sites or sites_of(architecture), blocks, receive):
        architecture.hidden_states(read_batch(batch, vocab_size=97, device="cpu"))
    return seen


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- sites ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_site_is_what_it_says(family):
    model, batch = tiny_model(family), tiny_batches(padding="right")[1]
    architecture, seen = describe(model), run(model, batch)
    assert set(seen) == {(site, block) for site in SITES for block in range(3) if site != "gate" or family not in DENSE}
    for (site, _), states in seen.items():
        width = architecture.intermediate_sizes[0] if site in WIDE else 32
        assert states.shape == (2, 12, width)
    inputs = read_batch(batch, vocab_size=97, device="cpu").inputs()
    stream = model(**inputs, output_hidden_states=True).hidden_states
    for block, mlp in enumerate(architecture.mlps):
        before = stream[block]
        after = seen["residual", block]
        if block < 2:  # the last of hidden_states comes after the final norm
            torch.testing.assert_close(after, stream[block + 1])
        parts = seen["attention_out", block] + seen["mlp_out", block]
        torch.testing.assert_close(after, before + parts)
        attention_input = architecture.attentions[block].norms[0](before)
        torch.testing.assert_close(seen["attention_norm", block], attention_input)
        middle = before if family == "gpt_neox" else before + seen["attention_out", block]  # parallel in GPT-NeoX
        torch.testing.assert_close(seen["mlp_norm", block], mlp.norm(middle))
        rows = [seen["mlp_norm", block] @ weight.T for weight in mlp.rows]
        biases = [p.bias for p in mlp.inputs if p.bias is not None]
        rows = [row + bias for row, bias in zip(rows, biases, strict=True)] if biases else rows
        names = ("up",) if family in DENSE else ("gate", "up")
        for name, row in zip(names, rows, strict=True):
            torch.testing.assert_close(seen[name, block], row, atol=1e-5, rtol=1e-5)
        names_of_it = ("act", "act_fn", "activation_fn")  # the activation function, whatever the family calls it
        activation = next(getattr(mlp.owner, name) for name in names_of_it if hasattr(mlp.owner, name))
        product = activation(seen[names[0], block]) * (1 if family in DENSE else seen["up", block])
        torch.testing.assert_close(seen["down_input", block], product)


def test_only_the_sites_and_blocks_asked_for():
    model, batch = tiny_model("llama"), tiny_batches()[0]
    assert list(run(model, batch, ["up", "residual"], [2, 0])) == [
        ("up", 0),
        ("residual", 0),
        ("up", 2),
        ("residual", 2),
    ]


def test_a_model_that_normalises_after_the_sum_has_no_norm_sites():
    model = tiny_model("opt", do_layer_norm_before=False)
    assert sites_of(describe(model)) == ("attention_out", "mlp_out", "up", "down_input", "residual")
    assert len(run(model, tiny_batches()[0])) == 15
    with pytest.raises(ValueError, match=r"attention_out, mlp_out.*'mlp_norm'"):
        capture(model, tiny_batches(), sites=["mlp_norm"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("remove", [False, True])
def test_a_bypassed_attention_adds_zeros_and_has_no_norm(family, remove):
    model = tiny_model(family)
    bypass_attention(model, [1], remove=remove)
    activations = capture(model, tiny_batches(), sites=["attention_out", "attention_norm", "residual"])
    assert set(activations.statistics) == {
        ("attention_out", 0), ("attention_out", 1), ("attention_out", 2), ("attention_norm", 0), ("attention_norm", 2),
        ("residual", 0), ("residual", 1), ("residual", 2),
    }  # fmt: skip
    assert activations.statistics["attention_out", 1].norm_max == 0
    assert activations.statistics["attention_out", 0].norm_mean > 0


def test_blocks_of_different_widths():
    model = tiny_model("phi3")
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.5, layers=[1])
    seen = run(model, tiny_batches()[0], WIDE)
    assert {key: states.shape[-1] for key, states in seen.items()} == {
        (site, block): (24 if block == 1 else 48) for site in WIDE for block in range(3)
    }
    kept = capture(model, tiny_batches(), sites=["up"], keep=True, budget=66 * (48 + 24 + 48) * 4)  # exactly enough
    assert kept.values["up", 1].shape == (66, 24)


def test_hooks_go_and_modes_come_back():
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    architecture = describe(model)
    batch = tiny_batches()[0]

    def refuse(site, block, states):
        assert not model.training
        raise RuntimeError("receiver")

    with pytest.raises(RuntimeError, match="receiver"), watching(architecture, SITES, None, refuse):
        assert hooks_of(model) == 3 + 3 * len(SITES)
        model(**batch)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError), watching(architecture, SITES, None, lambda *_: None):
        model(torch.tensor([[97]]))  # not in the vocabulary
    assert hooks_of(model) == 0
    capture(model, [batch], sites=SITES)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_statistics_are_those_of_the_kept_values(family):
    model = tiny_model(family)
    batches = tiny_batches(padding="right")
    sites = sites_of(describe(model))
    streamed, kept = (capture(model, batches, sites=sites, keep=keep) for keep in (False, True))
    assert streamed.values is streamed.positions is None
    lengths = [12, 11, 10, 9, 8, 7]
    assert (kept.tokens, kept.first_tokens) == (streamed.tokens, streamed.first_tokens) == (sum(lengths) - 6, 6)
    assert kept.positions.tolist() == [[row, i] for row, length in enumerate(lengths) for i in range(1, length)]
    for key, values in kept.values.items():
        norms, statistics = values.double().norm(dim=1), streamed.statistics[key]
        torch.testing.assert_close(statistics.mean, values.mean(dim=0))
        torch.testing.assert_close(statistics.rms, values.square().mean(dim=0).sqrt())
        expected = [float(norms.mean()), float(norms.std(correction=0)), float(norms.max())]
        assert [statistics.norm_mean, statistics.norm_sd, statistics.norm_max] == pytest.approx(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_padding_nor_batches_matter(family):
    model = tiny_model(family)
    sites = sites_of(describe(model))
    rows = tiny_batches(padding="right", size=1)
    variants = {
        "left": tiny_batches(padding="left"),
        "one batch": tiny_batches(padding="right", size=6),
        "unpadded": [{"input_ids": row["input_ids"][row["attention_mask"].bool()][None]} for row in rows],
        "generator": iter(rows),
    }
    reference = capture(model, tiny_batches(padding="right"), sites=sites, keep=True)
    for name, batches in variants.items():
        other = capture(model, batches, sites=sites, keep=True)
        assert torch.equal(other.positions, reference.positions), name
        assert (other.tokens, other.first_tokens) == (51, 6)
        for key, values in reference.values.items():
            torch.testing.assert_close(other.values[key], values, atol=1e-5, rtol=1e-5, msg=name)
            torch.testing.assert_close(other.statistics[key].mean, reference.statistics[key].mean, atol=1e-5, rtol=1e-5)


def test_the_first_token_never_counts():
    model, batch = tiny_model("llama"), tiny_batches(rows=1)[0]
    seen = run(model, batch, ["up"])
    kept = capture(model, [batch], sites=["up"], keep=True)
    assert torch.equal(kept.values["up", 0], seen["up", 0][0, 1:])
    with pytest.raises(ValueError, match="one token only"):
        capture(model, [{"input_ids": torch.tensor([[5], [6]])}], sites=["up"])
    mixed = [{"input_ids": torch.tensor([[5]])}, batch]  # a batch without anything to count is no error
    assert capture(model, mixed, sites=["up"]).tokens == 11
    assert capture(model, mixed, sites=["up"], keep=True).positions[:, 0].unique().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_statistics_do_not_overflow(dtype):
    model = tiny_model("llama")
    with torch.no_grad():
        describe(model).mlps[0].rows[1].mul_(300)  # squares beyond float16's 65,504
    exact = capture(model, tiny_batches(), sites=["up"], blocks=[0])
    low = capture(model.to(dtype), tiny_batches(), sites=["up"], blocks=[0], keep=True)
    assert low.values["up", 0].dtype == dtype
    assert low.statistics["up", 0].rms.dtype == torch.float32
    torch.testing.assert_close(low.statistics["up", 0].rms, exact.statistics["up", 0].rms, rtol=0.05, atol=5)
    assert low.statistics["up", 0].norm_mean == pytest.approx(exact.statistics["up", 0].norm_mean, rel=0.02)


def test_one_forward_pass_a_batch_and_none_beyond_the_budget():
    model, calls = tiny_model("llama"), []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    capture(model, tiny_batches(), sites=SITES, keep=True)
    assert len(calls) == 3
    with pytest.raises(ValueError, match=r"66 tokens x 240 numbers.*63,360 bytes.*63,359"):
        capture(model, tiny_batches(), sites=["up", "residual"], keep=True, budget=66 * 240 * 4 - 1)
    assert len(calls) == 3
    capture(model, tiny_batches(), sites=["up", "residual"], keep=False, budget=0)


def test_the_frame_is_tidy():
    frame = capture(tiny_model("llama"), tiny_batches(), sites=["up", "mlp_out"]).frame()
    assert list(frame.columns) == ["site", "block", "rms", "norm_mean", "norm_sd", "norm_max"]
    assert frame[["site", "block"]].values.tolist() == [[s, b] for s in ("up", "mlp_out") for b in range(3)]
    assert (frame["norm_max"] >= frame["norm_mean"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": []}, "attention_out, mlp_out"),
        ({"sites": ["mlp"]}, r"attention_out, mlp_out.*\['mlp'\]"),
        ({"sites": ["up", "up"]}, "different sites"),
        ({"blocks": [3]}, "from 0 to 2"),
        ({"blocks": [1, 1]}, "repeat"),
        ({"blocks": []}, "None for all"),
        ({"batches": []}, "empty"),
        ({"batches": [torch.ones(2, 3)]}, "mapping"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        capture(model, **({"batches": tiny_batches(), "sites": ["up"]} | arguments))
    assert hooks_of(model) == 0


def test_a_dense_model_has_no_gate():
    with pytest.raises(ValueError, match=r"dense model \(gpt2\): attention_out, mlp_out, up, down_input"):
        capture(tiny_model("gpt2"), tiny_batches(), sites=["gate"])


def test_non_finite_activations_are_named():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"\('up', 1\)"):
        capture(model, tiny_batches(), sites=["up"])


# --- alignment ------------------------------------------------------------------------------------

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
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"offsets.*Slow gives none"):
        align(Slow(), pair("The ", "a", "b", " c"))
    with pytest.raises(ValueError, match="no tokens"):
        align(byte_tokenizer(False), pair("", "", "", ""))


words = st.lists(
    st.one_of(
        st.sampled_from("The female over worked neighbour knocked left-handed 12345 kind . , 🙂 né Ünder".split()),
        st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=4),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
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


def test_pair_batches_keep_the_callers_order():
    tokenizer = byte_tokenizer(False)
    ends = [" neighbour", " neighbour knocked on the door.", " doctor was", " nurse", " nurse was kind and honest."]
    given_pairs = [pair("The ", "tall", "short", end) for end in ends]
    batches = pair_batches(tokenizer, given_pairs, batch_size=2)
    assert sorted(i for batch in batches for i in batch["indices"]) == list(range(5))
    assert [len(batch["indices"]) for batch in batches] == [2, 2, 1]
    for batch in batches:
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
        for k, (index, alignment) in enumerate(zip(batch["indices"], batch["alignments"], strict=True)):
            assert alignment == align(tokenizer, given_pairs[index])
            for row, text in ((2 * k, given_pairs[index].text_a), (2 * k + 1, given_pairs[index].text_b)):
                real = batch["attention_mask"][row].bool()
                assert tokenizer.decode(batch["input_ids"][row][real]) == text
                assert real.sort(descending=True, stable=True).values.equal(real)  # padded on the right
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths == sorted(lengths)
    for bad in ({"pairs": []}, {"batch_size": 0}, {"batch_size": 1.5}):
        with pytest.raises(ValueError, match="at least"):
            pair_batches(tokenizer, **({"pairs": given_pairs} | bad))


def test_pair_batches_go_straight_into_capture():
    tokenizer = byte_tokenizer(True)
    model = tiny_model("llama", vocab_size=400)
    batches = pair_batches(tokenizer, [pair("The ", "tall", "tall", " nurse was kind"), pair("A ", "b", "c", " d")])
    kept = capture(model, batches, sites=["residual"], keep=True)
    values, rows = kept.values["residual", 2], kept.positions[:, 0]
    twins = batches[0]["indices"].index(0)  # the same text twice gives the same states twice
    torch.testing.assert_close(values[rows == 2 * twins], values[rows == 2 * twins + 1])


def test_whole_words_are_aligned_as_well():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    found = align(tokenizer, pair("w1 w2 ", "w3", "w4 w5", " w6 w7"))
    assert (found.before, found.after) == ([(1, 1)], [(3, 4), (4, 5)])
    assert found.swapped == (range(2, 3), range(2, 4)) and found.excluded == 0


# --- principal components -------------------------------------------------------------------------


def separated(shift: float) -> tuple[torch.Tensor, list[str], list[int]]:
    """40 pairs in two groups that lie apart by ``shift``; pairs differ much more than that."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(40, 2, generator=generator).repeat_interleave(2, dim=0) * 10
    states = torch.cat([places, torch.zeros(80, 30)], dim=1) + 0.1 * torch.randn(80, 32, generator=generator)
    states[1::2, 0] += shift
    return states, ["a", "b"] * 40, [i // 2 for i in range(80)]


def test_principal_components_and_their_nulls():
    states, groups, pairs_ = separated(1.0)
    result = principal_components(states, groups, within=pairs_, shuffles=199)
    centred = states.double() - states.double().mean(dim=0)
    singular = torch.linalg.svdvals(centred).square()
    torch.testing.assert_close(result.explained, (singular / singular.sum())[:10])
    torch.testing.assert_close(result.points.norm(dim=0), singular.sqrt()[:10])
    assert result.explained[:2].sum() > 0.9 > 0.2 > result.explained_shuffled[:, 2].max()
    assert result.explained_shuffled.shape == (20, 10) and result.between_shuffled.shape == (199,)
    again = principal_components(states, groups, within=pairs_, shuffles=199)
    assert torch.equal(again.between_shuffled, result.between_shuffled)


def test_labels_are_shuffled_within_pairs():
    states, groups, pairs_ = separated(1.0)
    assert principal_components(states, groups, within=pairs_).p == 0.001  # clear to anyone who compares the pairs
    assert principal_components(states, groups).p > 0.3  # drowned by the differences between pairs
    states, groups, pairs_ = separated(0.0)
    assert principal_components(states, groups, within=pairs_).p > 0.05


def test_between_is_a_share():
    states = torch.tensor([[0.0, 0, 0], [0, 1, 0], [4, 0, 0], [4, 1, 0.1]])
    result = principal_components(states, ["a", "a", "b", "b"], components=2)
    assert result.between == pytest.approx(16 / 17, abs=0.01)  # variances 4 and 1/4 along the axes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": 1}, "from 2 to width"),
        ({"components": 80}, "from 2 to width"),
        ({"shuffles": 0}, "at least 1"),
        ({"states": torch.zeros(80)}, r"\[80\]"),
        ({"groups": ["a"] * 79}, "80 items"),
        ({"within": [0] * 79}, "79"),
        ({"within": list(range(80))}, "same label"),
        ({"groups": ["a"] * 80}, "same label"),
        ({"states": torch.full((80, 32), float("nan"))}, "NaN"),
        ({"states": torch.ones(80, 32)}, "all the same"),
    ],
)
def test_bad_components_are_refused(change, message):
    states, groups, _ = separated(0.0)
    with pytest.raises(ValueError, match=message):
        principal_components(**({"states": states, "groups": groups} | change))
