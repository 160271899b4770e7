# ---
# jupyter:
#   course:
#     title: "The capstone: a small model by the labs' recipe, and its honest rival"
#     prerequisites: lessons 03 and 04 (the cuts), 07 (healing) and 10 (what cuts buy)
#     assets: [smollm2, texts, speeches]
#     concepts: [KV group, hidden channel, share of energy, teacher correction, search under a budget, light distillation, from scratch, off the grid, model card]
# ---

# %% [markdown]
# ## The question
#
# Can you make a model of four fifths the size that is worth having?
#
# **Answer.** You can find, heal and release one, and choosing beats chance. But after 180,000 tokens its rival, the *uncut* model stored in
# half its bits, is smaller and better. Cuts keep what weight-only bits don't touch: a long prompt's time.

# %% [markdown] tags=["notes"]
# **The point:** a recipe is the sum of its controls, and a small model has a rival: the large one in fewer bits.
#
# **On the board:** the recipe's six steps. For each, let the room name the arm that would show that it is useless.
#
# **Usual questions:** "Why not train a small model right away?" That is the arm *from scratch*. "So pruning is useless?" For whom? Look
# at the bottlenecks of lesson 10, and at how little was trained here.
#
# **Wrong turns:** choosing the winner on the text that judges it; comparing with the uncut model in 16 bits alone; two differences in
# one arm.
#
# **At the end you have** a search of your own, a smaller model in a folder that plain transformers loads, and a card that names its rival.

# %% tags=["install"]

# %%
import itertools
import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils.lessons import claim, diagrams, here
from course_utils.models import with_interval
from course_utils.support import (
    mark, ratio_interval, safe_dtype, show, start, style,
)  # fmt: skip

session = start("14")
style()
record = files("course_utils") / "data" / "small_model.json"  # of SmolLM2-135M
record = json.loads(record.read_text(encoding="utf-8"))
TEXTS, stored = record["texts"], record["stored"]


def per_token(sums):
    """Nats a token on each text, from the sums of its rows."""
    return [np.mean(rows) / record["predictions"] for rows in sums]


# %%
_, panels = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained")
LOOKS = {
    "whole": mark("whole"),
    "winner": mark("neurons") | {"label": "winner"},
    "random cut": mark("random") | {"label": "random cut"},
}
for place, (panel, text) in enumerate(zip(panels, TEXTS, strict=True)):
    for name, look in LOOKS.items():
        several = [stored[f"{name}, {kind}"] for kind in ("F16", "Q8_0", "Q4_0")]
        size = [file["bytes"] / 1e6 for file in several]
        heights = [per_token(file["nats"])[place] for file in several]
        panel.plot(size, heights, **look)
    moved = stored["whole, off the grid, Q4_0"]
    look = mark("whole") | {"label": "off the grid", "markerfacecolor": "none"}
    height = per_token(moved["nats"])[place]
    panel.plot(moved["bytes"] / 1e6, height, **look | {"linestyle": "none"})
    panel.set(title=text, xlabel="MB")
panels[0].set_ylabel("nats a token")
panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    "Three panels, a text each: nats a token against megabytes of the file, for "
    "the whole model, the winner and a random cut in 16, 8 and 4 bits. The whole "
    "model in 4 bits lies left of the winner in 8 bits and below it."
)

# %% [markdown]
# *From right to left: 16, 8 and 4 bits. The winner won our search, the random cut has its sizes. All learned from the same text; lower
# left is better. The hollow star comes in "The rival".*
#
# ## A norm that divides by something else
#
# A **hidden channel** is one of the numbers in the residual stream. A norm divides a token's channels by the root of their mean square: cut
# channels, and it divides by something else. A toy with six, three of which stay:

# %%
token, kept = torch.tensor([4.0, 3.0, 1.0, 0.5, 0.2, 0.1]), [0, 1, 2]


def rms_norm(states):
    return states / states.square().mean().sqrt()


before, after = rms_norm(token)[kept], rms_norm(token[kept])
energy = token[kept].square().sum() / token.square().sum()
print("whole ", *(f"{value:.3f}" for value in before))
print("cut   ", *(f"{value:.3f}" for value in after))
print(f"ratio  {(before / after).mean():.3f}; the kept ones' energy {energy:.3f}")

# %% [markdown]
# Three channels of six hold nearly all of the squared length, their **share of energy** $e$, and the mean is now over three. With $n$
# channels before, $k$ after and $\bar{e}$ the mean share of all tokens, the norm's weights have to grow by
#
# $$f = \sqrt{\bar{e} \, n / k}$$
#
# Here that is the ratio above.

