"""The report of a run as one HTML page to look at and listen to."""
