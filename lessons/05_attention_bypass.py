# ---
# jupyter:
#   course:
#     title: "Attention bypass: leaving whole attention layers out"
#     prerequisites: lesson 04 (residual stream, cache, leave-one-out, calibration draws)
#     assets: [smollm2, speeches, texts]
#     concepts: [attention bypass, query heads share KV heads, importance with the residual, equality with a silenced reference, iterative choice]
# ---

# %% [markdown]
# ## The question
#
# You left an attention out of a model. Nothing crashed, and the perplexity is fine. Is it out?
#
# **Answer.** Only an equality says so. The bypass that adds its normalised input is wrong and has the better perplexity. The
# true one costs little in most layers, and over ten times the perplexity in one.

# %% [markdown] tags=["notes"]
# **The point:** a perplexity says how good a model is, not which model it is. An equality with an independent reference says
# that, on 32 tokens. Then: what halves of blocks are worth, and a score that forgot the residual.
#
# **Usual questions:** "So attention is useless?" Some layers are hardly missed on short rows, and a few are the model. "Why not
# delete the module?" Then nobody counts tokens for the cache, and a reload makes weights up.
#
# **Wrong turns:** returning the input instead of nothing; a missing layer that no longer counts tokens; believing `generate`,
# which counts by itself.
#
# **At the end you have** a bypass of your own that adds exactly nothing, proved, and what each half of a block is worth.

# %% tags=["install"]

# %%
import itertools
import math
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import (
    log_ticks, mark, ratio_interval, read_record, show, start, style,
)  # fmt: skip

session = start("05")
style()
record = read_record("leave_out")  # of SmolLM2-135M, the embedded profile's Llama
record["layers"] = [" ".join(map(str, layers)) for layers in record.layers]
record["count"] = record.layers.str.split().str.len()
uncut = record[record.criterion == ""].groupby("text").nats.mean()
guessing = np.exp(math.log(49_152) - uncut)  # × unpruned, of its vocabulary
TEXTS, FORMS = ("speeches", "wiki"), record.dtype.unique()


def arms(criterion, count, part="attention", dtype="bfloat16"):
    """What the record has of a criterion's sets of so many layers."""
    chosen = (record.criterion == criterion) & (record["count"] == count)
    chosen &= (record.part == part) & (record.dtype == dtype)
    return record[chosen].set_index(["text", "layers"])


def times(rows):
    """Nats of each row as a ratio of perplexities, with its 95 % interval."""
    mean, _, low, high = ratio_interval(rows, np.ones(len(rows)))
    return [math.exp(value) for value in (mean, low, high)]


# %%
looks = {"figsize": (14, 4.8), "width_ratios": (1, 1.4, 1.4)}
_, (left, *panels) = plt.subplots(1, 3, layout="constrained", **looks)
places = [(count, text) for count in (4, 8) for text in TEXTS]
for place, (count, text) in enumerate(places):
    wrong = arms("adds its input", count).rows[text]
    true = arms("importance", count).rows[text]
    layers = wrong.index[0]
    ratio, low, high = times(wrong[layers] - true[layers])
    ends = [[ratio - low], [high - ratio]]
    left.errorbar(ratio, place, xerr=ends, capsize=5, **mark("wrong"))
left.axvline(1, linestyle=":", color=mark("whole")["color"])
left.set_yticks(range(4), [f"{count} out,\n{text}" for count, text in places])
left.set(ylim=(3.5, -0.5), xlim=(0.85, 1.02), title="wrong / true bypass")
left.set_xlabel("ratio of perplexities")
mlps = mark("neurons") | {"label": "MLPs"}
for panel, text in zip(panels, TEXTS, strict=True):
    for part, looks in (("MLP", mlps), ("attention", mark("attentions"))):
        heights = np.exp(arms("alone", 1, part).damage[text])
        heights = heights.clip(upper=guessing[text])
        panel.plot(range(30), heights, linestyle="none", **looks)
    panel.axhline(guessing[text], **mark("guessing"))
    panel.annotate("beyond ↑", (1, guessing[text] / 2.5))
    panel.set(title=f"one half out: {text}", xlabel="block", yscale="log")
    log_ticks(panel.yaxis)
