"""Batch scoring: what comes in, cut into blocks; a block through a model; tables of what comes out."""
