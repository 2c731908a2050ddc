"""The parts of the stage ``retrain``; none of them imports torch or Lightning before there is something to train."""
