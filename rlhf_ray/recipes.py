"""Recipes: YAML into a Config, strictly; what is wrong with one is said in words of a recipe."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rlhf_ray.config import Config

PLACE = "the recipes of this project are in jobs/recipes/"


def read_recipe(path: Path) -> Config:
    """A Config from a YAML recipe. ValueError names the file, the key and the nearest right one."""
    if path.is_dir():
        held = ", ".join(sorted(file.name for file in path.glob("*.y*ml"))) or "no .yaml"
        raise ValueError(f"recipe {path} is a directory (it holds {held}): name one of its files")
    if not path.is_file():
        looked = "" if path.is_absolute() else f" ({path.absolute()})"
        raise ValueError(f"recipe {path}{looked} does not exist; {PLACE}")
    where = f"recipe {path}"
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {_cause(error)}") from None
    if not isinstance(tree, dict | None):
        raise ValueError(f"{where} holds a {type(tree).__name__}; it is a mapping of sections")
    try:
        return TypeAdapter(Config).validate_python(_checked(tree, Config, "", where))
    except ValidationError as error:
        raise ValueError("; ".join(_explain(item, where) for item in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """YAML whose mappings hold a key once: of two sections of a name, the first would be lost."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                problem = (
                    f"{key.value!r} stands here again, after line {lines[key.value]}: put what is "
                    f"below it in one place"
                )
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


def _cause(error: yaml.YAMLError) -> str:
    """Place and cause, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    if problem.startswith("but ") and getattr(error, "context", None):
        problem = f"{error.context}, {problem}"  # type: ignore[attr-defined]
    hint = ": indent with spaces" if "'\\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}"


def _checked(value: Any, kind: Any, key: str, where: str) -> Any:
    """`value`, a section or list without content as an empty one.

    Raises ValueError where YAML made something else of it than was meant: one value in place of a
    section or list, true or false in place of a number or word, nothing in place of anything.
    """
    kinds = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
    listed = next((one for one in kinds if get_origin(one) is tuple), None)
    if is_dataclass(kind):
        return _section(value, kind, key, where)
    if value is None and NoneType not in kinds:
        if listed is None:
            raise ValueError(f"{where}: {key} is empty: give it a value, or take the line out")
        return []
    if listed is not None and value is not None:
        return _list(value, listed, key, where)
    if isinstance(value, bool) and bool not in kinds:
        numbers = {int, float} & set(kinds)
        raise ValueError(
            f"{where}: {key} is {str(value).lower()}, which YAML also reads in yes, no, on and "
            f"off: {'give a number' if numbers else 'put the word in quotes'}"
        )
    return value


def _section(value: Any, kind: Any, key: str, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"{where}: {key} is {value!r:.60}, and it is a section: write its settings below it, "
            f"indented, as `name: value`"
        )
    kinds = {field.name: field.type for field in fields(kind)}
    return {
        str(name): _checked(held, kinds[name], f"{key}.{name}".lstrip("."), where)
        if name in kinds
        else held
        for name, held in (value or {}).items()
    }


def _list(value: Any, kind: Any, key: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(
            f"{where}: {key} is {value!r:.60}, and it is a list: begin each entry with '- '"
        )
    of = get_args(kind)[0]
    return [_checked(one, of, f"{key}.{i}", where) for i, one in enumerate(value)]


def _explain(item: ErrorDetails, where: str) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "dataclass_unexpected_keyword_argument"):
        known = _known_keys(item["loc"][:-1])
        hint = _nearest(str(item["loc"][-1]), known, item["input"])
        return f"{where}: unknown key {key}: {hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {key} = {item['input']!r}: {message}"


def _nearest(name: str, known: Sequence[str], value: Any) -> str:
    """What was meant by an unknown key."""
    section, *inner = name.removeprefix("--").replace("-", "_").split(".")
    if inner and section in known:
        text = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
        for part in reversed(inner):
            text = f"{{{part}: {text}}}"
        return f"write it as a section, {section}: {text}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _known_keys(path: Sequence[str | int]) -> list[str]:
    node: Any = Config
    for part in path:
        if isinstance(part, int):  # a place in a tuple: `node` is already what it is a tuple of
            continue
        found: Mapping[str, Any] = {f.name: f.type for f in fields(node)}
        kind = found.get(part)
        node = next((one for one in (kind, *get_args(kind)) if is_dataclass(one)), None)
        if node is None:
            return []
    return [f.name for f in fields(node)]
