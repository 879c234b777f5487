"""Muon for training the pocket base: torch's own `Muon`, given each convolution as the matrix that
it is.

Muon (Jordan et al. 2024) makes each weight matrix's update orthogonal. `torch.optim.Muon` takes
matrices only, so a convolution [out, in, 3, 3] is lent to it as a view [out, in * 9]; everything
else (biases, norms, embeddings) goes to AdamW.
"""

import torch


class MuonAdamW:
    """Muon on matrices and convolutions, AdamW on the rest. `muon_lr` is per matrix with
    RMS-matched scale, as AdamW's is.
    """

    def __init__(self, model, lr, betas=(0.9, 0.99)):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [
            p
            for n, p in named
            if p.ndim in (2, 4)
            and "embedding" not in n
            and "conv_out" not in n
            and "conv_in" not in n
        ]
        chosen = {id(p) for p in matrices}
        self.matrices = [
            (p, torch.nn.Parameter(p.data.flatten(1) if p.ndim == 4 else p.data)) for p in matrices
        ]
        self.muon = torch.optim.Muon(
            [view for _, view in self.matrices],
            lr=lr,
            momentum=0.95,
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen],
            lr=lr,
            betas=betas,
            weight_decay=0.0,
            fused=True,
        )

    def step(self, lr):
        """One update at learning rate `lr`; gradients are cleared."""
        for group in self.muon.param_groups + self.adamw.param_groups:
            group["lr"] = lr
        for p, view in self.matrices:
            view.grad = p.grad.flatten(1) if p.ndim == 4 else p.grad
        self.muon.step()
        self.adamw.step()
        for p, view in self.matrices:
            if view.data_ptr() != p.data_ptr():  # channels-last weights cannot be viewed: copy back
                p.data.copy_(view.data.view(p.shape))
            p.grad = view.grad = None
        self.adamw.zero_grad()

    def state_dict(self):
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state):
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
