"""Is `precision: auto` ever slower than the better one of float32 and bf16, on one thread?

Forward and backward of a batch, by the processor's time of this process, the three in turns and the
quickest of the rounds, at 32 and 64 px. `auto` decides convolution by convolution; its rule was
fixed on the networks of FITTED and on single layers, and is judged on the others. Where it leaves
no convolution in float32 it computes what bf16 does, operation by operation: the quicker one of
both times then counts for both, and `noise` tells how far they lay apart. A CPU without bfloat16
has nothing to choose, and is refused. About five minutes on a quiet machine.

    OMP_NUM_THREADS=1 python tools/bench/precision.py
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from hydistill_edge.models.architectures import build_network
from hydistill_edge.targets.gates import at_most
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.packages import version
from hydistill_edge.training.precision import (
    Precision,
    autocast,
    has_native_bf16,
    is_slow_in_bf16,
)

RESULT = Path(__file__).parent / "results" / "precision.json"
LIMIT = 1.10
SIDES, BATCH = (32, 64), 64
SEED = 0
CPU = torch.device("cpu")

FITTED = (
    ("zoo:resnet8", 1.0),
    ("zoo:mobilenet_v2", 0.5),
    ("zoo:mobilenet_v3_small", 1.0),
    ("zoo:efficientnet_b0", 0.25),
    ("zoo:shufflenet_v2", 1.0),
)
JUDGED = (
    ("zoo:wrn16_2", 1.0),
    ("zoo:vgg8_bn", 0.5),
    ("zoo:resnet50", 0.25),
    ("torchvision:mobilenet_v3_large", None),
    ("torchvision:mnasnet0_5", None),
    ("torchvision:regnet_x_400mf", None),
    ("torchvision:regnet_y_400mf", None),
)


def network(architecture: str, width: float | None, side: int) -> nn.Module:
    """Return a network with fresh weights, in training mode."""
    options = {} if width is None else {"width": width}
    made = build_network(
        architecture, classes=10, channels=3, size=(side, side), options=options, base=None
    )
    return made.to(memory_format=torch.channels_last).train()


def step(net: nn.Module, images: Tensor, precision: Precision) -> float:
    """Return the seconds of one forward and backward."""
    net.zero_grad(set_to_none=True)
    began = time.process_time()
    with autocast(CPU, precision):
        loss = net(images).float().square().mean()
    torch.autograd.backward(loss)
    return time.process_time() - began


def row(architecture: str, width: float | None, side: int, rounds: int) -> dict[str, Any]:
    """Return what one network takes at one size."""
    net = network(architecture, width, side)
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand((BATCH, 3, side, side), generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {name: [] for name in get_args(Precision)}
    for number in range(rounds + 1):
        for name, times in seconds.items():
            taken = step(net, images, name)  # type: ignore[arg-type]
            if number:  # the first round fills the caches
                times.append(taken)
    ms = {name: round(1000 * min(times) / BATCH, 3) for name, times in seconds.items()}
    return {
        "network": architecture,
        "width": width,
        "side_px": side,
        "batch": BATCH,
        "ms_per_image": ms,
        **ratios(ms, convolutions := choice(net, images)),
        "convolutions": convolutions,
    }


def ratios(ms: dict[str, float], convolutions: dict[str, int]) -> dict[str, float | None]:
    """Return who is how much slower than whom.

    Args:
        ms: milliseconds by precision.
        convolutions: that `auto` computes in either format.
    """
    auto, bf16, noise = ms["auto"], ms["bf16"], None
    if not convolutions["float32"]:
        noise = round(max(auto, bf16) / min(auto, bf16), 3)
        auto = bf16 = min(auto, bf16)
    return {
        "bf16_over_float32": round(bf16 / ms["float32"], 3),
        "auto_over_float32": round(auto / ms["float32"], 3),
        "auto_over_better": round(auto / min(bf16, ms["float32"]), 3),
        "noise": noise,
    }


@torch.no_grad()
def choice(net: nn.Module, images: Tensor) -> dict[str, int]:
    """Return how many convolutions `auto` computes in which format."""
    found = {"float32": 0, "bf16": 0}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        slow = layer.groups > 1 and is_slow_in_bf16(
            layer.kernel_size,
            layer.stride,
            per_group=layer.weight.shape[1],
            side=min(inputs[0].shape[2:]),
        )
        assert output.dtype == (torch.float32 if slow else torch.bfloat16)
        found["float32" if slow else "bf16"] += 1

    convolutions = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    hooks = [part.register_forward_hook(look) for part in convolutions]
    with autocast(CPU):
        net(images[:2])
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not has_native_bf16(CPU):
        parser.error("this CPU has no bfloat16; auto is float32 here")
    began = time.perf_counter()
    halves = {
        name: [row(*kind, side, given.rounds) for kind in kinds for side in SIDES]
        for name, kinds in (("fitted", FITTED), ("judged", JUDGED))
    }
    result = told(halves, rounds=given.rounds, wall_s=time.perf_counter() - began)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result["answer"])


def told(halves: dict[str, list[dict[str, Any]]], *, rounds: int, wall_s: float) -> dict[str, Any]:
    """Return the result file of both halves' rows."""
    worst = {
        name: max(rows, key=lambda found: found["auto_over_better"])
        for name, rows in halves.items()
    }
    gates = [
        at_most(f"auto over the better one, {name}", found["auto_over_better"], LIMIT, unit="times")
        for name, found in worst.items()
    ]
    slow = max((r for rows in halves.values() for r in rows), key=lambda r: r["bf16_over_float32"])
    last = worst["judged"]
    return {
        "schema_version": 1,
        "question": (__doc__ or "").splitlines()[0],
        "answer": f"auto takes at most {last['auto_over_better']:.2f} times the better one on the "
        f"networks that it was not fitted to ({last['network']}, {last['side_px']} px); bf16 takes "
        f"up to {slow['bf16_over_float32']:.2f} times float32 ({slow['network']})",
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.to_dict() for gate in gates],
        "results": {"time": "of the processor, one thread", "rounds": rounds, **halves},
        "conditions": read_conditions(
            threads=1, versions={name: version(name) for name in ("torch", "torchvision")}
        ),
        "seeds": [SEED],
        "wall_s": round(wall_s, 1),
    }


if __name__ == "__main__":
    main()
