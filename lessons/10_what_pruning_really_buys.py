# ---
# jupyter:
#   course:
#     title: "What pruning buys: time, memory, and requests served at once"
#     prerequisites: lessons 03 to 05 (the cuts, the cache)
#     assets: [smollm2]
#     concepts: [prefill and decode, price of a layer, bandwidth, roofline, taking turns, A/A, GGUF, block of 32, requests at once, order of work]
#     timed: true
# ---

# %% [markdown]
# ## The question
#
# You took a third of the blocks out, or as many bytes out of the MLPs. What got faster, and why less than you hoped?
#
# **Answer.** A token takes its bytes and a fixed price for each layer that runs. Narrower matrices save only bytes, so a slow framework
# gains less from them. On a full server, freed memory can count more: it serves more requests.

# %% [markdown] tags=["notes"]
# **The point:** a cut is faster where it saves what somebody waits for, and a framework that charges for every layer waits for layers.
#
# **Usual questions:** "Why is a quarter off not a quarter faster?" Let them find what the rest of the time is spent on. "Shall we
# prune or quantize?" Both, in the order of work, and bits first where bytes are all that is asked for.
#
# **Wrong turns:** reading a speed-up without the whole model's second run beside it; taking an estimate for a ceiling; timing at a
# batch of one what will serve many.
#
# **At the end you have** a clock that you can believe, a layer's price read off by hand, and a count of the requests that a cut makes
# room for.

# %% tags=["install"]

# %%
import math
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from transformers import DynamicCache

from course_utils.lessons import claim, diagrams, here
from course_utils.models import with_interval
from course_utils.release import engine
from course_utils.support import mark, show, start, style

session = start("10")
style()
data = files("course_utils") / "data"
token_times = pd.read_json(data / "token_times.json")  # of SmolLM2-135M

# %%
_, panels = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
programs = token_times.groupby("program")
for panel, (program, rows) in zip(panels, programs, strict=True):
    for place, row in enumerate(rows.itertuples()):
        look = {"color": mark(row.part)["color"], "edgecolor": "none"}
        ends = [[row.milliseconds - row.low], [row.high - row.milliseconds]]
        panel.bar(place, row.floor, **look)
        look |= {"bottom": row.floor, "yerr": ends, "capsize": 5, "alpha": 0.35}
        panel.bar(place, row.milliseconds - row.floor, **look)
    names = ["\n".join(name.rsplit(" ", 1)) for name in rows["name"]]
    panel.set_xticks(range(len(rows)), names, fontsize="small")
    panel.set_title(program)
    panel.grid(axis="x", visible=False)
panels[0].set_ylabel("milliseconds a token")
show(
    "Two panels of bars, milliseconds a token in PyTorch and in llama.cpp: the "
    "whole model, the whole model again, fewer blocks, narrower MLPs. In PyTorch "
    "the model with fewer blocks is well ahead of the narrower one; in llama.cpp, "
    "where most of each bar is its dark foot, by little."
)

# %% [markdown]
# *Two cuts of the same bytes, beside the whole model timed twice, with 95 % intervals. The dark foot of a bar is what reading its bytes
# takes at least.*
#
# ## A price for each layer
#
# To write one token, a model reads every weight once and computes with it. A machine reads $r$ bytes a second, its **bandwidth**, and does
# $p$ operations. Both go on at the same time, so $B$ bytes and $O$ operations take at least the longer of the two, the **roofline**. And a
# program takes $f$ seconds for each of the $L$ layers (here: blocks) that run, however small:
#
# $$t = L f + \max(B / r, \; O / p)$$
#
# A toy: eight blocks of 20 MB and a head of 90. It loses two blocks, or **the same bytes** from its MLPs. A slow framework spends 2 ms on
# each block, a lean engine next to nothing; both read 10 GB a second, and arithmetic takes less time than that.
#
# **Predict before you run.** How much faster does each cut make each program?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In the engine × 1.19, both. In the framework the narrower model gains × 1.11 and the shorter one × 1.24, more than its bytes: the price
# of two blocks went with them.
#
# </details>

