"""Rules for the SQL of pg_llm, which PostgreSQL's own parser reads here (pglast)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pglast import ast, parse_plpgsql, parse_sql
from pglast.enums.parsenodes import ObjectType

from tools import check_python

type Finding = tuple[int, str]

#: Not pinned, because the planner inlines no function that has a SET clause: hot paths, fully qualified. Signatures as pgspot writes them.
INLINED = (
    "llm._claimed_tenant()",
    "llm.current_user_id()",
    "llm._limited_subject(p_tenant text,p_resource text,p_identifier text)",
    "llm._message_id()",
    "llm._data_keys(p_chain bytea)",
    "llm._sealed(p_chain bytea,p_plain bytea)",
    "llm._newest_messages(p_tenant text,p_conversation_id uuid,p_branch bigint,p_upto bigint,p_before bigint,p_limit bigint)",
    (
        "llm._audit_leaf(p_tenant_id text,p_id bigint,p_timestamp timestamptz,p_user_id text,p_action text,p_object_type text,p_object_id text,"
        "p_details jsonb,p_client_info jsonb,p_before jsonb,p_after jsonb,p_sensitive_hash bytea,p_login_role text,p_client_address inet,"
        "p_application text,p_transaction_id xid8)"
    ),
    (
        "llm.vector_search(p_collection text,p_query vector.vector,p_k integer,p_filter jsonb,p_score_threshold double precision,p_ef integer,"
        "p_exact boolean,p_with_payload boolean)"
    ),
    "llm.load_config(p_key text,p_default jsonb,p_cached boolean)",
    "llm.verify_session(p_token text,p_device text)",
    (
        "llm._cache_is_live(p_tenant text,p_expires_at timestamptz,p_used_at timestamptz,p_idle interval,p_depends_on integer[],"
        "p_computed_in pg_snapshot)"
    ),
    "llm.cache_get_l1(p_key text,p_namespace text)",
    "llm.cache_get_text(p_key text,p_namespace text)",
    "llm.cache_set(p_key text,p_value jsonb,p_ttl double precision,p_namespace text,p_tags text[],p_depends_on text[],p_token text)",
    "llm.cache_set_bytes(p_key text,p_value bytea,p_ttl double precision,p_namespace text,p_tags text[],p_depends_on text[],p_token text)",
    "llm.cache_set_ex(p_key text,p_value jsonb,p_ttl double precision,p_namespace text)",
    "llm.cache_set_nx(p_key text,p_value jsonb,p_ttl double precision,p_namespace text)",
    "llm.cache_set_text(p_key text,p_value text,p_ttl double precision,p_namespace text,p_tags text[],p_depends_on text[],p_token text)",
    (
        "llm._settled_entries(p_tenant text,p_stream text,p_window llm.stream_window,era bigint,transaction_id xid8,number bigint,name text,"
        "payload jsonb,value double precision,user_id uuid,at timestamptz)"
    ),
)

#: Not pinned, because PostgreSQL lets no procedure with a SET clause commit: fully qualified, types included.
COMMITTING = (
    "llm.clean_cache()",
    "llm.index_new_messages()",
    "llm.maintain(p_collection text,p_lock_writers boolean,INOUT p_waiting bigint)",
    "llm.manage_partitions(INOUT p_ok boolean)",
    "llm.trim_streams(INOUT p_emptied bigint)",
    "llm.tend_queues()",
    "llm.rewrap(p_table regclass,p_column name,p_tenant text,p_batch integer,INOUT p_outcome text,INOUT p_rewrapped bigint)",
)

#: Who may use EXECUTE, and why that is safe.
EXECUTES = {
    "llm._grant_execute": "regprocedures, which print themselves quoted, and roles that only functions.sql chooses",
    "llm._protect_tenant_table": "a regclass, which prints itself quoted, and privileges that only tables.sql chooses",
    "llm._protect_user_rows": "a regclass, which prints itself quoted",
    "llm._make_partition": "names that format() or a regclass or regrole quotes",
    "llm._make_default_partition": "names that format() or a regclass or regrole quotes",
    "llm._copy_rows": "names that format() or a regclass or regrole quotes; the owner's code runs with the owner's rights",
    "llm._move_default_rows": "names that format() or a regclass quotes",
    "llm._default_rows": "names that format() or a regclass quotes",
    "llm._may_be_dropped": "a function of schema llm, where only superusers create",
    "llm._drop_partition": "regclasses, which print themselves quoted",
    "llm._carry_out": "regclasses, which print themselves quoted",
    "llm._protect_partition": "names that format() or a regclass or regrole quotes, and triggers as pg_get_triggerdef() prints them",
    "llm._is_trimmed": "a regclass, which prints itself quoted",
    "llm._empty_trimmed_partition": "a regclass, which prints itself quoted",
    "llm.register_personal_data": "a regclass and a regnamespace, which print themselves quoted",
    "llm._lock_rows_of_user": "a regclass, which prints itself quoted, and conditions of llm._rows_of_user(), names in which %I or a regclass quotes",
    "llm._erase_rows_of_user": "as llm._lock_rows_of_user(), and columns in %I",
    "llm._lock_released_rows": "as llm._lock_rows_of_user()",
    "llm._delete_rows_at": "the table is a regclass",
    "llm._drop_message_embedding": "constant: the table is there only once its collection was made",
    "llm._residual_rows": "as llm._lock_rows_of_user(), and columns in %I and %L",
    "llm._rewrap_batch": "names that format() or a regclass quotes, and a type as format_type() prints it",
    "llm._enforce_encryption": "names that format() or a regclass quotes",
    "llm.validate_security_compliance": "names that format() or a regclass quotes",
    "llm.encrypted_values": "names that format() or a regclass quotes",
    "llm._audit_changes": "columns, which the catalogue names and %I quotes; values are parameters",
    "llm._make_audit_triggers": "a regclass, which prints itself quoted, constant triggers, and column names in %L",
    "llm.unaudit_table": "a regclass, which prints itself quoted, and the names of its triggers in %I",
    "llm.create_collection": "a checked name in %I, a type of llm._vector_type(), and indexes of llm._payload_indexes()",
    "llm.drop_collection": "a name in %I, which was that of a collection",
    "llm._protect_points": "a regclass, which prints itself quoted",
    "llm.collection_info": "a regclass, which prints itself quoted; values are parameters",
    "llm.upsert_points": "a collection's name in %I, and a type of llm._vector_type(); values are parameters",
    "llm.get_points": "a collection's name in %I; values are parameters",
    "llm.evaluate_search": "a regclass, which prints itself quoted; the caller's code runs with the caller's rights",
    "llm.scroll_points": "a collection's name in %I; values are parameters",
    "llm.count_points": "a collection's name in %I; values are parameters",
    "llm.set_payload": "a collection's name in %I; values are parameters",
    "llm.delete_points": "a collection's name in %I; values are parameters",
    "llm._live_rows": "a collection's name in %I; values are parameters",
    "llm._plan_segment": "a collection's name in %I; values are parameters",
    "llm._write_searches": "branches of search_plan, made of rows of llm.collections and llm.segments as its plans are, in %L",
    "llm._build_segment": "an index of llm._segment_index(), and its name in %I",
    "llm._drop_retired": "a segment's name in %I",
    "llm._build_serially": "a regclass, which prints itself quoted",
    "llm._settle_payload_indexes": "indexes of llm._payload_indexes(), and names in %I",
    "llm._refuse_other_model": "a collection's name in %I",
    "llm._fill_words": "a collection's name in %I, and its language in %L",
    "llm._watch_embeddings": "a regclass, which prints itself quoted, constant triggers, and a collection's name in %L",
    "llm.set_embedding_model": "a collection's name in %I and %L, and constant triggers; values are parameters",
    "llm.claim_embedding_jobs": "a collection's name in %I; values are parameters",
    "llm.complete_embedding_jobs": "as llm.upsert_points()",
    "llm._mirror_point": "a collection's name in %I; values are parameters",
    "llm._mirror_points": "a regclass, which prints itself quoted, constant events, and collections' names in %I and %L",
    "llm._part_copies": "a regclass, which prints itself quoted, and a trigger's name in %I",
    "llm.copy_for_model": "collections' names in %I; values are parameters",
    "llm.compare_collections": "collections' names in %I; values are parameters",
    "llm.optimize_index": "a collection's name in %I",
    "llm.analyze_vector_distribution": "a collection's name in %I; values are parameters",
    "llm._add_semantic_embedding": "a regclass, which prints itself quoted",
    "llm.setup": "the storage scripts of this very extension",
    "llm.migrate_down": "the storage scripts of this very extension",
    "do $roles$": "the names of pg_llm's own roles",
    "do $privileges$": "regprocedures, which print themselves quoted",
    "do $install$": "identities that pg_identify_object() quotes",
}

#: EXECUTE runs format() of a constant, or one of these expressions.
STORAGE_SCRIPT = "v_step.script"

FORBIDDEN_TYPES = {
    "bpchar": "text",
    "float4": "double precision",
    "json": "jsonb",
    "money": "numeric",
    "serial": "bigint generated by default as identity",
    "bigserial": "bigint generated by default as identity",
    "smallserial": "bigint generated by default as identity",
    "time": "timestamptz",
    "timetz": "timestamptz",
    "timestamp": "timestamptz",
    "varchar": "text with a check of its length",
}
_SYNONYMS = {"real": "float4", "char": "bpchar", "character": "bpchar", "character varying": "varchar"}

_ERROR = 21  # elog_level of RAISE EXCEPTION

_BEFORE_STATEMENT = re.compile(r"(?:\s+|--[^\n]*\n)*")
_COMMENT_ABOVE = re.compile(r"(?:^--[^\n]*\n)+\Z", re.MULTILINE)


@dataclass(frozen=True)
class Statement:
    """A statement, the line that it begins in, and the comment right above it."""

    node: ast.Node
    text: str
    line: int
    comment: str


class Code:
    """What a function or a DO block says."""

    def __init__(self, statement: Statement) -> None:
        node: Any = statement.node
        self.statement = statement
        elements = node.args if isinstance(statement.node, ast.DoStmt) else node.options
        options = {element.defname: element.arg for element in elements}
        settings = [element.arg for element in elements if element.defname == "set"]
        body = options.get("as")  # none when it is BEGIN ATOMIC
        self.body: str = "" if body is None else body[0].sval if isinstance(body, tuple) else body.sval
        self.language: str = options["language"].sval if "language" in options else "plpgsql"
        self.is_definer = "security" in options and options["security"].boolval
        self.path = [[schema.val.sval for schema in setting.args] for setting in settings if setting.name == "search_path"]
        self.line = statement.line + (statement.text.partition(self.body)[0].count("\n") if self.body else 0)
        self.name = f"do {statement.text.split()[1]}" if isinstance(node, ast.DoStmt) else _name(node.funcname)

    def plpgsql(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield each PL/pgSQL node: kind, line in the file, fields."""
        if self.language == "plpgsql":
            for kind, fields in _plpgsql_nodes(parse_plpgsql(self.statement.text)):
                yield kind, self.line + int(fields.get("lineno", 1)) - 1, fields


