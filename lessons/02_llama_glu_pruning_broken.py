# ---
# jupyter:
#   course:
#     title: "Carrying the recipe to Llama: how GLU pruning breaks"
#     minutes: 90
#     prerequisites: lesson 01 (the L1 recipe on a GPT-2, pruned equals masked)
#     assets: [smollm2, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - what a gated MLP (GLU) computes, and what *one neuron* of it is
# - what happens when lesson 01's recipe is carried over matrix by matrix: no error, right shapes, a dead model
# - how to see such a failure: perplexity, logits, entropy, repetition, each beside the unpruned model
# - which one-line equality would have caught it before any of that
# - how to take a failure with two causes apart, so that you know what each of them costs
#
# The lesson breaks a model on purpose. The mistake is a common one, because every step of it looks sound.
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a Llama in architecture. In the `hub` profile the same code
# runs on Llama-3.2-1B. The saved outputs come from the `embedded` profile on a machine with two CPU cores; the next
# table says which. Measured numbers are quoted only under "What we saw" and after "Saved run".

# %% [markdown] tags=["notes"]
# **The point:** shapes fit, the report looks clean, and the model is broken. One forward pass without data would have shown it.
#
# **Let the room predict first:** three matrices, three index sets: what breaks? Then: which of the causes costs what?
#
# **Usual questions:** "But it runs?" That is the lesson. "Is the pairing all that is wrong?" The control says no.
#
# **Wrong turns:** repairing two things at once; comparing texts that were decoded in different ways.
#
# **At the end you have** a test that finds a broken cut in one forward pass, and a table of which cause does how
# much of the harm.

# %% tags=["install"]

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import silu
from tqdm import tqdm

from course_utils import diagrams
from course_utils.plotting import curve_with_seeds, histogram, show, show_tensor, style
from course_utils.session import start

session = start("02")
style()

# %% [markdown]
# ## What we are going to cut

# %%
diagrams.glu_block(neuron=2)
show(
    "A Llama block with its MLP opened up: gate_proj and up_proj both lead from the hidden size to the neurons, SiLU follows "
    "gate, the two are multiplied, and down_proj leads back. One neuron is marked: a row of gate, the same row of up, and "
    "the same column of down."
)

# %% [markdown]
# The MLP of a Llama has three matrices and no bias: `down(silu(gate(x)) * up(x))`. One neuron has a piece in each of them,
# and the multiplication sign is what ties row k of `gate` to row k of `up`.
#
# ## A GLU that you can read
#
# Here is one with 5 inputs, 5 neurons and 5 outputs. As in every `nn.Linear`, weights are [out, in].

# %%
gate = torch.tensor([[1, -1, 2, 2, -2], [2, 0, -1, 1, -1], [2, 1, 1, 0, 2], [-2, -2, 1, 0, 2], [-2, 2, 2, -2, -1.0]])
up = torch.tensor([[1, 0, 0, 2, 1], [0, -2, -1, 0, -2], [-1, -1, 2, -1, 0], [2, 2, 1, -2, 1], [0, 1, 2, 1, -1.0]])
down = torch.tensor([[-1, -2, 2, -2, -1], [2, -2, 1, 1, -2], [-1, -2, -1, 0, 0], [1, 2, -2, -1, 1], [2, 2, 0, 0, -1.0]])
x = torch.tensor([1, -1, 2, 0, 1.0])


