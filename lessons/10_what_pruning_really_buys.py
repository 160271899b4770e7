# ---
# jupyter:
#   course:
#     title: "What pruning buys: time, memory, and requests served at once"
#     minutes: 90 to 120 minutes
#     prerequisites: lesson 03 (neurons of a GLU), lesson 04 (blocks, the KV cache), lesson 05 (attentions, KV heads)
#     assets: [smollm2, speeches, texts]
#     concepts: [prefill and decode, roofline, bandwidth, price of a layer, taking turns and A/A, GGUF and its blocks of 32, requests at once, weight-only bits]
#     timed: true
# ---

# %% [markdown]
# ## The question
#
# Two cuts of a model save the same bytes. One is a fifth faster than the other in PyTorch, and a tenth in llama.cpp. What does a
# cut really buy, and what would you get without cutting?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** A pass through a model waits for three things. It reads all weights once, however many tokens it reads: bytes. It
# multiplies: so many operations for each token. And the program has to start every layer: we call that the price of a layer.
# Narrower MLPs save bytes and operations; fewer blocks save the price as well. PyTorch spends much of a token's time on the
# price, so there the shorter model is well ahead. llama.cpp spends little on it, so there the two are nearer to each other. (Make
# each layer dearer by hand, and the shorter model pulls further ahead.) So ask what your user waits for. Then ask the rivals of a
# cut: the whole model with weights in fewer bits, and the cache in 8 bits, which makes room for more requests than a fifth of the
# blocks.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** a cut is faster where it saves what somebody waits for. The room should leave with the roofline: flat, then rising,
# with the price of layers on top.
#
# **On the board:** two axes, time of a pass against tokens at once. Let the room draw the line before anybody measures.
#
# **Usual questions:** "Why is a quarter off not a quarter faster?" Let them find what the rest of the time is spent on. "Shall we
# prune or quantize?" Both, bits first where bytes are all that is asked for; the last figure has the answer by customer.
#
# **Wrong turns:** reading a speed-up without the whole model's second run beside it; copying matrices in exercise 3 instead of
# sharing them; taking requests for tokens per second in exercise 5.
#
# **At the end you have** a clock that you can believe, a roofline of your own machine, and a function that advises servers which
# you have never seen.

# %% tags=["install"]

# %%
import math
import tempfile
import time
from functools import partial
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils.lessons import claim, here
from course_utils.support import mark, show, start, style

session = start("10")
style()
data = files("course_utils") / "data"
record = pd.read_json(data / "token_times.json")  # of SmolLM2-135M

# %%
_, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
for panel, (program, rows) in zip(panels, record.groupby("program"), strict=True):
    rows.index = ["whole", "again", "shorter", "narrower"]
    colours = [mark(part)["color"] for part in rows.part]
    ends = [rows.milliseconds - rows.low, rows.high - rows.milliseconds]
    panel.bar(rows.index, rows.milliseconds, yerr=ends, capsize=5, color=colours)
    panel.set_title(program)
    behind = rows.milliseconds["narrower"] / rows.milliseconds["shorter"]
    print(f"{program}: the narrower takes {behind:.2f} times the shorter's time")
panels[0].set_ylabel("milliseconds per token")
show(
    "Two panels of bars, milliseconds per token in PyTorch and in llama.cpp: the "
    "whole model, the whole model again, a shorter and a narrower one. In PyTorch "
    "the shorter model is well ahead of the narrower one, in llama.cpp by less."
)

# %% [markdown]
# We took a third of the blocks out of a Llama (shorter), or as many bytes out of its MLPs (narrower), and timed each token that
# they write, in two programs. *Bars have 95 % intervals; the panels have scales of their own. These times are on record, in 16
# bits.*
#
# The two cuts have the same bytes. In PyTorch the shorter model is 20 % ahead, in llama.cpp 10 %. What does PyTorch wait
# for that llama.cpp doesn't?
#
# ## What a pass waits for
#
# A model runs in *passes*. When it reads a prompt, all tokens go through in one pass: that is **prefill**. When it writes, each
# token is a pass of its own: that is **decode**. A server that writes for sixteen people at once puts their sixteen tokens into
# one pass. So what matters is how many *tokens at once* a pass has.
#
# A pass can wait for three things. Whichever it is, we call it the pass's **bottleneck**:
#
# - **Bytes.** It reads every weight from memory, once, however many tokens it has. The machine reads so many bytes per second,
#   its **bandwidth**.
# - **Operations.** Each token is multiplied with each weight, a product and a sum. Twice the tokens are twice the operations.
# - **The price of a layer.** The program must start each layer: call it, check its inputs, launch its work, normalise. That takes
#   some time however small the layer is.
#
# Reading and computing go on at the same time, so the longer of the two counts. The price comes on top. For $L$ layers with the
# price $f$ each, $B$ bytes at bandwidth $r$, and $O$ operations of which the machine does $p$ per second:
#
# $$t = L f + \max(B / r, \; O / p)$$
#
# This is the **roofline** (Williams et al. 2009), with a price. The first exercise writes it down, the next ones test it.

# %% [markdown]
# ### Exercise 1 · ●○○ · 6 minutes
#
# Write `seconds(weights, stored, tokens, layers, fixed, bandwidth, peak)`: how long a pass takes that has so many tokens at once.
# The model has `weights` weights of `stored` bytes each (2 for 16 bits). `fixed` is the price of a layer in seconds.
#
# <details><summary>Hint</summary>
#
# Bytes don't depend on the tokens, operations do. Which of the arguments is $p$?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_seconds


# BEGIN SOLUTION
def seconds(weights, stored, tokens, layers, fixed, bandwidth, peak):
    reading = weights * stored / bandwidth
    computing = 2 * weights * tokens / peak
    return layers * fixed + max(reading, computing)


