"""Takes a claim's text apart, and says how far its parts can be trusted: no Sage in here."""

from __future__ import annotations

import ast
import dis
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .verdict import ClaimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}

_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)

_BRANCHES = (
    ast.BoolOp, ast.IfExp, ast.Compare, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp,
)  # fmt: skip
"""What decides by a truth value, or binds names of its own."""

_SYMBOLIC = ("sage.symbolic.", "sage.functions.")
"""Where the types of functions are that take symbols as they take numbers."""

EVEN_HANDED = {
    "abs", "sqrt", "log", "ln", "exp", "diff", "derivative", "integrate", "integral", "limit", "lim",
    "sum", "product", "taylor", "expand", "matrix", "Matrix", "vector", "identity_matrix", "SR",
    "function", "gamma", "factorial", "binomial", "prod", "conjugate", "real", "imag", "det",
    "Integer", "RealNumber", "ComplexNumber", "QQ", "ZZ", "arctan2", "real_part", "imag_part",
}  # fmt: skip
"""Functions that take symbols as they take numbers; others, such as gcd, may take them for polynomials."""

EVEN_METHODS = {
    "det", "determinant", "trace", "transpose", "inverse", "adjugate", "dot_product", "subs",
    "cross_product", "substitute", "expand", "diff", "derivative", "sqrt", "conjugate", "integrate",
    "limit", "taylor", "log", "exp", "abs", "simplify", "simplify_full", "full_simplify", "sum",
    "simplify_trig", "trig_simplify", "trig_expand", "trig_reduce", "factor", "collect", "lhs", "rhs",
    "partial_fraction", "simplify_rational", "canonicalize_radical", "simplify_log",
}  # fmt: skip

PLAIN_FUNCTIONS = {"abs", "sqrt", "log", "ln", "exp", "Integer", "RealNumber"}
"""Besides Sage's symbolic ones, whose types say it."""

UNPROVED = {
    "integrate", "integral", "definite_integral", "indefinite_integral", "sum", "symbolic_sum",
    "product", "limit", "lim", "solve", "desolve", "simplify", "simplify_full", "full_simplify",
    "simplify_trig", "trig_simplify", "simplify_log", "simplify_real", "canonicalize_radical",
    "inverse_laplace", "laplace", "simplify_hypergeometric", "log_simplify", "maxima_methods",
    "simplify_factorial", "simplify_rectform", "maxima", "sympy", "giac", "fricas", "gp",
}  # fmt: skip
"""Names of what has a computer algebra system say a thing that nobody has proved."""

SUMS = {"sum", "product"}
SYMBOLIC_SUM_ARGUMENTS = 4
"""With fewer, Python's own sum is meant."""

SYMBOLIC = {
    "sqrt", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh",
    "arcsin", "arccos", "arctan", "asin", "acos", "atan", "arctan2", "pi", "e", "I", "i", "SR",
    "var", "golden_ratio", "euler_gamma", "zeta", "erf", "oo", "infinity", "Infinity", "assume",
}  # fmt: skip
"""Names of what makes symbolic expressions, of which Python's False may mean unknown."""

INEXACT_METHODS = {
    "analytic_rank",
    "n",
    "N",
    "numerical_approx",
    "random_element",
    "is_pseudoprime",
    "nintegral",
}

INEXACT = {
    "RealNumber", "ComplexNumber", "float", "complex", "N", "n", "numerical_approx", "RR", "CC",
    "RDF", "CDF", "RealField", "ComplexField", "random", "randint", "numerical_integral",
    "find_root", "math", "cmath", "numpy", "np", "mpmath", "scipy", "find_local_maximum",
    "find_local_minimum", "nintegral", "minimize", "monte_carlo_integral", "is_pseudoprime",
    "random_prime", "random_matrix", "round", "O",
}  # fmt: skip
"""Names of what rounds, guesses or draws, or says False of what it does not know."""


