"""Numbers: the intervals and standard deviations in the tables of this project."""

import statistics

import numpy as np


def bootstrap_interval(clusters: list[list], resamples: int = 2000) -> list[float]:
    """95 % bootstrap interval of a share.  Whole clusters are drawn, because values of a cluster depend on
    each other.  For a share of 0 or 1 the bootstrap has no variance: the exact binomial interval over
    clusters is returned."""
    rng, n = np.random.default_rng(0), len(clusters)
    sums, sizes = np.array([[sum(c), len(c)] for c in clusters], dtype=float).T
    if sums.sum() in (0, sizes.sum()):
        reach = 1 - 0.025 ** (1 / n)
        return [0.0, reach] if sums.sum() == 0 else [1 - reach, 1.0]
    draws = (rng.integers(0, n, n) for _ in range(resamples))
    return [float(x) for x in np.percentile([sums[d].sum() / sizes[d].sum() for d in draws], [2.5, 97.5])]


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds.

    >>> spread([0.5, 0.6, 0.7])
    '.60 ± .10'
    """
    def short(x: float) -> str:
        return f"{round(x, 2) + 0.0:.2f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.2f}"
    return f"{short(statistics.mean(values))} ± {short(statistics.stdev(values)) if len(values) > 1 else '?'}"
