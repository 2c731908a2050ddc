"""Where a served model comes from: a bundle on this machine, or a name in MLflow's registry that may move."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from graftline.errors import UserError
from graftline.tracking.names import CHAMPION

if TYPE_CHECKING:  # a server of folders alone has no registry
    from graftline.tracking.registry import Registry


@dataclass(frozen=True)
class Origin:
    """What a name means now.

    Attributes:
        uri: ``models:/elpv/3``, or the bundle's folder.
        version: number of the registered version; None for a folder.
    """

    uri: str
    version: int | None


class Source(Protocol):
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
class Folder:
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
        reference: its name, which stands for its champion, or for the newest version while there is none;
            ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
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
            UserError: there is no such model, version or alias, or MLflow does not answer.
        """
        if self.reference.startswith("models:/"):
            version = self.registry.version(self.reference)
            return Origin(version.uri, version.version)
        versions = self.registry.versions(self.name)
        if not versions:
            raise UserError(f"The registered model '{self.name}' has no version: train one.")
        champions = [version for version in versions if CHAMPION in version.aliases]
        chosen = (champions or versions)[-1]
        return Origin(chosen.uri, chosen.version)

    def fetch(self, origin: Origin) -> Path:
        """Return the folder of the version's bundle, downloaded if need be and checked against its digest.

        Raises:
            UserError: it cannot be had, or is not what was logged.
        """
        return self.registry.bundle(origin.uri)

    def note(self, origin: Origin) -> str | None:
        """Return a sentence if there is no champion to take."""
        if self.reference.startswith("models:/") or self.registry.aliased(self.name, CHAMPION) is not None:
            return None
        return (
            f"'{self.name}' has no champion: its newest version, {origin.version}, answers until one of its versions "
            f"has the alias '{CHAMPION}'."
        )
