"""What is saved is what is loaded, bit for bit, here and on a machine without course_utils."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from programs import TESTS, assert_all_equal_elsewhere
from tiny import FAMILIES, tiny_adaptive, tiny_batches, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM

from course_utils.models.architectures import cast_weights
from course_utils.pruning.adaptive import make_adaptive
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


def without_attention(family, remove=True, **settings):
    model = tiny_model(family, **settings)
    bypass_attention(model, [1], remove=remove)
    return model


def adaptive(family):
    model = tiny_model(family)
    return make_adaptive(model, tiny_adaptive(model))


OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}  # its layout: norms behind the sums, a projection
MADE = {
    f"{name}-{family}": partial(make, family)
    for name, make in {
        "uneven": partial(pruned, layers=[0, 2]),
        "removed": without_attention,
        "bypassed": partial(without_attention, remove=False),
        "adaptive": adaptive,
    }.items()
    for family in FAMILIES
} | {
    f"opt_350m-{dtype}-{remove}": partial(without_attention, "opt", remove=remove, dtype=DTYPES[dtype], **OPT_350M)
    for dtype in DTYPES
    for remove in (False, True)
}
ELSEWHERE = """
import sys
sys.modules["course_utils"] = None  # importing it raises ImportError
import torch
from transformers import AutoModelForCausalLM
for name in {names!r}:
    model = AutoModelForCausalLM.from_pretrained(f"{root}/{{name}}", trust_remote_code=True)
    ids, logits, answer = torch.load(f"{root}/{{name}}.pt")
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits), name
        assert torch.equal(model.generate(ids, **{options}), answer), name
print("all equal")
"""


@torch.no_grad()
def test_models_whose_blocks_differ_reload_here_and_without_course_utils(tokenizer, tmp_path):
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    for name, make in MADE.items():
        model = make()
        folder = save_pruned(model, tokenizer, tmp_path / name)
        assert torch.equal(load_pruned(folder)[0](IDS).logits, model(IDS).logits), name
        torch.save((IDS, model(IDS).logits, model.generate(IDS, **options)), tmp_path / f"{name}.pt")
    script = ELSEWHERE.format(names=[*MADE], root=tmp_path.as_posix(), options=options)
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


def test_other_peoples_files_are_not_overwritten(tokenizer, tmp_path):
    precious = tmp_path / "thesis" / "chapter.txt"
    precious.parent.mkdir()
    precious.write_text("precious")
    for target in (precious, precious.parent):
        with pytest.raises(CheckpointError, match="choose a new or empty folder"):
            save_pruned(pruned(), tokenizer, target)
    assert precious.read_text() == "precious"


def test_bad_folders(tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match="holds no config"):
        load_pruned(tmp_path / "nothing")
    folder = save_pruned(pruned(layers=[1]), tokenizer, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for told, message in (
        ({"7": {"intermediate_size": 5}}, r"\[0, 3\)"),
        ({"1": {"intermediate_size": 5}}, r"layers\.1\.mlp\.down_proj"),
        ({"1": {"intermediate_size": 5, "skip": ["attention", "mlp"]}}, r"Block 1: this model can't follow \['mlp'\]"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"per_layer_config": told}))
        with pytest.raises(ValueError, match=message):
            load_pruned(folder)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_pruned(folder)


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
        again, _ = load_pruned(save_pruned(model, word_tokenizer(), f"{root}/again"), dtype=torch.float32)
        assert torch.equal(again(ids).logits, model(ids).logits), family
print("all equal")
"""


@torch.no_grad()
def test_a_removed_attention_is_known_when_plain_transformers_loaded_it(tokenizer, tmp_path):
    for family in FAMILIES:
        model = without_attention(family)
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
    model = tiny_model(family, tie_word_embeddings=True)  # and two are two
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight + 0.1)
    reloaded, _ = load_pruned(save_pruned(model, tokenizer, tmp_path / "model"))
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    model = tiny_model(family, tie_word_embeddings=False)
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    if cut is not None:
        prune_neurons(model, neuron_importance(model, "l1"), ratio=0.3, **cut)
    folder = save_pruned(model, tokenizer, tmp_path / "model")
    reloaded, _ = load_pruned(folder)
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight


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
