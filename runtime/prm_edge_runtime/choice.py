"""Which package, device and variant a :class:`.scorer.Scorer` takes: arguments first, then the
environment, then what there is."""

from __future__ import annotations

import logging
import os
from importlib.resources import files
from pathlib import Path
from typing import Final

from . import cuda, ort
from .errors import ConfigError, PackageNotFoundError
from .manifest import Variant
from .package import Package, choose_variant

logger = logging.getLogger("prm_edge")

DEVICES: Final = ("auto", "cpu", "cuda")
PACKAGE_VARIABLE: Final = "PRM_EDGE_PACKAGE"
DEVICE_VARIABLE: Final = "PRM_EDGE_DEVICE"
EMBEDDED: Final = "embedded"


def package_path(path: str | os.PathLike[str] | None) -> tuple[str | os.PathLike[str], str]:
    """The folder of the package to load, and who named it.

    Raises:
        PackageNotFoundError: when nobody did, and none is embedded.
    """
    if path is not None:
        return path, "argument"
    named = os.environ.get(PACKAGE_VARIABLE, "").strip()
    if named:
        return named, PACKAGE_VARIABLE
    embedded = Path(str(files("prm_edge_runtime"))) / "default_package"
    if embedded.is_dir():
        return embedded, EMBEDDED
    raise PackageNotFoundError(
        "no package was named and this build embeds none; pass its folder, or set "
        f"{PACKAGE_VARIABLE}; make one with: prm-edge export CHECKPOINT"
    )


def device_asked(device: str | None) -> str:
    """The device asked for: the argument, else ``PRM_EDGE_DEVICE``, else ``auto``.

    Raises:
        ConfigError: when there is no such device.
    """
    source = "device" if device is not None else DEVICE_VARIABLE
    name = device if device is not None else os.environ.get(DEVICE_VARIABLE, "").strip() or "auto"
    if name not in DEVICES:
        raise ConfigError(f"{source} must be one of {', '.join(DEVICES)}; got {name!r}")
    return name


def choose(package: Package, device: str, name: str | None) -> Variant:
    """The variant called ``name``, or the best one for a device.

    Raises:
        VariantError: when the package has none.
    """
    manifest = package.manifest
    if device != "auto":
        return choose_variant(manifest, device=device, name=name)
    if name is not None:
        return choose_variant(manifest, device=package.variant(name).device, name=name)
    has = {variant.device for variant in manifest.variants}
    device = "cuda" if "cuda" in has and (ort.cuda_available() or "cpu" not in has) else "cpu"
    wrong = cuda.clash() if device == "cpu" and "cuda" in has else None
    if wrong is not None:  # else the GPU build that was installed is passed over without a word
        logger.warning("device auto: taking cpu, as %s", wrong)
    logger.info("device auto: chose %s (the package has %s)", device, ", ".join(sorted(has)))
    return choose_variant(manifest, device=device, name=None)
