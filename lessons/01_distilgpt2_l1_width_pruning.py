# ---
# jupyter:
#   course:
#     title: Width pruning with the L1 norm
#     prerequisites: Python, a little PyTorch, a rough idea of a transformer block; nothing about pruning
#     assets: [speeches, texts]
#     concepts: [structured pruning, neuron, L1 norm, pruned equals masked, nats a token, guessing, random cuts, hook, coherence, kept mean]
# ---

# %% [markdown]
# ## The question
#
# A language model has thousands of neurons. Do small weights tell which ones can go?
#
# **Answer.** Not by themselves. Cut by the L1 norm, this model is worse than after any of 19 random cuts, because what
# is removed pushes one way. Keep that push in the bias, and the same cut beats them all.

# %% [markdown] tags=["notes"]
# **The point:** a cut can be proved right, and a criterion has to win against chance. Then the turn: the criterion was not
# the problem, the way of cutting was.
#
# **Usual questions:** "Why not set the weights to zero?" Nothing gets smaller. "Is 20 % of the neurons 20 % of the model?" No;
# let the room compute it.
#
# **Wrong turns:** taking `Conv1D` for a convolution; asking for a matrix's shape where its class decides; calling a criterion
# good because its loss rose only a little; keeping the mean of the neurons that stay.
#
# **At the end you have** a smaller GPT-2 that reloads as an ordinary one, a proof that the cut is exact, and a cut that beats
# nineteen random ones.

# %% tags=["install"]

# %%
import copy
import math
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import mark, read_record, show, start, style

session = start("01")
style()
record = read_record("keep_the_mean")  # of the embedded profile's GPT-2

# %%
main = record.query("draw == 0 and dtype == 'float32' and ratio == 0.2")
_, panels = plt.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
for panel, text in zip(panels, ("speeches", "wiki"), strict=True):
    for name in ("random", "L1", "activation"):
        arm = main[(main.text == text) & (main.criterion == name)]
        heights = arm.pivot(index="edit", columns="seed", values="damage")
        lines = panel.plot([0, 1], heights.loc[["cut", "mean kept"]], **mark(name))
        plt.setp(lines[1:], label="_")  # one entry in the legend
        plt.setp(lines, linewidth=0.4 if name == "random" else 2.5)
    panel.set_xticks([0, 1], ["neurons cut", "their mean kept"])
    panel.set(title=text, xlim=(-0.3, 1.3))
panels[0].set(ylabel="damage (nats a token)", ylim=0)
panels[1].legend()
show(
    "Two panels, speeches and wiki. Damage of a cut of 20 percent: left as it is, "
    "right with the removed neurons' mean kept. L1 starts above 19 grey dots of "
    "random cuts and ends below them all; activation ends lowest."
)

# %% [markdown]
# *20 % of the neurons go; damage is what that adds to the loss. Each grey dot is a blind choice.*
#
# ## What we are going to cut

# %%
diagrams.gpt2_block(neuron=2)
show(
    "A GPT-2 block with its MLP opened up: c_fc leads to the neurons, GELU "
    "follows, c_proj leads back. One neuron is marked: a column of c_fc, an "
    "entry of its bias, and a row of c_proj."
)

# %% [markdown]
# In each block of a GPT-2 the MLP computes
#
# $$\mathrm{MLP}(x) = \mathrm{gelu}(x\,W_{fc} + b_{fc})\,W_{proj} + b_{proj}$$
#
# A **neuron** is one column of `c_fc`, one entry of its bias, and one row of `c_proj`. Take all three out and no other
# shape changes. `c_proj.bias` belongs to no neuron. It stays.
#
# This is **structured pruning**, here of the MLPs' width (*width pruning*): whole parts go, so the matrices get smaller and any
# program can run what is left. Scattered zeros save nothing without special hardware. *Quantization*, fewer bits for each
# weight, is another way; the two add up.
#
# GPT-2's `Conv1D` convolves nothing. It is a linear layer that stores its weight as **[in, out]**, where `nn.Linear` stores
# [out, in].

