# ---
# jupyter:
#   course:
#     title: "Healing: what gets back what pruning took?"
#     minutes: 100 to 130 minutes
#     prerequisites: lesson 01 (a neuron's constant, guessing), lesson 03 (the activation score, hooks, the first token), lesson 05 (text before)
#     assets: [smollm2, texts, speeches, benchmarks]
#     concepts: [echo, ridge regression, share that is said, dictionary, teacher and student, distillation, LAMBADA]
# ---

# %% [markdown]
# ## The question
#
# A cut took four of ten neurons. What gets back what they did?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** First of all the neurons that were left. Some have **echoes** of the removed ones, and the rest they can be taught:
# from 2,048 tokens a tenth to a third of what the removed ones wrote, also on other text. One linear solve writes that into their
# weights, and after a ruinous cut seven tenths of the lost nats are back. They come back in few places. One is the first block,
# whose MLP is a **dictionary**: it looks at one token and writes the vector by which the other blocks know it. So there the solve
# learns words, and a heap of loose words heals that block as well as text does. After the random cut another place is the first
# token of a text, and there a constant does much of it. At another token the same constant helps the tokens behind it, on average.
# So it is a sink that the heads had lost, and not the first token as such. Training brings back more, but it needs many more
# tokens.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** the cheapest healing has no gradient. What the kept neurons can say of the removed ones is a linear problem, and
# most of what it gives back is the first block's dictionary.
#
# **Let the room predict first:** which heals the first block better, text or the same words in a heap?
#
# **On the board:** a student with three groups of blocks; which group would you not leave unsolved?
#
# **Usual questions:** "Why not LoRA?" It saves memory, hardly time; notebook 07a. "Is a better loss on speeches recovery?" Ask for
# wiki, and for last words: nobody trained on those.
#
# **Wrong turns:** pulling the weights to zero instead of what they were; judging echoes on the tokens they were fitted to; a mean
# that contains what it is to predict; a control that changes two things at once.
#
# **At the end you have** a cut model that is healed without a gradient, and a proof of where that came from.

# %% tags=["install"]

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import nn

from course_utils.lessons import claim, here
from course_utils.support import (
    mark, ratio_interval, read_record, show, start, style,
)  # fmt: skip

session = start("07")
style()
record = read_record("heal")  # of SmolLM2-135M-Instruct
TEXTS, CUTS = ("speeches", "wiki"), ("activation", "peak-to-peak", "random")
GUESSING = np.log(49_152)  # nats per token, of the model in the record


def recorded(cut, edit, text, steps=0):
    """What a student still loses in the record: nats per token, for each seed."""
    key = {"criterion": cut, "edit": edit, "text": text, "steps": steps}
    key["dtype"] = "bfloat16" if text == "LAMBADA" else "float32"
    chosen = (record[[*key]] == pd.Series(key)).all(axis=1)
    return record[chosen].sort_values("seed").damage.to_numpy()


# %%
_, panel = plt.subplots(figsize=(9, 4.8), layout="constrained")
heights = pd.DataFrame(index=CUTS)
for edit in ("cut", "solved"):
    heights[edit] = [recorded(cut, edit, "speeches")[0] for cut in CUTS]
colours = [mark(look)["color"] for look in ("wrong", "whole")]
heights.plot.bar(ax=panel, color=colours, rot=0)
for bars in panel.containers:
    panel.bar_label(bars, fmt="%.2f")
uncut = record[(record.criterion == "") & (record.text == "speeches")].nats.iloc[0]
panel.axhline(GUESSING - uncut, **mark("guessing"))
panel.set(ylabel="nats per token lost", ylim=(0, 9))
show(
    "Three pairs of bars: nats lost after a cut by activation, by peak-to-peak and "
    "at random, and after a solve. The random cut is above the line of guessing; "
    "solved, all three are below one."
)

# %% [markdown]
# *Forty per cent of the neurons of each MLP are gone. Loss on speeches of a split that only judges, from a record that was made
# beforehand.*
#
# The random cut ruins the model: it is worse than guessing. Then somebody reads 8,192 tokens of other speeches, solves one system
# of linear equations for each block, and writes the solution into weights that are *still there*. No gradient, about a minute.
# Nothing that was removed has come back. And what is lost falls from 7.82 to 0.80!
#
# To get back what a cut took is called **healing**. A **split** is a part of the texts that meets no other part: what solves or
# trains here never judges.
#
# So what the removed neurons did was still there. Where?

# %% [markdown]
# ## One neuron and its echo
#
# We cut the course's Llama in three ways: by activation, which is a good cut (lesson 03), by the peak-to-peak of its weights, a bad
# one, and at random, in one draw. The whole model is called the **teacher**, and each cut one a **student**.
#
# For now look at a single neuron of a block in the middle, one that the random cut removed. Over a text's tokens its values are a
# vector, and so are those of each kept neuron. If the kept ones together can say what it says, it has an **echo**, and nobody
# needs it. That is a linear regression. We fit it on 2,048 tokens, and judge it on 1,024 others.
#
# **Predict before you run.** Of how many removed neurons can the kept ones say at least half, on unseen text (half of the
# variance)? Nearly all, half of them, hardly any? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Hardly any: 1 %. Of the typical removed neuron the kept ones can say an eighth (0.13).
#
# </details>

# %%
from course_utils.models import load_model, variant
from course_utils.pruning import neuron_importance, prune_neurons, strongest
from course_utils.text import judging_rows, token_blocks

