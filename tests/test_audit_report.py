"""What the audit log tells: analyses, anomalies, and reports that nobody's name can break out of."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue

from tests.support import Client, Database, raises

#: Names that end a tag, an attribute, a script or a line, load something, or turn the reading round.
HOSTILE = (
    "</title><script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'><svg onload=alert(1)>", "&lt;b&gt; & <b>", "javascript:alert(1)",
    "line\nbreak\ttab", "\u202etxt.exe", "]]><!--", "{{7*7}} ${7*7} %s %n", "x" * 5000, "", " ", "é✨漢字", "http://evil.example/x.css",
)  # fmt: skip

VOID = {"meta", "br", "img", "link", "input", "hr"}


def write(client: Client, **columns: str) -> None:
    """Write rows with these expressions over i, which counts 1 to n."""
    values = {"tenant_id": "'acme'", "user_id": "'alice'", "action": "'read'", "object_type": "'doc'", "object_id": "'1'"} | columns
    count = values.pop("n", "1")
    names = ", ".join(f'"{name}"' for name in values)
    client.run(f"insert into llm.audit_log ({names}) select {', '.join(values.values())} from generate_series(1, {count}) i")


def analysis(client: Client, arguments: str = "") -> tuple[Any, ...]:
    """Return an analysis: user, events, actions, range, summary."""
    return client.row(f"select * from llm.analyze_audit_logs({arguments})")


@pytest.fixture
def filled(db: Client) -> Client:
    """A superuser's client, after two users of two tenants did something."""
    start = "'2026-03-01 08:00+00'::timestamptz"
    write(db, n="30", action="case when i % 3 = 0 then 'write' else 'read' end", timestamp=f"{start} + i * interval '10 min'")
    write(
        db,
        n="12",
        user_id="'bob'",
        tenant_id="'globex'",
        object_type="'key'",
        client_address="'10.0.0.7'",
        timestamp=f"{start} + i * interval '1 day'",
    )
    return db


def test_a_users_events_are_analyzed(filled: Client) -> None:
    user, count, actions, span, summary = analysis(filled, "'alice'")
    assert (user, count, actions) == ("alice", 30, ["read", "write"])
    assert (span.lower.isoformat(), span.upper.isoformat()) == ("2026-03-01T08:10:00+00:00", "2026-03-01T13:00:00+00:00")
    assert summary["actions"]["top"] == [{"name": "read", "events": 20}, {"name": "write", "events": 10}]
    assert summary["object_types"]["top"] == [{"name": "doc", "events": 30}]
    assert summary["activity"] == {"seconds": 3600, "points": [[1772352000 + hour * 3600, events] for hour, events in enumerate((5, 6, 6, 6, 6, 1))]}
    assert summary["by_hour_of_day"][8:14] == [5, 6, 6, 6, 6, 1]


def test_everybodys_events_are_analyzed_in_a_window(filled: Client) -> None:
    user, count, _, _, summary = analysis(filled, "p_from => '2026-03-01 12:00+00', p_to => '2026-03-03 08:00+00'")
    assert (user, count) == (None, 8)
    assert [each["name"] for each in summary["users"]["top"]] == ["alice", "bob"]
    assert summary["addresses"]["top"] == [{"name": "10.0.0.7", "events": 1}]
    assert summary["window"] == ["2026-03-01 12:00:00+00", "2026-03-03 08:00:00+00"]


def test_nothing_is_analyzed_as_nothing(db: Client) -> None:
    user, count, actions, span, summary = analysis(db, "'nobody'")
    assert (user, count, actions, span.isempty) == ("nobody", 0, [], True)
    assert summary["activity"]["points"] == []


def test_what_is_beyond_the_most_frequent_is_counted(db: Client) -> None:
    write(db, n="1000", action="'action ' || i % 50", timestamp="now() - i * interval '1 day'")
    _, count, actions, _, summary = analysis(db)
    assert (count, len(actions)) == (1000, 20)
    assert (summary["actions"]["others"], summary["actions"]["events_of_others"]) == (30, 600)
    assert summary["activity"]["seconds"] == 3 * 86_400
    assert sum(events for _, events in summary["activity"]["points"]) == 1000


