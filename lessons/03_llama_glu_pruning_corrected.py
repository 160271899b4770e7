# ---
# jupyter:
#   course:
#     title: "GLU pruning done right: which neurons must stay"
#     minutes: 90 to 120 minutes
#     prerequisites: lesson 01 (hooks, nineteen random cuts, a constant isn't nothing), lesson 02 (a GLU's neuron, guessing)
#     assets: [smollm2, texts, speeches]
#     concepts: [residual stream, search by halves, attention sink, massive activations, patching, peak-to-peak, paired interval]
# ---

# %% [markdown]
# ## The question
#
# Nineteen times we cut a tenth of a Llama's neurons blindly. Eighteen times it gets worse, and lives. Once it is ruined. What did that
# cut hit?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Two neurons out of 4,590. They help to keep the first token silent, and that token is where attention heads look when they
# have nothing to say. In this cut it talks, and heads turn away.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** a disaster can have a cause of two neurons, one can find it in fifty runs of the model, and one can say *why*. The
# reason is the attention sink. Lesson 04 takes out block 11, which rebuilds it.
#
# **Usual questions:** "Why the first token?" Every later token can see it, so it is the one place that is always there. "Does every
# model do this?" Nearly all large ones; see the references. "Why not protect those two and be done?" Another cut has others: the last
# exercise.
#
# **Wrong turns:** a threshold in the search, where two halves want comparing; taking "needed" for "enough"; judging on the text that
# chose.
#
# **At the end you have** the two neurons behind the worst of nineteen cuts, a proof of what they are for, and scores for a Llama's
# neurons beside blind choice.

# %% tags=["install"]

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import (
    log_ticks, mark, read_record, safe_dtype, show, start, style,
)  # fmt: skip

session = start("03")
style()
record = read_record("random_cuts").query("dtype == 'float32'")  # on 48 rows each
record = record.assign(times=np.exp(record.damage))  # perplexity, × the whole's


def recorded(criterion, edit, text):
    """The record's rows for one kind of cut, by seed."""
    chosen = (record.criterion == criterion) & (record.edit == edit)
    return record[chosen & (record.text == text)].set_index("seed")


# %%
_, panels = plt.subplots(1, 2, figsize=(8, 4.6), sharey=True, layout="constrained")
for panel, text in zip(panels, ("speeches", "wiki"), strict=True):
    heights = recorded("random", "shared", text).times
    panel.plot([0] * len(heights), heights, linestyle="none", **mark("random"))
    panel.set_xticks([0], ["10 % cut, blindly"])
    panel.set(title=text, yscale="log", ylim=(1, 50))
    log_ticks(panel.yaxis)
panels[0].set(ylabel="perplexity, × the whole model's")
show(
    "Two panels, speeches and wiki, logarithmic. Eighteen grey dots lie between "
    "1.6 and 4 times the whole model's perplexity; one lies far above, beyond 30."
)

# %% [markdown]
# Each dot is a Llama that lost a tenth of its neurons, 4,590 of them, drawn blindly. (Perplexity is $e$ to the loss. × 2 means that the
# model hesitates between twice as many tokens.) Eighteen cuts stay near each other. The nineteenth took no more neurons than they did,
# and from the same blocks. What did it hit?
#
# ## What a neuron adds

# %%
diagrams.residual_stream(blocks=6, removed=[])
show(
    "The residual stream runs from the embeddings to the head; each of six blocks "
    "reads from it and adds to it, first to last, and nothing in it is replaced."
)

# %% [markdown]
# Each token has a state, a vector that runs through the model from block to block: the **residual stream**. Attention and MLP read the
# state and *add* to it. In a Llama the MLP adds
#
# $$\mathrm{MLP}(x) = W_{down}\,a, \qquad a = \mathrm{silu}(W_{gate}\,x) \odot W_{up}\,x$$
#
# So neuron $j$ adds its number $a_j$ times its column of `down_proj`. From lesson 02 you know the right surgery: the neuron's rows of
# gate and up and its column of down go together. Here is that surgery again, and the proof that it is exact.

# %%
from course_utils.models import describe, load_model, variant
from course_utils.pruning import neuron_importance, strongest


