"""Read images from anywhere, check and split them, and keep them as a dataset version."""
