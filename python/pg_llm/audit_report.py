"""Analyses of the audit log, and reports of them as JSON, text and HTML."""

from __future__ import annotations

import json
from typing import Any

from . import audit_anomaly, audit_page, spi

#: Actions, users, object types and addresses that an analysis names; the rest is counted together.
MOST = 20

#: Points of the activity over time: at most so many hours, else days, else months.
MOST_HOURS, MOST_DAYS = 24 * 14, 400

FORMATS = ("json", "text", "html")

_REQUIRE_STORAGE = spi.plan("select llm._require_storage()")

#: One pass over the events. What GROUP BY keeps goes to disk when it is more than work_mem.
_COUNTS = spi.plan(
    """
    select
        case grouping(a.action, a.user_id, a.object_type, a.client_address, a.hour)
            when 15 then 'actions' when 23 then 'users' when 27 then 'object_types' when 29 then 'addresses' when 30 then 'hours' else 'all'
        end as kind,
        coalesce(a.action, a.user_id, a.object_type, host(a.client_address), extract(epoch from a.hour)::bigint::text) as name,
        count(*) as events,
        min(a."timestamp")::text as first,
        max(a."timestamp")::text as last
    from (
        select e.action, e.user_id, e.object_type, e.client_address, e."timestamp", date_trunc('hour', e."timestamp", 'UTC') as hour
        from llm.audit_log e
        where ($1 is null or e.user_id = $1)
            and e."timestamp" >= coalesce($2, '-infinity')
            and e."timestamp" < coalesce($3, 'infinity')
    ) a
    group by grouping sets ((), (a.action), (a.user_id), (a.object_type), (a.client_address), (a.hour))
    order by count(*) desc, 2
    """,
    "text", "timestamptz", "timestamptz",
)  # fmt: skip

_RANGE = spi.plan("select tstzrange($1::timestamptz, $2::timestamptz, '[]')::text as range", "text", "text")


class _Top:
    """The most frequent names of a kind; how many others there are, and how many events they have."""

    def __init__(self) -> None:
        self.names: list[dict[str, Any]] = []
        self.others = self.events_of_others = 0

    def add(self, name: str, events: int) -> None:
        if len(self.names) < MOST:
            self.names.append({"name": name, "events": events})
        else:
            self.others += 1
            self.events_of_others += events

    def as_json(self) -> dict[str, Any]:
        return {"top": self.names, "others": self.others, "events_of_others": self.events_of_others}


def analyze(user_id: str | None, start: str | None, end: str | None) -> tuple[Any, ...]:
    """Return an llm.audit_analysis."""
    _REQUIRE_STORAGE.rows()
    tops = {kind: _Top() for kind in ("actions", "users", "object_types", "addresses")}
    total: dict[str, Any] = {}
    activity = _Activity()
    for row in _COUNTS.stream(user_id, start, end):
        if row["kind"] == "all":
            total = row
        elif row["kind"] == "hours":
            activity.add(int(row["name"]), row["events"])
        elif row["name"] is not None:
            tops[row["kind"]].add(row["name"], row["events"])
    summary = {kind: top.as_json() for kind, top in tops.items()} | activity.as_json() | {"window": [start, end]}
    actions = [each["name"] for each in tops["actions"].names]
    time_range = _RANGE.row(total["first"], total["last"])["range"] if total["events"] else "empty"
    return user_id, total["events"], actions, time_range, json.dumps(summary)


