# ---
# jupyter:
#   course:
#     title: Width pruning with the L1 norm
#     minutes: 60
#     hardware: cpu
#     prerequisites: Python, a little PyTorch, a rough idea of a transformer block; nothing about pruning
#     assets: [speeches, texts]
# ---

# %% [markdown]
# ## What you will learn
#
# - what width pruning is, and how it differs from quantization and from scattering zeros
# - where the neurons of a GPT-2 sit, and how to cut one out without breaking the rest
# - how to *prove* that the cut is right, and that the small model reloads as an ordinary one
# - how to predict what a cut saves, from the configuration alone
# - how to measure what it costs: with a random control, an interval and a second kind of text
#
# The lesson runs on the course's own small GPT-2, which has distilGPT2's architecture in miniature and was trained on
# State of the Union addresses. In the `hub` profile (a GPU and the Hugging Face hub) the same code runs on distilGPT2.
# The saved outputs come from the `embedded` profile on a machine with two CPU cores; the next table says which.

# %% tags=["install"]

# %%
import copy
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from course_utils.plotting import histogram, pruning_curve, show_tensor, style
from course_utils.session import start

session = start("01")
style()

# %% [markdown]
# ## Three ways to make a model smaller
#
# **Quantization** keeps every weight and stores it with fewer bits. **Unstructured pruning** sets single weights to
# zero, wherever they are. **Structured pruning** takes out whole neurons, heads or blocks, so that the matrices
# themselves get smaller. *Width* pruning, this lesson, takes out neurons of the MLPs.
#
# *Predict before you run:* half of the weights are zero. How much faster is an ordinary matrix multiplication?

# %%
from course_utils.benchmarking import time_interleaved
from course_utils.reports import with_interval

tokens, dense = torch.randn(256, 768), torch.randn(768, 3072)  # 256 tokens meet a matrix of distilGPT2's size

scale = dense.abs().max() / 127
quantized = (dense / scale).round().to(torch.int8)  # every weight is still there, in 8 bits instead of 32
zeroed = dense.masked_fill(torch.rand_like(dense) < 0.5, 0.0)  # half of the weights are zero, anywhere
cut = dense[:, :1536].clone()  # half of the neurons (columns) are gone

laps = time_interleaved(
    {"dense": lambda: tokens @ dense, "zeroed": lambda: tokens @ zeroed, "cut": lambda: tokens @ cut},
    rounds=21,
    warmups=3,
).set_index("name")

pd.DataFrame(
    [
        {
            "method": method,
            "shape": str(list(matrix.shape)),
            "MB": round(matrix.nbytes / 1e6, 2),
            "zeros": f"{(matrix == 0).float().mean():.0%}",
            "time, × dense (95 % interval)": with_interval(laps.ratio[name], laps.ci_low[name], laps.ci_high[name])
            if name
            else "needs a special kernel",
        }
        for method, matrix, name in (
            ("as it was", dense, "dense"),
            ("quantized to int8", quantized, None),
            ("unstructured: half the weights zero", zeroed, "zeroed"),
            ("structured: half the neurons cut", cut, "cut"),
        )
    ]
).set_index("method")

# %%
from course_utils.uncertainty import verdict

SPEED = {"at": 1, "below": "faster", "above": "slower", "neither": "no faster, as far as this measurement can tell"}
for name, what in {"zeroed": "Half the weights zero", "cut": "Half the neurons cut"}.items():
    print(f"{what}: {laps.ratio[name]:.2f} × the time, {verdict(laps.ci_low[name], laps.ci_high[name], **SPEED)}.")

# %% [markdown]
# A zero is stored and multiplied like any other number, unless hardware and kernel were made for it. A neuron that is
# cut out is neither. The three methods don't exclude each other: a pruned model can be quantized afterwards.

# %% [markdown]
# ## A GPT-2 MLP that you can read
#
# In each block of a GPT-2, the MLP computes `c_proj(gelu(c_fc(x)))`. Here is one with 5 inputs and 5 neurons (the real
# ones have hundreds), built from transformers' own class.

# %%
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

toy = GPT2MLP(5, GPT2Config(n_embd=5, n_head=1)).eval()
with torch.no_grad():
    toy.c_fc.weight.copy_(
        torch.tensor([[2, 0, -2, 1, 3], [-1, 1, 0, 0, -2], [3, 0, 2, -1, 1], [0, -1, -3, 1, 2], [1, 0, 1, 0, -1]])
    )
    toy.c_fc.bias.copy_(torch.tensor([0, 1, 0, -1, 1]))
    toy.c_proj.weight.copy_(
        torch.tensor([[1, 0, -1, 0, 1], [3, -3, 3, 2, -3], [0, 1, 1, -1, 0], [1, 1, 0, 0, -1], [-1, 0, 1, 1, 0]])
    )
    toy.c_proj.bias.copy_(torch.tensor([1, 0, 0, -1, 0]))

