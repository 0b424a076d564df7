"""Forecasts of the learning curve: an inverse power law with its uncertainty, fitted to the cycles of a run so far."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_CYCLES = 4  # which a forecast needs
LEVEL = 0.8  # probability that the interval holds the accuracy
ASYMPTOTES = np.linspace(0, 1, 21)  # errors after infinitely many labels, as shares of the lowest error so far
EXPONENTS = np.geomspace(0.1, 3, 21)
TYPICAL_EXPONENT, EXPONENT_SPREAD = 0.7, 0.7  # a log-normal prior
RECENCY = 0.5  # power of its number of labels by which a cycle counts
PRIOR_CYCLES = 4  # as many cycles' worth of evidence that the error varies as on independent test images
# The noise is multiplied by the first and, in quadrature, by the second for each factor e of further labels. Both were
# chosen on runs so that the interval of 80% is one (benchmarks/forecast.py measures it).
NOISE, DRIFT = 0.75, 1.0
DRAWS = 2000
LOOKS = 100  # numbers of labels at which a target is looked for


class Forecast(NamedTuple):
    """The accuracy that is expected with a number of labels, and its interval of 80%."""

    labeled: int
    accuracy: float  # median
    low: float
    high: float


class TargetForecast(NamedTuple):
    """The number of labels with which an accuracy is expected to be reached; None if not within the pool."""

    target: float
    labeled: int | None
    earliest: int | None  # where the upper end of the interval reaches it
    latest: int | None  # where the lower end does


class PowerLaws(NamedTuple):
    """Draws from the posterior of error curves asymptote + factor (labels / last labels)^-exponent."""

    asymptote: Array  # [draws]
    factor: Array
    exponent: Array
    deviation: Array  # of the noise, with its random sign and size
    certainty: Array  # sum of the squared regressor
    last: float  # number of labels


def fit_power_laws(labeled: Sequence[float], accuracy: Sequence[float], test_images: int) -> PowerLaws:
    """Fits error curves to a run's learning curve: a grid of asymptotes and exponents, the factor by least squares.

    Inverse power laws describe learning curves of classifiers (Cortes et al. 1993; Figueroa et al. 2012); the prior
    and the weights, by which the steep first cycles count less, are ours.
    """
    n, error = np.asarray(labeled, dtype=float), 1 - np.asarray(accuracy, dtype=float)
    weight = (n / n[-1]) ** RECENCY
    asymptote = (ASYMPTOTES * max(error.min(), 1e-3))[:, None, None]
    x = (n / n[-1]) ** -EXPONENTS[:, None]  # [exponents, cycles]
    certainty = (weight * x * x).sum(axis=-1)
    factor = np.maximum((weight * x * (error - asymptote)).sum(axis=-1) / certainty, 0)
    residual = (weight * (error - asymptote - factor[..., None] * x) ** 2).sum(axis=-1)
    binomial = max(error[-1] * (1 - error[-1]), 1 / test_images) / test_images
    freedom = PRIOR_CYCLES + max(weight.sum() - 1, 0)
    evidence = PRIOR_CYCLES * binomial + residual
    prior = -0.5 * ((np.log(EXPONENTS) - np.log(TYPICAL_EXPONENT)) / EXPONENT_SPREAD) ** 2
    log_weight = -(PRIOR_CYCLES + weight.sum() - 1) / 2 * np.log(evidence) - 0.5 * np.log(certainty) + prior
    probability = np.exp(log_weight - log_weight.max())
    random = np.random.default_rng(0)
    drawn = random.choice(probability.size, DRAWS, p=(probability / probability.sum()).ravel())
    parts = (asymptote[..., 0], factor, EXPONENTS, np.sqrt(evidence / freedom), certainty)
    level, slope, exponent, deviation, certain = (
        np.broadcast_to(part, probability.shape).ravel()[drawn] for part in parts
    )
    return PowerLaws(level, slope, exponent, deviation * random.standard_t(freedom, DRAWS), certain, float(n[-1]))


def accuracies_at(laws: PowerLaws, labeled: float) -> Array:
    """Returns draws of the accuracy that is measured with a number of labels."""
    x, distance = (labeled / laws.last) ** -laws.exponent, np.log(labeled / laws.last)
    scale = np.sqrt((1 + x * x / laws.certainty) * (NOISE**2 + (DRIFT * distance) ** 2))
    accuracy: Array = 1 - laws.asymptote - laws.factor * x - scale * laws.deviation
    return accuracy.clip(0, 1)


def forecast_at(laws: PowerLaws, labeled: float) -> Forecast:
    """Returns the forecast for a number of labels."""
    low, median, high = np.quantile(accuracies_at(laws, labeled), (0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2))
    return Forecast(int(labeled), float(median), float(low), float(high))


def forecast_batches(
    labeled: Sequence[float], accuracy: Sequence[float], test_images: int, per_cycle: int, batches: int
) -> list[Forecast]:
    """Returns a forecast for each of the next batches; empty before MIN_CYCLES cycles."""
    if len(labeled) < MIN_CYCLES:
        return []
    laws = fit_power_laws(labeled, accuracy, test_images)
    return [forecast_at(laws, labeled[-1] + batch * per_cycle) for batch in range(1, batches + 1)]


def forecast_target(
    labeled: Sequence[float], accuracy: Sequence[float], test_images: int, per_cycle: int, pool: int, target: float
) -> TargetForecast | None:
    """Returns with how many labels an accuracy is expected, in whole batches up to the pool; None before MIN_CYCLES.

    Of more than LOOKS batches, those far ahead are looked at in ever larger steps.
    """
    if len(labeled) < MIN_CYCLES:
        return None
    laws = fit_power_laws(labeled, accuracy, test_images)
    batches = int(pool - labeled[-1]) // per_cycle
    ahead = np.unique(np.geomspace(1, batches, LOOKS).astype(int)) if batches > LOOKS else np.arange(1, batches + 1)
    forecasts = [forecast_at(laws, labeled[-1] + int(batch) * per_cycle) for batch in ahead]

    def first(part: str) -> int | None:
        return next((found.labeled for found in forecasts if getattr(found, part) >= target), None)

    return TargetForecast(target, first("accuracy"), first("high"), first("low"))


def expected_gain(labeled: Sequence[float], accuracy: Sequence[float], test_images: int, per_cycle: int) -> float:
    """Returns how much higher the fitted curve's median is after the next batch; infinite before MIN_CYCLES cycles."""
    if len(labeled) < MIN_CYCLES:
        return float("inf")
    laws = fit_power_laws(labeled, accuracy, test_images)
    next_x = ((labeled[-1] + per_cycle) / laws.last) ** -laws.exponent
    return float(np.median(laws.factor * (1 - next_x)))


def forecast_line(forecasts: Sequence[Forecast], target: TargetForecast | None) -> str:
    """Describes the forecast of the next batch, and that of the target, in a line; empty without a forecast."""
    if not forecasts:
        return ""
    after = forecasts[0]
    parts = [f"forecast {after.accuracy:.1%} ({after.low:.1%} to {after.high:.1%}) with {after.labeled:,}"]
    if target is not None:
        ends = [f"{end:,}" if end is not None else "beyond the pool" for end in (target.earliest, target.latest)]
        when = f"with {target.labeled:,}" if target.labeled is not None else "not within the pool"
        parts.append(f"{target.target:.1%} {when} ({' to '.join(ends)})")
    return "; ".join(parts)


def forecast_summary(forecasts: Sequence[Forecast], target: TargetForecast | None) -> dict[str, Any]:
    """Returns the forecasts for summary.json; empty without one."""
    found: dict[str, Any] = {"forecast": [forecast._asdict() for forecast in forecasts]} if forecasts else {}
    return found | ({"target": target._asdict()} if target is not None else {})