# %% [markdown]
# ### Exercise 1 · ●○○ · 4 minutes
#
# On which axis is each tensor cut when neurons go? Fill in 0, 1 or `"none"`. OPT's MLP is the same as GPT-2's, with two
# `nn.Linear`: `fc2(act(fc1(x)))`.
#
# <details><summary>Hint</summary>
#
# Write down each shape first. One of its two sizes is the number of neurons.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_01 import check_axes

# BEGIN SOLUTION
axes = {
    "GPT-2 c_fc.weight": 1,  # [inputs, neurons]
    "GPT-2 c_fc.bias": 0,  # [neurons]
    "GPT-2 c_proj.weight": 0,  # [neurons, outputs]
    "GPT-2 c_proj.bias": "none",  # [outputs]
    "OPT fc1.weight": 0,  # [neurons, inputs]
    "OPT fc2.weight": 1,  # [outputs, neurons]
}
# END SOLUTION
# BEGIN STUB
# axes = {
#     "GPT-2 c_fc.weight": ...,
#     "GPT-2 c_fc.bias": ...,
#     "GPT-2 c_proj.weight": ...,
#     "GPT-2 c_proj.bias": ...,
#     "OPT fc1.weight": ...,
#     "OPT fc2.weight": ...,
# }
# END STUB
check_axes(axes)

# %% [markdown]
# ## Score, keep, cut
#
# The **L1 norm** of a neuron is the sum of the magnitudes of the weights that lead into it,
# $\mathrm{L1}_j = \sum_i |W_{fc}[i, j]|$. The idea: a neuron with small weights hardly reacts to anything, so it won't
# be missed.
#
# How do we know that a cut is right? `silence` sets a neuron's row of `c_proj` to zero: same shape, no say. The small MLP must
# give what the silenced one gives. **Pruned equals masked** is the proof of every cut in this course.
#
# The next cell has a toy with 5 inputs and 5 neurons; *harm* is how far its output moves. **Predict before you run.** Its neuron 1 has the
# smallest L1 norm. Is it also the one that is missed least?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# No: it is missed most. Its row of `c_proj` is the loudest, and L1 never looks there. The toy was made to show that this can
# happen.
#
# </details>

# %%
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

incoming = [  # c_fc.weight: a column is a neuron
    [2, 0, -2, 1, 3],
    [-1, 1, 0, 0, -2],
    [3, 0, 2, -1, 1],
    [0, -1, -3, 1, 2],
    [1, 0, 1, 0, -1],
]
outgoing = [  # c_proj.weight: a row is a neuron
    [1, 0, -1, 0, 1],
    [3, -3, 3, 2, -3],
    [0, 1, 1, -1, 0],
    [1, 1, 0, 0, -1],
    [-1, 0, 1, 1, 0],
]
toy = GPT2MLP(5, GPT2Config(n_embd=5, n_head=1)).eval()  # 5 inputs, 5 neurons
with torch.no_grad():
    toy.c_fc.weight.copy_(torch.tensor(incoming))
    toy.c_fc.bias.copy_(torch.tensor([0, 1, 0, -1, 1]))
    toy.c_proj.weight.copy_(torch.tensor(outgoing))
    toy.c_proj.bias.copy_(torch.tensor([1, 0, 0, -1, 0]))

x = torch.randn(3, 5)  # three tokens
torch.testing.assert_close(toy.c_fc(x), x @ toy.c_fc.weight + toy.c_fc.bias)
print("neuron 1: c_fc column", toy.c_fc.weight[:, 1].int().tolist(), end=", ")
print("c_proj row", toy.c_proj.weight[1].int().tolist())


# %%
def l1_scores(weight):
    """One score a neuron, from c_fc's weight [inputs, neurons]."""
    return weight.abs().sum(dim=0)


