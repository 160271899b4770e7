# ---
# jupyter:
#   course:
#     title: "Depth pruning: taking out whole blocks"
#     minutes: 100
#     prerequisites: lesson 01 (pruned equals masked, random controls, paired intervals); lesson 03 (the activation criterion) helps
#     assets: [smollm2, benchmarks, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - what the residual stream is, and why a model still runs when a whole block is taken out of it
# - the surgery: which numbers have to follow when blocks go, and the silent errors when they don't
# - four ways to choose blocks: influence, leave-one-out, Taylor scores, and the angle across a whole run of blocks
# - random controls that are drawn so that they answer the question, and enough of them
# - depth against width, at equal size and at equal *measured* speed
# - what a minute of healing does, and what a perplexity hides
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a Llama in architecture. In the `hub` profile the same code
# runs on Llama-3.2-1B. The saved outputs come from the `embedded` profile on a machine with two CPU cores; the next table
# says which. Of the minutes above, the exercises take 50.

# %% [markdown] tags=["notes"]
# **The point:** any block can go and the model still runs. That proves nothing; measured choices and random sets do.
#
# **Let the room predict first:** what are the last three blocks worth?
#
# **Usual questions:** "Fewer blocks or narrower MLPs?" Two questions: at equal size, and at equal speed.
#
# **Wrong turns:** forgetting `layer_idx` (exercise 2, in pairs); a configuration that promises too many blocks gets random ones.
#
# **At the end you have** a Llama with fewer blocks that writes the same with and without its cache, and depth beside
# width, at equal size and at equal speed.

# %% tags=["install"]

# %%
import copy
import functools
import itertools
import math
import tempfile
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from course_utils import diagrams
from course_utils.plotting import against_random, log_ticks, pruning_curve, show, show_tensor, style
from course_utils.session import start

session = start("04")
style()

# %% [markdown]
# ## A residual stream that you can read
#
# A block doesn't replace what it gets. It **adds** something: `x + block(x)`. What runs through the model, from the
# embeddings to the head, is one vector for each token, the *residual stream*. Every block reads it and writes into it.

# %%
diagrams.residual_stream(blocks=6, removed=[3])
show(
    "A drawing: the residual stream runs from the embeddings to the head as one line. Each of six blocks reads from it and "
    "adds to it. Block 3 is crossed out, and the line runs on below it."
)

# %% [markdown]
# Block 3 is gone, and the line below it is not cut. The blocks after it still get a vector of the right size; it only
# lacks what block 3 would have added.
#
# Here is a stream of 5 numbers and 5 blocks. Blocks 1 and 4 add the very same *loud* vector, block 2 a *quiet* one. Blocks
# 0 and 3 add the stream to itself: block 0 three times, so that it is four times as long, block 3 once.

# %%
embedding = torch.tensor([2.0, 1, 0, -1, 1])
loud, quiet = torch.tensor([-1.0, 2, 1, 0, -1]), torch.tensor([0.0, 0, 2, 0, 0])
toy_blocks = [lambda x: x + 3 * x, lambda x: x + loud, lambda x: x + quiet, lambda x: x + x, lambda x: x + loud]


def toy_stream(blocks):
    """The stream before the first block and after each one, [blocks + 1, 5]."""
    stream = [embedding]
    for block in blocks:
        stream.append(block(stream[-1]))
    return torch.stack(stream)


whole = toy_stream(toy_blocks)
ax = show_tensor(whole, title="The stream, block by block", x_label="component", y_label="", fmt=".0f")
ax.set_yticks(range(6), ["embedding", *(f"after block {i}" for i in range(5))])
show(
    "A table of numbers in colours: five components of the stream from the embedding on top to the end of block 4 at the "
    "bottom. The numbers grow downwards."
)

# %% [markdown]
# Each row is the row above plus what one block added. Follow a component downwards: the stream grows, so the *loud*
# vector is a large step in block 1 and a small one in block 4.
#
# **Block influence** asks how far a block *turns* the stream: one minus the cosine between what enters and what leaves
# (Men et al. 2024). 0 is the same direction, 1 is a right angle. Beside it we put the harm: take the block out, let the
# others run, and see how far the end of the stream has turned.
#
# **Predict before you run.** Two blocks have an influence of exactly 0. Which? Are they harmless, both of them?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Blocks 0 and 3, which only make the stream longer, have influence 0. Taking out block 3 does the least harm of all
# (0.006). Taking out block 0, with the same influence of 0, does the **most** (0.244): what the later blocks add then
# meets a stream a quarter as long. The loud vector has 5 × the influence in block 1 that it has in block 4.
#
# </details>

# %%
toy_influence = 1 - cosine_similarity(whole[:-1], whole[1:], dim=1)
harm = [
    1 - cosine_similarity(toy_stream(toy_blocks[:i] + toy_blocks[i + 1 :])[-1], whole[-1], dim=0).item()
    for i in range(5)
]
toy_scores = pd.DataFrame(
    {
        "adds": ["itself × 3", "loud", "quiet", "itself", "loud"],
        "length of what enters": whole[:-1].norm(dim=1).tolist(),
        "influence": toy_influence.abs().tolist(),
        "harm when taken out": harm,
    }
).rename_axis("block")
print(
    f"the loud vector has {toy_influence[1] / toy_influence[4]:.0f} × the influence in block 1 that it has in block 4"
)
toy_scores.round(3)

# %% [markdown]
# Three things to keep. Shapes never change along the stream, so **any** set of blocks can go and the rest still runs. The
# same addition counts for less in a longer stream. And influence doesn't see a change of *length*: of two blocks with
# influence 0 one is the safest to remove and the other the worst. It is a guess about harm, and below we test it.

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
COUNT = max(2, round(total / 10))  # blocks to remove, about a tenth …
MOST = 2 * COUNT  # … and about a fifth

# rows from all over each split: blocks are chosen on the first text and judged on the second
calibration = token_blocks(tokenizer, "calibration", tokens=65_536, length=64).sample(16, seed=0)
evaluation = token_blocks(tokenizer, "evaluation", tokens=65_536, length=64).sample(12, seed=0)

print(f"{base.config.name_or_path} in {str(dtype).removeprefix('torch.')}: {base.num_parameters():,} parameters")
print(f"{total} blocks of {sum(weight.numel() for weight in describe(base).blocks[0].parameters()):,} parameters each")
print(f"we shall remove {COUNT} ({COUNT / total:.0%} of them), and then {MOST} ({MOST / total:.0%})")

# %% [markdown]
# `describe` finds the parts in any family. In a Llama they have plain names, which you will meet in every repository: the
# blocks are `model.model.layers`, a list, and each block holds its attention and its MLP.

# %%
assert describe(base).blocks[3] is base.model.layers[3]
for name, weight in base.model.layers[3].named_parameters():
    print(f"model.model.layers[3].{name:<32} {list(weight.shape)}")

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
by_influence = influence.argsort(stable=True)[:COUNT].sort().values.tolist()
gap = (block_importance(base, padded) / block_importance(base, single) - 1).abs().max()
print("block_influence equals block_importance, with padding and without.")
print(f"one batch with padding against three without: {gap:.1%} apart at most, rounding in {str(dtype)[6:]}")
print(f"the {COUNT} blocks of lowest influence: {by_influence}")

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
from course_utils.exercises.lesson_04 import check_block_influence


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
del states, written

