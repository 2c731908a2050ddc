"""The parts of the stage ``search``: scores of candidates, the training of the winner, the result."""