def glu(x, gate, up, down):
    """A Llama's MLP: x [..., hidden] -> [..., hidden]."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


print("x     ", x.tolist())
print("output", [round(value, 2) for value in glu(x, gate, up, down).tolist()])

# %% [markdown]
# ### One neuron by hand
#
# Take neuron 2. Its row of `gate` meets x, its row of `up` meets x, and the two results are multiplied.


# %%
def by_hand(row):
    terms = " ".join(f"{weight:+.0f}·({value:.0f})" for weight, value in zip(row.tolist(), x.tolist(), strict=True))
    return f"{terms} = {row @ x:.0f}"


print("gate[2] · x:", by_hand(gate[2]))
print("up[2]   · x:", by_hand(up[2]))
a = silu(gate[2] @ x) * (up[2] @ x)
print(f"silu({gate[2] @ x:.0f}) × {up[2] @ x:.0f} = {silu(gate[2] @ x):.2f} × {up[2] @ x:.0f} = {a:.2f}")
print(f"it adds {a:.2f} × column 2 of down to the output:", [round(value, 2) for value in (a * down[:, 2]).tolist()])

# %% [markdown]
# All five neurons do this, and their contributions are added up. So a neuron of a GLU has **three parts**: a row of
# `gate`, the same row of `up`, the same column of `down`.

# %%
neurons = pd.DataFrame(
    {
        "gate · x": (gate @ x).tolist(),
        "silu(gate · x)": silu(gate @ x).tolist(),
        "up · x": (up @ x).tolist(),
        "product": (silu(gate @ x) * (up @ x)).tolist(),
    }
).rename_axis("neuron")

contributions = down * silu(gate @ x) * (up @ x)  # [outputs, neurons]
torch.testing.assert_close(contributions.sum(dim=1), glu(x, gate, up, down))
neurons.round(2)

# %% [markdown]
# ## Lesson 01's recipe, carried over
#
# The recipe was: score each neuron of a layer by the L1 norm of its weights, keep the strongest, slice. Here are three
# layers instead of two. The obvious way is to treat each of them like a layer of its own: `gate` keeps its strongest
# rows, `up` its strongest rows, `down` its strongest columns.

# %%
from course_utils.width import strongest


def l1_of_each(gate, up, down):
    """One L1 norm a neuron for each matrix: its row of gate, its row of up, its column of down."""
    return gate.abs().sum(dim=1), up.abs().sum(dim=1), down.abs().sum(dim=0)


toy_scores = l1_of_each(gate, up, down)
kept = [strongest(scores, ratio=0.2) for scores in toy_scores]
removed = [sorted(set(range(5)) - set(some.tolist())) for some in kept]

pd.DataFrame(dict(zip(("L1 in gate", "L1 in up", "L1 in down"), toy_scores, strict=True))).rename_axis("neuron")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
figure.get_layout_engine().set(wspace=0.1)
for ax, name, weight, gone in zip(axes, ("gate", "up", "down"), (gate, up, down), removed, strict=True):
    rows_are_neurons = name != "down"
    show_tensor(
        weight,
        title=f"{name} loses {gone[0]}",
        x_label="input" if rows_are_neurons else "neuron",
        y_label="neuron" if rows_are_neurons else "output",
        removed_rows=gone if rows_are_neurons else [],
        removed_columns=[] if rows_are_neurons else gone,
        fmt=".0f",
        ax=ax,
    )
show(
    "The three toy matrices side by side, numbers in colour. A row is crossed out in gate, another row in up, and a column "
    "of yet another number in down."
)

# %% [markdown]
# Each matrix loses the neuron that is weakest *in that matrix*: three matrices, three different neurons. Each choice is
# sound if you look at one matrix alone.

# %% [markdown]
# **Predict before you run.** Four rows, four rows, four columns. Will the three smaller matrices fit together? And what
# does the new neuron 0 compute?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# They fit: [4, 5], [4, 5], [5, 4]. The new neuron 0 opens the gate of neuron 0 for the value of neuron 1 and gives -7.86,
# where the old neuron 0 gave +7.86. Of the four new neurons, one is a neuron of the original.
#
# </details>

# %%
separately = (gate[kept[0]], up[kept[1]], down[:, kept[2]])
print("shapes:", *(list(matrix.shape) for matrix in separately))

pd.DataFrame(
    {
        "gate row of": kept[0],
        "up row of": kept[1],
        "down column of": kept[2],
        "product": (silu(separately[0] @ x) * (separately[1] @ x)).tolist(),
        "a neuron of the original": ["yes" if len({*parts}) == 1 else "no" for parts in torch.stack(kept).T.tolist()],
    }
).rename_axis("new neuron").round(2)

# %% [markdown]
# Everything fits. But behind the first gap the rows have moved up, each matrix at another place. The new neuron 0 opens
# the gate of one neuron for the value of another. Look at its product, and at that of the old neuron 0 above.
#
# Now the same cut with **one index set**, from the L1 norms of gate and up together.

# %%
shared = strongest(toy_scores[0] + toy_scores[1], ratio=0.2)
together = (gate[shared], up[shared], down[:, shared])

whole = glu(x, gate, up, down)
outputs = {"nothing removed": whole, "kept together": glu(x, *together), "kept separately": glu(x, *separately)}
table = pd.DataFrame({name: output.tolist() for name, output in outputs.items()}).T.rename(columns="output {}".format)
table["distance to the original, %"] = [
    100 * ((output - whole).norm() / whole.norm()).item() for output in outputs.values()
]
print(f"new neuron 0, kept separately: {silu(separately[0][0] @ x) * (separately[1][0] @ x):+.2f}")
print(f"old neuron 0:                  {neurons['product'][0]:+.2f}")
table.round(2)

# %% [markdown]
# One input proves little. Here is a sharper question. Pruning means: some neurons are silent, the others are as before.
# Five neurons can be silenced in 2⁵ = 32 ways. Is one of these 32 models the same as ours, for 100 random inputs?

# %%
many = torch.randn(100, 5)
masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)))  # [32, 5]


def distance_to_nearest_mask(matrices):
    """Largest difference to the outputs of the best of all masks, as a share of the largest output."""
    ours = glu(many, *matrices)
    differences = [(ours - glu(many, gate, up, down * mask)).abs().max() for mask in masks]
    return (min(differences) / ours.abs().max()).item()


for name, matrices in {"kept together": together, "kept separately": separately}.items():
    print(
        f"{name:<16} distance to the nearest of 32 masks: {distance_to_nearest_mask(matrices):.1e} of the largest output"
    )

# %% [markdown]
# The separate version is not a worse choice of neurons. It is **no choice of neurons at all**: it is another function,
# put together mostly from parts of different neurons.
#
# ### Exercise 1 · ●○○ · 5 minutes
#
# Why did nothing crash? Answer from shapes alone. A block of Llama-3.2-1B has a hidden size of 2048 and 8192 neurons.
# `floor(0.2 × 8192)` = 1638 neurons go, in each matrix by its own list. Fill in the shapes of the three weights, and of
# `silu(gate(x)) * up(x)` and the output for x of shape (2, 7, 2048).
#
# Then count in the toy: 5 neurons, each matrix drops one. In how many ways can the three matrices choose so that all
# shapes fit? In how many of these is every new neuron an old one?
#
# <details><summary>Hint</summary>
#
# An `nn.Linear` stores [out, in]. For the counts: is there any shape in which you could read *which* neuron is missing?
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_02 import check_shapes

# BEGIN SOLUTION
shapes = {
    "gate": (6554, 2048),  # 8192 - 1638 neurons
    "up": (6554, 2048),
    "down": (2048, 6554),
    "product": (2, 7, 6554),
    "output": (2, 7, 2048),  # the hidden size is as before, so the next block has nothing to complain about
    "ways that fit": 125,  # 5 × 5 × 5: a shape tells how many neurons are left, not which
    "ways that are right": 5,  # all three drop the same neuron
}
# END SOLUTION
# BEGIN STUB
# shapes = {
#     "gate": ...,
#     "up": ...,
#     "down": ...,
#     "product": ...,
#     "output": ...,
#     "ways that fit": ...,
#     "ways that are right": ...,
# }
# END STUB
check_shapes(shapes)

# %% [markdown]
# ## A real Llama

# %%
from course_utils.architectures import describe
from course_utils.models import load_model, variant
from course_utils.session import safe_dtype

dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
architecture = describe(base)
vocabulary = architecture.vocab_size
assert architecture.kind == "glu"

print(f"{base.config.name_or_path} in {str(dtype).removeprefix('torch.')}: {base.num_parameters():,} parameters")
print(
    f"{architecture.num_blocks} blocks, hidden size {architecture.hidden_size}, {architecture.mlps[0].width} neurons each"
)
mlp = base.model.layers[0].mlp
for part in ("gate_proj", "up_proj", "down_proj"):
    print(f"model.model.layers[0].mlp.{part}.weight", list(getattr(mlp, part).weight.shape))

# %% [markdown]
# These are transformers' own names. `describe` finds the same three matrices in every family of gated models, so from here
# on the lesson says `mlp.inputs` (gate and up) and `mlp.output` (down).
#
# *About these weights.* In the embedded profile the model comes from a 4-bit file (Q4_1) and was turned back into
# ordinary numbers: within groups of 32, its weights lie on a grid of 16 values. Sums of magnitudes, as L1 takes them,
# should hardly notice the rounding, while a criterion that looks at single small weights might; we haven't tested it.
# Whether index sets are shared or not has nothing to do with it.

# %% [markdown]
# The recipe as a function, in place. Each matrix gets scores of its own and keeps its own neurons. Remember what is
# wrong with it: nothing forces the three lists to agree.

# %%
from course_utils.reports import PruningReport, model_size


def prune_each_matrix(model, scores, *, ratio):
    """Cut gate, up and down, each by its own scores: one triple (gate, up, down) a block, each [width]."""
    before = model_size(model)
    for mlp, (on_gate, on_up, on_down) in zip(describe(model).mlps, scores, strict=True):
        gate, up = mlp.inputs
        gate.keep(strongest(on_gate, ratio), axis="out")
        up.keep(strongest(on_up, ratio), axis="out")
        mlp.output.keep(strongest(on_down, ratio), axis="in")
    describe(model).sync_config()  # intermediate_size
    return PruningReport(f"prune_each_matrix, ratio {ratio:g}", before, model_size(model))


def matrices(mlp):
    """The weights of gate, up and down in float32."""
    return tuple(weight.float() for weight in (*mlp.rows, mlp.columns))


l1 = [l1_of_each(*matrices(mlp)) for mlp in architecture.mlps]


def for_all_three(scores):
    """The same scores for gate, up and down: one index set a block."""
    return [(some,) * 3 for some in scores]


def keep_separately(model, ratio):
    """Lesson 01's recipe on three layers: each keeps its own strongest neurons by L1. Broken."""
    return prune_each_matrix(model, l1, ratio=ratio)


