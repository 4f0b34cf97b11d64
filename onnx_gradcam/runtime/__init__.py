"""Running explained models: sessions, images, explanations."""
