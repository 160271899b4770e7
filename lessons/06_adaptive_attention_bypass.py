# ---
# jupyter:
#   course:
#     title: "Adaptive attention bypass: which prompts should do without?"
#     minutes: 90 to 120 minutes
#     prerequisites: lesson 05 (attention bypass, cache, importance)
#     assets: [smollm2, benchmarks, texts, speeches]
#     concepts: [complexity score, levels, decision in the cache, harm of an answer, bill, equal cost, price, who pays]
# ---

# %% [markdown]
# ## The question
#
# Every prompt may do without some attention layers, and not every prompt without the same number. Which prompts should do without
# most?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** It depends on the **bill**. On average a bypass harms short and long prompts about alike. What differs is what it
# *saves*. If you pay for cache, a long prompt saves many times more than a short one, so only the long ones should do without. If
# you pay for the time of each written token, one attention less saves every prompt the same. Then nobody should be singled out,
# as long as nobody can tell their harms beforehand. The choice that wins on one bill loses on the other, to a number that asks
# nobody who they are. So name the cost first, and then ask who should do without.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** a score that sounds plausible is a hypothesis. Its tests are a deal at random, and the harm at *equal cost*. And
# which cost is meant decides who wins.
#
# **Let the room vote:** which prompts should lose more attention layers, simple ones or complex ones? Then ask the winners why.
#
# **Usual questions:** "Is the same average the same cost?" No: the cache that a bypass saves grows with the tokens. "So long
# prompts are robust?" No, they are harmed about as much. They only save more. "Didn't lesson 05 say that harm grows with the text
# before?" It does here, too, by a little. Most of the rise was for tokens with hardly any text before them. A token of an answer
# always has the answer so far.
#
# **Wrong turns:** deciding anew at each pass; keeping the decision in the model instead of the answer's cache; comparing policies
# that save different amounts; taking one bill for *the* cost.
#
# **At the end you have** a bypass that each prompt decides on, a rule for it that takes any bill, and the list of those who pay.

# %% tags=["install"]

# %% [markdown]
# ## The bet
#
# Lesson 05's bypass was *static*: the same attentions are out for every prompt. In Martra's **adaptive** bypass each prompt
# decides how many. The idea is plausible: a simple prompt needs less of the model than a complex one. So simple prompts leave out
# eight of thirty attentions, middle ones three, and complex ones none.
#
# We have a thousand prompts, from one word to over a thousand tokens: passages to be continued, science questions (from ARC),
# sums, and passages that hide a number which is asked for. For each of them it was measured how far the answer moves away from
# the whole model's when 1, 3, 5 or 8 attentions are left out. We call that its **harm**. And a bypass saves something. There are
# two **bills** that a server may pay:
#
# - **cache:** the keys and values of all tokens, of the prompt and of the answer, in each attention that is kept;
# - **time per token:** how many attentions run for each token that is written. (We suppose that each takes the same time. Behind
#   a long text it takes somewhat more.)
#
# **Predict before you run.** We deal the eight, three and none in three ways: simple prompts lose most; complex prompts lose
# most; at random. A fourth way is simpler: the longest tenth of the prompts loses eight, all others nothing. Which of the four
# does the least harm for the *cache* that it saves? And for the *time*? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# See the figure below. On the cache bill "only long ones" lie far below the line, and complex prompts should lose most. The
# plausible score lies farther above the line than every deal at random. On the time bill all four lie above the line.
#
# </details>

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils.lessons import claim, here
from course_utils.lessons.policies import by_level, static_harm
from course_utils.lessons.prompt_harm import Record, cases, measure_record
from course_utils.models import describe, load_model, variant
from course_utils.pruning import bypass_attention, calibrate
from course_utils.support import mark, safe_dtype, show, start, style

session = start("06")
style()
base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
blocks = describe(base).num_blocks
CACHE = describe(base).cache_keyword  # what the forward calls its cache
seed = session.seed
record = Record.shipped_for(base, seed=seed)
if record is None:  # another model: a small record is measured now
    texts = [case.text for case in cases(tokenizer, "calibration", count=12)]
    NUMBERS = sorted({max(1, round(blocks * share / 30)) for share in (1, 3, 5, 8)})
    config = calibrate(base, tokenizer, texts, left_out=(NUMBERS[-1], 0))
    sizes = {"choosing": 60, "judging": 240}
    record = measure_record(base, tokenizer, config, NUMBERS, **sizes)
order = list(record.settings["order"])  # of the attentions, least important first
choose, judge = record.split()
numbers = np.array(record.numbers)  # 0, 1, 3, 5 and 8
print(f"{len(choose.tokens)} prompts choose, {len(judge.tokens)} judge", end="; ")
print(f"they have {judge.tokens.min()} to {judge.tokens.max()} tokens")

# %%
cache_units = judge.tokens + judge.answer_tokens
time_units = np.ones(len(judge.tokens))


