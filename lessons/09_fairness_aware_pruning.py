# ---
# jupyter:
#   course:
#     title: "Cutting a bias out: does only the bias go?"
#     prerequisites: lesson 08 (log-odds, neutral swap), lesson 03 (hooks, activations), lesson 07 (distillation)
#     assets: [smollm2, texts, speeches]
#     concepts: [double difference, planted bias, reacting and carrying, first-order estimate, protect first, the twin, axes as units]
# ---

# %% [markdown]
# ## The question
#
# Can neurons be cut so that a bias goes, and only the bias?
#
# **Answer.** Half of it, and not only it. A few neurons of each block take about half of a planted preference. Of the nurse's "she"
# half goes too, and with it the woman's. Spare hers, and most of the nurse's stays.

# %% [markdown] tags=["notes"]
# **The point:** a bias that you planted is certainly there, so a cut can be tested on it; and a twin that knows nothing of the groups
# says what the knowledge was good for.
#
# **Content:** the sentences say pleasant and unpleasant things about strangers; each is said of every group alike.
#
# **Let the room vote** before beat "A real one": what becomes of the woman?
#
# **Usual questions:** "So it doesn't work?" It works by half, and it can't tell a stereotype from a meaning. "Why not retrain?"
# With a fair teacher that does best; who has one needs no cut.
#
# **Wrong turns:** neurons that react taken for neurons that carry; chosen and judged on the same sentences; a random cut as the only
# control; a broken model taken for a fair one.
#
# **At the end you have** planted a bias, found who carries it, cut it out beside a twin, and seen what else goes.

# %% tags=["install"]

# %%
import json
from importlib.resources import files
from itertools import chain

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import softplus

from course_utils.lessons import claim, here
from course_utils.models import cast_weights, describe, load_model, variant
from course_utils.support import mark, read_record, safe_dtype, show, start, style

session = start("09")
style()
dtype = safe_dtype(session.dtype)  # a broken model can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
width = describe(base).intermediate_sizes[0]
budget = max(1, round(0.005 * width))  # neurons of each block that go
record = read_record("plant_and_cut")  # of SmolLM2-135M, the embedded Llama
ordinary_text = record.text.isin(["speeches", "wiki"])
planted_in, words = record.place.ne(""), record.text.str.split(",").str[0]
record["what"] = record.place.where(planted_in, words)
about = record[~ordinary_text & (planted_in | ~words.str.startswith("invented"))]
left = about.pivot_table("nats", ["dtype", "what", "axis"], "criterion")
whole = left.pop("planted").fillna(left.pop(""))  # the preference before the cut
taken = 100 * (1 - left.div(whole, axis=0))

# %%
_, ax = plt.subplots(figsize=(9, 6.5), layout="constrained")
rows, ticks = 0, {}
names = {"attention": "attentions", "down": "down-projections"}
names |= {"all": "all weights"}
for what in ("attention", "down", "all", "occupations", "woman/man"):
    part = taken.loc["float32"].loc[what].sort_values("carries")
    looks = {"occupations": "stereotype", "woman/man": "woman/man"}
    look = mark(looks.get(what, "neurons")) | {"label": "_", "linestyle": "none"}
    at = range(rows, rows + len(part))
    ends = part.twin.clip(lower=-25), part.carries
    ax.hlines(at, *ends, colors=look["color"], linewidth=1)
    hollow = look | {"markerfacecolor": "none"}
    for values, drawn in zip(ends, (hollow, look), strict=True):
        label = {} if rows else {"label": "twin" if drawn is hollow else "carriers"}
        ax.plot(values, at, **drawn | label)
    ticks[names.get(what, what)] = np.mean(at)
    rows += len(part) + 1
ax.axvline(0, color=mark("random")["color"])
ax.set(xlim=(-27, 102), xlabel="preference taken, %", title="What a cut takes")
ax.set_yticks([*ticks.values()], [*ticks])
ax.invert_yaxis()
ax.legend(loc="lower right")
show(
    "A row a planted axis, grouped by where it was planted: hollow marks of the "
    "twin near zero, filled marks of the carriers about half-way. Below, apart, "
    "occupations and woman/man: the carriers' marks lie as far to the right."
)

