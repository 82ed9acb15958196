"""What a network is for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """The shape of a network's input and the number of classes."""

    channels: int
    image_size: int  # pixels; images are square
    classes: int
