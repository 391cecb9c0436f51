"""What a dictionary keeps of its rows, and how sparsely: the numbers of `metrics.Metrics`."""

from vision_sae.measures.case import BLOCK, Case
from vision_sae.measures.metrics import Running
from vision_sae.measures.score import Score, Scores, scored

CONSTANT = "the activations are constant, so there is no variance to explain"


def reconstruction(case: Case) -> Scores:
    """FVU, cosine, L0, zeros, and the shares of latents that are dead or dense, over all rows.

    fvu = sum|x - x_hat|^2 / sum|x - mean|^2, cosine = mean cos(x, x_hat), l0 = mean number of
    active latents, zeros = 1 - l0 / s (what MSAE calls sparsity), dead and dense = shares of
    latents that fire on no row, or on more than 10% of them (SAEBench: Karvonen et al. 2025,
    arXiv 2503.09532). n: rows; of dead and dense: latents.
    """
    codes, found = case.on_test.codes, case.on_test
    running = Running(found.x_hat.shape[1], codes.width)
    for rows in range(0, len(codes), BLOCK):
        part = slice(rows, rows + BLOCK)
        running.add(case.test.rows[part], found.x_hat[part], codes.rows_at(part))
    m, n, s = running.result(), len(codes), codes.width
    return {
        "fvu": scored(m.fvu, CONSTANT, n=n),
        "cosine": scored(m.cosine, "cosines are undefined: a row is NaN", n=n),
        "l0": Score(m.l0, n=n),
        "zeros": Score(1 - m.l0 / s, n=n),
        "dead": Score(m.dead, n=s),
        "dense": Score(m.dense, n=s),
    }
