"""Channels: who subscribes by a pattern reads what was published, also what he missed."""

from __future__ import annotations

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, NoDataFound, ObjectNotInPrerequisiteState

from tests.support import Client, Database, raises
from tests.test_stream import ANNE, BOB, append

READ = "select name, payload from llm.channel_read(%s)"
THERE = "select subscriber from llm.channel_presence(%s)"


def publish(client: Client, channel: str, message: object = 1) -> str:
    """Publish a message and return its position."""
    return str(client.one("select llm.channel_publish(%s, to_jsonb(%s::text)::text)", channel, str(message)))


def test_a_subscriber_reads_what_matches_his_patterns(bound: Client) -> None:
    publish(bound, "incidents:0", "before")
    bound.run("select llm.channel_subscribe('ann', '{incidents:*,workflows:?}'), llm.channel_subscribe('bob', '{*}')")
    published = [("incidents:1", "a"), ("workflows:1", "b"), ("workflows:10", "c"), ("notifications:1", "d"), ("incidents:", "e")]
    for channel, message in published:
        publish(bound, channel, message)
    assert bound.rows(READ, "ann") == [published[0], published[1], published[4]]
    assert bound.rows(READ, "ann") == []
    assert bound.rows("select name, payload from llm.channel_read('bob', 2)") == published[:2]
    assert bound.rows(READ, "bob") == published[2:]


def test_patterns_have_no_other_wildcards(bound: Client) -> None:
    bound.run(r"select llm.channel_subscribe('ann', array['50%', 'a_b', 'c\*', '[x]'])")
    for channel in ("50%", "500", "a_b", "axb", r"c\d", "cd", "[x]", "x"):
        publish(bound, channel)
    assert [channel for channel, _ in bound.rows(READ, "ann")] == ["50%", "a_b", r"c\d", "[x]"]


def test_who_was_away_reads_what_he_missed(bound: Client) -> None:
    bound.run("select llm.channel_subscribe('ann', '{a}')")
    positions = [publish(bound, "a", number) for number in range(3)]
    bound.run("select llm.channel_subscribe('ann', '{a,b}')")
    publish(bound, "b", "too")
    assert bound.column("select payload from llm.channel_read('ann')") == ["0", "1", "2", "too"]
    bound.run("select llm.channel_subscribe('ann', '{a}', %s)", positions[0])
    assert bound.column("select payload from llm.channel_read('ann')") == ["1", "2"]


def test_what_was_not_handled_comes_again(bound: Client) -> None:
    bound.run("select llm.channel_subscribe('ann', '{*}')")
    publish(bound, "a")
    with pytest.raises(ZeroDivisionError), bound.transaction():
        assert len(bound.rows(READ, "ann")) == 1
        raise ZeroDivisionError
    assert len(bound.rows(READ, "ann")) == 1


def test_messages_are_read_in_the_order_of_commits(database: Database, bound: Client) -> None:
    bound.run("select llm.channel_subscribe('ann', '{*}')")
    slow = database.client("app").run("begin")
    publish(slow, "a", "slow")
    publish(bound, "b", "quick")
    assert bound.rows(READ, "ann") == []
    slow.run("commit")
    assert bound.rows(READ, "ann") == [("a", "slow"), ("b", "quick")]


def test_a_reader_gets_past_ten_thousand_messages_of_others(bound: Client) -> None:
    bound.run("select llm.channel_subscribe('ann', '{a}')")
    bound.run("select llm.stream_append_all('channels', array_fill('1'::text, '{10000}'), array_fill('noise'::text, '{10000}'))")
    publish(bound, "a")
    assert bound.one("select llm.signal_subscribers()") == 1
    assert bound.rows(READ, "ann") == []
    assert bound.rows(READ, "ann") == [("a", "1")]


def test_presence_is_who_read_lately(db: Client, bound: Client) -> None:
    bound.run("select llm.channel_subscribe('ann', '{a:*}'), llm.channel_subscribe('bob', '{*}', p_presence => '2 hours')")
    assert bound.column(THERE, None) == ["ann", "bob"]
    assert bound.column(THERE, "a:1") == ["ann", "bob"]
    assert bound.column(THERE, "b") == ["bob"]
    db.run("update llm.channel_subscribers set seen_at = seen_at - interval '1 hour'")
    assert bound.column(THERE, "a:1") == ["bob"]
    publish(bound, "a:1")
    assert bound.rows("select * from llm.channel_read('ann', 0)") == []
    assert bound.column(THERE, "a:1") == ["ann", "bob"]
    assert len(bound.rows(READ, "ann")) == 1
    assert bound.one("select llm.channel_unsubscribe('ann')") is True
    assert bound.one("select llm.channel_unsubscribe('ann')") is False
    assert bound.column(THERE, None) == ["bob"]


