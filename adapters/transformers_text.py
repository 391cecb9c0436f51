"""Text encoders of transformers: CLIP's, SigLIP's, T5, BERT and their like."""

from functools import partial
from typing import Any, NamedTuple

from torch import nn

from vision_sae.adapters.texts import TextAdapter, Tokenize
from vision_sae.adapters.transformers_files import library, load_config, load_model, load_tokenizer
from vision_sae.data.options import split_options
from vision_sae.errors import ConfigError
from vision_sae.store.index import DTYPES

LENGTH = 77  # of models that set no length themselves, as T5: that of CLIP
DEFAULTS = {"length": "", "mask": "", "dtype": "float32", "subfolder": "", "tokenizer": ""}


def wrap(
    model: nn.Module,
    tokenizer: Any,
    *,
    name: str,
    length: int | None = None,
    mask: bool | None = None,
) -> TextAdapter:
    """A text encoder that you have loaded; sites are paths in it (`encoder.layers.9`, T5
    `encoder.block.22`, in a whole CLIPModel `text_model.encoder.layers.9`).

    Every text is padded or cut to `length` tokens, by default the model's own length (CLIP 77,
    SigLIP 64), else 77. With `mask` padding is not attended to: by default so for all models but
    CLIP and SigLIP, which were trained without and which diffusers runs without. (T5 in the
    pipelines of SD3 and FLUX runs without as well, in PixArt's with.)

    Raises ConfigError for a length that is not one of the model's.
    """
    tokenize = fixed_length(model, tokenizer, length, mask)
    return TextAdapter(model.eval(), tokenize, _forward, name=name)


def from_name(argument: str) -> TextAdapter:
    """`FOLDER` or a hub's `OWNER/NAME`, then options as in `FOLDER?length=77&mask=no`.

    `length=` and `mask=yes|no` are those of `wrap`; `dtype=float32|float16|bfloat16`;
    `subfolder=text_encoder_2&tokenizer=tokenizer_2` read a part of a diffusers pipeline's folder.
    Raises ConfigError for options, DataError for files.
    """
    folder, options = _options(argument)
    part = {"subfolder": options["subfolder"]} if options["subfolder"] else {}
    config = load_config(folder, **part)
    model = load_model(_auto(config), config, folder, **part).to(DTYPES[options["dtype"]])
    beside = options["tokenizer"] or options["subfolder"].replace("text_encoder", "tokenizer")
    length, mask = int(options["length"] or 0), options["mask"]
    return wrap(
        model,
        load_tokenizer(folder, beside),
        name=f"transformers-text:{argument}",
        length=length or None,
        mask=mask == "yes" if mask else None,
    )


def _options(argument: str) -> tuple[str, dict[str, str]]:
    folder, options = split_options(argument)
    for name, value in options.items():
        _check(name, value)
    return folder, {**DEFAULTS, **options}


def _check(name: str, value: str) -> None:
    allowed = {"mask": ("yes", "no"), "dtype": tuple(DTYPES)}
    if name not in DEFAULTS:
        raise ConfigError(
            f"transformers-text has no option {name!r}; there are: {', '.join(DEFAULTS)}"
        )
    if name in allowed and value not in allowed[name]:
        raise ConfigError(f"{name}= is one of {', '.join(allowed[name])}; got {value!r}")
    if name == "length" and (not value.isdecimal() or int(value) < 1):
        raise ConfigError(f"length= is a number of tokens, as 77; got {value!r}")


def _auto(config: Any) -> Any:
    """T5 without its decoder; CLIP and SigLIP as a whole, whose text tower is then run."""
    whole = hasattr(config, "vision_config") or config.model_type.startswith(("clip", "siglip"))
    return library().AutoModel if whole else library().AutoModelForTextEncoding


class _Padding(NamedTuple):
    length: int
    mask: bool


def fixed_length(
    model: nn.Module, tokenizer: Any, length: int | None = None, mask: bool | None = None
) -> Tokenize:
    """Texts to input_ids [b t], with the attention mask where the model needs it; see `wrap`."""
    config: Any = model.config
    config = getattr(config, "text_config", config)
    if mask is None:
        mask = not config.model_type.startswith(("clip", "siglip"))
    padding = _Padding(_length(config, tokenizer, length), mask)
    return partial(_tokenized, tokenizer, padding)


def _length(config: Any, tokenizer: Any, length: int | None) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    longest = min(positions, tokenizer.model_max_length) if positions else None
    length = (longest or LENGTH) if length is None else length
    if length < 1 or (longest and length > longest):
        raise ConfigError(
            f"texts take 1 to {longest or 'any number of'} tokens in {config.model_type}; "
            f"got a length of {length}"
        )
    return length


def _tokenized(tokenizer: Any, padding: _Padding, texts: list[str]) -> Any:
    batch = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=padding.length,
        return_tensors="pt",
    )
    if not padding.mask:
        return batch["input_ids"]
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _forward(model: nn.Module, batch: Any) -> Any:
    inputs = batch if isinstance(batch, dict) else {"input_ids": batch}
    features: Any = getattr(model, "get_text_features", model)  # of a whole CLIP or SigLIP
    return features(**inputs)
