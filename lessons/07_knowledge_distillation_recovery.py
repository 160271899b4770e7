# ---
# jupyter:
#   course:
#     title: "Knowledge distillation: getting back what pruning took"
#     minutes: 145
#     prerequisites: lesson 03 (width pruning of a GLU, the activation criterion, paired intervals)
#     assets: [smollm2, benchmarks, texts, speeches]
# ---

# %% [markdown]
# ## What you will learn
#
# - what a teacher tells a student that the next word alone does not, on five words that you can check by hand
# - the distillation loss written out: shift, mask, and a mean that does not depend on how a step is cut into batches
# - the whole training loop, a dozen lines, equal to `distill`
# - why logits are the largest tensors of the training, how to do without them, and how to *compute* whether a run fits
# - what matters more: which neurons you keep, or which loss you train with
# - how to tell recovery from mere fitting, distillation from mere training, and a gain from noise
# - how a run survives a power cut, and how it moves to eight GPUs
#
# About 60 minutes of reading, predicting and running, and 85 of exercises; the two halves (up to *The patient*, and from there) make two
# evenings. In the `embedded` profile "llama" is SmolLM2-135M-Instruct; in the `hub` profile the same code runs on
# Llama-3.2-1B. The saved outputs come from the `embedded` profile on a machine with two CPU cores; the next table says which.

# %% [markdown] tags=["notes"]
# **The point:** first cut well, then train; a recovery needs an arm without a teacher at equal tokens.
#
# **On the board:** the five words by hand. Then let the room predict the order of the arms, and show what an hour buys. Exercise 5, the
# dead loss, together.
#
# **Usual questions:** "Is a better perplexity recovery?" Ask for another kind of text. "Which temperature?" Its square is in the loss.
#
# **Wrong turns:** shifting only one of the two distributions; dividing by rows instead of tokens; trusting a loss that falls.
#
# **At the end you have** a pruned model that learnt back part of what it lost, beside arms that show what the
# teacher had to do with it.

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

from course_utils import diagrams, plotting
from course_utils.plotting import show, style
from course_utils.reports import shown, with_interval
from course_utils.session import start

session = start("07")
style()

# %%
# The sizes that decide how long the lesson runs.
RATIO = 0.4  # of the MLP neurons are removed
STEPS, ROWS, LENGTH = 8, 2, 128  # 8 × 2 × 128 = 2,048 tokens for each arm
LR = 2e-4
WATCHED, WATCH_EVERY = 2, 2  # rows of validation text, steps from one look to the next
READ = 4  # rows that are read at once where nothing learns
DRAWS = 5  # sets of random neurons
HELD_OUT = {"speeches": 10, "wiki": 10}  # rows that judge, by kind of text; the first kind is the one we train on
DOCUMENTS = 40  # of LAMBADA
NEW_TOKENS = 16  # that a model writes after a prompt
SPARE = 0.2  # of a GPU's memory is left for what a plan doesn't count

# %% [markdown]
# ## A teacher beside the student
#
# A pruned model still speaks, but badly. We have something that most who train a language model don't have: the model that
# it was cut from. That one knows what the pruned one has lost. It becomes the **teacher**, the pruned one the **student**.

# %%
diagrams.distillation()
show(
    "Teacher and student side by side, both reading the same tokens through blocks, hidden states and logits. Dashed "
    "lines show where losses can act: a KL divergence between the logits, a hidden-state loss between the states, and "
    "a cross-entropy between the student's logits and the next token."
)

# %% [markdown]
# A loss can compare the two models' predictions, or their hidden states, or the student's predictions with the text alone.
# This lesson compares **predictions**; only they mean the same in both models after any kind of pruning.
#
# ## Two distributions over five words
#
# "After lunch she went back to …". Here is what both think of five words. In the text that we happen to have, the next word
# is *school*.

# %%
WORDS = ["work", "school", "bed", "town", "banana"]
teacher_says = torch.tensor([0.45, 0.25, 0.20, 0.08, 0.02])
student_says = torch.tensor([0.10, 0.20, 0.25, 0.05, 0.40])
NEXT = WORDS.index("school")

terms = teacher_says * (teacher_says / student_says).log()
print(f"KL(teacher || student): {terms.sum():.3f} nats")
print(f"cross-entropy of '{WORDS[NEXT]}': {-student_says[NEXT].log():.3f} nats")
pd.DataFrame({"teacher p": teacher_says, "student q": student_says, "p · ln(p / q)": terms}, index=WORDS).round(3)

# %% [markdown]
# The **Kullback–Leibler divergence** (KL) adds up, word by word, how much rarer the student makes what the teacher finds
# likely. A single term may be negative: for *banana* the student says more than the teacher, so the logarithm is below 0.
# But what one word has too much the others have too little, and they weigh more: the *sum* is never negative, and it is 0
# only when both agree on every word. The **cross-entropy** looks at one word only, the one that came.
#
# There are other ways to measure the distance between p (teacher) and q (student):
#
# - **forward KL**, KL(p ‖ q): weighs each word by the *teacher's* probability. Whatever the teacher says, the student has to
#   be able to say, too.
# - **reverse KL**, KL(q ‖ p): weighs by the *student's*. What the student says, the teacher has to find plausible.
# - **Jensen–Shannon** (JSD): both compared with their mixture m = (p + q) / 2, half of KL(p ‖ m) and half of KL(q ‖ m).
#
# A loss teaches by its gradient. Two of them, by the student's logits, are as simple as can be: that of the forward KL is
# **q − p**, that of the cross-entropy **q − (1 for the word that came, 0 for the others)**.
#
# **Predict before you run.** A step goes against the gradient. What do the losses do with *bed*, a good continuation that
# didn't happen to come? And which of them pushes hardest against *banana*?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The student says *bed* a little too often, so the forward KL lowers it a little (−0.05), and the cross-entropy lowers it
# five times as much (−0.25), as if it were wrong. The reverse KL even lifts it (0.203), because the teacher finds it
# plausible. Against *banana*, the reverse KL pushes hardest (−0.784): the student says it often, and the teacher finds it
# absurd. Forward KL (−0.38) and cross-entropy (−0.4) push about half as hard, the JSD by −0.1.
#
# </details>

