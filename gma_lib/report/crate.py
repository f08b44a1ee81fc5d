"""Describe a shared report as an RO-Crate, the format that archives of research read."""

import json
from collections.abc import Mapping
from pathlib import Path

import gma_lib
from gma_lib.runs.records import trace_provenance

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


def describe_files(digests: Mapping[str, str], profile: str) -> str:
    """Return the text of ``ro-crate-metadata.json`` for files, given as name -> SHA-256.

    It names the files, this package with the libraries it used, the machine's processor and memory,
    the paper and the licence; no user, no folder of this machine.

    Sources: RO-Crate 1.3, https://w3id.org/ro/crate/1.3.
    """
    from rocrate.model.contextentity import ContextEntity
    from rocrate.model.softwareapplication import SoftwareApplication
    from rocrate.rocrate import ROCrate

    crate, made = ROCrate(), trace_provenance()
    crate.name = f"Optical flow with GMA: profile {profile}"
    crate.description = (
        "Executed notebooks, records and report of one run. "
        "`gma replay` computes it again and compares every number."
    )
    crate.license = LICENSE
    versions = [
        crate.add(
            SoftwareApplication(
                crate, f"#{name}", properties={"name": name, "softwareVersion": version}
            )
        )
        for name, version in made["versions"].items()
    ]
    package = {
        "name": "gma-lib",
        "softwareVersion": gma_lib.__version__,
        "identifier": made["commit"] or "not from a checkout",
        "license": LICENSE,
    }
    software = crate.add(SoftwareApplication(crate, "#gma-lib", properties=package))
    software["softwareRequirements"] = versions
    machine = made["machine"]
    crate.add(
        ContextEntity(
            crate,
            "#machine",
            properties={
                "@type": "IndividualProduct",
                "name": machine["processor"],
                "description": f"{machine['cores']} cores, {machine['memory_bytes']} bytes",
            },
        )
    )
    crate.add(ContextEntity(crate, PAPER, properties={"@type": "ScholarlyArticle"}))
    crate.root_dataset["citation"] = {"@id": PAPER}
    crate.root_dataset["instrument"] = {"@id": "#machine"}
    crate.root_dataset["mentions"] = software
    for name, digest in digests.items():
        form = FORMATS[Path(name).suffix]
        properties = {"encodingFormat": form, "sha256": digest}
        crate.add_file(dest_path=name, properties=properties)
    return json.dumps(crate.metadata.generate(), indent=1)
