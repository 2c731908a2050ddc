"""Serve the models in models/ over HTTP: what `make export format=docker` writes runs this, without torch.

Each folder there is a bundle, and its name that of the model in addresses; the first one answers without a name.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from graftline.errors import UserError
from graftline.execution import Execution
from graftline.serving.limits import Limits
from graftline.serving.login import find_password
from graftline.serving.origin import BundleFolder
from graftline.serving.server import serve
from graftline.serving.slot import Slot

MODELS = Path(__file__).parent / "models"
MOST_PORT = 65_535


def main() -> None:
    """Replay each model's golden images, and answer until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001, help="0 takes a free one")
    for field in fields(Limits):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help=f"limit, {field.default}")
    asked = parser.parse_args()
    if not 0 <= asked.port <= MOST_PORT:
        parser.error(f"--port is {asked.port}: choose one up to {MOST_PORT}, or 0 for any free one.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folders = sorted(folder for folder in MODELS.glob("[!.]*") if folder.is_dir())
    if not folders:
        sys.exit(f"{MODELS} holds no bundle: put one there, as a folder of its own.")
    try:
        serve(
            [BundleFolder(folder, folder.name) for folder in folders],
            host=asked.host,
            port=asked.port,
            limits=Limits(**{field.name: getattr(asked, field.name) for field in fields(Limits)}),
            execution=Execution(),
            poll_seconds=3600,  # folders do not move
            on_start=_tell,
            password=find_password(asked.host),
        )
    except UserError as error:
        sys.exit(_reword(str(error)))


def _reword(sentence: str) -> str:
    """Return a sentence with the options of this command for the arguments of classes.

    >>> _reword("Limits.waiting_mb is 0: give Serve.port, as in serve.py.")
    '--waiting-mb is 0: give --port, as in serve.py.'
    """
    return re.sub(r"\b(?:Limits|Serve)\.(\w+)", lambda found: f"--{found[1].replace('_', '-')}", sentence)


def _tell(address: str, slots: Mapping[str, Slot]) -> None:
    for name, slot in slots.items():
        logging.info(f"{name}: {slot.model.verification.num_images} golden images reproduced")
    logging.info(f"{address}/ answers: {address}/docs lists the addresses")


if __name__ == "__main__":
    main()
