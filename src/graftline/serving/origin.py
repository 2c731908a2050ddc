"""Where a served model comes from: a bundle on this machine, or a name in MLflow's registry that may move."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from graftline.errors import UserError
from graftline.tracking.names import CHAMPION

if TYPE_CHECKING:  # a server of folders alone has no registry
    from graftline.tracking.registry import RegisteredVersion, Registry


@dataclass(frozen=True)
class Origin:
    """What a name means now.

    Attributes:
        uri: ``models:/elpv/3``, or the bundle's folder.
        version: number of the registered version; None for a folder.
        digest: of the version's bundle, as the number may be that of another one once a model was deleted and made
            anew; None for a folder.
        stands_in: whether it stands in for a champion, since there is none.
    """

    uri: str
    version: int | None
    digest: str | None = None
    stands_in: bool = field(default=False, compare=False)

    @property
    def model_uri(self) -> str | None:
        """MLflow's address of the registered version; None for a folder."""
        return None if self.version is None else self.uri


class ModelSource(Protocol):
    """What a model is asked for by, each time that it may have changed."""

    @property
    def name(self) -> str:
        """The name of the model in addresses."""
        ...

    @property
    def moves(self) -> bool:
        """Whether it can mean another model tomorrow."""
        ...

    def find(self) -> Origin:
        """Return what it means now, without loading anything."""
        ...

    def fetch(self, origin: Origin) -> Path:
        """Return the folder of the bundle, on this machine."""
        ...


@dataclass(frozen=True)
class BundleFolder:
    """A bundle's folder.

    Attributes:
        bundle: the folder.
        name: of the model in addresses.
    """

    bundle: Path
    name: str
    moves: bool = field(default=False, init=False)

    def find(self) -> Origin:
        """Return the folder."""
        return Origin(str(self.bundle), None)

    def fetch(self, origin: Origin) -> Path:
        """Return the folder."""
        return Path(origin.uri)


@dataclass(frozen=True)
class Registered:
    """A registered model.

    Attributes:
        reference: its name, which stands for its champion, or while there is none for the newest version that the gate
            has not refused; ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        registry: where it is looked up.
    """

    reference: str
    registry: "Registry"

    @property
    def name(self) -> str:
        """The registered model's name."""
        return self.reference.removeprefix("models:/").partition("@")[0].partition("/")[0]

    @property
    def moves(self) -> bool:
        """Whether it is a name or an alias."""
        return not (self.reference.startswith("models:/") and self.reference.rpartition("/")[2].isdigit())

    def find(self) -> Origin:
        """Return the version that is meant now.

        Raises:
            UserError: there is no such model, version or alias, the gate has refused all versions, or MLflow does not
                answer.
        """
        if self.reference.startswith("models:/"):
            return _origin(self.registry.version(self.reference))
        if (champion := self.registry.aliased(self.name, CHAMPION)) is not None:
            return _origin(champion)
        versions = self.registry.versions(self.name)
        if not versions:
            raise UserError(f"The registered model '{self.name}' has no version: train one.")
        left = [version for version in versions if not version.is_refused]
        if not left:
            raise UserError(
                f"The registered model '{self.name}' has no champion, and the gate has refused all of its versions: "
                f"train a better one, or name the one that is meant all the same, such as {versions[-1].uri}."
            )
        return replace(_origin(left[-1]), stands_in=True)

    def fetch(self, origin: Origin) -> Path:
        """Return the folder of the version's bundle, downloaded if need be and checked against its digest.

        Raises:
            UserError: it cannot be had, or is not what was logged.
        """
        return self.registry.bundle(origin.uri)

    def note(self, origin: Origin) -> str | None:
        """Return a sentence if there is no champion to take."""
        if not origin.stands_in:
            return None
        return (
            f"'{self.name}' has no champion: version {origin.version}, the newest that the gate has not refused, "
            f"answers until one of its versions has the alias '{CHAMPION}'."
        )


def _origin(version: "RegisteredVersion") -> Origin:
    return Origin(version.uri, version.version, version.bundle_digest)
