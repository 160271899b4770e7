"""The card of a pruned model: what it is, how it was made, what was measured, and what it is bad at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from course_utils import checks
from course_utils.argument_types import check_types
from course_utils.files import write_text

_EMBEDDED = {"SmolLM2-135M-Instruct": "apache-2.0"}  # come without a card

_BODY = """---
{{ card_data }}
---

# {{ name }}

{{ summary }}

## How it was made

{{ recipe }}

## What was measured

{{ measured }}

## What it is bad at

{{ limits }}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

## Sources

{{ sources }}
"""


@check_types
def write_model_card(
    folder: str | os.PathLike[str],
    *,
    name: str,
    base_model: str | None,
    licence: str,
    summary: str,
    recipe: Mapping[str, object],
    measured: pd.DataFrame,
    limits: Sequence[str],
    sources: Sequence[str],
) -> Path:
    """Write ``README.md`` into the folder of a saved model: the card that model hubs show.

    Mitchell et al. 2019, arXiv 1810.03993. The header (base model, licence, tags) is in the form that the Hugging Face
    hub reads.

    Args:
        folder: of ``save_pruned``; it must hold a ``config.json``.
        name: of the model.
        base_model: what it was cut from, by its hub id; None for a model that lies on this machine only.
        licence: of the base model, which a model cut from it inherits; an identifier such as "apache-2.0".
        summary: one or two sentences.
        recipe: what was done, a row each: name -> value.
        measured: a table, its index included, with the whole model beside this one.
        limits: what a user has to know before relying on it, a sentence each.
        sources: papers, data and code, a line each.

    Returns:
        The path of the file.

    Raises:
        ValueError: there is no saved model in ``folder``, an empty text, no measurement or no limit: a card without
            them would be an advertisement.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"There is no saved model in '{folder}': write one with save_pruned first.")
    texts = {"name": name, "licence": licence, "summary": summary}
    if base_model is not None:
        texts["base_model"] = base_model
    for what, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"'{what}' must be a text that says something; got {text!r}.")
    limits, sources = checks.strings("limits", limits), checks.strings("sources", sources)
    for what, given in {"recipe": recipe, "measured": measured}.items():
        if not isinstance(given, Sized) or isinstance(given, str) or not len(given):
            raise ValueError(f"'{what}' must hold at least one entry; got {given!r}.")
    header = ModelCardData(
        base_model=base_model,
        license=licence,
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "distilled"],
    )
    steps = pd.DataFrame({"": list(map(str, recipe.values()))}, index=pd.Index(recipe, name="step"))
    card = ModelCard.from_template(
        header,
        template_str=_BODY,
        name=name,
        summary=summary,
        recipe=_table(steps),
        measured=_table(measured),
        limits="\n".join(f"- {limit}" for limit in limits),
        sources="\n".join(f"- {source}" for source in sources),
    )
    path = folder / "README.md"
    write_text(path, str(card))
    return path


@check_types
def licence_of(model: str | os.PathLike[str]) -> str:
    """The licence of a model as its own card names it, for ``write_model_card``; "unknown" where no card tells.

    Args:
        model: a folder, or a hub id, whose card is fetched; ``model.config.name_or_path`` is either.

    >>> licence_of("SmolLM2-135M-Instruct")
    'apache-2.0'
    """
    if str(model) in _EMBEDDED:
        return _EMBEDDED[str(model)]
    source = Path(model) / "README.md" if Path(model).is_dir() else str(model)
    try:
        return ModelCard.load(source).data.license or "unknown"
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError):  # no card, no such model, no network
        return "unknown"


def _table(frame: pd.DataFrame) -> str:
    """A Markdown table of a frame, its index as the first column."""
    rows = [[frame.index.name or "", *frame.columns], ["---"] * (1 + frame.shape[1])]
    rows += [[name, *values] for name, values in zip(frame.index, frame.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
