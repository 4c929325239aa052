"""WebDataset tars of FLAC + JSON, with a Parquet index of one row per clip and a summary of the whole."""

from psclap.errors import PsclapError

INDEX_NAME = "index.parquet"
SUMMARY_NAME = "summary.json"
REJECTS_NAME = "rejects.jsonl"

REBUILD = "rebuild it with `dvc repro --force shard` (a voice's with `tts_shard@VOICE`)"
"""The way out where a data set cannot be used."""


def check_shard_name(name: str, location: str) -> str:
    """Returns the name. Raises PsclapError for one that leads out of the folder or URL of its set.

    Shards lie right in it. An index or a summary that came from elsewhere is not to be trusted with more.
    """
    if not isinstance(name, str) or "/" in name:
        raise PsclapError(
            f"{location}: {name!r} names no file right in it, as every shard does; its index or summary is damaged or "
            f"forged: {REBUILD}"
        )
    return name
