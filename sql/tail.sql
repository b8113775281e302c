-- Nothing is executable by PUBLIC: each functions.sql grants what its roles need.
revoke all on all functions in schema llm from public;
