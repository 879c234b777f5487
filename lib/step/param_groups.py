"""Some weights that one AdamW updates together: as they are, or, where they are bf16 or their
moments 8-bit, through a flat fp32 copy.

bf16 weights are rounded stochastically (Zamirai et al. 2020, arXiv 2010.06192), because updates
smaller than half a bf16 step, most of them, would all be lost to rounding to the nearest.
"""

import torch

DECAY = 1e-2  # AdamW's weight decay, the default of torch and of diffusers' scripts


FEW = 4096  # numbers of a weight; below, its moments stay fp32: bitsandbytes' own limit


LATE = 10**6  # a step at which no moment is biased any more


BLOCK = 256  # numbers that share a scale in bitsandbytes' 8-bit moments


MOMENTS = {
    "exp_avg": "dynamic",
    "exp_avg_sq": "udynamic",
}  # torch's names, and of bitsandbytes' tables of 8-bit codes


class Piece:
    """The weights of numbers `which` among all, updated as `share` of the rate says; `flat`:
    through a copy, for so long in `stand`.
    """

    def __init__(self, which, weights, share, settings, device, flat):
        self.which, self.weights, self.share = which, [weights[k] for k in which], share
        self.sizes = [w.numel() for w in self.weights]
        self.numbers = sum(self.sizes)
        self.wait()
        self.stand = torch.nn.Parameter(torch.empty(0, device=device)) if flat else None
        self.eight_bit = settings.optimizer == "adamw8bit" and self.sizes[0] >= FEW
        if self.eight_bit:
            from bitsandbytes.optim import AdamW8bit

            self.adamw = AdamW8bit([self.stand], weight_decay=DECAY)
        else:
            on_card = self.weights[0].device.type == "cuda"  # there a step may be recorded
            self.adamw = torch.optim.AdamW(
                [self.stand] if flat else self.weights,
                weight_decay=DECAY,
                fused=True,
                capturable=on_card,
            )

    def wait(self):
        """Wait for all gradients anew: `waiting` are those still to come in a backward pass."""
        self.waiting = len(self.weights)

    @property
    def gradients(self):
        """Those there are: nothing reads the last layer of SDXL's first text encoder."""
        return [w.grad for w in self.weights if w.grad is not None]

    @torch.no_grad()
    def update(self, rate, scale, generator):
        """Take a step at `rate` times the share by the gradients divided by `scale`, a tensor, and
        free them; without any, none.
        """
        have = [k for k, w in enumerate(self.weights) if w.grad is not None]
        if not have:
            return
        (group,) = self.adamw.param_groups
        group["lr"] = rate * self.share
        if self.stand is None:
            self.adamw.grad_scale = scale  # the fused kernel divides by it as it reads
            self.adamw.step()
            self.adamw.zero_grad()
            return
        make = torch.empty if len(have) == len(self.weights) else torch.zeros
        values, gradient = (make(self.numbers, device=self.stand.device) for _ in range(2))
        own, parts, slopes = (
            [dense(w).view(-1) for w in self.weights],
            values.split(self.sizes),
            gradient.split(self.sizes),
        )
        torch._foreach_copy_(parts, own)
        torch._foreach_copy_(
            [slopes[k] for k in have], [dense(self.weights[k].grad).view(-1) for k in have]
        )
        for weight in self.weights:
            weight.grad = None
        self.stand.data, self.stand.grad = values, gradient.div_(scale)
        if self.eight_bit:
            self._update_8bit(group)
        else:
            self.adamw.step()
        if own[0].dtype == torch.bfloat16:
            round_stochastically(values, generator)
        torch._foreach_copy_([own[k] for k in have], [parts[k] for k in have])
        self.stand.data, self.stand.grad = values.new_empty(0), None

    def _update_8bit(self, group):
        """bitsandbytes' kernel takes rate and number of the step from Python, which a recorded step
        (`lib/step/cuda_graph.py`) does not ask. So it moves zeros at rate 1, long after the first
        step, and bias is corrected here: theta - alpha_t m / (sqrt(v) + eps), with alpha_t = alpha
        sqrt(1 - beta2^t) / (1 - beta1^t) (Kingma & Ba 2015, section 2).
        """
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        state, (beta1, beta2) = self.adamw.state[self.stand], group["betas"]
        if not state:
            self.adamw.init_state(group, self.stand, 0, 0)
            state["step"] = torch.zeros((), device=self.stand.device)
        state["step"] += 1
        values, moved = self.stand.data, torch.zeros_like(self.stand.data)
        optimizer_update_8bit_blockwise(
            "adam",
            self.stand.grad,
            moved,
            state["state1"],
            state["state2"],
            beta1,
            beta2,
            0.0,
            0.0,
            group["eps"],
            LATE,
            1.0,
            state["qmap1"],
            state["qmap2"],
            state["absmax1"],
            state["absmax2"],
        )
        pace = group["lr"] * (1 - beta2 ** state["step"]).sqrt() / (1 - beta1 ** state["step"])
        values.mul_(1 - group["lr"] * DECAY).addcmul_(moved, pace)

    def tensors(self):
        """Its moments as {name: tensor}: fp32 ones by the number of their weight, 8-bit ones by the
        piece's first, with all numbers.
        """
        if self.eight_bit:
            state = self.adamw.state[self.stand]
            found = {
                name: torch.as_tensor(t) for name, t in state.items() if not name.startswith("qmap")
            }  # those are constants
            found |= (
                {"which": torch.tensor(self.which), "sizes": torch.tensor(self.sizes)}
                if found
                else {}
            )
            return {f"{self.which[0]}.{name}": t for name, t in found.items()}
        if self.stand is None:
            states = [self.adamw.state[w] for w in self.weights]
        elif state := self.adamw.state[self.stand]:
            pairs = zip(*(state[name].split(self.sizes) for name in MOMENTS))
            states = [{"step": state["step"].clone()} | dict(zip(MOMENTS, pair)) for pair in pairs]
        else:
            states = []
        return {
            f"{k}.{name}": dense(t).flatten()
            for k, state in zip(self.which, states)
            for name, t in state.items()
        }

    def load(self, found):
        """Take its moments out of what all pieces' `tensors` gave; 8-bit ones must be of this very
        piece (see `in_fp32`).
        """
        device = self.weights[0].device
        if f"{self.which[0]}.which" in found:
            mine = {
                name.split(".")[1]: t.to(device, copy=True)
                for name, t in found.items()
                if name.startswith(f"{self.which[0]}.")
            }
            codes = {f"qmap{n}": self._codes(table) for n, table in enumerate(MOMENTS.values(), 1)}
            moments = {name: mine[name] for name in ("state1", "state2", "absmax1", "absmax2")}
            self.adamw.state[self.stand] = {"step": mine["step"].float()} | moments | codes
            return
        known = [
            (n, k) for n, k in enumerate(self.which) if f"{k}.step" in found
        ]  # others have had no gradient
        if self.stand is None:
            for n, k in known:  # the fused kernel reads moments in the order of the weight's memory
                moments = {name: torch.empty_like(self.weights[n]) for name in MOMENTS}
                for name, moment in moments.items():
                    dense(moment).view(-1).copy_(found[f"{k}.{name}"])
                self.adamw.state[self.weights[n]] = {
                    "step": found[f"{k}.step"].float().to(device, copy=True)
                } | moments
        elif known:
            step = found[f"{known[0][1]}.step"].float().to(device, copy=True)
            moments = {name: torch.zeros(self.numbers, device=device) for name in MOMENTS}
            for name, moment in moments.items():
                parts = moment.split(self.sizes)
                for n, k in known:
                    parts[n].copy_(found[f"{k}.{name}"])
            self.adamw.state[self.stand] = (
                self._eight_bit(step, moments) if self.eight_bit else {"step": step} | moments
            )

    def _codes(self, table):
        if table not in self.adamw.name2qmap:
            self.adamw.fill_qmap()
        self.adamw.name2qmap[table] = self.adamw.name2qmap[table].to(self.stand.device)
        return self.adamw.name2qmap[table]

    def _eight_bit(self, step, moments):
        from bitsandbytes.functional import quantize_blockwise

        state = {"step": step}
        for n, (name, table) in enumerate(MOMENTS.items(), 1):
            codes = self._codes(table)
            small, how = quantize_blockwise(moments[name], code=codes, blocksize=BLOCK)
            state |= {f"state{n}": small, f"qmap{n}": codes, f"absmax{n}": how.absmax}
        return state


def in_fp32(found):
    """What pieces' `tensors` gave with fp32 moments in the place of 8-bit ones: for a recipe
    without these, or with other pieces.
    """
    from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise

    found = dict(found)
    for first in [name.split(".")[0] for name in found if name.endswith(".which")]:
        mine = {
            name.split(".")[1]: found.pop(name)
            for name in list(found)
            if name.startswith(f"{first}.")
        }
        for n, (name, signed) in enumerate(zip(MOMENTS, (True, False)), 1):
            codes = create_dynamic_map(signed)
            moment = dequantize_blockwise(
                mine[f"state{n}"], absmax=mine[f"absmax{n}"], code=codes, blocksize=BLOCK
            )
            for k, part in zip(mine["which"].tolist(), moment.split(mine["sizes"].tolist())):
                found |= {f"{k}.{name}": part, f"{k}.step": mine["step"]}
    return found


def dense(tensor):
    """The same numbers in the order in which they lie in memory: a channels-last tensor as [N, H,
    W, C], another as it is. No copy.
    """
    last = (
        tensor.ndim == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return tensor.detach().permute(0, 2, 3, 1) if last else tensor.detach()


def round_stochastically(exact, generator):
    """Round fp32 `exact` [N], in place, to numbers that bf16 has, up or down at random so that the
    mean is exact: 16 random bits are added to those cut off. Drawing them is most of the time that
    it takes, so each serve two numbers, the second one inverted.
    """
    bits, half = exact.view(torch.int32), (exact.numel() + 1) // 2
    draws = torch.empty(
        (half + 3) // 4, dtype=torch.int64, device=exact.device
    )  # each is four times 16 bits
    noise = draws.random_(-(2**63), None, generator=generator).view(torch.uint16)[:half].int()
    bits[:half].add_(noise)
    bits[half:].add_(noise.bitwise_xor_(0xFFFF)[: exact.numel() - half])
    bits.bitwise_and_(-0x10000)
