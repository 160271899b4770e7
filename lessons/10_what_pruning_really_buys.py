# ---
# jupyter:
#   course:
#     title: "What pruning really buys: speed, memory and energy, measured"
#     minutes: 100
#     prerequisites: lessons 03 to 05 (the cuts), lesson 07 for the part with distillation
#     assets: [smollm2, speeches]
#     timed: true
# ---

# %% [markdown]
# ## What you will learn
#
# - which of four bottlenecks a cut relieves, and which it leaves alone
# - how to time models so that the number means something, with two controls that must show *nothing*
# - a cost model of fixed costs, bytes and operations, fitted on some shapes and judged on others: why fewer blocks can gain
#   more than their bytes in a slow framework, and not in a lean engine (by hand; the measurements here don't show it)
# - the same pruned models as files that llama.cpp runs; and a width that is smaller on paper and larger on disk
# - pruning *and* quantization: when is which the better buy?
# - what may be said about energy without a meter
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct; in the `hub` profile the same code runs on Llama-3.2-1B. The
# saved outputs come from the `embedded` profile on a machine with two CPU cores; the next table says which. Another machine
# has other bottlenecks and gives other numbers: that is what this lesson is about.

# %% [markdown] tags=["notes"]
# **The point:** a cut is faster where it saves what a phase waits for, and a framework that charges for every layer waits for
# layers.
#
# **Usual questions:** "Why is 20 % off not 20 % faster?" Let them find what the rest of the time is spent on.
#
# **Wrong turns:** to read a speed-up of × 1.03 without the unpruned model's second run beside it; to take an estimate for a
# ceiling; to call an estimate passed where the interval holds it.
#
# **At the end you have** every cut of the course timed beside its estimate, a cost model that was judged on shapes it hadn't
# seen, and the same models as files that llama.cpp runs.

# %% tags=["install"]

# %%
import copy
import tempfile
from dataclasses import astuple
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from torch import nn
from tqdm import tqdm

from course_utils import diagrams
from course_utils.plotting import log_ticks, rows_with_intervals, show, show_tensor, style
from course_utils.reports import model_size, with_interval
from course_utils.session import start, tidy

session = start("10")
style()

# %% [markdown]
# ## You removed 20 %. What got faster?
#
# "Pruning makes models faster" is no answer. Faster at what, for whom, and why?
#
# | somebody | waits for | what takes the time | so a cut helps if it saves |
# |---|---|---|---|
# | reads a long document with the model | the first token | operations (*prefill*) | FLOPs |
# | chats alone with it | each next token | reading all weights (*decode*, small batch) | bytes of weights |
# | serves many long chats | each next token | reading keys and values (*decode*, large batch) | bytes of cache |
# | runs a small model in a slow framework | anything | a fixed cost a layer | **layers** |

# %%
diagrams.reading_and_generating()
show(
    "Two drawings side by side. Reading a prompt: six tokens go through one reading of all weights. Generating: three passes "
    "below each other, and each reads all weights and the cache for a single token."
)

# %% [markdown]
# On the left six tokens share one reading of the weights, on the right each token needs a reading of its own, and of the
# cache on top. That is why the two phases have different bottlenecks.
#
# ## A machine small enough to compute by hand
#
# Three numbers describe a machine here: seconds for each layer that runs at all, bytes it reads a second, operations it
# does a second. Take a model of eight blocks and two cuts that save **the same bytes**: two blocks fewer, or narrower
# MLPs. And take two machines: a framework that spends 2 milliseconds on each block whatever its size, and an engine that
# spends almost nothing.
#
# **Predict before you run.** The bytes are the same. On which machine is one cut faster than the other?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In the lean engine both cuts give × 1.19, just the bytes. In the slow framework the narrower model gains least of all,
# × 1.11, and the shorter one most, × 1.24: more than the bytes explain, because the fixed cost of two blocks went with them.
#
# </details>

# %%
from course_utils.cost_model import CostModel
from course_utils.costs import Work, speedup_estimate

MB = 1e6
HEAD = 90 * MB


def generating(blocks, mlp=14 * MB, attention=6 * MB):
    """What one token asks for: each weight of two bytes is read once, and multiplied and added once."""
    read = int(blocks * (mlp + attention) + HEAD)
    return Work(passes=1, attentions=blocks, mlps=blocks, weight_bytes=read, cache_bytes=0, operations=read)


toy = {"whole": generating(8), "two blocks fewer": generating(6), "narrower MLPs": generating(8, mlp=9 * MB)}
nothing = dict.fromkeys(("passes", "attentions", "mlps", "cache_bytes", "operations"), 0.0)
machines = {
    "slow framework": CostModel(nothing | {"attentions": 1e-3, "mlps": 1e-3, "weight_bytes": 1 / 10e9}),
    "lean engine": CostModel(nothing | {"attentions": 1e-6, "mlps": 1e-6, "weight_bytes": 1 / 10e9}),
}
assert toy["two blocks fewer"].weight_bytes == toy["narrower MLPs"].weight_bytes
pd.DataFrame(
    {
        machine: {
            name: f"{1000 * model.predict(work):.1f} ms, × {model.speedup(toy['whole'], work):.2f}"
            for name, work in toy.items()
        }
        for machine, model in machines.items()
    }
    | {"estimate from bytes": {name: f"× {speedup_estimate(toy['whole'], work):.2f}" for name, work in toy.items()}}
)

# %% [markdown]
# The **estimate** from bytes is right for the lean engine only. It is no *ceiling*: the framework's shorter model passes
# it. A speed-up above an estimate is not an error by itself. It asks for a reason, and the fixed cost is one.

# %% [markdown]
# ### Exercise 1 · ●●○ · 10 minutes
#
# Predict before you measure. A machine spends `fixed` seconds on each block and reads `rate` bytes a second. A model has
# `blocks` blocks of `mlp` + `attention` bytes, and a head of `head` bytes. Return two speed-ups of generating one token:
# with `removed` blocks fewer, and with a `share` of each MLP's neurons gone.
#
# <details><summary>Hint</summary>
#
# Write the seconds of a model as a function of its number of blocks and the bytes of an MLP. The head is read once a token.
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_10 import check_speedups


# BEGIN SOLUTION
def speedups(mlp, attention, head, blocks, fixed, rate, removed, share):
    def seconds(blocks, mlp):
        return blocks * (fixed + (mlp + attention) / rate) + head / rate

    whole = seconds(blocks, mlp)
    return whole / seconds(blocks - removed, mlp), whole / seconds(blocks, (1 - share) * mlp)


# END SOLUTION
# BEGIN STUB
# def speedups(mlp, attention, head, blocks, fixed, rate, removed, share):
#     ...  # your code
#     return ..., ...  # the speed-up with fewer blocks, the speed-up with narrower MLPs
# END STUB
check_speedups(speedups)

# %% [markdown]
# ## The contestants
#
# Every method of the course so far, at about a fifth of what it cuts. They don't remove equally many parameters (the table
# below says how many), so read each beside its own estimate. For time it doesn't matter *which* neurons or blocks go, so
# this part takes the first neurons and the blocks in the middle; for quality it matters a lot, and further below they are
# chosen with care.
#
# Two contestants are **controls**. The whole model runs a second time under another name: any difference is noise. Zeroed
# weights keep their shape: unstructured pruning, as it comes without special kernels. The odd width is no control but a
# trap: it is about what `ratio=0.2` gives.

# %%
from course_utils.architectures import describe
from course_utils.attention import bypass_attention
from course_utils.depth import remove_blocks
from course_utils.models import load_model, variant
from course_utils.width import kept_width, prune_neurons

base, tokenizer = load_model("llama", dtype=session.dtype)
total, full = describe(base).num_blocks, describe(base).intermediate_sizes[0]
FIFTH = round(total / 5)
EVEN, ODD = kept_width(full, 1 / 6, multiple_of=64), kept_width(full, 1 / 5) | 1  # | 1 makes it odd, if it isn't


