# ---
# jupyter:
#   course:
#     title: "Pruning with fairness in mind, tested like a sceptic"
#     minutes: 135
#     prerequisites: lesson 08 (contrastive pairs, the neutral control; its deeper notebook 08a for double differences), lesson 03, lesson 07
#     assets: [smollm2, benchmarks, texts, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - why a number can be true and still mean nothing: the same pair chose the neurons and judged them
# - two scores for a neuron: does it *react* to a group, or does it *carry* the preference?
# - how to compare arms at equal budget: random removal, neutral swaps, a twin that knows nothing, held-out templates, ability
# - the fair test of a method that finds nothing: plant a bias, a large one and a small one, and see whether it is removed
# - what two other remedies do, which cut nothing: a little training, and a projection
# - whether distillation from a biased teacher brings the bias back
#
# *Content note: the sentences name groups of people and say pleasant and unpleasant things about strangers. None is a slur,
# and each is said of every group alike.*
#
# A reader who expects a recipe for a fair model will be disappointed. What you get is a way to find out whether somebody
# else's recipe works.
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct; in the `hub` profile the same code runs on Llama-3.2-1B. The saved
# outputs come from the `embedded` profile on a machine with two CPU cores; the next table says which.

# %% [markdown] tags=["notes"]
# **The point:** "removed" needs five conditions, and a number that was chosen and judged on the same pair meets none of them.
#
# **Show the claim first** and let the room list what they would ask; then the table of answers. Exercise 3 (is it circular?) in pairs.
#
# **Usual questions:** "Then does nothing work?" Plant a bias and look: that is the turn of the lesson.
#
# **Wrong turns:** taking a broken model for a fair one; taking "nothing removed" for proof that the method fails.
#
# **At the end you have** five conditions for "removed", held against a published kind of claim and against a bias
# that you planted yourself.

# %% tags=["install"]

# %%

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from course_utils import diagrams
from course_utils.plotting import ability_and_bias, rows_with_intervals, scores_with_intervals, show, show_tensor, style
from course_utils.reports import shown, shown_p, with_interval
from course_utils.session import start

session = start("09")
style()

# %%
# The sizes that decide how long the lesson runs.
AXIS, OTHER_AXES = "race", ("gender", "religion")
TEMPLATES, SWAPS = 8, 8  # of each split, for an axis; a template with a swap makes two pairs, one for each ending
EACH = 2  # swaps that each template meets, in turn
SINGLE = 6  # pairs that choose alone, one a template; as many judge them
FRESH_TEMPLATES, FRESH_SWAPS = 4, 6  # for the last word about the axis; there every template meets every swap
PLANT_NAMES, PLANT_TEMPLATES = 8, 10  # made-up swaps to plant with; templates of split B that judge the planted bias
CLAIMED = 0.002  # share of each MLP's neurons that the claim removes
BUDGET = 0.005  # share that our arms remove
SCEPTIC_SEEDS = range(19)  # random removals that question the claim: better than all of them has p = 1/20
SEEDS = range(5)  # random removals beside the arms
ABLE = 1.10  # an arm is able if the 95 % interval of its perplexity, × unpruned, ends below this
ROWS = {"speeches": 4, "wiki": 4}  # evaluation text for the perplexity, rows of 128 tokens
DOCUMENTS = 16  # of LAMBADA
CLOSER = ("importance", "protect first")  # the arms that get a closer look
PLANT_STEPS, PLANT_ITEMS, PLANT_LR, PLANTED = 60, 4, 5e-4, 10.0  # items a step (4 texts each); size of the bias, nats
BACK_ITEMS = 2  # items a step of the training back

# %% [markdown]
# ## A claim in circulation
#
# > Removing a fifth of a percent of a model's neurons, chosen by how differently they are activated by two prompts that
# > differ in one word, lowers the bias by 22 %.
#
# It sounds like a bargain, and the numbers are not made up. Let's do what was done. Take **one pair** of prompts. Find the
# neurons whose activations differ most between its sides. Remove them. Measure the "bias": how far the outputs of the MLPs
# still differ, on average, between the two sides.
# %%
from course_utils.activations import watching
from course_utils.architectures import describe
from course_utils.bias.contrastive import controls, invented_axis, pairs, subset
from course_utils.bias.packing import packed_batches
from course_utils.models import load_model, variant
from course_utils.session import safe_dtype

dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
width = describe(base).intermediate_sizes[0]


# %%
def some(made, *, templates=TEMPLATES, swaps=SWAPS):
    """The shortest templates with the first few swaps and both endings; each template meets EACH of these swaps."""
    kept = subset(made, templates=templates, swaps=swaps)
    rows, columns = (list(dict.fromkeys(getattr(pair, unit) for pair in kept)) for unit in ("template", "swap"))
    return [pair for pair in kept if (columns.index(pair.swap) - rows.index(pair.template)) % swaps < EACH]


def one_ending(made, templates):
    """One pair for each of the shortest templates: the first swap, with the pleasant ending."""
    return [pair for pair in some(made, templates=templates, swaps=1) if pair.valence == 1]


@torch.no_grad()
def activation_gap(model, pairs):
    """Mean |a - b| of what the MLPs add to the stream, over all blocks and all shared tokens behind the span."""
    architecture, total, numbers = describe(model), 0.0, 0

    def receive(site, block, states):
        nonlocal total, numbers
        difference = states[one.sides[0].at].float() - states[one.sides[1].at].float()
        total, numbers = total + difference.abs().sum().item(), numbers + difference.numel()

    batches = packed_batches(architecture, tokenizer, pairs)  # before anybody watches: the first time, it tries masks
    with watching(architecture, ["mlp_out"], None, receive):
        for one in batches:
            architecture.hidden_states(one.batch)
    return total / numbers


selection, evaluation = (some(pairs(AXIS, split=split)) for split in ("selection", "evaluation"))
single = one_ending(pairs(AXIS, split="selection"), SINGLE)
print(f"{base.config.name_or_path}: {describe(base).num_blocks} blocks of {width:,} neurons, in {dtype}")
print("a pair:", single[0].text_a)
print("       ", single[0].text_b)

# %% [markdown]
# "The neurons whose activations differ most" leaves room. All of them? Or, to spare the model, only those that are not
# *important* otherwise? By which importance? The published procedure joins the difference with an importance. And which pair?
# We try three recipes on six pairs.

# %%
from course_utils.bias.fairness import activation_difference, hybrid
from course_utils.texts import token_blocks
from course_utils.width import neuron_importance, prune_neurons


def without(model, order, share):
    """A variant of a model without the share of each MLP's neurons that is lowest in this order; at least one."""
    pruned = variant(model)
    prune_neurons(pruned, order, ratio=max(1, round(share * width)) / width)
    return pruned


def highest_first(scores):
    """As prune_neurons wants it: what has the highest score goes first."""
    return [-score for score in scores]


ordinary = token_blocks(tokenizer, "calibration", tokens=2048, length=128)
importance = neuron_importance(base, "activation", batches=ordinary.batches(8))
magnitude = neuron_importance(base, "peak_to_peak")
RECIPES = {
    "differs most": highest_first,
    "differs, small weights": lambda scores: hybrid(magnitude, scores, 0.5),
    "differs, unimportant": lambda scores: hybrid(importance, scores, 0.5),
}
# %%
neutral_few = one_ending(controls("neutral", split="evaluation"), SINGLE)
neutral_before = activation_gap(base, neutral_few)


def change(model, pairs, before):
    """By what share the gap has changed."""
    return activation_gap(model, pairs) / before - 1


tried = []
for pair in tqdm(single, desc="pairs"):
    scores, before = activation_difference(base, tokenizer, [pair]), activation_gap(base, [pair])
    for recipe, order_by in RECIPES.items():
        pruned = without(base, order_by(scores), CLAIMED)
        gaps = {"same pair": change(pruned, [pair], before), "neutral": change(pruned, neutral_few, neutral_before)}
        tried.append({"pair": pair.template, "recipe": recipe} | gaps)
del pruned  # its own MLPs: most of a model
tried = pd.DataFrame(tried)
removed = max(1, round(CLAIMED * width))
best = tried.loc[tried["same pair"].idxmin()]
print(f"{removed} of {width:,} neurons removed from each block; change of the 'bias' of the pair that chose them:")
print(f"the best of {len(tried)}: {best['same pair']:+.1%} ('{best.recipe}', the pair about a {best['pair']})")
print(f"it fell in {(tried['same pair'] < 0).sum()} of {len(tried)} removals")
tried.pivot(index="recipe", columns="pair", values="same pair").loc[list(RECIPES)].map("{:+.1%}".format)

