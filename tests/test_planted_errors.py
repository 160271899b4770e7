"""Errors, planted one at a time in a copy of the library: a test of the module itself finds each.

    python tests/test_planted_errors.py              plants them all (some ten minutes), says which survive
    python tests/test_planted_errors.py width heads  those of these modules

They are the kinds that change a result and raise nothing: a neighbour's number, a wrong order, a missing cast, a
boundary. As a test this file only asks that each can still be planted.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Error:
    """What is written in the place of what, in which module of ``course_utils``."""

    module: str
    right: str
    wrong: str

    @property
    def path(self):
        return Path("course_utils", *self.module.split(".")).with_suffix(".py")

    @property
    def tests(self):
        """The module's own, and those of what it is part of."""
        own = Path("tests") / self.path.with_name(f"test_{self.path.name}")
        return [own, *map(Path, BESIDE.get(self.module, ()))]

    def __str__(self):
        return f"{self.module}: {' '.join(self.right.split())} -> {' '.join(self.wrong.split()) or 'nothing'}"


_ALL_CUTS = "tests/test_surgery.py"
BESIDE = {
    "pruning.width": [_ALL_CUTS],
    "pruning.heads": [_ALL_CUTS],
    "pruning.channels": [_ALL_CUTS],
    "models.surgery": [_ALL_CUTS, "tests/course_utils/pruning/test_channels.py"],
    "compress.plan": ["tests/course_utils/compress/test_folder.py"],
    "text.own_rows": ["tests/course_utils/text/test_own_text.py"],
    "healing.distillation.state": ["tests/course_utils/healing/distillation/test_training.py"],
}
ERRORS = [
    Error("pruning.choosing", " + 1e-9", ""),
    Error(
        "pruning.choosing", "math.ceil((width - removed) / multiple_of)", "math.floor((width - removed) / multiple_of)"
    ),
    Error("pruning.choosing", "descending=True, stable=True", "descending=True"),
    Error("pruning.choosing", ".indices[:count].sort().values", ".indices[:count]"),
    Error("pruning.width", "r.amax(dim=1) + r.amin(dim=1).abs()", "r.abs().amax(dim=1)"),
    Error("pruning.width", "math.prod(r.abs()", "sum(r.abs()"),
    Error("pruning.width", "[r.float() for r in mlp.rows]", "mlp.rows"),
    Error("pruning.width", "dtype=torch.float32).double().square()", "dtype=torch.float32).double()"),
    Error("pruning.width", "size * mlp.columns.float().norm(dim=0)", "size"),
    Error("pruning.width", "states.sum(dim=0, dtype=torch.float32)", "states.sum(dim=0)"),
    Error("pruning.width", "strongest(importance[layer], ratio", "strongest(importance[-1 - layer], ratio"),
    Error("pruning.experts", "added / asked.clamp(min=1)", "added / tokens"),
    Error(
        "pruning.experts",
        "lambda asked, added, tokens: asked / tokens",
        "lambda asked, added, tokens: asked / asked.sum()",
    ),
    Error("pruning.experts", "weight.double() * norm.double()", "norm.double()"),
    Error("pruning.experts", "torch.ones_like(weight[:, None])", "weight[:, None]"),
    Error("pruning.experts", "vector_norm(output, dim=1, dtype=torch.float32)", "vector_norm(output, dim=1)"),
    Error("pruning.experts", "map(reading.select, args)", "args"),
    Error("pruning.experts", "range(numbers.shape[1])", "range(1)"),
    Error("pruning.experts", "start + best(", "best("),
    Error("pruning.experts", "math.ceil(mixture.top_k / mixture.router.topk_group)", "1"),
    Error("pruning.experts", "                setattr(model, name, size)\n", "                pass\n"),
    Error("pruning.experts", "        architecture.sync_config()\n", ""),
    Error("measuring.abilities", "architecture.logits(chunk).float()", "architecture.logits(chunk)"),
    Error("measuring.abilities", "number % 3 == 0", "number % 2 == 0"),
    Error("pruning.heads", "(total / reading.tokens).sqrt()", "(total / reading.tokens)"),
    Error(
        "pruning.heads",
        "dim=(0, 2), dtype=torch.float32).double().square()",
        "dim=(0, 2), dtype=torch.float32).double()",
    ),
    Error(
        "pruning.heads",
        "[best(scores, groups) for scores in importance]",
        "[best(importance[0], groups)] * len(importance)",
    ),
    Error("pruning.heads", "        if attention.groups\n", ""),
    Error("pruning.channels", "energies.mean(dim=0).sqrt()", "energies.amax(dim=0).sqrt()"),
    Error("pruning.channels", "squares / squares.sum(dim=-1, keepdim=True).clamp(min=1e-30)", "squares"),
    Error("pruning.channels", "kept / total * energies.shape[1] / len(channels)", "kept / total"),
    Error("pruning.channels", "factors = norm_factors(energies, channels) if rescale_norms else", "factors ="),
    Error("models.surgery", "((norm_weight.float() + offset) * factor - offset)", "(norm_weight.float() * factor)"),
    Error("models.surgery", "        factors[-1] /= scale\n", "        pass\n"),
    Error("pruning.depth", "[values[number] for number in kept]", "values[: len(kept)]"),
    Error("pruning.depth", "                module.layer_idx = number\n", "                pass\n"),
    Error("pruning.depth", "sum(number < config.max_window_layers for number in kept)", "config.max_window_layers"),
    Error(
        "pruning.depth",
        "meter.add(entering(args, kwargs), leaving(output)",
        "meter.add(leaving(output), leaving(output)",
    ),
    Error("pruning.influence", "before[real].float(), after[real].float()", "before[real], after[real]"),
    Error("pruning.influence", "self._tokens += len(before)", "self._tokens += real.numel()"),
    Error(
        "pruning.attention",
        "        for layer in chosen:\n            _restore(architecture, layer)\n",
        "        pass\n",
    ),
    Error(
        "pruning.attention", "(float(scores[i]), i))\n            chosen", "(float(scores[i]), -i))\n            chosen"
    ),
    Error("pruning.attention", "max(place for place in places if place <= least)", "max(place for place in places)"),
    Error("pruning.attention", "    for norm in attention.norms:\n        replace_forward(norm, _identity)\n", ""),
    Error("pruning.attention", "    describe(model).sync_config()\n", ""),
    Error(
        "pruning.attention", "states + leaving(output).float()", "(states + leaving(output)).to(leaving(output).dtype)"
    ),
    Error("pruning.upper_blocks", "kept[number] = output", "kept[number + 1] = output"),
    Error("pruning.checkpoints", "if not k.startswith(tuple(dead))", ""),
    Error(
        "pruning.checkpoints",
        'for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")',
        'for kind in ("missing_keys",)',
    ),
    Error("pruning.checkpoints", "    architecture.sync_config()\n", ""),
    Error("pruning.checkpoints", "family.norms_of_attention(config)", "family.attention_norms"),
    Error(
        "compress.search",
        "best(importance.groups[block], candidate.groups) for block in blocks",
        "best(importance.groups[block], candidate.groups) for block in range(len(blocks))",
    ),
    Error(
        "compress.search",
        "zip(architecture.mlps, blocks, strict=True)",
        "zip(architecture.mlps, range(len(blocks)), strict=True)",
    ),
    Error(
        "compress.search",
        "int(block) * each + norm for block in blocks",
        "block * each + norm for block in range(len(blocks))",
    ),
    Error("compress.search", "bisect_right(widths, budget.amount,", "bisect_right(widths, budget.amount - 1,"),
    Error("compress.search", "(blocks - 1) * (double - single)", "blocks * (double - single)"),
    Error("compress.ranking", "        cast_weights(student, dtype)  # judged as it was before\n", ""),
    Error(
        "compress.scores",
        "generator=torch.Generator().manual_seed(seed))\n        return",
        "generator=torch.Generator())\n        return",
    ),
    Error("healing.distillation.losses", "teacher.hidden_states(batch)[:, :-1]", "teacher.hidden_states(batch)[:, 1:]"),
    Error(
        "healing.distillation.training", "loss = loss_of(batch) / tokens", "loss = loss_of(batch) / _tokens([batch])"
    ),
    Error(
        "healing.distillation.training", "recipe.seed * 1_000_003 + step + number", "recipe.seed * 1_000_003 + number"
    ),
    Error("healing.distillation.training", "_seed(recipe, step, number))", "_seed(recipe, step))"),
    Error("healing.distillation.training", '"weight_decay": 0.0', '"weight_decay": weight_decay'),
    Error("healing.distillation.training", "manual_seed(recipe.seed * 1_000_003 + epoch)", "manual_seed(recipe.seed)"),
    Error("healing.distillation.training", "weight.data = weight.data.clone()", "pass"),
    Error(
        "healing.distillation.state", 'for key in ("exp_avg", "exp_avg_sq")', 'for key in ("exp_avg_sq", "exp_avg_sq")'
    ),
    Error("healing.distillation.recipe", "math.pi * (step - rise)", "math.pi * step"),
    Error("healing.solving", "theirs.move_to(ends[number])", "pass"),
    Error("healing.solving", "[*stayed[1:], whole.num_blocks]", "list(stayed)"),
    Error("healing.solving", "states.float() - mlp.down(x).float()", "states.float()"),
    Error("healing.solving", "pull[:, None] * old.T.to(gram.dtype)", "0"),
    Error("healing.solving", "ridge * gram.diagonal().clamp(min=1e-30)", "ridge * torch.ones_like(gram.diagonal())"),
    Error("healing.solving", "(0, 1), value=1.0", "(0, 1), value=0.0"),
    Error(
        "healing.solving",
        "activations, target = x[text.real].float(), goal[text.real]",
        "activations, target = x[:, 1:].flatten(0, 1).float(), goal[:, 1:].flatten(0, 1)",
    ),
    Error("healing.solving", "module.weight, module.bias = weight, bias", "pass"),
    Error("text.own_text", " and (place, number) not in self._held_out", ""),
    Error("text.own_rows", "np.where(learned, ids, ~ids)", "ids"),
    Error("text.own_text", "(number - self.seed) % stride in step", "number % stride < step.stop"),
    Error("text.own_text", "behind[chosen] -= 1", "behind[chosen] = 0"),
    Error("text.own_text", "math.ceil(part.most_rows(cutter.length) / wanted)", "1"),
    Error("text.own_text", "document.learned for document in judging", "document.text for document in judging"),
    Error("text.own_rows", "np.array(carried[:whole]", "np.array(carried[-whole:]"),
    Error("text.own_text", "if place not in mine)", "if place not in mine and place in {(0, 0)})"),
    Error("text.own_text", "_held_out=frozenset([*drawn, *to_score])", "_held_out=frozenset(drawn)"),
    Error(
        "text.own_text",
        "apart_from=self.scoring + self.choosing + self.judging",
        "apart_from=self.choosing + self.judging",
    ),
    Error("text.own_text", "return_index=True)[1]] = False", "return_index=True)[1]] = True"),
    Error("text.own_text", "if (place, number) not in taken]", "]"),
    Error("text.own_rows", "waiting.append((number, rows))", "waiting.appendleft((number, rows))"),
    Error("text.own_rows", "begin >= len(before)", "begin == len(asked)"),
    Error("text.own_text", "equal.get(number, partner)", "partner"),
    Error(
        "text.texts",
        "ends[stop] - ends[start] < _RUN:\n            stop",
        "ends[stop] - ends[start] <= _RUN:\n            stop",
    ),
    Error("text.texts", "yield hash(level(text))", "pass"),
    Error("text.texts", "return 5 if _HAN_OR_KANA", "return 10 if _HAN_OR_KANA"),
    Error("text.batches", "& self.learned[:, 1:]", "& self.learned[:, :-1]"),
    Error("text.batches", "parts.append(learned[span])", "pass"),
    Error("compress.search", "math.lcm(multiple_of, tensor_parallel)", "multiple_of"),
    Error("compress.search", "if full % divisor == 0", "if full"),
    Error("compress.plan", "    if order.export:", "    if False:"),
    Error("compress.plan", "order.model in ROLES and chosen_model(order.model)", "False"),
    Error("compress.estimate", "return 3 * share +", "return share +"),
    Error("compress.folder", "gguf_in(out).unlink(missing_ok=True)", "pass"),
    Error("compress.folder", "any(_lies_in(place, source) for place in written)", "False"),
    Error("compress.order", "self.seed, self.recover, self.dtype", "self.seed, self.dtype"),
    Error("compress.plan", "choosing=calibration[SCORED:]", "choosing=calibration[:CHOSEN]"),
    Error("compress.plan", "seed: int = order.seed", "seed: int = 0"),
    Error("compress.estimate", "sum(memory.values()) < sum(judging.values())", "False"),
    Error("compress.estimate", "if self.bytes > self.room", "if self.bytes < self.room"),
    Error("compress.run", "cast_weights(student, dtype)", "pass"),
    Error("compress.run", "scores.random(there, seed)", "scores"),
    Error("compress.order", '"accumulate": self.accumulate', '"accumulate": 1'),
    Error("release.rivals", "np.bincount(of, each)[np.unique(of)]", "each"),
    Error("text.own_rows", "number and is_learned(message):", 'number and message["role"] == "assistant":'),
    Error("support.files", 'found.get("circumstances") == circumstances', "found"),
    Error("release.rivals", '"model": identity(model), "weights": weights', '"weights": weights'),
    Error("release.rivals", "circumstances | way", "way"),
    Error("release.rivals", 'else "cut"', 'else "whole"'),
    Error("release.rivals", "export.as_stored(model, tokenizer, quantization=kind)", "model"),
    Error("release.rivals", 'measured.phase == "decode"', 'measured.phase == "prefill"'),
    Error("healing.distillation.memory", "weight.requires_grad or not recipe.recompute", "weight.requires_grad"),
    Error("healing.distillation.memory", "if recipe.accumulate > 1", "if False"),
    Error("healing.distillation.memory", "plan[name] /= processes", "pass"),
    Error("healing.distillation.processes", "nullcontext() if self.is_sharded else ", ""),
    Error("healing.distillation.processes", "for block in describe(model).blocks:", "for block in []:"),
    Error("healing.distillation.memory", "_bytes(asked)", "_bytes(weight.float() for weight in asked)"),
    Error("release.export", "tensor.weight.copy_(tensor.decoded())", "tensor.decoded()"),
    Error("release.export", "self._bytes_of(self.weight), self.type", "self.encoded(), self.type"),
    Error("release.vllm_folder", "attention.skipped and number > 0", "pruning.attention.skipped"),
    Error("release.vllm_folder", " | _zeros(parts)", ""),
    Error("release.vllm_folder", "torch.zeros_like(weight)", "weight"),
    Error("release.vllm_folder", "min(window, config.max_position_embeddings)", "config.max_position_embeddings"),
    Error("release.vllm_folder", '"n_heads_in_group": parts.queries_a_group', '"n_heads_in_group": 1'),
    Error("release.vllm_folder", '"intermediate_size": width', '"intermediate_size": max(parts.intermediate_sizes)'),
    Error("release.vllm_folder", "live.inputs[0].bias is not None", "False"),
    Error("release.vllm_folder", "live.outputs[0].bias is not None", "False"),
    Error("release.vllm_folder", '"head_dim": parts.head_size', '"head_dim": None'),
    Error("release.vllm_folder", '_SQUARE = ("qwen2",)', "_SQUARE = ()"),
    Error("healing.distillation.adapters", "lora_alpha=recipe.lora_rank", "lora_alpha=2 * recipe.lora_rank"),
    Error("healing.distillation.adapters", "safe_merge=True", "safe_merge=False"),
    Error("healing.distillation.adapters", "        model.unload()", "        model.merge_and_unload()"),
    Error("healing.distillation.adapters", "weight.requires_grad_(wanted)", "pass"),
]


