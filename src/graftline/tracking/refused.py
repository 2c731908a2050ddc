"""Versions of registered models that the gate has refused and nobody needs: which they are, and how they go."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from graftline.errors import UserError
from graftline.tracking.promotions import Promotions
from graftline.tracking.tracking import Tracking
from graftline.tracking.uri import absolute_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class RefusedVersion:
    """A version that was refused last, was never champion, and has no alias.

    Attributes:
        name: of the registered model.
        version: its number.
        decided: when it was refused, by the clock of that machine, in seconds since 1970.
    """

    name: str
    version: int
    decided: float

    @property
    def uri(self) -> str:
        """The reference that means this version."""
        return f"models:/{self.name}/{self.version}"


def find_refused(tracking: Tracking, model: str) -> list[RefusedVersion]:
    """Return the refused versions of a registered model, the newest first; none where its ledger is damaged.

    The newest version of all is never among them, since its number must not be given again.

    Raises:
        UserError: there is no such model, or MLflow does not answer.
    """
    standing = Promotions(tracking, model).read()
    if standing.damage is not None:
        return []
    reigned = {number for line in standing.lines for number in (line.decision.before, line.decision.after)}
    return [
        RefusedVersion(model, version.version, datetime.fromisoformat(decision.at).timestamp())
        for version in reversed(standing.versions[:-1])
        if (lines := standing.lines_of(version.version))
        and (decision := lines[-1].decision).kind == "refused"
        and version.version not in reigned
        and not version.aliases
    ]


def measure(tracking: Tracking, version: RefusedVersion) -> int:
    """Return the bytes of a version's files.

    Raises:
        UserError: MLflow does not answer.
    """
    from graftline.tracking.models import size

    return tracking.registry().ask(
        lambda client: size(client, client.get_model_version(version.name, str(version.version)))
    )


def remove(tracking: Tracking, version: RefusedVersion) -> bool:
    """Remove a version and its files, unless it has an alias by now; the ledger keeps what was decided on it.

    Returns:
        Whether it is gone.

    Raises:
        UserError: MLflow does not answer, or does not let its files go.
    """
    from graftline.tracking import models
    from graftline.tracking.client import change_at, connect
    from graftline.tracking.mlflow_errors import reason

    def find_and_remove(client: "MlflowClient") -> bool:
        found = client.get_model_version(version.name, str(version.version))
        if found.aliases:
            return False
        models.remove(client, found)
        return True

    uri = absolute_uri(tracking.uri)
    try:
        with change_at(uri):
            return find_and_remove(connect(uri))
    except UserError:
        raise
    except Exception as error:  # each artifact store has its own
        raise UserError(f"{version.uri} cannot be removed ({reason(error)}).") from error
