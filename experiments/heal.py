"""Cut the course's Llama well, badly and at random, and heal it in several ways, for lesson 07.

    python -m experiments.heal [--work build/heal]

Students: 40 % of the MLP neurons are gone, by activation, by peak-to-peak, at random. Each is solved again over 8,192
tokens (``healing.refit``), or trained over 8, 33 and 131 thousand, or solved over the first of them and then trained,
or trained for longer than the solve and the shortest training take. Training is distillation of the MLPs (forward KL).
The well cut student also learns from text alone (cross-entropy), and through LoRA; each of the four ways has a rate
that was chosen for it. Every length is a run with a schedule of its own; one of 612 thousand tokens is solved first.
Three seeds, which choose the text and its order, of the solves and of the well cut student at 33 thousand tokens; two
of the well and badly cut ones, trained on 8 thousand. All learn from speeches' distillation split alone and are judged
on other speeches and on wiki; rates are chosen on rows of a third split. Trained in bfloat16 arithmetic, judged in
float32, most of the first seed in bfloat16, too; LAMBADA of some, a thousand passages, in bfloat16. One more student
lacks eight attentions, solved over the same text; it is judged without and with 448 tokens before, as lesson 05 does.
Five to seven hours on two cores; killed, it goes on.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.healing import CheckpointMismatch, distill, refit
from course_utils.healing.distillation.teacher_states import TeacherStates, remember_teacher
from course_utils.measuring import evaluate, perplexity
from course_utils.models import describe, load_model, variant
from course_utils.pruning import attention_importance, bypass_attention, neuron_importance, prune_neurons
from course_utils.text import judging_rows, overlaps, token_blocks
from course_utils.text.rows import TokenBlocks
from experiments.attention_reach import JUDGED, evaluation_rows, nats_of_the_last
from experiments.record import DTYPES, LLAMA, Arm, Kept, command, in_dtype, write_record

RATIO, LENGTH, ROWS = 0.4, 256, 4  # share of the neurons that go; tokens of a row, rows of a step
SOLVED, RIDGE = 8, 0.3  # steps' worth of text that is solved over, and how much the old weights count
CRITERIA, PASSAGES = ("activation", "peak-to-peak", "random"), 1000  # of LAMBADA
STEPS, SEEDS = (8, 32, 128), (0, 1, 2)
ATTENTIONS, BEFORE = "attentions", (0, 448)  # a student without a quarter of them; tokens before the judged ones
LONG = 598  # steps of the one long run
POOL = 1024  # steps' worth of text that a seed draws from
IN_ITS_TIME = 16  # steps that take longer than a solve and eight steps
RATES = {
    "KL": (2e-4, 4e-4, 8e-4, 16e-4),
    "cross-entropy": (2e-4, 4e-4, 8e-4, 16e-4),
    "LoRA": (2e-3, 4e-3, 8e-3),
    "solved + KL": (1e-4, 2e-4, 4e-4, 8e-4),
}
MLPS: dict[str, Any] = {"mlps_only": True}
LEARNS: dict[str, dict[str, Any]] = {"KL": MLPS, "cross-entropy": MLPS | {"alpha": 1.0}, "LoRA": {"lora_rank": 16}}


@dataclass(frozen=True)
class Run:
    """How a student was cut and healed.

    Attributes:
        criterion: that cut it.
        solved: whether what leads out of its neurons was solved for first.
        loss: one of ``LEARNS``, or "" without training.
        steps: of training.
        seed: of the text and its order.
        lr: the peak learning rate.
        lambada: whether it is asked for last words, too.
        once: whether it is judged in float32 alone.
        constants: whether its MLPs write the mean of what they lost: one vector at a row's first token, one elsewhere.
    """

    criterion: str
    solved: bool = False
    loss: str = ""
    steps: int = 0
    seed: int = 0
    lr: float = 0.0
    lambada: bool = False
    once: bool = False
    constants: bool = False

    @property
    def edit(self) -> str:
        """What was done to the cut student; where it was trained, one of ``RATES``."""
        if self.constants:
            return "constants"
        return " + ".join([*(["solved"] if self.solved else []), *([self.loss] if self.loss else [])]) or "cut"

    @property
    def key(self) -> dict[str, object]:
        """What names it in the record."""
        return {"criterion": self.criterion, "edit": self.edit, "steps": self.steps, "seed": self.seed}


def runs() -> Iterator[Run]:
    """All of them, without their rates; what the lesson needs most comes first, and one seed's text stays together."""
    for criterion in CRITERIA:
        for solved in (False, True):
            yield Run(
                criterion, solved, lambada=criterion == "activation" or (criterion == "peak-to-peak" and not solved)
            )
    for criterion in CRITERIA:
        yield Run(criterion, False, "KL", IN_ITS_TIME)
    for steps in STEPS:
        longest = steps == STEPS[-1]
        for criterion in CRITERIA:
            for solved in (False, True):
                asked = (criterion, solved) in (("activation", False), ("peak-to-peak", True)) and longest
                yield Run(criterion, solved, "KL", steps, lambada=asked)
        for loss in ("cross-entropy", "LoRA"):
            yield Run("activation", False, loss, steps)
    yield Run("activation", True, "KL", LONG)
    for solved in (False, True):
        yield Run(ATTENTIONS, solved, once=True)
    for criterion in CRITERIA:
        yield Run(criterion, once=True, constants=True)
    for seed in SEEDS[1:]:
        for criterion in CRITERIA:
            yield Run(criterion, True, seed=seed, once=True)
    for criterion in CRITERIA[:2]:
        yield Run(criterion, False, "KL", STEPS[0], SEEDS[1], once=True)
    for seed in SEEDS[1:]:
        for solved, loss in ((False, "KL"), (True, "KL"), (False, "cross-entropy")):
            yield Run("activation", solved, loss, STEPS[1], seed, once=True)


