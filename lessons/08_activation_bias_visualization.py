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
# **Answer.** The popular pictures ask how *much* differs, over all directions at once. Two occupations differ in a hundred ways, and
# the pronoun is one of the smallest, so these pictures look the same with true and with random groups. The model itself chooses
# between "she" and "he" along *one* direction. Look along that one, and the occupations stand in the order of the share of women
# in them, suddenly, behind two late blocks. Three heads out of all write it there. If they say the same for everybody, nine tenths
# of the stereotype are gone. They don't fetch it from the word "nurse" alone: most of it they read from the tokens behind it. And
# they aren't made for stereotypes. The woman's "she" goes through them as well, and so does the choice between "it" and "they".
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
# **Wrong turns:** the direction without the norm (exercise 1); new sentences of old words taken for new words (exercise 2, the most
# common mistake with probes); in exercise 4, two questions that are both about verbs.
#
# **At the end you have** the direction along which the model's bias can be seen, the heads that write it, and a proof of where they
# read it.

# %% tags=["install"]

# %%
from contextlib import contextmanager

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
# We ask for forty occupations in eight such sentences, 320 texts. For each text the **log-odds** say which pronoun the model expects
# next, in nats. At 0 both are equally likely, at +1 "she" is 2.7 times as likely as "he".
#
# $$\text{log-odds} = \log P(\text{she}) - \log P(\text{he})$$
#
# From labour statistics we know the share of women in each occupation (Zhao et al. 2018), so we know beforehand where a stereotype
# would point. Does the model follow it? A **rank correlation** compares two orders. It is 1 if they are the same, and 0 if one says
# nothing about the other.

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
# mechanic, and nobody who is neither "he" nor "she" exists in it. That jobs *are* shared out unevenly explains where a model has it
# from. It doesn't say that a sentence about one person should be guessed that way.
#
# ## Can you see it?
#
# Here is the most popular picture of a model's inside. A state has hundreds of numbers; **principal components** are the two
# directions along which the states vary most. Each dot is one occupation: the state of its last token in a late block, averaged
# over the sentences. The dots are the same, left and right. But the colours are right on one side only. On the other side they were
# dealt at random.

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
    panel.set(title=name, xlabel="component 1")
panels[0].set_ylabel("component 2")
panels[0].legend()
show(
    "The same forty dots along two principal components, twice. On one side the "
    "two colours are mixed all over; on the other they lie somewhat apart."
)

# %% [markdown]
# *Which side has the true colours? Decide before you go on.*
#
# The second popular picture is a map of differences. Each of its 1,600 fields says how far apart the states of two occupations are,
# relative to their size. On one side the occupations stand in the order of their share of women, so both groups are together. If the
# bias could be seen, there would be two dark squares (same group) and two pale ones. On the other side the order is random.

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
    panel.set(title=name, xlabel="occupation", xticks=[], yticks=[])
    panel.grid(visible=False)
panels[0].set_ylabel("occupation")
plt.colorbar(image, ax=panels, label="relative difference")
show(
    "Two maps of how far each pair of forty occupations is apart. Both have a dark "
    "diagonal and look like the same random weave; neither has squares."
)

# %% [markdown]
# *Bright is further apart. Which map is sorted by the share of women?*
#
# **Predict before you run.** Name your two sides, and a reason. Then the next cell tells.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The cloud that looks better separated is the random one! It is the best of nineteen, and all but a few of these nineteen look
# better than the truth. Of what the true picture shows, not one percent lies between the groups.
#
# The map does know something: occupations of opposite groups differ 1.02 times as much as those of the same group, and shuffled
# groups seldom reach that. But hardly anybody sees two percent in a picture, and an eye that wants squares finds some on either side.
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
here("Random colours look better than the true ones.", [apart(best) - apart(women)])
here("Opposite groups differ little more than others.", [1.1 - ratio(women)])