def strongest(scores, ratio):
    """The neurons that stay when `ratio` of them go, in their old order."""
    kept = len(scores) - int(ratio * len(scores))
    return scores.topk(kept).indices.sort().values


@torch.no_grad()
def silence(mlp, neurons):
    """Silence neurons of a GPT-2 MLP without changing its shape, in place."""
    mlp.c_proj.weight[neurons] = 0


keep = strongest(l1_scores(toy.c_fc.weight), ratio=0.4)
gone = [neuron for neuron in range(5) if neuron not in keep]
masked = copy.deepcopy(toy)
silence(masked, gone)

fc, proj = toy.c_fc, toy.c_proj  # the small MLP, piece by piece
inside = toy.act(x @ fc.weight[:, keep] + fc.bias[keep])
small = inside @ proj.weight[keep] + proj.bias
torch.testing.assert_close(small, masked(x))
print(f"neurons {gone} cut")
print(f"pruned against masked: {(small - masked(x)).abs().max():.1e}")
print(f"pruned against whole:  {(small - toy(x)).abs().max():.1e}")

many, harm = torch.randn(10_000, 5), []
for neuron in range(5):
    without = copy.deepcopy(toy)
    silence(without, [neuron])
    harm.append((without(many) - toy(many)).norm(dim=1).mean().item())
scores = l1_scores(toy.c_fc.weight).tolist()
weakest = scores.index(min(scores))
ahead = [harm[weakest] - other for n, other in enumerate(harm) if n != weakest]
claim("The toy's neuron with the smallest L1 norm is missed most.", ahead)
pd.DataFrame({"L1 score": scores, "harm": harm}).rename_axis("neuron").round(2)

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# Write the whole method for a real GPT-2. `prune_width(model, ratio)` cuts every MLP by the L1 norm, in place, and returns
# the model. Sizes are noted beside the weights, too: `nf` (outputs) and `nx` (inputs) of each `Conv1D`, and `n_inner` of the
# configuration. The weights may belong to another model as well: put new parameters in, don't write into old ones.
#
# <details><summary>Hint</summary>
#
# `for block in model.transformer.h:` gives you `block.mlp` with `c_fc` and `c_proj`. A new parameter is
# `nn.Parameter(weight[:, keep].detach())`. Which of the four tensors isn't cut?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_01 import check_prune_width
from course_utils.models import load_model, variant

base, tokenizer = load_model("gpt2")  # of the course, or distilGPT2


# BEGIN SOLUTION
def prune_width(model, ratio):
    for block in model.transformer.h:
        fc, proj = block.mlp.c_fc, block.mlp.c_proj
        keep = strongest(l1_scores(fc.weight), ratio)
        fc.weight = nn.Parameter(fc.weight[:, keep].detach())
        fc.bias = nn.Parameter(fc.bias[keep].detach())
        proj.weight = nn.Parameter(proj.weight[keep].detach())
        fc.nf = proj.nx = len(keep)
    model.config.n_inner = len(keep)
    return model


# END SOLUTION
# BEGIN STUB
# def prune_width(model, ratio):
#     ...  # your code
# END STUB
check_prune_width(prune_width, base)

# %% [markdown]
# ## A real model
#
# Without a GPU the course's own small GPT-2, taught by speeches, stands in for distilGPT2. `course_utils` has the method for every family
# of models. `variant` makes a second model that shares all weights with the first; cutting leaves the first alone. All blocks stay equally
# wide, as `n_inner` says, so plain transformers reloads the model.
#
# **Predict before you run.** We cut 20 % of distilGPT2's neurons. Which share of its *parameters* goes: 20 %, 13 % or 7 %?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 6.91 % (the report is the small model's): the MLPs are a third of distilGPT2, and the token embedding is nearly half. No
# weights are needed to find out: a model on the `meta` device has shapes and no memory.
#
# </details>

