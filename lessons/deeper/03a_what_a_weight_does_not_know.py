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
# **Answer.** TO FILL

# %% [markdown] tags=["notes"]
# **The point:** a criterion is a product of factors, and each can be taken away alone.
#
# **Usual questions:** "Which text should I use?" Lesson 12 has the answer: what the text lacks pays.
#
# **Wrong turns:** adding factors one by one and keeping the best on the text that judges.
#
# **At the end you have** a ladder that you can put any criterion of your own on.

# %% tags=["install"]

# %%
import matplotlib.pyplot as plt
import pandas as pd
from tqdm import tqdm

from course_utils.architectures import describe
from course_utils.evaluation import perplexity
from course_utils.models import load_model, variant
from course_utils.plotting import mark, show, style
from course_utils.records import read_record
from course_utils.session import safe_dtype, start
from course_utils.texts import judging_rows, token_blocks
from course_utils.width import neuron_importance, prune_neurons

session = start("03a")
style()

# %% [markdown]
# ## The ladder
#
# Each rung scores a neuron by something else: how far its weights spread (variance), how long the rows are that lead in (L2), gate's and
# up's norms multiplied, how long the column is that leads out, both, and then what no weight knows: how loud the neuron is on text, without
# the column and with it. The last rung is lesson 03's activation.

# %%
RATIO = 0.1
base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
texts = judging_rows(tokenizer, draw=0)
whole = {text: perplexity(base, rows, batch_size=16).nll for text, rows in texts.items()}


def damage(scores):
    """What the cut of the lowest costs, in nats a token of each text."""
    model = variant(base)
    prune_neurons(model, scores, ratio=RATIO)
    nats = {name: perplexity(model, rows, batch_size=16).nll for name, rows in texts.items()}
    return {name: nats[name] - whole[name] for name in texts}


def calibrated(domain, tokens):
    """Scores by activation on so many tokens of a text."""
    pool = token_blocks(tokenizer, "calibration", domain=domain, tokens=16_384, length=64)
    rows = pool.sample(max(1, tokens // 64), seed=0)
    return neuron_importance(base, "activation", batches=rows.batches(16))


columns = [mlp.columns.float().norm(dim=0) for mlp in describe(base).mlps]
activation = calibrated("speeches", 8192)
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
found = {name: damage(scores) for name, scores in tqdm(ladder.items(), desc="cuts")}

# %%
cuts = read_record("random_cuts").query("criterion == 'random' and edit == 'shared'")
form = str(base.dtype).removeprefix("torch.")
cuts = cuts[(cuts.draw == 0) & (cuts.dtype == form)].set_index("text").damage
table = {}
for name, cost in found.items():
    table[name] = {f"{text}, nats": value for text, value in cost.items()}
    for text, value in cost.items():
        table[name][f"{text}, random beaten"] = (cuts[text] > value).sum()
pd.DataFrame(table).T.round(2)

# %% [markdown]
# *A tenth of the neurons; random beaten: of the nineteen cuts of lesson 03's record.*
#
# ## How much text?
#
# **Predict before you run.** Lesson 03 read 8,192 tokens. How many are enough, and does it matter of which text?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# TO FILL
#
# </details>

# %%
AMOUNTS = (64, 256, 1024, 8192)
read = {
    (domain, tokens): damage(calibrated(domain, tokens))
    for domain in ("speeches", "wiki")
    for tokens in tqdm(AMOUNTS, desc=domain)
}

# %%
_, panels = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
LOOKS = {"speeches": mark("activation"), "wiki": mark("published")}
for panel, text in zip(panels, texts, strict=True):
    for domain, look in LOOKS.items():
        nats = [read[domain, tokens][text] for tokens in AMOUNTS]
        panel.plot(AMOUNTS, nats, **look | {"label": f"read {domain}"})
    panel.axhline(cuts[text].min(), **{**mark("random"), "marker": "", "label": "best of 19 random"})
    panel.set(xscale="log", xlabel="tokens read", title=f"judged on {text}")
panels[0].set_ylabel("nats lost a token")
panels[0].set_ylim(0)
panels[1].legend()
show("TO FILL")

# %% [markdown]
# ## Take-aways
#
# TO FILL
#
# **Next:** lesson 12 asks what else such a cut takes, and who chose it.
#
# ## References
#
# - Sun et al. 2023 (Wanda), arXiv 2306.11695: weights times activations