# %% [markdown]
# Is the *surgery* itself right? Give all three matrices the same scores. Then the function must do exactly what
# `course_utils` does, weight for weight. If so, whatever goes wrong below comes from the scores and not from the knife.
#
# `variant` makes a second model on the same weights. What is cut there gets new weights, and `base` stays whole.

# %%
from course_utils.width import neuron_importance, prune_neurons

ours, theirs = variant(base), variant(base)
prune_each_matrix(ours, for_all_three(on_gate + on_up for on_gate, on_up, _ in l1), ratio=0.1)
prune_neurons(theirs, neuron_importance(base, "l1"), ratio=0.1)

for our_weight, their_weight in zip(ours.parameters(), theirs.parameters(), strict=True):
    assert torch.equal(our_weight, their_weight)
assert ours.config.intermediate_size == theirs.config.intermediate_size
del ours, theirs
print("One set of scores for all three: prune_each_matrix equals prune_neurons, weight for weight.")

# %% [markdown]
# ## Nothing crashes
#
# First the unpruned model, on rows from all over the speeches that no calibration in this course sees.

# %%
from course_utils.evaluation import perplexity
from course_utils.texts import token_blocks

LENGTH = 64  # many short rows rather than few long ones: the rows are the sample
held_out = token_blocks(tokenizer, "evaluation", tokens=32_768, length=LENGTH).sample(24, seed=0)
evaluation, exam = held_out[:12], held_out[12:]  # `exam` is for exercise 6
unpruned = perplexity(base, evaluation)
print(unpruned)
print(
    f"guessing: a perplexity of {vocabulary:,}, the size of the vocabulary, or {math.log(vocabulary):.1f} nats a token"
)


def perplexity_of(scores, ratio=0.1):
    """Perplexity of a variant of the base model, pruned with these scores."""
    model = variant(base)
    prune_each_matrix(model, scores, ratio=ratio)
    return perplexity(model, evaluation)


def random_scores(seed):
    return neuron_importance(base, "random", seed=seed)


# %% [markdown]
# A model that knows nothing and gives every token the same probability has a perplexity equal to the size of the
# vocabulary. It is a floor that a model can fall through, by being sure of the wrong tokens.
#
# **Predict before you run.** We remove the 10 % of the neurons that the recipe calls weakest. Will the perplexity be 1.2
# times as high, 2 times, 10 times? And at 40 %? As a control, the same number of neurons goes at random, with one index set
# for all three matrices.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# At 10 % the perplexity is 3.2·10^10, 5.2·10^8 times the unpruned 62.1, and far worse than guessing (49,152).
# Cutting more makes it no worse: 2.0·10^8 times at 20 %, and 2.2·10^7 at 40 %. Three random choices of whole neurons
# cost a factor of 1.67 to 1.99 at 10 %, and 5 to 6 at 20 %.
#
# </details>

# %%
broken = variant(base)
report = keep_separately(broken, ratio=0.1)
results = {("separate sets, L1", 0, 0.1): perplexity(broken, evaluation)}
for ratio in tqdm((0.1, 0.2, 0.4), desc="ratios"):
    if ratio > 0.1:
        results["separate sets, L1", 0, ratio] = perplexity_of(l1, ratio)
    for seed in range(3):
        results["one set, random", seed, ratio] = perplexity_of(for_all_three(random_scores(seed)), ratio)

report

# %% [markdown]
# The report is that of a successful pruning. The model has the size we asked for, the configuration agrees with the
# weights, every forward pass ran. Now the perplexities:

# %%
from course_utils.reports import shown, with_interval

collapse = pd.DataFrame(
    {"arm": arm, "ratio": ratio, "perplexity": score.perplexity} for (arm, _, ratio), score in results.items()
)
start_of_lines = collapse[collapse.ratio == 0.1].assign(ratio=0.0, perplexity=unpruned.perplexity)  # each seed's, too
curve_with_seeds(
    pd.concat([start_of_lines, collapse]),
    y="perplexity",
    group="arm",
    seeds="one set, random",
    x_label="MLP neurons removed",
    y_label="perplexity (lower is better)",
    floors={"guessing": vocabulary},
    log_y=True,
    title="Each matrix keeps its own neurons",
)
show(
    "Perplexity on a logarithmic axis against the share of neurons removed. The line of the separate sets jumps far above "
    "the guessing line at the first step and stays there; the grey dots of random shared sets start low and rise."
)

# %% [markdown]
# Where does the separate version land at the first cut, above or below the line of guessing? The grey dots, three at each
# share, remove as many neurons without looking. Three show roughly where blind choice lands; whoever is worse than three
# is worse by luck one time in four.
#
# **Saved run.** The separate version is far past guessing at the first cut, and stays there. At 40 % two of the three
# random dots are past guessing as well. Cut that far, blind choice is no yardstick any more; the lesson goes on at 10 %.

