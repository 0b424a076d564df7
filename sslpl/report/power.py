"""Computes the power of the paired t test, and how many pairs it needs to tell two methods apart."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit
from scipy.stats import nct

from sslpl.report.statistics import SIGNIFICANT, Array

POWER = 0.8
EXTRA_PAIRS = 10  # the t test needs at most this many pairs more than the normal approximation says


def paired_power(effect: ArrayLike, n: ArrayLike) -> Array:
    """Returns the probability that a two-sided paired t test of n pairs at 5% rejects, for a true effect d_z.

    Under the alternative, t has a noncentral distribution with n - 1 degrees of freedom and noncentrality
    d_z sqrt(n) (Cohen 1988).
    """
    pairs, shift = np.asarray(n, float), np.abs(effect) * np.sqrt(n)
    critical = stdtrit(pairs - 1, 1 - SIGNIFICANT / 2)
    above, below = (nct.sf(critical, pairs - 1, sign * shift) for sign in (1, -1))  # nct.cdf(-critical) may be NaN
    return np.asarray(above + below)


def pairs_needed(effect: ArrayLike) -> Array:
    """Returns the smallest number of pairs, 2 or more, that gives the paired t test 80% power for each effect d_z.

    Infinity for an effect of zero, NaN for NaN.
    """
    size = np.minimum(np.abs(np.asarray(effect, float)), 20.0)  # larger effects need two pairs, too
    found = np.where(np.isnan(size), np.nan, np.inf)
    solvable = size > 0
    normal = ((ndtri(1 - SIGNIFICANT / 2) + ndtri(POWER)) / size[solvable]) ** 2  # too few: the t test needs more
    candidates = np.maximum(np.floor(normal), 2)[:, None] + np.arange(EXTRA_PAIRS)
    enough = paired_power(size[solvable, None], candidates) >= POWER
    found[solvable] = candidates[np.arange(len(candidates)), enough.argmax(axis=1)]
    return found
