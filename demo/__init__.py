"""`make demo`: every part of pg_llm at work on real input, in a throw-away server."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "python/pg_llm_client/src"))
