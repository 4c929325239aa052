"""Filters on metadata: comparisons of columns with values, joined by `and`, `or` and `not`.

    speaker = 'amy' and duration_s > 3 and 'whispered' in situational_tags

The expression is read as Python reads one, and its tree is walked: what is not listed here is refused, and nothing
in it is ever run. As in SQL, a comparison with a missing value is neither true nor false, and selects nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psclap.errors import PsclapError, first_line

_MAX_LENGTH = 100_000
# A string, which stays as it is; a name in backticks; SQL's sign of equality.
_REWRITTEN = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`([^`]+)`|(?<![=!<>])=(?!=)""")
_SYNTAX = "write such as: speaker = 'amy' and duration_s > 3 and 'whispered' in situational_tags"
_COMPARISONS: dict[type[ast.cmpop], Callable] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}


class Where:
    """A filter for rows of a schema. Raises PsclapError for an expression that is none, or of unknown columns.

    Columns are names; those with other characters stand in `backticks`; `column['field']` is a field of a struct.
    `=` (or `==`), `!=`, `<`, `<=`, `>`, `>=` compare; `x in list_column` asks whether a list holds x, `column in
    ('a', 'b')` whether the value is one of them, `'part' in text_column` whether a text holds another;
    `column is None` whether it is missing.
    """

    def __init__(self, text: str, schema: pa.Schema):
        self.text = text
        self._schema = schema
        self._tree, self._quoted = self._parse(text)
        self.columns = self._named_columns()
        empty = pa.RecordBatch.from_pylist([], schema=pa.schema([schema.field(name) for name in self.columns]))
        try:
            self.mask(empty)  # wrong types are found at the door
        except (pa.ArrowException, TypeError, OverflowError, RecursionError) as error:
            types = ", ".join(f"{name}: {schema.field(name).type}" for name in self.columns)
            raise PsclapError(
                f"the filter {text[:200]!r} does not fit its columns ({types}): {first_line(error)}"
            ) from error

    def mask(self, batch: pa.RecordBatch) -> np.ndarray:
        """(B,) bool: which rows of a batch, that has at least `columns`, are selected."""
        condition = self._condition(self._tree, batch)
        return pc.fill_null(condition, False).to_numpy(zero_copy_only=False)

    def _parse(self, text: str) -> tuple[ast.expr, dict[str, str]]:
        quoted: dict[str, str] = {}

        def rewrite(match: re.Match[str]) -> str:
            string, name = match.groups()
            if name is None:
                return string or "=="
            return quoted.setdefault(name, f"_quoted_{len(quoted)}")

        if len(text) > _MAX_LENGTH:
            raise PsclapError(f"the filter has {len(text):,} characters; at most {_MAX_LENGTH:,} are read")
        try:
            tree = ast.parse(_REWRITTEN.sub(rewrite, text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise PsclapError(f"the filter {text[:200]!r} is no expression; {_SYNTAX}") from error
        return tree, {alias: name for name, alias in quoted.items()}

    def _named_columns(self) -> list[str]:
        """The columns that the expression names, each once."""
        nodes = [node for node in ast.walk(self._tree) if isinstance(node, ast.Name)]
        names = list(dict.fromkeys(self._quoted.get(node.id, node.id) for node in nodes))
        if unknown := [name for name in names if name not in self._schema.names]:
            raise PsclapError(
                f"the filter {self.text[:200]!r} names {', '.join(map(repr, unknown))}, which is no column; "
                f"there are {', '.join(self._schema.names)}"
            )
        if not names:
            raise PsclapError(f"the filter {self.text[:200]!r} names no column; {_SYNTAX}")
        return names

    def _condition(self, node: ast.expr, batch: pa.RecordBatch) -> pa.Array:
        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            condition, *others = [self._condition(part, batch) for part in node.values]
            for other in others:
                condition = join(condition, other)
            return condition
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return pc.invert(self._condition(node.operand, batch))
        if isinstance(node, ast.Compare):
            return self._comparison(node, batch)
        value = self._value(node, batch)
        if isinstance(value, pa.Array) and pa.types.is_boolean(value.type):
            return value
        raise self._refused(node)

    def _comparison(self, node: ast.Compare, batch: pa.RecordBatch) -> pa.Array:
        operands = [node.left, *node.comparators]
        condition = None
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            part = self._compare(node, left, operator, right, batch)
            condition = part if condition is None else pc.and_kleene(condition, part)
        return condition

    def _compare(
        self, node: ast.Compare, left: ast.expr, operator: ast.cmpop, right: ast.expr, batch: pa.RecordBatch
    ) -> pa.Array:
        if _is_none(right) and isinstance(operator, (ast.Is, ast.IsNot, ast.Eq, ast.NotEq)):
            is_missing = isinstance(operator, (ast.Is, ast.Eq))
            return (pc.is_null if is_missing else pc.is_valid)(self._column(left, batch))
        if isinstance(operator, (ast.In, ast.NotIn)):
            held = self._held(left, right, batch)
            return held if isinstance(operator, ast.In) else pc.invert(held)
        if type(operator) not in _COMPARISONS or _is_none(left) or _is_none(right):
            raise self._refused(node)
        values = self._value(left, batch), self._value(right, batch)
        if not any(isinstance(value, pa.Array) for value in values):
            raise self._refused(node)
        return _COMPARISONS[type(operator)](*values)

    def _held(self, left: ast.expr, right: ast.expr, batch: pa.RecordBatch) -> pa.Array:
        """`left in right`: one of some values, an element of a list, or a part of a text."""
        if isinstance(right, (ast.Tuple, ast.List)):
            column = self._column(left, batch)
            values = pa.array([self._constant(item) for item in right.elts], _value_type(column.type))
            return pc.if_else(pc.is_valid(column), pc.is_in(column, value_set=values), None)
        column, value = self._column(right, batch), self._constant(left)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            return _lists_with(column, value)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not isinstance(value, str):
            raise self._refused(left)
        return pc.match_substring(column, value)

    def _column(self, node: ast.expr, batch: pa.RecordBatch) -> pa.Array:
        value = self._value(node, batch)
        if not isinstance(value, pa.Array):
            raise self._refused(node)
        return value

    def _value(self, node: ast.expr, batch: pa.RecordBatch) -> pa.Array | pa.Scalar:
        if isinstance(node, ast.Name):
            return batch.column(self._quoted.get(node.id, node.id))
        if isinstance(node, ast.Attribute):
            return pc.struct_field(self._column(node.value, batch), node.attr)
        if isinstance(node, ast.Subscript):
            return pc.struct_field(self._column(node.value, batch), self._constant(node.slice))
        return pa.scalar(self._constant(node))

    def _constant(self, node: ast.expr) -> Any:
        if (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and not isinstance(node.operand, ast.UnaryOp)
        ):
            value = self._constant(node.operand)
            if type(value) in (int, float):
                return -value
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return node.value
        raise self._refused(node)

    def _refused(self, node: ast.expr) -> PsclapError:
        return PsclapError(
            f"the filter {self.text[:200]!r}: {ast.unparse(node)[:200]!r} is not understood here; {_SYNTAX}"
        )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _value_type(column_type: pa.DataType) -> pa.DataType:
    return column_type.value_type if pa.types.is_dictionary(column_type) else column_type


def _lists_with(column: pa.Array, value: Any) -> pa.Array:
    """(B,) whether each list of a column holds a value; null for a missing list."""
    equal = pc.fill_null(pc.equal(pc.list_flatten(column), pa.scalar(value)), False).to_numpy(zero_copy_only=False)
    holds = np.zeros(len(column), bool)
    holds[pc.list_parent_indices(column).to_numpy()[equal]] = True
    return pc.if_else(pc.is_valid(column), pa.array(holds), None)
