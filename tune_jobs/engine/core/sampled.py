"""What the function of `tune.sample_from` computes, as code of a define-by-run space: `body_of`."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["body_of"]


def body_of(function: Callable[..., Any], names: Collection[str]) -> tuple[str, list[str]] | None:
    """What a function computes.

    Args:
        function: What `tune.sample_from` was given.
        names: The flat names of what it may read.

    Returns:
        The code, in which variables stand for what it reads, and the names of these; None: it is
        neither a lambda that reads only these, nor a function that does not use its argument.
    """
    if not inspect.isfunction(function):
        return None
    try:
        found = [node for node in ast.walk(_parse(function)) if isinstance(node, _Defined)]
        (defined,) = found if function.__name__ == "<lambda>" else found[:1]
    except (ValueError, OSError):  # no source, or several lambdas
        return None
    args = [arg.arg for arg in defined.args.args]
    if isinstance(defined, ast.FunctionDef):
        is_used = _uses(defined, args)
        return None if is_used else (f"{defined.name}({'None' if args else ''})", [])
    reader = _Reader(args[0] if args else "", names)
    body = reader.visit(defined.body)
    return None if _uses(body, args) else (ast.unparse(body), reader.read)


_Defined = (ast.Lambda, ast.FunctionDef)


class _Reader(ast.NodeTransformer):
    """Replaces `spec.config.x`, `spec["config"]["x"]` and `config["x"]` by `x`."""

    def __init__(self, arg: str, names: Collection[str]) -> None:
        self._arg, self._names = arg, names
        self.read: list[str] = []

    def visit(self, node: ast.AST) -> Any:
        path = self._path(node)
        name = "/".join(path[path[:1] == ["config"] :]) if path else ""
        if name not in self._names:
            return self.generic_visit(node)
        self.read.append(name)
        return ast.Name(name.rpartition("/")[2])

    def _path(self, node: ast.AST) -> list[str] | None:
        if isinstance(node, ast.Name):
            return [] if node.id == self._arg else None
        part = node.attr if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            part = str(node.slice.value)
        if part is None or not isinstance(node, (ast.Attribute, ast.Subscript)):
            return None
        outer = self._path(node.value)
        return None if outer is None else [*outer, part]


def _parse(function: Callable[..., Any]) -> ast.AST:
    """The source; that of a lambda may be an entry of a dict."""
    source = textwrap.dedent(inspect.getsource(function)).strip()
    for text in (source, f"{{{source}}}"):
        try:
            return ast.parse(text)
        except SyntaxError:
            continue
    raise ValueError("it is a part of an expression")


def _uses(node: ast.AST, args: Collection[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in args for part in ast.walk(node))
