"""The card of a pruned model: what it is, how it was made, what was measured, and what it is bad at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from course_utils.models.reports import shown, with_interval
from course_utils.support import checks
from course_utils.support.checks import check_types
from course_utils.support.files import write_text

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
{% for sentence, table in tables %}
{{ sentence }}

{{ table }}
{% endfor %}{% if lost %}
Nats lost by each predicted token (95 %), beside {{ whole }}; "lost, won": answers that only the whole or only this
model gets right; "floor": what takes no ability.

{{ lost }}
{% endif %}
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
    damage: pd.DataFrame | None = None,
    compared_with: str = "the whole model",
    also_measured: Mapping[str, pd.DataFrame] | None = None,
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
        damage: of ``damage_profile``: a table, and a limit for each ability that lost more than the text, its whole
            interval, or that couldn't be told.
        compared_with: the model that ``damage`` compares this one with, in words.
        also_measured: more tables: the sentence before it -> table.

    Returns:
        The path of the file.

    Raises:
        ValueError: there is no saved model in ``folder``, an empty text, no measurement or no limit: a card without
            them would be an advertisement.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"There is no saved model in '{folder}': write one with save_pruned first.")
    for what, text in {"name": name, "licence": licence, "summary": summary, "base_model": base_model}.items():
        if not (isinstance(text, str) and text.strip()) and (what, text) != ("base_model", None):
            raise ValueError(f"'{what}' must be a text that says something; got {text!r}.")
    limits, sources = checks.strings("limits", limits), checks.strings("sources", sources)
    checks.not_empty("recipe", recipe)
    checks.not_empty("measured", measured)
    if damage is not None:
        if not {"nats_lost", "left_out"} <= {*damage.columns}:
            raise ValueError(f"'damage' must be what damage_profile returns; its columns are {[*damage.columns]}.")
        limits += _lost_limits(damage)
    steps = pd.DataFrame({"": list(map(str, recipe.values()))}, index=pd.Index(recipe, name="step"))
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base_model,
            license=licence,
            language="en",
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=["pruned", "distilled"],
        ),
        template_str=_BODY,
        name=name,
        summary=summary,
        recipe=_table(steps),
        measured=_table(measured),
        tables=[(sentence, _table(table)) for sentence, table in (also_measured or {}).items()],
        whole=compared_with,
        lost=None if damage is None else _table(_lost(damage)),
        limits="\n".join(f"- {limit}" for limit in limits),
        sources="\n".join(f"- {source}" for source in sources),
    )
    write_text(folder / "README.md", str(card))
    return folder / "README.md"


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
    except (OSError, ValueError):  # no card, no such model, no network
        return "unknown"


def _lost(damage: pd.DataFrame) -> pd.DataFrame:
    """A damage profile, written for readers."""
    rows = {}
    for name, of in damage[damage.left_out == ""].iterrows():
        asked = name != "text"
        rows[name] = {
            "nats lost": with_interval(of.nats_lost, of.ci_low, of.ci_high),
            "right, whole → this": f"{of.right_before:.0%} → {of.right_after:.0%}" if asked else "",
            "floor": f"{of.floor:.0%}" if asked else "",
            "lost, won": f"{of.lost:.0f}, {of.won:.0f}" if asked else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("ability")


def _lost_limits(damage: pd.DataFrame) -> list[str]:
    """Which abilities lost more than the text, and what can't be told."""
    text = damage.nats_lost["text"]
    worse = [
        f"It lost more of {name} than of text: {with_interval(of.nats_lost, of.ci_low, of.ci_high)} nats by each "
        f"predicted token, beside {shown(text)}."
        for name, of in damage.iterrows()
        if of.ci_low > text
    ]
    return worse + [f"What it lost of {name} can't be told: {why}." for name, why in damage.left_out.items() if why]


def _table(frame: pd.DataFrame) -> str:
    """A Markdown table of a frame, its index as the first column."""
    rows = [[frame.index.name or "", *frame.columns], ["---"] * (1 + frame.shape[1])]
    rows += [[name, *values] for name, values in zip(frame.index, frame.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
