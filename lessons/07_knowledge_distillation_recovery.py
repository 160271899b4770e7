# ---
# jupyter:
#   course:
#     title: "Knowledge distillation: getting back what pruning took"
#     minutes: 70
#     hardware: cpu
#     prerequisites: lesson 03 (width pruning of a GLU, the activation criterion, paired intervals)
#     assets: [smollm2, benchmarks, texts, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - what a teacher tells a student that the next word alone does not, on five words that you can check by hand
# - the distillation loss written out: shift, mask, and a mean that does not depend on how a step is cut into batches
# - why logits are the largest tensors of the whole training, and how to do without them
# - six ways to repair a pruned Llama, all with the same number of tokens, judged on text that none of them has seen
# - how to tell recovery from mere fitting, and a gain from noise
# - how a run survives a power cut, how it moves to eight GPUs, and how to *compute* whether it fits into memory
#
# In the `embedded` profile "llama" is SmolLM2-135M-Instruct; in the `hub` profile the same code runs on Llama-3.2-1B, where
# the GPU has room for it. The saved outputs come from the `embedded` profile on a machine with two CPU cores; the next table
# says which.

# %% tags=["install"]

# %%
import copy
import itertools
import json
import math
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from course_utils.plotting import scores_with_intervals, style
from course_utils.reports import shown, with_interval
from course_utils.session import start

session = start("07")
style()

# %%
# The sizes that decide how long the lesson runs.
RATIO = 0.4  # of the MLP neurons are removed
STEPS, ROWS, LENGTH = 32, 4, 128  # 32 × 4 × 128 = 16,384 tokens for each arm
LR = 2e-4
WATCHED, WATCH_EVERY = 4, 8  # rows of validation text, steps from one look to the next
HELD_OUT = {"speeches": 12, "wiki": 12}  # rows that judge, by kind of text; the first kind is the one we train on
DOCUMENTS = 60  # of LAMBADA

# %% [markdown]
# ## Two distributions over five words
#
# A pruned model still speaks, but badly. We have something that most who train a language model don't have: the model that
# it was cut from. That one knows what the pruned one has lost. It becomes the **teacher**, the pruned one the **student**.
#
# "After lunch she went back to …". Here is what both think of five words. In the text that we happen to have, the next word
# is *school*.

# %%
WORDS = ["work", "school", "bed", "town", "banana"]
teacher_says = torch.tensor([0.45, 0.25, 0.20, 0.08, 0.02])
student_says = torch.tensor([0.10, 0.20, 0.25, 0.05, 0.40])
NEXT = WORDS.index("school")

kl = (teacher_says * (teacher_says / student_says).log()).sum()
cross_entropy = -student_says[NEXT].log()
print(f"KL(teacher || student): {kl:.3f} nats")
print(f"cross-entropy of '{WORDS[NEXT]}': {cross_entropy:.3f} nats")
pd.DataFrame(
    {
        "teacher p": teacher_says,
        "student q": student_says,
        "p · ln(p / q)": teacher_says * (teacher_says / student_says).log(),
    },
    index=WORDS,
).round(3)

# %% [markdown]
# The **Kullback–Leibler divergence** (KL) adds up, word by word, how much rarer the student makes what the teacher finds
# likely. It is 0 when both agree on every word, and never negative. This direction, with the teacher in front, is called
# *forward*. The **cross-entropy** looks at one word only, the one that came.
#
# A loss teaches by its gradient. Both gradients, by the student's logits, are as simple as can be:
#
# - of the KL: **q − p**
# - of the cross-entropy: **q − (1 for the word that came, 0 for the others)**
#
# *Predict before you run:* a step goes against the gradient. What does each of the two losses do with *bed*, a good
# continuation that didn't happen to come? And with *banana*?

# %%
logits = student_says.log().requires_grad_()
log_q, log_p = logits.log_softmax(-1), teacher_says.log()
(of_kl,) = torch.autograd.grad((teacher_says * (log_p - log_q)).sum(), logits, retain_graph=True)
(of_cross_entropy,) = torch.autograd.grad(-log_q[NEXT], logits)

came = F.one_hot(torch.tensor(NEXT), len(WORDS)).float()
torch.testing.assert_close(of_kl, student_says - teacher_says)
torch.testing.assert_close(of_cross_entropy, student_says - came)
print("autograd agrees with both formulas")

figure, axes = plt.subplots(1, 2, figsize=(14, 4.5), layout="constrained")
for ax, bars, label, title in (
    (axes[0], {"teacher": teacher_says, "student": student_says}, "probability", "What both say"),
    (axes[1], {"KL": -of_kl, "cross-entropy": -of_cross_entropy}, "push (minus the gradient)", "What a step does"),
):
    for shift, (name, heights) in zip((-0.2, 0.2), bars.items(), strict=True):
        ax.bar(np.arange(len(WORDS)) + shift, heights, width=0.4, label=name)
    ax.set_xticks(range(len(WORDS)), WORDS)
    ax.axhline(0, color="0.25", linewidth=1)
    ax.set_ylabel(label)
    ax.set_title(title)
    ax.grid(axis="x", visible=False)
    ax.legend()
plt.show()

# %% [markdown]
# The cross-entropy pushes every word down but one. So it punishes *bed*, although *bed* is fine. Over many texts that evens
# out, **if** the words come as often as the teacher says. Let's draw words from the teacher and average.

# %%
drawn = torch.multinomial(teacher_says, 10_000, replacement=True, generator=torch.Generator().manual_seed(session.seed))
for count in (1, 10, 100, 1_000, 10_000):
    average = student_says - F.one_hot(drawn[:count], len(WORDS)).float().mean(0)
    print(f"{count:>6,} words: the mean gradient is {(average - of_kl).norm() / of_kl.norm():6.1%} off that of the KL")

# %% [markdown]
# One token with a teacher says what many tokens without one say on average. That is the appeal of distillation. But note the
# *if*. Real text is not drawn from the teacher. It may know better than the teacher, or simply be of another kind. Then the
# two losses pull to different places, and which place is better depends on what you want. We'll measure it.
#
# ### Temperature
#
# Dividing all logits by T > 1 before the softmax flattens both distributions. Unlikely words then weigh more, and some say
# that they hold the "dark knowledge". The divergence gets smaller on the way. So it is multiplied by **T²**, which keeps the
# gradient's size about the same.


# %%
def at_temperature(temperature):
    """The KL at a temperature and the length of its gradient by the student's logits."""
    own = student_says.log().requires_grad_()
    q, p = ((logits / temperature).log_softmax(-1) for logits in (own, teacher_says.log()))
    value = (p.exp() * (p - q)).sum()
    value.backward()
    return {"KL": value.item(), "gradient": own.grad.norm().item(), "teacher on 'banana'": p.exp()[-1].item()}


flattened = pd.DataFrame({temperature: at_temperature(temperature) for temperature in (1, 2, 4)}).T.rename_axis("T")
flattened["T² · gradient"] = flattened["gradient"] * flattened.index**2
flattened.round(3)

# %% [markdown]
# Forgetting T² is a common mistake as soon as a cross-entropy is mixed in: the teacher's part is then T² times too light.

# %% [markdown]
# ## The loss, written out
#
# A language model predicts at every position. So three things have to be right:
#
# - **shift**: the logits at position *i* belong to token *i + 1*. The last position has no next token.
# - **mask**: padding isn't text. Only real tokens that are predicted from real tokens count.
# - **normalisation**: the mean runs over all counted tokens *of an optimiser step*, however the step is cut into batches.
#
# A tiny random Llama and a pruned copy of it are enough to get this right.

# %%
from course_utils.architectures import describe
from course_utils.batches import read_batch
from course_utils.distillation.losses import batch_loss, token_loss
from course_utils.models import load_model, tiny_llama
from course_utils.width import kept_width, neuron_importance, prune_neurons


