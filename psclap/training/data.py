"""What a dual encoder's training reads: the stream of global batches, and the tags that its clips carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psclap.config import TrainConfig
from psclap.errors import PsclapError
from psclap.loader import Stream
from psclap.sampling import Balance, Examples, caption_groups, class_balance
from psclap.shards.index import ShardIndex, View
from psclap.tags import VOCABULARY


def build_stream(config: TrainConfig, index: ShardIndex, seed: int) -> Stream:
    """The global batches of a variant; only what its options need is read from the index.

    Raises PsclapError where a source has no clip, and for class balance without tags.
    """
    options = config.sampling
    views = [
        index.view("train", caption_set, corpus)
        for caption_set in config.caption_sets
        for corpus in options.mixing_corpora or (None,)
    ]
    rows = np.concatenate([view.rows for view in views])
    max_crop = round(config.max_crop_s * index.sample_rate_hz)
    examples = Examples(
        source_sizes=[len(view.rows) for view in views],
        shard=index.shard_number[rows] if options.shuffle_block_shards else None,
        num_samples=np.minimum(index.num_samples[rows], max_crop)
        if options.bucket_batches or options.max_batch_s
        else None,
        caption_group=_caption_groups(index, views) if options.distinct_captions else None,
        balance=_balance(config, index, rows) if options.class_balance != "none" else None,
        max_batch_samples=round(options.max_batch_s * index.sample_rate_hz) if options.max_batch_s else None,
    )
    return Stream(index, views, examples, config.global_batch_size, seed, options)


def carried_tags(index: ShardIndex, stream: Stream) -> list[str]:
    """The intrinsic tags of the vocabulary that the training's clips carry, in its order."""
    tags = index.column("intrinsic_tags").take(stream.rows)
    carried = set(pc.unique(tags.flatten()).to_pylist())
    return [tag for tag in VOCABULARY if tag in carried]


def _balance(config: TrainConfig, index: ShardIndex, rows: np.ndarray) -> Balance:
    options = config.sampling
    assert options.class_balance != "none"
    return class_balance(
        index.column("intrinsic_tags").take(rows),
        options.class_balance,
        options.rare_below_share,
        options.min_rare_samples,
        options.rare_block_size,
    )


def _caption_groups(index: ShardIndex, views: Sequence[View]) -> np.ndarray:
    return caption_groups(pa.concat_arrays([index.captions(view) for view in views]))


def check_tags(config: TrainConfig, tags: list[str]) -> None:
    """Raises PsclapError for a tag loss over clips without tags."""
    if config.tag_loss_weight and not tags:
        raise PsclapError("train.*.tag_loss_weight is positive, and no training clip has an intrinsic tag; set it to 0")
