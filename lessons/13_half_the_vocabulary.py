# ---
# jupyter:
#   course:
#     title: "Half the vocabulary goes, and perplexity improves: who pays?"
#     minutes: 80 to 90 minutes
#     prerequisites: lesson 01 (loss, random cuts), lesson 03 (the activation score)
#     assets: [smollm2, texts, speeches, abilities]
#     concepts: [vocabulary pruning, byte pair encoding, closed under merges, bits per byte, price of the spelling]
# ---

# %% [markdown]
# ## The question
#
# Half of a model's tokens go, without any training. The perplexity on code *falls*, and on speeches it hardly changes. A fifth of all parameters were in the embedding, so half of a fifth is saved. Is that free, and if not: who pays?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Whoever isn't in the text that was counted. Code loses the tokens that it is written in. So it is spelled in nearly twice
# as many pieces, and each byte of code costs nearly twice as much. Perplexity *per token* hides this, because it divides by the larger
# number of tokens.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** perplexity per token can't compare two vocabularies. Bits per byte can. The harm comes from the spelling, and a
# cut softmax gives a little of it back.
#
# **Usual questions:** "Can the model still write everything?" Yes, because all single bytes stay. "Why do the kept logits stay the
# same?" Nothing that makes them was changed. "Would training help?" Surely, and we didn't measure it.
#
# **Wrong turns:** closing a set by one step only; a gift with the wrong sign; in the last exercise, taking a count of zero for proof
# that a token isn't needed.
#
# **At the end you have** a vocabulary for English and code with half the tokens, and a measure that compares any two tokenizers.

# %% tags=["install"]

# %%
import random

import matplotlib.pyplot as plt
import pandas as pd
import torch

from course_utils.lessons import claim, here
from course_utils.measuring import perplexity
from course_utils.models import load_model, variant
from course_utils.pruning import choose_tokens, prune_vocabulary, token_counts
from course_utils.support import mark, show, start, style
from course_utils.text import documents
from course_utils.text.byte_pairs import BytePairs

session = start("13")
style()
base, tokenizer = load_model("llama")
base.requires_grad_(False)
pairs = BytePairs.of(tokenizer)
print(f"{pairs.size:,} tokens, {base.num_parameters():,} parameters")
share = base.get_input_embeddings().weight.numel() / base.num_parameters()
print(f"the embedding holds {share:.0%} of them")

# %% [markdown]
# ## How a text becomes tokens
#
# This tokenizer begins with single bytes. Then it merges two neighbours into one token, again and again, by a list of merges that it
# learned from text. This is **byte pair encoding** (BPE). *th* and *e* become *the*, and so on. So every longer token is merged from
# two shorter ones. Here is one word, and the tokens that it is made from.

# %%
word = tokenizer(" function", add_special_tokens=False).input_ids[0]
todo = [word]
while todo:
    token = todo.pop(0)
    parts = pairs.merged_from.get(token, ())
    if parts:
        print(repr(tokenizer.decode(token)), "from", tokenizer.batch_decode(parts))
    todo += parts

# %% [markdown]
# If a part goes, what is merged from it can't be written any more. So the tokens that stay must be **closed under merges**: with each
# token its two parts stay, and their parts, down to single bytes. As the bytes stay, any text can still be written.

# %% [markdown]
# ### Exercise 1 · ●○○ · 8 minutes
#
# Write `close(tokens, merged_from)`. `merged_from` is a dictionary: token → the two tokens that it is merged from. Single bytes aren't
# in it. Return the set of the tokens, of all their parts, of the parts' parts, and so on.
#
# <details><summary>Hint</summary>
#
# Keep a list of what is still to do. Take one token from it. If you haven't seen it, add it to the set, and its parts to the list.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_13 import check_close


# BEGIN SOLUTION
def close(tokens, merged_from):
    found, waiting = set(), [*tokens]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting.extend(merged_from.get(one, ()))
    return found


# END SOLUTION
# BEGIN STUB
# def close(tokens, merged_from):
#     ...  # a set of tokens
# END STUB
check_close(close, pairs.merged_from)

# %% [markdown]
# ## Count, choose, cut
#
# Which half stays? We count tokens in English prose: speeches, Wikipedia and stories. The library's `choose_tokens` keeps the most
# frequent ones, closed under merges. `prune_vocabulary` then cuts their rows out of the embedding and the head, and makes a
# tokenizer of these tokens alone.
#
# A free rival needs no counting: the **first half by number**. BPE learned its tokens in that order, the most useful merges first.
#
# We judge on other documents, in parts of 240 characters, and on Python code, which we didn't count.

