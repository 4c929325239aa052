"""`psclap status`: runs, models, data, decisions and drift in one screen."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from psclap.cli_common import AsJson
from psclap.errors import PsclapError

status_app = typer.Typer()

LATER = 75


@status_app.command()
def status(
    runs: Annotated[int, typer.Option(min=1, max=50, help="How many of the last runs.")] = 5,
    dvc: Annotated[
        bool, typer.Option("--dvc", help="Also ask DVC what `dvc repro` would run; it takes longer.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for the tracking store.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The last runs, the models in use, the data, and what was decided; status 75 where the store does not answer."""
    from psclap.status.facts import moment
    from psclap.status.local import local_facts
    from psclap.status.page import lines
    from psclap.status.tracker import tracked_facts

    local = local_facts(dvc, decisions=3)
    tracked, failure = None, None
    try:
        tracked = tracked_facts(runs, timeout_s)
    except PsclapError as error:
        failure = str(error)
    now = moment(time.time())
    if as_json:
        told = {"at": now, "failure": failure, "tracked": asdict(tracked) if tracked else None, "local": asdict(local)}
        typer.echo(json.dumps(told, indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(lines(local, tracked, failure, now)))
    if failure:
        raise typer.Exit(LATER)