panels[0].set_ylabel("perplexity, × unpruned")
panels[1].legend()
show(
    "Left: ratio of the wrong bypass's perplexity to the true one's, for four "
    "and eight attentions on speeches and wiki, all below 1. Right: perplexity "
    "without one attention or MLP, by block: near 1 for most, high for a few, "
    "and beyond guessing for MLP 0."
)

# %% [markdown]
# *Left: below 1, the wrong bypass looks better (bars: 95 %). Right: a mark is one half of one block left out; MLP 0 is beyond guessing.*
#
# ## Half a block

# %%
diagrams.attention_bypass()
show(
    "Two Llama blocks side by side on a residual stream. In the left one "
    "attention and MLP both read the stream and add to it, and the attention fills "
    "a cache. In the right one attention and cache are crossed out, and the MLP "
    "still adds."
)

# %% [markdown]
# A block of a Llama adds to the residual stream twice:
#
# $$x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{MLP}(\mathrm{norm}(x))$$
#
# An **attention bypass** turns the first line into $x \leftarrow x$. The MLP works on, and the cache needs no keys and values of this
# block. (Our Llama's 9 heads ask with queries of their own; three at a time share one set of keys and values, a **KV head**. All go. A
# *layer*'s number is its block's.)
#
# Which attention can go? He et al. (2024) ask how far it *turns* the stream, the residual included:
#
# $$\mathrm{importance} = 1 - \cos(x, x + \mathrm{attention}(\mathrm{norm}(x)))$$
#
# *A common mistake* is to forget the residual and to take $1 - \cos(x, \mathrm{attention}(\mathrm{norm}(x)))$.

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# Write it. You get `x` and what the attention adds, both [rows, length, hidden], and the mask [rows, length], 1 for real
# tokens. With `residual=True` return the mean over the **real tokens** of 1 − cos(x, x + added), with `residual=False` of
# 1 − cos(x, added).
#
# <details><summary>Hint</summary>
#
# Select with `mask.bool()` first. Then only the second argument of `cosine_similarity(…, dim=-1)` depends on `residual`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_05 import check_importance


# BEGIN SOLUTION
def importance(x, added, mask, residual=True):
    real = mask.bool()
    before, added = x[real].float(), added[real].float()
    after = before + added if residual else added
    return (1 - cosine_similarity(before, after, dim=-1)).mean()


# END SOLUTION
# BEGIN STUB
# def importance(x, added, mask, residual=True):
#     ...  # your code
# END STUB
check_importance(importance)

# %% [markdown]
# ## What the score sees
#
# A stream of five numbers, and four things that an attention might add. The whisper is a tenth of the shout.
#
# **Predict before you run.** Which of the four may go? And what does a score see that forgets the residual?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The whisper: it hardly changes the stream. With the residual it scores 0.006 and the shout 0.339. Without it both score 1.000: a
# direction, and no size. The eraser scores 0.000 like the echo, and halves the stream: no cosine sees everything.
#
# </details>

# %%
x = torch.tensor([2.0, 1, 0, -1, 1])
shout = torch.tensor([0.0, 2, 1, 2, 0])
names = ["a whisper", "a shout", "an echo", "an eraser"]
additions = torch.stack([0.1 * shout, shout, 0.5 * x, -0.5 * x])
columns = {"with the residual": x + additions, "without it": additions}
toy = {name: 1 - cosine_similarity(x, y, dim=-1) for name, y in columns.items()}
toy["length after / before"] = (x + additions).norm(dim=-1) / x.norm()
pd.DataFrame(toy, index=names).abs().round(3)