# %%
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from course_utils.pruning import neuron_importance, prune_neurons, save_pruned

blocks = base.transformer.h
l1 = neuron_importance(base, "l1")
for block, scores in zip(blocks, l1, strict=True):
    torch.testing.assert_close(l1_scores(block.mlp.c_fc.weight), scores)
pruned = variant(base)
print(prune_neurons(pruned, l1, ratio=0.2))

tokens = tokenizer("The Union is strong.", return_tensors="pt").input_ids
tokens = tokens.to(base.device)
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    save_pruned(pruned, tokenizer, folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder).to(base.device).eval()
    assert torch.equal(reloaded(tokens).logits, pruned(tokens).logits)
print(f"\nreloaded with n_inner = {reloaded.config.n_inner}: equal, bit for bit")

with torch.device("meta"):
    distilgpt2 = GPT2LMHeadModel(GPT2Config(n_layer=6))  # other values: defaults
before = distilgpt2.num_parameters()
any_scores = [torch.arange(3072.0) for _ in range(6)]
prune_neurons(distilgpt2, any_scores, ratio=0.2)
lost = before - distilgpt2.num_parameters()
assert lost == 6 * 614 * (768 + 1 + 768)  # blocks, neurons, in, bias, out
print(f"distilGPT2 loses {lost:,} of {before:,} parameters: {lost / before:.2%}")

# %% [markdown]
# ## What a cut costs
#
# The loss is $-\log p$ of the token that came, on average: **nats a token**. Perplexity is $e$ to the loss. What a cut adds
# to the loss is its *damage*. A model to which all tokens are alike is *guessing*.
#
# We judge on speeches of years that the model never saw, and on Wikipedia. **What chooses must not judge**: other speeches
# choose neurons. And a cut that knows nothing is best of 20 once in twenty times, so a criterion has to beat all of **19
# random cuts**.

# %%
from course_utils.measuring import perplexity
from course_utils.text import judging_rows, token_blocks

texts = judging_rows(tokenizer, draw=session.seed)  # 48 rows of 64 tokens each
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
calibration = pool.sample(128, seed=session.seed)


@torch.no_grad()
def loss(model, rows):
    """Nats a token; a row's first token is given, the others are predicted."""
    nats = []
    for ids in rows.input_ids.to(model.device).split(16):
        guesses = model(ids).logits[:, :-1].float().log_softmax(dim=-1)
        nats.append(-guesses.gather(-1, ids[:, 1:, None]))
    return torch.cat(nats).mean().item()


def damage(arms, edit, **options):
    """What an edit costs, in nats a token: a row for each arm and text."""
    rows = []
    for (criterion, seed), scores in tqdm(arms.items(), desc="arms"):
        model = variant(base)
        edit(model, scores, **options)
        for text, judged in texts.items():
            rows.append((criterion, seed, text, loss(model, judged) - whole[text]))
    return pd.DataFrame(rows, columns=["criterion", "seed", "text", "damage"])


whole = {text: loss(base, rows) for text, rows in texts.items()}
for text, rows in texts.items():
    assert math.isclose(whole[text], perplexity(base, rows).nll, rel_tol=1e-4)
    print(f"{text:<9} {whole[text]:.2f} nats", end=", ")
    print(f"perplexity {math.exp(whole[text]):.0f}")
print(f"guessing  {math.log(base.config.vocab_size):.2f} nats")

# %% [markdown]
# A second criterion, `activation`, looks at the model at work: the root mean square of a neuron's activation $a_{tj}$ over tokens $t$,
# times the length of its row, $\mathrm{rms}_t(a_{tj}) \cdot \lVert W_{proj}[j] \rVert$. A **hook** is a function that PyTorch calls
# whenever a module runs; ours looks at what `c_proj` reads. We note the mean as well, for later.

# %%
from course_utils.pruning import neuron_means

batches = calibration.batches(16)
seen = [[] for _ in blocks]


