"""What sites a host has, for people to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from koopman_interp.results import PlainResult
from koopman_interp.tables import Column, Table


@dataclass(frozen=True)
class SiteListing:
    """One site that can be chosen.

    Attributes:
        name: as `attach` takes it.
        kind: type of the module whose output it is.
        width: of the state there, as far as it is known without a pass.
    """

    name: str
    kind: str
    width: int | None


@dataclass(frozen=True, repr=False)
class SiteTable(PlainResult):
    """The sites of a host.

    Attributes:
        model: name of its class.
        sites: all of them, in the order in which the model holds them.
        chosen: those that `attach` takes unless told otherwise; empty where it asks.
    """

    model: str
    sites: tuple[SiteListing, ...]
    chosen: tuple[str, ...]

    def __repr__(self) -> str:
        unasked = f"attach takes {self.chosen[0]!r} to {self.chosen[-1]!r}" if self.chosen else "attach asks for sites"
        return f"SiteTable({self.model}: {len(self.sites):,} sites; unless told otherwise, {unasked})"

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)

    def tables(self) -> Sequence[Table]:
        """Return one table of all sites; those taken unless told otherwise are marked."""
        names = {name.removesuffix(":input") for name in self.chosen}
        return [
            Table(
                (
                    Column("site", tuple(site.name for site in self.sites)),
                    Column("type", tuple(site.kind for site in self.sites)),
                    Column("width", tuple(site.width for site in self.sites)),
                    Column("default", tuple("yes" if site.name in names else None for site in self.sites)),
                )
            )
        ]
