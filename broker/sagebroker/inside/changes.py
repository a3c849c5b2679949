"""Whether a cell can have changed anything, and which names are the user's: no process in here."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

HARMLESS_TYPES = frozenset(
    {
        ("builtins", "NoneType"),
        ("builtins", "bool"),
        ("builtins", "bytes"),
        ("builtins", "complex"),
        ("builtins", "float"),
        ("builtins", "int"),
        ("builtins", "str"),
        ("sage.rings.integer", "Integer"),
        ("sage.rings.rational", "Rational"),
        ("sage.rings.real_double", "RealDoubleElement_gsl"),
        ("sage.rings.real_mpfr", "RealLiteral"),
        ("sage.rings.real_mpfr", "RealNumber"),
    }
)
"""Types whose values nothing can change, and whose arithmetic and display change nothing else."""

HARMLESS_CALLS = frozenset({"Integer", "RealNumber", "abs", "len", "print", "repr", "str", "type"})
"""Functions that change nothing when they are given such values; the first two are those with which
Sage's preparser wraps numbers."""

HARMLESS_NODES = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple)
HARMLESS_LEAVES = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)

_IPYTHONS_OWN = re.compile(
    r"In|Out|exit|quit|open|get_ipython|_|__|___|_i|_ii|_iii|_ih|_oh|_dh|_i?[0-9]+|_exit_code|__\w+__"
)


def may_change(cell: str | None, namespace: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Whether a cell that has run may have changed a variable or a setting.

    Args:
        cell: Its text as Python has run it; None if that is not known.
        namespace: The user's global variables.
        baseline: Those at the kernel's start.

    Returns:
        False only for cells that calculate with, or show, numbers and texts.
    """
    if cell is None:
        return True
    try:
        tree = ast.parse(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    return not all(
        isinstance(statement, ast.Pass)
        or (isinstance(statement, ast.Expr) and _harmless(statement.value, namespace, baseline))
        for statement in tree.body
    )


def _harmless(root: ast.AST, namespace: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    queue: list[ast.AST] = [root]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Name):
            if node.id not in namespace or not _is_harmless_value(namespace[node.id]):
                return False
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            unchanged = namespace.get(name) is baseline.get(name)
            if name not in HARMLESS_CALLS or not unchanged or node.keywords:
                return False
            queue += node.args
        elif isinstance(node, HARMLESS_NODES):
            queue += ast.iter_child_nodes(node)
        elif not isinstance(node, HARMLESS_LEAVES):
            return False
    return True


def _is_harmless_value(value: Any) -> bool:
    kind = type(value)
    return (kind.__module__, kind.__qualname__) in HARMLESS_TYPES


def user_names(namespace: Mapping[Any, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Names that the user has made or bound anew, in the order of the namespace."""
    return [
        name
        for name, value in list(namespace.items())
        if isinstance(name, str)
        and (name not in baseline or baseline[name] is not value)
        and not _IPYTHONS_OWN.fullmatch(name)
    ]


def deleted_names(namespace: Mapping[Any, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Names of the kernel's start that are no more."""
    return [
        name for name in baseline if name not in namespace and not _IPYTHONS_OWN.fullmatch(name)
    ]
