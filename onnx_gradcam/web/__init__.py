"""Static pages that explain images in the visitor's browser."""