# %%
from course_utils.measuring.abilities import paragraphs

PROSE = ("speeches", "wiki", "stories")


def parts_of(texts, count):
    """Parts of 240 characters, drawn from the beginnings of some documents."""
    found = []
    for text in texts:
        beginnings = range(0, min(len(text), 2400) - 120, 240)
        found += [text[begin : begin + 240] for begin in beginnings]
    random.Random(session.seed).shuffle(found)
    return found[:count]


judged = {name: documents(name, "evaluation") for name in PROSE}
judged["code"] = paragraphs("code")
exam_parts = {name: parts_of(texts[1::2], 12) for name, texts in judged.items()}
judged = {name: parts_of(texts[::2], 12) for name, texts in judged.items()}
counted = []
for name in PROSE:
    counted += documents(name, "distillation")[:100]
english = token_counts(tokenizer, counted)
half = pairs.size // 2
print(f"{english.sum():,} tokens counted, {(english > 0).sum():,} different ones")

# %%
from course_utils.text.passages import Passage, batches_of


def cut(tokens):
    """The model and the tokenizer with these tokens alone; `base` stays."""
    small = variant(base)
    return small, prune_vocabulary(small, tokenizer, tokens)[1]


def rows_of(cutter, parts):
    """The parts as one tokenizer cuts them."""
    numbered = [Passage(number, part) for number, part in enumerate(parts)]
    return batches_of(numbered, cutter, batch_size=6)


def measure(model, cutter):
    """A score for each text."""
    scores = {}
    for name, parts in judged.items():
        scores[name] = perplexity(model, rows_of(cutter, parts))
    return scores


frequent = choose_tokens(tokenizer, english, keep=half)
small, small_tokenizer = cut(frequent)
whole, halved = measure(base, tokenizer), measure(small, small_tokenizer)
left = small.num_parameters() / base.num_parameters()
print(f"{left:.0%} of the parameters are left; perplexity per token:")
riddle = {"whole": whole, "half": halved}
pd.DataFrame(
    {name: {text: one.perplexity for text, one in scores.items()}
     for name, scores in riddle.items()}
).round(1)  # fmt: skip

# %% [markdown]
# *Perplexity per token, with all tokens and with the more frequent half.*
#
# Code was never counted, and its perplexity even falls. Before we trust that, we ask what the cut does to the loss.
#
# ## Fewer rivals
#
# The model's states stay as they are, and so do the logits of the tokens that stay. But the softmax divides by a smaller sum, because
# the other tokens no longer compete. If the kept tokens together had the probability $m$ in the whole model, then each of them now has
# its old probability divided by $m$. The loss falls by
#
# $$\mathrm{gift} = -\ln m \ge 0$$
#
# ### What it means
#
# On a text whose tokens all stay, the loss can only fall. That says nothing about the model: it plays against fewer rivals.

# %% [markdown]
# ### Exercise 2 · ●●○ · 8 minutes
#
# Write `gift(logits, kept)`: logits are [..., vocabulary], `kept` holds token numbers. Return the gift at each position, in nats. The
# check tries unlikely kept tokens, too, whose probability is too small for a float.
#
# <details><summary>Hint</summary>
#
# The logarithm of a sum of exponentials is `logsumexp(-1)`. You need two of them, of all logits and of the kept ones.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_13 import check_gift


# BEGIN SOLUTION
def gift(logits, kept):
    return logits.logsumexp(-1) - logits[..., kept].logsumexp(-1)


# END SOLUTION
# BEGIN STUB
# def gift(logits, kept):
#     ...  # nats, one number for each position
# END STUB
check_gift(gift)

# %% [markdown]
# ## The proof on real text
#
# We give one part of a story to both models, in the tokens of the *small* tokenizer. For the whole model these are the same tokens
# under their old numbers. The difference of the two losses must be the gift, at each token.

# %%
from torch.nn.functional import cross_entropy

kept = torch.tensor(frequent)
new_ids = rows_of(small_tokenizer, judged["stories"][:1])[0]["input_ids"]
old_ids = kept[new_ids]  # the numbers that the whole tokenizer has for them
with torch.no_grad():
    logits, fewer = base(old_ids).logits[0, :-1], small(new_ids).logits[0, :-1]
