"""Markdown that is also readable in a terminal, and figures with their ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median, quantiles


def table(title: str, columns: Sequence[str], lines: Iterable[Iterable[str]], texts: int = 2) -> str:
    """Return a table under its title; the columns after the first few, which hold text, are for figures."""
    head = [f"### {title}\n", line(columns)]
    head.append(line("---" if place < texts else "---:" for place in range(len(columns))))
    return "\n".join([*head, *map(line, lines)])


def line(values: Iterable[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(values) + " |"


def ratio(values: Sequence[float]) -> str:
    """Return ratios, with a digit more if they are small."""
    return spread(values, 3 if median(values) < 0.1 else 2)


def rate(values: Sequence[float]) -> str:
    """Return figures a second."""
    return spread(values, 1 if median(values) < 100 else 0)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median and, if there is more than one value, the range."""
    figures = min(values), median(values), max(values)
    low, middle, high = (f"{figure:,.{digits}f}" for figure in figures)
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def latency(values: Iterable[float]) -> str:
    """Return the median in milliseconds; a run without a single answer has none."""
    answered = [value for value in values if value > 0]
    return f"{median(answered):.2f}" if answered else "no answer"


def rounds(number: int) -> str:
    """Return how many rounds there were, in words."""
    return f"{number} interleaved rounds" if number > 1 else "one round, **which proves nothing**"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile; of few values, the highest."""
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
