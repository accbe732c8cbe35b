"""``logger=tensorboard``: event files in the run's folder, written without torch."""

import struct
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.metadata import NULL_TENSOR, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.metadata import create_summary_metadata as hparams_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from condexp.results.config_keys import flatten
from condexp.results.loggers.follow import FollowedRun

FOLDER = "tensorboard"
RGBA = 4


class Logger:
    """Writes an event file an attempt, all of one folder, which TensorBoard reads as one run.

    Args:
        run: The run.
        run_id: Where it goes on with an earlier attempt, any text.
    """

    run_id = FOLDER

    def __init__(self, run: FollowedRun, run_id: str | None) -> None:
        self._writer = EventFileWriter(str(run.path / FOLDER))
        if run_id is None:
            self._write(0, _hyperparameters(run.hyperparameters))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write scalars, which are float32 there."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._write(step, *scalars)

    def flush(self) -> None:
        """Write what is buffered."""
        self._writer.flush()

    def finish(self, step: int, picture: Path | None) -> None:
        """Write the picture, and close the file."""
        if picture is not None:
            content = picture.read_bytes()
            width, height = struct.unpack(">II", content[16:24])  # of the PNG's header
            image = Summary.Image(
                height=height, width=width, colorspace=RGBA, encoded_image_string=content
            )
            self._write(step, Summary.Value(tag=picture.stem, image=image))
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, step: int, *values: Summary.Value) -> None:
        self._writer.add_event(Event(step=step, summary=Summary(value=values)))


def _hyperparameters(config: Mapping[str, object]) -> Summary.Value:
    """Return the summary that TensorBoard's HParams page reads."""
    session = SessionStartInfo()
    for key, value in flatten(config):
        entry = session.hparams[key]
        if isinstance(value, bool):
            entry.bool_value = value
        elif isinstance(value, int | float):
            entry.number_value = value
        else:
            entry.string_value = str(value)
    return Summary.Value(
        tag=SESSION_START_INFO_TAG,
        tensor=NULL_TENSOR,
        metadata=hparams_metadata(HParamsPluginData(session_start_info=session)),
    )
