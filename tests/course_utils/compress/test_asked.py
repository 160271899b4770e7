"""What can't be done is refused by name, before a weight is read and before anything is written."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from own_command import SMALL

from course_utils.compress import command_line, run
from course_utils.models import loading as models
from course_utils.models.loading import load_model
from course_utils.pruning.checkpoints import save_pruned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1%"], "No version costs"),
        (["--budget", "150%"], "No version costs"),
        (["--domain", "foo"], "'--domain' must be one of speeches, wiki, stories, passages, scenes; got 'foo'"),
        (["--length", "9999"], "'--length' must be a whole number from 2 to 4096, the model's longest row; got 9999"),
        (
            ["--tensor-parallel", "9"],
            "'--tensor-parallel' must be a whole number from 1 to 2, the model's KV groups; got 9",
        ),
        (["--multiple-of", "999"], "'--multiple-of' must be a whole number from 1 to 512, the MLPs' width; got 999"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_what_is_wrong_is_told_before_a_weight_is_read(dry, options, message, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_model", None)
    assert command("--budget", "95%", *options, *dry) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and "tolerance" not in error and "e+" not in error
    assert not (tmp_path / "out").exists()


def test_no_weights_of_a_hub_model_are_fetched_for_a_budget_out_of_reach(command, tmp_path, monkeypatch):
    folder, asked = save_pruned(*load_model("llama"), tmp_path / "hub"), []

    def snapshot(name, *, weights=True):
        asked.append((name, weights))
        return folder

    monkeypatch.setattr(models.hub, "snapshot", snapshot)
    assert command_line.main(["compress", "someone/large", *SMALL, "--budget", "1%", "--dry-run"]) == 1
    assert asked == [("someone/large", False)]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_what_cannot_learn_so_is_told_before_a_weight_is_read(dry, command, tmp_path, capsys, monkeypatch):
    folder = save_pruned(*load_model("llama"), tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    monkeypatch.setattr(run, "load_model", None)

    def refused(*options, message):
        assert command(*options, "--budget", "95%", *dry) == 1
        assert message in capsys.readouterr().err

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        refused("--recover", "lora", message="This needs peft: pip install 'pruning-llms[lora]'")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", ModuleType("peft"))
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        refused("--recover", "lora", message="'--recover lora' is for launches without --use_fsdp")
    arguments = ["compress", str(folder), *SMALL, "--budget", "95%", "--out", str(tmp_path / "out"), *dry]
    assert command_line.main(arguments) == 1
    assert "is quantized, and packed weights can't be scored or cut" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_what_cannot_be_exported_is_told_before_a_weight_is_read(dry, command, tmp_path, capsys, monkeypatch):
    """What llama.cpp doesn't know, and what isn't installed."""
    folder = save_pruned(*load_model("gpt2"), tmp_path / "gpt2")
    monkeypatch.setattr(run, "load_model", None)
    arguments = ["compress", str(folder), *SMALL, "--budget", "95%", "--out", str(tmp_path / "out"), *dry]
    assert command_line.main([*arguments, "--export", "gguf"]) == 1
    refusal = "'--export gguf' can't be done; without it this runs. GGUF export knows llama, mistral, qwen2, qwen3; got"
    assert refusal in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "course_utils.release.export", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert command("--budget", "95%", "--export", "gguf", *dry) == 1
    assert "This needs gguf: pip install 'pruning-llms[gguf]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
