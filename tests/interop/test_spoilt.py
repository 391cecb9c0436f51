"""Whatever stands in a foreign file: it is read or refused, nothing else happens."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vision_sae.errors import CheckpointError
from vision_sae.interop import load

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    "dictionary_learning-batchtopk", "dictionary_learning-gated", "dictionary_learning-matryoshka",
    "gemma_scope-jumprelu", "ksae-sdxl-unbox", "msae-jumprelu", "msae-tied-topk", "openai-topk",
    "overcomplete-jumprelu", "overcomplete-topk-batch-norm", "overcomplete-topk-tied",
    "prisma-gated", "prisma-topk", "saelens-jumprelu-skip-transcoder", "saelens-legacy-topk",
    "saelens-matching-pursuit", "saelens-topk-rescale", "saelens-unfinished-matryoshka",
    "saelens-unfolded-standard", "saev-batchtopk", "sparsify-groupmax", "sparsify-skip-transcoder",
]  # fmt: skip
WRONG = [None, "x", -1, 0, 2.5, [], {}, [1], {"k": "x"}, True, 10**9]
DEEP = ("trainer", "cfg", "activation", "params", "activation_fn_kwargs", "metadata")


def variants(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each value missing or wrong, also inside the objects that readers look into."""
    for key, value in found.items():
        yield {name: other for name, other in found.items() if name != key}
        yield from (found | {key: wrong} for wrong in WRONG)
        if key in DEEP and isinstance(value, dict):
            yield from (found | {key: inner} for inner in variants(value))


def tensor_variants(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in state.items():
        yield {name: other for name, other in state.items() if name != key}
        if isinstance(value, torch.Tensor):
            yield state | {key: value.flatten()[:1].clone()}
            yield state | {key: torch.zeros(3, 3, 3)}
            yield state | {key: value.long()}
        else:
            yield from (state | {key: wrong} for wrong in WRONG)
            if isinstance(value, dict):
                inside = tensor_variants if key in ("state_dict", "model") else variants
                yield from (state | {key: inner} for inner in inside(value))


def tried(folder: Path, case: dict[str, Any]) -> None:
    for format in ("auto", case["format"]):
        with contextlib.suppress(CheckpointError):
            load(folder / case["path"], format, **case["settings"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_spoilt_files(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / name)
    folder = tmp_path / name
    case = json.loads((folder / "case.json").read_text())
    for file in sorted((folder / "checkpoint").iterdir()):
        whole = file.read_bytes()
        for spoilt in of_file(file, whole):
            spoilt()
            tried(folder, case)
        file.write_bytes(whole)


def of_file(file: Path, whole: bytes) -> Iterator[Any]:
    """Functions that spoil a file, one after the other."""
    yield lambda: file.write_bytes(b"")
    yield lambda: file.write_bytes(whole[: len(whole) // 2])
    if file.suffix == ".json":
        for found in variants(json.loads(whole)):
            yield lambda found=found: file.write_text(json.dumps(found))
    elif file.suffix == ".safetensors":
        file.write_bytes(whole)
        for state in tensor_variants(load_file(file)):
            yield lambda state=state: save_file(state, file)
    elif whole[:1] == b"{":
        line, data = whole.split(b"\n", 1)
        for found in variants(json.loads(line)):
            text = json.dumps(found).encode()
            yield lambda text=text: file.write_bytes(text + b"\n" + data)
    elif file.suffix in (".pt", ".pth"):
        file.write_bytes(whole)
        for state in tensor_variants(torch.load(file, weights_only=True)):
            yield lambda state=state: torch.save(state, file)
