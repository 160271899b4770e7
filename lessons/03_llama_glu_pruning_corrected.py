# ---
# jupyter:
#   course:
#     title: "GLU pruning done right, and what a weight can't tell you"
#     minutes: 75
#     hardware: cpu
#     prerequisites: lesson 01 (pruned equals masked, the random control), lesson 02 (why gate, up and down share one index set)
#     assets: [smollm2, benchmarks, texts, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - how to prune a GLU correctly: one score a pair, one index set, three matrices, and a checkpoint that plain
#   transformers loads
# - that a correct cut isn't a good cut: seven criteria against random neurons, with intervals
# - how to look for the cause when a sensible idea fails, and how to tell an explanation from a story
# - a criterion that looks at data: how it works, how much text it needs, and what the wrong text costs
# - how to read a benchmark score next to the floors that a broken model reaches, too
# - what widths the hardware likes, and what all this buys in size and speed
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct; in the `hub` profile the same code runs on Llama-3.2-1B.
# The saved outputs come from the `embedded` profile on a machine with two CPU cores; the next table says which.

# %% tags=["install"]

# %%
import itertools
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from course_utils.plotting import heatmap, log_ticks, pruning_curve, show_tensor, style
from course_utils.session import start

session = start("03")
style()

# %% [markdown]
# ## One score for a pair
#
# A neuron of a GLU is a row of `gate`, the same row of `up` and the same column of `down` (lesson 02). So it gets **one**
# score, made from both of its rows, and it stays or goes as a whole.
#
# The score that we start with is the **peak-to-peak magnitude**: the largest weight of a row plus the size of its
# smallest one, max + |min|. Martra (2024) introduced it for Llama as "maximum absolute weight". Here it is on a GLU with
# 5 inputs, 5 neurons and 5 outputs.
#
# *Predict before you run:* which two neurons would `gate` alone drop? Which two would `up` alone? And the pair?

# %%
gate = torch.tensor([[2, -1, 0, 1, 1], [0, 1, -1, 0, 1], [3, -3, 1, 0, -1], [1, 0, 0, -1, 0], [-2, 2, 1, 1, 0.0]])
up = torch.tensor([[0, 1, 0, 0, -1], [2, -3, 1, 0, 0], [1, 0, -1, 0, 0], [1, 1, -1, 0, 0], [0, -2, 1, 2, -1.0]])
down = torch.tensor([[1, 0, -1, 2, 0], [0, 2, 1, -1, 1], [-1, 1, 0, 0, 2], [2, -1, 1, 1, 0], [0, 1, -2, 0, 1.0]])


def peak_to_peak(rows):
    """The largest weight plus the size of the smallest one, for each row: [neurons, inputs] -> [neurons]."""
    return rows.amax(dim=1) + rows.amin(dim=1).abs()


scores = peak_to_peak(gate) + peak_to_peak(up)
keep = scores.topk(3).indices.sort().values
drop = sorted(set(range(5)) - set(keep.tolist()))

pd.DataFrame({"gate": peak_to_peak(gate), "up": peak_to_peak(up), "pair": scores}).rename_axis("neuron").astype(int)

