"""Ray itself: join the cluster that is up, or start one on this machine."""

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import ray
from ray._private import ray_constants, services

from rlhf_ray.actors.control import NAMESPACE

TOKEN = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
# Progress bars and notices of libraries would bury the run's own lines.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def use_token() -> None:
    """Send the token where there is one: a Ray that was started beside it answers nobody else.

    Only `ray start` looks for it by itself; a client has to be told, and Ray reads its environment
    once, at import, hence the private call.
    """
    at_hand = "RAY_AUTH_TOKEN" in os.environ or TOKEN.is_file()
    if at_hand and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        ray._raylet.Config.initialize("")


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the block. RAY_ADDRESS, or a Ray on this machine, is joined; else one is started.

    One that is started listens on 127.0.0.1 alone. Workers see this process's working directory
    first: a user's `module:function` is found there.
    """
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONPATH": path, **QUIET}
    os.environ.update(QUIET)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    use_token()
    try:
        own = _found() in (None, "local")
        with _sigterm_kept(), _on_loopback() if own else nullcontext():
            ray.init(
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": env},
            )
    except ConnectionError as error:
        raise ValueError(why_not_joined(error)) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def join_session() -> Iterator[None]:
    """The Ray that is up, for the block. ValueError where there is none, or several."""
    use_token()
    try:
        with _on_loopback() if _is_a_runs_own(_the_one_that_is_up()) else nullcontext():
            ray.init(
                address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR"
            )
    except ConnectionError as error:
        raise ValueError(why_not_joined(error)) from None
    try:
        yield
    finally:
        ray.shutdown()


def why_not_joined(error: ConnectionError) -> str:
    """What Ray's error means: it says the same of a Ray that is away and of one that refuses."""
    named = re.search(r"Failed to connect to Ray cluster at (\S+):(\d+)", str(error))
    if "Could not find any" in str(error):
        return "no Ray is up on this machine: start one (make cluster), or name it in RAY_ADDRESS"
    if named is None:
        return str(error)
    address = f"{named[1]}:{named[2]}"
    try:
        socket.create_connection((named[1], int(named[2])), timeout=5).close()
    except OSError:
        return f"no Ray answers at {address}: start one (make cluster), or correct RAY_ADDRESS"
    if "RAY_AUTH_TOKEN" in os.environ:
        sent = "the token in RAY_AUTH_TOKEN"
    else:
        sent = f"the token in {TOKEN}" if TOKEN.is_file() else f"a call without token (no {TOKEN})"
    return (
        f"the Ray at {address} refuses {sent}: it was started with another; name the file that "
        f"holds its token in RAY_AUTH_TOKEN_PATH"
    )


def _found(address: str | None = None) -> str | None:
    """The Ray that `ray.init` would join; None or "local": it would start one."""
    services.find_gcs_addresses.cache_clear()
    return services.get_ray_address_from_environment(address, None)


def _the_one_that_is_up() -> str | None:
    """What RAY_ADDRESS names, what `ray start` started last, or the only one that a run started.

    Raises ValueError where several runs started one each: Ray would take any.
    """
    address = _found("auto")
    several = services.find_gcs_addresses()
    named = os.environ.get("RAY_ADDRESS") or services.find_bootstrap_address(None)
    if len(several) > 1 and not named:
        raise ValueError(
            f"several Rays are up on this machine, at {', '.join(sorted(several))}: say which, "
            f"RAY_ADDRESS={min(several)} before the command"
        )
    return address


def _is_a_runs_own(address: str | None) -> bool:
    """Whether `ray_session` started that Ray, for `ray start` tells others the host's address."""
    if address is None or not address.startswith("127.0.0.1:"):
        return False
    return address in services.find_gcs_addresses()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Have SIGTERM do after the block what it did before: `ray.init` puts an exit of its own there.

    Where nobody had asked for anything, Ray's stays: the default would leave what Ray started.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    # Only the main thread may set a handler; in another, Ray sets none.
    main = threading.current_thread() is threading.main_thread()
    if main and before not in (signal.SIG_DFL, None):
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have this node be 127.0.0.1 to a Ray that is started or joined in the block.

    Ray takes that as `_node_ip_address` for a mistake, and puts another in its place. It does so by
    itself where RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is 0, which it reads once, at import: hence the
    private names. Its own commands find such a Ray with that variable alone.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def session_dir() -> Path:
    """Ray's directory of logs and sockets on this node."""
    return Path(ray._private.worker._global_node.get_session_dir_path())
