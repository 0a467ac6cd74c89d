"""A generator in a process of its own, as in a run: the environment comes before the imports."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rlhf_ray.generators.registry import BACKENDS

THREADS = 1
_engine: Any = None  # in the child


class EngineProcess:
    """`call(function, *args)` runs `function(engine, *args)` in the child; exceptions come back."""

    def __init__(self, backend: str, model_path: str, **options: Any) -> None:
        self.backend = backend
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        before = dict(os.environ)
        os.environ.update(BACKENDS[backend].environment(THREADS))  # a spawned child has it
        try:
            self._pool.submit(_start, backend, model_path, options).result()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._pool.submit(_call, function, args).result()

    def close(self) -> None:
        self.call(_close)
        self._pool.shutdown()


def _start(backend: str, model_path: str, options: dict[str, Any]) -> None:
    global _engine
    _engine = BACKENDS[backend].make(model_path, **options)


def _call(function: Callable[..., Any], args: tuple) -> Any:
    return function(_engine, *args)


def _close(engine: Any) -> None:
    engine.close()
