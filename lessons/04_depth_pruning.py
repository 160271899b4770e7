# ---
# jupyter:
#   course:
#     title: "Depth pruning: which blocks can go together?"
#     prerequisites: lesson 01 (pruned equals masked, nineteen random cuts), lesson 03 (residual stream, hooks)
#     assets: [smollm2, speeches, texts]
#     concepts: [depth pruning, KV cache, block influence, single harm, removed equals skipped, leave-one-out, calibration draws, harms don't add]
# ---

# %% [markdown]
# ## The question
#
# A language model still runs when whole blocks are taken out of it. Which of them can go together?
#
# **Answer.** Only leaving them out together tells. Near the end, six neighbours make this model worse than guessing, which
# their single harms don't announce. In the middle, six cost less than one of them alone.

# %% [markdown] tags=["notes"]
# **The point:** what a block is worth depends on which others are there. Any block can go and the model still runs, which
# proves nothing; single harms prove something about single blocks.
#
# **Let the room predict first:** six blocks, of which one alone costs two nats. What do the six cost?
#
# **Usual questions:** "Why not take the last ones?" They are what the head reads. "Fewer blocks or narrower MLPs?" Lessons 10 and
# 11 weigh them.
#
# **Wrong turns:** forgetting `layer_idx` (exercise 2, in pairs); a configuration that promises too many blocks gets random ones;
# adding up single harms.
#
# **At the end you have** a Llama with fewer blocks that writes the same with and without its cache, and a pair of blocks that is
# missed less than one of its two.

# %% tags=["install"]

# %%
import itertools
import math
import tempfile
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, relu
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import log_ticks, mark, read_record, show, start, style

session = start("04")
style()
record = read_record("leave_out").query("part != 'attention' and part != 'MLP'")
record = record.assign(layers=record.layers.map(tuple), size=record.layers.map(len))
record = record.set_index(["dtype", "text", "criterion", "size"]).sort_index()
guessing = math.log(49_152)  # nats a token, of the recorded SmolLM2-135M
TEXTS = ("speeches", "wiki")
arrow = {"arrowprops": {"width": 2, "color": mark("whole")["color"]}}


def recorded(criterion, size, text, dtype="bfloat16"):
    """A criterion's sets of so many blocks in the record; size 0 is the whole."""
    found = record.loc[[(dtype, text, criterion, size)]]
    return found.set_index("layers").sort_index()


# %%
looks = {
    "random": mark("random") | {"markersize": 12},
    "run": mark("leave-one-out") | {"label": "six neighbours", "fillstyle": "none"},
    "influence": mark("influence") | {"markersize": 11},
}
filled = mark("leave-one-out") | {"label": "… chosen on calibration text"}
_, panels = plt.subplots(1, 2, figsize=(13, 6), sharey=True, layout="constrained")
for panel, text in zip(panels, TEXTS, strict=True):
    harms = recorded("alone", 1, text).damage
    top = guessing - recorded("", 0, text).nats.item()
    for criterion, how in looks.items():
        found = recorded(criterion, 6, text)
        sums = [sum(harms[(block,)] for block in six) for six in found.index]
        panel.plot(sums, found.damage.clip(upper=top), linestyle="none", **how)
        for x, y in zip(sums, found.damage, strict=True):
            if y > top:
                panel.annotate("", (x, top * 1.25), (x, top), **arrow)
        if criterion == "run":
            often = found.calibrations.map(len).argmax()
            lowest = sums[often], found.damage.iloc[often]
            panel.plot(*lowest, linestyle="none", **filled)
    panel.axhline(top, **mark("guessing"))
    panel.axline((1, 1), (2, 2), linestyle=":", color=mark("whole")["color"])
    panel.set(xscale="log", yscale="log", xlim=(0.45, 6), ylim=(0.35, 10))
    panel.set(xlabel="sum of the six single harms (nats)", title=text)
    log_ticks(panel.xaxis)
    log_ticks(panel.yaxis)
panels[0].set_ylabel("harm of the six together (nats)\n1 nat: perplexity × 2.7")
panels[1].legend(fontsize="x-small", loc="lower right")
show(
    "Two panels, speeches and wiki, logarithmic axes in nats: the harm of six "
    "blocks left out together against the sum of their single harms. Runs of "
    "neighbours lie far below the diagonal and far above it, one is beyond "
    "guessing; random sets lie near it or above; the run chosen on calibration "
    "text lies lowest."
)