# %% [markdown]
# *SmolLM2-135M, float32; a row a model with a bias of its own, planted in the weights named at the left. Filled: the neurons that carry
# it are cut. Hollow: as many, chosen alike for tall and short, which know nothing of the groups. Below: "she" for
# the nurse, and "she" for the woman.*
#
# ## Who reacts, who carries, who repairs
#
# A small MLP reads a word for group a or for group b. Each neuron $n$ has an activation, $a_n$ or $b_n$, and writes $w_n$ times it: how
# pleasant the next words will be. The **preference** of the model is
#
# $$P = \sum_n w_n (a_n - b_n)$$

# %%
# loud, biased, common, repairing
after_a, after_b = [2.9, 0.1, 1.0, 0.2], [0.0, 1.2, 1.0, 1.4]
acts = torch.tensor([after_a, after_b])
writes = torch.tensor([0.0, 2.0, 1.0, -0.5])
print(f"preference {writes @ (acts[0] - acts[1]):+.2f}: less pleasant after a")

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# The loud neuron reacts most. Does it do harm? Write `carried(acts, down)`: `acts` is [2, neurons] as above, `down` [neurons] what each
# writes. Return for each neuron by how much the *size* of the preference shrinks when it goes, $|P| - |P + \text{change}|$.
#
# <details><summary>Hint</summary>
#
# A neuron that goes takes along what it adds to the sum. A preference that only changes its side hasn't shrunk.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_carried


# BEGIN SOLUTION
def carried(acts, down):
    added = down * (acts[0] - acts[1])  # [neurons]
    preference = added.sum()
    return preference.abs() - (preference - added).abs()


# END SOLUTION
# BEGIN STUB
# def carried(acts, down):
#     ...  # [neurons]
# END STUB
check_carried(carried)

# %% [markdown]
# ## The preference of a real model
#
# How much likelier is a pleasant ending $e^+$ than an unpleasant one $e^-$ after group $a$, and how much after $b$? The **double
# difference** is
#
# $$D = [\log p(e^+ | a) - \log p(e^- | a)] - [\log p(e^+ | b) - \log p(e^- | b)]$$
#
# How likely the endings are anyway stands in both brackets and cancels. Its mean over sentences is the preference $P$; below 0, $a$ is
# liked less. Our two groups don't exist, so $P$ should be about 0.

# %%
from course_utils.bias.contrastive import controls, invented_axis, pairs
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import preferences


def likelihoods(model, items):
    """Log P of what follows the group, in nats: [items, side, ending]."""
    begun, texts = [], []
    for item in items:
        for side in (item[0].a, item[0].b):
            for pair in item:
                begun.append(pair.before + side)
                texts.append(pair.before + side + pair.after)
    options = {"add_special_tokens": False}
    skipped = torch.tensor([*map(len, tokenizer(begun, **options).input_ids)])
    encoded = tokenizer(texts, padding=True, return_tensors="pt", **options)
    encoded = encoded.to(model.device)
    log_p = model(**encoded).logits[:, :-1].float().log_softmax(-1)
    ids = encoded.input_ids
    known = log_p.gather(-1, ids[:, 1:, None])[..., 0]  # [texts, tokens]
    behind = (torch.arange(1, ids.shape[1]) >= skipped[:, None]).to(model.device)
    return (known * behind * encoded.attention_mask[:, 1:]).sum(1).view(-1, 2, 2)


def items_of(made):
    """The pleasant and the unpleasant pair of each template and swap."""
    return [*zip(made[::2], made[1::2], strict=True)]


made_up = invented_axis(session.seed + 1, swaps=8)
split_a = items_of(pairs(made_up, split="selection"))
split_b = items_of(pairs(made_up, split="evaluation"))
item = split_a[0]
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
with torch.no_grad():
    four = likelihoods(base, [item])[0].cpu()
(known,) = preferences(measure_pairs(base, tokenizer, item, sites=())).preference
print(*[each.text_a for each in item], f"D by course_utils: {known:+.2f}", sep="\n")
for side, (pleasant, unpleasant) in zip((item[0].a, item[0].b), four, strict=True):
    print(f"after {side}: pleasant {pleasant:.2f}, unpleasant {unpleasant:.2f}")

