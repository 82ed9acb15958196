"""How alike two orderings are, for many resamples at once.

A resample is a row of weights: how often each of the N items was drawn.
Shape suffixes: R resamples, B of them at a time, N items, U different values.
"""

import numpy as np

_BLOCK = 2**21  # numbers of one array at a time: memory stays small whatever the number of resamples


def kendall_tau(x_N: np.ndarray, y_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Kendall's tau-b [R] (Kendall 1945, Biometrika 33): concordant minus discordant pairs over the geometric mean of
    the pairs that x and y do not tie. NaN where either is constant.

    Copies of one item are tied with each other in both, as tau-b has it.
    """
    # Items come in rising order of x. Those of smaller x are in a Fenwick tree over the ranks of y (Fenwick 1994,
    # Softw. Pract. Exp. 24), one tree a resample side by side, so n log n steps serve all resamples at once.
    place_N = np.unique(y_N, return_inverse=True)[1] + 1
    size = int(place_N.max())
    below, above = _paths(size)
    weights_NR = np.ascontiguousarray(weights_RN.T, dtype=np.int32)
    tree_UR = np.zeros((size + 1, weights_NR.shape[1]), dtype=np.int32)
    inside_R = np.zeros(weights_NR.shape[1], dtype=np.int32)
    score_R = np.zeros(weights_NR.shape[1])
    order_N = np.argsort(x_N, kind="stable")
    for group in np.split(order_N, np.flatnonzero(np.diff(np.unique(x_N, return_inverse=True)[1][order_N])) + 1):
        for item in group:  # first asked, then put in: items of equal x are tied
            less_R, at_most_R = (
                tree_UR[below[place]].sum(0, dtype=np.int32) for place in (place_N[item] - 1, place_N[item])
            )
            score_R += weights_NR[item] * (less_R + at_most_R - inside_R)
        for item in group:
            tree_UR[above[place_N[item]]] += weights_NR[item]
            inside_R += weights_NR[item]
    untied_x, untied_y = _untied_pairs(x_N, weights_NR), _untied_pairs(y_N, weights_NR)
    return _divide(score_R, np.sqrt(untied_x * untied_y))


def spearman(x_N: np.ndarray, y_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Spearman's rho [R]: Pearson's correlation of the ranks, ties at their mean rank. NaN where either is constant."""
    return np.concatenate([_spearman(x_N, y_N, weights_NB) for weights_NB in _blocks(weights_RN)])


def _spearman(x_N: np.ndarray, y_N: np.ndarray, weights_NB: np.ndarray) -> np.ndarray:
    ranks = []
    for values in (x_N, y_N):
        above, equal = _counts(values, weights_NB)
        ranks.append(above + (equal + 1) / 2)
    total = weights_NB.sum(0)
    a, b = (rank - (weights_NB * rank).sum(0) / total for rank in ranks)
    product, square_a, square_b = ((weights_NB * p * q).sum(0) for p, q in ((a, b), (a, a), (b, b)))
    return np.clip(_divide(product, np.sqrt(square_a * square_b)), -1, 1)


def top_k_recall(x_N: np.ndarray, y_N: np.ndarray, k: int, weights_RN: np.ndarray) -> np.ndarray:
    """Share of y's k best that are among x's k best [R].

    Items of y that tie with the k-th belong to the best, and x may name as many. Where x ties at its own border,
    it counts by the share of the tied that fit in: a constant x recalls what chance does.
    """
    return np.concatenate([_recall(x_N, y_N, k, weights_NB) for weights_NB in _blocks(weights_RN)])


def _recall(x_N: np.ndarray, y_N: np.ndarray, k: int, weights_NB: np.ndarray) -> np.ndarray:
    above_x, equal_x = _counts(x_N, weights_NB)
    above_y, _ = _counts(y_N, weights_NB)
    best = weights_NB * (above_y < k)
    size = best.sum(0)
    named = np.clip((size - above_x) / np.maximum(equal_x, 1), 0, 1)
    return _divide((best * named).sum(0), size)


def resamples(items: int, count: int, seed: int) -> np.ndarray:
    """Weights [R, N] of `count` bootstrap resamples of `items` items."""
    return np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=count)


def _paths(size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Of each place 0..size of a Fenwick tree: the nodes whose sum is that of places 1..place, and the nodes that
    count it."""
    below: list[list[int]] = [[]]
    above: list[list[int]] = [[] for _ in range(size + 1)]
    for place in range(1, size + 1):
        below.append([place, *below[place & (place - 1)]])
    for place in range(size, 0, -1):
        parent = place + (place & -place)
        above[place] = [place, *(above[parent] if parent <= size else [])]
    return below, above


def _blocks(weights_RN: np.ndarray) -> list[np.ndarray]:
    """Some resamples at a time, [N, B]: one item's numbers lie side by side."""
    parts = np.array_split(weights_RN, -(-weights_RN.size // _BLOCK))
    return [np.ascontiguousarray(part.T, dtype=np.int32) for part in parts if len(part)]


def _counts(values_N: np.ndarray, weights_NB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many drawn items are greater than each item, and how many equal it (itself included): two of [N, B]."""
    grouped_UB, inverse_N = _grouped(values_N, weights_NB)
    below_or_equal = grouped_UB.cumsum(0, dtype=np.int32)
    above = below_or_equal[-1] - below_or_equal
    return above[inverse_N], grouped_UB[inverse_N]


def _untied_pairs(values_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Unordered pairs of drawn items with different values [R]."""
    grouped_UR, _ = _grouped(values_N, weights_NR)
    squares_R = sum((row_R.astype(np.float64) ** 2 for row_R in grouped_UR), np.zeros(weights_NR.shape[1]))
    return (weights_NR.sum(0, dtype=np.float64) ** 2 - squares_R) / 2


def _grouped(values_N: np.ndarray, weights_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each different value was drawn, in rising order, [U, R]; and each item's place among them [N]."""
    _, inverse_N, sizes_U = np.unique(values_N, return_inverse=True, return_counts=True)
    order = np.argsort(inverse_N, kind="stable")
    starts = np.cumsum(sizes_U) - sizes_U
    return np.add.reduceat(weights_NR[order], starts, axis=0, dtype=np.int32), inverse_N


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
