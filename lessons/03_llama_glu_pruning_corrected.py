# ---
# jupyter:
#   course:
#     title: "GLU pruning done right: which neurons must stay"
#     prerequisites: lesson 01 (hooks, nineteen random cuts, pruned equals masked), lesson 02 (a GLU's neuron, ratios, guessing)
#     assets: [smollm2, texts, speeches]
#     concepts: [residual stream, peak-to-peak, contribution, paired interval, search by halves, patching, needed but not enough]
# ---

# %% [markdown]
# ## The question
#
# A Llama's neurons are cut, and the cut is exact. Which neurons must not go, and what finds them?
#
# **Answer.** A look at a little text: scored by what they add there, a tenth goes at less cost than in any of 19 random
# cuts. Weights alone lose to chance. One cut kills, until either of two neurons returns.

# %% [markdown] tags=["notes"]
# **The point:** an exact cut can be a bad one. Text finds what must stay; a search by halves finds why a cut kills.
#
# **Usual questions:** "Why not protect those two and be done?" Another cut has others: exercise 4. "Why the first token?" Nearly
# all attention heads look at it. What in its state does it stays open.
#
# **Wrong turns:** judging on the text that chose; a threshold in the search, where two halves want comparing; taking
# "needed" for "enough".
#
# **At the end you have** criteria for a Llama beside nineteen random cuts, the two neurons behind the worst of them, and
# a search that finds such neurons in any cut.

# %% tags=["install"]

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import (
    log_ticks, mark, read_record, safe_dtype, show, start, style,
)  # fmt: skip

session = start("03")
style()
record = read_record("random_cuts")  # of the embedded profile's Llama
record["times"] = np.exp(record.damage)  # perplexity, × that of the whole model


def arm(criterion, edit, text="speeches", dtype="float32"):
    """The record's rows for one kind of cut, by seed."""
    chosen = (record.criterion == criterion) & (record.edit == edit)
    chosen &= (record.text == text) & (record.dtype == dtype)
    return record[chosen].set_index("seed")


# %%
_, panels = plt.subplots(1, 2, figsize=(11, 5.4), sharey=True, layout="constrained")
for panel, text in zip(panels, ("speeches", "wiki"), strict=True):
    for name in ("random", "L1", "peak-to-peak", "activation"):
        heights = arm(name, "shared", text).times
        panel.plot([0] * len(heights), heights, linestyle="none", **mark(name))
    far = arm("random", "shared", text).times.idxmax()
    for name, edit, seed, place in (
        ("random", "two put back", far, 1),
        ("random", "stream put back", far, 2),
        ("L1", "stream put back", 0, 2),
    ):
        ends = [arm(name, kind, text).times[seed] for kind in ("shared", edit)]
        panel.plot([0, place], ends, **mark(name) | {"label": "_", "linewidth": 1})
    uncut = arm("", "", text).nats.iloc[0]
    panel.axhline(math.exp(math.log(49_152) - uncut), **mark("guessing"))
    names = ["10 % cut", "two neurons\nput back", "first token's\nstate put back"]
    panel.set_xticks([0, 1, 2], names)
    panel.set(title=text, yscale="log", xlim=(-0.3, 2.4))
    log_ticks(panel.yaxis)
panels[0].set(ylabel="perplexity, × the whole model's")
panels[1].legend(loc="center right")
show(
    "Two panels, speeches and wiki, logarithmic. Of 19 grey dots of random cuts "
    "one lies far above the others; lines lead from it down to the others' level, "
    "with two neurons put back and with the first token's state put back. "
    "L1's line stays high."
)

# %% [markdown]
# *A tenth of the neurons go. Each grey dot is a blind choice; lower is better.*
#
# ## What a neuron adds

# %%
diagrams.residual_stream(blocks=6, removed=[])
show(
    "The residual stream runs from the embeddings to the head; each of six blocks "
    "reads from it and adds to it, first to last, and nothing in it is replaced."
)

