# ---
# jupyter:
#   course:
#     title: "Cutting a bias out: what must a success also show?"
#     minutes: 80 to 110 minutes
#     prerequisites: lesson 08 (log-odds, what a head says, the direction she − he, attribution patching), lesson 01 (a constant isn't nothing, random sets)
#     assets: [smollm2, speeches, texts]
#     concepts: [pronoun mass, two parts of what a head writes, taking out a direction, carriers and repairers, dose, sparing what should stay]
# ---

# %% [markdown]
# ## The question
#
# Lesson 08 found three heads that carry the nurse's "she". We cut them, and the bias score falls by three quarters. Ordinary text
# hardly notices. Is that a success? What else must it show?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** The cut model has all but stopped writing "she" and "he". The score compares the two words, so it can't see that
# both have become rare. What the heads write has two parts: one says that a pronoun comes, and the other says which. A cut takes
# both. The second part lies along one direction. If we remove only that, the pronouns stay. But the aunt's "she" goes along the
# same direction as the nurse's, so it goes as well. Some neurons move the stereotype and hardly the aunt. Cutting only those
# takes a part of the stereotype and leaves most of her. So a success must show four things: the score falls, the words that it
# compares are still written, what isn't a stereotype still holds, and the rest of the language is there.
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
# saved by training?" Perhaps; a cut alone doesn't. "Is 60 % of a stereotype a success?" For whom? The picture has no answer to
# that.
#
# **Wrong turns:** the softmax over two words (exercise 1); a direction that isn't divided by its length (exercise 3); subtracting
# the woman's estimate, which cuts the neurons that repair first (exercise 4).
#
# **At the end you have** four questions for every bias score that falls, and a cut of your own that passes them in part.

# %% tags=["install"]

# %%
from contextlib import contextmanager

import matplotlib.pyplot as plt
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
# Lesson 08 had another yardstick: **woman/man** is the gap after girl, aunt, sister against boy, uncle, brother. No stereotype says
# that the aunt is a "she"; that is what the word means. A fair model should keep it. So we ask each model four questions:
#
# 1. Does the stereotype shrink?
# 2. Are the two words still written? (The mass.)
# 3. Does what isn't a stereotype still hold? (Woman/man.)
# 4. Is the rest of the language there? (Perplexity of ordinary text.)
#
# **Predict before you run.** How much of the mass does the cut model have left? And which goes down further, the stereotype or
# woman/man? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The mass falls to about a quarter, behind both kinds of words. And the woman suffers more than the stereotype: a tenth of her
# gap is left, of the stereotype a quarter.
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
# This is no fair model. It avoids the question, and where it has to answer, it has forgotten the aunt even more thoroughly than
# the stereotype. (Lesson 08's last exercise had warned us: these heads carry "it" and "they" as well.)
#
# ## Why does the mass fall?
#
# Each head **writes** a vector into the last token's state. Over all texts this vector has a mean, and each text differs from the
# mean. So we can always say:
#
# $$\text{wrote} = \underbrace{\text{mean}}_{\text{the same after every word}} + \underbrace{(\text{wrote} - \text{mean})}_{\text{differs from word to word}}$$
#
# A cut takes both. Is it possible that the score and the mass belong to different parts? In the next cells the mean is taken over
# the choosing half of the occupations, at the last tokens. And `with editing(f)` each of the three heads writes `f(wrote, mean)`
# instead of `wrote`, at every token.

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