of_whole = cross_entropy(logits, old_ids[0, 1:], reduction="none")
of_small = cross_entropy(fewer, new_ids[0, 1:], reduction="none")
gifts = check_gift.accepted(logits, kept)  # yours, once it is right
print(f"kept logits are equal: {torch.allclose(logits[:, kept], fewer, atol=1e-3)}")
falls = of_whole - of_small
print(f"mean gift {gifts.mean():.3f}, difference {falls.mean():.3f}")
error = (falls - gifts).abs().max().item()
here("At each token the loss falls by the gift.", [1e-3 - error])

# %% [markdown]
# ## A fair measure
#
# So a loss per token can fall for free. It has a second fault: it is an average over tokens. If the same text is cut into more of
# them, the same total looks smaller. Bytes belong to the text, not to the tokenizer. So we add up the nats of a text and divide by its
# bytes: **bits per byte**.

# %% [markdown]
# ### Exercise 3 · ●○○ · 5 minutes
#
# Write `bits_per_byte(nats, parts)`. `nats` is the loss of each part, summed over its tokens; `parts` are the strings. Return the bits
# per byte of all parts together. Strings are in UTF-8.
#
# <details><summary>Hint</summary>
#
# `len(part.encode())` counts bytes. One bit is ln 2 nats.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_13 import check_bits

# BEGIN SOLUTION
from math import log


def bits_per_byte(nats, parts):
    return sum(nats) / sum(len(part.encode()) for part in parts) / log(2)


# END SOLUTION
# BEGIN STUB
# def bits_per_byte(nats, parts):
#     ...  # one number
# END STUB
check_bits(bits_per_byte)

# %% [markdown]
# ## Who pays?
#
# **Predict before you run.** Per token, code looked better than before. What will its bits per byte say, and how many more tokens does code
# take? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A byte of code costs 1.92 times as much, and code takes 2.01 times as many tokens. Per token it looks better, 0.96: the loss
# has grown a little less than the number of tokens, and perplexity divides one by the other.
#
# </details>

# %%
to_bits = check_bits.accepted
told = {}
for name, score in whole.items():
    after = halved[name]
    before_bits = to_bits(score.row_nll, judged[name])
    after_bits = to_bits(after.row_nll, judged[name])
    told[name] = {
        "per token": after.nll / score.nll,
        "per byte": after_bits / before_bits,
        "tokens": after.tokens / score.tokens,
    }
told = pd.DataFrame(told).T
per_token, per_byte, _ = told.loc["code"]
here("A byte of code costs over a third more.", [per_byte - 4 / 3])
claim("Per token, code looks less than a fifth worse.", [1.2 - per_token])
prose = told["per byte"][list(PROSE)]
claim("Per byte, prose costs less than a third more.", 4 / 3 - prose)
told.round(2)

# %% [markdown]
# *Loss per token, loss per byte and number of tokens, each as a multiple of the whole model's.*
#
# Code pays, in two ways. Each byte costs more bits, and a program takes more tokens, so a longer cache, more time and a higher bill.
# Look at one line of code to see why.

# %%
lines = [line for part in judged["code"] for line in part.split("\n")[1:-1]]


def pieces(cutter, line):
    ids = cutter(line, add_special_tokens=False).input_ids
    return cutter.batch_decode([[one] for one in ids])


def more(line):
    return len(pieces(small_tokenizer, line)) - len(pieces(tokenizer, line))


line = max((one for one in lines if len(one) < 72), key=more)
both = {"all tokens": pieces(tokenizer, line)}
both["half"] = pieces(small_tokenizer, line)
_, panel = plt.subplots(figsize=(12, 2.6), layout="constrained")
names = ("activation", "attentions", "peak-to-peak")
shades = [mark(name)["color"] for name in names]
for row, (name, tokens) in enumerate(both.items()):
    place = 0
    for number, piece in enumerate(tokens):
        shade = shades[number % len(shades)]
        panel.barh(row, len(piece), left=place, height=0.6, color=shade, alpha=0.35)
        for letter in piece:
            panel.text(place + 0.5, row, letter, family="monospace", fontsize=11,
                       ha="center", va="center")  # fmt: skip
            place += 1
    print(f"{name}: {len(tokens)} tokens")
panel.set(xlim=(0, len(line)), ylim=(1.5, -0.5))
panel.set_yticks([0, 1], list(both))
panel.set_xticks([])
panel.grid(False)
show(
    "One line of code twice, each token on a coloured ground. Above, in all "
    "tokens, it has few long pieces; below, in half of them, many short ones."
)

