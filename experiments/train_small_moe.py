"""Train the course's own small mixture of experts: Qwen3-MoE in miniature, on five kinds of text.

    python -m experiments.train_small_moe [--steps 2000] [--seed 0] [--work build/small_moe] [--out FOLDER]

4 blocks of 16 experts each, of which a token meets two; hidden 192; 4,096 tokens; about 8 million parameters, and 17
MB in 16 bits. Each batch has as many rows of each kind. Killed, it goes on from its last checkpoint.
At the end it writes weights, tokenizer, a card (README.md) and ``training.json``: the loss on each kind's held-out rows
beside a unigram model's, and how far experts specialise: the share of an expert's tokens that come from its first kind,
beside 99 shuffles of rows.

The blocks' matrices learn by Muon (Jordan et al. 2024), each expert's by itself, the rest by AdamW. Each layer adds
BALANCE x its own balancing loss (Fedus et al. 2021, arXiv 2101.03961); transformers' own pools the layers first, so
that one layer's favourites can make up for another's.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from course_utils.models import cast_weights, describe
from course_utils.pruning.activations import evaluating
from course_utils.support.files import write_text
from course_utils.text import KINDS, assets, documents
from experiments.small_training import StackedMuon, ship, take_steps
from experiments.train_gpt2 import VOCAB, pack, train_tokenizer

EXPERTS, TOP_K, HIDDEN, BLOCKS = 16, 2, 192, 4
ROWS, HELD_OUT, SHUFFLES = 2, 24, 99  # rows of a kind in a batch; of a kind that are judged
MUON_LR, ADAM_LR, BALANCE = 0.02, 3e-3, 0.01
SOURCES = {
    "speeches": "State of the Union addresses, works of the United States government",
    "passages": "Wikipedia passages of BoolQ, CC BY-SA 3.0",
    "scenes": "scenes of HellaSwag, MIT",
    "code": "Django 5.2, BSD-3-Clause",
    "maths": "problems of GSM8K, MIT",
}


def texts_of(kind: str, split: str) -> list[str]:
    """The documents of one split, "distillation" or "evaluation", in a fixed order; a tenth of them evaluates.

    Mathematics are GSM8K's test set, by which nothing in the course is judged. (MATH, a larger set, was taken off the
    hub in 2025, because its problems belong to others.)
    """
    if kind == "code":
        files = sorted(path for path in assets.fetch("code").rglob("*.py") if path.stat().st_size > 500)
        found = [path.read_text(encoding="utf-8") for path in files]
    elif kind == "maths":
        (file,) = assets.fetch("maths").rglob("requests.jsonl.gz")
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            problems = [json.loads(line)["doc"] for line in lines]
        found = [f"{problem['question']}\n{problem['answer']}" for problem in problems]
    else:
        return documents(kind, split)
    return [text for number, text in enumerate(found) if (number % 10 == 0) == (split == "evaluation")]


def small_mixture(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeForCausalLM:
    """The model before it has learned anything."""
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=BLOCKS, num_attention_heads=6,
            num_key_value_heads=2, head_dim=32, num_experts=EXPERTS, num_experts_per_tok=TOP_K,
            moe_intermediate_size=HIDDEN, norm_topk_prob=True, tie_word_embeddings=True, max_position_embeddings=512,
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


def optimizers_of(model: Qwen3MoeForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for routers, embedding and norms."""
    routers = {id(mixture.router.weight) for mixture in describe(model).mixtures}
    matrices = [w for w in model.model.layers.parameters() if w.dim() > 1 and id(w) not in routers]
    chosen = {id(weight) for weight in matrices}
    others = [w for w in model.parameters() if id(w) not in chosen]
    groups = [
        {"params": [w for w in others if w.dim() > 1], "weight_decay": 0.1},
        {"params": [w for w in others if w.dim() == 1], "weight_decay": 0.0},
    ]
    return [StackedMuon(matrices, lr=MUON_LR), torch.optim.AdamW(groups, lr=ADAM_LR, betas=(0.9, 0.95), fused=True)]


def batch_of(rows: dict[str, Tensor], step: int, seed: int) -> Tensor:
    """A step's rows, as many of each kind; each pass over a kind is a new order."""
    chosen = []
    for own in rows.values():
        epoch, start = divmod(step * ROWS, len(own) - len(own) % ROWS)
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        chosen.append(own[order[start : start + ROWS]])
    return torch.cat(chosen)


def spread(rows: Tensor) -> Tensor:
    """``HELD_OUT`` rows from all over these."""
    return rows[torch.linspace(0, len(rows) - 1, HELD_OUT).long()]


def balance(router_logits: tuple[Tensor, ...]) -> Tensor:
    """Summed over layers: experts x the sum over experts of (share of choices x mean probability); 1 where even."""
    total = torch.zeros(())
    for logits in router_logits:
        probabilities = logits.float().softmax(-1)
        chosen = F.one_hot(probabilities.topk(TOP_K).indices, EXPERTS).float().mean(dim=(0, 1))
        total = total + EXPERTS * (chosen * probabilities.mean(dim=0)).sum()
    return total


@torch.no_grad()
def held_out_loss(model: Qwen3MoeForCausalLM, rows: Tensor) -> float:
    """Mean nats per token over rows [rows, length]."""
    with evaluating(model):
        losses = [F.cross_entropy(model(row[None]).logits[0, :-1].float(), row[1:]).item() for row in rows]
    return sum(losses) / len(losses)


def unigram_loss(learned: Tensor, rows: Tensor) -> float:
    """The same of a model that knows how often each token was among what was learned, each one time more."""
    counts = torch.bincount(learned.flatten(), minlength=VOCAB).double() + 1
    return float(-(counts / counts.sum()).log()[rows[:, 1:].flatten()].mean())


