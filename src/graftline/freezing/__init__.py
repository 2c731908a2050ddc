"""Which layers are frozen, why, and that they are."""
