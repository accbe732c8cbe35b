"""The base of every model's keys. The configuration reads this module too, so no torch here."""

from dataclasses import dataclass

from condexp.errors import check_limits


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The keys of a model, checked when they are put together.

    A model is two files. ``condexp/models/NAME.py`` defines ``Spec``, a subclass with the type and
    the limits of each key, and ``build(spec, input_shape, num_outputs)``. ``conf/model/NAME.yaml``
    says what each key means, and gives it its value.

    Raises:
        InputError: At the first key outside its choices or its interval.
    """

    name: str

    def __post_init__(self) -> None:
        check_limits(self, "model")

    @property
    def title(self) -> str:
        """The model in words, for messages and the run's title."""
        return self.name
