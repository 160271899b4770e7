"""What each function of the library does with a mixture of experts: it works, or refuses it by name.

After a change, `python tests/test_mixtures.py` writes the table in docs/mixtures.md anew.
"""

from __future__ import annotations

import copy
from itertools import groupby
from pathlib import Path

import pytest
import torch
from masked import unchanged
from test_fuzz import EMBEDDED, TRIED, arguments, arguments_of, call
from tiny import MIXTURES, tiny_batches, tiny_model, word_tokenizer
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from course_utils.compress import command_line
from course_utils.healing.distillation import Recipe, distill
from course_utils.pruning.checkpoints import save_pruned
from course_utils.pruning.experts import expert_importance, prune_experts

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mixtures.md"
BEGIN, END = "<!-- written by python tests/test_mixtures.py -->\n", "<!-- end -->\n"

WORKS = (
    "answers_of", "block_importance", "block_means", "complexity", "continuations", "damage_profile",
    "describe", "distill", "evaluate", "expert_importance", "export_vllm", "identity", "leave_one_out", "log_odds",
    "logits_one_by_one", "model_size", "perplexity", "prune_experts", "prune_vocabulary",
    "remove_blocks", "save_pruned", "variant",
)  # fmt: skip
REFUSED = (
    "as_stored", "attention_importance", "bypass_attention", "bytes_held", "calibrate",
    "candidates", "channel_importance", "export_gguf", "head_effects", "head_importance",
    "importance", "kv_bytes_per_token", "make_adaptive",
    "measure_speed", "memory_plan", "neuron_importance", "neuron_means", "odds_and_states", "outline_of",
    "patched_log_odds", "plan_gguf", "prune_channels", "prune_kv_groups", "prune_neurons", "rank", "refit",
    "select_attention_layers", "shrink",
)  # fmt: skip


def table():
    """What docs/mixtures.md shows between its markers: a row for each package."""

    def package(name):
        return TRIED[name].__module__.split(".")[1]

    rows = ["| package | works | refuses |", "|---|---|---|"]
    for of, names in groupby(sorted(WORKS + REFUSED, key=lambda name: (package(name), name)), package):
        cells = [[], []]
        for name in names:
            cells[name in REFUSED].append(f"`{name}`")
        rows.append(f"| `{of}` | {' | '.join(', '.join(cell) for cell in cells)} |")
    return "\n".join(rows) + "\n"


def with_table(text):
    """The page with its table written anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def test_the_page_shows_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "python tests/test_mixtures.py writes it anew"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")


def asks_for_a_model(function):
    return any("PreTrainedModel" in str(one.annotation) for one in arguments_of(function))


def test_every_function_that_takes_a_model_stands_in_the_table():
    assert not set(WORKS) & set(REFUSED)
    assert set(WORKS + REFUSED) == {name for name, function in TRIED.items() if asks_for_a_model(function)}


def with_mixtures(made):
    """The same call with a mixture in the place of every model."""

    def exchanged(name, value):
        if isinstance(value, PreTrainedModel):
            return tiny_model("mixtral", seed=int(name == "student"))
        return {key: exchanged(key, one) for key, one in value.items()} if name == "models" else value

    return {name: exchanged(name, value) for name, value in made.items()}


def marked(names):
    """Those that read real documents are marked."""
    return [pytest.param(name, marks=[pytest.mark.embedded] if name in EMBEDDED else []) for name in names]


@pytest.mark.parametrize("name", marked(WORKS))
def test_it_works(name):
    call(name, with_mixtures(arguments(name)))


@pytest.mark.parametrize("name", marked(REFUSED))
def test_it_is_refused_by_name_and_changes_nothing(name):
    made = with_mixtures(arguments(name))
    models = [value for value in made.values() if isinstance(value, PreTrainedModel)]
    with unchanged(*models), pytest.raises(ValueError, match=r"is a mixture of experts|got a 'mixtral' model"):
        call(name, made)


def test_compress_refuses_a_mixture_and_says_what_cuts_it(tmp_path, capsys):
    folder = str(save_pruned(tiny_model("mixtral"), word_tokenizer(), tmp_path / "mine"))
    assert command_line.main(["compress", folder, "--budget", "80%", "--length", "16", "--dry-run"]) != 0
    told = capsys.readouterr().err
    assert "MixtralForCausalLM is a mixture of experts" in told and "pruning.prune_experts" in told
    assert "Traceback" not in told


# --- what works is exact -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in MIXTURES if family != "phimoe"])  # draws while it trains
@torch.no_grad()
def test_a_first_step_of_distillation_by_hand(family):
    teacher, student = tiny_model(family), tiny_model(family)
    prune_experts(student, expert_importance(student, "random"), keep=4)
    batch = tiny_batches(size=6)
    log_p, log_q = (model(batch[0]["input_ids"]).logits[:, :-1].log_softmax(-1) for model in (teacher, student))
    expected = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    with torch.enable_grad():
        history = distill(teacher, student, batch, Recipe(steps=1, lr=1e-3))
    assert history.steps[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    moved = {name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])}
    assert {name for name in before if ".experts." in name} <= moved


@pytest.mark.parametrize("recipe", [{"mlps_only": True}, {"lora_rank": 2}])
def test_what_learns_can_be_no_part_of_a_mixture(recipe):
    teacher, student = tiny_model("mixtral"), tiny_model("mixtral", seed=1)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match="is a mixture of experts"):
        distill(teacher, student, tiny_batches(), Recipe(steps=1, lr=1e-3, **recipe))
    assert student.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