# %%
for name, some in {"gate alone": peak_to_peak(gate), "up alone": peak_to_peak(up), "the pair": scores}.items():
    print(f"{name:<10} drops {sorted(some.sort(stable=True).indices[:2].tolist())}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(15, 5.8), layout="constrained")
show_tensor(gate, title="gate", x_label="input", y_label="neuron", removed_rows=drop, fmt=".0f", ax=axes[0])
show_tensor(up, title="up", x_label="input", y_label="neuron", removed_rows=drop, fmt=".0f", ax=axes[1])
show_tensor(down, title="down", x_label="neuron", y_label="output", removed_columns=drop, fmt=".0f", ax=axes[2])
plt.show()

# %% [markdown]
# ### The real model
#
# Now all MLPs of a real Llama, in float32, because this part is about exactness. `describe` gives us the rows of gate
# and up as [neurons, hidden], whatever the model's family calls them.

# %%
from course_utils.architectures import describe
from course_utils.models import load_model
from course_utils.width import neuron_importance, prune_neurons, strongest

exact, tokenizer = load_model("llama")
mlps = describe(exact).mlps
pair_scores = [sum(peak_to_peak(rows) for rows in mlp.rows) for mlp in mlps]

for ours, theirs in zip(pair_scores, neuron_importance(exact, "peak_to_peak"), strict=True):
    torch.testing.assert_close(ours, theirs)
print(f"{exact.config.name_or_path}: {len(mlps)} MLPs of {mlps[0].width:,} neurons, scores equal those of course_utils")

# %% [markdown]
# ### Pruned equals masked
#
# The test of lesson 01, for a GLU. First we *silence* the weakest 20 % of each block: their columns of `down` become
# zero. Then we cut the same neurons out. The second step may not change anything.

# %%
RATIO = 0.2
prompt = tokenizer("The Congress shall have power to lay and collect taxes", return_tensors="pt").to(exact.device)


@torch.no_grad()
def logits(model):
    return model(**prompt).logits


kept = [strongest(scores, RATIO) for scores in pair_scores]
by_hand = [mlps[0].rows[0][kept[0]], mlps[0].rows[1][kept[0]], mlps[0].columns[:, kept[0]]]  # block 0: three slices

whole = logits(exact)
for mlp, stay in zip(mlps, kept, strict=True):
    silent = torch.ones(mlp.width, dtype=torch.bool, device=stay.device)
    silent[stay] = False
    mlp.columns[:, silent] = 0
masked = logits(exact)
report = prune_neurons(exact, pair_scores, ratio=RATIO)
pruned = logits(exact)

difference, largest = (pruned - masked).abs().max(), masked.abs().max()
print(f"the largest logit is {largest:.1f}")
print(f"pruned against masked: {difference:.1e}")
print(f"pruned against whole:  {(pruned - whole).abs().max():.1e}")
assert difference < 1e-5 * max(1, largest)
for ours, theirs in zip(by_hand, (*mlps[0].rows, mlps[0].columns), strict=True):
    assert torch.equal(ours, theirs)
report

# %% [markdown]
# One index set, three slices, and `prune_neurons` did to block 0 what we would have done by hand. All blocks now have
# the same width, so one number in the configuration says it all, and the checkpoint is an ordinary Llama.

# %%
from transformers import AutoModelForCausalLM

from course_utils.checkpoints import save_pruned

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    save_pruned(exact, tokenizer, folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder).to(exact.device).eval()

assert torch.equal(logits(reloaded), pruned)
print(f"{type(reloaded).__name__}, intermediate_size = {reloaded.config.intermediate_size}: logits equal, bit for bit")
del exact, reloaded, mlps

# %% [markdown]
# ## A correct cut isn't a good cut
#
# The surgery is exact. Now the question that it leaves open: **which** neurons should go? The candidates:
#
# | criterion | a neuron's score | looks at |
# |---|---|---|
# | `l1` | sum of the magnitudes of both rows | weights |
# | `l2` | Euclidean norms of both rows | weights |
# | `variance` | variance of both rows | weights |
# | `product` | L1 of the gate row × L1 of the up row | weights |
# | `peak_to_peak` | max + \|min\| of both rows | weights |
# | `activation` | how strongly the neuron fires on real text × the size of its column of `down` | weights and data |
# | `random` | noise, 5 seeds | nothing |
#
# The last row is the control. A criterion that doesn't beat it knows nothing about this model.
#
# **Text.** We evaluate on speeches that no step uses to choose neurons. The rows come from all over the split, so that
# one speech doesn't speak for all. The activation criterion reads other speeches, the *calibration* split.

# %%
from course_utils.evaluation import paired, perplexity, perplexity_ratio
from course_utils.models import variant
from course_utils.session import safe_dtype
from course_utils.texts import token_blocks

LENGTH = 128
POOL = {"speeches": 100_000, "wiki": 10_240, "stories": 2_560}  # tokens of each split to draw rows from


def sample(domain, split, rows):
    """Rows of LENGTH tokens, drawn at random from many documents of a split; the same ones every time."""
    blocks = token_blocks(tokenizer, split, domain=domain, tokens=POOL[domain], length=LENGTH)
    return blocks.sample(rows, seed=session.seed)


dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, _ = load_model("llama", dtype=dtype)
architecture = describe(base)
blocks = range(architecture.num_blocks)
width = architecture.intermediate_sizes[0]

text = sample("speeches", "evaluation", rows=10)
calibration = sample("speeches", "calibration", rows=64)
unpruned = perplexity(base, text)
print(f"{base.config.name_or_path}: {len(blocks)} blocks of {width:,} neurons")
print(f"unpruned: {unpruned}")

# %% [markdown]
# *Predict before you run:* we remove 10 %, 20 % and 40 % of the neurons. Order the seven criteria. Where in your order
# does `random` stand?
#
# Each of the models below is a `variant`: it shares every weight with `base`, except those that the cut makes anew.

# %%
# 33 models × 1,280 tokens: the longest cell of the lesson.
RATIOS, SEEDS = (0.1, 0.2, 0.4), range(5)
WEIGHT_ONLY = ("l1", "l2", "variance", "product", "peak_to_peak")


def pruned_copy(scores, ratio, **options):
    model = variant(base)
    prune_neurons(model, scores, ratio=ratio, **options)
    return model


importance = {(criterion, 0): neuron_importance(base, criterion) for criterion in WEIGHT_ONLY}
importance["activation", 0] = neuron_importance(base, "activation", batches=calibration.batches(8))
importance |= {("random", seed): neuron_importance(base, "random", seed=seed) for seed in SEEDS}

results = {}
for (criterion, seed), scores in tqdm(importance.items(), desc="criteria"):
    for ratio in RATIOS:
        results[criterion, seed, ratio] = perplexity(pruned_copy(scores, ratio), text)

# %%
from course_utils.reports import model_size, shown, with_interval
from course_utils.uncertainty import below_and_above, geometric_mean, verdict


def at_random(ratio):
    """Geometric mean of the random models' perplexities, and the factor of one standard deviation."""
    return geometric_mean(results["random", seed, ratio].perplexity for seed in SEEDS)


criteria = (*WEIGHT_ONLY, "activation")
table = pd.DataFrame(
    {
        f"{ratio:.0%} removed": {name: shown(results[name, 0, ratio].perplexity) for name in criteria}
        | {"random": " ×/÷ ".join(map(shown, at_random(ratio)))}
        for ratio in RATIOS
    }
)
print(f"Perplexity on speeches; unpruned {unpruned.perplexity:.1f}. Random: geometric mean and standard deviation of 5")
table

# %%
bits = pd.DataFrame(
    {
        f"{ratio:.0%} removed": {name: f"{results[name, 0, ratio].bits_per_byte:.2f}" for name in criteria}
        | {
            "random": "{:.2f} ± {:.2f}".format(
                np.mean(own := [results["random", seed, ratio].bits_per_byte for seed in SEEDS]), np.std(own, ddof=1)
            )
        }
        for ratio in RATIOS
    }
)
print(f"The same in bits per byte; unpruned {unpruned.bits_per_byte:.2f}. Random: mean ± sd of 5")
bits

# %%
curve = pd.DataFrame(
    {
        "criterion": criterion,
        "ratio": ratio,
        "perplexity": score.perplexity,
        "ci_low": score.ci_low,
        "ci_high": score.ci_high,
    }
    for (criterion, seed, ratio), score in results.items()
)
ax = pruning_curve(
    curve,
    y="perplexity",
    x_label="MLP neurons removed",
    y_label="perplexity (lower is better)",
    floors={"unpruned": unpruned.perplexity, "uniform guess": architecture.vocab_size},
    log_y=True,
    title=f"Seven criteria on {base.config.name_or_path}",
    ax=plt.subplots(figsize=(13, 7), layout="constrained")[1],
)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="criterion")
ax.set_xticks(RATIOS)
plt.show()

# %% [markdown]
# ### The verdict
#
# Perplexities of two models on the same rows can be compared row by row (`paired`); what makes a row hard for both
# cancels. First some interesting pairs at 10 %, in bits per byte. Below zero means that the second one is better.


# %%
def bits_difference(a, b):
    """Bits per byte of b minus those of a, paired by rows, with a 95 % interval."""
    frame = paired(a, b)
    return frame[frame.metric == "bits_per_byte"].iloc[0]


def judged(row):
    """What the interval of a difference says about the second model."""
    return verdict(row.ci_low, row.ci_high, below="better", above="worse", neither="not to be told apart")


def told(row):
    return f"{row.difference:+.3f} bits/byte ({row.ci_low:+.3f} to {row.ci_high:+.3f}), {judged(row)}"


PAIRS = (
    ("random", "l1"),
    ("random", "peak_to_peak"),
    ("l1", "peak_to_peak"),
    ("random", "activation"),
    ("peak_to_peak", "activation"),
)
rows = []
for a, b in PAIRS:
    row = bits_difference(results[a, 0, 0.1], results[b, 0, 0.1])
    rows.append({"pair": f"{a} → {b}", "difference": row.difference, "ci_low": row.ci_low, "ci_high": row.ci_high})
pd.DataFrame(rows).set_index("pair").round(3)

# %% [markdown]
# One random model could be a lucky or an unlucky one. So the verdict is against all five, at every ratio: a criterion
# *loses to random* if it is worse than each of the five with an interval that excludes zero, and *beats random* if it is
# better than each.


# %%
def against_random(score, ratio):
    rows = [bits_difference(results["random", seed, ratio], score) for seed in SEEDS]
    better, worse = below_and_above((row.ci_low, row.ci_high) for row in rows)
    if worse == len(rows):
        return "loses to random"
    if better == len(rows):
        return "beats random"
    return f"better than {better}, worse than {worse} of 5"


verdicts = pd.DataFrame(
    {
        f"{ratio:.0%} removed": {name: against_random(results[name, 0, ratio], ratio) for name in criteria}
        for ratio in RATIOS
    }
)
verdicts

# %%
weight_only = verdicts.loc[list(WEIGHT_ONLY)].to_numpy().ravel()
lost, won = (weight_only == "loses to random").sum(), (weight_only == "beats random").sum()
print(
    f"{base.config.name_or_path}: of {len(weight_only)} weight-only results, {lost} lose to random and {won} beat it."
)
if lost == len(weight_only):
    print("Weight-only criteria lose to random here, without an exception.")
