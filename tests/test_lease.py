"""One holder at a time, in a real tracking store; and the champions that holders make."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import lease as module
from pipelines.lease import Lease, LeaseError, leased
from pipelines.promotion import standing
from pipelines.tracking import TrackingStore

ELSEWHERE = "7@elsewhere/0 since 0"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def store(uri: str) -> TrackingStore:
    return TrackingStore(uri, None)


def held_by(store: TrackingStore, name: str, holder: str) -> Lease:
    """A lease as another machine holds it."""
    client = store.client()
    experiment_id = client.create_experiment(f"{name}-000001", tags={"holder": holder, "heartbeat": "0"})
    return Lease(client, experiment_id, name, 1, holder)


def test_one_holder_at_a_time_and_then_the_next(store: TrackingStore) -> None:
    with leased(store, "plain") as first:
        first.check()
        with pytest.raises(LeaseError, match=f"plain is held by {os.getpid()}@"), leased(store, "plain"):
            pass
        with leased(store, "other"):
            pass
    with leased(store, "plain") as second:
        second.check()
        with pytest.raises(LeaseError, match="was taken over"):
            first.check()


def test_waiting_for_a_holder_ends_when_it_is_done(store: TrackingStore) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with leased(store, "waiting"):
            held.set()
            time.sleep(1)
            done.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    with leased(store, "waiting", wait_s=60):
        assert done.is_set()
    holder.join()


_KILLED = """
import os, signal, sys
from pipelines.lease import leased
from pipelines.tracking import TrackingStore
with leased(TrackingStore(sys.argv[1], None), "killed"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_of_a_holder_that_was_killed_on_this_machine_it_is_had_at_once(store: TrackingStore, uri: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", _KILLED, uri], check=False, env=environment)
    with leased(store, "killed") as lease:
        lease.check()
    assert lease.number == 2


def test_a_holder_elsewhere_is_given_up_when_its_heart_stands_still(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 1.0)
    silent = held_by(store, "silent", ELSEWHERE)
    with leased(store, "silent") as lease:
        lease.check()
        with pytest.raises(LeaseError, match=r"the lease silent of 7@elsewhere/0 since 0 was taken over"):
            silent.check()


def test_a_holder_elsewhere_that_is_alive_is_left_alone(store: TrackingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    living = held_by(store, "living", ELSEWHERE)
    heart = threading.Thread(target=living.beat)
    heart.start()
    with pytest.raises(LeaseError, match="living is held by 7@elsewhere"), leased(store, "living"):
        pass
    living.check()
    living.give_back()
    heart.join()
    with leased(store, "living") as lease:
        assert lease.number == 2


def test_promotions_raced_by_eight_processes_leave_one_champion(uri: str, store: TrackingStore, tmp_path: Path) -> None:
    """Each promotion replaced the champion that the one before it made; `previous` is the last but one."""
    client = store.client()
    client.create_registered_model("raced")
    for number in range(8):
        client.create_model_version("raced", (tmp_path / str(number)).as_uri())
    versions = [[str(number)] for number in range(1, 9)]
    script = Path(__file__).parent / "race.py"
    command = [sys.executable, str(script), uri, "raced", json.dumps(versions)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    replaced = dict(json.loads(line) for line in done.stdout.splitlines())
    assert sorted(replaced.values(), key=int) == [str(number) for number in range(1, 9)]
    order: list[str | None] = [None]
    while order[-1] in replaced:
        order.append(replaced[order[-1]])
    assert len(order) == 9
    now = standing(MlflowClient(uri), "raced")
    assert [now.previous, now.champion] == order[-2:]


def test_names_that_only_look_alike_are_told_apart(store: TrackingStore) -> None:
    """In SQL's LIKE an underscore is any character."""
    client = store.client()
    for name in ("teamba-lock-000005", "team_a-lock-notes", "team_a-lock-aliases-000009"):
        client.create_experiment(name)
    with leased(store, "team_a-lock") as lease:
        assert lease.number == 1
        lease.check()


def test_a_process_with_the_number_of_a_dead_one_is_another() -> None:
    this = module._this_process()
    assert module._process_is_alive(this) is True
    number, start = this.rsplit(" ", 1)
    assert module._process_is_alive(f"{number} {int(start) + 1}") is False
    assert module._process_is_alive(this.replace("@", "@other")) is None
