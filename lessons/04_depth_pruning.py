# ---
# jupyter:
#   course:
#     title: "Depth pruning: which blocks can go together?"
#     minutes: 90 to 120 minutes
#     prerequisites: lesson 01 (a constant isn't nothing), lesson 03 (residual stream, the first token's giant number, hooks)
#     assets: [smollm2, speeches, texts]
#     concepts: [depth pruning, KV cache, single harm, a block's constant, volume, redundant blocks, a block that undoes, block influence, paired interval]
# ---

# %% [markdown]
# ## The question
#
# A language model still runs when whole blocks are taken out of it. Which of them can go together?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** What a block is worth depends on which others are there, and here we can say why. Some blocks each add a part of one
# large number to one channel of every token. That number sets the volume for everything after it. One writer can go, because the
# others still write it. Take six blocks out and with them most of the number, and the model is worse than guessing; put that one
# number back, and most of the harm is gone. Another number, in the first token, is erased by some blocks and written again by
# one. A bias can keep the first number but not the second, because a bias writes to every token. So keep the constant of what you
# remove, spare the block that writes to the first token alone, and try the whole set before you decide.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** two riddles about blocks have the same kind of answer, a large number in one channel. In the first riddle several
# blocks write it; in the second one block erases it and another writes it again. The room should leave with two sentences: "a
# constant isn't nothing" (as in lesson 01), and "don't add up single harms".
#
# **Let the room predict first:** six blocks cost 1.4 nats one by one. What do they cost together?
#
# **Usual questions:** "Why not take the last ones?" They are what the head reads. "Does every model have such a channel?" Most
# large ones have a few; which and where differs. "Fewer blocks or narrower MLPs?" Lessons 10 and 14 weigh them.
#
# **Wrong turns:** forgetting `layer_idx` (exercise 1, in pairs); taking the mean over the first token as well; turning the volume
# down in the blocks but not in front of the head; comparing the patient with the healthy one behind the last block (exercise 4).
#
# **At the end you have** a Llama with a fifth of its blocks gone and their constants kept, which plain transformers loads, and a
# proof of what those constants are for.

# %% tags=["install"]

# %%
import math
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from course_utils.lessons import claim, here
from course_utils.support import mark, read_record, safe_dtype, show, start, style

session = start("04")
style()
record = read_record("leave_out")  # sets of blocks left out, on 48 rows each
record = record.query("dtype == 'bfloat16' and text == 'speeches'")
record = record.query("part not in ('attention', 'MLP')")
record = record.assign(layers=record.layers.map(tuple)).set_index("layers")
single = record[record.criterion == "alone"].damage
together = record[record.criterion == "run"].damage
guessing = math.log(49_152) - record.nats[()]  # what knowing nothing costs

# %%
_, panel = plt.subplots(figsize=(8, 5.2), layout="constrained")
one, six = mark("neurons")["color"], mark("wrong")["color"]
for place, run in enumerate((range(22, 28), range(9, 15))):
    harms = np.array(sorted([single[(block,)] for block in run], reverse=True))
    below = harms.cumsum() - harms
    panel.bar([place - 0.2] * 6, harms - 0.02, 0.36, below, color=one)
    panel.bar(place + 0.2, together[tuple(run)], 0.36, color=six)
panel.text(0.8, single[(11,)] / 2, "block 11", ha="center")
panel.axhline(guessing, **mark("guessing"))
panel.set_xticks([0, 1], ["blocks 22 to 27", "blocks 9 to 14"])
panel.set(ylabel="harm (nats per token)")
panel.bar(0, 0, color=one, label="one by one, stacked")
panel.bar(0, 0, color=six, label="all six together")
panel.legend(loc="upper right", bbox_to_anchor=(1, 0.8))
show(
    "Two pairs of bars. Blocks 22 to 27: one by one they cost 1.4 nats in sum, all "
    "six together eight, above the line of guessing. Blocks 9 to 14: the "
    "sum is over three, most of it block 11; all six together cost half of that."
)

# %% [markdown]
# Each pair of bars is about the same Llama of thirty blocks. Left, each of six neighbours is left out alone, and the six harms
# are stacked. Right, all six are left out together.
#
# The six blocks on the left look cheap: 1.4 nats in sum. Together they ruin the model: it would do better if it knew nothing.
#
# The six on the right look dear. Together they cost *less* than block 11, which is one of them, costs alone. How can a sum be so
# wrong, in both directions?
#
# ## Taking a block out
#
# A block reads the state $x$ and adds to it: $x \leftarrow x + \mathrm{block}(x)$. Take the block out, and the state simply runs
# on. No shape changes, so *any* set of blocks can go. This is **depth pruning**.
#
# There is one trap. A model that generates text needs the keys and values of all earlier tokens, and keeps them in a **KV
# cache**, so that it needn't compute them again for each token. The cache has a drawer for each block, and a block finds its
# drawer by a number that it carries: `self_attn.layer_idx`. The configuration holds a number as well, `num_hidden_layers`, from
# which a reload builds the model.

