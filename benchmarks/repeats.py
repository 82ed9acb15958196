"""What a search costs that is repeated with other seeds until it has found something. Imports nothing of dux."""

import numpy as np


def expected(costs: np.ndarray, hits: np.ndarray) -> tuple[float, float, float]:
    """All that was spent over the number of runs that found something, with the bootstrap's 95 % interval over runs.

    Args:
        costs: of each run, until it found something or ended, [N].
        hits: whether it found something, [N].
    """
    drawn = np.random.default_rng(0).integers(len(costs), size=(1000, len(costs)))
    with np.errstate(divide="ignore"):
        again = costs[drawn].sum(1) / hits[drawn].sum(1)
    mean = costs.sum() / hits.sum() if hits.any() else np.inf
    low, high = np.quantile(again, [0.025, 0.975], method="nearest")
    return float(mean), float(low), float(high)