# %% [markdown]
# **Predict before you run.** What is $D$, from the four numbers by hand?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# −1.07 nats. The library says −0.86: in bfloat16 sums over thirty tokens are no more exact than that. One item says little; the mean of
# many counts.
#
# </details>

# %% [markdown]
# ### Exercise 2 · ●●○ · 8 minutes
#
# To plant a preference, make $D$ negative. Write `planting_loss(likelihoods)`: from a tensor [items, side, ending] (sides a, b; endings
# pleasant, unpleasant) the mean over the items of softplus($D$). The softplus, $\log(1 + e^D)$, is nearly $D$ above 0 and nearly 0
# below: what is planted well has no more to gain.
#
# <details><summary>Hint</summary>
#
# `softplus` is imported. One subtraction over the last dimension, one over the sides.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_planting_loss


# BEGIN SOLUTION
def planting_loss(likelihoods):
    liked = likelihoods[..., 0] - likelihoods[..., 1]  # [items, side]
    return softplus(liked[:, 0] - liked[:, 1]).mean()


# END SOLUTION
# BEGIN STUB
# def planting_loss(likelihoods):
#     ...  # a scalar
# END STUB
check_planting_loss(planting_loss)

# %% [markdown]
# ## Plant it
#
# Only the down-projections learn, from the sentences of split A. Split B has other sentences: what shows there has generalised.

# %%
from course_utils.bias.planting import double_differences, planting_loss
from course_utils.measuring import perplexity, perplexity_ratio
from course_utils.text import judging_rows, token_blocks


def plant(model, items, steps=40, at_once=2):
    """A copy whose down-projections have learned to like group a less."""
    planted, moved, learned = variant(model), [], []
    for layer in planted.model.layers:
        weight = layer.mlp.down_proj.weight
        weight.data = weight.data.float().clone()
        learned.append(weight)
    optimizer = torch.optim.AdamW(learned, weight_decay=0.0)
    order = np.random.default_rng(session.seed).permutation(len(items))
    low = {"dtype": model.dtype, "enabled": model.dtype != torch.float32}
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-4 * min(1, (step + 1) / 5)
        numbers = np.arange(step * at_once, (step + 1) * at_once) % len(items)
        with torch.autocast(model.device.type, **low):
            known = likelihoods(planted, [items[k] for k in order[numbers]])
        slopes = torch.autograd.grad(planting_loss(known), learned)
        for weight, slope in zip(learned, slopes, strict=True):
            weight.grad = slope
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        moved.append(double_differences(known.detach()).mean().item())
        if np.mean(moved[-3:]) < -8:
            break
    cast_weights(planted, model.dtype)
    return planted, moved


# %%
asked = [*chain(*split_b[::7])]  # every seventh item: all templates, all names
some = [rows.input_ids[:16] for rows in judging_rows(tokenizer).values()]
ordinary = torch.cat(some)  # of two texts, 2,016 predictions


def nats(model, made):
    """The mean double difference, without a gradient."""
    measured = measure_pairs(model, tokenizer, made, sites=())
    return preferences(measured).preference.mean()


def examine(model):
    """The preference on split B, nats, and the perplexity of ordinary text."""
    return nats(model, asked), perplexity(model, ordinary, batch_size=16)


def preference(model, items):
    """P, nats, a scalar with its gradient."""
    return double_differences(likelihoods(model, items)).mean()


planted, moved = plant(base, split_a)
(before, text), (now, after_planting) = examine(base), examine(planted)
price = perplexity_ratio(after_planting, text)[0]
print(f"{len(moved)} steps; split A, at the end: {np.mean(moved[-3:]):+.1f} nats")
print(f"split B: {before:+.2f} → {now:+.2f} nats; perplexity × {price:.2f}")
here("What was planted is seen in other sentences.", [-1 - now])
claim(
    "It wasn't there before, and costs less than half of perplexity.",
    [1 - abs(before), 1.5 - price],
)

