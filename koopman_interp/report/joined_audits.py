"""Audits of several edits as one: baselines that are the same stand once, the edits below them. Computes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from koopman_interp.auditing.result import Audit
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.auditing.summary import side_by_side
from koopman_interp.files import jsonable
from koopman_interp.tables import Table


@dataclass(frozen=True)
class JoinedAudit:
    """Audits on the same rows, beside the same baselines.

    Attributes:
        audits: as they were made.
        audit: one with the baselines once and all edits, for tables and figures.
    """

    audits: tuple[Audit, ...]
    audit: Audit

    @property
    def ours(self) -> tuple[AuditRow, ...]:
        """The rows of the edits, one an audit, by the names that they have in the tables."""
        return self.audit.rows[-len(self.audits) :]

    def tables(self) -> Sequence[Table]:
        """Return the tables, the one with output and states first."""
        one = self.audit
        return side_by_side(
            one.rows,
            len(self.audits),
            f"{one.forget_rows:,} held-out rows of {one.classes}, {one.retain_rows:,} of the others",
            f"{one.forget_training_rows:,} of {one.classes}, {one.retain_training_rows:,} of the others",
        )


def joined(audits: Sequence[Audit]) -> list[JoinedAudit]:
    """Bring those together that were made on the same rows, beside the same baselines; in their order."""
    groups = list[list[Audit]]()
    for audit in audits:
        alike = [group for group in groups if _made_on(group[0]) == _made_on(audit)]
        if alike:
            alike[0].append(audit)
        else:
            groups.append([audit])
    return [JoinedAudit(tuple(group), _as_one(group)) for group in groups]


def _made_on(audit: Audit) -> object:
    """What two audits must share to stand in one table; NaN equals NaN here."""
    plain = replace(audit, edit="", rows=audit.rows[:-1], left_out=(), reach=None)
    return jsonable(asdict(plain))


def _as_one(audits: Sequence[Audit]) -> Audit:
    first = audits[0]
    if len(audits) == 1:
        return first
    edits, seen = {audit.edit for audit in audits}, Counter[str]()
    rows = list(first.rows[:-1])
    for audit in audits:
        own = audit.rows[-1]
        name = own.name if len(edits) == 1 else f"{audit.edit}, {own.name}"
        seen[name] += 1
        rows.append(replace(own, name=name if seen[name] == 1 else f"{name}, {seen[name]}"))
    left_out = dict.fromkeys(line for audit in audits for line in audit.left_out)
    edit = first.edit if len(edits) == 1 else f"{len(audits)} edits"
    return replace(first, edit=edit, rows=tuple(rows), left_out=tuple(left_out))
