"""Write the packaged weights in the forms that the peers read: timm's names of tensors, and AutoGluon's folder."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from graftline.backbones.loading import create_pretrained
from graftline.backbones.weights import locate

ARCHITECTURE = "tf_efficientnet_lite0"


def write_weights(folder: Path) -> Path:
    """Write the weights unless they are there; returns the folder."""
    file, saved = folder / f"{ARCHITECTURE}.safetensors", folder / ARCHITECTURE
    if (saved / "config.json").exists():
        return folder
    weights = locate(ARCHITECTURE, "packaged", None)
    assert weights is not None, "the package is a dependency"
    network: Any = create_pretrained(ARCHITECTURE, weights, {})
    saved.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    save_file(state, file)
    torch.save({name: value for name, value in state.items() if "classifier" not in name}, saved / "pytorch_model.bin")
    config = {"architecture": ARCHITECTURE, "num_features": network.num_features}
    config["pretrained_cfg"] = {**network.pretrained_cfg, "num_classes": 0}
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
