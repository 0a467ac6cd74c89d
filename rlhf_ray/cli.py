"""From a command line to a Config: class defaults, then a YAML recipe, then flags."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rlhf_ray.config import Config

USAGE_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """What a job was asked to do."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    recipe: Path | None = None
    """A YAML file with the sections below; flags override it."""


@dataclass(frozen=True)
class Resumable(Command):
    """Of a job that goes on where it was."""

    resume: bool = False
    """Go on with this run after its last complete checkpoint."""


Kind = TypeVar("Kind", bound=Command)


def parse(argv: Sequence[str], *, prog: str, description: str) -> Command:
    """Parse `argv`. Exits with help or a usage message; ValueError for a wrong recipe."""
    return _parse(Command, argv, prog=prog, description=description, base=None)


def parse_resumable(
    argv: Sequence[str], *, prog: str, description: str, base: Config | None = None
) -> Resumable:
    """The same with `--resume`. base: what flags override where no recipe is given."""
    return _parse(Resumable, argv, prog=prog, description=description, base=base)


def _parse(
    kind: type[Kind], argv: Sequence[str], *, prog: str, description: str, base: Config | None
) -> Kind:
    recipe = recipe_path(argv)
    base = read_recipe(recipe) if recipe else base or Config()
    return tyro.cli(
        kind,
        args=list(argv),
        default=kind(config=base, recipe=recipe),
        prog=prog,
        description=description,
    )


def read_recipe(path: Path) -> Config:
    """A Config from a YAML recipe. ValueError names the file, the key and the nearest right one."""
    if not path.is_file():
        raise ValueError(
            f"recipe {path} does not exist; the recipes of this project are in jobs/recipes/"
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise ValueError(
            f"recipe {path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(
            f"recipe {path} holds a {type(tree).__name__}; it is a mapping of sections"
        )
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ValueError(_explain(error, f"recipe {path}")) from None


def run(main: Callable[[], int | None], *, after_interrupt: str = "") -> NoReturn:
    """Run a job: exit 0, 2 with `error: …` for what the user can mend, 130 after Ctrl-C.

    after_interrupt: what to do then, where there is something to do. RLHF_TRACEBACK=1 in the
    environment shows where a user error was found.
    """
    try:
        sys.exit(main() or 0)
    except (ValueError, OSError) as error:  # OSError: a missing file, a full disk, a deadline
        if os.environ.get("RLHF_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        print("; ".join(filter(None, ["interrupted", after_interrupt])), file=sys.stderr)
        sys.exit(INTERRUPTED)


def recipe_path(argv: Sequence[str]) -> Path | None:
    """The recipe that `argv` names, before it is parsed: it decides the defaults."""
    for i, arg in enumerate(argv):
        if arg == "--recipe" and i + 1 < len(argv):
            return Path(argv[i + 1])
        if arg.startswith("--recipe="):
            return Path(arg.partition("=")[2])
    return None


def _explain(error: ValidationError, where: str) -> str:
    return "; ".join(_explain_one(item, where) for item in error.errors())


def _explain_one(item: ErrorDetails, where: str) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("unexpected_keyword_argument", "dataclass_unexpected_keyword_argument"):
        known = _known_keys(item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key {key}: {hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {key} = {item['input']!r}: {message}"


def _known_keys(path: Sequence[str | int]) -> list[str]:
    node: Any = Config
    for part in path:
        if isinstance(part, int):  # a place in a tuple: `node` is already what it is a tuple of
            continue
        found = {f.name: f.type for f in fields(node)}.get(part)
        node = next((kind for kind in (found, *get_args(found)) if is_dataclass(kind)), None)
        if node is None:
            return []
    return [f.name for f in fields(node)]
