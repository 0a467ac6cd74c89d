"""vLLM as several processes: here two on the CPU, as on two GPUs but for the products."""

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlhf_ray.data.ids import Version
from rlhf_ray.generators.protocol import Generator
from tests.contracts import actions, models
from tests.contracts.engines import EngineProcess
from tests.contracts.test_generators import SAMPLING, Bench, some_requests

pytestmark = pytest.mark.slow


def in_two_processes(path: str) -> EngineProcess:
    return EngineProcess(
        "vllm",
        path,
        sampling=SAMPLING,
        version=Version(0, 0),
        max_model_len=models.POSITIONS,
        kv_cache_mb=64,
        tensor_parallel=2,
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("parallel")
    paths = (str(root / "first"), str(root / "second"))
    made = tuple(models.make("qwen2", Path(path), seed=i) for i, path in enumerate(paths))
    engine = in_two_processes(paths[0])
    yield Bench(engine, "qwen2", paths, made)
    engine.close()


def reload_whole(_: Generator) -> None:
    """As it is."""


def reload_tensor_by_tensor(_: Generator) -> None:
    from rlhf_ray.generators import vllm_engine

    vllm_engine.RELOADED_AT_ONCE = 1


def reload_as_on_a_gpu(engine: Any) -> None:
    engine._engine.collective_rpc(_nothing_is_packed)


def _nothing_is_packed(_: Any) -> None:
    from rlhf_ray.generators import vllm_reload

    vllm_reload.PACKED = ()


def sizes(engine: Any) -> list[int]:
    return engine._engine.collective_rpc(_size)


def _size(worker: Any) -> int:
    return sum(parameter.numel() for parameter in worker.get_model().parameters())


def test_each_process_has_its_part_and_all_weights_are_replaced(bench: Bench) -> None:
    parts = bench.engine.call(sizes)
    whole = sum(parameter.numel() for parameter in bench.models[0].parameters())
    assert len(parts) == 2 and max(parts) < whole
    requests = some_requests(6)
    bench.close_to(0, requests, bench.engine.call(actions.generate, requests))
    for which, way in ((1, reload_whole), (0, reload_tensor_by_tensor), (1, reload_as_on_a_gpu)):
        bench.engine.call(way)
        bench.load(which)
        bench.close_to(which, requests, bench.engine.call(actions.generate, requests))
    bench.scores_close_to(1, [request.prompt_token_ids for request in requests])


def load_ipc(engine: Any, update: dict[str, Any]) -> None:
    engine.load_ipc(Version(9, 9), update)


def test_weights_by_cuda_ipc_that_are_not_the_models_are_refused_and_change_nothing(
    bench: Bench,
) -> None:
    update = {"names": ["x"], "dtype_names": ["float32"], "shapes": [[1]], "ipc_handles": [{}]}
    with pytest.raises(ValueError, match="none of the model's"):
        bench.engine.call(load_ipc, update)
    requests = some_requests(2)
    bench.close_to(1, requests, bench.engine.call(actions.generate, requests))


def family(_: Generator) -> list[int]:
    """This process and those that it has made, as deep as they go."""
    here = psutil.Process()
    return [here.pid, *(child.pid for child in here.children(recursive=True))]


def test_its_processes_end_when_the_one_that_made_them_is_killed(bench: Bench) -> None:
    """As a generator is by Ray, or by the kernel."""
    engine = in_two_processes(bench.paths[0])
    first, *others = (psutil.Process(pid) for pid in engine.call(family))
    assert len(others) >= 2
    first.kill()
    with pytest.raises(BrokenExecutor):
        engine.call(family)
    _, alive = psutil.wait_procs(others, timeout=30)
    assert not alive
