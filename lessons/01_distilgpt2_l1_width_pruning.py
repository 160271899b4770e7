# ---
# jupyter:
#   course:
#     title: Width pruning with the L1 norm
#     minutes: 90 to 110 minutes
#     prerequisites: Python, a little PyTorch, a rough idea of a transformer block; nothing about pruning
#     assets: [speeches, texts]
#     concepts: [structured pruning, neuron, L1 norm, pruned equals masked, damage, criterion, hook, bias compensation]
# ---

# %% [markdown]
# ## The question
#
# A language model has thousands of neurons. Do small weights tell us which ones it can spare?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Not by themselves. A neuron with small weights hardly reacts, but it still writes something: nearly the same vector
# for every token. Cut hundreds of them and every token loses that sum. Add it to a bias, and the same cut does less damage than
# any of nineteen random cuts.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** the first idea everybody has is worse than chance, and there is a reason that one can touch. The room should
# leave with the sentence "a constant isn't nothing".
#
# **Usual questions:** "Why not set the weights to zero?" Nothing gets smaller. "Is 20 % of the neurons 20 % of the model?" No;
# let the room compute it.
#
# **Wrong turns:** taking `Conv1D` for a convolution; asking for a matrix's shape where its class decides; keeping the mean of the
# neurons that stay; trying plans on the exam in the last exercise.
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
record = read_record("keep_the_mean")  # such cuts, measured on 48 rows of each text


def draw_damage(panel, arms, column, places):
    """Dots for what each cut costs, at each of the named places of a column."""
    for name in ("random", "L1", "activation"):
        found = arms[arms.criterion == name]
        if len(found):
            x = found[column].map(places.index)
            panel.plot(x, found.damage, linestyle="none", **mark(name))
    panel.set_xticks(range(len(places)), places)
    panel.set(xlim=(-0.5, len(places) - 0.5), ylim=(0, 1.3))


# %%
riddle = record.query("draw == 0 and dtype == 'float32' and ratio == 0.2")
riddle = riddle[(riddle.edit == "cut") & (riddle.criterion != "activation")]
_, panel = plt.subplots(figsize=(7, 4.6), layout="constrained")
draw_damage(panel, riddle, "text", ["speeches", "wiki"])
panel.set(xlabel="text to predict", ylabel="damage (nats per token)")
panel.legend(loc="center")
show(
    "Damage on two texts, speeches and wiki. Nineteen grey dots, random cuts, lie "
    "between 0.4 and 0.8 nats. The blue square, the cut by small weights, lies far "
    "above."
)

# %% [markdown]
# *Look at the distance from the blue square to the grey dots below it.*
#
# Each mark is a small GPT-2 that lost a fifth of its neurons. Higher means worse at predicting text. For the grey dots we drew
# the neurons blindly, nineteen times. For the blue square we took the fifth with the **smallest weights**, which sounds like the
# careful choice. It is worse than every blind one. Why?
#
# ## What is a neuron?

# %%
diagrams.gpt2_block(neuron=2)
show(
    "A GPT-2 block with its MLP opened up: c_fc leads to the neurons, GELU "
    "follows, c_proj leads back. One neuron is marked: a column of c_fc, an "
    "entry of its bias, and a row of c_proj."
)

# %% [markdown]
# In each block of a GPT-2 the MLP reads a token's (normalised) vector $x$ and computes
#
# $$\mathrm{MLP}(x) = a\,W_{proj} + b_{proj}, \qquad a = \mathrm{gelu}(x\,W_{fc} + b_{fc})$$
#
# A **neuron** is one entry of $a$. It reads $x$ through one column of `c_fc` and one entry of that layer's bias. It writes its
# number times one row of `c_proj`. If we take these three pieces out, no other shape changes. The bias of `c_proj` belongs to no
# neuron, so it stays.
#
# Taking whole neurons out is **structured pruning**. The matrices get smaller, so any program can run what is left, and has less
# to do. (*Unstructured* pruning sets single weights to zero, and the matrices keep their shape.) A layer with fewer neurons is
# narrower, so what we do here is called *width pruning*.
#
# One trap: GPT-2's `Conv1D` convolves nothing. It is a linear layer that stores its weight as **[in, out]**, where `nn.Linear`
# stores [out, in].

