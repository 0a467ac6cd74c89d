"""One process that imports a reward function and calls it, as long as its parent lives.

python -m rlhf_ray.rewards.function_worker CONNECTION_FD PARENT_PID module:function

Started by `function_pool`, never by hand. It imports Python's own library alone, to start fast.
What crosses the connection is plain (strings and floats), so nothing of the user's is unpickled.
"""

import ctypes
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from numbers import Real
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies: also one that hangs, GIL held."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # died before the line above
        os._exit(1)


def load(target: str) -> Callable[..., Any]:
    """The function that `module:function` names. ValueError: what is missing, and the fix."""
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module was found; what it imports itself was not
        raise ValueError(
            f"there is no module {error.name!r} in {os.getcwd()!r} or on the Python path: start "
            f"the run in the module's directory, or add that directory to PYTHONPATH"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"module {module_name!r} ({module.__file__}) has no function {function_name!r}; its "
            f"functions are {_functions_of(module)}"
        )
    return function


def _functions_of(module: ModuleType) -> str:
    names = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
    return ", ".join(sorted(names)) or "none"


def call(function: Callable[..., Any], prompts: list[str], responses: list[str]) -> tuple[str, Any]:
    """`("scores", items)`, each item a float or the text of its fault; or `("fault", text)`."""
    try:
        result = function(prompts, responses)
        if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
            return "fault", f"returned {_shown(result)}, not a list of {len(prompts)} scores"
        items = [_number(item) for item in result]
    except (Exception, SystemExit) as error:  # whatever the user's code raises is to be reported
        return "fault", f"raised {describe(error)}"
    if len(items) != len(prompts):
        return "fault", f"returned {len(items)} scores for {len(prompts)} responses"
    return "scores", items


def _number(item: object) -> float | str:
    value = item.item() if hasattr(item, "item") else item  # NumPy's and torch's scalars
    return float(value) if isinstance(value, Real) else f"returned {_shown(item)}, not a number"


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'…' if len(text) > 80 else ''}"


def describe(error: BaseException) -> str:
    """Type, text and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def main() -> None:
    fd, parent_pid, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    die_with(parent_pid)
    connection = Connection(fd)
    try:
        function = load(target)
    except ValueError as error:
        return connection.send(("fault", str(error)))
    except (Exception, SystemExit) as error:  # the user's module may raise anything as it loads
        return connection.send(("fault", f"its module raised {describe(error)}"))
    connection.send(("ready", None))
    while True:
        try:
            prompts, responses = connection.recv()
        except EOFError:  # the pool was closed
            return None
        connection.send(call(function, prompts, responses))


if __name__ == "__main__":
    main()
