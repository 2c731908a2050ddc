"""The search for the best model within a time: candidates, their quick scores, and how the time is spent."""
