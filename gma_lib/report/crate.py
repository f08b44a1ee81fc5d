"""Describe a shared report as an RO-Crate, the format that archives of research read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gma_lib
from gma_lib.runs.files import RESOURCES
from gma_lib.runs.records import Record

if TYPE_CHECKING:
    from rocrate.model.entity import Entity
    from rocrate.rocrate import ROCrate

PAPER = "https://doi.org/10.48550/arXiv.2104.02409"
LICENSE = "https://spdx.org/licenses/Apache-2.0"
BIBTEX = f"""\
@inproceedings{{jiang2021learning,
  title = {{Learning to Estimate Hidden Motions with Global Motion Aggregation}},
  author = {{Jiang, Shihao and Campbell, Dylan and Lu, Yao and Li, Hongdong and Hartley, Richard}},
  booktitle = {{Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)}},
  year = {{2021}},
}}

@software{{gma_lib,
  title = {{GMA optical flow, from frames to a report that anyone can re-run}},
  author = {{{{The authors of the GMA reproducibility package}}}},
  version = {{{gma_lib.__version__}}},
}}"""
FORMATS = {
    ".html": "text/html",
    ".ipynb": "application/x-ipynb+json",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
}
ENCLOSED = {  # beside every report: file of the package -> its format, and what it is
    "CITATION.cff": ("application/yaml", "How to cite the package"),
    "LICENSE": ("text/plain", "License of the package"),
    "requirements.lock": (
        "text/plain",
        "Libraries of the package, as pip installs them: versions and SHA-256",
    ),
}


def read_enclosed() -> dict[str, bytes]:
    """Read the package's files that go with every report: name -> content."""
    return {name: (RESOURCES / name).read_bytes() for name in ENCLOSED}


def describe_files(digests: Mapping[str, str], profile: str, makers: Sequence[Record]) -> str:
    """Return the text of ``ro-crate-metadata.json`` for files, given as name -> SHA-256.

    It names the files, the paper and the licence, and of what computed them the package with the
    libraries that it used and the machine's processor and memory; no user, no folder of a machine.

    Parameters
    ----------
    makers
        Provenances of the records, which another machine may have computed than packs them.

    Sources: RO-Crate 1.3, https://w3id.org/ro/crate/1.3.
    """
    from rocrate.rocrate import ROCrate

    crate = ROCrate()
    crate.name = f"Optical flow with GMA: profile {profile}"
    crate.description = (
        "Executed notebooks, records and report of one run. "
        "`gma replay` computes it again and compares every number."
    )
    crate.license = LICENSE
    _add_entity(crate, PAPER, "ScholarlyArticle", {})
    crate.root_dataset["citation"] = {"@id": PAPER}
    made = [_add_maker(crate, maker, f"-{n}" if n else "") for n, maker in enumerate(makers)]
    crate.root_dataset["instrument"] = [machine for machine, _ in made]
    crate.root_dataset["mentions"] = [software for _, software in made]
    for name, digest in digests.items():
        form, what = ENCLOSED.get(name) or (FORMATS[Path(name).suffix], "")
        properties = {"encodingFormat": form, "sha256": digest}
        if what:
            properties["description"] = what
        crate.add_file(dest_path=name, properties=properties)
    return json.dumps(crate.metadata.generate(), indent=1)


def _add_maker(crate: "ROCrate", made: Record, place: str) -> tuple["Entity", "Entity"]:
    """Add what computed records, and return the machine and the package."""
    application = "SoftwareApplication"
    versions = [
        _add_entity(
            crate, f"#{name}-{version}", application, {"name": name, "softwareVersion": version}
        )
        for name, version in made["versions"].items()
    ]
    package = {
        "name": "gma-lib",
        "softwareVersion": made["package"],
        "identifier": made["commit"] or "not from a checkout",
        "license": LICENSE,
    }
    software = _add_entity(crate, f"#gma-lib{place}", application, package)
    software["softwareRequirements"] = versions
    machine = made["machine"]
    about = {
        "name": machine["processor"],
        "description": f"{machine['cores']} cores, {machine['memory_bytes']} bytes",
    }
    return _add_entity(crate, f"#machine{place}", "IndividualProduct", about), software


def _add_entity(crate: "ROCrate", identifier: str, kind: str, properties: Record) -> "Entity":
    from rocrate.model.contextentity import ContextEntity

    about = {"@type": kind} | properties
    return crate.add(ContextEntity(crate, identifier, properties=about))