RATIO, RIDGE = 0.4, 0.3
base, tokenizer = load_model("llama", dtype=torch.float32)
base.requires_grad_(False)
blocks, total = base.model.layers, len(base.model.layers)
few = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
few = few.sample(16, seed=session.seed).batches(16)
importance = {
    "activation": neuron_importance(base, "activation", batches=few),
    "peak-to-peak": neuron_importance(base, "peak_to_peak"),
    "random": neuron_importance(base, "random"),
}
pool = token_blocks(tokenizer, "distillation", tokens=65_536, length=256)
pool = pool.sample(12, seed=session.seed).input_ids
learned, unseen = pool[:8], pool[8:]  # 2,048 and 1,024 tokens


# %%
def what_mlps_read(ids):
    """What enters each MLP while the whole model reads, [tokens, hidden]."""
    read, hooks = [[] for _ in blocks], []
    for states, block in zip(read, blocks, strict=True):

        def keep(mlp, inputs, states=states):
            states.append(inputs[0].flatten(0, 1))

        hooks.append(block.mlp.register_forward_pre_hook(keep))
    for rows in ids.to(base.device).split(4):
        base.model(rows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(states) for states in read]


def values(mlp, read):
    """What the neurons of an MLP say: [tokens, neurons]."""
    return mlp.act_fn(mlp.gate_proj(read)) * mlp.up_proj(read)


read, read_unseen = what_mlps_read(learned), what_mlps_read(unseen)

# %%
middle = total // 2
mlp = blocks[middle].mlp
kept = strongest(importance["random"][middle], RATIO, 1).cpu()
removed = np.setdiff1d(np.arange(mlp.down_proj.in_features), kept)
seen = values(mlp, read[middle]).cpu().numpy()
new = values(mlp, read_unseen[middle]).cpu().numpy()
loudness = np.sqrt((seen[:, kept] ** 2).mean(0))  # all kept ones count alike
echo = Ridge(alpha=RIDGE * len(seen))
echo.fit(seen[:, kept] / loudness, seen[:, removed])
said = echo.predict(new[:, kept] / loudness)
score = r2_score(new[:, removed], said, multioutput="raw_values")

_, panel = plt.subplots(figsize=(10, 4.2), layout="constrained")
best, some = score.argmax(), slice(100, 160)
truth, told = new[some, removed[best]], said[some, best]
panel.plot(truth, **mark("whole") | {"label": "the removed neuron"})
panel.plot(told, **mark("activation") | {"label": "what the kept ones say"})
panel.set(xlabel="token", ylabel="value", title=f"{score[best]:.2f} is said")
panel.legend()
show(
    "The values of one removed neuron over sixty unseen tokens, and what the kept "
    "ones say of it: the two lines go up and down together."
)
print(f"over half of {(score > 0.5).mean():.0%}; typically {np.median(score):.2f}")

# %% [markdown]
# *The removed neuron with the clearest echo, and what the kept ones say of it, on unseen text.*
#
# So hardly any single neuron has a clear echo. Even of the clearest one a part is missing.
#
# But nobody asked for single neurons. The rest of the model only reads what all of them *write together*, after `down_proj`, the
# matrix that leads out of the neurons. How much of that can the kept ones say?
#
# ## What they can say together
#
# `down_proj` was written for all neurons. We write it anew for those that are left. For one block and a text's tokens let $X$ hold
# the kept neurons' values, one row per token, and $T$ what the teacher's MLP writes there. We look for $W$ with
#
# $$\min_W \; \|T - X W^\top\|^2 + \lambda \sum_j \|x_j\|^2 \, \|W_j - W_j^{\mathrm{old}}\|^2$$
#
# ($x_j$ is column $j$ of $X$, neuron $j$'s values, and $W_j$ its weights.) The first part is a regression like the
# one above, for all outputs at once (without an intercept, because this model's `down_proj` has no bias). The second part is a
# **ridge**: it holds each neuron's weights to the old ones. With 922 neurons and 2,048 tokens a fit finds relations that hold only
# by accident, and the ridge is there against those.

# %% [markdown]
# ### Exercise 1 · ●●○ · 15 minutes
#
# Write `refit(kept, target, old, ridge)`: `kept` is $X$ [tokens, width], `target` $T$ [tokens, hidden], `old` the weights
# [hidden, width], `ridge` $\lambda$. Return the best $W$, [hidden, width]. The check tries it on the middle block, too.
#
# <details><summary>Hint</summary>
#
# Set the derivative to 0. Plain least squares: $G W^\top = X^\top T$, with $G = X^\top X$. The ridge adds $\lambda D$ to $G$, $D$
# its diagonal. And what on the right? `torch.linalg.solve(A, B)` solves $A Y = B$.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_refit

x = torch.tensor(seen[:, kept])
target = mlp(read[middle]).cpu()
old = mlp.down_proj.weight.detach().cpu()[:, kept]


# BEGIN SOLUTION
def refit(kept, target, old, ridge):
    gram = kept.T @ kept
    pull = (ridge * gram.diagonal()).diag()
    return torch.linalg.solve(gram + pull, kept.T @ target + pull @ old.T).T


# END SOLUTION
# BEGIN STUB
# def refit(kept, target, old, ridge):
#     ...  # your code
# END STUB
check_refit(refit, x, target, old)

# %% [markdown]
# ## What the ridge is for
#
# How much of what this block lost is said, by ridges of three sizes: of the tokens that the fit has seen, and of others?


# %%
def share(lost, left):
    """How much of the square of what was lost isn't left."""
    return 1 - (left.square().sum() / lost.square().sum()).item()