# %% [markdown]
# ### Exercise 2 · ●●○ · 12 minutes
#
# *Why does the mass fall?* Prove your idea by two edits. Each gets `wrote` [texts, tokens, hidden] and the head's `mean`
# [hidden], and returns what the head should write instead, of the shape of `wrote`. `takes_gap` must take over half of the gap
# and leave four fifths of the mass or more. `takes_mass` must do the opposite: take over half of the mass and leave four fifths
# of the gap or more.
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
# So the heads say two things at once. (Without the mean the gap even grows. Why it does, we don't know.) We can read both. The LM
# head takes the dot product of a state with a row for each token, so a vector that is added to the state pushes each token up or
# down. Which tokens does the three heads' mean push up most? And which does the difference between women's and men's words?
#
# **Predict before you run.** In the figure each dot is a word. To the right: how far the three heads push "he" up; upwards: "she".
# Where is the point that a cut moves all dots to? Where do aunt and uncle lie, where women's and men's occupations?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The cut moves them to the origin, where nothing is pushed. The occupations lie close together, far from the origin: both
# pronouns are pushed up behind all of them. Aunt and uncle lie far apart, on the two sides.
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
says = {"she": "aunt, sister, …", "he": "uncle, brother, …"}
for part in pushes.values():
    for group, dots in part.groupby("group", sort=False):
        name, fill = shown[group]
        look = mark(name) | {"label": says.get(group, group), "fillstyle": fill}
        panel.plot(dots.he, dots.she, linestyle="none", **look)
end = pd.concat(pushes)[["he", "she"]].max().max()
panel.plot([0, end], [0, end], color=mark("random")["color"], linewidth=1)
centre = pushes["stereotype"][["he", "she"]].mean()
panel.plot(*centre, **mark("price") | {"label": "the mean", "linestyle": ""})
for name in ("aunt", "uncle"):
    dot = pushes["woman/man"].set_index("word").loc[name]
    panel.text(dot.he + 0.2, dot.she - 0.6, name)
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
# *Each dot is a word, averaged over sentences; how far what the three heads write pushes "he" (right) and "she" (up), if nothing
# behind them answered. (Later blocks do, and take a good part back.) Along the grey line both are pushed alike. The star: nothing
# is written.*
#
# Along the grey line the dots say *a pronoun comes*: all of them are far from the star. Across it they say *which one*. A cut
# moves every dot to the star, so it takes both. The mean moves every dot to the orange one in the middle of the occupations, so
# only "which" is lost. And the mean, read as words, is a list of pronouns.
#
# There is a more exact knife. "Which" is one direction, across the grey line: lesson 08's she − he. So take out of what the heads
# write its part along this direction, and nothing else.

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# Write `without(wrote, direction)`. `wrote` is [..., hidden], and `direction` is [hidden], of any length. Return `wrote` without
# its part along the direction: the dot product of what you return with the direction is 0, and all that is at right angles to it
# is unchanged.
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
# Now all edits side by side, on the words and sentences that chose nothing. *Knife* is your function along she − he. *Only she −
# he* is its opposite: the heads write their part along the direction and nothing else. *Difference alone* is exercise 2's other
# edit.
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
she_he = rows_of[SHE] - rows_of[HE]


def along(direction):
    """The edit that takes out a direction."""
    return lambda wrote, mean: without(wrote, direction)


edits = {
    "mean alone": lambda wrote, mean: mean.expand_as(wrote),
    "difference alone": lambda wrote, mean: wrote - mean,
    "knife": along(she_he),
    "only she − he": lambda wrote, mean: wrote - without(wrote, she_he),
}
for name, edit in edits.items():
    with editing(edit):
        measured[name] = measure(model)
        if name in ("mean alone", "knife"):
            text_of[name] = perplexity(model, ordinary, batch_size=16)

# %%
table = pd.DataFrame(measured).T
left = 100 * table / table.loc["whole"]
whole = text_of["whole"]
price_of = {}
for name, text in text_of.items():
    price_of[name] = f"× {perplexity_ratio(text, whole)[0]:.2f}"
knife, opposite = left.loc["knife"], left.loc["only she − he"]
gaps = ["stereotype", "woman/man"]
margins = [*(knife[masses] - 80), *(50 - knife[gaps])]
here("The knife leaves most of the mass, and takes most of both gaps.", margins)
margins = [*(70 - opposite[masses]), *(opposite[gaps] - 80)]
here("The direction alone does the opposite.", margins)
percent = left.round().astype(int)
percent["perplexity"] = pd.Series(price_of)
percent.drop("whole").fillna("")

