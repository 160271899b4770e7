# ---
# jupyter:
#   course:
#     title: "Attention bypass: leaving whole attention layers out"
#     minutes: 115
#     prerequisites: lesson 04 (residual stream, random sets, leave-one-out, speed estimates)
#     assets: [smollm2, benchmarks, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - how to measure how much one attention layer matters: a cosine **with the residual**, and what goes wrong without it
# - which attention layers to leave out, and whether the published choice is better than a random one
# - whether attention really is more redundant than MLPs: layer for layer, and parameter for parameter
# - why a bypass must add *exactly* zero, and why no perplexity will tell you when it doesn't
# - how such a model is saved, and how the obvious way silently brings the layers back, with random weights
# - what it buys: parameters, cache and speed, each beside what arithmetic leads you to expect
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a small Llama in architecture. Its weights come from a 4-bit
# file; nothing here is judged by the size of a weight. In the `hub` profile the same code runs on Llama-3.2-1B. The saved
# outputs come from the `embedded` profile on a machine with two CPU cores; the next table says which.

# %% [markdown] tags=["notes"]
# **The point:** measure how far an attention layer turns the stream, with the residual inside the cosine. And prove that a
# bypass adds nothing.
#
# **Usual questions:** "So attention is useless?" Layer for layer, attention is cheaper to lose than MLPs. At equal parameters
# that depends on how the layers are chosen, and by leave-one-out whole blocks were the cheapest cut there. And neither a
# perplexity nor a multiple-choice accuracy shows all that is lost.
#
# **Wrong turns:** adding the normalised input instead of nothing (exercise 4, in pairs); a missing layer that no longer counts
# tokens for the cache.
#
# **At the end you have** a bypass that adds exactly nothing, proved, and what leaving attention out costs and saves.

# %% tags=["install"]

# %%
import functools
import itertools
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

from course_utils import diagrams
from course_utils.plotting import against_random, log_ticks, rows_with_intervals, show, show_tensor, style
from course_utils.session import start

session = start("05")
style()

# %%
# The sizes that decide how long the lesson runs.
LENGTH = 64  # tokens a row
POOL = {"calibration": 98_304, "evaluation": 196_608}  # tokens of each split that rows are drawn from
CHOOSING, JUDGING, HELD_OUT = 8, 8, 14  # rows that choose; that judge; that only the check of exercise 6 reads
SEEDS = range(19)  # random sets; the fewest whose beating gives p = .05
DOCUMENTS = 40  # of ARC-Easy and of LAMBADA

# %% [markdown]
# ## Half a block
#
# A block of a Llama adds to the residual stream twice:
#
# `x = x + attention(norm(x))`, then `x = x + mlp(norm(x))`
#
# Lesson 04 took out both. Now only the attention layer goes, and the MLP stays. The first line becomes `x = x`.

# %%
diagrams.attention_bypass()
show(
    "Two Llama blocks side by side on a residual stream. In the left one attention and MLP both read the stream and add to "
    "it, and the attention fills a cache. In the right one attention and cache are crossed out, and the MLP still adds."
)

# %% [markdown]
# On the left is a whole block, on the right the same block with its attention layer bypassed. The stream runs straight
# through, the MLP works on, and no keys or values are stored.
#
# Which attention layer can go? He et al. (2024) ask how far it *turns* the stream:
# **1 − cos(x, x + attention(norm(x)))**. Here is a stream `x` of 5 numbers and four things that an attention layer might
# add to it. The whisper is a tenth of the shout, in exactly the same direction.

# %%
x = torch.tensor([2.0, 1, 0, -1, 1])
shout = torch.tensor([0.0, 2, 1, 2, 0])
additions = {"a whisper": 0.1 * shout, "a shout": shout, "an echo": 0.5 * x, "an eraser": -0.5 * x}
rows = torch.stack([x, *additions.values()])
ax = show_tensor(rows, title="x, and what four attention layers add to it", x_label="component", y_label="")
ax.set_yticks(range(5), ["x", *additions])
show(
    "Five rows of five numbers: the stream x, then what is added by a whisper, a shout, an echo and an eraser. The whisper "
    "is the shout in small; the echo is half of x, the eraser minus half of x."
)

# %% [markdown]
# Read the rows as arrows. Whisper and shout point the same way and differ in length only; echo and eraser lie along `x`
# itself, one forward, one backward.
#
# **Predict before you run.** Which of the four may be left out with the least harm? And what happens to the whisper if you
# forget the residual and compare `x` with the addition alone, **1 − cos(x, attention(norm(x)))**?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# With the residual the whisper scores 0.006 and the shout 0.339: the whisper can go. Without it both score 1.000. Echo and
# eraser turn nothing, so they score 0.000 with the residual, although the eraser halves the stream (length 0.50 times as
# large).
#
# </details>

# %%
added = torch.stack([*additions.values()])
toy = pd.DataFrame(
    {
        "with the residual": 1 - cosine_similarity(x, x + added, dim=-1),
        "without it": 1 - cosine_similarity(x, added, dim=-1),
        "length of the addition / of x": added.norm(dim=-1) / x.norm(),
        "length after / before": (x + added).norm(dim=-1) / x.norm(),
    },
    index=list(additions),
)
toy.abs().map("{:.3f}".format)

# %% [markdown]
# Without the residual, the cosine sees only a **direction**: a whisper and a shout in the same direction get the same
# score. With it, the score also sees how much the addition weighs beside the stream. Both are blind to a change of length:
# an echo and an eraser turn nothing.

# %% [markdown]
# ### Exercise 1 · ●○○ · 8 minutes
#
# Write the importance of one attention layer. You get `x` and what the layer adds to it, both [rows, length, hidden], and
# the mask [rows, length], 1 for real tokens. With `residual=True` return the mean over the **real tokens** of
# 1 − cos(x, x + added), with `residual=False` of 1 − cos(x, added).
#
# The check then asks your function which of three layers matters least, both ways.
#
# <details><summary>Hint</summary>
#
# Select with `mask.bool()` first. Then only the second argument of `cosine_similarity(…, dim=-1)` depends on `residual`.
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_05 import check_importance


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
# ## Importance on a real Llama
#
# `describe` finds the parts of a model by their role. Behind it stand the plain names of transformers, which you will meet
# in every other code: block `i` is `model.model.layers[i]`, its attention layer `.self_attn` with `q_proj`, `k_proj`,
# `v_proj`, `o_proj`, and the norm in front of it `.input_layernorm`.
#
# The text is speeches. Rows of one speech resemble each other, so we take one row a speech, from all over it. Some rows
# choose, other ones judge.

# %%
from course_utils.architectures import describe
from course_utils.models import load_model, variant
from course_utils.session import safe_dtype
from course_utils.texts import padded_batches, token_blocks


def one_row_a_speech(split, count):
    """Rows of the tokenized split, each drawn at random from another speech."""
    rows = token_blocks(tokenizer, split, tokens=POOL[split], length=LENGTH)
    ends = rows.input_ids.flatten() == tokenizer.eos_token_id
    speech = ends.cumsum(0).view(len(rows), LENGTH)[:, 0].tolist()  # the one that each row begins in
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(session.seed)).tolist()
    return rows[list({speech[row]: row for row in order}.values())[:count]]


dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
total, vocabulary = describe(base).num_blocks, describe(base).vocab_size
COUNTS = (round(total / 8), round(total / 4))  # an eighth and a quarter of all attention layers, as in He et al.
FEW, MANY = COUNTS

calibration = one_row_a_speech("calibration", CHOOSING)  # layers are chosen on these rows …
drawn = one_row_a_speech("evaluation", JUDGING + HELD_OUT)
evaluation, held_out = drawn[:JUDGING], drawn[JUDGING:]  # … judged on these, and in exercise 6 on the last ones

attention = base.model.layers[0].self_attn
assert attention is describe(base).attentions[0].module
print(f"{base.config.name_or_path} in {str(dtype).removeprefix('torch.')}: {base.num_parameters():,} parameters")
print(f"{total} attention layers of {sum(weight.numel() for weight in attention.parameters()):,} parameters each")
print(f"model.model.layers[0].self_attn is a {attention}")
for rows, use in ((calibration, "to choose on"), (evaluation, "to judge on"), (held_out, "kept for exercise 6")):
    print(f"{len(rows):>2} rows of {LENGTH} tokens {use}, each from another speech of the {rows.split} split")

