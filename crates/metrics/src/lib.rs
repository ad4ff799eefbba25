//! What every process of Evenkeel measures alike: its version, its memory, its CPU time, its files; and the page on which it is shown
//! with what else the process measures.
//!
//! Beside the wheel store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report: nothing in it is decided from a metric. This crate knows
//! nothing of masters and workers.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::Registry,
};

/// The media type of a [`page`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry that has what all processes measure: `evenkeel_build_info`, and where the system tells, `process_*`.
#[must_use]
pub fn registry(version: &str) -> Registry {
    let mut registry = Registry::default();
    let build = Family::<Vec<(String, String)>, Gauge>::default();
    build.get_or_create(&vec![("version".to_owned(), version.to_owned())]).set(1);
    registry.register("evenkeel_build_info", "1, with the version of the binary", build);
    registry.register_collector(Box::new(OwnProcess));
    registry
}

/// All of it in the text format of OpenMetrics, which Prometheus reads.
#[must_use]
pub fn page(registry: &Registry) -> String {
    let mut text = String::new();
    // A String takes everything; what fails is a collector, and the page then ends where it was.
    let _ = encode(&mut text, registry);
    text
}

/// Writes one gauge without labels, from within a [`Collector`].
///
/// # Errors
/// When the page cannot be written.
pub fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

/// Writes one gauge with a label of a few known values, from within a [`Collector`].
///
/// # Errors
/// When the page cannot be written.
pub fn gauges_by(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: &[(&'static str, u64)],
) -> fmt::Result {
    let family = Family::<Vec<(&'static str, &'static str)>, Gauge>::default();
    for (value, count) in values {
        family.get_or_create(&vec![(label, *value)]).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    family.encode(encoder.encode_descriptor(name, help, None, family.metric_type())?)
}

/// Writes one gauge of seconds without labels, from within a [`Collector`]. Its name ends in `_seconds` by itself.
///
/// # Errors
/// When the page cannot be written.
pub fn gauge_of_seconds(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: Duration) -> fmt::Result {
    let value = ConstGauge::new(value.as_secs_f64());
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

/// Writes one counter without labels, from within a [`Collector`]. Its name has no `_total`: that is added.
///
/// # Errors
/// When the page cannot be written.
pub fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let value = ConstCounter::new(value);
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

/// This process, under the names that Prometheus' own clients give.
#[derive(Debug)]
struct OwnProcess;

#[cfg(target_os = "linux")]
impl Collector for OwnProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use prometheus_client::registry::Unit;

        // A process that cannot read its own entry shows nothing of it.
        let Ok(own) = procfs::process::Process::myself() else { return Ok(()) };
        let Ok(stat) = own.stat() else { return Ok(()) };
        let ticks = procfs::ticks_per_second();
        let seconds = |ticks_passed: u64| ticks_passed as f64 / ticks as f64;
        gauge(&mut encoder, "process_resident_memory_bytes", "Memory of this process that is in RAM.", stat.rss * procfs::page_size())?;
        gauge(&mut encoder, "process_virtual_memory_bytes", "Address space of this process.", stat.vsize)?;
        gauge(&mut encoder, "process_threads", "Threads of this process.", u64::try_from(stat.num_threads).unwrap_or_default())?;
        if let Ok(count) = own.fd_count() {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors of this process.", count as u64)?;
        }
        let cpu = ConstCounter::new(seconds(stat.utime + stat.stime));
        let help = "CPU time that this process has used.";
        cpu.encode(encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), cpu.metric_type())?)?;
        if let Ok(boot) = procfs::boot_time_secs() {
            let began = ConstGauge::new(boot as f64 + seconds(stat.starttime));
            let help = "When this process began, since the Unix epoch.";
            began.encode(encoder.encode_descriptor("process_start_time", help, Some(&Unit::Seconds), began.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Collector for OwnProcess {
    fn encode(&self, _: DescriptorEncoder<'_>) -> fmt::Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_version_and_ends_as_it_must() {
        let page = page(&registry("1.2.3"));
        assert!(page.contains("evenkeel_build_info{version=\"1.2.3\"} 1\n"), "{page}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_on_it() {
        let page = page(&registry(""));
        let value = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name} is not in\n{page}"))
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        // After this was written.
        assert!(value("process_start_time_seconds") > 1_760_000_000.0);
    }
}
