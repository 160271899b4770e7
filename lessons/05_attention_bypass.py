# ---
# jupyter:
#   course:
#     title: "Attention bypass: leaving whole attentions out"
#     minutes: 60
#     hardware: cpu
#     prerequisites: lesson 04 (residual stream, random sets, one look or several, ceilings)
#     assets: [smollm2, benchmarks, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - how to measure what one attention matters: a cosine **with the residual**, and what goes wrong without it
# - which attentions to leave out: at one look, step by step, the last ones, at random
# - why a bypass must add *exactly* zero, and why no perplexity will tell you when it doesn't
# - how such a model is saved, and how the obvious way silently brings the attentions back, with random weights
# - what it buys: parameters, cache and speed, each beside the most that it *can* buy
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a Llama in architecture with 30 blocks. In the `hub` profile
# the same code runs on Llama-3.2-1B with 16. The saved outputs come from the `embedded` profile on a machine with two
# CPU cores; the next table says which.

# %% tags=["install"]

# %%
import functools
import math
import tempfile
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from course_utils.plotting import (
    choices_with_intervals,
    log_ticks,
    pruning_curve,
    scores_with_intervals,
    show_tensor,
    style,
)
from course_utils.session import start

session = start("05")
style()

# %% [markdown]
# ## Half a block
#
# A block of a Llama adds to the residual stream twice:
#
# `x = x + attention(norm(x))`, then `x = x + mlp(norm(x))`
#
# Lesson 04 took out both. Now only the attention goes, and the MLP stays. The first line becomes `x = x`.
#
# Which attention can go? He et al. (2024) ask how far it *turns* the stream: **1 − cos(x, x + attention(norm(x)))**. Here is
# a stream `x` of 5 numbers and four things that an attention might add to it.

# %%
x = torch.tensor([2.0, 1, 0, -1, 1])
additions = {
    "a whisper": torch.tensor([0.0, 0.1, 0, 0.1, 0]),
    "a shout": torch.tensor([0.0, 2, 1, 2, 0]),
    "an echo": 0.5 * x,
    "an eraser": -0.5 * x,
}
rows = torch.stack([x, *additions.values()])
ax = show_tensor(rows, title="x, and what four attentions add to it", x_label="component", y_label="")
ax.set_yticks(range(5), ["x", *additions])
plt.show()

# %% [markdown]
# *Predict before you run:* which of the four may be left out with the least harm? Now forget the residual, and compare
# `x` with the addition alone: **1 − cos(x, attention(norm(x)))**. What happens to the whisper?

# %%
added = torch.stack([*additions.values()])
toy = pd.DataFrame(
    {
        "with the residual": (1 - cosine_similarity(x, x + added, dim=-1)).tolist(),
        "without it": (1 - cosine_similarity(x, added, dim=-1)).tolist(),
        "length of the addition / length of x": (added.norm(dim=-1) / x.norm()).tolist(),
        "length after / before": ((x + added).norm(dim=-1) / x.norm()).tolist(),
    },
    index=list(additions),
)
for name, row in toy.iterrows():
    print(f"{name:<10} with the residual {abs(row.iloc[0]):.3f}, without it {row.iloc[1]:.3f}")
toy.abs().round(3)

# %% [markdown]
# Without the residual, the cosine sees only a **direction**. A whisper and a shout in the same direction get the same
# score. With it, the score also sees how much the addition weighs beside the stream. Both are blind to a change of
# length: an echo and an eraser turn nothing.

# %% [markdown]
# ## Importance on a real Llama

# %%
from course_utils.architectures import describe
from course_utils.models import load_model, variant
from course_utils.session import safe_dtype
from course_utils.texts import padded_batches, token_blocks

dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
total, vocabulary = describe(base).num_blocks, describe(base).vocab_size

calibration = token_blocks(tokenizer, "calibration", tokens=1536, length=128)  # attentions are chosen on this text …
evaluation = token_blocks(tokenizer, "evaluation", tokens=2048, length=128)  # … and judged on this one

attention = describe(base).blocks[0].self_attn
print(f"{base.config.name_or_path} in {str(dtype).removeprefix('torch.')}: {base.num_parameters():,} parameters")
print(f"{total} attentions of {sum(weight.numel() for weight in attention.parameters()):,} parameters each")
print(attention)

# %% [markdown]
# Two hooks a block. One notes `x`, which enters the block. One sits on the attention: its input is already `norm(x)`, its
# output is what will be added. That is where the residual gets lost: *a common mistake* is to hook the attention alone,
# and to compare what goes in with what comes out. The switch `residual=False` makes this mistake.


# %%
@torch.no_grad()
def importance_by_hand(model, batches, *, residual=True):
    """For each attention of a Llama, the mean over real tokens of 1 - cos(x, x + attention(norm(x)))."""
    layers = model.model.layers
    sums, tokens, entered = torch.zeros(len(layers), dtype=torch.float64), 0, {}

    def enter(number):
        def hook(block, inputs):
            entered[number] = inputs[0][real]  # x, [real tokens, hidden]

        return hook

    def leave(number):
        def hook(attention, inputs, named, output):
            x, added = entered[number].float(), output[0][real].float()  # a sum in 16 bits would lose small additions
            before, after = (x, x + added) if residual else (named["hidden_states"][real].float(), added)
            sums[number] += (1 - cosine_similarity(before, after, dim=-1)).double().sum().cpu()

        return hook

    hooks = [layer.register_forward_pre_hook(enter(i)) for i, layer in enumerate(layers)]
    hooks += [layer.self_attn.register_forward_hook(leave(i), with_kwargs=True) for i, layer in enumerate(layers)]
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        real = batch["attention_mask"].bool()
        tokens += int(real.sum())
        model.model(**batch, use_cache=False)  # the head plays no part
    for hook in hooks:
        hook.remove()
    return (sums / tokens).float()


