"""WebDataset tars of FLAC + JSON, with a Parquet index of one row per clip and a summary of the whole."""

INDEX_NAME = "index.parquet"
SUMMARY_NAME = "summary.json"
REJECTS_NAME = "rejects.jsonl"
