"""What users do for the first time although they seldom do anything new, and hours in which they do far more than at that hour of other days."""

from __future__ import annotations

import json
from collections.abc import Iterator
from heapq import nlargest
from itertools import groupby
from math import sqrt
from typing import Any, NamedTuple

from . import spi

#: Fewer events than these tell nothing about a user's habits.
LEAST_EVENTS = 20

#: The first of its kind counts when at most one event in so many was the only one of its kind before (Good 1953: how likely the next is new).
RARITY = 20

#: An hour counts when it has so many events, and so many standard deviations more than the user's hours have at that time of day.
LEAST_RATE, DEVIATIONS = 10, 4.0

#: Findings that are returned, most unusual first; firsts of one user and kind that are looked at.
MOST, MOST_FIRSTS = 1_000, 100

_WINDOW = spi.plan(
    """
    select
        w.ends > w.begins and w.begins - $3::interval < w.begins as is_right,
        w.begins::text,
        w.ends::text,
        (w.begins - $3::interval)::text as earlier,
        greatest(1, extract(epoch from $3::interval) / 86400)::double precision as days
    from (select coalesce($1, now() - interval '1 day') as begins, coalesce($2, now()) as ends) w
    """,
    "timestamptz", "timestamptz", "interval",
)  # fmt: skip

_FIRSTS = spi.plan(
    """
    select
        a.tenant_id,
        a.user_id,
        v.kind,
        v.value,
        count(*) filter (where a."timestamp" < $1) as before,
        count(*) filter (where a."timestamp" >= $1) as events,
        (min(a."timestamp") filter (where a."timestamp" >= $1))::text as at
    from llm.audit_log a
    cross join lateral (
        values ('first action', a.action), ('first address', host(a.client_address)), ('first object', a.object_type || ' ' || a.object_id)
    ) v (kind, value)
    where a."timestamp" >= $2
        and a."timestamp" < $3
        and v.value is not null
    group by a.tenant_id, a.user_id, v.kind, v.value
    order by a.tenant_id, a.user_id, v.kind
    """,
    "timestamptz", "timestamptz", "timestamptz",
)  # fmt: skip

_RATES = spi.plan(
    """
    select
        h.tenant_id,
        h.user_id,
        extract(hour from h.hour at time zone 'UTC')::integer as hour_of_day,
        h.hour >= date_trunc('hour', $1, 'UTC') as is_now,
        h.hour::text as at,
        h.events
    from (
        select a.tenant_id, a.user_id, date_trunc('hour', a."timestamp", 'UTC') as hour, count(*) as events
        from llm.audit_log a
        where a."timestamp" >= $2
            and a."timestamp" < $3
        group by 1, 2, 3
    ) h
    order by 1, 2, 3
    """,
    "timestamptz", "timestamptz", "timestamptz",
)  # fmt: skip


class Anomaly(NamedTuple):
    """An llm.audit_anomaly; evidence is JSON text."""

    tenant_id: str
    user_id: str
    kind: str
    at: str
    score: float
    evidence: str


def in_window(begins: str | None, ends: str | None) -> list[Anomaly]:
    """Return the anomalies of a report's window."""
    return anomalies(begins, ends, "30 days")


def anomalies(begins: str | None, ends: str | None, history: str | None) -> list[Anomaly]:
    """Return what was unusual, most unusual first."""
    window = _WINDOW.row(begins, ends, history)
    if not window["is_right"]:
        raise spi.InvalidParameter(
            f"there is no time from {window['begins']} to {window['ends']}, or none before it",
            hint="p_from is before p_to, and p_history is positive.",
        )
    limits = window["begins"], window["earlier"], window["ends"]
    found = (*_firsts(_FIRSTS.stream(*limits)), *_rates(_RATES.stream(*limits), window["days"]))
    return nlargest(MOST, found, key=lambda anomaly: anomaly.score)


def _firsts(rows: Iterator[dict[str, Any]]) -> Iterator[Anomaly]:
    for (tenant_id, user_id, kind), values in groupby(rows, key=lambda row: (row["tenant_id"], row["user_id"], row["kind"])):
        before = once = 0
        new: list[dict[str, Any]] = []
        for row in values:
            before += row["before"]
            once += row["before"] == 1
            if not row["before"] and len(new) < MOST_FIRSTS:
                new.append(row)
        if before < LEAST_EVENTS or once * RARITY > before:
            continue
        for row in new:
            evidence = {"value": row["value"], "events": row["events"], "events_before": before, "only_once_before": once}
            yield Anomaly(tenant_id, user_id, kind, row["at"], before / (once + 1), json.dumps(evidence))


def _rates(rows: Iterator[dict[str, Any]], days: float) -> Iterator[Anomaly]:
    """Yield hours that exceed what the user's own hours at that time of day suggest; those without events count as well."""
    for (tenant_id, user_id), hours in groupby(rows, key=lambda row: (row["tenant_id"], row["user_id"])):
        total = 0
        sums, squares = [0] * 24, [0] * 24
        now: list[dict[str, Any]] = []
        for row in hours:
            if row["is_now"]:
                now.append(row)
            else:
                total += row["events"]
                sums[row["hour_of_day"]] += row["events"]
                squares[row["hour_of_day"]] += row["events"] ** 2
        if total < LEAST_EVENTS:
            continue
        for row in now:
            mean = sums[row["hour_of_day"]] / days
            # Counts scatter at least as those of Poisson, whose variance is the mean.
            deviation = sqrt(max(squares[row["hour_of_day"]] / days - mean**2, mean, 1))
            score = (row["events"] - mean) / deviation
            if row["events"] >= LEAST_RATE and score >= DEVIATIONS:
                evidence = {"events": row["events"], "mean": round(mean, 2), "deviation": round(deviation, 2), "days": round(days)}
                yield Anomaly(tenant_id, user_id, "rate", row["at"], score, json.dumps(evidence))