from course_utils.attention import attention_importance

texts = ["The state of the Union", "Peace", "We need roads, schools and a longer sentence than the others."]
for batches in (padded_batches(tokenizer, texts, batch_size=1), padded_batches(tokenizer, texts, batch_size=3)):
    torch.testing.assert_close(importance_by_hand(base, batches), attention_importance(base, batches))
print("importance_by_hand equals attention_importance, with padding and without.")

with_residual = attention_importance(base, calibration.batches())
without_residual = importance_by_hand(base, calibration.batches(), residual=False)

# %% [markdown]
# *Predict before you run:* do the two agree on which attentions matter least?

# %%
COUNTS = (4, 8)  # how many attentions to leave out, in most of the lesson


def lowest(scores, count):
    return scores.argsort(stable=True)[:count].tolist()


figure, axes = plt.subplots(2, 1, figsize=(13, 8.5), sharex=True, layout="constrained")
for ax, scores, title in (
    (axes[0], with_residual, "With the residual: 1 − cos(x, x + attention)"),
    (axes[1], without_residual, "Without it: 1 − cos(norm(x), attention)"),
):
    ax.bar(range(total), scores, color=["C1" if i in lowest(scores, COUNTS[-1]) else "C0" for i in range(total)])
    ax.set_ylabel("importance")
    ax.set_title(f"{title} (orange: the {COUNTS[-1]} lowest)")
    ax.grid(axis="x", visible=False)
axes[0].set_yscale("log")
log_ticks(axes[0].yaxis)
axes[1].set_xticks(range(total))
axes[1].set_xlabel("block")
plt.show()

# %%
from course_utils.uncertainty import rank_correlation, verdict

for count in COUNTS:
    here, there = lowest(with_residual, count), lowest(without_residual, count)
    print(f"{count} lowest with the residual: {sorted(here)}; without it: {sorted(there)}")
    print(f"  in both: {len({*here} & {*there})} of {count}; chance would give {count**2 / total:.1f}")

value, low, high = rank_correlation(with_residual, without_residual)
says = verdict(low, high, below="they disagree", above="they agree", neither="no agreement shown")
print(f"Spearman's rank correlation {value:+.2f} (95 % interval {low:+.2f} to {high:+.2f}): {says}")

# %% [markdown]
# ## One look, or several?
#
# Once an attention is gone, every later block gets another stream, and the scores are no longer true. **Iterative**
# choice measures again after each removal. Mind what stays: the MLP of a block whose attention is gone still runs.
#
# `bypass_attention(model, layers)` leaves these attentions out, in place. `bypass_attention(model, [])` brings all of them
# back, so no copies are needed.

# %%
from course_utils.attention import bypass_attention, select_attention_layers


def choose_iteratively(model, batches, count):
    """Leave the least important attention out `count` times, measuring again each time."""
    chosen = []
    for _ in range(count):
        bypass_attention(model, chosen)
        scores = attention_importance(model, batches)
        scores[chosen] = math.inf  # a bypassed attention scores 0: don't take it twice
        chosen.append(int(scores.argmin()))
    bypass_attention(model, [])
    return chosen


MOST = 12
few = calibration.batches()[:1]
assert choose_iteratively(base, few, 3) == select_attention_layers(base, few, count=3)
print("choose_iteratively equals select_attention_layers, which doesn't run again what can't have changed.")

orders = {
    "one-shot": select_attention_layers(base, calibration.batches(), count=MOST, iterative=False),
    "iterative": select_attention_layers(base, calibration.batches(), count=MOST),
}
assert orders["one-shot"] == lowest(with_residual, MOST)
for name, order in orders.items():
    print(f"{name:<10} {order}")
for count in COUNTS:
    common = len({*orders["one-shot"][:count]} & {*orders["iterative"][:count]})
    print(f"in both sets of {count}: {common}")

# %% [markdown]
# A third look is the most expensive one. **Leave-one-out** bypasses each attention alone and measures the perplexity, on
# calibration text.

# %%
from course_utils.evaluation import perplexity

rows = calibration.input_ids[:3]
left_out = torch.zeros(total)
for layer in tqdm(range(total), desc="leaving out"):
    bypass_attention(base, [layer])
    left_out[layer] = perplexity(base, rows).nll
bypass_attention(base, [])
print(f"least missed when left out alone: {lowest(left_out, COUNTS[-1])} (on {rows.numel()} tokens)")

# %% [markdown]
# ## The experiment
#
# 4 and 8 attentions, chosen in five ways, beside five random sets. Everything is judged on text that chose nothing.
#
# *Predict before you run:* 8 attentions are left out. The perplexity of the best set, of the random ones, and of the set
# that forgot the residual: 1.5 times, 3 times, 100 times the unpruned one?

# %%
from course_utils.evaluation import perplexity_ratio
from course_utils.reports import shown, with_interval
from course_utils.uncertainty import below_and_above, geometric_mean


@functools.cache
def perplexity_without(*layers):
    """Perplexity of the evaluation text with these attentions bypassed, given in ascending order."""
    bypass_attention(base, layers)
    score = perplexity(base, evaluation)
    bypass_attention(base, [])
    return score