# %% [markdown]
# ### Exercise 1 · ●●○ · 9 minutes
#
# `take_out_with_bugs` looks right, and the model that it returns reads text without a cache and without complaint. It is wrong in
# **two** ways, and one of them shows only when a cache is used. Find both, and write `take_out_blocks` without them. `gone` lists
# blocks of the model as it is given. Change the Llama in place and return it.
#
# <details><summary>Hint</summary>
#
# What does `del some_list[1]` do to the numbers of the entries behind it? And who else knows a block's number?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_take_out


def take_out_with_bugs(model, gone):
    for number in gone:
        del model.model.layers[number]
    model.config.num_hidden_layers = len(model.model.layers)
    return model


# BEGIN SOLUTION
def take_out_blocks(model, gone):
    blocks = enumerate(model.model.layers)  # old numbers, all at once
    kept = [block for number, block in blocks if number not in gone]
    for number, block in enumerate(kept):
        block.self_attn.layer_idx = number  # the cache's drawer
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


# END SOLUTION
# BEGIN STUB
# def take_out_blocks(model, gone):
#     ...  # your code
# END STUB
check_take_out(take_out_blocks)

# %% [markdown]
# ## A block that does nothing
#
# For experiments we don't need surgery. A hook can make a block do nothing for a while: it hands on what it was given. Both must
# give the same model. (Lesson 01 called this *pruned equals masked*.)

# %%
from course_utils.measuring import perplexity
from course_utils.models import load_model, variant
from course_utils.text import judging_rows, token_blocks

base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
base.requires_grad_(False)
layers, total = base.model.layers, len(base.model.layers)
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
few = pool.sample(64, seed=session.seed)  # rows that may choose
for_means, few = few[16:40], few[:6]  # some for constants, some for harms
judges = judging_rows(tokenizer, draw=session.seed)  # rows that only judge
judges = {text: rows[:6] for text, rows in judges.items()}


@contextmanager
def skipping(model, blocks, constants=()):
    """For a while these blocks do nothing; behind some blocks a constant is added.

    `constants` are {block: tensor [channels] or [tokens, channels]}, of any blocks.
    """

    def hand_on(block, inputs, output):
        return inputs[0]  # [rows, tokens, channels]

    def plus(constant):
        return lambda block, inputs, output: output + constant.to(output)

    hooks = [model.model.layers[n].register_forward_hook(hand_on) for n in blocks]
    for number in constants:
        hook = plus(constants[number])
        hooks.append(model.model.layers[number].register_forward_hook(hook))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


# %%
exact = variant(base).float()  # float32: rounding can't hide a mistake
take_out_blocks = check_take_out.accepted  # yours, if it is correct
removed = take_out_blocks(variant(exact), [3, 5])
ids = few.input_ids[:2, :16].to(base.device)
intact = exact(ids).logits
with skipping(exact, [3, 5]):
    skipped = exact(ids).logits
off, changed = ((skipped - x).abs().max() for x in (removed(ids).logits, intact))
print(f"removed against skipped: {off:.1e}\nskipped against whole:   {changed:.1e}")
assert off < 1e-3 * changed
del exact, removed

# %% [markdown]
# ## One by one, and six at a time
#
# What a block costs when it alone is missing is its **single harm**. (The method is called *leave-one-out*.) We measure that for
# each block, and then for every third run of six neighbours, on six short rows. (The figure above is about 48 rows, so its
# numbers differ a little, and its second run falls between ours.) We spare two blocks at each end, because the first ones make
# the state and the last ones are what the head reads.
#
# A model without block 20 is the same model up to block 20. So we keep the states in front of each block, and start where
# something changes.


# %%
@torch.no_grad()
def states_of(model, ids, gone=()):
    """The states in front of each block and behind the last."""
    states = [model.model.embed_tokens(ids)]  # [rows, tokens, channels]

    def note(block, inputs, output):
        states.append(output)

    with skipping(model, gone):
        handles = [each.register_forward_hook(note) for each in model.model.layers]
        model.model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return states


class Passages:
    """Rows of a text, with the states of the whole model and its loss."""

    def __init__(self, rows):
        self.ids = rows.input_ids.to(base.device)
        self.states = states_of(base, self.ids)
        self.whole = self.nats(total - 1)

    @torch.no_grad()
    def nats(self, first=0):
        """Loss in nats per token, if nothing changes in front of block `first`."""
        base.model.layers = layers[first:]
        given = {"inputs_embeds": self.states[first], "labels": self.ids}
        loss = base(**given, use_cache=False).loss.item()
        base.model.layers = layers
        return loss

    def harm(self, blocks, constants=()):
        """What leaving these blocks out adds to the loss; constants may stay."""
        with skipping(base, blocks, constants):
            return self.nats(min([*blocks, *constants])) - self.whole


