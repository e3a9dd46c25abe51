"""How a verb takes its model and its data: the options for it, and both at once, with what they need of each other.

All that is named is imported before anything is called, and data is read before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from koopman_interp.cli.data import DataName, Role
from koopman_interp.cli.models import ModelName
from koopman_interp.cli.rows import Columns, Rows, rows_of
from koopman_interp.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Taking:
    """What the options of a verb say of its model and data.

    Attributes:
        device: to compute on; None leaves the model where it is.
        dtype: to compute in; None leaves the model as it is.
        batch_size: inputs that the model is called with at once.
        inputs: the column of the inputs; None is what is there.
        labels: the column of the labels; None is what is there.
    """

    device: str | None = None
    dtype: str | None = None
    batch_size: int = 64
    inputs: str | None = None
    labels: str | None = None

    def model(self, name: ModelName) -> nn.Module:
        """Make or load a model."""
        return name.prepared().model(self.device, self.dtype)

    def all(
        self,
        name: ModelName,
        *data: DataName | None,
        labelled: bool | None = True,
        roles: Sequence[Role | None] = (),
        names: tuple[str, ...] = (),
    ) -> tuple[nn.Module, list[Rows]]:
        """Take a model and data.

        Args:
            name: of the model.
            *data: names of data; of None there are no rows.
            labelled: whether labels are wanted; None wants them where the model's outputs are classes, or a column of
                labels is named.
            roles: what each of the data is for, where a split is to be taken by it.
            names: of the classes, which the labels of all data are numbered by; without them the names that the model
                has for its outputs, or those of the first data.

        Returns:
            The model, and the rows of each of the data.
        """
        if labelled is False and self.labels is not None:
            raise InputError("Labels are those of a column or next tokens; got both. Leave out one of them.")
        maker, sources = name.prepared(), [None if each is None else each.prepared() for each in data]
        fors = [*roles, *[None] * (len(sources) - len(roles))]
        read = [None if one is None else one.read(role) for one, role in zip(sources, fors, strict=True)]
        model = maker.model(self.device, self.dtype)
        from koopman_interp.cli.hugging_face import class_names, image_preparation, says_tokens

        wanted = labelled if labelled is not None else self.labels is not None or not says_tokens(model)
        names = names or class_names(model)
        columns = Columns(self.inputs, self.labels, wanted, names, self.batch_size)
        rows = list[Rows]()
        for source, one in zip(sources, read, strict=True):
            if source is None or one is None:
                rows.append(Rows(None))
                continue
            made = source.make is not None
            found = rows_of(*one, columns, made=made, prepare=lambda: image_preparation(model))
            columns = replace(columns, names=columns.names or found.names)
            rows.append(found)
            if found.told:
                click.echo(found.told, err=True)
        return model, rows


def takes(*, data: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the options that say how its model is taken, and its data unless it has none, as one `taking`."""
    options = [
        click.option("--device", metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1; by default MODEL's own."),
        click.option("--dtype", type=click.Choice(_DTYPES), help="What to compute in; by default MODEL's own."),
    ]
    if data:
        options += [
            click.option("--inputs", metavar="COLUMN", help="Column to call MODEL with; by default what is there."),
            click.option("--labels", metavar="COLUMN", help="Column of the labels; by default what is there."),
            click.option(
                "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Inputs at once."
            ),
        ]
    fields = [field for field in Taking.__dataclass_fields__ if data or field in ("device", "dtype")]

    def add(verb: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(verb)
        def with_taking(**given: Any) -> Any:
            return verb(taking=Taking(**{field: given.pop(field) for field in fields}), **given)

        for option in reversed(options):
            with_taking = option(with_taking)
        return with_taking

    return add
