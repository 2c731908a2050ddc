"""Bundles that somebody has changed."""

import json
from pathlib import Path
from typing import Any


def change_description(bundle: Path, **entries: Any) -> None:
    """Put entries into ``bundle.json`` as an editor would; None removes one."""
    file = bundle / "bundle.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), **entries}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
