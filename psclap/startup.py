"""How a command starts sooner."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """For imports of torch and transformers: no garbage is looked for among what they make, which is all kept.

    The search takes a tenth of their time or more. Afterwards it goes on as before, but passes over all this.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def collect_seldom_in_programs() -> None:
    """For the __init__ of a package whose modules are programs: in these, garbage is looked for seldom.

    A fifth of the time that the imports of a training take is spent on it. A program is what was started by
    `python -m PACKAGE.MODULE`, and a worker of Ray's; a process that imports the package for its own ends is left as
    it is.
    """
    if Path(sys.argv[0]).name in _PROGRAMS:
        gc.set_threshold(*_SELDOM)


_PROGRAMS = ("-m", "default_worker.py")
"""What Python has in sys.argv[0] while it imports the package of the module to run; Ray's."""
_SELDOM = (50_000, 20, 100)


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, for as long as it lives.

    glibc gives large blocks back to the system and gets them anew, page by page and zeroed. A process that computes
    batches of the same sizes spends 7 % of its time on that. Elsewhere than on glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _KEEP.items():
            mallopt(option, value)


_KEEP = {-4: 0, -1: 2**31 - 1, -2: 1 << 26}  # M_MMAP_MAX: none by mmap; M_TRIM_THRESHOLD; M_TOP_PAD
