# ---
# jupyter:
#   course:
#     title: "Pruning a GLU: every light is green"
#     prerequisites: lesson 01 (L1 norm, pruned equals masked, random cuts)
#     assets: [smollm2, speeches, texts]
#     concepts: [GLU, gate and up, entropy, ratio of perplexities, test of exactness, whole neurons, crossed causes]
# ---

# %% [markdown]
# ## The question
#
# Everything is green and the model knows nothing. Why?
#
# A pruned Llama runs, has the right size, and opens again after saving. You make it yourself, with a method that you know.
# **Find the mistake before the text does.**
#
# <details><summary>Answer</summary>
#
# **Answer.** A neuron of a GLU is three slices with one number. Gate and up kept lists of their own: shapes fit, partners
# don't. Even one neuron a block cut so can end worse than guessing. *Pruned equals masked* sees it.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** shapes fit, the report is clean, the file opens, and the model is broken. One equality, without data, would
# have shown it.
#
# **Let the room find it:** don't say "index set" before exercise 2. Ask what the small model's first neuron is made of.
#
# **Usual questions:** "But it runs?" That is the lesson. "Isn't it just a bad choice of neurons?" It is no choice of neurons;
# exercise 2 proves it. "Does one neuron matter?" Let them bet first.
#
# **Wrong turns:** comparing sizes of damage beyond guessing; using a neuron's number as its place, in exercise 4.
#
# **At the end you have** a test that finds a broken cut without data, the surgery on a real Llama by hand, and a way to
# rescue a checkpoint that was cut wrongly.

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
from course_utils.support import mark, safe_dtype, show, start, style

session = start("02")
style()

# %%
diagrams.glu_block(neuron=2)
show(
    "A Llama block with its MLP opened up: gate_proj and up_proj both lead from "
    "the hidden size to the neurons, SiLU follows gate, the two are multiplied, "
    "and down_proj leads back. One neuron is marked: a row of gate, the same row "
    "of up, and the same column of down."
)

# %% [markdown]
# A GPT-2's MLP has two matrices. A Llama's has three, and no bias. It is a **GLU**, a *gated linear unit*:
#
# $$\mathrm{MLP}(x) = W_{down}\,(\mathrm{silu}(W_{gate}\,x) \odot W_{up}\,x)$$
#
# The gate says how far a neuron opens, up says what comes through, and `down` writes the product. All three are `nn.Linear` and
# store [out, in].

# %% [markdown]
# ### Exercise 1 · ●○○ · 4 minutes
#
# A block of Llama-3.2-1B has a hidden size of 2048 and 8192 neurons. 1638 of them go. Fill in the shapes of the three smaller
# weights, of the product `silu(gate(x)) * up(x)` and of the output, for x of shape (2, 7, 2048).
#
# <details><summary>Hint</summary>
#
# An `nn.Linear` stores [out, in]. Which of the matrices lead into the neurons, and which leads out?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_shapes

# BEGIN SOLUTION
shapes = {
    "gate": (6554, 2048),  # 8192 - 1638 neurons
    "up": (6554, 2048),
    "down": (2048, 6554),
    "product": (2, 7, 6554),
    "output": (2, 7, 2048),  # as before, so the next block fits
}
# END SOLUTION
# BEGIN STUB
# shapes = {
#     "gate": ...,
#     "up": ...,
#     "down": ...,
#     "product": ...,
#     "output": ...,
# }
# END STUB
check_shapes(shapes)

# %% [markdown]
# ## A GLU that you can read
#
# Follow neuron 2 below by hand: its row of `gate` meets x and gives 5, its row of `up` gives 4. The product silu(5) · 4, times
# column 2 of `down`, is what it writes.