# %% [markdown]
# ### Exercise 1 · ●●○ · 6 minutes
#
# Write `norm_factor(states, kept)` for real text: `states` is [tokens, channels], `kept` the channels that stay. $\bar{e}$ is the mean of
# the tokens' shares, since a single token, such as a row's first, can have an enormous state and must not decide alone.
#
# <details><summary>Hint</summary>
#
# First each token's share, then the mean, then the formula.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_14 import check_norm_factor


# BEGIN SOLUTION
def norm_factor(states, kept):
    squares = states.square()
    shares = squares[:, kept].sum(1) / squares.sum(1)
    return (shares.mean() * states.shape[1] / len(kept)).sqrt()


# END SOLUTION
# BEGIN STUB
# def norm_factor(states, kept):
#     ...  # your code
# END STUB
check_norm_factor(norm_factor)

# %% [markdown]
# ## Four sizes that can shrink
#
# You know blocks (lesson 04) and neurons (03). A **KV group** is a key/value head with all query heads that read it; it goes as a whole,
# or the cache would keep it. And a channel goes through every matrix:

# %%
diagrams.hidden_channel()
show(
    "A hidden channel marked in every matrix: a column of embedding, head, q, k, "
    "v, gate and up, a row of o and down, and a number of each norm."
)

# %% [markdown]
# *The embedding writes the stream too, but stores a token's channels as a row, so it loses a column. `shrink` multiplies each norm by the
# factor of exercise 1.*
#
# ## The recipe
#
# It is NVIDIA's (Minitron). The record did all of it; live we do steps 2 to 4 and the card, in small:
#
# 1. **Teacher correction**: the teacher learns a little of the students' text.
# 2. Score everything that can be cut, in one reading.
# 3. Search the sizes that fit a budget.
# 4. Rank them as cut, and again after **light distillation**, a few steps each.
# 5. Distil the winner.
# 6. Judge on other text, and release with a card.
#
# Text is split in three, by documents: to learn from, to score and choose by, to judge by. Half of the first are scenes from HellaSwag's
# training set, 15 % passages from BoolQ's. So neither benchmark may judge this model.

# %% [markdown]
# ## One reading, four scores
#
# `importance` reads calibration text once, and hooks collect four scores: the root mean square of a neuron and of a group's output, a
# channel's share of energy, and how far a block turns the stream (lesson 04). The record held each against nineteen random cuts of its
# size. A name such as `b28-h576-g3-n1536` says blocks, hidden channels, groups and neurons.
#
# **Predict before you run.** Which scores beat all nineteen?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# All four. The lead is narrowest for blocks: 0.172 nats beside 0.234 at the luckiest draw. Neurons: 0.237 beside 0.790.
#
# </details>

# %%
from course_utils.compress import Budget, Candidate, candidates, importance, shrink
from course_utils.models import load_model
from course_utils.text import judging_rows, token_blocks

base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
whole, DRAWS, EACH = Candidate.of(base), 3, 8  # rows of a text
pools = {}
for text, tokens in {"speeches": 32_768, "wiki": 11_520, "stories": 3_072}.items():
    options = {"domain": text, "tokens": tokens, "length": 64}
    blocks = token_blocks(tokenizer, "calibration", **options)
    pools[text] = blocks.sample(len(blocks), seed=session.seed)


def rows(part):
    """The rows of all texts; part 0 chooses, the others are draws that score."""
    parts = [pool[part * EACH : (part + 1) * EACH] for pool in pools.values()]
    return [batch for blocks in parts for batch in blocks.batches(EACH)]


scores = [importance(base, rows(1 + draw)) for draw in range(DRAWS)]
leads = []  # of each score before its best random cut
for axis, found in record["axes"].items():
    chance = np.array(found["random"])
    leads.append(chance.min() - found["scored"])
    print(f"{axis} {found['cut']}: {found['scored']:+.3f} nats; random", end=" ")
    print(f"{chance.min():+.3f} to {chance.max():+.3f}, ", end="")
    good = (chance <= found["scored"]).sum()
    print(f"{good} of {len(chance)} at least as good")
here("Each score beats its nineteen random cuts.", leads)

