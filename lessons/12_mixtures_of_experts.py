# ---
# jupyter:
#   course:
#     title: "Mixtures of experts: which experts may go?"
#     prerequisites: lesson 03 (scores from text, hooks), lesson 04 (calibration draws)
#     assets: []
#     concepts: [mixture of experts, router, top k, active parameters, specialisation, frequency, REAP, calibration mix]
# ---

# %% [markdown]
# ## The question
#
# A mixture of experts answers each token with two of its sixteen experts. Half of them could leave. Which, and who decides?
#
# **Answer.** The calibration text decides. Kinds unlike it lose most, often more than by a random half. Even over all kinds, counting how
# often experts are asked is worse than dice; weighing what an expert adds is better.

# %% [markdown] tags=["notes"]
# **The point:** what nobody calibrates on is lost first. On a mix, weigh what an expert adds; on one kind, the division helps as well.
#
# **Let the room predict first:** scored on Wikipedia alone, which kind of text loses most?
#
# **Usual questions:** "Does it get faster?" Not for one token: it meets two experts before and after. "Why not merge them?" Published
# results say that pruning loses less; this lesson doesn't measure it. "Does it hold for a large model?" See the section on what a toy
# can't tell.
#
# **Wrong turns:** forgetting `config.num_experts`, so that the reloaded model has random experts; cutting the router and the matrices in
# different orders; choosing on the rows that judge.
#
# **At the end you have** a mixture with half of its experts gone, proved equal to a masked router, and a calibration mix of your own.

# %% tags=["install"]

# %%
import itertools
import tempfile
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import one_hot

from course_utils.lessons import claim, diagrams, here
from course_utils.support import heatmap, read_record, show, start, style
from course_utils.text import KINDS, kind_rows

session = start("12")
style()
NAMES = {"frequency": "frequency", "reap": "REAP", "reap_sum": "REAP's sum"}
record = read_record("cut_experts")  # of course-moe, and of one with another seed
by = ["model", "dtype", "ratio", "edit", "criterion"]
record = record.set_index(by).sort_index()


def recorded(model, criterion):
    """Half is gone: kinds that calibrate × kinds that judge, nats a token."""
    found = record.loc[[(model, "float32", 0.5, "cut", criterion)]]
    if criterion == "random":
        found = found.groupby("text").damage.median().to_frame("random").T
    else:
        found = found.pivot_table("damage", "kind", "text")  # a mean over the draws
    rows = [kind for kind in (*KINDS, "all", "random") if kind in found.index]
    return found.loc[rows, [*KINDS]]


# %%
_, panels = plt.subplots(1, 2, figsize=(14, 6), sharey=True, layout="constrained")
dice = recorded(0, "random")
tables = [pd.concat([recorded(0, name), dice]) for name in ("frequency", "reap")]
middle = float(dice.to_numpy().mean())
limit = max(float((table - middle).abs().max(axis=None)) for table in tables)
for panel, table, name in zip(panels, tables, ("frequency", "REAP"), strict=True):
    labels = {"x_label": "tested on", "y_label": "", "value_label": "nats a token"}
    heatmap(table, **labels, center=middle, limit=limit, title=name, ax=panel)
    panel.tick_params(labelsize="small")
panels[0].set_ylabel("calibrated on")
show(
    "Two matrices, frequency and REAP: rows are the kind of text that chose which "
    "half of the experts stays, columns the kind that is tested. By frequency the "
    "diagonal is low and much else lies above the last row, the median of nineteen "
    "random halves; by REAP mostly code and mathematics do, where others chose."
)

# %% [markdown]
# *What losing half of the experts costs, a mean over nine draws of the calibration text. Red: more than random halves cost on average.
# Blue: less. For dice on one kind, compare with the last row.*
#
# This lesson always runs on the course's own small mixture, `course-moe`, whatever models the table above names.
#
# ## A block with sixteen experts

# %%
diagrams.mixture_of_experts()
show(
    "A token leaves the residual stream for the router, which lights two of "
    "sixteen experts. What they give is weighed, added and put back into the "
    "stream. One expert that isn't lit is crossed out."
)

# %% [markdown]
# In the place of one MLP a block holds many, its **experts**. A **router**, one matrix $W$, gives each expert $e$ a share of the token
# $x$. The $k$ largest shares are kept, the **top k**:
#
# $$p = \mathrm{softmax}(W x), \qquad y = \sum_{e \in \mathrm{top}\,k} g_e \, E_e(x)$$
#
# What is $g$? Some families take the shares as they are, $g_e = p_e$ (OLMoE). Others *normalise*: they divide by the sum of those that
# were kept, so that a token's weights add up to 1 (Mixtral; here too).

# %% [markdown]
# ### Exercise 1 · ●○○ · 7 minutes
#
# Write `router_weights(logits, top_k, normalised)`: from the router's logits [tokens, experts] to each token's weights [tokens,
# experts], 0 for the experts that it isn't sent to.
#
# <details><summary>Hint</summary>
#
# `topk` gives values and places. `torch.zeros_like(shares).scatter(-1, places, values)` puts values into their places.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_12 import check_router_weights


# BEGIN SOLUTION
def router_weights(logits, top_k, normalised):
    shares = logits.softmax(dim=-1)
    values, places = shares.topk(top_k, dim=-1)
    if normalised:
        values = values / values.sum(dim=-1, keepdim=True)
    return torch.zeros_like(shares).scatter(-1, places, values)


# END SOLUTION
# BEGIN STUB
# def router_weights(logits, top_k, normalised):
#     ...  # your code
# END STUB
check_router_weights(router_weights)

# %% [markdown]
# ## An expert that nobody asked
#
# One token, three experts, top 2, and transformers' own router. The token isn't sent to expert 2. Now expert 2 is removed.
#
# **Predict before you run.** Does the token notice? Think of both kinds of router.
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Normalised: no, the weights stay 0.73 and 0.27. Not normalised: yes. They were 0.63 and 0.23, and become 0.73 and 0.27: the share of
# expert 2 goes to the others.
#
# </details>

# %%
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

token, margins = torch.tensor([[2.0, 1.0, 0.5]]), []
for normalised in (True, False):
    shape = {"hidden_size": 3, "num_experts": 3, "num_experts_per_tok": 2}
    router = Qwen3MoeTopKRouter(Qwen3MoeConfig(**shape, norm_topk_prob=normalised))
    router.weight = nn.Parameter(torch.eye(3))  # the logits are the token
    _, before, _ = router(token)
    router.weight = nn.Parameter(torch.eye(3)[:2])
    _, after, _ = router(token)
    told = " and ".join(f"{w:.2f}" for w in before[0])
    now = " and ".join(f"{w:.2f}" for w in after[0])
    name = "normalised" if normalised else "not normalised"
    print(f"{name}: {told}; without expert 2: {now}")
    moved = (after - before).abs()[0].tolist()
    margins += [0.01 - by if normalised else by - 0.02 for by in moved]
claim("A token misses an expert it never asked only without normalising.", margins)

# %% [markdown]
# ## The course's own mixture
#
# Four blocks, sixteen experts each, top 2, normalised: Qwen3-MoE in miniature. From random weights it learned five kinds of text:
# speeches, passages of Wikipedia, scenes, Python code, mathematics. A token uses only a part of it, its **active parameters**.

# %%
from course_utils.measuring import perplexity
from course_utils.models import describe, load_model, model_size, variant
from course_utils.pruning import expert_importance, prune_experts

base, tokenizer = load_model("moe")
mixtures = describe(base).mixtures
EXPERTS = mixtures[0].count
HALF = EXPERTS // 2
calibration, judging = kind_rows("calibration"), kind_rows("evaluation")
whole = {kind: perplexity(base, judging[kind], batch_size=16).nll for kind in KINDS}
size = model_size(base)
print(f"{len(mixtures)} blocks, {EXPERTS} experts each")
print(f"{size.parameters:,} parameters, {size.active:,} of them active")
told = [f"{kind} {nats:.2f}" for kind, nats in whole.items()]
print("nats a token:", ", ".join(told))

