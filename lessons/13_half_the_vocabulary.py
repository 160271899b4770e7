# ---
# jupyter:
#   course:
#     title: "Half the vocabulary goes: who pays?"
#     minutes: 100 to 120 minutes
#     prerequisites: lesson 01 (loss, random cuts), lesson 03 (the activation score)
#     assets: [smollm2, texts, speeches, abilities]
#     concepts: [vocabulary pruning, byte pair encoding, closed under merges, bits per byte]
# ---

# %% [markdown]
# ## The question
#
# A fifth of a small model's parameters are a table with a row for each token that it can read and write. We keep the half of the rows
# that English prose uses most, and train nothing: **vocabulary pruning**. No code was counted, and yet perplexity on code hardly moves.
# Then we swap thirteen of the rows, and it jumps from 21 to 36. But after the swap the model needs *fewer* bits for each byte of code!
#
# How can that be? And who pays for the half that went?
#
# <details><summary>The answer, if you want it now</summary>
#
# **Answer.** Code pays, because nobody counted it. Prose isn't indented, so the tokens for indentation go, and a program is then written
# space by space. Each byte of code costs nearly twice as much. Perplexity doesn't see this, because it is an average over tokens, and
# there are nearly twice as many of them. Put thirteen tokens of white space back, and half of the harm is gone. The tokens that are left
# are fewer, and on average harder, so perplexity *rises*. That is why two vocabularies are compared by bits per byte.
#
# </details>

# %% [markdown] tags=["notes"]
# **The point:** perplexity per token can't compare two vocabularies. Bits per byte can. What nobody counted is spelled in many small
# pieces, which the model reads well and never learned to write. A few tokens make most of the harm, and one look at a line finds them.
#
# **Usual questions:** "Can the model still write everything?" Yes, because all single bytes stay. "Why do the kept logits stay the
# same?" Nothing that makes them was changed. "Would training help?" Surely, and we didn't measure it.
#
# **Wrong turns:** closing a set by one step only; a gift with the wrong sign; putting back words of code; in the last exercise, adding
# counts of unequal samples.
#
# **At the end you have** a vocabulary for English and code with a quarter of the tokens, and a measure that compares any two tokenizers.

# %% tags=["install"]

# %%
import random
from collections import Counter

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch

from course_utils.lessons import claim, here
from course_utils.measuring import perplexity
from course_utils.models import load_model, variant
from course_utils.pruning import choose_tokens, prune_vocabulary, token_counts
from course_utils.support import show, start, style
from course_utils.text import documents
from course_utils.text.byte_pairs import BytePairs

session = start("13")
style()
base, tokenizer = load_model("llama")
base.requires_grad_(False)
pairs = BytePairs.of(tokenizer)
print(f"{pairs.size:,} tokens, {base.num_parameters():,} parameters")
share = base.get_input_embeddings().weight.numel() / base.num_parameters()
print(f"the embedding, which is the head as well, holds {share:.0%} of them")

# %% [markdown]
# ## How a text becomes tokens
#
# This tokenizer begins with single bytes. Then it merges two neighbours into one token, again and again, by a list of merges that it
# learned from text. This is **byte pair encoding** (BPE). *t* and *he* become *the*, and so on. So every longer token is merged from
# two shorter ones. Here is one word, and the tokens that it is made from.

# %%
word = tokenizer(" function", add_special_tokens=False).input_ids[0]
todo = [word]
while todo:
    token = todo.pop(0)
    parts = pairs.merged_from.get(token, ())
    if parts:
        names = [tokenizer.decode(part) for part in parts]
        print(repr(tokenizer.decode(token)), "from", names)
    todo += parts

# %% [markdown]
# If a part goes, what is merged from it can't be written any more. So the tokens that stay must be **closed under merges**: with each
# token its two parts stay, and their parts, down to single bytes. As the bytes stay, all that the whole tokenizer can write can still be
# written.

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
# A rival needs no counting: the **first half by number**. BPE learned its tokens in that order, the most frequent merges first.
#
# We judge on other documents, in parts of 240 characters from random places, and on Python code, which we didn't count. (It is the code
# of one package.)

# %%
from course_utils.measuring.abilities import paragraphs

PROSE = ("speeches", "wiki")
PARTS = {"speeches": 8, "wiki": 8, "code": 16}  # parts of code differ more


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

