# ---
# jupyter:
#   course:
#     title: "Seeing bias: three pictures, and a hand inside"
#     prerequisites: lesson 01 (nineteen random sets), lesson 03 (residual stream, hooks, patching)
#     assets: [smollm2]
#     concepts: [log-odds, rank correlation, contrastive pair, neutral swap, principal components, permutation test, patching a place, attribution patching]
# ---

# %% [markdown]
# ## The question
#
# The model writes "she" for the nurse and "he" for the farmer. Which look inside shows what carries that?
#
# **Answer.** None of three popular pictures shows it: two look like their controls, the third fades on new words. Patching does: the
# pronoun stays at the word until late blocks, then three heads carry it to the last token.

# %% [markdown] tags=["notes"]
# **The point:** a difference in activations is not a bias. A neutral swap gives one, too. To know what a part does, change it.
#
# **Content:** the sentences are inoffensive: occupations and family words.
#
# **Let the room vote** on each pair of pictures before the cell with the titles runs.
#
# **Usual questions:** "Is it bias, if the statistics are so?" Read the paragraph on whom it harms. "Three heads: can I cut them?"
# They serve woman/man as well. Lesson 09 tries neurons.
#
# **Wrong turns:** no control swap; sentences shuffled one by one; heads chosen and judged on the same words.
#
# **At the end you have** a bias measured in what a model writes, three pictures tested blind, and the heads that carry it.

# %% tags=["install"]

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils.bias.pronouns import recorded_trace
from course_utils.lessons import claim, here
from course_utils.models import describe, load_model
from course_utils.support import mark, show, start, style

session = start("08")
style()
model, tokenizer = load_model("llama", dtype=torch.float32)
blocks, heads = describe(model).num_blocks, model.config.num_attention_heads
record = recorded_trace()  # of SmolLM2-135M, the embedded profile's Llama

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
for place, name in (("word", "at the word"), ("last", "at the last token")):
    moved = 100 * np.array(record["occupations"][f"{place}, opposite"])
    left.plot(moved, **mark(name) | {"markersize": 6})
left.set(title="One token's state", xlabel="patched behind block")
left.set_ylabel("moves, % of the gap")
left.legend()
for row, name in enumerate(("occupations", "woman/man")):
    drawn = 100 * np.array(record[name]["random, opposite"])
    look = mark("random") | {"markersize": 12, "linestyle": "none"}
    look["label"] = "_" if row else "random"
    right.plot(drawn, [row] * len(drawn), **look)
    together = 100 * record[name]["heads, opposite"][-1]
    look = mark("attentions") | {"label": "_" if row else "the three heads"}
    right.plot(together, row, linestyle="none", **look | {"markersize": 12})
right.set(title="Three heads", xlabel="moves, % of the gap", xlim=(-10, 110))
right.set(yticks=[0, 1], yticklabels=["occupations", "woman/man"], ylim=(1.5, -0.5))
right.legend(loc="center")
show(
    "Left: the share of the gap that moves with one token's state. At the word "
    "it is high in early blocks and falls to nothing in the late ones; at the last "
    "token it rises, and the lines cross late. Right: three heads move most of the "
    "gap, of occupations and of woman and man; random sets of three move none."
)

# %% [markdown]
# *SmolLM2-135M, means over many pairs such as this one: "The nurse said that" runs with one piece taken from "The mechanic said that";
# 100 % turns its log-odds into the mechanic's. Left: a token's state, occupations. Right: what three attention heads write at the last
# token; grey are nineteen random sets as deep.*
#
# **Whom it harms.** After an occupation the model leans towards the pronoun of the group that most often works in it. That is a stereotype:
# it makes the woman who is a mechanic an exception, and nobody who is neither "he" nor "she" exists in it. That jobs *are* shared out
# unevenly explains where a model has it from, not that a sentence about one person should be guessed that way.
#
# ## A number for a pronoun
#
# The next token after "The nurse said that" has a probability for each word. The **log-odds** compare two of them:
#
# $$\log P(\text{she}) - \log P(\text{he})$$
#
# In nats: 0 is equally likely, +1 is "she" 2.7 times as likely, −1 the reverse.

