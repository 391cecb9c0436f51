"""SAEs on the Hugging Face hub: load by name, upload with a model card. Folders need no network."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from vision_sae import checkpoint
from vision_sae.errors import CheckpointError, UnknownName, require
from vision_sae.files import write_bytes
from vision_sae.interop import WRITTEN, detect, load, saelens
from vision_sae.interop.card import model_card
from vision_sae.sae import SAE

log = logging.getLogger(__name__)

CARD = "README.md"
EXTRA = "hub"


def from_pretrained(
    name_or_path: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    format: str = "auto",
    **settings: Any,
) -> SAE:
    """An SAE of any format that `interop.load` reads, from a local path or a hub repository.

    `subfolder` may also name a single file. Raises CheckpointError, MissingExtra without
    huggingface_hub, and the hub's own errors.
    """
    local = Path(name_or_path)
    if not local.exists():
        local = _download(str(name_or_path), subfolder, revision, token)
    return load(local / subfolder if subfolder else local, format, **settings)


def _download(repo_id: str, part: str | None, revision: str | None, token: str | None) -> Path:
    hub = require("huggingface_hub", EXTRA)
    try:
        hub.utils.validate_repo_id(repo_id)
    except ValueError as error:
        raise CheckpointError(
            f"{repo_id} is neither a file or folder here nor the name of a hub repository: {error}"
        ) from error
    wanted = [part, f"{part}/*"] if part else None
    path = hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=wanted)
    return Path(path)


def push_to_hub(
    sae: SAE | Path | str,
    repo_id: str,
    *,
    form: str = "vision_sae",
    training: dict[str, Any] | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload an SAE",
    token: str | None = None,
) -> str:
    """Upload an SAE, or what a path holds, with a model card; gives its address.

    `form="saelens"` writes a folder that SAELens loads. `training` is the record for the card; a
    folder of ours brings its own. Raises CheckpointError, MissingExtra, and the hub's own errors.
    """
    if form not in WRITTEN:
        raise UnknownName("form", form, WRITTEN)
    api = require("huggingface_hub", EXTRA).HfApi(token=token)
    sae, training = _loaded(sae, training)
    with tempfile.TemporaryDirectory() as folder:
        stage(sae, Path(folder), repo_id, form=form, training=training)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
        )
    log.info("uploaded to %s", url)
    return str(url)


def _loaded(
    sae: SAE | Path | str, training: dict[str, Any] | None
) -> tuple[SAE, dict[str, Any] | None]:
    if isinstance(sae, SAE):
        return sae, training
    if training is None and detect(sae) == "vision_sae":
        training = checkpoint.read_config(Path(sae)).training
    return load(sae), training


def stage(
    sae: SAE, folder: Path, repo_id: str, *, form: str, training: dict[str, Any] | None
) -> None:
    """Write what is uploaded: the SAE and its card."""
    if form == "saelens":
        saelens.write(sae, folder, overwrite=True)
    else:
        checkpoint.save(sae, folder, training=training, overwrite=True)
    saved = checkpoint.Saved(sae=sae.config, provenance=sae.provenance, training=training or {})
    write_bytes(folder / CARD, model_card(saved, repo_id, form=form).encode())