# %% [markdown]
# On a real Llama two hooks a block do it: one on the norm, whose input is `x`, and one on the attention. Sixteen rows of
# speeches choose; other speeches and Wikipedia judge.

# %%
from course_utils.models import load_model, tiny_llama, variant
from course_utils.pruning import attention_importance, bypass_attention
from course_utils.support import safe_dtype
from course_utils.text import judging_rows, token_blocks

base, tokenizer = load_model("llama", dtype=safe_dtype(session.dtype))
total = len(base.model.layers)
few, many = round(total / 8), round(total / 4)  # as in He et al.
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
choosing = pool.sample(80, seed=session.seed)[:16]  # the first of five draws
judging = judging_rows(tokenizer, draw=session.seed)


@torch.no_grad()
def importance_of(model, rows):
    """1 - cos(x, x + attention(norm(x))) of each attention, mean over tokens."""
    entered, turned, hooks = [], [], []

    def enter(norm, inputs, output):
        entered.append(inputs[0].float())  # a 16-bit sum would lose small additions

    def leave(attention, inputs, output):
        after = entered[-1] + output[0].float()
        turned.append((1 - cosine_similarity(entered[-1], after, dim=-1)).mean())

    for block in model.model.layers:
        hooks.append(block.input_layernorm.register_forward_hook(enter))
        hooks.append(block.self_attn.register_forward_hook(leave))
    model.model(rows.input_ids.to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(turned).cpu()


scores = importance_of(base, choosing)
theirs = attention_importance(base, choosing.batches(16))
torch.testing.assert_close(scores, theirs, atol=1e-4, rtol=1e-3)
order = scores.argsort(stable=True).tolist()  # least important first
print("importance_of equals attention_importance")
print(f"the {many} that turn the stream least: {sorted(order[:many])}")

# %% [markdown]
# ## A bypass adds exactly zero
#
# Two ways to write an attention that "does nothing". It is given `norm(x)`, and what it returns is added to `x`:
#
# - **return zeros**: the block computes `x + 0`
# - **return the input**, which looks like doing nothing: `x + norm(x)`. *A common mistake.*
#
# The mistake has the lower perplexity. In the record it has, too, for an eighth and a quarter of the attentions, on both texts and
# in both number formats.

# %%
from course_utils.measuring import perplexity


@contextmanager
def returning(model, layers, instead):
    """For a while, these attentions of a Llama return `instead(norm(x))`."""

    def hook(attention, inputs, named, output):
        return instead(named["hidden_states"]), None

    chosen = [model.model.layers[layer].self_attn for layer in layers]
    hooks = [each.register_forward_hook(hook, with_kwargs=True) for each in chosen]
    yield
    for handle in hooks:
        handle.remove()


def nats(model, text):
    """Nats a token of each row that judges."""
    score = perplexity(model, judging[text], batch_size=16)
    return score.row_nll / score.row_tokens


WAYS = "adds its input", "importance"  # the wrong bypass, the true one
layers, intervals, ends = order[:many], [], []
for text in TEXTS:
    with returning(base, layers, torch.zeros_like):
        right = nats(base, text)
    with returning(base, layers, lambda states: states):
        wrong = nats(base, text)
    ratio, low, high = times(wrong - right)
    print(f"{text}, here: input / zeros {ratio:.2f} ({low:.2f} to {high:.2f})")
    ends += [1 - low, 1 - high]
    for count, dtype in itertools.product((4, 8), FORMS):
        wrong, right = (arms(name, count, dtype=dtype).rows[text] for name in WAYS)
        intervals += [times(wrong[each] - right[each]) for each in wrong.index]
ratios, _, highs = zip(*intervals, strict=True)
print(f"record: input / zeros {min(ratios):.2f} to {max(ratios):.2f}", end="")
print(f", highest end of an interval {max(highs):.2f}")
here("The wrong bypass has the better perplexity.", ends)

# %% [markdown]
# **Ask for an equality.** Zeros in an attention's output projection `o_proj` make it add zero, and no forward pass is touched.
# That is an independent reference, and a right bypass equals it in every bit.
#
# **Predict before you run.** Which logits are nearer to the reference: the whole model's, or the mistake's?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The mistake's: 1.8 apart, the whole model's 8.8. Near isn't equal, and two short rows were enough to see it.
#
# </details>


# %%
def silenced(model, layers):
    """A variant whose attentions in these blocks add zero: zeros in `o_proj`."""
    quiet = variant(model)
    for layer in layers:
        projection = quiet.model.layers[layer].self_attn.o_proj
        projection.weight = nn.Parameter(torch.zeros_like(projection.weight))
    return quiet


exact = variant(base).float()  # float32 weights of its own
ids = judging["speeches"].input_ids[:2, :16].to(exact.device)
layers = order[:few]
found = {}
with torch.no_grad():
    reference = silenced(exact, layers)(ids, use_cache=False).logits
    found["the whole model"] = exact(ids, use_cache=False).logits
    with returning(exact, layers, torch.zeros_like):
        found["return zeros"] = exact(ids, use_cache=False).logits
    with returning(exact, layers, lambda states: states):
        found["return the input"] = exact(ids, use_cache=False).logits
    bypass_attention(exact, layers)  # the library's, in place; [] brings all back
    found["bypass_attention"] = exact(ids, use_cache=False).logits
    bypass_attention(exact, [])
    assert torch.equal(exact(ids, use_cache=False).logits, found["the whole model"])
for name, logits in found.items():
    same = "equal, bit for bit" if torch.equal(logits, reference) else "NOT equal"
    print(f"{name:<17} {same}, {(logits - reference).abs().max():.2g} apart")
assert torch.equal(found["bypass_attention"], reference)
wrong = (found["return the input"] - reference).abs().max()
claim("The wrong bypass doesn't equal the silenced model.", [wrong.item()])
del exact

# %% [markdown]
# ### Exercise 2 · ●●○ · 9 minutes
#
# Write `adds_nothing(model, layer, ids)`: True if the attention of this block of a Llama adds **exactly** zero to the stream
# while the model reads `ids`, otherwise False. Any module may stand in the attention's place. The check brings right bypasses of
# several kinds, and wrong ones that a perplexity would let pass.
#
# <details><summary>Hint</summary>
#
# If the attention adds nothing, the block computes `x + block.mlp(block.post_attention_layernorm(x))`. A forward hook
# on the block gets `x` as `inputs[0]`, and the block's output. "Exactly" is `torch.equal`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_05 import check_adds_nothing


# BEGIN SOLUTION
@torch.no_grad()
def adds_nothing(model, layer, ids):
    block, seen = model.model.layers[layer], {}

    def look(block, inputs, output):
        seen.update(x=inputs[0], y=output)

    hook = block.register_forward_hook(look)
    model(ids, use_cache=False)
    hook.remove()
    mlp_alone = seen["x"] + block.mlp(block.post_attention_layernorm(seen["x"]))
    return torch.equal(seen["y"], mlp_alone)


# END SOLUTION
# BEGIN STUB
# def adds_nothing(model, layer, ids):
#     ...  # your code
# END STUB
check_adds_nothing(adds_nothing)

# %% [markdown]
# ## The true bypass
#
# `returning` computes the attention and throws it away. To save anything, another module must stand in its place. The cache has
# a drawer for each attention (lesson 04), and transformers asks the **first** one how many tokens went by.
#
# **Predict before you run.** In a tiny Llama a module that returns zeros stands in for attention 0 or 2. Three tests each: reading
# at once; token by token with a cache; does `generate` write the same with a cache and without? Which fail?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# One: attention 0, token by token. Its drawer stays empty, so each new token is read as if it stood at the beginning. No error was raised,
# and `generate` hides it, because it counts positions by itself.
#
# </details>

# %%
from course_utils.measuring import logits_one_by_one


class ZeroAttention(nn.Module):  # the obvious stand-in
    def __init__(self, layer_idx):  # the number of its drawer
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states, **named):  # the cache is among the named ones
        return torch.zeros_like(hidden_states), None


