# ---
# jupyter:
#   course:
#     title: "Attention bypass: what is attention for?"
#     minutes: 85 to 115 minutes
#     prerequisites: lesson 03 (attention sink, hooks), lesson 04 (single harm, KV cache, a block's constant)
#     assets: [smollm2, speeches, texts]
#     concepts: [attention bypass, importance, equality with a silenced reference, an attention's constant, text before, window, copying]
# ---

# %% [markdown]
# ## The question
#
# An attention exists to look at other tokens. Put one fixed vector in its place, and for some attentions hardly anyone notices.
# What is attention for?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** An attention writes three kinds of things. One is a **constant**, which it writes whatever it reads: a fixed vector
# takes its place, and the dearest attention of this model is mostly that. The second is what **nearby** tokens say: the last 64
# tokens and the first one give back most of it. The third is what **far** tokens say. Running text misses that little, but without
# it the model can't repeat a passage any more, and a few attentions do most of that. So before you leave attentions out, give
# them a short window, and find out which of them copy.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** the loss on short rows of text can't see what attention is for. Three interventions can: a fixed vector, a
# window, and a passage that comes twice. And before all that: an equality tells which model you have, a perplexity doesn't.
#
# **Let the room predict first:** all thirty attentions see 64 tokens only. Is that worse than leaving eight of thirty out?
#
# **Usual questions:** "So is attention useless?" On short rows much of it is. "Why not delete the module?" Then nobody counts
# tokens for the cache. "Do real models have windows?" Mistral's first one, Gemma and many others mix them with whole attentions.
#
# **Wrong turns:** returning the input instead of nothing; a missing layer that no longer counts tokens; a window without the
# first token; choosing by text what has to copy.
#
# **At the end you have** a bypass of your own that adds exactly nothing, a window that does far less harm and saves more, and the
# few attentions that copy.

# %% tags=["install"]

# %%
from contextlib import contextmanager

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from course_utils.lessons import claim, diagrams, here
from course_utils.support import mark, read_record, show, start, style

session = start("05")
style()
record = read_record("attention_reach")  # measured beforehand, on 16 rows per text
record["count"] = record.layers.map(len)
TEXTS, BEFORE = ("speeches", "wiki"), (0, 128, 256, 448)


def recorded(criterion, how, count=8, before=0):
    """Harm in the record: the mean of both texts, with some tokens before."""
    texts = [f"{text}, {before} before" if before else text for text in TEXTS]
    chosen = (record.criterion == criterion) & (record.how == how)
    chosen &= (record["count"] == count) & record.text.isin(texts)
    return record[chosen].damage.mean()


# %%
_, panel = plt.subplots(figsize=(8, 4.8), layout="constrained")
who = [("dearest", 1), ("importance", 8)]
for shift, how, look, words in (
    (-0.2, "bypass", "wrong", "left out"),
    (0.2, "mean", "whole", "a fixed vector instead"),
):
    heights = [recorded(criterion, how, count) for criterion, count in who]
    places = [place + shift for place in range(2)]
    panel.bar(places, heights, 0.38, color=mark(look)["color"], label=words)
    for place, height in zip(places, heights, strict=True):
        panel.text(place, height, f"{height:.2f}", ha="center", va="bottom")
panel.set_xticks([0, 1], ["one attention,\nthe dearest", "eight others\nof thirty"])
panel.set(ylabel="harm (nats per token)", ylim=(0, 4))
panel.legend()
show(
    "Two pairs of bars. The dearest attention left out costs over three nats per "
    "token; with a fixed vector in its place about a tenth of that. Eight "
    "others left out cost little, and with fixed vectors hardly anything."
)

# %% [markdown]
# *Harm on rows of 64 tokens, the mean of speeches and Wikipedia. (Its own vector for each attention.)*
#
# This figure is from a **record**: the same model, measured beforehand on more rows than this notebook has time for. Tables below
# are this notebook's own, so they differ a little from the record's figures.
#
# One attention of this Llama, left out, costs three nats per token: the model is ruined. Put **one vector** in its place, the
# same for every token of every text, and nearly all of the harm is gone. Eight others, left out together, cost little, and with a
# fixed vector each hardly anything.
#
# A fixed vector looks at nothing. It doesn't know which tokens came before. But looking at other tokens is the one thing that an
# attention can do and an MLP can't. So what is it for?

# %% [markdown]
# ## Leaving it out

# %%
diagrams.attention_bypass()
show(
    "Two Llama blocks side by side on a residual stream. In the left one "
    "attention and MLP both read the stream and add to it, and the attention fills "
    "a cache. In the right one attention and cache are crossed out, and the MLP "
    "still adds."
)

