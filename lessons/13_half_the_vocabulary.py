# ---
# jupyter:
#   course:
#     title: "Half the vocabulary goes: who pays?"
#     minutes: 90 to 100 minutes
#     prerequisites: lesson 01 (loss, random cuts), lesson 03 (the activation score)
#     assets: [smollm2, texts, speeches, abilities]
#     concepts: [vocabulary pruning, byte pair encoding, closed under merges, bits per byte]
# ---

# %% [markdown]
# ## The question
#
# A fifth of a small model's parameters are a table with a row for each token that it can read and write. We keep the half of the rows
# that English prose uses most, and train nothing. On code, of which nobody thought, perplexity hardly looks worse than on prose. Then we
# exchange 156 of the rows for others, and perplexity on code jumps up. Yet the second model is the better one, for every byte of code.
#
# How can that be? And who pays for the half that went?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Code pays, because nobody counted it. Prose isn't indented, so the tokens for indentation go, and a program is then written
# space by space. Each byte of code costs nearly twice as much. Perplexity doesn't see this, because it divides by nearly twice as many
# tokens, many of them single spaces that are easy to guess. Put the 156 tokens of white space back, and more than half of the harm is
# gone, while perplexity *rises*. So two vocabularies are compared by bits per byte.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** perplexity per token can't compare two vocabularies. Bits per byte can. What nobody counted is spelled in many small
# pieces, which the model reads well and never learned to write. A few tokens make most of the harm, and one look at a line finds them.
#
# **Usual questions:** "Can the model still write everything?" Yes, because all single bytes stay. "Why do the kept logits stay the
# same?" Nothing that makes them was changed. "Would training help?" Surely, and we didn't measure it.
#
# **Wrong turns:** closing a set by one step only; a gift with the wrong sign; putting back words of Python; in the last exercise, adding
# counts of unequal samples.
#
# **At the end you have** a vocabulary for English and code with a quarter of the tokens, and a measure that compares any two tokenizers.

# %% tags=["install"]

# %%
import math
import random
from collections import Counter

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
# Which half stays? We count tokens in English prose: a million characters each of speeches and of Wikipedia. The library's
# `choose_tokens` keeps the most frequent ones, closed under merges. `prune_vocabulary` then drops all other rows of the embedding and
# the head, and makes a tokenizer of the tokens that stay.
#
# A free rival needs no counting: the **first half by number**. BPE learned its tokens in that order, the most useful merges first.
#
# We judge on other documents, in parts of 240 characters from random places, and on Python code, which we didn't count.

# %%
from course_utils.measuring.abilities import paragraphs

PROSE = ("speeches", "wiki")
PARTS = {"speeches": 10, "wiki": 10, "code": 16}  # parts of code differ more


def parts_of(texts):
    """Two parts of 240 characters of each text, from random places, mixed."""
    dice = random.Random(session.seed)
    found = []
    for text in texts:
        for _ in range(2):
            begin = dice.randrange(max(1, len(text) - 240))
            found.append(text[begin : begin + 240])
    dice.shuffle(found)
    return found


unread = {name: documents(name, "evaluation") for name in PROSE}
unread["code"] = paragraphs("code")
judged = {}
for name, texts in unread.items():
    judged[name] = parts_of(texts[::2])[: PARTS[name]]
counted = ["\n".join(documents(name, "distillation"))[:1_000_000] for name in PROSE]
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
# Nobody counted code, and yet it seems to suffer hardly more than prose does, which was counted. Before we believe that, we ask what the
# cut does to the loss.
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
# We give one part of Wikipedia to both models, in the tokens of the *small* tokenizer. For the whole model these are the same tokens
# under their old numbers. The difference of the two losses must be the gift, at each token.

# %%
from torch.nn.functional import cross_entropy

kept = torch.tensor(frequent)  # the old number of each new one
new_ids = rows_of(small_tokenizer, judged["wiki"][:1])[0]["input_ids"]
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
# **Predict before you run.** By perplexity, code hardly suffered. What will its bits per byte say, and how many more tokens does code take?
# Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# A byte of code costs 1.92 times as much, and code takes 1.90 times as many tokens. So per token hardly anything has changed: the loss
# has nearly doubled, and so has the number of tokens that perplexity divides it by.
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
# Code pays, in two ways. Each byte costs more bits, and a program takes nearly twice as many tokens, so a longer cache, more time and
# a higher bill. Why code? Look at one of its lines.

# %%
lines = []
for part in judged["code"]:
    lines += [f"\n{line}" for line in part.split("\n")[1:-1] if line.strip()]


def pieces(cutter, text):
    ids = cutter(text, add_special_tokens=False).input_ids
    return cutter.batch_decode([[one] for one in ids])