show_tensor(toy.c_fc.weight, title="c_fc.weight", x_label="neuron", y_label="input", fmt=".0f")
plt.show()

# %% [markdown]
# ### `Conv1D` is a linear layer
#
# transformers builds GPT-2 from a class named `Conv1D`. It convolves nothing. It is a linear layer that stores its
# weight the other way round: **[in, out]**, where `nn.Linear` stores [out, in]. So a neuron of `c_fc` is a *column*.

# %%
from transformers.pytorch_utils import Conv1D

linear = nn.Linear(5, 5)
with torch.no_grad():
    linear.weight.copy_(toy.c_fc.weight.T)
    linear.bias.copy_(toy.c_fc.bias)

x = torch.randn(3, 5)  # three tokens
torch.testing.assert_close(toy.c_fc(x), linear(x))
torch.testing.assert_close(toy.c_fc(x), x @ toy.c_fc.weight + toy.c_fc.bias)

print("2 inputs, 5 outputs:")
print("  Conv1D.weight   ", list(Conv1D(5, 2).weight.shape))
print("  nn.Linear.weight", list(nn.Linear(2, 5).weight.shape))

# %% [markdown]
# ## The L1 score
#
# The L1 norm of a neuron is the sum of the magnitudes of the weights that lead into it. The idea: a neuron with small
# weights hardly reacts to anything, so it won't be missed. That is a guess, and below we test it.
#
# *Predict before you run:* which two neurons of the toy have the smallest L1 norm? And which ones would a sum
# *without* magnitudes choose?

# %%


def l1_scores(weight):
    """One score a neuron, from c_fc's weight [inputs, neurons]."""
    return weight.abs().sum(dim=0)


def strongest(scores, ratio):
    """The neurons that stay when `ratio` of them go, in their old order."""
    kept = len(scores) - int(ratio * len(scores))
    return scores.topk(kept).indices.sort().values


keep = strongest(l1_scores(toy.c_fc.weight), ratio=0.4)
drop = [neuron for neuron in range(5) if neuron not in keep]

pd.DataFrame({"L1": l1_scores(toy.c_fc.weight).tolist(), "plain sum": toy.c_fc.weight.sum(dim=0).tolist()}).rename_axis(
    "neuron"
)

# %%
import course_utils.width

# The course's own version works for every scale: where scores are equal, the lower numbers stay.
assert torch.equal(keep, course_utils.width.strongest(l1_scores(toy.c_fc.weight), ratio=0.4))
print(f"L1 removes neurons {drop}.")
print(f"A plain sum would remove {sorted(toy.c_fc.weight.sum(dim=0).argsort()[:2].tolist())}: signs cancel.")

# %% [markdown]
# ## Cutting neurons out
#
# A neuron occurs in three places:
#
# | tensor | shape | a neuron is |
# |---|---|---|
# | `c_fc.weight` | [inputs, neurons] | a column: axis 1 |
# | `c_fc.bias` | [neurons] | an entry: axis 0 |
# | `c_proj.weight` | [neurons, outputs] | a row: axis 0 |
# | `c_proj.bias` | [outputs] | – it has none; this bias stays whole |
#
# The same neurons must go from all three.

# %%


@torch.no_grad()
def keep_neurons(mlp, keep):
    """Cut all neurons but `keep` out of a GPT-2 MLP, in place."""
    mlp.c_fc.weight = nn.Parameter(mlp.c_fc.weight[:, keep])
    mlp.c_fc.bias = nn.Parameter(mlp.c_fc.bias[keep])
    mlp.c_proj.weight = nn.Parameter(mlp.c_proj.weight[keep])
    mlp.c_fc.nf = mlp.c_proj.nx = len(keep)  # Conv1D notes its sizes beside the weight, and uses them


small = copy.deepcopy(toy)
keep_neurons(small, keep)

fc = {"x_label": "neuron", "y_label": "input", "fmt": ".0f", "limit": 3}
proj = {"x_label": "output", "y_label": "neuron", "fmt": ".0f", "limit": 3}
figure, ((fc_before, fc_after), (proj_before, proj_after)) = plt.subplots(2, 2, figsize=(10, 11), layout="constrained")
show_tensor(toy.c_fc.weight, title="c_fc.weight before", removed_columns=drop, ax=fc_before, **fc)
show_tensor(small.c_fc.weight, title="c_fc.weight after", ax=fc_after, **fc)
show_tensor(toy.c_proj.weight, title="c_proj.weight before", removed_rows=drop, ax=proj_before, **proj)
show_tensor(small.c_proj.weight, title="c_proj.weight after", ax=proj_after, **proj)
fc_after.set_xticks(range(len(keep)), keep.tolist())  # the neurons' old numbers
proj_after.set_yticks(range(len(keep)), keep.tolist())
plt.show()

