"""The goals of all benchmarks, as a table: what each must reach, and where its figure is in what a benchmark writes.

Figures are ratios within one run wherever there is something to compare with. What a goal was set for is in the
benchmark's own docstring.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Figures = Any
"""What a benchmark writes by --json."""


@dataclass(frozen=True)
class Goal:
    """A figure, and what it must be."""

    what: str
    figure: Callable[[Figures], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "times"

    def is_met(self, value: float) -> bool:
        """Whether a figure is as it must be."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most

    @property
    def wanted(self) -> str:
        """The goal in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Benchmark:
    """A module of this package, how it is run, and its goals. `quick` are its arguments for a first look."""

    goals: Sequence[Goal]
    arguments: Sequence[str] = ()
    quick: Sequence[str] = ()


def _summary(metric: str, key: str = "ratio") -> Callable[[Figures], float]:
    return lambda figures: float(figures["summary"][metric][key])


def _worst(metric: str) -> Callable[[Figures], float]:
    return lambda figures: float(min(figures["summary"][metric]["ratios"]))


def _of_summary(key: str) -> Callable[[Figures], float]:
    return lambda figures: float(figures["summary"][key])


def _workload(name: str, key: str = "ratio") -> Callable[[Figures], float]:
    return lambda figures: float(next(each[key] for each in figures["workloads"] if each["workload"] == name))


def _cpu(name: str) -> Callable[[Figures], float]:
    """Microseconds of the server for a command."""
    return lambda figures: statistics.median(
        float(cost["cpu_us"]) for each in figures["workloads"] if each["workload"] == name for cost in each["costs"]
    )


def _log(beginning: str) -> Callable[[Figures], float]:
    """The largest ratio of those reports."""
    return lambda figures: max(each["ratio"] for each in figures["results"] if each["what"].startswith(beginning))


def _copy(size: int, way: str) -> Callable[[Figures], float]:
    return lambda figures: float(next(each[way]["ratio"] for each in figures["copies"] if each["size"] == size))


def _downtime(setting: str) -> Callable[[Figures], float]:
    """Milliseconds."""
    return lambda figures: float(figures[setting]["with"]["downtime"]) * 1e3


def _beyond(setting: str) -> Callable[[Figures], float]:
    """Milliseconds more than 1.2 times the downtime of a guest without a device."""
    return lambda figures: (figures[setting]["with"]["downtime"] - 1.2 * figures[setting]["without"]["downtime"]) * 1e3


def _flat(side: str) -> Callable[[Figures], float]:
    """The longer of read and write."""
    return lambda figures: max(float(figures["flat"][f"{side}_{metric}"]) for metric in ("read_ns", "write_ns"))


def _of_pages(key: str) -> Callable[[Figures], float]:
    """The larger of both pages."""
    return lambda figures: max(float(costs[key]) for costs in figures.values())


def _process(name: str) -> Callable[[Figures], float]:
    return lambda figures: float(figures[name])


def _workloads(names: Mapping[str, float]) -> list[Goal]:
    return [Goal(name, _workload(name), at_least=goal) for name, goal in names.items()]


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "region_access": Benchmark(
            [
                Goal("register read, of libvfio-user's in C", _summary("read_ns"), at_least=2.6),
                Goal("register write, of libvfio-user's in C", _summary("write_ns"), at_least=2.6),
                Goal("posted writes, worst turn", _worst("posted_per_second"), at_least=2.5),
            ],
            ("--reference",),
            ("--turns", "3"),
        ),
        "devices": Benchmark(
            [
                Goal(
                    "64 devices in one process, together of one",
                    lambda found: found["64"]["all"] / found["1"]["all"],
                    at_least=0.9,
                ),
                Goal("a round trip with one of 64 devices, of one alone", _flat("crowd"), at_most=1.1),
                Goal("a round trip with 65,535 DMA maps, of one without", _flat("maps"), at_most=1.1),
            ],
            quick=("--trips", "500", "--turns", "3"),
        ),
        "interposer": Benchmark(
            [
                Goal(
                    "a round trip through the interposer, of a direct one", _of_summary("round_trip_ratio"), at_most=1.5
                ),
                Goal("the same, the worst of 20", _of_summary("round_trip_worst"), at_most=1.7),
                Goal("a traced round trip, of one without, worst of 20", _of_summary("trace_worst"), at_most=1.08),
                Goal("a round trip with `serve --trace`, of a direct one", _of_summary("own_trace_ratio"), at_most=1.1),
                Goal("posted writes untraced, of traced, worst of 20", _of_summary("posted_trace_worst"), at_most=1.15),
                Goal("a restart, as the client sees it", _of_summary("restart_s"), at_most=0.5, unit="s"),
            ],
            ("--turns", "20"),
            ("--turns", "3", "--restarts", "2"),
        ),
        "page": Benchmark(
            [
                Goal("a page of 1,000,000 records is open", _of_pages("open, ms"), at_most=3000, unit="ms"),
                Goal("size of such a page", _of_pages("MB"), at_most=50, unit="MB"),
            ],
            quick=("--records", "100000"),
        ),
        "traces": Benchmark(
            [
                Goal("counting a trace, of showing it", lambda found: found["stats"]["ratio"], at_most=0.3),
                Goal("comparing two, of showing one", lambda found: found["diff"]["ratio"], at_most=0.5),
                Goal("counting a million records", lambda found: found["stats"]["seconds"], at_most=10, unit="s"),
                Goal("comparing two of a million", lambda found: found["diff"]["MiB"], at_most=500, unit="MiB"),
            ],
            quick=("--records", "100000"),
        ),
        "dma": Benchmark(
            [
                Goal("a copy of 1 MiB, of memcpy", _copy(1 << 20, "read_into"), at_least=0.9),
                Goal("a logged write of 4 KiB, of memcpy", _copy(4096, "write, logged"), at_least=0.95),
                Goal(
                    "a look-up among 65,535 maps, of one map",
                    lambda found: found["lookups"][-1]["write_4k_ns"] / found["lookups"][0]["write_4k_ns"],
                    at_most=1.1,
                ),
            ],
            quick=("--turns", "3"),
        ),
        "dirty_log": Benchmark(
            [
                Goal("report of 1 GiB, of a copy of the log", _log("report 1 GiB"), at_most=15),
                Goal("report of 1 TiB, of a copy of the log", _log("report 1 TiB"), at_most=2),
                Goal("the same of 1 GiB in larger pages than its log's", _log("folded report 1 GiB"), at_most=15),
                Goal("the same of 1 TiB", _log("folded report 1 TiB"), at_most=2),
            ],
            quick=("--rounds", "3"),
        ),
        "declared_memory": Benchmark(
            [
                Goal(
                    "reset, digest, move of 1 GiB never used: times faster than looking at it",
                    lambda found: min(each["ratio"] for each in found if ", 1 GiB, 0 MiB" in each["what"]),
                    at_least=100,
                )
            ],
            quick=("--rounds", "2"),
        ),
        "server_process": Benchmark(
            [
                Goal("memory of `serve edu` after a client", _process("edu_mib"), at_most=14, unit="MiB"),
                Goal("memory of 64 devices in one process", _process("devices_mib"), at_most=40, unit="MiB"),
                Goal("from the start until it listens", _process("listening_ms"), at_most=60, unit="ms"),
                Goal("all checks of conformance", _process("conformance_s"), at_most=0.6, unit="s"),
            ],
            quick=("--rounds", "3"),
        ),
        "vhost_rings": Benchmark(
            [Goal("a request of a batch of 32, of the least", lambda found: found[0]["ratio"], at_most=6)],
            quick=("--rounds", "3"),
        ),
        "vhost_interposer": Benchmark(
            [
                Goal("a message through the interposer, of a direct one", _of_summary("round_trip_ratio"), at_most=4),
                Goal("a traced message, of one without a trace", _of_summary("trace_ratio"), at_most=1.5),
            ],
            quick=("--turns", "3"),
        ),
        "boot": Benchmark(
            [
                Goal(
                    "boot, until the agent answers",
                    lambda found: found["medians"]["boot, agent answers"],
                    at_most=3.0,
                    unit="s",
                ),
                Goal(
                    "restore, until the agent answers",
                    lambda found: found["medians"]["restore, agent answers"],
                    at_most=0.2,
                    unit="s",
                ),
            ],
            quick=("--rounds", "2"),
        ),
        "nvme": Benchmark(
            [
                *_workloads(
                    {
                        "4 KiB random read, 1 at a time": 1.0,
                        "4 KiB random read, 32 at a time": 1.25,
                        "128 KiB sequential read": 1.15,
                    }
                ),
                Goal("CPU of a read, 1 at a time", _cpu("4 KiB random read, 1 at a time"), at_most=22, unit="us"),
            ],
            quick=("--turns", "2", "--seconds", "1"),
        ),
        "vhost_blk": Benchmark(
            [
                *_workloads(
                    {
                        "4 KiB random read, 1 outstanding": 0.8,
                        "4 KiB random write, 1 outstanding": 0.8,
                        "4 KiB random read, 32 outstanding": 1.0,
                        "4 KiB random write, 32 outstanding": 1.0,
                        "128 KiB read, 8 outstanding": 1.0,
                        "128 KiB write, 8 outstanding": 1.0,
                        "guest: 4 KiB random read, 1 at a time": 0.95,
                        "guest: 4 KiB random write, 1 at a time": 0.95,
                        "guest: 4 KiB random read, 32 at a time": 1.0,
                        "guest: 4 KiB random write, 32 at a time": 1.0,
                        "guest: 128 KiB sequential read": 1.0,
                        "guest: 128 KiB sequential write": 1.0,
                    }
                ),
                Goal(
                    "downtime with the disk, less 1.2 times that without",
                    lambda found: (found["downtime"]["with"] - 1.2 * found["downtime"]["without"]) * 1e3,
                    at_most=10,
                    unit="ms",
                ),
            ],
            quick=("--turns", "2", "--seconds", "1"),
        ),
        "hops": Benchmark(
            [
                Goal("hops of a soak a minute, 512 MiB", lambda found: found["a_minute"], at_least=60, unit="/min"),
                Goal("what grows with a hop", lambda found: max(found["growth"].values()), at_most=1, unit="KiB"),
            ],
            quick=("--hops", "12"),
        ),
        "migration": Benchmark(
            [
                Goal("downtime, 100,000 dirty pages", _downtime("100,000 dirty pages"), at_most=150, unit="ms"),
                Goal("downtime, 256 MiB of state", _downtime("256 MiB of state"), at_most=60, unit="ms"),
                Goal(
                    "downtime, 1 dirty page, less 1.2 times that without",
                    _beyond("1 dirty pages"),
                    at_most=5,
                    unit="ms",
                ),
            ],
            quick=("--rounds", "2"),
        ),
    }
)
