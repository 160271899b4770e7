"""Lesson 05's checks refuse the stub, name the likely mistake, and accept the answers."""

import random

import numpy as np
import pytest
import torch
from exercise_cases import cases_of
from torch.nn.functional import cosine_similarity
from transformers import LlamaForCausalLM

from course_utils.attention import bypass_attention, select_attention_layers
from course_utils.benchmarking import decode_estimate, kv_bytes_per_token
from course_utils.evaluation import Perplexity
from course_utils.exercises import lesson_05
from course_utils.modeling.no_attention import skip_attention
from course_utils.models import tiny_llama
from course_utils.texts import TokenBlocks


def importance(x, added, mask, residual=True):
    real = mask.bool()
    return (1 - cosine_similarity(x[real], (x + added if residual else added)[real], dim=-1)).mean()


def always_with(x, added, mask, residual):
    return importance(x, added, mask)


def the_other_way(x, added, mask, residual):
    return importance(x, added, mask, not residual)


def addition_against_sum(x, added, mask, residual):
    real = mask.bool()
    return (1 - cosine_similarity(added[real], (x + added)[real], dim=-1)).mean()


def with_padding(x, added, mask, residual):
    return importance(x, added, torch.ones_like(mask), residual)


def divided_by_all(x, added, mask, residual):
    return ((1 - cosine_similarity(x, x + added if residual else added, dim=-1)) * mask).mean()


def by_rows(x, added, mask, residual):
    return torch.stack([importance(*row, residual) for row in zip(x, added, mask, strict=True)]).mean()


def one_cosine(x, added, mask, residual):
    after = x + added if residual else added
    return 1 - cosine_similarity(x[mask.bool()].flatten(), after[mask.bool()].flatten(), dim=0)


@torch.no_grad()
def block_of(model, layer, ids):
    """What enters and leaves a block, and what would leave it without its attention."""
    block, seen = model.model.layers[layer], {}
    hook = block.register_forward_hook(lambda block, inputs, output: seen.update(x=inputs[0], y=output))
    model(ids, use_cache=False)
    hook.remove()
    return seen["x"], seen["y"], seen["x"] + block.mlp(block.post_attention_layernorm(seen["x"]))


def adds_nothing(model, layer, ids):
    _, leaves, expected = block_of(model, layer, ids)
    return torch.equal(leaves, expected)


def adds_little(model, layer, ids):
    _, leaves, expected = block_of(model, layer, ids)
    return torch.allclose(leaves, expected, atol=1e-2)


def adds_nothing_at_first(model, layer, ids):
    _, leaves, expected = block_of(model, layer, ids)
    return torch.equal(leaves[:, 0], expected[:, 0])


def always_block_0(model, layer, ids):
    return adds_nothing(model, 0, ids)


def looks_at_the_code(model, layer, ids):
    forward = model.model.layers[layer].self_attn.forward
    return getattr(forward, "__func__", None) is skip_attention


def returns_its_input(model, layer, ids):
    """Asks whether the attention hands on what came in."""
    answers = []
    attention = model.model.layers[layer].self_attn
    hook = attention.register_forward_hook(
        lambda module, inputs, named, output: answers.append(torch.equal(output[0], named["hidden_states"])),
        with_kwargs=True,
    )
    model(ids, use_cache=False)
    hook.remove()
    return answers[0]


def leaves_a_hook(model, layer, ids):
    model.model.layers[layer].register_forward_hook(lambda block, inputs, output: inputs[0])
    return True


def predict(config, parameters, removed, batch, context, *, both=2, heads=None, width=2, norm=True, upside=False):
    hidden = config.hidden_size
    keys = hidden // config.num_attention_heads * (heads or config.num_key_value_heads)
    weights = 2 * hidden * hidden + width * hidden * keys + hidden * norm
    cache = both * 2 * keys * batch * context
    before = 2 * parameters + config.num_hidden_layers * cache
    after = before - removed * (2 * weights + cache)
    return (config.num_hidden_layers - removed) * cache, after / before if upside else before / after


def with_cache(change):
    """The right estimate beside a changed cache."""
    return lambda *sizes: (change(*sizes), predict(*sizes)[1])


def with_estimate(change):
    """The right cache beside a changed estimate."""
    return lambda *sizes: (predict(*sizes)[0], change(*sizes))


