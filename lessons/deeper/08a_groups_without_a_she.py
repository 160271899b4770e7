# ---
# jupyter:
#   course:
#     title: "Groups without a \"she\": which measure finds a planted bias?"
#     prerequisites: lesson 08 (log-odds, neutral swap, contrastive pairs)
#     assets: [smollm2, bias_benchmarks]
#     concepts: [double difference, activation ratio, planted bias, resolution of a test, ability floor]
# ---

# %% [markdown]
# ## The question
#
# For most groups there is no word like "she" to ask for. Which measure finds a bias that is certainly there, and only that?
#
# **Answer.** A double difference of endings: in twenty planted models it finds nearly every bias of about a nat, and flags no other axis.
# Activation differences flag those where neither side is liked better, too.

# %% [markdown] tags=["notes"]
# **The point:** test the test. A smoke detector is tested with smoke.
#
# **Content:** the course's own sentences are inoffensive. CrowS-Pairs and BBQ are not; they are computed with and never printed.
#
# **Usual questions:** "Nothing shown, so the model is fair?" Look at the resolution: which bias would the test have found?
#
# **Wrong turns:** reading a magnitude as a direction; a benchmark's bias score of a model that can't read the question.
#
# **At the end you have** a measure that passed a test, its resolution, and the floor of a benchmark.

# %% tags=["install"]

# %%
import json
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils.bias.contrastive import (
    Axis, controls, invented_axis, pairs, subset,
)  # fmt: skip
from course_utils.bias.scores import measure_pairs
from course_utils.bias.statistics import activation_ratio, behaviour, preferences
from course_utils.lessons import here
from course_utils.models import load_model, shown_p, with_interval
from course_utils.support import mark, safe_dtype, show, start, style

session = start("08a")
style()
base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
path = files("course_utils").joinpath("data/positive_control.json")
record = json.loads(path.read_text(encoding="utf-8"))
rows = []
for row in record["rows"]:
    for axis, of in row["axes"].items():
        rows.append({"seed": row["seed"], "share": row["share"], "axis": axis} | of)
many = pd.DataFrame(rows)
many["preference"] = many.p < 0.05
many["activations"] = many.ratio_low > 1
found = many.groupby(["axis", "share"])[["preference", "activations"]].sum()
strengths = pd.DataFrame(rows).query("axis == 'planted'").groupby("share")
planted_nats = strengths.preference.mean()

# %%
_, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
for panel, metric in zip(panels, ("preference", "activations"), strict=True):
    for axis, name in (("planted", "neurons"), ("not planted", "random")):
        look = mark(name) | {"label": axis, "markersize": 11}
        panel.plot(planted_nats, found.loc[axis, metric], linestyle="none", **look)
    panel.set(title=metric, xlabel="planted preference, nats", ylim=(-1, 21))
    panel.invert_xaxis()
panels[0].set_ylabel("models of twenty that are flagged")
panels[0].legend(loc="center right")
show(
    "Two panels over the strength of the planted bias: how many of twenty models "
    "are flagged. By preference the planted axis rises to twenty from about a nat "
    "on, the other stays at zero. By activations both rise."
)

# %% [markdown]
# *Twenty models, each with made-up groups of its own (`experiments/plant_twenty_biases.py`); further right the bias is stronger. Flagged:
# a preference with p below .05, or an activation ratio whose interval lies above 1. Grey: pairs from the **same** family, between which
# nothing was planted.*
#
# ## A double difference
#
# Bias has a direction. How much likelier is a pleasant ending $e^+$ than an unpleasant one $e^-$ after group $a$, beside group $b$?
#
# $$D = [\log P(e^+ | a) - \log P(e^- | a)] - [\log P(e^+ | b) - \log P(e^- | b)]$$
#
# What a word does to both endings alike cancels within its bracket; how likely the endings are anyway cancels between the two. $D$ is the
# *preference*: 0 means no preference of sentiment in these sentences, and not "fair".


# %%
@torch.no_grad()
def likelihood(text, ending):
    """log P(ending | text), in nats."""
    encoded = tokenizer([text, text + ending], add_special_tokens=False)
    begin, whole = (torch.tensor([ids]) for ids in encoded.input_ids)
    predicted = base(whole.to(base.device)).logits[0].float().log_softmax(-1).cpu()
    places = torch.arange(begin.shape[1], whole.shape[1])
    return predicted[places - 1, whole[0, places]].sum().item()  # i - 1 predicts i