SEEDS = range(5)
choices = {}
for count in COUNTS:
    choices[count, "with residual, one-shot"] = orders["one-shot"][:count]
    choices[count, "with residual, iterative"] = orders["iterative"][:count]
    choices[count, "leave-one-out"] = lowest(left_out, count)
    choices[count, "without residual"] = lowest(without_residual, count)
    choices[count, "last"] = list(range(total - count, total))
    for seed in SEEDS:
        shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        choices[count, f"random {seed}"] = shuffled[:count].tolist()
choices = {key: sorted(layers) for key, layers in choices.items()}

unpruned = perplexity_without()
results = {key: perplexity_without(*layers) for key, layers in tqdm(choices.items(), desc="choices")}


def line(layers, score):
    return {
        "blocks": ", ".join(map(str, layers)),
        "perplexity (95 %)": with_interval(score.perplexity, score.ci_low, score.ci_high),
        "× unpruned (95 %, paired)": with_interval(*perplexity_ratio(score, unpruned)),
    }


print(f"unpruned: {with_interval(unpruned.perplexity, unpruned.ci_low, unpruned.ci_high)}")
for count in COUNTS:
    control, spread = geometric_mean(
        results[count, f"random {seed}"].perplexity / unpruned.perplexity for seed in SEEDS
    )
    print(f"{count} at random: geometric mean of {len(SEEDS)} × {shown(control)}, ×/÷ {shown(spread)} (sd)")

pd.DataFrame({key: line(choices[key], score) for key, score in results.items()}).T.rename_axis(["left out", "chosen"])

# %%
figure, axes = plt.subplots(1, 2, figsize=(15, 6), sharey=True, sharex=True, layout="constrained")
names = [name for count, name in choices if count == COUNTS[0]]
for ax, count in zip(axes, COUNTS, strict=True):
    choices_with_intervals(
        {name: results[count, name] for name in names},
        floors={"unpruned": unpruned.perplexity, "uniform guess": vocabulary},
        title=f"{count} of {total} attentions left out",
        ax=ax,
    )
axes[0].set_xlim(right=vocabulary * 12)
plt.show()

# %%
for count in COUNTS:
    at_random = [results[count, f"random {seed}"] for seed in SEEDS]
    for name in names[:5]:
        score = results[count, name]
        ratios = [perplexity_ratio(score, other) for other in at_random]
        better, worse = below_and_above((ends for _, *ends in ratios), at=1)
        print(
            f"{count} {name:<25} × {shown(score.perplexity / unpruned.perplexity):>6}; "
            f"beats {better} and loses to {worse} of {len(SEEDS)} random sets"
        )
    value, low, high = perplexity_ratio(results[count, "without residual"], results[count, "with residual, one-shot"])
    says = verdict(low, high, at=1, below="gains", above="costs", neither="makes no difference that shows:")
    print(f"{count} forgetting the residual {says} × {with_interval(value, low, high)}\n")

# %% [markdown]
# ### Does measuring again pay?
#
# For Mistral-7B without 8 attentions He et al. report 66.9 points for one-shot and 62.1 for iterative choice, and recommend
# one-shot. Their published code skips the MLP of a bypassed block while it measures again; ours runs everything that is
# still alive. What is it here?

# %%
curve = [
    {"choice": name, "attentions": n, "score": perplexity_without(*sorted(order[:n]))}
    for name, order in tqdm(orders.items(), desc="orders")
    for n in range(0, MOST + 1, 2)
] + [
    {"choice": "random", "attentions": count, "score": results[count, f"random {seed}"]}
    for count in COUNTS
    for seed in SEEDS
]
curve = pd.DataFrame(curve)
for column in ("perplexity", "ci_low", "ci_high"):
    curve[column] = [getattr(score, column) for score in curve.score]

pruning_curve(
    curve,
    x="attentions",
    y="perplexity",
    group="choice",
    x_label=f"attentions left out, of {total}",
    y_label="perplexity (lower is better)",
    floors={"unpruned": unpruned.perplexity},
    log_y=True,
    x_percent=False,
    title="Chosen with the residual, at one look or step by step",
)
plt.show()

# %%
NO_DIFFERENCE = "no difference shown"
for n in range(2, MOST + 1, 2):
    sets = [sorted(order[:n]) for order in orders.values()]
    once, steps = (perplexity_without(*layers) for layers in sets)
    if sets[0] == sets[1]:
        print(f"{n:>2} attentions: the same set, {shown(once.perplexity / unpruned.perplexity)} × unpruned")
        continue
    value, low, high = perplexity_ratio(steps, once)
    says = verdict(low, high, at=1, below="iterative is better", above="one-shot is better", neither=NO_DIFFERENCE)
    print(f"{n:>2} attentions: {says}, iterative / one-shot × {with_interval(value, low, high)}")

# %% [markdown]
# ## Picking an answer, producing a word
#
# Multiple choice can hide the damage. In He et al., Mistral-7B without 8 attentions goes from 69.3 to 69.8 on average
# over multiple-choice tasks, and from 48 to 36 on GSM8K, where a solution has to be written.
#
# So here are both kinds: ARC-Easy, where one of four answers is *picked*, and LAMBADA, where the last word of a passage is
# *produced* by greedy decoding. LAMBADA needs a name from several sentences ago, which is work for attentions. Chance and
# the majority class are drawn in. The samples are small and fixed, so read the intervals.

