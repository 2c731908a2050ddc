"""Search: the best model within a time: candidates → scores of their heads → the winner, trained as any other."""

import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.augment.crops import CROP_SETS
from graftline.augment.crops import check as check_crops
from graftline.backbones.backbone import Backbone
from graftline.console import say, warn
from graftline.data.version import DatasetVersion
from graftline.errors import TooLittleMemoryError, TooLittleTimeError, UserError, first_line
from graftline.execution import Execution
from graftline.features.cut import UncuttableError
from graftline.freezing.depth import deep_images
from graftline.freezing.measured import Measured
from graftline.freezing.rule import FreezeRule
from graftline.freezing.rules import AllButHead
from graftline.freezing.spare_time import WORTH_TRAINING
from graftline.pipeline.ensemble import MakeEnsemble
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.searching.result import (
    Found,
    SearchResult,
    log_search,
    print_trials,
    summarize_search,
)
from graftline.pipeline.searching.scoring import Scoring, ends_process, leave_out_slow, left_of
from graftline.pipeline.searching.trial_runs import TrialRuns
from graftline.pipeline.searching.winner import Winner
from graftline.pipeline.train import Train
from graftline.pipeline.training.result import TrainResult
from graftline.report.search_figure import search_figure
from graftline.report.style import save
from graftline.search.candidates import Candidate, find_backbones, list_candidates
from graftline.search.contestant import BuiltCandidate
from graftline.search.deeper import choose, digest_recipe, is_chosen_as_whole
from graftline.search.history import ScoreFiles, SearchHistory
from graftline.search.ledger import TimeLedger, format_seconds
from graftline.search.options import SearchOptions
from graftline.search.rounds import PREPARE_SECONDS, TrainingImages
from graftline.tracking.dead_runs import end_dead_runs
from graftline.training.budget import average_seconds, check_budget, end_seconds
from graftline.training.forecast import time_pass
from graftline.training.image_seconds import seconds_per_image
from graftline.training.setup import TrainingSetup
from graftline.training.trainer import check_spread

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

logger = logging.getLogger(__name__)

START_SECONDS = 5.0  # imports and configuration, before the stage runs
END_SECONDS = 5.0  # table and picture, after the winner's training
SURE_SHARE = 0.8  # of the time left, in which the winner's pass must fit: it is measured once more when it is trained
STAGE_NAME = "search"
NO_TIME = "There is no time left but for the head of the winner."
NO_ROOM = "More than the head of the winner does not fit the GPU's memory: its head alone is trained."