# %% [markdown]
# With your function we add the parts of all tokens that this prose used even once. They are more than there is room for, so only a token
# that prose used, or a part of one, gets a place. Then we measure **perplexity**, exp of the mean loss per token. (It is high because the parts are short and begin
# anywhere.)

# %%
used = check_close.accepted(english.nonzero().flatten().tolist(), pairs.merged_from)
print(f"with their parts {len(used):,} tokens; there is room for {half:,}")

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
# Nobody counted code, and yet its perplexity rises less than that of prose, which was counted. Before we believe that, we ask what the
# cut does to the loss.
#
# ## Fewer rivals
#
# Give both models the same tokens. Then their states are the same, and so are the logits of the tokens that stay. But the softmax divides
# by a smaller sum, because the other tokens no longer compete. If the kept tokens together had the probability $m$ at some place of the
# text, then each of them now has its old probability divided by $m$. The loss falls there by
#
# $$\mathrm{gift} = -\ln m \ge 0$$
#
# So on a text whose tokens all stay, the loss can only fall. The model hasn't become better. It only has fewer tokens to choose from.
# (Our texts lose some tokens. That is why their perplexity rises all the same.)

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

kept = torch.tensor(frequent).to(base.device)  # the old number of each new one
new_ids = rows_of(small_tokenizer, judged["wiki"][:1])[0]["input_ids"]
new_ids = new_ids.to(base.device)
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
# So a loss per token can fall for free. It has a second fault: it is an average over tokens. Cut the same text into twice as many, and
# the same total gives half the average. Bytes belong to the text, not to the tokenizer. So we add up the nats of a text and divide by
# its bytes: **bits per byte**.

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
# **Predict before you run.** By perplexity, code suffers least. What will its bits per byte say, and how many more tokens does code take?
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
# a higher bill. Why code? Look at one of its lines, and at what each piece of it costs.


