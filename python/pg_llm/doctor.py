"""The checks of `llm.doctor()` that need to look from inside Python."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from . import coherence, spi

type Check = tuple[str, bool, str, str]

#: These make the interpreter load code from wherever they say (PostgreSQL manual, PL/Python, Environment Variables).
_REDIRECTIONS = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONSTARTUP")


_BACKENDS = spi.plan("select pid from pg_stat_activity where backend_type = 'client backend'")


def check_python() -> list[Check]:
    """Return the checks of the interpreter's environment and of who may change the code it loads."""
    redirected = [f"{name}={os.environ[name]}" for name in _REDIRECTIONS if name in os.environ]
    package = Path(__file__).resolve().parent
    folders = [Path(path) for path in sys.path if path]
    writable = [path for path in (*folders, package, *package.rglob("*")) if _is_writable_by_others(path)]
    return [
        (
            "Python is not redirected",
            not redirected,
            ", ".join(redirected) or "no PYTHON… variable in the server's environment",
            "Start the server without these variables: they can replace any module.",
        ),
        (
            "Python's folders are safe",
            not writable,
            ", ".join(map(str, writable)) or f"package in {package}",
            "Let only root or the server's own user write there: what lies there runs as the server.",
        ),
    ]


def check_coherence() -> list[Check]:
    """Return the check of the file behind the coherent caches."""
    lost = [str(row["pid"]) for row in _BACKENDS.rows() if _maps_a_deleted_file(row["pid"])]
    return [
        (
            "caches share one file",
            not lost,
            f"a deleted {coherence.PATH} is used by {', '.join(lost)}" if lost else coherence.PATH,
            "The file was removed under the running server. Restart it: until then old answers may last for up to llm.coherence_ttl.",
        )
    ]


def _maps_a_deleted_file(pid: int) -> bool:
    # Only Linux tells, and only of processes that are still there.
    maps = Path(f"/proc/{pid}/maps")
    try:
        return f"{coherence.PATH} (deleted)" in maps.read_text()
    except OSError:
        return False


def _is_writable_by_others(path: Path) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) or status.st_uid not in (0, os.geteuid())
