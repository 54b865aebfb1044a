"""Where a network's branches are: found in the flow of its data, whatever its classes are called.

Three patterns are told, in this order:

- a sum of two maps, one of which went through more convolutions: the branch of a residual block;
- two maps put side by side, one of which went through convolutions while its other half went
  through none: the branch of a ShuffleNet unit;
- where there is neither, one line of convolutions: pairs of layers, the first one or two left out.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from hydistill_edge.errors import MethodError

REMEDY = "switch DropPath off (drop_path: false), which leaves all else of the method in place"

_SUMS = (operator.add, operator.iadd, torch.add)
_SUM_METHODS = ("add", "add_")


@dataclass(frozen=True)
class Bypass:
    """A unit of a single branch, and the shape of what would go around it.

    Attributes:
        start: name of the node whose output enters the unit.
        end: name of the node whose output leaves it.
        entering: shape (C, H, W) of what enters.
        leaving: shape (C, H, W) of what leaves.
    """

    start: str
    end: str
    entering: tuple[int, int, int]
    leaving: tuple[int, int, int]


@dataclass(frozen=True)
class Blocks:
    """What was found in a network.

    Attributes:
        branches: of residual blocks, in order: names of the sum and of the node that ends the
            branch.
        bypasses: units of a single branch, in order; empty where there are branches.
        depth: convolutions and linear layers on the longest way through.
    """

    branches: tuple[tuple[str, str], ...]
    bypasses: tuple[Bypass, ...]
    depth: int

    def __len__(self) -> int:
        return len(self.branches) + len(self.bypasses)


def trace(network: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return the network as a graph that uses its very modules and weights.

    Args:
        network: in eval mode, on the example's device.
        example: normalised images, shape (N, C, H, W).

    Raises:
        MethodError: its forward cannot be written as a graph, or the graph computes another thing.
    """
    try:
        graph = fx.symbolic_trace(network)
        with torch.no_grad():
            same = torch.equal(graph(example), network(example))
    except Exception as error:
        raise MethodError(
            f"the blocks of this student ({type(network).__name__}) cannot be told: its forward "
            f"cannot be written as a graph ({error}); expected one without branches that depend on "
            f"the data: {REMEDY}"
        ) from error
    if not same:
        raise MethodError(
            f"the blocks of this student ({type(network).__name__}) cannot be told: its forward "
            f"does not repeat itself, as with randomness outside of its layers; {REMEDY}"
        )
    ShapeProp(graph).propagate(example)
    return graph


def find_blocks(graph: fx.GraphModule) -> Blocks:
    """Return where the branches of a traced network are.

    Args:
        graph: made by `trace`.

    Raises:
        MethodError: none of the patterns is in it.
    """
    nodes = list(graph.graph.nodes)
    flow = _Flow(graph, nodes)
    branches = tuple(found for node in nodes if (found := flow.branch_of_sum(node)))
    bypasses: tuple[Bypass, ...] = ()
    if not branches:
        bypasses = tuple(unit for node in nodes if (unit := flow.branch_beside_half(node)))
        bypasses = bypasses or flow.pairs_in_line()
    if not branches and not bypasses:
        raise MethodError(
            f"the blocks of this student cannot be told: among its {len(flow.convs)} convolutions "
            "there is no residual block, and they are not one line of at least three; " + REMEDY
        )
    return Blocks(branches, bypasses, flow.depth())


