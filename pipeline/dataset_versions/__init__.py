"""Dataset versions: what one grows from, which one a model was trained on, its images as a head sees them."""
