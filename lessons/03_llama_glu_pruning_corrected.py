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
# **Answer.** Two neurons out of 4,590, without which this cut is no disaster. (They need help to make one: a third neuron, and
# much of the rest of the cut.) They write one giant number into the first token's state. That number keeps the token silent, so
# that attention heads can look there when they have nothing to say. Without it the first token talks.
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
# **At the end you have** the neurons behind the worst of nineteen cuts, a proof of what they are for, and a score for a Llama's
# neurons that beats blind choice.

# %% tags=["install"]

# %%
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

from course_utils.lessons import claim, here
from course_utils.support import log_ticks, mark, read_record, show, start, style

session = start("03")
style()
record = read_record("random_cuts").query("dtype == 'float32'")  # on 48 rows each


def recorded(criterion, text, edit="shared"):
    """The damage of one kind of cut in the record, by seed."""
    chosen = (record.criterion == criterion) & (record.edit == edit)
    return record[chosen & (record.text == text)].set_index("seed").damage


# %%
_, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
for panel, text in zip(panels, ("speeches", "wiki"), strict=True):
    damages = recorded("random", text)
    worst = damages.idxmax()
    panel.plot(damages.drop(worst), linestyle="none", **mark("random"))
    panel.plot(worst, damages[worst], linestyle="none", **mark("wrong"))
    panel.set(title=text, xlabel="number of the cut", ylim=(0, 4.2))
    panel.set_xticks(range(0, 19, 3))
panels[0].set(ylabel="damage (nats per token)")
show(
    "Two panels, speeches and wiki: the damage of nineteen blind cuts. Eighteen "
    "grey dots lie between 0.5 and 1.5 nats per token; a red cross, the last cut, "
    "lies far above at 3.5."
)

# %% [markdown]
# Each mark is a Llama that lost a tenth of its neurons, 4,590 of them, drawn blindly. Its height is the damage: what the cut adds
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
# So neuron $j$ adds its number $a_j$ times its column of `down_proj`. Lesson 02 proved that taking a neuron out of all three
# matrices equals silencing it, which means setting its column to zero. We will try hundreds of cuts, and silencing is quicker. So
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
    """The model with these neurons silent; it shares all other weights."""
    silent, numbers = variant(model), defaultdict(list)
    for block, number in gone:
        numbers[block].append(number)
    mlps = describe(silent).mlps
    for block, some in numbers.items():
        weight = mlps[block].down.weight.detach().clone()
        weight[:, some] = 0
        mlps[block].down.weight = nn.Parameter(weight, requires_grad=False)
    return silent


# %% [markdown]
# ## Find the culprit
#
# We draw the nineteen cuts again and measure them on two short rows of speeches. That is enough to recognise the bad one. Later
# we judge on other rows, which choose nothing.
#
# **Predict before you run.** How many of its 4,590 neurons are to blame for the disaster: most of them together, some hundreds,
# or a handful? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A handful, and the next exercise finds the first of them. Had the harm come from many small losses, other cuts would have been
# nearly as bad. One outlier among nineteen smells of something that is either hit or missed.
#
# </details>

# %%
from course_utils.measuring import perplexity
from course_utils.text import judging_rows, token_blocks

base, tokenizer = load_model("llama")
base.requires_grad_(False)
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
sampled = pool.sample(48, seed=session.seed)  # rows of 64 tokens
few, choosing = sampled[:2], sampled[:6]
judges = judging_rows(tokenizer, draw=session.seed)
judges = {text: rows[:6] for text, rows in judges.items()}


def loss(model, rows):
    """Nats per token."""
    return perplexity(model, rows, batch_size=len(rows)).nll


whole_few, chance, harms = loss(base, few), {}, {}
for seed in range(19):
    chance[seed] = lowest(neuron_importance(base, "random", seed=seed))
    harms[seed] = loss(without(base, chance[seed]), few) - whole_few
ranked = sorted(harms, key=harms.get)
median, next_worst, worst = ranked[9], ranked[-2], ranked[-1]
disaster = chance[worst]
print(f"the median cut: {harms[median]:.2f} nats per token")
print(f"the worst but one: {harms[next_worst]:.2f}")
print(f"the worst, number {worst}: {harms[worst]:.2f}")
more = harms[worst] - 2 * harms[next_worst]
here("One cut does over twice the damage of every other.", [more])

