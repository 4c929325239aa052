"""Finding clips by description, or by a clip like them, in what the scoring job wrote: exactly or approximately."""

from psclap.search.corpus import EmbeddedCorpus
from psclap.search.index import build_index

__all__ = ["EmbeddedCorpus", "build_index"]