def as_sql(script: str) -> str:
    """Return a script without what only psql and CREATE EXTENSION understand."""
    return re.sub(r"@extschema:(\w+)@", r"\1", re.sub(r"^\\", "--", script, flags=re.MULTILINE))


def statements(script: str) -> list[Statement]:
    """Return the statements of a script."""
    script = as_sql(script)
    found = []
    for parsed in parse_sql(script):
        text = script[parsed.stmt_location : parsed.stmt_location + parsed.stmt_len or None]
        before = _BEFORE_STATEMENT.match(text)
        assert before
        comment = _COMMENT_ABOVE.search(before[0])
        line = 1 + script.count("\n", 0, parsed.stmt_location + before.end())
        found.append(Statement(parsed.stmt, text[before.end() :], line, comment[0] if comment else ""))
    return found


def codes(script: str) -> list[Code]:
    """Return the functions, procedures and DO blocks of a script."""
    return [Code(each) for each in statements(script) if isinstance(each.node, ast.CreateFunctionStmt | ast.DoStmt)]


def findings(script: str) -> Iterator[Finding]:
    """Yield what is wrong with a script."""
    yield from _missing_comments(script)
    yield from _forbidden_types(script)
    for code in codes(script):
        yield from _unsafe_code(code)
        if isinstance(code.statement.node, ast.CreateFunctionStmt):
            yield from _unsafe_function(code, script)
        if code.language == "plpython3u":
            yield from ((code.line + line - 1, text) for line, text in check_python.body_findings(code.name, code.body))


