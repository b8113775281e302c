"""Rules for the Python of pg_llm: its modules in python/pg_llm, and the bodies of PL/Python functions."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

type Finding = tuple[int, str]

#: The fixed parts of a message, between what varies.
type Template = tuple[str, ...]

#: The one function whose body is more than a trampoline: it loads the package that all others call.
BOOT = "llm._boot"

#: Functions that run SQL, and what may be their first argument beside a constant: spi.Plan is given its statement by spi.plan.
RUN_SQL = {"spi.plan", "spi.Plan", "plpy.prepare", "plpy.execute", "plpy.cursor"}
KEPT_BY_PLAN = {"self._statement", "self._prepared()"}

#: Who may call spi.built_plan, and of what the statements are built.
BUILDS_SQL = {
    "hybrid_search": "as vector_search",
    "point_filter": "conditions in which keys and values are parameters",
    "search_plan": "as vector_search",
    "search_quality": "as vector_search",
    "vector_search": "conditions of point_filter, and the table, type and numbers of a row of llm.collections, whose checks allow only names",
}

#: Would let data become code, reach outside the database, or change the process for everybody who uses this backend.
FORBIDDEN_MODULES = {
    "asyncio", "concurrent", "ctypes", "http", "importlib", "marshal", "multiprocessing", "pickle", "plpy", "shelve", "shutil", "signal", "socket",
    "subprocess", "tempfile", "threading", "urllib",
}  # fmt: skip
FORBIDDEN_NAMES = re.compile(
    r"(eval|exec|compile|__import__|open|input|breakpoint|globals|__builtins__|GD|SD|io\.open|sys\.(modules|exit|path\.(insert|append|extend))"
    r"|os\.(open|system|popen|fork|chdir|putenv|umask|environ\.\w+|(exec|spawn|posix_spawn)\w*)"
    r"|.*\.(read_text|read_bytes|write_text|write_bytes|_getframe))"
)

#: (module, name): why it is right there.
ALLOWED = {
    ("__init__", "importlib"): "imports the package's own modules when they are first asked for",
    ("anchor", "os.open"): "the anchor file, at a path that only a superuser can set",
    ("cache_stats", "os.open"): "the shared file, at a constant path in the data directory",
    ("coherence", "os.open"): "the shared file, at a constant path in the data directory",
    ("doctor", "maps.read_text"): "what the kernel says of a backend's memory",
    ("key_store", "os.open"): "files of the key store, at places that superusers chose",
    ("key_store", "subprocess"): "the command that prints a master key, which a superuser chose; no shell",
    ("rate_counter", "os.open"): "the shared file, at a constant path in the data directory",
    ("spi", "plpy"): "the one module that talks to plpy",
    ("spi", "sys.modules"): "the one module that finds GD",
}


def module_findings(module: str, source: str) -> list[Finding]:
    """Return what is wrong with a module of pg_llm."""
    rules = _Rules(module, ast.parse(source))
    return sorted(set(rules.findings))


def body_findings(function: str, body: str) -> list[Finding]:
    """Return what is wrong with the body of a PL/Python function."""
    if function == BOOT:
        return []
    match ast.parse(body).body:
        case [ast.ImportFrom(module="pg_llm", names=[ast.alias(name=module, asname=None)]), *calls] if len(calls) in (1, 2):
            if all(_is_call_of(call, module) for call in calls):
                return []
    return [(1, f"{function} is no trampoline: from pg_llm import x, then one or two calls of x")]


def error_templates(source: str) -> Iterator[tuple[int, Template]]:
    """Yield the line and the message of each error that is raised for a client."""
    tree = ast.parse(source)
    names = _imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and re.fullmatch(r"spi\.[A-Z]\w+|plpy\.(error|fatal)", _dotted(node.func, names)):
            match node.args[0]:
                case ast.Constant(value=str(text)):
                    yield node.lineno, tuple(text.split("@VERSION@"))
                case ast.JoinedStr(values=parts):
                    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "@VERSION@" for part in parts)
                    yield node.lineno, tuple(text.split("@VERSION@"))


class _Rules(ast.NodeVisitor):
    def __init__(self, module: str, tree: ast.Module) -> None:
        self.findings: list[Finding] = []
        self._module = module
        self._names = _imported_names(tree)
        assigned = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        self._constants = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign) and _is_text(node.value)
            for target in node.targets
            if isinstance(target, ast.Name) and assigned[target.id] == 1
        }
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level:
            self._import(node, node.module or "")
        for alias in node.names:
            self._refer(node, f"{node.module}.{alias.name}")

    def visit_Name(self, node: ast.Name) -> None:
        self._refer(node, _dotted(node, self._names))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._refer(node, _dotted(node, self._names))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value in ("GD", "SD", "__main__") and self._module != "spi":
            self._find(node, f"{node.value!r}: what lasts as long as the session is kept through spi.session()")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Store | ast.Del) and _dotted(node.value, self._names) in ("os.environ", "sys.modules"):
            self._find(node, f"{ast.unparse(node)} changes the process for everybody")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _dotted(node.func, self._names)
        if self._module == "spi" and name in ("Plan", "plan"):
            name = f"spi.{name}"
        if name == "spi.built_plan" and self._module not in BUILDS_SQL:
            self._find(node, "spi.built_plan() runs SQL that is no constant, and this module is not on the reviewed list")
        if name in RUN_SQL and not self._is_constant(node):
            self._find(node, f"{name}() of something that is not a constant: pass values as parameters")
        self.generic_visit(node)

    def _is_constant(self, node: ast.Call) -> bool:
        if not node.args or node.keywords:
            return False
        first = node.args[0]
        if self._module == "spi" and (ast.unparse(first) in KEPT_BY_PLAN or ast.unparse(node) == "Plan(statement, types)"):
            return True
        return _is_text(first) or (isinstance(first, ast.Name) and first.id in self._constants)

    def _import(self, node: ast.stmt, module: str) -> None:
        root = module.split(".")[0]
        if root in FORBIDDEN_MODULES and (self._module, root) not in ALLOWED:
            self._find(node, f"module {root} is not allowed here")

    def _refer(self, node: ast.AST, name: str) -> None:
        name = name.removeprefix("builtins.")
        if FORBIDDEN_NAMES.fullmatch(name) and (self._module, name) not in ALLOWED:
            self._find(node, f"{name} is not allowed here")

    def _find(self, node: ast.AST, message: str) -> None:
        self.findings.append((getattr(node, "lineno", 1), message))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_call_of(statement: ast.stmt, module: str) -> bool:
    match statement:
        case ast.Expr(value=value) | ast.Return(value=value):
            return isinstance(value, ast.Call) and _dotted(value.func, {}).startswith(f"{module}.")
    return False


def _imported_names(tree: ast.Module) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            names |= {alias.asname or alias.name: prefix + alias.name for alias in node.names}
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return what an expression refers to, such as os.path.join, whatever it was imported as."""
    match node:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Attribute(value=value, attr=attribute):
            return f"{_dotted(value, names)}.{attribute}"
    return "…"
