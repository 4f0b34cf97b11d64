"""Running explained models: sessions, pictures, explanations."""