# %%
pd.DataFrame(
    {
        f"{ratio:.0%} removed": {
            "separate sets: perplexity (95 % interval)": with_interval(score.perplexity, score.ci_low, score.ci_high),
            "× unpruned": shown(score.perplexity / unpruned.perplexity),
            "one set, three random ones: × unpruned": ", ".join(
                shown(results["one set, random", seed, ratio].perplexity / unpruned.perplexity) for seed in range(3)
            ),
        }
        for (arm, _, ratio), score in results.items()
        if arm == "separate sets, L1"
    }
)

# %% [markdown]
# ## What the failure looks like
#
# A perplexity is one number. What does the broken model do? We look at it next to the unpruned one, with the same
# prompts and the same settings for both. From here on "broken" is the model with 10 % removed.
#
# ### Logits

# %%
contestants = {"unpruned": base, "broken": broken}
prompt = tokenizer("The capital of France is", add_special_tokens=False, return_tensors="pt").to(base.device)
columns = {}
with torch.no_grad():
    for name, model in contestants.items():
        logits = model(**prompt).logits[0, -1].float()
        probabilities = logits.softmax(dim=-1)
        top = logits.topk(5)
        columns[name, "token"] = [repr(tokenizer.decode(token)) for token in top.indices]
        columns[name, "logit"] = [f"{value:.1f}" for value in top.values]
        columns[name, "probability"] = [f"{probabilities[token]:.3f}" for token in top.indices]
print("The likeliest next tokens after 'The capital of France is'")
pd.DataFrame(columns, index=pd.RangeIndex(1, 6, name="rank"))

# %% [markdown]
# ### Entropy
#
# The entropy of the next-token distribution says how unsure a model is: 0 nats when one token has all the probability,
# ln V when all V tokens have the same. The loss (nats a token) says how wrong it is. For a well-calibrated model the
# two means are about equal.
#
# **Predict before you run.** Is the broken model unsure, or sure of the wrong thing?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Sure of the wrong thing. Its entropy is 2.49 nats, below the unpruned model's 3.50, and its loss is 24.2 nats a token,
# where guessing would give 10.8. The unpruned model's loss is 0.63 above its entropy, the broken one's 21.7.
#
# </details>

# %%
from course_utils.uncertainty import ratio_interval


@torch.no_grad()
def predictions(model, rows):
    """Entropy (nats), probability of the likeliest token and loss (nats) of each prediction, [rows, length - 1] each."""
    entropy, top, loss = [], [], []
    for row in rows.to(model.device):
        log_p = model(row[None]).logits[0, :-1].float().log_softmax(dim=-1)  # [length - 1, vocabulary]
        entropy.append(-(log_p.exp() * log_p).sum(dim=-1))
        top.append(log_p.amax(dim=-1).exp())
        loss.append(-log_p.gather(1, row[1:, None])[:, 0])
    return {"entropy": torch.stack(entropy), "top probability": torch.stack(top), "loss": torch.stack(loss)}


def mean_with_interval(values):
    """Mean of [rows, length] and its 95 % interval, as text; the rows are the sample."""
    mean, _, low, high = ratio_interval(values.double().sum(1).cpu().numpy(), np.full(len(values), values.shape[1]))
    return with_interval(mean, low, high)


predicted = {name: predictions(model, evaluation.input_ids) for name, model in contestants.items()}
pd.DataFrame(
    {
        name: {
            "entropy, nats": mean_with_interval(values["entropy"]),
            "loss, nats a token": mean_with_interval(values["loss"]),
            "loss minus entropy": mean_with_interval(values["loss"] - values["entropy"]),
            "probability of the likeliest token": mean_with_interval(values["top probability"]),
        }
        for name, values in predicted.items()
    }
)

# %%
_, ax = plt.subplots(figsize=(8, 5.5), layout="constrained")
for (name, values), marker in zip(predicted.items(), "os", strict=True):
    ax.plot(values["entropy"].mean(1).cpu(), values["loss"].mean(1).cpu(), marker, label=name)
largest = max(values["loss"].mean(1).max().item() for values in predicted.values())
ax.plot(
    [0, math.log(vocabulary)], [0, math.log(vocabulary)], color="0.25", linestyle=":", label="as wrong as it thinks"
)
ax.plot(math.log(vocabulary), math.log(vocabulary), "x", color="0.25", label="guessing")
ax.set(xlabel="entropy: how unsure (nats)", ylabel="loss: how wrong (nats a token)", ylim=(0, 1.1 * largest))
ax.legend(fontsize="small")
show(
    "Loss against entropy, a point for each row of text. The unpruned model's points lie on the diagonal or a little above it, where a model is "
    "as wrong as it thinks. The broken model's lie far above it, further left."
)

# %% [markdown]
# A model that only forgot would move along the diagonal, towards the cross of guessing. Up and to the left is another
# way to be wrong: surer than before. Which way does the broken one go?
#
# **Saved run.** Up and to the left: its entropy falls from 3.50 to 2.49, and it is far more wrong than guessing. The
# unpruned model's points lie on the diagonal or a little above it (0.63 nats on average), the broken model's far above it
# (21.7).

# %%
histogram(
    {name: values["top probability"].cpu() for name, values in predicted.items()},
    x_label="probability of the likeliest token",
    bins=20,
    title="How sure",
)
show(
    "Histograms of the probability that each model gives its likeliest token; the broken model's is shifted to the right."
)

# %% [markdown]
# Which of the two gives its likeliest token the higher probabilities? Confidence by itself is no sign of health.
#
# **Saved run.** Token by token, the broken model is rather surer of itself: 0.46 on average, the unpruned one 0.34.
#
# ### Repetition
#
# Greedy text, 48 new tokens for each of six prompts. We measure the share of **repeated 3-grams**: three tokens in a
# row that occurred before in the same continuation. Language models tend to repeat themselves under greedy decoding anyway
# (Holtzman et al. 2020), so the unpruned model is the control, and human text of the same length is the floor.

# %%
from course_utils.texts import padded_batches

NEW_TOKENS = 48
prompts = (
    "The capital of France is",
    "Water boils when",
    "The people of the United States",
    "To make bread, you first",
    "Once upon a time there was a",
    "In 1969, two men",
)
batch = padded_batches(tokenizer, prompts, batch_size=len(prompts), padding_side="left")[0]
batch = {name: tensor.to(base.device) for name, tensor in batch.items()}


def write(model, new_tokens=NEW_TOKENS):
    """What a model writes after each prompt, greedily: a list of token ids for each."""
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    return model.generate(**batch, **settings)[:, -new_tokens:].tolist()