# %% [markdown]
# There is a number for a headline. Nobody has to cheat for it. It is enough to try some variants and to stop when it looks
# good.
#
# **Saved run.** The best of the 18 removals lowers the "bias" of its own pair by 6.9 %; 5 of the 18 lower it at all. The recipe nearest
# to the published one, *differs, small weights*, lowers it for 1 pair of 6, by 1.4 %.
#
# So the published −22 % did not reproduce here. That is all that can be said: another model, other pairs, and a procedure with
# room in it; its author calls it a proof of concept. Whether such a number *means* anything is another question, and we can ask it
# of our own best removal. A sceptic would ask:
#
# 1. And the same words in **other sentences**? The neurons were chosen on this pair.
# 2. And **another axis**, which had no part in the choice?
# 3. And a **neutral swap**, such as tall for short? Nobody is treated unfairly there, so there is nothing to repair.
# 4. And as many **random** neurons, nineteen times? And what does it cost?
#
# **Predict before you run.** In new sentences with the same words, will the headline's removal do better than all nineteen random
# ones? And will the neutral swaps stay where they are?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In new sentences with the same words the headline's removal lowers the measure by 0.038 of itself, and none of the random removals gets
# as low: their range is −0.022 to 0.035. So something is there. But it lowers the other axis by 0.020, which only 2 of the random
# ones reach, and the neutral swaps by 0.018, lower than any. So the neutral swaps fall as well: half of the effect is left for
# tall and short.
#
# </details>

# %%
from course_utils.evaluation import evaluate, perplexity, perplexity_ratio

blocks = [token_blocks(tokenizer, "evaluation", domain=name, tokens=128 * n, length=128) for name, n in ROWS.items()]
text = torch.cat([some_rows.input_ids for some_rows in blocks])
short = text[:: len(text) // 2]  # two rows, where many models have to be asked
shorter = short[:, :64]  # and their first halves, where more have to be asked
shorter_text = perplexity(base, shorter, batch_size=2)
headline_pair = next(pair for pair in single if pair.template == best["pair"])
asked = {
    "same pair": [headline_pair],
    "same words, new sentences": one_ending(pairs(AXIS, split="evaluation"), SINGLE),
    f"another axis ({OTHER_AXES[0]})": one_ending(pairs(OTHER_AXES[0], split="evaluation"), SINGLE),
    "neutral swaps": neutral_few,
}
winner = RECIPES[best.recipe](activation_difference(base, tokenizer, [headline_pair]))
before = {judge: activation_gap(base, judged) for judge, judged in asked.items()}
rows = {}
by_chance = {f"random {seed}": neuron_importance(base, "random", seed=seed) for seed in SCEPTIC_SEEDS}
for name, order in tqdm({"the headline": winner, **by_chance}.items(), desc="removals"):
    pruned = without(base, order, CLAIMED)
    rows[name] = {judge: change(pruned, judged, before[judge]) for judge, judged in asked.items()}
    rows[name]["perplexity, ×"] = perplexity_ratio(perplexity(pruned, shorter, batch_size=2), shorter_text)[0]
del pruned
sceptic = pd.DataFrame(rows).T
random_ones = sceptic.drop("the headline")
answers = pd.DataFrame(
    {
        "the headline": sceptic.loc["the headline"],
        "random, lowest": random_ones.min(),
        "random, median": random_ones.median(),
        "random, highest": random_ones.max(),
        "random as low": (random_ones <= sceptic.loc["the headline"]).sum(),
    }
)
answers.map("{:.3f}".format).assign(**{"random as low": answers["random as low"].astype(int)})

# %%
from course_utils.uncertainty import rank_correlation

NEAR = (-10, 20)  # %, what the second panel shows
figure, axes = plt.subplots(2, 1, figsize=(9, 12), layout="constrained")
ends = [100 * f(tried[["same pair", "neutral"]].to_numpy().ravel()) for f in (min, max)]
by_luck = 100 * random_ones[["same pair", "neutral swaps"]].to_numpy().T
for ax in axes:
    ax.scatter(*by_luck, s=50, marker="X", color="0.6", label="random")
    for number, (recipe, part) in enumerate(tried.groupby("recipe", sort=False)):
        looks = {"marker": "os^"[number], "edgecolor": "white", "zorder": 3 + number}
        ax.scatter(100 * part["same pair"], 100 * part["neutral"], s=90, label=recipe, **looks)
    ax.plot(ends, ends, color="0.5", linestyle=":", label="neutral swaps change as much")
    ax.axhline(0, color="0.25", linewidth=1)
    ax.axvline(0, color="0.25", linewidth=1)
    ax.set_ylabel("neutral swaps: change, %")
axes[1].set(xlim=NEAR, ylim=NEAR, xlabel="the pair that chose: change of the mean |difference|, %")
axes[0].set_title(f"'Bias' after removing {removed} of {width:,} neurons a block")
axes[1].set_title(f"The same points near zero: −{-NEAR[0]} to {NEAR[1]} % only")
axes[0].legend(fontsize="small")
show(
    "Two scatters: how much the pair's difference changed against how much neutral swaps changed, for three recipes on six pairs "
    "and nineteen random removals. Above all points: only differs most moves far, and there the neutral swaps move along. "
    "Below only those near zero: most squares, small weights, lie to the right; the triangles, unimportant, on both sides, "
    "among the crosses of the random removals and beyond them."
)

beyond = tried.assign(beyond=tried["same pair"] - tried["neutral"]).groupby("recipe", sort=False)
summary = beyond[["same pair", "neutral", "beyond"]].mean().map("{:+.1%}".format)
summary["Spearman, pair | neutral"] = [
    f"{rank_correlation(part['same pair'].to_numpy(), part['neutral'].to_numpy())[0]:.2f} of {len(part)}"
    for _, part in beyond
]
summary

# %% [markdown]
# If removals took *bias* out, the points would lie to the left and at the height of zero (the lower panel shows that place
# closer): the axis falls, the neutral swaps stay. Neurons are gone, so **everything** that the MLPs put out may have another
# size. The measure sees a size and calls it bias.
#
# **Saved run.** No recipe's cluster lies there. *Differs most* raises the pair's measure by 38.8 % on average and the neutral
# swaps' by 45.8 %. *Differs, small weights* raises the pair's by 8.3 % and the neutral ones' less (2.8 %): that is beyond
# neutral, in the wrong direction. *Differs, unimportant*, which held the headline, changes the pair's by −1.0 % on average and
# the neutral ones' as much (−0.8 %). Within a recipe the two changes go together in the first (0.66) and in the second (0.77),
# not in the last (−0.09); six points each can't say more.
#
# So we need another measure, and another way to choose. First a pause: what would you have asked for?

# %%
from course_utils.exercises.lesson_09 import check_three_controls

# %% [markdown]
# ### Exercise 1 · ●●○ · 10 minutes
#
# Design a control. A colleague says: "I cut 1 % of the neurons by my occupation score. The occupation bias fell by 40 %, at a
# perplexity × 1.02." You may ask for three comparisons. Which three?
#
# - **a.** random removals of the same size, nineteen of them
# - **b.** the same with 5 % of the neurons
# - **c.** a removal with the same protection of important neurons, ordered by a score of neutral swaps
# - **d.** the same sentences again with another seed
# - **e.** templates that had no part in choosing the neurons
# - **f.** the same after a longer training of the base model
#
# <details><summary>Hint</summary>
#
# Three stories would explain the 40 % without the colleague's score knowing anything: any removal does it; any removal of
# neurons that react does it; it holds for these sentences only.
#
# </details>

# %% tags=["exercise"]
# BEGIN SOLUTION
comparisons = {"a", "c", "e"}
# END SOLUTION
# BEGIN STUB
# comparisons = ...  # three letters, for instance {"a", "b", "c"}
# END STUB
check_three_controls(comparisons)

# %% [markdown]
# ## Reacting is not harming
#
# First the piece that is cut. One neuron of a GLU is a row of gate, a row of up and a column of down; a removal takes all three.

# %%
diagrams.glu_block(neuron=1)
show(
    "A Llama block beside its MLP opened up: gate and up with one row hatched, down with one column hatched, joined by SiLU and "
    "a product."
)

# %% [markdown]
# What the neuron *reads* stands in its two rows, what it *writes* in its column. A score that looks at how it reacts knows the
# rows; whether that does any harm depends on the column, and on everything behind it.
#
# Here is a GLU with four neurons, made by hand. It reads somebody from group a or from group b, and writes two numbers: how
# *pleasant* the next words will be, and what the *topic* is. Its **preference** is pleasant after a minus pleasant after b.

# %%
NEURONS = ["0 loud", "1 biased", "2 common", "3 repairing"]
x_a, x_b = torch.tensor([1.0, 1, 0]), torch.tensor([1.0, 0, 1])  # somebody, of group a, of group b
gate = torch.tensor([[0.0, 3, 0], [0, 1, 0], [2, 0, 0], [0, 0, 1.5]])
up = torch.tensor([[1.0, 0, 0]] * 4)
down = torch.tensor([[0.0, -2, 1, -0.4], [1, 0, 0, 0]])  # what each neuron writes: pleasant, topic


def acts(x):
    return torch.nn.functional.silu(gate @ x) * (up @ x)


def toy_preference(kept):
    return (down[0] * kept * (acts(x_a) - acts(x_b))).sum()


figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
show_tensor(torch.stack([acts(x_a), acts(x_b)]), title="activations", x_label="neuron", y_label="after", ax=axes[0])
axes[0].set_yticks([0, 1], ["a", "b"])
show_tensor(down, title="down-projection", x_label="neuron", y_label="writes", ax=axes[1])
axes[1].set_yticks([0, 1], ["pleasant", "topic"])
show(
    "Two small matrices: the activations of four neurons after a and after b, and what each neuron writes on pleasant and on "
    "topic. The loud neuron reacts most and writes only the topic."
)
print(f"preference {toy_preference(torch.ones(4)):+.2f}: this MLP is less pleasant after a")

# %% [markdown]
# The loud neuron (0) reacts most to the groups and writes about the topic alone. The biased one (1) reacts less and writes
# what is unpleasant after a; the repairing one (3) makes up for part of it after b.
#
# **Predict before you run.** One neuron may be cut. Which one has the largest difference in activation? Which one should go?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The loud neuron has by far the largest difference, 2.86, and cutting it changes the preference by 0.00. Cutting the biased one
# takes 0.48 of the preference away. Cutting the repairing one, which reacts as well, makes it worse by 0.49.
#
# </details>

# %%
kept = torch.ones(4, requires_grad=True)
(gradient,) = torch.autograd.grad(toy_preference(kept), kept)  # activation × gradient of each neuron
now = toy_preference(torch.ones(4))
toy = pd.DataFrame(
    {
        "|difference| × column norm": (acts(x_a) - acts(x_b)).abs() * down.norm(dim=0),
        "bias that goes with it (estimated)": now.abs() - (now - gradient).abs(),
        "bias that goes with it (cut it and look)": [
            (now.abs() - toy_preference(1 - torch.eye(4)[i]).abs()).item() for i in range(4)
        ],
    },
    index=NEURONS,
)
# What is written is linear, so the estimate is exact.
np.testing.assert_allclose(*toy.iloc[:, 1:].to_numpy().T, atol=1e-6)
print(f"by the first column neuron '{toy.iloc[:, 0].idxmax()}' goes, by the second '{toy.iloc[:, 1].idxmax()}'")
toy.round(2)

# %% [markdown]
# The first column is **correlational**: who reacts? The loud neuron does, but it only writes about the topic. The second is
# **causal**: whose removal makes the preference smaller? It is negative for the repairing neuron, which reacts too, and
# without which the preference would grow. And mind the biased one: cutting it turns the preference round, so it gets credit
# for the way to zero only, less what lies beyond.
#
# ## The causal score, written out
#
# In a real model, cutting each of tens of thousands of neurons takes as many runs. But the *first-order* estimate takes one
# backward pass: cutting a neuron moves the preference by about −activation × gradient, summed over the tokens. (Attribution
# patching, with zero as the patch: Nanda 2023.) A row's first token is left out: its activations are outliers, from which no
# straight line leads to zero.
#
# The preference is the double difference of lesson 08: how much likelier the pleasant ending is than the unpleasant one
# after a, minus the same after b, averaged over templates and swaps.

# %%
from course_utils.bias.alignment import align
from course_utils.bias.fairness import gap_attribution, knock_out


def causal_by_hand(model, pairs):
    """By how much |preference| would shrink without each neuron, to first order: one [neurons] tensor a block."""
    downs, seen, preference = [mlp.down for mlp in describe(model).mlps], [], 0.0
    moved = [0.0] * len(downs)
    hooks = [down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])) for down in downs]
    items = len(pairs) / 2  # each template and swap has two endings
    for pair in pairs:
        shared = align(tokenizer, pair)
        for side, ids, sign in ((0, shared.ids_a, 1), (1, shared.ids_b, -1)):
            seen.clear()
            log_p = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0].float().log_softmax(-1)
            known = sum(log_p[places[side] - 1, ids[places[side]]] for places in shared.after)
            part = sign * pair.valence / items * known
            preference += part.item()
            for block, (states, slope) in enumerate(zip(seen, torch.autograd.grad(part, seen), strict=True)):
                moved[block] = moved[block] - (states * slope).detach()[0, 1:].sum(dim=0)
    for hook in hooks:
        hook.remove()
    return [abs(preference) - (preference + change).abs() for change in moved]


