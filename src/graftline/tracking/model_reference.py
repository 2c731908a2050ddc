"""How a version of a registered model is referred to."""

import re
from typing import NamedTuple

from graftline.errors import UserError

_PATTERN = re.compile(r"models:/(?P<name>[^/@:'\"]+)(/(?P<version>\d+)|@(?P<alias>[^/@]+))")


class ModelReference(NamedTuple):
    """A reference to a registered version.

    Attributes:
        name: of the registered model.
        version: number of the version; None: the alias counts.
        alias: that points to the version; None: the number counts.
    """

    name: str
    version: int | None
    alias: str | None

    @classmethod
    def parse(cls, reference: str) -> "ModelReference":
        """Take ``models:/NAME/3`` or ``models:/NAME@ALIAS`` apart.

        Raises:
            UserError: it is of another form.

        >>> ModelReference.parse("models:/pets/3")
        ModelReference(name='pets', version=3, alias=None)
        >>> ModelReference.parse("models:/pets@champion").alias
        'champion'
        """
        match = _PATTERN.fullmatch(reference)
        if match is None:
            raise UserError(
                f"{reference} refers to no registered model: give models:/NAME/VERSION or models:/NAME@ALIAS."
            )
        number = match["version"]
        return cls(match["name"], None if number is None else int(number), match["alias"])
