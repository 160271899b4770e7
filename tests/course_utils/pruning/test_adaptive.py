"""Each row gets its own decision, keeps it through its answer, and nothing else about the model changes."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer
from transformers import DynamicCache, GenerationConfig, StaticCache

from course_utils.measuring.evaluation import perplexity
from course_utils.models.architectures import describe
from course_utils.models.loading import variant
from course_utils.pruning.adaptive import AdaptiveConfig, ModelIdentity, calibrate, complexity, make_adaptive
from course_utils.pruning.attention import bypass_attention, select_attention_layers
from course_utils.pruning.checkpoints import ADAPTIVE_FILE, CheckpointError, load_pruned, save_pruned
from course_utils.pruning.width import neuron_importance, prune_neurons

ORDER, LEFT_OUT = (2, 0, 3), (3, 2, 1, 0)
LENGTHS = (9, 2, 5, 3)  # levels 3, 0, 2, 1 below
CACHE = describe(tiny_model()).cache_keyword
GREEDY = {"do_sample": False, "pad_token_id": 2, "eos_token_id": None}
SCALES = {"log_length": [0.0, 5.0], "variance": [0.0, 1.0]}
BY_VARIANCE = {"policy": "length_variance", "parameters": SCALES}


def by_length(model, **changes):
    """Settings under which the length alone decides: 2, 3, 5 and 9 tokens have levels 0 to 3."""
    settings = {"model": ModelIdentity.of(model), "order": ORDER, "left_out": LEFT_OUT}
    settings |= {"thresholds": (2.5, 4.0, 7.0), "policy": "length", "parameters": {}}
    return AdaptiveConfig(**settings | changes)


def four_blocks(family="llama", **settings):
    return tiny_model(family, layers=4, **settings)


def adaptive(family="llama", **settings):
    model = four_blocks(family, **settings)
    return make_adaptive(model, by_length(model))


def prompts(side="left"):
    """Four prompts of different lengths: alone, and as one padded batch."""
    generator = torch.Generator().manual_seed(3)
    alone = [torch.randint(3, 97, (1, n), generator=generator) for n in LENGTHS]
    longest = max(LENGTHS)
    ids, mask = torch.full((4, longest), 2), torch.zeros(4, longest, dtype=torch.long)
    for row, text in enumerate(alone):
        places = slice(longest - text.shape[1], None) if side == "left" else slice(text.shape[1])
        ids[row, places], mask[row, places] = text[0], 1
    return alone, {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_row_is_a_static_bypass_of_its_own(family, attention):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("transformers has no sdpa for Gemma 2")
    model = four_blocks(family, attn_implementation=attention)
    static, alone = copy.deepcopy(model), prompts()[0]
    make_adaptive(model, by_length(model))
    for ids, count in zip(alone, (0, 3, 1, 2), strict=True):
        bypass_attention(static, ORDER[:count])
        output = model(ids, use_cache=True)
        assert torch.equal(output.logits, static(ids).logits)
        assert output.past_key_values.left_out.tolist() == [count]
        assert sum(output.past_key_values.layers[i].keys.numel() for i in ORDER[:count]) == 0  # no keys are kept


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_mixed_batch_equals_single_rows(family, side):
    model = adaptive(family)
    alone, batch = prompts(side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = model(**batch, position_ids=positions).logits
    for row, ids in enumerate(alone):
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(logits[row][real], model(ids).logits[0], atol=1e-5, rtol=1e-5)


SETTINGS = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.7},
    "several": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generating_with_a_cache_equals_generating_without(family, settings):
    model, (alone, batch) = adaptive(family), prompts()
    for inputs in ({"input_ids": alone[0]}, {"input_ids": alone[1]}, batch):
        answers = []
        for use_cache in (True, False):
            torch.manual_seed(5)
            options = GREEDY | {"max_new_tokens": 9} | SETTINGS[settings]
            answers.append(model.generate(**inputs, use_cache=use_cache, **options))
        assert torch.equal(*answers)


@torch.no_grad()
def test_two_answers_that_alternate_on_one_model():
    model, (alone, _) = adaptive(), prompts()
    expected = [model.generate(ids, max_new_tokens=6, **GREEDY) for ids in alone[:2]]
    answers, caches = list(alone[:2]), [DynamicCache(config=model.config) for _ in range(2)]
    for step in range(6):
        for i in range(2):
            new = answers[i] if step == 0 else answers[i][:, -1:]
            logits = model(new, past_key_values=caches[i], use_cache=True).logits
            answers[i] = torch.cat([answers[i], logits[:, -1:].argmax(-1)], dim=1)
    assert all(map(torch.equal, answers, expected))
    assert [cache.left_out.tolist() for cache in caches] == [[0], [3]]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_second_turn_keeps_the_first_decision(family):
    model, static, ids = adaptive(family), four_blocks(family), prompts()[0][3]
    bypass_attention(static, ORDER[:2])
    answers = []
    for talking in (model, static):
        first = talking.generate(ids, max_new_tokens=4, return_dict_in_generate=True, use_cache=True, **GREEDY)
        turn = torch.cat([first.sequences, prompts()[0][0]], dim=1)
        inputs = {"attention_mask": torch.ones_like(turn), CACHE: first[CACHE]}
        answers.append(talking.generate(turn, **inputs, max_new_tokens=4, **GREEDY))
    assert torch.equal(*answers)


@torch.no_grad()
def test_a_prompts_cache_may_be_repeated_for_several_answers():
    model, ids = adaptive(), prompts()[0][1]
    cache, new = model(ids, use_cache=True)[CACHE], torch.tensor([[7], [9]])
    cache.batch_repeat_interleave(2)
    logits = model(new, **{CACHE: cache}).logits[:, -1]
    alone = torch.cat([model(one[None], **{CACHE: model(ids, use_cache=True)[CACHE]}).logits[:, -1] for one in new])
    torch.testing.assert_close(logits, alone)


@torch.no_grad()
def test_embeddings_positions_and_masks_as_inputs():
    model, ids = adaptive(), prompts()[0][0]
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(ids).logits)
    assert torch.equal(model.model(ids)[0], model.model(input_ids=ids).last_hidden_state)  # positional
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)
    answer = model.generate(inputs_embeds=embeddings, max_new_tokens=5, **GREEDY)
    assert torch.equal(answer, model.generate(ids, max_new_tokens=5, **GREEDY)[:, ids.shape[1] :])


REFUSED = {
    "num_beams=3": lambda: {"num_beams": 3},
    "num_beams=2": lambda: {"generation_config": GenerationConfig(num_beams=2)},
    "assistant_model=LlamaForCausalLM": lambda: {"assistant_model": tiny_model(layers=1)},
    "prompt_lookup_num_tokens=6": lambda: {"prompt_lookup_num_tokens": 6},
    "assistant_early_exit=1": lambda: {"assistant_early_exit": 1},
    "penalty_alpha=0.5": lambda: {"penalty_alpha": 0.5, "top_k": 4},
    "prefill_chunk_size=2": lambda: {"prefill_chunk_size": 2},
    "cache_implementation='static'": lambda: {"cache_implementation": "static"},
    "cache_implementation='paged'": lambda: {"cache_implementation": "paged"},
}


@pytest.mark.parametrize("asked", REFUSED)
@torch.no_grad()
def test_other_ways_to_answer_are_refused_by_name_before_a_block_runs(asked, monkeypatch):
    model, ids = adaptive(), prompts()[0][1]
    expected = model.generate(ids, max_new_tokens=3, **GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(type(model.model), "forward", None)  # whatever runs raises a TypeError
        with pytest.raises(ValueError, match=f"{asked}. .* greedy and sampled .* Leave {asked.split('=')[0]} out. Or"):
            model.generate(ids, max_new_tokens=3, **REFUSED[asked]())
    allowed = {"num_beams": 1, "cache_implementation": "dynamic"}
    assert torch.equal(model.generate(ids, max_new_tokens=3, **GREEDY, **allowed), expected)
    model.generation_config.num_beams = 2  # the model's own settings count as well
    with pytest.raises(ValueError, match="num_beams=2"):
        model.generate(ids, max_new_tokens=3)


@torch.no_grad()
def test_caches_and_masks_that_say_nothing_about_the_prompt_are_refused():
    model, ids = adaptive(), prompts()[0][0]
    cache = model(ids.expand(2, -1), use_cache=True).past_key_values
    for move in (cache.reorder_cache, cache.batch_select_indices):
        with pytest.raises(ValueError, match="Start each answer with a cache of its own"):
            move(torch.tensor([0]))
    for message, inputs in {
        "holds 2 rows, this forward pass 1": {"past_key_values": cache},
        "Start the answer with a new cache": {"past_key_values": four_blocks()(ids, use_cache=True).past_key_values},
        "Got a StaticCache. .* Give a new DynamicCache": {
            "past_key_values": StaticCache(model.config, max_cache_len=20)
        },
        r"another attention mask than \[rows, tokens\]": {"attention_mask": torch.ones(1, 1, 9, 9)},
    }.items():
        with pytest.raises(ValueError, match=message):
            model(**{"input_ids": ids} | inputs)
    with pytest.raises(ValueError, match="Continuous batching packs prompts into one row"):
        model.generate_batch([[7, 7], [7, 9, 7]])
    make_adaptive(model, None)
    assert not {"generate", "init_continuous_batching"} & set(vars(model))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_computed_twice_have_the_same_gradients(family, reentrant):
    """The second computation runs in the backward pass, when another prompt may have decided since."""
    model, (alone, batch) = adaptive(family, **NO_DROPOUT.get(family, {})), prompts()
    gradients = []
    for action in ("disable", "enable"):
        model.train()
        checkpointing(model, action, *([{"use_reentrant": reentrant}] if action == "enable" else []))
        model.zero_grad()
        loss = model(**batch, labels=batch["input_ids"], use_cache=False).loss
        with torch.no_grad():
            model(alone[0], use_cache=False)
        loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"dropout": 0.0},
}


def checkpointing(model, action, *arguments):
    """Renamed on the way to transformers 5.24."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_{action}")(*arguments)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_none_restores_the_model(family):
    model = four_blocks(family)
    bypass_attention(model, [])  # writes sizes that GPT-2's configuration leaves open
    before, config = model(prompts()[0][1]).logits, model.config.to_dict()
    make_adaptive(model, by_length(model))
    make_adaptive(model, by_length(model, left_out=(1, 1, 1, 1)))  # settings can be replaced
    assert not torch.equal(model(prompts()[0][1]).logits, before)
    make_adaptive(model, None)
    assert torch.equal(model(prompts()[0][1]).logits, before)
    assert model.config.to_dict() == config
    assert "forward" not in vars(describe(model).backbone)
    bypass_attention(model, [0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_checkpoints(family, dtype, tmp_path):
    model = four_blocks(family, dtype=dtype)
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.25, layers=[1])
    bypass_attention(model, [1], remove=True)
    config = by_length(model)
    make_adaptive(model, config)
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    assert AdaptiveConfig.load(folder / ADAPTIVE_FILE) == config
    reloaded, _ = load_pruned(folder)
    for ids in prompts()[0]:
        assert torch.equal(reloaded(ids).logits, model(ids).logits)
    decided, twin = prompts()[0][1], make_adaptive(copy.deepcopy(model), None)
    assert not torch.equal(reloaded(decided).logits, twin(decided).logits)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        type(model).from_pretrained(folder)
    make_adaptive(reloaded, None)
    assert AdaptiveConfig.load(save_pruned(model, word_tokenizer(), tmp_path / "again") / ADAPTIVE_FILE) == config
    assert not (save_pruned(reloaded, word_tokenizer(), tmp_path / "model") / ADAPTIVE_FILE).exists()


@torch.no_grad()
def test_the_configuration_counts_and_the_readable_file_is_never_read(tmp_path):
    model, ids = adaptive(), prompts()[0][1]
    folder = save_pruned(model, word_tokenizer(), tmp_path / "model")
    readable, config = folder / ADAPTIVE_FILE, json.loads((folder / "config.json").read_text())
    assert json.loads(readable.read_text()) == config["adaptive_attention"]
    readable.write_text(readable.read_text().replace('"length_variance"', '"guess"'))
    assert torch.equal(load_pruned(folder)[0](ids).logits, model(ids).logits)
    readable.unlink()
    assert torch.equal(load_pruned(folder)[0](ids).logits, model(ids).logits)
    config["adaptive_attention"]["left_out"] = [0, 0, 0, 0]
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_pruned(folder)[0](ids).logits, four_blocks()(ids).logits)


