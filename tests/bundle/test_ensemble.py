"""An ensemble is a bundle: saved, loaded, verified and damaged like one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import change_description, tabulate

from graftline.backbones.backbone import Backbone
from graftline.bundle.ensemble import Ensemble, common_decoding, load_predictor, save_ensemble
from graftline.bundle.grid import log_softmax
from graftline.bundle.images import ImageLike
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import add_to_card, save_bundle
from graftline.bundle.verify import find_problem, verify_bundle
from graftline.data.decoding import DecodeSettings, Decoding
from graftline.errors import UserError
from graftline.execution import Execution

SHARES = (0.25, 0.75)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with another image size and another order of classes."""
    torch.manual_seed(1)
    graft = Backbone("test_efficientnet", weights="none", image_size=48).build(3)
    return save_bundle(
        tmp_path_factory.mktemp("smaller") / "bundle",
        graft.network,
        timm_name="test_efficientnet",
        class_names=["cat", "ant", "bee/wasp"],
        preprocessing=graft.preprocessing,
        card={},
    )


@pytest.fixture(scope="module")
def saved(bundle: Path, smaller: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ensembles") / "bundle"
    return save_ensemble(directory, [bundle, smaller], SHARES, "5", {"dataset_digest": "0123456789abcdef"})


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "bundle")


def load(directory: Path) -> Ensemble:
    ensemble = load_predictor(directory)
    assert isinstance(ensemble, Ensemble)
    return ensemble


def test_it_predicts_the_weighted_mean_of_its_members(saved: Path, bundle: Path, smaller: Path) -> None:
    files = sorted((bundle / "golden" / "images").iterdir())
    alone = [
        load_predictor(save_ensemble(saved.parent / name, [member], [1.0], "5", {})).predict(files)
        for name, member in (("first", bundle), ("second", smaller))
    ]
    ensemble = load(saved)
    expected = SHARES[0] * alone[0] + SHARES[1] * alone[1][:, [1, 2, 0]]
    np.testing.assert_allclose(ensemble.predict(files), expected, atol=1e-6)
    assert ensemble.class_names == ("ant", "bee/wasp", "cat")
    assert ensemble.card == {"dataset_digest": "0123456789abcdef"}
    table = tabulate(ensemble, files)
    assert list(table.columns[:3]) == ["path", "class", "probability"]
    probabilities, reasons = ensemble.predict_readable([files[0], b"", files[1]])
    assert list(reasons) == [1]
    np.testing.assert_allclose(probabilities[[0, 2]], expected[:2], atol=1e-6)


def test_its_embeddings_are_those_of_its_first_member(saved: Path, bundle: Path) -> None:
    """Of the center, which is the first of its five crops; whether they are asked for changes no answer."""
    files = sorted((bundle / "golden" / "images").iterdir())
    images: list[ImageLike] = [files[0], b"", *files[1:]]
    _, expected = Predictor.from_directory(bundle).logits_and_embeddings(files)
    (plain,), (found,) = (list(load(saved).stream(images, 1000, embed=embed)) for embed in (False, True))
    assert plain.embeddings is None
    assert found.embeddings is not None
    assert np.isnan(found.embeddings[1]).all()
    np.testing.assert_allclose(np.delete(found.embeddings, 1, axis=0), expected, atol=1e-5)
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)


def test_it_predicts_the_mean_of_logits_where_that_was_asked(
    saved: Path, bundle: Path, smaller: Path, tmp_path: Path
) -> None:
    files = sorted((bundle / "golden" / "images").iterdir())
    directory = save_ensemble(tmp_path / "logits", [bundle, smaller], SHARES, "1", {}, average="logits")
    ensemble = load(directory)
    alone = [Predictor.from_directory(folder).logits(files) for folder in (bundle, smaller)]
    expected = SHARES[0] * alone[0] + SHARES[1] * alone[1][:, [1, 2, 0]]
    np.testing.assert_allclose(log_softmax(ensemble.logits(files)), log_softmax(expected), rtol=1e-4, atol=1e-4)
    assert verify_bundle(directory).problem is None
    change_description(directory, average="probabilities")
    assert "bundle.json" in verify_bundle(directory).damaged, "it names what it computes"


def test_one_of_an_earlier_graftline_averages_probabilities(copy: Path) -> None:
    before = load(copy)
    change_description(copy, format=4, average=None)
    assert (load(copy).average, load(copy).digest) == ("probabilities", before.digest)
    assert verify_bundle(copy).problem is None


