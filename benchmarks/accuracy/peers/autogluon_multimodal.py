"""AutoGluon MultiModal with the same network, and otherwise its own settings, under its own time limit."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import pandas as pd
from autogluon.multimodal import MultiModalPredictor

from benchmarks.accuracy.peers.task import ARCHITECTURE, Task


def main():
    """Train and test."""
    task = Task.from_command_line()
    train, validation, test = (make_table(task, split) for split in ("train", "validation", "test"))
    with tempfile.TemporaryDirectory() as folder:
        predictor = MultiModalPredictor(label="label", path=folder, verbosity=1)
        predictor.fit(
            train,
            tuning_data=validation,
            time_limit=max(task.left, 1.0),  # one where the imports took them all
            seed=task.seed,
            hyperparameters={
                "model.names": ["timm_image"],
                "model.timm_image.checkpoint_name": str(task.weights / ARCHITECTURE),
                "env.num_workers": 0,  # its worker processes fail beside torch 2.14
                "env.num_gpus": 0,
            },
        )
        trained = task.elapsed
        names = predictor.predict(test.drop(columns="label"), as_pandas=False)
    predicted = pd.Index(task.class_names).get_indexer([str(name) for name in names])
    task.finish(trained, predicted)


def make_table(task, split):
    """Return a row per image; text as objects, as AutoGluon does not know pandas' own text yet."""
    files = task.files(split)
    columns = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


if __name__ == "__main__":
    main()