# %% [markdown]
# ### Exercise 2 · ●●○ · 8 minutes
#
# What does a shape cost? Write `count_parameters`: `blocks` blocks over `hidden` channels; `groups` key/value heads, each read by `queries`
# query heads, all heads with `size` channels; MLPs of `neurons`; two norms a block and one at the end; a vocabulary of `vocabulary`, whose one matrix
# is embedding and head. No biases.
#
# <details><summary>Hint</summary>
#
# One block first: q and o are [hidden, groups · queries · size], k and v [hidden, groups · size].
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_14 import check_parameters


# BEGIN SOLUTION
def count_parameters(blocks, hidden, groups, neurons, queries, size, vocabulary):
    values = hidden * groups * size
    attention = 2 * values * queries + 2 * values
    mlp = 3 * hidden * neurons
    return vocabulary * hidden + blocks * (attention + mlp + 2 * hidden) + hidden


# END SOLUTION
# BEGIN STUB
# def count_parameters(blocks, hidden, groups, neurons, queries, size, vocabulary):
#     ...  # your code
# END STUB
check_parameters(count_parameters)

# %% [markdown]
# ## The search
#
# Four fifths of the parameters may stay. For each depth, hidden size and number of groups the search takes the widest MLP that fits; no
# model is built for it.

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# Write that search. `cost(neurons)` says what a model with MLPs of this width has in parameters, more for wider ones. Return the largest
# width with `cost(width) <= budget`: a multiple of `step`, or `full`, the whole width, if all of it fits; 0 if not even one step does. Ask
# for few prices: **halve** what is left.
#
# <details><summary>Hint</summary>
#
# Two ends: one that is known to fit (0), one above which nothing fits. Count in steps, and look at the middle, rounded up.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_14 import check_widest


# BEGIN SOLUTION
def widest(cost, full, budget, step):
    if cost(full) <= budget:
        return full
    low, high = 0, (full - 1) // step
    while low < high:
        middle = (low + high + 1) // 2
        if cost(middle * step) <= budget:
            low = middle
        else:
            high = middle - 1
    return low * step


# END SOLUTION
# BEGIN STUB
# def widest(cost, full, budget, step):
#     ...  # your code
# END STUB
check_widest(widest)

# %% [markdown]
# ## Rank them
#
# `candidates` does it for every legal shape. Five are cut three times, by scores from three draws of calibration text, and judged on rows
# that no score saw: narrower MLPs alone, or with fewer blocks, channels or groups, and one of your choice (change `own`).
#
# **Predict before you run.** Which is first? And do the draws agree?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On average 28 blocks are first, with 4.413 nats. One block less leads in two draws, and is last in the third. Only 4 of the 10 pairs
# stand in the same order each time.
#
# </details>

# %%
from course_utils.measuring import perplexity

budget = Budget(0.8 * whole.parameters)
legal = candidates(base, budget, tolerance=0.03)
rest = (whole.hidden, whole.groups)
alike = [v for v in legal if (v.hidden, v.groups) == rest]  # blocks and neurons
own = (alike[2:] or legal)[0]


def first(*, fewer, same):
    """The first legal version that cuts `fewer` beside the MLPs alone."""
    for version in legal:
        cut = fewer is None or getattr(version, fewer) < getattr(whole, fewer)
        if cut and all(getattr(version, n) == getattr(whole, n) for n in same):
            return version
    return legal[0]


sizes = {"blocks", "hidden", "groups"}
IDEAS = {"neurons": None, "blocks": "blocks", "channels": "hidden"}
IDEAS["groups"] = "groups"
versions = {n: first(fewer=f, same=sizes - {f}) for n, f in IDEAS.items()}
versions["mine"] = own
nats = pd.DataFrame(index=versions, columns=range(DRAWS), dtype=float)
for draw, name in itertools.product(range(DRAWS), versions):
    model = shrink(base, versions[name], scores[draw])
    nats.loc[name, draw] = perplexity(model, rows(0), batch_size=EACH).nll
del model
pairs = list(itertools.combinations(versions, 2))
same = [len({*(nats.loc[a] < nats.loc[b])}) == 1 for a, b in pairs]
used = perplexity(base, rows(0), batch_size=EACH)
print(f"{len(legal)} versions fit {budget.amount:,.0f} parameters; whole", end=" ")
print(f"{used.nll:.3f} nats a token")
print(f"{sum(same)} of {len(pairs)} pairs stand in the same order in each draw")
for name, version in versions.items():
    print(f"{name}: {version.name}, {nats.loc[name].mean():.3f} nats")