def readable(tokens):
    return " ".join(tokenizer.decode(tokens, skip_special_tokens=True).split())


def repeated(tokens, n=3):
    """The share of n-grams that occurred before: 0 is none, near 1 is a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


written = {name: write(model) for name, model in contestants.items()}
written["human text"] = [row[:NEW_TOKENS] for row in evaluation.input_ids[: len(prompts)].tolist()]

for number in range(3):
    print(f"{prompts[number]} …")
    for name in contestants:
        print(f"  {name:<9} {readable(written[name][number])[:105]}")
del contestants, broken, model  # one damaged model at a time: a large one may have no room for two

# %%
pd.DataFrame(
    {
        name: {
            "repeated 3-grams": f"{np.mean([repeated(tokens) for tokens in texts]):.0%}",
            "distinct tokens": f"{np.mean([len(set(tokens)) / len(tokens) for tokens in texts]):.0%}",
        }
        for name, texts in written.items()
    }
).T

# %% [markdown]
# **Saved run.** The broken model doesn't run in loops: 1 % of its 3-grams are repeated, like human text (0 %) and
# unlike the unpruned model (23 %). It writes unrelated pieces of words. With six prompts that is a look, not a proof.
#
# A measure of repetition alone can't tell a dead model from a writer. Read the text.

# %% [markdown]
# ## The equality that would have caught it
#
# All this was measured after the fact. *Pruned equals masked* (lesson 01) needs no data and one forward pass: take
# the original, silence the neurons that were removed, and compare outputs. Pruning touched nothing but MLPs, so we go
# through them one by one, on random inputs and in float32.
#
# For the separate version there are three candidates for "the neurons that were removed": the list of gate, of up, or
# of down. We try all three, and we count how many of the new neurons consist of three parts of *one* old neuron.


# %%
@torch.no_grad()
def against_mask(pruned, scores, ratio):
    """Pruned against masked, MLP by MLP: the largest difference of all blocks, as a share of the largest output."""
    shares = []
    for small, large, some in zip(describe(pruned).mlps, architecture.mlps, scores, strict=True):
        inputs = torch.randn(32, architecture.hidden_size, device=some.device)
        mask = torch.zeros_like(some)
        mask[strongest(some, ratio)] = 1
        gate, up, down = matrices(large)
        masked = glu(inputs, gate, up, down * mask)
        shares.append((glu(inputs, *matrices(small)) - masked).abs().max() / masked.abs().max())
    return max(shares).item()


def whole_neurons(scores, ratio):
    """The share of the new neurons that are old ones: the same number in gate, up and down."""
    kept = [torch.stack([strongest(some, ratio) for some in triple]) for triple in scores]  # [3, kept] a block
    return torch.cat([(sets == sets[0]).all(dim=0) for sets in kept]).float().mean().item()


# %%
of_gate, of_up, of_down = zip(*l1, strict=True)  # each a list of scores, one a block
of_pair = [on_gate + on_up for on_gate, on_up in zip(of_gate, of_up, strict=True)]
lines = []
for name, scores, lists in (
    ("together, L1 of gate + up", for_all_three(of_pair), {"the one": of_pair}),
    ("separately, L1", l1, {"gate's": of_gate, "up's": of_up, "down's": of_down}),
):
    pruned = variant(base)
    prune_each_matrix(pruned, scores, ratio=0.1)
    for owner, some in lists.items():
        lines.append(
            {
                "kept": name,
                "whole neurons": f"{whole_neurons(scores, 0.1):.1%}",
                "compared with the mask of": f"{owner} list",
                "difference": against_mask(pruned, some, ratio=0.1),
            }
        )
del pruned

assert [line["difference"] < 1e-5 for line in lines] == [True, False, False, False]
equality = pd.DataFrame(lines).set_index(["kept", "whole neurons", "compared with the mask of"])
equality.map("{:.1e}".format).rename(columns={"difference": "largest difference / largest output"})

# %% [markdown]
# One line, `assert pruned equals masked`, separates the two before any text is read. Keep it in mind for the rest of the
# lesson: "together" is *exactly* a smaller set of the same neurons. Whether it is a *good* set is another question.
#
# ### Exercise 2 · ●●○ · 5 minutes
#
# `prune_glu_with_a_bug` uses one index set for all three matrices, and its result is still no mask of the original. Find
# the bug, and write `prune_glu` without it. It keeps the `keep` neurons with the largest L1 norm of gate and up together
# and returns the three smaller matrices.
#
# <details><summary>Hint</summary>
#
# Print what is used as an index for each matrix, for some random weights. Place k must be the same neuron in all three.
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_02 import check_prune_glu


def prune_glu_with_a_bug(gate, up, down, keep):
    scores = gate.abs().sum(dim=1) + up.abs().sum(dim=1)
    best = scores.topk(keep).indices
    return gate[best], up[best], down[:, best.sort().values]


# BEGIN SOLUTION
def prune_glu(gate, up, down, keep):
    scores = gate.abs().sum(dim=1) + up.abs().sum(dim=1)
    best = scores.topk(keep).indices.sort().values  # topk orders by score; sort once, for all three
    return gate[best], up[best], down[:, best]


# END SOLUTION
# BEGIN STUB
# def prune_glu(gate, up, down, keep):
#     ...  # your code
# END STUB
check_prune_glu(prune_glu)

# %% [markdown]
# ### Exercise 3 · ●●● · 15 minutes
#
# Write the test that this lesson was missing. `is_exact(prune)` gets a pruning function like those of exercise 2,
# `prune(gate, up, down, keep) -> (gate, up, down)`. It returns True if the small MLP equals the original with *some*
# neurons silenced, and False if it doesn't. It doesn't know how `prune` chooses, and it needs no real model. The check
# tries it on right pruners and on broken ones.
#
# <details><summary>Hint</summary>
#
# A tiny random GLU is enough: 5 neurons, 3 kept. `itertools.combinations(range(5), 3)` lists all the neurons that may
# have been kept. Silence the others in `down`, and compare outputs of the function `glu` above with `torch.allclose`.
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_02 import check_is_exact


# BEGIN SOLUTION
def is_exact(prune, hidden=4, width=5, keep=3):
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, width, hidden, generator=generator)
    down, x = torch.randn(hidden, width, generator=generator), torch.randn(20, hidden, generator=generator)
    small = glu(x, *prune(gate, up, down, keep))
    for kept in itertools.combinations(range(width), keep):
        mask = torch.zeros(width)
        mask[list(kept)] = 1
        if torch.allclose(small, glu(x, gate, up, down * mask), atol=1e-5):
            return True
    return False


# END SOLUTION
# BEGIN STUB
# def is_exact(prune):
#     ...  # your code
# END STUB
check_is_exact(is_exact)

# %% [markdown]
# ## Which mistake costs what
#
# So pairing was the bug? Careful. The recipe made several choices at once, and we have changed two of them in our heads:
# where the index sets come from, and what the score is. Take them apart, one at a time, all at 10 %:
#
# - **(a)** three separate sets, by L1: the recipe above
# - **(a′)** gate and up share a set, but down keeps its own
# - **(b)** one set for all three, from the L1 of gate only
# - **(c)** one set for all three, from the L1 of gate and up
# - **control:** one set for all three, *random*, 19 seeds, so that being worse than all of them means something (p = .05)
#
# **Predict before you run.** Order them from best to worst.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# From best to worst: the random control (× 1.91 in the median), then (b) with × 127, (c) with × 308, (a′) with
# × 640,615, and (a). All four are worse than 19 of 19 random choices. The worst of these has × 33.3: blind choice mostly
# does well, but one of the 19 is a disaster (which of its neurons did it, we didn't look). Five seeds might not have shown that.
#
# </details>

# %%
SEEDS = range(19)
causes = {
    "(a) three separate sets": l1,
    "(a′) gate and up share, down its own": list(zip(of_pair, of_pair, of_down, strict=True)),
    "(b) one set, L1 of gate": for_all_three(of_gate),
    "(c) one set, L1 of gate + up": for_all_three(of_pair),
}
measured = {"(a) three separate sets": results["separate sets, L1", 0, 0.1]}  # from the figure above
together = {seed: results["one set, random", seed, 0.1] for seed in range(3)}  # so are these
for name in tqdm(list(causes)[1:], desc="causes"):
    measured[name] = perplexity_of(causes[name])
for seed in tqdm(SEEDS[3:], desc="random controls"):
    together[seed] = perplexity_of(for_all_three(random_scores(seed)))

# %% [markdown]
# Perplexities that differ by factors of thousands are compared as **ratios**. The interval of a ratio is paired: both
# models read the same rows of text. Beside it stands how many of the 19 random controls the arm is worse than.

# %%
from course_utils.evaluation import perplexity_ratio

control = float(np.median([score.perplexity for score in together.values()]))
table = pd.DataFrame(
    {
        name: {
            "whole neurons": f"{whole_neurons(causes[name], 0.1):.1%}",
            "perplexity": shown(score.perplexity),
            "× unpruned (95 % interval)": with_interval(*perplexity_ratio(score, unpruned)),
            "× random control": shown(score.perplexity / control),
            "worse than": f"{sum(score.perplexity > one.perplexity for one in together.values())} of {len(together)}",
        }
        for name, score in measured.items()
    }
).T
factors = sorted(score.perplexity / unpruned.perplexity for score in together.values())
spread = with_interval(control / unpruned.perplexity, factors[0], factors[-1])
table.loc["control: one random set (median; range of seeds)"] = ["100.0%", shown(control), spread, "1", ""]
table.loc["unpruned"] = ["", shown(unpruned.perplexity), "1", "", ""]
table

# %% [markdown]
# Look at the control. Then look at (c), which passes the equality test. It keeps whole neurons, and which ones it keeps is
# a question of its own.
#
# ### Exercise 4 · ●●○ · 5 minutes
#
# Judge claims. A report about another model shows this, at 10 %, on one text, and nothing else:
#
# | arm | perplexity, × unpruned |
# |---|---|
# | separate sets, L1 | 3,000,000 |
# | one shared set, L1 | 400 |
#
# Which claims does it support? Give a set of letters, such as `{"a", "b"}`.
#
# - **a** With L1 scores, separate sets are worse than a shared set on this text.
# - **b** The pairing was the bug; with it repaired, the pruner works.
# - **c** The remaining factor of 400 shows that L1 is worse than random choices.
# - **d** The model with the shared set equals the original with some neurons silenced.
# - **e** On this text, neither model is near the unpruned one.
# - **f** With any other score, separate sets would cost the same factor.
#
# <details><summary>Hint</summary>
#
# Which arm would you have to add before you could say it?
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_02 import check_claims

# BEGIN SOLUTION
supported = {"a", "e"}  # two readings of two numbers; b, c, d and f need arms or tests that aren't there
# END SOLUTION
# BEGIN STUB
# supported = ...
# END STUB
check_claims(supported)

# %% [markdown]
# ### Two factors, crossed
#
# (a) differs from the control in two things: separate sets *and* L1. To know what each costs, cross them: separate or
# shared sets, with L1 or with random scores. Random scores drawn three times, once for each matrix, make the missing
# corner. Five seeds give its range, smallest to largest.
#
# As a last arm, one shared set by a criterion that looks at data: the size of what each neuron really adds on
# calibration text (`"activation"`, the subject of lesson 03). It scores a neuron as a whole, so it has no separate form.

# %%
calibration = token_blocks(tokenizer, "calibration", tokens=65_536, length=LENGTH).sample(32, seed=session.seed)
activation = neuron_importance(base, "activation", batches=calibration.batches())
measured["activation"] = perplexity_of(for_all_three(activation))

apart = {}
for seed in tqdm(SEEDS[:5], desc="random, separate"):
    draws = (random_scores(seed + 100 * matrix) for matrix in range(3))
    apart[seed] = perplexity_of(list(zip(*draws, strict=True)))

corners = [("L1", 1, measured["(a) three separate sets"]), ("L1", 0, measured["(c) one set, L1 of gate + up"])]
corners += [("random", 0, score) for score in together.values()] + [("random", 1, score) for score in apart.values()]
corners += [("activation", 0, measured["activation"])]
crossed = pd.DataFrame(
    {"scores": name, "separate": separate, "value": score.perplexity / unpruned.perplexity}
    for name, separate, score in sorted(corners, key=lambda corner: corner[1])
)
ax = curve_with_seeds(
    crossed,
    x="separate",
    group="scores",
    x_label="index sets of gate, up and down",
    y_label="perplexity, × unpruned",
    floors={"unpruned": 1, "guessing": vocabulary / unpruned.perplexity},
    log_y=True,
    x_percent=False,
    title="Two mistakes, crossed (10 % removed)",
)
ax.set_xticks([0, 1], ["shared", "separate"])
ax.set_xlim(-0.3, 1.3)
show(
    "Perplexity as a multiple of the unpruned model's, on a logarithmic axis, for shared index sets on the left and "
    "separate ones on the right. The lines of L1 and of random scores both rise by many powers of ten. On the left, "
    "activation is lowest, random next, L1 highest."
)

# %% [markdown]
# Follow a line from left to right: the price of separate sets, paid with L1 and with random scores alike. Compare the points
# at the left end: the price of the criterion, among models that all pass the equality test. (On this axis a factor of two is
# small; the table below tells activation and random scores apart.)
#
# In numbers, each comparison changes one thing. With L1, (a′) lies on the way from (c) to (a), so its two steps multiply to
# the whole. Against random scores there are as many ratios as seeds: the table gives their geometric mean, the smallest and
# the largest.

# %%
from course_utils.uncertainty import geometric_mean


def across_seeds(above, below):
    """The ratio of one perplexity to each of several, or of several pairs: geometric mean, smallest, largest."""
    ratios = [one.perplexity / other.perplexity for one, other in zip(above, below, strict=True)]
    return with_interval(geometric_mean(ratios)[0], min(ratios), max(ratios))


c, b, a_prime, a = (measured[name] for name in reversed(causes))
shared_random = list(together.values())
sets, which = "three separate sets instead of one", "other scores, one set"
prices = {
    (sets, "L1, (c) to (a)"): with_interval(*perplexity_ratio(a, c)),
    (sets, "L1, first step: a set of its own for down, (c) to (a′)"): with_interval(*perplexity_ratio(a_prime, c)),
    (sets, "L1, second step: one each for gate and up, (a′) to (a)"): with_interval(*perplexity_ratio(a, a_prime)),
    (sets, "random scores"): across_seeds(apart.values(), shared_random[: len(apart)]),
    (which, "L1 of gate instead of gate + up, (c) to (b)"): with_interval(*perplexity_ratio(b, c)),
    (which, "L1 of gate + up instead of random"): across_seeds([c] * len(together), shared_random),
    (which, "random instead of activation"): across_seeds(shared_random, [measured["activation"]] * len(together)),
}
print("What a choice costs: perplexity after / before (95 % interval, or range of seeds)")
pd.Series(prices, name="factor").rename_axis(["what changes", "where"]).to_frame()

# %% [markdown]
# **Saved run.** Both mistakes are real. Separate sets cost a factor of 1.7·10^6 with L1 (95 % interval from 69,693),
# and at least 4.3·10^6 with random scores: pairing is a mistake of its own. With the pairing repaired, L1 costs 132
# times as much as random scores (geometric mean; at least 9.27 times), so the criterion is the other mistake. Repairing
# the pairing alone leaves 308 times the unpruned perplexity.
#
# The equality test, then, is necessary and not sufficient: it says that neurons are whole, not that they are the right
# ones.
#
# ### Exercise 5 · ●●○ · 10 minutes
#
# Design a comparison. An experiment has arms such as `("separate", "L1", "10 %")`: one entry for each choice. Write
# `fair_pairs(arms, place)`: all pairs of arms that differ in the entry at `place` and in no other, each pair once, as
# tuples `(earlier in the list, later in the list)`. Only such pairs give the price of that choice.
#
# <details><summary>Hint</summary>
#
# `itertools.combinations(arms, 2)` gives each pair once, in order. Count the places in which two arms differ.
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_02 import check_fair_pairs


# BEGIN SOLUTION
def fair_pairs(arms, place):
    pairs = []
    for one, other in itertools.combinations(arms, 2):
        differ = [number for number, entries in enumerate(zip(one, other, strict=True)) if entries[0] != entries[1]]
        if differ == [place]:
            pairs.append((one, other))
    return pairs


# END SOLUTION
# BEGIN STUB
# def fair_pairs(arms, place):
#     ...  # your code
# END STUB
check_fair_pairs(fair_pairs)

# %% [markdown]
# ### In the literature
#
# That a GLU's gate and up rows must be pruned as pairs is the starting point of Martra 2024 (doi 10.31219/osf.io/qgxea),
# and "coupled structures" were found automatically by LLM-Pruner (Ma et al. 2023, arXiv 2305.11627). For Llama-3.2-1B at
# 10 %, with *one* index set each time, a public comparison (the repository beside arXiv 2512.22671) reports a LAMBADA
# perplexity of 5.4 unpruned, 17.9 with peak-to-peak magnitudes, 551 with L2 norms and 1523 with products of norms. So
# on another, larger model too, with the pairing right, much still depends on the criterion. That half is lesson 03.

# %% [markdown]
# ## What they write
#
# The same prompts, greedy, for the unpruned model, the broken one, one that repairs the pairing alone, and one that also
# chooses its neurons by what they add.

# %%
texts = {"unpruned": written["unpruned"], "separate, L1": written["broken"]}  # these two wrote above
sizes = {"unpruned": report.before, "separate, L1": report.after}
for name, scores in {"shared, L1": for_all_three(of_pair), "shared, activation": for_all_three(activation)}.items():
    model = variant(base)
    prune_each_matrix(model, scores, ratio=0.1)
    texts[name], sizes[name] = write(model, new_tokens=16), model_size(model)

for number in range(3):
    print(f"{prompts[number]} …")
    for name, tokens in texts.items():
        print(f"    {name:<20} {readable(tokens[number][:16])}")

# %% [markdown]
# Three of the four have exactly the same size, from the same weights, each with one tenth of its neurons gone. What
# differs is whether the neurons are whole, and which ones they are. In the saved run only the last of the three still forms
# phrases, and two of its three texts go in circles.
#
# ## What it costs and buys
#
# Broken or sound, 10 % less is 10 % less. Both are timed, in turns with the unpruned model, in the type that this device
# multiplies fast; the number after "est." is an estimate from the removed FLOPs and bytes alone.

# %% tags=["timed"]
from course_utils.benchmarking import measure_speed, relative_speed, speedup_text

assert sizes["separate, L1"] == sizes["shared, activation"]
del model
timed = {"unpruned": variant(base).to(session.dtype)}
for name, scores in {"separate, L1": l1, "shared, activation": for_all_three(activation)}.items():
    timed[name] = variant(base).to(session.dtype)
    prune_each_matrix(timed[name], scores, ratio=0.1)
laps = measure_speed(timed, prompt_tokens=64, new_tokens=8, rounds=7)
speed = laps.set_index(["model", "phase"])
against = relative_speed(laps, "shared, activation").set_index(["model", "phase"]).loc["separate, L1"]
for phase, row in against.iterrows():
    print(
        f"{phase}: the broken model has {with_interval(row.speedup, row.ci_low, row.ci_high)} × the sound one's speed"
    )
del timed
quality = (unpruned, measured["(a) three separate sets"], measured["activation"])
pd.DataFrame(
    {
        name: {
            "parameters": f"{sizes[name].parameters:,}",
            "weights (MB)": f"{sizes[name].bytes / 1e6:.0f}",
            "prefill, × unpruned": speedup_text(speed.loc[name, "prefill"]),
            "decode, × unpruned": speedup_text(speed.loc[name, "decode"]),
            "perplexity": shown(score.perplexity),
            "bits/byte": f"{score.bits_per_byte:.2f}",
        }
        for name, score in zip(("unpruned", "separate, L1", "shared, activation"), quality, strict=True)
    }
)

# %% [markdown]
# Size, FLOPs and shapes of the broken and the sound model are identical (the cell asserts it), and the two lines above the
# table compare their speeds, round by round. A gain as small as this one needs a quiet machine to be seen at all.
#
# **Saved run.** Nothing tells the broken model's speed from the sound one's: both intervals hold 1 (0.92 to 1.73 for reading
# a prompt, 0.93 to 1.13 for decode). Nor does this run show a gain over the unpruned model: all four intervals in the table
# hold 1. They hold the estimates as well (1.08 and 1.06).

# %% [markdown]
# ## A score of your own
#
# The last exercise needs the inputs of each MLP on some calibration text, and a function that prunes by a score and judges
# it on speeches that nothing else in this lesson has used.


# %%
@torch.no_grad()
def inputs_of_mlps(rows):
    """What each block's MLP reads on [rows, length] token ids: a list of [tokens, hidden], float32."""
    found = []
    hooks = [
        mlp.owner.register_forward_pre_hook(lambda module, args: found.append(args[0].flatten(0, -2).float()))
        for mlp in architecture.mlps
    ]
    try:
        base.base_model(rows.to(base.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


mlp_inputs = inputs_of_mlps(calibration.input_ids[:8])
exam_unpruned = perplexity(base, exam).perplexity


@torch.no_grad()
def judge(score):
    """Perplexity on the exam, × unpruned, when each block loses the 10 % of its neurons that `score` ranks lowest."""
    scores = [score(*matrices(mlp), x) for mlp, x in zip(architecture.mlps, mlp_inputs, strict=True)]
    model = variant(base)
    prune_neurons(model, scores, ratio=0.1)
    return perplexity(model, exam).perplexity / exam_unpruned


# %% [markdown]
# ### Exercise 6 · ●●● · 15 minutes
#
# Beat the baselines. Write `score(gate, up, down, x)`: one number a neuron, more for those that should stay. `gate` and `up`
# are [neurons, hidden], `down` is [hidden, neurons], and `x` [tokens, hidden] holds what this MLP read on calibration text.
# The check prunes 10 % with one index set and judges on held-out speeches, beside L1 of gate and up and beside a random
# choice. You pass when you beat both. Look at the score two or three times, not twenty.
#
# <details><summary>Hint</summary>
#
# A neuron adds `silu(gate · x) * (up · x)` times its column of `down` to the output. How large is that, over all tokens?
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_02 import check_score


# BEGIN SOLUTION
def score(gate, up, down, x):
    products = silu(x @ gate.T) * (x @ up.T)  # [tokens, neurons]
    return products.norm(dim=0) * down.norm(dim=0)  # the size of what each neuron adds


# END SOLUTION
# BEGIN STUB
# def score(gate, up, down, x):
#     ...  # your code
# END STUB
check_score(score, judge)

# %% [markdown]
# ## Three questions

# %% [markdown] tags=["quiz"]
# Gate, up and down each keep their own strongest neurons. Why does no error appear?
#
# - [ ] Because the neurons are still whole.
#   > They aren't: a new neuron joins the gate of one old neuron with the value of another.
# - [x] Because shapes only say how many neurons a matrix keeps, not which.
#   > All three matrices keep the same number, so everything fits.
# - [ ] Because SiLU repairs small mistakes.
#   > Nothing repairs it. The product of two unrelated numbers is another function.

# %% [markdown] tags=["quiz"]
# A pruned model passes "pruned equals masked" exactly. What do you know?
#
# - [ ] That it is nearly as good as the original.
#   > Silencing the wrong neurons can ruin a model, exactly.
# - [ ] That the criterion is sound.
#   > The test accepts any set of whole neurons, random ones too.
# - [x] That it is the original with some neurons silenced.
#   > The surgery is right. Whether the set is a good one needs a measurement with a random control.

# %% [markdown] tags=["quiz"]
# After repairing the pairing, L1 still multiplies the perplexity by hundreds. What tells you that L1 is to blame?
#
# - [ ] That the pairing is now right.
#   > That excludes one cause. It doesn't say that blind choices would have done better.
# - [x] That shared sets chosen at random cost far less at the same ratio.
#   > One shared set both times, same ratio; only the score differs: a fair pair.
# - [ ] That separate sets with L1 are worse still.
#   > That is the price of separate sets, not of L1.

# %% [markdown]
# ## Take-aways
#
# - A neuron of a GLU is a row of gate, *the same* row of up and *the same* column of down. One index set for all three.
# - Shapes prove nothing. Neither do a clean report, a true configuration or a forward pass without errors.
# - *Pruned equals masked* catches the mistake in one forward pass, without data. Put it into your tests before you look
#   at perplexities.
# - A failure may have two causes. Change one thing at a time, cross the factors, and keep a random control: the control
#   is what shows that repairing the pairing is not enough.
# - Judge a broken model by several numbers beside the unpruned one, and with the same decoding for both.
#
# ## References
#
# - Shazeer 2020, *GLU Variants Improve Transformer*, arXiv 2002.05202
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea
# - Ma et al. 2023, *LLM-Pruner: On the Structural Pruning of Large Language Models*, arXiv 2305.11627
# - Martra 2025, *Fragile Knowledge, Robust Instruction-Following: The Width Pruning Dichotomy in Llama-3.2*,
#   arXiv 2512.22671
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679
# - Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*, arXiv 1904.09751
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 03 keeps the pairing and looks for a criterion that deserves its name.