@dataclass(frozen=True)
class Search(Train):
    """The stage ``search`` (Hydra target of conf/search.yaml): a training whose network and image size are found.

    Attributes:
        minutes: of the whole command.
        backbones: to choose from; none: all networks whose weights are on this machine.
        search: how to search.
    """

    minutes: float = 30.0
    backbones: Sequence[Backbone] = ()
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:  # also catches NaN
            raise UserError(f"Search.minutes is {self.minutes}, it must be above 0 and finite.")
        if self.search.members > 1 and self.refuse is not None:
            raise UserError("Search.refuse is for a model of one network: leave it out, or SearchOptions.members.")
        if self.search.members > 1 and self.train.fold is not None:
            raise UserError("Recipe.fold is for one model: leave it out, or SearchOptions.members.")
        if self.search.members > 1:
            check_spread(self.trainer, self.cluster)

    def run(self, directory: Path) -> SearchResult:
        """Search, train the winner, test it once, track and register it."""
        ledger = TimeLedger(60 * self.minutes, began=time.perf_counter() - START_SECONDS)
        execution = self.check()
        return self._with_fitting_networks()._search(directory, execution, ledger)

    def _search(self, directory: Path, execution: Execution, ledger: TimeLedger) -> SearchResult:
        files = RunDirectory(directory)
        with ledger.spend("images, networks"):
            setup = self._prepare(execution, files)
            scores = self._score_files(setup, files)
            history, images = SearchHistory(self._candidates(setup)), TrainingImages.of(setup.version)
            first = self._first(history, setup)
            pass_seconds = first.pass_seconds(images.samples)
            leave_out_slow(history, setup.version, ledger, pass_seconds)  # too little time is to leave no run behind
        with self._start_search(setup, files) as run:
            say(f"Run {run.id}; should it be interrupted, search.resume={directory} takes its scores over.")
            work = Scoring(
                self.freeze, history, setup, images, ledger, scores, first, pass_seconds, self._check_candidate
            )
            tracking = replace(self.tracking, parent_run_id=run.id)
            with TrialRuns(tracking, setup.version.name, run.directory / "trials") as trials:
                history.on_score = trials.log
                was_interrupted = work.run(files.checkpoints)
                chosen = choose(history) or left_of(history)[0]
                if history.scored:
                    print_trials(history, chosen)
                    history.outcomes[chosen.name] = "chosen"
                trials.tell_outcomes(history)
            with ledger.spend("training and test of the winner"):
                winner = Winner(self, directory, chosen.backbone, setup.version, run.id)
                if was_interrupted:
                    trained = winner.train_head()
                else:
                    whole = is_chosen_as_whole(history, chosen) and _asks_for_whole(self.freeze)
                    trained, was_interrupted = self._train_winner(winner, setup, ledger, whole=whole)
            found = Found(history, chosen, trained, ledger, self.minutes, was_interrupted)
            run.log_artifact(save(search_figure(found.picture()), directory / "search.png"))
            log_search(run, found)
        return summarize_search(found, run.id, os.path.relpath(directory / "search.png"))

    def _check_backbone(self) -> None:
        """Find the weights of the plain network, where none is named: each that may win is checked later on."""
        if not self.backbones:
            _require_knowledge(self.backbone)
            self.backbone.check()

    def _check_candidate(self, candidate: Candidate) -> None:
        """Refuse a candidate that cannot be trained as is asked for, or cannot be saved."""
        super(Search, replace(self, backbone=candidate.backbone))._check_backbone()

    def _with_fitting_networks(self) -> "Search":
        """Return the search with the networks that can be trained as the winner would be, of those named or all here.

        Raises:
            UserError: none of them can.
        """
        found = self.backbones or find_backbones(self.backbone)
        if not found:
            raise UserError(
                "There are no weights on this machine to choose from: name networks with backbone, of which those that "
                "are missing are downloaded, or fetch some with fetch()."
            )
        good, errors = list[Backbone](), list[UserError]()
        for backbone in found:
            try:
                _require_knowledge(backbone)
                with_it = replace(self, backbone=backbone)
                if self.backbones:
                    super(Search, with_it)._check_backbone()
                else:  # whether it can be saved takes seconds to tell: of the many, the best are asked later on
                    with_it._check_trainable()
                good.append(backbone)
            except UserError as error:
                errors.append(error)
        if not good:
            raise errors[0]
        for backbone, why in zip([one for one in found if one not in good], errors, strict=True):
            logger.warning(f"{backbone.name} is left out: {first_line(why)}.")
        return replace(self, backbone=self.backbone if self.backbone in good else good[0], backbones=good)

    def _fit_to_images(self, version: DatasetVersion) -> Backbone:
        """Return the backbone at its own size where it is to suit the images: the search finds out."""
        own = replace(self, backbone=replace(self.backbone, image_size=self.backbone.given_size))
        return super(Search, own)._fit_to_images(version)

    def _candidates(self, setup: TrainingSetup) -> list[Candidate]:
        """List what there is to choose from."""
        aspect = setup.version.typical_aspect()
        backbones = [one.for_aspect(aspect) for one in self.backbones]
        table = setup.version.table().query("split == 'train'")
        shorter_side = float(table[["width", "height"]].min(axis=1).median())
        # more multiply-adds at a time are faster ones on a GPU, so that each network is measured there
        measure = partial(time_pass, execution=setup.execution) if setup.execution.is_cuda else None
        candidates = list_candidates(backbones, self.backbone.name, shorter_side, measure)
        networks = {one.network for one in candidates}
        sides = sorted({one.side for one in candidates})
        say(f"{len(candidates)} candidates: {', '.join(sorted(networks))}; images of {', '.join(map(str, sides))} px.")
        return candidates

    def _start_search(self, setup: TrainingSetup, files: RunDirectory) -> "Run":
        experiment = self.tracking.experiment or setup.version.name
        if dead := end_dead_runs(self.tracking.registry(), experiment, STAGE_NAME):
            say(f"Marked as KILLED, since their process is gone: {', '.join(dead)}.")
        run = self.tracking.start_group(
            name=self.name or f"search {self.minutes:g} min seed{self.seed}",
            experiment=setup.version.name,
            directory=files.path,
            stage=STAGE_NAME,
        )
        run.log_dataset(setup.version)
        return run

    def _score_files(self, setup: TrainingSetup, files: RunDirectory) -> ScoreFiles:
        """Return the files of scores, those of an earlier search among them if there was one."""
        scores = ScoreFiles(files.path / "scores", setup.version.digest, digest_recipe(setup))
        if self.search.resume is not None:
            number = scores.take_over(self._earlier(self.search.resume) / "scores")
            say(f"{number} scores of the earlier search are taken over.")
        return scores

    def _earlier(self, reference: str) -> Path:
        """Return the output directory of an interrupted search."""
        directory = Path(reference).expanduser()
        if not directory.is_dir():
            directory = self.tracking.find_output_directory(reference)
        if not (directory / "scores").is_dir():
            raise UserError(f"SearchOptions.resume={reference} is no search that has scored anything: leave it out.")
        return directory

    def _first(self, history: SearchHistory, setup: TrainingSetup) -> BuiltCandidate:
        """Build the first candidate whose activations can be computed ahead; those before it are left out."""
        for candidate in history.candidates:
            try:
                return BuiltCandidate.of(candidate, setup)
            except UncuttableError as error:
                history.outcomes[candidate.name] = f"not tried: {error}"
        raise UserError("None of these networks can be divided into a frozen part and a head: train one of them.")

    def _train_winner(
        self, winner: Winner, setup: TrainingSetup, ledger: TimeLedger, *, whole: bool
    ) -> tuple[TrainResult, bool]:
        """Train the winner for the rest of the time, its head alone where that is too short or the GPU has no room.

        An interrupt ends the training with the best epoch so far; with its head alone where no epoch is done.

        Returns:
            What was trained, and whether it was interrupted.

        Raises:
            KeyboardInterrupt: the model was saved already, or the process is to end.
        """
        setup = replace(setup, graft=winner.backbone.build(setup.version.class_names))
        seconds = ledger.left - END_SECONDS
        if (why := _why_head_alone(setup, seconds)) is not None:
            warn(why)
            return winner.train_head(), False
        winner.discard_earlier()
        members, each = self._share(setup, seconds)
        how = ", the whole network if it beats its head," if whole else ""
        what = f"{members} models of {winner.backbone.name}" if members > 1 else winner.backbone.name
        say(f"\nTraining {what}{how} with the {format_seconds(ledger.left)} that are left.")
        if members > 1:
            return self._train_members(winner, setup, members, each, whole=whole)
        kept: list[KeyboardInterrupt] = []

        def ends(interrupt: KeyboardInterrupt) -> bool:
            if not ends_process(interrupt):
                kept.append(interrupt)
                warn(
                    "Interrupted: the winner is saved and tested as its best epoch left it. Ctrl-C again ends that too."
                )
            return bool(kept)

        try:
            return winner.train(seconds / 60, ends, whole=whole), bool(kept)
        except TooLittleTimeError:  # its pass is measured anew, and the machine has become slower
            warn(NO_TIME)
        except TooLittleMemoryError:
            warn(NO_ROOM)
        except KeyboardInterrupt as interrupt:
            goes_on = "train.resume with the id of its run, which is told above, goes on with it"
            if winner.is_saved and not ends_process(interrupt):
                warn(f"Interrupted: the winner is saved, but it may not be tested or registered; {goes_on}.")
            if winner.is_saved or kept or ends_process(interrupt):
                raise
            warn(
                f"Interrupted: only the head of the winner is trained now. Its training stays; {goes_on}. "
                "Ctrl-C again ends this, too."
            )
            return winner.train_head(), True
        return winner.train_head(), bool(kept)  # once the error is gone, and what lay on the GPU with it

    def _share(self, setup: TrainingSetup, seconds: float) -> tuple[int, float]:
        """Return how many models the time suffices for, at most as many as are allowed, and the seconds of each."""
        allowed, crops = self.search.members, CROP_SETS[self.search.crops].count
        for members in range(allowed, 1, -1):
            each = (seconds - average_seconds(setup, members, crops)) / members
            if self._is_worth_it(setup, each):
                if members < allowed:
                    warn(f"SearchOptions.members={allowed} becomes {members}, for which the time suffices.")
                return members, each
        if allowed > 1:
            warn(f"One model is trained, on one crop: the time does not suffice for SearchOptions.members={allowed}.")
        return 1, seconds

    def _is_worth_it(self, setup: TrainingSetup, seconds: float) -> bool:
        """Return whether a model of so many seconds may be one of several: not one that is just begun."""
        images = (seconds - end_seconds(setup)) / seconds_per_image(setup)
        # of many classes more than worth_trying asks for: this time is not spare, fewer models would have it
        worth = WORTH_TRAINING * deep_images(len(setup.version.class_names))
        return _is_enough(setup, seconds) and (isinstance(self.freeze, AllButHead) or images >= worth)

    def _train_members(
        self, winner: Winner, setup: TrainingSetup, members: int, seconds: float, *, whole: bool
    ) -> tuple[TrainResult, bool]:
        """Train several models of the winner, each for so many seconds, and average them.

        An interrupt averages those that are done, and so does a machine that has no time or no memory for another one;
        where none is done, the head alone is trained.

        Returns:
            What was trained, and whether it was interrupted.

        Raises:
            KeyboardInterrupt: the average was saved already, or the process is to end.
        """
        crops = self.search.crops
        try:
            check_crops(crops, setup.graft.preprocessing)
        except UserError as error:
            warn(f"SearchOptions.crops={crops} is left alone. {first_line(error)}.")
            crops = "1"
        own = {"minutes": seconds / 60, "members": members, "crops": crops}
        try:
            return winner.train_ensemble(MakeEnsemble, own, whole=whole), False
        except TooLittleTimeError:
            ended, again, why = None, "", "There is no time for another model"
        except TooLittleMemoryError:
            ended, again, why = None, "", "The GPU has no room for another model"
        except KeyboardInterrupt as interrupt:
            if winner.is_saved or ends_process(interrupt):
                raise
            ended, again, why = interrupt, " Ctrl-C again ends this, too.", "Interrupted"
        if not (finished := winner.finished_members):
            warn(f"{why}: only the head of the winner is trained now.{again}")
            return winner.train_head(), ended is not None
        warn(f"{why}: the mean of the models that are trained so far ({len(finished)}) is saved.{again}")
        own = {"runs": finished, "crops": crops}
        return winner.train_ensemble(MakeEnsemble, own, whole=whole), ended is not None


def _asks_for_whole(rule: FreezeRule) -> bool:
    """Return whether a rule only asks if the whole network is to be trained, which a comparison may have answered."""
    return isinstance(rule, Measured) and rule.final_depth == 0


def _why_head_alone(setup: TrainingSetup, seconds: float) -> str | None:
    """Return in a sentence why only the head is trained in so many seconds; None where more is."""
    with suppress(TooLittleMemoryError):
        return None if _is_enough(setup, seconds) else NO_TIME
    return NO_ROOM


def _is_enough(setup: TrainingSetup, seconds: float) -> bool:
    """Return whether a training of so many seconds would not be refused: end and a pass over the images fit in.

    Raises:
        TooLittleMemoryError: no time helps, as the GPU has no room for it.
    """
    try:
        check_budget(setup, SURE_SHARE * (seconds - PREPARE_SECONDS - end_seconds(setup)), seconds / 60)
    except TooLittleTimeError:
        return False
    return True


def _require_knowledge(backbone: Backbone) -> None:
    if backbone.weights == "none":
        raise UserError(
            "A search compares what networks know already, and with Backbone.weights='none' they know nothing: "
            "leave that out."
        )
