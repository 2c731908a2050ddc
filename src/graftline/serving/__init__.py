"""The MLflow model that wraps a predictor."""
