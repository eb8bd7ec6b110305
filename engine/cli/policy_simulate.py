"""backstay policy simulate [DIR]"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from engine.cli.durations import duration
from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import printable, say, show, show_json
from engine.cli.policy_journal import journal
from engine.cli.progress import progress
from engine.cli.reach import configured_policies, utc_now
from engine.cli.standing import Sources, read_file, standing
from engine.config import find, load
from engine.failures import BadInput
from engine.simulating import simulate
from engine.statefile import Standing
from engine.units import parse_size
from policies.aging import Asked
from policies.assumptions import Assumptions
from policies.errors import Unusable, quoted
from policies.facts import Facts, Vm, VmId
from policies.fleet import daily_events, synthetic_fleet
from policies.loading import load as load_policies
from policies.mirrored import copies_named
from policies.recorded import Recorded, recorded_from_json, rewound
from policies.shapes import YEARS
from policies.units import parse_share

MOST_DAYS = 3_660
"""Ten years: what is written by mistake shall not run for hours."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a simulation starts from and what happens in it."""

    facts: Facts
    until: datetime
    source: str
    events: Iterable[Recorded] = ()
    arriving: Mapping[VmId, Vm] = field(default_factory=dict)


def policy_simulate(
    directory: Path | None = None,
    /,
    *,
    days: Annotated[
        int | None, Parameter(help="How many days; 90 without it, or to the end of what is replayed.")
    ] = None,
    until: Annotated[str | None, Parameter(help="Or up to this date, such as 2027-03-01.")] = None,
    state: Annotated[Path | None, Parameter(help="State that `policy state` wrote; else as it is now.")] = None,
    replay: Annotated[
        str | None, Parameter(name="--journal", help="Replay what the engine handled in so long, such as 30d.")
    ] = None,
    events: Annotated[
        Path | None, Parameter(help="Replay the events that `policy journal` wrote to this file.")
    ] = None,
    fleet: Annotated[int | None, Parameter(help="Simulate a made-up fleet of so many VMs instead.")] = None,
    seed: Annotated[int, Parameter(help="Another number is another fleet with other events.")] = 0,
    events_per_vm_day: Annotated[float, Parameter(help="How much happens to each VM of a made-up fleet.")] = 1.0,
    start: Annotated[
        str | None, Parameter(name="--from", help="First day of a made-up fleet's simulation; else now.")
    ] = None,
    at: Annotated[str | None, Parameter(help="Tell which restore points exist at this date.")] = None,
    vm: Annotated[str | None, Parameter(help="With --at: list those of this VM one by one, with the reasons.")] = None,
    throughput: Annotated[str | None, Parameter(help="How much one backup reads a second; 200MiB without it.")] = None,
    change: Annotated[
        str | None, Parameter(help="How much of its disks a VM changes a day that was never measured; 2% without it.")
    ] = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """What policies do to a fleet in the months to come, or would have done to what happened.

    Starts from the VMs and restore points that the engine knows, those of a state file, or a made-up fleet, and runs
    the engine's own decisions under a virtual clock: runs, the most at once, missed goals, windows that are too short,
    growth of the repository, and the restore points that retention leaves. Changes nothing. It is an estimate.

    Parameters
    ----------
    directory
        Where the policies are; else the configuration names it.
    """
    policies = load_policies(directory or _configured(config))
    assumed = _assumed(config, throughput, change)
    if sum(one is not None for one in (replay, events, fleet)) > 1:
        raise BadInput("--journal, --events and --fleet each say what happens", hint="give one of them")
    if fleet is not None and state is not None:
        raise BadInput("--state and --fleet each say which VMs there are", hint="give one of them")
    if fleet is None and start is not None:
        raise BadInput("--from is the first day of a made-up fleet", hint="give --fleet too")
    if fleet is not None:
        scene = _made_up(fleet, seed, events_per_vm_day, start, days, until)
    else:
        sources = Sources(state, repo, config, passphrase_file)
        scene = _known(_standing(sources).facts, replay, events, days, until, repo, config)
    asked = _asked(scene, at, vm)
    with progress(quiet=json, noun="day") as bar:
        total = -((scene.facts.now - scene.until) // timedelta(days=1))
        copies = copies_named(policies)
        of = f" and their copies in {', '.join(copies)}" if copies else ""
        bar.begin(f"Simulating {len(scene.facts.vms)} VMs{of}", total * (1 + len(copies)))
        found = simulate(
            policies,
            scene.facts,
            assumed,
            scene.until,
            scene.events,
            arriving=scene.arriving,
            asked=asked,
            told=lambda day: bar.advance(1),
            source=scene.source,
        )
    if json:
        show_json(found.as_json())
        return
    for line in found.render().splitlines():
        show(printable(line))


def _configured(config: Path | None) -> Path:
    if config is None and not find().exists():
        raise BadInput(
            f"no configuration is at {find()}, so it is not known where the policies are", hint="name their directory"
        )
    return configured_policies(config)


def _standing(sources: Sources) -> Standing:
    if sources.state is None and sources.repo is None and sources.config is None and not find().exists():
        raise BadInput(
            f"no configuration is at {find()}, so it is not known which VMs there are",
            hint="give --state FILE that policy state wrote, --fleet N for a made-up fleet, or --config FILE",
        )
    return standing(sources)


def _assumed(config: Path | None, throughput: str | None, change: str | None) -> Assumptions:
    assumed = Assumptions()
    if (config or find()).exists():
        from engine.startup import admission_limits

        loaded = load(config)
        assumed = replace(assumed, tick=loaded.timers.clock, limits=admission_limits(loaded))
    else:
        say(f"No configuration: at most {assumed.limits.running} backups run at once.")
    if throughput is not None:
        try:
            assumed = replace(assumed, bytes_per_second=parse_size(throughput))
        except ValueError as error:
            raise BadInput(str(error), where="--throughput") from None
        if assumed.bytes_per_second <= 0:
            raise BadInput("nothing would ever be read", where="--throughput", hint='write for instance "200MiB"')
    if change is not None:
        try:
            assumed = replace(assumed, change_share=parse_share(change))
        except Unusable as error:
            raise BadInput(error.what, where="--change", hint=error.instead) from None
    return assumed


def _made_up(vms: int, seed: int, per_day: float, start: str | None, days: int | None, until: str | None) -> _Scene:
    if not 0 < vms <= 200_000:
        raise BadInput(f"{vms} is no size of a fleet", where="--fleet", hint="write 1 to 200000")
    if not 0 <= per_day <= 1000:
        raise BadInput(f"{per_day:g} is no rate", where="--events-per-vm-day", hint="write 0 to 1000")
    now = _date(start, "--from") if start is not None else utc_now().replace(microsecond=0)
    facts = synthetic_fleet(vms, now=now, points_each=1, seed=seed)
    end = _end(now, days, until, None)
    length = (end - now) // timedelta(days=1) + 1
    events = (Recorded(event.at, event) for event in daily_events(facts, length, per_day, seed))
    return _Scene(facts, end, f"a made-up fleet of {vms} VMs, seed {seed}", events)


def _known(
    facts: Facts,
    replay: str | None,
    file: Path | None,
    days: int | None,
    until: str | None,
    repo: str | None,
    config: Path | None,
) -> _Scene:
    if replay is None and file is None:
        return _Scene(facts, _end(facts.now, days, until, None), "the VMs and restore points that are known")
    if file is not None:
        text = read_file(file).decode("utf-8", "replace")
        recorded = recorded_from_json(text.splitlines(), str(file))
    else:
        since = utc_now() - duration(replay or "", "--journal")
        text = b"".join(journal(since, repo, config)).decode("utf-8", "replace")
        recorded = recorded_from_json(text.splitlines(), "the journal")
    if not recorded:
        raise BadInput("no event is recorded there", where=str(file or "the journal"))
    start = recorded[0].at
    before, arriving = rewound(facts, recorded, start)
    end = _end(start, days, until, max(recorded[-1].at + timedelta(seconds=1), facts.now))
    return _Scene(before, end, f"{len(recorded)} recorded events", recorded, arriving)


def _end(start: datetime, days: int | None, until: str | None, otherwise: datetime | None) -> datetime:
    if days is not None and until is not None:
        raise BadInput("--days and --until both say when it ends", hint="give one of them")
    if until is not None:
        end = _date(until, "--until")
    elif days is not None or otherwise is None:
        if days is not None and not 0 < days <= MOST_DAYS:
            raise BadInput(f"{days} is no number of days", where="--days", hint=f"write 1 to {MOST_DAYS}")
        end = start + timedelta(days=days or 90)
    else:
        end = otherwise
    if not start < end <= start + timedelta(days=MOST_DAYS):
        raise BadInput(
            f"the simulation would go from {start:%Y-%m-%d} to {end:%Y-%m-%d}",
            where="--until",
            hint=f"name a later day, at most {MOST_DAYS} days after the first",
        )
    return end


def _asked(scene: _Scene, at: str | None, vm: str | None) -> Asked | None:
    if at is None:
        if vm is not None:
            raise BadInput("--vm lists what exists at a date", hint="give --at DATE too")
        return None
    instant = _date(at, "--at")
    if not scene.facts.now <= instant <= scene.until:
        raise BadInput(
            f"{at} is not in the simulation, which goes from {scene.facts.now:%Y-%m-%d %H:%M} to"
            f" {scene.until:%Y-%m-%d %H:%M} UTC",
            where="--at",
            hint="simulate for longer with --until or --days, or name an instant in it",
        )
    if vm is None:
        return Asked(instant)
    known = {one.id: one.name for one in (*scene.facts.vms.values(), *scene.arriving.values())}
    found = frozenset(id for id, name in known.items() if vm in (id, name))
    if not found:
        raise BadInput(f"no VM of the simulation is called {vm}", where="--vm")
    return Asked(instant, found)


def _date(text: str, option: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{quoted(text)} is not a date", where=option, hint="write a date such as 2027-03-01") from None
    if not YEARS[0] <= at.year < YEARS[1]:
        raise BadInput(f"{text} is too far away", where=option, hint=f"write a year from {YEARS[0]} to {YEARS[1] - 1}")
    return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