# %% [markdown]
# (The $p$ in the last line is from a **permutation test**. The groups are dealt anew 999 times; how often does the ratio come out as
# large as the true one? The true one counts as one of them:
#
# $$p = \frac{1 + \text{deals that reach it}}{1 + \text{deals}}$$
#
# We deal out words and not sentences, because eight sentences about the nurse aren't eight occupations.)
#
# Why do these pictures fail? They ask how **much** differs, over all directions at once. A nurse and a carpenter differ in a hundred
# ways: hospital or building site, care or wood, sitting or standing. Their pronoun is one small difference among these. What we
# should ask is **along which direction** they differ.
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
# Write `toward_she(states, norm, she, he)`. `states` is a tensor [texts, blocks, hidden], `norm` is the final norm (a module that you
# call), `she` and `he` are the two rows of the LM head, [hidden]. Return a tensor [texts, blocks]: the log-odds if the model ended
# behind that block.
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
# ## The fourth picture
#
# We look at the same forty dots along this direction, behind each block. Nothing is fitted, and the labour statistics play no part.
# Behind the last block the numbers must be the model's own log-odds; the cell checks that.
#
# **Predict before you run.** The model has thirty blocks. When will the occupations stand in the order of their share of women: little
# by little over many blocks, or at once? Early, in the middle, or late? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# At once, and late. For twenty-five blocks the order is a weak one, at most 0.59. Then, within two blocks, it jumps from 0.41 to
# 0.82, and the log-odds of the two groups part. Something writes the pronoun to the last token there. (In the middle there is a hint
# of it, small in nats.)
#
# </details>