# %%
rows_of_gate = [
    [1, -1, 2, 2, -2],
    [2, 0, -1, 1, -1],
    [2, 1, 1, 0, 2],
    [-2, -2, 1, 0, 2],
    [-2, 2, 2, -2, -1],
]
rows_of_up = [
    [2, 2, 1, -2, 1],
    [0, -2, -1, 0, -2],
    [-1, -1, 2, -1, 0],
    [1, 0, 0, 2, 1],
    [0, 1, 2, 1, -1],
]
rows_of_down = [
    [-1, -2, 2, -2, -1],
    [2, -2, 1, 1, -2],
    [-1, -2, -1, 0, 0],
    [1, 2, -2, -1, 1],
    [2, 2, 0, 0, -1],
]
matrices = rows_of_gate, rows_of_up, rows_of_down
toy = [torch.tensor(rows).float() for rows in matrices]
x = torch.tensor([1, -1, 2, 0, 1.0])


def glu(x, gate, up, down):
    """A Llama's MLP: x [..., hidden] -> [..., hidden]."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


gate, up, down = toy
product = silu(gate @ x) * (up @ x)
torch.testing.assert_close((down * product).sum(dim=1), glu(x, *toy))
columns = {"gate · x": gate @ x, "silu(gate · x)": silu(gate @ x), "up · x": up @ x}
pd.DataFrame(columns | {"product": product}).rename_axis("neuron").round(2)

# %% [markdown]
# ## Lesson 01's method, on three matrices
#
# In lesson 01 the strongest columns of `c_fc` stayed, and `c_proj` followed. `carry_over` does the same: `gate` and `up` keep
# their strongest rows by the L1 norm, and `down` follows.
#
# **Predict before you run.** 10 % of a real Llama's neurons go, rounded down. How many of a block's 1536 are left?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 1383. It runs, and opens again: equal, bit for bit. The configuration says so.
#
# </details>

# %%
from course_utils.models import describe, load_model, variant
from course_utils.pruning import best, strongest

dtype = safe_dtype(session.dtype)  # float16 is too narrow for what follows
base, tokenizer = load_model("llama", dtype=dtype)
layers, width = base.model.layers, base.config.intermediate_size


def l1_scores(weight):
    """The L1 norm of each row."""
    return weight.detach().float().abs().sum(dim=1)


def strongest_rows(part, ratio):
    """The rows of one matrix that stay, block by block."""
    weights = [layer.mlp.get_submodule(part).weight for layer in layers]
    return [strongest(l1_scores(weight), ratio) for weight in weights]


def cut(rows_of_gate, rows_of_up):
    """A model whose gates and ups keep these rows, block by block; down follows."""
    model = variant(base)
    blocks = zip(describe(model).mlps, rows_of_gate, rows_of_up, strict=True)
    for mlp, rows, others in blocks:
        mlp.inputs[0].keep(rows, axis="out")  # gate
        mlp.inputs[1].keep(others, axis="out")  # up
        mlp.output.keep(rows, axis="in")  # down
    describe(model).sync_config()
    return model


def carry_over(ratio):
    """Lesson 01's method: the strongest rows stay."""
    return cut(strongest_rows("gate_proj", ratio), strongest_rows("up_proj", ratio))


# %%
from transformers import AutoModelForCausalLM

from course_utils.pruning import save_pruned

carried = carry_over(ratio=0.1)
gates, ups = strongest_rows("gate_proj", 0.1), strongest_rows("up_proj", 0.1)
for name, weight in carried.model.layers[0].mlp.named_parameters():
    print(f"{name:<17} {list(weight.shape)}")
before, after = base.num_parameters(), carried.num_parameters()
print(f"parameters        {before:,} -> {after:,}")
print(f"intermediate_size {width} -> {carried.config.intermediate_size}")

