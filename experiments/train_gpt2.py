"""Train the course's own small GPT-2: distilGPT2's architecture in miniature, on public-domain prose.

    python -m experiments.train_gpt2 [--steps 4500] [--work build/gpt2] [--out course_utils/data/gpt2]

Text: the distillation split of the State of the Union addresses (1790-2020s, US federal works);
the evaluation and calibration years are never seen. Resumable: killed, it goes on from its last
checkpoint. At the end it writes the float16 weights, the tokenizer and `training.json`, which
records the held-out bits per byte beside `xz -9e` on the same text.

The blocks' matrices are trained by Muon (Jordan et al. 2024; torch.optim.Muon), the rest by AdamW.
In a trial of 180 steps that reached loss 4.88 where AdamW alone (peak 1.5e-3) reached 5.34. What is
learned this way is harder to prune: 40 % random neurons multiply lesson 01's perplexity by 24; for an
earlier model of 3000 steps with AdamW alone it was 1.6 (at 1.298 bits per held-out byte).
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from course_utils.text import documents
from experiments.small_training import ship, take_steps

END = "<|endoftext|>"
VOCAB, LENGTH, BATCH, SEED = 4096, 512, 8, 0
MUON_LR, ADAM_LR = 0.02, 3e-3


def train_tokenizer(texts: list[str], folder: Path) -> GPT2TokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCAB, min_frequency=2, special_tokens=[END])
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save_model(str(folder))
    tokenizer = GPT2TokenizerFast.from_pretrained(folder, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def pack(tokenizer: GPT2TokenizerFast, texts: list[str]) -> torch.Tensor:
    """Documents joined by the end token -> [rows, LENGTH]; the ragged end is dropped."""
    ids = [i for text in texts for i in [*tokenizer(text, verbose=False).input_ids, tokenizer.eos_token_id]]
    rows = len(ids) // LENGTH
    return torch.tensor(ids[: rows * LENGTH]).view(rows, LENGTH)


@torch.no_grad()
def bits_per_byte(model: GPT2LMHeadModel, tokenizer: GPT2TokenizerFast, texts: list[str]) -> tuple[float, int]:
    """Every byte of every document is predicted, from the end token on, in windows of LENGTH tokens."""
    model.eval()
    nats, size = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text, verbose=False).input_ids])
        size += len(text.encode())
        for start in range(0, len(ids) - 1, LENGTH - 1):
            window = ids[start : start + LENGTH][None]
            logits = model(window).logits[0, :-1].float()
            nats += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    model.train()
    return nats / math.log(2) / size, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--work", type=Path, default=Path("build/gpt2"))
    parser.add_argument("--out", type=Path, default=Path("course_utils/data/gpt2"))
    args = parser.parse_args()

    torch.manual_seed(SEED)
    train_texts, held_out = documents("speeches", "distillation"), documents("speeches", "evaluation")
    tokenizer = train_tokenizer(train_texts, args.work / "tokenizer")
    rows = pack(tokenizer, train_texts)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=LENGTH, n_embd=256, n_layer=6, n_head=8,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,  # dropout halves a CPU's speed; five epochs do without
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.1),
        torch.optim.AdamW(
            [{"params": embeddings, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=ADAM_LR, betas=(0.9, 0.95), fused=True,
        ),
    ]  # fmt: skip
    print(f"{rows.numel():,} training tokens, {model.num_parameters():,} parameters", flush=True)

    def loss_of(step: int) -> torch.Tensor:
        epoch, offset = divmod(step * BATCH, len(rows) - len(rows) % BATCH)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED + epoch))
        batch = rows[order[offset : offset + BATCH]]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch).logits
        return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())

    seconds = take_steps(model, optimizers, loss_of, steps=args.steps, checkpoint=args.work / "checkpoint.pt")

    model = model.half().float()  # what is shipped is what is scored
    score, size = bits_per_byte(model, tokenizer, held_out)
    packed = 8 * len(lzma.compress("\n".join(held_out).encode(), preset=9 | lzma.PRESET_EXTREME)) / size
    record = {
        "text": "State of the Union addresses, distillation split (years held out: evaluation, calibration)",
        "training_tokens": args.steps * BATCH * LENGTH, "distinct_tokens": rows.numel(),
        "parameters": model.num_parameters(), "steps": args.steps, "seed": SEED,
        "held_out_speeches": len(held_out), "held_out_bytes": size,
        "held_out_bits_per_byte": round(score, 4), "xz_9e_bits_per_byte": round(packed, 4),
        "torch": torch.__version__.split("+")[0], "minutes": round(seconds / 60, 1),
    }  # fmt: skip
    ship(model, tokenizer, record, args.out)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
