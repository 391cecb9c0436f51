"""SAEs, stores and models that do not belong together are refused."""

from vision_sae.errors import MismatchError
from vision_sae.model.adapter import Adapter, fingerprint
from vision_sae.sae import SAE
from vision_sae.store import Store


def check_match(sae: SAE, store: Store) -> None:
    """Raises MismatchError when the SAE was trained on another model, site or kind of token."""
    if sae.config.d != store.width:
        raise MismatchError(f"the SAE reads width {sae.config.d}, the store holds {store.width}")
    if sae.provenance and (reason := sae.provenance.differs(store.index.provenance)):
        raise MismatchError(
            f"the SAE and the store {store.folder} do not belong together: {reason}"
        )


def check_model(adapter: Adapter, store: Store) -> None:
    """Raises MismatchError when the store was made with another model, or other weights."""
    provenance = store.index.provenance
    if adapter.name != provenance.model:
        raise MismatchError(f"the activations are from {provenance.model!r}, not {adapter.name!r}")
    if fingerprint(adapter.model) != provenance.fingerprint:
        raise MismatchError(
            f"{adapter.name!r} has other weights than when the activations were made; extract again"
        )


def check_paired(inputs: Store, targets: Store) -> None:
    """Raises MismatchError unless both hold the same tokens of the same images."""
    mine, theirs = inputs.index.tokens_per_image, targets.index.tokens_per_image
    if mine != theirs:
        raise MismatchError(
            f"{inputs.folder} has {mine} tokens per image, "
            f"the targets {targets.folder} have {theirs}"
        )
    if inputs.keys != targets.keys:
        raise MismatchError(f"{inputs.folder} and the targets {targets.folder} hold other images")
