"""Image files, preprocessing and drawing."""
