"""Medians, percentiles and how far they can be trusted, with nothing but Python's standard library."""

import math
import random

CONFIDENCE = 0.95
RESAMPLES = 1000


def percentile(ordered, share):
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values):
    return percentile(sorted(values), 0.5)


def summary(samples):
    ordered = sorted(samples)
    return {
        "p50": percentile(ordered, 0.50),
        "p90": percentile(ordered, 0.90),
        "p99": percentile(ordered, 0.99),
        "n": len(ordered),
    }


def order_ranks(count, share, confidence=CONFIDENCE):
    """Ranks (from 1) of the two order statistics of `count` independent samples that enclose the quantile `share`,
    whatever the distribution; `None` where so few samples have no such rank. Exact, from the binomial distribution:
    David and Nagaraja, Order Statistics, 3rd edition, section 7.1.
    """
    tail = (1 - confidence) / 2
    spread = 10 * math.sqrt(count * share * (1 - share)) + 1
    first = max(0, int(count * share - spread))
    low, below = first, 0.0
    for k in range(first, count + 1):
        choose = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        below += math.exp(choose + k * math.log(share) + (count - k) * math.log1p(-share))
        if below <= tail:
            low = k + 1
        if below >= 1 - tail:
            return low or None, k + 1 if k < count else None
    return low or None, None


def quantile_interval(rounds, share, confidence=CONFIDENCE):
    """Confidence interval of a quantile over the samples of all `rounds`, each side `None` where there are too few.

    Samples of one round resemble each other. So they count as fewer: as many independent ones as would make the share
    of samples below the quantile vary as much as it does from round to round (Woodruff, JASA 47, 1952; effective
    sample size after Korn and Graubard, Survey Methodology 24, 1998).
    """
    ordered = sorted(sample for samples in rounds for sample in samples)
    count = len(ordered)
    value = percentile(ordered, share)
    below = [sum(sample <= value for sample in samples) for samples in rounds]
    part = sum(below) / count
    independent = part * (1 - part) / count
    effective = count
    if len(rounds) > 1 and independent > 0:
        errors = sum((hits - part * len(samples)) ** 2 for hits, samples in zip(below, rounds))
        between = errors * len(rounds) / (len(rounds) - 1) / count**2
        effective = max(1, int(count / max(1.0, between / independent)))
    ranks = order_ranks(effective, share, confidence)
    return tuple(None if rank is None else percentile(ordered, (rank - 1) / max(1, effective - 1)) for rank in ranks)


def with_intervals(rounds):
    """`summary` of the samples of all rounds, with the 95 % confidence interval of each percentile."""
    found = summary([sample for samples in rounds for sample in samples])
    for name, share in (("p50", 0.50), ("p90", 0.90), ("p99", 0.99)):
        found[name + "_low"], found[name + "_high"] = quantile_interval(rounds, share)
    return found


def median_interval(values, confidence=CONFIDENCE, seed=0):
    """Confidence interval of the median of values in the order of time: a bootstrap of blocks of neighbours, since what
    slows one round often slows the next (Kuensch, Annals of Statistics 17, 1989; blocks wrap around).
    """
    count = len(values)
    block = max(1, round(count ** (1 / 3)))
    around = list(values) + list(values[:block])
    draw = random.Random(seed)
    medians = []
    for _ in range(RESAMPLES):
        sample = []
        while len(sample) < count:
            start = draw.randrange(count)
            sample += around[start : start + block]
        medians.append(median(sample[:count]))
    medians.sort()
    return percentile(medians, (1 - confidence) / 2), percentile(medians, (1 + confidence) / 2)