def test_who_was_away_for_longer_than_streams_are_kept_is_told(db: Client, bound: Client) -> None:
    bound.run("select llm.channel_subscribe('ann', '{a}'), llm.channel_subscribe('bob', '{a}')")
    db.run("update llm.channel_subscribers set seen_at = seen_at - interval '7 days' where subscriber = 'ann'")
    db.run("call llm.trim_streams()")
    with raises(NoDataFound, match="subscriber 'ann' is unknown", hint="away for longer"):
        bound.run(READ, "ann")
    assert bound.rows(READ, "bob") == []


def test_who_is_there_is_woken_once_until_he_reads(db: Client, bound: Client, database: Database) -> None:
    """Q-09: the NOTIFY is the dispatcher's; polling finds what a lost one would have told."""
    listener = database.client("app")
    signal = bound.one("select llm.channel_subscribe('ann', '{a}')")
    bound.run("select llm.channel_subscribe('away', '{a}', p_presence => '0')")
    listener.run(f'listen "{signal}"')
    assert bound.one("select llm.signal_subscribers()") == 0
    publish(bound, "b")
    assert bound.one("select llm.signal_subscribers()") == 0
    publish(bound, "a")
    publish(bound, "a")
    assert [bound.one("select llm.signal_subscribers()") for _ in range(3)] == [1, 0, 0]
    assert [(notice.channel, notice.payload) for notice in listener.connection.notifies(timeout=10, stop_after=1)] == [(signal, "")]
    assert len(bound.rows(READ, "ann")) == 2
    assert bound.one("select llm.signal_subscribers()") == 0
    publish(bound, "a")
    listener.close()
    assert db.one("select llm.signal_subscribers()") == 1
    assert len(bound.rows(READ, "ann")) == 1


def test_the_name_to_listen_to_tells_nothing(app: Client) -> None:
    with app.tenant("acme"):
        signal = app.one("select llm.channel_subscribe('ann', '{a}')")
    with app.tenant("globex"):
        other = app.one("select llm.channel_subscribe('ann', '{a}')")
    assert signal != other
    assert "ann" not in signal and "acme" not in signal and len(signal) <= 63


def test_channels_are_a_tenants_own(app: Client, admin: Client) -> None:
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            app.run("select llm.channel_subscribe(%s, '{*}')", f"of {tenant}")
            publish(app, "a", tenant)
    with app.tenant("acme"):
        assert app.rows(READ, "of acme") == [("a", "acme")]
        assert app.column(THERE, None) == ["of acme"]
        assert app.one("select llm.channel_unsubscribe('of globex')") is False
        assert app.one("select llm.signal_subscribers()") == 0
    assert admin.one("select llm.signal_subscribers()") == 1
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run("select llm.signal_subscribers()")


def test_a_users_messages_and_subscription_are_his(app: Client, admin: Client) -> None:
    for user in (ANNE, BOB):
        with app.tenant("acme"):
            app.run("select llm.set_user(%s)", user).run("select llm.channel_subscribe(%s, '{*}')", str(user))
    with app.tenant("acme"):
        app.run("select llm.channel_publish('a', '\"for all\"'), llm.channel_publish('a', '\"for ann\"', %s)", ANNE)
    for user, expected in ((ANNE, ["for all", "for ann"]), (BOB, ["for all"])):
        with app.tenant("acme"):
            app.run("select llm.set_user(%s)", user)
            assert app.column("select payload from llm.channel_read(%s)", str(user)) == expected
            assert len(app.column(THERE, None)) == 2
    with raises(NoDataFound, match="is unknown"), app.tenant("acme"):
        app.run("select llm.set_user(%s)", ANNE).run(READ, str(BOB))
    with raises(InsufficientPrivilege), app.tenant("acme"):
        app.run("select llm.set_user(%s)", ANNE).run("select llm.channel_subscribe(%s, '{x}')", str(BOB))
    with admin.tenant("acme"):
        admin.run("select llm.forget_user(%s)", ANNE)
        assert admin.column(THERE, None) == [str(BOB)]


def test_what_is_no_subscription_is_refused(bound: Client) -> None:
    for arguments in ("'', '{a}'", "null, '{a}'", "'x', '{}'", "'x', '{NULL}'", "'x', null", "'x', '{a}', null, null", "'x', '{a}', null, '-1 s'"):
        with raises(InvalidParameterValue, match="cannot have patterns", hint="at least one pattern"):
            bound.run(f"select llm.channel_subscribe({arguments})")
    with raises(InvalidParameterValue, match="is not a position"):
        bound.run("select llm.channel_subscribe('x', '{a}', 'now')")
    with raises(InvalidParameterValue, match="no channel is given", hint="named as you like"):
        bound.run("select llm.channel_publish(null, '1')")
    append(bound, 1, stream="channels")
    bound.run("select llm.channel_subscribe('x', '{*}', '0-0-0')")
    assert bound.rows(READ, "x") == []
