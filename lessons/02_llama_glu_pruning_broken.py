# ---
# jupyter:
#   course:
#     title: "Carrying the recipe to Llama: how GLU pruning breaks"
#     minutes: 50
#     hardware: cpu
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
# table says which.

# %% tags=["install"]

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import PercentFormatter
from torch.nn.functional import silu
from tqdm import tqdm

from course_utils.plotting import histogram, pruning_curve, scores_with_intervals, show_tensor, style
from course_utils.session import start

session = start("02")
style()

# %% [markdown]
# ## A GLU that you can read
#
# The MLP of a Llama has three matrices and no bias:
#
# `down(silu(gate(x)) * up(x))`
#
# `gate` and `up` both lead from the hidden size to the neurons. Their outputs are multiplied, neuron by neuron. `down`
# leads back. Here is one with 5 inputs, 5 neurons and 5 outputs. As in every `nn.Linear`, weights are [out, in].

# %%
gate = torch.tensor([[1, -1, 2, 2, -2], [2, 0, -1, 1, -1], [2, 1, 1, 0, 2], [-2, -2, 1, 0, 2], [-2, 2, 2, -2, -1.0]])
up = torch.tensor([[1, 0, 0, 2, 1], [0, -2, -1, 0, -2], [-1, -1, 2, -1, 0], [2, 2, 1, -2, 1], [0, 1, 2, 1, -1.0]])
down = torch.tensor([[-1, -2, 2, -2, -1], [2, -2, 1, 1, -2], [-1, -2, -1, 0, 0], [1, 2, -2, -1, 1], [2, 2, 0, 0, -1.0]])
x = torch.tensor([1, -1, 2, 0, 1.0])

AXES = {
    "gate": {"x_label": "input", "y_label": "neuron"},
    "up": {"x_label": "input", "y_label": "neuron"},
    "down": {"x_label": "neuron", "y_label": "output"},
}
figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
for ax, (name, labels), weight in zip(axes, AXES.items(), (gate, up, down), strict=True):
    show_tensor(weight, title=name, fmt=".0f", ax=ax, **labels)
plt.show()


# %%
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
figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
for ax, (name, labels), weight, gone in zip(axes, AXES.items(), (gate, up, down), removed, strict=True):
    crossed = {"removed_columns": gone} if name == "down" else {"removed_rows": gone}
    show_tensor(weight, title=f"{name} loses neuron {gone[0]}", fmt=".0f", ax=ax, **labels, **crossed)
plt.show()

# %% [markdown]
# *Predict before you run:* four rows, four rows, four columns. Will the three smaller matrices fit together? And what
# does the new neuron 0 compute?

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
    distance = distance_to_nearest_mask(matrices)
    print(
        f"{name:<16} differs from the nearest of 32 masks by {distance:.1e} of the largest output: {'no' if distance > 1e-5 else 'a'} mask"
    )

# %% [markdown]
# The separate version is not a worse choice of neurons. It is **no choice of neurons at all**: it is another function,
# built from parts that never met in training.

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
    f"{architecture.num_blocks} blocks; each MLP: hidden size {architecture.hidden_size}, {architecture.mlps[0].width} neurons"
)
print(architecture.blocks[0].mlp)

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
# First the unpruned model, on speeches that no calibration in this course sees.

# %%
from course_utils.evaluation import perplexity
from course_utils.texts import token_blocks

evaluation = token_blocks(tokenizer, "evaluation", tokens=2560, length=128)
unpruned = perplexity(base, evaluation)
print(unpruned)

# %% [markdown]
# *Predict before you run:* we remove the 10 % of the neurons that the recipe calls weakest. Will the perplexity be 1.2
# times as high, 2 times, 10 times? And at 40 %?

# %%
broken = variant(base)
report = keep_separately(broken, ratio=0.1)
results = {0.0: unpruned, 0.1: perplexity(broken, evaluation)}
for ratio in tqdm((0.2, 0.4), desc="ratios"):
    model = variant(base)
    keep_separately(model, ratio)
    results[ratio] = perplexity(model, evaluation)
del model

report

# %% [markdown]
# The report is that of a successful pruning. The model has the size we asked for, the configuration agrees with the
# weights, every forward pass ran. Now the perplexities:

# %%
from course_utils.reports import shown, with_interval

collapse = pd.DataFrame(
    {
        "ratio": ratio,
        "index sets": "separate, L1",
        "perplexity": score.perplexity,
        "ci_low": score.ci_low,
        "ci_high": score.ci_high,
    }
    for ratio, score in results.items()
)
pruning_curve(
    collapse,
    y="perplexity",
    group="index sets",
    x_label="MLP neurons removed",
    y_label="perplexity (lower is better)",
    floors={"uniform guess": vocabulary},
    log_y=True,
    title="Each matrix keeps its own neurons",
)
plt.show()

