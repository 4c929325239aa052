"""What is going on: runs, models, data, decisions and drift, in one screen."""