def note(values):
    return lambda module, inputs: values.append(inputs[0].flatten(0, -2))


hooks = []
for block, values in zip(blocks, seen, strict=True):
    proj = block.mlp.c_proj
    hooks.append(proj.register_forward_pre_hook(note(values)))
loss(base, calibration)
for hook in hooks:
    hook.remove()

means, activation = [], []
for block, values in zip(blocks, seen, strict=True):
    values = torch.cat(values)  # [tokens, neurons]
    means.append(values.mean(dim=0))
    rms = values.square().mean(dim=0).sqrt()
    activation.append(rms * block.mlp.c_proj.weight.detach().norm(dim=1))
torch.testing.assert_close(means, neuron_means(base, batches), atol=1e-4, rtol=1e-3)
library = neuron_importance(base, "activation", batches=batches)
torch.testing.assert_close(activation, library, atol=1e-4, rtol=1e-3)
arms = {("L1", 0): l1, ("activation", 0): activation}
for seed in range(19 * session.seed, 19 * session.seed + 9):
    arms["random", seed] = neuron_importance(base, "random", seed=seed)
print(f"scored on {calibration.num_tokens:,} tokens; the library's scores agree")

# %% [markdown]
# **Predict before you run.** L1 beats none of 19 random cuts. And `activation`?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# L1 beats 0 of 19 on both texts: weights alone chose worse than dice. `activation` looks at what each neuron really
# writes, and still beats few.
#
# </details>
#
# You measure 9 of the random cuts; the record, shipped with the course, has all 19. *here: shown* means that your own numbers bear a
# sentence out.


# %%
def recorded(edit, draw=0, dtype="float32"):
    """The record's rows for an edit of 20 %."""
    chosen = (record.edit == edit) & (record.ratio == 0.2)
    return record[chosen & (record.draw == draw) & (record.dtype == dtype)]


def beaten(frame, name, text):
    """How many of the random cuts a criterion beats, and how many there are."""
    damages = frame[frame.text == text].set_index("criterion").damage
    return (damages["random"] > damages[name]).sum(), len(damages["random"])


def compare(measured, edit):
    """Print damage and random cuts beaten, as measured here and in the record."""
    frames = {"here": measured, "record": recorded(edit)}
    for name in ("L1", "activation"):
        for text in texts:
            print(f"{name:<10} {text:<8}", end="")
            for place, frame in frames.items():
                own = frame[(frame.criterion == name) & (frame.text == text)]
                number, of = beaten(frame, name, text)
                print(f"  {place} {own.damage.item():.2f} nats", end=", ")
                print(f"beats {number} of {of}", end="")
            print()


def lead(frame, name):
    """By how many nats a criterion is ahead of each random cut, on both texts."""
    by = frame.set_index(["criterion", "text"]).damage.sort_index()
    leads = [by["random", text] - by[name, text].item() for text in texts]
    return pd.concat(leads)


cut = damage(arms, prune_neurons, ratio=0.2)
compare(cut, "cut")
here("Cut by L1, the model is worse than after any random cut.", -lead(cut, "L1"))
most = [beaten(cut, "activation", text)[0] for text in texts]
claim("`activation` beats fewer than half of them.", [4.5 - n for n in most])

# %% [markdown]
# ## Why?
#
# With a neuron $j$ goes a push: on average $\bar a_j W_{proj}[j]$ for each token. One push is small, but two hundred that point
# the same way add up. **Coherence** compares the length of their sum with what independent directions would give:
#
# $$\mathrm{coherence} = \frac{\lVert \sum_j \bar a_j W_{proj}[j] \rVert}{\sqrt{\sum_j \lVert \bar a_j W_{proj}[j] \rVert^2}}$$
#
# It is about 1 for $n$ independent pushes, and $\sqrt n$ for equal ones.


# %%
def coherence(mean, proj, gone):
    pushes = mean[gone, None] * proj[gone]  # [removed, hidden]
    return (pushes.sum(dim=0).norm() / pushes.square().sum().sqrt()).item()