def test_a_tenant_sees_its_own(filled: Client, database: Database) -> None:
    auditor = database.client("auditor")
    assert analysis(auditor)[1] == 42
    with auditor.tenant("globex"):
        assert analysis(auditor)[1] == 12
        assert analysis(auditor, "'alice'")[1] == 0
        assert json.loads(auditor.one("select llm.generate_audit_report(null, 'json', '2026-01-01', '2027-01-01')"))["event_count"] == 12
    for user in ("app", "reader", "nobody"):
        with raises(InsufficientPrivilege):
            database.client(user).run("select llm.analyze_audit_logs()")


def anomalies(client: Client, arguments: str = "") -> list[tuple[Any, ...]]:
    """Return anomalies, the most unusual first."""
    return client.rows(f"select user_id, kind, evidence ->> 'value', (evidence ->> 'events')::int from llm.audit_anomalies({arguments})")


def test_what_somebody_does_for_the_first_time_is_found(db: Client) -> None:
    past = "now() - interval '2 days' - i * interval '1 hour'"
    write(db, n="100", timestamp=past, client_address="'10.0.0.1'", object_id="(i % 3)::text")
    assert anomalies(db) == []
    write(db, n="2", action="'delete'", client_address="'203.0.113.9'", object_id="'payroll'")
    write(db)
    assert sorted(anomalies(db)) == [
        ("alice", "first action", "delete", 2), ("alice", "first address", "203.0.113.9", 2), ("alice", "first object", "doc payroll", 2)
    ]  # fmt: skip
    tenant, score, evidence = db.row("select tenant_id, score, evidence from llm.audit_anomalies() where kind = 'first action'")
    assert (tenant, score, evidence["events_before"], evidence["only_once_before"]) == ("acme", 100, 100, 0)


def test_who_does_new_things_all_the_time_or_is_new_is_not_suspected(db: Client) -> None:
    write(db, n="100", timestamp="now() - interval '2 days' - i * interval '1 hour'", object_id="'message ' || i")
    write(db, object_id="'message 1000'")
    write(db, n="19", user_id="'new'", timestamp="now() - interval '2 days'")
    write(db, n="5", user_id="'new'", action="'delete'")
    assert anomalies(db) == []


def test_a_rate_far_above_ones_own_pattern_is_found(db: Client) -> None:
    hour = "date_trunc('hour', now()) - interval '3 hours'"
    for day in range(1, 29):
        write(db, n=str(20 + day % 5), timestamp=f"{hour} - interval '{day} days'", user_id="'busy'")
        write(db, n="1", timestamp=f"{hour} - interval '{day} days'", user_id="'calm'")
    write(db, n="30", timestamp=hour, user_id="'busy'")
    write(db, n="25", timestamp=hour, user_id="'calm'")
    assert anomalies(db) == [("calm", "rate", None, 25)]
    write(db, n="100", timestamp=f"{hour} + interval '1 minute'", user_id="'busy'")
    assert sorted(anomalies(db)) == [("busy", "rate", None, 130), ("calm", "rate", None, 25)]
    assert anomalies(db, "now() - interval '1 hour', now()") == []


@pytest.mark.parametrize(
    "arguments", ["now(), now()", "now(), now() - interval '1 day'", "p_history => '0'", "p_history => '-1 day'", "p_history => null"]
)
def test_a_window_that_is_none_is_refused(db: Client, arguments: str) -> None:
    with raises(InvalidParameterValue, match="there is no time from .* to .*, or none before it", hint="p_from is before p_to"):
        anomalies(db, arguments)


def test_a_report_is_given_in_each_format(filled: Client) -> None:
    call = "select llm.generate_audit_report(llm.analyze_audit_logs('alice'), %s)"
    content = json.loads(filled.one(call, "json"))
    assert (content["user_id"], content["event_count"], content["findings"]) == ("alice", 30, [])
    text = filled.one(call, "text")
    assert text.startswith("Audit report: alice\n30 events, ")
    assert "\nBy action:\n          20  read\n          10  write\n" in text
    assert "Audit report: alice" in filled.one(call, "html")
    assert json.loads(filled.one("select llm.generate_audit_report()"))["event_count"] == 0
    for wrong in ("pdf", "", None):
        with raises(InvalidParameterValue, match=f"{wrong} is no format of a report", hint="json, text, html"):
            filled.run(call, wrong)