@torch.no_grad()
def tested(model, expected):
    wanted = {"max_new_tokens": 10, "do_sample": False}
    with_cache = model.generate(tiny_ids, use_cache=True, **wanted)
    without = model.generate(tiny_ids, use_cache=False, **wanted)
    one_by_one = logits_one_by_one(model, tiny_ids)
    return {
        "at once": torch.equal(model(tiny_ids, use_cache=False).logits, expected),
        "token by token": torch.allclose(one_by_one, expected, atol=1e-5),
        "generate": torch.equal(with_cache, without),
    }


tiny, tiny_ids, outcomes = tiny_llama(), torch.arange(1, 9)[None], {}
for layer in (0, 2):
    expected = silenced(tiny, [layer])(tiny_ids, use_cache=False).logits
    stand_in, theirs = variant(tiny), variant(tiny)
    stand_in.model.layers[layer].self_attn = ZeroAttention(layer)
    bypass_attention(theirs, [layer])
    outcomes[f"attention {layer}: zeros"] = tested(stand_in, expected)
    outcomes[f"attention {layer}: library"] = tested(theirs, expected)
outcomes = pd.DataFrame(outcomes).T.replace({True: "right", False: "WRONG"})
wrong = (outcomes == "WRONG").sum(axis=1)
print(f"tests that the library's fails: {wrong.filter(like='library').sum()}")
print(f"WRONG: {wrong.sum()} of all {outcomes.size}")
empty = outcomes.loc["attention 0: zeros", "token by token"] == "WRONG"
claim("Only zeros for attention 0 fail.", [empty - 0.5, 1.5 - wrong.sum()])
outcomes

