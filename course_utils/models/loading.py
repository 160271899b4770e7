"""Models by role, folder or hub id, ready to compare: eval mode, a padding token, safetensors only.

The roles "gpt2" and "llama" stand for a different model in each profile; ``support.session`` names them, and
``COURSE_GPT2`` and ``COURSE_LLAMA`` put any folder or hub id in a role. In the profile "smoke" all are small and
random. "moe" is the course's own small mixture of experts in every other profile.

Every tokenizer pads with its end token unless it has a padding token, on the right; for ``generate`` with several
prompts ask for left padding (``padded_batches(..., padding_side="left")``). No token is put before a text.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3MoeConfig,
)

from course_utils.models import hub
from course_utils.models.embedded_llama import embedded_llama, no_loading_bar
from course_utils.models.hub import HubUnreachable, ModelNotAvailable
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.session import (
    EMBEDDED_MODELS,
    HUB_MODELS,
    MIXTURE,
    MIXTURE_NAME,
    ROLES,
    SEED,
    chosen_model,
    current_profile,
    default_device,
)

# Lessons name the parts of a block as these families do.
_FITS = {"gpt2": ("gpt2",), "llama": ("llama", "mistral", "qwen2", "qwen3", "smollm3")}
_DATA = Path(__file__).parents[1] / "data"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Fields of a configuration that change nothing that the model computes.
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "use_cache", "architectures", "auto_map")
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@check_types
def load_model(
    name: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        name: a role ("gpt2", "llama"), "moe", a folder, or a hub id such as "Qwen/Qwen3-0.6B". A role wins over a
            folder of the same name; write "./gpt2" for that.
        dtype: of the weights.
        device: where to put the model; default: CUDA if there is one, otherwise the CPU.

    Returns:
        The model in eval mode (``requires_grad`` and ``use_cache`` as transformers sets them) and a tokenizer with a
        padding token, padding on the right.

    Raises:
        ModelNotAvailable: a ValueError; no such folder or id, no access, no network, no safetensors; or the package's
            own model is missing or damaged.
        AssetError: the embedded Llama is not in the cache and can't be fetched.
    """
    name = os.fspath(name)
    device = checks.device(device) if device is not None else default_device()
    if _is_random(name):
        config, tokenizer = _random_configuration(name)
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        folder, shown = _folder_of(name, weights=True)
        with no_loading_bar():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **_LOCAL)
            tokenizer = _tokenizer_of(folder)
        if shown:  # in place of the path, which would name the reader's home
            model.config._name_or_path = model.name_or_path = tokenizer.name_or_path = shown
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(device)
    return model.eval(), tokenizer


@check_types
def load_without_weights(name: str | os.PathLike[str]) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """A model's configuration and tokenizer: what can be planned and refused before gigabytes are fetched and read.

    Names and refusals are those of ``load_model``.
    """
    name = os.fspath(name)
    if _is_random(name):
        return _random_configuration(name)
    folder, _ = _folder_of(name, weights=False)
    return AutoConfig.from_pretrained(folder, **_LOCAL), _tokenizer_of(folder)


@check_types
def variant(model: PreTrainedModel) -> PreTrainedModel:
    """A second model that shares every weight with the first: to cut, while the first stays as it is.

    It costs milliseconds and almost no memory. Surgery (``prune_neurons``, ``remove_blocks``, ``bypass_attention``,
    ``make_adaptive``), another device or another dtype give the one model new parts and never write into a weight, so
    the other one doesn't notice. Hooks come along, as with ``copy.deepcopy`` (transformers reads hidden states through
    hooks), so add your own afterwards. *Training* writes into weights: to train a model, take ``copy.deepcopy``.

    >>> first = tiny_llama(blocks=2)
    >>> second = variant(first)
    >>> del second.model.layers[1]
    >>> len(first.model.layers), first.lm_head.weight.data_ptr() == second.lm_head.weight.data_ptr()
    (2, True)
    """
    memo: dict[int, object] = {}
    for weight in model.parameters():  # a parameter of its own, on the same storage: `.to()` exchanges what it holds
        memo[id(weight)] = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, memo)