# %% [markdown]
# *Each point: six of 30 blocks left out. A single harm is what leaving out one of them costs. Grey: 19 random sets that spare two
# blocks at each end. On the dotted line, harms add up; the arrow is worse than guessing; influence comes below.*
#
# ## Blocks add to a stream

# %%
diagrams.residual_stream(blocks=6, removed=[3], cached=True)
show(
    "The residual stream runs from the embeddings to the head. Each of six blocks "
    "reads from it, adds to it, and has a drawer for keys and values. Block 3 is "
    "crossed out and has no drawer; the drawers behind it are numbered anew."
)

# %% [markdown]
# A block adds to the residual stream: $x \leftarrow x + \mathrm{block}(x)$. Take one out and the stream runs on. No shape
# changes, so *any* set of blocks can go. This is **depth pruning**.
#
# **KV cache.** To write a token, attention needs the keys and values of all tokens before it. So that they aren't computed anew
# each time, a cache keeps them, in a drawer for each block. A block finds its drawer by its number, `layer_idx`.
#
# **Block influence** is a cheap guess at harm: how far does a block turn the stream, on average over tokens $t$?
#
# $$\mathrm{influence}_b = 1 - \frac{1}{T} \sum_t \cos(x_t,\; x_t + \mathrm{block}_b(x_t))$$

# %% [markdown]
# ### Exercise 1 · ●○○ · 4 minutes
#
# Write the influence of one block from what entered and what left it, both [rows, length, hidden], and the mask [rows,
# length], which is 1 for real tokens and 0 for padding. Return one number: the mean over **all real tokens** of one minus
# the cosine.
#
# <details><summary>Hint</summary>
#
# `cosine_similarity(before, after, dim=-1)` gives one cosine a token. Select with `mask.bool()` before you average.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_block_influence


# BEGIN SOLUTION
def influence_of(before, after, mask):
    real = mask.bool()
    cosines = cosine_similarity(before[real].float(), after[real].float(), dim=-1)
    return (1 - cosines).mean()


# END SOLUTION
# BEGIN STUB
# def influence_of(before, after, mask):
#     ...  # your code
# END STUB
check_block_influence(influence_of)

# %% [markdown]
# ## Alone and together
#
# A stream of five numbers, and four blocks. Block 0 adds a loud vector, block 1 takes the same vector away again. Blocks 2 and
# 3 do the same job: each fills the last number up to 3, if that is still needed.
#
# **Harm** is here how far the end of the stream moves when blocks are left out.
#
# **Predict before you run.** What do blocks 0 and 1 cost together, and 2 and 3? Whose influence is exactly 0, and is it useless?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Blocks 0 and 1 have a single harm of 4.0 each, and none together: one *undoes* the other. Either of blocks 2 and 3 can go for
# nothing, both cost 2.0: one *stands in* for the other. Block 3's influence is exactly 0: useless, while block 2 is there.
#
# </details>


# %%
def fill(x):
    return torch.tensor([0, 0, 0, 0, 1.0]) * relu(3 - x[-1])


loud = torch.tensor([2.0, -2, 2, 2, 0])
toy = [lambda x: loud, lambda x: -loud, fill, fill]


def stream(gone=()):
    """The states before each toy block and after the last one."""
    states = [torch.tensor([2.0, 1, 0, -1, 1])]
    for number, block in enumerate(toy):
        added = 0 if number in gone else block(states[-1])
        states.append(states[-1] + added)
    return torch.stack(states)


states, rows = stream(), {}
turned = 1 - cosine_similarity(states[:-1], states[1:], dim=-1)
print("influence:", [round(abs(value), 3) for value in turned.tolist()])
harm = [(stream([i])[-1] - states[-1]).norm().item() for i in range(4)]
for gone in [(0, 1), (2, 3), (0, 2), (1, 3)]:
    together = (stream(gone)[-1] - states[-1]).norm().item()
    one, other = (harm[block] for block in gone)
    values = {"first alone": one, "second alone": other, "together": together}
    rows["blocks {} and {}".format(*gone)] = values
pd.DataFrame(rows).T.round(1)

# %% [markdown]
# ## A real Llama
#
# How do we know that a block is out? Lesson 01 had *pruned equals masked*. Here it is **removed equals skipped**: the block stays,
# and a hook replaces its output by its input.

# %%
from course_utils.models import describe, load_model, variant
from course_utils.pruning import block_importance, remove_blocks
from course_utils.support import safe_dtype
from course_utils.text import further_rows, judging_rows, token_blocks

