"""Who makes what is kept in which file."""

from __future__ import annotations

from collections.abc import Mapping

from tests.tellings import Maker, bundles, devices, lists, nights, options, plans, runs, terminals, traces, verdicts

ROOMS: Mapping[str, Maker] = {
    "traces-shown": traces.shown,
    "traces-counted": traces.counted,
    "traces-vhost-user": traces.of_vhost_user,
    "traces-exported": traces.exported,
    "nights": nights.told,
    "bundles": bundles.told,
    "devices": devices.told,
    "lists": lists.told,
    "options": options.told,
    "pages": runs.of_traces,
    "plans": plans.told,
    "runs": runs.of_runs,
    "terminals": terminals.told,
    "verdicts": verdicts.told,
}
