# ---
# jupyter:
#   course:
#     title: "Cutting a bias out: what must a success also show?"
#     minutes: 75 to 100 minutes
#     prerequisites: lesson 08 (log-odds, what a head says, the direction she − he, attribution patching), lesson 01 (a constant isn't nothing, random sets)
#     assets: [smollm2, speeches, texts]
#     concepts: [pronoun mass, two parts of what a head writes, taking out a direction, carriers and repairers, frontier, sparing what should stay]
# ---

# %% [markdown]
# ## The question
#
# Lesson 08 found three heads that carry the nurse's "she". We cut them, and the bias score falls by three quarters. Ordinary text
# hardly notices. Is that a success? What else must it show?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** The cut model has stopped writing pronouns. The score compares "she" with "he", so it can't see that both are gone.
# What the heads write has two parts: one says that a pronoun comes, after every word alike, and the other says which. A cut takes
# both. Take out only the second part, which lies along one direction, and the pronouns stay. But the woman's "she" goes along the
# same direction as the nurse's, so it goes as well. Neurons in earlier blocks can part the two a little: spare all that move the
# woman. So a success must show four things: the score falls, the words that it compares are still written, what isn't a stereotype
# still holds, and the rest of the language is there.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** a score that falls is a claim about two words beside each other. It doesn't say that they are still there, or that
# they still mean something.
#
# **Content:** the sentences are inoffensive: occupations and family words.
#
# **Let the room vote** after the first table: ship it or not? Then read what the cut model writes. The laugh is the lesson.
#
# **Usual questions:** "Why not take out the direction everywhere?" Then the model can't tell she from he at all. "Isn't the woman
# saved by training?" Perhaps; a cut alone doesn't. "Is 60 % of a stereotype a success?" For whom? The picture has no answer to that.
#
# **Wrong turns:** the softmax over two words (exercise 1); a direction that isn't divided by its length (exercise 3); subtracting
# the woman's estimate, which cuts the neurons that repair first (exercise 4).
#
# **At the end you have** four questions for every bias score that falls, and a cut of your own that passes them in part.

# %% tags=["install"]

# %%
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

from course_utils.bias.pronouns import (
    head_effects, log_odds, occupations, opposites, people, prompts, random_heads,
)  # fmt: skip
from course_utils.lessons import claim, here
from course_utils.measuring import continuations, perplexity, perplexity_ratio
from course_utils.models import load_model, variant
from course_utils.support import mark, show, start, style
from course_utils.text import judging_rows