# %% [markdown]
# ### Exercise 1 · ●○○ · 4 minutes
#
# On which axis is each tensor cut when neurons go? Fill in 0, 1 or `"none"`. OPT's MLP is the same as GPT-2's, but with two
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
# ## Cut, and prove it
#
# A classic score is the **L1 norm** of a neuron: the sum of the magnitudes of the weights that lead into it, $\mathrm{L1}_j =
# \sum_i |W_{fc}[i, j]|$. The idea is that a neuron with small weights hardly reacts to anything, so the model won't miss it.
#
# Before we ask whether a cut is *good* we want to know that it is *right*. So we build the same thing in two ways. The small MLP
# has lost neurons. The masked MLP keeps its shape, but the same neurons are silent, because their rows of `c_proj` are zero. Both
# must give the same output. **Pruned equals masked** is the proof of every cut in this course.

# %%
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP


def l1_scores(weight):
    """One score per neuron, from c_fc's weight [inputs, neurons]."""
    return weight.abs().sum(dim=0)


def strongest(scores, ratio):
    """The neurons that stay when `ratio` of them go, in their old order."""
    kept = len(scores) - int(ratio * len(scores))
    return scores.topk(kept).indices.sort().values


toy = GPT2MLP(5, GPT2Config(n_embd=5, n_head=1)).eval()  # 5 inputs, 5 neurons
with torch.no_grad():
    toy.c_fc.weight.copy_(torch.randint(-3, 4, (5, 5)))
    toy.c_proj.weight.copy_(torch.randint(-3, 4, (5, 5)))
    toy.c_fc.bias.copy_(torch.randn(5))
    toy.c_proj.bias.copy_(torch.randn(5))
x = torch.randn(3, 5)  # three tokens

scores = l1_scores(toy.c_fc.weight)
keep = strongest(scores, ratio=0.4)
gone = [neuron for neuron in range(5) if neuron not in keep]
print(f"c_fc.weight, a column per neuron:\n{toy.c_fc.weight.int().numpy()}")
print(f"L1 norms {scores.int().tolist()}, so neurons {gone} go")

# %%
masked = copy.deepcopy(toy)
with torch.no_grad():
    masked.c_proj.weight[gone] = 0  # same shape, nothing to say

fc, proj = toy.c_fc, toy.c_proj
inside = toy.act(x @ fc.weight[:, keep] + fc.bias[keep])  # [tokens, 3 neurons]
pruned = inside @ proj.weight[keep] + proj.bias
torch.testing.assert_close(pruned, masked(x))
print(f"pruned against masked: {(pruned - masked(x)).abs().max():.1e}")
print(f"pruned against whole:  {(pruned - toy(x)).abs().max():.1e}")

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# Write the whole method for a real GPT-2: `prune_width(model, ratio)` cuts every MLP by the L1 norm, in place, and returns the
# model. The sizes are noted beside the weights too: `nf` (outputs) and `nx` (inputs) of each `Conv1D`, and `n_inner` of the
# configuration. Another model may share these weights, so put new parameters in and don't write into the old ones.
#
# <details><summary>Hint</summary>
#
# `for block in model.transformer.h:` gives you `block.mlp` with `c_fc` and `c_proj`. A new parameter is `nn.Parameter(weight[:,
# keep].detach())`. Which of the four tensors isn't cut?
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
# We cut a GPT-2 of six blocks. With a GPU and the hub it is distilGPT2. Everywhere else it is a model of 5.9 million parameters
# that the course trained on speeches of American presidents. It is small, but it is a real language model, and all of this runs
# in a minute.
#
# From here on, the cut by L1 is **your** `prune_width`. (Until your check says "correct", ours takes its place.) `variant(base)`
# makes a second model that shares its weights with the first, so that cutting one leaves the other alone.
#
# **Predict before you run.** We cut 20 % of distilGPT2's neurons. Which share of its *parameters* goes: 20 %, 13 % or 7 %?
# Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 6.91 %, because the MLPs are only a third of distilGPT2. Nearly half of it is the token embedding.
#
# </details>

# %%
from transformers import AutoModelForCausalLM

from course_utils.pruning import neuron_importance, prune_neurons, save_pruned

blocks = base.transformer.h
your_cut = check_prune_width.accepted
pruned = your_cut(variant(base), 0.2)
ids = tokenizer("The Union is strong.", return_tensors="pt").input_ids
ids = ids.to(base.device)
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    save_pruned(pruned, tokenizer, folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder).to(base.device).eval()
    assert torch.equal(reloaded(ids).logits, pruned(ids).logits)
print(f"reloaded bit for bit, with n_inner = {reloaded.config.n_inner}")

hidden, width = 768, 3072  # distilGPT2: six blocks
block = 4 * hidden * hidden + 2 * hidden * width + 9 * hidden + width
total = (50_257 + 1024) * hidden + 6 * block + 2 * hidden  # words, places, norm
lost = 6 * int(0.2 * width) * (2 * hidden + 1)  # a column, a bias entry, a row
print(f"distilGPT2 loses {lost:,} of {total:,} parameters: {lost / total:.2%}")

