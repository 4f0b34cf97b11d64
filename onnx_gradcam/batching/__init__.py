"""Explanations of millions of images, in shards that are written whole or not at all."""
