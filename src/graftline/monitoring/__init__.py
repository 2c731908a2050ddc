"""Watching a model in production: how what it sees drifts away from what it was trained on."""