pd.DataFrame(
    {
        f"{ratio:.0%} removed": {
            "perplexity (95 % interval)": with_interval(score.perplexity, score.ci_low, score.ci_high),
            "× unpruned": shown(score.perplexity / unpruned.perplexity),
        }
        for ratio, score in results.items()
    }
)

# %% [markdown]
# A model that knows nothing and gives every token the same probability has a perplexity equal to the size of the
# vocabulary: the horizontal line. It is a floor that a model can fall through, by being sure of the wrong tokens.

# %%
from course_utils.uncertainty import verdict

SIDES = {"below": "better than", "above": "worse than", "neither": "not to be told from"}
for ratio in (0.1, 0.2, 0.4):
    score = results[ratio]
    judged = verdict(score.ci_low, score.ci_high, at=vocabulary, **SIDES)
    print(
        f"{ratio:.0%} removed: {shown(score.perplexity / unpruned.perplexity)} × the unpruned perplexity, {judged} "
        "a uniform guess"
    )
steps = [results[ratio].perplexity for ratio in (0.1, 0.2, 0.4)]
print("More removed, more damage: " + ("yes" if steps == sorted(steps) else "no, not even that"))

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
# ln V when all V tokens have the same. The loss (nats a token) says how wrong it is. For an honest model the two means
# are about equal.
#
# *Predict before you run:* is the broken model unsure, or sure of the wrong thing?

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
    """Mean of [rows, length] and its 95 % interval; the rows are the sample."""
    mean, _, low, high = ratio_interval(values.double().sum(1).cpu().numpy(), np.full(len(values), values.shape[1]))
    return mean, low, high


rows = evaluation.input_ids[:10]
predicted = {name: predictions(model, rows) for name, model in contestants.items()}

pd.DataFrame(
    {
        name: {
            f"{what}{unit}": with_interval(*mean_with_interval(values[what]))
            for what, unit in {"entropy": ", nats", "loss": ", nats a token", "top probability": ""}.items()
        }
        for name, values in predicted.items()
    }
)

# %%
_, low, high = mean_with_interval(predicted["broken"]["entropy"] - predicted["unpruned"]["entropy"])
compared = verdict(low, high, below="surer than", above="less sure than", neither="about as sure as")
print(f"The broken model is {compared} the unpruned one (difference in entropy {low:+.2f} to {high:+.2f} nats).")
for name, values in predicted.items():
    gap, low, high = mean_with_interval(values["loss"] - values["entropy"])
    judged = "much more wrong than it thinks" if low > 1 else "about as wrong as it thinks"
    print(f"{name:<9} loss minus entropy {gap:+.2f} ({low:+.2f} to {high:+.2f}) nats: {judged}")

# %% [markdown]
# ### Repetition
#
# Greedy text, 48 new tokens for each of eight prompts. We measure the share of **repeated 3-grams**: three tokens in a
# row that occurred before in the same continuation. Small models repeat themselves under greedy decoding anyway (Holtzman
# et al. 2020), so the unpruned model is the control, and human text of the same length is the floor.

# %%
from course_utils.texts import padded_batches

NEW_TOKENS = 48
prompts = (
    "The capital of France is",
    "Water boils when",
    "The people of the United States",
    "To make bread, you first",
    "Once upon a time there was a",
    "The most important thing about a good teacher is",
    "In 1969, two men",
    "My grandmother used to say that",
)
batch = padded_batches(tokenizer, prompts, batch_size=len(prompts), padding_side="left")[0]
batch = {name: tensor.to(base.device) for name, tensor in batch.items()}
settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}