# %% [markdown]
# (*here: shown* means that the numbers of your own run bear the sentence out.)

# %% [markdown]
# ### Exercise 1 · ●●○ · 8 minutes
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


def harm(back):
    """The damage that is left on the two rows when these neurons come back."""
    model = without(base, set(disaster) - set(back))
    return loss(model, few) - whole_few


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
# Your function searches twice: among all neurons, and then among all but the one that it found. If there is only one culprit, the
# second search can heal nothing. (Until your own function is right, the course's takes its place. So it is after each exercise.)

# %%
search = check_halve.accepted  # your function, once it is right
first = search(disaster, harm)
second = search([neuron for neuron in disaster if neuron != first], harm)
pair = [first, second]
whole = {text: loss(base, rows) for text, rows in judges.items()}


def damage(model):
    """What a model loses on each judging text, in nats per token."""
    return [loss(model, judges[text]) - whole[text] for text in judges]


cuts = {
    "the disaster": disaster,
    "the first comes back": set(disaster) - {first},
    "the second comes back": set(disaster) - {second},
    "the median cut": chance[median],
    "the two alone": pair,
    "the median cut and the two": {*chance[median], *pair},
}
told = {name: damage(without(base, gone)) for name, gone in cuts.items()}
told = pd.DataFrame(told, index=list(judges)).T
print(f"block {first[0]}, neuron {first[1]}; block {second[0]}, neuron {second[1]}")
half = told.loc["the disaster"] / 2
left = told.loc[["the first comes back", "the second comes back"]]
here("With either of the two back most damage is gone.", np.ravel(half - left))
here("The two alone do less than half of it.", half - told.loc["the two alone"])
told.round(2)

# %% [markdown]
# *Damage in nats per token, on rows that chose nothing.*
#
# How can two different neurons each be the cure? Because either of them does the job alone. This disaster needs **both** of them
# gone. A blind tenth takes both with a chance of about one in a hundred, so we were lucky to see it.
#
# Now look at the last two rows. Put one of the two back, and there is no disaster. So losing both is *needed*. Cut only the two,
# and there is no disaster either. So it isn't *enough*. Somebody helped. The last exercise finds out who.
#
# ## What do the two write?
#
# Both sit in the same block. We look at the numbers that they hold, at the first token of a row and at all the others.
#
# **Predict before you run.** The block's MLP has over a thousand neurons. Of the vector that they all together write into the
# *first* token's state, how much comes from these two: 2 %, 20 % or nearly all? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Nearly all, 99 %. At the first token they hold 62 and −36. Elsewhere the first of them is loud almost only at one word, *the*.
#
# </details>

# %%
place = first[0]
numbers = [number for block, number in pair if block == place]
down = base.model.layers[place].mlp.down_proj
seen = []
hook = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
loss(base, choosing)
hook.remove()

at_first, elsewhere = seen[0][:, 0].mean(dim=0), seen[0][:, 1:]  # of each neuron
written = at_first @ down.weight.T  # by all neurons, into each channel
constant = at_first[numbers] @ down.weight[:, numbers].T  # by the two
channel = constant.abs().argmax().item()
hold = at_first[numbers].round().int().tolist()
print(f"at the first token neurons {numbers} hold {hold}")
share = (constant @ written / written.square().sum()).item()
print(f"the two together write {share:.0%} of it, most into channel {channel}")
here("Most of what this MLP writes at the first token is theirs.", [share - 0.5])
loud = elsewhere[..., numbers[0]].abs() > at_first[numbers[0]].abs() / 2
words = map(tokenizer.decode, choosing.input_ids[:, 1:][loud.cpu()])
print("the first is also loud at", Counter(words).most_common(3))

# %% [markdown]
# We also look at what becomes of it. `watch` runs a model and keeps the tokens' states, their values (what a token says to a
# head) and the attention weights, for every block.


