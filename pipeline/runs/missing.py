"""What a run did not compute, and the commands that do."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import TRACKED_AT, RunDirectory
from graftline.pipeline.runs.stage_summaries import AUDIT, EXPLAIN, LEARNING_CURVE
from graftline.report.content import Missing, StageSummary


@dataclass(frozen=True)
class Known:
    """What is known of a model that was trained or put together.

    Attributes:
        is_tested: whether there were test images, without which nothing can be said of them.
        has_slices: whether slices were scored.
        is_compared: whether the model was compared with another.
        chooses: whether more was chosen than the most probable class.
        summaries: what other stages have found already.
    """

    is_tested: bool
    has_slices: bool
    is_compared: bool
    chooses: bool
    summaries: Sequence[StageSummary]


def missing_of_training(files: RunDirectory, run_id: str, known: Known) -> list[Missing]:
    """Return what a training leaves to other commands.

    Args:
        files: of the training.
        run_id: of its run.
        known: of its model.
    """
    word, bundle = program(), os.path.relpath(files.path)
    of_test = [
        *([] if known.has_slices else [slices_of(files, bundle)]),
        explanation_of(files, bundle),
        crops_of(files, bundle),
        *([] if known.is_compared else [comparison_of(files, run_id)]),
    ]
    chosen = [
        Missing(
            "Sets of classes that hold the true one for 95 % of new images", files.command(word, "train", "sets=0.95")
        ),
        Missing("Images that are none of the classes", files.command(word, "train", "refuse=0.01")),
    ]
    return [
        *(of_test if known.is_tested else []),
        *missing_of_images(files, known.summaries, group="data|backbone"),
        *([] if known.chooses else chosen),
    ]


def slices_of(files: RunDirectory, bundle: str) -> Missing:
    """Return how to see on which images a bundle is worse."""
    return Missing("On which images the model is worse", _command(files, "evaluate", f"bundle={bundle}"))


def explanation_of(files: RunDirectory, bundle: str, split: str = "test") -> Missing:
    """Return how to see where in the images of a split a bundle of one network saw its mistakes."""
    own = [f"bundle={bundle}", *([] if split == "test" else [f"split={split}"])]
    return Missing("Where in the images the mistakes were seen", _command(files, "explain", *own))


def missing_of_images(files: RunDirectory, summaries: Sequence[StageSummary], *, group: str = "data") -> list[Missing]:
    """Return what is not known of a run's images.

    Args:
        files: of the run.
        summaries: what other stages have found already.
        group: nodes of its configuration that say which images these are, and by which network they are seen.
    """
    known, word = {one.stage for one in summaries}, program()
    asked = {AUDIT: "Which labels are probably wrong", LEARNING_CURVE: "What more labels would bring"}
    return [
        Missing(heading, files.command(word, stage, group=f"({group}|{TRACKED_AT})"))
        for stage, heading in asked.items()
        if stage not in known
    ]


def crops_of(files: RunDirectory, bundle: str) -> Missing:
    """Return how to get what crops bring to a bundle of one network."""
    command = _command(files, "evaluate", f"bundle={bundle}", "crops=1,5,10")
    return Missing("What averaging over crops would bring, and cost", command)


def comparison_of(files: RunDirectory, run_id: str) -> Missing:
    """Return how to compare a run with others."""
    return Missing("Whether other runs are better", _command(files, "compare", f"runs={run_id},best:5"))


def _command(files: RunDirectory, stage: str, *overrides: str) -> str:
    """Return a command that finds and tracks runs where the run of ``files`` is tracked."""
    return files.command(program(), stage, *overrides, group=TRACKED_AT)


def missing_of_ensemble(files: RunDirectory, run_id: str, known: Known) -> list[Missing]:
    """Return what the stage that makes an ensemble leaves to other commands; arguments as for a training."""
    word, bundle = program(), os.path.relpath(files.path)
    of_test = [
        *([] if known.has_slices else [slices_of(files, bundle)]),
        explanation_of(files, f"{os.path.relpath(files.bundle)}/members/1"),
        *([] if known.is_compared else [comparison_of(files, run_id)]),
    ]
    sets = Missing(
        "Sets of classes that hold the true one for 95 % of new images", files.command(word, "ensemble", "sets=0.95")
    )
    return [
        *(of_test if known.is_tested else []),
        *missing_of_images(files, known.summaries),
        *([] if known.chooses else [sets]),
    ]


def missing_of_evaluation(
    files: RunDirectory,
    run_id: str,
    bundle: str | None,
    *,
    split: str,
    is_test: bool,
    explained: str | None,
    summaries: Sequence[StageSummary],
) -> list[Missing]:
    """Return what an evaluation of one bundle leaves to other commands.

    Args:
        files: of the evaluation.
        run_id: of its run.
        bundle: of one network, as it was typed; None: an ensemble, which has its crops.
        split: of the images.
        is_test: whether they test the model, which can be compared with other runs, then.
        explained: what `explain` takes; None: these images are not those that it knows.
        summaries: what other stages have found already.
    """
    is_known = EXPLAIN in {one.stage for one in summaries}
    return [
        *([] if explained is None or is_known else [explanation_of(files, explained, split)]),
        *([] if bundle is None else [crops_of(files, bundle)]),
        *([comparison_of(files, run_id)] if is_test else []),
        *missing_of_images(files, summaries),
    ]


def missing_of_grid(
    files: RunDirectory,
    run_id: str,
    members: Sequence[str],
    *,
    crops: str,
    average: str,
    counts_alike: bool,
    is_test: bool,
    summaries: Sequence[StageSummary],
) -> list[Missing]:
    """Return what an evaluation of members x crops leaves to other commands.

    Args:
        files: of the evaluation.
        run_id: of its run.
        members: where they came from.
        crops: that the whole is averaged over.
        average: what is averaged.
        counts_alike: whether the members have the same share; else an ensemble finds shares on its validation images.
        is_test: whether the images test the members, which can become an ensemble then, and be compared with other
            runs.
        summaries: what other stages have found already.
    """
    own = [f"runs={','.join(members)}", f"choose={'all' if counts_alike else 'weighted'}", f"crops={crops}"]
    own += [] if average == "probabilities" else [f"average={average}"]
    command = files.command(program(), "ensemble", *own, group=f"(data|{TRACKED_AT})")
    kind = "The average" if counts_alike else "An average whose shares the validation images choose,"
    as_one = Missing(f"{kind} as one model, calibrated and with a decision of its own", command)
    is_average = len(members) > 1 or crops != "1"
    return [
        *([as_one] if is_average and is_test else []),
        *([] if is_average else [crops_of(files, members[0])]),
        *([comparison_of(files, run_id)] if is_test else []),
        *missing_of_images(files, summaries),
    ]
