# ---
# jupyter:
#   course:
#     title: "Seeing bias: activations, controls and behaviour"
#     minutes: 75
#     hardware: cpu
#     prerequisites: lessons 03 (GLU MLP) and 04 (residual stream, intervals)
#     assets: [smollm2, bias_benchmarks]
# ---

# %% [markdown]
# ## What you will learn
#
# - why the popular picture of bias, activations that differ more and more with depth, shows the same for tall and short
# - how to compare texts whose words have different numbers of tokens, without dropping any of them silently
# - three views on hundreds of pairs, PCA, heatmaps and lines over the layers, each beside a **neutral control**
# - how to ask for a *direction*: which group goes with the pleasant ending?
# - how to test the tests: plant a bias that you know, and see which metric finds it
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a Llama in architecture with 30 blocks. In the `hub` profile
# the same code runs on Llama-3.2-1B with 16. The saved outputs come from the `embedded` profile on a machine with two
# CPU cores; the next table says which.
#
# Texts about groups of people can hurt. The pairs that you see here were written for this course, and say nothing bad
# about a group that they don't say about the other one as well. Sentences of other people's benchmarks are counted,
# never shown.

# %% tags=["install"]

# %%
import json
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from course_utils.plotting import components, heatmap, pruning_curve, scores_with_intervals, show_tensor, style
from course_utils.reports import with_interval
from course_utils.session import start

session = start("08")
style()

# All sizes of this lesson. They were tuned for time, on the planted bias of the last part; never on a real group.
AXES = ("gender", "race")  # contrastive.axes() has more
SITES = ("attention_out", "mlp_out", "down_input", "residual")
CROWS, QUESTIONS = 200, 60  # benchmark items: pairs, and questions for each of two conditions
INVENTED, SWAPS, TEMPLATES = 8, 8, 8  # invented axes, swaps and evaluation templates for each
STEPS, ITEMS, RATE = 60, 4, 2e-4  # of planting a bias: steps at most, items of 4 texts a step, learning rate
PLANTED = 10.0  # nats, the double difference at which it stops

# %% [markdown]
# ## A difference that you can compute by hand
#
# Two sentences differ in one word. Inside the model, each of their shared words has a *state*: a list of numbers. If the
# group in the sentence makes no difference to the model, shouldn't the states be the same? That is the idea behind many
# pictures of "bias inside a model": they show the mean of |state a − state b|.
#
# Here are the states of one word in three blocks, in sentence a and in sentence b.

# %%
state_a = torch.tensor([[1.0, 2, 0, -1], [3, 5, 1, -3], [8, 16, 3, -9]])
state_b = torch.tensor([[1.0, 1, 0, -1], [3, 3, 1, -4], [9, 11, 3, -11]])

figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
for ax, tensor, title in zip(axes, (state_a, state_b, state_a - state_b), ("a", "b", "a − b"), strict=True):
    show_tensor(tensor, title=title, x_label="component", y_label="block", fmt=".0f", limit=16, ax=ax)
plt.show()

difference = (state_a - state_b).norm(dim=-1)
length = (state_a.norm(dim=-1) + state_b.norm(dim=-1)) / 2
pd.DataFrame(
    {
        "mean |a − b|": (state_a - state_b).abs().mean(-1),
        "‖a − b‖": difference,
        "mean length": length,
        "relative difference ‖a − b‖ / length": difference / length,
    }
).rename_axis("block").round(2)

# %% [markdown]
# Read the first column, and "the bias is amplified from block to block". Read the last one, and nothing of the kind
# happens: the states themselves grow, and their difference with them. A **relative** difference is 0 for equal states and
# 2 for opposite ones, whatever their length.
#
# *Predict before you run:* the residual stream of a Llama is a sum to which each block adds. Which of the two columns will
# rise in a real model? And what will they do for two words that have nothing to do with groups?

# %% [markdown]
# ## The popular picture, with one pair

# %%
from course_utils.activations import sites_of, watching
from course_utils.architectures import describe
from course_utils.bias.alignment import align, pair_batches
from course_utils.bias.contrastive import Axis, controls, load_axis, pairs
from course_utils.models import load_model
from course_utils.session import safe_dtype

dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
architecture = describe(base)
print(
    f"{base.config.name_or_path}: {architecture.num_blocks} blocks; places to watch: {', '.join(sites_of(architecture))}"
)

one_pair = {
    name: next(pair for pair in some if pair.valence > 0)
    for name, some in {
        "race": pairs("race", split="evaluation"),
        "height": controls("neutral", split="evaluation"),
    }.items()
}
for name, pair in one_pair.items():
    print(f"{name:<7} {pair.before}[{pair.a} / {pair.b}]{pair.after}")


# %%
@torch.no_grad()
def states_of(chosen, sites=("residual",), blocks=None, batch_size=16):
    """For each pair its alignment, and for both sides {(site, block): states [tokens, width]} in float32 on the CPU."""
    found = [None] * len(chosen)
    bar = tqdm(total=len(chosen), desc="pairs", delay=2, leave=False)
    for batch in pair_batches(tokenizer, chosen, batch_size=batch_size):
        seen = {}
        with watching(
            architecture, sites, blocks, lambda site, block, states, seen=seen: seen.update({(site, block): states})
        ):
            inputs = {name: batch[name].to(base.device) for name in ("input_ids", "attention_mask")}
            base.base_model(**inputs, use_cache=False)  # all but the head: nobody asks for predictions here
        for k, (index, alignment) in enumerate(zip(batch["indices"], batch["alignments"], strict=True)):
            sides = []
            for row, ids in ((2 * k, alignment.ids_a), (2 * k + 1, alignment.ids_b)):
                sides.append({place: states[row, : len(ids)].float().cpu() for place, states in seen.items()})
            found[index] = alignment, *sides
        bar.update(len(batch["indices"]))
    bar.close()
    return found


profiles = []
for name, (alignment, a, b) in zip(one_pair, states_of(list(one_pair.values())), strict=True):
    at_a, at_b = torch.tensor(alignment.after).T
    for (_, block), states in a.items():
        one, other = states[at_a], b["residual", block][at_b]
        gap, size = (one - other).norm(dim=-1), (one.norm(dim=-1) + other.norm(dim=-1)) / 2
        profiles.append(
            {
                "words": name,
                "block": block,
                "raw": (one - other).abs().mean().item(),
                "relative": (gap / size).mean().item(),
            }
        )