def more(text):
    return len(pieces(small_tokenizer, text)) - len(pieces(tokenizer, text))


line = max((one for one in lines if len(one) < 72), key=more)
both = {"all tokens": pieces(tokenizer, line)}
both["half"] = pieces(small_tokenizer, line)
_, panel = plt.subplots(figsize=(12, 2.6), layout="constrained")
names = ("activation", "attentions", "peak-to-peak")
shades = [mark(name)["color"] for name in names]
for row, tokens in enumerate(both.values()):
    place = 0
    for number, piece in enumerate(tokens):
        shade = shades[number % len(shades)]
        panel.barh(row, len(piece), left=place, height=0.6, color=shade, alpha=0.35)
        for letter in piece.replace("\n", "↵").replace(" ", "·"):
            panel.text(place + 0.5, row, letter, family="monospace", fontsize=11,
                       ha="center", va="center")  # fmt: skip
            place += 1
panel.set(xlim=(0, len(line)), ylim=(1.5, -0.5))
panel.set_yticks([0, 1], [f"{name}\n{len(both[name])} pieces" for name in both])
panel.set_xticks([])
panel.grid(False)
show(
    "One line of code twice, each token on a coloured ground. Above, with all "
    "tokens, the line break and the spaces behind it are one piece; below, with "
    "half of them, each space is a piece of its own."
)

# %% [markdown]
# *One line of code, each token on its own colour; ↵ is a line break, · a space. Above with the whole vocabulary, below with the half that
# is frequent in prose. Of the lines judged here it is the one that gains the most pieces.*

# %% [markdown]
# ### Exercise 4 · ●●○ · 10 minutes
#
# The figure shows what code lost. Prove it: put it back. Write `put_back(text)`, which gets the text of one token, such as `" the"`, and
# returns `True` if this token must stay. You may put back at most 200 tokens that went; as many of the rarest in prose go instead. The
# check cuts the model again and measures. At least a third of the harm to code must go.
#
# <details><summary>Hint</summary>
#
# What do the pieces of the upper line have in common that the lower line breaks up? `text.strip()` may help.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_13 import VocabularyExam, check_put_back

texts_of_tokens = tokenizer.batch_decode([[one] for one in range(pairs.size)])
of_code = VocabularyExam(base, tokenizer, {"code": judged["code"]}, half)


# BEGIN SOLUTION
def put_back(text):
    return not text.strip()  # nothing but white space


# END SOLUTION
# BEGIN STUB
# def put_back(text):
#     ...  # True or False
# END STUB
check_put_back(put_back, texts_of_tokens, english, of_code)

# %% [markdown]
# ## A repair that perplexity calls damage
#
# **Predict before you run.** With these tokens back, code costs less per byte. What does its perplexity per token do? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It rises, from 21.41 to 34.35! The repair saves nats, but it saves even more tokens: the many single spaces, which are easier to guess
# than words are. So the sum falls, and the average over the tokens that are left rises.
#
# </details>

# %%
needed = check_put_back.accepted  # yours, once it is right
back = torch.tensor([bool(needed(text)) for text in texts_of_tokens])
worth = english + back * english.sum()
repaired = measure(*cut(choose_tokens(tokenizer, worth, keep=half)))
on_code = {}
for name, scores in {**riddle, "repaired": repaired}.items():
    score = scores["code"]
    on_code[name] = [score.perplexity, score.bits_per_byte, score.tokens]
columns = ["perplexity", "bits per byte", "tokens"]
on_code = pd.DataFrame(on_code, index=columns).T
worse, better, _ = on_code.diff().loc["repaired"]
claim("Repaired, code costs less, and its perplexity is higher.", [worse, -better])
on_code.round(2)

# %% [markdown]
# *Code with all tokens, with the more frequent half, and with the half that has the white space back.*
#
# So whoever trusts perplexity here would throw the repair away.
#
# ## Reading or writing?
#
# The kept logits are the same, and the gift only helps. So the harm must come from the spelling alone. It can hurt in two ways. The model
# may not understand what it *reads*: then later words suffer, too. Or it understands it, but wouldn't *write* it so: then only the strange
# pieces themselves are dear.
#
# **Predict before you run.** Which is it, and how would you tell? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# It is the writing. Only 10% of the price falls on pieces that the two spellings share. The rest falls on pieces that they don't share.
#
# </details>
#
# We give the **whole** model, with nothing cut, the code in the small tokenizer's pieces. What it loses more than on its own spelling is
# the price of the spelling. We split this price by place: what is lost at pieces that begin and end at the same letters in both
# spellings, and what is lost elsewhere.


