"""What an HDF5 file may be made of: checked before an array is read, for anybody may have made it.

HDF5 follows links into other files, takes arrays from them, loads filters that it finds, and
invents arrays of any size. A results file needs none of that.
"""

import io
import math
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5i, h5l, h5o, h5s, h5t, h5z

from condexp.errors import visible

FILTERS = frozenset({h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32})
NUMBERS = frozenset({h5t.INTEGER, h5t.FLOAT, h5t.ENUM})
MAX_RANK = 3
MAX_CHUNK_BYTES = 1 << 22  # those of a sealed file have a quarter of that at most
MAX_RATIO = 1040  # what deflate can compress by
MAX_TEXTS = 1 << 17
MAX_TEXT_BYTES = 1 << 26  # of all texts of an array, each as long as the longest
MAX_READ = 1 << 27  # at once; a compressed array may be a thousand times its file
WHOLE: dict[type, Any] = {slice: slice(None), tuple: ()}  # how all of an array is asked for
MAX_CODES, MAX_CODE_LETTERS = 32, 32
MAX_ATTRIBUTES = 64
# What stands for a text of any length in an array.
REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
MAX_ATTRIBUTE_BYTES = 1 << 16


class StructuredGroup(h5py.Group):  # type: ignore[misc]  # h5py has no types
    """A group that gives only what a results file may hold.

    Attributes:
        content: The bytes of the file, where they can be asked for.
    """

    content: io.RawIOBase | None = None

    # In place of h5py's method, which follows links.
    def __getitem__(self, name: Any) -> Any:
        """Return a group or an array below this group.

        Args:
            name: Its path from here.

        Returns:
            The group or the checked array.

        Raises:
            KeyError: If there is none.
            ValueError: If it is a link, or an array of another kind than a results file has.
        """
        head, _, rest = str(name).strip("/").partition("/")
        if not head:
            return self
        try:
            link = self.id.links.get_info(head.encode()).type
        except (KeyError, RuntimeError) as error:
            raise KeyError(f"object {head!r} doesn't exist in {self.name}") from error
        if link != h5l.TYPE_HARD:
            raise ValueError(f"{self.name}/{head} is a link".replace("//", "/"))
        item = h5o.open(self.id, head.encode())
        if isinstance(item, h5g.GroupID):
            group = StructuredGroup(item)
            group.content = self.content
            return group[rest] if rest else group
        if rest or not isinstance(item, h5d.DatasetID):
            raise KeyError(f"object {rest!r} doesn't exist in {self.name}")
        array = StructuredArray(item)
        array.content = self.content
        _check_array(array)
        return array

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a link; it is not followed."""
        head, _, rest = str(name).strip("/").partition("/")
        there: bool = self.id.links.exists(head.encode())
        return there and (not rest or rest in self[head])


class StructuredArray(h5py.Dataset):  # type: ignore[misc]
    """An array that is read piece by piece where it is large.

    Attributes:
        content: The bytes of its file, where they can be asked for.
    """

    content: io.RawIOBase | None = None

    def __getitem__(self, args: Any, new_dtype: Any = None) -> Any:
        """Return a part of the array.

        Args:
            args: Places and slices, as numpy's.
            new_dtype: As h5py's.

        Returns:
            The values.

        Raises:
            ValueError: If they are too many to be read at once.
        """
        shape, kind = self.shape, self.dtype  # each is asked of HDF5
        num_bytes = num_selected(shape, args) * kind.itemsize
        if num_bytes > MAX_READ:  # its name costs more than all this
            refuse_large(self.name, num_bytes, MAX_READ)
        if type(args) in WHOLE and args == WHOLE[type(args)]:
            values = np.empty(shape, kind)  # in half the time of h5py's own way
            self.id.read(h5s.ALL, h5s.ALL, values)
            return values[()]
        return super().__getitem__(args, new_dtype)


def num_selected(shape: tuple[int, ...], args: Any) -> int:
    """Count the elements of a part of an array.

    Args:
        shape: The array's.
        args: Places and slices of its first axes; the others are whole.

    Returns:
        Their number, or more.

    >>> num_selected((5, 4, 3), (slice(1, 3), 0)), num_selected((5,), slice(None))
    (6, 5)
    """
    given = args if isinstance(args, tuple) else (args,)
    sizes = list(shape)
    for axis, each in enumerate(given[: len(sizes)]):
        if isinstance(each, slice):
            sizes[axis] = len(range(*each.indices(shape[axis])))
        elif isinstance(each, int | np.integer):
            sizes[axis] = 1
        else:  # an ellipsis, or h5py's own
            break
    return math.prod(sizes)


def refuse_large(what: str, num_bytes: int, limit: int) -> None:
    """Refuse what would take too much memory.

    Args:
        what: Its name.
        num_bytes: What it takes.
        limit: What it may take.

    Raises:
        ValueError: If it takes more.
    """
    if num_bytes > limit:
        raise ValueError(f"{what} takes {num_bytes / 1e6:.0f} MB, too much to be read at once")


class StructuredFile(StructuredGroup, h5py.File):  # type: ignore[misc]
    """A results file of unknown origin, open for reading."""


def _check_array(array: h5py.Dataset) -> None:
    """Refuse an array that a results file cannot hold.

    Raises:
        ValueError: If it is one.
    """
    problem = _foreign(array.id)
    if problem:
        raise ValueError(f"{array.name} {problem}")


def _foreign(array: h5d.DatasetID) -> str | None:
    """Return what makes an array another than those of a results file."""
    kind, created, shape = array.get_type(), array.get_create_plist(), array.shape
    category, each, num = kind.get_class(), kind.get_size(), math.prod(shape)
    text = category == h5t.STRING and kind.is_variable_str()
    if not text and category not in NUMBERS:
        return "holds neither numbers nor texts"
    if each > (16 if text else 8):
        return f"has elements of {each} bytes"
    if category == h5t.ENUM and _is_odd(kind):
        return "has other codes than a results file"
    if len(shape) > MAX_RANK:
        return f"has {len(shape)} dimensions"
    if text and num > MAX_TEXTS:
        return f"holds {num} texts"
    if created.get_external_count():
        return "lies in another file"
    layout, stored = created.get_layout(), array.get_storage_size()
    if layout == h5d.CONTIGUOUS:
        start, end = array.get_offset(), h5i.get_file_id(array).get_filesize()
        inside = num * each <= end - (start or 0)  # without a place it holds its fill value
        return None if inside or not num else f"has {num * each} bytes, more than the file holds"
    if layout == h5d.COMPACT:
        return None
    if layout != h5d.CHUNKED:
        return "is put together of other arrays"
    used = {created.get_filter(index)[0] for index in range(created.get_nfilters())}
    if not used <= FILTERS:
        return f"has a filter that a results file has not: {sorted(used - FILTERS)}"
    if math.prod(created.get_chunk()) * each > MAX_CHUNK_BYTES:
        return f"has chunks of {created.get_chunk()}"
    inside = num * each <= max(MAX_RATIO * stored, MAX_CHUNK_BYTES)
    return None if inside else f"has {num * each} bytes, more than the file holds"


def _is_odd(kind: h5t.TypeEnumID) -> bool:
    num = kind.get_nmembers()
    return num > MAX_CODES or any(
        len(kind.get_member_name(index)) > MAX_CODE_LETTERS for index in range(num)
    )


def texts(array: h5py.Dataset) -> tuple[str, ...]:
    """Read texts, control characters as text.

    Args:
        array: An array with one dimension, or none.

    Returns:
        The texts.

    Raises:
        ValueError: If it holds none.
    """
    if h5py.check_string_dtype(array.dtype) is None:
        raise ValueError(f"{array.name} holds no texts")
    if not array.shape:
        return (visible(_decoded(array[()])),)
    # Many texts may be one, stored once: no more are taken at a time than would fit if all were.
    num = len(array)
    at_once = max(1, MAX_READ // h5i.get_file_id(array.id).get_filesize())
    if at_once < num and _num_letters(array) <= MAX_READ:
        at_once = num
    found: list[str] = []
    longest = 0
    for first in range(0, num, at_once):
        cut = slice(first, first + at_once) if at_once < num else slice(None)
        part = [visible(_decoded(text)) for text in array[cut]]
        longest = max(longest, *map(len, part))
        if 4 * num * longest > MAX_TEXT_BYTES:
            refuse_large(array.name, 4 * num * longest, MAX_TEXT_BYTES)
        found += part
    return tuple(found)


def _num_letters(array: h5py.Dataset) -> int:
    """Return what texts take in memory, from their lengths; where these are unknown, too much."""
    place, content = array.id.get_offset(), getattr(array, "content", None)
    num_bytes = REFERENCE.itemsize * len(array)
    if content is None or place is None or array.id.get_storage_size() != num_bytes:
        return MAX_READ + 1
    stored = bytearray(num_bytes)
    content.seek(place)
    content.readinto(stored)
    return int(np.frombuffer(stored, REFERENCE)["length"].sum(dtype=np.int64))


def attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Read the attributes that are single texts and numbers; large or many ones are refused.

    Args:
        item: What they belong to.

    Returns:
        Values by name; texts with control characters as text.

    Raises:
        ValueError: If they are more or larger than those of a results file.
    """
    if h5a.get_num_attrs(item.id) > MAX_ATTRIBUTES:
        raise ValueError(f"{item.name} has more than {MAX_ATTRIBUTES} attributes")
    found = {name: attribute(item, name) for name in item.attrs}
    return {name: value for name, value in found.items() if value is not None}


def count(item: h5py.Group | h5py.Dataset, name: str) -> int:
    """Read an attribute that is a number of things.

    Args:
        item: What it belongs to.
        name: Its name.

    Returns:
        The number, at least 1.

    Raises:
        ValueError: If it is none.
    """
    value = attribute(item, name)
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}, not a number of 1 or more")
    return int(value)


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Read an attribute that is a single text or number.

    Args:
        item: What it belongs to.
        name: Its name.

    Returns:
        The value; None where there is none, or it is no single one.

    Raises:
        ValueError: If it is larger than those of a results file.
    """
    if not h5a.exists(item.id, name.encode()):
        return None
    stored = h5a.open(item.id, name.encode())
    if stored.get_storage_size() > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"{item.name} has an attribute of too many bytes: {name}")
    if stored.shape != () or stored.get_type().get_class() not in NUMBERS | {h5t.STRING}:
        return None
    value = item.attrs[name]
    if isinstance(value, str | bytes) and len(value) > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"{item.name} has an attribute of too many letters: {name}")
    return visible(_decoded(value)) if isinstance(value, str | bytes) else value


def _decoded(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