# %% [markdown]
# ### Is the cut right?
#
# A neuron speaks to the rest of the model only through its row of `c_proj`. Set that row to zero and the neuron is
# silent, in a model of the old shape. The small MLP must give exactly what the silenced one gives. *Pruned equals
# masked*: this is the test for every structured pruning in this course.


# %%
@torch.no_grad()
def silence(mlp, drop):
    """Silence neurons of a GPT-2 MLP without changing its shape, in place."""
    mlp.c_proj.weight[drop] = 0


masked = copy.deepcopy(toy)
silence(masked, drop)

torch.testing.assert_close(small(x), masked(x))
print(f"pruned against masked: {(small(x) - masked(x)).abs().max():.1e}")
print(f"pruned against whole:  {(small(x) - toy(x)).abs().max():.1e}")

# %% [markdown]
# The second line shows that the test could have failed: the cut does change what the MLP computes. By how much, for
# each neuron? Silence them one by one, on many random inputs, and put the harm beside the score.

# %%
many = torch.randn(10_000, 5)
harm = []
for neuron in range(5):
    without = copy.deepcopy(toy)
    silence(without, [neuron])
    harm.append((without(many) - toy(many)).norm(dim=1).mean().item())

toy_scores = pd.DataFrame({"L1 score": l1_scores(toy.c_fc.weight).tolist(), "harm when silenced": harm})
agreement = toy_scores.corr(method="spearman").iloc[0, 1]
print(f"Rank correlation of score and harm in the toy: {agreement:.2f} (1 would be a perfect score, 0 a useless one)")
toy_scores.rename_axis("neuron").round(2)

# %% [markdown]
# L1 looks at what leads *into* a neuron. It doesn't see how loudly the neuron speaks in `c_proj`, and the toy was made
# to show that. Whether it matters in a trained model is a question for an experiment.

# %% [markdown]
# ## A real model

# %%
from course_utils.architectures import describe
from course_utils.models import load_model, variant

base, tokenizer = load_model("gpt2")  # float32, because this lesson compares models to the last digits
device = base.device
architecture = describe(base)
name, width = base.config.name_or_path, architecture.intermediate_sizes[0]

print(f"{name}: {base.num_parameters():,} parameters, {architecture.num_blocks} blocks")
print(f"each MLP: {architecture.hidden_size} inputs, {width} neurons, {architecture.hidden_size} outputs")

# %% [markdown]
# Our function now scores every neuron. `course_utils` has the same criterion for every model family; from here on we
# use that one. First we check that the two agree.

# %%
from course_utils.width import neuron_importance

l1 = neuron_importance(base, "l1")
for block, scores in zip(base.transformer.h, l1, strict=True):
    torch.testing.assert_close(l1_scores(block.mlp.c_fc.weight), scores)

