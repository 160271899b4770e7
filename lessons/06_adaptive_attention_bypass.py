# ---
# jupyter:
#   course:
#     title: "Adaptive attention bypass: which prompts should do without?"
#     prerequisites: lesson 05 (attention bypass, cache, importance)
#     assets: [smollm2, benchmarks, texts, speeches]
#     concepts: [complexity score, levels and thresholds, decision in the cache, harm, equal cost, price, lower hull]
# ---

# %% [markdown]
# ## The question
#
# Each prompt decides how many attention layers its answer does without. Which prompts should?
#
# **Answer.** The longest, if each answer counts the same: their bypass buys most. At equal cache saved, a complexity score does over twice
# the harm of leaving the same number out everywhere, a price on the cache a fraction.

# %% [markdown] tags=["notes"]
# **The point:** a score that sounds plausible is a hypothesis, and its test is harm at *equal cost*. What a bypass saves is known
# before the answer; what it harms isn't.
#
# **Let the room vote:** which prompts should lose more attention layers, short ones or long ones?
#
# **Usual questions:** "Is the same average the same cost?" No: the cache that a bypass saves grows with the tokens. "So long
# prompts are robust?" No, they are harmed about as much. They only buy more with it.
#
# **Wrong turns:** deciding anew at each pass; keeping the decision in the model instead of the answer's cache; comparing policies
# that save different amounts.
#
# **At the end you have** a bypass that each prompt decides on, a rule for it with a price, and the bill: who pays.

# %% tags=["install"]

# %%
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils.lessons import claim, diagrams, here
from course_utils.lessons.policies import (
    by_level,
    by_price,
    cache_saved,
    cheapest_guess,
    gap_to_static,
    outcome,
    price_for,
    static_harm,
)
from course_utils.lessons.prompt_harm import Record, cases, measure, measure_record
from course_utils.support import mark, ratio_interval, show, start, style

session = start("06")
style()
shipped = Record.load(seed=session.seed)  # of the embedded profile's Llama


def published(record):
    """Columns by Martra's published score: the nearest number that was measured."""
    _, judged = record.split()
    off = np.abs(np.subtract.outer(judged.published, record.numbers))
    return off.argmin(1)


# %%
_, judged = shipped.split()
cache, harms = cache_saved(judged, 30), judged.harm
_, ax = plt.subplots(figsize=(9, 5.2), layout="constrained")
ax.plot(100 * cache.sum(0), harms.mean(0), **mark("one for all"))
rules = {"complexity": by_level(shipped, (8, 3, 0))}
rules["published"] = published(shipped)
for name, columns in rules.items():
    share, harm = outcome(harms, cache, columns)
    look = mark(name) | {"linestyle": "none", "markersize": 13}
    ax.plot(100 * share, harm, **look)
dots = []
for target in np.linspace(0.02, 0.25, 14):
    share, harm = outcome(harms, cache, by_price(shipped, 30, target)[0])
    dots.append((100 * share, harm))
ax.plot(*zip(*dots, strict=True), **mark("price"))
ax.set(xlabel="cache saved, %", ylabel="harm, nats a token")
ax.set_title("Harm at equal cost")
ax.legend()
show(
    "Harm against cache saved: the line of one number for all rises steadily; two "
    "marks of complexity scores lie well above it; the dots of the rule with a "
    "price lie far below it."
)

# %% [markdown]
# *Harm is the distance from the whole model's predictions; lower is better. "One for all" leaves the same layers out everywhere (a coin
# between 1 and 5, which the text compares with, is better than its corner at 10 %). "Complexity" is the score that you build below,
# "published" Martra's own, with another formula and five levels, rounded to numbers that were measured, and "price" the rule that follows.*
#
# ## A score for a prompt
#
# Lesson 05's bypass was *static*: the same attention layers are out for every prompt. In Martra's adaptive bypass an easy prompt keeps
# fewer of them than a hard one.