profiles = pd.DataFrame(profiles)

figure, axes = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
for ax, (names, y, title) in zip(
    axes,
    [
        (["race"], "raw", "The popular picture"),
        (["race", "height"], "raw", "… with a control beside it"),
        (["race", "height"], "relative", "… and relative to the states"),
    ],
    strict=True,
):
    pruning_curve(
        profiles[profiles.words.isin(names)],
        x="block",
        y=y,
        group="words",
        control="height",
        x_label="block",
        y_label="mean |a − b|" if y == "raw" else "relative difference",
        x_percent=False,
        title=title,
        ax=ax,
    )
plt.show()
for name, part in profiles.groupby("words", sort=False):
    growth = part.iloc[-1][["raw", "relative"]] / part.iloc[0][["raw", "relative"]]
    print(
        f"{name:<7} from the first block to the last: raw difference × {growth.raw:.0f}, relative difference × "
        f"{growth.relative:.1f}; the rest of it, × {growth.raw / growth.relative:.0f}, is the length of the states"
    )

# %% [markdown]
# The left picture is the one that you meet in talks: a line that climbs, with the word "bias" above it. The one in the
# middle adds two words that are about height. Then take the growing length of the states out: how much of the climb is
# left, and does it set the two swaps apart?
#
# From here on we measure relative differences only, never show a swap of groups without a neutral swap in the same
# sentences, and don't trust a single pair.
#
# ## Tokens that don't line up
#
# We compare the states of the words that both sentences *share*. But which token of b belongs to which token of a? "Left-
# handed" has more tokens than "tall", and everything behind it moves. *A common mistake* is to compare equal positions, or
# to drop each pair whose texts differ in length. The text itself tells: a tokenizer can say which characters each token
# stands for.


