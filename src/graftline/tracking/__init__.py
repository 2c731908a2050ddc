"""The MLflow run: what a stage logs, on disk first, and sent when MLflow is there."""
