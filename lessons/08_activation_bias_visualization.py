# ---
# jupyter:
#   course:
#     title: "Seeing bias: along which direction?"
#     minutes: 90 to 120 minutes
#     prerequisites: lesson 01 (nineteen random sets), lesson 03 (residual stream, hooks, patching, keys and values)
#     assets: [smollm2]
#     concepts: [log-odds, rank correlation, contrastive pair with its neutral swap, principal components, direction that the head reads, linear probe, attribution patching, what a head says]
# ---

# %% [markdown]
# ## The question
#
# A model writes "she" for the nurse and "he" for the farmer. People show such a bias with pictures of the model's inside. Which
# picture shows it, and what in the model makes it?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** The popular pictures aren't made for the pronoun: a map of differences adds up all directions, and principal
# components take the two along which most varies. Occupations differ in many ways, and little of it is along the direction of the
# pronoun, so to the eye these pictures look much the same with true and with random groups. The model itself chooses between
# "she" and "he" along *one* direction. Look along that one, and the groups part, suddenly, behind two late blocks. Three heads
# out of all carry it to the last token. If they say the same for everybody, nine tenths of the stereotype are gone. They don't
# fetch it from the word "nurse" alone: they read twice as much from the tokens between it and the last. And they aren't made for
# stereotypes: the woman's "she" goes through them as well, and more, which the last exercise asks for.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** ask a picture two questions. What does its control look like? And along which direction does it look? Then touch.
#
# **Content:** the sentences are inoffensive: occupations and family words.
#
# **Let the room vote** on the two clouds of dots before the next cell runs, and on the two maps. Most vote for the wrong cloud:
# somebody chose it because it looks good.
#
# **Usual questions:** "Is it bias, if the statistics are so?" Read the paragraph on whom it harms. "So can I cut the three heads?"
# Exercise 4 shows what else they carry; lesson 09 cuts them.
#
# **Wrong turns:** the direction without the norm (exercise 1); new texts of old words taken for new words (exercise 2, the most
# common mistake with probes); in exercise 4, two questions that are both about verbs.
#
# **At the end you have** the direction along which the model's bias can be seen, the heads that write it, and a proof of where they
# read it.

# %% tags=["install"]

# %%
from contextlib import contextmanager
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from course_utils.bias.pronouns import occupations, odds_and_states, people, prompts
from course_utils.lessons import claim, here
from course_utils.measuring import continuations
from course_utils.models import load_model, with_interval
from course_utils.support import mark, rank_correlation, show, start, style

