"""Sets of images that anyone gets from packages, as folders: `python -m benchmarks.accuracy.sets NAME DIRECTORY`.

A set is written as ``DIRECTORY/NAME/SPLIT/CLASS/IMAGE.png`` with the splits train, validation and test, so that every
library reads the same images. No image occurs twice, in one split or across two: nothing is left to how a library
treats copies.

By their scores, some of them have decided what graftline does by default; the others only confirm it:

- to choose: ``fashion1k``, ``letters`` and ``textures``;
- to confirm: ``elpv``, ``fashion10k``, ``fashion60k``, ``digits`` and ``textures9``.
"""
