"""A small classifier of scenes, its joint training on images and altered copies, and maps of what it uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tda.recipe import Recipe
from tda.studies.ssca.regions import Grid, hide
from tda.training import train

BASE = Recipe(epochs=24, batch=64, lr=4e-3, weight_decay=0.01, warmup=0.2)
JOINT = Recipe(epochs=8, batch=64, lr=2e-3, weight_decay=0.01, warmup=0.1)


class Net(nn.Module):
    """Three convolutions to maps of 4 x 4, their mean, a linear layer: images [B, 3, 16, 16] in [0, 1] -> [B, C]."""

    def __init__(self, classes: int, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Linear(2 * width, classes)

    def maps(self, images: Tensor) -> Tensor:
        """What the third convolution gives, [B, 2 width, 4, 4]."""
        seen = self.second(self.first((images - 0.4) / 0.25).relu()).relu()
        return self.third(seen).relu()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.maps(images).mean((-2, -1)))


def fitted(model: Net, data: dict[str, Tensor], recipe: Recipe, seed: int, weight: float = 1.0, redrawn=None) -> Net:
    """A copy of the model, trained further on ``data``, by AdamW.

    ``data``: ``inputs`` [N, 3, side, side], ``labels`` [N] and, for joint training, ``altered`` like the inputs and
    ``used`` [N] bool. The loss is the mean over a batch of CE(x, y) + ``weight`` * used * CE(altered x, y).
    ``redrawn(examples, seed, epoch)``: what an epoch sees instead.
    """

    def loss_fn(params, batch, reduction: str = "mean") -> Tensor:
        shown = [batch[name] for name in ("inputs", "altered") if name in batch]
        logits = functional_call(model, params, (torch.cat(shown),)).split(len(batch["labels"]))
        losses = F.cross_entropy(logits[0], batch["labels"], reduction="none")
        if len(shown) == 2:
            losses = losses + weight * batch["used"] * F.cross_entropy(logits[1], batch["labels"], reduction="none")
        return losses.sum() if reduction == "sum" else losses.mean()

    if redrawn:
        loss_fn.redrawn = redrawn
    found = train(loss_fn, dict(model.named_parameters()), data, recipe, seed)
    copy = Net(model.last.out_features, model.first.out_channels, seed)
    copy.load_state_dict(found.params)
    return copy.eval()


@torch.no_grad()
def predicted(model: Net, images: Tensor, chunk: int = 4096) -> Tensor:
    """The most probable class, [B]."""
    return torch.cat([model(part).argmax(-1) for part in images.split(chunk)])


def seen_through(model: Net, images: Tensor, grid: Grid, filling: Tensor | None = None):
    """What :mod:`tda.studies.ssca.lima` asks a model, regions [B, M, n] that stay -> probabilities [B, M, C].

    The others are covered by ``filling`` [B, 3, side, side], or by black.
    """
    cover = 0.0 if filling is None else filling[:, None]

    @torch.no_grad()
    def probabilities(visible: Tensor) -> Tensor:
        shown = hide(images[:, None], ~grid.pixels(visible), cover)
        return model(shown.flatten(0, 1)).softmax(-1).unflatten(0, visible.shape[:2])

    return probabilities


@torch.no_grad()
def grad_cam(model: Net, images: Tensor, labels: Tensor, grid: Grid) -> Tensor:
    """Regions by Grad-CAM, the hottest first, [B, n].

    After a mean and a linear layer the weight of a map is that of the layer, w_y, up to a constant: the heat is
    sum_c w_yc A_c. The ReLU of the published form is left out, since it would tie all cold regions.
    """
    heat = (model.last.weight[labels][:, :, None, None] * model.maps(images)).sum(1, keepdim=True)
    heat = F.interpolate(heat, (grid.side, grid.side), mode="nearest")
    return F.avg_pool2d(heat, grid.cell).flatten(1).argsort(dim=1, descending=True, stable=True)


def occlusion(model: Net, images: Tensor, labels: Tensor, grid: Grid) -> Tensor:
    """Regions by how far p_y falls when one alone is black, the largest fall first, [B, n]."""
    visible = ~torch.eye(grid.count, dtype=torch.bool).expand(len(images), -1, -1)
    left = seen_through(model, images, grid)(visible).gather(-1, labels[:, None, None].expand(-1, grid.count, 1))
    return left.squeeze(-1).argsort(dim=1, stable=True)
