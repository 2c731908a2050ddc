"""fastai's `fine_tune`, as its quick start has it: images of 224 px, one epoch of the head, then all of it."""

import time

from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, Resize, parent_label, set_seed, vision_learner

from benchmarks.accuracy.peers.task import ARCHITECTURE, Task, predict

_TRIED = 128  # images that are timed


def make_learner(task, train, validation):
    """Return a learner of these images, with the weights and a new head."""
    validation_names = {str(file) for file in validation}
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=task.class_names)),
        get_items=lambda _: [*train, *validation],
        splitter=lambda files: (
            [index for index, file in enumerate(files) if str(file) not in validation_names],
            [index for index, file in enumerate(files) if str(file) in validation_names],
        ),
        get_y=parent_label,
        item_tfms=Resize(224),
    )
    return vision_learner(block.dataloaders(task.folder), ARCHITECTURE, pretrained_cfg_overlay=task.overlay)


def time_epochs(task):
    """Return the seconds that an image takes in an epoch of the head, and in one of everything."""
    learner = make_learner(task, task.some(_TRIED), task.files("validation")[:16])
    seconds = []
    for change in (learner.freeze, learner.unfreeze):
        change()
        start = time.monotonic()
        with learner.no_bar():
            learner.fit_one_cycle(1, 1e-4)
        seconds.append((time.monotonic() - start) / (_TRIED + 8))  # an image of the validation takes half
    return seconds


def main():
    """Train and test."""
    task = Task.from_command_line()
    set_seed(task.seed)
    of_head, of_all = time_epochs(task)
    validation = task.files("validation")
    images = len(task.files("train")) + len(validation) / 2
    epochs, count = int((task.left - images * of_head) / (images * of_all)), len(task.files("train"))
    if epochs < 1:  # an epoch of each, of as many images as there is time for
        fits = task.left / (of_head + of_all)
        epochs, count, validation = 1, int(fits * count / images), validation[: int(len(validation) * fits / images)]
        count = min(max(count, _TRIED), len(task.files("train")))
    learner = make_learner(task, task.some(count), validation or task.files("validation")[:16])
    with learner.no_bar():
        learner.fine_tune(epochs)
    trained = task.elapsed
    batches = (batch[0] for batch in learner.dls.test_dl(task.files("test")))
    predicted = predict(learner.model, batches)
    task.finish(trained, predicted, epochs=epochs, images=count)


if __name__ == "__main__":
    main()
