# ---
# jupyter:
#   course:
#     title: "GLU pruning done right: which neurons must stay"
#     minutes: 90 to 120 minutes
#     prerequisites: lesson 01 (hooks, nineteen random cuts, a constant isn't nothing), lesson 02 (a GLU's neuron)
#     assets: [smollm2, texts, speeches]
#     concepts: [residual stream, search by halves, needed and enough, attention sink, massive activations, patching]
# ---

# %% [markdown]
# ## The question
#
# Nineteen times we cut a tenth of a Llama's neurons blindly. After eighteen of the cuts the model is worse but still works. After
# one it is ruined. What did that cut hit?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Two of its 4,590 neurons. Put either of them back, and the disaster is gone. (They need help to make one: a third
# neuron, and much of the rest of the cut.) They write one giant number into the first token's state. That number keeps the token
# silent and easy to find, so that attention heads can look there when they have nothing to say. Without it the first token talks.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** a disaster can have a tiny cause. One can find it in fifty runs of the model, and one can say *why*. The reason
# is the attention sink. Lesson 04 takes out block 11, which writes the giant number anew.
#
# **Usual questions:** "Why the first token?" Every later token can see it, so it is the one place that is always there. "Does
# every model do this?" Nearly all large ones; see the references. "Why not protect those two and be done?" They are *needed* for
# this disaster. The last exercise asks what is *enough*.
#
# **Wrong turns:** a threshold in the first search, where two halves want comparing; taking "needed" for "enough"; in the last
# search, forgetting the other half.
#
# **At the end you have** a score for a Llama's neurons that beats blind choice, the neurons behind the worst of nineteen cuts,
# and a proof of what they are for.

# %% tags=["install"]

# %%
from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from course_utils.lessons import claim, here
from course_utils.support import mark, read_record, show, start, style

session = start("03")
style()
record = read_record("random_cuts").query("dtype == 'float32'")  # on 48 rows each


def recorded(criterion, text, edit="shared"):
    """The damage of one kind of cut in the record, by seed."""
    chosen = (record.criterion == criterion) & (record.edit == edit)
    return record[chosen & (record.text == text)].set_index("seed").damage


# %%
_, panel = plt.subplots(figsize=(10, 3.2), layout="constrained")
for row, text in enumerate(("speeches", "wiki")):
    damages = recorded("random", text)
    worst = damages.idxmax()
    grey = mark("random") | {"marker": "o", "alpha": 0.5, "linestyle": "none"}
    panel.plot(damages.drop(worst), [row] * (len(damages) - 1), **grey)
    panel.plot(damages[worst], row, **mark("wrong"), markersize=11, mew=3)
panel.annotate("what did this one hit?", (damages[worst], 0.5), ha="center")
panel.set(xlabel="damage (nats per token)", xlim=(0, 4.6), ylim=(1.5, -0.5))
panel.set_yticks([0, 1], ["judged on\nspeeches", "judged on\nwiki"])
show(
    "The damage of nineteen blind cuts on speeches and on wiki. Eighteen grey dots "
    "lie between 0.5 and 1.5 nats per token; a red cross lies far to the right, at "
    "3.5 and 3.8. Beside it stands: what did this one hit?"
)

# %% [markdown]
# Each mark is a Llama that lost a tenth of its neurons, 4,590 of them, drawn blindly. Its place is the damage: what the cut adds
# to the loss, as in lesson 01. Eighteen cuts (grey) stay together. The red one took no more neurons than they did, and from the
# same blocks. What did it hit?
#
# ## What a neuron adds
#
# Each token has a state, a vector that runs through the model from block to block: the **residual stream**. Attention and MLP
# read the state and *add* something to it. Nothing is overwritten. In a Llama the MLP adds
#
# $$\mathrm{MLP}(x) = W_{down}\,a, \qquad a = \mathrm{silu}(W_{gate}\,x) \odot W_{up}\,x$$
#
# So neuron $j$ adds its number $a_j$ times its column of `down_proj`. Lesson 02 showed that taking a neuron out of all three
# matrices equals silencing it, which means setting its number to zero. We will try hundreds of cuts, and silencing is quicker. So
# here we silence.

# %%
from course_utils.models import describe, load_model, variant
from course_utils.pruning import neuron_importance, strongest


def lowest(scores, ratio=0.1):
    """The neurons that go, as (block, number): the lowest tenth of each block."""
    gone = []
    for block, values in enumerate(scores):
        stay = set(strongest(values, ratio).tolist())
        gone += [(block, n) for n in range(len(values)) if n not in stay]
    return gone


def without(model, gone):
    """The model with these neurons silent; it shares all weights."""
    silent, numbers = variant(model), defaultdict(list)
    for block, number in gone:
        numbers[block].append(number)
    mlps = describe(silent).mlps

    def zeros(down, inputs):  # what `down` reads, with zeros for these neurons
        return inputs[0].index_fill(-1, down.silent, 0)

    for block, some in numbers.items():
        mlps[block].down.silent = torch.tensor(some, device=model.device)
        mlps[block].down.register_forward_pre_hook(zeros)
    return silent


# %%
from course_utils.measuring import perplexity
from course_utils.text import judging_rows, token_blocks

