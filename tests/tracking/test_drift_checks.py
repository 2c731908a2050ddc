"""What the newest check for drift of a model has found, by MLflow's own runs."""

import shutil
from pathlib import Path

from graftline.tracking.drift_checks import drift_tags, last_check_rings
from graftline.tracking.tracking import Tracking


def test_the_newest_check_of_the_model_counts(tmp_path: Path, empty_database: Path) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    tracking = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}", system_metrics=False)
    assert not last_check_rings(tracking.uri, "pets", "one"), "nobody has checked"

    def check(digest: str, *, rings: bool, monitored: bool = True) -> None:
        tags = drift_tags(digest, rings=rings, monitored=monitored)
        with tracking.start(run_name="drift", experiment="pets", directory=tmp_path / "out", tags=tags):
            pass

    check("one", rings=True)
    assert last_check_rings(tracking.uri, "pets", "one")
    assert not last_check_rings(tracking.uri, "pets", "another"), "as a new champion is not what was checked"
    check("one", rings=False, monitored=False)
    assert last_check_rings(tracking.uri, "pets", "one"), "images that somebody chose are not what comes in"
    check("one", rings=False)
    assert not last_check_rings(tracking.uri, "pets", "one")
