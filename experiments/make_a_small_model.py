"""Make a small model from the embedded Llama by NVIDIA's recipe (Minitron), with controls and its rival, for lesson 14.

    python -m experiments.make_a_small_model [--work build/small_model]

The teacher learns a little of the text first (teacher correction), all axes are scored in one pass, versions under a
budget are ranked as cut and after light distillation with two seeds, and the winner learns from the corrected teacher.
Each axis alone is held against nineteen random cuts. The rival is the teacher itself, whole, in fewer bits; it reads as
much of the same text as the winner, and the choosing rows say whether that helped it. Controls, in the order of
``learn``: the winner solved first, without a teacher at equal tokens and minutes, a random cut, another draw of the
text, blocks alone, what optipfair cuts to as many parameters (it comes with the extra "benchmarks"), and the same sizes
from random weights.

Half of the text to learn from are scenes of HellaSwag's training set, 15 % passages of BoolQ's: neither judges here.

How long: nine students learn 183,600 tokens each, one a quarter more, ten short ones 20,400; that makes 2.1 million, at
170 to 180 a second of one core: about three and a half hours. Killed, it goes on: each part's result is a file in the
work folder. The record is written at the end, all or nothing.
"""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from course_utils.compress import AXES, Budget, Candidate, Importance, candidates, importance, rank, shrink
from course_utils.healing import Recipe, distill, refit
from course_utils.healing.distillation.teacher_states import TeacherStates, remember_teacher
from course_utils.measuring import perplexity
from course_utils.models import cast_weights, load_model, model_size
from course_utils.pruning import best, load_pruned, save_pruned
from course_utils.pruning.channels import legal_sizes
from course_utils.pruning.heads import legal_groups
from course_utils.pruning.width import kept_width
from course_utils.release import engine, export_gguf
from course_utils.support.files import write_json
from course_utils.support.session import fast_dtype
from course_utils.text import overlaps, token_blocks
from course_utils.text.rows import TokenBlocks
from experiments.record import command, kept, machine

LENGTH, ROWS, SEED = 256, 4, 0  # tokens per row, rows per batch
MIX = {"scenes": 0.5, "speeches": 0.15, "wiki": 0.15, "passages": 0.15, "stories": 0.05}  # shares of the tokens
DOMAINS = {"speeches": 102_400, "wiki": 25_600, "stories": 5_120}  # tokens of the evaluation split to take rows from
CALIBRATION = {"speeches": 65_536, "wiki": 11_520, "stories": 3_072}  # and of the calibration split
SCORED, CHOSEN, JUDGED = 6, 6, 40  # rows of each domain (stories has no more): to score by, to choose by, to judge by
SHARE, MULTIPLE_OF = 0.8, 32  # parameters that may stay, and of what the MLPs' widths are multiples
LR, CORRECTION_LR = 2e-4, 5e-5
CORRECTION, LIGHT, STEPS, SOLVED = 40, 20, 180, 8  # steps of ROWS x LENGTH tokens; of the last, the text of a solve
RANDOM = 19  # random cuts of each axis
FINALISTS, SEEDS = 5, 2  # versions that are lightly distilled, and how often
DRAWS = 3  # times STEPS: what is read in other draws, or at equal minutes
LAP, TURNS = 3, 3  # steps of a lap, and laps of each way to learn, which take turns: what a step costs
FORMATS = ("F16", "Q8_0", "Q4_0")
SERVED = {"prompt_tokens": 128, "new_tokens": 32, "rounds": 11}
QUESTIONS = (
    "Why is the sky blue?",
    "What is the capital of France, and what is it known for?",
    "I have three apples and eat one. How many are left?",
    "Write one sentence about a dog that waits for somebody.",
    "Give me two tips for sleeping better.",
)
ALPHA = 1.0  # of the loss, the share of cross-entropy where there is no teacher; otherwise 0


