"""What is cut equals what the router may not choose, the scores are exact, and bad input changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import IDS, assert_reloaded, only_experts, unchanged, with_experts, without_blocks
from tiny import FAMILIES, MIXTURES, tiny_batches, tiny_model, word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from course_utils.models import families
from course_utils.models.architectures import UnsupportedArchitecture, describe
from course_utils.models.loading import variant
from course_utils.models.reports import model_size
from course_utils.pruning.checkpoints import CheckpointError, load_pruned, save_pruned
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.experts import TEXT_CRITERIA, expert_importance, prune_experts
from course_utils.pruning.width import best

CASES = {family: {} for family in MIXTURES} | {  # what else a family's configuration can ask for
    "qwen3_moe, not normalised": {"norm_topk_prob": False},
    "qwen2_moe, a dense block": {"mlp_only_layers": [1]},
    "olmoe, normalised": {"norm_topk_prob": True},
    "deepseek_v2, groups": {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
    "deepseek_v3, groups": {"n_group": 2, "topk_group": 1},
    "deepseek_v3, not normalised": {"norm_topk_prob": False},
}
everywhere = pytest.mark.parametrize("case", CASES)


def tiny_mixture(case="mixtral", **settings):
    return tiny_model(case.partition(",")[0], **CASES[case] | settings)


def best_experts(scores, keep, case):
    """In halves where the router compares two groups."""
    if not case.endswith("groups"):
        return best(scores, keep)
    return torch.cat([best(scores[:4], keep // 2), 4 + best(scores[4:], keep // 2)])


def cut(model, keep=6, seed=0):
    return prune_experts(model, expert_importance(model, "random", seed=seed), keep=keep)


def plainly_reloaded(model, folder):
    """By transformers alone."""
    return AutoModelForCausalLM.from_pretrained(save_pruned(model, word_tokenizer(), folder / "model"))


# --- surgery --------------------------------------------------------------------------------------


def test_every_known_mixture_is_tested():
    assert set(MIXTURES) == set(families.MIXTURES) and not set(MIXTURES) & set(FAMILIES)


@pytest.mark.parametrize(
    ("case", "keep"),
    [(case, keep) for case in CASES for keep in ((4, 6) if case.endswith("groups") else (2, 5))]
    + [("mixtral", 1), ("deepseek_v2", 1)],  # fewer than a token is sent to
)
@torch.no_grad()
def test_cut_equals_masked(case, keep):
    model = tiny_mixture(case)
    scores, whole = expert_importance(model, "random", seed=keep), model(IDS).logits
    expected = with_experts(model, [best_experts(own, keep, case) for own in scores])
    report = prune_experts(model, scores, keep=keep)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (whole - expected).abs().max() > 1e-3  # the mask did something
    assert (report.before.experts, report.after.experts) == (8, keep)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@everywhere
@torch.no_grad()
def test_cut_equals_masked_in_16_bits_but_for_ties(case, dtype):
    """Where two experts' logits are rounded to one number, either may be chosen."""
    model, eps = tiny_mixture(case, dtype=dtype), torch.finfo(dtype).eps
    scores = expert_importance(model, "random")
    kept = [best_experts(own, 6, case) for own in scores]
    whole = variant(model)
    prune_experts(model, scores, keep=6)
    states = torch.randn(128, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    with only_experts(whole, kept):
        masked = [mixture.router(states) for mixture in describe(whole).mixtures]
    for old, new, own, (logits, weights, numbers) in zip(
        describe(whole).mixtures, describe(model).mixtures, kept, masked, strict=True
    ):
        _, new_weights, new_numbers = new.router(states)
        chosen, instead = numbers.sort().values, own[new_numbers].sort().values
        alike = (chosen == instead).all(dim=1)
        assert alike.float().mean() > 0.8
        sizes = [logits.gather(1, which).float().sort().values for which in (chosen, instead)]
        torch.testing.assert_close(*sizes, atol=4 * eps, rtol=4 * eps)
        expected, found = old.experts(states, numbers, weights), new.experts(states, new_numbers, new_weights)
        torch.testing.assert_close(found[alike], expected[alike], atol=4 * eps * float(expected.abs().max()), rtol=0)


@settings(max_examples=25)
@given(case=st.sampled_from([*CASES]), half=st.integers(2, 4), seed=st.integers(0, 100))
def test_surgery_keeps_the_best_whole(case, half, seed):
    model = tiny_mixture(case)
    scores = expert_importance(model, "random", seed=seed)
    before = [{(type(m), name): t.clone() for m, name, t in mixture.stacked} for mixture in describe(model).mixtures]
    prune_experts(model, scores, keep=2 * half)
    for mixture, own, old in zip(describe(model).mixtures, scores, before, strict=True):
        kept = best_experts(own, 2 * half, case)
        assert len(mixture.stacked) == len(old)
        assert all(torch.equal(t, old[type(m), name][kept]) for m, name, t in mixture.stacked)
        noted = [getattr(m, "num_experts", 2 * half) for m in (mixture.owner, mixture.router, mixture.experts)]
        assert {*noted, mixture.count} == {2 * half} and mixture.top_k == 2


@pytest.mark.parametrize("family", [f for f in MIXTURES if not f.startswith(("deepseek", "glm"))])
@torch.no_grad()
def test_the_balancing_loss_knows_the_new_count(family, tmp_path):
    model = tiny_mixture(family)
    cut(model)
    losses = [m(IDS, labels=IDS, output_router_logits=True).loss for m in (model, plainly_reloaded(model, tmp_path))]
    assert torch.equal(*losses)


@pytest.mark.parametrize(("case", "rises"), [("olmoe", True), ("olmoe, normalised", False), ("mixtral", False)])
@torch.no_grad()
def test_weights_rise_only_where_the_chosen_are_not_normalised(case, rises):
    """Even those of a token that was sent to none of the experts that left."""
    model = tiny_mixture(case)
    router = describe(model).mixtures[0].router
    states = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    _, before, chosen = router(states)
    prune_experts(model, [torch.arange(8.0)] * 3, keep=6)  # 0 and 1 leave
    _, after, chosen_after = describe(model).mixtures[0].router(states)
    untouched = (chosen > 1).all(dim=1)
    assert torch.equal(chosen[untouched] - 2, chosen_after[untouched])
    rise = after[untouched] - before[untouched]
    assert untouched.any() and ((rise > 1e-4).all() if rises else rise.abs().max() < 1e-6)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MIXTURES)