# %% [markdown]
# ## Whose tokens?
#
# Does an expert serve a kind of text? A hook on each router writes down where the tokens of 24 held-out rows of each kind go.
#
# A measure of **specialisation**: the share of its tokens that an expert gets from its *first* kind, the one that it gets most from.
# With five kinds alike that is a fifth, and a little more by chance. How much more? We shuffle which row is of which kind, 99 times.
#
# **Predict before you run.** In which blocks do experts specialise more: in the first, or in the last?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# In the last. In the first block experts get 0.30 of their tokens from their first kind, in the last 0.53; no shuffle gave more than
# 0.24 and 0.30. In the picture below, code and mathematics have experts of their own; prose mostly shares.
#
# </details>


# %%
@torch.no_grad()
def asked_by_rows(model, rows):
    """How many tokens of each row go to each expert: [blocks, rows, experts]."""
    found = []

    def look(router, states, output):  # output: logits, weights, choices
        chosen = output[2].view(len(rows.input_ids), -1)
        found.append(one_hot(chosen, EXPERTS).sum(dim=1))

    hooks = [m.router.register_forward_hook(look) for m in describe(model).mixtures]
    model(rows.input_ids.to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found).float().cpu()


def first_share(asked, kind_of_row):
    """In each block, the share of tokens that experts get from their first kind."""
    kinds = one_hot(kind_of_row, len(KINDS)).float()  # [rows, kinds]
    by_kind = torch.einsum("bre,rk->bek", asked, kinds)
    return by_kind.amax(dim=-1).sum(dim=-1) / by_kind.sum(dim=(1, 2))


asked = torch.cat([asked_by_rows(base, judging[kind]) for kind in KINDS], dim=1)
each = asked.shape[1] // len(KINDS)
kind_of_row = torch.arange(len(KINDS)).repeat_interleave(each)
share, shuffled = first_share(asked, kind_of_row), []
for seed in range(99):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(kind_of_row), generator=generator)
    shuffled.append(first_share(asked, kind_of_row[order]))
largest = torch.stack(shuffled).amax(dim=0)
for block, (own, chance) in enumerate(zip(share, largest, strict=True)):
    print(f"block {block}: {own:.2f}, largest of 99 shuffles {chance:.2f}")
here("Experts specialise in every block.", share - largest)

# %%
last = asked[-1].view(len(KINDS), -1, EXPERTS).sum(dim=1).T  # [experts, kinds]
shares = pd.DataFrame((last / last.sum(dim=1, keepdim=True)).numpy(), columns=KINDS)
ax = shares.plot.bar(stacked=True, width=0.85, figsize=(12, 4.5), rot=0)
ax.set(xlabel="expert of the last block", ylabel="share of its tokens", ylim=(0, 1))
ax.set_title("Whose tokens does an expert serve?")
ax.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.15))
ax.grid(axis="x", visible=False)
show(
    "Sixteen bars, one for each expert of the last block, each divided by the "
    "kinds of text that its tokens come from. Some bars are mostly code or "
    "mathematics; the kinds of prose share most of the others."
)

# %% [markdown]
# *Each bar is an expert. A bar of one colour is a specialist.*

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# `keep_experts(model, kept)` cuts experts out of a Qwen3-MoE, in place, and returns it; `kept` holds the numbers that stay, for each of
# `model.model.layers`. Give new parameters: the old ones belong to another model, too. In `layer.mlp` you find:
#
# - `gate.weight` [experts, hidden], the router, a row for each expert;
# - `experts.gate_up_proj` and `experts.down_proj`, stacks with a matrix for each expert;
# - `gate.num_experts` and `experts.num_experts`; and the configuration has `num_experts`, too.
#
# <details><summary>Hint</summary>
#
# `nn.Parameter(stack[numbers])` holds some of the experts, as a new weight.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_12 import check_keep_experts