# %% [markdown]
# ### Exercise 1 · ●○○ · 6 minutes
#
# Write `she_over_he(text)`: the log-odds of the token after the text, one number. Use `model` and `tokenizer`. A word within a
# sentence begins with its space.
#
# <details><summary>Hint</summary>
#
# `tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids` goes to `model.device`. The logits are
# [1, tokens, vocabulary]; `log_softmax(-1)` makes them logarithms of probabilities.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_log_odds


# BEGIN SOLUTION
@torch.no_grad()
def she_over_he(text):
    encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    logits = model(encoded.input_ids.to(model.device)).logits
    log_p = logits[0, -1].float().log_softmax(-1)  # [vocabulary]
    numbers = []
    for word in (" she", " he"):
        (number,) = tokenizer(word, add_special_tokens=False).input_ids
        numbers.append(number)
    return (log_p[numbers[0]] - log_p[numbers[1]]).item()


# END SOLUTION
# BEGIN STUB
# def she_over_he(text):
#     ...  # nats
# END STUB
check_log_odds(she_over_he, model, tokenizer)

# %% [markdown]
# ## Behaviour first
#
# The library's `log_odds` gives the same. We ask for forty occupations in eight sentences. The share of women in them is known (US labour
# statistics, Zhao et al. 2018; over half is "mostly women"), so we know beforehand where a stereotype would point. As a yardstick we take
# ten pairs whose pronoun is no stereotype: woman/man, aunt/uncle and so on.
#
# *Rank correlation* compares two orders: 1 is the same order, 0 no relation, −1 the reverse.
#
# **Predict before you run.** How closely does the order by log-odds follow the share of women? And how large is the gap between
# women's and men's occupations beside that between woman and man?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Closely: 0.78. The two groups of occupations are 1.10 nats apart, woman and man 5.09: the stereotype is about a fifth of what plain
# meaning does.
#
# </details>

# %%
from course_utils.bias.pronouns import (
    group_gap, occupations, odds_and_states, people, prompts,
)  # fmt: skip
from course_utils.measuring import continuations
from course_utils.models import with_interval
from course_utils.support import rank_correlation

some = ["The nurse was late because", "The farmer was late because"]
written = continuations({"goes on": model}, tokenizer, some, new_tokens=10)
for text, rest in written["goes on"].items():
    print(f"{text} | {rest.strip()}")
(SHE,), (HE,) = tokenizer([" she", " he"], add_special_tokens=False).input_ids
jobs, persons = prompts(occupations()), prompts(people())
sites = ("residual", "down_input")  # what leaves a block, and its neurons
texts = list(jobs.text)
jobs["odds"], states = odds_and_states(model, tokenizer, texts, sites=sites)
persons["odds"], of_persons = odds_and_states(model, tokenizer, list(persons.text))
columns = {name: (name, "first") for name in ("women", "group", "split")}
by_word = jobs.groupby("word", sort=False).agg(**columns, odds=("odds", "mean"))
follows = rank_correlation(by_word.women, by_word.odds)
print(f"rank correlation with the share of women: {with_interval(*follows)}")
gaps = {"occupations": group_gap(jobs), "woman/man": group_gap(persons)}
for name, gap in gaps.items():
    print(f"gap, {name}: {with_interval(*gap)} nats")
here("The log-odds follow the share of women.", [follows[1]])
(gap, low, _), (known, *_) = gaps.values()
here("The stereotype is there, under a third of woman/man.", [low, known / 3 - gap])
claim(
    "It is between a tenth and three tenths of it.",
    [gap / known - 0.1, 0.3 - gap / known],
)

# %% [markdown]
# ## Three popular views, tested blind
#
# A **contrastive pair** is two texts that differ in one span. We take two pairs. Nurse/mechanic carries the bias. Nurse/librarian is a
# **neutral swap**: another word, with nearly the same share of women. They are written to a file and read back, and one is printed as a
# conversation, in the form of WizardSData.
#
# Each view is drawn twice, without saying which is which: for the bias and for its control. A coin decides the sides. **Note "left" or
# "right" before you go on.** With three pairs, one in eight guesses all by luck.
#
# View 1: how far apart are the two texts' states at each word behind the swap, relative to the states' own size?

