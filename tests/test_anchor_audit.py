"""Anchors outside the database: what was cut off, set back or written anew is found."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import DataCorrupted, InsufficientPrivilege, InvalidParameterValue, IoError, ObjectNotInPrerequisiteState

import verify_audit_proof as verifier
from tests.conftest import new_database
from tests.support import Client, Database, raises
from tests.test_seal import faults, write
from tests.test_verify_audit import disarm
from tools.cluster import ROOT, Cluster, run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path for an anchor file."""
    directory = tmp_path / "anchors"
    directory.mkdir(mode=0o700)
    return directory / "audit"


@pytest.fixture
def anchored(db: Client, app: Client, file: Path) -> Client:
    """A superuser's client, after three entries with ten rows each were anchored, one by one."""
    db.run("select llm.set_audit_anchor(%s)", str(file))
    for _ in range(3):
        write(app, 10)
        seal_and_anchor(db)
    return db


def seal_and_anchor(client: Client) -> dict[str, Any]:
    """Seal, and anchor in another transaction."""
    client.run("select llm.seal_audit()")
    anchor: dict[str, Any] = client.one("select llm.anchor_audit()")
    return anchor


def anchors(file: Path) -> list[dict[str, Any]]:
    """Return what the file holds."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def anchor_faults(client: Client) -> list[str]:
    """Return what verification says against the anchors."""
    return client.column("select detail from llm.verify_audit() where kind = 'anchor' and not ok")


def test_an_anchor_is_the_head_of_the_chain(anchored: Client, file: Path) -> None:
    assert [anchor["size"] for anchor in anchors(file)] == [2, 3, 4]
    assert f", head: {anchors(file)[-1]['head']}, anchors: 3" in anchored.one("select detail from llm.verify_audit() where kind = 'verified'")
    assert anchor_faults(anchored) == []
    assert faults(anchored) == []
    assert anchored.row("select anchored, anchor_path, anchor_problem from llm.audit_seal_status()") == (4, str(file), None)
    assert file.stat().st_mode & 0o022 == 0


def test_proofs_are_verified_against_the_file(anchored: Client, file: Path, tmp_path: Path) -> None:
    for name, call in {"row": "prove_audit(1)", "old": "prove_audit(1, 2)", "growth": "prove_audit_growth(2, 4)"}.items():
        (tmp_path / name).write_text(json.dumps(anchored.one(f"select llm.{call}")))
    proofs = [tmp_path / name for name in ("row", "old", "growth")]
    said = run(sys.executable, ROOT / "python/verify_audit_proof.py", "--anchors", file, *proofs)
    assert said.count("holds, anchored: ") == 3
    file.write_text(file.read_text().replace(anchors(file)[1]["head"], "00" * 32).replace(anchors(file)[2]["head"], "11" * 32))
    verifier.check_anchors(verifier.heads(anchored.one("select llm.prove_audit(1, 2)")), verifier.read_anchors(file))
    with pytest.raises(verifier.Refused, match="the anchor of 4 entries has head 1111"):
        verifier.check_anchors(verifier.heads(anchored.one("select llm.prove_audit(1)")), verifier.read_anchors(file))
    with pytest.raises(verifier.Refused, match="no anchor has 1 entries"):
        verifier.check_anchors([(1, "00")], verifier.read_anchors(file))


def test_what_is_anchored_already_is_not_anchored_again(anchored: Client, file: Path) -> None:
    """AUD-12: a duplicate anchor."""
    last = anchors(file)[-1]
    assert anchored.one("select llm.anchor_audit()") == last
    assert anchored.one("select llm.anchor_audit()") == last
    assert len(anchors(file)) == 3


def test_before_anything_is_sealed_there_is_nothing_to_anchor(db: Client, file: Path) -> None:
    db.run("select llm.set_audit_anchor(%s)", str(file))
    assert db.one("select llm.anchor_audit()") is None
    assert file.read_text() == ""
    assert f", none in {file} yet" in db.one("select detail from llm.verify_audit()")


def test_aud_02_a_tail_that_was_cut_off_is_found_by_the_anchor_alone(anchored: Client) -> None:
    """AUD-02: without an anchor nothing tells."""
    disarm(anchored).run("delete from llm.audit_log where id > 10").run("delete from llm.audit_seals where number > 2")
    assert faults(anchored) == [(None, None, "anchor")]
    (fault,) = anchor_faults(anchored)
    assert "knows 4 entries, the log has 2: entries were removed" in fault
    assert fault.endswith("; so are 1 more")
    anchored.run("select llm.set_audit_anchor(null)")
    assert faults(anchored) == []
    assert "nothing tells whether the end was cut off" in anchored.one("select detail from llm.verify_audit()")


def test_aud_02_an_anchor_that_somebody_kept_does_as_well(anchored: Client, database: Database, file: Path) -> None:
    """AUD-02"""
    kept = file.read_text().splitlines()[-1]
    disarm(anchored).run("delete from llm.audit_log where id > 20").run("delete from llm.audit_seals where number > 3")
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")
    assert anchor_faults(anchored) == []
    auditor = database.client("auditor")
    (fault,) = auditor.column("select detail from llm.verify_audit(p_anchor => %s) where not ok and kind = 'anchor'", kept)
    assert "knows 4 entries, the log has 3" in fault
    for nonsense in ("{}", "[]", '"x"', '{"format": "pg_llm audit anchor 1"}'):
        with raises(InvalidParameterValue, match="the given anchor is none"):
            auditor.run("select llm.verify_audit(p_anchor => %s)", nonsense)


def test_a_log_that_was_written_anew_is_found(anchored: Client, app: Client) -> None:
    disarm(anchored).run("delete from llm.audit_log").run("delete from llm.audit_seals")
    for _ in range(4):
        write(app, 10)
        anchored.run("select llm.seal_audit()")
    (fault,) = anchor_faults(anchored)
    assert "has another head for 4 entries: the log was written anew" in fault
    with raises(DataCorrupted, match="the audit log contradicts its anchors", hint="set back on purpose", detail="not the same"):
        anchored.run("select llm.anchor_audit()")


def test_aud_13_a_server_that_was_set_back_is_found_and_can_be_accepted(own_cluster: Cluster, file: Path) -> None:
    """AUD-13: as by point-in-time recovery. The anchors keep that it was, and why."""
    for database in new_database(own_cluster):
        superuser, app = database.client(), database.client("app")
        superuser.run("select llm.set_audit_anchor(%s)", str(file))
        write(app, 10)
        seal_and_anchor(superuser)
        database.close()
        own_cluster.stop()
        data, backup = Path(own_cluster.datadir), file.parent / "backup"
        shutil.copytree(data, backup, symlinks=True)
        own_cluster.start()
        superuser, app = database.client(), database.client("app")
        for _ in range(2):
            write(app, 10)
            seal_and_anchor(superuser)
        database.close()
        own_cluster.stop()
        shutil.rmtree(data)
        backup.rename(data)
        own_cluster.start()
        superuser, app = database.client(), database.client("app")
        assert faults(superuser) == [(None, None, "anchor")]
        assert superuser.one("select anchored from llm.audit_seal_status()") == 4
        write(app, 7)
        superuser.run("select llm.seal_audit()")
        with raises(DataCorrupted, match="contradicts its anchors", detail="has 4 entries, the log 3"):
            superuser.run("select llm.anchor_audit()")
        accepted = superuser.one("select llm.anchor_audit('restored to noon')")
        assert (accepted["reason"], accepted["rolled_back_to"], accepted["size"]) == ("restored to noon", 2, 3)
        assert superuser.rows("select ok, detail from llm.verify_audit() where kind = 'anchor'") == [
            (True, f"line 4 of {file} says that the server was set back to 2 entries, on purpose")
        ]
        write(app, 7)
        seal_and_anchor(superuser)
        assert faults(superuser) == []
        disarm(superuser).run("delete from llm.audit_seals where number > 1").run("delete from llm.audit_log")
        assert faults(superuser) == [(None, None, "anchor")]


def test_aud_12_after_a_crash_between_seal_and_anchor_the_next_anchor_covers_both(own_cluster: Cluster, file: Path) -> None:
    """AUD-12"""
    for database in new_database(own_cluster):
        superuser, app = database.client(), database.client("app")
        superuser.run("select llm.set_audit_anchor(%s)", str(file))
        write(app, 10)
        seal_and_anchor(superuser)
        write(app, 10)
        superuser.run("select llm.seal_audit()")
        own_cluster.crash()
        database.close()
        own_cluster.start()
        superuser = database.client()
        assert superuser.row("select entries, anchored from llm.audit_seal_status()") == (3, 2)
        assert superuser.one("select llm.anchor_audit()")["size"] == 3
        assert faults(superuser) == []


def test_aud_12_what_is_not_committed_is_not_anchored(anchored: Client, app: Client, file: Path) -> None:
    """AUD-12"""
    write(app)
    with raises(ObjectNotInPrerequisiteState, match="in a transaction that has written", hint="of its own"), anchored.transaction():
        anchored.run("select llm.seal_audit()").run("select llm.anchor_audit()")
    assert len(anchors(file)) == 3
    assert faults(anchored) == []


@pytest.mark.parametrize("hindrance", ["read-only", "gone", "a directory", "a link"])
def test_aud_12_a_file_that_cannot_be_written_does_not_stop_sealing(anchored: Client, app: Client, file: Path, hindrance: str) -> None:
    """AUD-12: the next anchor covers all that was sealed."""
    kept = file.read_text()
    if hindrance == "read-only":
        file.chmod(0o400)
    else:
        file.unlink()
        if hindrance == "gone":
            file.parent.rename(file.parent.with_name("elsewhere"))
        elif hindrance == "a directory":
            file.mkdir()
        else:
            file.symlink_to("/etc/passwd")
    write(app, 5)
    assert anchored.one("select llm.seal_audit()") == 5
    with raises(IoError, match="the anchor file .* cannot be written", hint="Sealing goes on"):
        anchored.run("select llm.anchor_audit()")
    if hindrance == "read-only":
        file.chmod(0o600)
    else:
        assert anchored.one("select anchor_problem from llm.audit_seal_status()").startswith(f"{file} cannot be read: ")
        assert faults(anchored) == [(None, None, "anchor")]
        if hindrance == "gone":
            file.parent.with_name("elsewhere").rename(file.parent)
        elif hindrance == "a directory":
            file.rmdir()
        else:
            file.unlink()
        file.write_text(kept)
    assert anchored.one("select llm.anchor_audit()")["size"] == 5
    assert faults(anchored) == []


def test_aud_12_a_full_disk_leaves_no_half_an_anchor(anchored: Client, app: Client, file: Path) -> None:
    """AUD-12: nor does half a line that a crash left spoil the next."""
    whole = file.read_text()
    file.write_text(whole + whole[:100])
    assert faults(anchored) == []
    write(app)
    assert seal_and_anchor(anchored)["size"] == 5
    assert file.read_text().startswith(whole + whole[:100] + "\n{")
    assert faults(anchored) == []


def test_anchors_are_signed_with_a_key_that_the_master_key_gives(anchored: Client, app: Client, file: Path, master_key: Path) -> None:
    assert [anchor["signature"] for anchor in anchors(file)] == [None] * 3
    write(app)
    anchor = seal_and_anchor(anchored)
    assert len(anchor["signature"]) == 64
    assert anchor["key_version"] == 1
    assert faults(anchored) == []
    text = file.read_text()
    lines = text.splitlines()
    for old, new, fault in (('"at": "2', '"at": "1', "has a wrong signature"), ('"key_version": 1', '"key_version": 7', "that cannot be checked")):
        file.write_text("\n".join([*lines[:3], lines[3].replace(old, new)]) + "\n")
        (found,) = anchor_faults(anchored)
        assert found.startswith(f"line 4 of {file} ")
        assert fault in found
    file.write_text("\n".join([*lines, lines[3].replace(anchor["signature"], "")]) + "\n")
    assert anchor_faults(anchored) == [f"line 5 of {file} is not signed, as earlier ones are"]
    file.write_text(text)
    key = next(master_key.glob("master.*"))
    key.rename(key.with_name("hidden"))
    assert "cannot be checked" in anchor_faults(anchored)[0]


def test_the_file_is_named_by_superusers_and_lies_outside(db: Client, database: Database, file: Path, tmp_path: Path) -> None:
    for user in ("admin", "app", "auditor"):
        with raises(InsufficientPrivilege):
            database.client(user).run("select llm.set_audit_anchor(%s)", str(file))
        with raises(InsufficientPrivilege):
            database.client(user).run("insert into llm.audit_anchor (path, server_id) values ('/tmp/x', 1)")
    data = db.one("show data_directory")
    (tmp_path / "inside").symlink_to(data)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(file)
    for path, detail in (
        (f"{data}/anchors", "data directory"), ("anchors", "data directory"), (f"{data}/../data/base/x", "data directory"),
        (str(tmp_path / "inside/x"), "data directory"), (str(tmp_path / "open/x"), "Everybody may write"),
        (str(tmp_path / "nowhere/x"), "No such file"), (str(tmp_path / "link"), "symbolic links"), (str(tmp_path), "directory"), ("", "data"),
    ):  # fmt: skip
        with raises(InvalidParameterValue, match="is no place for anchors", detail=detail, hint="outside the data directory"):
            db.run("select llm.set_audit_anchor(%s)", path)
    assert db.one("select count(*) from llm.audit_anchor") == 0
    with raises(ObjectNotInPrerequisiteState, match="no file for anchors of the audit log is set", hint="set_audit_anchor"):
        db.run("select llm.anchor_audit()")


def test_a_file_of_another_server_is_not_written(anchored: Client, file: Path) -> None:
    anchored.run("update llm.audit_anchor set server_id = 1")
    with raises(ObjectNotInPrerequisiteState, match="was set for anchors on another server", hint="set_audit_anchor"):
        anchored.run("select llm.anchor_audit()")
    assert anchor_faults(anchored) == [f"{file} was set on another server, and is not compared: call llm.set_audit_anchor() again"]


def test_lines_that_are_no_anchors_are_told_of(anchored: Client, file: Path) -> None:
    file.write_text('{"size": 1}\n{}\n{"format": "other", "size": 2, "head": "00", "at": "2026-01-01T00:00:00Z"}\n\xff\n' + file.read_text())
    assert anchor_faults(anchored) == [f"line {number} of {file} is no anchor" for number in (1, 2, 3)]
