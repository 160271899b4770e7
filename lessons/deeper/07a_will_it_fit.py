# ---
# jupyter:
#   course:
#     title: "Does it teach, does it fit, does it survive the night?"
#     minutes: 85 to 105 minutes
#     prerequisites: lesson 07 (training, with a teacher or without)
#     assets: []
#     concepts: [KL divergence, cross-entropy, logits in chunks, LoRA, memory plan, recomputed activations, checkpoint of a run]
# ---

# %% [markdown]
# ## The question
#
# You want to distil a model that is larger than the course's, and it takes a night. Three things can go wrong. The loss falls, and
# nothing is learned from the teacher. The card is too small. The night is cut short. What do you test before you go to bed?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Test the loss on random logits: take its gradient with the teacher, and with a teacher who says what the student says.
# The difference is what the teacher teaches. Then count before you start. The logits are the largest tensors, but they needn't
# exist all at once. Then come gradients and averages: twelve bytes for each weight that learns. A LoRA learns few weights, so it
# has few of those; its steps are hardly shorter. And a run that saves its optimiser, too, goes on after a power cut as if nothing
# had happened.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** what ruins a night can be found in a minute: a dead loss by its gradient, "out of memory after ten minutes" by the
# configuration.
#
# **On the board:** the five words by hand.
#
# **Usual questions:** "Why float32?" The steps of a training are smaller than what 16 bits can tell apart.
#
# **Wrong turns:** shifting one of the two distributions; trusting a loss that falls; counting weights and forgetting gradients;
# forgetting logits; a checkpoint without the optimiser.
#
# **At the end you have** a loss that you have tested, a backward pass that never holds all logits, a plan for your own model, and a
# run that was killed and wasn't harmed.

# %% tags=["install"]

# %%
import copy
import itertools
import tempfile
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.healing import CheckpointMismatch, Recipe, distill
from course_utils.healing.distillation.memory import memory_plan, outline
from course_utils.lessons import here
from course_utils.models import tiny_llama
from course_utils.pruning import neuron_importance, prune_neurons
from course_utils.support import mark, read_record, show, start, style

session = start("07a")
style()

# %%
SHAPES = {
    "1B": (128_256, 2048, 8192, 16, 32, 8, True),
    "8B": (128_256, 4096, 14_336, 32, 32, 8, False),
}
SETTINGS = {
    "everything": {},
    "MLPs": {"mlps_only": True},
    "LoRA": {"lora_rank": 16},
}
NAMES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
NAMES += ["num_attention_heads", "num_key_value_heads", "tie_word_embeddings"]


def gigabytes(size, **settings):
    """The parts of a plan for a Llama 3 that loses 40 % of its neurons."""
    config = LlamaConfig(**dict(zip(NAMES, SHAPES[size], strict=True)))
    narrow = outline(config, intermediate_size=int(0.6 * config.intermediate_size))
    recipe = Recipe(steps=1, lr=1e-4, recompute=True, **settings)
    sizes = {"rows": 4, "length": 512, "teacher_states": True}
    plan = memory_plan(outline(config), narrow, recipe, **sizes)
    return {part: size / 2**30 for part, size in plan.items()}


plans = {}
for size in SHAPES:
    plans[size] = {what: gigabytes(size, **kw) for what, kw in SETTINGS.items()}

# %%
_, panels = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
for panel, size in zip(panels, SHAPES, strict=True):
    parts = pd.DataFrame(plans[size]).T
    parts.plot.barh(stacked=True, ax=panel, legend=False)
    panel.set(xlabel="GiB", title=f"Llama 3, {size}")
    panel.invert_yaxis()
    card = {"1B": 14.7, "8B": 79}[size]
    panel.axvline(card, color=mark("whole")["color"], linestyle="--")
    name = "T4" if size == "1B" else "80 GB card"
    panel.annotate(name + " ", (card, 0.55), ha="right")