session = start("08")
style()
model, tokenizer = load_model("llama", dtype=torch.float32)
model.requires_grad_(False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
layers, blocks = model.model.layers, len(model.model.layers)
heads = model.config.num_attention_heads

some = ["The nurse was late because", "The farmer was late because"]
written = continuations({"goes on": model}, tokenizer, some, new_tokens=10)
for text, rest in written["goes on"].items():
    print(f"{text} | {rest.strip()}")

# %% [markdown]
# We ask for forty occupations in eight such sentences, 320 texts. For each text the **log-odds** say which pronoun the model
# expects next, in nats. At 0 both are equally likely, at +1 "she" is 2.7 times as likely as "he".
#
# $$\text{log-odds} = \log P(\text{she}) - \log P(\text{he})$$
#
# From labour statistics we know the share of women in each occupation (Zhao et al. 2018), so we know beforehand where a stereotype
# would point. Does the model follow it? A **rank correlation** compares two orders. It is 1 if they are the same, and 0 if one says
# nothing about the other, and −1 if one is the other reversed.

# %%
jobs = prompts(occupations())  # a row for each word in each sentence
jobs["odds"], states = odds_and_states(model, tokenizer, list(jobs.text))
states = states["residual"]  # of the last token: [texts, blocks, hidden]
by_word = jobs.groupby("word", sort=False)[["women", "odds"]].mean()
women = (by_word.women > 0.5).to_numpy()
follows = rank_correlation(by_word.women, by_word.odds)
print(f"rank correlation of log-odds and share of women: {with_interval(*follows)}")
here("The log-odds follow the share of women.", [follows[1]])

# %% [markdown]
# So what the model *says* follows the statistics closely. **Whom does that harm?** It makes an exception of the woman who is a
# mechanic. (Our measure does harm of its own: nobody who is neither "he" nor "she" exists in it.) That jobs *are* shared out
# unevenly explains where a model has it from. It doesn't say that a sentence about one person should be guessed that way.
#
# ## Can you see it?
#
# Here is the most popular picture of a model's inside. A state has hundreds of numbers; **principal components** are the two
# directions along which the states vary most. Each dot is one occupation: the state of its last token in a late block, averaged
# over the sentences. The dots are the same, left and right. But the colours are right on one side only. On the other side they were
# dealt at random: nineteen times, and you see one of these deals.

# %%
late, sentences = blocks - 1 - blocks // 8, jobs.template.nunique()
cube = states[:, late].unflatten(0, (-1, sentences)).numpy()
cube = cube - cube.mean(0)  # less what is common to all words in a sentence
points = PCA(2).fit_transform(cube.mean(1))  # scikit-learn


def apart(groups):
    """Share of the dots' variance that lies between the two groups."""
    parts, middle = (points[groups], points[~groups]), points.mean(0)
    squares = [len(part) * (part.mean(0) - middle) ** 2 for part in parts]
    return np.sum(squares) / ((points - middle) ** 2).sum()


draw = np.random.default_rng(session.seed + 8)
dealt = [draw.permutation(women) for _ in range(19)]
best = max(dealt, key=apart)
side = draw.integers(2)  # a coin: 0 means that the true colours are on the left
_, panels = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
both = [women, best][:: 1 - 2 * side]
for panel, name, groups in zip(panels, ("left", "right"), both, strict=True):
    for group, mine in (("mostly women", groups), ("mostly men", ~groups)):
        panel.plot(*points[mine].T, linestyle="none", **mark(group))
    panel.set(title=name, xlabel="component 1", ylabel="component 2")
panels[0].legend()
show(
    "The same forty dots along two principal components, twice. On one side the "
    "two colours are mixed all over; on the other they lie somewhat apart."
)

# %% [markdown]
# *Which side has the true colours? Decide before you go on, and mind that we chose the random deal.*
#
# The second popular picture is a map of differences. Each of its 1,600 fields says how far apart the states of two occupations
# are, relative to their size. On one side the occupations stand in the order of their share of women, so both groups are
# together. If the bias could be seen, there would be two dark squares (same group) and two pale ones. On the other side the order
# is random.

# %%
x = states[:, late].unflatten(0, (-1, sentences)).transpose(0, 1)
norms = x.norm(dim=-1)
far = 2 * torch.cdist(x, x) / (norms[:, :, None] + norms[:, None])
far = far.mean(0).numpy()  # [words, words]
side_of_map = draw.integers(2)
_, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
both = [np.arange(len(far)), draw.permutation(len(far))][:: 1 - 2 * side_of_map]
for panel, name, order in zip(panels, ("left", "right"), both, strict=True):
    image = panel.imshow(far[np.ix_(order, order)], cmap="viridis")
    panel.set(title=name, xlabel="occupations", xticks=[], yticks=[])
plt.colorbar(image, ax=panels, label="relative difference")
show(
    "Two maps of how far each pair of forty occupations is apart. Both have a dark "
    "diagonal and look like a random weave; neither has two dark squares."
)

# %% [markdown]
# *Bright is further apart. Which map is sorted by the share of women?*
#
# **Predict before you run.** Name your two sides, and a reason. Then the next cell tells.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The cloud that looks better separated is the random one! It is the best of nineteen. But the others do well, too: 16 of the
# nineteen look better than the truth. Of what the true picture shows, not one percent lies between the groups.
#
# The map does know something: occupations of opposite groups differ 1.02 times as much as those of the same group, and shuffled
# groups seldom reach that. But that makes one dark square in the sorted map at best, not two, and an eye that wants squares finds
# some on either side.
#
# </details>

# %%
from course_utils.support import permutation_p

one, other = np.triu_indices(len(far), 1)  # every pair once


def ratio(groups):
    """How far apart opposite groups are, relative to the same group."""
    opposite = groups[one] != groups[other]
    return far[one, other][opposite].mean() / far[one, other][~opposite].mean()


places = ("left", "right")
better = sum(apart(groups) > apart(women) for groups in dealt)
print(f"cloud: the true colours are on the {places[side]}", end="; ")
print(f"between the groups lie {apart(women):.1%} true, {apart(best):.1%} random")
print(f"{better} of 19 random colourings look better than the true one")
p = permutation_p(ratio, by_word.index.to_numpy(), women, seed=session.seed)
print(f"map: sorted on the {places[side_of_map]}", end="; ")
print(f"opposite groups differ {ratio(women):.2f} times as much, p = {p:.3f}")
here("Most random colourings look better than the true one.", [better / 19 - 0.5])
here("Opposite groups differ little more than others.", [1.1 - ratio(women)])

# %% [markdown]
# (The $p$ in the last line is from a **permutation test**. The groups are dealt anew 999 times; how often does the ratio come out
# as large as the true one? The true one counts as one of them:
#
# $$p = \frac{1 + \text{deals that reach it}}{1 + \text{deals}}$$
#
# We deal out words and not sentences, because eight sentences about the nurse aren't eight occupations.)
#
# So the groups do differ, but hardly to the eye. The map asks how **much** differs, over all directions at once, and the cloud
# takes the two along which most varies. But occupations may differ in many ways: hospital or building site, sitting or standing.
# What we should ask is **along which direction** they differ.
#
# ## The direction that decides
#
# How does the model choose a word? The last state goes through the final norm. Then the LM head takes the dot product with a row of
# weights for each token in the vocabulary, and that is the token's logit. The log-odds are the difference of two logits (what both
# have in common cancels). So for a state $x$:
#
# $$\text{log-odds} = (w_{\text{she}} - w_{\text{he}}) \cdot \mathrm{norm}(x)$$
#
# This is one direction out of hundreds, and nobody had to search for it: the model reads along it. We can hold the state of *any*
# block against it, as if the model ended there. (This is called the *logit lens*: nostalgebraist 2020.)

# %% [markdown]
# ### Exercise 1 · ●○○ · 6 minutes
#
# Write `toward_she(states, norm, she, he)`. `states` is a tensor [texts, blocks, hidden], `norm` is the final norm (a module that
# you call), `she` and `he` are the two rows of the LM head, [hidden]. Return a tensor [texts, blocks]: the log-odds if the model
# ended behind that block.
#
# <details><summary>Hint</summary>
#
# The formula from right to left. `@` takes the dot product over the last dimension.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_toward_she


# BEGIN SOLUTION
def toward_she(states, norm, she, he):
    return norm(states) @ (she - he)


# END SOLUTION
# BEGIN STUB
# def toward_she(states, norm, she, he):
#     ...  # [texts, blocks]
# END STUB
check_toward_she(toward_she)

# %% [markdown]
# ## The third picture
#
# We look at the same forty dots along this direction, behind each block. Nothing is fitted, and the labour statistics play no
# part in the direction. Behind the last block the numbers must be the model's own log-odds; the cell checks that. As a control we
# take the directions between nineteen pairs of other tokens, drawn at random.
#
# **Predict before you run.** The model has thirty blocks. When will the two groups part along this direction: little by little
# over many blocks, or at once? Early, in the middle, or late? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# At once, and late. There is a hint before: up to block 19 the order gets better, to a rank correlation of 0.59, and it is partly
# lost again. But the two groups lie less than half a nat apart. In blocks 25 and 26 that becomes over two nats, and the order
# 0.82. Something writes the pronoun to the last token there. (The last blocks take back a good part.)
#
# </details>

# %%
from scipy.stats import spearmanr

toward_she = check_toward_she.accepted  # yours, if it is correct
(SHE,), (HE,) = tokenizer([" she", " he"], add_special_tokens=False).input_ids
rows = model.lm_head.weight  # one for each token
leans = toward_she(states.to(model.device), model.model.norm, rows[SHE], rows[HE])
leans = leans.detach().cpu()  # [texts, blocks]
odds = torch.tensor(jobs.odds.to_numpy(), dtype=leans.dtype)
torch.testing.assert_close(leans[:, -1], odds, atol=1e-3, rtol=1e-3)
of_words = pd.DataFrame(leans.unflatten(0, (-1, sentences)).mean(1).numpy())
of_words.index = by_word.index  # a row for each word, a column for each block
order = of_words.corrwith(by_word.women, method="spearman")
apart_by = of_words[women].mean() - of_words[~women].mean()  # nats, by block
jump = order.diff().iloc[blocks // 2 :].idxmax()
before, after = jump - 1, min(jump + 1, blocks - 1)
for name, line in (("rank correlation", order), ("nats apart", apart_by)):
    print(f"{name}: {line[before]:.2f} behind block {before}", end=", ")
    print(f"{line[after]:.2f} behind {after}; earlier up to {max(line[:jump]):.2f}")
here("Along she − he the order follows the share of women.", [order[after] - 0.5])
margins = [jump / blocks - 0.6, apart_by[after] / 2 - max(apart_by[:jump])]
here("The groups part late, and at once.", margins)

# %%
others = draw.integers(len(rows), size=(19, 2))  # pairs of tokens
with torch.no_grad():
    normed = model.model.norm(states.to(model.device))
    along = normed @ (rows[others[:, 0]] - rows[others[:, 1]]).T
along = along.unflatten(0, (-1, sentences)).mean(1).cpu()  # [words, blocks, pairs]
of_others = (along[women].mean(0) - along[~women].mean(0)).abs()
best_other = max(abs(spearmanr(by_word.women, x)[0]) for x in along[:, late].T)
z = normed[:, after].unflatten(0, (-1, sentences)).mean(1).cpu()
she_he = (rows[SHE] - rows[HE]).cpu()
part = (z @ (she_he / she_he.norm())).var() / z.var(0).sum()
print(f"along she − he lies {part:.1%} of what varies between the words")
print(f"random pairs: rank correlation up to {best_other:.2f}")

# %%
_, panels = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
y = of_words[after] - of_words[after].mean()
sides = (points[:, 0], "component 1"), (100 * by_word.women, "share of women, %")
for panel, (x, name) in zip(panels, sides, strict=False):
    for group, mine in (("mostly women", women), ("mostly men", ~women)):
        panel.plot(x[mine], y[mine], linestyle="none", **mark(group))
    panel.set(xlabel=name, title=f"behind block {after}")
    panel.set_ylim(top=1.7 * y.max())  # room for names
for name in ("secretary", "carpenter"):
    panels[1].text(100 * by_word.women[name], y[name] + 0.3, name, ha="center")
panels[0].set_ylabel("towards “she”, nats")
panels[0].legend(loc="upper right")
grey = mark("random") | {"label": None, "marker": None, "linewidth": 1}
panels[2].plot(of_others, **grey)
panels[2].plot(apart_by, **mark("whole") | {"label": "she − he", "markersize": 7})
panels[2].set(title="groups apart, nats", xlabel="behind block")
panels[2].legend(loc="upper left")
show(
    "Left: the dots of the first picture; up is she minus he: the colours part. "
    "Middle: dots with more women lie higher. Right: how far the groups part by "
    "block: below half a nat for 25 blocks, then over two. Grey lines stay low."
)

# %% [markdown]
# *Left: the cloud of the beginning, from left to right as it was, but upwards is now the direction she − he (less the mean of all
# forty). Middle: the same against the share of women. Right: how far the two groups are apart, block by block; grey are nineteen
# pairs of other tokens.*
#
# So the bias was in these states all the time, along a direction with only 1.5 % of what varies between the words.
#
# ## Could a machine have found the direction?
#
# Often nobody knows which direction a model reads along. Then people fit one. A **linear probe** is a classifier that learns a
# direction from examples: here, from states whose group is known. (We take scikit-learn's logistic regression.) A colleague fits
# one to our states in the late block, and reports how it does on *texts that it hasn't learned from*. We do the same with groups
# that were dealt at random, nineteen times.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
fifths = KFold(5, shuffle=True, random_state=0)  # each fifth of the texts once
inputs, word_of = cube.reshape(-1, cube.shape[-1]), jobs.word.to_numpy()
group_of = {"true groups": [women], "random groups": dealt}
reports = {"new texts": {}, "new words": {}}
for name, deals in group_of.items():
    found = []
    for groups in deals:
        y = np.repeat(groups, sentences)
        found.append(cross_val_score(probe, inputs, y, cv=fifths).mean())
    reports["new texts"][name] = np.mean(found)
    print(f"{name}: {np.mean(found):.0%} right on new texts")

# %% [markdown]
# It is right nearly always, and on data that it has never seen! But with random groups it is nearly as good. There is nothing to
# know about these, so it should be right in about half of the cases, by **chance**. What has it learned?

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# Write `score_on_new_words(points, groups, words)`, which can't be fooled like that: `points` is an array [texts, hidden],
# `groups` and `words` have an entry for each text. Return the share that a probe gets right on words from which it hasn't
# learned. The check knows made-up words where there is nothing to know, and others where there is.
#
# <details><summary>Hint</summary>
#
# A text is new, but is its *word*? scikit-learn can part data so that what belongs together stays together: look for
# "Group" in the names of `sklearn.model_selection`. `cross_val_score` takes `groups=` for it. You can use `probe` from above.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_new_words

# BEGIN SOLUTION
from sklearn.model_selection import GroupKFold


def score_on_new_words(points, groups, words):
    by_words = GroupKFold(5)
    scores = cross_val_score(probe, points, groups, groups=words, cv=by_words)
    return scores.mean()


# END SOLUTION
# BEGIN STUB
# def score_on_new_words(points, groups, words):
#     ...  # a share
# END STUB
check_new_words(score_on_new_words)

# %% [markdown]
# ## New words, not new texts
#
# With your function we ask the colleague's probe again. Then we let two methods find a direction: logistic regression, and simply
# the **mean of the one group minus the mean of the other**. Both learn from half of the words in half of the sentences. They are
# judged on the other words in the other sentences, by the rank correlation with the share of women. As a control they learn from
# groups that were dealt at random, nineteen times. The direction she − he has learned from nothing; its control is the nineteen
# random pairs.
#
# **Predict before you run.** What is left of the colleague's score, for true and for random groups? And which direction does best
# on new words? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On new words the random groups fall to chance, where they belong. Their score had come from words that the probe had seen in other
# texts. The true groups keep a part.
#
# Fitted directions read the share of women on new words, and better than after each of nineteen random deals. The direction that
# the LM head reads does at least as well, and it needed no labels.
#
# </details>

# %%
score_on_new_words = check_new_words.accepted  # yours, if it is correct
for name, deals in group_of.items():
    found = []
    for groups in deals:
        of_texts = np.repeat(groups, sentences)
        found.append(score_on_new_words(inputs, of_texts, word_of))
    reports["new words"][name] = np.mean(found)
print(pd.DataFrame(reports).map("{:.0%}".format).to_string())
chooses = (occupations().split == "selection").to_numpy()  # words that may choose
half = sentences // 2  # and so may the first half of the sentences
learn, judged = cube[chooses][:, :half].mean(1), cube[~chooses][:, half:].mean(1)


def mean_difference(groups):
    return judged @ (learn[groups].mean(0) - learn[~groups].mean(0))


def regression(groups):
    return probe.fit(learn, groups).decision_function(judged)


def follows_share(reading):
    return spearmanr(reading, by_word.women[~chooses]).statistic


own = leans[:, late].unflatten(0, (-1, sentences))[~chooses][:, half:].mean(1)
found = {"she − he": (follows_share(own), best_other)}
deals = [draw.permutation(women[chooses]) for _ in range(19)]
for find in (mean_difference, regression):
    best_random = max(follows_share(find(groups)) for groups in deals)
    name = find.__name__.replace("_", " ")
    found[name] = follows_share(find(women[chooses])), best_random
found = pd.DataFrame(found, index=["new words", "control, best of 19"]).T
true, best_random = found.to_numpy().T
here("All three read new words better than their controls.", true - best_random)
found.round(2)

# %% [markdown]
# *Rank correlation with the share of women, on words and sentences from which nothing was learned.*
#
# So a direction can be found from examples, if they are judged on new **words**. Remember this when somebody shows you a probe
# that is right nearly always: what was new, the texts or the words? And even a good probe shows only that something *can be read*
# from a state, not that the model reads it. About she − he we know that the LM head reads along it, behind the last block.
#
# ## Who writes it?
#
# In the two blocks of the jump somebody wrote the pronoun into the last token's state. The last token is "because" or "that", so
# its information about the nurse came from other tokens, and only attention carries anything between tokens. (What came earlier,
# an MLP may turn into a pronoun here. We look for those that carry.) The model has 270 heads. Each one adds something to the
# state; what it adds we call what the head **says**. (In the code it is the head's part of what `o_proj` reads.)
#
# A **contrastive pair** is two texts that differ in one span: "The nurse said that", and "The carpenter said that". In lesson 03
# you patched a state. Here we would patch a head: in the first text, it says what it says in the second. If the log-odds move
# towards the second text, the head carries the difference. Doing that for each head and each pair takes thousands of runs.
# **Attribution patching** (Nanda 2023) estimates all of them with one gradient. With $o$ for what a head says:
#
# $$\text{effect} \approx (o^{\text{carpenter}} - o^{\text{nurse}}) \cdot \frac{\partial\, \text{log-odds}}{\partial o}$$
#
# It is an estimate, good only as far as the model is linear. So we let it **choose** heads, on one half of words and sentences. A
# real intervention **judges** them on the other half.

# %%
from course_utils.bias.pronouns import head_effects, opposites
from course_utils.support import heatmap

choosing = opposites(prompts(occupations(), "selection"))  # most women, least, …
texts, sources = list(choosing.text), list(choosing.source)
effects = head_effects(model, tokenizer, texts, sources).mean(0)  # [blocks, heads]
known = jobs.set_index("text").odds
difference = known[sources].mean() - known[texts].mean()
shares = 100 * effects.numpy() / difference
ranked = shares.argsort(axis=None)[::-1].tolist()
chosen = [divmod(number, heads) for number in ranked[:3]]
for place in chosen:
    print(f"block {place[0]}, head {place[1]}: {shares[place]:.0f} %", end="; ")
print(f"the next: {shares.flat[ranked[3]]:.0f} %")
ahead = [shares[chosen[2]] - 2 * shares.flat[ranked[3]]]
claim("Three heads are estimated far ahead of all others.", ahead)

# %%
_, panel = plt.subplots(figsize=(13, 4.4), layout="constrained")
named = {"x_label": "block", "y_label": "head", "value_label": "part, %"}
heatmap(pd.DataFrame(shares.T), **named, center=0, numbers=False, ax=panel)
show(
    "A map of all heads, thirty blocks from left to right and nine heads in each. "
    "Nearly all fields are pale. Three are lit: head 2 of block 26, head 2 of "
    "block 25 and head 5 of block 27. One is slightly lit the other way."
)

# %% [markdown]
# *Each field is one head: the estimated part of what it says at the last token in the difference between women's and men's
# occupations. Three of 270 are lit, in the blocks of the jump and one behind it. (The field of the other colour works against the
# difference. Estimates of single heads needn't add up to 100 %.)*
#
# ## Touch them
#
# Now we intervene. The three heads keep talking, but they say the same in every sentence: their mean over the choosing texts. So
# they can't tell the nurse from the carpenter any more. What happens to the stereotype, on words and sentences that chose
# nothing?
#
# As a yardstick we take words whose pronoun is no stereotype: woman/man, aunt/uncle and so on. We call the difference between the
# mean log-odds of the two groups the *gap*. And as in lesson 01, nineteen random sets of three heads are the control, as deep as
# these.
#
# (What a head says at the last token can't change the tokens before. So `LastToken` reads these once, into a cache; `odds()` then
# reads the last token of each text, and gives the log-odds behind it.)

# %%
from course_utils.lessons.exercises.lesson_08 import LastToken

size = layers[0].self_attn.head_dim


@contextmanager
def saying(words):
    """For a while heads say this at the last token: {(block, head): [size]}."""
    hooks = []
    for (block, head), said in words.items():
        own = slice(head * size, (head + 1) * size)

        def put(o_proj, inputs, own=own, said=said):
            by_all = inputs[0].clone()  # all heads, [texts, tokens, all]
            by_all[:, -1, own] = said
            return by_all, *inputs[1:]

        o_proj = layers[block].self_attn.o_proj
        hooks.append(o_proj.register_forward_pre_hook(put))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# %% [markdown]
# **Predict before you run.** How much of the stereotype is left when the three say the same for everybody? And how much of the gap
# between woman and man? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Of the stereotype about a tenth is left, and of woman/man nothing. Random heads change next to nothing. So the stereotype goes
# through three heads, and so does the gap between woman and man.
#
# </details>

# %%
from course_utils.bias.pronouns import random_heads


def heard(texts):
    """What every head says at the last token: [blocks, texts, heads, size]."""
    said, texts = [], LastToken(model, tokenizer, texts)

    def note(o_proj, inputs):
        said.append(inputs[0][:, -1].unflatten(-1, (heads, size)))

    listened = [layer.self_attn.o_proj for layer in layers]
    hooks = [o_proj.register_forward_pre_hook(note) for o_proj in listened]
    texts.odds()
    for hook in hooks:
        hook.remove()
    return torch.stack(said)


# %%
rows_of = prompts(occupations(), "selection")
said_by = heard(list(rows_of.text))  # [blocks, texts, heads, size]
mean = said_by.mean(1)
to_women = (rows_of.group == "mostly women").to_numpy()
differ = said_by[:, to_women].mean(1) - said_by[:, ~to_women].mean(1)
direction = (rows[SHE] - rows[HE]) * model.model.norm.weight
write = [layer.self_attn.o_proj.weight.T @ direction for layer in layers]
writes = (differ * torch.stack(write).view(blocks, heads, size)).sum(-1).cpu()
most = writes.flatten().argsort(descending=True)[:3].tolist()
print("along she − he these (block, head) write the largest differences:", end=" ")
print(*[divmod(n, heads) for n in most])
claim("They write along she − he.", [writes[head].item() for head in chosen])
sets = [[], chosen, *random_heads(chosen, heads, blocks, seed=session.seed)]
gaps = {}
for about, words in (("occupations", occupations()), ("woman/man", people())):
    asked = prompts(words, "evaluation")
    texts = LastToken(model, tokenizer, list(asked.text))
    toward = asked.group.isin(["mostly women", "she"]).to_numpy()
    found = []
    for some in sets:
        with saying({head: mean[head] for head in some}):
            log_odds = texts.odds()
        gap = log_odds[toward].mean() - log_odds[~toward].mean()
        found.append(gap.item())
    whole, silent, *random = found
    gaps[about] = {"whole": whole, "the three say their mean": silent}
    gaps[about] |= {"random, least": min(random), "random, most": max(random)}
gaps = pd.DataFrame(gaps)
whole, silent, least, _ = gaps.to_numpy()
here("Without the three over half of each gap is gone.", whole / 2 - silent)
here("Without random heads over three quarters are left.", least - 0.75 * whole)
gaps.round(2)

# %% [markdown]
# *The gap in nats, on the words and sentences that chose nothing: with the whole model, with the mean of the three heads in their
# place, and with that of nineteen random sets. (The picture by block was of all words and sentences, so its last value is
# another.)*
#
# On these words and sentences the gap depends on what three heads say at the last token. And they write along she − he: the
# printed line names the heads whose own output differs most along it, between women's and men's occupations. We looked at all
# heads for that.
#
# ## Where do they read it?
#
# You might think that the three look at the word "nurse" and copy its pronoun to the end. Let us test that. A head says a
# weighted sum. It takes the **value** of each token (a vector that its block makes from the token's state), and weighs it by its
# attention to that token:
#
# $$\text{said} = \sum_{\text{tokens } t} \text{attention}_t \cdot \text{value}_t$$
#
# So we can swap a part of the sum. At the nurse's token alone, say, the head reads the value that the *carpenter* has there. It
# keeps its attention, and reads all other tokens as they are. How far does that move the log-odds?

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# Write `said(attention, values, source_values, here)`: what a head says at the last token if, at some tokens, it reads the source's
# values instead of the text's own. `attention` is [texts, tokens], the last token's attention to each token. `values` and
# `source_values` are [texts, tokens, size]. `here` is [texts, tokens], True where the source's are read. Return [texts, size].
#
# <details><summary>Hint</summary>
#
# First mix the two kinds of values (`torch.where`, with a new last dimension for `here`). Then weigh, then add up over the tokens.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_said


# BEGIN SOLUTION
def said(attention, values, source_values, here):
    mixed = torch.where(here[..., None], source_values, values)
    return (attention[..., None] * mixed).sum(1)


# END SOLUTION
# BEGIN STUB
# def said(attention, values, source_values, here):
#     ...  # [texts, size]
# END STUB
check_said(said)

# %% [markdown]
# ## The word, the tokens between, the last one
#
# Take "The nurse was late because": the word ends at "nurse", between stand "was" and "late", and the last token is "because". In
# all judging pairs we swap the three heads' values at one of these places, then at all three. The control is a **neutral swap**:
# values from another word of the *same* group. Its moves go either way and would cancel in a mean, so the last two rows tell how
# far a pair moves on average, whatever way.
#
# **Predict before you run.** Where do the heads read most of the stereotype: at the word, at the tokens between, or at the last
# token itself? And "woman"? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Swapped at the word alone, the stereotype moves by 19 % of its gap; swapped at the tokens between, by 40 %. So when the three
# heads read, what decides the pronoun can be read along the sentence. With "woman" the word counts for as much as the tokens
# between.
#
# How did it come to "was late"? Earlier heads must have carried something there. These tokens see the word, and by themselves
# they know nothing of women and men.
#
# The neutral swap moves occupations about half as far, because "nurse" and "librarian" differ, too. "Woman" and "aunt" hardly do.
#
# </details>

# %%
from course_utils.bias.pronouns import swapped_place

said = check_said.accepted  # yours, if it is correct
groups_of_heads = model.config.num_key_value_heads
model.set_attn_implementation("eager")  # the kind that tells its attention


@torch.no_grad()
def attention_and_values(texts):
    """For each chosen head: the last token's attention, and the values it reads."""
    values, found, hooks = {}, {}, []
    options = {"padding": True, "padding_side": "left", "add_special_tokens": False}
    batch = tokenizer(texts, return_tensors="pt", **options).to(model.device)
    for block, _ in chosen:

        def note(v_proj, inputs, output, block=block):
            values[block] = output.unflatten(-1, (groups_of_heads, size))

        v_proj = layers[block].self_attn.v_proj
        hooks.append(v_proj.register_forward_hook(note))
    read = model(**batch, output_attentions=True, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    for block, head in chosen:
        group = head * groups_of_heads // heads  # several heads share their values
        attention = read.attentions[block][:, head, -1]  # [texts, tokens]
        found[block, head] = attention, values[block][:, :, group]
    return found


# %%
moves = {}
for about, words in (("occupations", occupations()), ("woman/man", people())):
    pairs = opposites(prompts(words, "evaluation"))
    texts, sources = list(pairs.text), list(pairs.source)
    count, begun = len(texts), LastToken(model, tokenizer, texts)
    read = attention_and_values([*texts, *sources, *pairs.same])
    ends = map(partial(swapped_place, tokenizer), texts, sources)
    ends = torch.tensor([*ends])[:, None]  # the word's last token, from the end
    length = read[chosen[0]][0].shape[1]
    place = torch.arange(length) - length  # …, -2, -1
    at = {
        "the word": place == ends,
        "between": (place > ends) & (place < -1),
        "the last token": (place == -1) & (ends < -1),
        "all three": place >= ends,
        "all three, same group": place >= ends,
    }
    now, there = begun.odds(), LastToken(model, tokenizer, sources).odds()
    moved, gap = {}, (there - now).mean()
    for name, swapped in at.items():
        begin = 2 * count if "same group" in name else count
        words = {}
        for head, (weights, values) in read.items():
            given = weights[:count], values[:count], values[begin : begin + count]
            words[head] = said(*given, swapped.to(model.device))
        with saying(words):
            moves_by = 100 * (begun.odds() - now) / gap
        moved[name] = moves_by.mean().item()
        if "all three" in name:
            moved[f"{name}, either way"] = moves_by.abs().mean().item()
    moved.pop("all three, same group")
    moves[about] = moved
model.set_attn_implementation("sdpa")

# %%
moves = pd.DataFrame(moves).astype(float)
word, between, last, all_three, either_way, same_group = moves.to_numpy()
at_word = [all_three[0] / 2 - word[0]]
here("Less than half of what they carry is read at the word.", at_word)
claim("A word of the same group moves a pair less.", either_way - same_group)
claim("Of woman/man more is read at the word.", [word[1] - word[0]])
moves.round().astype(int)

# %%
_, panel = plt.subplots(figsize=(9, 4.2), layout="constrained")
three = moves.iloc[:3]
for shift, about in ((0, "occupations"), (0.4, "woman/man")):
    look = mark("L1" if shift else "activation")
    bars = panel.bar(np.arange(3) + shift, three[about], 0.38, color=look["color"])
    bars.set_label(about)
    panel.bar_label(bars, fmt="%.0f", padding=3)
panel.set_xticks(np.arange(3) + 0.2, three.index)
panel.set(ylabel="moves, % of the gap", ylim=(0, 55))
panel.legend()
show(
    "Bars for three places at which the heads read the other word's values. For "
    "occupations 19 percent at the word, 40 between, 21 at the last token. For "
    "woman/man 42, 41 and 26."
)

# %% [markdown]
# *How far the log-odds move when three heads read the other word's values at one place only. (Parts needn't add up to 100 %.)*
#
# So the pronoun isn't fetched from one spot. What decides it spreads from the word to the tokens after it, and late in the model
# three heads collect it, from all along the sentence, and write it along the direction that the LM head reads. (A part of what
# they read at the last token may be what one of them has written there a block before.)
#
# ## What are these heads for?
#
# A colleague reads this lesson and says: "Three gender heads! We cut them out, and the model is fair. Nothing else will change."
# Would you sign that? The heads have passed every test of ours. But in all of our pairs a woman's word stood opposite a man's, so
# we don't know what else they carry.
#
# Test it with a difference that has nothing to do with women and men: **one thing and several**, as in "the book" and "the books".
# Many words in a sentence depend on it.

# %%
from course_utils.lessons.exercises.lesson_08 import NumberExam

exam = NumberExam(model, tokenizer, chosen)  # it knows things of its own

# %% [markdown]
# ### Exercise 4 · ●●● · 15 minutes
#
# Find one sentence and two questions about one thing and several. Give `sentence`, with `{}` in the place of the thing, and two
# pairs of answers: the three heads carry over half of `carried`, and less than a quarter of `spared`. An answer is one token, and
# the first of a pair is likelier after one thing, by a nat at least. In the right form are `"Look at {} and say"` and `(" yes", "
# no")`.
#
# The exam puts things of its own into your sentence, which nothing has used: "The …" and "The …s". It patches the three heads, and
# nineteen random sets beside them. "She", "he" and the lesson's sentences are refused. It judges three times, so try your ideas on
# things of your own before you ask. For that you have `log_odds(model, tokenizer, texts, answers=…)`, and
# `patched_log_odds(model, tokenizer, texts, sources, [chosen], answers=…)` for the texts with the heads patched.
#
# <details><summary>Hint</summary>
#
# What did all answers in this lesson have in common, besides gender? What *kind of word* are they? And which other kind of word
# changes its form when one thing becomes several? The sentence has to leave it open which of the two kinds comes next.
#
# </details>

# %% tags=["exercise"]
from course_utils.bias.pronouns import log_odds, patched_log_odds  # noqa: F401
from course_utils.lessons.exercises.lesson_08 import check_two_questions

# BEGIN SOLUTION
sentence = "{}, I think,"
carried = (" it", " they")
spared = (" is", " are")
# END SOLUTION
# BEGIN STUB
# sentence = ...  # with "{}" in it
# carried = ...  # (answer, answer)
# spared = ...  # (answer, answer)
# END STUB
check_two_questions(sentence, carried, spared, exam)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# The model's log-odds follow labour statistics closely, but in a PCA of its states the two groups are mixed. What follows?
#
# - [ ] The log-odds are noise, since a picture of the states shows nothing of them.
#   > They follow the statistics in forty words and eight sentences. Noise doesn't.
# - [x] The pronoun is a small part of what varies between the words.
#   > PCA shows the directions along which most varies. The model reads along another one.
# - [ ] PCA needs more components, and one of the next would show the groups.
#   > None of them is asked about the groups. And the more pictures you look at, the more you see that isn't there.

# %% [markdown] tags=["quiz"]
# A probe tells women's from men's occupations in nearly all of the texts that it hasn't learned from. What do you ask?
#
# - [ ] Nothing: new data are new data.
#   > A probe with as many numbers as a state can learn each word by heart, and recognises it in a new text.
# - [ ] Whether logistic regression is the right method.
#   > Another method would have the same leak.
# - [x] Whether it has seen the same words, and what it does with random groups.
#   > With random groups it should fall to chance. On texts with words that it knows, it doesn't.

# %% [markdown] tags=["quiz"]
# You give three heads their mean, and the gap is gone. What does that show?
#
# - [x] What these heads say at the last token differs between the words, and the answer depends on it.
#   > That is what was changed, and all that it shows. Where the difference was made, it doesn't say.
# - [ ] The heads have learned the stereotype, so cutting them leaves the rest alone.
#   > They carry the woman's "she", and more (exercise 4).
# - [ ] The heads look at the word and copy its pronoun.
#   > A cut of heads doesn't tell where they read. Swap their values, place by place.

# %% [markdown]
# ## Take-aways
#
# - A picture that asks how much differs shows a bias to the eye hardly better than its control. Ask along which direction, and
#   take the one that the model itself reads.
# - An eye finds groups wherever somebody colours them. Show the true picture beside the random one.
# - Judge a probe on new words, not on new texts.
# - Then touch: let heads say their mean, swap what they read. What decides the pronoun spreads along the sentence, and three heads
#   collect it. A test on one difference (women and men) doesn't tell what else they carry.
#
# <details><summary>What exercise 4 finds</summary>
#
# The heads carry "it" and "they", too. They have next to no part in "is" and "are", although it is the very same sentence, and
# the same difference between two words decides both. So they aren't gender heads. They seem to carry what decides a *pronoun*.
# Cut them out, and you have to expect that more than gender goes.
#
# </details>
#
# The patches show that this difference goes through these heads to the last token. They don't show where the stereotype was
# *made*: what spreads along the sentence may be a pronoun, or it may be "nurse", from which somebody makes a pronoun later. And
# all of this is about one small model.
#
# **On Monday:** somebody shows you a picture of a bias inside a model. Ask for its control, and ask along which direction it looks.
#
# **Next:** lesson 09 cuts these three heads, and asks what a success must also show.
#
# ## Go deeper
#
# [Groups without a "she"](deeper/08a_groups_without_a_she.ipynb): which measure finds a planted bias, and only that?
#
# ## References
#
# - Blodgett et al. 2020, *Language (Technology) is Power: A Critical Survey of "Bias" in NLP*, arXiv 2005.14050
# - Goldfarb-Tarrant et al. 2021, *Intrinsic Bias Metrics Do Not Correlate with Application Bias*, arXiv 2012.15859
# - Zhao et al. 2018, *Gender Bias in Coreference Resolution* (WinoBias, with the shares of women), arXiv 1804.06876
# - Vig et al. 2020, *Investigating Gender Bias in Language Models Using Causal Mediation Analysis*, arXiv 2004.12265
# - nostalgebraist 2020, *Interpreting GPT: the logit lens*
# - Hewitt and Liang 2019, *Designing and Interpreting Probes with Control Tasks*, arXiv 1909.03368: random labels as a control
# - Nanda 2023, *Attribution Patching: Activation Patching at Industrial Scale*
# - Martra, *Large Language Model Notebooks Course*, section on pruning (views of activations, from which this lesson began)
