"""Loading models, processors and tokenizers of transformers: safetensors only, no remote code."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from vision_sae.adapters.loading import FAILURES, first_line
from vision_sae.errors import DataError, require

log = logging.getLogger(__name__)
VOCABULARIES = ("tokenizer.", "vocab", "spiece", "sentencepiece")  # how their files begin
SAFE = {"trust_remote_code": False}


def library() -> Any:
    return require("transformers", "transformers")


def load_part(auto: Any, folder: str, **options: Any) -> Any:
    """`auto.from_pretrained`, where `auto` is such a class as AutoImageProcessor.

    Raises DataError with what transformers says about a folder or hub name that it cannot load.
    """
    try:
        return auto.from_pretrained(folder, **SAFE, **options)
    except FAILURES as error:
        raise DataError(
            f"transformers ({auto.__name__}) could not load {folder}: {first_line(error)}"
        ) from error


def load_config(folder: str, **options: Any) -> Any:
    """The model's config.json. Raises DataError."""
    part = Path(folder, options.get("subfolder", ""))
    if Path(folder).is_dir() and not (part / "config.json").exists():
        raise DataError(f"{part} holds no config.json")
    return load_part(library().AutoConfig, folder, **options)


def _vocabularies(folder: Path) -> list[Path]:
    return [file for name in VOCABULARIES for file in folder.glob(f"{name}*")]


def load_tokenizer(folder: str, subfolder: str = "") -> Any:
    """Raises DataError, also where transformers would make up an empty vocabulary."""
    part = Path(folder, subfolder)
    if Path(folder).is_dir() and not _vocabularies(part):
        raise DataError(f"{part} holds no tokenizer (tokenizer.json)")
    return load_part(library().AutoTokenizer, folder, subfolder=subfolder)


def load_model(auto: Any, config: Any, folder: str, **options: Any) -> nn.Module:
    """The model in evaluation mode; the class with a projection where the folder names one.

    Raises DataError for files that cannot be loaded, and when weights are missing, which
    transformers would make up.
    """
    named = (config.architectures or [""])[0]
    if named.endswith("WithProjection"):
        auto = getattr(library(), named, auto)
    found = load_part(auto, folder, use_safetensors=True, output_loading_info=True, **options)
    model: nn.Module = found[0]
    missing = sorted(found[1]["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        log.info("%s has no weights for the pooler, which is left out", folder)
        model.pooler = None  # type: ignore[assignment]
    elif missing:
        raise DataError(
            f"{folder} holds no weights for {len(missing)} tensors of {type(model).__name__}, "
            f"as {', '.join(missing[:3])}"
        )
    return model.eval()