def planted(text, error):
    """The module's text with the error in it."""
    if text.count(error.right) != 1:
        raise ValueError(f"{error.module} must say {error.right!r} once, it does {text.count(error.right)} times.")
    return text.replace(error.right, error.wrong)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_error_can_be_planted(error):
    path = ROOT / error.path
    assert planted(path.read_text(encoding="utf-8"), error)
    assert all((ROOT / tests).exists() for tests in error.tests)


def killer(error):
    """The first test that fails with the error planted, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("course_utils", "course_tools", "experiments", "tests", "pyproject.toml"):
            copy = shutil.copy if (ROOT / part).is_file() else shutil.copytree
            copy(ROOT / part, Path(folder, part))
        path = Path(folder, error.path)
        path.write_text(planted(path.read_text(encoding="utf-8"), error), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "slow or not embedded", *map(str, error.tests)]
        environment = os.environ | {"PYTHONPATH": folder, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if not failed and done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return failed[0].partition("::")[2].partition(" - ")[0] if failed else ""


def main(names):
    modules = {error.module for error in ERRORS}
    if unknown := {*names} - modules:
        sys.exit(f"No error is planted in {', '.join(sorted(unknown))}; choose from {', '.join(sorted(modules))}.")
    survivors = 0
    for error in ERRORS:
        if not names or error.module in names:
            begin = time.monotonic()
            name = killer(error)
            survivors += not name
            print(f"{name or 'SURVIVES':60.60} {time.monotonic() - begin:4.0f} s  {error}", flush=True)
    print(f"{survivors} survive")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