@check_types
def identity(model: PreTrainedModel) -> str:
    """A digest of a model's configuration and of all that its file holds, bit for bit: 16 hexadecimal digits.

    The same weights in another dtype are another model. A buffer counts where it is saved with the weights, such as
    the correction of a router's scores in DeepSeek-V3. Other buffers (rotary frequencies, Gemma's scale of the
    embedding) don't, because they are made anew when a model is loaded. So a checkpoint of ``model.to(torch.bfloat16)``
    keeps the model's identity, although that call rounds the frequencies and loading doesn't. (The exception are
    families that transformers always loads partly in float32, as DeepSeek's routers.)

    It reads all weights, a second or two for a gigabyte.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    saved = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    for name, weight in (*model.named_parameters(), *buffers):
        digest.update(f"|{name} {weight.dtype} {list(weight.shape)}|".encode())
        digest.update(weight.detach().flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:16]


def tiny_llama(*, blocks: int = 5, width: int = 64, vocab_size: int = 97) -> LlamaForCausalLM:
    """A random Llama with hidden size 32 on the CPU, the same every time: to test surgery on, in milliseconds.

    It is in eval mode, and has no end token, so that it always generates the number of tokens asked for.
    """
    for name, number in {"blocks": blocks, "width": width, "vocab_size": vocab_size}.items():
        checks.whole_number(name, number, least=1)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))  # fresh ones are so small that no test would notice much
    return model.eval()


def _is_random(name: str) -> bool:
    """Whether it is a role in which a random model stands."""
    ours = name == MIXTURE or (name in ROLES and chosen_model(name) is None)
    return ours and current_profile() == "smoke"


def _folder_of(name: str, *, weights: bool) -> tuple[Path, str | None]:
    """The folder of the model that a name or a role stands for, once all is there; and what is shown in its place.

    Of a model on the hub, the weights are fetched, or stay there.
    """
    chosen = chosen_model(name) if name in ROLES else name
    shown: str | None
    if name == MIXTURE:
        folder, shown = _shipped("moe", MIXTURE_NAME), MIXTURE_NAME
    elif chosen is None:
        folder, shown = _folder_of_role(name, weights)
    elif os.path.isdir(chosen):
        folder, shown = Path(chosen), None
    else:
        folder, shown = hub.snapshot(chosen, weights=weights), chosen
    _check_folder(folder, shown or str(folder), weights)
    if name in ROLES and chosen is not None:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if family not in _FITS[name]:
            raise ModelNotAvailable(
                f"{ROLES[name]} is {chosen!r}, a model of the family {family!r}. Lessons about {name!r} run on "
                f"{', '.join(_FITS[name])}; choose one of these, or leave it unset."
            )
    return folder, shown


def _folder_of_role(role: str, weights: bool) -> tuple[Path, str]:
    """The hub's model in the hub profile, as far as it can be had, else the embedded one."""
    candidates = HUB_MODELS[role] if current_profile() == "hub" else ()
    for candidate, following in zip(candidates, [*candidates[1:], "the embedded model"], strict=False):
        try:
            folder = hub.snapshot(candidate, weights=weights)
            _check_folder(folder, candidate, weights)
            return folder, candidate
        except HubUnreachable as error:
            print(f"{error} Going on with the embedded model.")
            break
        except ModelNotAvailable as error:
            print(f"{error} Going on with {following}.")
    shown = EMBEDDED_MODELS[role]
    return _shipped("gpt2", shown) if role == "gpt2" else embedded_llama(), shown


def _shipped(name: str, shown: str) -> Path:
    """The folder of a model that the package brings, once its weights are those that its ``training.json`` tells."""
    folder = _DATA / name
    weights, card = folder / "model.safetensors", folder / "training.json"
    again = "Install the package again, or fetch the clone again with all its files."
    if not weights.is_file() or not card.is_file():
        raise ModelNotAvailable(f"{shown} is missing from the package: course_utils/data/{name} isn't whole. {again}")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    told = json.loads(card.read_text(encoding="utf-8")).get("sha256")
    if found != told:
        raise ModelNotAvailable(
            f"{shown} is damaged: the sha256 of course_utils/data/{name}/model.safetensors is {found}, and "
            f"training.json tells {told}. {again}"
        )
    return folder


def _tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """With a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_folder(folder: Path, shown: str, weights: bool) -> None:
    config_file = folder / "config.json"
    if not config_file.is_file() and (folder / "adapter_config.json").is_file():
        raise ModelNotAvailable(
            f"{shown} is an adapter of peft (LoRA) and no model. Merge it into its model first (merge_and_unload), and "
            "save that."
        )
    if not config_file.is_file():
        raise ModelNotAvailable(f"{shown} has no config.json; give a folder that `save_pretrained` wrote.")
    if "per_layer_config" in json.loads(config_file.read_text(encoding="utf-8")):
        raise ModelNotAvailable(
            f"{shown} is a pruned checkpoint whose layers differ, with its own modelling code; load it with "
            "course_utils.pruning.load_pruned."
        )
    if weights and not any(folder.glob("model*.safetensors")):
        raise ModelNotAvailable(
            f"{shown} has no safetensors weights, and the course loads nothing else (pickles can run code); save it "
            "again with a current transformers."
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelNotAvailable(f"{shown} has no tokenizer; save it there too, with tokenizer.save_pretrained(folder).")


def _random_configuration(role: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """A few small blocks, enough to take some out, with the embedded GPT-2's tokenizer."""
    tokenizer = _tokenizer_of(_DATA / "gpt2")
    end = tokenizer.eos_token_id
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer)}
    sizes |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    if role == "gpt2":
        return GPT2Config(n_layer=8, n_embd=64, n_head=4, n_positions=512, **sizes), tokenizer
    sizes |= {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    if role == "llama":
        sizes |= {"num_hidden_layers": 8, "intermediate_size": 512, "max_position_embeddings": 4096}
        return LlamaConfig(**sizes), tokenizer
    sizes |= {"num_hidden_layers": 4, "moe_intermediate_size": 32, "max_position_embeddings": 512}
    return Qwen3MoeConfig(num_experts=16, num_experts_per_tok=2, norm_topk_prob=True, **sizes), tokenizer
