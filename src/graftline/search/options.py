"""What of a search can be chosen, beside its time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchOptions:
    """How to search (Hydra target of the node ``search``).

    Attributes:
        resume: output directory or MLflow run of an interrupted search, whose scores are taken over.
    """

    resume: str | None = None
