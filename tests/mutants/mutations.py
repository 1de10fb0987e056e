"""All the mutants of a file: mutmut's operators, and statements left out.

What only changes words for people is none: tests check behaviour. Nor is what is outside functions: it runs when its
module is imported, which no test does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

from tests.mutants.mutant import Mutant
from tests.seeded_bugs.planting import ROOT


@dataclass(frozen=True)
class Draft:
    """A change that could be made; what the module would be is found only for those that are drawn."""

    file: str
    module: cst.Module
    node: cst.CSTNode
    changed: cst.CSTNode
    line: int
    last_line: int

    def mutant(self) -> Mutant | None:
        """The mutant; None where it would be the same, or no Python."""
        text = self.module.code
        result = self.module.deep_replace(self.node, self.changed)
        planted = result.code if isinstance(result, cst.Module) else text
        if planted == text or not _compiles(planted):
            return None
        return Mutant(self.file, self.line, self.last_line, *_difference(text, planted), planted)


def drafts(file: str) -> list[Draft]:
    """Every change that could be made to a file of the checkout, in the order of its lines."""
    wrapper = MetadataWrapper(cst.parse_module((ROOT / file).read_text()), unsafe_skip_copy=True)
    visitor = _Visitor()
    wrapper.visit(visitor)
    return [Draft(file, wrapper.module, *change) for change in visitor.changes]


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[cst.CSTNode, cst.CSTNode, int, int]] = []
        self._functions = 0
        self._raises = 0
        self._ends: list[cst.CSTNode] = []
        """Statements with which a function returns None, as it would without them."""

    def on_visit(self, node: cst.CSTNode) -> bool:
        self._functions += isinstance(node, cst.FunctionDef)
        self._raises += isinstance(node, cst.Raise)
        if isinstance(node, cst.FunctionDef):
            self._ends += _ends(node.body)
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Parameters) or _is_for_types(node) or _is_log(node):
            return False
        if self._raises and _is_text(node):  # what is put into the words of an error
            return False
        if self._functions:
            self._enter(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._functions -= isinstance(original_node, cst.FunctionDef)
        self._raises -= isinstance(original_node, cst.Raise)

    def _enter(self, node: cst.CSTNode) -> None:
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                for mutated in operator(node):
                    is_end = operator is _leave_out and any(node is end for end in self._ends)
                    if not is_end and not _is_wording(node, mutated) and not _is_same(node, mutated):
                        place = self.get_metadata(PositionProvider, node.test if isinstance(node, cst.If) else node)
                        self.changes.append((node, mutated, place.start.line, place.end.line))


def _leave_out(node: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """A call that is not made, a value that is not kept, a `return` that is not taken."""
    kinds = (cst.Expr, cst.AugAssign, cst.Assign, cst.Return, cst.Raise, cst.Del, cst.Break, cst.Continue)
    if not isinstance(node.body[0], kinds) or _is_text(getattr(node.body[0], "value", None)):
        return
    yield node.with_changes(body=[cst.Pass()])


def _ends(block: cst.BaseSuite) -> Iterator[cst.CSTNode]:
    """What comes last in a function and returns None, on each way that leads there."""
    last = block.body[-1]
    if m.matches(last, m.SimpleStatementLine(body=[m.Return(value=None) | m.Return(value=m.Name("None"))])):
        yield last
    elif isinstance(last, cst.With):
        yield from _ends(last.body)
    elif isinstance(last, cst.Try):
        for part in (*last.handlers, last.orelse or last):
            yield from _ends(part.body)
    branch: cst.CSTNode | None = last
    while isinstance(branch, cst.If | cst.Else):
        yield from _ends(branch.body)
        branch = branch.orelse if isinstance(branch, cst.If) else None


def _turn(node: cst.If) -> Iterator[cst.If]:
    """A condition that is the other way round."""
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test), whitespace_before_test=cst.SimpleWhitespace(" "))


OPERATORS: list[tuple[Any, Callable[[Any], Iterable[cst.CSTNode]]]] = [
    *mutation_operators,
    (cst.SimpleStatementLine, _leave_out),
    (cst.If, _turn),
]


def _is_text(node: object) -> bool:
    """Words for people: more than one, or put together."""
    if isinstance(node, cst.SimpleString):
        return " " in node.value or node.value.startswith(('"""', "'''"))
    return isinstance(node, cst.FormattedString | cst.ConcatenatedString)


def _is_wording(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    if isinstance(node, cst.Call) and isinstance(mutated, cst.Call):
        changed = [arg.value for arg in node.args if not any(arg is other for other in mutated.args)]
        default = [len(mutated.args) < len(node.args) and _is_default_errno(node, value) for value in changed]
        return bool(changed) and (all(_is_text(value) for value in changed) or all(default))
    return _is_text(node)


def _is_same(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """None in place of False, of which only the truth is asked; and a `zip` that is not strict."""
    if isinstance(node, cst.Call) and isinstance(mutated, cst.Call):
        changed = [arg for arg in node.args if not any(arg is other for other in mutated.args)]
        is_left_out = len(mutated.args) < len(node.args)
        return bool(changed) and all(_is_strict(arg) or (not is_left_out and _is_false(arg.value)) for arg in changed)
    assigns = isinstance(node, cst.Assign | cst.AnnAssign) and isinstance(mutated, cst.Assign | cst.AnnAssign)
    return assigns and _is_false(getattr(node, "value", None))


def _is_false(node: object) -> bool:
    return isinstance(node, cst.Name) and node.value == "False"


def _is_strict(node: cst.CSTNode) -> bool:
    """What `zip` has to be told: whether both are as long was known before, as what `assert` says."""
    return m.matches(node, m.Arg(keyword=m.Name("strict")))


def _is_default_errno(call: cst.Call, value: cst.BaseExpression) -> bool:
    """EINVAL is what a ProtocolError has anyway."""
    is_einval = m.matches(value, m.Attribute(value=m.Name("errno"), attr=m.Name("EINVAL")))
    return is_einval and m.matches(call.func, m.Name("ProtocolError"))


def _is_log(node: cst.CSTNode) -> bool:
    """A line that only says something to whoever reads the log."""
    line = m.SimpleStatementLine(body=[m.Expr(value=m.Call(func=m.Attribute(value=m.Name("log"))))])
    return m.matches(node, line)


def _is_for_types(node: cst.CSTNode) -> bool:
    """`assert` tells the type checker; `cast` and `TypeVar` too, and `strict` of `zip` whoever reads."""
    if isinstance(node, cst.Assert) or _is_strict(node):
        return True
    if isinstance(node, cst.If) and isinstance(node.test, cst.Name):
        return node.test.value == "TYPE_CHECKING"
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in ("cast", "TypeVar")


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _difference(text: str, planted: str) -> tuple[str, str]:
    """The lines that are others, without their indentation: between what is the same before and behind them."""
    old, new = text.splitlines(), planted.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return "\n".join(line.strip() for line in old), "\n".join(line.strip() for line in new)