class _Activity:
    """Events by hour, coarser when there are too many hours."""

    def __init__(self) -> None:
        self._hours: dict[int, int] = {}
        self._by_hour = [0] * 24

    def add(self, hour: int, events: int) -> None:
        self._hours[hour] = events
        self._by_hour[hour // 3600 % 24] += events

    def as_json(self) -> dict[str, Any]:
        step = 3600
        if self._hours:
            hours = (max(self._hours) - min(self._hours)) // 3600 + 1
            step = 3600 if hours <= MOST_HOURS else 86_400 * max(1, -(-hours // (24 * MOST_DAYS)))
        points: dict[int, int] = {}
        for hour, events in sorted(self._hours.items()):
            points[hour - hour % step] = points.get(hour - hour % step, 0) + events
        return {"activity": {"seconds": step, "points": [[at, events] for at, events in points.items()]}, "by_hour_of_day": self._by_hour}


def report(analysis: dict[str, Any] | None, form: str | None, start: str | None, end: str | None) -> str:
    """Return a report of an analysis, or of everybody's events in a window."""
    if form not in FORMATS:
        raise spi.InvalidParameter(f"{form} is no format of a report", hint=f"Formats are {', '.join(FORMATS)}.")
    if analysis is None:
        user_id, event_count, actions, time_range, summary = analyze(None, start, end)
    else:
        user_id, event_count, actions, time_range, summary = (analysis[name] for name in _FIELDS)
    content = {
        "user_id": user_id,
        "event_count": event_count or 0,
        "frequent_actions": actions or [],
        "time_range": time_range or "empty",
        "summary": _whole(json.loads(summary or "{}")),
        "findings": _findings(user_id, analysis is None, start, end),
    }
    return {"json": _json, "text": _text, "html": audit_page.page}[form](content)


_FIELDS = ("user_id", "event_count", "frequent_actions", "time_range", "summary")


def _findings(user_id: str | None, is_of_all: bool, start: str | None, end: str | None) -> list[dict[str, Any]]:
    found = []
    for anomaly in audit_anomaly.in_window(start, end):
        if is_of_all or user_id in (None, anomaly.user_id):
            found.append(anomaly._asdict() | {"evidence": json.loads(anomaly.evidence)})
        if len(found) == 5 * MOST:
            break
    return found


def _whole(summary: Any) -> dict[str, Any]:
    """Return a summary in which nothing is missing: that of an analysis, or whatever a caller made up."""
    given = summary if isinstance(summary, dict) else {}
    whole: dict[str, Any] = {kind: _top(given.get(kind)) for kind in ("actions", "users", "object_types", "addresses")}
    activity = given.get("activity")
    activity = activity if isinstance(activity, dict) else {}
    step = activity.get("seconds")
    points = [point for point in _list(activity.get("points")) if isinstance(point, list) and len(point) == 2 and all(map(_is_count, point))]
    hours = [events for events in _list(given.get("by_hour_of_day")) if _is_count(events)]
    return whole | {
        "activity": {"seconds": step if _is_count(step) and step else 3600, "points": points[: MOST_DAYS + MOST_HOURS]},
        "by_hour_of_day": hours if len(hours) == 24 else [0] * 24,
    }


def _top(given: Any) -> dict[str, Any]:
    given = given if isinstance(given, dict) else {}
    names = [each for each in _list(given.get("top")) if isinstance(each, dict) and _is_count(each.get("events"))]
    others = {name: given[name] if _is_count(given.get(name)) else 0 for name in ("others", "events_of_others")}
    return {"top": [{"name": str(each.get("name")), "events": each["events"]} for each in names[:MOST]]} | others


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**53


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content)


def _text(content: dict[str, Any]) -> str:
    lines = [f"Audit report: {audit_page.subject(content)}", f"{content['event_count']:,} events, {audit_page.span(content)}", ""]
    for title, kind in audit_page.CHARTS:
        top = content["summary"][kind]
        lines += [f"{title}:", *(f"{each['events']:>12,}  {_one_line(each['name'])}" for each in top["top"])]
        lines += [f"{top['events_of_others']:>12,}  ({top['others']} others)"] if top["others"] else []
        lines.append("")
    lines.append(f"Findings: {len(content['findings']) or 'none'}")
    lines += [_one_line(f"  {each['at']}  {each['user_id']}: {audit_page.in_words(each)}") for each in content["findings"]]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