class _Flow:
    """Who comes from whom in a graph, and which nodes are convolutions."""

    def __init__(self, graph: fx.GraphModule, nodes: list[fx.Node]) -> None:
        self._nodes = nodes
        self._modules = dict(graph.named_modules())
        self.convs = [node for node in nodes if self._is(node, nn.Conv2d, F.conv2d)]
        self._conv_set = set(self.convs)
        self._above: dict[fx.Node, set[fx.Node]] = {}
        for node in nodes:
            inputs = node.all_input_nodes
            self._above[node] = {node}.union(*(self._above[one] for one in inputs))

    def _is(self, node: fx.Node, layer: type[nn.Module], function: object) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules[str(node.target)], layer)
        return node.op == "call_function" and node.target is function

    def _own(self, node: fx.Node, other: fx.Node) -> set[fx.Node]:
        """Return what a node comes from and another one does not."""
        return self._above[node] - self._above[other]

    def branch_of_sum(self, node: fx.Node) -> tuple[str, str] | None:
        """Return (sum, end of its branch) where a node adds a branch to a shortcut."""
        is_sum = (node.op == "call_function" and node.target in _SUMS) or (
            node.op == "call_method" and node.target in _SUM_METHODS
        )
        pair = [one for one in node.args[:2] if isinstance(one, fx.Node)]
        if not is_sum or len(pair) < 2 or _map(pair[0]) is None or _map(pair[0]) != _map(pair[1]):
            return None
        counts = [
            len(self._own(one, other) & self._conv_set) for one, other in (pair, (pair[1], pair[0]))
        ]
        if counts[0] == counts[1] or min(counts) > 1:
            return None  # neither is a shortcut
        return node.name, pair[counts.index(max(counts))].name

    def branch_beside_half(self, node: fx.Node) -> Bypass | None:
        """Return the branch of a node that puts it beside a half that went through nothing."""
        if node.op != "call_function" or node.target is not torch.cat:
            return None
        parts = node.args[0]
        if not isinstance(parts, list | tuple) or len(parts) != 2:
            return None
        for end, half in (parts, parts[::-1]):
            if not isinstance(end, fx.Node) or not isinstance(half, fx.Node):
                return None
            own = self._own(end, half)
            starts = [one for one in own if not own & set(one.all_input_nodes)]
            if own & self._conv_set and not self._own(half, end) & self._conv_set:
                entering, leaving = _map(starts[0]), _map(end)
                if len(starts) == 1 and entering is not None and entering == leaving:
                    return Bypass(starts[0].name, end.name, entering, leaving)
        return None

    def pairs_in_line(self) -> tuple[Bypass, ...]:
        """Return pairs of layers where all convolutions stand in one line.

        The first convolution is left out where their number is odd, and the first two where it is
        even, as published for AlexNet and VGG-11.
        """
        line = self._line()
        places = [line.index(conv) for conv in self.convs if conv in line]
        if len(places) < max(3, len(self.convs)):
            return ()
        front = 2 - len(places) % 2
        ends = [*places[1:], len(line)]
        found = []
        firsts, seconds = range(front, len(places), 2), range(front + 1, len(places), 2)
        for first, second in zip(firsts, seconds, strict=True):
            start, end = line[places[first] - 1], line[places[second]]
            for node in line[places[second] + 1 : ends[second]]:
                if _map(node) != _map(line[places[second]]):
                    break  # a pooling belongs to what comes after
                end = node
            entering, leaving = _map(start), _map(end)
            if entering is not None and leaving is not None:
                found.append(Bypass(start.name, end.name, entering, leaving))
        return tuple(found)

    def _line(self) -> list[fx.Node]:
        """Return the nodes from the input on, up to the first that has not one user only."""
        node = next(node for node in self._nodes if node.op == "placeholder")
        line = [node]
        while len(node.users) == 1 and _map(node) is not None:
            node = next(iter(node.users))
            line.append(node)
        return line

    def depth(self) -> int:
        """Return the convolutions and linear layers on the longest way through."""
        deepest: dict[fx.Node, int] = {}
        for node in self._nodes:
            above = max((deepest[one] for one in node.all_input_nodes), default=0)
            counts = node in self._conv_set or self._is(node, nn.Linear, F.linear)
            deepest[node] = above + counts
        return max(deepest.values())


def _map(node: fx.Node) -> tuple[int, int, int] | None:
    """Return the shape (C, H, W) of a node's output, None where it is no feature map."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    if shape is None or len(shape) != 4:
        return None
    return (int(shape[1]), int(shape[2]), int(shape[3]))
