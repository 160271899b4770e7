# ---
# jupyter:
#   course:
#     title: "What doesn't a weight know?"
#     prerequisites: lesson 03 (GLU neurons, activation, nineteen random cuts)
#     assets: [smollm2, speeches, texts]
#     concepts: [a ladder of criteria, how much text a score needs]
# ---

# %% [markdown]
# ## The question
#
# Activation beats chance, weights alone don't. Which of its two factors does it: what a neuron writes, or how loud it is on text?
#
# **Answer.** How loud it is. By loudness alone, a tenth of the neurons costs 0.08 nats on speeches, hardly more than with the column.
# By any of these five scores of weights it costs over four nats. One row of text is enough to beat nineteen random cuts.

# %% [markdown] tags=["notes"]
# **The point:** a criterion is a product of factors, and each can be taken away alone.
#
# **Usual questions:** "Which text should I use?" Lesson 11 has the answer: what the text lacks pays.
#
# **Wrong turns:** adding factors one by one and keeping the best on the text that judges.
#
# **At the end you have** a ladder that you can put any criterion of your own on.

# %% tags=["install"]

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from course_utils.lessons import here
from course_utils.measuring import perplexity
from course_utils.models import describe, load_model, variant
from course_utils.pruning import neuron_importance, prune_neurons, strongest
from course_utils.support import log_ticks, mark, read_record, safe_dtype
from course_utils.support import show, start, style
from course_utils.text import judging_rows, token_blocks

session = start("03a")
style()

# %%
base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
texts = judging_rows(tokenizer, draw=0)


def nats(model):
    """Loss on each text, nats per token."""
    scores = [perplexity(model, rows, batch_size=16) for rows in texts.values()]
    return np.array([score.nll for score in scores])


whole = nats(base)


def damage(scores):
    """What a cut of the lowest tenth costs on each text, nats per token."""
    model = variant(base)
    prune_neurons(model, scores, ratio=0.1)
    return nats(model) - whole


