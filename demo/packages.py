"""Descriptions of Debian packages with their embeddings (all-MiniLM-L6-v2, 384 dimensions), for the demo and the benchmarks.

PACKAGES names a folder with the whole set: docs.jsonl.gz, one object a line; doc_vectors.f16.npy, a vector for each line. Without it the sample
in data/ serves, which has 2,000 of them, and 100 queries: synopses of packages in it, embedded the same way.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

DIMENSIONS = 384

_DATA = Path(__file__).with_name("data")
_WHOLE = Path(os.environ["PACKAGES"]) if os.environ.get("PACKAGES") else None

_HALVES = struct.Struct(f"<{DIMENSIONS}e")
#: As the type vector sends and receives itself: the number of dimensions, nothing, single-precision floats.
_BINARY = struct.Struct(f">hh{DIMENSIONS}f")


@dataclass(frozen=True)
class Vector:
    """An embedding."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        """Return it as the type vector reads it."""
        return f"[{','.join(f'{value:.7g}' for value in self.values)}]"

    def __bytes__(self) -> bytes:
        """Return it as the type vector receives it."""
        return _BINARY.pack(DIMENSIONS, 0, *self.values)


@dataclass(frozen=True)
class Package:
    """A package: what it is, and the embedding of its description."""

    id: int
    name: str
    synopsis: str
    description: str
    section: str
    installed_size: int
    maintainer: str
    priority: str
    vector: Vector

    @property
    def payload(self) -> dict[str, Any]:
        """What filters can ask for."""
        return {
            "package": self.name,
            "section": self.section,
            "installed_size": self.installed_size,
            "maintainer": self.maintainer,
            "priority": self.priority,
        }


@dataclass(frozen=True)
class Query:
    """A question, its embedding, and the package that it describes."""

    text: str
    package: int
    vector: Vector


def is_whole() -> bool:
    """Tell whether the whole set is there, or the sample only."""
    return _WHOLE is not None


def packages(count: int | None = None) -> Iterator[Package]:
    """Yield packages in order of their ids, all of them or so many."""
    yield from islice(_whole(_WHOLE) if _WHOLE else _sample(), count)


def queries() -> list[Query]:
    """Return the queries of the sample."""
    return [Query(line["query"], line["id"], _vector(base64.b64decode(line["vector"]))) for line in _lines(_DATA / "queries.jsonl.gz")]


def _sample() -> Iterator[Package]:
    for line in _lines(_DATA / "packages.jsonl.gz"):
        yield _package(line, base64.b64decode(line.pop("vector")))


def _whole(folder: Path) -> Iterator[Package]:
    with (folder / "doc_vectors.f16.npy").open("rb") as vectors:
        # NumPy's format, version 1: six bytes of magic, the version, the length of a header that says what is known here.
        (header,) = struct.unpack("<8xH", vectors.read(10))
        vectors.seek(header, os.SEEK_CUR)
        for line in _lines(folder / "docs.jsonl.gz"):
            yield _package(line, vectors.read(_HALVES.size))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _package(line: dict[str, Any], halves: bytes) -> Package:
    return Package(name=line.pop("package"), vector=_vector(halves), **line)


def _vector(halves: bytes) -> Vector:
    return Vector(_HALVES.unpack(halves))