class Clinic:
    """The teacher, the text, and what is done to students.

    Args:
        work: folder for runs that are under way.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.teacher, self.tokenizer = load_model("llama", dtype=torch.bfloat16)
        rows = token_blocks(self.tokenizer, "calibration", tokens=32_768, length=64).sample(128, seed=0)
        self._calibration, self.watched = rows[:64].batches(16), rows[64:]
        tokens = POOL * ROWS * LENGTH
        self._pool = token_blocks(self.tokenizer, "distillation", tokens=tokens, length=LENGTH)
        self._known = lru_cache(maxsize=len(SEEDS))(self._remembered)
        self.trained = lru_cache(maxsize=1)(self._trained)

    def text(self, steps: int, seed: int) -> TokenBlocks:
        """What is learned from: the first rows of a seed's own order, so that a longer run reads more of the same."""
        return self._pool.sample(steps * ROWS, seed=seed)

    def student(self, criterion: str) -> PreTrainedModel:
        """Cut, by nothing but its score."""
        student = variant(self.teacher)
        if criterion == ATTENTIONS:
            rows = token_blocks(self.tokenizer, "calibration", tokens=32_768, length=64).sample(80, seed=0)[:16]
            turns = attention_importance(student, rows.batches(16))
            bypass_attention(student, turns.topk(round(len(turns) / 4), largest=False).indices.tolist())
            return student
        importance = {
            "activation": partial(neuron_importance, student, "activation", batches=self._calibration),
            "peak-to-peak": partial(neuron_importance, student, "peak_to_peak"),
            "random": partial(neuron_importance, student, "random", seed=0),
        }[criterion]()
        prune_neurons(student, importance, ratio=RATIO)
        return student

    def _remembered(self, steps: int, seed: int) -> TeacherStates:
        return remember_teacher(self.teacher, self.text(steps, seed).batches(ROWS), precision=torch.bfloat16)

    def _trained(self, run: Run) -> PreTrainedModel:
        """The student, cut and healed, in float32."""
        student = self.student(run.criterion)
        if run.solved:
            refit(student, self.teacher, self.text(SOLVED, run.seed).batches(2 * ROWS), ridge=RIDGE)
        student.float()
        if run.loss:
            teacher = self._known(run.steps, run.seed)
            folder = self.work / "-".join(str(value) for value in (*run.key.values(), run.lr)).replace(" ", "")
            for other in self.work.glob("*-*-*/"):
                if other != folder:
                    shutil.rmtree(other)
            settings = LEARNS[run.loss] | {"steps": run.steps, "lr": run.lr, "seed": run.seed}
            text = self.text(run.steps, run.seed).batches(ROWS)
            settings |= {"precision": torch.bfloat16, "checkpoint_dir": folder, "save_every": 16}
            try:
                distill(teacher, student, text, **settings)
            except CheckpointMismatch:  # another machine, which rounds otherwise, began it
                shutil.rmtree(folder)
                return self._trained(run)
        return student

    def healed(self, run: Run, dtype: torch.dtype) -> PreTrainedModel:
        """The student with its weights in a dtype."""
        if run.constants:
            return with_constants(whole(dtype), in_dtype(self.student(run.criterion), dtype), self.text(SOLVED, 0))
        return in_dtype(self.trained(run), dtype)

    def rates(self) -> dict[str, dict[str, float]]:
        """What each rate leaves the well cut student on the watched rows, nats per token; measured once."""

        def left(run: Run) -> float:
            return perplexity(self.trained(run), self.watched, batch_size=16).nll

        def by_rate(run: Run) -> dict[str, float]:
            return {str(lr): left(replace(run, lr=lr)) for lr in RATES[run.edit]}

        found = Kept(self.work / "rates.json")
        for solved, loss in [(False, loss) for loss in LEARNS] + [(True, "KL")]:
            run = Run("activation", solved, loss, STEPS[1])
            found.once(run.edit, partial(by_rate, run))
        return found


