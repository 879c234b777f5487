"""AdamW for every recipe: all weights at once, or weight by weight where that saves memory.

Weight by weight, an update passes through one fp32 copy of one weight: bf16 weights are then rounded stochastically (Zamirai et al. 2020,
arXiv 2010.06192), because updates smaller than half a bf16 step, most of them, would all be lost to rounding to the nearest. With
`fused_backward` the update happens inside the backward pass, as soon as a weight's gradient is whole, which is then freed (Lv et al.
2023, arXiv 2306.09782): no two gradients exist at once, so nobody can know the norm of them all before the first is used. In its place
each is clipped to clip / sqrt(number of weights): then the norm of all stays within clip, as it does otherwise.
"""

import torch
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

DECAY = 1e-2  # AdamW's weight decay, the default of torch and of diffusers' scripts


class Optimizer:
    """AdamW on `weights` as `settings` say; `rate` is the learning rate that `step` uses, times the weight's share in `shares`.

    Plain: one fused AdamW. Otherwise one for each weight, with fp32 or 8-bit moments (bitsandbytes; weights below 4,096 numbers keep
    fp32 ones), which sees a stand-in for the weight: the same memory, or for a bf16 weight an fp32 copy that lives during its update.
    """

    def __init__(self, weights, shares, settings, device):
        self.weights, self.settings, self.rate, self.squares, self.hooks = weights, settings, settings.learning_rate, [], []
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        if settings.optimizer == "adamw" and settings.weights == "fp32" and not settings.fused_backward:
            rates = dict.fromkeys(shares)
            self.stands = None
            self.parts = [self._adamw([{"params": [w for w, s in zip(weights, shares) if s == one], "share": one} for one in rates])]
        else:
            self.stands = [torch.nn.Parameter(torch.empty(0, device=device)) for _ in weights]
            self.parts = [self._adamw([{"params": [stand], "share": share}]) for stand, share in zip(self.stands, shares)]
        if settings.fused_backward:
            self.hooks = [w.register_post_accumulate_grad_hook(lambda w, k=k: self._at_once(k)) for k, w in enumerate(weights)]

    def _adamw(self, groups):
        if self.settings.optimizer == "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(groups, lr=self.rate, weight_decay=DECAY)
        return torch.optim.AdamW(groups, lr=self.rate, weight_decay=DECAY, fused=True)

    @property
    def state(self):
        """{weight or its stand-in: its moments}, as torch's optimisers have it."""
        return {weight: state for part in self.parts for weight, state in part.state.items()}

    def step(self):
        """Clip, update, free the gradients. Returns their norm before clipping, a tensor on the device."""
        if self.settings.fused_backward:  # all but the norm has happened in the backward pass
            norm = torch.stack(self.squares).sum().sqrt()
            self.squares.clear()
            return norm
        norm = get_total_norm([w.grad for w in self.weights if w.grad is not None])
        if self.stands is None:
            (plain,) = self.parts
            plain.grad_scale = (norm / self.settings.clip).clamp(min=1.0)  # the fused kernel divides by it as it reads: clipped on the way
            self._take(plain)
            plain.zero_grad()
        else:
            clip_grads_with_norm_(self.weights, self.settings.clip, norm)
            for k in range(len(self.weights)):
                self._update(k)
        return norm

    def close(self):
        """Let the weights' gradients be: nothing is updated in a backward pass any more."""
        for hook in self.hooks:
            hook.remove()

    def _at_once(self, k):
        norm = clip_grad_norm_([self.weights[k]], self.settings.clip / len(self.weights) ** 0.5)
        self.squares.append(norm.float().square())
        self._update(k)

    def _take(self, part):
        for group in part.param_groups:
            group["lr"] = self.rate * group["share"]
        if self.settings.optimizer == "adamw8bit":  # its `step` would wait for the GPU after every weight
            if not part.state[group["params"][0]]:
                part.init_state(group, group["params"][0], 0, 0)
            part.update_step(group, group["params"][0], 0, 0)
        else:
            part.step()

    @torch.no_grad()
    def _update(self, k):
        weight, stand = self.weights[k], self.stands[k]
        if weight.grad is None:  # nothing reads it: the last layer of SDXL's first text encoder
            return
        flat, gradient = dense(weight), dense(weight.grad).contiguous()
        weight.grad = None
        stand.data, stand.grad = flat.float(), gradient.float()
        self._take(self.parts[k])
        if weight.dtype == torch.bfloat16:
            round_stochastically(stand.data, flat, self.generator)
        stand.data, stand.grad = stand.data.new_empty(0), None

    def tensors(self):
        """All that a later `load` needs, as {name: tensor}: moments and counts by the weight's number, and the random state of rounding."""
        found = {"rounding": self.generator.get_state()}
        for k, weight in enumerate(self.weights):
            state = self.parts[0 if self.stands is None else k].state[weight if self.stands is None else self.stands[k]]
            for name, value in state.items():
                if not name.startswith("qmap"):  # the table of 8-bit codes, a constant
                    value = value if torch.is_tensor(value) else torch.tensor(value)
                    found[f"{k}.{name}"] = dense(value).cpu().contiguous()
        return found

    def load(self, found):
        """Go on from what `tensors` gave, of this recipe or of another (after a step down): moments become 8-bit where they were fp32."""
        self.generator.set_state(found["rounding"].cpu())
        for k, weight in enumerate(self.weights):
            mine = {name.split(".", 1)[1]: t.to(weight.device) for name, t in found.items() if name.startswith(f"{k}.")}
            if not mine:  # it has had no gradient
                continue
            part, key = (self.parts[0], weight) if self.stands is None else (self.parts[k], self.stands[k])
            part.state[key] = self._eight_bit(part, mine) if self.settings.optimizer == "adamw8bit" else self._plain(weight, mine)

    def _plain(self, weight, mine):
        if self.stands is None:  # the fused kernel reads moments in the order of the weight's memory
            moments = {name: torch.empty_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            for name, moment in moments.items():
                dense(moment).copy_(mine[name])
            return {"step": mine["step"].float().clone()} | moments
        return {name: mine[name].float().clone() for name in ("step", "exp_avg", "exp_avg_sq")}

    def _eight_bit(self, part, mine):
        from bitsandbytes.functional import quantize_blockwise

        if "dynamic" not in part.name2qmap:
            part.fill_qmap()
        state = {"step": int(mine["step"])}
        for n, name, table in ((1, "exp_avg", "dynamic"), (2, "exp_avg_sq", "udynamic")):
            moment = mine.get(f"state{n}", mine.get(name))
            part.name2qmap[table] = part.name2qmap[table].to(moment.device)
            state[f"state{n}"] = moment
            if moment.numel() >= part.args.min_8bit_size:
                state[f"qmap{n}"], state[f"absmax{n}"] = part.name2qmap[table], mine.get(f"absmax{n}")
                if moment.dtype == torch.float32:
                    state[f"state{n}"], how = quantize_blockwise(moment, code=part.name2qmap[table], blocksize=256)
                    state[f"absmax{n}"] = how.absmax
        return state


def dense(tensor):
    """The same numbers in the order in which they lie in memory: a channels-last tensor as [N, H, W, C], another as it is. No copy."""
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.detach().permute(0, 2, 3, 1) if last else tensor.detach()


def round_stochastically(exact, out, generator):
    """Write fp32 `exact` into bf16 `out`, up or down at random so that the mean is exact: 16 random bits are added to those cut off."""
    bits = exact.view(torch.int32)
    # Four 16-bit numbers from each draw.
    draws = torch.empty((exact.numel() + 3) // 4, dtype=torch.int64, device=exact.device)
    noise = draws.random_(-(2**63), None, generator=generator).view(torch.int16)
    bits.add_((noise[: exact.numel()].view(exact.shape).int()).bitwise_and_(0xFFFF)).bitwise_and_(-0x10000)
    out.copy_(exact)
