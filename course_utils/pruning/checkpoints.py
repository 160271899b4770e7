"""Saving and loading pruned models: what plain transformers can express stays plain.

Equal widths and fewer blocks are ordinary checkpoints. A model whose blocks differ, or whose prompts
decide about attentions, is saved with ``config.per_layer_config`` and a few self-contained Python files,
so that ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works on a machine
without this package; without ``trust_remote_code`` transformers stops at the first number that differs
("… is a per-layer attribute").
"""

from __future__ import annotations

import glob
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from course_utils.models.architectures import Architecture, UnsupportedArchitecture, describe
from course_utils.models.families import FAMILIES
from course_utils.models.modeling import heterogeneous, no_attention, per_prompt
from course_utils.models.refusals import refuse_missing_weights
from course_utils.pruning.adaptive import AdaptiveConfig
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.files import naming, write_json, write_text

MODELING_FILE = "modeling_heterogeneous.py"
ADAPTIVE_FILE = "adaptive_config.json"  # for people: written from config.json's settings, and never read


class CheckpointError(ValueError):
    """The folder isn't a checkpoint that can be read, or may not be overwritten."""


@check_types
def save_pruned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> Path:
    """Save a pruned model and its tokenizer, safetensors only, all or nothing.

    Where all blocks are alike, plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads the checkpoint. Where they
    differ (uneven widths, attentions left out, an adaptive model), the folder holds the code that builds the model, and
    transformers runs it only with ``trust_remote_code=True``; without that it stops with "… is a per-layer attribute".
    ``load_pruned`` loads both.

    The checkpoint is written beside ``folder`` and moved into place when complete; an older one
    there is replaced. Round trip: identical logits, bit for bit, in the same dtype. A model whose dtype was changed by
    ``model.to(dtype)`` or ``.half()`` is the exception: they round the rotary frequencies as well, which are in no file
    and come back in float32; ``models.cast_weights`` leaves them alone. Another is a mixture's experts, read
    straight from the file: they can lie at an odd address there, so that a float32 product differs in its last bit,
    though no weight does. A bypassed attention is saved as ``skip``, without its weights: only the model in memory can
    restore it. A head that is the embedding's matrix is saved as such, whatever ``config.tie_word_embeddings`` said.

    An adaptive model follows ``adaptive_attention`` in config.json, here and elsewhere. adaptive_config.json shows the
    same settings to people and to ``AdaptiveConfig.load``; no model reads it. To change settings, use ``make_adaptive``
    and save again.

    Args:
        model: any causal language model that ``describe`` knows.
        tokenizer: the model's.
        folder: where to; a new one, an empty one, or a checkpoint, which is replaced. It is returned.

    Raises:
        CheckpointError: ``folder`` holds something else than a checkpoint.
        ValueError: some of its weights are on the meta device (offloaded, or never loaded).
    """
    architecture = describe(model)
    refuse_missing_weights(architecture, "save this model")
    with replacing_checkpoint(folder) as fresh:
        architecture.sync_config()
        # Transformers renames some families' weights in files (GPT-NeoX's head) and undoes it for its
        # own classes only; a checkpoint with its own modelling file keeps the names of the modules.
        model.save_pretrained(
            fresh,
            state_dict=live_weights(architecture),
            save_original_format=not model.config.is_heterogeneous,
        )
        tokenizer.save_pretrained(fresh)
        _write_modeling(model, fresh)
        if architecture.adaptive:
            AdaptiveConfig.from_dict(model.config.adaptive_attention).save(fresh / ADAPTIVE_FILE)
    return Path(folder)


