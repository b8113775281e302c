"""`make demo`: every part of pg_llm at work on real input, in a throw-away server."""