session = start("09")
style()
model, tokenizer = load_model("llama", dtype=torch.float32)
model.requires_grad_(False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
layers, heads = model.model.layers, model.config.num_attention_heads
size = layers[0].self_attn.head_dim
(SHE,), (HE,) = tokenizer([" she", " he"], add_special_tokens=False).input_ids

# %% [markdown]
# We choose the three heads as lesson 08 did: by attribution patching, on one half of the occupations and sentences. The other half
# judges. The **stereotype** is the gap between the mean log-odds of "she" against "he" after women's and after men's occupations.
#
# Lesson 08 let the heads say their mean. Now we really cut them: the weights that write what they say become 0, in every sentence.
# The control is three random sets of three heads, as deep in the model as these.

# %%
choosing = opposites(prompts(occupations(), "selection"))
texts, sources = list(choosing.text), list(choosing.source)
effects = head_effects(model, tokenizer, texts, sources).mean(0)  # [blocks, heads]
ranked = effects.flatten().argsort().tolist()  # towards “he” first
chosen = [divmod(number, heads) for number in ranked[:3]]
print("heads (block, number):", *chosen)

about = {"stereotype": occupations(), "woman/man": people()}
judging = {name: prompts(words, "evaluation") for name, words in about.items()}
rows = [text.input_ids[:6] for text in judging_rows(tokenizer).values()]
ordinary = torch.cat(rows)  # two texts that nothing was chosen by
text_of = {"whole": perplexity(model, ordinary, batch_size=16)}


def groups_of(table):
    """True where the word's group is the one with “she”."""
    return torch.tensor(table.group.isin(["mostly women", "she"]).to_numpy())


def without_heads(some):
    """A copy in which these heads write nothing."""
    cut = variant(model)  # shares all weights but those that we exchange
    for block, head in some:
        o_proj = cut.model.layers[block].self_attn.o_proj
        weight = o_proj.weight.clone()
        weight[:, head * size : (head + 1) * size] = 0
        o_proj.weight = nn.Parameter(weight, requires_grad=False)
    return cut


def stereotype(of):
    table = judging["stereotype"].sort_values("template")  # equal lengths together
    odds = log_odds(of, tokenizer, list(table.text))
    women = groups_of(table).numpy()
    return odds[women].mean() - odds[~women].mean()


# %%
cut = without_heads(chosen)
text_of["cut"] = perplexity(cut, ordinary, batch_size=16)
score = {"whole": stereotype(model), "cut": stereotype(cut)}
deep = random_heads(chosen, heads, len(layers), seed=session.seed)[:3]
others = [stereotype(without_heads(some)) for some in deep]
price = perplexity_ratio(text_of["cut"], text_of["whole"])[0]
print(f"stereotype: {score['whole']:.2f} → {score['cut']:.2f} nats", end="; ")
print(f"perplexity of ordinary text × {price:.2f}")
print(f"without random heads: {min(others):.2f} to {max(others):.2f} nats")
gone = [score["whole"] / 2 - score["cut"]]
here("Over half of the stereotype goes with the three heads.", gone)
here("Random heads leave over half of it.", [min(others) - score["whole"] / 2])
claim("Ordinary text hardly notices.", [1.1 - price])

# %% [markdown]
# Three heads of 270, and three quarters of the stereotype are gone! A paper could stop here. We don't, and read what the model
# writes now.
#
# **Predict before you run.** How does the cut model go on after "The nurse was late because"? With "she", with "he", or with a fair
# mixture? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# With neither: "of a medical emergency". After "The woman said that" comes "the man was". The farmer, too, is "the farmer" again
# where a person would say "he". The model avoids pronouns.
#
# </details>

# %%
some = [
    "The nurse was late because",
    "The woman said that",
    "The farmer was late because",
]
both = {"whole": model, "cut": cut}
continuations(both, tokenizer, some, new_tokens=9)

# %% [markdown]
# The score has missed that, and it had to: log-odds compare "she" with "he". If both become ten times less likely, they stay the
# same. So we also need the **pronoun mass**, $P(\text{she}) + P(\text{he})$: how likely is it that one of the two comes at all?

# %% [markdown]
# ### Exercise 1 · ●○○ · 6 minutes
#
# Write `gap_and_mass(logits, she, he, toward_she)`. `logits` is a tensor [texts, vocabulary] for the next token, `she` and `he` are
# the numbers of these tokens, and `toward_she` is [texts], True behind a word of the women's group. Return two numbers: the *gap*
# (mean log-odds of the women's group less that of the others, in nats), and the mean *mass* of all texts.
#
# <details><summary>Hint</summary>
#
# Log-odds are a difference of two logits, because what the softmax divides by cancels. In the mass it doesn't cancel.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_gap_and_mass


# BEGIN SOLUTION
def gap_and_mass(logits, she, he, toward_she):
    odds = logits[:, she] - logits[:, he]
    gap = odds[toward_she].mean() - odds[~toward_she].mean()
    p = logits.softmax(-1)
    return gap.item(), (p[:, she] + p[:, he]).mean().item()


# END SOLUTION
# BEGIN STUB
# def gap_and_mass(logits, she, he, toward_she):
#     ...  # gap, mass
# END STUB
check_gap_and_mass(gap_and_mass)

# %% [markdown]
# ## Four questions instead of one
#
# With the mass we can ask whether the pronouns are still there. And lesson 08 had a yardstick: **woman/man** is the gap after
# woman, aunt, queen against man, uncle, king. No stereotype says that the queen is a "she"; that is what the word means. A fair
# model should keep it.
#
# **Predict before you run.** How much of the mass does the cut model have left? And which goes down further, the stereotype or
# woman/man? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The mass falls to about a quarter, behind both kinds of words. And the woman suffers more than the stereotype: a tenth of her gap is
# left, of the stereotype a quarter.
#
# </details>

# %%
gap_and_mass = check_gap_and_mass.accepted  # yours, if it is correct
MASS = {"stereotype": "mass, occupations", "woman/man": "mass, people"}
masses = [*MASS.values()]


@torch.no_grad()
def read(of, texts):
    """What a model gives for texts that all end at the same place."""
    options = {"padding": True, "padding_side": "left", "add_special_tokens": False}
    batch = tokenizer(list(texts), return_tensors="pt", **options)
    return of(**batch.to(of.device), logits_to_keep=1).logits[:, -1].float().cpu()


def measure(of, tables=judging):
    """Both gaps in nats, and the mass behind both kinds of words."""
    found = {}
    for name, table in tables.items():
        parts = [part for _, part in table.groupby("template")]
        logits = torch.cat([read(of, part.text) for part in parts])
        toward_she = groups_of(pd.concat(parts))
        gap, mass = gap_and_mass(logits, SHE, HE, toward_she)
        found |= {name: gap, MASS[name]: mass}
    return found


# %%
measured = {"whole": measure(model), "cut": measure(cut)}
table = pd.DataFrame(measured).T
table["perplexity"] = [text_of[name].perplexity for name in table.index]
lost = 1 - table.loc["cut"] / table.loc["whole"]
here("With the heads over half of the pronouns' mass is gone.", lost[masses] - 0.5)
here("Of woman/man over half goes, too.", [lost["woman/man"] - 0.5])
table.round(2)

# %% [markdown]
# *Gaps in nats; mass: the mean probability that "she" or "he" comes next. On words and sentences that chose nothing.*
#
# This is no fair model. It avoids the question, and where it has to answer, it has forgotten the woman even more thoroughly than
# the stereotype. (Lesson 08's last exercise had warned us: these heads carry "it" and "they" as well.)
#
# ## Why does the mass fall?
#
# Each head **writes** a vector into the last token's state. Over all texts this vector has a mean, and each text differs from the
# mean. So we can always say:
#
# $$\text{wrote} = \underbrace{\text{mean}}_{\text{the same after every word}} + \underbrace{(\text{wrote} - \text{mean})}_{\text{differs from word to word}}$$
#
# A cut takes both. Is it possible that the score and the mass belong to different parts? In the next cell `editing` puts whatever
# an edit returns in the place of what each of the three heads writes.

# %%
place = {}  # of each head's part in what o_proj reads
for block, head in chosen:
    place[block, head] = slice(head * size, (head + 1) * size)


def heard(texts):
    """By head, what it writes at the last token; and that token's last state."""
    found, hooks = {}, []
    for (block, head), own in place.items():

        def note(o_proj, inputs, output, own=own, key=(block, head)):
            found[key] = inputs[0][:, -1, own] @ o_proj.weight[:, own].T

        o_proj = layers[block].self_attn.o_proj
        hooks.append(o_proj.register_forward_hook(note))

    def keep(norm, inputs):
        found["state"] = inputs[0][:, -1]

    hooks.append(model.model.norm.register_forward_pre_hook(keep))
    read(model, texts)
    for hook in hooks:
        hook.remove()
    return found


# %%
by_head = heard(prompts(occupations(), "selection").text)
means = {head: by_head[head].mean(0) for head in chosen}  # [hidden]


@contextmanager
def editing(edit):
    """For a while each head writes edit(wrote, mean) in place of what it wrote."""
    hooks = []
    for (block, head), own in place.items():

        def put(o_proj, inputs, output, own=own, mean=means[block, head]):
            wrote = inputs[0][..., own] @ o_proj.weight[:, own].T
            return output - wrote + edit(wrote, mean)

        o_proj = layers[block].self_attn.o_proj
        hooks.append(o_proj.register_forward_hook(put))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# %%
first_half = {"stereotype": prompts(occupations(), "selection")}
before = measure(model, first_half)


def trial(edit):
    """The shares of gap and mass that an edit leaves, on the choosing half."""
    with editing(edit):
        after = measure(model, first_half)
    left = {name: after[name] / before[name] for name in before}
    return {"gap": left["stereotype"], "mass": left["mass, occupations"]}


left = trial(lambda wrote, mean: torch.zeros_like(wrote))  # the cut
print(f"cut: gap {left['gap']:.0%} left, mass {left['mass']:.0%} left")

# %% [markdown]
# ### Exercise 2 · ●●○ · 12 minutes
#
# *Why does the mass fall?* Prove your idea by two edits. Each gets `wrote` [texts, tokens, hidden] and the head's `mean` [hidden], and
# returns what the head should write instead, of the shape of `wrote`. `takes_gap` must take over half of the gap and leave four
# fifths of the mass or more. `takes_mass` must do the opposite: take over half of the mass and leave four fifths of the gap or more.
#
# You can try your edits with `trial(edit)`.
#
# <details><summary>Hint</summary>
#
# The formula above has two terms on its right side, and a cut takes away both. What happens if you take away one?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_two_edits


# BEGIN SOLUTION
def takes_gap(wrote, mean):
    return mean.expand_as(wrote)


def takes_mass(wrote, mean):
    return wrote - mean


# END SOLUTION
# BEGIN STUB
# def takes_gap(wrote, mean):
#     ...  # of the shape of `wrote`
#
#
# def takes_mass(wrote, mean):
#     ...  # of the shape of `wrote`
# END STUB
check_two_edits(takes_gap, takes_mass, trial=trial)

# %% [markdown]
# ## What do the heads write?
#
# So the heads say two things at once. We can read both. The LM head takes the dot product of a state with a row for each token, so
# a vector that is added to the state pushes each token up or down. Which tokens does the three heads' mean push up most? And which
# does the difference between women's and men's words?
#
# **Predict before you run.** In the figure each dot is a word. To the right: how far the three heads push "he" up; upwards: "she".
# Where is the point that a cut moves all dots to? Where do woman and man lie, where nurse and carpenter?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The cut moves them to the origin, where nothing is pushed. Nurse and carpenter lie close together, far from the origin: both words
# are pushed up behind both. Woman and man lie far apart, on the two sides.
#
# </details>

# %%
rows_of = model.lm_head.weight * model.model.norm.weight  # through the norm
rows_of = rows_of - rows_of.mean(0)  # what is common to all tokens cancels
pushes, wrote_by = {}, {}
for name, table in judging.items():
    by_head = heard(table.text)
    scale = by_head["state"].pow(2).mean(-1, keepdim=True).sqrt()  # the norm's
    together = sum(by_head[head] for head in chosen)
    wrote_by[name] = together / scale  # [texts, hidden]
    push = (wrote_by[name] @ rows_of[[HE, SHE]].T).cpu().numpy()
    table = table.assign(he=push[:, 0], she=push[:, 1])
    by_word = table.groupby(["group", "word"], sort=False)[["he", "she"]]
    pushes[name] = by_word.mean().reset_index()
mean = wrote_by["stereotype"].mean(0)
women = groups_of(judging["stereotype"])
difference = wrote_by["stereotype"][women].mean(0)
difference = difference - wrote_by["stereotype"][~women].mean(0)
told = {"the mean": mean, "women − men": difference, "men − women": -difference}
for name, vector in told.items():
    best = (rows_of @ vector).topk(6).indices
    print(f"{name} pushes up:", *[tokenizer.decode(token) for token in best])
both_up = pd.concat(pushes)[["he", "she"]].min(axis=1) > 0
claim("The three push both words up behind nearly all.", [both_up.mean() - 0.8])

# %%
_, panel = plt.subplots(figsize=(9, 6.4), layout="constrained")
shown = {
    "mostly women": ("mostly women", "full"), "mostly men": ("mostly men", "full"),
    "she": ("mostly women", "none"), "he": ("mostly men", "none"),
}  # fmt: skip
says = {"she": "woman, aunt, …", "he": "man, uncle, …"}
for part in pushes.values():
    for group, dots in part.groupby("group", sort=False):
        name, fill = shown[group]
        look = mark(name) | {"label": says.get(group, group), "fillstyle": fill}
        panel.plot(dots.he, dots.she, linestyle="none", **look)
end = pd.concat(pushes)[["he", "she"]].max().max()
panel.plot([0, end], [0, end], color=mark("random")["color"], linewidth=1)
star = mark("whole") | {"label": "cut", "markersize": 15, "linestyle": ""}
panel.plot(0, 0, **star)
panel.set(xlabel="pushes “he” up, nats", ylabel="pushes “she” up, nats")
panel.legend()
show(
    "Dots of words, all above and to the right of a star at the origin, the cut. "
    "Occupations lie near the grey diagonal, women's a bit above, men's a bit "
    "below. The people's dots lie far above and far below it."
)

# %% [markdown]
# *Each dot is a word, averaged over sentences; how far what the three heads write pushes "he" (right) and "she" (up). Along the grey
# line both are pushed alike. The star: nothing is written.*
#
# Along the grey line the dots say *a pronoun comes*: all of them are far from the star. Across it they say *which one*. A cut moves
# every dot to the star, so it takes both. The mean moves every dot into the middle of the cloud, so only "which" is lost. And the
# mean, read as words, is a list of pronouns.
#
# There is a more exact knife. "Which" is one direction, across the grey line: lesson 08's she − he. So take out of what the heads
# write its part along this direction, and nothing else.

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# Write `without(wrote, direction)`. `wrote` is [..., hidden], and `direction` is [hidden], of any length. Return `wrote` without its
# part along the direction: the dot product of what you return with the direction is 0, and all that is at right angles to it is
# unchanged.
#
# <details><summary>Hint</summary>
#
# The part along $d$ is a multiple of $d$. How large must the multiple be, so that the rest has a dot product of 0 with $d$?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_without


# BEGIN SOLUTION
def without(wrote, direction):
    along = (wrote @ direction) / (direction @ direction)
    return wrote - along[..., None] * direction


# END SOLUTION
# BEGIN STUB
# def without(wrote, direction):
#     ...  # of the shape of `wrote`
# END STUB
check_without(without)

# %% [markdown]
# ## The knife and the woman
#
# Now all edits side by side, on the words and sentences that chose nothing. *Only she − he* is the opposite of the knife: the heads
# write their part along the direction and nothing else.
#
# **Predict before you run.** The knife takes she − he alone, out of three heads. What is left of the stereotype, of the pronouns,
# and of woman/man? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The pronouns stay, and ordinary text notices nothing at all. Of the stereotype a fifth is left, as after the cut. But of woman/man
# nearly nothing is left. With the direction alone it is the other way round: the pronouns go, and both gaps grow.
#
# </details>

# %%
without = check_without.accepted  # yours, if it is correct
takes_gap = check_two_edits.accepted
she_he = rows_of[SHE] - rows_of[HE]


def along(direction):
    """The edit that takes out a direction."""
    return lambda wrote, mean: without(wrote, direction)


edits = {
    "mean kept": takes_gap,
    "without she − he": along(she_he),
    "only she − he": lambda wrote, mean: wrote - without(wrote, she_he),
}
for name, edit in edits.items():
    with editing(edit):
        measured[name] = measure(model)
        text_of[name] = perplexity(model, ordinary, batch_size=16)

# %%
table = pd.DataFrame(measured).T
left = 100 * table / table.loc["whole"]
whole = text_of["whole"]
for name, text in text_of.items():
    left.loc[name, "perplexity"] = perplexity_ratio(text, whole)[0]
knife, opposite = left.loc["without she − he"], left.loc["only she − he"]
gaps = ["stereotype", "woman/man"]
margins = [*(knife[masses] - 80), *(50 - knife[gaps])]
here("The knife leaves most of the mass, and takes most of both gaps.", margins)
margins = [*(70 - opposite[masses]), *(opposite[gaps] - 80)]
here("The direction alone does the opposite.", margins)
percent = left[[*table]].round().astype(int)
percent.assign(perplexity=left["perplexity"].map("× {:.2f}".format)).drop("whole")

# %% [markdown]
# *What is left, % of the whole model's.*
#
# Read the row of the knife as somebody who sells fair models: the score has fallen to a fifth, the pronouns are written, and
# perplexity is the same. It passes three of four questions. Then ask for the woman. She is gone as well, because the nurse's "she" and the
# woman's "she" go along **the same direction**. Where the three heads write, there is nothing to cut between the two.
#
# ## Can anything part them?
#
# Only something earlier in the model, where a nurse and a woman are still two things. So we go to the neurons, as in *fairness-aware
# pruning*: cut those that **carry** the bias. How much goes with a neuron $n$? Attribution patching again, with nothing in the
# place of the neuron: it takes its activation $a_n$ along, and to first order the gap falls by
#
# $$\text{carried}_n \approx \sum_{\text{tokens}} a_n \cdot \frac{\partial\, \text{gap}}{\partial a_n}$$
#
# One backward pass estimates this for all neurons. If the number is below 0, the gap would grow without the neuron: it **repairs**.
# We ask for three quantities: the stereotype, woman/man, and the log of the pronouns' mass. The choosing half answers.


# %%
def carried(table, quantity):
    """What goes with each neuron, of quantity(logits): [blocks, neurons]."""
    kept = []

    def note(down_proj, inputs):
        kept.append(inputs[0].requires_grad_())

    downs = [layer.mlp.down_proj for layer in layers]
    hooks = [down.register_forward_pre_hook(note) for down in downs]
    right = {"padding": True, "padding_side": "right", "add_special_tokens": False}
    batch = tokenizer(list(table.text), return_tensors="pt", **right)
    batch = batch.to(model.device)
    states = model.model(**batch).last_hidden_state
    for hook in hooks:
        hook.remove()
    last = batch.attention_mask.sum(1) - 1
    logits = model.lm_head(states[torch.arange(len(states)), last])
    slopes = torch.autograd.grad(quantity(logits), kept)
    by_block = []
    for acts, slope in zip(kept, slopes, strict=True):
        effect = (acts * slope).detach()[:, 1:]  # not the first token (lesson 03)
        by_block.append(effect.sum((0, 1)))
    return torch.stack(by_block).cpu()


# %%
def gap_of(table):
    women = groups_of(table).to(model.device)

    def gap(logits):
        odds = logits[:, SHE] - logits[:, HE]
        return odds[women].mean() - odds[~women].mean()

    return gap


def log_mass(logits):
    return logits.log_softmax(-1)[:, [SHE, HE]].logsumexp(-1).mean()


jobs, persons = (prompts(words, "selection") for words in about.values())
estimates = {
    "stereotype": carried(jobs, gap_of(jobs)),
    "woman": carried(persons, gap_of(persons)),
    "pronouns": carried(persons, log_mass),
}
most = estimates["stereotype"].flatten().sort(descending=True).values
print(f"the strongest neuron carries {most[0]:.2f} nats", end=", ")
print(f"the strongest repairer {most[-1]:.2f}")

# %% [markdown]
# ## The scoreboard
#
# Two things should come true at once: the stereotype goes, and the woman stays. So each model is a point with two numbers, and the
# corner that we want is shaded. Every method has a **dose**: how much of the direction is taken out, or how many neurons of each block.
# Its points make a curve. The outermost points that can be reached are called the *frontier*.
#
# **Predict before you run.** Where do the curves of the knife (half of the direction, all of it) and of the
# carriers (half a dozen neurons or fewer of each block) run? On which points have the pronouns gone?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The knife runs below the diagonal all along: whatever the dose, it takes more of the woman than of the stereotype. The carriers fall
# into the corner at the bottom with the very first neurons, and take the pronouns along. Nothing comes near the shaded corner.
#
# </details>

# %%
from course_utils.pruning import prune_neurons


def without_neurons(first, count):
    """A copy without the neurons of each block that have the highest numbers."""
    pruned, width = variant(model), first.shape[1]
    prune_neurons(pruned, [-score for score in first], ratio=count / width)
    return pruned


def left_of(of):
    """What is left, % of the whole model's."""
    return 100 * pd.Series(measure(of)) / pd.Series(measured["whole"])


curves = {"knife": {"0": left.loc["whole"]}, "carriers": {"0": left.loc["whole"]}}
with editing(lambda wrote, mean: (wrote + without(wrote, she_he)) / 2):
    curves["knife"]["½"] = left_of(model)
curves["knife"]["all"] = knife
for count in (1, 4):
    pruned = without_neurons(estimates["stereotype"], count)
    curves["carriers"][str(count)] = left_of(pruned)
chance = torch.rand_like(estimates["woman"])
curves["random"] = {"8": left_of(without_neurons(chance, 8))}
curves["cut"] = {"heads": left.loc["cut"]}


# %%
def scoreboard(curves, names):
    """Stereotype left across, woman left up; hollow where the pronouns are gone."""
    _, panel = plt.subplots(figsize=(9, 7.2), layout="constrained")
    corner = mark("whole")["color"]
    panel.fill_between([0, 50], 80, 105, color=corner, alpha=0.08, linewidth=0)
    panel.plot([0, 100], [0, 100], color=mark("random")["color"], linewidth=1)
    for name, doses in curves.items():
        points = pd.DataFrame(doses).T
        look = mark(names[name]) | {"label": name, "markersize": 9}
        x, y = points["stereotype"], points["woman/man"]
        panel.plot(x, y, **look | {"fillstyle": "none"})
        there = points[masses].min(axis=1) >= 75
        panel.plot(x[there], y[there], **look | {"linestyle": "", "label": "_"})
        for dose, point in points.iterrows():
            if dose not in ("0", "heads"):
                at = point["stereotype"] + 1.5, point["woman/man"] - 4
                panel.text(*at, dose, color=look["color"], fontsize=12)
    panel.set(xlim=(-4, 108), ylim=(-4, 108))
    panel.set(xlabel="stereotype left, %", ylabel="woman/man left, %")
    panel.legend(loc="upper left", bbox_to_anchor=(0, 0.72))


names = {"knife": "L1", "carriers": "activation", "yours": "mostly women"}
names |= {"random": "random", "cut": "whole"}
scoreboard(curves, names)
show(
    "Stereotype left from left to right, woman left upwards. The knife's curve is "
    "below the diagonal; that of the carriers drops to the bottom at once, "
    "with hollow marks. The shaded corner at the top left is empty."
)

# %% [markdown]
# *What is left of both gaps. Shaded: at most half of the stereotype, at least four fifths of the woman. Beside the marks: the dose.
# Hollow marks: over a quarter of the pronouns' mass is gone.*
#
# The carriers of the stereotype are the worst choice. They lie behind the same door as the three heads: what carries most of the
# nurse's "she" carries "she". But estimates for 46,000 neurons are on the table, for three quantities. You can do better.

# %%
from course_utils.lessons.exercises.lesson_09 import CutExam

exam = CutExam(model, tokenizer, ordinary, whole)  # has words of its own


def tried(goes_first, count=8):
    """Your cut on the lesson's judging half, % left; ask as often as you like."""
    return left_of(without_neurons(goes_first(**estimates), count)).round()


# %% [markdown]
# ### Exercise 4 · ●●● · 25 minutes
#
# *Take the stereotype, leave the woman and the pronouns.* Write `goes_first(stereotype, woman, pronouns)`. It gets the three
# estimates, [blocks, neurons] each, and returns a number for each neuron. Of each block the eight neurons with the highest numbers
# are cut.
#
# The exam has occupations, family words and sentences that nothing has used. It asks all four questions: at most 70 % of the
# stereotype is left, at least 80 % of woman/man and 85 % of the pronouns' mass, and ordinary text costs × 1.05 at most. It judges
# three times. Try your ideas with `tried(goes_first)` before.
#
# <details><summary>Hint</summary>
#
# `stereotype - woman` sounds right, and is a disaster: look at what it does to a neuron whose estimate for the woman is far below 0. Both
# kinds matter, those that carry her and those that repair. Which neurons don't move her at all?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_09 import check_goes_first


# BEGIN SOLUTION
def goes_first(stereotype, woman, pronouns):
    score = stereotype.clone()
    for spared in (woman, pronouns):
        moves = spared.abs()  # either way: carriers and repairers
        strong = moves > moves.quantile(0.8, dim=1, keepdim=True)
        score[strong] = stereotype.min()
    return score


# END SOLUTION
# BEGIN STUB
# def goes_first(stereotype, woman, pronouns):
#     ...  # [blocks, neurons], the highest go first
# END STUB
check_goes_first(goes_first, estimates=estimates, exam=exam)

# %% [markdown]
# ## How near to the corner?
#
# The same rule with other doses, on the lesson's judging half. (If yours wasn't correct, this is ours: spare the fifth of each block that
# moves the woman most, either way, and the fifth that moves the pronouns most; of the others cut the carriers.)
#
# **Predict before you run.** With more neurons the stereotype shrinks further. Does the curve run on into the shaded corner?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It bends towards the corner, far above the diagonal, with the pronouns in place. But here it passes below: when half of the
# stereotype is gone, a good part of the woman is gone, too.
#
# </details>

# %%
first = check_goes_first.accepted(**estimates)  # yours, if it is correct
curves["yours"] = {"0": left.loc["whole"]}
for count in (2, 8, 16, 32):
    curves["yours"][str(count)] = left_of(without_neurons(first, count))
scoreboard(curves, names)
show(
    "The scoreboard with one more curve: it runs high above the diagonal, with "
    "filled marks, and passes below the shaded corner."
)
yours = pd.DataFrame(curves["yours"]).T.iloc[1:]
above = yours["woman/man"] - yours["stereotype"]
here("The spared cut lies above the diagonal.", above)
here("It keeps three quarters of the pronouns.", yours[masses].min(axis=1) - 75)
short_of = np.maximum(yours["stereotype"] - 50, 80 - yours["woman/man"])
claim("No dose reaches the corner.", short_of)

# %% [markdown]
# *The scoreboard with the spared cut; the number beside a mark says how many neurons of each block are gone.*
#
# So earlier in the model the two can be parted, in part. (We turned the halves round as well: chosen on the other half, and judged on
# this one or on the exam's words, the curve runs much the same, and passes as near.) Why not wholly? We don't know. Either the model has no neuron that is about the
# nurse alone, or a first-order estimate from a few dozen texts doesn't find it. What would tell: estimates from many more words and
# sentences, and the same curve again.
#
# And where on the curve should one stop? No measurement says that. It depends on whom the model speaks to and what a wrong "she" costs
# them. The curve says what there is to choose from.
#
# ## Quiz

# %% [markdown] tags=["quiz"]
# A cut lowers the gap between "she" and "he" after occupations to a tenth. Perplexity is the same. What do you ask first?
#
# - [ ] Whether perplexity was measured on enough text.
#   > More text wouldn't show it: one word in fifty is a pronoun, and a model can lose them at a small price.
# - [x] How likely "she" and "he" still are, and what the model writes instead.
#   > A gap of log-odds stays the same when both words vanish together.
# - [ ] Whether random cuts do the same.
#   > They don't, and that says only that the cut hit something. It doesn't say what.

# %% [markdown] tags=["quiz"]
# You take the direction she − he out of what three heads write. The stereotype is nearly gone, the pronouns and the text are there. Why is
# this no success yet?
#
# - [ ] A direction in three heads is too little; it has to go in all blocks.
#   > Then "she" and "he" would be equally likely after every word, "queen" as well.
# - [x] "The queen … she" goes along the same direction, and has gone with it.
#   > One direction carries the stereotype and the meaning, so a cut along it can't part them.
# - [ ] The mean of the heads is still there.
#   > It says that a pronoun comes. That should stay.

# %% [markdown] tags=["quiz"]
# A neuron's estimate for woman/man is far below 0. What happens to her gap when it is cut?
#
# - [ ] It shrinks, because the neuron moves it much.
#   > It moves it, but the other way.
# - [ ] Nothing: only neurons above 0 matter.
#   > Both kinds move her. That is why exercise 4 spares both.
# - [x] It grows: the neuron works against it.
#   > Cutting repairers makes the gap grow, and a rule that subtracts the estimate cuts them first.

# %% [markdown]
# ## Take-aways
#
# - A bias score compares words. It falls also when the words are no longer said, so look at their mass, and read what the model writes.
# - What a head writes is a mean and a difference. A cut takes both; keeping the mean or taking out one direction takes one.
# - One direction carries the stereotype and the meaning. A tool that knows only the direction can't part them.
# - Neurons that move what should stay can be spared, either way. That bends the curve; it doesn't reach the corner.
#
# *Limits:* one small model, one language, pairs of "she" and "he"; a gap of 0 isn't "fair". Other ways to take out directions (INLP, LEACE)
# meet the same question, and debiasing tends to cost more than its benchmark shows (Meade et al. 2022).
#
# **On Monday:** somebody shows you a bias score that has fallen. Ask four things. Are the words still written? Does what isn't a
# stereotype still hold? Is the rest of the language there? And on which words was the method chosen?
#
# **Next:** lesson 10 asks what pruning really buys, in speed and memory.
#
# ## References
#
# - Meade et al. 2022, *An Empirical Survey of the Effectiveness of Debiasing Techniques for Pre-trained Language Models*, arXiv 2110.08527
# - Zayed et al. 2023, *Fairness-Aware Structured Pruning in Transformers*, arXiv 2312.15398
# - Ravfogel et al. 2020, *Null It Out* (INLP), arXiv 2004.07667; Belrose et al. 2023, *LEACE*, arXiv 2306.03819
# - Michel, Levy and Neubig 2019, *Are Sixteen Heads Really Better than One?*, arXiv 1905.10650
# - Gonen and Goldberg 2019, *Lipstick on a Pig* (a bias that is only hidden), arXiv 1903.03862
# - nostalgebraist 2020, *Interpreting GPT: the logit lens*
# - Martra, *Large Language Model Notebooks Course*, notebook 8_2, and his library optipfair