# %%
def losses_of(cutter, part, numbers):
    """The whole model's nats: {(begin, end): nats}, in characters."""
    found = cutter(part, add_special_tokens=False, return_offsets_mapping=True)
    ids = numbers[torch.tensor([[cutter.eos_token_id, *found.input_ids]])]
    with torch.no_grad():
        nats = cross_entropy(base(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    by_place = Counter()
    for place, one in zip(found.offset_mapping, nats.tolist(), strict=True):
        by_place[place] += one  # the bytes of one character have one place
    return by_place


same = torch.arange(pairs.size)
reading = writing = 0
first_spaces, later_spaces = [], []  # behind a line break
for part in judged["code"]:
    own = losses_of(tokenizer, part, same)
    strange = losses_of(small_tokenizer, part, kept)
    both = own.keys() & strange.keys()
    shared = sum(strange[place] - own[place] for place in both)
    reading += shared
    writing += strange.total() - own.total() - shared
    spaces = []
    for (begin, _), nats in strange.items():
        if part[max(0, begin - 1) : begin + 1] == "\n ":
            spaces.append(nats)
    first_spaces += spaces[:1]
    later_spaces += spaces[1:]
print(f"of the price, {reading / (reading + writing):.0%} is reading")
here("Writing costs over four times as much as reading.", [writing - 4 * reading])

# %% [markdown]
# The model reads strange spellings well: words behind them cost hardly more. Why is writing them so dear? `False` is one token, and it
# went. The small tokenizer spells it in two pieces. We ask the whole model what it would write behind the first piece.

# %%
code_line = "def find(self, name):\n    if name not in self:\n        return False"
ids = small_tokenizer(code_line).input_ids
print(small_tokenizer.batch_decode([[one] for one in ids[-3:]]))
with torch.no_grad():
    read = kept[torch.tensor([[small_tokenizer.eos_token_id, *ids[:-1]]])]
    wishes = base(read).logits[0, -1].softmax(-1)
for token in [*wishes.topk(2).indices.tolist(), frequent[ids[-1]]]:
    print(f"{wishes[token]:10.4%} {texts_of_tokens[token]!r}")
first, later = (sum(nats) / len(nats) for nats in (first_spaces, later_spaces))
print(f"a space behind a line break: first {first:.1f} nats, later {later:.1f}")
here("In each part the first one costs over twice as much.", [first - 2 * later])

# %% [markdown]
# A piece also tells what it is *not* the beginning of. In all that the model learned from, *False* was one token. So behind *F* it is sure
# of one thing: this isn't *False*. It writes *FALSE* instead.
#
# The same holds for a single space behind a line break, which used to be one token with the break. But look at the last line: the first
# such space in a part is dear, and later ones cost far less. The model picks up the strange spelling while it reads!

# %% [markdown]
# ## Which half?
#
# Now we compare ways to choose: by frequency, the first by number, and at random. Beside them stands a cut of as many parameters
# from the neurons, chosen by activation.
#
# **Predict before you run.** Sort the four for code: frequent in prose, first by number, at random, neurons. Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# From the cheapest: first by number, neurons, a random half, and last the half that is frequent in prose. It is worse for code than dice.
#
# </details>

# %%
from course_utils.pruning import neuron_importance, prune_neurons
from course_utils.text import token_blocks


def times(scores):
    """Bits per byte, as a multiple of the whole model's."""
    found = {}
    for name, score in scores.items():
        found[name] = score.bits_per_byte / whole[name].bits_per_byte
    return found


def cost_of(worth, share=0.5):
    """What is lost if the tokens of the largest worth stay."""
    keep = int(share * pairs.size)
    return times(measure(*cut(choose_tokens(tokenizer, worth, keep=keep))))


by_number = torch.zeros(pairs.size)  # on a tie the lower number stays
cost = {"frequent": times(halved), "first by number": cost_of(by_number)}
dice = torch.Generator().manual_seed(session.seed)
cost["at random"] = cost_of(torch.rand(pairs.size, generator=dice))
narrow = variant(base)
rows = token_blocks(tokenizer, "calibration", tokens=1024, length=128)
scores = neuron_importance(narrow, "activation", batches=rows.batches(8))
in_neurons = 0
for layer in base.model.layers:
    in_neurons += 3 * layer.mlp.down_proj.weight.numel()
ratio = (base.num_parameters() - small.num_parameters()) / in_neurons
prune_neurons(narrow, scores, ratio=ratio)
print(f"as many parameters are {ratio:.0%} of the neurons")
cost["neurons"] = times(measure(narrow, tokenizer))
cost = pd.DataFrame(cost)
first = cost["first by number"]
claim("The first half beats a random half on each text.", cost["at random"] - first)
of_neurons = cost.loc["code", "neurons"]
here("On code it beats the neuron cut.", [of_neurons - first["code"]])
cost.round(2)

# %% [markdown]
# *Bits per byte after four vocabulary cuts and a neuron cut of as many parameters, as multiples of the whole model's.*
#
# Now the same at other sizes.

# %%
ways = {"frequent in prose": english, "first by number": by_number}
_, panels = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
sizes = (0.25, 0.5, 1)
looks = dict(zip(judged, ("activation", "L1", "leave-one-out")))
for panel, (way, worth) in zip(panels, ways.items()):
    lines_of = {0.5: cost.iloc[:, list(ways).index(way)], 1: 1.0}
    lines_of[0.25] = cost_of(worth, 0.25)
    curves = pd.DataFrame(lines_of, index=list(judged))[list(sizes)]
    for text, how in looks.items():
        panel.plot(sizes, curves.loc[text], **mark(how) | {"label": text})
    panel.set(title=way, xlabel="share of the tokens that stay")
panels[0].set(ylabel="bits per byte (× the whole model's)")
panels[0].legend(title="text")
show(
    "Bits per byte of three texts against the share of tokens kept. Left, by "
    "frequency in prose, code leaves the others; right, by number, it doesn't."
)

# %% [markdown]
# *A line per text. Left, the tokens that are frequent in prose stay; right, the first by number. The same sizes, the same three texts.*
#
# Chosen by frequency, the vocabulary is good for what was counted and bad for code. The first half by number knows no text and does
# fairly well on all of them. It keeps the merges that the tokenizer's makers found first, in text of their own, and code was among it.
#
# ## A vocabulary for a purpose
#
# Suppose your users write English and code, and there is room for a quarter of the tokens. You may count both, but your sample of code is
# small.

# %%
code = token_counts(tokenizer, paragraphs("code", split="calibration"))
print(f"counted: {english.sum():,} tokens of English, {code.sum():,} of code")
distinct = [f"{(counts > 0).sum():,}" for counts in (english, code)]
print(f"different ones: {distinct[0]} in English, {distinct[1]} in code")
exam_parts = {name: parts_of(texts[1::2]) for name, texts in unread.items()}
mixed = exam_parts["speeches"] + exam_parts["wiki"]
exam_parts = {"English": mixed, "code": exam_parts["code"]}
exam = VocabularyExam(base, tokenizer, exam_parts, pairs.size // 4)

# %% [markdown]
# ### Exercise 5 · ●●● · 15 minutes
#
# Write `worth(english, code)`. It gets the two counts, [vocabulary] each, and returns a number for each token. The tokens of the largest
# numbers stay, a quarter of the vocabulary. The exam judges on documents that nothing else has read. Its rival is the first quarter by
# number. Of what the rival adds to the bits of each text, yours may add at most 95 % on English and 40 % on code. You have three tries,
# and the first takes about a minute.
#
# <details><summary>Hint</summary>
#
# Look at the two totals printed above. If you add the counts, who decides? Make the two comparable first.
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_13 import check_worth


# BEGIN SOLUTION
def worth(english, code):
    return english / english.sum() + code / code.sum()


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
# The whole model, with nothing cut, reads code in the small tokenizer's pieces, and loses nearly twice as much per byte. Why?
#
# - [ ] It doesn't understand the code any more.
#   > Then words behind strange pieces would be dear as well, and they hardly are.
# - [ ] The cut head does the harm.
#   > Here no head was cut.
# - [x] It is asked to write pieces that it would never write.
#   > Right: "alse" behind "F", for example.

# %% [markdown]
# ## Take-aways
#
# - A vocabulary can be cut if it stays closed under merges and keeps the bytes.
# - On text whose tokens stay, the loss per token can only fall. That is a gift of fewer rivals.
# - Two tokenizers are compared in **bits per byte**, and by the tokens that a text takes.
# - Texts that nobody counted pay. The model reads their strange spellings well, but it would never write them, because a piece also tells
#   what it is not the beginning of.
# - A few tokens can make most of the harm. Here they were white space.
#
# **On Monday:** before you trim a vocabulary, encode a page of everything that your users write, count how many more tokens it takes, and
# look at the pieces. That costs no run of the model.
#
# **Next:** lesson 14 puts the course together.
#
# ## References
#
# - Yang et al. 2022, *TextPruner*, arXiv 2203.15996: a toolkit that prunes a model's vocabulary among other things
# - Bogoychev et al. 2024, *The Ups and Downs of Large Language Model Inference with Vocabulary Trimming by Language Heuristics*, arXiv
#   2311.09709: half the memory of small models, and harm that differs from language to language
# - Sennrich et al. 2016, *Neural Machine Translation of Rare Words with Subword Units*, arXiv 1508.07909: byte pair encoding
