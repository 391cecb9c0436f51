"""What the model still knows when its site gives the reconstruction: `splice` as scores."""

from vision_sae.measures.case import Case
from vision_sae.measures.score import Score, Scores, scored


def splicing(case: Case) -> Scores:
    """zero_shot: top-1 accuracy with x_hat in the place of x; zero_shot_kl: mean KL in nats from

    the untouched model's class probabilities; zero_shot_recovered = (accuracy - with the mean) /
    (untouched - with the mean). See `measures.splice`. n: images.
    """
    found = case.spliced
    assert found is not None
    n = found.images
    return {
        "zero_shot": Score(found.spliced.accuracy, n=n),
        "zero_shot_kl": Score(found.spliced.kl, n=n),
        "zero_shot_recovered": scored(
            found.recovered(), "the mean in its place does no harm, so nothing is to recover", n=n
        ),
    }