# %%
toy = {"whole": (8, 20), "two blocks fewer": (6, 20), "narrower MLPs": (8, 15)}
for program, price in (("slow framework", 2), ("lean engine", 0.002)):
    needed = {}
    for name, (layers, megabytes) in toy.items():
        needed[name] = layers * price + (layers * megabytes + 90) / 10
    whole = needed["whole"]
    told = [f"{n} {ms:.1f} ms, × {whole / ms:.2f}" for n, ms in needed.items()]
    print(f"{program}: {'; '.join(told)}")

# %% [markdown]
# ### Exercise 1 · ●○○ · 6 minutes
#
# Write `seconds(weights, tokens, layers, fixed, bandwidth, peak)`: what a pass takes that reads so many tokens at once. A weight has 16
# bits. It is read once a pass, and asks for two operations a token, a product and a sum.
#
# <details><summary>Hint</summary>
#
# Bytes don't depend on the tokens, operations do. Which of the arguments is $p$?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_seconds


# BEGIN SOLUTION
def seconds(weights, tokens, layers, fixed, bandwidth, peak):
    reading = 2 * weights / bandwidth
    computing = 2 * weights * tokens / peak
    return layers * fixed + max(reading, computing)


# END SOLUTION
# BEGIN STUB
# def seconds(weights, tokens, layers, fixed, bandwidth, peak):
#     ...  # your code
# END STUB
check_seconds(seconds)

# %% [markdown]
# ## Who waits for what

# %%
diagrams.reading_and_generating()
show(
    "Two drawings side by side. Reading a prompt: six tokens go through one "
    "reading of all weights, and a cache is written. Generating: three passes "
    "below each other, and each reads all weights and the cache for one token."
)

# %% [markdown]
# *Reading a prompt is called* prefill, *writing the answer* decode. *Prompt tokens share one reading of the weights; each token of the
# answer pays for its own, and for the cache.* Each row below is another **bottleneck**:
#
# | somebody | waits for | what takes the time | a cut helps if it saves |
# |---|---|---|---|
# | hands in a long document | the first token (prefill) | arithmetic | operations |
# | chats alone | each next token (decode) | reading the weights | bytes of weights |
# | serves many long chats | each next token | reading the caches | bytes of cache |
# | uses a slow framework | anything | a price a layer | layers |
#
# ## A clock that can be believed
#
# Speeds are easily measured wrongly. The first run pays for what later ones find ready, a *cold start*. A machine gets warm, or busy. A GPU
# is still at work when Python has gone on. So:
#
# - Every model runs once before the clock counts, and all write equally many tokens, whatever they are.
# - The models **take turns**, in every other round in reverse order: what slows the machine meets all of them.
# - Times are divided *within* a round. The median over the rounds is reported.
# - The whole model runs a second time under another name, **A/A**: noise alone can go as far as this is from 1.

# %% [markdown]
# ### Exercise 2 · ●●○ · 9 minutes
#
# Write that clock. `calls` maps names to functions; the others are compared with the first. `clock()` tells the seconds, `finish()` waits
# until the device has done its work. Return for each name the median, over the rounds, of its seconds divided by the first one's.
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
# ## Two cuts of the same bytes
#
# `time_interleaved` is that clock, with an interval of the median. *Which* blocks or neurons go is no matter for time: here the middle
# blocks and the last neurons.

# %%
from course_utils.models import describe, load_model, variant
from course_utils.pruning import bypass_attention, prune_neurons, remove_blocks

base, tokenizer = load_model("llama", dtype=session.dtype)
architecture = describe(base)
total, full = architecture.num_blocks, architecture.intermediate_sizes[0]


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


def writing(model, texts=1, context=16, tokens=3):
    """A call that writes some forced tokens behind each of some texts."""
    cache = DynamicCache(config=model.config)
    ids = torch.full((texts, 1), 7, device=model.device)
    given = {describe(model).cache_keyword: cache, "use_cache": True}

    @torch.inference_mode()
    def step():
        model(ids, logits_to_keep=1, **given)

    step()  # its keys and values stand for a whole context
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys = layer.keys.repeat(1, 1, context, 1)
            layer.values = layer.values.repeat(1, 1, context, 1)
    return lambda: [step() for _ in range(tokens)]