def error_templates(script: str) -> Iterator[tuple[int, check_python.Template]]:
    """Yield the line and the message of each error that the code in a script can raise."""
    for code in codes(script):
        for kind, line, fields in code.plpgsql():
            if kind == "PLpgSQL_stmt_raise" and fields.get("elog_level") == _ERROR and "message" in fields:
                yield line, tuple(part.replace("\0", "%") for part in fields["message"].replace("%%", "\0").split("%"))
        if code.language == "plpython3u":
            yield from ((code.line + line - 1, text) for line, text in check_python.error_templates(code.body))


def _missing_comments(script: str) -> Iterator[Finding]:
    created: list[tuple[str, int]] = []
    commented = set()
    for statement in statements(script):
        node: Any = statement.node
        match node:
            case ast.CreateFunctionStmt():
                created.append((f"function {_name(node.funcname)}", statement.line))
            case ast.CompositeTypeStmt():
                created.append((f"type {_name(node.typevar)}", statement.line))
            case ast.CreateEnumStmt() | ast.CreateRangeStmt():
                created.append((f"type {_name(node.typeName)}", statement.line))
            case ast.CreateDomainStmt():
                created.append((f"type {_name(node.domainname)}", statement.line))
            case ast.DefineStmt() if node.kind == ObjectType.OBJECT_AGGREGATE:
                created.append((f"function {_name(node.defnames)}", statement.line))
            case ast.ViewStmt():
                created.append((f"relation {_name(node.view)}", statement.line))
            case ast.CreateTableAsStmt():
                created.append((f"relation {_name(node.into.rel)}", statement.line))
            case ast.CreateStmt() if node.partbound is None:
                created.append((f"relation {_name(node.relation)}", statement.line))
            case ast.CommentStmt() if node.comment:
                commented.add(_commented(node))
    for name, line in created:
        if name not in commented:
            yield line, f"{name} has no COMMENT ON in this file"
    for name, count in Counter(name for name, _ in created).items():
        if count > 1:
            yield dict(created)[name], f"{name} is created {count} times: use defaults instead of overloads"


