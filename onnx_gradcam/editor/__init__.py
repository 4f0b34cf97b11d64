"""The graph editor: what is explained, and the nodes that explain it."""