elif lost > len(weight_only) / 2:
    print("Weight-only criteria mostly lose to random here.")
elif won > len(weight_only) / 2:
    print("Weight-only criteria mostly beat random here.")
else:
    print("Weight-only criteria and random are mixed here.")
print(
    "The activation criterion:",
    ", ".join(f"{ratio} {verdict}" for ratio, verdict in verdicts.loc["activation"].items()),
)
for name, ratio in (("l1", 0.1), ("peak_to_peak", 0.1), ("activation", 0.1)):
    factor = results[name, 0, ratio].perplexity / at_random(ratio)[0]
    print(f"at {ratio:.0%}, {name} has {shown(factor)} × the perplexity of random")

# %% [markdown]
# ### Beside it: published figures for Llama-3.2-1B
#
# Martra (arXiv 2512.22671, with code and results) compared criteria on Llama-3.2-1B at 10 %, by LAMBADA perplexity, and chose
# peak-to-peak. His figures, quoted, next to ours. The texts differ, so compare the *ratios* to the unpruned model, and
# above all the order.

# %%
quoted = {"peak_to_peak": 17.9, "variance": 407, "l2": 551, "product": 1523}  # unpruned 5.4
beside = pd.DataFrame(
    {
        "Llama-3.2-1B, published": {name: value / 5.4 for name, value in quoted.items()},
        base.config.name_or_path: {name: results[name, 0, 0.1].perplexity / unpruned.perplexity for name in quoted},
    }
)
agreement = beside.corr(method="spearman").iloc[0, 1]
print(f"Perplexity at 10 %, × unpruned. Rank correlation of the two columns: {agreement:.2f}")
print(f"Random here: {shown(at_random(0.1)[0] / unpruned.perplexity)}. For Llama-3.2-1B no random control is quoted.")
beside.map(shown)

# %% [markdown]
# Peak-to-peak being the best *of these four* is one statement. Being better than nothing is another, and it takes the
# random row to make it.

# %% [markdown]
# ## Looking for the cause
#
# A neuron with large weights should matter more than a random one. If that fails, and by so much, there must be a reason.
# We'll look for it as in any other debugging: first *where*, then *what*, then an explanation that predicts something.
#
# ### Where: one block at a time
#
# Remove 10 % of one block only, by L1 and at random, and leave the others whole.
#
# *Predict before you run:* is the damage spread evenly? If not, is it at the beginning or at the end?

# %%
# 2 × the number of blocks, × 384 tokens
few = text[:3]
unpruned_few = perplexity(base, few)

damage = pd.DataFrame(index=blocks, columns=["l1", "random"], dtype=float)  # nats a token above the unpruned model
for block in tqdm(blocks, desc="blocks"):
    for criterion in damage:
        model = pruned_copy(importance[criterion, 0], 0.1, layers=[block])
        damage.loc[block, criterion] = perplexity(model, few).nll - unpruned_few.nll

# %%
figure, ax = plt.subplots(figsize=(14, 5), layout="constrained")
for shift, (criterion, colour) in zip((-0.2, 0.2), {"l1": "C0", "random": "0.45"}.items(), strict=True):
    ax.bar(
        np.array(blocks) + shift,
        np.exp(damage[criterion]) - 1,
        width=0.4,
        bottom=1,
        color=colour,
        edgecolor="none",
        label=criterion,
    )
ax.set_yscale("log")
log_ticks(ax.yaxis)
ax.set_xlim(-0.7, len(blocks) - 0.3)
ax.grid(axis="x", visible=False)
ax.set_xlabel("the only block that is pruned")
ax.set_ylabel("perplexity, × unpruned")
ax.set_title("Damage of 10 % of the neurons of a single block")
ax.legend(title="criterion")
plt.show()

# %%
worst = int(damage.l1.idxmax())
together = results["l1", 0, 0.1].row_nll[: len(few)].sum() / unpruned_few.tokens - unpruned_few.nll  # on the same rows
total = damage.sum()
print(
    f"worst block for L1: {worst}, × {np.exp(damage.l1[worst]):.1f}; random in the same block: × {np.exp(damage.random[worst]):.2f}"
)
print(f"blocks where L1 does more damage than random: {(damage.l1 > damage.random).sum()} of {len(blocks)}")
print(f"share of the single-block damages (in nats) in block {worst}: {damage.l1[worst] / total.l1:.0%}")
print(f"                                           in blocks 0–4: {damage.l1[:5].sum() / total.l1:.0%}")
print(f"all single-block damages added up: {total.l1:.2f} nats; all blocks pruned at once: {together:.2f} nats")

# %% [markdown]
# ### What: try to repair it
#
# Each line below is a guess about the cause, turned into an experiment: if the guess is right, the change should bring L1
# back to the level of random or better.
#
# - *Early blocks are special.* Leave block 0, or blocks 0–4, unpruned. Then fewer neurons go, so random gets the same
#   favour.
# - *L1 is the wrong way round.* Keep the neurons with the **lowest** L1.
# - *A handful of neurons with huge activations carries the model.* Protect the five neurons with the largest activations
#   of the whole model.
# - *L1 removes neurons that contribute a lot.* Protect the 5 % of each block with the highest activation score. (This
#   peeks at the answer of another criterion. It is a diagnosis, not a method.)
#
# To know about activations, one pass over 1,024 calibration tokens. It notes, for each neuron: how often its gate is
# open, how large gate and up are, and the largest product of the two.


