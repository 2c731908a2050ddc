"""The parts of the stage ``ensemble``: members, their trainings, their soups, members x crops, the result."""