def lowest(scores, ratio=0.1):
    """The neurons that go, as (block, neuron), when so many of each block do."""
    gone = []
    for block, values in enumerate(scores):
        stay = set(strongest(values, ratio).tolist())  # all but the lowest tenth
        gone += [(block, n) for n in range(len(values)) if n not in stay]
    return gone


def without(model, gone):
    """A model without these neurons; it shares what it can with the given one."""
    small, gone = variant(model), set(gone)
    for block, mlp in enumerate(describe(small).mlps):
        stay = [n for n in range(mlp.width) if (block, n) not in gone]
        mlp.keep(torch.tensor(stay, device=model.device))
    return small


exact, tokenizer = load_model("llama")  # float32
gone = lowest(neuron_importance(exact, "random", seed=0))
masked = variant(exact)  # the same neurons are silent: their columns are zero
for block, mlp in enumerate(describe(masked).mlps):
    weight = mlp.down.weight.detach().clone()
    weight[:, [n for b, n in gone if b == block]] = 0
    mlp.down.weight = nn.Parameter(weight)
prompt = tokenizer("The Congress", return_tensors="pt").to(exact.device)
with torch.no_grad():
    models = exact, without(exact, gone), masked
    whole, pruned, silent = (model(**prompt).logits for model in models)
off, changed = ((pruned - other).abs().max().item() for other in (silent, whole))
print(f"{len(gone):,} neurons cut")
print(f"pruned against masked: {off:.1e}\npruned against whole:  {changed:.1e}")
claim("The pruned Llama equals the masked one.", [changed - 1000 * off])
del exact, masked, models

# %% [markdown]
# ## Find the culprit
#
# We draw the nineteen cuts again and measure them on two short rows of speeches. That is enough to recognise the bad one. Later we
# judge on other rows, which choose nothing.
#
# **Predict before you run.** How many of its 4,590 neurons are to blame for the disaster: most of them together, some hundreds, or a
# handful? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A handful, and the next exercise finds the first of them. Had the harm come from many small losses, other cuts would have been nearly
# as bad. One outlier among nineteen smells of something that is either hit or missed.
#
# </details>

# %%
from course_utils.measuring import perplexity
from course_utils.text import judging_rows, token_blocks

pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
sampled = pool.sample(74, seed=session.seed)
choosing, few = sampled[:6], sampled[:2]
batches = sampled[10:].batches(16)  # for scores that read text
judges = judging_rows(tokenizer, draw=session.seed)
judges = {text: rows[:10] for text, rows in judges.items()}
base, _ = load_model("llama", dtype=safe_dtype(session.dtype))
base.requires_grad_(False)


def nats(model, rows):
    """Loss in nats per token."""
    return perplexity(model, rows, batch_size=len(rows)).nll


intact = {text: nats(base, judges[text]) for text in judges}
whole_few = nats(base, few)
chance, harms = {}, {}
for seed in tqdm(range(19), desc="random cuts"):
    chance[seed] = lowest(neuron_importance(base, "random", seed=seed))
    harms[seed] = nats(without(base, chance[seed]), few) - whole_few
ranked = sorted(harms, key=harms.get)
fatal, harmless = ranked[-1], ranked[9]
print(f"the median cut: × {math.exp(harms[harmless]):.1f}")
print(f"the worst, number {fatal}: × {math.exp(harms[fatal]):.0f}")
times_worse = math.exp(harms[fatal] - harms[harmless])
here("One cut is over ten times as bad as the median.", [times_worse - 10])

# %%
disaster, tried = chance[fatal], {}


def harm(back):
    """The damage on the two rows that is left when these neurons come back."""
    if tuple(back) not in tried:
        model = without(base, set(disaster) - set(back))
        tried[tuple(back)] = nats(model, few) - whole_few
    return tried[tuple(back)]


middle = len(disaster) // 2
print(f"nothing comes back: {harm([]):.2f} nats")
print(f"the first half comes back: {harm(disaster[:middle]):.2f} nats")
print(f"the second half comes back: {harm(disaster[middle:]):.2f} nats")