def whole(dtype: torch.dtype) -> PreTrainedModel:
    """The teacher, loaded in a dtype."""
    return load_model("llama", dtype=dtype)[0]


@torch.no_grad()
def with_constants(teacher: PreTrainedModel, student: PreTrainedModel, text: TokenBlocks) -> PreTrainedModel:
    """The student itself, whose MLPs now also write the mean of what they lost, as ``Run.constants`` says."""
    first, others, hooks = defaultdict(list), defaultdict(list), []
    pairs: list[tuple[Any, Any]] = list(zip(describe(teacher).blocks, describe(student).blocks, strict=True))
    for number, (block, own) in enumerate(pairs):

        def note(_mlp: nn.Module, inputs: tuple, output: Tensor, own: Any = own.mlp, number: int = number) -> None:
            lost = output - own(inputs[0])
            first[number].append(lost[:, 0].mean(0))
            others[number].append(lost[:, 1:].mean((0, 1)))

        hooks.append(block.mlp.register_forward_hook(note))
    for batch in text.batches(ROWS):
        teacher.base_model(input_ids=batch["input_ids"].to(teacher.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    for number, (_, own) in enumerate(pairs):
        at_first, elsewhere = (torch.stack(means[number]).mean(0) for means in (first, others))

        def add(
            _mlp: nn.Module, _inputs: tuple, output: Tensor, one: Tensor = at_first, other: Tensor = elsewhere
        ) -> Tensor:
            return torch.cat([output[:, :1] + one, output[:, 1:] + other], dim=1)

        own.mlp.register_forward_hook(add)
    return student


def right_words(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """For each of LAMBADA's passages, 1 where greedy decoding finds the last word."""
    answers = evaluate(model, tokenizer, "lambada_openai", limit=PASSAGES).attrs["answers"].table
    return answers.loc[answers.metric == "acc", "value"].astype(int).tolist()


def arms(clinic: Clinic) -> Iterator[Arm]:
    """The teacher in both dtypes, then each run in both."""
    judges, lambada = judging_rows(clinic.tokenizer), {"LAMBADA": partial(right_words, clinic.tokenizer)}
    long, context = evaluation_rows(clinic.tokenizer), {}  # as lesson 05 judges
    for text in judges:
        for count in BEFORE:
            ids = long[text][:, -JUDGED - count :]
            context[f"{text}, {count} before"] = partial(nats_of_the_last, ids=ids)
    best = {edit: float(min(found, key=found.__getitem__)) for edit, found in clinic.rates().items()}
    uncut = {"criterion": "", "edit": "", "steps": 0, "seed": 0}
    for run in (None, *runs()):
        for name, dtype in DTYPES.items():
            if run is not None and run.once and name != "float32":
                continue
            make = partial(whole, dtype)
            if run is not None:
                make = partial(clinic.healed, replace(run, lr=best.get(run.edit, 0.0)), dtype)
            tasks: Mapping[str, Callable] = lambada if name == "bfloat16" and (run is None or run.lambada) else {}
            if name == "float32" and (run is None or run.criterion == ATTENTIONS):
                tasks = context
            yield Arm({**(run.key if run else uncut), "draw": 0, "dtype": name}, make, judges, tasks)


def main() -> None:
    args = command(__doc__, "records/heal").parse_args()
    clinic = Clinic(args.work)
    learned = clinic.tokenizer.batch_decode(clinic.text(LONG, 0).input_ids)
    shared = {
        name: sum(overlaps(clinic.tokenizer.batch_decode(rows.input_ids), learned))
        for name, rows in judging_rows(clinic.tokenizer).items()
    }
    settings = {
        "model": LLAMA, "ratio": RATIO, "tokens a step": ROWS * LENGTH, "rates": clinic.rates(), "overlaps": shared,
    }  # fmt: skip
    write_record(arms(clinic), args.out, work=args.work, settings=settings, total=2 * len([*runs()]))


if __name__ == "__main__":
    main()
