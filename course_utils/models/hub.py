"""A model from the Hugging Face hub: the files that the course loads, and nothing else, or one line saying why not."""

from __future__ import annotations

import os
import re
from pathlib import Path

from course_utils.support.session import MIXTURE, ROLES

_SECONDS = 10.0  # that each request may take


class ModelNotAvailable(ValueError):
    """The model can't be had: unknown, gated, unreachable, or not in a form that the course loads."""


class HubUnreachable(ModelNotAvailable):
    """The hub does not answer, and the model is not in its local cache."""


def snapshot(model_id: str, *, weights: bool = True) -> Path:
    """Download a model's configuration, tokenizer and safetensors into the hub's own cache, or find them there.

    Without ``weights`` only a few megabytes come.

    Raises:
        ModelNotAvailable: one line saying why, for an id that doesn't exist, is gated, or can't be reached.
    """
    try:
        return _download(model_id, weights)
    except ModelNotAvailable:
        raise
    except Exception as error:  # refusals, time-outs, broken connections, of whichever HTTP library the client uses
        if refusal := _refusal(model_id, error):
            raise ModelNotAvailable(refusal) from error
        if (folder := _cached(model_id)) is None:
            status = _status(error)
            reason = f"the hub answered {status}" if status else type(error.__cause__ or error).__name__
            raise HubUnreachable(
                f"{model_id} is not in the local hub cache and could not be downloaded ({reason}); check the network "
                "and the disk."
            ) from error
        return folder


def _download(model_id: str, weights: bool) -> Path:
    """File by file: unlike the hub client's own snapshot, each of these calls has a time limit."""
    from huggingface_hub import HfApi, hf_hub_download

    token = _token()
    description = HfApi().model_info(model_id, timeout=_SECONDS, token=token)
    names = [file.rfilename for file in description.siblings or ()]
    # Not the weights in another layout (consolidated.safetensors), and nothing in subfolders (onnx/, original/).
    wanted = [name for name in names if re.fullmatch(r"model[^/]*\.safetensors|[^/]*\.(json|model|txt|jinja)", name)]
    if "config.json" not in wanted:
        raise ModelNotAvailable(f"{model_id} has no config.json on the hub, so it is not a transformers model.")
    for name in wanted if weights else [name for name in wanted if not name.endswith(".safetensors")]:
        path = hf_hub_download(model_id, name, etag_timeout=_SECONDS, token=token)
    return Path(path).parent


def _cached(model_id: str) -> Path | None:
    """The folder of a model that was downloaded before."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None


def _refusal(model_id: str, error: Exception) -> str:
    """Why the hub will not give a model, and what to do; empty where it wasn't reached or is in trouble itself."""
    from huggingface_hub import errors

    status = _status(error)
    if isinstance(error, errors.GatedRepoError):  # the hub's client counts it as "not found"; but the id is right
        if status == 401:
            return (
                f"{model_id} is gated and no token is set (401): ask for access on its page, then set HF_TOKEN or run "
                "`hf auth login`."
            )
        return f"{model_id} is gated and your account has no access yet (403): ask for it on its page."
    if isinstance(error, errors.HFValidationError | errors.RepositoryNotFoundError):
        return (
            f"{model_id!r} is neither a folder here nor a model on the hub that you can see; give one of the roles "
            f"{', '.join((*ROLES, MIXTURE))}, a folder that `save_pretrained` wrote, or a hub id like "
            "'HuggingFaceTB/SmolLM2-135M'."
        )
    if status in (401, 403):
        return (
            f"{model_id}: the hub refused your token ({status}); set a valid HF_TOKEN, or unset it: open models need "
            "none."
        )
    return ""


def _status(error: Exception) -> int | None:
    """What the hub answered, by HTTP's numbers; None where nothing came."""
    from huggingface_hub import errors

    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _token() -> str | bool | None:
    """Colab's secret HF_TOKEN; None lets the hub client look for a token itself, False means there is none."""
    try:
        from google.colab import userdata
    except ImportError:
        return None
    from huggingface_hub import constants

    if os.environ.get("HF_TOKEN") or os.path.exists(constants.HF_TOKEN_PATH):
        return None
    try:
        return userdata.get("HF_TOKEN")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError, userdata.TimeoutException):
        return False