def test_a_checkpoint_with_broken_settings_is_refused(tmp_path):
    folder = save_pruned(adaptive(), word_tokenizer(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["adaptive_attention"]["left_out"] = [1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'thresholds' must hold 0"):
        load_pruned(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": (4,)}, r"in 'order' must lie from 0 to 3; got \[4\]"),
        ({"left_out": (4, 2, 1, 0)}, "'left_out' must hold whole numbers from 0 to 3, the attentions in 'order'"),
        ({"left_out": ()}, "'left_out' is empty"),
        ({"thresholds": (1.0, 2.0)}, "'thresholds' must hold 3"),
        ({"thresholds": (1.0, 3.0, 2.0)}, "never falling"),
        ({"thresholds": (1.0, 2.0, math.nan)}, "finite"),
        ({"policy": "guess"}, "length_variance, length; got 'guess'"),
        ({"parameters": SCALES}, r"'parameters' must be \{\} for the policy 'length'"),
        (BY_VARIANCE | {"parameters": {"log_length": [0.0, 1.0]}}, r"'log_length' and 'variance', each \[low, high\]"),
        (BY_VARIANCE | {"parameters": SCALES | {"variance": [1.0, 1.0]}}, r"exactly .*\[1.0, 1.0\]"),
        (BY_VARIANCE | {"parameters": SCALES | {"log_length": [0.0, math.inf]}}, "both finite"),
        (BY_VARIANCE | {"parameters": [0.0, 1.0]}, "exactly"),
    ],
)
def test_invalid_settings(change, message):
    with pytest.raises(ValueError, match=message):
        by_length(four_blocks(), **change)


def test_settings_as_dictionaries_and_lists(tmp_path):
    config = by_length(four_blocks())
    good = config.to_dict()  # as JSON has them: lists
    assert AdaptiveConfig.from_dict(good) == config and AdaptiveConfig.from_dict(good).to_dict() == good
    assert [config.level(score) for score in (2.4, 2.5, 7.0)] == [0, 1, 3]
    for bad, message in (({}, "exactly model, order"), (good | {"more": 1}, "more")):
        with pytest.raises(ValueError, match=message):
            AdaptiveConfig.from_dict(bad)
    with pytest.raises(ValueError, match=r"nowhere.json"):
        AdaptiveConfig.load(tmp_path / "nowhere.json")


def other_weights():
    """Another model by one number in the middle, with the embedding as it was."""
    model = four_blocks()
    with torch.no_grad():
        weight = describe(model).mlps[1].columns
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: four_blocks("qwen2"), "another model .*model_type llama, here qwen2"),
        (lambda: tiny_model(layers=5), r"another model \(blocks 4, here 5; parameters [0-9]+, here [0-9]+\)"),
        (other_weights, "of the same shape, but with other weights"),
        (lambda: four_blocks(rms_norm_eps=0.1), "or another configuration"),
        (lambda: four_blocks(dtype=torch.bfloat16), r"another model \(dtype float32, here bfloat16\). Load that one"),
    ],
)
@torch.no_grad()
def test_settings_of_another_model_are_refused(other, message):
    config, ids, model = by_length(four_blocks()), prompts()[0][1], other()
    for own in (None, by_length(model)):
        make_adaptive(model, own)
        before, told = model(ids).logits, model.config.to_dict()
        with pytest.raises(ValueError, match=message):
            make_adaptive(model, config)
        assert torch.equal(model(ids).logits, before) and model.config.to_dict() == told