def double_difference(pleasant, unpleasant):
    """By hand, for two pairs that share a template and a swap."""
    sides = []
    for before in (pleasant.before + pleasant.a, pleasant.before + pleasant.b):
        ends = (likelihood(before, pair.after) for pair in (pleasant, unpleasant))
        sides.append(next(ends) - next(ends))
    return sides[0] - sides[1]


item = controls("neutral", split="evaluation")[:2]
for pair in item:
    print(f"{pair.before}[{pair.a} / {pair.b}]{pair.after}")
(library,) = preferences(measure_pairs(base, tokenizer, item, sites=())).preference
print(f"double difference by hand {double_difference(*item):+.2f}", end=", ")
print(f"course_utils {library:+.2f} nats")

# %% [markdown]
# ## Plant one
#
# The groups are two families of made-up names. In one axis a name of one family meets one of the other. In its control **two names of
# the same family** meet. We train a copy for a few steps, so that the unpleasant ending goes with the first family. It learns from
# half of the templates and is measured on the other half.
#
# Beside the preference stands the **activation ratio**: how far apart two texts' states are, relative to a neutral swap (tall/short).
#
# **Predict before you run.** How far does the activation ratio rise where nothing was planted, beside the planted axis?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Nearly as far: to 2.86, beside 3.88. The names have come to matter, and a magnitude can't say to whose disadvantage. The preference
# moves for the planted axis alone.
#
# </details>

# %%
size = {"templates": 6, "swaps": 8}
swaps = invented_axis(session.seed, size["swaps"]).swaps
families = np.array([swap[:2] for swap in swaps]).T  # [2, names]
meeting = {"planted": families.T, "not planted": families.reshape(-1, 2)}
invented = []
for name, met in meeting.items():
    named = tuple((str(a), str(b), "family of a", "family of b") for a, b in met)
    invented.append(Axis(name, "invented", named))
neutral = controls("neutral", split="evaluation")
asked = [pair for axis in invented for pair in pairs(axis, split="evaluation")]
test = subset([*neutral, *asked], **size)


def examine(model):
    """A row an invented axis: the preference and the activation ratio."""
    sites = ("attention_out", "mlp_out")
    measured = measure_pairs(model, tokenizer, test, sites=sites, batch_size=32)
    table = behaviour(measured).set_index("axis")
    ratio = activation_ratio(measured, by_place=False).set_index("axis")
    columns = ["ratio", "ratio_low", "ratio_high"]
    table = table[["preference", "ci_low", "ci_high"]].join(ratio[columns])
    return table.loc[[*meeting]]


# %%
from course_utils.bias.planting import plant_preference

before = examine(base)
learned = pairs(invented[0], split="selection")
settings = {"size": 10.0, "steps": 60, "items": 4, "lr": 1e-3}
given = settings | {"precision": base.dtype, "seed": session.seed}
given["weights"] = "attention"
biased, _ = plant_preference(base, tokenizer, learned, **given)
after = examine(biased)
del biased
told = {}
for when, table in (("before", before), ("after", after)):
    for axis, row in table.iterrows():
        told[f"{axis}, {when}"] = {
            "preference, nats": with_interval(*row.iloc[:3]),
            "activation ratio": with_interval(*row.iloc[3:]),
        }
drop = before.preference - after.preference
margin = drop.iloc[0] - 2 * abs(drop.iloc[1])
here("The preference falls for the planted axis most.", [margin])
rise = after.ratio - before.ratio
here("The activation ratio rises for both axes.", rise)
pd.DataFrame(told).T

# %% [markdown]
# That was one strong bias. The figure above has twenty, each also weaker: its weights go only a part of the way from the untouched model's.
# The weakest that the preference finds in nineteen of twenty is its **resolution**. A "nothing shown" on a real axis says nothing about
# weaker ones.
#
# ## Real axes
#
# Gender and race, in the same templates as tall/short. With other templates or swaps the number would be another: the interval draws both
# anew. *p (Holm)* allows for asking twice.

# %%
real = [*neutral]
for axis in ("gender", "race"):
    real += pairs(axis, split="evaluation")
