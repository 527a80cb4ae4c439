"""Material at a party: pieces that are used once, also after a restart.

Questions are numbered, and pieces are used in rising order; what was left out is spent. Before a
piece is used the number that follows it is on disk, some numbers ahead, so that a crash costs some
pieces and never uses one twice; an orderly end costs none.
"""

import logging
import struct
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from privacy.files import remove_leftovers, write_durably
from privacy.shared_inference.closing import Closing
from privacy.shared_inference.errors import (
    MaterialError,
    MaterialSpentError,
    MaterialUsedError,
    MessageError,
)
from privacy.shared_inference.messages import (
    OVERHEAD,
    VERSION,
    Head,
    Party,
    Tag,
    another_format,
    seal_into,
    unseal,
)
from privacy.shared_inference.ring import Buffer

_log = logging.getLogger(__name__)
_MAGIC = b"BSSM"
_HEAD = struct.Struct("<4sBB16sQQQ")
_USED = struct.Struct("<16sQ")
_SUFFIX = ".material"
_AHEAD = 16
"""Questions whose use is written down together: a write takes milliseconds."""


@dataclass(frozen=True)
class Bundle:
    """A party's pieces for questions in a row, as they are written and sent.

    Attributes
    ----------
    party : Party
    session, key : bytes
        From the party's letter.
    first, count : int
        The first question, and how many there are.
    size : int
        Bytes of a piece.
    """

    party: Party
    session: bytes
    key: bytes
    first: int
    count: int
    size: int

    @property
    def header(self) -> bytes:
        """What comes before the pieces."""
        fields = (self.party, self.session, self.first, self.count, self.size)
        return _HEAD.pack(_MAGIC, VERSION, *fields)

    @property
    def name(self) -> str:
        """Of the bundle's file."""
        return f"{self.first:012d}{_SUFFIX}"

    @property
    def sealed_bytes(self) -> int:
        """Of a piece as it is written."""
        return self.size + OVERHEAD

    @property
    def bytes(self) -> int:
        """Of the whole."""
        return _HEAD.size + self.count * self.sealed_bytes

    def start(self, question: int) -> int:
        """Where the piece of a question begins."""
        return _HEAD.size + (question - self.first) * self.sealed_bytes

    def seal(self, question: int, piece: Buffer, place: memoryview) -> None:
        """Write the piece of a question, for its party alone, where there is room for it."""
        head = Head(Tag.MATERIAL, Party.PROVIDER, self.party, self.session, question)
        seal_into(place, head, piece, self.key)


