"""Reward functions that work, and every way in which one can go wrong, in real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.rewards.function import FunctionReward
from rlhf_ray.rewards.function_pool import Call, Outcome
from rlhf_ray.rewards.protocol import Responses

USER_MODULE = '''
import os, re, subprocess, sys, time

HELPER = None

def length(prompts, responses):
    return [len(p) + len(r) / 10 for p, r in zip(prompts, responses)]

def as_array(prompts, responses):
    import numpy as np
    return np.array([len(r) for r in responses], dtype=np.float32)

def yes_or_no(prompts, responses):
    return (r == "yes" for r in responses)

def pid(prompts, responses):
    return [os.getpid()] * len(prompts)

def prints(prompts, responses):
    print("x" * 200_000)
    return [1.0] * len(prompts)

def faulty(prompts, responses):
    """Each response says what goes wrong with it; any other gets its length."""
    scores = []
    for response in responses:
        if response == "raise":
            raise RuntimeError("no such thing")
        if response == "exit":
            sys.exit(3)
        if response == "leave":
            os._exit(0)
        if response == "kill":
            os.kill(os.getpid(), 9)
        if response == "hang":
            with open(os.environ.get("CALLS", os.devnull), "a") as file:
                file.write(f"{len(responses)}\\n")
            time.sleep(1e6)
        if response == "spin":
            re.match("(a+)+$", "a" * 60 + "b")
        if response == "family":
            child = subprocess.Popen(["sleep", "1000"])
            open(os.environ["FAMILY"], "w").write(str(child.pid))
            time.sleep(1e6)
        bad = {"nan": float("nan"), "inf": -float("inf"), "big": 1e39, "text": "3.5", "none": None}
        scores.append(bad.get(response, len(response)))
    return scores

def too_few(prompts, responses):
    return [1.0] * (len(prompts) - 1)

def one_for_all(prompts, responses):
    return [1.0]

def not_a_list(prompts, responses):
    return 3.0

def text(prompts, responses):
    return "5" * len(prompts)

def only_alone(prompts, responses):
    time.sleep(1e6 if len(prompts) > 1 else 0)
    return [float(len(r)) for r in responses]
'''


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_rewards.py").write_text(USER_MODULE)
    (tmp_path / "raises_on_import.py").write_text("1 / 0\n")
    (tmp_path / "exits_on_import.py").write_text("import os; os._exit(7)\n")
    (tmp_path / "needs_a_package.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make() -> Iterator:
    made: list[FunctionReward] = []

    def make_one(function: str, **kwargs) -> FunctionReward:
        made.append(FunctionReward(f"user_rewards:{function}", **kwargs))
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def batch(*responses: str) -> Responses:
    prompts = [f"prompt {i}" for i in range(len(responses))]
    ids = [[i] for i in range(len(responses))]
    return Responses(ids, ids, prompts, responses, [True] * len(ids))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie whose parent has yet to read its status does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_scores_come_in_the_order_of_the_batch(make, processes: int, count: int) -> None:
    responses = ["x" * (count - i) for i in range(count)]
    scores = make("length", processes=processes)(batch(*responses))
    assert scores.scores.dtype == np.float32 and scores.valid.dtype == bool
    assert scores.scores == pytest.approx([8 + (count - i) / 10 for i in range(count)])
    assert scores.valid.all() and len(scores.valid) == count


def test_arrays_generators_and_booleans_are_scores_too(make) -> None:
    assert make("as_array")(batch("a", "bbb")).scores.tolist() == [1, 3]
    assert make("yes_or_no")(batch("yes", "no")).scores.tolist() == [1, 0]


def test_what_it_prints_does_not_disturb_the_scores(make) -> None:
    assert make("prints")(batch("a", "b")).scores.tolist() == [1, 1]


def test_processes_share_a_batch_and_stay(make) -> None:
    reward = make("pid", processes=2)
    first, second = (reward(batch(*"abcd")).scores.tolist() for _ in range(2))
    assert set(first) == set(second) and len(set(first)) == 2
    assert os.getpid() not in first


FAULTS = {
    "raise": r"raised RuntimeError: no such thing \(.*user_rewards.py, line ",
    "exit": "raised SystemExit: 3",
    "leave": r"ended its process \(exit code 0\)",
    "kill": r"ended its process \(killed by signal 9\)",
    "nan": "returned nan, which is not a finite float32",
    "inf": "returned -inf, which is not a finite float32",
    "big": r"returned 1e\+39, which is not a finite float32",
    "text": "returned str '3.5', not a number",
    "none": "returned NoneType None, not a number",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_named_and_survived(make, fault: str) -> None:
    """One reward a policy, the faulty sample in the middle; afterwards it serves as before."""
    for on_error, valid, score in [("fail", None, None), ("drop", False, 0), ("default", True, -2)]:
        reward = make("faulty", on_error=on_error, default=-2.0)
        if on_error == "fail":
            with pytest.raises(ValueError, match=FAULTS[fault]) as caught:
                reward(batch("ab", fault, "abc"))
            for named in ("'user_rewards:faulty'", "'prompt 1'", repr(fault), "set on_error"):
                assert named in str(caught.value)
        else:
            result = reward(batch("ab", fault, "abc"))
            assert result.valid.tolist() == [True, valid, True]
            assert result.scores.tolist() == [2, score, 3]
        assert reward(batch("abcd")).scores.tolist() == [4]


def test_the_first_fault_of_the_batch_is_named_whichever_process_meets_it(make) -> None:
    reward = make("faulty", timeout_s=0.5, processes=2)
    with pytest.raises(ValueError, match=r"did not return within 0\.5 s, for prompt 'prompt 0'"):
        reward(batch("hang", "ab", "raise", "nan"))


# Seconds. What is well returns long before, however busy the machine; each hang costs as many.
PATIENT = 3.0


def test_hung_processes_are_replaced_and_their_neighbour_is_not(make) -> None:
    reward = make("faulty", timeout_s=PATIENT, processes=3, on_error="drop")
    before = reward._pool.pids()
    assert reward(batch("hang", "spin", "fine")).valid.tolist() == [False, False, True]
    after = reward._pool.pids()
    assert len(set(before) & set(after)) == 1
    assert gone(list(set(before) - set(after)))
    assert reward(batch("a", "bb", "ccc")).scores.tolist() == [1, 2, 3]


@pytest.mark.slow
def test_a_function_that_always_hangs_is_not_asked_for_every_sample(
    make, tmp_path: Path, monkeypatch
) -> None:
    """Each third goes to a process as one call; the samples of one that hangs are called alone."""
    calls = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(calls))
    reward = make("faulty", timeout_s=PATIENT, processes=3, on_error="drop")
    found = reward(batch(*["hang"] * 3, "fine", "fine", "hang", "hang", "fine", *["fine"] * 4))
    always, sometimes, never = [False] * 4, [True, False, False, True], [True] * 4
    assert found.valid.tolist() == always + sometimes + never
    assert sorted(calls.read_text().split()) == ["1"] * 5 + ["4"] * 2


def test_what_a_hung_function_started_dies_with_it(make, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAMILY", str(tmp_path / "family"))
    reward = make("faulty", timeout_s=PATIENT, on_error="drop")
    assert reward(batch("family")).valid.tolist() == [False]
    assert gone([int((tmp_path / "family").read_text())])


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("too_few", "returned 0 scores for 1 responses, for prompt 'prompt 0'"),
        ("one_for_all", "returned 1 scores for 2 responses, .*must take any number"),
        ("not_a_list", "returned float 3.0, not a list of 1 scores, for prompt 'prompt 0'"),
        ("text", "returned str '5', not a list of 1 scores"),
    ],
)
def test_the_wrong_number_or_kind_of_scores_fails(make, function: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make(function)(batch("a", "b"))
    if function != "one_for_all":
        assert not make(function, on_error="drop")(batch("a", "b")).valid.any()


def test_a_batch_too_slow_as_a_whole_is_scored_one_by_one(make) -> None:
    result = make("only_alone", timeout_s=PATIENT)(batch("a", "bb", "ccc", "dddd"))
    assert result.scores.tolist() == [1, 2, 3, 4] and result.valid.all()


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("no_such_module:f", "no module 'no_such_module' in .*PYTHONPATH"),
        ("user_rewards.sub:f", "No module named 'user_rewards.sub'|no module 'user_rewards.sub'"),
        ("user_rewards:no_such", "has no function 'no_such'; its functions are .*faulty.*length"),
        ("user_rewards:HELPER", "has no function 'HELPER'"),
        ("user_rewards", "not of the form module:function"),
        (":f", "not of the form module:function"),
        ("raises_on_import:f", "its module raised ZeroDivisionError: division by zero .*line 1"),
        ("needs_a_package:f", "its module raised ModuleNotFoundError: .*'no_such_package'"),
        ("exits_on_import:f", r"ended the process as it loaded \(exit code 7\)"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused_at_once(target: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        FunctionReward(target, processes=2)
    assert target in str(caught.value)


def test_a_function_on_the_python_path_is_found(tmp_path: Path, monkeypatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(tmp_path)
    reward = FunctionReward("user_rewards:length")
    assert reward(batch("a")).scores == pytest.approx([8.1])
    reward.close()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="processes 0"):
        FunctionReward("user_rewards:length", processes=0)
    with pytest.raises(ValueError, match="timeout_s 0"):
        FunctionReward("user_rewards:length", timeout_s=0.0)


def test_an_idle_process_that_was_killed_is_replaced(make) -> None:
    reward = make("length", processes=2)
    pids = reward._pool.pids()
    os.kill(pids[0], signal.SIGKILL)
    assert gone(pids[:1])
    assert reward(batch("a", "b")).scores == pytest.approx([8.1, 8.1])


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """A Ctrl-C in the block, so long after it began."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_call_leaves_no_answer_for_the_next_one(make) -> None:
    reward = make("faulty", processes=2)
    pids = reward._pool.pids()
    with interrupted_after(0.5):
        reward(batch("hang", "fine"))
    assert gone(pids[:1])
    for responses in (["a", "bb"], ["ccc", "dddd"]):
        outcomes = reward._pool.run([Call(["p"], [response]) for response in responses])
        assert outcomes == [Outcome(items=[float(len(response))]) for response in responses]


