"""WebDataset tars of FLAC + JSON, with a Parquet index of one row per clip and a summary of the whole."""