# %% [markdown]
# Two hooks a block. One sits on the norm: what goes in is `x`, what comes out is `norm(x)`. One sits on the attention
# layer: its output is what will be added. *A common mistake* is to hook the attention layer alone, and to compare what
# goes in with what comes out: the residual is lost. (What goes in there is `norm(x)`, so the cosine is one with
# `norm(x)`.) The switch `residual=False` makes this mistake.
#
# The MLP is the other half of the block, so the same function measures it: another norm, another module.

# %%
PARTS = {"attention": ("input_layernorm", "self_attn"), "MLP": ("post_attention_layernorm", "mlp")}


@torch.no_grad()
def importance_by_hand(model, batches, *, part="attention", residual=True):
    """For each attention layer (or MLP) of a Llama, the mean over real tokens of 1 - cos(x, x + part(norm(x)))."""
    layers = model.model.layers
    sums, tokens, entered = torch.zeros(len(layers), dtype=torch.float64), 0, {}
    norm, module = PARTS[part]

    def enter(number):
        def hook(_, inputs, output):
            entered[number] = inputs[0][real], output[real]  # x and norm(x), [real tokens, hidden]

        return hook

    def leave(number):
        def hook(_, inputs, output):
            added = (output[0] if isinstance(output, tuple) else output)[real].float()
            x, normed = (states.float() for states in entered[number])  # a 16-bit sum would lose small additions
            before, after = (x, x + added) if residual else (normed, added)
            sums[number] += (1 - cosine_similarity(before, after, dim=-1)).double().sum().cpu()

        return hook

    hooks = [getattr(layer, norm).register_forward_hook(enter(i)) for i, layer in enumerate(layers)]
    hooks += [getattr(layer, module).register_forward_hook(leave(i)) for i, layer in enumerate(layers)]
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        real = batch["attention_mask"].bool()
        tokens += int(real.sum())
        model.model(**batch, use_cache=False)  # the head plays no part
    for hook in hooks:
        hook.remove()
    return (sums / tokens).float()


# %%
from course_utils.attention import attention_importance

texts = ["The state of the Union", "Peace", "We need roads, schools and a longer sentence than the others."]
for batches in (padded_batches(tokenizer, texts, batch_size=1), padded_batches(tokenizer, texts, batch_size=3)):
    torch.testing.assert_close(importance_by_hand(base, batches), attention_importance(base, batches))
print("importance_by_hand equals attention_importance, with padding and without.")

with_residual = attention_importance(base, calibration.batches())
without_residual = importance_by_hand(base, calibration.batches(), residual=False)

# %% [markdown]
# **Predict before you run.** Do the two agree on which attention layers matter least?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# They don't. Of the 8 lowest, 3 are in both sets, where chance would give 2.1. The rank correlation over all 30 layers is
# +0.13, with an interval from −0.33 to +0.53.
#
# </details>


# %%
def lowest(scores, count):
    return torch.as_tensor(scores).argsort(stable=True)[:count].tolist()


figure, axes = plt.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
for ax, scores, title in (
    (axes[0], with_residual, "With the residual: 1 − cos(x, x + attention)"),
    (axes[1], without_residual, "Without it: 1 − cos(norm(x), attention)"),
):
    low = set(lowest(scores, MANY))
    for chosen, colour, marker in ((False, "C0", "o"), (True, "C1", "s")):
        numbers = [i for i in range(total) if (i in low) == chosen]
        label = f"the {MANY} lowest" if chosen else None
        ax.plot(numbers, scores[numbers], marker, color=colour, label=label)
    ax.set(ylabel="importance", title=title)
    ax.legend()
axes[0].set_yscale("log")
log_ticks(axes[0].yaxis)
axes[1].set_xlabel("block")
show(
    "Importance of each attention layer by block, above with the residual on a logarithmic axis, below without it. Above, the "
    "first two layers and one late one stand far out; below, all are of one order, and other ones are lowest."
)

# %% [markdown]
# The squares are the layers that would go. With the residual (above, logarithmic) a few layers tower over the rest; without
# it (below) all are of the same order, and other layers would go.

# %%
from course_utils.uncertainty import rank_correlation

for count in COUNTS:
    here, there = lowest(with_residual, count), lowest(without_residual, count)
    print(f"{count} highest with the residual: {sorted(lowest(-with_residual, count))}")
    print(f"{count} lowest with the residual: {sorted(here)}; without it: {sorted(there)}")
    print(f"  in both: {len({*here} & {*there})} of {count}; chance would give {count**2 / total:.1f}")
value, low, high = rank_correlation(with_residual, without_residual)
print(f"Spearman's rank correlation over {total} layers {value:+.2f} (95 % interval {low:+.2f} to {high:+.2f})")

# %% [markdown]
# ## One look, or several, or the damage itself
#
# Once an attention layer is gone, every later block gets another stream, and the scores are no longer true. **Iterative**
# choice measures again after each removal. Mind what stays: the MLP of a block whose attention layer is gone still runs.
#
# `bypass_attention(model, layers)` leaves these layers out, in place: it replaces `model.model.layers[i].self_attn.forward`
# by one that returns zeros. `bypass_attention(model, [])` brings all of them back, so no copies are needed.

# %%
from course_utils.attention import bypass_attention, select_attention_layers


def choose_iteratively(model, batches, count):
    """Leave the least important attention layer out `count` times, measuring again each time."""
    chosen = []
    for _ in range(count):
        bypass_attention(model, chosen)
        scores = attention_importance(model, batches)
        scores[chosen] = torch.inf  # a bypassed layer scores 0: don't take it twice
        chosen.append(int(scores.argmin()))
    bypass_attention(model, [])
    return chosen


MOST = round(0.4 * total)
two_rows = calibration[:2].batches()
assert choose_iteratively(base, two_rows, 3) == select_attention_layers(base, two_rows, count=3)
print("choose_iteratively equals select_attention_layers, which doesn't run again what can't have changed.")

orders = {
    "one-shot": lowest(with_residual, MOST),
    "iterative": select_attention_layers(base, calibration.batches(), count=MOST),
}
for name, order in orders.items():
    print(f"{name:<10} {order}")

# %% [markdown]
# The third look doesn't ask for an angle at all, but for what we want to know. **Leave-one-out** takes each layer away
# alone and measures the loss, on the same rows.
#
# That is one pass for each layer. Half of the work can be saved: below the layer that is gone nothing changes. So we keep
# what enters each block, from one pass, and run only the rest. The helper does it for MLPs and whole blocks too; we shall
# need all three.

# %%
from course_utils.evaluation import perplexity

TEXTS = {"choose": calibration, "judge": evaluation}


def streams(rows):
    """For each block, what enters it when `base` reads these rows: one tensor for each batch."""
    entered = [[] for _ in range(total)]

    def note(batches):
        return lambda block, inputs: batches.append(inputs[0])

    hooks = [block.register_forward_pre_hook(note(entered[i])) for i, block in enumerate(base.model.layers)]
    perplexity(base, rows)
    for hook in hooks:
        hook.remove()
    return entered


ENTERING = {name: streams(rows) for name, rows in TEXTS.items()}


# %%
@contextmanager
def lacking(kind, numbers, known):
    """For a while, these attention layers, MLPs or blocks add nothing. Blocks below them don't run: `known` has it."""
    blocks, first = base.model.layers, min(numbers, default=0)
    bypass_attention(base, [] if kind == "MLP" else numbers)
    instead = {} if kind == "attention" else {blocks[i].mlp: torch.zeros_like for i in numbers}
    if first:
        batches = iter(known[first])
        instead |= {block: lambda states, *_, **__: states for block in blocks[: first - 1]}
        instead[blocks[first - 1]] = lambda *_, **__: next(batches)
    for module, forward in instead.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in instead:
            del module.forward  # the class's own comes back
        bypass_attention(base, [])