# %% [markdown]
# ### Exercise 1 · ●●○ · 8 minutes
#
# Trying one neuron at a time would take 4,590 runs of the model. Halving takes two dozen. Write `halve(suspects, harm)`: divide the suspects
# into two halves and put each back in turn. The half whose return leaves less harm holds a culprit. Go on with that half
# until one suspect is left, and return it. `harm(back)` runs a model, so call it only twice per step. The check first plants
# culprits in lists, then your function searches the disaster.
#
# <details><summary>Hint</summary>
#
# `middle = len(suspects) // 2`. Compare the halves with each other, not with a fixed number, because how much harm is left differs
# from cut to cut.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_halve


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
# The library's `by_halves` is the same search. We call it twice: among all neurons, and then among all but the one that it found. If there
# is only one culprit, the second search can heal nothing.

# %%
from course_utils.pruning import by_halves


def times(model):
    """Perplexity on each judging text, × that of the whole model."""
    return [math.exp(nats(model, judges[text]) - intact[text]) for text in judges]


first = by_halves(disaster, harm)
second = by_halves([neuron for neuron in disaster if neuron != first], harm)
pair = [first, second]
told = {"the disaster": times(without(base, disaster))}
told["the first comes back"] = times(without(base, set(disaster) - {first}))
told["the second comes back"] = times(without(base, set(disaster) - {second}))
told["both come back"] = times(without(base, set(disaster) - set(pair)))
told["the median cut"] = times(without(base, chance[harmless]))
told["the two cut alone"] = times(without(base, pair))
more = {*chance[harmless], *pair}
told["the median cut and the two"] = times(without(base, more))
told = pd.DataFrame(told, index=list(judges)).T
print(f"block {first[0]}, neuron {first[1]}; block {second[0]}, neuron {second[1]}")
half = np.log(told.loc["the disaster"]) / 2  # of the damage, in nats
left = np.log(told.loc[["the first comes back", "the second comes back"]])
gone = (half - left).to_numpy().ravel()
here("With either of the two back most of the damage is gone.", gone)
alone = half - np.log(told.loc["the two cut alone"])
here("The two alone do less than half of the damage.", alone)
told.round(1)

# %% [markdown]
# *Perplexity on rows that chose nothing, × the whole model's. (The factor differs from rows to rows: on the two rows above the same
# cut cost × 59.)*
#
# How can two different neurons each be the cure? Because either of them can do the job alone. This disaster needs **both** gone, and of a
# hundred blind cuts of a tenth only one takes both. We were lucky to see it.
#
# The last two rows are a warning. Losing both is *needed* for this disaster, but it isn't *enough* for one. Cut only the two, and they cost
# as much as a blind cut of 4,590 neurons: a lot for two, and no disaster. Cut them on top of the median cut, and it gets worse, but
# not nearly as bad. The disaster needs something else too. What that is we don't fully know; below we see what goes wrong.
#
# ## What do the two write?
#
# Both sit in the same block. We look at the numbers that they hold, at the first token of a row and at all the others.
#
# **Predict before you run.** The block's MLP has over a thousand neurons. Of the vector that they all together write into the *first*
# token's state, how much comes from these two: 2 %, 20 % or nearly all? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Nearly all, 99 %. At the first token they hold 62 and −36, several times as much as elsewhere. And nearly all of what they write goes
# into one single channel of the state, number 507.
#
# </details>

# %%
place = first[0]
layers = base.model.layers
seen = []
down = layers[place].mlp.down_proj
hook = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
nats(base, choosing)
hook.remove()
held = seen[0].float()  # [rows, tokens, neurons]
columns = down.weight.float()
written = held[:, 0].mean(dim=0) @ columns.T  # into the first token's state
rows = {}
for block, neuron in pair:
    own = held[:, 0, neuron].mean() * columns[:, neuron]
    rows[f"block {block}, neuron {neuron}"] = {
        "at the first token": held[:, 0, neuron].mean().item(),
        "at others (rms)": held[:, 1:, neuron].square().mean().sqrt().item(),
        "share of all written": (own @ written / written.square().sum()).item(),
        "largest channel": own.abs().argmax().item(),
        "its share": (own.square().max() / own.square().sum()).item(),
    }
