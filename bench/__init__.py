"""Benchmarks: what is claimed, measured beside what a user would take instead."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "python" / "pg_llm_client" / "src"))
