"""Explained models on inference servers: MLServer live; Triton and KServe as files that are written for them."""