# %%
from course_utils.evaluation import evaluate, paired

best = orders["iterative"][: COUNTS[-1]]
middle = sorted(SEEDS, key=lambda seed: results[COUNTS[-1], f"random {seed}"].perplexity)[len(SEEDS) // 2]
arms = {
    "unpruned": [],
    f"{COUNTS[-1]} by importance, iterative": best,
    f"{COUNTS[-1]} at random (seed {middle})": choices[COUNTS[-1], f"random {middle}"],
}
DOCUMENTS = 50
answers = {}
for name, layers in tqdm(arms.items(), desc="models"):
    bypass_attention(base, layers)
    answers[name] = evaluate(base, tokenizer, ["arc_easy", "lambada_openai"], limit=DOCUMENTS)
bypass_attention(base, [])

frame = pd.concat([answer.assign(model=name) for name, answer in answers.items()])
scores_with_intervals(
    frame[frame.metric != "perplexity"],
    x="task",
    x_label=f"task ({DOCUMENTS} documents each)",
    y_label="accuracy",
    title="Picking an answer, producing a word",
)
plt.show()

# %%
for name, answer in list(answers.items())[1:]:
    for difference in paired(answers["unpruned"], answer).itertuples():
        ends = difference.ci_low, difference.ci_high
        if difference.metric == "perplexity":
            says = verdict(*ends, below="a gain", above="a loss", neither=NO_DIFFERENCE)
            print(f"{name:<28} LAMBADA's last word: perplexity {shown(difference.a)} → {shown(difference.b)}: {says}")
            continue
        scored = answer[(answer.task == difference.task) & (answer.metric == difference.metric)].iloc[0]
        floor = np.nanmax([scored.chance, scored.majority])
        says = verdict(*ends, below="a loss", above="a gain", neither=NO_DIFFERENCE)
        above = "" if scored.ci_low > floor else ", not above the floor"
        print(
            f"{name:<28} {difference.task:<15} {difference.a:.2f} → {difference.b:.2f}: {says}{above} "
            f"({difference.ci_low:+.2f} to {difference.ci_high:+.2f})"
        )

# %% [markdown]
# ## A bypass adds exactly zero
#
# Here are two ways to write an attention that "does nothing". In a Llama's block the input of the attention is already
# `norm(x)`, and what it returns is added to `x`:
#
# - `return zeros`: the block computes `x + 0`
# - `return the input`: the block computes `x + norm(x)`. *A common mistake*: handing on what came in looks like doing
#   nothing.
#
# *Predict before you run:* which perplexity does the second one have?


# %%
@contextmanager
def returning(model, layers, instead):
    """For a while, these attentions of a Llama return `instead(norm(x))`."""

    def hook(attention, inputs, named, output):
        return instead(named["hidden_states"]), None

    hooks = [model.model.layers[i].self_attn.register_forward_hook(hook, with_kwargs=True) for i in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


for count in COUNTS:
    layers = choices[count, "with residual, one-shot"]
    with returning(base, layers, instead=lambda states: states):
        mistaken = perplexity(base, evaluation)
    right = results[count, "with residual, one-shot"]
    value, low, high = perplexity_ratio(mistaken, right)
    says = verdict(low, high, at=1, below="better (!)", above="worse", neither=NO_DIFFERENCE)
    print(
        f"{count} attentions: perplexity {shown(right.perplexity)} with zeros, {shown(mistaken.perplexity)} with the "
        f"normalised input: {says}, × {with_interval(value, low, high)}"
    )

# %% [markdown]
# Seeing only the second number, would you suspect a bug? Now ask for an **equality**. Zeroing the
# output projection `o_proj` of an attention makes it add zero, and no forward pass is touched. So it is an independent
# reference, and a right bypass equals it in every bit. All in float32.
#
# The zeros go into a `variant`, a second model on the weights of the first. It gets *new* zeros: written into the old
# weights, they would stand in both models.

# %%


def silenced(model, layers):
    """A variant whose attentions in these blocks add zero, because their output projections hold zeros."""
    quiet = variant(model)
    for layer in layers:
        projection = quiet.model.layers[layer].self_attn.o_proj
        projection.weight = nn.Parameter(torch.zeros_like(projection.weight))
    return quiet


exact, _ = load_model("llama", dtype=torch.float32)
ids = evaluation.input_ids[:2, :16].to(exact.device)
layers = choices[COUNTS[0], "with residual, one-shot"]

with torch.no_grad():
    original = exact(ids, use_cache=False).logits
    reference = silenced(exact, layers)(ids, use_cache=False).logits

    candidates = {"the unpruned model": original}
    with returning(exact, layers, instead=torch.zeros_like):
        candidates["return zeros"] = exact(ids, use_cache=False).logits
    with returning(exact, layers, instead=lambda states: states):
        candidates["return the input"] = exact(ids, use_cache=False).logits
    bypass_attention(exact, layers)
    candidates["bypass_attention"] = exact(ids, use_cache=False).logits
    bypass_attention(exact, [])
    restored = exact(ids, use_cache=False).logits

for name, logits in candidates.items():
    equal = "equal, bit for bit" if torch.equal(logits, reference) else "NOT equal"
    print(f"{name:<20} {equal:<20} largest difference {(logits - reference).abs().max():.1e}")
assert torch.equal(candidates["bypass_attention"], reference)
assert torch.equal(restored, original)
print("bypass_attention(model, []) gives the original logits back, bit for bit.")

# %% [markdown]
# A quality metric says how *good* a model is. It doesn't say whether it is the model that you meant. An equality does, on
# 32 tokens, in a second.

# %% [markdown]
# ## Block 0 and the cache
#
# A bypassed attention keeps no keys and values. But transformers asks the cache how many tokens it has seen, and the cache
# asks its **first** drawer. If attention 0 is gone and its drawer stays empty, the answer is 0, and each new token is read
# as if it stood at the beginning.
#
# So we compare two ways to write the zero, on a tiny random Llama: a plain module, and `bypass_attention`. Each reads 8
# tokens at once, then one by one with a cache, then generates with and without one.


# %%
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from course_utils.language_modelling import logits_one_by_one
from course_utils.models import tiny_llama

logging.set_verbosity_error()  # transformers' report of missing weights; most logs scroll past it too
tiny = tiny_llama(blocks=5, vocab_size=vocabulary)
tiny_ids = torch.randint(vocabulary, (1, 8))


class ZeroAttention(nn.Module):
    """The obvious stand-in: adds zero, and knows nothing of the cache."""

    def forward(self, hidden_states, **_):
        return torch.zeros_like(hidden_states), None


def with_zero_modules(model, layers):
    model = variant(model)
    for layer in layers:
        model.model.layers[layer].self_attn = ZeroAttention()
    return model


def bypassed(model, layers, **options):
    model = variant(model)
    bypass_attention(model, layers, **options)
    return model


def generated(model, *, use_cache):
    settings = {"attention_mask": torch.ones_like(tiny_ids), "max_new_tokens": 10, "do_sample": False}
    return model.generate(tiny_ids, **settings, use_cache=use_cache)


@torch.no_grad()
def judged(model, layers):
    expected = bypassed(tiny, layers)(tiny_ids, use_cache=False).logits
    at_once, cached = model(tiny_ids, use_cache=False).logits, logits_one_by_one(model, tiny_ids)
    same = torch.equal(generated(model, use_cache=True), generated(model, use_cache=False))
    return {
        "at once": "right" if torch.allclose(at_once, expected, atol=1e-5) else "WRONG",
        "one by one, cache": "right" if torch.allclose(cached, expected, atol=1e-5) else "WRONG",
        "generate: cache = none": "right" if same else "WRONG",
    }


outcomes = pd.DataFrame(
    {
        (f"attention {layer} out", name): judged(model, [layer])
        for layer in (0, 2)
        for name, model in {
            "a plain module": with_zero_modules(tiny, [layer]),
            "bypass_attention": bypassed(tiny, [layer]),
            "bypass_attention, remove=True": bypassed(tiny, [layer], remove=True),
        }.items()
    }
).T
outcomes

# %%
wrong = outcomes[(outcomes == "WRONG").any(axis=1)]
for (where, name), row in wrong.iterrows():
    tests = ", ".join(row[row == "WRONG"].index)
    hidden = "; generate looks right" if row["generate: cache = none"] == "right" else ""
    print(f"{where}, {name}: wrong {tests}{hidden}")
print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} versions right in all three tests, no version raised an error")
assert not any(name.startswith("bypass") for _, name in wrong.index)

# %% [markdown]
# `generate` counts positions itself, so it can hide the mistake. `bypass_attention` writes keys and values of *width 0* into
# the drawer: no bytes, but the count is right. The same equality on the real model, with attention 0 out.
# In float64: a model without attention 0 blows rounding up, and there rounding is far from anything that matters.

# %%
exact.double()
with torch.no_grad():
    bypass_attention(exact, [0])
    cached, uncached = logits_one_by_one(exact, ids[:1]), exact(ids[:1], use_cache=False).logits
    bypass_attention(exact, [])
difference = (cached - uncached).abs().max().item()
assert difference <= 1e-10 * uncached.abs().max().item()
print(
    f"attention 0 bypassed, 16 tokens: cached against uncached {difference:.1e}, logits up to {uncached.abs().max():.0f}"
)
del exact

# %% [markdown]
# ## Saving it
#
# *Predict before you run:* a tiny Llama has a plain zero module in place of attention 2. We call `save_pretrained`, then
# plain `from_pretrained`. The file has no weights for that attention. What comes back?

# %%
careless = with_zero_modules(tiny, [2])
with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    careless.save_pretrained(folder)
    first, second = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    expected = careless(tiny_ids).logits
    distance = (first(tiny_ids).logits - expected).abs().max() / expected.abs().max()
weights = [model.model.layers[2].self_attn.q_proj.weight for model in (first, second)]
print(f"what came back in block 2: {type(first.model.layers[2].self_attn).__name__}")
print(f"its weights after loading the same folder twice: {'the same' if torch.equal(*weights) else 'different'}")
print(f"logits are off by {distance:.1%} of the largest; errors raised: 0")

# %% [markdown]
# The configuration still says "five blocks, each with an attention". So transformers builds one, finds no weights, and
# **makes them up**. It says so in a log message only.
#
# A checkpoint has to say what is missing. `save_pruned` writes `per_layer_config` into the configuration, and one Python
# file that can build such a model. Then there are three ways to load it:

# %%
from course_utils.checkpoints import load_pruned, save_pruned

pruned = bypassed(tiny, [0, 2])
with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    expected = pruned(tiny_ids).logits
    save_pruned(pruned, tokenizer, folder)
    print(
        "per_layer_config:",
        {i: entry for i, entry in pruned.config.to_dict()["per_layer_config"].items() if "skip" in entry},
    )
    loaders = {
        "load_pruned(folder)": lambda: load_pruned(folder)[0],
        "from_pretrained(folder, trust_remote_code=True)": lambda: AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True
        ),
        "LlamaForCausalLM.from_pretrained(folder)": lambda: LlamaForCausalLM.from_pretrained(folder),
    }
    for name, load in loaders.items():
        try:
            equal = torch.equal(load().eval()(tiny_ids).logits, expected)
            outcome = "logits equal, bit for bit" if equal else "logits NOT equal"
        except Exception as error:  # the point is that the last one stops
            outcome = f"stops: {type(error).__name__}"
        print(f"{name:<48} {outcome}")

