"""`statements`: what a cell's code uses, binds and touches, as far as reading it tells.

Sage's code is nearly Python: what its preparser and IPython change is rewritten just so far that
Python's own parser takes it. Nothing is run, and a cell that cannot be read so is looked at word by word.
"""

from __future__ import annotations

import ast
import posixpath
import re
import warnings
from dataclasses import dataclass, field
from typing import Final

COMPUTED: Final = ""
"""In place of a file's name that only running the code would tell."""

MAX_CHARS: Final = 100_000
"""Longer code is looked at word by word: the parser holds up the whole process while it reads."""

FOREIGN: Final = "/"
"""In place of the name of a file that is not the session's: the image has it, in every container."""

_LITERALS: Final = re.compile(
    r"""(\#[^\n]*|[rRbBfFuU]{0,2}(?:'''(?:\\.|[^\\])*?(?:'''|\Z)|\"\"\"(?:\\.|[^\\])*?(?:\"\"\"|\Z)"""
    r"""|'(?:\\.|[^'\\\n])*'?|"(?:\\.|[^"\\\n])*"?))""",
    re.DOTALL,
)
"""Comments and strings, in which nothing is rewritten. One that has no end goes on to the line's or the
text's: where it matched nothing, many of them would take a time that grows with their square."""

_REWRITES: Final = tuple(
    (re.compile(pattern, re.MULTILINE), instead)
    for pattern, instead in (
        (r"((?:^|;)[ \t]*)([A-Za-z_]\w*)\.<([\w\s,]+)>\s*=", r"\1\2, \3 ="),  # R.<x, y> = QQ[]
        (
            r"((?:^|;)[ \t]*)([A-Za-z_]\w*)\(([A-Za-z_][\w\s,]*)\)\s*=(?!=)",
            r"\1\2, \3 =",
        ),  # f(x) = x^2
        (r"(?<=[\w\])])\[\s*\]", "[0]"),  # QQ['x'][] and QQ[]
        (r",\s*\.\.\s*,", ","),  # [1, 3, .., 9]
        (r"(?<!\.)\.\.(?!\.)", ","),  # [1..5]
        (r"(\b[A-Za-z_]\w*|[\])])\.(\d+)\b", r"\1[\2]"),  # K.0
        (r"\b(\d+)\.(?![eEjJ]\d)(?=[A-Za-z_])", r"\1 ."),  # 12.sqrt()
        (r"\b(\d+(?:\.\d*)?)[rR]\b", r"\1"),  # 12r
        (r"\\(?!\n)", "*"),  # A \ b
    )
)

_BINDING: Final = re.compile(
    r"(?:^|[;\n])[ \t]*(?:def\s+|class\s+)?([A-Za-z_]\w*)(?:\([^()\n]*\))?[ \t]*[=.<\[:]"
)
"""The name that a line of code which is no Python seems to bind, or to change."""

_MAGIC: Final = re.compile(r"^(\s*)%(\w+)[ \t]*(.*)$")
_SHELL: Final = re.compile(r"^\s*!|^[\w, \t]+=\s*!")
_HELP: Final = re.compile(r"^\s*\?|\?\s*$")
_TIMING: Final = frozenset({"time", "timeit", "prun"})
_SHELL_CELLS: Final = frozenset({"bash", "sh", "script", "system", "sx"})
_RUNNERS: Final = frozenset({"run", "load", "attach"})

_READERS: Final = frozenset(
    [
        "load",
        "attach",
        "load_session",
        "runfile",
        "execfile",
        "loadtxt",
        "genfromtxt",
        "read_csv",
        "read_excel",
        "read_json",
        "read_table",
        "read_parquet",
        "imread",
        "fromfile",
    ]
)
_PATH_READERS: Final = frozenset({"read_text", "read_bytes"})
_PATH_WRITERS: Final = frozenset({"write_text", "write_bytes", "touch"})
_WRITERS: Final = frozenset(
    [
        "save",
        "save_session",
        "save_image",
        "savefig",
        "to_csv",
        "to_excel",
        "to_json",
        "to_parquet",
        "savetxt",
        "savez",
        "tofile",
        "imwrite",
        "urlretrieve",
    ]
)
_LOOKERS: Final = frozenset(["listdir", "glob", "iglob", "iterdir", "scandir", "rglob"])
_SHELLS: Final = frozenset({"os.system", "os.popen"})
_SHOWING: Final = frozenset({"print", "show", "display", "pretty_print", "view", "latex", "html"})
"""What changes none of its arguments."""


