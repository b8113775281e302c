"""Assembles the extension's scripts: build.py OUTPUT_DIRECTORY.

Install script: head, guard, storage scripts, each subsystem's functions, tail, install.
Upgrade script, one for each sql/upgrades/A--B.sql that ends at this version: head, that file (what a machine cannot infer), storage scripts and
functions again with `create or replace`, tail. Types are not replaced: a changed type belongs into the file by hand.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SQL = ROOT / "sql"

_IMPORT = re.compile(r"^from pg_llm import (\w+)$", re.MULTILINE)
_CREATE_FUNCTION = re.compile(r"^create (function|procedure)", re.MULTILINE)
_CREATE_TYPE = re.compile(r"^create type .*?;\n+", re.MULTILINE | re.DOTALL)
_MIGRATION = re.compile(r"(?P<number>\d{4})_(?P<version>\d+\.\d+\.\d+)_(?P<title>\w+)\.(?P<kind>up|down)\.sql")


@dataclass(frozen=True)
class Script:
    """A piece of storage DDL: a subsystem's tables, or one numbered migration up or down."""

    name: str
    version: str
    kind: str
    text: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def version() -> str:
    """Return default_version of the control file."""
    match = re.search(r"^default_version = '(.+)'$", (ROOT / "pg_llm.control").read_text(), re.MULTILINE)
    assert match, "pg_llm.control has no default_version"
    return match[1]


def subsystems() -> list[str]:
    """Return the names in sql/MANIFEST, in install order."""
    lines = (SQL / "MANIFEST").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def storage_scripts() -> list[Script]:
    """Return all tables.sql in install order, then the migrations by number: sql/<subsystem>/migrations/0001_0.2.0_title.up.sql."""
    tables = [Script(name, version(), "tables", path.read_text()) for name in subsystems() if (path := SQL / name / "tables.sql").exists()]
    return tables + sorted(_migrations(), key=lambda script: script.name.split("/")[1])


def _migrations() -> Iterator[Script]:
    for path in SQL.glob("*/migrations/*"):
        match = _MIGRATION.fullmatch(path.name)
        assert match, f"{path} is not named like 0001_0.2.0_title.up.sql"
        yield Script(f"{path.parent.parent.name}/{match['number']}_{match['title']}", match["version"], match["kind"], path.read_text())


def install_script() -> str:
    """Return the text of pg_llm--VERSION.sql."""
    return _assembled([_read("head.sql"), _read("guard.sql"), *_code(), _read("tail.sql"), _read("install.sql")])


def upgrade_script(by_hand: Path) -> str:
    """Return the text of pg_llm--A--B.sql."""
    return _assembled([_read("head.sql"), by_hand.read_text(), *_code(_replacing), _read("tail.sql")])


def _replacing(source: str) -> str:
    return _CREATE_FUNCTION.sub(r"create or replace \1", _CREATE_TYPE.sub("", source))


def _code(edit: Callable[[str], str] = str) -> list[str]:
    functions = [edit(_read(f"{name}/functions.sql")) for name in subsystems()]
    return [_with_storage_scripts(edit(_read("scripts.sql"))), *functions]


def _with_storage_scripts(source: str) -> str:
    scripts = storage_scripts()
    rows = ",\n".join(
        f"        ({position}, '{script.kind}', '{script.name}', '{script.version}', '{script.checksum}', $script${script.text}$script$)"
        for position, script in enumerate(scripts)
    )
    overall = hashlib.sha256("".join(script.checksum for script in scripts).encode()).hexdigest()
    return source.replace("        @STORAGE_SCRIPTS@", rows).replace("@STORAGE_CHECKSUM@", overall)


def _assembled(parts: list[str]) -> str:
    text = _IMPORT.sub(_boot, "\n\n".join(parts))
    return text.replace("@VERSION@", version())


def _boot(match: re.Match[str]) -> str:
    return f'if "pg_llm@@VERSION@" not in GD:\n    plpy.execute("select llm._boot()")\n{match[1]} = GD["pg_llm@@VERSION@"].{match[1]}'


def _read(path: str) -> str:
    return (SQL / path).read_text()


def main(output: Path) -> None:
    """Write all scripts into a directory."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"pg_llm--{version()}.sql").write_text(install_script())
    for by_hand in sorted((SQL / "upgrades").glob(f"*--{version()}.sql")):
        (output / f"pg_llm--{by_hand.name}").write_text(upgrade_script(by_hand))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