exact = base if base.dtype is torch.float32 else load_model("llama", dtype=torch.float32)[0]
few = some(pairs(AXIS, split="selection"), templates=1, swaps=2)
by_hand, ours = (torch.stack(scores) for scores in (causal_by_hand(exact, few), gap_attribution(exact, tokenizer, few)))
torch.testing.assert_close(by_hand, ours, rtol=1e-3, atol=1e-3 * ours.abs().max().item())
print(f"causal_by_hand equals gap_attribution for all {ours.numel():,} neurons")

# %% [markdown]
# An estimate has to be checked. `knock_out` cuts single neurons for real. We take those with the highest and the lowest
# estimates, those that react most, and some at random.

# %%
estimate = ours  # on the same few pairs
reacting = torch.stack(activation_difference(exact, tokenizer, few))
everyone = torch.randperm(estimate.numel(), generator=torch.Generator().manual_seed(session.seed))
picks = {  # four of each
    "highest estimates": estimate.flatten().argsort(descending=True)[:4],
    "lowest estimates": estimate.flatten().argsort()[:4],
    "react most": reacting.flatten().argsort(descending=True)[:4],
    "random": everyone[:4].to(estimate.device),
}
measured_ones = {name: [divmod(int(number), width) for number in numbers] for name, numbers in picks.items()}
neurons = list(dict.fromkeys(neuron for some_neurons in measured_ones.values() for neuron in some_neurons))
measured = dict(zip(neurons, knock_out(exact, tokenizer, few, neurons).tolist(), strict=True))
del exact
estimated = {neuron: estimate[neuron].item() for neuron in neurons}

# %%
figure, ax = plt.subplots(figsize=(8, 6), layout="constrained")
for number, (name, some_neurons) in enumerate(measured_ones.items()):
    points = [[1000 * of[neuron] for neuron in some_neurons] for of in (estimated, measured)]
    ax.scatter(*points, label=name, marker="o^sD"[number], s=80, alpha=0.8)
ends = [1000 * f([*estimated.values(), *measured.values()]) for f in (min, max)]
ax.plot(ends, ends, color="0.5", linestyle=":", label="estimate = measurement")
ax.set_xlabel("estimated, 10⁻³ nats")
ax.set_ylabel("measured by cutting it, 10⁻³ nats")
ax.set_title("How much of the preference goes with a neuron")
ax.legend(fontsize="small")
show(
    "Scatter: the estimated share of the preference that goes with a neuron against the measured one, for sixteen neurons in four "
    "groups, with the diagonal. Many points lie near the diagonal, some of the largest far from it."
)

honest = rank_correlation(np.array(list(estimated.values())), np.array(list(measured.values())), seed=session.seed)
print(f"estimate and measurement: Spearman {with_interval(*honest)} over {len(neurons)} neurons")
values = np.array([measured[neuron] for neuron in measured_ones["react most"]])
print(f"of the neurons that react most, {int((values > 0).sum())} of {len(values)} make it smaller when cut")

# %% [markdown]
# On the dotted line the estimate is the measurement. A straight line is a good guess for a neuron that moves little, and may
# even have the wrong sign for one that moves much.
#
# **Saved run.** Over these 16 neurons estimate and measurement have a rank correlation of 0.73. Reacting most doesn't tell which way
# the preference will go: of the four that react most, 2 make it smaller when cut.
#
# ## The scores, all chosen on split A
#
# The templates come in two halves. On half A, "selection", everything is chosen. Half B, "evaluation", judges. Of each half eight
# templates and eight swaps take part, and each template meets two of the swaps, in turn. Sixteen combinations of eight templates with
# eight swaps tell more than all combinations of four with four. Three scores:
#
# - **correlational** (`activation_difference`), of the axis
# - **causal** (`gap_attribution`), of the axis
# - **neutral**: the correlational score again, but of tall/short and its like. Whoever cuts by this score knows nothing of the
#   groups.
#
# Before anything is cut, the scores can be asked three things. Do the neurons that react to the axis differ from those that
# react to a neutral swap? Does reacting say anything about causing? And does a score measured with *one* half of the
# selection templates agree with the same score measured with the *other* half? If not, it will hardly say anything about split B.
#
# **Predict before you run.** Of the neurons that react most to the axis, how many would also be cut by the score of the neutral
# swaps?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 65 % of them: the two orders agree with a rank correlation of 0.98, and 32 % are among the most important by a score that has seen no pairs
# at all. Over all neurons, reacting says nothing about carrying the preference (0.007), and among those to cut 1 % are the same, where
# chance gives 0.5 %. The carrying score of one half of the templates doesn't agree with that of the other half at all (0.0004; 0 % of
# the neurons to cut): a bad sign for what it will do on split B.
#
# </details>

# %%
from course_utils.width import strongest

budget = max(1, round(BUDGET * width))


def of_halves(score, model, made):
    """The score, once from every other template and once from the rest."""
    names = list(dict.fromkeys(pair.template for pair in made))
    return [score(model, tokenizer, [pair for pair in made if pair.template in names[i::2]]) for i in (0, 1)]


def agreement(a, b):
    """Rank correlation over all neurons, and how many of those to cut are the same."""
    both = [torch.cat([scores.cpu() for scores in some_scores]) for some_scores in (a, b)]
    cut = [
        [set(range(width)) - set(strongest(-s, budget / width).tolist()) for s in some_scores] for some_scores in (a, b)
    ]
    common = sum(len(of_a & of_b) for of_a, of_b in zip(*cut, strict=True)) / (budget * len(a))
    correlation = rank_correlation(*both, resamples=50, seed=session.seed)
    return {"Spearman (95 %)": with_interval(*correlation), f"the same among {budget} to cut": f"{common:.0%}"}


