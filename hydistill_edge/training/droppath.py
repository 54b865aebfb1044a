"""DropPath: a network trained as the many shallower ones that are in it.

In training, branches are left out at random, image by image; the network that is deployed has all
of them. `DroppedPaths` is the form of a network that trains so. It uses the network's own modules
and weights and adds nothing to it: the plain network can be judged, saved and exported at any time,
and knows nothing of this.

Source: Zhong and Liu 2025, "Towards Mitigating Architecture Overfitting on Distilled Datasets",
arXiv:2309.04195; in residual networks, Huang et al. 2016, arXiv:1603.09382.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hydistill_edge.errors import UsageError
from hydistill_edge.seeding import seeded
from hydistill_edge.training.blocks import Blocks, Bypass, find_blocks, trace


class _Dropping(nn.Module):
    """What both kinds of places share: the keep rate.

    It is a tensor too, so that a compiled network is not compiled anew for every rate.

    Attributes:
        keep: the share p of images that keep the branch. Other libraries take the share that loses
            it.
    """

    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.ones(()), persistent=False)
        self._keep = 1.0
        self._drops = False

    @property
    def keep(self) -> float:
        """The share of images that keep the branch."""
        return self._keep

    @keep.setter
    def keep(self, rate: float) -> None:
        self._keep, self._drops = rate, rate < 1.0
        self.share.fill_(rate)

    def mask(self, like: Tensor) -> Tensor:
        """Return ones for images that keep their branch and zeros for the others, (N, 1, 1, 1).

        Drawn from torch's global generator, which the training loop seeds, saves and puts back.
        """
        return torch.bernoulli(self.share.expand(len(like), 1, 1, 1))


class DropPath(_Dropping):
    """Leaves the branch of a residual block out for some images, and scales it up for the others.

    Its output is (m / p) · branch with m ~ Bernoulli(p) for each image, whose expectation is the
    branch. In eval mode, and at p = 1, it is the branch itself.
    """

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch (N, C, H, W) with some images at zero."""
        if not self.training or not self._drops:
            return branch
        return branch * (self.mask(branch) / self.share).to(branch.dtype)


class VirtualShortcut(_Dropping):
    """Goes around a unit of a single branch for some images; only in training.

    Its output is m · main + (1 - m) · around with m ~ Bernoulli(p) for each image: one of the two,
    so nothing is scaled. In eval mode, and at p = 1, it is the main path itself, and what is around
    is not computed. Around goes the input itself where the shapes are equal; else through max
    pooling, where the map shrinks, and a 1x1 convolution with norm, where the channels differ.

    Args:
        bypass: the shapes of what enters the unit and what leaves it.
    """

    def __init__(self, bypass: Bypass) -> None:
        super().__init__()
        self.size = bypass.leaving[1:] if bypass.entering[1:] != bypass.leaving[1:] else None
        inside, outside = bypass.entering[0], bypass.leaving[0]
        self.bring: nn.Module = nn.Identity()
        if inside != outside:
            conv = nn.Conv2d(inside, outside, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            self.bring = nn.Sequential(conv, nn.BatchNorm2d(outside))

    def forward(self, main: Tensor, entering: Tensor) -> Tensor:
        """Return the unit's output (N, C, H, W), of some images what went around."""
        if not self.training or not self._drops:
            return main
        # Where the sizes divide, this is pooling with windows as wide as their stride.
        pooled = entering if self.size is None else F.adaptive_max_pool2d(entering, self.size)
        return torch.where(self.mask(main) > 0, main, self.bring(pooled))


class DroppedPaths(nn.Module):
    """A network in the form that leaves branches out while it trains.

    Its own parameters are those of virtual shortcuts; those of the network are not among them, and
    both must be handed to an optimizer and set to train or eval mode. Make it after the network has
    been moved to its device.

    Args:
        network: in eval mode; takes normalised images and returns logits.
        example: normalised images on the network's device, shape (N, C, H, W).
        seed: of the weights of virtual shortcuts; torch's global generator is left as it was.

    Attributes:
        blocks: what was found in the network.
        units: one `DropPath` or `VirtualShortcut` per place.

    Raises:
        MethodError: the network's blocks cannot be told.
    """

    def __init__(self, network: nn.Module, example: Tensor, *, seed: int = 0) -> None:
        super().__init__()
        graph = trace(network, example)
        self.blocks: Blocks = find_blocks(graph)
        with seeded(seed):
            self.units = nn.ModuleList(
                [
                    *(DropPath() for _ in self.blocks.branches),
                    *(VirtualShortcut(bypass) for bypass in self.blocks.bypasses),
                ]
            )
        self.units.to(example.device)
        _insert(graph, self.blocks, self.units)
        # In a tuple, so that the network's weights do not count as this module's own.
        self._graph = (graph,)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalised images (N, C, H, W)."""
        logits: Tensor = self._graph[0](inputs)
        return logits

    @property
    def keep(self) -> float:
        """The keep rate of all places."""
        rates = {place.keep for place in self._places()}
        assert len(rates) == 1, "one rate is set for all"
        return rates.pop()

    def set_keep(self, rate: float) -> int:
        """Set the keep rate of every place, and return how many there are.

        Args:
            rate: share of images that keep a branch, in (0, 1].

        Raises:
            UsageError: the rate is out of range.
        """
        if not 0.0 < rate <= 1.0:
            raise UsageError(f"keep rate {rate}; expected a share in (0, 1]; 1 keeps all branches")
        places = self._places()
        for place in places:
            place.keep = rate
        assert len(places) == len(self.blocks), "every place that was found has its module"
        return len(places)

    def _places(self) -> list[_Dropping]:
        return [part for part in self.modules() if isinstance(part, _Dropping)]


def _insert(graph: fx.GraphModule, blocks: Blocks, units: nn.ModuleList) -> None:
    """Put the units into the graph, behind what ends each branch."""
    nodes = {node.name: node for node in graph.graph.nodes}
    for index, unit in enumerate(units):
        name = f"drop_path_{index}"
        graph.add_submodule(name, unit)
        if index < len(blocks.branches):
            total, end = (nodes[part] for part in blocks.branches[index])
            with graph.graph.inserting_after(end):
                made = graph.graph.call_module(name, (end,))
            total.replace_input_with(end, made)
            continue
        bypass = blocks.bypasses[index - len(blocks.branches)]
        end = nodes[bypass.end]
        with graph.graph.inserting_after(end):
            made = graph.graph.call_module(name, (end, nodes[bypass.start]))
        end.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
    graph.graph.lint()
    graph.recompile()
