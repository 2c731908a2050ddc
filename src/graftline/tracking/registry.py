"""Read what MLflow has: registered models, their bundles, and the data sets that runs were trained on.

A reference is ``models:/NAME/3`` or ``models:/NAME@ALIAS``; for a run, its id or ``runs:/ID``.
Light to import: MLflow is loaded at the first question.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from graftline.errors import UserError
from graftline.files import cache_directory, digest, digest_directory
from graftline.tracking.download import local_folder
from graftline.tracking.model_reference import ModelReference
from graftline.tracking.names import (
    BUNDLE,
    BUNDLE_DIGEST,
    BUNDLE_FILES,
    DATA,
    DECISION,
    LEASE,
    PREDICTIONS,
    TEST,
)
from graftline.tracking.paging import find_all
from graftline.tracking.uri import absolute_uri, sqlite_file, store_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from graftline.tracking.tested_runs import TestedRun

T = TypeVar("T")

NUM_LISTED = 10  # names that a message lists at most

# No such version, no such alias; and where nobody may read what is not their own, a model that there is not.
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED")


class ChangedBundleError(UserError):
    """The files of a registered bundle are not those that were logged.

    Attributes:
        uri: of the version.
    """

    def __init__(self, message: str, uri: str) -> None:
        super().__init__(message)
        self.uri = uri


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: number of the version, from 1.
        run_id: of the run that trained it; None if it was registered without one.
        tags: of the version.
        aliases: that point to the version now.
        description: of the version.
        source: URI of the folder of the MLflow model.
    """

    name: str
    version: int
    run_id: str | None
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    description: str
    source: str

    @property
    def uri(self) -> str:
        """The reference that always means this version."""
        return f"models:/{self.name}/{self.version}"

    @property
    def bundle_digest(self) -> str:
        """Digest of its bundle, "unknown" where it was registered without one."""
        return self.tags.get(BUNDLE_DIGEST, "unknown")

    @property
    def is_refused(self) -> bool:
        """Whether the gate has decided on it last, and refused it."""
        return self.tags.get(DECISION, "").startswith("refused")


