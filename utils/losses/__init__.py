"""The loss of a network; `build_loss` is the way in."""

from utils.losses.detection import build_loss as build_loss
