"""Ray itself: join the cluster that is up, or start one on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

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

    Workers see this process's working directory first: a user's `module:function` is found there.
    """
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONPATH": path, **QUIET}
    os.environ.update(QUIET)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    use_token()
    ray.init(
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": env},
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def join_session() -> Iterator[None]:
    """The Ray that is up, for the block. ValueError where there is none."""
    use_token()
    try:
        ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        raise ValueError(
            "no Ray is up on this machine: start one (make cluster), or name it in RAY_ADDRESS"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def session_dir() -> Path:
    """Ray's directory of logs and sockets on this node."""
    return Path(ray._private.worker._global_node.get_session_dir_path())
