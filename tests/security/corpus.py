"""Texts that have broken out of quotes, formats, patterns and templates elsewhere."""

from __future__ import annotations

from itertools import product

#: What a text that is run as SQL would do; the tests look for each effect.
_COMMANDS = (
    "truncate public.canary", "update public.canary set song = ''", "create table public.planted ()", "select llm.set_tenant('b')",
)  # fmt: skip
_OPENINGS = (
    "'; {}; --", "'); {}; --", "\"; {}; --", "$$; {}; --", "\\'; {}; --", "' || ({}) || '", "\u2019; {}; --", "\uff07; {}; --", "%'; {}; --",
    "*/ {}; --", "\n\\; {};\n",
)  # fmt: skip
_PLAIN = (
    "", " ", "'", "''", "'''", '"', '""', "`", "\\", "\\\\", "\\'", "$", "$$", "$1", "$body$", "$storage$", "$script$", "$$$$", ";", "--", "/*",
    "*/", "/**/", "%", "%%", "%s", "%(x)s", "%I", "%L", "%1$s", "%n", "{}", "{0}", "{0.__class__}", "{", "}", "{a,b}", "{\"a\"}", "{NULL}", "null",
    "NULL", "default", "current_user", "llm_owner", "*", "**", "_", "__init__", "\t", "\n", "\r\n", "\x01", "\x1b[31m", "\x1f", "\x7f", "\u0085",
    "\u2028", "\u2018x\u2019", "\u201cx\u201d", "\u02bc", "\uff07", "\u00a0", "\u200b", "\u202e", "\ufeff", "\u241b0000", "\U0001f600", "e\u0301",
    "\u0130", "\u00df", "a" * 63, "a" * 64, "a" * 65, "\u00e9" * 32, '"' * 40, "x'; --".ljust(70, "y"), "a" * 10_000, "'" * 999, "a.b", 'a"."b',
    "pg_catalog.pg_class", "llm.config", "pg_class'::regclass", "1", "-1", "1e999", "NaN", "infinity", "true", "1 or 1=1", "' or 1=1",
    "' or '1'='1", "' or ''='", "a' and pg_sleep(9)--", "x' union select rolname from pg_roles--",
    "' union all select value::text from llm.config --", "${jndi:ldap://x}", "../../etc/passwd", "/etc/passwd", "C:\\x", "file:///etc/passwd",
    "<script>", "&amp;", "__import__('os').system('true')", "f'{1}'", "{{7*7}}", "#{1}", "E'\\x27'", "U&'\\0027'", "B'1'", "x::text", "a:b", ":a",
    ":'a'", "@", "@VERSION@", "@extschema@", "@extowner@", "?", "??", "\\d", "\\copy", "\\.", "~", "^$", "(a+)+$", "[", "(", "]", ")", "a,b", "a|b",
    "a&b", "!", "<>", "=", "::", "..", "0x27", "%27", "&#39;", "\\u0027", "\\u0000", "\\ud800", '{"a":', "[]", '[{"a": "\'"}]', '"\'"',
)  # fmt: skip

#: At least 200 texts, none with NUL: that is no text for PostgreSQL.
CORPUS = (
    *_PLAIN,
    *(opening.format(command) for opening, command in product(_OPENINGS, _COMMANDS)),
    *(opening + text for opening in ("'", "$$") for text in _PLAIN[:20]),
)
