"""From a command line to a Config: class defaults, then a YAML recipe, then flags."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import tyro

from rlhf_ray.config import Config
from rlhf_ray.recipes import read_recipe

USAGE_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """What a job was asked to do."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    recipe: Path | None = None
    """A YAML file with the sections below; flags override it. `reward.sources`, what scores a
    response, can be given there alone: docs/rewards.md."""


@dataclass(frozen=True)
class Resumable(Command):
    """The command line of a job that can be resumed."""

    resume: bool = False
    """Go on with this run after its last complete checkpoint."""
    resume_if_begun: bool = False
    """As `--resume` where the run has begun, a start where it has not, its summary where it is
    done: for a job that is started again after a failure."""


Kind = TypeVar("Kind", bound=Command)


def parse(argv: Sequence[str], *, prog: str, description: str) -> Command:
    """Parse `argv`. Exits with help or a usage message; ValueError for a wrong recipe."""
    return _parse(Command, argv, prog=prog, description=description, base=None)


def parse_resumable(
    argv: Sequence[str], *, prog: str, description: str, base: Config | None = None
) -> Resumable:
    """The same with `--resume` and its like. base: what flags override where no recipe is given.

    Raises ValueError for one of them beside `--run.overwrite`.
    """
    command = _parse(Resumable, argv, prog=prog, description=description, base=base)
    if command.config.run.overwrite and (command.resume or command.resume_if_begun):
        asked = "--resume" if command.resume else "--resume-if-begun"
        raise ValueError(
            f"{asked} goes on with the run that is there, and --run.overwrite discards it: give one"
        )
    return command


def _parse(
    kind: type[Kind], argv: Sequence[str], *, prog: str, description: str, base: Config | None
) -> Kind:
    if any(arg.startswith("--reward.sources") for arg in argv):
        raise ValueError(
            "--reward.sources is no flag: a recipe lists what scores a response, as "
            "`reward: {sources: [{model: DIR}]}`; name it with --recipe (docs/rewards.md)"
        )
    recipe = recipe_path(argv)
    base = read_recipe(recipe) if recipe else base or Config()
    return tyro.cli(
        kind,
        args=list(argv),
        default=kind(config=base, recipe=recipe),
        prog=prog,
        description=described(description),
    )


def run(main: Callable[[], int | None], *, after_interrupt: str = "") -> NoReturn:
    """Run a job: exit 0, 2 with `error: …` for what the user can mend, 130 after Ctrl-C.

    SIGTERM, which is how `ray job stop` asks, is taken for Ctrl-C. after_interrupt: what is said
    then besides. RLHF_TRACEBACK=1 in the environment shows where a user
    error was found.
    """
    # Ctrl-C too: a shell that starts a job in the background has it ignored.
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.default_int_handler)
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
    """The recipe that `argv` names, before it is parsed: it decides the defaults.

    Raises ValueError where it names several.
    """
    named = [arg.partition("=")[2] for arg in argv if arg.startswith("--recipe=")]
    named += [after for arg, after in pairwise(argv) if arg == "--recipe"]
    if len(named) > 1:
        raise ValueError(
            f"--recipe is given {len(named)} times ({', '.join(named)}): a run has one; put their "
            f"settings in one file, or give some as flags"
        )
    return Path(named[0]) if named else None


def described(docstring: str | None) -> str:
    """A job's docstring for its help, where commands keep their lines: tyro would join them."""
    lines: list[str] = []
    for line in (docstring or "").split("\n"):
        after_command = bool(lines) and lines[-1].startswith("  ")
        is_command = line.startswith("python ") or (after_command and line.startswith(" "))
        lines += [""] if after_command and line and not is_command else []
        lines.append(f"  {line}" if is_command else line)
    return "\n".join(lines)
