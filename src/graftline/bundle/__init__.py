"""A trained network as files, and what runs them. Importing this package imports nothing heavy."""
