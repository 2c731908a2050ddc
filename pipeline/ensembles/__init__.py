"""The parts of ``ensemble``, and of ``evaluate`` with several members: their trainings, soups, crops, the result."""
