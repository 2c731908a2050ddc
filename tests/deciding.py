"""Decisions on a registered model, made without a gate."""

from mlflow import MlflowClient

from graftline.tracking import promotions as module
from graftline.tracking.ledger import ChampionDecision, Kind, LedgerLine
from graftline.tracking.promotions import Promotions, author


def register(client: MlflowClient, name: str, versions: int) -> None:
    """Register a model of so many versions."""
    client.create_registered_model(name)
    run = client.create_run("0").info
    for _ in range(versions):
        client.create_model_version(name, str(run.artifact_uri), run.run_id, await_creation_for=0)


def decision(promotions: Promotions, kind: Kind, version: int) -> ChampionDecision:
    """Return a decision on a version, of now."""
    champion = promotions.read().champion
    after = champion if kind == "refused" else version
    return ChampionDecision(
        promotions.model, kind, version, champion, after, author(), module.now(), champion, ("Because.",)
    )


def decide(promotions: Promotions, kind: Kind, version: int) -> LedgerLine:
    """Write a decision and draw its consequences."""
    standing = promotions.read_sound()
    line = promotions.append(standing, decision(promotions, kind, version))
    promotions.finish(line)
    return line


def aliases(promotions: Promotions) -> dict[str, int]:
    return promotions.read().aliases


def interrupted(*_arguments: object) -> None:
    """Stand for a call that Ctrl-C or a kill ends."""
    raise KeyboardInterrupt