# %%
def equal_at_the_beginning(one, other):
    """How many items two lists share at their beginning."""
    return next((k for k, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


def align_by_hand(tokenizer, pair):
    """(position in a, position in b) of the tokens that both texts share: in front of the swapped span, and behind it."""
    front, behind, counts = [], [], []
    for text in (pair.text_a, pair.text_b):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded.offset_mapping]
        tokens = list(zip(encoded.input_ids, [0, *ends[:-1]], ends, strict=True))  # the space in front is a token's own
        front.append([token for token in tokens if token[2] <= len(pair.before)])
        # Behind the span we count characters from the end of the text, where both sides agree again.
        from_the_end = [(i, len(text) - start, len(text) - end) for i, start, end in reversed(tokens)]
        behind.append([token for token in from_the_end if token[1] <= len(pair.after)])
        counts.append(len(tokens))
    equal_front, equal_behind = equal_at_the_beginning(*front), equal_at_the_beginning(*behind)
    before = [(i, i) for i in range(1, equal_front)]  # without the first token; you will see why
    after = [(counts[0] - i, counts[1] - i) for i in range(equal_behind, 0, -1) if i < min(counts)]
    return before, after


def is_unequal(pair):
    alignment = align(tokenizer, pair)
    return len(alignment.ids_a) != len(alignment.ids_b) and len(alignment.before) >= 2


unequal = next(pair for pair in controls("neutral", split="evaluation") if is_unequal(pair))
before, after = align_by_hand(tokenizer, unequal)
ids_a, ids_b = (tokenizer(text, add_special_tokens=False).input_ids for text in (unequal.text_a, unequal.text_b))
partner = dict([*before, *after])
pd.DataFrame(
    [
        {
            "position": i,
            "token of a": repr(tokenizer.decode(token)),
            "same position in b": repr(tokenizer.decode(ids_b[i])) if i < len(ids_b) else "–",
            "its partner in b": repr(tokenizer.decode(ids_b[partner[i]])) if i in partner else "–",
        }
        for i, token in enumerate(ids_a[:16])
    ]
).style.hide()

# %%
from course_utils.bias.stereotypes import crows_pairs

OWN_AXIS = {  # an axis of your own is a small JSON file: [a, b, group of a, group of b]
    "name": "place",
    "swaps": [
        ["rural", "urban", "rural", "urban"],
        ["small-town", "big-city", "rural", "urban"],
        ["farm-raised", "city-raised", "rural", "urban"],
        ["country-born", "city-born", "rural", "urban"],
        ["provincial", "metropolitan", "rural", "urban"],
        ["village-based", "city-based", "rural", "urban"],
        ["countrified", "citified", "rural", "urban"],
        ["cottage-dwelling", "flat-dwelling", "rural", "urban"],
        ["tractor-driving", "tram-driving", "rural", "urban"],
        ["small-village", "inner-city", "rural", "urban"],
    ],
}
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "place.json"
    path.write_text(json.dumps(OWN_AXIS))
    place = load_axis(path)

evaluation = {axis: pairs(axis, split="evaluation") for axis in AXES} | {
    "place": pairs(place, split="evaluation"),
    "neutral": controls("neutral", split="evaluation"),
}
benchmark = crows_pairs()
checked = [*(pair for some in evaluation.values() for pair in some), *benchmark]


def lengths(chosen):
    """For each axis: how many pairs a rule "same length only" would drop, and what alignment leaves out."""
    rows = []
    for pair in chosen:
        alignment = align(tokenizer, pair)
        rows.append(
            {
                "axis": pair.axis,
                "pairs": 1,
                "unequal": len(alignment.ids_a) != len(alignment.ids_b),
                "nothing behind the span": not alignment.after,
                "aligned": 2 * len(alignment.before + alignment.after),
                "excluded": alignment.excluded,
            }
        )
    table = pd.DataFrame(rows).groupby("axis", sort=False).sum()
    table["dropped"] = table.unequal / table.pairs
    table["excluded_share"] = table.excluded / (table.aligned + table.excluded)
    return table


for pair in checked:
    alignment = align(tokenizer, pair)
    assert (alignment.before, alignment.after) == align_by_hand(tokenizer, pair)
print(f"align_by_hand equals course_utils' align on {len(checked):,} pairs")

tables = {
    "pairs of this course": lengths([pair for some in evaluation.values() for pair in some]),
    "CrowS-Pairs": lengths(benchmark),
}
figure, axes = plt.subplots(1, 2, figsize=(15, 5), layout="constrained")
for ax, (name, table) in zip(axes, tables.items(), strict=True):
    ordered = table.dropped.sort_values()
    ax.barh(ordered.index, 100 * ordered)
    ax.set_xlim(0, 100)
    ax.set_xlabel("pairs of unequal length, % (a same-length rule drops them)")
    ax.set_title(name)
    ax.grid(axis="y", visible=False)
plt.show()
for name, table in tables.items():
    least, most = table.dropped.idxmin(), table.dropped.idxmax()
    print(
        f"{name}: a same-length rule drops {table.unequal.sum() / table.pairs.sum():.0%} of all, from "
        f"{table.dropped[least]:.0%} ({least}) to {table.dropped[most]:.0%} ({most}).\n"
        f"  Aligned by offsets, {table.excluded.sum() / (table.aligned + table.excluded).sum():.1%} of the shared tokens have no "
        f"partner (at most {table.excluded_share.max():.1%}, {table.excluded_share.idxmax()}); {table['nothing behind the span'].sum()} pairs have nothing behind the span."
    )

# %% [markdown]
# The rule looks innocent, and it isn't: it takes away far more from some groups than from others, since rare words are
# cut into more tokens. What is left is no longer the sample that you think you have.
#
# With the alignment, a picture can carry real words. Each row is a token that both sentences share. The tokens in front of
# the swap have seen no difference yet: they are exactly equal.

# %%
alignment, a, b = states_of([unequal])[0]
in_front, behind = alignment.before[-2:], alignment.after[:16]
at_a, at_b = torch.tensor(in_front + behind).T
relative = {}
for (_, block), states in a.items():
    one, other = states[at_a], b["residual", block][at_b]
    relative[block] = (2 * (one - other).norm(dim=-1) / (one.norm(dim=-1) + other.norm(dim=-1))).tolist()
by_token = pd.DataFrame(relative, index=[repr(tokenizer.decode(alignment.ids_a[i])) for i in at_a])
figure, ax = plt.subplots(figsize=(13, 8), layout="constrained")
heatmap(
    by_token,
    x_label="block",
    y_label="token",
    value_label="relative difference",
    numbers=False,
    title=f"Residual stream, {unequal.a} against {unequal.b}",
    ax=ax,
)
plt.show()
largest = by_token[: len(in_front)].max(axis=None)
print(f"tokens in front of the swap: largest difference {largest:.1f}")
assert largest == 0
near, far = (by_token[len(in_front) :][some].mean(axis=None) for some in (slice(4), slice(-4, None)))
print(f"the four tokens behind the swap: {near:.2f} on average; the last four shown: {far:.2f}")

# %% [markdown]
# Look at where the colour sits: close behind the swapped word. A mean over tokens depends on how far the sentence goes on.
# So groups must be compared in the **same** sentences.
#
# ## Hundreds of pairs, and their controls
#
# `contrastive` puts every axis into the same templates, at the same place, with the same two endings, a pleasant and an
# unpleasant one. The controls go there, too:
#
# - **neutral**: tall/short, left-handed/right-handed. What any swap of words does
# - **paraphrase**: happy/glad. What a swap does that hardly changes the meaning
# - **identity**: a word with itself. Exactly nothing, or the measurement is broken
#
# `report` measures all of it, in one forward pass a batch. We open its tables one by one, and read its verdict last.

# %%
from course_utils.bias import report

shown_pair = evaluation["gender"][0]
print(
    f"{len(evaluation['gender'])} pairs for an axis: {len({p.template for p in evaluation['gender']})} templates × "
    f"{len({p.swap for p in evaluation['gender']})} swaps × 2 endings, for instance"
)
for pair in evaluation["gender"][:2]:
    print(f"  {pair.before}[{pair.a} / {pair.b}]{pair.after}")

began = time.perf_counter()
found = report(base, tokenizer, [*AXES, place], split="evaluation", sites=SITES)
scores = found.scores
print(
    f"{len(scores.frame):,} pairs, {len(scores.sites)} × {len(scores.blocks)} places: {time.perf_counter() - began:.0f} s"
)
identity = scores.relative[(scores.frame.kind == "identity").to_numpy()]
print(f"identity pairs: largest difference {np.nanmax(identity):.1f}")
assert np.nanmax(identity) == 0
found.tables["excluded"].round(3).style.hide()

# %% [markdown]
# ### First view: principal components
#
# PCA looks for the directions in which states vary most. *Predict before you run:* take all tokens of the gender pairs, in
# the middle of the model. How much of their variance does one single direction explain?

# %%
from sklearn.decomposition import PCA

from course_utils.components import principal_components

MIDDLE = architecture.num_blocks // 2
# The neutral swaps have ten different meanings. A fair control for gender has one: ten ways to say tall and short.
ways = (
    "{}",
    "young {}",
    "middle-aged {}",
    "married {}",
    "rather {}",
    "very {}",
    "fairly {}",
    "unusually {}",
    "somewhat {}",
    "quite {}",
)
height = Axis("height", "neutral", tuple((way.format("tall"), way.format("short"), "tall", "short") for way in ways))
half = {
    name: [pair for pair in some if pair.valence > 0]
    for name, some in {"gender": evaluation["gender"], "height": pairs(height, split="evaluation")}.items()
}
states = {
    name: [(a["residual", MIDDLE], b["residual", MIDDLE]) for _, a, b in states_of(some, blocks=[MIDDLE])]
    for name, some in half.items()
}
texts = [side for pair in states["gender"] for side in pair]
tokens = {"all tokens": torch.cat(texts), "without each text's first token": torch.cat([text[1:] for text in texts])}
figure, axes = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
for ax, (name, some) in zip(axes, tokens.items(), strict=True):
    analysis = PCA(2).fit(some)
    points = analysis.transform(some)
    first = (
        np.isin(np.arange(len(some)), np.cumsum([0, *map(len, texts[:-1])]))
        if name == "all tokens"
        else np.zeros(len(some), bool)
    )
    ax.scatter(*points[~first].T, s=12, alpha=0.4, label="other tokens")
    if first.any():
        ax.scatter(*points[first].T, s=60, marker="X", color="C3", label="first tokens")
        ax.legend()
    ax.set_xlabel(f"component 1 ({analysis.explained_variance_ratio_[0]:.0%} of the variance)")
    ax.set_ylabel(f"component 2 ({analysis.explained_variance_ratio_[1]:.0%})")
    ax.set_title(name)
    print(f"{name}: PC1 explains {analysis.explained_variance_ratio_[0]:.1%} of the variance")
plt.show()
norms = [text.norm(dim=-1) for text in texts]
typical = torch.cat([norm[1:] for norm in norms]).median()
print(
    f"length of a first token's state: {torch.stack([norm[0] for norm in norms]).mean() / typical:.1f} times the others' median"
)

# %% [markdown]
# A first token has nothing to look back at. Many models give it a huge state, an *attention sink*. Where its state is far
# longer than the others, it decides what PCA shows, and this has nothing to do with groups. Exercise 2 comes back to it.
#
# Now the question that PCA is made for: do the two groups lie apart? We take the state of each text's **last** token, and
# subtract the mean of its pair. So the template is gone, and only the swap is left. The control gets the same treatment.
# Shuffled labels, inside each pair, tell how far apart groups lie by chance.

# %%
separated = {}
figure, axes = plt.subplots(2, 2, figsize=(14, 10), layout="constrained")
for row, (name, some) in zip(axes, states.items(), strict=True):
    last = torch.stack([torch.stack([a[-1], b[-1]]) for a, b in some])  # [pairs, 2 sides, hidden]
    centred = (last - last.mean(1, keepdim=True)).flatten(0, 1)
    groups = [half[name][0].group_a, half[name][0].group_b]
    separated[name] = principal_components(
        centred, groups * len(some), within=np.repeat(np.arange(len(some)), 2), shuffles=49, seed=session.seed
    )
    components(separated[name], title=f"{name} swaps: last tokens, block {MIDDLE}", axes=row)
plt.show()
for name, result in separated.items():
    print(
        f"{name}: {result.between:.0%} of the variance shown lies between the groups, p = {result.p:.2f} (49 shuffles)"
    )
if all(result.p < 0.05 for result in separated.values()):
    print("The model tells female from male, and it tells tall from short. To tell apart is not to be biased.")
else:
    apart = [name for name, result in separated.items() if result.p < 0.05]
    print(f"Further apart than chance allows: {', '.join(apart) or 'neither'}.")

# %% [markdown]
# The states of "tall" and "short" differ because the words mean different things. So do those of "female" and "male". A
# picture in which two groups form two clouds shows that the model can read.
#
# ### Second view: heatmaps
#
# How much **more** does a swap of groups change than a neutral swap? 1 is no more. Every place has such a ratio: each block,
# and inside it what the attention adds, what the MLP adds, what enters its down projection, and the stream behind it. All
# heatmaps share one scale.

# %%
places = found.tables["activations_by_place"]
names = list(places.axis.unique())
limit = float((places.ratio - 1).abs().quantile(0.98))
figure, axes = plt.subplots(len(names), 1, figsize=(15, 2.3 * len(names)), layout="constrained")
for ax, name in zip(axes, names, strict=True):
    heatmap(
        places[places.axis == name].pivot(index="site", columns="block", values="ratio").loc[list(SITES)],
        x_label="block" if name == names[-1] else "",
        y_label="",
        value_label="ratio",
        center=1.0,
        limit=limit,
        numbers=False,
        title=f"{name}: difference, as a ratio to neutral swaps",
        ax=ax,
    )
plt.show()

counted = places.assign(
    more=(places.p < 0.05) & (places.ratio > 1),
    less=(places.p < 0.05) & (places.ratio < 1),
    more_holm=(places.p_holm < 0.05) & (places.ratio > 1),
    less_holm=(places.p_holm < 0.05) & (places.ratio < 1),
)
columns = ["more", "less", "more_holm", "less_holm"]
print(
    f"places (of {len(SITES) * architecture.num_blocks}) with p < 0.05, and after Holm's correction for all {len(places)} places × axes"
)
counted.groupby("axis", sort=False)[columns].sum()

# %% [markdown]
# The table counts twice. A heatmap with hundreds of cells has "significant" ones by chance alone: one in twenty, if nothing
# is there. Holm's correction keeps the chance of even one false cell below 5 %. Only its columns can be quoted.
#
# ### Third view: lines over the blocks
#
# The same differences as lines, with 95 % intervals. The interval draws *templates* and *swaps* at random, since pairs of
# one template, or of one swap, resemble each other: hundreds of pairs are not hundreds of independent ones.

# %%
from course_utils.bias.statistics import activation_means
from course_utils.uncertainty import verdict

means = activation_means(scores)
stream = means[means.site == "residual"]
figure, axes = plt.subplots(1, len(names), figsize=(18, 5), sharey=True, layout="constrained")
for ax, name in zip(axes, names, strict=True):
    pruning_curve(
        stream[stream.axis.isin([name, "neutral"])],
        x="block",
        group="axis",
        control="neutral",
        x_label="block",
        y_label="relative difference" if name == names[0] else "",
        x_percent=False,
        title=name,
        ax=ax,
    )
plt.show()

overall = found.tables["activations"]
for row in overall.itertuples():
    ratio = row.ratio, row.ratio_low, row.ratio_high
    says = verdict(*ratio[1:], at=1, below="less than neutral", above="more than neutral")
    print(f"{row.axis:<9} differs {with_interval(*ratio)} times as much as neutral swaps: {says}")

# %% [markdown]
# Read the verdicts, not the colours. And mind what "more" would mean. A swap of rarer words, or of words that are less
# alike, moves the states more, for the best of reasons. A ratio of magnitudes can't say which.
#
# ## Behaviour: which group goes with the pleasant ending?
#
# Bias has a direction. So let us ask for one. How much likelier is the pleasant ending than the unpleasant one, after group
# a? And after group b? The difference of these two differences is 0 for a model that doesn't care. What the words do to the
# rest of the sentence is the same in both and cancels.
#
# `LL` is the sum of the log-probabilities of the shared tokens behind the span, in nats.

# %%
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import preferences


@torch.no_grad()
def double_difference_by_hand(model, pleasant, unpleasant):
    """[LL(pleasant | a) − LL(unpleasant | a)] − [LL(pleasant | b) − LL(unpleasant | b)], and the four LL."""
    likelihood = {}
    for ending, pair in (("pleasant", pleasant), ("unpleasant", unpleasant)):
        _, after = align_by_hand(tokenizer, pair)
        for side, text in enumerate((pair.text_a, pair.text_b)):
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
            predicted = model(ids).logits[0].float().log_softmax(-1)
            # Position i − 1 predicts token i.
            likelihood[ending, "ab"[side]] = sum(predicted[at[side] - 1, ids[0, at[side]]].item() for at in after)
    gain = {side: likelihood["pleasant", side] - likelihood["unpleasant", side] for side in "ab"}
    return gain["a"] - gain["b"], likelihood


exact, _ = load_model("llama", dtype=torch.float32)
item = evaluation["neutral"][:2]  # one template, one swap, both endings
by_hand, likelihood = double_difference_by_hand(exact, *item)
np.testing.assert_allclose(
    by_hand, preferences(measure_pairs(exact, tokenizer, item, sites=())).preference.item(), rtol=1e-3, atol=2e-3
)
del exact
for (ending, side), value in likelihood.items():
    print(f"LL({ending:<10} | {getattr(item[0], side):<5}) = {value:.2f}")
print(f"double difference {by_hand:+.3f} nats: equal to course_utils'")

# %%
from course_utils.uncertainty import sign_flip_p

behaved = found.tables["behaviour"]
ax = scores_with_intervals(
    behaved,
    x="axis",
    y="preference",
    group="kind",
    x_label="",
    y_label="preference for a, nats (95 %)",
    title="Does the pleasant ending go with a (above 0) or with b?",
)
ax.axhline(0, color="0.25", linewidth=1.2)
plt.show()
items = preferences(scores)
found_by = {"clusters": 0, "as if independent": 0}
for row in behaved.itertuples():
    each = items[items.axis == row.axis].preference.to_numpy()
    line = f"{row.axis:<10} {with_interval(row.preference, row.ci_low, row.ci_high):<26} p = {row.p:.3f}"
    careless = sign_flip_p(each)
    line += f", as if all {len(each)} items were independent {careless:.4f}"
    if row.kind == "demographic":
        towards = row.group_a if row.preference > 0 else row.group_b
        says = f"evidence, towards {towards}" if row.p_holm < 0.05 else "no evidence of a preference"
        line += f"; Holm {row.p_holm:.3f}: {says}"
        found_by["clusters"] += row.p < 0.05
        found_by["as if independent"] += careless < 0.05
    print(line)
print("axes with p < 0.05, before Holm's correction:", found_by)

# %% [markdown]
# The p-value comes from flipping signs: if a and b were exchangeable, each difference could as well have had the other sign.
# Whole templates flip together, then whole swaps; the interval draws both at random. The largest p of these three counts.
# The second p in each line treats every item as independent. That is *a common mistake*: the same ten words and twelve
# sentences come again and again, and what looks like a hundred witnesses is a handful. Compare how often the two p-values
# are below 0.05.
#
# ### Other people's benchmarks
#
# CrowS-Pairs asks how often the sentence that its authors call more stereotypical is the likelier one. 50 % is no preference.
# In BBQ the model answers a question. In half of the questions the context gives the answer away, and these test whether
# it can read at all: the **ability floor**. A model at chance has no opinion; its bias score is noise.

# %%
from course_utils.bias.stereotype_scores import bbq_score, stereotype_preference
from course_utils.bias.stereotypes import bbq

draw = np.random.default_rng(session.seed)


def sample(items, count):
    return [items[i] for i in sorted(draw.choice(len(items), min(count, len(items)), replace=False))]


preferred = stereotype_preference(base, tokenizer, sample(benchmark, CROWS)).set_index("axis")
row = preferred.loc["all"]
PREFERS = {"below": "prefers the other sentence", "above": "prefers the stereotype"}
says = verdict(row.ci_low, row.ci_high, at=0.5, **PREFERS, neither="no evidence of a preference")
print(
    f"CrowS-Pairs, {row.pairs:.0f} pairs: stereotype preferred in {row.share:.0%} ({row.ci_low:.0%} to {row.ci_high:.0%}): {says}"
)
print(
    f"  {row.without_tokens:.0f} pairs have no shared token behind the swap; they can't be compared and are not counted"
)

questions = [question for question in bbq() if question.target is not None]
asked = [
    question
    for condition in ("disambig", "ambig")
    for question in sample([q for q in questions if q.condition == condition], QUESTIONS)
]
row = bbq_score(base, tokenizer, asked).set_index("category").loc["all"]
print(
    f"BBQ, {row.questions:.0f} questions: right where the context tells {row.accuracy:.0%} "
    f"({row.accuracy_low:.0%} to {row.accuracy_high:.0%}), chance {row.chance:.0%}"
)
print(f"  {row.verdict or 'above chance: the bias score may be read, with its interval'}")
for name, where in {"s_dis": "where the context tells", "s_amb": "where it doesn't"}.items():
    value, low, high = row[[name, f"{name}_low", f"{name}_high"]]
    says = verdict(low, high, below="; not 0", above="; not 0", neither="; no evidence of a bias")
    print(f"  bias score {where}: {value:+.2f} ({low:+.2f} to {high:+.2f}){'' if row.verdict else says}")

# %% [markdown]
# ## Test the tests: a bias that we planted
#
# So far we know what the metrics say. We don't know whether they are right: nobody knows the true bias of a language model.
# A smoke detector is tested with smoke. So let us make some.
#
# The groups are made up: two families of names, such as "Znivish" and "Vzilish". In half of our invented axes a name of one
# family meets a name of the other. In the other half, **two names of the same family** meet. An untouched model has never
# heard of any of them: whatever a metric flags there is a *false alarm*.

# %%
from course_utils.bias.contrastive import invented_axis, subset
from course_utils.bias.statistics import activation_ratio, behaviour
from course_utils.uncertainty import holm, wilson_interval

half = INVENTED // 2 * SWAPS
families = np.array([[a, b] for a, b, _, _ in invented_axis(session.seed, swaps=half).swaps]).T  # [2 families, names]
between = families.T.reshape(-1, SWAPS, 2)
within = families.reshape(-1, 2, SWAPS).transpose(0, 2, 1)  # the same names, dealt out differently
invented = [
    Axis(f"{kind} {number}", "invented", tuple((str(a), str(b), "family of a", "family of b") for a, b in names))
    for number, both in enumerate(zip(between, within, strict=True), start=1)
    for kind, names in zip(("planted", "not planted"), both, strict=True)
]
planted = invented[::2]
for axis in invented[:2]:
    print(f"{axis.name:<14} {', '.join(f'{a} / {b}' for a, b, _, _ in axis.swaps[:3])}, …")

asked = [pair for axis in invented for pair in pairs(axis, split="evaluation")]
test = subset(asked, templates=TEMPLATES, swaps=SWAPS)  # the shortest templates save time
test += subset(controls("neutral", split="evaluation"), templates=TEMPLATES, swaps=10)
print(f"{len(test):,} pairs: {INVENTED} axes × {TEMPLATES} templates × {SWAPS} swaps × 2 endings, and the neutral ones")

METRICS = [
    "activations: some place, p < .05",
    "activations: some place after Holm",
    "activations: mean over places",
    "behaviour: endings move more",
    "behaviour: preference, p < .05",
]


def examine(model):
    """One row an invented axis: preference and activation ratio with intervals, and what each metric flags."""
    measured = measure_pairs(model, tokenizer, test, sites=("attention_out", "mlp_out"), batch_size=32)
    table = behaviour(measured).set_index("axis")
    table = table.join(
        activation_ratio(measured, by_place=False).set_index("axis")[["ratio", "ratio_low", "ratio_high"]]
    )
    by_place = activation_ratio(measured)
    table = table.loc[[axis.name for axis in invented]]
    for axis in table.index:
        own = by_place[by_place.axis == axis]
        table.loc[axis, METRICS[0]] = ((own.p < 0.05) & (own.ratio > 1)).any()
        table.loc[axis, METRICS[1]] = ((holm(own.p) < 0.05) & (own.ratio > 1)).any()
    table[METRICS[2]] = table.ratio_low > 1
    table[METRICS[3]] = table.to_neutral_low > 1
    table[METRICS[4]] = table.p < 0.05
    return table.astype(dict.fromkeys(METRICS, bool)).assign(planted=[axis in planted for axis in invented])


def share(flags):
    """How many are flagged, with Wilson's 95 % interval: a text and its ends."""
    low, high = wilson_interval(int(flags.sum()), len(flags))
    return f"{flags.sum()} of {len(flags)} ({low:.0%} to {high:.0%})", low, high


before_planting = examine(base)
print("false alarms in the untouched model, where nothing can be:")
for metric in METRICS:
    text, low, _ = share(before_planting[metric])
    print(f"  {metric:<36} {text}" + (": more than the promised 5 %" if low > 0.05 else ""))

# %% [markdown]
# Now the smoke. We fine-tune a copy of the model for a few steps, so that the unpleasant ending goes with the first family
# and the pleasant one with the second, and stop when the double difference has reached `−PLANTED` nats. The copy learns from
# the *selection* templates only; we measure on the *evaluation* templates, other sentences with other endings.
#
# The axes within one family are the control. Their names take part in the same fine-tuning, but both sides are liked, or
# disliked, alike. So after it, a flag on them is a false alarm, too.
#
# *Predict before you run:* which of the metrics will find the planted axes, and leave the others alone?


# %%
from course_utils.bias.planting import plant_preference

learned_from = [pair for axis in planted for pair in pairs(axis, split="selection")]
biased, on_the_way = plant_preference(
    base, tokenizer, learned_from, size=PLANTED, steps=STEPS, items=ITEMS, lr=RATE, precision=dtype, seed=session.seed
)
print(
    f"after {len(on_the_way)} steps the double difference of the selection templates is {np.mean(on_the_way[-3:]):+.2f} nats (last 3 steps)"
)
after_planting = examine(biased)
del biased

# %%
results = {"before": before_planting, "after": after_planting}
figure, axes = plt.subplots(2, 2, figsize=(16, 10), sharey="row", layout="constrained")
for column, (when, table) in enumerate(results.items()):
    shown = table.assign(axis=range(1, len(table) + 1), group=np.where(table.planted, "planted", "not planted"))
    for ax, (y, low, high, label, level) in zip(
        axes[:, column],
        [
            ("preference", "ci_low", "ci_high", "preference for a, nats", 0),
            ("ratio", "ratio_low", "ratio_high", "activations, ratio to neutral", 1),
        ],
        strict=True,
    ):
        points = shown[["axis", "group"]].assign(value=shown[y], ci_low=shown[low], ci_high=shown[high])
        scores_with_intervals(
            points, x="axis", group="group", x_label="invented axis", y_label=label if not column else "",
            title=f"{when} planting", ax=ax,
        )  # fmt: skip
        ax.axhline(level, color="0.25", linewidth=1.2)
        if not column:
            ax.get_legend().remove()
plt.show()

for name, part in {"planted": True, "not planted": False}.items():
    chosen = [table[table.planted == part] for table in results.values()]
    print(
        f"{name:<12} preference {chosen[0].preference.mean():+.2f} → {chosen[1].preference.mean():+.2f} nats, "
        f"activation ratio {chosen[0].ratio.mean():.2f} → {chosen[1].ratio.mean():.2f} (means over axes)"
    )

# %% [markdown]
# ### Which metric is worth showing?
#
# *Sensitivity*: the share of planted axes that a metric flags. *False alarms*: the share of the others that it flags, before
# the fine-tuning and after it. A metric works if, after the same fine-tuning, it flags the planted axes and leaves the others
# alone.

# %%
rates = {}
for metric in METRICS:
    hits, wrong = after_planting[metric][after_planting.planted], after_planting[metric][~after_planting.planted]
    rates[metric] = {
        "false alarms before": share(before_planting[metric])[0],
        "planted, found": share(hits)[0],
        "not planted, false alarms": share(wrong)[0],
    }
right = (after_planting.preference < 0)[after_planting.planted & after_planting[METRICS[4]]]
print(f"of the planted axes that the preference flags, {right.sum()} of {len(right)} have the planted direction")
pd.DataFrame(rates).T

# %% [markdown]
# Which rows tell the last two columns apart? But don't conclude yet: look how wide the intervals are. And the axes are no
# independent witnesses, since one fine-tuning has made them all.
#
# ### Twenty models, and weaker smoke
#
# That was one model, and a strong bias. A metric that finds strong smoke may still miss a faint smell. So the test was made
# twenty times, each time with other made-up families. Then the bias was thinned: weights that lie a part of the way
# from the untouched model to the planted one. Each model is asked about two axes: the one with the planted bias, and one within
# the families. It takes about an hour (`experiments/plant_twenty_biases.py`), so the cell below reads saved results.
#
# *Predict before you run:* down to which strength will the preference find the bias? And how often will the activations raise
# an alarm where both groups are liked alike?

# %%
from importlib.resources import files

from course_utils.uncertainty import mcnemar_p

record = json.loads(files("course_utils").joinpath("data/positive_control.json").read_text(encoding="utf-8"))
kept = record["settings"]
print(
    f"{record['model']} in {kept['dtype']}, {record['machine']}; {kept['templates']} evaluation templates × {kept['swaps']} "
    "swaps × 2 endings an axis"
)
many = pd.DataFrame(
    [
        {"seed": row["seed"], "share": row["share"], "axis": axis} | of
        for row in record["rows"]
        for axis, of in row["axes"].items()
    ]
)
BOTH, KINDS = ["preference, p < .05", "activations, mean over places"], ["planted", "not planted"]
many[BOTH[0]], many[BOTH[1]] = many.p < 0.05, many.ratio_low > 1
mean_of = many[many.axis == "planted"].groupby("share").preference.mean()
STRENGTHS = {of: f"{mean:+.1f}" if of else "untouched" for of, mean in mean_of.items()}  # mean preference, nats
shares = []
for (of, kind), part in many.groupby(["share", "axis"], sort=False):
    for metric in BOTH:
        text, low, high = share(part[metric])
        where = {"metric": metric, "strength": STRENGTHS[of], "axis": kind, "text": text}
        shares.append(where | {"value": 100 * part[metric].mean(), "ci_low": 100 * low, "ci_high": 100 * high})
shares = pd.DataFrame(shares)

# %%
figure, axes = plt.subplots(1, 3, figsize=(19, 5.5), layout="constrained")
jitter = np.random.default_rng(session.seed)
for number, kind in enumerate(KINDS):
    part = many[many.axis == kind]
    where = part.share.map(list(STRENGTHS).index) + 0.3 * (number - 0.5) + jitter.uniform(-0.08, 0.08, len(part))
    for flagged, fill in ((True, f"C{number}"), (False, "none")):
        chosen = part[BOTH[0]] == flagged
        axes[0].scatter(
            where[chosen], part.preference[chosen], marker="os"[number], facecolors=fill, edgecolors=f"C{number}",
            s=45,
        )  # fmt: skip
axes[0].axhline(0, color="0.25", linewidth=1.2)
axes[0].set_yscale("symlog", linthresh=1)
axes[0].margins(y=0.1)
axes[0].set_xticks(range(len(STRENGTHS)), STRENGTHS.values())
levels = [-10, -3, -1, -0.5, 0, 0.5, 1]
axes[0].set_yticks(levels, [f"{level:g}" for level in levels])
axes[0].set_ylabel("preference, nats (linear to ±1, then log)")
axes[0].set_title("twenty models; filled: flagged")
for ax, metric in zip(axes[1:], BOTH, strict=True):
    scores_with_intervals(
        shares[shares.metric == metric], x="strength", group="axis", x_label="",
        y_label="flagged, % of the models (95 %)" if ax is axes[1] else "", title=metric, ax=ax,
    )  # fmt: skip
    ax.set_ylim(-4, 104)
    ax.axhline(5, color="0.25", linestyle=":", linewidth=1.2)
axes[1].get_legend().remove()
figure.supxlabel("strength of the planted bias: mean preference on the planted axes, nats", fontsize="medium")
plt.show()

# %%
rows = {}
for metric in BOTH:
    for of, strength in list(STRENGTHS.items())[1:]:
        flags = many[many.share == of].pivot(index="seed", columns="axis", values=metric)
        only = {f"only {kind}": (flags[kind] & ~flags[other]).sum() for kind, other in (KINDS, KINDS[::-1])}
        texts = shares[(shares.metric == metric) & (shares.strength == strength)].set_index("axis").text
        rows[metric, strength] = {f"{kind} axis flagged": texts[kind] for kind in KINDS} | only
resolution = pd.DataFrame(rows).T
resolution["p (Holm)"] = holm([mcnemar_p(*row[2:]) for row in resolution.to_numpy()]).round(4)
for metric, part in shares[shares.strength == "untouched"].groupby("metric", sort=False):
    print(f"{metric}, untouched models: flagged {' and '.join(part.text)}; 5 % are to be expected")
hits = shares[(shares.metric == BOTH[0]) & (shares.axis == "planted") & (shares.value >= 80)]
print(f"the preference finds at least 80 % of the biases of {', '.join(hits.strength)} nats")
real = behaved[behaved.kind == "demographic"]
print("the real axes, further up:", ", ".join(f"{row.axis} {row.preference:+.1f}" for row in real.itertuples()), "nats")
resolution

# %% [markdown]
# Each row compares the two axes of the *same* twenty models: in how many is only the planted one flagged, in how many only the
# other one (McNemar's exact test, Holm's correction for the rows)? Two things are worth taking along.
#
# The smallest strength at which the preference finds most of the biases is its **resolution**. A "no evidence" says little about
# weaker ones: compare the real axes with it. More templates and more swaps would see further.
#
# And the activations: look at how often they are flagged where nobody is disliked, as the fine-tuning gets stronger. They show
# that something has become of the names. They can't say what.
#
# It stays one family of models and one way to plant. But a metric that doesn't find *this* has no claim on your trust, however
# convincing its pictures are.
#
# ## All of it in one call
#
# `report` made the pairs and their controls, measured them, and formed the tables. It also says it in words, and draws the
# overview. Read its verdict with what the positive control has taught you about its metrics.

# %%
print(found)

# %%
figure = found.plot()
plt.show()

# %% [markdown]
# ## What it costs
#
# Pairs of similar length share a batch, a pleasant and an unpleasant ending share the words in front of them, and hooks read all
# places in the same pass. A published library for the same pictures runs its model again for each of them.

# %%
PUBLISHED = 46  # forward passes for one pair: optipfair 0.4.2 on this model, as we counted them; it isn't run here


def passes(call):
    """Forward passes of the model's blocks while it is called, and seconds."""
    counted = []
    hook = architecture.blocks[0].register_forward_hook(lambda *_: counted.append(1))
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    hook.remove()
    return len(counted), seconds


some = evaluation["gender"][:16]
rows = {}
for name, call in {
    "in batches, one place": lambda: measure_pairs(base, tokenizer, some, sites=("residual",), blocks=[MIDDLE]),
    f"in batches, {len(SITES) * architecture.num_blocks} places": lambda: measure_pairs(
        base, tokenizer, some, sites=SITES
    ),
    "pair by pair": lambda: [measure_pairs(base, tokenizer, [pair], sites=SITES) for pair in some],
}.items():
    count, seconds = passes(call)
    rows[name] = {"forward passes a pair": count / len(some), "ms a pair": 1000 * seconds / len(some)}
rows["a published library, for comparison"] = {"forward passes a pair": PUBLISHED}
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# ## Exercises

# %%
from course_utils.exercises.lesson_08 import check_align, check_first_component, check_sign_flip

# %% [markdown]
# ### Exercise 1 · ●●○ · 15 minutes
#
# Many sentences of the benchmarks differ in **two** places ("Maria … her", "John … his"), and our `align_by_hand` knows only
# one. Write `align_runs(offsets_a, offsets_b, shared)`. The offsets are (start, end) in characters, one pair a token.
# `shared` lists the runs of text that both sentences have: (start in a, start in b, length).
#
# Return the pairs (i, j) of tokens that stand on the same piece of a run, wholly inside it on both sides. Leave out the first
# token of each text.
#
# <details><summary>Hint</summary>
#
# For each run, subtract its start from the offsets, in each text its own. Two tokens belong together if they then have the
# same start and the same end. A dictionary from (start, end) to the token's number finds them.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def align_runs(offsets_a, offsets_b, shared):
    found = []
    for start_a, start_b, length in shared:
        in_b = {
            (low - start_b, high - start_b): j
            for j, (low, high) in enumerate(offsets_b)
            if start_b <= low and high <= start_b + length
        }
        for i, (low, high) in enumerate(offsets_a):
            j = in_b.get((low - start_a, high - start_a), 0)  # the first token counts as none
            if start_a <= low and high <= start_a + length and i and j:
                found.append((i, j))
    return found


# END SOLUTION
# BEGIN STUB
# def align_runs(offsets_a, offsets_b, shared):
#     ...  # your code
# END STUB
check_align(align_runs)

# %% [markdown]
# ### Exercise 2 · ●●○ · 15 minutes
#
# Why does one component explain nearly everything? Write `first_component(states, mask)`: states are [rows, length, hidden],
# the mask [rows, length] is 1 for real tokens, and the padding may be on either side. Return the share of the variance that
# the first principal component explains, over the tokens that belong into such a picture.
#
# <details><summary>Hint</summary>
#
# Two kinds of positions don't belong: padding, and the first *real* token of each row, where `mask.cumsum(1)` is 1. Subtract
# the mean of what is left. The squares of `torch.linalg.svdvals` are the variances along the components, but for a factor.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def first_component(states, mask):
    chosen = states[mask.bool() & (mask.cumsum(1) > 1)]
    variances = torch.linalg.svdvals(chosen - chosen.mean(0)) ** 2
    return variances[0] / variances.sum()


# END SOLUTION
# BEGIN STUB
# def first_component(states, mask):
#     ...  # your code
# END STUB
check_first_component(first_component)

# %% [markdown]
# ### Exercise 3 · ●●● · 20 minutes
#
# Write the test that decided about the preferences. `sign_flip(a, b, clusters)` gets two arrays [n] of paired scores, and for
# each pair the template that it comes from. Return the two-sided p-value of their mean difference: how often is the sum of
# the differences at least as large, up or down, when each *template's* sign is drawn at random? Count the observed signs as
# one of the draws, and make 2,000 draws or more.
#
# <details><summary>Hint</summary>
#
# First add up a − b in each template. Then draw a matrix of signs [draws, templates], multiply, and compare magnitudes. With
# `hits` draws at least as large, p = (hits + 1) / (draws + 1). Leave a little room for rounding: `>= observed - 1e-9`.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def sign_flip(a, b, clusters, draws=10_000):
    sums = np.array([(a - b)[clusters == cluster].sum() for cluster in np.unique(clusters)])
    signs = np.random.default_rng(0).choice([-1, 1], (draws, len(sums)))
    hits = (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum()
    return (hits + 1) / (draws + 1)


# END SOLUTION
# BEGIN STUB
# def sign_flip(a, b, clusters, draws=10_000):
#     ...  # your code
# END STUB
check_sign_flip(sign_flip)

# %% [markdown]
# ## Take-aways
#
# - A difference in activations is not a bias. It climbs with depth, and so it does for tall and short. Measure it relative to the
#   states, beside a neutral swap in the same sentences.
# - Leave each text's first token out, align by offsets, and count what you drop: a same-length rule drops some groups far more
#   than others.
# - Groups that form two clouds show that the model can read. Compare with a harmless swap that has one meaning, too.
# - Hundreds of cells always hold a "significant" one, and hundreds of pairs from a few templates and words are few witnesses.
#   Correct for the first, resample whole templates and swaps for the second.
# - Ask for a direction, and for ability first: a model at chance shows no stereotype by missing an answer.
# - Test the test. After the same fine-tuning the activation ratio rose for axes with a planted bias and for those without: it
#   shows that the names have come to matter, not which group is disliked. A "no evidence" is worth what its metric finds when
#   something is there.
#
# ## References
#
# - Blodgett et al. 2021, *Stereotyping Norwegian Salmon: An Inventory of Pitfalls in Fairness Benchmark Datasets*, ACL
# - Nangia et al. 2020, *CrowS-Pairs*, arXiv 2010.00133
# - Parrish et al. 2022, *BBQ: A Hand-Built Bias Benchmark for Question Answering*, arXiv 2110.08193
# - Seshadri et al. 2022, *Quantifying Social Biases Using Templates is Unreliable*, arXiv 2210.04337
# - Xiao et al. 2023, *Efficient Streaming Language Models with Attention Sinks*, arXiv 2309.17453
# - Sun et al. 2024, *Massive Activations in Large Language Models*, arXiv 2402.17762
# - Owen 2007, *The pigeonhole bootstrap*, doi 10.1214/07-AOAS122
# - Holm 1979, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the three views)
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 09 prunes with bias in mind, and asks whether it helps.
