"""Detectors: what the tables of boxes hold, and one normal form for all of them."""
