"""A folder of packages that holds some requirements and what they require, linked from this environment.

What `pip install -r` would put into an empty environment, without the minutes that it takes.
"""

import importlib.metadata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(requirements: Iterable[str]) -> set[str]:
    """The names of all distributions that the requirements need here; each must be installed in a fitting version."""
    found: dict[str, set[str]] = {}
    queue = [Requirement(line) for line in requirements]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        distribution = importlib.metadata.distribution(name)
        public = distribution.version.split("+")[0]
        assert requirement.specifier.contains(public, prereleases=True), f"{requirement}: {distribution.version}"
        if name in found and requirement.extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | requirement.extras
        for line in distribution.requires or []:
            needed = Requirement(line)
            extras = ["", *found[name]]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(needed)
    return set(found)


def link_packages(names: set[str], folder: Path) -> None:
    """Links what the distributions installed, and no file of any other."""
    owners: dict[str, set[str]] = defaultdict(set)
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.name)
        for parts in (file.parts for file in distribution.files or [] if ".." not in file.parts):
            for length in range(1, len(parts) + 1 if "__pycache__" not in parts else 1):
                owners["/".join(parts[:length])].add(name)
    root = Path(str(importlib.metadata.distribution("mlflow").locate_file("")))
    linked: set[str] = set()
    for path in sorted(owners, key=lambda path: path.count("/")):
        if path.rpartition("/")[0] in linked or not owners[path] & names:
            linked |= {path} if path.rpartition("/")[0] in linked else set()
        elif owners[path] <= names:
            (folder / path).symlink_to(root / path)
            linked.add(path)
        else:
            (folder / path).mkdir()
