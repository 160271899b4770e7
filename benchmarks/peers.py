"""Width pruning beside optipfair and Torch-Pruning: time, memory, perplexity, reloadable or not.

All prune the same model, the embedded SmolLM2-135M, and are scored on the same held-out text. Each has a process of
its own (one thread each, one at a time); the timed runs take turns. Needs the extra "benchmarks".
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common import Finding, Question, markdown_table, ratio, with_range
from course_utils.measuring import peak_memory, perplexity
from course_utils.measuring.benchmarking import stopwatch
from course_utils.models import load_model
from course_utils.pruning import neuron_importance, prune_neurons
from course_utils.text import token_blocks

ROUNDS = 6
RATIOS = (0.2, 0.4)
CALIBRATION = {"tokens": 1024, "length": 128}
EVALUATION = {"tokens": 2048, "length": 256}


def course(criterion: str) -> Callable:
    def prune(model: PreTrainedModel, ratio: float, batches: list[dict]) -> None:
        data = {"batches": batches} if criterion == "activation" else {}
        prune_neurons(model, neuron_importance(model, criterion, **data), ratio=ratio)

    return prune


def optipfair(method: str, *, data: bool = False) -> Callable:
    import optipfair as library

    def prune(model: PreTrainedModel, ratio: float, batches: list[dict]) -> None:
        library.prune_model(
            model, neuron_selection_method=method, pruning_percentage=100 * ratio,
            dataloader=batches if data else None, show_progress=False,
        )  # fmt: skip

    return prune


def torch_pruning(norm: int) -> Callable:
    import torch_pruning as library

    def prune(model: PreTrainedModel, ratio: float, _batches: list[dict]) -> None:
        # Everything but gate and up is a fixed point, so that only the MLPs' inner widths shrink.
        fixed = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding) and not name.endswith(("gate_proj", "up_proj"))
        ]
        library.pruner.BasePruner(
            model, example_inputs=torch.arange(8)[None], pruning_ratio=ratio, ignored_layers=fixed,
            importance=library.importance.GroupMagnitudeImportance(p=norm),
            output_transform=lambda output: output.logits,
        ).step()  # fmt: skip

    return prune


@dataclass(frozen=True)
class Contestant:
    """A library, one of its criteria, and what makes the function that prunes a model in place by it."""

    library: str
    criterion: str
    make: Callable[[], Callable]


CONTESTANTS = (
    Contestant("course_utils", "peak-to-peak", lambda: course("peak_to_peak")),
    Contestant("optipfair", "peak-to-peak (MAW)", lambda: optipfair("MAW")),
    Contestant("course_utils", "L1", lambda: course("l1")),
    Contestant("torch-pruning", "L1, group mean", lambda: torch_pruning(1)),
    Contestant("course_utils", "L2", lambda: course("l2")),
    Contestant("optipfair", "L2", lambda: optipfair("L2")),
    Contestant("torch-pruning", "L2, group mean", lambda: torch_pruning(2)),
    Contestant("course_utils", "activation, with data", lambda: course("activation")),
    Contestant("optipfair", "MAW x activation, with data", lambda: optipfair("MAW", data=True)),
    Contestant("course_utils", "random, one seed", lambda: course("random")),
)
LIBRARIES = tuple(dict.fromkeys(c.library for c in CONTESTANTS))


@cache
def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[dict]]:
    """The model, its tokenizer and the calibration batches, once in each process; a pass warms up."""
    torch.set_num_threads(1)
    base, tokenizer = load_model("llama", device="cpu")
    batches = token_blocks(tokenizer, "calibration", **CALIBRATION).batches(4)
    with torch.no_grad():
        base(**batches[0])
    return base, tokenizer, batches


def measured(number: int, ratio: float, task: str) -> dict:
    """What one contestant's cut takes ("time" or "memory"), or is like ("quality"); run in a library's own process."""
    base, tokenizer, batches = loaded()
    prune = CONTESTANTS[number].make()
    # Not the loaded model itself: its weights are a mapped file, which stays resident when they are replaced.
    # And not a variant: the other libraries may write into weights.
    model = copy.deepcopy(base)
    if task == "memory":
        return memory(lambda: prune(model, ratio, batches))
    with stopwatch() as seconds:
        prune(model, ratio, batches)
    if task == "time":
        return {"seconds": seconds()}
    answer = quality(model, tokenizer)
    if ratio == RATIOS[-1]:
        answer["reloads"] = reload(model, batches[0]["input_ids"][:1])
    return answer


def quality(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    blocks = token_blocks(tokenizer, "evaluation", **EVALUATION)
    score = perplexity(model, blocks)
    width = model.model.layers[0].mlp.down_proj.weight.shape[1]
    scores = {"perplexity": score.perplexity, "ci_low": score.ci_low, "ci_high": score.ci_high}
    return {"parameters": model.num_parameters(), "width": width} | scores


def reload(model: PreTrainedModel, ids: Tensor) -> str:
    """Does the model come back as the library left it? If not, does it with the width in its configuration set?"""
    if (answer := round_trip(model, ids)) == "yes":
        return answer
    model.config.intermediate_size = model.model.layers[0].mlp.down_proj.weight.shape[1]
    return f"{answer}; {round_trip(model, ids)} with the width set by hand"


@torch.no_grad()
def round_trip(model: PreTrainedModel, ids: Tensor) -> str:
    """Plain ``save_pretrained``, plain ``from_pretrained``, the same logits."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        except (RuntimeError, ValueError):
            return "no"
        return "yes" if torch.equal(again(ids).logits, model(ids).logits) else "with other logits"