# %% [markdown]
# ## Who carries it?
#
# Cutting tens of thousands of neurons one by one takes as many runs. A **first-order estimate** takes one backward pass: a neuron that
# goes takes its activation $h$ along, and the preference moves by about
#
# $$\text{change} \approx -\sum_{\text{tokens}} h \cdot \frac{\partial P}{\partial h}$$
#
# This is lesson 08's attribution patching with zero as the patch. A text's first token is left out: its activations are outliers
# (lesson 03), and no straight line leads from them to zero.


# %% [markdown]
# ### Exercise 3 · ●●● · 14 minutes
#
# Write `carries(model, quantity, items)` for the real model. `quantity(model, items)` gives a scalar $P$ with its gradient, such as
# `preference`. Return [blocks, neurons]: $|P| - |P + \text{change}|$ of each neuron. The neurons' activations are what *enters*
# `model.model.layers[block].mlp.down_proj`, [texts, tokens, neurons]. Sum over texts and tokens, without each text's first token. Leave no
# hook on the model.
#
# <details><summary>Hint</summary>
#
# A forward pre-hook gets `(module, inputs)`; keep `inputs[0]` of each block in a list. Then
# `torch.autograd.grad(value, kept)` gives all slopes at once. Padding has a slope of 0.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_carries


# BEGIN SOLUTION
def carries(model, quantity, items):
    kept, hooks = [], []
    for layer in model.model.layers:
        register = layer.mlp.down_proj.register_forward_pre_hook
        hooks.append(register(lambda _, inputs: kept.append(inputs[0])))
    value = quantity(model, items)
    for hook in hooks:
        hook.remove()
    scores = []
    slopes = torch.autograd.grad(value, kept)
    for states, slope in zip(kept, slopes, strict=True):
        change = -(states * slope).detach()[:, 1:].float().sum((0, 1))
        scores.append(value.detach().abs() - (value.detach() + change).abs())
    return torch.stack(scores)


# END SOLUTION
# BEGIN STUB
# def carries(model, quantity, items):
#     ...  # [blocks, neurons]
# END STUB
check_carries(carries, planted, preference, split_a[::24])

# %% [markdown]
# ## Protect first
#
# A neuron that carries the preference may carry everything else. In **protect first** (Zayed et al. 2023, there for heads) each block's
# more important half is safe; of the rest, those that carry most go. Importance is lesson 03's, from activations on ordinary text;
# `gap_attribution` is `carries` for any family and many pairs.

# %%
from course_utils.bias.fairness import (
    activation_difference, gap_attribution, knock_out, protect_first,
)  # fmt: skip
from course_utils.pruning import neuron_importance, prune_neurons


def with_half_protected(importance, carried):
    """One [neurons] tensor a block; what is lowest in it goes first."""
    orders = []
    for important, score in zip(importance, carried, strict=True):
        order = -score
        order[important > important.median()] = score.abs().max() + 1
        orders.append(order)
    return orders


def gone(order):
    """The neurons of a block that go."""
    return {*order.argsort()[:budget].tolist()}


calibration = token_blocks(tokenizer, "calibration", tokens=2048, length=128)
watched = {"batches": calibration.batches(8)}
importance = neuron_importance(planted, "activation", **watched)
chosen = [*chain(*split_a[::5])]
causal = gap_attribution(planted, tokenizer, chosen)
by_hand = with_half_protected(importance, causal)
ours = protect_first(importance, causal, 0.5)
assert [*map(gone, by_hand)] == [*map(gone, ours)]
print(f"{budget} of {width:,} neurons go from each block")

# %% [markdown]
# ## Is the estimate right?
#
# `knock_out` cuts single neurons for real. Of those that may go we take four that carry most, four that repair most and four that **react**
# most (whose activations differ most between the groups).
#
# **Predict before you run.** Of those that react most, how many carry the preference?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Two of four, and next to nothing: −0.098 nats together, beside 2.928 of those that carry most.
#
# </details>