refit = check_refit.accepted  # yours, if it is correct
cases = (x, target), (torch.tensor(new[:, kept]), mlp(read_unseen[middle]).cpu())
for ridge in (0.001, RIDGE, 10):
    weight = refit(x, target, old, ridge).to(x)
    said = [share(t - s @ old.T, t - s @ weight.T) for s, t in cases]
    print(f"ridge {ridge:g}: {said[0]:.2f} where fitted, {said[1]:.2f} elsewhere")

# %% [markdown]
# With hardly any ridge the fit says most where it was fitted, and elsewhere it is worse than no fit at all (below zero). With a
# large one it says less of both.
#
# ## All blocks, three cuts
#
# Now every block of every student gets its new `down_proj`. What the cut took from a block is the **lost output**: what the
# teacher's MLP writes, less what the student's writes for the same input. After the solve we look at text that it hasn't seen,
# and ask how much of the lost output the kept neurons now say (the share of its square, so that constants count, too).
#
# **Predict before you run.** How much of the lost output is said, on unseen text: nearly all, half, a quarter, hardly any?
# And how much of the *nats* that the two bad cuts lost comes back? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On average 0.25 of it for the peak-to-peak student, and 0.33 for the random one. But in nats 70 % and 67 % come back.
#
# </details>


# %%
def parts(number, scores, read):
    """What a block's kept neurons say, and what the removed ones wrote."""
    mlp = blocks[number].mlp
    kept = strongest(scores[number], RATIO).cpu()
    removed = np.setdiff1d(np.arange(len(scores[number])), kept)
    said = values(mlp, read)
    return said[:, kept], said[:, removed] @ mlp.down_proj.weight[:, removed].T


def gain_of(x, lost):
    """What `down_proj` must gain so that the kept say what was lost."""
    return refit(x, lost, torch.zeros(lost.shape[1], x.shape[1]).to(x), RIDGE).to(x)


def solve(scores, read):
    """What each block's `down_proj` gains, [hidden, kept]."""
    return [gain_of(*parts(n, scores, read[n])) for n in range(total)]


def left_of(number, cut, read):
    """The lost output of a block, and what is left of it after the solve."""
    x, lost = parts(number, importance[cut], read)
    return lost, lost - x @ gains[cut][number].T


gains = {cut: solve(importance[cut], read) for cut in CUTS}
shares = {}
for cut in CUTS:
    shares[cut] = [share(*left_of(n, cut, read_unseen[n])) for n in range(total)]

# %%
_, panel = plt.subplots(figsize=(10, 4.5), layout="constrained")
for cut in CUTS:
    panel.plot(range(total), shares[cut], **mark(cut))
    print(f"{cut}: {np.mean(shares[cut]):.2f} of the lost output is said")
panel.set(xlabel="block", ylabel="share that is said", ylim=(-0.15, 1))
panel.legend(title="cut", loc="upper center", bbox_to_anchor=(0.65, 1))
show(
    "The share of the lost output that the kept neurons say on unseen tokens, by "
    "block, for three cuts. Most lie between a tenth and four tenths; at both ends "
    "they are higher, and the random cut has spikes at blocks 2 and 11."
)

# %% [markdown]
# *Of what each block lost, the share that its kept neurons can say of it, on text that the solve hasn't seen.*
#
# (We solve for what is *missing*, and add it to the old weights. It is the same solution: put $T - X W^{\mathrm{old}\top}$ for
# $T$, and the ridge pulls to 0.)
#
# On average the kept neurons say a tenth of what the good cut took, and a quarter to a third of what the bad ones took. (The random
# student's blocks 2 and 11 stick out. We come to the first of them, and haven't looked into the other.) That sounds like little. And in nats?

# %%
judges = judging_rows(tokenizer, draw=session.seed).values()
judges = [rows.input_ids[:4].to(base.device) for rows in judges]


def nats(model):
    """Loss in nats at each token of both texts, [rows, tokens]."""
    found = []
    for ids in judges:
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        each = nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        found.append(each.cpu().numpy())
    return np.concatenate(found)


def harm_of(model):
    return (nats(model) - whole).mean()


def student(scores, gains=None, chosen=range(total)):
    """The model cut by these scores; the chosen blocks have what they gain."""
    model = variant(base)
    prune_neurons(model, scores, ratio=RATIO)
    for number in chosen if gains else ():
        down = model.model.layers[number].mlp.down_proj
        weight = down.weight + gains[number]
        down.weight = nn.Parameter(weight, requires_grad=False)
    return model


whole, harm = nats(base), {}
for cut in CUTS:
    lost = harm_of(student(importance[cut]))
    left = harm_of(student(importance[cut], gains[cut]))
    harm[cut, "cut"], harm[cut, "solved"] = lost, left
    back = 1 - left / lost
    print(f"{cut}: {lost:.2f} nats lost, solved {left:.2f}: {back:.0%} is back")
    if cut != "activation":
        here(f"Over half of the nats is back: {cut}.", [back - 0.5])

# %% [markdown]
# After the two ruinous cuts, seven tenths of the lost nats are back (on speeches and wiki), with so little of the lost output.
# How can a part be worth so much? (In the first figure, from the record, more came back. There we look at
# speeches alone, the solve reads four times as much, and it goes block by block from below.)
#
# ## In which blocks?
#
# A mean over blocks hides where something happened. So we take a solved student and give some of its blocks their old weights back:
# the first one, the four behind it, or all others. The nats that it loses again are what the solve of these blocks was worth.
#
# **Predict before you run.** If all blocks were worth the same, the first one would be worth a thirtieth of what the solve brings
# back. What part is it for each of the three cuts? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Far more: two fifths for the good cut, four fifths for the peak-to-peak one, a quarter for the random one. To the random one, the four
# blocks behind it are worth still more.
#
# </details>

