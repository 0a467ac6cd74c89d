"""Ray for tests of what uses it from the driver."""

from collections.abc import Iterator

import pytest

from rlhf_ray.orchestration.session import join_session


@pytest.fixture(scope="module")
def joined(ray_address: str) -> Iterator[None]:
    """The test's own process as a driver of the tests' Ray."""
    with join_session():
        yield