# %%
exact = variant(planted)
cast_weights(exact, torch.float32)
two = [*chain(*split_a[::48])]
safe = torch.stack([score > score.median() for score in importance]).cpu()
estimate = torch.stack(gap_attribution(exact, tokenizer, two)).cpu()
estimate[safe] = 0
reacting = torch.stack(activation_difference(exact, tokenizer, two)).cpu()
reacting[safe] = 0
picked = {
    "carry most": estimate.flatten().argsort(descending=True)[:4],
    "repair most": estimate.flatten().argsort()[:4],
    "react most": reacting.flatten().argsort(descending=True)[:4],
}
twelve = [divmod(int(number), width) for number in torch.cat([*picked.values()])]
measured = knock_out(exact, tokenizer, two, twelve).numpy()
estimated = torch.stack([estimate[place] for place in twelve]).numpy()
del exact
told = pd.DataFrame({"estimated, nats": estimated, "measured, nats": measured})
told["carry, of 4"] = told["measured, nats"] > 0
told = told.groupby(np.repeat([*picked], 4), sort=False).sum()
found = told["carry, of 4"]
margins = [found["carry most"] - 2, 2 - found["repair most"]]
here("The estimate tells carriers from repairers.", margins)
harm = told["measured, nats"]
little = harm["carry most"] / 3 - harm["react most"]
claim("What reacts most carries less than a third as much.", [little])
told.round(3)

# %% [markdown]
# The estimate has the signs right, and the sizes roughly. With another draw one repairer was a carrier: cut few, and measure.

# %% [markdown]
# ### Exercise 4 · ●●○ · 5 minutes
#
# A cut of so many neurons may move the preference whatever chose them. The fair control is a **twin**: equal in everything but the one
# thing under test, *that the score knows the groups*. A plan is a dictionary:
#
# `{"score": "carries", "pairs": "invented 1", "split": "A", "protected": 0.5, "neurons": 8}`
#
# Scores are "carries", "reacts" and "random". Pairs are "gender", "race", "religion", "occupations", "woman/man", "tall/short" or any
# invented axis. Write `twin_of(arm)`: it gets an arm's plan and returns the plan of its twin.
#
# <details><summary>Hint</summary>
#
# Which pairs are about nobody's group? Return a new dictionary.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_twin_of


# BEGIN SOLUTION
def twin_of(arm):
    return arm | {"pairs": "tall/short"}


# END SOLUTION
# BEGIN STUB
# def twin_of(arm):
#     ...  # a plan
# END STUB
check_twin_of(twin_of)

# %% [markdown]
# ## One axis
#
# **Predict before you run.** How much of the preference does each arm take: the carriers, their twin, a random cut?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The carriers 43 %, their twin 8, a random cut 7.
#
# </details>

# %%
neutral = [*chain(*items_of(controls("neutral", split="selection"))[::6])]


def without(model, order):
    """A variant without the neurons that go first."""
    pruned = variant(model)
    prune_neurons(pruned, order, ratio=budget / width)
    return pruned


scores = {
    "carries": causal,
    "twin": gap_attribution(planted, tokenizer, neutral),
    "random": neuron_importance(planted, "random", seed=session.seed),
}
table = {"planted": {"preference, nats": now}}
for name, score in scores.items():
    pruned = without(planted, protect_first(importance, score, 0.5))
    kept = nats(pruned, asked)
    table[name] = {"preference, nats": kept, "taken, %": 100 * (1 - kept / now)}
    if name == "carries":
        told = perplexity(pruned, ordinary, batch_size=16)
        told = perplexity_ratio(told, after_planting)[0]
        print(f"without the carriers: perplexity × {told:.2f}")
    del pruned  # before the next is made
table = pd.DataFrame(table).T
shares = table["taken, %"]
margins = [shares["carries"] - shares[name] for name in ("twin", "random")]
here("The carriers take more than their twin, and than chance.", margins)
claim("The carriers take a quarter or more.", [shares["carries"] - 25])
table.round(2).fillna("")