# %%
_, ax = plt.subplots(layout="constrained")
PARTS = {"groups": "attentions", "mine": "own choice"}
for name, row in nats.iterrows():
    ax.plot(row.index, row, **mark(PARTS.get(name, name)) | {"label": name})
ax.set_xticks(range(DRAWS), [f"draw {draw}" for draw in range(DRAWS)])
ax.set(ylabel="nats a token, as cut", title="Do the draws agree?")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    "A line for each of five versions over three draws of calibration text: its "
    "nats a token as cut. Lines that don't cross keep their order."
)

# %% [markdown]
# Only pairs that keep their order in every draw are ordered. The others may be chosen by speed or by bytes: rows of 540 channels, say,
# aren't whole blocks of 32 (lesson 10). We go on with the lowest mean.
#
# ## Does healing change the order?
#
# The first of your ranking and a random cut of its sizes learn for eight steps. For the record five versions learned for twenty longer
# steps, with two seeds.
#
# **Predict before you run.** How far does the random cut come? Do the five keep their order?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It learns more, from 7.982 to 6.676 nats, and stays far behind the first with its 4.313. Two of the five, one and two blocks
# shorter, catch up with the first.
#
# </details>

# %%
from course_utils.compress import AXES
from course_utils.healing import distill
from course_utils.models import cast_weights

STEPS, ROWS, LENGTH = 8, 2, 64
best = versions[nats.mean(axis=1).idxmin()]
lessons = token_blocks(tokenizer, "distillation", tokens=65_536, length=LENGTH)
large = whole.parameters > 5e8  # then corrections alone learn
LEARN = {"lora_rank": 16, "recompute": True} if large else {"mlps_only": True}
LEARN |= {"lr": 2e-3 if large else 2e-4, "precision": base.dtype}

spans = []


def heal(name, scored):
    """The best version, cut by scores and healed."""
    student = shrink(base, best, scored)
    begin = perplexity(student, rows(0), batch_size=EACH).nll
    text = lessons.sample(STEPS * ROWS, seed=session.seed).batches(ROWS)
    distill(base, student, text, steps=STEPS, seed=session.seed, **LEARN)
    cast_weights(student, base.dtype)
    end = perplexity(student, rows(0), batch_size=EACH).nll
    print(f"{name}: as cut {begin:.3f}, healed {end:.3f} nats")
    spans.append((begin, end))
    return student


heal("random cut", scores[0].random(AXES, session.seed))
student = heal(f"first, {best.name}", scores[0])
(high, later), (low, end) = spans
margins = [(high - later) - (low - end), later - end]
claim("The random cut learns more, and stays behind.", margins)
ranked = pd.DataFrame(record["ranked"])
order = ranked.pivot(index="name", columns="seed", values="distilled_nll")
order = (order - order.loc[order.mean(axis=1).idxmin()]).add_prefix("healed, seed ")
order.insert(0, "as cut", ranked.groupby("name").nll.first())
order["as cut"] -= order["as cut"].min()
print("the record's five, nats a token behind the first:")
order.sort_values("healed, seed 0").round(3)

# %% [markdown]
# A seed chooses the text, the same for all five: compare within a column. The first stays first, but the three with fewer blocks end
# within 0.014 nats of each other: tied. Narrow MLPs alone, as cut level with two of them, end 0.05 behind. Fewer channels stay last.

# %% [markdown]
# ### Exercise 4 · ●●○ · 6 minutes
#
# **Design the controls.** The winner is the first of the record's five. It learned for 180 steps from the corrected teacher. Beside it:
#
# - `"random cut"`: its sizes, cut at random; `"from scratch"`: its sizes, random weights
# - `"depth only"`: about as many parameters, blocks alone cut
# - `"no teacher"`: text alone, as many tokens; `"no teacher, equal minutes"`: text alone, as long
# - `"solved first"`: solved (lesson 07) before it learned
# - a cut by optipfair, with another score, of neurons alone
#
# Which arm tests each claim? `"two differences"` if one would, but differs twice; or `"none of them"`.
#
# - **A** It matters *what* is kept.
# - **B** To start from the large model saves tokens.
# - **C** Ten times the tokens would close the gap to the whole model.
# - **D** A token teaches more with a teacher.
# - **E** A minute teaches more with a teacher.
# - **F** A linear solve pays, even before long training.
# - **G** Our score chooses better neurons than optipfair's.
# - **H** The recipe works for other models.
#
# <details><summary>Hint</summary>
#
# For each arm, name everything in which it differs from the winner. What follows from holding minutes equal doesn't count.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_14 import check_controls

