"""The real libraries, where they are installed, on inputs that no golden case has."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.interop import convert, load

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

GOLDEN = Path(__file__).parent / "golden"
Peer = Callable[[str], Any]


def cases(format: str) -> list[str]:
    """The cases made by running a library (SAeUron's are of the sparsify format, but not its)."""
    return sorted(path.parent.name for path in GOLDEN.glob(f"{format}-*/case.json"))


ALL = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))
HELD = [  # by SAELens
    name
    for name in ALL
    if name
    not in (
        "sparsify-groupmax",
        "sparsify-transcoder",
        "sparsify-skip-transcoder",
        "sparsify-skip-autoencoder",
        "overcomplete-matching-pursuit",
    )
]


def fresh() -> Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(23)) * 1.5 + 0.3


def same(case: str, x: Tensor, codes: Tensor, x_hat: Tensor) -> None:
    """Ours, read from the golden case, against theirs."""
    described = json.loads((GOLDEN / case / "case.json").read_text())
    ours = load(GOLDEN / case / described["path"], **described["settings"])
    with torch.no_grad():
        our_codes, our_x_hat = ours(x)
    torch.testing.assert_close(our_codes.to_dense(), codes, rtol=0, atol=1e-5)
    torch.testing.assert_close(our_x_hat, x_hat, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "case", [c for c in cases("saelens") if "unfolded" not in c and "unfinished" not in c]
)
def test_sae_lens(case: str, peer: Peer) -> None:
    theirs = peer("sae_lens").SAE.load_from_disk(GOLDEN / case / "checkpoint")
    x = fresh()
    same(case, x, theirs.encode(x), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize("case", HELD)
def test_sae_lens_reads_what_we_convert(case: str, peer: Peer, tmp_path: Path) -> None:
    """Any format, through ours, into theirs: codes and reconstructions of the first library."""
    library = peer("sae_lens")
    described = json.loads((GOLDEN / case / "case.json").read_text())
    convert(GOLDEN / case / described["path"], tmp_path / "sae", **described["settings"])
    theirs = library.SAE.load_from_disk(tmp_path / "sae")
    x = fresh()
    same(case, x, theirs.encode(x), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize("case", cases("sparsify"))
def test_sparsify(case: str, peer: Peer) -> None:
    """Run with SPARSIFY_DISABLE_TRITON=1 where there is no CUDA device."""
    theirs = peer("sparsify").SparseCoder.load_from_disk(GOLDEN / case / "checkpoint")
    x = fresh()
    out = theirs(x)
    codes = torch.zeros(len(x), 24).scatter(1, out.latent_indices, out.latent_acts)
    same(case, x, codes, out.sae_out)


CLASSES = {
    "standard": "dictionary.AutoEncoder",
    "standard-new": "dictionary.AutoEncoderNew",
    "gated": "dictionary.GatedAutoEncoder",
    "jumprelu": "dictionary.JumpReluAutoEncoder",
    "topk": "trainers.top_k.AutoEncoderTopK",
    "batchtopk": "trainers.batch_top_k.BatchTopKSAE",
    "matryoshka": "trainers.matryoshka_batch_top_k.MatryoshkaBatchTopKSAE",
}


@torch.no_grad()
@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning(kind: str, peer: Peer) -> None:
    module, name = f"dictionary_learning.{CLASSES[kind]}".rsplit(".", 1)
    options = {"normalize_decoder": False} if kind == "standard" else {}
    case = f"dictionary_learning-{kind}"
    file = GOLDEN / case / "checkpoint/ae.pt"
    theirs = getattr(peer(module), name).from_pretrained(file, **options)
    x = fresh()
    codes = theirs.encode(x)
    same(case, x, codes, theirs.decode(codes))


@torch.no_grad()
@pytest.mark.parametrize("case", cases("overcomplete"))
def test_overcomplete(case: str, peer: Peer) -> None:
    settings = json.loads((GOLDEN / case / "case.json").read_text())["settings"]
    theirs = overcomplete(peer("overcomplete.sae"), case, settings)
    theirs.load_state_dict(torch.load(GOLDEN / case / "checkpoint/sae.pt", weights_only=True))
    theirs.eval()
    x = fresh()
    codes = theirs.encode(x)[1]
    same(case, x, codes, theirs.decode(codes))


def overcomplete(library: Any, case: str, settings: dict[str, Any]) -> Any:
    """The model whose state dict a case holds."""
    dictionary = {"normalization": settings.get("normalization", "l2")}
    options: dict[str, Any] = {"dictionary_params": dictionary}
    if settings["kind"] in ("TopKSAE", "BatchTopKSAE"):
        options["top_k"] = settings["k"]
    if settings["kind"] == "MpSAE":
        options["k"] = settings["k"]
    if "batch-norm" in case:
        options["encoder_module"] = "mlp_bn_1"
    if "multiplier" in case:
        dictionary["use_multiplier"] = True
    model = getattr(library, settings["kind"])(8, 24, **options)
    if settings["kind"] == "BatchTopKSAE":
        model.running_threshold = torch.tensor(settings["threshold"])
    if "untied" in case:
        return model.untied(bias=True)
    return model.tied(bias=True) if "tied" in case else model