# %%
logits = student_says.log().requires_grad_()
log_q, log_p = logits.log_softmax(-1), teacher_says.log()
log_m = ((log_q.exp() + teacher_says) / 2).log()
losses = {
    "forward KL": (teacher_says * (log_p - log_q)).sum(),
    "reverse KL": (log_q.exp() * (log_q - log_p)).sum(),
    "JSD": (teacher_says * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum() / 2,
    "cross-entropy": -log_q[NEXT],
}
pushes = {name: -torch.autograd.grad(loss, logits, retain_graph=True)[0] for name, loss in losses.items()}

came = F.one_hot(torch.tensor(NEXT), len(WORDS)).float()
torch.testing.assert_close(-pushes["forward KL"], student_says - teacher_says)
torch.testing.assert_close(-pushes["cross-entropy"], student_says - came)
print("autograd agrees with both formulas")

figure, axes = plt.subplots(2, 1, figsize=(9, 8), layout="constrained")
said = pd.DataFrame({"teacher": teacher_says, "student": student_says}, index=WORDS)
said.plot.bar(ax=axes[0], rot=0, width=0.7, ylabel="probability", title="What both say")
pushed = pd.DataFrame({name: push.numpy() for name, push in pushes.items()}, index=WORDS)
pushed.plot.bar(ax=axes[1], rot=0, width=0.8, ylabel="push (minus the gradient)", title="What a step does")
for ax in axes:
    ax.axhline(0, color="0.25", linewidth=1)
    ax.grid(axis="x", visible=False)
    for bars, hatch in zip(ax.containers, ("", "//", "..", "xx"), strict=False):
        plt.setp(bars.patches, hatch=hatch)
    ax.legend()
show(
    "Above, bars of the teacher's and the student's probability for five words: the student says banana far too often "
    "and work too rarely. Below, how four losses push each word: the divergences lift work and lower banana, the "
    "cross-entropy lifts school alone and lowers all others."
)
pushed.round(3)

# %% [markdown]
# The three divergences agree on *work* (up) and *banana* (down). They differ in where they spend their force: the forward KL
# corrects each word by just what it is off, the reverse KL fights the absurd word and lifts all plausible ones. The
# cross-entropy pushes every word down but one, so it punishes *bed*, although *bed* is fine.
#
# Which divergence is best? Where the student is to *write* by itself, the reverse KL and its relatives have done better on
# instructions ([MiniLLM](https://arxiv.org/abs/2306.08543), [Agarwal et al.](https://arxiv.org/abs/2306.13649)). Where it is
# judged by the likelihood of text, as here, the forward KL is the natural one, and it is what Minitron's authors use.
# `distill` has all three; this lesson trains with the forward KL and with cross-entropy.
#
# ### One teacher, many words
#
# Over many texts the cross-entropy's unfairness evens out, **if** the words come as often as the teacher says. Let's draw
# words from the teacher and average.

# %%
drawn = torch.multinomial(teacher_says, 10_000, replacement=True, generator=torch.Generator().manual_seed(session.seed))
of_kl = -pushes["forward KL"]
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

# %%
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

# %%
from course_utils.exercises.lesson_07 import (
    check_better_recipe,
    check_control,
    check_distillation_loss,
    check_not_shown,
    check_step_losses,
    check_teaches,
)

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
# ### Four ways to take a mean
#
# Now the same three rows once as one batch of three, and once as three batches of one, whose gradients are added up. That is
# *gradient accumulation*, which everybody uses whose memory is too small for the batch. It should change nothing.
#
# **Predict before you run.** Which of these four means pass?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Only the first: 0.0299 either way. The mean of the batches' means changes with the split (0.0299 at once, 0.0236 row by
# row). The other two don't change, but they are no nats a token: padding counted makes it 0.0266, and "batchmean" divides
# by rows and gives 0.1991.
#
# </details>


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
right = np.isclose(means, ours.item(), rtol=1e-4).all(axis=1)
means["nats a token, whatever the split?"] = np.where(right, "yes", "no")
means.round(4)

# %% [markdown]
# A loss that changes with the batch size makes every learning rate and every curve a matter of how much memory you had.
# `distill` divides by the tokens of the step. Now it's your turn.
#
# ### Exercise 2 · ●○○ · 10 minutes
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
# ## The loop, written out
#
# The rest of a distillation is a training loop like any other: AdamW, a short rise and a cosine fall of the learning rate,
# gradients clipped at length 1. Matrices, embeddings and norms all learn; the teacher is only read. Here it is, and then
# `distill` of course_utils does the same steps on the same batches.

# %%
from course_utils.distillation import Recipe, distill

tiny_text = [{"input_ids": torch.randint(1, 97, (2, 16), generator=generator).to(session.device)} for _ in range(8)]
recipe = Recipe(steps=len(tiny_text), lr=3e-3, seed=session.seed)  # one pass over the text
# distill reads the batches of each pass in an order of its own, a function of the seed
order = torch.randperm(len(tiny_text), generator=torch.Generator().manual_seed(recipe.seed * 1_000_003))


def train(teacher, student, batches, recipe):
    """Forward KL, one batch a step; returns the loss of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    student.train()
    losses = []
    for step, batch in enumerate(batches[: recipe.steps]):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        with torch.no_grad():
            answers = teacher(**batch).logits
        loss = kl_each(student(**batch).logits, answers).mean()  # no padding here: every position counts
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


by_hand, by_package = pruned_tiny(tiny_teacher), pruned_tiny(tiny_teacher)
ours = train(tiny_teacher, by_hand, [tiny_text[number] for number in order], recipe)
theirs = distill(tiny_teacher, by_package, tiny_text, recipe).frame().loss
np.testing.assert_allclose(ours, theirs, rtol=1e-3)
apart = max((a - b).abs().max().item() for a, b in zip(by_hand.parameters(), by_package.parameters(), strict=True))
print(f"{len(ours)} steps: losses equal, largest difference of a weight {apart:.0e}")

# %% [markdown]
# What `distill` adds to these lines is care, not method: padding, accumulation, chunks of logits, 16-bit arithmetic,
# checkpoints, several GPUs, other losses. The next sections are about that.

# %% [markdown]
# ## The largest tensors of the training
#
# A hidden state has a few hundred numbers a token. The logits have one for every word of the vocabulary, 49,152 in a SmolLM2
# and 128,256 in a Llama 3. The KL wants them in float32, from two models, with their logarithms, differences and gradients.
#
# So the trick: hidden states are small, keep them. Run the **head** on a few tokens at a time, take the loss *and its
# gradient* of this chunk, and forget the logits. `batch_loss` does that.
#
# **Predict before you run.** We double the length of the texts. What happens to the memory with all logits at once, and what
# in chunks?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# With all logits at once the memory doubles each time: 173, 349, 703 MB. In chunks it levels off as soon as one chunk is
# full: 177, 241, 249 MB. At 512 tokens that is 35 % of the memory, with equal gradients.
#
# </details>

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

# %%
peaks = pd.DataFrame(peaks).set_index("tokens")
figure, ax = plt.subplots(layout="constrained")
for (name, values), marker in zip(peaks.items(), "Dos", strict=True):
    ax.plot(peaks.index, values, marker=marker, label=name)
ax.set(xlabel="tokens in the batch", ylabel="MB above the two models", title="Peak memory of the loss and its gradient")
ax.set_xticks(peaks.index)
ax.set_ylim(bottom=0)
ax.legend()
show(
    "Peak memory in megabytes against the tokens in a batch, three lines: with all logits at once it grows in "
    "proportion to the tokens, in chunks it levels off, and a single tensor of logits lies below both."
)
last = peaks.iloc[-1]
print(f"at {peaks.index[-1]} tokens the chunks need {last['in chunks'] / last['all at once']:.0%} of the memory")
for rows, length, vocabulary in ((4, 512, 49_152), (4, 512, 128_256), (8, 1024, 128_256)):
    size = 4 * rows * length * vocabulary / 2**30
    print(f"{rows} × {length:>4} tokens, {vocabulary:>7,} words: one float32 tensor of logits takes {size:.2f} GiB")
peaks.round(0).astype(int)

# %% [markdown]
# All at once, memory grows with the tokens; in chunks it stops growing when a chunk is full. Nothing is computed twice on
# the way, since a chunk's gradient is taken while its logits are still there.
#
# ## Does it fit? A plan instead of a hope
#
# "It ran out of memory after ten minutes" is avoidable. What the training holds can be computed from the configuration alone,
# on PyTorch's *meta* device, where tensors have shapes but no content. `memory_plan` adds up:
#
# - **teacher**: its weights, in the type that you choose. When the teacher has read all text *beforehand* and its hidden
#   states are kept, only its head.
# - **student**: 4 bytes a weight in float32. For each weight *that learns*, 4 more for its gradient and 8 for AdamW's two
#   averages: **16 bytes a trained parameter**.
# - **head**: its gradient while the chunks are added up, and that of a single chunk
# - **chunk**: about seven tensors of a chunk's logits
# - **activations**: what the forward pass keeps for the backward pass. The tensors that autograd puts aside are counted.
#   With `recompute=True` only the input of each block stays, and the inside of one block at a time.
#
# A plan that was never compared with reality is a hope, too. So first a model that is small enough to try:

# %%
from transformers import AutoModelForCausalLM, LlamaConfig

from course_utils.distillation.memory import memory_plan, outline

small = LlamaConfig(
    vocab_size=8192, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
trial_teacher = AutoModelForCausalLM.from_config(small).to(session.device)
rows_to_read = [{"input_ids": torch.randint(8192, (4, 128), generator=generator)} for _ in range(2)]
trials = {}
for learns, options in {"everything": {}, "MLPs only": {"mlps_only": True}}.items():
    for recompute in (False, True):
        trial = pruned_tiny(trial_teacher)
        settings = {"recompute": recompute, **options}
        plan = memory_plan(
            outline(small), outline(small, intermediate_size=kept_width(512, 0.5)), rows=4, length=128, **settings
        )
        planned = sum(plan.values()) - plan["teacher"] - plan["student"]  # those two are there already
        measured = peak_memory(
            lambda trial=trial, settings=settings: distill(
                trial_teacher, trial, rows_to_read, steps=2, lr=1e-4, **settings
            ),
            device=session.device,
        )
        assert measured <= planned, "the plan promises an upper bound"
        trials[learns, f"recompute={recompute}"] = {"planned, MB": planned / 1e6, "measured, MB": measured / 1e6}
pd.DataFrame(trials).T.round(0).astype(int)

# %% [markdown]
# The plan is an upper bound, and not far above. Now Llama-3.2-1B with 40 % of its neurons removed, on the T4 that Colab
# lends for free. PyTorch sees 14.74 GiB there, and CUDA itself takes about half a GiB. A plan isn't everything (fragments,
# the measuring in between), so we ask for a fifth of the memory to spare.
#
# **Predict before you run.** The weights of the student take 3.4 GiB. Does its training fit?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Not as it is: 21.07 GiB are 148 % of the card. When the teacher was asked beforehand and activations are computed twice, it
# is still 16.84. All but the embedding takes 11.95 (84 % of the card, too close), the MLPs only 10.07 (71 %).
#
# </details>

# %%
SHAPES = {
    "Llama-3.2-1B": (128_256, 2048, 8192, 16, 32, 8),
    "SmolLM2-135M": (49_152, 576, 1536, 30, 9, 3),
}
LEAN = {"rows": ROWS, "length": LENGTH, "teacher_states": True, "recompute": True}
PLANS = {
    "as it is": ("Llama-3.2-1B", {"rows": ROWS, "length": LENGTH}),
    "recompute, the teacher's states known": ("Llama-3.2-1B", LEAN),
    "… or AdamW with 8-bit averages *": ("Llama-3.2-1B", LEAN | {"state_bytes": 2}),
    "… all but the embedding": ("Llama-3.2-1B", LEAN | {"train_embedding": False}),
    "… MLPs only": ("Llama-3.2-1B", LEAN | {"mlps_only": True}),
    "as it is ": ("SmolLM2-135M", {"rows": ROWS, "length": LENGTH}),
    "the teacher's states known, MLPs only": ("SmolLM2-135M", LEAN | {"recompute": False, "mlps_only": True}),
}
T4 = (14.74 - 0.5) * 2**30


def shape_of(name):
    vocabulary, hidden, width, blocks, heads, shared = SHAPES[name]
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=width, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=shared, tie_word_embeddings=True,
    )  # fmt: skip


planned = {}
for what, (name, options) in PLANS.items():
    whole, narrow = (
        outline(shape_of(name)),
        outline(shape_of(name), intermediate_size=kept_width(SHAPES[name][2], RATIO)),
    )
    planned[name, what] = memory_plan(whole, narrow, **options)
budget = pd.DataFrame(planned).T / 2**30
budget["all, GiB"] = budget.sum(axis=1)
budget["of a T4"] = [f"{total * 2**30 / T4:.0%}" for total in budget["all, GiB"]]
print("GiB in float32; * not offered by distill, for comparison only")
budget.round(2)

# %% [markdown]
# Read the table from above: each line gives something up. Student, gradients and AdamW alone fill the card when everything
# learns. Without the teacher's blocks, with recomputation and with the embedding frozen, it would just fit. With the
# **MLPs only** it fits with room to spare, and what pruning left alone stays as it was. That is what this lesson trains, on
# every machine. What attention and norms could add, it does not measure.
#
# In 16-bit autocast the activations shrink, but the 16 bytes a parameter stay: they hold the small steps of the training,
# which 16 bits would round away.
#
# **LoRA** gives up something else: every matrix stays frozen, and two thin ones beside it learn a correction
# ([Hu et al.](https://arxiv.org/abs/2106.09685)). Gradients and averages then nearly vanish from the table, the student's own
# weights stay, and could even stay in 4 bits ([QLoRA](https://arxiv.org/abs/2305.14314)). LLM-Pruner recovers its pruned
# models so, with 50,000 examples and a few hours of one GPU ([Ma et al.](https://arxiv.org/abs/2305.11627)). A low-rank
# correction can only do so much where 40 % of the neurons are gone; how much, this lesson has not measured.

# %% [markdown]
# ## The patient
#
# The teacher is the whole model. The students have lost 40 % of their MLP neurons, chosen in three ways: by `peak_to_peak`,
# as Martra's notebooks do and this course's lesson 03 did first; by `activation`; and at `random`.
#
# What learns is what was cut: **the MLPs alone**. Attention, norms and embedding stay as the teacher has them. The plan
# above asks for it on a small GPU, and elsewhere it saves time.
#
# One thing to know about the embedded model: its matrices were stored in 4 bits (Q4_1) and are multiplied out again, so the
# weights lie on a grid. `peak_to_peak` looks at the largest weights and may rank some neurons otherwise than it would with
# the original ones; `activation` looks at what a neuron does on text, and sees less of the grid.

# %%
from course_utils.architectures import cast_weights
from course_utils.models import variant
from course_utils.session import safe_dtype

on_gpu = session.device.type == "cuda"
dtype = safe_dtype(session.dtype)  # what is computed with
stored = torch.bfloat16 if on_gpu else dtype  # how the teacher waits in main memory: as it was published
teacher, tokenizer = load_model("llama", dtype=stored, device="cpu")


def plan_for(model, **options):
    """GiB that a student of this model takes while it learns, on this machine."""
    config = model.config
    narrow = outline(config, intermediate_size=kept_width(config.intermediate_size, RATIO))
    sizes = {"rows": ROWS, "length": LENGTH, "teacher_states": True, "recompute": on_gpu}
    return sum(memory_plan(outline(config), narrow, **sizes, **options).values()) / 2**30


room = (1 - SPARE) * torch.cuda.mem_get_info()[0] / 2**30 if on_gpu else math.inf
if plan_for(teacher, mlps_only=True) > room:
    print(f"This GPU is too small to distil {teacher.config.name_or_path}; going on with a smaller model.")
    teacher, tokenizer = load_model("HuggingFaceTB/SmolLM2-360M", dtype=stored, device="cpu")
FITTING = {"recompute": on_gpu, "mlps_only": True}
print(f"{teacher.config.name_or_path}: {teacher.num_parameters():,} parameters, computed in {dtype}")
print(f"planned: {plan_for(teacher, mlps_only=True):.2f} GiB with the MLPs, ", end="")
print(
    f"{plan_for(teacher, train_embedding=False):.2f} with attention and norms, {plan_for(teacher):.2f} with everything"
)

# %% [markdown]
# **Text.** All arms learn from the same rows of the *distillation* split, packed without padding. Some more rows are watched
# on the way. What judges comes from the *evaluation* split, of the same kind as the training text **and of another one**.
#
# ### Nothing that judges may be learned
#
# The splits hold different documents. But documents quote each other, and LAMBADA's texts could be anywhere. The usual test:
# no thirteen words in a row in common. Held-out rows that fail are left out.

# %%
from course_utils.benchmark_tasks import build_tasks
from course_utils.texts import overlaps, token_blocks

TRAINED_ON, OTHER = HELD_OUT
POOL = {"distillation": 80_000, "evaluation": 40_000, "calibration": 10_240}  # tokens to choose from


def rows_of(split, domain, count):
    """Some rows from all over a split, the same ones every time."""
    tokens = 10_240 if domain == OTHER else POOL[split]
    pool = token_blocks(tokenizer, split, domain=domain, tokens=tokens, length=LENGTH)
    return pool.sample(min(count, len(pool)), seed=session.seed)


everything = rows_of("distillation", TRAINED_ON, STEPS * ROWS + WATCHED)
training, watched = everything[: STEPS * ROWS], everything[STEPS * ROWS :]
judges = {domain: rows_of("evaluation", domain, count) for domain, count in HELD_OUT.items()}
print(f"{training.num_tokens:,} tokens to learn from, {watched.num_tokens:,} watched")

learned = tokenizer.batch_decode(everything.input_ids)
for domain, blocks in judges.items():
    shared = overlaps(tokenizer.batch_decode(blocks.input_ids), learned)
    judges[domain] = blocks[~torch.tensor(shared)]
    print(f"{domain}: {sum(shared)} of {len(shared)} rows share 13 words in a row with the training text")
passages = [document["text"] for document in build_tasks(["lambada_openai"], DOCUMENTS)["lambada_openai"].test_docs()]
print(f"LAMBADA: {sum(overlaps(passages, learned))} of {len(passages)} passages do")

# %% [markdown]
# ### The teacher is asked once
#
# All arms read the same rows, and the teacher thinks the same of them each time. So it reads everything once, and its
# **hidden states** before the head are kept. They are small, and the head turns them into the very same logits again:
# `remember_teacher` changes no bit of any run (a test of the course compares it with a run that has the teacher itself).
# The teacher then waits in main memory.

# %%
from course_utils.distillation.teacher_states import remember_teacher

precision = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32


def on_device(model):
    """A copy where the lesson computes and in what it computes; on a CPU it shares its weights with the model."""
    copied = variant(model).to(session.device)
    cast_weights(copied, dtype)  # not copied.to(dtype): that would round the rotary frequencies as well
    return copied


working = on_device(teacher)
read = [batch for blocks in (everything, *judges.values()) for batch in blocks.batches(READ)]
known = remember_teacher(working, read, precision=precision)
importance = {
    "peak_to_peak": neuron_importance(working, "peak_to_peak"),
    "activation": neuron_importance(working, "activation", batches=rows_of("calibration", TRAINED_ON, 32).batches(8)),
    "random": neuron_importance(working, "random", seed=session.seed),
}
importance = {criterion: [scores.cpu() for scores in blocks] for criterion, blocks in importance.items()}
each = known.nbytes / known.tokens
print(f"{known.tokens:,} predicted tokens, {each:,.0f} bytes each: {known.nbytes / 1e6:.1f} MB in all")
print(f"their logits in 16 bits would take {2 * known.vocab_size / each:.0f} times as much")

# %% [markdown]
# ### Three measures
#
# - **Perplexity** on held-out text: does the student predict what was written?
# - **KL to the teacher** on the same text: does it predict what the *teacher* predicts? 0 is a perfect copy.
# - **LAMBADA**: the last word of a passage from a novel, which takes the whole passage to guess. Nobody trains on it here.
#
# The first two come from one reading. Beside the numbers, each model continues two sentences.

# %%
from course_utils.batches import read_batches
from course_utils.divergence import kl_divergence
from course_utils.evaluation import evaluate, paired
from course_utils.language_modelling import continuations, perplexity
from course_utils.uncertainty import bootstrap_interval, ratio_interval, verdict

PROMPTS = ["The most important thing about our economy is", "She opened the door of the old house and"]
TOKENS = {domain: np.full(len(blocks), LENGTH - 1) for domain, blocks in judges.items()}  # predicted, a row


@torch.no_grad()
def nats_of(model):
    """What each held-out row costs a model: {domain: [rows, 2]}, nats of the true words and KL to the teacher.

    None is the teacher, who has read these rows already.
    """
    parts, nats = known if model is None else describe(model), {}
    for domain, blocks in judges.items():
        rows = []
        for batch in read_batches(blocks.batches(READ), vocab_size=known.vocab_size, device=session.device):
            teachers = known.states(batch).unflatten(0, (-1, LENGTH - 1))
            own = teachers if model is None else parts.hidden_states(batch)[:, :-1]
            for states, teacher_states, targets in zip(own, teachers, batch.input_ids[:, 1:], strict=True):
                both = parts.logits(states), known.logits(teacher_states)
                log_q, log_p = (logits.float().log_softmax(-1) for logits in both)
                true_words = -log_q.gather(-1, targets[:, None])
                rows.append([true_words.sum().item(), kl_divergence(log_p, log_q).sum().item()])
        nats[domain] = np.array(rows)
    return nats


# %%
def nats_a_token(nats, domain, column):
    """The mean over all tokens; columns as in `nats_of`."""
    return nats[domain][:, column].sum() / TOKENS[domain].sum()


def ratio_of(one, other, domain, column):
    """How many times as high `exp(nats a token)` is, with its 95 % interval over the rows."""
    mean, _, low, high = ratio_interval((one[domain] - other[domain])[:, column], TOKENS[domain])
    return np.exp([mean, low, high])


def line(nats):
    """The measures of one model for a table."""
    cells = {}
    for domain, rows in nats.items():
        mean, _, low, high = ratio_interval(rows[:, 0], TOKENS[domain])
        cells[f"perplexity, {domain}"] = with_interval(*np.exp([mean, low, high]))
    for domain, rows in nats.items():
        mean, _, low, high = ratio_interval(rows[:, 1], TOKENS[domain])
        cells[f"KL to the teacher, {domain}"] = with_interval(mean, low, high)
    return cells


# %%
def student_of(scores):
    """A variant of the teacher that has lost RATIO of its neurons, those with the lowest scores."""
    student = variant(teacher)
    prune_neurons(student, scores, ratio=RATIO)
    return on_device(student)


def fresh_student(criterion):
    """One that hasn't learned anything yet."""
    return student_of(importance[criterion])


def writes(name, model):
    """How the model continues the prompts, a column with its name."""
    return continuations({name: model}, tokenizer, PROMPTS, new_tokens=NEW_TOKENS)


whole = nats_of(None)
lambada = {"teacher": evaluate(working, tokenizer, "lambada_openai", limit=DOCUMENTS)}
written = {"teacher": writes("teacher", working)}
working = None  # its head stays in `known`
before = {}
for criterion in tqdm(importance, desc="pruned models"):
    student = fresh_student(criterion)
    before[criterion] = nats_of(student)
    if criterion in ("activation", "peak_to_peak"):
        written[f"{criterion}, pruned"] = writes(f"{criterion}, pruned", student)
    if criterion == "activation":
        again = perplexity(student, judges[OTHER][:READ], batch_size=READ).row_nll  # measured by the package
        np.testing.assert_allclose(before[criterion][OTHER][:READ, 0], again, rtol=1e-4)
        lambada["activation, pruned"] = evaluate(student, tokenizer, "lambada_openai", limit=DOCUMENTS)
removed = 1 - student.num_parameters() / teacher.num_parameters()
print(f"{student.num_parameters():,} parameters are left, {removed:.1%} fewer; 95 % intervals over the rows:")
pd.DataFrame({"teacher": line(whole)} | {f"{name}, {RATIO:.0%} removed": line(nats) for name, nats in before.items()}).T

# %%
starts = [np.exp(nats_a_token(before["random"], OTHER, 0))]
for seed in range(session.seed + 1, session.seed + DRAWS):
    student = student_of(neuron_importance(teacher, "random", seed=seed))
    starts.append(perplexity(student, judges[OTHER], batch_size=READ).perplexity)
print(f"perplexity on {OTHER} of {DRAWS} students with neurons chosen at random: {'; '.join(map(shown, starts))}")

# %%
pd.concat([written[name] for name in ("teacher", "activation, pruned", "peak_to_peak, pruned")], axis=1).T

# %% [markdown]
# The same number of neurons is gone from each student, and yet they are not equally ill. Which neurons went decides whether
# sentences are left, or only words. Before any training, compare the rows of the table: that is the distance that the arms
# below start from. Five draws of random neurons say how much is luck there; the first one is trained below. (Being first
# among six is p = 1/6, no more. What speaks here is the size of the gap.)
#
# **Saved run.** On wiki the teacher's perplexity is 41.1; that of the activation student 180.9, of the peak-to-peak student
# 4,364, of the random one 62,585. The five random draws start between 5,908 and 95,339. The activation student still writes
# English, though it has lost the thread; the peak-to-peak student writes single words and full stops.
#
# ## The arms, at equal tokens
#
# Each arm sees the same tokens. Only one thing changes at a time:
#
# | arm | student | loss |
# |---|---|---|
# | peak-to-peak, KL | peak_to_peak | forward KL |
# | random, KL | random | forward KL |
# | activation, KL | activation | forward KL |
# | activation, cross-entropy | activation | cross-entropy of the text alone: training without a teacher |
# | activation, half and half | activation | ½ KL + ½ cross-entropy |
# | activation, KL, seed 1 | activation | forward KL, the same rows in another order |
#
# The first three differ in their neurons, the next two from the third in their loss. The last one is there for scale: two arms
# that differ less than two orders of the same text are not known to differ.
#
# **Predict before you run.** After these few pages,
#
# 1. does a trained peak-to-peak student pass the activation student that was *never trained*?
# 2. which of the activation student's losses comes nearest to the teacher? And which has the lowest perplexity?
# 3. is the difference between two losses larger than the difference between two orders of the text?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 1. No. The trained peak-to-peak student comes from 4,364.4 to 735.7 on wiki; the activation student stood at 180.9 before it had
#    learned anything, and KL brings it to 155.4.
# 2. Nearest to the teacher is KL: on wiki, the KL with cross-entropy is 0.031 nats a token higher, with half and half 0.007. Half
#    and half has the lowest perplexity on wiki, 152.0; cross-entropy ends at 152.9.
# 3. In the KL to the teacher, for cross-entropy clearly: 0.031 on wiki and 0.052 on speeches, where two orders of the text differ
#    by 0.003 and 0.012. In the nats of the text, hardly: on wiki two orders differ by 0.012, cross-entropy and KL by 0.016; on
#    speeches, the text that is trained on, by 0.029 and 0.048.
#
# </details>

# %%
# The longest cell: all arms, with their measurements.
RECIPE = Recipe(steps=STEPS, lr=LR, precision=precision, validate_every=WATCH_EVERY, seed=session.seed, **FITTING)
ARMS = {
    "peak-to-peak, KL": ("peak_to_peak", {}),
    "random, KL": ("random", {}),
    "activation, KL": ("activation", {}),
    "activation, cross-entropy": ("activation", {"alpha": 1.0}),
    "activation, half and half": ("activation", {"alpha": 0.5}),
    "activation, KL, seed 1": ("activation", {"seed": session.seed + 1}),
}
TALKS = ("peak-to-peak, KL", "activation, KL", "activation, cross-entropy")  # these also write and take LAMBADA

runs, after = {}, {}
for name, (criterion, options) in ARMS.items():
    student = fresh_student(criterion)
    watching = watched.batches(READ) if "alpha" not in options else None  # only equal losses are drawn together
    runs[name] = distill(known, student, training.batches(ROWS), RECIPE, validation=watching, **options)
    cast_weights(student, stored)  # rounded as the teacher is, so that both are measured alike
    if name == "activation, KL":
        keeper = variant(student).to("cpu")
    cast_weights(student, dtype)
    after[name] = nats_of(student)
    if name in TALKS:
        written[name] = writes(name, student)
    if name in TALKS[1:]:
        lambada[name] = evaluate(student, tokenizer, "lambada_openai", limit=DOCUMENTS)
    print(f"{name:<33} {runs[name].tokens:,} predicted tokens in {runs[name].seconds:.0f} s")

# %% [markdown]
# ### The curves

# %%
figure, ax = plt.subplots(layout="constrained")
looks = {}
for name, marker in zip(
    ("random, KL", "peak-to-peak, KL", "activation, KL", "activation, KL, seed 1"), "os^v", strict=True
):
    seen = runs[name].frame().dropna(subset="validation")
    ax.plot(seen.tokens, seen.validation, marker=marker, label=name)
    looks[name] = seen.set_index("tokens").validation
ax.set(xlabel="tokens learned from", ylabel="KL to the teacher, nats a token", title="Watched text, while learning")
ax.set_xticks(seen.tokens)
ax.xaxis.set_major_formatter("{x:,.0f}")
ax.set_ylim(bottom=0)
figure.legend(loc="outside lower center", ncols=2)  # inside it would hide a line
show(
    "KL to the teacher on watched text against the tokens learned from, four falling lines: the random student on top, "
    "the peak-to-peak student below, and the activation student with two seeds, almost one line, far below both."
)
pd.DataFrame(looks).T.round(3)

# %% [markdown]
# The learning rate falls with the steps, which makes every curve look calmer than it is: whether a student was done can't be seen
# here. Only equal losses are drawn together: the height of a KL and that of a cross-entropy can't be compared.
#
# **Saved run.** All four lines fall, and most slowly at the end.
#
# ## Which neurons, or which loss?

# %%
students = {"peak_to_peak": "peak-to-peak", "random": "random", "activation": "activation"}
main = pd.DataFrame(
    {
        "before": {name: nats_a_token(before[ARMS[name][0]], OTHER, 0) for name in ARMS},
        "after": {name: nats_a_token(after[name], OTHER, 0) for name in ARMS},
    }
).map(np.exp)
main["group"] = [students[ARMS[name][0]] for name in main.index]
levels = {
    "teacher": np.exp(nats_a_token(whole, OTHER, 0)),
    "activation, untrained": main.before["activation, KL"],
    "guessing": known.vocab_size,  # every token equally likely
}
ax = plotting.before_and_after(
    main, x_label=f"perplexity on {OTHER}, lower is better", lines=levels, log_x=True,
    title="Before and after training",
)  # fmt: skip
ax.set_xlim(right=4 * max(levels["guessing"], main.before.max()))  # room for a name
show(
    "One line an arm on a logarithmic axis, from its perplexity before training to that after, and upright lines for the "
    "teacher, for the untrained activation student and for guessing. The random and peak-to-peak students come far, "
    "but end to the right of where the activation students began; these hardly move."
)
ratio, low, high = ratio_of(after["peak-to-peak, KL"], before["activation"], OTHER, 0)
print(f"peak-to-peak, trained, against activation, never trained: {ratio:.2f} times the perplexity on {OTHER}")
print(f"95 % interval, paired by rows: {low:.2f} to {high:.2f}")
ends = np.log(main.after)
losses = ends[["activation, KL", "activation, cross-entropy", "activation, half and half"]]
print(
    f"other neurons, same loss: {ends['peak-to-peak, KL'] - ends['activation, KL']:.2f} nats a token apart at the end"
)
print(f"other loss, same neurons: {losses.max() - losses.min():.2f} nats at most")
main.round(1)

# %% [markdown]
# Each line begins, with an open point, where pruning left a student, and ends where training brought it; the dashed line is where the activation
# student stood *before it learned anything*. A long line is no merit: it begins far out. *Guessing* is where every token is equally
# likely. Compare the lengths with the places: what does the choice of neurons move, and what the choice of loss?
#
# **Saved run.** The random student begins even beyond guessing, and the activation students move so little that their two points
# touch on this axis. Two thousand tokens of distillation take the peak-to-peak student to a perplexity of 735.7, 4.07 times the
# 180.9 at which the activation student *began*. Trained with the same loss and tokens, that one ends at 155.4; the teacher
# stands at 41.1. Other neurons move the end by 1.55 nats a token, another loss by 0.02 at most.
#
# **The rule of the trade:** first cut well, then train. A training repairs slowly what a better choice of neurons would not
# have broken. More tokens shrink the gap, as the curves above show; the published recipes spend billions, on students chosen by
# activations.
#
# ## What came back
#
# Perplexities lie orders of magnitude apart, so recovery is counted in nats a token:
#
# **recovery = (pruned − student) ÷ (pruned − teacher)**
#
# 0 % is where the student started, 100 % is the teacher. The interval draws the rows anew, the same rows for all three
# models, so what makes a row hard for everyone cancels.
#
# Recovery on the training's kind of text has a catch. Someone who learns speeches gets better at speeches, teacher or not. Even
# above 100 % is possible, and it would not mean that the student had become wiser than its teacher. **On the text that we
# trained on, fitting and recovery can't be told apart.** The other kind of text gives nothing away for free.


# %%
def share(sums):
    """What of the way from the first column to the third the second one has gone; sums [..., 3]."""
    return (sums[..., 0] - sums[..., 1]) / (sums[..., 0] - sums[..., 2])


def recovery(name, domain, column):
    """Share of the damage that is gone, with its 95 % interval, in words."""
    units = np.stack([nats[domain][:, column] for nats in (before[ARMS[name][0]], after[name], whole)], axis=1)
    low, high = bootstrap_interval(units, share, seed=session.seed)
    return f"{share(units.sum(0)):.0%} ({low:.0%} to {high:.0%})"


recovered = {
    name: {
        f"{measure}, {domain}": recovery(name, domain, column)
        for column, measure in enumerate(("nats", "KL"))
        for domain in judges
    }
    for name in ARMS
}
pd.DataFrame(recovered).T.assign(**{f"perplexity, {OTHER}": main.after.round(1)})


# %%
def nats_less(nats, lower, domain):
    """By how many nats a token the second is lower, with its 95 % interval, in words."""
    mean, _, low, high = ratio_interval((nats[domain] - lower[domain])[:, 0], TOKENS[domain])
    return with_interval(mean, low, high)


lost = {f"lost by pruning, {domain}": [nats_less(before[ARMS[n][0]], whole, domain) for n in ARMS] for domain in judges}
won = {f"won back, {domain}": [nats_less(before[ARMS[n][0]], after[n], domain) for n in ARMS] for domain in judges}
print("nats a token:")
pd.DataFrame(lost | won, index=list(ARMS))

# %% [markdown]
# A recovery is relative to *its own* beginning. An arm that started lower can recover more and still end behind, so compare where
# they end, row by row on the same text.
#
# And compare the two kinds of text in nats: what an arm gains at home beyond what it gains abroad would be fitting. The shares can't
# say that. A share of a small loss is soon large, and the activation student's neurons were chosen on speeches.
#
# **Saved run.** Shares and ends don't rank the arms alike: peak-to-peak recovers the largest share on wiki (38 %) and ends at 735.7.
# Plain KL brings the activation student 26 % on speeches and 10 % on wiki, but pruning had taken 0.69 nats there and 1.48 here. In nats
# it wins back 0.18 (0.12 to 0.24) and 0.15 (0.10 to 0.20), with cross-entropy 0.23 (0.18 to 0.27) and 0.17 (0.12 to 0.21). In each of
# this student's arms the two intervals overlap: that it gains more at home than abroad is not shown.
#
# ## The losses, on the better student
#
# The activation student is the one worth training, so here is the comparison that matters: each of its arms against plain
# KL, the differences paired by rows, on both kinds of text. The points for *seed 1* show how far two runs lie apart that
# differ in nothing but the order of the text.

# %%
MEASURES = ("nats of the text", "KL to the teacher")
rows = []
for domain in (OTHER, TRAINED_ON):
    for name in (name for name in ARMS if name.startswith("activation") and name != "activation, KL"):
        for column, measure in enumerate(MEASURES):
            difference = (after[name][domain] - after["activation, KL"][domain])[:, column]
            mean, _, low, high = ratio_interval(difference, TOKENS[domain])
            rows.append((domain, name.removeprefix("activation, "), measure, mean, low, high))
differences = pd.DataFrame(rows, columns=["text", "case", "measure", "difference", "ci_low", "ci_high"])

figure, axes = plt.subplots(2, 1, figsize=(9, 8), sharex=True, layout="constrained")
for ax, domain, told in zip(axes, (OTHER, TRAINED_ON), ("another kind of text", "trained on"), strict=True):
    plotting.paired_differences(
        differences[differences.text == domain],
        x_label="",
        title=f"Against plain KL: {domain}, {told}",
        ax=ax,
    )
axes[1].get_legend().remove()
axes[1].set_title(axes[1].get_title(), pad=8)
axes[1].set_xlabel("difference to KL, nats a token (left: better than KL)")
show(
    "Two panels, the other kind of text above and the one trained on below: differences to the KL arm, with intervals, for "
    "each other arm of the activation student and for KL with another seed. Cross-entropy lies to the right of zero in the "
    "KL to the teacher in both."
)
differences["who"] = [
    verdict(row.ci_low, row.ci_high, below="better than KL", above="worse") for row in differences.itertuples()
]
differences.set_index(["text", "case", "measure"]).round(3)

# %% [markdown]
# A point right of zero is an arm that ends worse than plain KL on the rows that judge, one to the left an arm that ends better.
# What lies no farther from zero than the point of *seed 1* of the same colour and shape in the same panel is no difference that one run
# can show.

# %%
apart = differences.assign(case=differences.case.str.replace("KL, seed 1", "another seed"))
apart = apart.pivot(index=["text", "measure"], columns="case", values="difference").abs()
compared = len(differences)
print(f"{compared} comparisons with 95 % intervals: by chance alone {0.05 * compared:.1f} of them would exclude 0")
print("how far from plain KL, whatever the direction, nats a token:")
apart[["cross-entropy", "half and half", "another seed"]].round(3)

# %% [markdown]
# **Saved run.** In the KL to the teacher, cross-entropy ends 0.031 nats farther off than KL on wiki and 0.052 on speeches, where
# another order of the text moves only 0.003 and 0.012. That is a difference of losses, as far as one other seed can tell.
#
# **Saved run.** In the nats of the text nothing so clear is seen. On wiki, cross-entropy is not told apart from KL (0.016), and
# half and half is a little better (0.022), less than twice what another order makes (0.012). On speeches both look better, by
# 0.048 and 0.052, and their intervals leave out zero. But there the *same* loss in another order is worse by 0.029, and its
# interval leaves out zero as well (0.012 to 0.047). So an order of the text alone can pass that test. That cross-entropy copies
# the teacher less is shown, as far as one seed tells; that it predicts text better is not.
#
# The intervals know about the *text*: with other rows, how different could it look? They don't know about the *run*; two
# seeds give an idea of it and no more. If a small difference matters to you, spend your tokens on seeds.
#
# ## What they write, and LAMBADA
#
# Numbers are one thing. Here is how the teacher, two untrained and three trained students continue the same two sentences,
# always with the likeliest token.

# %%
told = [
    "teacher",
    "peak_to_peak, pruned",
    "peak-to-peak, KL",
    "activation, pruned",
    "activation, KL",
    "activation, cross-entropy",
]
pd.concat([written[name] for name in told], axis=1).T

# %% [markdown]
# Read the rows in pairs, before and after training. Greedy decoding likes to repeat itself, and a weak model falls into loops;
# that a text is grammatical says little about how near it is to the teacher's.
#
# **Saved run.** The peak-to-peak student writes loose words before training, and loose words that repeat themselves after it; the
# activation student writes English both times. Distilled or not, a student that lost the wrong neurons has little to say.
#
# And the test that nobody practised: the last word of LAMBADA's passages. All models answer the same ones, so they are
# compared passage by passage. Only the activation student takes it; where a model gets nothing right before and after, a
# test shows nothing.
#
# **Predict before you run.** How many right answers does the training add?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# None that could be told from chance, with so few passages and so few steps: 0.07 → 0.05 with KL, one passage fewer, and
# 0.07 → 0.07 with cross-entropy, with p-values of 1.00. The perplexity of the last word says more: it falls to 0.62 times what it
# was with KL, and to 0.63 times with cross-entropy.
#
# </details>

# %%
rows, last_words = {}, {}
for name, frame in lambada.items():  # nats of each passage's last word
    answers = frame.attrs["answers"].table
    last_words[name] = -answers.loc[answers.metric == "perplexity", "value"].to_numpy()
for name in ("activation, KL", "activation, cross-entropy"):
    right = paired(lambada["activation, pruned"], lambada[name]).set_index("metric").loc["acc"]
    first, second = last_words["activation, pruned"], last_words[name]
    mean, _, low, high = ratio_interval(second - first, np.ones(len(first)))
    rows[name] = {
        "right, before → after": f"{right.a:.2f} → {right.b:.2f}",
        "right only after / only before": f"{right.wins:.0f} / {right.losses:.0f}",
        "McNemar's p": f"{right.p:.2f}",
        "perplexity of the last word": f"{shown(np.exp(first.mean()))} → {shown(np.exp(second.mean()))}",
        "ratio, 95 % interval": with_interval(*np.exp([mean, low, high])),
    }
teachers = lambada["teacher"].set_index("metric").loc["acc"]
print(
    f"{len(passages)} passages; the teacher gets {with_interval(teachers.value, teachers.ci_low, teachers.ci_high)} right"
)
pd.DataFrame(rows).T

# %% [markdown]
# A few dozen passages settle only large differences. The accuracy throws away all but right and wrong; the perplexity of the
# last word keeps how nearly right it was, so it sees more with the same passages.
#
# ### How small a gain could be seen?
#
# Take a published one: in Martra's notebooks, a Llama-3.2-1B that had lost 40 % of its MLP neurons went from .299 to .302 by
# distillation. LAMBADA has 5,153 passages. Here is the arithmetic, for two accuracies of which only the totals are known.

# %%
from_, to, passages_asked = 0.299, 0.302, 5_153
one_error = math.sqrt(from_ * (1 - from_) / passages_asked)
error_of_difference = math.sqrt((from_ * (1 - from_) + to * (1 - to)) / passages_asked)
print(f"standard error of one accuracy:   √(.299 · .701 / 5,153) = {one_error:.4f}")
print(f"standard error of the difference: √2 times that          = {error_of_difference:.4f}")
print(f"the gain is {to - from_:.3f}: {(to - from_) / error_of_difference:.1f} standard errors; 2 are the usual rule")
needed = passages_asked * (2 * error_of_difference / (to - from_)) ** 2
print(
    f"about {needed:,.0f} passages ({needed / passages_asked:.0f} LAMBADAs) make such a gain 2 standard errors large."
)
print("Even then it comes out above 2 in one test of two: the test's own chance moves it up as often as down.")

# %% [markdown]
# With the answers to every passage at hand, the paired error can be smaller, because most passages come out the same before
# and after. That is why `evaluate` keeps them. A total alone doesn't allow it. "No change shown" doesn't mean that there is
# no change. It means that this measurement can't tell.
#
# ## What an hour buys
#
# The arms above were kept short so that you can watch. What if one student gets an hour? The next cell reads the
# record of such a run. It was made once, with one command, on one of two CPU cores; the other one had other work to do:
#
# ```bash
# python -m experiments.recover_for_an_hour
# ```
#
# The teacher of the embedded profile, its student pruned by `activation`, forward KL, all weights learn, 600 steps of
# 4 × 256 tokens. Half of the text are scenes from everyday life and advice (HellaSwag's training set), *chosen because the
# goal is LAMBADA*, and LAMBADA is narrative. The rest are speeches, encyclopaedia and a few stories. Killed half-way, the
# same command goes on where it stopped.
#
# **Predict before you run.** After three hundred times as many tokens as our arms had, how much of the gap is closed?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Of 1,000 passages of LAMBADA it got 0.091 right before and 0.216 after, the teacher 0.301: 60 % of the gap. Perplexity recovered by 73 % on
# speeches, 80 % on stories and 60 % on wiki, where the student still stands at 59.3 and the teacher at 34.2.
#
# </details>

# %%
from importlib.resources import files


def an_hour_of(loss):
    return json.loads(files("course_utils").joinpath(f"data/recovery_hour_{loss}.json").read_text(encoding="utf-8"))


record = an_hour_of("forward_kl")
settings = record["settings"]
print(
    f"{record['tokens']:,} tokens in {settings['steps']:,} steps of {settings['rows']} × {settings['length']}, "
    f"{record['seconds'] / 60:.0f} minutes ({record['machine']})"
)
found = ", ".join(f"{name} {count}" for name, count in record["overlaps"].items())
print(f"rows or passages that share 13 words in a row with the training text: {found}")
print(f"{record['lambada'][0]['documents']:,} passages of LAMBADA judge")

figure, ax = plt.subplots(layout="constrained")
curve, measured = pd.DataFrame(record["curve"]), pd.DataFrame(record["validation"])
measured["tokens"] = measured["step"] * record["tokens"] / settings["steps"]
AVERAGED = 5  # recorded steps; one step of ten was recorded
smooth = curve.loss.rolling(AVERAGED, center=True).mean()
ax.plot(curve.tokens / 1e6, curve.loss, color="C0", alpha=0.35, linewidth=1.4, label="training, every tenth step")
ax.plot(curve.tokens / 1e6, smooth, color="C0", linestyle="--", label=f"training, mean of {AVERAGED} of these steps")
ax.plot(measured.tokens / 1e6, measured.loss, color="C1", marker="o", label="held-out text")
ax.set(xlabel="million tokens", ylabel="KL to the teacher, nats a token", title="An hour of distillation")
ax.set_ylim(bottom=0)
ax.legend()
show(
    "KL to the teacher against millions of tokens: a pale jagged line of training steps, a dashed line of their running "
    "mean, and a line with dots for held-out text. All fall fastest at first; held-out text ever more slowly."
)

# %% [markdown]
# The pale line is the loss of single steps, one of every ten; each step reads other text, and it jumps. The dashed line is
# the mean of five of them in a row, forty steps from the first to the last. It falls steeply at first, then slowly and with
# bumps; the held-out line flattens. But at the end the learning rate has fallen to a tenth as well. So this
# figure can't tell whether the student had learned all that it could.

# %%
perplexities, answers = pd.DataFrame(record["perplexity"]), pd.DataFrame(record["lambada"])
perplexities["shown"] = [with_interval(r.value, r.ci_low, r.ci_high) for r in perplexities.itertuples()]
of_the_hour = perplexities.pivot(index="model", columns="text", values="shown").loc[["teacher", "pruned", "recovered"]]
for row in answers.itertuples():
    of_the_hour.loc[row.model, f"LAMBADA {row.metric}"] = with_interval(row.value, row.ci_low, row.ci_high)
nats = {(row.model, row.text): np.array(row.nats) for row in perplexities.itertuples()}  # [rows] each
for domain in perplexities.text.unique():
    units = np.stack([nats[model, domain] for model in ("pruned", "recovered", "teacher")], axis=1)
    low, high = bootstrap_interval(units, share, seed=session.seed)
    print(f"recovery on {domain}: {share(units.sum(0)):.0%} (95 % interval {low:.0%} to {high:.0%})")
gained, missing = (
    pd.DataFrame(record["paired"][name]).set_index("metric").loc["acc"]
    for name in ("pruned to recovered", "recovered to teacher")
)
closed = (gained.b - gained.a) / (missing.b - gained.a)
print(f"LAMBADA, {gained.pairs:,.0f} passages: {gained.a:.3f} → {gained.b:.3f}", end=" ")
print(f"({gained.ci_low:+.3f} to {gained.ci_high:+.3f}), p = {gained.p:.2g}")
print(f"the teacher has {missing.b:.3f}: {closed:.0%} of the gap is closed")
of_the_hour

# %% [markdown]
# An hour brings more than half of the way back, on a machine without a GPU. (Don't set its perplexities beside the arms above: it
# was judged on other rows, twice as long, and all of its weights learned.)
#
# But was it the *teacher*, or would the text alone have done? The control is the same student, the same tokens in the same
# order, the same steps, and cross-entropy in place of the teacher (`--loss cross_entropy`):
#
# **Predict before you run.** How much worse is the student that had no teacher?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It isn't. On stories and speeches it is the better one (14.7 against 18.0, 33.2 against 35.3), on wiki the worse (65.7 against
# 59.3). Of LAMBADA it gets 0.25 right (0.22 to 0.28), the other 0.22 (0.19 to 0.24), and the perplexities of the last word are 111.8
# and 110.0.
#
# </details>

# %%
without = an_hour_of("cross_entropy")
assert {**without["settings"], "loss": ""} == {**settings, "loss": ""}  # nothing else differs
print(f"without a teacher: {without['tokens']:,} tokens, {without['seconds'] / 60:.0f} minutes ({without['machine']})")
alone = pd.DataFrame(without["perplexity"]).set_index(["model", "text"])
hours = {}
for (model, domain), row in perplexities.set_index(["model", "text"]).iterrows():
    more, _, low, high = ratio_interval(np.array(alone.nats[model, domain]) - np.array(row.nats), np.array(row.tokens))
    hours[domain, model] = {
        "hour with a teacher": f"{row.value:.1f}",
        "hour without": f"{alone.value[model, domain]:.1f}",
        "without / with, paired": with_interval(*np.exp([more, low, high])),
    }
for metric in answers.metric.unique():
    for name, one in {"with": record, "without": without}.items():
        of_it = pd.DataFrame(one["lambada"]).query("metric == @metric").set_index("model")
        in_words = [
            f"{m} {with_interval(*of_it.loc[m, ['value', 'ci_low', 'ci_high']])}" for m in ("pruned", "recovered")
        ]
        print(f"LAMBADA {metric}, {name} a teacher: {', '.join(in_words)}")
pd.DataFrame(hours).T.loc[lambda frame: frame.index.get_level_values(1) != "teacher"]

# %% [markdown]
# So the text alone gives back as much on stories and speeches, and more; on wiki the teacher gives more. Each is one run,
# without a second seed. The intervals, over rows, are clear in both directions: without a teacher 0.82 times the perplexity on
# stories (0.79 to 0.84), 0.94 on speeches (0.90 to 0.98), and 1.11 on wiki (1.07 to 1.15). The records keep no answers passage
# by passage, so LAMBADA can't be compared in pairs: undecided.
#
# Our guess, not tested: cross-entropy learns how *these* stories and speeches go, and a student that copies a teacher who never saw
# them learns less of it. An encyclopaedia is wider: there the teacher knows more than the articles in the training text say. All
# three kinds were trained on; a kind that neither student has seen would tell more. What it means for you: before you pay for a
# teacher, train without one at equal tokens. (The teacher can be taught the text first. Lesson 11 does that.)
#
# Half of the text was chosen for the test. And this can't be set against the published .299 → .302: that is another model, cut by
# another criterion, trained on other text.

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# **Judge the claims.** Which of these does the hour's output *not* show? Give the letters as a set, such as `{"A", "B"}`.
#
# - **A** The student answers more of LAMBADA's passages after the hour than before.
# - **B** With the reverse KL in place of the forward KL the student would not have come so far.
# - **C** On stories the student has come nearer to its teacher's perplexity than on encyclopaedia.
# - **D** With ten hours it would reach the teacher.
# - **E** Pruning by activation and an hour of training beats the published recovery of Llama-3.2-1B.
# - **F** The gain on LAMBADA is more than chance in the choice of passages would explain.
#
# <details><summary>Hint</summary>
#
# For each claim ask which two things are compared, and whether both were measured, on the same model and the same text.
#
# </details>

# %% tags=["exercise"]
# BEGIN SOLUTION
# B names an arm that was not run, D goes beyond the curve, E compares different models, cuts and texts.
not_shown = {"B", "D", "E"}


# END SOLUTION
# BEGIN STUB
# not_shown = ...  # a set of letters
# END STUB
check_not_shown(not_shown)

# %% [markdown]
# ## What the arms did not try
#
# - **Hidden-state losses** pull the student's hidden states toward the teacher's, block by block. Where widths differ they
#   need a learned projection, and after depth pruning a choice of which block imitates which. In Minitron's ablations they
#   help where the depth shrinks much; otherwise the logits alone are enough
#   ([Muralidharan et al.](https://arxiv.org/abs/2407.14679)). `distill` has the logits' losses only.
# - **Teacher correction.** When the text that you have isn't the text that the teacher was trained on, its own predictions
#   are off there. Minitron's second paper first trains the *teacher* briefly on the transfer text, then distils, and finds
#   that this helps ([Sreenivas et al.](https://arxiv.org/abs/2408.11796)). Lesson 11 does it.
# - **On-policy distillation**: the student writes, the teacher judges every token of it. Then the student learns from its
#   own mistakes instead of from text that it would never have written
#   ([Agarwal et al.](https://arxiv.org/abs/2306.13649); a compact account is
#   [Thinking Machines Lab's](https://thinkingmachines.ai/blog/on-policy-distillation/)). It matters for long answers, and it
#   needs a student that can already write.
#
# None of these was measured here, nor was LoRA (see the memory plan).
#
# ### Exercise 4 · ●●○ · 10 minutes
#
# **Design the control.** An experiment is described by a dict, such as
#
# ```python
# {"criterion": "activation", "alpha": 0.0, "steps": 600, "lr": 2e-4, "text": "speeches", "seed": 0}
# ```
#
# (`alpha` is the cross-entropy's share; `criterion` how the neurons were chosen.) Write `control(arm, claim)`: the arm that
# must be run beside it before the claim can be made. Three claims:
#
# - `"the teacher helps"`
# - `"the choice of neurons helps"`
# - `"it is more than the luck of one run"`
#
# Return a new dict that differs from the arm in what the claim is about, **and in nothing else**.
#
# <details><summary>Hint</summary>
#
# Without its teacher, an arm still trains, on the same tokens. For the neurons, the plainest choice is the right opponent.
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
def control(arm, claim):
    changes = {
        "the teacher helps": {"alpha": 1.0},
        "the choice of neurons helps": {"criterion": "random"},
        "it is more than the luck of one run": {"seed": arm["seed"] + 1},
    }
    return arm | changes[claim]


# END SOLUTION
# BEGIN STUB
# def control(arm, claim):
#     ...  # your code
# END STUB
check_control(control)

# %% [markdown]
# ## What it costs and buys

# %%
from course_utils.benchmarking import flops_per_token

forward = {"teacher": flops_per_token(teacher, LENGTH), "student": flops_per_token(keeper, LENGTH)}
learn = sum(part.weight.numel() for mlp in describe(keeper).mlps for part in (*mlp.inputs, mlp.output))
learn /= keeper.num_parameters()
# A backward pass takes the gradients by the states (one forward pass's worth) and by the weights that learn.
each_arm = (2 + learn) * forward["student"] * training.num_tokens / 1e12
costs = {
    name: {
        "tokens predicted": f"{runs[name].tokens:,}",
        "seconds": f"{runs[name].seconds:.0f}",
        f"perplexity, {OTHER}": shown(main.after[name]),
        f"KL, {OTHER}": shown(nats_a_token(after[name], OTHER, 1)),
    }
    for name in ARMS
}
asked = forward["teacher"] * known.tokens / 1e12
print(f"{learn:.0%} of the student's weights learn; about {each_arm:.1f} TFLOP an arm")
print(f"the teacher read everything once, for all arms: {asked:.1f} TFLOP")
print(
    f"For scale: Llama-3.1-Minitron-4B learned from 94 billion tokens, {94e9 / training.num_tokens:,.0f} times as many."
)
pd.DataFrame(costs).T

# %% [markdown]
# Training changes no shape: the student keeps the size and speed that the cut gave it. Seconds depend on the machine and on what
# else it does, and the arms ran one after the other, not in turns: they don't say which loss is faster. The floating-point
# operations are the same everywhere. A KL needs the teacher's head, and the arms with KL alone also look at the watched text. The
# teacher's blocks cost no arm anything, because the teacher was asked once for all; where every token is new, distilling costs
# one teacher's forward pass more.
#
# The model that was measured should be the model that is kept. So save it, load it as a stranger would, and compare.

# %%
from course_utils.checkpoints import load_pruned, save_pruned

with torch.no_grad(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    probe = judges[OTHER].input_ids[:1]
    expected = keeper(probe).logits
    save_pruned(keeper, tokenizer, folder)
    del keeper, student
    reloaded, _ = load_pruned(folder, dtype=stored, device="cpu")
    assert torch.equal(reloaded(probe).logits, expected)
print(f"'activation, KL', saved and loaded: {type(reloaded).__name__}, logits equal, bit for bit")
del reloaded

# %% [markdown]
# ## Stopping and going on
#
# A few steps are nothing to lose. A night on a borrowed GPU is. With a `checkpoint_dir`, `distill` saves the student, the
# optimiser and the history every few steps, in one file that is written beside the old one and moved over it. A later call
# with the same settings goes on there.
#
# "Goes on" is easily said. The test is strict: **every loss must equal that of a run that was never interrupted.** That takes
# the optimiser's memory, the place in the data, the random numbers and the learning rate. We pull the plug in step 8 of 12.

# %%
from course_utils.distillation import CheckpointMismatch

settings = {"steps": 12, "lr": 3e-3, "save_every": 4}
unbroken = distill(tiny_teacher, pruned_tiny(tiny_teacher), tiny_text, **settings)

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    victim, passes = pruned_tiny(tiny_teacher), itertools.count(1)

    def power_cut(*_):
        if next(passes) == 8:
            raise KeyboardInterrupt

    victim.model.register_forward_pre_hook(power_cut)
    try:
        distill(tiny_teacher, victim, tiny_text, **settings, checkpoint_dir=folder)
    except KeyboardInterrupt:
        print("interrupted in step 8")
    resumed = distill(tiny_teacher, pruned_tiny(tiny_teacher), tiny_text, **settings, checkpoint_dir=folder)
    try:  # the same folder with another learning rate would mix two runs
        distill(tiny_teacher, pruned_tiny(tiny_teacher), tiny_text, **settings | {"lr": 1e-3}, checkpoint_dir=folder)
    except CheckpointMismatch as error:
        print("other settings are refused:", str(error).split(". ")[1])

both = pd.DataFrame({"unbroken": unbroken.frame().loss, "resumed": resumed.frame().loss})
both.index = unbroken.frame().step
on_cpu = session.device.type == "cpu"  # where sums run in a fixed order
np.testing.assert_allclose(both.unbroken, both.resumed, rtol=0 if on_cpu else 1e-4)
print(f"{len(both)} losses, {'all equal, bit for bit' if on_cpu else 'equal within rounding'}")
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
both = pd.DataFrame({"3 rows at once": at_once.frame().loss, "row by row, accumulated": one_by_one.frame().loss})
np.testing.assert_allclose(both.iloc[:, 0], both.iloc[:, 1], rtol=1e-3)
print(f"largest difference of the losses: {(both.iloc[:, 0] - both.iloc[:, 1]).abs().max():.0e}")

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
# ### When text is too long to remember
#
# Hidden states are fine for a lesson's text. For a billion tokens they are not, and the teacher's probabilities of all words
# still less. So a cache on disk keeps only the *k* likeliest words of each token, and the rest of the probability as one
# number, the **tail**. The loss then compares k + 1 classes.
#
# That is a *biased* estimate: merging classes can only make a divergence smaller. By how much? And, what matters more for
# learning, how far is the gradient off?
#
# **Predict before you run.** How many of the vocabulary's words does the cache need to get the gradient right within 10 %?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# More than most guess: 64 words leave an error of 0.207 of the gradient's length, 256 words one of 0.131, and 1,024 words one of
# 0.039. The direction is right much earlier (a cosine of 0.985 at 64). Even 256 words take 1,026 bytes a token, nearly as much as
# the hidden states above, which have no bias.
#
# </details>

# %%
from course_utils.distillation.teacher_cache import cache_bias

student, working = fresh_student("activation").float().requires_grad_(False), on_device(teacher)
for mlp in describe(student).mlps[::6]:  # the gradient by every sixth MLP is enough to see
    mlp.owner.requires_grad_(True)
bias_of_cache = cache_bias(working, student, watched.batches(1)[:1], ks=(1, 16, 64, 256, 1024))
del student, working

figure, axes = plt.subplots(2, 1, figsize=(9, 7), layout="constrained")
axes[0].plot(bias_of_cache.k, bias_of_cache.kl, marker="o", label="from the cache")
axes[0].axhline(bias_of_cache.exact_kl.iloc[0], color="0.25", linestyle=":", label="exact")
axes[0].set(ylabel="KL, nats a token")
axes[0].legend(loc="lower right")
axes[1].plot(bias_of_cache.k, 100 * bias_of_cache.gradient_error, marker="o")
axes[1].set(ylabel="gradient's error\n(% of its length)", xlabel="k, words kept for each token")
for ax, top in zip(axes, (bias_of_cache.exact_kl.max(), 100 * bias_of_cache.gradient_error.max()), strict=True):
    ax.set_xscale("log", base=2)
    ax.set_xticks(bias_of_cache.k, bias_of_cache.k)
    ax.set_ylim(0, 1.12 * top)  # room above the exact value and the first point
show(
    "Two panels against the number of words kept for each token. Above, the KL from the cache rises toward the exact "
    "value and stays below it. Below, the error of the gradient falls steeply."
)
bias_of_cache.rename(columns={"others": "tail"}).round(3)

# %% [markdown]
# The KL from the cache is always too small, and the error of the gradient falls with k: the words that matter most for
# learning are the likely ones, but not only they. `cache_teacher` writes such a cache, resumably, and says beforehand how
# large it gets; `distill` takes it in the teacher's place. How to make it unbiased, by drawing words at random, is told by
# [Anshumann et al.](https://arxiv.org/abs/2503.16870).

# %% [markdown]
# ## More exercises
#
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
# One half of this loss teaches nothing. No error is raised, and a curve that falls is no proof: it would fall if only one half
# worked. A test can tell.
#
# ### Exercise 5 · ●●● · 20 minutes
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
# ### Six steps
#
# The last exercise trains. This cell prepares it: the activation student, six steps, and rows of a split that nobody has
# trained on or been judged by.

# %%
FEW = 6
judged = rows_of("calibration", OTHER, 12)
known_of_judged = remember_teacher(on_device(teacher), judged.batches(1), precision=precision)


@torch.no_grad()
def kl_of_rows(student):
    """The KL to the teacher of each row that judges here, nats a token."""
    parts = describe(student)
    rows = read_batches(judged.batches(1), vocab_size=parts.vocab_size, device=student.device)
    return np.array([known_of_judged.batch_loss(parts, row).item() / (LENGTH - 1) for row in rows])


def held_out_kl(settings):
    """Train the activation student for a few steps with these settings; its KL to the teacher on each held-out row."""
    student = fresh_student("activation")
    recipe = Recipe(**{"lr": LR / 2, "precision": precision, **FITTING, **settings, "steps": FEW})
    distill(known, student, training.batches(ROWS), recipe)
    cast_weights(student, dtype)
    return kl_of_rows(student)


# %% [markdown]
# ### Exercise 6 · ●●● · 20 minutes
#
# **Beat the baseline.** Six steps, no more: how near to its teacher can you bring the activation student? Give settings of
# `Recipe` as a dict, such as `{"lr": 5e-5, "warmup": 0.2}`; the steps and the text are fixed. `held_out_kl` trains a fresh
# student with them and returns the KL to the teacher for each row of text that nobody has trained on or been judged by. The
# check compares yours with a plain recipe (half the learning rate of the arms above, nothing else changed), paired by rows,
# and prints both.
#
# Try things out with `held_out_kl(settings)` in a cell of your own (some ten seconds each on two cores). Strictly speaking, you
# would try on one set of rows and be judged on another: what you choose on the judge's rows looks a little too good. With a
# handful of tries, that is little.
#
# <details><summary>Hint</summary>
#
# Which settings matter when only six steps are left? The learning rate is the first to look at: the plain one is
# cautious. Watch what a much larger one does. Then the warm-up: what share of six steps does it take?
#
# </details>


# %% tags=["exercise"]
# BEGIN SOLUTION
# A short run has to take larger steps; the clipping keeps the first ones in bounds.
settings = {"lr": 5e-4}


# END SOLUTION
# BEGIN STUB
# settings = ...  # a dict, such as {"lr": 1e-4}
# END STUB
check_better_recipe(settings, held_out_kl)

# %% [markdown]
# ## Three questions

# %% [markdown] tags=["quiz"]
# A student trained on speeches ends with a lower perplexity *on speeches* than its teacher. What has been shown?
#
# - [ ] It has become a better language model than its teacher.
#   > Tempting, since lower is better. But it was only measured on the kind of text that it was trained on.
# - [x] That it fits speeches. Whether it recovered, another kind of text has to say.
#   > On the training's kind of text, fitting and recovery can't be told apart.
# - [ ] That the teacher was a bad one.
#   > The teacher never trained on these speeches in particular; it may be better everywhere else.

# %% [markdown] tags=["quiz"]
# Two students distilled with the same loss and tokens recover 70 % and 30 % of what pruning took. Which one do you keep?
#
# - [ ] The one that recovered 70 %.
#   > Recovery is relative to its own beginning. One that lost more has more to win back, and may still end behind.
# - [ ] Neither can be judged before both have trained longer.
#   > More training helps both, but they can be compared now, on the same held-out rows.
# - [x] That can't be said from these two numbers. Compare where they end, on the same rows.
#   > The student that lost little recovers a small share of little, and may be far ahead, as here.

# %% [markdown] tags=["quiz"]
# The loss of a distillation falls steadily. Half of it is a cross-entropy, half a KL. What does the curve prove about the KL?
#
# - [ ] That it works: a term without an effect would keep the loss up.
#   > The KL's *value* may fall because the cross-entropy improves the student, even when the KL's gradient is zero.
# - [x] Nothing. Only its gradient can: change the teacher, and the gradient must change, in the right direction.
#   > That is the test of exercise 5.
# - [ ] That temperature and weights are set well.
#   > A falling sum says nothing about its parts.

# %% [markdown]
# ## Take-aways
#
# - **First cut well, then train.** Which neurons you keep mattered far more than which loss you trained with.
# - A teacher's distribution says in one token what many words of text say on average. Its gradient is q − p.
# - Shift, mask, and divide by the tokens of the step. Then the curve is the same for every batch size and every number of GPUs.
# - The logits are the largest tensors. Take the head and the loss in chunks, and they are gone, with equal gradients. A teacher
#   that several students learn from is asked once, and its hidden states are kept.
# - Whether a run fits is arithmetic: 16 bytes a trained parameter, plus the rest. Train what was cut, and a small GPU will do.
# - A better perplexity on the training's kind of text is fitting until another kind of text says otherwise. And a recovery
#   shows training until an arm without a teacher, at equal tokens, says otherwise. Ours said: on two of three kinds of text the
#   student without a teacher came out ahead.
# - A gain counts when its interval, paired, excludes zero, and when it is larger than what another seed does.
# - A loss that falls proves nothing about its parts. Test each part's gradient: does it move the student to the teacher?
# - A resumed run must equal an unbroken one, loss by loss.
#
# ## References
#
# - G. Hinton, O. Vinyals and J. Dean, *Distilling the Knowledge in a Neural Network*, 2015,
#   [arXiv 1503.02531](https://arxiv.org/abs/1503.02531): soft targets, temperature and its square
# - S. Muralidharan et al., *Compact Language Models via Pruning and Knowledge Distillation*, 2024,
#   [arXiv 2407.14679](https://arxiv.org/abs/2407.14679): prune, then distil from the original; forward KL of the logits
# - S. Sreenivas et al., *LLM Pruning and Distillation in Practice: The Minitron Approach*, 2024,
#   [arXiv 2408.11796](https://arxiv.org/abs/2408.11796): Llama-3.1-Minitron-4B, 94 billion tokens, teacher correction
# - R. Agarwal et al., *On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes*, 2024,
#   [arXiv 2306.13649](https://arxiv.org/abs/2306.13649), and Y. Gu et al., *MiniLLM*, 2024,
#   [arXiv 2306.08543](https://arxiv.org/abs/2306.08543): other divergences; `distill` has "reverse_kl" and "jsd"
# - P.-L. Hsu et al., *Liger Kernel: Efficient Triton Kernels for LLM Training*, 2024,
#   [arXiv 2410.10989](https://arxiv.org/abs/2410.10989): the head and the loss in chunks
# - E. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021,
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685); T. Dettmers et al., *QLoRA*, 2023,
#   [arXiv 2305.14314](https://arxiv.org/abs/2305.14314); X. Ma et al., *LLM-Pruner*, 2023,
#   [arXiv 2305.11627](https://arxiv.org/abs/2305.11627): recovery of pruned models with LoRA
# - Anshumann et al., *Sparse Logit Sampling*, 2025, [arXiv 2503.16870](https://arxiv.org/abs/2503.16870): the bias of
#   top-k caches
# - T. Brown et al., *Language Models are Few-Shot Learners*, 2020, [arXiv 2005.14165](https://arxiv.org/abs/2005.14165),
#   appendix C: runs of thirteen words against contamination
# - D. Paperno et al., *The LAMBADA dataset*, 2016, [arXiv 1606.06031](https://arxiv.org/abs/1606.06031)
# - P. Martra, *Large Language Model Notebooks Course*, section on pruning: recovery by distillation after 40 % width pruning,
#   the quoted .299 and .302
#
# **Next:** lesson 08 looks inside: how activations differ when one word of a sentence changes.