def middle(count):
    """So many block numbers from the middle of the model."""
    return range((total - count) // 2, (total - count) // 2 + count)


def cut(*, width=full, blocks=0, attentions=0, only=None):
    """A variant of the base model: narrower MLPs (in the blocks `only`), fewer blocks, fewer attention layers."""
    model = variant(base)
    if blocks:
        remove_blocks(model, middle(blocks))
    if attentions:
        bypass_attention(model, middle(attentions), remove=True)
    if width < full:
        first_ones = [torch.arange(full, 0.0, -1)] * describe(model).num_blocks  # the higher, the more important
        prune_neurons(model, first_ones, ratio=1 - width / full, layers=only)
    return model


print(f"{base.config.name_or_path}: {base.num_parameters():,} parameters, {total} blocks, MLPs of {full} neurons")
print(f"{ODD} is {ODD / 32:.1f} × 32, {EVEN} is {EVEN / 64:.0f} × 64")

# %%
from course_utils.adaptive import AdaptiveConfig, ModelIdentity, make_adaptive


@torch.no_grad()
def zeroed(share):
    """A variant of the base model in which a share of each MLP's weights is zero, anywhere: the shapes stay."""
    model = variant(base)
    for mlp in describe(model).mlps:
        for projection in (*mlp.inputs, mlp.output):
            weight = projection.weight
            projection.module.weight = nn.Parameter(weight * (torch.rand_like(weight) >= share), requires_grad=False)
    return model


# Each prompt decides anew, and each decides to leave out a fifth: what deciding costs is all that differs from "removed".
same_for_all = AdaptiveConfig(
    model=ModelIdentity.of(base), order=tuple(middle(FIFTH)), left_out=(FIFTH,), thresholds=(),
    policy="length_variance", parameters={"log_length": [0.0, 1.0], "variance": [0.0, 1.0]},
)  # fmt: skip

AGAIN, ZEROED, ADAPTIVE = "unpruned, again", "a fifth of weights zeroed", f"{FIFTH} attentions, adaptive"
NARROW, TRAP, UNEVEN = f"width {EVEN}", f"width {ODD}", f"uneven, {EVEN} on average"
SHORT, CALM = f"{FIFTH} blocks fewer", f"{FIFTH} attentions removed"
contestants = {
    "unpruned": base,
    AGAIN: variant(base),
    ZEROED: zeroed(0.2),
    NARROW: cut(width=EVEN),
    TRAP: cut(width=ODD),
    UNEVEN: cut(width=2 * EVEN - full, only=range(0, total, 2)),
    SHORT: cut(blocks=FIFTH),
    CALM: cut(attentions=FIFTH),
    ADAPTIVE: make_adaptive(variant(base), same_for_all),
}

# %%
from course_utils.costs import bytes_held, kv_bytes_per_token

# What an adaptive model leaves out doesn't show in its shapes: let it read, see where no keys are, and count that cut.
with torch.no_grad():
    read = contestants[ADAPTIVE](torch.arange(100, 132, device=base.device)[None], use_cache=True)
layers = read[describe(base).cache_keyword].layers
without_keys, counted = [number for number, layer in enumerate(layers) if not layer.keys.numel()], dict(contestants)
counted[ADAPTIVE] = variant(base)
bypass_attention(counted[ADAPTIVE], without_keys)
print(f"{ADAPTIVE}: no keys in blocks {without_keys}")
sizes = pd.DataFrame(
    {
        name: {
            "parameters": model_size(model).parameters,
            "weights, MB": model_size(model).bytes / 1e6,
            "MFLOPs a token": model_size(model).flops / 1e6,
            "cache, kB a token": kv_bytes_per_token(model) / 1e3,
            "serving 8 texts of 2048, MB": bytes_held(model, tokens=2048, batch_size=8) / 1e6,
        }
        for name, model in counted.items()
    }
).T
del counted, read, layers
sizes.map("{:,.0f}".format)

# %% [markdown]
# The last column adds the cache of eight long texts to the weights. Only fewer blocks and fewer attention layers make that
# part smaller. The adaptive model is counted as what it runs for these prompts: it saves operations and cache of the attention
# layers that it leaves out, and keeps all its weights. A fifth of zeros saves no byte at all.
#
# ## How to measure without fooling yourself
#
# `measure_speed` of `course_utils.benchmarking` lets all models take turns, in every other round in reverse order. Each
# runs once before the clock counts. Each generates the same number of tokens, whatever they are, and the clock waits until
# the device has finished. Reported is the median of the ratios **round by round**, with its interval: with six
# rounds it reaches from the lowest to the highest, with nine it leaves out one at either end. Beside it stands the **estimate**: by what factor the bytes that are
# read shrink, or the operations, whichever is more.

# %% [markdown]
# ### Exercise 2 · ●○○ · 8 minutes
#
# Six people time `whole` and `pruned`. Each program has one mistake or none. Give each its name, in place of the three dots
# behind its letter: `"cold start"`, `"different lengths"`, `"no cache"`, `"not finished"`, `"not in turns"`, or `"none"`.
#
# - **A**: right after loading; takes turns; prints the times of the first turn: `t = clock(); generate(m, new_tokens=64)`
# - **B**: warms both up; takes turns; `m.generate(ids, max_new_tokens=64)`; prints 64 / seconds
# - **C**, on a GPU: warms both up; takes turns; `t = clock(); m(ids); print(clock() - t)`
# - **D**: warms both up; runs `generate(whole, new_tokens=64)` 50 times, then `generate(pruned, new_tokens=64)` 50 times; medians
# - **E**: warms both up; takes turns; 64 times `ids = cat(ids, m(ids, use_cache=False).logits[:, -1:].argmax(-1))`
# - **F**, on a GPU: warms both up; takes turns; forces 64 tokens from the cache; `synchronize()` before each look at the clock
#
# <details><summary>Hint</summary>
#
# Ask of each: does the first run pay for something? Do both do the same work? Is it the work that you mean? Is it done
# when the clock is read? Could the machine have changed in between?
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_10 import check_measuring_mistakes

# BEGIN SOLUTION
mistakes = {
    "A": "cold start",
    "B": "different lengths",
    "C": "not finished",  # the card still computes when Python has gone on
    "D": "not in turns",
    "E": "no cache",  # one long prefill a token
    "F": "none",
}
# END SOLUTION
# BEGIN STUB
# # In place of each ... one of: "cold start", "different lengths", "no cache", "not finished", "not in turns", "none"
# mistakes = {"A": ..., "B": ..., "C": ..., "D": ..., "E": ..., "F": ...}
# END STUB
check_measuring_mistakes(mistakes)

# %% [markdown]
# ## PyTorch, measured beside the estimates
#
# In the same rounds run five further shapes, which nobody would use: half the blocks, half the width, half the attention
# layers, and mixtures. They are for the cost model below.
#
# For the long and the many texts the cache is filled without reading them (a step costs the same), and fewer models take
# part. Each column below has rounds of its own: compare within a column. Prompts are read at 128 and 256 tokens, and 2,048
# stand in a cache only for eight texts at once; longer prompts, or one long text alone, were not timed.
#
# **Predict before you run.**
#
# 1. Generating for one text: which method goes beyond its estimate, and which stays below? Where is the odd width?
# 2. Eight long texts: which methods gain now?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 1. None is shown to go beyond its estimate. Fewer blocks come to × 1.20 (1.15 to 1.31), which holds theirs, 1.19. Narrower MLPs
#    gain little: width 1280 × 1.03, and the interval reaches down to 1.00 and up to its estimate, 1.11; the odd width × 1.05 (0.97
#    to 1.10), below its estimate of 1.13 and not told apart from 1.
# 2. What makes the cache smaller: fewer blocks × 1.24 (1.20 to 1.28) and fewer attention layers × 1.21 (1.13 to 1.31). Both
#    intervals hold their estimates, 1.22 and 1.15. Narrower MLPs have × 1.01 (0.96 to 1.02): below their estimate of 1.07, and not
#    told apart from 1.
#
# *Unpruned, again* is told apart from its equal in no column; the widest of its intervals reaches from 0.89 to 1.01.
#
# </details>

# %%
from course_utils.benchmarking import measure_speed

HALF = round(total / 2)
shapes = {
    "half the blocks": cut(blocks=HALF),
    "half the width": cut(width=full // 2),
    "half the blocks and width": cut(blocks=HALF, width=full // 2),
    "half the attentions": cut(attentions=HALF),
    "three quarters of both": cut(blocks=round(total / 4), width=full * 3 // 4),
}
everyone = contestants | shapes
FEW = ("unpruned", NARROW, SHORT, CALM)
SETTINGS = {  # what is timed, and with whom
    "1 text of 128": ({"prompt_tokens": 128, "new_tokens": 3}, everyone),
    "1 text of 256": (
        {"prompt_tokens": 256, "new_tokens": 1, "phases": ["prefill"]},
        (*FEW, AGAIN, "half the blocks", "half the width"),
    ),
    "32 texts of 128": ({"prompt_tokens": 128, "new_tokens": 1, "batch_size": 32, "phases": ["decode"]}, (*FEW, AGAIN)),
    "8 texts of 2048": (
        {"prompt_tokens": 2048, "new_tokens": 1, "batch_size": 8, "phases": ["decode"]},
        (*FEW, AGAIN, "half the blocks", "half the attentions"),
    ),
}
speed = {
    setting: measure_speed({name: everyone[name] for name in names}, rounds=9 if names is everyone else 6, **options)
    for setting, (options, names) in SETTINGS.items()
}

# %% tags=["timed"]
# What an adaptive model leaves out depends on the prompt; here it is what CALM leaves out, so that is its estimate.
rows = pd.concat([frame.assign(setting=name) for name, frame in speed.items()], ignore_index=True)
by = rows.set_index(["setting", "phase", "model"])
for setting, phase, model in by.index:
    if model == ADAPTIVE:
        by.loc[(setting, phase, ADAPTIVE), "estimate"] = by.loc[(setting, phase, CALM), "estimate"]
columns = {f"{phase}, {setting}": by.loc[(setting, phase)] for setting, phase, _ in by.index}


def said(row):
    return f"{with_interval(row.speedup, row.ci_low, row.ci_high)}, est. {row.estimate:.2f}"


whole = {name: column.loc["unpruned"] for name, column in columns.items()}
for name, row in whole.items():
    print(f"unpruned, {name}: {row.tokens_per_second:,.0f} tokens/s ({1000 * row.seconds:,.0f} ms)")
for control in (AGAIN, ZEROED):
    found = {name: column.loc[control] for name, column in columns.items() if control in column.index}
    apart = [name for name, row in found.items() if not row.ci_low <= 1 <= row.ci_high]
    print(f"control: {control} is told apart from unpruned in {', '.join(apart) or 'no phase'}")
timed_here = sum(model in contestants and model != "unpruned" for _, _, model in by.index)
print("time to the first token of 128 is the prefill's milliseconds\n")
print(f"speed, × unpruned, and the estimate; {timed_here} intervals of 95 %, none of them adjusted:")
pd.DataFrame(
    {
        name: {
            model: said(column.loc[model]) if model in column.index else "not timed"
            for model in contestants
            if model != "unpruned"
        }
        for name, column in columns.items()
    }
)

# %% [markdown]
# First the controls. The interval of *unpruned, again* is how far apart two equal models come out here: a gain that fits
# into it is none. Where it leaves out 1, the machine was too restless for small differences. And zeros are read and
# multiplied like any other number: without special kernels and a special format there is no reason why they should gain.
#
# Mind how many intervals this lesson looks at: more than seventy in the saved run. Where nothing is to be found, about one in twenty would still
# leave out what it should hold. So a single row that stands out is a reason to measure again, not a finding.

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 6), layout="constrained")
for ax, name in zip(axes, ("decode, 1 text of 128", "decode, 8 texts of 2048"), strict=True):
    column = columns[name]
    drawn = [model for model in FEW if model != "unpruned"]
    rows_with_intervals(
        {model: tuple(column.loc[model, ["speedup", "ci_low", "ci_high"]]) for model in drawn},
        marks={model: column.loc[model].estimate for model in drawn},
        at=1, at_label="unpruned", x_label="speed, × unpruned", title=name, ax=ax,
    )  # fmt: skip
axes[1].get_legend().remove()
show(
    "Two panels of measured speed-ups with intervals and their estimates as open diamonds, one row a method: generating for one "
    "short text above, for eight long ones below. A dotted line marks the unpruned model."
)

# %% [markdown]
# Above, one user: the weights are most of what is read. Below, many long texts: the cache is, and a cut that leaves it alone
# has little to gain. A dot right of its diamond hints at something that is neither a byte nor an operation; only an
# interval right of its diamond shows it. Most intervals are wide: they come from six to nine rounds.
#
# ### Memory

# %%
from course_utils.benchmarking import measure_memory

eight_long = {"prompt_tokens": 2048, "new_tokens": 1, "batch_size": 8, "read": False}
some = {name: contestants[name] for name in ("unpruned", ZEROED, NARROW, SHORT, CALM)}
memory = measure_memory(some, **eight_long).set_index("model")
print("generating behind 8 texts of 2,048 tokens, MB")
(memory / 1e6).round(0).astype(int)

# %% [markdown]
# `peak` counts each tensor that comes and goes, weights included. The plain cache of transformers is copied at each step,
# layer by layer, so the peak lies above weights plus cache.

# %% [markdown]
# ## A cost model: where do the seconds go?
#
# Each pass asks a machine for six amounts: passes, attention layers, MLPs, bytes of weights, bytes of cache, operations.
# If each costs a fixed number of seconds, a model's time is a weighted sum of them. The weights are fitted by least
# squares, with no cost below zero, on the unpruned model and the five odd shapes. **No pruned contestant is in the fit**,
# nor is one of the settings, the 32 texts. They are the test.


# %%
def fit_by_hand(works, seconds):
    """Seconds for each unit of work that bring the relative errors down, none of them negative."""
    amounts = np.array([astuple(one) for one in works], dtype=float)  # [works, parts]
    units = amounts.max(axis=0).clip(min=1e-12)  # bytes are many and passes are few: bring them to one scale
    costs, _ = nnls(amounts / units / np.array(seconds)[:, None], np.ones(len(works)))
    return costs / units


# %% tags=["timed"]
from course_utils.cost_model import fit_cost_model, held_out_errors
from course_utils.costs import work

FITTED_ON = ("unpruned", *shapes)
UNSEEN = "32 texts of 128"
STANDS_FOR = {ADAPTIVE: CALM}  # which layers run is decided at run time, and not in its shapes


def work_of(setting, phase, model):
    asked = {name: size for name, size in SETTINGS[setting][0].items() if name != "phases"}
    return work(everyone[STANDS_FOR.get(model, model)], phase, **asked)


works = {place: work_of(*place) for place in by.index}
fits = {}
for phase in ("prefill", "decode"):  # kernels for one token and for many are different ones
    places = [p for p in by.index if p[1] == phase and p[2] in FITTED_ON and p[0] != UNSEEN]
    seen, seconds = [works[place] for place in places], by.loc[places].seconds.tolist()
    fits[phase] = fit_cost_model(seen, seconds)
    ours = np.array([astuple(one) for one in seen]) @ fit_by_hand(seen, seconds)
    np.testing.assert_allclose(ours, [fits[phase].predict(one) for one in seen], rtol=1e-6)
    groups = {
        shape: ([works[p] for p in places if p[2] == shape], [by.loc[p].seconds for p in places if p[2] == shape])
        for shape in FITTED_ON
    }
    errors = held_out_errors(groups).error.abs()
    print(
        f"{phase}: shapes left out of the fit in turn are predicted within {errors.median():.1%} (median), {errors.max():.1%} at worst"
    )

# %% [markdown]
# `fit_by_hand` equals `fit_cost_model`. Each of the fitted shapes was also left out once and predicted from the others; for reading
# a prompt that goes worse (printed above), so believe the fit of generating rather than the other one.
#
# The bar for what follows, set beforehand: within 10 % of the measured speed-up. It is a low bar, because cuts of a fifth speed up
# by little; so look at what the estimates alone reach.
#
# **Predict before you run.** The cost model has never seen the pruned contestants. How far off will its speed-ups be,
# compared with the estimates?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A little less far. Its speed-ups are 2.3% off on average, the estimates 4.8%. The bar of 10 % tells nothing between them: both
# reach it in all 21 of 21. Within the measured interval are 18 and 13. That is no proof that it predicts better: it is one run, and
# shapes left out of the fit for reading a prompt were predicted within 13.3% (median), 29.0% at worst. What it adds is a *possible*
# reason: by its fit, fixed costs are 57% of a token's time, so narrower MLPs should get less than the estimate. (Its single parts
# have no interval: don't believe them.)
#
# </details>

# %% tags=["timed"]
judged = []
for setting, phase, model in by.index:
    if model in contestants and model not in ("unpruned", AGAIN, ZEROED):  # of the controls both would say 1
        row = by.loc[(setting, phase, model)]
        predicted = fits[phase].speedup(works[(setting, phase, "unpruned")], works[(setting, phase, model)])
        ends = row.ci_low, row.ci_high
        judged.append((f"{phase}, {setting}", model, row.speedup, *ends, row.estimate, predicted))
judged = pd.DataFrame(judged, columns=["phase", "model", "measured", "low", "high", "estimate", "cost model"])
for column in ("estimate", "cost model"):
    judged[f"{column} / measured"] = judged[column] / judged.measured
    off, inside = (judged[f"{column} / measured"] - 1).abs(), judged[column].between(judged.low, judged.high)
    print(
        f"{column}: {off.mean():.1%} off on average; within 10 % of the measured speed-up {(off <= 0.1).sum()} of "
        f"{len(judged)}, within its interval {inside.sum()}"
    )
judged.set_index(["phase", "model"]).round(2)

# %%
ax = plt.subplots(figsize=(7.5, 6.5), layout="constrained")[1]
low, high = 0.9 * judged[["measured", "cost model"]].min().min(), 1.05 * judged[["measured", "estimate"]].max().max()
ax.fill_between([low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color="0.9", label="within 10 %")
ax.plot([low, high], [low, high], color="0.4", ls=":")
ax.plot(judged.measured, judged.estimate, "D", color="C1", fillstyle="none", markeredgewidth=2, label="estimate")
ax.plot(judged.measured, judged["cost model"], "o", color="C0", label="cost model")
ax.set(xlabel="measured speed-up", ylabel="expected speed-up", xlim=(low, high), ylim=(low, high))
ax.set_title("Contestants that the fit hasn't seen")
ax.legend()
show(
    "Expected against measured speed-up, a point for each contestant and phase: the estimates as open diamonds, the cost model as "
    "dots, with a grey band of 10 % around the diagonal. Most of both lie in the band."
)

# %% [markdown]
# A point on the diagonal was expected. One off it is noise of the measurement, or something that was left out: fixed costs
# by the estimate, a width that the kernels dislike by both. Dots nearer to the diagonal than diamonds, and by more than the
# noise, would say that the cost model knows more.

# %% tags=["timed"]
place = ("1 text of 128", "decode")
parts = pd.DataFrame(
    {name: fits["decode"].parts(works[(*place, name)]) for name in ("unpruned", NARROW, SHORT, CALM)}
).T
parts = 1000 * parts / SETTINGS["1 text of 128"][0]["new_tokens"]  # milliseconds a token
named = {
    "fixed: pass and layers": parts[["passes", "attentions", "mlps"]].sum(axis=1),
    "bytes": parts[["weight_bytes", "cache_bytes"]].sum(axis=1),
    "operations": parts.operations,
}
ax, start_at = plt.subplots(figsize=(9, 3.4), layout="constrained")[1], np.zeros(len(parts))
unseen = [name for name, values in named.items() if (values < 0.005 * parts.sum(axis=1)).all()]  # too small to draw
for number, (name, values) in enumerate(named.items()):
    label = f"{name}: 0" if name in unseen else name
    ax.barh(parts.index, values, left=start_at, color=f"C{number}", hatch=("//", "", "..")[number], label=label)
    start_at = start_at + values.to_numpy()
ax.invert_yaxis()
ax.set(xlabel="milliseconds a token, fitted", title="Generating for one text: where the time goes")
ax.set_xlim(0, 1.06 * start_at.max())
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
show(
    "Stacked bars of fitted milliseconds a token for the unpruned model, narrower MLPs, fewer blocks and fewer attention layers: "
    "fixed costs, bytes, operations. Narrower MLPs shorten only the parts for bytes and operations; fewer blocks shorten all."
    + (f" The fit gives nothing to {' and '.join(unseen)}: no such part is drawn." if unseen else "")
)
fixed = named["fixed: pass and layers"] / parts.sum(axis=1)
print(
    f"fixed costs are {fixed['unpruned']:.0%} of a token's time; {1000 * fits['decode'].seconds['attentions']:.2f} ms an attention"
)

# %% [markdown]
# The hatched part is what no narrower matrix can save: what of it belongs to layers goes with them only. If the fit is right,
# that is why depth can be faster than width *at equal bytes* in this framework.
#
# A word of caution: bytes and operations rise and fall together when MLPs get narrower, so the fit can't tell them apart
# well, and may give one what belongs to the other. Their sum is what it knows. And the fit has no interval: measured again,
# on another day, the shares move. It also takes seconds from several settings, which were timed one after the other.

# %% [markdown]
# ## Widths that the hardware likes
#
# Is the odd width slower than its size, in this framework? One MLP, 128 tokens, a range of widths.

# %% tags=["timed"]
from course_utils.benchmarking import median_interval, time_interleaved

mlp = describe(base).mlps[0]
WIDTHS = sorted({ODD, ODD + 1, ODD // 8 * 8, ODD // 32 * 32, EVEN - 32, EVEN, EVEN + 1, EVEN + 64, full})
tokens = torch.randn(1, 128, describe(base).hidden_size, dtype=base.dtype, device=base.device)
narrow = {width: describe(cut(width=width, only=[0])).blocks[0].mlp for width in WIDTHS}


def forward(module):
    with torch.inference_mode():
        for _ in range(5):
            module(tokens)


calls = {str(width): lambda width=width: forward(narrow[width]) for width in sorted(WIDTHS, reverse=True)}
timed = time_interleaved(calls, rounds=21, warmups=3)
timed["width"] = timed.name.astype(int)
timed = timed.sort_values("width")
timed["relative"] = timed.ratio / (timed.width / full)
ax = rows_with_intervals(
    {row.name: (row.ratio, row.ci_low, row.ci_high) for row in timed[timed.width < full].itertuples()},
    marks={str(width): width / full for width in WIDTHS if width < full},
    mark_label="in proportion to the width",
    at=1, at_label="full width", x_label="time, × full width", title="One MLP reading 128 tokens, by width",
)  # fmt: skip
ax.get_legend().remove()
ax.figure.legend(loc="outside lower center")  # inside it would hide a diamond
show(
    "One row for each MLP width, the narrowest on top: its time relative to the full width as a dot with an interval, and an open "
    "diamond where it would be in proportion to its size. A dotted line marks the full width."
)
print(
    "time for its size, × full width:", {int(w): round(r, 2) for w, r in zip(timed.width, timed.relative, strict=True)}
)

# %% [markdown]
# A row whose interval lies right of its diamond pays for more than it has; one whose interval holds the diamond isn't shown
# to. So look at the odd width, and at its even neighbours: if they pay as much, it isn't that the width is odd.
#
# **Saved run.** They do. The odd width takes 1.07 times its share, 1224 and 1230 beside it 1.08 and 1.07, and all others more than
# theirs, too: as if part of the time shrank with no width. Only 1281 (1.11) beside 1280 (1.04) hints at a price of being odd.
#
# Kernels for GPUs work on tiles of 8, 64 or 128 (not measured here), so
# `multiple_of=64` in `prune_neurons` costs a few neurons and may save a surprise. The next section has a stricter reason.

# %%
for held in (everyone, contestants, shapes, some, narrow):
    held.clear()  # the cut models have done their part
tidy()

# %% [markdown]
# ## In an engine that people serve with
#
# Plain PyTorch is for research. People serve models with llama.cpp (behind Ollama and LM Studio), vLLM or TensorRT-LLM.
# llama.cpp reads one file, GGUF, in which each tensor has a number format: F16, or blocks of 32 weights in 8 bits (Q8_0:
# 34 bytes a block) or 4 bits (Q4_0: 18 bytes).
#
# **A row that isn't a multiple of 32 can't be stored in blocks** and falls back to 2 bytes a weight. The rows of the
# down-projection are as long as the MLP is wide. `plan_gguf` tells before anything is written.
#
# **Predict before you run.** In Q8_0, how does the file of the odd width compare with that of the *whole* model?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It is larger: 147.8 MB against 144.8 MB for the whole model, although a fifth of the neurons is gone. Width 1280 takes
# 130.7 MB.
#
# </details>

# %%
from course_utils.export import export_gguf, plan_gguf

served = {
    "unpruned": cut(),
    NARROW: cut(width=EVEN),
    TRAP: cut(width=ODD),
    UNEVEN: cut(width=2 * EVEN - full, only=range(0, total, 2)),
    SHORT: cut(blocks=FIFTH),
    CALM: cut(attentions=FIFTH),
}
FILES = ("F16", "Q8_0", "Q4_0")
plans = {
    (name, kind): plan_gguf(model, tokenizer, quantization=kind)
    for name, model in tqdm(served.items(), desc="planning")
    for kind in (FILES if name not in (UNEVEN, CALM) else FILES[:1])
}
note = next(note for note in plans[TRAP, "Q8_0"].note if note)
print(f"{TRAP} in Q8_0: {note}\n\nMB on disk:")
pd.DataFrame(
    {
        kind: {name: f"{plans[name, kind].bytes.sum() / 1e6:.1f}" for name in ("unpruned", NARROW, TRAP)}
        for kind in FILES
    }
)

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# Choose a width for a budget. A model has `blocks` GLUs over `hidden` channels (a multiple of 32); everything else takes
# `others` bytes. Return the largest MLP width whose Q8_0 file fits into `budget` bytes. A row whose length is a multiple
# of 32 takes 34 bytes for 32 weights, any other row 2 bytes a weight. gate and up are [width, hidden], down is [hidden,
# width].
#
# <details><summary>Hint</summary>
#
# If the width is a multiple of 32, all three matrices take 34/32 bytes a weight. Is there any other width worth a look?
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_10 import check_width_for


# BEGIN SOLUTION
def width_for(hidden, blocks, others, budget):
    a_neuron = 3 * hidden * 34 / 32  # one row of gate, one of up, one column of down
    return int((budget - others) / blocks / a_neuron) // 32 * 32


# END SOLUTION
# BEGIN STUB
# def width_for(hidden, blocks, others, budget):
#     ...  # your code
# END STUB
check_width_for(width_for)

# %% [markdown]
# ### The same models in llama.cpp
#
# Models whose blocks differ (uneven widths, attention layers removed) are no plain Llama for llama.cpp. They are written as
# `deci`: the architecture of NVIDIA's Nemotron-51B, a Llama pruned block by block.
#
# The engine is an optional extra. `course.py` installs it; elsewhere the cell below prints the command. Without it, the cells
# that need it say so and the lesson goes on.

# %%
from course_utils import engine

ENGINE_LIMIT = 1e9  # bytes of an F16 file; six of them lie on disk at once
small_enough = 2 * model_size(base).parameters < ENGINE_LIMIT
runs_engine = engine.available() and small_enough
if runs_engine:
    print(
        f"llama.cpp is here ({engine.PACKAGE} {engine.VERSION}); it uses {torch.get_num_threads()} threads, as torch does."
    )
elif engine.available():
    print(
        "Skipped below: llama.cpp's speeds. Six files of this model would take more than 5 GB; use a smaller COURSE_LLAMA."
    )
else:
    print(f"Skipped below: llama.cpp's speeds. {engine.problem()}")

# %%
files = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
folder = Path(files.name)
if runs_engine:
    in_f16 = {}
    ids = torch.arange(100, 148)[None]
    for number, (name, model) in enumerate(tqdm(served.items(), desc="exporting")):
        in_f16[name] = export_gguf(model, tokenizer, folder / f"{number}.gguf")
        with torch.no_grad(), engine.load(in_f16[name], context=64) as opened:
            exact = variant(model).to("cpu", torch.float32)(ids, use_cache=False).logits[0]
            apart = (opened.logits(ids[0]) - exact).square().mean().sqrt() / exact.std()
        kind = plans[name, "F16"].attrs["architecture"]
        print(
            f"{name:<24} {kind:<6} {in_f16[name].stat().st_size / 1e6:6.1f} MB, logits {apart:.1%} of their spread apart"
        )
    del model
served.clear()  # what runs below are the files
tidy()

# %% [markdown]
# All six files compute what PyTorch computes, up to the rounding of F16 (root mean square, as a share of how far logits
# spread).
#
# **Predict before you run.** An engine should have hardly any fixed cost a layer. Which contestants should lose what they
# gained in PyTorch? And what will the odd width do?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Fewer blocks and fewer attention layers should: whole layers are what saves a fixed cost. They don't. Fewer blocks gain × 1.26 in
# reading and × 1.24 in generating, no less than in PyTorch (1.22 and 1.20); fewer attention layers × 1.06 and 1.09 (1.09 and 1.11).
# So what a fixed cost a layer gave them in PyTorch is too small to show. Width 1280 comes to 0.98 of its estimate in reading and
# 0.97 in generating, fewer blocks to 1.01 and 1.05, and all their intervals hold it. The odd width is slower than the whole model
# in reading a prompt, × 0.83 (0.79 to 0.91), with a fifth of its neurons gone; in generating its × 1.11 (1.04 to 1.17) holds what
# its bytes promise, 1.13.
#
# </details>

# %% tags=["timed"]
if runs_engine:
    served_speed = engine.measure_speed(in_f16, prompt_tokens=128, new_tokens=8, rounds=9)
    both = served_speed.set_index(["phase", "model"])
    torch_rows = {phase: columns[f"{phase}, 1 text of 128"] for phase in ("prefill", "decode")}
    table = {}
    for phase, model in both.index:
        if model != "unpruned":
            row = both.loc[(phase, model)]
            table.setdefault(f"{phase}, llama.cpp", {})[model] = said(row)
            table.setdefault(f"{phase}, speed-up / estimate", {})[model] = f"{row.speedup / row.estimate:.2f}"
            table.setdefault(f"{phase}, PyTorch", {})[model] = f"{torch_rows[phase].loc[model].speedup:.2f}"
    for phase, model in ((phase, model) for phase in ("prefill", "decode") for model in (NARROW, SHORT)):
        reached = both.loc[(phase, model)].speedup / both.loc[(phase, model)].estimate
        print(f"{phase}, {model}: {reached:.2f} of the estimate, {'at least' if reached >= 0.9 else 'below'} 0.9")
    display_table = pd.DataFrame(table)
else:
    display_table = "Skipped: llama.cpp isn't here."
display_table

# %% tags=["timed"]
if runs_engine:
    figure, axes = plt.subplots(2, 1, figsize=(9, 7.5), layout="constrained")
    for ax, phase in zip(axes, ("prefill", "decode"), strict=True):
        part = both.loc[phase].drop("unpruned")
        rows_with_intervals(
            {name: (row.speedup, row.ci_low, row.ci_high) for name, row in part.iterrows()},
            marks=part.estimate.to_dict(),
            at=1, at_label="unpruned", x_label="speed, × unpruned, F16", title=f"{phase} in llama.cpp", ax=ax,
        )  # fmt: skip
    axes[1].get_legend().remove()
    show(
        "Two panels, reading and generating in llama.cpp: measured speed-ups with intervals and their estimates as diamonds for five "
        "pruned models. A dotted line marks the unpruned model."
    )

# %% [markdown]
# A diamond inside its interval means that nothing beyond bytes and operations is shown. In reading a prompt
# look at the odd width: a dot far left of its diamond has fewer weights and little gain. Its interval says how sure that is.
#
# So far each program was compared with itself. Which of the two is faster needs rounds of its own, in which they take turns:
# the whole model reads 128 tokens, and generates four.

# %% tags=["timed"]
from transformers import DynamicCache

prompt = torch.randint(describe(base).vocab_size, (1, 128), generator=torch.Generator().manual_seed(session.seed))
on_base = prompt.to(base.device)


@torch.no_grad()
def in_torch(ids, new_tokens):
    """Read a prompt and take the likeliest token, again and again, as `generate` of the engine does."""
    cached = {describe(base).cache_keyword: DynamicCache(config=base.config), "use_cache": True}
    for _ in range(new_tokens):
        ids = base(ids, logits_to_keep=1, **cached).logits[:, -1:].argmax(-1)


beside_torch = {}
if runs_engine:
    with engine.load(in_f16["unpruned"], context=256) as opened:
        for what, length, new_tokens in (("reading 128 tokens", 128, 1), ("generating 4 tokens", 1, 4)):
            calls = {
                "llama.cpp": lambda n=length, new=new_tokens: opened.generate(prompt[0, :n], new_tokens=new),
                "PyTorch": lambda n=length, new=new_tokens: in_torch(on_base[:, :n], new),
            }
            timed = time_interleaved(calls, rounds=9).set_index("name")
            beside_torch[what] = timed.loc["PyTorch"]  # its ratio: PyTorch's time in llama.cpp's
            print(
                f"{what}: llama.cpp {1000 * timed.seconds['llama.cpp']:,.0f} ms, PyTorch on {base.device.type} "
                f"{1000 * timed.seconds['PyTorch']:,.0f} ms; llama.cpp is "
                f"× {with_interval(*timed.loc['PyTorch', ['ratio', 'ci_low', 'ci_high']])} as fast"
            )

# %% [markdown]
# The same weights, in F16 there and in the `fast dtype` of the first table in PyTorch; on a processor both use as many threads.
# While the four tokens are generated, hardly anything is in the cache, so this is about weights and fixed costs.
#
# **Saved run.** llama.cpp generates × 3.10 (2.93 to 3.18) as fast as PyTorch. In reading a prompt it is the slower one, × 0.52 (0.49
# to 0.56): which program is faster depends on the phase as well.
#
# **In Ollama**: write a file `Modelfile` with the line `FROM ./model.gguf` beside it, then `ollama create NAME -f
# Modelfile` and `ollama run NAME`; the chat template travels in the file. **vLLM** loads the folder that `save_pruned`
# writes when plain transformers can express the model: even widths, fewer blocks. Uneven widths and removed attention
# layers it doesn't load as they are saved here, and its reading of GGUF files is an experimental plug-in. Both are stated,
# not run: Ollama is a server of its own, and vLLM wants a GPU and its own torch. `docs/engines.md` in the repository has
# the table.

# %% [markdown]
# ## Pruning or quantization?
#
# Both make a model smaller. Pruning drops weights; quantization keeps all of them with fewer bits. In Q4_0 a block of 32
# weights shares one scale, and each weight becomes a whole number from 0 to 15. Here is the rule on a block of eight:

# %%
block = torch.tensor([0.9, -0.4, 0.1, 0.05, -1.6, 0.7, 0.0, 0.3])
scale = block[block.abs().argmax()] / -8  # the largest weight becomes 0 and is stored without error
whole_numbers = (block / scale + 8.5).trunc().clamp(0, 15)
rows_shown = torch.stack([block, whole_numbers, (whole_numbers - 8) * scale])
ax = show_tensor(rows_shown, title="Eight weights in four bits", x_label="weight", y_label="", fmt=".3g")
ax.set_yticks(range(3), ["weight", "stored", "read back"])
show(
    "Three rows of eight numbers: the weights, the whole numbers from 0 to 15 that are stored for them, and what is read back. The "
    "values in the third row are multiples of one scale, near those in the first."
)

# %% [markdown]
# What is read back lies on a grid of 16 values, and the largest weight decides how coarse it is. Now for whole matrices,
# in blocks of 32, as torch functions; the `gguf` package has the same rules for files.


# %%
def to_q8(weight):
    blocks = weight.float().view(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    return (torch.where(scale > 0, blocks / scale, 0).round() * scale.half()).view_as(weight)


def to_q4(weight):
    blocks = weight.float().view(-1, 32)
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
    levels = (torch.where(scale != 0, blocks / scale, 0) + 8.5).trunc().clamp(0, 15)
    return ((levels - 8) * scale.half()).view_as(weight)


def to_q4_1(weight):
    """The older 4-bit format with a scale and a lowest value."""
    blocks = weight.float().view(-1, 32)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = (high - low) / 15
    levels = (torch.where(scale > 0, (blocks - low) / scale, 0) + 0.5).trunc().clamp(0, 15)
    return (levels * scale.half() + low.half()).view_as(weight)


from gguf import GGMLQuantizationType, quants

some_weights = torch.randn(64, 96)
for ours, kind in ((to_q8, "Q8_0"), (to_q4, "Q4_0"), (to_q4_1, "Q4_1")):
    stored = quants.quantize(some_weights.numpy(), GGMLQuantizationType[kind])
    read_back = quants.dequantize(stored, GGMLQuantizationType[kind])
    np.testing.assert_allclose(ours(some_weights).numpy(), read_back, atol=1e-6)
    print(f"{kind}: {stored.nbytes / some_weights.numel() * 8:.1f} bits a weight, as the gguf package does it")

# %% [markdown]
# ### A trap: a model that has been quantized before
#
# Models travel in quantized files. The embedded SmolLM2 does: its matrices were stored in Q4_1 and multiplied out again,
# so its weights **lie on a 4-bit grid already**. Quantizing such a model again may cost nothing, and a comparison with
# pruning, which pays in full, is rigged.
#
# The test: does a round trip through the format change the weights? And the way off the grid: change the weights without
# changing the function. What a norm multiplies can move into the matrices behind it; what `up` multiplies, `down` can
# divide again.

# %%
del base
quality_dtype = (
    torch.float16 if session.dtype == torch.float16 else torch.float32
)  # bfloat16 would round more than Q8_0
base, tokenizer = load_model("llama", dtype=quality_dtype)


@torch.no_grad()
def off_the_grid(model, seed=0):
    """A copy that computes the same, with every channel and neuron of its matrices multiplied by 0.84 to 1.19."""
    # A variant would share the embedding, and with one weight of it the whole file would stay in memory.
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)

    def factors(count):
        return (2 ** (0.5 * torch.rand(count, generator=generator) - 0.25)).to(model.device)

    def scale(module, *, rows=1.0, columns=1.0):
        rows = torch.as_tensor(rows, device=model.device).view(-1, 1)
        module.weight.data = (module.weight * rows * columns).to(module.weight.dtype)

    for layer in model.model.layers:
        behind = {
            layer.input_layernorm: [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj],
            layer.post_attention_layernorm: [layer.mlp.gate_proj, layer.mlp.up_proj],
        }
        for norm, readers in behind.items():
            channels = factors(len(norm.weight))
            norm.weight.data = (norm.weight / channels).to(norm.weight.dtype)
            for reader in readers:
                scale(reader, columns=channels)
        neurons = factors(layer.mlp.up_proj.out_features)
        scale(layer.mlp.up_proj, rows=1 / neurons)
        scale(layer.mlp.down_proj, columns=neurons)
    return model


# %%
from course_utils.evaluation import perplexity, perplexity_ratio
from course_utils.texts import token_blocks

FORMATS = {"F16": lambda weight: weight.half(), "Q8_0": to_q8, "Q4_0": to_q4}
evaluation = token_blocks(tokenizer, "evaluation", tokens=65_536, length=64).sample(12, seed=0)


@torch.no_grad()
def stored_as(model, rule, head=to_q8):
    """A variant of the model with its matrices rounded by a rule; embedding and head get at least 8 bits, as in llama.cpp."""
    model = variant(model)
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            is_table = any(module is table for table in tables)
            rounded = (head if is_table and rule is not FORMATS["F16"] else rule)(module.weight)
            module.weight = nn.Parameter(rounded.to(module.weight.dtype), requires_grad=False)
    model.tie_weights()
    return model


with torch.no_grad():
    sample = describe(base).mlps[total // 2].output.weight
    unchanged = ((to_q4_1(sample) - sample).abs() <= 1e-3 * sample.abs().max()).float().mean()
del sample  # it would keep the whole file in memory
print(f"{unchanged:.1%} of a down-projection's weights come back from Q4_1 unchanged")


def cost_of_storing(model):
    """What each 4-bit format adds to the perplexity of the unpruned model, with its 95 % interval."""
    table = {}
    for name, rule in (("Q4_1", to_q4_1), ("Q4_0", to_q4)):
        ratios = perplexity_ratio(perplexity(stored_as(model, rule), evaluation, batch_size=6), reference)
        value, low, high = (f"{100 * (ratio - 1):+.1f}" for ratio in ratios)
        table[name] = f"{value} % ({low} to {high})"
    return table


reference = perplexity(base, evaluation, batch_size=6)
costs = {"as loaded": cost_of_storing(base)}

# %%
few = evaluation.input_ids[:2].to(base.device)
with torch.no_grad():
    before = base(few, use_cache=False).logits.float()
    base = off_the_grid(base)  # in place of the other one, which is not needed any more
    apart = (base(few, use_cache=False).logits.float() - before).abs().max() / before.std()
print(f"moved off the grid: the logits differ by {apart:.1e} of their spread")
del before
tidy()
costs["moved off the grid"] = cost_of_storing(base)
print(f"unpruned: perplexity {reference.perplexity:.2f}; what storing it costs (95 % interval):")
pd.DataFrame(costs)

# %% [markdown]
# The row of Q4_1 is the trap. As loaded, the model pays nothing for a format in which it has lain before; the same
# function off the grid pays. How much it pays depends on the way off, too: our random factors make the weights of a block
# less alike than they were. The weights from before the first quantization would be the clean start. From here on the
# whole model and all that is cut from it start **off the grid**.
#
# ### The same short distillation for every arm
#
# Three arms: the whole model, narrower MLPs (chosen by activation, lesson 03) and fewer blocks (chosen by influence,
# lesson 04). All three, the whole one too, learn for the same few steps, the MLPs alone: half from the whole model's
# predictions (lesson 07) and half from the text itself. (From its own predictions alone the whole model has nothing to
# learn.) So no arm has seen more text than another.

# %%
from course_utils.architectures import cast_weights
from course_utils.depth import block_importance
from course_utils.distillation import distill
from course_utils.distillation.memory import memory_plan, outline
from course_utils.distillation.teacher_states import remember_teacher
from course_utils.language_modelling import continuations
from course_utils.width import neuron_importance

STEPS, ROWS, LENGTH = 12, 2, 64
on_gpu = session.device.type == "cuda"
calibration = token_blocks(tokenizer, "calibration", tokens=65_536, length=128).sample(12, seed=0).batches()
blocks = token_blocks(tokenizer, "distillation", tokens=65_536, length=LENGTH)
training = blocks.sample(STEPS * ROWS, seed=0).batches(ROWS)
cuts = {
    NARROW: lambda model: prune_neurons(model, neurons, ratio=1 - EVEN / full),
    SHORT: lambda model: remove_blocks(model, calm_blocks),
}
ARMS = ("whole", *cuts)
neurons = neuron_importance(base, "activation", batches=calibration)
calm_blocks = block_importance(base, calibration).argsort(stable=True)[:FIFTH].sort().values.tolist()
print(f"blocks of least influence: {calm_blocks}")

plan = memory_plan(
    *(outline(base.config) for _ in "ts"),
    rows=ROWS,
    length=LENGTH,
    teacher_states=True,
    recompute=on_gpu,
    mlps_only=True,
)
room = torch.cuda.mem_get_info()[0] if on_gpu else float("inf")
heals = sum(plan.values()) < 0.9 * room
print(
    f"distilling the whole model takes {sum(plan.values()) / 2**30:.1f} GiB",
    "" if heals else ": too much here, so no arm is distilled",
)

# %% [markdown]
# **Predict before you run.** Three arms, three formats: nine models. Which is best at about the size of the whole model in
# Q8_0? And is a pruned model in F16 ever the better buy than the whole one in Q8_0?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The whole model in Q8_0 itself: its perplexity is × 1.00 of F16 at 144.8 MB. Every pruned model in F16 is larger *and* worse,
# even the narrower one at × 1.16. In Q4_0 the whole model pays × 1.36 (1.28 to 1.44) at 91.7 MB. Pruned models stand on the
# frontier where no whole one does: between the two, width 1280 in Q8_0, 130.7 MB, at × 1.16 (1.08 to 1.26), larger than the whole
# model in Q4_0 and better; and below both, width
# 1280 in Q4_0, 84.3 MB, at × 1.67, and fewer blocks, 79.8 MB, at × 2.28.
#
# </details>


# %% tags=["timed"]
# The longest cell of this part: prune, distil, store in three formats, score, one arm after the other.
precision = torch.bfloat16 if session.dtype == torch.bfloat16 else torch.float32
RECIPE = {
    "steps": STEPS, "lr": 2e-4, "alpha": 0.5, "precision": precision, "mlps_only": True, "recompute": on_gpu, "seed": session.seed,
}  # fmt: skip
PROMPT, written = "The best way to learn is", {}
SERVED = [("whole", "F16"), ("whole", "Q8_0"), ("whole", "Q4_0"), (NARROW, "Q4_0"), (SHORT, "Q8_0"), (SHORT, "Q4_0")]
known = remember_teacher(base, training, precision=precision) if heals else None
stored = {f"{name}, {kind}": folder / f"{name} {kind}.gguf" for name, kind in SERVED}
scores = dict.fromkeys((name, kind) for name in ARMS for kind in FORMATS)  # in the order of the table
sizes_of, as_cut = {}, {"whole": reference}
for name in reversed(ARMS):  # the whole model last: no arm is cut from it any more, so it learns in place
    tidy()
    arm = variant(base) if name in cuts else base
    if name in cuts:
        cuts[name](arm)
        as_cut[name] = perplexity(arm, evaluation, batch_size=6)
    if heals:
        history = distill(known, arm, training, **RECIPE)
        cast_weights(arm, quality_dtype)
        print(f"{name}: {history.tokens:,} predicted tokens in {history.seconds:.0f} s")
        tidy()  # gradients and averages took more than the model
    for kind, rule in FORMATS.items():
        rounded = stored_as(arm, rule)
        scores[name, kind] = perplexity(rounded, evaluation, batch_size=6)
        if kind != "Q8_0":  # which hardly differs from F16
            written[f"{name}, {kind}"] = continuations({kind: rounded}, tokenizer, [PROMPT], new_tokens=20).iloc[0, 0]
        del rounded
        sizes_of[name, kind] = plans["unpruned" if name == "whole" else name, kind].bytes.sum()  # the same shapes
        if runs_engine and (name, kind) in SERVED:
            export_gguf(arm, tokenizer, stored[f"{name}, {kind}"], quantization=kind)
base = known = arm = None  # what runs below are the files
tidy()

# %%
points = pd.DataFrame(
    [
        (name, kind, sizes_of[name, kind] / 1e6, score.nll, *perplexity_ratio(score, scores["whole", "F16"]))
        for (name, kind), score in scores.items()
    ],
    columns=["arm", "format", "MB", "nats a token", "ratio", "low", "high"],
)
points["perplexity, × whole in F16"] = [with_interval(*row) for row in points[["ratio", "low", "high"]].values]
if heals:
    for name in ARMS:
        print(
            f"{name:<16} perplexity {as_cut[name].perplexity:.1f} as cut, {scores[name, 'F16'].perplexity:.1f} after distilling"
        )
for name in (f"{arm}, {kind}" for arm in ARMS for kind in ("F16", "Q4_0")):
    print(f"{name}: {PROMPT} … {written[name]}")
points[["arm", "format", "MB", "nats a token", "perplexity, × whole in F16"]].round({"MB": 1, "nats a token": 3})

# %%
ax = plt.subplots(figsize=(9, 5.4), layout="constrained")[1]
for number, name in enumerate(ARMS):
    part = points[points.arm == name]
    error = [part.ratio - part.low, part.high - part.ratio]
    ax.errorbar(part.MB, part.ratio, yerr=error, fmt="osD"[number] + "-", color=f"C{number}", capsize=4, label=name)
    above = 1 if name in cuts else -1  # the lowest line has its names below, where no other line passes
    for row in part.itertuples():
        ax.annotate(row.format, (row.MB, row.ratio), xytext=(6 * above, 12 * above), textcoords="offset points",
                    ha="left" if name in cuts else "right", va="center", fontsize="small")  # fmt: skip
ax.set(
    xlabel="file, MB",
    ylabel="perplexity, × whole in F16",
    title="Pruned, quantized, or both: after the same distillation",
    yscale="log",
)
ax.margins(x=0.08, y=0.1)
log_ticks(ax.yaxis)
ax.legend()
show(
    "Perplexity relative to the whole model in F16, on a logarithmic axis, against the size of the file: a line through F16, Q8_0 and Q4_0 for the whole "
    "model, narrower MLPs and fewer blocks. The lines of the pruned models lie above that of the whole model."
)

# %% [markdown]
# A point that has another one below it and to its left is beaten: something else is smaller *and* better. Follow each line
# from the right to the left: F16 to Q8_0 halves the file and hardly moves the point upwards. Pruning saves far less of the
# file, and moves the point farther up.
#
# The frontier is as sure as its text, twelve short rows of speeches, and as fair as its distillation, which was very short.
# Rounding to Q8_0 needs no healing, a cut does: the print above says how much a few steps brought back (most of the fall is
# learning the text: the uncut model falls as well), and lesson 07 what an hour does. With more of it, expect the pruned lines to come down.
#
# And read what they write, above the table: one prompt each, so an anecdote. In F16 the whole model and the narrower one *start
# with the basics*; the one with fewer blocks goes round in a circle, and in Q4_0 so does the whole one.
#
# ### Exercise 4 · ●●○ · 8 minutes
#
# Write the rule. `points` maps a name to (bytes, loss); less is better in both. Return the names that no other point
# beats: beaten is who has a rival that is at least as small **and** at least as good, and better in one of the two.
#
# <details><summary>Hint</summary>
#
# For each point, look at all others. Two points that are equal in both don't beat each other.
#
# </details>


# %% tags=["exercise"]
from course_utils.exercises.lesson_10 import check_frontier


# BEGIN SOLUTION
def frontier(points):
    def beats(a, b):
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return {name for name, point in points.items() if not any(beats(rival, point) for rival in points.values())}


# END SOLUTION
# BEGIN STUB
# def frontier(points):
#     ...  # your code
# END STUB
check_frontier(frontier)

# %% [markdown]
# ### And the speed?
#
# Fewer bits are fewer bytes to read, so generating gains. Reading a prompt is arithmetic, and there are as many operations
# as before.
#
# **Predict before you run.** What does Q8_0 buy in generating, and in reading a prompt? What do pruning and 4 bits buy
# together: the product of both?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Q8_0 helps generating, × 1.18 (1.15 to 1.34), but far less than its bytes promise (× 1.86). In reading a prompt it has × 1.06, and the
# interval reaches down to 1.00; Q4_0 gains there, × 1.15 (1.06 to 1.17), which an estimate from operations doesn't foresee. Both
# together, 4 bits and fewer blocks, come to × 1.59 (1.51 to 1.75). Round by round that is 0.95 (0.83 to 1.11) of the product: not
# told apart from it.
#
# </details>

# %% tags=["timed"]
if runs_engine:
    stored[f"{SHORT}, F16"] = in_f16[SHORT]  # other blocks went, the shapes are the same
    frame = engine.measure_speed(stored, prompt_tokens=128, new_tokens=8, rounds=9)
    stored_speed = frame.set_index(["phase", "model"])
    quantized = pd.DataFrame(
        {
            phase: {name: said(stored_speed.loc[(phase, name)]) for name in stored if name != "whole, F16"}
            for phase in ("prefill", "decode")
        }
    )
    quantized["MB"] = [f"{stored[name].stat().st_size / 1e6:.1f}" for name in quantized.index]
    decode = pd.DataFrame(frame.attrs["seconds"]).map(lambda lap: lap["decode"])  # a row a round, a column a file
    gains = decode.rdiv(decode["whole, F16"], axis=0)
    product = gains["whole, Q4_0"] * gains[f"{SHORT}, F16"]
    share = gains[f"{SHORT}, Q4_0"] / product  # round by round
    print(
        f"generating: 4 bits × fewer blocks would be × {product.median():.2f} as a product; measured "
        f"× {gains[f'{SHORT}, Q4_0'].median():.2f}, that is {with_interval(share.median(), *median_interval(share))} of it"
    )
    with engine.load(stored[f"{SHORT}, Q4_0"], context=256) as opened:
        in_engine = engine.perplexity(opened, evaluation)
    apart = in_engine.nll - scores[SHORT, "Q4_0"].nll
    print(f"{SHORT} in Q4_0: {in_engine.nll:.3f} nats a token in llama.cpp, {apart:+.3f} beside our rounding in torch")
else:
    quantized = "Skipped: llama.cpp isn't here."
quantized

# %% [markdown]
# llama.cpp rounds activations as well, so its loss needn't be ours to the last digit. Speeds are × the whole model in F16
# (95 % interval); the estimate counts bytes for generating and operations for reading. It leaves out that packed weights
# have to be unpacked before they are multiplied. So here an engine that came near its estimates for *pruned* files can stay
# far below them for *quantized* ones: once more, an estimate knows one resource.
#
# ### When is which the better buy?
#
# *Quantize first* is what this frontier says for mild savings, and others find the same: Kuzmin et al. (2023) compare pruning
# of single weights and quantization at equal compression, in theory and on many networks, and quantization wins in most
# cases, except at very high compression. *Then prune*, if what you wait for is not bytes: fewer operations for reading, a
# smaller cache, fewer layers. Both stack. Where a part of the time is touched by neither, one would expect them below the
# product, because that part weighs more and more; whether that shows, the print above says with its interval.

# %% [markdown]
# ### Exercise 5 · ●●○ · 8 minutes
#
# Read a published row. NVIDIA's ModelOpt tutorial prunes Nemotron 3 Nano, a mixture of experts, from 31.6 to 22 billion
# parameters, of which 3.6 and 3.0 billion work on each token. It reports how many tokens a second vLLM generates on one
# H100, after prompts of 32,768 tokens:
#
# | BF16 | FP8 | pruned, BF16 | pruned, FP8 |
# |---|---|---|---|
# | 598 | 1323 | 1190 | 1576 |
#
# Which statements does the row support? Give their letters as a set, such as `{"B", "F"}`.
#
# - **A** Pruning and FP8 together are faster than either alone.
# - **B** Their speed-ups multiply.
# - **C** 31.6/22 is 1.44, so the measured 1.99 for pruning alone must be a measuring mistake.
# - **D** Once the model is in FP8, pruning it adds about a fifth.
# - **E** On a laptop, for one user, the pruned model will be twice as fast as well.
# - **F** The pruned model in FP8 is the best choice.
#
# <details><summary>Hint</summary>
#
# Compute the ratios. Then ask of each statement whether the row *measured* what it claims.
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_10 import check_claim

# BEGIN SOLUTION
supported = {"A", "D"}  # B: 2.21 × 1.99 = 4.40, measured 2.64; C: an estimate is no ceiling; E and F: not in the row
# END SOLUTION
# BEGIN STUB
# supported = ...  # a set of letters, such as {"B", "F"}
# END STUB
check_claim(supported)

# %% [markdown]
# ## Energy, without a meter
#
# Energy is power × time. A counter in the processor (RAPL) or the card (NVML) measures it, and the package `codecarbon`
# reads both. Where there is none to read, every figure is a **model**, and honest ones show their assumptions.

# %% tags=["timed"]
from course_utils.benchmarking import energy_counters, measure_energy

if counters := energy_counters():
    base, tokenizer = load_model("llama", dtype=session.dtype)
    for name, joules in measure_energy(lambda: in_torch(on_base[:, :1], 64), counters).items():
        print(
            f"measured by {name}, unpruned in PyTorch: {1000 / 64 * joules:,.0f} J for 1,000 tokens, resting included"
        )
    base = None
else:
    print("No energy counter is readable here, no processor's (RAPL) and no card's (NVML): what follows is a model.")
WATTS_A_CORE = (3, 12)  # assumption: a core under load, from a laptop's to a server's, memory included
GRAMS_A_KWH = (50, 600)  # assumption: from hydro power to coal
cores = torch.get_num_threads()
in_pytorch = columns["decode, 1 text of 128"]
faster = {f"{name}, PyTorch": in_pytorch.loc[name].speedup for name in FEW}
if runs_engine:  # llama.cpp beside PyTorch, and its files beside each other: each ratio was timed in turns
    ahead = beside_torch["generating 4 tokens"].ratio
    faster |= {f"{name}, llama.cpp": ahead * row.speedup for name, row in stored_speed.loc["decode"].iterrows()}
print(
    f"modelled with {cores} cores of {WATTS_A_CORE[0]} to {WATTS_A_CORE[1]} W, {GRAMS_A_KWH[0]} to {GRAMS_A_KWH[1]} g CO2 a kWh:"
)
table = {}
for name, times in faster.items():
    seconds = 1000 / in_pytorch.loc["unpruned"].tokens_per_second / times  # for 1,000 tokens
    joules = [seconds * cores * watts for watts in WATTS_A_CORE]
    grams = [energy / 3.6e6 * rate for energy, rate in zip(joules, GRAMS_A_KWH, strict=True)]
    table[name] = {
        "J for 1,000 tokens": f"{joules[0]:,.0f} to {joules[1]:,.0f}",
        "g CO2 for 1,000 tokens": f"{grams[0]:.4f} to {grams[1]:.2f}",
        "× less than unpruned in PyTorch": f"{times:.2f}",
    }
pd.DataFrame(table).T

# %% [markdown]
# The last column is the speed-up once more (for llama.cpp: how much faster than PyTorch it generated with the whole model, times
# what a file gained): at constant power, a model of energy can't say anything that the clock hasn't
# said. (And power needn't be constant: an engine that keeps the cores busier draws more of it.) The grams in a row lie a
# factor of almost fifty apart, all of it from assumptions: that is what is *not* known. So report the time, and leave
# "saves so many grams" to those who have a meter.

# %% [markdown]
# ## Which method for which bottleneck?

# %% tags=["timed"]
wanted = {
    "first token (prefill, 1 text of 128)": "prefill, 1 text of 128",
    "next token, one user (decode, 1 text of 128)": "decode, 1 text of 128",
    "next token, many long texts (decode, 8 of 2048)": "decode, 8 texts of 2048",
}
methods = (NARROW, SHORT, CALM)
answer = {}
for what, column in wanted.items():
    rows_of = columns[column].loc[list(methods), ["speedup", "ci_low", "ci_high"]]
    answer[what] = {name: with_interval(*row) for name, row in zip(methods, rows_of.values, strict=True)}
for what in ("weights, MB", "serving 8 texts of 2048, MB"):
    answer[f"memory: {what}"] = {name: f"{sizes.loc['unpruned', what] / sizes.loc[name, what]:.2f}" for name in methods}
kept = {name: sizes.loc[name, "parameters"] / sizes.loc["unpruned", "parameters"] - 1 for name in methods}
print("PyTorch, × unpruned; parameters removed:", ", ".join(f"{name} {-share:.1%}" for name, share in kept.items()))
pd.DataFrame(answer).T[list(methods)]

# %% [markdown]
# The three cuts do not remove the same number of parameters, so go down a column: where does *this* cut help, and where not?
# Each interval compares a cut with the unpruned model, not two cuts with each other.
# The order of advice; what stands in brackets was not measured here:
#
# | you wait for, or run out of | first | then |
# |---|---|---|
# | disk, download, weights in memory | quantize | prune, widths a multiple of 32 |
# | the next token, one user | quantize, in an engine that has kernels for it | fewer blocks; narrower where quality asks for it |
# | the first token (prompts of 128 and 256 tokens here) | prune: fewer operations | (fewer bits, if the hardware multiplies in them; see llama.cpp's prefill above) |
# | many long chats | fewer blocks, or fewer attention layers (or KV heads, lesson 11) | (a quantized cache) |
# | the next token, in a slow framework | another engine | fewer blocks |
# | nothing of the above: "smaller is better" | measure first | |

# %%
files.cleanup()

# %% [markdown]
# ## Three questions

# %% [markdown] tags=["quiz"]
# A pruned model generates 1.30 times as fast (95 % interval: 1.27 to 1.33), and the ratio of bytes is 1.2. What follows?
#
# - [ ] The measurement is wrong: nothing can be faster than its bytes allow.
#   > The ratio of bytes is an estimate that leaves out the fixed cost of layers. Only a bound that counts everything would be a ceiling.
# - [x] Something went that isn't a byte, such as the framework's fixed cost of whole layers; a cost model can say whether that is enough.
#   > Right. If no such cost explains it, look for a cold start or different lengths.
# - [ ] Pruning also made the remaining weights faster to read.
#   > They are as many bytes as before, each.

# %% [markdown] tags=["quiz"]
# Why is a file with MLPs of 1,229 neurons larger in Q8_0 than one with 1,280?
#
# - [ ] Because odd widths need padding up to the next power of two.
#   > Nothing is padded. Power of two isn't asked for either.
# - [x] Because its down-projection has rows of 1,229, which aren't whole blocks of 32, and falls back to two bytes a weight.
#   > Right: one matrix of three at almost twice the bytes outweighs the neurons that went.
# - [ ] Because quantization works less well on pruned matrices.
#   > It works as well as before; here it isn't applied at all.

# %% [markdown] tags=["quiz"]
# Somebody shows that quantizing a downloaded model to 4 bits costs nothing, while pruning it by a tenth costs a lot. What
# do you ask first?
#
# - [ ] Whether a tenth was the right ratio.
#   > Any ratio would look bad beside a cost of nothing.
# - [x] Whether the download had been quantized before.
#   > Right. On its own grid a model pays nothing a second time; move it off the grid, or start from the original weights.
# - [ ] Whether the perplexity was measured on enough text.
#   > A good question, but more text doesn't change a comparison that is rigged.
# - [ ] Which engine ran the 4-bit model.
#   > That decides the speed, not the loss.

# %% [markdown]
# ## Take-aways
#
# - Ask *what is waited for*: operations, bytes of weights, bytes of cache, or a fixed cost a layer. Each cut saves some of them.
# - Warm up, take turns, force the length, wait for the device; and run the whole model twice: that shows the noise.
# - An estimate is no ceiling. A cost model can say what it leaves out, if it predicts shapes that it hasn't seen, and better
#   than the estimate does.
# - Zeros buy nothing, and a width that isn't a multiple of 32 can make a file larger. Plan the file before you prune.
# - A speed-up belongs to the place where it was measured: the program, the phase, the number format, the machine. Read it
#   with its interval, and call an estimate passed only where the interval leaves it out.
# - Quantize first, prune for what quantization can't save. Start both from weights that lie on no grid.
# - Without a meter, energy is time under another name.
#
# ## References
#
# - Kim et al. 2024, *Shortened LLaMA: Depth Pruning for Large Language Models*, arXiv 2402.02834
# - Kuzmin et al. 2023, *Pruning vs Quantization: Which is Better?*, arXiv 2307.02973
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679
# - Bercovich et al. 2024, *Puzzle: Distillation-Based NAS for Inference-Optimized LLMs*, arXiv 2411.19146 (Nemotron-51B)
# - NVIDIA 2026, *Model Optimizer*, tutorial
#   [Nemotron-3-Nano-30B-A3B: prune, distil, quantize](https://github.com/NVIDIA/Model-Optimizer/tree/main/examples/megatron_bridge/tutorials/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16)
#   (the published row)
# - Pope et al. 2022, *Efficiently Scaling Transformer Inference*, arXiv 2211.05102
# - Williams et al. 2009, *Roofline: An Insightful Visual Performance Model*, doi 10.1145/1498765.1498785
# - Gerganov and others, *llama.cpp*, https://github.com/ggml-org/llama.cpp
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
