"""Best-of-N: rank candidates by a reward, and evaluate a reward by a judge that is not it."""
