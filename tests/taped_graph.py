"""A stand-in for CUDA graphs on the CPU: a tape of operations, replayed without running the model's code."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.speed.step_graph import Snapshot


class Tape(TorchDispatchMode):
    """Records the operations inside `with`, on the tensors they had; reading a number from one is refused."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
            for place, value in zip(tensors(result), tensors(again), strict=True):
                if place.untyped_storage().data_ptr() not in given:  # else a view, or done in place
                    place.copy_(value)


def tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class TapedCapture:
    """Stands in for `step_graph.capture_graph`. `tapes`: one of each recording."""

    def __init__(self):
        self.tapes: list[Tape] = []

    def __call__(self, step, side):
        model = step.__self__
        groups = [group for optimizer in model.optimizers.values() for group in optimizer.param_groups]
        assert all(isinstance(group["lr"], Tensor) and group["capturable"] for group in groups)
        before = Snapshot(model)  # a tape runs what it records, a graph does not
        with Tape() as tape:
            step()
        before.restore()
        self.tapes.append(tape)
        return tape.replay
