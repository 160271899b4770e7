# ---
# jupyter:
#   course:
#     title: "Adaptive attention bypass: each prompt decides"
#     minutes: 120
#     prerequisites: lesson 05 (attention importance, bypass, cache)
#     assets: [smollm2, benchmarks, texts, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - how a prompt can decide, before its answer begins, how many attention layers that answer leaves out
# - where such a decision has to live, and what goes wrong when it lives in the model
# - how well *any* signal could predict harm, and how to find that ceiling before you build a predictor
# - why "the same average" is not the same cost, and how to compare policies at equal cost
# - which policy pays here, how much, and at which prompt lengths
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a Llama in architecture with 30 blocks (its weights come from
# a 4-bit file, dequantised). In the `hub` profile the same code runs on Llama-3.2-1B with 16. The next table says which.

# %% [markdown] tags=["notes"]
# **The point:** a score that sounds plausible is a hypothesis. Harm, measured for each prompt, decides.
#
# **Let the room vote:** which prompts should lose more attention layers, short ones or long ones? Then look at harm against cost.
#
# **Usual questions:** "Is the same average the same cost?" No: the cache that a bypass saves grows with the tokens.
#
# **Wrong turns:** keeping the decision in the model instead of the answer's cache; taking prompt 0 of a batch for all of them.
#
# **At the end you have** a bypass that each prompt decides on, and a test of whether such a decision is worth
# anything.

# %% tags=["install"]

# %%
import itertools
import re
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils import diagrams
from course_utils.plotting import show, show_tensor, style
from course_utils.session import start

session = start("06")
style()

# %% [markdown]
# ## One decision for each prompt
#
# Lesson 05 left the same attention layers out for every prompt. But prompts differ. Perhaps an easy one needs fewer than a
# hard one? Then each prompt should get its own number. The idea comes from Pere Martra's adaptive attention bypass.

# %%
diagrams.adaptive_decision()
show(
    "A flow chart: the prompt gives a complexity, the complexity a level, the level the attention layers that are left "
    "out; the prefill decides once and decoding keeps the decision."
)

# %% [markdown]
# The decision is made once, when the prompt is read, and holds for the whole answer. It can't be taken back: what a bypassed
# attention didn't compute for the prompt, no later token can look at.
#
# ### A score that you can compute by hand
#
# The first form of the idea looks only at the embeddings of the prompt's tokens: **how long** the prompt is, and **how much
# its embeddings vary**. Here are two prompts with 3 numbers a token.

# %%
simple = torch.tensor([[1.0, 0, 1], [1, 0, 2], [1, 0, 1]])
mixed = torch.tensor([[2.0, -1, 0], [0, 1, 3], [-2, 0, 1], [1, 2, -1], [0, -2, 2], [3, 1, 0]])

figure, axes = plt.subplots(1, 2, figsize=(8.5, 4), layout="constrained")
for ax, embeddings, title in zip(axes, (simple, mixed), ("a simple prompt", "a mixed prompt"), strict=True):
    show_tensor(embeddings, title=title, x_label="component", y_label="token", fmt=".0f", limit=3, ax=ax)
show(
    "Two small tables of embeddings, tokens by components, on one colour scale: three nearly equal rows, and six rows that "
    "differ."
)

# %% [markdown]
# The simple prompt has three tokens that are almost the same. The mixed one is twice as long, and its tokens point in all
# directions.
#
# The length enters as its logarithm. The variance is taken over the tokens, for each component, and then averaged. Both numbers
# are scaled: 0 is the low end of what was seen in calibration, 1 is the high end, and nothing leaves that range. The score is
# their mean.

# %%
ranges = {"log_length": [1.0, 2.0], "variance": [0.0, 2.0]}


def complexity_by_hand(embeddings, log_length, variance):
    """Score of one prompt, from its token embeddings [tokens, hidden] and two calibration ranges."""
    values = np.log(len(embeddings)), embeddings.float().var(0, unbiased=False).mean().item()
    scaled = [(value - low) / (high - low) for value, (low, high) in zip(values, (log_length, variance), strict=True)]
    return np.clip(scaled, 0, 1).mean()


for name, embeddings in {"simple": simple, "mixed": mixed}.items():
    print(
        f"{name}: {len(embeddings)} tokens, log length {np.log(len(embeddings)):.2f}, "
        f"variance {embeddings.var(0, unbiased=False).mean():.2f}, score {complexity_by_hand(embeddings, **ranges):.2f}"
    )

# %% [markdown]
# Thresholds turn the score into a level, and each level leaves out a fixed number of attention layers: many for simple
# prompts, none for complex ones. That is the whole method.

# %%
from course_utils.exercises.lesson_06 import (
    check_claims,
    check_complexity,
    check_control,
    check_same_average,
    check_signal,
    check_thresholds,
)

# %% [markdown]
# ### Exercise 1 · ●●○ · 12 minutes
#
# Write `scores(embeddings, mask, log_length, variance)` for a batch. `embeddings` is [rows, tokens, hidden], `mask` [rows,
# tokens] is 1 for real tokens, `log_length` and `variance` are (low, high). Return one score a row: the mean of the scaled
# log length and the scaled variance, each cut off at 0 and 1. Padding may stand on either side.
#
# <details><summary>Hint</summary>
#
# A loop over the rows is fine. `row[real.bool()]` are the real tokens; `.var(0, unbiased=False).mean()` is their variance.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def scores(embeddings, mask, log_length, variance):
    result = []
    for row, real in zip(embeddings, mask.bool(), strict=True):
        tokens = row[real]
        values = torch.tensor(float(len(tokens))).log(), tokens.var(0, unbiased=False).mean()
        scaled = [(v - low) / (high - low) for v, (low, high) in zip(values, (log_length, variance), strict=True)]
        result.append(torch.stack(scaled).clamp(0, 1).mean())
    return torch.stack(result)


# END SOLUTION
# BEGIN STUB
# def scores(embeddings, mask, log_length, variance):
#     ...  # your code
# END STUB
check_complexity(scores)

# %% [markdown]
# ## Prompts of all sizes
#
# Four kinds, from one word to well over a thousand tokens: the beginning of a passage; a science question; a sum; and a passage
# that hides a number, with a question for it. The last three stand in the model's chat template, where it has one. Some
# prompts **choose** (the order, the thresholds, every fitted number), others **judge**. They share no document.

# %%
from course_utils.architectures import describe
from course_utils.models import load_model, variant
from course_utils.prompt_harm import Record, cases, measure, measure_record
from course_utils.session import safe_dtype, tidy

dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
total = describe(base).num_blocks
CACHE = describe(base).cache_keyword  # what the forward calls its cache; transformers has renamed it

choosing = cases(tokenizer, "calibration", count=150)
judging = cases(tokenizer, "evaluation", count=1000)
examples = {case.kind: case for case in reversed(judging)}


def plain(text):
    """The end of a prompt without the chat template's marks."""
    return re.sub(r"<\|.*?\|>\s*(assistant)?", " ", text.split("user\n")[-1]).strip()[-80:]


pd.DataFrame(
    [
        {
            "kind": kind,
            "that judge": sum(other.kind == kind for other in judging),
            "tokens": len(tokenizer(case.text).input_ids),
            "ends with": plain(case.text),
        }
        for kind, case in sorted(examples.items())
    ]
).style.hide()

# %% [markdown]
# ## Calibration
#
# `calibrate` finds the order step by step as in lesson 05, the ranges of the two numbers (5th and 95th percentile of the
# calibration prompts), and the thresholds: each level gets the same share of these prompts. We take three levels.

# %%
from course_utils.adaptive import calibrate, complexity

NUMBERS = tuple(max(1, round(total * share / 30)) for share in (1, 3, 5, 8))  # left out, in every experiment below
MOST = NUMBERS[-1]
LEVELS = (MOST, NUMBERS[1], 0)  # for the simplest third of the prompts, the middle one, the most complex one
texts = sorted((case.text for case in choosing[:48]), key=len)  # alike in length, so that little is padded
config = calibrate(base, tokenizer, texts, left_out=LEVELS)
print("order, least important first:", list(config.order))
print("left out by level:", config.left_out, "  thresholds:", [round(t, 3) for t in config.thresholds])
print("ranges:", {name: [round(v, 4) for v in pair] for name, pair in config.parameters.items()})


def encoded(text):
    """One prompt as a batch of one row, on the model's device."""
    return dict(tokenizer(text, return_tensors="pt", add_special_tokens=False).to(base.device))


embed = base.get_input_embeddings()
alone = [encoded(text) for text in texts]
by_hand = [complexity_by_hand(embed(one["input_ids"][0]).detach().cpu(), **config.parameters) for one in alone]
np.testing.assert_allclose(by_hand, complexity(base, alone, config), rtol=1e-4, atol=1e-6)
print("complexity_by_hand equals course_utils' complexity")

# %% [markdown]
# ## Where the decision must live
#
# `make_adaptive` changes the model in place. From then on each prompt decides at its **first** forward pass, and the answer
# keeps the decision to its end. Why is this hard? A model sees an answer one token at a time. If it decided anew at each
# forward pass, it would see "prompts" of length 1: as simple as can be.
#
# *A common mistake*, then, is a decision that the model makes whenever it is called. Here are both. The test is the one of
# lesson 05: generating **with** the cache must equal generating **without** it. The careless one is a `variant`, a second
# model on the weights of the first.
#
# Equality is shown in float32. Settings belong to the very weights that they were calibrated on, and `make_adaptive` refuses
# any others, rounded ones too; so the float32 model borrows them under its own name.

# %%
from course_utils.adaptive import ModelIdentity, make_adaptive
from course_utils.attention import bypass_attention


def careless(model, config):
    """A model that decides at every forward pass, from the tokens that this pass happens to see."""
    model = variant(model)

    def decide(module, args, named):
        ids = named["input_ids"]
        score = complexity(model, [{"input_ids": ids[:1]}], config)[0]
        bypass_attention(model, config.order[: config.left_out[config.level(score)]])
        noted.append(config.left_out[config.level(score)])

    model.model.register_forward_pre_hook(decide, with_kwargs=True)
    return model


exact = variant(base) if dtype == torch.float32 else load_model("llama", dtype=torch.float32)[0]
static = variant(exact)  # for later: it stays as it is
settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
by_size = sorted((case.text for case in judging if case.kind == "passage"), key=len)
tail = len(by_size) * 3 // 20
few, many = by_size[len(by_size) // 10], by_size[-tail]  # a short passage and a long one
short, long = encoded(few), encoded(many)
noted = []
wrong = careless(exact, config)
with_cache = wrong.generate(**long, **settings)
print("decides at every pass: left out, pass by pass:", noted)
same = torch.equal(with_cache, wrong.generate(**long, **settings, use_cache=False))
print("  with the cache = without it:", same)
del wrong

make_adaptive(exact, replace(config, model=ModelIdentity.of(exact)))
output = exact.generate(**long, **settings, return_dict_in_generate=True)
same = torch.equal(output.sequences, exact.generate(**long, **settings, use_cache=False))
print("decides once, at the first pass: left out", output[CACHE].left_out.tolist())
print("  with the cache = without it:", same)
assert same

# %% [markdown]
# The decision isn't stored in the model. It is stored in the answer's **cache**, which is made with the prompt and dies
# with the answer. So two answers can take turns on one model, and a batch can mix prompts. Three equalities, in float32:

# %%
from course_utils.texts import padded_batches

with torch.no_grad():
    # 1. A batch that mixes prompts: each row gets what it would get alone.
    both = padded_batches(tokenizer, [few, many], batch_size=2, max_length=1024, padding_side="left")[0]
    both = {name: tensor.to(exact.device) for name, tensor in both.items()}
    positions = (both["attention_mask"].cumsum(1) - 1).clamp(min=0)
    mixed_batch = exact(**both, position_ids=positions)
    for row, one in enumerate((short, long)):
        gap = (mixed_batch.logits[row, -1] - exact(**one).logits[0, -1]).abs().max()
        assert gap < 1e-3 * mixed_batch.logits.abs().max()
    print("rows of one batch leave out", mixed_batch[CACHE].left_out.tolist(), "with the logits that they have alone")

    # 2. Each row is the static bypass of lesson 05 that it asks for.
    for one in (short, long):
        output = exact(**one)
        bypass_attention(static, config.order[: output[CACHE].left_out.item()])
        assert torch.equal(output.logits, static(**one).logits)
    print("each prompt alone equals the static bypass of its level, bit for bit")

    # 3. Two answers that take turns on one model don't disturb each other.
    caches, taken = [exact(**one)[CACHE] for one in (short, long)], [[], []]
    for step in range(4):
        for answer in (0, 1):
            token = torch.tensor([[step + 100]], device=exact.device)
            taken[answer].append(exact(token, **{CACHE: caches[answer]})[CACHE].left_out.item())
    assert all(len(set(decisions)) == 1 for decisions in taken)
    print("taking turns, step by step:", taken)
del static

# %% [markdown]
# Where *all* rows of a batch leave an attention layer out, it isn't computed and nothing is cached. Where only some do, it is
# computed for all and its result is dropped for those: a mixed batch costs what its most complex prompt costs. Keep this
# in mind for the speeds.
#
# ## Saving it
#
# The settings travel with the checkpoint, and once more as a readable file. The checkpoint loads on a machine that has
# never heard of this course, and refuses to load as something else.

# %%
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from course_utils.checkpoints import load_pruned, save_pruned

with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    expected = exact(**short).logits
    saved = save_pruned(exact, tokenizer, folder)
    print(*(saved / "adaptive_config.json").read_text().splitlines()[:12], "  …", sep="\n")
    ways = {
        "load_pruned": lambda: load_pruned(folder)[0],
        "trust_remote_code": lambda: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    }
    for name, load in ways.items():
        assert torch.equal(load().to(exact.device)(**short).logits, expected)
        print(f"reloaded with {name}: logits equal, bit for bit")
    try:
        LlamaForCausalLM.from_pretrained(folder)
    except RuntimeError as error:  # what we want: better no model than another one
        print("as a stock Llama: stops,", type(error).__name__)
del exact
tidy()  # models whose layers were patched refer to themselves, so they don't go at once

# %% [markdown]
# ## What leaving attention layers out does to an answer
#
# Now the question that decides everything: which prompts suffer, and how much? First by eye. The same prompts, the same greedy
# decoding, more and more attention layers left out.

# %%
from course_utils.attention import bypass_attention
from course_utils.language_modelling import continuations


def statically(number):
    """A variant of the base model without the least important attention layers."""
    model = variant(base)
    bypass_attention(model, config.order[:number])
    return model


written = continuations(
    {f"{number} left out": statically(number) for number in (0, NUMBERS[1], MOST)},
    tokenizer,
    [examples["question"].text, examples["arithmetic"].text],
)
written.index = [plain(text) for text in written.index]
written

# %% [markdown]
# **Saved run.** To 65 − 55 the whole model has no answer; it would rather convert 65 to a decimal. With 3 left out it says
# 11, with 8 it speaks of a confusion. All of it reads well.
#
# Text that still reads well can say something else. So we measure it. The whole model gives its own greedy answer, of at most
# 64 tokens. Then the whole model and the bypassed one each predict that answer, token by token, and we compare their
# predictions. The Kullback–Leibler divergence (KL) is 0 where they are the same. Its mean over the answer, in nats a token, is
# this prompt's **harm**: the distance from the whole model, not from the truth.
#
# A thousand prompts with four numbers each took about twenty minutes on one core. An experiment did it once
# (`experiments/harm_per_prompt.py`), and its record is part of the course. We load it, and measure a random part again to see
# that it holds. For another model than the record's, a smaller one is measured here.

# %%
record = Record.shipped_for(base)
if record is None:
    record = measure_record(base, tokenizer, config.order, NUMBERS, choosing=60, judging=240)
    choosing, judging = (cases(tokenizer, split, count=n) for split, n in (("calibration", 60), ("evaluation", 240)))
else:
    config = replace(config, order=tuple(record.settings["order"]))  # elsewhere, rounding may swap two that nearly tie
    judging = judging[: len(record.kinds) - record.choosing]
    assert record.digests.tolist() == [case.digest for case in (*choosing, *judging)]
    again = np.random.default_rng(session.seed).choice(len(judging), 12, replace=False)
    sets = [config.order[:number] for number in NUMBERS]
    here = measure(base, tokenizer, [judging[i].text for i in again], sets, decide_at=min(config.order))
    there = record.harm[len(choosing) + again][:, 1:]
    close = np.isclose(here.harm, there, atol=0.02).all(1).sum()
    print(f"{len(again)} prompts measured again: harm {here.harm.mean():.3f} here, {there.mean():.3f} in the record")
    print(f"all four numbers within 0.02 nats for {close} of {len(again)}")
    assert abs(here.harm.mean() / there.mean() - 1) < 0.3
print(f"{record.choosing} prompts choose, {len(record.kinds) - record.choosing} judge")
print(
    f"tokens in a prompt: {record.tokens.min()} to {record.tokens.max()}, half of them up to {np.median(record.tokens):.0f}"
)
print(f"tokens in an answer: at most {record.answer_tokens.max()}, on average {record.answer_tokens.mean():.1f}")

# %% [markdown]
# A greedy answer can turn elsewhere when one rounding differs: with other neighbours in the batch, on another machine. Then it
# is another answer with another harm. So single prompts may differ here while the mean stays.

# %%
from course_utils.uncertainty import ratio_interval

choose, judge = record.part(slice(record.choosing)), record.part(slice(record.choosing, None))
_, ax = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
rows = []
for number, kind in enumerate(sorted(set(judge.kinds))):
    mine = judge.harm[judge.kinds == kind]
    means = [ratio_interval(column, np.ones(len(column))) for column in mine.T]
    low, high = ([mean[end] for mean in means] for end in (2, 3))
    ax.plot(judge.numbers, [mean[0] for mean in means], marker="osD^"[number], label=kind)
    ax.fill_between(judge.numbers, low, high, alpha=0.15)
    agreed = judge.agree[judge.kinds == kind].mean(0)
    rows.append({"kind": kind, "prompts": len(mine), "harm": mine[:, -1].mean(), "same token": agreed[-1]})
ax.set_xlabel(f"attention layers left out, of {total}")
ax.set_ylabel("harm, nats a token")
ax.set_title("Harm by kind of prompt")
ax.legend()
show(
    "Lines of harm against the number of attention layers left out, one a kind of prompt, with bands: all rise, most "
    "steeply at the end."
)
pd.DataFrame(rows).set_index("kind").rename_axis(f"with {MOST} left out").round(3)

# %% [markdown]
# Each line is a kind of prompt, with the 95 % interval of its mean. The table gives the harm of the largest number, and how often
# the bypassed model still holds the whole model's token most likely.
#
# **Saved run.** Every kind of prompt suffers, and the last step, from 5 to 8 left out, is the steepest. Questions suffer
# most (0.448 nats), retrieval least (0.307).
#
# ## How well could any signal predict harm?
#
# Before you look for a predictor, ask for the ceiling. Take the harm over every other token of an answer, and over the tokens
# between. If these two halves agree, harm is a property of the prompt that something might predict. If they don't, it is
# noise, and no signal can beat that noise.
#
# **Predict before you run.** The signals below are length, the two complexity scores, the entropy of an early readout, and a
# fitted probe. The ceiling is near 1 if the halves agree. Which signal comes closest to it? And does harm grow with length?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The halves agree well: harm is largely a property of the prompt, so a signal could find it (ceilings of 0.87 to 0.91). The
# four signals that nothing was fitted for point the wrong way, if weakly: length (−0.13), the published score (−0.12), the
# early readout's entropy (−0.08) and our score (−0.06). The probe finds something, 0.24, far below the ceiling. But a
# control that knows nothing except which *kind* of prompt it is reaches 0.33.
#
# </details>

# %%
from scipy.stats import spearmanr

from course_utils.policies import split_half_ceiling

for column, number in list(enumerate(judge.numbers))[1:]:
    reliability, ceiling = split_half_ceiling(judge.halves[:, column])
    within = judge.kinds == "passage"
    _, among_passages = split_half_ceiling(judge.halves[within][:, column])
    print(
        f"{number} left out: reliability {reliability:.2f}, ceiling of a correlation {ceiling:.2f}; "
        f"among passages alone {among_passages:.2f}"
    )
print(f"Spearman's correlation of harm with length: {spearmanr(judge.tokens, judge.harm[:, -1]).statistic:+.2f}")

# %% [markdown]
# The two halves of one answer share more than the prompt: a subject, a style. So this ceiling is rather too high than too
# low.
#
# ### The signals
#
# The published score is another one than ours. It weights length and variance 0.75 to 0.25. Its length is a logarithm scaled
# to the model's size; its variance is one minus the mean cosine of all pairs of embeddings, times a factor that grows with the
# length. Here it is as it was published (Martra, notebook 6_6b of the *Large Language Model Notebooks Course*).


# %%
def published_score(embeddings, billions):
    """Complexity from token embeddings [tokens, hidden], for a model of so many billion parameters."""
    count = len(embeddings)
    size = min(2.0, max(0.5, 1 + (2 - billions) * 0.1))
    reference = 2000 / size
    length = min(np.log1p(count) / np.log1p(reference) * size, 1.0)
    if count < 4:
        length *= (count / 4) ** 2
    variance = 0.0
    if count >= 3:
        unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
        cosines = (unit.sum(0).square().sum() - count) / (count * (count - 1))  # mean over pairs of different tokens
        variance = (1 - cosines.item()) * min(count / (reference / 15), 1.0)
    return min(1.0, 0.75 * length + 0.25 * variance)


every = [encoded(case.text) for case in (*choosing, *judging)]
billions = sum(weight.numel() for weight in base.parameters()) / 1e9
with torch.no_grad():
    published = np.array([published_score(embed(one["input_ids"][0]).float(), billions) for one in every])
ours = complexity(base, every, config).numpy()

# %% [markdown]
# Embeddings are not all that we have. The blocks below the first one that may lose its attention always run. A decision at
# their end is still in time: nothing has been skipped yet. There stand two more signals: the **entropy of an early readout**
# (what would the model predict if it stopped here?) and the **states** themselves. A *probe* reads sixteen principal
# components of them, the length and that entropy. Everything fitted is fitted to the harm on *answer* tokens, of the prompts
# that choose.

# %%
from sklearn.linear_model import RidgeCV

from course_utils.uncertainty import rank_correlation

first = record.choosing
log_length, early = np.log(record.tokens), record.entropies[:, 0]
print("blocks that always run before the decision:", min(config.order))


def fitted(*features):
    """Expected log harm of every prompt, by a ridge regression on features [prompts, any]."""
    columns = np.column_stack(features)
    columns = (columns - columns[:first].mean(0)) / columns[:first].std(0)
    target = np.log(record.harm[:first, -1].clip(1e-6))
    return RidgeCV(np.logspace(-1, 4, 11)).fit(columns[:first], target).predict(columns)


kinds = np.stack([record.kinds == kind for kind in sorted(set(record.kinds))[1:]], axis=1).astype(float)
noise = np.random.default_rng(session.seed).random(len(every))
signals = {
    "length": log_length,
    "published score": published,
    "our score": ours,
    "early entropy": early,
    "probe (fitted)": fitted(record.states, log_length, early),
    "kind alone (control)": fitted(kinds),
    "noise (control)": noise,
}
correlations = pd.DataFrame(
    {name: rank_correlation(values[first:], judge.harm[:, -1]) for name, values in signals.items()},
    index=["Spearman", "low", "high"],
).T
correlations.round(2)

# %% [markdown]
# A correlation over a mixture can be made by the mixture. So look within a kind, too. Prompts of one document resemble each
# other; these intervals draw documents.

# %%
from scipy.stats import rankdata

from course_utils.uncertainty import bootstrap_interval


def correlation(sums):
    """Pearson's correlation from sums [..., 6] of 1, x, y, x², y² and xy; of ranks it is Spearman's."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return (n * xy - x * y) / np.sqrt((n * xx - x**2) * (n * yy - y**2))


def within_kind(values, kind):
    mine = judge.kinds == kind
    x, y = rankdata(values[first:][mine]), rankdata(judge.harm[mine, -1])
    each = pd.DataFrame(np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1))
    units = each.groupby(judge.documents[mine]).sum().to_numpy()
    low, high = bootstrap_interval(units, correlation, resamples=2000)
    return f"{correlation(units.sum(0)):+.2f} ({low:+.2f} to {high:+.2f})"


pd.DataFrame(
    {
        name: {f"in {kind}": within_kind(signals[name], kind) for kind in sorted(set(judge.kinds))}
        for name in ("length", "probe (fitted)")
    }
)

# %%
_, ax = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
for place, row in enumerate(correlations.itertuples()):
    ax.errorbar(row.Spearman, place, xerr=[[row.Spearman - row.low], [row.high - row.Spearman]], fmt="o", color="C0")
ax.axvline(ceiling, color="0.25", linestyle="--", label="ceiling (split halves)")
ax.axvline(0, color="0.6", linewidth=1)
ax.set_yticks(range(len(correlations)), correlations.index)
ax.invert_yaxis()
ax.set_xlabel(f"rank correlation with the harm of leaving {MOST} out, 95 % interval")
ax.set_title("What predicts harm")
ax.legend(loc="lower right", fontsize="small")
show(
    "Dots with intervals, one a signal, on an axis of rank correlation with harm; a dashed line far to the right marks "
    "the ceiling that split halves allow."
)

# %% [markdown]
# Each dot is a signal's rank correlation with measured harm on prompts that chose nothing; the dashed line is the most that
# any signal could reach. A complexity score assumes a positive correlation: complex prompts should suffer more.
#
# **Saved run.** Two stand clearly above zero and noise: the probe with 0.24, and the kind alone with 0.33: over all prompts
# the label does better. The published score points the wrong way, −0.12 (−0.19 to −0.06): if anything, the *short* prompts
# suffer more here. Within a kind nothing is shown: all eight intervals hold zero. So what the probe reads in the states may
# be no more than the kind.
#
# ### Exercise 2 · ●○○ · 8 minutes
#
# Someone reads the figure above and says four things. Which of them does the output support? Put their letters in a set.
#
# - **a** "Prompts differ in harm, and not only by noise: the two halves of an answer agree about it."
# - **b** "A signal with a clearly positive correlation will save time at equal harm."
# - **c** "The probe's correlation isn't inflated by its many features: it was fitted on other documents."
# - **d** "No signal can ever do better than the probe does here."
#
# <details><summary>Hint</summary>
#
# What does the figure say about *time*? And where is the dashed line?
#
# </details>

# %% tags=["exercise"]
# BEGIN SOLUTION
supported = {"a", "c"}
# END SOLUTION
# BEGIN STUB
# supported = ...  # a set of letters, such as {"a", "b"}
# END STUB
check_claims(supported)

# %% [markdown]
# ## What a bypass saves, and where
#
# Harm is one side. The other side is what we gain, and it is not "attention layers left out on average". A bypassed attention
# saves cache in proportion to the tokens that it would have kept. Time is less simple: a longer prompt takes longer to read,
# but each token of the answer takes its time, however short the prompt. So we measure the seconds to read a prompt and to
# decode a token, for several lengths and numbers. They are part of the record; two lengths are timed again here.

# %% tags=["timed"]
from course_utils.benchmarking import measure_speed
from course_utils.reports import with_interval

seconds = record.seconds
table = pd.DataFrame(
    {
        "prefill, ms": [1e3 * row[0] for row in seconds["prefill"]],
        f"with {MOST} left out": [row[-1] / row[0] for row in seconds["prefill"]],
        "decoding a token, ms": [1e3 * row[0] for row in seconds["decode"]],
        f"with {MOST} left out ": [row[-1] / row[0] for row in seconds["decode"]],
    },
    index=pd.Index(seconds["lengths"], name="tokens in the prompt"),
)
print(f"timed here, in turns, with {MOST} left out: × the whole model's time (95 % interval)")
LENGTHS_HERE, ratios_here = (64, 256), {"prefill": [], "decode": []}
for length in LENGTHS_HERE:
    models = {"whole": base, "bypassed": statically(MOST)}
    speed = measure_speed(models, prompt_tokens=length, new_tokens=4, rounds=11)
    for row in speed[speed.model == "bypassed"].itertuples():
        ratio = with_interval(1 / row.speedup, 1 / row.ci_high, 1 / row.ci_low)
        ratios_here[row.phase].append(min(1 / row.speedup, 1.0))  # a machine where it saves no time
        whole, *_, bypassed = seconds[row.phase][seconds["lengths"].index(length)]
        print(f"  {row.phase}, {length} tokens: {ratio}; in the record {bypassed / whole:.2f}")
table.round(2)

# %% [markdown]
# **Saved run.** In the record, with 8 left out, reading takes 0.79 to 0.93 of the time, and decoding a token 0.81 to 0.91.
# From 64 to 2000 tokens in the prompt, reading grows from 75 to 1665 ms, a decoded token only from 25 to 54 ms. So what
# decoding saves depends weakly on the length of the prompt; what reading saves grows with it, and so does the cache saved.
# The ratios timed here are like the record's.
#
# The record keeps medians without intervals, and such ratios belong to a machine and its day. So we compute the savings twice:
# with the record's seconds, and with those timed here (the ratios above, straight lines between what was timed, the whole
# model's seconds from the record). A conclusion about time has to hold on both.
#
# From these seconds each prompt gets its time, and from its tokens its cache. Now look at two policies that deal out **the same
# three numbers**, each to a third of the prompts that choose: our score (short prompts leave out most), and **length alone,
# reversed** (long prompts do).

# %% tags=["timed"]
from course_utils.policies import cache_saved, outcome, seconds_saved


def by_level(score, left_out):
    """Columns of the record: each third of the prompts that choose gets one of three numbers, lowest scores first."""
    level = np.searchsorted(np.quantile(score[:first], [1 / 3, 2 / 3]), score, side="right")
    return np.searchsorted(record.numbers, left_out)[level][first:]


SECONDS = {"time": seconds, "time here": {"lengths": seconds["lengths"], "numbers": [0, MOST]}}
for phase, ratios in ratios_here.items():
    by_length = np.interp(np.log(seconds["lengths"]), np.log(LENGTHS_HERE), ratios)
    whole = np.array(seconds[phase])[:, 0]
    SECONDS["time here"][phase] = np.stack([whole, whole * by_length], axis=1)
saved = {kind: seconds_saved(replace(judge, seconds=table)) for kind, table in SECONDS.items()}
saved["cache"] = cache_saved(judge, total)
numbers = np.array(record.numbers)
rows = {}
for name, score in {"our score": ours, "reversed length": -log_length}.items():
    choice = by_level(score, LEVELS)
    rows[name] = {
        "left out, average": numbers[choice].mean(),
        **{f"{kind} saved": outcome(judge.harm, table, choice)[0] for kind, table in saved.items()},
        "harm, nats a token": outcome(judge.harm, saved["cache"], choice)[1],
    }
equal = pd.DataFrame(rows).T
print(f"cache saved, reversed / our score: {equal['cache saved'].iloc[1] / equal['cache saved'].iloc[0]:.1f} times")
equal.round(3)

# %% [markdown]
# **Saved run.** Our score leaves out more on average, 3.8 against 3.4, and yet the reversed policy saves 2.6 times as much
# of the cache. Its harm is smaller, too (0.155 against 0.187), in part because it leaves out fewer. For time their order
# hangs on the seconds: with the record's, our score saves 5.1 % and length reversed 5.3 %; with those timed here, 5.9 % and
# 4.8 %. An average number says little about either cost.
#
# ### Exercise 3 · ●○○ · 8 minutes
#
# Write `saved_share(tokens, left_out, blocks)`: the share of all prompts' cache that is saved. `tokens` and `left_out` have one
# number a prompt; a model keeps the same bytes for each token and each of its `blocks` attention layers.
#
# <details><summary>Hint</summary>
#
# Count "token and layer" pairs: how many there are, and how many are left out.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def saved_share(tokens, left_out, blocks):
    tokens, left_out = torch.as_tensor(tokens).float(), torch.as_tensor(left_out).float()
    return float((tokens * left_out).sum() / (blocks * tokens.sum()))


# END SOLUTION
# BEGIN STUB
# def saved_share(tokens, left_out, blocks):
#     ...  # your code
# END STUB
check_same_average(saved_share)

# %% [markdown]
# ## The policies
#
# - **static**: looks at no prompt. The same number for all, or a coin between two numbers, whichever pair harms least. Everything
#   is judged against it, *at the same cost*.
# - **published**: the published score, with its five levels. For models below two billion parameters they keep all but 15 %,
#   10 %, 7 %, 3 % and 0 % of the attention layers, rounded as published.
# - **our score**: three levels, a third of the prompts each. **Reversed length**: length alone, and long prompts leave out more.
# - **Rules with a price**: each prompt takes the number of least `expected harm − price × what it saves`. They differ only in
# what they expect. **Cost only** expects the same harm of every prompt. **Kind**, **early entropy** and **probe** scale that by
#   their guess.
# - **Bound**: the same rule for one who knows each prompt's harm, *solved* as a linear programme: no policy with these
#   numbers can do better.
#
# The published levels give these numbers here:


# %%
def published_active(level):
    """Attention layers that stay at one of the published five levels, for models below two billion parameters."""
    share, scaling = [(0.85, 0.50), (0.90, 0.35), (0.93, 0.35), (0.97, 0.05), (1.0, 0.0)][level]
    guaranteed = int(total * share)
    return guaranteed + int((0.1 + 0.2 * level) * scaling * (total - guaranteed))


published_left_out = [total - published_active(level) for level in range(5)]
published_level = np.minimum((published * 5).astype(int), 4)
nearest = np.abs(numbers[:, None] - np.array(published_left_out)).argmin(0)  # a number that was measured
print("published: left out by level", published_left_out, "  measured as", numbers[nearest].tolist())
shares = pd.crosstab(pd.Series(judge.kinds, name="kind"), pd.Series(published_level[first:], name="published level"))
shares

# %% [markdown]
# In the saved run arithmetic, questions (but for one) and retrieval land on two neighbouring levels each; only passages,
# which come in all lengths, land on every level. So a policy by length treats a *kind* of task nearly as one. A benchmark
# whose prompts are alike in length measures a single level, and is no test of an adaptive policy. LAMBADA is such a one;
# look at the counts:

# %%
from course_utils.benchmark_tasks import build_tasks

passages = [row["text"].rsplit(" ", 1)[0] for row in build_tasks(["lambada_openai"], 200)["lambada_openai"].test_docs()]
with torch.no_grad():
    lambada = [published_score(embed(encoded(text)["input_ids"][0]).float(), billions) for text in passages]
levels = np.bincount(np.minimum((np.array(lambada) * 5).astype(int), 4), minlength=5)
print("LAMBADA, prompts by published level:", levels.tolist())
print("LAMBADA, left out on average:", round(float(levels @ published_left_out) / len(passages), 2))

# %%
from course_utils.policies import cheapest_guess, gap_to_static, least_harm, price_for, static_harm


def expected(log_harm):
    """Harm of each prompt and number as a signal expects it: the mean curve, scaled by its guess."""
    scale = np.exp(log_harm)
    return np.outer(scale / scale[:first].mean(), choose.harm.mean(0))


guesses = {
    "cost only": expected(np.zeros(len(every))),
    "kind": expected(signals["kind alone (control)"]),
    "early entropy": expected(fitted(early)),
    "probe": expected(signals["probe (fitted)"]),
}
tables = [(NUMBERS[1], NUMBERS[0], 0), (NUMBERS[2], NUMBERS[1], 0), (MOST, NUMBERS[1], 0), (MOST, MOST, NUMBERS[1])]


def planned(part, kind):
    """What is saved as it can be known beforehand: every answer as long as the mean of the prompts that choose."""
    part = replace(part, answer_tokens=np.full(len(part.tokens), choose.answer_tokens.mean()))
    return cache_saved(part, total) if kind == "cache" else seconds_saved(replace(part, seconds=SECONDS[kind]))


def choices_of(kind, targets):
    """Fronts: name -> choices of the judging prompts, one for each level table or each saving aimed at."""
    of_choosing, of_judging = planned(choose, kind), planned(judge, kind)
    fronts = {name: [by_level(score, table) for table in tables] for name, score in levelled.items()}
    fronts["published"] = [nearest[published_level[first:]]]
    for name, guess in guesses.items():
        prices = [price_for(guess[:first], of_choosing, target) for target in targets]
        fronts[name] = [cheapest_guess(guess[first:], of_judging, price) for price in prices]
    return fronts


levelled = {"our score": ours, "reversed length": -log_length}

# %% [markdown]
# Two things a policy must not know: how long the answer will be, and anything about the prompts that judge. So a rule plans
# with the mean length of other prompts' answers, and its price is set on the prompts that choose. What it then saves on the
# prompts that judge, with their own answers, is measured.
#
# **Predict before you run.** Seven policies and a static curve. Which of them lies below the static curve when cost is time?
# When cost is cache? And how much room does the bound leave?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Both complexity scores are worse than static, for time and for cache. For cache, the rules that let long prompts leave out
# more gain much: static has 0.139, "cost only" 0.048, and the bound, 0.043, leaves hardly any room. For time "cost only"
# gains little with either table of seconds (0.165 where static has 0.172 with the record's, 0.160 where it has 0.164 with
# those timed here), and the bounds of 0.138 and 0.131 leave most of the room.
#
# </details>

# %%
MARKERS = {
    "published": "*",
    "our score": "s",
    "reversed length": "D",
    "cost only": "o",
    "kind": "^",
    "early entropy": "P",
    "probe": "v",
}
targets, fronts, gaps = {}, {}, {}
for kind, table in saved.items():
    targets[kind] = table[:, -1].sum() * np.array([0.15, 0.3, 0.5, 0.7, 0.85])
    fronts[kind] = choices_of(kind, targets[kind])
    gaps[kind] = {  # (gap, low, high) of each choice
        name: [gap_to_static(judge.harm, table, choice, judge.documents) for choice in choices]
        for name, choices in fronts[kind].items()
    }


def draw_policies(ax, kind, heights):
    """A line of markers for each policy: ``heights(name)`` over what it saves."""
    for number, (name, choices) in enumerate(fronts[kind].items()):
        x = np.array([100 * outcome(judge.harm, saved[kind], choice)[0] for choice in choices])
        y, *ends = heights(name)
        under = {"markersize": 13, "fillstyle": "none"} if name == "cost only" else {}  # it lies under another policy
        look = {"marker": MARKERS[name], "color": f"C{number}", "linewidth": 1.4, **under}
        error = np.abs(np.array(ends) - y) if ends else None
        ax.errorbar(x, y, yerr=error, capsize=3, label=name, **look)
    ax.set_xlabel(f"{'cache' if kind == 'cache' else 'time'} saved, % of the whole model's")


# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 6.4), layout="constrained", sharey=True)
for ax, kind, title in zip(axes, SECONDS, ("the record's seconds", "seconds timed here"), strict=True):
    table = saved[kind]
    ax.axhline(0, color="0.25", label="static")
    above = judge.harm.mean(0) - static_harm(judge.harm, table, table.sum(0))
    ax.plot(100 * table.sum(0), above, "x", color="0.25", markersize=8, label="one number for all")
    bound = [least_harm(judge.harm, table, target) for target in targets[kind]]
    ax.plot(
        100 * targets[kind], bound - static_harm(judge.harm, table, targets[kind]), ":", color="0.25", label="bound"
    )
    draw_policies(ax, kind, lambda name, kind=kind: np.array(gaps[kind][name]).T)
    ax.set_title(f"Time: {title}")
axes[0].set_ylabel("harm less static's, nats a token")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
show(
    "Two panels, with two tables of seconds: harm less the static bypass's at equal time, over the time saved, one line of "
    "markers with intervals for each policy. Static is the line at zero; the dotted bound lies below it. Our score and the "
    "published one lie above zero, the rules with a price mostly below it."
)

# %% [markdown]
# A policy pays where its marker lies *below* zero: less harm than static for the same time. The vertical bars draw other prompts,
# not other seconds; for those, compare the panels.

# %%
figure, ax = plt.subplots(figsize=(9, 6.6), layout="constrained")
table = saved["cache"]
ax.plot(100 * table.sum(0), static_harm(judge.harm, table, table.sum(0)), color="0.25", label="static")
bound = [least_harm(judge.harm, table, target) for target in targets["cache"]]
ax.plot(100 * targets["cache"], bound, color="0.25", linestyle=":", label="bound (knows each harm)")
draw_policies(
    ax, "cache", lambda name: [[outcome(judge.harm, saved["cache"], choice)[1] for choice in fronts["cache"][name]]]
)
ax.set_ylabel("harm, nats a token (lower is better)")
ax.set_title("Harm against cache saved")
figure.legend(loc="outside lower center", ncols=4, fontsize="small")  # inside it would hide a part of a curve
show(
    "Harm against the share of key-value cache saved: policies that let long prompts leave out more lie below the static "
    "curve, those that let short prompts leave out more lie above it."
)

# %% [markdown]
# With cache as the cost, length decides: a policy that spends its harm on long prompts buys far more with it. A score that
# spends it on short prompts pays for savings that it doesn't get.
#
# ### The verdict, with intervals
#
# Markers are means. To call a gap to the static curve real, we draw documents with replacement, two thousand times. In each
# draw the static arm is made anew, *at what the policy saves in that draw*. An interval that keeps the static arm fixed would
# be too wide: a draw with more long prompts changes the cost of both. **These intervals draw prompts, not seconds.** So there
# are two tables for time.

# %%
from course_utils.uncertainty import verdict

TARGET = 2  # of the five savings aimed at: half of what the largest number everywhere saves
SHOWN = {"our score": 2, "reversed length": 2, "published": 0}  # level policies: with the levels of the lesson


def verdicts(kind):
    rows = {}
    for name, choices in fronts[kind].items():
        place = SHOWN.get(name, TARGET)
        share, harm = outcome(judge.harm, saved[kind], choices[place])
        gap, low, high = gaps[kind][name][place]
        alike = float(static_harm(judge.harm, saved[kind], share))
        rows[name] = {
            "saved, %": f"{100 * share:.1f}",
            "harm": f"{harm:.3f}",
            "static, same cost": f"{alike:.3f}",
            "gap (95 %)": f"{gap:+.3f} ({low:+.3f} to {high:+.3f})",
            "of static's harm": f"{100 * gap / alike:+.0f} %",
            "bound": f"{least_harm(judge.harm, saved[kind], share):.3f}",
            "says": verdict(low, high, below="better", above="worse", neither="no difference shown"),
        }
    return pd.DataFrame(rows).T


verdicts("time")

# %% tags=["timed"]
verdicts("time here")

# %%
verdicts("cache")

# %% tags=["timed"]
aimed_at = {kind: [f"{100 * target:.1f} %" for target in targets[kind]] for kind in SECONDS}
SOURCE, lines = {"time": "record", "time here": "here"}, []
for counted, kind in itertools.product(SECONDS, SECONDS):  # each plan with its own seconds, and with the other ones
    for place, saving in enumerate(aimed_at[kind]):
        line = {"counted": SOURCE[counted], "planned": SOURCE[kind], "saved, aimed at": saving}
        for name in guesses:
            gap = gap_to_static(judge.harm, saved[counted], fronts[kind][name][place], judge.documents)
            line[name] = "{:+.3f} ({:+.3f} to {:+.3f})".format(*gap)
        lines.append(line)
pd.DataFrame(lines).set_index(["counted", "planned", "saved, aimed at"])

# %% [markdown]
# **Saved run.** At equal cost the two complexity scores are worse than static: ours by 38 % of static's harm for time with
# the record's seconds, by 21 % with those timed here, and by 134 % for cache; the published one by 29 %, 24 % and 145 %.
# With the lesson's levels, length reversed is worse for time, too (9 % and 23 %), and better for cache by 32 %. For cache
# all four rules have about two thirds less harm, whatever their signal. For time "cost only" has 4 % less with the record's
# seconds and 3 % less with those timed here; with a signal it is 8 to 10 % and 4 to 9 %.
#
# The last table looks at time at all five savings, and counts each plan with its own seconds and with the other ones.
# Counted with the seconds that they planned with, the rules with a signal are better than static at all five savings, on
# both tables; "cost only" is so at all but the record's largest (+0.001). Planned with the record's seconds and counted
# with those timed here, some of it goes. "Cost only" is then worse than static in the middle (+0.004) and at the largest
# saving (+0.013), the kind at the largest (+0.008), and early entropy and the probe show nothing at the two largest.
#
# So a policy that pays exists here: at equal time, less harm, if its plan knows the machine's seconds. How much less hangs on
# them.
#
# ### Two controls
#
# Is it the *signal* that pays, or only the cost? Deal a policy's decisions to other prompts of **the same length**, 999 times:
# the cost stays, what the signal knows is gone. p is the share of deals that do at least as well, the real one counted in. We
# ask at each of the five savings, on both tables. With three signals these are thirty tests, so luck has thirty chances; Holm's
# correction makes up for that.

# %% tags=["timed"]
from course_utils.policies import shuffled_within
from course_utils.uncertainty import holm

strata = np.searchsorted(np.quantile(judge.tokens, np.arange(1, 100) / 100), judge.tokens)
# 999 times for each prompt another one, or itself, whose decision it gets
whose = [shuffled_within(np.arange(len(strata)), strata, seed) for seed in range(999)]


def gap_at_its_cost(choice, kind):
    share, harm = outcome(judge.harm, saved[kind], choice)
    return harm - float(static_harm(judge.harm, saved[kind], share))


table, p_values = {}, {}
for kind, name in itertools.product(SECONDS, guesses):
    for saving, choice in zip(aimed_at[kind], fronts[kind][name], strict=True):
        own, dealt = gap_at_its_cost(choice, kind), [gap_at_its_cost(choice[others], kind) for others in whose]
        p = (1 + sum(value <= own for value in dealt)) / (1 + len(dealt))
        row = SOURCE[kind], saving
        table.setdefault(row, {})[name] = f"{own:+.3f}, dealt {np.mean(dealt):+.3f}, p = {p:.3f}"
        p_values[kind, name, saving] = p
tests = [test for test in p_values if test[1] != "cost only"]
corrected = dict(zip(tests, holm(p_values[test] for test in tests), strict=True))
for kind, name in itertools.product(SECONDS, list(guesses)[1:]):
    found = [saving for saving in aimed_at[kind] if corrected[kind, name, saving] < 0.05]
    print(f"{kind}, {name}: below 0.05 after Holm's correction at {', '.join(found) or 'none'}")
pd.DataFrame(table).T.rename_axis(["seconds", "saved, aimed at"])

# %% [markdown]
# "Cost only" has no signal. So its own distance from its shuffled copies is what the strata leave over: prompts of a stratum are
# only about alike in length. A signal has to do more than that.
#
# **Saved run.** Most of the gain is the cost's: dealt to other prompts of the same length, the decisions keep most of it.
# With the record's seconds the kind adds something at 3.2 % and at 5.4 % saved (p = 0.001, the least that so many deals can
# give), the probe at 5.4 % (p = 0.001). With those timed here both do at the saving in the middle, 5.8 % (p = 0.001 each):
# the kind is at −0.014 to static, and dealt anew at −0.008. Early entropy is below 0.05 nowhere after the correction. So in
# the middle, and only there, both tables agree. Even that hangs on the seconds: of three runs on this machine, one showed
# nothing with its own. "Cost only" is below it nowhere, as it should be.
#
# And is the *order* worth its calibration? Nineteen sets of random attention layers tell: an order that beats all of them has
# p = 1/20.

# %%
by_chance = record.random_orders
column = list(record.numbers).index(by_chance["left_out"])
random_sets, mine = np.mean(by_chance["harm"], axis=0), judge.harm[by_chance["prompts"], column].mean()
better = int((random_sets < mine).sum())
print(f"the order's first {by_chance['left_out']}: harm {mine:.2f}; random sets: median {np.median(random_sets):.2f}")
print(f"{better} of {len(random_sets)} random sets are better, so p = {(1 + better) / (1 + len(random_sets)):.2f}")
asked = pd.Series(judge.kinds[by_chance["prompts"]]).value_counts()
print(f"on {asked.sum()} prompts:", ", ".join(f"{asked.get(kind, 0)} {kind}" for kind in sorted(set(judge.kinds))))

# %% [markdown]
# **Saved run.** The order pays, too, on these short prompts, 8 sums, 12 passages and 4 questions, 0 of them retrieval: its
# first 5 layers harm 0.21 nats, random sets 0.65 in the median, and none of the 19 is better (p = 0.05).
#
# ### Exercise 4 · ●●○ · 10 minutes
#
# Design that first control yourself. Write `deal(choice, strata, seed)`: it returns the same decisions, dealt anew at random
# among the prompts of each stratum. `choice` and `strata` are arrays of one whole number a prompt. The check tries it on
# decisions that know nothing but the length, where it must find nothing.
#
# <details><summary>Hint</summary>
#
# `np.random.default_rng(seed)` has `.permutation`. Go through `np.unique(strata)`; change a copy.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def deal(choice, strata, seed):
    generator, dealt = np.random.default_rng(seed), choice.copy()
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        dealt[rows] = generator.permutation(choice[rows])
    return dealt


# END SOLUTION
# BEGIN STUB
# def deal(choice, strata, seed):
#     ...  # your code
# END STUB
check_control(deal)

# %% [markdown]
# ### At which lengths
#
# Where does "cost only" spend its harm, and where does it save? A third of the judging prompts a row, once planned for cache
# and once for time (the record's seconds). The line above the table asks the first with other weights. So far each *answer*
# counted once, however long its prompt. If a long prompt counts for more, because its answer is worth more to you, the rule
# loses its advantage: it buys savings with the long prompts' quality.

# %% tags=["timed"]
thirds = np.searchsorted(np.quantile(judge.tokens, [1 / 3, 2 / 3]), judge.tokens)
place = np.arange(len(judge.tokens))
parts = {}
for kind in ("cache", "time"):
    choice = fronts[kind]["cost only"][TARGET]
    where = pd.DataFrame({"third": thirds, "tokens": judge.tokens, "left out": numbers[choice]})
    where["harm"] = judge.harm[place, choice]
    for what in ("cache", "time"):
        where[f"{what} saved, %"] = 100 * saved[what][place, choice]
    how = {"tokens": "median", "left out": "mean", "harm": "mean", "cache saved, %": "sum", "time saved, %": "sum"}
    parts[f"for {kind}"] = where.groupby("third").agg(how).set_axis(["short", "middle", "long"])
by_third = pd.concat(parts)
weight, choice = judge.tokens / judge.tokens.sum(), fronts["cache"]["cost only"][TARGET]
share, own = outcome(judge.harm, saved["cache"], choice)[0], weight @ judge.harm[place, choice]
alike = np.interp(share, saved["cache"].sum(0), weight @ judge.harm)
print(f"harm if each prompt counts by its tokens: cost only {own:.3f}, static at the same cost {alike:.3f}")
by_third.round(2)

# %% [markdown]
# **Saved run.** Planned for cache, the long third carries all of the harm and all of the saving; the two others lose no
# layer (0.00). Planned for time, every third loses layers, 2.44 of them on average in short prompts and 5.37 in long ones,
# and time is saved at every length: 1.08, 2.19 and 3.10 % of all seconds. And if each prompt counts by its tokens, "cost
# only" for cache is worse than static: 0.220 against 0.137. Whether the rule pays depends on what an answer is worth.
#
# ## What deciding costs, and mixed batches
#
# The decision itself is cheap. But a batch computes every attention layer that *one* of its rows keeps, so a mixed batch saves
# little. A server should therefore group prompts by level before it batches them. Here are the same eight prompts (cut to 96
# tokens) in two batches of four: mixed, and grouped.

# %% tags=["timed"]
from functools import partial

from course_utils.benchmarking import time_interleaved

# Our score with its weights (length, variance) changed to (-1, 0): long prompts have low scores, and leave out most.
scale = (log_length[:first] - config.parameters["log_length"][0]) / np.diff(config.parameters["log_length"])
cuts = tuple(np.quantile(-scale.clip(0, 1), [1 / 3, 2 / 3]).tolist())
reversed_length = replace(config, parameters={**config.parameters, "weights": [-1.0, 0.0]}, thresholds=cuts)
adaptive = make_adaptive(variant(base), reversed_length)
few_long, few_short = by_size[-tail - 4 : -tail], by_size[tail : tail + 4]
batches_of = {"mixed": (few_short[:2] + few_long[:2], few_short[2:] + few_long[2:]), "grouped": (few_short, few_long)}


@torch.no_grad()
def read(model, batches):
    caches = []
    for texts in batches:
        batch = padded_batches(tokenizer, texts, batch_size=4, max_length=96, padding_side="left")[0]
        batch = {name: tensor.to(base.device) for name, tensor in batch.items()}
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        caches.append(model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)[CACHE])
    return caches


for name, batches in batches_of.items():
    calls = {"whole": partial(read, base, batches), "adaptive": partial(read, adaptive, batches)}
    ratio = time_interleaved(calls).loc[1, ["ratio", "ci_low", "ci_high"]]
    decided = [cache.left_out.tolist() for cache in read(adaptive, batches)]
    print(f"{name}: left out {decided}, seconds × {with_interval(*ratio)} of the whole model's")
ids = [encoded(few_long[0])]
timed = time_interleaved({"read": lambda: base(**ids[0]), "decide": lambda: complexity(base, ids, config)})
share = 100 * timed.loc[1, ["ratio", "ci_low", "ci_high"]]
print(f"deciding takes {with_interval(*share)} % of the seconds of reading {ids[0]['input_ids'].shape[1]} tokens")

# %% [markdown]
# **Saved run.** Deciding takes 1.90 % of reading a prompt of 203 tokens (1.29 to 2.08). Mixed, the eight prompts aren't
# shown to be read faster than by the whole model (× 1.01, 0.96 to 1.06), although half of them leave 8 layers out. The same
# eight, grouped, take × 0.94 of the seconds, and even that isn't shown (0.88 to 1.01).
#
# The policy above is installed like any other, and travels in the checkpoint: it is our score with other weights.

# %% [markdown]
# ## Exercises
#
# ### Exercise 5 · ●●● · 15 minutes
#
# Equal shares are an arbitrary choice of thresholds. Choose better ones. You get the `scores` of calibration prompts
# [prompts], their `harms` at each level [3, prompts], how many attention layers each level leaves out, `left_out` = (8, 4, 0),
# and a `budget`: at least so many must be left out on average. Return the two thresholds (first the lower one) of the least
# mean harm. A score on a threshold belongs to the level above it.
#
# The check then tries your thresholds on prompts that chose nothing. They go into a configuration with
# `replace(config, thresholds=…)`.
#
# <details><summary>Hint</summary>
#
# Only the scores themselves, and one number above all of them, need to be tried. `itertools.combinations_with_replacement`
# gives all pairs. The level of each prompt is `(scores >= low).long() + (scores >= high).long()`.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def choose_thresholds(scores, harms, left_out, budget):
    candidates = [*scores.sort().values.tolist(), float(scores.max()) + 1]
    best = None
    for low, high in itertools.combinations_with_replacement(candidates, 2):
        levels = (scores >= low).long() + (scores >= high).long()
        average = torch.tensor(left_out, dtype=torch.float32)[levels].mean()
        mean_harm = float(harms.gather(0, levels[None]).mean())
        if average >= budget and (best is None or mean_harm < best[0]):
            best = mean_harm, low, high
    return best[1:]


# END SOLUTION
# BEGIN STUB
# def choose_thresholds(scores, harms, left_out, budget):
#     ...  # your code
# END STUB
check_thresholds(choose_thresholds)

# %% [markdown]
# ### Exercise 6 · ●●● · 20 minutes
#
# Beat the baseline. Write `signal(tokens, early_entropy, states, learn)`. The first three are arrays over all prompts of the
# embedded model's record: tokens in the prompt, the entropy of the early readout, and 16 principal components of the states
# [prompts, 16]. `learn` is the log harm of the prompts that choose: the first `len(learn)` rows. Return one number a prompt.
# The check scores it, Spearman's correlation with harm, on the prompts that judge, beside length, the lesson's probe and the kind
# alone. To pass, be clearly better than length. To have found something, be better than the kind.
#
# <details><summary>Hint</summary>
#
# `RidgeCV` on standardised columns is the lesson's probe. Other models are allowed: `sklearn.ensemble` has several that need
# no scaling. Fit on the first `len(learn)` rows only.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def signal(tokens, early_entropy, states, learn):
    from sklearn.ensemble import ExtraTreesRegressor

    columns = np.column_stack([np.log(tokens), early_entropy, states])
    trees = ExtraTreesRegressor(300, min_samples_leaf=4, random_state=0)
    return trees.fit(columns[: len(learn)], learn).predict(columns)


# END SOLUTION
# BEGIN STUB
# def signal(tokens, early_entropy, states, learn):
#     ...  # your code
# END STUB
check_signal(signal)

# %% [markdown]
# ## Three questions

# %% [markdown] tags=["quiz"]
# A model decides anew at every forward pass how many attention layers it leaves out. What goes wrong?
#
# - [ ] Nothing, as long as the score is good.
#   > While decoding, a pass sees one token: every answer looks like the shortest prompt there is.
# - [x] With the cache it sees one token a pass and decides for that; without the cache it decides for the whole text.
#   > So the same model gives two different answers. The decision has to live with the answer, in its cache.
# - [ ] Only batches are affected.
#   > A single answer is affected too: its prompt and its continuation may use different attention layers.

# %% [markdown] tags=["quiz"]
# Two policies leave out four attention layers on average. What do you know about what they save?
#
# - [ ] They save the same: the average is the same.
#   > An average over prompts gives a one-word prompt the weight of a thousand-word one.
# - [ ] The one that bypasses on short prompts saves more, because there are more short prompts.
#   > There may be more of them, but they have few tokens: little cache to save, and little time to read.
# - [x] Nothing yet: it depends on how many tokens the prompts have on which they leave out more.
#   > Cache is paid for by the token, and reading time as well. Compare harm at the same seconds or bytes.

# %% [markdown] tags=["quiz"]
# The two halves of the answers agree poorly about a prompt's harm. What follows for adaptive bypass?
#
# - [x] No signal can predict harm well, but a policy can still gain by looking at cost.
#   > Harm that can't be predicted may be taken as equal for all; what a bypass saves is known beforehand.
# - [ ] The signal needs more features.
#   > No feature predicts noise. The ceiling holds for every signal.
# - [ ] Harm is zero.
#   > It can be large. Poor agreement says that it isn't a steady property of the prompt.

# %% [markdown]
# ## Take-aways
#
# - A decision about an answer belongs to the answer. Kept in its cache, it survives batches and other answers in between;
#   kept in the model, it changes under your feet.
# - A score that sounds plausible is a hypothesis. Its rank correlation with measured harm, on prompts that chose nothing, is
# the test; split halves give the ceiling, noise the floor. And ask what a label of the task alone would do: over all prompts
# here, it did best.
# - "The same average" is not the same cost. The cache that a bypass saves grows with the tokens, the time more slowly; so compare
#   at equal seconds or bytes.
# - What is saved can be known before the answer, the cache exactly, time as well as it was timed; what it harms has to be guessed.
#   Use the known part first: here it made most of the gain. And count time with seconds that didn't plan.
# - The bound, solved, tells how much a better signal could still gain. A mixed batch costs what its most complex prompt costs.
#
# ## References
#
# - Martra, *Large Language Model Notebooks Course*, notebook 6_6b (the idea of an adaptive bypass; the published score)
# - He et al. 2024, *What Matters in Transformers? Not All Attention is Needed*, arXiv 2406.15786
# - He et al. 2024, *Router-Tuning: A Simple and Effective Approach for Enabling Dynamic-Depth in Transformers*, arXiv 2410.13184
#   (MindSkip: a trained router decides for each attention)
# - Raposo et al. 2024, *Mixture-of-Depths: Dynamically allocating compute in transformer-based language models*, arXiv
#   2404.02258 (a trained router decides for each token)
# - Schuster et al. 2022, *Confident Adaptive Language Modeling*, arXiv 2207.07061 (early exit, token by token)
# - Paperno et al. 2016, *The LAMBADA dataset*, arXiv 1606.06031
# - Clark et al. 2018, *Think you have Solved Question Answering? Try ARC*, arXiv 1803.05457
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 07 repairs what pruning broke: a pruned model learns from the model it was cut from.
