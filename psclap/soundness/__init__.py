"""Is a data set sound, and what is it made of: checks, their report, the data card."""
