"""Brings the code of this checkout, such as an image's, into a project's folder, and leaves what was made there.

    python -m pipelines.deploy.project /project

An image holds the code, a volume the project: `dvc.lock`, DVC's cache, `runs/`, the decision records. Each night begins
with this, so that the code in the project is the image's, whatever it was before. It can be run again at any moment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psclap
from psclap.errors import PsclapError
from psclap.files import atomic_file

STATE = ("dvc.lock", "metrics", "summary.md")
"""What runs write though git tracks it, as are the .dvc files of `dvc import-url`: a new project begins with the
checkout's, then they are the project's own."""

_LEFT_OUT = ("__pycache__", "*.egg-info", ".git", ".venv")


def bring_code(project: Path, checkout: Path | None = None) -> None:
    """Makes the code in `project` that of `checkout`, by default the one that this module is of.

    Python packages are replaced as a whole, so that no module stays which the checkout no longer has; other files are
    copied over; STATE and .dvc files only where they are absent. Raises PsclapError for what is no checkout, and for
    the checkout itself.
    """
    checkout = (checkout or Path(psclap.__file__).parent.parent).resolve()
    if not (checkout / "dvc.yaml").is_file():
        raise PsclapError(f"{checkout} is no checkout of psclap: it has no dvc.yaml; install with `pip install -e`")
    if project.resolve() == checkout:
        raise PsclapError(f"{project} is the checkout itself; name the folder of a project")
    project.mkdir(parents=True, exist_ok=True)
    for source in _entries(checkout):
        target = project / source.name
        if source.name in STATE and target.exists():
            continue
        if (source / "__init__.py").is_file():
            shutil.rmtree(target, ignore_errors=True)
        _copy(source, target)
    _without_git(project)


def _entries(checkout: Path) -> Iterator[Path]:
    for source in sorted(checkout.iterdir()):
        if not any(source.match(pattern) for pattern in _LEFT_OUT):
            yield source


def _copy(source: Path, target: Path) -> None:
    """Copies a file whole, or a folder with what is in it over what is there."""
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for entry in _entries(source):
            _copy(entry, target / entry.name)
    elif source.suffix != ".dvc" or not target.exists():
        with atomic_file(target) as partial:
            shutil.copy2(source, partial)


def _without_git(project: Path) -> None:
    """Tells DVC that the project is no git repository, where it is none."""
    local = project / ".dvc" / "config.local"
    if (project / ".git").exists() or (local.exists() and "no_scm" in local.read_text()):
        return
    command = [sys.executable, "-m", "dvc", "config", "--quiet", "--local", "core.no_scm", "true"]
    subprocess.run(command, cwd=project, check=True)


def main() -> None:
    """Runs the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipelines.deploy.project FOLDER")
    try:
        bring_code(Path(sys.argv[1]))
    except PsclapError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