blocks = sorted({0, architecture.num_blocks // 2, architecture.num_blocks - 1})
histogram({f"block {i}": l1[i].cpu() for i in blocks}, x_label="L1 score", bins=50, title=f"L1 scores of {name}")
plt.show()

# %%
for i in blocks:
    lowest, at_20 = l1[i].min() / l1[i].median(), l1[i].quantile(0.2) / l1[i].median()
    print(f"block {i}: the lowest score is {lowest:.0%} of the median; one in five is below {at_20:.0%} of it")

# %% [markdown]
# If some neurons were dead weight, they would stand apart at the left, near zero. Look at the figure: do they? Where
# to cut is our choice; the scores don't draw the line.

# %% [markdown]
# ### One block, by hand
#
# `variant` makes a second model that shares every weight with the first. Cutting gives the second one new, smaller weights
# and leaves the first alone, so a variant to cut costs almost no memory. `silence` *writes* into a weight: for that we need
# a copy.

# %%
inputs = tokenizer("The state of the Union is strong.", return_tensors="pt").to(device)


@torch.no_grad()
def logits(model):
    return model(**inputs).logits


middle = architecture.num_blocks // 2
keep = strongest(l1[middle], ratio=0.2)
drop = [neuron for neuron in range(width) if neuron not in set(keep.tolist())]

pruned, masked = variant(base), copy.deepcopy(base)
keep_neurons(pruned.transformer.h[middle].mlp, keep)
silence(masked.transformer.h[middle].mlp, drop)

largest = logits(base).abs().max()
difference = (logits(pruned) - logits(masked)).abs().max()
print(f"{len(drop)} of {width} neurons cut from block {middle}; the largest logit is {largest:.1f}")
print(f"pruned against masked: {difference:.1e}")
print(f"pruned against whole:  {(logits(pruned) - logits(base)).abs().max():.1e}")
assert difference < 1e-5 * max(1, largest)  # float32 has about seven digits

# %% [markdown]
# ### All blocks
#
# The whole method is a loop that you can say aloud: score, keep the strongest, cut; at the end, tell the configuration
# how wide the MLPs are now. GPT-2's configuration calls that `n_inner`.


# %%
def prune_width(model, ratio):
    """Prune every MLP of a GPT-2 by its L1 scores, in place."""
    for block in model.transformer.h:
        keep = strongest(l1_scores(block.mlp.c_fc.weight), ratio)
        keep_neurons(block.mlp, keep)
    model.config.n_inner = len(keep)


by_hand = variant(base)
prune_width(by_hand, ratio=0.2)

# %% [markdown]
# `prune_neurons` does the same in place, checks its input first, works for other families too, and returns a report.

# %%
from course_utils.width import prune_neurons

pruned = variant(base)
report = prune_neurons(pruned, l1, ratio=0.2)

for ours, theirs in zip(by_hand.parameters(), pruned.parameters(), strict=True):
    assert torch.equal(ours, theirs)
assert by_hand.config.n_inner == pruned.config.n_inner
report

# %% [markdown]
# ## What a cut saves, on paper
#
# distilGPT2 has 6 blocks, hidden size 768 and 3,072 neurons in each MLP. *Predict before you run:* we cut 20 % of the
# neurons. Which share of the **parameters** goes: 20 %, 13 %, 7 %?
#
# No weights are needed to find out. A model on the `meta` device has shapes and no memory.

# %%
from transformers import GPT2LMHeadModel

with torch.device("meta"):
    distilgpt2 = GPT2LMHeadModel(GPT2Config(n_layer=6))  # GPT2Config's other defaults are distilGPT2's values
distilgpt2_pruned = variant(distilgpt2)

any_scores = [torch.arange(3072.0) for _ in range(6)]  # which neurons go doesn't matter for the count
paper = prune_neurons(distilgpt2_pruned, any_scores, ratio=0.2)
before, after = paper.before.parameters, paper.after.parameters

assert (before, after) == (81_912_576, 76_250_268)
paper

# %% [markdown]
# Now by hand. 20 % of 3,072 is 614.4, so 614 neurons go from each of 6 blocks. Each takes with it 768 weights that lead
# in, 1 bias, and 768 weights that lead out.

# %%
neurons, each = 6 * 614, 768 + 1 + 768
assert before - after == neurons * each == 5_662_308
print(f"{neurons:,} neurons × {each:,} parameters = {neurons * each:,}")

part_of = {"wte": "token embedding (and head)", "wpe": "positions", "attn": "attention", "mlp": "MLPs", "ln": "norms"}
parts = dict.fromkeys(part_of.values(), 0)
for path, weight in distilgpt2.named_parameters():
    key = next(key for key in part_of if key in path)
    parts[part_of[key]] += weight.numel()
assert sum(parts.values()) == before

shares = pd.DataFrame({"parameters": parts})
shares["share"] = [f"{count / before:.1%}" for count in parts.values()]
shares["parameters"] = [f"{count:,}" for count in parts.values()]
shares

# %%
print(f"MLPs are {parts['MLPs'] / before:.1%} of distilGPT2, and 20 % of that is {0.2 * parts['MLPs'] / before:.2%}.")
print(f"share of what was there: {(before - after) / before:.2%}")
print(f"share of what is left:   {(before - after) / after:.2%}")

# %% [markdown]
# You will find this very cut (the same two counts) described as "around 7.5 %". The count is right; only dividing by
# what is *left* comes near that figure. Saved means saved from what was there: **6.91 %**.
#
# The lesson behind it: a share of the neurons is not a share of the model. How much of the model the MLPs are decides
# what width pruning can save at all.

# %% [markdown]
# ## Save, and reload with plain transformers
#
# All blocks have the same new width, and `n_inner` says so. Such a checkpoint is an ordinary GPT-2: nobody needs this
# course to load it.

# %%
from transformers import AutoModelForCausalLM

from course_utils.checkpoints import save_pruned

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    save_pruned(pruned, tokenizer, folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()

assert torch.equal(logits(reloaded), logits(pruned))
print(f"{type(reloaded).__name__}, n_inner = {reloaded.config.n_inner}: logits equal, bit for bit")

# %% [markdown]
# *A common mistake* is to cut the matrices and forget the configuration. In memory the model works all the same, so
# nothing warns you. Then:

# %%
from transformers.utils import logging

careless = variant(pruned)
careless.config.n_inner = None  # as if we had not written it: GPT-2 then takes 4 × hidden size
logging.set_verbosity_error()  # no long report of what did not fit

assert torch.equal(logits(careless), logits(pruned))
print("in memory: works")
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    careless.save_pretrained(folder)
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        print("reload: works")
    except RuntimeError:
        print("reload: refused, because weights and configuration disagree")

# %% [markdown]
# ## What a cut costs: the experiment
#
# **Measure.** Perplexity, and bits per byte of the text. The second can be compared between models with different
# vocabularies; lower is better for both.
#
# **Text.** Speeches of years that the model was not trained on; and Wikipedia articles, a second domain. Neither is
# used to choose neurons.
#
# **Arms.** L1 needs controls, or its curve means nothing:
#
# - *random*: neurons drawn at random, with 5 seeds. A criterion that doesn't beat this knows nothing.
# - *lowest L1 kept*: L1 upside down. If L1 ranks the neurons rightly, this is worse than random and worse than L1.
# - *activation*: how strongly each neuron fires on calibration text, times the size of what it then writes. It looks
#   at data where L1 looks at weights alone. Lesson 03 takes it apart.

# %%
from course_utils.evaluation import paired, perplexity
from course_utils.texts import token_blocks

texts = {
    "speeches": token_blocks(tokenizer, "evaluation", domain="speeches", tokens=6144),
    "wiki": token_blocks(tokenizer, "evaluation", domain="wiki", tokens=3072),
}
calibration = token_blocks(tokenizer, "calibration", domain="speeches", tokens=16384)


def measure(model):
    return {domain: perplexity(model, blocks) for domain, blocks in texts.items()}


unpruned = measure(base)
for domain, score in unpruned.items():
    print(f"{domain:<9} {score}")

# %% [markdown]
# *Predict before you run:* at 20 %, is L1 better than random? By how much? And at 60 %? Write it down.
#
# This cell prunes and measures 48 models; it is the long one of the lesson.

# %%
RATIOS, SEEDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), range(5)

arms = {("L1", 0): l1}
arms["activation", 0] = neuron_importance(base, "activation", batches=calibration.batches())
arms["lowest L1 kept", 0] = [-scores for scores in l1]
arms |= {("random", seed): neuron_importance(base, "random", seed=seed) for seed in SEEDS}

results = {(criterion, seed, 0.0): unpruned for criterion, seed in arms}
for (criterion, seed), scores in tqdm(arms.items(), desc="arms"):
    for ratio in RATIOS:
        model = variant(base)
        prune_neurons(model, scores, ratio=ratio)
        results[criterion, seed, ratio] = measure(model)

curve = pd.DataFrame(
    {
        "criterion": criterion,
        "seed": seed,
        "ratio": ratio,
        "domain": domain,
        "bits/byte": score.bits_per_byte,
        "perplexity": score.perplexity,
        "interval": with_interval(score.perplexity, score.ci_low, score.ci_high),
    }
    for (criterion, seed, ratio), scores in results.items()
    for domain, score in scores.items()
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(15, 6), layout="constrained")
for ax, (domain, score) in zip(axes, unpruned.items(), strict=True):
    pruning_curve(
        curve[curve.domain == domain],
        y="bits/byte",
        x_label="MLP neurons removed",
        y_label="bits per byte (lower is better)",
        floors={"unpruned": score.bits_per_byte},
        title=domain,
        ax=ax,
    )
plt.show()

# %%
on_speeches = curve[(curve.domain == "speeches") & curve.ratio.isin((0.2, 0.4, 0.6))]
table = on_speeches[on_speeches.criterion != "random"].pivot(index="criterion", columns="ratio", values="interval")
spread = on_speeches[on_speeches.criterion == "random"].groupby("ratio").perplexity.agg(["mean", "std"])
table.loc["random, mean ± sd of 5"] = [f"{mean:.1f} ± {sd:.1f}" for mean, sd in spread.to_numpy()]
print(f"Perplexity on speeches (95 % interval); unpruned {unpruned['speeches'].perplexity:.1f}")
table.rename(columns="{:.0%} removed".format)

# %% [markdown]
# ### Does L1 beat random?
#
# Count, at each ratio, how many of the five random models an arm beats. A criterion that knows nothing beats all five
# once in six times by luck. The rows of a column share neurons and text, so six rows are not six proofs.


# %%
def place(criterion, ratio, domain):
    """How many of the random models have more bits per byte than this arm."""
    own = results[criterion, 0, ratio][domain].bits_per_byte
    beaten = sum(results["random", seed, ratio][domain].bits_per_byte > own for seed in SEEDS)
    return {0: "loses to all 5", len(SEEDS): "beats all 5"}.get(beaten, f"beats {beaten} of 5")


places = pd.DataFrame(
    {
        (domain, criterion): {f"{ratio:.0%}": place(criterion, ratio, domain) for ratio in RATIOS}
        for domain in texts
        for criterion in ("L1", "activation", "lowest L1 kept")
    }
).rename_axis("removed")
places

# %%
for domain in texts:
    upside_down = [
        ratio
        for ratio in RATIOS
        if results["lowest L1 kept", 0, ratio][domain].bits_per_byte < results["L1", 0, ratio][domain].bits_per_byte
    ]
    print(f"{domain:<9} L1 upside down does better than L1 at {len(upside_down)} of {len(RATIOS)} ratios")

# %% [markdown]
# The intervals of two models overlap because the *text* is a sample: hard speeches are hard for both. Both models read
# the same rows, so that part cancels in the difference. `paired` compares row by row.

# %%


def l1_against_random(ratio, domain="speeches"):
    """L1's bits per byte minus those of each random model, paired by rows of text."""
    rows = [paired(results["random", seed, ratio][domain], results["L1", 0, ratio][domain]) for seed in SEEDS]
    frame = pd.concat(rows)
    return frame[frame.metric == "bits_per_byte"].reset_index(drop=True).rename_axis("seed")


at_20 = l1_against_random(0.2)
at_20[["a", "b", "difference", "ci_low", "ci_high", "p"]].rename(columns={"a": "random", "b": "L1"}).round(4)

# %%
from course_utils.uncertainty import below_and_above


def against_random(frame):
    (better, worse), seeds = below_and_above(zip(frame.ci_low, frame.ci_high, strict=True)), len(frame)
    if better and worse:
        return f"better than {better} random models, worse than {worse} of {seeds}"
    if better or worse:
        return f"{'better' if better else 'worse'} than {better or worse} of {seeds} random models"
    return "not shown to differ from any random model"


for domain in texts:
    for ratio in (0.2, 0.4, 0.6):
        frame = l1_against_random(ratio, domain)
        print(f"{domain:<9} {ratio:.0%}: L1 is {against_random(frame)} (mean {frame.difference.mean():+.4f} bits/byte)")

# %% [markdown]
# Read this next to what you predicted. The verdicts are computed: with another model they may read differently.
#
# ### Where does the damage sit?
#
# Prune one block at a time, 40 % of its neurons, and leave the others whole. We will act on what we see, so this is
# measured on calibration text: **what chooses must not judge**.

# %%
choosing_text = calibration.input_ids[::4]  # every fourth row, so that many speeches take part
whole = perplexity(base, choosing_text).perplexity

alone = []
for block in tqdm(range(architecture.num_blocks), desc="blocks"):
    for (criterion, seed), scores in arms.items():
        if criterion in ("L1", "random"):
            model = variant(base)
            prune_neurons(model, scores, ratio=0.4, layers=[block])
            score = perplexity(model, choosing_text).perplexity
            alone.append({"criterion": criterion, "seed": seed, "block": block, "perplexity": score})
alone = pd.DataFrame(alone)

pruning_curve(
    alone,
    x="block",
    y="perplexity",
    x_label="the one block that is pruned",
    y_label="perplexity (lower is better)",
    x_percent=False,
    title=f"40 % of one block's neurons removed (unpruned: {whole:.1f})",
)
plt.show()

# %%
rise = alone[alone.criterion == "L1"].set_index("block").perplexity.div(whole).clip(lower=1).transform("log")
worst = int(rise.idxmax())
print(
    f"L1 in block {worst} alone raises log perplexity by {rise[worst]:.2f}, all the others together by "
    f"{rise.drop(worst).sum():.2f}: {rise[worst] / rise.sum():.0%} of the damage sits there."
)

# %% [markdown]
# *Predict before you run:* we spare that block and prune all others by 40 %. Does L1 beat random now? The text that
# judges is the evaluation text again.

# %%
others = [block for block in range(architecture.num_blocks) if block != worst]
spared = {}
for (criterion, seed), scores in arms.items():
    if criterion in ("L1", "random"):
        model = variant(base)
        prune_neurons(model, scores, ratio=0.4, layers=others)
        spared[criterion, seed] = perplexity(model, texts["speeches"])

pd.DataFrame(
    {
        "L1": {
            "all blocks": results["L1", 0, 0.4]["speeches"].perplexity,
            f"block {worst} spared": spared["L1", 0].perplexity,
        },
        "random, mean of 5": {
            "all blocks": sum(results["random", seed, 0.4]["speeches"].perplexity for seed in SEEDS) / len(SEEDS),
            f"block {worst} spared": sum(spared["random", seed].perplexity for seed in SEEDS) / len(SEEDS),
        },
    }
).round(1)

# %%
rows = pd.concat([paired(spared["random", seed], spared["L1", 0]) for seed in SEEDS])
rows = rows[rows.metric == "bits_per_byte"]
print(f"40 % of all blocks:       L1 is {against_random(l1_against_random(0.4))}.")
print(f"40 % of all but block {worst}: L1 is {against_random(rows)} (mean {rows.difference.mean():+.4f} bits/byte).")

# %% [markdown]
# One number for the whole model hides such a thing. Lesson 03 asks the same of a Llama, and goes on to *why*.
#
# ### At home and abroad
#
# The model was trained on speeches. Does the same cut cost more on text of another kind?

# %%
cost = curve[curve.ratio.isin((0.2, 0.4, 0.6)) & (curve.criterion != "lowest L1 kept")].copy()
cost["cost"] = [100 * (row["bits/byte"] / unpruned[row["domain"]].bits_per_byte - 1) for _, row in cost.iterrows()]
cost = cost.groupby(["criterion", "domain", "ratio"]).cost.mean().unstack(["domain", "ratio"])
print("Bits per byte above the unpruned model, in percent (random: mean of 5)")
cost.rename(columns="{:.0%}".format, level="ratio").round(1)

# %%
for criterion in cost.index:
    home, abroad = cost.loc[criterion, ("speeches", 0.4)], cost.loc[criterion, ("wiki", 0.4)]
    print(f"{criterion:<11} at 40 %: {home:+.1f} % on speeches, {abroad:+.1f} % on wiki")

# %% [markdown]
# ## What it writes
#
# The same prompts, the same settings (greedy, 20 new tokens), four models.

# %%
prompts = ("The people of the United States", "I recommend to the Congress", "The peace of the world")
models = {0.0: base}
for ratio in (0.2, 0.4, 0.6):
    models[ratio] = variant(base)
    prune_neurons(models[ratio], l1, ratio=ratio)


def complete(model, prompt):
    ids = tokenizer(prompt, return_tensors="pt").to(device)
    generated = model.generate(**ids, max_new_tokens=20, do_sample=False)
    return " ".join(tokenizer.decode(generated[0], skip_special_tokens=True).split())


completions = {(prompt, ratio): complete(model, prompt) for prompt in prompts for ratio, model in models.items()}
for prompt in prompts:
    print(prompt)
    for ratio in models:
        print(f"{ratio:>6.0%}  …{completions[prompt, ratio].removeprefix(prompt)}")
    print()

# %%
for ratio in (0.2, 0.4, 0.6):
    same = sum(completions[prompt, ratio] == completions[prompt, 0.0] for prompt in prompts)
    more = results["L1", 0, ratio]["speeches"].bits_per_byte / unpruned["speeches"].bits_per_byte - 1
    print(f"{ratio:.0%} removed: {same} of {len(prompts)} completions unchanged, {more:+.1%} bits per byte")

# %% [markdown]
# **A completion proves nothing by itself.** Greedy text changes completely when one token flips, and can look fine when
# the model is worse everywhere. Read samples to get an idea; decide by numbers with intervals.

# %% [markdown]
# ## What it costs and buys
#
# Speed is measured with all models taking turns, and stands beside its **ceiling**: what the removed FLOPs and bytes
# could give at most. Prefill reads a prompt; decode writes one token after the other. Which neurons went doesn't matter
# for size and speed; it does for quality, so the last rows show another criterion's choice.

# %%
from pathlib import Path

from course_utils.benchmarking import decode_ceiling, measure_speed, speedup_text, speedup_verdict

speed = measure_speed(
    {f"{ratio:.0%}": model for ratio, model in models.items()}, prompt_tokens=128, new_tokens=32, rounds=9
).set_index(["model", "phase"])


def file_size(model):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return sum(file.stat().st_size for file in save_pruned(model, tokenizer, Path(folder)).glob("*.safetensors"))


pd.DataFrame(
    {
        f"{ratio:.0%} removed": {
            "parameters": f"{model.num_parameters():,}",
            "file (MB, float32)": f"{file_size(model) / 1e6:.1f}",
            "prefill, × unpruned": speedup_text(speed.loc[f"{ratio:.0%}", "prefill"]),
            "decode, × unpruned": speedup_text(speed.loc[f"{ratio:.0%}", "decode"]),
            "bits/byte, speeches": f"{results['L1', 0, ratio]['speeches'].bits_per_byte:.3f}",
            "bits/byte, wiki": f"{results['L1', 0, ratio]['wiki'].bits_per_byte:.3f}",
            "the same cut by activation: speeches": f"{results['activation', 0, ratio]['speeches'].bits_per_byte:.3f}",
            "the same cut by activation: wiki": f"{results['activation', 0, ratio]['wiki'].bits_per_byte:.3f}",
        }
        for ratio, model in models.items()
    }
)

# %%
for phase in ("prefill", "decode"):
    for ratio in (0.2, 0.4, 0.6):
        print(f"{phase:<8} {ratio:.0%} removed: {speedup_verdict(speed.loc[f'{ratio:.0%}', phase])}")

print(
    f"\ndistilGPT2 at 20 %: decoding can become {decode_ceiling(distilgpt2, distilgpt2_pruned):.3f} × as fast at most"
)

# %% [markdown]
# Pruning the MLPs doesn't touch the rest: norms, attention, the head, Python itself. The smaller the model, the larger
# this rest, and the further a gain may stay below its ceiling. Other programs on the machine widen the intervals.
# Lesson 10 looks at speed in earnest.

# %% [markdown]
# ## Exercises
#
# The lesson showed these steps for GPT-2's `Conv1D`. Most other models use `nn.Linear`: do them again there.

# %%
from course_utils.exercises.lesson_01 import check_axes, check_l1_scores, check_pruned_parameters, check_slice_mlp

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
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
# ### Exercise 2 · ●○○ · 5 minutes
#
# Write the L1 score of the neurons of a layer, one number for each output. The layer is an `nn.Linear` or a `Conv1D`.
#
# <details><summary>Hint</summary>
#
# `isinstance(layer, Conv1D)` tells them apart. Their shapes don't: a matrix may be square.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def l1_scores_of(layer):
    inputs = 0 if isinstance(layer, Conv1D) else 1  # Conv1D stores [in, out], nn.Linear [out, in]
    return layer.weight.abs().sum(dim=inputs)


# END SOLUTION
# BEGIN STUB
# def l1_scores_of(layer):
#     ...  # your code
# END STUB
check_l1_scores(l1_scores_of)

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# Cut an MLP of two `nn.Linear` layers, `proj(gelu(fc(x)))`. Return the four tensors of the smaller one: `fc.weight`,
# `fc.bias`, `proj.weight`, `proj.bias`. `keep` holds the neurons that stay, in any order. Leave the given layers alone.
#
# <details><summary>Hint</summary>
#
# Exercise 1 has the axes. Three tensors are indexed with `keep`, one isn't.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def slice_mlp(fc, proj, keep):
    return fc.weight[keep], fc.bias[keep], proj.weight[:, keep], proj.bias


# END SOLUTION
# BEGIN STUB
# def slice_mlp(fc, proj, keep):
#     ...  # your code
# END STUB
check_slice_mlp(slice_mlp)

# %% [markdown]
# ### Exercise 4 · ●●○ · 15 minutes
#
# Predict how many parameters a GPT-2 of a given configuration has after width pruning, with arithmetic alone. As above,
# a ratio removes `floor(ratio × width)` neurons, and the head shares its weights with the token embedding.
#
# <details><summary>Hint</summary>
#
# Count the parts of the table above: token and position embeddings; in each block two norms (weight and bias), the
# attention (`c_attn`: hidden → 3 × hidden, `c_proj`: hidden → hidden, both with bias) and the MLP; one more norm at the
# end. The width is `config.n_inner`, or 4 × hidden where that is None.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def pruned_parameters(config, ratio):
    hidden, width = config.n_embd, config.n_inner or 4 * config.n_embd
    width -= int(ratio * width)
    embeddings = (config.vocab_size + config.n_positions) * hidden
    attention = (hidden + 1) * 3 * hidden + (hidden + 1) * hidden
    mlp = (hidden + 1) * width + (width + 1) * hidden
    norm = 2 * hidden
    return embeddings + config.n_layer * (2 * norm + attention + mlp) + norm


# END SOLUTION
# BEGIN STUB
# def pruned_parameters(config, ratio):
#     ...  # your code
# END STUB
check_pruned_parameters(pruned_parameters)

# %% [markdown]
# ## Take-aways
#
# - A neuron of a dense MLP is one column of `c_fc`, one bias entry and one row of `c_proj`. All three go together.
# - *Pruned equals masked* proves the surgery. *Reload equals saved* proves the checkpoint. Perplexity proves neither.
# - A share of the neurons is not a share of the model: 20 % of distilGPT2's neurons are 6.91 % of its parameters.
# - A criterion is worth what it gains over random neurons, at the same ratio, on text that chose nothing. The answer
#   depends on model, ratio and domain, so run the control every time.
# - Ask *where* the damage sits: one block may carry most of it. What chooses must not judge.
# - A speed-up is measured, never assumed, and stands beside its ceiling.
#
# ## References
#
# - Radford et al. 2019, *Language Models are Unsupervised Multitask Learners* (GPT-2); Sanh et al. 2019, *DistilBERT*,
#   arXiv 1910.01108 (the recipe behind distilGPT2)
# - Li et al. 2016, *Pruning Filters for Efficient ConvNets*, arXiv 1608.08710: structured pruning by the L1 norm
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea
# - Sun et al. 2023, *A Simple and Effective Pruning Approach for Large Language Models* (Wanda), arXiv 2306.11695
#
# **Next:** in lesson 02 we carry this recipe over to a Llama, where every neuron has two rows instead of one, and watch
# the model collapse.