@dataclass(kw_only=True)
class Statement:
    """A top-level statement of a cell."""

    reads: set[str] = field(default_factory=set)
    """Names it uses that it does not bind itself before."""
    binds: set[str] = field(default_factory=set)
    """Names it gives a new value."""
    changes: set[str] = field(default_factory=set)
    """Names whose value it may change in place."""
    words: set[str] = field(default_factory=set)
    """Dotted names in it, as they stand there: ``np.random.rand``; of a method ``.rand``."""
    calls: set[str] = field(default_factory=set)
    """Those of them that are called."""
    sources: dict[str, str] = field(default_factory=dict)
    """Names it imports, and the module each comes from."""
    seeds: set[str] = field(default_factory=set)
    """What it calls with a seed: ``set_random_seed``, ``random.seed``."""
    files_read: set[str] = field(default_factory=set)
    files_written: set[str] = field(default_factory=set)
    looks_at_files: bool = False
    tells_times: bool = False
    """It shows how long something took; its values are not concerned."""
    runs_shell: bool = False


def statements(code: str) -> list[Statement]:
    """The cell's top-level statements in order; one for all where it cannot be read."""
    outer = Statement()
    if len(code) > MAX_CHARS:
        return [_by_words(code)]
    text = _python(code, outer)
    try:
        with warnings.catch_warnings():
            # Of doubtful escapes in the user's strings.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [outer, _by_words(text)]
    found = [outer]
    for node in tree.body:
        reader = _Reader()
        try:
            reader.visit(node)
        except RecursionError:
            reader.statement = _by_words(text)
        found.append(reader.statement)
    return found


def _python(code: str, outer: Statement) -> str:
    """The code so far as Python that its parser takes it; what leaves no trace there goes to ``outer``."""
    lines = code.split("\n")
    first = next((n for n, line in enumerate(lines) if line.strip()), 0)
    if lines[first].startswith("%%"):
        name, _, rest = lines[first][2:].partition(" ")
        if name == "writefile":
            outer.files_written.add(_named(rest.split()[-1] if rest.split() else None))
            return ""
        if name in _SHELL_CELLS:
            outer.runs_shell = True
            return ""
        outer.tells_times = name in _TIMING
        lines[first] = ""
    lines = [_plain_line(line, outer) for line in lines]
    pieces = _LITERALS.split("\n".join(lines))
    for index in range(0, len(pieces), 2):
        for pattern, instead in _REWRITES:
            pieces[index] = pattern.sub(instead, pieces[index])
    return "".join(pieces)


def _plain_line(line: str, outer: Statement) -> str:
    """A line without IPython's magic in it."""
    if _SHELL.search(line):
        outer.runs_shell = True
        return ""
    magic = _MAGIC.match(line)
    if magic is None:
        return "" if _HELP.search(line) and "#" not in line else line
    indent, name, rest = magic.groups()
    if name in _TIMING:
        outer.tells_times = True
        return f"{indent}{rest}"
    if name in _RUNNERS:
        outer.files_read.add(_named(rest.split()[0] if rest.split() else None))
    outer.runs_shell = outer.runs_shell or name in _SHELL_CELLS
    return f"{indent}pass"


def _by_words(text: str) -> Statement:
    """A cell that is no Python even so: every word counts as read, and called."""
    bare = _LITERALS.sub(" ", text)
    words = set(re.findall(r"(?<![\w.])[A-Za-z_][\w.]*", bare))
    bound = set(_BINDING.findall(bare))
    return Statement(
        reads={word.partition(".")[0] for word in words}, changes=bound, words=words, calls=words
    )


