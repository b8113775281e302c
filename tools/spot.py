"""Runs pgspot over all that the extension executes: the scripts of `tools/build.py`, and the storage scripts that are strings in them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import build
from tools.check_sql import COMMITTING, INLINED, as_sql

#: pgspot 0.9.4 takes the expression of RETURN NEXT for a statement, and dies of it.
_RETURN_NEXT = re.compile(r"\breturn next (?=\S)")

#: Why storage scripts may use IF NOT EXISTS and OR REPLACE: nobody else could have made the object. llm.setup() refuses to begin while schema llm
#: holds a relation that is not llm_owner's, and only superusers can create anything there (sql/guard.sql).
_IDEMPOTENT = (
    "PS011",  # create sequence if not exists
    "PS012",  # create table if not exists
    "PS014",  # create index if not exists
    "PS015",  # create or replace view
)

_OPTIONS = ("--ignore-lang", "plpython3u", *(word for signature in (*INLINED, *COMMITTING) for word in ("--proc-without-search-path", signature)))


def findings(install_script: str, upgrade_scripts: tuple[str, ...] = (), storage_scripts: tuple[str, ...] = ()) -> str:
    """Return what pgspot says of these texts, empty when it has nothing to say."""
    with tempfile.TemporaryDirectory() as folder:
        output = _pgspot(Path(folder), install_script)
        for script in upgrade_scripts:
            # Appended, so that what the install script creates may be replaced, and nothing else.
            output += _pgspot(Path(folder), install_script, script, options=("--append",))
        for script in storage_scripts:
            # As llm.setup() runs them.
            pinned = "set local search_path = pg_catalog, pg_temp;\n" + script
            output += _pgspot(Path(folder), pinned, options=tuple(f"--ignore={code}" for code in _IDEMPOTENT))
    return output


def _pgspot(folder: Path, *scripts: str, options: tuple[str, ...] = ()) -> str:
    paths = [folder / f"{number}.sql" for number in range(len(scripts))]
    for path, script in zip(paths, scripts, strict=True):
        path.write_text(_RETURN_NEXT.sub("perform ", as_sql(script)))
    command = [sys.executable, "-m", "pgspot", *_OPTIONS, *options, *(str(path) for path in paths)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return result.stdout if result.returncode else ""


def main() -> int:
    """Check this source tree; return the exit status."""
    upgrades = tuple(build.upgrade_script(path) for path in sorted((build.SQL / "upgrades").glob(f"*--{build.version()}.sql")))
    output = findings(build.install_script(), upgrades, tuple(script.text for script in build.storage_scripts()))
    sys.stdout.write(output)
    return bool(output)


if __name__ == "__main__":
    sys.exit(main())
