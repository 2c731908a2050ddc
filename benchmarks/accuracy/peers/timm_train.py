"""timm's train.py: its parts and its defaults, at batches of 32, for as many epochs as there is time for.

The script itself is not in timm's package. Its defaults: SGD with momentum 0.9, a rate of 0.1 per 256 images of a
batch, cosine after a warm-up (five epochs of 300; here a tenth of the steps), weight decay 2e-5, crops of 8 to 100 %,
mirroring, color jitter 0.4, label smoothing 0.1; the checkpoint that is best on the validation split is kept.
"""

import copy
import statistics
import time

import torch
from timm.data import ImageDataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from benchmarks.accuracy.peers.task import CORES, Task, predict

_BATCH = 32


def make_loader(task, config, files, is_training):
    """Return train.py's loader of these images."""
    dataset = ImageDataset(str(task.folder))
    dataset.reader.samples = list(zip(map(str, files), task.labels(files).tolist(), strict=True))
    augmentation = {"color_jitter": 0.4, "hflip": 0.5, "interpolation": "random"} if is_training else {}
    sizes = {name: config[name] for name in ("input_size", "mean", "std", "crop_pct")}
    augmentation = {"interpolation": config["interpolation"]} | augmentation
    return create_loader(
        dataset,
        batch_size=_BATCH,
        is_training=is_training,
        use_prefetcher=False,
        num_workers=CORES,
        device=torch.device("cpu"),
        **sizes,
        **augmentation,
    )


def time_image(network, loader):
    """Return the seconds that an image takes in training, by some steps of a copy of the network."""
    network, seconds = copy.deepcopy(network).train(), []
    start = time.monotonic()
    for step, (images, labels) in enumerate(loader):
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        seconds.append(time.monotonic() - start)
        start = time.monotonic()
        if step == 4:
            break
    return statistics.median(seconds[1:] or seconds) / len(images)


@torch.inference_mode()
def validate(network, loader):
    """Return the accuracy."""
    network.eval()
    right = [(network(images).argmax(1) == labels).float() for images, labels in loader]
    return torch.cat(right).mean().item()


def main():
    """Train and test."""
    task = Task.from_command_line()
    network = task.network()
    config = resolve_data_config({}, model=network)
    validation = task.files("validation")
    per_image = time_image(network, make_loader(task, config, task.files("train"), True))
    share = len(validation) / len(task.files("train"))  # a validation image takes a third of a training image
    epochs, count = task.fit_into(task.left, per_image * (1 + share / 3))
    loader = make_loader(task, config, task.some(count), True)
    tested = make_loader(task, config, validation[:: max(1, len(task.files("train")) // count)], False)

    steps = len(loader) * epochs
    optimizer = create_optimizer_v2(network, opt="sgd", lr=0.1 * _BATCH / 256, momentum=0.9, weight_decay=2e-5)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=epochs / 10,
        warmup_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    loss_function, best, kept, step = LabelSmoothingCrossEntropy(0.1), -1.0, None, 0
    for epoch in range(epochs):
        network.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss_function(network(images), labels).backward()
            optimizer.step()
            step += 1
            scheduler.step_update(min(step, steps))
        score = validate(network, tested)
        if score >= best:
            best, kept = score, copy.deepcopy(network.state_dict())
        scheduler.step(epoch + 1)
    network.load_state_dict(kept)
    trained = task.elapsed
    batches = (images for images, _ in make_loader(task, config, task.files("test"), False))
    task.finish(trained, predict(network, batches), epochs=epochs, images=count)


if __name__ == "__main__":
    main()