class _Reader(ast.NodeVisitor):
    """Fills a `Statement`."""

    def __init__(self) -> None:
        self.statement = Statement()
        self._inner = 0
        """Depth of functions and comprehensions, whose names are their own."""

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.statement.words.add(node.id)
            if node.id not in self.statement.binds:
                self.statement.reads.add(node.id)
        elif not self._inner:
            self.statement.binds.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.statement.words.add(dotted(node))
        self._changed(node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._changed(node)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        for part in (node.value, node.target):
            if part is not None:
                self.visit(part)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.statement.reads.add(node.target.id)
            self.statement.changes.add(node.target.id)
        else:
            self.visit(node.target)
        self.visit(node.value)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        for inner in (*node.body, *node.orelse):
            self.visit(inner)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_inner(node)
        if not self._inner:
            self.statement.reads -= {argument.arg for argument in _arguments(node)}
            self.statement.binds.add(node.name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_inner(node)
        if not self._inner:
            self.statement.binds.add(node.name)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_inner(node)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._visit_inner(node)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._visit_inner(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._visit_inner(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._visit_inner(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.statement.binds.add(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.statement.binds.add(alias.asname or alias.name)
            self.statement.sources[alias.asname or alias.name] = node.module or ""

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value
        if isinstance(call, ast.Call) and not self._inner:
            if isinstance(call.func, ast.Attribute):
                base = _base(call.func)
                self.statement.changes |= {base} if base else set()
            if dotted(call.func) not in _SHOWING:
                self.statement.changes |= {a.id for a in call.args if isinstance(a, ast.Name)}
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = dotted(node.func)
        self.statement.calls.add(name)
        last = name.rpartition(".")[2]
        if node.args and (name == "set_random_seed" or last == "seed"):
            self.statement.seeds.add(name)
        self._look_at_files(node, name, last)
        self.generic_visit(node)

    def _look_at_files(self, node: ast.Call, name: str, last: str) -> None:
        found = self.statement
        texts = [_text(argument) for argument in node.args]
        if last == "open" and texts:
            keyword = next((_text(k.value) for k in node.keywords if k.arg == "mode"), None)
            mode = (texts[1] if len(texts) > 1 else keyword) or "r"
            target = found.files_written if set(mode) & set("wax") else found.files_read
            target.add(_named(texts[0]))
        elif last in _PATH_READERS | _PATH_WRITERS and isinstance(node.func, ast.Attribute):
            target = found.files_read if last in _PATH_READERS else found.files_written
            made = node.func.value
            is_named = isinstance(made, ast.Call) and len(made.args) == 1
            target.add(_named(_text(made.args[0]) if is_named else None))  # type: ignore[attr-defined]
        elif last in _READERS and texts and (texts[0] is not None or "." not in name):
            found.files_read.add(_named(texts[0]))
        elif last in _WRITERS and texts:
            found.files_written.add(_named(next((t for t in texts if t is not None), None)))
        elif last in _LOOKERS or name == "os.walk":
            found.looks_at_files = True
        elif name in _SHELLS or name.startswith("subprocess."):
            found.runs_shell = True

    def _changed(self, node: ast.Attribute | ast.Subscript) -> None:
        base = _base(node)
        if base and not isinstance(node.ctx, ast.Load) and not self._inner:
            self.statement.changes.add(base)

    def _visit_inner(self, node: ast.AST) -> None:
        self._inner += 1
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not _is_load(n)}
        known = set(self.statement.reads)
        self.generic_visit(node)
        if isinstance(node, ast.Lambda):
            bound |= {argument.arg for argument in _arguments(node)}
        self.statement.reads -= bound - known
        self._inner -= 1


def dotted(node: ast.expr) -> str:
    """``a.b.c`` as it stands there; ``.c`` of what is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def _base(node: ast.expr) -> str:
    """The name that a chain of attributes and subscripts begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _arguments(node: ast.FunctionDef | ast.Lambda) -> list[ast.arg]:
    given = node.args
    rest = [given.vararg, given.kwarg]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *(a for a in rest if a)]


def _is_load(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _text(node: ast.expr) -> str | None:
    """The text that a literal holds; None for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _named(path: str | None) -> str:
    """A session's file as its folder names it, or `COMPUTED`, or `FOREIGN`."""
    if path is None:
        return COMPUTED
    name = posixpath.normpath(path)
    if name.startswith("/"):
        if not name.startswith(("/files/", "/tmp/", "/home/")):
            return FOREIGN
        name = name.removeprefix("/files/")
    # Sage and numpy add these themselves.
    return name.removesuffix(".sobj").removesuffix(".npy")