base, tokenizer = load_model("llama")
base.requires_grad_(False)
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
sampled = pool.sample(48, seed=session.seed)  # rows of 64 tokens
few, others, choosing = sampled[:2], sampled[2:4], sampled[:4]  # to search and look
batches = sampled[10:26].batches(8)
judging = judging_rows(tokenizer, draw=session.seed)
judges = {text: rows[:4] for text, rows in judging.items()}


def loss(model, rows):
    """Nats per token."""
    return perplexity(model, rows, batch_size=len(rows)).nll


whole = {text: loss(base, rows) for text, rows in judges.items()}


def damage(model, texts=("speeches", "wiki")):
    """What a model loses on each judging text, in nats per token."""
    return [loss(model, judges[text]) - whole[text] for text in texts]


# %% [markdown]
# ## Did it take the loud ones?
#
# A neuron that adds much to the state is *loud*. How loud, a look at some text tells: how large the neuron's number is (root mean
# square over the tokens) times the length of its column. This is the **activation** score of lesson 01, for a GLU:
#
# $$\mathrm{activation}_j = \sqrt{\frac{1}{T} \sum_t a_{tj}^2} \; \cdot \; \lVert W_{down}[:, j] \rVert$$
#
# It gives us a first suspicion: perhaps the red cut happened to take more of the loud neurons than the others did.

# %% [markdown]
# ### Exercise 1 · ●●○ · 12 minutes
#
# Write `contribution(model, batches)`, the activation score: a list with one tensor [neurons] for each block. A batch is a dict
# of `input_ids` and `attention_mask`. Where the mask is 0 stands padding, which must not count. Remove your hooks at the end. The
# check tries your function on a tiny model with made-up text, in float32 and in 16 bits, and then on our Llama beside the
# library's score.
#
# <details><summary>Hint</summary>
#
# The blocks are `model.model.layers`, and each has an `mlp.down_proj`. Its pre-hook gets `(module, inputs)`, and `inputs[0]` is
# $a$, [rows, length, neurons]. Add up squares and count real tokens over all batches, and divide at the end. Squares overflow in
# float16, so take `.float()` first.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_contribution


# BEGIN SOLUTION
@torch.no_grad()
def contribution(model, batches):
    layers = model.model.layers
    squares, count = [0] * len(layers), 0

    def note(block):
        def hook(module, inputs):
            states = inputs[0][real].float()  # [real tokens, neurons]
            squares[block] = squares[block] + states.square().sum(dim=0)

        return hook

    handles = []
    for block, layer in enumerate(layers):
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(note(block)))
    for batch in batches:
        real = batch["attention_mask"].bool().to(model.device)  # `hook` reads it
        count += real.sum()
        model.model(batch["input_ids"].to(model.device), real)
    for handle in handles:
        handle.remove()
    scores = []
    for total, layer in zip(squares, layers, strict=True):
        column = layer.mlp.down_proj.weight.float().norm(dim=0)
        scores.append((total / count).sqrt() * column)
    return scores


# END SOLUTION
# BEGIN STUB
# def contribution(model, batches):
#     ...  # a list of tensors [neurons], one a block
# END STUB
check_contribution(contribution, base, batches[:1])

# %% [markdown]
# ## Loud neurons, and a trap
#
# Now we cut twice by choice instead of blindly: the tenth of each block with the lowest activation, and the tenth with the lowest
# **L1** norm, as in lesson 01 (for a GLU it adds up the rows of gate and up). Then we count how many *loud* neurons each cut
# takes. Let us call a neuron loud if it is in the most active twentieth of its block. (Until yours passes, the course's function
# is used. The same holds for every exercise.)
#
# **Predict before you run.** A cut by L1 and a cut by activation, which is better than the eighteen, which is worse? And does the
# red cut hold more loud neurons than the other blind ones? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Activation is cheaper than every blind cut. L1 is worse than even the red one, and it takes the loud: 37 % of them,
# where a tenth would be chance. But the blind cuts all take about their tenth, the red one among them. So our suspicion
# explains L1, and it doesn't explain the red cut.
#
# </details>

# %%
active = check_contribution.accepted(base, batches)  # yours, once it is right
scored = {"activation": active, "L1": neuron_importance(base, "l1")}
chance = {}
for seed in range(19):
    chance[seed] = lowest(neuron_importance(base, "random", seed=seed))
