"""The parts of ``promote``, ``history`` and ``rollback``: which model they are about, and what the gate looks at."""
