# ---
# jupyter:
#   course:
#     title: "Pruning a GLU: every light is green"
#     minutes: 75 to 95 minutes
#     prerequisites: lesson 01 (L1 norm, pruned equals masked, guessing, random cuts)
#     assets: [smollm2, speeches, texts]
#     concepts: [SwiGLU, gate and up, entropy, test of exactness, one list, strangers, in step]
# ---

# %% [markdown]
# ## The question
#
# We take one neuron out of each block of a Llama. It still runs, its size is right, and after saving it opens again, equal bit
# for bit. Every light is green. Yet it predicts worse than a model that guesses. Why?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** A neuron of a Llama has a row in each of two matrices (and a column in a third), and the two rows work together. We
# let each of the two matrices give up its own weakest row. The rows below a removed row move up by one place. Between the two gaps
# only one of the matrices has moved, so every row there meets the wrong partner: on average a third of the block. Put an empty row
# into each gap (and an empty column into the third matrix), and the model is well again.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** shapes, sizes and saved files say nothing about whether a cut is right. One equality does, without any data. And
# the harm has a simple reason that one can touch: rows that moved by one.
#
# **Let the room find it:** say neither "index" nor "pair" before exercise 2. When somebody calls "but it is only one neuron!",
# ask which one.
#
# **Usual questions:** "But it runs?" That is the lesson. "Was it an important neuron?" No: random rows do it as well, and in step
# the same rows are hardly missed. "Then those neurons have just stopped working?" Half of it: silence costs about half of what
# strangers cost. "Would anybody make this mistake?" Whoever prunes matrix by matrix with a tool that knows nothing of pairs.
#
# **Wrong turns:** comparing rows instead of outputs, or one draw only, in exercise 2; padding at the end in exercise 3; taking
# a neuron's number for its place, or down for gate's follower, in exercise 4.
#
# **At the end you have** a test that finds a broken cut without data, the reason why one row can ruin a model, and a way to
# rescue a checkpoint that was cut wrongly.

# %% tags=["install"]

# %%
import itertools
import math
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import silu
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import mark, read_record, safe_dtype, show, start, style

session = start("02")
style()
record = read_record("random_cuts").query("dtype == 'float32'")  # 48 passages each


def recorded(criterion, edit):
    """What a kind of cut costs on speeches in the record: nats per token."""
    chosen = (record.criterion == criterion) & (record.edit == edit)
    return record[chosen & (record.text == "speeches")].nats


# %%
bars = {
    "the whole Llama": ("whole", recorded("", "").item()),
    "a model that guesses": ("random", math.log(49_152)),  # its vocabulary
    "one neuron of 1,536\ngone in each block": (
        "wrong",
        recorded("L1", "separate, one neuron").item(),
    ),
}
_, panel = plt.subplots(figsize=(8, 3.2), layout="constrained")
for name, (arm, nats) in bars.items():
    bar = panel.barh(name, nats, color=mark(arm)["color"])
    panel.bar_label(bar, fmt=" %.1f")
panel.set(xlabel="loss on speeches (nats per token)", xlim=(0, 14))
panel.grid(visible=False, axis="y")
panel.invert_yaxis()
show(
    "Three bars: the loss of the whole Llama is about 4, a model that guesses has "
    "about 11, and the Llama that lost one neuron per block has more than that."
)

# %% [markdown]
# *How badly three models predict speeches; longer is worse.* The third model is the first one, but each block lost a single
# neuron of its 1,536: the weakest one, chosen as in lesson 01. And now it predicts worse than a model that has never read a word.
#
# You make this model yourself in a minute. There is a mistake in it. **Look for it in the code.** The text names it only after
# exercise 2.
#
# ## The MLP of a Llama

# %%
diagrams.glu_block(neuron=None)
show(
    "A Llama block with its MLP opened up: gate_proj and up_proj both lead from "
    "the hidden size to the neurons, SiLU follows gate, the two results are "
    "multiplied, and down_proj leads back."
)

# %% [markdown]
# A GPT-2's MLP has two matrices. A Llama's has three, and no bias:
#
# $$\mathrm{MLP}(x) = W_{down}\,a, \qquad a = \mathrm{silu}(W_{gate}\,x) \odot W_{up}\,x$$
#
# Two matrices read the same $x$. The results of `up` are contents. `gate`'s results, through SiLU, are the factors by which each
# content is multiplied; $\odot$ does so number by number. SiLU lets large positive numbers through and makes negative ones
# nearly zero, so a gate can be shut. `down` reads the products and leads back. Such an MLP is a **GLU**, a *gated linear unit*
# (Dauphin et al. 2017, for convolutions), and with SiLU it is called **SwiGLU** (Shazeer 2020). Most open models of today have
# one. All three layers are `nn.Linear` and store [out, in].
#
# ## Cut it as in lesson 01
#
# In lesson 01 we took the columns with the smallest L1 norm out of `c_fc`, and `c_proj` followed. (GPT-2 stores [in, out], so there
# a neuron is a column; here it is a row.) The code below does it here, carefully: a single neuron per block.
#
# **Predict before you run.** Three things could complain: the forward pass, the configuration, the saved file. Which of them
# will? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None. The next cells print it: shapes that fit, 1,535 neurons in the configuration, and a file that opens again. (We write the
# configuration by hand, in the last line but one of `cut`, so that light couldn't turn red.)
#
# </details>