# %% [markdown]
# *What is left, % of the whole model's.*
#
# The row of the knife looks like a success: the score has fallen to a fifth, the pronouns are written, and perplexity is the
# same. Three of the four questions are answered with yes. Then ask for the aunt. Hardly anything of her "she" is left. The LM
# head reads "she" against "he" along **one direction**, so behind these heads the nurse's "she" and the aunt's "she" both lie on
# it. Whoever removes the same share of it in every sentence removes both. (That both gaps grow if the rest is silent is a
# surprise to us. We don't know why.)
#
# ## Can anything part them?
#
# Perhaps neurons, whose outputs aren't about one direction only. A common idea is to cut those that **carry** the bias. How much
# goes with a neuron $n$? Attribution patching again. Cutting the neuron sets its activation $a_n$ to 0. To first order the gap
# then falls by
#
# $$\text{carried}_n \approx \sum_{\text{tokens}} a_n \cdot \frac{\partial\, \text{gap}}{\partial a_n}$$
#
# One backward pass estimates this for all neurons. If the number is below 0, the gap would grow without the neuron: it
# **repairs**. We estimate three quantities on the choosing half: the stereotype, woman/man, and the log of the pronouns' mass.
# (The estimate leaves out the first token, whose activations are giants, and the cut doesn't. It is a straight line's guess in
# any case, so we use it to choose, and measure each cut.)


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
# Two things should come true at once: the stereotype goes, and the woman stays. So each model is a point with two numbers, and
# the corner that we want is shaded. Every method has a **dose**: how much of the direction is taken out, or how many neurons of
# each block. Its points make a curve. On the grey diagonal both shrink by the same share.
#
# **Predict before you run.** Where do the curves of the knife (half of the direction, all of it) and of the carriers (one neuron
# of each block, four) run: above the diagonal, on it or below? On which points have the pronouns gone?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Both run below the diagonal: they take more of woman/man than of the stereotype. The carriers fall to the bottom with the very
# first neurons, and take the pronouns along. Nothing comes near the shaded corner.
#
# </details>

# %%
from course_utils.pruning import prune_neurons


def without_neurons(first, count):
    """A copy without the neurons of each block that have the highest numbers."""
    pruned, width = variant(model), first.shape[1]
    prune_neurons(pruned, [-score for score in first], ratio=count / width)
    return pruned


def left_of(of, tables=judging):
    """What is left, % of the whole model's."""
    whole = measured["whole"] if tables is judging else measure(model, tables)
    return 100 * pd.Series(measure(of, tables)) / pd.Series(whole)


curves = {"knife": {"0": left.loc["whole"]}, "carriers": {"0": left.loc["whole"]}}
with editing(lambda wrote, mean: (wrote + without(wrote, she_he)) / 2):
    curves["knife"]["½"] = left_of(model)
curves["knife"]["all"] = knife
for count in (1, 4):
    pruned = without_neurons(estimates["stereotype"], count)
    curves["carriers"][str(count)] = left_of(pruned)
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
    panel.legend(loc="lower right", fontsize=13)


names = {"knife": "L1", "carriers": "activation", "yours": "mostly women"}
names |= {"spared at random": "random", "cut": "whole", "threshold": "LoRA"}
scoreboard(curves, names)
show(
    "Stereotype left from left to right, woman left upwards. The knife's curve is "
    "below the diagonal; that of the carriers drops to the bottom at once, "
    "with hollow marks. The shaded corner at the top left is empty."
)

# %% [markdown]
# *What is left of both gaps. Shaded: at most half of the stereotype, at least four fifths of woman/man. Beside the marks: the dose.
# Hollow marks: less than three quarters of the pronouns' mass are left.*
#
# The carriers of the stereotype are the worst choice. They take the pronouns along, so what they feed seems to be "she" itself,
# whoever it is about. (All this is in shares. In nats woman/man is five times as large as the stereotype, and a fifth of the one is
# about as much as the whole of the other.)
#
# But you have estimates for all neurons, of three quantities. You can do better.

