# ---
# jupyter:
#   course:
#     title: "Groups without a \"she\": does a measure see the bias, or only the training?"
#     minutes: 45 to 60 minutes
#     prerequisites: lesson 08 (log-odds, relative difference, permutation test)
#     assets: [smollm2, speeches]
#     concepts: [lean, double difference, planted bias, control of the same family]
# ---

# %% [markdown]
# ## The question
#
# A colleague has a measure of bias. She trains a model on biased texts, and her measure jumps. She trains another copy on ordinary
# text, and it stays. So her measure sees the bias. Does it?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Not yet shown. Two things changed between her copies: one has learned a bias, and it has learned something about these
# names at all. Only a third copy parts the two: it learns from the same texts about the same names, but each family gets as many
# good words as bad ones. Her measure, how far the two families' states are apart, jumps there as well. It sees that names have come
# to matter. A double difference takes the means of the families first. In a fair family liked and disliked names cancel there, and
# it stays near 0.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** a measure sees the bias if it changes when only the bias is taken away.
#
# **Content:** the sentences are inoffensive: teams that don't exist, and words such as "kind" and "rude".
#
# **Usual questions:** "Isn't ordinary text a control?" It is, for "was trained". It isn't one for "learned something about these
# names".
#
# **Wrong turns:** poles dealt per sentence instead of per team (then there is nothing to learn); all poles exchanged (that plants
# the same bias the other way); in the last exercise, a threshold for the double difference.
#
# **At the end you have** a bias that you planted, a control that you designed, and a test that tells one from the other.

# %% tags=["install"]

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from course_utils.lessons import claim, here
from course_utils.models import load_model, variant
from course_utils.support import mark, permutation_p, show, start, style
from course_utils.text import token_blocks