class MaterialStore(Closing):
    """A party's pieces, in a folder or in memory.

    Parameters
    ----------
    party : Party
    session, key : bytes
        From the party's letter.
    size : int
        Bytes of a piece.
    folder : path, optional
        Where material and the numbers used are kept, readable by the owner alone; used by one
        process at a time. Without it both end with this object.

    Raises
    ------
    MaterialError
        If the folder is in use, or of another session.

    Notes
    -----
    **Guarantee.** A piece is used once, also after a crash or where a bundle is added again.

    **Not covered.** A folder that is put back from a copy: its pieces would be used again.
    """

    def __init__(
        self, party: Party, session: bytes, key: bytes, size: int, folder: Path | None = None
    ) -> None:
        self._party, self._session, self._key, self._size = party, session, key, size
        self._folder = folder
        self._bundles: dict[int, tuple[int, bytes | Path]] = {}
        self._next = 0
        self._written = 0
        self._lock: FileLock | None = None
        if folder is not None:
            self._open(folder)

    @property
    def next_question(self) -> int:
        """The lowest number whose piece may be taken."""
        return self._next

    @property
    def left(self) -> int:
        """How many pieces there are still."""
        return sum(
            max(first + count - max(first, self._next), 0)
            for first, (count, _) in self._bundles.items()
        )

    def add(self, material: bytes) -> None:
        """Take in a bundle from the provider.

        Raises
        ------
        MessageError
            If it is none, for another party, or of another session. Its pieces are checked as they
            are used.
        """
        if not isinstance(material, bytes | bytearray):
            raise MessageError("material is bytes, from Provider.provision")
        first, count = self._checked(material[: _HEAD.size], len(material))
        if first + count <= self._next or first in self._bundles:
            return
        if self._folder is None:
            self._bundles[first] = (count, bytes(material))
        else:
            path = self._folder / f"{first:012d}{_SUFFIX}"
            remove_leftovers(path)
            write_durably(path, bytes(material))
            self._bundles[first] = (count, path)

    def read(self, question: int) -> Buffer:
        """The piece of a question; nothing that is made of it may leave before :meth:`use`.

        Raises
        ------
        MaterialUsedError
            If it was, or may have been.
        MaterialSpentError
            If there is none.
        MaterialError
            If its file cannot be read.
        MessageError
            If it was altered.
        """
        if question < self._next:
            raise MaterialUsedError(question, self._next)
        first, where = self._place(question)
        size = self._size + OVERHEAD
        start = _HEAD.size + (question - first) * size
        if isinstance(where, Path):
            try:
                with where.open("rb") as file:
                    file.seek(start)
                    sealed = memoryview(file.read(size))
            except OSError as error:
                raise MaterialError(
                    f"{where} cannot be read ({error.strerror}); the provider makes more material"
                ) from error
        else:
            sealed = memoryview(where)[start : start + size]
        head = Head(Tag.MATERIAL, Party.PROVIDER, self._party, self._session, question)
        try:
            return unseal(sealed, head, self._key, self._size)
        except MessageError as error:
            if isinstance(where, Path):
                raise MessageError(f"{where}: {error}; copy it again from the provider") from error
            raise

    def look(self) -> int:
        """Take in bundles that were copied into the folder since; the pieces that came.

        A file that is still being copied is left for the next time. One for another party, or of
        another session, is a ``MessageError`` that names it.
        """
        if self._folder is None:
            return 0
        before = self.left
        known = {where for _, where in self._bundles.values()}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path in known:
                continue
            try:
                first, count = self._checked_file(path)
            except _CutShortError:
                continue
            except MessageError as error:
                raise MessageError(f"{path}: {error}; remove it") from error
            except OSError as error:
                raise MaterialError(f"{path} cannot be read: {error.strerror}") from error
            self._bundles.setdefault(first, (count, path))
        self._forget()
        return self.left - before

    def close(self) -> None:
        """Let another process use the folder, from the next piece on."""
        if self._lock is not None and self._lock.is_locked:
            try:
                if self._written != self._next:
                    self._write_used(self._next)
            except MaterialError as error:
                _log.warning("%s; until then the pieces before %d are lost", error, self._written)
            finally:
                self._lock.release()

    def _open(self, folder: Path) -> None:
        self._lock = FileLock(folder / "lock", thread_local=False)  # another thread may close it
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise MaterialError(
                f"another worker or data owner uses the material in {folder}; end it"
            ) from None
        except OSError as error:
            raise MaterialError(f"{folder} cannot be used: {error.strerror}") from error
        try:
            self._begin(self._used_file)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, used: Path) -> None:
        """Go on where the last process ended."""
        remove_leftovers(used)
        if used.exists():
            content = used.read_bytes()
            if len(content) != _USED.size or content[:16] != self._session:
                raise MaterialError(
                    f"{used} is damaged, or of another session; give an empty folder and new "
                    "material"
                )
            self._next = self._written = _USED.unpack(content)[1]
        self.look()

    @property
    def _used_file(self) -> Path:
        if self._folder is None:
            raise TypeError("material in memory has no files")
        return self._folder / "used"

    def _place(self, question: int) -> tuple[int, bytes | Path]:
        """The bundle of a question: its first number, and where it is."""
        for first, (count, where) in self._bundles.items():
            if first <= question < first + count:
                return first, where
        raise MaterialSpentError(
            f"no material of question {question} is here; the provider makes more, for each party"
        )

    def use(self, question: int) -> None:
        """Spend the piece of a question, and all before it, on disk before this returns.

        Raises
        ------
        MaterialUsedError
            If it was spent.
        MaterialError
            If that cannot be written down; nothing that is made of the piece may leave.
        """
        if question < self._next:
            raise MaterialUsedError(question, self._next)
        if self._folder is not None and question >= self._written:
            self._write_used(question + _AHEAD)
        self._next = question + 1
        self._forget()

    def _write_used(self, following: int) -> None:
        try:
            write_durably(self._used_file, _USED.pack(self._session, following))
        except OSError as error:
            raise MaterialError(
                f"{self._used_file} cannot be written ({error.strerror}); make room for it"
            ) from error
        self._written = following

    def _forget(self) -> None:
        """Remove bundles of which nothing is left."""
        for first, (count, where) in list(self._bundles.items()):
            if first + count <= self._next:
                del self._bundles[first]
                if isinstance(where, Path):
                    where.unlink(missing_ok=True)

    def _checked_file(self, path: Path) -> tuple[int, int]:
        with path.open("rb") as file:
            return self._checked(file.read(_HEAD.size), path.stat().st_size)

    def _checked(self, head: bytes, length: int) -> tuple[int, int]:
        """The first question and the number of them, of a bundle's head and length."""
        if len(head) < _HEAD.size:
            raise _CutShortError("the material is cut short")
        magic, version, party, session, first, count, size = _HEAD.unpack(head)
        if magic != _MAGIC:
            raise MessageError("no material of shared inference")
        if version != VERSION:
            raise MessageError(f"the material is {another_format(version)}")
        if party != self._party or session != self._session:
            raise MessageError("the material is for another party, or of another session")
        if size != self._size:
            raise MessageError("the material is of another plan")
        if length != _HEAD.size + count * (size + OVERHEAD):
            raise _CutShortError("the material is cut short, or too long")
        return first, count


class _CutShortError(MessageError):
    """A bundle that is not all here."""