dtype = safe_dtype(session.dtype)
base, tokenizer = load_model("llama", dtype=dtype)
total = describe(base).num_blocks
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
choosing = pool.sample(80, seed=session.seed)[:16]  # the first of five draws
texts = judging_rows(tokenizer, draw=session.seed)


@torch.no_grad()
def block_influence(model, rows):
    """How far each block turns the stream, a mean over all tokens of the rows."""
    found = []

    def look(block, inputs, output):
        cosines = cosine_similarity(inputs[0].float(), output.float(), dim=-1)
        found.append(1 - cosines.mean().item())

    hooks = [block.register_forward_hook(look) for block in model.model.layers]
    model.model(rows.input_ids.to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.tensor(found)


influence = block_influence(base, choosing)
library = block_importance(base, choosing.batches(16))
torch.testing.assert_close(influence, library, atol=1e-4, rtol=1e-3)
order = influence.argsort(stable=True).tolist()
TENTH, FIFTH = max(2, round(total / 10)), max(2, round(total / 5))
by_influence = sorted(order[:TENTH])
print(f"{total} blocks; the library's influences agree")
print(f"the {TENTH} of least influence: {by_influence}")


# %%
@contextmanager
def skipping(model, blocks):
    """For a while, these blocks of a Llama hand on what they are given."""

    def pass_on(block, inputs, output):
        return inputs[0]

    parts = [model.model.layers[number] for number in blocks]
    hooks = [block.register_forward_hook(pass_on) for block in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


exact = variant(base).float()  # float32: rounding can't hide a mistake
removed = variant(exact)
report = remove_blocks(removed, by_influence)
ids = choosing.input_ids[:2, :16].to(base.device)
with torch.no_grad(), skipping(exact, by_influence):
    skipped = exact(ids).logits
with torch.no_grad():
    difference = (removed(ids).logits - skipped).abs().max()
    changed = (exact(ids).logits - skipped).abs().max()
assert difference < 1e-3 * changed
print(f"removed against skipped: {difference:.1e}")
print(f"skipped against whole:   {changed:.1e}")
print(report)
del exact, removed

# %% [markdown]
# ## A block has a number
#
# Three things belong to a block's place, not to its weights: where it stands in the list of blocks, its `self_attn.layer_idx`, and
# `num_hidden_layers` in the configuration, which tells whoever builds the model again. `remove_blocks` sets them all.
#
# A tiny Llama with 5 blocks loses block 0, in four versions: nothing forgotten, an old `layer_idx`, an old `num_hidden_layers`, both. Each
# gets four tests: it reads at once without a cache; it reads token by token with one; it generates, with a cache as without; it is saved,
# and reloaded by plain transformers.
#
# **Predict before you run.** Which versions fail, in which tests, and do they *say* so?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# All pass the first test, the one that everybody runs. With an old `layer_idx` two tests stop with an error: loud, and lucky. With an old
# `num_hidden_layers` the reload is silently wrong: it fills the missing block with random weights. With both forgotten two tests are
# silently wrong, and `generate` doesn't notice: there is a drawer for each old number, so nothing stops.
#
# </details>

# %%
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from course_utils.measuring import logits_one_by_one
from course_utils.models import tiny_llama

logging.set_verbosity_error()  # most logs scroll past the one that warns
tiny = tiny_llama(blocks=5)
few_ids = torch.arange(8)[None]


def reloaded(model):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def generated(model):
    """Whether ten tokens are the same with the cache and without."""
    options = {"max_new_tokens": 10, "do_sample": False}
    options["attention_mask"] = torch.ones_like(few_ids)
    cached = model.generate(few_ids, **options, use_cache=True)
    anew = model.generate(few_ids, **options, use_cache=False)
    return (cached == anew).float()


tests = {
    "at once": lambda model: model(few_ids, use_cache=False).logits,
    "token by token": lambda model: logits_one_by_one(model, few_ids),
    "generate": generated,
    "after reload": lambda model: reloaded(model)(few_ids).logits,
}


# %%
@torch.no_grad()
def judged(name, model):
    right = torch.ones(1, 18) if name == "generate" else expected
    try:
        outcome = tests[name](model)
    except Exception as error:  # the point of the table is which one
        return f"stops: {type(error).__name__}"
    agrees = torch.allclose(outcome, right, atol=1e-5)
    return "right" if agrees else "WRONG, no error"


with torch.no_grad(), skipping(tiny, [0]):
    expected = tests["at once"](tiny)
outcomes = {}
for forgotten in ("nothing", "layer_idx", "num_hidden_layers", "both"):
    careless = variant(tiny)
    remove_blocks(careless, [0])
    if forgotten in ("layer_idx", "both"):
        for place, block in enumerate(careless.model.layers):
            block.self_attn.layer_idx = place + 1  # as it was
    if forgotten in ("num_hidden_layers", "both"):
        careless.config.num_hidden_layers = 5
    outcomes[forgotten] = {name: judged(name, careless) for name in tests}
table = pd.DataFrame(outcomes).T.rename_axis("forgotten")
silent = table.eq("WRONG, no error").sum(axis=1)
for forgotten, count in silent.items():
    print(f"forgotten {forgotten}: {count} of 4 silently wrong")
as_told = [0.5 - abs(silent - [0, 0, 1, 2]).max()]
claim("Who forgets `num_hidden_layers` is told by no error.", as_told)
table

# %% [markdown]
# So test what you ship: token by token with the cache, *and* after a plain reload.

# %% [markdown]
# ### Exercise 2 · ●●○ · 9 minutes
#
# `take_out_with_bugs` looks right, and the model that it returns reads text without complaint. It is wrong in **two** ways, and one of them
# shows only when a cache is used. Find both, and write `take_out_blocks` without them. `gone` lists blocks of the model as it is given. It
# changes a Llama in place and returns it.
#
# <details><summary>Hint</summary>
#
# What does `del some_list[1]` do to the numbers of the entries behind it? And who else knows a block's number?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_take_out


def take_out_with_bugs(model, gone):
    for number in gone:
        del model.model.layers[number]
    model.config.num_hidden_layers = len(model.model.layers)
    return model


# BEGIN SOLUTION
def take_out_blocks(model, gone):
    blocks = enumerate(model.model.layers)  # old numbers, all at once
    kept = [block for number, block in blocks if number not in gone]
    for number, block in enumerate(kept):
        block.self_attn.layer_idx = number  # the cache's drawer
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


# END SOLUTION
# BEGIN STUB
# def take_out_blocks(model, gone):
#     ...  # your code
# END STUB
check_take_out(take_out_blocks)

# %% [markdown]
# ## One at a time
#
# A block's **single harm** is what leaving it out adds to the loss, in nats a token. **Leave-one-out** asks the model for it,
# block by block. It costs a run of the text for each block, where influence needs one run for all.

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# Write `leave_one_out(model, rows)`: a list with the harm of each block of a Llama, left out alone. The model is the same
# afterwards. `perplexity(model, rows).nll` is the loss in nats a token. The check tries it on a tiny Llama, and on two rows
# of text with the real one.
#
# <details><summary>Hint</summary>
#
# The whole model's loss comes first. Then, for each number, `with skipping(model, [number]):` measure again.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_leave_one_out
from course_utils.measuring import perplexity


# BEGIN SOLUTION
def leave_one_out(model, rows):
    complete, harms = perplexity(model, rows).nll, []
    for number in range(len(model.model.layers)):
        with skipping(model, [number]):
            harms.append(perplexity(model, rows).nll - complete)
    return harms


# END SOLUTION
# BEGIN STUB
# def leave_one_out(model, rows):
#     ...  # your code
# END STUB
check_leave_one_out(leave_one_out, base, choosing[:2])

# %% [markdown]
# ## What single blocks cost
#
# The library has the same. You measure on half of the choosing rows; the figure shows the record, on 48 rows of each text that
# choose nothing.
#
# **Predict before you run.** Where do the costly (*dear*) blocks stand: at the beginning, in the middle, at the end?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# At both ends, and, far above its neighbours, block 11. Influence takes none of them among its first nine.
#
# </details>

# %%
from course_utils.pruning import depth

half = choosing[:8]
whole = perplexity(base, half, batch_size=8).nll


def cost(*blocks):
    """Nats a token that leaving these out adds, on half of the choosing rows."""
    with skipping(base, blocks):
        return perplexity(base, half, batch_size=8).nll - whole


single = depth.leave_one_out(base, lambda: perplexity(base, half, batch_size=8).nll)
single = (single - whole).tolist()
assert math.isclose(cost(1), single[1], rel_tol=1e-3)
inside = range(2, total - 2)  # two blocks at each end are spared
dearest = max(inside, key=single.__getitem__)
ends = [block for block in range(total) if block not in inside]
middle = np.median([single[block] for block in inside])
print("at the ends:", ", ".join(f"{single[block]:.2f}" for block in ends), "nats")
print(f"dearest inside: block {dearest}, {single[dearest]:.2f} nats;", end=" ")
print(f"median inside {middle:.2f} nats")
dear = [single[block] - 2 * middle for block in (*ends, dearest)]
here(f"The ends and block {dearest} cost over twice the median.", dear)
for first in (TENTH, FIFTH, TENTH + FIFTH):
    print(f"dearest of influence's first {first}: ", end="")
    worst = max(single[block] for block in order[:first])
    print(f"{worst:.2f} nats")
claim("Influence spares the dearest block.", [single[dearest] / 2 - worst])

# %%
_, panels = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
for panel, text in zip(panels, TEXTS, strict=True):
    harms = recorded("alone", 1, text).damage
    top = guessing - recorded("", 0, text).nats.item()
    numbers = [number for (number,) in harms.index]
    low = harms.clip(upper=top)
    taken = list(recorded("influence", 3, text).index[0])
    panel.plot(numbers, low, linestyle="none", **mark("leave-one-out"))
    panel.plot(taken, low.iloc[taken], linestyle="none", **mark("influence"))
    for number in harms.index[harms > top]:
        panel.annotate("", (number[0], top * 1.3), (number[0], top), **arrow)
    panel.axhline(top, **mark("guessing"))
    panel.set(yscale="log", ylim=(0.05, 11), xlabel="block left out", title=text)
    log_ticks(panel.yaxis)
panels[0].set_ylabel("harm (nats a token)")
panels[1].legend(fontsize="small", loc="upper right")
show(
    "Harm of each block left out alone, on a logarithmic axis, for speeches and "
    "wiki: very high at the first blocks, high at the last, low between, with one "
    "peak in the middle; block 0 is beyond guessing. Influence takes low ones."
)

# %% [markdown]
# *Single harms in the record; diamonds: the three that influence takes; arrow: worse than guessing.* Most of the middle is cheap, **one by
# one**.
#
# ## Which text chose?
#
# Another calibration text, another choice? The record has five **draws of the calibration text**, 16 rows each. Each draw chooses
# three blocks by influence, and three by leave-one-out. All sets are judged on the same 48 rows.
#
# Some rows are hard for every model, so two cuts are compared row by row. $d_r$ is one cut's loss minus the other's on row $r$. The mean of
# $d$, give or take two standard errors, is a **paired interval**: it holds the true mean in 95 of 100 experiments. Brackets show such
# intervals.
#
# **Predict before you run.** Which criterion will choose alike in all five draws? Is it the better one?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Influence: the same three in all draws. Leave-one-out found four different sets. Three of them are better than influence's by
# their whole intervals, on both texts; for one the interval on speeches reaches 1. A choice that never changes can be wrong each
# time.
#
# </details>

# %%
from course_utils.models import with_interval
from course_utils.support import ratio_interval

table, ones, better = {}, np.ones(48), []
rival = {text: recorded("influence", 3, text).rows.item() for text in TEXTS}
for criterion in ("influence", "leave-one-out"):
    sets = {text: recorded(criterion, 3, text) for text in TEXTS}
    for blocks, draws in sets["speeches"].calibrations.items():
        row = table[criterion, ", ".join(map(str, blocks))] = {}
        row["draws, of 5"] = str(len(draws))
        for text, found in sets.items():
            row[text] = f"{found.damage[blocks]:.2f}"
            d = found.rows[blocks] - rival[text]
            ratio, _, *ends = ratio_interval(d, ones)
            row[f"{text}, ÷ influence"] = with_interval(*np.exp([ratio, *ends]))
            better += [1 - math.exp(ratio)] if criterion != "influence" else []
claim("Each three that leave-one-out chose costs less than influence's.", better)
print("Three blocks: harm (nats), and perplexity ÷ that of influence's three")
pd.DataFrame(table).T

# %% [markdown]
# ## Six together
#
# Now a fifth of the model. Influence takes the six of least influence. Its rival leaves out *runs*: six neighbours at once, each
# run in turn, on the choosing rows.
#
# **Predict before you run.** Six runs hold block 11. In how many of them do the six cost less than block 11 alone? And which run
# is furthest above its sum?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In 4 of 6: blocks 9 to 14 cost 1.59 nats together, block 11 alone 2.09. Furthest above its sum is the last run, whose blocks cost
# little one by one: it is worse than guessing.
#
# </details>

# %%
starts = inside[: len(inside) - FIFTH + 1]
runs = [tuple(range(first, first + FIFTH)) for first in starts]
together = {run: cost(*run) for run in tqdm(runs, desc="runs")}


def told(name, blocks):
    """A printed line about a set: its sum, its harm, its dearest block."""
    worst = max(blocks, key=single.__getitem__)
    print(f"{name}, {blocks[0]} to {blocks[-1]}: ", end="")
    print(f"sum {sum_of[blocks]:.2f}", end=", ")
    print(f"together {together[blocks]:.2f}", end=", ")
    print(f"dearest alone: block {worst}, {single[worst]:.2f} nats")


sum_of = {run: sum(single[block] for block in run) for run in runs}
minus_sum = {run: together[run] - sum_of[run] for run in runs}
minus_dearest = {run: together[run] - max(single[b] for b in run) for run in runs}
less = [minus_dearest[run] < 0 for run in runs if dearest in run]
best = min(together, key=together.get)
told("cheapest run", best)
report = remove_blocks(variant(base), best)
share = report.after.parameters / report.before.parameters - 1
print(f"without it: {share:+.1%} parameters, {-FIFTH / total:+.0%} cache")
told("furthest below its dearest block", min(minus_dearest, key=minus_dearest.get))
told("furthest above its sum", max(minus_sum, key=minus_sum.get))
print(f"less than block {dearest} alone: {sum(less)} of {len(less)} runs with it")
print(f"guessing would cost {math.log(describe(base).vocab_size) - whole:.2f} nats")
here("A run can cost less than one of its blocks.", [-min(minus_dearest.values())])
most = max(minus_sum[run] - sum_of[run] for run in runs)
here("A run can cost over twice its sum.", [most])

# %% [markdown]
# What chooses must not judge. So the chosen run and influence's six meet on the judging rows: 16 of each text here, 48 in the record, where
# each of the five draws chose its run, in two number formats. The first columns show the worst of these runs, the last two look at all.
# *One minus six*: how much less a run costs than its dearest block alone, at most.

# %%
from course_utils.measuring import perplexity_ratio


def left_out(blocks, rows):
    """The perplexity of some rows without these blocks."""
    with skipping(base, blocks):
        return perplexity(base, rows, batch_size=16)


ahead = []
for text in TEXTS:
    rows = texts[text][:16]
    ratio = perplexity_ratio(left_out(best, rows), left_out(order[:FIFTH], rows))
    print(f"here, {text}, run / influence's six: × {with_interval(*ratio)}")
    ahead.append(1 - ratio[0])
here("The chosen run costs less than influence's six.", ahead)
print()
table = {}
for form, text in itertools.product(record.index.unique("dtype"), TEXTS):
    alone = recorded("alone", 1, text, form).damage
    found = recorded("run", 6, text, form)
    chosen = found[found.calibrations.map(len) > 0]
    worst = chosen.iloc[chosen.damage.argmax()]
    other = recorded("influence", 6, text, form).iloc[0]
    ratio, _, _, high = ratio_interval(worst["rows"] - other["rows"], ones)
    ahead = recorded("random", 6, text, form).damage > worst.damage
    dearer = [max(alone[(block,)] for block in run) for run in found.index]
    top = guessing - recorded("", 0, text, form).nats.item()
    table[form, text] = {
        "chosen run (nats)": worst.damage,
        "perplexity, run / six": math.exp(ratio),
        "at most (95 %)": math.exp(high),
        "random beaten, of 19": ahead.sum(),
        "one minus six (nats)": (dearer - found.damage).max(),
        "last run minus guess (nats)": found.damage.iloc[-1] - top,
    }
six = pd.DataFrame(table).T
claim("So it does on record, by the interval.", 1 - six["at most (95 %)"])
print("The record: six blocks")
six.round(2).astype({"random beaten, of 19": int})

# %% [markdown]
# **Saved run.** In the record, whichever draw chose it, the run costs less than influence's six: × 0.85 of their perplexity at worst on
# speeches, × 0.81 on wiki. It costs less than all 19 random sixes, too.
#
# Look at the first figure again. The cheapest run has the smallest sum, so a sum would have chosen it too. It couldn't have warned
# of the last one: from 1 nat on a sum can be too low by far, or too high.
#
# ## In company
#
# Does one block undo another, as in the toy? A run can't say which of its members. A pair at least names two.

# %% [markdown]
# ### Exercise 4 · ●●● · 12 minutes
#
# Find two blocks, sparing the two at each end, that cost less together than the dearer one alone. Give their numbers as `pair`.
# `cost(3, 7)` measures on eight of the choosing rows, in a second, as often as you like. The check judges on rows that nothing has
# used: on both texts the whole paired interval must lie below 1.
#
# <details><summary>Hint</summary>
#
# Which block leaves most to win back? Its partner need not be its neighbour.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_04 import check_pair

exam = {text: rows[:24] for text, rows in further_rows(tokenizer).items()}


def judge(*blocks):
    """The perplexity of each text of the exam without these blocks."""
    return {text: left_out(blocks, rows) for text, rows in exam.items()}


# BEGIN SOLUTION
# The dearest block has most to win. Its partner is the one that brings most back.
others = [block for block in inside if block != dearest]
costs = {block: cost(dearest, block) for block in others}
pair = (dearest, min(costs, key=costs.get))
# END SOLUTION
# BEGIN STUB
# pair = ...  # two numbers of blocks, for instance (3, 7)
# END STUB
check_pair(pair, judge, inside)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Leaving block A out costs 0.1 nats, and so does leaving block B out. What do the two cost together?
#
# - [ ] About 0.2 nats, since each of them adds its own part to the stream.
#   > Later blocks read the sum. What they make of a missing part depends on what else is missing.
# - [ ] At most 0.2 nats, since what one leaves undone the other takes over.
#   > If one takes over for the other, then both together cost *more* than the sum.
# - [ ] At least 0.2 nats, since two holes in a stream are worse than one.
#   > One may undo what the other writes. Then the second hole mends the first.
# - [x] Perhaps 0.05 nats, perhaps 2, since later blocks read what is left.
#   > What a block is worth depends on which others are there. Leave them out together, and measure.

# %% [markdown] tags=["quiz"]
# You removed a block. The model reads right, generates right with its cache, and is wrong after saving and loading. What did
# you forget?
#
# - [ ] To give the blocks behind the gap new numbers, in `layer_idx`.
#   > Forgotten alone it stops generating with an error, and a reload numbers anew by itself.
# - [x] To write the new number of blocks to `num_hidden_layers`.
#   > The reload builds as many blocks as the configuration promises, the missing one with random weights.
# - [ ] To copy the final norm, which reads what the last block leaves.
#   > It was never touched: it belongs to the model, not to a block.

# %% [markdown] tags=["quiz"]
# Five calibration draws choose four different threes. What does that tell you?
#
# - [x] That 16 rows can't tell several threes apart, so that the draw decides.
#   > On 48 other rows one of them costs more than the rest: 16 were too few to see it.
# - [ ] That the criterion is no better than chance, since it can't decide.
#   > Chance is nineteen random sets beside it, not one draw beside another.
# - [ ] That influence, which chooses the same three each time, is better.
#   > Steady isn't right. On the judging rows its three cost most.

# %% [markdown]
# ## Take-aways
#
# - Blocks add to one stream, so any of them can go and the rest still runs. Running proves nothing.
# - `layer_idx` and `num_hidden_layers` must follow. Test with the cache *and* after a plain reload.
# - A single harm is a fact about one block while all others are there.
# - Harms don't add: one block can undo what another writes, and one can stand in for another.
# - Choose by leaving out what shall go, together, on calibration text; and look whether another draw chooses alike.
#
# **The story so far:** weights don't know, text does, and only for what you ask it. **Next:** lesson 05 takes out half a block. How do
# you know that it is out?
#
# ## References
#
# - Men et al. 2024, *ShortGPT*, arXiv 2403.03853: block influence
# - Kim et al. 2024, *Shortened LLaMA*, arXiv 2402.02834: leave-one-out
# - Gromov et al. 2024, *The Unreasonable Ineffectiveness of the Deeper Layers*, arXiv 2403.17887: runs of neighbours, healed afterwards
# - Lu et al. 2024, *Reassessing Layer Pruning in LLMs*, arXiv 2411.15558: the last blocks, and a few layers trained afterwards
# - Veit et al. 2016, *Residual Networks Behave Like Ensembles of Relatively Shallow Networks*, arXiv 1605.06431
