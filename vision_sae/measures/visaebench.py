"""ViSAEBench's numbers under its names, with its settings, to be set beside published ones.

visaebench 0.1.0 on PyPI. They are not the better definitions: where ours differ, the docstrings say
how. M3, M4, M6 and M7 need labels and are in the rooms that measure labels.
"""

from vision_sae.measures.case import Case
from vision_sae.measures.monosemanticity import ms_of_top
from vision_sae.measures.score import Score, Scores, scored
from vision_sae.measures.spatial import morans_of_latents


def spatial(case: Case) -> Scores:
    """M1, feature_localization: as `spatial.spatial`, whose limits are ViSAEBench's. n: latents."""
    found = morans_of_latents(case.on_test)
    return {"visaebench.spatial": Score(float(found.mean()), n=len(found))}


def fvu(case: Case) -> Scores:
    """M2: var(x - x_hat) / var(x), each over all numbers of all rows together.

    So a constant error is not counted, and how far the dimensions' means lie apart is counted as
    variance to be explained: smaller than our fvu. n: rows.
    """
    x = case.test.rows.double()
    error = x - case.on_test.x_hat.double()
    spread = x.var(correction=0)
    value = float(error.var(correction=0) / spread) if spread > 0 else float("nan")
    return {"visaebench.fvu": scored(value, "the activations are constant", n=len(x))}


def monosemanticity(case: Case) -> Scores:
    """M5: MonoSemanticity over each latent's 16 strongest images, at most 1,000 latents.

    The weights are scaled over all images as in `monosemanticity.monosemanticity`; pairs that are
    not among the strongest do not count, so it is larger. n: latents.
    """
    embeddings = case.test.embeddings
    assert embeddings is not None
    found = ms_of_top(case.on_test.image_codes, embeddings)
    value = float(found.mean()) if len(found) else float("nan")
    why = "no latent fires on two images of the sample"
    return {"visaebench.monosemanticity": scored(value, why, n=len(found))}