def test_the_configuration_follows_under_every_name(family, tmp_path):
    model = tiny_mixture(family)
    report = cut(model, keep=2)
    assert (model.config.num_experts_per_tok, report.after.active) == (2, report.after.parameters)
    names = {families.MIXTURES[family].experts_field, *type(model.config).attribute_map} & {
        "num_experts", "num_local_experts", "n_routed_experts",
    }  # fmt: skip
    loaded = AutoConfig.from_pretrained(save_pruned(model, word_tokenizer(), tmp_path / "model"))
    assert {getattr(config, name) for config in (model.config, loaded) for name in names} == {2}


@torch.no_grad()
def test_fewer_experts_than_a_token_was_sent_to(tmp_path):
    model = tiny_mixture("mixtral", num_experts_per_tok=4)
    cut(model, keep=3)
    assert (model.config.num_experts_per_tok, describe(model).mixtures[0].top_k) == (3, 3)
    assert_reloaded(plainly_reloaded(model, tmp_path), model)


@pytest.mark.parametrize("name", ["num_local_experts", "num_experts"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_a_value_for_each_block_is_refused_under_every_name(family, name, tmp_path):
    """Under its alias, transformers reads such a value and then builds every block alike."""
    model = tiny_mixture(family)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"per_layer_config": {"1": {name: 4}}}))
    with pytest.raises(UnsupportedArchitecture, match=f"'{family}' model whose blocks differ"):
        load_pruned(folder)
    model.config.per_layer_config = {1: {name: 4}}
    with pytest.raises(UnsupportedArchitecture, match="8 experts.*says a value for each block"):
        expert_importance(model, "random")


