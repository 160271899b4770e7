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
# We take one neuron out of each block of a Llama. It still runs, its size is right, and after saving it opens again, equal bit for bit. Every
# light is green. Yet the model knows less than nothing. Why?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** A neuron of a Llama has a row in each of two matrices, and the two rows work together. We let each matrix give up its own weakest
# row. Below a missing row all others move up by one place. So between the two gaps every row meets a stranger, and that is a third of the
# block. Put an empty row into each gap, and the model is well again.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** shapes, sizes and saved files say nothing about whether a cut is right. One equality does, without any data. And the harm has
# a simple reason that one can touch: rows that moved by one.
#
# **Let the room find it:** say neither "index" nor "pair" before exercise 2. When somebody calls "but it is only one neuron!", ask which one.
#
# **Usual questions:** "But it runs?" That is the lesson. "Was it an important neuron?" No: random rows do it as well, and when the same rows
# are lost in step nothing happens. "Would anybody make this mistake?" Whoever prunes matrix by matrix with a tool that knows nothing of pairs.
#
# **Wrong turns:** comparing rows instead of outputs in exercise 2; padding at the end in exercise 3; taking a neuron's number for its place in
# exercise 4.
#
# **At the end you have** a test that finds a broken cut without data, the reason why one row can ruin a model, and a way to rescue a
# checkpoint that was cut wrongly.

# %% tags=["install"]

# %%
import itertools
import math
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import silu
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import mark, read_record, safe_dtype, show, start, style

session = start("02")
style()
record = read_record("random_cuts").query("dtype == 'float32'")  # on 48 rows each


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
    panel.barh(name, nats, color=mark(arm)["color"])
panel.set(xlabel="loss on speeches (nats per token)")
panel.invert_yaxis()
show(
    "Three bars: the loss of the whole Llama is about 4, a model that guesses has "
    "about 11, and the Llama that lost one neuron per block has more than that."
)

# %% [markdown]
# *How well three models predict speeches; longer is worse.* The third model is the first one, but each block lost a single neuron of its 1,536: the
# weakest one, chosen as in lesson 01. And now it predicts worse than a model that has never read a word.
#
# You make this model yourself in a minute. There is a mistake in it. **Look for it while you read.** The text tells it only after
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
# Two matrices read the same $x$. The results of `up` are the contents, and those of `gate`, sent through SiLU, say how far each of them
# comes through. $\odot$ multiplies the two, number by number. `down` reads the products and leads back. Such an MLP is a **GLU**, a *gated linear
# unit*, and with SiLU it is called **SwiGLU**. Most open models of today have one. All three layers are `nn.Linear` and store [out, in].
#
# ## Cut it as in lesson 01
#
# In lesson 01 we took the columns with the smallest L1 norm out of `c_fc`, and `c_proj` followed. Here two matrices lead to the neurons. So each
# of them gives up its weakest row, and `down` follows `gate`. We begin carefully, with a single neuron per block.
#
# **Predict before you run.** Three things could complain: the forward pass, the configuration, the saved file. Which of them will? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None. The next cells print it: shapes that fit, 1,535 neurons in the configuration, and a file that opens again.
#
# </details>

# %%
from course_utils.models import describe, load_model, variant
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


def cut(gate_lists, up_lists):
    """A Llama whose gates and ups keep these rows, block by block."""
    model = variant(base)
    mlps = describe(model).mlps
    for mlp, gate_list, up_list in zip(mlps, gate_lists, up_lists, strict=True):
        gate, up = mlp.inputs
        gate.keep(gate_list, axis="out")
        up.keep(up_list, axis="out")
        mlp.output.keep(gate_list, axis="in")  # down follows gate
    describe(model).sync_config()
    return model


