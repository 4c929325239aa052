"""When a newly trained model may replace the one in use: the written policy, the decision, and its record."""