@dataclass(frozen=True)
class Registry:
    """Read the models and runs of a tracking database or server; it changes nothing there.

    A server that is away is found out within 10 s. Files that are on this machine are used where they are; others are
    downloaded once, whole or not at all, and go once nobody has asked for them within a week.

    Attributes:
        uri: a database (``sqlite:///mlflow.db``) or the address of an MLflow server.
    """

    uri: str

    def versions(self, name: str) -> tuple[RegisteredVersion, ...]:
        """Return all versions of a registered model, the oldest first.

        Raises:
            UserError: there is no such model, or MLflow does not answer.
        """
        return self.ask(lambda client: _find_versions(client, name))

    def version(self, reference: str) -> RegisteredVersion:
        """Return the version that ``models:/NAME/3`` or ``models:/NAME@ALIAS`` refers to.

        Raises:
            UserError: the reference is of another form, there is no such model, version or alias, or MLflow does not
                answer.
        """
        wanted = ModelReference.parse(reference)
        found = self.ask(lambda client: _find_version(client, wanted))
        if found is None:
            raise UserError(_not_found(wanted, self.versions(wanted.name)))
        return found

    def names(self) -> list[str]:
        """Return the names of all registered models.

        Raises:
            UserError: MLflow does not answer.
        """
        return self.ask(_find_names)

    def aliased(self, name: str, alias: str) -> RegisteredVersion | None:
        """Return the version of a registered model that an alias points to, None where there is none.

        Raises:
            UserError: MLflow does not answer.
        """
        return self.ask(lambda client: _find_version(client, ModelReference(name, None, alias)))

    def bundle(self, reference: str, directory: Path | None = None) -> Path:
        """Return the folder of a registered model's bundle, checked against the digest that was logged with it.

        Args:
            reference: ``models:/NAME/3`` or ``models:/NAME@ALIAS``.
            directory: where downloads are kept; None: the user's cache.

        Raises:
            UserError: as `version`; the model has no bundle, the download fails, or its files are not those that were
                logged.
        """
        version = self.version(reference)
        logged = version.tags.get(BUNDLE_FILES)
        key = f"{version.version}-{logged or digest(version.source)}"  # a version of another server has another digest
        download = (directory or cache_directory()) / "models" / version.name / key
        path = local_folder(self.uri, f"{version.source}/{BUNDLE}", download)
        if not (path / "bundle.json").is_file():
            raise UserError(f"{version.uri} has no bundle in {path}: register a model that graftline trained.")
        if logged is not None and digest_directory(path) != logged:
            raise ChangedBundleError(
                f"{path} is not the bundle that was logged as {version.uri}: put its files back from a copy "
                "(what was downloaded is downloaded again once that folder is removed).",
                version.uri,
            )
        return path

    def dataset(self, reference: str, directory: Path | None = None) -> Path:
        """Return the folder of the dataset version that a run was trained on, as the run has logged it.

        It holds ``manifest.parquet`` and ``summary.json``, for `graftline.data.version.DatasetVersion.load`.

        Args:
            reference: a run's id, ``runs:/ID``, ``models:/NAME/3`` or ``models:/NAME@ALIAS``.
            directory: where downloads are kept; None: the user's cache.

        Raises:
            UserError: there is no such run, model, version or alias, the run has logged no dataset version, MLflow does
                not answer, or the download fails.
        """
        run_id = self._run_id(reference)

        def find(client: "MlflowClient") -> tuple[str, set[str]]:
            from graftline.tracking.client import find_run

            run = find_run(client, run_id, self.store)
            return str(run.info.artifact_uri), {Path(item.path).name for item in client.list_artifacts(run_id, DATA)}

        artifacts, files = self.ask(find)
        if not {"manifest.parquet", "summary.json"} <= files:
            raise UserError(
                f"Run {run_id} has no {DATA}/manifest.parquet in the {self.store}: "
                "either an earlier graftline logged it, or its files have yet to be sent with sync()."
            )
        return local_folder(self.uri, f"{artifacts}/{DATA}", (directory or cache_directory()) / "runs" / run_id)

    def tested_run(self, reference: str) -> "TestedRun":
        """Return what MLflow knows of a run and its test.

        Args:
            reference: a run's id, ``runs:/ID``, ``models:/NAME/3`` or ``models:/NAME@ALIAS``.

        Raises:
            UserError: there is no such run, model, version or alias, or MLflow does not answer.
        """
        from graftline.tracking.client import find_run
        from graftline.tracking.tested_runs import describe

        run_id = self._run_id(reference)

        def find(client: "MlflowClient") -> "TestedRun":
            run = find_run(client, run_id, self.store)
            return describe(run, client.get_experiment(run.info.experiment_id).name)

        return self.ask(find)

    def newest_tested(self, experiment: str | None = None, skip: str | None = None) -> "TestedRun":
        """Return the newest run that made a model and tested it: a training or an ensemble, no evaluation, no member.

        Args:
            experiment: name of its experiment; None: any.
            skip: digest of a bundle that is not meant.

        Raises:
            UserError: there is no such experiment or run, or MLflow does not answer.
        """
        from graftline.tracking.tested_runs import find_newest

        return self.ask(lambda client: find_newest(client, experiment, self.store, skip))

    def newest_training(self, experiment: str | None = None, *, members: bool = False) -> "TestedRun":
        """Return the newest training that came to its end, tested or not.

        Args:
            experiment: name of its experiment; None: any.
            members: whether one that an ensemble has trained may be meant.

        Raises:
            UserError: there is no such experiment, no such training, or MLflow does not answer.
        """
        from graftline.tracking.tested_runs import find_newest_training

        return self.ask(lambda client: find_newest_training(client, experiment, self.store, members=members))

    def best_trainings(self, experiment: str, images: Mapping[str, str], most: int | None = None) -> "list[TestedRun]":
        """Return the finished trainings of an experiment on the same images, the lowest validation log loss first.

        Args:
            experiment: its name.
            images: digests of the validation and the test images, as ``TestedRun.images`` has them.
            most: how many are enough; None: all.

        Raises:
            UserError: there is no such experiment, or MLflow does not answer.
        """
        from graftline.tracking.tested_runs import find_best_trainings

        return self.ask(lambda client: find_best_trainings(client, experiment, self.store, images, most))

    def runs_of_model(self, bundle_digest: str, test_digest: str, most: int) -> "list[TestedRun]":
        """Return the finished runs that made or evaluated a model on a dataset version, the newest first.

        Args:
            bundle_digest: of the model.
            test_digest: of the version's test images.
            most: how many are enough.

        Raises:
            UserError: MLflow does not answer.
        """
        from graftline.tracking.tested_runs import find_runs_of_model

        return self.ask(lambda client: find_runs_of_model(client, bundle_digest, test_digest, most))

    def predictions(self, run: "TestedRun", directory: Path | None = None, of: str = TEST) -> Path | None:
        """Return the file with what a run's model gave for images, None where the run has logged none.

        Args:
            run: that was tested.
            directory: where downloads are kept; None: the user's cache.
            of: the folder of its artifacts: `TEST`, for the images that it was tested on, or `VALIDATION`.

        Raises:
            UserError: MLflow does not answer, or the download fails.
        """
        files = self.ask(lambda client: [Path(item.path).name for item in client.list_artifacts(run.id, of)])
        if PREDICTIONS not in files:
            return None
        # a run that is resumed has another model afterwards
        folder = (directory or cache_directory()) / "predictions" / f"{run.id}-{run.bundle_digest}-{of}"
        return local_folder(self.uri, f"{run.artifacts}/{of}", folder) / PREDICTIONS

    @property
    def store(self) -> str:
        """What it is called in messages."""
        return store_name(absolute_uri(self.uri))

    def ask(self, question: "Callable[[MlflowClient], T]") -> T:
        """Return what a question gives that is asked of MLflow's client, within a bounded time.

        Raises:
            UserError: MLflow does not answer, or with an error.
        """
        from graftline.tracking.client import connect_checked

        if not self.is_there:
            raise UserError(f"There is no {self.store}: give the Tracking.uri of one that has runs.")
        return connect_checked(absolute_uri(self.uri), question)[1]

    @property
    def is_there(self) -> bool:
        """Whether the database is a file that there is; a server may be there or not."""
        file = sqlite_file(absolute_uri(self.uri))
        return file is None or file.exists()

    def _run_id(self, reference: str) -> str:
        if not reference.startswith("models:"):
            return reference.removeprefix("runs:/")
        version = self.version(reference)
        if version.run_id is None:
            raise UserError(f"{version.uri} was registered without a run, so that its data set is unknown.")
        return version.run_id