panels[0].legend(loc="lower right", fontsize="small")
show(
    "Two panels of stacked bars, GiB that a distillation holds when everything, "
    "MLPs or a LoRA learns: gradients and averages are most of the first bar and "
    "nearly gone in the last. A dashed line shows the card."
)

# %% [markdown]
# *Planned from shapes alone, in float32: 40 % of the neurons gone, four rows of 512 tokens, activations computed twice. The teacher
# was asked beforehand, and what its last block gave lies on the disk; so of the teacher only the head is in memory.*
#
# We come back to this figure. The first question is what such a night learns.
#
# ## Two losses
#
# A student can learn from the text alone, or from the teacher (**distillation**). "After lunch she went back to …": here is what
# teacher $p$ and student $q$ think of five words. In the text at hand, *school* came. There are two losses:
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_w p_w \ln \frac{p_w}{q_w} \qquad\qquad \mathrm{cross\text{-}entropy} = -\ln q_{\mathrm{school}}$$
#
# In the student's logits their gradients are $q - p$ (KL), and $q$ less 1 for the word that came. A step goes against them.
#
# **Predict before you run.** The teacher gives *bed* 0.20, the student 0.25, and it didn't come. What does a step of each loss do
# to the *logit* of *bed*, and which of the two pushes harder? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The student says *bed* a little too often, so the KL pushes its logit down a little (0.05). The cross-entropy pushes it down by
# all that the student gives it (0.25), as if it were wrong: every word but one is.
#
# </details>