def memory(call: Callable[[], object]) -> dict[str, int | None]:
    """Peak tensor memory of a call, and how far the process's resident memory rose, where Linux keeps that mark."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return {"peak_bytes": peak_memory(call), "resident_bytes": None}
    before, peak = status("VmRSS"), peak_memory(call)
    return {"peak_bytes": peak, "resident_bytes": status("VmHWM") - before}


def race() -> list[dict]:
    """What all contestants measured: each library in a process of its own, one at a time; the timed runs take turns."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that begin from here on
    results = [{"library": c.library, "criterion": c.criterion, "seconds": []} for c in CONTESTANTS]
    numbers, bar = range(len(results)), tqdm(total=(ROUNDS + 1 + 1 + len(RATIOS)) * len(results))
    with contextlib.ExitStack() as stack:
        processes = {library: stack.enter_context(process()) for library in LIBRARIES}

        def ask(number: int, ratio: float, task: str) -> dict:
            bar.update()
            return processes[CONTESTANTS[number].library].submit(measured, number, ratio, task).result()

        for turn in range(-1, ROUNDS):  # the first round warms up
            for number in numbers[:: -1 if turn % 2 else 1]:
                taken = ask(number, RATIOS[0], "time")["seconds"]
                if turn >= 0:
                    results[number]["seconds"].append(taken)
        for number in numbers:
            results[number]["at"] = [ask(number, ratio, "quality") for ratio in RATIOS]
    for number in numbers:
        with process() as fresh:
            results[number] |= fresh.submit(measured, number, RATIOS[0], "memory").result()
        bar.update()
    return results


def process() -> ProcessPoolExecutor:
    """A new process, which waits for work."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def blocks_with_equal_scores(model: PreTrainedModel) -> int:
    """In how many blocks optipfair's MAW and our peak-to-peak give bit for bit the same scores."""
    from optipfair.pruning.mlp_glu import compute_neuron_pair_importance_maw

    return sum(
        torch.equal(ours, compute_neuron_pair_importance_maw(block.mlp.gate_proj.weight, block.mlp.up_proj.weight))
        for ours, block in zip(neuron_importance(model, "peak_to_peak"), model.model.layers, strict=True)
    )


def counterpart(results: list[dict], result: dict) -> dict:
    """Our own run with the same kind of score: the nearest one above."""
    return next(r for r in reversed(results[: results.index(result) + 1]) if r["library"] == "course_utils")


