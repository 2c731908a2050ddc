"""Track runs in MLflow: what a stage logs goes to disk first and is sent when MLflow is there; models are read back."""
