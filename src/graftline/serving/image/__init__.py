"""What a folder of `make export format=docker` holds beside the model and the code that it needs."""
