"""Numbers of a benchmark: what is averaged over what, with bootstrap intervals.

A number is the mean of its parts; a part is the ratio of two sums over rows, written as a list of
(unit, numerator, denominator).  That is general enough for all eleven benchmarks, and quick to compute again
for a thousand resamples of whole units.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.items import Benchmark

Part = list[tuple[str, float, float]]           # (unit, numerator, denominator) of each row


def mean(records: list[dict]) -> Part:
    return [(r["unit"], r["right"], 1.0) for r in records]


def group_by(records: list[dict], *keys: str) -> dict[str, list[dict]]:
    groups = {}
    for r in records:
        groups.setdefault(tuple(r["keys"][key] for key in keys), []).append(r)
    return {"/".join(key): groups[key] for key in sorted(groups)}


def by_unit(records: list[dict]) -> dict[str, list[dict]]:
    return group_by([r | {"keys": r["keys"] | {"unit": r["unit"]}} for r in records], "unit")


def all_right(groups: dict[str, list[dict]]) -> Part:
    """Share of groups whose rows are ALL right."""
    return [(rs[0]["unit"], float(all(r["right"] == 1.0 for r in rs)), 1.0) for rs in groups.values()]


def mean_by(records: list[dict], key: str, prefix: str = "") -> dict[str, list[Part]]:
    """One number for each value of a key."""
    return {f"{prefix}{name}": [mean(rs)] for name, rs in group_by(records, key).items()}


def accuracy_by(**keys: str) -> Callable[[list[dict]], dict[str, list[Part]]]:
    """Of a benchmark with nothing special: accuracy, and accuracy for each value of `keys` (key=prefix)."""
    def numbers(records: list[dict]) -> dict[str, list[Part]]:
        parts = {"accuracy": [mean(records)]}
        for key, prefix in keys.items():
            parts |= mean_by(records, key, prefix)
        return parts
    return numbers


def value(parts: list[Part]) -> float | None:
    """In percent; None where nothing is counted."""
    ratios = [sum(n for _, n, _ in part) / d for part in parts if (d := sum(d for *_, d in part))]
    return 100 * sum(ratios) / len(ratios) if ratios else None


def interval(parts: list[Part], seed: int = 0, resamples: int = 1000) -> tuple[float, float] | None:
    """Bootstrap 95 % interval.  Whole units are resampled, so rows that only count together stay together."""
    if value(parts) is None:
        return None
    units = {unit: i for i, unit in enumerate(sorted({unit for part in parts for unit, *_ in part}))}
    sums = np.zeros((2, len(parts), len(units)))
    for i, part in enumerate(parts):
        for unit, numerator, denominator in part:
            sums[:, i, units[unit]] += numerator, denominator
    numerators, denominators = sums
    random, values = np.random.default_rng([seed, len(units)]), []
    for _ in range(resamples):
        weights = np.bincount(random.integers(len(units), size=len(units)), minlength=len(units))
        below = denominators @ weights
        ratios = (numerators @ weights)[below > 0] / below[below > 0]
        if len(ratios):
            values.append(100 * ratios.mean())
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def summary(benchmark: Benchmark, records: list[dict], resamples: int = 1000) -> dict:
    """-> {name: {low, high, interval}}: with all undecided items wrong, and with all of them right."""
    def numbers_with(fill: float) -> dict:
        return benchmark.numbers([r if r["right"] is not None else r | {"right": fill} for r in records])
    low, high = numbers_with(0.0), numbers_with(1.0)
    numbers = {}
    for name in low:
        ways = [low[name]] if high[name] == low[name] else [low[name], high[name]]
        ends = [end for parts in ways if (end := value(parts)) is not None]
        spans = [span for parts in ways if resamples and (span := interval(parts, resamples=resamples))]
        numbers[name] = {"low": min(ends, default=None), "high": max(ends, default=None),
                         "interval": [min(s[0] for s in spans), max(s[1] for s in spans)] if spans else None}
    return numbers