coherences = []
for (criterion, seed), scores in arms.items():
    for number, block in enumerate(blocks):
        gone = torch.ones_like(scores[number], dtype=torch.bool)
        gone[strongest(scores[number], 0.2)] = False
        proj = block.mlp.c_proj.weight.detach()
        value = coherence(means[number], proj, gone)
        coherences.append((criterion, seed, number, value))
names = ["criterion", "seed", "block", "value"]
coherences = pd.DataFrame(coherences, columns=names)
highest = coherences.groupby(["criterion", "block"]).value.max().unstack(0)
above = (highest["L1"] > highest["random"]).sum()
print(f"L1 is above all random cuts in {above} of {len(blocks)} blocks")
print(f"L1 at most {highest['L1'].max():.1f}, random {highest['random'].max():.1f}")
most = highest["L1"] - highest["random"]
here("What L1 removes pushes one way, in every block.", most)

# %%
_, panel = plt.subplots(figsize=(9, 4.5), layout="constrained")
for name in ("random", "L1", "activation"):
    heights = coherences[coherences.criterion == name]
    panel.plot("block", "value", data=heights, linestyle="none", **mark(name))
panel.axhline(1, linestyle=":", color=mark("whole")["color"])
panel.set(xlabel="block", ylabel="coherence (1: independent)", ylim=(0, None))
panel.legend()
show(
    "Coherence of the removed neurons' mean pushes in each block: random cuts lie "
    "near 1; L1 and activation lie above them in every block, far above in one."
)

# %% [markdown]
# What both criteria remove leans one way. Is that the harm? An intervention can tell. We leave all neurons where they are and take
# **the mean push alone** away, out of `c_proj.bias`.
#
# **Predict before you run.** All neurons stay, and a constant goes. How much of L1's damage does that alone do? How much of a random cut's?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On speeches the constant alone does 0.71 of L1's damage, and 0.39 of a random cut's. On Wikipedia it is alike.
#
# </details>


# %%
@torch.no_grad()
def remove_the_mean(model, scores, ratio):
    """Take away what the weakest neurons write on average; all neurons stay."""
    for block, mean, score in zip(model.transformer.h, means, scores, strict=True):
        gone = torch.ones_like(score, dtype=torch.bool)
        gone[strongest(score, ratio)] = False
        proj = block.mlp.c_proj
        push = mean[gone] @ proj.weight[gone]  # [hidden]
        proj.bias = nn.Parameter(proj.bias - push)


few = dict(list(arms.items())[:5])  # three random cuts are enough here
mean_alone = damage(few, remove_the_mean, ratio=0.2)
pairs = mean_alone.merge(cut, on=["criterion", "seed", "text"])
both = pairs.groupby(["criterion", "text"])[["damage_y", "damage_x"]].median()
both.columns = ["neurons cut", "mean alone"]
both.index.names = [None, None]
both["share"] = both["mean alone"] / both["neurons cut"]
more = both.share["L1"] - both.share["random"]
here("The constant does more of L1's damage than of a random cut's.", more)
half = [*(both.share["L1"] - 0.5), *(0.5 - both.share["random"])]
claim("It does over half of L1's damage, under half of a random cut's.", half)
both.round(2)

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# Now the other way round: cut the neurons, and keep their mean. `keep_the_mean(model, scores, means, ratio)` gets a tensor
# of scores and one of means for each block. The `int(ratio * width)` lowest scores go, what their neurons write on average
# goes into `c_proj.bias`, and the model is returned. The old bias may belong to another model as well: don't write into it.
#
# <details><summary>Hint</summary>
#
# Work the constant out while the rows of `c_proj` are still there. `prune_neurons(model, scores, ratio=ratio)` may do the
# cutting.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_01 import check_keep_the_mean


