"""The Slurm script with small commands in the place of Slurm's, Ray's and the retraining: what it starts, waits for,
tries again, and ends. On a real Slurm it was tried by hand (docs/clusters.md).
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "pipelines" / "deploy" / "slurm.sh"
_COMMANDS = {
    # srun: its options, then the command, which it ends when it is ended itself
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": """
        case $1 in
        show) printf 'n1\\nn2\\nn3\\n' ;;
        requeue) echo "requeue $2" >>"$TRACE"; kill -TERM $PPID ;;
        esac""",
    "ray": """
        echo "$* address=${RAY_ADDRESS:-none} token=${#RAY_AUTH_TOKEN}" >>"$TRACE"
        trap 'echo ended >>"$TRACE"; exit 143' TERM
        while :; do sleep 0.02; done""",
    "python": """
        case "$*" in
        *secrets*) echo 0123456789abcdef0123456789abcdef ;;
        *get_node_ip_address*) echo 192.0.2.7 ;;
        *pipelines.deploy.nodes*) until [[ $(grep -c address= "$TRACE") == 2 ]]; do sleep 0.02; done
            echo "nodes $*" >>"$TRACE"; exit "${NODES:-0}" ;;
        *pipelines.retrain*) echo "retrain $* $RAY_ADDRESS" >>"$TRACE"
            trap 'sleep 0.2; echo saved >>"$TRACE"; exit 130' TERM
            while [[ $RETRAIN == wait ]]; do sleep 0.02; done
            exit "$RETRAIN" ;;
        esac""",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of the script in a job of three nodes."""
    (tmp_path / "bin").mkdir()
    for name, body in _COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "trace").touch()
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TRACE": str(tmp_path / "trace"),
        "PSCLAP_PROJECT": str(tmp_path),
        "PSCLAP_VENV": str(tmp_path),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "SLURM_JOB_ID": "40017",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_NNODES": "3",
    }


def run(environment: dict[str, str], **more: str) -> tuple[int, list[str]]:
    done = subprocess.run(["bash", SCRIPT], env=environment | more, capture_output=True, text=True, timeout=60)
    return done.returncode, Path(environment["TRACE"]).read_text().splitlines()


def test_it_starts_a_node_on_each_machine_and_ends_them(cluster: dict[str, str]) -> None:
    code, trace = run(cluster, RETRAIN="0")
    assert code == 0
    (head,) = [line for line in trace if "--head" in line]
    assert "--node-ip-address=192.0.2.7 --port=20017" in head
    assert "address=none token=32" in head  # a token of the job's own, and no address of another cluster
    (worker,) = [line for line in trace if "--address=192.0.2.7:20017" in line]
    assert "token=32" in worker
    assert "retrain -m pipelines.retrain --config retrain.yaml 192.0.2.7:20017" in trace
    assert "nodes -m pipelines.deploy.nodes --wait-for 3 --within 600" in trace
    assert trace.count("ended") == 2


@pytest.mark.parametrize(
    ("outcome", "restarts", "code", "again"),
    [
        ("0", 0, 0, False),
        ("10", 0, 0, False),  # the champion was kept: the job is COMPLETED
        ("1", 0, 1, False),
        ("2", 0, 2, False),
        ("11", 0, 11, False),
        ("75", 0, -signal.SIGTERM, True),  # Slurm ends the script that is queued again
        ("130", 4, -signal.SIGTERM, True),
        ("75", 5, 75, False),  # often enough
    ],
)
def test_it_acts_on_the_exit_status(
    cluster: dict[str, str], outcome: str, restarts: int, code: int, again: bool
) -> None:
    status, trace = run(cluster, RETRAIN=outcome, SLURM_RESTART_COUNT=str(restarts))
    assert (status, "requeue 40017" in trace) == (code, again)
    assert trace.count("ended") == 2


def test_nodes_that_do_not_come_are_tried_again_without_retraining(cluster: dict[str, str]) -> None:
    _, trace = run(cluster, RETRAIN="0", NODES="75")
    assert "requeue 40017" in trace
    assert not any(line.startswith("retrain") for line in trace)


def test_a_signal_reaches_the_retraining_which_may_save(cluster: dict[str, str]) -> None:
    with subprocess.Popen(["bash", SCRIPT], env=cluster | {"RETRAIN": "wait"}, stderr=subprocess.PIPE) as script:
        while "retrain" not in Path(cluster["TRACE"]).read_text():
            assert script.poll() is None
        script.send_signal(signal.SIGTERM)
        script.wait(timeout=60)
    trace = Path(cluster["TRACE"]).read_text().splitlines()
    assert trace.index("saved") < trace.index("ended") < trace.index("requeue 40017")


@pytest.mark.parametrize("name", ["PSCLAP_PROJECT", "MLFLOW_TRACKING_URI", "SLURM_JOB_ID"])
def test_what_is_not_said_is_asked_for(cluster: dict[str, str], name: str) -> None:
    del cluster[name]
    done = subprocess.run(["bash", SCRIPT], env=cluster, capture_output=True, text=True)
    assert done.returncode == 1
    assert name in done.stderr