@contextmanager
def replacing_checkpoint(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Hand out an empty folder beside ``folder``; where the block ends well, that one takes its place at once.

    What a killed process left beside ``folder`` is cleared away; the old checkpoint comes back if it was just moved.

    Raises:
        CheckpointError: ``folder`` is neither new nor empty nor a checkpoint.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").exists())):
        raise CheckpointError(f"'{folder}' exists and is not a model checkpoint; choose a new or empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = f".{folder.name}."
    for left in folder.parent.glob(f"{glob.escape(beside)}*-*"):
        number = left.name.removeprefix(beside).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            if (left / "old").exists() and not folder.exists():
                os.replace(left / "old", folder)
            shutil.rmtree(left, ignore_errors=True)
    with naming(folder, instead_of=folder.parent / beside):
        # mkdtemp beside the target: os.replace then never crosses file systems.
        work = Path(tempfile.mkdtemp(prefix=f"{beside}{os.getpid()}-", dir=folder.parent))
        try:
            (work / "new").mkdir()
            yield work / "new"
            if folder.exists():
                os.replace(folder, work / "old")
            os.replace(work / "new", folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@check_types
def load_pruned(
    folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint of ``save_pruned`` (or any plain one of a known family), in eval mode.

    No code from the folder is ever run: uneven models are built by this package's own class.

    Args:
        folder: what ``save_pruned`` or transformers' ``save_pretrained`` wrote.
        dtype: convert the weights; by default they keep the saved dtype. Rotary frequencies stay in float32, which
            ``model.to(dtype)`` and ``.half()`` would round as well: then other logits come out.
        device: where to put the model; by default the CPU.

    Raises:
        CheckpointError: no such folder, no readable configuration, broken adaptive settings, or weights that
            don't fit the configuration.
        UnsupportedArchitecture: the configuration's family is unknown.
        ValueError: this machine lacks the device.
    """
    folder, device = Path(folder), checks.device(device or "cpu")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"'{folder}' holds no config.json. Give the folder that save_pruned wrote.")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, TypeError) as error:
        raise CheckpointError(f"The configuration in '{folder}' can't be read: {error}") from error
    if getattr(config, "adaptive_attention", None) is not None:
        try:
            AdaptiveConfig.from_dict(config.adaptive_attention)
        except ValueError as error:
            raise CheckpointError(f"The adaptive settings in '{folder}' can't be used: {error}") from error
    loader: Any = AutoModelForCausalLM
    if config.is_heterogeneous:
        if config.model_type not in FAMILIES:
            raise UnsupportedArchitecture(
                f"'{folder}' is a {config.model_type!r} model whose blocks differ; known families that can: "
                f"{', '.join(FAMILIES)}."
            )
        base: Any = AutoModelForCausalLM._model_mapping[type(config)]
        classes = heterogeneous.HeterogeneousMixin, base
        loader = type(f"Heterogeneous{base.__name__}", classes, _class_attributes(config))
    # Mismatches are let through here only to be named below, with the missing and the surplus weights.
    model, info = loader.from_pretrained(
        folder,
        config=config,
        dtype=dtype or "auto",
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    problems = [key for kind in ("missing_keys", "mismatched_keys", "unexpected_keys") for key in info[kind]]
    if problems:
        raise CheckpointError(f"The weights in '{folder}' don't fit its configuration: {sorted(map(str, problems))}.")
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def _class_attributes(config: PreTrainedConfig) -> dict:
    family = FAMILIES[config.model_type]
    return {
        "blocks_path": family.blocks,
        "attention": family.attention,
        "attention_norms": family.norms_of_attention(config),
        "mlp_inputs": family.mlp_inputs,
        "mlp_output": family.mlp_output,
        "fused": family.fused,
        "width_field": family.width_field,
    }


def live_weights(architecture: Architecture) -> dict[str, torch.Tensor]:
    """The model's weights without those of bypassed attentions, which the checkpoint doesn't have."""
    names = {module: name for name, module in architecture.model.named_modules()}
    skipped = [] if architecture.is_mixture else [a for a in architecture.attentions if a.skipped]
    dead = [f"{names[module]}." for a in skipped for module in (a.module, *a.norms)]
    return {k: v for k, v in architecture.model.state_dict().items() if not k.startswith(tuple(dead))}


def _write_modeling(model: PreTrainedModel, folder: Path) -> None:
    """Name the stock class in config.json, or write the modelling file where blocks differ."""
    base = next(c for c in type(model).__mro__ if c.__module__.startswith("transformers."))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [base.__name__]
    config.pop("auto_map", None)
    if model.config.is_heterogeneous:
        name = f"Heterogeneous{base.__name__}"
        attributes = "\n".join(f"    {key} = {value!r}" for key, value in _class_attributes(model.config).items())
        for module in (heterogeneous, no_attention, per_prompt):
            shutil.copy(inspect.getfile(module), folder)
        write_text(
            folder / MODELING_FILE,
            f"from transformers import {base.__name__}\n\n"
            "from .heterogeneous import HeterogeneousMixin\n\n\n"
            f"class {name}(HeterogeneousMixin, {base.__name__}):\n{attributes}\n",
        )
        config["architectures"] = [name]
        config["auto_map"] = {"AutoModelForCausalLM": f"{MODELING_FILE.removesuffix('.py')}.{name}"}
    write_json(path, dict(sorted(config.items())))