# END SOLUTION
# BEGIN STUB
# def seconds(weights, stored, tokens, layers, fixed, bandwidth, peak):
#     ...  # your code
# END STUB
check_seconds(seconds)

# %% [markdown]
# ## A clock that can be believed
#
# Speeds are easily measured wrongly. The first run pays for what later ones find ready, a *cold start*. A machine gets warm, or
# busy. A GPU is still at work when Python has gone on. So:
#
# - Every model runs once before the clock counts.
# - The models **take turns**, in every other round in reverse order. So whatever slows the machine down meets all of them.
# - In each round every time is divided by the whole model's. The median of these ratios is reported.
# - The whole model runs a second time under another name. This is called **A/A**. It tells how far noise alone can go from 1.

# %% [markdown]
# ### Exercise 2 · ●●○ · 9 minutes
#
# Write that clock. `calls` maps names to functions; the others are compared with the first. `clock()` tells the seconds, `finish()`
# waits until the device has done its work. For each name, return the median over the rounds of its seconds divided by the first
# one's.
#
# <details><summary>Hint</summary>
#
# `list(calls)[::-1]` is the way back. Call `finish()` twice in a lap: before the clock starts, and before it stops.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_take_turns


# BEGIN SOLUTION
def take_turns(calls, rounds, clock, finish):
    for call in calls.values():
        call()  # warm up
    laps = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            finish()
            start = clock()
            calls[name]()
            finish()
            laps[name].append(clock() - start)
    first = next(iter(laps.values()))
    return {n: np.median(np.divide(own, first)) for n, own in laps.items()}


# END SOLUTION
# BEGIN STUB
# def take_turns(calls, rounds, clock, finish):
#     ...  # your code
# END STUB
check_take_turns(take_turns)

# %% [markdown]
# ## Take one part away
#
# Do we believe the formula? If a pass waits for three things, then a part that is taken away must be missed on the clock, where
# the formula says it counts, and not elsewhere. So we build two strange models. Neither of them writes any sense, but a clock
# doesn't mind.
#
# - **No bytes.** All blocks use the matrices of block 0. The model has as many layers and does as many operations as before, but
#   its blocks have the bytes of one. They stay in the processor's caches, which hand them over faster than the memory does. (The
#   bytes of Llama-3.2-1B's block are too many for a card's caches, so on Colab this model shows nothing.)
# - **No work.** All blocks are there, and each is next to empty: a state of 64 channels and 32 neurons. Its bytes and its operations are both
#   gone. What is left is the price.
#
# The third part needs no strange model: more tokens are more operations. (On a processor we time float32, because there its
# products wait for memory. In 16 bits they wait for the processor itself, which has to unpack the numbers.)

# %%
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.measuring import time_interleaved
from course_utils.models import describe, load_model, model_size, variant
from course_utils.pruning import bypass_attention, prune_neurons, remove_blocks

dtype = session.dtype if session.device.type == "cuda" else torch.float32
base, tokenizer = load_model("llama", dtype=dtype)
architecture = describe(base)
total, full = architecture.num_blocks, architecture.intermediate_sizes[0]
small = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 1}
small |= {"num_key_value_heads": 1, "vocab_size": 64, "num_hidden_layers": total}
empty = LlamaForCausalLM(LlamaConfig(**small)).to(base.device, base.dtype).eval()


def megabytes(model):  # of its weights in 16 bits, as they are served
    return 2 * model.num_parameters() / 1e6


def reading(model, tokens):
    """A pass with so many tokens at once."""
    ids = torch.full((1, tokens), 7, device=model.device)

    @torch.inference_mode()
    def call():
        model(ids, use_cache=False)

    return call


print(f"whole: {megabytes(base):.1f} MB, empty layers: {megabytes(empty):.1f} MB")

# %% [markdown]
# ### Exercise 3 · ●●○ · 10 minutes
#
# Take the bytes away and nothing else. Write `one_for_all(model)`: it changes a Llama in place, so that every block uses the
# matrices of block 0, and returns it. (The norms weigh next to nothing. Leave them as they are.) The model must still have all of
# its blocks and do all of its operations, and it must still write with a cache.
#
# <details><summary>Hint</summary>
#
# The blocks are `model.model.layers`. A block has `mlp` and `self_attn`, and an attention has `q_proj`, `k_proj`, `v_proj` and
# `o_proj`. Why can't you put the whole attention of block 0 into another block? Lesson 04 had that trap.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_one_for_all


# BEGIN SOLUTION
def one_for_all(model):
    first, *others = model.model.layers
    for block in others:
        block.mlp = first.mlp
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(block.self_attn, name, getattr(first.self_attn, name))
    return model


# END SOLUTION
# BEGIN STUB
# def one_for_all(model):
#     ...  # your code
# END STUB
check_one_for_all(one_for_all)

# %% [markdown]
# ## The roofline of this machine
#
# We time the whole model, the one whose blocks share their bytes, and the one of empty layers, with one token at once up to 64.
#
# **Predict before you run.** Sixteen tokens at once are sixteen times the operations of one. Does a pass take sixteen times as
# long? Does sharing the bytes help more at one token or at 64? And at which of the two is the price of layers the larger part?
# Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Sixteen tokens take about twice as long as one, far from sixteen times. Sharing the bytes helps at one token and far less
# at 64: there the pass waits for operations, which are all still there. The empty layers take a good part of the time at one
# token, and much less of it at 64.
#
# </details>


# %% tags=["timed"]
def timing(models, counts):  # a row for each number of tokens and each model
    tables = {}
    for tokens in counts:
        calls = {name: reading(model, tokens) for name, model in models.items()}
        rounds = 15 if tokens == 1 else 6  # a short pass is disturbed more
        laps = time_interleaved(calls, rounds=rounds).set_index("name")
        tables[tokens] = laps.assign(ms=1000 * laps.seconds.iloc[0] * laps.ratio)
    return pd.concat(tables)


