"""A Ray cluster of several machines on this one, each of which a test may take away at once, and give back.

Where the machine allows it (root, `unshare`, `ip`), a machine is a set of namespaces: its own network, joined to the
others by a bridge, its own processes, host name and /tmp/ray, and it does not see what lies in a given folder.
Elsewhere they are plain processes on 127.0.0.1 which share the file system: less of a test, and `describe` says so.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import psutil

ROOT = Path(__file__).parent.parent
_RAY = Path(sys.executable).parent / "ray"

# A node that is gone is noticed within seconds, not within a minute.
NOTICED_SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",  # a machine that is busy is not lost
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


class Machine(Protocol):
    """A machine: what is started in it by way of `within` ends when it is killed."""

    name: str
    ip: str
    temp: Path

    @property
    def is_on(self) -> bool: ...
    def boot(self) -> None: ...
    def within(self, command: Sequence[str]) -> list[str]: ...
    def path(self, inside: Path) -> Path: ...
    def processes(self) -> list[psutil.Process]: ...
    def kill(self) -> None: ...


_UNSHARE = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork"]


def has_namespaces() -> bool:
    """Whether machines may be namespaces here."""
    if os.environ.get("PSCLAP_TEST_NAMESPACES") == "0":
        return False
    if not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "mount", "ip"))):
        return False
    name = f"probe{os.getpid()}"  # in a network of its own, and here, where the bridge is to be
    tried = [["ip", "link", "add", name, "type", "bridge"], ["ip", "link", "delete", name]]
    commands = [[*_UNSHARE, *tried[0]], *tried]
    return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Network:
    """The bridge that joins the machines to each other and to this process, whose address there is `outside`."""

    def __init__(self) -> None:
        number = os.getpid()
        self._prefix = f"10.{200 + number % 50}.{number // 50 % 250}"
        self.bridge = f"psc{number}"
        self.outside = self.address(1)

    def address(self, number: int) -> str:
        return f"{self._prefix}.{number}"

    def __enter__(self) -> "Network":
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.outside}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        return self

    def __exit__(self, *error: object) -> None:
        _ip("link", "delete", self.bridge)


_BOOT = """
mount --make-rprivate / && hostname "$1" && mount --bind "$2" /etc/hosts &&
mkdir -p /tmp/ray && mount -t tmpfs ray /tmp/ray &&
if [ -n "$3" ]; then mount -t tmpfs hidden "$3"; fi &&
echo booted && while :; do sleep 1000 & wait; done
"""
"""The first process of a machine: sets it up, then collects what dies."""


def _namespace(process: psutil.Process) -> Path:
    return Path(f"/proc/{process.pid}/ns/pid").readlink()


class NamespaceMachine:
    """A machine of its own namespaces, which sees the folder `hidden` empty."""

    def __init__(self, network: Network, number: int, folder: Path, hidden: Path | None):
        self.name, self.ip, self.temp = f"machine-{number}", network.address(10 + number), Path("/tmp/ray")
        self._network, self._hidden = network, hidden
        self._link = f"{network.bridge}n{number}"
        self._hosts = folder / f"{self.name}.hosts"
        self._hosts.write_text(f"127.0.0.1 localhost\n{self.ip} {self.name}\n")
        self._first: psutil.Process | None = None

    @property
    def is_on(self) -> bool:
        return self._first is not None

    def boot(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, "--kill-child", "--mount-proc", "bash", "-c", _BOOT]
        command += ["boot", self.name, str(self._hosts), str(self._hidden or "")]
        pipe = subprocess.PIPE
        self._shell = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd="/")
        assert self._shell.stdout
        assert self._shell.stdout.readline() == "booted\n"
        (self._first,) = psutil.Process(self._shell.pid).children()
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self._first.pid))
        _ip("link", "set", self._link, "master", self._network.bridge, "up")
        for inside in (
            ["addr", "add", f"{self.ip}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", self._network.outside],
        ):
            subprocess.run(self.within(["ip", *inside]), check=True)

    def within(self, command: Sequence[str]) -> list[str]:
        assert self._first, f"{self.name} is off"
        return ["nsenter", "-t", str(self._first.pid), "-n", "-p", "-m", "-u", *command]

    def path(self, inside: Path) -> Path:
        """Where this process finds a file of the machine."""
        assert self._first
        return Path(f"/proc/{self._first.pid}/root{inside}")

    def processes(self) -> list[psutil.Process]:
        assert self._first
        return [process for process in psutil.process_iter() if process != self._first and self._is_here(process)]

    def _is_here(self, process: psutil.Process) -> bool:
        assert self._first
        with contextlib.suppress(OSError):
            return _namespace(process) == _namespace(self._first)
        return False

    def kill(self) -> None:
        """All of its processes at once; its network goes with them."""
        if self._first:
            self._first.kill()  # the kernel ends all others with the first
            self._shell.communicate()
            subprocess.run(["ip", "link", "delete", self._link], capture_output=True, check=False)
            self._first = None


class PlainMachine:
    """Processes on 127.0.0.1 with a temporary folder of their own."""

    def __init__(self, number: int, folder: Path):
        self.name, self.ip, self.temp = f"machine-{number}", "127.0.0.1", folder / f"machine-{number}"
        self.is_on = False
        self._mark = f"PSCLAP_TEST_MACHINE={folder}/{number}"

    def boot(self) -> None:
        self.temp.mkdir(exist_ok=True)
        self.is_on = True

    def within(self, command: Sequence[str]) -> list[str]:
        return ["env", self._mark, *command]

    def path(self, inside: Path) -> Path:
        return inside

    def processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_here(process)]

    def _is_here(self, process: psutil.Process) -> bool:
        with contextlib.suppress(OSError):
            return f"{self._mark}\0".encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
        return False

    def kill(self) -> None:
        kill_all(self.processes)
        self.is_on = False


def kill_all(processes: Callable[[], list[psutil.Process]]) -> None:
    """Kills what there is until there is none: those that die may just have started others."""
    while found := [process for process in processes() if process.status() != psutil.STATUS_ZOMBIE]:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=10)


class Cluster:
    """A head without cores to work on, and workers with one core each, which do not see the folder `hidden`."""

    def __init__(self, folder: Path, hidden: Path, workers: int = 2):
        self.folder, self._hidden, self._numbers = folder, hidden, range(1, workers + 1)
        self._started = contextlib.ExitStack()
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-tests-of-nodes-and-nobody-else"}
        self.environment = {**os.environ, **NOTICED_SOON, **token, "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> "Cluster":
        self.head: Machine
        if has_namespaces():
            self.kind = "machines with networks, processes and files of their own"
            network = self._started.enter_context(Network())
            self.outside, self._port = network.outside, 6379
            self.head = NamespaceMachine(network, 0, self.folder, None)
            self.workers: list[Machine] = [
                NamespaceMachine(network, number, self.folder, self._hidden) for number in self._numbers
            ]
        else:
            self.kind = "plain processes on 127.0.0.1: this machine allows no namespaces"
            self.outside, self._port = "127.0.0.1", 20000 + os.getpid() % 10000
            self.head = PlainMachine(0, self.folder)
            self.workers = [PlainMachine(number, self.folder) for number in self._numbers]
        self.environment["RAY_ADDRESS"] = f"{self.head.ip}:{self._port}"
        for machine in (self.head, *self.workers):
            self._started.callback(machine.kill)
            machine.boot()
        return self

    def __exit__(self, *error: object) -> None:
        self._started.close()

    def start(self) -> None:
        """Ray on all machines; returns when it runs."""
        self.start_head()
        for wait in [self.start_worker(machine) for machine in self.workers]:
            wait()

    def start_head(self) -> None:
        options = ["--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false"]
        self._start_ray(self.head, options)()

    def start_worker(self, machine: Machine) -> Callable[[], None]:
        """Ray on a machine; what it returns waits until it runs."""
        address = self.environment["RAY_ADDRESS"]
        return self._start_ray(machine, [f"--address={address}", "--num-cpus=1"])

    def _start_ray(self, machine: Machine, options: Sequence[str]) -> Callable[[], None]:
        command = [str(_RAY), "start", "--block", f"--node-ip-address={machine.ip}", *options]
        command += [f"--temp-dir={machine.temp}", f"--object-store-memory={100 << 20}", "--disable-usage-stats"]
        log = self.folder / f"{machine.name}.log"
        before = log.stat().st_size if log.exists() else 0
        process = self.popen(machine, command, log)

        def wait() -> None:
            while b"Ray runtime started" not in log.read_bytes()[before:]:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)

        return wait

    def popen(
        self, machine: Machine, command: Sequence[str], log: Path, cwd: Path = Path("/")
    ) -> subprocess.Popen[bytes]:
        """Starts a command on a machine."""
        with log.open("ab") as stream:
            inside = ["env", f"--chdir={cwd}", f"PSCLAP_CACHE_DIR={machine.temp}/cache", *command]
            return subprocess.Popen(
                machine.within(inside), stdout=stream, stderr=stream, env=self.environment, start_new_session=True
            )

    def give_back(self, machine: Machine) -> None:
        """The machine as new, and Ray on it."""
        machine.boot()
        self.start_worker(machine)()

    def restart(self) -> None:
        """Ray anew on every machine; those that were lost are there again."""
        for machine in (self.head, *self.workers):
            if machine.is_on:
                self.kill_ray(machine)
            else:
                machine.boot()
        self.start()

    def kill_ray(self, machine: Machine) -> None:
        """Ray's own processes on a machine, and those that work for it, at once; what else runs there stays."""

        def of_ray() -> list[psutil.Process]:
            return [process for process in machine.processes() if _is_of_ray(process)]

        kill_all(of_ray)


def _is_of_ray(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        line = " ".join(process.cmdline())
        return line.startswith("ray::") or "/site-packages/ray/" in line or "bin/ray start" in line
    return False