def repeated(tokens, n=3):
    """The share of n-grams that occurred before: 0 is none, near 1 is a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


written = {name: model.generate(**batch, **settings)[:, -NEW_TOKENS:].tolist() for name, model in contestants.items()}
written["human text"] = [row[:NEW_TOKENS] for row in evaluation.input_ids[: len(prompts)].tolist()]

for number in range(4):
    print(f"{prompts[number]} …")
    for name in contestants:
        text = tokenizer.decode(written[name][number], skip_special_tokens=True)
        print(f"  {name:<9} {' '.join(text.split())[:105]}")

# %%
repetition = pd.DataFrame(
    {
        name: {
            "repeated 3-grams": np.mean([repeated(tokens) for tokens in texts]),
            "distinct tokens": np.mean([len(set(tokens)) / len(tokens) for tokens in texts]),
        }
        for name, texts in written.items()
    }
).T
more = sum(repeated(b) > repeated(u) for b, u in zip(written["broken"], written["unpruned"], strict=True))
less = sum(repeated(b) < repeated(u) for b, u in zip(written["broken"], written["unpruned"], strict=True))
print(
    f"The broken model repeats itself more than the unpruned one for {more} of {len(prompts)} prompts, less for {less}."
)
share = repetition["repeated 3-grams"]
if share["broken"] > share["unpruned"]:
    print("It breaks into loops: more repetition than the unpruned model shows with the same settings.")
else:
    print(
        "It doesn't break into loops: it repeats itself no more than the unpruned model. Read the text to see what it does."
    )
repetition.style.format("{:.0%}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained", width_ratios=(1.5, 1, 1))
histogram(
    {name: values["top probability"].cpu() for name, values in predicted.items()},
    x_label="probability of the likeliest token",
    bins=20,
    title="How sure",
    ax=axes[0],
)
for ax, bars, title, label in (
    (axes[1], {n: mean_with_interval(v["entropy"])[0] for n, v in predicted.items()}, "Entropy", "nats a token"),
    (axes[2], repetition["repeated 3-grams"].to_dict(), "Repetition", "share of repeated 3-grams"),
):
    ax.bar(list(bars), list(bars.values()), color=["C0", "C1", "0.6"][: len(bars)], width=0.6)
    ax.set_title(title)
    ax.set_ylabel(label)
    ax.grid(axis="x", visible=False)
axes[1].axhline(math.log(vocabulary), color="0.25", linestyle=":")
axes[1].annotate(
    "uniform: ln V", (-0.3, math.log(vocabulary)), xytext=(0, 4), textcoords="offset points", fontsize="small"
)
axes[1].set_ylim(0, 1.15 * math.log(vocabulary))
axes[2].bar_label(axes[2].containers[0], fmt="{:.0%}", padding=3)
axes[1].bar_label(axes[1].containers[0], fmt="{:.2f}", padding=3)
axes[2].margins(y=0.15)
axes[2].yaxis.set_major_formatter(PercentFormatter(1.0))
figure.get_layout_engine().set(wspace=0.08)
plt.show()

# %% [markdown]
# ## The equality that would have caught it
#
# All this was measured after the fact. *Pruned equals masked* (lesson 01) needs no data and a fraction of a second: take
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
        difference = against_mask(pruned, some, ratio=0.1)
        lines.append(
            {
                "kept": name,
                "whole neurons": f"{whole_neurons(scores, 0.1):.1%}",
                "compared with the mask of": f"{owner} list",
                "largest difference / largest output": difference,
                "equal to 1e-5": difference < 1e-5,
            }
        )
del pruned

assert [line["equal to 1e-5"] for line in lines] == [True, False, False, False]
equality = pd.DataFrame(lines).set_index(["kept", "whole neurons", "compared with the mask of"])
equality.style.format({"largest difference / largest output": "{:.1e}"})

# %% [markdown]
# One line, `assert pruned equals masked`, separates the two before any text is read. Keep it in mind for the rest of the
# lesson: "together" is *exactly* a smaller set of the same neurons. Whether it is a *good* set is another question.

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
# - **control:** one set for all three, *random*, five seeds
#
# *Predict before you run:* order them from best to worst.

# %%
SEEDS = range(5)


def random_scores(seed):
    return neuron_importance(base, "random", seed=seed)


causes = {
    "(a) three separate sets": l1,
    "(a′) gate and up share, down its own": list(zip(of_pair, of_pair, of_down, strict=True)),
    "(b) one set, L1 of gate": for_all_three(of_gate),
    "(c) one set, L1 of gate + up": for_all_three(of_pair),
}
controls = {("together", seed): for_all_three(random_scores(seed)) for seed in SEEDS}


def perplexity_of(scores):
    """Perplexity of a variant of the base model, pruned by 10 % with these scores."""
    model = variant(base)
    prune_each_matrix(model, scores, ratio=0.1)
    return perplexity(model, evaluation)


measured = {name: perplexity_of(scores) for name, scores in tqdm(causes.items(), desc="causes")}
random_arms = {key: perplexity_of(scores) for key, scores in tqdm(controls.items(), desc="random controls")}

# %% [markdown]
# Perplexities that differ by factors of thousands are compared as **ratios**. The interval of a ratio is paired: both
# models read the same rows of text. For the random arms we give the geometric mean over the seeds, and a factor for one
# standard deviation (×/÷).

# %%
from course_utils.evaluation import perplexity_ratio
from course_utils.uncertainty import geometric_mean

at_random = {key: score.perplexity / unpruned.perplexity for key, score in random_arms.items()}
control, spread = geometric_mean(at_random["together", seed] for seed in SEEDS)

table = pd.DataFrame(
    {
        name: {
            "whole neurons": f"{whole_neurons(causes[name], 0.1):.1%}",
            "perplexity": shown(score.perplexity),
            "× unpruned (95 % interval)": with_interval(*perplexity_ratio(score, unpruned)),
            "× random control": shown(score.perplexity / unpruned.perplexity / control),
        }
        for name, score in measured.items()
    }
).T
table.loc[f"control: one random set, {len(SEEDS)} seeds"] = [
    "100.0%",
    shown(control * unpruned.perplexity),
    f"{shown(control)} ×/÷ {shown(spread)}",
    "1",
]
table.loc["unpruned"] = ["", shown(unpruned.perplexity), "1", ""]
table

# %% [markdown]
# Look at the control. Then look at (c), which passes the equality test.

# %%
from course_utils.uncertainty import below_and_above

for name, score in measured.items():
    ratios = [perplexity_ratio(score, random_arms["together", seed]) for seed in SEEDS]
    better, worse = below_and_above((ends for _, *ends in ratios), at=1)
    print(f"{name:<37} worse than {worse} of {len(SEEDS)} random controls, better than {better}")

# %% [markdown]
# ### Two factors, crossed
#
# (a) differs from the control in two things: separate sets *and* L1. To know what each costs, cross them: separate or
# shared sets, with L1 or with random scores. Random scores drawn three times, once for each matrix, make the missing
# corner.
#
# As a last arm, one shared set by a criterion that looks at data: the size of what each neuron really adds on
# calibration text (`"activation"`, the subject of lesson 03). It scores a neuron as a whole, so it has no separate form.

# %%
calibration = token_blocks(tokenizer, "calibration", tokens=2048, length=128)
activation = neuron_importance(base, "activation", batches=calibration.batches())

measured["activation"] = perplexity_of(for_all_three(activation))
for seed in tqdm(SEEDS, desc="random, separate"):
    draws = (random_scores(seed + 100 * matrix) for matrix in range(3))
    random_arms["separately", seed] = perplexity_of(list(zip(*draws, strict=True)))
at_random = {key: score.perplexity / unpruned.perplexity for key, score in random_arms.items()}

corners = {
    ("separate", "L1"): perplexity_ratio(measured["(a) three separate sets"], unpruned),
    ("shared", "L1"): perplexity_ratio(measured["(c) one set, L1 of gate + up"], unpruned),
    ("shared", "activation"): perplexity_ratio(measured["activation"], unpruned),
}
for sets, name in (("separate", "separately"), ("shared", "together")):
    middle, factor = geometric_mean(at_random[name, seed] for seed in SEEDS)
    corners[sets, f"random (mean, sd of {len(SEEDS)})"] = middle, middle / factor, middle * factor

crossed = pd.DataFrame(
    {"index sets": sets, "criterion": criterion, "value": value, "ci_low": low, "ci_high": high}
    for (sets, criterion), (value, low, high) in sorted(corners.items())
)
crossed["shown"] = [with_interval(r.value, r.ci_low, r.ci_high) for r in crossed.itertuples()]
print("Perplexity at 10 %, × unpruned; L1 and activation with 95 % interval, random with one standard deviation")
crossed.pivot(index="criterion", columns="index sets", values="shown").fillna("–")

# %%
ax = scores_with_intervals(
    crossed,
    x="criterion",
    group="index sets",
    x_label="what the scores come from",
    y_label="perplexity, × unpruned",
    title="Two mistakes, crossed (10 % removed)",
)
ax.set_yscale("log")
ax.get_legend().set_title("index sets")
for level, name in ((1, "unpruned"), (vocabulary / unpruned.perplexity, "uniform guess")):
    ax.axhline(level, color="0.25", linestyle=":", linewidth=1.6)
    ax.annotate(name, (-0.45, level), xytext=(0, 4), textcoords="offset points", fontsize="small")
plt.show()

# %% [markdown]
# Read the figure along both directions. From orange to blue in one column: the price of separate sets. From one column
# to the next in one colour: the price of the criterion. The next cell says it in words.


# %%
def across_seeds(ratios):
    """Geometric mean, lowest and highest of a list of ratios."""
    return geometric_mean(ratios)[0], min(ratios), max(ratios)


def price(what, middle, low, high):
    """Print what a choice costs, and return whether the whole range says so."""
    judged = verdict(low, high, at=1, below="gains", above="costs", neither="no clear difference,")
    print(f"{what:<36} {judged} × {with_interval(middle, low, high)}")
    return low > 1


separate_l1, shared_l1 = measured["(a) three separate sets"], measured["(c) one set, L1 of gate + up"]
apart, joined = ([random_arms[name, seed] for seed in SEEDS] for name in ("separately", "together"))

print("Separate instead of shared sets")
pairing_costs = [
    price("  with L1 (95 % interval)", *perplexity_ratio(separate_l1, shared_l1)),
    price(
        "  with random scores (range of seeds)",
        *across_seeds([a.perplexity / b.perplexity for a, b in zip(apart, joined, strict=True)]),
    ),
]
print("Step by step from (c) to (a), with L1 (95 % interval)")
c, b, a_prime, a = (measured[name] for name in reversed(causes))
for what, after, before in (
    ("  (b) scores of gate instead of both", b, c),
    ("  (a′) a set of its own for down", a_prime, c),
    ("  (a) and one each for gate and up", a, a_prime),
):
    price(what, *perplexity_ratio(after, before))
print("L1 instead of random scores (range of seeds)")
criterion_costs = price("  with shared sets", *across_seeds([shared_l1.perplexity / one.perplexity for one in joined]))
price("  with separate sets", *across_seeds([separate_l1.perplexity / one.perplexity for one in apart]))
print("Random scores instead of activations (range of seeds)")
price("  with shared sets", *across_seeds([one.perplexity / measured["activation"].perplexity for one in joined]))

print(
    "Pairing is a mistake of its own: "
    + ("yes, with L1 and with random scores." if all(pairing_costs) else "not shown here.")
)
print(
    "The criterion is a mistake of its own: " + ("yes, L1 loses to random." if criterion_costs else "not shown here.")
)
left, by_activation = (score.perplexity / unpruned.perplexity for score in (shared_l1, measured["activation"]))
if all(pairing_costs) and criterion_costs:
    print(
        f"Repairing the pairing alone leaves {shown(left)} × the unpruned perplexity; a random shared set leaves "
        f"{shown(control)} ×, and one chosen by activations {shown(by_activation)} ×."
    )
    print(
        "So the equality test is necessary and not sufficient: it says that neurons are whole, not that they are the right ones."
    )

# %% [markdown]
# ### In the literature
#
# That a GLU's gate and up rows must be pruned as pairs is the starting point of Martra 2024 (doi 10.31219/osf.io/qgxea),
# and "coupled structures" were found automatically by LLM-Pruner (Ma et al. 2023, arXiv 2305.11627). For Llama-3.2-1B at
# 10 %, with *one* index set each time, Martra reports a LAMBADA perplexity of 5.4 unpruned, 17.9 with peak-to-peak
# magnitudes, 551 with L2 norms and 1523 with products of norms. So on another, larger model too the pairing is only half
# of the story, and the criterion decides the rest. That half is lesson 03.

# %% [markdown]
# ## What it costs and buys
#
# Broken or sound, 10 % less is 10 % less. All models take turns; the ceiling is what the removed FLOPs and bytes could
# give at most.

# %%
from course_utils.benchmarking import measure_speed, speedup_text

sound = variant(base)
prune_neurons(sound, activation, ratio=0.1)
models = {"unpruned": base, "separate, L1": broken, "shared, activation": sound}
speed = measure_speed(models, prompt_tokens=64, new_tokens=8, rounds=9).set_index(["model", "phase"])
quality = dict(zip(models, (unpruned, separate_l1, measured["activation"]), strict=True))

pd.DataFrame(
    {
        name: {
            "parameters": f"{model_size(model).parameters:,}",
            "weights (MB)": f"{model_size(model).bytes / 1e6:.0f}",
            "MFLOPs a token": f"{model_size(model).flops / 1e6:.0f}",
            "prefill, × unpruned": speedup_text(speed.loc[name, "prefill"]),
            "decode, × unpruned": speedup_text(speed.loc[name, "decode"]),
            "perplexity": shown(quality[name].perplexity),
            "bits/byte": f"{quality[name].bits_per_byte:.2f}",
        }
        for name, model in models.items()
    }
)

# %%
assert model_size(broken) == model_size(sound)
print("Size, FLOPs and shapes of the broken and the sound model are identical: they can't tell the two apart.")

# %% [markdown]
# ## Exercises

# %%
from course_utils.exercises.lesson_02 import check_is_exact, check_prune_glu, check_shapes

# %% [markdown]
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
# ### Exercise 2 · ●●○ · 10 minutes
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
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679
# - Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*, arXiv 1904.09751
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 03 keeps the pairing and looks for a criterion that deserves its name.
