"""Does newly scored, or newly labelled, data still sound like what a model was trained on?"""

from psclap.drift.compare import compare_labels, compare_scores
from psclap.drift.result import Drift

__all__ = ["Drift", "compare_labels", "compare_scores"]
