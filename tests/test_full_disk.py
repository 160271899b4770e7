"""A disk that is full in the middle of a write: the error names the file or folder, and what was there stays whole.

The system ends each file after some thousand bytes, as a full disk does; nobody needs to be root for that.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import tiny_batches, tiny_model, word_tokenizer

from course_utils.compress import program
from course_utils.compress.scores import importance
from course_utils.healing.distillation import distill
from course_utils.healing.distillation.checkpoint import CHECKPOINT
from course_utils.models.loading import load_model
from course_utils.pruning.checkpoints import save_pruned
from course_utils.pruning.width import neuron_importance, prune_neurons
from course_utils.release.export import export_gguf
from course_utils.release.vllm_folder import export_vllm

resource = pytest.importorskip("resource", reason="Windows has no limit for files")


@contextmanager
def files_end_after(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def narrow(model):
    """Its blocks differ."""
    prune_neurons(model, neuron_importance(model, "l1"), ratio=0.5, layers=[1])
    return model


def as_pruned(path):
    save_pruned(tiny_model(), word_tokenizer(), path)


def as_gguf(path):
    model, tokenizer = load_model("llama", device="cpu")
    export_gguf(model, tokenizer, path)


def for_vllm(path):
    export_vllm(tiny_model(), word_tokenizer(), path)


def uneven_for_vllm(path):
    export_vllm(narrow(tiny_model()), word_tokenizer(), path)


def as_scores(path):
    importance(tiny_model(intermediate_size=20_000, layers=1), tiny_batches()).save(path)


WRITERS = [as_pruned, as_gguf, for_vllm, uneven_for_vllm, as_scores]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [0, 16_384], ids=["at once", "late"])
@pytest.mark.parametrize("write", WRITERS)
def test_it_is_named_and_the_earlier_one_stays_whole(write, size, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    write(tmp_path / "result")
    before = contents(tmp_path)
    with files_end_after(size), pytest.raises(OSError, match="File too large|No space left") as stopped:
        write(tmp_path / "result")
    assert stopped.value.filename == str(tmp_path / "result")
    assert contents(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["result"]

    def fail() -> int:
        raise stopped.value

    assert program.answer(fail, place=Path("elsewhere"), remedy="Name another.") == 1
    assert str(tmp_path / "result") in capsys.readouterr().err


def test_a_correction_that_cannot_be_kept_names_its_file(tmp_path):
    with files_end_after(16_384), pytest.raises(OSError, match="File too large|No space left") as stopped:
        distill(tiny_model(), tiny_model(seed=1), tiny_batches(), steps=1, lr=1e-3, checkpoint_dir=tmp_path)
    assert stopped.value.filename == str(tmp_path / CHECKPOINT) and not contents(tmp_path)