# %%
WORDS = ["work", "school", "bed", "town", "banana"]
p = torch.tensor([0.45, 0.25, 0.20, 0.08, 0.02])
logits = torch.tensor([0.10, 0.20, 0.25, 0.05, 0.40]).log().requires_grad_()
log_q, came = logits.log_softmax(-1), WORDS.index("school")
losses = {"KL": (p * (p.log() - log_q)).sum(), "cross-entropy": -log_q[came]}
table = {"teacher p": p, "student q": log_q.exp().detach()}
table = pd.DataFrame(table, index=WORDS)
for name, loss in losses.items():
    (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
    table[f"push of {name}"] = -slope.numpy()
table.round(2)

# %% [markdown]
# Is cross-entropy unfair to *bed*? On this one text, yes: *bed* was a good guess and gets punished. On a thousand texts it comes up
# as often as it deserves, and the unfairness cancels. It cancels only if the text you train on is the text that the teacher has in
# mind. Lesson 07's speeches weren't: there, text alone was ahead on speeches and behind on wiki.
#
# And look at a student that agrees with the teacher, $q = p$. The KL's gradient is then 0 at every word: **a teacher who agrees
# exerts no pull.** Cross-entropy knows no teacher, so it pulls all the same. We shall need that.
#
# A model predicts at every position, so three things can go wrong in a loss. **Shift**: the logits at position $i$ belong to token
# $i + 1$, so the last position counts for nothing. **Mask**: padding isn't text, so only a real token predicted from a real one
# counts. **One mean**: a step's loss is the sum over all its positions, divided once, however the step is cut into batches.

# %% [markdown]
# ### Exercise 1 · ●●○ · 8 minutes
#
# Write `kl_sum(student_logits, teacher_logits, mask)`: logits [rows, length, vocabulary] in any dtype, mask [rows, length]. Return
# the sum of the KL over all positions that count, and their number.
#
# <details><summary>Hint</summary>
#
# `.float().log_softmax(-1)` of both, without their last position. A position counts where `mask` is 1 there and at the next one.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_kl_sum


# BEGIN SOLUTION
def kl_sum(student_logits, teacher_logits, mask):
    log_q = student_logits[:, :-1].float().log_softmax(-1)
    log_p = teacher_logits[:, :-1].float().log_softmax(-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    counted = mask[:, :-1].bool() & mask[:, 1:].bool()
    return each[counted].sum(), counted.sum()


# END SOLUTION
# BEGIN STUB
# def kl_sum(student_logits, teacher_logits, mask):
#     ...  # your code
# END STUB
check_kl_sum(kl_sum)

# %% [markdown]
# ## Does it teach?
#
# A loss that falls proves nothing. Say you train on the sum of both losses, and by mistake the KL has no gradient. The
# cross-entropy moves the student toward the text, a little toward the teacher too, and so the KL's number falls as well. Can you
# test a loss before you spend a night on it?

# %% [markdown]
# ### Exercise 2 · ●●● · 17 minutes
#
# Write `teaches(loss)`. `loss(student_logits, teacher_logits, targets)` takes logits [tokens, vocabulary] of any size and the words
# that came [tokens], and returns one number. It may or may not contain a cross-entropy. Return True if its **teacher's part** moves
# a student toward the teacher, otherwise False. It moves if a small step along it brings the KL down by at least half of what
# the KL's own step does. (Use what you know of a teacher who agrees. Your `kl_sum` tells how far a student is
# from the teacher; until it passes its check, `check_kl_sum.accepted` is the course's.)
#
# <details><summary>Hint</summary>
#
# Make random logits and look at gradients (`torch.autograd.grad`; a value without `requires_grad` has none). Take the gradient
# with the teacher, and with a teacher who says exactly what the student says. Subtract. Then take a small step against what is
# left. Does the KL fall about as much as by a step of the same length against its own gradient, $q - p$?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_teaches


# BEGIN SOLUTION
def teaches(loss):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, 11, generator=generator)
    targets = torch.randint(11, (64,), generator=generator)

    def gradient(says):
        logits = student.clone().requires_grad_()
        value = loss(logits, says, targets)
        alive = value.requires_grad
        return torch.autograd.grad(value, logits)[0] if alive else 0 * student

    def nearer(direction):
        step = 0.01 * direction / direction.norm()
        return distance(student) - distance(student - step)

    def distance(logits):
        return kl_sum(logits[None], teacher[None], torch.ones(1, 64))[0]

    # What doesn't depend on the teacher cancels: one who agrees exerts no pull.
    pull = gradient(teacher) - gradient(student)
    if pull.norm() < 1e-6:
        return False
    kl_pull = student.softmax(-1) - teacher.softmax(-1)
    return bool(nearer(pull) > nearer(kl_pull) / 2)


# END SOLUTION
# BEGIN STUB
# def teaches(loss):
#     ...  # your code
# END STUB
check_teaches(teaches)

# %% [markdown]
# ## Would the night have told you?
#
# Let us train with a dead KL, and watch its number. Our student is as small as can be: for each of 16 texts it has a row of logits, eleven
# words wide. The teacher knows how likely each word is to come next, and four words have come after each text, drawn from what it
# says. The loss is the sum of KL and cross-entropy, once as it should be, and once with a KL that has no gradient.
#
# **Predict before you run.** You plot the KL, step by step. Can you tell the dead one after ten steps? And after three hundred?
# Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Hardly after ten: both have fallen far, because the words come from the teacher. Later the dead one turns: from 0.55 it
# climbs to 1.04. The student learns these words by heart, and nothing holds it to the teacher. The living one ends at 0.15.
#
# </details>

# %%
generator = torch.Generator().manual_seed(session.seed)
begin, knows = torch.randn(2, 16, 11, generator=generator)
says = (2 * knows).softmax(-1)
came = torch.multinomial(says, 4, True, generator=generator)


def train(dead):
    """The KL before each of 300 steps."""
    logits, watched = begin.clone().requires_grad_(), []
    for _ in range(300):
        log_q = logits.log_softmax(-1)
        kl = (says * (says.log() - log_q)).sum(-1).mean()
        loss = (kl.detach() if dead else kl) - log_q.gather(1, came).mean()
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - 4 * slope).detach().requires_grad_()
        watched.append(kl.item())
    return watched


