"""Where our code reads text that could be foreign: found in the source, so that no reader is forgotten."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

ROOMS: Final = ("eventcore", "watchers", "workers", "proxycore")
ROOT: Final = Path(__file__).parents[2]
READERS: Final = frozenset(
    {
        "int",
        "float",
        "fromisoformat",
        "strptime",
        "parsedate_to_datetime",
        "parse_qsl",
        "parse_qs",
        "unquote",
        "unquote_to_bytes",
        "urlsplit",
        "urlparse",
        "b64decode",
        "urlsafe_b64decode",
        "ip_address",
        "decode_complete",
        "get_unverified_header",
        "load_pem_x509_certificate",
        "load_pem_x509_certificates",
        "load_der_x509_certificate",
        "from_bytes",
    }
)
"""Calls by which text or bytes become something else. What msgspec and llhttp read, they read in one pass, in C."""
_EXPRESSIONS: Final = frozenset({"compile", "match", "fullmatch", "search", "findall", "finditer", "sub", "split"})


class Module:
    """One file: its functions, what each of them names, and which of them read."""

    def __init__(self, file: Path) -> None:
        self.name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        self.names: dict[str, set[str]] = {}
        self.reads: dict[str, set[str]] = {}
        expressions: set[str] = set()
        tree = ast.parse(file.read_text())
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_expression(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                expressions |= {target.id for target in targets if isinstance(target, ast.Name)}
        self._walk(tree, "", expressions)

    def _walk(self, tree: ast.AST, prefix: str, expressions: set[str]) -> None:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.ClassDef):
                self._walk(node, f"{prefix}{node.name}.", expressions)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._note(f"{prefix}{node.name}", node, expressions)

    def _note(self, name: str, function: ast.AST, expressions: set[str]) -> None:
        named = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        named |= {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
        self.names[name] = named
        found = {_reader(node) for node in ast.walk(function) if isinstance(node, ast.Call)} - {""}
        self.reads[name] = found | (named & expressions)

    def reached(self, roots: set[str]) -> set[str]:
        """Return these functions and all that they name in this file, and what those name."""
        found: set[str] = set()
        left = {name for name in roots if name in self.names}
        while left:
            name = left.pop()
            found.add(name)
            left |= {other for other in self.names if other.rpartition(".")[2] in self.names[name]} - found
        return found


def _is_expression(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and _called(value) == "re.compile"


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _reader(call: ast.Call) -> str:
    called = _called(call)
    last = called.rpartition(".")[2]
    if called.startswith("re.") and last in _EXPRESSIONS:
        return called
    # A constant, as in float("inf"), is nobody's text.
    return last if last in READERS and call.args and not isinstance(call.args[0], ast.Constant) else ""


@cache
def modules() -> tuple[Module, ...]:
    """Return every file of the rooms."""
    return tuple(Module(file) for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))


def readers() -> dict[str, set[str]]:
    """Return every function that reads, as ``module:function``, and by what."""
    return {f"{module.name}:{name}": by for module in modules() for name, by in module.reads.items() if by}


def covered(parsers: set[str]) -> set[str]:
    """Return the functions that are reached from these parsers, each in its own file."""
    found: set[str] = set()
    for module in modules():
        roots = {one.partition(":")[2] for one in parsers if one.partition(":")[0] == module.name}
        found |= {f"{module.name}:{name}" for name in module.reached(roots)}
    return found
