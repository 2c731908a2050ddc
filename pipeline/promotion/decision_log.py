"""What is logged of a decision on a challenger: a run of its own, with each guard, and the images that turn wrong."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from graftline.evaluation.gate import Gate
from graftline.files import sha256_file, write_json
from graftline.pipeline.promotion.examination import Examined
from graftline.report.gate_tables import gate_markdown
from graftline.tracking.ledger import ChampionDecision

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


def log_decision(
    run: "Run", decision: ChampionDecision, examined: Examined, gate: Gate, directory: Path
) -> ChampionDecision:
    """Write and log what was found; returns the decision with the digest of the file that has all of it.

    Args:
        run: of the decision.
        decision: what is decided.
        examined: what was found.
        gate: that decides.
        directory: gets the files.
    """
    result = examined.result
    file = directory / "verdict.json"
    guards = [asdict(guard) for guard in result.guards]
    write_json(file, {**asdict(decision), "compared": result.compared, "guards": guards, "gate": asdict(gate)})
    examined.flips_table(directory / "flips.csv")
    for path in (file, directory / "flips.csv", *_draw_flips(decision, examined, directory)):
        run.log_artifact(path)
    config: dict[str, Any] = {"gate": asdict(gate), "challenger": decision.version}
    run.log_params({**config, "champion": decision.compared_with}, yaml.safe_dump(config))
    run.log_metrics(
        {f"difference/{guard.name}": guard.figures[0] for guard in result.guards if guard.told and guard.figures}, 0
    )
    run.describe("\n\n".join([f"**{decision.kind}**", *result.reasons, result.compared, gate_markdown(result.guards)]))
    return replace(decision, digests={**(decision.digests or {}), "verdict": sha256_file(file)})


def _draw_flips(decision: ChampionDecision, examined: Examined, directory: Path) -> list[Path]:
    """Draw the images that turn from right to wrong, if there are any; returns the file."""
    flips, images = examined.result.flips, examined.images
    if images is None or flips.empty:
        return []
    from graftline.report.flips_figure import flips_figure  # matplotlib takes a second
    from graftline.report.style import save

    title = f"version {decision.compared_with} is right, version {decision.version} answers as it says in red"
    figure = flips_figure(flips, examined.result.num_images, title, images.decoding)
    return [save(figure, directory / "flips.png")]