# %%
@torch.no_grad()
def look_inside(rows):
    """Statistics of each block's MLP over [rows, length] token ids, one dict of tensors a block."""
    found = []

    def listen(mlp):
        def hook(module, inputs):
            x = inputs[0].flatten(0, -2).float()  # [tokens, hidden]
            gate, up = (x @ weight.float().T for weight in mlp.rows)  # [tokens, neurons]
            opened = module.act_fn(gate)
            found.append(
                {
                    "input": x.square().mean(dim=0).sqrt(),  # [hidden], root mean square
                    "open": (gate > 0).float().mean(dim=0),  # share of tokens
                    "gate": opened.square().mean(dim=0).sqrt(),
                    "up": up.square().mean(dim=0).sqrt(),
                    "peak": (opened * up).abs().amax(dim=0),
                }
            )

        return mlp.owner.register_forward_pre_hook(hook)

    hooks = [listen(mlp) for mlp in architecture.mlps]
    try:
        base.base_model(rows.to(base.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


inside = look_inside(calibration.input_ids[:8])
peaks = torch.cat([found["peak"] for found in inside])
print(
    f"largest activations: {', '.join(f'{value:.0f}' for value in peaks.topk(5).values)}; median peak {peaks.median():.2f}"
)


# %%
def protect(scores, chosen):
    """Scores with some neurons lifted above all others; chosen: a bool tensor [neurons] a block."""
    return [torch.where(some, one.max() + 1, one) for one, some in zip(scores, chosen, strict=True)]


l1, activation = importance["l1", 0], importance["activation", 0]
five = [found["peak"] >= peaks.topk(5).values[-1] for found in inside]
top = [scores >= scores.quantile(0.95) for scores in activation]
gone = [scores.sort(stable=True).indices[: int(0.1 * width)] for scores in l1]
hit = sum(int(some[index].sum()) for some, index in zip(five, gone, strict=True))
print(f"of the five largest activations, L1 at 10 % removes {hit}")

GUESSES = {
    "L1, without block 0": (l1, {"layers": blocks[1:]}),
    "L1, without blocks 0–4": (l1, {"layers": blocks[5:]}),
    "lowest L1 kept": ([-scores for scores in l1], {}),
    "L1, five largest activations protected": (protect(l1, five), {}),
    "L1, top 5 % contributors protected": (protect(l1, top), {}),
    "random, without block 0": (importance["random", 0], {"layers": blocks[1:]}),
    "random, without blocks 0–4": (importance["random", 0], {"layers": blocks[5:]}),
}
repaired = {"L1": results["l1", 0, 0.1], "random": results["random", 0, 0.1]}
for name, (scores, options) in tqdm(GUESSES.items(), desc="guesses"):
    repaired[name] = perplexity(pruned_copy(scores, 0.1, **options), text)

harm = repaired["L1"].nll - unpruned.nll
pd.DataFrame(
    {
        name: {
            "perplexity": shown(score.perplexity),
            "L1's damage gone, % of nats": f"{100 * (1 - (score.nll - unpruned.nll) / harm):.0f}",
        }
        for name, score in repaired.items()
    }
).T

# %%
for name, control in {
    "L1": "random",
    "L1, without block 0": "random, without block 0",
    "L1, without blocks 0–4": "random, without blocks 0–4",
    "lowest L1 kept": "random",
    "L1, five largest activations protected": "random",
    "L1, top 5 % contributors protected": "random",
}.items():
    against = judged(bits_difference(repaired[control], repaired[name]))
    factor, _, _ = perplexity_ratio(repaired[name], repaired[control])
    print(
        f"{name}: {against} than {control}".replace("apart than", "apart from") + f" ({shown(factor)} × its perplexity)"
    )

# %% [markdown]
# Read the lines one by one. A change that lowers the perplexity a lot isn't yet the cause. The cause is found when the
# damage is *gone*, down to random. Which line comes nearest to that?

# %% [markdown]
# ### What L1 throws away
#
# The activation score of a neuron is the size of what it adds to the residual stream. Squared and divided by the sum
# over the block, it is the neuron's share of all contributions. Random removal of 10 % loses 10 % of them, on average. And
# the 10 % with the lowest L1?

# %%
from scipy.stats import spearmanr


def lost_share(scores, contributions, ratio=0.1):
    """Share of the squared contributions that is removed with the lowest scores."""
    removed = scores.sort(stable=True).indices[: int(ratio * len(scores))]
    return (contributions[removed].square().sum() / contributions.square().sum()).item()


thrown = pd.DataFrame(
    {
        name: [lost_share(*pair) for pair in zip(importance[name, 0], activation, strict=True)]
        for name in ("l1", "peak_to_peak")
    }
)

figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), layout="constrained")
low = l1[worst] <= l1[worst].sort().values[int(0.1 * width) - 1]
for chosen, colour, name in ((~low, "0.7", "kept"), (low, "C3", "removed: the 10 % with the lowest L1")):
    left.scatter(l1[worst][chosen].cpu(), activation[worst][chosen].cpu(), s=12, color=colour, label=name)
left.set_yscale("log")
left.set_ylim(top=4 * activation[worst].max().item())  # room for the legend
log_ticks(left.yaxis)
left.set_xlabel("L1 score")
left.set_ylabel("activation score (contribution)")
left.set_title(f"The neurons of block {worst}")
left.legend(loc="upper right")
for name, colour, marker in (("l1", "C0", "o"), ("peak_to_peak", "C4", "v")):
    right.plot(blocks, 100 * thrown[name], color=colour, marker=marker, label=name)
right.axhline(10, color="0.45", linestyle=":", label="random, expected")
right.set_xlabel("block")
right.set_ylabel("contributions lost with 10 % of the neurons, %")
right.set_ylim(bottom=0)
right.set_title("What is thrown away")
right.legend()
plt.show()

# %%
agreement = [spearmanr(a.cpu(), b.cpu()).statistic for a, b in zip(l1, activation, strict=True)]
opening = [spearmanr(a.cpu(), found["open"].cpu()).statistic for a, found in zip(l1, inside, strict=True)]
print(f"block {worst}: the 10 % with the lowest L1 make {thrown.l1[worst]:.0%} of the contributions")
print(f"blocks where L1 throws away more than random is expected to: {(thrown.l1 > 0.1).sum()} of {len(blocks)}")
for what, values in {"contribution": agreement, "open gate": opening}.items():
    negative = sum(value < 0 for value in values)
    print(
        f"rank correlation of L1 and {what}: median of blocks {np.median(values):+.2f}, negative in {negative} of {len(blocks)}"
    )
print(f"rank correlation of L1 and contribution in block {worst}: {agreement[worst]:+.2f}")

# %% [markdown]
# ### Why: which piece of information is missing?
#
# A neuron's contribution is made of four things: the weights, the input that meets them, the gate, and the column of
# `down`. L1 knows only the first. So we hand out the others one by one, and see when the score becomes useful:
#
# 1. **input scale**: the hidden channels are not equally large (RMSNorm has a weight for each). Multiply each weight by
#    the size of its input before the norm is taken, L1 or L2.
# 2. **up**: measure how large the up projection really is, × the column's norm. The gate is ignored.
# 3. **gate**: measure how far the gate opens (after SiLU), × the column's norm. Up is ignored.
# 4. **both**: the product of the two, token by token, × the column's norm. This is the activation criterion.
#
# One more line is a test of the explanation itself. If open gates are what L1 misses, then L1 **times the share of tokens
# on which the gate is open** must be better than L1.
#
# *Predict before you run:* which of them gets below random first?

# %%
columns = [mlp.columns.float().norm(dim=0) for mlp in architecture.mlps]
scaled = [
    [rows.float().abs() * found["input"] for rows in mlp.rows]
    for mlp, found in zip(architecture.mlps, inside, strict=True)
]
LADDER = {
    "input scale, L1": [sum(rows.sum(dim=1) for rows in pair) for pair in scaled],
    "input scale, L2": [sum(rows.norm(dim=1) for rows in pair) for pair in scaled],
    "L1 × open share": [scores * found["open"] for scores, found in zip(l1, inside, strict=True)],
    "up × column": [found["up"] * column for found, column in zip(inside, columns, strict=True)],
    "gate × column": [found["gate"] * column for found, column in zip(inside, columns, strict=True)],
}
ladder = {"weights, L1": results["l1", 0, 0.1], "weights, L2": results["l2", 0, 0.1]}
for name, scores in tqdm(LADDER.items(), desc="ladder"):
    ladder[name] = perplexity(pruned_copy(scores, 0.1), text)
ladder["gate · up × column (activation)"] = results["activation", 0, 0.1]

