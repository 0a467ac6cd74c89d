"""Why a Ray was not joined, told apart by what answers at its address."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rlhf_ray.orchestration import session


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that is answered, by nobody who would let us in."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("token", "sent"),
    [
        ("in a file", "refuses the token in {file}"),
        ("in the environment", "refuses the token in RAY_AUTH_TOKEN:"),
        ("none", "refuses a call without token (no {file})"),
    ],
)
def test_a_token_that_is_refused_is_named(
    token: str, sent: str, listening: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:  # as Ray 2.60 does after twenty seconds, whatever the reason
        raise ConnectionError(f"Failed to connect to Ray cluster at 127.0.0.1:{listening}")

    file = tmp_path / "token"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    if token == "in a file":
        file.write_text("secret")
    if token == "in the environment":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setattr(session, "TOKEN", file)
    monkeypatch.setattr(session, "use_token", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening}")
    monkeypatch.setattr(ray, "init", refuse)
    for opened in (session.join_session, session.ray_session):
        with pytest.raises(ValueError) as caught, opened():
            pass
        message = str(caught.value)
        assert message.startswith(f"the Ray at 127.0.0.1:{listening} {sent.format(file=file)}")
        assert message.endswith("name the file that holds its token in RAY_AUTH_TOKEN_PATH")
        assert "secret" not in message


def test_a_ray_that_is_away_is_not_one_that_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    gone = ConnectionError(f"Failed to connect to Ray cluster at 127.0.0.1:{free}")
    assert session.why_not_joined(gone).startswith(f"no Ray answers at 127.0.0.1:{free}: start")
    none = ConnectionError("Could not find any running Ray instance. Please specify …")
    assert session.why_not_joined(none).startswith("no Ray is up on this machine: start one")
    several = ConnectionError("Found multiple active Ray instances: {'a:1', 'b:2'}. Please …")
    assert session.why_not_joined(several) == str(several)
