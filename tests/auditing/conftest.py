"""One trained host with its surrogate, an edit, and rows held out; shared, so treat it as read-only."""

import pytest
import torch

import koopman_interp as ki
from koopman_interp.testing import ResidualMLP, train_classifier

CENTRES = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
LABEL = 1
PATCHED = ("mode", "source", "target", "at", "positions")


def blobs(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    return CENTRES[labels] + 0.6 * torch.randn(rows, 4, generator=generator), labels


def trained(classes):
    x, y = blobs(600, seed=0)
    kept = torch.isin(y, torch.tensor(classes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualMLP(4, 10, 3, 3)
    return train_classifier(model, x[kept], y[kept], epochs=12, batch_size=50)


class Case:
    """A trained host, its surrogate, an edit, and rows held out."""

    blobs = staticmethod(blobs)

    def __init__(self):
        self.model = trained([0, 1, 2])
        self.retrained = trained([0, 2])
        self.training = x, y = blobs(600, seed=0)
        self.forget_training = x[y == LABEL], y[y == LABEL]
        self.retain_training = x[y != LABEL], y[y != LABEL]
        trajectories = ki.attach(self.model).observe(x, y, progress=False)
        self.koopman = ki.fit(trajectories, ki.FitConfig(observables=14), method="least_squares")
        self.edit = ki.erase_class(self.koopman, label=LABEL)
        self.held_out = x, y = blobs(300, seed=1)
        self.forget = x[y == LABEL], y[y == LABEL]
        self.retain = x[y != LABEL], y[y != LABEL]

    def patch(self, edit=None, **options):
        return ki.patched(self.model, self.koopman, self.edit if edit is None else edit, **options)

    def audited(self, **changes):
        """Audit the edit, or another; what `patched` takes goes there."""
        options = {name: changes.pop(name) for name in ("edit", *PATCHED) if name in changes}
        return ki.audit(self.patch(**options), **({"held_out": self.held_out} | changes))

    def states_and_logits(self, model):
        """At the last site, then at the output; forgotten rows first."""
        found = []
        handle = model.head.register_forward_hook(lambda _, args, logits: found.extend((args[0], logits)))
        with torch.no_grad():
            model(torch.cat([self.forget[0], self.retain[0]]))
        handle.remove()
        return [part.double().numpy() for part in found]


@pytest.fixture(scope="session")
def case():
    return Case()


@pytest.fixture(scope="session")
def found(case):
    return case.audited(retrained=case.retrained)


@pytest.fixture(scope="session")
def whole(case):
    """All that an audit can measure of a classifier."""
    return case.audited(
        retrained=case.retrained,
        training=case.training,
        probes=("linear", "rbf", "mlp"),
        depths="all",
        relearn=ki.Relearning(steps=(0, 1, 5), rate=3e-3),
    )
