"""The peers: each is a script that trains on a set for so many seconds, as its own documentation has it.

They run in an environment of their own (requirements.txt), on the same images, the same split, the same weights and the
same cores. Their seconds end when the model is trained; what the test takes after that is not theirs.
"""