# BEGIN SOLUTION
controls = {
    "A": "random cut",
    "B": "from scratch",
    "C": "none of them",
    "D": "no teacher",
    "E": "no teacher, equal minutes",
    "F": "solved first",
    "G": "two differences",
    "H": "none of them",
}
# END SOLUTION
# BEGIN STUB
# controls = {"A": ..., "B": ..., "C": ..., "D": ...}  # and E to H
# END STUB
check_controls(controls)

# %% [markdown]
# ## The long run
#
# `experiments/make_a_small_model.py` made the record, in two hours on two cores. **Equal tokens** and **equal minutes** (lesson 07) differ: a
# student without a teacher reads over a third more in the same time.
#
# **Predict before you run.** Which arms end behind the winner on all three texts? Is any ahead of it?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A random cut ends 0.44 to 0.50 nats behind, and random weights 3.36 to 4.09. Blocks alone are behind on two texts, by 0.07 and 0.17. Ahead
# of it is text alone, on stories, by 0.07 and 0.12; optipfair's cut a little there; and the whole model everywhere.
#
# </details>


# %%
def less(one, other):
    """One's nats a token less another's, on each text: mean and interval."""
    gaps = {}
    for text, mine, theirs in zip(TEXTS, one, other, strict=True):
        by = pd.Series(np.subtract(mine, theirs)).groupby(record["documents"][text])
        counts = record["predictions"] * by.size().to_numpy()
        gap = np.delete(ratio_interval(by.sum().to_numpy(), counts), 1)
        gaps[text] = gap.round(4) + 0.0  # no -0
    return gaps


def told(gaps):
    """Such a comparison in a line."""
    return "; ".join(f"{text} {with_interval(*gap)}" for text, gap in gaps.items())


ends, arms = record["nats"], {}
for name, spent in record["learned"].items():
    if name != "winner":
        arms[name] = less(ends[name], ends["winner"])
    took = f", {spent['seconds'] / 60:.0f} minutes" if "seconds" in spent else ""
    print(f"{name}: {spent['tokens']:,} tokens{took}")
    if name in arms:
        print(f"{name} less winner: {told(arms[name])}")
before = less(ends["winner, solved"], ends["winner, as cut"])
print(f"before any training, solved less as cut: {told(before)}")
both = [*arms["random cut"].values(), *arms["from scratch"].values()]
lows = [low for _, low, _ in both]
here("A random cut and random weights end behind the winner.", lows)
margins = [0.05 - max(-low, high) for _, low, high in arms["solved first"].values()]
claim("Solved first, it ends within 0.05 nats of the winner.", margins)
alone = [arms["no teacher"], arms["no teacher, equal minutes"]]
margins = [end for gaps in alone for end in (gaps["wiki"][1], -gaps["stories"][2])]
claim("Without a teacher it ends behind on wiki, ahead on stories.", margins)

# %%
alike = {"sharex": True, "sharey": True, "layout": "constrained"}
_, panels = plt.subplots(1, 3, figsize=(13, 4.6), **alike)
drawn = {name: gaps for name, gaps in arms.items() if name != "from scratch"}
LOOK = {"whole, trained": "whole", "random cut": "random", "depth only": "blocks"}
for panel, text in zip(panels, TEXTS, strict=True):
    for place, (name, gaps) in enumerate(drawn.items()):
        mean, low, high = gaps[text]
        look = mark(LOOK.get(name, "neurons")) | {"capsize": 4, "label": None}
        panel.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **look)
    panel.axvline(0, **mark("neurons") | {"marker": "", "label": None})
    panel.set_title(text)
panels[1].set_xlabel("nats a token behind the winner")
panels[0].set_yticks(range(len(drawn)), drawn)
panels[0].invert_yaxis()
show(
    "Three panels, a text each: how many nats a token each arm ends behind the "
    "winner, with intervals. The random cut lies farthest right."
)

