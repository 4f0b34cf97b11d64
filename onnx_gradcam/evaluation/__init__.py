"""Comparing models, scoring methods, inspecting models, verifying gradients."""
