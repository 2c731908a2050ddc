"""Runs, as stages know them: where one lies, which are meant, what they are made of, have logged, found or left out."""