# %% [markdown]
# ## Good, or just lucky?
#
# The model gives each next token a probability $p$. Its loss is $-\log p$ of the token that really came, averaged over many
# tokens, in *nats per token*. What a cut adds to the loss is its **damage**. For scale: A model that has lost everything gives
# each of its $V$ tokens the same probability. Its loss is $\log V$, and we call that *guessing*.
#
# Two habits keep us honest from here on:
#
# - **What chooses doesn't judge.** A score may read some speeches in order to choose neurons. The cut is then judged on other
#   speeches, from years that the model never saw, and on Wikipedia.
# - **A score has to beat blind choice.** A score that is used to choose neurons is called a **criterion**. A useless criterion is
#   one more blind draw, and among twenty it comes first by luck once in twenty times. So we ask that it beats **all nineteen**
#   random cuts.

# %%
from course_utils.text import judging_rows, token_blocks

texts = judging_rows(tokenizer, draw=session.seed)
texts = {name: rows[:24] for name, rows in texts.items()}  # of 64 tokens each
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
calibration = pool.sample(128, seed=session.seed)  # other speeches, for scores


@torch.no_grad()
def loss(model, rows):
    """Nats per token; the first token of a row is given, the others predicted."""
    nats = []
    for ids in rows.input_ids.to(model.device).split(16):
        guesses = model(ids).logits[:, :-1].float().log_softmax(dim=-1)
        nats.append(-guesses.gather(-1, ids[:, 1:, None]))
    return torch.cat(nats).mean().item()


whole = {name: loss(base, rows) for name, rows in texts.items()}
guessing = math.log(base.config.vocab_size)
for name, value in whole.items():
    print(f"{name}: {value:.2f} nats per token; guessing would be {guessing:.2f}")

# %% [markdown]
# L1 looks only at the weights that a neuron reads with. Does it lose because it has seen no text? Then a score that looks at what
# a neuron *writes* should win. We take the neuron's typical size on text (the root mean square of $a_j$) times the length of its
# row of `c_proj`, and call it **activation**. To see inside we hang a **hook** on `c_fc`: a function that PyTorch calls with the
# layer's output each time the layer runs.

# %%
reads = {number: [] for number in range(len(blocks))}


def watch(number):
    def hook(layer, inputs, output):
        reads[number].append(output.flatten(0, 1).float())  # [tokens, neurons]

    return blocks[number].mlp.c_fc.register_forward_hook(hook)


hooks = [watch(number) for number in reads]
loss(base, calibration)
for hook in hooks:
    hook.remove()

reads = [torch.cat(parts) for parts in reads.values()]  # before GELU
values = [block.mlp.act(r) for block, r in zip(blocks, reads, strict=True)]
means = [a.mean(dim=0) for a in values]
activation = []
for block, a in zip(blocks, values, strict=True):
    lengths = block.mlp.c_proj.weight.detach().norm(dim=1)  # of the rows
    activation.append(a.square().mean(dim=0).sqrt() * lengths)
print(f"watched {len(values[0]):,} tokens in {len(blocks)} blocks")

# %% [markdown]
# **Predict before you run.** `activation` meets the nineteen random cuts on both texts. That makes 38 comparisons. How many will
# it win: most, half, or few? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Few: 3 of 38. It does less damage than L1, but it has read text, has seen what each neuron writes, and is still worse than most
# blind draws. So it can't be the whole reason that L1 has seen no text.
#
# </details>

# %%
l1 = neuron_importance(base, "l1")  # a tensor of scores per block
arms = {("L1", 0): l1, ("activation", 0): activation}
for seed in range(19 * session.seed, 19 * session.seed + 19):
    arms["random", seed] = neuron_importance(base, "random", seed=seed)


def cut_neurons(model, scores):
    """By L1 you cut; for any other score the course does it the same way."""
    if scores is l1:
        your_cut(model, 0.2)
    else:
        prune_neurons(model, scores, ratio=0.2)


def damage(arms, edit, name):
    """What an edit of the model costs: a row per arm and text."""
    rows = []
    for (criterion, seed), scores in tqdm(arms.items(), desc=name):
        model = variant(base)
        edit(model, scores)
        for text, judged in texts.items():
            nats = loss(model, judged) - whole[text]
            rows.append((criterion, seed, text, name, nats))
    names = ["criterion", "seed", "text", "edit", "damage"]
    return pd.DataFrame(rows, columns=names)