def _commented(node: Any) -> str:
    match node.objtype:
        case ObjectType.OBJECT_FUNCTION | ObjectType.OBJECT_PROCEDURE | ObjectType.OBJECT_ROUTINE | ObjectType.OBJECT_AGGREGATE:
            return f"function {_name(node.object.objname)}"
        case ObjectType.OBJECT_TYPE | ObjectType.OBJECT_DOMAIN:
            return f"type {_name(node.object.names)}"
        case ObjectType.OBJECT_TABLE | ObjectType.OBJECT_VIEW | ObjectType.OBJECT_MATVIEW:
            return f"relation {_name(node.object)}"
    return ""


def _forbidden_types(script: str, offset: int = 0) -> Iterator[Finding]:
    for parsed in parse_sql(as_sql(script)):
        for node in _nodes(parsed.stmt):
            if isinstance(node, ast.TypeName) and node.names:
                line = offset + 1 + script.count("\n", 0, max(node.location, 0))
                yield from _forbidden_type(str(node.names[-1].sval), line)
    for code in codes(script) if not offset else ():
        if code.language == "sql":
            yield from _forbidden_types(re.sub(r"^\s*@\w+@$", "(1)", code.body, flags=re.MULTILINE), code.line - 1)
        for kind, line, fields in code.plpgsql():
            if kind == "PLpgSQL_var" and "lineno" in fields:
                name = fields["datatype"]["PLpgSQL_type"]["typname"].lower()
                bare = re.sub(r"^pg_catalog\.|[\"(\[].*$", "", name.replace('pg_catalog."', "").rstrip('"')).strip()
                yield from _forbidden_type(_SYNONYMS.get(bare, bare), line)


