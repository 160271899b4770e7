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
    "width": [_ALL_CUTS],
    "heads": [_ALL_CUTS],
    "channels": [_ALL_CUTS],
    "surgery": [_ALL_CUTS, "tests/course_utils/test_channels.py"],
    "compress_command.learning": ["tests/course_utils/compress_command/test_run.py"],
    "compress_command.asked": ["tests/course_utils/compress_command/test_folder.py"],
    "distillation.state": ["tests/course_utils/distillation/test_training.py"],
}
ERRORS = [
    Error("choosing", " + 1e-9", ""),
    Error("choosing", "math.ceil((width - removed) / multiple_of)", "math.floor((width - removed) / multiple_of)"),
    Error("choosing", "descending=True, stable=True", "descending=True"),
    Error("choosing", ".indices[:count].sort().values", ".indices[:count]"),
    Error("width", "r.amax(dim=1) + r.amin(dim=1).abs()", "r.abs().amax(dim=1)"),
    Error("width", "math.prod(r.abs()", "sum(r.abs()"),
    Error("width", "[r.float() for r in mlp.rows]", "mlp.rows"),
    Error("width", "dtype=torch.float32).double().square()", "dtype=torch.float32).double()"),
    Error("width", "size * mlp.columns.float().norm(dim=0)", "size"),
    Error("width", "states.sum(dim=0, dtype=torch.float32)", "states.sum(dim=0)"),
    Error("width", "strongest(importance[layer], ratio", "strongest(importance[-1 - layer], ratio"),
    Error("experts", "added / asked.clamp(min=1)", "added / tokens"),
    Error("experts", "lambda asked, added, tokens: asked / tokens", "lambda asked, added, tokens: asked / asked.sum()"),
    Error("experts", "weight.double() * norm.double()", "norm.double()"),
    Error("experts", "torch.ones_like(weight[:, None])", "weight[:, None]"),
    Error("experts", "vector_norm(output, dim=1, dtype=torch.float32)", "vector_norm(output, dim=1)"),
    Error("experts", "map(reading.select, args)", "args"),
    Error("experts", "range(numbers.shape[1])", "range(1)"),
    Error("experts", "start + best(", "best("),
    Error("experts", "math.ceil(mixture.top_k / mixture.router.topk_group)", "1"),
    Error("experts", "                setattr(model, name, size)\n", "                pass\n"),
    Error("experts", "        architecture.sync_config()\n", ""),
    Error("abilities", "architecture.logits(chunk).float()", "architecture.logits(chunk)"),
    Error("abilities", "number % 3 == 0", "number % 2 == 0"),
    Error("heads", "(total / reading.tokens).sqrt()", "(total / reading.tokens)"),
    Error("heads", "dim=(0, 2), dtype=torch.float32).double().square()", "dim=(0, 2), dtype=torch.float32).double()"),
    Error(
        "heads", "[best(scores, groups) for scores in importance]", "[best(importance[0], groups)] * len(importance)"
    ),
    Error("heads", "        if attention.groups\n", ""),
    Error("channels", "energies.mean(dim=0).sqrt()", "energies.amax(dim=0).sqrt()"),
    Error("channels", "squares / squares.sum(dim=-1, keepdim=True).clamp(min=1e-30)", "squares"),
    Error("channels", "kept / total * energies.shape[1] / len(channels)", "kept / total"),
    Error("channels", "factors = norm_factors(energies, channels) if rescale_norms else", "factors ="),
    Error("surgery", "((norm_weight.float() + offset) * factor - offset)", "(norm_weight.float() * factor)"),
    Error("surgery", "        factors[-1] /= scale\n", "        pass\n"),
    Error("depth", "[values[number] for number in kept]", "values[: len(kept)]"),
    Error("depth", "                module.layer_idx = number\n", "                pass\n"),
    Error("depth", "sum(number < config.max_window_layers for number in kept)", "config.max_window_layers"),
    Error("depth", "meter.add(entering(args, kwargs), leaving(output)", "meter.add(leaving(output), leaving(output)"),
    Error("influence", "before[real].float(), after[real].float()", "before[real], after[real]"),
    Error("influence", "self._tokens += len(before)", "self._tokens += real.numel()"),
    Error("attention", "        for layer in chosen:\n            _restore(architecture, layer)\n", "        pass\n"),
    Error("attention", "(float(scores[i]), i))\n            chosen", "(float(scores[i]), -i))\n            chosen"),
    Error("attention", "max(place for place in places if place <= least)", "max(place for place in places)"),
    Error("attention", "    for norm in attention.norms:\n        replace_forward(norm, _identity)\n", ""),
    Error("attention", "    describe(model).sync_config()\n", ""),
    Error("attention", "states + leaving(output).float()", "(states + leaving(output)).to(leaving(output).dtype)"),
    Error("upper_blocks", "kept[number] = output", "kept[number + 1] = output"),
    Error("checkpoints", "if not k.startswith(tuple(dead))", ""),
    Error(
        "checkpoints",
        'for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")',
        'for kind in ("missing_keys",)',
    ),
    Error("checkpoints", "    architecture.sync_config()\n", ""),
    Error("checkpoints", "family.norms_of_attention(config)", "family.attention_norms"),
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
    Error("compress.search", "<= self._budget.amount else (low", "< self._budget.amount else (low"),
    Error("compress.search", "(blocks - 1) * (double - single)", "blocks * (double - single)"),
    Error("compress.ranking", "        cast_weights(student, dtype)  # judged as it was before\n", ""),
    Error(
        "compress.scores",
        "generator=torch.Generator().manual_seed(seed))\n        return",
        "generator=torch.Generator())\n        return",
    ),
    Error("distillation.losses", "teacher.hidden_states(batch)[:, :-1]", "teacher.hidden_states(batch)[:, 1:]"),
    Error("distillation.training", "loss = loss_of(batch) / tokens", "loss = loss_of(batch) / _tokens([batch])"),
    Error("distillation.training", "recipe.seed * 1_000_003 + step + number", "recipe.seed * 1_000_003 + number"),
    Error("distillation.training", "_seed(recipe, step, number))", "_seed(recipe, step))"),
    Error("distillation.training", '"weight_decay": 0.0', '"weight_decay": weight_decay'),
    Error("distillation.training", "manual_seed(recipe.seed * 1_000_003 + epoch)", "manual_seed(recipe.seed)"),
    Error("distillation.training", "weight.data = weight.data.clone()", "pass"),
    Error("distillation.state", 'for key in ("exp_avg", "exp_avg_sq")', 'for key in ("exp_avg_sq", "exp_avg_sq")'),
    Error("distillation.recipe", "math.pi * (step - rise)", "math.pi * step"),
    Error("healing", "theirs.move_to(ends[number])", "pass"),
    Error("healing", "[*stayed[1:], whole.num_blocks]", "list(stayed)"),
    Error("healing", "states.float() - mlp.down(x).float()", "states.float()"),
    Error("healing", "pull[:, None] * old.T.to(gram.dtype)", "0"),
    Error("healing", "ridge * gram.diagonal().clamp(min=1e-30)", "ridge * torch.ones_like(gram.diagonal())"),
    Error("healing", "(0, 1), value=1.0", "(0, 1), value=0.0"),
    Error(
        "healing",
        "activations, target = x[text.real].float(), goal[text.real]",
        "activations, target = x[:, 1:].flatten(0, 1).float(), goal[:, 1:].flatten(0, 1)",
    ),
    Error("healing", "module.weight, module.bias = weight, bias", "pass"),
    Error("own_text", " and (place, number) not in self._held_out", ""),
    Error("own_text", "np.where(learned, ids, ~ids)", "ids"),
    Error("own_text", "(number - self.seed) % stride in step", "number % stride < step.stop"),
    Error("own_text", "behind[chosen] -= 1", "behind[chosen] = 0"),
    Error("own_text", "math.ceil(self._most_rows(place, cutter.length) / wanted)", "1"),
    Error("own_text", "document.learned for document in judging", "document.text for document in judging"),
    Error("own_text", "np.array(carried[:whole]", "np.array(carried[-whole:]"),
    Error("own_text", "if place not in places)", "if place not in places and place in {(0, 0)})"),
    Error("own_text", "_held_out=frozenset([*drawn, *to_score])", "_held_out=frozenset(drawn)"),
    Error(
        "own_text", "held_out = self.scoring + self.choosing + self.judging", "held_out = self.choosing + self.judging"
    ),
    Error("own_text", "return_index=True)[1]] = False", "return_index=True)[1]] = True"),
    Error("own_text", "if (place, number) not in taken]", "]"),
    Error("own_text", "waiting.append((number, rows))", "waiting.appendleft((number, rows))"),
    Error("own_text", "begin >= len(before)", "begin == len(asked)"),
    Error("own_text", "equal.get(number, partner)", "partner"),
    Error(
        "texts",
        "ends[stop] - ends[start] < _RUN:\n            stop",
        "ends[stop] - ends[start] <= _RUN:\n            stop",
    ),
    Error("texts", "yield hash(level(text))", "pass"),
    Error("texts", "return 5 if _HAN_OR_KANA", "return 10 if _HAN_OR_KANA"),
    Error("batches", "& self.learned[:, 1:]", "& self.learned[:, :-1]"),
    Error("batches", "parts.append(learned[span])", "pass"),
    Error("compress.search", "math.lcm(multiple_of, tensor_parallel)", "multiple_of"),
    Error("compress.search", "if full % divisor == 0", "if full"),
    Error("compress_command.asked", "    if order.export:", "    if False:"),
    Error("compress_command.asked", "order.model in ROLES and chosen_model(order.model)", "False"),
    Error("compress_command.estimate", "return 3 * share +", "return share +"),
    Error("compress_command.folder", "gguf_in(out).unlink(missing_ok=True)", "pass"),
    Error("compress_command.folder", "any(_lies_in(place, source) for place in written)", "False"),
    Error("compress_command.order", "self.seed, self.recover, self.dtype", "self.seed, self.dtype"),
    Error("compress_command.text", "choosing=calibration[SCORED:]", "choosing=calibration[:CHOSEN]"),
    Error("compress_command.text", "seed: int = order.seed", "seed: int = 0"),
    Error("compress_command.estimate", "sum(plan.values()) < sum(judging.values())", "False"),
    Error("compress_command.estimate", "if self.bytes > self.room", "if self.bytes < self.room"),
    Error("compress_command.run", "cast_weights(student, getattr(torch, order.dtype))", "pass"),
    Error("compress_command.run", "_at_random(found.scores, order.seed)", "found.scores"),
    Error("compress_command.learning", "accumulate=order.accumulate,", "accumulate=1,"),
    Error("rivals", "np.bincount(of, each)[np.unique(of)]", "each"),
    Error("own_text", "number and is_learned(message):", 'number and message["role"] == "assistant":'),
    Error("files", 'found.get("circumstances") == circumstances', "found"),
    Error("rivals", '"model": identity(model), "weights": weights', '"weights": weights'),
    Error("rivals", "circumstances | way", "way"),
    Error("rivals", 'else "cut"', 'else "whole"'),
    Error("rivals", "export.as_stored(model, tokenizer, quantization=kind)", "model"),
    Error("rivals", 'measured.phase == "decode"', 'measured.phase == "prefill"'),
    Error("distillation.memory", "weight.requires_grad or not recipe.recompute", "weight.requires_grad"),
    Error("distillation.memory", "if recipe.accumulate > 1", "if False"),
    Error("distillation.memory", "plan[name] /= processes", "pass"),
    Error("distillation.processes", "nullcontext() if self.is_sharded else ", ""),
    Error("distillation.processes", "for block in describe(model).blocks:", "for block in []:"),
    Error("distillation.memory", "_bytes(asked)", "_bytes(weight.float() for weight in asked)"),
    Error("export", "tensor.weight.copy_(tensor.decoded())", "tensor.decoded()"),
    Error("export", "self._bytes_of(self.weight), self.type", "self.encoded(), self.type"),
    Error("vllm_folder", "attention.skipped and number > 0", "attention.skipped"),
    Error("vllm_folder", " | _zeros(parts)", ""),
    Error("vllm_folder", "torch.zeros_like(weight)", "weight"),
    Error("vllm_folder", "min(window, config.max_position_embeddings)", "config.max_position_embeddings"),
    Error("vllm_folder", '"n_heads_in_group": parts.queries_a_group', '"n_heads_in_group": 1'),
    Error("vllm_folder", '"intermediate_size": width', '"intermediate_size": max(parts.intermediate_sizes)'),
    Error("vllm_folder", "live.inputs[0].bias is not None", "False"),
    Error("vllm_folder", "live.outputs[0].bias is not None", "False"),
    Error("vllm_folder", '"head_dim": parts.head_size', '"head_dim": None'),
    Error("vllm_folder", '_SQUARE = ("qwen2",)', "_SQUARE = ()"),
    Error("distillation.adapters", "lora_alpha=recipe.lora_rank", "lora_alpha=2 * recipe.lora_rank"),
    Error("distillation.adapters", "safe_merge=True", "safe_merge=False"),
    Error("distillation.adapters", "        model.unload()", "        model.merge_and_unload()"),
    Error("distillation.adapters", "weight.requires_grad_(wanted)", "pass"),
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