rows = pd.DataFrame(rows).T
share = rows["share of all written"].sum()
print(f"the two together write {share:.0%} of it")
here("Most of what this MLP writes at the first token is theirs.", [share - 0.5])
louder = rows["at the first token"].abs() - 2 * rows["at others (rms)"]
claim("Both are over twice as loud at the first token as elsewhere.", louder)
rows.round(2)

# %% [markdown]
# ## Where a head looks when it has nothing to say
#
# Why would a model build a giant number into the state of its first token? Think of an attention head. Its weights over itself and the tokens
# before it must sum to one, so it always has to look *somewhere*, even if nothing there is of use. It needs a place where looking changes little. The
# first token is the only one that every later token can see, so models use it as that place: the **attention sink** (Xiao et al. 2023).
# The giant numbers in its state are called **massive activations** (Sun et al. 2024).
#
# For a sink to work, heads must look at it, and it must say little. What a token says to a head is its *value*, and that is where the giant
# number helps. Before a head reads a state, it is divided by its length. If nearly all of the length is one giant channel, everything else
# becomes small. And the matrix that makes the values hardly reads that channel, as the next cell prints for one block. So the giant number works like a
# hand over the token's mouth.
#
# We measure three things at the first token: how long its state is behind each block, how long its values are beside those of other
# tokens, and how much of all attention goes to it.

# %%
channel = int(rows["largest channel"].iloc[0])
attention, norm = layers[place + 1].self_attn, layers[place + 1].input_layernorm
reading = (attention.v_proj.weight * norm.weight).float().norm(dim=0)  # per channel
rank = (reading < reading[channel]).sum().item()
print(f"of {len(reading)} channels, values read {rank} less than channel {channel}")


@torch.no_grad()
def watch_first_token(model, rows):
    """Per block: its state's length, how loud its value is, the attention to it."""
    model.set_attn_implementation("eager")  # the one that shows its weights
    states, values, hooks = [], [], []

    def note(found):
        return lambda module, inputs, output: found.append(output)

    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(note(states)))
        hooks.append(layer.self_attn.v_proj.register_forward_hook(note(values)))
    ids = rows.input_ids.to(model.device)
    found = model.model(ids, output_attentions=True, use_cache=False).attentions
    for hook in hooks:
        hook.remove()
    model.set_attn_implementation("sdpa")
    table = []
    for state, value, weights in zip(states, values, found, strict=True):
        length = value.float().norm(dim=-1)  # [rows, tokens]
        quiet = length[:, 0].mean() / length[:, 1:].mean()
        looks = weights[:, :, 8:, 0].float().mean()  # of tokens that have a choice
        table.append((state[:, 0].float().norm(dim=-1).mean(), quiet, looks))
    return np.array(table, dtype=float)  # [blocks, 3]


