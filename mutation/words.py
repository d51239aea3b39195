"""Which mutants change nothing that a test ought to see: judged by rule, from the two sources, and never one by one."""

from __future__ import annotations

import ast

# The first argument is what is tested; the others are only said. The second list takes nothing but words.
CHECKS, SPEECH = ("require",), ("_refuse", "print", "warn", "say")
# What has no effect on a machine without a GPU, or on lengths that agree as they always should.
WITHOUT_EFFECT = ("device", "strict", "stacklevel")


def same_but_for_words(source: str, mutant: str) -> bool:
    """Whether two sources differ only in what the module's rules leave out:

    the words of an error, a warning or a printed line; on which device a tensor is made or moved to; `strict=` of a zip; the type
    that `typing.cast` is given; docstrings and annotations.
    """
    return _plain(source) == _plain(mutant)


def _plain(source: str) -> str:
    return ast.dump(_Plain().visit(ast.parse(source)))


def _is_device(value: ast.expr) -> bool:
    is_attribute = isinstance(value, ast.Attribute) and value.attr == "device"
    return is_attribute or (isinstance(value, ast.Constant) and value.value is None)


class _Plain(ast.NodeTransformer):
    """Takes out of a tree what the rules leave out."""

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in SPEECH:
            node.args, node.keywords = [], []
        if name in CHECKS:
            node.args, node.keywords = node.args[:1], []
        if name == "cast":
            node.args = node.args[-1:]
        if name == "to":  # None is what a device is replaced by, and moves nothing either
            node.args = [value for value in node.args if not _is_device(value)]
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in WITHOUT_EFFECT]
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:  # noqa: N802
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        node.cause = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        node.name, node.returns, node.decorator_list = "function", None, []
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        return node if node.value is None else ast.Assign([node.target], node.value, lineno=node.lineno)
