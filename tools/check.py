"""The project's own lint: what no other tool knows. Prints `path:line: message`; exit status 1 when it finds anything.

The rules for a live database are in tools/check_catalogue.py; tests/test_check.py applies them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pglast.parser import ParseError

from tools import check_python, check_sql
from tools.check_python import Template

ROOT = Path(__file__).resolve().parent.parent

LONGEST_FILE = 500
LONGEST_LINE = 150

#: Files that may be longer, and why.
LONG_FILES = {
    "demo/sample_prices.json": "data",
    "docs/reference.md": "generated",
    "sql/config/functions.sql": "one subsystem's functions with their documentation stay in one file",
}

#: Modules that bear no subsystem's name: they serve all of them.
SHARED_MODULES = {
    "__init__": "the package",
    "anchor": "of seal",
    "audit_anomaly": "of audit_report",
    "audit_page": "of audit_report",
    "merkle": "of seal",
    "prove": "of seal",
    "seal_status": "of seal",
    "payload_key": "of point_filter",
    "query_log": "of search_quality",
    "search_plan": "of vector_search",
    "secret": "of key_store and crypto",
    "spi": "the way to SQL",
    "tenant": "of core",
    "text": "of core",
    "verify": "of seal",
}

#: Errors that no test can produce, by their first words.
UNTESTABLE = {"pg_llm needs PostgreSQL 17 or newer, this is ": "the tests run on servers that are new enough"}

#: Its strings are about messages, and produce none.
TEST_OF_THIS = "test_check.py"

#: A message counts as tested when so many characters of it stand in a string of some test.
ENOUGH_OF_A_MESSAGE = 12

_TEXT_FILES = {".cfg", ".control", ".json", ".md", ".py", ".pyi", ".sh", ".sql", ".toml", ".txt", ".yaml", ".yml", ""}
_NOT_OURS = {"build", "__pycache__", "node_modules"}


class Finding(NamedTuple):
    """Something wrong, and where."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def findings(root: Path = ROOT) -> list[Finding]:
    """Return all that is wrong with a source tree."""
    return sorted({*versions(root), *rooms(root), *texts(root), *code(root), *untested_errors(root)})


def versions(root: Path) -> Iterator[Finding]:
    """Yield where a version is not that of the control file."""
    control = re.search(r"^default_version = '(.+)'$", (root / "pg_llm.control").read_text(), re.MULTILINE)
    assert control
    version = control[1]
    meta = json.loads((root / "META.json").read_text())
    client = re.search(r'^version = "(.+)"$', (root / "python/pg_llm_client/pyproject.toml").read_text(), re.MULTILINE)
    changelog = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    stated = {
        "META.json": {meta["version"], meta["provides"]["pg_llm"]["version"]},
        "CHANGELOG.md": {changelog[1] if changelog else "none"},
        "python/pg_llm_client/pyproject.toml": {client[1] if client else "none"},
    }
    for path, found in stated.items():
        for other in found - {version}:
            yield Finding(path, 1, f"version {other}, but pg_llm.control says {version}")


def rooms(root: Path) -> Iterator[Finding]:
    """Yield what breaks the rule that a subsystem has one name in every room of the house."""
    names = [line for line in (root / "sql/MANIFEST").read_text().splitlines() if line and not line.startswith("#")]
    for name in names:
        for room in (f"sql/{name}/functions.sql", f"docs/{name}.md", f"tests/**/test_{name}.py"):
            if not any(root.glob(room)):
                yield Finding("sql/MANIFEST", 1, f"subsystem {name} has no {room}")
    for folder in (root / "sql").iterdir():
        if folder.is_dir() and folder.name not in (*names, "upgrades"):
            yield Finding(f"sql/{folder.name}", 1, "no subsystem of this name in sql/MANIFEST")
        elif folder.is_dir() and folder.name in names:
            for file in folder.iterdir():
                if file.name not in ("tables.sql", "functions.sql", "migrations"):
                    yield Finding(f"sql/{folder.name}/{file.name}", 1, "a subsystem has tables.sql, functions.sql and migrations")
    for pattern, shared in (("python/pg_llm/*.py", SHARED_MODULES), ("bench/bench_*.py", {})):
        for file in root.glob(pattern):
            if file.stem.removeprefix("bench_") not in (*names, *shared):
                yield Finding(_relative(file, root), 1, "no subsystem of this name in sql/MANIFEST")


