"""The dictionary that the labels would give: an atom per factor value, and codes that say it.

Makelov, Lange & Nanda 2024, "Towards Principled Evaluations of Sparse Autoencoders for
Interpretability and Control" (arXiv 2405.08366). It is what an SAE is measured against.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.measures.labelled.rows import ImageRows
from vision_sae.measures.labelled.task import Task
from vision_sae.sparse.codes import Codes


def supervised(
    rows: ImageRows, task: Task, *, fit: Literal["means", "least-squares"] = "least-squares"
) -> ImageRows:
    """The same images with codes 1 where they have a value, and atoms from the train images.

    means: u_v = mean(x of the images with v) - mean(x), as published; values that overlap
    (a category and its subcategory) are then counted twice. least-squares: the atoms that together
    reconstruct x best. x_hat = mean + sum of the atoms of an image's values.
    """
    hot = task.members.float()
    middle = rows.x[task.train].mean(0)
    centred = rows.x - middle
    atoms = _atoms(centred[task.train], hot[task.train], fit)
    codes = Codes.of_dense(hot)
    return ImageRows(rows.x, middle + hot @ atoms, codes, codes, atoms)


def _atoms(x: Float[Tensor, "m d"], hot: Float[Tensor, "m v"], fit: str) -> Float[Tensor, "v d"]:
    if fit == "means":
        return (hot.T @ x) / hot.sum(0)[:, None]
    gram = (hot.T @ hot).double()
    gram += torch.eye(len(gram)).double()  # a value's images shall outweigh a penalty of one
    solved: Tensor = torch.linalg.solve(gram, (hot.T @ x).double()).float()
    return solved