def lead(found, name):
    """By how many nats a criterion is ahead of each random cut, on both texts."""
    by = found.set_index(["criterion", "text"]).damage.sort_index()
    return pd.concat([by["random", text] - by[name, text].item() for text in texts])


# %%
cut = damage(arms, cut_neurons, "cut")
beaten = {}
for name in ("L1", "activation"):
    beaten[name] = (lead(cut, name) > 0).sum()
    print(f"{name} beats {beaten[name]} of 38: nineteen random cuts on two texts")
here("Cut by L1, the model is worse than after any random cut.", -lead(cut, "L1"))
claim("`activation` beats less than half of them.", [18.5 - beaten["activation"]])
by = cut.set_index(["criterion", "text"]).damage
claim("`activation` does less damage than L1.", by["L1"] - by["activation"])

# %% [markdown]
# (*here: shown* means that the numbers of your own run bear the sentence out. If you run a larger model, your numbers will
# differ.)
#
# ## Look at one of them
#
# The hook has caught the number that every neuron held for every token, so let's look. We take the neuron with the smallest L1
# norm in block 2, and the one with the largest.
#
# **Predict before you run.** What does the neuron with the smallest weights hold for most tokens: about 0, some other fixed
# number, or numbers all over the place? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A fixed number that isn't zero. It hardly reacts, just as the idea says. But it rests at −0.16, so every token gets −0.16 times
# its row of `c_proj`.
#
# GELU explains the number. Below 0 the curve dips, and comes back to 0 only far to the left. A neuron with small weights reads
# nearly the same for every token. So it stays near what its bias gives it, here in the dip, and what it holds hardly changes.
#
# </details>

# %%
smallest, largest = l1[2].argmin(), l1[2].argmax()
resting = values[2][:, smallest]
print(f"smallest weights: {resting.mean():.2f}, give or take {resting.std():.2f}")
away = resting.mean().abs() - 3 * resting.std()
here("The neuron with the smallest weights rests, and not at 0.", [away.item()])


def constant_share(block, a, some):
    """How much of what some neurons write is the same for every token, 0 to 1."""
    power = block.mlp.c_proj.weight.detach().square().sum(dim=1)  # of each row
    constant = (a.mean(dim=0).square() * power)[some].sum()
    return (constant / (a.square().mean(dim=0) * power)[some].sum()).item()


parts = {"weakest fifth by L1": [], "those that stay": []}
for block, a, scores in zip(blocks, values, l1, strict=True):
    weak = torch.ones_like(scores, dtype=torch.bool)
    weak[strongest(scores, 0.2)] = False
    for found, some in zip(parts.values(), (weak, ~weak), strict=True):
        found.append(constant_share(block, a, some))
shares = pd.DataFrame(parts)
more = shares["weakest fifth by L1"] - shares["those that stay"]
claim("What the weakest fifth writes is more constant than the rest.", more)

# %%
_, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
line = torch.linspace(-3, 1.5, 100)
thin = mark("whole") | {"marker": "", "linewidth": 1, "label": "GELU"}
panels[0].plot(line, nn.functional.gelu(line), zorder=0, **thin)
colors = [mark("L1")["color"], mark("channels")["color"]]
names = ("smallest weights", "largest weights")
for i, neuron in enumerate((smallest, largest)):
    some = [found[2][:400, neuron].cpu() for found in (reads, values)]
    how = {"color": colors[i], "label": names[i], "zorder": 3 - i}
    panels[0].plot(*some, "o", markersize=5, **how)
panels[0].axhline(0, linestyle=":", color=mark("whole")["color"])
panels[0].set(xlabel="what it reads", ylabel="what it holds", ylim=(-0.25, 0.6))
panels[0].set(title="two neurons of block 2, 400 tokens")
panels[0].legend()
shares.plot.bar(ax=panels[1], color=colors, rot=0, ylim=(0, 1.35), xlabel="block")
panels[1].set(ylabel="constant share", title="is it the same for every token?")
panels[1].legend(loc="upper right")
show(
    "Left, GELU's curve with 400 tokens of two neurons on it: the one with the "
    "smallest weights sits in the dip below 0 with all tokens, the one with the "
    "largest runs along the curve. Right, bars for six blocks: of what the "
    "weakest fifth write 0.98 and 0.94 is constant in blocks 1 and 2, and in each "
    "block more than of those that stay."
)

