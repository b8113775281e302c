"""Throw-away PostgreSQL servers for the tests, the demo and the benchmarks.

An `Installation` is a private copy of the server's programs with pg_llm installed into it: nobody's system is touched, no root is needed, and
several versions can lie beside each other. A `Cluster` is a server on a data directory of its own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

import psycopg
from pytest_postgresql.executors import PostgreSQLExecutor

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed; a failure raises with its output."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{shlex.join(str(word) for word in command)} exited with {result.returncode}:\n{result.stdout}")
    return result.stdout


class Installation:
    """PostgreSQL's programs, copied to where they find their own folders: they look relative to themselves."""

    def __init__(self, directory: Path) -> None:
        config = os.environ.get("PG_CONFIG", "pg_config")
        bindir, pkglibdir, sharedir = (Path(run(config, f"--{name}").strip()) for name in ("bindir", "pkglibdir", "sharedir"))
        prefix = Path(os.path.commonpath((bindir, pkglibdir, sharedir)))
        self.bindir, self.pkglibdir, self.sharedir = (directory / path.relative_to(prefix) for path in (bindir, pkglibdir, sharedir))
        shutil.copytree(bindir, self.bindir)
        for source, copy in ((pkglibdir, self.pkglibdir), (sharedir, self.sharedir)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            run("cp", "-as", source, copy)
        # What the machine may have installed of pg_llm is not what is tried here.
        for old in (*self.sharedir.glob("extension/pg_llm*"), self.pkglibdir / "pg_llm"):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)

    @property
    def pg_config(self) -> Path:
        """The pg_config that names this copy's folders."""
        return self.bindir / "pg_config"

    def install(self, source: Path = ROOT) -> Self:
        """Run `make install` of a source tree into this copy."""
        run("make", "-s", "install", f"PG_CONFIG={self.pg_config}", f"PYTHON={sys.executable}", cwd=source)
        return self


class Cluster(PostgreSQLExecutor):
    """A server of an installation, with its data and log in `directory`, reached through a Unix socket."""

    def __init__(self, installation: Installation, directory: Path, *settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.installation = installation
        self.directory = directory
        self.settings = settings
        super().__init__(
            executable=str(installation.bindir / "pg_ctl"),
            host="127.0.0.1",
            port=_free_port(),
            datadir=str(directory / "data"),
            unixsocketdir=mkdtemp(prefix="pg."),  # not in `directory`: a socket's path has at most 107 bytes (unix(7))
            logfile=str(directory / "log"),
            startparams="-w -s",
            dbname="postgres",
            postgres_options=" ".join(f"-c {setting}" for setting in settings),
        )

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return the connection string of a database."""
        return f"host={self.unixsocketdir} port={self.port} dbname={dbname} user={user}"

    def connect(self, dbname: str = "postgres", user: str = "postgres", *, autocommit: bool = True) -> psycopg.Connection:
        """Open a connection."""
        return psycopg.connect(self.dsn(dbname, user), autocommit=autocommit)

    def program(self, name: str, *arguments: str | Path, **environment: str) -> str:
        """Run one of the installation's programs against this server, as its superuser."""
        server = {"PGHOST": str(self.unixsocketdir), "PGPORT": str(self.port), "PGUSER": "postgres"}
        return run(self.installation.bindir / name, *arguments, cwd=self.directory, **server, **environment)

    def log(self) -> str:
        """Return the server's log so far."""
        return Path(self.logfile).read_text()

    def start(self) -> Self:
        """Start the server and wait until it takes connections: `pg_ctl -w` ends then."""
        Path(self.unixsocketdir).mkdir(exist_ok=True)
        super().start()
        if self.process:
            self.process.wait()
        return self

    def crash(self) -> None:
        """Stop the server as a power cut would: no checkpoint, no clean-up. It recovers at the next start()."""
        self.program("pg_ctl", "stop", "-s", "-m", "immediate", "-D", self.datadir)
        self._clear_process()

    def stop(self, sig: int | None = None, exp_sig: int | None = None) -> Self:
        """Stop the server if it runs."""
        if self.running():
            super().stop(sig, exp_sig)
        shutil.rmtree(self.unixsocketdir, ignore_errors=True)
        return self

    def standby(self, directory: Path) -> Cluster:
        """Return a started streaming standby of this server."""
        standby = Cluster(self.installation, directory, *self.settings)
        self.program("pg_basebackup", "-D", standby.datadir, "-R", "-c", "fast")
        Path(standby.datadir).chmod(0o700)
        standby._directory_initialised = True
        return standby.start()

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is one."""
        self.program("pg_ctl", "promote", "-s", "-w", "-D", self.datadir)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
