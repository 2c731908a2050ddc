"""The stages: one short file each, that reads like the story of the stage."""