# %%
BAD = "peak-to-peak"
GROUPS = {"0": [0], "1–4": range(1, 5), f"5–{total - 1}": range(5, total)}
worth = pd.DataFrame(index=GROUPS, columns=CUTS, dtype=float)
for cut in CUTS:
    for group, unsolved in GROUPS.items():
        solved = [number for number in range(total) if number not in unsolved]
        left = harm_of(student(importance[cut], gains[cut], solved))
        worth.loc[group, cut] = left - harm[cut, "solved"]
brought = [harm[cut, "cut"] - harm[cut, "solved"] for cut in CUTS]
(worth / brought).map("{:.0%}".format)

# %%
colours = [mark(cut)["color"] for cut in CUTS]
panel = worth.plot.bar(color=colours, rot=0, width=0.8, figsize=(9, 4.5))
panel.set(xlabel="blocks left unsolved", ylabel="nats per token lost again")
panel.legend(title="cut", loc="upper right")
show(
    "Bars of nats that are lost again if some blocks stay unsolved: many with "
    "block 0 for the peak-to-peak cut, with the first five for the random one, "
    "few for the good one."
)
first, early, *rest = worth[BAD]
here("To the bad cut block 0 is worth most.", [first - 2 * max(early, *rest)])
first, early, *rest = worth["random"]
here("To the random cut the four behind it are.", [early - max(first, *rest)])

# %% [markdown]
# *What each group of blocks is worth to a solved student. The table has it as a part of all that the solve brings back.*
#
# This figure is the lesson, and says why a small share can be worth so much: the nats sit in few places. To the good cut no group of
# blocks is worth much, because it lost little, and the solve heals little of that. Most of what the peak-to-peak
# cut gets back, it gets back in *one* place, the first block. The random cut has two such places: the first block, and something in
# the four blocks behind it. We look into both. (The parts needn't add up to 100 %, because one block's error is the next one's input.
# And the figure shows what the solve *heals*. A wound that it can't heal isn't in it.)
#
# Why the first block? Let us measure how long the vector is that each MLP writes, beside the state that its block finds.

# %%
later = torch.arange(learned.numel()) % learned.shape[1] > 0  # no first tokens
row = learned[:1].to(base.device)
states = base.model(row, output_hidden_states=True).hidden_states
loudness = []
for number in range(total):
    found = states[number][0, 1:].norm(dim=1)
    written = blocks[number].mlp(read[number][1 : row.numel()]).norm(dim=1)
    loudness.append((written.mean() / found.mean()).item())
print(f"block 0 writes {loudness[0]:.0f} times what it finds", end=", ")
print(f"the next loudest {max(loudness[1:]):.2f} times")

# %% [markdown]
# The first block finds nothing but the token's embedding, and its MLP writes sixteen times as much. So right behind it, what it wrote
# *is* the state. Away from the first token, every other MLP writes less than it finds.
#
# ## A dictionary
#
# What does the first MLP know when it writes? Only one attention has looked around so far. So perhaps it is hardly more than a
# **dictionary**: it looks the token up, and writes the vector by which the rest of the model knows it. We can test that. If the token
# decides what is written, then what was written at the *other* places of this token tells it.

# %% [markdown]
# ### Exercise 2 · ●●○ · 15 minutes
#
# Write `mean_elsewhere(ids, written)`: `ids` are tokens [tokens], `written` what an MLP wrote at each [tokens, hidden]. For each
# place return the mean of what was written at all *other* places where the same token stands, [tokens, hidden]. (Where a token
# comes only once, return what you like.)
#
# <details><summary>Hint</summary>
#
# Sum per token: `torch.zeros(vocabulary, hidden).index_add(0, ids, written)`, and `[ids]` gives each place its token's sum. Take the
# place's own part off. How many are left? (A plain loop over the tokens is fine, too.)
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_mean_elsewhere


# BEGIN SOLUTION
def mean_elsewhere(ids, written):
    sums = torch.zeros(int(ids.max()) + 1, written.shape[1]).to(written)
    sums = sums.index_add(0, ids, written)[ids]
    count = ids.bincount()[ids, None]
    return (sums - written) / (count - 1).clamp(min=1)


# END SOLUTION
# BEGIN STUB
# def mean_elsewhere(ids, written):
#     ...  # your code
# END STUB
check_mean_elsewhere(mean_elsewhere)

# %% [markdown]
# ## How much does the token tell?
#
# We ask the first two MLPs, the middle one and the last one. Only tokens count that come at least three times.

# %%
ids = learned.flatten().to(base.device)
vocabulary, hidden = base.get_input_embeddings().weight.shape
words = ids[later]
often = words.bincount()[words] > 2
mean_elsewhere = check_mean_elsewhere.accepted  # yours, if it is correct


def told_by_token(number):
    """How much of an MLP's output the token's other places tell."""
    written = blocks[number].mlp(read[number])[later]
    left = written - mean_elsewhere(words, written)
    return share((written - written.mean(0))[often], left[often])


told = {number: told_by_token(number) for number in (0, 1, middle, total - 1)}
print("told by the token:", {block: round(part, 2) for block, part in told.items()})
margins = [told[0] - 0.9, 0.5 - told[middle]]
here("The first MLP is told by the token, the middle one isn't.", margins)

