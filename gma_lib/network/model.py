"""The network, top to bottom: encoders, correlation, the forms of its lookup, attention, motion
aggregation, recurrent updates.

Written from the paper "Learning to Estimate Hidden Motions with Global Motion Aggregation" (Jiang
et al., ICCV 2021, https://arxiv.org/abs/2104.02409), which extends RAFT (Teed and Deng, ECCV 2020).
Modules carry the names of the published state dicts (``fnet``, ``cnet``, ``update_block``, ``att``;
zacjiang/GMA at 2f1fd29), so that official checkpoints load as they are.

Shapes use N for the batch, H x W for the frame, h x w for the feature grid at 1/8 of it, and P = h
* w. Reshapes leave the batch to ``-1``: a traced graph then holds for every batch size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial, reduce
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gma_lib.network.sizes import ATTENTIONS, STRIDE, check_sides, check_updates

HIDDEN = 128
CONTEXT = 128
LEVELS = 4
RADIUS = 4
WINDOW = 2 * RADIUS + 1


@dataclass(frozen=True)
class GMAConfig:
    """Configuration of ``GMA``. Raises ValueError for unknown values.

    Attributes
    ----------
    num_updates
        Updates (refinement iterations), 1 to 1000: 6 in the guide; the authors evaluate with 12 and
        submit with 32.
    attention
        ``content`` (the authors' best on Sintel), ``position`` or ``position_and_content`` (paper,
        section 3.3; frames up to 1280 px a side). Give the one that the weights were trained with:
        a state dict does not tell.
    lookup
        How the correlation volume is sampled: ``matmul``, ``rows``, ``gather`` or ``grid_sample``.
        All give the same flow.
    """

    num_updates: int = 6
    attention: str = "content"
    lookup: str = "matmul"

    def __post_init__(self) -> None:
        check_updates(self.num_updates)
        for field, known in (("attention", ATTENTIONS), ("lookup", LOOKUPS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} is one of {', '.join(known)}, not {getattr(self, field)!r}"
                )


# --- encoders -------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which a strided block projects."""

    def __init__(self, in_channels: int, channels: int, *, norm: type[nn.Module], stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = norm(channels)
        self.norm2 = norm(channels)
        self.downsample = None
        if stride > 1:
            # One module under two names, as in the published state dicts.
            self.norm3 = norm(channels)
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride), self.norm3
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(shortcut + y)


