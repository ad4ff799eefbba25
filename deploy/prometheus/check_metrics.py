#!/usr/bin/env python3
"""Part of deploy/prometheus/check: do alerts, dashboard, docs/operations.md and the sources speak of the same metrics?

    check_metrics.py --root DIR --expressions FILE [--live URL...]

It reads alerts.yml, alerts_test.yml and grafana-dashboard.json, the tables of docs/operations.md, and the names in the Rust sources. To FILE it
writes the dashboard's expressions as recording rules, so that promtool can parse them. It needs the standard library only, hence it
reads of YAML no more than these files have in them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from pathlib import Path

# What is neither ours nor in a table of ours: Prometheus' own, and of etcd (3.4 and later, unless it says otherwise).
FOREIGN = set(
    """
    up ALERTS scrape_duration_seconds
    etcd_server_has_leader etcd_server_is_leader etcd_server_leader_changes_seen_total etcd_server_quota_backend_bytes etcd_server_version
    etcd_server_proposals_pending etcd_server_proposals_failed_total etcd_server_proposals_committed_total etcd_server_slow_apply_total
    etcd_mvcc_db_total_size_in_bytes etcd_mvcc_db_total_size_in_use_in_bytes etcd_mvcc_put_total etcd_mvcc_delete_total etcd_mvcc_txn_total
    etcd_disk_wal_fsync_duration_seconds etcd_disk_backend_commit_duration_seconds etcd_disk_defrag_inflight
    etcd_network_peer_round_trip_time_seconds etcd_network_client_grpc_sent_bytes_total etcd_network_client_grpc_received_bytes_total
    etcd_debugging_mvcc_current_revision etcd_debugging_mvcc_keys_total etcd_debugging_mvcc_watcher_total
    etcd_debugging_mvcc_slow_watcher_total etcd_debugging_lease_granted_total etcd_debugging_server_lease_expired_total
    etcd_debugging_server_alarms
    grpc_server_handled_total grpc_server_started_total
    """.split()
)
FOREIGN_HISTOGRAMS = {
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_network_peer_round_trip_time_seconds",
}
# Labels that come from Prometheus, from a histogram, or from whoever runs it; and those of etcd and of ALERTS.
FOREIGN_LABELS = set(
    "job instance cluster le alertname alertstate severity grpc_code grpc_method grpc_service grpc_type alarm_type server_id To".split()
)
OURS = ("evenkeel_", "process_")
PARTS = ("_bucket", "_sum", "_count")
# What stands in PromQL where a metric could, and is none.
WORDS = set(
    """
    and or unless by without on ignoring group_left group_right bool offset atan2 start end inf nan
    sum min max avg count group stddev stdvar topk bottomk count_values quantile
    """.split()
)


class Findings:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)


# --- PromQL, as far as names and labels go


def without_variables(expression: str) -> str:
    """Grafana's variables become something that PromQL has at that place."""
    expression = re.sub(r"\$__(?:rate_interval|interval|range)\b|\$\{__(?:rate_interval|interval|range)\}", "5m", expression)
    return re.sub(r"\$\{?\w+(?::\w+)?\}?", "x", expression)