# %% [markdown]
# In block 0 the token tells nearly everything: 0.99. In block 15 it tells 0.14: there the text around it counts.
#
# That makes a bold prediction, and we can touch it. If the first MLP only looks words up, nobody needs *sentences* to heal it. So
# we throw the same tokens into a **heap**, in random order, and solve block 0 over that. And we heal it without any solve, too:
# with a table that holds, for each token, the mean of what was lost there.
#
# **Predict before you run.** Block 0 of the peak-to-peak student is healed over text, over a heap, or by the table. Which of the two
# does about as well as text? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Both. The heap leaves 1.87 nats, text 1.86, and the table 1.94. (Unhealed, the student lost 3.87.)
#
# </details>

# %%
_, lost = parts(0, importance[BAD], read[0])
count = ids.bincount(minlength=vocabulary).clamp(min=1)[:, None]
means = torch.zeros(vocabulary, hidden).to(lost).index_add(0, ids, lost) / count


def with_table(table):
    """The bad student; its first MLP adds the token's row of a table."""
    model, heard = student(importance[BAD]), {}

    def hear(embedding, inputs):
        heard["ids"] = inputs[0]

    def add(mlp, inputs, output):
        return output + table[heard["ids"]]

    model.model.embed_tokens.register_forward_pre_hook(hear)
    model.model.layers[0].mlp.register_forward_hook(add)
    return model


generator = torch.Generator().manual_seed(session.seed)
heap = ids.cpu()[torch.randperm(len(ids), generator=generator)].view_as(learned)
from_heap = gain_of(*parts(0, importance[BAD], what_mlps_read(heap)[0]))

# %%
ways = {
    "nothing": harm[BAD, "cut"],
    "text": harm_of(student(importance[BAD], gains[BAD], [0])),
    "heap": harm_of(student(importance[BAD], [from_heap], [0])),
    "table": harm_of(with_table(means)),
}
print("nats left by", {way: round(float(left), 2) for way, left in ways.items()})
nothing, text, heap, table = ways.values()
gained = nothing - text
margins = [nothing - heap - 0.8 * gained, nothing - table - 0.7 * gained]
here("A heap and a table heal block 0 like text.", margins)

# %% [markdown]
# A sceptic isn't convinced by the table. "You add long vectors that look like what was lost. Perhaps any of them would do, and the
# word has nothing to do with it." How do you answer? With a **control**: a table in which *everything* is as before, but not what
# you claim to be the reason.

# %% [markdown]
# ### Exercise 3 · ●●● · 15 minutes
#
# Write `control(table, ids)`: `table` [vocabulary, hidden] has a row for each token, and `ids` are the tokens that were read. Return
# a table of the same shape that answers the sceptic. Then we put it into the student.
#
# <details><summary>Hint</summary>
#
# What should stay? The rows themselves, each one once, and which tokens have one. What should go? Only that a row stands at its own
# token.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_control


# BEGIN SOLUTION
def control(table, ids):
    names = ids.unique()
    torch.manual_seed(0)
    names = names[torch.randperm(len(names)).to(names.device)]
    found = table.clone()
    found[names] = table[names.roll(1)]
    return found


# END SOLUTION
# BEGIN STUB
# def control(table, ids):
#     ...  # your code
# END STUB
check_control(control, means, ids)

# %% [markdown]
# ## What the sceptic sees
#
# Your table, and a poorer control: one row for all words, the mean of what was lost.

# %%
same = harm_of(with_table(lost.mean(0).expand_as(means)))
others = harm_of(with_table(check_control.accepted(means, ids)))
print(f"one row for all words: {same:.2f}; rows of other words: {others:.2f}")
here("A word needs its own row.", [same - table - 1, others - table - 1])
read_before = torch.isin(unseen.flatten(), learned.flatten())
anew, unsaid = left_of(0, BAD, read_unseen[0])  # of unseen text
known = share(anew[read_before], unsaid[read_before])
unknown = share(anew[~read_before], unsaid[~read_before])
print(f"block 0 says {known:.2f} of words that were read, {unknown:.2f} of others")
here("More is said of words that the solve has read.", [known - unknown])

# %% [markdown]
# One row for all words does next to nothing, and the same rows at other words even do harm. So a word needs *its own* row, and the
# sceptic is answered: the first MLP is a dictionary.
#
# The last line shows the price. Unseen text has many words that the solve has read elsewhere, and of those most of what block 0
# lost is said; of the other words it is about a fifth. So from two thousand tokens it has learned a list of words, and little that
# carries over to others. (Words that it hasn't read are also rarer ones.) In this block *echo* is the wrong name: the kept neurons
# couldn't say most of it before. They were taught it anew, word by word, by what the whole model's MLP writes.
#
# ## The random cut and the first token
#
# Now the random student's second place, blocks 1 to 4. Lesson 03's first token is a suspect, and for that one there is the
# simplest of echoes. A neuron, a block, an attention all have a **constant**, the mean of what they write (lessons 01, 04, 05).
# Once it is measured, no neuron is needed to write it. So we give these four MLPs the mean of what each lost at the *first token*
# of the rows, and nothing elsewhere. The control is the same numbers in other channels (shuffled). And one
# test of the place: the same four vectors at another token (place 16 of 64; the first token's is 0), and shuffled there, too.
#
# **Predict before you run.** Four vectors, at one token of each row, and no solve. How much of the random student's 7.50 nats do
# they bring back? And what do they do at place 16: to the tokens before it, and to those behind it? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Two fifths: 4.35 are left. Shuffled, they do a fifth as much. At place 16 the tokens before it are as ill as they were, since they
# can't see it. But on average those from place 16 on get back two thirds of what the first token's constants gave
# them: 5.23 nats are left to them, where the cut had left 7.14.
#
# </details>


