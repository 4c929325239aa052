"""docs/operations.md is true: every test that its table names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", (ROOT / "docs/operations.md").read_text())


def test_the_table_names_tests() -> None:
    assert len([name for _, name in NAMED if name]) > 30


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED)))
def test_a_named_test_is_there(file: str, test: str) -> None:
    assert f"def {test or 'test_'}" in (ROOT / "tests" / file).read_text()
