"""Imports run one way: stages -> pipelines -> psclap, and inside psclap only downwards."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGES = ("psclap", "pipelines", "stages")
FLOORS = (
    {
        *("errors", "files", "parallel", "strict", "schema", "tags", "markdown", "storage", "distributed"),
        *("config", "data_config", "loop_config", "tts_config"),
        *("audio", "batching", "decoding", "containers", "loudness", "acoustics", "startup", "licences", "log"),
        "console",
    },
    {"models", "model_config", "registration", "remote_code", "losses", "metrics", "pairs", "ranking"},
    {"text", "corpora", "shards", "soundness", "sampling", "loader"},
    {
        *("training", "evaluation", "embedding", "serving", "export", "scoring", "search", "tts", "model_card"),
        *("report", "drift", "status", "retraining"),
    },
    {
        *("__init__", "cli", "cli_checkpoint", "cli_common", "cli_data", "cli_evaluate", "cli_export", "cli_rank"),
        "cli_say",
        *("cli_search", "cli_drift", "cli_status"),
    },
)
HEAVY = {"ray", "mlflow", "dvc"}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Every module that a file imports anywhere, in functions too; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def first_party_files(path: Path) -> Iterator[Path]:
    for name in imported_names(path):
        target = ROOT / name.replace(".", "/")
        for candidate in (target.with_suffix(".py"), target / "__init__.py"):
            if name.split(".")[0] in PACKAGES and candidate.is_file():
                yield candidate


def floor(path: Path) -> int:
    room = path.relative_to(ROOT / "psclap").parts[0].removesuffix(".py")
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for target in first_party_files(path):
        target_package = target.relative_to(ROOT).parts[0]
        assert PACKAGES.index(target_package) <= PACKAGES.index(package), f"{path} imports {target}"
        if package == target_package == "psclap" and target.name != "__init__.py":
            assert floor(target) <= floor(path), f"{path} imports the higher {target}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_mlflow_and_dvc_have_one_home(path: Path) -> None:
    if path.is_relative_to(ROOT / "pipelines"):
        return
    assert not {name.split(".")[0] for name in imported_names(path)} & HEAVY


def test_importing_psclap_loads_nothing_heavy() -> None:
    code = "import sys, psclap; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("ray", "mlflow", "dvc", "torch", "transformers", "numpy"):
        assert f"'{name}'" not in loaded


def test_lazy_names_resolve() -> None:
    import psclap

    for name in psclap.__all__:
        assert getattr(psclap, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        psclap.no_such_name  # noqa: B018


def closure(path: Path) -> set[Path]:
    seen: set[Path] = set()
    queue = [path]
    while queue:
        file = queue.pop()
        if file not in seen:
            seen.add(file)
            queue += first_party_files(file)
    return seen


STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_every_module_that_a_stage_uses(stage: str) -> None:
    script = ROOT / "stages" / f"{stage}.py"
    named = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.split("/")[0] in PACKAGES]
    for path in named:
        assert path.exists(), f"{stage}: {path} does not exist"
    used = {file for file in closure(script) if file.name != "__init__.py" or file.parent.name not in PACKAGES}
    missing = sorted(
        str(file.relative_to(ROOT)) for file in used if not any(file == path or path in file.parents for path in named)
    )
    assert not missing, f"dvc.yaml: stage {stage} lacks {missing}"
    unused = sorted(
        str(path.relative_to(ROOT)) for path in named if not any(file == path or path in file.parents for file in used)
    )
    assert not unused, f"dvc.yaml: stage {stage} names {unused}, which it does not use"