# %%
from course_utils.bias.contrastive import (
    Pair, read_pairs, to_conversations, write_pairs,
)  # fmt: skip

tail = " who lives next door to us told me that"
shared = {"axis": "occupation", "template": "next door", "group_a": "nurse"}
pairs = [
    Pair("The ", "nurse", other, tail, kind=kind, group_b=other, **shared)
    for other, kind in (("mechanic", "demographic"), ("librarian", "neutral"))
]
with tempfile.TemporaryDirectory() as folder:
    path = write_pairs(pairs, Path(folder) / "pairs.jsonl")
    assert read_pairs(path) == pairs
row = to_conversations(pairs)[0]
print({name: row[name] for name in ("id_conversation", "topic", "rol1", "rol2")})


def at_words(pair, word):
    """[words behind the swap, blocks, hidden]: their states behind each block."""
    parts = pair.after.split()
    begun = [" ".join(parts[: n + 1]) for n in range(len(parts))]
    texts = [f"{pair.before}{word} {part}" for part in begun]
    return odds_and_states(model, tokenizer, texts)[1]["residual"]


grids = []
for pair in pairs:
    a, b = (at_words(pair, word) for word in (pair.a, pair.b))
    grids.append(2 * (a - b).norm(dim=-1) / (a.norm(dim=-1) + b.norm(dim=-1)))
coin = np.random.default_rng(session.seed + 8)
views = ("heatmap", "components", "neurons")
sides = {view: ("left", "right")[coin.integers(2)] for view in views}

# %%
_, panels = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
order = grids if sides["heatmap"] == "left" else grids[::-1]
top = max(grid.max().item() for grid in grids)
for panel, name, grid in zip(panels, ("left", "right"), order, strict=True):
    image = panel.imshow(grid, aspect="auto", vmin=0, vmax=top, cmap="viridis")
    panel.set(title=name, xlabel="block")
    panel.grid(visible=False)
panels[0].set_yticks(range(len(tail.split())), tail.split())
plt.colorbar(image, ax=panels, label="relative difference")
show(
    "Two heatmaps, left and right, of the words behind the swap over the blocks, "
    "coloured by relative difference on one scale. Both are brightest at the first "
    "words and in the last block, and look much alike."
)

# %% [markdown]
# *Brighter is further apart. Which one is nurse/mechanic?*
#
# View 2: **principal components**, the directions along which states vary most. One point is one occupation: its state at the last
# token, in a late block, averaged over the sentences. One picture is coloured by the true groups, the other by shuffled ones.
#
# View 3: differential activations. For each of the tens of thousands of neurons we take the difference of the groups' means, in standard
# deviations, and draw the twenty largest: with true groups and with shuffled ones. They come from half of the words and half of the
# sentences.

# %%
women = (by_word.group == "mostly women").to_numpy()
first = (by_word.split == "selection").to_numpy()
late, sentences = blocks - 1 - blocks // 8, jobs.template.nunique()


def less_sentence(states):
    """[words, sentences, hidden] in the late block, less each sentence's mean."""
    cube = states[:, late].unflatten(0, (-1, sentences)).numpy()
    return cube - cube.mean(0)


def two_components(points):
    """Points [words, hidden] along the two directions in which they vary most."""
    points = points - points.mean(0)
    u, sizes, _ = np.linalg.svd(points, full_matrices=False)
    return (u * sizes)[:, :2]


def difference(values, groups):
    """Difference of the groups' means, in standard deviations, for each neuron."""
    one, other = values[groups], values[~groups]
    spread = np.sqrt((one.var(0, ddof=1) + other.var(0, ddof=1)) / 2)
    return (one.mean(0) - other.mean(0)) / spread.clip(1e-9)


points = two_components(less_sentence(states["residual"]).mean(1))
neurons = states["down_input"].unflatten(0, (-1, sentences))
half = sentences // 2  # the first half of the sentences is for choosing
chosen_half = neurons[first][:, :half].mean(1).flatten(1).numpy()
judged_half = neurons[~first][:, half:].mean(1).flatten(1).numpy()
shuffled = coin.permutation(women)
dealt = coin.permutation(women[first])