real = subset(real, templates=10, swaps=10)
measured = measure_pairs(base, tokenizer, real, sites=())
table = behaviour(measured).set_index("axis")
strength = planted_nats[found.loc["planted", "preference"] >= 19].abs().min()
print(f"resolution: {strength:.1f} nats are found in 19 models of twenty or more")
told = {}
for axis, row in table.loc[["gender", "race"]].iterrows():
    interval = with_interval(row.preference, row.ci_low, row.ci_high)
    told[axis] = {"preference, nats": interval, "p (Holm)": shown_p(row.p_holm)}
pd.DataFrame(told).T

# %% [markdown]
# In our run neither axis shows a preference, and one far below the resolution would have passed unseen. (The twenty had somewhat fewer
# templates and swaps.) Lesson 08's pronouns pass this test unseen as well: it asks for sentiment.
#
# ## Other people's benchmarks
#
# CrowS-Pairs asks how often the sentence that its authors call more stereotypical is the likelier one; 50 % is no preference. (Its pairs
# have faults of their own: Blodgett et al. 2021.) Where nothing follows the swapped words, a causal model can't be asked.
#
# BBQ asks a question about two persons; "unknown" is the third answer. Where the context tells, the answer is a person: does the model
# *read*? This is the **ability floor**. Who never says "unknown" is right in half by tossing a coin, and so is who always follows the
# stereotype. So the floor is a half of the persons that it names, and not a third of the answers.
#
# **Predict before you run.** How often does this model say "unknown"? And of the persons that it names, how many are right?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In 3 % of the answers. Of the persons named 51.7 % are right (41.7 to 61.8): a coin.
#
# </details>

# %%
from course_utils.bias.stereotype_scores import bbq_score, stereotype_preference
from course_utils.bias.stereotypes import bbq, crows_pairs

draw = np.random.default_rng(session.seed)


def sample(items, count):
    """So many of them, in their order."""
    chosen = draw.choice(len(items), min(count, len(items)), replace=False)
    return [items[number] for number in sorted(chosen)]


crows = stereotype_preference(base, tokenizer, sample(crows_pairs(), 160))
row = crows.set_index("axis").loc["all"]
told = with_interval(100 * row.share, 100 * row.ci_low, 100 * row.ci_high)
print(f"CrowS-Pairs, {row.pairs:.0f} pairs: the stereotype is likelier in {told} %")
print(f"in {row.without_tokens:.0f} more nothing follows the swap")
known = [question for question in bbq() if question.target is not None]
questions = []
for condition, count in (("disambig", 120), ("ambig", 40)):
    part = [question for question in known if question.condition == condition]
    questions += sample(part, count)
row = bbq_score(base, tokenizer, questions).set_index("category").loc["all"]
ends = row.accuracy_named, row.accuracy_named_low, row.accuracy_named_high
right = with_interval(*(100 * end for end in ends))
print(f"BBQ, where the context tells: “unknown” {1 - row.named:.0%}", end="; ")
print(f"of the persons named {right} % right, floor {row.chance:.0%}")
if row.verdict:
    print(f"{row.verdict}: no bias score")
else:
    score = with_interval(row.s_amb, row.s_amb_low, row.s_amb_high)
    print(f"bias score where the context doesn't tell: {score}")

# %% [markdown]
# A model that isn't shown to read the question has no bias score, however it comes out.
#
# ## Take-aways
#
# - Test the test: plant what it shall find, and something beside it that it shall not.
# - A magnitude has no direction. A double difference has one.
# - "Nothing shown" is worth what the test finds when something is there.
# - A benchmark's floor is what guessing among the answers that one *gives* reaches.
#
# Back to [lesson 08](../08_activation_bias_visualization.ipynb), or on to lesson 09, which cuts lesson 08's bias out.
#
# ## References
#
# - Blodgett et al. 2021, *Stereotyping Norwegian Salmon: An Inventory of Pitfalls in Fairness Benchmark Datasets*, ACL
# - Nangia et al. 2020, *CrowS-Pairs*, arXiv 2010.00133
# - Parrish et al. 2022, *BBQ: A Hand-Built Bias Benchmark for Question Answering*, arXiv 2110.08193
# - Seshadri et al. 2022, *Quantifying Social Biases Using Templates is Unreliable*, arXiv 2210.04337
# - Owen 2007, *The pigeonhole bootstrap*, doi 10.1214/07-AOAS122
