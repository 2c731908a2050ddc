"""What `make doctor` looks at: each check returns findings, and raises nothing that a person would have to read."""