loud = set()
for block, scores in enumerate(active):
    most = scores.topk(len(scores) // 20).indices.tolist()
    loud |= {(block, number) for number in most}
chosen = {name: lowest(scores) for name, scores in scored.items()}
taken = {}
for name, gone in (chance | chosen).items():
    taken[name] = len(loud & set(gone)) / len(loud)
costs = {name: damage(without(base, gone)) for name, gone in chosen.items()}
for name, (one, two) in costs.items():
    print(f"{name}: {one:.2f} and {two:.2f} nats, {taken[name]:.0%} of the loud")
shares = [taken[seed] for seed in chance]
print(f"blind cuts: {min(shares):.0%} to {max(shares):.0%} of the loud")
dearer = np.subtract(costs["L1"], costs["activation"])
here("A look at text costs less than a look at weights.", dearer)
for text in judges:
    ahead = recorded("random", text).min() - recorded("activation", text)
    claim(f"On record activation beats each blind cut: {text}.", ahead)
more = taken["L1"] - 2 * max(shares)
here("L1 takes over twice as many of the loud as any blind cut.", [more])

# %% [markdown]
# (*here: shown* means that the numbers of your own run bear the sentence out. A `claim` keeps them without printing.)
#
# So on this model L1 is worse than drawing blindly. It is **misleading**, because its small weights belong to many of the loudest
# neurons. (Why the model builds them so, we don't know. The deeper notebook draws them.) And to look at a little text beats every
# blind cut.
#
# (Another score from weights, **peak-to-peak** (Martra 2024), takes only the largest and the smallest weight of each row. It comes
# again in lesson 07, which heals a model that was cut so.)
#
# But the red cut took no more loud neurons than the other blind cuts. So it isn't *how many* of them it took. Is it *which*?
#
# ## Find the culprit
#
# We measure the nineteen cuts on two short rows of speeches. That is enough to recognise the red one. Later we judge on other
# rows, which choose nothing.
#
# **Predict before you run.** How many of its 4,590 neurons are to blame for the disaster: most of them together, some hundreds,
# or a handful? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A handful, and the next exercise finds the first of them. Had the harm come from many small losses, other cuts would have been
# nearly as bad. One outlier among nineteen looks like something that a cut either hits or misses.
#
# </details>

# %%
whole_few, harms = loss(base, few), {}
for seed, gone in chance.items():
    harms[seed] = loss(without(base, gone), few) - whole_few
ranked = sorted(harms, key=harms.get)
next_worst, worst = ranked[-2:]
disaster = chance[worst]
print(f"the median cut: {harms[ranked[9]]:.2f} nats per token", end=", ")
print(f"worst but one: {harms[next_worst]:.2f}, the worst: {harms[worst]:.2f}")
more = harms[worst] - 2 * harms[next_worst]
here("One cut does over twice the damage of every other.", [more])

# %% [markdown]
# ### Exercise 2 · ●●○ · 8 minutes
#
# Trying one neuron at a time would take 4,590 runs of the model. Halving takes two dozen. Write `halve(suspects, harm)`: divide
# the suspects into two halves and put each back in turn. The half whose return leaves less harm holds a culprit. Go on with that
# half until one suspect is left, and return it. `harm(back)` runs a model, so call it only twice per step. The check first plants
# culprits in lists, then your function searches the disaster.
#
# <details><summary>Hint</summary>
#
# `middle = len(suspects) // 2`. Compare the halves with each other, not with a fixed number, because how much harm is left
# differs from cut to cut.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_halve


known = {}  # what `harm` has measured, so that no model is run twice


def harm(back):
    """The damage that is left on the two rows when these neurons come back."""
    back = frozenset(back)
    if back not in known:
        known[back] = loss(without(base, set(disaster) - back), few) - whole_few
    return known[back]


# BEGIN SOLUTION
def halve(suspects, harm):
    while len(suspects) > 1:
        middle = len(suspects) // 2
        left, right = suspects[:middle], suspects[middle:]
        suspects = left if harm(left) < harm(right) else right
    return suspects[0]


# END SOLUTION
# BEGIN STUB
# def halve(suspects, harm):
#     ...  # one of the suspects
# END STUB
check_halve(halve, disaster, harm)

# %% [markdown]
# ## There are two
#
# Your function searches twice: among all neurons, and then (to save time) among the others of the block where it found the first.
# If there is only one culprit, the second search can heal nothing.

# %%
search = check_halve.accepted  # your function, once it is right
first = search(disaster, harm)
same_block = [one for one in disaster if one[0] == first[0] and one != first]
second = search(same_block, harm)
pair = [first, second]
cuts = {
    "the disaster": disaster,
    "the first comes back": set(disaster) - {first},
    "the second comes back": set(disaster) - {second},
    "both come back": set(disaster) - {first, second},
    "the two alone": pair,
}
told = {name: damage(without(base, gone)) for name, gone in cuts.items()}
told = pd.DataFrame(told, index=list(judges)).T
print(f"block and neuron: {first} and {second}")
half = told.loc["the disaster"].to_numpy() / 2
_, *left, _, both_alone = told.to_numpy()
here("With either of the two back most damage is gone.", np.ravel(half - left))
here("The two alone do less than half of it.", half - both_alone)
told.round(2)

# %% [markdown]
# *Damage in nats per token, on rows that chose nothing. (The same cut costs different amounts on different rows, so these numbers
# aren't those of the first figure.)*
#
# How can two different neurons each be the cure? Because either of them nearly does the job alone. This disaster needs **both**
# of them gone. A blind tenth takes both with a chance of about one in a hundred.
#
# Is it really these two, and not something else in the red cut? Then the same two must harm other cuts as well. We take them out of
# six of the eighteen harmless ones. As a control we take out two other neurons of the same block instead.

# %%
before, after, other = [], [], []
two_others = [one for one in same_block if one != second][:2]  # of the same block
for seed in tqdm(ranked[:-1:3], desc="cuts"):  # every third
    before.append(harms[seed])
    model = without(base, {*chance[seed], *pair})
    after.append(loss(model, few) - whole_few)
    model = without(base, {*chance[seed], *two_others})
    other.append(loss(model, few) - whole_few)
print(f"six other cuts: {min(before):.1f} to {max(before):.1f} nats", end=", ")
print(f"without the two as well: {min(after):.1f} to {max(after):.1f}", end=", ")
print(f"without two others: {min(other):.1f} to {max(other):.1f}")
here("Two others do less harm in each of the six.", np.subtract(after, other))

# %% [markdown]
# Each of them gets worse without the two, and none without two others. So it is these two. (How much worse a cut gets depends on what
# else it took, and on the rows.)
#
# Now compare the last two rows of the table. The rest of the cut, with both back, does little. The two alone do no more than an
# ordinary blind cut of 4,590. Both together are the disaster, and that is far more than the sum. So losing the two is *needed*,
# but not *enough*. Somebody helped. The last exercise finds out who.
#
# ## What do the two write?
#
# Both sit in the same block. We look at the numbers that they hold at the first token of a row.
#
# **Predict before you run.** All neurons of the block, over a thousand, add one vector together to the *first* token's state.
# What share of it comes from these two: 2 %, 20 % or nearly all? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Nearly all, 99 %. At the first token they hold 61 and −37.
#
# </details>

# %%
place = first[0]
numbers = [number for block, number in pair if block == place]
mlps, holds = describe(base).mlps[: place + 1], []


def look(down, inputs):
    holds.append(inputs[0][:, 0].mean(dim=0))  # each neuron, at the first token


hooks = [mlp.down.register_forward_pre_hook(look) for mlp in mlps]
loss(base, choosing)
for hook in hooks:
    hook.remove()
down = mlps[place].down.weight
written = down @ holds[place]  # by all neurons, into each channel
constant = down[:, numbers] @ holds[place][numbers]  # by the two
channel = constant.abs().argmax().item()
print(f"at the first token they hold {holds[place][numbers].round().tolist()}")
share = (constant @ written / written.square().sum()).item()
print(f"the two together write {share:.0%} of what the whole MLP writes there")
print(f"most goes into channel {channel}, a {constant[channel]:.0f}")
in_l1 = {*chosen["L1"]}
for one in pair:
    print(f"{one}: {'loud' if one in loud else 'not loud'}", end=", ")
    print("taken by L1" if one in in_l1 else "not taken by L1")
here("Most of what this MLP writes at the first token is theirs.", [share - 0.5])

# %% [markdown]
# We also look at what becomes of it. `watch` runs a model and keeps four things of every block: the tokens' states, their
# **keys** (by which other tokens find them), their **values** (what they say to those that look), and the attention weights (who
# looks where).


# %%
@torch.no_grad()
def watch(model, rows):
    """States, keys, values and attention weights of all blocks."""
    model.set_attn_implementation("eager")  # the one that shows its weights
    seen, hooks = defaultdict(list), []

    def keep(name):
        return lambda module, inputs, output: seen[name].append(output)

    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(keep("states")))
        hooks.append(layer.self_attn.k_proj.register_forward_hook(keep("keys")))
        hooks.append(layer.self_attn.v_proj.register_forward_hook(keep("values")))
    ids = rows.input_ids.to(model.device)
    seen["weights"] = model.model(ids, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    model.set_attn_implementation("sdpa")
    return {name: torch.stack(tuple(each)) for name, each in seen.items()}


arms = {"the whole model": base, "the disaster": without(base, disaster)}
arms["one neuron back"] = without(base, set(disaster) - {first})
watched = {name: watch(model, choosing) for name, model in arms.items()}
ruined_model = arms["the disaster"]

# %%
_, panel = plt.subplots(figsize=(9, 4.8), layout="constrained")
for name, how in zip(watched, ("whole", "wrong", "attentions"), strict=True):
    lengths = watched[name]["states"].norm(dim=-1).mean(dim=1).cpu()
    look = mark(how) | {"label": name, "linestyle": "-", "markersize": 5}
    panel.plot(lengths[:, 0], **look)  # [blocks, tokens]
    if name == "the whole model":
        look |= {"label": "its other tokens", "linestyle": ":", "marker": ""}
        panel.plot(lengths[:, 1:].mean(dim=1), **look)
panel.set(xlabel="block", ylabel="length of the state", yscale="log")
panel.legend(fontsize="small", loc="center right")
show(
    "The length of the first token's state behind each block, logarithmic: in the "
    "whole model it jumps at blocks 2 and 11; in the disaster the first jump is "
    "missing; with one neuron back it is there. Other tokens stay far below."
)

# %% [markdown]
# *The length of the first token's state. (Dotted: other tokens, in the whole model.) In the disaster (red) the rise in block 2 is
# missing, and the one in block 11 ends far lower. One neuron brings both back.*
#
# So the two write **one giant number** into one channel of the first token's state, and a few smaller ones beside it. It stays
# there for six blocks. Then it is taken away, and block 11 writes another one, which is far smaller in the disaster. (Lesson 04
# tells more of that.) Such numbers are called **massive activations** (Sun et al. 2024). What is this one for?
#
# ## Where a head looks when it has nothing to say
#
# Think of an attention head. Its weights must sum to one, so it always has to look *somewhere*, even if nothing there is of use.
# It needs a place where looking changes little. The first token is the only one that all tokens can see, so models use it as that
# place: the **attention sink** (Xiao et al. 2023).
#
# For this to work, the first token must say little, and the giant number can see to that. Before a head reads a state, the state
# is divided by its length. If nearly all of the length is one giant number, everything else becomes small. And the giant number
# itself is hardly read: the matrix that makes the next values has a very short column for that channel (the cell below prints
# it). So the giant number works like a hand over the token's mouth.
#
# **Predict before you run.** Take a head that looks at the first token nearly all of the time. In the disaster, where does it
# look? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It turns away, and looks at itself and at other tokens. In the second half of the model, heads gave 61 % of their attention to
# the first token, and in the disaster 17 %.
#
# </details>

# %%
behind = range(place + 1, len(base.model.layers))[:8]  # the blocks that come next
says = {}


def looks(seen):
    """How much heads of the model's second half look at the first token."""
    later = seen["weights"][len(seen["weights"]) // 2 :]
    return later[..., 8:, 0].mean().item()  # by tokens that have a choice


for name, seen in watched.items():
    lengths = seen["values"].norm(dim=-1).mean(dim=1)[list(behind)]
    says[name] = (lengths[:, 0].mean() / lengths[:, 1:].mean()).item()
    print(f"{name}: it says {says[name]:.2f} of what other tokens say", end=", ")
    print(f"and later gets {looks(seen):.0%} of the attention")
talks = says["the disaster"] - 1.5 * says["the whole model"]
here("In the disaster the first token talks.", [talks])
layer = base.model.layers[behind[0] if behind else place]
reads = (layer.self_attn.v_proj.weight * layer.input_layernorm.weight).norm(dim=0)
little = reads[channel] / reads.median()
print(f"values read channel {channel} at {little:.0%} of the median channel")

# %%
two = list(watched)[:2]  # the whole model, the disaster
with_sink, no_sink = (watched[name]["weights"][..., 8:, 0] for name in two)
drop = (with_sink - no_sink).mean(dim=(1, 3))  # [blocks, heads]
block, head = divmod(drop.argmax().item(), drop.shape[1])  # the largest drop
words = [tokenizer.decode(token) for token in choosing.input_ids[0, :20]]
_, panels = plt.subplots(1, 2, figsize=(12, 6.6), sharey=True, layout="constrained")
for panel, name in zip(panels, two, strict=True):
    weights = watched[name]["weights"][block, 0, head, :20, :20].cpu()
    shades = panel.imshow(weights, vmin=0, vmax=1, cmap="Greys")
    panel.set(title=name, xlabel="… looks at this token")
    panel.set_xticks(range(20), words, rotation=90, fontsize="small")
    panel.set_yticks(range(20), words, fontsize="small")
    panel.grid(False)
panels[0].set(ylabel="this token …")
plt.colorbar(shades, ax=panels, shrink=0.6, label="share of its attention")
show(
    "Two maps of one head's attention. In the whole model the first token's column "
    "is dark from top to bottom. In the disaster it is pale, and others are darker."
)

# %% [markdown]
# *One head, the same text twice: of all heads the one whose attention to the first token drops most, on average over the rows.
# Each row is a token, and dark is where it looks. Left, the dark column is the sink. Right, the head mixes in what it finds
# instead.*
#
# It is the extreme case; the printed lines before the figure are the average over all heads. They measure two places: what the
# token says in the eight blocks behind the two, and who looks at it in the second half of the model. The first lies earlier in the
# model. Does it cause the second?
#
# ## Touch it
#
# So far that is a story. We test it by putting back what the two neurons write, and no neuron: **one constant vector**, added to
# the first token's state and to nothing else. (Changing a state inside a running model is called **patching**.) This model puts
# no special token in front. So the first token is some word, and another one in each row.
#
# Then we put back less: only the giant number, **one number** in one channel; and then the vector without it. The
# control is the same number in another channel: the one with the longest column in the matrix that makes the values.
#
# **Predict before you run.** All 4,590 neurons stay out. Which of these heal the disaster? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The constant heals it, as well as a neuron does. So one vector, the same for every row, can replace the two. The one number
# heals most of it alone. In a channel that values do read, the same number helps little.
#
# One thing surprises. The vector *without* the giant number heals nearly half, too, so the smaller numbers count. (On other rows it
# heals less.)
#
# </details>


# %%
def patched(model, vector, texts=("speeches", "wiki")):
    """The damage when a vector is added to the first token's state at the block."""

    def hook(block, inputs, states):
        states = states.clone()
        states[:, 0] += vector
        return states  # what a hook returns takes the output's place

    handle = model.model.layers[place].register_forward_hook(hook)
    found = damage(model, texts)
    handle.remove()
    return found


alone, elsewhere = torch.zeros_like(constant), torch.zeros_like(constant)
alone[channel] = elsewhere[reads.argmax()] = constant[channel]  # one number
told.loc["the constant"] = patched(ruined_model, constant)
told.loc["its giant number alone"] = patched(ruined_model, alone)
told.loc["the constant without it"] = patched(ruined_model, constant - alone)
told.loc["the same number, read most"] = patched(ruined_model, elsewhere)
full, number, _, other = told.to_numpy()[-4:]
here("One constant vector at the first token heals half of it.", half - full)
here("One number heals over a third of it.", half * 4 / 3 - number)
claim("It heals more than the same number in another channel.", other - number)
told.drop(index=list(cuts)[2:]).round(2)

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# The next intervention is yours, and it tests the reason itself. If the harm comes from what the first token *says*, then it must
# help to silence it. Write `silence(model, blocks, token)`: it registers a hook on the `v_proj` of each of these blocks that sets
# the values of one token to zero, and returns the list of handles. The values are [rows, tokens, size]. Leave the given tensor as
# it is.
#
# <details><summary>Hint</summary>
#
# The blocks are `model.model.layers`, and their attention is `self_attn`. A forward hook gets `(module, inputs, output)`. If it
# returns a tensor, that takes the output's place, so `clone` the output first.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_silence


# BEGIN SOLUTION
def silence(model, blocks, token):
    def mute(module, inputs, values):
        values = values.clone()
        values[:, token] = 0
        return values

    handles = []
    for block in blocks:
        attention = model.model.layers[block].self_attn
        handles.append(attention.v_proj.register_forward_hook(mute))
    return handles


# END SOLUTION
# BEGIN STUB
# def silence(model, blocks, token):
#     ...  # a list of handles
# END STUB
check_silence(silence)

# %% [markdown]
# ## Silence it
#
# Your hooks silence the first token in the eight blocks behind the two neurons: in the whole model, and in the disaster.
#
# (The first token sees nobody but itself. So a silent one tells the others nothing, and doesn't hear itself either.)
#
# **Predict before you run.** What will silence do to the whole model, and what to the disaster? And the later heads, which had
# turned away from the first token: do they come back? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# To the whole model silence does nothing, since the first token says little there anyway. In the disaster over half of the damage
# is gone, and the heads come back: 47 %, where the disaster had left 16 %. (That is on the rows that judge, so it isn't 17 %.)
#
# </details>


# %%
def damage_and_looks(model):
    """Its damage, and how much its later heads look at the first token there."""
    seen, layers = [], model.model.layers

    def note(attention, inputs, output):
        seen.append(output[1][..., 8:, 0].mean().item())

    model.set_attn_implementation("eager")
    later = [layer.self_attn for layer in layers[len(layers) // 2 :]]
    handles = [each.register_forward_hook(note) for each in later]
    found = [*damage(model), np.mean(seen)]
    for handle in handles:
        handle.remove()
    model.set_attn_implementation("sdpa")
    return found


# %%
back = without(base, set(disaster) - {*pair})
silent = {"the whole model": damage_and_looks(base)}
silent["the disaster, both back"] = damage_and_looks(back)
silent["the disaster"] = damage_and_looks(ruined_model)
for name, model in (("the whole model", base), ("the disaster", ruined_model)):
    handles = check_silence.accepted(model, behind, 0)
    silent[f"{name}, silent"] = damage_and_looks(model)
    for handle in handles:
        handle.remove()
silent = pd.DataFrame(silent, index=[*judges, "attention to it"]).T
*_, ill, whole_silent, all_silent = silent.to_numpy()
claim("Silence hardly changes the whole model.", 0.1 - abs(whole_silent[:2]))
here("Silencing the first token heals a part of it.", half * 1.5 - all_silent[:2])
here("Once it is silent, heads look at it again.", [all_silent[2] - ill[2]])
silent.round(2)

# %% [markdown]
# *Damage in nats per token, and the share of later attention that the first token gets.*
#
# So what the token says does harm, to others or to itself, and **the two neurons help to keep it silent**. But some damage is left:
# compare the row with both neurons back.
#
# There is one more suspect. A head compares its *query*, what it looks for, with each token's *key*. So the key of the first
# token decides how easily it is found, and in the disaster that key may have changed as well. So we give the disaster the first token's
# keys of the whole model, then its values, then both, in all blocks behind the two. (It is one key and one value per block, the
# mean over other rows.)
#
# **Predict before you run.** What does each of them heal? And with the keys alone, where will heads look? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The keys alone bring the attention back, and heal nothing. The values alone heal over half, and some attention comes back by itself.
# Both together do what the constant did. (They must nearly do so, since others get nothing else from this token.)
#
# </details>


# %%
def as_in_the_whole(*parts):
    """Damage and attention if the first token has these of the whole model."""
    handles = []
    for block in range(place + 1, len(ruined_model.model.layers)):
        attention = ruined_model.model.layers[block].self_attn
        modules = {"keys": attention.k_proj, "values": attention.v_proj}
        for part in parts:
            right = watched["the whole model"][part][block, :, 0].mean(dim=0)

            def hook(module, inputs, output, right=right):
                return torch.cat([right.expand_as(output[:, :1]), output[:, 1:]], 1)

            handles.append(modules[part].register_forward_hook(hook))
    found = damage_and_looks(ruined_model)
    for handle in handles:
        handle.remove()
    return found


given = {name: silent.loc[name] for name in list(silent.index)[1:3]}
for parts in (["keys"], ["values"], ["keys", "values"]):
    given[f"with the right {' and '.join(parts)}"] = as_in_the_whole(*parts)
given = pd.DataFrame(given, index=[*judges, "attention to it"]).T
keys, values, both = given[[*judges]].to_numpy()[2:]
claim("The keys alone don't heal.", keys - 1.5 * half)
here("The values alone heal a third of it.", half * 4 / 3 - values)
here("Keys and values together heal over half of it.", half - both)
given.round(2)

# %% [markdown]
# So a good sink is **silent and easy to find**: it has a value that says little, and a key that draws the heads there. To be easy to
# find helps only a silent token: the right keys heal nothing while the values are wrong, and most of the rest once they are right.
#
# ## Who helped?
#
# One riddle is left. The two were *needed* for the disaster, and not *enough*. Which of its 4,590 neurons are enough? Until now
# we asked: who, put back, heals? Now we ask: who, cut alone, ruins? `ruined(gone)` says whether losing only these neurons does
# more than a third of the disaster's damage.

# %%
from course_utils.text import further_rows

exam = {text: rows[:4] for text, rows in further_rows(tokenizer).items()}
intact = {text: loss(base, rows) for text, rows in exam.items()}
least = loss(base, others)  # two other rows
limit = least + (loss(ruined_model, others) - least) / 3


def ruined(gone):
    """Whether losing only these does over a third of the disaster's damage."""
    return loss(without(base, gone), others) > limit


def judge(gone):
    """The damage of losing only these, on each text of the exam."""
    model = without(base, gone)
    return {text: loss(model, rows) - intact[text] for text, rows in exam.items()}


print(f"all of the disaster: {ruined(disaster)}, the two alone: {ruined(pair)}")

# %% [markdown]
# ### Exercise 4 · ●●● · 18 minutes
#
# Write `enough(suspects, ruined)`. It returns a list of suspects that ruin the model together, and none too many: without any one
# of them it isn't ruined. `halve` can't do that. Why not? In which case does halving lead astray, and what must you do then? The
# check plants such cases in lists, and counts your calls. Then your function searches the disaster, and what it finds is judged
# on rows that nothing has used.
#
# <details><summary>Hint</summary>
#
# If one half alone is enough, go on with it. If neither is, then some culprits sit in the left half and some in the right. Search
# the left half while all of the right half stays cut. A function that calls itself is shortest: `enough(suspects, ruined,
# gone=())`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_enough


# BEGIN SOLUTION
def enough(suspects, ruined, gone=()):
    """Those of the suspects that ruin a model which has lost `gone` as well."""
    if len(suspects) == 1:
        return list(suspects)
    middle = len(suspects) // 2
    left, right = suspects[:middle], suspects[middle:]
    if ruined([*gone, *left]):
        return enough(left, ruined, gone)
    if ruined([*gone, *right]):
        return enough(right, ruined, gone)
    some = enough(left, ruined, [*gone, *right])  # it takes both halves
    return some + enough(right, ruined, [*gone, *some])


# END SOLUTION
# BEGIN STUB
# def enough(suspects, ruined):
#     ...  # a list of suspects
# END STUB
check_enough(enough, disaster, ruined, judge)

# %% [markdown]
# ## The cliff
#
# What you found should fit the reason. The two write one number, into one channel of the first token's state. So whoever helped
# should write into the same channel. Here are the neurons of the disaster that write most into it, up to the block of the two.

# %%
writes = {}
for block, number in disaster:
    if block <= place:
        into_channel = mlps[block].down.weight[channel, number]
        writes[block, number] = (holds[block][number] * into_channel).item()
writers = sorted(writes, key=writes.get, reverse=True)[:5]
for block, number in writers:
    print(f"block {block}, neuron {number} writes {writes[block, number]:.0f}")
helper = next(neuron for neuron in writers if neuron not in pair)

# %% [markdown]
# Is yours among the first on the list?
#
# Now we turn that one number up and down, at the first token, and nothing else. No neuron comes back. We do so in the disaster,
# in the model that lost only the two, and in the model that lost the two and the third on the list, the *helper*.
#
# **Predict before you run.** How does the damage change with the size of the number: evenly, or all at once? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Not evenly. While the number is large, the damage changes little. As it gets small, the damage rises steeply, in each of the three
# models. Without the two, the model stands at the foot of the slope, at 182. The helper, neuron 49 of block 1, writes only a little,
# but there a little counts. (And it does something beside the number, as we shall see.)
#
# </details>

# %%
curves, giant = {}, constant[channel].item()
for name, model, doses in (
    ("the disaster", ruined_model, (0, 0.05, 0.1, 0.2, 0.5, 1)),
    ("two and helper gone", without(base, [*pair, helper]), (0, 0.05, 0.1, 0.5)),
    ("the two gone", without(base, pair), (0, -0.06, -0.12, 0.5)),
):
    states = watch(model, judges["speeches"])["states"]
    held = states[place, :, 0, channel].mean().item()
    costs = [patched(model, dose * alone, texts=["speeches"])[0] for dose in doses]
    numbers = [held + dose * giant for dose in doses]
    curve = curves[name] = np.array([numbers, costs]).T
    print(f"{name}: the number is {curve[0, 0]:.0f}, the damage {curve[0, 1]:.2f}")
    by_number = curve[curve[:, 0].argsort()][:4, 1]
    claim(f"The damage falls as the number grows: {name}.", -np.diff(by_number))

# %%
_, panel = plt.subplots(figsize=(9, 5), layout="constrained")
for name, how in zip(curves, ("wrong", "blocks", "own choice"), strict=True):
    curve = curves[name][curves[name][:, 0].argsort()]
    panel.plot(*curve.T, **mark(how) | {"label": name})
    panel.plot(*curves[name][0], **mark(how) | {"label": "_", "markersize": 16})
panel.set(xlabel=f"the number: channel {channel} of the first token's state")
panel.set(ylabel="damage (nats per token)", ylim=(0, None))
panel.legend(fontsize="small", title="large mark: as it is")
show(
    "Damage against the number, for three models. Curves fall steeply at first; "
    "as it is, the disaster stands high, the model without the two at the foot."
)


# %% [markdown]
# *The large marks are the three models as they are. From there we turn the one number. Each curve has its cliff at the left.*
#
# So that is the story. **Turn the one number, and each of the three models falls ill or recovers.** The two write most of it.
# Without them a rest is left, and the model lives on that rest. The disaster lost a part of the rest as well, and a tenth of
# everything else.
#
# It isn't the whole story. Compare the two lower curves at the same number: the model that lost the helper as well stands higher.
# So more than half of the helper's harm is something beside the number, and we don't know what. How much it adds depends on the rows, too: on two
# further draws of text it is about a third of what it is here. We chose the two rows of the search because it finds few neurons
# there; on other pairs of rows, or in another order of the suspects, it finds other and longer lists. And at its far right the
# disaster's curve rises again. We don't know why.
#
# ## Quiz

# %% [markdown] tags=["quiz"]
# Putting two neurons back heals a disaster of 4,590. What does that show?
#
# - [ ] That these two alone, cut from the whole model, would be as bad.
#   > Needed isn't enough: alone they do a fraction of the damage.
# - [x] That without their loss this cut would be no disaster.
#   > Put back, they heal. That is what the experiment changed, and all that it shows.
# - [ ] That the other neurons of this cut are useless to the model.
#   > With both back, the rest of the cut still cost something, as the table shows.

# %% [markdown] tags=["quiz"]
# Another model is ruined if *either* of two neurons goes, and a cut took both. You put back one half of the cut, then the other.
# What do you see?
#
# - [ ] One half heals the model, so halving goes on as usual.
#   > Only if both neurons happen to sit in that half.
# - [ ] Both halves heal it, because each brings back one neuron.
#   > One neuron back isn't enough here: the other is still gone.
# - [x] Perhaps neither half heals it, and comparing them leads astray.
#   > Halving works if one culprit suffices. Here it takes two. So keep one half back while you search the other: the mirror image of the last exercise.

# %% [markdown] tags=["quiz"]
# A head of block 5 puts half of its attention on the first token. Is that token important to what the head says?
#
# - [ ] Yes, attention shows what a head takes its information from.
#   > It shows where a head looks. What it takes is attention times value, and a sink's value is small.
# - [x] Not if its values are small: then the head looks there in order to say little.
#   > That is what a sink is for. Silencing it in the early blocks changed nothing.
# - [ ] No, first tokens never matter, so one could leave them out.
#   > Without a sink heads must look elsewhere, and then they say something.

# %% [markdown]
# ## Take-aways
#
# - In this Llama small weights mislead. A look at a little text beats every blind choice.
# - A disaster can have a small cause. Searching by halves finds it in two runs per step.
# - *Needed* and *enough* are two questions. Put it back, and cut it alone.
# - **The first token is a sink.** Heads look at it when they have nothing to say. A giant number in its state keeps it silent and
#   easy to find, and a few neurons write that number. Don't cut those.
#
# **On Monday:** after any cut, look at how much attention later heads give the first token. It takes one forward pass, and would
# have shown this disaster. It doesn't prove health: with the right keys alone the attention was back, and the model still ill.
#
# **Next:** lesson 04 takes whole blocks out. One of them is block 11.
#
# ## Go deeper
#
# [What doesn't a weight know?](deeper/03a_what_a_weight_does_not_know.ipynb)
#
# ## References
#
# - Xiao et al. 2023 (StreamingLLM), arXiv 2309.17453: the attention sink
# - Sun et al. 2024, *Massive Activations in Large Language Models*, arXiv 2402.17762: the giant numbers at first tokens
# - Zeller 1999, *Yesterday, My Program Worked. Today, It Does Not. Why?*, doi 10.1145/318774.318946: halving where it takes two
# - Junker 2004, *QuickXplain*, AAAI: the last exercise's search
# - Sun et al. 2023 (Wanda), arXiv 2306.11695: weights times activations
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea: one score for gate and up
# - Yu et al. 2024, *The Super Weight in Large Language Models*, arXiv 2411.07191: single weights that a model needs