# BEGIN SOLUTION
def keep_experts(model, kept):
    for layer, numbers in zip(model.model.layers, kept, strict=True):
        gate, experts = layer.mlp.gate, layer.mlp.experts
        gate.weight = nn.Parameter(gate.weight[numbers])
        for name in ("gate_up_proj", "down_proj"):
            setattr(experts, name, nn.Parameter(getattr(experts, name)[numbers]))
        gate.num_experts = experts.num_experts = len(numbers)
        model.config.num_experts = len(numbers)
    return model


# END SOLUTION
# BEGIN STUB
# def keep_experts(model, kept):
#     ...  # your code
# END STUB
check_keep_experts(keep_experts, base)

# %% [markdown]
# ## Cut equals masked
#
# The library's surgery is `prune_experts(model, scores, keep=…)`; each block keeps those that score most. *Pruned equals masked* is here:
# the whole model, with the logits of the others at minus infinity. Scores are drawn for now.
#
# **Predict before you run.** Half of the experts go. What shrinks by about half: the file, the parameters that a token uses, or both?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The file, nearly: 16.54 MB become 9.45. A token still meets two experts, so of 2.08 million active parameters 2.07 stay: only rows of
# the routers go. One text alone should hardly be faster.
#
# </details>

# %%
from transformers import AutoModelForCausalLM


def mask(numbers):
    def only(router, states, output):
        gone = torch.ones(EXPERTS, dtype=torch.bool, device=output[0].device)
        gone[numbers] = False
        logits = output[0].masked_fill(gone, -torch.inf)
        values, chosen = logits.softmax(-1).topk(router.top_k)
        return logits, values / values.sum(-1, keepdim=True), chosen

    return only


drawn = expert_importance(base, "random", seed=session.seed)
cut, few = variant(base), judging["code"].input_ids[:2].to(base.device)
prune_experts(cut, drawn, keep=HALF)
best = [scores.topk(HALF).indices for scores in drawn]
with torch.no_grad():
    untouched = base(few).logits
    pairs = zip(mixtures, best, strict=True)
    hooks = [m.router.register_forward_hook(mask(numbers)) for m, numbers in pairs]
    masked = base(few).logits
    for hook in hooks:
        hook.remove()
    off = (cut(few).logits - masked).abs().max()
    changed = (untouched - masked).abs().max()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cut.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder).to(base.device)
        reloaded = (again(few).logits - masked).abs().max()
assert max(off, reloaded) < 1e-3 * changed
print(f"cut against masked: {off:.1e}, reloaded: {reloaded:.1e}")
print(f"masked against whole: {changed:.1e}")