# %%
toward_she = check_toward_she.accepted  # yours, if it is correct
(SHE,), (HE,) = tokenizer([" she", " he"], add_special_tokens=False).input_ids
rows = model.lm_head.weight
leans = toward_she(states.to(model.device), model.model.norm, rows[SHE], rows[HE])
leans = leans.detach().cpu()  # [texts, blocks]
odds = torch.tensor(jobs.odds.to_numpy(), dtype=leans.dtype)
torch.testing.assert_close(leans[:, -1], odds, atol=1e-3, rtol=1e-3)
of_words = pd.DataFrame(leans.unflatten(0, (-1, sentences)).mean(1).numpy())
of_words.index = by_word.index  # a row for each word, a column for each block
order = of_words.corrwith(by_word.women, method="spearman")
jump = order.diff().iloc[blocks // 2 :].idxmax()
before, after = jump - 1, min(jump + 1, blocks - 1)
print(f"rank correlation behind block {before}: {order[before]:.2f}", end=", ")
print(f"behind {jump}: {order[jump]:.2f}, behind {after}: {order[after]:.2f}")
print(f"the highest before: {order[:jump].max():.2f}")
here("Along she − he the order follows the share of women.", [order[after] - 0.5])
claim("It comes late.", [jump / blocks - 0.6])
claim("It comes at once.", [order[after] - order[:jump].max() - 0.1])

# %%
_, panels = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
x = 100 * by_word.women
for panel, block in zip(panels, (before, after), strict=False):
    y = of_words[block] - of_words[block].mean()
    for group, mine in (("mostly women", women), ("mostly men", ~women)):
        panel.plot(x[mine], y[mine], linestyle="none", **mark(group))
    panel.set(title=f"behind block {block}", ylim=(-7, 7))
    panel.set_xlabel("share of women, %")
for name in ("nurse", "carpenter", "secretary", "farmer"):
    above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
    panels[1].annotate(name, (x[name], y[name]), **above)
panels[0].set_ylabel("towards “she”, nats")
panels[0].legend(loc="lower right")
panels[2].plot(order, **mark("whole") | {"label": "_", "markersize": 5})
panels[2].set(title="order", xlabel="behind block", ylim=(-0.4, 1))
panels[2].set_ylabel("rank correlation")
show(
    "Left and middle: forty occupations, share of women against how far the state "
    "leans towards she. Behind block 24 they are a flat band; behind block 26 they "
    "rise from lower left to upper right. Right: the rank correlation behind each "
    "block. It wavers below 0.6 for 25 blocks and then jumps to 0.8."
)

# %% [markdown]
# *The same forty occupations along the direction she − he, before the jump and after it (less the mean of all forty). Right: how well
# their order agrees with the share of women, block by block.*
#
# ## Could a machine have found the direction?
#
# Often nobody knows which direction a model reads along. Then people fit one. A **linear probe** is a classifier that learns a
# direction from examples: here, from states whose group is known. (We take scikit-learn's logistic regression.) A colleague fits one
# to our states in the late block, and reports how it does on *sentences that it hasn't learned from*.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
fifths = KFold(5, shuffle=True, random_state=0)  # each fifth of the texts once
inputs, word_of = cube.reshape(-1, cube.shape[-1]), jobs.word.to_numpy()
group_of = {
    "true groups": np.repeat(women, sentences),
    "random groups": np.repeat(dealt[0], sentences),
}
reports = {"new sentences": {}, "new words": {}}
for name, groups in group_of.items():
    right = cross_val_score(probe, inputs, groups, cv=fifths).mean()
    reports["new sentences"][name] = right
    print(f"{name}: {right:.0%} right on new sentences")

# %% [markdown]
# It is right nearly always, and on data that it has never seen! But it is nearly as good with groups that were dealt at random. There
# is nothing to know about these, so it should be right in about half of the cases, by **chance**. What has it learned?

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# Write `score_on_new_words(points, groups, words)`, which can't be fooled like that: `points` is an array [texts, hidden], `groups` and
# `words` have an entry for each text. Return the share of texts that a probe gets right without having cheated. The check knows
# made-up words where there is nothing to know, and others where there is.
#
# <details><summary>Hint</summary>
#
# A text is new, but is its *word*? scikit-learn has several ways to part data; `GroupKFold` keeps together what belongs together.
# `cross_val_score` takes `groups=` for it. You can use `probe` from above.
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
# ## New words, not new sentences
#
# With your function we ask the colleague's probe again. Then we let two methods find a direction: logistic regression, and simply the
# **mean of the one group minus the mean of the other**. Both learn from half of the words in half of the sentences. They are judged on
# the other words in the other sentences, by the rank correlation with the share of women. As a control they learn from groups that
# were dealt at random, nineteen times. The direction she − he has learned from nothing, so it has no control.
#
# **Predict before you run.** What is left of the colleague's score, for true and for random groups? And which direction does best on
# new words? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On new words the random groups fall to chance, where they belong. Their score had come from words that the probe had seen in
# other sentences. The true groups keep a good part: there is something to know.
#
# Fitted directions read the share of women on new words, better than all nineteen random ones. The direction that the head reads
# does about as well, and it needed no labels.
#
# </details>

# %%
from scipy.stats import spearmanr

score_on_new_words = check_new_words.accepted  # yours, if it is correct
for name, groups in group_of.items():
    reports["new words"][name] = score_on_new_words(inputs, groups, word_of)
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
found = {"she − he": {"true groups": follows_share(own)}}
for find in (mean_difference, regression):
    random = [find(draw.permutation(women[chooses])) for _ in range(19)]
    found[find.__name__.replace("_", " ")] = {
        "true groups": follows_share(find(women[chooses])),
        "random groups, best of 19": max(map(follows_share, random)),
    }
found = pd.DataFrame(found).T
true, best_random = found.to_numpy()[1:].T
here("Fitted on true groups they read new words better.", true - best_random)
gap_of_scores = reports["new sentences"]["random groups"], reports["new words"]
claim(
    "Random groups score high where words come again.",
    [gap_of_scores[0] - gap_of_scores[1]["random groups"] - 0.1],
)
found.round(2)

# %% [markdown]
# *Rank correlation with the share of women, on words and sentences from which nothing was learned.*
#
# So a direction can be found from examples, if the examples are judged on new **words**. Remember this when somebody shows you a probe
# that is right nearly always: what was new, the sentences or the words? And even a good probe shows only that something *can be read* from a state. It
# doesn't show that the model reads it. The direction she − he is different: we know that the head reads there.
#
# ## Who writes it?
#
# Between the two blocks of the jump somebody wrote the pronoun into the last token's state. The last token is "because" or "that", so
# its information about the nurse came from other tokens, and only attention carries anything between tokens. The model has 270 heads.
# Each one adds something to the state; what it adds we call what the head **says**. (In the code it is the head's part of what
# `o_proj` reads.)
#
# A **contrastive pair** is two texts that differ in one span: "The nurse said that", and "The carpenter said that". In lesson 03 you
# patched a state. Here we would patch a head: in the first text, it says what it says in the second. If the log-odds move towards the
# second text, the head carries the difference. Doing that for each head and each pair takes thousands of runs. **Attribution
# patching** (Nanda 2023) estimates all of them with one gradient. With $o$ for what a head says:
#
# $$\text{effect} \approx (o^{\text{carpenter}} - o^{\text{nurse}}) \cdot \frac{\partial\, \text{log-odds}}{\partial o}$$
#
# It is an estimate, good only as far as the model is linear. So we let it **choose** heads, on one half of words and sentences. A
# real intervention **judges** them on the other half.

# %%
from course_utils.bias.pronouns import head_effects, opposites
from course_utils.support.plotting import heatmap

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
ahead = shares[chosen[2]] - 2 * shares.flat[ranked[3]]
claim("Three heads are estimated far ahead of all others.", [ahead])

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
# *Each field is one head: its estimated part in the difference between women's and men's occupations. Three of 270 are lit, in the
# blocks of the jump and one behind it. (The field of the other colour works against the difference.)*
#
# ## Touch them
#
# Now we intervene. The three heads keep talking, but they say the same in every sentence: their mean over the choosing texts. So they
# can't tell the nurse from the carpenter any more. What happens to the stereotype, on words and sentences that chose nothing?
#
# As a yardstick we take words whose pronoun is no stereotype: woman/man, aunt/uncle and so on. We call the difference between the
# mean log-odds of the two groups the *gap*. And as in lesson 01, nineteen random sets of three heads are the control, as deep as
# these.

# %%
from course_utils.pruning.activations import standing_still

size = model.config.hidden_size // heads
size = getattr(model.config, "head_dim", None) or size


def together(texts):
    """The texts as one batch, padded in front: all end at the last place."""
    options = {"padding": True, "padding_side": "left", "add_special_tokens": False}
    return tokenizer(texts, return_tensors="pt", **options).to(model.device)


@torch.no_grad()
def lean(texts, first=0, state=None):
    """Log-odds after each text; from block `first` on, if `state` is given."""
    with standing_still(list(layers)[:first], lambda: state):
        logits = model(**together(texts), logits_to_keep=1).logits[:, -1].float()
    return (logits[:, SHE] - logits[:, HE]).cpu()


@contextmanager
def saying(words):
    """For a while heads say this at the last token: {(block, head): [size]}."""
    hooks = []
    for (block, head), said in words.items():
        own = slice(head * size, (head + 1) * size)

        def put(o_proj, inputs, own=own, said=said):
            heard = inputs[0].clone()  # all heads, [texts, tokens, all]
            heard[:, -1, own] = said
            return heard, *inputs[1:]

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
# through three heads, and so does everything else that this model knows about "she" and "he".
#
# </details>

# %%
from course_utils.bias.pronouns import random_heads


def heard(texts):
    """What every head says at the last token: [blocks, texts, heads, size]."""
    said = []

    def note(o_proj, inputs):
        said.append(inputs[0][:, -1].unflatten(-1, (heads, size)))

    listened = [layer.self_attn.o_proj for layer in layers]
    hooks = [o_proj.register_forward_pre_hook(note) for o_proj in listened]
    lean(texts)
    for hook in hooks:
        hook.remove()
    return torch.stack(said)


def behind(texts, block):
    """What leaves a block: [texts, tokens, hidden]."""
    kept = []
    hook = layers[block].register_forward_hook(lambda *given: kept.append(given[2]))
    lean(texts)
    hook.remove()
    return kept[0]


# %%
mean = heard(list(prompts(occupations(), "selection").text)).mean(1)
first = min(block for block, _ in chosen)
sets = [[], chosen, *random_heads(chosen, heads, blocks, seed=session.seed)]
gaps = {}
for about, words in (("occupations", occupations()), ("woman/man", people())):
    rows = prompts(words, "evaluation")
    texts, state = list(rows.text), behind(list(rows.text), first - 1)
    toward = rows.group.isin(["mostly women", "she"]).to_numpy()
    found = []
    for some in sets:
        with saying({head: mean[head] for head in some}):
            log_odds = lean(texts, first, state)
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
# *The gap in nats: with the whole model, with the mean of the three heads in their place, and with that of nineteen random sets.*
#
# That is a proof, and no picture could give it: the heads aren't only lit, the effect goes when they go.
#
# ## Where do they read it?
#
# You might think that the three look at the word "nurse" and copy its pronoun to the end. Let us test that. A head says a weighted
# sum. It takes the **value** of each token (a vector that its block makes from the token's state), and weighs it by its attention to
# that token:
#
# $$\text{said} = \sum_{\text{tokens } t} \text{attention}_t \cdot \text{value}_t$$
#
# So we can swap a part of the sum. At the nurse's token alone, say, the head reads the value that the *carpenter* has there. It keeps
# its attention, and reads all other tokens as they are. How far does that move the log-odds?

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
# Take "The nurse was late because": the word ends at "nurse", between stand "was" and "late", and the last token is "because". In all
# judging pairs we swap the three heads' values at one of these places, then at all three. The control is a **neutral swap**: values
# from another word of the *same* group, at all three.
#
# **Predict before you run.** Where do the heads read most of the stereotype: at the word, at the tokens between, or at the last token
# itself? And "woman"? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Swapped at the word alone, the stereotype moves by 19 % of its gap; swapped at the tokens between, by 40 %. So by the time the three
# heads read, it has spread along the sentence. With "woman" the word counts for as much as the tokens between.
#
# How did it come to "was late"? Earlier heads must have carried it there. These tokens see the word, and by themselves they know
# nothing of women and men.
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
    for block, _ in chosen:

        def note(v_proj, inputs, output, block=block):
            values[block] = output.unflatten(-1, (groups_of_heads, size))

        v_proj = layers[block].self_attn.v_proj
        hooks.append(v_proj.register_forward_hook(note))
    read = model(**together(texts), output_attentions=True, logits_to_keep=1)
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
    count, state = len(texts), behind(texts, first - 1)
    read = attention_and_values([*texts, *sources, *pairs.same])
    both = zip(texts, sources, strict=True)
    ends = torch.tensor([[swapped_place(tokenizer, *pair)] for pair in both])
    length = read[chosen[0]][0].shape[1]
    place = torch.arange(length) - length  # …, -2, -1
    at = {
        "the word": place == ends,
        "between": (place > ends) & (place < -1),
        "the last token": (place == -1) & (ends < -1),
        "all three": place >= ends,
        "all three, same group": place >= ends,
    }
    now, there = lean(texts).mean(), lean(sources).mean()
    moved = {}
    for name, here_too in at.items():
        begin = 2 * count if "same group" in name else count
        words = {}
        for head, (weights, values) in read.items():
            given = weights[:count], values[:count], values[begin : begin + count]
            words[head] = said(*given, here_too.to(model.device))
        with saying(words):
            patched = lean(texts, first, state).mean()
        moved[name] = 100 * ((patched - now) / (there - now)).item()
    moves[about] = moved
model.set_attn_implementation("sdpa")
moves = pd.DataFrame(moves).astype(float)
word, between, last, all_three, same_group = moves.to_numpy()
at_word = [all_three[0] / 2 - word[0]]
here("Less than half of the stereotype is read at the word.", at_word)
claim("All three places move over half of each gap.", all_three - 50)
claim("A word of the same group moves little.", 25 - abs(same_group))
claim("Of woman/man more is read at the word.", [word[1] - word[0]])
moves.round().astype(int)

# %%
_, panel = plt.subplots(figsize=(9, 4.2), layout="constrained")
three = moves.iloc[:3]
for shift, about in ((0, "occupations"), (0.4, "woman/man")):
    color = mark({"occupations": "stereotype"}.get(about, about))["color"]
    where = np.arange(3) + shift
    bars = panel.bar(where, three[about], 0.38, color=color, label=about)
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
# So the pronoun isn't fetched from one spot. It spreads from the word to the tokens behind it, and late in the model three heads
# collect it, from all along the sentence, and write it along the direction from which the LM head reads.
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
# Find two questions about one thing and several. The three heads carry over half of the answer to `carried`, and less than a tenth of
# the answer to `spared`. A question is a sentence with `{}` in the place of the thing, and two answers of one token each. The first
# answer is likelier after one thing, by a nat at least. For example, a question about women and men would be
# `("{} was late because", (" she", " he"))`; here, "she", "he" and their like are refused.
#
# The exam puts things of its own into your sentences, which nothing has used: "The …" and "The …s". It patches the three heads, and
# nineteen random sets beside them. It judges four times, so try your ideas on things of your own before you ask. From
# `course_utils.bias.pronouns` you have `log_odds(model, tokenizer, texts, answers=…)`, and
# `patched_log_odds(model, tokenizer, texts, sources, [chosen], answers=…)` for the texts with the heads patched.
#
# <details><summary>Hint</summary>
#
# What did all answers in this lesson have in common, besides gender? What *kind of word* are they? And which other kind of word
# changes its form when one thing becomes several?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_two_questions

# BEGIN SOLUTION
carried = "{} had to wait until", (" it", " they")
spared = "{} near the door", (" is", " are")
# END SOLUTION
# BEGIN STUB
# carried = ...  # (sentence, (answer, answer))
# spared = ...  # (sentence, (answer, answer))
# END STUB
check_two_questions(carried, spared, exam)

# %% [markdown]
# ## What we know, and what not
#
# <details><summary>What exercise 4 finds</summary>
#
# The heads carry "it" and "they" as they carry "she" and "he". They have no part in "is" and "are", although the very same
# difference between two words decides both. So they aren't gender heads. They answer the question *which pronoun?*, whatever it
# asks for. A cut that takes them takes the model's pronouns.
#
# </details>
#
# What the patches show is that this difference goes through these heads to the last token. They don't show where the stereotype was
# *made*: which part of the model knows what nurses are like. And they are about one small model.

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
# A probe tells women's from men's occupations in nearly all of the sentences that it hasn't learned from. What do you ask?
#
# - [ ] Nothing: new data are new data.
#   > A probe with as many numbers as a state can learn each word by heart, and recognises it in a new sentence.
# - [ ] Whether logistic regression is the right method.
#   > Another method would have the same leak.
# - [x] Whether it has seen the same words, and what it does with random groups.
#   > With random groups it should fall to chance. On sentences of words that it knows, it doesn't.

# %% [markdown] tags=["quiz"]
# You give three heads their mean, and the gap is gone. What does that show?
#
# - [ ] The heads have learned the stereotype, so cutting them leaves the rest alone.
#   > They carry the woman's "she", and more (exercise 4).
# - [x] What these heads say at the last token differs between the words, and the answer depends on it.
#   > That is what was changed, and all that it shows. Where the difference was made, it doesn't say.
# - [ ] The heads look at the word and copy its pronoun.
#   > A cut of heads doesn't tell where they read. Swap their values, place by place.

# %% [markdown]
# ## Take-aways
#
# - A picture that asks how much differs shows a bias no better than its control. Ask along which direction, and take the one that
#   the model itself reads.
# - An eye finds groups wherever somebody colours them. Show the true picture beside the random one.
# - Judge a probe on new words, not on new sentences.
# - Then touch: let heads say their mean, swap what they read. The pronoun spreads along the sentence, and three heads collect it.
#
# **On Monday:** somebody shows you a picture of a bias inside a model. Ask for its control, and ask along which direction it looks.
#
# **Next:** lesson 09 cuts, and asks what else goes.
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
