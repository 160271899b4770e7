# ---
# jupyter:
#   course:
#     title: "Healing: what gets back what pruning took?"
#     minutes: 90 to 115 minutes
#     prerequisites: lesson 01 (a neuron's constant, guessing), lesson 03 (the activation score, hooks, the first token), lesson 05 (text before)
#     assets: [smollm2, texts, speeches, benchmarks]
#     concepts: [echo, ridge regression, share that is said, teacher and student, KL divergence, cross-entropy, shift and mask, LAMBADA]
# ---

# %% [markdown]
# ## The question
#
# A cut took four of ten neurons. What gets back what they did?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** First of all the neurons that were left. A part of what was removed is a **constant**, above all at the first token
# of a text, and any neuron that is always on can write a constant. Another part has **echoes**: the kept neurons together can say
# a fifth to a third of what the removed ones wrote, also on tokens that the fit has not seen. One linear solve writes that into
# their weights. After a ruinous cut that is enough for three quarters of the lost nats, if it comes
# back in the right blocks.
# Training brings back more, but it needs many more tokens. And what comes back on the text that you heal with needn't come back on another.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** the cheapest healing has no gradient. What the kept neurons can say of the removed ones is a linear problem, and we
# can see how much it is before we solve it.
#
# **Let the room predict first:** after the solve, which of the three students has most left to learn?
#
# **On the board:** the five words by hand.
#
# **Usual questions:** "Why not LoRA?" It saves memory, hardly time; notebook 07a. "Is a better loss on speeches recovery?" Ask for
# wiki, and for last words: nobody trained on those.
#
# **Wrong turns:** pulling the weights to zero instead of what they were; judging echoes on the tokens they were fitted to; shifting
# one of the two distributions; trusting a loss that falls.
#
# **At the end you have** a cut model that is healed without a gradient, a proof of where that came from, and a training loss that
# you have tested.

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
for shift, edit, look in ((-0.2, "cut", "wrong"), (0.2, "solved", "whole")):
    heights = [recorded(cut, edit, "speeches")[0] for cut in CUTS]
    places = np.arange(3) + shift
    panel.bar(places, heights, 0.38, color=mark(look)["color"], label=edit)
    for place, height in zip(places, heights, strict=True):
        panel.text(place, height, f"{height:.2f}", ha="center", va="bottom")
uncut = record[(record.criterion == "") & (record.text == "speeches")].nats.iloc[0]
panel.axhline(GUESSING - uncut, **mark("guessing"))
panel.set_xticks(range(3), ["by activation", "by peak-to-peak", "at random"])
panel.set(ylabel="nats per token lost", ylim=(0, 9))
panel.legend(loc="upper left")
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
# needs it. That is a linear regression. We fit it on 3,072 tokens, and judge it on 1,024 others.
#
# **Predict before you run.** Of how many removed neurons can the kept ones say at least half, on unseen tokens (half of the
# variance)? Nearly all, half of them, hardly any? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Hardly any: 2 %. Of the typical removed neuron the kept ones can say a fifth (0.19).
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
pool = pool.sample(16, seed=session.seed).input_ids
learned, unseen = pool[:12], pool[12:]  # 3,072 and 1,024 tokens


# %%
@torch.no_grad()
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
best = score.argmax()

_, panels = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
some = slice(100, 160)
truth, told = new[some, removed[best]], said[some, best]
panels[0].plot(truth, **mark("whole") | {"label": "the removed neuron"})
panels[0].plot(told, **mark("activation") | {"label": "what the kept ones say"})
panels[0].set(xlabel="token", ylabel="value", title="one removed neuron")
panels[0].legend()
bins = np.linspace(-0.2, 1, 31)
panels[1].hist(score.clip(-0.2), bins, color=mark("random")["color"])
panels[1].set(xlabel="variance said", ylabel="neurons", title="all removed ones")
show(
    "Left, the values of one removed neuron over sixty unseen tokens, and what the "
    "kept ones say of it: the two lines go up and down together. Right a histogram "
    "of how much of the variance is said, for all removed neurons of the block."
)
half, typical = (score > 0.5).mean(), np.median(score)
print(f"more than half is said of {half:.0%}; of the typical one {typical:.2f}")