middle, factor = at_random(0.1)
middle /= unpruned.perplexity
figure, ax = plt.subplots(figsize=(12, 5.5), layout="constrained")
heights = [score.perplexity / unpruned.perplexity for score in ladder.values()]
bars = ax.barh(list(ladder), np.array(heights) - 1, left=1, color="C0")
ax.bar_label(bars, labels=[f"{height:.3g}" for height in heights], padding=4)
ax.axvspan(middle / factor, middle * factor, color="0.8", zorder=0.5, label="random (mean ± sd of 5)")
ax.set_xscale("log")
ax.set_xlim(1, 3 * max(heights))
log_ticks(ax.xaxis)
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
ax.set_xlabel("perplexity at 10 % removed, × unpruned")
ax.set_title("What the score knows")
ax.legend(loc="lower right")
plt.show()

# %%
below = [name for name, score in ladder.items() if against_random(score, 0.1) == "beats random"]
above = [name for name, score in ladder.items() if against_random(score, 0.1) == "loses to random"]
print("loses to random:", " · ".join(above) or "none")
print("beats random:   ", " · ".join(below) or "none")
print("from up to gate:        ", told(bits_difference(ladder["up × column"], ladder["gate × column"])))
print("from L1 to L1 × open:    ", told(bits_difference(ladder["weights, L1"], ladder["L1 × open share"])))
if np.median(opening) < 0:
    print(
        "Neurons with large weights have gates that are shut more often; those with small weights are open more often."
    )
else:
    print("Neurons with large weights do not have gates that are shut more often in this model.")

# %% [markdown]
# A neuron of a GLU writes next to nothing while its gate is shut. Whether it is shut depends on where the input lies relative to
# the gate's row, and that is not in the size of the weights: a long row makes the gate swing further, to the shut side as
# much as to the open one. **That is what a weight can't tell you.**
#
# Two warnings. This is one model; the printed lines are computed, so run them on yours. And the ladder shows which
# information *suffices*, not why training made the weights like that.

# %% [markdown]
# ## A criterion that looks
#
# So we measure. The input of the down-projection holds one number for each neuron: gate times up. A hook on `down` sees
# it. Root mean square over all *real* tokens (padding doesn't count), times the norm of the neuron's column: the size of
# what the neuron adds to the residual stream.


# %%
@torch.no_grad()
def contribution(model, batches):
    """One score [neurons] a block: RMS of the neuron's activation over the real tokens × norm of its column."""
    mlps = describe(model).mlps
    squares, tokens = [0] * len(mlps), 0

    def listen(block):
        def hook(module, inputs):
            states = inputs[0][real]  # [real tokens, neurons]
            squares[block] += states.float().square().sum(dim=0)

        return hook

    hooks = [mlp.down.register_forward_pre_hook(listen(block)) for block, mlp in enumerate(mlps)]
    try:
        for batch in batches:
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            real = batch["attention_mask"].bool()  # the hooks read it
            tokens += real.sum()
            model.base_model(**batch, use_cache=False)  # everything but the head
    finally:
        for hook in hooks:
            hook.remove()
    return [(s / tokens).sqrt() * mlp.columns.float().norm(dim=0) for s, mlp in zip(squares, mlps, strict=True)]


# %% [markdown]
# It should equal the criterion of `course_utils`. And it should not matter how the texts are cut into batches, or on
# which side they are padded. Six texts of different lengths, in float32:

# %%
from course_utils.texts import documents, padded_batches

exact, _ = load_model("llama")
texts = [text[: 60 * (number + 1)] for number, text in enumerate(documents("speeches", "calibration")[:6])]
by_four = padded_batches(tokenizer, texts, batch_size=4)
one_by_one = padded_batches(tokenizer, texts, batch_size=1)
padded_left = padded_batches(tokenizer, texts, batch_size=3, padding_side="left")


def removed_sets(scores, ratio=0.2):
    """The neurons that would go, one set a block."""
    return [set(range(len(one))).difference(strongest(one, ratio).tolist()) for one in scores]


def overlap(a, b):
    """Share of the removed neurons that two scores have in common, over all blocks."""
    common = sum(len(x & y) for x, y in zip(removed_sets(a), removed_sets(b), strict=True))
    return common / sum(map(len, removed_sets(a)))


ours = contribution(exact, by_four)
for mine, theirs in zip(ours, neuron_importance(exact, "activation", batches=by_four), strict=True):
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
print("equal to neuron_importance(model, 'activation')")
for name, batches in {"one by one": one_by_one, "three at a time, padded left": padded_left}.items():
    print(f"{name}: {overlap(ours, contribution(exact, batches)):.2%} of the removed neurons the same")

unmasked = [batch | {"attention_mask": torch.ones_like(batch["attention_mask"])} for batch in by_four]
print(f"a common mistake, padding counted as text: {overlap(ours, contribution(exact, unmasked)):.2%} the same")
del exact

# %% [markdown]
# ### How much text is enough?
#
# *Predict before you run:* the score averages over tokens. How many do you need until more of them change nothing: 32 (a
# sentence), 500 (a page), 8,000 (a speech)?
#
# Two measures, at 20 % removed: how many of the removed neurons are the same as with the largest set (two random choices
# share 20 %), and the perplexity.

# %%
largest = importance["activation", 0]
one_sentence = [{"input_ids": calibration.input_ids[:1, :32], "attention_mask": torch.ones(1, 32, dtype=torch.long)}]
amounts = {32: one_sentence} | {rows * LENGTH: calibration[:rows].batches(8) for rows in (1, 4, 16)}
by_amount = {tokens: neuron_importance(base, "activation", batches=batches) for tokens, batches in amounts.items()}
amount_scores = {tokens: perplexity(pruned_copy(scores, 0.2), text) for tokens, scores in by_amount.items()}
by_amount[calibration.num_tokens], amount_scores[calibration.num_tokens] = largest, results["activation", 0, 0.2]

amount = pd.DataFrame(
    {
        "tokens": tokens,
        "removed neurons shared": overlap(scores, largest),
        "perplexity": amount_scores[tokens].perplexity,
        "ci_low": amount_scores[tokens].ci_low,
        "ci_high": amount_scores[tokens].ci_high,
        "criterion": "activation",
    }
    for tokens, scores in by_amount.items()
)
figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.5), layout="constrained")
left.plot(amount.tokens, 100 * amount["removed neurons shared"], marker="o")
left.axhline(20, color="0.25", linestyle=":", label="two random choices")
left.set_ylim(0, 105)
left.set_ylabel("removed neurons shared\nwith the largest set, %")
left.set_title("Which neurons go")
left.legend(loc="lower right")
middle, factor = at_random(0.2)
right.plot(amount.tokens, amount.perplexity, marker="o", label="activation")
right.axhspan(middle / factor, middle * factor, color="0.45", alpha=0.4, label="random (mean ± sd of 5)")
right.axhline(unpruned.perplexity, color="0.25", linestyle=":", label="unpruned")
right.set_yscale("log")
log_ticks(right.yaxis)
right.set_ylabel("perplexity at 20 % removed")
right.set_title("What is left")
right.legend()
for ax in (left, right):
    ax.set_xscale("log")
    ax.set_xticks(amount.tokens, [f"{tokens:,}" for tokens in amount.tokens])
    ax.set_xlabel("calibration tokens")
plt.show()

# %%
sizes = sorted(amount_scores)
for tokens in sizes:
    print(f"{tokens:>5,} tokens: {against_random(amount_scores[tokens], 0.2)}")