# %% [markdown]
# *Left: each dot is a token, and shows what the neuron reads and holds. All blue dots sit in and beside the dip. Right: compare
# blue with green in each block. At 1 a group would write the same vector for every token; at 0 nothing of what it writes would be
# constant.*
#
# In blocks 1 and 2 nearly everything that the weak neurons write is constant. In the other blocks it is less, but in each block
# it is more than for the neurons that stay.
#
# So here is a suspect. Two hundred constants add up to one vector. We call it the *push*. Cut the neurons, and **every token
# loses the same push**, in each of six blocks. The rest of the model has never seen tokens without it.
#
# **Predict before you run.** Each weak neuron writes a small constant, smaller than that of most neurons. Can two hundred small
# ones sum to a longer push than two hundred that were drawn blindly? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Yes. Divide the length of the sum by the sum of the lengths. If all constants point the same way, that is 100 %. In block 2 it
# is 35 % for L1's neurons and 7 % for neurons that were drawn blindly. So small ones that pull the same way beat larger ones that
# pull in all directions. A score can't see this, because it looks at one neuron at a time, and what counts is the sum.
#
# </details>


# %%
@torch.no_grad()
def constants(scores):
    """What each of the weakest writes on average, [neurons, hidden] per block."""
    lost = []
    for block, mean, score in zip(blocks, means, scores, strict=True):
        gone = torch.ones_like(score, dtype=torch.bool)
        gone[strongest(score, 0.2)] = False
        lost.append(mean[gone, None] * block.mlp.c_proj.weight[gone])
    return lost


def pushes(scores):
    """What the weakest fifth writes on average: one vector per block."""
    return [each.sum(dim=0) for each in constants(scores)]


def kept_length(each):
    """How much of their length some vectors keep when they are added up."""
    return (each.sum(dim=0).norm() / each.norm(dim=1).sum()).item()


kept_by = {arm: [*map(kept_length, constants(arms[arm]))] for arm in arms}
kept_by = pd.DataFrame(kept_by).T
aligned = kept_by.loc["L1"].iloc[0] - kept_by.loc["random"].max()
claim("L1's weakest pull together more than any random draw.", aligned)
print("block 2, length that is kept in the sum:", end=" ")
print(f"L1 {kept_by.loc['L1', 2].item():.0%}", end=", ")
print(f"random {kept_by.loc['random', 2].median():.0%}")
lengths = {arm: [p.norm().item() for p in pushes(arms[arm])] for arm in arms}
lengths = pd.DataFrame(lengths).T  # a row per cut, a column per block
total = lengths.sum(axis=1)
for name in ("L1", "activation"):
    lead_of = total[name, 0] - total["random"]
    claim(f"{name}'s pushes are longer than each random cut's.", lead_of)
mean_damage = cut.groupby(["criterion", "seed"]).damage.mean()
table = lengths.groupby(level=0).mean()
table.assign(together=table.sum(axis=1)).T.round(1)

# %%
_, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
for arm in list(arms)[2:5] + list(arms)[:1]:  # three random cuts, and L1
    path = constants(arms[arm])[2].cumsum(dim=0).norm(dim=1).cpu()
    how = mark(arm[0]) | {"marker": "", "linewidth": 2, "label": "_"}
    panels[0].plot(range(1, len(path) + 1), path, **how)
for name in ("random", "L1", "activation"):
    how = mark(name) | {"linestyle": "none"}
    panels[1].plot(total[name], mean_damage[name], **how)
panels[0].set(xlabel="constants added up", ylabel="length of their sum")
panels[0].set(ylim=0, title="block 2: they pull together")
panels[1].set(xlabel="the six pushes' lengths together", ylim=0)
panels[1].set(ylabel="damage (nats per token)", title="a longer push, a worse cut?")
panels[1].legend()
show(
    "Left, the length of the sum of constants in block 2 as more of them come in. "
    "For L1 it grows nearly in a straight line to 3.4, for three random draws it "
    "bends and ends at 1.5. Right, damage against the pushes' lengths together: "
    "random cuts in a cloud near 8, activation at 10.7 and L1 at 12.5, higher."
)

# %% [markdown]
# *Left: the constants of one block's removed neurons, added up one after the other; blue is L1, grey are three random draws.
# Right: a mark is a cut, and its damage is the mean of the two texts. Follow the three colours from left to right.*
#
# On the left each small constant adds to the others, so the blue line is nearly straight. The grey ones get in each other's way.
#
# Every cut loses a push, but L1 and `activation` lose longer ones, all blocks together, than any blind draw. The three ways to
# choose line up: the longer the push, the worse the cut. (Three are few.) The grey dots don't line up, but their lengths hardly
# differ. Why the constants of weak neurons point the same way, we don't know.
#
# ## Touch it: take the push alone
#
# Three colours in a row are a suspicion and no proof. So we change one thing only: **all neurons stay**, and we subtract the push
# from `c_proj.bias`. If the lost push does the harm, this must do most of the cut's damage. And is it only a matter of length? To
# find out, we take the pushes of random cuts, stretch them to the length of L1's, and subtract those.
#
# **Predict before you run.** How much of L1's damage does the push do alone? And does a random cut's push do a larger or a
# smaller share of that cut's damage? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On speeches it does 70 % of L1's damage, with every neuron in its place. A random cut's push does a third of that cut's damage.
# But stretched to the length of L1's it does nearly three times as much as before, and over half of what L1's does. So most of
# the difference is the length.
#
# </details>