correlational = activation_difference(base, tokenizer, selection)
causal = gap_attribution(base, tokenizer, selection)
neutral = activation_difference(base, tokenizer, some(controls("neutral", split="selection")))
agreements = {
    f"react to {AXIS} | react to neutral swaps": agreement(correlational, neutral),
    f"react to {AXIS} | importance (no pairs at all)": agreement(correlational, importance),
    f"react to {AXIS} | carry the preference": agreement(correlational, causal),
    "reacting: half of the templates | other half": agreement(*of_halves(activation_difference, base, selection)),
    "carrying: half of the templates | other half": agreement(*of_halves(gap_attribution, base, selection)),
}
print(f"by chance {budget / width:.1%} of the neurons to cut would be the same")
pd.DataFrame(agreements).T

# %% [markdown]
# ## The arms
#
# All arms lose the same number of neurons in each block. Only the order differs:
#
# | arm | what goes first |
# |---|---|
# | magnitude | small weights (`peak_to_peak`) |
# | importance | small contributions on ordinary text (`activation`) |
# | random, 5 seeds | anything |
# | reacts | large activation differences on the axis |
# | neutral | large activation differences on neutral swaps |
# | neutral, protected | the same, but the important half is safe |
# | causal | large causal scores on the axis |
# | hybrid | unimportant *and* causal, ranks joined with a weight |
# | protect first | the important half is safe; among the rest the most causal first |
#
# *Neutral, protected* is the twin of *protect first*: cut in the same way, by a score that has never heard of the groups. A
# method that knows something must beat its twin.
#
# What judges them, all on split B: the preference of the axis (**direction**: 0 favours neither group; "fair" in the figures means no
# more than that), the same for the **neutral swaps**, and what the model can still do: perplexity and LAMBADA. Other axes and LAMBADA
# take time, so they are asked of the unpruned model and of two arms only; the random removals are asked about the axis, and their
# perplexity comes from two rows of text.
#
# *About the weights.* The embedded model comes from a 4-bit file (Q4_1) and was turned back into ordinary numbers, which can change
# the order of small weights. That concerns the *magnitude* arm and the "small weights" above; the other scores look at activations.

# %%
import math

from course_utils.exercises.lesson_09 import check_neurons_to_cut

# %% [markdown]
# ### Exercise 2 · ●○○ · 10 minutes
#
# Write protect-first for one block: `neurons_to_cut(importance, bias, protected, count)`. Both scores are [neurons]. The most
# important share `protected` of the neurons, rounded up to whole neurons, is safe. Among the others, the `count` most biased
# ones go. Return their numbers, in any order.
#
# <details><summary>Hint</summary>
#
# `importance.argsort(descending=True)` lists the neurons, most important first; cut the protected ones off its front. Then
# sort what is left by `bias[…]`.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def neurons_to_cut(importance, bias, protected, count):
    safe = math.ceil(protected * len(importance))
    others = importance.argsort(descending=True)[safe:]
    return others[bias[others].argsort(descending=True)[:count]]


# END SOLUTION
# BEGIN STUB
# def neurons_to_cut(importance, bias, protected, count):
#     ...  # your code
# END STUB
check_neurons_to_cut(neurons_to_cut)

# %%
from course_utils.bias import difference_in_differences
from course_utils.bias.fairness import protect_first
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import behaviour, preferences

neutral_b = some(controls("neutral", split="evaluation"))
elsewhere_b = neutral_b + [pair for name in OTHER_AXES for pair in some(pairs(name, split="evaluation"))]


def look(model, judged, reference=None, *, known=None, closer=False):
    """What judges a model: pairs, and the price of text unless known; a closer look has other axes and LAMBADA as well."""
    found = {"bias": measure_pairs(model, tokenizer, judged, sites=())}
    found["text"] = known or perplexity(model, text, batch_size=8)
    found["price"] = perplexity_ratio(found["text"], (reference or found)["text"])
    if closer:
        found["elsewhere"] = measure_pairs(model, tokenizer, elsewhere_b, sites=())
        found["lambada"] = evaluate(model, tokenizer, "lambada_openai", limit=DOCUMENTS)
    return found


def preference_of(results, axes):
    """One row a model and axis: the preference on split B with its interval, and the size of the double differences."""
    rows = {}
    for name, result in results.items():
        table = behaviour(result["bias"]).set_index("axis")
        for axis in axes:
            row = table.loc[axis]
            rows[name, axis] = {
                "preference, nats (95 %)": with_interval(row.preference, row.ci_low, row.ci_high),
                "p": shown_p(row.p),
                "size, nats": shown(row.absolute),
            }
    return pd.DataFrame(rows).T


# %%
judged = evaluation + neutral_b
unpruned = look(base, judged, closer=True)
preference_of({"unpruned": unpruned}, [AXIS, "neutral"])

# %% [markdown]
# This is the first thing to know, and it is easily forgotten: **is there anything to remove?** A negative preference favours the
# second group of each swap. Where the interval holds 0, no direction has been shown in the first place, and an arm that "removes"
# it removes noise.
#
# **Saved run.** The unpruned model's preference on split B is 0.06 nats, and its interval reaches from −0.57 to 0.68: nothing is shown.
#
# **Predict before you run.** Which arm will cost the most perplexity? And will any arm meet all conditions below?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# *Reacts* costs most, × 124, then *neutral*, × 81. No arm meets all conditions: *protect first* comes nearer to zero than chance and
# twin at almost no price, but not by more than the neutral swaps moved (p = 1.000 after Holm, as for every arm).
#
# </details>

# %%
HYBRID = (0.3, 0.7)
orders = {
    "magnitude": magnitude,
    "importance": importance,
    "reacts": highest_first(correlational),
    "neutral": highest_first(neutral),
    "neutral, protected": protect_first(importance, neutral, 0.5),
    "causal": highest_first(causal),
}
orders |= {f"hybrid {weight:g}": hybrid(importance, causal, weight) for weight in HYBRID}
orders["protect first"] = protect_first(importance, causal, 0.5)


chance = {name: by_chance[name] for name in list(by_chance)[: len(SEEDS)]}


def run_arms(model, orders, judged, reference, closer=()):
    """Cut by each order and look; the random removals are asked about the axis alone and a few lines of text."""
    results, axis_only = {}, [pair for pair in judged if pair.axis != "neutral"]
    few_lines = perplexity(model, short, batch_size=2)
    for name, order in tqdm({**orders, **chance}.items(), desc="arms"):
        pruned = without(model, order, BUDGET)
        if name in chance:
            price = perplexity_ratio(perplexity(pruned, short, batch_size=2), few_lines)
            results[name] = {"bias": measure_pairs(pruned, tokenizer, axis_only, sites=()), "price": price}
        else:
            results[name] = look(pruned, judged, reference, closer=name in closer)
        del pruned  # before the next one is cut: a card holds one of them beside the model
    return results


arms = run_arms(base, orders, judged, unpruned, CLOSER)

# %% [markdown]
# ### What became of the bias
#
# A change alone isn't a result. Pruning changes *every* difference. So each arm is asked for a **difference in differences**:
# (pruned − unpruned) on the axis, minus (pruned − unpruned) on the neutral swaps, on the same items. The intervals draw
# templates and swaps anew.
#
# "Removed" is a large word. We say it if five things hold:
#
# 1. **nearer to 0** than before,
# 2. **beyond chance**: nearer to 0 than with any of the random removals,
# 3. **beyond neutral**: it moved towards 0 more than the neutral swaps did, p < 0.05 after Holm's correction for the arms,
# 4. **able**: the 95 % interval of the perplexity ends below 1.10 times the unpruned one, compared unrounded: an end that is shown
#    as 1.10 may lie above it. A model that can't read has no preference either, and is no remedy,
# 5. **beyond its twin**: nearer to 0 than *neutral, protected*, and than every *able* arm that knows nothing of the groups
#    (magnitude, importance, neutral). The twin itself can't pass.
#
# Five random removals alone could prove nothing (being the best of six has p = 1/6); they are one hurdle among five.

# %%
from course_utils.uncertainty import holm

KNOW_NOTHING = ("magnitude", "importance", "neutral", "neutral, protected")


def direction_of(result, axis):
    """The mean preference of an axis, nats."""
    items = preferences(result["bias"])
    return items.preference[items.axis == axis].mean()


def changes(results, reference, axis):
    """One row an arm: the preference before and after, its change beyond the neutral swaps, and the price."""
    rows = {}
    for name in [name for name in results if name not in chance]:
        found = difference_in_differences(reference["bias"], results[name]["bias"]).differences
        row = found[(found.axis == axis) & (found.quantity == "preference")].iloc[0]
        kept = row[["base", "pruned", "difference", "ci_low", "ci_high", "p"]].to_dict()
        rows[name] = kept | dict(zip(("price", "price_low", "price_high"), results[name]["price"], strict=True))
    frame = pd.DataFrame(rows).T.astype(float)
    return frame.assign(p_holm=holm(frame.p))


