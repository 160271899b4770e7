"""What is saved is what is loaded, bit for bit, here and on a machine without course_utils."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from programs import TESTS, assert_all_equal_elsewhere
from tiny import FAMILIES, tiny_batches, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM

from course_utils.models.architectures import cast_weights
from course_utils.pruning.attention import bypass_attention
from course_utils.pruning.checkpoints import (
    MODELING_FILE,
    CheckpointError,
    load_pruned,
    replacing_checkpoint,
    save_pruned,
)
from course_utils.pruning.width import neuron_importance, prune_neurons

IDS = tiny_batches()[0]["input_ids"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def tokenizer():
    return word_tokenizer()


def pruned(family="llama", layers=None, **settings):
    model = tiny_model(family, **settings)
    prune_neurons(model, neuron_importance(model, "random"), ratio=0.3, layers=layers)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_uniform_width_reloads_with_plain_transformers(family, dtype, tokenizer, tmp_path):
    model = pruned(family, dtype=DTYPES[dtype])
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    assert not list(folder.glob("*.py"))
    for reloaded in (AutoModelForCausalLM.from_pretrained(folder), load_pruned(folder)[0]):
        assert reloaded.dtype == DTYPES[dtype]
        assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_uneven_width_reloads_here(family, tokenizer, tmp_path):
    model = pruned(family, layers=[0, 2])
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    reloaded, _ = load_pruned(folder)
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    again, _ = load_pruned(save_pruned(reloaded, tokenizer, tmp_path / "again"))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    scores = neuron_importance(again, "l1")
    prune_neurons(again, scores, ratio=0.25)  # and can be pruned further
    further, _ = load_pruned(save_pruned(again, tokenizer, tmp_path / "further"))
    assert torch.equal(further(IDS).logits, again(IDS).logits)


ELSEWHERE = """
import sys
sys.modules["course_utils"] = None  # importing it raises ImportError
import torch
from transformers import AutoModelForCausalLM
for family in {families!r}:
    model = AutoModelForCausalLM.from_pretrained(f"{root}/{{family}}", trust_remote_code=True)
    expected = torch.load(f"{root}/{{family}}.pt")
    with torch.no_grad():
        assert torch.equal(model(torch.tensor({ids})).logits, expected), family
print("all equal")
"""


@torch.no_grad()
def test_uneven_width_reloads_without_course_utils(tokenizer, tmp_path):
    for family in FAMILIES:
        model = pruned(family, layers=[0, 2])
        save_pruned(model, tokenizer, tmp_path / family)
        torch.save(model(IDS).logits, tmp_path / f"{family}.pt")
    script = ELSEWHERE.format(families=FAMILIES, root=tmp_path.as_posix(), ids=IDS.tolist())
    assert_all_equal_elsewhere(script, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_width_fails_loudly_without_its_code(family, tokenizer, tmp_path):
    model = pruned(family, layers=[1])
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    stock = type(tiny_model(family))
    for loader in (AutoModelForCausalLM, stock):
        with pytest.raises(RuntimeError, match="is a per-layer attribute and may vary across layers"):  # as docs say
            loader.from_pretrained(folder)
    (folder / MODELING_FILE).unlink()
    with pytest.raises(OSError, match=MODELING_FILE):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@torch.no_grad()
def test_no_code_from_the_folder_is_run(tokenizer, tmp_path):
    model = pruned(layers=[1])
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    (folder / MODELING_FILE).write_text("raise SystemExit('this code was run')")
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_an_older_checkpoint_is_replaced_whole(tokenizer, tmp_path):
    save_pruned(pruned(layers=[1]), tokenizer, tmp_path / "model")
    model = pruned()
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    assert not (folder / MODELING_FILE).exists()
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing left over


def test_a_failed_save_leaves_the_old_checkpoint(tokenizer, tmp_path, monkeypatch):
    first = pruned()
    folder = save_pruned(first, tokenizer, tmp_path / "model")
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_pruned(tiny_model(seed=1), tokenizer, folder)
    monkeypatch.undo()
    assert torch.equal(load_pruned(folder)[0](IDS).logits, first(IDS).logits)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("content", ["file", "folder"])
def test_other_peoples_files_are_not_overwritten(content, tokenizer, tmp_path):
    target = tmp_path / "thesis"
    if content == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "chapter.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="choose a new or empty folder"):
        save_pruned(pruned(), tokenizer, target)
    assert (target if content == "file" else target / "chapter.txt").read_text() == "precious"


def test_bad_folders(tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match="holds no config"):
        load_pruned(tmp_path / "nothing")
    folder = save_pruned(pruned(layers=[1]), tokenizer, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["per_layer_config"] = {"7": {"intermediate_size": 5}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\[0, 3\)"):
        load_pruned(folder)
    config["per_layer_config"] = {"1": {"intermediate_size": 5}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj"):
        load_pruned(folder)
    for unknown in ({"head_dim": 4}, {"skip": ["attention", "mlp"]}):  # nothing is left out silently
        config["per_layer_config"] = {"1": {"intermediate_size": 5} | unknown}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"Block 1: this model can't follow \['(head_dim|mlp)'\]"):
            load_pruned(folder)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_pruned(folder)


@torch.no_grad()
def test_dtype_on_loading(tokenizer, tmp_path):
    folder = save_pruned(pruned(layers=[1]), tokenizer, tmp_path / "model")
    assert load_pruned(folder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}  # its layout: norms behind the sums, a projection


@torch.no_grad()
def test_a_norm_behind_the_sum_outlives_its_attention(tokenizer, tmp_path):
    names = {f"{dtype}-{remove}": (DTYPES[dtype], remove) for dtype in DTYPES for remove in (False, True)}
    for name, (dtype, remove) in names.items():
        model = tiny_model("opt", dtype=dtype, **OPT_350M)
        bypass_attention(model, [1], remove=remove)
        folder = save_pruned(model, tokenizer, tmp_path / name)
        assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits), name
        torch.save(model(IDS).logits, tmp_path / f"{name}.pt")
    script = ELSEWHERE.format(families=[*names], root=tmp_path.as_posix(), ids=IDS.tolist())
    assert_all_equal_elsewhere(script, tmp_path)


LOADED_BY_PLAIN_TRANSFORMERS = """
import sys
sys.path[:0] = {paths!r}
import torch
from transformers import AutoModelForCausalLM
from tiny import tiny_batches, word_tokenizer
from course_utils.models.architectures import describe
from course_utils.pruning.attention import attention_importance, bypass_attention
from course_utils.pruning.checkpoints import load_pruned, save_pruned
from course_utils.pruning.depth import remove_blocks
from course_utils.pruning.width import neuron_importance, prune_neurons
ids = torch.tensor({ids})
with torch.no_grad():
    for family in {families!r}:
        model = AutoModelForCausalLM.from_pretrained(f"{root}/{{family}}", trust_remote_code=True)
        assert torch.equal(model(ids).logits, torch.load(f"{root}/{{family}}.pt")), family
        assert [attention.removed for attention in describe(model).attentions] == [False, True, False], family
        assert abs(attention_importance(model, tiny_batches())[1]) < 1e-6, family
        prune_neurons(model, neuron_importance(model, "l1"), ratio=0.3, layers=[1])
        bypass_attention(model, [0, 1])
        remove_blocks(model, [2])
        again, _ = load_pruned(save_pruned(model, word_tokenizer(), f"{root}/again"))
        assert torch.equal(again(ids).logits, model(ids).logits), family
