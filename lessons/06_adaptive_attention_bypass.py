# ---
# jupyter:
#   course:
#     title: "Adaptive attention bypass: each prompt decides"
#     minutes: 60
#     prerequisites: lesson 05 (attention importance, bypass, cache, ceilings)
#     assets: [smollm2, benchmarks, texts, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - how a prompt can decide, before anything has run, how many attentions its answer leaves out
# - where such a decision has to live, and what goes wrong when it lives in the model
# - how to ask whether a score *predicts* anything, before you trust it with your model
# - adaptive against its controls: the same average everywhere, shuffled scores, a random order
# - what it buys, and why a mixture is never faster than its fastest part
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct, a Llama in architecture with 30 blocks. In the `hub` profile
# the same code runs on Llama-3.2-1B with 16. The saved outputs come from the `embedded` profile on a machine with two
# CPU cores; the next table says which.

# %% tags=["install"]

# %%
import functools
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from course_utils.plotting import log_ticks, scores_with_intervals, show_tensor, style
from course_utils.reports import with_interval
from course_utils.session import start

session = start("06")
style()

# %% [markdown]
# ## A score that you can compute by hand
#
# Lesson 05 left the same attentions out for every prompt. But prompts differ. Perhaps an easy one needs fewer attentions
# than a hard one? Then each prompt should get its own number.
#
# The decision must be cheap, and it must come first: what a bypassed attention didn't compute can't be computed later. All
# that we have at that moment are the embeddings of the prompt's tokens. A proposal by Martra takes two things from them:
# **how long** the prompt is, and **how much its embeddings vary**. Here are two prompts with 3 numbers a token.

# %%
simple = torch.tensor([[1.0, 0, 1], [1, 0, 2], [1, 0, 1]])
mixed = torch.tensor([[2.0, -1, 0], [0, 1, 3], [-2, 0, 1], [1, 2, -1], [0, -2, 2], [3, 1, 0]])

figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for ax, embeddings, title in zip(axes, (simple, mixed), ("a simple prompt", "a mixed prompt"), strict=True):
    show_tensor(embeddings, title=title, x_label="component", y_label="token", fmt=".0f", ax=ax)
plt.show()

# %% [markdown]
# The variance is taken over the tokens, for each component, and then averaged. Both numbers are scaled: 0 is the low end
# of what was seen in calibration, 1 is the high end, and nothing leaves that range. The score is their mean.

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
# Thresholds turn the score into a level, and each level leaves out a fixed number of attentions: many for simple prompts,
# none for complex ones. That is the whole method. *Before you go on:* do you expect long prompts to be the ones that need
# their attentions? Note your guess. We test it below.

# %% [markdown]
# ## Prompts of all sizes

# %%
from course_utils.architectures import describe
from course_utils.models import load_model, variant
from course_utils.session import safe_dtype
from course_utils.texts import padded_batches, prompts

dtype = safe_dtype(session.dtype)  # a broken model's activations can leave float16's range
base, tokenizer = load_model("llama", dtype=dtype)
total = describe(base).num_blocks
CACHE = describe(base).cache_keyword  # what the forward calls its cache; transformers has renamed it

ANSWER = 16  # tokens of each text that follow the prompt
by_length = {"key": lambda prompt: len(prompt.text)}  # sorted, so that batches need little padding
calibration = sorted(prompts(tokenizer, "calibration", count=90, answer_tokens=ANSWER), **by_length)
evaluation = sorted(prompts(tokenizer, "evaluation", count=120, answer_tokens=ANSWER), **by_length)