# %%
_, panels = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
order = [women, shuffled] if sides["components"] == "left" else [shuffled, women]
for panel, name, groups in zip(panels, ("left", "right"), order, strict=True):
    for group, mine in (("mostly women", groups), ("mostly men", ~groups)):
        panel.plot(*points[mine].T, linestyle="none", **mark(group))
    panel.set(title=name, xlabel="component 1")
panels[0].set_ylabel("component 2")
panels[0].legend()
show(
    "The same forty points along two principal components, twice. In both pictures "
    "the two groups of markers are mixed all over."
)

# %% [markdown]
# *Which colours are the true groups?*

# %%
_, panels = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout="constrained")
order = [women[first], dealt]
order = order if sides["neurons"] == "left" else order[::-1]
for panel, name, groups in zip(panels, ("left", "right"), order, strict=True):
    sizes = np.sort(np.abs(difference(chosen_half, groups)))[::-1]
    panel.plot(range(1, 21), sizes[:20], linestyle="none", **mark("neurons"))
    panel.set(title=name, xlabel="neuron, largest first", ylim=(0, None))
    panel.set_xticks([1, 5, 10, 15, 20])
panels[0].set_ylabel("difference, sd")
show(
    "The twenty largest differences between two groups, left and right, on one "
    "scale: in one of the pictures all are higher than most of the other's."
)

# %% [markdown]
# *Which twenty tell the true groups apart?*
#
# **Predict before you run.** Write your three guesses into the next cell. Then it tells.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The control's heatmap differs a little more, 0.117 against 0.108 on average. Between the true groups lies 0.5 % of what PCA draws,
# between the shuffled ones 0.4 %.
#
# The true twenty neurons stand out, with 2.34 sd against 1.79. Is that chance?
#
# </details>

# %%
guesses = {"heatmap": "?", "components": "?", "neurons": "?"}  # yours


def between(points, groups):
    """Share of the points' variance that lies between the groups' means."""
    parts = [points[groups], points[~groups]]
    middle = points.mean(0)
    apart = [len(part) * np.square(part.mean(0) - middle).sum() for part in parts]
    return sum(apart) / np.square(points - middle).sum()


def of_twenty(groups):
    """Mean of the twenty largest differences."""
    return np.sort(np.abs(difference(chosen_half, groups)))[-20:].mean()


for view, guess in guesses.items():
    print(f"{view}: the bias is on the {sides[view]}; you said {guess}")
true, control = (grid.mean().item() for grid in grids)
print(f"heatmap, mean: nurse/mechanic {true:.3f}, nurse/librarian {control:.3f}")
true_share, other = between(points, women), between(points, shuffled)
print(f"components, between groups: true {true_share:.1%}, shuffled {other:.1%}")
seen, by_chance = of_twenty(women[first]), of_twenty(dealt)
print(f"twenty neurons, mean: true {seen:.2f} sd, shuffled {by_chance:.2f} sd")
here("The neutral swap differs at least 9/10 as much.", [control - 0.9 * true])

# %% [markdown]
# ## By chance?
#
# One shuffle is one draw. A **permutation test** makes many, $K$ of them: count the seen one among them, and $p$ is the share whose
# statistic $T$ is at least as large as seen.
#
# $$p = \frac{1 + \#\{k : T(\text{shuffled}_k) \ge T(\text{seen})\}}{1 + K}$$
#
# What is shuffled must be what was sampled. Eight sentences about the nurse aren't eight occupations.

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# Write `p_shuffled(statistic, words, groups, shuffles=999)`. `words` and `groups` are arrays with one entry a sentence, and a word has
# one group. `statistic(groups)` gives a number. All sentences of a word must change their group together.
#
# <details><summary>Hint</summary>
#
# `_, at, rows = np.unique(words, return_index=True, return_inverse=True)`: then `groups[at]` has one label a word, and
# `labels[rows]` deals them out to the sentences. `np.random.default_rng(0).permutation(labels)` shuffles.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_p_shuffled


# BEGIN SOLUTION
def p_shuffled(statistic, words, groups, shuffles=999):
    _, at, rows = np.unique(words, return_index=True, return_inverse=True)
    draw, hits = np.random.default_rng(0), 0
    for _ in range(shuffles):
        labels = draw.permutation(groups[at])
        hits += statistic(labels[rows]) >= statistic(groups)
    return (1 + hits) / (1 + shuffles)


