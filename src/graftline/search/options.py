"""What of a search can be chosen, beside its time."""

from dataclasses import dataclass

from graftline.augment.crops import CROP_SETS
from graftline.errors import UserError


@dataclass(frozen=True)
class SearchOptions:
    """How to search (Hydra target of the node ``search``).

    Attributes:
        resume: output directory or MLflow run of an interrupted search, whose scores are taken over.
        members: how many models of the winner may be trained and averaged; fewer where the time is short.
        crops: name of the set of crops that these may be averaged over.
    """

    resume: str | None = None
    members: int = 1
    crops: str = "1"

    def __post_init__(self) -> None:
        if self.members < 1:
            raise UserError(f"SearchOptions.members is {self.members}, it must be at least 1.")
        if self.crops not in CROP_SETS:
            raise UserError(f"SearchOptions.crops is {self.crops}: take one of {', '.join(CROP_SETS)}.")
        if self.members == 1 and self.crops != "1":
            raise UserError(
                f"SearchOptions.crops={self.crops} is for several members: give SearchOptions.members, or evaluate the "
                "winner with these crops afterwards."
            )