def activation_on(domain, tokens):
    """Scores by activation on so many tokens of a text."""
    options = {"domain": domain, "tokens": 8192, "length": 64}
    pool = token_blocks(tokenizer, "calibration", **options)
    rows = pool.sample(tokens // 64, seed=0)
    return neuron_importance(base, "activation", batches=rows.batches(16))


# %%
columns = [mlp.columns.float().norm(dim=0) for mlp in describe(base).mlps]
activation = activation_on("speeches", 8192)
product = neuron_importance(base, "product")
ladder = {
    "variance": neuron_importance(base, "variance"),
    "rows (L2)": neuron_importance(base, "l2"),
    "gate × up": product,
    "column": columns,
    "gate × up × column": [p * c for p, c in zip(product, columns, strict=True)],
    "loudness": [a / c for a, c in zip(activation, columns, strict=True)],
    "loudness × column": activation,
}
costs = {name: damage(scores) for name, scores in tqdm(ladder.items(), desc="cuts")}
cuts = read_record("random_cuts")  # lesson 03's nineteen
form = str(base.dtype).removeprefix("torch.")
cuts = cuts[(cuts.criterion == "random") & (cuts.edit == "shared")]
cuts = cuts[(cuts.draw == 0) & (cuts.dtype == form)].set_index("text").damage

# %%
_, panel = plt.subplots(figsize=(9, 4.8), layout="constrained")
for place, (name, values) in enumerate(costs.items()):
    look = mark("activation" if "loudness" in name else "L1") | {"markersize": 11}
    for value, fill in zip(values, ("full", "none"), strict=True):
        panel.plot(value, place, **look | {"label": "_", "fillstyle": fill})
for text, fill in zip(texts, ("full", "none"), strict=True):
    look = mark("random") | {"label": text, "fillstyle": fill, "linestyle": "none"}
    panel.plot(cuts[text], [len(costs)] * len(cuts[text]), **look)
panel.set(xscale="log", xlabel="damage (nats per token)")
panel.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
panel.set_yticks(range(len(costs) + 1), [*costs, "19 random cuts"])
panel.invert_yaxis()
panel.legend(loc="center")
show(
    "Seven criteria, one below the other, and what their cuts cost on two texts, "
    "logarithmic: the five of weights lie far to the right of nearly all random "
    "cuts, the two of loudness far to their left."
)

# %% [markdown]
# *A tenth of the neurons. Filled: speeches; hollow: wiki. Further left is better.*
#
# ## The ladder
#
# Each rung scores a neuron by something else: how far its weights spread (variance), how long the rows are that lead in (L2), gate's and
# up's norms multiplied, how long the column is that leads out, all three, and then what no weight knows: how loud the neuron is on text,
# without the column and with it. The last rung is lesson 03's activation.

# %%
table = {}
for name, values in costs.items():
    row = table[name] = {}
    for text, value in zip(texts, values, strict=True):
        row[f"{text}, nats"] = f"{value:.2f}"
        row[f"{text}, random beaten"] = (cuts[text] > value).sum()
*by_weights, loud, both = costs.values()
here("Weights alone cost more than loudness.", np.ravel(by_weights - loud))
here("The column adds less than a tenth of a nat.", 0.1 - abs(loud - both))
pd.DataFrame(table).T

# %% [markdown]
# More weights make it no better: the product of all three is the worst.
#
# ## What L1 takes
#
# Lesson 03 said that L1 takes many of the loudest neurons. Here they are, in the block where it takes most of the most active
# twentieth.

# %%
l1, errors = neuron_importance(base, "l1"), []
for weights, active in zip(l1, activation, strict=True):
    loud = active.topk(len(active) // 20).indices.cpu()
    errors.append((~torch.isin(loud, strongest(weights, 0.1).cpu())).sum().item())
block = int(np.argmax(errors))
x, y = l1[block].cpu(), activation[block].cpu()
stay = torch.isin(torch.arange(len(x)), strongest(x, 0.1))
_, panel = plt.subplots(figsize=(9, 4.6), layout="constrained")
for some, how, words in ((stay, "random", "stays"), (~stay, "L1", "L1 cuts it")):
    look = mark(how) | {"label": words, "linestyle": "none", "marker": "."}
    panel.plot(x[some], y[some], **look)
panel.set(xlabel="L1 norm", ylabel="activation (how loud)", yscale="log")
panel.legend(title=f"a neuron of block {block}")
log_ticks(panel.yaxis)
show(
    "A dot per neuron of a block, activation against L1 norm. The neurons with the "
    "smallest L1 norms, which L1 cuts, are among the loudest of all."
)

# %% [markdown]
# *A dot per neuron. The blue ones, with the smallest weights, go; they are among the loudest.*
#
# ## How much text?
#
# **Predict before you run.** Lesson 03 read a thousand tokens. How many are enough, and does it matter of which text?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A single row of 64 beats the best random cut on both texts, and beyond a thousand tokens little is gained. Of which text matters more,
# from 256 tokens on: judged on wiki, 256 tokens of wiki beat 8,192 of speeches, and the other way round. A single row is too short to
# show such a difference.
#
# </details>

# %%
AMOUNTS = (64, 256, 1024, 8192)
read = {"speeches": [], "wiki": []}
for domain, found in read.items():
    for tokens in tqdm(AMOUNTS, desc=domain):
        found.append(damage(activation_on(domain, tokens)))
read = {domain: np.array(found) for domain, found in read.items()}
least = np.array([cuts[text].min() for text in texts])
margins = np.ravel([least - found[0] for found in read.values()])
here("64 tokens beat every random cut.", margins)
own, other = (read[name][[1, 3]] for name in texts)
margins = [other[1, 0] - own[0, 0], own[1, 1] - other[0, 1]]
here("256 tokens of the judging kind beat 8,192 of the other.", margins)

# %%
_, panels = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
looks = {"speeches": mark("activation"), "wiki": mark("published")}
for place, (panel, text) in enumerate(zip(panels, texts, strict=True)):
    for domain, look in looks.items():
        values = read[domain][:, place]
        panel.plot(AMOUNTS, values, **look | {"label": f"read {domain}"})
    look = mark("random") | {"marker": "", "label": "best of 19 random"}
    panel.axhline(cuts[text].min(), **look)
    panel.set(xscale="log", xlabel="tokens read", title=f"judged on {text}")
    panel.set_xticks(AMOUNTS, [f"{amount:,}" for amount in AMOUNTS])
    panel.minorticks_off()
panels[0].set_ylabel("damage (nats per token)")
panels[0].set_ylim(0)
panels[1].legend()
show(
    "Nats lost against tokens read, from 64 to 8,192, judged on speeches and on "
    "wiki: each curve falls at first and lies below the best random cut; "
    "on each text the curve that read the same kind lies lower."
)

# %% [markdown]
# *Lower is better.*
#
# ## Take-aways
#
# - What a neuron does on text is nearly the whole score. What its weights are adds little, and alone misleads.
# - Some hundred tokens are enough, best of the kind of text that the model will meet.
#
# **Next:** lesson 11 asks what else such a cut takes, and who chose it.
#
# ## References
#
# - Sun et al. 2023 (Wanda), arXiv 2306.11695: weights times activations