for fewer, more in itertools.pairwise(sizes):
    print(f"from {fewer:>5,} to {more:>5,} tokens: {told(bits_difference(amount_scores[fewer], amount_scores[more]))}")
as_good = [n for n in sizes if judged(bits_difference(amount_scores[sizes[-1]], amount_scores[n])) != "worse"]
print(
    f"As far as {len(text)} rows can tell, the smallest amount that isn't worse than the largest: {as_good[0]:,} tokens."
)

# %% [markdown]
# Look at the last step. If it still gains, more text would help a little more; if not, you have enough. And note that the
# two panels need not agree: neurons near the border are of nearly equal worth, so it matters little which of them go.
#
# ### The wrong text
#
# A model is calibrated on what is at hand, and used on something else. Three kinds of text: speeches, Wikipedia, and
# children's stories. Calibrate on each (2,048 tokens), evaluate on each, 20 % removed.
#
# *Predict before you run:* which of the nine combinations is worst?

# %%
# 4 scores × 3 texts × 768 tokens
DOMAINS = ("speeches", "wiki", "stories")
targets = {domain: sample(domain, "evaluation", rows=6) for domain in DOMAINS}
sources = {domain: sample(domain, "calibration", rows=16) for domain in DOMAINS}
by_source = {
    domain: neuron_importance(base, "activation", batches=source.batches(8)) for domain, source in sources.items()
} | {"random neurons": importance["random", 0]}

whole = {domain: perplexity(base, target) for domain, target in targets.items()}
crossed = {}
for source, scores in tqdm(by_source.items(), desc="sources"):
    model = pruned_copy(scores, 0.2)
    for domain, target in targets.items():
        crossed[source, domain] = perplexity(model, target)

matrix = pd.DataFrame(
    {domain: {source: crossed[source, domain].nll - whole[domain].nll for source in by_source} for domain in DOMAINS}
)
heatmap(
    matrix,
    x_label="evaluated on",
    y_label="calibrated on",
    value_label="ln(perplexity / unpruned)",
    title="20 % removed: cost in nats a token",
    ax=plt.subplots(figsize=(9, 6), layout="constrained")[1],
)
plt.show()

# %%
for domain in DOMAINS:
    print(f"on {domain} (unpruned perplexity {whole[domain].perplexity:.1f}):")
    for source in DOMAINS:
        if source != domain:
            against = judged(bits_difference(crossed[domain, domain], crossed[source, domain]))
            factor, _, _ = perplexity_ratio(crossed[source, domain], crossed[domain, domain])
            print(f"  calibrated on {source} instead: {factor:.2f} × the perplexity, {against}")
home = np.mean([matrix.loc[domain, domain] for domain in DOMAINS])
strangers = [matrix.loc[a, b] for a in DOMAINS for b in DOMAINS if a != b]
worse = sum(matrix.loc["random neurons", b] < matrix.loc[a, b] for a in DOMAINS for b in DOMAINS if a != b)
print(
    f"mean cost at home {home:.2f} nats, abroad {np.mean(strangers):.2f}, random {matrix.loc['random neurons'].mean():.2f}"
)
print(f"calibration on another kind of text is worse than random neurons in {worse} of {len(strangers)} cases")

# %% [markdown]
# ## From 0 to 60 %: benchmarks, with their floors
#
# Perplexity is one view. Here are three tasks of lm-eval, zero-shot: **LAMBADA** (guess the last word), **ARC-easy**
# (school science, four choices) and **BoolQ** (read a passage, answer yes or no). The samples are small and the same for
# all models; the intervals say how small.
#
# Two floors belong in every such figure:
#
# - **chance**: what blind guessing gets;
# - **majority**: what *always giving the same answer* gets, if that answer happens to be right most often.
#
# The *expansion ratio* of an MLP is its width over the hidden size. Pruning lowers it.

# %%
# 6 models × about 8,000 tokens
from course_utils.evaluation import evaluate

LIMITS = {"lambada_openai": 40, "arc_easy": 40, "boolq": 24}
METRICS = {"lambada_openai": "acc", "arc_easy": "acc_norm", "boolq": "acc"}


def ask(model):
    return {task: evaluate(model, tokenizer, task, limit=limit) for task, limit in LIMITS.items()}


asked = {("activation", 0.0): ask(base)}
PLAN = [("activation", 0.2), ("activation", 0.4), ("activation", 0.6), ("random", 0.2), ("random", 0.4)]
for criterion, ratio in tqdm(PLAN, desc="models"):
    asked[criterion, ratio] = ask(pruned_copy(importance[criterion, 0], ratio))
asked["random", 0.0] = asked["activation", 0.0]  # both curves begin at the unpruned model

expansion = pd.concat(
    frame[frame.metric == METRICS[task]].assign(criterion=criterion, ratio=ratio)
    for (criterion, ratio), frames in asked.items()
    for task, frame in frames.items()
)
print(
    f"expansion ratio: {width / architecture.hidden_size:.2f} unpruned, {0.4 * width / architecture.hidden_size:.2f} with 60 % removed"
)

# %%
figure, axes = plt.subplots(1, 3, figsize=(18, 6), layout="constrained")
for ax, task in zip(axes, LIMITS, strict=True):
    part = expansion[expansion.task == task]
    floors = {name: part[name].iloc[0] for name in ("chance", "majority") if part[name].iloc[0] > 0}
    pruning_curve(
        part,
        control="random",
        x_label="MLP neurons removed",
        y_label="accuracy (length-normalised)" if METRICS[task] == "acc_norm" else "accuracy",
        floors=floors,
        title=f"{task} ({part.documents.iloc[0]} documents)",
        ax=ax,
    )
    ax.set_ylim(-0.03, 1)
plt.show()

# %%
for task in LIMITS:
    for (criterion, ratio), frames in asked.items():
        if criterion == "activation":
            row = frames[task][frames[task].metric == METRICS[task]].iloc[0]
            floor = np.nanmax([row.chance, row.majority])
            place = verdict(
                row.ci_low, row.ci_high, at=floor, below="below", above="above", neither="not to be told from"
            )
            says = f"{place} its floor" if floor else "a free answer, no floor to beat"
            print(
                f"{task:<15} {ratio:>4.0%} removed: {with_interval(row.value, row.ci_low, row.ci_high)}, floor {floor:.2f}: {says}"
            )

# %% [markdown]
# ### What a score at the floor means
#
# BoolQ has two answers. A model that can't read can still get the majority score, by always giving one answer. So we look
# behind the score: how often does the model say yes, and how often is it right where yes is right, and where no is
# right? A reader is right in both. A parrot is right in one of them.

# %%
boolq = []
for (criterion, ratio), frames in asked.items():
    if (criterion, ratio) == ("random", 0.0):  # the same model again
        continue
    answers = frames["boolq"].attrs["answers"].table
    says_yes = np.where(answers.value == 1, answers.gold, 1 - answers.gold)  # the answers are numbered no = 0, yes = 1
    boolq.append(
        {
            "model": f"{criterion}, {ratio:.0%}" if ratio else "unpruned",
            "accuracy": answers.value.mean(),
            "says yes": says_yes.mean(),
            "right where yes is right": answers.value[answers.gold == 1].mean(),
            "right where no is right": answers.value[answers.gold == 0].mean(),
        }
    )