class Encoder(nn.Module):
    """Frame (N, 3, H, W) scaled to -1..1 -> features (N, 256, h, w)."""

    def __init__(self, out_channels: int, *, norm: type[nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.norm1 = norm(64)
        self.layer1 = _residual_pair(64, 64, norm=norm, stride=1)
        self.layer2 = _residual_pair(64, 96, norm=norm, stride=2)
        self.layer3 = _residual_pair(96, 128, norm=norm, stride=2)
        self.conv2 = nn.Conv2d(128, out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return x


def _residual_pair(
    in_channels: int, channels: int, *, norm: type[nn.Module], stride: int
) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, channels, norm=norm, stride=stride),
        ResidualBlock(channels, channels, norm=norm, stride=1),
    )


# --- correlation ----------------------------------------------------------------------------------


def correlation_pyramid(features1: Tensor, features2: Tensor) -> list[Tensor]:
    """Correlate every cell of frame 1 with every cell of frame 2, at four resolutions of frame 2.

    Pooling the features instead of the volume gives the same numbers, because pooling is linear
    (RAFT, section 3.2), and never touches the h*w x h*w volume.

    Parameters
    ----------
    features1, features2
        (N, 256, h, w), computed in float32 whatever the precision around it: RAFT's authors report
        that rounding here costs accuracy.

    Returns
    -------
    list of Tensor
        Level l: (N*P, h / 2**l, w / 2**l), sides rounded down.
    """
    with torch.autocast(features1.device.type, enabled=False):
        # (N, P, 256); scaling by 1/16 before the product spares a pass over the volume and is exact
        queries = _flatten(_float32(features1)).transpose(1, 2) / int(features1.shape[1]) ** 0.5
        pooled = _float32(features2)
        levels = []
        for level in range(LEVELS):
            if level:
                pooled = F.avg_pool2d(pooled, 2, stride=2)
            height, width = _sides(pooled)
            levels.append((queries @ _flatten(pooled)).reshape(-1, height, width))
        return levels


def _sides(grid: Tensor) -> tuple[int, int]:
    """Height and width as plain numbers, so that a traced graph holds constants instead of shape
    arithmetic.
    """
    return int(grid.shape[-2]), int(grid.shape[-1])


def _flatten(grid: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C, P)."""
    height, width = _sides(grid)
    return grid.reshape(-1, int(grid.shape[1]), height * width)


def _float32(x: Tensor) -> Tensor:
    """Convert to float32; a float32 tensor is returned as it is, so a traced graph has no Cast."""
    return x if x.dtype == torch.float32 else x.float()


@lru_cache(maxsize=256)  # about 20 frame sizes
def _constant(make: Callable[..., np.ndarray], *sizes: int, device: torch.device) -> Tensor:
    """Copy the numbers that ``make`` returns for these sizes to the device.

    NumPy makes them, so that a traced graph holds numbers instead of operators.
    """
    return _to_device(make(*sizes), device)


def _to_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or training could not use what inference has made
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)


def _offsets() -> np.ndarray:
    return np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)


def _offsets_of_cells(cells: int) -> np.ndarray:
    """(1, 9, cells): where each cell lies, seen from each of the nine positions of a window."""
    offsets: np.ndarray = np.arange(cells, dtype=np.float32)[None, None] - _offsets()[:, None]
    return offsets


@cache
def _moves(axis: int, device: torch.device) -> Tensor:
    """(1, 9, 9): where each sample of a window lies along x (0) or y (1); x changes along the first
    axis of the window.
    """
    return _to_device(np.meshgrid(_offsets(), _offsets(), indexing="ij")[axis][None], device)


def _first_cells(maps: int, height: int) -> np.ndarray:
    """(maps, 10): the first ten rows of each of ``maps`` correlation maps, numbered through."""
    return height * np.arange(maps)[:, None] + np.arange(WINDOW + 1)


def _grid(height: int, width: int) -> np.ndarray:
    """(1, 2, h, w): where each cell lies, x before y."""
    return np.stack(
        np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    )[None]


def lookup_by_matmul(volume: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample a window around (x, y) with two small matrix products.

    Bilinear interpolation weighs cell j by ``max(0, 1 - |position - j|)``: a hat function that is
    zero outside the volume, as zero padding asks. With the hats of nine rows and nine columns as
    matrices, the window is columns . volume^T . rows^T. No gather, no integer index, any opset.

    Parameters
    ----------
    volume
        (M, height, width), one correlation map per cell of frame 1, M = N*h*w.
    x, y
        (N, 1, h, w), window centres in cells of this level.

    Returns
    -------
    Tensor
        (M, 9, 9); the first index moves x, the second y, as in the authors' channel order.
    """
    height, width = _sides(volume)
    rows, columns = _hats(y, height), _hats(x, width)  # (M, 9, height), (M, 9, width)
    return (volume @ columns.transpose(1, 2)).transpose(1, 2) @ rows.transpose(
        1, 2
    )  # (M, 9, height) x (M, height, 9)


def lookup_by_rows(volume: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Take the ten rows that a window can touch, then the products of ``lookup_by_matmul`` (its
    parameters) over these alone.

    The products are cheap, reading the whole volume for them is not. Near an edge the ten rows are
    the nearest inside: what the window has beyond is zero in both.
    """
    height, width = _sides(volume)
    taken = WINDOW + 1
    if height <= taken:
        return lookup_by_matmul(volume, x, y)
    first = (torch.floor(y) - RADIUS).clamp(0, height - taken)
    maps = _sides(y)[0] * _sides(y)[1]  # of each pair
    pair = (
        torch.cumsum(y[:, 0, :1, :1].clamp(1, 1), dim=0).long() - 1
    )  # (N, 1, 1), counted in the graph, which knows no batch size
    row = _constant(_first_cells, maps, height, device=volume.device)  # (P, 10)
    row = (row + pair * (maps * height) + first.reshape(-1, maps, 1).long()).reshape(-1, taken)
    touched = volume.reshape(-1, width)[row]  # (M, 10, width)
    return lookup_by_matmul(touched, x, y - first)


def _hats(center: Tensor, cells: int) -> Tensor:
    """Weights (M, 9, cells) of bilinear interpolation at nine positions around each center (N, 1,
    h, w).

    Half precision would move a center by up to a quarter of a cell. As a whole number and the rest
    it survives, and only those two have to be computed in float32. The whole number is rounded with
    its sign turned, because OpenVINO rewrites a difference and forgets its precision.
    """
    opposite = torch.round(-center)
    rest = center + opposite
    places = _constant(_offsets_of_cells, cells, device=center.device)
    return F.relu(1 - ((places + opposite.reshape(-1, 1, 1)) - rest.reshape(-1, 1, 1)).abs())


def _window(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (M, 9, 9) of all samples around centres (M, 1, 1)."""
    return x + _moves(0, x.device), y + _moves(1, y.device)


def lookup_by_gather(volume: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample a window with GatherElements, as the deployment guide does; parameters as in
    ``lookup_by_matmul``.

    Positions make the round trip through -1..1 that a replaced ``grid_sample`` makes, and the map
    is padded by one cell of zeros instead of masking the samples outside.
    """
    height, width = _sides(volume)
    x, y = _window(x.reshape(-1, 1, 1), y.reshape(-1, 1, 1))
    x = (2 * x / (width - 1) - 1 + 1) / 2 * (width - 1)
    y = (2 * y / (height - 1) - 1 + 1) / 2 * (height - 1)
    left, top = torch.floor(x), torch.floor(y)
    right_share, bottom_share = (x - left).reshape(-1, WINDOW**2), (y - top).reshape(-1, WINDOW**2)
    padded = F.pad(volume, (1, 1, 1, 1)).reshape(-1, (height + 2) * (width + 2))

    def corner(right: int, bottom: int) -> Tensor:
        column = _limit(left.long() + (1 + right), width + 1)
        row = _limit(top.long() + (1 + bottom), height + 1)
        cell = (column + row * (width + 2)).reshape(-1, WINDOW**2)
        return torch.gather(padded, 1, cell)

    top_pair = (1 - right_share) * corner(0, 0) + right_share * corner(1, 0)
    bottom_pair = (1 - right_share) * corner(0, 1) + right_share * corner(1, 1)
    return ((1 - bottom_share) * top_pair + bottom_share * bottom_pair).reshape(-1, WINDOW, WINDOW)


def _limit(index: Tensor, last: int) -> Tensor:
    index = torch.where(index < 0, torch.tensor(0), index)
    return torch.where(index > last, torch.tensor(last), index)


def lookup_by_grid_sample(volume: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample a window with ``grid_sample`` (ONNX opset 16 and above); parameters as in
    ``lookup_by_matmul``.
    """
    height, width = _sides(volume)
    x, y = _window(x.reshape(-1, 1, 1), y.reshape(-1, 1, 1))
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)  # (M, 9, 9, 2)
    return F.grid_sample(volume[:, None], grid, align_corners=True)[:, 0]


Lookup = Callable[[Tensor, Tensor, Tensor], Tensor]
LOOKUPS: dict[str, Lookup] = {
    "matmul": lookup_by_matmul,
    "rows": lookup_by_rows,
    "gather": lookup_by_gather,
    "grid_sample": lookup_by_grid_sample,
}


def look_up(
    pyramid: list[Tensor], coordinates: Tensor, lookup: Lookup = lookup_by_matmul
) -> Tensor:
    """Sample 9x9 windows of every level around the current correspondences.

    Parameters
    ----------
    pyramid
        From ``correlation_pyramid``.
    coordinates
        (N, 2, h, w), float32, cells of level 0, x before y.

    Returns
    -------
    Tensor
        (N, 324, h, w); channel ``level * 81 + ix * 9 + iy``.
    """
    height, width = _sides(coordinates)
    with torch.autocast(coordinates.device.type, enabled=False):
        x, y = torch.split(coordinates, 1, dim=1)
        windows = []
        for volume in pyramid:
            windows.append(lookup(volume, x, y).reshape(-1, height * width, WINDOW**2))
            x, y = x / 2, y / 2  # the next level has half the resolution
        return (
            torch.cat(windows, dim=-1)
            .transpose(1, 2)
            .reshape(-1, LEVELS * WINDOW**2, height, width)
        )


# --- attention and motion aggregation -------------------------------------------------------------


class RelativePosition(nn.Module):
    """Scores from the distance between cells, for the position variants (paper, section 3.3).

    Embeddings cover 160 cells a side, that is, frames up to 1280 px.
    """

    max_cells = 160
    rel_ind: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.rel_height = nn.Embedding(2 * self.max_cells - 1, channels)
        self.rel_width = nn.Embedding(2 * self.max_cells - 1, channels)
        cells = torch.arange(self.max_cells)
        self.register_buffer("rel_ind", cells[None] - cells[:, None] + self.max_cells - 1)

    def forward(self, queries: Tensor) -> Tensor:
        """Queries (N, C, h, w) -> scores (N, P, P)."""
        height, width = _sides(queries)
        if max(height, width) > self.max_cells:
            raise ValueError(
                f"position attention covers {self.max_cells} cells ({self.max_cells * STRIDE} px) "
                f"a side; this frame has {width}x{height} cells"
            )
        along_y = self.rel_height(self.rel_ind[:height, :height])  # (h, h, C): from row y to row v
        along_x = self.rel_width(self.rel_ind[:width, :width])  # (w, w, C)
        scores_y = torch.einsum("ncyx,yvc->nyxv", queries, along_y)
        scores_x = torch.einsum("ncyx,xuc->nyxu", queries, along_x)
        cells = height * width
        return (scores_y[..., :, None] + scores_x[..., None, :]).reshape(-1, cells, cells)


class Attention(nn.Module):
    """Where each cell of frame 1 looks for motion like its own (paper, equation 3), one head."""

    def __init__(self, channels: int, *, variant: str):
        super().__init__()
        self.variant = variant
        self.scale = channels**-0.5
        self.to_qk = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        # In every published state dict; used by the position variants.
        self.pos_emb = RelativePosition(channels)

    def forward(self, context: Tensor) -> Tensor:
        """Context (N, 128, h, w) -> weights (N, P, P); each row sums to one."""
        queries, keys = self.to_qk(context).split(CONTEXT, dim=1)
        queries = self.scale * queries  # as the authors do: position scores are scaled too
        scores: list[Tensor] = []
        if "content" in self.variant:  # (N, P, C) x (N, C, P)
            scores.append(_flatten(queries).transpose(1, 2) @ _flatten(keys))
        if "position" in self.variant:
            scores.append(self.pos_emb(queries))
        return reduce(torch.add, scores).softmax(dim=-1)


def attend(attention: Tensor, values: Tensor) -> Tensor:
    """Gather values (N, C, h, w) with attention (N, P, P); returns (N, C, h, w)."""
    height, width = _sides(values)
    gathered = attention @ _flatten(values).transpose(1, 2)  # (N, P, C)
    return gathered.transpose(1, 2).reshape(-1, int(values.shape[1]), height, width)


class Aggregate(nn.Module):
    """Add to each cell's motion the motion of the cells it attends to (paper, equation 4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.to_v = nn.Conv2d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))  # zero at the start: training begins as RAFT

    def forward(self, attention: Tensor, motion: Tensor) -> Tensor:
        return motion + self.gamma * attend(attention, self.to_v(motion))


# --- recurrent update -----------------------------------------------------------------------------


class MotionEncoder(nn.Module):
    """Correlation (N, 324, h, w) and flow (N, 2, h, w) -> motion features (N, 128, h, w), the flow
    among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * WINDOW**2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(64 + 192, 128 - 2, 3, padding=1)

    def forward(self, flow: Tensor, correlation: Tensor) -> Tensor:
        correlation = F.relu(self.convc2(F.relu(self.convc1(correlation))))
        motion = F.relu(self.convf2(F.relu(self.convf1(flow))))
        motion = F.relu(self.conv(torch.cat([correlation, motion], dim=1)))
        return torch.cat(
            [motion, flow if flow.dtype == motion.dtype else flow.to(motion.dtype)], dim=1
        )


class SeparableGRU(nn.Module):
    """A convolutional GRU in two passes, along the rows, then along the columns (RAFT, section
    3.3).
    """

    def __init__(self, hidden: int, inputs: int):
        super().__init__()
        along_rows = partial(nn.Conv2d, hidden + inputs, hidden, (1, 5), padding=(0, 2))
        self.convz1, self.convr1, self.convq1 = along_rows(), along_rows(), along_rows()
        along_columns = partial(nn.Conv2d, hidden + inputs, hidden, (5, 1), padding=(2, 0))
        self.convz2, self.convr2, self.convq2 = along_columns(), along_columns(), along_columns()

    def prepare(self, context: Tensor) -> Tensor:
        """Return what every update needs of the context (N, 128, h, w): here the context itself;
        the deploy form (``network.deploy``) computes more of it in advance.
        """
        return context

    def forward(self, hidden: Tensor, prepared: Tensor, motion: Tensor) -> Tensor:
        """Hidden state (N, 128, h, w), prepared context and motion features (N, 256, h, w) ->
        hidden state.
        """
        inputs = torch.cat([prepared, motion], dim=1)
        hidden = _gru_pass(hidden, inputs, self.convz1, self.convr1, self.convq1)
        return _gru_pass(hidden, inputs, self.convz2, self.convr2, self.convq2)


def _gru_pass(
    hidden: Tensor, inputs: Tensor, update: nn.Module, reset: nn.Module, candidate: nn.Module
) -> Tensor:
    both = torch.cat([hidden, inputs], dim=1)
    z = torch.sigmoid(update(both))
    r = torch.sigmoid(reset(both))
    q = torch.tanh(candidate(torch.cat([r * hidden, inputs], dim=1)))
    return (1 - z) * hidden + z * q


class FlowHead(nn.Module):
    """Hidden state (N, 128, h, w) -> change of flow (N, 2, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(HIDDEN, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        change: Tensor = self.conv2(F.relu(self.conv1(hidden)))
        return change


class UpdateBlock(nn.Module):
    """One refinement: motion features, their aggregation over the frame, GRU, change of flow."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MotionEncoder()
        self.gru = SeparableGRU(HIDDEN, CONTEXT + 2 * 128)
        self.flow_head = FlowHead()
        self.mask = nn.Sequential(
            nn.Conv2d(HIDDEN, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, STRIDE**2 * 9, 1),
        )
        self.aggregator = Aggregate(128)

    def forward(
        self,
        hidden: Tensor,
        prepared: Tensor | list[Tensor],
        correlation: Tensor,
        flow: Tensor,
        attention: Tensor,
    ) -> tuple[Tensor, Tensor]:
        motion = self.encoder(flow, correlation)
        aggregated = self.aggregator(attention, motion)
        hidden = self.gru(hidden, prepared, torch.cat([motion, aggregated], dim=1))
        return hidden, self.flow_head(hidden)

    def upsampling_weights(self, hidden: Tensor) -> Tensor:
        """Logits (N, 576, h, w) of the convex combination that enlarges the flow."""
        logits: Tensor = self.mask(hidden)
        return 0.25 * logits  # the factor balances gradients, says RAFT


def upsample_flow(flow: Tensor, weights: Tensor) -> Tensor:
    """Enlarge flow (N, 2, h, w) to (N, 2, H, W): each pixel is a convex mix of nine neighbouring
    cells (RAFT, 3.3).

    Ranks stay at four, and the neighbours are slices instead of an unfold, for the sake of
    accelerators.
    """
    height, width = _sides(flow)
    with torch.autocast(flow.device.type, enabled=False):
        shares = _float32(weights).reshape(-1, 9, STRIDE**2, height * width).softmax(dim=1)
        padded = F.pad(STRIDE * flow, (1, 1, 1, 1))
        shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        neighbours = torch.cat(
            [n.reshape(-1, 1, 2, height * width) for n in shifted], dim=1
        )  # (N, 9, 2, P)
        components = [
            (shares * neighbours[:, :, c : c + 1]).sum(dim=1) for c in (0, 1)
        ]  # (N, 64, P) each
        enlarged = torch.cat(components, dim=1).reshape(-1, 2 * STRIDE**2, height, width)
        return F.pixel_shuffle(enlarged, STRIDE)


# --- the network ----------------------------------------------------------------------------------


class GMA(nn.Module):
    """Optical flow from two frames. Weights are random at first: see ``load_model``.

    Parameters
    ----------
    config
        None: ``GMAConfig()``, which runs 6 updates.

    Notes
    -----
    5,879,873 learnable parameters in every variant. Sides must be multiples of 8 and at least 128;
    ``gma_lib.data.padding.Padding`` pads frames.
    """

    def __init__(self, config: GMAConfig | None = None):
        super().__init__()
        self.config = config or GMAConfig()
        self.fnet = Encoder(256, norm=nn.InstanceNorm2d)
        self.cnet = Encoder(HIDDEN + CONTEXT, norm=nn.BatchNorm2d)
        self.update_block = UpdateBlock()
        self.steps: tuple[str, ...] = ()  # that ``network.deploy`` took
        self._grids: dict[tuple[int, int, torch.device], Tensor] = {}
        self.att = Attention(CONTEXT, variant=self.config.attention)

    def features(self, image: Tensor) -> Tensor:
        """Frame (N, 3, H, W) -> features (N, 256, h, w) that are compared between frames.

        Along a sequence those of each frame are computed once: they serve as the second frame's and
        then as the first's.
        """
        return _float32(self.fnet(_scale(image)))

    def context(self, image: Tensor) -> Tensor:
        """First frame (N, 3, H, W) -> (N, 256, h, w): initial hidden state and context, before
        their nonlinearities.
        """
        encoded: Tensor = self.cnet(_scale(image))
        return encoded

    def updates(
        self,
        features1: Tensor,
        features2: Tensor,
        context: Tensor,
        flow_init: Tensor | None,
        num_updates: int,
        *,
        lead: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (hidden state, flow in cells (N, 2, h, w)) after each refinement; the first
        ``lead`` of them leave no gradient.
        """
        pyramid = correlation_pyramid(features1, features2)
        hidden, context = torch.split(context, [HIDDEN, CONTEXT], dim=1)
        hidden, context = torch.tanh(hidden), F.relu(context)
        attention = self.att(context)
        prepared = self.update_block.gru.prepare(context)
        height, width = _sides(context)
        # Kept by the model: a recorded CUDA graph goes on reading it.
        grid = _constant(_grid, height, width, device=features1.device)
        start = self._grids.setdefault((height, width, features1.device), grid)
        # Zero times data instead of zeros: the traced graph then needs no operator that knows the
        # batch size.
        flow = features1[:, :2] * 0 if flow_init is None else _float32(flow_init)
        for number in range(num_updates):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= lead):
                flow = (
                    flow.detach()
                )  # no gradient through the previous refinement (RAFT, section 3.4)
                correlation = look_up(pyramid, start + flow, LOOKUPS[self.config.lookup])
                hidden, change = self.update_block(hidden, prepared, correlation, flow, attention)
                flow = flow + _float32(change)
            yield hidden, flow

    def flow_by_update(
        self,
        features1: Tensor,
        features2: Tensor,
        context: Tensor,
        num_updates: int,
        *,
        lead: int = 0,
    ) -> Iterator[Tensor]:
        """Yield flow (N, 2, H, W) in pixels after each refinement but the first ``lead``, which
        leave no gradient.
        """
        updates = self.updates(features1, features2, context, None, num_updates, lead=lead)
        for hidden, flow in islice(updates, lead, None):
            yield upsample_flow(flow, self.update_block.upsampling_weights(hidden))

    def refine(
        self,
        features1: Tensor,
        features2: Tensor,
        context: Tensor,
        flow_init: Tensor | None = None,
        num_updates: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From encoded frames to flow.

        Parameters
        ----------
        features1, features2, context
            From ``features`` of both frames and ``context`` of the first.
        flow_init
            (N, 2, h, w), in cells (pixels / 8); a warm start.

        Returns
        -------
        flow, flow_low
            (N, 2, H, W) in pixels, and (N, 2, h, w) in cells, from which the next pair can start
            warm.
        """
        for step in self.updates(
            features1, features2, context, flow_init, num_updates or self.config.num_updates
        ):
            hidden, flow_low = step  # the last step is the result
        return upsample_flow(flow_low, self.update_block.upsampling_weights(hidden)), flow_low

    def forward(
        self,
        image1: Tensor,
        image2: Tensor,
        num_updates: int | None = None,
        flow_init: Tensor | None = None,
    ) -> Tensor:
        """Estimate the motion from ``image1`` to ``image2``.

        Parameters
        ----------
        image1, image2
            float32 (N, 3, H, W), RGB, 0..255; sides multiples of 8 and at least 128 px.
        num_updates
            None: as configured.
        flow_init
            Flow to start from, (N, 2, H/8, W/8), in cells (pixels / 8); None: zero.

        Returns
        -------
        Tensor
            Flow in pixels, float32, (N, 2, H, W), x before y.

        Raises
        ------
        ValueError
            For frames of other or different shapes; with position attention, above 1280 px a side.
        """
        check_pair(image1, image2)
        flow, _ = self.refine(
            self.features(image1),
            self.features(image2),
            self.context(image1),
            flow_init,
            num_updates,
        )
        return flow


def _scale(image: Tensor) -> Tensor:
    return 2 * (image / 255) - 1


def check_pair(image1: Tensor, image2: Tensor) -> None:
    """Raise ValueError unless the network can take these frames."""
    if tuple(image1.shape) != tuple(image2.shape):
        raise ValueError(
            f"the two frames differ in shape: {tuple(image1.shape)} and {tuple(image2.shape)}"
        )
    if image1.ndim != 4 or image1.shape[1] != 3:
        raise ValueError(f"frames have shape (N, 3, H, W), not {tuple(image1.shape)}")
    check_sides(*_sides(image1))
