"""Static pages that explain pictures in the visitor's browser."""