# %%
@functools.cache
def perplexity_without(kind, *numbers, text="judge"):
    """Perplexity of `base` without these attention layers, MLPs or blocks, in ascending order."""
    with lacking(kind, numbers, ENTERING[text]):
        return perplexity(base, TEXTS[text])


def leave_one_out(kind):
    """Nats a token on the rows that choose, without each attention layer, MLP or block alone."""
    alone = tqdm(range(total), desc=f"each {kind} left out")
    return torch.tensor([perplexity_without(kind, number, text="choose").nll for number in alone])


left_out = leave_one_out("attention")
bypass_attention(base, [total // 2])  # the plain way, from the first block on
assert math.isclose(perplexity(base, TEXTS["choose"]).nll, left_out[total // 2], rel_tol=1e-5)
bypass_attention(base, [])
print(f"least missed when left out alone: {lowest(left_out, MANY)} (on {TEXTS['choose'].num_tokens} tokens)")

# %% [markdown]
# ## Which layers should go?
#
# An eighth and a quarter of all attention layers, chosen in five ways. Everything is judged on text that chose nothing,
# one row from each of a few speeches. The intervals below are taken over these rows: they speak about speeches like these,
# and about no other kind of text.
#
# But what does a good result prove? Perhaps any layers could go.
#
# ### Exercise 2 · ●●○ · 8 minutes
#
# Design the control. Your method chose the attention layers `chosen` out of `total`. Write `control_sets(chosen, total)`: a
# list of sets of block numbers to compare with, so that "better than every one of them" means p ≤ .05 for the sentence "the
# choice does better than chance". Make as few as that takes.
#
# <details><summary>Hint</summary>
#
# With k random sets, "better than all of them" happens by chance with probability 1 / (k + 1). Each set must be something
# that chance could have chosen: how many layers, from which ones?
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_05 import check_control_sets


# BEGIN SOLUTION
def control_sets(chosen, total):
    generator = torch.Generator().manual_seed(0)
    sets = []
    while len(sets) < 19:  # 1 / (19 + 1) = .05
        drawn = sorted(torch.randperm(total, generator=generator)[: len(chosen)].tolist())  # from all, the chosen too
        if drawn not in sets:
            sets.append(drawn)
    return sets


# END SOLUTION
# BEGIN STUB
# def control_sets(chosen, total):
#     ...  # your code
# END STUB
check_control_sets(control_sets)

# %% [markdown]
# **Predict before you run.** A quarter of the attention layers is left out. What is the perplexity of the published choice
# (with the residual, one look), of a typical random set, and of the set that forgot the residual: 1.5 times, 3 times, 100
# times the unpruned one? And does the published choice beat the random sets?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# One look with the residual costs 1.41 times the perplexity, the median random set 2.74 times, the set that forgot the
# residual 1,014 times. Of 19 random sets 1 is as good as the published choice (p = 0.10). With an eighth left out, 5 of
# 19 are (p = 0.30).
#
# </details>

# %%
from course_utils.evaluation import perplexity_ratio
from course_utils.reports import shown, with_interval

ORDERS = [torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist() for seed in SEEDS]


def by_chance(kind, count):
    """Perplexities without random sets of this size; the same numbers for each kind."""
    bar = tqdm(ORDERS, desc=f"{kind}, {count} at random")
    return [perplexity_without(kind, *sorted(order[:count])) for order in bar]


choices = {}
for count in COUNTS:
    choices[count] = {
        "with residual, one-shot": orders["one-shot"][:count],
        "with residual, iterative": orders["iterative"][:count],
        "leave-one-out": lowest(left_out, count),
        "without residual": lowest(without_residual, count),
        "last": range(total - count, total),
    }
    choices[count] = {name: sorted(layers) for name, layers in choices[count].items()}

unpruned = perplexity_without("attention")
results, chance = {}, {}
for count in COUNTS:
    results[count] = {name: perplexity_without("attention", *layers) for name, layers in choices[count].items()}
    chance["attention", count] = by_chance("attention", count)

# %%
lines, ratios, dots = [], {}, {}
for count in COUNTS:
    dots[count] = sorted(score.perplexity / unpruned.perplexity for score in chance["attention", count])
    ratios[count] = {name: perplexity_ratio(score, unpruned) for name, score in results[count].items()}
    for name, ratio in ratios[count].items():
        better = sum(dot <= ratio[0] for dot in dots[count])  # random sets at least as good
        lines.append(
            {
                "left out": count,
                "chosen": name,
                "blocks": ", ".join(map(str, choices[count][name])),
                "× unpruned (95 %, paired)": with_interval(*ratio),
                f"random sets as good, of {len(SEEDS)}": better,
                "p": f"{(better + 1) / (len(SEEDS) + 1):.2f}",
            }
        )
guess = vocabulary / unpruned.perplexity
print(f"unpruned: perplexity {with_interval(unpruned.perplexity, unpruned.ci_low, unpruned.ci_high)}; ", end="")
print(f"a uniform guess: × {shown(guess)}")
for count in COUNTS:
    print(f"{count} at random: best × {shown(dots[count][0])}, median × {shown(np.median(dots[count]))}, ", end="")
    print(f"worst × {shown(dots[count][-1])}")
for count in COUNTS:
    scores = results[count]["leave-one-out"], results[count]["with residual, one-shot"]
    print(f"{count}: leave-one-out / one-shot, paired: {with_interval(*perplexity_ratio(*scores))}")
pd.DataFrame(lines).set_index(["left out", "chosen"])

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 7.5), sharex=True, layout="constrained")
for ax, count in zip(axes, COUNTS, strict=True):
    against_random(
        ratios[count],
        {f"{len(SEEDS)} random sets": dots[count][::-1]},  # large ones on top, clear of the numbers at the edge
        lines={"unpruned": 1, "guessing": guess},
        x_label="perplexity, times the unpruned one (lower is better)" if count == MANY else "",
        title=f"{count} of {total} attention layers left out (guessing: × {shown(guess)})",
        limit=100,
        ax=ax,
    )
show(
    "Perplexity ratios on a logarithmic axis for five ways to choose, each with its interval, above the single results of "
    "random sets, for an eighth and for a quarter of the layers. Leave-one-out lies left of all the widely scattered random "
    "dots but one, choices with the residual a little to its right, the choice without the residual beyond all dots. What "
    "goes on beyond the right edge, a value or an interval, ends there in an arrow with its number."
)

# %% [markdown]
# The grey dots are what luck gives: each is one random set, and the dashed line is their median. A choice that knows
# something lies to the left of all of them, and one that knows nothing lies anywhere among them. (An arrow at the edge: the
# value, or the interval, goes on to the number beside it.)
#
# **Saved run.** With an eighth left out, nothing shows that the published choice (1.25) is better than chance: 5 of 19 random
# sets do as well. Iterative choice (1.16) is matched by 3 of them. Leave-one-out (1.06) beats all 19, which is p = 0.05. (Each
# p comes from nineteen draws, and ten comparisons were made.) With a quarter left out one look and iterative choice take the
# same layers (1.41). One random set is as good as they are, and one is as good as leave-one-out (1.24): p = 0.10 for each, so
# chance isn't ruled out. The last layers are no better than random ones. Forgetting the residual (69.2 and 1,014) is worse than
# every random set. A likely reason: it takes layer 1, one of the 4 that turn the stream most.
#
# So the residual belongs in, but the cosine isn't the last word: measuring the loss itself chose better here, 0.85 times
# the perplexity of one look (0.78 to 0.92) at 4 layers, and less clearly at 8, 0.88 times (0.78 to 1.00). It read the same
# rows, at the price of one pass for each layer.

# %% [markdown]
# ### Does measuring again pay?
#
# For Mistral-7B without a quarter of its attention layers He et al. find one-shot choice 4.8 points better than iterative
# choice (66.9 and 62.1 on average over four tasks), and recommend it, since it is simpler as well. Their published code skips
# the MLP of a bypassed block while it measures again; ours runs everything that is still alive.

# %%
lines = []
for n in (FEW, MANY, MOST):
    once, again = (tuple(sorted(order[:n])) for order in orders.values())
    scores = [perplexity_without("attention", *layers) for layers in (again, once)]
    line = {"attention layers left out": n, "sets": "the same" if once == again else "different"}
    line["one-shot, × unpruned"] = with_interval(*perplexity_ratio(scores[1], unpruned))
    line["iterative / one-shot"] = "1" if once == again else with_interval(*perplexity_ratio(*scores))
    lines.append(line)
pd.DataFrame(lines).set_index("attention layers left out")

# %% [markdown]
# **Saved run.** Measuring again pays once: at 4 layers the iterative set has 0.93 times the perplexity of the one-shot set
# (0.88 to 0.98). At 8 both orders have taken the same layers. At 12 the interval holds 1 (0.96 to 1.11).

# %% [markdown]
# ## Attention, MLP, or the whole block?
#
# "Not all attention is needed" is a claim about attention *compared with MLPs*. He et al. drop 4 and 8 attention
# layers, 4 and 8 MLPs, 4 and 8 whole blocks, and find attention by far the cheapest to lose: Mistral-7B averages 70.3 over
# eight tasks, 69.8 without 8 attention layers, 58.6 without 8 blocks, 53.4 without 8 MLPs. But an MLP has more parameters
# than an attention layer. So the comparison has to be made twice: at the same **number** of layers, and at the same number
# of **parameters**.
#
# And by which criterion? He et al. choose by **importance** at one look: attention layers and MLPs by how far they turn the
# stream; blocks by block influence (lesson 04). Above, it wasn't the best one. A kind that is chosen badly looks dear. So
# each kind is chosen in two ways, by importance and by **leave-one-out**, and random sets stand beside each kind: the same
# numbers for all.
#
# **Predict before you run.** Which costs least: 4 attention layers or 4 MLPs? And at equal parameters: attention layers, MLPs
# or whole blocks?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Layer for layer, attention: 4 attention layers cost 0.65 times the perplexity of 4 MLPs (0.59 to 0.72). At equal
# parameters, whole blocks: 3 blocks cost 1.38, 12 attention layers 1.57 and 4 MLPs 1.63 times the unpruned perplexity.
# Attention layers and MLPs can't be told apart there. (All chosen by leave-one-out.)
#
# </details>

# %%
from course_utils.depth import block_importance


def parameters(block, part):
    """Those of an attention layer or MLP, with the norm in front of it."""
    return sum(weight.numel() for name in PARTS[part] for weight in getattr(block, name).parameters())


sizes = {part: parameters(base.model.layers[0], part) for part in PARTS}
sizes["block"] = sum(sizes.values())
EQUAL = {kind: max(1, round(MOST * sizes["attention"] / size)) for kind, size in sizes.items()}
print(f"parameters, with the norms: attention layer {sizes['attention']:,}, MLP {sizes['MLP']:,}: ", end="")
print(f"an MLP is {sizes['MLP'] / sizes['attention']:.1f} attention layers")
print("as many parameters each: " + ", ".join(f"{kind} {count}" for kind, count in EQUAL.items()))

batches = calibration.batches()
scores = {
    "importance": {
        "attention": with_residual,
        "MLP": importance_by_hand(base, batches, part="MLP"),
        "block": block_importance(base, batches),
    },
    "leave-one-out": {"attention": left_out, "MLP": leave_one_out("MLP"), "block": leave_one_out("block")},
}

# %%
cuts = {"attention": [FEW, MANY, MOST], "MLP": sorted({EQUAL["MLP"], FEW, MANY})}
cuts["block"] = sorted({1, 2, EQUAL["block"], FEW})
chosen, lines = {}, []
for kind, counts in cuts.items():
    for count in counts:
        line = {"kind": kind, "count": count, "parameters gone": f"{count * sizes[kind] / base.num_parameters():.1%}"}
        for criterion, by_kind in scores.items():
            score = perplexity_without(kind, *sorted(lowest(by_kind[kind], count)))
            chosen[kind, count, criterion] = score
            line[f"{criterion}, × unpruned"] = with_interval(*perplexity_ratio(score, unpruned))
        pair = (chosen[kind, count, criterion] for criterion in ("leave-one-out", "importance"))
        line["leave-one-out / importance"] = with_interval(*perplexity_ratio(*pair))
        lines.append(line)
both = [perplexity_without(kind, *sorted(lowest(scores["leave-one-out"]["MLP"], FEW))) for kind in ("block", "MLP")]
print(f"the {FEW} MLPs that go first: without the attention layers beside them as well the perplexity is ", end="")
print(f"{with_interval(*perplexity_ratio(*both))} times as high as with them")
pd.DataFrame(lines).set_index(["kind", "count"])

# %% [markdown]
# A row is a cut. The last column compares the criteria on the same rows: below 1, leave-one-out chose better.
#
# **Saved run.** For 4 attention layers (0.85) and for 4 and 8 MLPs (0.83 and 0.33) it did: the whole interval lies below 1.
# For 8 attention layers (0.88) the interval only ends there (0.78 to 1.00). For 12 of them, and for any number of blocks,
# it holds 1: neither criterion is shown to choose better. Losses on so few rows are a criterion with noise of its own.
#
# The line above the table asks whether an attention layer is of use without the MLP behind it. It is: when the attention
# layers beside the 4 MLPs that go first go as well, the perplexity is 1.59 times as high (1.38 to 1.83).
#
# Now chance. In the last column, "an end" means one of the first two or last two blocks: nobody needs a measurement to
# spare those (lesson 04), and a random set that holds one is often easily beaten.

# %%
chance |= {(kind, count): by_chance(kind, count) for kind, count in (("MLP", FEW), *EQUAL.items())}
lines = []
for (kind, count), scores_at_random in chance.items():
    dots = sorted(score.perplexity / unpruned.perplexity for score in scores_at_random)
    line = {"kind": kind, "count": count, "best random set": shown(dots[0]), "median": shown(np.median(dots))}
    for criterion in scores:
        better = sum(score.nll <= chosen[kind, count, criterion].nll for score in scores_at_random)
        line[f"as good as {criterion}"] = f"{better} of {len(SEEDS)}, p = {(better + 1) / (len(SEEDS) + 1):.2f}"
    ends = {0, 1, total - 2, total - 1}
    line["worse than guessing"] = sum(dot > guess for dot in dots)
    line["sets that touch an end"] = sum(not ends.isdisjoint(order[:count]) for order in ORDERS)
    lines.append(line)
fewer = sum(a.nll < b.nll for a, b in zip(chance["attention", FEW], chance["MLP", FEW], strict=True))
print(f"{FEW} random numbers: without these attention layers the loss is lower than without these MLPs ", end="")
print(f"in {fewer} of {len(SEEDS)} sets")
pd.DataFrame(lines).set_index(["kind", "count"])

# %% [markdown]
# **Saved run.** Guessing has × 1,348, and 4 of the 19 random sets of MLPs and 3 of those of blocks are worse than that: they
# are no models any more. By importance, no kind beats all its random sets. By leave-one-out 4 attention layers and 4 MLPs do (p
# = 0.05 each). For 8 and 12 attention layers and for 3 blocks one random set is as good (p = 0.10 each). And 9 to 16 of the 19
# sets touch an end; against the other ones alone that is weaker evidence. (The same 19 orders serve all rows, so these p values
# hang together; with ten comparisons, one of 0.05 may be luck.) One comparison needs no criterion at all: at the same 4 random
# numbers, the attention layers cost less than the MLPs in 17 of 19 sets.
#
# Last, the kinds beside each other on the same rows: first at equal count, then at (nearly) equal parameters.

# %%
pairs = [(("attention", FEW), ("MLP", FEW)), *itertools.combinations(EQUAL.items(), 2)]
pairs += [(("attention", n), ("block", max(1, round(n * sizes["attention"] / sizes["block"])))) for n in COUNTS]
lines = {}
for (kind, count), (other, other_count) in pairs:
    lines[f"{kind} {count} / {other} {other_count}"] = {
        criterion: with_interval(
            *perplexity_ratio(chosen[kind, count, criterion], chosen[other, other_count, criterion])
        )
        for criterion in scores
    }
pd.DataFrame(lines).T

# %%
NAMES = {"attention": "attention layers", "MLP": "MLPs", "block": "blocks"}
figure, axes = plt.subplots(2, 1, figsize=(9, 7.5), sharex=True, layout="constrained", height_ratios=(3, 4))
for ax, counts in zip(axes, ({"attention": FEW, "MLP": FEW}, EQUAL), strict=True):
    names = {f"{NAMES[kind]}: {count}": (kind, count) for kind, count in counts.items()}
    against_random(
        {name: perplexity_ratio(chosen[*cut, "leave-one-out"], unpruned) for name, cut in names.items()},
        {
            name: sorted((score.perplexity / unpruned.perplexity for score in chance[cut]), reverse=True)
            for name, cut in names.items()
        },
        lines={"unpruned": 1, "guessing": guess},
        x_label="perplexity, times the unpruned one (lower is better)" if ax is axes[1] else "",
        title=f"At equal {'parameters' if counts is EQUAL else 'count'} (guessing: × {shown(guess)})",
        limit=100,
        ax=ax,
    )
show(
    "Perplexity ratios on a logarithmic axis, chosen by leave-one-out, each with its interval above the single results of "
    "random sets: above attention layers and MLPs at equal count, below attention layers, MLPs and blocks at equal "
    "parameters. Above, attention layers are far cheaper; below, blocks are cheapest. The 12 attention layers and the blocks "
    "have one dot each to their left."
)

# %% [markdown]
# Each row is a cut: the blue dot was chosen by leave-one-out, the grey dots under it are random sets. Those beyond 100 are
# counted at the right edge; some of those are worse than guessing. Above, the numbers of layers are equal, below the numbers of
# parameters.
#
# **Saved run.** "Attention is more redundant than MLPs" is true here layer for layer: 4 attention layers cost 1.06, 4 MLPs
# 1.63. Parameter for parameter it depends on the criterion: 12 attention layers cost 0.80 times as much as 4 MLPs (0.70 to
# 0.91) if importance chooses both. By leave-one-out the outputs don't show it (0.96 times, 0.84 to 1.11).
#
# At 7.9 % of the parameters whole blocks are cheaper than MLPs, whichever criterion chooses: the 4 MLPs cost 1.30 times as
# much as 3 blocks by importance (1.18 to 1.43) and 1.18 times by leave-one-out (1.11 to 1.26). The 12 attention layers cost
# 1.14 times as much as 3 blocks by leave-one-out (1.01 to 1.29); by importance no difference shows (0.91 to 1.19). Smaller
# cuts don't say the same: by importance 4 attention layers are dearer than one block, and by leave-one-out no difference
# shows. So first ask how the layers were chosen, and beside what.
#
# *Published sizes.* Llama-2-70B without half of its attention layers loses 2.4 points on average (He et al. 2024).
# Llama-2-13B without a third loses 1.8 % (Tyukin et al. 2024). A Mistral-7B without a quarter loses nothing on multiple
# choice, but a quarter of its GSM8K points (He et al. 2026, next section). So larger models seem to spare a larger share. But
# these are other tasks in each line and not one experiment. What a model of your size can lose, only a table like the one
# above says.

# %% [markdown]
# ### Exercise 3 · ●○○ · 6 minutes
#
# A colleague reads the tables and the figure above (of the saved run) and writes six sentences. Which of them do the outputs
# **not** show? Return a set of letters.
#
# - A: "In this model, the 4 attention layers that leave-one-out chose are cheaper to lose than the 4 MLPs that it chose."
# - B: "Attention is more redundant than MLPs in language models of any size."
# - C: "Whoever must save a given number of parameters should take out attention layers."
# - D: "Without these attention layers the model still finds a name that was mentioned 500 words earlier."
# - E: "In this model, 3 whole blocks are cheaper to lose than 4 MLPs, whichever of the two criteria chooses."
# - F: "Leave-one-out chooses 8 attention layers better than chance does."
#
# <details><summary>Hint</summary>
#
# For each sentence ask: equal in what, beside which control, in which model, on how long a context was it measured?
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_05 import check_not_shown

# BEGIN SOLUTION
not_shown = {"B", "C", "D", "F"}  # one model; blocks are cheaper; rows of 64 tokens; a random set as good
# END SOLUTION
# BEGIN STUB
# not_shown = ...  # a set of letters, such as {"Y", "Z"}
# END STUB
check_not_shown(not_shown)

# %% [markdown]
# ## What it writes, picks and produces
#
# A perplexity is an average. First look at what the models write, greedily: whole, without a quarter of the attention
# layers as leave-one-out chose them, without the random quarter whose perplexity is in the middle, and without the quarter
# that forgot the residual.

# %%
from course_utils.language_modelling import continuations


def bypassed(model, layers, **options):
    model = variant(model)
    bypass_attention(model, layers, **options)
    return model


by_damage = sorted(SEEDS, key=lambda seed: chance["attention", MANY][seed].nll)
arms = {
    "unpruned": [],
    "leave-one-out": choices[MANY]["leave-one-out"],
    "random (the median set)": sorted(ORDERS[by_damage[len(SEEDS) // 2]][:MANY]),
    "without residual": choices[MANY]["without residual"],
}
prompts = ["The capital of France is", "My fellow citizens, this year we have"]
models = {name: bypassed(base, layers) for name, layers in arms.items()}
continuations(models, tokenizer, prompts, new_tokens=16).T

# %% [markdown]
# **Saved run.** Without the layers that leave-one-out or the median random set took, there are still sentences, not always
# true ones; without those that the forgotten residual took, there are none.
#
# Now two tasks. Multiple choice can hide damage: in He et al. 2026, a Mistral-7B without a quarter of its attention layers
# goes from 69.3 to 69.8 on average over five multiple-choice tasks, and from 48.4 to 36.2 on GSM8K, where a solution has to
# be written. So here are both kinds: ARC-Easy, where one of four answers is *picked*, and LAMBADA, where the last word of
# a passage is *produced*. In LAMBADA that is often a name from several sentences ago, which is work for attention.
#
# Forty documents are too few for accuracies: each is one bit. So look at the **margin** as well, in nats: by how much
# the right answer leads the best wrong one (ARC), and how likely the right word is (LAMBADA). These are two measures,
# so don't compare their sizes with each other. All models meet the same documents, so the differences are paired.

# %%
from course_utils.evaluation import evaluate, margins
from course_utils.uncertainty import ratio_interval


def nats(answers):
    """What each document's right answer has: its lead (ARC), its log-likelihood (LAMBADA)."""
    table = answers.attrs["answers"].table
    last_words = table[(table.task == "lambada_openai") & (table.metric == "perplexity")]
    return {"arc_easy": margins(answers, "arc_easy"), "lambada_openai": last_words["value"].to_numpy()}


asked = list(arms)[:3]
answers = {}
for name in tqdm(asked, desc="models"):
    answers[name] = evaluate(models[name], tokenizer, ["arc_easy", "lambada_openai"], limit=DOCUMENTS)

del models


# %%
def change(name, other, task):
    """Nats a document that the first model's right answers have more than the other's, paired, with its interval."""
    difference = nats(answers[name])[task] - nats(answers[other])[task]
    value, _, low, high = ratio_interval(difference, np.ones(len(difference)))
    return value, low, high


lines, losses = [], {}
for name in asked:
    for task, values in nats(answers[name]).items():
        score = answers[name][(answers[name].task == task) & (answers[name].metric != "perplexity")].iloc[0]
        line = {
            "task": task,
            "model": name,
            "right": f"{score.value:.2f}",
            "nats of the right answer": f"{values.mean():.2f}",
        }
        if name != "unpruned":
            losses[f"{task}\n{name}"] = change(name, "unpruned", task)
            line["change in nats (95 %, paired)"] = "{:+.2f} ({:+.2f} to {:+.2f})".format(*losses[f"{task}\n{name}"])
        lines.append(line)
for task in nats(answers["unpruned"]):
    print(f"{task}: leave-one-out minus random {'{:+.2f} ({:+.2f} to {:+.2f})'.format(*change(*asked[1:], task))} nats")
pd.DataFrame(lines).fillna("").sort_values("task", kind="stable").set_index(["task", "model"])

# %%
rows_with_intervals(
    losses,
    at=0,
    at_label="unpruned",
    x_label=f"change of the right answer, nats a document ({DOCUMENTS} documents)",
    title="Picking an answer, producing a word",
)
show(
    "Mean change in nats of the right answer with 95 % intervals, for ARC-Easy and LAMBADA, after leaving out a quarter of "
    "the attention layers by leave-one-out and at random. All lie below zero, LAMBADA lower than ARC, and leave-one-out no "
    "higher than random; only the interval of ARC at random reaches zero."
)

# %% [markdown]
# The farther to the left, the more evidence for the right answer is gone; a whole interval left of the dotted line is a
# loss that shows. Does it show where the answer is picked, and where it is produced?
#
# **Saved run.** Without the layers that leave-one-out chose, the ARC accuracy falls from 0.45 to 0.40, which is 2 of 40
# documents, and the LAMBADA accuracy from 0.28 to 0.05. In nats both losses show: −1.45 a document (−2.61 to −0.29) and
# −3.45 (−4.31 to −2.60). Whoever had looked at the ARC accuracy alone would have missed them.
#
# And the perplexity promised too much. On speeches these layers cost 1.24 and the median random set 2.74, a wide lead. Here
# no lead shows: leave-one-out minus random is −0.63 (−2.14 to +0.88) and −0.35 (−1.17 to +0.47), if anything in favour of the
# random set. Layers that short rows of speeches can spare needn't be those that other work can spare. So choose on text like
# the work, and judge on the work.

# %% [markdown]
# ## A bypass adds exactly zero
#
# Here are two ways to write an attention layer that "does nothing". In a Llama's block the input of the layer is already
# `norm(x)`, and what it returns is added to `x`:
#
# - `return zeros`: the block computes `x + 0`
# - `return the input`: the block computes `x + norm(x)`. *A common mistake*: handing on what came in looks like doing
#   nothing.
#
# **Predict before you run.** Which of the two has the lower perplexity?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The mistake has: 43.8 against 45.6 with zeros at 4 layers (0.96 times), and 47.3 against 51.2 at 8 (0.92 times).
#
# </details>


# %%
@contextmanager
def returning(model, layers, instead):
    """For a while, these attention layers of a Llama return `instead(norm(x))`."""

    def hook(attention, inputs, named, output):
        return instead(named["hidden_states"]), None

    hooks = [model.model.layers[i].self_attn.register_forward_hook(hook, with_kwargs=True) for i in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


for count in COUNTS:
    layers, right = choices[count]["with residual, one-shot"], results[count]["with residual, one-shot"]
    with returning(base, layers, instead=lambda states: states):
        mistaken = perplexity(base, evaluation)
    print(
        f"{count} left out: perplexity {shown(right.perplexity)} with zeros, {shown(mistaken.perplexity)} with the ",
        end="",
    )
    print(f"normalised input: × {with_interval(*perplexity_ratio(mistaken, right))}")

# %% [markdown]
# Seeing only the second number, would you suspect a bug? Now ask for an **equality**. Zeroing the output projection `o_proj`
# of an attention layer makes it add zero, and no forward pass is touched. So it is an independent reference, and a right
# bypass equals it in every bit. All in float32.
#
# The zeros go into a `variant`, a second model on the weights of the first. It gets *new* zeros: written into the old
# weights, they would stand in both models.

# %%


def silenced(model, layers):
    """A variant whose attention layers in these blocks add zero, because their output projections hold zeros."""
    quiet = variant(model)
    for layer in layers:
        projection = quiet.model.layers[layer].self_attn.o_proj
        projection.weight = nn.Parameter(torch.zeros_like(projection.weight))
    return quiet


exact = variant(base).float()  # new float32 weights, where `base` has 16 bits
ids = evaluation.input_ids[:2, :16].to(exact.device)
layers = choices[FEW]["with residual, one-shot"]

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
# ### Exercise 4 · ●●○ · 12 minutes
#
# Prove that a bypass is an identity. Write `adds_nothing(model, layer, ids)`: True if the attention layer of this block of a
# Llama adds **exactly** zero to the stream while the model reads `ids`, otherwise False. The check gives you bypasses that
# are right (there are three kinds) and others that a perplexity would let pass.
#
# <details><summary>Hint</summary>
#
# If the attention layer adds nothing, the block computes `x + block.mlp(block.post_attention_layernorm(x))`. A forward hook
# on the block gets `x` as `inputs[0]`, and the block's output. "Exactly" is `torch.equal`.
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_05 import check_adds_nothing


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
# ## Block 0 and the cache
#
# A bypassed attention layer keeps no keys and values. But transformers asks the cache how many tokens it has seen, and the
# cache asks its **first** drawer. If attention layer 0 is gone and its drawer stays empty, the answer is 0, and each new
# token is read as if it stood at the beginning.
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


def generated(model, *, use_cache):
    settings = {"attention_mask": torch.ones_like(tiny_ids), "max_new_tokens": 10, "do_sample": False}
    return model.generate(tiny_ids, **settings, use_cache=use_cache)


# %%
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
        (f"attention layer {layer} out", name): judged(model, [layer])
        for layer in (0, 2)
        for name, model in {
            "a plain module": with_zero_modules(tiny, [layer]),
            "bypass_attention": bypassed(tiny, [layer]),
            "bypass_attention, remove=True": bypassed(tiny, [layer], remove=True),
        }.items()
    }
).T
wrong = outcomes[(outcomes == "WRONG").any(axis=1)]
assert list(wrong.index) == [("attention layer 0 out", "a plain module")]
outcomes

# %% [markdown]
# One version of six is wrong, the plain module in block 0, and only where tokens are read one by one with a cache. No
# version raised an error. `generate` counts positions itself, so it hides the mistake. `bypass_attention` writes keys and
# values of *width 0* into the drawer: no bytes, but the count is right.
#
# The same equality on the real model's first four blocks, with attention layer 0 out. In float64, where rounding is far from
# anything that matters.

# %%
from course_utils.depth import remove_blocks

del exact
short = variant(base)
remove_blocks(short, range(4, total))
short.double()
bypass_attention(short, [0])
with torch.no_grad():
    cached, uncached = logits_one_by_one(short, ids[:1]), short(ids[:1], use_cache=False).logits
del short
difference, largest = (cached - uncached).abs().max().item(), uncached.abs().max().item()
assert difference <= 1e-10 * largest
print(f"attention layer 0 bypassed, 16 tokens: cached against uncached {difference:.1e}, logits up to {largest:.0f}")

# %% [markdown]
# ## Saving it
#
# **Predict before you run.** A tiny Llama has a plain zero module in place of attention layer 2. We call `save_pretrained`,
# then plain `from_pretrained`. The file has no weights for that layer. What comes back?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A whole `LlamaAttention`, with weights that differ each time the folder is loaded, and logits that are off by 3.4 % of the
# largest. No error was raised.
#
# </details>

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
# The configuration still says "five blocks, each with an attention layer". So transformers builds one, finds no weights, and
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
    entries = pruned.config.to_dict()["per_layer_config"]
    print("per_layer_config:", {i: entry for i, entry in entries.items() if "skip" in entry})
    auto, stock = AutoModelForCausalLM, LlamaForCausalLM
    loaders = {
        "load_pruned(folder)": lambda: load_pruned(folder)[0],
        "from_pretrained(folder, trust_remote_code=True)": lambda: auto.from_pretrained(folder, trust_remote_code=True),
        "LlamaForCausalLM.from_pretrained(folder)": lambda: stock.from_pretrained(folder),
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

few_name, many_name, all_name = (f"{count} removed" for count in (FEW, MANY, "all"))
zero_name = f"{MANY} with o_proj = 0"
versions = {
    "unpruned": base,
    few_name: bypassed(base, choices[FEW]["leave-one-out"], remove=True),
    many_name: bypassed(base, choices[MANY]["leave-one-out"], remove=True),
    zero_name: silenced(base, choices[MANY]["leave-one-out"]),
}
CACHE = describe(base).cache_keyword  # what the forward calls its cache; transformers has renamed it


def cache_bytes(model, tokens):
    """What the cache really holds after reading these tokens."""
    with torch.no_grad():
        cache = model(tokens, use_cache=True)[CACHE]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


some = evaluation.input_ids[:1, :64].to(base.device)
table = {}
for name, model in versions.items():
    assert cache_bytes(model, some) == some.numel() * kv_bytes_per_token(model)
    size, whole = model_size(model), model_size(base)
    table[name] = {
        "parameters": f"{size.parameters:,}",
        "change": f"{size.parameters / whole.parameters - 1:+.1%}",
        "weights, MB": f"{size.bytes / 1e6:.1f}",
        "MFLOPs a token": f"{size.flops / 1e6:.1f}",
        "cache, bytes a token": f"{kv_bytes_per_token(model):,}",
        "cache, change": f"{kv_bytes_per_token(model) / kv_bytes_per_token(base) - 1:+.1%}",
    }
pd.DataFrame(table)

# %% [markdown]
# ## What speed can it buy?
#
# First what arithmetic leads you to expect, from shapes alone. To *generate* a token, all weights and the whole cache have
# to be read once. To read a *prompt*, operations count. Both are **estimates**: they leave out what a framework spends on
# each layer whatever its size, so a measured gain can be larger.
#
# ### Exercise 5 · ●●○ · 12 minutes
#
# Predict, with arithmetic alone, what removing attention layers buys a Llama that has `parameters` parameters, all of 2
# bytes, and a head tied to the embedding. `removed` layers go, with the norm in front of each. Return two numbers:
#
# - the bytes of the cache of the **pruned** model, for `batch` texts of `context` tokens
# - the decode estimate: bytes to read for one step before, divided by bytes to read after. A step reads every weight and
#   the whole cache once.
#
# <details><summary>Hint</summary>
#
# Each attention layer that is left keeps keys *and* values for `config.num_key_value_heads` heads of
# `config.hidden_size // config.num_attention_heads` numbers. q and o are [hidden, hidden]; k and v are narrower where heads
# are shared. There are no biases.
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_05 import check_predict


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
# Beside our model stands Llama-3.2-3B with 4 of its 28 attention layers gone. Martra's notebooks 6_6 and 6_6b time it: on
# average of two rounds it writes 1.4 and 1.2 times as fast, in the second, warm rounds alone 1.1 and 1.03 times. Here it is
# built from its configuration, without weights.

# %%
from course_utils.benchmarking import decode_estimate, prefill_estimate

shape = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8}
shape |= {"vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 131072}
with torch.device("meta"):
    big, smaller = (LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=28)).to(torch.bfloat16) for _ in range(2))
    bypass_attention(smaller, [20, 21, 22, 23], remove=True)  # which ones doesn't matter for the shapes

pairs = {f"{total} blocks, {name}": (base, versions[name]) for name in (few_name, many_name)}
pairs["Llama-3.2-3B, 4 of 28 removed"] = big, smaller
table = {}
for name, (before, after) in pairs.items():
    table[name] = {
        f"prefill, {context} tokens": f"{prefill_estimate(before, after, context=context):.2f}"
        for context in (128, 2048)
    } | {
        f"decode, batch {batch}, context {context}": f"{decode_estimate(before, after, batch_size=batch, context=context):.2f}"
        for batch, context in ((1, 128), (1, 2048), (8, 2048), (32, 8192))
    }
del big, smaller, pairs
pd.DataFrame(table)

# %% [markdown]
# For one short text almost nothing is to be expected: the attention layers' weights are a small share of all. With many long
# texts the cache is most of what is read, and each removed layer takes its part of it away. By bytes and operations alone,
# no batch in the table gives the 3B model a gain of 1.2. A framework with a large fixed cost a layer can give one at batch 1,
# and a cold first round can look like one.
#
# Now measured. The models take turns, so that a busy machine touches all of them alike. One contestant has no attention
# layer left at all. It is useless as a model, but it tells what share of the *time* the attention layers take.
#
# **Predict before you run.** Will the measured gains stay below the estimates?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# No. Without any attention layer left, the model gains more than its estimate in every phase, and by far the most where the
# cache is long, where arithmetic expects 2.99. With a quarter removed, the gain is small for one short text and largest where
# the cache is long, where 1.22 is expected. How many of the intervals lie above their estimates as a whole, the first line
# of the next table counts.
#
# </details>

# %%
from course_utils.benchmarking import measure_speed, time_interleaved

contestants = {name: versions[name] for name in ("unpruned", few_name, many_name)}
contestants[all_name] = bypassed(base, range(total), remove=True)
parts = []
for context, new_tokens, models in (
    (128, 4, contestants | {zero_name: versions[zero_name]}),
    (384, 1, contestants),
):
    part = measure_speed(models, prompt_tokens=context, new_tokens=new_tokens, rounds=6)
    part["phase"] = [f"{phase}, batch 1, context {context}" for phase in part.phase]
    parts.append(part if new_tokens > 1 else part[part.phase.str.startswith("prefill")])
speed = pd.concat(parts, ignore_index=True)[["phase", "model", "speedup", "ci_low", "ci_high", "estimate"]]

# %% [markdown]
# Long contexts in large batches take long to read, but the cache doesn't care what is in it. So we blow one up: read one
# token a row, then repeat its keys and values to the length that we want. One step of generation then costs what it would
# after a real prompt.


# %%
@torch.no_grad()
def step_after(model, *, context, batch):
    """A function that generates a token for each of `batch` rows, behind a cache of `context` tokens."""
    token = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
    cache = model(token, use_cache=True)[CACHE]
    for layer in cache.layers:
        layer.keys, layer.values = (states.repeat(1, 1, context, 1) for states in (layer.keys, layer.values))

    @torch.no_grad()
    def generate():
        model(token, use_cache=True, **{CACHE: cache})
        cache.crop(-1)  # the next round meets the same length

    assert cache.get_seq_length() == context
    return generate


LONG = {"context": 2048, "batch_size": 8}
calls = {name: step_after(model, context=2048, batch=8) for name, model in contestants.items()}
timed = time_interleaved(calls, rounds=6)
del calls
many_long = pd.DataFrame(
    {
        "phase": "decode, batch 8, context 2048",
        "model": timed.name,
        "speedup": 1 / timed.ratio,
        "ci_low": 1 / timed.ci_high,
        "ci_high": 1 / timed.ci_low,
        "estimate": [decode_estimate(base, model, **LONG) for model in contestants.values()],
    }
)
by_phase = pd.concat([speed, many_long]).groupby("phase", sort=False)
speed = pd.concat([rows for _, rows in by_phase], ignore_index=True)

# %% tags=["timed"]
from course_utils.benchmarking import speedup_text

shares = {"unpruned": 0, few_name: FEW / total, many_name: MANY / total, all_name: 1, zero_name: 0}
none_left = speed[speed.model == all_name].set_index("phase").speedup
speed["measured (95 %), estimate"] = [speedup_text(row) for row in speed.itertuples()]
# If all attention layers take equal shares of the time that they take together, leaving some out gains so much:
share_of_time = 1 - 1 / none_left[speed.phase].values
by_time = 1 / (1 - share_of_time * speed.model.map(shares))
speed["from the share of time"] = by_time.map("{:.2f}".format)
pruned_rows = speed[speed.model != "unpruned"]
compared = pruned_rows[pruned_rows.model.isin([few_name, many_name, all_name])]
print(
    f"{int((compared.ci_low > compared.estimate).sum())} of {len(compared)} intervals lie above their estimates as a whole"
)
print(f"{int((compared.speedup > compared.estimate).sum())} of {len(compared)} speed-ups do, intervals aside")
pruned_rows.set_index(["phase", "model"])[["measured (95 %), estimate", "from the share of time"]]

# %%
shown_rows = speed[speed.model.isin([few_name, many_name])]
labels = [f"{row.phase}\n{row.model}" for row in shown_rows.itertuples()]
rows_with_intervals(
    dict(zip(labels, shown_rows[["speedup", "ci_low", "ci_high"]].values.tolist(), strict=True)),
    marks=dict(zip(labels, shown_rows.estimate, strict=True)),
    at=1,
    at_label="unpruned",
    x_label="speed, times the unpruned model",
    title="Measured speed, and the estimate",
)
show(
    "Measured speed-ups with intervals, and the estimates as open diamonds, for reading a prompt and for generating, with an "
    "eighth and a quarter of the attention layers removed. Gains and estimates are small for short texts and largest for "
    "the long cache."
)

# %% [markdown]
# Gains should grow to the last rows, where the cache is long: there the estimates are largest. Where a whole interval lies right
# of its diamond, more was saved than bytes and operations explain.
#
# An estimate counts operations and bytes, and takes each for as fast as any other. An attention layer isn't like that:
# between its matrices stand rotations, reshaping, many small kernels, and (in transformers' plain cache) a copy of all
# keys and values at each step. So its share of the *time* can be larger than its share of the arithmetic. Compare the
# measured column of the table with the one from the share of time. (For the model without any attention layer the two
# are equal by construction: the share comes from that row.)
#
# **Saved run.** With 8 layers removed, the gain behind the long cache is 1.31 (1.24 to 1.38), behind a short one 1.09 (1.06
# to 1.15). The share of the time lies inside all four measured intervals with 8 removed, the estimate by bytes and
# operations inside two.
#
# So a measured speed-up above such an estimate isn't refuted by it: it may be the framework's cost that went. A lean
# engine has less of it to lose; lesson 10 measures one.

# %% [markdown]
# ## What it costs and buys

# %% tags=["timed"]
found = speed.set_index(["phase", "model"])["measured (95 %), estimate"]
perplexities = {"unpruned": unpruned, zero_name: results[MANY]["leave-one-out"]}
perplexities |= {few_name: results[FEW]["leave-one-out"], many_name: results[MANY]["leave-one-out"]}
table = {}
for name, model in versions.items():
    table[name] = {
        "parameters": f"{model_size(model).parameters / model_size(base).parameters - 1:+.1%}",
        "cache": f"{kv_bytes_per_token(model) / kv_bytes_per_token(base) - 1:+.1%}",
    }
    table[name] |= {phase: found.get((phase, name), "not measured") for phase in dict.fromkeys(speed.phase)}
    table[name]["perplexity"] = shown(perplexities[name].perplexity)
    table[name]["× unpruned (95 %, paired)"] = with_interval(*perplexity_ratio(perplexities[name], unpruned))
pd.DataFrame(table)

# %% [markdown]
# `o_proj = 0` is the control of this table: by the equality above it is the same function as its neighbour (so the
# perplexity is its neighbour's, not measured again), and no faster than the unpruned model. Zeros that are computed
# save nothing.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 6 · ●●● · 20 minutes
#
# Beat the published choice. Write `choose(model, batches, count)`: numbers of `count` attention layers to leave out. You may
# do with the model and the calibration batches what you like, as long as the model is whole again at the end. The check
# leaves your layers out and scores the model on `held_out`: rows from speeches that nothing above has chosen or judged on,
# so don't look at them. Beside yours stands the published choice (with the residual, one look). You pass if yours is better
# there, with its whole paired interval.
#
# Can you beat leave-one-out from above? The score is printed, so keep a list.
#
# <details><summary>Hint</summary>
#
# Leave-one-out takes each layer out alone, but the layers go together. What if you take out half of them, and then measure
# the others again in the model that is left? A few rows of text are enough for a first try.
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_05 import check_choice


# BEGIN SOLUTION
def choose(model, batches, count):
    # Half of them: those that are least missed alone. The next ones are measured again, in what is left.
    order = lowest(left_out, 2 * count)
    chosen, losses = order[: count // 2], {}
    for layer in order[count // 2 :]:
        bypass_attention(model, [*chosen, layer])
        losses[layer] = perplexity(model, batches).nll
    bypass_attention(model, [])
    return chosen + sorted(losses, key=losses.get)[: count - len(chosen)]


# END SOLUTION
# BEGIN STUB
# def choose(model, batches, count):
#     ...  # your code
# END STUB
check_choice(choose, base, calibration, held_out)

# %% [markdown]
# ## Three questions

# %% [markdown] tags=["quiz"]
# Why does the residual belong inside the cosine that measures an attention layer's importance?
#
# - [ ] Because the norm in front of the layer would otherwise change the direction of its input.
#   > The norm changes length and scales channels, but that isn't the point: even without a norm, the cosine with the
#   > addition alone can't tell a whisper from a shout.
# - [x] Because what matters is how far the stream turns, and that depends on how large the addition is beside the stream.
#   > A tiny addition in an odd direction hardly turns the stream, and only the sum shows it.
# - [ ] Because the layer's output and its input have different shapes.
#   > They have the same shape, otherwise they couldn't be added.

# %% [markdown] tags=["quiz"]
# A bypass is written so that the attention layer returns its input. Perplexity is even a little better than with zeros. What
# follows?
#
# - [ ] It is the better bypass, so keep it.
#   > It is another model: each block adds `norm(x)` to the stream. You would report results of a method that you don't use.
# - [ ] The evaluation text is too short; on more text the bug would show as a worse perplexity.
#   > It may never show. A quality metric measures how good a model is, not which model it is.
# - [x] Perplexity can't judge whether the code does what it says; compare with an independent reference, bit for bit.
#   > Zeroing `o_proj` gives such a reference without touching any forward pass.

# %% [markdown] tags=["quiz"]
# You serve one user at a time with short prompts, on an engine with hardly any fixed cost a layer. A quarter of the attention
# layers is removed. What do you expect?
#
# - [ ] About a quarter more tokens a second, since a quarter of the layers is gone.
#   > Only attention layers are gone. MLPs and the head, most of the bytes, are still read for each token.
# - [x] Little: the bytes read for each token fall by the attention layers' small share of the weights.
#   > The gain grows with batch and context, when the cache becomes most of what is read.
# - [ ] More than with large batches of long texts, because small batches wait for memory.
#   > They do, but for weights. With large batches of long texts the cache rules, and that is what removed layers save.
# - [ ] Nothing at all, because a bypass only skips work that is cheap.
#   > Removed weights needn't be read, and that is a gain, if a small one.

# %% [markdown]
# ## Take-aways
#
# - How far an attention layer turns the *stream* beats how its output is directed: the residual belongs inside the cosine.
#   But it is one heuristic, and random sets may do as well: keep at least nineteen beside any choice. Leaving each layer out
#   on a little text asks the question itself.
# - "Attention is more redundant than MLPs" is a sentence about layers. Ask it again per parameter, where whole blocks may be
#   the cheaper cut, with each kind chosen well, and for the size of your model.
# - A multiple-choice accuracy can hide what producing text shows. A lead in perplexity on one kind of text may not show in
#   other work.
# - A good perplexity doesn't prove that the code is right. An exact equality with an independent reference does.
# - A missing attention layer must still count tokens for the cache, and a checkpoint must say that it is missing.
# - Bypassing saves time and cache, removing saves the weights as well, `o_proj = 0` saves nothing and runs everywhere.
# - Bytes and operations give an estimate of speed, not a ceiling. What the framework spends on each layer comes on top.
#
# ## References
#
# - He et al. 2024, *What Matters in Transformers? Not All Attention is Needed*, arXiv 2406.15786 (Mistral-7B, Llama-2-70B);
#   journal version: *Uncovering the Redundancy in Transformers via a Unified Study of Layer Dropping*, TMLR 2026
# - He et al. 2026, *Demystifying When Pruning Works via Representation Hierarchies*, arXiv 2603.24652 (multiple choice beside
#   GSM8K)
# - Tyukin et al. 2024, *Attention Is All You Need But You Don't Need All Of It For Inference of Large Language Models*, arXiv
#   2407.15516 (Llama-2-13B)
# - Men et al. 2024, *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect*, arXiv 2403.03853
# - Ainslie et al. 2023, *GQA: Training Generalized Multi-Query Transformer Models*, arXiv 2305.13245
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the idea of this lesson and the published speeds)
# - Paperno et al. 2016, *The LAMBADA dataset*, arXiv 1606.06031
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 06 lets each prompt decide how many attention layers it needs.