# %%
from course_utils.models import load_model, variant
from course_utils.pruning import best

dtype = safe_dtype(session.dtype)  # float16 is too narrow for what follows
base, tokenizer = load_model("llama", dtype=dtype)
blocks, width = base.model.layers, base.config.intermediate_size


def l1_scores(weight):
    """The L1 norm of each row."""
    return weight.detach().float().abs().sum(dim=1)


def without_weakest(weight, gone=1):
    """The rows that stay, in their old order."""
    return best(l1_scores(weight), len(weight) - gone)


@torch.no_grad()
def cut(gate_lists, up_lists):
    """A Llama whose gates and ups keep these rows, block by block."""
    model = variant(base)  # the weights that we don't cut are shared with base
    lists = zip(model.model.layers, gate_lists, up_lists, strict=True)
    for block, gate_list, up_list in lists:
        gate, up, down = block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj
        gate.weight = nn.Parameter(gate.weight[gate_list])
        up.weight = nn.Parameter(up.weight[up_list])
        down.weight = nn.Parameter(down.weight[:, gate_list])  # down follows gate
    model.config.intermediate_size = len(gate_list)
    return model


gate_lists = [without_weakest(block.mlp.gate_proj.weight) for block in blocks]
up_lists = [without_weakest(block.mlp.up_proj.weight) for block in blocks]
careful = cut(gate_lists, up_lists)
print(f"{len(blocks)} of {len(blocks) * width:,} neurons are gone")

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# The first light: do the shapes fit? Write `mlp_shapes(hidden, width, gone)`. It returns a dict with five shapes of an MLP that
# lost `gone` of its `width` neurons: of the weights `gate`, `up` and `down`, and for one token $x$ of shape `(hidden,)` of the
# `product` behind gate and up and of the `output`. The check tries some sizes, and then holds your shapes against the Llama that
# we have cut.
#
# <details><summary>Hint</summary>
#
# An `nn.Linear` stores [out, in]. Which of the matrices lead to the neurons, and which leads back?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_shapes


# BEGIN SOLUTION
def mlp_shapes(hidden, width, gone):
    stay = width - gone
    return {
        "gate": (stay, hidden),
        "up": (stay, hidden),
        "down": (hidden, stay),
        "product": (stay,),
        "output": (hidden,),  # as before, so the next block fits
    }


# END SOLUTION
# BEGIN STUB
# def mlp_shapes(hidden, width, gone):
#     ...  # {"gate": (…, …), "up": …, "down": …, "product": …, "output": …}
# END STUB
check_shapes(mlp_shapes, careful, width)

# %% [markdown]
# ## More lights
#
# Two more things that one looks at: does the configuration know the new size, and does the saved file open in plain
# `transformers`?

# %%
from transformers import AutoModelForCausalLM

from course_utils.pruning import save_pruned