prompt = tokenizer("The capital of France is", return_tensors="pt").to(base.device)
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    save_pruned(carried, tokenizer, folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    again = again.to(base.device).eval()
    assert torch.equal(again(**prompt).logits, carried(**prompt).logits)
print("saved and opened again: equal, bit for bit")
del again

# %% [markdown]
# Every light is green. What does the model know? Rows of speeches and of Wikipedia judge.
#
# Two losses on *the same rows* differ by some nats a token, and *e* to that number is the **ratio of the perplexities**: 0.1 nat
# more is × 1.1, and 1 nat more is × 2.7.
#
# **Predict before you run.** How high is the perplexity with 10 % of the neurons gone: × 2, × 10, or worse than guessing?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Worse than guessing, which stands at 10.80 nats, on both texts: a model that holds all tokens equally likely would do better.
#
# </details>

# %%
from course_utils.measuring import perplexity
from course_utils.text import judging_rows

judging = judging_rows(tokenizer, draw=session.seed)
texts = {text: rows[:16] for text, rows in judging.items()}
guessing = math.log(base.config.vocab_size)


@torch.no_grad()
def look(model, rows):
    """Entropy and loss of each row, nats a token: [2, rows]."""
    seen = []
    for ids in rows.input_ids.to(model.device).split(8):
        log_p = model(ids).logits[:, :-1].float().log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
        loss = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
        seen.append(torch.stack([entropy.mean(dim=1), loss.mean(dim=1)]))
    return torch.cat(seen, dim=1).cpu()


models = {"whole": base, "carried over": carried}
looks, whole = {}, {}
for text, rows in texts.items():
    for name, model in models.items():
        looks[name, text] = look(model, rows)
        nats = looks[name, text][1].mean().item()
        print(f"{text:<9} {name:<13} {nats:5.2f} nats a token")
    whole[text] = looks["whole", text][1].mean().item()
print(f"guessing                {guessing:5.2f} nats a token")
losses = {text: looks["carried over", text][1].mean() for text in texts}
beyond = [losses[text] - guessing for text in texts]
here("Carried over, the model is worse than guessing.", beyond)
few = texts["wiki"][:8]
nats = looks["whole", "wiki"][1, :8].mean().item()
assert math.isclose(perplexity(base, few, batch_size=8).nll, nats, rel_tol=1e-3)

# %% [markdown]
# ## What does it look like from inside?
#
# The **entropy** of a prediction says how unsure a model is: 0 nats when one token has all the probability, as many as
# guessing when all have the same. Who has only forgotten is unsure.
#
# **Predict before you run.** Is this model less sure than the whole one, or surer?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Surer on average, of the wrong thing. Its mean entropy is below the whole model's on both texts, and its loss is above that of guessing.
#
# </details>

# %%
for name, model in models.items():
    with torch.no_grad():
        likely = model(**prompt).logits[0, -1].float().softmax(dim=-1).topk(4)
    told = zip(likely.indices, likely.values.tolist(), strict=True)
    told = [f"{tokenizer.decode(token)!r} {share:.2f}" for token, share in told]
    print(f"{name:<13} The capital of France is", " ".join(told))
for text in texts:
    means = [f"{name} {looks[name, text][0].mean():.2f}" for name in models]
    print(f"entropy, {text:<9}", *means)
unsure = [[looks[name, text][0].mean() for name in models] for text in texts]
margins = [before - after for before, after in unsure]
here("It is surer than the whole model.", margins)
losses = torch.cat([looks["carried over", text][1] for text in texts])
beyond = (losses > guessing).sum()
print(f"rows where it is worse than guessing: {beyond} of {len(losses)}")

_, panel = plt.subplots(figsize=(7, 7.5), layout="constrained")
looks_like = {"whole": mark("whole"), "carried over": mark("wrong")}
for name in models:
    for text in texts:
        label = name if text == "wiki" else "_"
        dots = looks_like[name] | {"linestyle": "none", "label": label}
        panel.plot(*looks[name, text], **dots)
highest = max(values[1].max().item() for values in looks.values())
end = max(highest, guessing) + 1
panel.plot([0, guessing], [0, guessing], color=mark("random")["color"], linewidth=1)
panel.annotate("as wrong as it thinks", (5.4, 4.3), rotation=45, size=12)
panel.axhline(guessing, **{**mark("guessing"), "label": "loss of guessing"})
panel.set(xlabel="entropy: how unsure (nats)", ylabel="loss: how wrong (nats)")
panel.set(xlim=(0, guessing + 1), ylim=(0, end), aspect="equal")
panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
show(
    "Loss against entropy, equal axes, a point for each row of text. The whole "
    "model's points lie near the diagonal. Those of the model that was carried "
    "over lie above the line of guessing, and further left."
)

# %% [markdown]
# *This model went up and to the left.*
#
# ## Ask the equality
#
# Lesson 01 had a proof for every cut: *pruned equals masked*. The toy's five neurons can be silenced in $2^5 = 32$ ways, so we
# try them all.
#
# **Predict before you run.** The toy loses one of its five neurons by the same method. Which of the 32 is it?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None. It isn't a bad choice of neurons, it is no choice of neurons at all. Have you found the mistake?
#
# </details>


# %%
def carried_over(gate, up, down, keep):
    """The same method on three matrices, of which `keep` neurons stay."""
    rows = best(l1_scores(gate), keep)  # the `keep` highest, in their old order
    return gate[rows], up[best(l1_scores(up), keep)], down[:, rows]


small = carried_over(*toy, keep=4)
print("shapes:", *(list(matrix.shape) for matrix in small))
many = torch.randn(100, 5)  # a hundred tokens
ours = glu(many, *small)
masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)))  # [32, 5]
silenced = [glu(many, gate, up, down * mask) for mask in masks]
share = min((ours - other).abs().max() for other in silenced) / ours.abs().max()
print(f"the nearest of {len(masks)} masks is off by {share:.0%}", end=" ")
print("of the largest output")
claim("The toy that was cut so equals none of the masked ones.", [share - 0.01])