# %% [markdown]
# **Predict before you run.** A third of the blocks, or as many bytes from all MLPs: which model writes faster in PyTorch, and by how much?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The short one: 0.72 of the whole model's time, as its bytes promise (0.74). The narrow one takes 0.89, and its bytes promise 0.73.
#
# So it takes 1.24 times the short one's time, with its bytes. A/A reaches from 0.98 to 1.08.
#
# </details>

# %% tags=["timed"]
from course_utils.measuring import time_interleaved
from course_utils.models import model_size


def megabytes(model):
    return model_size(model).bytes / 1e6


FEWER = max(1, total // 3)
short = cut(blocks=FEWER)
saved = megabytes(base) - megabytes(short)
a_neuron = (megabytes(base) - megabytes(cut(width=full // 2))) / (full - full // 2)
WIDTH = max(32, math.floor((full - saved / a_neuron) / 32) * 32)  # a few bytes less
narrow = cut(width=WIDTH)
SHORT, NARROW = f"{total - FEWER} of {total} blocks", f"MLPs of {WIDTH}"
AGAIN = "whole, again"
arms = {"whole": base, AGAIN: variant(base), SHORT: short, NARROW: narrow}
timed = time_interleaved({n: writing(m) for n, m in arms.items()}, rounds=15)
timed = timed.set_index("name")
ms = 1000 / 3 * timed.seconds["whole"] * timed.ratio  # of one token
size = pd.Series({name: megabytes(model) for name, model in arms.items()})
behind = timed.ratio[NARROW] / timed.ratio[SHORT]
print(f"{NARROW}: {behind:.2f} times the time of {SHORT}, with its bytes")
here("In PyTorch the narrow model takes longer than the short one.", [behind - 1])
spans = timed[["ratio", "ci_low", "ci_high"]].values
pd.DataFrame(
    {
        "MB": size.round(1),
        "ms a token": ms.round(1),
        "× whole's time": [with_interval(*span) for span in spans],
        "by bytes": (size / size["whole"]).round(2),
    }
)

# %% [markdown]
# ## How much of it is physics?
#
# The roofline is a floor, and can be measured: the bandwidth by the sum of a long vector, the peak by a product of matrices.
#
# **Predict before you run.** Which share of a PyTorch token is that floor? And which of the two is longer for a prompt of 128 tokens?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 21%. For a prompt of 128 tokens the operations take longer, 79.0 ms beside 9.0 for the bytes.
#
# </details>

# %% tags=["timed"]
numbers = torch.ones(2**26, device=base.device)
square = torch.randn(1024, 1024, device=base.device).to(base.dtype)
head = describe(base).head
state = torch.randn(1, head.in_features, device=base.device).to(base.dtype)


@torch.inference_mode()
def fastest(call, laps=25):
    """Seconds of the best lap: what the machine can do."""
    seconds = []
    for _ in range(laps):
        start = time.perf_counter()
        call()
        if base.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


bandwidth = numbers.nbytes / fastest(numbers.sum)
peak = 2 * 1024**3 / fastest(lambda: square @ square)
rate = head.weight.nbytes / fastest(lambda: head(state)) / 1e9  # GB/s, or MB a ms
del numbers
print(f"bandwidth {bandwidth / 1e9:.0f} GB/s", end=", ")
print(f"{peak / 1e9:,.0f} GFLOP/s in {base.dtype}")
for tokens in (1, 128):
    reading = 1e9 * size["whole"] / bandwidth
    computing = 1000 * tokens * model_size(base).flops / peak
    print(f"{tokens} tokens: bytes {reading:.1f} ms, operations {computing:.1f} ms")
floor = 1e9 * size["whole"] / bandwidth
print(f"the floor is {floor / ms['whole']:.0%} of a token in PyTorch")

# %% [markdown]
# ## The price, by hand
#
# From two shapes the **price of a layer** can be read off. What one of the blocks that the short model lacks takes, less what its bytes
# take, is $f$. For the bytes we ask PyTorch itself: the head is one large matrix and no layer, so its time tells $r$ as this framework
# reads.
#
# The narrow model is the test: it pays every layer's price, as the whole does, and saves only its bytes' time. To beat is a **constant**
# that knows nothing of layers: the same bytes, so the same time as the short one.
#
# **Predict before you run.** Which comes nearer to what was measured?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The price: it says 38.1 ms and the constant 30.1, and 37.8 were measured. A block costs 0.78 ms whatever its size.
#
# </details>

# %% tags=["timed"]
a_block = (ms["whole"] - ms[SHORT]) / FEWER
fixed = a_block - saved / FEWER / rate
told = ms["whole"] - (size["whole"] - size[NARROW]) / rate
constant = ms[SHORT] * size[NARROW] / size[SHORT]
print(f"PyTorch reads the head at {rate:.1f} GB/s")
print(f"a block takes {a_block:.2f} ms, {fixed:.2f} of them whatever its size")
print(f"{NARROW}: by the price {told:.1f} ms, by the constant {constant:.1f} ms")
off = abs(constant - ms[NARROW]) - abs(told - ms[NARROW])
print(f"measured {ms[NARROW]:.1f} ms; all prices together {total * fixed:.1f} ms")
here("The price comes nearer than the constant.", [off])

# %% [markdown]
# Much of a token goes to layers as such: calls from Python, small operations, copies. No narrower matrix saves that.
#
# ## The same models as files
#
# People serve models in engines. llama.cpp (behind Ollama and LM Studio) reads one file, **GGUF**, in which each matrix has a format. In
# F16 a weight takes two bytes. In Q8_0 a **block of 32** neighbouring weights of a row shares a scale and takes 34 bytes, in Q4_0 it
# takes 18.
#
# A row that isn't whole blocks long can't be stored so, and falls back to two bytes a weight. The rows of the down-projection are as long
# as the MLP is wide, and a fifth off an MLP is seldom a multiple of 32.
#
# **Predict before you run.** In Q8_0, how large is the file of such an **odd width**, beside that of the *whole* model?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Larger: 147.8 MB beside 144.8. The even width next to it, with more neurons, takes 130.7 MB.
#
# </details>

# %%
from course_utils.release import export_gguf, plan_gguf

EVEN = math.ceil(0.8 * full / 64) * 64
ODD = int(0.8 * full) | 1  # odd, if it isn't
UNEVEN = f"MLPs of {ODD}"
odd = cut(width=ODD)
planned = {}
stored = {"whole": base, f"MLPs of {EVEN}": cut(width=EVEN), UNEVEN: odd}
for name, model in stored.items():
    parts = plan_gguf(model, tokenizer, quantization="Q8_0")
    planned[name] = parts.bytes.sum() / 1e6
print("Q8_0:", ", ".join(f"{name} {mb:.1f} MB" for name, mb in planned.items()))
larger = planned[UNEVEN] - planned["whole"]
here("The odd width's file is larger than the whole model's.", [larger])
smaller = planned["whole"] - planned[f"MLPs of {EVEN}"]
claim("The even width's file is smaller.", [smaller])

# %% [markdown]
# ### Exercise 3 · ●●○ · 7 minutes
#
# A model has `blocks` GLUs over `hidden` channels (a multiple of 32); everything else takes `others` bytes. Write `width_for(hidden,
# blocks, others, budget)`: the largest MLP width whose Q8_0 file fits into `budget` bytes. gate and up are [width, hidden], down is
# [hidden, width]. (Budgets leave room for hundreds of neurons.)
#
# <details><summary>Hint</summary>
#
# If the width is a multiple of 32, all three matrices take 34/32 bytes a weight. Is any other width worth a look?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_width_for


# BEGIN SOLUTION
def width_for(hidden, blocks, others, budget):
    a_neuron = 3 * hidden * 34 / 32  # a row of gate, a row of up, a column of down
    return int((budget - others) / blocks / a_neuron) // 32 * 32


# END SOLUTION
# BEGIN STUB
# def width_for(hidden, blocks, others, budget):
#     ...  # your code
# END STUB
check_width_for(width_for)

# %% [markdown]
# ## In an engine
#
# Now in llama.cpp: the two cuts and the odd width in F16, and their rival, the *whole* model in 8 and in 4 bits. The engine is an optional
# extra; without it the cell says how to get it.
#
# **Predict before you run.** Is the narrow model behind here, too? And who writes faster, a third cut off, or the whole in 4 bits?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Hardly, if at all: × 1.33 beside × 1.32 here, and a little behind in the record above. Most of a token is bytes, 10.2 ms with a floor
# of 9.0.
#
# The whole model in 4 bits writes × 1.92 as fast; but it reads a prompt hardly faster, where the cuts gain most. The odd width reads more
# slowly than the whole model, × 0.85, with a fifth of its neurons gone.
#
# </details>

# %% tags=["timed"]
FORMATS = {"whole, 8 bits": "Q8_0", "whole, 4 bits": "Q4_0"}
shown = {"whole": base, SHORT: short, NARROW: narrow, UNEVEN: odd}
shown |= dict.fromkeys(FORMATS, base)
why = engine.problem() or "Files of a model as large as this one take long."
engine_table = f"Skipped. {why}"
if engine.available() and size["whole"] < 600:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        stored = {}
        for name, model in shown.items():
            path = Path(folder) / f"{len(stored)}.gguf"
            kind = {"quantization": FORMATS.get(name, "F16")}
            stored[name] = export_gguf(model, tokenizer, path, **kind)
        stored[AGAIN] = stored["whole"]  # the same file under another name
        sizes = {"prompt_tokens": 64, "new_tokens": 4}
        speed = engine.measure_speed(stored, rounds=9, **sizes)
        on_disk = {n: path.stat().st_size / 1e6 for n, path in stored.items()}
    speed = speed.set_index(["phase", "model"])
    decode, prefill = speed.loc["decode"], speed.loc["prefill"]
    a_token = 1000 / decode.tokens_per_second["whole"]
    print(f"whole: {a_token:.1f} ms a token, its floor {floor:.1f} ms")
    reads = prefill.speedup
    here("The odd width reads a prompt no faster.", [1.05 - reads[UNEVEN]])
    columns, counted = {}, {"generating": "bytes", "reading": "operations"}
    for name, rows in (("generating", decode), ("reading", prefill)):
        spans = rows[["speedup", "ci_low", "ci_high"]].values
        columns[f"{name}, × whole"] = [with_interval(*span) for span in spans]
        columns[f"by {counted[name]}"] = rows.estimate.values
    engine_table = pd.DataFrame({"MB": on_disk} | columns, index=decode.index)
    order = [AGAIN, *list(shown)[1:]]
    engine_table = engine_table.round({"MB": 1}).round(2).loc[order]
engine_table

# %% [markdown]
# ## What freed memory buys
#
# A server writes for many at once. All requests of a batch share one reading of the weights and one price of the layers; each brings a
# cache of its own. So how many are served **at once** is a question of memory:
#
# $$n = \lfloor (M - W) / (T c) \rfloor$$
#
# for $M$ bytes of memory, $W$ of weights, contexts of $T$ tokens and $c$ bytes of cache a token: keys and values of each KV head (lesson
# 05), in each layer that has an attention.

# %% [markdown]
# ### Exercise 4 · ●●○ · 6 minutes
#
# Write `requests(memory, weights, tokens, layers, removed, heads, kv_heads, size)`: how many contexts of `tokens` fit at once. `memory` and
# `weights` are bytes. Of `layers` layers, `removed` have lost their attention; a head's key is `size` numbers of 16 bits.
#
# <details><summary>Hint</summary>
#
# Start with the bytes that one token leaves in one layer. One of the arguments isn't needed.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_requests


# BEGIN SOLUTION
def requests(memory, weights, tokens, layers, removed, heads, kv_heads, size):
    a_token = 2 * (layers - removed) * kv_heads * size * 2  # keys and values
    return (memory - weights) // (tokens * a_token)


# END SOLUTION
# BEGIN STUB
# def requests(memory, weights, tokens, layers, removed, heads, kv_heads, size):
#     ...  # your code
# END STUB
check_requests(requests)

# %% [markdown]
# ## Four ways to spend the same memory
#
# Let there be memory for the whole model and five and a half contexts of 1,024 tokens. The cuts are milder now: a fifth of the blocks or of
# the attentions, or a sixth of the neurons.
#
# **Predict before you run.** The attentions that go weigh next to nothing. How many more requests than the whole model's five do they make
# room for? And 8 bits, with every layer kept?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 7 instead of 5. Fewer blocks make it 9, and 8 bits 10, with nothing cut.
#
# </details>

# %%
from course_utils.measuring import bytes_held, kv_bytes_per_token

CONTEXT, FIFTH = 1024, max(1, round(total / 5))
cuts = {
    "whole": base,
    f"width {EVEN}": cut(width=EVEN),
    f"{FIFTH} attentions fewer": cut(attentions=FIFTH),
    f"{FIFTH} blocks fewer": cut(blocks=FIFTH),
}
PARTS = dict(zip(cuts, ("whole", "neurons", "attentions", "blocks"), strict=True))
kilobytes = {name: kv_bytes_per_token(model) / 1e3 for name, model in cuts.items()}
weights = {name: megabytes(model) for name, model in cuts.items()}
BITS = "whole, 8 bits"
kilobytes[BITS], weights[BITS] = kilobytes["whole"], planned["whole"]


def at_once(name, room, context):
    """How many requests fit into so many MB."""
    return int((room - weights[name]) // (context * kilobytes[name] / 1e3))


room = weights["whole"] + 5.5 * CONTEXT * kilobytes["whole"] / 1e3
served = {name: at_once(name, room, CONTEXT) for name in weights}
for name, model in cuts.items():
    fits = bytes_held(model, tokens=CONTEXT, batch_size=served[name])
    too_many = bytes_held(model, tokens=CONTEXT, batch_size=served[name] + 1)
    assert fits <= 1e6 * room < too_many
print(f"room for contexts of {CONTEXT:,} tokens: {room:.0f} MB")
uncut, thin, calm, few, bits = served.values()
more = [thin - uncut + 0.5, calm - thin, few - calm + 0.5]
claim("Fewer attentions serve more than width, fewer blocks no fewer.", more)
claim(
    "In 8 bits the whole model serves more than any cut.",
    [bits - max(thin, calm, few)],
)
sizes = {"weights, MB": weights, "cache, kB a token": kilobytes}
pd.DataFrame(sizes | {"requests": served}).round(1)

# %% [markdown]
# Now each writes with its own number of requests, again in turns.
#
# **Predict before you run.** Which cuts gain more tokens a second with a full memory than alone, with one short text?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Those that drop cache: fewer attentions gain × 1.33 (alone × 1.06), fewer blocks × 1.47 (alone × 1.21). Narrower MLPs gain
# as little as alone.
#
# </details>

# %% tags=["timed"]
cuts[AGAIN], served[AGAIN], gains = variant(base), served["whole"], {}
alone = dict.fromkeys(cuts, 1)
settings = {"one text": (alone, 16), "full memory": (served, CONTEXT)}
for name, (texts, context) in settings.items():
    calls = {n: writing(m, texts[n], context, tokens=1) for n, m in cuts.items()}
    laps = time_interleaved(calls, rounds=13).set_index("name")
    more = pd.Series({n: texts[n] / texts["whole"] for n in cuts})
    ends = {"gain": laps.ratio, "low": laps.ci_high, "high": laps.ci_low}
    gains[name] = pd.DataFrame({end: more / ratio for end, ratio in ends.items()})
    told = [f"{n} × {with_interval(*gains[name].loc[n])}" for n in list(cuts)[1:]]
    print(f"{name}: {', '.join(told)}")
    calls.clear()
more = gains["full memory"].gain - gains["one text"].gain
saving = [name for name, kb in kilobytes.items() if kb < kilobytes["whole"]]
here("With a full memory the cuts that save cache gain more.", more[saving])

# %%
_, ax = plt.subplots(figsize=(9, 4), layout="constrained")
for place, frame in enumerate(gains.values()):
    for number, (cut_name, part) in enumerate(PARTS.items()):
        row = frame.loc[cut_name if number else AGAIN]
        label = cut_name if number else AGAIN
        look = mark(part) | {"label": None if place else label, "markersize": 11}
        ends = [[row.gain - row.low], [row.high - row.gain]]
        place_of = place + 0.12 * number - 0.18
        ax.errorbar(place_of, row.gain, yerr=ends, capsize=5, **look)
ax.set_xticks(range(len(gains)), gains)
ax.set(ylabel="tokens a second, × whole", xlim=(-0.5, 1.5), ylim=(0, None))
ax.set_title("Alone, and with the memory full of requests")
ax.legend(loc="lower center", ncols=2)
show(
    "Two groups of four dots with intervals, tokens a second in units of the "
    "whole model: the whole model again and three cuts, alone with one text, and "
    "with as many requests as fit. Fewer blocks and fewer attentions stand higher "
    "in the second group."
)

# %% [markdown]
# *Each mark has its 95 % interval. The star is the whole model, timed a second time.*
#
# ## A server, and an 8B
#
# A real server spends its memory in the same way. vLLM, on the two cores of the saved run, was given one gibibyte for the cache; the table
# is on record (`experiments/serve_in_vllm.py` says how to repeat it). *Counted* is what the shapes say; *waiting* are requests handed in at
# once.

# %%
record = pd.read_json(data / "served_in_vllm.json")  # of SmolLM2-135M
models = record.groupby("model", sort=False).first()
rates = record.pivot(index="model", columns="waiting", values="tokens_per_second")
rates = rates.loc[models.index].round().astype(int)
rates.columns = [f"tokens/s, {n} waiting" for n in rates.columns]
counted = (models.layers["whole"] / models.layers).map("× {:.2f}".format)
reported = models.cache_tokens / models.cache_tokens["whole"]
rates.insert(0, "cache, tokens", models.cache_tokens.map("{:,}".format))
off = (reported - models.layers["whole"] / models.layers).abs()
claim("vLLM's cache holds what the count from layers says.", 0.02 - off)
reported = reported.map("× {:.2f}".format)
rates.insert(1, "reported, counted", reported + ", " + counted)
rates

# %% [markdown]
# As counted; and many at once write several times the tokens of one, since they share each reading. Of the speeds believe only large
# differences: see the whole model's two rows.
#
# For a larger model the count can be made from shapes alone: a Llama-3.1-8B on a card that leaves 22 GB.
#
# **Predict before you run.** Which makes most room for cache: 8 attentions fewer, a fifth of the weights by width, 7 blocks fewer, or the
# whole model in 4 bits?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The bits: × 2.94. Then the blocks, × 1.94, the narrow MLPs, × 1.54, and the attentions, × 1.48, for a twenty-fourth of the weights.
#
# </details>

# %%
from transformers import LlamaConfig, LlamaForCausalLM

shape = {"vocab_size": 128_256, "hidden_size": 4096, "num_hidden_layers": 32}
shape |= {"intermediate_size": 14_336, "num_key_value_heads": 8}
with torch.device("meta"):  # shapes, and no memory
    large = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
a_layer = large.model.layers[0]


def gigabytes(module):
    return sum(weight.nbytes for weight in module.parameters()) / 1e9


whole = gigabytes(large)
block, attention = gigabytes(a_layer), gigabytes(a_layer.self_attn)
ways = {
    "whole": (whole, 32),
    "8 attentions fewer": (whole - 8 * attention, 24),
    "a fifth by width": (0.8 * whole, 32),
    "7 blocks fewer": (whole - 7 * block, 25),
    "whole in 4 bits": (whole * 18 / 64, 32),
}
a_token = kv_bytes_per_token(large) / 1e9
tokens = {n: (22 - gb) / (a_token * kept / 32) for n, (gb, kept) in ways.items()}
for name, count in tokens.items():
    gone = 1 - ways[name][0] / whole
    print(f"{name}: weights {gone:.0%} less, {count:,.0f} tokens", end=", ")
    print(f"× {count / tokens['whole']:.2f}")
whole, calm, thin, few, bits = tokens.values()
more = [bits / few - 1, few / thin - 1, calm / whole - 1.4]
claim("On an 8B, 4 bits make more room than blocks, and these than width.", more)

# %% [markdown]
# So "prune for memory" holds where the cache outgrows the weights, or where the bits are spent already.
#
# ## The order of work
#
# Bits and cuts go together, in one order: **cut, solve, distil, then store in fewer bits.** Solving (the library's `refit`) and training
# (lesson 07) need weights that can move a little, so rounding comes last. Which one first depends on what is waited for:
#
# - *Disk and download*: fewer bits; then widths that are multiples of 32.
# - *The next token, for one*: fewer bits, in an engine that has kernels for them; in a slow framework fewer layers.
# - *The first token*: fewer operations, by cuts. Fewer bits save none.
# - *Many long chats*: fewer bits while weights fill the memory; then blocks, attentions or KV heads (lesson 11), whose cache goes too.
#
# Scattered zeros help none of them without special kernels, and vLLM took out its own in 2026.

# %% [markdown]
# ### Exercise 5 · ●●● · 12 minutes
#
# A server has `memory` MB for contexts of 2,048 tokens, and the whole model serves four. Find a cut that serves **seven**, with at most 6 %
# of the weights gone.
#
# Before you time it, write down as `predicted` how many times as many tokens a second it will write. Then time one step of each model with
# its own number of requests. You are right if the interval comes within 20 % of your prediction.
#
# <details><summary>Hint</summary>
#
# Which part weighs little and keeps as much cache as any? `cut(…)` makes the model, `writing(model, texts, 2048, tokens=1)` the call.
# What takes a step longer, and is it the same for both?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_10 import check_plan

memory = weights["whole"] + 4.9 * 2048 * kilobytes["whole"] / 1e3

# BEGIN SOLUTION
mine = cut(attentions=math.ceil(total * 4 / 15))  # 8 of 30: 5 % of the weights
predicted = 1.6  # 7 / 4 of the tokens, in steps a tenth longer: more cache to read
steps = {"whole": writing(base, 4, 2048, tokens=1)}
steps["mine"] = writing(mine, 7, 2048, tokens=1)
timed_steps = time_interleaved(steps, rounds=9)
# END SOLUTION
# BEGIN STUB
# mine = ...  # a model
# predicted = ...  # times as many tokens a second
# timed_steps = ...  # time_interleaved(…), the whole model first
# END STUB
check_plan(mine, predicted, timed_steps, base, 1e6 * memory, 2048)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Two cuts of a model have the same bytes. In PyTorch the shorter one writes much faster, in llama.cpp hardly. Why?
#
# - [ ] llama.cpp computes in F16, which makes wide and narrow matrices look alike.
#   > The number format changes the bytes of both cuts by the same factor.
# - [ ] PyTorch reads the narrow matrices more slowly than the wide ones.
#   > A little, perhaps; but most of its time isn't spent on reading at all.
# - [x] PyTorch spends a price on each layer, and the shorter model has fewer.
#   > An engine has hardly any such price, so there bytes decide.

# %% [markdown] tags=["quiz"]
# A cut takes away six attentions, a twenty-fifth of the weights. For whom is it worth most?
#
# - [x] For a server with a full memory, since each request keeps less cache.
#   > What it drops is cache in every request, and weights only once.
# - [ ] For a single user, since each token has fewer weights to be read.
#   > A twenty-fifth fewer bytes, and six prices: a gain, but the smaller one.
# - [ ] For a long download, since its file holds no keys and values any more.
#   > No file holds keys and values. It gets smaller by a twenty-fifth.

# %% [markdown]
# ## Take-aways
#
# - Ask what is waited for: operations, bytes of weights or cache, or a price a layer. Each cut saves some of them.
# - Warm up, take turns, and time the whole model twice. A speed-up belongs to its program.
# - Plan the file before you prune: an odd width can make it larger.
# - Freed memory is served requests. Cut, solve, distil, then store in fewer bits.
#
# **The story so far:** was it the right buy? For speed, ask what is waited for, and what fewer bits would do. **Next:** lesson 11 makes a
# small model, and asks it again.
#
# ## References
#
# - Williams et al. 2009, *Roofline: An Insightful Visual Performance Model*, doi 10.1145/1498765.1498785
# - Pope et al. 2022, *Efficiently Scaling Transformer Inference*, arXiv 2211.05102
# - Kwon et al. 2023, *Efficient Memory Management for Large Language Model Serving with PagedAttention* (vLLM), arXiv 2309.06180
# - Gerganov and others, *llama.cpp*, https://github.com/ggml-org/llama.cpp