def bill(units):
    """What each prompt saves with each number, as a share of the whole bill."""
    return units[:, None] * numbers / (blocks * units.sum())


bills = {"cache": bill(cache_units), "time per token": bill(time_units)}
levels = (numbers[-1], numbers[(len(numbers) - 1) // 2], 0)  # 8, 3, 0
dealt = {"simple lose most": by_level(record, levels)}
dealt["complex lose most"] = by_level(record, levels[::-1])
long = judge.tokens >= np.quantile(choose.tokens, 0.9)
dealt["only long ones"] = np.where(long, len(numbers) - 1, 0)  # columns
rng = np.random.default_rng(seed)
some = np.searchsorted(numbers, levels)
at_random = [rng.choice(some, len(judge.tokens)) for _ in range(19)]
rows = np.arange(len(judge.tokens))


def outcome(saves, columns):
    """What is saved in all, in percent, and the mean harm."""
    return 100 * saves[rows, columns].sum(), judge.harm[rows, columns].mean()


# %%
_, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", sharey=True)
looks = ("complexity", "attentions", "price")
for panel, (name, saves) in zip(panels, bills.items(), strict=True):
    look = mark("one for all") | {"label": "one number for all, or a coin"}
    path = np.linspace(0, saves.sum(0)[-1], 50)
    coins = static_harm(judge.harm, saves, path)
    panel.plot(100 * path, coins, **look | {"marker": ""})
    look |= {"linestyle": "none", "label": "", "markersize": 11}
    panel.plot(100 * saves.sum(0), judge.harm.mean(0), **look)
    dots = np.array([outcome(saves, columns) for columns in at_random])
    look = mark("random") | {"label": "8, 3 or 0 at random", "linestyle": "none"}
    panel.plot(*dots.T, **look)
    for look, (arm, columns) in zip(looks, dealt.items(), strict=True):
        look = mark(look) | {"linestyle": "none", "markersize": 13, "label": arm}
        panel.plot(*outcome(saves, columns), **look)
    panel.set(title=f"bill: {name}", xlabel="saved (%)")
panels[0].set_ylabel("harm (nats per token)")
panels[0].legend()
show(
    "Harm against what is saved, on two bills. On the cache bill the deals lie far "
    "apart: simple prompts losing most lies above the random deals, complex "
    "prompts losing most and only long ones below the line of one number for all. "
    "On the time bill all lie above it."
)

# %% [markdown]
# *Each mark is a deal, judged on all prompts. A deal is good if it lies below the line, which leaves the same number out
# everywhere. (On the line between two dots a coin gives some prompts the one number and the rest the other. Three lies above the
# line, so a coin of one and five is better than three for all.) Both panels show the same choices with the same harm: only the
# bill differs.*
#
# The left panel has a clear winner, "only long ones": hardly any harm. And the plausible score is worse than dealing at random.
# In the right panel the winner lies above the line. None of our deals lies below the line. But nobody's answer has changed! Why
# does the bill decide? First we need the tools: a score, a decision that lasts, and a harm.

# %% [markdown]
# ## A score for a prompt
#
# Two things are known before anything runs: how long the prompt is, $n$ tokens, and how much their embeddings $e_{tc}$ vary over
# the tokens $t$ (for each component $c$). Each is scaled so that 0 and 1 are the low and the high end of other prompts, and cut
# off there, $[\cdot]$:
#
# $$\mathrm{complexity} = \tfrac{1}{2} [\log n] + \tfrac{1}{2} [\mathrm{mean}_c \, \mathrm{var}_t \, e_{tc}]$$
#
# The **levels** are thirds: of the prompts that choose, each level gets the same number.

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# Write `score(embeddings, log_length, variance)` for one prompt: `embeddings` is [tokens, hidden], the others are pairs (low,
# high). Return the mean of the two scaled values, each cut off at 0 and 1. (The variance divides by $n$: one token has 0.)
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
# ## Where the decision must live
#
# A model reads the prompt at once (*prefill*), and then writes the answer token by token (*decoding*). The decision should be
# made once, in the prefill, and stay.
#
# A tiny Llama shall leave 2 attentions out for prompts below 6 tokens and none for others. It gets a prompt of 10 tokens and
# writes 6. A **pre-hook** on the Llama's inner model, `model.model`, decides: it runs before each call. With `with_kwargs=True`
# it gets the named arguments as well, and the tokens are `named["input_ids"]`.
#
# `variant(model)` makes a model of its own with the same weights, and `bypass_attention(model, [3, 1])` leaves attentions 3 and 1
# out, and no others.
#
# **Predict before you run.** The hook decides whenever the model is called. What does it decide, pass by pass? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 0, then 2 each time: while it decodes, every pass sees one token, the shortest prompt there is. The answer goes on without
# layers that its prompt was read with, and nobody raises an error.
#
# </details>

# %%
from course_utils.models import tiny_llama


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
settings = {"max_new_tokens": 6, "do_sample": False, "output_logits": True}
settings["return_dict_in_generate"] = True
prompt = torch.arange(1, 11)[None]
theirs, whole = (each.generate(prompt, **settings).logits for each in (hasty, tiny))
print("left out, pass by pass:", noted)
apart = [(a - b).abs().max() for a, b in zip(theirs, whole, strict=True)]
print(f"logits apart from the whole model's: {apart[0]:.1g}, then {apart[1]:.1g}")
claim(
    "From the second pass on the hook decides for one token.",
    [*noted[1:], apart[1]],
)

# %% [markdown]
# The length of what comes in doesn't tell whether an answer begins. The **cache** does: it is empty at the first pass, and it is
# the same object all through an answer, even when other answers run in between. So the decision belongs there.
#
# What you need for that:
#
# - Before a pass, the cache is `named.get(CACHE)`. It may be None: then somebody reads without a cache, and each pass is a first
#   one.
# - `cache.get_seq_length()` says how many tokens are in it. (`bypass_attention` counts them in attention 0's drawer, too: lesson
#   05.)
# - You may set an attribute on a cache, such as `cache.left_out = 3`.
# - At a first pass `generate` hands over an empty cache, but a plain `model(ids)` makes its own. Find that one after the pass:
#   `model.model.register_forward_hook(after)` calls `after(backbone, inputs, output)`, and `output.get(CACHE)` is the cache, or
#   None.

# %% [markdown]
# ### Exercise 2 · ●●○ · 15 minutes
#
# Write `adaptive(model, order, decide)`. It returns a variant that calls `decide(ids)` once per answer, at its first pass, and
# leaves out that many of `order`, the first ones. Later passes go by what was decided, also when another answer has begun in
# between.
#
# <details><summary>Hint</summary>
#
# Two hooks: one before a pass, which decides or reads the decision and calls `bypass_attention`; one after it, which writes the
# decision into the cache. Between the two the number may stand anywhere, such as on the model.
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
# ## On a real prompt
#
# Score and decision together make Martra's bypass. The ends of both scales are the 5th and 95th percentile of the prompts that
# choose, and each level gets a third of them. (In the library `calibrate` and `make_adaptive` do so, for every family. In a batch
# an attention still runs as long as one row keeps it.)

# %%
score, adaptive = check_score.accepted, check_adaptive.accepted  # yours, if correct
embed = base.get_input_embeddings()


def encoded(text):
    """One prompt as a batch of one row, on the model's device."""
    given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    return given.input_ids.to(base.device)


calibration = cases(tokenizer, "calibration", count=len(choose.tokens), seed=seed)
read = [embed(encoded(case.text))[0].detach().float() for case in calibration]
sizes = [len(prompt) for prompt in read]
spreads = [prompt.var(0, unbiased=False).mean().item() for prompt in read]
scales = {"log_length": np.log(sizes), "variance": spreads}
scales = {name: tuple(np.quantile(x, [0.05, 0.95])) for name, x in scales.items()}
scores = np.array([score(prompt, **scales) for prompt in read])
edges = np.quantile(scores, [1 / 3, 2 / 3])


def by_complexity(ids):
    complexity = score(embed(ids)[0].detach().float(), **scales)
    return int(levels[np.searchsorted(edges, complexity, side="right")])


mine = adaptive(base, order, by_complexity)
for text in ("Once upon a time", " ".join(case.text for case in calibration[:3])):
    ids = encoded(text)
    with torch.no_grad():
        cache = mine(ids)[CACHE]
    print(f"{ids.shape[1]} tokens: {cache.left_out} attentions left out")
text = "Once upon a time"
for name, model in (("whole", base), ("left out", mine)):
    more = {"max_new_tokens": 16, "do_sample": False}
    out = model.generate(encoded(text), pad_token_id=tokenizer.eos_token_id, **more)
    print(f"  {name:<8} {' '.join(tokenizer.decode(out[0]).split())}")
longest = np.argsort(sizes)[-len(sizes) // 3 :]
spared = (scores[longest] >= edges[1]).mean()
print(f"of the longest third {spared:.0%} keep all")
here("Most of the longest look complex.", [spared - 0.5])

# %% [markdown]
# The long ones look complex, because half of the score is the length. And you see what eight attentions less may do to an answer:
# it is another one.
#
# ## What it does to an answer
#
# Now the harm. The whole model writes its own answer. Then it and the bypassed model both predict that answer, token by token:
#
# $$\mathrm{harm} = \mathrm{mean}_t \, \mathrm{KL}(p_t^{\mathrm{whole}} \,\|\, p_t^{\mathrm{bypassed}})$$
#
# in nats per token, as in the lessons before. It is the distance from the whole model, not from the truth. (Suppose that the
# whole model gives *yes* .8 and *no* .2, and the bypassed one .5 each. The harm is .8 ln(.8/.5) + .2 ln(.2/.5), about .19.)
#
# Lesson 05 found that the same tokens are harmed more when they have a text before them. There it raised the harm by half, mostly
# within the first 128 tokens. So are long prompts harmed more? We take four long passages with their answers and cut the passages
# short *from the front*. Both models read the last 14, 112 or 448 tokens, and the answer stays the same.
#
# **Predict before you run.** Does eight attentions' harm grow with the tokens before the answer? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A little: 0.39 nats behind 14 tokens, and 0.44 behind 448. It grows as in lesson 05, but less. There many tokens began with
# nothing before them. Here even the shortest prompt gives 14 tokens, and the answer so far comes on top. (That may be why. Four
# passages don't prove it.)
#
# </details>


# %%
@torch.no_grad()
def harm(read, size, number):
    """Nats per token of the answer, the last `size` tokens of what is read."""
    says = {}
    for left_out in (0, number):
        bypass_attention(base, order[:left_out])
        logits = base(read, logits_to_keep=size + 1).logits[:, :-1]
        says[left_out] = logits.float().log_softmax(-1)
    bypass_attention(base, [])
    whole, bypassed = says[0], says[number]
    return (whole.exp() * (whole - bypassed)).sum(-1).mean().item()


judging = cases(tokenizer, "evaluation", count=len(judge.tokens), seed=seed)
assert [case.digest for case in judging] == judge.digests.tolist()
passages = [case.text for case in judging if case.kind == "passage"]
passages = sorted(passages, key=len)[-4:]
ids = [tokenizer(text, add_special_tokens=False).input_ids for text in passages]
length, size = min(448, *map(len, ids)), 24
ids = torch.tensor([row[:length] for row in ids], device=base.device)
plain = {"do_sample": False, "pad_token_id": tokenizer.eos_token_id}
answered = base.generate(ids, max_new_tokens=size, min_new_tokens=size, **plain)
before = {}
for tokens in (14, 112, length):
    before[tokens] = harm(answered[:, -tokens - size :], size, numbers[-1])
told = ", ".join(f"{cost:.2f} behind {tokens}" for tokens, cost in before.items())
print(f"harm of the same answers: {told} tokens")
least, most = before[14], before[length]
here("Text before doesn't raise an answer's harm by half.", [1.5 * least - most])

# %% [markdown]
# ## Harm by length, saving by length
#
# Now all prompts that judge, in six groups by length, with eight attentions left out.
#
# **Predict before you run.** From the shortest group to the longest: by how much does the harm differ? The cache that is saved?
# The time per token? Which of the three would you choose by?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The harm differs little: 0.40 nats for the shortest, 0.34 for the longest. (The longest often ask for one number, and a short,
# sure answer is harmed less.) The longest save over seven times as much cache. On the time bill everybody saves the same.
#
# </details>

# %%
groups = np.array_split(np.argsort(judge.tokens, kind="stable"), 6)
_, panels = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
all_out = judge.harm[:, -1]
columns = {"harm (nats per token)": [all_out[group].mean() for group in groups]}
for name, saves in bills.items():
    parts = [100 * saves[group, -1].sum() for group in groups]
    columns[f"saved {name} (% of all)"] = parts
ends = [f"{judge.tokens[group].max()}" for group in groups]
harms, *saved = columns.values()
looks = ("wrong", "price", "attentions")
for panel, look, bars in zip(panels, looks, (harms, *saved), strict=False):
    panel.bar(range(6), bars, color=mark(look)["color"])
for look, parts in zip(("price", "attentions"), saved, strict=True):
    offer = np.array(harms) / np.array(parts)
    panels[3].plot(range(6), offer, **mark(look) | {"label": ""})
for panel, name in zip(panels, [*columns, "harm per % saved"], strict=True):
    panel.set_xticks(range(6), ends)
    panel.set(title=name, xlabel="prompts up to … tokens", ylim=(0, None))
show(
    "Four panels over six groups of prompts from short to long. The harm is about "
    "the same in all groups. The cache that is saved rises steeply with the "
    "longest group far ahead. The time per token that is saved is the same for "
    "all. Harm per percent saved falls steeply for the cache, and not for time."
)
by_cache = saved[0]
print(f"harm {harms[0]:.2f} nats to {harms[-1]:.2f}", end="; ")
print(f"cache saved {by_cache[0]:.1f} % to {by_cache[-1]:.1f} %")
here("The longest are harmed no more than the shortest.", [harms[0] - harms[-1]])
here("They save over five times the cache.", [by_cache[-1] - 5 * by_cache[0]])

# %% [markdown]
# *The same bypass for everybody. The last panel divides: what one percent saved costs in harm, on the cache bill (orange) and on
# the time bill (blue).*
#
# This is the picture to remember. By length, harm is nearly flat, in this mix of prompts. One bill is steep, and the other is
# flat as well. So on the cache bill the long prompts make an offer that nobody else can match: about the same harm, and many
# times the saving. On the time bill all offers are nearly alike.
#
# And it shows what the plausible score does: long prompts look complex, so it spares them. It takes the harm where that buys
# least.
#
# ## At equal cost
#
# To be exact we compare each deal with **one number for all that saves as much**. Usually no number saves just so much. Then a
# **coin** mixes two of them: one for some prompts, the other for the rest, drawn blindly. Between two points of the line in the
# first figure, a coin's saving and harm lie on the straight line between them. There is a coin for each pair of numbers, and we
# compare with the best.

# %% [markdown]
# ### Exercise 3 · ●●○ · 12 minutes
#
# Write `at_equal_cost(harm, bill, choice)`. `harm` and `bill` are arrays [prompts, numbers], what each number does to each prompt
# and what it saves there (the first column is 0: nothing left out). `choice` has a column for each prompt. Return the policy's
# mean harm, divided by the mean harm of the best coin that saves as much as the policy in all.
#
# By hand first: none left out costs 0 and saves 0, two cost .2 and save .06, four cost .3 and save .12. What does the best coin
# cost that saves .09? (.225: it mixes none and four.)
#
# <details><summary>Hint</summary>
#
# A policy saves `bill[np.arange(len(choice)), choice].sum()`. One number for all saves `bill.sum(0)` and costs `harm.mean(0)`.
# For each pair of numbers on both sides of that saving, `np.interp(saved, [saves_low, saves_high], [cost_low, cost_high])` is a
# coin. Take the least.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_at_equal_cost


# BEGIN SOLUTION
def at_equal_cost(harm, bill, choice):
    prompts = np.arange(len(choice))
    saved, cost = bill[prompts, choice].sum(), harm[prompts, choice].mean()
    saves, costs, best = bill.sum(0), harm.mean(0), np.inf
    for low in range(len(saves)):
        for high in range(low + 1, len(saves)):
            pair = [low, high]
            if saves[low] <= saved + 1e-12 and saved <= saves[high] + 1e-12:
                best = min(best, np.interp(saved, saves[pair], costs[pair]))
    return cost / best


# END SOLUTION
# BEGIN STUB
# def at_equal_cost(harm, bill, choice):
#     ...  # your code
# END STUB
check_at_equal_cost(at_equal_cost)

# %% [markdown]
# ## Is it the length?
#
# On the cache bill, "complex lose most" beats one number for all. Complexity holds two things, the length and how much the
# embeddings vary. Which of them does it? We test that by an intervention: **shuffle** the numbers dealt, so that prompts swap
# them. First only among prompts of nearly the same length (the cleverness is gone, the length stays). Then among all (the length
# is gone, too).
#
# **Predict before you run.** The score turned round does × 0.74 of the harm of one number for all. What does that become after
# the first shuffle, and what after the second? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# After the first shuffle nothing has changed: × 0.73. After the second it is as bad as a deal at random, × 1.33. So all that the
# score knew was the length.
#
# </details>

# %%
at_equal_cost = check_at_equal_cost.accepted  # yours, if it is correct
by_length = np.array_split(np.argsort(judge.tokens, kind="stable"), 40)


def shuffled(columns, groups):
    """The same numbers, dealt anew inside each group of prompts."""
    dealt_anew = columns.copy()
    for group in groups:
        dealt_anew[group] = columns[rng.permutation(group)]
    return dealt_anew


turned = dealt["complex lose most"]
dealt["… shuffled at equal length"] = shuffled(turned, by_length)
dealt["… shuffled among all"] = shuffled(turned, [rows])
ratios = {}
for name, saves in bills.items():
    told = {arm: at_equal_cost(judge.harm, saves, dealt[arm]) for arm in dealt}
    ratios[name] = told
    blind = [at_equal_cost(judge.harm, saves, columns) for columns in at_random]
    ratios[name] |= {"at random, least": min(blind), "at random, most": max(blind)}
by_cache, by_time = ratios["cache"], ratios["time per token"]
at_length = by_cache["… shuffled at equal length"]
beaten = by_cache["simple lose most"] - by_cache["at random, most"]
here("On the cache bill the plausible score loses to every random deal.", [beaten])
here("Turned round it wins, shuffled at equal length too.", [0.9 - at_length])
here("Shuffled among all it loses.", [by_cache["… shuffled among all"] - 1])
closest = min(by_time.values()) - 0.99
here("On the time bill every deal loses to one number for all.", [closest])
pd.DataFrame(ratios).round(2)

# %% [markdown]
# *Harm, as a multiple of what one number for all does at the same saving. Below 1 is better.*
#
# So "longer saves more" is the whole story of the score, and it tells it the wrong way round. Beyond the length it knows hardly
# anything about who suffers.
#
# Why is a random deal *worse* than one number for all? Mostly because the last three of eight attentions cost more than the first
# five. A deal of 8, 3 and 0 makes a third of the prompts pay for those three.
#
# ## A price
#
# Now we build the winner, for any bill. Suppose that one attention less saves a prompt $u$ **units** on the bill that you pay.
# For the cache that is $n + a$, the tokens of the prompt and about $a$ of the answer; for the time per token it is 1. What $k$
# attentions less will harm isn't known beforehand, so we take the mean $h_k$ of the prompts that choose, for everybody alike. Put
# a **price** $\lambda$ on a unit. Then what is saved is worth $\lambda \, u \, k$, and each prompt takes the number with the best
# balance:
#
# $$\arg\min_k \; h_k - \lambda \, u \, k$$

# %%
curve, expected = choose.harm.mean(0), choose.answer_tokens.mean()
_, panel = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
panel.plot(numbers, curve, **mark("one for all") | {"label": "harm expected"})
price = curve[-1] / numbers[-1] / 400  # for example
for tokens, dashes in ((50, ":"), (400, "--"), (700, "-")):
    worth = price * (tokens + expected) * numbers
    look = {"color": mark("price")["color"], "linestyle": dashes}
    panel.plot(numbers, worth, label=f"worth, {tokens} tokens", **look)
    most = (worth - curve).argmax()
    arrow = (numbers[most], curve[most]), (numbers[most], worth[most])
    look = {"arrowstyle": "<->", "color": mark("whole")["color"]}
    panel.annotate("", *arrow, arrowprops=look)
panel.set(ylim=(0, None), xlabel="left out", ylabel="nats per token")
panel.legend(loc="upper left")
show(
    "Expected harm rises with the layers left out, steeply at the end. Three "
    "straight lines tell what the saved cache is worth for prompts of 50, 400 and "
    "700 tokens: the flat one stays below the curve, the two others rise above "
    "it, and arrows mark where they are farthest above."
)

# %% [markdown]
# *On the cache bill, at one price. A prompt stops where its line is farthest above the curve: the short one at none, the middle
# one at five, the long one at eight. No line is ever farthest above it at three, because three lies above the straight line from
# one to five.*

# %% [markdown]
# ### Exercise 4 · ●●○ · 12 minutes
#
# Write `by_price(curve, numbers, units, layers)`. `curve` has the expected harm $h_k$ of each of `numbers`, and `units` what one
# attention less saves each prompt (all are arrays). Find the lowest price at which these prompts leave out at least `layers`
# attentions on average, each prompt weighted by its units: $\sum u k / \sum u$. Return the **rule**: a function that takes the
# units of any prompts, and returns an array of how many attentions each leaves out at that price.
#
# <details><summary>Hint</summary>
#
# `curve - price * units[:, None] * numbers` is [prompts, numbers]. Try rising prices, such as `np.geomspace(1e-6, 1e3, 5000)`
# divided by the mean of the units, and stop at the first that is enough.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_by_price


# BEGIN SOLUTION
def by_price(curve, numbers, units, layers):
    def left_out(price, units):
        balance = curve - price * units[:, None] * numbers
        return numbers[balance.argmin(1)]

    for price in np.geomspace(1e-6, 1e3, 5000) / units.mean():
        if (units * left_out(price, units)).sum() >= layers * units.sum():
            break
    return lambda new_units: left_out(price, new_units)


# END SOLUTION
# BEGIN STUB
# def by_price(curve, numbers, units, layers):
#     ...  # your code
# END STUB
check_by_price(by_price)

# %% [markdown]
# ## Two rules, two bills
#
# We make two rules, both to save at least a tenth on the prompts that choose. One is told $u = n + a$, the cache, the other $u =
# 1$, the time per token. Then each is judged by both bills.
#
# **Predict before you run.** What does the rule for the time tell a prompt of 50 tokens, and one of 700? How many do they leave
# out? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The same for both: every prompt makes the same offer, so the rule *is* one number for all. It is 5. A tenth of thirty would be
# three, but no price chooses three. On the cache bill, the rule for the cache does × 0.23 of the harm. On the time bill it loses,
# × 1.15.
#
# </details>

# %%
by_price = check_by_price.accepted  # yours, if it is correct
tenth = blocks / 10
known = {  # what is known beforehand: of the prompts that choose, and that judge
    "cache": (choose.tokens + expected, judge.tokens + expected),
    "time per token": (np.ones(len(choose.tokens)), time_units),
}
verdict, chosen = {}, {}
for told, (units, new) in known.items():
    chosen[told] = by_price(curve, numbers, units, tenth)(new)
    columns = np.searchsorted(numbers, chosen[told])
    own = verdict[f"told {told}"] = {"left out": f"{np.unique(chosen[told])}"}
    own["saved"] = f"{outcome(bills[told], columns)[0]:.1f} %"
    for name, saves in bills.items():
        ratio = at_equal_cost(judge.harm, saves, columns)
        own[f"by {name}"] = round(ratio, 2)
on_cache, on_time = [*verdict["told cache"].values()][2:]
here("On the cache bill its rule does less than half the harm.", [0.5 - on_cache])
here("On the time bill it is no better than one number.", [on_time - 0.99])
kinds = len(np.unique(chosen["time per token"]))
claim("Told equal units, everybody gets one number.", [1.5 - kinds])
pd.DataFrame(verdict).T

# %% [markdown]
# *What each rule saves on its own bill, and the harm as a multiple of one number for all at the same saving.*
#
# Nobody's harm has changed, only the units. So **the cost you name decides who should do without**. Neither bill is the true one.
# A server that is full pays for cache. A server that is slow pays for time, and lesson 10 will measure how much time an attention
# takes even when the text is short. (Many pay for both, and $u$ adds them up.)
#
# Would it help to *know* each prompt's harm? We let somebody choose who does, with the same rule.

# %%
from course_utils.lessons.policies import cheapest_guess, price_for

for name, saves in bills.items():
    price = price_for(judge.harm, saves, 0.1)
    columns = cheapest_guess(judge.harm, saves, price)
    knowing = at_equal_cost(judge.harm, saves, columns)
    guess = np.broadcast_to(curve, judge.harm.shape)
    price = price_for(guess, saves, 0.1)
    columns = cheapest_guess(guess, saves, price)
    guessing = at_equal_cost(judge.harm, saves, columns)
    print(f"{name}, a tenth saved: × {guessing:.2f} by mean harms", end="")
    print(f", × {knowing:.2f} by each prompt's own")
here("On the time bill, knowing the harms gains over a tenth.", [0.9 - knowing])

# %% [markdown]
# (Don't compare with the rule above: here both save exactly a tenth of the judging prompts' bill, and there it saved less than a
# tenth. On new prompts a rule can miss its target.) Nobody knows the harms beforehand, so this is the most that any signal can
# gain. On the cache bill that is little, because the lengths have said nearly everything. On the time bill it is about a quarter.
# So whether a signal that guesses harms is worth building depends on the bill, too. The complexity score is no such signal. (He
# et al. 2024 *train* one; in Raposo et al. 2024 each token is routed.)
#
# ## Who pays
#
# **Predict before you run.** The rule for the cache aimed at a tenth of it. What share of the prompts leaves anything out? And
# does it still win if an answer's harm counts by its prompt's tokens, as for customers who pay by the token?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 8.5 % of the prompts pay for everybody. Counted by tokens the rule loses by far: × 1.88 of one number for all. A long prompt is
# no bargain any more when its harm weighs as much as what it saves.
#
# </details>

# %%
left_out = chosen["cache"]
paying = left_out > 0
columns = np.searchsorted(numbers, left_out)
own, gone = judge.harm[rows, columns], bills["cache"][rows, columns].sum()
print(f"{paying.mean():.1%} of the prompts leave something out", end="; ")
print(f"they have {np.median(judge.tokens[paying]):.0f} tokens (median)")
print(f"their harm: {own[paying].mean():.2f} nats per token", end="; ")
print(f"cache saved: {100 * gone:.1f} % of everybody's")
weight = judge.tokens * len(rows) / judge.tokens.sum()
by_tokens = weight[:, None] * judge.harm
counted = at_equal_cost(by_tokens, bills["cache"], columns)
print(f"harm counted by tokens: × {counted:.2f} of one number for all")
here("Less than a fifth of the prompts pays everything.", [0.2 - paying.mean()])
here("Counted by tokens, the rule loses.", [counted - 1])

# %% [markdown]
# So there is one more thing to name, beside the bill: **whose harm counts, and how much.** The rule is good for an average in
# which each answer counts the same, and that average hides the few who pay. Weigh each harm by the prompt's $n$ tokens, and the
# balance becomes $n \, h_k - \lambda \, (n + a) \, k$. For long prompts $n$ is on both sides and cancels, so they don't stand out
# any more. (Now the short ones do.)
#
# What do the few lose? Lesson 05 tells what to fear: a long prompt is often one that somebody asks about, and to leave attentions
# out costs copying first. There we found something better for long texts: windows of 64 tokens drop seven eighths of a 512-token
# cache, at less harm to text. They lose copying, too. A bypass is for those who can't have windows, or who pay for time.
#
# ## Your server
#
# Here is another server. Its users type a line and get a line, write a letter and get a long one, or paste pages and ask one
# question. It pays for the **time that it writes**: one attention less saves one unit for each token of the *answer*. The harm
# per token is as measured, and each answer counts the same. How long an answer will be is known only when it has ended. But the
# server has kept a log. (We made the lengths of the answers up, and suppose that long answers are harmed per token like ours.
# Prompts and harms are measured.)

# %%
from course_utils.lessons.exercises.lesson_06 import ServerExam

others = Record.shipped_for(base, seed=(seed + 1) % 3)  # prompts of another draw
exam = ServerExam(record, others, blocks)
log = exam.log
_, panel = plt.subplots(figsize=(7, 4.2), layout="constrained")
panel.plot(log["tokens"], log["answer"], **mark("whole") | {"linestyle": "none"})
panel.set(xscale="log", yscale="log", xlabel="tokens of the prompt")
panel.set_ylabel("tokens of its answer")
show(
    "A log of 150 answers on two logarithmic axes: a hill with a good deal of "
    "scatter. Prompts of about a hundred tokens have the longest answers."
)
print(f"the exam has {len(exam.tokens)} other prompts")

# %% [markdown]
# *The log: each star is a prompt with its answer.*

# %% [markdown]
# ### Exercise 5 · ●●● · 20 minutes
#
# Decide for the prompts of the exam, of which you know `exam.tokens`. Give `left_out`, one of `numbers` for each, so that at
# least 8 % of the writing time is saved (a bill over all answers together), at no more than **× 0.61** of the harm of one number
# for all at the same saving. The exam judges three times only.
#
# `log["tokens"].to_numpy()` and `log["answer"].to_numpy()` are yours to learn from. They are the prompts of `choose`, in its
# order, so you can rehearse with `choose.harm` and `at_equal_cost`. On other prompts a rule saves somewhat more or less, so aim a
# bit higher.
#
# <details><summary>Hint</summary>
#
# What are the units of this bill, and what can you know of them beforehand? On logarithmic axes the log is a hill:
# `np.polyfit(np.log(x), np.log(y), 3)` fits one, and `np.polyval` reads it. Means in eight groups by length do as well.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_06 import check_left_out

# BEGIN SOLUTION
asked, written = log["tokens"].to_numpy(), log["answer"].to_numpy()
hill = np.polyfit(np.log(asked), np.log(written), 3)


def writes(tokens):
    """Expected length of the answer to a prompt of so many tokens."""
    return np.exp(np.polyval(hill, np.log(tokens)))


rule = by_price(curve, numbers, writes(asked), tenth)
left_out = rule(writes(exam.tokens))
# END SOLUTION
# BEGIN STUB
# left_out = ...  # how many attentions each prompt of exam.tokens leaves out
# END STUB
check_left_out(left_out, exam)

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
# Two policies leave out four attention layers on average over the prompts. Which of them saves more cache?
#
# - [x] It depends on whether long or short prompts leave out more of them.
#   > Cache is paid for by the token, so an average over prompts doesn't tell it.
# - [ ] They save the same, since on average the same number of layers goes.
#   > That average gives a prompt of one word the weight of one of a thousand.
# - [ ] The one that bypasses short prompts, since there are more of those.
#   > There may be more of them, but they have little cache to save.

# %% [markdown] tags=["quiz"]
# A new signal beats one number for all on the cache bill. Its numbers are shuffled among prompts of equal length, and it wins as before.
# What does the signal know?
#
# - [ ] Which prompts are harmed least, since it keeps its advantage.
#   > After the shuffle other prompts of the same length have its numbers. What it knew of each prompt is gone.
# - [x] The length, and nothing else that would help to save cache.
#   > The shuffle leaves only that. You may as well ask for the length.
# - [ ] Nothing at all, because shuffled numbers are random numbers.
#   > They are random only among equals. Long prompts still have the numbers of long prompts.

# %% [markdown]
# ## Take-aways
#
# - A decision about an answer belongs to the answer: kept in its cache, it survives other answers in between.
# - Compare policies at equal cost, and with deals at random. The same average number isn't the same cost.
# - In this mix of prompts, harm hardly depends on the length. What a bypass saves may, and that is a matter of the bill. So
#   **name the cost first**.
# - A price turns a bill into a rule. Ask who pays for it: on the cache bill a few long prompts pay for all.
#
# **On Monday:** write down what your server pays for, and what one attention less saves a short prompt and a long one. If that is
# the same, don't single out prompts.
#
# **Next:** what was cut can be given back in part. Lesson 07 asks what gives back most.
#
# ## References
#
# - Martra, *Large Language Model Notebooks Course*, notebook 6_6b (the idea of an adaptive bypass, and of a complexity score)
# - He et al. 2024, *Router-Tuning: A Simple and Effective Approach for Enabling Dynamic-Depth in Transformers*, arXiv 2410.13184
# - Raposo et al. 2024, *Mixture-of-Depths: Dynamically allocating compute in transformer-based language models*, arXiv 2404.02258
# - Clark et al. 2018, *Think you have Solved Question Answering? Try ARC*, arXiv 1803.05457: the science questions