def test_a_process_that_was_interrupted_as_it_loads_is_loaded_anew(tmp_path: Path) -> None:
    """The call finds the process dead, and the interrupt comes while it awaits the new one."""
    (tmp_path / "slow_to_load.py").write_text(
        "import os, time\n"
        "if os.path.exists('slow'):\n    time.sleep(1e6)\n"
        "def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    )
    reward = FunctionReward("slow_to_load:length")
    (tmp_path / "slow").touch()
    os.kill(reward._pool.pids()[0], signal.SIGKILL)
    assert gone(reward._pool.pids())
    with interrupted_after(1.0):
        reward(batch("a"))
    assert gone(reward._pool.pids())
    (tmp_path / "slow").unlink()
    assert reward(batch("abc")).scores.tolist() == [3]
    reward.close()


def test_it_serves_when_the_thread_that_made_it_has_ended(make) -> None:
    """The kernel counts that as the parent's death and ends the processes."""
    made: list[FunctionReward] = []
    thread = threading.Thread(target=lambda: made.append(make("length")))
    thread.start()
    thread.join()
    assert gone(made[0]._pool.pids())
    assert made[0](batch("a")).scores == pytest.approx([8.1])


def test_close_leaves_no_process(make) -> None:
    reward = make("length", processes=3)
    pids = reward._pool.pids()
    assert all(map(alive, pids))
    reward.close()
    assert not any(map(alive, pids))
    reward.close()


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
from rlhf_ray.rewards.function import FunctionReward
from rlhf_ray.rewards.protocol import Responses
reward = FunctionReward("user_rewards:faulty", processes=3, timeout_s=1000)
print(*reward._pool.pids(), flush=True)
reward(Responses([[1]] * 3, [[1]] * 3, ["p"] * 3, sys.argv[1].split(), [True] * 3))
"""


@pytest.mark.parametrize(("blow", "end"), [(signal.SIGKILL, -9), (signal.SIGINT, -2)])
def test_no_process_outlives_its_parent(blow: signal.Signals, end: int) -> None:
    """Neither one that sleeps, nor one that never lets go of the interpreter, nor an idle one."""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, "hang spin idle"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3 and all(map(alive, pids))
    parent.send_signal(blow)
    assert parent.wait(20) == end
    parent.stdout.close()
    assert gone(pids)
