"""Pretrained networks: which there are, where their weights come from, and how they get a new head."""
