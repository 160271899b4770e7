"""Checks of lesson 04, depth pruning: surgery, constants of blocks, a lower volume, and a patient to heal."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from course_utils.lessons.exercises import Attempt, exercise, expect, number, require, untouched, whole_number
from course_utils.measuring.language_modelling import logits_one_by_one
from course_utils.models.loading import tiny_llama, variant
from course_utils.pruning.depth import remove_blocks
from course_utils.text.rows import TokenBlocks

_UNHEARD, _HEALED = 0.8, 1 / 3  # shares of the patient's harm that a number leaves: useless above, enough below
_LARGER = 4  # a disguised model's state; a power of two, so that no number is rounded
_GONE = (1, 3)  # of five blocks; with neither end, so that every mistake below has its own symptom


def _take_out(model, gone):
    """The answer to exercise 1."""
    kept = [block for number, block in enumerate(model.model.layers) if number not in gone]
    for place, block in enumerate(kept):
        block.self_attn.layer_idx = place
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


@exercise(
    1,
    task="Write take_out_blocks: the given function without its two bugs. Return the model.",
    proved="Right blocks, right numbers: with the cache, without it, and after a reload.",
    answer=_take_out,
)
@torch.no_grad()
def check_take_out(attempt: Attempt) -> None:
    """Check a function (model, block numbers) -> the model without these blocks."""
    original = tiny_llama(blocks=5, vocab_size=61)
    blocks = list(original.model.layers)
    expected = [i for i in range(len(blocks)) if i not in _GONE]
    for gone in (list(_GONE), list(reversed(_GONE))):
        model = attempt(copy.deepcopy(original), gone)  # the learner may write into its weights
        expect(model, LlamaForCausalLM, "Return the model")
        kept = [_find(block, blocks) for block in model.model.layers]
        require(
            len(kept) == len(expected),
            f"{len(kept)} blocks are left of {len(blocks)} when {gone} go; there should be {len(expected)}.",
        )
        require(
            kept == expected,
            f"Asked to remove {gone} of {len(blocks)}, you kept blocks {kept} instead of {expected}. Deleting one "
            "block moves all behind it up, so the next number is another block. Go by the old numbers, all at once.",
        )
        numbers = [block.self_attn.layer_idx for block in model.model.layers]
        require(
            model.config.num_hidden_layers == len(kept),
            f"config.num_hidden_layers is {model.config.num_hidden_layers}, but {len(kept)} blocks are left. A reload "
            "would make up the missing ones, with random weights.",
        )
        require(
            numbers != expected,
            f"The blocks that stay still have their old self_attn.layer_idx, {numbers}. Without a cache nobody reads "
            f"it; with one, {_with_cache(model)}. Number them anew: 0, 1, 2, …",
        )
        require(
            numbers == list(range(len(kept))),
            f"layer_idx is {numbers}; it must be 0, 1, 2, … in the order of the blocks.",
        )
        ids = _ids()
        torch.testing.assert_close(
            logits_one_by_one(model, ids), model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4
        )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            model.save_pretrained(folder)
            reloaded = LlamaForCausalLM.from_pretrained(folder).eval()
        require(
            torch.equal(reloaded(ids).logits, model(ids).logits),
            "After save_pretrained and from_pretrained the model gives other logits.",
        )


@torch.no_grad()
def _constants(model, rows, *, what=lambda before, after: after - before, tokens=slice(1, None), mean=(0, 1)):
    """The answer to exercise 2, with switches for mistakes."""
    found: list[Tensor] = []

    def note(_block, inputs, output):
        found.append(what(inputs[0].float(), output.float())[:, tokens].mean(dim=mean))

    hooks = [block.register_forward_hook(note) for block in model.model.layers]
    model.model(rows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


@exercise(
    2,
    task="Return a tensor [blocks, channels].",
    proved="For each block you have the one vector that it adds on average to every token but the first.",
    answer=_constants,
    mistakes=[
        (partial(_constants, tokens=slice(None)),
         "The first token of each row is in your mean. Its state is unlike all others, so leave it out."),
        (partial(_constants, tokens=slice(None, 1)), "That is the first token's alone. Take all tokens but the first."),
        (partial(_constants, tokens=slice(None, -1)), "You leave out the last token instead of the first."),
        (partial(_constants, what=lambda before, after: after),
         "That is the state behind each block. Take away the state before it: what does the block *add*?"),
        (partial(_constants, what=lambda before, after: before), "That is the state before each block."),
        (partial(_constants, what=lambda before, after: before - after), "The sign is wrong: output minus input."),
        (partial(_constants, mean=(0, 2)), "You average over channels. Average over rows and tokens."),
        (partial(_constants, mean=1), "Average over the rows as well: one vector for each block."),
    ],
)  # fmt: skip
def check_constants(attempt: Attempt) -> None:
    """Check a function (model, rows) -> what each block adds on average, [blocks, channels]."""
    model = tiny_llama(blocks=4)
    rows = torch.randint(60, (3, 7), generator=torch.Generator().manual_seed(4))

    def read(answer: Any) -> Tensor:
        answer = torch.stack([*answer]) if isinstance(answer, list | tuple) else answer
        expect(answer, Tensor, "Return a tensor [blocks, channels]")
        return answer

    with untouched(model, weights=False):
        attempt.compare(model, rows, read=read, where="For a tiny Llama: ")


def _turn_down(
    model, first, factor, *, parts=("input_layernorm", "post_attention_layernorm"), head=True, edit=torch.mul
):
    """The answer to exercise 3, with switches for mistakes."""
    sites = [getattr(block, part) for block in model.model.layers[first:] for part in parts]
    sites += [model.model.norm] if head else []
    return [site.register_forward_hook(lambda _site, _inputs, output: edit(output, factor)) for site in sites]


@exercise(
    3,
    task="Register the hooks, and return their handles in a list.",
    proved="From that block on everything is heard at the lower volume, and the handles turn it up again.",
    answer=_turn_down,
    mistakes=[
        (partial(_turn_down, head=False), "the head still hears everything at full volume: `model.model.norm`."),
        (partial(_turn_down, parts=("input_layernorm",)), "MLPs still hear full volume: `post_attention_layernorm`."),
        (partial(_turn_down, parts=("post_attention_layernorm",)),
         "attention still hears full volume: `input_layernorm`."),
        (partial(_turn_down, parts=()), "only the head hears less. Turn down the norms of the blocks, too."),
        (lambda model, first, factor: _turn_down(model, first + 1, factor), "block `first` itself isn't turned down."),
        (lambda model, first, factor: _turn_down(model, 0, factor), "blocks before `first` are turned down as well."),
        (partial(_turn_down, edit=torch.div), "you divide by the factor. Multiply: 0.5 is half as loud."),
        (partial(_turn_down, edit=lambda output, _factor: output),
         "nothing changes. Does your hook return the new output?"),
    ],
)  # fmt: skip
@torch.no_grad()
def check_turn_down(attempt: Attempt) -> None:
    """Check a function (model, first, factor) -> handles of hooks that multiply what norms put out."""
    model, ids = tiny_llama(blocks=4), torch.arange(1, 19).view(3, 6)
    plain = model(ids).logits

    def logits(handles: Any) -> Tensor:
        expect(handles, list | tuple, "Return a list of handles")
        quiet = model(ids).logits
        for handle in handles:
            handle.remove()
        require(
            torch.equal(model(ids).logits, plain),
            "After all your handles are removed the model isn't as before. Is a handle missing in your list, or did "
            "you change a weight?",
        )
        return quiet

    with untouched(model, weights=False):
        attempt.compare(model, 2, 0.5, read=logits, where="On a tiny Llama ")


@torch.no_grad()
def disguised(model: PreTrainedModel) -> PreTrainedModel:
    """The same Llama with its channels in another order and a larger state: it predicts what the first predicts.

    Each norm divides by the size of the state, so a larger one is read as before. Only rounding differs.
    """
    disguise = variant(model)
    core, size = disguise.model, model.config.hidden_size
    order = torch.randperm(size, generator=torch.Generator().manual_seed(4)).to(model.device)

    def give(module: nn.Module, weight: Tensor) -> None:
        module.weight = nn.Parameter(weight.contiguous(), requires_grad=False)

    tied = disguise.lm_head.weight is core.embed_tokens.weight
    give(core.embed_tokens, core.embed_tokens.weight[:, order] * _LARGER)
    give(core.norm, core.norm.weight[order] / (_LARGER if tied else 1))  # a tied head grew with the embedding
    if tied:
        disguise.lm_head.weight = core.embed_tokens.weight
    else:
        give(disguise.lm_head, disguise.lm_head.weight[:, order])
    core.norm.variance_epsilon *= _LARGER**2
    for block in core.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            give(norm, norm.weight[order])
            norm.variance_epsilon *= _LARGER**2
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            give(reader, reader.weight[:, order])
        for writer in (attention.o_proj, mlp.down_proj):
            give(writer, writer.weight[order] * _LARGER)
            if writer.bias is not None:
                writer.bias = nn.Parameter(writer.bias[order] * _LARGER, requires_grad=False)
    return disguise


def patient_of(healthy: PreTrainedModel, writes: Tensor, known: Sequence[int]) -> PreTrainedModel:
    """The healthy Llama without two redundant blocks: it can do without either of them, but not without both.

    Args:
        healthy: stays as it is.
        writes: [blocks], what each block writes into the giant channel.
        known: the pair that the lesson names; the second of them stays.
    """
    writers = writes.abs().topk(3).indices.tolist()
    patient = variant(healthy)
    remove_blocks(patient, sorted({*writers} - {known[1]}))
    return patient


@exercise(
    4,
    task="Give three numbers: a block of the patient, a channel, and the number that is missing there.",
    proved="You found out what was missing, where, and how much of it, in a model that you had never seen.",
)
@torch.no_grad()
def check_treatment(
    treatment: Any,
    patient: PreTrainedModel,
    healthy: PreTrainedModel,
    exam: Mapping[str, TokenBlocks],
) -> None:
    """Check one number for one channel of all tokens that heals a model without two of its blocks.

    Args:
        treatment: (block of the patient, channel, number), to be added behind that block.
        patient: the model without the blocks.
        healthy: the model with them.
        exam: rows of each text that nothing has used.
    """
    expect(treatment, Iterable, "Give three numbers, such as (3, 100, 2.5)")
    given = treatment.tolist() if isinstance(treatment, Tensor) else [*treatment]
    require(len(given) == 3, f"Three numbers are asked for: block, channel, number. You give {len(given)}.")
    block = whole_number(given[0], "The block is a whole number")
    channel = whole_number(given[1], "The channel is a whole number")
    missing = number(given[2], "The last one is a number")
    last, size = len(patient.model.layers) - 1, patient.config.hidden_size
    require(0 <= block <= last, f"The patient's blocks have numbers from 0 to {last}; yours is {block}.")
    require(0 <= channel < size, f"The channels have numbers from 0 to {size - 1}; yours is {channel}.")
    require(math.isfinite(missing), f"The number must be finite; yours is {missing}.")

    def treat(_block: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., channel] += missing
        return output

    well, ill = (_losses(model, exam) for model in (healthy, patient))
    handle = patient.model.layers[block].register_forward_hook(treat)
    try:
        treated = _losses(patient, exam)
    finally:
        handle.remove()
    left = max((treated[text] - well[text]) / (ill[text] - well[text]) for text in well)
    require(
        left < _UNHEARD,
        f"Behind block {block}, this number in channel {channel} doesn't help. Where do the two models part? Compare "
        "their mean states block by block, over all tokens but the first. And mind the last block: it writes "
        "anew into many channels, so behind it the two differ in things that nobody missed.",
    )
    require(
        left < _HEALED,
        "It helps, but over a third of the harm is left. Is that all of the number that is missing, and does it come "
        "as early as it is needed?",
    )


def _losses(model: PreTrainedModel, exam: Mapping[str, TokenBlocks]) -> dict[str, float]:
    losses = {}
    for text, rows in exam.items():
        ids = rows.input_ids.to(model.device)
        losses[text] = model(ids, labels=ids, use_cache=False).loss.item()
    return losses


def _ids() -> Tensor:
    return torch.randint(61, (1, 6), generator=torch.Generator().manual_seed(1))


def _find(block: Any, blocks: list[Any]) -> int | None:
    """The number of the block with the same weights, None if there is none."""
    same = (torch.equal(block.mlp.up_proj.weight, other.mlp.up_proj.weight) for other in blocks)
    return next((number for number, equal in enumerate(same) if equal), None)


def _with_cache(model: LlamaForCausalLM) -> str:
    try:
        logits_one_by_one(model, _ids())
    except Exception as error:  # which one depends on the transformers version; the learner should see its name
        return f"this model stops with an {type(error).__name__}"
    return "each block uses the wrong place"