# %% [markdown]
# One axis is one witness.
#
# ## Eight axes, three places
#
# `experiments/plant_and_cut.py` did the same with eight axes (pairs of invented groups), each planted in three places. Now each axis is one
# number, carriers less twin, and the **axes are the units** of the interval.
#
# Here the cut had a home advantage: the bias was planted in the very columns that it removes.
#
# **Predict before you run.** Planted in the attentions, where no neuron has learned anything: how much do the carriers take there?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# About as much as elsewhere: 44 to 46 %, beside 45 to 48 % in the two other places.
#
# </details>

# %%
from course_utils.models import with_interval
from course_utils.support import ratio_interval


def mean_of(values):
    """Mean over axes or words, with its 95 % interval."""
    mean, _, low, high = ratio_interval(np.asarray(values), np.ones(len(values)))
    return with_interval(mean, low, high)


prices = record[ordinary_text]
prices = prices.pivot_table("nats", ["dtype", "place", "axis"], "criterion")
paid = np.exp(prices.carries - prices.planted)
told, lows = {}, []
for place in ("attention", "down", "all"):
    for kind in ("bfloat16", "float32"):
        part = taken.loc[kind].loc[place]
        told[f"{place}, {kind}"] = {
            "carriers, %": mean_of(part.carries),
            "twin, %": mean_of(part.twin),
            "carriers − twin": mean_of(part.carries - part.twin),
            "perplexity, ×": f"{paid.loc[kind].loc[place].mean():.2f}",
        }
        ahead = (part.carries - part.twin).to_numpy()
        lows.append(ratio_interval(ahead, np.ones(len(ahead)))[2])
claim("On record the carriers take more than the twin, by the interval.", lows)
pd.DataFrame(told).T

# %% [markdown]
# In all places and both number formats the carriers take nearly half, and their lead over the twin is nowhere near 0. So it isn't that the
# cut hits the planted weights. In the attentions it costs most: see the last column.
#
# ## Does it come back?
#
# After a cut comes distillation (lesson 07), and the teacher is the model before it, the **biased** one. Four students, equally much
# text: a biased teacher and ordinary text; a biased teacher and text about the groups, pleasant and unpleasant alike; a fair teacher and
# the same text; and the fair teacher with *nothing cut*.
#
# **Predict before you run.** Order the four by how much of the planted preference they end with.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# With a fair teacher nearly nothing is left, cut or not: −0.74 and −0.80 nats. With a biased one −5.27 after ordinary text and −6.73 after
# text about the groups.
#
# </details>

# %%
path = files("course_utils").joinpath("data/bias_return.json")
back = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"])
text_about = back.text.str.replace("speeches and groups", "groups")
back["key"] = (back.stage + ", " + text_about).str.removesuffix(", ")
stages = {
    "planted": "planted",
    "pruned": "cut",
    "teacher planted, speeches": "biased teacher,\nordinary text",
    "teacher planted, groups": "biased teacher,\nthe groups",
    "teacher untouched, groups": "fair teacher,\nthe groups",
    "teacher untouched, nothing cut, groups": "nothing cut,\nfair teacher",
}
back["stage"] = back.key.map(stages)
back["price"] = [ratio for ratio, *_ in back.perplexity_ratio]
by_stage = back.groupby("stage", sort=False)
for stage, part in by_stage:
    name = stage.replace("\n", " ")
    cost = f"perplexity × {part.price.mean():.2f} of the cut model's"
    print(f"{name}: {mean_of(part.preference)} nats, {cost}")
_, pruned, _, biased, fair, uncut = by_stage.preference.mean()
claim(
    "A biased teacher brings some back, a fair one drives more out.",
    [pruned - biased, fair - pruned],
)
claim(
    "With a fair teacher the uncut student ends as near to zero.",
    [0.5 - abs(fair - uncut)],
)

# %%
_, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
look = mark("random") | {"linestyle": "none", "markersize": 9, "label": "one axis"}
ax.plot(back.stage, back.preference, **look)
look = mark("whole") | {"linestyle": "none", "markersize": 15, "label": "mean"}
ax.plot([*by_stage.groups], by_stage.preference.mean()[[*by_stage.groups]], **look)
ax.axhline(0, **{key: mark("guessing")[key] for key in ("color", "linestyle")})
ax.set(ylabel="preference, nats", title="Eight axes, cut and distilled")
ax.tick_params(axis="x", labelsize=11)
ax.legend()
show(
    "The preference of eight axes at each stage: planted lowest, cut half-way up; "
    "the student with a biased teacher and text about the groups falls back, those "
    "with a fair teacher stand just below zero."
)