@dataclass(frozen=True)
class Piece:
    """A part of a claim that has to hold as the others have.

    Attributes:
        text: As it is written.
        left: The left side, or the whole if it is no comparison.
        relation: ``==``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``; empty if it is no comparison.
        right: The right side.
    """

    text: str
    left: ast.expr
    relation: str = ""
    right: ast.expr | None = None

    def sides(self) -> list[ast.expr]:
        """The expressions it is made of."""
        return [self.left] if self.right is None else [self.left, self.right]


def pieces_of(text: str, preparse: Callable[[str], str]) -> list[Piece]:
    """The parts of a claim that are joined by `and`, and those of chained comparisons.

    Args:
        text: The claim, as a cell would have it.
        preparse: Makes Python of it.

    Raises:
        ClaimError: It is no expression.
    """
    try:
        tree = ast.parse(preparse(text.strip()), mode="eval")
    except (SyntaxError, ValueError) as error:
        hint = "write one expression, and == for equality"
        raise ClaimError(f"the claim cannot be read: {error}; {hint}") from None
    return list(_split(tree.body))


def _split(node: ast.expr) -> Iterator[Piece]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for value in node.values:
            yield from _split(value)
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops):
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            relation = _COMPARISONS[type(op)]
            shown = f"{shown_as_sage(left)} {relation} {shown_as_sage(right)}"
            yield Piece(shown, left, relation, right)
    else:
        yield Piece(shown_as_sage(node), node)


def shown_as_sage(node: ast.AST) -> str:
    """What the preparser has made, without the wrapped numbers."""

    class Unwrap(ast.NodeTransformer):
        def visit_Call(self, call: ast.Call) -> ast.AST:
            self.generic_visit(call)
            is_number = isinstance(call.func, ast.Name) and call.func.id in (
                "Integer",
                "RealNumber",
            )
            if is_number and len(call.args) == 1 and isinstance(call.args[0], ast.Constant):
                return ast.Name(id=str(call.args[0].value))
            return call

    copied = ast.parse(ast.unparse(node), mode="eval").body
    return ast.unparse(Unwrap().visit(copied)).replace("**", "^")


def names_in(node: ast.AST) -> set[str]:
    """Names that are read, those after a dot included."""
    found = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return found | {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}


def why_not_symbolic(
    piece: Piece, symbols: set[str], namespace: Mapping[str, Any], baseline: Mapping[str, Any]
) -> str:
    """Why a part must not be computed with symbols in the place of numbers; empty if it may.

    With a symbol, Python's decisions go the way of "unknown is false", and so would the claim.

    Args:
        piece: The part.
        symbols: Names that stand for symbols.
        namespace: The user's global variables.
        baseline: Those at the kernel's start.
    """
    for node in (node for side in piece.sides() for node in ast.walk(side)):
        if not names_in(node) & symbols:
            continue
        is_not = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        if is_not or isinstance(node, _BRANCHES):
            return "it decides something by a symbol"
        if isinstance(node, ast.BinOp) and not isinstance(node.op, _ARITHMETIC):
            return "it divides with remainder, or works on bits, with a symbol"
        name = _decider(node.func, namespace, baseline) if isinstance(node, ast.Call) else ""
        if name:
            return f"{name} may take a symbol for something else"
    return ""