# %% [markdown]
# ### Exercise 2 · ●●● · 12 minutes
#
# Write the test that was missing. `is_exact(prune)` gets a function like `carried_over`, called as
# `prune(gate, up, down, keep)`. Return True if its small GLU equals the large one with *some* neurons silenced, and False if
# not. How `prune` chooses is its own affair. The check tries right pruners and broken ones.
#
# <details><summary>Hint</summary>
#
# A random GLU of 5 neurons, of which 3 stay, is enough. `itertools.combinations(range(5), 3)` lists what may have stayed.
# Silence the others in `down`, and compare what `glu` gives with `torch.allclose`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_is_exact


# BEGIN SOLUTION
def is_exact(prune, hidden=4, neurons=5, keep=3):
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, neurons, hidden, generator=generator)
    down = torch.randn(hidden, neurons, generator=generator)
    x = torch.randn(20, hidden, generator=generator)
    small = glu(x, *prune(gate, up, down, keep))
    for stay in itertools.combinations(range(neurons), keep):
        silenced = torch.zeros_like(down)
        silenced[:, list(stay)] = down[:, list(stay)]
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
# ## Who meets whom?
#
# At place 0 of a small GLU, row 0 of `gate` meets row 0 of `up`. Which rows of the old matrices are they?
#
# **Predict before you run.** In the toy `gate` loses its row 1, and `up` its row 3. At how many of the four places do two rows
# of one neuron still meet? And at what share of the places of the real Llama?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# At two of the four places, and in the Llama at 0.08 of them. Between the two gaps each row has moved up to a stranger. Two rows of one
# neuron meet only where as many rows above each are gone.
#
# </details>

