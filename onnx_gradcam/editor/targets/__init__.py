"""What is explained: the image input, the score, and the layer."""