# %%
from course_utils.lessons.exercises.lesson_09 import CutExam

exam = CutExam(model, tokenizer, ordinary, whole)  # has words of its own


def tried(goes_first, count=8):
    """Your cut on the choosing half, % left; ask as often as you like."""
    choosing_half = {"stereotype": jobs, "woman/man": persons}
    return left_of(without_neurons(goes_first(**estimates), count), choosing_half)


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
# `stereotype - woman` sounds right. But try it: the woman's gap grows, and the nurse's grows with it. It cuts the neurons whose
# estimate for the woman is far below 0, and these repair both. So both kinds of neurons matter, her carriers and her repairers.
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
# The same rule with other doses, on the judging half. (If yours wasn't correct, *yours* is ours: spare the fifth of each block
# that moves the woman most, either way, and the fifth that moves the pronouns most; of the others cut the carriers. We set the
# exam's bar where this rule passes.)
#
# And look at the first picture again. At the three heads one thing does differ between an occupation and the aunt: *how far* they
# are across the grey line. So here is a last edit, with a **threshold**: it takes out the part along she − he only where this
# part is small, and leaves it where it is large. No weight goes; the heads decide anew in each sentence.
#
# **Predict before you run.** Which of the two comes nearer to the shaded corner, your cut or the threshold? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Both bend towards the corner, far above the diagonal, with the pronouns in place. The cut misses it by a little. The threshold
# comes as near or nearer, and leaves ordinary text as it was.
#
# </details>

# %%
first = check_goes_first.accepted(**estimates)  # yours, if it is correct
curves["yours"] = {"0": left.loc["whole"]}
for count in (8, 32):
    pruned = without_neurons(first, count)
    curves["yours"][str(count)] = left_of(pruned)
    if count == 8:
        text_of["yours"] = perplexity(pruned, ordinary, batch_size=16)


def where_small(limit):
    """The edit that takes out the part along she − he where it is small."""

    def edit(wrote, mean):
        differs = wrote - mean
        far = (differs @ she_he).abs() > limit * (she_he @ she_he)
        return torch.where(far[..., None], wrote, mean + without(differs, she_he))

    return edit


curves["threshold"] = {"0": left.loc["whole"]}
for limit in (1, 2, 3):
    with editing(where_small(limit)):
        curves["threshold"][str(limit)] = left_of(model)
        if limit == 2:
            text_of["threshold"] = perplexity(model, ordinary, batch_size=16)

by_chance = estimates["stereotype"].clone()  # as many are spared, but at random
by_chance[torch.rand_like(by_chance) > 0.64] = by_chance.min()
curves["spared at random"] = {"8": left_of(without_neurons(by_chance, 8))}

# %%
for name in ("yours", "threshold"):
    ratio = perplexity_ratio(text_of[name], whole)[0]
    print(f"{name}: perplexity × {ratio:.2f}")
scoreboard(curves, names)
show(
    "The scoreboard with two more curves, high above the diagonal and close to the "
    "shaded corner, with filled marks. Spared at random lies at the bottom."
)
bent = pd.concat([pd.DataFrame(curves[name]).T for name in ("yours", "threshold")])
bent = bent.drop("0")
above = bent["woman/man"] - bent["stereotype"]
here("The cut and the threshold lie above the diagonal.", above)
here("They keep three quarters of the pronouns.", bent[masses].min(axis=1) - 75)