# %%
@torch.no_grad()
def take_the_push(model, scores, as_long_as=None):
    """Subtract what the weakest neurons write on average; all neurons stay."""
    lengths = pushes(scores if as_long_as is None else as_long_as)
    parts = zip(model.transformer.h, pushes(scores), lengths, strict=True)
    for block, push, other in parts:
        proj = block.mlp.c_proj
        proj.bias = nn.Parameter(proj.bias - push / push.norm() * other.norm())


def take_it_stretched(model, scores):
    """Subtract the push at the length of L1's."""
    take_the_push(model, scores, as_long_as=l1)


few = dict(list(arms.items())[:5])  # three random cuts are enough here
alone = damage(few, take_the_push, "push alone")
pairs = alone.merge(cut, on=["criterion", "seed", "text"])
pairs["share"] = pairs.damage_x / pairs.damage_y
share = pairs.groupby(["criterion", "text"]).share.median().unstack()
here("The constant alone does over half of L1's damage.", share.loc["L1"] - 0.5)
here("It does less than half of a random cut's.", 0.5 - share.loc["random"])
blind = {arm: few[arm] for arm in few if arm[0] == "random"}
stretched = damage(blind, take_it_stretched, "stretched push")
of = {}
for name, found in (("L1's", alone), ("random", alone), ("stretched", stretched)):
    some = found[found.criterion == ("L1" if name == "L1's" else "random")]
    of[name] = some.groupby("text").damage.median()
    print(f"{name} push:", of[name].round(2).to_dict(), "nats per token")
longer = of["stretched"] - 2 * of["random"]
here("Stretched to the length of L1's, it does over twice as much.", longer)
ahead = of["L1's"] - of["stretched"]
claim("L1's own push does more than the stretched ones.", ahead)
print("share of the cut's damage that the push does alone:")
share.round(2)

# %% [markdown]
# So most of the harm of L1's cut is the lost push. This tells us the cure, and it costs no parameter: `c_proj` has a bias, and a
# bias is the place for a constant.

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# Cut the neurons, and keep their constant. `keep_the_mean(model, scores, means, ratio)` gets one tensor of scores and one of
# means per block. The `int(ratio * width)` lowest scores go. What those neurons write on average is added to `c_proj.bias`.
# Return the model. Another model may share the old bias, so don't write into it.
#
# <details><summary>Hint</summary>
#
# Work out the constant while the rows of `c_proj` are still there. `prune_neurons(model, scores, ratio=ratio)` may do the
# cutting.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_01 import check_keep_the_mean


# BEGIN SOLUTION
def keep_the_mean(model, scores, means, ratio):
    for block, score, mean in zip(model.transformer.h, scores, means, strict=True):
        proj, removed = block.mlp.c_proj, mean.clone()
        removed[strongest(score, ratio)] = 0  # only the removed ones speak
        constant = (removed @ proj.weight).detach()
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
# ## The same cut, its constant kept
#
# The literature calls it **bias compensation** (An et al. 2023), and `prune_neurons` does it if it gets `means=`. We cut with
# **your** `keep_the_mean`. To be fair, the random cuts keep their constants as well.
#
# **Predict before you run.** Same neurons, same sizes, constants kept in all arms. Does L1 beat blind choice now? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It beats all nineteen on both texts, and so does `activation`. Only a seventh of L1's damage is left, with the same neurons
# gone. So L1 *had* found neurons that hardly react. They were worth cutting, as long as what they wrote stays.
#
# </details>

# %%
your_keep = check_keep_the_mean.accepted


def cut_and_keep(model, scores):
    """Your cut: the weakest fifth goes, and its constant stays."""
    your_keep(model, scores, means, 0.2)


kept = damage(arms, cut_and_keep, "push kept")
here("With its constant kept, L1 beats each random cut.", lead(kept, "L1"))
claim("With its constant kept, `activation` does, too.", lead(kept, "activation"))
left = kept.set_index(["criterion", "text"]).damage
claim("`activation` is ahead of L1 then.", left["L1"] - left["activation"])
claim("Of L1's damage a fifth is left at most.", by["L1"] / 5 - left["L1"])

