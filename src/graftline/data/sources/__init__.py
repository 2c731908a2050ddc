"""List images and their labels: from a folder, a table, an archive, or the sample."""
