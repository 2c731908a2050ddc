"""Serve a predictor: as an MLflow model."""