# %%
choosing = Passages(few)
fifth, inside = max(2, round(total / 5)), range(2, total - 2)
alone = {block: choosing.harm([block]) for block in tqdm(inside, desc="blocks")}
starts = inside[: len(inside) - fifth + 1][2::3]  # every third is enough here
runs = [tuple(range(first, first + fifth)) for first in starts]
of_run = {run: choosing.harm(run) for run in tqdm(runs, desc="runs")}
excess = {run: of_run[run] - sum(alone[block] for block in run) for run in runs}
worst = max(excess, key=excess.get)
sum_of_singles = of_run[worst] - excess[worst]
dearest = max(alone, key=alone.get)
print(f"blocks {worst[0]} to {worst[-1]}:", end=" ")
print(f"sum {sum_of_singles:.1f}, together {of_run[worst]:.1f}")
print(f"block {dearest} alone: {alone[dearest]:.1f}. The runs that hold it:")
holding = [run for run in runs if dearest in run]
for run in holding:
    print(f"    {run[0]} to {run[-1]}: {of_run[run]:.1f}")
here("A run can cost over twice its sum.", [of_run[worst] - 2 * sum_of_singles])

# %% [markdown]
# ## What does a block write to everybody?
#
# In lesson 01 a neuron that hardly reacted wrote nearly the same vector for every token, and cutting it took that vector away.
# Perhaps blocks do so as well. A block's **constant** is what it adds to the state on average over tokens. We leave the first
# token of each row out of the average, because you know from lesson 03 that its state is unlike all others.

# %% [markdown]
# ### Exercise 2 · ●○○ · 7 minutes
#
# Write `constants(model, rows)`: a tensor [blocks, channels], the mean of what each block *adds* (the state behind it minus the
# state in front of it), over all rows and all tokens but the first of each row. `rows` is a tensor of token ids [rows, tokens].
# `states_of(model, rows)` from above gives you the states.
#
# <details><summary>Hint</summary>
#
# There is one state more than there are blocks. `torch.stack(states)` has the shape [states, rows, tokens, channels], and `.diff`
# takes each from the next. Do it in float32.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_constants


# BEGIN SOLUTION
@torch.no_grad()
def constants(model, rows):
    states = torch.stack(states_of(model, rows)).float()
    return states.diff(dim=0)[:, :, 1:].mean(dim=(1, 2))


# END SOLUTION
# BEGIN STUB
# def constants(model, rows):
#     ...  # [blocks, channels]
# END STUB
check_constants(constants)

# %% [markdown]
# ## Keep only the constants
#
# Now we take the six blocks out again, and measure on rows that played no part in choosing them. Then we take them out and leave
# only their constants: six vectors, the same for every token of every text.
#
# **Predict before you run.** How much of the harm goes away when only the constants stay: a tenth, half, or nearly all? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On speeches nearly nine tenths, on wiki nearly eight tenths. With constants in their place, what the six blocks *compute* for
# each single token is missed by one or two nats only.
#
# </details>

# %%
constants = check_constants.accepted  # yours, if it is correct
kept = constants(base, for_means.input_ids.to(base.device))
passages = {text: Passages(rows) for text, rows in judges.items()}


def harm(blocks, constants=()):
    """Harm on each judging text."""
    return {text: each.harm(blocks, constants) for text, each in passages.items()}


told = {"the six are out": harm(worst)}
told["their constants stay"] = harm(worst, {block: kept[block] for block in worst})
told = pd.DataFrame(told).T
cut, mended = told.to_numpy()
here("The constants of the six undo over two thirds of the harm.", cut / 3 - mended)
told.round(1)

# %% [markdown]
# ## One number
#
# What is in those vectors? We add up the six constants and look at the channels of the sum.

# %%
written = kept[list(worst)].sum(dim=0)  # by the six together
channel = written.abs().argmax().item()
number = written[channel].item()
share = number**2 / written.square().sum()
print(f"channel {channel}: {number:.0f}, {share:.0%} of the squared length")


def only(number, channel=channel):
    """A constant that is zero but for one number in the channel."""
    constant = torch.zeros_like(written)
    constant[channel] = number
    return constant


