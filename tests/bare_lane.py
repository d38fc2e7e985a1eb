"""A lane that nothing serves yet: for an endpoint or an app of its own, in the test's own loop, without Ray."""

from serve_app.access.admission import Admission
from serve_app.access.budget import Budget
from serve_app.access.keys import Keyring
from serve_app.access.running import Running
from serve_app.config.http import HttpConfig
from serve_app.engines.scripted.engine import ScriptedEngine
from serve_app.exchange.lane import Lane
from serve_app.images.gate import ImageGate
from serve_app.metrics.registry import Metrics
from serve_app.models.entry import Catalog
from serve_app.models.single_model import SingleModelCatalog
from serve_app.replica.replica import Replica
from tests.own_lane import MODEL, SCRIPTED, nobody_else, nothing_to_heed


def bare_lane(metrics: Metrics, catalog: Catalog | None = None) -> Lane:
    """Over the scripted engine, which isn't started. `catalog` stands in the place of the one model's."""
    replica = Replica(MODEL, SCRIPTED, ScriptedEngine(SCRIPTED), metrics)
    http = HttpConfig()
    return Lane(
        config=http,
        catalog=catalog or SingleModelCatalog(MODEL, replica.describe()),
        handle=replica,
        images=ImageGate(http.images),
        metrics=metrics,
        keys=Keyring(http.keys),
        budget=Budget(),
        admission=Admission(http.admission, lambda _: SCRIPTED.ongoing_limit),
        running=Running(),
        cancel_elsewhere=nobody_else,
        heed_others=nothing_to_heed,
    )