def _decider(function: ast.expr, namespace: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """The name of a called function that may take a symbol for something else; empty if it does not."""
    if isinstance(function, ast.Attribute):
        base = namespace.get(function.value.id) if isinstance(function.value, ast.Name) else None
        is_users = getattr(type(base), "__module__", "") == "__main__"
        return function.attr if is_users or function.attr not in EVEN_METHODS else ""
    if not isinstance(function, ast.Name):
        return "what is called"
    name = function.id
    value = namespace.get(name)
    is_ours = value is baseline.get(name)
    is_symbolic = (getattr(type(value), "__module__", None) or "").startswith(_SYMBOLIC)
    return "" if is_symbolic or (name in EVEN_HANDED and is_ours) else name


def is_plain(piece: Piece) -> bool:
    """Whether a part is arithmetic and plain functions alone, which can be left unsimplified."""
    nodes = [node for side in piece.sides() for node in ast.walk(side)]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = {one.id for one in called if isinstance(one, ast.Name)}
    is_named = all(isinstance(one, ast.Name) for one in called)
    others = (ast.Subscript, ast.List, ast.Tuple, ast.Attribute)
    return (
        is_named
        and not names & (EVEN_HANDED - PLAIN_FUNCTIONS)
        and not any(isinstance(n, others) for n in nodes)
    )


def doubts(
    node: ast.expr,
    namespace: Mapping[str, Any],
    baseline: Mapping[str, Any],
    *,
    own: set[str],
    opaque: bool,
) -> set[str]:
    """Names within an expression, and within the user's functions it calls, that make its value doubtful.

    Args:
        node: The expression.
        namespace: The user's global variables.
        baseline: Those at the kernel's start.
        own: The claim's variables.
        opaque: Whether its value is a truth value, in which symbolic ones may be hidden.
    """
    names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    attributes = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
    harmless = SUMS if not any(_sums_symbols(one) for one in ast.walk(node)) else set()
    constants = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
    found = _named(names, attributes, constants, opaque=opaque)
    users = {name for name in names if namespace.get(name) is not baseline.get(name)}
    found -= ((users | own) - attributes) | harmless
    for name in users:
        value = namespace.get(name)
        code = getattr(getattr(value, "f", value), "__code__", None)
        if isinstance(code, types.CodeType):
            found |= doubts_of_code(code, namespace, baseline)
    return found


def doubts_of_code(
    code: types.CodeType, namespace: Mapping[str, Any], baseline: Mapping[str, Any]
) -> set[str]:
    """The same of a function's code, and of the user's functions that it calls."""
    found: set[str] = set()
    seen: set[types.CodeType] = set()
    waiting = [code]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        names = {*one.co_names, *one.co_freevars}
        waiting += [c for c in one.co_consts if isinstance(c, types.CodeType)]
        sums = any(
            i.opname == "CALL" and (i.arg or 0) >= SYMBOLIC_SUM_ARGUMENTS
            for i in dis.get_instructions(one)
        )
        users = {n for n in names if n in namespace and namespace[n] is not baseline.get(n)}
        those = _named(names, names, one.co_consts, opaque=True)
        found |= those - (set() if sums else SUMS) - users
        for name in users:
            value = namespace[name]
            inner = getattr(getattr(value, "f", value), "__code__", None)
            if isinstance(inner, types.CodeType):
                waiting.append(inner)
            elif not isinstance(value, _PLAIN) and not _is_exact_data(value):
                found.add(name)
    return found


def _named(
    names: set[str], attributes: set[str], constants: Iterable[Any], *, opaque: bool
) -> set[str]:
    known = (INEXACT | UNPROVED) & names
    known |= (INEXACT_METHODS | UNPROVED) & attributes
    if opaque:
        known |= SYMBOLIC & names
    if any(isinstance(one, float | complex) for one in constants):
        known.add("float")
    return known


def _sums_symbols(node: ast.AST) -> bool:
    """Whether a node is a call of Sage's symbolic sum or product."""
    is_sum = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SUMS
    return is_sum and len(getattr(node, "args", ())) >= SYMBOLIC_SUM_ARGUMENTS


def _is_exact_data(value: Any) -> bool:
    parent = getattr(value, "parent", None)
    if isinstance(value, types.ModuleType) or not callable(parent):
        return not isinstance(value, types.ModuleType | float | complex)
    return bool(getattr(parent(), "is_exact", lambda: True)())


_PLAIN = (int, str, list, tuple, dict, set, frozenset, type)