def wide_k_and_v(config, parameters, removed, batch, context):
    cache = 4 * 32 * batch * context
    before = 2 * parameters + config.num_hidden_layers * cache
    return before / (before - removed * (2 * (4 * config.hidden_size**2 + config.hidden_size) + cache))


def only_the_cache(config, parameters, removed, batch, context):
    cache = 4 * 32 * batch * context
    before = 2 * parameters + config.num_hidden_layers * cache
    return before / (before - removed * cache)


def test_the_check_predicts_what_is_counted():
    with torch.device("meta"):
        base, pruned = (LlamaForCausalLM(lesson_05._CONFIG).to(torch.bfloat16) for _ in range(2))
    assert base.num_parameters() == lesson_05._PARAMETERS
    bypass_attention(pruned, [1, 2, 3], remove=True)
    cache, estimate = predict(lesson_05._CONFIG, lesson_05._PARAMETERS, 3, 2, 1000)
    assert cache == 2 * 1000 * kv_bytes_per_token(pruned)
    assert estimate == pytest.approx(decode_estimate(base, pruned, batch_size=2, context=1000), rel=1e-12)


test_importance = cases_of(
    lesson_05.check_importance,
    stubs=[lambda x, added, mask, residual=True: ...],
    mistakes=[
        (always_with, "residual=False: that is the other one"),
        (the_other_way, "residual=True: that is the other one"),
        (addition_against_sum, "compare the addition with the sum"),
        (lambda *states: 1 - importance(*states), "the cosine itself"),
        (with_padding, "padded positions count"),
        (divided_by_all, "divide by their number"),
        (by_rows, "average each row first"),
        (one_cosine, "one cosine over all tokens"),
        (lambda x, *_: 1 - cosine_similarity(x, 2 * x, dim=-1), "Return one number"),
        (lambda *states: 2 * importance(*states), "for the check's random states"),
    ],
    answers=[importance, lambda *states: importance(*states).item()],
)


test_adds_nothing = cases_of(
    lesson_05.check_adds_nothing,
    stubs=[lambda model, layer, ids: ...],
    mistakes=[
        (lambda model, layer, ids: True, "still there"),
        (lambda model, layer, ids: False, "refuses a bypass that is right"),
        (lambda model, layer, ids: 0, "Return True or False"),
        (adds_little, "torch.equal, not allclose"),
        (adds_nothing_at_first, "lets a wrong bypass pass"),
        (always_block_0, "refuses a bypass that is right"),
        (looks_at_the_code, "o_proj is zero"),
        (returns_its_input, "refuses a bypass that is right"),
        (leaves_a_hook, "changed the model"),
    ],
    answers=[adds_nothing, lambda *case: torch.tensor(adds_nothing(*case))],
)


test_predict = cases_of(
    lesson_05.check_predict,
    stubs=[
        lambda config, parameters, removed, batch, context: ...,
        lambda config, parameters, removed, batch, context: (1, ...),
    ],
    mistakes=[
        (with_cache(lambda *s: predict(s[0], s[1], 0, *s[3:])[0]), "the unpruned model"),
        (with_cache(lambda *s: predict(*s, both=1)[0]), "half of it is missing"),
        (with_cache(lambda *s: predict(*s)[0] / 4), "a factor 4"),
        (with_cache(lambda *s: predict(*s, heads=8)[0]), "counts all heads"),
        (with_cache(lambda *s: predict(*s[:3], 1, s[4])[0]), "one text of the batch"),
        (with_estimate(lambda *s: predict(*s, upside=True)[1]), "upside down"),
        (with_estimate(only_the_cache), "only the cache off"),
        (with_estimate(lambda *s: predict(*s[:3], 1, 0)[1]), "the cache is missing"),
        (with_estimate(wide_k_and_v), "narrower than q and o"),
        (with_estimate(lambda *s: predict(*s, norm=False)[1]), "the norm in front"),
    ],
    answers=[predict],
)


