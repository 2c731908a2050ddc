"""What a training leaves: in its bundle, in MLflow and for people; and how its processes learn of each other."""
