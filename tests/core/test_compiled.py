"""torch.compile(sae) is the same: in a process of its own, without this test run's type checks."""

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, sys
import torch
from vision_sae.sae import SAE, SAEConfig

config = SAEConfig.model_validate(json.loads(sys.argv[1]))

def result(compiled, training):
    sae = SAE(config).train(training)
    with torch.no_grad():
        for i, p in enumerate(sae.parameters()):
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        if config.sparsity.kind == "batchtopk":
            sae.threshold.fill_(0.6)
    x = torch.randn(12, config.d, generator=torch.Generator().manual_seed(50)).requires_grad_()
    x_hat = (torch.compile(sae) if compiled else sae)(x).x_hat
    x_hat.square().sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (x, *sae.parameters())]
    return [x_hat.detach(), *grads]

for training in (True, False):
    for one, other in zip(result(True, training), result(False, training), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["topk", "topk-competing", "topk-layer_norm", "topk-skip", "topk-archetypal", "batchtopk",
     "abstopk", "groupmax", "relu-tied", "jumprelu-tanh", "gated", "mp"],
    indirect=True,
)  # fmt: skip
def test_a_compiled_sae_is_the_same(case: Any) -> None:
    """Output and gradients, in training and at inference."""
    config = json.dumps(case.config.model_dump())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, config], capture_output=True, text=True, timeout=900
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]