prompt = tokenizer("The capital of France is", return_tensors="pt").to(base.device)
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    save_pruned(careful, tokenizer, folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    again = again.to(base.device).eval()
    assert torch.equal(again(**prompt).logits, careful(**prompt).logits)
noted = again.config.intermediate_size
mlp = again.model.layers[0].mlp
for part in ("gate_proj", "up_proj", "down_proj"):
    print(f"{part}: {tuple(mlp.get_submodule(part).weight.shape)}")
print(f"neurons per block, by the configuration: {noted:,}")
print("saved and opened again: equal, bit for bit")
del again, mlp

# %% [markdown]
# ## What does it know?
#
# We measure on 8 passages of speeches and 8 of Wikipedia. (Behind the first figure are 48 passages of speeches, and the long
# experiment below uses 4, so the whole model's loss differs by up to half a nat.) Beside the loss we print the **entropy** of the
# predictions. It says how unsure a model is: 0 nats if one token has all the probability, and as much as guessing if all tokens
# have the same. If one can trust a model's probabilities, it loses on average as much as its entropy says.
#
# **Predict before you run.** You saw that its loss is above guessing. Has this model forgotten everything, or is it too sure of
# what it believes? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It is far surer than it should be. If it spread its bets over all tokens, it would lose as much as guessing does. But its
# entropy on speeches is only 5.2 nats, as for an even choice among 186 tokens, and it loses 12.2. The right token stands in the
# median at place 4,982, so it knows something, but little.
#
# </details>

# %%
from course_utils.text import judging_rows

judging = judging_rows(tokenizer, draw=session.seed)
texts = {text: rows[:8] for text, rows in judging.items()}
guessing = math.log(base.config.vocab_size)


@torch.no_grad()
def look(model, rows, softer=1):
    """Loss and entropy in nats per token, and the right token's median rank."""
    ids = rows.input_ids.to(model.device)
    log_p = (model(ids).logits[:, :-1].float() / softer).log_softmax(dim=-1)
    right = log_p.gather(-1, ids[:, 1:, None])
    entropy = -(log_p.exp() * log_p).sum(dim=-1).mean()
    rank = 1 + (log_p > right).sum(dim=-1).median()
    return -right.mean().item(), entropy.item(), rank.item()


def ten_tokens(model):
    """What it writes behind the prompt, always the likeliest token."""
    tokens = {"min_new_tokens": 10, "max_new_tokens": 10, "do_sample": False}
    return repr(tokenizer.decode(model.generate(**prompt, **tokens)[0]))


# %%
found = {}
for name, model in {"whole": base, "one neuron gone": careful}.items():
    for text, rows in texts.items():
        found[name, text] = nats, entropy, rank = look(model, rows)
        print(f"{name}, {text}: loss {nats:.2f}, entropy {entropy:.2f}", end=" ")
        print(f"(like {math.exp(entropy):.0f} tokens), right token's rank {rank:,}")
    print("  ", ten_tokens(model))
print(f"guessing: loss and entropy {guessing:.2f}")
whole = {text: found["whole", text][0] for text in texts}
nats, entropy, _ = np.array([found["one neuron gone", text] for text in texts]).T
here("With one neuron less per block it is worse than guessing.", nats - guessing)
here("It loses over twice as much as its entropy says.", nats - 2 * entropy)
soft = [look(careful, rows, softer=3)[0] for rows in texts.values()]
print(f"logits divided by 3: loss {soft[0]:.2f} and {soft[1]:.2f}")
here("With softer bets it is better than guessing.", guessing - np.array(soft))

# %% [markdown]
# How can a model be worse than guessing? It bets too much on what it believes. The last line shows it: divide its logits by 3, and
# each bet becomes softer, while their order stays. Now the model is a little better than guessing. So it knows nearly nothing, and
# about two nats more are lost because it is so sure.
#
# ## Ask the equality
#
# In lesson 01, a right cut equalled the large MLP with those neurons silenced. Does ours? We try a toy of five neurons, and all
# $2^5 = 32$ ways to silence some of them.
#
# **Predict before you run.** The toy loses one neuron, by our method. Which of the 32 does it equal? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None of them. So we didn't choose a bad neuron. **We didn't take out a neuron at all**: what is left isn't the old MLP without
# something, it is another function.
#
# </details>


# %%
def glu(x, gate, up, down):
    """A Llama's MLP: x [tokens, hidden] -> [tokens, hidden]."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def carried_over(gate, up, down, keep):
    """Our method on three matrices, of which `keep` neurons stay."""
    gate_list = best(l1_scores(gate), keep)
    up_list = best(l1_scores(up), keep)
    return gate[gate_list], up[up_list], down[:, gate_list]


generator = torch.Generator().manual_seed(226)
gate, up = torch.randint(-2, 3, (2, 5, 3), generator=generator).float()
down = torch.randint(-2, 3, (3, 5), generator=generator).float()
toy = gate, up, down
small = carried_over(*toy, keep=4)
print("shapes:", *(tuple(matrix.shape) for matrix in small))
x = torch.randn(100, 3)  # a hundred tokens of hidden size 3
ours = glu(x, *small)
off = []
for mask in itertools.product((0.0, 1.0), repeat=5):  # 1: this neuron speaks
    masked = glu(x, gate, up, down * torch.tensor(mask))
    off.append((ours - masked).abs().max() / ours.abs().max())
print(f"the nearest of {len(off)} masks is off by {min(off):.0%}", end=" ")
print("of the largest output")
claim("The toy that was cut so equals none of the masked ones.", [min(off) - 0.01])

# %% [markdown]
# ### Exercise 2 · ●●○ · 12 minutes
#
# Write the test that was missing. `is_exact(prune)` gets a function like `carried_over`, which is called as `prune(gate, up,
# down, keep)`. Make up **several** random GLUs; no model and no text is needed. Return True if each small GLU that `prune` makes
# equals the large one with as many neurons silenced as it took out, and False if not. How `prune` chooses is its own affair. The
# check hands your test some right pruners and some broken ones. Some of these are right now and then, by luck.
#
# <details><summary>Hint</summary>
#
# Ten random GLUs of 5 neurons, of which 3 stay, are enough. `itertools.combinations(range(5), 3)` lists which three may have
# stayed. Silence the others in `down`, and compare what `glu` gives with `torch.allclose`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_is_exact


# BEGIN SOLUTION
def right_once(prune, random, hidden=4, neurons=5, keep=3):
    gate, up = torch.randn(2, neurons, hidden, generator=random)
    down = torch.randn(hidden, neurons, generator=random)
    x = torch.randn(20, hidden, generator=random)
    small = glu(x, *prune(gate, up, down, keep))
    for stay in itertools.combinations(range(neurons), keep):
        silenced = torch.zeros_like(down)
        silenced[:, stay] = down[:, stay]
        if torch.allclose(small, glu(x, gate, up, silenced), atol=1e-5):
            return True
    return False


def is_exact(prune):
    random = torch.Generator().manual_seed(0)
    return all(right_once(prune, random) for _ in range(10))


# END SOLUTION
# BEGIN STUB
# def is_exact(prune):
#     ...  # your code
# END STUB
check_is_exact(is_exact)

# %% [markdown]
# ## Find the mistake
#
# In the toy `gate` gave up its row 1, and `up` its row 3: each of the two gives up its own weakest row. The rows below a gap move
# up, because a smaller matrix has no holes. Then the results are multiplied place by place: those of the first row of gate with
# those of the first row of up, and so on.
#
# **Predict before you run.** At each of the toy's four places a row of gate meets a row of up. Which ones meet? And at how many
# places of the real Llama, which lost one row per matrix, do two rows meet that don't belong together: 1 of 1,535, some, or
# nearly all? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In the toy rows 0 and 0 meet, then 2 and 1, 3 and 2, and at last 4 and 4. Outside the two gaps all is well, and between them
# every row meets a stranger. In the Llama that is the fate of 33 % of the places, from 2 % in one block to 87 % in another.
#
# </details>

# %%
gaps = []  # for each block: which row of gate is gone, and which of up
for lists in zip(gate_lists, up_lists, strict=True):
    missing = [set(range(width)) - set(kept.tolist()) for kept in lists]
    gaps.append([number.pop() for number in missing])
shares = []
for gate_list, up_list in zip(gate_lists, up_lists, strict=True):
    strangers = gate_list != up_list
    shares.append(strangers.float().mean().item())
print(f"strangers meet at {sum(shares) / len(shares):.0%} of all places", end=" ")
print(f"(by block {min(shares):.0%} to {max(shares):.0%})")
apart = [abs(gate_gap - up_gap) for gate_gap, up_gap in gaps]
assert [round(share * (width - 1)) for share in shares] == apart
claim("Strangers meet in every block.", shares)

# %%
toy_lists = [best(l1_scores(matrix), 4).tolist() for matrix in toy[:2]]
_, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
same, stranger = mark("whole")["color"], mark("wrong")["color"]
sides = [("gate", toy_lists[0], 0, 1), ("up", toy_lists[1], 3, 2)]
for name, kept, before, after in sides:
    for row in range(5):
        rung = {"ha": "center", "va": "center", "alpha": 1 if row in kept else 0.35}
        left.text(before, row, f"{name} {row}" if row in kept else "gone", **rung)
    for place, row in enumerate(kept):
        left.text(after, place, f"{name} {row}", ha="center", va="center")
        way = {"color": same, "linewidth": 1, "alpha": 0.5}
        side = 0.32 if name == "gate" else -0.32
        left.plot([before + side, after - side], [row, place], **way)
for place, (of_gate, of_up) in enumerate(zip(*toy_lists, strict=True)):
    color = same if of_gate == of_up else stranger
    left.plot([1.36, 1.7], [place] * 2, color=color, linewidth=5)
left.set(xlim=(-0.5, 3.5), ylim=(4.6, -0.6), xticks=range(4), yticks=range(5))
left.set_xticklabels(["gate,\nwhole", "gate,\ncut", "up,\ncut", "up,\nwhole"])
left.set(ylabel="place", title="the toy: who moves, who meets whom")
left.grid(visible=False)
right.barh(range(len(gaps)), width - 1, color=same, alpha=0.15)
starts = [min(pair) for pair in gaps]
right.barh(range(len(gaps)), apart, left=starts, color=stranger)
right.set(xlabel="place", ylabel="block", title="the Llama: who meets a stranger")
right.set(ylim=(len(gaps) - 0.5, -0.5), xlim=(0, width - 1))
right.grid(visible=False)
show(
    "Left: the toy's rows of gate and of up, before and after the cut. Row 1 of "
    "gate is gone and row 3 of up; rows below a gap move up. In red, gate 2 "
    "meets up 1, and gate 3 up 2. Right: a bar per block of the Llama; the red "
    "part, between the two gaps, is a third of all."
)

# %% [markdown]
# *Red: places where strangers meet. They begin at one gap and end at the other.* Why a third? The order of neurons means nothing.
# If the two weakest rows also have nothing to do with each other, they stand anywhere, and two places drawn blindly on a line lie a
# third of its length apart, on average.
#
# So here is what belongs together:

# %%
diagrams.glu_block(neuron=2)
show(
    "The same drawing with one neuron marked: a row of gate_proj, the same row of "
    "up_proj, and the same column of down_proj."
)

# %% [markdown]
# **A neuron of a GLU is three slices with one number**: a row of gate, *the same* row of up, and the same column of down. We let
# `gate` and `up` keep lists of their own. A shape tells how many rows are left, not which, and that is why every light was green.
#
# This is also how "one neuron" can be worse than guessing: it isn't one neuron. If gate lost row $i$ and up lost row $j$,
# strangers meet at $|i - j|$ places.
#
# ## Turn the knob
#
# So far this is a suspicion. If it is right, we can turn the harm up and down like the sound of a radio. Now *we* choose the
# rows. In each block gate loses some row $i$, drawn blindly, and up loses row $i + d$. Every model loses one row of gate and one
# of up in each block. What differs is the distance $d$, and which rows are drawn.
#
# **Predict before you run.** What does it cost at $d = 0$? And how does the cost go on when $d$ grows? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# At 0 nothing, because then both rows belong to the same neuron, and a whole neuron per block is hardly missed. At 64 places it
# is already about 0.4 nats, and it goes up and up with the distance, to about 11. Equal distances don't cost the same: it also
# matters which places they are.
#
# </details>


# %%
from course_utils.measuring import perplexity


def loss(model, rows):
    """The loss alone, which takes less time than `look`."""
    return perplexity(model, rows, batch_size=len(rows)).nll


def all_but(*gone):
    """The numbers of all rows that stay."""
    return torch.tensor(sorted({*range(width)} - {*gone}))


def one_row_each(pairs):
    """Lists for gate and for up, which lose row i and row j in each block."""
    return [all_but(i) for i, _ in pairs], [all_but(j) for _, j in pairs]


few = judging["speeches"][:4]
intact = loss(base, few)


def damage(model):
    """Nats per token on a few passages."""
    return loss(model, few) - intact


distances = [0, *(width // share for share in (24, 6, 3)), 2 * width // 3]
knob = []
for distance in tqdm(distances, desc="distances"):
    for _ in range(2):
        rows = torch.randint(width - distance, (len(blocks),)).tolist()
        pairs = [(row, row + distance) for row in rows]
        knob.append((distance, pairs, damage(cut(*one_row_each(pairs)))))
knob = pd.DataFrame(knob, columns=["distance", "pairs", "strangers"])
by_distance = knob.groupby("distance").strangers
whole_neuron = by_distance.max()[0]
claim("A whole neuron per block is hardly missed.", [0.1 - whole_neuron])
claim("On average more distance does more harm.", by_distance.mean().diff()[1:])
by_distance.agg(["min", "max"]).round(2).T

# %% [markdown]
# The table has the lowest and the highest damage, in nats per token, of two draws of rows $i$ at each distance. It follows the
# distance. But one could still object: perhaps it is the lost rows, and the far ones just happened to be worse. So we remove the
# shift, and the lost rows stay lost. `mended` lets a function mend each MLP of a broken model, and `judge` measures the damage
# that is left. (`moved` is for later.)


# %%
def moved(first, last):
    """All rows; row `first` goes behind row `last`, so those between move up."""
    rows = [*range(width)]
    rows.insert(last, rows.pop(first))
    return torch.tensor(rows)


@torch.no_grad()
def mended(mend, model, *lists):
    """The model, when `mend` has been at each of its MLPs."""
    for block, *of_block in zip(model.model.layers, *lists, strict=True):
        mlp = block.mlp
        parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        matrices = mend(*(part.weight.detach() for part in parts), *of_block, width)
        for part, weight in zip(parts, matrices, strict=True):
            part.weight = nn.Parameter(weight.to(dtype))
    return model


def judge(mend, broken, *lists, rows=texts, intact=whole):
    """The damage on each text that is left when `mend` has been at a copy."""
    model = mended(mend, variant(broken), *lists)
    return {text: loss(model, rows[text]) - intact[text] for text in rows}


# %% [markdown]
# ### Exercise 3 · ●●○ · 12 minutes
#
# Prove it. We now undo the shift and leave the losses as they are: you insert an empty row into each gap, so that every other row
# stands at its old place again. **No lost row comes back.** Write `in_step(gate, up, down, gate_list, up_list, width)`. It gets
# one MLP's broken matrices and the two lists: `gate_list[k]` is the old number of the row at place $k$ of `gate`, and `up_list`
# tells the same for `up`. The lists may be in any order and lack any number of rows. Return the three matrices with all `width`
# places, zeros where nothing is known.
#
# **Predict before the check tells you:** it puts the Llama of this lesson in step. How much of its damage goes away? Because …
#
# <details><summary>Hint</summary>
#
# `gate.new_zeros(width, hidden)` is an empty matrix, and `empty[places] = weight` writes all rows into it at once. And which list
# did the columns of `down` follow?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_in_step


# BEGIN SOLUTION
def in_step(gate, up, down, gate_list, up_list, width):
    hidden = gate.shape[1]
    full_gate, full_up = gate.new_zeros(2, width, hidden)
    full_down = down.new_zeros(hidden, width)
    full_gate[gate_list] = gate
    full_up[up_list] = up
    full_down[:, gate_list] = down  # it followed gate
    return full_gate, full_up, full_down


# END SOLUTION
# BEGIN STUB
# def in_step(gate, up, down, gate_list, up_list, width):
#     ...  # gate, up and down with all places
# END STUB
check_in_step(in_step, judge, careful, gate_lists, up_lists)

# %% [markdown]
# ## The shift is the harm
#
# Your function can mend every model of the knob. In step, a row that has lost its partner does nothing, because it is multiplied
# by zero. So in effect the two neurons $i$ and $j$ are gone whole, and nobody meets a stranger. (The lesson's own function is
# used if yours wasn't accepted.)
#
# Are the strangers *actively* harmful, or have a third of the neurons merely stopped working? A third series tells: we
# **silence** everything between the gaps, by removing all neurons from $i$ to $j$ whole.
#
# And must any row be missing at all? In the last two models **nothing is lost**: all rows of our Llama stay. In one of them, up's
# row at the earlier gap is put behind its row at the later gap, so those between move up by one, and gate and down stay. In the
# other all three matrices do so alike.
#
# **Predict before you run.** What will each of the four cost: in step, silence, up moved alone, all three moved alike? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In step nearly nothing, at any distance: our model goes from over 8 nats to about 0.1. Silence costs half to three quarters of
# what strangers cost, up to a third of the block; with two thirds silent it is as bad. Up moved alone, with nothing lost, does
# nearly all of the harm. And if all three move alike, nothing happens: the same neurons are there, in another order. So to have
# *moved* isn't the harm. To have moved **apart** is.
#
# </details>

# %%
put_in_step = check_in_step.accepted  # your function, once it is right


def step_and_silence(pairs):
    """Damage with the rows in step, and with all between the gaps silent."""
    lists = one_row_each(pairs)
    silent = [all_but(*range(min(pair), max(pair) + 1)) for pair in pairs]
    in_step_again = damage(mended(put_in_step, cut(*lists), *lists))
    return in_step_again, damage(cut(silent, silent))


ways = ["in step", "silence"]
tried = [step_and_silence(pairs) for pairs in tqdm(knob.pairs, desc="models")]
knob[ways] = tried
ours = [damage(careful), *step_and_silence(gaps)]
all_rows = [torch.arange(width)] * len(blocks)
shift = [moved(*sorted(pair)) for pair in gaps]
no_loss = damage(cut(all_rows, shift))
alike = damage(cut(shift, shift))  # down follows gate
for way, nats in zip(["strangers", *ways], ours, strict=True):
    print(f"the lesson's model, {way}: {nats:.2f} nats")
print(f"nothing lost, up moved alone: {no_loss:.2f} nats")
print(f"nothing lost, all three moved alike: {abs(alike):.2f} nats")
mean = knob.groupby("distance")[["strangers", *ways]].mean()
short = mean[(mean.index > 0) & (mean.index <= width // 3)]
claim("In step the same rows are hardly missed.", [0.15 - knob["in step"].max()])
here("In step most of our model's damage is gone.", [ours[0] / 4 - ours[1]])
more = short.strangers - short.silence
claim("Up to a third, strangers cost more than silence.", more)
claim("The shift alone does most of the harm.", [no_loss - 0.5 * ours[0]])
here("Moved alike, the matrices do no harm.", [0.05 - abs(alike)])
sunk = [mean.silence.iloc[-1] + intact - guessing]
here("With two thirds silent it is worse than guessing.", sunk)
mean.round(2).T

# %%
_, panel = plt.subplots(figsize=(9, 5.2), layout="constrained")
series = {"strangers": "wrong", "silence": "neurons", "in step": "whole"}
labels = ["strangers meet", "silent between the gaps", "in step"]
for (way, arm), label in zip(series.items(), labels, strict=True):
    dots = mark(arm) | {"linestyle": "none", "label": label}
    panel.plot(knob.distance, knob[way], **dots)
square = mark("L1") | {"linestyle": "none", "label": "the lesson's model"}
mean_apart = sum(apart) / len(apart)
notes = "as we cut it", "in step, or all three moved alike", "silent"
notes = dict(zip(notes, ours, strict=True)) | {"nothing lost, up moved": no_loss}
for words, nats in notes.items():
    panel.plot(mean_apart, nats, markersize=13, markerfacecolor="none", **square)
    panel.text(mean_apart + 25, nats, words, va="center", fontsize="small")
    square["label"] = "_"  # the legend names it once
level = mark("guessing") | {"label": "as bad as guessing"}
panel.axhline(guessing - intact, **level)
panel.set(xlabel="places per block between the gaps, |i − j|")
panel.set(ylabel="damage (nats per token)")
panel.legend(loc="upper left", fontsize="small")
show(
    "Damage against the number of places per block between the gaps. Red crosses, "
    "where strangers meet, rise with it, at last far above the line of guessing. "
    "Orange dots, where those places are silent, stay below them up to a third of "
    "the block. Black stars, in step, lie at 0. Blue squares are this lesson's: "
    "as cut, and with up moved alone, high; silent, half as high; in step, at 0."
)

# %% [markdown]
# *At each distance crosses, dots and stars belong to the same two draws of rows $i$.* A star has lost rows $i$ and $j$, as its
# cross has; in effect two neurons are gone whole. The blue squares are our own Llama, at the mean of its distances. (With all three
# moved alike it would lie at 0.)
#
# The lost rows were hardly missed. The **shift** was the harm, and it needs no missing row: between the gaps, one neuron's gate
# decides over another neuron's content. (It isn't quite our cut's shift, because there it is sometimes gate that moved, and down
# with it.)
#
# With the neurons between the gaps silent, our model has 3.68 nats of damage; with strangers there, 8.06. So a part of the harm is
# work that isn't done, and the rest is something wrong that is said. (At two thirds of the block we find no difference between the
# two, and don't know why.)
#
# ## One list for all three
#
# So here is the right cut: one list of neurons, and all three matrices keep it. `prune_neurons` does that for every family,
# Martra (2024) cuts Llamas so, and LLM-Pruner (Ma et al. 2023) finds by itself which slices go together. Does your test agree?
# `prune_neurons` wants a model, so `wrapped` puts the three matrices into a Llama of one block, prunes it, and takes them out. Then
# we take a tenth of the neurons from ours by L1, once with separate lists and once with one list.
#
# **Predict before you run.** With one list the cut is exact. Is it a good one, then? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It is exact, and better than guessing. But it isn't good: it costs over 5 nats, and in the record it loses to each of 19 random
# cuts. Exact means that the same neurons are gone from all three matrices. It doesn't mean that they were the right ones to lose.
#
# </details>

# %%
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.pruning import neuron_importance, prune_neurons, strongest


def wrapped(gate, up, down, keep):
    """`prune_neurons` as a pruner of three matrices."""
    neurons, hidden = gate.shape
    sizes = {"hidden_size": hidden, "intermediate_size": neurons, "vocab_size": 8}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2}
    tiny = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    mlp = tiny.model.layers[0].mlp
    parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    for part, weight in zip(parts, (gate, up, down), strict=True):
        part.weight = nn.Parameter(weight)
    scores = neuron_importance(tiny, "l1")  # the sum of both rows' norms
    prune_neurons(tiny, scores, ratio=1 - keep / neurons)
    return [part.weight.detach() for part in parts]


test = check_is_exact.accepted  # your is_exact, once it is right
for name, prune in {"carried_over": carried_over, "prune_neurons": wrapped}.items():
    print(f"is {name} exact? {test(prune)}")

# %%
l1 = neuron_importance(base, "l1")
shared = [strongest(scores, 0.1) for scores in l1]  # without the weakest tenth
separate = []
for part in ("gate_proj", "up_proj"):
    weights = [block.mlp.get_submodule(part).weight for block in blocks]
    separate.append([without_weakest(weight, width // 10) for weight in weights])
tenth = {}
arms = {"separate lists": separate, "one list": [shared, shared]}
for name, lists in arms.items():
    tenth[name], *_ = look(cut(*lists), texts["speeches"])
    print(f"a tenth gone, {name}: loss {tenth[name]:.2f}")
nats, *_ = look(mended(put_in_step, cut(*separate), *separate), texts["speeches"])
print(f"separate lists, put in step: loss {nats:.2f}")
two_lists, one_list = tenth.values()
here("A tenth in separate lists is worse than guessing.", [two_lists - guessing])
here("With one list it is better than guessing.", [guessing - one_list])
random_cuts = recorded("random", "shared")
beaten = (random_cuts > recorded("L1", "shared").item()).sum()
print("in the record L1 with one list", end=" ")
print(f"beats {beaten} of {len(random_cuts)} random cuts")
claim("The exact cut by L1 beats none of the random cuts.", [0.5 - beaten])

# %% [markdown]
# The shift is over half of the harm here, too: put in step, the model with separate lists comes from 19.97 to 11.03. The rest is
# the choice. Two lists take more neurons than one, since each names others. And L1 names those that are dear: why, and which
# neurons can go, is the question of lesson 03.
#
# ## Rescue a checkpoint
#
# Somebody cut a Llama matrix by matrix and threw the original away. Here even `down` didn't follow gate: **all three** matrices
# have lists of their own, and each lost a twentieth. There is a log with the lists. Exercise 3's zeros would work,
# but the model would be as large as before. Hand back a *smaller* model, without empty places, that equals the original with some
# neurons silenced. It is judged on passages that nothing has used so far. (Its blocks keep different numbers of neurons, so a file
# of it needs `save_pruned`, as in lesson 01.)

# %%
from course_utils.text import further_rows

careful, model, logs = None, None, []  # room; rows or columns kept, by block
for seed in range(3 * session.seed, 3 * session.seed + 3):
    scores = neuron_importance(base, "random", seed=seed)
    logs.append([strongest(of_block, 0.05) for of_block in scores])
wreck = cut(*logs[:2])
for number, down_list in enumerate(logs[2]):
    columns = blocks[number].mlp.down_proj.weight.detach()[:, down_list]
    wreck.model.layers[number].mlp.down_proj.weight = nn.Parameter(columns)
exam = {text: rows[:6] for text, rows in further_rows(tokenizer).items()}
intact_exam = {text: loss(base, rows) for text, rows in exam.items()}


def exam_of(rescue):
    """The damage of what is rescued on each text of the exam, nats per token."""
    return judge(rescue, wreck, *logs, rows=exam, intact=intact_exam)


for text, rows in exam.items():
    lost = loss(wreck, rows) - intact_exam[text]
    print(f"{text}: the wreck has {lost:.1f} nats per token of damage")

# %% [markdown]
# ### Exercise 4 · ●●● · 15 minutes
#
# Write `rescue(gate, up, down, gate_list, up_list, down_list, width)`. `down_list[k]` is the old number of the column at place
# $k$ of `down`, and the other two lists tell the same for `gate` and `up`. Return the three matrices of the **largest exact GLU**
# that is still in there, without empty places. The check compares it with the masked original on small matrices and fresh lists,
# which may be in any order, and then opens the exam.
#
# <details><summary>Hint</summary>
#
# Take pencil and paper: `gate_list` is [4, 0, 2], `up_list` is [2, 4, 1], `down_list` is [1, 2, 4], and `width` is 5. How many
# neurons can you hand back, and where do you find the three slices of each?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_rescue


# BEGIN SOLUTION
def rescue(gate, up, down, gate_list, up_list, down_list, width):
    lists = [kept.tolist() for kept in (gate_list, up_list, down_list)]
    alive = sorted(set.intersection(*map(set, lists)))  # no slice is lost
    on_gate, on_up, on_down = ([kept.index(n) for n in alive] for kept in lists)
    return gate[on_gate], up[on_up], down[:, on_down]


# END SOLUTION
# BEGIN STUB
# def rescue(gate, up, down, gate_list, up_list, down_list, width):
#     ...  # smaller gate, up and down
# END STUB
check_rescue(rescue, exam_of)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Gate lost row 10, and up lost row 12, of 1,000 rows each. How many neurons are harmed?
#
# - [ ] One, because each matrix lost one row.
#   > Each lost one, but not of the same neuron: 10 and 12 both lack a row now. And there is the shift.
# - [x] Three: the two that lost a row, and the one between them.
#   > Strangers meet at |10 − 12| = 2 places: gate 11 meets up 10, and gate 12 meets up 11. These are the rows of neurons 10, 11 and 12.
# - [ ] Nearly all, because the rows below a gap have all moved up.
#   > Below *both* gaps gate and up have moved by one alike, so partners stand opposite each other again.

# %% [markdown] tags=["quiz"]
# A pruned model passes "pruned equals masked" exactly. What do you know?
#
# - [ ] That it is nearly as good as the original, since the outputs are equal.
#   > They equal those of the *masked* original. Silencing the wrong neurons can ruin a model, exactly.
# - [x] That it is the original with some of its neurons silenced.
#   > The surgery is right. Whether the set is a good one is measured beside random cuts.
# - [ ] That its loss is at least better than guessing on ordinary text.
#   > Not even that: with two thirds of each block silent, exactly, our Llama was worse than guessing.
# - [ ] That the criterion is sound, since no neuron was mixed up with another.
#   > The test accepts any set of whole neurons, random ones too.

# %% [markdown]
# ## Take-aways
#
# - A neuron of a GLU is a row of gate, *the same* row of up and *the same* column of down: one list for all three.
# - Shapes, sizes, a saved file and a forward pass don't show that the right rows meet. *Pruned equals masked* finds the mistake
#   without data.
# - **The shift is the harm, not the missing rows.** Same rows gone, the rest in step: little happens. All rows there, but
#   shifted: disaster.
# - To have moved does no harm, to have moved *apart* does. Up to a third of a block, strangers cost more than silence.
# - Slices that are still there can be brought together again. So rescued, the wreck of exercise 4 works again.
#
# **On Monday:** wherever two results are multiplied or added place by place, what you cut must have one list. Before you measure
# a new pruner that only removes, run `is_exact` on it; a pruner of whole models you wrap, as we did. It takes a second.
#
# **Next:** lesson 03 keeps the neurons whole and asks which of them must stay.
#
# ## References
#
# - Dauphin et al. 2017, *Language Modeling with Gated Convolutional Networks*, arXiv 1612.08083: GLU
# - Shazeer 2020, *GLU Variants Improve Transformer*, arXiv 2002.05202: SwiGLU
# - Ma et al. 2023, *LLM-Pruner*, arXiv 2305.11627: finds by itself which slices must go together
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea: one list for gate and up