# %%
_, panel = plt.subplots(figsize=(9, 4), layout="constrained")
dead, living = train(dead=True), train(dead=False)
panel.plot(dead, **mark("wrong") | {"label": "a dead KL", "marker": ""})
panel.plot(living, **mark("whole") | {"label": "a living KL", "marker": ""})
panel.set(xlabel="step", ylabel="KL (nats per word)", ylim=(0, None))
panel.legend()
show(
    "The KL of two trainings. Both fall at first. The living one stays low; the "
    "dead one turns after thirty steps and climbs."
)
for name, watched in {"dead": dead, "living": living}.items():
    told = f"{name}: {watched[0]:.2f} at first, {watched[10]:.2f} after ten steps"
    print(f"{told}, {min(watched):.2f} at best, {watched[-1]:.2f} in the end")
margins = [dead[0] * 0.7 - dead[10], dead[-1] - 1.4 * min(dead)]
here("A dead KL falls at first, and climbs later.", margins)

# %% [markdown]
# *The KL of two students, as a log would show it. In one of them its gradient is missing.*
#
# With more text the dead one turns later: the words then say nearly what the teacher says. So the more text you have, the longer such
# a mistake hides. Your test finds it before the first step.

# %% [markdown]
# ## The largest tensors
#
# A hidden state has a few thousand numbers per token. Logits have one for each word of the vocabulary, 128,256 in a Llama 3, and the
# KL makes more tensors of that size, all in float32. Count them in $\sum p\,(\log p - \log q)$: the student's logits and $\log q$,
# the teacher's logits and $\log p$, then $p$, the difference, and the product. Does the memory agree?

# %%
from course_utils.measuring import peak_memory

TOKENS, VOCABULARY = 64, 49_152
hidden = torch.randn(TOKENS, 8, device=session.device)
head = torch.randn(8, VOCABULARY, device=session.device, requires_grad=True)


def loss_of_one_chunk():
    student, teacher = hidden @ head, (hidden + 1) @ head.detach()
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    (log_p.exp() * (log_p - log_q)).sum().backward()


one = 4 * TOKENS * VOCABULARY  # bytes of one tensor
held = peak_memory(loss_of_one_chunk, device=session.device) / one
print(f"at the worst moment as much memory as {held:.1f} such tensors")

# %% [markdown]
# For four rows of 512 tokens of a Llama 3, seven such tensors take 7 GiB. (Written so that nothing keeps the two logits by a name,
# five do.) But hidden states are small. So keep those, and run the
# head on a few tokens at a time: take the loss *and its gradient* of this chunk, and forget its logits.

# %% [markdown]
# ### Exercise 3 · ●●● · 12 minutes
#
# Write `backward_in_chunks(states, loss_of, size)`. `states` [tokens, hidden] come out of the student's body, whose graph hangs on
# them. `loss_of(part, start)` runs the head on `part`, the states of the tokens from `start` on, and gives the *sum* of their
# losses. Leave the gradients of the mean loss with body and head; return the mean loss.
#
# <details><summary>Hint</summary>
#
# `leaf = states.detach().requires_grad_()` stands between head and body. Each chunk's `backward()` adds to `leaf.grad`. In the end
# the body gets it, once: `states.backward(…)`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_chunks


# BEGIN SOLUTION
def backward_in_chunks(states, loss_of, size):
    leaf, total = states.detach().requires_grad_(), 0.0
    for first in range(0, len(leaf), size):
        loss = loss_of(leaf[first : first + size], first) / len(leaf)
        loss.backward()
        total += loss.item()
    states.backward(leaf.grad)
    return total


# END SOLUTION
# BEGIN STUB
# def backward_in_chunks(states, loss_of, size):
#     ...  # your code
# END STUB
check_chunks(backward_in_chunks)

# %% [markdown]
# ## What it saves
#
# A tiny Llama with a grown-up's vocabulary learns from a tiny teacher, with all logits at once and in chunks of 64.
#
# **Predict before you run.** We double the text. What happens to the memory of each?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# All at once it doubles. In chunks it stays nearly where it is, with equal gradients.
#
# </details>

# %%
wide = tiny_llama(blocks=2, vocab_size=VOCABULARY).to(session.device)
pupil = copy.deepcopy(wide)
prune_neurons(pupil, neuron_importance(pupil, "random"), ratio=0.5)


