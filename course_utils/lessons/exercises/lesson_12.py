"""Checks of lesson 12, mixtures of experts: a router by hand, the surgery, a calibration's price, a division, a mix."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from course_utils.lessons.exercises import Attempt, alike, assigned, exercise, expect, number, require, run, untouched
from course_utils.lessons.exercises.moved import to_lesson
from course_utils.measuring.evaluation import perplexity
from course_utils.models.architectures import describe
from course_utils.models.loading import identity, variant
from course_utils.pruning.experts import expert_importance, prune_experts
from course_utils.text.kinds import kind_rows
from course_utils.text.rows import TokenBlocks

__getattr__ = to_lesson("11")  # what a notebook from before imports from here
Kinds = Mapping[str, TokenBlocks]
_DRAWS, _GIVEN = 9, (1, 2)  # of the calibration rows; those that exercise 5 gives
# Exercise 5: the kinds that are served; what these and the others may lose, times what they lose by the lesson's mix.
_SERVED, _SPARED, _PAYS = ("code", "maths"), 0.85, 5 / 3


def _weights(logits, top_k, normalised, *, over=-1, largest=True, column=True):
    """The answer to exercise 1, with switches for mistakes."""
    shares = logits.softmax(dim=over)
    values, chosen = shares.topk(top_k, largest=largest)
    if normalised:
        values = values / values.sum(dim=-1, keepdim=True)
    places = chosen if column else torch.arange(top_k).expand_as(chosen)
    return torch.zeros_like(shares).scatter(-1, places, values)


@exercise(
    1,
    task="Return each token's weights [tokens, experts], with 0 for the experts that it isn't sent to.",
    proved="A softmax over all experts, the largest few of it, and then the division, or none.",
    answer=_weights,
    mistakes=[
        (lambda logits, *_: logits.softmax(-1),
         "every expert has a weight. Only the largest few stay, the others are 0."),
        (lambda logits, top_k, _: _weights(logits, top_k, False),
         "divide what is left by its sum, so that a token's weights add up to 1."),
        (lambda logits, top_k, _: _weights(logits, top_k, True),
         "these add up to 1. Not normalised, the weights stay as the softmax over *all* experts has them."),
        (partial(_weights, over=0), "your softmax runs over the tokens. Each token's shares add up to 1: `dim=-1`."),
        (partial(_weights, largest=False), "those are the smallest few."),
        (partial(_weights, column=False),
         "the weights stand in front, in the order of their size. Each belongs into its expert's column."),
        (lambda logits, *rest: logits * (_weights(logits, *rest) > 0),
         "those are logits. The softmax turns them into shares."),
        (lambda *given: (_weights(*given) > 0).float(),
         "those say who is chosen. The weights are the softmax's shares."),
        (lambda logits, top_k, _: (_weights(logits, top_k, True) > 0).float() / top_k,
         "all chosen have the same weight. The softmax says how much each of them counts."),
        (lambda *given: _weights(*given) / _weights(*given).sum(0).clamp(min=1e-9),
         "each expert's weights add up to 1. It is each token's that do: `dim=-1`."),
    ],
)  # fmt: skip
def check_router_weights(attempt: Attempt) -> None:
    """Check a function (logits [tokens, experts], top_k, normalised) -> weights [tokens, experts]."""
    generator = torch.Generator().manual_seed(0)
    for tokens, experts, top_k in ((5, 8, 2), (4, 6, 3), (1, 3, 2), (3, 4, 1)):
        logits = torch.randn(tokens, experts, generator=generator) * 1.5
        for normalised in (True, False):
            attempt.compare(
                logits, top_k, normalised, read=torch.as_tensor, same=partial(alike, atol=1e-5),
                where=f"top {top_k} of {experts}, {'normalised' if normalised else 'not normalised'}: ",
                hint="Return [tokens, experts]: put each weight into its expert's column, and 0 into the others.",
            )  # fmt: skip


@exercise(
    2,
    task="Cut a Qwen3-MoE down to the experts of `kept`, and return it.",
    proved="Router, matrices and fields agree: the cut model is the whole one whose router may not choose the others.",
)
@torch.no_grad()
def check_keep_experts(attempt: Attempt, base: PreTrainedModel) -> None:
    """Check a function (model, kept) -> the model, where kept holds each block's experts, int64, ascending."""
    for source in (_tiny_mixture(), base):
        whole = copy.deepcopy(source).cpu().float()  # whatever the attempt does to it
        generator = torch.Generator().manual_seed(0)
        kept = [
            torch.randperm(mixture.count, generator=generator)[: mixture.count // 2 + 1].sort().values
            for mixture in describe(whole).mixtures
        ]
        ids = torch.randint(whole.config.vocab_size, (2, 16), generator=generator)
        before, untouched_logits = identity(whole), whole(ids).logits
        with _only(whole, kept):
            masked = whole(ids).logits
        result = attempt(variant(whole), [numbers.clone() for numbers in kept])
        expect(result, PreTrainedModel, "Return the model")
        require(
            identity(whole) == before,
            "You wrote into weights that the whole model shares with this one. Give each module a new "
            "`nn.Parameter` that holds the rows that stay.",
        )
        _has_kept(result, kept, whole)
        logits = run(result, ids, where="The cut model doesn't run. ").logits
        changed, off = float((untouched_logits - masked).abs().max()), float((logits - masked).abs().max())
        require(
            off < 1e-3 * max(changed, 1e-3),
            f"The logits differ from the whole model's whose router may not choose the others, by {off:.1e}; without "
            f"the mask they would by {changed:.1e}.",
        )
        if source is not base:
            _reloads(result, ids, logits)


def _tiny_mixture() -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True, bos_token_id=0,
        eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))  # fresh ones are so small that no mistake would show
    return model.eval()