print(f"{len(calibration)} prompts decide everything, {len(evaluation)} others judge it; no document is in both")
pd.DataFrame(
    [
        {
            "from": p.domain,
            "words": len(p.text.split()),
            "prompt": p.text[:60],
            "answer begins": tokenizer.decode(p.answer[:6]),
        }
        for p in evaluation[:: len(evaluation) // 8]
    ]
).style.hide()

# %% [markdown]
# ## Which attentions, and do simple and complex prompts agree?
#
# The score says *how many* attentions to leave out. *Which* is a question for lesson 05's importance, measured on the
# calibration prompts. One order for all prompts makes sense only if short and long ones agree on it.

# %%
from course_utils.attention import attention_importance
from course_utils.uncertainty import rank_correlation, verdict

texts = [prompt.text for prompt in calibration]
third = len(texts) // 3
importance = {
    "shortest third": attention_importance(base, padded_batches(tokenizer, texts[:third], batch_size=12)),
    "longest third": attention_importance(base, padded_batches(tokenizer, texts[-third:], batch_size=4)),
}
figure, ax = plt.subplots(figsize=(13, 4.5), layout="constrained")
for shift, (name, scores) in zip((-0.2, 0.2), importance.items(), strict=True):
    ax.bar(np.arange(total) + shift, scores, width=0.4, label=name)
ax.set_yscale("log")
log_ticks(ax.yaxis)
ax.set_xticks(range(total))
ax.set_xlabel("block")
ax.set_ylabel("importance, 1 − cosine")
ax.set_title("What the attentions matter to short and to long prompts")
ax.grid(axis="x", visible=False)
ax.legend()
plt.show()

lowest = [set(scores.argsort(stable=True)[: total // 4].tolist()) for scores in importance.values()]
agreement = rank_correlation(*importance.values(), seed=session.seed)
print(f"Spearman's rank correlation {with_interval(*agreement)}, with its 95 % interval")
print(f"the {total // 4} least important: {len(lowest[0] & lowest[1])} are in both lists")

# %% [markdown]
# ## Calibration
#
# `calibrate` finds the order step by step as in lesson 05, the ranges of the two numbers (5th and 95th percentile of the
# calibration prompts), and the thresholds: each level gets the same share of these prompts. We take three levels.

# %%
from course_utils.adaptive import calibrate, complexity

MOST = round(total * 4 / 15)  # attentions that the simplest prompts leave out: 8 of 30, 4 of 16
LEVELS = (MOST, MOST // 2, 0)
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
by_level = np.bincount([config.level(score) for score in by_hand], minlength=len(LEVELS))
print("complexity_by_hand equals course_utils' complexity; calibration prompts by level:", by_level)

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
from dataclasses import replace

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


exact, _ = load_model("llama", dtype=torch.float32)
settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
short, long = encoded(evaluation[0].text), encoded(evaluation[-1].text)
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
# with the answer. So two answers can take turns on one model, a batch can mix prompts, and a second turn of a chat goes on
# with the first one's decision. Three equalities, in float32:

# %%
with torch.no_grad():
    # 1. A batch that mixes prompts: each row gets what it would get alone.
    both = padded_batches(tokenizer, [evaluation[0].text, evaluation[-1].text], batch_size=2, padding_side="left")[0]
    both = {name: tensor.to(exact.device) for name, tensor in both.items()}
    positions = (both["attention_mask"].cumsum(1) - 1).clamp(min=0)
    mixed_batch = exact(**both, position_ids=positions)
    for row, one in enumerate((short, long)):
        gap = (mixed_batch.logits[row, -1] - exact(**one).logits[0, -1]).abs().max()
        assert gap < 1e-3 * mixed_batch.logits.abs().max()
    print("rows of one batch leave out", mixed_batch[CACHE].left_out.tolist(), "with the logits that they have alone")

    # 2. Each row is the static bypass of lesson 05 that it asks for.
    static, _ = load_model("llama", dtype=torch.float32)
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
# Where *all* rows of a batch leave an attention out, it isn't computed and nothing is cached. Where only some do, it is
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
    elsewhere = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).to(exact.device)
    for name, reloaded in {
        "load_pruned": load_pruned(folder)[0].to(exact.device),
        "trust_remote_code": elsewhere,
    }.items():
        assert torch.equal(reloaded(**short).logits, expected)
        print(f"reloaded with {name}: logits equal, bit for bit")
    try:
        LlamaForCausalLM.from_pretrained(folder)
    except RuntimeError as error:  # what we want: better no model than another one
        print("as a stock Llama: stops,", type(error).__name__)
del exact

# %% [markdown]
# ## Does the score predict anything?
#
# Now the question that decides everything. The method assumes that a complex prompt suffers **more** when attentions go.
# Suffering can be measured: let the whole model and the bypassed one predict the same answer, and compare their
# predictions token by token. The Kullback–Leibler divergence (KL) is 0 when they are the same.
#
# For each evaluation prompt we measure this *harm* on the answer that really follows in its text, with 1, 2, … attentions
# left out.

# %%
from course_utils.adaptive import divergence, prompt_features


def batches_of(chosen, *, answers, size=12):
    """Prompts, with or without their answers, as batches padded on the left."""
    rows = [tokenizer(p.text, add_special_tokens=False).input_ids + list(p.answer if answers else ()) for p in chosen]
    return [
        dict(tokenizer.pad({"input_ids": rows[i : i + size]}, padding_side="left", return_tensors="pt"))
        for i in range(0, len(rows), size)
    ]


questions, with_answers = (batches_of(evaluation, answers=answers) for answers in (False, True))
counts = range(MOST + 1)
harm = divergence(base, with_answers, [config.order[:n] for n in counts], last=ANSWER + 1).numpy()  # [counts, prompts]
assert (harm[0] == 0).all()  # nothing left out, nothing changed
print(f"mean harm with {MOST} attentions left out: {harm[MOST].mean():.3f} nats a token")
print(
    f"from prompt to prompt it varies: the middle half lies between {np.quantile(harm[MOST], 0.25):.3f} and {np.quantile(harm[MOST], 0.75):.3f}"
)

# %% [markdown]
# If the score is any good, prompts with a high score have a high harm. We also try other signals:
#
# - its two parts, alone
# - a **fitted** policy: `calibrate(..., policy="fitted")` measures the harm on the calibration prompts and fits its logarithm
#   to all that the embeddings tell: length, variance, and the mean embedding. It costs as little as the first policy.
# - the *entropy* of the first predicted token, which needs the whole prefill of the whole model first. It can't save that
#   prefill, so it stands here for comparison only.
#
# *Predict before you run:* which of them will have a rank correlation with the harm that is clearly above 0?

# %%
fitted = calibrate(base, tokenizer, texts, left_out=LEVELS, policy="fitted")


@torch.no_grad()
def first_token_entropy(batches):
    """Entropy of the prediction behind each prompt, nats, [prompts]."""
    rows = []
    for batch in batches:
        batch = {name: tensor.to(base.device) for name, tensor in batch.items()}
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        logits = base(**batch, position_ids=positions, use_cache=False, logits_to_keep=1).logits[:, -1]
        rows.append(torch.distributions.Categorical(logits=logits.float()).entropy())
    return torch.cat(rows).cpu()


features = prompt_features(base, questions)
signals = {
    "length + variance": complexity(base, questions, config),
    "fitted to the harm": complexity(base, questions, fitted),
    "length alone": features[:, 0],
    "variance alone": features[:, 1],
    "first token's entropy": first_token_entropy(questions),
}
noise = torch.rand(len(evaluation), generator=torch.Generator().manual_seed(session.seed))
correlations = pd.DataFrame(
    {
        name: rank_correlation(values, harm[MOST], seed=session.seed)
        for name, values in (signals | {"noise (control)": noise}).items()
    },
    index=["Spearman", "ci_low", "ci_high"],
).T
correlations["verdict"] = [
    verdict(row.ci_low, row.ci_high, below="predicts the opposite", above="predicts harm", neither="nothing shown")
    for row in correlations.itertuples()
]
correlations.round(2)

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
for ax, (name, settings_of) in zip(
    axes, {"length + variance": config, "fitted to the harm": fitted}.items(), strict=True
):
    for number, domain in enumerate(dict.fromkeys(p.domain for p in evaluation)):
        chosen = [i for i, p in enumerate(evaluation) if p.domain == domain]
        ax.scatter(
            signals[name][chosen], harm[MOST][chosen], label=domain, marker="osD"[number], color=f"C{number}", alpha=0.8
        )
    for threshold in settings_of.thresholds:
        ax.axvline(threshold, color="0.25", linestyle=":", linewidth=1.6)
    ax.set_title(f"{name}: Spearman {with_interval(*correlations.loc[name][:3])}")
    ax.set_xlabel("score (dotted: the thresholds)")
axes[0].set_ylabel(f"harm of leaving {MOST} out, nats a token")
axes[0].legend(title="prompt from")
plt.show()

# %% [markdown]
# Read the table by its intervals, and the picture by its cloud. A correlation can be *shown* and still be too weak to steer
# by: look how much the harm varies among prompts of the same score.
#
# ## Adaptive against its controls
#
# The score is one thing, what it buys is another. A policy must beat these, **at the same average number of attentions
# left out**:
#
# - **static**: every prompt leaves out the same number
# - **shuffled**: the same decisions, dealt to the wrong prompts
# - **random order**: the same numbers, but random attentions (five orders)
# - and, as a bound that nobody can reach, an **oracle** that knows each prompt's harm

# %%
policies = {"length + variance": config, "fitted to the harm": fitted}
decisions = {
    name: np.array([one.left_out[one.level(score)] for score in signals[name].tolist()])
    for name, one in policies.items()
}
generator = np.random.default_rng(session.seed)


def harm_of(numbers):
    """The harm of each prompt that leaves out its own number of attentions, [prompts]."""
    return harm[numbers, np.arange(len(numbers))]


def static_harm(average):
    """The harm of each prompt when all leave out the same number; between two numbers, of the mixture."""
    below = int(average)
    share = average - below
    return (1 - share) * harm[below] + share * harm[min(below + 1, MOST)]


def mean_with_interval(values):
    """Mean over prompts with its 95 % bootstrap interval."""
    means = generator.choice(values, (2000, len(values))).mean(1)
    return values.mean(), *np.quantile(means, [0.025, 0.975])


SEEDS = range(5)
random_orders = [torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:MOST].tolist() for seed in SEEDS]
sets = [order[:n] for order in random_orders for n in LEVELS[:-1]]
at_random = divergence(base, with_answers, sets, last=ANSWER + 1).numpy().reshape(len(SEEDS), len(LEVELS) - 1, -1)

rows, gaps = {}, {}
for name, numbers in decisions.items():
    own, static = harm_of(numbers), static_harm(numbers.mean())
    shuffled = np.array([harm_of(generator.permutation(numbers)).mean() for _ in range(1000)])
    oracle = np.zeros_like(numbers)
    oracle[harm[MOST].argsort()] = np.sort(numbers)[::-1]  # the most attentions where it harms least
    levels = np.array([LEVELS.index(n) for n in numbers])
    padded = np.concatenate([at_random, np.zeros_like(at_random[:, :1])], axis=1)
    random_order = padded[:, levels, np.arange(len(levels))].mean(1)
    gaps[name] = mean_with_interval(own - static)
    rows[name] = {
        "left out, average": f"{numbers.mean():.2f}",
        "adaptive": with_interval(*mean_with_interval(own)),
        "static, same average": f"{static.mean():.3f}",
        "adaptive − static": "{:+.3f} ({:+.3f} to {:+.3f})".format(*gaps[name]),
        "shuffled (95 % of 1000)": f"{shuffled.mean():.3f} ({np.quantile(shuffled, 0.025):.3f} to {np.quantile(shuffled, 0.975):.3f})",
        "better than shuffled": f"{(shuffled > own.mean()).mean():.0%} of them",
        f"random order (mean ± sd of {len(SEEDS)})": f"{random_order.mean():.2f} ± {random_order.std(ddof=1):.2f}",
        "oracle": f"{harm_of(oracle).mean():.3f}",
    }
print("mean harm, nats a token; lower is better")
pd.DataFrame(rows)

# %%
for name, (gap, low, high) in gaps.items():
    says = verdict(low, high, below="better than", above="worse than", neither="not to be told from")
    print(f"{name}: {says} leaving the same number out everywhere ({gap:+.3f} nats, {low:+.3f} to {high:+.3f})")

figure, ax = plt.subplots(figsize=(10, 5.5), layout="constrained")
middle = [mean_with_interval(harm[n]) for n in counts]
ax.plot(counts, [m[0] for m in middle], marker="o", label="static: the same for every prompt")
ax.fill_between(counts, [m[1] for m in middle], [m[2] for m in middle], alpha=0.18)
for number, (name, numbers) in enumerate(decisions.items(), start=1):
    value, low, high = mean_with_interval(harm_of(numbers))
    ax.errorbar(
        numbers.mean(),
        value,
        yerr=[[value - low], [high - value]],
        fmt="sD"[number - 1],
        color=f"C{number}",
        capsize=5,
        markersize=10,
        label=f"adaptive: {name}",
    )
ax.set_xlabel(f"attentions left out on average, of {total}")
ax.set_ylabel("harm, nats a token (lower is better)")
ax.set_title("Does deciding for each prompt pay?")
ax.legend()
plt.show()
convex = sum(harm[n - 1].mean() + harm[n + 1].mean() > 2 * harm[n].mean() for n in range(1, MOST))
print(f"the static curve bends upwards at {convex} of {MOST - 1} inner points")

# %% [markdown]
# The last line holds the handicap. Where the curve bends upwards, a prompt that leaves out twice as many suffers more than
# twice as much. So *mixing* two numbers is worse than the number between them, unless the score finds the prompts that can
# bear it. A policy starts with a debt and must first earn it back.
#
# ### By level

# %%
bands = pd.DataFrame(
    {
        "level": [LEVELS.index(n) for n in decisions["length + variance"]],
        "words": [len(p.text.split()) for p in evaluation],
    }
)
bands["harm as decided"] = harm_of(decisions["length + variance"])
bands[f"harm with {MOST // 2} everywhere"] = harm[MOST // 2]
bands[f"harm with {MOST} everywhere"] = harm[MOST]
table = bands.groupby("level").mean().assign(prompts=bands.groupby("level").size())
table.index = [
    f"{name} ({LEVELS[level]} left out)"
    for level, name in zip(table.index, np.array(["simplest", "middle", "most complex"])[table.index], strict=True)
]
table.round(3)

# %% [markdown]
# ## Benchmarks: producing a word, picking an answer
#
# The same on two tasks that nobody calibrated for: LAMBADA, where the last word of a passage is produced, and ARC-Easy,
# where one of four answers is picked. The decision is made from the passage or the question alone. First we see what the
# prompts of each task decide; then the static arm leaves out the same number, rounded.

# %%
from course_utils.evaluation import evaluate, paired

DOCUMENTS = 40


def ask_adaptive(config, task):
    """Scores of the adaptive model, and how many attentions it left out on average."""
    seen = []

    def note(model, args, named, output):
        if named.get(CACHE) is None:  # a question, not an answer to it
            seen.extend(output[CACHE].left_out.tolist())

    make_adaptive(base, config)
    hook = base.register_forward_hook(note, with_kwargs=True)
    result = evaluate(base, tokenizer, task, limit=DOCUMENTS)
    hook.remove()
    make_adaptive(base, None)
    return result, np.mean(seen)


@functools.cache
def ask_static(number, task):
    bypass_attention(base, config.order[:number])
    result = evaluate(base, tokenizer, task, limit=DOCUMENTS)
    bypass_attention(base, [])
    return result


results, averages = {}, {}
for task in tqdm(["lambada_openai", "arc_easy"], desc="tasks"):
    results["unpruned", task] = ask_static(0, task)
    for name, one in policies.items():
        results[f"adaptive: {name}", task], averages[name, task] = ask_adaptive(one, task)
        results[f"static: as many as {name}", task] = ask_static(round(averages[name, task]), task)
for (name, task), average in averages.items():
    print(f"{name:<20} leaves out {average:.1f} attentions on average in {task}")
frame = pd.concat([result.assign(model=name) for (name, _), result in results.items()])
scores_with_intervals(
    frame[frame.metric != "perplexity"],
    x="task",
    x_label=f"task ({DOCUMENTS} documents each)",
    y_label="accuracy",
    title="Adaptive and static at the same average",
)
plt.show()

# %%
for name, task in averages:
    against = paired(results[f"static: as many as {name}", task], results[f"adaptive: {name}", task])
    for row in against[against.metric != "perplexity"].itertuples():
        says = verdict(row.ci_low, row.ci_high, below="worse", above="better", neither="no difference shown")
        print(
            f"{task:<15} adaptive ({name}) {row.b:.2f}, static {row.a:.2f}: {says} ({row.ci_low:+.2f} to {row.ci_high:+.2f})"
        )

# %% [markdown]
# Read these lines with care. Four comparisons at 95 % find a difference that isn't there in about one notebook of five, and
# 40 documents are few. The table of harms above rests on more.
#
# ## What it buys
#
# First the price of the decision: looking the embeddings up and scoring them, beside the prefill of the same prompt.

# %%
from course_utils.benchmarking import (
    decode_ceiling,
    kv_bytes_per_token,
    prefill_ceiling,
    speedup_text,
    time_interleaved,
)

CONTEXTS = (16, 128, 512)
ids = {
    n: torch.randint(describe(base).vocab_size, (1, n), generator=torch.Generator().manual_seed(n)).to(base.device)
    for n in CONTEXTS
}


@torch.no_grad()
def prefill(model, tokens):
    return model(tokens, use_cache=True, logits_to_keep=1)


def price_of_deciding(tokens):
    calls = {
        "prefill": lambda: prefill(base, tokens),
        "decision": lambda: complexity(base, [{"input_ids": tokens}], config),
    }
    return time_interleaved(calls, rounds=9).set_index("name")


rows = []
for n in CONTEXTS:
    timed = price_of_deciding(ids[n])
    rows.append(
        {
            "tokens": n,
            "decision, µs": 1e6 * timed.seconds["decision"],
            "prefill, ms": 1e3 * timed.seconds["prefill"],
            "decision / prefill": timed.ratio["decision"],
        }
    )
pd.DataFrame(rows).set_index("tokens").style.format(
    {"decision, µs": "{:.0f}", "prefill, ms": "{:.1f}", "decision / prefill": "{:.1%}"}
)

# %% [markdown]
# Then the speed of one answer, at batch 1, by what its prompt decides. To time each level at the same length, we set the
# decision by hand: thresholds so low or so high that every prompt lands on that level. The static bypass of the same
# attentions runs beside it, and so does its ceiling.


# %%
def always(level):
    """A variant of the base model on which every prompt lands on this level."""
    thresholds = tuple([-1.0] * level + [2.0] * (len(LEVELS) - 1 - level))
    return make_adaptive(variant(base), replace(config, thresholds=thresholds))


def statically(number):
    model = variant(base)
    bypass_attention(model, config.order[:number])
    return model


STEPS = 8


@torch.no_grad()
def decode(model, tokens):
    """A function that generates STEPS tokens behind these ones."""
    cache = prefill(model, tokens)[CACHE]

    @torch.no_grad()
    def generate():
        for _ in range(STEPS):
            model(tokens[:, :1], use_cache=True, **{CACHE: cache})
        cache.crop(-STEPS)  # the next round meets the same length

    return generate


contestants = {"unpruned": base}
for level, number in enumerate(LEVELS):
    contestants[f"adaptive, {number} left out"] = always(level)
contestants[f"static, {MOST} left out"] = statically(MOST)
references = {name: statically(int(name.split()[1])) for name in list(contestants)[1:]}


def calls_of(phase, tokens):
    if phase == "prefill":
        return {name: (lambda model=model: prefill(model, tokens)) for name, model in contestants.items()}
    return {name: decode(model, tokens) for name, model in contestants.items()}


# Reading 2048 tokens takes long; lesson 05 has it.
SIZES = [("prefill", 1, 128), ("prefill", 1, 512), ("prefill", 8, 128)]
SIZES += [("decode", 1, 128), ("decode", 1, 2048), ("decode", 8, 128)]
speeds = []
for phase, batch, context in tqdm(SIZES, desc="sizes"):
    generator_of_ids = torch.Generator().manual_seed(session.seed)
    tokens = torch.randint(describe(base).vocab_size, (batch, context), generator=generator_of_ids).to(base.device)
    timed = time_interleaved(calls_of(phase, tokens), rounds=6).set_index("name")
    for name, model in references.items():
        row = timed.loc[name]
        by_flops = prefill_ceiling(base, model, context=context)
        by_bytes = decode_ceiling(base, model, batch_size=batch, context=context)
        speeds.append(
            {
                "phase": phase,
                "batch": batch,
                "context": context,
                "model": name,
                "speedup": 1 / row.ratio,
                "ci_low": 1 / row.ci_high,
                "ci_high": 1 / row.ci_low,
                "ceiling": max(by_flops, by_bytes),
            }
        )
speed = pd.DataFrame(speeds)
table = speed[["phase", "batch", "context", "model"]].copy()
table["× unpruned (95 %), ≤ ceiling"] = [speedup_text(row) for row in speed.itertuples()]
table.pivot(index=["phase", "batch", "context"], columns="model", values="× unpruned (95 %), ≤ ceiling")[
    list(references)
]

# %% [markdown]
# A mixed batch is the other extreme: eight prompts, one of which is complex.

# %%
mixture = [evaluation[i].text for i in np.linspace(0, len(evaluation) - 1, 8).astype(int)]
batch = {
    name: tensor.to(base.device)
    for name, tensor in padded_batches(tokenizer, mixture, batch_size=8, padding_side="left")[0].items()
}
adaptive = make_adaptive(variant(base), config)


@torch.no_grad()
def read(model):
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)


print("left out, row by row:", read(adaptive)[CACHE].left_out.tolist())
timed = time_interleaved(
    {
        "unpruned": lambda: read(base),
        "adaptive": lambda: read(adaptive),
        f"static, {MOST}": lambda: read(contestants[f"static, {MOST} left out"]),
    },
    rounds=9,
)
for row in list(timed.itertuples())[1:]:
    print(
        f"{row.name:<12} prefill of the mixed batch × {with_interval(1 / row.ratio, 1 / row.ci_high, 1 / row.ci_low)}"
    )

# %% [markdown]
# ## What it costs and buys


# %%
def together(shares, speedups):
    """Times add up, so the speed-up of a mixture is a harmonic mean."""
    return 1 / sum(share / speedup for share, speedup in zip(shares, speedups, strict=True))


numbers = decisions["length + variance"]
shares = [float((numbers == n).mean()) for n in LEVELS]
columns = {}
for phase, context in (("prefill", 128), ("decode", 128), ("decode", 2048)):
    part = speed[(speed.phase == phase) & (speed.context == context) & (speed.batch == 1)].set_index("model")
    measured = [part.speedup[f"adaptive, {n} left out"] for n in LEVELS]
    possible = [part.ceiling[f"adaptive, {n} left out"] for n in LEVELS]
    columns[f"{phase}, context {context}, one prompt at a time"] = {
        "unpruned": "1",
        "adaptive, length + variance": f"{together(shares, measured):.2f}, ≤ {together(shares, possible):.2f}",
        f"static, {MOST}": f"{part.speedup[f'static, {MOST} left out']:.2f}, ≤ {part.ceiling[f'static, {MOST} left out']:.2f}",
    }
kv = np.array([kv_bytes_per_token(statically(n)) for n in LEVELS])
columns["cache, bytes a token"] = {
    "unpruned": f"{kv_bytes_per_token(base):,}",
    "adaptive, length + variance": f"{shares @ kv:,.0f} on average",
    f"static, {MOST}": f"{kv[0]:,}",
}
columns["harm, nats a token"] = {
    "unpruned": "0",
    "adaptive, length + variance": f"{harm_of(numbers).mean():.3f}",
    f"static, {MOST}": f"{harm[MOST].mean():.3f}",
}
pd.DataFrame(columns).T

# %%
over = int((speed.ci_low > speed.ceiling).sum())
print(f"{over} of {len(speed)} measured speed-ups lie above their ceilings; lesson 05 looks for the reason")
best = speed[speed.model == f"adaptive, {MOST} left out"].set_index(["phase", "batch", "context"]).speedup
same = speed[speed.model == f"static, {MOST} left out"].set_index(["phase", "batch", "context"]).speedup
print(
    f"adaptive against static, both with {MOST} left out: × {np.exp(np.log(best / same).mean()):.3f} as fast on average"
)

# %% [markdown]
# ## Exercises

# %%
from course_utils.exercises.lesson_06 import check_complexity, check_speedup, check_thresholds

# %% [markdown]
# ### Exercise 1 · ●●○ · 15 minutes
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
# ### Exercise 2 · ●●● · 20 minutes
#
# Equal shares are an arbitrary choice of thresholds. Choose better ones. You get the `scores` of calibration prompts
# [prompts], their `harms` at each level [3, prompts], how many attentions each level leaves out, `left_out` = (8, 4, 0), and
# a `budget`: at least so many must be left out on average. Return the two thresholds (first the lower one) of the least mean
# harm. A score on a threshold belongs to the level above it.
#
# The check then tries your thresholds on prompts that chose nothing.
#
# <details><summary>Hint</summary>
#
# Only the scores themselves, and one number above all of them, need to be tried. `itertools.combinations_with_replacement`
# gives all pairs. The level of each prompt is `(scores >= low).long() + (scores >= high).long()`.
#
# </details>

# %% tags=["exercise"]
# BEGIN SOLUTION
import itertools


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
# ### Exercise 3 · ●○○ · 5 minutes
#
# Half of your prompts run 1.0 × as fast as before, the other half 2.0 ×. How much faster are all of them together? Not 1.5 ×.
# Write `mixture_speedup(shares, speedups)` for any number of groups. The shares add up to 1, and all prompts take the same
# time before.
#
# <details><summary>Hint</summary>
#
# A group's time is its share divided by its speed-up.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def mixture_speedup(shares, speedups):
    return 1 / sum(share / speedup for share, speedup in zip(shares, speedups, strict=True))


# END SOLUTION
# BEGIN STUB
# def mixture_speedup(shares, speedups):
#     ...  # your code
# END STUB
check_speedup(mixture_speedup)

# %% [markdown]
# ## Take-aways
#
# - A decision about an answer belongs to the answer. Kept in its cache, it survives batches, beams, turns and other answers;
#   kept in the model, it changes under your feet.
# - A score that sounds plausible is a hypothesis. Its rank correlation with measured harm, on prompts that chose nothing, is
#   the test; noise beside it is the control.
# - Where harm grows faster than the number of attentions left out, a mixture starts with a handicap against the same number
#   everywhere. A policy has to predict well enough to earn that back. Shuffled decisions show whether it does.
# - A mixture is never faster than its most aggressive part, and a mixed batch costs what its most complex prompt costs.
#
# ## References
#
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the idea of an adaptive bypass, and its score)
# - He et al. 2024, *What Matters in Transformers? Not All Attention is Needed*, arXiv 2406.15786
# - Raposo et al. 2024, *Mixture-of-Depths: Dynamically allocating compute in transformer-based language models*, arXiv
#   2404.02258
# - Schuster et al. 2022, *Confident Adaptive Language Modeling*, arXiv 2207.07061
# - Paperno et al. 2016, *The LAMBADA dataset*, arXiv 1606.06031
# - Ben Allal et al. 2025, *SmolLM2*, arXiv 2502.02737
#
# **Next:** lesson 07 repairs what pruning broke: a pruned model learns from the model it was cut from.