# %% [markdown]
# *Left: the removed neuron with the clearest echo, and what the kept ones say of it, on unseen tokens. Right: how much of each
# removed neuron they can say.*
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
# **ridge**: it holds each neuron's weights to the old ones. With 922 neurons and 3,072 tokens a fit finds relations that hold only
# by accident, and the ridge is there against those.

# %% [markdown]
# ### Exercise 1 · ●●○ · 12 minutes
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
refit = check_refit.accepted  # yours, if it is correct
others = torch.tensor(new[:, kept]), mlp(read_unseen[middle]).cpu()
for ridge in (0.001, RIDGE, 10):
    weight = refit(x, target, old, ridge).to(x)
    said = []
    for say, wanted in ((x, target), others):
        left, lost = wanted - say @ weight.T, wanted - say @ old.T
        said.append(1 - (left.square().sum() / lost.square().sum()).item())
    print(f"ridge {ridge:g}: {said[0]:.2f} said where it was fitted", end=", ")
    print(f"{said[1]:.2f} elsewhere")

# %% [markdown]
# With hardly any ridge the fit says most where it was fitted, and least elsewhere. With a large one it says little of either.
#
# ## All blocks, three cuts
#
# Now every block of every student gets its new `down_proj`. What the cut took from a block is the **lost output**: what the
# teacher's MLP writes, less what the student's writes for the same input. After the solve we look at tokens that it hasn't seen,
# and ask how much of the lost output the kept neurons now say (the share of its square).
#
# **Predict before you run.** How much of the lost output is said, on unseen tokens: nearly all, half, three tenths, hardly any?
# And how much of the *nats* that the two bad cuts lost comes back? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On average 0.29 of it for the peak-to-peak student, and 0.37 for the random one. But in nats 74 % and 71 % come back.
#
# </details>


# %%
def cut_by(criterion):
    student = variant(base)
    prune_neurons(student, importance[criterion], ratio=RATIO)
    return student


@torch.no_grad()
def solve(student, read, unseen=None, count=None):
    """New `down_proj`s, in place; of each block the share that is then said.

    With a `count` only so many of the kept neurons get new weights.
    """
    shares = []
    for number, own in enumerate(student.model.layers):
        teacher, own, inputs = blocks[number].mlp, own.mlp, read[number]
        lost, x = teacher(inputs) - own(inputs), values(own, inputs)[:, :count]
        weight = own.down_proj.weight.clone()
        more = refit(x, lost, torch.zeros_like(weight[:, :count]), RIDGE).to(x)
        weight[:, :count] += more
        if unseen is not None:
            inputs = unseen[number]
            lost = teacher(inputs) - own(inputs)
            left = lost - values(own, inputs)[:, :count] @ more.T
            shares.append(1 - (left.square().sum() / lost.square().sum()).item())
        own.down_proj.weight = nn.Parameter(weight, requires_grad=False)
    return shares


shares, solved = {}, {cut: cut_by(cut) for cut in CUTS}
for cut in CUTS:
    shares[cut] = solve(solved[cut], read, read_unseen)
del solved["activation"]  # a small GPU needs its room

# %%
_, panel = plt.subplots(figsize=(10, 4.5), layout="constrained")
for cut in CUTS:
    panel.plot(range(total), shares[cut], **mark(cut))
    print(f"{cut}: {np.mean(shares[cut]):.2f} of the lost output is said")
panel.set(xlabel="block", ylabel="share that is said", ylim=(0, 1))
panel.legend(title="cut", loc="upper center", bbox_to_anchor=(0.65, 1))
show(
    "The share of the lost output that the kept neurons say on unseen tokens, by "
    "block, for three cuts. Most lie between a tenth and four tenths; at both ends "
    "they are higher, and the random cut has spikes at blocks 2 and 11."
)

# %% [markdown]
# *Of what each block lost, the share that its kept neurons can say of it, on tokens that the solve hasn't seen.*
#
# (We solve for what is *missing*, and add it to the old weights. It is the same solution: put $T - X W^{\mathrm{old}\top}$ for
# $T$, and the ridge pulls to 0.)
#
# On average the kept neurons say a fifth of what the good cut took, and three tenths of what the bad one took. (Two blocks of the
# random student stick out. We come to that.) That sounds like little. And in nats?