# %%
toy_gate, toy_up = (best(l1_scores(rows), 4).tolist() for rows in (gate, up))
print("toy: gate keeps rows", toy_gate, "and up keeps rows", toy_up)
lists = zip(gates, ups, strict=True)
shares = [(rows == others).float().mean().item() for rows, others in lists]
mean = sum(shares) / len(shares)
print(f"Llama: whole neurons at {mean:.2f} of the places", end=", ")
print(f"in no block at more than {max(shares):.2f}")
claim(
    "Fewer than a fifth of the Llama's places hold a whole neuron.",
    [0.2 - max(shares)],
)

_, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
for place, pair in enumerate(zip(toy_gate, toy_up, strict=True)):
    line = mark("random" if pair[0] == pair[1] else "wrong")["color"]
    left.plot([0, 1], [place, place], color=line, linewidth=4, zorder=1)
    for side, (name, neuron) in enumerate(zip(("gate", "up"), pair, strict=True)):
        box = {"boxstyle": "round,pad=0.5", "facecolor": left.get_facecolor()}
        box["edgecolor"] = mark("whole")["color"]
        told = {"ha": "center", "va": "center", "size": 14, "bbox": box}
        left.text(side, place, f"{name} {neuron}", **told)
left.set(xlim=(-0.5, 1.5), ylim=(3.6, -0.6), xticks=[], title="Toy: who meets whom")
left.set(yticks=range(4), ylabel="place")
left.grid(visible=False)
line = mark("wrong") | {"linestyle": "none", "label": "carried over"}
right.plot(range(len(shares)), shares, **line)
right.set(xlabel="block", ylabel="share of places", ylim=(0, 1.02))
right.set_title("Llama: whole neurons")
show(
    "Left: four places of the toy, each a row of gate joined to a row of up. The "
    "first and the last join rows with the same number; the two between them are "
    "red and join strangers. Right: the share of places with one neuron's two rows "
    "in each block of the Llama, near the bottom of an axis from 0 to 1."
)

# %% [markdown]
# So **a neuron of a GLU is three slices with one number**: a row of gate, the same row of up, the same column of down. A
# shape tells how many rows are left, not which.

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# Repair it, on transformers' own classes. `prune_llama(model, scores, ratio)` gets a tensor of scores for each block. The
# `int(ratio * width)` lowest neurons go from every MLP, in place, and the model is returned. Sizes are noted beside the weights,
# too: `out_features` and `in_features` of each `nn.Linear`, and the configuration's `intermediate_size`. The weights may belong
# to another model as well.
#
# <details><summary>Hint</summary>
#
# `for layer in model.model.layers:` gives you `layer.mlp` with `gate_proj`, `up_proj` and `down_proj`. A new parameter is
# `nn.Parameter(weight[…].detach())`, and `strongest(scores, ratio)` names what stays.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_prune_llama


# BEGIN SOLUTION
def prune_llama(model, scores, ratio):
    for layer, score in zip(model.model.layers, scores, strict=True):
        gate, up, down = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
        keep = strongest(score, ratio)  # one list for all three
        gate.weight = nn.Parameter(gate.weight[keep].detach())
        up.weight = nn.Parameter(up.weight[keep].detach())
        down.weight = nn.Parameter(down.weight[:, keep].detach())
        gate.out_features = up.out_features = down.in_features = len(keep)
    model.config.intermediate_size = len(keep)
    return model


# END SOLUTION
# BEGIN STUB
# def prune_llama(model, scores, ratio):
#     ...  # your code
# END STUB
check_prune_llama(prune_llama)

# %% [markdown]
# ## The same size, repaired
#
# `prune_neurons` of `course_utils` does just that, for every family. Its L1 score adds the norms of a neuron's two rows. Is it
# exact? Each small MLP stands beside the masked one, on random inputs.

# %%
from course_utils.pruning import neuron_importance, prune_neurons

l1 = neuron_importance(base, "l1")  # of both rows
for layer, scores in zip(layers, l1, strict=True):
    weights = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
    torch.testing.assert_close(sum(map(l1_scores, weights)), scores)
shared = [strongest(scores, 0.1) for scores in l1]