# %%
def with_constants(model, constants, place=0):
    """The MLPs of blocks 1 to 4 add their constants at one place of each row."""
    for number, constant in zip(GROUPS["1–4"], constants, strict=True):

        def add(mlp, inputs, output, constant=constant):
            output = output.clone()
            output[:, place] += constant
            return output

        model.model.layers[number].mlp.register_forward_hook(add)
    return model


# %%
scores, places = importance["random"], GROUPS["1–4"]
constants = [parts(n, scores, read[n][~later])[1].mean(0) for n in places]
shuffled = [each[torch.randperm(hidden, generator=generator)] for each in constants]
ladder = {}
for name, solved, added in (
    ("nothing", (), ()),
    ("constants", (), (constants,)),
    ("shuffled", (), (shuffled,)),
    ("at place 16", (), (constants, 16)),
    ("shuffled, at place 16", (), (shuffled, 16)),
    ("constants, block 0 solved", (gains["random"], [0]), (constants,)),
    ("all blocks solved", (gains["random"],), ()),
):
    model = student(scores, *solved)
    lost = nats(with_constants(model, *added) if added else model) - whole
    ladder[name] = [lost.mean(), lost[:, 1:16].mean(), lost[:, 16:].mean()]
ladder = pd.DataFrame(ladder, index=["all tokens", "1 to 15", "from 16 on"]).T
cut, first, shuffled, elsewhere, _, both, solved = ladder.to_numpy()
margins = [cut[0] * 3 / 4 - first[0], shuffled[0] - first[0] - 1]
margins += [(cut[0] - both[0]) / (cut[0] - solved[0]) - 3 / 4]
here("Constants undo over a quarter, with block 0 most of the solve.", margins)
margins = [1e-3 - abs(cut[1] - elsewhere[1]), cut[2] - elsewhere[2] - 1]
here("At another place they help the tokens behind it alone.", margins)
ladder.round(2)

# %% [markdown]
# *Nats per token lost by the random cut: of all tokens, and of those at some places of a row. (All tokens include place 0, which sees
# nothing before it and isn't healed by its own constant.)*
#
# Four vectors at one token of each row give back two fifths. You know this token from lesson 03: a few neurons write a huge state
# there, and every attention that has nothing to say looks at it. It is a **sink**. The state is the same in every text, so kept
# neurons that are on there, and quiet elsewhere, can write it. (Nobody told the solve about first tokens. It only sees a large
# error there.)
#
# But the control at place 16 says more. Nothing was mended at the first token, and yet the tokens that can see place 16 are better off on average. (Shuffled there, the constants do nothing.)
# So what the heads miss isn't *the first token*. They miss a token that looks like a sink, and another one will do if it stands
# where they can see it. Models take the first one, because all the others see it.
#
# And the two places together, five blocks of thirty, bring back nearly as much as the whole solve. So most of what can be
# healed of this ruin lies in two places: the words and the first token. Each cut has its own places, and looking block by block
# finds them.

# %% [markdown]
# ## The rest has to be learned
#
# What the kept neurons can't say, they have to learn, in a training loop. There are two sources to learn from. The *text* shows one
# word at each place, the one that came, and the student learns to expect that one. The *teacher* says for every word how likely it
# finds it, and the student learns to say the same. That is **distillation**. (Deeper notebook 07a writes both losses, and tests
# that they teach.)
#
# Now all of it in one picture: nothing, constants, the solve, training. In the record the solve goes from below, and each block sees
# what the healed ones below it give (`healing.refit`). Training takes steps of 1,024 tokens of speeches, and each way to heal has
# the best of several learning rates, chosen on rows that nothing else uses.
#
# **Predict before you read.** Solve, or train in one pass, with the *same* 8,192 tokens: which of the two ends lower for the good cut, and for
# the bad one? Because …
#
# <details><summary>What the record says</summary>
#
# The solve: the good one ends at 0.31 (trained: 0.42), the bad one at 0.55 (trained:
# 1.48).
#
# </details>

# %%
RUNGS = {"nothing": ("cut", 0), "constants": ("constants", 0)}
RUNGS |= {"solved": ("solved", 0), "33k": ("solved + KL", 32)}
RUNGS["131k"] = ("solved + KL", 128)
_, panel = plt.subplots(figsize=(9, 5), layout="constrained")
for cut in CUTS:
    for text in TEXTS:
        line = {} if text == "speeches" else {"label": None, "linestyle": ":"}
        lost = [recorded(cut, edit, text, n).mean() for edit, n in RUNGS.values()]
        panel.plot([*RUNGS], lost, **mark(cut) | line)
panel.axhline(GUESSING - uncut, **mark("guessing"))
panel.set(ylabel="nats per token lost", yscale="log")
panel.legend(title="cut")
show(
    "Nats lost by three students, with nothing back, constants, solved, trained on "
    "33 and 131 thousand tokens, on speeches and (dotted) on wiki. The random "
    "student falls from above guessing to below one; wiki stays above speeches."
)

# %% [markdown]
# *What each student still loses on speeches (dotted: on wiki), rung by rung: with nothing back, with constants (for each MLP one at
# first tokens and one at all others), solved over 8,192 tokens, and then trained as well. A logarithmic axis; means of the seeds
# that the record has. The line of guessing is for speeches.*
#
# Constants help where the first token was hit. On speeches the solve brings the bad cuts near where the good one begins. The rest
# takes training, and on wiki more of it stays. From the solve on the order is the same on both texts: activation, peak-to-peak,
# random. So a solve heals much of a careless cut, but not all of it.


# %%
def told(*row):
    """Print what the record says of a student, and return it."""
    nats = recorded(*row)
    print(*row, nats.round(2))
    return nats


