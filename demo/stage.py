"""What a scene of the demo plays on: a running server, and a console to tell the story on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import psycopg
from rich import box
from rich.console import Console
from rich.table import Table

from tools.cluster import Cluster


@dataclass
class Stage:
    """A server with pg_llm in database `demo`, and the narrator."""

    cluster: Cluster
    console: Console
    prices: dict[str, dict[str, Any]] = field(default_factory=dict)

    def connect(self, user: str = "postgres", dbname: str = "demo") -> psycopg.Connection:
        """Open a connection in autocommit mode."""
        return self.cluster.connect(dbname, user)

    def scene(self, title: str) -> None:
        """Begin a part of the story."""
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left", style="cyan")

    def say(self, text: str) -> None:
        """Tell something."""
        self.console.print(text, highlight=False)

    def sql(self, statement: str) -> None:
        """Show a statement as a user would type it."""
        self.console.print(f"  [green]{statement}", highlight=False, soft_wrap=True)

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        """Show rows."""
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for row in rows:
            table.add_row(*("" if cell is None else str(cell) for cell in row))
        self.console.print(table)

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """Do something that may take a while: shows that it runs, then how long it took."""
        begin = perf_counter()
        with self.console.status(text) as status:
            step = Step(progress=lambda done: status.update(f"{text} … {done}"))
            yield step
        took = perf_counter() - begin
        self.console.print(f"  {text} [dim]… {step.result or 'done'} ({_duration(took)})", highlight=False, soft_wrap=True)


@dataclass
class Step:
    """What came of a step, told when it ends; progress shows how far it is."""

    progress: Callable[[str], None]
    result: str = ""


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