boolq = pd.DataFrame(boolq).set_index("model")
boolq["mean of both"] = boolq.iloc[:, 2:4].mean(axis=1)
boolq.round(2)

# %%
for name, row in boolq.iterrows():
    kind = "one answer to nearly everything" if not 0.1 < row["says yes"] < 0.9 else "both answers"
    print(f"{name:<16} gives {kind}; mean of both {row['mean of both']:.2f} (0.5 is a coin)")
before, after = boolq.loc["unpruned"], boolq.loc["activation, 20%"]
for column in ("accuracy", "mean of both"):
    print(f"20 % of the neurons removed: {column} {before[column]:.2f} → {after[column]:.2f}")

# %% [markdown]
# ### The published curve of Llama-3.2-1B
#
# Martra's curve for peak-to-peak (arXiv 2512.22671, results in its repository), quoted. Perplexities rise by orders of
# magnitude while BoolQ hardly moves, which is easily read as "comprehension is retained".

# %%
published = pd.DataFrame(
    {
        "WikiText ppl": (11.57, 17.50, 25.05, 38.58, 56.33, 117.04, 322.95),
        "LAMBADA ppl": (5.75, 20.59, 33.07, 55.74, 90.38, 428.3, 2941.08),
        "HellaSwag": (0.6363, 0.5791, 0.5076, 0.4382, 0.3737, 0.3251, 0.2909),
        "MMLU": (0.3111, 0.2511, 0.2661, 0.2610, 0.2689, 0.2606, 0.2554),
        "BoolQ": (0.6343, 0.6260, 0.6232, 0.6260, 0.6220, 0.6141, 0.5535),
    },
    index=pd.Index([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], name="removed"),
)
published.rename(index="{:.0%}".format).round(3)

# %% [markdown]
# Now the floors. We count the majority in the whole validation set of BoolQ; chance is 0.25 in HellaSwag and MMLU. BoolQ's
# set is large enough for narrow intervals.

# %%
from course_utils.benchmark_tasks import build_tasks
from course_utils.uncertainty import wilson_interval

labels = [document["label"] for document in build_tasks(["boolq"], None)["boolq"].test_docs()]
majority = max(np.mean(labels), 1 - np.mean(labels))
print(f"BoolQ: {len(labels):,} questions, the answer is yes in {np.mean(labels):.3f} of them")

figure, axes = plt.subplots(1, 2, figsize=(15, 5.5), layout="constrained")
long = published.reset_index().melt("removed", var_name="task")
pruning_curve(
    long[long.task.isin(("HellaSwag", "MMLU"))],
    x="removed",
    group="task",
    control=None,
    x_label="MLP neurons removed",
    y_label="accuracy",
    floors={"chance": 0.25},
    title="Llama-3.2-1B, published",
    ax=axes[0],
)
part = long[long.task == "BoolQ"].copy()
part["ci_low"], part["ci_high"] = zip(
    *(wilson_interval(value * len(labels), len(labels)) for value in part.value), strict=True
)
pruning_curve(
    part,
    x="removed",
    group="task",
    control=None,
    x_label="MLP neurons removed",
    y_label="accuracy",
    floors={"chance": 0.5, "majority": majority},
    title="BoolQ, published, 95 % intervals",
    ax=axes[1],
)
axes[0].set_ylim(0, 0.75)
axes[1].set_ylim(0.45, 0.7)
plt.show()

at_floor = part[(part.ci_low <= majority) & (part.ci_high >= majority)].removed
below_floor = part[part.ci_high < majority].removed
print("BoolQ not to be told from the majority floor at:", ", ".join(f"{ratio:.0%}" for ratio in at_floor) or "no ratio")
print("BoolQ below it at:", ", ".join(f"{ratio:.0%}" for ratio in below_floor) or "no ratio")
near = published.index[(published.MMLU - 0.25).abs() < 0.02]
print("MMLU within 2 points of chance at:", ", ".join(f"{ratio:.0%}" for ratio in near))

# %% [markdown]
# A score that was at its floor before the pruning can't fall. It says nothing about what was retained, in either
# direction: the unpruned model may well read, and this number wouldn't show it.

# %% [markdown]
# ## Widths that the hardware likes
#
# Matrix kernels work in tiles of 8, 16, 64 or 128 numbers. Llama-3.2-1B's 8,192 neurons are a multiple of all of them;
# after a cut of 20 % or 40 % it has 6,554 or 4,916, which are multiples of 2 and 4. `multiple_of` rounds the width that
# remains *up*.
#
# *Predict before you run:* rounding up keeps a few more neurons. Does it cost quality or gain it? And speed?

# %%
from course_utils.width import kept_width

rounded = {multiple: kept_width(width, 0.4, multiple) for multiple in (1, 8, 64, 128)}
print(
    f"40 % of {width:,} removed:", ", ".join(f"{kept:,} (multiple of {multiple})" for multiple, kept in rounded.items())
)
print("Llama-3.2-1B:", ", ".join(f"{kept_width(8192, 0.4, multiple):,}" for multiple in rounded))

by_multiple = {1: results["activation", 0, 0.4]}
for multiple in (64, 128):
    by_multiple[multiple] = perplexity(pruned_copy(activation, 0.4, multiple_of=multiple), text)
for multiple in (64, 128):
    row = bits_difference(by_multiple[1], by_multiple[multiple])
    print(
        f"multiple of {multiple:>3}: perplexity {by_multiple[multiple].perplexity:.1f} against {by_multiple[1].perplexity:.1f}; {told(row)}"
    )

# %% [markdown]
# The speed is measured with all models taking turns, and stands beside its **ceiling**: what the removed FLOPs and bytes
# could give at most. Prefill reads a prompt of 128 tokens; decode writes tokens one by one.

# %%
from course_utils.benchmarking import measure_speed, speedup_text, speedup_verdict

CUTS = {"20 %": (0.2, 1), "40 %": (0.4, 1), "40 %, of 64": (0.4, 64), "40 %, of 128": (0.4, 128)}
base.to("cpu")  # on a small GPU the contestants need the room
contestants = {"unpruned": variant(base)}
for name, (ratio, multiple) in CUTS.items():
    contestants[name] = pruned_copy(activation, ratio, multiple_of=multiple)
for model in contestants.values():
    model.to(device=session.device, dtype=session.dtype)

speed = measure_speed(contestants, prompt_tokens=128, new_tokens=12, rounds=7).set_index(["phase", "model"])
speed.loc[["prefill", "decode"]].round(2)

# %%
for phase in ("prefill", "decode"):
    for name in CUTS:
        row = speed.loc[phase, name]
        print(f"{phase:<8} {name:<13} {speedup_text(row)}: {speedup_verdict(row)}")
for phase in ("prefill", "decode"):
    odd, even = speed.loc[(phase, "40 %")], speed.loc[(phase, "40 %, of 64")]
    if even.ci_low > odd.ci_high:
        says = "made it faster, although more neurons are left"
    elif even.ci_high < odd.ci_low:
        says = "made it slower: the extra neurons cost more than the tiles give"
    else:
        says = "made no difference that we can show on this machine"
    print(f"Rounding up to 64, {phase}: {says} ({odd.speedup:.2f} → {even.speedup:.2f} ×).")