# %% [markdown]
# A block of a Llama adds to the state twice, first its attention and then its MLP:
#
# $$x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{MLP}(\mathrm{norm}(x))$$
#
# An **attention bypass** turns the first line into $x \leftarrow x$. What does that buy? Mostly cache: the keys and values of all
# earlier tokens needn't be kept for this block. (They are kept per **KV head**, which several query heads share. Here all go.)
#
# Which ones may go? Leave-one-out (lesson 04) measures the model without each of them. He et al. 2024 only read text once, and
# ask how far each attention *turns* the state. They call that its **importance**:
#
# $$1 - \cos\bigl(x,\; x + \mathrm{attention}(\mathrm{norm}(x))\bigr)$$
#
# We take out the quarter that turns it least. (The library's
# `select_attention_layers` is **iterative**: it takes one, measures again in what is left, and takes the next.)
#
# There are two ways to write an attention that "does nothing". What it returns is added to $x$. So should it return zeros, or
# return what it was given, like a layer that passes its input on?
#
# **Predict before you run.** One of the two is a bypass, the other a mistake. Which of them has the lower loss? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The mistake: 0.18 nats against 0.23. If you said "because it passes something on", something does help. We shall see what.
#
# </details>

# %%
from course_utils.models import load_model, tiny_llama, variant
from course_utils.pruning import attention_importance, bypass_attention
from course_utils.text import judging_rows, token_blocks

# float32: rounding can't hide a mistake
base, tokenizer = load_model("llama", dtype=torch.float32)
base.requires_grad_(False)
layers, total = base.model.layers, len(base.model.layers)
pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
few = pool.sample(16, seed=session.seed)  # rows that may choose
judges = judging_rows(tokenizer, draw=session.seed).values()  # that only judge
rows = {"short": torch.cat([text.input_ids[:6] for text in judges])}


