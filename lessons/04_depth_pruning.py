# ---
# jupyter:
#   course:
#     title: "Depth pruning: taking out whole blocks"
#     minutes: 60
#     hardware: cpu
#     prerequisites: lesson 01 (pruned equals masked, random controls, ceilings); lesson 03 (the activation criterion) helps
#     assets: [smollm2, benchmarks, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - what the residual stream is, and why a model still runs when a whole block is taken out of it
# - block influence: what it measures, where it must be read, and what it doesn't see
# - the surgery: which numbers have to follow when blocks go, and the silent errors when they don't
# - which blocks to take: the last, the first, by influence, by leaving each one out, at random
# - depth against width, at equal size and at equal *measured* speed
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a Llama in architecture with 30 blocks. In the `hub` profile
# the same code runs on Llama-3.2-1B with 16. The saved outputs come from the `embedded` profile on a machine with two
# CPU cores; the next table says which.

# %% tags=["install"]

# %%
import functools
import itertools
import math
import tempfile
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from course_utils.plotting import (
    choices_with_intervals,
    log_ticks,
    pruning_curve,
    scores_with_intervals,
    show_tensor,
    style,
)
from course_utils.session import start

session = start("04")
style()

# %% [markdown]
# ## A residual stream that you can read
#
# A block doesn't replace what it gets. It **adds** something: `x + f(x)`. What runs through the model, from the
# embedding to the head, is one vector for each token, the *residual stream*. Every block reads it and writes into it.
#
# Here is a stream of 5 numbers and 4 blocks. Three of the blocks add a fixed vector. Block 2 adds the stream to itself:
# it doubles it. Block 3 adds the very same vector as block 0.

# %%
embedding = torch.tensor([2.0, 1, 0, -1, 1])
loud, quiet = torch.tensor([-1.0, 2, 1, 0, -1]), torch.tensor([0.0, 0, 1, 0, 0])
toy_blocks = [lambda x: x + loud, lambda x: x + quiet, lambda x: x + x, lambda x: x + loud]


def toy_stream(blocks):
    """The stream before the first block and after each one, [blocks + 1, 5]."""
    stream = [embedding]
    for block in blocks:
        stream.append(block(stream[-1]))
    return torch.stack(stream)


whole = toy_stream(toy_blocks)
ax = show_tensor(whole, title="The stream, block by block", x_label="component", y_label="", fmt=".0f")
ax.set_yticks(range(5), ["embedding", *(f"after block {i}" for i in range(4))])
plt.show()

# %% [markdown]
# **Block influence** asks how far a block *turns* the stream: one minus the cosine between what enters and what leaves
# (Men et al. 2024). 0 is the same direction, 1 is a right angle.
#
# Beside it we put the harm: take the block out, let the others run, and see how far the end of the stream has turned.
#
# *Predict before you run:* which block has influence 0? Is it harmless, then? And which of blocks 0 and 3, which add the
# same vector, has more influence?

# %%
influence = 1 - cosine_similarity(whole[:-1], whole[1:], dim=1)
harm = [
    1 - cosine_similarity(toy_stream(toy_blocks[:i] + toy_blocks[i + 1 :])[-1], whole[-1], dim=0).item()
    for i in range(4)
]
toy_scores = pd.DataFrame(
    {
        "adds": ["loud", "quiet", "itself", "loud"],
        "length of what enters": whole[:-1].norm(dim=1).tolist(),
        "influence": influence.tolist(),
        "harm when taken out": harm,
    }
).rename_axis("block")
print(f"the same vector turns the stream {influence[0] / influence[3]:.0f} × as far in block 0 as in block 3")
print(f"block 2: influence {influence[2].abs():.3f}, harm {harm[2]:.3f}")
toy_scores.round(3)

# %% [markdown]
# Three things to keep. Shapes never change along the stream, so **any** set of blocks can go and the rest still runs. The
# stream grows, so the same addition counts for less later. And influence doesn't see a change of *length*, although a
# longer stream makes everything quieter that comes after. It is a guess about harm, and below we test it.

# %% [markdown]
# ## Block influence on a real Llama

# %%
from course_utils.architectures import describe
from course_utils.models import load_model
from course_utils.session import safe_dtype
from course_utils.texts import token_blocks

dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
total, vocabulary = describe(base).num_blocks, describe(base).vocab_size

calibration = token_blocks(tokenizer, "calibration", tokens=1536, length=128)  # blocks are chosen on this text …
evaluation = token_blocks(tokenizer, "evaluation", tokens=2048, length=128)  # … and judged on this one

print(f"{base.config.name_or_path} in {str(dtype).removeprefix('torch.')}: {base.num_parameters():,} parameters")
print(f"{total} blocks of {sum(weight.numel() for weight in describe(base).blocks[0].parameters()):,} parameters each")
print(describe(base).blocks[0])

# %% [markdown]
# A *hook* is a function that PyTorch calls when a module has run, with what went in and what came out. One hook on each
# block gives us both ends of the cosine. Padded positions are left out, and every real token weighs the same, whatever
# the batches.