# BEGIN SOLUTION
def keep_the_mean(model, scores, means, ratio):
    for block, score, mean in zip(model.transformer.h, scores, means, strict=True):
        proj, lowest = block.mlp.c_proj, mean.clone()
        lowest[strongest(score, ratio)] = 0  # only the removed ones speak
        constant = (lowest @ proj.weight).detach()
        proj.bias = nn.Parameter(proj.bias.detach() + constant)
    prune_neurons(model, scores, ratio=ratio)
    return model


# END SOLUTION
# BEGIN STUB
# def keep_the_mean(model, scores, means, ratio):
#     ...  # your code
# END STUB
check_keep_the_mean(keep_the_mean)

# %% [markdown]
# ## The same cut, its mean kept
#
# `prune_neurons` does it with `means=`; the literature calls it *bias compensation* (FLAP). A fair trial helps everybody: the
# random cuts keep their means, too.
#
# **Predict before you run.** Same neurons, same sizes, means kept in all arms. Which is ahead now, L1 or `activation`?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# All 19, on both texts, and so does `activation`, which is ahead of L1. Both did know something. A constant hid it.
#
# </details>
#
# Luck? The record has three draws (of rows, random cuts, calibration text) in two number formats.

# %%
kept = damage(arms, prune_neurons, ratio=0.2, means=means)
compare(kept, "mean kept")
here("With its mean kept, L1 beats each random cut.", lead(kept, "L1"))
claim("With its mean kept, `activation` beats each, too.", lead(kept, "activation"))
by = kept.set_index(["criterion", "text"]).damage
ahead = by["L1"] - by["activation"]
claim("With their means kept, `activation` is ahead of L1.", ahead)

counts = {}
for draw in range(3):
    for dtype in ("float32", "bfloat16"):
        row = counts[f"draw {draw}, {dtype}"] = {}
        pairs = ("L1", "cut"), ("L1", "mean kept"), ("activation", "mean kept")
        for name, edit in pairs:
            for text in texts:
                frame = recorded(edit, draw, dtype)
                row[f"{name}, {edit}: {text}"] = beaten(frame, name, text)[0]
counts = pd.DataFrame(counts).T
none, every = counts.filter(like="cut"), counts.filter(like="kept")
sides = [0.5 - none.max(axis=None), every.min(axis=None) - 18.5]
claim("On record L1 beats none as cut; both beat all with their means kept.", sides)
print("Random cuts beaten, of 19")
counts

# %% [markdown]
# A criterion isn't good or bad by itself. It is good *for a way of cutting*.
#
# ## Spend the budget again
#
# All blocks lost the same share. Must they? `choose` gives the damage on speeches that are there to choose by; the check judges on
# rows that nothing else has used.
#
# Plain transformers can't build blocks of unequal widths, and refuses such a folder. So `save_pruned` puts the code for them into it:
# load it with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.

# %%
from course_utils.text import further_rows

choosing = pool.sample(152, seed=session.seed)[128:]
whole_choosing = loss(base, choosing)
exam = further_rows(tokenizer)
whole_exam = {text: loss(base, rows) for text, rows in exam.items()}


def spent(shares):
    """A model whose block i lost shares[i] of its neurons, their means kept."""
    model, scores, mean = variant(base), list(activation), list(means)
    for block, share in enumerate(shares):
        prune_neurons(model, scores, ratio=share, means=mean, layers=[block])
        stay = strongest(scores[block], share)
        scores[block], mean[block] = scores[block][stay], mean[block][stay]
    return model


def choose(shares):
    """Damage in nats a token on the rows to choose by."""
    return loss(spent(shares), choosing) - whole_choosing


def judge(shares):
    """Damage in nats a token on each text of the exam."""
    model = spent(shares)
    return {text: loss(model, exam[text]) - whole_exam[text] for text in exam}


print(f"40 % of every block: {choose([0.4] * len(blocks)):.2f} nats a token")