# %% [markdown]
# *The same line of code, each token on its own colour. Above with the whole vocabulary, below with the half that is frequent in prose.
# It is the line, among those judged, that gains the most pieces.*
#
# ## Why does it cost more?
#
# Two things changed: the spelling, and the softmax. They can be told apart exactly. We give the **whole** model the text in the small
# tokenizer's pieces. What it loses more than on its own spelling is the **price of the spelling**. The cut model reads the same pieces,
# and differs from it by the gift alone. So
#
# $$\text{cut} - \text{whole} = \text{price} - \text{gift}$$
#
# **Predict before you run.** For code, is the price large and the gift large, or is the gift small beside the price? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# The gift is small beside the price: 0.136 against 1.337 bits per byte. The whole model, with nothing cut, loses nearly as much on this spelling as the cut one does.
#
# </details>


# %%
def price_and_gift(tokens, model, cutter):
    """Price and gift on each text, in bits per byte."""
    old, found = torch.tensor(tokens), {}
    keys = ("attention_mask", "bytes")
    for name, parts in judged.items():
        rows = rows_of(cutter, parts)
        spelled = []
        for row in rows:
            ids = old[row["input_ids"]]
            spelled.append({k: row[k] for k in keys} | {"input_ids": ids})
        strange = perplexity(base, spelled).bits_per_byte
        fewer = perplexity(model, rows).bits_per_byte
        found[name] = (strange - whole[name].bits_per_byte, strange - fewer)
    return pd.DataFrame(found, index=["price", "gift"]).T


by_text = price_and_gift(frequent, small, small_tokenizer)
claim("The gift is positive on every text.", by_text["gift"])
here("For code the price is over twice the gift.", [by_text.loc["code"] @ [1, -2]])
by_text.round(3)

# %% [markdown]
# *Price and gift in bits per byte. What a text pays is the first minus the second.*
#
# So it isn't the smaller head that hurts. The cut head only ever helps. **The harm is the spelling**: the whole model, with all its
# tokens and nothing cut, does as badly when a program is spelled in pieces that it hardly ever saw in such places. In the
# line above nearly all the new pieces are single spaces: prose has no indentation, so the tokens for runs of spaces went. (How much of
# the price they are in all, we didn't measure.)
#
# ## Which half?
#
# Now we compare ways to choose: by frequency, the first by number, and at random. Beside them stands a cut of as many parameters
# from the neurons, chosen by activation.

# %%
from course_utils.pruning import neuron_importance, prune_neurons
from course_utils.text import token_blocks

ways = {"frequency": english, "first by number": torch.zeros(pairs.size)}
for seed in (1, 2, 3):
    drawn = torch.Generator().manual_seed(3 * session.seed + seed)
    ways[f"random {seed}"] = torch.rand(pairs.size, generator=drawn)
cost = {"frequency": {name: told.loc[name, "per byte"] for name in judged}}


def times(scores):
    """Bits per byte, as a multiple of the whole model's."""
    found = {}
    for name, score in scores.items():
        found[name] = score.bits_per_byte / whole[name].bits_per_byte
    return found


for name in list(ways)[1:]:
    tokens = choose_tokens(tokenizer, ways[name], keep=half)
    cost[name] = times(measure(*cut(tokens)))
narrow = variant(base)
rows = token_blocks(tokenizer, "calibration", tokens=4096, length=128)
scores = neuron_importance(narrow, "activation", batches=rows.batches(8))
in_neurons = 0
for layer in base.model.layers:
    in_neurons += 3 * layer.mlp.down_proj.weight.numel()
ratio = (base.num_parameters() - small.num_parameters()) / in_neurons
prune_neurons(narrow, scores, ratio=ratio)
print(f"as many parameters are {ratio:.0%} of the neurons")
cost["neurons"] = times(measure(narrow, tokenizer))
cost = pd.DataFrame(cost)
dice = cost[[name for name in ways if name.startswith("random")]]
first = cost["first by number"]
claim("The first half beats random halves on each text.", dice.min(axis=1) - first)
of_neurons = cost.loc["code", "neurons"]
here("On code it beats the neuron cut.", [of_neurons - first["code"]])
print(cost.round(2).to_string())

# %%
_, panel = plt.subplots(figsize=(10, 4.6), layout="constrained")
looks = {"frequency": "activation", "first by number": "L1"}
looks["neurons"] = "leave-one-out"
for name, how in looks.items():
    look = mark(how) | {"label": name, "linestyle": "none", "markersize": 12}
    panel.plot(cost[name], range(len(cost)), **look)
for name in dice:
    label = "random halves" if name == "random 1" else "_"
    look = mark("random") | {"label": label}
    panel.plot(dice[name], range(len(cost)), **look | {"linestyle": "none"})
