"""What others do with aliases and versions, without the ledger: it is noted, and respected."""

from dataclasses import replace

import pytest
from deciding import aliases, decide, decision, interrupted
from mlflow import MlflowClient

from graftline.errors import UserError
from graftline.tracking.ledger import Kind
from graftline.tracking.names import BUNDLE_DIGEST
from graftline.tracking.promotions import Promotions
from graftline.tracking.refused import find_refused
from graftline.tracking.standing import bundle_digests
from graftline.tracking.tracking import Tracking


def model_of_bundles(client: MlflowClient, made: str) -> None:
    """Register the model pets with four versions, whose bundles are of this making."""
    client.create_registered_model("pets")
    for number in range(1, 5):
        tags = {BUNDLE_DIGEST: f"{made} {number}"}
        client.create_model_version("pets", "file:///nowhere", tags=tags, await_creation_for=0)


@pytest.mark.parametrize("is_first", [True, False])
def test_interrupted_before_it_was_noted_and_then_moved_back_by_hand(
    pets: Promotions, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """The next command that reads the ledger notes it, and from then on the alias is the user's."""
    if not is_first:
        decide(pets, "promoted", 1)
    before = pets.read().champion
    line = pets.append(pets.read_sound(), decision(pets, "promoted", 2))
    with monkeypatch.context() as patch:
        patch.setattr(Promotions, "_note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pets.finish(line)
    standing = pets.read()
    assert (standing.champion, standing.unfinished, standing.interrupted) == (2, line, None)
    assert pets.read_sound().unfinished is None
    if before is None:
        client.delete_registered_model_alias("pets", "champion")
    else:
        client.set_registered_model_alias("pets", "champion", "1")
    for _ in range(2):
        standing = pets.read_sound()
        assert standing.champion == before
        assert [line.decision.kind for line in standing.lines[-2:]] == ["promoted", "moved by hand"]


def test_moved_by_hand_to_a_third_version_while_a_decision_was_unfinished(
    pets: Promotions, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(pets, "promoted", 1)
    pets.append(pets.read_sound(), decision(pets, "promoted", 2))
    client.set_registered_model_alias("pets", "champion", "3")
    assert pets.read_sound().champion == 3
    client.set_registered_model_alias("pets", "champion", "1")  # where the unfinished one began
    standing = pets.read_sound()
    assert [line.decision.kind for line in standing.lines[2:]] == ["moved by hand", "moved by hand"]
    assert standing.champion == 1
    assert "It was interrupted" not in capsys.readouterr().out


def test_an_alias_that_was_moved_back_by_hand_stays_there(pets: Promotions, client: MlflowClient) -> None:
    decide(pets, "promoted", 1)
    decide(pets, "promoted", 2)
    client.set_registered_model_alias("pets", "champion", "1")
    standing = pets.read()
    assert standing.was_moved_by_hand
    assert standing.interrupted is None, "its line is done"
    standing = pets.read_sound()
    assert standing.champion == 1
    assert standing.lines[-1].decision.kind == "moved by hand"
    assert standing.lines[-1].decision.reasons == ("The alias 'champion' was set to version 1 by hand.",)
    assert not standing.was_moved_by_hand
    assert len(pets.read_sound().lines) == 3, "it is noted once"


def test_an_alias_that_is_older_than_the_ledger_or_gone(pets: Promotions, client: MlflowClient) -> None:
    client.set_registered_model_alias("pets", "champion", "2")
    assert pets.read_sound().lines[0].decision.after == 2
    client.delete_registered_model_alias("pets", "champion")
    standing = pets.read_sound()
    assert standing.lines[-1].decision.why == "The alias 'champion' was removed from version 2 by hand."
    assert standing.predecessors == [2], "with which the next one is compared"


def test_a_champion_that_was_deleted(pets: Promotions, client: MlflowClient) -> None:
    decide(pets, "promoted", 1)
    decide(pets, "promoted", 2)
    client.delete_model_version("pets", "2")
    standing = pets.read_sound()
    assert standing.lines[-1].decision.why == "Version 2 was deleted from the registry."
    assert (standing.champion, standing.predecessors) == (None, [1])
    with pytest.raises(UserError, match=r"^The registered model 'pets' has no version 2: there are 1, 3, 4\.$"):
        standing.version(2)


def test_a_version_that_was_deleted_before_its_alias_moved(
    pets: Promotions, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(pets, "promoted", 1)
    late = pets.append(pets.read_sound(), decision(pets, "promoted", 2))
    client.delete_model_version("pets", "2")
    with pytest.raises(UserError, match=r"^Version 2 of pets was deleted before it became champion \(line 2 "):
        pets.finish(late)
    pets.finish(late)
    standing = pets.read_sound()
    assert (standing.champion, standing.lines[-1].decision.why) == (1, "Version 2 was deleted from the registry.")
    assert "It was interrupted" not in capsys.readouterr().out
    decide(pets, "promoted", 3)
    assert aliases(pets) == {"champion": 3, "previous": 1}


def test_another_version_with_the_number_of_one_that_was_deleted_does_not_become_champion(
    tracking: Tracking, client: MlflowClient
) -> None:
    pets = Promotions(tracking, "pets")

    model_of_bundles(client, "old")
    digests = bundle_digests(pets.read().version(1), None)
    pets.append(pets.read_sound(), replace(decision(pets, "promoted", 1), digests=digests))
    client.delete_registered_model("pets")
    model_of_bundles(client, "new")
    assert pets.read_sound().champion is None


def test_a_model_made_anew_has_none_of_the_decisions_on_the_one_that_was_deleted(
    tracking: Tracking, client: MlflowClient
) -> None:
    """Its versions are counted from 1 again, and its ledger stays."""
    pets = Promotions(tracking, "pets")

    def decide_on(kind: Kind, number: int) -> None:
        standing = pets.read_sound()
        before = None if standing.champion is None else standing.version(standing.champion)
        digests = bundle_digests(standing.version(number), before)
        pets.finish(pets.append(standing, replace(decision(pets, kind, number), digests=digests)))

    model_of_bundles(client, "old")
    steps: list[tuple[Kind, int]] = [("promoted", 1), ("promoted", 2), ("rolled back", 1), ("refused", 3)]
    for kind, number in steps:
        decide_on(kind, number)
    standing = pets.read_sound()
    assert (standing.former_champions, standing.rollback_of(2)) == ({1, 2}, standing.lines[2])
    assert standing.lines_of(3) == [standing.lines[3]]
    assert [one.version for one in find_refused(tracking, "pets")] == [3]
    client.delete_registered_model("pets")
    model_of_bundles(client, "new")
    standing = pets.read_sound()
    assert standing.lines[-1].decision.why == "Version 1 was deleted from the registry."
    assert (standing.former_champions, standing.predecessors, standing.rollback_of(2)) == (set(), [], None)
    assert [standing.lines_of(number) for number in (1, 2, 3)] == [[]] * 3
    assert find_refused(tracking, "pets") == []
    decide_on("promoted", 2)
    assert pets.read_sound().former_champions == {2}
