"""How the networks of several spaces begin."""

from torch import nn


def he_normal(net: nn.Module) -> None:
    """Draw the convolutions' weights for ReLUs after them (He et al. 2015, arXiv:1502.01852), variance 2 / fan-out."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