# %% [markdown]
# A stock class that can't build the model stops. That is what we want: better no model than another one.
#
# There is a portable form as well. `o_proj = 0` is exactly equal, as we saw, and it is an ordinary checkpoint that any
# program reads. The price: all the work is still done, and thrown away.

# %% [markdown]
# ## "The size stays the same"
#
# It needn't. `remove=True` deletes the four projections and the norm in front of them.

# %%
from course_utils.benchmarking import kv_bytes_per_token
from course_utils.reports import model_size

versions = {"unpruned": base}
for count in COUNTS:
    versions[f"{count} removed"] = bypassed(base, orders["iterative"][:count], remove=True)
zeroed = versions[f"{COUNTS[-1]} with o_proj = 0"] = silenced(base, best)


CACHE = describe(base).cache_keyword  # what the forward calls its cache; transformers has renamed it


def cache_bytes(model, tokens):
    """What the cache really holds after reading these tokens."""
    with torch.no_grad():
        cache = model(tokens, use_cache=True)[CACHE]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


some = evaluation.input_ids[:1, :64].to(base.device)
for model in versions.values():
    assert cache_bytes(model, some) == some.numel() * kv_bytes_per_token(model)

pd.DataFrame(
    {
        name: {
            "parameters": f"{model_size(model).parameters:,}",
            "change": f"{model_size(model).parameters / model_size(base).parameters - 1:+.1%}",
            "weights, MB": f"{model_size(model).bytes / 1e6:.1f}",
            "MFLOPs a token": f"{model_size(model).flops / 1e6:.1f}",
            "cache, bytes a token": f"{kv_bytes_per_token(model):,}",
            "cache, change": f"{kv_bytes_per_token(model) / kv_bytes_per_token(base) - 1:+.1%}",
        }
        for name, model in versions.items()
    }
)