pd.DataFrame(
    {"from hooks": by_hooks[-3:].tolist(), "from output_hidden_states": by_states[-3:].tolist()},
    index=pd.RangeIndex(total - 3, total, name="block"),
).round(3)

# %% [markdown]
# All rows agree but the last. A norm has weights of its own and turns the vector, so the last block looks as if it turned
# the stream much more than it does. Whoever reads influence there spares the last block for the wrong reason.

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
@contextmanager
def skipping(model, blocks):
    """For a while, these blocks of a Llama hand on their input."""
    hooks = [model.model.layers[i].register_forward_hook(lambda block, inputs, output: inputs[0]) for i in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


exact = variant(base).float()  # in float32, where rounding can't hide a mistake
shorter = variant(exact)
few = evaluation.input_ids[:2, :16].to(base.device)
with torch.no_grad():
    unpruned_logits = exact(few, use_cache=False).logits
    with skipping(exact, by_influence):
        skipped_logits = exact(few, use_cache=False).logits
    remove_blocks(shorter, by_influence)
    removed_logits = shorter(few, use_cache=False).logits
del exact

torch.testing.assert_close(removed_logits, skipped_logits, rtol=1e-5, atol=1e-5 * unpruned_logits.abs().max().item())
print(f"removed against skipped: {(removed_logits - skipped_logits).abs().max():.1e}")
print(f"removed against whole:   {(removed_logits - unpruned_logits).abs().max():.1e}")

settings = {"attention_mask": torch.ones_like(few), "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
cached, uncached = (shorter.generate(few, **settings, use_cache=cache) for cache in (True, False))
assert torch.equal(cached, uncached)
print(f"generated with the cache = without it: {tokenizer.decode(cached[0, 16:])!r}")
del shorter, unpruned_logits, skipped_logits, removed_logits

# %%
from transformers import AutoModelForCausalLM

from course_utils.checkpoints import save_pruned

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


# %% [markdown]
# **Predict before you run.** Which versions fail, in which tests, and do they *say* so?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Every version passed the first test, the one that everybody runs. With an old `layer_idx` alone, two tests of 4 stopped
# with an `IndexError`: loud, and lucky. With an old `num_hidden_layers` one test was silently wrong: the reload. With both
# forgotten, two were silently wrong, and generating with the cache still looked right.
#
# </details>


# %%
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
silent = table.eq("WRONG, no error").sum(axis=1)
print("silently wrong, of 4 tests:", *(f"{forgotten} {count};" for forgotten, count in silent.items()))
table

# %%
careless = variant(tiny)
take_out(careless, [0], tell_config=False)
with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    careless.save_pretrained(folder)
    first, second = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
same = [
    all(map(torch.equal, a.parameters(), b.parameters()))
    for a, b in zip(first.model.layers, second.model.layers, strict=True)
]
print(f"configuration forgotten: {len(careless.model.layers)} blocks saved, {len(first.model.layers)} after reload")
print("reloaded twice, these blocks have the same weights both times:", [i for i, equal in enumerate(same) if equal])
print("new random weights at each reload:", [i for i, equal in enumerate(same) if not equal])

# %% [markdown]
# An old `layer_idx` beside a true configuration opens a drawer that the cache doesn't have: at least it stops. A
# configuration that still promises the old number is worse: at reload, transformers makes the missing block up, **with
# random weights**, and says so only in a log message. And where block 0 went and *neither* number followed, the cache asks
# block 0's empty drawer how many tokens it has seen, and the positions are off; `generate` counts positions itself and
# hides it.
#
# So test what you ship: the cache *and* a reload. Now you know why `remove_blocks` sets all of them.

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
from course_utils.exercises.lesson_04 import check_take_out


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
# ## Which blocks can go?
#
# Influence looks at one block's input and output. Three other ideas, all on *calibration* text:
#
# - **Leave one out** (Kim et al. 2024, "PPL"): skip one block, measure the perplexity, put the block back, take the next. It
#   asks the model itself, and costs one run of the text for each block instead of one for all.
# - **Taylor** (Kim et al. 2024): the loss changes by about *gradient × weight* when a weight goes to zero. Add up the
#   magnitudes over a block. One run forwards and backwards; the weights themselves come in.
# - **Angle across a run** (Gromov et al. 2024): take `n` *neighbouring* blocks out, those across which the stream turns
#   least. It is influence over a distance: the arc cosine between what enters block `l` and what enters block `l + n`.
#
# Kim et al. spare the first four and the last two blocks with Taylor scores ("Taylor+"). We leave the scores alone and look.
# Taylor is the only one that reads weights. SmolLM2-135M-Instruct, the embedded model, was dequantised from Q4_1: each of
# its matrices lies on a 4-bit grid, group by group, so magnitudes are a little rounded. A sum over a whole block should
# feel that little; we haven't tested it.

# %%
from course_utils.depth import leave_one_out
from course_utils.evaluation import perplexity, perplexity_ratio

rows = calibration[:8]
complete = perplexity(base, rows, batch_size=8)
scored = []


def score():
    scored.append(perplexity(base, rows, batch_size=8))
    return scored[-1].perplexity


left_out = leave_one_out(base, score) / complete.perplexity  # [blocks], × unpruned
left_out_intervals = [perplexity_ratio(without_it, complete) for without_it in scored]
with skipping(base, [1]):
    skipped = perplexity(base, rows, batch_size=8).perplexity / complete.perplexity
assert math.isclose(skipped, left_out[1].item(), rel_tol=1e-4)
by_leaving_out = left_out.argsort(stable=True)[:COUNT].sort().values.tolist()


# %%
def taylor_scores(model, batches):
    """Sum of |weight × its gradient| over each block of a Llama. No gradient outlives the moment it is ready."""
    model, scores = variant(model), torch.zeros(len(model.model.layers))
    model.requires_grad_(False)

    def add_to(number):
        def hook(weight):
            scores[number] += (weight.detach() * weight.grad).float().abs().sum().cpu()
            weight.grad = None

        return hook

    for number, block in enumerate(model.model.layers):
        for weight in block.parameters():
            weight.requires_grad_(True).register_post_accumulate_grad_hook(add_to(number))
    for batch in batches:
        ids = batch["input_ids"].to(model.device)
        model(ids, labels=ids, use_cache=False).loss.backward()
    return scores


@torch.no_grad()
def stream_states(model, token_ids):
    """What enters each block of a Llama and what leaves the last one: [blocks + 1, tokens, hidden]."""
    stream, blocks = [], model.model.layers
    hooks = [block.register_forward_pre_hook(lambda block, inputs: stream.append(inputs[0])) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(lambda block, inputs, output: stream.append(output)))
    model.model(token_ids.to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(stream).flatten(1, 2)


def run_angles(stream, length):
    """For each first block, the mean angle that the stream turns across a run of so many blocks; 1 is half a turn."""
    cosines = cosine_similarity(stream[:-length].float(), stream[length:].float(), dim=-1)  # [first blocks, tokens]
    return cosines.clamp(-1, 1).arccos().mean(dim=1) / math.pi


# %% [markdown]
# For a run of one block the angle is influence in another unit. For longer runs it isn't the sum of the single angles: what
# one block turns, the next may turn back.

# %%
from course_utils.uncertainty import rank_correlation

taylor = taylor_scores(base, rows.batches())
stream = stream_states(base, rows.input_ids).cpu()
runs = {}  # length -> the blocks of the run across which the stream turns least
for length in range(1, MOST + 1):
    first = int(run_angles(stream, length).argmin())
    runs[length] = list(range(first, first + length))
by_taylor = taylor.argsort(stable=True)[:COUNT].sort().values.tolist()

rankings = {"influence": (influence, by_influence), "Taylor": (taylor, by_taylor)}
rankings["angle, one block"] = (run_angles(stream, 1), runs[1])
agreement = {"leave-one-out": {"blocks": by_leaving_out, "Spearman with leave-one-out (95 %)": ""}}
for name, (scores, blocks) in rankings.items():
    value, low, high = rank_correlation(scores, left_out)
    agreement[name] = {
        "blocks": blocks,
        "Spearman with leave-one-out (95 %)": f"{value:+.2f} ({low:+.2f} to {high:+.2f})",
    }
agreement[f"angle, run of {COUNT}"] = {"blocks": runs[COUNT], "Spearman with leave-one-out (95 %)": ""}
pd.DataFrame(agreement).T

# %% [markdown]
# Spearman's rank correlation is 1 for the same order and 0 for no relation; its interval is a bootstrap over blocks. The
# table says how alike the rankings are on the whole. For pruning only one end of a ranking matters, and single blocks can
# be far off. So look at them. The next cell sets the two blocks at each end aside, takes the block that is missed most among
# the others, and puts beside it those of higher influence.

# %%
ENDS, INSIDE = [0, 1, total - 2, total - 1], list(range(2, total - 2))
surprise = max(INSIDE, key=lambda block: left_out[block])
value, low, high = left_out_intervals[surprise]
place = int((influence < influence[surprise]).sum()) + 1
print(f"block {surprise}: influence {influence[surprise]:.3f}, place {place} of {total} from the lowest;")
print(f"without it perplexity × {value:.2f} ({low:.2f} to {high:.2f})")
print(f"the median of the {len(INSIDE)} blocks away from the ends: × {left_out[INSIDE].median():.2f}")
for block in INSIDE:
    if influence[block] > influence[surprise]:
        print(f"block {block}, with the higher influence of {influence[block]:.3f}: × {left_out[block]:.2f}")

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 7.5), sharex=True, layout="constrained")
for ax in axes:
    ax.set_yscale("log")
    ax.grid(axis="x", visible=False)
for block in range(total):
    look = {"fmt": "D", "color": "C1"} if block in by_influence else {"fmt": "o", "color": "C0"}
    axes[0].errorbar(block, influence[block], ms=7, **look)
    axes[0].vlines(block, influence.min() * 0.6, influence[block], colors=look["color"], lw=2)
axes[0].set(ylabel="influence (1 − cosine)", title=f"Block influence (orange diamonds: the {COUNT} lowest)")
for block, (value, low, high) in enumerate(left_out_intervals):
    look = {"fmt": "D", "color": "C1"} if block in by_leaving_out else {"fmt": "o", "color": "C0"}
    axes[1].errorbar(block, value, yerr=[[value - low], [high - value]], capsize=3, ms=7, **look)
axes[1].axhline(1, color="0.25", ls=":")
axes[1].axhline(vocabulary / complete.perplexity, color="0.25", ls="--", label="uniform guess")
axes[1].set(
    ylabel="perplexity, × unpruned", xlabel="block", title=f"Each block left out (diamonds: the {COUNT} lowest)"
)
axes[1].legend(loc="upper center")
axes[1].set_xticks(range(0, total, 2 if total > 20 else 1))
for ax in axes:
    log_ticks(ax.yaxis)
show(
    "Two rows of points over the number of the block, on logarithmic axes. Above, influence: high for the first blocks and "
    "the last, low in the middle. Below, the perplexity with that block left out, with intervals: very high for the first "
    "blocks, raised for the last, and a single peak in the middle that the upper row doesn't have."
)

# %% [markdown]
# Look for two things: where the rows agree (at both ends, and about a calm stretch between them), and for a block that is
# missed far more than blocks of higher influence. Such a block turns the stream no further than they do, but what it writes
# is needed later. Influence can't see that; a ranking that is right on average can be wrong about the one block that ruins
# the model.
#
# **Saved run.** Block 11 has an influence of 0.050. Without it perplexity is × 6.84 (4.67 to 10.02). Block 10, whose
# influence is about the same, costs × 1.42, and block 24, whose influence is three times as high, × 1.73. So the rank
# correlation of +0.80 is real, and it would not have warned anybody.

# %% [markdown]
# ## The experiment: about a tenth of the blocks, chosen in seven ways
#
# By influence, by leave-one-out, by Taylor, the run of least angle, the last blocks, the last but one (Gromov et al.'s
# simple rule: deep blocks, sparing the very last), and the first. All are judged on text that chose nothing.
#
# Beside them stand random sets, and *which* random sets is part of the design. Nobody needs a measurement to stay away from
# the two blocks at each end. So we draw two kinds:
#
# - **random inside**: 19 sets that spare the two blocks at each end. These are what a criterion has to beat: they know
#   about the ends and nothing else. With 19, being better than all of them has a probability of 1/20 by luck.
# - **random with an end**: 4 sets, one with each of the four end blocks. They show what the first kind is spared. Sets
#   drawn from all blocks are a mixture of both, and five of them may hold no end block at all.
#
# **Predict before you run.** Late blocks turn the stream little, so they say. What will the perplexity be without the last
# ones: 1.2 times, 3 times, 100 times the unpruned one? And how many of the 19 random sets will be better than influence?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Without the last 3 blocks perplexity was × 76.8, without the 3 before the very last × 544, without the first 3 × 8,010, far
# beyond a uniform guess. By influence it was × 1.23 (1.14 to 1.32), by leave-one-out × 1.20, by Taylor × 1.17, and for the
# run of least angle × 1.23. None of the 19 random sets inside was as good as any of these four: p = 0.05, the least that 19
# sets can give. (Each p comes from nineteen draws, the same ones, and seven choices were tried.)
#
# </details>


# %%
from course_utils.reports import shown, with_interval


def without(blocks):
    """A variant of the base model without these blocks."""
    model = variant(base)
    remove_blocks(model, list(blocks))
    return model


@functools.cache
def perplexity_without(*blocks):
    """Perplexity of the evaluation text without these blocks, given in ascending order."""
    return perplexity(without(blocks), evaluation, batch_size=len(evaluation))


def draw(candidates, size, seed):
    """So many different ones of the candidates, at random, sorted."""
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return sorted(candidates[i] for i in order[:size].tolist())


choices = {
    "by influence": by_influence,
    "by leave-one-out": by_leaving_out,
    "by Taylor": by_taylor,
    "run of least angle": runs[COUNT],
    "last but one": list(range(total - 1 - COUNT, total - 1)),
    "last": list(range(total - COUNT, total)),
    "first": list(range(COUNT)),
}
controls = {
    "random inside": [draw(INSIDE, COUNT, seed) for seed in range(19)],
    "random with an end": [sorted([end, *draw(INSIDE, COUNT - 1, 100 + end)]) for end in ENDS],
}
unpruned = perplexity_without()
results = {name: perplexity_without(*blocks) for name, blocks in tqdm(choices.items(), desc="choices")}
at_random = {kind: [perplexity_without(*blocks) for blocks in tqdm(sets, desc=kind)] for kind, sets in controls.items()}

# %%
random_ratios = {kind: [score.perplexity / unpruned.perplexity for score in at_random[kind]] for kind in controls}
best = min(controls["random inside"], key=lambda blocks: perplexity_without(*blocks).nll)
summary = {}
for name, score in results.items():
    ratio = score.perplexity / unpruned.perplexity
    ahead = sum(other <= ratio for other in random_ratios["random inside"])
    summary[name] = {
        "blocks": ", ".join(map(str, choices[name])),
        "perplexity": shown(score.perplexity),
        "× unpruned (95 %, paired)": with_interval(*perplexity_ratio(score, unpruned)),
        "of 19 sets inside, as good or better": ahead,
        "p": f"{(1 + ahead) / 20:.2f}",
        "× the best of the 19 (95 %, paired)": with_interval(*perplexity_ratio(score, perplexity_without(*best))),
    }
guess = vocabulary / unpruned.perplexity
print(f"unpruned: {unpruned}; a uniform guess would have {vocabulary:,}, × {shown(guess)}")
for kind, ratios in random_ratios.items():
    low, middle, high = pd.Series(ratios).quantile([0, 0.5, 1])
    print(f"{kind}: {len(ratios)} sets, × {shown(low)} to × {shown(high)}, the median × {shown(middle)}")
share = 1 - math.comb(len(INSIDE), COUNT) / math.comb(total, COUNT)
print(f"of all sets of {COUNT}, {share:.0%} hold an end block; the best of the 19 inside is {best}")
pd.DataFrame(summary).T

# %%
against_random(
    {f"{name}: {summary[name]['blocks']}": perplexity_ratio(score, unpruned) for name, score in results.items()},
    {f"{kind} ({len(ratios)})": ratios for kind, ratios in random_ratios.items()},
    x_label="perplexity, × unpruned (logarithmic)",
    limit=12,
    lines={"unpruned": 1.0, "uniform guess": guess},
    title=f"{COUNT} of {total} blocks removed (a uniform guess: × {shown(guess)})",
)
show(
    "A row for each way of choosing, with its perplexity relative to the unpruned model, and below them a dot for each "
    "random set. The choices that measured something stand to the left of all random dots; the last and the first blocks "
    "are arrows at the right edge."
)

# %% [markdown]
# The grey dots are the yardstick; the dashed line is the median of *random inside*. A choice to the left of all its 19
# dots knows more than "keep away from the ends"; one among them has shown nothing. The last row, with an end block in
# each set, and the rules "last" and "first" show what is lost there.
#
# **Saved run.** The 19 sets inside cost × 1.34 to × 13.0, the median × 1.66; the 4 sets with an end block × 3.31 to
# × 2,142. All four choices that measured something (× 1.17 to × 1.23) are ahead of all 19. On the same rows leave-one-out
# has × 0.90 (0.82 to 0.98) the perplexity of the best of them, blocks 5, 14 and 18, although that set is the best *on these
# rows*, which is in its favour. For influence it is × 0.91 (0.84 to 1.00), only just. Which of the four is best, we didn't
# test. Taylor stayed away from the ends by itself, without Kim et al.'s rule. And "deep, but not the very last" is a
# bad rule as long as nothing is healed: × 544, where the last three cost × 76.8.
#
# A common explanation for the ends: the first blocks turn an embedding into something that the others can read, and the
# last ones turn it into something that the head can read. A rule like "the last n" takes the risk without looking.

# %% [markdown]
# ### Exercise 3 · ●●○ · 5 minutes
#
# *What does this output not show?* A colleague took 3 of 30 blocks out of a model, chosen by influence on calibration text,
# and reports the perplexity on another text, all of it speeches:
#
# | set | × unpruned |
# |---|---|
# | by influence | 1.30 (1.25 to 1.36, paired) |
# | five random sets | 1.43, 1.58, 1.69, 1.75, 2.34 |
#
# Which of these sentences do the numbers **not** show?
#
# - **A** · The set chosen by influence did better than each of the five random sets.
# - **B** · Influence beats random choice at the 5 % level.
# - **C** · On text of this kind, the model without these three blocks is worse than the whole one.
# - **D** · The three blocks of lowest influence are the best three to remove.
# - **E** · On another task, the set chosen by influence does better than a random set.
#
# <details><summary>Hint</summary>
#
# If influence knew nothing, how often would its set still be the best of six?
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_04 import check_claims

# BEGIN SOLUTION
# B: best of six happens by luck in one case of six. D: few of the 4,060 sets were tried. E: one measure, one text.
not_shown = {"B", "D", "E"}
# END SOLUTION
# BEGIN STUB
# not_shown = ...  # for example {"A", "B"}
# END STUB
check_claims(not_shown)

# %% [markdown]
# ### Exercise 4 · ●●○ · 10 minutes
#
# *Design a control.* "Run of least angle" differs from our random sets in **two** things: it was chosen by a measurement,
# and its blocks are neighbours. If it does worse than they do, you can't tell which of the two is to blame. Write the
# control that differs in one thing only: `control_runs(total, count, spared, sets, seed)` returns `sets` random *runs* of
# `count` neighbouring blocks, each a list of numbers, that spare `spared` blocks at each end. No run comes twice; where
# there are fewer runs than `sets`, return all of them.
#
# <details><summary>Hint</summary>
#
# A run is known by its first block. Which numbers can that be? `random.Random(seed).sample(...)` draws without
# replacement.
#
# </details>

# %% tags=["exercise"]
import random

from course_utils.exercises.lesson_04 import check_control_runs


# BEGIN SOLUTION
def control_runs(total, count, spared, sets, seed):
    firsts = range(spared, total - spared - count + 1)
    drawn = random.Random(seed).sample(firsts, min(sets, len(firsts)))
    return [list(range(first, first + count)) for first in drawn]


# END SOLUTION
# BEGIN STUB
# def control_runs(total, count, spared, sets, seed):
#     ...  # your code
# END STUB
check_control_runs(control_runs)

# %% [markdown]
# ## One look or several?
#
# The influences were measured on the complete model. Once a block is gone, the stream is another one, and a neighbour may
# have become indispensable. **Iterative** choice measures again after each removal. Mind the numbers: after a removal,
# block 7 may be the old block 8.


# %%
def choose_iteratively(count):
    """Remove the block of lowest influence `count` times, measuring again each time; the old numbers, in order."""
    chosen = [int(influence.argmin())]  # the complete model was measured above
    while len(chosen) < count:
        alive = [block for block in range(total) if block not in chosen]
        chosen.append(alive[int(block_importance(without(chosen), calibration.batches()).argmin())])
    return chosen


one_shot, iterative = influence.argsort(stable=True)[:MOST].tolist(), choose_iteratively(MOST)
print(f"one-shot   {one_shot}")
print(f"iterative  {iterative}")
counts = [COUNT // 2, COUNT, (COUNT + MOST) // 2, MOST]
cuts = {
    "one-shot influence": {n: sorted(one_shot[:n]) for n in counts},
    "iterative influence": {n: sorted(iterative[:n]) for n in counts},
    "run of least angle": {n: runs[n] for n in counts},
}
curve = []
for name, sets in tqdm(cuts.items(), desc="orders"):
    for n, blocks in {0: [], **sets}.items():
        ratio, low, high = perplexity_ratio(perplexity_without(*blocks), unpruned)
        curve.append({"choice": name, "blocks": n, "ratio": ratio, "ci_low": low, "ci_high": high})
curve = pd.DataFrame(curve)
curve.pivot(index="blocks", columns="choice", values="ratio")[list(cuts)].round(2)

# %% [markdown]
# The bands of such a figure overlap where the rules hardly differ, and also where they do: most of a band is the choice of
# text, which all rules share. So compare the rules on the same rows of text, as ratios.

# %%
from course_utils.uncertainty import verdict

MORE_OR_LESS = {"at": 1, "below": "better", "above": "worse", "neither": "no difference shown"}
for name in ("iterative influence", "run of least angle"):
    for n in (COUNT, MOST):
        pair = (perplexity_without(*cuts[which][n]) for which in (name, "one-shot influence"))
        value, low, high = perplexity_ratio(*pair)
        says = verdict(low, high, **MORE_OR_LESS)
        print(f"{n} blocks, {name} against one-shot: {says}, × {with_interval(value, low, high)}")

# %%
pruning_curve(
    curve,
    x="blocks",
    y="ratio",
    group="choice",
    x_label=f"blocks removed, of {total}",
    y_label="perplexity, × unpruned",
    control=None,
    log_y=True,
    x_percent=False,
    title="Once, step by step, or a run",
)
show(
    "Perplexity relative to the unpruned model against the number of blocks removed, on a logarithmic axis: three lines "
    "with bands, for influence measured once, influence measured again after each removal, and the run of least angle. All "
    "rise as more blocks go."
)

# %% [markdown]
# Each line is a rule for choosing, and every point on it a different model. The printed ratios compare the rules on the same
# rows of text, which is sharper than the bands.
#
# **Saved run.** Against one-shot influence, the run of least angle has a lower perplexity at 6 blocks (× 0.87, 0.78 to
# 0.96); at 3 the two can't be told apart (× 1.00, 0.93 to 1.09). Measuring influence again after each removal was no help:
# no difference is shown at 3 blocks (× 1.08, 0.98 to 1.19), and at 6 the set is a worse one (× 1.15, 1.07 to 1.22). It took
# blocks 3 and 12 where one look took 15 and 26; which of these made the difference, we didn't test. More measuring of the
# wrong thing doesn't make it the right one.
#
# A run has one practical charm: what is left is two pieces that meet at a single seam. We come back to it when we heal.

# %% [markdown]
# ## Depth against width
#
# The same parameters can be saved by narrower MLPs. Each side gets a criterion on the same calibration text: leave-one-out
# for depth, lesson 03's activations for width. (Depth has a small head start: that leave-one-out is among its good criteria,
# we saw on the same text that judges here.) All widths are multiples of 64. Matrix kernels work in tiles, and an odd width
# may be slow for reasons that have nothing to do with pruning (lesson 10 looks at that).
#
# ### At equal size
#
# No multiple of 64 hits the size of the depth-pruned model exactly. So we take the two next to it: the wider one has a few
# parameters more, the narrower one a few less. Width is better at equal size only if even the *narrower* one is better, and
# depth only if even the wider one is worse.

# %%
from course_utils.benchmarking import measure_speed, relative_speed
from course_utils.reports import model_size
from course_utils.width import neuron_importance, prune_neurons

full_width = describe(base).intermediate_sizes[0]
activation = neuron_importance(base, "activation", batches=calibration.batches())


def narrower(width):
    """A variant of the base model with `width` neurons a block."""
    model = variant(base)
    prune_neurons(model, activation, ratio=1 - width / full_width)
    return model


@functools.cache
def perplexity_at(width):
    """Perplexity of the evaluation text with `width` neurons a block; the narrower matrices live only that long."""
    return perplexity(narrower(width), evaluation, batch_size=len(evaluation))


by_depth, deeper = f"{COUNT} blocks fewer", f"{MOST} blocks fewer"
shorter, depth_score = without(by_leaving_out), results["by leave-one-out"]
saved = model_size(base).parameters - model_size(shorter).parameters
a_neuron = sum(weight.numel() for weight in describe(base).blocks[0].mlp.parameters()) // full_width
steps = saved / (total * a_neuron) / 64  # so many times 64 neurons a block are worth the blocks
widths = [full_width - 64 * n for n in (math.floor(steps), math.ceil(steps), round(2 * steps), round(3 * steps))]
print(f"{by_depth}: leave-one-out's set, {by_leaving_out}; {deeper}: the run of least angle, {runs[MOST]}")
for width in widths[:2]:
    more = (saved - (full_width - width) * total * a_neuron) / (model_size(base).parameters - saved)
    value, low, high = perplexity_ratio(perplexity_at(width), depth_score)
    says = verdict(low, high, **MORE_OR_LESS)
    print(
        f"width {width}, {more:+.1%} parameters against {by_depth}: {says}, perplexity × {with_interval(value, low, high)}"
    )

# %% [markdown]
# ### At equal measured speed
#
# Equal size is not equal speed: a block that is gone takes its norms, its attention and its Python with it; a narrower
# matrix is a little less work in as many steps. So we measure. All models take turns, and each is compared with the
# depth-pruned one *round by round*: the interval of that ratio is the uncertainty of "equally fast".
#
# **Predict before you run.** How narrow must the MLPs be until the model is as fast as the one with fewer blocks: as narrow
# as for equal size, or narrower? And which of the two is better then?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It stays open. At equal size, against 3 blocks fewer, perplexity is × 0.92 (0.85 to 1.00) at width 1344, which is better and
# a little larger, and × 0.99 (0.90 to 1.10) at width 1280, which is a little smaller: no winner. At equal speed there is
# none, either: width 1344 generates at × 0.95 of the speed (0.85 to 1.12), which isn't shown to be slower, and no width is
# shown to be at least as fast. Much narrower costs quality, × 1.78 (1.47 to 2.17) the perplexity at width 896, and isn't
# shown to be faster: six rounds can't tell speeds that are so close.
#
# </details>

# %% tags=["timed"]
timed = {"unpruned": base, by_depth: shorter, deeper: without(runs[MOST])}
timed[f"width {widths[1]}"] = narrower(widths[1])
setting = {"prompt_tokens": 128, "new_tokens": 6, "rounds": 6}
speed = measure_speed(timed, **setting)
against = [relative_speed(speed, by_depth)] + [
    # one at a time: each narrower model has matrices of its own
    measure_speed({by_depth: shorter, f"width {width}": narrower(width)}, **setting)
    for width in (widths[0], *widths[2:])
]
against = pd.concat(against).query("model.str.startswith('width')").set_index(["model", "phase"])

contestants = [f"width {width}" for width in widths]
quality = {name: perplexity_ratio(perplexity_at(int(name.split()[1])), depth_score) for name in contestants}
print(f"widths against {by_depth}: speed and perplexity as ratios (95 % interval)")
pd.DataFrame(
    {
        phase: {
            name: with_interval(*against.loc[(name, phase), ["speedup", "ci_low", "ci_high"]]) for name in contestants
        }
        for phase in ("prefill", "decode")
    }
    | {"perplexity": {name: with_interval(*quality[name]) for name in contestants}}
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained", sharey=True)
for ax, phase in zip(axes, ("prefill", "decode"), strict=True):
    for number, name in enumerate(contestants):
        fast, (value, low, high) = against.loc[(name, phase)], quality[name]
        sideways = [[fast.speedup - fast.ci_low], [fast.ci_high - fast.speedup]]
        bars = {"xerr": sideways, "yerr": [[value - low], [high - value]], "capsize": 4}
        ax.errorbar(fast.speedup, value, fmt="sD^v"[number], color=f"C{number + 1}", label=name, **bars)
    ax.plot(1, 1, "o", color="C0", markersize=13, fillstyle="none", markeredgewidth=2.5, zorder=5, label=by_depth)
    ax.axvline(1, color="C0", ls=":")
    ax.axhline(1, color="C0", ls=":")
    ax.set(xlabel="speed, × fewer blocks", title=phase)
axes[0].set(ylabel="perplexity, × fewer blocks", yscale="log")
log_ticks(axes[0].yaxis)
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
show(
    "Two panels, reading a prompt and generating: perplexity against measured speed, both relative to the depth-pruned model, "
    "which is a dot where two dotted lines cross at 1. Four widths with intervals: the narrower, the worse. A point in "
    "the lower right quarter would beat depth in both."
)

# %% [markdown]
# The dotted cross is the model with fewer blocks. A width to the right of it is faster, one below it is better, and only in
# the lower right quarter would width win outright. Where an interval touches the vertical line, the two can't be told apart
# in speed.
#
# The widest width that is *not shown to be slower* is the kindest comparison for width: if depth is better even there, it is
# better at equal speed. The widest that is *shown to be at least as fast* is the kindest for depth: if depth is worse even there, width
# is better. Anything between leaves it open.

# %% tags=["timed"]
for phase in ("prefill", "decode"):
    speeds = {name: against.loc[(name, phase)] for name in contestants}  # from the widest on
    print(f"{phase}, depth against the widest that is")
    for claim, names in {
        "not shown to be slower": [name for name, fast in speeds.items() if fast.ci_high >= 1],
        "shown to be at least as fast": [name for name, fast in speeds.items() if fast.ci_low >= 1],
    }.items():
        if not names:
            print(f"    {claim}: there is none")
            continue
        value, low, high = perplexity_ratio(depth_score, perplexity_at(int(names[0].split()[1])))
        says = verdict(low, high, **MORE_OR_LESS)
        print(f"    {claim}, {names[0]}: {says}, perplexity × {with_interval(value, low, high)}")

# %% [markdown]
# **Saved run.** No winner. The kindest comparison for width is width 1344: it isn't shown to be slower, and beside it depth
# is worse, × 1.08 the perplexity (1.00 to 1.17). So depth isn't shown to be better at equal speed. There is no width that is
# shown to be at least as fast. So width isn't shown to be better, either. 756 tokens and six rounds
# would show a large difference only.
#
# For larger models the literature reports a trade. Width keeps more quality at equal parameters, before and after
# retraining (Muralidharan et al. 2024). Depth gives more speed: of two models of about 4 billion parameters cut from
# Llama-3.1-8B, the narrower one scores higher and the shorter one runs faster (Sreenivas et al. 2024). How much depth gains
# depends on what a layer costs beside its arithmetic, such as Python and the start of many small kernels. A lean engine has
# less of that; lesson 10 measures both.

# %% [markdown]
# ## A taste of healing
#
# The blocks on both sides of a gap were trained to have neighbours that are gone. How much of the damage is only that? We
# take the run of least angle out, about a fifth of the blocks, and train **the two blocks at the seam** for a few steps to copy the
# whole model's predictions. Everything else is frozen and shared with the base model, so it costs little memory. This
# is lesson 07's distillation in a dozen lines. The learning rate was chosen on calibration text, the training text is a
# third split, and the evaluation text was used for neither.

# %%
HEALING_STEPS, HEALING_ROWS, HEALING_LR = 8, 8, 1e-3


def heal(student, teacher, seams, rows):
    """Train the blocks `seams` of a Llama, in place, to predict what the teacher predicts."""
    student.requires_grad_(False)
    for number in seams:  # of their own and in float32; all others stay shared with the teacher
        block = copy.deepcopy(student.model.layers[number]).float()
        student.model.layers[number] = block.requires_grad_(True)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0)
    for step, ids in enumerate(rows.split(HEALING_ROWS)):
        warm, left = min(1, (step + 1) / 3), 1 - step / HEALING_STEPS
        optimizer.param_groups[0]["lr"] = HEALING_LR * warm * left
        ids = ids.to(teacher.device)
        with torch.autocast(teacher.device.type, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                wanted = teacher(ids, use_cache=False).logits.float().log_softmax(-1)
            given = student(ids, use_cache=False).logits.float().log_softmax(-1)
        loss = F.kl_div(given.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 == 0 or step == HEALING_STEPS - 1:
            print(f"step {step:>2}: {loss.item():.2f} nats a token from the teacher")
    return student.to(dtype)


tokens = HEALING_STEPS * HEALING_ROWS
lessons = token_blocks(tokenizer, "distillation", tokens=131_072, length=64).sample(tokens, seed=0).input_ids
first = runs[MOST][0]  # the number of the block that now follows the gap; before it is first - 1
seam = [number for number in (first - 1, first) if 0 <= number < total - MOST]
print(f"removed: {runs[MOST]}; trained: the blocks beside the gap, now {seam}, on {lessons.numel():,} tokens")
healed = heal(without(runs[MOST]), base, seam, lessons)

# %%
broken_score, healed_score = perplexity_without(*runs[MOST]), perplexity(healed, evaluation, batch_size=len(evaluation))
for name, score in {deeper: broken_score, "healed": healed_score}.items():
    print(f"{name:<15} perplexity × {with_interval(*perplexity_ratio(score, unpruned))} unpruned")
value, low, high = perplexity_ratio(healed_score, broken_score)
print(f"healed against not healed: {verdict(low, high, **MORE_OR_LESS)}, × {with_interval(value, low, high)}")

# %% [markdown]
# **Saved run.** Without blocks 13 to 18 perplexity is × 1.48 (1.37 to 1.59) that of the unpruned model. After 8 steps on two
# blocks it is × 1.23 (1.13 to 1.34): on this kind of text, about half of what a fifth of the blocks had cost is back.
#
# Is that recovery, or has the model merely grown used to speeches? One kind of text can't tell, and there is no control
# here. The next section asks another kind of text, and lesson 07 does it properly. What it shows already: damage before
# healing and damage after healing are two different questions. Whether a ranking of cuts changes between them, one healed cut
# can't show.
#
# ### What they write
#
# The smaller cut is leave-one-out's set, as above; the larger one, healed or not, is the run of least angle.

# %%
from course_utils.language_modelling import continuations

speakers = {"unpruned": base, by_depth: shorter, deeper: timed[deeper], "healed": healed}
speakers[f"last {COUNT} removed"] = without(choices["last"])
beginnings = ["The capital of France is", "She opened the door and"]
written = continuations(speakers, tokenizer, beginnings, new_tokens=16)
with pd.option_context("display.max_colwidth", None):
    display(written.T)

# %% [markdown]
# Same prompts, greedy decoding. Read the columns from the top down: where does the model stop knowing facts, where does
# it stop writing sentences? A sample is no measurement, but it shows what kind of damage a number stands for.
#
# **Saved run.** With 3 blocks fewer it still names Paris and writes sentences, and repeats itself. With 6 fewer Paris becomes
# the capital of the United States; healed, of France and of the United States. Without the last 3 there are words and
# numbers, and no sentence.

# %% [markdown]
# ## A look beyond perplexity
#
# In LAMBADA the last word of a passage has to be *produced*; it can be guessed only by who has followed the whole passage.
# Passages come from novels, not from speeches. We ask the models chosen by influence and by leave-one-out, the larger cut and
# the same cut healed, and the first five of the random sets inside.
#
# **Predict before you run.** On speeches you saw how the two choices stand against the random sets. Will they stand like
# that here? And does what we healed on speeches help?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# They did not. On speeches both choices were ahead of all 19 random sets. Here one of the five random sets, blocks 4, 5 and
# 26, costs least of all: × 1.72 (1.04 to 2.84), against × 3.94 (1.97 to 7.90) by influence and × 8.41 (3.04 to 23.3) by
# leave-one-out; passage by passage, leave-one-out has × 4.89 (1.64 to 14.6) the perplexity of that set. And the healing that
# took the larger cut from × 1.48 to × 1.23 on speeches took it to × 0.90 of what it was here, passage by passage (0.69 to
# 1.17): it may have helped, and it isn't shown.
#
# </details>

# %%
from course_utils.evaluation import evaluate
from course_utils.uncertainty import ratio_interval

DOCUMENTS, SETS = 32, 5
asked = {
    "unpruned": base,
    "by influence": without(by_influence),
    "by leave-one-out": shorter,
    deeper: timed[deeper],
    f"{MOST} fewer, healed": healed,
}
asked |= {f"random {', '.join(map(str, blocks))}": without(blocks) for blocks in controls["random inside"][:SETS]}
answers = {
    name: evaluate(model, tokenizer, ["lambada_openai"], limit=DOCUMENTS)
    for name, model in tqdm(asked.items(), desc="models")
}
last_word = {name: answer[answer.metric == "perplexity"] for name, answer in answers.items()}
lambada = {name: perplexity_ratio(score, last_word["unpruned"]) for name, score in last_word.items()}
healing = perplexity_ratio(last_word[f"{MOST} fewer, healed"], last_word[deeper])
print(f"the last word, healed against not healed, paired: × {with_interval(*healing)}")
pd.DataFrame(
    {
        name: {
            "last words found": f"{answer.value.iloc[0]:.2f} ({answer.ci_low.iloc[0]:.2f} to {answer.ci_high.iloc[0]:.2f})",
            "perplexity of the last word, × unpruned": with_interval(*lambada[name]),
            "leave-one-out / this set (paired)": with_interval(
                *perplexity_ratio(last_word["by leave-one-out"], last_word[name])
            )
            if name.startswith("random")
            else "",
        }
        for name, answer in answers.items()
    }
).T

# %%
against_random(
    {name: ratio for name, ratio in lambada.items() if not name.startswith(("random", "unpruned"))},
    {f"random inside ({SETS})": [ratio for name, (ratio, _, _) in lambada.items() if name.startswith("random")]},
    x_label="perplexity of the last word, × unpruned (logarithmic)",
    limit=60,
    lines={"unpruned": 1.0},
    title=f"LAMBADA, {DOCUMENTS} passages",
)
show(
    "The perplexity of LAMBADA's last words relative to the unpruned model: four cut models with intervals, all to the "
    "right of 1, and below them five random sets as dots that spread to both sides of the chosen ones."
)

# %% [markdown]
# How far a model stands to the right of the unpruned line is what it lost on novels; the dashed line is the median of
# the random sets. Compare with the figure for speeches: the random dots are no longer all on one side of the choices.
#
# **Saved run.** The whole model finds 0.28 of the last words, the models chosen by influence and by leave-one-out 0.09 each,
# and the random set of blocks 4, 5 and 26 finds 0.19. With 32 passages these shares are rough (0.09 to 0.35 for the last
# one). So the figure uses the perplexity of the last word, which says more with as few. Both criteria asked speeches what can
# go, got a good answer there, and one set of five that asked nothing cost less here.
#
# But that set was picked as the best of five *on these passages*, which flatters it: its luck here counts as merit. So we
# ask it once more, beside the two criteria, on as many other passages, which picked nothing.

# %%
lucky = min((name for name in lambada if name.startswith("random")), key=lambda name: lambada[name][0])


def last_words(answer):
    """Log-likelihood of the last word of each passage, by passage."""
    table = answer.attrs["answers"].table
    return table[table.metric == "perplexity"].set_index("document")["value"]


picked_on, others = last_words(answers[lucky]).index, {}
for name in ("by influence", "by leave-one-out", lucky):
    twice = last_words(evaluate(asked[name], tokenizer, ["lambada_openai"], limit=2 * DOCUMENTS))
    others[name] = twice[~twice.index.isin(picked_on)]
print(f"the best of the five: {lucky}; on {len(others[lucky])} passages that didn't pick it, paired:")
for name in ("by influence", "by leave-one-out"):
    nats = (others[lucky] - others[name]).to_numpy()
    value, _, low, high = map(math.exp, ratio_interval(nats, np.ones(len(nats))))
    print(f"{name} / {lucky}: {verdict(low, high, **MORE_OR_LESS)}, × {with_interval(value, low, high)}")

# %% [markdown]
# **Saved run.** It wasn't luck with these passages. On the 32 others the same set is ahead of both: leave-one-out has × 4.79
# (2.18 to 10.5) its perplexity, influence × 4.34 (2.04 to 9.22). The table above says what this doesn't mean: of the four
# other sets leave-one-out is far ahead of one (× 0.03, 0.01 to 0.12), and against three no difference is shown.
#
# Two things differ between the two figures: the kind of text, and what is asked, every token or only a last word. Which
# of them makes the difference, we didn't test. Either way, a criterion that is right about one may have taken out what
# the other needs. Five random sets can show that a choice does not win *everywhere*; they can't show that random choice
# is better. Choose on text that resembles what the model is for, and measure what you care about.
#
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
# *perplexity* from 6.6 to 70,920. An accuracy and a perplexity can't be compared, but nobody would call the second model usable.
#
# Published comparisons of rules:
#
# - ShortGPT uses influence.
# - Shortened LLaMA uses leave-one-out perplexity and Taylor. Its authors also find that narrower models hardly generate faster
#   at small batches, and shorter ones do.
# - Gromov et al. remove a run of deep blocks, heal it with a little fine-tuning, and find question answering almost intact up
#   to large fractions.
# - Lu et al. 2024 remove the *last* quarter of the blocks, fine-tune the head and the last three layers, and find this as good
#   as cleverer rules. Before healing we saw the opposite. Both can be true: the question is another one.

# %% [markdown]
# ## What it costs and buys
#
# "Estimate" is what the removed arithmetic or the removed bytes would give by themselves, the larger of the two. It leaves
# out what a framework spends on each layer beside them, so a measured speed-up can lie above it. The smaller cut in blocks is
# still leave-one-out's set, the larger one the run of least angle.

# %% tags=["timed"]
from course_utils.benchmarking import decode_bytes, kv_bytes_per_token

measured = speed.set_index(["model", "phase"])
scores = {"unpruned": unpruned, by_depth: depth_score, deeper: broken_score}
scores[f"width {widths[1]}"] = perplexity_at(widths[1])


def speed_and_estimate(name, phase):
    row = measured.loc[(name, phase)]
    return f"{with_interval(row.speedup, row.ci_low, row.ci_high)}, estimate {row.estimate:.2f}"


pd.DataFrame(
    {
        name: {
            "parameters": f"{model_size(model).parameters:,}",
            "change": f"{model_size(model).parameters / model_size(base).parameters - 1:+.1%}",
            "weights (MB)": f"{model_size(model).bytes / 1e6:.0f}",
            "cache, bytes a token": f"{kv_bytes_per_token(model):,}",
            "MFLOPs a token": f"{model_size(model).flops / 1e6:.0f}",
            "prefill, × unpruned": speed_and_estimate(name, "prefill"),
            "decode, × unpruned": speed_and_estimate(name, "decode"),
            "perplexity": shown(scores[name].perplexity),
            "× unpruned": shown(scores[name].perplexity / unpruned.perplexity),
            "bits/byte": f"{scores[name].bits_per_byte:.2f}",
        }
        for name, model in timed.items()
    }
)

# %% [markdown]
# **Saved run.** With 6 blocks fewer both phases are faster, about as much as estimated: 1.22 (1.03 to 1.31) beside 1.25 for
# reading a prompt, 1.19 (1.12 to 1.27) beside 1.19 for generating. With 3 blocks fewer and with width 1280 no gain is shown
# in six rounds. For the width, reading stays below its estimate: 1.01 (0.94 to 1.07) beside 1.14.
#
# Only depth makes the cache smaller: a block that is gone writes no keys and values. Narrower MLPs leave it as it was.
#
# **Predict before you run.** Which of the two should gain more from long texts and large batches?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# For 1 text of 128 tokens the estimates are alike: × 1.09 for 3 blocks fewer, × 1.11 for width 1280. For 32 texts of 4,096
# tokens nearly all that is read is keys and values: 3 blocks fewer keep × 1.11, and width 1280 is left with × 1.01.
#
# </details>

# %%
settings = {"1 text, 128 tokens": (1, 128), "1 text, 4,096 tokens": (1, 4096), "32 texts, 4,096 tokens": (32, 4096)}
estimates = {
    name: {
        text: decode_bytes(base, batch_size=batch, context=context)
        / decode_bytes(model, batch_size=batch, context=context)
        for text, (batch, context) in settings.items()
    }
    for name, model in timed.items()
}
print("bytes read for each new token, unpruned / pruned: an estimate of the speed-up of decoding")
pd.DataFrame(estimates).T.round(2)

# %% [markdown]
# This is arithmetic, not a measurement: where keys and values are most of what has to be read, narrower MLPs buy next to
# nothing, and fewer blocks keep their gain. Lesson 10 measures long contexts and large batches.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 5 · ●●○ · 10 minutes
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
from course_utils.exercises.lesson_04 import check_parameters_left


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
# ### Exercise 6 · ●●● · 10 minutes
#
# *Beat the baseline.* Remove `MOST` blocks with less damage than the set chosen by influence in one look.
# Choose on `calibration` as you like: combine the scores, search step by step, swap blocks. The check measures your set and
# the baseline on 24 rows of the evaluation split that nothing above has used, and says whether you are ahead by more than
# the noise. Don't use that text to choose.
#
# <details><summary>Hint</summary>
#
# `perplexity(without([...]), calibration[:6])` takes a second or two. Leave-one-out says what one block costs in the whole
# model; ask it again after each removal, and only for blocks that can matter (the few with the lowest `left_out`).
#
# </details>

# %% tags=["exercise"]
from course_utils.exercises.lesson_04 import check_your_choice

# the 24 rows that are drawn after those of `evaluation`
held_out = token_blocks(tokenizer, "evaluation", tokens=65_536, length=64).sample(len(evaluation) + 24, seed=0)[-24:]

# BEGIN SOLUTION
# Greedy leave-one-out: `left_out` gives the first block; after each removal, ask again which block is missed least,
# among those that cost little alone.
pool = left_out.argsort()[: MOST + 2].tolist()
my_blocks = [pool.pop(0)]
while len(my_blocks) < MOST:
    costs = {block: perplexity(without([*my_blocks, block]), calibration[:6], batch_size=6).nll for block in pool}
    my_blocks.append(min(costs, key=costs.get))
    pool.remove(my_blocks[-1])
# END SOLUTION
# BEGIN STUB
# my_blocks = ...  # a list of MOST block numbers
# END STUB
check_your_choice(my_blocks, one_shot, lambda blocks: perplexity(without(blocks), held_out, batch_size=8))

# %% [markdown]
# ## Three questions

# %% [markdown] tags=["quiz"]
# A block has an influence of exactly 0 on your text. What do you know?
#
# - [ ] It can be removed without harm.
#   > It doesn't turn the stream, but it may make it longer, and then everything that comes after counts for less. Block 0 of
#   > the toy is such a block.
# - [x] What leaves it points in the same direction as what enters, for every token.
#   > That is all that a cosine can say: nothing about length, and nothing about who needs it later.
# - [ ] It computes nothing.
#   > It may add a large vector, as long as that points along the stream.

# %% [markdown] tags=["quiz"]
# You removed a block. The model reads text correctly, generates correctly with its cache, and is wrong after saving and
# loading. What did you forget?
#
# - [ ] To renumber `layer_idx`.
#   > The cache reads it, so generating would have gone wrong or stopped; and a reload numbers the blocks anew by itself.
# - [x] To set `num_hidden_layers` in the configuration.
#   > The reload builds as many blocks as the configuration promises, and fills the missing one with random weights.
# - [ ] To copy the final norm.
#   > It was never touched: it belongs to the model, not to a block.

# %% [markdown] tags=["quiz"]
# Why do our random sets spare the two blocks at each end?
#
# - [ ] Because sets with an end block would crash.
#   > They run like any other set. They are only bad, which is why they make an easy opponent.
# - [ ] Because more sets can then be drawn.
#   > Fewer can. The number of sets is what makes a small p-value possible, not where they are drawn from.
# - [x] Because staying away from the ends takes no measurement, and a criterion must show that it knows more than that.
#   > A control should share with the choice everything that isn't the claim.

# %% [markdown]
# ## Take-aways
#
# - Blocks add to one stream of fixed width, so any of them can go and the rest still runs. Running proves nothing.
# - `layer_idx`, `num_hidden_layers` and per-block lists must follow. Test with the cache *and* after a plain reload: a
#   configuration that promises too many blocks gets random ones.
# - Read influence from hooks. It sees angles, not lengths, and not who needs a block later: check single blocks by leaving
#   them out.
# - Choose blocks by a measurement on calibration text, and keep random sets beside it that know what everybody knows. "The
#   last n" is no measurement.
# - Fewer blocks or narrower MLPs is two questions, one at equal size and one at equal speed. Only depth makes the cache
#   smaller.
# - Perplexity on one kind of text is one question. Ask a second one before you choose.
#
# ## References
#
# - Men et al. 2024, *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect*, arXiv 2403.03853
# - Kim et al. 2024, *Shortened LLaMA: Depth Pruning for Large Language Models*, arXiv 2402.02834
# - Gromov et al. 2024, *The Unreasonable Ineffectiveness of the Deeper Layers*, arXiv 2403.17887
# - Lu et al. 2024, *Reassessing Layer Pruning in LLMs: New Insights and Methods*, arXiv 2411.15558
# - Muralidharan et al. 2024, *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679
# - Sreenivas et al. 2024, *LLM Pruning and Distillation in Practice: The Minitron Approach*, arXiv 2408.11796
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the published Llama-3.2-1B figures)
# - Veit et al. 2016, *Residual Networks Behave Like Ensembles of Relatively Shallow Networks*, arXiv 1605.06431
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 05 takes out half a block: the attention goes, the MLP stays.