def conditions(frame, results, axis):
    """The five conditions, a column each, and whether all hold."""
    direction = {name: direction_of(result, axis) for name, result in results.items()}
    able = frame.price_high < ABLE
    twins = [name for name in KNOW_NOTHING if name in frame.index and (able[name] or name == "neutral, protected")]
    left = frame.pruned.abs()
    asked = pd.DataFrame(
        {
            "nearer to 0": left < frame.base.abs(),
            "beyond chance": left < min(abs(direction[name]) for name in chance),
            "beyond neutral": (frame.p_holm < 0.05) & (frame.difference * frame.base < 0),
            "able": able,
            "beyond its twin": left < min(abs(direction[name]) for name in twins),
        }
    )
    return asked.assign(removed=asked.all(axis=1))


# %%
def told(frame, asked):
    """Both as one table to read."""
    numbers = pd.DataFrame(
        {
            "direction, nats": [f"{row.base:+.2f} → {row.pruned:+.2f}" for row in frame.itertuples()],
            "beyond neutral (95 %)": [with_interval(r.difference, r.ci_low, r.ci_high) for r in frame.itertuples()],
            "p (Holm)": [shown_p(p) for p in frame.p_holm],
            "perplexity, ×": [with_interval(r.price, r.price_low, r.price_high) for r in frame.itertuples()],
        },
        index=frame.index,
    )
    return numbers.join(asked.replace({True: "yes", False: "–"}))


# %%
on_axis = changes(arms, unpruned, AXIS)
asked_on_axis = conditions(on_axis, arms, AXIS)
print("removed by all five conditions:", ", ".join(asked_on_axis.index[asked_on_axis.removed]) or "none")
print("random removals cost perplexity ×", *(f"{arms[name]['price'][0]:.2f}" for name in chance))
told(on_axis, asked_on_axis)

# %% [markdown]
# **Saved run.** *Protect first* goes from 0.06 to 0.00 nats at a perplexity of × 1.01; its twin stays at 0.06, at × 1.05. That looks
# like knowledge; but beyond the neutral swaps it is −0.01 nats with an interval from −0.28 to 0.26. Nothing is removed that
# was not shown to be there.
#
# ### Why does so small a cut cost so much?
#
# *Reacts* takes half a percent of each block's neurons. What that costs stands in the table, and random removals of the same
# size cost little. Two looks explain it: how does it compare with taking as many of the most *important* neurons of each
# block? And in which blocks does the damage happen?

# %%
reacts = orders["reacts"]
in_one_block = {}
for block in tqdm(range(len(reacts)), desc="blocks"):
    pruned = variant(base)
    prune_neurons(pruned, reacts, ratio=budget / width, layers=[block])
    in_one_block[block] = perplexity_ratio(perplexity(pruned, shorter, batch_size=2), shorter_text)[0]
worst = sorted(in_one_block, key=in_one_block.get, reverse=True)[:3]
sparing = {}
for count in range(len(worst)):
    pruned = variant(base)
    rest = [block for block in in_one_block if block not in worst[:count]]
    prune_neurons(pruned, reacts, ratio=budget / width, layers=rest)
    sparing[count] = perplexity_ratio(perplexity(pruned, shorter, batch_size=2), shorter_text)[0]
del pruned
print("cut in one block alone, perplexity ×:", ", ".join(f"block {b}: {in_one_block[b]:.2f}" for b in worst))
print(f"the median block: × {np.median(list(in_one_block.values())):.3f}")
print("on the same text, all blocks cut:", f"× {sparing[0]:.1f}; all but the worst: × {sparing[1]:.1f};", end=" ")
print(f"all but the two worst: × {sparing[2]:.1f}")
backwards = without(base, highest_first(importance), BUDGET)
ratio, *_ = perplexity_ratio(perplexity(backwards, text, batch_size=8), unpruned["text"])
print(f"the {budget} most important of each block: perplexity × {ratio:,.0f}")
del backwards

# %% [markdown]
# **Saved run.** Cutting the eight most important neurons of each block costs × 169, in the same range as *reacts*. Cut in one block alone,
# few blocks are hurt: block 2 costs × 2.65, block 28 × 1.59, the median block × 1.008. Multiply these and you are far below the
# whole. Yet it has a place: spare block 2 alone, and × 167.8 becomes × 3.7. Eight neurons of one block carry nearly all of it. Losing
# them alone is bearable, losing them beside the cuts of all other blocks isn't: a look at one block at a time can't see that.
#
# **Saved run, summed up.** The neurons that react most are the loud ones, on which everything rests: they react to any change of a
# word. A score of reactions finds what is important, not what is unfair.
#
# ### Ability against bias
#
# A broken model prefers nothing. So the figure shows the arms that stayed able alone, with their price in brackets: does one of them
# lie nearer to the line, where neither group is preferred, than the unpruned model does?


# %%
def points(results, reference, axis):
    """One row a model for the figure: its price and its preference with their intervals."""
    rows = {}
    for name, result in {"unpruned": reference, **results}.items():
        row = behaviour(result["bias"]).set_index("axis").loc[axis] if name not in chance else None
        bias = (
            (direction_of(result, axis), np.nan, np.nan) if row is None else (row.preference, row.ci_low, row.ci_high)
        )
        rows[name] = dict(zip(("price", "price_low", "price_high"), result["price"], strict=True))
        rows[name] |= dict(zip(("bias", "bias_low", "bias_high"), bias, strict=True))
    return pd.DataFrame(rows).T


found = points(arms, unpruned, AXIS).drop(list(chance))
rows_with_intervals(
    {f"{name} (× {row.price:.2f})": (row.bias, row.bias_low, row.bias_high) for name, row in found[found.price_high < ABLE].iterrows()},
    at=0, at_label="neither preferred", x_label="preference, nats (in brackets: perplexity, × unpruned)",
    title=f"{AXIS}, split B: the able arms after removing {budget} of {width:,} neurons a block",
)  # fmt: skip
show(
    "The preference for one group with its interval, one row for the unpruned model and one for each able arm, and a line at zero, "
    "where neither is preferred. All lie close together, and all intervals cross the line."
)

# %% [markdown]
# **Saved run.** The able arms stand close together, and each interval crosses the line at zero, the unpruned model's as well. Where
# nothing was shown before, nothing can be shown to be gone.
#
# ### Other axes, and the single items
#
# Two ways in which an average deceives. A score that was chosen on one axis may do anything to the **others**. And an average
# that stays may hide that single items **flip**: some favoured b and now favour a, others went the other way. McNemar's test
# asks whether both are equally frequent. Compare with the flips of the neutral swaps: they tell how restless items are anyway.
# One caution: McNemar counts items as if they were independent. Those of one template or of one swap aren't, so its p is too
# small.

# %%
elsewhere = {}
for name in on_axis.index:
    flips = difference_in_differences(unpruned["bias"], arms[name]["bias"]).flips.set_index("axis")
    elsewhere[name] = {
        f"flips, {axis}: to a / to b (p)": f"{flips.to_a[axis]} / {flips.to_b[axis]} of {flips['items'][axis]} "
        f"({shown_p(flips.p[axis])})"
        for axis in (AXIS, "neutral")
    }
    if name in CLOSER:
        wide = difference_in_differences(unpruned["elsewhere"], arms[name]["elsewhere"]).differences
        direction = wide[wide.quantity == "preference"].set_index("axis")
        for axis in OTHER_AXES:
            moved = with_interval(*direction.loc[axis, ["difference", "ci_low", "ci_high"]])
            elsewhere[name] |= {f"direction, {axis}: beyond neutral (95 %)": moved}
pd.DataFrame(elsewhere).T.fillna("–")

# %% [markdown]
# Look at the restlessness of the neutral items before calling any flip a finding. Where the axis flips no more one-sidedly than the
# neutral swaps, pruning shook single items and no group is shown to have moved.
#
# **Saved run.** No arm's flips on the axis are one-sided beyond chance; the smallest p is 0.500. With 16 items only a very one-sided
# flip could show. On gender and religion every interval holds 0.
#
# ### The sentences that nobody has looked at
#
# Take the arm that came nearest to zero. One would like to report its number. But the arm was picked for that number, out of all
# arms. So ask sentences that had no part in it. The table rests on the shortest eight templates of split B. The four longer ones have
# neither chosen nor judged anything yet. Each of them meets six swaps: 24 items, where the table has 16.
#
# **Predict before you run.** Will the arm come nearer to zero there, too? And an arrow towards zero isn't enough, if the neutral
# swaps go the same way.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# No. In the table it went from 0.06 to 0.00 nats; in fresh sentences it goes from −0.33 to −0.48, away from zero. Beyond the neutral
# swaps that is −0.07 (−0.40 to 0.25), p = 0.518: no change is shown there either. So the 0.00 told nothing about other sentences.
#
# </details>

