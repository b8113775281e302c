"""Runs the demo: `python -m demo`. PRICES names a LiteLLM price file, PACKAGES a folder of packages; without them small samples are used."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from demo import audit, chat, checkpoint, config, crypto, memory, partition, seal, session, vector, worker_pool
from demo.stage import Stage
from tools.cluster import Cluster, Installation

SAMPLE = Path(__file__).with_name("sample_prices.json")

#: One module a subsystem, each with a play(stage).
SCENES = (config, partition, crypto, audit, seal, session, chat, checkpoint, memory, vector, worker_pool)


def main() -> None:
    """Set a server up, play every scene, and leave nothing behind."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    begin = perf_counter()
    prices_file = Path(os.environ.get("PRICES") or SAMPLE)
    prices = read_prices(prices_file)
    console.print(f"[bold]pg_llm[/]: the storage layer of an LLM application, on {len(prices)} real models from {prices_file.name}")

    with tempfile.TemporaryDirectory(prefix="pg_llm-demo-") as folder:
        directory = Path(folder)
        installation = Installation(directory / "postgresql").install()
        with Cluster(installation, directory / "cluster", "fsync=on") as cluster:
            stage = Stage(cluster, console, prices)
            prepare(stage)
            for scene in SCENES:
                scene.play(stage)
            stage.scene("Is everything as it should be?")
            examine(stage)
    console.print(f"\nDone in {perf_counter() - begin:.0f} s. The server and its files are gone again.", highlight=False)


def read_prices(path: Path) -> dict[str, dict[str, Any]]:
    """Return the models of a LiteLLM price file; its first entry only documents the fields."""
    try:
        prices: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"PRICES={path} cannot be read: {error}")
    return {model: price for model, price in prices.items() if model != "sample_spec"}


def prepare(stage: Stage) -> None:
    """Install the extension and make the application's role."""
    with stage.connect(dbname="postgres") as connection:
        connection.execute("create database demo")
    with stage.connect() as connection:
        row = connection.execute("select current_setting('server_version')").fetchone()
        assert row
        with stage.step("create extension pg_llm cascade") as step:
            connection.execute("set client_min_messages = warning")
            connection.execute("create extension pg_llm cascade")
            step.result = f"ready in PostgreSQL {row[0]}"
        connection.execute("create role app login in role llm_app")


def examine(stage: Stage) -> None:
    """Show what llm.doctor() finds."""
    with stage.connect() as connection:
        checks = connection.execute("select name, ok, detail, hint from llm.doctor()").fetchall()
    stage.sql("select * from llm.doctor();")
    stage.say(f"  {sum(ok for _, ok, _, _ in checks)} of {len(checks)} checks are ok.")
    if wrong := [(name, detail, hint) for name, ok, detail, hint in checks if not ok]:
        stage.table(("not ok", "found", "what to do"), wrong)


if __name__ == "__main__":
    main()
