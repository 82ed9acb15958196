"""A folder of whole files, on this machine's file system or in an object store."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from trainables.files import replacing


@dataclass(frozen=True)
class Store:
    """Files by name, each either whole or absent. Only names travel when it is shipped to a worker.

    Args:
        root: a folder's path, or the address of one in an object store (`s3://bucket/runs/a`; its keys come from the
            environment, as pyarrow reads them).
    """

    root: str

    @property
    def remote(self) -> bool:
        """Whether it is in an object store."""
        return "://" in self.root

    def within(self, name: str) -> "Store":
        """A folder of this one."""
        return Store(f"{self.root.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes | None:
        """A file's contents; None where there is none."""
        try:
            if not self.remote:
                return Path(self.root, name).read_bytes()
            system, path = self._at(name)
            with system.open_input_stream(path) as stream:
                return bytes(stream.readall())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Put a file in place of the one of that name. An object store shows it once it is whole, too."""
        if not self.remote:
            with replacing(Path(self.root, name)) as temporary:
                temporary.write_bytes(data)
            return
        system, path = self._at(name)
        with system.open_output_stream(path) as stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if not self.remote:
            Path(self.root, name).unlink(missing_ok=True)
            return
        system, path = self._at(name)
        with suppress(FileNotFoundError):
            system.delete_file(path)

    def _at(self, name: str) -> tuple[fs.FileSystem, str]:
        system, path = fs.FileSystem.from_uri(self.root)
        return system, f"{path}/{name}"