def texts(root: Path) -> Iterator[Finding]:
    """Yield where a file breaks the rules for all text files."""
    for file in _files(root):
        path = _relative(file, root)
        lines = file.read_text().split("\n")
        if lines.pop():
            yield Finding(path, len(lines) + 1, "no newline at the end of the file")
        if len(lines) > LONGEST_FILE and path not in LONG_FILES:
            yield Finding(path, LONGEST_FILE, f"{len(lines)} lines: more than {LONGEST_FILE} are too many")
        for number, line in enumerate(lines, 1):
            if line != line.rstrip():
                yield Finding(path, number, "trailing blank")
            if "\t" in line and file.name != "Makefile":
                yield Finding(path, number, "tab")
            if len(line) > LONGEST_LINE and file.suffix == ".sql":
                yield Finding(path, number, f"{len(line)} characters: more than {LONGEST_LINE} are too many")


def code(root: Path) -> Iterator[Finding]:
    """Yield what is wrong with the extension's SQL and Python."""
    for file in _sources(root):
        path, text = _relative(file, root), file.read_text()
        try:
            found = list(check_sql.findings(text)) if file.suffix == ".sql" else check_python.module_findings(file.stem, text)
        except (ParseError, SyntaxError) as error:
            found = [(getattr(error, "lineno", None) or 1, f"cannot be parsed: {error}")]
        yield from (Finding(path, line, message) for line, message in found)


def untested_errors(root: Path) -> Iterator[Finding]:
    """Yield each error that no test expects: none of its words stands in a string of a test."""
    errors = [
        (_relative(file, root), line, template)
        for file in _sources(root)
        for line, template in _error_templates(file)
        if template[0] not in UNTESTABLE
    ]
    tests = (file for file in (root / "tests").rglob("*.py") if file.name != TEST_OF_THIS)
    said = "\0".join(text for file in tests for text in _strings(file.read_text()))
    for path, line, template in errors:
        others = {other for _, _, other in errors if other != template}
        if not _is_said(template, others, said):
            yield Finding(path, line, f"no test expects the error '{'…'.join(template)}'")


def _error_templates(file: Path) -> list[tuple[int, Template]]:
    templates = check_sql.error_templates if file.suffix == ".sql" else check_python.error_templates
    with suppress(ParseError, SyntaxError):  # which code() tells of
        return list(templates(file.read_text()))
    return []


def _is_said(template: Template, others: set[Template], said: str) -> bool:
    fragments = _fragments(template)
    own = fragments.difference(*(_fragments(other) for other in others))
    if fragments:
        return any(fragment in said for fragment in own or fragments)
    return all(part.strip() in said for part in template)


def _fragments(template: Template) -> set[str]:
    return {part[at : at + ENOUGH_OF_A_MESSAGE] for part in template for at in range(len(part) - ENOUGH_OF_A_MESSAGE + 1)}


def _strings(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # which ruff tells of
        return
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings expect nothing
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def _sources(root: Path) -> list[Path]:
    return sorted([*(root / "sql").rglob("*.sql"), *(root / "python/pg_llm").glob("*.py")])


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_dir():
            if path.name not in _NOT_OURS and (path.name == ".ci" or not path.name.startswith(".")):
                yield from _files(path)
        elif path.suffix in _TEXT_FILES:
            yield path


def _relative(file: Path, root: Path) -> str:
    return str(file.relative_to(root))


if __name__ == "__main__":
    found = findings()
    for finding in found:
        print(finding)
    sys.exit(bool(found))
