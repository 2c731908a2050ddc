"""Images from anywhere, checked and split, as a dataset version."""
