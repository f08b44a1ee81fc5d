"""What a camera adds to rendered frames: light, exposure, blur and noise. Flow stays exact."""

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gma_lib.training.scenes import TrainingPair, pixel_grid


def add_camera_effects(
    pair: TrainingPair, rng: np.random.Generator, strength: float
) -> TrainingPair:
    """Return the pair as a camera might see it: light that does not move with the scene, other
    exposure, blur, noise.
    """
    frames = [pair.image1 / 255, pair.image2 / 255]
    if rng.random() < 0.5 * strength:
        light = _draw_light(rng, frames[0])
        frames = [frame * light for frame in frames]
    common = _draw_exposure(rng, 0.25 * strength)
    frames = [_expose(frame, *common) for frame in frames]
    frames = [_expose(frame, *_draw_exposure(rng, 0.05 * strength)) for frame in frames]
    if rng.random() < 0.35 * strength:
        frames = _blur_along(frames, pair.flow, rng.uniform(0.1, 0.5))
    if rng.random() < 0.25 * strength:
        frames = [_soften(frame, float(rng.uniform(0.4, 1.5))) for frame in frames]
    if rng.random() < 0.6 * strength:
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        sigma = float(0.04 * rng.random() ** 2)
        frames = [
            frame + sigma * torch.randn(frame.shape, generator=noise).to(frame.device)
            for frame in frames
        ]
    image1, image2 = (255 * frame.clamp(0, 1) for frame in frames)
    return dataclasses.replace(pair, image1=image1, image2=image2)


def dim_light(pair: TrainingPair, rng: np.random.Generator) -> TrainingPair:
    """Return the pair with so little light that grey is 8 to 60 on average, in whole levels as
    files hold them; darker pairs keep their light.
    """
    grey = float(np.exp(rng.uniform(np.log(8), np.log(60))))
    gain = min(1.0, grey / max(1.0, float(pair.image1.mean())))
    image1, image2 = ((gain * image).round() for image in (pair.image1, pair.image2))
    return dataclasses.replace(pair, image1=image1, image2=image2)


def _draw_light(rng: np.random.Generator, frame: Tensor) -> Tensor:
    """Draw a field of brightness (1, H, W) that does not move with anything."""
    coarse = torch.from_numpy(rng.uniform(0.55, 1.3, (1, 1, 3, 4)).astype(np.float32))
    size = frame.shape[-2:]
    return F.interpolate(coarse.to(frame.device), size=size, mode="bicubic", align_corners=True)[0]


def _draw_exposure(rng: np.random.Generator, spread: float) -> tuple[float, float, np.ndarray]:
    gain, gamma = (float(np.exp(rng.normal(0, spread))) for _ in range(2))
    return gain, gamma, np.exp(rng.normal(0, spread / 4, 3))


def _expose(frame: Tensor, gain: float, gamma: float, tint: np.ndarray) -> Tensor:
    colour = torch.from_numpy(tint.astype(np.float32)).to(frame.device)[:, None, None]
    return (gain * colour * frame).clamp(0, 1).pow(gamma)


def _soften(frame: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-4, 5, dtype=torch.float32, device=frame.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(frame[:, None], (4, 4, 4, 4), mode="replicate")
    rows = F.conv2d(padded, kernel.reshape(1, 1, 1, -1))
    return F.conv2d(rows, kernel.reshape(1, 1, -1, 1))[:, 0]


def _blur_along(frames: list[Tensor], flow: Tensor, shutter: float) -> list[Tensor]:
    """Blur along the motion, as in Sintel's final pass; frame 2 takes the motion at the same place
    of frame 1.
    """
    height, width = flow.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=flow.device)
    shares = torch.linspace(-0.5, 0.5, 7, device=flow.device) * shutter
    moves = shares[:, None, None, None] * flow.permute(1, 2, 0)  # (7, H, W, 2)
    grid = (2 * (pixel_grid(height, width, flow.device) + moves) + 1) / size - 1
    blurred = [
        F.grid_sample(
            frame.expand(len(shares), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
        for frame in frames
    ]
    return [samples.mean(dim=0) for samples in blurred]