# %%
judges = judging_rows(tokenizer, draw=session.seed).values()
judges = [rows.input_ids[:6].to(base.device) for rows in judges]


@torch.no_grad()
def nats(model):
    """Loss in nats per token on both texts, one number per row."""
    found = []
    for ids in judges:
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        each = nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        found += each.mean(dim=1).tolist()
    return np.array(found)


def harm_of(model):
    return (nats(model) - whole).mean()


whole, harm = nats(base), {}
for cut in CUTS[1:]:
    lost, left = harm_of(cut_by(cut)), harm_of(solved[cut])
    harm[cut, "cut"], harm[cut, "solved"] = lost, left
    back = 1 - left / lost
    print(f"{cut}: {lost:.2f} nats lost, solved {left:.2f}: {back:.0%} is back")
    more = back - np.mean(shares[cut])
    here(f"More nats are back than output: {cut}.", [more])

# %% [markdown]
# Three tenths of what was lost is said (on speeches), and about three quarters of the harm are gone (on speeches and wiki). These are
# ruinous cuts. In the record the good one gets back about half on speeches. How can a part be worth so much?
#
# ## Would any part do?
#
# There are two possible reasons. Perhaps *any* part as large would do, if it comes back in the same blocks. Or it is just this part
# that the model needs. We can tell by an **intervention**: we put parts of what the peak-to-peak cut took back in another way. The
# removed neurons come back themselves, all of them, but each only so loud that the same share of the lost output is back, in each
# block. (For a share of 0.36 that is a fifth, since $1 - 0.8^2 = 0.36$.) And as a control once more with one share for all blocks.
#
# And a second one: we take the echoes away bit by bit. Only the first 100 of the kept neurons get new weights, then 300, then all.
#
# **Predict before you run.** At the same share, which of the three loses least: the echoes, the removed neurons turned down block by
# block, or the removed neurons all turned down alike? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The echoes, here: 1.04 nats are left. The removed neurons, block by block, leave 1.48, and all alike 2.66. So another part of that
# size does most of it, too, but only in the right blocks.
#
# </details>

# %%
BAD = "peak-to-peak"


def turned_down(shares):
    """The whole model, but what the bad cut removes is only so loud, by block."""
    model = variant(base)
    for number, block in enumerate(model.model.layers):
        loud = 1 - (1 - shares[number]) ** 0.5  # this share of the square is back
        weight = block.mlp.down_proj.weight.clone()
        gone = torch.ones(weight.shape[1], dtype=bool, device=weight.device)
        gone[strongest(importance[BAD][number], RATIO, 1)] = False
        weight[:, gone] *= loud
        block.mlp.down_proj.weight = nn.Parameter(weight, requires_grad=False)
    return model


echoes = {0: harm[BAD, "cut"]}
for count in (100, 300):
    student = cut_by(BAD)
    share = np.mean(solve(student, read, read_unseen, count))
    echoes[share] = harm_of(student)
third = np.mean(shares[BAD])
echoes[third] = harm[BAD, "solved"]
matched = harm_of(turned_down(shares[BAD]))
evenly = {0: harm[BAD, "cut"]}
for share in (third, 0.6, 0.8):
    evenly[share] = harm_of(turned_down([share] * total))

# %%
_, panel = plt.subplots(figsize=(9, 4.8), layout="constrained")
look = mark("activation") | {"label": "echoes: 100, 300, all kept neurons speak"}
panel.plot([*echoes], [*echoes.values()], **look)
look = mark("random") | {"label": "the removed ones, all blocks alike"}
panel.plot([*evenly], [*evenly.values()], **look)
look = mark("own choice") | {"label": "the removed ones, each block as the echoes"}
panel.plot(third, matched, markersize=12, linestyle="", **look)
panel.set(xlabel="share of the lost output that is back", xlim=(0, 1))
panel.set(ylabel="nats per token lost", ylim=(0, None))
panel.legend()
show(
    "Nats lost against the share of the lost output that is back. The curve of the "
    "echoes falls steeply, to one nat at a share of three tenths. The removed "
    "ones, turned down, are near it with each block's own share; with one share "
    "for all blocks they are far above."
)
print(f"{third:.2f} back: echoes {echoes[third]:.2f} nats lost", end=", ")
print(f"turned down as they are {matched:.2f}, all alike {evenly[third]:.2f}")
margins = [harm[BAD, "cut"] * 2 / 3 - matched, evenly[third] - matched]
here("Another part of that size undoes a third, in the right blocks.", margins)

