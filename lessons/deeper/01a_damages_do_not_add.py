# ---
# jupyter:
#   course:
#     title: "Why damages don't add"
#     prerequisites: lesson 01 (L1 norm, the mean in the bias, damage in nats)
#     assets: [speeches, texts]
#     concepts: [sum of single damages, a spared block]
# ---

# %% [markdown]
# ## The question
#
# Lesson 01 cut all blocks at once. Cut one block at a time instead: do the damages add up to that of the whole cut?
#
# **Answer.** No, together they cost more. Nearly all of the excess is in the constants: with the removed neurons' means kept,
# the sum of the single damages is about the whole.

# %% [markdown] tags=["notes"]
# **The point:** the same interaction that seems to be "blocks depend on each other" goes when one constant a block is put back.
#
# **Usual questions:** "So one could choose block by block?" With the means kept, nearly, for cuts as small as these.
#
# **Wrong turns:** reading the block with the largest damage as the one to spare.
#
# **At the end you have** a reason to distrust "damage by block" pictures of cuts that keep no mean.

# %% tags=["install"]

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from tqdm import tqdm

from course_utils.lessons import here
from course_utils.measuring import perplexity
from course_utils.models import load_model, variant
from course_utils.pruning import neuron_importance, neuron_means, prune_neurons
from course_utils.support import mark, show, start, style
from course_utils.text import judging_rows, token_blocks

session = start("01a")
style()

# %%
base, tokenizer = load_model("gpt2")
blocks = [*range(len(base.transformer.h))]
texts = judging_rows(tokenizer, draw=0)
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
batches = pool.sample(128, seed=0).batches(16)
means = neuron_means(base, batches)
scores = {"L1": neuron_importance(base, "l1")}
scores["activation"] = neuron_importance(base, "activation", batches=batches)
EDITS = {"neurons cut": None, "their means kept": means}
whole = {text: perplexity(base, rows).nll for text, rows in texts.items()}


def damage(criterion, edit, cut):
    """What a cut of these blocks costs, in nats a token: one number a text."""
    model, kept = variant(base), EDITS[edit]
    prune_neurons(model, scores[criterion], ratio=0.2, means=kept, layers=cut)
    nats = {text: perplexity(model, rows).nll for text, rows in texts.items()}
    return [nats[text] - whole[text] for text in texts]


arms = [(criterion, edit) for criterion in scores for edit in EDITS]
alone, together = {}, {}  # alone: [blocks, texts]
for arm in tqdm(arms, desc="arms"):
    alone[arm] = np.array([damage(*arm, [block]) for block in blocks])
    together[arm] = np.array(damage(*arm, blocks))
summed = {arm: alone[arm].sum(axis=0) for arm in arms}
excess = {arm: together[arm] - summed[arm] for arm in arms}
for name in scores:
    cut, kept = (excess[name, edit] for edit in EDITS)
    here(f"{name}: together they cost more than the sum.", cut)
    here(f"{name}: of the excess less than a quarter is left.", cut / 4 - abs(kept))
rows = {}
for criterion, edit in arms:
    row = rows[f"{criterion}, {edit}"] = {}
    for place, text in enumerate(texts):
        row[f"{text}: sum"] = summed[criterion, edit][place]
        row[f"{text}: together"] = together[criterion, edit][place]
pd.DataFrame(rows).T.round(2)

# %%
_, panels = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True, layout="constrained")
for place, (panel, text) in enumerate(zip(panels, texts, strict=True)):
    for criterion in scores:
        ends = [(criterion, edit) for edit in EDITS]
        x, y = ([nats[arm][place] for arm in ends] for nats in (summed, together))
        look = mark(criterion) | {"label": "_", "markersize": 11}
        panel.plot(x, y, **look | {"fillstyle": "none"})
        panel.plot(x[1], y[1], **look | {"label": criterion, "linestyle": "none"})
    panel.axline((0, 0), (1, 1), linestyle=":", color=mark("whole")["color"])
    panel.set(title=text, xlabel="sum of the single damages (nats)", xlim=0)
panels[0].set_ylabel("all blocks together (nats)")
panels[0].set_ylim(0)
panels[1].legend()
show(
    "Two panels, speeches and wiki: damage of all blocks together against the sum "
    "of the single damages. Hollow marks, neurons cut, lie above the diagonal; "
    "lines lead from them down to filled marks, means kept, on the diagonal."
)

# %% [markdown]
# *A fifth of the neurons. Hollow: cut. Filled: their means kept. On the dotted line, damages add up.*
#
# ## The constants meet
#
# It is lesson 01's GPT-2, on the same rows. By L1 on speeches the single damages sum up to 0.88 nats, and all blocks together cost
# 1.11; with the means kept 0.15 and 0.16.
#
# A block that loses its neurons also loses a constant that it wrote into the stream of states, and what comes after it reads the
# sum of what all blocks wrote. There the missing constants meet. What is lost besides changes from token to token, and hardly
# meets.
#
# ## Spare one block
#
# Pictures of "damage by block" invite a rule: spare the block that costs most. Ask the model.
#
# **Predict before you run.** All blocks but one are cut by L1. Can the model get *worse* because one block is left whole?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Yes: with block 1 whole the damage on speeches is 1.25 nats, with all cut it is 1.11. With the means kept no block does so.
#
# </details>

# %%
rows = {}
for spared in [None, *blocks]:
    row = rows["none" if spared is None else f"block {spared}"] = {}
    cut = [block for block in blocks if block != spared]
    for edit in EDITS:
        found = zip(texts, damage("L1", edit, cut), strict=True)
        row |= {f"{text}, {edit}": value for text, value in found}
table = pd.DataFrame(rows).T
table.index.name = "spared"
most = table.max() - table.loc["none"]  # nats that sparing one block adds, at most
cut, kept = (most.filter(like=name) for name in ("cut", "kept"))
here("Sparing a block can cost more than cutting it.", cut - 0.05)
here("Not with the means kept.", 0.02 - kept)
table.round(2)

# %% [markdown]
# ## Take-aways
#
# - Damages of single blocks are facts about single blocks. As neurons are usually cut, the whole costs more than their sum.
# - With the means kept they nearly add, so a budget can be spent block by block. Lesson 01's last exercise lives on that.
#
# **Next:** lesson 02 takes the recipe to a Llama. In lesson 04 whole blocks go, and their constants are missed as well.
#
# ## References
#
# - An et al. 2023 (FLAP), arXiv 2312.11983: the mean of removed neurons goes into a bias