# %% [markdown]
# ## What speed can it buy?
#
# First the ceilings, from shapes alone. To *generate* a token, all weights and the whole cache have to be read once. To
# read a *prompt*, arithmetic counts. Without the removed part, this is the most that can be gained.
#
# Beside our model stands Llama-3.2-3B with 4 of its 28 attentions gone, a size for which 1.2 to 1.5 times have been
# published. It is built from its configuration, without weights.

# %%
from course_utils.benchmarking import decode_ceiling, prefill_ceiling

shape = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8}
shape |= {"vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 131072}
with torch.device("meta"):
    big, smaller = (LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=28)).to(torch.bfloat16) for _ in range(2))
    bypass_attention(smaller, [20, 21, 22, 23], remove=True)  # which ones doesn't matter for the shapes

pairs = {f"{total} blocks, {count} removed": (base, versions[f"{count} removed"]) for count in COUNTS}
pairs["Llama-3.2-3B, 4 of 28 removed"] = big, smaller
ceilings = pd.DataFrame(
    {
        name: {
            (phase, f"batch {batch}", f"context {context}"): prefill_ceiling(*pair, context=context)
            if phase == "prefill"
            else decode_ceiling(*pair, batch_size=batch, context=context)
            for phase, batch, context in (
                ("prefill", 1, 128),
                ("prefill", 1, 2048),
                ("decode", 1, 128),
                ("decode", 1, 2048),
                ("decode", 8, 2048),
                ("decode", 32, 8192),
            )
        }
        for name, pair in pairs.items()
    }
).T
assert ceilings.loc["Llama-3.2-3B, 4 of 28 removed", ("decode", "batch 1", "context 128")] < 1.035
del big, smaller
ceilings.style.format("{:.2f}")

# %%
short, long = ("decode", "batch 1", "context 128"), ("decode", "batch 32", "context 8192")
for name, row in ceilings.iterrows():
    print(f"{name:<30} one short text at most {row[short]:.2f} ×, 32 long ones at most {row[long]:.2f} ×")

# %% [markdown]
# Now measured. The models take turns, so that a busy machine touches all of them alike. First prompt and generation at
# several contexts and batches. One contestant has no attention left at all. It is useless as a model, but it tells what share
# of the *time* the attentions take.

# %%
from course_utils.benchmarking import measure_speed, speedup_text, speedup_verdict

fast_name, zero_name, none_name = f"{COUNTS[-1]} removed", f"{COUNTS[-1]} with o_proj = 0", "all removed"
timed_versions = {
    "unpruned": base,
    fast_name: versions[fast_name],
    none_name: bypassed(base, range(total), remove=True),
}
parts = []
for context, batch in tqdm([(128, 1), (512, 1), (2048, 1), (128, 8)], desc="sizes"):
    contestants = timed_versions | ({zero_name: zeroed} if (context, batch) == (128, 1) else {})
    part = measure_speed(contestants, prompt_tokens=context, new_tokens=8, batch_size=batch, rounds=6)
    parts.append(part.assign(context=context, batch=batch))
