"""Every error prm-edge raises on purpose.

::

    PrmEdgeError
    ├── InputError (ValueError)               a problem, step or record that cannot be scored
    │   └── InputTypeError (TypeError)        ... because it has the wrong type
    ├── SessionError (RuntimeError)           a session that is closed, in use, or at its start
    ├── ConfigError (ValueError)              an option or environment variable out of range
    ├── RecipeError (ValueError)              malformed, or does not fit its tokenizer
    ├── PackageError                          a package folder that cannot be used
    │   ├── PackageNotFoundError (FileNotFoundError)
    │   ├── PackageFormatError (ValueError)   unknown version or key, wrong type, impossible value
    │   ├── PackageIntegrityError             missing file, wrong size or hash, path leading outside
    │   └── VariantError (LookupError)        no variant of that name, or none for this device
    ├── DeviceError (RuntimeError)            the device asked for cannot be had
    │   └── RuntimeMissingError (ImportError) onnxruntime is not installed
    ├── EngineError (RuntimeError)            onnxruntime failed, or returned numbers that are none
    ├── ClusterError (RuntimeError)           a Ray cluster that did not do its work
    ├── SelfTestError (RuntimeError)          this machine does not reproduce the recorded scores
    └── ExportError                           a checkpoint that could not become a package
        ├── CheckpointError (ValueError)      files missing, unreadable, contradictory or hostile
        ├── UnsupportedError (ValueError)     understood, and known not to be supported
        ├── ProofError (RuntimeError)         the package does not reproduce torch's scores
        └── ExportDependencyError (ImportError)  the extra that exports is not installed

A caller's mistake also subclasses the builtin that Python itself would raise.
Every message says what is wrong, what was found, what is allowed, and what to do next.
"""

from __future__ import annotations


class PrmEdgeError(Exception):
    """The root: catch this to catch everything prm-edge raises on purpose."""


class InputError(PrmEdgeError, ValueError):
    """A problem, a step or a record that cannot be scored."""


class InputTypeError(InputError, TypeError):
    """A problem, a step or a record of the wrong type."""


class SessionError(PrmEdgeError, RuntimeError):
    """A live session that cannot do this now: closed, in use, or without a step to take back."""


class ConfigError(PrmEdgeError, ValueError):
    """An option or environment variable with a value that is not allowed."""


class RecipeError(PrmEdgeError, ValueError):
    """A scoring recipe that is malformed or does not fit its tokenizer."""


class PackageError(PrmEdgeError):
    """A package folder that cannot be used."""


class PackageNotFoundError(PackageError, FileNotFoundError):
    """No package at the path given."""


class PackageFormatError(PackageError, ValueError):
    """A manifest with an unknown version or key, a wrong type or an impossible value."""


class PackageIntegrityError(PackageError):
    """A file that is missing, has the wrong size or hash, or lies outside the package."""


class VariantError(PackageError, LookupError):
    """No variant of that name, or none that this device can run."""


class DeviceError(PrmEdgeError, RuntimeError):
    """The device asked for cannot be had."""


class RuntimeMissingError(DeviceError, ImportError):
    """onnxruntime is not installed."""


class EngineError(PrmEdgeError, RuntimeError):
    """onnxruntime failed, or returned something that cannot be a score."""


class ClusterError(PrmEdgeError, RuntimeError):
    """A Ray cluster that cannot be reached, has no room, or did not do its work."""


class SelfTestError(PrmEdgeError, RuntimeError):
    """This machine does not reproduce the scores recorded in the package."""


class ExportError(PrmEdgeError):
    """A checkpoint that could not become a package; nothing was written."""


class CheckpointError(ExportError, ValueError):
    """A checkpoint with missing, unreadable, contradictory or hostile files."""


class UnsupportedError(ExportError, ValueError):
    """A checkpoint that is understood and known not to be supported."""


class ProofError(ExportError, RuntimeError):
    """The package does not reproduce torch, or the scores recorded where it was trained."""


class ExportDependencyError(ExportError, ImportError):
    """The extra that provides the exporter is not installed."""