# %%
story = pd.concat([cut, alone, stretched, kept])
_, panels = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
for panel, text in zip(panels, texts, strict=True):
    places = ["cut", "push alone", "stretched push", "push kept"]
    draw_damage(panel, story[story.text == text], "edit", places)
    panel.set(title=text)
panels[0].set(ylabel="damage (nats per token)")
panels[1].legend()
show(
    "Two panels, speeches and wiki, four places each. Cut: L1 lies above all grey "
    "dots. Push alone: L1 is nearly as high, random cuts low. Stretched push: "
    "random ones do over half of L1's. Push kept: L1 and activation lie below "
    "each grey dot."
)

# %% [markdown]
# *Follow the blue squares: the neurons go (cut); all neurons stay and only their push goes (push alone); the neurons go and their
# push stays (push kept). Stretched push: what a random cut's push does at the length of L1's.*
#
# Luck with the rows? The record that ships with the course repeats this on three draws of rows and calibration text, in two
# number formats. (It is the same model each time. Another one is yours to try.)

# %%
main = record.query("ratio == 0.2 and criterion in ('L1', 'random')")
by = main.groupby(["edit", "criterion", "draw", "dtype", "text"]).damage
low, high = by.min().unstack("criterion"), by.max().unstack("criterion")
worse = (low["L1"] - high["random"])["cut"]
better = (low["random"] - high["L1"])["mean kept"]
print(f"cut: L1 loses to all nineteen in {(worse > 0).sum()} of {len(worse)}")
print(f"kept: it beats all nineteen in {(better > 0).sum()} of {len(better)}")
claim("In the record L1 loses to each random cut, each time.", worse)
claim("In the record it beats each with its constant kept.", better)

# %% [markdown]
# A score isn't good or bad by itself. It is good *for a way of cutting*.
#
# ## Spend the budget better
#
# So far every block lost the same share of its neurons. Must it? If constants can stay in a bias, a block that writes mostly
# constants should hardly miss its neurons.
#
# **Predict before you run.** We cut 40 % of one block's neurons and leave the others whole. Then we order the six blocks by
# price. Which block changes its place most when the constants are kept? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Block 1. Without its constant it is the third dearest, with it the cheapest of all, because nearly all of what even its strong
# neurons write is constant (the bars above). Block 0 stays the dearest by far. We don't know why. Perhaps it is because every
# later block reads what block 0 writes.
#
# </details>
#
# We cut by `activation`, which was ahead. `choose(shares, keep=True)` returns the damage on 24 rows that are set aside for
# picking a plan, and `keep=False` loses the constants. The naive plan spares one block and cuts the others equally. The cell
# tries all six and keeps the best.

# %%
from course_utils.text import further_rows

choosing = pool.sample(152, seed=session.seed)[128:]
exam = further_rows(tokenizer)  # nothing has used these; they are for the check
whole_choosing = loss(base, choosing)
number_of = len(blocks)


def spent(shares, keep=True):
    """A model whose block i lost shares[i] of its neurons."""
    model, scores, mean = variant(base), list(activation), list(means)
    for block, share in enumerate(shares):
        kept_means = mean if keep else None
        prune_neurons(model, scores, ratio=share, means=kept_means, layers=[block])
        stay = strongest(scores[block], share)
        scores[block], mean[block] = scores[block][stay], mean[block][stay]
    return model


def choose(shares, keep):
    """Damage in nats per token on the rows to choose by."""
    return loss(spent(shares, keep), choosing) - whole_choosing


def judge(shares):
    """Damage in nats per token on each text of the exam."""
    found, model = {}, spent(shares)
    for text, rows in exam.items():
        found[text] = loss(model, rows) - loss(base, rows)
    return found


# %%
alike = choose([0.4] * number_of, keep=True)
print(f"all blocks alike: {alike:.3f} nats per token")
plans = []
for spared in range(number_of):
    plan = [0.4 * number_of / (number_of - 1)] * number_of
    plan[spared] = 0
    plans.append(plan)
naive = min(plans, key=lambda plan: choose(plan, keep=True))
print("best with one block spared:", [round(share, 2) for share in naive])
print(f"it costs {choose(naive, keep=True):.3f} nats per token")