# %% [markdown]
# *The peak-to-peak student. Orange: what the kept neurons say. Grey: the removed neurons themselves, turned down, with the same share
# in all blocks. Brown: with each block's own share, as the echoes have it.*
#
# So no special part is needed for most of it. Another part of the same size, in the same blocks, undoes well over half of the harm.
# Here the echoes do better than that, but we saw two other draws of the text on which they don't. What does matter is *in which
# blocks* something comes back: spread evenly, the same share leaves 2.66 nats, and even twice as much does hardly better than the
# echoes. (The echoes are clearest at both ends of the model.) And the fewer of the kept neurons may speak, the less comes back.
#
# ## The random cut and the first token
#
# There is a simpler echo. A neuron, a block, an attention all have a **constant**: the mean of what they write (lessons 01, 04,
# 05). For a constant you need no echo, a bias is enough. How much of the random cut's ruin is that? We give each MLP back the mean
# of what it lost: one vector at the first token of each row, and another one at all other tokens.
#
# **Predict before you run.** What gives back more to the random student: the constant at the *first* token of each row, or the
# one at all the others? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The first token's: it takes the harm from 7.34 to 3.98 nats. The others' constant alone even adds to it (8.48).
#
# </details>

# %%
at_first = torch.arange(learned.numel()) % learned.shape[1] == 0


@torch.no_grad()
def with_constants(cut, first=True, others=True):
    """A student whose MLPs also write the mean of what they lost."""
    student = cut_by(cut)
    for block, own, inputs in zip(blocks, student.model.layers, read, strict=True):
        lost = block.mlp(inputs) - own.mlp(inputs)
        one = lost[at_first].mean(0) * first
        other = lost[~at_first].mean(0) * others

        def add(mlp, inputs, output, one=one, other=other):
            return torch.cat([output[:, :1] + one, output[:, 1:] + other], dim=1)

        own.mlp.register_forward_hook(add)
    return student


ladder = {
    "nothing": harm["random", "cut"],
    "other tokens' constant": harm_of(with_constants("random", first=False)),
    "first token's constant": harm_of(with_constants("random", others=False)),
    "both constants": harm_of(with_constants("random")),
    "echoes (solved)": harm["random", "solved"],
}
nothing, _, first, both, linear = ladder.values()
margins = [nothing * 2 / 3 - first, both - linear]
here("The first token's constant undoes over a third, echoes more.", margins)
pd.Series(ladder, name="random cut, what is back").to_frame().round(2)

# %% [markdown]
# *Nats per token lost.*
#
# One vector at the first token gives back nearly half of the harm. (The others' constant is no help as long as the first token is
# wrong. We don't know why it adds to the harm.) You know this token from lesson 03: a few neurons write a huge state there, and every attention that has nothing to say
# looks at it. Lesson 03's disaster was a cut that took those. But the state is the same in every text, so kept neurons that are on at the
# first token can write it. (Nobody told the solve about first tokens. It only sees a large error there. That is where the random
# student's shares stick out.)
#
# What the solve gives back beyond the constants are echoes that follow the text. And two nats are still lost.

# %% [markdown]
# ## The rest has to be learned
#
# What a neuron said alone, nobody can say for it. It has to be learned, from text alone or from the teacher (**distillation**).
# "After lunch she went back to …": here is what teacher $p$ and student $q$ think of five words. In the text at hand, *school*
# came. There are two losses:
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_w p_w \ln \frac{p_w}{q_w} \qquad\qquad \mathrm{cross\text{-}entropy} = -\ln q_{\mathrm{school}}$$
#
# In the student's logits their gradients are $q - p$ (KL), and $q$ less 1 for the word that came. A step goes against them.
#
# **Predict before you run.** The teacher gives *bed* 0.20, the student 0.25, and it didn't come. What does a step of each loss do
# to *bed*, and which of the two pushes harder? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The student says *bed* a little too often, so the KL lowers it a little (0.05). The cross-entropy lowers it by all that the
# student gives it (0.25), as if it were wrong: every word but one is.
#
# </details>