# %%
diagrams.adaptive_decision()
show(
    "A flow chart: the prompt gives a complexity, the complexity a level, the "
    "level the attention layers that are left out; the prefill decides once and "
    "decoding keeps the decision."
)

# %% [markdown]
# *Prefill* reads the prompt at once; *decoding* writes token by token. Two numbers are known before anything runs: how long the prompt is,
# $n$ tokens, and how much their embeddings $e_{tc}$ vary over the tokens $t$ (for each component $c$). Each is scaled so that 0 and 1 are
# the low and the high end of what calibration prompts have, and cut off there, $[\cdot]$:
#
# $$\mathrm{complexity} = \tfrac{1}{2} [\log n] + \tfrac{1}{2} [\mathrm{mean}_c \, \mathrm{var}_t \, e_{tc}]$$

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# Write `score(embeddings, log_length, variance)` for one prompt: `embeddings` is [tokens, hidden], the others are pairs
# (low, high). Return the mean of the two scaled values, each cut off at 0 and 1. (The variance divides by $n$: one token has 0.)
#
# <details><summary>Hint</summary>
#
# `.var(0, unbiased=False).mean()` is the variance. A value is scaled by `(value - low) / (high - low)`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_score


# BEGIN SOLUTION
def score(embeddings, log_length, variance):
    spread = embeddings.float().var(0, unbiased=False).mean().item()
    values = [(np.log(len(embeddings)), log_length), (spread, variance)]
    scaled = [(value - low) / (high - low) for value, (low, high) in values]
    return np.clip(scaled, 0, 1).mean()


# END SOLUTION
# BEGIN STUB
# def score(embeddings, log_length, variance):
#     ...  # your code
# END STUB
check_score(score)

# %% [markdown]
# ## Prompts of all sizes
#
# Four kinds, from one word to over a thousand tokens. Those of the calibration split **choose** (the order of the attentions,
# thresholds, prices), others **judge**.

# %%
from course_utils.models import describe, load_model, variant
from course_utils.support import safe_dtype

base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
blocks = describe(base).num_blocks
CACHE = describe(base).cache_keyword  # what the forward calls its cache
choosing = cases(tokenizer, "calibration", count=150, seed=session.seed)
record = Record.shipped_for(base, seed=session.seed)  # None for another model
count = 240 if record is None else len(record.kinds) - record.choosing
judging = cases(tokenizer, "evaluation", count=count, seed=session.seed)


def encoded(text):
    """One prompt as a batch of one row, on the model's device."""
    given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    return dict(given.to(base.device))


def plain(text):
    """The end of a prompt without the chat template's marks."""
    text = re.sub(r"<\|.*?\|>(system|user|assistant)?", " ", text)
    return " ".join(text.split())[-60:]


rows = {}
for kind in ("arithmetic", "question", "passage", "retrieval"):
    mine = [case for case in judging if case.kind == kind]
    sizes = [encoded(case.text)["input_ids"].shape[1] for case in mine]
    example = plain(min(mine, key=lambda case: len(case.text)).text)
    rows[kind] = {"prompts": len(mine), "tokens": f"{min(sizes)} to {max(sizes)}"}
    rows[kind]["the shortest ends with"] = example
pd.DataFrame(rows).T

# %% [markdown]
# `calibrate` finds the order of the attentions as in lesson 05, again after each; the low and high ends (5th and 95th percentile of
# these prompts); and thresholds, so that each level gets a third of them. The settings are a file that a person can read.

# %%
from course_utils.pruning import AdaptiveConfig, calibrate

