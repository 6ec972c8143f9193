"""The result as one HTML page that needs nothing else: style and drawings are inside, nothing is fetched or run."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from llorch_scheduler.simulator.plot import COLOURS, Line, chart, lines_of
from llorch_shared.wire.simulated import Comparison, Group, Outcome, Reproduction, Result, Returns, Row

_STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#5b6570;--rule:#dfe3e8;
--line-0:#1f6fd1;--line-1:#c4561b;--line-2:#188562;--line-3:#8a4fb8;--line-4:#a3790c;--line-5:#b8326b}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;--soft:#9aa5b1;--rule:#2c333b;
--line-0:#6aa9f5;--line-1:#f0935e;--line-2:#4fc49c;--line-3:#c093ea;--line-4:#d9b24a;--line-5:#ee7aa8}}
body{margin:0 auto;max-width:62rem;padding:1.5rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p,small{color:var(--soft)}
.partial{color:var(--line-1);font-weight:600}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem;margin:1.25rem 0}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}
figure{margin:1.5rem 0}figcaption{font-weight:600}figure ul{list-style:none;display:flex;flex-wrap:wrap;gap:1rem;
margin:.25rem 0 0;padding:0;color:var(--soft)}figure i{display:inline-block;width:1.4rem;margin-right:.4rem;
vertical-align:middle}
svg{width:100%;height:auto}svg text{fill:var(--soft);font-size:11px}.grid{stroke:var(--rule)}
div{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:500}th:first-child,td:first-child{text-align:left}
"""


def page(result: Result) -> str:
    return _document(result.scenario, _body(result))


def comparison_page(comparison: Comparison) -> str:
    """The difference first, then each policy's own result."""
    parts = [
        f"<h1>Two policies</h1><p>{escape(comparison.about)}</p>" if comparison.other else "<h1>A recorded load</h1>",
        _reproduction(comparison.reproduction),
        _differences(comparison),
        _body(comparison.present, "Present policy: "),
        _body(comparison.other, "Other policy: ") if comparison.other is not None else "",
    ]
    return _document(comparison.present.scenario, "".join(parts))


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}: simulation</title><style>{_STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def _body(result: Result, name: str = "") -> str:
    series = result.series
    parts = [
        f"<h1>{name}{escape(result.scenario)}</h1>"
        f"<p>{escape(result.about)}; seed {result.seed}, scale {result.scale:g}</p>",
        '<p class="partial">Stopped early: this is what had happened by then.</p>' if result.partial else "",
        _facts(result),
        *(_waits(result, group.priority) for group in result.classes if group.started),
        chart(
            "Waits of tenants",
            "seconds that 95 of 100 wait less than, of those with the most tasks",
            series.at_s,
            lines_of(series.tenant_wait_p95_s),
        ),
        _shares(result),
        chart(
            "Fairness",
            "Jain's index over the minute before, by class",
            result.shares.at_s,
            lines_of(result.shares.jain),
            top=1.0,
        ),
        chart(
            "Deadlines met",
            "part of the admitted tasks that ended, by class",
            series.at_s,
            lines_of(series.met),
            top=1.0,
        ),
        chart("Tasks in the queues", "mean, by class", series.at_s, lines_of(series.queued)),
        chart("Utilisation", "busy by ready slots, by pool", series.at_s, lines_of(series.utilisation), top=1.0),
        chart("Refused tries", "per second", series.at_s, lines_of({"refused": series.refused_per_s})),
        "<h2>Classes</h2>" + _groups(result.classes),
        "<h2>Tenants</h2>" + _groups(result.tenants),
        "<h2>Pools</h2>" + _pools(result),
        "<h2>Fairness</h2>" + _fairness(result),
        "<h2>Told chances to be on time</h2>" + _calibration(result),
    ]
    return "".join(parts)


def _reproduction(found: Reproduction | None) -> str:
    if found is None:
        return ""
    return (
        f"<p>Under the present policy {found.tasks:,} recorded waits are met within {found.error_median_ms:,.0f} ms in "
        f"the median ({100 * found.error_median_ratio:.0f} % of those from 0.1 s on); their mean is "
        f"{_seconds(found.simulated_mean_ms)} s, recorded {_seconds(found.recorded_mean_ms)} s.</p>"
    )


def _differences(comparison: Comparison) -> str:
    """Each figure as recorded (if it was), under the present policy, and under the other."""

    def shown(row: Row, read: Callable[[Outcome], str]) -> str:
        return " / ".join(read(each) for each in (row.recorded, row.present, row.other) if each is not None)

    kinds = [*(["recorded"] if comparison.reproduction else []), "present", *(["other"] if comparison.other else [])]
    counts: tuple[Callable[[Outcome], int], ...] = (
        lambda each: each.sent_away,
        lambda each: each.refused,
        lambda each: each.late,
        lambda each: each.missed,
    )
    rows = [
        (
            row.name,
            row.priority,
            f"{row.tasks:,}",
            shown(row, lambda each: _seconds(each.wait_p50_ms)),
            shown(row, lambda each: _seconds(each.wait_p95_ms)),
            *(shown(row, _counted(count)) for count in counts),
        )
        for row in comparison.rows
    ]
    head = ("", "class", "tasks", "wait p50 s", "p95 s", "sent away", "refused", "late", "deadlines missed")
    return f"<h2>Difference: {' / '.join(kinds)}</h2>" + _table(head, rows)


def _counted(count: Callable[[Outcome], int]) -> Callable[[Outcome], str]:
    return lambda outcome: f"{count(outcome):,}"


def _waits(result: Result, priority: str) -> str:
    """Each class has a scale of its own: the waits of one may be a hundred times those of the other."""
    series = result.series
    lines = lines_of({"median": series.wait_p50_s[priority], "95 of 100 wait less": series.wait_p95_s[priority]})
    return chart(
        f"Waits of {priority} tasks", "seconds from admission to the engine, by when they started", series.at_s, lines
    )


def _shares(result: Result) -> str:
    """Solid: what each used. Dashed in the same colour: what would have been fair."""
    shares = result.shares
    lines = [
        Line(name=f"{name}{', ideal' if dashed else ''}", values=values, colour=index % COLOURS, dashed=dashed)
        for dashed, named in ((False, shares.used), (True, shares.ideal))
        for index, (name, values) in enumerate(list(named.items())[:COLOURS])
    ]
    return chart("Shares of the slot time", "solid: used, dashed: ideal", shares.at_s, lines)


def _fairness(result: Result) -> str:
    rows = [
        (each.priority, _optional(each.jain_mean), _optional(each.jain_least), f"{each.share_deviation:.4f}")
        for each in result.fairness
    ]
    return _table(("", "Jain, mean of minutes", "worst minute", "largest deviation from the ideal share"), rows)


def _calibration(result: Result) -> str:
    rows = [
        (name, f"{tenth.tasks:,}", f"{100 * tenth.told:.1f} %", f"{100 * tenth.real:.1f} %")
        for name, tenths in (
            ("at admission", result.calibration.at_admission),
            ("when placed", result.calibration.at_placement),
        )
        for tenth in tenths
        if tenth.tasks
    ]
    return _table(("", "tasks", "told", "were on time"), rows)


def _facts(result: Result) -> str:
    ends = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in result.outcomes.items() if number)
    facts = {
        "tasks arrived": f"{result.arrived:,}",
        "ended": ends or "none",
        "simulated": f"{result.simulated_s:,.0f} s",
        "tokens per second": f"{result.tokens_per_s:,.0f}",
        "utilisation": f"{100 * result.utilisation:.1f} %",
        "refused tries": f"{result.refusals:,}",
        "came back as told, admitted": _returns(result.returns),
        "stopped for others": f"{result.preemptions:,}",
        "placed again": f"{sum(result.requeues.values()):,}",
        "predicted start, median error": f"{100 * result.prediction.error_median_ratio:.0f} %",
    }
    return (
        "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items()) + "</dl>"
    )


