"""The parts of ``promote``, ``history`` and ``rollback``: which model is meant, what the gate sees, what is logged."""