# %% [markdown]
# Rounding up keeps a few more neurons, so it is bought with size and not with quality. Whether it pays in speed depends
# on the hardware and the kernels: measure where the model will run.

# %% [markdown]
# ## What it costs and buys

# %%
INTERVAL = ["value", "ci_low", "ci_high"]
lambada = {
    name: asked[key]["lambada_openai"].head(1)  # the accuracy
    for name, key in {"unpruned": ("activation", 0.0), "20 %": ("activation", 0.2), "40 %": ("activation", 0.4)}.items()
}
quality = {
    "unpruned": unpruned,
    "20 %": results["activation", 0, 0.2],
    "40 %": by_multiple[1],
    "40 %, of 64": by_multiple[64],
    "40 %, of 128": by_multiple[128],
}
rows = {}
for name, model in contestants.items():
    rows[name] = {
        "MLP width": f"{model.config.intermediate_size:,}",
        "parameters": f"{model.num_parameters():,}",
        "saved": f"{1 - model.num_parameters() / contestants['unpruned'].num_parameters():.1%}",
        f"MB, {str(session.dtype).removeprefix('torch.')}": f"{model_size(model).bytes / 1e6:.0f}",
        "prefill, × unpruned": speedup_text(speed.loc["prefill", name]),
        "decode, × unpruned": speedup_text(speed.loc["decode", name]),
        "perplexity, speeches": f"{quality[name].perplexity:.1f}",
        "LAMBADA accuracy (95 %)": with_interval(*lambada[name][INTERVAL].iloc[0]) if name in lambada else "",
    }
del contestants
base.to(session.device)
pd.DataFrame(rows)

# %%
for name in ("20 %", "40 %"):
    change = paired(lambada["unpruned"], lambada[name]).iloc[0]
    print(
        f"{name}: {rows[name]['saved']} of the parameters for {quality[name].perplexity / unpruned.perplexity:.2f} × the perplexity"
    )
    print(f"      LAMBADA accuracy {change.difference:+.2f} ({change.ci_low:+.2f} to {change.ci_high:+.2f}, paired)")

# %% [markdown]
# This is before any training. Lesson 07 gives a part of the quality back by distillation.

# %% [markdown]
# ## Exercises

# %%
from course_utils.exercises.lesson_03 import check_best_model, check_pair_scores, check_pruning_step

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# Write `pair_scores(gate, up)`, the peak-to-peak score of each neuron. Both are weights of an `nn.Linear`, [neurons,
# hidden].
#
# <details><summary>Hint</summary>
#
# `amax` and `amin` take a `dim`. A row whose weights are all positive has a positive minimum; its size counts, too.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def pair_scores(gate, up):
    return sum(rows.amax(dim=1) + rows.amin(dim=1).abs() for rows in (gate, up))


# END SOLUTION
# BEGIN STUB
# def pair_scores(gate, up):
#     ...  # one score [neurons]
# END STUB
check_pair_scores(pair_scores)

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# Write the pruning step from scores to three slices. `ratio` is the share of the neurons that go, rounded **down** to
# whole neurons. Then the number that stays is rounded **up** to a multiple of `multiple_of`, but never above the width.
# Return the smaller `gate`, `up` and `down`.
#
# <details><summary>Hint</summary>
#
# First the number that stays, then which ones (`topk`), then three slices with the same indices. A neuron is a row of
# gate and up, and a column of down.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def pruning_step(gate, up, down, scores, ratio, multiple_of):
    width = len(scores)
    stay = width - int(ratio * width)
    stay = min(width, -(-stay // multiple_of) * multiple_of)  # -(-a // b) rounds up
    keep = scores.topk(stay).indices.sort().values
    return gate[keep], up[keep], down[:, keep]


# END SOLUTION
# BEGIN STUB
# def pruning_step(gate, up, down, scores, ratio, multiple_of):
#     ...
#     return ..., ..., ...
# END STUB
check_pruning_step(pruning_step)

# %% [markdown]
# ### Exercise 3 · ●●● · 20 minutes
#
# A small competition: the best model within a **parameter budget**, that of 20 % of the neurons. `compress(model,
# batches)` gets a fresh copy of the model and 3,072 calibration tokens of mixed text. It prunes the copy and returns it.
#
# The budget counts parameters, so blocks needn't have equal shares. Choose what you do on the calibration split or on
# `text` and `targets` above. The check scores the result once on text that neither you nor the lesson has used, and puts
# it next to random neurons and to the activation criterion at 20 % everywhere. Beating random is enough to pass. What is
# your lead over the activation criterion?
#
# <details><summary>Hint</summary>
#
# Look at the figure of single-block damages: which blocks should be left alone? `prune_neurons` has `layers`, and the
# other blocks then have to give more than 20 %. Or write a better score.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def compress(model, batches):
    blocks = describe(model).num_blocks
    scores = neuron_importance(model, "activation", batches=batches)
    # Early blocks are the touchy ones, so the others give their share, too.
    prune_neurons(model, scores, ratio=0.2 * blocks / (blocks - 2), layers=range(2, blocks))
    return model


# END SOLUTION
# BEGIN STUB
# def compress(model, batches):
#     ...
#     return ...
# END STUB
check_best_model(compress, base, tokenizer)

# %% [markdown]
# ## Take-aways
#
# - In a GLU, gate and up are scored as a pair and cut with one index set; with equal widths the checkpoint is an ordinary
#   one.
# - An exact cut can still be a bad one. Put a random control, with several seeds, beside every criterion.
# - When a sensible idea fails: find where, turn each guess into an experiment, and believe the one that makes the damage
#   go away.
# - What a neuron contributes depends on its gate and on the input. The weights alone know neither; a pass over text does.
# - Calibrate on the text that the model is for. A small cross-domain table tells you what another text costs.
# - Read a score only next to its floors: chance, and the majority answer.
# - Measure speed where the model will run, with rounded widths too, and put it next to its ceiling.
#
# ## References
#
# - P. Martra, *Fragile Knowledge, Robust Instruction-Following: The Width Pruning Dichotomy in Llama-3.2*, 2025,
#   [arXiv 2512.22671](https://arxiv.org/abs/2512.22671), and *Exploring GLU Expansion Ratios*, 2024,
#   [doi 10.31219/osf.io/qgxea](https://doi.org/10.31219/osf.io/qgxea): peak-to-peak magnitude, the quoted figures
# - M. Sun et al., *A Simple and Effective Pruning Approach for Large Language Models* (Wanda), 2023,
#   [arXiv 2306.11695](https://arxiv.org/abs/2306.11695): weights times input norms
# - S. Muralidharan et al., *Compact Language Models via Pruning and Knowledge Distillation*, 2024,
#   [arXiv 2407.14679](https://arxiv.org/abs/2407.14679): activation-based width pruning at scale
# - X. Ma et al., *LLM-Pruner*, 2023, [arXiv 2305.11627](https://arxiv.org/abs/2305.11627): coupled structures, and
#   random and L2 as baselines
# - N. Shazeer, *GLU Variants Improve Transformer*, 2020, [arXiv 2002.05202](https://arxiv.org/abs/2002.05202)
#
# **Next:** lesson 04 removes whole blocks instead of neurons.