leads = []
for cut in CUTS:
    trained = told(cut, "KL", "speeches", 8)
    leads += [*trained - told(cut, "solved", "speeches")[: len(trained)]]
claim("With as many tokens the solve ends lower, in each order.", leads)
alone = told("activation", "KL", "speeches", 32)
both = told("activation", "solved + KL", "speeches", 32)
claim("The good cut, solved first, is still ahead at 33k.", alone - both)
of_text = told("activation", "cross-entropy", "speeches", 32)
claim("Text alone is ahead on speeches.", alone - of_text)
told("activation", "KL", "speeches", 128)
of_text = told("activation", "cross-entropy", "wiki", 32)
teacher = told("activation", "KL", "wiki", 32)
claim("The teacher is ahead on wiki.", of_text - teacher)

# %% [markdown]
# *Nats per token that are still lost, by cut, way to heal, text and steps of 1,024 tokens (a solve has read as many tokens as 8 steps).
# "KL" learns from the teacher and "cross-entropy" from the text. Several numbers are several orders of the text: a seed chooses the
# rows and their order.*
#
# With the same tokens the solve does better on speeches than one pass of distillation, in each order that was tried (for the random
# cut in one). Trained on 33 thousand tokens, the good student that was solved first is still ahead, in all three.
# (It has read the 8 thousand tokens of the solve as well.) So a solve is a
# **head start**, not a replacement.
#
# And what is the teacher worth? A student that learns from text alone ends ahead of the whole model on speeches: its loss is below
# zero. That is a fit more than a healing, because on wiki it gives back less than the teacher does. (There text
# alone leaves about 1 nat, the teacher 0.9.)
#
# ## Another task
#
# Nobody's users read State of the Union addresses all day. **LAMBADA** gives a passage of a novel without its last word, which only
# the whole passage tells. It is one of lm-eval's tasks, and `evaluate` is lm-eval: its task, its prompt, its scoring. Beside the
# share of right words it gives the perplexity of the last word. (Our whole model is SmolLM2-135M-Instruct, and its weights come
# out of a 4-bit file. LAMBADA's 30 % belong to that.)
#
# **Predict before you run.** The good cut finds 10 % of a thousand last words, the whole model 30 %. Solved, the student has half
# of its nats on speeches back. How many of a hundred does it find now? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Eleven. And after the longest training, which leaves a tenth of a nat on speeches: fourteen.
#
# </details>

# %%
from course_utils.measuring import evaluate

known = record.query("text == 'LAMBADA' and criterion == 'activation'")
known = known.set_index(["edit", "steps"])
for edit, steps in (("cut", 0), ("solved", 0), ("KL", 128)):
    one = known.loc[(edit, steps)]
    more = 100 * (one.rows - known.loc[("cut", 0)].rows)
    gain, _, low, high = ratio_interval(more, np.ones(len(more)))
    print(f"{edit}: {one.nats:.1%}, {gain:+.1f} points ({low:+.1f} to {high:+.1f})")

# %%
last = {}
for name, gain in {"whole": None, "cut": None, "solved": gains[BAD]}.items():
    model = base if name == "whole" else student(importance[BAD], gain)
    answers = evaluate(model, tokenizer, "lambada_openai", limit=16)
    each = answers.attrs["answers"].table
    last[name] = -each[each.metric == "perplexity"].value.to_numpy()
    print(f"{name}: {answers.value[0]:.0%}, {last[name].mean():.1f} nats per word")
more = last["cut"] - last["solved"]
gain, _, low, high = ratio_interval(more, np.ones(len(more)))
print(f"the solve gives back {gain:.1f} nats ({low:.1f} to {high:.1f})")
here("The solve gives nats on last words back, by the interval.", [low])

# %% [markdown]
# *Intervals are paired by passages.*
#
# In these passages the badly cut student finds no last word, cut or solved. Its nats tell more: over half of what the cut lost
# comes back, and much is still missing.
#
# In the record the good cut finds 10 % of a thousand last words, and solved it isn't shown to find more. After the longest
# training on speeches it finds 14 %. On speeches most of its loss was back by then, of the last words less than a fifth. So measure
# the task that you need, and not the text that you healed with.
#
# %% [markdown]
# ## No more text
#
# A customer has eight rows of speeches, 2,048 tokens, and not a word more. Our peak-to-peak student was solved over them as they
# are. Can you make more of the *same* words?
#
# To read the rows twice changes nothing: the solve gets each equation twice, and finds the same weights. And the ridge is about right: with
# a third of it, or three times as much, this student loses more on both texts. (We tried, on rows that judge nothing here.)

# %%
from course_utils.lessons.exercises.lesson_07 import RowsExam

read = read_unseen = means = states = model = None  # room for the exam


def built(rows):
    """The peak-to-peak student, solved over these rows."""
    return student(importance[BAD], solve(importance[BAD], what_mlps_read(rows)))


exam = RowsExam(built, tokenizer, learned, student(importance[BAD], gains[BAD]))

# %% [markdown]
# ### Exercise 4 · ●●● · 30 minutes
#
# Write `rows_for(speeches)`. `speeches` are the 8 rows of 256 tokens. Return the rows that the solve of all blocks shall read, an
# integer tensor [rows, 256]. Each token of the speeches may be used twice, so you may return up to 16 rows. The exam judges by
# rows of speeches and of articles that nothing has used. Your student has to beat the one that was solved over the speeches as they
# are: by 0.075 nats per token on speeches, and by 0.125 on articles. The exam judges twice only, so think first.
#
# <details><summary>Hint</summary>
#
# Each token that the solve reads is an equation. What enters block 0's MLP depends on the token alone, nearly. What enters the
# others depends on what stands before the token. How do you get states that the text doesn't hold? And who would miss the
# sentences, if there were none?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_rows_for


