"""A script: several processes that promote versions of one model, all at once; each tells whom it replaced by whom.

It is given the URI of a tracking store, the model, and for each process the versions that it promotes in turn.
"""

import json
import os
import sys
import time

from pipelines.lease import leased
from pipelines.promotion import promote, standing
from pipelines.tracking import TrackingStore


def work(uri: str, model: str, versions: list[str], start_at_s: float) -> None:
    store = TrackingStore(uri, None)
    time.sleep(max(0.0, start_at_s - time.time()))
    for version in versions:
        with leased(store, "race-lock", wait_s=300) as lease:
            champion = standing(lease.client, model).champion
            promote(lease, model, version, champion)
        sys.stdout.write(json.dumps([champion, version]) + "\n")
        sys.stdout.flush()


def main(uri: str, model: str, of_each: list[list[str]]) -> None:
    start_at_s = time.time() + 1
    children = []
    for versions in of_each:
        child = os.fork()
        if child == 0:
            work(uri, model, versions, start_at_s)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