def _find_version(client: "MlflowClient", wanted: ModelReference) -> RegisteredVersion | None:
    """Return a version, by one question however many versions there are; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        if wanted.alias is None:
            found = client.get_model_version(wanted.name, str(wanted.version))
        else:
            found = client.get_model_version_by_alias(wanted.name, wanted.alias)
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
        return None
    if wanted.alias is not None and wanted.alias not in found.aliases:  # MLflow takes "latest" for the newest version
        return None
    return _describe(found, list(found.aliases))


def _find_names(client: "MlflowClient") -> list[str]:
    """Return the names of all registered models but those that are leases."""
    return sorted(model.name for model in find_all(client.search_registered_models) if LEASE not in model.name)


def _find_versions(client: "MlflowClient", name: str) -> tuple[RegisteredVersion, ...]:
    models = client.search_registered_models(filter_string=f"name = '{name}'")
    if not models:
        raise UserError(f"There is no registered model '{name}': there {_listed(_find_names(client)[:NUM_LISTED])}.")
    aliases: dict[str, list[str]] = {}  # by version; a search for versions leaves them out
    for alias, number in models[0].aliases.items():
        aliases.setdefault(str(number), []).append(alias)
    found = find_all(partial(client.search_model_versions, f"name = '{name}'"))
    versions = [_describe(version, aliases.get(str(version.version), [])) for version in found]
    return tuple(sorted(versions, key=lambda version: version.version))


def _describe(version: "ModelVersion", aliases: list[str]) -> RegisteredVersion:
    assert version.source is not None  # MLflow registers nothing without one
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        run_id=version.run_id or None,
        tags=dict(version.tags),
        aliases=tuple(sorted(aliases)),
        description=version.description or "",
        source=version.source,
    )


def _not_found(wanted: ModelReference, versions: tuple[RegisteredVersion, ...]) -> str:
    """Say which version or alias there is not, and which there are."""
    if wanted.alias is None:
        missing, there = f"version {wanted.version}", [str(version.version) for version in versions]
    else:
        missing = f"alias '{wanted.alias}'"
        there = [f"'{alias}' (version {version.version})" for version in versions for alias in version.aliases]
    return f"The registered model '{wanted.name}' has no {missing}: there {_listed(there[-NUM_LISTED:])}."


def _listed(names: list[str]) -> str:
    """Name what there is, to follow the word "there".

    >>> _listed([]), _listed(["pets"]), _listed(["1", "2"])
    ('is none', 'is pets', 'are 1, 2')
    """
    return f"{'are' if len(names) > 1 else 'is'} {', '.join(names) or 'none'}"