# END SOLUTION
# BEGIN STUB
# def p_shuffled(statistic, words, groups, shuffles=999):
#     ...  # p
# END STUB
check_p_shuffled(p_shuffled)

# %% [markdown]
# ## What is left on new words
#
# The library's `permutation_p` does the same; for the neurons each shuffle picks its own twenty. A second test is new data: the twenty
# were *picked* for their difference. We ask the same ones about the other words, in the other sentences.
#
# **Predict before you run.** Is PCA's $p$ below 0.05, for occupations and for woman/man? And of the twenty's two standard deviations, is
# a half left, a quarter, or less?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# For occupations no, for woman/man yes: 0.813 and 0.001. Of the twenty's difference less is left: 2.34 sd become 0.18.
#
# </details>

# %%
from course_utils.support import permutation_p

words = by_word.index.to_numpy()
drawn = {"seed": session.seed}
p_pca = permutation_p(lambda some: between(points, some), words, women, **drawn)
p_twenty = permutation_p(of_twenty, words[first], women[first], **drawn)
print(f"components: p = {p_pca:.3f}; twenty neurons: p = {p_twenty:.3f}")
here("PCA's groups are within chance.", [p_pca - 0.05])
differs = difference(chosen_half, women[first])
twenty = np.abs(differs).argsort()[-20:]
again = np.sign(differs) * difference(judged_half, women[~first])
print(f"the twenty: {seen:.2f} sd where picked", end=", ")
print(f"{again[twenty].mean():.2f} sd on new words")
here("Less than a quarter is left on new words.", [seen / 4 - again[twenty].mean()])

she = (people().group == "she").to_numpy()
known = two_components(less_sentence(of_persons["residual"]).mean(1))
names = people().word.to_numpy()
p_known = permutation_p(lambda some: between(known, some), names, she, **drawn)
print(f"woman/man: {between(known, she):.0%} between the groups, p = {p_known:.3f}")
here("PCA parts woman from man.", [0.05 - p_known])

# %% [markdown]
# A $p$ near 0.05 is a close call; new words decide it. Neurons that tell the groups apart may exist, but a list of "the twenty most
# associated with gender" can always be drawn.
#
# PCA isn't blind: of what it draws of woman, man and the like, over half lies between the two groups. It shows what varies *most*, and what
# tells occupations apart is mostly not their gender. All three views ask *how much* differs, and a bias is one small difference among many.
#
# ## A hand inside
#
# So we interfere. Lesson 03 put a state back from the whole model. Here it comes from another *sentence*: "The nurse said that" runs,
# but behind one block one token's state is what it is in "The mechanic said that". If the log-odds move, that place carried the pronoun.

# %% [markdown]
# ### Exercise 3 · ●●○ · 12 minutes
#
# Write `patch(text, source, block, place)`: the log-odds after the text when the state that leaves `block` at `place` is the source's.
# `place` counts from the end of *both* texts, −1 is the last token. Leave no hook on the model.
#
# <details><summary>Hint</summary>
#
# Run the source with a hook on `model.model.layers[block]` that keeps `states[0, place]`, then the text with one that returns a changed
# copy. A forward hook gets `(layer, inputs, states)`. `she_over_he(text)` or `log_odds(model, tokenizer, [text])` runs the
# model.
#
# </details>

# %% tags=["exercise"]
from course_utils.bias.pronouns import log_odds
from course_utils.lessons.exercises.lesson_08 import check_patch


# BEGIN SOLUTION
def patch(text, source, block, place):
    layer, kept = model.model.layers[block], []

    def keep(layer, inputs, states):
        kept.append(states[0, place].clone())

    def put(layer, inputs, states):
        states = states.clone()
        states[0, place] = kept[0]
        return states

    for hook, prompt in ((keep, source), (put, text)):
        handle = layer.register_forward_hook(hook)
        odds = log_odds(model, tokenizer, [prompt])[0]
        handle.remove()
    return odds


