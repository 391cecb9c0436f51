"""The model card of an SAE on a hub, from what its checkpoint records."""

import json
from typing import Any

from vision_sae.checkpoint import Saved
from vision_sae.provenance import Provenance


def model_card(saved: Saved, repo_id: str, *, form: str = "vision_sae") -> str:
    """README.md of a repository: what the SAE is, where it comes from, how to load it."""
    return f"""---
library_name: {"saelens" if form == "saelens" else "vision-sae"}
tags:
- sparse-autoencoder
- vision
---

# {repo_id.split("/")[-1]}

A sparse autoencoder ({saved.sae.sparsity.kind}) of {saved.sae.s:,} latents on vectors of width \
{saved.sae.d:,}, made with vision_sae.

## Load

```python
from vision_sae.interop import hub

sae = hub.from_pretrained("{repo_id}")
codes, x_hat = sae(x)  # x: rows of width {saved.sae.d}
```

## Where its inputs come from

{_origin(saved.provenance)}

## Config

{_block(saved.sae.model_dump())}

## Training

{_block(saved.training) if saved.training else "No record of the training is stored."}
"""


def _origin(found: Provenance | None) -> str:
    if found is None:
        return "The checkpoint does not say."
    rows = [f"| {name} | `{value}` |" for name, value in found.model_dump().items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _block(value: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(value, indent=1, ensure_ascii=False)}\n```"