speed = pd.concat(parts, ignore_index=True)

table = speed[["phase", "batch", "context", "model", "tokens_per_second"]].copy()
table["tokens_per_second"] = [f"{value:,.0f}" for value in speed.tokens_per_second]
table["× unpruned (95 %), ≤ ceiling"] = [
    "" if row.model == "unpruned" else speedup_text(row) for row in speed.itertuples()
]
table.sort_values(["phase", "batch", "context"], ascending=[False, True, True], kind="stable").set_index(
    ["phase", "batch", "context", "model"]
)

# %% [markdown]
# Long contexts in large batches take long to read, but the cache doesn't care what is in it. So we blow one up: read one
# token a row, then repeat its keys and values to the length that we want. One step of generation then costs what it would
# after a real prompt.

# %%
from course_utils.benchmarking import time_interleaved


@torch.no_grad()
def steps_after(model, *, context, batch, steps=3):
    """A function that generates `steps` tokens for each of `batch` rows, behind a cache of about `context` tokens."""
    token = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
    cache = model(token, use_cache=True)[CACHE]
    for layer in cache.layers:
        layer.keys, layer.values = (states.repeat(1, 1, context, 1) for states in (layer.keys, layer.values))

    @torch.no_grad()
    def generate():
        for _ in range(steps):
            model(token, use_cache=True, **{CACHE: cache})
        cache.crop(-steps)  # the next round meets the same length

    assert cache.get_seq_length() == context
    return generate


rows = []
for context, batch in tqdm([(2048, 1), (512, 8), (2048, 8)], desc="sizes"):
    calls = {name: steps_after(model, context=context, batch=batch) for name, model in timed_versions.items()}
    timed = time_interleaved(calls, rounds=6).set_index("name")
    for name in (fast_name, none_name):
        row = timed.loc[name]
        rows.append(
            {
                "phase": "decode, cache blown up",
                "batch": batch,
                "context": context,
                "model": name,
                "speedup": 1 / row.ratio,
                "ci_low": 1 / row.ci_high,
                "ci_high": 1 / row.ci_low,
                "ceiling": decode_ceiling(base, timed_versions[name], batch_size=batch, context=context),
                "cache, MB": batch * context * kv_bytes_per_token(base) / 1e6,
            }
        )
    del calls
both = pd.DataFrame(rows)
deep = both[both.model == fast_name]
# If the cache were all that had to be read, the speed-up would be this:
cache_only = kv_bytes_per_token(base) / kv_bytes_per_token(versions[fast_name])
table = deep[["batch", "context", "cache, MB"]].copy()
table["cache, MB"] = [f"{value:.0f}" for value in deep["cache, MB"]]
table["× unpruned (95 %), ≤ ceiling"] = [speedup_text(row) for row in deep.itertuples()]
table.set_index(["batch", "context"])

# %%
every = pd.concat([speed, both]).set_index(["phase", "batch", "context", "model"]).sort_index()


def by_time(phase, batch, context):
    """The speed-up of leaving out some, if all attentions take equal shares of the time that they take together."""
    share = 1 - 1 / every.loc[(phase, batch, context, none_name)].speedup  # of the time, in all attentions
    return 1 / (1 - share * COUNTS[-1] / total)


lines, above = [], 0
for phase, batch, context in dict.fromkeys(key[:3] for key in every.index):
    row = every.loc[(phase, batch, context, fast_name)]
    above += row.ci_low > row.ceiling
    lines.append(
        {
            "phase": phase,
            "batch": batch,
            "context": context,
            "measured (95 %), ≤ ceiling": speedup_text(row),
            "from the share of time": f"{by_time(phase, batch, context):.2f}",
        }
    )
print(f"{above} of {len(lines)} speed-ups lie above their ceilings")
print(f"if the cache were all that is read, the limit of decoding would be {cache_only:.2f} ×")
for row in speed[speed.model == zero_name].itertuples():
    print(f"{zero_name}, {row.phase}: × {speedup_text(row)}: {speedup_verdict(row)}")
pd.DataFrame(lines).set_index(["phase", "batch", "context"])

# %% [markdown]
# A speed-up above its ceiling is a reason to look closer, and the second column does. A ceiling counts operations and bytes,
# and takes each for as fast as any other. An attention isn't like that: between its matrices stand rotations, reshaping,
# many small kernels, and (in transformers' plain cache) a copy of all keys and values at each step. So its share of the
# *time* is larger than its share of the arithmetic, and leaving it out saves more than the ceiling allows. Compare the
# measured column with the one from the share of time. On another engine, without these extras, expect what the ceilings say.

# %% [markdown]
# ## What it costs and buys


# %%
def fastest(name, phase, batch, context):
    if name == "unpruned":
        return "1"
    found = speed[(speed.model == name) & (speed.phase == phase) & (speed.batch == batch) & (speed.context == context)]
    return speedup_text(found.iloc[0]) if len(found) else "not measured"


scores = {"unpruned": unpruned, zero_name: perplexity_without(*sorted(best))}
scores |= {f"{count} removed": perplexity_without(*choices[count, "with residual, iterative"]) for count in COUNTS}
pd.DataFrame(
    {
        name: {
            "parameters": f"{model_size(model).parameters / model_size(base).parameters - 1:+.1%}",
            "cache": f"{kv_bytes_per_token(model) / kv_bytes_per_token(base) - 1:+.1%}",
            "prefill 2048": fastest(name, "prefill", 1, 2048),
            "decode, batch 1, context 128": fastest(name, "decode", 1, 128),
            "decode, batch 8, context 2048": speedup_text(deep.iloc[-1])
            if name == fast_name
            else fastest(name, "decode", 8, 2048),
            "perplexity": shown(scores[name].perplexity),
            "× unpruned (95 %, paired)": with_interval(*perplexity_ratio(scores[name], unpruned)),
        }
        for name, model in versions.items()
    }
)

