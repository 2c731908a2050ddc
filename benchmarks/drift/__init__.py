"""Whether drift is seen where there is some, and nothing where there is none: the tables of docs/monitoring.md."""