# %%
@torch.no_grad()
def block_influence(model, batches):
    """Mean over real tokens of 1 - cos(what enters, what leaves), for each block of a Llama."""
    sums, tokens = torch.zeros(len(model.model.layers), dtype=torch.float64), 0

    def watch(number):
        def hook(block, inputs, output):
            before, after = inputs[0][real].float(), output[real].float()  # [real tokens, hidden]
            sums[number] += (1 - cosine_similarity(before, after, dim=-1)).double().sum().cpu()

        return hook

    hooks = [block.register_forward_hook(watch(number)) for number, block in enumerate(model.model.layers)]
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        real = batch["attention_mask"].bool()
        tokens += int(real.sum())
        model.model(**batch, use_cache=False)  # without the head: it comes after the last block
    for hook in hooks:
        hook.remove()
    return (sums / tokens).float()


# %% [markdown]
# `course_utils` has the same for every family. Do the two agree? And does padding matter?

# %%
from course_utils.depth import block_importance
from course_utils.texts import padded_batches

texts = ["The state of the Union", "Peace", "We need roads, schools and a longer sentence than the others."]
single = padded_batches(tokenizer, texts, batch_size=1)
padded = padded_batches(tokenizer, texts, batch_size=3)
for batches in (single, padded):
    torch.testing.assert_close(block_influence(base, batches), block_importance(base, batches))

influence = block_importance(base, calibration.batches())
gap = (block_importance(base, padded) / block_importance(base, single) - 1).abs().max()
print("block_influence equals block_importance, with padding and without.")
print(f"one batch with padding against three without: {gap:.1%} apart at most, rounding in {str(dtype)[6:]}")

# %% [markdown]
# ### Why hooks?
#
# transformers returns the stream on request, as `output_hidden_states`: a list of `blocks + 1` states. It is tempting to
# take cosines of neighbours. *A common mistake:* the last entry is not what the last block wrote. It comes **after the
# final norm**.

# %%
batch = {name: tensor.to(base.device) for name, tensor in calibration.batches()[0].items()}
written = []  # what really leaves the last block
hook = describe(base).blocks[-1].register_forward_hook(lambda block, inputs, output: written.append(output))
with torch.no_grad():
    states = base.model(**batch, use_cache=False, output_hidden_states=True).hidden_states
    assert len(states) == total + 1
    assert torch.equal(states[-1], base.model.norm(written[0]))  # the last entry is the normalised state
hook.remove()

by_states = torch.stack(
    [(1 - cosine_similarity(a.float(), b.float(), dim=-1)).mean() for a, b in itertools.pairwise(states)]
)
by_states, by_hooks = by_states.cpu(), block_influence(base, [batch])
torch.testing.assert_close(by_states[:-1], by_hooks[:-1])  # all blocks but the last agree


def rank(scores, block):
    """1 is the smallest of the scores."""
    return int((scores < scores[block]).sum()) + 1


pd.DataFrame(
    {
        "from hooks": by_hooks[-3:].tolist(),
        "from output_hidden_states": by_states[-3:].tolist(),
        f"rank of {total}, hooks": [rank(by_hooks, block) for block in range(total - 3, total)],
        f"rank of {total}, states": [rank(by_states, block) for block in range(total - 3, total)],
    },
    index=pd.RangeIndex(total - 3, total, name="block"),
).round(3)

# %%
print(f"last block: {by_hooks[-1]:.3f} with hooks, {by_states[-1]:.3f} from output_hidden_states")
moved = rank(by_hooks, total - 1) - rank(by_states, total - 1)
print("The mistake changes the last block's rank " + (f"by {abs(moved)} of {total}." if moved else "not at all here."))

# %% [markdown]
# ## The surgery
#
# Three things belong to a block's *number*, not to its weights:
#
# | what | who reads it | if it is forgotten |
# |---|---|---|
# | its place in the list of blocks | the forward pass | – |
# | `layer_idx` in its attention | the key/value cache: which drawer is mine? | see below |
# | `num_hidden_layers` in the configuration | whoever builds the model again, and the cache | see below |
#
# Some families have a fourth: lists in the configuration with one entry a block, such as `layer_types` (which blocks have
# a sliding window). Those lose the same entries.
#
# We cut variants: `variant` makes a second model of its own blocks and configuration on the weights of the first.


# %%
def take_out(model, gone, *, renumber=True, tell_config=True):
    """Remove blocks from a Llama, in place. The two switches are for the demonstration of what goes wrong."""
    kept = [block for number, block in enumerate(model.model.layers) if number not in gone]
    model.model.layers = nn.ModuleList(kept)
    if renumber:
        for number, block in enumerate(kept):
            block.self_attn.layer_idx = number
    if tell_config:
        model.config.num_hidden_layers = len(kept)


from course_utils.depth import remove_blocks
from course_utils.models import variant

COUNT = 3  # blocks to remove, here and in most of the lesson
by_influence = influence.argsort(stable=True)[:COUNT].sort().values.tolist()

by_hand, pruned = variant(base), variant(base)
take_out(by_hand, by_influence)
report = remove_blocks(pruned, by_influence)

for ours, theirs in zip(by_hand.parameters(), pruned.parameters(), strict=True):
    assert torch.equal(ours, theirs)
for ours, theirs in zip(by_hand.model.layers, pruned.model.layers, strict=True):
    assert ours.self_attn.layer_idx == theirs.self_attn.layer_idx
assert by_hand.config.num_hidden_layers == pruned.config.num_hidden_layers
del by_hand
report

# %% [markdown]
# ### Is it right?
#
# Lesson 01 had *pruned equals masked*. For blocks it is **removed equals skipped**: leave the block where it is, and let
# a hook replace its output by its input. Then two more equalities, of things that a perplexity would not notice:
# generating with the cache equals generating without, and the reloaded model equals the saved one.

