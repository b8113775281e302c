"""The only module that talks to `plpy`: prepared plans, errors with a SQLSTATE, and the session's dictionary."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import plpy

#: Rows that a cursor takes from the server in one go.
FETCHED_AT_ONCE = 1_000

#: Plans of built statements that a session keeps; each has some 100 kB.
BUILT_PLANS = 200


class Error(plpy.Error):
    """An error for the client; subclasses give its SQLSTATE."""

    sqlstate = "XX000"

    def __init__(self, message: str, *, hint: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.detail = detail


#: An error of a statement.
ServerError = plpy.SPIError


class UndefinedFile(Error):
    """A file of the installation is missing."""

    sqlstate = "58P01"


class InputOutput(Error):
    """The operating system refused a file."""

    sqlstate = "58030"


class ConfigFileError(Error):
    """A file that the administrator provides is missing, unsafe or wrong."""

    sqlstate = "F0000"


class ObjectNotInPrerequisiteState(Error):
    """Something must be done first."""

    sqlstate = "55000"


class UndefinedObject(Error):
    """What the caller names does not exist."""

    sqlstate = "42704"


class InvalidParameter(Error):
    """An argument cannot be used."""

    sqlstate = "22023"


class DataException(Error):
    """Data that is not what it claims to be."""

    sqlstate = "22000"


class NoDataFound(Error):
    """What was asked for does not exist."""

    sqlstate = "P0002"


class DataCorrupted(Error):
    """What is stored is not what was stored."""

    sqlstate = "XX001"


class LimitExceeded(Error):
    """A limit forbids to go on."""

    sqlstate = "54000"


class Plan:
    """A statement, prepared at its first use in the session and kept. Parameters are `$1`, `$2`, …; never text built at run time."""

    __slots__ = ("_plan", "_statement", "_types")

    def __init__(self, statement: str, types: Sequence[str]) -> None:
        self._statement = statement
        self._types = list(types)
        self._plan: Any = None

    def rows(self, *arguments: object) -> list[dict[str, Any]]:
        """Return all rows, each as a dictionary by column name."""
        return list(plpy.execute(self._prepared(), list(arguments)))

    def row(self, *arguments: object) -> dict[str, Any]:
        """Return the first row."""
        return self.rows(*arguments)[0]

    def stream(self, *arguments: object) -> Iterator[dict[str, Any]]:
        """Yield all rows through a cursor, so that only some are in memory at a time."""
        cursor = plpy.cursor(self._prepared(), list(arguments))
        while rows := cursor.fetch(FETCHED_AT_ONCE):
            yield from rows

    def _prepared(self) -> Any:
        if self._plan is None:
            self._plan = plpy.prepare(self._statement, self._types)
        return self._plan


def plan(statement: str, *types: str) -> Plan:
    """Return a plan for a constant statement whose parameters have these types."""
    return Plan(statement, types)


@lru_cache(maxsize=BUILT_PLANS)
def built_plan(statement: str, *types: str) -> Plan:
    """Return a plan for a statement that was built at run time, of constants, of names that a table of pg_llm holds, and of parameters' numbers.

    Only the modules that tools/check_python.py lists may call it: what a caller gave is a parameter there, too.
    """
    return Plan(statement, types)


def session() -> dict[str, Any]:
    """Return `GD`: what all PL/Python functions of this backend share."""
    shared: dict[str, Any] = sys.modules["__main__"].__dict__["GD"]
    return shared
