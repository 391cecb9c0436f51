"""Does a linear probe say the same of the reconstruction?"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.errors import DataError, require
from vision_sae.measures.case import Case, Sample
from vision_sae.measures.score import Score, Scores

LEAST = 5  # images of a class
C = 100.0  # inverse strength of the ridge penalty, of probes on unit vectors


def agreement(case: Case) -> Scores:
    """probe_agreement: how often a probe's class for x_hat is its class for x; probe_kl in nats.

    A multinomial logistic regression on unit vectors (an image's mean over its tokens), fitted on
    the activations of `fit`; agreement = mean [argmax p(x_hat) = argmax p(x)] and kl =
    mean KL(p(x) || p(x_hat)) on `test`, against the probe's own prediction, not the label (MSAE,
    arXiv 2502.20578; there the probe is trained by AdamW). n: images. Raises DataError for fewer
    than two classes of at least 5 images.
    """
    assert case.label is not None
    probe = fitted(case.fit, case.label)
    p, q = (_odds(probe, x) for x in (case.test.pooled, case.on_test.pooled_hat))
    same = (p.argmax(1) == q.argmax(1)).double().mean()
    kl = (p.exp() * (p - q)).sum(1).mean()
    return {
        "probe_agreement": Score(float(same), n=len(p)),
        "probe_kl": Score(float(kl.clamp(min=0)), n=len(p)),
    }


@lru_cache(maxsize=4)
def fitted(sample: Sample, label: str) -> Any:
    """A probe on the activations of a sample, the same for every SAE that is measured there."""
    truth = sample.classes(label)
    counts = torch.bincount(truth[truth >= 0])
    if int((counts >= LEAST).sum()) < 2:
        raise DataError(f"a probe needs two values of {label!r} with {LEAST} images each")
    kept = (truth >= 0) & (counts[truth.clamp(min=0)] >= LEAST)
    model = require("sklearn.linear_model", "report").LogisticRegression(C=C, max_iter=2000)
    return model.fit(normalize(sample.pooled[kept], dim=1).numpy(), truth[kept].numpy())


def _odds(probe: Any, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
    """Log probabilities."""
    scores = torch.from_numpy(probe.decision_function(normalize(x, dim=1).numpy())).double()
    if scores.ndim == 1:  # two classes have one score
        scores = torch.stack([-scores / 2, scores / 2], dim=1)
    return scores.log_softmax(1)
