\echo Use "CREATE EXTENSION pg_llm CASCADE" or "ALTER EXTENSION pg_llm UPDATE" to load this file. \quit

set local search_path = pg_catalog, pg_temp;