def main() -> None:
    parser = command(__doc__, "small_model")
    args = parser.parse_args()
    if not engine.available():
        parser.error(f"The last part serves the models: {engine.problem()}")
    write_json(args.out, Run(args.work).record())
    print(f"written to {args.out}")


class Run:
    """The teacher, the text, and all that is made of them; ``work`` keeps what is done."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.whole, self.tokenizer = load_model("llama", dtype=fast_dtype(torch.device("cpu")))
        self.rows = training_rows(self.tokenizer, DRAWS * STEPS)
        self.scoring, self.choosing = calibration_rows(self.tokenizer)
        self.kept("correction", self._correct)
        self.teacher, _ = load_pruned(work / "teacher")
        if not (scores := work / "scores.safetensors").exists():
            importance(self.teacher, batches_of(self.scoring)).save(scores)
        self.scores = Importance.load(scores)
        self._known = functools.lru_cache(maxsize=2)(self._remembered)  # one teacher, many students

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A part's result, made once and kept as a file."""
        return kept(self.work / f"{name}.json", make)

    def record(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        winner, depth_only, zero_shot, ranked = self._searched()
        learned = self.learn(winner, depth_only)
        alone = one_axis_each(self.teacher).items()
        axes = {axis: self.kept(f"axes/{axis}", lambda one=(axis, cut): self._alone(*one)) for axis, cut in alone}
        makes, rows = self._judged(winner, [*learned]), batches_of(self.choosing)
        judges, documents = judging_rows(self.tokenizer, self.rows)
        chosen, nats = {}, {}
        for name, make in makes.items():
            chosen[name] = self.kept(f"chosen/{name}", lambda make=make: perplexity(make(), rows).nll)
            nats[name] = self.kept(
                f"nats/{name}", lambda make=make: sums_of(perplexity(make(), judge) for judge in judges.values())
            )
        released = min((name for name in ("winner", "solved first") if name in learned), key=chosen.__getitem__)
        rival = min(("whole, corrected", "whole, trained"), key=chosen.__getitem__)
        served = self.kept("served", lambda: self._serve(winner, released, rival, judges))
        return {
            "machine": machine(),
            "settings": {"steps": STEPS, "correction": CORRECTION, "light": LIGHT, "tokens a step": ROWS * LENGTH},
            "parameters": {"whole": model_size(self.whole).parameters}
            | {name: model_size(self.student(name)).parameters for name in learned},
            "sizes": {"winner": winner.sizes, "depth only": depth_only.sizes},
            "axes": axes,
            "zero_shot": zero_shot,
            "ranked": ranked,
            "learned": learned,
            "chosen": chosen,
            "released": released,
            "rival": rival,
            "texts": [*judges],
            "predictions": LENGTH - 1,  # of each row
            "documents": documents,
            "nats": nats,
            **served,
        }

    def learn(self, winner: Candidate, depth_only: Candidate) -> dict[str, dict[str, float]]:
        """What each arm took: tokens, and seconds where they matter. What matters most comes first."""
        prices = self.kept("prices", lambda: self._prices(winner))
        taught, untaught = prices["with a teacher"], prices["without"]
        as_long = min(DRAWS * STEPS, round(taught / untaught * STEPS))

        def cut() -> PreTrainedModel:
            return shrink(self.teacher, winner, self.scores)

        def randomly() -> PreTrainedModel:
            return shrink(self.teacher, winner, self.scores.random(AXES, SEED))

        arms: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {"winner": (cut, {})}
        if self._can_be_solved(winner):
            arms["solved first"] = (lambda: self.solved(winner), {})
        arms |= {
            "whole, trained": (lambda: copy.deepcopy(self.teacher), {"alpha": ALPHA}),
            "no teacher": (cut, {"alpha": ALPHA}),
            "no teacher, equal minutes": (cut, {"alpha": ALPHA, "steps": as_long}),
            "random cut": (randomly, {}),
            "another draw": (cut, {"draw": 1}),
            "depth only": (lambda: shrink(self.teacher, depth_only, self.scores), {}),
            "optipfair": (lambda: cut_by_optipfair(self.teacher, winner, self.scoring), {}),
            "from scratch": (lambda: from_scratch(cut()), {}),
        }
        seconds = {
            "winner": STEPS * taught,
            "solved first": STEPS * taught + prices["solve"],
            "no teacher": STEPS * untaught,
            "no teacher, equal minutes": as_long * untaught,
            "whole, trained": STEPS * prices["whole"],
        }
        learned = {}
        for name, (make, options) in arms.items():
            spent = self.kept(f"learned/{name}", lambda arm=(name, make, options): self._recover(*arm[:2], **arm[2]))
            learned[name] = spent | ({"seconds": round(seconds[name])} if name in seconds else {})
        return learned

    def _prices(self, winner: Candidate) -> dict[str, float]:
        """Seconds of a step in each way to learn, the median of laps that take turns; and of the solve."""
        cut, text = shrink(self.teacher, winner, self.scores), batches(self.rows[: LAP * ROWS])

        def lap(student: PreTrainedModel, alpha: float) -> float:
            options: dict[str, Any] = {"lr": LR, "precision": student.dtype, "seed": SEED, "alpha": alpha}
            return distill(self.teacher, copy.deepcopy(student), text, steps=LAP, **options).seconds / LAP

        ways = {"with a teacher": (cut, 0.0), "without": (cut, ALPHA), "whole": (self.teacher, ALPHA)}
        laps = [{way: lap(*made) for way, made in ways.items()} for _ in range(TURNS)]
        begin = time.perf_counter()
        if self._can_be_solved(winner):
            self.solved(winner)
        return {"solve": time.perf_counter() - begin} | {way: median(each[way] for each in laps) for way in ways}

    def _can_be_solved(self, winner: Candidate) -> bool:
        """Whether its stream is as wide as the teacher's, and can be compared with it."""
        return winner.hidden == Candidate.of(self.teacher).hidden

    def solved(self, winner: Candidate) -> PreTrainedModel:
        """The winner's cut with its MLPs solved for again, over the first of the text."""
        student = shrink(self.teacher, winner, self.scores)
        text = batches(self.rows[: SOLVED * ROWS])
        refit(student, self.teacher, text, blocks=best(self.scores.blocks, winner.blocks).tolist())
        return student

    def student(self, name: str) -> PreTrainedModel:
        """One that has learned."""
        return load_pruned(self.work / "students" / name)[0]

    def _correct(self) -> float:
        """Train a copy of the teacher a little on the text that students are to learn from; keep it; its seconds."""
        teacher, text = copy.deepcopy(self.whole), batches(self.rows[: CORRECTION * ROWS])
        folder = self.work / "correction_run"
        settings: dict[str, Any] = {"steps": CORRECTION, "lr": CORRECTION_LR, "alpha": ALPHA, "seed": SEED}
        history = distill(self.whole, teacher, text, precision=self.whole.dtype, checkpoint_dir=folder, **settings)
        cast_weights(teacher, self.whole.dtype)
        save_pruned(teacher, self.tokenizer, self.work / "teacher")
        return history.seconds

    def _searched(self) -> tuple[Candidate, Candidate, list[dict], list[dict]]:
        """The winner, the best version that only gave up blocks; the ranking as cut, and after light distillation."""
        budget, folder = Budget(SHARE * Candidate.of(self.teacher).parameters), self.work / "search"
        several = candidates(self.teacher, budget, multiple_of=MULTIPLE_OF, tolerance=0.03)
        depth_only = fewer_blocks(self.teacher, budget)
        by_name = {candidate.name: candidate for candidate in [*several, depth_only]}
        ranking = functools.partial(rank, self.teacher, text=self.choosing, importance=self.scores, folder=folder)

        def as_cut() -> list[dict]:
            return named(ranking(candidates=[*by_name.values()]))

        def distilled(seed: int) -> list[dict]:  # each seed learns other rows, in another order
            rows = self.rows[: STEPS * ROWS]
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: LIGHT * ROWS]
            recipe = Recipe(steps=LIGHT, lr=LR, seed=seed, precision=self.teacher.dtype)
            return named(ranking(candidates=finalists, train=batches(rows[order]), recipe=recipe).assign(seed=seed))

        zero_shot = self.kept("search/as cut", as_cut)
        finalists = [by_name[row["name"]] for row in zero_shot[:FINALISTS]]
        found = [self.kept(f"search/seed {seed}", lambda seed=seed: distilled(seed)) for seed in range(SEEDS)]
        ranked = [row for rows in found for row in rows]
        winner = by_name[pd.DataFrame(ranked).groupby("name")["distilled_nll"].mean().idxmin()]
        return winner, depth_only, zero_shot, ranked

    def _alone(self, axis: str, cut: Candidate) -> dict[str, Any]:
        """What a cut of one axis costs on the choosing rows, by its score and at random, nats per token."""
        rows = batches_of(self.choosing)
        several = [self.scores, *(self.scores.random(axis, seed) for seed in range(RANDOM))]
        before = perplexity(self.teacher, rows).nll
        scored, *random = (perplexity(shrink(self.teacher, cut, scores), rows).nll - before for scores in several)
        return {"cut": cut.name, "scored": scored, "random": random}

    def _remembered(self, draw: int) -> TeacherStates:
        text = self.rows.split(STEPS * ROWS)[draw]
        return remember_teacher(self.teacher, batches(text), precision=self.teacher.dtype)

    def _recover(
        self, name: str, make: Callable[[], PreTrainedModel], *, alpha: float = 0.0, steps: int = 0, draw: int = 0
    ) -> dict[str, int]:
        """Let one student learn, and keep it; how many tokens it learned from."""
        steps, student, first = steps or STEPS, make(), draw * STEPS * ROWS
        dtype = student.dtype
        history = distill(
            self.teacher if alpha else self._known(draw), student, batches(self.rows[first : first + steps * ROWS]),
            steps=steps, lr=LR, precision=dtype, seed=SEED, checkpoint_dir=self.work / "runs" / name, save_every=20,
            alpha=alpha,
        )  # fmt: skip
        cast_weights(student, dtype)
        save_pruned(student, self.tokenizer, self.work / "students" / name)
        return {"tokens": history.tokens}

    def _judged(self, winner: Candidate, learned: Sequence[str]) -> dict[str, Callable[[], PreTrainedModel]]:
        """What the judging rows are read by."""
        models = {"whole": lambda: self.whole, "whole, corrected": lambda: self.teacher}
        models["winner, as cut"] = lambda: shrink(self.teacher, winner, self.scores)
        if "solved first" in learned:
            models["winner, solved"] = lambda: self.solved(winner)
        return models | {name: functools.partial(self.student, name) for name in learned}

    def _serve(self, winner: Candidate, released: str, rival: str, judges: dict[str, TokenBlocks]) -> dict[str, Any]:
        """Rival, released and random cut in llama.cpp's formats: bytes and nats of each file, speeds side by side."""
        makes = self._judged(winner, [released, rival, "random cut"])
        names = {"whole": rival, "winner": released, "random cut": "random cut"}
        models = {name: makes[of]() for name, of in names.items()}
        wanted = [(name, model, kind) for name, model in models.items() for kind in FORMATS]
        wanted += [("whole, off the grid", off_the_grid(models["whole"]), "Q4_0")]
        files, stored = {}, {}
        for name, model, kind in wanted:
            key = f"{name}, {kind}"
            files[key] = export_gguf(model, self.tokenizer, self.work / f"{key}.gguf", quantization=kind)
            with engine.load(files[key]) as opened:
                sums = sums_of(engine.perplexity(opened, rows) for rows in judges.values())
            stored[key] = {"bytes": files[key].stat().st_size, "nats": sums}
        rivals = {key: path for key, path in files.items() if key.partition(", ")[2] in FORMATS and "random" not in key}
        answers = {key: self._answers(files[key]) for key in ("whole, Q8_0", "whole, Q4_0", "winner, Q8_0")}
        speed = records(engine.measure_speed(rivals, **SERVED))
        return {"stored": stored, "speed": speed, "threads": torch.get_num_threads(), "answers": answers}

    def _answers(self, file: Path) -> dict[str, str]:
        """What a file's model says to five questions, to its end token."""
        found = {}
        with engine.load(file) as opened:
            for question in QUESTIONS:
                asked = question
                if self.tokenizer.chat_template:
                    chat = [{"role": "user", "content": question}]
                    asked = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
                said = opened.detokenize(opened.generate(opened.tokenize(asked), new_tokens=48))
                found[question] = said.partition(self.tokenizer.eos_token)[0].strip()
        return found