# %% [markdown]
# Each token has a state, a vector that runs through the model: the **residual stream**. Attention and MLP read it and *add* to
# it. In a Llama the MLP adds
#
# $$\mathrm{MLP}(x) = W_{down}\,a, \qquad a = \mathrm{silu}(W_{gate}\,x) \odot W_{up}\,x$$
#
# What neuron $j$ adds is its number $a_j$ times its column of `down_proj`. It goes as a whole, so it gets **one** score.
#
# The first score looks at weights only, **peak-to-peak** (Martra 2024): the largest weight plus the size of the smallest, of both rows.
#
# $$\mathrm{score}_j = \sum_{W \in \{gate,\, up\}} \max_i W[j, i] + | \min_i W[j, i] |$$

# %% [markdown]
# ### Exercise 1 · ●○○ · 4 minutes
#
# Write `peak_to_peak(mlp)`: one score for each neuron of a `LlamaMLP`, whose `gate_proj`, `up_proj` and `down_proj` are
# `nn.Linear`.
#
# <details><summary>Hint</summary>
#
# An `nn.Linear` stores [outputs, inputs]. `amax` and `amin` take a `dim`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_peak_to_peak


# BEGIN SOLUTION
def peak_to_peak(mlp):
    scores = 0
    for layer in (mlp.gate_proj, mlp.up_proj):
        scores = scores + layer.weight.amax(dim=1) + layer.weight.amin(dim=1).abs()
    return scores


# END SOLUTION
# BEGIN STUB
# def peak_to_peak(mlp):
#     ...  # one score [neurons]
# END STUB
check_peak_to_peak(peak_to_peak)

# %% [markdown]
# ## Cut, and proved
#
# From here on a cut is a list of pairs (block, neuron) that go. Lesson 02's surgery, and *pruned equals masked*.

# %%
from course_utils.models import describe, load_model, variant
from course_utils.pruning import neuron_importance, strongest


def lowest(scores, ratio=0.1):
    """The neurons that go, (block, neuron), when so many of each block do."""
    gone = []
    for block, values in enumerate(scores):
        stay = set(strongest(values, ratio).tolist())
        gone += [(block, n) for n in range(len(values)) if n not in stay]
    return gone


def without(model, gone):
    """A model without these neurons; it shares what it can with the given one."""
    small, gone = variant(model), set(gone)
    for block, mlp in enumerate(describe(small).mlps):
        stay = [n for n in range(mlp.width) if (block, n) not in gone]
        mlp.keep(torch.tensor(stay, device=model.device))
    return small


exact, tokenizer = load_model("llama")  # float32
gone = lowest(neuron_importance(exact, "peak_to_peak"))
masked = variant(exact)  # the same neurons silent: their columns are zero
for block, mlp in enumerate(describe(masked).mlps):
    weight = mlp.down.weight.detach().clone()
    weight[:, [n for b, n in gone if b == block]] = 0
    mlp.down.weight = torch.nn.Parameter(weight)
prompt = tokenizer("The Congress", return_tensors="pt").to(exact.device)
with torch.no_grad():
    models = exact, without(exact, gone), masked
    whole, pruned, silent = (model(**prompt).logits for model in models)
print(f"{len(gone):,} neurons go, those with the lowest peak-to-peak")
off, changed = ((pruned - other).abs().max().item() for other in (silent, whole))
print(f"pruned against masked: {off:.1e}\npruned against whole:  {changed:.1e}")
claim("The pruned Llama equals the masked one.", [changed - 1000 * off])
del exact, masked, models

# %% [markdown]
# ## A score that looks
#
# What a neuron adds can be measured: its size on text, root mean square over the tokens, times the length of its column.
# Lesson 01 called it `activation`.
#
# $$\mathrm{score}_j = \mathrm{rms}_t(a_{tj}) \cdot \lVert W_{down}[:, j] \rVert$$
#
# Other speeches measure than those that judge.