# END SOLUTION
# BEGIN STUB
# def patch(text, source, block, place):
#     ...  # nats
# END STUB
check_patch(patch, model, tokenizer)

# %% [markdown]
# ## Where is the pronoun?
#
# `traced_log_odds` is `patch` for many sentences. In each, the occupation with most women stands opposite the one with fewest, and so on;
# the three most extreme pairs of each run here. What moves is a share of the gap between the two. The control is a neutral swap: a source
# of the *same* group.
#
# **Predict before you run.** Another women's occupation is put in at the word. How much moves on average, in % of the gap?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Little: at most 16 %, and here the other way, where the opposite word moves up to 86 %. Women's occupations differ among themselves; which
# way that moves the average is the luck of the pairs.
#
# </details>

# %%
from course_utils.bias.pronouns import opposites, swapped_place, traced_log_odds

judged = opposites(prompts(occupations(), "evaluation"))
few = judged.groupby("template", sort=False).head(3)
texts, opposed, same = (list(few[name]) for name in ("text", "source", "same"))
odds = pd.concat([jobs, persons]).set_index("text").odds
now, then = odds[texts].mean(), odds[opposed].mean()
some = (4, 12, 20, 24, 25, 26, 29)  # before: a word of two tokens isn't read yet
at_blocks = sorted({round((blocks - 1) * block / 29) for block in some})
trace = {}
for name, sources, at_word in (
    ("at the word", opposed, True),
    ("at the last token", opposed, False),
    ("at the word, same group", same, True),
):
    places = [-1] * len(texts)
    if at_word:
        both = zip(texts, sources, strict=True)
        places = [swapped_place(tokenizer, *each) for each in both]
    patched = traced_log_odds(model, tokenizer, texts, sources, places, at_blocks)
    trace[name] = (patched.mean(1) - now) / (then - now)
trace = pd.DataFrame(trace, index=pd.Index(at_blocks, name="block"))
ahead = trace["at the last token"] - trace["at the word"]
crossing = ahead.index[ahead > 0].min()
print(f"{len(few)} pairs, {now - then:.2f} nats apart; the table: % of that")
print(f"the last token is ahead of the word behind block {crossing}")
before, after = ahead[ahead.index < crossing], ahead[ahead.index >= crossing]
margins = [*-before, *after, crossing / blocks - 0.5]
here("The pronoun changes place once, and late.", margins)
most = trace["at the word, same group"].abs().max()
less = trace["at the word"].max() / 3 - most
here("A word of the same group moves less than a third of it.", [less])
(100 * trace).round().astype(int)

# %% [markdown]
# Until shortly before the crossing most of the pronoun is where the occupation was read. Behind the last blocks it is at the last token,
# and the word's state no longer matters. In between, tokens that weren't patched may carry a part. Only attention carries anything between
# tokens. Which heads?
#
# ## All heads with one gradient
#
# Each attention has several **heads**, and each looks back for itself; what a head *says* at a token is its part of what `o_proj` reads.
# **Attribution patching** (Nanda 2023) estimates all of them at once. With $o$ for what a head says at the last token:
#
# $$\text{effect} \approx (o^{\text{source}} - o^{\text{text}}) \cdot \frac{\partial\, \text{log-odds}}{\partial o}$$
#
# It is exact only as far as the model is linear. So it **chooses** heads, on one half of words and sentences. Real patches **judge**
# them on the other.

# %%
from course_utils.bias.pronouns import head_effects


def said(text):
    """What the heads of each block say, [1, tokens, all], and the log-odds."""
    heard, hooks = [], []
    for layer in model.model.layers:  # o_proj reads all heads side by side
        register = layer.self_attn.o_proj.register_forward_pre_hook
        hooks.append(register(lambda _, read: heard.append(read[0])))
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    logits = model(ids.to(model.device)).logits[0, -1].float()
    for hook in hooks:
        hook.remove()
    return heard, logits[SHE] - logits[HE]


def heads_at_once(text, source):
    """What patching each head would change, estimated: [blocks, heads], nats."""
    with torch.no_grad():
        there, _ = said(source)
    own, log_ratio = said(text)
    slopes = torch.autograd.grad(log_ratio, own)
    parts = there, own, slopes
    there, own, slope = (torch.cat([x[:, -1] for x in part]) for part in parts)
    effects = ((there - own) * slope).unflatten(-1, (heads, -1)).sum(-1)
    return effects.detach().cpu()