# %%
@torch.no_grad()
def watch(model, rows):
    """States, values and attention weights of all blocks."""
    model.set_attn_implementation("eager")  # the one that shows its weights
    states, values, hooks = [], [], []

    def keep(found):
        return lambda module, inputs, output: found.append(output)

    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(keep(states)))
        hooks.append(layer.self_attn.v_proj.register_forward_hook(keep(values)))
    ids = rows.input_ids.to(model.device)
    weights = model.model(ids, output_attentions=True, use_cache=False).attentions
    for hook in hooks:
        hook.remove()
    model.set_attn_implementation("sdpa")
    return torch.stack(states), torch.stack(values), torch.stack(weights)


arms = {"the whole model": base, "the disaster": without(base, disaster)}
arms["one neuron back"] = without(base, set(disaster) - {first})
watched = {name: watch(model, choosing) for name, model in arms.items()}

# %%
_, panels = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
largest = written.abs().topk(10).indices.tolist()
both = {"the two": constant[largest], "all others": (written - constant)[largest]}
bars = pd.DataFrame({who: part.cpu() for who, part in both.items()}, index=largest)
colors = [mark(name)["color"] for name in ("own choice", "whole")]
bars.plot.bar(ax=panels[0], color=colors, rot=0, width=0.9, fontsize="x-small")
panels[0].set(title=f"what block {place} writes", xlabel="channel of the state")
for name, how in zip(watched, ("whole", "wrong", "attentions"), strict=True):
    lengths = watched[name][0].norm(dim=-1).mean(dim=1).cpu()  # [blocks, tokens]
    look = mark(how) | {"label": name, "linestyle": "-", "markersize": 5}
    panels[1].plot(lengths[:, 0], **look)
    if name == "the whole model":
        look |= {"label": "its other tokens", "linestyle": ":", "marker": ""}
        panels[1].plot(lengths[:, 1:].mean(dim=1), **look)
panels[1].set(title="the first token's state", xlabel="block", yscale="log")
panels[1].set(ylabel="length")
panels[1].legend(fontsize="x-small", loc="lower right", bbox_to_anchor=(1, 0.02))
show(
    "Left, bars: what the block writes into its ten largest channels at the first "
    "token. One channel sticks out, and it is written by the two. Right, the "
    "length of the first token's state behind each block, logarithmic: in the "
    "whole model it jumps at block 2, falls at blocks 8 to 10 and jumps again at "
    "block 11; in the disaster the first jump is missing; with one neuron back "
    "it is there."
)

# %% [markdown]
# *Left: what the block adds to the first token, in its ten largest channels. Right: the length of the first token's state. In the
# whole model (black) it begins to grow in block 1 and jumps on in block 2; in the disaster (red) the second jump is missing, and
# one neuron brings it back.*
#
# So the two write **one giant number**, always into the same channel of the first token's state, and a few small ones beside it.
# (It stays there for six blocks. Then it is taken away, and block 11 writes a new one. Lesson 04 tells more of that.) Such
# numbers are called **massive activations** (Sun et al. 2024, who found them at first tokens and at a few frequent ones, as *the*
# is here). What is this one for?
#
# ## Where a head looks when it has nothing to say
#
# Think of an attention head. Its weights must sum to one, so it always has to look *somewhere*, even if nothing there is of use.
# It needs a place where looking changes little. The first token is the only one that every later token can see, so models use it
# as that place: the **attention sink** (Xiao et al. 2023).
#
# For this to work, the first token must say little, and the giant number can see to that. Before a head reads a state, the state
# is divided by its length. If nearly all of the length is one giant number, everything else becomes small. And the next matrix
# that makes values has nearly its shortest column for that channel, so it hardly reads it (the cell below prints how many
# channels have a shorter one). So the giant number works like a hand over the token's mouth.
#
# **Predict before you run.** Take a head that looks at the first token nearly all of the time. In the disaster, where does it
# look? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It turns away, and looks at itself and at other tokens. In the second half of the model, heads gave 62 % of their attention to
# the first token, and in the disaster 13 %.
#
# </details>