# %% [markdown]
# *The scoreboard with two more curves. Beside the marks: how many neurons of each block are gone, or the threshold. "Spared at
# random": as our rule, but other neurons are spared, as many.*
#
# Does it matter which neurons are spared? Spare as many at random, and nearly all is gone.
#
# So the stereotype and the meaning can be parted, in part. The cut finds neurons that move more of the one than of the other. The
# threshold uses that a meaning speaks up more than a stereotype (so it leaves the strongest stereotypes alone, as well). Do they
# reach the corner? They pass so close that twenty occupations and ten family words can't settle it.
#
# And where on the curve should one stop? No measurement says that. It depends on whom the model speaks to and what a wrong "she"
# costs them. The curve says what there is to choose from.
#
# ## Quiz

# %% [markdown] tags=["quiz"]
# A cut lowers the gap between "she" and "he" after occupations to a tenth. Perplexity is the same. What do you ask first?
#
# - [ ] Whether perplexity was measured on enough text.
#   > More text wouldn't show it: few tokens are pronouns, so a model can lose them at a small price.
# - [x] How likely "she" and "he" still are, and what the model writes instead.
#   > A gap of log-odds stays the same when both words vanish together.
# - [ ] Whether random cuts do the same.
#   > A control says whether the cut hit something. It doesn't say what.

# %% [markdown] tags=["quiz"]
# You take the direction she − he out of what three heads write. The stereotype is nearly gone, the pronouns and the text are
# there. Why is this no success yet?
#
# - [ ] A direction in three heads is too little; it has to go in all blocks.
#   > Then "she" and "he" would be equally likely after every word, "queen" as well.
# - [x] "The queen … she" goes along the same direction, and has gone with it.
#   > One direction carries the stereotype and the meaning. Taking out the same share of it everywhere takes both.
# - [ ] The mean of the heads is still there.
#   > It says that a pronoun comes. That should stay.

# %% [markdown] tags=["quiz"]
# Your rule cuts the neurons with the highest `stereotype - woman`. The stereotype grows. Why?
#
# - [ ] A first-order estimate has random signs.
#   > Then the carriers' cut wouldn't take the stereotype, and it does.
# - [ ] The rule cuts too few neurons.
#   > More of the same would make it worse.
# - [x] It cuts the woman's repairers first, and they repair the nurse's gap, too.
#   > A number far below 0 becomes large when it is subtracted. Spare what moves her either way.

# %% [markdown]
# ## Take-aways
#
# - A bias score compares words. It falls also when the words are no longer said, so look at their mass, and read what the model writes.
# - What a head writes is a mean and a difference. A cut takes both; keeping the mean or taking out one direction takes one.
# - One direction carries the stereotype and the meaning. Taking out the same share of it in every sentence can't part them.
# - Neurons that move what should stay can be spared, carriers and repairers. That bends the curve towards what we want. So does a
#   threshold, since a meaning speaks up more than a stereotype.
#
# *Limits:* one small model, one language, pairs of "she" and "he"; a gap of 0 isn't "fair". Zayed et al. protect heads that
# matter for language, and cut the most biased of the others: exercise 4's idea with another quantity. Methods that take out
# directions (INLP, LEACE) have to answer the same four questions. Meade et al. find that better bias scores often come with worse
# language, so that one can't tell whether the bias has gone.
#
# **On Monday:** somebody shows you a bias score that has fallen. That is the first of four questions. Are the words still
# written? Does what isn't a stereotype still hold? Is the rest of the language there? (And all on words that chose nothing.)
#
# **Next:** lesson 10 asks what pruning really buys, in speed and memory.
#
# ## References
#
# - Meade et al. 2022, *An Empirical Survey of the Effectiveness of Debiasing Techniques for Pre-trained Language Models*, arXiv 2110.08527
# - Zayed et al. 2023, *Fairness-Aware Structured Pruning in Transformers*, arXiv 2312.15398
# - Ravfogel et al. 2020, *Null It Out* (INLP), arXiv 2004.07667; Belrose et al. 2023, *LEACE*, arXiv 2306.03819
# - nostalgebraist 2020, *Interpreting GPT: the logit lens*
# - Martra, *Large Language Model Notebooks Course*, notebook 8_2, and his library optipfair