# %% [markdown]
# ## Exercises

# %%
from course_utils.exercises.lesson_05 import check_adds_nothing, check_importance, check_predict

# %% [markdown]
# ### Exercise 1 · ●○○ · 10 minutes
#
# Write the importance of one attention. You get `x` and what the attention adds to it, both [rows, length, hidden], and the
# mask [rows, length], 1 for real tokens. With `residual=True` return the mean over the **real tokens** of
# 1 − cos(x, x + added), with `residual=False` of 1 − cos(x, added).
#
# The check then asks your function which of three attentions matters least, both ways.
#
# <details><summary>Hint</summary>
#
# Select with `mask.bool()` first. Then only the second argument of `cosine_similarity(…, dim=-1)` depends on `residual`.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def importance(x, added, mask, residual=True):
    real = mask.bool()
    before, added = x[real].float(), added[real].float()
    after = before + added if residual else added
    return (1 - cosine_similarity(before, after, dim=-1)).mean()


# END SOLUTION
# BEGIN STUB
# def importance(x, added, mask, residual=True):
#     ...  # your code
# END STUB
check_importance(importance)

# %% [markdown]
# ### Exercise 2 · ●●○ · 15 minutes
#
# Prove that a bypass is an identity. Write `adds_nothing(model, layer, ids)`: True if the attention of this block of a Llama
# adds **exactly** zero to the stream while the model reads `ids`, otherwise False. The check gives you bypasses that are right
# (there are three kinds) and others that a perplexity would let pass.
#
# <details><summary>Hint</summary>
#
# If the attention adds nothing, the block computes `x + block.mlp(block.post_attention_layernorm(x))`. A forward hook on
# the block gets `x` as `inputs[0]`, and the block's output. "Exactly" is `torch.equal`.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
@torch.no_grad()
def adds_nothing(model, layer, ids):
    block, seen = model.model.layers[layer], {}
    hook = block.register_forward_hook(lambda block, inputs, output: seen.update(x=inputs[0], y=output))
    model(ids, use_cache=False)
    hook.remove()
    mlp_alone = seen["x"] + block.mlp(block.post_attention_layernorm(seen["x"]))
    return torch.equal(seen["y"], mlp_alone)


# END SOLUTION
# BEGIN STUB
# def adds_nothing(model, layer, ids):
#     ...  # your code
# END STUB
check_adds_nothing(adds_nothing)

# %% [markdown]
# ### Exercise 3 · ●●○ · 15 minutes
#
# Predict, with arithmetic alone, what removing attentions buys a Llama that has `parameters` parameters, all of 2 bytes, and
# a head tied to the embedding. `removed` attentions go, with the norm in front of each. Return two numbers:
#
# - the bytes of the cache of the **pruned** model, for `batch` texts of `context` tokens
# - the decode ceiling: bytes to read for one step before, divided by bytes to read after. A step reads every weight and the
#   whole cache once.
#
# <details><summary>Hint</summary>
#
# Each attention that is left keeps keys *and* values for `config.num_key_value_heads` heads of
# `config.hidden_size // config.num_attention_heads` numbers. q and o are [hidden, hidden]; k and v are narrower where heads
# are shared. There are no biases.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def predict(config, parameters, removed, batch, context):
    hidden = config.hidden_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    weights = 2 * hidden * hidden + 2 * hidden * keys + hidden  # q and o, k and v, the norm
    one_cache = 2 * 2 * keys * batch * context  # keys and values, 2 bytes each
    before = 2 * parameters + config.num_hidden_layers * one_cache
    after = before - removed * (2 * weights + one_cache)
    return (config.num_hidden_layers - removed) * one_cache, before / after


# END SOLUTION
# BEGIN STUB
# def predict(config, parameters, removed, batch, context):
#     ...  # your code
# END STUB
check_predict(predict)

# %% [markdown]
# ## Take-aways
#
# - The importance of an attention is how far it turns the *stream*: the residual belongs inside the cosine. Keep random
#   sets beside it, and choose on other text than you judge on.
# - A good perplexity doesn't prove that the code is right. An exact equality with an independent reference does.
# - A missing attention must still count tokens for the cache, and a checkpoint must say that it is missing.
# - Bypassing saves time and cache, removing saves the weights as well, `o_proj = 0` saves nothing and runs everywhere.
# - At batch 1 and short contexts little can be gained, since the attentions' weights are a small share. The gain comes with
#   the cache, in large batches of long texts.
#
# ## References
#
# - He et al. 2024, *What Matters in Transformers? Not All Attention is Needed*, arXiv 2406.15786 (the Mistral-7B figures)
# - Men et al. 2024, *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect*, arXiv 2403.03853
# - Ainslie et al. 2023, *GQA: Training Generalized Multi-Query Transformer Models*, arXiv 2305.13245
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the idea of this lesson and the published speeds)
# - Paperno et al. 2016, *The LAMBADA dataset*, arXiv 1606.06031
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 06 lets each prompt decide how many attentions it needs.