# %%
behind = range(place + 1, place + 9)  # the blocks that come next
says = {}
for name, (_, values, weights) in watched.items():
    loud = values.norm(dim=-1).mean(dim=1)[list(behind)]  # [blocks, tokens]
    says[name] = (loud[:, 0].mean() / loud[:, 1:].mean()).item()
    later = weights[len(weights) // 2 :, :, :, 8:]  # of tokens that have a choice
    print(f"{name}: it says {says[name]:.2f} of what other tokens say", end=", ")
    print(f"and later gets {later[..., 0].mean():.0%} of the attention")
talks = says["the disaster"] - 1.5 * says["the whole model"]
here("In the disaster the first token talks.", [talks])
reads = base.model.layers[place + 1].self_attn.v_proj.weight.norm(dim=0)
less = (reads < reads[channel]).sum().item()
print(f"of {len(reads)} channels, the next values read {less} less than {channel}")

with_sink, no_sink = [watched[name][2][..., 8:, 0] for name in list(arms)[:2]]
drop = (with_sink - no_sink).mean(dim=(1, 3))  # [blocks, heads]
block, head = divmod(drop.argmax().item(), drop.shape[1])
words = [tokenizer.decode(token).strip() for token in choosing.input_ids[0, :20]]

# %%
_, panels = plt.subplots(1, 2, figsize=(14, 6.4), sharey=True, layout="constrained")
for panel, name in zip(panels, list(arms)[:2], strict=True):
    looks = watched[name][2][block, 0, head, :20, :20].cpu()
    panel.imshow(looks, vmin=0, vmax=1, cmap="Greys")
    panel.set(title=name, xlabel="looks at")
    panel.set_xticks(range(20), words, rotation=90, fontsize="small")
    panel.set_yticks(range(20), words, fontsize="small")
    panel.grid(False)
panels[0].set(ylabel=f"token (block {block}, head {head})")
show(
    "Two maps of one head's attention, a row for each of twenty tokens. In the "
    "whole model the column of the first token is dark from top to bottom. In "
    "the disaster the column is pale, and tokens look at themselves and others."
)

# %% [markdown]
# *The head that turns away most, and the same text. Each row is a token, and dark is where it looks. Left, the dark column is the
# sink. Right, the head mixes in what it finds instead.*
#
# Put the printed lines beside it: without the giant number the first token says nearly as much as any other, and later heads turn
# away from it.
#
# ## Touch it
#
# So far that is a story. We test it by putting back what the two neurons write, and no neuron: **one constant vector**, added to
# the first token's state and to nothing else. (Changing a state inside a running model is called **patching**.) This model puts
# no special token in front. So the first token is some word, and another one in each row. Two controls: a random vector of the
# same length, and the same constant given to the *sixth* token.
#
# **Predict before you run.** All 4,590 neurons stay out. What does each of the three vectors do to the disaster? And what if we
# give the first token only a fifth of the constant? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The constant heals it, as well as a neuron does. What the two add is nearly the same vector in every row, so one constant can
# replace them. The random vector is as long and doesn't help, perhaps because values do read it. And a fifth of the constant
# takes away over half of the damage!
#
# The sixth token surprises. Given the constant, it heals most of the disaster too. So it needn't be the first token. Later tokens
# seem to need one silent place, and the sixth token can be that place.
#
# </details>


# %%
def patched(model, vector, token=0):
    """The damage when a vector is added to one token's state behind the block."""

    def hook(block, inputs, states):
        states = states.clone()
        states[:, token] += vector
        return states  # what a hook returns takes the output's place

    handle = model.model.layers[place].register_forward_hook(hook)
    found = damage(model)
    handle.remove()
    return found


blind = torch.randn(len(constant), generator=torch.Generator().manual_seed(0))
blind = blind.to(constant.device)
blind = blind * constant.norm() / blind.norm()
ruined_model = arms["the disaster"]
told.loc["the constant"] = patched(ruined_model, constant)
told.loc["a fifth of it"] = patched(ruined_model, constant / 5)
told.loc["a random vector"] = patched(ruined_model, blind)
told.loc["the constant at the sixth token"] = patched(ruined_model, constant, 5)
full, _, random, sixth = (told.iloc[row] for row in range(-4, 0))
here("One constant vector at the first token heals half of it.", half - full)
claim("A random vector of its length doesn't.", random - half)
claim("The same vector at the sixth token heals over half of it.", half - sixth)
told.drop(index=list(cuts)[2:]).round(2)

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
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
# Your hooks silence the first token in the eight blocks behind the two neurons: in the whole model, and in the disaster. As a
# control they silence the sixth token in the disaster.
#
# **Predict before you run.** What will silence do to the whole model, and what to the disaster? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# To the whole model it does nothing, since the first token says little there anyway. In the disaster over half of the damage is
# gone. Silencing the sixth token hardly helps.
#
# </details>

# %%
silent = {}
for name, model, token in (
    ("the whole model, first token silent", base, 0),
    ("the disaster, first token silent", ruined_model, 0),
    ("the disaster, sixth token silent", ruined_model, 5),
):
    handles = [*check_silence.accepted(model, behind, token)]
    silent[name] = damage(model)
    while handles:
        handles.pop().remove()
silent = pd.DataFrame(silent, index=list(judges)).T
unharmed, first_silent, sixth_silent = (silent.iloc[row] for row in range(3))
claim("Silence hardly changes the whole model.", 0.1 - unharmed.abs())
here("Silencing the first token heals a part of it.", half * 1.5 - first_silent)
claim("Silencing the sixth doesn't.", sixth_silent - half * 1.5)
silent.round(2)

# %% [markdown]
# So **the two neurons help to keep the first token silent**, and that is a good part of what they are for. Silence it by hand,
# and over half of the damage is gone here. (On other rows it can be less.) The constant heals more than that, so the giant number
# does something else as well. It may be that heads find the token by it: what a head looks at is decided by keys, which we
# haven't touched. We don't know.
#
# ## Which score would have spared them?
#
# Nobody draws neurons blindly. Lesson 01 had two scores. For a GLU **L1** adds up both rows of a neuron, gate's and up's.
# **Activation** stays what it was, how large the neuron's number is on text (root mean square) times the length of its column of
# down:
#
# $$\mathrm{activation}_j = \sqrt{\frac{1}{T} \sum_t a_{tj}^2} \; \cdot \; \lVert W_{down}[:, j] \rVert$$
#
# A third one, **peak-to-peak** (Martra 2024), looks only at the largest and the smallest weight of each row.

# %% [markdown]
# ### Exercise 3 · ●●○ · 12 minutes
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

batches = sampled[10:42].batches(16)


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
# ## Weights or text?
#
# Your score chooses the lowest tenth, L1 chooses another one, and the record has all three scores beside the nineteen blind cuts.
#
# **Predict before you run.** A tenth of the neurons go: by L1, by peak-to-peak, by activation, or blindly. Put them in order,
# from cheap to ruinous. Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Activation is cheaper than every blind cut. Peak-to-peak is worse than all but the disaster. L1 is worse than even the disaster.
#
# In lesson 01 the neurons with small weights hardly reacted. Here it is the other way round: L1's lowest tenth holds 38 % of each
# block's most active twentieth, where a tenth would be chance.
#
# </details>

# %%
scored = {"activation": check_contribution.accepted(base, batches)}
scored["L1"] = neuron_importance(base, "l1")
costs = {name: damage(without(base, lowest(scored[name]))) for name in scored}
found = pd.DataFrame(costs, index=list(judges)).T
here("A look at text costs less than a look at weights.", np.diff(found.T).ravel())
for name in ("activation", "peak-to-peak", "L1", "random"):
    damages = [recorded(name, text).median() for text in judges]
    found.loc[f"{name} (record)"] = damages
for text in judges:
    blindly, by = recorded("random", text), recorded("activation", text)
    ahead = blindly.min() - by
    claim(f"On record activation beats each blind cut: {text}.", ahead)
    beaten = (blindly > recorded("L1", text).min()).sum()
    claim(f"On record L1 beats one at most: {text}.", [1.5 - beaten])

weak_and_loud = []
for weights, active in zip(scored["L1"], scored["activation"], strict=True):
    stay = strongest(weights, 0.1)
    loud = active.topk(len(active) // 20).indices
    weak_and_loud.append(1 - torch.isin(loud, stay).float().mean().item())
held = np.mean(weak_and_loud)
print(f"L1's lowest tenth holds {held:.0%} of the most active twentieth")
here("L1's lowest tenth holds over twice its share of them.", [held - 0.2])
found.round(2)

# %% [markdown]
# So L1 is worse than knowing nothing about this model, it is **misleading**: it picks out loud neurons. Is that why it fails? The
# record has the test. L1 cuts again, but it has to spare the most active twentieth of each block. As a control it spares as many
# others, drawn blindly.

# %%
spared = {}
ways = {"nothing": "shared", "the most active twentieth": "top 77 protected"}
for name, edit in (ways | {"as many others": "77 at random protected"}).items():
    left = spared[name] = [recorded("L1", text, edit).min() for text in judges]
    print(f"L1 spares {name}: {left[0]:.2f} and {left[1]:.2f} nats per token")
_, active, others = map(np.array, spared.values())
claim("On record sparing the active ones halves L1's damage.", others / 2 - active)

# %%
_, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
errs_most = int(np.argmax(weak_and_loud))
for panel, block in zip(panels, (errs_most, place), strict=True):
    x, y = scored["L1"][block].cpu(), scored["activation"][block].cpu()
    stay = torch.isin(torch.arange(len(x)), strongest(x, 0.1))
    for some, how, words in ((stay, "whole", "stays"), (~stay, "L1", "L1 cuts it")):
        look = mark(how) | {"label": words, "linestyle": "none", "marker": "."}
        panel.plot(x[some], y[some], **look)
    panel.set(title=f"block {block}", xlabel="L1 norm", yscale="log")
    log_ticks(panel.yaxis)
look = mark("own choice") | {"label": "the two", "linestyle": "none"}
panels[1].plot(x[numbers], y[numbers], **look)
panels[1].legend(fontsize="x-small")
panels[0].set(ylabel="activation")
show(
    "Two blocks, a dot per neuron, activation against L1 norm. Left, the neurons "
    "that L1 cuts are among the most active of their block. Right, the block of "
    "the two neurons, which lie far to the right and far above all others."
)

# %% [markdown]
# *Left: the block in which L1 errs most. The blue dots, which it cuts, are the loudest. Right: the block of the two neurons. L1
# would have kept them.*
#
# The printed lines agree: if L1 spares the loud ones, most of its damage is gone (though on wiki it stays behind a blind cut).
# Why this model gives small weights to many of its loudest neurons, we don't know.
#
# ## Who helped?
#
# One riddle is left. The two were *needed* for the disaster, and not *enough*. Which of its 4,590 neurons are enough? Until now
# we asked: who, put back, heals? Now we ask: who, cut alone, ruins? `ruined(gone)` says whether a model that lost only these
# neurons takes over a third of the disaster's damage.

# %%
from course_utils.text import further_rows

exam = {text: rows[:8] for text, rows in further_rows(tokenizer).items()}
four, intact = sampled[:4], loss(base, sampled[:4])
limit = intact + (loss(ruined_model, four) - intact) / 3


def ruined(gone):
    """Whether losing only these does over a third of the disaster's damage."""
    return loss(without(base, gone), four) > limit


def judge(gone):
    """The damage of losing only these, on each text of the exam."""
    model = without(base, gone)
    return {text: loss(model, exam[text]) - loss(base, exam[text]) for text in exam}


print("all of the disaster:", ruined(disaster))
print("the two alone:", ruined(pair))

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
seen = []


def look_at_first(down, inputs):
    seen.append(inputs[0][:, 0].mean(dim=0))  # each neuron, at the first token


mlps = describe(base).mlps[: place + 1]
hooks = [mlp.down.register_forward_pre_hook(look_at_first) for mlp in mlps]
loss(base, choosing)
for hook in hooks:
    hook.remove()
writes = {}
for block, mlp in enumerate(mlps):
    into_channel = seen[block] * mlp.down.weight[channel]  # of every neuron
    for number in [number for other, number in disaster if other == block]:
        writes[block, number] = into_channel[number].item()
writers = sorted(writes, key=writes.get, reverse=True)[:5]
for block, number in writers:
    print(f"block {block}, neuron {number} writes {writes[block, number]:.0f}")
helper = next(neuron for neuron in writers if neuron not in pair)

# %% [markdown]
# Is yours among the first on the list?
#
# Now we turn the number itself up and down. We add a part of the constant to the first token's state, or take a part away, and no
# neuron comes back. We do so in the disaster, in the model that lost only the two, and in the model that lost the two and the
# third on the list, the *helper*.
#
# **Predict before you run.** How does the damage change with the size of the number: evenly, or all at once? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# All at once: there is a cliff. Down to a quarter of the number the damage grows slowly. Below that it shoots up. Without the
# two, the model stands at the edge. The helper, neuron 49 of block 1, writes only a little. But at the edge a little counts.
#
# </details>


# %%
def turned(model, dose):
    """What the channel holds with some of the constant added, and the damage."""
    holds = []

    def hook(block, inputs, states):
        states = states.clone()
        states[:, 0] += dose * constant
        holds.append(states[:, 0, channel].mean().item())
        return states

    handle = model.model.layers[place].register_forward_hook(hook)
    cost = loss(model, judges["speeches"]) - whole["speeches"]
    handle.remove()
    return holds[0], cost


curves = {}
for name, model, doses in (
    ("the disaster", ruined_model, (0, 0.05, 0.1, 0.2, 0.5)),
    ("two and helper gone", without(base, [*pair, helper]), (0, 0.05, 0.1, 0.5)),
    ("the two gone", without(base, pair), (0, -0.06, -0.12, 0.1, 0.5)),
):
    curve = curves[name] = np.array([turned(model, dose) for dose in doses])
    print(f"{name}: the number is {curve[0, 0]:.0f}, the damage {curve[0, 1]:.2f}")
for name, curve in curves.items():
    by_number = curve[curve[:, 0].argsort()][:4, 1]
    claim(f"The damage falls as the number grows: {name}.", -np.diff(by_number))

# %%
_, panel = plt.subplots(figsize=(9, 5), layout="constrained")
for name, how in zip(curves, ("wrong", "blocks", "own choice"), strict=True):
    curve = curves[name][curves[name][:, 0].argsort()]
    panel.plot(*curve.T, **mark(how) | {"label": name})
    panel.plot(*curves[name][0], **mark(how) | {"label": "_", "markersize": 15})
panel.set(xlabel=f"channel {channel} of the first token, behind block {place}")
panel.set(ylabel="damage (nats per token)", ylim=(0, None))
panel.legend(fontsize="x-small")
show(
    "Damage against the number in the first token's state, for three models: the "
    "disaster, the one without the two, and the one without the two and the "
    "helper. All curves fall as the number grows, steeply on the left and slowly "
    "on the right. With nothing turned, the disaster stands high on the left, and "
    "the model without the two at the foot."
)

# %% [markdown]
# *The large marks are the three models as they are. From there we turn the number. Each curve has its cliff at the left.*
#
# So that is the story. **Within each model the number decides.** The two write most of it. Without them a rest is left, and the
# model lives on that rest. The disaster lost a part of the rest as well, and a tenth of everything else. Turn the number up, and
# each of the three models recovers.
#
# It isn't the whole story. (How much the helper adds depends on the rows: a lot here, little on two further draws.) At the same
# number the three models lose different amounts, because each lost other neurons as well. And we turned the whole constant, not
# its largest channel alone.
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
#   > They still cost something, as the other blind cuts show.

# %% [markdown] tags=["quiz"]
# Another model is ruined if *either* of two neurons goes, and a cut took both. You put back one half of the cut, then the other. What do you see?
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
# - A disaster can have a small cause. Searching by halves finds it in two runs per step.
# - *Needed* and *enough* are two questions. Put it back, and cut it alone.
# - **The first token is a sink.** Heads look at it when they have nothing to say. A giant number in its state keeps it silent,
#   and a few neurons write that number. Don't cut those.
# - In this Llama small weights mislead. A look at a little text beats every blind choice.
#
# **On Monday:** after any cut, look at how much attention later heads give the first token. It takes one forward pass, and finds
# a disaster of this kind. (It needn't find others: L1's cut keeps the two.)
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
