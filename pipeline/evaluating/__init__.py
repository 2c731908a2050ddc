"""What becomes of a test: scores and slices in files and MLflow, and a model beside others on the same images."""
