"""What could be shipped instead of a smaller model, on the same text: size, loss, and tokens a second.

The whole model in 8 or 4 bits is often the better buy, and a random cut of the same sizes says what the choice of
weights was worth.

    folder = "rivals"    # keeps what is measured: it isn't measured again
    small = Version.of(cut, held_out, folder=folder)
    versions = {"whole": Version.of(model, held_out, folder=folder), "cut": small}
    in_bits, why_not = in_fewer_bits(model, tokenizer, held_out, folder=folder)
    print(table(versions | in_bits, judged_by="held-out text"))
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.measuring.benchmarking import MIN_ROUNDS, measure_speed
from course_utils.measuring.evaluation import Perplexity, bits_ratio, perplexity
from course_utils.measuring.language_modelling import bytes_of, summary
from course_utils.models.architectures import describe
from course_utils.models.loading import identity
from course_utils.models.reports import model_size, shown, with_interval
from course_utils.support.extras import ExtraMissing
from course_utils.support.files import measured_once
from course_utils.support.session import machine
from course_utils.text.batches import read_batches, text_of
from course_utils.text.rows import TokenBlocks

_FORMATS = {f"whole, {kind}": kind for kind in ("Q8_0", "Q4_0")}
_SCORE = ("perplexity", "ci_low", "ci_high")
_PROMPT, _NEW = 128, 32  # tokens, or half of what there is room for
_HeldOut = TokenBlocks | Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Version:
    """One thing that could be shipped.

    Attributes:
        bytes: of its weights, or of its file.
        score: on the text that judges.
        speeds: name of an engine -> tokens a second that it generates, one text at a time.
    """

    bytes: int
    score: Perplexity
    speeds: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it but the rows' own losses."""
        score = {name: getattr(self.score, name) for name in _SCORE}
        if not math.isnan(self.score.bits_per_byte):
            score |= {"bits_per_byte": self.score.bits_per_byte, "tokens_per_byte": self.tokens_per_byte}
        return score | {"bytes": self.bytes, "tokens_per_second": dict(self.speeds)}

    @property
    def tokens_per_byte(self) -> float:
        """Tokens that its tokenizer makes of a byte of that text; nan where the bytes aren't known."""
        of_rows = self.score.row_bytes
        return math.nan if of_rows is None else float(self.score.tokens / of_rows.sum())

    @classmethod
    def of(cls, model: PreTrainedModel, held_out: _HeldOut, *, folder: str | os.PathLike[str]) -> Version:
        """A model as it is, not timed. ``folder`` keeps the losses: the same weights and text aren't judged again."""
        score = _judged(model, "as it is", held_out, Path(folder), lambda: perplexity(model, held_out))
        return cls(model_size(model).bytes, score)


def in_fewer_bits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: _HeldOut,
    *,
    folder: str | os.PathLike[str],
) -> tuple[dict[str, Version], str]:
    """The whole model in 8 and in 4 bits: the losses of ``export.as_stored``, and the bytes of the files.

    The model isn't changed; one copy at a time is in memory beside it. ``folder`` keeps the losses, as ``Version.of``.

    Returns:
        "whole, Q8_0" and "whole, Q4_0", and ""; or nothing, and why: ``export`` lacks its package or doesn't know
        the model.
    """
    try:
        from course_utils.release import export
    except ExtraMissing as missing:
        return {}, str(missing)
    versions = {}
    for name, kind in _FORMATS.items():

        def judge(kind: str = kind) -> Perplexity:
            return perplexity(export.as_stored(model, tokenizer, quantization=kind), held_out)  # one copy at a time

        try:
            size = export.plan_gguf(model, tokenizer, quantization=kind)["bytes"].sum()
            versions[name] = Version(int(size), _judged(model, kind, held_out, Path(folder), judge))
        except export.CannotExport as refusal:
            return {}, str(refusal)
    return versions, ""


def timed(
    versions: Mapping[str, Version],
    whole: PreTrainedModel,
    cut: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    folder: str | os.PathLike[str],
    of_cut: PreTrainedTokenizerBase | None = None,
) -> tuple[dict[str, Version], str]:
    """The versions with their speeds, measured in turns: in PyTorch, and in llama.cpp where it is installed.

    llama.cpp runs on the processor, with weights in F16 where they aren't in 8 or 4 bits. Of the versions that aren't
    named "whole" and aren't of ``in_fewer_bits``, those with as many bytes as "cut" have its sizes, so they are as
    fast; others aren't timed. ``length`` is a number of tokens, at least 2, that both models have positions for.
    ``folder`` keeps the speeds: the same models aren't timed again on this machine. ``of_cut`` is the cut model's
    tokenizer, where it isn't the whole one's.

    Returns:
        The versions, and ""; or without llama.cpp's speeds, and why.
    """
    sizes = {"prompt_tokens": min(_PROMPT, length // 2), "new_tokens": min(_NEW, length // 2), "rounds": MIN_ROUNDS}
    folder, models = Path(folder), {"whole": whole, "cut": cut}
    circumstances = {name: identity(model) for name, model in models.items()} | sizes | machine(whole.device)

    def once(how: str, measure: Callable[[], pd.DataFrame]) -> dict[str, float]:
        """Tokens that each model generates per second."""

        def decoding() -> dict[str, Any]:
            measured = measure()
            return {"speeds": measured[measured.phase == "decode"].set_index("model")["tokens_per_second"].to_dict()}

        way = {"engine": how, "threads": torch.get_num_threads()}
        return measured_once(folder, "speeds", circumstances | way, decoding)[0]["speeds"]

    speeds = {"PyTorch": once("PyTorch", lambda: measure_speed(models, phases=["decode"], **sizes))}
    reason = ""
    if versions.keys() >= _FORMATS.keys():  # or GGUF's package isn't there, or doesn't know the model
        from course_utils.release import engine, export

        if not (reason := engine.problem()):
            try:
                how = f"llama.cpp {engine.VERSION}"
                both = {"whole": (whole, tokenizer), "cut": (cut, of_cut or tokenizer)}
                speeds["llama.cpp"] = once(how, lambda: _in_llama_cpp(both, folder, sizes))
            except (export.CannotExport, engine.EngineError) as refusal:
                reason = str(refusal)

    def of(name: str, version: Version) -> dict[str, float]:
        alike = name if name in ("whole", *_FORMATS) else "cut" if version.bytes == versions["cut"].bytes else ""
        return {engine: of_models[alike] for engine, of_models in speeds.items() if alike in of_models}

    return {name: replace(version, speeds=of(name, version)) for name, version in versions.items()}, reason


def _in_llama_cpp(
    both: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]], folder: Path, sizes: Mapping[str, int]
) -> pd.DataFrame:
    """What ``engine.measure_speed`` returns for the files of "whole" and "cut", which are gone afterwards."""
    from course_utils.release import engine, export

    wanted = {name: (*both[name], "F16") for name in ("whole", "cut")}
    wanted |= {name: (*both["whole"], kind) for name, kind in _FORMATS.items()}
    plans = [export.plan_gguf(model, tokenizer, quantization=kind) for model, tokenizer, kind in wanted.values()]
    needed, free = sum(int(plan["bytes"].sum()) for plan in plans), shutil.disk_usage(folder).free
    if needed > free:
        raise engine.EngineError(
            f"llama.cpp's files take {needed / 1e9:.1f} GB, and in {folder} {free / 1e9:.1f} are free."
        )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        files = {
            name: export.export_gguf(model, tokenizer, Path(place) / f"{name}.gguf", quantization=kind)
            for name, (model, tokenizer, kind) in wanted.items()
        }
        return engine.measure_speed(files, **sizes)


def _judged(
    model: PreTrainedModel, weights: str, held_out: _HeldOut, folder: Path, judge: Callable[[], Perplexity]
) -> Perplexity:
    """The losses of a model's weights in some form, measured once for a text.

    Where batches say which document a row is from (``own_text``), the interval takes documents as its units.
    """
    batches = held_out.batches() if isinstance(held_out, TokenBlocks) else held_out
    text = text_of([*read_batches(batches, vocab_size=describe(model).vocab_size, device="cpu")])
    circumstances = {"model": identity(model), "weights": weights, "text": text}

    def measure() -> dict[str, Any]:
        score = judge()
        rows = {"row_nats": [*map(str, score.row_nll)], "row_tokens": score.row_tokens.tolist()}  # text: may be inf
        return rows | {"dtype": score.dtype, "fingerprint": score.fingerprint}

    record, _ = measured_once(folder, "losses", circumstances, measure)
    nats, tokens = np.array(record["row_nats"], dtype=np.float64), np.array(record["row_tokens"])
    in_bytes = bytes_of(held_out)
    if not isinstance(held_out, TokenBlocks) and all("document" in batch for batch in held_out):
        of = torch.cat([batch["document"] for batch in held_out]).numpy()
        nats, tokens = (np.bincount(of, each)[np.unique(of)] for each in (nats, tokens))
        in_bytes = None if in_bytes is None else np.bincount(of, in_bytes)[np.unique(of)]
    return summary(nats, tokens, in_bytes, record["dtype"], record["fingerprint"])


def table(versions: Mapping[str, Version], *, judged_by: str) -> pd.DataFrame:
    """Versions for a reader, a row each: MB, perplexity on a text (in words), tokens per second in each engine.

    Where they cut the text into different tokens, all of that is told per byte, because a token of one isn't a token of
    another. Then the text has to be of ``passages.batches_of``, and one version "whole", which bits are compared with.
    """
    if len({version.score.fingerprint for version in versions.values()}) > 1:
        return _table_per_byte(versions, judged_by)
    rows = [
        {
            "MB": f"{version.bytes / 1e6:,.1f}",
            f"perplexity on {judged_by} (95 %)": with_interval(*(getattr(version.score, end) for end in _SCORE)),
            **{f"tokens a second, {engine}": shown(speed) for engine, speed in version.speeds.items()},
        }
        for version in versions.values()
    ]
    return pd.DataFrame(rows, index=list(versions)).fillna("–")


def _table_per_byte(versions: Mapping[str, Version], judged_by: str) -> pd.DataFrame:
    whole = versions["whole"].score
    rows = [
        {
            "MB": f"{version.bytes / 1e6:,.1f}",
            f"bits per byte on {judged_by}": f"{version.score.bits_per_byte:.3f}",
            "times the whole model's (95 %)": with_interval(*bits_ratio(version.score, whole)),
            "tokens per byte": f"{version.tokens_per_byte:.3f}",
            **{
                f"bytes a second, {engine}": shown(speed / version.tokens_per_byte)
                for engine, speed in version.speeds.items()
            },
        }
        for version in versions.values()
    ]
    return pd.DataFrame(rows, index=list(versions)).fillna("–")