@contextmanager
def _only(model: PreTrainedModel, kept: list[Tensor]) -> Iterator[None]:
    """For a while, no router of a Qwen3-MoE may choose other experts."""

    def masked(numbers: Tensor) -> Callable:
        def hook(router: Any, _args: tuple, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            gone = torch.ones(given[0].shape[-1], dtype=torch.bool).index_fill(0, numbers, False)
            logits = given[0].masked_fill(gone, -torch.inf)
            values, chosen = logits.softmax(-1, dtype=torch.float).topk(router.top_k)
            if router.norm_topk_prob:
                values = values / values.sum(-1, keepdim=True)
            return logits, values.to(logits.dtype), chosen

        return hook

    hooks = [
        mixture.router.register_forward_hook(masked(numbers))
        for mixture, numbers in zip(describe(model).mixtures, kept, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _has_kept(model: Any, kept: list[Tensor], whole: Any) -> None:
    """Stop unless each block holds its experts, in this order, and says how many they are."""
    count = len(kept[0])
    for block, (layer, old, numbers) in enumerate(zip(model.model.layers, whole.model.layers, kept, strict=True)):
        router, experts = layer.mlp.gate, layer.mlp.experts
        require(
            len(router.weight) == count,
            f"Block {block}'s router still has {len(router.weight)} rows. Keep those of the experts that stay; else it "
            "sends tokens to experts that are gone.",
        )
        for name in ("gate_up_proj", "down_proj"):
            held = len(getattr(experts, name))
            require(held == count, f"`{name}` of block {block} holds {held} experts; {count} are to stay.")
        for name, now, before in (
            ("router", router.weight, old.mlp.gate.weight),
            *((name, getattr(experts, name), getattr(old.mlp.experts, name)) for name in ("gate_up_proj", "down_proj")),
        ):
            require(
                torch.equal(now.detach().cpu().float(), before.detach()[numbers]),
                f"Block {block}: the {name} keeps other experts than `kept[{block}]`, or in another order. The "
                "router's row 0 must belong to expert 0 of each stack.",
            )
        for owner, name in ((router, "gate.num_experts"), (experts, "experts.num_experts")):
            require(
                owner.num_experts == count,
                f"Block {block}: `{name}` is still {owner.num_experts}. The modules note how many experts there are.",
            )
    require(
        model.config.num_experts == count,
        f"`config.num_experts` is still {model.config.num_experts}: whoever loads the saved model builds as many, and "
        "fills the missing ones at random.",
    )
    require(
        model.config.num_experts_per_tok == whole.config.num_experts_per_tok,
        "`num_experts_per_tok` has changed. A token still meets as many experts as before.",
    )


def _reloads(model: PreTrainedModel, ids: Tensor, logits: Tensor) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            same = torch.allclose(again(ids).logits, logits, atol=1e-5)
    require(same, "Saved and loaded again by plain transformers, it gives other logits.")


def _row(model, criterion, rows, judging, *, share=0.5, turned=False, of="nll", told=lambda cut, whole: cut - whole):
    """The answer to exercise 3, with switches for mistakes."""
    scores = expert_importance(model, criterion, batches=rows.batches(len(rows)))
    smaller = _half(model, [-own if turned else own for own in scores], share)
    cut, whole = (_losses(one, judging, of) for one in (smaller, model))
    return {kind: told(cut[kind], whole[kind]) for kind in judging}


def _as_mean(*given: Any) -> dict[str, float]:
    found = _row(*given)
    return dict.fromkeys(found, sum(found.values()) / len(found))


@exercise(
    3,
    task="Return what half of the experts cost each kind: kind -> nats a token above the whole model.",
    proved="Scored on one kind, cut by half, judged on each: one row of the figure.",
    answer=_row,
    mistakes=[
        (partial(_row, told=lambda cut, whole: cut), "those are the cut model's losses. Take the whole model's off."),
        (partial(_row, told=lambda cut, whole: whole - cut),
         "turned round: the cut model's loss minus the whole one's."),
        (partial(_row, told=lambda cut, whole: math.exp(cut - whole)),
         "that is how many times the perplexity grew. In nats: the difference of the two `nll`."),
        (partial(_row, of="perplexity"), "those are differences of perplexities. In nats: take `.nll`."),
        (_as_mean, "that is a mean. Judge each kind by itself."),
        (partial(_row, share=0.25), "a quarter went. Keep half of the experts of each block."),
        (partial(_row, turned=True), "the best half went. `prune_experts` keeps what scores most."),
        (lambda model, criterion, *rest: _row(model, "frequency" if criterion == "reap" else "reap", *rest),
         "you scored by the other criterion: hand `criterion` on."),
        (lambda model, criterion, rows, judging: _row(model, criterion, judging[rows.domain], judging),
         "you scored on the rows that judge. Score on `rows`: what chooses may not judge."),
    ],
)  # fmt: skip
def check_matrix_row(attempt: Attempt, base: PreTrainedModel, calibration: Kinds, judging: Kinds) -> None:
    """Check a function (model, criterion, rows, judging) -> kind -> nats; ``base`` is asked about with a few rows."""
    first, *_, last = calibration
    judges = {kind: rows[:2] for kind, rows in judging.items()}

    def watched(model: PreTrainedModel, *given: Any) -> Any:
        model = variant(model)
        with untouched(model):
            return attempt(model, *given)

    def numbers(answer: Any) -> dict[str, float]:
        expect(answer, Mapping, "Return a dictionary with a number for each kind")
        require({*answer} == {*judges}, f"Return a dictionary with a number for each kind: {', '.join(judges)}.")
        return {kind: number(nats, "Return one number for each kind, in nats") for kind, nats in answer.items()}

    watching = Attempt(watched, attempt.answer, attempt.mistakes)
    for kind, criterion in ((last, "reap"), (first, "frequency")):
        watching.compare(
            base, criterion, calibration[kind][:3], judges, read=numbers, same=partial(alike, rtol=1e-3, atol=2e-5),
            where=f"{criterion}, scored on {kind}, nats per token: ",
        )  # fmt: skip


@exercise(
    4,
    task="Name the expert that each rule drops first: one of A, B, C, D for each rule.",
    proved="One division more or less, and another expert goes.",
)
def check_dropped(given: Mapping[str, str]) -> None:
    """Check rule -> expert, for the four experts of the text."""
    expect(given, Mapping, 'Answer each rule: {"frequency": …, "sum": …, "reap": …}')
    assigned(
        given,
        {
            "FREQUENCY": ("d", "it drops who is asked by the fewest tokens, whatever is added to them."),
            "SUM": ("c", "tokens times what is added to each: A 27, B 7, C 6, D 9. The least of these goes."),
            "REAP": ("b", "the sum divided by the tokens that asked: A 0.3, B 0.1, C 0.2, D 0.9."),
        },
        ("a", "b", "c", "d"),
    )


@exercise(
    5,
    task="Return scores, a tensor for each block, from at most fifteen rows of the text that you are given.",
    proved="What you serve is spared, and prose pays what you allowed: on documents that no score has read.",
)
def check_own_mix(attempt: Attempt, base: PreTrainedModel) -> None:
    """Check a function (model, rows) -> scores, where rows holds fifteen rows of each kind, five times the budget."""
    calibration, judging = kind_rows("calibration"), kind_rows("further")
    whole, mine, theirs = _losses(base, judging), [], []
    mixtures = describe(base).mixtures
    for draw in _GIVEN:
        rows = {kind: own[range(draw, len(own), _DRAWS)] for kind, own in calibration.items()}
        budget = len(next(iter(rows.values()))) * next(iter(rows.values())).input_ids.shape[1]
        model, read = variant(base), [0]
        embedding = model.get_input_embeddings()
        counter = embedding.register_forward_pre_hook(lambda _module, ids: read.append(ids[0].numel()))  # noqa: B023
        with untouched(model):
            scores = attempt(model, dict(rows))
        counter.remove()
        shapes = [tuple(getattr(own, "shape", ())) for own in scores] if isinstance(scores, list | tuple) else None
        require(
            shapes == [(m.count,) for m in mixtures],
            f"Return {len(mixtures)} tensors of {mixtures[0].count} scores, one for each block, as "
            "`expert_importance` does.",
        )
        require(
            all(isinstance(own, Tensor) and own.isfinite().all() for own in scores),
            "Some scores are no finite numbers. Is anything divided by 0 where an expert has no token?",
        )
        require(
            sum(read) <= budget,
            f"Your scores read {sum(read):,} tokens, and {budget:,} are allowed: fifteen rows, of whatever kinds. Each "
            "call of `expert_importance` reads its batches once.",
        )
        require(sum(read), "Your scores read no token of the text that they were given.")
        mix = [batch for own in rows.values() for batch in own[: len(own) // len(rows)].batches(len(own))]
        own_scores = [own.detach().float() for own in scores]
        mine.append(_minus(_losses(_half(base, own_scores), judging), whole))
        theirs.append(_minus(_losses(_half(base, expert_importance(base, "reap", batches=mix)), judging), whole))
    served, prose = [kind for kind in whole if kind in _SERVED], [kind for kind in whole if kind not in _SERVED]
    cost, their_cost = (_mean(costs, served) for costs in (mine, theirs))
    pays, they_pay = (_mean(costs, prose) for costs in (mine, theirs))
    print(f"lost, nats per token: code and mathematics {cost:.3f}, by the lesson's mix {their_cost:.3f};", end=" ")
    print(f"prose {pays:.3f}, by the lesson's mix {they_pay:.3f}")
    require(
        cost <= _SPARED * their_cost,
        f"Code and mathematics may lose {_SPARED * their_cost:.3f}. Which score keeps what your rows ask for most, and "
        "rows of which kinds do you read?",
    )
    require(pays <= _PAYS * they_pay, f"Prose may lose {_PAYS * they_pay:.3f}. Leave it a few rows.")


def _losses(model: PreTrainedModel, judging: Kinds, of: str = "nll") -> dict[str, float]:
    return {kind: getattr(perplexity(model, rows, batch_size=16), of) for kind, rows in judging.items()}


def _half(model: PreTrainedModel, scores: list[Tensor], share: float = 0.5) -> PreTrainedModel:
    smaller = variant(model)
    prune_experts(smaller, scores, keep=round((1 - share) * describe(model).mixtures[0].count))
    return smaller


def _minus(cut: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    return {kind: cut[kind] - whole[kind] for kind in whole}


def _mean(costs: list[dict[str, float]], kinds: list[str]) -> float:
    """What these kinds lose, over all draws."""
    return sum(own[kind] for own in costs for kind in kinds) / (len(costs) * len(kinds))