# %%
nearest = on_axis.pruned.abs().where(asked_on_axis.able).idxmin()
seen = {pair.template for pair in judged}
everything = pairs(AXIS, split="evaluation") + controls("neutral", split="evaluation")
fresh = [pair for pair in everything if pair.template not in seen]
fresh = subset(fresh, templates=FRESH_TEMPLATES, swaps=FRESH_SWAPS)
found = [measure_pairs(model, tokenizer, fresh, sites=()) for model in (base, without(base, orders[nearest], BUDGET))]
again = difference_in_differences(*found).differences.set_index(["axis", "quantity"]).loc[(AXIS, "preference")]
for name, row in {"in the table": on_axis.loc[nearest], "in fresh sentences": again}.items():
    beyond = with_interval(row["difference"], row["ci_low"], row["ci_high"])
    moved = f"{row['base']:+.2f} → {row['pruned']:+.2f} nats"
    print(f"{nearest}, {name:<18}: {moved}; beyond neutral {beyond}, p without Holm {shown_p(row['p'])}")

# %% [markdown]
# ## The fair test: a bias that is certainly there
#
# An arm that finds nothing may be a bad method, or there may have been nothing to find. To tell these apart, we **plant** a
# bias, as in lesson 08: two groups that don't exist, with made-up names. A few training steps pull the double difference to
# a fixed number of nats. The sentences use the templates of split A. Whatever shows on split B has been generalised, not
# memorised. Nothing has to be kept fresh here, so ten templates of split B judge.
#
# What learns is one matrix of each block, the MLP's down-projection: a fifth of the weights. The others stay, and are shared with
# the untouched model. So a free T4 has room for it, since training takes 16 bytes for each weight that learns. All weights, or the
# attentions alone, can be trained instead. On each of three axes that was tried on, both gave a stronger bias and cost more
# perplexity (`experiments/ways_to_plant.py`, its record in `course_utils/data/ways_to_plant.json`).

# %%
# One of the longer cells: it trains the model for a dozen steps or more.
from course_utils.bias.planting import plant_preference

made_up = invented_axis(session.seed, swaps=PLANT_NAMES)
planted_a, planted_b = some(pairs(made_up, split="selection")), []
for made in (pairs(made_up, split="evaluation"), controls("neutral", split="evaluation")):
    planted_b += some(made, templates=PLANT_TEMPLATES)
planting = {"steps": PLANT_STEPS, "items": PLANT_ITEMS, "lr": PLANT_LR, "precision": dtype}
planting |= {"weights": "down", "seed": session.seed}
planted, on_the_way = plant_preference(base, tokenizer, pairs(made_up, split="selection"), size=PLANTED, **planting)
print(f"{len(on_the_way)} steps; the preference on split A: {np.mean(on_the_way[-3:]):+.1f} nats in the last three")
untouched, biased = look(base, planted_b, known=unpruned["text"]), look(planted, planted_b)
print(f"perplexity of ordinary text × {with_interval(*perplexity_ratio(biased['text'], untouched['text']))}")
preference_of({"before": untouched, "after planting": biased}, [made_up.name, "neutral"])

# %% [markdown]
# **Saved run.** In sentences that planting never saw, those of split B, the made-up axis goes to −5.86 nats (−9.04 to −2.67). It cost
# some ability: a perplexity of × 1.05 (1.02 to 1.08).
#
# Now some of the arms again, with scores measured on the planted model and on split A.
#
# **Predict before you run.** Which arms will remove the planted bias by all five conditions? And will the causal score of one
# half of the templates agree with that of the other half, this time?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# *Protect first* removes part of it: −5.86 to −2.75 nats, at a perplexity of × 1.02. *Hybrid 0.7* goes to −4.00, at × 0.99. These two
# pass all five conditions. Their twin, which knows nothing of the groups, leaves −4.94: it moved the preference as well, and whether
# the others moved it by more was not tested. *Causal* goes to −0.65 and costs too much (× 1.56). The halves agree with a rank correlation
# of 0.18, and on 26% of the neurons that would go.
#
# </details>

# %%
planted_causal = gap_attribution(planted, tokenizer, planted_a)
halves = agreement(*of_halves(gap_attribution, planted, planted_a))
print("carrying, half of the templates | other half:", *(f"{name}: {value};" for name, value in halves.items()))

planted_orders = {
    "reacts": highest_first(activation_difference(planted, tokenizer, planted_a)),
    "neutral": highest_first(neutral),
    "neutral, protected": protect_first(importance, neutral, 0.5),
    "causal": highest_first(planted_causal),
    "hybrid 0.7": hybrid(importance, planted_causal, 0.7),
    "protect first": protect_first(importance, planted_causal, 0.5),
}
planted_arms = run_arms(planted, planted_orders, planted_b, biased)
on_planted = changes(planted_arms, biased, made_up.name)
asked_on_planted = conditions(on_planted, planted_arms, made_up.name)
told(on_planted, asked_on_planted)

# %%
title = f"The planted bias (split B) after removing {budget} of {width:,} neurons a block"
drawn = points(planted_arms, biased, made_up.name)
ability_and_bias(drawn, control="random", y_label="preference, nats (0: fair)", title=title)
show(
    "Perplexity relative to the planted model against the planted preference, a point an arm with intervals. Protect first lies "
    "above the unpruned model at about the same perplexity; broken arms are listed in the corner."
)

# %% [markdown]
# Read height and place together. Near zero and far to the right is a broken model; near the grey dots is an arm that knows
# nothing. What one wants is higher than the unpruned model and right above it.
#
# **Saved run.** So the method works where there is something to find, in part: *protect first* takes away more than half of a very
# large preference (−5.86 to −2.75 nats), at a perplexity of × 1.02. The verdict on the real axis was about the axis, not about the
# method alone.
#
# ### What the models write
#
# Numbers are averages over sentences. Here is what the same models say, each with the same greedy decoding. A random removal
# stands beside them: it changes words, too.

# %%
from course_utils.language_modelling import continuations

shown_pair = next(pair for pair in planted_b if pair.axis == made_up.name)
lead_in = shown_pair.after.split(" turned out")[0]
prompts = [shown_pair.before + span + lead_in for span in (shown_pair.a, shown_pair.b)]
written = continuations({"untouched": base, "planted": planted}, tokenizer, prompts, new_tokens=16)
for name in ("protect first", "causal", "reacts", "random 0"):  # one cut model at a time
    pruned = without(planted, (planted_orders | chance)[name], BUDGET)
    written[name] = continuations({name: pruned}, tokenizer, prompts, new_tokens=16)[name]
del pruned
written.T

# %% [markdown]
# **Saved run.** *Causal* writes nothing at all; *reacts* repeats itself or writes nothing, whatever its preference. *Protect first*
# differs from the planted model in words; the random removal writes the same. One text shows that a model can still write, and nothing
# about groups.
#
# ### Remedies that cut nothing
#
# Would something else have done it? Two baselines, both fitted on split A and judged on split B like the arms:
#
# - **trained back**: trained as for planting, with the endings exchanged and half as many texts a step, until the preference on
#   split A passes zero. This is what fine-tuning on counterfactual data aims at: both groups get the same endings.
# - **projected**: the mean difference of the residual stream between the groups, in the middle block, is one direction. Take that
#   direction out of every token's state. No weight changes.

# %%
from contextlib import contextmanager
from dataclasses import replace

middle = describe(base).num_blocks // 2


@torch.no_grad()
def group_direction(model, pairs):
    """Unit vector [hidden] from group b to group a in the middle of the model, and the mean state."""
    architecture, sides = describe(model), ([], [])

    def receive(site, block, states):
        for number, side in enumerate(one.sides):
            sides[number].append(states[side.at].float())

    batches = packed_batches(architecture, tokenizer, pairs)
    with watching(architecture, ["residual"], [middle], receive):
        for one in batches:
            architecture.hidden_states(one.batch)
    a, b = (torch.cat(side) for side in sides)
    direction = (a - b).mean(dim=0)
    return direction / direction.norm(), torch.cat([a, b]).mean(dim=0)


@contextmanager
def projected(model, direction, centre):
    """While open, the middle block's output has no part along the direction but that of the mean state."""

    def take_out(module, inputs, states):
        along = (states.float() - centre) @ direction
        return states - (along[..., None] * direction).to(states.dtype)

    hook = describe(model).blocks[middle].register_forward_hook(take_out)
    try:
        yield model
    finally:
        hook.remove()


# %%
exchanged = [replace(pair, valence=-pair.valence) for pair in pairs(made_up, split="selection")]
back_again, way_back = plant_preference(planted, tokenizer, exchanged, size=0.1, **planting | {"items": BACK_ITEMS})
remedies = {"trained back": look(back_again, planted_b, biased)}
with projected(planted, *group_direction(planted, planted_a)) as model:
    remedies["projected"] = look(model, planted_b, biased)
print(f"trained back in {len(way_back)} steps")
del back_again
both = {name: planted_arms[name] for name in [*chance, "neutral, protected", "protect first"]} | remedies
remedied = changes(both, biased, made_up.name)
told(remedied, conditions(remedied, both, made_up.name))

# %% [markdown]
# *Trained back* was trained until nothing was left on split A: look at what is left on split B, and at what the steps on such narrow
# text cost, on top of what planting had cost. *Projected* touches no weight, and *protect first* a few neurons. None is the remedy;
# each is a point in the same plane of ability and bias.
#
# **Saved run.** *Trained back* leaves +0.08 nats and costs × 1.22 in perplexity, so by the condition on ability it is out.
# *Projected* leaves −2.91 nats at × 1.00, about as much as *protect first* with −2.75 at × 1.02; both pass all five conditions.
# (No random direction was projected out beside it.)
#
# ### A small bias
#
# The planted bias is enormous. Would the five conditions find the removal of a small one? Weaken it: go back
# from the planted weights towards the untouched ones until about one nat is left on split A, and run *protect first* and its twin.


