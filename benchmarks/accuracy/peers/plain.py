"""A plain loop: AdamW at 1e-3, batches of 32, cosine, no augmentation, everything trained; it stops at the second."""

import itertools
import math

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.accuracy.peers.task import CORES, Task, predict


class Images(Dataset):
    """Images as the network wants them, with the index of their class."""

    def __init__(self, files, labels, transform):
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.transform(Image.open(self.files[index]).convert("RGB")), int(self.labels[index])


def main():
    """Train and test."""
    task = Task.from_command_line()
    network = task.network().to(memory_format=torch.channels_last)
    transform = create_transform(**resolve_model_data_config(network))
    train, test = (Images(files, task.labels(files), transform) for files in map(task.files, ("train", "test")))
    loader = DataLoader(train, batch_size=32, shuffle=True, num_workers=CORES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    begin, left, steps = task.elapsed, max(task.left, 1.0), 0  # a second where the imports took them all
    for images, labels in itertools.chain.from_iterable(itertools.repeat(loader)):
        share = (task.elapsed - begin) / left
        if share >= 1:
            break
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * share)) / 2
        loss = F.cross_entropy(network(images.to(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    trained = task.elapsed
    predicted = predict(network, (images for images, _ in DataLoader(test, batch_size=50, num_workers=CORES)))
    task.finish(trained, predicted, epochs=round(steps * 32 / len(train), 2))


if __name__ == "__main__":
    main()
