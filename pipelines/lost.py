"""What a driver does when its Ray cluster is lost: the head was ended or restarted, or no network leads there.

A head that is started again is another cluster: it knows nothing of the workers and tasks of the one before. Ray
itself lets a driver wait for a minute and then ends it in C++, or lets it fail wherever it happens to be. Here it ends
with a sentence, and since all that is worth keeping is on disk or at a URL, the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from psclap import log
from psclap.errors import PsclapError
from psclap.parallel import in_background

PERIOD_S = 1.0
"""How often the head is looked for."""
PATIENCE_S = 20.0
"""How long nothing may be heard of it: a network may come back. After 60 s Ray would end the process."""
REFUSALS = 2
"""How often its machine may answer that it does not run. It comes back as another cluster, at whose answer Ray's C++
aborts the process: there is no waiting for that."""
GRACE_S = 5.0
"""How long the main thread may take to notice."""
CLOSING_S = 20.0
"""How long it may take to close what it has open."""

_SIGNAL = signal.SIGUSR2


class ClusterLostError(PsclapError):
    """The Ray cluster is gone; the same command may succeed once there is one."""

    def __init__(self, address: str):
        super().__init__(address)
        self.address = address

    def __str__(self) -> str:
        return (
            f"the Ray cluster at {self.address} is lost: its head was ended or restarted, or no network leads there "
            "any more. Nothing that was done is lost: once a cluster runs, the same command goes on from here"
        )


class Watch:
    """Looks for the head of a cluster, which this process is connected to, for the length of a `with` block.

    When it is lost, ClusterLostError is raised in the main thread, whatever that waits for. Where Ray's C++ does not
    give the main thread back, the process ends here, with the same sentence, and not a little later by Ray's hand
    without one.
    """

    def __init__(self, address: str):
        self._address, self._session = address, _session(address)
        self._main = threading.main_thread().ident
        self._heard = threading.Event()

    def __enter__(self) -> Watch:
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:  # elsewhere no signal can be received, and none is sent
            self._before = signal.signal(_SIGNAL, self._interrupt)
            self._watching = in_background(self._work, "watch over the cluster")
            self._watching.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._in_main:
            self._watching.__exit__(*error)  # no signal comes after this
            signal.signal(_SIGNAL, self._before)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Makes what a `with` block raises ClusterLostError where that is the reason, under whatever name."""
        try:
            yield
        except ClusterLostError:
            raise
        except Exception as error:  # Ray has many for this, and code that uses it makes others of them
            if _doubt(self._address) or self._is_another():
                raise ClusterLostError(self._address) from error
            raise

    def _interrupt(self, number: int, frame: Any) -> None:
        self._heard.set()
        raise ClusterLostError(self._address)

    def _work(self, done: threading.Event) -> None:
        doubt = 0.0
        while doubt < 1:
            if done.wait(PERIOD_S):
                return
            now = _doubt(self._address)
            is_back = doubt and not now
            doubt = float(self._is_another()) if is_back else doubt + now
        self._end_main(done)

    def _is_another(self) -> bool:
        """Whether another cluster answers; one that is slow to say who it is may be the same."""
        found = _session(self._address)
        return None not in (found, self._session) and found != self._session

    def _end_main(self, done: threading.Event) -> None:
        assert self._main is not None
        signal.pthread_kill(self._main, _SIGNAL)
        if not self._heard.wait(GRACE_S) or not done.wait(CLOSING_S):
            log.failed(ClusterLostError(self._address))
            os._exit(1)


def _doubt(address: str) -> float:
    """How much one look at a head says that it is lost: nothing where it answers, 1 were certainty."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PERIOD_S).close()
    except ConnectionRefusedError:
        return 1 / REFUSALS
    except OSError:
        return 2 * PERIOD_S / PATIENCE_S  # it took that long to look
    return 0.0


def _session(address: str) -> str | None:
    """What names the cluster that answers; None where none does."""
    from ray import exceptions
    from ray._private.ray_constants import KV_NAMESPACE_SESSION
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        return GcsClient(address=address).internal_kv_get(b"session_name", KV_NAMESPACE_SESSION, timeout=2 * PERIOD_S)
    except (exceptions.RayError, OSError, RuntimeError):
        return None