def test_uneven_counts_are_refused():
    model = tiny_mixture()
    mixture = describe(model).mixtures[1]
    mixture.keep(torch.arange(5))
    with pytest.raises(UnsupportedArchitecture, match=r"hold 5, 8 experts.*\(num_local_experts\) says 8"):
        cut(model)


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path):
    folder = save_pruned(tiny_mixture(), word_tokenizer(), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_local_experts": 6}))
    with pytest.raises((CheckpointError, RuntimeError)):
        load_pruned(folder)


# --- what else works --------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [[1], [0, 2]])
@everywhere
@torch.no_grad()
def test_a_mixture_without_blocks_equals_one_that_passes_them_by(case, gone, tmp_path):
    """Dense blocks among those that stay get new numbers too."""
    model = tiny_mixture(case)
    if case.endswith("dense block") and gone == [0, 2]:
        pytest.skip("no expert would stay")
    expected = without_blocks(model, gone)
    report = remove_blocks(model, gone)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert report.after.blocks == model.config.num_hidden_layers == 3 - len(gone)
    assert_reloaded(plainly_reloaded(model, tmp_path), model)


@torch.no_grad()
def test_blocks_that_are_dense_in_turns_keep_their_kind(tmp_path):
    model = tiny_mixture("qwen3_moe", layers=5, decoder_sparse_step=2)  # blocks 1 and 3 hold experts
    assert describe(model).mixture_blocks == [1, 3]
    expected = without_blocks(model, [0, 1])
    remove_blocks(model, [0, 1])
    assert describe(model).mixture_blocks == [1]
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert_reloaded(plainly_reloaded(model, tmp_path), model)


def test_some_experts_must_stay():
    model = tiny_mixture("qwen2_moe, a dense block")
    with unchanged(model), pytest.raises(ValueError, match=r"blocks with experts, \[0, 2\], must stay"):
        remove_blocks(model, [0, 2])


# --- scores ---------------------------------------------------------------------------------------


def output_of(experts, number, states):
    """What one expert gives, from its own matrices."""
    up, down = experts.gate_up_proj[number], experts.down_proj[number]
    if hasattr(experts, "gate_up_proj_bias"):  # gpt-oss stores [in, out], gate and up in turns
        gated = experts._apply_gate(states @ up + experts.gate_up_proj_bias[number])
        return gated @ down + experts.down_proj_bias[number]
    gate, value = (states @ up.T).chunk(2, dim=-1)
    return (experts.act_fn(gate) * value) @ down.T


@everywhere
@torch.no_grad()
def test_scores_by_hand(case):
    model, seen = tiny_mixture(case), []
    mixtures = describe(model).mixtures
    hooks = [
        mixture.router.register_forward_hook(
            lambda router, x, out: seen.append((router, x[0].flatten(0, -2), *out[1:]))
        )
        for mixture in mixtures
    ]
    for batch in tiny_batches():
        model(**batch)
    for hook in hooks:
        hook.remove()
    found = {name: expert_importance(model, name, batches=tiny_batches()) for name in TEXT_CRITERIA}
    for number, mixture in enumerate(mixtures):
        own = [entry for entry in seen if entry[0] is mixture.router]
        states, weights, chosen = (torch.cat([entry[i] for entry in own]) for i in (1, 2, 3))
        for expert in range(8):
            token, place = torch.where(chosen == expert)
            added = weights[token, place] * output_of(mixture.experts, expert, states[token]).norm(dim=1)
            expected = {
                "frequency": len(token) / len(states),
                "reap": float(added.sum()) / max(1, len(token)),
                "reap_sum": float(added.sum()),
            }
            for name, value in expected.items():
                assert float(found[name][number][expert]) == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@everywhere
def test_scores_in_16_bits_are_those_of_the_same_numbers_in_float32(case, dtype):
    model = tiny_mixture(case, dtype=dtype)
    experts, weights, outputs = describe(model).mixtures[0].experts, [], []
    forward = experts.forward

    def seeing(states, numbers, given):
        output = forward(states, numbers, given)
        if numbers.shape[1] == 1:  # scoring asks one expert a token at a time, the model two at once
            outputs.append((numbers[:, 0], output.float()))
        return output

    experts.forward = seeing
    experts.register_forward_pre_hook(lambda _module, args: weights.extend(args[2].float().T))
    found = {}
    for name in TEXT_CRITERIA:
        weights.clear(), outputs.clear()
        found[name] = expert_importance(model, name, batches=tiny_batches())[0]
    asked, added = torch.zeros(2, 8)
    for weight, (number, output) in zip(weights, outputs, strict=True):
        asked.index_add_(0, number, torch.ones_like(weight))
        added.index_add_(0, number, weight * output.norm(dim=1))
    expected = {"frequency": asked / 72, "reap": added / asked.clamp(min=1), "reap_sum": added}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@torch.no_grad()
def test_an_expert_that_nobody_asks_for_is_worth_nothing():
    model = tiny_mixture("gpt_oss")
    describe(model).mixtures[1].router.bias[3] = -1e4
    for criterion in TEXT_CRITERIA:
        scores = expert_importance(model, criterion, batches=tiny_batches())[1]
        assert scores[3] == 0 and (scores > 0).sum() > 2


def test_random_scores_come_from_the_seed():
    model = tiny_mixture()
    first, again, other = (expert_importance(model, "random", seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mixtral", "gpt_oss", "qwen2_moe, a dense block", "deepseek_v3"])
def test_sizes_by_hand(case):
    model = tiny_mixture(case)
    report = cut(model, keep=6)
    size = model_size(model)
    assert report.after == size
    parameters = dict(model.named_parameters())
    inside = {name: weight for name, weight in parameters.items() if ".experts." in name}
    resting = sum(weight.numel() // 6 * 4 for weight in inside.values())
    assert size.parameters == sum(weight.numel() for weight in parameters.values())
    assert size.active == size.parameters - resting
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))  # the head is one
    routers = sum(mixture.router.weight.numel() for mixture in describe(model).mixtures)
    stacks = sum(weight.numel() // 6 * 2 for weight in inside.values() if weight.dim() == 3)
    assert size.flops == 2 * (linear + routers + stacks)


# --- refusals -------------------------------------------------------------------------------------

EIGHT, NAN = torch.arange(8.0), float("nan")
WRONG = [
    ("mixtral", {"keep": 0}, "from 1 to 8"),
    ("mixtral", {"keep": 9}, "from 1 to 8, the experts of each block"),
    ("mixtral", {"keep": [6, 5, 6]}, "whole number"),
    ("phimoe", {"keep": 1}, "from 2 to 8"),
    ("deepseek_v3", {"keep": 1}, "from 2 to 8"),
    ("glm4_moe", {"keep": 1}, "from 2 to 8"),
    ("deepseek_v3, groups", {"keep": 2}, "from 4 to 8"),
    ("deepseek_v2, groups", {"keep": 2}, "from 4 to 8"),
    ("deepseek_v3, groups", {"keep": 5}, "multiple of 2"),
    ("mixtral", {"importance": [EIGHT, EIGHT[1:], EIGHT]}, r"one tensor .*\(7,\)"),
    ("mixtral", {"importance": [EIGHT, EIGHT, EIGHT * NAN]}, r"\[2\]"),
    ("qwen2_moe, a dense block", {"importance": [EIGHT] * 3}, "each of 2 blocks that hold a mixture"),
]


@pytest.mark.parametrize(("case", "arguments", "message"), WRONG)
def test_bad_input_changes_nothing(case, arguments, message):
    model = tiny_mixture(case)
    usual = {"importance": [EIGHT] * len(describe(model).mixtures), "keep": 6}
    with unchanged(model), pytest.raises(ValueError, match=message):
        prune_experts(model, **usual | arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_models_have_no_experts(family):
    model = tiny_model(family)
    for action in (lambda: expert_importance(model, "random"), lambda: prune_experts(model, [EIGHT] * 3, keep=4)):
        with pytest.raises(UnsupportedArchitecture, match=r"has no experts.*pruning\.prune_neurons"):
            action()


def test_other_mixtures_are_refused_by_name():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("dots1", **MIXTURES["glm4_moe"]))
    with pytest.raises(UnsupportedArchitecture, match="'dots1'.*mixtral.*deepseek_v3"):
        expert_importance(model, "random")


class OwnExperts(type(tiny_mixture().model.layers[1].mlp.experts)):
    """As quantised checkpoints bring them, with scales beside the numbers."""


def without_router(mlps):
    del mlps[1].gate


def of_whole_numbers(mlps):
    mlps[1].experts.down_proj = torch.nn.Parameter(torch.zeros(8, 32, 48, dtype=torch.uint8), requires_grad=False)


def of_another_class(mlps):
    mlps[1].experts.__class__ = OwnExperts


def with_shared_experts(mlps):
    mlps[2].experts = mlps[0].experts


def with_shared_routers(mlps):
    mlps[2].gate.weight = mlps[0].gate.weight


ODD = {
    without_router: r"'mlp\.gate' in MixtralDecoderLayer",
    of_whole_numbers: r"'down_proj' of router and experts.*torch\.uint8\. Quantised",
    of_another_class: "found OwnExperts with Parameter",
    with_shared_experts: r"blocks 0 and 2 share weights.*copy\.deepcopy",
    with_shared_routers: r"blocks 0 and 2 share weights.*copy\.deepcopy",
}


@pytest.mark.parametrize("make", ODD)
def test_mixtures_that_could_not_be_cut_exactly_are_refused(make):
    model = tiny_mixture()
    make([layer.mlp for layer in model.model.layers])
    with pytest.raises(UnsupportedArchitecture, match=ODD[make]):
        describe(model)


def test_a_mixture_whose_blocks_are_all_dense_is_refused():
    with pytest.raises(UnsupportedArchitecture, match=r"'mlp\.experts' in 3 blocks; found none"):
        describe(tiny_mixture("qwen3_moe", mlp_only_layers=[0, 1, 2]))