def test_attentions_that_are_bypassed_already_are_refused():
    config, model = by_length(four_blocks()), four_blocks()
    bypass_attention(model, [3])
    with pytest.raises(ValueError, match=r"blocks \[3\] are bypassed already"):
        make_adaptive(model, config)
    bypass_attention(model, [1])  # not in the order, but the order was found with it
    with pytest.raises(ValueError, match="or another configuration"):
        make_adaptive(model, config)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_settings_travel_with_the_model(family, tmp_path):
    """To a variant, a copy, and a checkpoint in the same dtype, adaptive or not."""
    model, tokenizer = four_blocks(family, dtype=torch.bfloat16), word_tokenizer()
    config, ids = by_length(model), prompts()[0][1]
    plain = load_pruned(save_pruned(model, tokenizer, tmp_path / "plain"))[0]
    expected = make_adaptive(variant(model), config)(ids).logits
    again = load_pruned(save_pruned(make_adaptive(variant(model), config), tokenizer, tmp_path / "adaptive"))[0]
    restored = make_adaptive(make_adaptive(variant(model), config), None)
    for other in (model, copy.deepcopy(model), plain, again, restored):
        assert ModelIdentity.of(other) == config.model
        assert torch.equal(make_adaptive(other, config)(ids).logits, expected)


