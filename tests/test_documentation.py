"""The documentation says what is so: its SQL runs, and the reference is the database's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import new_key_store
from tests.support import Client, Database
from tools import reference
from tools.cluster import ROOT

PAGES = sorted(path for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")) if "```sql" in path.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_sql_block_of_a_page_runs_in_order(database: Database, page: Path, tmp_path: Path) -> None:
    new_key_store(database, tmp_path / "keys")
    script = tmp_path / "page.sql"
    script.write_text("\n".join(re.findall(r"^```sql\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)))
    database.cluster.program("psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, database.name)


def test_the_reference_is_what_the_database_says(db: Client) -> None:
    assert reference.PAGE.read_text() == reference.page(db.connection), "run: make reference"


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {link}"
        for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []
