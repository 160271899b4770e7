"""The hub path against a server on loopback.

The hub's client reads the address once, on import, so that these run in a process of their own: one for all questions
to an answering hub, one for each that fails to answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
from hub_server import INVITED_TOKEN, OVERLOADED, UNINVITED_TOKEN, serve_hub

from course_utils.models import hub
from course_utils.models.loading import load_model
from course_utils.support.session import HUB_MODELS, ROLES

LLAMA, SMALLER_LLAMA = HUB_MODELS["llama"]

ASK_THE_HUB = """
import contextlib, io, json, os, pathlib, sys
from course_utils.models import hub, loading as models
folder, questions = json.loads(sys.argv[1])
models.embedded_llama = lambda: pathlib.Path(folder)  # a small one in its place
hub._SECONDS = 1.0
for name, token in questions:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            if name.startswith("only "):
                config, tokenizer = models.load_without_weights(name.removeprefix("only "))
                here = pathlib.Path(os.environ["HF_HOME"]).rglob("snapshots/*/*")
                answer = {"here": [path.name for path in here], "pad": tokenizer.pad_token}
                answer["blocks"] = config.num_hidden_layers
            else:
                model, tokenizer = models.load_model(name, device="cpu")
                answer = {"loaded": model.config._name_or_path, "pad": tokenizer.pad_token}
    except models.ModelNotAvailable as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer | {"printed": printed.getvalue()}))
"""


def ask_the_hub(address: str, home: Path, embedded: Path, questions: list[tuple[str, str | None]]) -> list[dict]:
    """What `load_model(name)` does for each (name, token) in the hub profile, with the hub at `address`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = inherited | {"HF_ENDPOINT": address, "HF_HOME": str(home), "COURSE_PROFILE": "hub"}
    command = [sys.executable, "-c", ASK_THE_HUB, json.dumps([str(embedded), questions])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


QUESTIONS = {
    "without weights": ("only distilgpt2", None),  # first, while nothing is there
    "without weights, missing": ("only nobody/nothing", None),
    "open": ("distilgpt2", None),
    "gated, no token": (LLAMA, None),
    "gated, token without access": (LLAMA, UNINVITED_TOKEN),
    "invalid token": (LLAMA, "hf_expired"),
    "role, no token": ("llama", None),
    "role, token without access": ("llama", UNINVITED_TOKEN),
    "gated, access": (LLAMA, INVITED_TOKEN),
    "role, access": ("llama", INVITED_TOKEN),
    "role gpt2": ("gpt2", None),
    "missing": ("nobody/nothing", INVITED_TOKEN),
    "missing, no token": ("nobody/nothing", None),
    "pickles only": ("old/pickles", None),
    "no model": ("some/dataset", None),
    "overloaded": (OVERLOADED, None),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PROFILE", "smoke")
        for role in ROLES:
            for part in load_model(role, device="cpu"):
                part.save_pretrained(root / role)
    (root / "gpt2" / "pytorch_model.bin").write_bytes(b"never fetched")
    (root / "gpt2" / "consolidated.safetensors").write_bytes(b"never fetched")
    (root / "pickles").mkdir()
    (root / "pickles" / "config.json").write_text('{"model_type": "gpt2"}')
    (root / "pickles" / "pytorch_model.bin").write_bytes(b"never fetched")
    (root / "dataset").mkdir()
    (root / "dataset" / "README.md").write_text("rows")
    served = {
        "distilgpt2": root / "gpt2",
        LLAMA: root / "llama",
        SMALLER_LLAMA: root / "llama",
        "old/pickles": root / "pickles",
        "some/dataset": root / "dataset",
    }
    with serve_hub(served, gated=(LLAMA,)) as address:
        given = ask_the_hub(address, root / "home", root / "llama", list(QUESTIONS.values()))
    fetched = {path.name for path in (root / "home").rglob("*") if path.suffix in (".bin", ".safetensors")}
    assert fetched == {"model.safetensors"}
    # The same hub home once more, with nobody answering: what was fetched still loads.
    later = ask_the_hub("http://127.0.0.1:9", root / "home", root / "llama", [("distilgpt2", None), ("x/y", None)])
    return dict(zip(QUESTIONS, given, strict=True)) | {"later, fetched": later[0], "later, unknown": later[1]}


def test_an_open_model_loads_under_its_own_name(answers):
    assert answers["open"] == {"loaded": "distilgpt2", "pad": "<|endoftext|>", "printed": ""}
    assert answers["role gpt2"]["loaded"] == "distilgpt2"


def test_configuration_and_tokenizer_come_without_the_weights(answers):
    here = answers["without weights"].pop("here")
    assert {"config.json", "tokenizer.json"} <= set(here) and not [name for name in here if "safetensors" in name]
    assert answers["without weights"] == {"blocks": 8, "pad": "<|endoftext|>", "printed": ""}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("without weights, missing", "'nobody/nothing' is neither a folder here nor a model on the hub"),
        ("gated, no token", f"{LLAMA} is gated and no token is set (401)"),
        ("gated, token without access", f"{LLAMA} is gated and your account has no access yet (403)"),
        ("invalid token", f"{LLAMA}: the hub refused your token"),
        ("missing", "'nobody/nothing' is neither a folder here nor a model on the hub"),
        ("missing, no token", "'nobody/nothing' is neither a folder here nor a model on the hub"),
        ("pickles only", "old/pickles has no safetensors weights"),
        ("no model", "some/dataset has no config.json"),
        (
            "overloaded",
            f"{OVERLOADED} is not in the local hub cache and could not be downloaded (the hub answered 503)",
        ),
        ("later, unknown", "x/y is not in the local hub cache and could not be downloaded (ConnectError)"),
    ],
)
def test_an_id_that_cannot_be_had_is_explained_in_one_line(question, message, answers):
    assert answers[question]["error"].startswith(message)
    assert "\n" not in answers[question]["error"]


