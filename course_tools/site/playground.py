"""The page "Prune it in your browser": lesson 01's model, rows and criteria, in one file that needs nothing else.

Its sources are in docs/play. The page's own code goes into it as it is, under a policy that lets nothing else run and
nothing leave. The model goes into it as its file is, in base64; what lesson 01 found out stands beside it likewise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_tools.lessons.notebooks import Course
from course_utils.models.loading import load_model
from course_utils.pruning.width import neuron_importance, neuron_means
from course_utils.support.files import write_text
from course_utils.text.rows import judging_rows, token_blocks

NAME = "prune.html"
ASSETS = ("speeches", "texts")  # what lesson 01's rows are cut from
SEEDS = range(19)
_MODEL = "course_utils/data/gpt2"
_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_SCRIPT = re.compile(r'<script src="([\w.]+)"></script>')
_DATA = re.compile(r'<script type="(?P<type>text/plain|application/json)" id="(?P<name>\w+)"></script>')
_POLICY = '<meta http-equiv="Content-Security-Policy" content="">'


def build(root: Path, path: Path) -> None:
    """Write the page of the clone at `root` to `path`.

    Raises:
        AssetError: the texts aren't in the cache and can't be fetched.
    """
    model, tokenizer = load_model(root / _MODEL, device="cpu")
    files = root / "docs" / "play"
    data = {
        "worker": "\n".join(_read(files / f"{name}.js") for name in ("safetensors", "kernel", "engine", "worker")),
        "config": json.dumps(json.loads(_read(root / _MODEL / "config.json"))),
        "tokenizer": json.dumps(_vocabulary(root / _MODEL / "tokenizer.json")),
        "measured": _base64(save(_measured(model, tokenizer))),
        "model": _base64((root / _MODEL / "model.safetensors").read_bytes()),
    }
    write_text(path, page(files, data).replace("@site@", Course.read(root).site))


def _measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """What the page measures with, by name.

    ``rows.speeches`` and ``rows.wiki``, token ids [rows, length]; ``order.l1``, ``order.activation`` [blocks, width]
    and ``order.random`` [seeds, blocks, width], each block's neurons from the first to go to the last; ``means``, what
    each neuron gives on average, float32 [blocks, width].
    """
    pool = token_blocks(tokenizer, "calibration", tokens=32_768, length=64)
    batches = pool.sample(128, seed=0).batches(16)  # lesson 01's, too
    scores = {
        "l1": neuron_importance(model, "l1"),
        "activation": neuron_importance(model, "activation", batches=batches),
    }
    drawn = [_order(neuron_importance(model, "random", seed=seed)) for seed in SEEDS]
    return {
        **{f"rows.{domain}": rows.input_ids.short() for domain, rows in judging_rows(tokenizer).items()},
        **{f"order.{criterion}": _order(of_blocks) for criterion, of_blocks in scores.items()},
        "order.random": torch.stack(drawn),
        "means": torch.stack(neuron_means(model, batches)),
    }


def _order(scores: list[Tensor]) -> Tensor:
    """Each block's neurons from the first to go to the last, int16; of equal scores the lower number stays."""
    return torch.stack([some.sort(descending=True, stable=True).indices.flip(0) for some in scores]).short()


def _vocabulary(file: Path) -> dict[str, list]:
    """What the page's tokenizer knows: names by number, and merges."""
    tokenizer = json.loads(_read(file))["model"]
    return {"vocabulary": sorted(tokenizer["vocab"], key=tokenizer["vocab"].get), "merges": tokenizer["merges"]}


def page(files: Path, data: dict[str, str]) -> str:
    """The page in the folder `files`, its style, scripts and data inside, under a policy that allows just these.

    Args:
        files: `page.html` and what it names.
        data: the content of each element that holds data, by its id.
    """
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def code(kind: str, name: str) -> str:
        text = f"\n{_read(files / name)}"
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
        return f"<{kind}>{text}</{kind}>"

    def content(place: re.Match) -> str:
        text = data[place["name"]]
        if place["type"] == "application/json":
            text = text.replace("<", "\\u003c")  # so that no string can end the element
        return place[0].replace("></", f">{text}</")

    html = _STYLE.sub(lambda link: code("style", link[1]), _read(files / "page.html"))
    html = _SCRIPT.sub(lambda link: code("script", link[1]), html)
    policy = (
        f"default-src 'none'; script-src 'wasm-unsafe-eval' {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; worker-src blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _DATA.sub(content, html.replace(_POLICY, _POLICY.replace('""', f'"{policy}"')))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