def names_and_labels(expression: str) -> list[tuple[str, set[str]]]:
    """Each metric of an expression with the labels that it is selected by; and ("", labels) for those that it is grouped by."""
    text = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', '""', without_variables(expression))
    found: list[tuple[str, set[str]]] = []

    def grouped(match: re.Match[str]) -> str:
        found.append(("", {label.strip() for label in match[2].split(",") if label.strip()}))
        return f" {match[1]} "

    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)", grouped, text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    for match in re.finditer(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\}|\(|)", text):
        name, rest = match[1], match[2]
        before = text[match.start() - 1 : match.start()]
        if rest == "(" or name.lower() in WORDS or before.isdigit():
            continue
        labels = set(re.findall(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)", rest)) if rest else set()
        found.append((name, labels))
    return found


# --- the files


def alerts(text: str) -> tuple[list[dict[str, str]], set[str]]:
    """The rules of alerts.yml, each as its fields, and the names that are recorded."""
    rules: list[dict[str, str]] = []
    rule: dict[str, str] = {}
    field, depth = "", 0
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        begin = re.match(r"\s*- (record|alert): (\S+)$", line)
        key = re.match(r"\s*(\w+):\s*(.*)$", line)
        if begin:
            rule = {begin[1]: begin[2]}
            rules.append(rule)
            field, depth = "", indent + 2
        elif rule and field and indent > depth:
            rule[field] += " " + line.strip()
        elif rule and key:
            name, value = key[1], key[2].strip()
            # Of a map (labels, annotations) the fields follow, one level deeper.
            if value in ("", ">-", "|", "|-"):
                field, value = (name, "") if value else ("", "")
            else:
                field = name
            depth = indent
            if field:
                rule[field] = value
    recorded = {rule["record"] for rule in rules if "record" in rule}
    return rules, recorded


def table(text: str) -> dict[str, tuple[str, set[str]]]:
    """The metrics of the tables in docs/operations.md: type and labels by name."""
    rows = re.findall(r"^\| `((?:evenkeel|process)_[a-z0-9_]+)(?:\{([a-z_, ]+)\})?` \| (\w+) \| [^|]+ \| (?:master|worker|both) \| [^|]+ \|$", text, re.M)
    return {name: (kind, {label.strip() for label in labels.split(",") if label.strip()}) for name, labels, kind in rows}


def source_names(root: Path) -> tuple[dict[str, str], set[str]]:
    """Names of metrics in the sources, each with its file; and all string literals, for names that are put together from parts."""
    crates = {f"evenkeel_{path.parent.name}" for path in root.glob("crates/*/Cargo.toml")}
    names: dict[str, str] = {}
    literals: set[str] = set()
    for path in sorted(root.glob("crates/*/src/**/*.rs")):
        code = re.split(r"^#\[cfg\(test\)\]", path.read_text(encoding="utf-8"), maxsplit=1, flags=re.M)[0]
        code = re.sub(r"^\s*//.*$", "", code, flags=re.M)
        if path.relative_to(root / "crates").parts[0] in ("fuzz", "sim"):
            continue
        strings = re.findall(r'"((?:\\.|[^"\\])*)"', code)
        literals.update(strings)
        for text in strings:
            for name in re.findall(r"\b(?:evenkeel|process)_[a-z0-9_]*[a-z0-9]\b(?!\{)", text):
                # A crate's name in a log filter, or a word in a sentence, is no metric; and one that goes on is put together from parts.
                if name == text and name not in crates and not (name + "_") in text:
                    names.setdefault(name, str(path.relative_to(root)))
    return names, literals


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^    .*$", "", text, flags=re.M), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = seen.get(slug, 0)
        seen[slug] = number + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


# --- the checks


def check_metric(name: str, labels: set[str], where: str, known: dict[str, tuple[str, set[str]]], recorded: set[str], found: Findings) -> None:
    if ":" in name:
        if name not in recorded:
            found.add(f"{where}: {name} is recorded by no rule of alerts.yml")
        return
    base, part = name, ""
    for suffix in PARTS:
        stem = name.removesuffix(suffix)
        if stem != name and (known.get(stem, ("",))[0] == "histogram" or stem in FOREIGN_HISTOGRAMS):
            base, part = stem, suffix
    if name.startswith(OURS):
        if base not in known:
            return found.add(f"{where}: {name} is not in the tables of docs/operations.md")
        kind, own = known[base]
        if kind == "histogram" and not part:
            found.add(f"{where}: {name} is a histogram: {name}_bucket, _sum or _count is meant")
        wrong = labels - own - {"job", "instance", "cluster"} - ({"le"} if part == "_bucket" else set())
        if wrong:
            found.add(f"{where}: {name} has no label {', '.join(sorted(wrong))}")
    elif base not in FOREIGN:
        found.add(f"{where}: {name} is no metric of Evenkeel, etcd or Prometheus that check_metrics.py knows")


def check_expression(expression: str, where: str, known: dict[str, tuple[str, set[str]]], recorded: set[str], found: Findings) -> set[str]:
    used = set()
    every = FOREIGN_LABELS | {label for _, labels in known.values() for label in labels}
    for name, labels in names_and_labels(expression):
        if not name:
            for label in sorted(labels - every):
                found.add(f"{where}: no metric has the label {label}")
            continue
        used.add(name)
        check_metric(name, labels, where, known, recorded, found)
    if re.search(r'\b(?:le|quantile)\s*=', expression):
        found.add(f"{where}: goes by the text of a bound (le, quantile), which Prometheus 2 and 3 write differently")
    return used


def check_alerts(root: Path, known: dict[str, tuple[str, set[str]]], found: Findings) -> tuple[int, set[str], set[str]]:
    here = root / "deploy/prometheus"
    rules, recorded = alerts((here / "alerts.yml").read_text(encoding="utf-8"))
    page = anchors((root / "docs/operations.md").read_text(encoding="utf-8"))
    tests = (here / "alerts_test.yml").read_text(encoding="utf-8")
    quiet = set(re.findall(r"alertname: (\w+), eval_time: \w+, exp_alerts: \[\]", tests)) | set(
        re.findall(r'expr: count_over_time\(ALERTS\{alertname="(\w+)"[^\n]*\n\s*eval_time: \w+\n\s*exp_samples: \[\]', tests)
    )
    firing = set(re.findall(r'alertname="(\w+)"[^\n]*alertstate="firing"', re.sub(r"expr: count_over_time[^\n]*", "", tests)))
    used, names = set(), set()
    for rule in rules:
        name = rule.get("alert") or rule.get("record", "")
        used |= check_expression(rule.get("expr", ""), f"alerts.yml: {name}", known, recorded, found)
        if "alert" not in rule:
            continue
        names.add(name)
        for field in ("expr", "for", "severity", "summary", "description", "runbook"):
            if not rule.get(field):
                found.add(f"alerts.yml: {name} has no {field}")
        if rule.get("severity") not in ("critical", "warning"):
            found.add(f"alerts.yml: {name}: severity is critical or warning")
        if rule.get("runbook") != f"docs/operations.md#{name.lower()}" or name.lower() not in page:
            found.add(f"alerts.yml: {name}: runbook is to be docs/operations.md#{name.lower()}, and that a heading there")
        if name not in firing:
            found.add(f"alerts_test.yml: no test shows that {name} fires")
        if name not in quiet:
            found.add(f"alerts_test.yml: no test shows that {name} is quiet when it should")
    runbook = (root / "docs/operations.md").read_text(encoding="utf-8").split("\n## Runbook\n", 1)[-1]
    for heading in re.findall(r"^### (\w+)$", runbook, re.M):
        if heading not in names:
            found.add(f"docs/operations.md: the runbook has {heading}, and alerts.yml has no such alert")
    return len(names), used, recorded


def panels_of(dashboard: dict) -> list[dict]:
    panels = []
    for panel in dashboard["panels"]:
        panels.append(panel)
        panels.extend(panel.get("panels", []))
    return panels


def check_dashboard(path: Path, known: dict[str, tuple[str, set[str]]], recorded: set[str], found: Findings) -> tuple[list[str], set[str]]:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    expressions, used, ids, places = [], set(), set(), set()
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels_of(dashboard):
        where = f"{path.name}: {panel.get('title') or panel.get('id')}"
        if panel["id"] in ids:
            found.add(f"{where}: its id {panel['id']} is there twice")
        ids.add(panel["id"])
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        if cells & places or place["x"] + place["w"] > 24:
            found.add(f"{where}: lies over another panel, or beyond the edge")
        places |= cells
        if not panel.get("title"):
            found.add(f"{where}: has no title")
        if panel["type"] == "row":
            continue
        if not panel.get("description"):
            found.add(f"{where}: has no description")
        if "unit" not in panel.get("fieldConfig", {}).get("defaults", {}):
            found.add(f"{where}: has no unit")
        for target in panel.get("targets", []):
            for source in (panel.get("datasource"), target.get("datasource")):
                if source != {"type": "prometheus", "uid": "${datasource}"}:
                    found.add(f"{where}: its data source is not the variable")
            expression = target["expr"]
            expressions.append(expression)
            used |= check_expression(expression, where, known, recorded, found)
            for variable in re.findall(r"\$\{?([a-z]\w*)", expression):
                if variable not in variables:
                    found.add(f"{where}: there is no variable {variable}")
    for variable in dashboard["templating"]["list"]:
        query = variable.get("query")
        asked = query.get("query", "") if isinstance(query, dict) else query or ""
        inner = re.match(r"label_values\((.+), \w+\)$", asked)
        if inner:
            used |= check_expression(inner[1], f"{path.name}: variable {variable['name']}", known, recorded, found)
    return expressions, used


def check_sources(root: Path, known: dict[str, tuple[str, set[str]]], found: Findings) -> list[str]:
    """Every name in the sources is in the table. The other way round only says what it could not find: names may be put together."""
    names, literals = source_names(root)
    spelled = lambda name: {name, f"{name}_total", f"{name}_seconds", f"{name}_seconds_total", f"{name}_bytes"}
    for name, path in sorted(names.items()):
        if not spelled(name) & set(known):
            found.add(f"{path}: {name} is not in the tables of docs/operations.md")
    covered = {spelling for name in names for spelling in spelled(name)}
    missing = []
    for name in sorted(set(known) - covered):
        stem = re.sub(r"^(evenkeel_worker_|evenkeel_|process_)", "", name)
        parts = {stem, stem.removesuffix("_total"), stem.removesuffix("_seconds")}
        if not parts & literals:
            missing.append(name)
    return missing


def check_live(urls: list[str], known: dict[str, tuple[str, set[str]]], found: Findings) -> None:
    shown: dict[str, set[str]] = {}
    for url in urls:
        text = urllib.request.urlopen(url, timeout=5).read().decode()
        for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?\s", text, re.M):
            base = name
            for suffix in PARTS:
                stem = name.removesuffix(suffix)
                if known.get(stem, ("",))[0] == "histogram":
                    base = stem
            shown.setdefault(base, set()).update(re.findall(r'(\w+)="', labels))
    for name, labels in sorted(shown.items()):
        if name.startswith(OURS) and name not in known:
            found.add(f"--live: {name} is shown, and is not in the tables of docs/operations.md")
        elif name in known and labels - {"le"} - known[name][1]:
            found.add(f"--live: {name} has the labels {', '.join(sorted(labels - {'le'}))}, the table says {', '.join(sorted(known[name][1])) or 'none'}")
    for name in sorted(set(known) - set(shown)):
        found.add(f"--live: {name} is in the tables of docs/operations.md, and nobody shows it")


def check_links(root: Path, found: Findings) -> None:
    """Links of docs/operations.md lead somewhere."""
    page = root / "docs/operations.md"
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            found.add(f"docs/operations.md: {target} does not exist")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            found.add(f"docs/operations.md: {target}: there is no such heading")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--expressions", type=Path, required=True)
    parser.add_argument("--live", nargs="+", default=[], metavar="URL")
    options = parser.parse_args()
    root, found = options.root, Findings()

    known = table((root / "docs/operations.md").read_text(encoding="utf-8"))
    number, used, recorded = check_alerts(root, known, found)
    expressions, more = check_dashboard(root / "deploy/prometheus/grafana-dashboard.json", known, recorded, found)
    missing = check_sources(root, known, found)
    check_links(root, found)
    if options.live:
        check_live(options.live, known, found)
    rules = "".join(f"  - record: dashboard_{n}\n    expr: {json.dumps(without_variables(e))}\n" for n, e in enumerate(expressions))
    options.expressions.write_text(f"groups:\n- name: dashboard\n  rules:\n{rules}", encoding="utf-8")

    for line in found.lines:
        print(f"check: {line}", file=sys.stderr)
    if missing:
        print(f"note: in the tables, and not found as they stand in the sources: {', '.join(missing)}")
    unused = sorted(set(known) - {name.removesuffix(s) for name in used | more for s in ("", *PARTS)})
    if unused:
        print(f"note: in the tables, and in no alert and on no panel: {', '.join(unused)}")
    if found.lines:
        return 1
    print(f"ok: {number} alerts, {len(expressions)} expressions of the dashboard, {len(known)} metrics in docs/operations.md agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