NUMBERS = sorted({max(1, round(blocks * n / 30)) for n in (1, 3, 5, 8)})
middle = NUMBERS[(len(NUMBERS) - 1) // 2]
LEVELS = (NUMBERS[-1], middle, 0)  # simple prompts, the middle, complex ones
texts = sorted((case.text for case in choosing[:12]), key=len)  # little padding
config = calibrate(base, tokenizer, texts, left_out=LEVELS)
with tempfile.TemporaryDirectory() as folder:
    path = config.save(Path(folder) / "adaptive_config.json")
    assert AdaptiveConfig.load(path) == config
    print("adaptive_config.json, less the model's identity:")
for name, value in config.to_dict().items():
    if name != "model":
        print(f"  {name}: {value}")

# %% [markdown]
# ## Where the decision must live
#
# A tiny Llama shall leave 2 attentions out for prompts below 6 tokens and none for others. It gets a prompt of 10 tokens and writes 6.
#
# **Predict before you run.** A hook decides whenever the model is called. What does it decide, pass by pass?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 0, then 2 each time: while it decodes, every pass sees one token, the shortest prompt there is. The answer goes on without layers
# that its prompt was read with, and nobody raises an error.
#
# </details>

# %%
from course_utils.models import tiny_llama
from course_utils.pruning import bypass_attention


def decide(ids):
    """How many attentions an answer leaves out, from its prompt."""
    return 2 if ids.shape[1] < 6 else 0


tiny, noted = tiny_llama(), []
hasty = variant(tiny)


def hurry(backbone, inputs, named):
    """*A common mistake*: a hook that decides at every forward pass."""
    noted.append(decide(named["input_ids"]))
    bypass_attention(hasty, [3, 1][: noted[-1]])


hasty.model.register_forward_pre_hook(hurry, with_kwargs=True)
answer = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
prompt = torch.arange(1, 11)[None]
settings = answer | {"output_logits": True}
theirs, whole = (each.generate(prompt, **settings).logits for each in (hasty, tiny))
print("left out, pass by pass:", noted)
apart = [(a - b).abs().max() for a, b in zip(theirs, whole, strict=True)]
print(f"logits apart from the whole model's: {apart[0]:.1g}, then {apart[1]:.1g}")
claim(
    "From the second pass on the hook decides for one token.",
    [*noted[1:], apart[1]],
)

# %% [markdown]
# ### Exercise 2 · ●●○ · 12 minutes
#
# Write `adaptive(model, order, decide)`. It returns a variant that calls `decide(ids)` once an answer, at the pass that finds no
# tokens in the cache, and leaves out that many of `order`, the first ones. Later passes go by what was decided, also when another
# answer has begun in between.
#
# The cache is `named.get(CACHE)` before a pass, and `output.get(CACHE)` after it; either may be None. It is the same object all through
# an answer, and you may set an attribute on it.
#
# <details><summary>Hint</summary>
#
# Two hooks on `model.model`: `register_forward_pre_hook(before, with_kwargs=True)` and `register_forward_hook(after)`, which gets
# `(backbone, inputs, output)`. `cache.get_seq_length()` counts the tokens in it.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_adaptive


# BEGIN SOLUTION
def adaptive(model, order, decide):
    model = variant(model)

    def before(backbone, inputs, named):
        cache = named.get(CACHE)
        fresh = cache is None or cache.get_seq_length() == 0
        model.now = decide(named["input_ids"]) if fresh else cache.left_out
        bypass_attention(model, order[: model.now])

    def after(backbone, inputs, output):
        cache = output.get(CACHE)
        if cache is not None:
            cache.left_out = model.now

    model.model.register_forward_pre_hook(before, with_kwargs=True)
    model.model.register_forward_hook(after)
    return model


# END SOLUTION
# BEGIN STUB
# def adaptive(model, order, decide):
#     ...  # your code
# END STUB
check_adaptive(adaptive, base)

# %% [markdown]
# ## One decision an answer
#
# `make_adaptive` does it for every family, and row by row in a batch (an attention is computed as long as one row keeps it).

# %%
from course_utils.pruning import make_adaptive

model = make_adaptive(variant(base), config)
by_size = sorted((case.text for case in judging if case.kind == "passage"), key=len)
pad = {"pad_token_id": tokenizer.eos_token_id}
short, long = (by_size[len(by_size) * share // 20] for share in (2, 17))
for name, text in (("a short passage", short), ("a long one", long)):
    one = encoded(text)
    with torch.no_grad():
        left_out = model(**one)[CACHE].left_out.item()
        static = variant(base)
        bypass_attention(static, config.order[:left_out])
        assert torch.equal(model(**one).logits, static(**one).logits)
    after = model.generate(**one, **answer, **pad)[CACHE].left_out.item()
    size = one["input_ids"].shape[1]
    print(f"{name}, {size} tokens: {left_out} out", end=", ")
    print(f"after six more tokens still {after}; equal to its static bypass")
del model, static

# %% [markdown]
# ## What it does to an answer
#
# The whole model writes its own greedy answer, at most 64 tokens. Then it and the bypassed model predict that answer token by token:
#
# $$\mathrm{harm} = \mathrm{mean}_t \, \mathrm{KL}(p_t^{\mathrm{whole}} \,\|\, p_t^{\mathrm{bypassed}})$$
#
# It is the distance from the whole model, not from the truth. A record has the harm of 1, 3, 5 and 8 layers left out for all prompts;
# six are measured again. (Its order was found on 48 prompts, so near ties may stand otherwise than above. Greedy answers can part
# at a rounding, and then single harms differ.)

# %%
if record is None:
    sizes = {"choosing": 60, "judging": count}
    record = measure_record(base, tokenizer, config, NUMBERS, **sizes)
else:
    config = replace(config, order=tuple(record.settings["order"]))
    digests = [case.digest for case in judging]
    assert record.digests[record.choosing :].tolist() == digests
    drawn = np.random.default_rng(session.seed)
    some = drawn.choice(len(judging), 6, replace=False)
    sets = [config.order[:number] for number in NUMBERS]
    again = measure(base, tokenizer, [judging[i].text for i in some], sets).harm
    recorded = record.harm[record.choosing + some][:, 1:]
    print(f"harm of 6 prompts: {again.mean():.3f} here", end="")
    print(f", {recorded.mean():.3f} in the record")
choose, judge = record.split()
numbers, curve = np.array(record.numbers), choose.harm.mean(0)
saved = cache_saved(judge, blocks)
print(f"{len(choose.tokens)} prompts choose, {len(judge.tokens)} judge", end="; ")
print("mean harm by number left out:")
means = {"choose": curve, "judge": judge.harm.mean(0)}
pd.DataFrame(means, index=numbers).T.round(3)

# %% [markdown]
# ### Exercise 3 · ●○○ · 4 minutes
#
# What a bypass saves is cache. A server holds that of many prompts side by side, so count them together. Write `saved_share(tokens,
# left_out, blocks)`: the share of all prompts' cache that is saved. Both lists have one number a prompt; a model keeps the same bytes
# for each token in each of its `blocks` layers.
#
# <details><summary>Hint</summary>
#
# Count pairs of a token and a layer: how many there are, and how many are left out.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_saved_share


# BEGIN SOLUTION
def saved_share(tokens, left_out, blocks):
    gone = sum(n * layers for n, layers in zip(tokens, left_out, strict=True))
    return gone / (blocks * sum(tokens))


# END SOLUTION
# BEGIN STUB
# def saved_share(tokens, left_out, blocks):
#     ...  # your code
# END STUB
check_saved_share(saved_share)

# %% [markdown]
# ## The score, tested
#
# The score assumes that simple prompts suffer less. `cache_saved` counts as you did, the answer's tokens included.
#
# **Predict before you run.** The same eight layers are left out for all. Which third by complexity is harmed most? And which third
# saves most cache?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The middle one, 0.429 nats; the complex third least, 0.365. And it saves 16.0 % of the cache, the simple third 5.0 %.
#
# </details>

# %%
edges = np.quantile(record.complexity[: record.choosing], [1 / 3, 2 / 3])
third = np.searchsorted(edges, record.complexity[record.choosing :], side="right")
names = ["simple", "middle", "complex"]
figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
look = mark("complexity") | {"linestyle": "none"}
found, bought = [], []
for place, name in enumerate(names):
    mine = judge.harm[third == place, -1]
    mean, _, low, high = ratio_interval(mine, np.ones(len(mine)))
    found.append((mean, low, high))
    bought.append(100 * saved[third == place, -1].sum())
    ends = [[mean - low], [high - mean]]
    panels[0].errorbar(place, mean, yerr=ends, capsize=6, **look)
    panels[1].plot(place, bought[-1], **look)
    print(f"{name}: harm {mean:.3f} ({low:.3f} to {high:.3f})", end="")
    print(f", {bought[-1]:.1f} % of the cache")
titles = ("harm, nats a token", "cache saved, %")
for panel, title in zip(panels, titles, strict=True):
    panel.set(title=title, xlim=(-0.5, 2.5), ylim=(0, None))
    panel.set_xticks(range(3), names)
figure.supxlabel(f"third by complexity, with {numbers[-1]} layers left out")
show(
    "Two panels over the thirds by complexity, simple, middle and complex: the "
    "harm is about the same in all three; the cache saved is small for simple "
    "prompts and several times as large for complex ones."
)
spared, saving = found[0][0] / found[2][0] - 0.8, 0.5 - bought[0] / bought[2]
here("The simple third is harmed at least 4/5 as much as the complex.", [spared])
here("The simple third saves less than half of the complex.", [saving])

# %% [markdown]
# Complexity doesn't tell who suffers: harm differs little, and what it buys by about three times. The score spends it where it buys least.
#
# ## A price for the cache
#
# Turn it round. What leaving $k$ layers out saves is known before the answer: $n$ tokens of the prompt and about $a$ of the answer, in each
# layer. The harm isn't known, so take the mean $h_k$ of the choosing prompts for every prompt alike. Put a **price** $\lambda$ on a token's
# cache in one layer, and take, of the numbers measured,
#
# $$\arg\min_k \; h_k - \lambda \, (n + a) \, k$$
#
# `by_price` raises $\lambda$ until the choosing prompts save a given share of their cache, here a tenth.
#
# **Predict before you run.** Three prompts, of 50, 400 and 700 tokens. How many layers does each leave out?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None, 5 and 8. A short prompt's cache is worth less than the harm of a single layer.
#
# </details>

# %%
expected = choose.answer_tokens.mean()  # of an answer; its own isn't known yet


def cheapest(tokens, price):
    """How many layers each prompt leaves out, by the rule with a price."""
    worth = price * (np.asarray(tokens)[:, None] + expected) * numbers
    return numbers[(curve - worth).argmin(1)]


choice, price = by_price(record, blocks, 0.1)
assert (numbers[choice] == cheapest(judge.tokens, price)).all()
some = cheapest([50, 400, 700], price)
print(f"answers of {expected:.0f} tokens are expected", end="; ")
print(f"price {price:.2g} nats; left out at 50, 400, 700 tokens: {some}")
longer = [0.5 - some[0], some[1], some[2] - some[1] + 0.5]
claim("The rule leaves none out of a short prompt, some of a longer one.", longer)

# %%
_, ax = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
ax.plot(numbers, curve, **mark("one for all") | {"label": "harm expected"})
for tokens, dashes in ((50, ":"), (400, "--"), (700, "-")):
    worth = price * (tokens + expected) * numbers
    look = {"color": mark("price")["color"], "linestyle": dashes}
    ax.plot(numbers, worth, label=f"worth, {tokens} tokens", **look)
    most = (worth - curve).argmax()
    ends = (numbers[most], curve[most]), (numbers[most], worth[most])
    look = {"arrowstyle": "<->", "color": mark("whole")["color"]}
    ax.annotate("", *ends, arrowprops=look)
ax.set(ylim=(0, None), xlabel="layers left out", ylabel="nats a token")
ax.set_title("What it harms, and what it is worth")
ax.legend(loc="upper left")
show(
    "Expected harm rises with the layers left out, steeply at the end. Three "
    "straight lines tell what the saved cache is worth for prompts of 50, 400 and "
    "700 tokens: the flat one stays below the curve, the two others rise above "
    "it, and arrows mark where they are farthest above."
)

# %% [markdown]
# *The rule stops where a prompt's line is farthest above the curve.*

# %% [markdown]
# ### Exercise 4 · ●●○ · 10 minutes
#
# The rule asks only for the prompt's length, so a few thresholds say it all. Write `lengths_where_it_changes(curve, numbers, price,
# answer_tokens)`; `curve` and `numbers` are lists that begin with 0. It returns two: the numbers that some length chooses, 0 first, and the
# prompt lengths at which each next one begins.
#
# From a number $i$ the next is the $j$ with the least slope $(h_j - h_i) / (j - i)$. It begins where the price of a layer's cache,
# $\lambda (n + a)$, reaches that slope.
#
# <details><summary>Hint</summary>
#
# Start with `levels = [0]`; while there are larger numbers, find the one of least slope from the last level. Not every number pays:
# it may be skipped.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_length_rule


# BEGIN SOLUTION
def lengths_where_it_changes(curve, numbers, price, answer_tokens):
    harm = dict(zip(numbers, curve, strict=True))
    levels, thresholds = [0], []
    while levels[-1] != max(numbers):
        last = levels[-1]
        more = [k for k in numbers if k > last]
        slopes = {k: (harm[k] - harm[last]) / (k - last) for k in more}
        levels.append(min(slopes, key=slopes.get))
        thresholds.append(slopes[levels[-1]] / price - answer_tokens)
    return levels, thresholds


# END SOLUTION
# BEGIN STUB
# def lengths_where_it_changes(curve, numbers, price, answer_tokens):
#     ...  # levels, thresholds
# END STUB
check_length_rule(lengths_where_it_changes)

# %% [markdown]
# ## At equal cost
#
# The course's `length_rule` gives the same two lists. (They are the corners of the curve's **lower hull**: a string drawn tight below it.)
# Each rule below is compared with one number for all *at the same saving*; where no number fits, a coin mixes two. For the intervals we
# draw the documents that the prompts come from anew, with replacement.
#
# **Predict before you run.** Somebody who knows every prompt's harm applies the rule with a price. How much better is that?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Hardly: × 0.21 of one number's harm instead of × 0.23. Complexity is at × 2.33, and the published score fares no better.
#
# </details>

# %%
from course_utils.lessons.policies import length_rule

levels, thresholds = length_rule(curve, numbers, price, expected)
print("levels", levels, "from", [round(t) for t in thresholds], "tokens on")
rules = {"complexity": by_level(record, LEVELS)}
if len(record.published):
    rules["published"] = published(record)
rules["price"] = choice
its_price = price_for(judge.harm, saved, outcome(judge.harm, saved, choice)[0])
rules["price, harms known"] = cheapest_guess(judge.harm, saved, its_price)
table, ratios = {}, {}
for name, columns in rules.items():
    share, harm = outcome(judge.harm, saved, columns)
    alike = float(static_harm(judge.harm, saved, share))
    gap, low, high = gap_to_static(judge.harm, saved, columns, judge.documents)
    ratios[name] = harm / alike
    table[name] = {
        "cache saved, %": f"{100 * share:.1f}",
        "harm": f"{harm:.3f}",
        "one for all": f"{alike:.3f}",
        "difference": f"{gap:+.3f} ({low:+.3f} to {high:+.3f})",
    }
told = ", ".join(f"{name} × {ratio:.2f}" for name, ratio in ratios.items())
print("of one number's harm:", told)
here("Complexity: over twice one number's harm.", [ratios["complexity"] - 2])
here("The price: less than half of it.", [0.5 - ratios["price"]])
gained, missed = 1 - ratios["price"], ratios["price"] - ratios["price, harms known"]
claim("To know every harm gains less than a tenth more.", [gained / 10 - missed])
pd.DataFrame(table).T

# %% [markdown]
# Knowing the harms would gain little here, so a signal that guesses them isn't worth building.
#
# ## Who pays
#
# **Predict before you run.** What share of the prompts leaves anything out? And does the rule still win if an answer counts by its
# prompt's tokens?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 8.4 %, and they bear all of the harm: 0.155 nats where 5 layers go, 0.389 where 8 do. Counted by tokens the rule loses: 0.157 beside
# 0.097.
#
# </details>

# %%
place = np.arange(len(judge.tokens))
own, gone = judge.harm[place, choice], saved[place, choice]
rows = {}
for level in np.unique(numbers[choice]):
    mine = numbers[choice] == level
    rows[f"{level} left out"] = {
        "prompts": mine.sum(),
        "tokens, median": f"{np.median(judge.tokens[mine]):.0f}",
        "harm, mean": f"{own[mine].mean():.3f}",
        "cache saved, %": f"{100 * gone[mine].sum():.1f}",
    }
paying = (choice > 0).mean()
print(f"prompts that leave something out: {paying:.1%}")
weight = judge.tokens / judge.tokens.sum()
alike = np.interp(gone.sum(), saved.sum(0), weight @ judge.harm)
print(f"harm if prompts count by their tokens: price {weight @ own:.3f}", end="")
print(f", one number for all {alike:.3f}")
here("Less than a fifth of the prompts pays everything.", [0.2 - paying])
here("Counted by tokens, the rule loses.", [weight @ own / alike - 1])
pd.DataFrame(rows).T

# %% [markdown]
# Counted by tokens, both sides of the rule grow with $n$, and a long prompt is no bargain any more.
# So the price is right where each *answer* counts the same.
#
# Do those who pay still get what they asked for? Retrieval prompts hide a code. We write "The code of the … is" behind some of the
# longest: is each digit still the first choice?

# %%
HIDDEN = re.compile(r"The code of the (.+?) is (\d+)\.")
asked = [case.text for case in judging if case.kind == "retrieval"]
asked = sorted(asked, key=len)[-48::6]


@torch.no_grad()
def finds(model, text):
    """Whether the model would write the hidden code, digit by digit."""
    thing, code = HIDDEN.search(text).groups()
    begun = f"{text}The code of the {thing} is "
    ids = encoded(begun + code)["input_ids"]
    size = ids.shape[1] - encoded(begun)["input_ids"].shape[1]
    logits = model(ids, logits_to_keep=size + 1).logits
    return torch.equal(logits[0, :-1].argmax(-1), ids[0, -size:])


right = {}
for number in (0, *levels[1:]):
    model = variant(base)
    bypass_attention(model, config.order[:number])
    right[number] = sum(finds(model, text) for text in asked)
print(f"codes found, of {len(asked)}, by layers left out: {right}")
lost = [1.5 - (right[0] - found) for found in right.values()]
claim("With layers left out the codes are found but for one at most.", lost)
del model

# %% [markdown]
# Nearly all do: a distance from the whole model isn't yet a wrong answer.
#
# ## Install the rule
#
# `AdaptiveConfig` knows a second policy: "length", whose score is the prompt's tokens.

# %%
from course_utils.pruning import complexity, load_pruned, save_pruned

rule = {"policy": "length", "parameters": {}, "left_out": levels}
by_length = replace(config, **rule, thresholds=thresholds)
scores = complexity(base, [encoded(case.text) for case in judging], by_length)
decided = [by_length.left_out[by_length.level(score)] for score in scores]
assert decided == cheapest(judge.tokens, price).tolist()
print(f"{len(decided):,} prompts decide as the rule with a price does")
model = make_adaptive(variant(base), by_length)
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    save_pruned(model, tokenizer, folder)
    again = load_pruned(folder)[0].to(base.device)
for text in (short, by_size[-1]):
    with torch.no_grad():
        mine, theirs = (each(**encoded(text)) for each in (model, again))
    assert torch.equal(mine.logits, theirs.logits)
    print(f"reloaded: {theirs[CACHE].left_out.item()} left out", end=", ")
    print("equal to the model that was saved, bit for bit")
del model, again

# %% [markdown]
# ## Your server
#
# The answers here are short. Yours may not be: suppose that every answer has `answer` tokens, and that the harm a token stays as
# measured. The price is set as above, for a tenth of the choosing prompts' cache.

# %% [markdown]
# ### Exercise 5 · ●●● · 12 minutes
#
# Write `advantage(answer)`: how much less harm the rule with a price does on the judging prompts than one number for all at the same
# saving, in nats a token. Predict how it changes as answers grow. Then give `enough`: the first of 100, 200, 300, … tokens at which it
# is less than a third of what it is at `expected`.
#
# <details><summary>Hint</summary>
#
# `replace(record, answer_tokens=…)` gives a record with other answers, one number a prompt. `by_price`, `cache_saved`, `outcome` and
# `static_harm` do the rest.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_enough


# BEGIN SOLUTION
def advantage(answer):
    other = replace(record, answer_tokens=np.full(len(record.tokens), answer))
    _, those = other.split()
    cells = cache_saved(those, blocks)
    gone, own = outcome(those.harm, cells, by_price(other, blocks, 0.1)[0])
    return float(static_harm(those.harm, cells, gone)) - own


enough = 100
while advantage(enough) >= advantage(expected) / 3:
    enough += 100
# END SOLUTION
# BEGIN STUB
# def advantage(answer):
#     ...  # nats a token
#
#
# enough = ...  # a multiple of 100
# END STUB
check_enough(advantage, enough, record, blocks)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# A model decides anew at every forward pass how many attention layers it leaves out. What goes wrong?
#
# - [ ] Nothing as long as one answer runs at a time and the score is good.
#   > While decoding, a pass sees one token: every answer looks like the shortest prompt.
# - [ ] Batches mix the decisions of their rows, and single answers stay right.
#   > Single answers are affected too: the prompt is read with one set of layers, and continued with another.
# - [x] Each decoded token is decided on by itself, whatever its prompt decided.
#   > The decision belongs to the answer. Its cache carries it.

# %% [markdown] tags=["quiz"]
# Two policies leave out four attention layers on average. Which of them saves more cache?
#
# - [x] It depends on whether long or short prompts leave out more of them.
#   > Cache is paid for by the token, so an average over prompts doesn't tell it.
# - [ ] They save the same, since on average the same number of layers goes.
#   > That average gives a prompt of one word the weight of one of a thousand.
# - [ ] The one that bypasses short prompts, since there are more of those.
#   > There may be more of them, but they have little cache to save.

# %% [markdown]
# ## Take-aways
#
# - A decision about an answer belongs to the answer: kept in its cache, it survives other answers in between.
# - Compare policies at equal cost. The same average number isn't the same cost.
# - Simple and complex prompts are harmed nearly alike; what that buys differs by about three times. Decide by what is known
#   beforehand.
# - A rule with a price comes down to prompt lengths. Ask who pays it: here a few long prompts, all of it.
#
# **The story so far:** whoever chooses decides who pays. **Next:** what was cut can be given back in part. Lesson 07 asks what gives
# back most.
#
# ## References
#
# - Martra, *Large Language Model Notebooks Course*, notebook 6_6b (the idea of an adaptive bypass; the published score)
# - He et al. 2024, *Router-Tuning: A Simple and Effective Approach for Enabling Dynamic-Depth in Transformers*, arXiv 2410.13184
# - Raposo et al. 2024, *Mixture-of-Depths: Dynamically allocating compute in transformer-based language models*, arXiv 2404.02258
# - Clark et al. 2018, *Think you have Solved Question Answering? Try ARC*, arXiv 1803.05457