def weights_of(mlp):
    """The weights of gate, up and down in float32."""
    parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    return [part.weight.detach().float() for part in parts]


def against_mask(model, kept):
    """Pruned against masked: largest difference / largest output of any block."""
    shares = []
    for pruned, layer, rows in zip(model.model.layers, layers, kept, strict=True):
        inputs = torch.randn(16, base.config.hidden_size, device=base.device)
        gate, up, down = weights_of(layer.mlp)
        mask = torch.zeros_like(down).index_fill(1, rows, 1)
        masked = glu(inputs, gate, up, down * mask)
        gap = (glu(inputs, *weights_of(pruned.mlp)) - masked).abs().max()
        shares.append(gap / masked.abs().max())
    return max(shares).item()


off = [against_mask(carried, rows) for rows in (gates, ups)]
print(f"carried over, mask of gate's list:  {off[0]:.1e}")
print(f"carried over, mask of up's list:    {off[1]:.1e}")
del carried, models, model  # a card has to hold those that follow
repaired = variant(base)
prune_neurons(repaired, l1, ratio=0.1)
for name, weight in cut(shared, shared).state_dict().items():
    assert torch.equal(weight, repaired.state_dict()[name])
one = against_mask(repaired, shared)
print(f"repaired, mask of its list:         {one:.1e}")
claim("Pruned equals masked with one list alone.", [n - 1000 * one for n in off])
del repaired

# %% [markdown]
# Two things may be wrong, the lists and L1. **Cross** them: lists shared or separate, scores L1 or random; and separate lists
# where only *one* row goes from each matrix. The shipped record has two number formats, float32 and the coarser bfloat16.
#
# **Predict before you run.** How much harm does one neuron of a block do, cut like that, beside 153 whole ones? And how many of
# the random cuts with shared lists does the repaired cut by L1 beat? It is exact.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# One row a matrix by L1 is worse than guessing, on both texts. In the record 19 of 19 random pairs of rows cost more than a
# tenth of all neurons, cut whole, does in the median. The repaired cut beats 0 of 19.
#
# </details>

# %%
from course_utils.support import read_record

record = read_record("random_cuts")  # of the embedded profile's Llama
floor = math.log(49_152)  # its vocabulary: what guessing costs there


def random_lists(seed, ratio=0.1):
    """The rows that stay in each block when scores are random."""
    scores = neuron_importance(base, "random", seed=seed)
    return [strongest(score, ratio) for score in scores]


cuts = [("L1", "shared", shared, shared)]
one = 1.5 / width  # rounded down, one neuron
pair = strongest_rows("gate_proj", one), strongest_rows("up_proj", one)
cuts += [("L1", "separate, one neuron", *pair)]
for seed in (0, 1):  # the record has all 19
    cuts += [("random", "shared", *[random_lists(seed)] * 2)]
cuts += [("random", "separate", random_lists(session.seed), random_lists(seed=100))]

rows = []
for text in texts:
    nats = looks["carried over", text][1].mean().item()
    rows.append(("L1", "separate", text, nats, nats - whole[text]))
for criterion, edit, *lists in tqdm(cuts, desc="cuts"):
    model = cut(*lists)
    for text, judged in texts.items():
        nats = perplexity(model, judged, batch_size=8).nll
        rows.append((criterion, edit, text, nats, nats - whole[text]))
    del model
columns = ["criterion", "edit", "text", "nats", "damage"]
measured = pd.DataFrame(rows, columns=columns)
by = measured.set_index(["edit", "criterion"]).nats.sort_index()
here("Separate lists of a tenth lose to guessing.", by["separate"] - guessing)
here("So is one row a matrix, by L1.", by["separate, one neuron"] - guessing)
here("Shared lists are better than guessing.", guessing - by["shared"])