def test_one_member_and_crop_are_bit_for_bit_the_member(bundle: Path, tmp_path: Path) -> None:
    files = sorted((bundle / "golden" / "images").iterdir())
    ensemble = load(save_ensemble(tmp_path / "one", [bundle], [1.0], "1", {}))
    np.testing.assert_array_equal(ensemble.logits(files), Predictor.from_directory(bundle).logits(files))


def test_its_digest_names_what_it_computes(saved: Path, copy: Path, bundle: Path, smaller: Path) -> None:
    digest = load(saved).digest
    add_to_card(copy, metrics={"accuracy": 0.9})
    assert load(copy).digest == digest
    others = [
        save_ensemble(copy.parent / f"{number}", [bundle, smaller], shares, crops, {})
        for number, (shares, crops) in enumerate([((0.5, 0.5), "5"), (SHARES, "10")])
    ]
    assert len({digest, *(load(other).digest for other in others)}) == 3


def test_it_is_verified_with_its_members(saved: Path) -> None:
    verification = verify_bundle(saved)
    assert verification.problem is None
    assert verification.largest_probability_change == 0
    assert find_problem(load(saved), saved, Execution()) is None
    torchs = verify_bundle(saved, "torch")
    assert "torch_engine" in str(load_predictor(saved, "torch").members[0].engine)  # type: ignore[union-attr]
    assert torchs.problem is None
    assert torchs.largest_probability_change < 1e-4


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("members/2/model.onnx", "members/2/model.onnx"),
        ("golden/logits.npy", "golden/logits.npy"),
        ("members/1/golden/values.npz", "members/1/golden/values.npz"),
    ],
)
def test_damage_is_named(copy: Path, file: str, named: str) -> None:
    content = bytearray((copy / file).read_bytes())
    content[-1] ^= 1
    (copy / file).write_bytes(content)
    if "model" in file:
        with pytest.raises(UserError, match=rf"{named} is not what was saved"):
            load(copy)
        with pytest.raises(UserError, match=rf"{named} of this bundle is not what was saved"):
            verify_bundle(copy)
    else:
        assert named in str(verify_bundle(copy).problem)


def test_another_member_in_its_place_is_refused(copy: Path, bundle: Path) -> None:
    shutil.rmtree(copy / "members" / "2")
    shutil.copytree(bundle, copy / "members" / "2")
    with pytest.raises(UserError, match="members/2 is not the member that was saved"):
        load(copy)
    shutil.rmtree(copy / "members" / "2")
    with pytest.raises(UserError, match=r"members/2 is not a bundle"):
        load(copy)


def test_probabilities_that_have_changed_are_a_problem(copy: Path) -> None:
    file = copy / "golden" / "logits.npy"
    np.save(file, np.load(file)[:, ::-1])
    assert verify_bundle(copy).largest_probability_change > 0.01
    record = copy / "golden" / "golden.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({"environment": {**content["environment"], "numpy": "1.0"}}))
    problem = find_problem(load(copy), copy, Execution())
    assert problem is not None
    assert "is not what was saved" in problem


def test_another_share_is_refused(copy: Path) -> None:
    first, second = json.loads((copy / "bundle.json").read_text())["members"]
    change_description(copy, members=[{**first, "share": 0.75}, {**second, "share": 0.25}])
    with pytest.raises(UserError, match=r"bundle\.json is not what was saved: copy or save the ensemble again"):
        load(copy)


def test_descriptions_that_cannot_be_are_refused(copy: Path) -> None:
    change_description(copy, crops="d4")
    assert "bundle.json" in verify_bundle(copy).damaged
    change_description(copy, format=7)
    with pytest.raises(UserError, match=r"has format 7, but this version of graftline reads .* of formats 4 to 6"):
        load(copy)
    change_description(copy, format=5, crops=None)
    with pytest.raises(UserError, match=r"is damaged \(it has no 'crops'\)"):
        load(copy)


def test_a_low_limit_on_pixels_does_not_refuse_golden_images(bundle: Path, tmp_path: Path) -> None:
    member = shutil.copytree(bundle, tmp_path / "member")
    change_description(member, decoding=Decoding(max_pixels=2000).to_dict())
    ensemble = save_ensemble(tmp_path / "bundle", [member, member], SHARES, "1", {})
    assert load(ensemble).decoding.max_pixels == 2000
    assert verify_bundle(ensemble).problem is None


def test_members_that_decode_otherwise_are_refused(bundle: Path) -> None:
    member = Predictor.from_directory(bundle)
    other = replace(member, decoding=Decoding(DecodeSettings(range=(0, 4000))))
    with pytest.raises(UserError, match="two decodes images with other settings than one"):
        common_decoding([member, other], ["one", "two"])