def _groups(groups: Sequence[Group]) -> str:
    head = (
        "", "class", "arrived", "done", "gave up", "infeasible", "expired", "dropped", "failed", "in time",
        "wait p50 s", "p95", "p99", "tokens/s",
    )  # fmt: skip
    rows = [
        (
            group.name, group.priority, f"{group.arrived:,}", f"{group.done:,}", f"{group.gave_up:,}",
            f"{group.infeasible:,}", f"{group.expired:,}", f"{group.dropped:,}", f"{group.failed:,}",
            f"{100 * group.met:.1f} %", _seconds(group.wait_ms.p50), _seconds(group.wait_ms.p95),
            _seconds(group.wait_ms.p99), f"{group.tokens_per_s:,.1f}",
        )
        for group in groups
    ]  # fmt: skip
    return _table(head, rows)


def _pools(result: Result) -> str:
    rows = [
        (
            pool.pool_id, f"{pool.replicas}", f"{pool.slots}", f"{100 * pool.utilisation:.1f} %",
            f"{pool.tokens_per_s:,.1f}", ", ".join(f"{name} {peak}" for name, peak in pool.queue_peak.items()),
            ", ".join(f"{reason} {number:,}" for reason, number in pool.refusals.items()) or "none",
            ", ".join(f"{version} {number:,}" for version, number in pool.starts.items()) or "none",
        )
        for pool in result.pools
    ]  # fmt: skip
    return _table(("", "replicas", "slots", "utilisation", "tokens/s", "longest queue", "refused", "starts"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _returns(returns: Returns) -> str:
    return f"{100 * returns.admitted / returns.tries:.1f} % of {returns.tries:,}" if returns.tries else "nobody"


def _optional(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "-"


def _seconds(ms: float) -> str:
    return f"{ms / 1000:,.2f}"
