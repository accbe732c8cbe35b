"""CRC-32, as fast as the processor can: all that is read of a results file goes through it."""

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # no wheel for this machine: the same numbers, several times slower
    from zlib import crc32

__all__ = ["crc32"]