# %%
arms = {
    "the whole model": (base, "whole"),
    "the median cut": (without(base, chance[harmless]), "random"),
    "the disaster": (without(base, disaster), "wrong"),
    "one neuron back": (without(base, set(disaster) - {first}), "neurons"),
    "the two cut alone": (without(base, pair), "peak-to-peak"),
}
behind = range(place + 1, place + 9)  # the blocks that come next
first_token, quiet, looks = {}, {}, {}
for name, (model, _) in arms.items():
    found = first_token[name] = watch_first_token(model, choosing)
    quiet[name] = found[behind, 1].mean()
    looks[name] = found[len(layers) // 2 :, 2].mean()
    print(f"{name}: it says {quiet[name]:.2f} of what others say", end=", ")
    print(f"and gets {looks[name]:.0%} of the attention in the second half")
louder = ("the disaster", "the two cut alone")
louder = [quiet[name] - 1.5 * quiet["the whole model"] for name in louder]
here("Without the two the first token talks.", louder)

# %%
_, panels = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
for name, (_, how) in arms.items():
    for number, panel in enumerate(panels):
        look = mark(how) | {"label": name, "markersize": 5, "linestyle": "-"}
        panel.plot(first_token[name][:, number], **look)
panels[0].set(title="how long its state is", yscale="log")
panels[1].set(title="how much it says (others: 1)")
panels[2].set(title="attention that it gets")
for panel in panels:
    panel.axvline(place, linestyle=":", color=mark("whole")["color"])
    panel.set(xlabel="block")
panels[0].legend(fontsize="x-small")
show(
    "Three panels over the blocks, about the first token. In the whole model, the "
    "median cut, and with one neuron back its state is long from block 2 on, its "
    "values are about a fifth of other tokens' in blocks 3 to 9, and half of all "
    "attention goes to it later. In the disaster its state stays short up to block "
    "10, its values are as long as others', and attention turns away."
)

# %% [markdown]
# *The dotted line is the block of the two neurons. Look at the middle first: in the blocks behind it the first token ought to be silent.*
#
# In the whole model the first token says about a quarter of what other tokens say there, and gets a third of their attention.
# Without the two neurons it talks (red and green).
#
# Then comes block 11, which writes the giant number anew, thirty times as large. (The blocks before it had taken the first one away. Why, we
# don't know.) If only the two are gone, block 11 still manages that, and later heads have their sink. In the
# disaster it writes far less. From there on the token is as loud as any other, and heads turn away from it. (How far they turn away depends
# on the rows. On two further draws of rows it was less than here, but each time they did.)
#
# ## Touch it
#
# So far that is a story. We test it by touching it. We put back what the two neurons write, and no neuron: **one constant vector**, added to
# the first token's state and to nothing else. (Changing a state inside a running model is called *patching*.) We measure the vector on the
# choosing rows. Mind that this model puts no special token in front: the first token is simply the first word of a row, and another one in
# each row. Two controls: a random vector of the same length, and the same constant given to the *sixth* token.
#
# **Predict before you run.** All 4,590 neurons stay out. What does each of the three vectors do to the disaster? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The constant heals it, nearly as well as both neurons do. Lesson 01's sentence holds here as well: a constant isn't nothing. The random
# vector makes it worse.
#
# The surprise is the sixth token. Given the constant, it heals most of the disaster too. So the place isn't what counts. Perhaps the tokens
# behind the sixth have a silent place to look at again.
#
# </details>

# %%
numbers = [neuron for block, neuron in pair if block == place]
constant = held[:, 0, numbers].mean(dim=0) @ columns[:, numbers].T
blind = torch.randn(len(constant), generator=torch.Generator().manual_seed(0))
blind = blind.to(constant.device) * constant.norm() / blind.norm()


def adding(vector, token):
    """A hook that returns something replaces the module's output."""

    def hook(block, inputs, states):
        states = states.clone()
        states[:, token] += vector.to(states.dtype)
        return states

    return hook


model = arms["the disaster"][0]
for name, vector, token in (
    ("the constant at the first token", constant, 0),
    ("a random vector at the first token", blind, 0),
    ("the constant at the sixth token", constant, 5),
):
    hook = model.model.layers[place].register_forward_hook(adding(vector, token))
    told.loc[name] = times(model)
    hook.remove()
at_first, at_random, at_sixth = (np.log(told.iloc[row]) for row in (-3, -2, -1))
here("One constant vector at the first token heals the disaster.", half - at_first)
here("The same vector at the sixth token heals over half of it.", half - at_sixth)
claim("A random vector of its length doesn't.", at_random - half)
told.loc[["the disaster", "both come back", *told.index[-3:]]].round(2)

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# The next intervention is yours, and it tests the reason itself. If the harm comes from what the first token *says*, then it must help to
# silence it. Write `silence(model, blocks)`: it registers a hook on the `v_proj` of each of these blocks that sets the values of the
# first token to zero, and returns the list of handles. The values are [rows, tokens, size]. Leave the given tensor as it is.
#
# <details><summary>Hint</summary>
#
# The blocks are `model.model.layers`, and their attention is `self_attn`. A forward hook gets `(module, inputs, output)`. If it returns a
# tensor, that takes the output's place, so `clone` the output first.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_silence


# BEGIN SOLUTION
def silence(model, blocks):
    def hook(module, inputs, values):
        values = values.clone()
        values[:, 0] = 0
        return values

    handles = []
    for block in blocks:
        attention = model.model.layers[block].self_attn
        handles.append(attention.v_proj.register_forward_hook(hook))
    return handles


# END SOLUTION
# BEGIN STUB
# def silence(model, blocks):
#     ...  # a list of handles
# END STUB
check_silence(silence)

# %% [markdown]
# ## Silence it
#
# Now we silence the first token in the eight blocks behind the two neurons: in the disaster, and for comparison in the whole model and in
# the median cut. As a control we silence the sixth token in the disaster.
#
# **Predict before you run.** What will silence do to the whole model, and what to the disaster? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# To the whole model it does nothing, since the first token says little there anyway. In the disaster over half of the damage is gone, and
# silencing another token does nothing. And look at the printed line: later heads look at the first token again. So in this cut the second
# fault follows from the first, at least in part. (It needn't: with the two cut alone the token talks as well, and the later block copes.)
#
# </details>


# %%
def silenced(model, token):
    """Cost of a model with a silent token, and the attention to its first one."""

    def hook(module, inputs, values):
        return values.index_fill(1, torch.tensor(token, device=values.device), 0)

    attentions = [model.model.layers[block].self_attn for block in behind]
    hooks = [part.v_proj.register_forward_hook(hook) for part in attentions]
    cost, found = times(model), watch_first_token(model, choosing)
    for each in hooks:
        each.remove()
    return cost, found[len(layers) // 2 :, 2].mean()


silent, seen_again = {}, {}
for name, token in (
    ("the whole model", 0),
    ("the median cut", 0),
    ("the disaster", 0),
    ("the disaster, the sixth token", 5),
):
    model = arms[name.split(",")[0]][0]
    silent[name], seen_again[name] = silenced(model, token)
silent = pd.DataFrame(silent, index=list(judges)).T
claim("Silencing the sixth doesn't.", np.log(silent.iloc[-1]) - half)
claim("It hardly changes the whole model.", 0.1 - np.log(silent.iloc[0]).abs())
back = seen_again["the disaster"]
print(f"the disaster, silenced: later heads give it {back:.0%} of their attention")
silent.round(2)

# %% [markdown]
# Put the constant back, and the disaster is gone. Silence the first token in eight blocks, and a good part of it is gone: over half here, less
# than half on one of three draws of rows. So this is what the two neurons are for: **they keep the first token silent in the blocks before
# block 11 takes over**. What is left after silencing we don't know, nor why this cut keeps block 11 from its work.
#
# Sun et al. read the sink a little differently: as a constant that attention adds everywhere. That may well hold for later blocks. In these
# eight, silence costs the whole model nothing.
#
# ## Which score would have spared them?
#
# Nobody draws neurons blindly. Here are three scores for a neuron of a GLU. The first two look at weights only.
#
# - **L1**: the sum of the magnitudes in its rows of gate and up.
# - **Peak-to-peak** (Martra 2024): the largest weight plus the size of the smallest, summed over the two rows.
# - **Activation**, as in lesson 01: how large its number is on text, root mean square, times the length of its column of down.
#
# $$\mathrm{activation}_j = \sqrt{\frac{1}{T} \sum_t a_{tj}^2} \; \cdot \; \lVert W_{down}[:, j] \rVert$$

# %% [markdown]
# ### Exercise 3 · ●●○ · 12 minutes
#
# Write `contribution(model, batches)`, the third score: a list with one tensor [neurons] for each block. A batch is a dict of
# `input_ids` and `attention_mask`. Where the mask is 0 stands padding, which must not count. Remove your hooks at the end. The check tries
# your function on a tiny model with made-up text, in float32 and in 16 bits, and then on our Llama beside the library's score.
#
# <details><summary>Hint</summary>
#
# The blocks are `model.model.layers`, and each has an `mlp.down_proj`. Its pre-hook gets `(module, inputs)`, and `inputs[0]` is $a$, [rows,
# length, neurons]. Add up squares and count real tokens over all batches, and divide at the end. Squares overflow in float16, so take
# `.float()` first.
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
        down = layer.mlp.down_proj
        handles.append(down.register_forward_pre_hook(note(block)))
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
check_contribution(contribution, base, batches[:2])

# %% [markdown]
# ## Weights or text?
#
# The record has all three scores beside the nineteen blind cuts, on 48 rows of each text.
#
# **Predict before you run.** A tenth of the neurons go: by L1, by peak-to-peak, by `activation`, at random. Put them in order, from
# cheap to ruinous. Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# `activation` is cheaper than every blind cut. Peak-to-peak is worse than all but the disaster. L1 is worse than the disaster too, and
# multiplies the perplexity by hundreds.
#
# </details>

# %%
scored = {"activation": neuron_importance(base, "activation", batches=batches)}
scored["peak-to-peak"] = neuron_importance(base, "peak_to_peak")
scored["L1"] = neuron_importance(base, "l1")
costs = {name: times(without(base, lowest(scored[name]))) for name in scored}
print(pd.DataFrame(costs, index=list(judges)).T.round(2))
by_text, *by_weights = (np.array(factors) for factors in costs.values())
less = np.ravel(by_weights - by_text)
here("A look at text costs less than a look at weights.", less)
for text in judges:
    blind = recorded("random", "shared", text).times
    best = recorded("activation", "shared", text).times
    ahead = blind.min() - best
    claim(f"On record `activation` beats each blind cut: {text}.", ahead)
    for name in ("L1", "peak-to-peak"):
        beaten = (blind > recorded(name, "shared", text).times.iloc[0]).sum()
        claim(f"On record {name} beats one at most: {text}.", [1.5 - beaten])

# %% [markdown]
# Some rows are hard for every model, so we compare two cuts row by row. $d_r$ is one cut's loss minus the other's on row $r$. The mean of $d$,
# give or take two standard errors, is a **paired interval**: it holds the true mean in 95 of 100 experiments. If it leaves out 0, one cut is
# better.
#
# $$\bar d \;\pm\; 2\, s_d / \sqrt{n}$$

# %%
blind = recorded("random", "shared", "speeches").sort_values("damage").iloc[9]
for name in ("activation", "peak-to-peak", "L1"):
    d = recorded(name, "shared", "speeches").rows.iloc[0] - blind.rows
    half_width = 2 * d.std(ddof=1) / len(d) ** 0.5
    print(f"{name} minus the median blind cut: {d.mean():+.2f} nats", end=" ")
    print(f"({d.mean() - half_width:+.2f} to {d.mean() + half_width:+.2f})")

# %% [markdown]
# Why do weights do worse than no look at all? In lesson 01 the neurons with small weights hardly reacted. Let us see whether that holds here.
#
# **Predict before you run.** L1's lowest tenth is a tenth of all neurons. Which share of the *most active* twentieth does it hold: 0 %,
# 10 %, or more? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# More: 39 %, a mean over all blocks. So L1 isn't just ignorant here, it is misleading: it picks out loud neurons. Why this model gives
# small weights to many of its loudest neurons, we don't know.
#
# </details>

# %%
held_by_lowest = []
for weights, active in zip(scored["L1"], scored["activation"], strict=True):
    weak = set(range(len(weights))) - set(strongest(weights, 0.1).tolist())
    loud = active.topk(len(active) // 20).indices.tolist()
    held_by_lowest.append(len(weak & {*loud}) / len(loud))
mean_share = np.mean(held_by_lowest)
print(f"L1's lowest tenth holds {mean_share:.0%} of the most active twentieth")
here("L1's lowest tenth holds over twice its share of them.", [mean_share - 0.2])
print("L1's cut in the record, perplexity × the whole model's")
spared = {}
for name, edit in (
    ("nothing is spared", "shared"),
    ("the most active twentieth is spared", "top 77 protected"),
    ("as many at random are spared", "77 at random protected"),
):
    spared[name] = [recorded("L1", edit, text).times.min() for text in judges]
    print(f"{name}:", ", ".join(f"× {value:.3g}" for value in spared[name]))
_, active, blindly = (np.log(values) for values in spared.values())
claim("On record sparing the active ones halves L1's damage.", blindly / 2 - active)

# %%
worst = int(np.argmax(held_by_lowest))
_, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
for panel, block in zip(panels, (worst, place), strict=True):
    x, y = scored["L1"][block].cpu(), scored["activation"][block].cpu()
    line = x[strongest(x, 0.1)].min()
    look = {"linestyle": "none", "markersize": 4}
    cut_by_l1 = mark("L1") | look | {"label": "L1 cuts these"}
    panel.plot(x[x < line], y[x < line], **cut_by_l1)
    panel.plot(x[x >= line], y[x >= line], **mark("random") | look | {"label": "_"})
    panel.set(title=f"block {block}", xlabel="L1 norm", yscale="log")
two = [neuron for block, neuron in pair if block == place]
x, y = (scored[name][place][two].cpu() for name in ("L1", "activation"))
panels[1].plot(x, y, **mark("wrong") | {"linestyle": "none", "label": "the two"})
for panel in panels:
    panel.legend(fontsize="x-small")
panels[0].set(ylabel="activation")
show(
    "Two blocks, a dot per neuron, activation against L1 norm. Left, the neurons "
    "that L1 cuts are among the most active of their block. Right, the block of "
    "the two neurons, which lie far to the right and far above all others."
)

# %% [markdown]
# *Left: the block in which L1 errs most. Right: the block of the two neurons, which L1 would have kept.*
#
# The two are the first of their block by L1 as well, so L1 fails for another reason. The printed lines are the intervention: let L1 spare the
# most active twentieth of each block, and most of its damage is gone. Let it spare as many others, and it stays a wreck. So L1 fails
# because it cuts loud neurons.
#
# ## Another cut's secret
#
# A last search. We took another cut of a tenth, and swapped a few of its neurons for ones that the model needs. `search` tells the loss on the
# choosing rows when some come back. The check judges on rows that nothing has used.

# %%
from course_utils.lessons.exercises.lesson_03 import secret_cut
from course_utils.text import further_rows

secret = secret_cut(scored["activation"])
exam = {text: rows[:8] for text, rows in further_rows(tokenizer).items()}


def search(back):
    """Loss on the choosing rows when these of the secret cut come back."""
    return nats(without(base, set(secret) - set(back)), choosing)


def judge(gone):
    """Loss of a cut, in nats per token, on each text of the exam."""
    model = without(base, gone)
    return {text: nats(model, rows) for text, rows in exam.items()}


print(f"the secret cut removes {len(secret):,} neurons")
print(f"its loss is {search([]):.2f}, the whole model's {nats(base, choosing):.2f}")

# %% [markdown]
# ### Exercise 4 · ●●● · 15 minutes
#
# Give `culprits`, at most **four** neurons of `secret` as pairs (block, neuron). Put back, they must undo at least 80 % of what was planted, on
# both texts. One search finds one culprit. Who comes next?
#
# <details><summary>Hint</summary>
#
# A culprit that you have found comes back in every later call: `search(found + list(half))`. You see from what is left how many there
# are.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_culprits

# BEGIN SOLUTION
culprits = []
for _ in range(3):
    suspects = [neuron for neuron in secret if neuron not in culprits]
    found = by_halves(suspects, lambda half: search(culprits + list(half)))
    culprits.append(found)
    print(found, f"{search(culprits):.2f} nats per token")
# END SOLUTION
# BEGIN STUB
# culprits = ...  # for instance [(3, 14), (15, 9)]
# END STUB
check_culprits(culprits, secret, judge)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Putting two neurons back heals a disaster of 4,590. What does that show?
#
# - [ ] That these two alone, cut from the whole model, would be as bad.
#   > Needed isn't enough: alone they cost about what a blind cut costs.
# - [x] That without their loss this cut would be no disaster.
#   > Put back, they heal. That is what the experiment changed, and all that it shows.
# - [ ] That the other neurons of this cut are useless to the model.
#   > They still cost something, as the other blind cuts show.

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
# - A disaster can have a small cause. Searching by halves finds it in two runs per step.
# - *Needed* and *enough* are two questions: put it back, and cut it alone.
# - **The first token is a sink.** Heads look at it when they have nothing to say. A giant number in its state keeps it silent, and a few
#   neurons write that number. Don't cut those.
# - In this Llama small weights mislead. A look at a little text beat every blind choice.
#
# **On Monday:** after any cut, look at how much attention later heads give the first token. It takes one forward pass.
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
# - Sun et al. 2023 (Wanda), arXiv 2306.11695: weights times activations
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea: one score for gate and up
# - Yu et al. 2024, *The Super Weight in Large Language Models*, arXiv 2411.07191: single weights that a model needs
# - Zhang and Nanda 2024, *Towards Best Practices of Activation Patching*, arXiv 2309.16042