# %%
EDITS = ("shared", "separate", "separate, one neuron")
crossed = record[record.edit.isin(EDITS) & record.criterion.isin(["L1", "random"])]
worse, behind = {}, []
for place, text in itertools.product(("here", "float32", "bfloat16"), texts):
    own = measured if place == "here" else crossed[crossed.dtype == place]
    level = guessing if place == "here" else floor
    own = own[own.text == text].set_index(["criterion", "edit"])
    cuts_of_153, by_l1 = own.damage["random", "shared"], own.damage["L1", "shared"]
    middle, beaten = cuts_of_153.median(), (cuts_of_153 > by_l1.item()).sum()
    behind.append(0.5 - beaten)
    print(f"{place}, {text}: random cuts × {math.exp(middle):.1f} in the", end=" ")
    print(f"median, L1 beats {beaten} of {len(cuts_of_153)}", end="")
    if place != "here":
        pairs = own.damage["random", EDITS[2]]
        print(f", {(pairs > middle).sum()} of {len(pairs)} pairs cost more", end="")
    print()
    worse[f"{place}, {text}"] = (own.nats > level).groupby(level=[0, 1]).mean()
claim("The exact cut by L1 beats none of the random cuts.", behind)
print("Share of these models that are worse than guessing")
pd.DataFrame(worse).map("{:.2f}".format).replace("nan", "")

# %%
_, panel = plt.subplots(figsize=(10, 5.6), layout="constrained")
shown, names = crossed[crossed.dtype == "float32"], []
for edit, criterion in itertools.product(EDITS, ("random", "L1")):
    looks_like = mark(criterion) | {"linestyle": "none"}
    if edit != "shared":
        looks_like["color"] = mark("separate")["color"]
    for text, fill in zip(texts, (looks_like["color"], "none"), strict=True):
        arm = shown[(shown.edit == edit) & (shown.criterion == criterion)]
        arm = arm[arm.text == text]
        times = arm.damage.where(arm.nats < floor, math.log(4000)).map(math.exp)
        heights = len(names) + 0.2 * (text == "wiki") - 0.1 + (arm.seed - 9) / 60
        label = text if len(names) == 1 else "_"
        told = {"label": label, "markerfacecolor": fill}
        panel.plot(times, heights, **looks_like | told)
    names.append(f"{edit}: {criterion}")
panel.axvline(1, color=mark("whole")["color"])
for text in texts:
    own = shown[shown.text == text]
    label = {"label": "guessing" if text == "wiki" else "_"}
    level = math.exp(floor - (own.nats - own.damage).mean())
    panel.axvline(level, **mark("guessing") | label)
panel.set(xscale="log", xlim=(0.8, 6000), xlabel="perplexity, × the whole model's")
panel.set_xticks([1, 10, 100, 1000, 4000], ["1", "10", "100", "1,000", "worse"])
panel.set_yticks(range(len(names)), names)
panel.invert_yaxis()
panel.legend(loc="lower left")
show(
    "A row for each way of cutting, perplexity as a multiple of the whole model's "
    "on a logarithmic axis, worse than guessing at its right end. Shared random "
    "lists lie near 2, one of 19 far out; shared L1 lies below guessing; separate "
    "lists lie beyond guessing, and most single neurons near or beyond it."
)

# %% [markdown]
# *Filled: speeches; hollow: Wikipedia. 153 of 1,536 neurons a block go, or one. Whatever is worse than guessing stands at the
# right edge. One cut is far out: lesson 03 finds out why.*
#
# Two causes, then. Separate lists of a tenth are worse than guessing with *either* score. With a shared list the model is exact, and L1 is
# still behind each blind choice: whole neurons needn't be the right ones.
#
# ## Rescue the checkpoint
#
# Somebody cut a Llama with separate random lists, and threw the original away. The log has both lists: `gate_list[k]` is the old
# number of the row at place k of `gate`, `up_list` the same for `up`; `down` followed gate.

# %%
logs = random_lists(session.seed), random_lists(seed=100)
wreck = cut(*logs)


