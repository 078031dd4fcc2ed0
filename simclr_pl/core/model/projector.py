"""The projector g(.): the head between features and the loss, thrown away after pretraining."""

from torch import nn

from simclr_pl.core.errors import check


def build_projector(features: int, layers: int, hidden: int | None, width: int) -> nn.Sequential:
    """Linear layers with batch norm after each and ReLU between them.

    Two layers are SimCLR's head, three are SimCLR v2's. As in the authors' code
    (google-research/simclr `model_util.py`): no biases before batch norm, hidden layers as wide as
    the features, and a batch norm without bias on the output as well.

    Args:
        features: D, the encoder's width.
        layers: number of linear layers; 1 is the linear head of the paper's figure 8.
        hidden: width of the hidden layers; `None` is D.
        width: P, the output's width.

    Returns:
        `[B, D]` to `[B, P]`: a block of (linear, batch norm, ReLU) a layer.

    Raises:
        UserError: fewer than one layer, or a width below 1.
    """
    hidden = features if hidden is None else hidden
    check(layers >= 1, "model.projector_layers", layers, "at least 1 (v1: 2, v2: 3)")
    check(hidden >= 1, "model.projector_hidden", hidden, "at least 1")
    check(width >= 1, "model.projection_dim", width, "at least 1")
    blocks = [
        nn.Sequential(nn.Linear(a, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU())
        for a in [features, *[hidden] * (layers - 2)][: layers - 1]
    ]
    last = features if layers == 1 else hidden
    norm = nn.BatchNorm1d(width)
    # Without bias (the authors' `center=False`): held at zero rather than left out, since the name
    # stays in the state dict that way.
    norm.bias.requires_grad_(False)
    return nn.Sequential(*blocks, nn.Sequential(nn.Linear(last, width, bias=False), norm))