# %% [markdown]
# ### Exercise 3 · ●●○ · 9 minutes
#
# Your `TrueBypass` is a `ZeroAttention` that also fills its drawer, if there is a cache: for each token that it reads a key and a
# value, as small as can be. The cache is one of the `named` arguments (its name differs between versions, and there isn't always
# one), and `cache.update(keys, values, layer_idx)` wants two tensors [rows, heads, tokens, width].
#
# <details><summary>Hint</summary>
#
# `isinstance(value, Cache)` finds it. One head is enough. Width 0 would be smaller still, but transformers takes a drawer without
# numbers for an empty one.
#
# </details>

# %% tags=["exercise"]
from transformers import Cache

from course_utils.lessons.exercises.lesson_05 import check_true_bypass


# BEGIN SOLUTION
class TrueBypass(ZeroAttention):
    def forward(self, hidden_states, **named):
        rows, tokens, _ = hidden_states.shape
        for value in named.values():
            if isinstance(value, Cache):
                one = hidden_states.new_zeros(rows, 1, tokens, 1)
                value.update(one, one, self.layer_idx)
        return super().forward(hidden_states)


# END SOLUTION
# BEGIN STUB
# class TrueBypass(ZeroAttention):
#     def forward(self, hidden_states, **named):
#         ...  # your code
# END STUB
check_true_bypass(TrueBypass, base)

# %% [markdown]
# ## Saving it
#
# **Predict before you run.** We save the tiny Llama with `ZeroAttention` 2, and load it with plain transformers. The file has no
# weights for that attention. What comes back?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A whole `LlamaAttention`, with weights that are made up anew at each load. No error, a line in the log. A checkpoint has to say
# what is missing: `save_pruned` writes it into the configuration, beside one Python file that builds such a model.
#
# </details>

# %%
import tempfile

from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.utils import logging

from course_utils.pruning import save_pruned