def some_rows(blocks: TokenBlocks, count: int) -> torch.Tensor:
    """Numbers of rows from all over a split, the same ones every time."""
    return torch.from_numpy(np.random.default_rng(SEED).permutation(len(blocks))[:count])


def training_rows(tokenizer: PreTrainedTokenizerBase, steps: int) -> torch.Tensor:
    """What is learned from, [steps * ROWS, LENGTH]: the domains mixed."""
    wanted, rows = steps * ROWS, []
    for domain, share in MIX.items():
        tokens = (round(share * wanted) + 1) * LENGTH
        rows.append(token_blocks(tokenizer, "distillation", domain=domain, tokens=tokens, length=LENGTH).input_ids)
    mixed = torch.cat(rows)
    return mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(SEED))][:wanted]


def batches(rows: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The rows, ``ROWS`` at a time, as a model takes them."""
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows.split(ROWS)]


def clean(blocks: TokenBlocks, tokenizer: PreTrainedTokenizerBase, learned: list[str]) -> torch.Tensor:
    """Which rows share no thirteen words in a row with the training text, bool [rows]."""
    return ~torch.tensor(overlaps(tokenizer.batch_decode(blocks.input_ids), learned))


def batches_of(several: Sequence[TokenBlocks]) -> list[dict[str, torch.Tensor]]:
    """The rows of all domains."""
    return [batch for blocks in several for batch in blocks.batches()]


def calibration_rows(tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenBlocks], list[TokenBlocks]]:
    """Rows of the calibration split to score by, and others to choose by."""
    both = []
    for domain, tokens in CALIBRATION.items():
        pool = token_blocks(tokenizer, "calibration", domain=domain, tokens=tokens, length=LENGTH)
        both.append(pool[some_rows(pool, SCORED + CHOSEN)])
    return [blocks[:SCORED] for blocks in both], [blocks[SCORED:] for blocks in both]


def judging_rows(
    tokenizer: PreTrainedTokenizerBase, learned: torch.Tensor
) -> tuple[dict[str, TokenBlocks], dict[str, list[int]]]:
    """Rows of the evaluation split that share no thirteen words in a row with what was learned, and their documents."""
    texts = tokenizer.batch_decode(learned)
    judges, documents = {}, {}
    for domain, tokens in DOMAINS.items():
        pool = token_blocks(tokenizer, "evaluation", domain=domain, tokens=tokens, length=LENGTH)
        chosen = some_rows(pool, JUDGED)
        chosen = chosen[clean(pool[chosen], tokenizer, texts)]
        judges[domain], documents[domain] = pool[chosen], documents_of(pool, tokenizer)[chosen].tolist()
    return judges, documents


def documents_of(pool: TokenBlocks, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """For each of a pool's rows, which follow each other, the number of the document that it begins in."""
    ends = (pool.input_ids == tokenizer.eos_token_id).long()
    return (ends.flatten().cumsum(0) - ends.flatten()).view_as(ends)[:, 0]


def sums_of(found: Iterator[Any]) -> list[list[float]]:
    """Each row's nats, text by text."""
    return [one.row_nll.round(2).tolist() for one in found]


def named(frame: pd.DataFrame) -> list[dict]:
    """The rows of a ranking, with the candidates' names."""
    sizes = frame[["blocks", "hidden", "groups", "neurons"]].itertuples(index=False)
    return records(frame.assign(name=[Candidate(*four).name for four in sizes]))


def records(frame: pd.DataFrame) -> list[dict]:
    return json.loads(frame.to_json(orient="records"))


def fewer_blocks(teacher: PreTrainedModel, budget: Budget) -> Candidate:
    """The deepest version that fits the budget with nothing cut but blocks."""
    whole = Candidate.of(teacher)
    (only,) = candidates(
        teacher, budget, blocks=range(1, whole.blocks + 1), hidden=[whole.hidden], groups=[whole.groups],
        multiple_of=whole.neurons, least_width=1.0, tolerance=1.0,
    )[:1]  # fmt: skip
    return only


def from_scratch(cut: PreTrainedModel) -> PreTrainedModel:
    """The same sizes with random weights."""
    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_config(cut.config, dtype=cut.dtype).eval()


def cut_by_optipfair(teacher: PreTrainedModel, winner: Candidate, scoring: list[TokenBlocks]) -> PreTrainedModel:
    """What optipfair makes of the teacher with the winner's parameters, by the same scoring rows."""
    import optipfair

    whole = Candidate.of(teacher)
    width = whole.neurons - (whole.parameters - winner.parameters) // (3 * whole.hidden * whole.blocks)
    return optipfair.prune_model(
        copy.deepcopy(teacher), neuron_selection_method="MAW", pruning_percentage=100 * (1 - width / whole.neurons),
        dataloader=batches_of(scoring), show_progress=False,
    )  # fmt: skip


def one_axis_each(model: PreTrainedModel) -> dict[str, Candidate]:
    """A small cut of each axis alone."""
    whole = Candidate.of(model)
    sizes = {
        "neurons": {"neurons": kept_width(whole.neurons, 1 / 6, MULTIPLE_OF)},
        "groups": {"groups": max(count for count in legal_groups(model) if count < whole.groups)},
        "channels": {"hidden": max(size for size in legal_sizes(model, 1) if size <= 0.94 * whole.hidden)},
        "blocks": {"blocks": whole.blocks - max(1, round(whole.blocks / 15))},
    }
    return {axis: replace(whole, **changed) for axis, changed in sizes.items()}


@torch.no_grad()
def off_the_grid(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float32 that computes the same with other numbers: rows or columns are multiplied, and divided again.

    The embedded Llama comes from a file of 4 bits, so its weights lie on a grid that another such file hits more easily
    than any weights that were trained.
    """
    model, generator = copy.deepcopy(model).float(), torch.Generator().manual_seed(SEED)

    def factors(count: int) -> torch.Tensor:
        return 2 ** (0.5 * torch.rand(count, generator=generator) - 0.25)

    def scale(weights: nn.Module, by: torch.Tensor) -> None:
        weights.weight = nn.Parameter(weights.weight * by)

    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        readers = {
            block.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            block.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, behind in readers.items():
            channels = factors(len(norm.weight))
            scale(norm, 1 / channels)
            for reader in behind:
                scale(reader, channels)
        neurons = factors(mlp.up_proj.out_features)
        scale(mlp.up_proj, 1 / neurons[:, None])
        scale(mlp.down_proj, neurons)
        values = factors(attention.v_proj.out_features)
        scale(attention.v_proj, 1 / values[:, None])
        queries = attention.o_proj.in_features // len(values)  # query heads that read each key and value head
        scale(attention.o_proj, values.view(-1, attention.head_dim).repeat_interleave(queries, 0).flatten())
    return model


if __name__ == "__main__":
    main()
