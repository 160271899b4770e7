# ---
# jupyter:
#   course:
#     title: "Will it fit, and survive the night?"
#     prerequisites: lesson 07 (KL, one mean a step, LoRA)
#     assets: []
#     concepts: [logits in chunks, memory plan, recomputed activations, checkpoint of a run]
# ---

# %% [markdown]
# ## The question
#
# You want to distil a model that is larger than the course's. Will it fit into the card that you have, and what if the night is cut short?
#
# **Answer.** Count before you start. Logits are the largest tensors and needn't exist at once; gradients and averages come next, and a
# LoRA has hardly any. What saves its optimiser goes on as if nothing had happened.

# %% [markdown] tags=["notes"]
# **The point:** "out of memory after ten minutes" can be foretold from the configuration, to the megabyte.
#
# **Usual questions:** "Why float32?" The steps of a training are smaller than what 16 bits can tell apart.
#
# **Wrong turns:** counting weights and forgetting gradients; forgetting logits; a checkpoint without the optimiser.
#
# **At the end you have** a backward pass that never holds all logits, a plan for your own model, and a run that was killed and wasn't harmed.

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
from course_utils.support import mark, show, start, style

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
    card = {"1B": 14.2, "8B": 79}[size]
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
# *Planned from shapes alone, in float32: 40 % of the neurons gone, four rows of 512 tokens, activations computed twice, the teacher asked
# beforehand.*
#
# ## The largest tensors
#
# A hidden state has a few thousand numbers a token. Logits have one for each word of the vocabulary, 128,256 in a Llama 3, in float32, of
# two models, with logarithms and gradients. Seven such tensors for four rows of 512 tokens take 7 GiB.
#
# But hidden states are small. So keep those, and run the head on a few tokens at a time: take the loss *and its gradient* of this chunk,
# and forget its logits.

# %% [markdown]
# ### Exercise 1 · ●●● · 12 minutes
#
# Write `backward_in_chunks(states, loss_of, size)`. `states` [tokens, hidden] come out of the student's body, whose graph hangs on them.
# `loss_of(part, start)` runs the head on `part`, the states of the tokens from `start` on, and gives the *sum* of their losses. Leave the
# gradients of the mean loss with body and head; return the mean loss.
#
# <details><summary>Hint</summary>
#
# `leaf = states.detach().requires_grad_()` stands between head and body. Each chunk's `backward()` adds to `leaf.grad`. In the end the body
# gets it, once: `states.backward(…)`.
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
from course_utils.measuring import peak_memory

VOCABULARY = 49_152
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

    return backward_in_chunks(states, loss_of, size)


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
# ## A plan that was compared
#
# `memory_plan` counts on PyTorch's *meta* device, where tensors have shapes and no content: weights, gradients, AdamW's two averages, the
# largest chunk of logits, and what the forward pass puts aside for the backward pass. With `recompute=True` only each block's input is put
# aside, and blocks are run again. A plan that nobody compared is a hope, so first a model that is small enough to try.

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
        recipe = Recipe(steps=2, lr=1e-4, recompute=recompute, **settings)
        narrow = outline(config, intermediate_size=256)
        plan = memory_plan(outline(config), narrow, recipe, rows=4, length=128)
        there = 4 * (teacher.num_parameters() + student.num_parameters())
        planned = sum(plan.values()) - there
        run = partial(distill, teacher, student, text, recipe)
        measured = peak_memory(run, device=session.device)
        margins.append(planned - measured)
        name = f"{what}, recomputed" if recompute else what
        compared[name] = {
            "planned, MB": planned / 1e6,
            "measured, MB": measured / 1e6,
        }
here("A plan is an upper bound.", margins)
pd.DataFrame(compared).T.round(0)

# %% [markdown]
# Back to the figure's models: which of the three fits where, a T4 for 1B and an 80 GB card for 8B?

# %%
totals = {size: pd.DataFrame(plan).sum() for size, plan in plans.items()}
pd.DataFrame(totals).rename(columns="{}, GiB".format).round(1)

# %% [markdown]
# Leave a fifth to spare: fragments and the measuring in between aren't in the plan. When everything learns, 16 bytes a weight decide. MLPs
# alone are what pruning cut. A LoRA leaves the weights themselves, which could then stay in 16 bits, or in 4.
#
# ## The night is cut short
#
# With a `checkpoint_dir`, `distill` saves the student, the optimiser and the history every few steps, in one file that is written beside
# the old one and moved over it. A later call with the same settings goes on there. The test is strict: **every loss must equal that of a
# run that was never interrupted.**
#
# **Predict before you run.** Many scripts save weights alone. Would a run that goes on from them be the same?
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# No. With averages, the place in the text, random numbers and the place on the rate's curve saved, all 12 losses are equal.
#
# </details>

# %%
tiny = tiny_llama().to(session.device)
generator = torch.Generator().manual_seed(session.seed)
ids = torch.randint(1, 97, (8, 2, 16), generator=generator)
tiny_text = [{"input_ids": rows} for rows in ids]
run = {"steps": 12, "lr": 3e-3, "save_every": 4}


def fresh():
    """The same pruned student, every time."""
    student = copy.deepcopy(tiny)
    prune_neurons(student, neuron_importance(student, "random"), ratio=0.5)
    return student


def pulls_the_plug(student, at):
    """Ctrl-C in a step's forward pass."""
    passes = itertools.count(1)

    def power_cut(*_):
        if next(passes) == at:
            raise KeyboardInterrupt

    student.model.register_forward_pre_hook(power_cut)
    return student


# %%
unbroken = distill(tiny, fresh(), tiny_text, **run).frame().loss
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    try:
        distill(
            tiny,
            pulls_the_plug(fresh(), 8),
            tiny_text,
            **run,
            checkpoint_dir=folder,
        )
    except KeyboardInterrupt:
        print("interrupted in step 8")
    resumed = distill(tiny, fresh(), tiny_text, **run, checkpoint_dir=folder)
    try:
        other = run | {"lr": 1e-3}
        distill(tiny, fresh(), tiny_text, **other, checkpoint_dir=folder)
    except CheckpointMismatch as error:
        print("another rate is refused:", str(error).split(". ")[1])
apart = np.abs(unbroken - resumed.frame().loss).max()
print(f"{len(unbroken)} losses, at most {apart:.0e} apart")
here("The resumed run equals the unbroken one.", [1e-4 - apart])

# %% [markdown]
# Without AdamW's averages it would have been another run.
#
# ## Take-aways
#
# - Keep the hidden states and take head and loss in chunks: equal gradients, and logits cost nothing.
# - 16 bytes a weight that learns. Choose what learns by what fits, then measure what it costs (lesson 07).
# - Plan from shapes, compare the plan once, and leave a fifth to spare.
# - A resumed run must equal an unbroken one, loss by loss.
#
# ## References
#
# - Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174
# - Hsu et al. 2024, *Liger Kernel: Efficient Triton Kernels for LLM Training*, arXiv 2410.10989