gate_lists = [without_weakest(block.mlp.gate_proj.weight) for block in blocks]
up_lists = [without_weakest(block.mlp.up_proj.weight) for block in blocks]
careful = cut(gate_lists, up_lists)
print(f"{len(blocks)} of {len(blocks) * width:,} neurons are gone")

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# The first light: do the shapes fit? Write `mlp_shapes(hidden, width, gone)`. It returns a dict with five shapes of an MLP that lost `gone` of its
# `width` neurons: of the weights `gate`, `up` and `down`, and for one token $x$ of shape `(hidden,)` of the `product` behind gate and up and of
# the `output`. The check tries some sizes, and then holds your shapes against the Llama that we have cut.
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
# Two more things that one looks at: does the configuration know the new size, and does the saved file open in plain `transformers`?

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
print(f"neurons per block, by the configuration: {noted:,}")
print("saved and opened again: equal, bit for bit")
del again

# %% [markdown]
# ## What does it know?
#
# Rows of speeches and of Wikipedia judge, as in lesson 01. Beside the loss we print the **entropy** of the predictions. It says how unsure a
# model is: 0 nats if one token has all the probability, and as much as guessing if all tokens have the same. A model that knows its limits loses
# about as much as its entropy says.
#
# **Predict before you run.** You saw that its loss is above guessing. Is this model unsure of everything, or is it sure of something wrong?
# Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Sure of something wrong. If it spread its bets over all tokens, it could lose 10.80 nats, and not more. But its entropy is only 5.23 nats, and
# it loses 12.18. It hesitates as if among some two hundred tokens, and as a rule the right one is not among them.
#
# </details>

# %%
from course_utils.text import judging_rows

judging = judging_rows(tokenizer, draw=session.seed)
texts = {text: rows[:8] for text, rows in judging.items()}
guessing = math.log(base.config.vocab_size)


@torch.no_grad()
def look(model, rows):
    """Loss and entropy, in nats per token."""
    ids = rows.input_ids.to(model.device)
    log_p = model(ids).logits[:, :-1].float().log_softmax(dim=-1)
    loss = -log_p.gather(-1, ids[:, 1:, None]).mean()
    entropy = -(log_p.exp() * log_p).sum(dim=-1).mean()
    return loss.item(), entropy.item()


found = {}
for name, model in {"whole": base, "one neuron gone": careful}.items():
    for text, rows in texts.items():
        found[name, text] = look(model, rows)
        loss, entropy = found[name, text]
        print(f"{name}, {text}: loss {loss:.2f}, entropy {entropy:.2f}")
    with torch.no_grad():
        likely = model(**prompt).logits[0, -1].topk(3).indices
    words = [tokenizer.decode(token) for token in likely]
    print("   The capital of France is:", *words, sep=" / ")
print(f"guessing: loss and entropy {guessing:.2f}")
whole = {text: found["whole", text][0] for text in texts}
beyond = [found["one neuron gone", text][0] - guessing for text in texts]
here("With one neuron less per block it is worse than guessing.", beyond)
cuts = [found["one neuron gone", text] for text in texts]
excess = [loss - 2 * entropy for loss, entropy in cuts]
here("It loses over twice as much as its entropy says.", excess)

# %% [markdown]
# How can a model be worse than guessing? Only by being sure, and wrong.
#
# ## Ask the equality
#
# Lesson 01 had a proof for every cut: *pruned equals masked*. So let us ask it. If we took a neuron out, then the small MLP must equal the large one
# in which that neuron is silent. We try a toy of five neurons, and all $2^5 = 32$ ways to silence some of them.
#
# **Predict before you run.** The toy loses one neuron, by our method. Which of the 32 does it equal? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None of them. So we didn't choose a bad neuron. **We didn't take out a neuron at all**: what is left isn't the old MLP without something, it
# is another function.
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


generator = torch.Generator().manual_seed(52)
toy = torch.randint(-2, 3, (3, 5, 5), generator=generator).float()
small = carried_over(*toy, keep=4)
print("shapes:", *(tuple(matrix.shape) for matrix in small))
x = torch.randn(100, 5)  # a hundred tokens
ours = glu(x, *small)
off = []
for mask in itertools.product((0.0, 1.0), repeat=5):  # 1: this neuron speaks
    gate, up, down = toy
    masked = glu(x, gate, up, down * torch.tensor(mask))
    off.append((ours - masked).abs().max() / ours.abs().max())
