"""A map of clips: their embeddings in two dimensions, and what each carries.

t-SNE (van der Maaten & Hinton, 2008) by scikit-learn, started from the two principal components.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from psclap.report.clips import clip_uri
from psclap.shards.index import ShardIndex
from psclap.tags import ATTRIBUTES, tag_of

_MAX_CLIPS = 2000
_MIN_FOR_TSNE = 10
_MIN_SPREAD = 1e-4
_PERPLEXITY = 30.0
_SEED = 0
_PLAYED_S = 4.0
_MAX_SOUND_CHARACTERS = 2_500_000


def clip_map(index: ShardIndex, rows: np.ndarray, speech_ND: np.ndarray, attributes: Iterable[str]) -> dict[str, Any]:
    """What the page draws the map from, for a sample of at most 2,000 of the clips `rows`.

    `points` are [x, y] from 0 on, the larger of both to 1000. `attributes`, those given of which two tags occur, say by
    number which of its `tags` each clip carries, -1 for none or several. `sounds` are data: URIs by the number of the
    point, for as many clips as the page has room for.
    """
    sample = _sample(len(rows))
    table = index.take(rows[sample], ["key", "intrinsic_tags", "situational_tags"]).to_pylist()
    tags = [clip["intrinsic_tags"] + clip["situational_tags"] for clip in table]
    points = _scaled(_flat(speech_ND[sample]))
    return {
        "points": points.tolist(),
        "height": int(points[:, 1].max()),
        "keys": [clip["key"] for clip in table],
        "tags": [", ".join(of_clip) for of_clip in tags],
        "attributes": _carried(tags, attributes),
        "sounds": _sounds(index, rows[sample]),
    }


def _sample(num_clips: int) -> np.ndarray:
    """The places of the clips on the map, ascending."""
    return np.sort(np.random.default_rng(_SEED).permutation(num_clips)[:_MAX_CLIPS])


def _flat(speech_ND: np.ndarray) -> np.ndarray:
    """(N, 2). Embeddings are L2-normalised, so that near in Euclid's distance is near by cosine.

    Few clips, and those of a model that hears them all alike, are laid out by their principal components alone:
    scikit-learn's t-SNE needs more clips than its perplexity, and ends the process where they do not differ.
    """
    from sklearn.manifold import TSNE  # a second to import, and only reports need it
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums in one order: the same map for any number of threads
        start_N2 = _principal(speech_ND)
        spread = float(start_N2[:, 0].std())
        if len(speech_ND) < _MIN_FOR_TSNE or spread < _MIN_SPREAD:
            return start_N2
        start_N2 = (start_N2 * 1e-4 / spread).astype(np.float32)  # as scikit-learn's own, `init="pca"`
        perplexity = min(_PERPLEXITY, (len(speech_ND) - 1) / 3)
        return TSNE(init=start_N2, perplexity=perplexity, random_state=_SEED, n_jobs=1).fit_transform(speech_ND)


def _principal(embedding_ND: np.ndarray) -> np.ndarray:
    """(N, 2) the first two principal components; those that there are not are 0. The signs are fixed."""
    centred = embedding_ND - embedding_ND.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    return np.pad(centred @ axes.T, ((0, 0), (0, 2 - len(axes))))


def _scaled(flat_N2: np.ndarray) -> np.ndarray:
    """The map in whole numbers, turned so that its longer side lies across, from 0 to 1000."""
    turned = _principal(flat_N2)
    size = turned - turned.min(0)
    return np.round(1000 * size / (size.max() or 1.0)).astype(int)


def _carried(tags: Sequence[Sequence[str]], attributes: Iterable[str]) -> list[dict[str, Any]]:
    found = []
    for name in attributes:
        carried = [tag_of(name, of_clip) for of_clip in tags]
        occurring = [tag for tag in ATTRIBUTES[name] if tag in carried]
        if len(occurring) >= 2:
            numbers = [occurring.index(tag) if tag else -1 for tag in carried]
            found.append({"name": name, "tags": occurring, "numbers": numbers})
    return found


def _sounds(index: ShardIndex, rows: np.ndarray) -> dict[int, str]:
    """The first seconds of clips drawn by the seed, until the page's room for them is full."""
    sounds: dict[int, str] = {}
    room = _MAX_SOUND_CHARACTERS
    for place in np.random.default_rng(_SEED).permutation(len(rows)).tolist():
        uri = clip_uri(index, int(rows[place]), _PLAYED_S)
        if (room := room - len(uri)) < 0:
            break
        sounds[place] = uri
    return dict(sorted(sounds.items()))
