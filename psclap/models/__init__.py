"""The dual encoder and its parts.

The model is always imported whole, and before any part of it: AutoModel asks for it as soon as AutoModel itself is
there (`psclap.registration`), which may be in the middle of importing a part.
"""

from psclap.models import dual_encoder as dual_encoder