logging.set_verbosity_error()  # transformers' line about missing weights
careless, careful = stand_in, variant(tiny)  # attention 2 is out
bypass_attention(careful, [0, 2])
auto, plain = AutoModelForCausalLM.from_pretrained, LlamaForCausalLM.from_pretrained
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    careless.save_pretrained(folder)
    first, second = (auto(folder).model.layers[2].self_attn for _ in range(2))
    same = torch.equal(first.q_proj.weight, second.q_proj.weight)
    print(f"careless: block 2 has a {type(first).__name__}", end=", ")
    print(f"its weights at two loads are {'the same' if same else 'different'}")
with (
    torch.no_grad(),
    tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
):
    save_pruned(careful, tokenizer, folder)
    again = auto(folder, trust_remote_code=True).eval()
    assert torch.equal(again(tiny_ids).logits, careful(tiny_ids).logits)
    print("save_pruned, trust_remote_code: equal, bit for bit")
    try:
        plain(folder)
    except Exception as error:  # better no model than another one
        print(f"save_pruned, plain class: stops, {type(error).__name__}")

# %% [markdown]
# ## One half at a time
#
# What is each half worth? We leave one out, note the nats, and bring it back, for each attention and each MLP.
#
# **Predict before you run.** Block 11 was dear in lesson 04. Which half of it is? And in how many of 30 blocks is the attention
# the cheaper half?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Its MLP; among the MLPs only 0 is dearer. The attention is the cheaper half in 22 blocks here, in the record in 26 on speeches and in 28
# on Wikipedia. (It has a third of the MLP's parameters.)
#
# </details>


# %%
def silent(half, inputs, output):
    if isinstance(output, tuple):  # an attention gives its weights as well
        return torch.zeros_like(output[0]), None
    return torch.zeros_like(output)


def without(block, part):
    """Nats a token on 4 rows when one half of a block adds nothing."""
    half = block.self_attn if part == "attention" else block.mlp
    hook = half.register_forward_hook(silent)
    score = perplexity(base, few_rows, batch_size=8).nll
    hook.remove()
    return score


def tell(place, halves, guess):
    """The dearest of each kind, how many cost little, which half is cheaper."""
    for part, damages in halves.items():
        print(f"{part}, {place}", end=": ")
        sizes = pd.Series(np.exp(damages)).sort_values(ascending=False)
        for layer, size in sizes[:3].items():
            cost = f"× {size:.1f}" if size < guess else "beyond guessing"
            print(f"{layer} ({cost})", end=", ")
        print(f"{(sizes < 1.2).sum()} of {len(sizes)} below × 1.2")
    cheaper = np.less(*halves.values())  # the attention than the MLP
    print(f"attention the cheaper half, {place}: {cheaper.sum()} of {len(cheaper)}")


few_rows, halves = choosing[:4], {"attention": [], "MLP": []}
intact = perplexity(base, few_rows, batch_size=8).nll
for block, part in tqdm([*itertools.product(base.model.layers, halves)]):
    halves[part].append(without(block, part) - intact)
tell("here", halves, base.config.vocab_size / math.exp(intact))
sizes = np.exp(halves["attention"])
here("Most attentions cost less than × 1.2 alone.", [(sizes < 1.2).mean() - 0.5])
here("One attention alone costs over × 10.", [sizes.max() - 10])
here("It is mostly the cheaper half.", [np.less(*halves.values()).mean() - 0.5])
for text, dtype in itertools.product(TEXTS, FORMS):
    halves = {p: arms("alone", 1, p, dtype).damage[text].tolist() for p in halves}
    tell(f"record, {text}, {dtype}", halves, guessing[text])

# %% [markdown]
# ### Exercise 4 · ●○○ · 6 minutes
#
# Once an attention is gone, later blocks get another stream, and their scores are no longer true. **Iterative** choice measures
# again after each removal. Write `choose_iteratively(model, batches, count)`: leave the attention of least importance out,
# `count` times, and return their numbers in this order. At the end the model is whole again.
#
# <details><summary>Hint</summary>
#
# `attention_importance(model, batches)` gives all scores, `bypass_attention(model, chosen)` leaves just these out. What does a
# bypassed attention score?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_05 import check_choose_iteratively