# %%
@contextmanager
def for_a_while(hooks):
    """These hooks stay as long as the `with` block runs."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def replaced(model, numbers, say):
    """For a while `say(number, norm(x))` stands in for these attentions."""

    def stand_in(number):
        def hook(attention, inputs, named, output):
            return say(number, named["hidden_states"]), None

        attention = model.model.layers[number].self_attn
        return attention.register_forward_hook(hook, with_kwargs=True)

    return for_a_while([stand_in(number) for number in numbers])


def zeros(number, states):
    return torch.zeros_like(states)


def the_input(number, states):
    return states


# %%
@torch.no_grad()
def nats(ids, judged=64):
    """Loss in nats per token, of the last tokens of each row."""
    ids = ids.to(base.device)
    states = base.model(ids, use_cache=False).last_hidden_state[:, -judged:-1]
    logits = base.lm_head(states).float().flatten(0, 1)
    return cross_entropy(logits, ids[:, 1 - judged :].flatten()).item()


def harm(numbers, say, name):
    """What it costs on some rows when something else stands in for attentions."""
    with replaced(base, numbers, say):
        return nats(rows[name]) - intact[name]


importance = attention_importance(base, few.batches(16))
eight = importance.topk(round(total / 4), largest=False).indices.tolist()
intact = {"short": nats(rows["short"])}  # what the whole model loses there
two_ways = {"zeros": harm(eight, zeros, "short")}
two_ways["the input"] = harm(eight, the_input, "short")
print(f"left out: {sorted(eight)}")
for name, cost in two_ways.items():
    print(f"attentions that return {name} cost {cost:.2f} nats per token")
better = two_ways["zeros"] - two_ways["the input"]
here("To return the input costs less than to return zeros.", [better])

# %% [markdown]
# To return the input is the mistake: it *adds* $\mathrm{norm}(x)$ to the state, in each of these blocks. And it has the lower
# loss! We come back to why. For now it is a warning: a loss says how good a model is. It doesn't say *which* model it is.
#
# **Ask for an equality instead.** Write zeros into the weights of an attention's last matrix, `o_proj`. Then it adds zero, and
# nobody has touched the code that runs. That is an independent reference, and a right bypass gives the same logits in every bit.


# %%
def silenced(model, numbers):
    """A variant whose attentions in these blocks add zero: zeros in `o_proj`."""
    quiet = variant(model)
    for number in numbers:
        projection = quiet.model.layers[number].self_attn.o_proj
        projection.weight = nn.Parameter(torch.zeros_like(projection.weight))
    return quiet


ids = rows["short"][:2, :16].to(base.device)
found = {}
with torch.no_grad():
    reference = silenced(base, eight)(ids, use_cache=False).logits
    for name, say in (("zeros", zeros), ("the input", the_input)):
        with replaced(base, eight, say):
            found[f"return {name}"] = base(ids, use_cache=False).logits
    bypass_attention(base, eight)  # the library's, in place
    found["bypass_attention"] = base(ids, use_cache=False).logits
    bypass_attention(base, [])  # and back
for name, logits in found.items():
    same = "equal, bit for bit" if torch.equal(logits, reference) else "NOT equal"
    print(f"{name:<17} {same}, {(logits - reference).abs().max():.2g} apart")
assert torch.equal(found["bypass_attention"], reference)
wrong = (found["return the input"] - reference).abs().max()
claim("The wrong bypass doesn't equal the silenced model.", [wrong.item()])

# %% [markdown]
# Two short rows were enough. The loss alone, on however much text, doesn't tell which of the two is the bypass.

# %% [markdown]
# ### Exercise 1 · ●●○ · 9 minutes
#
# Write `adds_nothing(model, layer, ids)`: True if the attention of this block of a Llama adds **exactly** zero to the state while
# the model reads `ids`, otherwise False. Any module may stand in the attention's place. The check brings right bypasses of
# several kinds, and wrong ones that a loss would let pass.
#
# <details><summary>Hint</summary>
#
# If the attention adds nothing, the block computes `x + block.mlp(block.post_attention_layernorm(x))`. A forward hook on the
# block gets `x` as `inputs[0]`, and the block's output. "Exactly" is `torch.equal`.
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
# ## The empty drawer
#
# `replaced` still computes the attention and throws it away. To save anything, another module must stand in its place. The cache
# has a drawer for each attention (lesson 04). To find out how many tokens went by, transformers looks into one drawer, the first.
#
# **Predict before you run.** In a tiny Llama a module that returns zeros stands in for attention 0, or for attention 2. Three
# tests compare the logits read at once with the silenced model's, the logits read token by token with a cache likewise, and what
# `generate` writes with a cache and without. Which of the six tests fail? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# One: attention 0, token by token. Its drawer stays empty, so each new token is read as if it stood at the beginning. No error
# was raised, and `generate` hides it, because it counts positions by itself.
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
    stand_in = variant(tiny)
    stand_in.model.layers[layer].self_attn = ZeroAttention(layer)
    outcomes[f"attention {layer} returns zeros"] = tested(stand_in, expected)
outcomes = pd.DataFrame(outcomes).T.replace({True: "right", False: "WRONG"})
wrong = (outcomes == "WRONG").to_numpy()
claim("Only zeros for attention 0 fail.", [wrong[0, 1] - 0.5, 1.5 - wrong.sum()])
outcomes

# %% [markdown]
# ### Exercise 2 · ●●○ · 9 minutes
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
# ## A constant
#
# So now we know how to leave an attention out, and that it is out. What was in it? We leave each attention out alone to find the
# dearest one. Then we let each say the **mean** of what it says on other rows: one vector per attention, the same for every
# token.
#
# (In lessons 01 and 04 you kept the constants of neurons and of blocks. But an attention is made to look around. A constant is
# the last thing that one would expect of it.)
#
# **Predict before you run.** Why does the wrong bypass have the lower loss? We divide what it adds, $\mathrm{norm}(x)$, into its
# mean over tokens and the rest. Which of the two makes it better than zeros? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The mean. Alone it costs 0.17, about as much as all of $\mathrm{norm}(x)$. The rest alone costs 0.26, more than zeros. So what
# helps is a constant. The attentions' *own* means help much more: 0.07 is left. And for the dearest attention one vector takes
# the harm from 3.11 to 0.26.
#
# </details>

# %%
rows["few"] = few.input_ids[:1]
intact["few"] = nats(rows["few"])
numbers = tqdm(range(total), desc="one at a time")
alone = [harm([number], zeros, "few") for number in numbers]
dearest = max(range(total), key=alone.__getitem__)

wiki = token_blocks(tokenizer, "calibration", domain="wiki", tokens=8192, length=64)
calibration = torch.cat([few.input_ids[:16], wiki.input_ids[:16]]).to(base.device)
said, inputs_mean, hooks = {}, {}, []


def listen(number):
    def note(attention, inputs, named, output):
        said[number] = output[0][:, 1:].float().mean(dim=(0, 1))
        inputs_mean[number] = named["hidden_states"][:, 1:].float().mean(dim=(0, 1))

    return note


for number, block in enumerate(layers):
    attention = block.self_attn
    hooks.append(attention.register_forward_hook(listen(number), with_kwargs=True))
with torch.no_grad(), for_a_while(hooks):
    base.model(calibration, use_cache=False)


# %%
def its_mean(number, states):
    return said[number].to(states).expand_as(states)


def mean_of_norm(number, states):
    return inputs_mean[number].to(states).expand_as(states)


def rest_of_norm(number, states):
    return states - mean_of_norm(number, states)


instead = {
    "zeros": two_ways["zeros"],
    "norm(x), the mistake": two_ways["the input"],
    "the mean of norm(x)": harm(eight, mean_of_norm, "short"),
    "norm(x) without its mean": harm(eight, rest_of_norm, "short"),
    "their own means": harm(eight, its_mean, "short"),
}
none, _, mean, _, own = instead.values()
lost, kept = (harm([dearest], say, "short") for say in (zeros, its_mean))
print(f"attention {dearest} is the dearest: {lost:.2f} nats per token", end=", ")
print(f"with a fixed vector {kept:.2f}")
here("A fixed vector undoes over two thirds for the dearest.", [lost / 3 - kept])
here("For the eight it undoes over a third.", [none * 2 / 3 - own])
claim("norm(x)'s mean alone is better than zeros.", [none - mean])
pd.Series(instead, name="harm of the eight").to_frame().round(2)

# %% [markdown]
# *Harm in nats per token, by what stands in for each of the eight.*
#
# So what helps in the mistake is a constant. What the block reads, $\mathrm{norm}(x)$, has a mean over tokens, too. That mean
# alone is as good as the whole, and the rest of it doesn't help. (Why just this constant helps, we haven't tested.) The
# attentions' own means do far more good.
#
# And the dearest attention of the model? Whatever it looks at, one vector, the same for every token, undoes over nine tenths of its
# harm on these short rows. So far attention seems to be *for* little. But all our rows had 64 tokens.
#
# ## With text before
#
# Now the **same tokens** are judged, but the model has read 128, 256 or 448 tokens before. That is how models are used.
#
# **Predict before you run.** Does it cost more or less to lose eight attentions when there is a long text before? And with their
# fixed vectors? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# More, for each of the three choices. Those of least importance cost 0.24 nats alone, and 0.38 with 448 tokens before. Their
# fixed vectors cost next to nothing alone, 0.05, but 0.29 with the text before.
#
# </details>

# %%
_, (panel, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
looks = {"importance": "attentions", "leave-one-out": "leave-one-out"}
looks["leave-one-out, long"] = "neurons"  # the same, chosen on long rows
for criterion, look in looks.items():
    path = [recorded(criterion, "bypass", 8, before) for before in BEFORE]
    panel.plot(BEFORE, path, **mark(look) | {"label": f"left out, by {criterion}"})
    told = ", ".join(f"{cost:.2f}" for cost in path)
    print(f"eight by {criterion}, {BEFORE} tokens before: {told}")
path = [recorded("importance", "mean", 8, before) for before in (0, 448)]
look = mark("whole") | {"label": "fixed vectors, by importance"}
panel.plot((0, 448), path, linestyle="--", **look)
print(f"fixed vectors, by importance: {path[0]:.2f} and {path[1]:.2f}")
gone, vector = (recorded("dearest", how, 1, 448) for how in ("bypass", "mean"))
print(f"the dearest, 448 tokens before: {gone:.2f}", end=", ")
print(f"with a fixed vector {vector:.2f}")
claim("On record its vector does as well after a long text.", [gone / 3 - vector])
by_short, by_long = (recorded(name, "bypass", 8, 448) for name in [*looks][1:])
claim("On record eight chosen on long rows cost less.", [by_short - by_long])
panel.set(xlabel="tokens before", ylabel="harm (nats)", title="eight left out")
panel.legend(loc="upper left", fontsize="small")
counts = [0, 4, 8, 12]
for before, look in ((448, "wrong"), (0, "random")):
    harms = [recorded("importance", "bypass", n, before) for n in counts[1:]]
    look = mark(look) | {"label": f"{before} tokens before"}
    right.plot(counts, [0, *harms], **look)
right.set_xticks(counts, [f"{n}\n({n / 30:.0%})" for n in counts])
right.set(xlabel="how many are left out (cache saved)", title="by importance")
plt.setp([panel, right], ylim=(0, 0.95))
right.legend(loc="upper left", fontsize="small")
show(
    "Left, harm against tokens before the judged ones. Eight attentions left out "
    "cost more with text before, and most of the rise comes before 128 tokens; "
    "those that leave-one-out chose on short rows rise most; fixed vectors start "
    "near nothing and rise as well. Right, harm against the number left out: the "
    "line with text before lies above the one without."
)

# %% [markdown]
# *The same judged tokens, with more and more text before them. Leave-one-out took the eight with the smallest single harms: once
# on rows of 64 tokens, once on rows of 512 ("long"). Right: four, eight and twelve of least importance, and the share of the cache
# that goes with them.*
#
# For the dearest attention little changes: its fixed vector does nearly as well after a long text. But the eight cost more, and
# so do their fixed vectors, since a fixed vector can't carry what was said before. A row of 64 tokens hides that: half of its
# tokens have fewer than 32 others to look at.
#
# And the choice? The eight that leave-one-out chose on short rows are the dearest after a long text (0.53). Those that it chose
# on long rows cost 0.44 there. So **if you choose by measured harm, measure on rows as long as your texts**. (On the mean of
# these two texts importance does better than either. We don't know why.)
#
# What do these attentions take from the text before? Something far away? Look where the curves rise: mostly at the beginning,
# before 128 tokens. So perhaps a token only wants to see its neighbours. We can test that: let the eight look again, but only at
# what is near.

# %% [markdown]
# ### Exercise 3 · ●●○ · 8 minutes
#
# Write `near(length, window)`: a tensor of True and False, [length, length], that says which tokens each may see. Token *i* sees
# itself and the tokens before it, `window` in all, and never a later one. It also sees the first token of the row, however far
# away. You know from lesson 03 why.
#
# <details><summary>Hint</summary>
#
# `tokens = torch.arange(length)`, and `tokens[:, None] - tokens` says how far back each token lies, with row *i* for token *i*.
# Combine three conditions with `&` and `|`.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_05 import check_near


# BEGIN SOLUTION
def near(length, window):
    tokens = torch.arange(length)
    back = tokens[:, None] - tokens  # [who looks, at whom]
    return (back >= 0) & ((back < window) | (tokens == 0))


# END SOLUTION
# BEGIN STUB
# def near(length, window):
#     ...  # your code
# END STUB
check_near(near)

# %% [markdown]
# ## Only what is near
#
# An attention with such a mask has a **window**. Its cache needs 65 entries, however long the text is.
#
# **Predict before you run.** Three tries, with 448 tokens before: the eight are left out; the eight have windows of 64 tokens;
# *all* attentions have windows. Which of them does the most harm? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# To leave out the eight: 0.33 nats. Windows for the eight cost 0.05, and windows for all thirty 0.20. So most of what the eight
# take from the text before stands near.
#
# </details>

# %%
near = check_near.accepted  # yours, if it is correct
WINDOW, LONG = 64, 512


def windows(numbers):
    """For a while these attentions see the nearest tokens and the first one."""

    def narrow(attention, inputs, named):
        seen = near(named["hidden_states"].shape[1], WINDOW)
        return inputs, named | {"attention_mask": seen[None, None].to(base.device)}

    some = [layers[number].self_attn for number in numbers]
    add = {"hook": narrow, "with_kwargs": True}
    return for_a_while([each.register_forward_pre_hook(**add) for each in some])


def harm_of_windows(numbers, name):
    with windows(numbers):
        return nats(rows[name]) - intact[name]


of_each = []
for domain, tokens in (("speeches", 65_536), ("wiki", 24_576)):
    some = {"domain": domain, "tokens": tokens, "length": LONG}
    pool = token_blocks(tokenizer, "evaluation", **some)
    of_each.append(pool.sample(2, seed=session.seed).input_ids)
rows["long"] = torch.cat(of_each)
intact["long"] = nats(rows["long"])

# %%
tried = {
    "the eight left out": harm(eight, zeros, "long"),
    "fixed vectors for the eight": harm(eight, its_mean, "long"),
    "windows for the eight": harm_of_windows(eight, "long"),
    "windows for all": harm_of_windows(range(total), "long"),
}
out, vectors, eight_near, all_near = tried.values()
here("Windows undo over half of what vectors leave.", [vectors / 2 - eight_near])
here("Windows for all cost less than eight left out.", [out - all_near])
ways = (f"window {WINDOW}", f"window {WINDOW}, no first token")
with_sink, without = (recorded("importance", how, 30, 448) for how in ways)
print(f"in the record, for all: {with_sink:.2f}, no first token {without:.2f}")
claim("Without the first token windows cost far more.", [without - 2 * with_sink])
pd.Series(tried, name="harm").to_frame().round(2)

# %% [markdown]
# *Harm in nats per token, with 448 tokens before.*
#
# A fixed vector gives back what is constant, and a window gives back what is near as well. So most of what the eight read in the
# text before lies within 64 tokens. That fits the last figure: a token in the middle of a text has 64 neighbours to look at, and
# the first tokens of a short row haven't.
#
# And now look at the price. With windows for *all* attentions the cache keeps 65 of 512 tokens, so seven eighths of it are saved.
# Eight left out save a quarter, and do more harm. (0.20 nats isn't nothing: it is a fifth more perplexity.) Without the first
# token, windows do far more harm (1.22 in the record): this is lesson 03's sink, and the finding of Xiao et al. 2023.
#
# (Our mask only hides tokens. To save memory the cache has to forget them: it keeps the entry of the first token and the last
# 64.)
#
# ## Far away
#
# So is far attention good for nothing? We haven't asked for anything that needs it. Take a passage of 64 tokens, then another
# one, then the first one **again**. A model that can look back knows each word of it the second time. That is called **copying**.
# The first time lies 128 tokens back, outside of a window of 64. (Could windows pass it on, block by block? Jiang et al. 2023
# hope so, for a model that was trained with windows. Ours wasn't.)
#
# **Predict before you run.** The whole model loses 4 nats per token the first time, and half a nat the second time. How much do
# three changes add the second time: eight left out, windows for the eight, windows for all? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# 1.50 nats, 1.27 and 3.65. With windows for all, the second time is about as new as the first: hardly anything was passed on. On text the three
# had cost 0.33, 0.05 and 0.20.
#
# </details>


# %%
def twice(passages):
    """[rows, 192]: each passage, then another one, then the first one again."""
    return torch.cat([passages, passages.roll(1, dims=0), passages], dim=1)


rows["again"] = twice(rows["short"][::3])
intact["again"] = nats(rows["again"])
copied = {
    "the eight left out": harm(eight, zeros, "again"),
    "windows for the eight": harm_of_windows(eight, "again"),
    "windows for all": harm_of_windows(range(total), "again"),
}
first = nats(rows["again"][:, :64])
print(f"first time {first:.2f} nats per token, second {intact['again']:.2f}")
out_again, near_again, all_again = copied.values()
here("Windows cost copying over five times more.", [all_again - 5 * all_near])
here("Eight left out cost copying more than text, too.", [out_again - out])
both = pd.DataFrame({"text": tried, "copying": copied})
both.loc[list(copied)].round(2)

# %%
_, panels = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained", sharex=True)
widths = (8, 16, 32, 64, 96, 127, 128, 160)
steps = ["bypass", "mean", *(f"window {width}" for width in widths)]
words = ["none", "fixed\nvector", *widths]
views = {"text": [f"{text}, 448 before" for text in TEXTS]}
views["a passage the second time"] = ["copying"]
for panel, (title, text) in zip(panels, views.items(), strict=True):
    for count, look, label in ((8, "L1", "the eight"), (30, "wrong", "all thirty")):
        sets = record[(record.criterion == "importance") & record.text.isin(text)]
        sets = sets[sets["count"] == count].groupby("how").damage.mean()
        known = [step for step in steps if step in sets]
        places = [steps.index(step) for step in known]
        panel.plot(places, sets[known], **mark(look) | {"label": label})
    panel.set_xticks(range(len(words)), words)
    panel.set(xlabel="what they may see (a window's tokens)")
    panel.set(title=title, ylim=(0, None), ylabel="harm (nats per token)")
just, one_more = sets["window 127"], sets["window 128"]
print(f"copying, all thirty: window of 127 {just:.2f}, of 128 {one_more:.2f}")
print(f"everything but the token 127 back: {sets['one token hidden']:.2f}")
claim("One token more gives back over a third.", [just * 2 / 3 - one_more])
panels[1].axhline(first - intact["again"], **mark("guessing"))
panels[0].legend()
panels[1].legend(panels[1].lines[2:], ["as new as the first time"])
show(
    "Harm against what attentions may see, from nothing over a fixed vector to "
    "windows of 8 to 160 tokens. On text it falls step by step and is small at "
    "64. On a passage that comes again, windows for all keep it as high as for a "
    "new passage up to 127 tokens; at 128 it falls to a third."
)

# %% [markdown]
# *The record's ladder: what the eight, or all thirty, may see. Left: text with 448 tokens before. Right: copying.*
#
# That is the answer in one picture. On text each step gives something back. A fixed vector gives back what is constant, and windows
# what is near: for the eight, 8 tokens do most of it, for all thirty it takes about 64.
#
# On the passage that comes again, no window helps all thirty much, until it reaches the right place, two passages back. What came
# next there lies 127 tokens back. A window of as many just misses it, because it counts the token itself: 2.98 nats. One token
# more, and it is in sight: 1.25. And with everything in sight *but* this one token: 2.85.
#
# So most of copying hangs on **one token**: the one that came next the first time. (The rest comes back with a few more around
# it. For the eight alone a short window helps more than a longer one. We don't know why.) The loss on running text hardly
# notices, since little of it repeats.
#
# And the choice of layers? Here is what the three choices of eight cost on the passage that comes twice (in the record):

# %%
for criterion in looks:
    chosen = (record.criterion == criterion) & (record.text == "copying")
    chosen &= (record.how == "bypass") & (record["count"] == 8)
    cost = record[chosen].damage.item()
    print(f"eight by {criterion} left out: {cost:.2f} nats of copying")

# %% [markdown]
# Leave-one-out on short rows did worst, by far. Does it pick out those that copy? And which are they?
#
# ## Who copies?
#
# You want both: windows for the cache, and a model that knows what it has read.

# %%
from course_utils.lessons.exercises.lesson_05 import CopyingExam

rows["practice"] = twice(calibration[[0, 16]])  # of both texts
intact["practice"] = nats(rows["practice"])


def copying_lost(narrow):
    """What windows for these attentions cost, on passages to choose by."""
    return harm_of_windows(narrow, "practice")


exam = CopyingExam(base, tokenizer, window=WINDOW)
print(f"windows for all cost {copying_lost(range(total)):.2f} nats of copying")

# %% [markdown]
# ### Exercise 4 · ●●○ · 15 minutes
#
# A fifth of the attentions may see everything (six of thirty). All others get windows, which saves seven tenths of the cache at
# 512 tokens. Which six? Give their numbers as `whole`, so that on passages that nothing has read at most **a fifth** of copying
# is lost (all of it is what windows for all cost). The exam judges three times only. Before that, `copying_lost([3, 7])` tells
# what windows for attentions 3 and 7 cost.
#
# <details><summary>Hint</summary>
#
# Lesson 04's single harm works for any question, not only for text. (Two that can replace each other both look cheap, so it
# misses those.)
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_05 import check_copiers

# BEGIN SOLUTION
single = [copying_lost([number]) for number in range(total)]
dearest_first = sorted(range(total), key=single.__getitem__, reverse=True)
whole = dearest_first[: round(total / 5)]
# END SOLUTION
# BEGIN STUB
# whole = ...  # six numbers of attentions
# END STUB
check_copiers(whole, exam, round(total / 5))

# %% [markdown]
# ## Two views of thirty attentions
#
# Here is the record once more: what each attention costs alone, in both views. (If you haven't solved the exercise, this is its
# answer.)

# %%
alone_out = read_record("leave_out").query("criterion == 'alone'")
alone_out = alone_out.query("part == 'attention' and dtype == 'float32'")
alone_out = alone_out.groupby(alone_out.layers.str[0]).damage.mean()
copies = record.query("criterion == 'alone' and text == 'copying'")
copies = copies.set_index(copies.layers.str[0]).damage
six = copies.nlargest(6).index
_, panels = plt.subplots(2, 1, figsize=(10, 6), layout="constrained", sharex=True)
for panel, harms in zip(panels, (alone_out, copies), strict=True):
    grey, loud = mark("random")["color"], mark("wrong")["color"]
    colours = [loud if number in six else grey for number in harms.index]
    panel.bar(harms.index, harms, color=colours)
panels[0].set(title="left out, on short rows of text", ylim=(0, 0.5))
panels[1].set(title="a window, and a passage the second time", xlabel="attention")
panels[1].set_ylabel("harm (nats per token)")
show(
    "Two rows of thirty bars. Above, what leaving each attention out costs on "
    "short rows: most are low, two leave the figure. Below, what a window for "
    "each costs copying: one tower, a few small ones, a flat floor. Most of the "
    "six highest below are low above."
)
print(f"windows cost copying most for {sorted(six)}")
for criterion in looks:
    chosen = record[(record.criterion == criterion) & (record["count"] == 8)]
    held = len({*six} & {*chosen.layers.iloc[0]})
    print(f"of these six, the eight by {criterion} hold {held}")

# %% [markdown]
# *Red: the six whose windows cost copying most. (Above, the bars of attentions 0 and 1 leave the figure.)*
#
# So a few attentions do most of the copying. On short rows hardly anything repeats, so they have little to do there and look as
# if they could go. (Not all: attention 24 is dear on text as well.) Leave-one-out on short rows threw out five of these six. (It
# chose on sixteen rows of speeches. The bars above are another measurement, of two texts; by these bars it would have been fewer.)
#
# What do you get if just six stay whole? The record has six that were chosen as in the exercise, on passages of their own, and six
# that were drawn blindly, five times.


# %%
again = record[(record.text == "copying") & (record.how == f"window {WINDOW}")]
everyone = again[again["count"] == 30].damage.item()
share = again.set_index("criterion").damage / everyone
lost, blindly = share["all but the six that copy"], share["all but six blindly"]
print(f"six whole, windows for all others: {lost:.0%} of copying is lost", end=", ")
print(f"text costs {recorded('all but the six that copy', ways[0], 24, 448):.2f}")
print(f"six drawn blindly: {blindly.min():.0%} to {blindly.max():.0%} are lost")
claim("Six drawn blindly lose over twice as much.", blindly - 2 * lost)

# %% [markdown]
# Copying takes two kinds of heads. One kind notes at each word what came just before it, which is near. The other finds the place
# whose note is the present word, which is far. Only the second kind must see everything. Xiao et al. 2024 (*DuoAttention*) build
# a whole method on that, head by head. Lesson 11 returns to such heads.
#
# ## Quiz

# %% [markdown] tags=["quiz"]
# A bypass returns the attention's input. Its loss is a little lower than with zeros. What follows?
#
# - [ ] It is the better bypass of the two, and so the one to be reported.
#   > It is another model: each block adds `norm(x)` to the state. You would report a method that you don't use.
# - [ ] The text is too short, and on more of it the mistake would show.
#   > More text makes the two losses surer. It doesn't say which of the two models is the bypass.
# - [x] That they are two models, and which of them is the bypass stays open.
#   > Only a reference tells. Zeros in `o_proj` give one without touching any code that runs.

# %% [markdown] tags=["quiz"]
# Attention 0 is replaced by a module that returns zeros. `generate` writes the same with and without a cache. Is it right?
#
# - [ ] Yes, since two independent ways of writing text give the same tokens.
#   > `generate` counts positions itself, so both ways hide the empty drawer.
# - [x] Not shown: compare logits read one by one with those read at once.
#   > There the cache's own count is asked, and the empty first drawer says 0.
# - [ ] No, since a module without weights can't be part of a checkpoint.
#   > It can be part of a running model. Saving is another test.

# %% [markdown] tags=["quiz"]
# You leave out the attentions that cost least on rows of 64 tokens. Your users paste long lists and ask about them. What is to be
# feared?
#
# - [ ] Nothing much, because a low loss on text means that text is understood.
#   > Those rows are too short to hold anything that repeats, so this loss can't know.
# - [ ] That the loss on long texts doubles, which any long row would show.
#   > It rises somewhat. Running text repeats little, so even a long row shows hardly any of what is lost.
# - [ ] That the model has become unsure of its grammar.
#   > The loss on short rows would have shown that.
# - [x] That the attentions are gone that find what was read long ago.
#   > On short rows they have nothing to do, so they look cheap. Test lists if users paste lists.

# %% [markdown]
# ## Take-aways
#
# - A loss says how good a model is, an equality which model it is. A bypass adds exactly zero, and counts its tokens.
# - An attention writes a **constant**, what **near** tokens say, and what **far** tokens say. A fixed vector, a window and a
#   passage that comes twice tell them apart.
# - Rows of 64 tokens hide most of what attention is for. If you choose by measured harm, measure on rows as long as your texts, and
#   test what your users ask.
# - On long texts a window (with the first token!) saves more cache than a bypass, at less harm. A few attentions copy: leave them
#   whole.
# - All this is one small model. Larger ones lose less by a bypass (He et al.). Whether they still copy is quickly asked.
#
# **On Monday:** before you leave attentions out, paste a passage twice with something between, and compare the loss of its second
# time with the whole model's.
#
# **Next:** must the same attentions go for every prompt? In lesson 06 each prompt decides.
#
# ## References
#
# - He et al. 2024, *What Matters in Transformers? Not All Attention is Needed*, arXiv 2406.15786: importance, and the bypass
# - Xiao et al. 2023 (StreamingLLM), arXiv 2309.17453: windows need the first tokens
# - Olsson et al. 2022, *In-context Learning and Induction Heads*, arXiv 2209.11895: the heads that copy (lesson 11)
# - Jiang et al. 2023, *Mistral 7B*, arXiv 2310.06825: a model whose attentions all have windows
# - Xiao et al. 2024, *DuoAttention*, arXiv 2410.10819: heads that copy stay whole, all others get a sink and a window
# - Wu et al. 2024, *Retrieval Head Mechanistically Explains Long-Context Factuality*, arXiv 2404.15574
# - Martra, *Large Language Model Notebooks Course*, section on pruning (the idea of this lesson)
