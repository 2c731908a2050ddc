"""What tests of this room look at."""

from squares import cat_classifier, classifier, version

__all__ = ["cat_classifier", "classifier", "version"]
