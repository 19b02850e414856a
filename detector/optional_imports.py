"""What TensorFlow imports for no other reason than that it is installed.  Imports no TensorFlow.

TensorFlow and tf_keras look for packages whose data they could take or whose services they could call.  With
those that this package never hands to them the import took a second and 0.1 GiB more.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Frames as a layer's inputs, the addresses of Google's TPUs, sparse matrices and Keras's own augmentation.
_PACKAGES = ("pandas", "googleapiclient", "scipy")


class _AbsentWhileImporting(MetaPathFinder):
    """Finds nothing; while `importing` is being imported, it says so for the packages."""

    def __init__(self, importing: str, packages: Sequence[str]):
        self._importing = importing
        self._packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._packages and _is_being_imported(self._importing):
            raise ModuleNotFoundError(f"{self._importing} goes without {fullname}", name=fullname)
        return None


def leave_out(importing: str = "tensorflow", packages: Sequence[str] = _PACKAGES) -> None:
    """Let `importing`, when it is imported, not find the packages; from then on they are found as ever."""
    sys.meta_path.insert(0, _AbsentWhileImporting(importing, packages))


def _is_being_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False)