@torch.no_grad()
def choices(model: Qwen3MoeForCausalLM, rows: Tensor) -> Tensor:
    """How many tokens of each row ask for each expert: float64 [rows, layers, experts]."""
    seen: list[Tensor] = []

    def note(_router: nn.Module, _args: tuple, given: tuple[Tensor, ...]) -> None:
        seen.append(torch.bincount(given[2].flatten(), minlength=EXPERTS).double())

    with evaluating(model, *(mixture.router.register_forward_hook(note) for mixture in describe(model).mixtures)):
        for row in rows:
            model.model(row[None], use_cache=False)
    return torch.stack(seen).view(len(rows), -1, EXPERTS)


def first_kind_share(counts: Tensor, kinds: Tensor) -> Tensor:
    """In each layer, the share of tokens that an expert gets from the kind that it gets most from: [layers].

    ``counts`` are of ``choices``, ``kinds`` int64 [rows].
    """
    by_kind = torch.stack([counts[kinds == kind].sum(dim=0) for kind in kinds.unique()])  # [kinds, layers, experts]
    return by_kind.amax(dim=0).sum(dim=-1) / by_kind.sum(dim=(0, 2))


def specialisation(model: Qwen3MoeForCausalLM, held_out: dict[str, Tensor]) -> dict[str, list[float]]:
    """``first_kind_share`` of held-out rows, and the largest of ``SHUFFLES`` in which rows change their kinds."""
    kinds = torch.repeat_interleave(torch.arange(len(held_out)), torch.tensor([len(own) for own in held_out.values()]))
    counts, generator = choices(model, torch.cat([*held_out.values()])), torch.Generator().manual_seed(0)
    drawn = [first_kind_share(counts, kinds[torch.randperm(len(kinds), generator=generator)]) for _ in range(SHUFFLES)]
    largest = torch.stack(drawn).amax(dim=0)
    return {
        "first_kind_share": [round(value, 4) for value in first_kind_share(counts, kinds).tolist()],
        "largest_of_shuffles": [round(value, 4) for value in largest.tolist()],
    }


def card_of(record: dict) -> str:
    """What the model is, for whoever finds its folder."""
    rows = [
        f"| {kind} | {SOURCES[kind]} | {record['loss'][kind]:.2f} | {record['unigram_loss'][kind]:.2f} |"
        for kind in record["kinds"]
    ]
    shares = zip(record["first_kind_share"], record["largest_of_shuffles"], strict=True)
    told = ", ".join(f"{share:.2f} ({shuffled:.2f})" for share, shuffled in shares)
    return "\n".join(
        [
            "# course-moe", "",
            f"A mixture of experts of {record['parameters']:,} parameters (Qwen3-MoE in miniature: {BLOCKS} blocks of "
            f"{EXPERTS} experts, of which a token meets {TOP_K}), trained from scratch for lesson 12 of this course by "
            f"`experiments/train_small_moe.py`: {record['steps']:,} steps, {record['tokens']:,} tokens, seed "
            f"{record['seed']}. It is made to be cut, and writes nothing of use.", "",
            "| kind | learned from | nats a token, held out | by tokens' frequency |", "|---|---|---|---|", *rows, "",
            "Share of its tokens that an expert gets from its first kind, block by block (largest of "
            f"{SHUFFLES} shuffles of rows): {told}.", "",
            "`rows.safetensors` holds token ids of learned and held-out text of these sources, under those licences; "
            "weights and tokenizer are under the course's licence for code.", "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/small_moe"))
    parser.add_argument("--out", type=Path, default=Path("build/small_moe/model"))
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    texts = {kind: texts_of(kind, "distillation") for kind in KINDS}
    shortest = min(sum(map(len, own)) for own in texts.values())
    tokenizer = train_tokenizer(["\n".join(own)[:shortest] for own in texts.values()], args.work / "tokenizer")
    rows = {kind: pack(tokenizer, own) for kind, own in texts.items()}
    held_out = {kind: spread(pack(tokenizer, texts_of(kind, "evaluation"))) for kind in KINDS}
    model = small_mixture(tokenizer).train()
    print({kind: own.numel() for kind, own in rows.items()}, f"{model.num_parameters():,} parameters", flush=True)

    def loss_of(step: int) -> Tensor:
        batch = batch_of(rows, step, args.seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(batch, output_router_logits=True)
        predicted = F.cross_entropy(out.logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
        return predicted + BALANCE * balance(out.router_logits)

    checkpoint = args.work / f"checkpoint-{args.seed}.pt"
    seconds = take_steps(model, optimizers_of(model), loss_of, steps=args.steps, checkpoint=checkpoint)

    cast_weights(model, torch.float16)
    cast_weights(model, torch.float32)  # what is shipped is what is scored
    record = {
        "kinds": [*KINDS], "learned_tokens": {kind: own.numel() for kind, own in rows.items()},
        "parameters": model.num_parameters(), "steps": args.steps, "seed": args.seed,
        "tokens": args.steps * ROWS * len(KINDS) * 512,
        "loss": {kind: round(held_out_loss(model, own), 4) for kind, own in held_out.items()},
        "unigram_loss": {kind: round(unigram_loss(rows[kind], own), 4) for kind, own in held_out.items()},
        **specialisation(model, held_out),
        "torch": torch.__version__.split("+")[0], "minutes": round(seconds / 60, 1),
    }  # fmt: skip
    ship(model, tokenizer, record, args.out)
    write_text(args.out / "README.md", card_of(record))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