panel.axvline(1, **mark("guessing") | {"label": "_"})
panel.set(xlabel="bits per byte (× the whole model's)", ylim=(3.5, -0.5))
panel.set_yticks(range(len(cost)), list(cost.index))
panel.legend(fontsize="small", title="as many parameters gone")
show(
    "Bits per byte of four texts as multiples of the whole model's. By frequency, "
    "prose stays near one and code is far out; the first half stays near one."
)

# %% [markdown]
# *Each mark is a model that lost as many parameters. The line at 1 is the whole model.*
#
# Chosen by frequency, the vocabulary is good for what was counted and bad for code. The first half by number knows no text and does
# fairly well on all of them. On code in the saved run even random halves beat the half that is frequent in prose. It keeps the merges that helped most in the text that the tokenizer itself was made from, and that text had
# code in it.
#
# ## A vocabulary for a purpose
#
# Suppose your users write English and code. You may count both, but your sample of code is small.

# %%
from course_utils.lessons.exercises.lesson_13 import PurposeExam

code = token_counts(tokenizer, paragraphs("code", split="calibration"))
print(f"counted: {english.sum():,} tokens of English, {code.sum():,} of code")
mixed = exam_parts["speeches"] + exam_parts["wiki"]
unread = {"English": mixed, "code": exam_parts["code"]}
exam = PurposeExam(base, tokenizer, unread, half)

# %% [markdown]
# ### Exercise 4 · ●●● · 15 minutes
#
# Write `worth(english, code)`. It gets the two counts, [vocabulary] each, and returns a number for each token. The tokens of the largest
# numbers stay, half of the vocabulary. You have three tries. The exam judges on parts that nothing has read. English may cost at most
# three quarters of what the first half by number costs, and code at most four fifths.
#
# <details><summary>Hint</summary>
#
# A count of zero in a small sample isn't proof that nobody needs the token. Who else knows something about it? And English has far
# more counts than code, so think in shares.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_13 import check_worth


# BEGIN SOLUTION
def worth(english, code):
    order = torch.arange(len(code), 0, -1) / len(code)  # from 1 down to 0
    shares = english / english.sum() + code / code.sum()
    return shares + 1e-5 * order  # rare tokens: by the order of merging


# END SOLUTION
# BEGIN STUB
# def worth(english, code):
#     ...  # one number for each token
# END STUB
check_worth(worth, english, code, exam)

# %% [markdown]
# ## Quiz

# %% [markdown] tags=["quiz"]
# Model B has fewer tokens than model A and a lower perplexity per token, on the same text. What follows?
#
# - [ ] B predicts the text better.
#   > It may have more and easier tokens. Add up the nats, and divide by bytes.
# - [x] Nothing yet, as the two divide by different numbers of tokens.
#   > Right. Compare bits per byte.
# - [ ] B was trained on this text.
#   > A smaller vocabulary alone can do it, as here.

# %% [markdown] tags=["quiz"]
# Every token of a text stays when you cut the vocabulary. What happens to the model's loss on it?
#
# - [x] It falls, or stays, because fewer tokens share the probability.
#   > Right: by the gift, at every token.
# - [ ] It rises, because the head has lost a part of its weights.
#   > The rows that went only made rivals.
# - [ ] It may rise or fall, depending on the text and on the states.
#   > The gift is never below zero, whatever the text.

# %% [markdown] tags=["quiz"]
# The whole model reads code in the small tokenizer's pieces, and loses nearly twice as much per byte. What does that show?
#
# - [ ] The whole model is broken.
#   > On its own spelling it is as good as ever.
# - [ ] The cut head does the harm.
#   > Here no head was cut.
# - [x] The strange spelling does the harm.
#   > Right: it is the only thing that changed.

# %% [markdown]
# ## Take-aways
#
# - A vocabulary can be cut if it stays closed under merges and keeps the bytes.
# - On text whose tokens stay, the loss per token can only fall. That is a gift of fewer rivals.
# - Two tokenizers are compared in **bits per byte**, and by the tokens that a text takes.
# - Texts that nobody counted pay, with strange spellings.
#
# **On Monday:** before you trim a vocabulary, encode a page of everything that your users write, and count how many more tokens it takes.
# That costs no run of the model.
#
# **Next:** lesson 14 puts the course together.
#
# ## References
#
# - Yang et al. 2022, *TextPruner*, arXiv 2203.15996: pruning the vocabulary of a model
# - Sennrich et al. 2016, *Neural Machine Translation of Rare Words with Subword Units*, arXiv 1508.07909: byte pair encoding