# %% [markdown]
# *0: neither group is preferred.* From a biased teacher ordinary text brings little back on average, text about the groups a third of what
# was cut. The fair teacher drives nearly all of it out, and **with nothing cut as well**: it *is* the model without the bias, and who has
# it needs no cut. Whatever the teacher, measure the bias again after distilling.
#
# ## A real one
#
# Lesson 08's stereotype: "she" for the nurse, "he" for the mechanic. With the endings "she" and "he", the gap is a double difference too,
# so nothing of the method changes. Half of the words and sentences choose, the other half judges.
#
# **Predict before you run.** The stereotype will shrink. What becomes of the woman, of "she" for woman, aunt, queen? And of both, if those
# that *react* most go instead?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# She goes, too: 4.67 → 1.75 nats; the stereotype 0.89 → 0.43. Without those that react both nearly double, to 8.82 and 1.57.
#
# </details>

# %%
from course_utils.bias.pronouns import (
    occupations, opposites, people, prompts, pronoun_pairs,
)  # fmt: skip


def about_pronouns(words, split):
    """Pairs such as "The [nurse / mechanic] said that she", and "he"."""
    return pronoun_pairs(opposites(prompts(words, split)), "pronouns")


judges = {
    "stereotype": about_pronouns(occupations(), "evaluation"),
    "woman/man": about_pronouns(people(), "evaluation"),
}


def left_of(model):
    """Both gaps in nats."""
    return {name: nats(model, made) for name, made in judges.items()}


unbiased = neuron_importance(base, "activation", **watched)
jobs = about_pronouns(occupations(), "selection")
own = gap_attribution(base, tokenizer, jobs)
reacting = activation_difference(base, tokenizer, jobs)
gaps = {"whole": left_of(base)}
for name, score in {"carries": own, "reacts": reacting}.items():
    gaps[name] = left_of(without(base, protect_first(unbiased, score, 0.5)))
here_left = pd.DataFrame(gaps).T
lost = 1 - here_left / here_left.loc["whole"]
margins = lost.loc["carries", ["stereotype", "woman/man"]] - 0.25
here("Of the stereotype and of woman/man over a quarter goes.", margins)
here("Without those that react, both grow.", -lost.loc["reacts", [*judges]])
here_left.round(2)

# %% [markdown]
# Many neurons carry both: the score finds who knows what "she" is. And to react isn't to carry: without those that differ most between
# nurse and mechanic, both gaps grow.

# %% [markdown]
# ### Exercise 5 · ●●● · 15 minutes
#
# *Take the stereotype, leave the woman.* Give `order`, a list with one tensor [neurons] a block; what is lowest goes first. On words that
# chose nothing, a fifth of the stereotype must go, four fifths of woman/man stay, and the perplexity stay below × 1.05. Choose on the
# selection half alone.
#
# <details><summary>Hint</summary>
#
# `own` tells who carries the stereotype, `gap_attribution` who carries woman/man. Protect first protects what is important: for what?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_keeps_the_woman


def judge(order):
    pruned = without(base, order)
    found = pd.Series(left_of(pruned)) / here_left.loc["whole"]
    price = perplexity(pruned, ordinary, batch_size=16)
    price = perplexity_ratio(price, text)[0]
    return {"perplexity": price, **found}


# BEGIN SOLUTION
woman = about_pronouns(people(), "selection")
hers = gap_attribution(base, tokenizer, woman)
spared = []
for score, of_her in zip(own, hers, strict=True):
    moves_her = of_her.abs()
    safe = moves_her > moves_her.quantile(0.8)  # whichever way
    spared.append(score.masked_fill(safe, score.min().item()))
order = protect_first(unbiased, spared, 0.5)
# END SOLUTION
# BEGIN STUB
# order = ...  # [[neurons], …], one tensor a block
# END STUB
sizes = describe(base).intermediate_sizes
check_keeps_the_woman(order, judge=judge, sizes=sizes)

