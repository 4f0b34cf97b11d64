"""Explanations of millions of pictures, in shards that are written whole or not at all."""
