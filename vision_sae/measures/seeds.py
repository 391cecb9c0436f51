"""Does training with another seed find the same latents?"""

import torch

from vision_sae.measures.case import Case
from vision_sae.measures.score import Score, Scores, undefined
from vision_sae.measures.stability import match, mmcs

MOST = 8192  # latents whose Hungarian matching is worth its time
SHARED = 0.7


def seeds(case: Case) -> Scores:
    """stability: mean cosine of atoms under a Hungarian matching, the mean over the other seeds.

    What is called PW-MCC (arXiv 2505.20254) and is MSAE's seed stability. shared: the share of
    latents whose partner by atoms is their partner by encoder rows too, both with a cosine above
    0.7 (Paulo & Belrose 2025, arXiv 2501.16615). stability_mmcs: mean over atoms of the largest
    cosine with any atom of the other, both ways. n: other seeds.
    """
    one, n = case.dictionary.W_dec.detach(), len(case.seeds)
    others = [other.W_dec.detach() for other in case.seeds]
    alike = sum((mmcs(one, other) + mmcs(other, one)) / 2 for other in others) / n
    found = {"stability_mmcs": Score(alike, n=n)}
    if max(len(one), *(len(other) for other in others)) > MOST:
        why = f"matching more than {MOST:,} latents takes too long; see stability_mmcs"
        return {"stability": undefined(why), "shared": undefined(why), **found}
    by_atoms = [match(one, other) for other in others]
    found["stability"] = Score(sum(m.mean for m in by_atoms) / n, n=n)
    encoders = [getattr(d, "W_enc", None) for d in (case.dictionary, *case.seeds)]
    if any(W is None for W in encoders):
        found["shared"] = undefined("it has no encoder rows")
        return found
    mine, *theirs = (W.detach() for W in encoders if W is not None)
    shares = []
    for pairs, W in zip(by_atoms, theirs, strict=True):
        twin = match(mine, W)
        partner = torch.full((len(mine),), -1)
        close = torch.zeros(len(mine), dtype=torch.bool)
        partner[twin.a], close[twin.a] = twin.b, twin.cosine > SHARED
        both = (partner[pairs.a] == pairs.b) & close[pairs.a] & (pairs.cosine > SHARED)
        shares.append(float(both.double().sum()) / len(mine))
    found["shared"] = Score(sum(shares) / n, n=n)
    return found