def kl_each(student_logits, teacher_logits):
    """Forward KL at every position but the last: [rows, length, vocabulary] twice -> [rows, length - 1] nats."""
    log_q, log_p = (logits[:, :-1].float().log_softmax(-1) for logits in (student_logits, teacher_logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def counts(attention_mask):
    """Which positions count: a real token that predicts a real one. [rows, length] -> bool [rows, length - 1]."""
    real = attention_mask.bool()
    return real[:, :-1] & real[:, 1:]


def pruned_tiny(teacher, seed=0):
    """A copy that has lost half of its neurons, chosen at random."""
    student = copy.deepcopy(teacher)
    prune_neurons(student, neuron_importance(student, "random", seed=seed), ratio=0.5)
    return student


tiny_teacher = tiny_llama().to(session.device)
tiny_student = pruned_tiny(tiny_teacher)
generator = torch.Generator().manual_seed(session.seed)
ragged = {
    "input_ids": torch.randint(1, 97, (3, 12), generator=generator),
    "attention_mask": (torch.arange(12) < torch.tensor([12, 8, 3])[:, None]).long(),  # 12, 8 and 3 real tokens
}
ragged = {name: tensor.to(session.device) for name, tensor in ragged.items()}
with torch.no_grad():
    student_logits, teacher_logits = (model(**ragged).logits for model in (tiny_student, tiny_teacher))

each, counted = kl_each(student_logits, teacher_logits), counts(ragged["attention_mask"])
ours = each[counted].sum() / counted.sum()
targets = ragged["input_ids"][:, 1:][counted]
theirs = token_loss(student_logits[:, :-1][counted], teacher_logits[:, :-1][counted], targets)
torch.testing.assert_close(each[counted], theirs)
batch = read_batch(ragged, vocab_size=97, device=session.device)
torch.testing.assert_close(each[counted].sum(), batch_loss(describe(tiny_student), describe(tiny_teacher), batch))
print(f"{counted.sum()} tokens are predicted, {ours:.4f} nats each: equal to token_loss and batch_loss of course_utils")

# %% [markdown]
# For the KL alone the shift would be harmless: the teacher has an opinion about what follows the last token, too. But the
# cross-entropy needs a next token, and both parts should count the same positions.
#
# ### Four ways to take a mean
#
# Now the same three rows once as one batch of three, and once as three batches of one, whose gradients are added up. That is
# *gradient accumulation*, which everybody uses whose memory is too small for the batch. It should change nothing.
#
# *Predict before you run:* which of these four means pass?


# %%
def averaged(kind, batches):
    """The loss of one step; batches: pairs of KL at each position and which of them count."""
    if kind == "sums ÷ all counted tokens of the step":
        return sum(each[on].sum() for each, on in batches) / sum(on.sum() for _, on in batches)
    per_batch = {
        "mean of the batches' means": lambda each, on: each[on].mean(),
        "padding counted": lambda each, on: each.mean(),
        "÷ rows (kl_div's 'batchmean')": lambda each, on: each[on].sum() / len(each),
    }[kind]
    return torch.stack([per_batch(each, on) for each, on in batches]).mean()


KINDS = (
    "sums ÷ all counted tokens of the step",
    "mean of the batches' means",
    "padding counted",
    "÷ rows (kl_div's 'batchmean')",
)
together, apart = [(each, counted)], list(zip(each.split(1), counted.split(1), strict=True))
means = pd.DataFrame(
    {
        "3 rows at once": {kind: averaged(kind, together).item() for kind in KINDS},
        "row by row": {kind: averaged(kind, apart).item() for kind in KINDS},
    }
)
means["nats a token, whatever the split?"] = [
    "yes" if np.allclose(row, ours.item(), rtol=1e-4) else "no" for row in means.to_numpy()
]
means.round(4)

# %% [markdown]
# A loss that changes with the batch size makes every learning rate and every curve a matter of how much memory you had.
# `distill` divides by the tokens of the step; exercise 3 is about the second line.
#
# ## The largest tensors of the training
#
# A hidden state has a few hundred numbers a token. The logits have one for every word of the vocabulary, 49,152 here and
# 128,256 in a Llama 3. The KL wants them in float32, from two models, with their logarithms, differences and gradients.
#
# So the trick: hidden states are small, keep them. Run the **head** on a few tokens at a time, take the loss *and its
# gradient* of this chunk, and forget the logits. `batch_loss` does that.
#
# *Predict before you run:* we double the length of the texts. What happens to the memory with all logits at once, and what
# in chunks?

# %%
from course_utils.benchmarking import peak_memory

wide_teacher = tiny_llama(blocks=2, vocab_size=49_152).to(session.device)  # a toy with a grown-up's vocabulary
wide_student = pruned_tiny(wide_teacher)


def all_at_once(batch):
    """Mean KL from complete logits."""
    with torch.no_grad():
        answers = wide_teacher(**batch.inputs()).logits
    return kl_each(wide_student(**batch.inputs()).logits, answers)[counts(batch.attention_mask)].mean()


def in_chunks(batch):
    """The same, a few hundred tokens at a time."""
    return batch_loss(describe(wide_student), describe(wide_teacher), batch) / counts(batch.attention_mask).sum()


peaks, gradients = [], {}
for length in (32, 64, 128):
    ids = torch.randint(49_152, (4, length), generator=generator)
    batch = read_batch({"input_ids": ids}, vocab_size=49_152, device=session.device)
    row = {"tokens": ids.numel(), "one tensor of logits": 4 * ids.numel() * 49_152 / 1e6}
    for name, loss in {"all at once": all_at_once, "in chunks": in_chunks}.items():
        wide_student.zero_grad()
        row[name] = peak_memory(lambda loss=loss, batch=batch: loss(batch).backward(), device=session.device) / 1e6
        gradients[name] = [weight.grad.clone() for weight in wide_student.parameters()]
    peaks.append(row)
    torch.testing.assert_close(gradients["all at once"], gradients["in chunks"], rtol=1e-4, atol=1e-6)
wide_student.zero_grad()
largest = max((a - b).abs().max().item() for a, b in zip(*gradients.values(), strict=True))
print(f"gradients equal; the largest difference is {largest:.0e}, in float32")

peaks = pd.DataFrame(peaks).set_index("tokens")
figure, ax = plt.subplots(layout="constrained")
for (name, values), marker in zip(peaks.items(), "Dos", strict=True):
    ax.plot(peaks.index, values, marker=marker, label=name)
ax.set_xlabel("tokens in the batch")
ax.set_ylabel("MB above the two models")
ax.set_ylim(bottom=0)
ax.set_title("Peak memory of the loss and its gradient")
ax.legend()
plt.show()
peaks.round(0).astype(int)

# %%
last = peaks.iloc[-1]
print(f"at {peaks.index[-1]} tokens the chunks need {last['in chunks'] / last['all at once']:.0%} of the memory")
for rows, length, vocabulary in ((4, 512, 49_152), (4, 512, 128_256), (8, 1024, 128_256)):
    size = 4 * rows * length * vocabulary / 2**30
    print(f"{rows} × {length:>4} tokens, {vocabulary:>7,} words: one float32 tensor of logits takes {size:.2f} GiB")

# %% [markdown]
# Nothing is computed twice on the way, since a chunk's gradient is taken while its logits are still there.
#
# ## The patient
#
# The teacher is the whole model. The students have lost 40 % of their MLP neurons, chosen in three ways: by `peak_to_peak`,
# as Martra's notebooks do and this course's lesson 03 did first; by `activation`; and at `random`.
#
# **Text.** All arms learn from the same rows of speeches of the *distillation* split, packed without padding. Four more rows
# are watched on the way. What judges comes from the *evaluation* split, of the same kind **and of another one**: Wikipedia.

# %%
from course_utils.texts import token_blocks

# A broken model's activations can leave float16's range, so a GPU takes bfloat16 (an old one computes it slowly).
on_gpu = session.device.type == "cuda"
dtype = torch.bfloat16 if on_gpu or session.dtype is torch.bfloat16 else torch.float32
teacher, tokenizer = load_model("llama", dtype=dtype, device="cpu")


def memory_needed(model, train_embedding):
    """Bytes while a student learns beside this teacher, roughly; the plan near the end counts them one by one."""
    parts = describe(model)
    removed = 3 * parts.hidden_size * sum(width - kept_width(width, RATIO) for width in parts.intermediate_sizes)
    everything, embedding = model.num_parameters(), parts.vocab_size * parts.hidden_size
    return 2 * everything + 16 * (everything - removed) + (8 if train_embedding else -12) * embedding + 2**30


memory = torch.cuda.mem_get_info()[0] if on_gpu else math.inf
if memory_needed(teacher, train_embedding=False) > memory:
    print(f"This GPU is too small to distil {teacher.config.name_or_path}; going on with a smaller model.")
    teacher, tokenizer = load_model("HuggingFaceTB/SmolLM2-360M", dtype=dtype, device="cpu")
fitting = {"recompute": on_gpu, "train_embedding": memory_needed(teacher, train_embedding=True) <= memory}
teacher.to(session.device)
teacher_architecture = describe(teacher)
print("to fit into memory:", fitting)

POOL = {"distillation": 200_000, "evaluation": 100_000, "calibration": 10_240, "wiki": 10_240}  # tokens to choose from


def rows_of(split, domain, count):
    """Some rows from all over a split, the same ones every time."""
    pool = token_blocks(
        tokenizer, split, domain=domain, tokens=POOL["wiki" if domain == "wiki" else split], length=LENGTH
    )
    return pool[np.random.default_rng(session.seed).permutation(len(pool))[:count]]


TRAINED_ON = next(iter(HELD_OUT))
everything = rows_of("distillation", TRAINED_ON, STEPS * ROWS + WATCHED)
training, watched = everything[: STEPS * ROWS], everything[STEPS * ROWS :]
held_out = {domain: rows_of("evaluation", domain, count) for domain, count in HELD_OUT.items()}
print(f"{teacher.config.name_or_path}: {teacher.num_parameters():,} parameters, computed in {dtype}")
print(f"{training.num_tokens:,} tokens to learn from, {watched.num_tokens:,} watched")

# %% [markdown]
# ### Nothing that judges may be learned
#
# The splits hold different documents. But documents quote each other, and LAMBADA's texts could be anywhere. The usual test:
# no thirteen words in a row in common. Held-out rows that fail are left out.

# %%
from course_utils.benchmark_tasks import build_tasks
from course_utils.texts import overlaps

learned = tokenizer.batch_decode(everything.input_ids)
for domain, blocks in held_out.items():
    shared = overlaps(tokenizer.batch_decode(blocks.input_ids), learned)
    held_out[domain] = blocks[~torch.tensor(shared)]
    print(f"{domain}: {sum(shared)} of {len(shared)} rows share 13 words in a row with the training text")
passages = [document["text"] for document in build_tasks(["lambada_openai"], DOCUMENTS)["lambada_openai"].test_docs()]
print(f"LAMBADA: {sum(overlaps(passages, learned))} of {len(passages)} passages do")

# %% [markdown]
# ### Three measures
#
# - **Perplexity** on held-out text: does the student predict what was written?
# - **KL to the teacher** on the same text: does it predict what the *teacher* predicts? 0 is a perfect copy.
# - **LAMBADA**: the last word of a passage from a novel, which takes the whole passage to guess. Nobody trains on it here.

# %%
from course_utils.batches import read_batches
from course_utils.evaluation import evaluate, paired, perplexity
from course_utils.uncertainty import bootstrap_interval, ratio_interval

in_batches = {
    domain: list(read_batches(blocks.batches(ROWS), vocab_size=teacher_architecture.vocab_size, device=teacher.device))
    for domain, blocks in held_out.items()
}
with torch.no_grad():  # what the teacher thinks of each token, before the head: small enough to keep
    teacher_states = {
        domain: [teacher_architecture.hidden_states(batch)[:, :-1] for batch in batches]
        for domain, batches in in_batches.items()
    }


@torch.no_grad()
def kl_of_rows(student, domain):
    """KL to the teacher, added up over each held-out row: [rows] nats."""
    architecture, sums = describe(student), []
    for batch, known in zip(in_batches[domain], teacher_states[domain], strict=True):
        states = architecture.hidden_states(batch)[:, :-1]
        for own, teachers, targets in zip(states, known, batch.input_ids[:, 1:], strict=True):
            logits, teacher_logits = architecture.logits(own), teacher_architecture.logits(teachers)
            sums.append(token_loss(logits, teacher_logits, targets).sum().item())
    return np.array(sums)


def measures_of(model):
    """All measures of one model."""
    return {
        "text": {domain: perplexity(model, blocks, batch_size=ROWS) for domain, blocks in held_out.items()},
        "kl": {domain: kl_of_rows(model, domain) for domain in held_out},
        "lambada": evaluate(model, tokenizer, "lambada_openai", limit=DOCUMENTS),
    }


def line(result):
    """The measures of one model for a table."""
    cells = {}
    for domain, score in result["text"].items():
        cells[f"perplexity, {domain}"] = with_interval(score.perplexity, score.ci_low, score.ci_high)
    for domain, sums in result["kl"].items():
        mean, _, low, high = ratio_interval(sums, result["text"][domain].row_tokens)
        cells[f"KL to the teacher, {domain}"] = with_interval(mean, low, high)
    for row in result["lambada"].itertuples():
        cells[f"LAMBADA {row.metric}"] = with_interval(row.value, row.ci_low, row.ci_high)
    return cells


# %%
calibration = rows_of("calibration", TRAINED_ON, 32)
importance = {
    "peak_to_peak": neuron_importance(teacher, "peak_to_peak"),
    "activation": neuron_importance(teacher, "activation", batches=calibration.batches(8)),
    "random": neuron_importance(teacher, "random", seed=session.seed),
}


def fresh_student(criterion):
    """A copy of the teacher that has lost RATIO of its neurons."""
    student = copy.deepcopy(teacher)
    prune_neurons(student, importance[criterion], ratio=RATIO)
    return student


whole = measures_of(teacher)
before = {}
for criterion in tqdm(importance, desc="pruned models"):
    student = fresh_student(criterion)
    before[criterion] = measures_of(student)
parameters = student.num_parameters()
print(f"{parameters:,} parameters are left, {1 - parameters / teacher.num_parameters():.1%} fewer; 95 % intervals:")
pruned = {f"{name}, {RATIO:.0%} removed": line(result) for name, result in before.items()}
pd.DataFrame({"teacher": line(whole)} | pruned).T

# %% [markdown]
# ## Six arms, equal tokens
#
# `distill` is a training loop like any other: AdamW, a short rise and a cosine fall of the learning rate, gradients clipped
# at 1. Each arm sees the same 16,384 tokens in the same order. Only one thing changes at a time:
#
# | arm | student | loss |
# |---|---|---|
# | KL | peak_to_peak | forward KL |
# | cross-entropy | peak_to_peak | cross-entropy of the text alone: training without a teacher |
# | half and half | peak_to_peak | ½ KL + ½ cross-entropy |
# | KL, T = 2 | peak_to_peak | forward KL at temperature 2, × 4 |
# | KL, random student | random | forward KL |
# | KL, activation student | activation | forward KL |
#
# *Predict before you run:* after 16,384 tokens, about thirty pages,
#
# 1. which of the first four has the lowest perplexity on speeches? And on Wikipedia?
# 2. which is nearest to the teacher?
# 3. does it still matter how the neurons were chosen?

# %%
# The longest cell: six arms, with their measurements.
from course_utils.architectures import cast_weights
from course_utils.distillation import Recipe, distill

RECIPE = Recipe(steps=STEPS, lr=LR, precision=dtype, validate_every=WATCH_EVERY, seed=session.seed, **fitting)
ARMS = {
    "KL": ("peak_to_peak", {}),
    "cross-entropy": ("peak_to_peak", {"alpha": 1.0}),
    "half and half": ("peak_to_peak", {"alpha": 0.5}),
    "KL, T = 2": ("peak_to_peak", {"temperature": 2.0}),
    "KL, random student": ("random", {}),
    "KL, activation student": ("activation", {}),
}


def in_teachers_dtype(student):
    """Round the trained weights to what the teacher has, so that both are measured alike."""
    cast_weights(student, dtype)  # not student.to(dtype): that would round the rotary frequencies as well
    return student


runs, after = {}, {}
for name, (criterion, options) in ARMS.items():
    student = fresh_student(criterion)
    runs[name] = distill(teacher, student, training.batches(ROWS), RECIPE, validation=watched.batches(ROWS), **options)
    after[name] = measures_of(in_teachers_dtype(student))
    print(f"{name:<23} {runs[name].tokens:,} predicted tokens in {runs[name].seconds:.0f} s")

# %% [markdown]
# ### The curves
#
# The heights of different losses can't be compared, and a training loss is no result. Look for three things: does it fall,
# does the held-out text fall with it, and is it flat at the end?

# %%
figure, axes = plt.subplots(2, 3, figsize=(18, 9), layout="constrained")
for ax, (name, history) in zip(axes.flat, runs.items(), strict=True):
    history.plot(ax)
    ax.set_title(name)
    ax.set_ylim(bottom=0)
plt.show()

for name, history in runs.items():
    seen = [row["loss"] for row in history.validation]
    trend = "still falling" if len(seen) > 1 and seen[-1] < 0.98 * seen[-2] else "flat"
    print(f"{name:<23} held-out loss {' → '.join(f'{loss:.2f}' for loss in seen)}: {trend} at the end")

# %% [markdown]
# ## What came back

# %%
pd.DataFrame({"teacher": line(whole)} | {name: line(result) for name, result in after.items()}).T

# %% [markdown]
# Perplexities lie orders of magnitude apart, so recovery is counted in nats a token:
#
# **recovery = (pruned − student) ÷ (pruned − teacher)**
#
# 0 % is where the student started, 100 % is the teacher. The interval draws the rows anew, the same rows for all three
# models, so what makes a row hard for everyone cancels.
#
# Recovery on *speeches* has a catch. Someone who learns speeches gets better at speeches, teacher or not. Even above 100 % is
# possible, and it would not mean that the student had become wiser than its teacher. **On the text that we trained on,
# fitting and recovery can't be told apart.** Wikipedia gives nothing away for free.


# %%
def share(sums):
    """What of the way from the first column to the third the second one has gone; sums [..., 3]."""
    return (sums[..., 0] - sums[..., 1]) / (sums[..., 0] - sums[..., 2])


def recovery(name, domain, measure):
    """Share of the damage that is gone, with its 95 % interval. The measure: "text" (perplexity) or "kl"."""
    results = before[ARMS[name][0]], after[name], whole
    rows = [result["text"][domain].row_nll if measure == "text" else result["kl"][domain] for result in results]
    units = np.stack(rows, axis=1)
    return float(share(units.sum(0))), *bootstrap_interval(units, share, seed=session.seed)


recovered = pd.DataFrame(
    {"arm": name, "text": domain, "measure": measure}
    | dict(zip(("value", "ci_low", "ci_high"), recovery(name, domain, measure), strict=True))
    for name in ARMS
    for domain in held_out
    for measure in ("text", "kl")
)
PANELS = {"text": "Recovery of the perplexity, in nats", "kl": "Share of the KL to the teacher that is gone"}
figure, axes = plt.subplots(2, 1, figsize=(14, 11), layout="constrained")
for ax, (measure, title) in zip(axes, PANELS.items(), strict=True):
    scores_with_intervals(
        recovered[recovered.measure == measure],
        x="arm",
        group="text",
        x_label="",
        y_label="0 = pruned, 1 = teacher",
        title=title,
        ax=ax,
    )
plt.show()

# %%
other = next(domain for domain in held_out if domain != TRAINED_ON)
table = recovered.set_index(["measure", "arm", "text"])
for name in ARMS:
    home, abroad = table.loc["text", name, TRAINED_ON], table.loc["text", name, other]
    verdict = "recovers" if abroad.ci_low > 0 else "got worse" if abroad.ci_high < 0 else "no recovery shown"
    if home.ci_low > abroad.ci_high:
        verdict += f", and fits {TRAINED_ON} on top of that"
    if home.ci_low > 1:
        verdict += f" (beyond its teacher on {TRAINED_ON})"
    percent = {
        domain: f"{100 * row.value:.0f} % ({100 * row.ci_low:.0f} to {100 * row.ci_high:.0f})"
        for domain, row in {TRAINED_ON: home, other: abroad}.items()
    }
    print(f"{name:<23} {TRAINED_ON} {percent[TRAINED_ON]}, {other} {percent[other]}: {verdict}")

# %% [markdown]
# A recovery is relative to *its own* beginning. An arm that started lower can recover more and still end behind. So compare
# arms where they end, row by row on the same text.
#
# The rule of this lesson: **a difference counts above two standard errors, otherwise there is no difference shown.** The
# standard error is that of the mean difference over the held-out rows.


# %%
def ends(result, measure, domain):
    """A measure added up over each row: [rows] nats."""
    return result["text"][domain].row_nll if measure == "perplexity" else result["kl"][domain]


def which_is_lower(a, b, measure, domain):
    """The better one of two arms, where two standard errors say that there is one."""
    difference = ends(after[b], measure, domain) - ends(after[a], measure, domain)
    mean, error, _, _ = ratio_interval(difference, after[a]["text"][domain].row_tokens)
    verdict = "no difference shown" if abs(mean) <= 2 * error else b if mean < 0 else a
    return f"{verdict} ({mean:+.3f} ± {error:.3f})"


PAIRS = [("KL", b) for b in ARMS if b != "KL"] + [("KL, random student", "KL, activation student")]
MEASURES = [(measure, domain) for measure in ("perplexity", "KL") for domain in held_out]
print("who ends lower; in brackets second minus first, nats a token ± standard error")
pd.DataFrame(
    {
        f"{a} | {b}": {f"{measure}, {domain}": which_is_lower(a, b, measure, domain) for measure, domain in MEASURES}
        for a, b in PAIRS
    }
).T

# %%
compared = len(PAIRS) * len(MEASURES)
print(f"{compared} comparisons at two standard errors: by chance alone about {0.05 * compared:.0f} would count.")


def winner(measure, domain):
    """The arm with the lowest end among those with the same student."""
    same = [name for name, (criterion, _) in ARMS.items() if criterion == "peak_to_peak"]
    return min(same, key=lambda name: ends(after[name], measure, domain).sum())


for measure, domain in MEASURES:
    print(f"lowest {measure} on {domain} among the peak_to_peak students: {winner(measure, domain)}")
if winner("perplexity", TRAINED_ON) != winner("KL", other):
    print("Who fits the training text best is not who comes nearest to the teacher elsewhere.")

# %% [markdown]
# The intervals know about the *text*: with other rows, how different could it look? They don't know about the *run*. Each
# arm ran once, with one seed. Two arms whose ends lie close together could change places with another seed. `distill` has
# the argument `seed`; if a small difference matters to you, spend your tokens there.
#
# ## LAMBADA, before and after
#
# Now the test that nobody practised. Both models answer the same passages, so they are compared passage by passage.
#
# *Predict before you run:* how many of the six gains will be above two standard errors?


# %%
def answers_of(frame, metric):
    """The result of every passage: 1 or 0 for acc, the last word's log-likelihood for perplexity."""
    table = frame.attrs["answers"].table
    return table.loc[table.metric == metric, "value"].to_numpy()


def gain(first, second, metric):
    """Mean gain over the passages, its standard error, and the verdict."""
    differences = answers_of(second, metric) - answers_of(first, metric)
    mean, error, _, _ = ratio_interval(differences, np.ones(len(differences)))
    return mean, error, "no change shown" if abs(mean) <= 2 * error else "gain" if mean > 0 else "loss"


rows = {}
for name, (criterion, _) in ARMS.items():
    first, second = before[criterion]["lambada"], after[name]["lambada"]
    tests = paired(first, second).set_index("metric")
    accuracy, perplexities = tests.loc["acc"], tests.loc["perplexity"]
    mean, error, verdict = gain(first, second, "acc")
    in_nats, of_nats, verdict_in_nats = gain(first, second, "perplexity")
    rows[name] = {
        "accuracy": f"{accuracy.a:.2f} → {accuracy.b:.2f}",
        "gain ± SE": f"{mean:+.3f} ± {error:.3f}",
        "only after / only before right": f"{accuracy.wins} / {accuracy.losses}",
        "McNemar's p": f"{accuracy.p:.3f}",
        "accuracy: verdict": verdict,
        "perplexity": f"{shown(perplexities.a)} → {shown(perplexities.b)}",
        "gain ± SE, nats": f"{in_nats:+.2f} ± {of_nats:.2f}",
        "perplexity: verdict": verdict_in_nats,
    }
print(f"{len(passages)} passages; the teacher: {line(whole)['LAMBADA acc']} right")
pd.DataFrame(rows).T

# %% [markdown]
# A few dozen passages settle only large differences. The accuracy throws away all but right and wrong; the perplexity of the
# last word keeps how nearly right it was, so it sees more with the same passages.
#
# How small a gain *could* be seen? Take a published one: in Martra's notebooks, a Llama-3.2-1B that had lost 40 % of its MLP
# neurons went from .299 to .302 by distillation. LAMBADA has 5,153 passages. Here is the arithmetic, for two accuracies of
# which only the totals are known.

# %%
from_, to, passages_asked = 0.299, 0.302, 5_153
one_error = math.sqrt(from_ * (1 - from_) / passages_asked)
error_of_difference = math.sqrt((from_ * (1 - from_) + to * (1 - to)) / passages_asked)
print(f"standard error of one accuracy:   √(.299 · .701 / 5,153) = {one_error:.4f}")
print(f"standard error of the difference: √2 times that          = {error_of_difference:.4f}")
print(f"the gain is {to - from_:.3f}: {(to - from_) / error_of_difference:.1f} standard errors. The rule asks for 2.")
needed = passages_asked * (2 * error_of_difference / (to - from_)) ** 2
print(
    f"to show a gain of {to - from_:.3f} in this way takes about {needed:,.0f} passages, {needed / 5_153:.0f} LAMBADAs"
)

largest_error = max(
    gain(before[criterion]["lambada"], after[name]["lambada"], "acc")[1] for name, (criterion, _) in ARMS.items()
)
print(f"our {len(passages)} passages, paired: a gain has to be above {2 * largest_error:.2f} to count for every arm")

# %% [markdown]
# With the answers to every passage at hand, the paired error can be smaller, because most passages come out the same before
# and after. That is why `evaluate` keeps them. A total alone doesn't allow it. "No change shown" doesn't mean that there is
# no change. It means that this measurement can't tell.
#
# ## What an hour buys
#
# Six times sixteen thousand tokens were chosen so that you can watch. What if one student gets an hour? The next cell reads the
# record of such a run. It was made once, with one command, on one of two CPU cores; the other one had other work to do:
#
# ```bash
# python -m experiments.recover_for_an_hour
# ```
#
# Same teacher, the student pruned by `activation`, forward KL, 600 steps of 4 × 256 tokens. Half of the text are scenes from everyday
# life and advice (HellaSwag's training set), because the goal is LAMBADA, and LAMBADA is narrative. The rest are speeches,
# encyclopaedia and a few stories. Killed half-way, the same command goes on where it stopped.
#
# *Predict before you run:* before, the student had 24 % fewer parameters and far fewer right answers than its teacher. After
# almost forty times as many tokens as our arms had, how much of the gap is closed?

# %%
from importlib.resources import files

record = json.loads(files("course_utils").joinpath("data/recovery_hour_forward_kl.json").read_text(encoding="utf-8"))
settings = record["settings"]
print(
    f"{record['tokens']:,} tokens in {settings['steps']:,} steps of {settings['rows']} × {settings['length']}, "
    f"{record['seconds'] / 60:.0f} minutes ({record['machine']})"
)
found = ", ".join(f"{name} {count}" for name, count in record["overlaps"].items())
print(f"rows or passages that share 13 words in a row with the training text: {found}")

figure, axes = plt.subplots(1, 2, figsize=(15, 5.5), layout="constrained")
curve, measured = pd.DataFrame(record["curve"]), pd.DataFrame(record["validation"])
measured["tokens"] = measured["step"] * record["tokens"] / settings["steps"]
axes[0].plot(curve.tokens / 1e6, curve.loss, alpha=0.5, label="training batches (every tenth)")
axes[0].plot(measured.tokens / 1e6, measured.loss, marker="o", label="held-out text")
axes[0].set_xlabel("million tokens")
axes[0].set_ylabel("KL to the teacher, nats a token")
axes[0].set_title("An hour of distillation")
axes[0].set_ylim(bottom=0)
axes[0].legend()
answers = pd.DataFrame(record["lambada"]).assign(task="LAMBADA")
scores_with_intervals(
    answers[answers.metric == "acc"], x="model", group="task", x_label="", y_label="passages right", ax=axes[1],
    title=f"LAMBADA, {answers.documents.iloc[0]:,.0f} passages",
)  # fmt: skip
axes[1].set_ylim(bottom=0)
axes[1].get_legend().remove()
plt.show()

perplexities = pd.DataFrame(record["perplexity"])
perplexities["shown"] = [with_interval(r.value, r.ci_low, r.ci_high) for r in perplexities.itertuples()]
table_of_the_hour = perplexities.pivot(index="model", columns="text", values="shown").reindex(
    ["teacher", "pruned", "recovered"]
)
for row in answers.itertuples():
    table_of_the_hour.loc[row.model, f"LAMBADA {row.metric}"] = with_interval(row.value, row.ci_low, row.ci_high)
table_of_the_hour

# %%
# nats: [model, text] -> [rows]
nats = {(row.model, row.text): np.array(row.nats) for row in perplexities.itertuples()}
for domain in perplexities.text.unique():
    units = np.stack([nats[model, domain] for model in ("pruned", "recovered", "teacher")], axis=1)
    low, high = bootstrap_interval(units, share, seed=session.seed)
    print(f"recovery on {domain}: {share(units.sum(0)):.0%} (95 % interval {low:.0%} to {high:.0%})")
gained, missing = (
    pd.DataFrame(record["paired"][name]).set_index("metric").loc["acc"]
    for name in ("pruned to recovered", "recovered to teacher")
)
print(
    f"LAMBADA: {gained.a:.3f} → {gained.b:.3f}, difference {gained.difference:+.3f} "
    f"({gained.ci_low:+.3f} to {gained.ci_high:+.3f}), p = {gained.p:.2g}"
)
print(
    f"to the teacher's {missing.b:.3f} are missing {missing.difference:.3f} ({missing.ci_low:+.3f} to {missing.ci_high:+.3f}): "
    f"{(gained.b - gained.a) / (missing.b - gained.a):.0%} of the gap is closed"
)
print("the published run, for comparison: .299 → .302")

# %% [markdown]
# ## What it costs and buys

# %%
from course_utils.benchmarking import decode_ceiling, flops_per_token, prefill_ceiling

forward = {"teacher": flops_per_token(teacher, LENGTH), "student": flops_per_token(student, LENGTH)}
models = {"teacher": whole} | {f"{name}, pruned": result for name, result in before.items()} | after
costs = {name: dict.fromkeys(("tokens predicted", "seconds", "tokens/s", "TFLOP needed"), "") for name in models}
for name, (_, options) in ARMS.items():
    tokens, seconds = runs[name].tokens, runs[name].seconds
    # A backward pass costs two forward passes. Cross-entropy alone runs no teacher.
    flops = 3 * forward["student"] + (forward["teacher"] if options.get("alpha", 0.0) < 1 else 0)
    costs[name] |= {
        "tokens predicted": f"{tokens:,}",
        "seconds": f"{seconds:.0f}",
        "tokens/s": f"{tokens / seconds:,.0f}",
        "TFLOP needed": f"{flops * training.num_tokens / 1e12:.1f}",
    }
for name, result in models.items():
    for domain in held_out:
        costs[name][f"perplexity, {domain}"] = shown(result["text"][domain].perplexity)
    tokens = result["text"][other].row_tokens.sum()
    costs[name][f"KL, {other}"] = shown(result["kl"][other].sum() / tokens)
    costs[name]["LAMBADA acc"] = f"{result['lambada'].value.iloc[0]:.2f}"
    if name in ARMS:
        costs[name][f"recovery, {other}"] = f"{table.loc['text', name, other].value:.0%}"
pd.DataFrame(costs).T.fillna("")

# %%
extra = (3 * forward["student"] + forward["teacher"]) / (3 * forward["student"])
print(f"Equal tokens aren't equal work: without a teacher, the same FLOPs would have bought {extra:.2f} × the tokens.")
print(
    f"Training changes no shape, so the student's speed is that of lesson 03: decode ≤ {decode_ceiling(teacher, student):.2f} ×,"
)
print(f"prefill of {LENGTH} tokens ≤ {prefill_ceiling(teacher, student, context=LENGTH):.2f} × the teacher's.")
print(
    f"For scale: Llama-3.1-Minitron-4B learned from 94 billion tokens, {94e9 / training.num_tokens:,.0f} times as many."
)

# %% [markdown]
# The model that was measured should be the model that is kept. So save it, load it as a stranger would, and compare.

# %%
from course_utils.checkpoints import load_pruned, save_pruned

with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    probe = held_out[other].input_ids[:1].to(session.device)
    expected = student(probe).logits
    save_pruned(student, tokenizer, folder)
    reloaded, _ = load_pruned(folder, device=session.device)
    assert torch.equal(reloaded(probe).logits, expected)
print(f"the last arm, '{list(ARMS)[-1]}', saved and loaded: {type(reloaded).__name__}, logits equal, bit for bit")
del reloaded, student

# %% [markdown]
# ## Stopping and going on
#
# A few dozen steps are nothing to lose. A night on a borrowed GPU is. With a `checkpoint_dir`, `distill` saves the student, the
# optimiser and the history every few steps, in one file that is written beside the old one and moved over it. A later call
# with the same settings goes on there.
#
# "Goes on" is easily said. The test is strict: **every loss must equal that of a run that was never interrupted.** That takes
# the optimiser's memory, the place in the data, the random numbers and the learning rate. We pull the plug in step 8 of 12.

# %%
from course_utils.distillation import CheckpointMismatch

generator = torch.Generator().manual_seed(session.seed)
tiny_batches = [{"input_ids": torch.randint(1, 97, (2, 16), generator=generator)} for _ in range(8)]
settings = {"steps": 12, "lr": 3e-3, "save_every": 4}
unbroken = distill(tiny_teacher, pruned_tiny(tiny_teacher), tiny_batches, **settings)

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    victim, passes = pruned_tiny(tiny_teacher), itertools.count(1)

    def power_cut(*_):
        if next(passes) == 8:
            raise KeyboardInterrupt

    victim.model.register_forward_pre_hook(power_cut)
    try:
        distill(tiny_teacher, victim, tiny_batches, **settings, checkpoint_dir=folder)
    except KeyboardInterrupt:
        print("interrupted in step 8")
    resumed = distill(tiny_teacher, pruned_tiny(tiny_teacher), tiny_batches, **settings, checkpoint_dir=folder)
    try:  # the same folder with another learning rate would mix two runs
        distill(tiny_teacher, pruned_tiny(tiny_teacher), tiny_batches, **settings | {"lr": 1e-3}, checkpoint_dir=folder)
    except CheckpointMismatch as error:
        print("other settings are refused:", str(error).split(". ")[1])

both = pd.DataFrame(
    {name: run.frame().set_index("step").loss for name, run in (("unbroken", unbroken), ("resumed", resumed))}
)
same = both.unbroken.equals(both.resumed)
print(f"{len(both)} losses, {'all equal, bit for bit' if same else 'equal within rounding'}")
np.testing.assert_allclose(both.unbroken, both.resumed, rtol=0 if session.device.type == "cpu" else 1e-4)
both.iloc[[0, 6, 7, 8, 11]].T

# %% [markdown]
# ## From two cores to eight GPUs
#
# The loop is the same on one core and on eight GPUs. `accumulate` says how many batches make a step; under `accelerate launch`
# the processes share them. One GPU does eight batches, eight GPUs do one each, and since the loss is divided by the tokens of
# the *step*, both are the same run up to rounding. First the property that makes it so, on the tiny model:

# %%
ragged_rows = [{name: tensor[row : row + 1] for name, tensor in ragged.items()} for row in range(3)]
one_by_one = distill(tiny_teacher, pruned_tiny(tiny_teacher), ragged_rows, steps=5, lr=1e-3, accumulate=3)
at_once = distill(tiny_teacher, pruned_tiny(tiny_teacher), [ragged], steps=5, lr=1e-3)
losses = pd.DataFrame({"3 rows at once": at_once.frame().loss, "row by row, accumulated": one_by_one.frame().loss})
np.testing.assert_allclose(losses.iloc[:, 0], losses.iloc[:, 1], rtol=1e-3)
print(f"largest difference of the losses: {(losses.iloc[:, 0] - losses.iloc[:, 1]).abs().max():.0e}")

# %% [markdown]
# The script. Only three lines know that there are several processes: where the model goes, how many batches make a step, and
# who saves.
#
# ```python
# # recover.py
# import copy
# import torch
# from accelerate import PartialState
# from course_utils.checkpoints import save_pruned
# from course_utils.distillation import distill
# from course_utils.models import load_model
# from course_utils.texts import token_blocks
# from course_utils.width import neuron_importance, prune_neurons
#
# state = PartialState()
# teacher, tokenizer = load_model("llama", dtype=torch.bfloat16, device=state.device)
# calibration = token_blocks(tokenizer, "calibration", tokens=8192).batches(4)
# student = copy.deepcopy(teacher)
# prune_neurons(student, neuron_importance(student, "activation", batches=calibration), ratio=0.4)
# blocks = token_blocks(tokenizer, "distillation", tokens=1_000_000, length=512)
# distill(teacher, student, blocks.batches(4), steps=60, lr=2e-4, accumulate=8, precision=torch.bfloat16,
#         recompute=True, checkpoint_dir="build/recovery")  # 60 × 8 × 4 × 512: one pass over the million tokens
# if state.is_main_process:
#     save_pruned(student, tokenizer, "build/recovered")
# ```
#
# ```bash
# python recover.py                                                          # one GPU, or the CPU
# accelerate launch --multi_gpu --num_processes 8 recover.py                 # eight GPUs, an eighth of the batches each
# accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 recover.py # the same, and each holds an eighth of the student
# ```
#
# The second line is *data-parallel* training: every GPU holds the teacher, the student, its gradients and its optimiser. Eight
# GPUs make a run faster, not smaller. What doesn't fit on one of them doesn't fit on eight. The third line **shards** the
# student, its gradients and the optimiser's averages. The course's tests run both ways with two processes on a CPU and find the
# losses and weights of a single process; nobody has run them on eight GPUs for this lesson.
#
# ### Without the teacher in memory
#
# The teacher says the same about the same text every time. So ask it once and write the answers down. All 49,152
# probabilities of a token would take 96 kB in 16 bits, so only the *k* likeliest words are kept, and the rest of the
# probability as one number, the **tail**. The loss then compares k + 1 classes instead of 49,152.
#
# That is a *biased* estimate: merging classes can only make a divergence smaller. By how much? And, what matters more for
# learning, how far is the gradient off?
#
# *Predict before you run:* how many of 49,152 words does the cache need to get the gradient right within 10 %?

# %%
from course_utils.distillation.teacher_cache import cache_bias

student = fresh_student("activation").float()
bias_of_cache = cache_bias(teacher, student, watched.batches(1)[:1], ks=(1, 16, 64, 256))
del student
figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
axes[0].plot(bias_of_cache.k, bias_of_cache.kl, marker="o", label="from the cache")
axes[0].axhline(bias_of_cache.exact_kl.iloc[0], color="0.25", linestyle=":", label="exact")
axes[0].set_ylabel("KL, nats a token")
axes[0].set_ylim(bottom=0)
axes[0].legend()
axes[1].plot(bias_of_cache.k, 100 * bias_of_cache.gradient_error, marker="o")
axes[1].set_ylabel("gradient's error (% of its length)")
axes[1].set_ylim(bottom=0)
for ax in axes:
    ax.set_xscale("log", base=2)
    ax.set_xticks(bias_of_cache.k, bias_of_cache.k)
    ax.set_xlabel("k, words kept for each token")
plt.show()
good = bias_of_cache[bias_of_cache.gradient_error <= 0.1]
print(
    f"gradient within 10 %: {f'k = {good.k.iloc[0]}' if len(good) else f'not even with k = {bias_of_cache.k.iloc[-1]}'}"
)
bias_of_cache.round(3)

# %% [markdown]
# `cache_teacher` writes such a cache, resumably, and says beforehand how large it gets; `distill` takes it in the teacher's
# place. It pays when the same text is seen several times or by several students, or when the teacher doesn't fit.
#
# ### Does it fit? A plan instead of a hope
#
# "It ran out of memory after ten minutes" is avoidable. What the training holds can be computed from the configuration alone,
# on PyTorch's *meta* device, where tensors have shapes but no content:
#
# - **teacher**: its weights, in the type that you choose
# - **student**: 4 bytes a weight in float32, 4 for its gradient, 8 for AdamW's two averages: **16 bytes a parameter**
# - **head**: its gradient while the chunks are added up, and that of a single chunk
# - **chunk**: about seven tensors of a chunk's logits
# - **activations**: what the forward pass keeps for the backward pass. We count the tensors that autograd puts aside. With
#   `recompute=True` only the input of each block stays, and the inside of one block at a time.

# %%
from transformers import AutoModelForCausalLM, LlamaConfig


def outline(config):
    """The model of a configuration, without content."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def put_aside(model, rows, length):
    """Bytes that a forward pass without the head keeps for the backward pass, the weights not counted."""
    ours, kept = {weight.untyped_storage()._cdata for weight in model.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in ours:
            kept[storage._cdata] = storage  # several views of one storage count once
        return tensor

    # The mask is given in its final form: to make it, transformers would have to look at content.
    options = {"dtype": torch.bool, "device": model.device}
    mask = torch.ones(rows, 1, length, length, **options)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(torch.zeros_like(mask[:, 0, 0], dtype=torch.long), attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def memory_plan(
    teacher, student, *, rows, length, teacher_bytes=4, recompute=False, train_embedding=True, state_bytes=8
):
    """Bytes that a distillation in float32 holds at its worst moment, part by part; an upper bound."""
    config, embedding = student.config, student.get_input_embeddings().weight.numel()
    trained = student.num_parameters() - (0 if train_embedding else embedding)
    activations = put_aside(student, rows, length)
    if recompute:
        blocks = config.num_hidden_layers
        activations = activations / blocks + blocks * rows * length * config.hidden_size * 4
    return {
        "teacher": teacher_bytes * teacher.num_parameters(),
        "student": 4 * student.num_parameters(),
        "gradients": 4 * trained,
        "AdamW": state_bytes * trained,
        "head": 8 * config.vocab_size * config.hidden_size if train_embedding else 0,
        "chunk": 7 * 4 * min(2**23, rows * (length - 1) * config.vocab_size),
        "activations": activations,
    }


# %% [markdown]
# A plan that was never compared with reality is a hope, too. So first a model that is small enough to try:

# %%
small = LlamaConfig(
    vocab_size=8192, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
trial_teacher = AutoModelForCausalLM.from_config(small).to(session.device)
rows_to_read = [{"input_ids": torch.randint(8192, (4, 128))} for _ in range(2)]
for recompute in (False, True):
    trial = pruned_tiny(trial_teacher)
    plan = memory_plan(trial_teacher, trial, rows=4, length=128, recompute=recompute)
    planned = sum(plan.values()) - plan["teacher"] - plan["student"]  # those two are there already
    measured = peak_memory(
        lambda trial=trial, recompute=recompute: distill(
            trial_teacher, trial, rows_to_read, steps=2, lr=1e-4, recompute=recompute
        ),
        device=session.device,
    )
    verdict = "as promised, an upper bound" if measured <= planned else "too low!"
    print(f"recompute={recompute!s:<5} planned {planned / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB: {verdict}")

# %% [markdown]
# Now Llama-3.2-1B with 40 % of its neurons removed, on the T4 that Colab lends for free. PyTorch sees 14.74 GiB there, and
# CUDA itself takes about half a GiB.
#
# *Predict before you run:* the weights of the student take 3.4 GiB. Does its training fit?

# %%
SHAPES = {
    "Llama-3.2-1B": (128_256, 2048, 8192, 16, 32, 8),
    "SmolLM2-360M": (49_152, 960, 2560, 32, 15, 5),
    "SmolLM2-135M": (49_152, 576, 1536, 30, 9, 3),
}
PLANS = {
    "as it is": ("Llama-3.2-1B", {"rows": 4, "length": 512}),
    "teacher in 16 bits, recompute, 1 row": (
        "Llama-3.2-1B",
        {"rows": 1, "length": 512, "teacher_bytes": 2, "recompute": True},
    ),
    "… and train_embedding=False": (
        "Llama-3.2-1B",
        {"rows": 1, "length": 512, "teacher_bytes": 2, "recompute": True, "train_embedding": False},
    ),
    "… or AdamW with 8-bit averages *": (
        "Llama-3.2-1B",
        {"rows": 1, "length": 512, "teacher_bytes": 2, "recompute": True, "state_bytes": 2},
    ),
    "recompute, 4 rows": ("SmolLM2-360M", {"rows": 4, "length": 512, "recompute": True}),
    "as it is, short rows": ("SmolLM2-135M", {"rows": 4, "length": 128}),
}
T4 = (14.74 - 0.5) * 2**30


def shape_of(name, ratio=0.0):
    vocabulary, hidden, width, blocks, heads, shared = SHAPES[name]
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=kept_width(width, ratio), num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=shared, tie_word_embeddings=True,
    )  # fmt: skip


outlines = {name: (outline(shape_of(name)), outline(shape_of(name, RATIO))) for name in SHAPES}
assert outlines["Llama-3.2-1B"][0].num_parameters() == 1_235_814_400  # the published number
planned = {(name, what): memory_plan(*outlines[name], **options) for what, (name, options) in PLANS.items()}
budget = pd.DataFrame(planned).T / 2**30
budget["all, GiB"] = budget.sum(axis=1)
budget["fits a T4"] = ["yes" if total * 2**30 < T4 else "no" for total in budget["all, GiB"]]
print("GiB in float32; * not offered by distill, for comparison only")
budget.round(2)

# %%
whole_plan = budget.loc["Llama-3.2-1B", "as it is"]
fixed = whole_plan[["student", "gradients", "AdamW"]].sum()
print(f"Llama-3.2-1B: student, gradients and AdamW alone take {fixed:.1f} GiB of the T4's {T4 / 2**30:.1f}")
for (name, what), row in budget.iterrows():
    print(
        f"{name:<13} {what:<38} {row['all, GiB']:5.1f} GiB: {'fits' if row['fits a T4'] == 'yes' else 'does not fit'}"
    )

# %% [markdown]
# Frozen, the embedding of 128,256 words needs neither gradient nor averages, and the student fits. That is a choice with a
# price that this lesson hasn't measured: the head is the same matrix, so it can't adapt either. The cell that loads the teacher
# asks the GPU first and freezes where it must. The plan is an upper bound for float32. Under 16-bit autocast
# the activations shrink, but the 16 bytes a parameter stay: they hold the small steps of the training, which 16 bits would
# round away.

# %% [markdown]
# ## Exercises

# %%
from course_utils.exercises.lesson_07 import check_distillation_loss, check_step_losses, check_teaches

# %% [markdown]
# ### Exercise 1 · ●●○ · 15 minutes
#
# Write the whole loss: `distillation_loss(student_logits, teacher_logits, input_ids, attention_mask, temperature, alpha)`,
# with logits [rows, length, vocabulary], ids and mask [rows, length], padding on either side. Return one number: the mean
# over all predicted tokens of
#
# (1 − alpha) · T² · KL(teacher ‖ student, both at temperature T) + alpha · cross-entropy (at temperature 1)
#
# <details><summary>Hint</summary>
#
# `kl_each` and `counts` above are most of it. Select the counted positions first, `logits[:, :-1][counted]`, then everything
# is [tokens, vocabulary]. The word that comes next is `input_ids[:, 1:][counted]`.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def distillation_loss(student_logits, teacher_logits, input_ids, attention_mask, temperature, alpha):
    real = attention_mask.bool()
    counted = real[:, 1:] & real[:, :-1]
    student, teacher = (logits[:, :-1][counted].float() for logits in (student_logits, teacher_logits))
    log_q, log_p = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    # The cross-entropy is about real words, so it is not flattened.
    cross_entropy = F.cross_entropy(student, input_ids[:, 1:][counted])
    return (1 - alpha) * temperature**2 * kl + alpha * cross_entropy


# END SOLUTION
# BEGIN STUB
# def distillation_loss(student_logits, teacher_logits, input_ids, attention_mask, temperature, alpha):
#     ...  # your code
# END STUB
check_distillation_loss(distillation_loss)

# %% [markdown]
# ### The dead loss
#
# For the next exercise, a loss that looks like the right one. Its value does what a value should do: the nearer the student
# is to the teacher, the lower it gets.


# %%
def suspicious_loss(student_logits, teacher_logits, targets, alpha=0.5):
    """Half KL to the teacher, half cross-entropy. Or is it?"""
    log_p = teacher_logits.log_softmax(-1)
    log_q = student_logits.log_softmax(-1).detach()
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return (1 - alpha) * kl + alpha * F.cross_entropy(student_logits, targets)


here, there = torch.randn(2, 32, 11, generator=torch.Generator().manual_seed(session.seed))
words = there.argmax(-1)
for step in (0.0, 0.25, 0.5, 0.75, 1.0):
    value = suspicious_loss(here + step * (there - here), there, words)
    print(f"{step:.0%} of the way to the teacher: loss {value:.3f}")

# %% [markdown]
# A loss like this one has been shipped in a public library. Nothing stops, and a curve that falls is no proof: it would fall if
# only one half worked. A test can tell.
#
# ### Exercise 2 · ●●● · 20 minutes
#
# Find the dead loss, and every other one of its kind. Write `teaches(loss)`. `loss(student_logits, teacher_logits, targets)`
# takes logits [tokens, vocabulary] of any size and the words that came [tokens], and returns one number, which may or may not
# contain a cross-entropy. Return True if its **teacher's part** moves a student toward the teacher, otherwise False.
#
# <details><summary>Hint</summary>
#
# Make random logits and look at gradients (`torch.autograd.grad`; a value without `requires_grad` has none). The
# cross-entropy has a gradient of its own, the same for every teacher. And there is one teacher that exerts no pull: the one
# who says exactly what the student says. Subtract. Then take a small step along what is left: is the KL to the teacher
# smaller?
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def teaches(loss):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, 11, generator=generator)
    targets = torch.randint(11, (64,), generator=generator)

    def gradient(says):
        logits = student.clone().requires_grad_()
        value = loss(logits, says, targets)
        return torch.autograd.grad(value, logits)[0] if value.requires_grad else torch.zeros_like(logits)

    def distance(logits):
        log_q, log_p = logits.log_softmax(-1), teacher.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum()

    # What does not depend on the teacher cancels: a teacher who agrees with the student exerts no pull.
    pull = gradient(teacher) - gradient(student)
    if pull.norm() < 1e-6:
        return False
    return bool(distance(student - 0.01 * pull / pull.norm()) < distance(student))


# END SOLUTION
# BEGIN STUB
# def teaches(loss):
#     ...  # your code
# END STUB
check_teaches(teaches)

# %% [markdown]
# ### Exercise 3 · ●○○ · 10 minutes
#
# This is how gradient accumulation is often written. `parts` is a list with one pair for each batch of a step: the loss at
# each position [rows, length], and which positions count (bool). `backward()` is called on each of the returned numbers, and
# their gradients add up.
#
# ```python
# def step_losses(parts):
#     return [losses[counted].mean() / len(parts) for losses, counted in parts]
# ```
#
# Batches with few real tokens weigh as much as full ones. Write `step_losses` so that the sum of the returned numbers is the
# mean over all counted positions of the step, however it was cut. A batch without a single counted position can happen.
#
# <details><summary>Hint</summary>
#
# Count first, over all parts. Then each batch's *sum* is divided by this one number.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def step_losses(parts):
    total = sum(counted.sum() for _, counted in parts)
    return [losses[counted].sum() / total for losses, counted in parts]


# END SOLUTION
# BEGIN STUB
# def step_losses(parts):
#     ...
#     return [...]
# END STUB
check_step_losses(step_losses)

# %% [markdown]
# ## Take-aways
#
# - A teacher's distribution says in one token what many words of text say on average. Its gradient is q − p.
# - Shift, mask, and divide by the tokens of the step. Then the curve is the same for every batch size and every number of GPUs.
# - The logits are the largest tensors. Take the head and the loss in chunks, and they are gone, with equal gradients.
# - A better perplexity on the training's kind of text is fitting until another kind of text says otherwise. Report both, with
#   the KL to the teacher and a task that nobody practised.
# - A gain counts above two standard errors. Keep the answers to every question, so that you can pair them.
# - A loss that falls proves nothing about its parts. Test each part's gradient: does it move the student to the teacher?
# - A resumed run must equal an unbroken one, loss by loss. And whether a run fits is arithmetic: 16 bytes a trained parameter,
#   plus the rest.
#
# ## References
#
# - G. Hinton, O. Vinyals and J. Dean, *Distilling the Knowledge in a Neural Network*, 2015,
#   [arXiv 1503.02531](https://arxiv.org/abs/1503.02531): soft targets, temperature and its square
# - S. Muralidharan et al., *Compact Language Models via Pruning and Knowledge Distillation*, 2024,
#   [arXiv 2407.14679](https://arxiv.org/abs/2407.14679): prune, then distil from the original; forward KL of the logits
# - S. Sreenivas et al., *LLM Pruning and Distillation in Practice: The Minitron Approach*, 2024,
#   [arXiv 2408.11796](https://arxiv.org/abs/2408.11796): Llama-3.1-Minitron-4B, 94 billion tokens
# - R. Agarwal et al., *On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes*, 2024,
#   [arXiv 2306.13649](https://arxiv.org/abs/2306.13649), and Y. Gu et al., *MiniLLM*, 2024,
#   [arXiv 2306.08543](https://arxiv.org/abs/2306.08543): other divergences; `distill` has "reverse_kl" and "jsd"
# - P.-L. Hsu et al., *Liger Kernel: Efficient Triton Kernels for LLM Training*, 2024,
#   [arXiv 2410.10989](https://arxiv.org/abs/2410.10989): the head and the loss in chunks
# - T. Brown et al., *Language Models are Few-Shot Learners*, 2020, [arXiv 2005.14165](https://arxiv.org/abs/2005.14165),
#   appendix C: runs of thirteen words against contamination
# - D. Paperno et al., *The LAMBADA dataset*, 2016, [arXiv 1606.06031](https://arxiv.org/abs/1606.06031)
# - P. Martra, *Large Language Model Notebooks Course*, section on pruning: recovery by distillation after 40 % width pruning,
#   the quoted .299 and .302
#
# **Next:** lesson 08 looks inside: how activations differ when one word of a sentence changes.