@torch.no_grad()
def judge(rescue):
    """Perplexity of what is rescued, × the whole model's, on each text."""
    model = variant(wreck)
    for layer, *lists in zip(model.model.layers, *logs, strict=True):
        mlp = layer.mlp
        gate, up, down = (weight.to(dtype) for weight in weights_of(mlp))
        gate, up, down = rescue(gate, up, down, *lists)
        mlp.gate_proj.weight = nn.Parameter(gate)
        mlp.up_proj.weight = nn.Parameter(up)
        mlp.down_proj.weight = nn.Parameter(down)
    found = {}
    for text, judged in texts.items():
        nats = perplexity(model, judged, batch_size=8).nll
        found[text] = math.exp(nats - whole[text])
    return found


floors = [f"× {math.exp(guessing - whole[text]):.0f} on {text}" for text in texts]
print("guessing is", ", ".join(floors))

# %% [markdown]
# ### Exercise 4 · ●●● · 10 minutes
#
# Write `rescue(gate, up, down, gate_list, up_list)`. It gets one MLP's broken weights and the two lists (int64 tensors, in any
# order), and returns the three matrices of the largest *exact* GLU in there. The check compares it with the masked original on
# fresh lists, then lets `judge` measure it in the Llama.
#
# <details><summary>Hint</summary>
#
# Of which neurons are both rows still there? And at which place does each of the two rows stand now?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_02 import check_rescue


# BEGIN SOLUTION
def rescue(gate, up, down, gate_list, up_list):
    numbers, others = gate_list.tolist(), up_list.tolist()
    survivors = [number for number in numbers if number in set(others)]
    in_gate = [numbers.index(number) for number in survivors]
    in_up = [others.index(number) for number in survivors]
    return gate[in_gate], up[in_up], down[:, in_gate]  # down followed gate


# END SOLUTION
# BEGIN STUB
# def rescue(gate, up, down, gate_list, up_list):
#     ...  # your code
# END STUB
check_rescue(rescue, judge)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Gate and up each keep their own strongest rows. Why does no error appear?
#
# - [ ] Because the neurons that are left are still whole ones, only badly chosen.
#   > They aren't whole: most places join the gate of one neuron with the value of another.
# - [x] Because a shape says how many rows a matrix keeps, not which.
#   > Both keep the same number, so everything fits.
# - [ ] Because SiLU closes the gates of rows that don't belong together.
#   > SiLU knows no partners. The product of two unrelated numbers is another function.

# %% [markdown] tags=["quiz"]
# A pruned model passes "pruned equals masked" exactly. What do you know?
#
# - [ ] That it is nearly as good as the original, since the outputs are equal.
#   > They equal those of the *masked* original. Silencing the wrong neurons can ruin a model, exactly.
# - [ ] That the criterion is sound, since no neuron was mixed up with another.
#   > The test accepts any set of whole neurons, random ones too.
# - [ ] That its perplexity is at least better than guessing on ordinary text.
#   > Not even that: silence every neuron, and the cut is still exact.
# - [x] That it is the original with some of its neurons silenced.
#   > The surgery is right. Whether the set is a good one is measured beside random cuts.

# %% [markdown]
# ## Take-aways
#
# - A neuron of a GLU is a row of gate, *the same* row of up and *the same* column of down: one list for all three.
# - Shapes, sizes, a saved file and a forward pass prove nothing. *Pruned equals masked* finds the mistake, without data.
# - A failure may have two causes. Cross them, beside random cuts.
#
# **The story so far:** a cut is exact or it is wrong. **Next:** lesson 03 keeps the neurons whole and asks which of them must
# stay.
#
# ## References
#
# - Shazeer 2020, *GLU Variants Improve Transformer*, arXiv 2002.05202
# - Ma et al. 2023, *LLM-Pruner*, arXiv 2305.11627: finds by itself which slices must go together
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea
