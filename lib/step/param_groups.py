"""Weights that one AdamW updates together: in place, or through a flat fp32 copy where they are
bf16 or their moments 8-bit.

bf16 weights are rounded stochastically (Zamirai et al. 2020, arXiv 2010.06192), because updates
smaller than half a bf16 step, most of them, would all be lost to rounding to the nearest.

The arithmetic is torch's fused AdamW and bitsandbytes' 8-bit kernel. What lies around them is kept
by hand: torchao.optim has both recipes, but it compiles a kernel for every shape of weight before
the first step, does not clip while the backward pass runs, and its checkpoints fit one recipe
alone. tests/step/test_optimizer.py holds this to torch's AdamW, and to torchao if installed.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lib.config import Settings

WEIGHT_DECAY = 1e-2  # the default of torch's AdamW and of diffusers' scripts
SMALLEST_8BIT = 4096  # numbers; moments of smaller weights stay fp32: bitsandbytes' own limit
LATE_STEP = 10**6  # a step at which no moment is biased any more
BLOCK_SIZE = 256  # numbers that share a scale in bitsandbytes' 8-bit moments

# torch's names of the two moments, and bitsandbytes' of their tables of 8-bit codes
MOMENTS = {"exp_avg": "dynamic", "exp_avg_sq": "udynamic"}


class ParamGroup:
    """Some of all trainable weights, updated together, at `rate_share` times the learning rate.

    indices: places of its weights in `all_weights`. anchors: for each of all weights what
    `lib.step.methods.anchors` gives. flat: whether they are updated through an fp32 copy in one
    row, `flat_copy`, which is empty but during an update.
    """

    def __init__(
        self,
        indices: Sequence[int],
        all_weights: Sequence[torch.nn.Parameter],
        rate_share: float,
        settings: Settings,
        device: torch.device,
        anchors: Sequence[torch.Tensor | None],
        flat: bool,
    ):
        self.indices = indices
        self.pull = settings.pull
        self.anchors = [anchors[k] for k in indices] if settings.pull else []
        self.weights = [all_weights[k] for k in indices]
        self.rate_share = rate_share
        self.sizes = [w.numel() for w in self.weights]
        self.numel = sum(self.sizes)
        self.expect_gradients()
        self.flat = flat
        self.flat_copy: Any = torch.nn.Parameter(torch.empty(0, device=device))
        self.eight_bit = settings.optimizer == "adamw8bit" and self.sizes[0] >= SMALLEST_8BIT
        if self.eight_bit:
            from bitsandbytes.optim import AdamW8bit

            self.adamw: Any = AdamW8bit([self.flat_copy], weight_decay=WEIGHT_DECAY)
        else:
            self.adamw = torch.optim.AdamW(
                [self.flat_copy] if flat else self.weights,
                weight_decay=WEIGHT_DECAY,
                fused=True,
                capturable=self.weights[0].device.type == "cuda",  # there a CUDA graph may have it
            )

    def expect_gradients(self) -> None:
        """Count anew the gradients that are still to come in a backward pass."""
        self.gradients_to_come = len(self.weights)

    @property
    def gradients(self) -> list[torch.Tensor]:
        """Those there are: nothing reads the last layer of SDXL's first text encoder."""
        return [w.grad for w in self.weights if w.grad is not None]

    @torch.no_grad()
    def update(
        self,
        rate: float | torch.Tensor,
        divisor: torch.Tensor,
        generator: torch.Generator,
        skipped: torch.Tensor | None = None,
    ) -> None:
        """Take a step at `rate` by the gradients divided by `divisor`, and free the gradients.

        Nothing happens without any gradient, or where `skipped` is 1.0. `generator` rounds bf16
        weights.
        """
        if not self.gradients:
            return
        self.adamw.param_groups[0]["lr"] = rate * self.rate_share
        self.adamw.found_inf = skipped  # the fused kernel changes nothing where it is 1.0
        pulled = rate if skipped is None else rate * (1 - skipped)
        if not self.flat:
            self.adamw.grad_scale = divisor  # the fused kernel divides by it as it reads
            self.adamw.step()
            self.adamw.zero_grad()
            self._pull_back([in_memory_order(w).view(-1) for w in self.weights], pulled)
        else:
            self._update_through_copy(pulled, divisor, generator, skipped)

    def _pull_back(self, weights: Sequence[torch.Tensor], rate: float | torch.Tensor) -> None:
        """Take `rate` * pull of its change back from each weight, given as one row of numbers.

        Beside the gradient, not in it, as AdamW's weight decay is (Loshchilov & Hutter 2019, arXiv
        1711.05101).
        """
        share = rate * self.pull
        for weight, anchor in zip(weights, self.anchors):
            if anchor is not None:
                weight.lerp_(anchor.to(weight.dtype), share)

    def _update_through_copy(
        self,
        pulled: float | torch.Tensor,
        divisor: torch.Tensor,
        generator: torch.Generator,
        skipped: torch.Tensor | None,
    ) -> None:
        have = [k for k, w in enumerate(self.weights) if w.grad is not None]
        empty = torch.empty if len(have) == len(self.weights) else torch.zeros
        values, gradient = (empty(self.numel, device=self.flat_copy.device) for _ in range(2))
        weights = [in_memory_order(w).view(-1) for w in self.weights]
        value_parts, gradient_parts = values.split(self.sizes), gradient.split(self.sizes)
        torch._foreach_copy_(value_parts, weights)
        torch._foreach_copy_(
            [gradient_parts[k] for k in have],
            [in_memory_order(part).view(-1) for part in self.gradients],
        )
        for weight in self.weights:
            weight.grad = None
        self.flat_copy.data = values
        self.flat_copy.grad = gradient.div_(divisor)
        if self.eight_bit:
            self._update_8bit(skipped)
        else:
            self.adamw.step()
        self._pull_back(value_parts, pulled)
        if weights[0].dtype == torch.bfloat16:
            round_stochastically(values, generator)
        torch._foreach_copy_([weights[k] for k in have], [value_parts[k] for k in have])
        self.flat_copy.data = values.new_empty(0)
        self.flat_copy.grad = None

    def _update_8bit(self, skipped: torch.Tensor | None) -> None:
        """Take an 8-bit AdamW step whose rate and number may be tensors, as a CUDA graph needs.

        Where `skipped` is 1.0 all is put back, for the kernel cannot be told to change nothing.

        bitsandbytes' kernel takes both from Python, which a replayed step does not ask. So it moves
        zeros at rate 1, long after the first step, and bias is corrected here:
        theta - alpha_t m / (sqrt(v) + eps), with alpha_t = alpha sqrt(1 - beta2^t) / (1 - beta1^t)
        (Kingma & Ba 2015, section 2).
        """
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        (group,) = self.adamw.param_groups
        state = self.adamw.state[self.flat_copy]
        beta1, beta2 = group["betas"]
        if not state:
            self.adamw.init_state(group, self.flat_copy, 0, 0)
            state["step"] = torch.zeros((), device=self.flat_copy.device)
        values = self.flat_copy.data
        changing = [values, *(t for name, t in state.items() if not name.startswith("qmap"))]
        before = [] if skipped is None else [t.clone() for t in changing]
        if skipped is not None:  # no code of 8 bits stands for these
            self.flat_copy.grad.nan_to_num_(0.0, 0.0, 0.0)
        state["step"] += 1
        moved = torch.zeros_like(values)
        optimizer_update_8bit_blockwise(
            "adam",
            self.flat_copy.grad,
            moved,
            state["state1"],
            state["state2"],
            beta1,
            beta2,
            0.0,
            0.0,
            group["eps"],
            LATE_STEP,
            1.0,
            state["qmap1"],
            state["qmap2"],
            state["absmax1"],
            state["absmax2"],
        )
        rate = group["lr"] * (1 - beta2 ** state["step"]).sqrt() / (1 - beta1 ** state["step"])
        values.mul_(1 - group["lr"] * WEIGHT_DECAY).addcmul_(moved, rate)
        for now, old in zip(changing, before):
            now.copy_(torch.where(skipped == 1, old, now))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its moments by name: fp32 ones under each weight's index, 8-bit ones under the first."""
        if self.eight_bit:
            return self._state_dict_8bit()
        if not self.flat:
            states = [self.adamw.state[w] for w in self.weights]
        elif state := self.adamw.state[self.flat_copy]:
            moments = zip(*(state[name].split(self.sizes) for name in MOMENTS))
            states = [{"step": state["step"].clone()} | dict(zip(MOMENTS, m)) for m in moments]
        else:
            states = []
        return {
            f"{k}.{name}": in_memory_order(t).flatten()
            for k, state in zip(self.indices, states)
            for name, t in state.items()
        }

    def _state_dict_8bit(self) -> dict[str, torch.Tensor]:
        state = self.adamw.state[self.flat_copy]
        if state:
            state = state | {"which": torch.tensor(self.indices), "sizes": torch.tensor(self.sizes)}
        return {
            f"{self.indices[0]}.{name}": torch.as_tensor(value)
            for name, value in state.items()
            if not name.startswith("qmap")  # the tables of codes are constants
        }

    def load_state_dict(self, found: dict[str, torch.Tensor]) -> None:
        """Take its moments out of what the `state_dict` of all groups gave together.

        8-bit ones must be of a group of the same weights; `moments_in_fp32` makes any others fit.
        """
        if f"{self.indices[0]}.which" in found:
            self._load_8bit(found)
            return
        # (place in this group, index among all) of weights that have had a gradient
        known = [(n, k) for n, k in enumerate(self.indices) if f"{k}.step" in found]
        if not self.flat:
            self._load_in_place(found, known)
        elif known:
            self._load_flat(found, known)

    def _load_8bit(self, found: dict[str, torch.Tensor]) -> None:
        state = {
            name: found[f"{self.indices[0]}.{name}"].to(self.flat_copy.device, copy=True)
            for name in ("step", "state1", "state2", "absmax1", "absmax2")
        }
        state["step"] = state["step"].float()
        for n, table in enumerate(MOMENTS.values(), 1):
            state[f"qmap{n}"] = self._code_table(table)
        self.adamw.state[self.flat_copy] = state

    def _load_in_place(self, found: dict[str, torch.Tensor], known: list[tuple[int, int]]) -> None:
        for n, k in known:
            weight = self.weights[n]
            state = {"step": found[f"{k}.step"].float().to(weight.device, copy=True)}
            for name in MOMENTS:  # the fused kernel reads them in the order of the weight's memory
                state[name] = torch.empty_like(weight)
                in_memory_order(state[name]).view(-1).copy_(found[f"{k}.{name}"])
            self.adamw.state[weight] = state

    def _load_flat(self, found: dict[str, torch.Tensor], known: list[tuple[int, int]]) -> None:
        device = self.flat_copy.device
        state = {"step": found[f"{known[0][1]}.step"].float().to(device, copy=True)}
        for number, (name, table) in enumerate(MOMENTS.items(), 1):
            moment = torch.zeros(self.numel, device=device)
            parts = moment.split(self.sizes)
            for n, k in known:
                parts[n].copy_(found[f"{k}.{name}"])
            state |= self._in_8_bits(moment, table, number) if self.eight_bit else {name: moment}
        self.adamw.state[self.flat_copy] = state

    def _in_8_bits(self, moment: torch.Tensor, table: str, number: int) -> dict[str, torch.Tensor]:
        from bitsandbytes.functional import quantize_blockwise

        codes = self._code_table(table)
        quantized, scales = quantize_blockwise(moment, code=codes, blocksize=BLOCK_SIZE)
        return {
            f"state{number}": quantized,
            f"qmap{number}": codes,
            f"absmax{number}": scales.absmax,
        }

    def _code_table(self, name: str) -> torch.Tensor:
        tables = self.adamw.name2qmap
        if name not in tables:
            self.adamw.fill_qmap()
        tables[name] = tables[name].to(self.flat_copy.device)
        return tables[name]


def moments_in_fp32(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the `state_dict` of all groups gave together, with fp32 moments in place of 8-bit ones.

    For a recipe without 8-bit moments, or with other groups.
    """
    from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise

    found = dict(found)
    for first in [name.split(".")[0] for name in found if name.endswith(".which")]:
        names = [name for name in found if name.startswith(f"{first}.")]
        mine = {name.split(".")[1]: found.pop(name) for name in names}
        for n, (name, signed) in enumerate(zip(MOMENTS, (True, False)), 1):
            moment = dequantize_blockwise(
                mine[f"state{n}"],
                absmax=mine[f"absmax{n}"],
                code=create_dynamic_map(signed),
                blocksize=BLOCK_SIZE,
            )
            for k, part in zip(mine["which"].tolist(), moment.split(mine["sizes"].tolist())):
                found |= {f"{k}.{name}": part, f"{k}.step": mine["step"]}
    return found


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in the order in which they lie in memory, without a copy.

    A channels-last tensor [N, C, H, W] comes as [N, H, W, C], any other as it is.
    """
    channels_last = (
        tensor.ndim == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    tensor = tensor.detach()
    return tensor.permute(0, 2, 3, 1) if channels_last else tensor


def round_stochastically(exact: torch.Tensor, generator: torch.Generator) -> None:
    """Round fp32 `exact` [N], in place, to numbers that bf16 has, so that the mean is exact.

    Up or down at random: 16 random bits are added to those cut off. Drawing them is most of the
    time that it takes, so each serve two numbers, the second one inverted.
    """
    bits = exact.view(torch.int32)
    half = (exact.numel() + 1) // 2
    # each is four times 16 bits
    draws = torch.empty((half + 3) // 4, dtype=torch.int64, device=exact.device)
    noise = draws.random_(-(2**63), None, generator=generator).view(torch.uint16)[:half].int()
    bits[:half].add_(noise)
    bits[half:].add_(noise.bitwise_xor_(0xFFFF)[: exact.numel() - half])
    bits.bitwise_and_(-0x10000)
