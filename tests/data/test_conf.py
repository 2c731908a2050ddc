"""The files in conf/data say what the code says."""

from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from graftline.data.ingest import Ingest
from graftline.data.split import Split

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.mark.parametrize("name", ["elpv", "folder", "table", "archive"])
def test_each_file_gives_an_ingest_with_the_defaults_of_the_code(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(name, overrides=[] if name == "elpv" else ["path=somewhere"])
    made = instantiate(config)
    assert isinstance(made, Ingest)
    assert set(config) == {"_target_", *(field.name for field in fields(Ingest))}
    license_of_sample = "cc-by-nc-sa-4.0" if name == "elpv" else None
    assert made == Ingest(made.name, made.path, type(made.source)(), Split(), license=license_of_sample)
    assert (CONF / f"{name}.yaml").read_text().startswith(f"# make train data={name}")