print(f"the nearest of {len(off)} masks is off by {min(off):.0%}", end=" ")
print("of the largest output")
claim("The toy that was cut so equals none of the masked ones.", [min(off) - 0.01])

# %% [markdown]
# ### Exercise 2 · ●●○ · 12 minutes
#
# Write the test that was missing. `is_exact(prune)` gets a function like `carried_over`, which is called as `prune(gate, up, down, keep)`. Return
# True if the small GLU that it makes equals the large one with *some* neurons silenced, and False if not. How `prune` chooses is its own affair.
# Make up the matrices yourself; no model and no text is needed. The check hands your test some right pruners and some broken ones.
#
# <details><summary>Hint</summary>
#
# A random GLU of 5 neurons, of which 3 stay, is enough. `itertools.combinations(range(5), 3)` lists which three may have stayed. Silence the
# others in `down`, and compare what `glu` gives with `torch.allclose`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_is_exact


# BEGIN SOLUTION
def is_exact(prune, hidden=4, neurons=5, keep=3):
    random = torch.Generator().manual_seed(0)
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


# END SOLUTION
# BEGIN STUB
# def is_exact(prune):
#     ...  # your code
# END STUB
check_is_exact(is_exact)

# %% [markdown]
# ## Find the mistake
#
# In the toy `gate` gave up its row 1, and `up` its row 3. The rows below a gap move up, because a smaller matrix has no holes. Then the
# product is taken place by place: the first row of gate with the first row of up, and so on.
#
# **Predict before you run.** At each of the toy's four places a row of gate meets a row of up. Which ones meet? And at how many places of the
# real Llama, which lost one row per matrix, do two rows meet that don't belong together: 1 of 1,535, some, or nearly all? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In the toy rows 0 and 0 meet, then 2 and 1, 3 and 2, and at last 4 and 4. Outside the two gaps all is well, and between them every row meets a
# stranger. In the Llama that is the fate of 33 % of the places, from 2 % in one block to 87 % in another.
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
_, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
for place, (of_gate, of_up) in enumerate(zip(*toy_lists, strict=True)):
    color = mark("whole" if of_gate == of_up else "wrong")["color"]
    left.plot([0, 1], [place, place], color=color, linewidth=4, zorder=1)
    for side, words in enumerate((f"gate {of_gate}", f"up {of_up}")):
        box = {"boxstyle": "round,pad=0.5", "facecolor": left.get_facecolor()}
        text = {"ha": "center", "va": "center", "bbox": box | {"edgecolor": color}}
        left.text(side, place, words, **text)
left.set(xlim=(-0.5, 1.5), ylim=(3.6, -0.6), xticks=[], yticks=range(4))
left.set(ylabel="place", title="the toy: who meets whom")
left.grid(visible=False)
right.barh(range(len(gaps)), width - 1, color=mark("whole")["color"], alpha=0.15)
starts = [min(pair) for pair in gaps]
right.barh(range(len(gaps)), apart, left=starts, color=mark("wrong")["color"])
right.set(xlabel="place", ylabel="block", title="the Llama: where strangers meet")
right.set(ylim=(len(gaps) - 0.5, -0.5))
right.grid(visible=False)
show(
    "Left: four places of the toy. At the first and the last a row of gate meets "
    "the row of up with the same number; between them, in red, gate 2 meets up 1 "
    "and gate 3 meets up 2. Right: a bar for each block of the Llama, from its "
    "first place to its last. The red part, between the two gaps, is a third of "
    "all, short in some blocks and nearly the whole bar in others."
)

# %% [markdown]
# *Red: places where strangers meet. They begin at one gap and end at the other.*
#
# So here is what belongs together:

# %%
diagrams.glu_block(neuron=2)
show(
    "The same drawing with one neuron marked: a row of gate_proj, the same row of "
    "up_proj, and the same column of down_proj."
)