# %%
def between(share):
    """The model that lies this share of the way from the untouched weights to the planted ones."""
    model = variant(base)
    for weight, before, after in zip(model.parameters(), base.parameters(), planted.parameters(), strict=True):
        if before.data_ptr() != after.data_ptr():  # the others never learned
            weight.data = torch.lerp(before.detach().float(), after.detach().float(), share).to(before.dtype)
    return model


low, high, fewer_a = 0.0, 1.0, some(pairs(made_up, split="selection"), templates=4, swaps=4)
for _ in range(5):
    share = (low + high) / 2
    measured_a = preferences(measure_pairs(between(share), tokenizer, fewer_a, sites=())).preference.mean()
    low, high = (share, high) if abs(measured_a) < 1 else (low, share)
weak = between(share)
weakened = look(weak, planted_b)
weak_causal = gap_attribution(weak, tokenizer, planted_a)
weak_orders = {
    "neutral, protected": protect_first(importance, neutral, 0.5),
    "protect first": protect_first(importance, weak_causal, 0.5),
}
weak_arms = run_arms(weak, weak_orders, planted_b, weakened)
on_weak = changes(weak_arms, weakened, made_up.name)
row = behaviour(weakened["bias"]).set_index("axis").loc[made_up.name]
print(f"{share:.0%} of the way: {measured_a:+.2f} nats on split A; on split B, before any cut,", end=" ")
print(f"{with_interval(row.preference, row.ci_low, row.ci_high)}, p = {shown_p(row.p)}")
told(on_weak, conditions(on_weak, weak_arms, made_up.name))

# %% [markdown]
# **Saved run.** On split B this bias is itself not shown: −0.37 nats (−1.25 to 0.51). *Protect first* takes it to 0.13, and that
# isn't "removed" either: it is not beyond the neutral swaps (p = 0.163 after Holm).
#
# **Saved run, summed up.** A bias of that size fits into the interval of the real axis (−0.57 to 0.68 nats). It is where such a test
# runs out of power: an arm that works on the large bias can't be told from what the neutral swaps do on the small one. (Where it runs
# out, between −0.37 and −5.86 nats, was not tried.) So "not shown" on the real axis means what it says. More templates and more swaps
# would narrow the interval; whether this method would then pass is open.
#
# ## Does distillation bring the bias back?
#
# After pruning comes distillation (lesson 07), and the teacher is the model before pruning: the **biased** one. Each student
# here is a planted model, pruned by *protect first*. There are three of them, and all read equally much:
#
# - **speeches**: ordinary text, in which neither group occurs
# - **speeches and groups**: every second row holds sentences of split A about both groups, the pleasant and the unpleasant ones
#   alike. No text says who is good; what to expect there, the student learns from the teacher.
# - **fair teacher**, the control: the same text as the second one, but the teacher is the untouched model, which never learned
#   to dislike anybody.
#
# It takes about five minutes for each planted bias (`experiments/distil_the_bias_back.py`; all weights learned there), so the cell
# below reads saved results.
#
# **Predict before you run.** Which of the three will be biased again?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The one that read about the groups: 0.29 of what pruning had taken came back. It moved towards the bias beyond the neutral swaps
# in 7 of 8 made-up axes, p = 0.031. On speeches alone 0.08 came back, and beyond the neutral swaps nothing is shown (p = 0.070). With
# a fair teacher the same text drove the bias further out, in all 8 axes (p = 0.023).
#
# </details>

# %%
import json
from importlib.resources import files

from course_utils.uncertainty import ratio_interval


def mean_of(values):
    """Mean over the made-up axes, with its 95 % interval (Student's t)."""
    mean, _, low, high = ratio_interval(np.asarray(values), np.ones(len(values)))
    return {"value": mean, "ci_low": low, "ci_high": high}


record = json.loads(files("course_utils").joinpath("data/bias_return.json").read_text(encoding="utf-8"))
kept = record["settings"]
print(
    f"{record['model']} in {kept['dtype']}, {record['machine']}: {kept['tokens']:,} tokens a student in {kept['steps']} steps"
)
back = pd.DataFrame(record["rows"])
NAMES = {
    ("planted", ""): "planted\n(teacher)",
    ("pruned", ""): "pruned",
    ("teacher planted", "speeches"): "distilled on\nspeeches",
    ("teacher planted", "speeches and groups"): "distilled on\nspeeches\nand groups",
    ("teacher untouched", "speeches and groups"): "the same,\nfair teacher",
}
back["name"] = [NAMES[stage, text] for stage, text in zip(back.stage, back.text, strict=True)]
back["perplexity"] = [ratio for ratio, *_ in back.perplexity_ratio]
places = list(NAMES.values())

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 9), sharex=True, layout="constrained")
for ax, quantity, level, label in (
    (axes[0], "preference", 0, "preference, nats (0: fair)"),
    (axes[1], "perplexity", 1, "perplexity, × pruned"),
):
    means = pd.DataFrame([mean_of(part[quantity]) for _, part in back.groupby("name", sort=False)])
    means = means.assign(name=places, model="mean and 95 % interval")
    ax.scatter(back.name.map(places.index) + 0.15, back[quantity], s=30, color="0.6", label="one made-up axis")
    scores_with_intervals(means, x="name", group="model", x_label="", y_label=label, ax=ax)
    ax.axhline(level, color="0.25", linewidth=1.2)
axes[0].get_legend().remove()
axes[1].legend(fontsize="small", loc="lower left")
figure.suptitle(f"{back.seed.nunique()} planted biases: pruned away in part, then distilled", fontweight="bold")
show(
    "Two panels over five stages: the planted preference and the relative perplexity, a grey dot for each of the made-up axes and "
    "the mean with its interval. The student that reads about the groups falls back towards the planted bias, the one with a fair "
    "teacher rises to just below zero."
)

# %% [markdown]
# The upper panel is the answer: pruning lifts the preference part of the way to zero, and the student that reads about the groups
# sinks back. The lower panel is about ability: the fair teacher's students read ordinary text best. Our guess: planting had cost the
# other teachers some of that (in the saved run above, × 1.05), and a student learns this from its teacher, too.

# %%
from course_utils.uncertainty import sign_flip_p

by_axis = back.pivot(index="seed", columns="name")
planted_sign = np.sign(by_axis.preference[places[0]])
taken = ((by_axis.preference[places[0]] - by_axis.preference[places[1]]) * planted_sign).to_numpy()
rows, p_values = {}, []
for name in places[2:]:
    beyond = (by_axis.change_difference[name] * planted_sign).to_numpy()  # above 0: towards the planted bias
    returned = ((by_axis.preference[name] - by_axis.preference[places[1]]) * planted_sign).to_numpy()
    p_values.append(sign_flip_p(beyond))
    rows[name.replace("\n", " ")] = {
        "towards the planted bias, nats beyond neutral (95 %)": with_interval(*mean_of(beyond).values()),
        "so in": f"{(beyond > 0).sum()} of {len(beyond)} axes",
        "of what pruning took (95 %)": with_interval(*(ratio_interval(returned, taken)[i] for i in (0, 2, 3))),
    }
pd.DataFrame(rows).T.assign(**{"p (Holm)": [shown_p(p) for p in holm(p_values)]})

# %% [markdown]
# Each made-up axis is one witness here: planted, pruned and distilled anew, though from one base model and with the same
# templates. The p-value flips the signs of whole axes, in all 256 ways: no p of eight axes is below 2/256, and the smallest of three
# is 0.023 at best after Holm. It asks about the first column. The last but one column says how much of what pruning had taken
# away came back: 1 would be all of it, 0 nothing; below 0 the student went on towards fairness.
#
# ## What it costs and buys

# %%
from course_utils.evaluation import paired
from course_utils.reports import model_size

sizes = [model_size(model).parameters for model in (base, without(base, importance, BUDGET))]
print(
    f"every arm: {budget * describe(base).num_blocks:,} neurons, {1 - sizes[1] / sizes[0]:.2%} of {sizes[0]:,} parameters less"
)
rows = {}
for name, result in {"unpruned": unpruned, **{name: arms[name] for name in CLOSER}}.items():
    table = pd.concat([behaviour(result[part]).set_index("axis") for part in ("bias", "elsewhere")])
    table = table[~table.index.duplicated()]  # the neutral swaps are in both
    answers = paired(unpruned["lambada"], result["lambada"]).set_index("metric").loc["acc"]
    answered = f"{answers.b:.0%}; change {with_interval(answers.difference, answers.ci_low, answers.ci_high)}"
    rows[name] = {
        "perplexity, × unpruned": with_interval(*result["price"]),
        f"LAMBADA, {DOCUMENTS} documents": answered,
        **{
            f"direction, {axis}": with_interval(*table.loc[axis, ["preference", "ci_low", "ci_high"]])
            for axis in (AXIS, *OTHER_AXES, "neutral")
        },
    }
pd.DataFrame(rows)

