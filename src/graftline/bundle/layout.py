"""The files of a bundle. ``model.safetensors`` and ``config.json`` beside them are timm's own layout."""

FORMAT = 1  # of bundle.json; raise it when a predictor of today could not read tomorrow's
ONNX_FILE = "model.onnx"
CARD_FILE = "bundle.json"
INPUT, OUTPUT = "image", "logits"  # of the ONNX network: (B, C, H, W) float32 → (B, K) float32
