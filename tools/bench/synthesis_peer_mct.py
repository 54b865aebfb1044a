"""Make images with Sony MCT, in its own environment: the other half of `synthesis_peer.py`.

    PEER_PYTHON tools/bench/synthesis_peer_mct.py FOLDER

FOLDER holds `request.json`, `weights.npz` and `probe.npy`; `images.npz` and `answer.json` are
written into it. Of the project, only the file of network classes is imported, which needs torch
alone. Everything that the request does not name is MCT's default.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import random
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hydistill_edge.models.zoo import create_network  # after the path

PACKAGES = ("model-compression-toolkit", "torch", "torchvision", "numpy")
# What MCT's pipeline normalizes by (its default, "torchvision"); pixels in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FromTorchvision(nn.Module):
    """A network of (pixel - 128) / 64 that is given torchvision's normalization."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        self.register_buffer("scale", 255.0 * std / 64.0)
        self.register_buffer("shift", (255.0 * mean - 128.0) / 64.0)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def read_network(folder: Path, request: dict[str, Any]) -> nn.Module:
    """Return the network with its weights, in eval mode."""
    network = create_network(
        request["architecture"],
        classes=request["classes"],
        channels=3,
        size=tuple(request["size"]),
        width=request["width"],
    )
    with np.load(folder / "weights.npz") as weights:
        network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return FromTorchvision(network).eval()


def normalized(pixels: Any) -> Tensor:
    """Return uint8 pixels (N, H, W, 3) as MCT sees images: (N, 3, H, W)."""
    shares = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    return (shares - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def to_pixels(images: Tensor) -> Any:
    """Return the nearest uint8 pixels (N, H, W, 3) of normalized images (N, 3, H, W)."""
    shares = images.float() * torch.tensor(STD).view(1, 3, 1, 1)
    shares = shares + torch.tensor(MEAN).view(1, 3, 1, 1)
    return (shares * 255.0).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def plain(value: Any) -> Any:
    """Return a setting as JSON can hold it."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if isinstance(value, int | float | str | None) else value.__name__


def main() -> None:
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    # This process is one draw; MCT takes its noise from the global generators.
    seed = request["seed"]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    network = read_network(folder, request)
    with torch.inference_mode():
        logits = network(normalized(np.load(folder / "probe.npy"))).numpy()

    generation = importlib.import_module("model_compression_toolkit").data_generation
    config = generation.get_pytorch_data_generation_config(n_iter=request["iterations"])
    config.data_gen_batch_size = min(config.data_gen_batch_size, request["count"])
    began, began_cpu = time.perf_counter(), time.process_time()
    made = generation.pytorch_data_generation_experimental(
        model=network,
        n_images=request["count"],
        output_image_size=tuple(request["size"]),
        data_generation_config=config,
    )
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu

    np.savez(folder / "images.npz", images=to_pixels(torch.cat(made)), probe_logits=logits)
    answer = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "settings": {name: plain(value) for name, value in vars(config).items()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
