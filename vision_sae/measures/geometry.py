"""How a dictionary's atoms lie to each other."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.measures.case import Case
from vision_sae.measures.score import Score, Scores, undefined


def geometry(case: Case) -> Scores:
    """nonorthogonality = mean over pairs i != j of cos(a_i, a_j)^2 (MSAE, arXiv 2502.20578).

    n: atoms; those of norm 0 have no direction and are left out. 0 for orthogonal atoms, 1/d for
    random ones.
    """
    atoms = case.dictionary.W_dec.detach()
    atoms = normalize(atoms[atoms.norm(dim=1) > 0].double(), dim=1)
    if len(atoms) < 2:
        why = f"two atoms are needed that are not zero; there are {len(atoms)}"
        return {"nonorthogonality": undefined(why)}
    return {"nonorthogonality": Score(mean_squared_cosine(atoms), n=len(atoms))}


def mean_squared_cosine(atoms: Float[Tensor, "s d"]) -> float:
    """Of all pairs of unit rows, without the s x s matrix: sum_ij (a_i . a_j)^2 = |A' A|_F^2."""
    s = len(atoms)
    own = atoms.square().sum(1).square().sum()  # the s pairs of an atom with itself
    return float(((atoms.T @ atoms).square().sum() - own).clamp(min=0) / (s * (s - 1)))