print("all equal")
"""


@torch.no_grad()
def test_a_removed_attention_is_known_when_plain_transformers_loaded_it(tokenizer, tmp_path):
    for family in FAMILIES:
        model = tiny_model(family)
        bypass_attention(model, [1], remove=True)
        save_pruned(model, tokenizer, tmp_path / family)
        torch.save(model(IDS).logits, tmp_path / f"{family}.pt")
    settings = {"families": FAMILIES, "root": tmp_path.as_posix(), "ids": IDS.tolist()}
    paths = [str(TESTS), str(TESTS.parent)]  # the tiny models, this clone's package
    assert_all_equal_elsewhere(LOADED_BY_PLAIN_TRANSFORMERS.format(paths=paths, **settings), tmp_path)


@pytest.mark.parametrize("cut", [None, {}, {"layers": [1]}], ids=["whole", "even", "uneven"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_one_matrix_for_head_and_embedding_is_one_when_loaded(family, cut, tokenizer, tmp_path):
    """Whatever the configuration says: transformers would save no head, and make up another."""
    model = tiny_model(family, tie_word_embeddings=False)
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    if cut is not None:
        prune_neurons(model, neuron_importance(model, "l1"), ratio=0.3, **cut)
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    reloaded, _ = load_pruned(folder)
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_two_matrices_for_head_and_embedding_are_two_when_loaded(family, tokenizer, tmp_path):
    model = tiny_model(family, tie_word_embeddings=True)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight + 0.1)
    reloaded, _ = load_pruned(save_pruned(model, tokenizer, tmp_path / "model"))
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


def test_a_model_without_content_is_not_saved(tokenizer, tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model().config)
    with pytest.raises(ValueError, match="Can't save this model: .* 'meta' device"):
        save_pruned(model, tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cast", ["to", "half", "cast_weights"])
@torch.no_grad()
def test_only_cast_weights_keeps_the_round_trip_exact(cast, tokenizer, tmp_path):
    """What the docstrings of ``save_pruned`` and ``load_pruned`` say of rotary frequencies."""
    model = tiny_model(
        "llama", rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, max_position_embeddings=4096
    )
    dtype = torch.float16 if cast == "half" else torch.bfloat16
    {"to": lambda: model.to(dtype), "half": model.half, "cast_weights": lambda: cast_weights(model, dtype)}[cast]()
    ids = torch.randint(3, 97, (1, 600), generator=torch.Generator().manual_seed(0))
    reloaded, _ = load_pruned(save_pruned(model, tokenizer, tmp_path / "model"))
    assert reloaded.dtype is dtype
    assert torch.equal(reloaded(ids).logits, model(ids).logits) is (cast == "cast_weights")


@pytest.mark.parametrize("moved", [False, True], ids=["while writing", "while moving"])
def test_what_a_killed_process_left_is_cleared_away_and_the_old_one_comes_back(moved, tmp_path):
    model, tokenizer = tiny_model(), word_tokenizer()
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".model.{gone.pid}-abc"
    (left / "new").mkdir(parents=True)
    living = tmp_path / f".model.{os.getpid()}-abc"
    living.mkdir()
    if moved:
        folder.rename(left / "old")
    with pytest.raises(ZeroDivisionError), replacing_checkpoint(folder):
        1 / 0  # noqa: B018
    assert not left.exists() and living.exists() and (folder / "config.json").exists()