# %% [markdown]
# *Left of the line: ahead of the winner. From scratch lies far to the right.* Intervals count documents, not rows, since rows of one speech
# are alike. Another draw of text says how far chance goes.
#
# **Among cuts, what is kept matters most.** The random one is further behind than any other. The solve's lead,
# 0.17 to 0.30 nats before the training, is gone after it. Without a teacher the student fits what it reads (half of it scenes, which are like
# stories) and pays on wiki, with as many tokens and with as many minutes: lesson 07's finding. Optipfair's cut, of neurons alone and by
# another score, is within 0.03.
#
# Not tested: an uncorrected teacher, other learning rates, more than one cut at random, more tokens. With many more, [Xu et
# al.](https://arxiv.org/abs/2606.14150) find that the lead over training from scratch shrinks; given the tokens of the whole pipeline,
# from scratch is level with coarse cuts like these, or ahead.
#
# ## The rival
#
# Whoever wants a smaller file can store the *whole* model in fewer bits. To be fair it read as much of the same text as the winner; on the
# rows that choose, that helped it. And SmolLM2 comes to us from a file of 4 bits, so its weights lie on a grid that 4 bits hit
# easily. Moved **off the grid**, with `up[j] /= s[j]; down[:, j] *= s[j]` and the like, which changes no answer, it pays in full.
#
# **Predict before you run.** The winner in 8 bits, or the whole model in 4: which is smaller, which is better, which is faster at reading,
# which at writing?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The whole model in 4 bits, off the grid: 92 MB instead of 116, and 0.16 to 0.25 nats better. On its grid it writes about as fast, 179 tokens a
# second beside 167; the winner reads faster, 813 beside 725.
#
# </details>

# %%
speed = pd.DataFrame(record["speed"]).set_index(["phase", "model"])
spare = ("random cut, F16", "random cut, Q4_0")
wanted = [name for name in stored if name not in spare]
lines = {}
for name in sorted(wanted, key=lambda name: -stored[name]["bytes"]):
    timed = name if name in speed.loc["decode"].index else None
    lines[name] = {"MB": f"{stored[name]['bytes'] / 1e6:.0f}"}
    measured = zip(TEXTS, per_token(stored[name]["nats"]), strict=True)
    lines[name] |= {text: f"{value:.3f}" for text, value in measured}
    for phase, what in (("prefill", "reads"), ("decode", "writes")):
        rate = f"{speed.tokens_per_second[phase, timed]:.0f}" if timed else ""
        lines[name][f"{what}, tokens/s"] = rate
bits, cut = stored["whole, off the grid, Q4_0"], stored["winner, Q8_0"]
gaps = less(bits["nats"], cut["nats"])
print(f"whole in 4 bits, off the grid, less winner in 8: {told(gaps)}")
margins = [-high for _, _, high in gaps.values()]
here("The whole model in 4 bits is better.", margins)
claim("The whole model in 4 bits is smaller.", [cut["bytes"] / bits["bytes"] - 1])
reads, writes = (
    speed.tokens_per_second["prefill"],
    speed.tokens_per_second["decode"],
)
margins = [reads["winner, Q8_0"] / reads["whole, Q8_0"] - 1.1]
margins += [1.1 - writes["winner, Q8_0"] / writes["whole, Q4_0"]]
claim("In 8 bits the winner reads faster, and writes no faster than 4.", margins)
pd.DataFrame(lines).T

# %% [markdown]
# All files took turns, reading 128 tokens and writing 32.
#
# The whole model has read the winner's text, and is better in any format. Below 4 bits nothing was stored. Weight-only
# bits, in llama.cpp on a processor, don't make it read faster on record, as they save no operations. (In lesson 10's run 4 bits read a
# little faster. We don't know why.)
#
# The winner in the same bits has 76 MB, reads a quarter and writes a fifth faster, and pays 0.4 to 0.5 nats for it. Good for
# those who wait for long prompts or lack room, and have nothing better of that size.
#
# ### Read what they write
#
# Both were asked five questions.

# %%
for question, small in record["answers"]["winner, Q8_0"].items():
    print(f"{question}\n  winner, 8 bits: {small}")
    print(f"  whole, 4 bits: {record['answers']['whole, Q4_0'][question]}\n")

