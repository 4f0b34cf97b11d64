"""Judging explanations and explained models."""