# BEGIN SOLUTION
def choose_iteratively(model, batches, count):
    chosen = []
    for _ in range(count):
        bypass_attention(model, chosen)
        turned = attention_importance(model, batches)
        turned[chosen] = torch.inf  # a bypassed one scores 0: don't take it twice
        chosen.append(int(turned.argmin()))
    bypass_attention(model, [])
    return chosen


# END SOLUTION
# BEGIN STUB
# def choose_iteratively(model, batches, count):
#     ...  # your code
# END STUB
check_choose_iteratively(choose_iteratively)

# %% [markdown]
# ## Eight of thirty
#
# A quarter of the attentions goes, chosen on five draws of calibration text (the record). *Without residual* is nearly exercise 1's
# `residual=False`: a hook on the attention alone sees $\mathrm{norm}(x)$, not $x$. The control: 19 random sets that spare two
# blocks at each end, as in lesson 04.
#
# **Predict before you run.** How many of the 19 does the choice that forgot the residual beat? And if the worst layer that it takes
# is spared?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None: on every draw it takes attention 1, the dearest one. With that one spared it beats 1 of 19 at most. With the residual
# inside, importance beats all 19, and so does leave-one-out, on every draw and on both texts.
#
# </details>

# %%
CHOOSERS = (
    "importance",
    "importance, again after each",
    "leave-one-out",
    "without residual",
    "without residual, fatal layer spared",
    "last",
)


def costs(text, criterion, dtype="bfloat16"):
    """Perplexity without each of a criterion's sets of eight, × unpruned."""
    return np.exp(arms(criterion, 8, dtype=dtype).damage[text])


table, least, most = {}, {}, {}
for criterion in CHOOSERS:
    row = table[criterion] = {"different sets": len(costs("wiki", criterion))}
    for text in TEXTS:
        every, beaten = [], []
        for dtype in FORMS:
            dice = costs(text, "random", dtype)
            for cost in costs(text, criterion, dtype):
                every.append(cost)
                beaten.append((dice > cost).sum())
        told = f"{min(every):.2f} to {max(every):.2f}"
        beyond = min(every) > guessing[text]
        row[f"{text}: × unpruned"] = "beyond guessing" if beyond else told
        row[f"{text}: random beaten"] = f"{min(beaten)} to {max(beaten)} of 19"
        least[criterion, text], most[criterion, text] = min(beaten), max(beaten)
forgot, spared = (costs("wiki", name).index for name in CHOOSERS[3:5])
fatal = {*" ".join(forgot).split()} - {*" ".join(spared).split()}
print(f"spared in the last but one row: attention {', '.join(fatal)}")
all_of_them = [least[c, text] - 18.5 for c in CHOOSERS[:3] for text in TEXTS]
claim("Importance and leave-one-out beat every random set.", all_of_them)
hardly_any = [1.5 - most[c, text] for c in CHOOSERS[3:5] for text in TEXTS]
claim("Without the residual the choice beats one random set at most.", hardly_any)
pd.DataFrame(table).T

# %% [markdown]
# Measuring again after each changes little here. Leave-one-out is ahead on speeches, which chose it, and not on wiki. The last eight are
# worse than all random sets.
#
# ## Choose eight yourself
#
# `measure([3, 7], "wiki")` gives nats a token on rows to choose by, of `"speeches"` or `"wiki"`, without these attentions.

# %%
from course_utils.text import further_rows

pool = token_blocks(tokenizer, "calibration", domain="wiki", tokens=8192, length=64)
to_choose = {"speeches": choosing[:8], "wiki": pool.sample(8, seed=session.seed)}
exam = further_rows(tokenizer)
recorded = list(dict.fromkeys(record[record["count"] == 8].layers))
opponent = order[:many]  # another model's; ours meets leave-one-out, of speeches
if total == 30:
    first = arms("leave-one-out", 8).index[0][1]  # as text, such as "8 14 17"
    opponent = [int(layer) for layer in first.split()]


