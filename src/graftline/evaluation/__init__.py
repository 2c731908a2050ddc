"""From a predictor to predictions, and from predictions to scores with intervals. Nothing is drawn here."""
