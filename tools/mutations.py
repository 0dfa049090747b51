"""Small changes of a Python file, made from its syntax tree: what ``mutants.py`` runs the tests against."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin"}
# Methods that may be left away, and attributes: what remains still runs.
METHODS = {"transpose", "abs", "square", "clamp", "sqrt", "flip", "movedim", "permute", "mul_", "sub_", "masked_fill_"}
ATTRIBUTES = {"mT", "T"}
SYMMETRIC = {"isinstance", "min", "max", "zip", "dot"}
# Keywords that change a message, a place or a cost, not a number.
HARMLESS = {
    "stacklevel",
    "dtype",
    "device",
    "sorted",
    "non_blocking",
    "pin_memory",
    "display",
    "strict",
    "init",
    "default",
}
NOT_LOOKED_INTO = {
    "invalid_argument",
    "warn",
    "write",
    "TypeVar",
    "set_postfix_str",
    "synchronize",
    "empty_cache",
    "getattr",
}
TEXTS = {"__str__", "__repr__"}
# How much is computed at a time: nothing but speed and memory depends on them.
AMOUNTS = {
    "PIECE",
    "LONG",
    "ROOM",
    "ROOM_HOST",
    "BATCH_BYTES",
    "FACTOR_BYTES",
    "BATCH_BYTES_HOST",
    "FACTOR_BYTES_HOST",
    "PROBED",
    "TRIES",
    "DENSE_SHARE",
    "LOOKS_SHARE",
    "HELD",
    "DOUBLE",
}
PARTS_OF_MESSAGES = {"fix", "got", "where", "kind", "inside", "some", "looked", "reasons_text", "detail", "__all__"}
OF_A_GPU = ("cuda", "pin", "OutOfMemory", "mps")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: its path in the package.
        line: where.
        change: what is written there before and after, for people.
        span: places of the text that is replaced, in characters.
        text: what is put there.
    """

    file: str
    line: int
    change: str
    span: tuple[int, int]
    text: str

    @property
    def name(self) -> str:
        """The file without its ending."""
        return Path(self.file).stem

    def applied(self, source: str) -> str:
        """Return the source with the change."""
        return source[: self.span[0]] + self.text + source[self.span[1] :]


def mutants_of(path: Path) -> list[Mutant]:
    """Return every change of a file that this module knows.

    Args:
        path: of a Python file.

    Returns:
        Changes in the order of the file.
    """
    source = path.read_text()
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = []
    for node in _looked_into(ast.parse(source)):
        whole = lines[node.lineno - 1 : node.end_lineno]
        if len(whole) < 9 and any(word in line for line in whole for word in OF_A_GPU):
            continue
        for before, after in _changes(node):
            span = place(before.lineno, before.col_offset), place(before.end_lineno, before.end_col_offset)
            text = ast.unparse(ast.fix_missing_locations(after))
            change = f"{_short(ast.unparse(before))} -> {_short(text)}"
            text = f"({text})" if isinstance(after, ast.expr) else text.replace("\n", "\n" + " " * before.col_offset)
            mutant = Mutant(f"{path.parent.name}/{path.name}", before.lineno, change, span, text)
            try:
                if ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source)):
                    found.append(mutant)
            except SyntaxError:
                continue
    return found


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) < 110 else text[:107] + "..."


def _looked_into(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the tree without what no number or decision depends on."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        children = value if isinstance(value, list) else [value]
        if name == "args" and isinstance(node, ast.Call) and _called(node) == "isinstance":
            children = children[:1]
        for child in children:
            if isinstance(child, ast.AST) and not _is_left_out(child):
                if hasattr(child, "lineno"):
                    yield child
                yield from _looked_into(child)


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name in TEXTS
    if isinstance(node, ast.keyword):
        return node.arg == "strict"  # of zip: an assertion
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(target, ast.Name) and target.id in AMOUNTS | PARTS_OF_MESSAGES for target in targets)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or (isinstance(node.value, ast.Call) and _is_left_out(node.value))
    return isinstance(node, ast.Call) and (_called(node) in NOT_LOOKED_INTO or _called(node) == "tqdm")


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield pairs of a node and what may stand in its place."""
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    elif isinstance(node, ast.BinOp):
        yield from ((node, operand) for operand in (node.left, node.right))
        if isinstance(node.op, ast.MatMult):
            yield node, _with(node, left=node.right, right=node.left)
        elif type(node.op) in OPERATORS:
            yield node, _with(node, op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from ((node, _with(node, ops=[op()])) for op in COMPARISONS[type(node.ops[0])])
    elif isinstance(node, ast.BoolOp):
        yield node, _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for i in range(len(node.values)):
            rest = node.values[:i] + node.values[i + 1 :]
            yield node, rest[0] if len(rest) == 1 else _with(node, values=rest)
    elif isinstance(node, ast.UnaryOp):
        yield node, node.operand
    elif isinstance(node, ast.IfExp):
        yield from ((node, branch) for branch in (node.body, node.orelse))
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
        yield node, node.value


def _of_constant(node: ast.Constant) -> Iterator[tuple[ast.AST, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield node, ast.Constant(not value)
    elif isinstance(value, int):
        yield node, ast.Constant(value + 1)
        if value == 1:
            yield node, ast.Constant(0)
    elif isinstance(value, float):
        yield node, ast.Constant(value / 2 if value else 1.0)


def _of_call(node: ast.Call) -> Iterator[tuple[ast.AST, ast.AST]]:
    name = _called(node)
    if name in NAMES:
        function = ast.Name(NAMES[name]) if isinstance(node.func, ast.Name) else _with(node.func, attr=NAMES[name])
        yield node, _with(node, func=function)
    if isinstance(node.func, ast.Attribute) and name in METHODS:
        yield node, node.func.value
    # Arguments of two kinds are seldom mistaken for each other, and never without an error.
    alike = len(node.args) > 1 and type(node.args[0]) is type(node.args[1]) is not ast.Starred
    if alike and name not in SYMMETRIC:
        yield node, _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
    for i, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg not in HARMLESS:
            yield node, _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _of_statement(node: ast.stmt) -> Iterator[tuple[ast.AST, ast.AST]]:
    nothing = ast.Pass()
    if isinstance(node, ast.If):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.AugAssign):
        yield node, nothing
        if type(node.op) in OPERATORS:
            yield node, _with(node, op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.Break | ast.Continue | ast.Delete):
        yield node, nothing
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield node, nothing
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, read = node.targets[0], {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        stored = isinstance(target, ast.Attribute | ast.Subscript)
        if stored or (isinstance(target, ast.Name) and target.id in read):
            yield node, nothing


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other
