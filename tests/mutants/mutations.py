"""What is changed in a module that decides, one small change at a time: mutmut's changes, and some of ours.

Mutmut takes a module apart, knows what to change, and leaves out what is only typing. None of its changes leaves a
condition out, which is how a check gets lost; and it passes by functions with a decorator and what a module says
outside of functions, among it the tables of headers, verbs and fields that decide. Both are added to its walk here. Its
way of running does not fit either: it tests a copy of the tree, with one set of tests for all modules.

Left out is what no caller can tell: log lines, sentences for people, docstrings, types.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libcst as cst
import msgspec
from libcst.metadata import MetadataWrapper
from mutmut.mutation.file_mutation import Mutation, MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal
from mutmut.mutation.pragma_handling import IgnoredCode

OUTSIDE = "-"
"""Stands for the function where what is changed is outside of functions."""
_WORDS_OF_A_SENTENCE = 3
_NOTHING_IGNORED = IgnoredCode(no_mutate_lines=set(), ignore_node_lines=set(), ignore_pattern_lines=set())


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a module. ``function`` is the qualified name of the outermost function that it is in.

    ``change`` are the lines that it takes out and puts in, without their indent, as a diff has them: what tells one
    mutant from another wherever in the module it stands.
    """

    path: str
    function: str
    change: str
    tree: Any
    mutation: Any

    @property
    def id(self) -> tuple[str, str, str]:
        return self.path, self.function, self.change

    def source(self) -> str:
        """Return the whole module with the change."""
        return _code(_applied(self.tree, self.mutation))


def _left_out(node: cst.BooleanOperation) -> Iterator[cst.CSTNode]:
    """``a and b`` becomes ``a``, and ``b``."""
    for kept in (node.left, node.right):
        yield kept.with_changes(lpar=[cst.LeftParen(), *kept.lpar], rpar=[*kept.rpar, cst.RightParen()])


def _forced(node: cst.If | cst.CompIf) -> Iterator[cst.CSTNode]:
    """A condition holds always; that of a statement, also never."""
    values = ("True", "False") if isinstance(node, cst.If) else ("True",)
    for value in values:
        space = cst.SimpleWhitespace(" ")
        field = "whitespace_before_test"
        yield node.with_changes(test=cst.Name(value), **{field: space})


def _not_done(node: cst.Expr) -> Iterator[cst.CSTNode]:
    """A call for its effect is not made."""
    if isinstance(node.value, cst.Call | cst.Await):
        yield node.with_changes(value=cst.Name("None"))


def _other_quantifier(node: cst.Call) -> Iterator[cst.CSTNode]:
    other = {"any": "all", "all": "any", "min": "max", "max": "min"}
    if isinstance(node.func, cst.Name) and node.func.value in other:
        yield node.with_changes(func=cst.Name(other[node.func.value]))


def _arguments(node: cst.Call) -> Iterator[cst.CSTNode]:
    """Mutmut's changes of arguments, but for sentences."""
    said = {id(one) for one in node.args if _is_sentence(one.value)}
    for changed in operator_arg_removal(node):
        if said <= {id(one) for one in changed.args}:
            yield changed


OPERATORS = [
    *(one for one in mutation_operators if one[1] is not operator_arg_removal),
    (cst.Call, _arguments),
    (cst.BooleanOperation, _left_out),
    (cst.If, _forced),
    (cst.CompIf, _forced),
    (cst.Expr, _not_done),
    (cst.Call, _other_quantifier),
]


class _Walk(MutationVisitor):
    """Mutmut's walk, also into functions with a decorator, and past what no caller can tell."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef) and node.decorators:
            return False
        if isinstance(node, cst.Import | cst.ImportFrom):
            return True
        return _is_unseen(node) or bool(super()._skip_node_and_children(node))


def _is_unseen(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    if isinstance(node, cst.Assign | cst.Expr):
        return _is_about_logs(node.value) or isinstance(node.value, cst.BaseString) or _is_type(node.value)
    return _is_sentence(node)


def _is_type(node: cst.BaseExpression) -> bool:
    return isinstance(node, cst.Subscript) and isinstance(node.value, cst.Name) and node.value.value == "Literal"


def _is_sentence(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.ConcatenatedString):
        return _is_sentence(node.left) or _is_sentence(node.right)
    if isinstance(node, cst.FormattedString):
        text = " ".join(one.value for one in node.parts if isinstance(one, cst.FormattedStringText))
    else:
        text = str(node.evaluated_value) if isinstance(node, cst.SimpleString) else ""
    return len(text.split()) >= _WORDS_OF_A_SENTENCE


def _is_about_logs(node: cst.BaseExpression) -> bool:
    if not isinstance(node, cst.Call):
        return False
    func = node.func
    if isinstance(func, cst.Attribute):
        return isinstance(func.value, cst.Name) and func.value.value == "log"
    return isinstance(func, cst.Name) and func.value in {"get", "TypeVar"}


def mutants(path: Path) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    walk = _Walk(OPERATORS, _NOTHING_IGNORED)
    tree = MetadataWrapper(cst.parse_module(path.read_text())).visit(walk)
    pieces = dict(_pieces(tree))
    home = {id(node): piece for piece in pieces for node in _nodes(piece)}
    found: dict[tuple[str, str, str], Mutant] = {}
    for mutation in walk.mutations:
        piece = home.get(id(mutation.original_node))
        if piece is None:
            continue  # how a class is declared, as frozen, is no decision
        after = _code(_applied(piece, mutation))
        change = _change(_code(piece), after)
        if change and _compiles(after):
            one = Mutant(path=str(path), function=pieces[piece], change=change, tree=tree, mutation=mutation)
            found.setdefault(one.id, one)
    return list(found.values())


def _pieces(tree: cst.Module) -> Iterator[tuple[cst.CSTNode, str]]:
    """Give every function, method and other statement with its name, the ones inside before what they are in."""
    for statement in tree.body:
        if isinstance(statement, cst.ClassDef):
            for part in statement.body.body:
                if isinstance(part, cst.FunctionDef):
                    yield part, f"{statement.name.value}.{part.name.value}"
                else:
                    yield part, f"{statement.name.value}.{OUTSIDE}"
        else:
            yield statement, statement.name.value if isinstance(statement, cst.FunctionDef) else OUTSIDE


def _nodes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    for child in node.children:
        yield from _nodes(child)


def _applied(tree: cst.CSTNode, mutation: Mutation) -> cst.CSTNode:
    changed: cst.CSTNode = deep_replace(tree, mutation.original_node, mutation.mutated_node)
    return changed


def _code(node: cst.CSTNode) -> str:
    module = node if isinstance(node, cst.Module) else cst.Module(body=[node])
    return str(module.code)


def _change(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    kept = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in kept)


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True