# %%
from course_utils.measuring import perplexity
from course_utils.text import judging_rows, token_blocks

pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
sampled = pool.sample(74, seed=session.seed)
choosing, calibration = sampled[:6], sampled[10:]  # the record: [:10]
batches = calibration.batches(16)
judges = judging_rows(tokenizer, draw=session.seed)  # 48 rows, as in the record
judges = {text: rows[:10] for text, rows in judges.items()}

base, _ = load_model("llama", dtype=safe_dtype(session.dtype))
base.requires_grad_(False)


def nats(model, rows):
    """Loss in nats a token; all rows in one batch, so the weights are read once."""
    return perplexity(model, rows, batch_size=len(rows)).nll


intact = {text: nats(base, rows) for text, rows in judges.items()}


def times(model):
    """Perplexity on each judging text, × that of the whole model."""
    return [math.exp(nats(model, judges[text]) - intact[text]) for text in judges]


def compare(name, factors, criterion, edit, seed=0):
    """Print × the whole model on each text, as measured here and in the record."""
    print(f"{name:<15}", end="")
    for text, value in zip(judges, factors, strict=True):
        there = arm(criterion, edit, text).times.get(seed, math.nan)
        print(f"  {text} × {value:.2f} here, {there:.2f} in the record", end="")
    print()


print(f"scores: {calibration.num_tokens:,} tokens of other speeches")
print(f"judges: {len(judges['wiki'])} rows of each text, in the record 48")

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# Write `contribution(model, batches)` with hooks of your own: a list with one tensor of scores for each block. A batch is a
# dict of `input_ids` and `attention_mask`; where the mask is 0 stands padding, which must not count. Leave the model as you
# found it. The check tries yours on made-up text, and then on our Llama beside the library's `activation`.
#
# <details><summary>Hint</summary>
#
# The blocks are `model.model.layers`. `layer.mlp.down_proj.register_forward_pre_hook(hook)` calls `hook(module, inputs)` before
# each run; `inputs[0]` is $a$, [rows, length, neurons]. Sum squares and count tokens over all batches, divide at the end.
# 16-bit squares overflow: take `.float()` first.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_contribution


# BEGIN SOLUTION
@torch.no_grad()
def contribution(model, batches):
    layers = model.model.layers
    squares, count = [0] * len(layers), 0

    def note(block):
        def hook(module, inputs):
            states = inputs[0][real].float()  # [real tokens, neurons]
            squares[block] = squares[block] + states.square().sum(dim=0)

        return hook

    handles = []
    for block, layer in enumerate(layers):
        down = layer.mlp.down_proj
        handles.append(down.register_forward_pre_hook(note(block)))
    for batch in batches:
        real = batch["attention_mask"].bool().to(model.device)  # `hook` reads it
        count += real.sum()
        model.model(batch["input_ids"].to(model.device), real)
    for handle in handles:
        handle.remove()
    scores = []
    for total, layer in zip(squares, layers, strict=True):
        column = layer.mlp.down_proj.weight.float().norm(dim=0)
        scores.append((total / count).sqrt() * column)
    return scores


# END SOLUTION
# BEGIN STUB
# def contribution(model, batches):
#     ...  # a list of tensors [neurons], one a block
# END STUB
check_contribution(contribution, base, batches[:2])

# %% [markdown]
# ## Weights or text?
#
# **Some rows are hard for every model.** So we compare row by row: $d_r$ is one cut's loss minus another's on row $r$.
# The mean of $d$, give or take two standard errors, is a **paired interval**: in 95 of 100 experiments it holds the true mean.
#
# $$\bar d \;\pm\; 2\, s_d / \sqrt{n}$$
#
# $e$ to its ends is an interval for the ratio of two perplexities. If it leaves out 1, the difference is shown.
#
# **Predict before you run.** A tenth of the neurons go: by L1, by peak-to-peak, by `activation`, at random. Put them in order.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# On both texts `activation` beats 19 of 19 random cuts, peak-to-peak 1 and L1 0. L1 multiplies the perplexity by hundreds.
#
# </details>