# %% [markdown]
# The whole model in 4 bits mostly answers, although it read the same plain text. The winner begins like an answer and mostly loses the
# question; its dog is fine. What labs do about it, on at least 270,000 times as many tokens:
#
# | who | from → to | tokens | of what | after it |
# |---|---|---|---|---|
# | NVIDIA, [Minitron](https://arxiv.org/abs/2407.14679) | 15B → 8B → 4B | 94 billion | the teacher's own training data | instruction tuning |
# | NVIDIA, [in practice](https://arxiv.org/abs/2408.11796) | Llama 3.1 8B → 4B | 94 billion | NVIDIA's, so the teacher is corrected | instruction tuning |
# | Meta, Llama 3.2 (card) | 8B → 3B, 1B | up to 9 trillion | public online data | SFT, rejection sampling, DPO |
# | Princeton, [Sheared LLaMA](https://arxiv.org/abs/2310.06694) | 7B → 2.7B, 1.3B | 50 billion | RedPajama, reweighted on the way | instruction tuning, as a test |
# | Mistral, [Ministral 3](https://arxiv.org/abs/2601.08584) | 24B → 14B → 8B → 3B | 1 to 3 trillion | its own mix | SFT, online DPO |
#
# ## Release it
#
# A folder needs none of this course: a fresh process with plain transformers loads the one we healed, and its logits are the same.

# %%
from course_utils.pruning import save_pruned

release = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
folder = save_pruned(student, tokenizer, Path(release.name) / "small-llama")
probe = tokenizer("The best way to learn is", return_tensors="pt").input_ids
with torch.no_grad():
    ours = student(probe.to(student.device), use_cache=False).logits[0, -1].float()
program = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, dtype, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("The best way to learn is", return_tensors="pt").input_ids
torch.save(model(ids, use_cache=False).logits[0, -1].float().detach(), target)
print("course_utils loaded:", "course_utils" in sys.modules)
"""
target, dtype = Path(release.name) / "logits.pt", str(student.dtype).split(".")[1]
call = [sys.executable, "-c", program, str(folder), dtype, str(target)]
out = subprocess.run(call, capture_output=True, text=True, check=True)
print(out.stdout.strip())
apart = (ours.cpu() - torch.load(target)).abs().max()
print(f"largest difference of the logits: {apart:.1e}")

# %% [markdown]
# A **model card** says what was done and measured; `write_model_card` refuses one without a limit. Ours names the 4-bit source and the
# rival.

# %%
from course_utils.release import licence_of, plan_gguf, write_model_card

texts = judging_rows(tokenizer, draw=session.seed).values()
fresh_rows = [batch for blocks in texts for batch in blocks[:12].batches(EACH)]
models = {"whole": base, "this model": student}
fresh = {n: perplexity(m, fresh_rows, batch_size=EACH) for n, m in models.items()}
judged = [f"{one.nll:.3f}" for one in fresh.values()]
card_table = {"nats a token, speeches and wiki": judged}
for kind in ("Q8_0", "Q4_0"):
    planned = [plan_gguf(m, tokenizer, quantization=kind) for m in models.values()]
    mb = [f"{plan.bytes.sum() / 1e6:.0f}" for plan in planned]
    card_table[f"MB in {kind}, as planned"] = mb
origin = base.config.name_or_path or "a random model"
hub = {"SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
steps = {"cut by": "scores of one reading", "tokens": STEPS * ROWS * (LENGTH - 1)}
worse = fresh["this model"].nll - fresh["whole"].nll
card = write_model_card(
    folder,
    name="small-llama",
    base_model=hub.get(origin, origin),
    licence=licence_of(origin),
    summary=f"{origin}, cut to {best.name} and healed for {STEPS} steps.",
    recipe=best.sizes | steps,
    measured=pd.DataFrame(card_table, index=[*models]).T,
    limits=[
        f"It needs {worse:+.2f} nats a token more than the whole model.",
        "Its rival, the whole model in 4 bits, was better in the course's record.",
        "An exercise: no task, no bias and no other language was measured.",
        *(["Its weights come from a file of 4 bits."] if origin in hub else []),
    ],
    sources=["Muralidharan et al. 2024 (Minitron), arXiv 2407.14679"],
)
_, _, text_for_people = card.read_text(encoding="utf-8").partition("---\n\n")
print(text_for_people.partition("## Use")[0].strip())

# %% [markdown]
# ## Before you start a long run
#
# A token costs $2T + 6S$ operations for a teacher of $T$ and a student of $S$ parameters: the teacher reads; the student reads, and learns
# at twice that price. From 8B to 6.3B that is 54 billion, so a card that does 350 trillion a second sees half a billion tokens a day,
# and NVIDIA's 94 billion in half a year. **Stop** when a doubling of the tokens gains less than another draw of the text changes.
#
# For your own model ask first whether a smaller sibling or fewer bits would do: `docs/before_you_prune.md`. Then the recipe is a command, and
# a dry run says what it takes:
#
# ```bash
# python3 course.py compress meta-llama/Llama-3.2-1B --budget 80% --dry-run
# ```

# %% [markdown]
# ### Exercise 5 · ●●● · 10 minutes
#
# **Beat the first of your ranking, or say honestly that you didn't.** Choose other sizes within the budget. Cut `best` and `mine` by each
# of the three `scores`, and judge them on `fresh_rows`, which nothing was chosen by: `runs` is `{"mine": [three], "best": [three]}` of what
# `perplexity(model, fresh_rows, batch_size=EACH)` returns.
#
# Report `low` and `high`, the interval of *best less mine* in nats a token, from the rows' differences averaged over the draws; and `said`:
# `"better"` if the interval and all three draws are above 0, `"worse"` if all are below, otherwise `"no difference shown"`. Any of them
# passes, if it is true.
#
# <details><summary>Hint</summary>
#
# `[v.name for v in legal]` lists versions, `shrink(base, version, draw)` cuts one. A result's `row_nll` has a row's nats, `row_tokens` its tokens; `ratio_interval(differences, tokens)` gives mean, error, low and high.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_14 import check_trial

# BEGIN SOLUTION
mine, runs = next((v for v in legal if v != best), best), {}
for arm, version in {"mine": mine, "best": best}.items():
    cuts = [shrink(base, version, draw) for draw in scores]
    runs[arm] = [perplexity(model, fresh_rows, batch_size=EACH) for model in cuts]
both = zip(runs["best"], runs["mine"], strict=True)
differences = np.array([b.row_nll - m.row_nll for b, m in both])
row_tokens = runs["mine"][0].row_tokens
_, _, low, high = ratio_interval(differences.mean(0), row_tokens)
each = differences.sum(1)  # a draw's
report = {"low": low, "high": high, "said": "no difference shown"}
if low > 0 and min(each) > 0:
    report["said"] = "better"
if high < 0 and max(each) < 0:
    report["said"] = "worse"
print(f"{mine.name}: {report['said']}, {low:+.3f} to {high:+.3f}")
# END SOLUTION
# BEGIN STUB
# mine = ...  # a version of `legal`
# runs = ...  # {"mine": [three results], "best": [three results]}
# report = ...  # said, low, high
# END STUB
known = {"budget": budget.amount, "fresh": fresh["whole"], "used": used}
check_trial(runs, report, mine=mine, **known)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Two versions change places between two seeds of light distillation. What follows?
#
# - [ ] The one with the lower mean is better, since a mean is safer than a single run.
#   > A third seed might turn it round.
# - [ ] Nothing about any version, since a few steps of training are too short.
#   > It tells those apart that keep their order from seed to seed.
# - [x] These two are tied, so choose between them by their speed or their bytes.
#   > Right: a tie is a finding, and leaves you free.

# %% [markdown] tags=["quiz"]
# A vendor shows that a cut model loses little beside the whole one, both in 16 bits. What is missing first?
#
# - [x] The whole model in fewer bits, at the size of the cut one.
#   > Right: that is what its user could have instead.
# - [ ] The same cut at random, with the same training behind it.
#   > It shows that choosing pays, not that cutting does.
# - [ ] The cut model from scratch, with as many tokens to learn.
#   > It shows what the large model was good for, not its rival.

# %% [markdown]
# ## Take-aways
#
# - Correct, score, search, rank twice, distil, judge elsewhere, release. Each step needs the arm that leaves it out.
# - The search halves what is left, under a price list. Only what keeps its order in every draw is ordered.
# - Put the rival beside it: the whole model, trained on the same text, in fewer bits.
# - Say tokens and minutes, and read what it writes.
#
# **The story so far:** was it the right buy? For the file and for the next token, not yet. What it cost besides
# nats, lesson 11's profile tells. **That was the last lesson.** **Next:** a model of your own. `python -m course_utils compress` cuts it
# and writes its card.
#
# ## References
#
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation* (Minitron), arXiv 2407.14679
# - Sreenivas et al. 2024, *LLM Pruning and Distillation in Practice*, arXiv 2408.11796
# - Ashkboos et al. 2024, *SliceGPT*, arXiv 2401.15024 (channels, rotated first)
# - Xia et al. 2023, *Sheared LLaMA*, arXiv 2310.06694
# - Mistral AI 2026, *Ministral 3*, arXiv 2601.08584
# - Xu et al. 2026, *Small LLMs: Pruning vs. Training from Scratch*, arXiv 2606.14150
# - Mitchell et al. 2019, *Model Cards for Model Reporting*, arXiv 1810.03993
