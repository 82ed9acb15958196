"""How alike two orderings are, for many resamples at once.

A resample is a row of weights: how often each of the N items was drawn.
Shape suffixes: R resamples, N items, U different values.
"""

import numpy as np

_BLOCK = 1024  # rows of the N x N sign matrix held at once


def kendall_tau(x_N: np.ndarray, y_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Kendall's tau-b [R] (Kendall 1945, Biometrika 33): concordant minus discordant pairs over the geometric mean of
    the pairs that x and y do not tie. NaN where either is constant.

    Copies of one item are tied with each other in both, as tau-b has it.
    """
    weights = np.asarray(weights_RN, dtype=np.float32)  # counts: whole numbers far below 2^24, so exact
    score_R = np.zeros(len(weights))
    for start in range(0, len(x_N), _BLOCK):
        part = slice(start, start + _BLOCK)
        signs = _signs(x_N[part], x_N) * _signs(y_N[part], y_N)
        score_R += np.einsum("rn,rn->r", weights @ signs.T, weights[:, part], dtype=np.float64)
    untied_x, untied_y = _untied_pairs(x_N, weights_RN), _untied_pairs(y_N, weights_RN)
    return _divide(score_R, np.sqrt(untied_x * untied_y))


def spearman(x_N: np.ndarray, y_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Spearman's rho [R]: Pearson's correlation of the ranks, ties at their mean rank. NaN where either is constant."""
    ranks = []
    for values in (x_N, y_N):
        above, equal = _counts(values, weights_RN)
        ranks.append(above + (equal + 1) / 2)
    total = weights_RN.sum(1, keepdims=True)
    a, b = (rank - (weights_RN * rank).sum(1, keepdims=True) / total for rank in ranks)
    product, square_a, square_b = ((weights_RN * p * q).sum(1) for p, q in ((a, b), (a, a), (b, b)))
    return np.clip(_divide(product, np.sqrt(square_a * square_b)), -1, 1)


def top_k_recall(x_N: np.ndarray, y_N: np.ndarray, k: int, weights_RN: np.ndarray) -> np.ndarray:
    """Share of y's k best that are among x's k best [R].

    Items of y that tie with the k-th belong to the best, and x may name as many. Where x ties at its own border,
    it counts by the share of the tied that fit in: a constant x recalls what chance does.
    """
    above_x, equal_x = _counts(x_N, weights_RN)
    above_y, _ = _counts(y_N, weights_RN)
    best = weights_RN * (above_y < k)
    size = best.sum(1, keepdims=True)
    named = np.clip((size - above_x) / np.maximum(equal_x, 1), 0, 1)
    return _divide((best * named).sum(1), size[:, 0])


def resamples(items: int, count: int, seed: int) -> np.ndarray:
    """Weights [R, N] of `count` bootstrap resamples of `items` items."""
    return np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=count)


def _signs(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    # Comparisons, since the difference of two infinities has no sign.
    greater, less = rows[:, None] > columns, rows[:, None] < columns
    return greater.astype(np.float32) - less.astype(np.float32)


def _counts(values_N: np.ndarray, weights_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many drawn items are greater than each item, and how many equal it (itself included): two of [R, N]."""
    grouped_RU, inverse_N = _grouped(values_N, weights_RN)
    below_or_equal = grouped_RU.cumsum(1)
    above = weights_RN.sum(1, keepdims=True) - below_or_equal
    return above[:, inverse_N], grouped_RU[:, inverse_N]


def _untied_pairs(values_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Ordered pairs of drawn items with different values [R]."""
    grouped_RU, _ = _grouped(values_N, weights_RN.astype(np.float64))
    return grouped_RU.sum(1) ** 2 - (grouped_RU**2).sum(1)


def _grouped(values_N: np.ndarray, weights_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each different value was drawn, in rising order, [R, U]; and each item's place among them [N]."""
    _, inverse_N, sizes_U = np.unique(values_N, return_inverse=True, return_counts=True)
    order = np.argsort(inverse_N, kind="stable")
    starts = np.cumsum(sizes_U) - sizes_U
    return np.add.reduceat(weights_RN[:, order], starts, axis=1), inverse_N


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