usual = written.abs().argsort()[len(written) // 2].item()  # gets as much as most
told.loc["one number stays"] = harm(worst, {worst[0]: only(number)})
told.loc["in another channel"] = harm(worst, {worst[0]: only(number, usual)})
one_number, elsewhere = told.to_numpy()[2:]
here("One number undoes over two thirds of the harm.", cut / 3 - one_number)
claim("In another channel it leaves over half of it.", elsewhere - cut / 2)
told.round(1)

# %% [markdown]
# *Harm in nats per token.* Six blocks are gone, and **one number**, added to one channel of every token, mends most of it. Two of
# the six write most of it. What do these two cost alone, and what together?

# %%
two = kept[list(worst), channel].abs().topk(2).indices.tolist()
two = sorted(worst[place] for place in two)
writes = {f"block {block}": kept[block, channel].item() for block in two}
costs = {f"block {block}": harm([block]) for block in two}
writes["both"] = kept[two, channel].sum().item()
costs["both"] = harm(two)
costs["both, the number stays"] = harm(two, {two[0]: only(writes["both"])})
costs = pd.DataFrame(costs).T.round(2)
one_out, other_out, both, healed = costs.to_numpy()
beyond = both - 2 * (one_out + other_out)
here("Together the two cost over twice their sum.", beyond)
here("One number undoes over half of that.", both / 2 - healed)
costs.assign(writes=pd.Series(writes).round()).rename_axis("out")

# %% [markdown]
# The two are **redundant**: the model can do without either of them, but not without both. Why does losing 210 cost half a nat,
# and losing 330 two and a half? We can see that in the *whole* model, with all blocks in place. Behind the last of the six we
# take away from the channel what one of the two writes, or both, or all six, and nothing else. So only the last two blocks and
# the head can miss it.

# %%
last = worst[-1]
into = kept[:, channel]  # what each block writes into the channel
sets = [[two[1]], [two[0]], two, list(worst)]
sets = sorted(sets, key=lambda blocks: into[blocks].sum())
amounts = [into[blocks].sum().item() for blocks in sets]
dose = [harm([], {last: only(-amount)})["speeches"] for amount in amounts]
claim("Taking both numbers costs more than their sum.", [dose[2] - sum(dose[:2])])
claim("Without the number the whole model is hurt.", [dose[-1] - 1])

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
speeches = passages["speeches"]
states = torch.stack(speeches.states[1:]).float().cpu()
tokens = states[:, :, 1:, channel].flatten(1)  # of all tokens but the first
middle, spread = tokens.mean(dim=1), tokens.std(dim=1)
left.fill_between(range(total), middle - spread, middle + spread, alpha=0.25)
left.plot(middle, marker="o", markersize=5)
left.set(xlabel="after block", title=f"number in channel {channel} of the state")
look = mark("whole") | {"label": "only the number"}
right.plot([0, *amounts], [0, *dose], **look)
measured = sorted([one_out[0], other_out[0], both[0], cut[0]])
names = [", ".join(map(str, blocks)) for blocks in sets[:-1]] + ["all six"]
right.scatter(amounts, measured, color=six, marker="x", label="the blocks")
for x, y, name in zip(amounts, measured, names, strict=True):
    right.annotate(name, (x - 8, y), ha="right", va="bottom")
right.set(xlabel="number that is missing", title="harm (nats per token)")
right.legend()
show(
    "Left: the number in channel 17 of all tokens but the first, after each block. "
    "It is near zero for twenty blocks, jumps at block 24 and goes on rising. "
    "Right: harm against how much of it is missing. The curve is flat at first and "
    "then steep. The crosses lie above it, most for two blocks and for all six."
)

# %% [markdown]
# *Left: the band shows how much the number differs from token to token (one standard deviation). Right: the black line takes away
# nothing but the number; the crosses are the blocks themselves, each named.*
#
# Two things are to be seen on the right. The black curve bends: a first part of the number is hardly missed, and then each
# further part hurts more. So two blocks that each stay on the flat part can be on the steep part together. That is one reason why
# harms don't add.
#
# The crosses of two and six blocks lie above the curve, so the bend is a part of the answer and not all. When block 24 is out,
# blocks 25 to 27 miss the number, too, and blocks do other work as well. (Later blocks even change what they write when earlier
# ones are missing: Rushing and Nanda 2024 call that *self-repair*.) But one number put back mended most of it. Why does the model
# need it?
#
# ## The number sets the volume
#
# Before anything reads the state, the state is normalised. In a Llama this is RMSNorm, which divides by the state's size:
#
# $$y = w \odot \frac{x}{\mathrm{rms}(x)}, \qquad \mathrm{rms}(x) = \sqrt{\tfrac{1}{d} \sum_i x_i^2}$$
#
# Now suppose that one channel is giant. Then it makes up much of $\mathrm{rms}(x)$, so *all other* channels are smaller after the
# division. For example, $(1, 1, 1, 1)$ stays as it is. Make the first number ten times as large, and the other three come out at
# a fifth. So a giant number in one channel is a **volume** knob for the rest. (In lesson 03 it was channel 507, at the first
# token. Beside it, all else became almost zero.)
#
# How much more quietly are the other channels heard because of channel 17?


# %%
def loudness(states):
    """How loud all other channels are, beside a state without the giant one."""
    rest = states.float().clone()
    rest[..., channel] = 0
    return (rest.norm(dim=-1) / states.float().norm(dim=-1)).mean().item()


typical = choosing.states[last + 1][:, 1:]  # all tokens but the first
volume = loudness(typical)
without_six = states_of(base, choosing.ids, worst)[last + 1][:, 1:]
print(f"the other channels are heard at {volume:.0%} of their volume", end=", ")
print(f"without the six blocks at {loudness(without_six):.0%}")

# %% [markdown]
# *After block 27, mean over all tokens but the first.* Without the six blocks, hardly anything turns the others down any more.
#
# If volume is the reason, we should be able to mend the model **without putting anything back**. We leave the six blocks out with
# all that they write, and turn the volume down by hand.

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# Write `turn_down(model, first, factor)`: it multiplies the output of every norm from block `first` on by `factor`. Each of these
# blocks has two norms, and there is one more in front of the head. Use hooks, and return the list of their handles.
#
# <details><summary>Hint</summary>
#
# A block's norms are `input_layernorm` and `post_attention_layernorm`; the last one is `model.model.norm`. What a forward hook
# returns takes the output's place.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_turn_down


# BEGIN SOLUTION
def turn_down(model, first, factor):
    norms = [model.model.norm]
    for block in model.model.layers[first:]:
        norms += [block.input_layernorm, block.post_attention_layernorm]

    def hook(norm, inputs, output):
        return output * factor

    return [norm.register_forward_hook(hook) for norm in norms]


# END SOLUTION
# BEGIN STUB
# def turn_down(model, first, factor):
#     ...  # a list of handles
# END STUB
check_turn_down(turn_down)

# %% [markdown]
# ## Turn it down
#
# **Predict before you run.** The model without the six blocks: how much of its harm goes away when you turn it down to the volume
# that the constant used to set? And suppose that you take nothing away from the *whole* model, but turn it up as much as the
# missing number would. What will that cost? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Turned down, the model without the six blocks gets nearly as well as with the number put back. Turned up, the whole model loses
# nearly as much as the missing number costs it, although all its blocks are in place and nothing is missing.
#
# </details>

# %%
turn_down = check_turn_down.accepted  # yours, if it is correct


def at_volume(factor, gone=(), constants=(), first=last + 1):
    """Harm on speeches at another volume, without some blocks."""
    hooks = turn_down(base, first, factor)
    with skipping(base, gone, constants):
        found = speeches.nats(min([first, *gone])) - speeches.whole
    for each in hooks:
        each.remove()
    return found


down, up = at_volume(volume, worst), at_volume(1 / volume)
rescued = at_volume(volume, constants={last: only(-number)})
before_head = at_volume(volume, worst, first=total)
lost, lost_down = speeches.harm([dearest]), at_volume(volume, [dearest])
print(f"turned down in front of the head alone: {before_head:.1f} nats")
print(f"block {dearest} out: {lost:.1f}, turned down as well {lost_down:.1f}")
here("Turning the volume down undoes over two thirds.", [cut[0] / 3 - down])
claim("Turned up, the whole model breaks.", [up - 1])
claim("That is over half of what the missing number costs.", [up - dose[-1] / 2])
here("Turned down, it hardly misses the number.", [dose[-1] / 3 - rescued])
claim("In front of the head alone it undoes less.", [before_head - down])
claim("Another broken model isn't mended so.", [lost_down - lost / 2])

# %%
_, panel = plt.subplots(figsize=(9, 4.2), layout="constrained")
colors = [six, one, one, six, one, six]
bars = {
    "nothing put back": cut[0],
    "the number put back": one_number[0],
    f"nothing put back, volume {volume:.2f}": down,
    "the number taken away": dose[-1],
    f"the number taken away, volume {volume:.2f}": rescued,
    f"nothing taken away, volume {1 / volume:.2f}": up,
}
places = [0, 1, 2, 3.6, 4.6, 5.6]
drawn = panel.barh(places, bars.values(), color=colors)
panel.bar_label(drawn, fmt="%.1f", padding=4)
panel.set_yticks(places, bars)
for place, name in ((1, "without the\nsix blocks"), (4.6, "the whole\nmodel")):
    panel.text(8.5, place, name, ha="right", va="center")
panel.set(xlabel="harm on speeches (nats per token)", xlim=(0, 8.7))
panel.invert_yaxis()
show(
    "Six bars in two groups. Without the six blocks: eight nats of harm, little "
    "over one when the number is put back, and nearly as little when nothing is "
    "but the volume is lower. The whole model: three nats when the number is taken "
    "away, hardly any when the volume is lower as well, and over two when nothing "
    "is taken away but the volume is higher."
)

# %% [markdown]
# *Above: the third bar puts nothing back and turns the volume down. Below: the last bar takes nothing away and turns it up.*
#
# In the third bar the six blocks are out with all that they wrote. Nothing is put back that anybody could read. Only the volume
# is lower, and most of the harm is gone. So the number works mostly through the division: it makes the last blocks and the head
# hear everything else more quietly.
#
# Below you see the same from the other side. Take the number away from the whole model and turn the volume down as well: the harm
# is gone. Turn the volume up and take nothing away: the harm is there.
#
# Does a lower volume just soften the predictions of a model that is too sure? In front of the head alone it would do exactly
# that, and there it helps little. So the last two blocks must hear less, too. Does it mend any broken model? It hardly helps
# without block 11. (And why had the number helped in another channel? From there it turns the volume down as well, but it also
# disturbs whoever reads that channel.)
#
# ## Erased, and written again
#
# Now the second riddle: why can six blocks cost less than block 11 alone? You know from lesson 03 what block 11 writes: a giant
# number into the *first* token, so that heads have a silent place to look at. Let us follow that number through the blocks: in
# the whole model, without block 11, and without blocks 9 and 11.
#
# **Predict before you run.** In lesson 03 block 2 had written such a number already. Why then does it hurt to lose block 11?
# Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Because the number of block 2 isn't there any more: blocks 8 to 10 erase it, and block 9 does most of that. If block 9 goes as
# well, a good part of block 2's number is left. It is far smaller than what block 11 writes, but it is there.
#
# </details>

# %%
ids = choosing.ids
first_token = torch.stack(choosing.states)[1:, :, 0].mean(dim=1).float()
sink = first_token[dearest].abs().argmax().item()  # the giant channel
steps = first_token[:, sink].diff()  # what the blocks after block 0 write into it
eraser = steps[: dearest - 1].argmin().item() + 1
_, panel = plt.subplots(figsize=(9, 4.6), layout="constrained")
for gone, how in (((), "whole"), ((dearest,), "wrong"), ((eraser, dearest), "L1")):
    path = torch.stack(states_of(base, ids, gone))[3:-2, :, 0, sink]
    path = path.float().mean(dim=1).cpu()
    name = " and ".join(map(str, gone)) + " out" if gone else "whole"
    panel.plot(range(2, total - 2), path, **mark(how) | {"label": name})
    print(f"{name}: {path[dearest - 2]:.0f} after the place of block {dearest}")
panel.set(xlabel="after block", yscale="log", title=f"channel {sink}, first token")
panel.legend()
show(
    "The number in channel 507 of the first token after each block, for three "
    "models. In the whole one it is about 700 from block 2 on, falls below 100 by "
    "block 10 and jumps to 23,000 at block 11. Without block 11 it is below 100 "
    "for two blocks and rises to 200. Without 9 and 11 it never falls below 200."
)

# %% [markdown]
# *Block 2 writes, blocks 8 to 10 erase, block 11 writes again.* (The first two blocks and the last two aren't drawn.)
#
# If this is the reason, then losing block 11 is mended by a number, not by what else it computes. We test that with block 11 out:
# we give the first token the number that is missing, or a tenth of it. Then block 9 stays in, and behind it we add back what it
# took away. As controls we give the number to another channel, we leave out a block that doesn't erase, and we keep the constant
# of block 11 as a bias would: for every token the same.

# %%
giant = steps[dearest - 1].item()  # what block 11 writes
erased = -steps[eraser - 1].item()  # what block 9 takes away


def at_first(channel, number):
    """A constant for the first token alone, [tokens, channels]."""
    constant = torch.zeros(ids.shape[1], len(written))
    constant[0, channel] = number
    return constant


# %%
riddle = {}
for name, gone, put in (
    (f"{dearest} out", [dearest], {}),
    (f"{eraser} and {dearest} out", [eraser, dearest], {}),
    (f"{eraser - 2} and {dearest} out", [eraser - 2, dearest], {}),
    ("its constant kept", [dearest], {dearest: kept[dearest]}),
    ("its number put back", [dearest], {dearest: at_first(sink, giant)}),
    ("a tenth of it put back", [dearest], {dearest: at_first(sink, giant / 10)}),
    (f"what {eraser} erases put back", [dearest], {eraser: at_first(sink, erased)}),
    ("in another channel", [dearest], {dearest: at_first(usual, giant)}),
):
    riddle[name] = harm(gone, put)
riddle = pd.DataFrame(riddle).T
tower, pair, control, biased, back, tenth, unerased, wrong = riddle.to_numpy()
print(f"block {dearest} writes {giant:.0f}, block {eraser} erases {erased:.0f}")
here("Two blocks out cost less than one of them.", tower - pair)
claim("With a block that doesn't erase they cost more.", control - pair)
here("One number at the first token undoes over two thirds.", tower / 3 - back)
claim("A tenth of it undoes over half.", tower / 2 - tenth)
claim("What was erased, put back, undoes a part.", tower - unerased)
claim("In another channel the number makes things worse.", wrong - tower)
claim("Its constant in a bias leaves over half.", biased - tower / 2)
riddle.round(2)

# %% [markdown]
# One number for one token, and nearly all of the harm is gone; a tenth of it does as well. (Even a tenth silences all else in the
# first token's state, and you know from lesson 03 that heads need one silent place.) With the little that block 9 erases, a good
# part of the harm is gone, as it is when block 9 is left out. So one block can **undo** what another has written: if the number
# hasn't been erased, losing the block that writes it again hurts less. That answers the second riddle for two blocks.
#
# (Without block 11, the number climbs back by itself within a few blocks: the red line. So either the harm is done in between, or
# a few hundred aren't enough. We don't know which.)
#
# ## Keep the constant
#
# Don't add up single harms. And keep the constant of what you take out: it costs next to nothing. `remove_blocks` puts it into a
# bias of the block before, which a Llama's configuration allows (`mlp_bias`), so plain transformers loads the result.
#
# But a bias writes to every token alike. It can hold channel 17's number, and not the one that block 11 writes to the first token
# alone: that is the row "its constant kept". So spare a block like block 11.
#
# Which six would you take? Here are three ways to choose. **Block influence** (Men et al. 2024) reads text once and asks how far
# a block turns the state: one minus the cosine between its input and its output. Or we take the six with the smallest single
# harms (Kim et al. 2024). Or the run that costs least as a whole. All three chose on calibration rows. Now they are judged on
# others.

# %%
from course_utils.pruning import block_importance, remove_blocks

influence = block_importance(base, few.batches(6))
chosen = {
    "least influence": influence.topk(fifth, largest=False).indices.tolist(),
    "cheapest alone": sorted(alone, key=alone.get)[:fifth],
    "cheapest run": list(min(of_run, key=of_run.get)),
}
chosen["cheapest run, nothing kept"] = chosen["cheapest run"]
final = judging_rows(tokenizer, draw=session.seed).items()
final = {text: rows[6:14] for text, rows in final}
intact = {text: Passages(rows).whole for text, rows in final.items()}
losses = {}
for name, blocks in tqdm(chosen.items(), desc="three ways"):
    model, means = variant(base), None if "nothing" in name else kept
    remove_blocks(model, blocks, means=means)
    for text, rows in final.items():
        found = perplexity(model, rows, batch_size=8)
        losses[name, text] = found.row_nll / found.row_tokens
    del model
harms = pd.DataFrame(losses).mean().unstack() - pd.Series(intact)
ahead = harms.loc["least influence"] - harms.loc["cheapest run"]
here("The cheapest run costs less than influence's six.", ahead)
harms.round(2).assign(blocks=pd.Series(chosen).astype(str)).loc[list(chosen)]

# %% [markdown]
# *Harm of six blocks in nats per token, with their constants kept; the last line is the cheapest run without them.* Is the run
# really better, or lucky with these rows? Some rows are hard for every model, so we compare two cuts row by row. $d_r$ is one
# cut's loss minus the other's on row $r$. The mean of $d$, give or take two standard errors, is a **paired interval**: in about
# 95 of 100 such experiments it holds the true mean (in fewer, with as few rows as here). If it leaves out 0, we say that one cut
# is better.
#
# $$\bar d \;\pm\; 2\, s_d / \sqrt{n}$$
#
# (Later lessons and most papers report **perplexity**, $e$ to the loss. A nat more multiplies it by 2.7.)

# %%
for rival in ("cheapest alone", "cheapest run, nothing kept"):
    for text in final:
        d = losses["cheapest run", text] - losses[rival, text]
        half = 2 * d.std(ddof=1) / len(d) ** 0.5
        print(f"{text}, minus {rival}: {d.mean():+.2f}", end=" ")
        print(f"({d.mean() - half:+.2f} to {d.mean() + half:+.2f})")

# %% [markdown]
# Compare the run with the six that are cheapest alone: on wiki the run is better, and on speeches the interval holds 0, so these
# rows can't tell. Keeping its constants helps the run on speeches; on wiki these rows can't tell. What is kept there is small.
# The constants that ruin a model when they go are the giant ones.
#
# Papers about larger models find that runs near the end cost least (Gromov et al. 2024, who heal them afterwards; Lu et al. 2024
# train a few layers). Here such a run ruins the model.
#
# ## A patient
#
# A colleague sends two files: a `healthy` Llama that you have never seen, and a `patient`, which is the same model after somebody
# took out two redundant blocks. Nobody knows any more which ones.
#
# (The healthy one is ours in a disguise, and predicts what ours predicts. But its channels stand in another order, and its state
# has another size. So the lesson's channels and numbers don't help.)

# %%
from course_utils.lessons.exercises.lesson_04 import disguised, patient_of
from course_utils.text import further_rows

healthy = disguised(base)
patient = patient_of(healthy, kept[:, channel], two)
exam = {text: rows[:4] for text, rows in further_rows(tokenizer).items()}

# %% [markdown]
# ### Exercise 4 · ●●● · 18 minutes
#
# Heal the patient with **one number**. Give `treatment = (block, channel, number)`: behind this block of the patient, the number
# is added to this channel of every token's state. On rows that nothing has used, it must undo over two thirds of the harm. The
# check says whether it does, but not how much is left, so find out before you ask. You have `states_of`, `constants` and
# `for_means.input_ids`.
#
# <details><summary>Hint</summary>
#
# Until the first gap the two models are the same. Where do their mean states part, and in which channel most? Leave the first
# token out. The number should come in at the gap, in front of the block that differs. How much is missing once both gaps are
# passed?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_treatment

# BEGIN SOLUTION
ids = for_means.input_ids[:8].to(base.device)
means = []
for model in (healthy, patient):
    states = torch.stack(states_of(model, ids))[:, :, 1:].float()
    means.append(states.mean(dim=(1, 2)))  # [blocks + 1, channels]
well, ill = means
missing = well[-2] - ill[-2]  # in front of the last block
channel = missing.abs().argmax().item()
shared = min(len(well), len(ill))
off = (well[:shared, channel] - ill[:shared, channel]).abs()
parted = (off > off.max() / 4).nonzero()[0].item()  # the first state that differs
block = parted - 2  # state n is behind block n - 1; the gap is in front of that one
treatment = block, channel, missing[channel].item()
# END SOLUTION
# BEGIN STUB
# treatment = ...  # (block, channel, number), for instance (3, 100, 2.5)
# END STUB
check_treatment(treatment, patient, healthy, exam)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Leaving block A out costs 0.1 nats, and so does leaving block B out. What do the two cost together?
#
# - [ ] About 0.2 nats, since each of them adds its own part to the state.
#   > Later blocks read the sum. What they make of a missing part depends on what else is missing.
# - [ ] At most 0.2 nats, since what one leaves undone the other takes over.
#   > If one takes over for the other, then both together cost *more* than the sum.
# - [ ] At least 0.2 nats, since two holes are worse than one.
#   > One may undo what the other writes. Then the second hole mends the first.
# - [x] Perhaps 0.05 nats, perhaps 2: that depends on what they write.
#   > Two that write the same number are redundant. One that erases what the other writes undoes it. Take both out, and measure.

# %% [markdown] tags=["quiz"]
# A giant number stands in one channel of every token, and suppose that no matrix reads that channel. It goes missing. What changes?
#
# - [x] All other channels are heard louder.
#   > The norm divides by less. Turn the volume down by hand, and the model recovers.
# - [ ] Nothing at all, since no matrix reads the channel.
#   > The norm reads it: it divides by the size of the whole state.
# - [ ] All other channels are heard more quietly.
#   > The state has become shorter, so the norm divides by less, and the rest gets larger.

# %% [markdown] tags=["quiz"]
# You removed a block. The model reads right, generates right with its cache, and is wrong after saving and loading. What did
# you forget?
#
# - [ ] To give the blocks behind the gap new numbers, in `layer_idx`.
#   > Forgotten alone it stops generating with an error, and a reload numbers anew by itself.
# - [x] To write the new number of blocks to `num_hidden_layers`.
#   > The reload builds as many blocks as the configuration promises, the missing one with random weights.
# - [ ] To copy the final norm, which reads what the last block leaves.
#   > It was never touched: it belongs to the model, not to a block.

# %% [markdown]
# ## Take-aways
#
# - Blocks add to one state, so any of them can go and the rest still runs. `layer_idx` and `num_hidden_layers` must follow.
# - Harms don't add. Two blocks can be **redundant** (together they cost more than their sum), and a block can **undo** what
#   another writes (together they cost less).
# - A giant constant in one channel sets the **volume** of all others, through the norm. One number undid most of the harm of six
#   blocks.
# - Keep the constant of what you remove. Choose by taking the whole set out, and measure it.
#
# **On Monday:** after removing blocks, compare the mean state (of all tokens but the first) with the whole model's, block by
# block, as you did for the patient. A channel that has lost a giant number is the first thing to put back.
#
# **Next:** lesson 05 takes out half a block, the attention, and asks what attention is for.
#
# ## References
#
# - Men et al. 2024, *ShortGPT*, arXiv 2403.03853: block influence
# - Kim et al. 2024, *Shortened LLaMA*, arXiv 2402.02834: leave-one-out
# - Gromov et al. 2024, *The Unreasonable Ineffectiveness of the Deeper Layers*, arXiv 2403.17887: runs of neighbours, healed
#   afterwards
# - Song et al. 2024, *SLEB*, arXiv 2402.09025: take out one block, measure all others again, take out the next
# - Sun et al. 2024, *Massive Activations in Large Language Models*, arXiv 2402.17762: giant numbers act as constants
# - Kovaleva et al. 2021, *BERT Busters*, arXiv 2105.06990: a few giant channels, without which a model breaks
# - Rushing and Nanda 2024, *Explorations of Self-Repair in Language Models*, arXiv 2402.15390
# - Stolfo et al. 2024, *Confidence Regulation Neurons in Language Models*, arXiv 2406.16254: neurons that set the volume in front
#   of the head
# - Lu et al. 2024, *Reassessing Layer Pruning in LLMs*, arXiv 2411.15558: the last blocks, and a few layers trained afterwards