# %% [markdown]
# **A neuron of a GLU is three slices with one number**: a row of gate, *the same* row of up, and the same column of down. We let `gate` and `up`
# keep lists of their own. A shape tells how many rows are left, not which, and that is why every light was green.
#
# This is also how "one neuron" can be worse than guessing: it isn't one neuron. If gate lost row $i$ and up lost row $j$, strangers meet at
# $|i - j|$ places.
#
# ## Turn the knob
#
# So far this is a suspicion. If it is right, we can turn the harm up and down like the sound of a radio. We cut one row per matrix again, but
# now *we* choose which. In each block gate loses some row $i$, drawn blindly, and up loses row $i + d$. Each model loses exactly as much as
# every other. Only the distance $d$ differs.
#
# **Predict before you run.** What does it cost at $d = 0$? And how does the cost go on when $d$ doubles again and again? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# At 0 nothing, because then both rows belong to the same neuron, and a whole neuron per block is hardly missed. At 64 places it is already
# 0.4 nats, and it goes up and up with the distance, to over 9. No important row did that, because the rows were drawn anew each time.
#
# </details>


# %%
def all_but(*gone):
    """The numbers of all rows that stay."""
    return torch.tensor([row for row in range(width) if row not in gone])


distances = [0, *(width // share for share in (24, 12, 6, 3)), 2 * width // 3]
few = judging["speeches"][:6]
intact, knob = look(base, few)[0], []
for distance in tqdm(distances, desc="distances"):
    for _ in range(3):
        rows = torch.randint(width - distance, (len(blocks),)).tolist()
        gates = [all_but(row) for row in rows]
        ups = [all_but(row + distance) for row in rows]
        loss, _ = look(cut(gates, ups), few)
        knob.append((distance, rows, loss - intact))
knob = pd.DataFrame(knob, columns=["distance", "rows", "damage"])
lowest, highest = knob.groupby("distance").damage.agg(["min", "max"]).values.T
claim("A whole neuron per block is hardly missed.", [0.1 - highest[0]])
means = knob.groupby("distance").damage.mean()
claim("On average more distance does more harm.", means.diff()[1:])
table = {"lowest of three": lowest, "highest": highest}
pd.DataFrame(table, index=distances).rename_axis("distance").round(2).T

# %% [markdown]
# The table has the damage in nats per token on a few rows, for three draws of rows $i$ at each distance. It follows the distance. But one
# could still object: perhaps the two rows $i$ and $i + d$ are missed *more* when they come from different neurons. So we touch the reason
# itself. `judge` lets a function mend each MLP of a broken model, and measures the damage that is left.


# %%
def judge(mend, broken, *lists, rows=texts, intact=whole):
    """The damage on each text when `mend` has been at every MLP, nats per token."""
    model = variant(broken)
    for block, *of_block in zip(model.model.layers, *lists, strict=True):
        mlp = block.mlp
        parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        mended = mend(*(part.weight.detach() for part in parts), *of_block, width)
        for part, weight in zip(parts, mended, strict=True):
            part.weight = nn.Parameter(weight.to(dtype))
    return {text: look(model, rows[text])[0] - intact[text] for text in rows}


# %% [markdown]
# ### Exercise 3 · ●●○ · 12 minutes
#
# Prove it. **No lost row comes back.** You only put the others back in step: you insert an empty row into each gap, so that every row stands at its
# old place again. Write `in_step(gate, up, down, gate_list, up_list, width)`. It gets one MLP's broken matrices and the two lists:
# `gate_list[k]` is the old number of the row at place $k$ of `gate`, and `up_list` tells the same for `up`. The lists may be in any order and
# lack any number of rows. Return the three matrices with all `width` places, zeros where nothing is known.
#
# **Predict before the check tells you:** it puts the Llama of this lesson in step. How much of its damage goes away? Because …
#
# <details><summary>Hint</summary>
#
# `gate.new_zeros(width, hidden)` is an empty matrix, and `empty[places] = weight` writes all rows into it at once. And which list did the columns of
# `down` follow?
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
# An empty row of gate or of up makes the product zero. So a model in step equals the one in which neurons $i$ and $j$ are both cut *whole*, by pruned
# equals masked. That gives us the same intervention for every model of the knob: same rows lost, no shift.
#
# **Predict before you run.** In step, does it still matter how far the two rows lie apart? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# No. In step the rows are hardly missed, at any distance. The model that opened the lesson goes from over 8 nats to about 0.1.
#
# </details>

# %%
in_step_costs = []
for distance, rows, _ in tqdm(knob.values[::3], desc="in step"):
    lists = [all_but(row, row + distance) for row in rows]  # both go whole
    in_step_costs.append(look(cut(lists, lists), few)[0] - intact)
lists = [all_but(*pair) for pair in gaps]
ours = [look(careful, few)[0] - intact, look(cut(lists, lists), few)[0] - intact]
print(f"in step, at any distance: {max(in_step_costs):.2f} nats at most")
print(f"the lesson's first cut: {ours[0]:.2f} nats, in step {ours[1]:.2f}")
claim("In step the same rows are hardly missed.", [0.15 - max(in_step_costs)])
here("In step most of our model's damage is gone.", [ours[0] / 4 - ours[1]])

# %%
_, panel = plt.subplots(figsize=(9, 5.2), layout="constrained")
shifted = mark("wrong") | {"linestyle": "none", "label": "one row per matrix gone"}
panel.plot(knob.distance, knob.damage, **shifted)
both = mark("whole") | {"label": "the same rows gone, in step"}
panel.plot(distances, in_step_costs, **both)
square = mark("L1") | {"linestyle": "none", "label": "the model of this lesson"}
mean_apart = sum(apart) / len(apart)
panel.plot([mean_apart] * 2, ours, markersize=12, markerfacecolor="none", **square)
level = mark("guessing") | {"label": "as bad as guessing"}
panel.axhline(guessing - intact, **level)
panel.set(xlabel="places per block where strangers meet, |i − j|")
panel.set(ylabel="damage (nats per token)")
panel.legend(loc="center right")
show(
    "Damage against the number of places per block where strangers meet. Red "
    "crosses rise from 0 to far above the line of guessing. Black stars, the same "
    "rows lost in step, lie at 0 throughout. A blue square marks this lesson's "
    "model among the crosses, and another one below it at 0, in step."
)

# %% [markdown]
# *Each star has lost the very rows that a cross above it has lost. What differs is whether the other rows stand in step.*
#
# The lost rows were hardly missed. The **shift** was the harm: between the gaps, one neuron's gate decides over another neuron's content.
#
# ## One list for all three
#
# So here is the right cut: one list of neurons, and all three matrices keep it. `prune_neurons` does that for every family. Is all well then?
# We take a tenth of the neurons by L1, once with separate lists and once with one list.
#
# **Predict before you run.** With one list the cut is exact. Is it a good one, then? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It is exact, and better than guessing. But it isn't good: it costs over 5 nats, and in the record it loses to each of 19 random cuts. Exact
# means that the same neurons are gone from all three matrices. It doesn't mean that they were the right ones to lose.
#
# </details>

# %%
from course_utils.pruning import neuron_importance, strongest

l1 = neuron_importance(base, "l1")  # the sum of both rows' norms
shared = [strongest(scores, 0.1) for scores in l1]
separate = []
for part in ("gate_proj", "up_proj"):
    weights = [block.mlp.get_submodule(part).weight for block in blocks]
    separate.append([without_weakest(weight, width // 10) for weight in weights])
tenth = {}
ways = {"separate lists": separate, "one list": [shared, shared]}
for name, lists in ways.items():
    model = cut(*lists)
    tenth[name], entropy = look(model, texts["speeches"])
    print(f"a tenth gone, {name}: loss {tenth[name]:.2f}, entropy {entropy:.2f}")
    del model
beyond = [tenth["separate lists"] - guessing]
here("A tenth in separate lists is worse than guessing.", beyond)
below = [guessing - tenth["one list"]]
here("With one list it is better than guessing.", below)
random_cuts = recorded("random", "shared")
beaten = (random_cuts > recorded("L1", "shared").item()).sum()
print("in the record L1 with one list", end=" ")
print(f"beats {beaten} of {len(random_cuts)} random cuts")
claim("The exact cut by L1 beats none of the random cuts.", [0.5 - beaten])

# %% [markdown]
# (Look at the entropies, too: even with one list the entropy is far below the loss. So "sure and wrong" tells you that a model is in trouble, but
# not whether its surgery was right. Only the equality tells that.)
#
# Which neurons can go is the question of lesson 03.
#
# ## Rescue a checkpoint
#
# Somebody cut a Llama with two separate lists, a tenth of each matrix, and threw the original away. There is a log with both lists. With zeros in the
# gaps the model would be as large as before, with places that do nothing. You shall hand back a *smaller* model that is exact. It is judged
# on rows that nothing has used so far.

# %%
from course_utils.text import further_rows

logs = []
for seed in (2 * session.seed, 2 * session.seed + 1):
    scores = neuron_importance(base, "random", seed=seed)
    logs.append([strongest(of_block, 0.1) for of_block in scores])
wreck = cut(*logs)
exam = {text: rows[:8] for text, rows in further_rows(tokenizer).items()}
intact_exam = {text: look(base, rows)[0] for text, rows in exam.items()}


def exam_of(rescue):
    """The damage of what is rescued on each text of the exam, nats per token."""
    return judge(rescue, wreck, *logs, rows=exam, intact=intact_exam)


for text, rows in exam.items():
    lost = look(wreck, rows)[0] - intact_exam[text]
    print(f"{text}: the wreck has {lost:.1f} nats per token of damage")

# %% [markdown]
# ### Exercise 4 · ●●● · 15 minutes
#
# Write `rescue(gate, up, down, gate_list, up_list, width)`. It gets what `in_step` got, and returns the three matrices of the **largest exact
# GLU** that is still in there, without empty places. You may use your own `in_step`. The check compares it with the masked original on small
# matrices and fresh lists, and then opens the exam.
#
# <details><summary>Hint</summary>
#
# Which neurons have all their three slices left? In step, a neuron's number is its place.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_rescue


# BEGIN SOLUTION
def rescue(gate, up, down, gate_list, up_list, width):
    matrices = in_step(gate, up, down, gate_list, up_list, width)
    gate, up, down = matrices
    alive = sorted({*gate_list.tolist()} & {*up_list.tolist()})  # in both lists
    return gate[alive], up[alive], down[:, alive]


# END SOLUTION
# BEGIN STUB
# def rescue(gate, up, down, gate_list, up_list, width):
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
# - [x] A handful: the two that lost a row, and those between them.
#   > Between the two gaps rows have moved, and strangers meet. Everywhere else all rows stand opposite their own.
# - [ ] Nearly all, because the rows below a gap have all moved up.
#   > Below *both* gaps gate and up have moved by one alike, so partners stand opposite each other again.

# %% [markdown] tags=["quiz"]
# A pruned model passes "pruned equals masked" exactly. What do you know?
#
# - [ ] That it is nearly as good as the original, since the outputs are equal.
#   > They equal those of the *masked* original. Silencing the wrong neurons can ruin a model, exactly.
# - [x] That it is the original with some of its neurons silenced.
#   > The surgery is right. Whether the set is a good one is measured beside random cuts.
# - [ ] That its perplexity is at least better than guessing on ordinary text.
#   > Not even that: silence every neuron, and the cut is still exact.
# - [ ] That the criterion is sound, since no neuron was mixed up with another.
#   > The test accepts any set of whole neurons, random ones too.

# %% [markdown]
# ## Take-aways
#
# - A neuron of a GLU is a row of gate, *the same* row of up and *the same* column of down: one list for all three.
# - Shapes, sizes, a saved file and a forward pass prove nothing. *Pruned equals masked* finds the mistake without data.
# - **The shift is the harm, not the loss.** Same rows gone, the rest in step: nothing happens.
#
# **On Monday:** wherever two results are multiplied or added place by place, what you cut must have one list. Before you measure a
# new pruner, run `is_exact` on it. It takes a second.
#
# **Next:** lesson 03 keeps the neurons whole and asks which of them must stay.
#
# ## References
#
# - Shazeer 2020, *GLU Variants Improve Transformer*, arXiv 2002.05202: SwiGLU
# - Ma et al. 2023, *LLM-Pruner*, arXiv 2305.11627: finds by itself which slices must go together
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea
