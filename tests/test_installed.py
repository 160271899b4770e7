"""The wheel alone, installed by pip into an empty environment: it prunes a model, and names the extra of what it lacks.

    python -m pytest -m installed tests/test_installed.py

Asks a package index, and takes minutes; the rest of the tests don't.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from packages import imported_as

from course_tools import requirements

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
SMALL = "--steps 2 --light 2 --finalists 2 --rows 2 --length 16 --multiple-of 8".split()
pytestmark = pytest.mark.installed


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as place:  # gigabytes, so that pytest must not keep them
        yield Path(place)


@pytest.fixture(scope="module")
def installed(folder):
    """Runs the environment's Python in an empty folder, with nothing of this clone on its path."""
    pytest.importorskip("hatchling", reason="part of the extra dev")
    wheel = run([sys.executable, "-c", BUILD, folder], cwd=ROOT).stdout.split()[-1]
    run([sys.executable, "-m", "venv", folder / "venv"])
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", folder / wheel])
    (folder / "empty").mkdir()

    def inside(*arguments, profile="smoke", fine=True):
        settings = {"COURSE_PROFILE": profile, "COURSE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        return run([python, *arguments], cwd=folder / "empty", settings=settings, fine=fine)

    return inside


def run(command, *, cwd=None, settings=None, fine=True):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | (settings or {})
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=3600
    )
    assert not fine or done.returncode == 0, done.stderr[-3000:]
    return done


def names(*extras):
    return {imported_as(line) for line in requirements.needed(*extras)}


def test_base_install_is_light(installed, folder):
    listed = json.loads(installed("-m", "pip", "list", "--format", "json").stdout)
    there = {imported_as(package["name"]) for package in listed}
    assert names() <= there
    assert there.isdisjoint(names("lessons") - names())
    size = sum(file.stat().st_size for file in (folder / "venv").rglob("*") if file.is_file())
    print(f"{len(there)} packages, {size / 1e6:,.0f} MB: {' '.join(sorted(there))}")


def test_a_model_is_compressed_with_nothing_but_the_wheel(installed):
    asked = ["-m", "course_utils", "compress", "llama", "--budget", "95", *SMALL]
    assert "on this machine, by" in installed(*asked, "--dry-run").stdout
    report = json.loads(installed(*asked, "--json", "--out", "small").stdout)
    reason = "This needs gguf: pip install 'pruning-llms[gguf]'"
    assert report["not_measured"] == {"the whole model in 8 and 4 bits": reason}
    load = f"from transformers import AutoModelForCausalLM as Model; model = Model.from_pretrained({report['saved']!r})"
    parameters = installed("-c", f"{load}; print(model.num_parameters())").stdout.split()
    assert parameters == [str(report["made"]["parameters"])]


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("plotting", "matplotlib", "plots"),
        ("diagrams", "matplotlib", "plots"),
        ("export", "gguf", "gguf"),
        ("benchmark_tasks", "datasets", "tasks"),
    ],
)
def test_what_is_missing_says_its_extra(module, package, extra, installed):
    failed = installed("-c", f"import course_utils.{module}", fine=False)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].endswith(f"This needs {package}: pip install 'pruning-llms[{extra}]'")


def test_lora_and_the_embedded_llama_say_theirs_before_anything_is_downloaded(installed, folder):
    asked = ["-m", "course_utils", "compress", "llama", "--budget", "80%", "--dry-run"]
    failed = installed(*asked, profile="embedded", fine=False)
    assert (failed.returncode, failed.stderr) == (1, "This needs gguf: pip install 'pruning-llms[gguf]'\n")
    assert not [path for path in (folder / "cache").rglob("*") if path.suffix == ".whl"]
    learn = (
        "from course_utils.healing import distill; from course_utils.models import tiny_llama, variant; "
        "import torch; whole = tiny_llama(); ids = torch.ones(1, 8, dtype=torch.long); "
        "text = [{'input_ids': ids, 'attention_mask': ids}]; "
        "distill(whole, variant(whole), text, steps=1, lr=1e-3, lora_rank=2)"
    )
    failed = installed("-c", learn, fine=False)
    assert failed.stderr.splitlines()[-1].endswith("This needs peft: pip install 'pruning-llms[lora]'")
