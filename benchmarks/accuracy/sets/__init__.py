"""Sets of images that anyone gets from packages, as folders: `python -m benchmarks.accuracy.sets NAME DIRECTORY`.

A set is written as ``DIRECTORY/NAME/SPLIT/CLASS/IMAGE.png`` with the splits train, validation and test, so that every
library reads the same images. No image occurs twice, in one split or across two: nothing is left to how a library
treats copies.

The table in docs/accuracy.md says which defaults of graftline the scores of each set have decided.
"""