choosing = opposites(prompts(occupations(), "selection"))
texts, opposed = list(choosing.text), list(choosing.source)
estimates = head_effects(model, tokenizer, texts, opposed)  # [pairs, blocks, heads]
by_hand = heads_at_once(texts[0], opposed[0])
torch.testing.assert_close(by_hand, estimates[0], atol=1e-3, rtol=1e-3)
shares = estimates.mean(0).numpy() / (odds[opposed].mean() - odds[texts].mean())
order = shares.argsort(axis=None)[::-1].tolist()
chosen = [divmod(number, heads) for number in order[:3]]
told = ", ".join(f"{place[0]}/{place[1]} {shares[place]:.0%}" for place in chosen)
print(f"estimated, block/head: {told}; the next {shares.flat[order[3]]:.0%}")
ahead = shares[chosen[2]] - 2 * shares.flat[order[3]]
claim("Three heads are estimated far ahead of all others.", [ahead])

# %% [markdown]
# ### Exercise 4 · ●●○ · 8 minutes
#
# These three were the largest of many, and estimated. Design the control. Write `control_sets(chosen, heads, blocks)`: `chosen` is a list
# of (block, head), the model has `heads` heads in each of `blocks` blocks. Return the sets of heads to compare with, so that "better
# than all of them" has $p \le .05$, and depth can't be what makes the difference.
#
# <details><summary>Hint</summary>
#
# With $k$ random sets, beating all has $p = 1/(k + 1)$. A fair set has as many heads as the chosen one, none of its heads, and comes
# from blocks at least as deep as its shallowest one, or from the very same blocks.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_control_sets


# BEGIN SOLUTION
def control_sets(chosen, heads, blocks):
    lowest = min(block for block, _ in chosen)
    others = [(b, h) for b in range(lowest, blocks) for h in range(heads)]
    others = [head for head in others if head not in chosen]
    draw, sets = np.random.default_rng(0), []
    for _ in range(19):
        drawn = draw.choice(len(others), len(chosen), replace=False)
        sets.append([others[number] for number in drawn])
    return sets


# END SOLUTION
# BEGIN STUB
# def control_sets(chosen, heads, blocks):
#     ...  # a list of lists of (block, head)
# END STUB
check_control_sets(control_sets)

# %% [markdown]
# ## Three heads
#
# **Predict before you run.** The three estimates add up to more than the first figure shows for the three together. Are the estimates too
# high, or do shares not add?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Mostly the second. Really patched, the three move 62, 24 and 21 % of the occupations' gap, and together 88 %. One estimate was too high;
# and as harms don't add (lesson 04), nor do shares.
#
# </details>

# %%
from course_utils.bias.pronouns import patched_log_odds, random_heads

sets = [*([head] for head in chosen), chosen]
sets += random_heads(chosen, heads, blocks, seed=session.seed)
names = [*(f"block {b}, head {h}" for b, h in chosen), "the three together"]
table = {}
for name, words_of in (("occupations", occupations()), ("woman/man", people())):
    rows = opposites(prompts(words_of, "evaluation"))
    rows = rows.groupby("template", sort=False).head(3)
    texts, opposed, same = (list(rows[side]) for side in ("text", "source", "same"))
    now, then = odds[texts].mean(), odds[opposed].mean()
    patched = patched_log_odds(model, tokenizer, texts, opposed, sets)
    moved = 100 * (patched.mean(1) - now) / (then - now)
    column = dict(zip(names, moved, strict=False))
    column["19 random sets, least"] = moved[len(names) :].min()
    column["19 random sets, most"] = moved[len(names) :].max()
    patched = patched_log_odds(model, tokenizer, texts, same, [chosen]).mean()
    column["from the same group"] = 100 * (patched - now) / (then - now)
    table[name] = column
    told = 100 * record[name]["heads, opposite"][-1]
    print(f"{name}: together {column['the three together']:.0f} % here", end=", ")
    print(f"{told:.0f} % in the record, with more pairs")