def learn(ids, size):
    """The KL of a text and its gradients, so many tokens at a time."""
    pupil.zero_grad()
    with torch.no_grad():
        known = wide.model(ids).last_hidden_state[0]
    states = pupil.model(ids).last_hidden_state[0]

    def loss_of(part, start):
        with torch.no_grad():
            log_p = wide.lm_head(known[start : start + len(part)]).log_softmax(-1)
        log_q = pupil.lm_head(part).log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum()

    return check_chunks.accepted(states, loss_of, size)  # yours, if it is correct


# %%
peaks = {}
for tokens in (128, 256, 512):
    ids = torch.arange(tokens, device=session.device)[None] % VOCABULARY
    found, row = [], {}
    for name, size in {"all at once": tokens, "in chunks": 64}.items():
        peak = peak_memory(partial(learn, ids, size), device=session.device)
        row[name] = peak / 1e6
        found.append([weight.grad.clone() for weight in pupil.parameters()])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)
    peaks[tokens] = row
first, _, last = peaks.values()
grown = {name: last[name] / first[name] for name in last}
print(
    "four times the text, × the memory:",
    ", ".join(f"{n} {x:.1f}" for n, x in grown.items()),
)
here(
    "In chunks memory hardly grows.",
    [1.5 - grown["in chunks"], grown["all at once"] - 2],
)
pd.DataFrame(peaks).T.rename_axis("tokens").round(0)

# %% [markdown]
# ## A thin correction
#
# The other large part belongs to the weights. A weight that learns has a gradient and AdamW's two averages
# beside it, 12 bytes. **LoRA** (Hu et al. 2021) leaves $W$ as it is, and learns a thin correction beside it, of rank $r$ and scaled
# by $\alpha$, which is added to $W$ in the end:
#
# $$W x \;+\; \frac{\alpha}{r}\, B A x, \qquad A\!: r \times \mathrm{in}, \quad B\!: \mathrm{out} \times r, \quad B = 0 \text{ at
# first}$$

# %% [markdown]
# ### Exercise 4 · ●●○ · 8 minutes
#
# Complete `Lora(linear, rank, alpha)`: a module that computes this from a linear layer. `A` and `B` learn, the layer doesn't. Give
# `merged` too: the weight that one plain layer needs to do the same.
#
# <details><summary>Hint</summary>
#
# `linear.requires_grad_(False)`; `A` and `B` are `nn.Parameter`s, `A` random and `B` zeros.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_07 import check_lora


# BEGIN SOLUTION
class Lora(torch.nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.A = torch.nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.B = torch.nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)

    def merged(self):
        return self.linear.weight + self.scale * self.B @ self.A


# END SOLUTION
# BEGIN STUB
# class Lora(torch.nn.Module):
#     def __init__(self, linear, rank, alpha):
#         super().__init__()
#         ...  # your code
#
#     def forward(self, x): ...
#
#     def merged(self): ...
# END STUB
check_lora(Lora)

# %% [markdown]
# ### In a whole model
#
# Hugging Face's `peft` puts such corrections into a whole model, and `distill(…, lora_rank=16)` uses it, in every matrix of every
# block. First we see whether it computes the formula.

# %%
from peft import LoraConfig, get_peft_model
from torch import nn

one = nn.Sequential(nn.Linear(8, 6))
wanted = LoraConfig(r=2, lora_alpha=6, target_modules=["0"])
thin = get_peft_model(copy.deepcopy(one), wanted)
layer = thin.base_model.model[0]
A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
with torch.no_grad():
    B.normal_()
    x = torch.randn(3, 8)
    torch.testing.assert_close(thin(x), one(x) + 6 / 2 * x @ A.T @ B.T)
print("peft's correction is the formula's")

