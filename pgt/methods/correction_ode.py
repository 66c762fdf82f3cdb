"""GC-ODE: branches of neural ODEs beside the stages of a network, which carry gradient from each hidden state to the
one before it.

Source: "Gradient Correction beyond Gradient Descent", arXiv 2203.08345, which its authors withdrew because it describes
the module unclearly. docs/correction.md tells what the source states and what is chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgt.core.types import ADDED_BRANCHES, BRANCHES, Alteration, Schedule
from pgt.methods.stages import Stage, find_stages, stage_between

GROUPS = 32
"""The most groups of a branch's group norm, which needs no batch statistics."""


class UnitConvolution(nn.Module):
    """A convolution without bias whose filters have the norm 1, whatever the lengths of its weights.

    Only their directions are learnt. In the mode `gradient` no value of the forward pass depends on a branch, so that
    nothing would keep longer filters from growing without end.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.padding = size // 2

    def filters(self) -> Tensor:
        filters: Tensor = self.weight / torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        return filters

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters(), padding=self.padding)


class TimeConvolution(UnitConvolution):
    """A 3×3 convolution of [N, C, H, W] with the time as one more channel, the last one.

    That channel is constant, so that its share is the time times one map, [C, H, W], for the whole batch: this saves
    the concatenation, and C stays a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels + 1, channels, 3)

    def forward(self, x: Tensor, t: float | Tensor = 0.0) -> Tensor:
        filters = self.filters()
        map_of_time = F.conv2d(x.new_ones(1, 1, *x.shape[2:]), filters[:, -1:], padding=self.padding)
        return F.conv2d(x, filters[:, :-1], padding=self.padding) + t * map_of_time


class Field(nn.Module):
    """The derivative φ(h, t) of a hidden state: convolution, group norm, ReLU, convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = TimeConvolution(channels), TimeConvolution(channels)
        self.norm = nn.GroupNorm(math.gcd(GROUPS, channels), channels, affine=False)

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        derivative: Tensor = self.second(F.relu(self.norm(self.first(h, t))), t)
        return derivative


class Branch(nn.Module):
    """b = Down(h(1)) for the flow dh/dt = φ(h, t) from h(0), the hidden state before a stage.

    Down averages over the pixels of which the stage makes one and, if the stage changes the width, applies a 1×1
    convolution.

    Args:
        stage: the part of the network that the branch goes around.
        solver: `euler` or `rk4`.
        steps: of the solver.
        adjoint: compute the gradient by the adjoint equation, through torchdiffeq. Its memory does not grow with the
            steps, and the host waits for the device in each of them.
    """

    def __init__(self, stage: Stage, solver: str, steps: int, adjoint: bool) -> None:
        super().__init__()
        self.field = Field(stage.inputs)
        same = stage.inputs == stage.outputs
        self.widen = nn.Identity() if same else UnitConvolution(stage.inputs, stage.outputs, 1)
        self.solver, self.steps, self.adjoint = solver, steps, adjoint

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return b in the shape of the hidden state after the stage.

        Args:
            before, after: hidden states before and after the stage; only the shape of the latter matters.
        """
        flown = self._by_adjoint(before) if self.adjoint else integrate(self.field, before, self.solver, self.steps)
        sides = [math.ceil(size / smaller) for size, smaller in zip(flown.shape[2:], after.shape[2:], strict=True)]
        if sides != [1, 1]:
            flown = F.avg_pool2d(flown, sides, ceil_mode=True)
        branch: Tensor = self.widen(flown).to(after.dtype)
        return branch

    def _by_adjoint(self, before: Tensor) -> Tensor:
        """Integrate in float32 at least: the adjoint's backward pass is outside autocast."""
        from torchdiffeq import odeint_adjoint

        solve = torch.compiler.disable(odeint_adjoint)  # it would break a graph at each of its comparisons
        options = {"method": self.solver, "options": {"step_size": 1 / self.steps}}
        with torch.autocast(before.device.type, enabled=False):
            start = before.to(torch.promote_types(before.dtype, torch.float32))
            end: Tensor = solve(self.field, start, start.new_tensor([0.0, 1.0]), **options)[-1]
        return end.to(before.dtype)