# %%
def losses_of(part, model, cutter, numbers=None):
    """Nats of each piece of a part: {(begin, end) in characters: nats}."""
    found = cutter(part, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([[cutter.eos_token_id, *found.input_ids]]).to(model.device)
    ids = ids if numbers is None else numbers[ids]
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    nats = cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    by_place = Counter()
    for place, loss in zip(found.offset_mapping, nats, strict=True):
        by_place[place] += loss  # the bytes of one character have one place
    return by_place


def more_pieces(line):
    return len(small_tokenizer(line).input_ids) - len(tokenizer(line).input_ids)


lines = {}
for part in judged["code"]:
    found = [f"\n{line}" for line in part.split("\n")[1:-1]]
    lines |= {line: part for line in found if line.strip() and len(line) < 72}
lines = lines or {part: part for part in judged["code"]}
line = max(lines, key=more_pieces)
part = lines[line]
start_of_line = part.index(line)


# %%
def draw(spellings):
    """The line as each model cuts it, and what each piece costs that model."""
    size = {"figsize": (12, 2.2 * len(spellings)), "layout": "constrained"}
    _, panels = plt.subplots(len(spellings), sharex=True, sharey=True, **size)
    shades = sns.color_palette("muted", 2)
    letters = line.replace("\n", "↵").replace(" ", "·")
    for panel, (name, with_what) in zip(panels, spellings.items(), strict=True):
        pieces = {}
        for (begin, end), nats in losses_of(part, *with_what).items():
            if start_of_line <= begin < start_of_line + len(line):
                pieces[begin - start_of_line, end - start_of_line] = nats
        for number, ((begin, end), nats) in enumerate(pieces.items()):
            look = {"color": shades[number % 2], "align": "edge"}
            panel.bar(begin, nats, width=end - begin, **look)
            panel.bar(begin, -0.9, width=end - begin, **look, alpha=0.4)
        panel.set_xticks([place + 0.5 for place in range(len(line))], [*letters])
        panel.tick_params(labelbottom=True, length=0)
        cost, count = sum(pieces.values()), len(pieces)
        told = f"{count} pieces, {cost:.0f} nats, {cost / count:.1f} per piece"
        panel.set(title=f"{name}: {told}", ylabel="nats")
        panel.grid(visible=False, axis="x")


spellings = {"all tokens": (base, tokenizer), "half": (small, small_tokenizer)}
draw(spellings)
show(
    "What each piece of one line of code costs, as bars as wide as the piece. "
    "With all tokens the line break and its spaces are one wide piece; with half "
    "of them each space is a narrow piece of its own."
)

# %% [markdown]
# *One line of code; ↵ is a line break, · a space. The pale strip shows the pieces (their two colours only take turns), and each bar is as
# high as its piece's loss, given what stands before the line. Above with the whole vocabulary, below with the half that is frequent in prose. Of the lines judged here it
# gains the most pieces.*

# %% [markdown]
# ### Exercise 4 · ●●○ · 20 minutes
#
# The figure shows what code lost. Prove it by putting it back. Write `put_back(text)`, which gets the text of one token, such
# as `" the"`, and returns `True` if this token must stay. With their parts at most 16 tokens may come back, and as many of the rarest in
# prose leave. The check cuts the model again and measures. At least a third of the harm to code must go.
#
# <details><summary>Hint</summary>
#
# What is one piece in the upper half of the figure, and many in the lower? Other lines have it, too, in other lengths. How long are the
# most common ones?
#
# </details>

# %% tags=["exercise"]
from course_utils.lessons.exercises.lesson_13 import VocabularyExam, check_put_back

texts_of_tokens = tokenizer.batch_decode([[one] for one in range(pairs.size)])
of_code = VocabularyExam(base, tokenizer, {"code": judged["code"]}, half)


# BEGIN SOLUTION
def put_back(text):
    # the last space of an indentation belongs to the next word
    return text in {"\n" + " " * (4 * depth - 1) for depth in range(1, 7)}


# END SOLUTION
# BEGIN STUB
# def put_back(text):
#     ...  # True or False
# END STUB
check_put_back(put_back, texts_of_tokens, english, of_code)

# %% [markdown]
# ## A repair that perplexity calls damage
#
# As a control we put back as many other tokens that went: the words that a sample of code uses most.
#
# **Predict before you run.** With the white space back, code costs less per byte. What does its perplexity per token do? And with the
# words? Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# With the white space it jumps, from 21.41 to 35.55, though a byte of code then costs a quarter less! With the words nearly nothing
# happens.
#
# </details>

# %%
needed = check_put_back.accepted  # yours, once it is right
code = token_counts(tokenizer, paragraphs("code", split="calibration"))


def repaired(back):
    """The tokens of the half with these back."""
    return choose_tokens(tokenizer, english + back * english.sum(), keep=half)


spaces = torch.tensor([bool(needed(text)) for text in texts_of_tokens])
tokens = repaired(spaces)
rows, left = set(tokens) - set(frequent), set(frequent) - set(tokens)
most = max((english[one] for one in left), default=0)
print(f"{len(rows)} tokens are back, with the numbers {sorted(rows)}")
print(f"prose had used each token that left for them at most {most} times")
words = code.clone()
words[frequent] = 0
words[[not text.strip() for text in texts_of_tokens]] = 0
words = torch.zeros_like(code).index_fill(0, words.topk(len(rows)).indices, 1)
arms = {name: scores["code"] for name, scores in riddle.items()}
with_spaces, with_words = cut(tokens), cut(repaired(words))
for name, arm in {"spaces back": with_spaces, "words back": with_words}.items():
    arms[name] = perplexity(arm[0], rows_of(arm[1], judged["code"]))
on_code = pd.DataFrame(
    {name: [score.perplexity, score.bits_per_byte, score.tokens]
     for name, score in arms.items()},
    index=["perplexity", "bits per byte", "tokens"],
).T  # fmt: skip
worse, better, _ = on_code.loc["spaces back"] - on_code.loc["half"]
claim("Repaired, code costs less, and its perplexity is higher.", [worse, -better])
saved = on_code["bits per byte"]["half"] - on_code["bits per byte"]
margin = saved["spaces back"] - 3 * saved["words back"]
here("White space heals over three times as much as words.", [margin])
on_code.round(2)

# %% [markdown]
# *Code with all tokens, with the more frequent half, and with the same half when tokens of white space, or as many words, come back.*

# %%
draw({**spellings, "spaces back": with_spaces})
show(
    "The same line in three spellings. Repaired it has few pieces again, which "
    "cost less in all and more on average than the many of the half."
)

# %% [markdown]
# *The same line. Below, the repaired model. What the line costs is the sum of the heights, and the logarithm of perplexity is their mean.*
#
# (The words save hardly a token, because each of them is rare. White space is everywhere.)
#
# The repair takes many cheap pieces away. So the sum falls, and the mean of those that are left rises. Whoever trusts perplexity here
# would throw the repair away.
#
# ## Where the harm sits
#
# The kept logits are the same, and the gift only helps. So all the harm must come from the spelling. To test this, we give the **whole**
# model, with nothing cut, the code in the pieces of the half. And which letters have become dear? We sort the letters of code by the piece that they belong to in the whole tokenizer: white space, the first word behind it, a word that the
# half has to split, or any other piece.
#
# **Predict before you run.** Which of the four grows most with the half? And which are cheap again when the thirteen tokens are back?
# Because …
#
# <details><summary>What we saw (saved run, embedded profile)</summary>
#
# White space grows most, from 0.09 to 0.65 bits per byte, and it is cheap again when the thirteen are back. Split words go from 0.28 to
# 0.69, and stay dear. The whole model does even worse on the pieces of the half than the half itself.
#
# </details>


# %%
def kinds_of(text, own, strange):
    """A kind for each letter of a text, by the whole tokenizer's pieces."""
    found, before = {}, ""
    for begin, end in own:
        piece = text[begin:end]
        if not piece.strip():
            kind = "white space"
        elif before and not before.strip():
            kind = "the word behind it"
        else:
            kind = "another piece" if (begin, end) in strange else "a split word"
        found |= dict.fromkeys(range(begin, end), kind)
        before = piece
    return found


# %%
spellings["all tokens, spelled as in the half"] = base, small_tokenizer, kept
spellings["spaces back"] = with_spaces
order = ["white space", "the word behind it", "a split word", "another piece"]
by_kind = pd.DataFrame(0.0, index=list(spellings), columns=order)
for text in judged["code"]:
    costs = {name: losses_of(text, *each) for name, each in spellings.items()}
    kinds = kinds_of(text, costs["all tokens"], costs["half"])
    for name, pieces in costs.items():
        for (begin, _), nats in pieces.items():
            by_kind.loc[name, kinds[begin]] += to_bits([nats], judged["code"])
by_kind.plot.barh(stacked=True, figsize=(10, 3.2), width=0.7).invert_yaxis()
plt.xlabel("bits per byte of code")
plt.legend(title="", loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=4)
show(
    "Bits per byte of code as stacked bars. White space and split words have grown "
    "most in the half, and as much where the whole model is given its spelling. "
    "With thirteen tokens back, white space is small again."
)
more = (by_kind.loc["half"] - by_kind.loc["all tokens"]).to_numpy()
margin = more[[0, 2]].min() - more[[1, 3]].max()
claim("White space and split words grow more than the rest.", [margin])
by_kind.round(2)

# %% [markdown]
# *What a byte of code costs, by the piece that its letters belong to in the whole tokenizer.*
#
# Each single space is cheap, but there are hundreds of them, and behind each one the model has to guess anew whether another follows. When
# a word comes at last, it is a surprise. (In the line of the figure the surprise at *del* is the larger part. Over all the code it is the
# smaller one.) The thirteen tokens undo nearly all of the first and half of the second. What is left are the split words.
#
# (Our loader takes the white space around line breaks out of prose. We have counted prose with it as well: the thirteen don't occur there
# either.)
#
# ## Why is a split word so dear?
#
# `False` is one token, and it went. The small tokenizer spells it in two pieces. We ask the whole model what it would write behind the
# first one.

# %%
code_line = "def find(self, name):\n    if name not in self:\n        return False"


def wishes_behind(ids):
    """The whole model's probability of each next token."""
    ids = torch.tensor([[tokenizer.eos_token_id, *ids]]).to(base.device)
    with torch.no_grad():
        return base(ids).logits[0, -1].softmax(-1)


own = tokenizer(code_line, add_special_tokens=False).input_ids
print(f"in its own spelling: {wishes_behind(own[:-1])[own[-1]]:.1%} for False")
strange = small_tokenizer(code_line, add_special_tokens=False).input_ids
strange = kept[strange].tolist()
wishes = wishes_behind(strange[:-1])
print("behind", repr(tokenizer.decode(strange[-2])), "it would write")
for token in [*wishes.topk(2).indices.tolist(), strange[-1]]:
    print(f"{wishes[token]:10.4%} {tokenizer.decode(token)!r}")

# %% [markdown]
# A piece also tells what it is *not* the beginning of. The model learned from text in which *False* was always one token. So " F" alone has
# always meant that this isn't *False*, and the model goes on with *AL*, as in *FALSE*. It hasn't forgotten the word. It would never write
# it so.

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
# From the cheapest: first by number, neurons, a random half, and last the half that is frequent in prose. For code it is worse
# than this random half.
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
# *Bits per byte after three vocabulary cuts and a neuron cut of as many parameters, as multiples of the whole model's.*
#
# On prose the neuron cut is about as good as the first half, and on code it is worse. (Its neurons were scored on speeches. We didn't try
# what a score on code would change.)
#
# Now the half at other sizes.

# %%
sizes = (0.25, 0.5, 0.55, 1)
curves = {0.5: cost["frequent"], 1: 1.0}
curves |= {share: cost_of(english, share) for share in (0.25, 0.55)}
curves = pd.DataFrame(curves, index=list(judged))[list(sizes)]
_, panel = plt.subplots(figsize=(8, 4.6), layout="constrained")
for text, shade in zip(judged, sns.color_palette("colorblind"), strict=False):
    panel.plot(sizes, curves.loc[text], marker="o", color=shade, label=text)
look = {"marker": "D", "color": shade, "linestyle": ""}
panel.plot(0.5, first["code"], **look, label="code, first by number")
panel.set(xlabel="share of the tokens that stay")
panel.set(ylabel="bits per byte (× the whole model's)")
panel.legend(title="text")
show(
    "Bits per byte of three texts against the share of tokens kept, by frequency "
    "in prose. With a quarter and with a half, code costs about twice the whole "
    "model's bits; with 55 per cent hardly more than prose."
)

# %% [markdown]
# *A line per text; the tokens that are frequent in prose stay. The diamond is code with the first half by number.*
#
# There is a cliff just above the half! With 55 % there is room for tokens that prose never used, and among these `choose_tokens` takes
# the first by number. You have seen the numbers of the thirteen: they are low, because indentation was frequent in the text that the
# tokenizer learned from. (The cliff stands where our count runs out. A longer count would move it.)
#
# So a count says much of what was counted and nothing of the rest. The order of the numbers is a count as well, of the text that the
# tokenizer's makers had, and it seems that code was among it.
#
# ## A vocabulary for a purpose
#
# Suppose your users write English and code, and there is room for a quarter of the tokens. You may count both, but your sample of code is
# small.

# %%
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
# numbers stay, a quarter of the vocabulary. The exam judges on documents that nothing else has read. (Its code is from the same package
# as your sample, so it knows the package's names.) Its rival is the first quarter by number. On code, what you add to the bits per byte may
# be at most 0.4 times what the rival adds, and on English 0.95 times. You have two tries, and the first takes about a minute.
#
# <details><summary>Hint</summary>
#
# Look at the two totals printed above. If you add the counts, who decides?
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
# Model B has a smaller vocabulary than model A and a lower perplexity on the same text. What follows?
#
# - [ ] B predicts the text better.
#   > It may write it in more tokens. Add up the nats, and divide by bytes.
# - [x] Nothing yet, as the two divide by different numbers of tokens.
#   > Right. Compare bits per byte.
# - [ ] B was trained on this text.
#   > More tokens and fewer rivals can do it without any training.

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
# The whole model, with nothing cut, gets code in the small tokenizer's pieces, and loses much more on it. Why?
#
# - [ ] It doesn't understand the code any more.
#   > In its own spelling it finds *False* possible, and in these pieces nearly impossible.
# - [ ] The cut head does the harm.
#   > Here no head was cut.
# - [x] It is asked to write pieces that it would never write.
#   > Right: "alse" behind " F", for example.

# %% [markdown]
# ## Take-aways
#
# - A vocabulary can be cut if it stays closed under merges and keeps the bytes.
# - On text whose tokens stay, the loss per token can only fall. That is a gift of fewer rivals.
# - Two tokenizers are compared in **bits per byte**, and by the tokens that a text takes.
# - Texts that nobody counted pay. They are spelled as the model would never write them, and a piece also tells what it is not the
#   beginning of.
# - A few tokens can make half of the harm. Here they were white space.
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
# - Phan et al. 2024, *Understanding and Mitigating Tokenization Bias in Language Models*, arXiv 2406.16829: what a piece says of its
#   continuation
# - Sennrich et al. 2016, *Neural Machine Translation of Rare Words with Subword Units*, arXiv 1508.07909: byte pair encoding