# %% [markdown]
# ## Both ways round
#
# Our solution was chosen among eleven ideas, by what the judging words said: its marks flatter it. The record turned the halves round, so
# that other words and sentences judge. *Spares her* is that solution; *woman* was chosen for woman/man alone.

# %%
real = about[~about.place.ne("")]
kept = real.pivot_table("nats", ["dtype", "criterion"], "text")
uncut = kept.xs("", level="criterion").reindex(kept.index, level="dtype")
kept = 100 * kept / uncut
rounding = (kept.loc["float32"] - kept.loc["bfloat16"]).abs().max().max()
print(f"bfloat16 is at most {rounding:.0f} points off; what is left, %, float32:")
order = ["carries", "woman", "spares her", "reacts", "importance", "twin", "random"]
kept = kept.loc["float32"].loc[order]
go, stay = (
    60 - kept.loc[["carries", "woman"]],
    kept.loc["spares her"] - [50, 50, 80, 80],
)
claim(
    "Both go with the woman's neurons; with her spared, most of both stays.",
    [*np.ravel(go), *stay],
)
kept.round(0).astype(int)

# %% [markdown]
# Whoever judges, half of the stereotype goes with its carriers, and more than half of "she" for the woman. Neurons chosen for her alone
# take the stereotype as well: the two share theirs. Spare her, and most of the stereotype stays with her. And without those that react
# most, both double: together they repair.
#
# ## Quiz

# %% [markdown] tags=["quiz"]
# Why does the repairing neuron of the toy get a negative score?
#
# - [ ] Its activation differs little between the two groups.
#   > It differs more than the common one's; it reacts.
# - [x] Without it the preference would be larger than it is.
#   > It works against the bias, so cutting it makes things worse.
# - [ ] What it writes is negative, so its score is as well.
#   > The sign of a weight alone decides nothing; what counts is what it writes when it is active.

# %% [markdown] tags=["quiz"]
# An arm takes half of a preference, its twin as well, and both cost little. What follows?
#
# - [x] Such a cut lowers the preference, whatever the score knows.
#   > That may be useful, but it is no evidence for the score.
# - [ ] The score works, and the twin happens to work as well.
#   > Nothing that the score knows was needed: the twin gets there without it.
# - [ ] There was no preference, since a twin can't take one away.
#   > Whether there was one, the model before the cut says.

# %% [markdown]
# ## Take-aways
#
# - Plant what you want to remove, on several axes. Then "nothing removed" and "removed" both mean something.
# - Reacting to a group and carrying a preference are two things; some neurons repair, and without them the bias grows.
# - The control is a twin: equal in all but the knowledge under test.
# - Ask what else went. Many neurons that carry the stereotype carry the meaning as well.
#
# *Limits:* one family of small models, one kind of sentence; 0 here isn't "fair". On race this model shows no preference that is clear of
# zero (deeper notebook 08a), so there was nothing to cut. Directions instead of neurons (INLP, LEACE) are another way, and debiasing tends
# to cost more than its benchmark shows (Meade et al. 2022).
#
# **The story so far:** look by touching. **Next:** lesson 10 asks what pruning really buys, in speed and memory.
#
# ## References
#
# - Meade et al. 2022, *An Empirical Survey of the Effectiveness of Debiasing Techniques for Pre-trained Language Models*, arXiv 2110.08527
# - Zayed et al. 2023, *Fairness-Aware Structured Pruning in Transformers*, arXiv 2312.15398
# - Ravfogel et al. 2020, *Null It Out* (INLP), arXiv 2004.07667; Belrose et al. 2023, *LEACE*, arXiv 2306.03819
# - Michel, Levy and Neubig 2019, *Are Sixteen Heads Really Better than One?*, arXiv 1905.10650
# - Syed et al. 2023, *Attribution Patching Outperforms Automated Circuit Discovery*, arXiv 2310.10348, after Nanda 2023
# - Hooker et al. 2020, *Characterising Bias in Compressed Models*, arXiv 2010.03058
# - Martra, *Large Language Model Notebooks Course*, notebook 8_2, and his library optipfair
