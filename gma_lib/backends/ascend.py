"""Ascend: an ``.om`` through ``ais_bench``, in another process and, where needed, another
interpreter.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from gma_lib.ascend import (
    AisBench,
    Card,
    ais_bench,
    atc,
    brought_back,
    find_ais_python,
    find_toolkit,
    list_chips,
    load_tool_environment,
)
from gma_lib.backends.base import FolderBackend, check_frames
from gma_lib.data.guide_tensors import read_tensor, write_tensor
from gma_lib.runs import (
    PRECISION_NAMES,
    Record,
    Track,
    hash_file,
    log_elapsed,
    pass_silently,
    read_back_precision,
    refuse_precision,
    require_free_space,
)
from gma_lib.runs.devices import Devices
from gma_lib.runs.leftovers import temporary_folder

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


@dataclass(frozen=True)
class AscendOptions:
    """How to run.

    Attributes
    ----------
    precision
        What the ``.om`` was made with; read back from its manifest.
    card
        Which card, and the interpreter of its tools.
    """

    precision: str = "float16"
    card: Card = field(default_factory=Card)

    def require(self) -> None:
        """Raise ValueError for a precision that atc is not told here; the card and its tools are
        looked for where they are needed.
        """
        refuse_precision(
            "ascend",
            self.precision,
            tuple(PRECISION_NAMES["atc"]),
            "atc's precision modes are mapped for these",
        )

    def find_devices(self) -> Devices | None:
        """What worker processes share; None where no card computes."""
        return None if self.card.dry_run else Devices(VISIBLE, partial(list_cards, self.card))


class AscendBackend(FolderBackend):
    """Runs ``gma.om``, which 03_convert made, with its manifest ``gma.om.json``."""

    def __init__(self, path: Path, options: AscendOptions | None = None):
        self.options = options or AscendOptions()
        self.options.require()
        self.path = Path(path)
        self.manifest = self._read_manifest()
        told = self.manifest["options"]
        self.precision = read_back_precision(told["precision_mode"], told["precision_mode_v2"])
        if self.precision != self.options.precision:
            raise ValueError(
                f"{self.path} computes in {self.precision}, not {self.options.precision}: run "
                "03_convert again"
            )
        shapes = next(word for word in self.manifest["command"] if "--input_shape=" in word)
        sides = shapes.split("image1:")[1].split(";")[0]
        self.shape = tuple(int(side) for side in sides.split(","))
        self.simulated = bool(self.manifest["simulated"])
        self.device = f"{self.manifest['soc']}{' (SIMULATED)' if self.simulated else ''}"
        self._find_tool()

    def _read_manifest(self) -> Record:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such model; run 03_convert first")
        manifest = atc.read_manifest(self.path)
        if manifest is None or manifest["om_sha256"] != hash_file(self.path):
            raise ValueError(
                f"{self.path} and its manifest do not belong together: run 03_convert again"
            )
        return manifest

    def _find_tool(self) -> None:
        environment = load_tool_environment(find_toolkit())
        card = self.options.card
        require_chip(self.manifest, environment)
        python = find_ais_python(card.ais_python, environment)
        self.tool = AisBench(python, card.device or 0, environment)

    def predict(self, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        frames = check_frames(image1, image2, self.shape)
        with temporary_folder() as folder:
            folders = [folder / "image1", folder / "image2"]
            for place, images in zip(folders, frames, strict=True):
                for number, image in enumerate(images):
                    write_tensor(place / f"{number:06d}.bin", image)
            return np.stack([flow for _, flow in self.predict_folders(*folders)])

    def predict_folders(
        self, image1: Path, image2: Path, *, track: Track = pass_silently
    ) -> Iterator[tuple[str, np.ndarray]]:
        batch_size, channels, height, width = self.shape
        for path in [place for folder in (image1, image2) for place in (folder, *folder.iterdir())]:
            # the newer tool refuses files that a group may write, as some systems make them
            path.chmod(path.stat().st_mode & ~0o022)
        with temporary_folder() as place:
            pairs = sum(1 for _ in image1.iterdir())
            require_free_space(place, pairs * 4 * 2 * height * width)
            files, timing = ais_bench.infer_folders(
                self.tool,
                self.path,
                [image1, image2],
                place / f"bs{batch_size}",
                batch_size=batch_size,
                output_shape=(2, height, width),
                input_bytes=4 * channels * height * width,
                track=track,
            )
            self.simulated = self.simulated or timing.simulated
            for stem, file in files.items():
                yield stem, read_tensor(file, (2, height, width))

    def time_on_zeros(self) -> ais_bench.Timing:
        """Time calls on zeros, as the guide measures."""
        return ais_bench.time_on_zeros(
            self.tool,
            self.path,
            batch_size=self.shape[0],
            watch=partial(log_elapsed, label=f"ais_bench, {ais_bench.LOOP} calls"),
        )


class DryRunBackend(AscendBackend):
    """Answers with the flow that another machine computed for the same frames, and knows no other
    frames.
    """

    def _read_manifest(self) -> Record:
        batch_size = atc.read_input_shapes(self.path.with_name("gma.onnx"))["image1"][0]
        folder = Path(str(self.options.card.dry_run))
        self.results = brought_back.read_brought_back(folder, batch_size)
        return self.results.manifest

    def _find_tool(self) -> None:
        self.shape = (1, *self.shape[1:])  # pairs are looked up, whatever batch they were in

    def predict_folders(
        self, image1: Path, image2: Path, *, track: Track = pass_silently
    ) -> Iterator[tuple[str, np.ndarray]]:
        for file in sorted(image1.iterdir()):
            found = self.results.flow.get((hash_file(file), hash_file(image2 / file.name)))
            if found is None:
                raise ValueError(
                    f"{self.options.card.dry_run} has no flow of these frames, which have changed "
                    "since: run make ascend-dry-run and run.sh again"
                )
            yield file.stem, read_tensor(found, (2, *self.shape[2:]))

    def time_on_zeros(self) -> ais_bench.Timing:
        return self.results.timing


def open_ascend(path: Path, options: AscendOptions) -> AscendBackend:
    """Open the model for the card here, or what was brought back from another machine."""
    return (DryRunBackend if options.card.dry_run else AscendBackend)(path, options)


def list_cards(card: Card) -> list[str]:
    """Logic IDs of the chips that this process can use, as ASCEND_RT_VISIBLE_DEVICES names them.

    Raises ValueError where there is none, or where ``card`` names one for all processes.
    """
    if card.device is not None:
        raise ValueError(
            f"device={card.device} is for one process: leave it null, and give the workers "
            f"{VISIBLE}={card.device}"
        )
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    chips = list_chips(load_tool_environment(find_toolkit()))
    listed = [str(chip.device) for chip in chips if chip.device is not None]
    there = listed or named  # cards that cannot be asked: ais_bench will say
    if found := [name for name in named or there if name in there]:
        return found
    raise ValueError(
        f"no card can be used: npu-smi lists {', '.join(there) or 'none'}, and {VISIBLE} is "
        f"{','.join(named) or 'not set'}"
    )


def require_chip(manifest: Record, environment: dict[str, str]) -> None:
    """Raise ValueError if the model was made for another card than this machine's.

    Does nothing where the card cannot be asked: ais_bench will say.
    """
    found = {chip.soc for chip in list_chips(environment)}
    if found and manifest["soc"] not in found:
        raise ValueError(
            f"the model was made for {manifest['soc']}, this machine has "
            f"{', '.join(sorted(found))}: run 03_convert again, or with SOC="
        )