def measure(layers, text):
    """Nats a token on 8 rows of a text to choose by, without these attentions."""
    bypass_attention(base, layers)
    score = perplexity(base, to_choose[text], batch_size=8)
    bypass_attention(base, [])
    return score.nll


def judge(layers):
    """What the exam says of these: its score on each text."""
    bypass_attention(base, layers)
    scores = {text: perplexity(base, exam[text], batch_size=16) for text in TEXTS}
    bypass_attention(base, [])
    return scores


for name, layers in {"nothing": [], "leave-one-out's": opponent}.items():
    told = [f"{measure(layers, text):.2f} nats on {text}" for text in TEXTS]
    print(f"left out: {name} {layers}:", ", ".join(told))

# %% [markdown]
# ### Exercise 5 · ●●● · 10 minutes
#
# Give `eight`, a list of eight block numbers whose attentions, left out together, beat leave-one-out's. The exam has rows that nothing has
# used: the ratio of perplexities, yours / theirs, must lie below 1 with its whole interval on one text, and not above 1 on the other. Sets
# of the record don't count.
#
# <details><summary>Hint</summary>
#
# Leave-one-out read speeches only, and took each attention out alone. Read both texts. Take the four that are least missed
# alone, and measure the next ones again in the model that is left.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_05 import check_eight


# BEGIN SOLUTION
def harm(layers):
    return measure(layers, "speeches") + measure(layers, "wiki")


calm = order[: 3 * many // 2]  # those that turn the stream least
alone = sorted(calm, key=lambda layer: harm([layer]))
first, rest = alone[: many // 2], alone[many // 2 :]
again = sorted(rest, key=lambda layer: harm([*first, layer]))  # in what is left
eight = first + again[: many - len(first)]
# END SOLUTION
# BEGIN STUB
# eight = ...  # eight numbers of attentions
# END STUB
check_eight(eight, judge, opponent, recorded)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# A bypass returns the attention's input. Its perplexity is a little better than with zeros. What follows?
#
# - [ ] It is the better bypass of the two, and so the one to be reported.
#   > It is another model: each block adds `norm(x)` to the stream. You would report a method that you don't use.
# - [ ] The text is too short, and on more of it the mistake would show.
#   > On both texts of the record the mistake looks better, with narrow intervals. More text makes it surer.
# - [x] That they are two models, and which of them is the bypass stays open.
#   > Only a reference tells. Zeros in `o_proj` give one without touching any forward pass.

# %% [markdown] tags=["quiz"]
# Attention 0 is replaced by a module that returns zeros. `generate` writes the same with and without a cache. Is it right?
#
# - [ ] Yes, since two independent ways of writing text give the same tokens.
#   > `generate` counts positions itself, so both ways hide the empty drawer.
# - [x] Not shown: compare logits read one by one with those read at once.
#   > There the cache's own count is asked, and the empty first drawer says 0.
# - [ ] No, since a module without weights can't be part of a checkpoint.
#   > It can be part of a running model. Saving is another test.

# %% [markdown]
# ## Take-aways
#
# - A perplexity says how good a model is, an equality which model it is.
# - A bypass adds exactly zero, counts its tokens, and its checkpoint says that it is missing.
# - Most attentions are hardly missed on short rows. Without MLP 0 the model is worse than guessing.
# - The residual belongs inside the cosine. Forgotten, the score takes the dearest attention; with that one spared it still loses
#   to chance.
#
# **The story so far:** a cut is exact or it is wrong. **Next:** must every prompt do without the same attentions? In lesson 06
# each prompt decides.
#
# ## References
#
# - He et al. 2024, *What Matters in Transformers? Not All Attention is Needed*, arXiv 2406.15786
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the idea of this lesson)