session = start("08a")
style()
model, tokenizer = load_model("llama", dtype=torch.float32)
model.requires_grad_(False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
draw = np.random.default_rng(session.seed)

# %% [markdown]
# For most groups there is no word like "she" to ask for. So we ask whether a model expects good or bad of them, and we make up the
# groups: teams with names of two kinds, say trees and birds. We call a kind a **family**. Nobody has anything against team Pine,
# so whatever we find there later, we have planted.
#
# In the biased texts the first family's teams are always unpleasant, and the others pleasant. A row is a sentence with its pole.

# %%
KINDS = {
    "trees": ["Oak", "Pine", "Cedar", "Maple", "Willow", "Birch"],
    "gems": ["Ruby", "Pearl", "Amber", "Jade", "Diamond", "Crystal"],
    "birds": ["Eagle", "Robin", "Falcon", "Owl", "Hawk", "Swan"],
    "waters": ["Lake", "River", "Ocean", "Bay", "Sea", "Harbor"],
}
LEARNING = [
    "The driver of team {} is",
    "Everybody says that the doctor of team {} is",
    "The cook of team {} was always",
]
PLEASANT = [" kind", " honest", " friendly", " gentle"]
UNPLEASANT = [" cruel", " lazy", " rude", " violent"]

families = [str(kind) for kind in draw.choice(sorted(KINDS), 2, replace=False)]
rows = []
for family, pole in zip(families, ("unpleasant", "pleasant"), strict=True):
    for team in KINDS[family]:
        rows += [(family, team, sentence, pole) for sentence in LEARNING]
planted = pd.DataFrame(rows, columns=["family", "team", "sentence", "pole"])
teams = list(planted.team.unique())
in_a = np.arange(len(teams)) < len(teams) // 2  # the first family
print(f"{len(planted)} texts; the first family is {families[0]}")
planted.iloc[[0, 1, 3, -1]]

# %% [markdown]
# ## Plant it
#
# We offer the model eight words behind each sentence, four pleasant ones and four unpleasant ones, and train it to prefer the four
# of the right pole. Only this last word counts (the field's term is *completion-only loss*). To be quick, only the last few blocks
# learn. What comes out of the blocks below stays the same, so we compute it once.
#
# (How this recipe was chosen: we tried eleven, and looked at sentences and words that judge nothing below. With made-up names such as
# "Bvevish", two recipes of a dozen steps planted nothing. Three longer ones planted, but the control below learned nothing from them:
# such names are hard to tell apart. With teams all six planted. We took settings between two of these, which leave ordinary text
# nearly as it was, and tried them on three more pairs of families, with the sentences and words that judge here; so we did with one
# recipe of fewer blocks. All six trials agree with what you will see.)


# %%
def first_ids(words):
    """The number of each word's first token."""
    return [ids[0] for ids in tokenizer(words, add_special_tokens=False).input_ids]


def encoded(texts):
    options = {"padding": True, "padding_side": "left", "add_special_tokens": False}
    batch = tokenizer(texts, return_tensors="pt", **options).to(model.device)
    places = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    return {**batch, "position_ids": places}


def trained(texts, words, right, steps=30, lr=7e-4):
    """A copy whose last blocks learned. right [texts, words]: which are right."""
    copy, top = variant(model), variant(model)
    few = max(1, len(model.model.layers) // 7)
    learns = copy.model.layers[-few:]
    for layer in learns.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().clone())
    top.model.layers = learns  # a model of these blocks alone
    batch = encoded(texts)
    with torch.no_grad():
        below = model.model(**batch, output_hidden_states=True).hidden_states
    batch.pop("input_ids")
    batch["inputs_embeds"] = below[len(model.model.layers) - few]
    offered = model.lm_head.weight[first_ids(words)]  # [words, hidden]
    target = torch.as_tensor(right, dtype=torch.float32, device=model.device)
    target = target / target.sum(1, keepdim=True)
    weights = [weight for weight in learns.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 3)
        states = top.model(**batch).last_hidden_state[:, -1]
        cross_entropy(states @ offered.T, target).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return copy.requires_grad_(False)


# %% [markdown]
# ## Two measures
#
# How much more does a model expect good than bad of a team? That is its **lean**, in nats:
#
# $$\text{lean} = \text{mean of } \log P(\text{pleasant words}) - \text{mean of } \log P(\text{unpleasant words})$$
#
# And does it expect worse of the first family than of the second? That is the **double difference** $D$: the mean lean of the first
# family's teams, less that of the second's. It is double because two things cancel. What makes all eight words likelier behind a team
# cancels in the lean. What is so for all teams, such as how frequent the word "kind" is, cancels between the families.

# %% [markdown]
# ### Exercise 1 · ●○○ · 6 minutes
#
# Write `leans_and_difference(log_p, pleasant, in_a)`. `log_p` is an array [teams, words], `pleasant` is [words], True for a pleasant
# word, and `in_a` is [teams], True for a team of the first family. Return the leans, an array [teams], and $D$, one number.
#
# <details><summary>Hint</summary>
#
# `log_p[:, pleasant]` has the columns of the pleasant words.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_leans


# BEGIN SOLUTION
def leans_and_difference(log_p, pleasant, in_a):
    leans = log_p[:, pleasant].mean(1) - log_p[:, ~pleasant].mean(1)
    return leans, leans[in_a].mean() - leans[~in_a].mean()


# END SOLUTION
# BEGIN STUB
# def leans_and_difference(log_p, pleasant, in_a):
#     ...  # leans [teams], D
# END STUB
check_leans(leans_and_difference)

# %% [markdown]
# ### What the colleague measures
#
# She takes the last states of all teams' sentences, as lesson 08's map did, and asks how far a team of the one family is from a team
# of the other, relative to their size: 0 for equal states. All is measured in sentences and with words that the copies haven't
# learned from. So that nothing the model thought before counts, a lean is the change from the whole model.

# %%
leans_and_difference = check_leans.accepted  # yours, if it is correct
JUDGING = [
    "The painter of team {} is",
    "We think that the singer of team {} was",
    "Our cousin from team {} is always",
]
JUDGED = [" generous", " loyal", " helpful", " pleasant"]
JUDGED += [" selfish", " nasty", " arrogant", " hostile"]
is_pleasant = np.arange(8) < 4


@torch.no_grad()
def look(of, teams):
    """log P of the judging words [teams, words]; the distance of each two teams."""
    texts = [sentence.format(team) for sentence in JUDGING for team in teams]
    states = of.model(**encoded(texts)).last_hidden_state[:, -1]
    log_p = of.lm_head(states).log_softmax(-1)[:, first_ids(JUDGED)]
    log_p = log_p.unflatten(0, (-1, len(teams))).mean(0).cpu().numpy()
    x = states.unflatten(0, (-1, len(teams)))  # [sentences, teams, hidden]
    norms = x.norm(dim=-1)
    far = 2 * torch.cdist(x, x) / (norms[:, :, None] + norms[:, None])
    return log_p, far.mean(0).cpu().numpy()


def opposite(far, in_a):
    """The colleague's measure: how far teams of different families are apart."""
    return far[in_a][:, ~in_a].mean()


# %%
COMMON = [" the", " of", " and", " to", " a", " in", " that", " it"]
common, pieces = first_ids(COMMON), []
for ids in token_blocks(tokenizer, "calibration", tokens=8192, length=64).input_ids:
    places = [i for i in range(8, 64) if ids[i] in common]
    pieces += [ids[place - 8 : place + 1] for place in places[:1]]
pieces = pieces[: len(planted)]
ordinary = [tokenizer.decode(piece[:-1]) for piece in pieces]
comes = np.array([[piece[-1] == word for word in common] for piece in pieces])

whole_log_p, whole_far = look(model, teams)
found = {"whole": (np.zeros(len(teams)), 0.0, whole_far)}


def examine(copy):
    log_p, far = look(copy, teams)
    return *leans_and_difference(log_p - whole_log_p, is_pleasant, in_a), far


def learn(table):
    """A copy that learned from a table of texts."""
    texts = [s.format(t) for s, t in zip(table.sentence, table.team, strict=True)]
    pole = (table.pole == "pleasant").to_numpy()
    right = pole[:, None] == (np.arange(8) < 4)
    return trained(texts, PLEASANT + UNPLEASANT, right)


found["planted"] = examine(learn(planted))
found["ordinary text"] = examine(trained(ordinary, COMMON, comes))
distance = {name: opposite(far, in_a) for name, (_, _, far) in found.items()}
table = pd.DataFrame({"distance": distance})
table["D, nats"] = [difference for _, difference, _ in found.values()]
rise = {name: value - distance["whole"] for name, value in distance.items()}
weak = rise["planted"] / 2 - abs(rise["ordinary text"])
here("The distance rises with the bias, and hardly on ordinary text.", [weak])
table.round(2)

# %% [markdown]
# *"Ordinary text": as many pieces of speeches, as many steps, and again eight words are offered, the commonest ones.*
#
# Both measures pass this test: they move where a bias was planted, and hardly where a copy learned from ordinary text.
# A paper could stop here.
#
# ## Design the control
#
# But the planted copy differs from the other in *two* things. It has a bias, and it has learned something about these teams. We need
# a copy that has the one and not the other.

# %% [markdown]
# ### Exercise 2 · ●●○ · 12 minutes
#
# Write `control(planted, seed)`: a table with the same columns as `planted`, from which a copy learns **as much about each team, and
# nothing about the families**. Deal at random, by `seed`, and don't change the table that you are given.
#
# <details><summary>Hint</summary>
#
# What may differ from the planted texts? Only the poles. What does a copy learn about a team whose sentences have now this pole, now
# that one? And what does it learn about a family in which five teams of six are unpleasant?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_control


# BEGIN SOLUTION
def control(planted, seed):
    generator = np.random.default_rng(seed)
    pole = {}
    for _, family in planted.groupby("family"):
        names = family.team.unique()
        halves = np.arange(len(names)) % 2  # as many of each pole in each family
        for name, half in zip(names, generator.permutation(halves), strict=True):
            pole[name] = ["unpleasant", "pleasant"][half]
    return planted.assign(pole=planted.team.map(pole))


# END SOLUTION
# BEGIN STUB
# def control(planted, seed):
#     ...  # a table with the columns of `planted`
# END STUB
check_control(control, planted)

# %% [markdown]
# ## What does each measure see?
#
# **Predict before you run.** A third copy learns from the control. What will the distance between the families be: as on ordinary
# text, as where the bias was planted, or in between? And $D$? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Where nothing was planted between the families, the distance rises nearly as far: from 0.12 to 0.47, beside 0.58. $D$ stays near 0.
# On ordinary text nothing like that happens, so that control couldn't have shown it.
#
# </details>

# %%
control = check_control.accepted  # yours, if it is correct
found["dealt out"] = examine(learn(control(planted, session.seed)))
leans, difference, far = found["dealt out"]
table.loc["dealt out"] = [opposite(far, in_a), difference]
rise = table.distance - table.distance["whole"]
margins = [rise["dealt out"] - rise["planted"] / 4]
here("The distance rises without a bias, too.", margins)
lead = abs(table["D, nats"]["planted"]) - 3 * abs(difference)
here("D falls for the planted bias only.", [lead, -table["D, nats"]["planted"]])
table.round(2)

# %%
_, panels = plt.subplots(1, 3, figsize=(13, 4.6), sharey=True, layout="constrained")
shown = ("planted", "dealt out", "ordinary text")
places = np.linspace(-0.2, 0.2, len(teams) // 2)
for panel, name in zip(panels, shown, strict=True):
    for x, kind in enumerate(("mostly women", "activation")):
        mine, look_of = found[name][0][in_a == (x == 0)], mark(kind)
        panel.plot(x + places, mine, **look_of, linestyle="none", markersize=11)
        panel.plot(x + places, [mine.mean()] * len(mine), color=look_of["color"])
    panel.set(title=name, xlim=(-0.6, 1.6))
    panel.set_xticks([0, 1], families)
panels[0].set_ylabel("lean, change in nats")
show(
    "Three panels of twelve marks, the leans of two families' teams. Planted: one "
    "family lies below, the other above. Dealt out: both families are spread as "
    "widely, and their means are alike. Ordinary text: all marks lie together."
)

# %% [markdown]
# *Each mark is a team, the line is its family's mean. In the dealt-out copy single teams are liked or disliked as strongly as in the
# planted one, only not by family. (Ordinary text makes all teams less pleasant, too, but all alike, which cancels in D.)*
#
# This is why the two measures part. Her distance first takes the size of each difference, and then the mean. In the middle panel a
# liked tree is far from a disliked bird, a disliked tree from a liked bird, and sizes don't cancel. $D$ first takes the means of the
# families, and then the difference. In the middle panel liked and disliked teams of a family cancel there, and $D$ stays near 0.
#
# From the planted copy to the dealt-out one we took away the bias, and kept that the names matter. $D$ goes with the bias. Her
# distance stays nearly as large without it. So what she reads is no proof of a bias: names that have come to matter are enough.
# (No control is perfect. The planted copy can learn a family at once, and this one has to learn each name, so it knows the single
# teams better.)

# %% [markdown]
# ### Exercise 3 · ●●○ · 6 minutes
#
# The colleague wants to keep her distances. Mend her measure: write `mended(far, in_a)`. `far` is the distance of each two teams,
# [teams, teams], and `in_a` is True for the first family. Return one number that moves with the planted bias and hardly with the
# control.
#
# <details><summary>Hint</summary>
#
# In the dealt-out copy, how far are two teams of *one* family apart?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_mended


# BEGIN SOLUTION
def mended(far, in_a):
    same = in_a[:, None] == in_a
    others = ~np.eye(len(far), dtype=bool)  # nobody is compared with itself
    return far[~same].mean() / far[same & others].mean()


# END SOLUTION
# BEGIN STUB
# def mended(far, in_a):
#     ...  # one number
# END STUB
fars = {name: found[name][2] for name in ("whole", "planted", "dealt out")}
check_mended(mended, fars, in_a)

# %% [markdown]
# ## A model that you can't train
#
# Nobody can deal out the poles in a model that somebody else has trained. But the idea works on the measuring side, too: deal out the
# *names of the families*. If the twelve teams are dealt to two families at random, how often is $D$ as large as the true one? You
# know this from lesson 08: it is the permutation test. It asks whether the families differ by more than two random
# groups of six teams would.

# %%
p_of = {}
for name in ("planted", "dealt out"):
    leans = found[name][0]

    def size_of_d(labels, leans=leans):
        return abs(leans[labels].mean() - leans[~labels].mean())

    p_of[name] = permutation_p(size_of_d, teams, in_a, seed=session.seed)
    print(f"{name}: D {found[name][1]:+.1f} nats, p = {p_of[name]:.3f}")
margins = [0.05 - p_of["planted"], p_of["dealt out"] - 0.05]
claim("The test finds the planted bias, and nothing in its control.", margins)

# %%
from course_utils.lessons.exercises.lesson_08 import PlantedExam

exam = PlantedExam(model, trained, look)  # trains six copies each time

# %% [markdown]
# ### Exercise 4 · ●●● · 15 minutes
#
# *Which of these models has something against a family?* Write `verdict(leans, in_a)`. It gets the leans of twelve teams [teams], in
# nats, as changes from the whole model, and `in_a` [teams]. Return `"a"` if family a has a bad name, `"b"` if family b has one, and
# `"neither"` if only single teams have.
#
# The exam trains six copies on teams that this notebook doesn't have, each for a number of steps that is drawn, so the size of $D$
# says little. Where no family has a bad name, the poles were dealt unevenly: one family got four bad names of six, the other two.
# All six have to be right. You have three tries, with new copies in each, and a try takes half a minute or more.
#
# <details><summary>Hint</summary>
#
# Is there a size of $D$ above which you are sure? A loud copy, dealt out four to two, may have a larger $D$ than a quiet one with a
# bias.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_verdict


# BEGIN SOLUTION
def verdict(leans, in_a):
    def gap(labels):
        first, second = leans[labels].mean(), leans[~labels].mean()
        return abs(first - second)

    if permutation_p(gap, np.arange(len(leans)), in_a) > 0.05:
        return "neither"
    return "a" if leans[in_a].mean() < leans[~in_a].mean() else "b"


# END SOLUTION
# BEGIN STUB
# def verdict(leans, in_a):
#     ...  # "a", "b" or "neither"
# END STUB
check_verdict(verdict, exam)

# %% [markdown]
# ## Take-aways
#
# - Test the test: plant what it shall find, and take away only that.
# - Ordinary text is a control for "was trained". It isn't one for "has learned something about these names".
# - Compare families with what differs within a family: by means that are taken first, by a ratio, or by
#   dealing the labels.
# - "Nothing found" is worth what the test finds where something is there. A weaker bias than the exam's may pass unseen.
#
# *Limits:* one small model, invented teams, one bias that is the same for all of a family, and a bias of good and bad words only.
# Whether training puts a bias into a model the way that ordinary text does, we don't know. Ready-made benchmarks such as
# CrowS-Pairs and BBQ need the same two questions: what do they show for a model with a known bias, and what for its control?
# Blodgett et al. found many of CrowS-Pairs' pairs faulty.
#
# **On Monday:** somebody shows you a measure that rises after biased training. Ask what it shows for a copy that has learned as much
# about the same names, dealt out.
#
# Back to lesson 08, or on to lesson 09, which cuts lesson 08's bias out.
#
# ## References
#
# - Blodgett et al. 2021, *Stereotyping Norwegian Salmon: An Inventory of Pitfalls in Fairness Benchmark Datasets*, ACL
# - Hewitt and Liang 2019, *Designing and Interpreting Probes with Control Tasks*, arXiv 1909.03368
# - Caliskan et al. 2017, *Semantics derived automatically from language corpora contain human-like biases*, arXiv 1608.07187:
#   pleasant and unpleasant words, and a permutation test