COUNTS = [1, 4, 16, 64]
shared = check_one_for_all.accepted(variant(base))  # yours, if it is correct
strange = {"whole": base, "no bytes": shared, "no work": empty}
passes = timing(strange, COUNTS)
for tokens in (1, 64):
    told = [f"{name} {ratio:.2f}" for name, ratio in passes.ratio[tokens].items()]
    print(f"{tokens} at once, × whole's time: {', '.join(told)}")
by_tokens = passes.ms.unstack(0)
slower = by_tokens.loc["whole"] / by_tokens.loc["whole", 1]
print(f"whole: 16 tokens take {slower[16]:.1f} times as long as one")
here("Sixteen tokens take under half of sixteen times as long.", [8 - slower[16]])
helps = 1 - passes.ratio.unstack(1)["no bytes"]
here("Without bytes one token gains more than 64.", [helps[1] - helps[64]])
left = passes.ratio.unstack(1)["no work"]
here("The price is a larger part of one token than of 64.", [left[1] - left[64]])
del shared

# %% [markdown]
# Now we measure the three numbers of the formula, without timing a cut. The price $f$ is what an empty layer takes. For the other
# two we ask PyTorch itself, with one large matrix that is no layer: the head. With one token its time tells the bandwidth, with
# 64 the operations per second. (So these are what *this program* reaches on this machine. The machine alone can do more.)

# %% tags=["timed"]
head = architecture.head
states = torch.randn(64, head.in_features, device=base.device).to(base.dtype)


@torch.inference_mode()
def multiply(tokens):
    """The head with so many tokens at once."""
    head(states[:tokens])


calls = {str(tokens): partial(multiply, tokens) for tokens in COUNTS}
laps = time_interleaved(calls, rounds=15).set_index("name")
stored = head.weight.element_size()
fixed = passes.seconds[1, "no work"] / total
bandwidth = head.weight.nbytes / laps.seconds["1"]
peak = 2 * head.weight.numel() * 64 / laps.seconds["64"]
print(f"a layer's price {1000 * fixed:.2f} ms, {bandwidth / 1e9:.0f} GB/s")


def by_formula(model, tokens, price=fixed):
    """Milliseconds of a pass, from what nothing but the formula knows."""
    size = model_size(model)  # the formula counts what is multiplied: flops / 2
    own = size.flops / 2, stored, tokens, size.blocks, price, bandwidth, peak
    return 1000 * check_seconds.accepted(*own)


foretold = [round(by_formula(base, tokens)) for tokens in COUNTS]
print(f"whole: {by_tokens.loc['whole'].round().tolist()} ms, formula {foretold}")
print(f"the head alone, × one token: {laps.ratio.round(1).tolist()}")
here("One matrix takes longer for 4 tokens, too.", [laps.ratio["4"] - 1.3])

# %%
_, panel = plt.subplots(figsize=(9.5, 5.8), layout="constrained")
fine, grey = 2 ** np.linspace(0, 6, 61), {"color": mark("random")["color"]}
bytes_take = 1000 * stored * model_size(base).flops / 2 / bandwidth
computing = 1000 * model_size(base).flops * fine / peak
panel.loglog(fine, computing, linestyle=":", **grey)
panel.axhline(bytes_take, linestyle=":", **grey)
panel.text(36, 1.05 * bytes_take, "bytes")
panel.text(3, 0.1 * computing[-1], "operations")
formula = [by_formula(base, tokens) for tokens in fine]
panel.loglog(fine, formula, label="formula, whole", **grey)
parts = ("whole", "whole"), ("no bytes", "attentions"), ("no work", "price")
for name, part in parts:
    look = mark(part) | {"label": name, "linewidth": 0.8}
    panel.loglog(COUNTS, by_tokens.loc[name], **look)
panel.set(xlabel="tokens at once", ylabel="milliseconds per pass")
people_who_wait = {1: "1\none chat", 16: "16\nsixteen chats", 64: "64\na prompt"}
panel.set_xticks(COUNTS, [people_who_wait.get(n, n) for n in COUNTS])
panel.minorticks_off()
panel.set_yticks([5, 10, 20, 50, 100, 200], [5, 10, 20, 50, 100, 200])
panel.legend()
show(
    "Log-log: milliseconds of a pass against tokens at once, 1 to 64. The whole "
    "model's curve rises, far more slowly than the operations, above the formula. "
    "Without bytes it is lower on the left. Empty layers: nearly flat, far below."
)

# %% [markdown]
# *The roofline. One chat is decode, a prompt is prefill, and a server with sixteen chats stands between. Dotted: what bytes and
# operations alone would take. Grey: the formula, with the price of the layers on top. The marks are measured.*
#
# Take the bytes away (blue): one token gains a quarter to a third of its time, 64 gain far less. Take the work away (orange): what is
# left is a fifth to a quarter of one token's time, and less of 64 tokens'. So on the left a pass waits for bytes and prices, on
# the right for operations. That is the direction in which the formula points. (Sharing saves less than it says, because the
# caches hand their bytes over fast, but not for nothing.)
#
# As a clock it is poor. It is nearest at the two ends. At 4 tokens, and still more at 16, the whole model takes clearly longer
# than foretold. One large matrix alone, the head, shows a part of the reason: it takes over twice as long for 4 tokens as for
# one, although it reads the same bytes and has few operations to do. So PyTorch is slower with a few tokens than with one, even
# at a single product. (Probably it takes another routine as soon as there are two. We haven't looked inside.) The formula assumes
# the same bytes per second for one token as for four. Take a roofline as a map of what counts where.
#
# ## What each cut moves
#
# Now the two cuts. Which blocks or neurons go is no matter for time, so it is the middle blocks and the last neurons. Their bytes
# are equal, so by the formula the narrower model should be behind for one reason only: it pays the price of ten layers more.
#
# We can't take PyTorch's price away. But we can see what a price does, by adding to it: each block waits for one, two or four
# milliseconds more before it begins.
#
# **Predict before you run.** The narrower model takes a little longer than the shorter one for a token. How much longer with four
# more milliseconds per layer? And how far could this go, if layers got dearer and dearer? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# With one more millisecond it takes about 1.3 times as long, with four about 1.4. By the formula it can't go beyond 1.5,
# which is the price of 30 layers divided by that of 20.
#
# </details>


