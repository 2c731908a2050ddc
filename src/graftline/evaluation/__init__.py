"""From probabilities to scores with intervals, figures, a table of predictions and a report."""