def control_sets(chosen, total, *, sets=19, size=None, lowest=0, highest=0, among=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pool = torch.tensor(among if among is not None else range(lowest, total - highest))
    return [pool[torch.randperm(len(pool), generator=generator)[: size or len(chosen)]].tolist() for _ in range(sets)]


test_control_sets = cases_of(
    lesson_05.check_control_sets,
    stubs=[lambda chosen, total: ...],
    mistakes=[
        (lambda chosen, total: control_sets(chosen, total, sets=5), "p = 1/6 = 0.17"),
        (lambda chosen, total: control_sets(chosen, total, sets=100), "more than it takes"),
        (lambda chosen, total: control_sets(chosen, total, size=4), "the same number"),
        (
            lambda chosen, total: control_sets(chosen, total, among=[i for i in range(total) if i not in chosen]),
            "avoid the chosen",
        ),
        (lambda chosen, total: control_sets(chosen, total, lowest=3, highest=3), "first and last"),
        (lambda chosen, total: [list(range(i, i + len(chosen))) for i in range(19)], "run of neighbours"),
        (lambda chosen, total: 19 * control_sets(chosen, total, sets=1), "the same one"),
        (lambda chosen, total: [random.choices(range(total), k=len(chosen)) for _ in range(19)], "twice"),
        (lambda chosen, total: control_sets(chosen, total, seed=random.randrange(10**9)), "Fix the seed"),
        (lambda chosen, total: [[number + total for number in chosen]], "run from 0"),
        (lambda chosen, total: [], "empty"),
    ],
    answers=[control_sets, lambda chosen, total: [set(drawn) for drawn in control_sets(chosen, total)]],
)


test_not_shown = cases_of(
    lesson_05.check_not_shown,
    stubs=[..., None],
    mistakes=[
        ({"B"}, "C is not shown"),
        ({"B", "C"}, "64 tokens"),
        ({"C", "D"}, "one small model"),
        ({"B", "C", "D"}, "19 random sets"),
        ({"A", "B", "C", "D", "F"}, "A is shown"),
        ({"B", "C", "D", "E", "F"}, "E is shown"),
        ({"G"}, "A to F"),
    ],
    answers=[{"B", "C", "D", "F"}, "bcdf", ["F", "D", "C", "B"]],
)


@pytest.fixture
def scored(monkeypatch):
    """A tiny model, its published choice, and another one that made-up scores call better."""
    model = tiny_llama(blocks=8)
    ids = torch.randint(97, (16, 12), generator=torch.Generator().manual_seed(0))
    sizes = torch.full((8,), 12)
    calibration = TokenBlocks(ids[:8], sizes, "speeches", "calibration")
    held_out = TokenBlocks(ids[8:], sizes, "speeches", "evaluation")
    published = select_attention_layers(model, calibration.batches(), count=2, iterative=False)
    *better, doubtful, _, _, _ = (i for i in range(8) if i not in published)
    losses = {(): 1.0, tuple(sorted(better)): 1.5, tuple(sorted(published)): 2.0}
    noise = np.array([0.4, -0.4] * 4)

    def score(_model, layers, rows):
        assert rows is held_out
        nll = losses.get(tuple(sorted(layers)), 1.95 if doubtful in layers else 3.0) + noise * (doubtful in layers)
        row_nll = np.broadcast_to(nll, (8,)) * 11.0
        return Perplexity(
            perplexity=float(np.exp(np.mean(nll))), bits_per_byte=1.0, nll=float(np.mean(nll)), tokens=88, ci_low=0.0,
            ci_high=9.0, row_nll=row_nll, row_tokens=np.full(8, 11), row_bytes=None, dtype="float32", fingerprint="",
        )  # fmt: skip

    monkeypatch.setattr(lesson_05, "_without", score)
    return (model, calibration, held_out), published, better, doubtful


def test_choice_is_judged_on_held_out_text(scored, capsys):
    given, published, better, doubtful = scored
    _, calibration, _ = given
    worse = [i for i in range(8) if i not in (*published, *better, doubtful)][:2]

    def leaves_it_bypassed(model, batches, count):
        bypass_attention(model, better)
        return better

    def looks_at_its_text(model, batches, count):
        assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), calibration.input_ids)
        return torch.tensor(better)

    cases = {
        "not solved yet": lambda *_: ...,
        "2 layers were asked for": lambda *_: [1],
        "stands twice": lambda *_: [1, 1],
        "run from 0 to 7": lambda *_: [1, 8],
        "Bring the model back": leaves_it_bypassed,
        "the published choice itself": lambda *_: published[::-1],
        "cost more than the published": lambda *_: worse,
        "may be luck": lambda *_: [doubtful, better[0]],
        "correct.": looks_at_its_text,
    }
    for says, choose in cases.items():
        assert lesson_05.check_choice(choose, *given) is (says == "correct.")
        out = capsys.readouterr().out
        assert says in out, out
        assert ("held-out tokens" in out) == (says in ("cost more than the published", "may be luck", "correct."))