# %% [markdown]
# ### Exercise 4 · ●●● · 12 minutes
#
# 40 % of all neurons must go. Give `shares`, one a block, whose mean is at least 0.4. You have solved it when the damage
# on the exam is at most half of that of equal shares, on both texts. Try shares with `choose` as often as you like.
#
# <details><summary>Hint</summary>
#
# Cut one block at a time and leave the others whole: what does each of them cost at 20, 40, 60, 80 %? Then begin with zeros,
# and always take the step of 20 % that adds least.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_01 import check_shares

# BEGIN SOLUTION
steps, number_of = [0.0, 0.2, 0.4, 0.6, 0.8], len(blocks)


def alone(number, share):
    """What one block costs when the others stay whole."""
    return choose([share if other == number else 0.0 for other in range(number_of)])


price = [[alone(number, share) for share in steps] for number in range(number_of)]
level = [0] * number_of  # how many steps each block has gone
while sum(level) * 0.2 < 0.4 * number_of - 1e-9:
    rises = []  # what the next step of each block would add
    for row, at in zip(price, level, strict=True):
        rises.append(row[at + 1] - row[at] if at < 4 else math.inf)
    level[rises.index(min(rises))] += 1
shares = [steps[at] for at in level]
# END SOLUTION
# BEGIN STUB
# shares = ...  # one for each block, for instance [0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
# END STUB
check_shares(shares, judge)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# You cut 20 % of the neurons in all their places, and the loss hardly rises. What have you shown?
#
# - [ ] That the surgery is right, because a wrong cut would cost far more.
#   > A slightly wrong cut can cost little, and a right cut can cost a lot. *Pruned equals masked* tells them apart.
# - [ ] That the criterion is good, because it found neurons that weren't needed.
#   > Random neurons might have cost as little. Without that control you can't know.
# - [x] That this cut costs little on this text, with these rows and this ratio.
#   > Surgery is proved by *pruned equals masked*, a criterion by random cuts on text that chose nothing.
# - [ ] That the model is a fifth smaller, because a fifth of its neurons is gone.
#   > A share of the neurons isn't a share of the model: embeddings and attention stay.

# %% [markdown] tags=["quiz"]
# Two hundred removed neurons have a coherence of 4. What would you expect to help?
#
# - [x] Adding their mean push to the bias, since a sum that points one way is a constant.
#   > A bias is the place for a constant, and it costs no parameter.
# - [ ] Choosing by a larger calibration text, since the means would be more exact.
#   > The means are exact enough. That the pushes add up is a fact about the chosen neurons, not about noise.
# - [ ] Putting back the one neuron with the largest push, since it does most of it.
#   > Coherence compares the sum with its parts: at 4 no single push is near the sum.

# %% [markdown]
# ## Take-aways
#
# - A neuron of a dense MLP is a column of `c_fc`, a bias entry and a row of `c_proj`. All three go, and `n_inner` follows.
# - *Pruned equals masked* proves the surgery, *reloaded equals saved* the checkpoint. The loss proves neither.
# - A share of the neurons is not a share of the model.
# - A criterion has to beat nineteen random cuts, on text that chose nothing.
# - Removed neurons that push one way leave a hole. Their mean in the bias fills most of it.
#
# **The story so far:** a cut is exact or it is wrong; and part of the loss comes back cheaply. **Next:** in lesson 02 the same
# recipe meets a Llama. Every light is green, and the model knows nothing.
#
# ## Go deeper
#
# [Why damages don't add](deeper/01a_damages_do_not_add.ipynb): cut one block at a time, and sum up.
#
# ## References
#
# - Li et al. 2016, *Pruning Filters for Efficient ConvNets*, arXiv 1608.08710: structured pruning by the L1 norm
# - An et al. 2023 (FLAP), arXiv 2312.11983: the mean of removed neurons goes into a bias
# - Sun et al. 2023 (Wanda), arXiv 2306.11695: weights times activations
