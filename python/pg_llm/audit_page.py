"""A report of the audit log as one HTML page: charts in SVG, no script, nothing that is loaded from elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

#: Titles and parts of the summary, each with a chart of bars.
CHARTS = (("By action", "actions"), ("By user", "users"), ("By type of object", "object_types"), ("By address", "addresses"))

WIDTH, HEIGHT = 960, 220
BAR, LABEL, NUMBER, WIDEST = 24, 300, 90, 40

_STYLE = """
:root { color-scheme: light dark; --bar: #2f6fb0; --line: #8884; --bad: #b3402a }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif } svg text { fill: currentColor }
rect { fill: var(--bar) } line { stroke: var(--line) }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line) }
td.number { text-align: right } .kind { color: var(--bad); white-space: nowrap } .facts { display: flex; gap: 3rem; flex-wrap: wrap }
.facts b { display: block; font-size: 1.4rem } td { overflow-wrap: anywhere }
"""


def page(content: dict[str, Any]) -> str:
    """Return the page."""
    summary = content["summary"]
    title = _safe(f"Audit report: {subject(content)}")
    parts = [
        f"<h1>{title}</h1>",
        _facts(content),
        f"<h2>Activity over time</h2>{_columns(_timeline(summary['activity']), 'events')}",
        f"<h2>By hour of the day (UTC)</h2>{_columns([(f'{hour:02}', events) for hour, events in enumerate(summary['by_hour_of_day'])], 'events')}",
        *(f"<h2>{name}</h2>{_bars(summary[kind])}" for name, kind in CHARTS),
        f"<h2>Findings</h2>{_findings(content['findings'])}",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def subject(content: dict[str, Any]) -> str:
    """Return whose events a report is about."""
    return "everybody" if content["user_id"] is None else str(content["user_id"])


def span(content: dict[str, Any]) -> str:
    """Return from when to when the events happened."""
    return str(content["time_range"]).strip("[]()").replace('"', "").replace(",", " to ", 1)


def in_words(finding: dict[str, Any]) -> str:
    """Return a finding as a sentence."""
    evidence = finding["evidence"]
    if finding["kind"] == "rate":
        return f"{evidence['events']} events in an hour, where {evidence['mean']} are usual ({finding['score']:.1f} standard deviations)"
    what = finding["kind"].removeprefix("first ")
    return f"first {what} {evidence['value']}, {evidence['events']} times, after {evidence['events_before']} events without"


def _facts(content: dict[str, Any]) -> str:
    summary = content["summary"]
    facts = (
        (f"{content['event_count']:,}", "events"),
        (f"{_distinct(summary['users']):,}", "users"),
        (f"{_distinct(summary['actions']):,}", "actions"),
        (f"{len(content['findings']):,}", "findings"),
    )
    shown = "".join(f"<div><b>{number}</b>{name}</div>" for number, name in facts)
    return f'<div class="facts">{shown}</div><p>{_safe(span(content))}</p>'


def _distinct(top: dict[str, Any]) -> int:
    return len(top["top"]) + int(top["others"])


def _timeline(activity: dict[str, Any]) -> list[tuple[str, int]]:
    """Return a label and a number for each step of time, those without events too."""
    step, points = activity["seconds"], dict(activity["points"])
    if not points:
        return []
    first, last = min(points), max(points)
    steps = range(first, last + 1, step)
    if len(steps) > 2 * WIDTH:
        steps = range(first, last + 1, (last - first) // WIDTH + 1)
    form = "%Y-%m-%d %H:%M" if step < 86_400 else "%Y-%m-%d"
    return [((_EPOCH + timedelta(seconds=at)).strftime(form) if at < _LATEST else str(at), points.get(at, 0)) for at in steps]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = 253_402_300_800


def _columns(points: list[tuple[str, int]], unit: str) -> str:
    if not points:
        return "<p>None.</p>"
    most = max(number for _, number in points) or 1
    step = min(WIDTH / len(points), WIDEST)
    shapes = []
    for position, (label, number) in enumerate(points):
        height = number / most * HEIGHT
        shapes.append(
            f'<rect x="{position * step:.2f}" y="{HEIGHT - height + 20:.2f}" width="{max(step - 1, 0.5):.2f}" height="{height:.2f}">'
            f"<title>{_safe(label)}: {number:,} {unit}</title></rect>"
        )
    foot = HEIGHT + 38
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 44}" role="img" aria-label="{unit} over time">'
        f'<text x="0" y="14">{most:,} {unit}</text><line x1="0" y1="{HEIGHT + 20}" x2="{WIDTH}" y2="{HEIGHT + 20}"/>{"".join(shapes)}'
        f'<text x="0" y="{foot}">{_safe(points[0][0])}</text>{_last_label(points, step, foot)}</svg>'
    )


def _last_label(points: list[tuple[str, int]], step: float, foot: int) -> str:
    # Beside few columns it would run into the first label.
    return f'<text x="{max(len(points) * step, 300):.2f}" y="{foot}" text-anchor="end">{_safe(points[-1][0])}</text>' if len(points) > 1 else ""


def _bars(top: dict[str, Any]) -> str:
    rows = [(each["name"], each["events"]) for each in top["top"]]
    if top["others"]:
        rows.append((f"({top['others']} others)", top["events_of_others"]))
    if not rows:
        return "<p>None.</p>"
    most = max(events for _, events in rows) or 1
    shapes = []
    for position, (name, events) in enumerate(rows):
        width, y = events / most * (WIDTH - LABEL - NUMBER), position * BAR
        short = name if len(name) <= 40 else name[:39] + "…"
        shapes.append(
            f'<g><title>{_safe(name)}: {events:,} events</title><text x="{LABEL - 8}" y="{y + 17}" text-anchor="end">{_safe(short)}</text>'
            f'<rect x="{LABEL}" y="{y + 4}" width="{max(width, 1):.2f}" height="{BAR - 8}"/>'
            f'<text x="{LABEL + width + 6:.2f}" y="{y + 17}">{events:,}</text></g>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {len(rows) * BAR}" role="img" aria-label="events by name">{"".join(shapes)}</svg>'


def _findings(findings: list[dict[str, Any]]) -> str:
    if not findings:
        return "<p>Nothing unusual.</p>"
    rows = (
        f'<tr><td>{_safe(each["at"])}</td><td>{_safe(each["tenant_id"])}</td><td>{_safe(each["user_id"])}</td>'
        f'<td class="kind">{_safe(each["kind"])}</td><td>{_safe(in_words(each))}</td><td class="number">{each["score"]:,.1f}</td></tr>'
        for each in findings
    )
    head = "".join(f"<th>{name}</th>" for name in ("when", "tenant", "user", "what", "evidence", "score"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _safe(text: Any) -> str:
    """Return text that is nothing but text in HTML and in attributes, with a mark for each character that cannot be seen or turns others round."""
    return escape("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)))