# %%
from course_utils.language_modelling import dtype_name


@contextmanager
def skipping(model, blocks):
    """For a while, these blocks of a Llama hand on their input."""
    hooks = [model.model.layers[i].register_forward_hook(lambda block, inputs, output: inputs[0]) for i in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


exact, _ = load_model("llama", dtype=torch.float32)
few = evaluation.input_ids[:2, :16].to(exact.device)
with torch.no_grad():
    unpruned_logits = exact(few, use_cache=False).logits
    with skipping(exact, by_influence):
        skipped_logits = exact(few, use_cache=False).logits
    remove_blocks(exact, by_influence)
    removed_logits = exact(few, use_cache=False).logits

assert dtype_name(exact) == "float32"
torch.testing.assert_close(removed_logits, skipped_logits, rtol=1e-5, atol=1e-5 * unpruned_logits.abs().max().item())
print(f"removed against skipped: {(removed_logits - skipped_logits).abs().max():.1e}")
print(f"removed against whole:   {(removed_logits - unpruned_logits).abs().max():.1e}")

settings = {"attention_mask": torch.ones_like(few), "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
cached, uncached = (exact.generate(few, **settings, use_cache=cache) for cache in (True, False))
assert torch.equal(cached, uncached)
print(f"generated with the cache = without it: {tokenizer.decode(cached[0, 16:])!r}")
del exact

# %%
from transformers import AutoModelForCausalLM

from course_utils.checkpoints import save_pruned

few = few.to(pruned.device)
with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    save_pruned(pruned, tokenizer, folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(base.device).eval()
    assert torch.equal(reloaded(few).logits, pruned(few).logits)
print(
    f"plain {type(reloaded).__name__}, {reloaded.config.num_hidden_layers} blocks: logits equal after reload, bit for bit"
)
del reloaded

# %% [markdown]
# ### What goes wrong otherwise
#
# Now forget one of the two numbers, or both, on a tiny random Llama with 5 blocks that loses block 0. Each version gets
# four tests: read 8 tokens at once without a cache; read them one at a time with one; generate with and without the cache;
# save, reload with plain transformers and read again.
#
# *Predict before you run:* which versions fail, in which tests, and do they *say* so?

# %%
from transformers.utils import logging

from course_utils.language_modelling import logits_one_by_one
from course_utils.models import tiny_llama

logging.set_verbosity_error()  # transformers' long report of missing weights; most logs scroll past it too
tiny = tiny_llama(blocks=5)
ids = torch.randint(tiny.config.vocab_size, (1, 8))


def at_once(model):
    return model(ids, use_cache=False).logits


def one_by_one(model):
    return logits_one_by_one(model, ids)


def after_reload(model):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model.save_pretrained(folder)
        return at_once(AutoModelForCausalLM.from_pretrained(folder).eval())


def generated(model):
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False}
    cached, uncached = (model.generate(ids, **settings, use_cache=cache) for cache in (True, False))
    return (cached == uncached).float()


@torch.no_grad()
def judged(test, model, expected):
    try:
        outcome = test(model)
    except Exception as error:  # the point of the table is which one
        return f"stops: {type(error).__name__}"
    return "right" if torch.allclose(outcome, expected, atol=1e-5) else "WRONG, no error"


with torch.no_grad(), skipping(tiny, [0]):
    expected = at_once(tiny)
versions = {
    "nothing": {},
    "layer_idx": {"renumber": False},
    "num_hidden_layers": {"tell_config": False},
    "both": {"renumber": False, "tell_config": False},
}
outcomes = {}
for forgotten, switches in versions.items():
    careless = variant(tiny)
    take_out(careless, [0], **switches)
    outcomes[forgotten] = {
        "at once, no cache": judged(at_once, careless, expected),
        "token by token, cache": judged(one_by_one, careless, expected),
        "generate: cache = none": judged(generated, careless, torch.ones(1, 18)),
        "after reload": judged(after_reload, careless, expected),
    }
table = pd.DataFrame(outcomes).T.rename_axis("forgotten")
table

# %%
for forgotten, row in table.iterrows():
    stops, silent = (int(row.str.startswith(word).sum()) for word in ("stops", "WRONG"))
    print(f"forgot {forgotten:<18} {4 - stops - silent} of 4 right, {stops} stopped, {silent} silently wrong")

careless = variant(tiny)
take_out(careless, [0], tell_config=False)
with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    careless.save_pretrained(folder)
    first, second = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
same = [
    all(map(torch.equal, a.parameters(), b.parameters()))
    for a, b in zip(first.model.layers, second.model.layers, strict=True)
]
print(f"\nconfiguration forgotten: {len(careless.model.layers)} blocks saved, {len(first.model.layers)} after reload")
print("reloaded twice, these blocks have the same weights both times:", [i for i, equal in enumerate(same) if equal])
print("new random weights at each reload:", [i for i, equal in enumerate(same) if not equal])

# %% [markdown]
# Read the table by rows. Every version passes the first test, the one that everybody runs. An old `layer_idx` beside a
# true configuration opens a drawer that the cache doesn't have: at least it stops. A configuration that still promises
# the old number is worse: at reload, transformers makes the missing block up, **with random weights**, and says so only
# in a log message. And where block 0 went and *neither* number followed, the cache asks block 0's empty drawer how many
# tokens it has seen, and the positions are off; `generate` counts positions itself and hides it.
#
# So test what you ship: the cache *and* a reload. Now you know why `remove_blocks` sets all of them.

# %% [markdown]
# ## Which blocks can go?
#
# Influence looks at one block's input and output. **Leave-one-out** asks the model itself: skip one block, measure the
# perplexity, put the block back, take the next (Kim et al. 2024). It costs one run of the text for each block instead of
# one for all of them. Both look at *calibration* text only.

# %%
from course_utils.depth import leave_one_out
from course_utils.evaluation import perplexity

rows = calibration.input_ids[:6]
complete = perplexity(base, rows).perplexity
left_out = leave_one_out(base, lambda: perplexity(base, rows).perplexity) / complete  # [blocks], × unpruned
with skipping(base, [1]):
    assert math.isclose(perplexity(base, rows).perplexity / complete, left_out[1].item(), rel_tol=1e-4)

by_leaving_out = left_out.argsort(stable=True)[:COUNT].sort().values.tolist()
print(f"lowest influence:              blocks {by_influence}")
print(f"least missed when left out:    blocks {by_leaving_out}")
print(f"in both sets:                  {len({*by_influence} & {*by_leaving_out})} of {COUNT}")
better = [i for i in range(total) if left_out[i] < 1]
print(f"the model is better without:   {f'blocks {better}' if better else 'no block'} (on {rows.numel()} tokens)")

# %%
figure, axes = plt.subplots(2, 1, figsize=(13, 8.5), sharex=True, layout="constrained")
axes[0].set_yscale("log")
axes[1].set_yscale("symlog", linthresh=10)  # linear up to 10 %, logarithmic beyond
for ax, scores, chosen, label, title in (
    (axes[0], influence, by_influence, "1 − cosine", "Block influence"),
    (axes[1], 100 * (left_out - 1), by_leaving_out, "perplexity added, %", "Each block left out"),
):
    colours = ["C1" if i in chosen else "C0" for i in range(total)]
    ax.bar(range(total), scores, color=colours)
    ax.set_ylabel(label)
    ax.set_title(f"{title} (orange: the {COUNT} lowest)")
    ax.grid(axis="x", visible=False)
    ax.yaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:,.6g}"))
axes[0].set_ylim(bottom=0.6 * influence.min().item())
axes[1].set_xticks(range(total))
axes[1].set_xlabel("block")
plt.show()

# %% [markdown]
# Do the two rankings agree? Spearman's rank correlation is 1 for the same order and 0 for no relation. The interval is a
# bootstrap over blocks: how much does the answer hang on single ones?

# %%
from course_utils.uncertainty import rank_correlation, verdict

for name, blocks in {"all blocks": slice(None), "without the two at each end": slice(2, -2)}.items():
    value, low, high = rank_correlation(influence[blocks], left_out[blocks])
    says = verdict(low, high, below="they disagree", above="they agree", neither="no agreement shown")
    print(f"{name:<28} Spearman {value:+.2f} (95 % interval {low:+.2f} to {high:+.2f}): {says}")

# %% [markdown]
# ## The experiment: 3 blocks, chosen in five ways
#
# The last, the first, by influence, by leave-one-out, and random sets as the control. There are two kinds of them: five from
# all blocks, and five that spare the two blocks at each end. The second kind asks what a criterion knows *beyond* "keep away
# from the ends". All are judged on text that chose nothing.
#
# *Predict before you run:* late blocks turn the stream little, so they say. What will the perplexity be without the last
# three: 1.2 times, 3 times, 100 times the unpruned one?


# %%
from course_utils.evaluation import perplexity_ratio
from course_utils.reports import shown, with_interval
from course_utils.uncertainty import below_and_above, geometric_mean


def without(blocks):
    """A variant of the base model without these blocks."""
    model = variant(base)
    remove_blocks(model, blocks)
    return model


@functools.cache
def perplexity_without(*blocks):
    """Perplexity of the evaluation text without these blocks, given in ascending order."""
    return perplexity(without(blocks), evaluation)


SEEDS = range(5)
choices = {
    "by influence": by_influence,
    "by leave-one-out": by_leaving_out,
    f"last {COUNT}": list(range(total - COUNT, total)),
    f"first {COUNT}": list(range(COUNT)),
}
CONTROLS = {"random": range(total), "random inside": range(2, total - 2)}
for kind, candidates in CONTROLS.items():
    for seed in SEEDS:
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
        choices[f"{kind} {seed}"] = sorted(candidates[i] for i in order[:COUNT].tolist())

unpruned = perplexity_without()
results = {name: perplexity_without(*blocks) for name, blocks in tqdm(choices.items(), desc="choices")}
at_random = {kind: [results[f"{kind} {seed}"] for seed in SEEDS] for kind in CONTROLS}


def row(blocks, score):
    return {
        "blocks": ", ".join(map(str, blocks)),
        "perplexity (95 %)": with_interval(score.perplexity, score.ci_low, score.ci_high),
        "× unpruned (95 %, paired)": with_interval(*perplexity_ratio(score, unpruned)),
        "bits/byte": f"{score.bits_per_byte:.2f}",
    }


table = pd.DataFrame(
    {"unpruned": row([], unpruned)} | {name: row(choices[name], score) for name, score in results.items()}
).T
for kind, scores in at_random.items():
    factor, spread = geometric_mean(score.perplexity / unpruned.perplexity for score in scores)
    table.loc[f"{kind}, geometric mean of {len(SEEDS)} (×/÷ sd)"] = [
        "",
        shown(factor * unpruned.perplexity),
        f"{shown(factor)} (×/÷ {shown(spread)})",
        "",
    ]
table

# %%
ordered = sorted(results, key=lambda name: results[name].perplexity)
choices_with_intervals(
    {f"{name}: {', '.join(map(str, choices[name]))}": results[name] for name in ordered},
    floors={"unpruned": unpruned.perplexity, "uniform guess": vocabulary},
    title=f"{COUNT} of {total} blocks removed",
    ax=plt.subplots(figsize=(11, 7.5), layout="constrained")[1],
)
plt.show()

# %%
for name in list(choices)[:4]:
    cost = results[name].perplexity / unpruned.perplexity
    floor = ", worse than a uniform guess" if results[name].ci_low > vocabulary else ""
    print(f"{name}: {shown(cost)} × unpruned{floor}")
    for kind, scores in at_random.items():
        ratios = [perplexity_ratio(results[name], score) for score in scores]
        better, worse = below_and_above((ends for _, *ends in ratios), at=1)
        print(f"    {kind:<14} beats {better} and loses to {worse} of {len(SEEDS)} sets")

value, low, high = perplexity_ratio(results["by leave-one-out"], results["by influence"])
says = verdict(low, high, at=1, below="better than", above="worse than", neither="not to be told from")
print(f"leave-one-out is {says} influence at {COUNT} blocks: × {with_interval(value, low, high)}")
with_ends = sum(bool({0, total - 1} & {*choices[f"random {seed}"]}) for seed in SEEDS)
print(f"random sets that contain the first or the last block: {with_ends} of {len(SEEDS)}")

# %% [markdown]
# Compare the figure with the bars above it: which blocks do the worst sets hold? A common explanation is that the first
# blocks turn an embedding into something that the others can read, and the last ones turn it into something that the head
# can read. A rule like "the last n" takes the risk without looking. And look at both kinds of random sets: what a criterion
# is worth is what it gains over *them*, not over the worst rule.

# %% [markdown]
# ## One look or several?
#
# The influences were measured on the complete model. Once a block is gone, the stream is another one, and a neighbour may
# have become indispensable. **Iterative** choice measures again after each removal. Mind the numbers: after a removal,
# block 7 may be the old block 8.

# %%
MOST = 6


def choose_iteratively(count):
    """Remove the block of lowest influence `count` times, measuring again each time; the old numbers, in order."""
    model, alive, chosen = variant(base), list(range(total)), []
    for _ in range(count):
        least = int(block_importance(model, calibration.batches()).argmin())
        chosen.append(alive.pop(least))
        remove_blocks(model, [least])
    return chosen


orders = {"one-shot": influence.argsort(stable=True)[:MOST].tolist(), "iterative": choose_iteratively(MOST)}
for name, order in orders.items():
    print(f"{name:<10} {order}")
same = [sorted(orders["one-shot"][:n]) == sorted(orders["iterative"][:n]) for n in range(1, MOST + 1)]
print("same set:", *(f"{n} blocks {'yes' if equal else 'no'};" for n, equal in enumerate(same, start=1)))

# %%
curve = [
    {"choice": name, "blocks": n, "score": perplexity_without(*sorted(order[:n]))}
    for name, order in tqdm(orders.items(), desc="orders")
    for n in range(MOST + 1)
] + [{"choice": "random", "blocks": COUNT, "score": score} for score in at_random["random"]]
curve = pd.DataFrame(curve)
for column in ("perplexity", "ci_low", "ci_high"):
    curve[column] = [getattr(score, column) for score in curve.score]

ax = pruning_curve(
    curve,
    x="blocks",
    y="perplexity",
    group="choice",
    x_label=f"blocks removed, of {total}",
    y_label="perplexity (lower is better)",
    floors={"unpruned": unpruned.perplexity},
    log_y=True,
    x_percent=False,
    title="Chosen by influence, once or step by step",
)
plt.show()

# %%
NO_DIFFERENCE = "no difference shown"
for n in range(1, MOST + 1):
    sets = {name: sorted(order[:n]) for name, order in orders.items()}
    once, steps = (perplexity_without(*blocks) for blocks in sets.values())
    if sets["one-shot"] == sets["iterative"]:
        print(f"{n} blocks: the same set, {shown(once.perplexity / unpruned.perplexity)} × unpruned")
        continue
    value, low, high = perplexity_ratio(steps, once)
    says = verdict(low, high, at=1, below="iterative is better", above="one-shot is better", neither=NO_DIFFERENCE)
    print(f"{n} blocks: {says}, iterative / one-shot × {with_interval(value, low, high)}")

# %% [markdown]
# ## Depth against width
#
# The same parameters can be saved by narrower MLPs. For width we use lesson 03's best criterion, activations, on the same
# calibration text. To be fair to the matrix kernels, widths are multiples of 16.
#
# ### At equal size

# %%
from course_utils.benchmarking import measure_speed, speedup_text, speedup_verdict
from course_utils.reports import model_size
from course_utils.width import neuron_importance, prune_neurons

full_width = describe(base).intermediate_sizes[0]
activation = neuron_importance(base, "activation", batches=calibration.batches())


def narrower(width):
    """A variant of the base model with `width` neurons a block."""
    model = variant(base)
    prune_neurons(model, activation, ratio=1 - width / full_width)
    return model


def in_16s(width):
    return 16 * round(width / 16)


depth_3, depth_6 = without(by_influence), without(sorted(orders["iterative"][:MOST]))
saved = model_size(base).parameters - model_size(depth_3).parameters
a_neuron = sum(weight.numel() for weight in describe(base).blocks[0].mlp.parameters()) // full_width
equal_width = in_16s(full_width - saved / (total * a_neuron))
equal_size = narrower(equal_width)

parameters = {"unpruned": base, f"{COUNT} blocks fewer": depth_3, f"width {equal_width}": equal_size}
for name, model in parameters.items():
    print(f"{name:<15} {model_size(model).parameters:>13,} parameters")
width_score = perplexity(equal_size, evaluation)
value, low, high = perplexity_ratio(results["by influence"], width_score)
DEPTH_TO_WIDTH = {"at": 1, "below": "depth is better", "above": "width is better", "neither": NO_DIFFERENCE}
says = verdict(low, high, **DEPTH_TO_WIDTH)
print(f"At equal size {says}: perplexity {shown(width_score.perplexity)} with narrower MLPs,", end=" ")
print(f"{shown(results['by influence'].perplexity)} with fewer blocks, × {with_interval(value, low, high)}")

# %% [markdown]
# ### At equal measured speed
#
# Equal size is not equal speed: a block that is gone takes its norms, its attention and its Python with it; a narrower
# matrix is a little less work in as many steps. So we measure. All models take turns; the ceiling is what the removed
# FLOPs and bytes could give at most.

# %%
narrow_width = in_16s(full_width - 3 * (full_width - equal_width))
narrow = narrower(narrow_width)
contestants = {
    "unpruned": base,
    f"{COUNT} blocks fewer": depth_3,
    f"{MOST} blocks fewer": depth_6,
    f"width {equal_width}": equal_size,
    f"width {narrow_width}": narrow,
}
speed = measure_speed(contestants, prompt_tokens=128, new_tokens=12, rounds=9).set_index(["model", "phase"])
print("Speed-up (95 % interval), ≤ ceiling")
pd.DataFrame(
    {phase: {name: speedup_text(speed.loc[name, phase]) for name in contestants} for phase in ("prefill", "decode")}
)

# %%
for phase in ("prefill", "decode"):
    for name in list(contestants)[1:]:
        print(f"{phase:<8} {name:<15} {speedup_verdict(speed.loc[name, phase])}")
for count in (COUNT, MOST):
    print(f"if all time went into the blocks, {count} fewer could give × {total / (total - count):.2f}")

# %% [markdown]
# The ceiling of decoding assumes that reading weights is all that takes time, the big embedding included. For one token of
# a small model that isn't so: much of a step is Python and the start of many small kernels, and these go with the *blocks*.
# Hence the second limit in the last two lines: above the ceiling and below this one is no measuring mistake.
#
# Which width would be as fast as the model without 3 blocks? We draw straight lines through the measured widths, read off
# the width, prune to it, and measure *its* perplexity. If even the narrowest isn't as fast, we say so and take that one.

# %%
widths = (full_width, equal_width, narrow_width)
matched = {}
for phase in ("prefill", "decode"):
    speeds = [1.0, *(speed.loc[(f"width {width}", phase)].speedup for width in widths[1:])]
    speeds = np.maximum.accumulate(speeds)  # a narrower MLP is no slower, but for noise
    wanted = speed.loc[(f"{COUNT} blocks fewer", phase)]
    if wanted.speedup > speeds[-1]:
        width, note = narrow_width, f"even width {narrow_width} is slower"
    else:
        width, wide, thin = (
            in_16s(np.interp(value, speeds, widths)) for value in (wanted.speedup, wanted.ci_low, wanted.ci_high)
        )
        note = f"as fast at width {width} (from the interval: {thin} to {wide})"
    matched[phase] = width, perplexity(narrower(width), evaluation)
    value, low, high = perplexity_ratio(results["by influence"], matched[phase][1])
    says = verdict(low, high, **DEPTH_TO_WIDTH)
    print(f"{phase:<8} {COUNT} blocks fewer: × {wanted.speedup:.2f}; {note}")
    print(f"         {says}: perplexity {shown(results['by influence'].perplexity)} with fewer blocks,", end=" ")
    print(f"{shown(matched[phase][1].perplexity)} with narrower MLPs, × {with_interval(value, low, high)}")

# %%
narrow_score = perplexity(narrow, evaluation)
depth_6_score = perplexity_without(*sorted(orders["iterative"][:MOST]))
quality = dict(
    zip(contestants, (unpruned, results["by influence"], depth_6_score, width_score, narrow_score), strict=True)
)
figure, axes = plt.subplots(1, 3, figsize=(17, 5.5), layout="constrained", sharey=True)
for name, model in contestants.items():
    kind = "unpruned" if model is base else "depth" if "blocks" in name else "width"
    color, marker = {"unpruned": ("k", "*"), "depth": ("C0", "o"), "width": ("C1", "s")}[kind]
    score = quality[name]
    bars = {"yerr": [[score.perplexity - score.ci_low], [score.ci_high - score.perplexity]], "capsize": 4}
    bars |= {"color": color, "fmt": marker, "markersize": 11}
    axes[0].errorbar(1 - model_size(model).parameters / model_size(base).parameters, score.perplexity, **bars)
    for ax, phase in zip(axes[1:], ("prefill", "decode"), strict=True):
        fast = speed.loc[(name, phase)]
        sideways = [[fast.speedup - fast.ci_low], [fast.ci_high - fast.speedup]]
        ax.errorbar(fast.speedup, score.perplexity, xerr=sideways, label=name, **bars)
axes[0].set_xlabel("parameters removed")
axes[0].xaxis.set_major_formatter(plt.FuncFormatter(lambda share, _: f"{share:.0%}"))
axes[0].set_ylabel("perplexity (lower is better)")
axes[0].set_yscale("log")
log_ticks(axes[0].yaxis)
axes[0].set_title("by size")
for ax, phase in zip(axes[1:], ("prefill", "decode"), strict=True):
    ax.set_xlabel("measured speed, × unpruned")
    ax.set_title(f"by {phase} speed")
axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Muralidharan et al. 2024 report the same trade on larger models, before and after retraining: width keeps more quality at
# equal parameters, depth gives more speed. What it is on this machine, the three panels say.

# %% [markdown]
# ## A look beyond perplexity
#
# Two tasks: LAMBADA, where the last word of a passage has to be *produced*, and ARC-Easy, where one of four answers has to
# be *picked*. Chance and the majority class are drawn in. The samples are small and fixed, so read the intervals. The
# random set is the middle one of the five.

# %%
from course_utils.evaluation import evaluate, paired

middle = sorted(SEEDS, key=lambda seed: results[f"random {seed}"].perplexity)[len(SEEDS) // 2]
candidates = {
    "unpruned": base,
    f"{COUNT} by influence": depth_3,
    f"{MOST} by influence, iterative": depth_6,
    f"{COUNT} at random (seed {middle})": without(choices[f"random {middle}"]),
}
answers = {
    name: evaluate(model, tokenizer, ["lambada_openai", "arc_easy"], limit=60)
    for name, model in tqdm(candidates.items(), desc="models")
}
frame = pd.concat([answer.assign(model=name) for name, answer in answers.items()])
scores_with_intervals(
    frame[frame.metric != "perplexity"],
    x="task",
    x_label="task (60 documents each)",
    y_label="accuracy",
    title="Producing a word, picking an answer",
)
plt.show()

# %%
for name, answer in list(answers.items())[1:]:
    for difference in paired(answers["unpruned"], answer).itertuples():
        if difference.metric == "perplexity":
            continue
        line = frame[
            (frame.model == name) & (frame.task == difference.task) & (frame.metric == difference.metric)
        ].iloc[0]
        says = verdict(difference.ci_low, difference.ci_high, below="a loss", above="a gain", neither=NO_DIFFERENCE)
        above = "" if line.ci_low > np.nanmax([line.chance, line.majority]) else ", not above the floor"
        print(
            f"{name:<29} {difference.task:<15} {difference.a:.2f} → {difference.b:.2f}: {says}{above} "
            f"({difference.ci_low:+.2f} to {difference.ci_high:+.2f})"
        )

# %% [markdown]
# ### In the literature
#
# Martra's public notebook on depth pruning takes the last 3 of Llama-3.2-1B's 16 blocks. The size follows from the
# configuration alone; no weights are needed.

# %%
from transformers import LlamaConfig, LlamaForCausalLM

llama_32_1b = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
with torch.device("meta"):
    paper = remove_blocks(LlamaForCausalLM(llama_32_1b), [13, 14, 15])
assert (paper.before.parameters, paper.after.parameters) == (1_235_814_400, 1_053_349_888)
print(f"Llama-3.2-1B minus 3 of 16 blocks: {paper.after.parameters / paper.before.parameters - 1:+.1%} parameters")

# %% [markdown]
# There the base model's LAMBADA accuracy falls from .62 to .46. The same cut in the Instruct model takes LAMBADA's
# *perplexity* from 6.6 to 70,920: the same rule, the same size, a different fate. Published comparisons of rules: ShortGPT
# (influence), Shortened LLaMA (leave-one-out perplexity), and Gromov et al. 2024, who take a run of deep blocks and spare
# the very last.

# %% [markdown]
# ## What it costs and buys

# %%
from course_utils.benchmarking import kv_bytes_per_token

pd.DataFrame(
    {
        name: {
            "parameters": f"{model_size(model).parameters:,}",
            "change": f"{model_size(model).parameters / model_size(base).parameters - 1:+.1%}",
            f"weights (MB, {dtype_name(model)})": f"{model_size(model).bytes / 1e6:.0f}",
            "cache, bytes a token": f"{kv_bytes_per_token(model):,}",
            "MFLOPs a token": f"{model_size(model).flops / 1e6:.0f}",
            "prefill, × unpruned": speedup_text(speed.loc[name, "prefill"]),
            "decode, × unpruned": speedup_text(speed.loc[name, "decode"]),
            "perplexity": shown(quality[name].perplexity),
            "bits/byte": f"{quality[name].bits_per_byte:.2f}",
        }
        for name, model in contestants.items()
    }
)

# %%
for name in list(contestants)[1:]:
    cost = quality[name].perplexity / unpruned.perplexity
    cache = 1 - kv_bytes_per_token(contestants[name]) / kv_bytes_per_token(base)
    print(f"{name:<15} perplexity × {cost:.2f}, cache {cache:.0%} smaller")

# %% [markdown]
# Only depth makes the cache smaller: a block that is gone writes no keys and values. Narrower MLPs leave it as it was.
#
# *Predict before you run:* which of the two should gain more from long texts and large batches?

# %%
sizes = {
    name: contestants[name]
    for name in ("unpruned", f"{COUNT} blocks fewer", f"{MOST} blocks fewer", f"width {narrow_width}")
}
parts = [speed.reset_index().assign(batch=1, context=128)]
for batch, context in ((1, 2048), (8, 128)):
    part = measure_speed(sizes, prompt_tokens=context, new_tokens=8, batch_size=batch, rounds=6)
    parts.append(part.assign(batch=batch, context=context))
long = pd.concat(parts)
long = long[long.model.isin(list(sizes)[1:])]
long["× unpruned (95 %), ≤ ceiling"] = [speedup_text(row) for row in long.itertuples()]
long.pivot(index=["phase", "batch", "context"], columns="model", values="× unpruned (95 %), ≤ ceiling")[list(sizes)[1:]]

# %%
for phase in ("prefill", "decode"):
    for name in list(sizes)[1:]:
        short, longest = (
            long[(long.phase == phase) & (long.model == name) & (long.batch == 1) & (long.context == context)].iloc[0]
            for context in (128, 2048)
        )
        change = (
            "more"
            if longest.ci_low > short.ci_high
            else "less"
            if longest.ci_high < short.ci_low
            else "not clearly more or less"
        )
        print(
            f"{phase:<8} {name:<15} gains {change} at context 2048 than at 128: {longest.speedup:.2f} against {short.speedup:.2f}"
        )

# %% [markdown]
# ## Exercises

# %%
from course_utils.exercises.lesson_04 import check_block_influence, check_parameters_left, check_take_out

# %% [markdown]
# ### Exercise 1 · ●○○ · 5 minutes
#
# Write the influence of one block from what entered and what left it, both [rows, length, hidden], and the mask [rows,
# length], which is 1 for real tokens and 0 for padding. Return one number: the mean over **all real tokens** of one minus
# the cosine.
#
# <details><summary>Hint</summary>
#
# `cosine_similarity(before, after, dim=-1)` gives one cosine a token. Select with `mask.bool()` before you average:
# multiplying by the mask and dividing by the number of all positions is not the same.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def influence_of(before, after, mask):
    real = mask.bool()
    return (1 - cosine_similarity(before[real].float(), after[real].float(), dim=-1)).mean()


# END SOLUTION
# BEGIN STUB
# def influence_of(before, after, mask):
#     ...  # your code
# END STUB
check_block_influence(influence_of)

# %% [markdown]
# ### Exercise 2 · ●●○ · 10 minutes
#
# `take_out_with_bugs` looks right, and the model that it returns reads text without complaint. It is wrong in **two** ways.
# One of them shows only when a cache is used. Find both, and write `take_out_blocks` without them. It changes a Llama in
# place and returns it.
#
# <details><summary>Hint</summary>
#
# What does `del some_list[1]` do to the numbers of the entries behind it? And who else knows a block's number?
#
# </details>


# %% tags=["exercise"]
def take_out_with_bugs(model, gone):
    for number in gone:
        del model.model.layers[number]
    model.config.num_hidden_layers = len(model.model.layers)
    return model


# BEGIN SOLUTION
def take_out_blocks(model, gone):
    kept = [block for number, block in enumerate(model.model.layers) if number not in gone]  # old numbers, all at once
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
# ### Exercise 3 · ●●○ · 15 minutes
#
# Predict how many parameters a Llama has when `removed` of its blocks are gone, with arithmetic alone. A block has four
# attention matrices (keys and values are smaller where heads are shared), three MLP matrices and two norms, and no
# biases. The head may share its weights with the embedding, or not.
#
# <details><summary>Hint</summary>
#
# From the configuration: `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`,
# `num_key_value_heads`, `tie_word_embeddings`. A head's size is `hidden_size // num_attention_heads`. One more norm stands
# behind the last block.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def parameters_left(config, removed):
    hidden = config.hidden_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    attention = 2 * hidden * hidden + 2 * hidden * keys  # q and o, k and v
    mlp = 3 * hidden * config.intermediate_size
    block = attention + mlp + 2 * hidden  # two norms
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return embeddings + (config.num_hidden_layers - removed) * block + hidden


# END SOLUTION
# BEGIN STUB
# def parameters_left(config, removed):
#     ...  # your code
# END STUB
check_parameters_left(parameters_left)

# %% [markdown]
# ## Take-aways
#
# - Blocks add to one stream of fixed width, so any of them can go and the rest still runs. Running proves nothing.
# - `layer_idx`, `num_hidden_layers` and per-block lists must follow. Test with the cache *and* after a plain reload: a
#   configuration that promises too many blocks gets random ones.
# - Read influence from hooks. The last entry of `output_hidden_states` has been through the final norm.
# - Choose blocks by a measurement on calibration text, and keep random sets beside it. "The last n" is no measurement.
# - Fewer blocks or narrower MLPs is a question with two answers, one at equal size and one at equal speed. Only depth makes
#   the cache smaller.
#
# ## References
#
# - Men et al. 2024, *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect*, arXiv 2403.03853
# - Kim et al. 2024, *Shortened LLaMA: Depth Pruning for Large Language Models*, arXiv 2402.02834
# - Gromov et al. 2024, *The Unreasonable Ineffectiveness of the Deeper Layers*, arXiv 2403.17887
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the published Llama-3.2-1B figures)
# - Veit et al. 2016, *Residual Networks Behave Like Ensembles of Relatively Shallow Networks*, arXiv 1605.06431
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 05 takes out half a block: the attention goes, the MLP stays.