# %%
WORDS = ["work", "school", "bed", "town", "banana"]
p = torch.tensor([0.45, 0.25, 0.20, 0.08, 0.02])
logits = torch.tensor([0.10, 0.20, 0.25, 0.05, 0.40]).log().requires_grad_()
log_q, came = logits.log_softmax(-1), WORDS.index("school")
losses = {"KL": (p * (p.log() - log_q)).sum(), "cross-entropy": -log_q[came]}
table = {"teacher p": p, "student q": log_q.exp().detach()}
table = pd.DataFrame(table, index=WORDS)
for name, loss in losses.items():
    (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
    table[f"push of {name}"] = -slope.numpy()
table.round(2)

# %% [markdown]
# Is cross-entropy unfair to *bed*? On this one text, yes: *bed* was a good guess and gets punished. On a thousand texts it comes up
# as often as it deserves, and the unfairness cancels. It cancels only if the text you train on is the text that the teacher has in
# mind. Speeches aren't. That is where the two losses part.
#
# And look at a student that agrees with the teacher, $q = p$. The KL's gradient is then 0 at every word: **a teacher who agrees
# exerts no pull.** Cross-entropy knows no teacher, so it pulls all the same. We shall need that.
#
# A model predicts at every position, so three things can go wrong in a loss. **Shift**: the logits at position $i$ belong to token
# $i + 1$, so the last position counts for nothing. **Mask**: padding isn't text, so only a real token predicted from a real one
# counts. **One mean**: a step's loss is the sum over all its positions, divided once, however the step is cut into batches.

# %% [markdown]
# ### Exercise 2 · ●●○ · 8 minutes
#
# Write `kl_sum(student_logits, teacher_logits, mask)`: logits [rows, length, vocabulary] in any dtype, mask [rows, length]. Return
# the sum of the KL over all positions that count, and their number.
#
# <details><summary>Hint</summary>
#
# `.float().log_softmax(-1)` of both, without their last position. A position counts where `mask` is 1 there and at the next one.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_kl_sum


# BEGIN SOLUTION
def kl_sum(student_logits, teacher_logits, mask):
    log_q = student_logits[:, :-1].float().log_softmax(-1)
    log_p = teacher_logits[:, :-1].float().log_softmax(-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    counted = mask[:, :-1].bool() & mask[:, 1:].bool()
    return each[counted].sum(), counted.sum()


# END SOLUTION
# BEGIN STUB
# def kl_sum(student_logits, teacher_logits, mask):
#     ...  # your code
# END STUB
check_kl_sum(kl_sum)

# %% [markdown]
# ## The ladder
#
# The rest is a training loop like any other; the library's is `distill` (deeper notebook 07a). Now all of it in one picture: nothing, constants, echoes, training. In the record the solve goes from below, and each block sees
# what the healed ones below it give (`healing.refit`). Training takes steps of 1,024 tokens of speeches, and each way to heal has
# the best of several learning rates, chosen on rows that nothing else uses.
#
# **Predict before you read.** Solve, or train, with the *same* 8,192 tokens: which of the two ends lower for the good cut, and for
# the bad one? Because …
#
# <details><summary>What the record says</summary>
#
# The solve: the good one ends at 0.31 (trained: 0.42), the bad one at 0.55 (trained:
# 1.48).
#
# </details>

# %%
STEPS = ("nothing", "constants", "echoes", "33k", "131k")
heights = {}
for cut in CUTS:
    for text in TEXTS:
        rungs = [("cut", 0), ("constants", 0), ("solved", 0)]
        rungs += [("solved + KL", 32), ("solved + KL", 128)]
        heights[cut, text] = [recorded(cut, e, text, s).mean() for e, s in rungs]
_, panels = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
for cut in CUTS:
    panels[0].plot(STEPS, heights[cut, "speeches"], **mark(cut))
    panels[1].plot(STEPS[2:], heights[cut, "speeches"][2:], **mark(cut))
    look = mark(cut) | {"label": None, "linestyle": ":"}
    panels[1].plot(STEPS[2:], heights[cut, "wiki"][2:], **look)
panels[0].axhline(GUESSING - uncut, **mark("guessing"))
panels[0].set(ylabel="nats per token lost", title="speeches", ylim=(0, None))
panels[1].set(title="the last three rungs (dotted: wiki)", ylim=(0, None))
panels[0].legend(title="cut")
show(
    "Left: nats lost on speeches by three students, with nothing back, constants, "
    "echoes, and trained on 33 and 131 thousand tokens; the random one falls from "
    "above guessing to below one. Right: the last three rungs, with wiki dotted, "
    "about half a nat higher or more."
)

# %% [markdown]
# *What each student still loses, rung by rung: with nothing back, with constants (two per block), solved over 8,192 tokens, and
# then trained as well. The means of the seeds that the record has.*
#
# That is the slide. Constants help where the first token was hit. On speeches echoes bring the bad cuts near where the good one begins. What is
# left then needs tokens, and on wiki that is much. And from the echoes on, the order of the three is the same, on both texts. A
# solve heals much of a careless cut, but not all of it.


# %%
def told(cut, edit, steps, text="speeches"):
    found = recorded(cut, edit, text, steps)
    print(f"{cut}, {edit}, {steps} steps, {text}: ", end="")
    print(", ".join(f"{lost:.2f}" for lost in found))
    return found


leads = []
for cut in CUTS:
    pairs = zip(told(cut, "KL", 8), told(cut, "solved", 0), strict=False)
    leads += [trained - solved for trained, solved in pairs]
claim("With as many tokens the solve ends lower, in each order.", leads)
alone, both = told("activation", "KL", 32), told("activation", "solved + KL", 32)
told("activation", "cut", 0, "wiki")
claim("The good cut, solved first, is still ahead at 33k.", alone - both)
of_text = told("activation", "cross-entropy", 32)
claim("Text alone is ahead on speeches.", alone - of_text)
ways = ("cross-entropy", "KL")
text_alone, teacher = (told("activation", way, 32, "wiki") for way in ways)
claim("The teacher is ahead on wiki.", text_alone - teacher)

# %% [markdown]
# *Several numbers are several orders of the text: a seed chooses the rows and their order. 8 steps read as many tokens as the
# solve.*
#
# With the same tokens the solve does better on speeches than one pass of training, in each order that was tried. (One order isn't
# enough to say so: what the badly cut student loses after 8 steps depends on it.) Trained on 33 thousand tokens, the good student that was
# solved first is still ahead, in all three. So a solve is a **head start**, not a replacement.
#
# And what is the teacher worth? Text alone teaches *speeches*, even better than the whole model knows them: below zero, nothing is
# lost. That is a fit more than a healing, because on wiki it gives back less than the teacher does. Wiki does heal on speeches
# alone (it began at 1.31), but more slowly.
#
# ## What no MLP can carry
#
# A test of lesson 05. There, eight attentions were left out, and the harm grew with the text before the judged tokens, because a
# fixed vector can't carry what was said before. An MLP sees one token at a time. Of what was said before it knows only what the other
# attentions have brought. So a solve of the MLPs should give back a part, but not what grows with the text before.

# %%
after = {}
for edit in ("cut", "solved"):
    for before in (0, 448):
        rows = [f"{text}, {before} before" for text in TEXTS]
        costs = [recorded("attentions", edit, each) for each in rows]
        after[edit, before] = np.mean(costs)
    print(f"eight attentions, {edit}: {after[edit, 0]:.2f} nats", end=", ")
    print(f"{after[edit, 448]:.2f} with 448 tokens before")

# %% [markdown]
# So it is. Solved over the same text as before, the harm falls from 0.24 to 0.10. But with the text before it still rises by nearly
# as much as it did: from 0.10 to 0.23. What was said before, no MLP could say.
#
# ## Another task
#
# Nobody's users read State of the Union addresses all day. **LAMBADA** gives a passage of a novel without its last word, which only
# the whole passage tells. It is one of lm-eval's tasks, and `evaluate` is lm-eval: its task, its prompt, its scoring. Beside the
# share of right words it gives the perplexity of the last word. (Our whole model is SmolLM2-135M-Instruct, and its weights come
# out of a 4-bit file. LAMBADA's 30 % belong to that.)
#
# **Predict before you run.** The good cut finds 10 % of a thousand last words, the whole model 30 %. Solved, the student has half of
# its nats on speeches back. How many of a hundred does it find now? Because …
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
    print(f"record, good cut, {edit}: {one.nats:.1%} of the last words", end=", ")
    print(f"{gain:+.1f} points to the cut ({low:+.1f} to {high:+.1f})")

# %%
PASSAGES = 24
students = {"whole": base, "cut": cut_by(BAD), "solved": solved[BAD]}
answers, last = {}, {}
for name, model in students.items():
    answers[name] = evaluate(model, tokenizer, "lambada_openai", limit=PASSAGES)
    each = answers[name].attrs["answers"].table
    last[name] = -each[each.metric == "perplexity"].value.to_numpy()
    right = answers[name].value[0] * PASSAGES
    print(f"{name}: {right:.0f} of {PASSAGES} last words", end=", ")
    print(f"{last[name].mean():.1f} nats per last word")
gain, _, low, high = ratio_interval(last["cut"] - last["solved"], np.ones(PASSAGES))
print(f"the solve gives back {gain:.1f} nats ({low:.1f} to {high:.1f})")
here("The solve gives nats on last words back, by the interval.", [low])

# %% [markdown]
# *Intervals are paired by passages.*
#
# In these passages the badly cut student finds no last word, cut or solved. Its nats tell more: they show that the solve brings much
# back, and that much is missing.
#
# In the record the good cut finds 10 % of a thousand last words, and solved it isn't shown to find more. After the longest training on speeches it
# finds 14 %. On speeches nearly all of its loss was healed by then. On last words it wasn't. So measure the task that you need, and
# not the text that you healed with.
#
# ## Does it teach?
#
# A loss that falls proves nothing: beside a living cross-entropy, a KL without a gradient falls too. Can you test a loss before you
# spend a night on it?

# %% [markdown]
# ### Exercise 3 · ●●● · 17 minutes
#
# Write `teaches(loss)`. `loss(student_logits, teacher_logits, targets)` takes logits [tokens, vocabulary] of any size and the words
# that came [tokens], and returns one number. It may or may not contain a cross-entropy. Return True if its **teacher's part** moves
# a student toward the teacher, otherwise False. (Use what you know of a teacher who agrees.)
#
# <details><summary>Hint</summary>
#
# Make random logits and look at gradients (`torch.autograd.grad`; a value without `requires_grad` has none). Take the gradient
# with the teacher, and with a teacher who says exactly what the student says. Subtract. Then take a small step against what is
# left: is the KL smaller?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_teaches


# BEGIN SOLUTION
def teaches(loss):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, 11, generator=generator)
    targets = torch.randint(11, (64,), generator=generator)

    def gradient(says):
        logits = student.clone().requires_grad_()
        value = loss(logits, says, targets)
        alive = value.requires_grad
        return torch.autograd.grad(value, logits)[0] if alive else 0 * student

    def distance(logits):
        return kl_sum(logits[None], teacher[None], torch.ones(1, 64))[0]

    # What doesn't depend on the teacher cancels: one who agrees exerts no pull.
    pull = gradient(teacher) - gradient(student)
    if pull.norm() < 1e-6:
        return False
    step = 0.01 * pull / pull.norm()
    return bool(distance(student - step) < distance(student))


# END SOLUTION
# BEGIN STUB
# def teaches(loss):
#     ...  # your code
# END STUB
check_teaches(teaches)

# %% [markdown]
# ## For a purpose
#
# Somebody wants the small model for novels, so what counts is LAMBADA's last words. No novel is at hand, only three kinds of text:
# speeches, articles of Wikipedia (`wiki`), and short children's stories. And nobody has time to train. So there are two places where
# text decides: the rows that **score** the neurons (activation, 16 rows of 64 tokens), and the rows that **solve** (12 rows of 256).
# This lesson took speeches for both.

# %%
from course_utils.lessons.exercises.lesson_07 import PurposeExam

del solved, students, student  # a small GPU needs their room


def drawn(wanted, split, length):
    """So many rows of each kind of text."""
    found = []
    for kind, count in wanted.items():
        some = {"domain": kind, "tokens": 3072, "length": length}
        rows = token_blocks(tokenizer, split, **some)
        found.append(rows.sample(count, seed=session.seed).input_ids)
    return torch.cat(found)


def built(plan):
    """A student that lost 40 % by activation, and was solved."""
    ids = drawn(plan[0], "calibration", 64)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    student = variant(base)
    scores = neuron_importance(student, "activation", batches=[batch])
    prune_neurons(student, scores, ratio=RATIO)
    solve(student, what_mlps_read(drawn(plan[1], "distillation", 256)))
    return student


def practice(plan):
    """What a student loses per last word, and per token of speeches and wiki."""
    student = built(plan)
    found = evaluate(student, tokenizer, "lambada_openai", limit=PASSAGES)
    last_word = np.log(found.value[1] / answers["whole"].value[1])
    return last_word, harm_of(student)


exam = PurposeExam(built, tokenizer, practised=answers["whole"])

# %% [markdown]
# ### Exercise 4 · ●●● · 25 minutes
#
# Give a `plan`: which rows score, and which rows solve, such as `({"speeches": 8, "wiki": 8}, {"speeches": 12})`. Kinds are
# `"speeches"`, `"wiki"` and `"stories"`; at most 16 rows score and 12 solve. The exam uses new passages. There
# your student must beat the one with speeches for both by 1.7 nats per last word. And on speeches and wiki together it must not
# lose more than that one, because novels aren't all that is read. The exam judges three times only. Before that,
# `practice(plan)` tells both on other passages and rows, in half a minute. (Few passages are noisy.)
#
# <details><summary>Hint</summary>
#
# An echo holds for the kind of text that it was fitted to. And a neuron that is silent in speeches may be loud in a novel: then no
# solve brings it back. Change one of the two places alone, and see which of them matters more.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_plan

# BEGIN SOLUTION
plan = (
    {"speeches": 4, "wiki": 4, "stories": 8},
    {"speeches": 4, "wiki": 4, "stories": 4},
)
# END SOLUTION
# BEGIN STUB
# plan = ...  # (rows that score, rows that solve)
# END STUB
check_plan(plan, exam)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# The kept neurons can say three tenths of what a cut took. The solve brings back three quarters of the nats. What follows?
#
# - [ ] That the kept neurons say just what the model needs, and another part would do little.
#   > That was tested: the removed neurons, turned down to the same share in each block, bring back about as much.
# - [x] That harm isn't in proportion: a part in the right blocks can undo most of it.
#   > The echoes show it, and so do the removed neurons turned down block by block. Spread evenly, as much did far less.
# - [ ] That one of the two was measured wrongly, since shares must agree.
#   > One is a share of squares of an output, the other of a loss. Nothing says that they agree.

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
# - What a cut takes is partly still there: a **constant**, and **echoes** in the kept neurons. You can measure them before you heal,
#   on tokens that you don't fit.
# - A linear solve writes them into the weights that are left. It needs a ridge, a few thousand tokens, and no gradient.
# - Harm isn't in proportion: after a ruinous cut three tenths of the lost output, in the right blocks, were three quarters of the
#   nats.
# - Then train. A loss counts once per position, shifted and masked. Test that it teaches.
# - Cut well all the same. Measure the task that you need, on text that you didn't heal with.
#
# **On Monday:** before you train a cut model, solve. And measure it on the task, not on the text that it learned from.
#
# **The story so far:** part of the loss comes back cheaply. **Next:** look inside by touching. Lesson 08 asks where a bias comes
# from.
#
# ## Go deeper
#
# [Will it fit, and survive the night?](deeper/07a_will_it_fit.ipynb): memory counted beforehand, logits in chunks, LoRA, a run that
# goes on
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
# - Paperno et al. 2016, *The LAMBADA dataset*, arXiv 1606.06031