# %%
rows = {}
for keep in (EXPERTS, 3 * EXPERTS // 4, HALF):
    smaller = variant(base)
    prune_experts(smaller, drawn, keep=keep)
    counted = model_size(smaller)
    rows[f"{keep} experts"] = {
        "parameters, M": counted.parameters / 1e6,
        "active, M": counted.active / 1e6,
        "MB in 16 bits": 2 * counted.parameters / 1e6,
    }
sizes = pd.DataFrame(rows).T
whole_mb, *_, half_mb = sizes["MB in 16 bits"]
claim(
    "With half of the experts the file is a third smaller.",
    [2 / 3 - half_mb / whole_mb],
)
sizes.round(2)

# %% [markdown]
# ## Which may go?
#
# Let $n_e$ of $T$ tokens be sent to expert $e$, and let what it adds to a token $x$ be $g_e(x) \, \lVert E_e(x) \rVert$. Three scores:
#
# $$\mathrm{frequency}_e = \frac{n_e}{T}, \qquad \mathrm{sum}_e = \sum_x g_e(x) \lVert E_e(x) \rVert, \qquad
# \mathrm{REAP}_e = \frac{\mathrm{sum}_e}{n_e}$$
#
# Frequency asks how often an expert is needed. REAP (*router-weighted expert activation pruning*, 2025) asks how much it does *when* it is
# needed. Here they are written out, on three rows of each kind, of text that the model learned from: 1,920 tokens, the lesson's **calibration mix**.


# %%
@torch.no_grad()
def watched(model, batches):
    """For each block, tokens sent to each expert, and what it adds to them."""
    found, hooks = [], []

    def watch(experts, given, asked, added):
        states, chosen, weights = given
        for place in range(chosen.shape[1]):  # first choice, second choice
            one, weight = chosen[:, place], weights[:, place]
            full = torch.ones_like(weight)
            alone = experts.forward(states, one[:, None], full[:, None])
            asked.index_add_(0, one, full)
            added.index_add_(0, one, weight * alone.norm(dim=-1))

    for mixture in describe(model).mixtures:
        asked, added = torch.zeros(2, EXPERTS, device=model.device)
        found.append((asked, added))
        note = partial(watch, asked=asked, added=added)
        hooks.append(mixture.experts.register_forward_pre_hook(note))
    for batch in batches:
        model(batch["input_ids"].to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


# %%
def fifteen(kind, draw):
    """One of nine disjoint draws of a kind: fifteen rows."""
    return calibration[kind][draw::9]


mix = [fifteen(kind, draw=session.seed)[:3].batches(3)[0] for kind in KINDS]
found = watched(base, mix)
tokens = sum(batch["input_ids"].numel() for batch in mix)
scores = {
    "frequency": [asked / tokens for asked, added in found],
    "reap": [added / asked.clamp(min=1) for asked, added in found],
    "reap_sum": [added for asked, added in found],
}
for name, ours in scores.items():
    library = expert_importance(base, name, batches=mix)
    torch.testing.assert_close(ours, library, atol=1e-3, rtol=1e-3)
print(f"{tokens:,} tokens; the library's scores agree")
often = torch.cat(scores["frequency"])
print(f"an expert is asked by {often.min():.0%} to {often.max():.0%} of them")

# %% [markdown]
# **Predict before you run.** Half of the experts go. Which score is best, and does any lose to random halves?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# REAP and its sum, 0.67 nats each, beat each of nine random halves. Frequency costs 1.14, and the median random half 0.93: though all
# kinds calibrated, dice would have been better.
#
# </details>


# %%
def without(scores, keep=HALF):
    """The mixture with its best experts."""
    smaller = variant(base)
    prune_experts(smaller, scores, keep=keep)
    return smaller


def harm(model):
    """What it loses on each kind, nats a token."""
    found = {}
    for kind, rows in judging.items():
        found[kind] = perplexity(model, rows, batch_size=16).nll - whole[kind]
    return found


def on_average(name, ratio):
    """The record's mean over kinds, for each draw or each random half."""
    found = record.loc[[(0, "float32", ratio, "cut", name)]]
    found = found.query("kind in ('all', '')")
    return found.groupby(["calibration", "seed"]).damage.mean()


def mean_harm(scores):
    return np.mean([*harm(without(scores)).values()])


# %%
seeds = range(19 * session.seed, 19 * session.seed + 9)
dice = [mean_harm(expert_importance(base, "random", seed=n)) for n in seeds]
here_half = {NAMES[name]: mean_harm(own) for name, own in scores.items()}
here_half |= {"random, least": min(dice), "random, median": np.median(dice)}
costs = {"half, here": here_half}
for column, ratio in (("half, record", 0.5), ("a quarter, record", 0.25)):
    costs[column] = {NAMES[n]: on_average(n, ratio).mean() for n in NAMES}
    dice = on_average("random", ratio)
    costs[column] |= {"random, least": dice.min(), "random, median": dice.median()}
costs = pd.DataFrame(costs)
print("mean over five kinds, nats a token")
halves = costs["half, here"]
asks_when = halves[["REAP", "REAP's sum"]]
here("REAP and its sum beat each random half.", halves["random, least"] - asks_when)
loses = halves["frequency"] - halves["random, median"]
here("Frequency loses to the median random half.", [loses])
known = costs["half, record"]
margins = [*(known["random, least"] - known[["REAP", "REAP's sum"]])]
margins += [known["frequency"] - known["random, median"]]
claim("On record, too, REAP beats the dice, and they frequency.", margins)
costs.round(3)

# %% [markdown]
# ## Whoever calibrates
#
# So far all five kinds chose together. In practice a team calibrates on what lies about. That is often Wikipedia, here the passages.

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# Write one row of the figure, for one draw: `matrix_row(model, criterion, rows, judging)`. Score the model's experts on `rows` by `criterion`, let half
# of each block's experts go, and return what each kind of `judging` loses: a dictionary, kind → nats a token above the whole
# model. The model that you are given stays whole.
#
# <details><summary>Hint</summary>
#
# `expert_importance(model, criterion, batches=rows.batches(8))`, `prune_experts` on a `variant`, and `perplexity(…).nll` before and
# after.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_12 import check_matrix_row


# BEGIN SOLUTION
def matrix_row(model, criterion, rows, judging):
    importance = expert_importance(model, criterion, batches=rows.batches(8))
    half = variant(model)
    prune_experts(half, importance, keep=len(importance[0]) // 2)
    lost = {}
    for kind, held_out in judging.items():
        before = perplexity(model, held_out).nll
        lost[kind] = perplexity(half, held_out).nll - before
    return lost


# END SOLUTION
# BEGIN STUB
# def matrix_row(model, criterion, rows, judging):
#     ...  # your code
# END STUB
check_matrix_row(matrix_row, base, calibration, judging)

# %% [markdown]
# ## Calibrated on Wikipedia
#
# **Predict before you run.** Scored on passages alone, which kind loses most by frequency? And by REAP?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Code, by both: 2.08 nats by frequency, 1.63 by REAP. Mathematics comes next. Random halves cost code 0.99.
#
# </details>

# %%
KIND = "passages"
rows = {}
for name in ("frequency", "reap"):
    own_rows = fifteen(KIND, draw=session.seed).batches(15)
    on_kind = expert_importance(base, name, batches=own_rows)
    rows[f"{NAMES[name]}, here"] = harm(without(on_kind))
    rows[f"{NAMES[name]}, record"] = recorded(0, name).loc[KIND]
rows["random, record"] = recorded(0, "random").loc["random"]
alone = pd.DataFrame(rows).T
others = alone.drop(columns=KIND).mean(axis=1)
print(f"calibrated on {KIND}, nats a token")
margin = others["frequency, here"] - others["REAP, here"]
here("On the other kinds REAP loses less than frequency.", [margin])
alone.round(3)

# %% [markdown]
# The figure at the top is all five rows, each a mean over nine draws of the calibration text. Here it is in numbers, for the shipped
# mixture and for one that was trained with another seed. *Worse than dice* counts the cells off the diagonal that are worse than the
# median random half.

# %%
summed, margins = {}, []
for model in (0, 1):
    dice = recorded(model, "random").loc["random"]
    for name in ("frequency", "reap_sum", "reap"):
        cells = recorded(model, name).loc[[*KINDS]]
        own = np.diag(cells)
        other = cells.mask(np.eye(len(KINDS), dtype=bool))
        summed[f"seed {model}, {NAMES[name]}"] = {
            "own kind": own.mean(),
            "other kinds": np.nanmean(other),
            "worst": other.max(axis=None),
            "worse than dice, of 20": (other > dice).sum(axis=None),
        }
for model, dtype in itertools.product((0, 1), ("float32", "bfloat16")):
    place = [(model, dtype, 0.5, "cut", name) for name in ("frequency", "reap")]
    cells = record.loc[place].query("kind != text and kind != 'all'")
    means = cells.groupby(["criterion", "calibration"]).damage.mean().unstack(0)
    told = f"{(means.reap < means.frequency).sum()} of {len(means)}"
    print(f"seed {model}, {dtype}: REAP is ahead on other kinds in {told} draws")
    margins += [*(means.frequency - means.reap)]
claim("On record REAP is ahead on other kinds in every draw.", margins)
print("half of the experts gone, nats a token")
pd.DataFrame(summed).T.round(3).astype({"worse than dice, of 20": int})

# %% [markdown]
# **Saved run.** On the kinds that didn't calibrate, frequency costs 1.20 nats and REAP 0.90; with the other seed 1.31 and 0.80. REAP is
# ahead in all draws of both.
#
# Ahead isn't safe: where prose calibrates, REAP too loses more code than dice would. Only the mix, by REAP (row *all* of the figure),
# stays below dice everywhere.
#
# ## Why: a weight, and a division
#
# On the mix, frequency sends the fewest tokens to other experts, and yet costs more than dice: these few must lose much each. A count
# doesn't see that. Training has evened it out besides: an expert is asked by 8 to 18 % of the tokens. The sum sees it, since it weighs
# each token by what the expert adds.
#
# On one kind that isn't enough. Wikipedia hardly asks an expert of mathematics, so its sum is small as well. REAP divides by the count:
# the expert is judged by what it does for the few that came. Of one that no token asks, no score knows anything.

# %% [markdown]
# ### Exercise 4 · ●○○ · 4 minutes
#
# A text of 100 tokens sends each to two of four experts. Which expert does each rule drop first?
#
# | expert | tokens that ask it | what it adds to each of them |
# |---|---|---|
# | A | 90 | 0.3 |
# | B | 70 | 0.1 |
# | C | 30 | 0.2 |
# | D | 10 | 0.9 |
#
# <details><summary>Hint</summary>
#
# Two of the three rules can be read off a column. For the sum, multiply.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_12 import check_dropped

# BEGIN SOLUTION
dropped = {"frequency": "D", "sum": "C", "reap": "B"}
# END SOLUTION
# BEGIN STUB
# dropped = {"frequency": ..., "sum": ..., "reap": ...}  # "A", "B", "C" or "D"
# END STUB
check_dropped(dropped)

# %% [markdown]
# ## What comes back
#
# A cut model can learn from the whole one (lesson 07). For the record three halves did, over 77 thousand tokens of all five kinds:
# their routers alone, four small matrices, or all weights.
#
# **Predict before you run.** Does training undo the choice of experts?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Nearly. All weights leave 0.27 nats with REAP's half, 0.33 with frequency's and 0.32 with the random one: most of the lead is gone, and
# most of the harm. Routers alone give back little.
#
# </details>

# %%
arms = record.loc[(0, "float32", 0.5)].reset_index()
arms = arms.query("kind in ('all', '') and calibration == 0 and seed == 0")
healed = arms.pivot_table("damage", "criterion", "edit")  # a mean over the kinds
healed = healed.loc[["reap", "frequency", "random"]]
healed = healed[["cut", "router", "all weights"]]
healed.index = ["REAP", "frequency", "random, one half"]
print("mean over five kinds, nats a token above the whole mixture")
regained = healed["router"] - healed["all weights"]
here("All weights give back more than the routers alone.", regained)
gap = healed.loc["frequency"] - healed.loc["REAP"]
claim(
    "Healed, frequency is less than half as far behind REAP.",
    [gap["cut"] / 2 - gap["all weights"]],
)
healed.round(3)

# %% [markdown]
# ## What a toy can't tell
#
# These experts are small, and the model writes nothing of use. At full size, half of the experts gone by REAP, a 30B kept nearly all of
# its score in mathematics (GSM8K). Of two models with 64 experts a block one kept nine tenths, the other a fifth. Nobody knows
# beforehand: test what you serve, code and tools too.
#
# Keep equally many in each block: transformers builds all blocks alike, even if a configuration lists a number for each.
#
# To do it for real, take llm-compressor's REAP, or NVIDIA's ModelOpt. This course's `prune_experts` works on ten families.

# %% [markdown]
# ### Exercise 5 · ●●● · 12 minutes
#
# **A tutor for code and mathematics.** You get fifteen rows of each kind, and may read fifteen in all. Write `my_scores(model, rows)`,
# where `rows` is a dictionary, kind → rows: return a tensor of scores for each block. Half of the experts then go.
#
# The lesson's mix is three rows of each kind, and REAP over all of them. You win if code and mathematics lose at least 15 % less than
# by that mix, and prose at most two thirds more: a mean of two other draws, on documents that this notebook hasn't read.
#
# <details><summary>Hint</summary>
#
# Two things can change: how many rows of each kind are read, and the score. The sum divides by nothing, REAP by the count;
# `watched` gives you both parts. Try before you hand in: `rows = {kind: fifteen(kind, 3) for kind in KINDS}`, and then
# `harm(without(my_scores(base, rows)))`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_12 import check_own_mix


# BEGIN SOLUTION
def my_scores(model, rows):
    read = {"maths": 5, "code": 4, "passages": 2, "speeches": 2, "scenes": 2}
    batches = [rows[kind][:count].batches(count)[0] for kind, count in read.items()]
    parts = watched(model, batches)  # between the sum and REAP
    return [added / asked.clamp(min=1).sqrt() for asked, added in parts]


# END SOLUTION
# BEGIN STUB
# def my_scores(model, rows):
#     ...  # your code
# END STUB
check_own_mix(my_scores, base)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Half of a mixture's experts are cut. Why is one token written hardly any faster?
#
# - [x] It is sent to as many experts as before.
#   > Right: two of eight cost what two of sixteen cost. The file is smaller.
# - [ ] The router has to choose again for every token.
#   > It always has, and its matrix is small, now half as large.
# - [ ] The experts that stay take over the others' neurons.
#   > They stay as they are: cut equals masked.

# %% [markdown] tags=["quiz"]
# A team calibrates on code alone, by frequency. What should it test before it ships?
#
# - [ ] Code that is older than the code that it calibrated on.
#   > Code is what the cut keeps best.
# - [x] Everything else that it wants the model to do.
#   > Right: what the calibration text doesn't ask for goes first.
# - [ ] Nothing more, if the loss on held-out code stays low.
#   > That is the diagonal of the figure. The harm stands beside it.

# %% [markdown] tags=["quiz"]
# Ten of 2,000 tokens asked an expert, which added 0.9 to each. All others were asked by over 200, and added 0.2. Half go. Which score
# keeps it?
#
# - [ ] Frequency, since it counts tokens.
#   > Ten is few, so it goes early.
# - [ ] The sum, since it adds up what it did.
#   > Nine in all is little beside forty.
# - [x] REAP, since it divides by the ten.
#   > Right: it is judged by what it does when it is asked.

# %% [markdown]
# ## Take-aways
#
# - An expert goes with its row of the router, its matrices and the counts in the fields. Prove it: cut equals masked.
# - The file shrinks, the active parameters don't.
# - What calibrates decides what stays. Calibrate on everything that you will serve, and test each kind by itself.
# - A count keeps the often asked, and can do worse than dice. Weigh what an expert adds; divided by the count, the score loses less of
#   what didn't calibrate.
#
# **The story so far:** the text that chooses decides who pays (lessons 03, 06, 11), here whole experts. **Next:** in lesson 13 half of a
# model's tokens go, and someone else pays. For a mixture of your own there is `prune_experts`.
#
# ## References
#
# - Lasby et al. 2025, *REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression*, arXiv 2510.13999
# - Fedus et al. 2021, *Switch Transformers*, arXiv 2101.03961
# - Muennighoff et al. 2024, *OLMoE: Open Mixture-of-Experts Language Models*, arXiv 2409.02060
# - llm-compressor, *Small Model REAP Ablation Metrics*, https://github.com/vllm-project/llm-compressor/issues/3094