def _forbidden_type(name: str, line: int) -> Iterator[Finding]:
    if name in FORBIDDEN_TYPES:
        yield line, f"type {name}: use {FORBIDDEN_TYPES[name]}"


def _unsafe_function(code: Code, script: str) -> Iterator[Finding]:
    line = code.statement.line
    inlined = any(signature.startswith(f"{code.name}(") for signature in INLINED)
    commits = any(signature.startswith(f"{code.name}(") for signature in COMMITTING)
    if commits and not code.statement.node.is_procedure:  # type: ignore[attr-defined]
        yield line, f"{code.name} is listed as a procedure that commits, but is none"
    if inlined and (code.path or code.language != "sql"):
        yield line, f"{code.name} is listed as inlined, but cannot be"
    if not inlined and not commits and code.path != [["pg_catalog", "pg_temp"]]:
        yield line, f"{code.name} does not set search_path = pg_catalog, pg_temp"
    if code.is_definer:
        if "-- security definer: " not in code.statement.comment:
            yield line, f"{code.name} is security definer, and no comment '-- security definer: …' above it says why"
        if f"alter function {code.name}(" not in script or "owner to llm_owner" not in script.split(f"alter function {code.name}(")[1].split(";")[0]:
            yield line, f"{code.name} is security definer, and not given to llm_owner"


def _unsafe_code(code: Code) -> Iterator[Finding]:
    for kind, line, fields in code.plpgsql():
        match kind:
            case "PLpgSQL_stmt_dynexecute" | "PLpgSQL_stmt_dynfors":
                query = fields["query"]
            case "PLpgSQL_stmt_return_query" | "PLpgSQL_stmt_open" if "dynquery" in fields:
                query = fields["dynquery"]
            case _:
                continue
        text = query["PLpgSQL_expr"]["query"].strip()
        if code.name not in EXECUTES:
            yield line, f"{code.name} uses EXECUTE, and is not on the reviewed list"
        elif text != STORAGE_SCRIPT and not _formats_a_constant(text):
            yield line, f"{code.name} executes {text}, which is not format() of a constant"


def _formats_a_constant(expression: str) -> bool:
    select: Any = parse_sql(f"select {expression}")[0].stmt
    call = select.targetList[0].val
    return isinstance(call, ast.FuncCall) and _name(call.funcname) == "format" and isinstance(call.args[0], ast.A_Const)


def _name(name: Any) -> str:
    if isinstance(name, ast.RangeVar):
        return f"{name.schemaname}.{name.relname}"
    return ".".join(part.sval for part in name)


def _nodes(node: object) -> Iterator[ast.Node]:
    if isinstance(node, tuple):
        for item in node:
            yield from _nodes(item)
    elif isinstance(node, ast.Node):
        yield node
        for attribute in node:
            yield from _nodes(getattr(node, attribute))


def _plpgsql_nodes(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, list):
        for item in tree:
            yield from _plpgsql_nodes(item)
    elif isinstance(tree, dict):
        for kind, fields in tree.items():
            if kind.startswith("PLpgSQL_"):
                yield kind, fields
            yield from _plpgsql_nodes(fields)
