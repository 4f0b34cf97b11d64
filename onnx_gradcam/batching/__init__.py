"""Explain millions of images in shards, each of which is written atomically."""