def integrate(field: nn.Module, start: Tensor, solver: str, steps: int) -> Tensor:
    """Integrate dh/dt = φ(h, t) over [0, 1] by Euler's method or Kutta's 3/8 rule, as torchdiffeq does.

    torchdiffeq's own `odeint` compares times on the device at each step, for which the host would have to wait.

    Args:
        field: (t, h) -> φ(h, t).
        solver: `euler` or `rk4`.
    """
    h, dt = start, 1 / steps
    for t in (step * dt for step in range(steps)):
        k1 = field(t, h)
        if solver == "euler":
            h = h + dt * k1
            continue
        k2 = field(t + dt / 3, h + dt / 3 * k1)
        k3 = field(t + dt * 2 / 3, h + dt * (k2 - k1 / 3))
        k4 = field(t + dt, h + dt * (k1 - k2 + k3))
        h = h + dt / 8 * (k1 + 3 * (k2 + k3) + k4)
    return h


class Graft(torch.autograd.Function):
    """h, with the gradient of h + γ·(b − stopgrad(b)): the incoming gradient g for h, and γ·g for b."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, branch: Tensor, gamma: float) -> Tensor:
        ctx.gamma = gamma
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.gamma * gradient, None


class StateCorrection(Alteration):
    """GC-ODE: adds a branch b beside each stage of a network, from the hidden state before it to the one after it.

    The mode `gradient` adds γ·(b − stopgrad(b)) to the state after the stage: the forward pass keeps its values, and
    evaluation leaves the branches out; the state before the stage gets the gradient γ·(∂b/∂h)ᵀg in addition, and φ gets
    γ·(∂b/∂φ)ᵀg. The mode `additive` adds γ·b itself, in evaluation, too.

    The branches are modules of the network: its optimizer trains them, and its checkpoint has them.

    Args:
        gamma: γ, at least 0.
        mode: `gradient` or `additive`.
        solver, steps, adjoint: see `Branch`.
        spans: names of the first and last residual block that a branch goes around; None: a branch for each stage (see
            `pgt.methods.stages`).
    """

    def __init__(
        self,
        *,
        gamma: float,
        mode: str,
        solver: str,
        steps: int,
        adjoint: bool,
        spans: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.gamma, self.additive = gamma, mode == "additive"
        self.solver, self.steps, self.adjoint = solver, steps, adjoint
        self.spans = spans

    def attach(self, model: nn.Module, schedule: Schedule) -> None:
        """Add the branches to the network.

        Raises:
            ValueError: the network has no stages, no block of such a name, or has branches already.
        """
        if hasattr(model, BRANCHES) or hasattr(model, ADDED_BRANCHES):
            raise ValueError("cannot be listed twice: the network has branches already")
        parts = [stage_between(model, *span) for span in self.spans] if self.spans else find_stages(model)
        with torch.random.fork_rng(devices=[]):  # the network's random numbers stay what they are without GC-ODE
            branches = nn.ModuleList(Branch(part, self.solver, self.steps, self.adjoint) for part in parts)
        weight = next(model.parameters())
        branches.to(weight.device, weight.dtype).to(memory_format=torch.channels_last)
        for part, branch in zip(parts, branches, strict=True):
            self._connect(model.get_submodule(part.first), model.get_submodule(part.last), branch)
        model.add_module(ADDED_BRANCHES if self.additive else BRANCHES, branches)
        self.spans = [(part.first, part.last) for part in parts]

    def describe(self) -> str:
        around = ", ".join(f"{first} to {last}" for first, last in self.spans or ())
        return f"GC-ODE has branches around {around}"

    def _connect(self, first: nn.Module, last: nn.Module, branch: nn.Module) -> None:
        """Let a branch take the input of one module and add to the output of another, later one."""
        before: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            before[:] = inputs[:1]

        def add(module: nn.Module, inputs: tuple[Tensor, ...], after: Tensor) -> Tensor:
            state, result = before.pop(), after
            if self.additive:
                result = after + self.gamma * branch(state, after)
            elif branch.training:
                result = Graft.apply(after, branch(state, after), self.gamma)
            return result

        first.register_forward_pre_hook(keep)
        last.register_forward_hook(add)