# %% [markdown]
# ## A plan that was compared
#
# `memory_plan` counts on PyTorch's *meta* device, where tensors have shapes and no content: weights, gradients, AdamW's two
# averages, the largest chunk of logits, and what the forward pass puts aside for the backward pass. With `recompute=True` only each
# block's input is put aside, and blocks are run again. A plan that nobody compared is a hope, so first a model that is small enough
# to try.
#
# **Predict before you run.** A LoRA learns far fewer weights than the MLPs have. How much shorter is its step? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# Hardly: forward and backward pass still go through every matrix, and through the corrections as well. What it saves is memory.
#
# </details>

# %%
small = dict(zip(NAMES, (8192, 192, 512, 6, 6, 2, True), strict=True))
config = LlamaConfig(**small)
torch.manual_seed(session.seed)
teacher = LlamaForCausalLM(config).to(session.device)
text = [{"input_ids": torch.randint(8192, (4, 128))} for _ in range(2)]
compared, margins = {}, []
for what, settings in SETTINGS.items():
    for recompute in (False, True):
        student = copy.deepcopy(teacher)
        prune_neurons(student, neuron_importance(student, "random"), ratio=0.5)
        recipe = Recipe(steps=4, lr=1e-4, recompute=recompute, **settings)
        narrow = outline(config, intermediate_size=256)
        plan = memory_plan(outline(config), narrow, recipe, rows=4, length=128)
        there = 4 * (teacher.num_parameters() + student.num_parameters())
        planned = sum(plan.values()) - there
        run = partial(distill, teacher, copy.deepcopy(student), text, recipe)
        measured = peak_memory(run, device=session.device)
        clock = distill(teacher, student, text, recipe).frame().seconds
        margins.append(planned - measured)
        name = f"{what}, recomputed" if recompute else what
        compared[name] = {
            "planned, MB": planned / 1e6,
            "measured, MB": measured / 1e6,
            "seconds per step": (clock.iloc[-1] - clock.iloc[0]) / 3,
        }
here("A plan is an upper bound.", margins)
compared = pd.DataFrame(compared).T
times = compared["seconds per step"]
here("A LoRA's step isn't half as long.", [times["LoRA"] - times["MLPs"] / 2])
compared.round(2)

# %% [markdown]
# The plan is above what was measured, in all six. And look at LoRA's memory: in so small a model it saves nothing, because a
# correction of rank 16 in every matrix isn't much thinner than the matrices. What it saves comes with size.
#
# Back to the figure's models: which of the three fits where, a T4 for 1B and an 80 GB card for 8B?

# %%
totals = {size: pd.DataFrame(plan).sum() for size, plan in plans.items()}
pd.DataFrame(totals).rename(columns="{}, GiB".format).round(1)

# %% [markdown]
# Leave a fifth to spare: the plan counts tensors, and a card also holds fragments between them, and what measuring needs. So the
# MLPs of 1B fit on a T4, and those of 8B just fit on the large card; everything fits on neither. When everything learns, 16 bytes
# per weight decide. A LoRA never changes the weights themselves, so these could stay in 16 bits, or in 4 (Dettmers et al. 2023,
# *QLoRA*). And what does it cost? Here is lesson 07's record: what the good cut still loses on speeches after 33 thousand tokens.

# %%
healed = read_record("heal").query("criterion == 'activation' and steps == 32")
healed = healed.query("dtype == 'float32' and text == 'speeches' and seed == 0")
healed = healed.set_index("edit").damage
for edit, name in (("KL", "the MLPs learn"), ("LoRA", "a LoRA learns")):
    print(f"{name}: {healed[edit]:.2f} nats per token lost")

# %% [markdown]
# (One run of each, at its own best rate.)
#
# ## The night is cut short
#
# With a `checkpoint_dir`, `distill` saves the student, the optimiser and the history every few steps, in one file that is written
# beside the old one and then takes its name, so that a crash never leaves half a file. A later call with the same settings goes on
# there. The test is strict: **every loss must equal that of a run that was never interrupted.**
#
# Many scripts save the weights alone, and begin anew with those: AdamW's averages are 0, and the rate's curve starts from its
# beginning.
#
# **Predict before you run.** A run of 24 steps stops in step 14. It goes on from a whole checkpoint, or from its weights alone. How
# do the two curves go on? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# With the whole checkpoint all 24 losses are equal. From weights alone it is another run.
#
# </details>