# %%
def cut(*, width=full, blocks=0, attentions=0):
    """A variant with narrower MLPs, fewer blocks, or fewer attentions."""
    model, first = variant(base), (total - blocks - attentions) // 2
    remove_blocks(model, range(first, first + blocks))
    if attentions:
        middle = range(first, first + attentions)
        bypass_attention(model, middle, remove=True)
    if width < full:
        last_go = [torch.arange(full, 0.0, -1)] * (total - blocks)
        prune_neurons(model, last_go, ratio=1 - width / full)
    return model


FEWER = max(1, total // 3)
short = cut(blocks=FEWER)
a_neuron = (megabytes(base) - megabytes(cut(width=full // 2))) / (full - full // 2)
saved = (megabytes(base) - megabytes(short)) / a_neuron  # in neurons of all MLPs
WIDTH = max(32, math.floor((full - saved) / 32) * 32)  # a few bytes less
narrow = cut(width=WIDTH)
SHORT, NARROW = f"{total - FEWER} of {total} blocks", f"MLPs of {WIDTH}"
print(f"{SHORT}: {megabytes(short):.1f} MB; {NARROW}: {megabytes(narrow):.1f} MB")


# %%
def dearer(model, more):
    """The model with a layer's price raised: each block waits so long before."""
    costly = variant(model)

    def wait(block, inputs):
        until = time.perf_counter() + more
        while time.perf_counter() < until:
            pass

    for block in costly.model.layers:
        block.register_forward_pre_hook(wait)
    return costly


# %% tags=["timed"]
_, panel = plt.subplots(figsize=(9, 4.8), layout="constrained")
added, rows = np.array([0, 0.001, 0.002, 0.004]), {}
for more in added:
    arms = {"short": dearer(short, more), "narrow": dearer(narrow, more)}
    rows[more] = timing(arms, [1])
behind = pd.concat(rows).xs("narrow", level=2)
prices = 1000 * (fixed + added)
look = mark("neurons") | {"label": "measured", "linestyle": ""}
ends = [behind.ratio - behind.ci_low, behind.ci_high - behind.ratio]
panel.errorbar(prices, behind.ratio, yerr=ends, **look)
told = by_formula(narrow, 1, fixed + added) / by_formula(short, 1, fixed + added)
fine = np.linspace(prices[0], prices[-1])
curve = by_formula(narrow, 1, fine / 1000) / by_formula(short, 1, fine / 1000)
panel.plot(fine, curve, color=look["color"], label="formula")
print(f"measured {behind.ratio.round(2).tolist()}, formula {np.round(told, 2)}")
for program, rows in record.groupby("program"):
    *_, shorter, thinner = rows.milliseconds  # ten layers apart, the same bytes
    print(f"record, {program}: {(thinner - shorter) / 10:.2f} ms per layer")
now, *more = behind.ratio
here("The narrow model is behind.", [now - 1])
here("Dearer layers throw it further back.", [min(more[1:]) - now])
limit = mark("guessing") | {"label": f"{total} / {total - FEWER}"}
panel.axhline(total / (total - FEWER), **limit)
panel.set(xlabel="price of a layer, ms", ylabel="narrower's time, × shorter's")
panel.legend(loc="lower right")
show(
    "The narrower model's time for a token, in units of the shorter one's, against "
    "the price of a layer. It rises with the price towards 1.5, as the formula's "
    "line does."
)

# %% [markdown]
# *Left, the price as it is. Further right, each block waits longer before it begins. Marks are measured, with 95 % intervals. The
# curve is the formula, whose numbers came from empty layers and the head alone. Dash-dotted: 30 layers' price divided by that of
# 20.*
#
# Nothing changed but the price, and the shorter model pulled ahead, about as far as the formula says. The narrower model still
# pays for thirty layers.
#
# Now the riddle can be worked out from its own bars. The two cuts have the same bytes and are ten layers apart. So what lies
# between their bars is the price of ten layers: 0.65 ms for each in PyTorch, 0.07 in llama.cpp, which is one lean program without
# Python between the layers (the last printed lines). **A layer costs PyTorch about nine times as much.** That is our answer. It
# takes for granted that narrow matrices are read as fast as wide ones, and we haven't tested that. A proof would lower PyTorch's
# price and see the lead shrink.
#
# ## The same models as files
#
# llama.cpp (behind Ollama and LM Studio) reads one file, a **GGUF**, in which each matrix has a format. In F16 a weight takes two
# bytes. In Q8_0 a **block of 32**, a group of neighbouring weights of a row, shares a scale and takes 34 bytes, in Q4_0 it takes
# 18. A row whose length isn't a multiple of 32 can't be stored so, and stays in 16 bits. The rows of the down-projection are as long as
# the MLP is wide.
#
# So a width should be a multiple of 32, for its *file*. "Even" isn't enough. Does the *speed* ask for the same? We try three widths
# that differ by a percent: a multiple of 32, a multiple of 4, and one that is only even.
#
# **Predict before you run.** Which of the three have a small file in Q8_0? And which of the last two reads a prompt faster?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Only the first of the three has a small file. The other two files are larger than that of the *whole* model, with a fifth of the
# neurons gone. But the multiple of 4 reads a prompt faster than the whole model does, and the width that is only even doesn't:
# that comes with the next cell.
#
# </details>

# %%
from course_utils.release import engine, export_gguf, plan_gguf

BY_32 = math.floor(0.8 * full / 32) * 32
widths = {f"MLPs of {BY_32 + more}": BY_32 + more for more in (0, 12, 14)}


def planned(model):  # MB of the file in Q8_0, before it is written
    return plan_gguf(model, tokenizer, quantization="Q8_0").bytes.sum() / 1e6


by_plan = {"whole": planned(base)}
for name, width in widths.items():
    by_plan[name] = planned(cut(width=width))
print("Q8_0:", ", ".join(f"{name} {mb:.1f} MB" for name, mb in by_plan.items()))
whole, by_32, *others = by_plan.values()
claim("The multiple of 32 has a smaller file.", [whole - by_32])
here("The other two have a larger one.", np.subtract(others, whole))

# %% [markdown]
# Now all of them in llama.cpp, beside the first rival: the *whole* model in 8 and in 4 bits. These formats are **weight-only**. The
# weights are stored in fewer bits and unpacked when they are used. (llama.cpp also rounds activations to 8 bits on the way, for
# kernels of its own. What that gains depends on the processor.) The engine is an optional extra; without it the cell says how to
# get it.
#
# **Predict before you run.** Whose token comes first, the cuts' or that of the whole model in 4 bits? And do 4 bits gain as much
# at reading a prompt of 64 tokens?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The whole model in 4 bits writes faster than any cut, because a token waits for bytes. It gains far less at reading the prompt,
# because a prompt waits for operations.
#
# </details>

# %% tags=["timed"]
FORMATS = {"whole, 8 bits": "Q8_0", "whole, 4 bits": "Q4_0"}
SERVED = {"rounds": 6, "prompt_tokens": 64, "new_tokens": 4}
shown = {"whole": base, SHORT: short, NARROW: narrow}
odd = [*widths][1:]
shown |= {name: cut(width=widths[name]) for name in odd}
shown |= dict.fromkeys(FORMATS, base)
why = engine.problem() or "Files of a model as large as this one take long."
table = f"Skipped. {why}"
fits = engine.available() and megabytes(base) < 600
if fits:
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    gguf = {}
    for name, model in shown.items():
        path = Path(folder.name) / f"{len(gguf)}.gguf"
        kind = FORMATS.get(name, "F16")
        gguf[name] = export_gguf(model, tokenizer, path, quantization=kind)
    again = gguf | {"whole, again": gguf["whole"]}  # the same file, another name
    del arms, shown, short, narrow, model  # to have room for the files
    parts = [again.keys() - {*odd}, {"whole", *odd}]  # not all are open at once
    speed = []
    for part in parts:
        opened = {name: path for name, path in again.items() if name in part}
        speed.append(engine.measure_speed(opened, **SERVED))
    speed = pd.concat(speed).drop_duplicates(["phase", "model"])
    speed = speed.set_index(["phase", "model"])

# %% tags=["timed"]
if fits:
    writes, reads = speed.speedup["decode"], speed.speedup["prefill"]
    token = record.query("program == 'llama.cpp'").iloc[0]
    four, made = "whole, 4 bits", [SHORT, NARROW]
    here("4 bits write faster than the cuts.", writes[four] / writes[made] - 1)
    here("4 bits gain more at writing than reading.", [writes[four] - reads[four]])
    by_4, even = reads[odd]
    here("Only even reads more slowly than a multiple of 4.", [by_4 / even - 1])
    on_disk = {name: path.stat().st_size / 1e6 for name, path in again.items()}
    table = pd.DataFrame({"MB": on_disk})
    table["writes, × whole"], table["by bytes"] = writes, speed.estimate["decode"]
    rest = 1 - token.floor / token.milliseconds  # of the first figure's llama.cpp
    table["if the rest stays"] = 1 / (rest + (1 - rest) / table["by bytes"])
    table["reads, × whole"] = reads
    table["by operations"] = speed.estimate["prefill"]
    table = table.iloc[1:].round(2)
table

# %% [markdown]
# There are two rules, and they aren't the same: the *format* wants multiples of 32, and the *kernels* of this program, the small
# routines that multiply, seem to want multiples of 4 here. (We read that off the clock, from two widths. Other kernels want
# others.)
#
# Fewer bits write faster, but not by as much as their bytes promise. A part of each token doesn't shrink with them. In the first
# figure's llama.cpp that part is about three tenths of a token. If it stays, the formats should write as much faster as the
# column *if the rest stays* says. They come near that, or lie between it and their promise.
#
# Fewer bits save no products. All the same, 4 bits read a prompt clearly faster here, and 8 bits less so, if at all. Why we don't
# know.
#
# So be careful with every sentence about bits: these formats are *weight-only*, in *llama.cpp*, on a *processor*. Many cards of today multiply 8-bit
# numbers about twice as fast as 16-bit ones. There, if the activations are rounded to 8 bits as well as the weights, prompts
# *are* read faster. We have no such card here, so the last figure takes that from data sheets.
#
# ## What freed memory buys
#
# A server writes for many people at once. All requests share one reading of the weights, and each brings a KV cache of its own
# (lesson 04). So how many can be served **at once** is a question of memory: what the weights leave, divided by what one
# request's cache takes.

# %% [markdown]
# ### Exercise 4 · ●●○ · 6 minutes
#
# Write `requests(memory, weights, tokens, layers, gone, heads, groups, size, stored)`: how many contexts of `tokens` fit at once.
# `memory` and `weights` are bytes. Of `layers` layers, `gone` have lost their attention. A layer has `heads` heads that ask and
# `groups` KV heads. A key is `size` numbers, as is a value, and each number is kept in `stored` bytes.
#
# <details><summary>Hint</summary>
#
# Start with the bytes that one token leaves in one layer. One of the arguments isn't needed.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_requests


# BEGIN SOLUTION
def requests(memory, weights, tokens, layers, gone, heads, groups, size, stored):
    a_token = 2 * (layers - gone) * groups * size * stored  # keys and values
    return int((memory - weights) // (tokens * a_token))


# END SOLUTION
# BEGIN STUB
# def requests(memory, weights, tokens, layers, gone, heads, groups, size, stored):
#     ...  # your code
# END STUB
check_requests(requests)

# %% [markdown]
# ## Seven ways to spend the same memory
#
# Let there be memory for the whole model and five and a half contexts of 1,024 tokens. We can cut: a sixth of the neurons, a
# fifth of the attentions, or a fifth of the blocks. Or we cut nothing, and store the weights in 8 bits, the cache in 8 bits, or
# both.
#
# **Predict before you run.** Order the seven by how many requests they serve.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The whole model serves 5, narrower MLPs 6, fewer attentions 7, fewer blocks 9. The cache in 8 bits serves 10, with nothing cut.
# So do weights in 8 bits, and both together serve 20.
#
# </details>

# %%
from course_utils.measuring import kv_bytes_per_token

CONTEXT, FIFTH, Q8 = 1024, max(1, round(total / 5)), 34 / 32
WIDE = math.ceil(0.8 * full / 64) * 64
milder = {  # a model, its attentions that are gone, its part
    "whole": (base, 0, "whole"),
    f"width {WIDE}": (cut(width=WIDE), 0, "neurons"),
    f"{FIFTH} attentions fewer": (cut(attentions=FIFTH), FIFTH, "attentions"),
    f"{FIFTH} blocks fewer": (cut(blocks=FIFTH), FIFTH, "blocks"),
}
ways = {n: (megabytes(m), gone, 2) for n, (m, gone, _) in milder.items()}
ways["weights in 8 bits"] = planned(base), 0, 2
ways["cache in 8 bits"] = megabytes(base), 0, Q8
ways["both in 8 bits"] = planned(base), 0, Q8
a_token = kv_bytes_per_token(base) * 2 / base.dtype.itemsize  # in 16 bits
room = 1e6 * megabytes(base) + 5.5 * CONTEXT * a_token
one = architecture.attentions[0]
heads = one.query_width // one.head_size, one.groups, one.head_size
served = {}
for name, (heavy, gone, kept) in ways.items():
    own = room, 1e6 * heavy, CONTEXT, total, gone, *heads, kept
    served[name] = check_requests.accepted(*own)
print(*(f"{name} {count}" for name, count in served.items()), sep=", ")
uncut, narrower, calm, few, light, kept, both = served.values()
most = max(narrower, calm, few)
claim("No cut serves more than the cache in 8 bits.", [kept + 0.5 - most])
claim("Both in 8 bits serve twice as many as any cut.", [both - 2 * most])

# %%
parts = [part for *_, part in milder.values()] + ["channels"] * 3
_, panel = plt.subplots(figsize=(9, 4), layout="constrained")
colours = [mark(part)["color"] for part in parts]
bars = panel.barh([*served], served.values(), color=colours)
panel.bar_label(bars, padding=4)
panel.invert_yaxis()
panel.set_title(f"requests at once: {room / 1e6:.0f} MB, contexts of {CONTEXT:,}")
show(
    "Bars: requests at once. Whole 5, narrower MLPs 6, fewer attentions 7, fewer "
    "blocks 9; in green the whole model with weights in 8 bits 10, with the cache "
    "in 8 bits 10, with both 20."
)

# %% [markdown]
# *Green: nothing is cut.* (Counted with the 34 bytes of Q8_0 for 32 numbers. Servers on cards keep one byte per number, and would
# serve one more.) The order depends on the memory. A cache in 8 bits makes each request smaller, and fewer blocks free weights as
# well. With room for fewer than about four contexts the blocks would serve more.
#
# Does a cache in 8 bits spoil the model? llama.cpp can keep it so: its settings are called `type_k` and `type_v`. We let it read
# the same text with both caches.
#
# **Predict before you run.** How much loss does it add: a tenth of a nat per token, a hundredth, or less?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Less than a hundredth on both texts. And a token leaves 12.3 kB instead of 23.1.
#
# </details>

# %%
from course_utils.text import judging_rows

table = f"Skipped. {why}"
if fits:
    texts, losses = judging_rows(tokenizer, draw=session.seed), {}
    for cache in ("F16", "Q8_0"):
        with engine.load(gguf["whole"], cache=cache) as opened:
            for text, rows in texts.items():
                ids = rows.input_ids[:3].reshape(1, -1)  # a text of 192 tokens
                losses[cache, text] = engine.perplexity(opened, ids).nll
            kept = opened.cache_bytes() / ids.shape[1]
            losses[cache, "kB per token"] = kept / 1000
    folder.cleanup()
    losses = pd.Series(losses).unstack(0)
    added = (losses["Q8_0"] - losses["F16"]).iloc[1:]
    print(f"added: {added.abs().max():.4f} nats per token at most")
    table = losses.round(3)
table

# %% [markdown]
# Nearly half of the cache is saved, and the loss hardly moves (on texts of 192 tokens; we haven't tried the long contexts of the
# figure). The cuts of lessons 04 and 05 cost tenths of a nat and more. So a cut for memory has to be compared with *this*, and
# with both in 8 bits. (What it does to speed depends on the program. llama.cpp on a processor has to unpack the cache as well; we
# haven't timed that here.)
#
# ## Which offer for which server?
#
# You advise people who run servers. A server has `memory` bytes, a `bandwidth`, a `peak` in operations per second, and a `price`
# per layer in seconds. A job has a `context` in tokens, `waiting` requests at most, and a `limit`: a step may not take more
# seconds than that, because people read along. In a *step* every request gets its next token.
#
# An offer is a model in some form. It has `parameters`, which are all multiplied with each token; its `weights` in bytes; its
# `layers`; the bytes of `cache` that a token leaves; and `faster`, how many times as fast its operations run (2 for weights and
# activations in 8 bits, under 1 where weights are unpacked). For example:
#
# ```python
# server = {"memory": 22e9, "bandwidth": 9e11, "peak": 1.2e14, "price": 1e-5}
# job = {"context": 8192, "waiting": 100, "limit": 0.05}
# whole = {"parameters": 8.03e9, "weights": 16.06e9, "layers": 32}
# offers = {"whole": whole | {"cache": 131072, "faster": 1}}
# ```

# %% [markdown]
# ### Exercise 5 · ●●● · 20 minutes
#
# Write `best_offer(server, job, offers)`. For each offer count first: how many requests can it serve at once, within the memory,
# the limit, and those who are waiting? Then compute how long its step takes: the roofline, where each request's whole cache is
# read as well as the weights. Return `(name, requests, rate)` of the offer that writes most tokens per second. `rate` is tokens
# per second of all requests together.
#
# Your function is judged on 60 servers that nothing has used, and they are drawn anew each time you ask. (On each of them some
# offer can serve somebody.)
#
# <details><summary>Hint</summary>
#
# What all requests share is read once, what each has for itself as often as there are requests. If a step with a full memory
# takes too long, the offer isn't lost: with fewer requests its step is shorter.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_best_offer


# BEGIN SOLUTION
def best_offer(server, job, offers):
    def step(offer, count):
        caches = count * job["context"] * offer["cache"]
        reading = (offer["weights"] + caches) / server["bandwidth"]
        computing = 2 * offer["parameters"] * count / server["peak"]
        computing = computing / offer["faster"]
        return offer["layers"] * server["price"] + max(reading, computing)

    found = []
    for name, offer in offers.items():
        left = server["memory"] - offer["weights"]
        count = min(job["waiting"], int(left // (job["context"] * offer["cache"])))
        while count > 0 and step(offer, count) > job["limit"]:
            count -= 1
        if count > 0:
            found.append((count / step(offer, count), name, count))
    rate, name, count = max(found)
    return name, count, rate


# END SOLUTION
# BEGIN STUB
# def best_offer(server, job, offers):
#     ...  # your code
# END STUB
check_best_offer(best_offer)

# %% [markdown]
# ## Three customers and an 8B
#
# Now your function (or ours) meets three customers with a Llama-3.1-8B, on a card that leaves 22 GB. One chats alone, one hands
# in a prompt of 8,192 tokens and waits for the *first token*, and one serves as many long chats as fit. The sizes are counted
# from the model's shapes. The card's speeds are typical numbers of data sheets: none of this was timed.
#
# **Predict before you run.** For which of the three is a cut the best offer?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# For none of them. Alone, 4-bit weights write most. For the prompt, 8 bits throughout are ahead, and then the cuts; weight-only
# bits and the cache give nothing. With a full server, 8 bits throughout are ahead again, then 4-bit weights, then the cache in 8
# bits, and the blocks follow just behind.
#
# </details>

# %%
shape = {"vocab_size": 128_256, "hidden_size": 4096, "num_hidden_layers": 32}
shape |= {"intermediate_size": 14_336, "num_key_value_heads": 8}
with torch.device("meta"):  # shapes, and no memory
    large = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
block = sum(weight.numel() for weight in large.model.layers[0].parameters())
attention = sum(w.numel() for w in large.model.layers[0].self_attn.parameters())
whole, each = large.num_parameters(), kv_bytes_per_token(large) / 32
sheets = pd.DataFrame(
    {  # parameters, bytes of a weight, layers, attentions, bytes of cache, faster
        "whole": (whole, 2, 32, 32, 1, 1),
        "a fifth by width": (0.8 * whole, 2, 32, 32, 1, 1),
        "8 attentions fewer": (whole - 8 * attention, 2, 32, 24, 1, 1),
        "7 blocks fewer": (whole - 7 * block, 2, 25, 25, 1, 1),
        "weights in 4 bits": (whole, 18 / 32, 32, 32, 1, 1),
        "cache in 8 bits": (whole, 2, 32, 32, 0.5, 1),
        "8 bits throughout": (whole, 1, 32, 32, 0.5, 2),
    },
    index=["parameters", "stored", "layers", "attentions", "kept", "faster"],
).T
sheets["weights"] = sheets.parameters * sheets.stored
sheets["cache"] = sheets.attentions * each * sheets.kept

# %%
card = {"memory": 22e9, "bandwidth": 9e11, "peak": 1.2e14, "price": 1e-5}
jobs = {"one chat": {"context": 4096, "waiting": 1, "limit": 1}}
jobs["a full server"] = {"context": 8192, "waiting": 500, "limit": 0.2}
offers, bought, machine = sheets.T.to_dict(), {}, (1e-5, 9e11, 1.2e14)
advise = check_best_offer.accepted
for customer, job in jobs.items():
    advice = {name: advise(card, job, {name: offers[name]}) for name in offers}
    bought[customer] = {name: rate for name, (_, _, rate) in advice.items()}
prompts = bought["a long prompt"] = {}
for name, o in offers.items():
    work = o["parameters"], o["stored"], 8192 / o["faster"], o["layers"]
    prompts[name] = 1 / check_seconds.accepted(*work, *machine)
bought = pd.DataFrame(bought).loc[[*offers]]
bought = bought / bought.loc["whole"]
tokens = (22e9 - sheets.weights) / sheets.cache  # that fit into the memory
fit = (tokens / tokens["whole"]).round(2).drop("whole")
print("room for tokens, × whole", fit.to_string(), sep="\n")
margin = [fit["cache in 8 bits"] - fit["7 blocks fewer"]]
claim("The cache in 8 bits makes more room than blocks.", margin)
uncut, cut_ones = bought.iloc[4:], bought.iloc[1:4]
margins = uncut.max() - cut_ones.max()
claim("No cut is the best offer for any of the three.", margins)

# %%
_, panels = plt.subplots(1, 3, figsize=(12, 4.4), sharey=True, layout="constrained")
customers = ["one chat", "a long prompt", "a full server"]
colours = [mark(part)["color"] for part in ["blocks"] * 3 + ["channels"] * 3]
for panel, customer in zip(panels, customers, strict=True):
    rates = bought[customer].drop("whole")
    bars = panel.barh(rates.index, rates, color=colours)
    panel.bar_label(bars, fmt="%.2f", padding=3)
    panel.axvline(1, **mark("guessing"))
    panel.set(title=customer, xlabel="× whole", xlim=(0, 1.2 * rates.max()))
panels[0].invert_yaxis()
show(
    "Three panels of bars, speed in units of the whole model: one chat, a long "
    "prompt, a full server. Cuts in one colour, the uncut model in fewer bits in "
    "green. For one chat 4-bit weights lead, for the prompt and the full server 8 "
    "bits throughout."
)

# %% [markdown]
# *Pink: cuts. Green: nothing is cut. Beyond the line: faster than the whole model in 16 bits. These are promises of bytes and
# operations: in llama.cpp above, 4 bits kept about two thirds of theirs, and where weights are unpacked first a prompt is read
# more slowly. Attention's own products are left out; for long prompts they count, so fewer attentions would gain a little more
# than is drawn.*
#
# Each customer has another order, because each waits for something else. And for each there is an uncut offer that beats the cuts
# of this size. That isn't the end of pruning: bits and cuts can be had together. Whoever has spent the bits and still needs more
# can cut, and then the figure says which cut for whom. (NVIDIA timed such offers with long prompts on a card, in the tutorial
# that `docs/before_you_prune.md` links to: 8 bits gained a little more than their cut, and both together most.) None of this says
# what an offer costs in nats; lessons 04, 05 and 14 ask that.
#
# Bits and cuts go together in one order: **cut, heal, then store in fewer bits**, because healing (lesson 07) needs weights that
# can move a little. And scattered zeros, as *unstructured* pruning leaves them, make a zipped file smaller, but they speed up
# nothing here: a matrix with zeros is read and multiplied like any other unless special kernels skip them.

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Two cuts of a model have the same bytes. In PyTorch the shorter one is well ahead, in llama.cpp less. What is the likeliest
# reason?
#
# - [ ] llama.cpp computes in F16, which makes wide and narrow matrices look alike.
#   > The number format changes the bytes of both cuts by the same factor.
# - [ ] PyTorch reads the narrow matrices more slowly than the wide ones.
#   > A little, perhaps; but much of its time isn't spent on reading at all. The empty layers showed it.
# - [x] PyTorch spends a price on each layer, and the shorter model has fewer.
#   > An engine has a small price, so there bytes decide.

# %% [markdown] tags=["quiz"]
# You store the weights in 4 bits, and the same processor unpacks them as it goes. Who gains?
#
# - [x] Somebody who chats alone, since each token waits for bytes.
#   > Fewer bytes are read per token, and bytes are what one chat waits for.
# - [ ] Somebody with a long prompt, since a prompt has the most tokens.
#   > A prompt waits for operations, and they are as many as before.
# - [ ] Both alike, since a weight is a weight.
#   > Where on the roofline does each of them stand?

# %% [markdown] tags=["quiz"]
# A server is full, and its users write long chats. What do you try first?
#
# - [x] Keep the cache in 8 bits, since that cuts nothing.
#   > It frees half of what each request keeps. Then weights in 8 bits, and only then a cut.
# - [ ] Take out some attentions, since they weigh little and keep much cache.
#   > A good cut for this server. But it costs quality, and there is something nearly free.
# - [ ] Make the MLPs narrower, since they hold most of the weights.
#   > That frees weights once, and no cache. Few requests come of it.

# %% [markdown]
# ## Take-aways
#
# - A pass waits for bytes, for operations, and for the **price** of its layers. The **roofline** says which, by how many tokens there
#   are at once.
# - To test such a formula, take a part away or add to it: share the bytes, empty the layers, make them dearer.
# - Warm up, take turns, and time the whole model twice. A speed-up belongs to its program.
# - A width should be a multiple of 32 for the file, and suit the kernels for speed. These are two rules.
# - The rivals of a cut are weights in fewer bits, the cache in 8 bits, and 8 bits throughout. Put them into the table.
#
# **On Monday:** write down what your users wait for and how many of them there are at once. Keep the cache in 8 bits if you serve
# many. Then count bytes and operations of a cut *before* you make it, and time it in your own engine, in turns.
#
# **Next:** lesson 11 asks what a cut takes besides nats; lesson 14 makes a small model, and asks again what it is worth.
#
# ## References
#
# - Williams et al. 2009, *Roofline: An Insightful Visual Performance Model*, doi 10.1145/1498765.1498785
# - Pope et al. 2022, *Efficiently Scaling Transformer Inference*, arXiv 2211.05102
# - Kwon et al. 2023, *Efficient Memory Management for Large Language Model Serving with PagedAttention* (vLLM), arXiv 2309.06180
# - Liu et al. 2024, *KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache*, arXiv 2402.02750
# - Gerganov and others, *llama.cpp*, https://github.com/ggml-org/llama.cpp
