"""What is changed in the syntax tree of a chat template before it is compiled: counts are put in, some nodes refused."""

from __future__ import annotations

import math
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from qwen_edge.chat.template_limits import EXPRESSION, MAX_SYNTAX_DEPTH, STEP, LimitError

# Filters that the tree calls, under names that no template can write: yield the items of a loop, count work, count what a
# value weighs, join texts, cut a slice.
EACH, SPEND, WEIGH, JOIN, SLICE = "<each>", "<spend>", "<weigh>", "<join>", "<slice>"

_Repeated = nodes.For | nodes.Macro | nodes.CallBlock
_OTHER_FILES = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block)


def add_counts(tree: nodes.Template) -> None:
    """Put counts into a tree, wherever work can repeat or values can grow.

    Raises:
        LimitError: It is nested too deeply.
        jinja2.TemplateSyntaxError: It has something that a chat template may not have.
    """
    _check_depth(tree)
    _Counting().visit(tree)


class GenerationMarkers(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's text for training, says nothing to a reader.

    Source: transformers, utils/chat_template_utils.py (AssistantTracker).
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the markers."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counting(NodeTransformer):
    """Puts a count wherever work can repeat or values can grow, and refuses what a chat template has no use for."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, _OTHER_FILES):
            _refuse(node, "a chat template has no other files or blocks")
        if isinstance(node, nodes.EvalContextModifier):
            _refuse(node, "autoescape is for web pages")
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            _refuse(node, "recursive loops are not counted; a macro that calls itself is")
        work = _work(node)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, EACH, nodes.Const(work))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._counted_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._counted_body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.Tuple(node.nodes, "load", lineno=node.lineno), JOIN)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _weighed(node.key)
        return node

    def visit_If(self, node: nodes.If) -> nodes.Node:
        if len(node.elif_) > MAX_SYNTAX_DEPTH:
            # Python's parser nests them.
            _refuse(node, f"it has more than {MAX_SYNTAX_DEPTH} branches in one condition")
        return self.generic_visit(node)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, float) and not math.isfinite(node.value):
            _refuse(node, "a number is too large")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _filtered(node.node, SLICE, *(part or nodes.Const(None) for part in parts))

    def _counted_body(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        work = _work(node)
        self.generic_visit(node)
        count = _filtered(nodes.Const(work, lineno=node.lineno), SPEND)
        node.body.insert(0, nodes.ExprStmt(count, lineno=node.lineno))
        return node


def _filtered(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, WEIGH)


def _work(node: _Repeated) -> int:
    """Return the work of one round of a loop or macro; what repeats inside it is counted there."""
    n_expressions, waiting = 0, list(node.body)
    while waiting:
        inner = waiting.pop()
        n_expressions += 1
        outside = ("body",) if isinstance(inner, nodes.For | nodes.Macro | nodes.CallBlock) else None
        waiting.extend(inner.iter_child_nodes(exclude=outside))
    return STEP + EXPRESSION * n_expressions


def _refuse(node: nodes.Node, why: str) -> None:
    raise jinja2.TemplateSyntaxError(why, node.lineno)


def _check_depth(tree: nodes.Node) -> None:
    level = [tree]
    for _ in range(MAX_SYNTAX_DEPTH):
        level = [child for node in level for child in node.iter_child_nodes()]
        if not level:
            return
    raise LimitError(f"it is nested more than {MAX_SYNTAX_DEPTH} deep")