# %%
tiny = tiny_llama().to(session.device)
generator = torch.Generator().manual_seed(session.seed)
ids = torch.randint(1, 97, (5, 4, 16), generator=generator)  # again and again
tiny_text = [{"input_ids": rows} for rows in ids]
run = {"steps": 24, "lr": 1e-3, "save_every": 6}


def fresh():
    """The same pruned student, every time."""
    student = copy.deepcopy(tiny)
    prune_neurons(student, neuron_importance(student, "random"), ratio=0.5)
    return student


def pulls_the_plug(student, at):
    """Ctrl-C in a step's forward pass, once."""
    passes = itertools.count(1)

    def power_cut(*_):
        if next(passes) == at:
            raise KeyboardInterrupt

    student.model.register_forward_pre_hook(power_cut)
    return student


# %%
unbroken = distill(tiny, fresh(), tiny_text, **run).frame().loss
broken = pulls_the_plug(fresh(), 14)
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    try:
        distill(tiny, broken, tiny_text, **run, checkpoint_dir=folder)
    except KeyboardInterrupt:
        print("interrupted in step 14")
    resumed = distill(tiny, fresh(), tiny_text, **run, checkpoint_dir=folder)
    try:
        other = run | {"lr": 2e-3}
        distill(tiny, fresh(), tiny_text, **other, checkpoint_dir=folder)
    except CheckpointMismatch as error:
        print("another rate is refused:", str(error).split(". ")[1])
resumed = resumed.frame().loss
weights_alone = distill(tiny, broken, tiny_text, **run | {"steps": 11}).frame().loss

# %%
apart = np.abs(unbroken - resumed).max()
away = np.abs(weights_alone.to_numpy() / unbroken.to_numpy()[13:] - 1).max()
print(f"{len(unbroken)} losses, at most {apart:.0e} apart")
print(f"from weights alone up to {away:.0%} away")
here("The resumed run equals the unbroken one.", [1e-4 - apart])
here("From weights alone it is another run.", [away - 0.02])

_, panel = plt.subplots(figsize=(9, 4.5), layout="constrained")
steps = np.arange(1, 25)
panel.plot(steps, unbroken, **mark("whole") | {"label": "never interrupted"})
look = mark("activation") | {"label": "resumed, whole checkpoint", "linestyle": ":"}
panel.plot(steps, resumed, **look)
look = mark("wrong") | {"label": "resumed, weights alone"}
panel.plot(steps[13:], weights_alone, **look)
panel.set(xlabel="step", ylabel="loss (nats per token)")
panel.legend()
show(
    "Three curves of a falling loss. The run with a whole checkpoint lies on the "
    "one that was never interrupted; from weights alone it leaves it at step 14."
)

# %% [markdown]
# *The same tiny student, three times. Dotted, on top of the black one: resumed from a whole checkpoint.*
#
# From weights alone the loss jumps first. Here it even ends lower, because its rate began anew and was higher from then on. That is
# luck of this run. It isn't the run that was planned, and nobody can compare it with another one.
#
# ## Take-aways
#
# - A teacher who agrees exerts no pull. Subtract the gradient under that one: what is left is what the teacher teaches.
# - Keep the hidden states and take head and loss in chunks: equal gradients, and never more than one chunk of logits.
# - 16 bytes for a weight that learns, 4 for one that doesn't. LoRA saves memory, hardly time. Measure what it costs.
# - Plan from shapes, compare the plan once, and leave a fifth to spare.
# - A resumed run must equal an unbroken one, loss by loss.
#
# ## References
#
# - Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531
# - Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685
# - Dettmers et al. 2023, *QLoRA: Efficient Finetuning of Quantized LLMs*, arXiv 2305.14314
# - Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174
# - Hsu et al. 2024, *Liger Kernel: Efficient Triton Kernels for LLM Training*, arXiv 2410.10989