# BEGIN SOLUTION
def rows_for(speeches):
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(speeches.numel(), generator=generator)
    heap = speeches.flatten()[order].view_as(speeches)
    return torch.cat([speeches, heap])


# END SOLUTION
# BEGIN STUB
# def rows_for(speeches):
#     ...  # your code
# END STUB
check_rows_for(rows_for, exam)

# %% [markdown]
# ## Where did it help?
#
# No new word, but a better student. We swap once more, to see where that comes from: block 0 solved over your rows and the others over
# the speeches as they are, and the other way round.
#
# **Predict before you run.** Does the gain come through block 0, through the others, or through both? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Through the others, all of it: 0.10 of 0.10 nats.
#
# </details>

# %%
rows = check_rows_for.accepted(learned)  # yours, if they are correct
yours, theirs = solve(importance[BAD], what_mlps_read(rows)), gains[BAD]
swapped = (yours, yours[:1] + theirs[1:], theirs[:1] + yours[1:])
left = [harm_of(student(importance[BAD], solved)) for solved in swapped]
everywhere, first, others = harm[BAD, "solved"] - np.array(left)
print(f"{everywhere:.2f} nats better, block 0 {first:.2f}, others {others:.2f}")
here("The heap helps the others more.", [others - first - everywhere / 2])

# %% [markdown]
# That is what a dictionary should do: block 0 had all of these words already, and in a heap they are the same words. The other
# blocks look around, and a heap shows them states that no sentence holds. They get new equations from old words, and a
# solve with 922 neurons and 2,048 tokens needs them. But not just any: the same sentences cut at other places give each token another past, too, and bring
# a third of it on speeches, and less on articles. (We tried this, too.)
#
# So *strange* states help more than natural ones, and we don't know why. One would look for what they share with the states of
# articles, and take that away.

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# A heap of loose words heals the first block as well as text does. What follows?
#
# - [ ] That a language model doesn't care in which order words come.
#   > Healing was tested, not reading. The attentions and the MLPs behind them do care.
# - [x] That the first MLP looks at the token, and hardly at its neighbours.
#   > For words that come often, the token tells 99 % of what it writes. So sentences have nothing to add, but words that weren't read are missing.
# - [ ] That any words will do for the solve, as long as there are many.
#   > Of words that it hasn't read it says little. They must be the words of the text that counts.

# %% [markdown] tags=["quiz"]
# You fit echoes on 1,000 tokens with 900 kept neurons and no ridge. On those tokens, nearly everything is said. What do you do?
#
# - [ ] Use it, because a better fit gives a better student.
#   > With almost as many neurons as tokens, anything can be fitted. It says nothing of other tokens.
# - [ ] Cut more neurons, because the rest can say them all.
#   > Not shown. Look at tokens that weren't fitted.
# - [x] Judge it on other tokens, and hold the weights to the old ones.
#   > There most of it is gone. More tokens or a ridge bring the two together.

# %% [markdown] tags=["quiz"]
# A student trained on speeches ends with a lower loss *on speeches* than its teacher. What has been shown?
#
# - [ ] That it has become the better language model of the two.
#   > It was measured only on the kind of text that it was trained on.
# - [x] That it fits speeches. Whether it is healed, other text says.
#   > On the training's kind of text, fitting and healing can't be told apart.
# - [ ] That this teacher was a bad one, and another is needed.
#   > The teacher never trained on these speeches; it may be better everywhere else.

# %% [markdown]
# ## Take-aways
#
# - What a cut takes is partly still there: the kept neurons have **echoes** of it. More they can be taught, all by one linear
#   solve with a ridge. You can measure what they say before you heal, on tokens that you don't fit.
# - Ask where. After a ruinous cut, what came back came back in few places: the first MLP, which is a **dictionary**, and the first token, where a constant
#   does much of it. Heads miss a sink there, and other tokens can be one, too.
# - In the first block a solve learns words, even from a heap. The later blocks need sentences, and a heap beside them helps.
# - Then train. The solve is a head start.
# - Cut well all the same. Measure the task that you need, on text that you didn't heal with.
#
# **On Monday:** before you train a cut model, solve. And measure it on the task, not on the text that it learned from.
#
# **The story so far:** part of the loss comes back cheaply. **Next:** look inside by touching. Lesson 08 asks where a bias comes
# from.
#
# ## Go deeper
#
# [Does it teach, does it fit, does it survive the night?](deeper/07a_will_it_fit.ipynb): the two losses, a test that a loss teaches,
# memory counted beforehand, logits in chunks, LoRA, a run that goes on
#
# ## References
#
# - He, Zhang and Sun 2017, *Channel Pruning for Accelerating Very Deep Neural Networks*, arXiv 1707.06168: least squares after a cut
# - Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685 (in 07a)
# - Luo, Wu and Lin 2017, *ThiNet*, arXiv 1707.06342: channels that others can make up for
# - Frantar and Alistarh 2023, *SparseGPT*, arXiv 2301.00774, and Ling et al. 2024, *SlimGPT*, arXiv 2412.18110: the same in language
#   models
# - Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679
# - An et al. 2023, *FLAP: Fluctuation-based Adaptive Structured Pruning for LLMs*, arXiv 2312.11983: constants instead of neurons
# - Paperno et al. 2016, *The LAMBADA dataset*, arXiv 1606.06031