# %% [markdown]
# ### Exercise 4 · ●●● · 20 minutes
#
# First test your prediction. Cut 40 % of one block at a time, and list the six blocks from the dearest to the cheapest: `lost`
# where the constants go, too, and `kept` where they stay.
#
# Then decide. 40 % of all neurons must go. Give `shares`, one per block, with a mean of at least 0.4. Your plan has to do at most
# three quarters of the naive plan's damage, constants kept: first on the choosing rows, and then on an exam of both texts. The
# check opens the exam only for a plan that has won on the choosing rows.
#
# <details><summary>Hint</summary>
#
# What does each block cost at 20, 40, 60, 80 %, constants kept? Begin with zeros, and always take the step of 20 % that adds
# least. (With the constants kept, such single damages nearly add up. Without, they don't.)
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_01 import check_plan

# BEGIN SOLUTION
steps = [0.0, 0.2, 0.4, 0.6, 0.8]
numbers = range(number_of)


def price_of(block, share, keep):
    """What one block costs when the others stay whole."""
    plan = [share if other == block else 0.0 for other in numbers]
    return choose(plan, keep=keep)


price = [[price_of(block, share, True) for share in steps] for block in numbers]
without = [price_of(block, 0.4, False) for block in numbers]
lost = sorted(numbers, key=lambda block: -without[block])
kept = sorted(numbers, key=lambda block: -price[block][2])
level = [0] * number_of  # how many steps each block has gone
while sum(level) * 0.2 < 0.4 * number_of - 1e-9:
    rises = []  # what the next step of each block would add
    for row, at in zip(price, level, strict=True):
        rises.append(row[at + 1] - row[at] if at < 4 else math.inf)
    level[rises.index(min(rises))] += 1
shares = [steps[at] for at in level]
# END SOLUTION
# BEGIN STUB
# lost = ...  # block numbers, the dearest first, constants lost
# kept = ...  # the same, constants kept
# shares = ...  # one per block, for instance [0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
# END STUB
check_plan(lost, kept, shares, naive, choose, judge)

# %% [markdown]
# ## Before you ship it
#
# The blocks of such a model have unequal widths, and plain transformers can't build those. `save_pruned` puts the code for them
# into the folder. To load it, call `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
#
# ## Quiz

# %% [markdown] tags=["quiz"]
# You cut 20 % of the neurons in all their places, and the loss hardly rises. What have you shown?
#
# - [ ] That the surgery is right, because a wrong cut would cost far more.
#   > A slightly wrong cut can cost little, and a right cut can cost a lot. *Pruned equals masked* tells them apart.
# - [ ] That the criterion is good, because it found neurons that weren't needed.
#   > Random neurons might have cost as little. Without that comparison you can't know.
# - [x] That this cut costs little on this text, with these rows and this ratio.
#   > Surgery is proved by *pruned equals masked*, a criterion by random cuts on text that chose nothing.
# - [ ] That the model is a fifth smaller, because a fifth of its neurons is gone.
#   > A share of the neurons isn't a share of the model: embeddings and attention stay.

# %% [markdown] tags=["quiz"]
# A neuron holds exactly −0.16 for every token. You remove it. What does the model lose?
#
# - [ ] Nothing, since a neuron that doesn't react carries no information.
#   > It carries none, true. But all later layers were trained on states that contain what it adds.
# - [x] The same vector for every token, which a bias can give back exactly.
#   > −0.16 times its row of `c_proj`. Add that to the bias and the model can't tell that the neuron is gone.
# - [ ] A vector that depends on the token, so that only training could restore it.
#   > That would be so for a neuron whose number changes from token to token.

# %% [markdown]
# ## Take-aways
#
# - A neuron of a dense MLP is a column of `c_fc`, a bias entry and a row of `c_proj`. All three go, and `n_inner` follows.
# - *Pruned equals masked* proves the surgery. The loss proves nothing about it.
# - A score has to beat nineteen random cuts, on text that played no part in choosing.
# - **A constant isn't nothing.** A neuron that hardly reacts writes nearly the same vector for every token. Keep that vector in a
#   bias.
#
# **On Monday:** whenever you prune neurons of a model that has a bias there, pass `means=`. It takes one pass over a little text.
#
# **Next:** in lesson 02 the same recipe meets a Llama. Every light is green, and the model knows nothing.
#
# ## Go deeper
#
# [Why damages don't add](deeper/01a_damages_do_not_add.ipynb): cut one block at a time, and sum up.
#
# ## References
#
# - Li et al. 2016, *Pruning Filters for Efficient ConvNets*, arXiv 1608.08710: structured pruning by the L1 norm
# - Ye et al. 2018, *Rethinking the Smaller-Norm-Less-Informative Assumption*, arXiv 1802.00124: channels that are constants
# - An et al. 2023 (FLAP), arXiv 2312.11983: the mean of removed neurons goes into a bias
# - Sun et al. 2023 (Wanda), arXiv 2306.11695: weights times activations