@pytest.mark.parametrize(("question", "status"), [("role, no token", "(401)"), ("role, token without access", "(403)")])
def test_without_the_licence_the_role_says_so_in_one_line_and_goes_on_with_the_open_model(question, status, answers):
    assert answers[question]["loaded"] == SMALLER_LLAMA
    line = answers[question]["printed"]
    assert line.count("\n") == 1 and status in line and line.endswith(f"Going on with {SMALLER_LLAMA}.\n")


def test_with_access_the_gated_model_loads(answers):
    assert answers["gated, access"]["loaded"] == LLAMA
    assert answers["role, access"] == {"loaded": LLAMA, "pad": "<|endoftext|>", "printed": ""}


def test_what_was_fetched_loads_without_a_network(answers):
    assert answers["later, fetched"]["loaded"] == "distilgpt2"


def test_a_hub_that_keeps_silent_means_the_embedded_models_with_one_line_after_a_moment(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    folder = tmp_path / "embedded"
    for part in load_model("llama", device="cpu"):
        part.save_pretrained(folder)
    with serve_hub({}, silent=True) as address:
        llama, gpt2 = ask_the_hub(address, tmp_path / "home", folder, [("llama", None), ("gpt2", None)])
    assert llama["loaded"] == "SmolLM2-135M-Instruct" and gpt2["loaded"] == "course-gpt2"
    for answer in (llama, gpt2):
        assert answer["printed"].count("\n") == 1
        assert answer["printed"].endswith("Going on with the embedded model.\n")


class Refused(Exception):
    """Any of the ways in which Colab says no."""


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """Google Colab's modules as far as tokens are concerned, and a machine without a token."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    google, package = types.ModuleType("google"), types.ModuleType("google.colab")
    package.userdata = userdata = types.SimpleNamespace(get={"HF_TOKEN": "hf_secret"}.__getitem__)
    userdata.SecretNotFoundError = userdata.NotebookAccessError = userdata.TimeoutException = Refused
    for name, module in {"google": google, "google.colab": package}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return userdata


def test_colabs_secret_is_used_unless_there_is_a_token(colab, monkeypatch):
    assert hub._token() == "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_own")
    assert hub._token() is None


def test_colab_without_the_secret_means_no_token_and_no_second_question(colab):
    colab.get = mock.Mock(side_effect=Refused)
    assert hub._token() is False


def test_away_from_colab_the_hub_client_looks_for_the_token():
    assert hub._token() is None