def report(data: dict) -> str:
    results, base, block_bytes = data["results"], data["base"], data["block_bytes"]

    def row(result: dict) -> list[str]:
        mine = counterpart(results, result)
        small, large = result["at"]
        resident = result["resident_bytes"]
        return [
            f"{result['library']}: {result['criterion']}",
            f"{median(result['seconds']):.3f}",
            "1" if result is mine else with_range(ratio(result["seconds"], mine["seconds"]), 1),
            f"{result['peak_bytes'] / 2**20:.0f}",
            f"{result['peak_bytes'] / block_bytes:.1f}",
            "–" if resident is None else f"{resident / 2**20:.0f}",
            f"{small['width']} / {large['width']}",
            f"{small['perplexity']:,.1f} / {large['perplexity']:,.1f}",
            large["reloads"],
        ]

    def perplexities(result: dict) -> list[float]:
        return [cut["perplexity"] for cut in result["at"]]

    unpruned = f"{base['perplexity']:.1f} ({base['ci_low']:.1f}–{base['ci_high']:.1f})"
    pairs = [(result, mine) for result in results if result is not (mine := counterpart(results, result))]
    same = ", ".join(
        f"{theirs['library']} {theirs['criterion']}"
        for theirs, ours in pairs
        if perplexities(theirs) == perplexities(ours)
    )
    header = [
        "library: criterion", "seconds", "× ours (95 %)", "peak extra MiB", "in blocks", "resident extra MiB",
        "width at 20 / 40 %", "perplexity at 20 / 40 %", "reloads",
    ]  # fmt: skip
    return f"""Model: the embedded SmolLM2-135M in float32, {base["parameters"]:,} parameters, width {base["width"]};
perplexity before pruning {unpruned}, on {EVALUATION["tokens"]:,} tokens of speeches that no score has seen. Criteria
with data read {CALIBRATION["tokens"]:,} tokens of other speeches.

{markdown_table(header, [row(result) for result in results])}

How to read it:

- **seconds**: scoring and cutting at 20 %, median of {ROUNDS} rounds in which the contestants took turns, one thread
  each. Seconds move with whatever else runs on the machine (see the load average above), so trust **× ours**: the
  median ratio to our own criterion of the same kind (the nearest one above) in the same round, with its interval.
- **peak extra**: tensor memory above the loaded model at the worst moment at 20 %, counted exactly; **in blocks**
  divides it by one block's weights ({block_bytes / 2**20:.1f} MiB). **resident extra**: how far the whole process grew,
  Python objects and what the C library keeps back included.
- **perplexity**: lower is better; the interval above says how little {EVALUATION["tokens"]:,} tokens can tell apart.
  Compare each criterion with **random**, and see lesson 03 before choosing one.
- **reloads**: the 40 % model as the library leaves it, `save_pretrained`, then plain `from_pretrained`, identical
  logits. Torch-Pruning works on any torch module and knows nothing of Hugging Face configurations; setting the width
  there is the caller's part.
- optipfair's MAW and our peak-to-peak give the same scores, bit for bit, in {data["equal_scores"]} blocks;
  where neurons tie, the two may keep different ones. Pruned to exactly our perplexity: {same or "none"}.
- Torch-Pruning's score is the mean of a neuron's sums of |w|^p over gate, up *and* down; it rounds the width down, the
  others round it up.
"""


def findings(data: dict) -> list[Finding]:
    """A line a contestant that isn't ours."""
    found = []
    for result in data["results"]:
        mine = counterpart(data["results"], result)
        if result is not mine:
            value, memory = ratio(result["seconds"], mine["seconds"]), result["peak_bytes"] / mine["peak_bytes"]
            text = f"{with_range(value, 1)} × the time, {memory:.0f} × the memory"
            name = f"{result['library']} {result['criterion']}, × ours"
            found.append(Finding(name, text, "slower than ours", value[1] > 1))
    return found


def measure(data: dict) -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_model("llama", device="cpu")
    data["base"] = quality(model, tokenizer)
    data["block_bytes"] = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    data["equal_scores"] = f"{blocks_with_equal_scores(model)} of {len(model.model.layers)}"
    data["results"] = race()


QUESTION = Question(
    "peers", "How does width pruning compare with optipfair and Torch-Pruning?", 8, measure, report, findings,
    packages=("optipfair", "torch-pruning"),
)  # fmt: skip

if __name__ == "__main__":
    QUESTION.ask()