@pytest.fixture
def hostile(db: Client) -> Client:
    """A superuser's client, after users with hostile names did hostile things, of which some are findings."""
    for name in HOSTILE:
        write_hostile(db, name, "now() - interval '3 days'", 25)
        write_hostile(db, name, "now()", 15, first="new ")
    return db


def write_hostile(client: Client, name: str, moment: str, count: int, first: str = "") -> None:
    """Write rows in which every text is a hostile one."""
    client.run(
        f"""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details, "timestamp")
        select %s, %s, %s, %s, %s, jsonb_build_object('x', %s::text), {moment} from generate_series(1, {count})
        """,
        *(name, name, first + name, name, name, name),
    )


class Page(HTMLParser):
    """What a page consists of; refuses tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_is_well_formed_and_loads_nothing_whatever_names_there_are(hostile: Client) -> None:
    source = hostile.one("select llm.generate_audit_report(null, 'html', now() - interval '1 day', now() + interval '1 minute')")
    page = Page(source)
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "b", "svg", "g", "rect", "line", "text", "table", "thead"}
    assert {tag for tag, _ in page.tags} <= allowed | {"tbody", "tr", "th", "td"}
    attributes = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"href", "src", "xlink:href", "action", "srcset", "style"})
    assert not re.search(r"url\(|@import", source)
    assert "default-src 'none'" in source
    for name in HOSTILE:
        shown = "".join(character if character.isprintable() else "\ufffd" for character in name)
        assert shown in page.text, name
    assert page.text.count("first action new ") == len(HOSTILE)
    assert len([tag for tag, _ in page.tags if tag == "svg"]) >= 5


def test_a_text_report_keeps_to_its_lines(hostile: Client) -> None:
    text = hostile.one("select llm.generate_audit_report(null, 'text', now() - interval '1 day', now() + interval '1 minute')")
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "line\ufffdbreak\ufffdtab" in text


@pytest.mark.parametrize(
    "summary",
    [
        "null", "[]", '"x"', "1", "{}", '{"actions": 1, "users": {"top": "x"}, "activity": [], "by_hour_of_day": {}}',
        '{"actions": {"top": [1, null, {"name": "<b>", "events": -1}, {"name": {"x": "<i>"}, "events": 5}], "others": "x"}}',
        '{"activity": {"seconds": 0, "points": [[1], "x", [1, "<b>"], [0, 5], [9007199254740000, 1]]}, "by_hour_of_day": ["<b>"]}',
        '{"activity": {"seconds": 1, "points": [[0, 0], [4102444800, 1]]}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["json", "text", "html"])
def test_an_analysis_that_somebody_made_up_is_shown_as_far_as_it_goes(db: Client, summary: str, form: str) -> None:
    report = db.one("select llm.generate_audit_report(row(null, null, null, null, %s::jsonb)::llm.audit_analysis, %s)", summary, form)
    if form == "html":
        assert not {tag for tag, _ in Page(report).tags} & {"i", "script"}


def chromium() -> str | None:
    """Return a browser, if this machine has one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
    return os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)


def test_a_browser_shows_the_page_and_runs_nothing_in_it(hostile: Client, tmp_path: Path) -> None:
    browser = chromium()
    if browser is None:
        pytest.skip("no Chromium here: the page's structure is checked by the other tests")
    page = tmp_path / "audit.html"
    page.write_text(hostile.one("select llm.generate_audit_report(null, 'html', now() - interval '1 day', now() + interval '1 minute')"))
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000")
    shown = subprocess.run([browser, *options, "--dump-dom", page.as_uri()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    assert shown.returncode == 0
    assert "<script" not in shown.stdout
    assert shown.stdout.count("<rect") == page.read_text().count("<rect")