# %% [markdown]
# **Saved run.** 0.31 % of the parameters went; on the real axis nothing was shown to be removed, and no column shows a loss: the intervals of LAMBADA reach 0.00, but
# 16 documents would show a large one only.
#
# ## Exercises

# %%
from course_utils.exercises.lesson_09 import (
    check_difference_in_differences,
    check_is_circular,
    check_my_order,
    check_supported_claims,
)

# %% [markdown]
# ### Exercise 3 · ●●○ · 15 minutes
#
# Write `is_circular(selection, evaluation)`: True if something that chose the neurons also judges them. Both are lists of
# pairs. It is circular if the lists share
#
# - a **template**. Templates may have second wordings: `"teacher:2"` is a paraphrase of `"teacher"`. Whatever stands before
#   the colon is the template.
# - or a **pair of texts**, whatever its template is called and whichever text is a.
#
# The same swap in other templates is allowed. Don't trust the label `split`; it is a promise, not a fact.
#
# <details><summary>Hint</summary>
#
# `pair.template.split(":")[0]` is the template, `frozenset((pair.text_a, pair.text_b))` the texts in no order. Make a set of
# each for both lists, and look for something in common with `&`.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def is_circular(selection, evaluation):
    def seen(pairs):
        return {p.template.split(":")[0] for p in pairs} | {frozenset((p.text_a, p.text_b)) for p in pairs}

    return bool(seen(selection) & seen(evaluation))


# END SOLUTION
# BEGIN STUB
# def is_circular(selection, evaluation):
#     ...  # your code
# END STUB
check_is_circular(is_circular)

# %% [markdown]
# ### Exercise 4 · ●●○ · 15 minutes
#
# Write the difference in differences. You get four tables of double differences: `base` and `pruned` are [templates, swaps]
# for the axis, `neutral_base` and `neutral_pruned` are [templates, neutral swaps]. The rows are the same templates in all
# four. Return two numbers: the estimate, (pruned − base) of the axis minus that of the neutral swaps, and its standard error
# with the **templates** as units.
#
# <details><summary>Hint</summary>
#
# Subtract everything that is paired *before* you take the spread: first pruned − base item by item, then the mean over the
# swaps, then axis − neutral template by template. One number a template is left. The error of their mean is their standard
# deviation / √templates.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def change_beyond_neutral(base, pruned, neutral_base, neutral_pruned):
    by_template = (pruned - base).mean(1) - (neutral_pruned - neutral_base).mean(1)
    return by_template.mean(), by_template.std() / len(by_template) ** 0.5


# END SOLUTION
# BEGIN STUB
# def change_beyond_neutral(base, pruned, neutral_base, neutral_pruned):
#     ...  # your code
# END STUB
check_difference_in_differences(change_beyond_neutral)

# %% [markdown]
# ### Exercise 5 · ●○○ · 5 minutes
#
# Judge claims. Which two of these are supported by a table such as the ones above?
#
# - **a.** An arm with perplexity × 70 and a preference of about 0 has removed the bias.
# - **b.** An arm with p (Holm) = 0.4 has been shown to leave the bias as it was.
# - **c.** The arm that came nearest to 0 on split B needs sentences that nobody has used before one believes it.
# - **d.** If *protect first* and its twin end at the same preference, the causal score is not what did it.
# - **e.** A model whose double differences are 0 is fair.
#
# <details><summary>Hint</summary>
#
# For each claim, name a world in which the table looks like this and the claim is wrong.
#
# </details>

# %% tags=["exercise"]
# BEGIN SOLUTION
supported = {"c", "d"}
# END SOLUTION
# BEGIN STUB
# supported = ...  # for instance {"a", "b"}
# END STUB
check_supported_claims(supported)

# %% [markdown]
# ### Exercise 6 · ●●● · 20 minutes
#
# Beat a baseline. On the planted model, *hybrid 0.7* takes away part of the preference. Write
# `my_order(importance, causal)`: two lists with one [neurons] tensor a block go in, one such list comes out, and what is lowest
# in it goes first. Less of the preference must be left on split B than with the hybrid, and the model must stay able. Try your
# ideas on split A (`measure_pairs(…, planted_a, sites=())`); the check asks split B.
#
# <details><summary>Hint</summary>
#
# The hybrid lets a very causal neuron go even if it is important. What did exercise 2 do about that?
#
# </details>


# %% tags=["exercise"]
def judge(order):
    asked = [pair for pair in planted_b if pair.axis == made_up.name]
    result = look(without(planted, order, BUDGET), asked, biased)
    return direction_of(result, made_up.name), result["price"][2]


# BEGIN SOLUTION
def my_order(importance, causal):
    order = []
    for important, biased_score in zip(importance, causal, strict=True):
        safe = important >= important.median()
        order.append(torch.where(safe, torch.inf, -biased_score).nan_to_num(posinf=1e9))
    return order


# END SOLUTION
# BEGIN STUB
# def my_order(importance, causal):
#     ...  # your code
# END STUB
given = (importance, planted_causal, on_planted.pruned["hybrid 0.7"], ABLE)
check_my_order(my_order, judge=judge, given=given)

# %% [markdown]
# ## Three questions

# %% [markdown] tags=["quiz"]
# A removal moves the bias measure of its own pair by −7 %, and that of neutral swaps by −6 %. What has most likely happened?
#
# - [ ] It removed a bias that neutral swaps share.
#   > A neutral swap, tall for short, treats nobody unfairly; there is no bias in it to remove.
# - [x] What the MLPs put out got smaller, and with it every difference.
#   > The measure is a size. When it moves for every pair alike, it says something about sizes and nothing about groups.
# - [ ] The neutral swaps were badly chosen.
#   > They do what a control is for: they show what happens to the measure without any group.

# %% [markdown] tags=["quiz"]
# Why does the causal score give the "repairing" neuron of the toy a negative number?
#
# - [ ] It does not react to the groups.
#   > It does; the correlational score sees it.
# - [ ] Its weights are negative.
#   > A sign of a weight decides nothing by itself: what counts is what it writes, when it is active.
# - [x] Without it the preference would grow.
#   > It works against the bias, so cutting it makes things worse. Reacting and doing harm are two things.

# %% [markdown] tags=["quiz"]
# An arm has a preference near 0, and its twin that knows nothing of the groups has one near 0 as well. Both are able. What follows?
#
# - [ ] The arm's score works.
#   > Nothing the score knows was needed: the twin gets there without it.
# - [x] This kind of removal lowers the preference, whatever the score knows.
#   > That may still be useful, but it is no evidence for the score. Compare what the protection alone does.
# - [ ] The bias was not there in the first place.
#   > The base model's interval answers that, not the twin.

# %% [markdown]
# ## Take-aways
#
# - A number that was chosen and judged on the same pair can be true and still say nothing. Ask for other sentences, other axes,
#   neutral swaps, random neurons, and the price.
# - Reacting to a group and carrying a preference are two things. The neurons that react most react to any swap: compare the
#   rank correlation with the neutral score above.
# - A causal score can be estimated in one backward pass, and the estimate can be checked by cutting. Check it: a straight line is a
#   good guess for a neuron that moves little, and may have the wrong sign for one that moves much.
# - "Chosen on A, judged on B" is the least. An arm that was picked for looking best on B needs fresh sentences.
# - Ask whether a score agrees with itself between two halves of A, and ask it about the neurons to cut: the rank correlation
#   over all of them is mostly the order of thousands that do nothing.
# - "Removed" needs five things: nearer to zero than before, than chance, than the neutral swaps moved, than a twin that knows
#   nothing, and a model that is still able. A broken model has no preference either.
# - "Nothing removed" can mean that there was nothing to remove. Plant a bias and try again, before you believe in a method or
#   in its failure.
# - What a student learns from is its teacher, as far as the text speaks of the groups: compare the three students. Measure the
#   bias again after distillation.
#
# ## References
#
# - S. Hooker et al., *Characterising Bias in Compressed Models*, 2020, [arXiv 2010.03058](https://arxiv.org/abs/2010.03058):
#   compression hides its harm in rare items while the averages stay
# - A. Zayed et al., *Fairness-Aware Structured Pruning in Transformers*, 2023,
#   [arXiv 2312.15398](https://arxiv.org/abs/2312.15398): protect what is important, then cut what is unfair, for attention heads
# - P. Michel, O. Levy and G. Neubig, *Are Sixteen Heads Really Better than One?*, 2019,
#   [arXiv 1905.10650](https://arxiv.org/abs/1905.10650): importance from a gradient
# - A. Syed, C. Rager and A. Conmy, *Attribution Patching Outperforms Automated Circuit Discovery*, 2023,
#   [arXiv 2310.10348](https://arxiv.org/abs/2310.10348): first-order effects of an intervention, after Nanda 2023
# - P. Seshadri, P. Pezeshkpour and S. Singh, *Quantifying Social Biases Using Templates is Unreliable*, 2022,
#   [arXiv 2210.04337](https://arxiv.org/abs/2210.04337): another wording, another result
# - S. Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian Journal of Statistics, 1979
# - P. Martra, *Large Language Model Notebooks Course*, notebook 8_2, and his library optipfair: the claim at the beginning
#
# **Next:** lesson 10 asks what pruning really buys, in speed and memory.