table = pd.DataFrame(table)
alone, together = table.loc[names[:3]], table.loc[names[3]]
most = table.loc[["19 random sets, most", "from the same group"]].abs().max()
here("Three heads move over three times what controls move.", together / 3 - most)
here("They move over half of each gap.", together - 50)
claim("Together they move less than their shares' sum.", alone.sum() - together)
table.round().astype(int)

# %% [markdown]
# The same heads bring "she" for the woman: the stereotype goes through heads that pass on a word's plain meaning.
#
# What a patch shows: this place *carries* the difference between these two sentences. It doesn't show where the difference was made,
# nor that the place does nothing else.

# %% [markdown]
# ### Exercise 5 · ●●● · 12 minutes
#
# A question of your own: two answers, one token each, that a word decides, such as " is" and " are". Give `rows`, six triples or more
# `(text, source, same)`: the source asks for the other answer, `same` is another word with the text's own answer, and all three end in
# the same words. Find `own_heads`, three that you choose on the first half of the rows. The check judges them on the other half: the
# gap must be over 2 nats, the three must beat nineteen random sets, and the neutral swap move less than a quarter. Occupations and
# family words are refused.
#
# <details><summary>Hint</summary>
#
# `log_odds` and `head_effects` take `answers=` and speak in log-odds, not in shares: towards the source's answer they go *down*. Try
# "The key near the cabinets".
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_08 import check_question

# BEGIN SOLUTION
answers, rows = (" is", " are"), []
for noun, other, place in (
    ("key", "coin", "cabinets"),
    ("cup", "plate", "tables"),
    ("dog", "cat", "cars"),
    ("lamp", "clock", "beds"),
    ("house", "church", "rivers"),
    ("apple", "pear", "trees"),
):
    words_of_row = noun, f"{noun}s", other
    rows.append(tuple(f"The {word} near the {place}" for word in words_of_row))
mine, theirs, _ = (list(column) for column in zip(*rows, strict=True))
given = model, tokenizer, mine[:3], theirs[:3]
effect = head_effects(*given, answers=answers).mean(0)
strongest = effect.flatten().argsort()[:3].tolist()  # the most negative
own_heads = [divmod(number, heads) for number in strongest]
# END SOLUTION
# BEGIN STUB
# answers = " is", " are"
# rows = ...  # [(text, source, same), …]
# own_heads = ...  # [(block, head), …], three of them
# END STUB
check_question(rows, answers, own_heads, model, tokenizer)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# The log-odds of two groups of occupations differ clearly, and PCA mixes the groups. What follows?
#
# - [ ] The log-odds are noise, since a picture of the states shows nothing of them.
#   > They follow labour statistics in forty words and eight sentences. Noise doesn't.
# - [x] What separates the groups is a small part of what varies between the words.
#   > PCA shows the largest directions of variance. One that decides about a pronoun can be small among them.
# - [ ] PCA needs more components, and one of the next few would show the groups.
#   > None of them is asked about the groups. More pictures are more chances to see what isn't there.

# %% [markdown] tags=["quiz"]
# A patch of one head moves half of the gap. What does that show?
#
# - [ ] The head has learned the stereotype, so cutting it would leave the rest alone.
#   > It also carries "she" for the woman, and a patch doesn't say what else.
# - [ ] The other half of the gap is carried by the other heads of its block.
#   > Shares needn't add up to 100 %, and no other head was patched.
# - [x] What it says at that token differs between the two sentences, and matters.
#   > That is what was changed, and all that it shows. Where the difference was made, it doesn't say.

# %% [markdown]
# ## Take-aways
#
# - A difference of activations isn't a bias: neutral swaps and shuffled groups have one, too. Shuffle what was sampled.
# - What you picked must be judged elsewhere: neurons lose their difference on new words, patched heads keep their effect.
# - A patch says where something is carried. Beside it belong random sets as deep, and a source that should change nothing.
#
# **The story so far:** look by touching. **Next:** three heads carry the stereotype, and that a woman is "she". Can a cut take the one and
# leave the other? Lesson 09 tries.
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
# - Nanda 2023, *Attribution Patching: Activation Patching at Industrial Scale*
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the three views; WizardSData)
