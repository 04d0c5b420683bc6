"""The command line of a settings class, read by tyro, with a short `--help`."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, TypeVar, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

__all__ = ["parse"]

Parsed = TypeVar("Parsed")

CONFIG = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
MAX_OPTION_WIDTH = 24  # tyro puts the help of wider ones, and of many others then, on a line below


def parse(
    kind: type[Parsed], description: str, args: Sequence[str] | None, default: Parsed | None
) -> Parsed:
    """Read a dataclass from the command line.

    Args:
        kind: The dataclass.
        description: The head of `--help`.
        args: The command line; None: the program's own.
        default: Holds the values that the command line leaves out; None: the defaults of `kind`.

    Raises:
        SystemExit: Code 2 for what cannot be parsed, 0 after `--help`.
    """
    start = tyro.MISSING_NONPROP if default is None else default
    registry = _short_options(kind, start)
    parsed: Parsed = tyro.cli(
        kind,
        description=description,
        args=args,
        default=start,
        config=CONFIG,
        registry=registry,
    )
    return parsed


def _short_options(kind: type[Any], default: Any) -> ConstructorRegistry:
    """Tyro's rule for this dataclass, with options that fit their column."""
    registry = ConstructorRegistry()
    spec = registry.get_struct_spec(StructTypeInfo.make(kind, default, in_union_context=False))
    assert isinstance(spec, StructConstructorSpec)
    short = dataclasses.replace(spec, fields=tuple(_shortened(option) for option in spec.fields))
    registry.struct_rule(lambda info: short if info.type is kind else None)
    return registry


def _shortened(option: StructFieldSpec) -> StructFieldSpec:
    """An option with a short placeholder, and without a default that says nothing.

    An option that its job has annotated stays as it is.
    """
    values = None if get_origin(option.type) is Annotated else _values_of(option.type)
    if values is None:
        return option
    metavar, choices = _placeholder(option.name, values)
    says_nothing = option.default is None or option.default is False

    def hint(default: str) -> str:
        parts = [choices, "" if says_nothing else f"default: {default}"]
        return f"({'; '.join(filter(None, parts))})" if any(parts) else ""

    text = partial(_help_of, option)
    short = tyro.conf.arg(metavar=metavar or None, help_behavior_hint=hint)
    changed: Any = Annotated[option.type, short]
    return dataclasses.replace(option, type=changed, helptext=text)


def _help_of(option: StructFieldSpec) -> str | None:
    """The help of an option, without the line breaks of its source."""
    text = option.helptext() if callable(option.helptext) else option.helptext
    return None if text is None else "\n\n".join(_paragraphs(text))


def _values_of(kind: Any) -> str | None:
    """Tyro's placeholder for an option's values, without None; None: it is a group of options."""
    if kind is bool:
        return ""  # a flag
    info = PrimitiveTypeInfo.make(kind, {tyro.conf.DisallowNone})
    spec = ConstructorRegistry.get_primitive_spec(info)
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return re.sub(r"^\{([^{}]* [^{}]*)\}$", r"\1", spec.metavar)  # braces that held None apart


def _placeholder(name: str, values: str) -> tuple[str, str]:
    """The placeholder that fits the column, and the choices that the help must name then."""
    takes_one = " " not in values
    if _fits(name, values) or not (takes_one and _fits(name, "VALUE")):
        return values, ""
    return "VALUE", ", ".join(re.split(r"[{}|,]+", values.strip("{}")))


def _fits(name: str, metavar: str) -> bool:
    return len(f"--{name} {metavar}") <= MAX_OPTION_WIDTH


def _paragraphs(text: str) -> list[str]:
    """The paragraphs, each on one line; one that has indented lines or is a list is left alone."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc(text))
    is_laid_out = re.compile(r"^[\s*-]", re.MULTILINE)
    return [part if is_laid_out.search(part) else part.replace("\n", " ") for part in parts]
