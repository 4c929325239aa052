"""Joining a Ray cluster, and losing it."""

import pytest

from pipelines.cluster import ray_session
from psclap.errors import PsclapError

pytestmark = pytest.mark.slow


def test_a_client_from_outside_the_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(PsclapError, match=r"RAY_ADDRESS ray://head:10001: .* use `ray job submit`"), ray_session():
        pass
