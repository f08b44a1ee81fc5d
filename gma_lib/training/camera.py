"""Camera."""

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gma_lib.training.scenes import TrainingPair


def photographed(pair: TrainingPair, rng: np.random.Generator, strength: float) -> TrainingPair:
    """The pair as a camera might see it: light that stays where it is, other exposure, blur, noise.
    Flow stays exact.
    """
    frames = [pair.image1 / 255, pair.image2 / 255]
    if rng.random() < 0.5 * strength:
        light = _light(rng, frames[0])
        frames = [frame * light for frame in frames]
    common = _exposure(rng, 0.25 * strength)
    frames = [_exposed(frame, *common) for frame in frames]
    frames = [_exposed(frame, *_exposure(rng, 0.05 * strength)) for frame in frames]
    if rng.random() < 0.35 * strength:
        frames = _moving_blur(frames, pair.flow, rng.uniform(0.1, 0.5))
    if rng.random() < 0.25 * strength:
        frames = [_soft(frame, float(rng.uniform(0.4, 1.5))) for frame in frames]
    if rng.random() < 0.6 * strength:
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        sigma = float(0.04 * rng.random() ** 2)
        frames = [
            frame + sigma * torch.randn(frame.shape, generator=noise).to(frame.device)
            for frame in frames
        ]
    image1, image2 = (255 * frame.clamp(0, 1) for frame in frames)
    return dataclasses.replace(pair, image1=image1, image2=image2)


def dimmed(pair: TrainingPair, rng: np.random.Generator) -> TrainingPair:
    """The pair in so little light that grey is 8 to 60 on average, in whole levels as files hold
    them; darker pairs stay as they are.
    """
    gain = min(
        1.0, float(np.exp(rng.uniform(np.log(8), np.log(60)))) / max(1.0, float(pair.image1.mean()))
    )
    return dataclasses.replace(
        pair, image1=(gain * pair.image1).round(), image2=(gain * pair.image2).round()
    )


def _light(rng: np.random.Generator, frame: Tensor) -> Tensor:
    """A field of brightness (1, H, W) that does not move with anything."""
    coarse = torch.from_numpy(rng.uniform(0.55, 1.3, (1, 1, 3, 4)).astype(np.float32)).to(
        frame.device
    )
    return F.interpolate(coarse, size=frame.shape[-2:], mode="bicubic", align_corners=True)[0]


def _exposure(rng: np.random.Generator, spread: float) -> tuple[float, float, np.ndarray]:
    return (
        float(np.exp(rng.normal(0, spread))),
        float(np.exp(rng.normal(0, spread))),
        np.exp(rng.normal(0, spread / 4, 3)),
    )


def _exposed(frame: Tensor, gain: float, gamma: float, tint: np.ndarray) -> Tensor:
    tint = torch.from_numpy(tint.astype(np.float32)).to(frame.device)[:, None, None]
    return (gain * tint * frame).clamp(0, 1) ** gamma


def _soft(frame: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-4, 5, dtype=torch.float32, device=frame.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(frame[:, None], (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))[
        :, 0
    ]


def _moving_blur(frames: list[Tensor], flow: Tensor, shutter: float) -> list[Tensor]:
    """Blur along the motion, as in Sintel's final pass; frame 2 takes the motion at the same place
    of frame 1.
    """
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=flow.device) for n in (height, width)),
        indexing="ij",
    )
    size = torch.tensor([width, height], dtype=torch.float32, device=flow.device)
    shares = torch.linspace(-0.5, 0.5, 7, device=flow.device) * shutter
    grid = torch.stack([x, y], dim=-1) + shares[:, None, None, None] * flow.permute(
        1, 2, 0
    )  # (7, H, W, 2)
    grid = (2 * grid + 1) / size - 1
    blurred = [
        F.grid_sample(
            frame.expand(len(shares), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
        for frame in frames
    ]
    return [samples.mean(dim=0) for samples in blurred]