@torch.no_grad()
def test_reading_an_identity_changes_nothing():
    for model in (four_blocks("gpt2"), adaptive("gpt2")):
        config, told = model.config, model.config.to_dict()
        ModelIdentity.of(model)
        assert model.config is config and config.to_dict() == told


def test_an_adaptive_model_must_stay_as_it_is():
    model = adaptive()
    for surgery in (
        lambda: bypass_attention(model, [1]),
        lambda: select_attention_layers(model, tiny_batches(), count=1),
        lambda: calibrate(model, word_tokenizer(), TEXTS),
    ):
        with pytest.raises(ValueError, match=r"make_adaptive\(model, None\)"):
            surgery()


TEXTS = [" ".join(f"w{(7 * i + j * j) % 90 + 3}" for j in range(3 + i)) for i in range(24)]


@pytest.fixture
def tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w2"
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_calibrate(family, tokenizer):
    model = four_blocks(family)
    before = model(prompts()[0][0]).logits
    config = calibrate(model, tokenizer, TEXTS, left_out=(3, 1, 0))
    assert torch.equal(model(prompts()[0][0]).logits, before)
    batches = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    assert list(config.order) == select_attention_layers(model, batches, count=3)
    lengths = torch.tensor([batch["input_ids"].shape[1] for batch in batches], dtype=torch.float64)
    assert torch.equal(complexity(model, batches, by_length(model)), lengths)
    scores = complexity(model, batches, config)
    levels = [config.level(score) for score in scores]
    assert [levels.count(i) for i in range(3)] == [8, 8, 8]
    make_adaptive(model, config)
    for batch, level in zip(batches, levels, strict=True):
        cache = model(input_ids=batch["input_ids"], use_cache=True).past_key_values
        assert cache.left_out.tolist() == [config.left_out[level]]
    assert perplexity(model, prompts()[0][0]).tokens == 8


@torch.no_grad()
def test_scales_reach_from_the_5th_to_the_95th_percentile(tokenizer):
    """Of 21 prompts these are the second least and the second largest value."""
    model = four_blocks()
    texts = [" ".join(f"w{(7 * i + j * j) % 90 + 3}" for j in range(1 + (8 * i) % 21)) for i in range(21)]
    embed = model.get_input_embeddings()
    prompts = [embed(tokenizer(text, return_tensors="pt").input_ids[0]) for text in texts]
    variances = sorted(float(prompt.var(0, unbiased=False).mean()) for prompt in prompts)
    config = calibrate(model, tokenizer, texts)
    assert config.parameters["log_length"] == pytest.approx([math.log(2), math.log(20)])
    assert config.parameters["variance"] == pytest.approx([variances[1], variances[19]])


def test_bad_input(tokenizer):
    model = four_blocks()
    cases = [
        ({"prompts": TEXTS[:2]}, "at least 3 texts; got 2"),
        ({"prompts": TEXTS, "left_out": (5, 0)}, "from 0 to 4"),
        ({"prompts": [TEXTS[5]] * 5}, "all alike in log_length and variance"),
        ({"prompts": [*TEXTS, ""]}, "no tokens"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            calibrate(model, tokenizer, **settings)