# %%
from course_utils.support import ratio_interval


def ratio(one, other):
    """One perplexity ÷ another on the same rows, and the paired interval."""
    d = one.rows - other.rows
    half = 2 * d.std(ddof=1) / len(d) ** 0.5
    return np.exp([d.mean(), d.mean() - half, d.mean() + half])


scored = {"activation": neuron_importance(base, "activation", batches=batches)}
scored["peak-to-peak"] = neuron_importance(base, "peak_to_peak")
scored["L1"] = neuron_importance(base, "l1")
costs = {name: times(without(base, lowest(scored[name]))) for name in scored}
for name, factors in costs.items():
    compare(name, factors, name, "shared")
by_text, *by_weights = (np.array(factors) for factors in costs.values())
here("A look at text costs less.", np.ravel(by_weights - by_text))

told = {}
for text in judges:
    cuts = arm("random", "shared", text).sort_values("damage")
    middle = cuts.iloc[len(cuts) // 2]
    arms = {name: arm(name, "shared", text).iloc[0] for name in scored}
    for name, own in (arms | {"median random": middle}).items():
        value, low, high = ratio(own, middle)
        _, _, *ends = ratio_interval(own.rows - middle.rows, np.ones(len(own.rows)))
        np.testing.assert_allclose([low, high], np.exp(ends), rtol=0.01)
        told.setdefault(name, {})[f"{text}: × whole"] = f"{own.times:.2f}"
        beaten = (cuts.damage > own.damage).sum()
        told[name][f"{text}: random beaten"] = f"{beaten} of {len(cuts)}"
        told[name][f"{text}: ÷ median"] = f"{value:.2f} ({low:.2f} to {high:.2f})"
wins = {name: [] for name in scored}
for name, won in wins.items():
    for kind in itertools.product(judges, ("float32", "bfloat16")):
        cuts, own = (arm(who, "shared", *kind).damage for who in ("random", name))
        won += [(cuts > damage).sum() for damage in own]
    print(f"{name} beats {min(won)} to {max(won)} of 19, over texts and formats")
claim("On record `activation` beats every cut.", [min(wins["activation"]) - 18.5])
pd.DataFrame(told).T

# %% [markdown]
# Both scores of weights lose to blind choice: their intervals lie far above 1, that of `activation` below it. A weight doesn't know **what
# it meets**: how large the number is that it multiplies. And a Llama's MLP has no bias to keep a mean in.
#
# ## One cut in nineteen
#
# The random cuts are alike, but for one: over ten times as bad as the median. We find it anew on two choosing rows, and judge on
# others.
#
# **Predict before you run.** Of its 4,590 neurons, how many are to blame: most of them, some hundreds, or a handful?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A handful: either of two undoes most of it. The next exercise finds the first.
#
# </details>

# %%
few = choosing[:2]  # it stands out on these already
whole_few = nats(base, few)
chance, harms = {}, {}
for seed in tqdm(sorted(arm("random", "shared").index), desc="random cuts"):
    chance[seed] = lowest(neuron_importance(base, "random", seed=seed))
    harms[seed] = nats(without(base, chance[seed]), few) - whole_few
ranked = sorted(harms, key=harms.get)
fatal, harmless = ranked[-1], ranked[len(ranked) // 2]
factor = math.exp(harms[fatal] - harms[harmless])
print(f"{len(ranked)} random cuts of {len(chance[fatal]):,} neurons; choosing rows")
print(f"median: cut {harmless}, × {math.exp(harms[harmless]):.2f}")
print(f"worst: cut {fatal}, × {math.exp(harms[fatal]):.1f}", end=", ")
print(f"{factor:.0f} times the median")
factors = []
for text in judges:
    for dtype in ("float32", "bfloat16"):
        cuts = arm("random", "shared", text, dtype).times
        factors.append(cuts.max() / cuts.median())
print(f"in the record {min(factors):.0f} to {max(factors):.0f} times the median")
here("One cut is over ten times as bad as the median.", [factor - 10])
lose = [1.5 - max(wins[name]) for name in ("peak-to-peak", "L1")]
claim("On record peak-to-peak and L1 beat that one at most.", lose)
disaster, tried = chance[fatal], {}


def harm(back):
    """The damage that is left on the two rows when these neurons come back."""
    if tuple(back) not in tried:
        model = without(base, set(disaster) - set(back))
        tried[tuple(back)] = nats(model, few) - whole_few
    return tried[tuple(back)]


# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# One neuron at a time would take 4,590 runs of the model. Write `halve(suspects, harm)`: of two halves of the suspects, the one
# whose return leaves less harm holds a culprit. Go on with it until one suspect is left, and return that one. `harm(back)` runs
# a model, so call it twice a step. The check plants culprits in lists; then yours searches the disaster.
#
# <details><summary>Hint</summary>
#
# `middle = len(suspects) // 2`. Compare the halves with each other, not with a number: how much harm is left differs from cut
# to cut.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_halve


# BEGIN SOLUTION
def halve(suspects, harm):
    while len(suspects) > 1:
        middle = len(suspects) // 2
        left, right = suspects[:middle], suspects[middle:]
        suspects = left if harm(left) < harm(right) else right
    return suspects[0]


# END SOLUTION
# BEGIN STUB
# def halve(suspects, harm):
#     ...  # one of the suspects
# END STUB
check_halve(halve, disaster, harm)

# %% [markdown]
# ## Two neurons
#
# The library's `by_halves` searches twice: among all, and then among all but the first one found.

# %%
from course_utils.pruning import by_halves

first = by_halves(disaster, harm)
trail = dict(tried)
second = by_halves([neuron for neuron in disaster if neuron != first], harm)
pair = [first, second]
print(f"found in {len(tried)} runs of the model")
here("With both back, most of the harm is gone.", [harm([]) / 2 - harm(pair)])
either = [harm([]) / 2 - harm([one]) for one in pair]
claim("With either of the two back, most of the harm is gone.", either)
names = [f"{block}/{neuron} put back" for block, neuron in pair]
for name, edit, back in (
    ("the first back", names[0], [first]),
    ("the second back", names[1], [second]),
    ("both back", "two put back", pair),
):
    model = without(base, set(disaster) - set(back))
    compare(name, times(model), "random", edit, fatal)

loud, stand_out = {}, []
for block, neuron in pair:
    seen, down = [], describe(base).mlps[block].down
    hook = down.register_forward_pre_hook(lambda _, read, to=seen: to.append(read))
    nats(base, choosing)
    hook.remove()
    size = seen[0][0][..., neuron].float()  # [rows, tokens]
    row = loud[f"block {block}, neuron {neuron}"] = {}
    for name in ("L1", "activation"):
        scores = scored[name][block]
        rank = (scores > scores[neuron]).sum() + 1
        row[f"rank by {name}"] = f"{rank} of {len(scores)}"
        stand_out += [2.5 - rank.item()]
    rms = [part.square().mean().sqrt().item() for part in (size[:, 0], size[:, 1:])]
    row |= {"first token": f"{rms[0]:.1f}", "other tokens": f"{rms[1]:.1f}"}
    row["how many times"] = f"{rms[0] / rms[1]:.1f}"
    stand_out += [rms[0] / rms[1] - 2]
claim("The two are the first by both scores, and loud at first tokens.", stand_out)
pd.DataFrame(loud).T

# %%
_, panel = plt.subplots(figsize=(9, 4.6), layout="constrained")
sizes, heights = [len(back) for back in trail], np.exp(list(trail.values()))
look = mark("neurons") | {"label": "one half put back"}
panel.plot(sizes, heights, linestyle="none", **look)
for left, name, words in (
    (harm([]), "wrong", "nothing put back"),
    (harms[harmless], "random", "the median cut"),
):
    look = mark(name) | {"label": words, "marker": ""}
    panel.axhline(math.exp(left), **look)
panel.set(xscale="log", yscale="log", xlabel="neurons put back")
panel.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
panel.set(ylabel="perplexity, × the whole model's")
panel.invert_xaxis()
log_ticks(panel.yaxis)
panel.legend()
show(
    "Perplexity against how many neurons are put back, two dots a step, from "
    "thousands on the left to one on the right. In most steps one half heals and "
    "the other doesn't; in two steps the other heals as well, or mostly."
)

# %% [markdown]
# *Each step has two dots, one for each half that is put back.* At two steps both heal: at the later one the two part. With either of them
# most of the harm is gone. The disaster took both.
#
# They are the two strongest of their block, by L1 as well. So L1's own wreck has another cause.
#
# ## The first token's state
#
# Both neurons are several times as loud at the first token of a row as elsewhere. Is it that token's state that is lost?
# **Patching** tells: all 4,590 neurons stay out, but behind each block the first token's state is put back, taken from the whole
# model. A hook that *returns* something replaces the module's output.
#
# **Predict before you run.** The first figure shows the disaster and L1. What of a harmless cut, and of peak-to-peak's?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It heals the disaster, down to the level of the other random cuts. L1's cut stays a wreck. The median cut gains little, and so
# does peak-to-peak's.
#
# </details>


# %%
def put_back(state):
    """A hook on a block: its first token's state becomes the given one."""
    return lambda block, inputs, states: torch.cat([state, states[:, 1:]], dim=1)


def times_with_state(model):
    """As `times`, with the first token's state put back behind each block."""
    found, blocks = [], model.model.layers[:-1]
    for text, rows in judges.items():
        ids = rows.input_ids[:, :1].to(base.device)
        with torch.no_grad():
            states = base.model(ids, output_hidden_states=True).hidden_states
        handles = []
        for block, state in zip(blocks, states[1:-1], strict=True):
            handles.append(block.register_forward_hook(put_back(state)))
        found.append(math.exp(nats(model, rows) - intact[text]))
        for handle in handles:
            handle.remove()
    return found


margins, harmed = [], {}
for name, gone, arm_of, sign in (
    ("the disaster", disaster, ("random", fatal), 1),
    ("L1's cut", lowest(scored["L1"]), ("L1", 0), -1),
):
    model, (criterion, seed) = without(base, gone), arm_of
    before, back = times(model), times_with_state(model)
    harmed[name] = np.array(before)
    compare(name, before, criterion, "shared", seed)
    compare(f"{name}, back", back, criterion, "stream put back", seed)
    margins.append(sign * (np.log(before) / 2 - np.log(back)))  # of half the damage
here("The state heals the disaster, and not L1's cut.", np.ravel(margins))

# %%
told, shared = {}, arm("random", "shared").times
median_seed = arm("random", "two cut as well").index[0]
for name, criterion, seed in (
    ("the disaster", "random", shared.idxmax()),
    ("a harmless cut", "random", median_seed),
    ("peak-to-peak", "peak-to-peak", 0),
    ("L1", "L1", 0),
):
    row = told[name] = {}
    for text in judges:
        before = arm(criterion, "shared", text).loc[seed]
        after = arm(criterion, "stream put back", text).loc[seed]
        value, low, high = ratio(after, before)
        row[f"{text}: cut"] = f"{before.times:.3g}"
        row[f"{text}: back"] = f"{after.times:.3g}"
        row[f"{text}: ratio"] = f"{value:.2f} ({low:.2f} to {high:.2f})"
print("In the record, perplexity × the whole model's")
pd.DataFrame(told).T

# %% [markdown]
# The disaster's harm travels through that state.
#
# L1 dies of something else. Protect the strongest of each block, by `activation`, from L1's cut: the first one, or up to a twentieth;
# others go instead. The control protects as many at random.

# %%
_, panels = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
for panel, text in zip(panels, judges, strict=True):
    for name, edit in (("activation", "top {}"), ("random", "{} at random")):
        for k in (1, 8, 15, 77):
            heights = arm("L1", edit.format(k) + " protected", text).times
            look = mark(name) | {"label": f"{name} protected" if k == 1 else "_"}
            look["markersize"] = 10
            panel.plot([k] * len(heights), heights, linestyle="none", **look)
    nothing = arm("L1", "shared", text).times.iloc[0]
    look = mark("L1") | {"marker": "", "label": "nothing protected"}
    panel.axhline(nothing, **look)
    panel.set(title=text, xscale="log", yscale="log")
    panel.set(xlabel="protected, of each block")
    panel.set_xticks([1, 8, 15, 77], ["1", "8", "15", "77"])
    log_ticks(panel.yaxis)
panels[0].set(ylabel="perplexity, × the whole model's")
panels[1].legend()
show(
    "L1's cut with 1, 8, 15 or 77 neurons of each block protected, two texts, "
    "logarithmic. With the most active ones protected perplexity falls step by "
    "step to near that of a random cut; with as many random ones it stays high."
)

# %% [markdown]
# *Lower is better.* With the most active twentieth of each block protected, L1's cut is like a random one. With as
# many blindly drawn, it stays a wreck: L1 dies of many strong neurons.
#
# ## Needed, but not enough
#
# **Predict before you run.** Take the two neurons out of the *whole* model, and nothing else. Another disaster?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# No. Perplexity about doubles, as after a whole random cut. The disaster is over ten times as bad.
#
# </details>

# %%
ways = {
    "the two alone": ("two neurons", "cut alone"),
    "a harmless cut": ("random", "shared"),
    "a harmless cut and the two": ("random", "two cut as well"),
    "activation": ("activation", "shared"),
    "activation and the two": ("activation", "two cut as well"),
    "the disaster": ("random", "shared"),
}
told = {name: {} for name in ways}
for text, dtype in itertools.product(judges, ("float32", "bfloat16")):
    for name, (criterion, edit) in ways.items():
        cuts = arm(criterion, edit, text, dtype).times
        if name == "a harmless cut":  # the median one, by the choosing rows
            cuts = cuts[arm(criterion, "two cut as well", text, dtype).index]
        worst = cuts.max() if name == "the disaster" else cuts.iloc[0]
        told[name][f"{text}, {dtype}"] = worst

alone = times(without(base, pair))
compare("the two alone", alone, "two neurons", "cut alone")
here("The two alone cost a small part of it.", harmed["the disaster"] / 5 - alone)
for name, edit in (("activation", "top 77"), ("random", "77 at random")):
    found = [arm("L1", edit + " protected", text).times for text in judges]
    print(f"L1's cut, protected by {name}:", end=" ")
    print(", ".join(f"× {part.min():.3g} to {part.max():.3g}" for part in found))
print("In the record, perplexity × the whole model's")
told = pd.DataFrame(told).T
cost, both = told.loc["the two alone"], told.loc["a harmless cut and the two"]
more = both - cost * told.loc["a harmless cut"]
claim("With a harmless cut the two cost more than the costs multiplied.", more)
told.map("{:.3g}".format)

# %% [markdown]
# The loss of both is **needed** for the disaster, and not **enough** for one. And damages don't add: on top of a harmless cut (in each
# format another) the two cost more than both costs multiplied.
#
# ## Another cut's secret
#
# In a cut that cost little, a few neurons were exchanged for others that the model needs. `search` tells the loss when some come
# back; the check judges on rows that nothing has used.

# %%
from course_utils.lessons.exercises.lesson_03 import secret_cut
from course_utils.text import further_rows

secret = secret_cut(chance[harmless], scored["activation"])
exam = {text: rows[:8] for text, rows in further_rows(tokenizer).items()}
whole_exam = {text: nats(base, rows) for text, rows in exam.items()}


def search(back):
    """Loss on the choosing rows when these of the secret cut come back."""
    return nats(without(base, set(secret) - set(back)), choosing)


def judge(gone):
    """Damage of a cut, in nats a token, on each text of the exam."""
    model = without(base, gone)
    return {text: nats(model, exam[text]) - whole_exam[text] for text in exam}


print(f"the secret cut removes {len(secret):,} neurons")
print(f"its loss on the choosing rows: {search([]):.2f} nats a token", end=", ")
print(f"whole model {nats(base, choosing):.2f}")

# %% [markdown]
# ### Exercise 4 · ●●● · 12 minutes
#
# Give `culprits`, at most 20 neurons of `secret` as pairs (block, neuron). Put back, they must undo at least 80 % of what was planted, on
# both texts. Halving finds one after the other. Ranking what went by `activation` in each block is a second way: does it find them?
#
# <details><summary>Hint</summary>
#
# A found culprit comes back in every later call: `search(found + list(half))`. How many there are you see from what is left.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_03 import check_culprits

# BEGIN SOLUTION
culprits = []
for _ in range(3):
    suspects = [neuron for neuron in secret if neuron not in culprits]
    found = by_halves(suspects, lambda half: search(culprits + list(half)))
    culprits.append(found)
    print(found, f"{search(culprits):.2f} nats a token")
# END SOLUTION
# BEGIN STUB
# culprits = ...  # for instance [(3, 14), (15, 9)]
# END STUB
check_culprits(culprits, secret, chance[harmless], judge)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Putting two neurons back heals a disaster of 4,590. What does that show?
#
# - [ ] That these two alone, cut from the whole model, would be as bad.
#   > Needed isn't enough: alone they cost little. The others had made the model depend on them.
# - [x] That without their loss this cut would be no disaster.
#   > Put back, they heal: that is what the experiment changed, and all that it shows.
# - [ ] That the other neurons of this cut are useless to the model.
#   > They still cost something, as the other random cuts do.

# %% [markdown] tags=["quiz"]
# You put a state back from the whole model, and the damage is gone. What was at fault?
#
# - [x] Something that reaches the later blocks through that state, in this cut.
#   > Patching restores that path and nothing else. Which part of the state does it, it doesn't say.
# - [ ] The attention heads which read that state, so they should be retrained.
#   > The heads are as they were. What changed is what they read.
# - [ ] The text that was chosen, because another first token would have healed it.
#   > The same rows, with the same first tokens, were judged before and after.

# %% [markdown]
# ## Take-aways
#
# - A Llama's neuron gets one score, and is judged beside nineteen random cuts on text that chose nothing.
# - Scores of weights alone lost to blind choice; a look at a little text beat every blind choice.
# - A search by halves finds what a cut needs, in two runs a step.
# - *Needed* and *enough* are two questions: put back, and cut alone.
#
# **The story so far:** weights don't know, text does; look by touching. **Next:** lesson 04 takes whole blocks out of the
# stream. Which can go together?
#
# ## Go deeper
#
# [What doesn't a weight know?](deeper/03a_what_a_weight_does_not_know.ipynb)
#
# ## References
#
# - Martra 2024, *Exploring GLU Expansion Ratios*, doi 10.31219/osf.io/qgxea: one score for gate and up
# - Sun et al. 2023 (Wanda), arXiv 2306.11695: weights times activations
# - Sun et al. 2024, *Massive Activations in Large Language Models*, arXiv 2402.17762: what lives at first tokens
# - Yu et al. 2024, *The Super Weight in Large Language Models*, arXiv 2411.07191: single weights that a model needs
# - Zhang and Nanda 2024, *Towards Best Practices of Activation Patching*, arXiv 2309.16042
