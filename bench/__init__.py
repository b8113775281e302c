"""Benchmarks beside what a user would pick instead; see README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "python/pg_llm_client/src"))
